//! Time that does not count while nothing of this process runs.
//!
//! What a session must do in time, it may have done while the server was stopped, or its machine was: its answer stands in
//! a socket and is not read yet. A clock that had gone on would fence it for that, and take from a living client what it has not synced.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Of the time between two looks no more counts. Somebody looks a few times a second.
const STEP_MAX: Duration = Duration::from_secs(1);

pub(crate) struct Awake(Mutex<State>);

struct State {
    looked: Instant,
    awake: Duration,
}

impl State {
    fn look(&mut self, now: Instant) -> Duration {
        let step = now.saturating_duration_since(self.looked);
        self.awake += step.min(STEP_MAX);
        self.looked = now;
        self.awake
    }
}

impl Awake {
    pub fn new() -> Awake {
        Awake(Mutex::new(State { looked: Instant::now(), awake: Duration::ZERO }))
    }

    /// For how long it has been awake. It never goes back, and never runs faster than time.
    pub fn now(&self) -> Duration {
        self.0.lock().look(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sleep_counts_as_a_moment() {
        let start = Instant::now();
        let mut state = State { looked: start, awake: Duration::ZERO };
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(state.look(at(200)), Duration::from_millis(200));
        assert_eq!(state.look(at(900)), Duration::from_millis(900));
        assert_eq!(state.look(at(60_000)), Duration::from_millis(1_900));
        assert_eq!(state.look(at(60_200)), Duration::from_millis(2_100));
    }
}
