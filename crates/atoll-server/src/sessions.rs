//! Sessions outlive their connections for a while, and apply each numbered
//! mutation once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_types::{Errno, OperationSeq, Outcome, SessionId};
use atoll_volume::Volume;
use atoll_wire::Resume;
use parking_lot::Mutex;
use tokio::sync::watch;

/// How long a session without a connection is kept.
pub(crate) const SESSION_KEPT: Duration = Duration::from_secs(30);
/// Most answers kept for one session.
const ANSWERS_MAX: usize = 16_384;

pub(crate) type Results = Vec<Result<Outcome, Errno>>;

pub(crate) struct Session {
    pub id: SessionId,
    pub secret: u128,
    pub volume_name: String,
    pub volume: Volume,
    pub read_only: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: usize,
    idle_since: Option<Instant>,
    /// Answers to numbered mutations that the client may not have yet; `None` while executing.
    answers: BTreeMap<u64, watch::Receiver<Option<Results>>>,
}

/// What to do with a numbered mutation.
pub(crate) enum Admission {
    /// New: execute it and publish the answer here.
    Execute(watch::Sender<Option<Results>>),
    /// Seen before: its answer is, or will be, here.
    Repeat(watch::Receiver<Option<Results>>),
    /// The client has more unanswered mutations than it may.
    TooMany,
}

impl Session {
    pub fn admit(&self, sequence: OperationSeq, acknowledged: OperationSeq) -> Admission {
        let mut state = self.state.lock();
        state.answers = state.answers.split_off(&acknowledged.0);
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

    pub fn connected(&self) {
        let mut state = self.state.lock();
        state.connections += 1;
        state.idle_since = None;
    }

    pub fn disconnected(&self) {
        let mut state = self.state.lock();
        state.connections -= 1;
        if state.connections == 0 {
            state.idle_since = Some(Instant::now());
        }
    }
}

#[derive(Default)]
pub(crate) struct Sessions {
    table: Mutex<HashMap<SessionId, Arc<Session>>>,
}

fn random() -> Result<[u8; 24], String> {
    let mut bytes = [0u8; 24];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

impl Sessions {
    pub fn create(&self, volume_name: &str, volume: Volume, read_only: bool) -> Result<Arc<Session>, String> {
        let random = random()?;
        let (mut id, mut secret) = ([0u8; 8], [0u8; 16]);
        id.copy_from_slice(&random[..8]);
        secret.copy_from_slice(&random[8..]);
        let session = Arc::new(Session {
            id: SessionId(u64::from_le_bytes(id)),
            secret: u128::from_le_bytes(secret),
            volume_name: volume_name.to_owned(),
            volume,
            read_only,
            state: Mutex::default(),
        });
        self.table.lock().insert(session.id, session.clone());
        Ok(session)
    }

    pub fn resume(&self, resume: &Resume, volume_name: &str, read_only: bool) -> Option<Arc<Session>> {
        let session = self.table.lock().get(&resume.session)?.clone();
        let same =
            session.secret == resume.secret && session.volume_name == volume_name && session.read_only == read_only;
        same.then_some(session)
    }

    pub fn count(&self, volume_name: Option<&str>) -> u64 {
        let table = self.table.lock();
        table.values().filter(|s| volume_name.is_none_or(|name| s.volume_name == name)).count() as u64
    }

    /// End a session now: its client said so.
    pub async fn end(&self, id: SessionId) {
        let session = self.table.lock().remove(&id);
        if let Some(session) = session {
            session.volume.end_session(id).await;
        }
    }

    /// End sessions whose client has been away for too long.
    pub async fn expire(&self) {
        let old: Vec<SessionId> = {
            let table = self.table.lock();
            let away = |s: &Session| s.state.lock().idle_since.is_some_and(|since| since.elapsed() >= SESSION_KEPT);
            table.values().filter(|s| away(s)).map(|s| s.id).collect()
        };
        for id in old {
            tracing::info!(session = %id, "session expired");
            self.end(id).await;
        }
    }
}
