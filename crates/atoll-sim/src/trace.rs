//! What happened, as one hash: two runs of a seed have the same, or the simulation is not one.

use std::fmt::{self, Write};
use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHasher;

/// The time of the simulation when it was last asked, in nanoseconds. A process has one simulation.
static NOW_NS: AtomicU64 = AtomicU64::new(0);
static STAMP: AtomicU64 = AtomicU64::new(0);
/// For how long the process that runs stood still, in nanoseconds: its simulation did not go on meanwhile.
static STOOD_NS: AtomicU64 = AtomicU64::new(0);

/// The processes of a simulation that lags by so much run now.
pub fn set_stood(stood: Duration) {
    STOOD_NS.store(stood.as_nanos() as u64, Ordering::Relaxed);
}

/// How long the simulation has been going on, by the clock of the host that asks.
pub fn now() -> Duration {
    if let Some(elapsed) = turmoil::sim_elapsed() {
        NOW_NS.store(elapsed.as_nanos() as u64 + STOOD_NS.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    Duration::from_nanos(NOW_NS.load(Ordering::Relaxed))
}

/// The moment for a history: later than every moment before, also across hosts. About the time in nanoseconds.
pub fn stamp() -> u64 {
    let next = STAMP.load(Ordering::Relaxed).max(now().as_nanos() as u64) + 1;
    STAMP.store(next, Ordering::Relaxed);
    next
}

pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

pub struct Trace {
    state: Mutex<State>,
    is_shown: bool,
}

#[derive(Default)]
struct State {
    hasher: FxHasher,
    events: u64,
    line: String,
}

impl Trace {
    pub fn new(is_shown: bool) -> Trace {
        Trace { state: Mutex::default(), is_shown }
    }

    pub fn note(&self, event: fmt::Arguments<'_>) {
        let mut state = self.state.lock();
        state.events += 1;
        let mut line = std::mem::take(&mut state.line);
        line.clear();
        let _ = write!(line, "{:>12} {event}", now().as_micros());
        state.hasher.write(line.as_bytes());
        if self.is_shown {
            eprintln!("{line}");
        }
        state.line = line;
    }

    /// The hash, and of how many events.
    pub fn sum(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hasher.finish(), state.events)
    }
}
