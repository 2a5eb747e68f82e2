//! Changes that the authority executed and a crash may still take from it: kept until they are durable, to be made
//! again at the next one. Of changes made here before the authority was asked, the journal keeps the same.

use std::collections::{BTreeMap, BTreeSet};

use atoll_lease::Issue;
use atoll_types::operation::WriteAt;
use atoll_types::{InodeId, Made, Operation, OperationSeq, Outcome};
use atoll_wire::Execute;

use crate::session::Reply;

/// Answers wait until changes are durable when more than this is kept, in bytes.
const BYTES_PRESSING: usize = 32 * 1024 * 1024;
/// The same in changes.
const CHANGES_PRESSING: usize = 8192;
/// What a change takes beside its bytes: two names and a header.
const CHANGE_BYTES: usize = 640;

/// What to ask for, to make executed changes again: everything that the authority decided is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub sequence: OperationSeq,
    pub made: Vec<Made>,
    pub operations: Vec<Operation>,
}

/// In the order in which they were executed first; the second number keeps those apart of which only a bound is known.
type Key = (Issue, u64);

#[derive(Default)]
pub(crate) struct Retained {
    /// With where they stand for the authority that has executed them last.
    changes: BTreeMap<Key, (Change, Issue)>,
    /// By where they stand.
    standing: BTreeSet<(Issue, Key)>,
    sequences: BTreeSet<u64>,
    bytes: usize,
}

impl Change {
    /// What of a request is to be made again after this answer, if anything.
    pub fn of(execute: Execute, reply: &Reply) -> Option<Change> {
        let Execute { caller, sequence, mut operations, .. } = execute;
        let executed: Vec<&Outcome> = reply.results.iter().map_while(|result| result.as_ref().ok()).collect();
        operations.truncate(executed.len());
        if !operations.iter().any(Operation::mutates) {
            return None;
        }
        let mut made = Vec::with_capacity(operations.len());
        for (operation, outcome) in operations.iter_mut().zip(executed) {
            made.push(Made { caller, at: reply.at, inode: operation.made_inode(outcome) });
            if let (Operation::Write { at, .. }, Outcome::Written { offset, .. }) = (operation, outcome) {
                *at = WriteAt::Offset(*offset);
            }
        }
        Some(Change { sequence, made, operations })
    }

    fn bytes(&self) -> usize {
        let payload = |operation: &Operation| match operation {
            Operation::Write { data, .. } => data.len(),
            Operation::SetXattr { value, .. } => value.len(),
            _ => 0,
        };
        self.operations.iter().map(|operation| CHANGE_BYTES + payload(operation)).sum()
    }

    /// The inodes that it names or made.
    pub fn inodes(&self) -> BTreeSet<InodeId> {
        let mut inodes: BTreeSet<InodeId> = self.made.iter().filter_map(|made| made.inode).collect();
        for operation in &self.operations {
            operation.clone().inodes_mut(|inode| {
                inodes.insert(*inode);
            });
        }
        inodes.remove(&InodeId::PREVIOUS);
        inodes
    }
}

impl Retained {
    pub fn keep(&mut self, order: Issue, change: Change) {
        self.bytes += change.bytes();
        self.sequences.insert(change.sequence.0);
        let key = (order, change.sequence.0);
        self.changes.insert(key, (change, order));
        self.standing.insert((order, key));
    }

    /// So much is kept that it should become durable before there is more.
    pub fn presses(&self) -> bool {
        self.bytes > BYTES_PRESSING || self.changes.len() > CHANGES_PRESSING
    }

    /// Everything below this number is durable.
    pub fn first_sequence(&self) -> Option<u64> {
        self.sequences.first().copied()
    }

    /// Everything that the authority since `since` had executed by then is durable.
    pub fn durable(&mut self, since: Issue, order: Issue) {
        let behind = (Issue(since.0 + 1), Key::default());
        while let Some(&(at, key)) = self.standing.range(behind..).next()
            && at <= order
        {
            self.let_go(key);
        }
    }

    fn let_go(&mut self, key: Key) -> Option<Change> {
        let (change, at) = self.changes.remove(&key)?;
        self.standing.remove(&(at, key));
        self.bytes -= change.bytes();
        self.sequences.remove(&change.sequence.0);
        Some(change)
    }

    /// What an authority before `since` executed first.
    pub fn next_again(&self, since: Issue) -> Option<(Key, &Change)> {
        let (key, (change, _)) = self.changes.iter().find(|(_, (_, at))| *at <= since)?;
        Some((*key, change))
    }

    /// A change was made again, and stands at `at` for this authority. If it crashes, too, the change goes among all
    /// changes where it was first.
    pub fn made_again(&mut self, key: Key, at: Issue) {
        if let Some((_, stands)) = self.changes.get_mut(&key) {
            let before = std::mem::replace(stands, at);
            self.standing.remove(&(before, key));
            self.standing.insert((at, key));
        }
    }

    /// A change cannot be made again.
    pub fn lose(&mut self, key: Key) -> Option<Change> {
        self.let_go(key)
    }

