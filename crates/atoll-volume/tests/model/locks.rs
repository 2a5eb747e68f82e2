//! Advisory locks, a cell a byte.

use std::collections::BTreeMap;

use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::{ByteRange, InodeId, LockOwner, SessionId};

/// The cell of everything from this offset on: no range of the test ends between it and the largest offset.
pub const CELLS: u64 = 16;

pub type Holder = (SessionId, LockOwner);
/// Whether the locks are on the whole file, and of which.
type File = (bool, InodeId);
/// What holds each cell, and the process that asked.
type Cells = BTreeMap<u64, (LockKind, u32)>;

#[derive(Clone, Debug)]
struct Waiter {
    number: u64,
    file: File,
    holder: Holder,
    lock: Lock,
}

/// A lock that a waiter got but does not know of yet, and what it held before.
#[derive(Clone, Debug)]
struct Unseen {
    waiter: Waiter,
    before: BTreeMap<u64, LockKind>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Set {
    Granted,
    WouldBlock,
    Deadlock,
    Waits(u64),
}

#[derive(Clone, Debug, Default)]
pub struct Locks {
    held: BTreeMap<File, BTreeMap<Holder, Cells>>,
    waiting: Vec<Waiter>,
    unseen: Vec<Unseen>,
    next: u64,
}

fn file(space: LockSpace, inode: InodeId) -> File {
    (space == LockSpace::Whole, inode)
}

fn cells(range: ByteRange) -> impl Iterator<Item = u64> {
    let tail = if range.end == u64::MAX { CELLS + 1 } else { range.end };
    range.start..tail
}

fn excludes(one: LockKind, other: LockKind) -> bool {
    one == LockKind::Exclusive || other == LockKind::Exclusive
}

impl Locks {
    /// Other holders that `lock` conflicts with, and the cells.
    fn blockers(&self, file: File, holder: Holder, lock: &Lock) -> Vec<(Holder, u64)> {
        let mut found = Vec::new();
        for (other, held) in self.held.get(&file).into_iter().flatten() {
            for cell in cells(lock.range) {
                if *other != holder && held.get(&cell).is_some_and(|(kind, _)| excludes(*kind, lock.kind)) {
                    found.push((*other, cell));
                }
            }
        }
        found
    }

    /// Every lock that may be named as the first that is in the way.
    pub fn test(&self, inode: InodeId, session: SessionId, lock: &Lock) -> Vec<Lock> {
        let file = file(lock.space, inode);
        let mut candidates = Vec::new();
        for (holder, cell) in self.blockers(file, (session, lock.owner), lock) {
            let held = &self.held[&file][&holder];
            let (kind, pid) = held[&cell];
            let same = |cell: u64| held.get(&cell).is_some_and(|h| h.0 == kind);
            let (mut start, mut end) = (cell, cell + 1);
            while start > 0 && same(start - 1) {
                start -= 1;
            }
            while same(end) {
                end += 1;
            }
            let range = ByteRange::new(start, if end > CELLS { u64::MAX } else { end });
            candidates.push(Lock { space: lock.space, owner: holder.1, pid, kind, range });
        }
        let first = candidates.iter().map(|lock| lock.range.start).min();
        candidates.retain(|lock| Some(lock.range.start) == first);
        candidates
    }

    fn give(&mut self, file: File, holder: Holder, lock: &Lock) {
        let held = self.held.entry(file).or_default().entry(holder).or_default();
        held.extend(cells(lock.range).map(|cell| (cell, (lock.kind, lock.pid))));
    }

    fn take(&mut self, file: File, holder: Holder, range: ByteRange) {
        if let Some(held) = self.held.get_mut(&file).and_then(|file| file.get_mut(&holder)) {
            cells(range).for_each(|cell| {
                held.remove(&cell);
            });
        }
    }

    fn holds_any(&self, whole: bool, holder: Holder) -> bool {
        self.held.iter().any(|(file, holders)| file.0 == whole && holders.get(&holder).is_some_and(|h| !h.is_empty()))
    }

    /// First come, first served; who holds locks already need not queue behind others, who may wait for those.
    fn admit(&mut self) -> Vec<u64> {
        let mut granted = Vec::new();
        loop {
            let next = (0..self.waiting.len()).find(|&i| {
                let waiter = &self.waiting[i];
                let overlaps = |other: &Waiter| {
                    other.file == waiter.file
                        && other.holder != waiter.holder
                        && excludes(other.lock.kind, waiter.lock.kind)
                        && other.lock.range.overlaps(&waiter.lock.range)
                };
                self.blockers(waiter.file, waiter.holder, &waiter.lock).is_empty()
                    && (self.holds_any(waiter.file.0, waiter.holder) || !self.waiting[..i].iter().any(overlaps))
            });
            let Some(next) = next else { return granted };
            let waiter = self.waiting.remove(next);
            let held = self.held.get(&waiter.file).and_then(|file| file.get(&waiter.holder));
            let before = held.into_iter().flatten().map(|(&cell, &(kind, _))| (cell, kind)).collect();
            self.give(waiter.file, waiter.holder, &waiter.lock);
            granted.push(waiter.number);
            self.unseen.push(Unseen { waiter, before });
        }
    }

