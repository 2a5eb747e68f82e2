//! Sessions outlive their connections for a while, and their server. They apply each numbered
//! mutation once, and the journal of their client in its order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_lease::{Notice, Recall};
use atoll_types::mutation::{Mutation, is_broken};
use atoll_types::{Errno, JournalPosition, OperationSeq, SessionId};
use atoll_volume::{Earned, SessionInfo, Volume};
use atoll_wire::{Lane, RECALLS_MAX, Response, Resume, TERM_MS, UNNOTICED_MS};
use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::names::parts;
use crate::ownership::Ownership;

/// How often it is looked for sessions without a connection …
pub(crate) const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);
/// … and how often such a one is kept: 30 s of this process's own time.
const MISSED_MAX: u32 = 30;
/// Most answers kept for one session.
const ANSWERS_MAX: usize = 16_384;

pub(crate) use atoll_volume::Results;
/// What a request answers, and what the session may keep of it.
pub(crate) type Reply = (Results, Earned);

pub(crate) struct Session {
    pub id: SessionId,
    pub secret: u128,
    pub volume_name: String,
    pub volume: Volume,
    /// `None` where the volume cannot be taken over.
    ownership: Option<Arc<Ownership>>,
    pub read_only: bool,
    /// It answers recalls.
    pub leases: bool,
    /// It was begun with an earlier server.
    pub restored: bool,
    /// Held while a change is made again.
    pub again: Arc<tokio::sync::Mutex<()>>,
    /// The client has the answers of all its changes below this number.
    heard: AtomicU64,
    state: Mutex<State>,
    /// Everything in its client's journal up to here was executed.
    executed: watch::Sender<JournalPosition>,
    /// Tells the session's connections that it is over.
    over: watch::Sender<bool>,
    /// The generation of its newest connections: what older ones still bring is not executed.
    newest: watch::Sender<u64>,
    /// The oldest generation that has connections.
    oldest: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// How many there are of each generation: a control connection begins one, for what the client has sent before it
    /// sends again.
    connections: BTreeMap<u64, usize>,
    /// How often [`Sessions::expire`] has found it without a connection since it had one.
    missed: u32,
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
    /// It has not made everything again that the server before may have lost.
    returning: Option<Returning>,
}

impl State {
    /// Whether the session ends now, since its client has been away for too long.
    fn is_given_up(&mut self) -> bool {
        if self.ended || !self.connections.is_empty() {
            return false;
        }
        self.missed += 1;
        self.ended = self.missed > MISSED_MAX;
        self.ended
    }
}

/// A session of an earlier server on its way back.
#[derive(Clone, Copy, Default)]
struct Returning {
    /// Where its journal ends; unknown until its client is there.
    journal_end: Option<JournalPosition>,
    /// Everything was made again that had been executed.
    has_made_again: bool,
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
    fn new(
        volume_name: &str,
        (volume, ownership): (Volume, Option<Arc<Ownership>>),
        id: SessionId,
        info: SessionInfo,
        journal: JournalPosition,
        returning: Option<Returning>,
    ) -> Arc<Session> {
        Arc::new(Session {
            id,
            secret: info.secret,
            volume_name: volume_name.to_owned(),
            volume,
            ownership,
            read_only: info.read_only,
            leases: info.leases,
            restored: returning.is_some(),
            again: Arc::default(),
            heard: AtomicU64::new(0),
            state: Mutex::new(State { begun: journal, returning, ..State::default() }),
            executed: watch::Sender::new(journal),
            over: watch::Sender::new(false),
            newest: watch::Sender::new(0),
            oldest: watch::Sender::new(0),
        })
    }

    /// Ready when it is sure that the volume was this server's until now; false when it is another one's.
    pub async fn holds(&self) -> bool {
        let Some(ownership) = &self.ownership else { return true };
        if self.volume.is_fenced() {
            ownership.lose();
        }
        ownership.holds().await
    }

    /// Whether that is sure now.
    pub fn is_sure(&self) -> bool {
        self.ownership.as_ref().is_none_or(|ownership| ownership.is_sure())
    }

    pub fn admit(&self, sequence: OperationSeq, acknowledged: OperationSeq) -> Admission {
        admit(&self.state, sequence, acknowledged)
    }

    /// Count one more connection; answers its generation, and nothing when the session is over.
    fn connect(&self, lane: Lane) -> Option<u64> {
        let mut state = self.state.lock();
        if state.ended {
            return None;
        }
        let generation = *self.newest.borrow() + u64::from(lane == Lane::Control);
        *state.connections.entry(generation).or_default() += 1;
        state.missed = 0;
        self.newest.send_replace(generation);
        self.note_oldest(&state);
        Some(generation)
    }

