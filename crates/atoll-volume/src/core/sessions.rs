//! Sessions as the store knows them.

use atoll_types::{Errno, JournalPosition, OperationSeq, Outcome, SessionId, Timestamp};

use super::{Core, Writes};
use crate::format;
use crate::sessions::{Mark, Results, SessionInfo, SessionRecord};

impl Core {
    /// A session that the store holds.
    pub fn install_session(&mut self, session: SessionId, record: SessionRecord) {
        self.sessions.insert(session, record);
    }

    /// A new session, with the change after whose commit the next authority knows it.
    pub fn begin_session(&mut self, session: SessionId, info: SessionInfo, journal: JournalPosition) -> u64 {
        self.sessions.insert(session, SessionRecord::new(info, journal));
        if self.frozen {
            return self.ordered;
        }
        let key = format::session_key(session);
        // A place in the batch; what is in it is written when the batch is cut.
        self.write(key, None);
        self.dirty_sessions.insert(session);
        self.order();
        self.ordered
    }

    /// The session is over, for the next authority, too.
    pub fn forget_session(&mut self, session: SessionId) {
        self.dirty_sessions.remove(&session);
        self.unheard.forget(session);
        if self.sessions.remove(&session).is_some() && !self.frozen {
            self.write(format::session_key(session), None);
        }
    }

    /// An operation of a session was executed.
    pub fn note(&mut self, session: SessionId, mark: Mark, result: Result<&Outcome, Errno>) {
        if mark != Mark::None
            && let Some(record) = self.sessions.get_mut(&session)
        {
            record.note(mark, result);
            // A change that had no effect may be tried again. A place in a journal may not be taken twice.
            if result.is_ok() || matches!(mark, Mark::Journal(_)) {
                self.dirty_sessions.insert(session);
            }
        }
    }

    /// The answers of a change that was executed, as far as the client may not have them.
    pub fn answers(&self, session: SessionId, sequence: OperationSeq) -> Option<Results> {
        self.sessions.get(&session)?.answers(sequence)
    }

    /// Up to where the session's journal is executed.
    pub fn journal(&self, session: SessionId) -> Option<JournalPosition> {
        self.sessions.get(&session).map(|record| record.journal)
    }

    /// When the newest change was made.
    pub fn last_change(&self) -> Timestamp {
        self.counters.last_change
    }

    pub(super) fn write_sessions(&mut self, writes: &mut Writes) {
        for session in self.dirty_sessions.drain() {
            if let Some(record) = self.sessions.get(&session) {
                writes.insert(format::session_key(session), Some(record.encode()));
            }
        }
    }
}
