use std::collections::BTreeSet;

use super::*;
use LockKind::{Exclusive, Shared};
use proptest::prelude::*;

const FILE: InodeId = InodeId(7);
const OTHER: InodeId = InodeId(8);
const US: SessionId = SessionId(1);

fn lock(owner: u64, kind: LockKind, start: u64, end: u64) -> Lock {
    Lock { space: LockSpace::Range, owner: LockOwner(owner), pid: 0, kind, range: ByteRange::new(start, end) }
}

fn set(inode: InodeId, lock: Lock, wait: bool) -> Operation {
    Operation::SetLock { inode, lock, wait }
}

fn unlock(inode: InodeId, owner: u64, range: ByteRange) -> Operation {
    Operation::Unlock { inode, space: LockSpace::Range, owner: LockOwner(owner), range }
}

/// The locks of a mount, a journal that is executed when it is asked for, and an authority.
#[derive(Default)]
struct World {
    locks: Locks<u64>,
    journal: Vec<(InodeId, Vec<Lock>)>,
    executed: usize,
    /// Requests on their way, in order.
    sent: Vec<Sent>,
    authority: LockTable,
    waiting: BTreeMap<WaiterId, Sent>,
    answers: BTreeMap<u64, Answer>,
    next: u64,
}

impl World {
    fn take(&mut self, moves: Moves<u64>) {
        self.answers.extend(moves.answered);
        self.sent.extend(moves.sent);
    }

    fn ask(&mut self, operation: Operation, is_ours: bool) -> u64 {
        let id = self.next;
        self.next += 1;
        let request = Request { id, caller: Caller { pid: id as u32, ..Caller::default() }, operation, done: Some(id) };
        let journal = &mut self.journal;
        let moves = self.locks.request(request, is_ours, &mut |inode, locks| {
            journal.push((inode, locks));
            JournalPosition(journal.len() as u64)
        });
        self.take(moves);
        id
    }

    fn leave(&mut self, inode: InodeId) {
        let journal = &mut self.journal;
        self.locks.leave(inode, &mut |inode, locks| {
            journal.push((inode, locks));
            JournalPosition(journal.len() as u64)
        });
    }

    fn execute_journal(&mut self) {
        let shipped = self.journal[self.executed..].to_vec();
        for (inode, locks) in shipped {
            let admitted = self.authority.replace(inode, US, &locks).expect("nobody else is there");
            self.admitted(admitted);
        }
        self.executed = self.journal.len();
        let (_, moves) = self.locks.executed(JournalPosition(self.executed as u64));
        self.take(moves);
    }

    fn admitted(&mut self, admitted: Vec<WaiterId>) {
        for waiter in admitted {
            self.authority.seen(waiter);
            let Sent { id, operation, .. } = self.waiting.remove(&waiter).unwrap();
            let moves = self.locks.answered(id, &operation, Ok(Outcome::Done));
            self.take(moves);
        }
    }

    /// The authority executes what is on its way.
    fn execute(&mut self) {
        while !self.sent.is_empty() {
            let request = self.sent.remove(0);
            let (answer, admitted) = match decide(&mut self.authority, &request.operation) {
                (Ok(answer), admitted) => (answer, admitted),
                (Err(waiter), admitted) => {
                    self.waiting.insert(waiter, request);
                    self.admitted(admitted);
                    continue;
                }
            };
            let moves = self.locks.answered(request.id, &request.operation, answer);
            self.take(moves);
            self.admitted(admitted);
        }
    }

    fn settle(&mut self) {
        self.execute();
        self.execute_journal();
        self.execute();
    }
}

/// What an authority says, or who waits for it.
fn decide(table: &mut LockTable, operation: &Operation) -> (Result<Answer, WaiterId>, Vec<WaiterId>) {
    match operation {
        Operation::TestLock { inode, lock } => (Ok(Ok(Outcome::Conflict(table.test(*inode, US, lock)))), Vec::new()),
        Operation::Unlock { inode, space, owner, range } => {
            (Ok(Ok(Outcome::Done)), table.unlock(*inode, US, *space, *owner, *range))
        }
        Operation::SetLock { inode, lock, wait } => {
            let (outcome, admitted) = table.set(*inode, US, lock, *wait);
            let answer = match outcome {
                SetOutcome::Granted => Ok(Ok(Outcome::Done)),
                SetOutcome::WouldBlock => Ok(Err(Errno::EAGAIN)),
                SetOutcome::Deadlock => Ok(Err(Errno::EDEADLK)),
                SetOutcome::TooMany => Ok(Err(Errno::ENOLCK)),
                SetOutcome::Queued(waiter) => Err(waiter),
            };
            (answer, admitted)
        }
        other => panic!("{other:?}"),
    }
}

