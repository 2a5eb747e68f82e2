//! Changes that were made here before the authority was asked, under rights that exclude everybody else.
//!
//! They are shipped in order, in batches, soon after. Invariant: `executed` ≤ `shipped` ≤ `end`, and `changes`
//! holds exactly what stands behind `executed`: what the authority may not have yet. Nothing that rests on these
//! changes is given up, and no request that could miss them is executed, before they are.

use std::collections::{BTreeMap, VecDeque};

use atoll_types::limits::{COMPOUND_OPERATIONS_MAX, IO_BYTES_MAX};
use atoll_types::{Errno, InodeId, JournalPosition, Operation, Outcome};
use atoll_wire::Made;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::session::Reply;

/// Most bytes of changes that are kept; more are made by the authority at once.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most changes that are kept.
const CHANGES_MAX: usize = 16_384;
/// Batches on their way at a time.
const BATCHES_MAX: usize = 4;
/// What a change takes at most beside its bytes: two names and a header.
const CHANGE_BYTES: usize = 640;

/// One change, and all inodes on whose attributes, bytes or names it works; or an open, which works on none.
pub(crate) struct Change {
    pub made: Made,
    pub operation: Operation,
    pub touches: Vec<InodeId>,
}

/// What is shipped at once: the changes behind `after`.
pub(crate) struct Batch {
    pub after: JournalPosition,
    pub made: Vec<Made>,
    pub operations: Vec<Operation>,
}

/// A change that the authority has executed, and its result.
pub(crate) struct Executed {
    pub change: Change,
    /// Inodes of which it was the newest change.
    pub settled: Vec<InodeId>,
    pub result: Result<Outcome, Errno>,
}

#[derive(Default)]
pub(crate) struct Journal {
    changes: VecDeque<Change>,
    executed: u64,
    shipped: u64,
    end: u64,
    /// Somebody waits until everything up to here is executed.
    wanted: u64,
    batches: usize,
    bytes: usize,
    unshipped_bytes: usize,
    /// Grows when everything is given up.
    life: u32,
    /// Answers to batches that overtook others, by what they stand behind.
    answers: BTreeMap<u64, (usize, Reply)>,
    /// The newest change of each inode.
    touched: FxHashMap<InodeId, u64>,
}

fn cost(operation: &Operation) -> usize {
    CHANGE_BYTES + payload(operation)
}

fn payload(operation: &Operation) -> usize {
    match operation {
        Operation::Write { data, .. } => data.len(),
        Operation::MakeSymlink { target, .. } => target.len(),
        _ => 0,
    }
}

