//! The checker on histories made by hand: good ones pass, and each kind of lie is found.

use crate::check::{Verdict, check};
use crate::history::{ABSENT, Action, Event, LOG_SLOT, NEVER_RETURNED, Object, Random, UNKNOWN_INODE, add_to_sum};
use crate::loss::FLUSHED_AFTER_NS;
use crate::models::{State, chained, prepare, step};

type Test = (&'static str, fn());

pub const TESTS: [Test; 27] = [
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
    ("a client that is killed may lose the end of what it wrote", unflushed_writes),
    ("a lost write that another mount has seen is found", lost_though_seen),
    ("a lost write that was synced is found", lost_though_synced),
    ("a lost write that is older than the client's bound is found", lost_though_old),
    ("a lost write of a client that lives, or that comes back, is found", lost_otherwise),
    ("a client that is killed may lose the end of what it appended", unflushed_appends),
    ("a client that is killed may lose the end of what it did to names", unflushed_names),
    ("the files of a plot keep what they are wherever they are named", files_of_plot),
    ("a client that is killed may lose the end of all that it did to a plot", unflushed_plot),
    ("a lost change of a plot that another mount has seen, or that came before such a one, is found", plot_seen),
    ("the search finds what trying every order finds", every_order),
    ("a long history with a loss at its end is decided", long_history_with_loss),
    ("a long history of many at once is decided", long_history),
];

const REGISTER: Object = Object::Register(0);

fn event_of(object: Object, mount: usize, (action, call_ns, return_ns): (Action, u64, u64)) -> Event {
    Event { object, action, how: "by hand", call_ns, return_ns, mount, worker: 0 }
}

/// Each event by a mount of its own.
fn verdict(object: Object, first: u64, log: &[u64], events: &[(Action, u64, u64)]) -> bool {
    let by_mount: Vec<_> = events.iter().enumerate().map(|(mount, &event)| (mount, event)).collect();
    verdict_by_mount(object, first, log, &by_mount)
}

fn verdict_by_mount(object: Object, first: u64, log: &[u64], events: &[(usize, (Action, u64, u64))]) -> bool {
    let events: Vec<Event> = events.iter().map(|&(mount, event)| event_of(object, mount, event)).collect();
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

use Action::{Append, Create, Install, Length, List, Lose, Observe, Present, Read, Remove, Rename, Sync, Take, Write};
use Action::{Chain, Get, Links, Look, Make, Move, Put, SetMode, Unmake};

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

/// Mount 0 is killed at 100, and is dead at 110.
const KILL: (usize, (Action, u64, u64)) = (0, (Lose, 100, 110));

/// What two mounts did to a register that was 1, with that kill and without.
fn with_kill(events: &[(usize, (Action, u64, u64))]) -> bool {
    let all = [events, &[KILL]].concat();
    let (with, without) = (verdict_by_mount(REGISTER, 1, &[], &all), verdict_by_mount(REGISTER, 1, &[], events));
    assert!(with || !without, "a kill forbids nothing");
    with
}

fn unflushed_writes() {
    let writes = [(0, (Write(2), 10, 20)), (0, (Write(3), 30, 40)), (0, (Read(3), 41, 42)), (0, (Write(4), 50, 60))];
    for survivor in 1..=4 {
        let seen = [(1, (Read(survivor), 120, 130)), (1, (Read(survivor), 140, 150))];
        assert!(with_kill(&[&writes[..], &seen].concat()), "{survivor}");
        assert_eq!(verdict_by_mount(REGISTER, 1, &[], &[&writes[..], &seen].concat()), survivor == 4);
    }
    assert!(!with_kill(&[&writes[..], &[(1, (Read(5), 120, 130))]].concat()), "nobody wrote it");
    assert!(!with_kill(&[&writes[..], &[(0, (Read(2), 70, 80))]].concat()), "its own client sees its writes");
    assert!(with_kill(&[&writes[..], &[(1, (Read(2), 90, 130))]].concat()), "a read that waited for the end");
    let after = [(1, (Read(2), 120, 130)), (1, (Write(9), 140, 150)), (0, (Read(9), 160, 170))];
    assert!(with_kill(&[&writes[..], &after].concat()), "others go on");
    let at_the_end = (0, (Write(5), 95, NEVER_RETURNED));
    assert!(with_kill(&[&writes[..], &[at_the_end, (1, (Read(5), 120, 130))]].concat()));
    assert!(with_kill(&[&writes[..], &[at_the_end, (1, (Read(2), 120, 130))]].concat()));
}

fn lost_though_seen() {
    let (write, next) = ((0, (Write(2), 10, 20)), (0, (Write(3), 50, 60)));
    let (seen, lost) = ((1, (Read(2), 30, 40)), (1, (Read(1), 120, 130)));
    assert!(with_kill(&[write, lost]));
    assert!(!with_kill(&[write, seen, lost]));
    assert!(!with_kill(&[write, seen, next, lost]), "the same of a write before the one that is lost");
    assert!(with_kill(&[write, seen, next, (1, (Read(2), 120, 130))]));
    assert!(!with_kill(&[write, (1, (Write(8), 30, 40)), next, (1, (Read(2), 120, 130))]), "overwritten by another");
    assert!(with_kill(&[write, (1, (Write(8), 30, 40)), next, (1, (Read(8), 120, 130))]));
    let beside = (1, (Read(2), 30, 120));
    assert!(!with_kill(&[write, beside, (1, (Read(1), 130, 140))]), "seen by a read that returned after the kill");
}

fn lost_though_synced() {
    let (write, sync, next) = ((0, (Write(2), 10, 20)), (0, (Sync, 30, 40)), (0, (Write(3), 50, 60)));
    assert!(!with_kill(&[write, sync, (1, (Read(1), 120, 130))]));
    assert!(!with_kill(&[write, sync, next, (1, (Read(1), 120, 130))]));
    assert!(with_kill(&[write, sync, next, (1, (Read(2), 120, 130))]));
    assert!(with_kill(&[write, (0, (Sync, 15, 40)), (1, (Read(1), 120, 130))]), "a sync beside the write");
}

fn lost_though_old() {
    let late = FLUSHED_AFTER_NS;
    let lose_at = |at: u64| {
        let events = [(0, (Write(2), 10, 20)), (0, (Lose, at, at + 1)), (1, (Read(1), at + 2, at + 3))];
        verdict_by_mount(REGISTER, 1, &[], &events)
    };
    assert!(lose_at(late + 20));
    assert!(!lose_at(late + 21));
}

fn lost_otherwise() {
    let lost = (1, (Read(1), 120, 130));
    assert!(!with_kill(&[(1, (Write(2), 10, 20)), lost]), "a write of a client that lives");
    assert!(!with_kill(&[(0, (Write(2), 111, 115)), lost]), "a write of the next client of the mount");
    let write = (0, (Write(2), 10, 20));
    assert!(!with_kill(&[write, (1, (Read(2), 112, 113)), lost]), "it had survived");
    assert!(!with_kill(&[write, lost, (1, (Read(2), 140, 150))]), "it was gone");
    assert!(!with_kill(&[write, lost, (0, (Read(2), 140, 150))]), "it was gone for the next client, too");
}

fn unflushed_appends() {
    let log = |survivors: &[u64], events: &[(usize, (Action, u64, u64))]| {
        let seen_last = (1, (list(survivors), 200, 201));
        verdict_by_mount(Object::Log, 0, survivors, &[events, &[KILL, seen_last]].concat())
    };
    let appends =
        [(1, (Append(5), 10, 12)), (0, (Append(6), 20, 22)), (0, (Append(7), 30, 32)), (0, (Append(8), 40, 42))];
    let own = [(0, (list(&[5, 6, 7, 8]), 50, 52)), (0, (Length(4), 50, 52))];
    let all = |more: &[(usize, (Action, u64, u64))]| [&appends[..], &own, more].concat();
    assert!(log(&[5, 6, 7, 8], &all(&[(1, (Length(4), 120, 121))])));
    assert!(log(&[5, 6], &all(&[(1, (list(&[5, 6]), 120, 121))])));
    assert!(log(&[5, 6, 9], &all(&[(1, (Append(9), 120, 121)), (1, (list(&[5, 6, 9]), 122, 123))])));
    assert!(!log(&[5, 7, 8], &all(&[])), "one of the middle is lost");
    assert!(!log(&[6], &all(&[])), "another mount's is lost");
    assert!(!log(&[5, 6], &all(&[(1, (Length(3), 60, 61))])), "seen by another");
    assert!(!log(&[5, 6], &all(&[(0, (Sync, 60, 61))])), "synced");
    assert!(!log(&[5, 6], &all(&[(0, (list(&[5, 7]), 60, 61))])), "its own client sees what it appended");
    assert!(!verdict_by_mount(Object::Log, 0, &[5, 6], &all(&[])), "without a kill");
}

fn unflushed_names() {
    let names =
        |events: &[(usize, (Action, u64, u64))]| verdict_by_mount(Object::Names, 100, &[], &[events, &[KILL]].concat());
    let see = |slot, inode, at| (1, (Observe { slot, inode }, at, at + 1));
    let changes = [(0, (Create { slot: 2, inode: 7 }, 10, 12)), (0, (Rename { from: 0, to: 1 }, 20, 22))];
    let all = |more: &[(usize, (Action, u64, u64))]| [&changes[..], more].concat();
    assert!(names(&all(&[see(2, 7, 120), see(1, 100, 122), see(0, ABSENT, 124)])));
    assert!(names(&all(&[see(2, 7, 120), see(1, ABSENT, 122), see(0, 100, 124)])));
    assert!(names(&all(&[see(2, ABSENT, 120), see(1, ABSENT, 122), see(0, 100, 124)])));
    assert!(!names(&all(&[see(2, ABSENT, 120), see(1, 100, 122)])), "the first is lost, and not the second");
    assert!(!names(&all(&[see(0, ABSENT, 120), see(1, ABSENT, 122)])), "half of a rename is lost");
    assert!(!names(&all(&[see(2, 7, 30), see(2, ABSENT, 120)])), "seen by another");
    let beside = (1, (Create { slot: 3, inode: 8 }, 5, 60));
    assert!(names(&all(&[beside, see(2, ABSENT, 120), see(3, 8, 122)])), "another change may have come first");
    assert!(!names(&all(&[beside, see(3, ABSENT, 120)])), "another mount's change is lost");
}

fn plot(events: &[(usize, (Action, u64, u64))]) -> bool {
    verdict_by_mount(Object::Plot(0), 0, &[], events)
}

fn files_of_plot() {
    let made = [
        (0, (Make { file: 0, inode: 7 }, 10, 11)),
        (0, (Put { inode: 7, value: 5 }, 12, 13)),
        (0, (Move { from: 0 }, 14, 15)),
        (0, (SetMode { inode: 7, mode: 0o644 }, 16, 17)),
    ];
    let then = |more: &[(usize, (Action, u64, u64))]| plot(&[&made[..], more].concat());
    let look = |mode, is_empty| (1, (Look { inode: 7, mode, is_empty }, 20, 21));
    assert!(then(&[look(0o644, false), (1, (Get { inode: 7, value: 5 }, 22, 23))]));
    assert!(then(&[(1, (Observe { slot: 2, inode: 7 }, 20, 21)), (1, (Observe { slot: 0, inode: ABSENT }, 22, 23))]));
    assert!(!then(&[(1, (Get { inode: 7, value: 4 }, 22, 23))]));
    assert!(!then(&[look(0o600, false)]) && !then(&[look(0o644, true)]));
    assert!(then(&[(1, (Unmake { file: 1 }, 20, 21)), (1, (Get { inode: 7, value: 4 }, 22, 23))]), "it has no name");
    assert!(!then(&[(1, (Unmake { file: 0 }, 20, 21))]));
    let appended = [(0, (Chain(5), 10, 11)), (1, (Chain(6), 12, 13))];
    let list = |records: &[u64]| {
        let inode = records.iter().fold(0, |word, &record| chained(word, record));
        (0, (Observe { slot: LOG_SLOT, inode }, 20, 21))
    };
    assert!(plot(&[&appended[..], &[list(&[5, 6]), (0, (Links(2), 22, 23))]].concat()));
    assert!(!plot(&[&appended[..], &[list(&[6, 5])]].concat()));
    assert!(!plot(&[&appended[..], &[(0, (Links(1), 20, 21))]].concat()));
}

/// A client makes a file, writes to it, and appends to the log; then it is killed.
const OF_CLIENT: [(usize, (Action, u64, u64)); 3] =
    [(0, (Make { file: 0, inode: 7 }, 10, 11)), (0, (Put { inode: 7, value: 5 }, 12, 13)), (0, (Chain(9), 14, 15))];

fn survives(before: &[(usize, (Action, u64, u64))], inode: u64, value: Option<u64>, links: u64) -> bool {
    let mut after = vec![(1, (Observe { slot: 0, inode }, 120, 121)), (1, (Links(links), 124, 125))];
    after.extend(value.map(|value| (1, (Get { inode, value }, 122, 123))));
    plot(&[&OF_CLIENT[..], before, &[KILL], &after].concat())
}

fn unflushed_plot() {
    assert!(survives(&[], 7, Some(5), 1) && survives(&[], 7, Some(5), 0) && survives(&[], 7, Some(0), 0));
    assert!(survives(&[], ABSENT, None, 0));
    assert!(!survives(&[], 7, Some(0), 1), "the middle is lost, and not the end");
    assert!(!survives(&[], ABSENT, None, 1), "the beginning is lost, and not the end");
    assert!(!survives(&[(0, (Sync, 30, 31))], 7, Some(5), 0), "synced");
    assert!(survives(&[(1, (Sync, 30, 31))], 7, Some(5), 0), "another mount has synced what it did itself");
}

fn plot_seen() {
    let seen = |action| [(1, (action, 30, 31))];
    let named = seen(Observe { slot: 0, inode: 7 });
    assert!(survives(&named, 7, Some(0), 0), "the name was seen, and what came later is lost");
    assert!(!survives(&named, ABSENT, None, 0));
    let read = seen(Get { inode: 7, value: 5 });
    assert!(survives(&read, 7, Some(5), 0) && !survives(&read, 7, Some(0), 0) && !survives(&read, ABSENT, None, 0));
    assert!(!survives(&seen(Links(1)), 7, Some(0), 1) && !survives(&seen(Links(1)), 7, Some(5), 0));
    let written = seen(Put { inode: 7, value: 6 });
    assert!(survives(&written, 7, Some(6), 0) && !survives(&written, 7, Some(5), 0));
}

/// Whether these events can follow those of the trail, each of which sealed or not and led to a state.
fn explained(state: State, left: &[Event], trail: &mut Vec<(bool, State)>) -> bool {
    if left.iter().all(Event::is_unknown) {
        return true;
    }
    let earliest_return = left.iter().map(|event| event.return_ns).min().unwrap_or(u64::MAX);
    (0..left.len()).filter(|&at| left[at].call_ns <= earliest_return).any(|at| {
        let event = left[at];
        let since_seal = || {
            let seal = trail.iter().rposition(|(seals, _)| *seals).unwrap_or_default();
            trail[seal..].iter().map(|(_, state)| *state).collect()
        };
        let nexts: Vec<State> = match event.action {
            Lose => since_seal(),
            action => step(state, &action).into_iter().collect(),
        };
        let rest = [&left[..at], &left[at + 1..]].concat();
        nexts.into_iter().any(|next| {
            let of_client = event.mount == 0 && event.call_ns <= KILL.1.2;
            trail.push((of_client == (event.action == Sync), next));
            let is_explained = explained(next, &rest, trail);
            trail.pop();
            is_explained
        })
    })
}

fn every_order() {
    let mut random = Random::new(1);
    let mut good = [0; 2];
    for _ in 0..20_000 {
        let mut below = |bound| random.below(bound);
        let has_kill = below(4) > 0;
        let mut events: Vec<Event> = Vec::new();
        for _ in 0..2 + below(7) {
            let action = match below(9) {
                0..4 => Write(below(4)),
                4..8 => Read(below(4)),
                _ => Sync,
            };
            let call_ns = below(160);
            let is_unknown = matches!(action, Write(_)) && below(6) == 0;
            let return_ns = if is_unknown { NEVER_RETURNED } else { call_ns + 1 + below(40) };
            events.push(event_of(REGISTER, below(2) as usize, (action, call_ns, return_ns)));
        }
        events.extend(has_kill.then(|| event_of(REGISTER, KILL.0, KILL.1)));
        let initial: State = [1, 0, 0, 0, 0, 0];
        let expected = explained(initial, &events, &mut vec![(true, initial)]);
        let found = matches!(check(initial, &events), Verdict::Linearizable);
        let text =
            |event: &Event| format!("\n{} {:?} {} {}", event.mount, event.action, event.call_ns, event.return_ns);
        assert_eq!(found, expected, "found, expected{}", events.iter().map(text).collect::<String>());
        good[usize::from(has_kill)] += u32::from(expected);
    }
    assert!(good.iter().all(|good| (1_000..15_000).contains(good)), "{good:?} explained: both kinds are tried");
}

/// Two mounts work on one register until one of them is killed, then the other alone.
fn long_history_with_loss() {
    let kill_at = 30_000;
    let mut events = vec![(0, (Lose, kill_at, kill_at + 100))];
    for at in 1..6_000 {
        let (start, mount) = (at * 10, at as usize % 2);
        let mount = if start > kill_at - 200 { usize::from(start > kill_at) } else { mount };
        events.push((mount, (Write(at + 1), start, start + 60)));
        events.push((mount, (Read(at + 1), start + 1, start + 70)));
    }
    assert!(verdict_by_mount(REGISTER, 1, &[], &events));
    let mut lost = events.clone();
    lost.retain(|(_, (_, start, _))| *start <= kill_at);
    let reads = |value| [&lost[..], &[(1, (Read(value), kill_at + 200, kill_at + 210))]].concat();
    let last = kill_at / 10;
    assert!(verdict_by_mount(REGISTER, 1, &[], &reads(last - 10)));
    assert!(!verdict_by_mount(REGISTER, 1, &[], &reads(last - 500)));
}
