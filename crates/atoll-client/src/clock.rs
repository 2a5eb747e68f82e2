//! Time as leases need it: it goes on while the machine sleeps, and a jump of the
//! wall clock (a virtual machine that was frozen and thawed) is noticed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A wall clock that is ahead of the boot-time clock by so much more than before has jumped, in ms.
const JUMP_MS: u64 = 500;

/// An instant of both clocks, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    boot_ms: u64,
    wall_ms: u64,
}

fn read_ms(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64).saturating_mul(1000).saturating_add(time.tv_nsec as u64 / 1_000_000)
}

impl Moment {
    pub fn now() -> Self {
        Moment { boot_ms: read_ms(ClockId::Boottime), wall_ms: read_ms(ClockId::Realtime) }
    }

    /// The boot-time part as the id of a request; the wall clock is compared when it comes back.
    pub fn to_id(self) -> u64 {
        self.boot_ms
    }

    pub fn from_id(id: u64) -> Self {
        let now = Moment::now();
        Moment { boot_ms: id, wall_ms: now.wall_ms.saturating_sub(now.boot_ms.saturating_sub(id)) }
    }
}

/// Until when a session may use what it holds.
#[derive(Default)]
pub(crate) struct Term {
    boot_ms: AtomicU64,
    wall_ms: AtomicU64,
}

impl Term {
    /// Use it for `term_ms` from `sent` on.
    pub fn renew(&self, sent: Moment, term_ms: u64) {
        self.wall_ms.fetch_max(sent.wall_ms + term_ms, Ordering::Relaxed);
        self.boot_ms.fetch_max(sent.boot_ms + term_ms, Ordering::Release);
    }

    pub fn end(&self) {
        self.boot_ms.store(0, Ordering::Release);
        self.wall_ms.store(0, Ordering::Release);
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.left_at(Moment::now())
    }

    fn left_at(&self, now: Moment) -> Duration {
        let left = self.boot_ms.load(Ordering::Acquire).saturating_sub(now.boot_ms);
        if now.wall_ms > self.wall_ms.load(Ordering::Relaxed).saturating_add(JUMP_MS) {
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
}
