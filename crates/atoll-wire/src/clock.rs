//! Time as terms need it: it goes on while the machine sleeps, and a jump of the
//! wall clock (a virtual machine that was frozen and thawed) is noticed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use atoll_types::Timestamp;
use atoll_types::mutation::{Mutation, is_broken};
use rustix::time::{ClockId, clock_gettime};

use crate::UNNOTICED_MS;

/// A wall clock that is ahead of the boot-time clock by so much more than before has jumped, in ms.
const JUMP_MS: i64 = UNNOTICED_MS as i64;

/// What the boot-time clock and the wall clock show.
pub type Clocks = Arc<dyn Fn() -> (Duration, Duration) + Send + Sync>;

/// The machine's clocks, or those that a simulation gives.
#[derive(Clone, Default)]
pub struct Clock(pub Option<Clocks>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    pub fn now(&self) -> Moment {
        match &self.0 {
            None => Moment { boot_ms: read_ms(ClockId::Boottime), wall_ms: read_ms(ClockId::Realtime) },
            Some(clocks) => {
                let (boot, wall) = clocks();
                Moment { boot_ms: boot.as_millis() as u64, wall_ms: wall.as_millis() as u64 }
            }
        }
    }

    /// What the wall clock shows.
    pub fn wall(&self) -> Timestamp {
        match &self.0 {
            None => Timestamp::now(),
            Some(clocks) => {
                let (_, wall) = clocks();
                Timestamp { seconds: wall.as_secs() as i64, nanos: wall.subsec_nanos() }
            }
        }
    }
}

/// An instant of both clocks, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub boot_ms: u64,
    pub wall_ms: u64,
}

fn read_ms(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64).saturating_mul(1000).saturating_add(time.tv_nsec as u64 / 1_000_000)
}

impl Moment {
    /// The boot-time part as the id of a request.
    pub fn to_id(self) -> u64 {
        self.boot_ms
    }

    /// How far the wall clock is ahead.
    pub fn gap_ms(self) -> i64 {
        self.wall_ms as i64 - self.boot_ms as i64
    }
}

/// Until when something may be used that has to be asked for again and again: what a session holds.
#[derive(Default)]
pub struct Term {
    boot_ms: AtomicU64,
    /// How far the wall clock was ahead when this was asked for.
    gap_ms: AtomicI64,
}

impl Term {
    /// Use it for `term_ms` from `sent` on.
    pub fn renew(&self, sent: Moment, term_ms: u64) {
        self.gap_ms.store(sent.gap_ms(), Ordering::Relaxed);
        self.boot_ms.fetch_max(sent.boot_ms + term_ms, Ordering::Release);
    }

    pub fn end(&self) {
        self.boot_ms.store(0, Ordering::Release);
    }

    /// What is left of it.
    pub fn left_at(&self, now: Moment) -> Duration {
        let left = self.boot_ms.load(Ordering::Acquire).saturating_sub(now.boot_ms);
        let jumped_ms = now.gap_ms() - self.gap_ms.load(Ordering::Relaxed);
        if jumped_ms > JUMP_MS && !is_broken(Mutation::WallIgnored) {
            return Duration::ZERO;
        }
        Duration::from_millis(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_ends_by_either_clock() {
        let term = Term::default();
        let start = Moment { boot_ms: 1_000, wall_ms: 50_000 };
        assert!(term.left_at(start).is_zero());
        term.renew(start, 3_000);
        assert_eq!(term.left_at(start), Duration::from_secs(3));
        assert_eq!(term.left_at(Moment { boot_ms: 3_000, wall_ms: 52_000 }), Duration::from_secs(1));
        assert!(term.left_at(Moment { boot_ms: 4_000, wall_ms: 53_000 }).is_zero());
        assert!(term.left_at(Moment { boot_ms: 1_000, wall_ms: 60_000 }).is_zero(), "frozen without boot time");
        assert!(!term.left_at(Moment { boot_ms: 1_000, wall_ms: 10_000 }).is_zero(), "set back by an operator");
        term.end();
        assert!(term.left_at(start).is_zero());
    }

    #[test]
    fn a_wall_clock_that_was_ahead_for_a_while_hides_no_freeze() {
        let term = Term::default();
        term.renew(Moment { boot_ms: 1_000, wall_ms: 9_000_000 }, 3_000);
        term.renew(Moment { boot_ms: 2_000, wall_ms: 51_000 }, 3_000);
        assert!(!term.left_at(Moment { boot_ms: 2_100, wall_ms: 51_100 }).is_zero());
        assert!(term.left_at(Moment { boot_ms: 2_100, wall_ms: 61_100 }).is_zero());
    }
}
