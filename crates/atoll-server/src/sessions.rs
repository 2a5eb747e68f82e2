//! Sessions outlive their connections for a while, apply each numbered
//! mutation once, and the journal of their client in its order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_lease::{Notice, Recall};
use atoll_types::{Errno, JournalPosition, OperationSeq, Outcome, SessionId};
use atoll_volume::{Earned, Volume};
use atoll_wire::{RECALLS_MAX, Response, Resume, TERM_MS};
use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

/// How long a session without a connection is kept.
pub(crate) const SESSION_KEPT: Duration = Duration::from_secs(30);
/// Most answers kept for one session.
const ANSWERS_MAX: usize = 16_384;

pub(crate) type Results = Vec<Result<Outcome, Errno>>;
/// What a request answers, and what the session may keep of it.
pub(crate) type Reply = (Results, Earned);

pub(crate) struct Session {
    pub id: SessionId,
    pub secret: u128,
    pub volume_name: String,
    pub volume: Volume,
    pub read_only: bool,
    /// It answers recalls.
    pub leases: bool,
    state: Mutex<State>,
    /// The session of an earlier server that it goes on from, and where that one's journal ends.
    former: Option<(SessionId, JournalPosition)>,
    /// Everything in its client's journal up to here was executed.
    executed: watch::Sender<JournalPosition>,
    /// Tells the session's connections that it is over.
    over: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    connections: usize,
    idle_since: Option<Instant>,
    ended: bool,
    /// Where recalls go: the newest control connection.
    recalls: Option<mpsc::UnboundedSender<BytesMut>>,
    /// The client has the answers of every mutation below this number.
    acknowledged: u64,
    /// Answers to numbered mutations that the client may not have yet; `None` while executing. With what they
    /// earned: it tells a client that asks again that what it has kept since is old.
    answers: BTreeMap<u64, watch::Receiver<Option<Reply>>>,
    /// The journal up to here was executed, or is being.
    begun: JournalPosition,
}

/// What to do with a numbered mutation.
pub(crate) enum Admission {
    /// New: execute it and publish the answer here.
    Execute(watch::Sender<Option<Reply>>),
    /// Seen before: its answer is, or will be, here.
    Repeat(watch::Receiver<Option<Reply>>),
    /// A late copy of a request whose answer the client has already.
    Acknowledged,
    /// The client has more unanswered mutations than it may.
    TooMany,
}

impl Session {
    pub fn admit(&self, sequence: OperationSeq, acknowledged: OperationSeq) -> Admission {
        admit(&self.state, sequence, acknowledged)
    }

    /// Count one more connection; false when the session is over.
    fn connect(&self) -> bool {
        let mut state = self.state.lock();
        state.connections += usize::from(!state.ended);
        state.idle_since = None;
        !state.ended
    }

    pub fn disconnected(&self) {
        let mut state = self.state.lock();
        state.connections -= 1;
        if state.connections == 0 {
            state.idle_since = Some(Instant::now());
        }
    }