fn sorted(mut locks: Vec<Lock>) -> Vec<Lock> {
    locks.sort_by_key(|lock| (lock.space == LockSpace::Whole, lock.owner, lock.range.start));
    locks
}

#[test]
fn what_is_decided_here_the_authority_hears_before_the_next_request() {
    let mut world = World::default();
    let first = world.ask(set(FILE, lock(1, Exclusive, 0, 10), false), true);
    let waits = world.ask(set(FILE, lock(2, Exclusive, 0, 10), true), true);
    assert_eq!(world.answers.get(&first), Some(&Ok(Outcome::Done)));
    assert!(world.sent.is_empty() && world.locks.is_untold(FILE));
    world.leave(FILE);
    let third = world.ask(set(FILE, lock(3, Exclusive, 20, 30), false), false);
    assert_eq!(world.journal, [(FILE, vec![lock(1, Exclusive, 0, 10)])]);
    assert!(world.sent.is_empty(), "not before the authority knows of the first");
    world.settle();
    assert!(world.answers.contains_key(&third) && !world.answers.contains_key(&waits));
    world.ask(unlock(FILE, 1, ByteRange::EVERYTHING), true);
    world.settle();
    assert_eq!(world.answers.get(&waits), Some(&Ok(Outcome::Done)), "it waited there");
}

#[test]
fn what_nobody_holds_any_more_is_no_news() {
    let mut world = World::default();
    world.ask(set(FILE, lock(1, Exclusive, 0, 10), false), true);
    world.ask(unlock(FILE, 1, ByteRange::EVERYTHING), true);
    world.leave(FILE);
    assert!(world.journal.is_empty() && world.locks.files.is_empty());
    // Unless the authority knows of it.
    world.ask(set(FILE, lock(1, Exclusive, 0, 10), false), false);
    world.settle();
    world.ask(unlock(FILE, 1, ByteRange::EVERYTHING), true);
    world.leave(FILE);
    assert_eq!(world.journal, [(FILE, vec![])]);
    world.settle();
    assert!(world.authority.is_empty() && world.locks.files.is_empty());
}

#[test]
fn nothing_is_decided_here_beside_a_request_at_the_authority() {
    let mut world = World::default();
    let asked = world.ask(set(FILE, lock(1, Exclusive, 0, 10), false), false);
    let second = world.ask(set(FILE, lock(2, Exclusive, 0, 10), false), true);
    assert!(world.answers.is_empty());
    world.settle();
    assert_eq!((&world.answers[&asked], &world.answers[&second]), (&Ok(Outcome::Done), &Err(Errno::EAGAIN)));
    let third = world.ask(set(FILE, lock(3, Shared, 20, 30), false), true);
    assert!(world.answers.contains_key(&third));
}

#[test]
fn a_cycle_between_what_is_decided_here_and_there_is_found() {
    for waits_here_first in [true, false] {
        let mut world = World::default();
        world.ask(set(FILE, lock(1, Exclusive, 0, 10), false), true);
        world.ask(set(OTHER, lock(2, Exclusive, 0, 10), false), false);
        world.settle();
        let here = set(FILE, lock(2, Exclusive, 0, 10), true);
        let there = set(OTHER, lock(1, Exclusive, 0, 10), true);
        let last = if waits_here_first {
            world.ask(here, true);
            world.ask(there, false);
            world.settle();
            world.answers.values().filter(|answer| **answer == Err(Errno::EDEADLK)).count()
        } else {
            world.ask(there, false);
            world.settle();
            world.ask(here, true);
            world.settle();
            world.answers.values().filter(|answer| **answer == Err(Errno::EDEADLK)).count()
        };
        assert_eq!(last, 1);
    }
}

