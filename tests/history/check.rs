//! Is there an order of all events of one object that respects real time and that
//! the object's specification allows? (Wing and Gong 1993, with the memory of
//! visited configurations by Lowe 2017, as in the checker porcupine.)
//!
//! Invariant: `Linearizable` only if such an order was found, `Violation` only if
//! every order was tried. A search that reaches its bound is neither.

use std::collections::{HashMap, HashSet};

use crate::history::{Action, Event};
use crate::loss::{Loss, Unflushed};
use crate::models::{State, step};

/// Configurations to visit before the search gives up.
pub const CONFIGURATIONS_MAX: usize = 1_000_000;
/// The same for a search that only looks for a better explanation.
const EXPLANATION_MAX: usize = 20_000;
/// Changes of unknown fate that one search can hold: bits of a word.
pub const UNKNOWN_MAX: usize = 64;
/// How much of the longest order an explanation shows.
const SHOWN_MAX: usize = 10;

pub enum Verdict {
    Linearizable,
    Violation(Stuck),
    Undecided(&'static str),
}

/// The furthest that any order got.
#[derive(Default)]
pub struct Stuck {
    /// How many events with a known end are in that order, of how many.
    pub ordered: usize,
    pub total: usize,
    /// The end of that order.
    pub last: Vec<Event>,
    pub state: State,
    /// What could have come next by its time, and cannot.
    pub candidates: Vec<Event>,
    /// Everything else that was under way at the same time as they.
    pub meanwhile: Vec<Event>,
}

/// What the rest of a search depends on: the state, which events are in the order, and to what a loss may lead.
type Configuration = (State, u64, Box<[u64]>, usize, Box<[State]>);

/// Number of an event: those with a known end first, each kind by time of call.
type Number = usize;

struct Search<'a> {
    known: Vec<&'a Event>,
    unknown: Vec<&'a Event>,
    /// Which events with a known end are in the order, one bit each.
    done: Vec<u64>,
    done_count: usize,
    /// Everything before it is in the order.
    first: usize,
    unknown_done: u64,
    order: Vec<Number>,
    unflushed: Unflushed,
    visited: HashSet<Configuration>,
    /// How many reads and writes of a register's value are not in the order.
    left: HashMap<u64, Left>,
    has_rules: bool,
    stuck: Stuck,
}

#[derive(Clone, Copy, Default)]
struct Left {
    reads: usize,
    writes: usize,
}

/// What was chosen cannot lead to an order of everything.
struct DeadEnd;

/// A configuration on the current path, with what may come next.
struct Frame {
    /// Length of the order at which it was entered.
    entered_at: usize,
    state: State,
    choices: Vec<(Number, State)>,
    unflushed: Box<[State]>,
}

pub fn check(initial: State, events: &[Event]) -> Verdict {
    match search(initial, events, true) {
        Verdict::Violation(stuck) => match search(initial, events, false) {
            // Without the rules for registers the search gets as far as what does not fit, and shows that.
            Verdict::Violation(stuck) => Verdict::Violation(stuck),
            Verdict::Undecided(_) => Verdict::Violation(stuck),
            Verdict::Linearizable => Verdict::Undecided("the search with its rules contradicts the one without"),
        },
        verdict => verdict,
    }
}

fn search(initial: State, events: &[Event], has_rules: bool) -> Verdict {
    let mut sorted: Vec<&Event> = events.iter().collect();
    sorted.sort_by_key(|event| event.call_ns);
    let (unknown, known): (Vec<_>, Vec<_>) = sorted.into_iter().partition(|event| event.is_unknown());
    if unknown.len() > UNKNOWN_MAX {
        return Verdict::Undecided("too many changes of unknown fate");
    }
    let words = known.len().div_ceil(64);
    let total = known.len();
    let mut search = Search {
        known,
        unknown,
        done: vec![0; words],
        done_count: 0,
        first: 0,
        unknown_done: 0,
        order: Vec::new(),
        unflushed: Unflushed::new(Loss::find(events), initial, events),
        visited: HashSet::new(),
        left: HashMap::new(),
        has_rules,
        stuck: Stuck { total, state: initial, ..Stuck::default() },
    };
    for event in events {
        search.count(&event.action, |count| count + 1);
    }
    search.run(initial)
}

