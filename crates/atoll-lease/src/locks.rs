//! Advisory locks as a pure table: no tasks, no clocks. The authority has one of a whole volume; a client has one of
//! what its own processes hold, and decides with it where nobody else may.
//!
//! Invariant: locks of different owners in one space never conflict where they
//! overlap. Waiters are granted first in, first out, but who holds locks need not
//! queue behind others, because they may wait for those; a request that would
//! close a cycle of waiting owners is refused.

use std::collections::{BTreeMap, HashMap, HashSet};

use atoll_types::limits::LOCKS_PER_FILE_MAX;
use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::{ByteRange, InodeId, LockOwner, SessionId};

/// Most requests that may wait for locks of one volume.
pub const WAITERS_MAX: usize = 65_536;

/// A queued request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOutcome {
    Granted,
    WouldBlock,
    /// Waiting would deadlock.
    Deadlock,
    /// [`WAITERS_MAX`] or [`LOCKS_PER_FILE_MAX`] is reached.
    TooMany,
    Queued(WaiterId),
}

type Holder = (SessionId, LockOwner);

#[derive(Clone, Copy, Debug)]
struct Held {
    session: SessionId,
    lock: Lock,
}

impl Held {
    fn holder(&self) -> Holder {
        (self.session, self.lock.owner)
    }

    fn conflicts(&self, session: SessionId, lock: &Lock) -> bool {
        self.lock.space == lock.space
            && self.holder() != (session, lock.owner)
            && (self.lock.kind == LockKind::Exclusive || lock.kind == LockKind::Exclusive)
            && self.lock.range.overlaps(&lock.range)
    }
}

/// A lock that its waiter got but did not hear of yet.
#[derive(Debug)]
struct Unseen {
    inode: InodeId,
    granted: Held,
    /// What the holder held of the inode before.
    before: Vec<Held>,
}

#[derive(Debug, Default)]
pub struct LockTable {
    held: HashMap<InodeId, Vec<Held>>,
    /// In order of arrival.
    waiting: BTreeMap<WaiterId, (InodeId, Held)>,
    unseen: HashMap<WaiterId, Unseen>,
    next_waiter: u64,
}

impl LockTable {
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    /// Locks held, of all inodes.
    pub fn len(&self) -> usize {
        self.held.values().map(Vec::len).sum()
    }

    /// The first held lock that `lock` would have to wait for.
    pub fn test(&self, inode: InodeId, session: SessionId, lock: &Lock) -> Option<Lock> {
        let held = self.held.get(&inode)?;
        held.iter().filter(|h| h.conflicts(session, lock)).map(|h| h.lock).min_by_key(|l| l.range.start)
    }

    /// What a session holds on an inode.
    pub fn of(&self, inode: InodeId, session: SessionId) -> Vec<Lock> {
        let held = self.held.get(&inode).into_iter().flatten();
        held.filter(|held| held.session == session).map(|held| held.lock).collect()
    }

    /// Inodes on which anything is held.
    pub fn inodes(&self) -> impl Iterator<Item = InodeId> {
        self.held.keys().copied()
    }

    pub fn is_held(&self, inode: InodeId) -> bool {
        self.held.contains_key(&inode)
    }

    /// Whether another session holds a lock on the inode, or waits for one.
    pub fn is_used_by_others(&self, inode: InodeId, session: SessionId) -> bool {
        // Who waits, waits for somebody who holds.
        let Some(held) = self.held.get(&inode) else { return false };
        let waits = |(other, wish): &(InodeId, Held)| *other == inode && wish.session != session;
        held.iter().any(|held| held.session != session) || self.waiting.values().any(waits)
    }

    /// What a session holds on an inode becomes this, whatever it was; lists the waiters that get in. `None`, and
    /// nothing changes, where other sessions hold what it excludes.
    pub fn replace(&mut self, inode: InodeId, session: SessionId, locks: &[Lock]) -> Option<Vec<WaiterId>> {
        let others: Vec<Held> =
            self.held.get(&inode).into_iter().flatten().filter(|held| held.session != session).copied().collect();
        let conflicts = |lock: &Lock| others.iter().any(|held| held.conflicts(session, lock));
        if locks.iter().any(conflicts) {
            return None;
        }
        if let Some(held) = self.held.get_mut(&inode) {
            *held = others;
        }
        self.unseen.retain(|_, unseen| unseen.inode != inode || unseen.granted.session != session);
        locks.iter().for_each(|lock| self.take(inode, session, lock));
        if self.held.get(&inode).is_some_and(Vec::is_empty) {
            self.held.remove(&inode);
        }
        let awaited = locks.iter().flat_map(|lock| self.awaited_by(&Held { session, lock: *lock }));
        let mut inodes: Vec<InodeId> = awaited.collect();
        inodes.push(inode);
        Some(self.admit(inodes))
    }

