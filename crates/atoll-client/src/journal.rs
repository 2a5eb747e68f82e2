//! Changes that were made here before the authority was asked, under rights that exclude everybody else.
//!
//! They are shipped in order, in batches, soon after. Invariant: `durable` ≤ `executed` ≤ `shipped` ≤ `end`, and
//! `changes` holds exactly what stands behind `durable`: what a crash of the server may take from it. Nothing that rests
//! on these changes is given up, and no request that could miss them is executed, before they are executed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use atoll_lease::Issue;
use atoll_types::limits::{COMPOUND_OPERATIONS_MAX, IO_BYTES_MAX};
use atoll_types::{Errno, InodeId, JournalPosition, Operation, Outcome};
use atoll_wire::Made;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use crate::chronicle::{Chronicle, Entry, Known, Told};
use crate::session::Reply;

/// Most bytes of changes that are kept; more are made by the authority at once.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most changes that are kept.
const CHANGES_MAX: usize = 16_384;
/// Batches on their way at a time.
const BATCHES_MAX: usize = 4;
/// What a change takes at most beside its bytes: two names and a header.
const CHANGE_BYTES: usize = 640;

/// What a lock takes at most.
const LOCK_BYTES: usize = 48;

/// One change, and all inodes on whose attributes, bytes or names it works; or an open or locks, which work on none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    pub made: Made,
    pub operation: Operation,
    pub touches: Vec<InodeId>,
}

impl Change {
    /// What it opens: an open stands in the journal for the authority's count only.
    pub fn opens(&self) -> Option<InodeId> {
        match self.operation {
            Operation::Open { inode, .. } => Some(inode),
            _ => None,
        }
    }
}

/// What is shipped at once: the changes behind `after`.
pub(crate) struct Batch {
    pub after: JournalPosition,
    pub made: Vec<Made>,
    pub operations: Vec<Operation>,
}

/// A change that the authority has executed, and its result.
pub(crate) struct Executed {
    pub change: Arc<Change>,
    /// Inodes of which it was the newest change.
    pub settled: Vec<InodeId>,
    pub result: Result<Outcome, Errno>,
}

/// Changes up to `end` that were executed together, by then, and may not be durable.
struct Kept {
    end: u64,
    /// Where they stand among all changes, for ever.
    order: Issue,
    /// Where they stand for the authority that has executed them last.
    at: Issue,
}

#[derive(Default)]
pub(crate) struct Journal {
    changes: VecDeque<Arc<Change>>,
    durable: u64,
    /// What was executed and is not known to be durable, in order.
    kept: VecDeque<Kept>,
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
    /// Grows when what is on its way is to be shipped anew: answers from before are nobody's.
    voyage: u32,
    /// Answers to batches that overtook others, by what they stand behind.
    answers: BTreeMap<u64, (usize, Reply)>,
    /// The newest change of each inode.
    touched: FxHashMap<InodeId, u64>,
    /// Where what stands in it is noted.
    chronicle: Option<Arc<Chronicle>>,
}

fn cost(operation: &Operation) -> usize {
    CHANGE_BYTES + payload(operation)
}

fn payload(operation: &Operation) -> usize {
    match operation {
        Operation::Write { data, .. } => data.len(),
        Operation::MakeSymlink { target, .. } => target.len(),
        Operation::HoldLocks { locks, .. } => locks.len() * LOCK_BYTES,
        _ => 0,
    }
}

impl Journal {
    /// Go on behind what another image of this process made, all of which is durable.
    pub fn starting_at(position: JournalPosition) -> Journal {
        let JournalPosition(at) = position;
        Journal { durable: at, executed: at, shipped: at, end: at, wanted: at, ..Journal::default() }
    }

    /// Go on with the journal of a process that was killed. How much of it was executed, the authority knows.
    pub fn restore(known: &Known) -> Journal {
        let mut journal = Journal::starting_at(JournalPosition(known.durable));
        for change in &known.journal {
            journal.add(change.clone());
        }
        journal
    }

    pub fn chronicle(&self) -> Option<&Arc<Chronicle>> {
        self.chronicle.as_ref()
    }

    /// From now on, note what stands in it.
    pub fn note_in(&mut self, chronicle: Arc<Chronicle>) {
        self.chronicle = Some(chronicle);
    }

    pub fn note(&self, entry: impl FnOnce() -> Entry) {
        if let Some(chronicle) = &self.chronicle {
            chronicle.note(entry());
        }
    }

    /// Whether nothing stands in it that the authority could lose.
    pub fn is_durable(&self) -> bool {
        self.durable == self.end
    }

