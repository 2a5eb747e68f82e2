//! Time as leases need it: it goes on while the machine sleeps, and a jump of the
//! wall clock (a virtual machine that was frozen and thawed) is noticed.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use atoll_types::Timestamp;
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

/// How far the server's clock is from ours.
#[derive(Default)]
pub(crate) struct Offset {
    ms: AtomicI64,
}

/// Differences that the way of a message explains, in ms.
const SAME_CLOCK_MS: i64 = 5;

impl Offset {
    /// The server's clock was `now` between `sent` and this moment.
    pub fn observe(&self, sent: Moment, now: Timestamp) {
        let ours = Moment::now();
        let middle = ours.wall_ms as i64 - (ours.boot_ms.saturating_sub(sent.boot_ms) / 2) as i64;
        let theirs = now.seconds.saturating_mul(1000).saturating_add(i64::from(now.nanos / 1_000_000));
        let ms = theirs.saturating_sub(middle);
        self.ms.store(if ms.abs() <= SAME_CLOCK_MS { 0 } else { ms }, Ordering::Relaxed);
    }

    /// What the server's clock shows, about.
    pub fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        let ms = self.ms.load(Ordering::Relaxed);
        let nanos = i64::from(now.nanos) + ms % 1000 * 1_000_000;
        const SECOND: i64 = Timestamp::NANOS_PER_SECOND as i64;
        let seconds = now.seconds.saturating_add(ms / 1000).saturating_add(nanos.div_euclid(SECOND));
        Timestamp { seconds, nanos: nanos.rem_euclid(SECOND) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_told_the_time_by_its_own_clock() {
        let offset = Offset::default();
        let ours = Timestamp::now();
        offset.observe(Moment::now(), Timestamp { seconds: ours.seconds - 100, nanos: ours.nanos });
        assert!((offset.now().seconds - ours.seconds + 100).abs() <= 1);
        offset.observe(Moment::now(), Timestamp::now());
        assert_eq!(offset.ms.load(Ordering::Relaxed), 0);
    }

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
