//! What each object may do: the sequential specification the checker holds
//! observations against.
//!
//! Invariant: `step` gives the state after an action, or nothing when the action
//! with its result cannot happen in that state.

use std::collections::HashSet;

use crate::history::*;
use crate::loss::Loss;

/// A register uses the first word, the log one for its length and one for its sum, names one word each. For those of a
/// plot see [`PLOT_PARTS`].
pub type State = [u64; SLOTS];

/// Every permission bit that nothing but `chmod` changes.
pub const MODE_BITS: u64 = 0o1777;
/// Of a file that was just made in a plot.
const MODE_AT_FIRST: u64 = 0o600;
/// The word of a file of which nothing is known. No file has it.
const ANYTHING: u64 = u64::MAX;

/// The word of a file in a plot.
pub fn file_word(value: u64, mode: u64) -> u64 {
    (value << 12) | mode
}

/// The word of a log in a plot, with one record more.
pub fn chained(word: u64, record: u64) -> u64 {
    (mix(word ^ mix(record)) & !LINKS_MASK) | ((word + 1) & LINKS_MASK)
}

/// Where the word of a plot's file is that has a name.
fn word_of(state: &State, inode: u64) -> Option<usize> {
    (0..LOG_SLOT).step_by(2).find(|&slot| state[slot] == inode).map(|slot| slot + 1)
}

pub fn step(state: State, action: &Action) -> Option<State> {
    let mut next = state;
    let holds = match *action {
        Action::Write(value) => {
            next[0] = value;
            true
        }
        Action::Read(value) => state[0] == value,
        Action::Append(record) => {
            (next[0], next[1]) = (state[0] + 1, add_to_sum(state[1], record));
            true
        }
        Action::AppendAs { record, count, sum } => {
            (next[0], next[1]) = (state[0] + 1, add_to_sum(state[1], record));
            (next[0], next[1]) == (count, sum)
        }
        Action::List { count, sum } => (state[0], state[1]) == (count, sum),
        Action::Length(count) => state[0] == count,
        Action::Observe { slot, inode } => state[slot] == inode,
        Action::Present { slot } => state[slot] != ABSENT,
        Action::Create { slot, inode } => {
            next[slot] = inode;
            state[slot] == ABSENT
        }
        Action::Remove { slot } => {
            next[slot] = ABSENT;
            state[slot] != ABSENT
        }
        Action::Rename { from, to } => {
            next[from] = ABSENT;
            next[to] = state[from];
            state[from] != ABSENT
        }
        Action::Install { slot, inode } => {
            next[slot] = inode;
            true
        }
        Action::Take { slot, inode } => {
            next[slot] = ABSENT;
            state[slot] != ABSENT && (inode == UNKNOWN_INODE || state[slot] == inode)
        }
        Action::Make { file, inode } => {
            let word = if inode == UNKNOWN_INODE { ANYTHING } else { file_word(0, MODE_AT_FIRST) };
            (next[2 * file], next[2 * file + 1]) = (inode, word);
            state[2 * file] == ABSENT
        }
        Action::Unmake { file } => {
            (next[2 * file], next[2 * file + 1]) = (ABSENT, 0);
            state[2 * file] != ABSENT
        }
        Action::Move { from } => {
            let (from, to) = (2 * from, 2 - 2 * from);
            (next[from], next[from + 1]) = (ABSENT, 0);
            (next[to], next[to + 1]) = (state[from], state[from + 1]);
            state[from] != ABSENT
        }
        // A file without a name is not followed, nor one that nobody can tell from others.
        Action::Put { inode, value } => {
            if let Some(at) = word_of(&state, inode).filter(|&at| state[at] != ANYTHING) {
                next[at] = file_word(value, state[at] & 0o7777);
            }
            true
        }
        Action::SetMode { inode, mode } => {
            if let Some(at) = word_of(&state, inode).filter(|&at| state[at] != ANYTHING) {
                next[at] = file_word(state[at] >> 12, mode);
            }
            true
        }
        Action::Get { inode, value } => {
            let word = word_of(&state, inode).map(|at| state[at]);
            word.is_none_or(|word| word == ANYTHING || word >> 12 == value)
        }
        Action::Look { inode, mode, is_empty } => {
            let is_it = |word: u64| word & 0o7777 == mode && (word >> 12 == 0) == is_empty;
            let word = word_of(&state, inode).map(|at| state[at]);
            word.is_none_or(|word| word == ANYTHING || is_it(word))
        }
        Action::Chain(record) => {
            next[LOG_SLOT] = chained(state[LOG_SLOT], record);
            true
        }
        Action::Unchain => {
            next[LOG_SLOT] = 0;
            true
        }
        Action::Links(count) => state[LOG_SLOT] & LINKS_MASK == count,
        // To which states a loss leads depends on what came before: the search knows.
        Action::Sync | Action::Lose => true,
    };
    holds.then_some(next)
}

