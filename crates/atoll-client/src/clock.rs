//! What a client sent and when, and what it knows of the server's clock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};

use atoll_types::Timestamp;
use atoll_wire::UNNOTICED_MS;
pub use atoll_wire::clock::Clocks;
pub(crate) use atoll_wire::clock::{Clock, Moment, Term};

/// Clocks that came apart by so much more than before have jumped, in ms.
const JUMP_MS: i64 = UNNOTICED_MS as i64;

/// Pings that were not answered, oldest first.
#[derive(Default)]
pub(crate) struct Pings(VecDeque<Moment>);

/// Most that are remembered; the answers of older ones are worth nothing.
const PINGS_MAX: usize = 64;

impl Pings {
    pub fn sent(&mut self, now: Moment) {
        if self.0.len() == PINGS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// When the ping with this id was sent, by both clocks of then: one may have jumped since.
    pub fn answered(&mut self, id: u64) -> Option<Moment> {
        let at = self.0.iter().position(|sent| sent.to_id() == id)?;
        self.0.drain(..=at).next_back()
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
    /// The server's clock was `now` between `sent` and our moment. An answer that took long says little; what is not known
    /// is taken for less, because times that are ahead are not kept. False when our clock jumped meanwhile: then it says
    /// nothing.
    pub fn observe(&self, sent: Moment, ours: Moment, now: Timestamp) -> bool {
        if (ours.gap_ms() - sent.gap_ms()).abs() > JUMP_MS {
            return false;
        }
        let theirs = now.seconds.saturating_mul(1000).saturating_add(i64::from(now.nanos / 1_000_000));
        let least = theirs.saturating_sub(ours.wall_ms as i64);
        let most = theirs.saturating_sub(sent.wall_ms as i64).max(least);
        let known = self.ms.load(Ordering::Relaxed);
        let ms = if (least..=most).contains(&known) { known } else { least };
        self.ms.store(if ms.abs() <= SAME_CLOCK_MS { 0 } else { ms }, Ordering::Relaxed);
        true
    }

    /// What the server's clock shows, about.
    pub fn now(&self, clock: &Clock) -> Timestamp {
        let now = clock.wall();
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
        let (offset, clock) = (Offset::default(), Clock::default());
        let ours = Timestamp::now();
        assert!(offset.observe(clock.now(), clock.now(), Timestamp { seconds: ours.seconds - 100, nanos: ours.nanos }));
        assert!((offset.now(&clock).seconds - ours.seconds + 100).abs() <= 1);
        assert!(offset.observe(clock.now(), clock.now(), Timestamp::now()));
        assert_eq!(offset.ms.load(Ordering::Relaxed), 0);
        let at = |ms: u64| Moment { boot_ms: ms, wall_ms: 1_000_000 + ms };
        let theirs = |ms: u64| Timestamp { seconds: (2_000 + ms / 1000) as i64, nanos: (ms % 1000) as u32 * 1_000_000 };
        assert!(offset.observe(at(0), at(10), theirs(10)));
        assert_eq!(offset.ms.load(Ordering::Relaxed), 1_000_000);
        assert!(offset.observe(at(100), at(4_100), theirs(100)));
        assert_eq!(offset.ms.load(Ordering::Relaxed), 1_000_000, "an answer that was 4 s on its way");
        assert!(!offset.observe(at(5_000), Moment { boot_ms: 5_010, wall_ms: 9_000_000 }, theirs(5_010)));
        assert_eq!(offset.ms.load(Ordering::Relaxed), 1_000_000, "our clock was set meanwhile");
    }

    #[test]
    fn what_was_asked_for_before_a_freeze_is_of_no_use_after_it() {
        let (term, mut pings) = (Term::default(), Pings::default());
        pings.sent(Moment { boot_ms: 1_000, wall_ms: 50_000 });
        // The answer came while the machine was frozen, and is read after it.
        let thawed = Moment { boot_ms: 1_010, wall_ms: 60_000 };
        pings.sent(thawed);
        term.renew(pings.answered(1_000).unwrap(), 3_000);
        assert!(term.left_at(thawed).is_zero());
        assert_eq!(pings.answered(1_000), None);
        term.renew(pings.answered(1_010).unwrap(), 3_000);
        assert!(!term.left_at(thawed).is_zero());
    }
}
