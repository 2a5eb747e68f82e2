//! The checker on histories made by hand: good ones pass, and each kind of lie is found.

use crate::check::{Verdict, check};
use crate::history::{ABSENT, Action, Event, NEVER_RETURNED, Object, UNKNOWN_INODE, add_to_sum};
use crate::models::{State, prepare};

type Test = (&'static str, fn());

pub const TESTS: [Test; 15] = [
    ("reads beside a write may see either value", reads_beside_a_write),
    ("a stale read is found", stale_read),
    ("two reads beside a write that go back are found", going_back),
    ("a mount may answer what is old while its own change is in flight, and no longer", own_change_in_flight),
    ("a lost write is found", lost_write),
    ("a write that comes back is found", write_comes_back),
    ("a write of unknown fate may happen late, once, or never", unknown_write),
    ("two winners of one exclusive create are found", two_winners),
    ("a name that comes back is found", name_comes_back),
    ("a rename shows at no time under both names or neither", rename_is_atomic),
    ("a name that stands for another inode is found", wrong_inode),
    ("a create of unknown fate explains an inode that nobody knows", unknown_create),
    ("appends keep one order", appends),
    ("a lost and a doubled append are found", lost_append),
    ("a long history of many at once is decided", long_history),
];

const REGISTER: Object = Object::Register(0);

/// Each event by a mount of its own.
fn verdict(object: Object, first: u64, log: &[u64], events: &[(Action, u64, u64)]) -> bool {
    let by_mount: Vec<_> = events.iter().enumerate().map(|(mount, &event)| (mount, event)).collect();
    verdict_by_mount(object, first, log, &by_mount)
}

fn verdict_by_mount(object: Object, first: u64, log: &[u64], events: &[(usize, (Action, u64, u64))]) -> bool {
    let event = |&(mount, (action, call_ns, return_ns))| Event {
        object,
        action,
        how: "by hand",
        call_ns,
        return_ns,
        mount,
        worker: 0,
    };
    let events: Vec<Event> = events.iter().map(event).collect();
    let initial: State = [first, 0, 0, 0, 0, 0];
    let Ok(ready) = prepare(object, initial, &events, log) else { return false };
    match check(initial, &ready) {
        Verdict::Linearizable => true,
        Verdict::Violation(stuck) => {
            assert!(!stuck.candidates.is_empty(), "a violation shows what cannot come next");
            false
        }
        Verdict::Undecided(why) => panic!("{why}"),
    }
}

fn register(events: &[(Action, u64, u64)]) -> bool {
    verdict(REGISTER, 1, &[], events)
}

fn names(events: &[(Action, u64, u64)]) -> bool {
    verdict(Object::Names, 100, &[], events)
}

use Action::{Append, Create, Install, Length, List, Observe, Present, Read, Remove, Rename, Take, Write};

fn reads_beside_a_write() {
    assert!(register(&[(Write(2), 10, 20), (Read(1), 11, 12), (Read(2), 13, 14), (Read(2), 21, 22)]));
    assert!(register(&[(Write(2), 10, 20), (Write(3), 15, 25), (Read(3), 16, 18), (Read(2), 26, 27)]));
}

fn stale_read() {
    assert!(!register(&[(Write(2), 10, 20), (Read(1), 21, 22)]));
}

fn going_back() {
    assert!(!register(&[(Write(2), 10, 20), (Read(2), 11, 12), (Read(1), 13, 14)]));
}

fn own_change_in_flight() {
    let by_mount = |events: &[(usize, (Action, u64, u64))]| verdict_by_mount(REGISTER, 1, &[], events);
    let (write, seen) = ((0, (Write(2), 10, 20)), (1, (Read(2), 11, 12)));
    assert!(by_mount(&[write, seen, (0, (Read(1), 13, 14))]));
    assert!(!by_mount(&[write, seen, (1, (Read(1), 13, 14))]), "another mount");
    assert!(!by_mount(&[write, seen, (0, (Read(1), 21, 22))]), "the change has returned");
    let next = (0, (Write(3), 21, 30));
    assert!(!by_mount(&[write, next, (0, (Read(1), 22, 23))]), "a change before it has returned");
    assert!(
        !by_mount(&[(1, (Write(2), 5, 12)), (0, (Write(3), 10, 20)), (0, (Read(1), 13, 14))]),
        "the same of another"
    );
}

fn lost_write() {
    assert!(!register(&[(Write(2), 10, 20), (Write(3), 30, 40), (Read(2), 50, 60)]));
}

fn write_comes_back() {
    assert!(!register(&[
        (Write(2), 1, 9),
        (Read(2), 10, 11),
        (Write(3), 12, 13),
        (Read(3), 14, 15),
        (Read(2), 16, 17)
    ]));
}

fn unknown_write() {
    let never = NEVER_RETURNED;
    assert!(register(&[(Write(2), 1, never), (Read(1), 10, 11), (Read(2), 50, 51)]));
    assert!(register(&[(Write(2), 1, never), (Read(1), 10, 11)]));
    assert!(!register(&[(Write(2), 20, never), (Read(2), 10, 11)]), "not before its call");
    assert!(!register(&[(Write(2), 48, never), (Read(2), 19, 40), (Write(3), 34, 67)]), "nor beside an unread write");
    let twice = [(Write(2), 1, never), (Read(2), 10, 11), (Write(3), 12, 13), (Read(3), 14, 15), (Read(2), 16, 17)];
    assert!(!register(&twice), "not twice");
}

fn two_winners() {
    let (one, other) = (Create { slot: 1, inode: 7 }, Create { slot: 1, inode: 8 });
    assert!(!names(&[(one, 1, 10), (other, 2, 11)]));
    assert!(names(&[(one, 1, 10), (Remove { slot: 1 }, 3, 5), (other, 2, 11)]));
    assert!(names(&[(one, 1, 10), (Present { slot: 1 }, 2, 11)]));
    assert!(!names(&[(Present { slot: 1 }, 1, 2), (one, 3, 10)]), "refused, though nothing was there");
}

fn name_comes_back() {
    let (there, gone) = (Observe { slot: 0, inode: 100 }, Observe { slot: 0, inode: ABSENT });
    assert!(names(&[(there, 1, 2), (Remove { slot: 0 }, 3, 6), (there, 4, 5), (gone, 7, 8)]));
    assert!(!names(&[(Remove { slot: 0 }, 1, 2), (there, 3, 4)]));
    assert!(!names(&[(Remove { slot: 0 }, 1, 9), (gone, 2, 3), (there, 4, 5)]));
    assert!(!names(&[(Remove { slot: 0 }, 1, 5), (Remove { slot: 0 }, 2, 6)]), "removed twice");
}

fn rename_is_atomic() {
    let rename = (Rename { from: 0, to: 1 }, 1, 20);
    let (new, old_gone) = (Observe { slot: 1, inode: 100 }, Observe { slot: 0, inode: ABSENT });
    assert!(names(&[rename, (new, 2, 3), (old_gone, 4, 5)]));
    assert!(!names(&[rename, (new, 2, 3), (Observe { slot: 0, inode: 100 }, 4, 5)]), "under both names");
    assert!(!names(&[rename, (old_gone, 2, 3), (Observe { slot: 1, inode: ABSENT }, 4, 5)]), "under neither");
}

fn wrong_inode() {
    let install = (Install { slot: 0, inode: 9 }, 1, 2);
    assert!(names(&[install, (Observe { slot: 0, inode: 9 }, 3, 4), (Take { slot: 0, inode: 9 }, 5, 6)]));
    assert!(!names(&[install, (Observe { slot: 0, inode: 100 }, 3, 4)]));
    assert!(!names(&[install, (Take { slot: 0, inode: 100 }, 3, 4)]));
    assert!(!names(&[install, (Observe { slot: 0, inode: 55 }, 3, 4)]), "nobody made it");
}

fn unknown_create() {
    let create = (Create { slot: 1, inode: UNKNOWN_INODE }, 5, NEVER_RETURNED);
    let seen = Observe { slot: 1, inode: 55 };
    assert!(names(&[create, (seen, 6, 7), (Remove { slot: 1 }, 8, 9)]));
    assert!(!names(&[create, (seen, 1, 2)]), "before its call");
    assert!(!names(&[create, (seen, 6, 7), (Observe { slot: 1, inode: ABSENT }, 8, 9)]), "nobody removed it");
}

fn list(records: &[u64]) -> Action {
    List { count: records.len() as u64, sum: records.iter().fold(0, |sum, &record| add_to_sum(sum, record)) }
}

fn appends() {
    let log = |events: &[(Action, u64, u64)]| verdict(Object::Log, 0, &[5, 6, 7], events);
    let (five, six, seven) = (Append(5), Append(6), Append(7));
    assert!(log(&[(five, 1, 10), (six, 2, 9), (list(&[5]), 3, 4), (Length(2), 11, 12), (seven, 20, 21)]));
    assert!(!log(&[(six, 1, 2), (five, 3, 4), (seven, 5, 6)]), "against real time");
    assert!(!log(&[(five, 1, 2), (six, 3, 4), (list(&[6]), 5, 6), (seven, 7, 8)]), "another order");
    assert!(!log(&[(five, 1, 2), (six, 3, 4), (Length(1), 5, 6), (seven, 7, 8)]), "a stale size");
    assert!(log(&[(five, 1, 2), (six, 3, 4), (seven, 5, NEVER_RETURNED), (list(&[5, 6, 7]), 7, 8)]));
}

fn lost_append() {
    let events = [(Append(5), 1, 2), (Append(6), 3, 4)];
    assert!(!verdict(Object::Log, 0, &[5], &events));
    assert!(!verdict(Object::Log, 0, &[5, 6, 6], &events));
    assert!(verdict(Object::Log, 0, &[5, 6], &events));
}

/// Eight at once, one of them all the time, without any order by real time between neighbours.
fn long_history() {
    let mut events = vec![(Write(1_000_000), 0, 1_000_000), (Read(1), 0, 1)];
    for at in 1..4_000 {
        events.push((Write(at + 1), at * 10, at * 10 + 60));
        events.push((Read(at + 1), at * 10 + 1, at * 10 + 70));
    }
    assert!(register(&events));
    events.push((Read(77), 50_000, 50_001));
    assert!(!register(&events));
}
