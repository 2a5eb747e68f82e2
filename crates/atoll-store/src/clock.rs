//! The time of day as SlateDB sees it.
//!
//! Invariant: it is never before that of a store's newest commit and newest table, also when somebody set the machine's clock back
//! before the server was started again. SlateDB refuses every commit until its old time has come again, and tells by their
//! time which tables are new.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use slatedb::VersionedManifest;
use slatedb_common::clock::{DefaultSystemClock, SystemClock, SystemClockTicker};

#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Goes on evenly from when it was made, whatever is done to the machine's clock.
    machine: DefaultSystemClock,
    ahead_ms: AtomicI64,
}

impl Clock {
    /// It is at least that late, in ms since 1970.
    pub fn must_be_at(&self, ms: i64) {
        let behind_ms = ms.saturating_sub(self.now().timestamp_millis());
        if behind_ms > 0 {
            tracing::warn!(behind_ms, "the time of day is before that of the newest metadata: was it set back?");
            self.ahead_ms.fetch_add(behind_ms, Ordering::Relaxed);
        }
    }
}

/// The time of the newest table and commit that a manifest knows, in ms since 1970.
pub(crate) fn newest_ms(manifest: &VersionedManifest) -> i64 {
    let tables = manifest.l0().iter().map(|table| table.sst.id.value());
    let tables = tables.chain(manifest.last_compacted_l0_sst_view_id());
    tables.map(|id| id.timestamp_ms() as i64).fold(manifest.last_l0_clock_tick(), i64::max)
}

impl SystemClock for Clock {
    fn now(&self) -> DateTime<Utc> {
        self.machine.now() + TimeDelta::milliseconds(self.ahead_ms.load(Ordering::Relaxed))
    }

    fn sleep<'a>(&'a self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        self.machine.sleep(duration)
    }

    fn ticker<'a>(&'a self, duration: Duration) -> SystemClockTicker<'a> {
        SystemClockTicker::new(self, duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_set_forward_and_never_back() {
        let clock = Clock::default();
        let ms = || clock.now().timestamp_millis();
        let start = ms();
        clock.must_be_at(start + 86_400_000);
        assert!((86_400_000..86_460_000).contains(&(ms() - start)));
        clock.must_be_at(start);
        assert!((86_400_000..86_460_000).contains(&(ms() - start)));
    }
}