#[test]
fn a_signal_ends_a_wait_wherever_it_is() {
    let mut world = World::default();
    world.ask(set(FILE, lock(1, Exclusive, 0, 10), false), true);
    let here = world.ask(set(FILE, lock(2, Exclusive, 0, 10), true), true);
    let moves = world.locks.interrupt(here, |_| false).unwrap();
    assert_eq!(moves.answered, [(here, Err(Errno::EINTR))]);
    let queued = world.ask(set(FILE, lock(2, Exclusive, 0, 10), true), true);
    world.leave(FILE);
    let moves = world.locks.interrupt(queued, |_| false).unwrap();
    assert_eq!(moves.answered, [(queued, Err(Errno::EINTR))]);
    // What gives a lock back goes on without its process.
    let unlocks = world.ask(unlock(FILE, 1, ByteRange::EVERYTHING), false);
    assert!(world.locks.interrupt(unlocks, |_| false).unwrap().answered.is_empty());
    assert_eq!(world.locks.interrupt(unlocks, |_| true).unwrap().answered, [(unlocks, Err(Errno::EINTR))]);
    world.settle();
    assert!(world.authority.is_empty());
    assert!(world.locks.interrupt(99, |_| true).is_none());
}

#[test]
fn of_whom_nothing_is_sure_the_authority_decides_until_it_lets_go() {
    let mut world = World::default();
    let id = world.ask(set(FILE, lock(1, Exclusive, 0, 10), true), false);
    let operation = world.sent.remove(0).operation;
    let moves = world.locks.answered(id, &operation, Err(Errno::EINTR));
    world.take(moves);
    let asked = world.ask(set(FILE, lock(2, Shared, 20, 30), false), true);
    assert!(!world.answers.contains_key(&asked));
    world.ask(unlock(FILE, 1, ByteRange::EVERYTHING), true);
    world.settle();
    let here = world.ask(set(FILE, lock(3, Shared, 20, 30), false), true);
    assert!(world.answers.contains_key(&here));
}

#[test]
fn what_a_conversion_under_way_may_have_given_back_is_not_claimed() {
    let mut world = World::default();
    let whole = |owner, kind| Lock { space: LockSpace::Whole, ..lock(owner, kind, 0, u64::MAX) };
    world.ask(set(FILE, lock(1, Exclusive, 0, 10), false), false);
    world.ask(set(FILE, whole(5, Shared), false), false);
    world.settle();
    world.ask(set(FILE, lock(1, Shared, 0, 5), false), false);
    world.ask(set(FILE, whole(5, Exclusive), true), false);
    let held = world.locks.held();
    assert_eq!(held.len(), 1);
    assert_eq!(sorted(held[0].1.clone()), [lock(1, Shared, 0, 5), lock(1, Exclusive, 5, 10)]);
    world.settle();
    assert_eq!(sorted(world.locks.held()[0].1.clone()).len(), 3, "and is there when it has its answer");
}

#[test]
fn what_was_held_is_lost_with_the_session_and_asked_for_anew() {
    let mut world = World::default();
    world.ask(set(FILE, lock(1, Exclusive, 0, 10), false), true);
    let waits = world.ask(set(FILE, lock(2, Exclusive, 0, 10), true), true);
    world.leave(FILE);
    let (lost, moves) = world.locks.lose_all();
    assert_eq!(lost, [(FILE, FxHashSet::from_iter([(LockSpace::Range, LockOwner(1))]))]);
    assert_eq!(moves.sent.iter().map(|sent| sent.id).collect::<Vec<_>>(), [waits]);
    world.take(moves);
    world.execute();
    assert_eq!(world.answers[&waits], Ok(Outcome::Done));
    assert_eq!(world.locks.held(), [(FILE, vec![lock(2, Exclusive, 0, 10)])]);
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Operation),
    /// The right is recalled, or earned again.
    Rights(InodeId, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let inode = prop_oneof![Just(FILE), Just(OTHER)];
    let kind = prop_oneof![Just(Shared), Just(Exclusive)];
    let locks = (inode.clone(), 1u64..4, any::<bool>(), kind, 0u64..8, 1u64..6, 0u8..8).prop_map(
        |(inode, owner, is_whole, kind, start, length, what)| {
            let mut wish = lock(owner, kind, start, start + length);
            if is_whole {
                wish = Lock { space: LockSpace::Whole, range: ByteRange::EVERYTHING, ..wish };
            }
            let Lock { space, owner, range, .. } = wish;
            Step::Ask(match what {
                0 => Operation::TestLock { inode, lock: wish },
                1 | 2 => Operation::Unlock { inode, space, owner, range },
                3 => Operation::Unlock { inode, space, owner, range: ByteRange::EVERYTHING },
                4 | 5 => set(inode, wish, false),
                _ => set(inode, wish, true),
            })
        },
    );
    prop_oneof![8 => locks, 1 => (inode, any::<bool>()).prop_map(|(inode, is_ours)| Step::Rights(inode, is_ours))]
}