    /// Hold a lock that somebody else has decided about.
    pub fn take(&mut self, inode: InodeId, session: SessionId, lock: &Lock) {
        self.grant(inode, &Held { session, lock: *lock });
    }

    /// Forget who waits for locks on an inode; in their order.
    pub fn take_waiting(&mut self, inode: InodeId) -> Vec<WaiterId> {
        self.waiting.extract_if(.., |_, (waits_on, _)| *waits_on == inode).map(|(waiter, _)| waiter).collect()
    }

    /// Whether the session may hold as many locks on the inode as one more call can make.
    fn has_room(&self, inode: InodeId, session: SessionId) -> bool {
        /// A call may cut one lock in two, and add its own.
        const MADE_MAX: usize = 2;
        let Some(held) = self.held.get(&inode) else { return true };
        held.len() + MADE_MAX <= LOCKS_PER_FILE_MAX
            || held.iter().filter(|held| held.session == session).count() + MADE_MAX <= LOCKS_PER_FILE_MAX
    }

    /// Whether an unlock would cut a lock in two while the session holds as many as it may.
    pub fn unlocks_too_little(
        &self,
        inode: InodeId,
        session: SessionId,
        space: LockSpace,
        owner: LockOwner,
        range: ByteRange,
    ) -> bool {
        let cuts = |held: &Held| {
            held.holder() == (session, owner)
                && held.lock.space == space
                && held.lock.range.start < range.start
                && range.end < held.lock.range.end
        };
        !self.has_room(inode, session) && self.held.get(&inode).is_some_and(|held| held.iter().any(cuts))
    }

    /// Take or convert a lock. The second value lists waiters that this call let in (a downgrade does).
    pub fn set(&mut self, inode: InodeId, session: SessionId, lock: &Lock, wait: bool) -> (SetOutcome, Vec<WaiterId>) {
        let wish = Held { session, lock: *lock };
        if !self.has_room(inode, session) {
            return (SetOutcome::TooMany, Vec::new());
        }
        if self.test(inode, session, lock).is_none() {
            self.grant(inode, &wish);
            let mut inodes = self.awaited_by(&wish);
            inodes.push(inode);
            return (SetOutcome::Granted, self.admit(inodes));
        }
        if wait && self.waiting.len() >= WAITERS_MAX {
            return (SetOutcome::TooMany, Vec::new());
        }
        if wait && lock.space == LockSpace::Range && self.closes_a_cycle(inode, &wish) {
            return (SetOutcome::Deadlock, Vec::new());
        }
        // flock gives the old lock back before it tries for the new one (flock(2), "converting a lock").
        let granted = if lock.space == LockSpace::Whole {
            self.unlock(inode, session, lock.space, lock.owner, lock.range)
        } else {
            Vec::new()
        };
        if !wait {
            return (SetOutcome::WouldBlock, granted);
        }
        let waiter = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        self.waiting.insert(waiter, (inode, wish));
        (SetOutcome::Queued(waiter), granted)
    }

    /// Give back what `owner` holds of `range`; lists the waiters that get in.
    pub fn unlock(
        &mut self,
        inode: InodeId,
        session: SessionId,
        space: LockSpace,
        owner: LockOwner,
        range: ByteRange,
    ) -> Vec<WaiterId> {
        self.cut(inode, session, space, owner, range);
        self.admit(vec![inode])
    }

    /// A waiter learned that it has its lock: from now on the lock is its owner's to give back.
    pub fn seen(&mut self, waiter: WaiterId) {
        self.unseen.remove(&waiter);
    }

    /// A waiter no longer wants its lock. If it was granted and not seen, its owner holds again what it
    /// held before. If it was seen, nothing happens.
    pub fn withdraw(&mut self, waiter: WaiterId) -> Vec<WaiterId> {
        if let Some((inode, _)) = self.waiting.remove(&waiter) {
            return self.admit(vec![inode]);
        }
        let Some(Unseen { inode, granted, before }) = self.unseen.remove(&waiter) else { return Vec::new() };
        let wish = granted.lock;
        self.cut(inode, granted.session, wish.space, wish.owner, wish.range);
        for mut held in before {
            let range = &mut held.lock.range;
            *range = range.intersection(&wish.range);
            if range.is_empty() {
                continue;
            }
            if wish.kind == LockKind::Shared {
                // Others may share by now what it shared.
                held.lock.kind = LockKind::Shared;
            }
            self.grant(inode, &held);
        }
        self.admit(vec![inode])
    }

