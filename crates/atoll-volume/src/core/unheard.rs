//! Changes that others must not see yet: a crash could take them, and their own clients do not know that they were
//! executed.
//!
//! What a client was told, it makes again at the next authority, in its place. What it was not told it asks for
//! again in some other place. So whoever looks at an inode is answered when the clients that changed it have heard
//! of that, or when it is durable.

use atoll_types::{InodeId, OperationSeq, SessionId};
use rustc_hash::FxHashMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    session: SessionId,
    sequence: OperationSeq,
    /// Its number among all changes.
    ordered: u64,
}

/// Until then an answer is held back: `ordered` is durable, or all sessions have heard of their changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unheard {
    pub ordered: u64,
    pub of: Vec<(SessionId, OperationSeq)>,
}

#[derive(Default)]
pub(crate) struct UnheardChanges {
    /// Not durable; the newest of each session.
    changes: FxHashMap<InodeId, Vec<Change>>,
    /// A session knows of all its changes below.
    heard: FxHashMap<SessionId, OperationSeq>,
}

impl Unheard {
    /// Nothing holds it back.
    pub fn is_nothing(&self) -> bool {
        self.of.is_empty()
    }
}

impl UnheardChanges {
    fn is_heard(&self, session: SessionId, sequence: OperationSeq) -> bool {
        self.heard.get(&session).is_some_and(|below| sequence < *below)
    }

    /// A session has changed an inode.
    pub fn changed(&mut self, inode: InodeId, session: SessionId, sequence: OperationSeq, ordered: u64) {
        self.heard.entry(session).or_default();
        let changes = self.changes.entry(inode).or_default();
        changes.retain(|change| change.session != session);
        changes.push(Change { session, sequence, ordered });
    }

    /// A session knows of all its changes below this number. False when that is no news.
    pub fn heard(&mut self, session: SessionId, below: OperationSeq) -> bool {
        let known = self.heard.entry(session).or_default();
        let is_news = *known < below;
        *known = below.max(*known);
        is_news
    }

    /// Everything up to this number is durable.
    pub fn durable(&mut self, ordered: u64) {
        self.changes.retain(|_, changes| {
            changes.retain(|change| change.ordered > ordered);
            !changes.is_empty()
        });
    }

    /// A session is over: nobody asks again for what it did not hear of.
    pub fn forget(&mut self, session: SessionId) {
        self.heard.remove(&session);
        self.changes.retain(|_, changes| {
            changes.retain(|change| change.session != session);
            !changes.is_empty()
        });
    }

    /// Adds what holds an answer about these inodes back from a session.
    pub fn before(&self, session: SessionId, inodes: impl Iterator<Item = InodeId>, before: &mut Unheard) {
        if self.changes.is_empty() {
            return;
        }
        for change in inodes.filter_map(|inode| self.changes.get(&inode)).flatten() {
            if change.session != session && !self.is_heard(change.session, change.sequence) {
                before.ordered = before.ordered.max(change.ordered);
                before.of.push((change.session, change.sequence));
            }
        }
    }

    /// Whether nothing holds it back any more.
    pub fn are_heard(&self, of: &[(SessionId, OperationSeq)]) -> bool {
        of.iter().all(|(session, sequence)| {
            // Of a session that is over nothing is known, and nothing is waited for.
            self.heard.get(session).is_none_or(|below| sequence < below)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const C: SessionId = SessionId(3);
    const FILE: InodeId = InodeId(7);

    fn held(changes: &UnheardChanges, session: SessionId, inode: InodeId) -> Option<Unheard> {
        let mut before = Unheard::default();
        changes.before(session, [inode].into_iter(), &mut before);
        (!before.is_nothing()).then_some(before)
    }

    fn before(changes: &UnheardChanges, session: SessionId) -> Option<u64> {
        held(changes, session, FILE).map(|before| before.ordered)
    }

    #[test]
    fn an_answer_is_held_back_until_every_earlier_change_is_heard_of_or_durable() {
        let mut changes = UnheardChanges::default();
        changes.heard(A, OperationSeq(4));
        changes.changed(FILE, A, OperationSeq(4), 10);
        assert_eq!(before(&changes, A), None, "it knows what it asked for");
        assert_eq!(before(&changes, B), Some(10));
        assert_eq!(held(&changes, B, InodeId(8)), None);
        changes.heard(B, OperationSeq(1));
        changes.changed(FILE, B, OperationSeq(1), 11);
        assert_eq!(before(&changes, B), Some(10), "its own change shows the one before");
        let held = held(&changes, C, FILE).unwrap();
        assert_eq!(held.ordered, 11);
        assert!(!changes.heard(A, OperationSeq(4)));
        assert!(changes.heard(A, OperationSeq(5)));
        assert!(!changes.are_heard(&held.of));
        assert_eq!(before(&changes, B), None);
        changes.durable(10);
        assert_eq!(before(&changes, C), Some(11));
        changes.durable(11);
        assert_eq!(before(&changes, C), None);
    }

    #[test]
    fn nobody_waits_for_a_session_that_is_over() {
        let mut changes = UnheardChanges::default();
        changes.heard(A, OperationSeq(1));
        changes.changed(FILE, A, OperationSeq(1), 10);
        let held = held(&changes, B, FILE).unwrap();
        changes.forget(A);
        assert!(changes.are_heard(&held.of));
        assert_eq!(before(&changes, B), None);
    }
}