    pub fn disconnected(&self, generation: u64) {
        let mut state = self.state.lock();
        if let Some(count) = state.connections.get_mut(&generation) {
            *count -= 1;
            if *count == 0 {
                state.connections.remove(&generation);
            }
        }
        self.note_oldest(&state);
    }

    fn note_oldest(&self, state: &State) {
        let oldest = state.connections.first_key_value().map_or(u64::MAX, |(generation, _)| *generation);
        self.oldest.send_replace(oldest);
    }

    /// Ready when the client has connected anew: what it asked for here and has no answer to, it asks for there.
    pub async fn replaced(&self, generation: u64) {
        let _ = self.newest.subscribe().wait_for(|newest| *newest > generation).await;
    }

    /// Ready when nothing that older connections brought is executed any more, unless it is numbered.
    pub async fn replaces(&self, generation: u64) {
        let _ = self.oldest.subscribe().wait_for(|oldest| *oldest >= generation).await;
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

    /// The changes of the journal from `after` to `end` are to be executed. What stands in it is executed once, whatever
    /// number it comes with: answers from where on they are to be, and whether that is now. If not, those before were
    /// begun, and may not be done.
    pub fn begin(&self, after: JournalPosition, end: JournalPosition) -> (JournalPosition, bool) {
        let mut state = self.state.lock();
        let start = after.max(state.begun).min(end);
        let is_now = start == after && state.begun == after;
        if is_now {
            state.begun = end;
        }
        (start, is_now)
    }

    /// The journal was executed up to `end`.
    pub fn advance(&self, end: JournalPosition) {
        self.executed.send_replace(end);
        self.come_back(|_| ());
    }

    /// The client has made again whatever the server before had executed and may have lost.
    pub fn made_again(&self) {
        self.come_back(|returning| returning.has_made_again = true);
    }

    /// The session has returned when it has made everything again and its journal is executed.
    fn come_back(&self, moves: impl FnOnce(&mut Returning)) {
        let has_returned = {
            let mut state = self.state.lock();
            let Some(returning) = &mut state.returning else { return };
            moves(returning);
            let is_over = returning.journal_end.is_some_and(|end| self.executed() >= end);
            let has_returned = returning.has_made_again && is_over;
            if has_returned {
                state.returning = None;
            }
            has_returned
        };
        if has_returned { self.volume.returned(self.id) } else { self.volume.returning(self.id) }
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
        self.say(&Response::Recall(recalls));
    }

    /// The client has the answers of all its changes below this number.
    pub fn heard(&self, below: OperationSeq) {
        if self.heard.fetch_max(below.0, Ordering::AcqRel) < below.0 {
            self.volume.heard(self.id, below);
        }
    }

    /// Send what nobody has asked for.
    fn say(&self, response: &Response) {
        let mut bytes = BytesMut::new();
        if let Err(error) = atoll_wire::encode(0, response, &mut bytes) {
            tracing::error!(%error, "a message does not fit a frame");
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
    if let Some(answer) = state.answers.get(&sequence.0).filter(|_| !is_broken(Mutation::Repeated)) {
        return Admission::Repeat(answer.clone());
    }
    if state.answers.len() >= ANSWERS_MAX {
        return Admission::TooMany;
    }
    let (sender, receiver) = watch::channel(None);
    state.answers.insert(sequence.0, receiver);
    Admission::Execute(sender)
}

#[derive(Default)]
pub(crate) struct Sessions {
    table: Mutex<HashMap<SessionId, Arc<Session>>>,
}

impl Sessions {
    /// A new session with one connection, whose client's journal begins behind `journal`.
    pub async fn create(
        &self,
        volume_name: &str,
        (volume, ownership): (Volume, Option<Arc<Ownership>>),
        read_only: bool,
        leases: bool,
        journal: JournalPosition,
        lane: Lane,
    ) -> Result<(Arc<Session>, u64), String> {
        let random: [u8; 24] = crate::random().map_err(|error| error.to_string())?;
        let (mut id, mut secret) = ([0u8; 8], [0u8; 16]);
        id.copy_from_slice(&random[..8]);
        secret.copy_from_slice(&random[8..]);
        let id = SessionId(u64::from_le_bytes(id));
        let info = SessionInfo { secret: u128::from_le_bytes(secret), read_only, leases };
        let begun = volume.begin_session(id, info, journal).await;
        begun.map_err(|errno| format!("volume `{volume_name}` takes no sessions: {errno}"))?;
        let session = Session::new(volume_name, (volume, ownership), id, info, journal, None);
        let generation = session.connect(lane).unwrap_or_default();
        self.insert(session.clone());
        Ok((session, generation))
    }

    /// The sessions that a volume had with the last server: they may come back for a while.
    pub fn restore(&self, volume_name: &str, volume: &Volume, ownership: Option<Arc<Ownership>>) {
        for &(id, info) in volume.restored_sessions() {
            let journal = volume.journal(id);
            let returning = Some(Returning::default());
            let of = (volume.clone(), ownership.clone());
            self.insert(Session::new(volume_name, of, id, info, journal, returning));
        }
    }

    fn insert(&self, session: Arc<Session>) {
        if session.leases {
            session.volume.enroll(session.id);
        }
        self.table.lock().insert(session.id, session);
    }

    /// The session with one more connection, and the generation of that, if it is there and the client proves that it
    /// is its own. Its journal ends at `journal_end`.
    pub fn resume(
        &self,
        resume: &Resume,
        volume_name: &str,
        read_only: bool,
        journal_end: JournalPosition,
        lane: Lane,
    ) -> Option<(Arc<Session>, u64)> {
        let session = self.table.lock().get(&resume.session)?.clone();
        let same =
            session.secret == resume.secret && session.volume_name == volume_name && session.read_only == read_only;
        let may = same && session.volume.may_return(session.id);
        let generation = if may { session.connect(lane)? } else { return None };
        session.come_back(|returning| returning.journal_end = Some(journal_end));
        Some((session, generation))
    }

    /// Sessions of all volumes, or of one and its snapshots.
    pub fn count(&self, volume_name: Option<&str>) -> u64 {
        let of = |session: &Session, name| session.volume_name == name || parts(&session.volume_name).0 == name;
        let table = self.table.lock();
        table.values().filter(|session| volume_name.is_none_or(|name| of(session, name))).count() as u64
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

    /// The volume is another server's: its sessions go on there.
    pub fn abandon(&self, volume_name: &str) {
        let of_volume = |_: &SessionId, session: &mut Arc<Session>| session.volume_name == volume_name;
        let abandoned: Vec<_> = self.table.lock().extract_if(of_volume).collect();
        for (_, session) in abandoned {
            session.state.lock().ended = true;
            session.over.send_replace(true);
        }
    }

    /// Tell a session to give rights up.
    pub fn recall(&self, notice: Notice) {
        let session = self.table.lock().get(&notice.session).cloned();
        if let Some(session) = session {
            session.recall(vec![notice.recall]);
        }
    }

    /// Somebody waits until the client of a session has the answers that it was sent.
    pub fn confirm(&self, session: SessionId) {
        let session = self.table.lock().get(&session).cloned();
        if let Some(session) = session {
            session.say(&Response::Confirm);
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
            tokio::time::sleep(Duration::from_millis(TERM_MS + UNNOTICED_MS)).await;
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
            for id in volume.missed_sessions() {
                if self.end_by_id(id).await {
                    tracing::warn!(session = %id, volume = %name, "session lost: its client did not come back after the start");
                }
            }
            for id in volume.overdue_sessions() {
                tracing::warn!(session = %id, volume = %name, "session fenced: it did not give up what others wait for");
                self.end_by_id(id).await;
            }
        }
    }

    /// End sessions whose client has been away for too long. Called each [`EXPIRE_INTERVAL`]; what a server that stood still
    /// did not look at counts for nobody.
    pub async fn expire(&self) {
        let sessions: Vec<_> = self.table.lock().values().cloned().collect();
        for session in sessions {
            let is_given_up = session.state.lock().is_given_up();
            if is_given_up {
                tracing::info!(session = %session.id, "session expired");
                self.end(&session).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::Outcome;

    fn state() -> Mutex<State> {
        Mutex::default()
    }

    #[test]
    fn a_session_is_kept_for_as_long_as_it_was_looked_for() {
        let mut state = State::default();
        for _ in 0..2 {
            assert!((0..MISSED_MAX).all(|_| !state.is_given_up()));
            state.connections.insert(1, 1);
            state.missed = 0;
            assert!((0..2 * MISSED_MAX).all(|_| !state.is_given_up()));
            state.connections.clear();
        }
        assert!((0..MISSED_MAX).all(|_| !state.is_given_up()));
        assert!(state.is_given_up());
        assert!(!state.is_given_up(), "it is over already");
    }

    #[test]
    fn a_mutation_is_executed_once() {
        let state = state();
        let seq = OperationSeq;
        let Admission::Execute(answer) = admit(&state, seq(5), seq(5)) else { panic!() };
        let Admission::Repeat(mut repeat) = admit(&state, seq(5), seq(5)) else { panic!() };
        assert!(repeat.borrow_and_update().is_none());
        let earned = Earned { order: atoll_lease::Issue(9), ..Earned::default() };
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
