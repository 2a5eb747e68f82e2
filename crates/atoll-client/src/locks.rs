//! The advisory locks of this mount's processes: what they hold, and who decides about it.
//!
//! While the session holds the exclusive right on a file, nobody else may lock it or wait for a lock of it: then
//! locks are decided here. The authority is told when it is asked for something about that file again, or when the
//! right is given up: of the net state, in the journal, with which it is executed before. Requests that come meanwhile
//! wait here behind that, so that they reach the authority in their order.
//!
//! Invariants: a file has either requests at the authority (`asked`), or is decided here, never both at a time. All
//! waits for range locks are in one place, here or at the authority: who looks for a cycle of them sees all.

use std::collections::BTreeMap;

use atoll_lease::locks::{LockTable, SetOutcome, WaiterId};
use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::{ByteRange, Caller, Errno, InodeId, JournalPosition, LockOwner, Operation, Outcome, SessionId};
use rustc_hash::{FxHashMap, FxHashSet};

pub(crate) type Owner = (LockSpace, LockOwner);
type Answer = Result<Outcome, Errno>;

/// Owners of locks differ within a mount: it needs no number for itself.
const SELF: SessionId = SessionId(0);

/// A process's request about locks, and who gets its answer, if anybody does.
pub(crate) struct Request<D> {
    pub id: u64,
    pub caller: Caller,
    pub operation: Operation,
    pub done: Option<D>,
}

/// To be sent to the authority.
pub(crate) struct Sent {
    pub id: u64,
    pub caller: Caller,
    pub operation: Operation,
}

/// What is to be done outside.
pub(crate) struct Moves<D> {
    pub answered: Vec<(D, Answer)>,
    /// In this order.
    pub sent: Vec<Sent>,
}

impl<D> Default for Moves<D> {
    fn default() -> Self {
        Moves { answered: Vec::new(), sent: Vec::new() }
    }
}

impl<D> Moves<D> {
    fn answer(&mut self, done: Option<D>, answer: Answer) {
        self.answered.extend(done.map(|done| (done, answer)));
    }
}

/// Puts the locks of a file into the journal; answers where they stand.
pub(crate) trait Journals: FnMut(InodeId, Vec<Lock>) -> JournalPosition {}

impl<T: FnMut(InodeId, Vec<Lock>) -> JournalPosition> Journals for T {}

struct File<D> {
    /// Requests that are at the authority, or in `queue`.
    asked: u32,
    /// Something was decided here that the authority does not know.
    untold: bool,
    /// The authority may know of locks of this file.
    told: bool,
    /// Until the journal is executed up to here, requests wait in `queue`.
    handing: Option<JournalPosition>,
    /// Of this file, and waits for locks of others.
    queue: Vec<Request<D>>,
    /// Owners whose last request has no answer: what they hold, the authority knows.
    unsure: FxHashSet<Owner>,
    /// Locks that the authority was asked for, by request: it may have taken something of their owners for them.
    wished: BTreeMap<u64, Lock>,
}

impl<D> Default for File<D> {
    fn default() -> Self {
        File {
            asked: 0,
            untold: false,
            told: false,
            handing: None,
            queue: Vec::new(),
            unsure: FxHashSet::default(),
            wished: BTreeMap::new(),
        }
    }
}

impl<D> File<D> {
    fn is_nothing(&self) -> bool {
        self.asked == 0 && !self.untold && !self.told && self.handing.is_none() && self.unsure.is_empty()
    }
}

/// A request at the authority.
struct Pending<D> {
    process: u32,
    waits: bool,
    done: Option<D>,
}

pub(crate) struct Locks<D> {
    /// Everything that is held, whoever decided about it, and who waits for a decision here.
    table: LockTable,
    files: FxHashMap<InodeId, File<D>>,
    waiting: BTreeMap<WaiterId, Request<D>>,
    /// Requests at the authority, and who gets their answers.
    sent: FxHashMap<u64, Pending<D>>,
    /// Files whose locks are in the journal and not executed.
    handing: BTreeMap<JournalPosition, InodeId>,
    /// Requests among those asked for that may wait for range locks.
    waits: usize,
    /// Files of which other locks are held than were noted.
    changed: FxHashSet<InodeId>,
}