    /// Everything is lost with the session.
    pub fn discard(&mut self) -> BTreeSet<InodeId> {
        let lost = self.changes.values().flat_map(|(change, _)| change.inodes()).collect();
        *self = Retained::default();
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::{Attributes, Caller, Errno, Mode, Name, Timestamp};

    const ROOT: InodeId = InodeId::ROOT;
    const FILE: InodeId = InodeId(7);
    const AT: Timestamp = Timestamp { seconds: 5, nanos: 6 };

    fn execute(sequence: u64, operations: Vec<Operation>) -> Execute {
        let caller = Caller { uid: 1, gid: 2, pid: 3 };
        Execute { caller, sequence: OperationSeq(sequence), operations, ..Execute::default() }
    }

    fn append() -> Operation {
        Operation::Write { inode: FILE, at: WriteAt::End, data: vec![0; 100].into(), drop_privileges: false }
    }

    fn reply(results: Vec<Result<Outcome, Errno>>) -> Reply {
        Reply { results, at: AT, ..Reply::default() }
    }

    fn attributes(inode: InodeId) -> Attributes {
        Attributes {
            inode,
            mode: Mode(0o100_644),
            links: 1,
            uid: 0,
            gid: 0,
            device: 0,
            size: 0,
            allocated: 0,
            accessed: AT,
            modified: AT,
            changed: AT,
            created: AT,
            quota_root: InodeId::NONE,
        }
    }

    fn written(offset: u64) -> Outcome {
        Outcome::Written { offset, length: 100, attributes: attributes(FILE) }
    }

    fn change(sequence: u64) -> Change {
        Change::of(execute(sequence, vec![append()]), &reply(vec![Ok(written(40))])).unwrap()
    }

    #[test]
    fn what_the_authority_decided_is_asked_for_again() {
        let kept = change(3);
        assert!(matches!(kept.operations[..], [Operation::Write { at: WriteAt::Offset(40), .. }]));
        assert_eq!((kept.made[0].at, kept.made[0].caller.uid, kept.made[0].inode), (AT, 1, None));
        let name = Name::new(&b"d"[..]).unwrap();
        let make = Operation::MakeDirectory { parent: ROOT, name, permissions: 0o755, umask: 0 };
        let made = Outcome::Entry(attributes(InodeId(9)));
        let kept = Change::of(execute(4, vec![make]), &reply(vec![Ok(made)])).unwrap();
        assert_eq!(kept.made[0].inode, Some(InodeId(9)));
        assert_eq!(kept.inodes().into_iter().collect::<Vec<_>>(), [ROOT, InodeId(9)]);
    }

    #[test]
    fn only_what_was_executed_is_kept() {
        let two = execute(3, vec![append(), append()]);
        let kept = Change::of(two.clone(), &reply(vec![Ok(written(0)), Err(Errno::ENOSPC)])).unwrap();
        assert_eq!(kept.operations.len(), 1);
        assert_eq!(Change::of(two, &reply(vec![Err(Errno::ENOSPC)])), None);
        let read = execute(0, vec![Operation::GetAttributes { inode: FILE }]);
        assert_eq!(Change::of(read, &reply(vec![Ok(Outcome::Done)])), None);
    }

    #[test]
    fn changes_are_kept_until_they_are_durable_and_made_again_in_order() {
        let mut retained = Retained::default();
        for (order, sequence) in [(12, 4), (10, 5), (11, 3)] {
            retained.keep(Issue(order), change(sequence));
        }
        assert_eq!(retained.first_sequence(), Some(3));
        retained.durable(Issue(0), Issue(10));
        retained.durable(Issue(100), Issue(101));
        let mut again = Vec::new();
        while let Some((key, change)) = retained.next_again(Issue(100)) {
            again.push(change.sequence.0);
            retained.made_again(key, Issue(101));
        }
        assert_eq!(again, [3, 4]);
        // The next crash finds them where they were first, before what the second authority has executed.
        retained.keep(Issue(102), change(6));
        let (key, _) = retained.next_again(Issue(200)).unwrap();
        assert_eq!(key, (Issue(11), 3));
        retained.made_again(key, Issue(201));
        assert_eq!(retained.next_again(Issue(200)).unwrap().0, (Issue(12), 4));
        retained.durable(Issue(100), Issue(102));
        assert_eq!(retained.first_sequence(), Some(3));
        retained.durable(Issue(200), Issue(201));
        assert_eq!((retained.changes.len(), retained.bytes, retained.first_sequence()), (0, 0, None));
    }

    #[test]
    fn what_is_kept_presses_before_it_is_too_much() {
        let mut retained = Retained::default();
        for sequence in 1..=CHANGES_PRESSING as u64 {
            retained.keep(Issue(sequence), change(sequence));
        }
        assert!(!retained.presses());
        retained.keep(Issue(1 << 20), change(1 << 20));
        assert!(retained.presses());
        assert_eq!(retained.discard().into_iter().collect::<Vec<_>>(), [FILE]);
        assert!(!retained.presses());
    }
}