    /// True while the waiter is queued.
    pub fn is_waiting(&self, waiter: WaiterId) -> bool {
        self.waiting.contains_key(&waiter)
    }

    /// Everything of a session goes.
    pub fn end_session(&mut self, session: SessionId) -> Vec<WaiterId> {
        self.waiting.retain(|_, (_, held)| held.session != session);
        self.unseen.retain(|_, unseen| unseen.granted.session != session);
        let inodes: Vec<InodeId> = self.held.keys().copied().collect();
        for &inode in &inodes {
            if let Some(held) = self.held.get_mut(&inode) {
                held.retain(|h| h.session != session);
                if held.is_empty() {
                    self.held.remove(&inode);
                }
            }
        }
        self.admit(inodes)
    }

    fn grant(&mut self, inode: InodeId, wish: &Held) {
        let Held { session, lock } = wish;
        let session = *session;
        self.cut(inode, session, lock.space, lock.owner, lock.range);
        let held = self.held.entry(inode).or_default();
        let mut merged = *lock;
        // Neighbours of the same kind and owner become one lock.
        held.retain(|h| {
            let same = h.holder() == (session, lock.owner) && h.lock.space == lock.space && h.lock.kind == lock.kind;
            let touches = h.lock.range.end >= merged.range.start && merged.range.end >= h.lock.range.start;
            if same && touches {
                merged.range.start = merged.range.start.min(h.lock.range.start);
                merged.range.end = merged.range.end.max(h.lock.range.end);
            }
            !(same && touches)
        });
        held.push(Held { session, lock: merged });
    }

    fn cut(&mut self, inode: InodeId, session: SessionId, space: LockSpace, owner: LockOwner, range: ByteRange) {
        let Some(held) = self.held.get_mut(&inode) else { return };
        let mut rest = Vec::with_capacity(held.len());
        for h in held.drain(..) {
            if h.holder() != (session, owner) || h.lock.space != space || !h.lock.range.overlaps(&range) {
                rest.push(h);
                continue;
            }
            for (start, end) in [(h.lock.range.start, range.start), (range.end, h.lock.range.end)] {
                if start < end {
                    rest.push(Held { lock: Lock { range: ByteRange::new(start, end), ..h.lock }, ..h });
                }
            }
        }
        *held = rest;
        if held.is_empty() {
            self.held.remove(&inode);
        }
    }

    /// Let in, in order of arrival, every waiter of the inodes that conflicts with no holder and no earlier
    /// waiter. A holder of other locks may overtake: the earlier waiter may wait for just those.
    fn admit(&mut self, mut inodes: Vec<InodeId>) -> Vec<WaiterId> {
        let mut granted = Vec::new();
        while let Some(inode) = inodes.pop() {
            let queue: Vec<(WaiterId, Held)> =
                self.waiting.iter().filter(|(_, (i, _))| *i == inode).map(|(id, (_, held))| (*id, *held)).collect();
            let mut passed_over: Vec<Held> = Vec::new();
            for (id, wish) in queue {
                let blocked = self.test(inode, wish.session, &wish.lock).is_some()
                    || (passed_over.iter().any(|earlier| earlier.conflicts(wish.session, &wish.lock))
                        && !self.holds_any(&wish));
                if blocked {
                    passed_over.push(wish);
                    continue;
                }
                self.waiting.remove(&id);
                let held = self.held.get(&inode).into_iter().flatten();
                let own = |h: &&Held| h.holder() == wish.holder() && h.lock.space == wish.lock.space;
                let before: Vec<Held> = held.filter(own).copied().collect();
                let converts = !before.is_empty();
                self.grant(inode, &wish);
                self.unseen.insert(id, Unseen { inode, granted: wish, before });
                granted.push(id);
                let awaited = self.awaited_by(&wish);
                let is_new = converts || !awaited.is_empty();
                inodes.extend(awaited);
                if is_new {
                    // It may have given way to an earlier waiter, or let one of its own overtake: start again.
                    inodes.push(inode);
                    break;
                }
            }
        }
        granted
    }