    /// Whether a change with so many bytes may be added.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.changes.len() < CHANGES_MAX && self.bytes + bytes <= BYTES_MAX
    }

    /// Whether so much is kept that it should become durable soon.
    pub fn presses(&self) -> bool {
        self.changes.len() > CHANGES_MAX / 2 || self.bytes > BYTES_MAX / 2
    }

    /// Grows when everything is given up.
    pub fn life(&self) -> u32 {
        self.life
    }

    /// Of batches that are shipped now: see [`Journal::answered`].
    pub fn voyage(&self) -> u32 {
        self.voyage
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

    /// Add a change that was just made. `answer`: what the kernel is told.
    pub fn push(&mut self, change: Change, answer: Option<Told>) {
        self.note(|| Entry::Made { change: change.clone(), answer });
        self.add(Arc::new(change));
    }

    fn add(&mut self, change: Arc<Change>) {
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
        let (batch, bytes) = self.batch(self.shipped, self.end);
        self.shipped += batch.made.len() as u64;
        self.unshipped_bytes -= bytes;
        self.batches += 1;
        Some(batch)
    }

    /// As many of the changes behind `after`, up to `end`, as fit a request, and their bytes.
    fn batch(&self, after: u64, end: u64) -> (Batch, usize) {
        let mut batch = Batch { after: JournalPosition(after), made: Vec::new(), operations: Vec::new() };
        let mut bytes = 0;
        for change in self.changes.range((after - self.durable) as usize..(end - self.durable) as usize) {
            let cost = cost(&change.operation);
            if batch.made.len() == COMPOUND_OPERATIONS_MAX || (bytes + cost > IO_BYTES_MAX && !batch.made.is_empty()) {
                break;
            }
            bytes += cost;
            batch.made.push(change.made);
            batch.operations.push(change.operation.clone());
        }
        (batch, bytes)
    }

    /// A batch of `count` changes was answered. Answers what was executed by now, in order, with the position of
    /// its batch among all operations of the volume.
    pub fn answered(
        &mut self,
        voyage: u32,
        after: JournalPosition,
        count: usize,
        reply: Reply,
    ) -> Vec<(Vec<Executed>, Reply)> {
        let mut executed = Vec::new();
        if voyage != self.voyage {
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
                done.extend(self.settle(result));
            }
            self.kept.push_back(Kept { end: self.executed, order: reply.order, at: reply.order });
            executed.push((done, reply));
        }
        executed
    }

    fn settle(&mut self, result: Result<Outcome, Errno>) -> Option<Executed> {
        let change = self.changes.get((self.executed - self.durable) as usize)?.clone();
        self.executed += 1;
        let settles = |inode: &&InodeId| self.touched.get(inode) == Some(&self.executed);
        let settled: Vec<InodeId> = change.touches.iter().filter(settles).copied().collect();
        for inode in &settled {
            self.touched.remove(inode);
        }
        Some(Executed { change, settled, result })
    }

    /// Everything that the authority since `since` had executed by then is durable.
    pub fn durable(&mut self, since: Issue, order: Issue) {
        while let Some(kept) = self.kept.pop_front_if(|kept| kept.at > since && kept.at <= order) {
            self.let_go(kept.end);
        }
    }

    fn let_go(&mut self, position: u64) {
        if self.durable < position {
            self.note(|| Entry::Durable(JournalPosition(position)));
        }
        while self.durable < position
            && let Some(change) = self.changes.pop_front()
        {
            self.durable += 1;
            self.bytes -= cost(&change.operation);
        }
    }

    // ---- after a crash of the authority

    /// The next authority holds the journal up to `position`, durably. What was executed behind it is to be
    /// [made again](Journal::next_again), the rest to be shipped. Answers like [`Journal::answered`] what had no answer
    /// yet; `None` when the authority misses what was durable before.
    pub fn restarted(&mut self, position: JournalPosition) -> Option<Vec<(Vec<Executed>, Reply)>> {
        if position.0 < self.durable || position.0 > self.end {
            return None;
        }
        self.voyage += 1;
        self.answers.clear();
        self.batches = 0;
        let mut executed = Vec::new();
        if position.0 > self.executed {
            // Which of them failed, if any did, nobody knows any more.
            let count = (position.0 - self.executed) as usize;
            let reply = Reply { results: vec![Ok(Outcome::Done); count], ..Reply::default() };
            self.batches = 1;
            executed = self.answered(self.voyage, JournalPosition(self.executed), count, reply);
        }
        while self.kept.pop_front_if(|kept| kept.end <= position.0).is_some() {}
        self.let_go(position.0);
        self.shipped = self.executed;
        let unshipped = self.changes.range((self.shipped - self.durable) as usize..);
        self.unshipped_bytes = unshipped.map(|change| cost(&change.operation)).sum();
        Some(executed)
    }

    /// What an authority before `since` executed first of what may not be durable: when that was, and the changes.
    pub fn next_again(&self, since: Issue) -> Option<(Issue, Batch)> {
        let mut start = self.durable;
        for kept in &self.kept {
            if kept.at <= since {
                return Some((kept.order, self.batch(start, kept.end).0));
            }
            start = kept.end;
        }
        None
    }

    /// The changes behind `after` were made again, and stand at `at` for this authority. If it crashes, too, they go
    /// among all changes where they were first.
    pub fn made_again(&mut self, after: JournalPosition, count: usize, at: Issue) {
        let Some(index) = self.kept.iter().position(|kept| kept.end > after.0) else { return };
        let end = after.0 + count as u64;
        let kept = &mut self.kept[index];
        if kept.end > end {
            let order = kept.order;
            self.kept.insert(index, Kept { end, order, at });
        } else {
            kept.at = at;
        }
    }

    /// Inodes of which changes behind `after` could not be made again.
    pub fn failed_again(&self, after: JournalPosition, results: &[Result<Outcome, Errno>]) -> Vec<(InodeId, Errno)> {
        let start = after.0.saturating_sub(self.durable) as usize;
        let changes = self.changes.iter().skip(start).zip(results);
        let failed = changes.filter_map(|(change, result)| Some((change, *result.as_ref().err()?)));
        failed.flat_map(|(change, errno)| change.touches.iter().map(move |inode| (*inode, errno))).collect()
    }

    /// Give up what is not executed: the session is over; with `all`, also what is not durable: so is its authority.
    /// Answers the inodes whose changes are lost, and opens that nobody counts.
    pub fn discard(&mut self, all: bool) -> (FxHashSet<InodeId>, Vec<InodeId>) {
        let unexecuted = (self.executed - self.durable) as usize;
        let opens: Vec<InodeId> = self.changes.range(unexecuted..).filter_map(|change| change.opens()).collect();
        let lost = self.changes.range(if all { 0 } else { unexecuted }..);
        let is_change = |change: &&Arc<Change>| change.operation.mutates();
        let lost = lost.filter(is_change).flat_map(|change| change.touches.iter().copied());
        let lost = lost.collect();
        let executed = self.executed;
        self.note(|| Entry::Discarded { at: JournalPosition(executed), opens: Vec::clone(&opens) });
        *self = Journal {
            chronicle: self.chronicle.take(),
            durable: executed,
            executed,
            shipped: executed,
            end: executed,
            life: self.life + 1,
            voyage: self.voyage + 1,
            ..Journal::default()
        };
        (lost, opens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        Reply { results, order: Issue(1), ..Reply::default() }
    }

    fn good(count: usize) -> Reply {
        reply(vec![Ok(Outcome::Done); count])
    }

    fn journal(changes: usize) -> Journal {
        let mut journal = Journal::default();
        (0..changes).for_each(|_| journal.push(write(FILE, 1), None));
        journal
    }

    #[test]
    fn what_is_not_waited_for_goes_together_when_nothing_is_on_its_way() {
        let mut journal = journal(3);
        assert!(journal.next_batch(false).is_none());
        let first = journal.next_batch(true).unwrap();
        assert_eq!((first.after, first.made.len()), (JournalPosition(0), 3));
        journal.push(write(OTHER, 1), None);
        assert!(journal.next_batch(true).is_none(), "one is on its way");
        journal.want(journal.end());
        let second = journal.next_batch(false).unwrap();
        assert_eq!((second.after, second.operations.len()), (JournalPosition(3), 1));
    }

    #[test]
    fn a_batch_fits_a_frame() {
        let mut journal = journal(0);
        for _ in 0..3 {
            journal.push(write(FILE, IO_BYTES_MAX), None);
        }
        for _ in 0..COMPOUND_OPERATIONS_MAX + 1 {
            journal.push(write(FILE, 0), None);
        }
        let counts: Vec<usize> = std::iter::from_fn(|| journal.next_batch(false)).map(|b| b.made.len()).collect();
        assert_eq!(counts, [1, 1, 1, COMPOUND_OPERATIONS_MAX], "as many as may be on their way");
    }

    #[test]
    fn answers_that_overtake_each_other_are_taken_in_order() {
        let mut journal = journal(1);
        let first = journal.next_batch(true).unwrap();
        journal.push(write(OTHER, 1), None);
        journal.want(journal.end());
        let second = journal.next_batch(false).unwrap();
        assert!(journal.answered(0, second.after, 1, good(1)).is_empty());
        assert_eq!(journal.executed(), JournalPosition(0));
        let executed = journal.answered(0, first.after, 1, good(1));
        assert_eq!(executed.len(), 2);
        assert_eq!(journal.executed(), JournalPosition(2));
        journal.durable(Issue(0), Issue(0));
        assert_eq!(journal.changes.len(), 2, "a crash may take them");
        journal.durable(Issue(0), Issue(1));
        assert_eq!((journal.changes.len(), journal.bytes), (0, 0));
        assert!(!journal.touches(FILE) && !journal.touches(OTHER));
    }

    #[test]
    fn an_inode_is_touched_until_its_newest_change_is_executed() {
        let mut journal = journal(1);
        let first = journal.next_batch(true).unwrap();
        journal.push(write(FILE, 1), None);
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
        journal.push(Change { operation: open, touches: Vec::new(), ..write(OTHER, 0) }, None);
        let (lost, opens) = journal.discard(false);
        assert_eq!((lost.into_iter().collect::<Vec<_>>(), opens), (vec![FILE], vec![OTHER]));
        assert_eq!((journal.end(), journal.life()), (JournalPosition(0), 1));
        journal.push(write(OTHER, 1), None);
        assert!(journal.answered(0, batch.after, 2, good(2)).is_empty());
        assert_eq!(journal.newest(OTHER), JournalPosition(1));
    }

    /// Five changes, of which four are executed, two by two.
    fn executed() -> Journal {
        let mut journal = journal(0);
        for round in 0..2 {
            (0..2).for_each(|_| journal.push(write(FILE, 1), None));
            let batch = journal.next_batch(true).unwrap();
            journal.answered(0, batch.after, 2, Reply { order: Issue(10 + round), ..good(2) });
        }
        journal.push(write(OTHER, 1), None);
        journal
    }

    #[test]
    fn what_a_crash_took_is_made_again_and_what_follows_is_shipped() {
        let mut journal = executed();
        journal.next_batch(true).unwrap();
        assert!(journal.restarted(JournalPosition(1)).unwrap().is_empty());
        let since = Issue(100);
        journal.durable(since, Issue(101));
        assert_eq!(journal.changes.len(), 4, "of what another authority executed it says nothing");
        let mut again = Vec::new();
        while let Some((order, batch)) = journal.next_again(since) {
            again.push((order.0, batch.after.0, batch.made.len()));
            journal.made_again(batch.after, batch.made.len(), Issue(101));
        }
        assert_eq!(again, [(10, 1, 1), (11, 2, 2)]);
        let shipped = journal.next_batch(true).unwrap();
        assert_eq!((shipped.after, shipped.made.len()), (JournalPosition(4), 1));
        assert!(journal.answered(0, shipped.after, 1, good(1)).is_empty(), "an answer from before the crash");
        assert_eq!(journal.answered(1, shipped.after, 1, Reply { order: Issue(102), ..good(1) }).len(), 1);
        journal.durable(since, Issue(101));
        assert_eq!(journal.changes.len(), 1);
    }

    #[test]
    fn what_was_durable_without_an_answer_is_executed() {
        let mut journal = executed();
        journal.next_batch(true).unwrap();
        let executed = journal.restarted(JournalPosition(5)).unwrap();
        assert_eq!((executed.len(), executed[0].0.len()), (1, 1));
        assert_eq!((journal.executed(), journal.changes.len(), journal.bytes), (journal.end(), 0, 0));
        assert!(journal.next_again(Issue(100)).is_none() && !journal.touches(OTHER));
    }

    #[test]
    fn an_authority_that_misses_what_was_durable_is_found_out() {
        let mut journal = executed();
        journal.durable(Issue(0), Issue(10));
        assert!(journal.restarted(JournalPosition(1)).is_none());
        assert!(journal.restarted(JournalPosition(6)).is_none());
        let (lost, _) = journal.discard(true);
        assert_eq!(lost.len(), 2);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut journal = Journal::default();
        while journal.has_room(IO_BYTES_MAX) {
            journal.push(write(FILE, IO_BYTES_MAX), None);
        }
        assert!(journal.bytes <= BYTES_MAX + CHANGE_BYTES * 64);
    }
}
