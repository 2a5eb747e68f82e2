//! What a client may lose that writes changes back: those it has acknowledged and
//! that nothing has made it flush. When it ends by a kill or a fence, an object is
//! again as it was at one moment since the client's last flush of it.
//!
//! An object with several parts can lose of one what others have seen of another later: looking flushes only what it
//! looks at, and what was done before that.
//!
//! Invariant: a change is never lost that another mount may have seen, that was
//! synced, or that is older than the client's bound. What survives of an object is
//! the beginning of what the client did to it. Across objects this is not checked.

use crate::history::{Action, Event, Object};
use crate::models::{State, flushes, step};

/// Longest that a client keeps an acknowledged change without sending it.
pub const FLUSHED_AFTER_NS: u64 = 10_000_000_000;

/// The end of a client, which [`Action::Lose`] stands for in a history.
#[derive(Clone, Copy)]
pub struct Loss {
    mount: usize,
    /// The client ended in between.
    start_ns: u64,
    end_ns: u64,
}

impl Loss {
    pub fn new(mount: usize, start_ns: u64, end_ns: u64) -> Loss {
        Loss { mount, start_ns, end_ns }
    }

    pub fn event(&self, object: Object) -> Event {
        let Loss { mount, start_ns: call_ns, end_ns: return_ns } = *self;
        Event { object, action: Action::Lose, how: "the end of a client", call_ns, return_ns, mount, worker: 0 }
    }

    /// The loss that a history has.
    pub fn find(events: &[Event]) -> Option<Loss> {
        let event = events.iter().find(|event| event.action == Action::Lose)?;
        Some(Loss { mount: event.mount, start_ns: event.call_ns, end_ns: event.return_ns })
    }

    /// Whether it is of the client that ended.
    pub fn is_by_client(&self, event: &Event) -> bool {
        event.mount == self.mount && event.call_ns <= self.end_ns
    }

    /// Whether what the event looks at cannot be lost any more, nor what was done before that.
    fn narrows(&self, event: &Event) -> bool {
        event.action != Action::Lose && has_parts(event.object) && !self.is_by_client(event)
    }

    /// Whether nothing before this event can be lost any more, nor the event itself.
    fn seals(&self, event: &Event) -> bool {
        let is_old = || !event.action.is_read() && event.return_ns.saturating_add(FLUSHED_AFTER_NS) < self.start_ns;
        match event.action {
            Action::Lose => false,
            // Of all that its own client has made.
            Action::Sync => self.is_by_client(event),
            _ => (!self.is_by_client(event) && !has_parts(event.object)) || is_old(),
        }
    }

    /// Whether the event seals, and comes before the loss in every order.
    fn seals_first(&self, event: &Event) -> bool {
        self.seals(event) && event.return_ns < self.start_ns
    }
}

fn has_parts(object: Object) -> bool {
    matches!(object, Object::Names | Object::Plot(_))
}

/// Whether the client can lose what makes the other state of this one, if the event comes in this one.
fn agrees(event: &Event, state: &State, other: &State) -> bool {
    (0..state.len()).all(|word| state[word] == other[word] || !flushes(event.object, state, &event.action, word))
}

/// To which states a loss may lead, along an order of events.
#[derive(Default)]
pub struct Unflushed {
    loss: Option<Loss>,
    /// Events that seal and must come before the loss, and that are not in the order.
    seals_left: usize,
    is_lost: bool,
    /// What the object was since the last flush, sorted. Nothing as long as a seal must come before the loss.
    states: Vec<State>,
}

impl Unflushed {
    pub fn new(loss: Option<Loss>, initial: State, events: &[Event]) -> Unflushed {
        let first = |loss: Loss| events.iter().filter(|event| loss.seals_first(event)).count();
        let seals_left = loss.map_or(0, first);
        let states = if loss.is_some() && seals_left == 0 { vec![initial] } else { Vec::new() };
        Unflushed { loss, seals_left, is_lost: false, states }
    }

    /// Whether the next event may be lost, or the next to come is the loss.
    pub fn is_open(&self) -> bool {
        self.loss.is_some() && !self.is_lost && self.seals_left == 0
    }

    pub fn states(&self) -> &[State] {
        &self.states
    }

    pub fn restore(&mut self, states: &[State]) {
        self.states.clear();
        self.states.extend_from_slice(states);
    }

    /// Whether this read takes nothing from the states to which a loss may lead.
    pub fn is_untouched_by(&self, read: &Event, state: &State) -> bool {
        let Some(loss) = self.loss.filter(|_| self.is_open() && self.states.len() > 1) else { return true };
        let agree = || self.states.iter().all(|other| agrees(read, state, other));
        !loss.seals(read) && (!loss.narrows(read) || agree())
    }

    /// The event is next in the order and leads from one state to the other.
    pub fn put(&mut self, event: &Event, before: &State, state: State) {
        let Some(loss) = self.loss.filter(|_| !self.is_lost) else { return };
        if event.action == Action::Lose {
            self.is_lost = true;
            self.states.clear();
        } else if loss.seals(event) {
            self.seals_left -= usize::from(loss.seals_first(event));
            self.states.clear();
            if self.seals_left == 0 {
                self.states.push(state);
            }
        } else if loss.narrows(event) {
            let flushed = self.states.iter().filter(|other| agrees(event, before, other));
            let mut states: Vec<State> = flushed.filter_map(|other| step(*other, &event.action)).collect();
            states.sort_unstable();
            states.dedup();
            self.states = states;
        } else if self.seals_left == 0
            && let Err(place) = self.states.binary_search(&state)
        {
            self.states.insert(place, state);
        }
    }

    /// The event is not in the order any more. The states are those of [`Unflushed::restore`], which follows.
    pub fn take_back(&mut self, event: &Event) {
        let Some(loss) = self.loss else { return };
        if event.action == Action::Lose {
            self.is_lost = false;
        }
        self.seals_left += usize::from(loss.seals_first(event));
    }
}