    fn holds_any(&self, wish: &Held) -> bool {
        let mut held = self.held.values().flatten();
        held.any(|h| h.holder() == wish.holder() && h.lock.space == wish.lock.space)
    }

    /// Inodes where the holder waits for further locks, which it may overtake others for now.
    fn awaited_by(&self, holder: &Held) -> Vec<InodeId> {
        let same = |w: &Held| w.holder() == holder.holder() && w.lock.space == holder.lock.space;
        self.waiting.values().filter(|(_, wish)| same(wish)).map(|(inode, _)| *inode).collect()
    }

    fn closes_a_cycle(&self, inode: InodeId, wish: &Held) -> bool {
        let me = wish.holder();
        let mut seen: HashSet<Holder> = HashSet::new();
        let mut open: Vec<(InodeId, Held)> = vec![(inode, *wish)];
        while let Some((inode, want)) = open.pop() {
            for holder in self.held.get(&inode).into_iter().flatten() {
                if !holder.conflicts(want.session, &want.lock) {
                    continue;
                }
                if holder.holder() == me {
                    return true;
                }
                if seen.insert(holder.holder()) {
                    let waits = self
                        .waiting
                        .values()
                        .filter(|(_, w)| w.holder() == holder.holder() && w.lock.space == LockSpace::Range);
                    open.extend(waits.copied());
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(7);
    const SESSION: SessionId = SessionId(1);

    fn lock(owner: u64, kind: LockKind, start: u64, end: u64) -> Lock {
        Lock { space: LockSpace::Range, owner: LockOwner(owner), pid: 0, kind, range: ByteRange::new(start, end) }
    }

    use LockKind::{Exclusive, Shared};

    #[test]
    fn readers_share_and_a_writer_excludes() {
        let mut table = LockTable::default();
        assert_eq!(table.set(FILE, SESSION, &lock(1, Shared, 0, 10), false).0, SetOutcome::Granted);
        assert_eq!(table.set(FILE, SESSION, &lock(2, Shared, 5, 15), false).0, SetOutcome::Granted);
        assert_eq!(table.set(FILE, SESSION, &lock(3, Exclusive, 9, 11), false).0, SetOutcome::WouldBlock);
        assert_eq!(table.set(FILE, SESSION, &lock(3, Exclusive, 15, 20), false).0, SetOutcome::Granted);
    }

    #[test]
    fn an_owner_converts_splits_and_merges_its_own_locks() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Exclusive, 0, 30), false);
        table.set(FILE, SESSION, &lock(1, Shared, 10, 20), false);
        assert_eq!(table.len(), 3);
        assert_eq!(table.test(FILE, SESSION, &lock(2, Shared, 10, 20)), None);
        assert!(table.test(FILE, SESSION, &lock(2, Shared, 9, 20)).is_some());
        table.set(FILE, SESSION, &lock(1, Exclusive, 10, 20), false);
        assert_eq!(table.len(), 1);
        table.unlock(FILE, SESSION, LockSpace::Range, LockOwner(1), ByteRange::new(0, u64::MAX));
        assert!(table.is_empty());
    }

    #[test]
    fn waiters_get_in_first_come_first_served() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Exclusive, 0, 10), false);
        let (SetOutcome::Queued(first), _) = table.set(FILE, SESSION, &lock(2, Exclusive, 0, 10), true) else {
            panic!()
        };
        let (SetOutcome::Queued(second), _) = table.set(FILE, SESSION, &lock(3, Exclusive, 0, 10), true) else {
            panic!()
        };
        let everything = ByteRange::new(0, u64::MAX);
        assert_eq!(table.unlock(FILE, SESSION, LockSpace::Range, LockOwner(1), everything), [first]);
        assert_eq!(table.unlock(FILE, SESSION, LockSpace::Range, LockOwner(2), everything), [second]);
    }

    #[test]
    fn a_cycle_of_waiters_is_a_deadlock() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Exclusive, 0, 1), false);
        table.set(FILE, SESSION, &lock(2, Exclusive, 1, 2), false);
        assert!(matches!(table.set(FILE, SESSION, &lock(1, Exclusive, 1, 2), true).0, SetOutcome::Queued(_)));
        assert_eq!(table.set(FILE, SESSION, &lock(2, Exclusive, 0, 1), true).0, SetOutcome::Deadlock);
    }

    #[test]
    fn a_session_that_ends_lets_others_in() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Exclusive, 0, 10), false);
        let other = SessionId(2);
        let (SetOutcome::Queued(waiter), _) = table.set(FILE, other, &lock(1, Exclusive, 0, 10), true) else {
            panic!()
        };
        assert_eq!(table.end_session(SESSION), [waiter]);
        assert!(table.end_session(other).is_empty() && table.is_empty());
    }

    #[test]
    fn a_withdrawn_waiter_is_forgotten() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Exclusive, 0, 10), false);
        let (SetOutcome::Queued(gone), _) = table.set(FILE, SESSION, &lock(2, Exclusive, 0, 10), true) else {
            panic!()
        };
        let (SetOutcome::Queued(stays), _) = table.set(FILE, SESSION, &lock(3, Shared, 0, 10), true) else { panic!() };
        assert!(table.withdraw(gone).is_empty());
        assert_eq!(table.unlock(FILE, SESSION, LockSpace::Range, LockOwner(1), ByteRange::new(0, 10)), [stays]);
    }

    fn queued(set: (SetOutcome, Vec<WaiterId>)) -> WaiterId {
        let SetOutcome::Queued(waiter) = set.0 else { panic!("{set:?}") };
        waiter
    }

    fn everything(table: &mut LockTable, owner: u64) -> Vec<WaiterId> {
        table.unlock(FILE, SESSION, LockSpace::Range, LockOwner(owner), ByteRange::new(0, u64::MAX))
    }

    #[test]
    fn a_lock_that_its_waiter_never_heard_of_is_undone() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Exclusive, 0, 10), false);
        table.set(FILE, SESSION, &lock(2, Shared, 20, 30), false);
        let waiter = queued(table.set(FILE, SESSION, &lock(2, Exclusive, 0, 25), true));
        assert_eq!(everything(&mut table, 1), [waiter]);
        assert!(table.withdraw(waiter).is_empty());
        assert_eq!(table.set(FILE, SESSION, &lock(3, Exclusive, 0, 20), false).0, SetOutcome::Granted);
        assert_eq!(table.set(FILE, SESSION, &lock(3, Shared, 20, 30), false).0, SetOutcome::Granted);
        assert_eq!(table.set(FILE, SESSION, &lock(3, Exclusive, 20, 30), false).0, SetOutcome::WouldBlock);
    }

    #[test]
    fn a_lock_that_its_waiter_heard_of_stays() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Exclusive, 0, 10), false);
        let waiter = queued(table.set(FILE, SESSION, &lock(2, Exclusive, 0, 10), true));
        assert_eq!(everything(&mut table, 1), [waiter]);
        table.seen(waiter);
        assert!(table.withdraw(waiter).is_empty());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn an_upgrade_does_not_queue_behind_who_waits_for_it() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Shared, 0, 10), false);
        table.set(FILE, SESSION, &lock(2, Shared, 0, 10), false);
        let writer = queued(table.set(FILE, SESSION, &lock(3, Exclusive, 0, 10), true));
        let upgrade = queued(table.set(FILE, SESSION, &lock(1, Exclusive, 0, 10), true));
        assert_eq!(everything(&mut table, 2), [upgrade]);
        assert_eq!(everything(&mut table, 1), [writer]);
    }

    #[test]
    fn a_waiter_whose_grant_is_a_downgrade_lets_earlier_waiters_in() {
        let mut table = LockTable::default();
        table.set(FILE, SESSION, &lock(1, Exclusive, 0, 1), false);
        table.set(FILE, SESSION, &lock(2, Exclusive, 1, 2), false);
        let earlier = queued(table.set(FILE, SESSION, &lock(3, Shared, 0, 1), true));
        let downgrade = queued(table.set(FILE, SESSION, &lock(1, Shared, 0, 2), true));
        assert_eq!(everything(&mut table, 2), [downgrade, earlier]);
    }

    #[test]
    fn a_failed_conversion_of_a_whole_file_lock_loses_the_old_one() {
        let mut table = LockTable::default();
        let whole = |owner, kind| Lock { space: LockSpace::Whole, ..lock(owner, kind, 0, u64::MAX) };
        table.set(FILE, SESSION, &whole(1, Shared), false);
        table.set(FILE, SESSION, &whole(2, Shared), false);
        assert_eq!(table.set(FILE, SESSION, &whole(1, Exclusive), false).0, SetOutcome::WouldBlock);
        assert_eq!(table.set(FILE, SESSION, &whole(2, Exclusive), false).0, SetOutcome::Granted);
    }
}