    pub fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Ready when the session is over.
    pub async fn over(&self) {
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Everything in the client's journal up to here was executed.
    pub fn executed(&self) -> JournalPosition {
        *self.executed.borrow()
    }

    /// Wait until the client's journal is executed up to `position`; `EIO` when the session is over before.
    pub async fn until_executed(&self, position: JournalPosition) -> Result<(), Errno> {
        if self.executed() < position {
            let mut executed = self.executed.subscribe();
            tokio::select! {
                _ = executed.wait_for(|executed| *executed >= position) => {}
                _ = self.over() => {}
            }
        }
        if self.has_ended() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// The `count` changes of the journal behind `after` are executed now; answers where they end. `None` when they
    /// have been before: what stands in the journal is executed once, whatever number it comes with.
    pub fn begin(&self, after: JournalPosition, count: u64) -> Option<JournalPosition> {
        let mut state = self.state.lock();
        let end = JournalPosition(after.0.checked_add(count)?);
        (state.begun == after).then(|| state.begun = end)?;
        Some(end)
    }

    /// The journal was executed up to `end`.
    pub fn advance(&self, end: JournalPosition) {
        self.executed.send_replace(end);
        self.return_former();
    }

    /// An earlier server's session has returned when its journal is executed.
    fn return_former(&self) {
        match self.former {
            Some((session, end)) if self.executed() >= end => self.volume.returned(session),
            Some((session, _)) => self.volume.returning(session),
            None => {}
        }
    }

    /// Send recalls to this connection from now on, first those that are unanswered.
    pub fn attach(&self, recalls: mpsc::UnboundedSender<BytesMut>) {
        self.state.lock().recalls = Some(recalls);
        for part in self.volume.unanswered_recalls(self.id).chunks(RECALLS_MAX) {
            self.recall(part.to_vec());
        }
    }

    /// Without a connection, the recalls are sent when there is one.
    fn recall(&self, recalls: Vec<Recall>) {
        tracing::debug!(session = %self.id, ?recalls, "recall");
        let mut bytes = BytesMut::new();
        if let Err(error) = atoll_wire::encode(0, &Response::Recall(recalls), &mut bytes) {
            tracing::error!(%error, "a recall does not fit a frame");
            return;
        }
        if let Some(sender) = &self.state.lock().recalls {
            let _ = sender.send(bytes);
        }
    }
}

fn admit(state: &Mutex<State>, sequence: OperationSeq, acknowledged: OperationSeq) -> Admission {
    let mut state = state.lock();
    if acknowledged.0 > state.acknowledged {
        state.acknowledged = acknowledged.0;
        state.answers = state.answers.split_off(&acknowledged.0);
    }
    if sequence.0 < state.acknowledged {
        return Admission::Acknowledged;
    }
    if let Some(answer) = state.answers.get(&sequence.0) {
        return Admission::Repeat(answer.clone());
    }
    if state.answers.len() >= ANSWERS_MAX {
        return Admission::TooMany;
    }
    let (sender, receiver) = watch::channel(None);
    state.answers.insert(sequence.0, receiver);
    Admission::Execute(sender)
}

/// The journal that a client comes with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Journal {
    pub executed: JournalPosition,
    pub end: JournalPosition,
    /// The session of an earlier server in which it was begun.
    pub former: Option<SessionId>,
}

#[derive(Default)]
pub(crate) struct Sessions {
    table: Mutex<HashMap<SessionId, Arc<Session>>>,
}

impl Sessions {
    /// A new session with one connection.
    pub fn create(
        &self,
        volume_name: &str,
        volume: Volume,
        read_only: bool,
        leases: bool,
        journal: Journal,
    ) -> Result<Arc<Session>, String> {
        let random: [u8; 24] = crate::random().map_err(|error| error.to_string())?;
        let (mut id, mut secret) = ([0u8; 8], [0u8; 16]);
        id.copy_from_slice(&random[..8]);
        secret.copy_from_slice(&random[8..]);
        let session = Arc::new(Session {
            id: SessionId(u64::from_le_bytes(id)),
            secret: u128::from_le_bytes(secret),
            volume_name: volume_name.to_owned(),
            volume,
            read_only,
            leases,
            state: Mutex::new(State { begun: journal.executed, ..State::default() }),
            former: journal.former.map(|session| (session, journal.end)),
            executed: watch::Sender::new(journal.executed),
            over: watch::Sender::new(false),
        });
        session.connect();
        self.table.lock().insert(session.id, session.clone());
        if leases {
            session.volume.enroll(session.id);
        }
        session.return_former();
        Ok(session)
    }

    /// The session with one more connection, if it is there and the client proves that it is its own.
    pub fn resume(&self, resume: &Resume, volume_name: &str, read_only: bool) -> Option<Arc<Session>> {
        let session = self.table.lock().get(&resume.session)?.clone();
        let same =
            session.secret == resume.secret && session.volume_name == volume_name && session.read_only == read_only;
        (same && session.connect()).then_some(session)
    }

    /// Sessions of a volume that hold leases.
    pub fn with_leases(&self, volume_name: &str) -> Vec<SessionId> {
        let table = self.table.lock();
        let ids = table.values().filter(|s| s.leases && s.volume_name == volume_name).map(|s| s.id);
        let mut ids: Vec<SessionId> = ids.collect();
        ids.sort();
        ids
    }

    pub fn count(&self, volume_name: Option<&str>) -> u64 {
        let table = self.table.lock();
        table.values().filter(|s| volume_name.is_none_or(|name| s.volume_name == name)).count() as u64
    }