/// Whether a client must have flushed what it changed in this word of the state before another may do this.
pub fn flushes(object: Object, state: &State, action: &Action, word: usize) -> bool {
    match (object, *action) {
        (_, Action::Sync) => false,
        (Object::Names, Action::Rename { from, to }) => [from, to].contains(&word),
        (
            Object::Names,
            Action::Observe { slot, .. }
            | Action::Present { slot }
            | Action::Create { slot, .. }
            | Action::Remove { slot }
            | Action::Install { slot, .. }
            | Action::Take { slot, .. },
        ) => slot == word,
        (Object::Plot(_), Action::Chain(_) | Action::Unchain | Action::Links(_)) => word == LOG_SLOT,
        (Object::Plot(_), Action::Observe { slot: LOG_SLOT, .. }) => word == LOG_SLOT,
        (
            Object::Plot(_),
            Action::Put { inode, .. }
            | Action::SetMode { inode, .. }
            | Action::Get { inode, .. }
            | Action::Look { inode, .. },
        ) => word_of(state, inode).is_some_and(|at| [at - 1, at].contains(&word)),
        (Object::Plot(_), _) => [0, 2, SUBDIRECTORY_SLOT].contains(&word),
        _ => true,
    }
}

/// Whether the read can tell before from after the change: it looks at the same names, the same file, or the same log.
fn concerns(change: &Event, read: &Event) -> bool {
    #[derive(PartialEq)]
    enum Part {
        Names,
        File(u64),
        Log,
    }
    let part = |action: &Action| match *action {
        Action::Put { inode, .. }
        | Action::SetMode { inode, .. }
        | Action::Get { inode, .. }
        | Action::Look { inode, .. } => Part::File(inode),
        Action::Chain(_) | Action::Unchain | Action::Links(_) | Action::Observe { slot: LOG_SLOT, .. } => Part::Log,
        _ => Part::Names,
    };
    !matches!(read.object, Object::Plot(_)) || part(&change.action) == part(&read.action)
}

/// What can be said of an object's events without a search: events ready for the checker, or the event that no
/// order explains, and why.
pub fn prepare(
    object: Object,
    initial: State,
    events: &[Event],
    final_log: &[u64],
) -> Result<Vec<Event>, (Event, &'static str)> {
    let events = beside_own_changes(events);
    match object {
        Object::Register(_) | Object::Mode | Object::Size => Ok(without_unread_writes(initial, &events)),
        Object::Log => log_positions(&events, final_log),
        Object::Names | Object::Folders | Object::Plot(_) => Ok(with_unknown_inodes(initial, &events)),
    }
}