impl<D> Default for Locks<D> {
    fn default() -> Self {
        Locks {
            table: LockTable::default(),
            files: FxHashMap::default(),
            waiting: BTreeMap::new(),
            sent: FxHashMap::default(),
            handing: BTreeMap::new(),
            waits: 0,
            changed: FxHashSet::default(),
        }
    }
}

/// Whether it may be a part of a cycle of waits.
fn waits(operation: &Operation) -> bool {
    matches!(operation, Operation::SetLock { lock, wait: true, .. } if lock.space == LockSpace::Range)
}

fn owner(operation: &Operation) -> Option<Owner> {
    match operation {
        Operation::SetLock { lock, .. } => Some((lock.space, lock.owner)),
        Operation::Unlock { space, owner, .. } => Some((*space, *owner)),
        _ => None,
    }
}

impl<D> Locks<D> {
    /// A process asks. `is_ours`: the exclusive right on the file is held and may be used.
    pub fn request(&mut self, request: Request<D>, is_ours: bool, journal: &mut impl Journals) -> Moves<D> {
        let mut moves = Moves::default();
        let Some(inode) = request.operation.locked_inode() else {
            moves.answer(request.done, Err(Errno::EINVAL));
            return moves;
        };
        if is_ours && self.may_decide(inode, &request.operation) {
            self.decide(inode, request, &mut moves);
        } else {
            if let Operation::SetLock { wait: true, .. } = &request.operation {
                // Cycles of waits are found where all waits are, and who holds something may overtake others who wait:
                // the authority has to know everything.
                self.leave_all(journal);
            }
            self.leave(inode, journal);
            self.ask(inode, request, &mut moves);
        }
        self.tidy(inode);
        moves
    }

    fn may_decide(&self, inode: InodeId, operation: &Operation) -> bool {
        let is_ours_alone = self.files.get(&inode).is_none_or(|file| file.asked == 0 && file.unsure.is_empty());
        let would_wait = || match operation {
            Operation::SetLock { lock, .. } => waits(operation) && self.table.test(inode, SELF, lock).is_some(),
            _ => false,
        };
        is_ours_alone && (self.waits == 0 || !would_wait())
    }

    fn decide(&mut self, inode: InodeId, request: Request<D>, moves: &mut Moves<D>) {
        self.changed.insert(inode);
        let admitted = match &request.operation {
            Operation::TestLock { lock, .. } => {
                let conflict = self.table.test(inode, SELF, lock);
                return moves.answer(request.done, Ok(Outcome::Conflict(conflict)));
            }
            Operation::Unlock { space, owner, range, .. } => {
                if self.table.unlocks_too_little(inode, SELF, *space, *owner, *range) {
                    return moves.answer(request.done, Err(Errno::ENOLCK));
                }
                let admitted = self.table.unlock(inode, SELF, *space, *owner, *range);
                moves.answer(request.done, Ok(Outcome::Done));
                admitted
            }
            Operation::SetLock { lock, wait, .. } => {
                let (outcome, admitted) = self.table.set(inode, SELF, lock, *wait);
                match outcome {
                    SetOutcome::Granted => moves.answer(request.done, Ok(Outcome::Done)),
                    SetOutcome::WouldBlock => moves.answer(request.done, Err(Errno::EAGAIN)),
                    SetOutcome::Deadlock => moves.answer(request.done, Err(Errno::EDEADLK)),
                    SetOutcome::TooMany => moves.answer(request.done, Err(Errno::ENOLCK)),
                    SetOutcome::Queued(waiter) => {
                        self.waiting.insert(waiter, request);
                    }
                }
                admitted
            }
            _ => return,
        };
        self.admitted(admitted, moves);
        let is_held = self.table.is_held(inode);
        let file = self.files.entry(inode).or_default();
        file.untold = is_held || file.told;
    }

    fn admitted(&mut self, waiters: Vec<WaiterId>, moves: &mut Moves<D>) {
        for waiter in waiters {
            self.table.seen(waiter);
            if let Some(request) = self.waiting.remove(&waiter) {
                moves.answer(request.done, Ok(Outcome::Done));
            }
        }
    }

