//! What each object may do: the sequential specification the checker holds
//! observations against.
//!
//! Invariant: `step` gives the state after an action, or nothing when the action
//! with its result cannot happen in that state.

use std::collections::HashSet;

use crate::history::{ABSENT, Action, Event, Object, SLOTS, UNKNOWN_INODE, add_to_sum};
use crate::loss::Loss;

/// A register uses the first word, the log one for its length and one for its sum, names one word each.
pub type State = [u64; SLOTS];

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
        // To which states a loss leads depends on what came before: the search knows.
        Action::Sync | Action::Lose => true,
    };
    holds.then_some(next)
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
        Object::Names | Object::Folders => Ok(with_unknown_inodes(initial, &events)),
    }
}

/// While a change is in flight, its own mount may answer what was true before it, even if another mount has seen the
/// change already (see `docs/leases.md`). So a read beside such a change may be as old as the change's call, but
/// older than no change that had returned.
fn beside_own_changes(events: &[Event]) -> Vec<Event> {
    let is_change = |event: &&Event| !event.action.is_read() && event.action != Action::Lose;
    let changes: Vec<&Event> = events.iter().filter(|event| is_change(event) && !event.is_unknown()).collect();
    let mut returns: Vec<u64> = changes.iter().map(|change| change.return_ns).collect();
    returns.sort_unstable();
    let oldest = |read: &Event| {
        let own = changes.iter().filter(|change| change.mount == read.mount && change.return_ns > read.call_ns);
        let in_flight = own.map(|change| change.call_ns).min()?;
        let returned = returns[..returns.partition_point(|end| *end < read.call_ns)].last().copied();
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
        if let Action::Create { inode, .. } | Action::Install { inode, .. } = event.action {
            known.insert(inode);
        }
    }
    let mut ready = events.to_vec();
    for event in &mut ready {
        if let Action::Observe { inode, .. } | Action::Take { inode, .. } = &mut event.action
            && !known.contains(inode)
        {
            *inode = UNKNOWN_INODE;
        }
    }
    ready
}