/// While a change is in flight, its own mount may answer what was true before it, even if another mount has seen the
/// change already (see `docs/leases.md`). So a read beside such a change may be as old as the change's call, but
/// older than no change that had returned.
fn beside_own_changes(events: &[Event]) -> Vec<Event> {
    let is_change = |event: &&Event| !event.action.is_read() && event.action != Action::Lose;
    let changes: Vec<&Event> = events.iter().filter(|event| is_change(event) && !event.is_unknown()).collect();
    let oldest = |read: &Event| {
        let of_read = || changes.iter().filter(|change| concerns(change, read));
        let own = of_read().filter(|change| change.mount == read.mount && change.return_ns > read.call_ns);
        let in_flight = own.map(|change| change.call_ns).min()?;
        let returned = of_read().map(|change| change.return_ns).filter(|end| *end < read.call_ns).max();
        Some(in_flight.max(returned.map_or(0, |end| end + 1)))
    };
    let mut ready = events.to_vec();
    for read in ready.iter_mut().filter(|event| event.action.is_read() && event.action != Action::Sync) {
        read.call_ns = oldest(read).map_or(read.call_ns, |oldest_ns| oldest_ns.min(read.call_ns));
    }
    ready
}

/// A write that may or may not have happened and that nobody read explains nothing: without it, every order that
/// held with it still holds.
fn without_unread_writes(initial: State, events: &[Event]) -> Vec<Event> {
    let mut read: HashSet<u64> = HashSet::from([initial[0]]);
    for event in events {
        if let Action::Read(value) = event.action {
            read.insert(value);
        }
    }
    let explains = |event: &&Event| match event.action {
        Action::Write(value) => !event.is_unknown() || read.contains(&value),
        _ => true,
    };
    events.iter().filter(explains).copied().collect()
}

/// The last list names the order of all appends, so every other event is about a prefix of it. Only a client that lost
/// what it had appended saw something else.
fn log_positions(events: &[Event], final_log: &[u64]) -> Result<Vec<Event>, (Event, &'static str)> {
    let mut sums = vec![0];
    for &record in final_log {
        sums.push(add_to_sum(sums[sums.len() - 1], record));
    }
    let loss = Loss::find(events);
    let may_be_lost = |event: &Event| loss.is_some_and(|loss| loss.is_by_client(event));
    let mut ready = Vec::with_capacity(events.len());
    for event in events {
        let mut event = *event;
        match event.action {
            Action::Append(record) => {
                let mut positions = final_log.iter().enumerate().filter(|(_, other)| **other == record);
                match (positions.next(), positions.next()) {
                    (Some((position, _)), None) => {
                        let count = position as u64 + 1;
                        event.action = Action::AppendAs { record, count, sum: sums[position + 1] };
                    }
                    (Some(_), Some(_)) => return Err((event, "the record is in the file twice")),
                    (None, _) if may_be_lost(&event) => {}
                    (None, _) if event.is_unknown() => continue,
                    (None, _) => return Err((event, "the record is not in the file")),
                }
            }
            Action::List { count, sum } if sums.get(count as usize) != Some(&sum) && !may_be_lost(&event) => {
                return Err((event, "what was read is not the beginning of what is there at the end"));
            }
            _ => {}
        }
        ready.push(event);
    }
    Ok(ready)
}

/// Inodes that no creator knows are of files whose creator died: they count as one, which weakens the check only
/// where two such files of one round are mixed up.
fn with_unknown_inodes(initial: State, events: &[Event]) -> Vec<Event> {
    let mut known: HashSet<u64> = initial.into_iter().chain([ABSENT]).collect();
    for event in events {
        if let Action::Create { inode, .. } | Action::Install { inode, .. } | Action::Make { inode, .. } = event.action
        {
            known.insert(inode);
        }
    }
    let mut ready = events.to_vec();
    for event in &mut ready {
        // What this observes is no inode.
        if matches!((event.object, event.action), (Object::Plot(_), Action::Observe { slot: LOG_SLOT, .. })) {
            continue;
        }
        if let Action::Observe { inode, .. }
        | Action::Take { inode, .. }
        | Action::Put { inode, .. }
        | Action::Get { inode, .. }
        | Action::SetMode { inode, .. }
        | Action::Look { inode, .. } = &mut event.action
            && !known.contains(inode)
        {
            *inode = UNKNOWN_INODE;
        }
    }
    ready
}