/// An authority that decides everything.
#[derive(Default)]
struct Reference {
    table: LockTable,
    waiting: BTreeMap<WaiterId, u64>,
    operations: BTreeMap<u64, Operation>,
    answers: BTreeMap<u64, Answer>,
}

impl Reference {
    fn ask(&mut self, id: u64, operation: &Operation) {
        self.operations.insert(id, operation.clone());
        let (answer, admitted) = decide(&mut self.table, operation);
        match answer {
            Ok(answer) => {
                self.answers.insert(id, answer);
            }
            Err(waiter) => {
                self.waiting.insert(waiter, id);
            }
        }
        for waiter in admitted {
            self.table.seen(waiter);
            self.answers.insert(self.waiting.remove(&waiter).unwrap(), Ok(Outcome::Done));
        }
    }

    /// Who waits for locks of the file asks anew, in the same order.
    fn ask_anew(&mut self, inode: InodeId) {
        for waiter in self.table.take_waiting(inode) {
            let id = self.waiting.remove(&waiter).unwrap();
            let operation = self.operations[&id].clone();
            self.ask(id, &operation);
        }
    }

    /// Owners that wait. An owner is a process: it does nothing meanwhile.
    fn busy(&self) -> FxHashSet<LockOwner> {
        self.waiting.values().filter_map(|id| owner(&self.operations[id])).map(|(_, owner)| owner).collect()
    }
}

/// The files on which requests wait that are decided here.
fn waited_for(world: &World) -> BTreeMap<u64, InodeId> {
    world.locks.waiting.values().map(|waiter| (waiter.id, waiter.operation.locked_inode().unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever decides, the answers and what is held are those of an authority that decides everything, whom waiters
    /// ask anew when they are handed over.
    #[test]
    fn it_makes_no_difference_who_decides(steps in proptest::collection::vec(step(), 0..80)) {
        let mut world = World::default();
        let mut reference = Reference::default();
        let mut ours = FxHashSet::default();
        let end = [FILE, OTHER].map(|inode| Step::Rights(inode, false));
        for step in steps.into_iter().chain(end) {
            let waited = waited_for(&world);
            let mut asked = None;
            match step {
                Step::Rights(inode, true) => {
                    ours.insert(inode);
                }
                Step::Rights(inode, false) => {
                    ours.remove(&inode);
                    world.leave(inode);
                }
                Step::Ask(operation) => {
                    if owner(&operation).is_some_and(|(_, owner)| reference.busy().contains(&owner)) {
                        continue;
                    }
                    let inode = operation.locked_inode().unwrap();
                    asked = Some((world.ask(operation.clone(), ours.contains(&inode)), operation));
                }
            }
            let here = waited_for(&world);
            let handed = waited.into_iter().filter(|(id, _)| !here.contains_key(id) && !world.answers.contains_key(id));
            let handed: BTreeSet<InodeId> = handed.map(|(_, inode)| inode).collect();
            handed.into_iter().for_each(|inode| reference.ask_anew(inode));
            if let Some((id, operation)) = asked {
                reference.ask(id, &operation);
            }
            world.settle();
            prop_assert_eq!(&world.answers, &reference.answers);
            // That a conversion under way has given the old lock back, a mount learns with the answer.
            let busy = reference.busy();
            let is_sure = |lock: &Lock| lock.space == LockSpace::Range || !busy.contains(&lock.owner);
            for inode in [FILE, OTHER] {
                let (mut held, mut expected) = (world.locks.table.of(inode, SELF), reference.table.of(inode, US));
                held.retain(is_sure);
                expected.retain(is_sure);
                prop_assert_eq!(sorted(held), sorted(expected));
            }
        }
        for inode in [FILE, OTHER] {
            prop_assert_eq!(sorted(world.authority.of(inode, US)), sorted(reference.table.of(inode, US)));
        }
    }
}