    /// From now on the authority decides about the file, until nobody asks it for anything: it is told what is held,
    /// and asked for what was waited for here.
    pub fn leave(&mut self, inode: InodeId, journal: &mut impl Journals) {
        let waiters = self.table.take_waiting(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        if file.untold {
            file.untold = false;
            let locks = self.table.of(inode, SELF);
            file.told = !locks.is_empty();
            let position = journal(inode, locks);
            file.handing = Some(position);
            self.handing.insert(position, inode);
        }
        debug_assert!(waiters.is_empty() || file.handing.is_some(), "who waits here waits for a lock that is untold");
        for waiter in waiters {
            if let Some(request) = self.waiting.remove(&waiter) {
                // The lock that it waits for is handed over first: it is queued behind that.
                self.ask(inode, request, &mut Moves::default());
            }
        }
    }

    /// The same of every file that is decided here: nothing may be any more.
    pub fn leave_all(&mut self, journal: &mut impl Journals) {
        let untold: Vec<InodeId> = self.files.iter().filter(|(_, file)| file.untold).map(|(inode, _)| *inode).collect();
        untold.into_iter().for_each(|inode| self.leave(inode, journal));
    }

    /// Whether the authority has to be told of the file before rights on it are given up.
    pub fn is_untold(&self, inode: InodeId) -> bool {
        self.files.get(&inode).is_some_and(|file| file.untold)
    }

    /// Whether it is being told.
    pub fn is_being_told(&self, inode: InodeId) -> bool {
        self.files.get(&inode).is_some_and(|file| file.handing.is_some())
    }

    fn ask(&mut self, inode: InodeId, request: Request<D>, moves: &mut Moves<D>) {
        self.changed.insert(inode);
        let file = self.files.entry(inode).or_default();
        match &request.operation {
            Operation::SetLock { lock, .. } => {
                file.wished.insert(request.id, *lock);
            }
            // Its owner does not hold it any more, whenever the authority hears of that.
            Operation::Unlock { space, owner, range, .. } => {
                if self.table.unlocks_too_little(inode, SELF, *space, *owner, *range) {
                    return moves.answer(request.done, Err(Errno::ENOLCK));
                }
                self.table.unlock(inode, SELF, *space, *owner, *range);
            }
            _ => {}
        }
        file.asked += 1;
        let behind = if waits(&request.operation) {
            self.waits += 1;
            // Behind all who waited before, so that who closes a cycle of them hears of it.
            self.handing.last_key_value().map(|(_, inode)| *inode)
        } else {
            file.handing.is_some().then_some(inode)
        };
        match behind.and_then(|inode| self.files.get_mut(&inode)) {
            Some(file) => file.queue.push(request),
            None => send(&mut self.sent, request, moves),
        }
    }

    /// The journal is executed up to here. Answers of which files the authority knows the locks now; what waited for
    /// that is to be sent.
    pub fn executed(&mut self, position: JournalPosition) -> (Vec<InodeId>, Moves<D>) {
        let (mut told, mut moves) = (Vec::new(), Moves::default());
        while let Some(entry) = self.handing.first_entry()
            && *entry.key() <= position
        {
            let (position, inode) = entry.remove_entry();
            if let Some(file) = self.files.get_mut(&inode).filter(|file| file.handing == Some(position)) {
                file.handing = None;
                file.queue.drain(..).for_each(|request| send(&mut self.sent, request, &mut moves));
                told.push(inode);
            }
            self.tidy(inode);
        }
        (told, moves)
    }

    /// The authority has answered.
    pub fn answered(&mut self, id: u64, operation: &Operation, answer: Answer) -> Moves<D> {
        let mut moves = Moves::default();
        let Some((inode, pending)) = operation.locked_inode().zip(self.sent.remove(&id)) else { return moves };
        self.ends(inode, id, operation, &answer);
        moves.answer(pending.done, answer);
        moves
    }

    /// A request is over.
    fn ends(&mut self, inode: InodeId, id: u64, operation: &Operation, answer: &Answer) {
        self.changed.insert(inode);
        self.waits -= usize::from(waits(operation));
        match (operation, answer) {
            (Operation::SetLock { lock, .. }, Ok(_)) => self.table.take(inode, SELF, lock),
            // A conversion gives the old lock back first.
            (Operation::SetLock { lock, .. }, Err(errno))
                if lock.space == LockSpace::Whole && *errno != Errno::ENOLCK =>
            {
                self.table.unlock(inode, SELF, lock.space, lock.owner, lock.range);
            }
            // Also what a request before it has got meanwhile.
            (Operation::Unlock { space, owner, range, .. }, Ok(_)) => {
                self.table.unlock(inode, SELF, *space, *owner, *range);
            }
            _ => {}
        }
        let is_held = self.table.is_held(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.asked -= 1;
        file.wished.remove(&id);
        if let Some(owner) = owner(operation) {
            let is_definite = matches!(answer, Ok(_) | Err(Errno::EAGAIN | Errno::EDEADLK | Errno::ENOLCK));
            if !is_definite {
                file.unsure.insert(owner);
            } else if matches!(operation, Operation::Unlock { range: ByteRange::EVERYTHING, .. }) {
                file.unsure.remove(&owner);
            }
        }
        if file.asked == 0 && file.handing.is_none() {
            file.told = is_held || !file.unsure.is_empty();
        }
        self.tidy(inode);
    }

    /// A signal came for who waits for a request that is here; `None` when it is not.
    pub fn interrupt(&mut self, id: u64, is_killed: impl Fn(u32) -> bool) -> Option<Moves<D>> {
        let mut moves = Moves::default();
        if let Some(waiter) = self.waiting.iter().find(|(_, request)| request.id == id).map(|(waiter, _)| *waiter) {
            let request = self.waiting.remove(&waiter)?;
            let admitted = self.table.withdraw(waiter);
            moves.answer(request.done, Err(Errno::EINTR));
            self.admitted(admitted, &mut moves);
            return Some(moves);
        }
        // Of a wait at the authority, the authority decides.
        if let Some(pending) = self.sent.get_mut(&id).filter(|pending| !pending.waits) {
            if is_killed(pending.process) {
                moves.answer(pending.done.take(), Err(Errno::EINTR));
            }
            return Some(moves);
        }
        let place = |file: &File<D>| file.queue.iter().position(|request| request.id == id);
        let (inode, at) = self.files.iter().find_map(|(inode, file)| Some((*inode, place(file)?)))?;
        let queue = &mut self.files.get_mut(&inode)?.queue;
        if queue[at].operation.waits_for_lock() {
            let request = queue.remove(at);
            let inode = request.operation.locked_inode()?;
            self.ends(inode, id, &request.operation, &Err(Errno::EAGAIN));
            moves.answer(request.done, Err(Errno::EINTR));
        } else if is_killed(queue[at].caller.pid) {
            // It goes on without whoever waited for it.
            moves.answer(queue[at].done.take(), Err(Errno::EINTR));
        }
        Some(moves)
    }

    /// There is no server for too long: nobody waits for it any more.
    pub fn give_up(&mut self) -> Moves<D> {
        let mut moves = Moves::default();
        let queued: Vec<Request<D>> =
            self.files.values_mut().flat_map(|file| std::mem::take(&mut file.queue)).collect();
        for Request { id, operation, done, .. } in queued {
            if let Some(inode) = operation.locked_inode() {
                self.ends(inode, id, &operation, &Err(Errno::EIO));
            }
            moves.answer(done, Err(Errno::EIO));
        }
        moves
    }

    /// What this mount tells the next authority that it holds. A conversion that has no answer may have been made:
    /// then others may hold what it gave back.
    pub fn held(&mut self) -> Vec<(InodeId, Vec<Lock>)> {
        let inodes: Vec<InodeId> = self.table.inodes().collect();
        let mut held = Vec::with_capacity(inodes.len());
        for inode in inodes {
            let mut sure = LockTable::default();
            self.table.of(inode, SELF).iter().for_each(|lock| sure.take(inode, SELF, lock));
            let file = self.files.entry(inode).or_default();
            for wish in file.wished.values() {
                match (wish.space, wish.kind) {
                    (LockSpace::Whole, _) => {
                        sure.unlock(inode, SELF, wish.space, wish.owner, wish.range);
                    }
                    (LockSpace::Range, LockKind::Shared) => weaken(&mut sure, inode, wish),
                    (LockSpace::Range, LockKind::Exclusive) => {}
                }
            }
            file.told = true;
            held.push((inode, sure.of(inode, SELF)));
        }
        held
    }

    /// Go on from what [`Locks::held`] gave another image of this process.
    pub fn restore(&mut self, held: Vec<(InodeId, Vec<Lock>)>) {
        for (inode, locks) in held {
            locks.iter().for_each(|lock| self.table.take(inode, SELF, lock));
            self.files.entry(inode).or_default().told = true;
        }
    }

    /// Go on from what a process held that was killed. What of it the authority knows is not known: it is told.
    pub fn revive(&mut self, held: Vec<(InodeId, Vec<Lock>)>) {
        for (inode, locks) in held {
            locks.iter().for_each(|lock| self.table.take(inode, SELF, lock));
            let file = self.files.entry(inode).or_default();
            (file.told, file.untold) = (true, true);
        }
    }

    /// What is held now of the files of which that has changed since it was asked last.
    pub fn take_changed(&mut self) -> Vec<(InodeId, Vec<Lock>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|inode| (inode, self.table.of(inode, SELF))).collect()
    }

    /// The authority does not let this mount hold what it held of a file. Answers whose locks are lost.
    pub fn lose(&mut self, inode: InodeId) -> (FxHashSet<Owner>, Moves<D>) {
        self.changed.insert(inode);
        let mut moves = Moves::default();
        let owners = self.table.of(inode, SELF).into_iter().map(|lock| (lock.space, lock.owner)).collect();
        let admitted = self.table.replace(inode, SELF, &[]).unwrap_or_default();
        self.admitted(admitted, &mut moves);
        (owners, moves)
    }

    /// The session is over, and with it all that was held. Answers whose locks are lost. What was asked for is asked
    /// for anew.
    pub fn lose_all(&mut self) -> (Vec<(InodeId, FxHashSet<Owner>)>, Moves<D>) {
        let inodes: Vec<InodeId> = self.table.inodes().collect();
        let mut moves = Moves::default();
        let mut lost = Vec::with_capacity(inodes.len());
        for inode in inodes {
            let (owners, mut admitted) = self.lose(inode);
            lost.push((inode, owners));
            moves.answered.append(&mut admitted.answered);
        }
        self.handing.clear();
        self.files.retain(|_, file| {
            file.queue.drain(..).for_each(|request| send(&mut self.sent, request, &mut moves));
            file.handing = None;
            file.untold = false;
            file.told = false;
            file.unsure.clear();
            file.asked > 0
        });
        (lost, moves)
    }

    /// Up to where the journal is waited for.
    pub fn told_at(&self) -> Option<JournalPosition> {
        self.handing.last_key_value().map(|(position, _)| *position)
    }

    fn tidy(&mut self, inode: InodeId) {
        if self.files.get(&inode).is_some_and(File::is_nothing) {
            self.files.remove(&inode);
        }
    }
}

fn send<D>(sent: &mut FxHashMap<u64, Pending<D>>, request: Request<D>, moves: &mut Moves<D>) {
    let Request { id, caller, operation, done } = request;
    sent.insert(id, Pending { process: caller.pid, waits: operation.waits_for_lock(), done });
    moves.sent.push(Sent { id, caller, operation });
}

/// What an owner holds exclusively of a shared wish becomes shared.
fn weaken(table: &mut LockTable, inode: InodeId, wish: &Lock) {
    for held in table.of(inode, SELF) {
        let is_own = held.space == wish.space && held.owner == wish.owner && held.kind == LockKind::Exclusive;
        let range = held.range.intersection(&wish.range);
        if is_own && !range.is_empty() {
            table.take(inode, SELF, &Lock { kind: LockKind::Shared, range, ..held });
        }
    }
}

#[cfg(test)]
mod tests;