impl Journal {
    /// Whether a change with so many bytes may be added.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.changes.len() < CHANGES_MAX && self.bytes + bytes <= BYTES_MAX
    }

    /// Grows when everything is given up.
    pub fn life(&self) -> u32 {
        self.life
    }

    pub fn end(&self) -> JournalPosition {
        JournalPosition(self.end)
    }

    pub fn executed(&self) -> JournalPosition {
        JournalPosition(self.executed)
    }

    /// The newest change of an inode that is not executed; 0 when there is none.
    pub fn newest(&self, inode: InodeId) -> JournalPosition {
        JournalPosition(self.touched.get(&inode).copied().unwrap_or_default())
    }

    pub fn touches(&self, inode: InodeId) -> bool {
        self.touched.contains_key(&inode)
    }

    /// Add a change that was just made.
    pub fn push(&mut self, change: Change) {
        self.end += 1;
        self.bytes += cost(&change.operation);
        self.unshipped_bytes += cost(&change.operation);
        for &inode in &change.touches {
            self.touched.insert(inode, self.end);
        }
        self.changes.push_back(change);
    }

    /// Everything up to here is waited for.
    pub fn want(&mut self, position: JournalPosition) {
        self.wanted = self.wanted.max(position.0);
    }

    /// Whether what is not shipped fills a batch.
    pub fn is_full(&self) -> bool {
        self.end - self.shipped >= COMPOUND_OPERATIONS_MAX as u64 || self.unshipped_bytes >= IO_BYTES_MAX
    }

    /// The next batch to ship: one that is waited for or full, or with `idle` what there is if nothing is on its way.
    pub fn next_batch(&mut self, idle: bool) -> Option<Batch> {
        let unshipped = (self.end - self.shipped) as usize;
        let is_due = self.wanted > self.shipped || self.is_full() || (idle && self.batches == 0);
        if unshipped == 0 || !is_due || self.batches >= BATCHES_MAX {
            return None;
        }
        let after = JournalPosition(self.shipped);
        let mut batch = Batch { after, made: Vec::new(), operations: Vec::new() };
        let mut bytes = 0;
        for change in self.changes.range(self.changes.len() - unshipped..) {
            let cost = cost(&change.operation);
            if batch.made.len() == COMPOUND_OPERATIONS_MAX || (bytes + cost > IO_BYTES_MAX && !batch.made.is_empty()) {
                break;
            }
            bytes += cost;
            batch.made.push(change.made);
            batch.operations.push(change.operation.clone());
        }
        self.shipped += batch.made.len() as u64;
        self.unshipped_bytes -= bytes;
        self.batches += 1;
        Some(batch)
    }

    /// A batch of `count` changes was answered. Answers what was executed by now, in order, with the position of
    /// its batch among all operations of the volume.
    pub fn answered(
        &mut self,
        life: u32,
        after: JournalPosition,
        count: usize,
        reply: Reply,
    ) -> Vec<(Vec<Executed>, Reply)> {
        let mut executed = Vec::new();
        if life != self.life {
            return executed;
        }
        self.batches -= 1;
        self.answers.insert(after.0, (count, reply));
        while let Some((count, mut reply)) = self.answers.remove(&self.executed) {
            let whole = reply.results.len() == count;
            let failed = reply.results.first().and_then(|r| r.as_ref().err()).copied().unwrap_or(Errno::EIO);
            let mut results = std::mem::take(&mut reply.results).into_iter();
            let mut done = Vec::with_capacity(count);
            for _ in 0..count {
                let result = if whole { results.next().unwrap_or(Err(failed)) } else { Err(failed) };
                done.extend(self.pop(result));
            }
            executed.push((done, reply));
        }
        executed
    }

    fn pop(&mut self, result: Result<Outcome, Errno>) -> Option<Executed> {
        let change = self.changes.pop_front()?;
        self.executed += 1;
        self.bytes -= cost(&change.operation);
        let settles = |inode: &&InodeId| self.touched.get(inode) == Some(&self.executed);
        let settled: Vec<InodeId> = change.touches.iter().filter(settles).copied().collect();
        for inode in &settled {
            self.touched.remove(inode);
        }
        Some(Executed { change, settled, result })
    }

    /// Give up everything that is not executed: the session is over. Answers the inodes whose changes are lost, and
    /// opens that nobody counts.
    pub fn discard(&mut self) -> (FxHashSet<InodeId>, Vec<InodeId>) {
        let opened = |change: &Change| match change.operation {
            Operation::Open { inode, .. } => Some(inode),
            _ => None,
        };
        let opens = self.changes.iter().filter_map(opened).collect();
        let changed = self.changes.iter().filter(|change| opened(change).is_none());
        let lost = changed.flat_map(|change| change.touches.iter().copied()).collect();
        let executed = self.executed;
        *self = Journal { executed, shipped: executed, end: executed, life: self.life + 1, ..Journal::default() };
        (lost, opens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_lease::Issue;
    use atoll_types::operation::WriteAt;
    use atoll_types::{Caller, Timestamp};

    const FILE: InodeId = InodeId(7);
    const OTHER: InodeId = InodeId(8);

    fn write(inode: InodeId, bytes: usize) -> Change {
        let made = Made { caller: Caller::default(), at: Timestamp::default(), inode: None };
        let data = vec![0; bytes].into();
        let operation = Operation::Write { inode, at: WriteAt::Offset(0), data, drop_privileges: false };
        Change { made, operation, touches: vec![inode] }
    }

    fn reply(results: Vec<Result<Outcome, Errno>>) -> Reply {
        Reply { results, grants: Vec::new(), order: Issue(1) }
    }

    fn good(count: usize) -> Reply {
        reply(vec![Ok(Outcome::Done); count])
    }

    fn journal(changes: usize) -> Journal {
        let mut journal = Journal::default();
        (0..changes).for_each(|_| journal.push(write(FILE, 1)));
        journal
    }

    #[test]
    fn what_is_not_waited_for_goes_together_when_nothing_is_on_its_way() {
        let mut journal = journal(3);
        assert!(journal.next_batch(false).is_none());
        let first = journal.next_batch(true).unwrap();
        assert_eq!((first.after, first.made.len()), (JournalPosition(0), 3));
        journal.push(write(OTHER, 1));
        assert!(journal.next_batch(true).is_none(), "one is on its way");
        journal.want(journal.end());
        let second = journal.next_batch(false).unwrap();
        assert_eq!((second.after, second.operations.len()), (JournalPosition(3), 1));
    }

    #[test]
    fn a_batch_fits_a_frame() {
        let mut journal = journal(0);
        for _ in 0..3 {
            journal.push(write(FILE, IO_BYTES_MAX));
        }
        for _ in 0..COMPOUND_OPERATIONS_MAX + 1 {
            journal.push(write(FILE, 0));
        }
        let counts: Vec<usize> = std::iter::from_fn(|| journal.next_batch(false)).map(|b| b.made.len()).collect();
        assert_eq!(counts, [1, 1, 1, COMPOUND_OPERATIONS_MAX], "as many as may be on their way");
    }

    #[test]
    fn answers_that_overtake_each_other_are_taken_in_order() {
        let mut journal = journal(1);
        let first = journal.next_batch(true).unwrap();
        journal.push(write(OTHER, 1));
        journal.want(journal.end());
        let second = journal.next_batch(false).unwrap();
        assert!(journal.answered(0, second.after, 1, good(1)).is_empty());
        assert_eq!(journal.executed(), JournalPosition(0));
        let executed = journal.answered(0, first.after, 1, good(1));
        assert_eq!(executed.len(), 2);
        assert_eq!((journal.executed(), journal.bytes), (JournalPosition(2), 0));
        assert!(!journal.touches(FILE) && !journal.touches(OTHER));
    }

    #[test]
    fn an_inode_is_touched_until_its_newest_change_is_executed() {
        let mut journal = journal(1);
        let first = journal.next_batch(true).unwrap();
        journal.push(write(FILE, 1));
        journal.answered(0, first.after, 1, good(1));
        assert_eq!(journal.newest(FILE), JournalPosition(2));
    }

    #[test]
    fn a_batch_that_fails_as_a_whole_fails_each_of_its_changes() {
        let mut journal = journal(2);
        let batch = journal.next_batch(true).unwrap();
        let executed = journal.answered(0, batch.after, 2, reply(vec![Err(Errno::ENOSPC)]));
        let results: Vec<_> = executed[0].0.iter().map(|executed| executed.result.clone()).collect();
        assert_eq!(results, [Err(Errno::ENOSPC), Err(Errno::ENOSPC)]);
    }

    #[test]
    fn what_is_given_up_is_answered_no_more() {
        let mut journal = journal(2);
        let batch = journal.next_batch(true).unwrap();
        let open = Operation::Open { inode: OTHER, flags: Default::default() };
        journal.push(Change { operation: open, touches: Vec::new(), ..write(OTHER, 0) });
        let (lost, opens) = journal.discard();
        assert_eq!((lost.into_iter().collect::<Vec<_>>(), opens), (vec![FILE], vec![OTHER]));
        assert_eq!((journal.end(), journal.life()), (JournalPosition(0), 1));
        journal.push(write(OTHER, 1));
        assert!(journal.answered(0, batch.after, 2, good(2)).is_empty());
        assert_eq!(journal.newest(OTHER), JournalPosition(1));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut journal = Journal::default();
        while journal.has_room(IO_BYTES_MAX) {
            journal.push(write(FILE, IO_BYTES_MAX));
        }
        assert!(journal.bytes <= BYTES_MAX + CHANGE_BYTES * 64);
    }
}