    /// End a session: what it has open and locked is given back, later requests of it fail.
    pub async fn end(&self, session: &Session) {
        {
            let mut state = session.state.lock();
            state.ended = true;
            state.recalls = None;
        }
        session.over.send_replace(true);
        if self.table.lock().remove(&session.id).is_some() {
            session.volume.end_session(session.id).await;
        }
    }

    /// Tell a session to give rights up.
    pub fn recall(&self, notice: Notice) {
        let session = self.table.lock().get(&notice.session).cloned();
        if let Some(session) = session {
            session.recall(vec![notice.recall]);
        }
    }

    /// End a session by its number; false when there is none.
    pub async fn end_by_id(&self, id: SessionId) -> bool {
        let session = self.table.lock().get(&id).cloned();
        match session {
            Some(session) => {
                self.end(&session).await;
                true
            }
            None => false,
        }
    }

    /// End a session whose client may be cut off: it is not renewed from now on, and others go on when the term of
    /// what it holds is over. False when there is none.
    pub async fn revoke(self: &Arc<Self>, id: SessionId) -> bool {
        let Some(session) = self.table.lock().get(&id).cloned() else { return false };
        session.state.lock().ended = true;
        session.over.send_replace(true);
        let sessions = self.clone();
        // In a task of its own: who asked may go away.
        let ending = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(TERM_MS)).await;
            sessions.end(&session).await;
        });
        ending.await.is_ok()
    }

    /// End sessions that keep others waiting for what they hold, and free what they may have been using.
    pub async fn fence(&self) {
        let mut volumes: HashMap<String, Volume> = HashMap::new();
        for session in self.table.lock().values() {
            volumes.entry(session.volume_name.clone()).or_insert_with(|| session.volume.clone());
        }
        for (name, volume) in volumes {
            volume.reap_lingering().await;
            for id in volume.overdue_sessions() {
                tracing::warn!(session = %id, volume = %name, "session fenced: it did not give up what others wait for");
                self.end_by_id(id).await;
            }
        }
    }

    /// End sessions whose client has been away for too long.
    pub async fn expire(&self) {
        let sessions: Vec<_> = self.table.lock().values().cloned().collect();
        for session in sessions {
            let away = {
                let mut state = session.state.lock();
                let away = !state.ended && state.idle_since.is_some_and(|since| since.elapsed() >= SESSION_KEPT);
                state.ended |= away;
                away
            };
            if away {
                tracing::info!(session = %session.id, "session expired");
                self.end(&session).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Mutex<State> {
        Mutex::default()
    }

    #[test]
    fn a_mutation_is_executed_once() {
        let state = state();
        let seq = OperationSeq;
        let Admission::Execute(answer) = admit(&state, seq(5), seq(5)) else { panic!() };
        let Admission::Repeat(mut repeat) = admit(&state, seq(5), seq(5)) else { panic!() };
        assert!(repeat.borrow_and_update().is_none());
        let earned = Earned { grants: Vec::new(), order: atoll_lease::Issue(9) };
        answer.send_replace(Some((vec![Ok(Outcome::Done)], earned.clone())));
        assert_eq!(*repeat.borrow(), Some((vec![Ok(Outcome::Done)], earned)));
        assert!(matches!(admit(&state, seq(6), seq(5)), Admission::Execute(_)));
        assert!(matches!(admit(&state, seq(5), seq(5)), Admission::Repeat(_)));
    }

    #[test]
    fn a_late_copy_of_an_acknowledged_mutation_is_not_executed_again() {
        let state = state();
        let seq = OperationSeq;
        assert!(matches!(admit(&state, seq(5), seq(5)), Admission::Execute(_)));
        assert!(matches!(admit(&state, seq(6), seq(6)), Admission::Execute(_)));
        assert!(matches!(admit(&state, seq(5), seq(5)), Admission::Acknowledged));
    }

    #[test]
    fn answers_that_are_kept_are_bounded() {
        let state = state();
        for number in 1..=ANSWERS_MAX as u64 {
            assert!(matches!(admit(&state, OperationSeq(number), OperationSeq(1)), Admission::Execute(_)));
        }
        let next = OperationSeq(ANSWERS_MAX as u64 + 1);
        assert!(matches!(admit(&state, next, OperationSeq(1)), Admission::TooMany));
        assert!(matches!(admit(&state, next, OperationSeq(2)), Admission::Execute(_)));
    }
}