impl Search<'_> {
    fn run(&mut self, initial: State) -> Verdict {
        let mut path: Vec<Frame> = Vec::new();
        let mut entering = Some((0, initial));
        loop {
            if let Some((entered_at, state)) = entering.take() {
                self.take_reads(state);
                if self.done_count == self.known.len() {
                    return Verdict::Linearizable;
                }
                if self.visited.len() >= if self.has_rules { CONFIGURATIONS_MAX } else { EXPLANATION_MAX } {
                    return Verdict::Undecided("the search reached its bound");
                }
                let choices = if self.is_new(state) { self.choices(state) } else { Vec::new() };
                path.push(Frame { entered_at, state, choices, unflushed: self.unflushed.states().into() });
            }
            let Some(frame) = path.last_mut() else {
                let mut stuck = std::mem::take(&mut self.stuck);
                stuck.meanwhile = self.meanwhile(&stuck);
                return Verdict::Violation(stuck);
            };
            match frame.choices.pop() {
                Some((number, next)) => {
                    let entered_at = self.order.len();
                    self.unflushed.restore(&frame.unflushed);
                    self.put(number, &frame.state, next);
                    entering = Some((entered_at, next));
                }
                None => {
                    let entered_at = frame.entered_at;
                    path.pop();
                    self.take_back(entered_at);
                }
            }
        }
    }

    fn meanwhile(&self, stuck: &Stuck) -> Vec<Event> {
        let shown = |event: &&Event| {
            let same = |other: &Event| other.worker == event.worker && other.call_ns == event.call_ns;
            !stuck.candidates.iter().chain(&stuck.last).any(same)
        };
        let beside = |event: &&Event| {
            let overlaps = |other: &Event| event.call_ns <= other.return_ns && other.call_ns <= event.return_ns;
            stuck.candidates.iter().any(overlaps)
        };
        let all = self.known.iter().chain(&self.unknown).copied();
        all.filter(shown).filter(beside).take(SHOWN_MAX).copied().collect()
    }

    /// A read that can come next and holds may as well come now: it changes nothing, and no order that has it later
    /// is lost. Unless it says of what another client had not flushed that nothing of it can be lost.
    fn take_reads(&mut self, state: State) {
        loop {
            let holds = |event: &Event| event.action.is_read() && step(state, &event.action).is_some();
            let read = |event: &Event| holds(event) && self.unflushed.is_untouched_by(event, &state);
            let reads: Vec<Number> = self.candidates().filter(|&number| read(self.known[number])).collect();
            if reads.is_empty() {
                break;
            }
            reads.into_iter().for_each(|number| self.put(number, &state, state));
        }
        if self.done_count > self.stuck.ordered || self.stuck.candidates.is_empty() {
            let last = self.order.len().saturating_sub(SHOWN_MAX);
            self.stuck.ordered = self.done_count;
            self.stuck.state = state;
            self.stuck.last = self.order[last..].iter().map(|&number| *self.event(number)).collect();
            self.stuck.candidates = self.candidates().map(|number| *self.known[number]).collect();
        }
    }

    /// Events with a known end that no other one precedes.
    fn candidates(&self) -> impl Iterator<Item = Number> + '_ {
        let mut earliest_return = u64::MAX;
        (self.first..self.known.len()).filter(|&number| !self.is_done(number)).map_while(move |number| {
            let event = self.known[number];
            if event.call_ns > earliest_return {
                return None;
            }
            earliest_return = earliest_return.min(event.return_ns);
            Some(number)
        })
    }

    /// What can come next, the one that returned first last. Reads are among it that do not come at once.
    fn choices(&self, state: State) -> Vec<(Number, State)> {
        let mut candidates: Vec<Number> = self.candidates().collect();
        let earliest_return = candidates.iter().map(|&number| self.known[number].return_ns).min();
        // A loss can bring a value back, against the rules.
        let is_register = self.has_rules && !self.left.is_empty() && !self.unflushed.is_open();
        match self.register_choice(state, &candidates) {
            Err(DeadEnd) if is_register => return Vec::new(),
            Ok(Some(only)) if is_register => candidates = vec![only],
            _ => {}
        }
        let unknown = (0..self.unknown.len())
            .filter(|bit| self.unknown_done & (1 << bit) == 0)
            .filter(|&bit| earliest_return.is_none_or(|end| self.unknown[bit].call_ns <= end))
            .map(|bit| self.known.len() + bit);
        let mut choices: Vec<(Number, State)> = candidates
            .iter()
            .copied()
            .chain(unknown)
            .flat_map(|number| match self.event(number).action {
                Action::Lose => self.unflushed.states().iter().map(|state| (number, *state)).collect(),
                action => step(state, &action).map_or(Vec::new(), |next| vec![(number, next)]),
            })
            .collect();
        choices.sort_by_key(|&(number, _)| std::cmp::Reverse(self.event(number).return_ns));
        choices
    }

    /// Two rules that spare registers most of the search, because their values are mostly written once.
    fn register_choice(&self, state: State, candidates: &[Number]) -> Result<Option<Number>, DeadEnd> {
        let left = |value: u64| self.left.get(&value).copied().unwrap_or_default();
        match left(state[0]) {
            // Who has yet to read the value will not find it again.
            Left { reads: 1.., writes: 0 } => Err(DeadEnd),
            Left { reads: 1.., .. } => Ok(None),
            // A write that nobody reads, over a value that nobody reads any more, may as well come now.
            Left { reads: 0, .. } => {
                let unread = |number: &&Number| match self.known[**number].action {
                    Action::Write(value) => left(value).reads == 0,
                    _ => false,
                };
                Ok(candidates.iter().find(unread).copied())
            }
        }
    }

    fn count(&mut self, action: &Action, change: impl Fn(usize) -> usize) {
        match action {
            Action::Read(value) => {
                let left = self.left.entry(*value).or_default();
                left.reads = change(left.reads);
            }
            Action::Write(value) => {
                let left = self.left.entry(*value).or_default();
                left.writes = change(left.writes);
            }
            _ => {}
        }
    }

    fn event(&self, number: Number) -> &Event {
        self.known.get(number).copied().unwrap_or_else(|| self.unknown[number - self.known.len()])
    }

    fn is_done(&self, number: Number) -> bool {
        self.done[number / 64] & (1 << (number % 64)) != 0
    }

    /// The event is next in the order, and leads to this state.
    fn put(&mut self, number: Number, before: &State, state: State) {
        self.order.push(number);
        let event = *self.event(number);
        self.unflushed.put(&event, before, state);
        let action = event.action;
        self.count(&action, |count| count - 1);
        if number >= self.known.len() {
            self.unknown_done |= 1 << (number - self.known.len());
            return;
        }
        self.done[number / 64] |= 1 << (number % 64);
        self.done_count += 1;
        while self.first < self.known.len() && self.is_done(self.first) {
            self.first += 1;
        }
    }

    fn take_back(&mut self, length: usize) {
        for number in self.order.split_off(length) {
            let event = *self.event(number);
            self.unflushed.take_back(&event);
            self.count(&event.action, |count| count + 1);
            if number >= self.known.len() {
                self.unknown_done &= !(1 << (number - self.known.len()));
                continue;
            }
            self.done[number / 64] &= !(1 << (number % 64));
            self.done_count -= 1;
            self.first = self.first.min(number);
        }
    }

    fn is_new(&mut self, state: State) -> bool {
        // Words before the first event that is missing are full, and those after the last one that is there empty.
        let start = self.first / 64;
        let end = self.done.iter().rposition(|word| *word != 0).map_or(start, |last| (last + 1).max(start));
        let unflushed = self.unflushed.states().into();
        self.visited.insert((state, self.unknown_done, self.done[start..end].into(), self.first, unflushed))
    }
}