    fn would_deadlock(&self, wish: &Waiter) -> bool {
        let mut seen: Vec<Holder> = Vec::new();
        let mut open = vec![wish.clone()];
        while let Some(wish_of) = open.pop() {
            for (holder, _) in self.blockers(wish_of.file, wish_of.holder, &wish_of.lock) {
                if holder == wish.holder {
                    return true;
                }
                if !seen.contains(&holder) {
                    seen.push(holder);
                    open.extend(self.waiting.iter().filter(|w| w.holder == holder && !w.file.0).cloned());
                }
            }
        }
        false
    }

    pub fn set(&mut self, inode: InodeId, session: SessionId, lock: &Lock, wait: bool) -> (Set, Vec<u64>) {
        let (file, holder) = (file(lock.space, inode), (session, lock.owner));
        if self.blockers(file, holder, lock).is_empty() {
            self.give(file, holder, lock);
            return (Set::Granted, self.admit());
        }
        // flock(2): a conversion gives the old lock back first, also when it then fails.
        if lock.space == LockSpace::Whole {
            self.take(file, holder, lock.range);
        }
        if !wait {
            return (Set::WouldBlock, self.admit());
        }
        let waiter = Waiter { number: self.next, file, holder, lock: *lock };
        if lock.space == LockSpace::Range && self.would_deadlock(&waiter) {
            return (Set::Deadlock, Vec::new());
        }
        self.next += 1;
        let number = waiter.number;
        let mut granted = self.admit();
        self.waiting.push(waiter);
        granted.extend(self.admit());
        (Set::Waits(number), granted)
    }

    pub fn unlock(
        &mut self,
        inode: InodeId,
        session: SessionId,
        space: LockSpace,
        owner: LockOwner,
        range: ByteRange,
    ) -> Vec<u64> {
        self.take(file(space, inode), (session, owner), range);
        self.admit()
    }

    /// What a session holds becomes this, if nobody else is in the way.
    pub fn replace(&mut self, inode: InodeId, session: SessionId, locks: &[Lock]) -> Option<Vec<u64>> {
        let is_foreign = |lock: &Lock| {
            let found = self.blockers(file(lock.space, inode), (session, lock.owner), lock);
            found.iter().any(|(holder, _)| holder.0 != session)
        };
        if locks.iter().any(is_foreign) {
            return None;
        }
        self.unseen.retain(|unseen| unseen.waiter.file.1 != inode || unseen.waiter.holder.0 != session);
        for (_, holders) in self.held.iter_mut().filter(|(file, _)| file.1 == inode) {
            holders.retain(|holder, _| holder.0 != session);
        }
        locks.iter().for_each(|lock| self.give(file(lock.space, inode), (session, lock.owner), lock));
        Some(self.admit())
    }

    /// The waiter learned that it has its lock.
    pub fn seen(&mut self, number: u64) {
        self.unseen.retain(|unseen| unseen.waiter.number != number);
    }

    /// The waiter went away: it is as if it had never asked.
    pub fn withdraw(&mut self, number: u64) -> Vec<u64> {
        self.waiting.retain(|waiter| waiter.number != number);
        if let Some(at) = self.unseen.iter().position(|unseen| unseen.waiter.number == number) {
            let Unseen { waiter, before } = self.unseen.remove(at);
            self.take(waiter.file, waiter.holder, waiter.lock.range);
            let held = self.held.entry(waiter.file).or_default().entry(waiter.holder).or_default();
            for cell in cells(waiter.lock.range) {
                if let Some(kind) = before.get(&cell) {
                    // Others may share by now what it shared.
                    let kind = if waiter.lock.kind == LockKind::Shared { LockKind::Shared } else { *kind };
                    held.insert(cell, (kind, waiter.lock.pid));
                }
            }
        }
        self.admit()
    }

    pub fn is_waiting(&self, number: u64) -> bool {
        self.waiting.iter().any(|waiter| waiter.number == number)
    }

    /// The one holder that a waiter waits for, where there is only one.
    pub fn blocker_of(&self, number: u64) -> Option<(InodeId, Holder, LockSpace)> {
        let waiter = self.waiting.iter().find(|waiter| waiter.number == number)?;
        let blockers = self.blockers(waiter.file, waiter.holder, &waiter.lock);
        let (first, _) = blockers.first()?;
        let space = if waiter.file.0 { LockSpace::Whole } else { LockSpace::Range };
        blockers.iter().all(|(holder, _)| holder == first).then_some((waiter.file.1, *first, space))
    }

    pub fn end_session(&mut self, session: SessionId) -> Vec<u64> {
        self.waiting.retain(|waiter| waiter.holder.0 != session);
        self.unseen.retain(|unseen| unseen.waiter.holder.0 != session);
        for holders in self.held.values_mut() {
            holders.retain(|holder, _| holder.0 != session);
        }
        self.admit()
    }
}
