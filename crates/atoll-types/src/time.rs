//! Wall-clock instants with nanoseconds, as POSIX file times.

use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01 UTC (negative before) and nanoseconds 0..1e9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanos: u32,
}

impl Timestamp {
    pub const NANOS_PER_SECOND: u32 = 1_000_000_000;

    /// The machine's clock now.
    pub fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => Timestamp { seconds: d.as_secs() as i64, nanos: d.subsec_nanos() },
            Err(_) => Timestamp::default(),
        }
    }

    /// Whether an access now moves an access time, as `relatime` has it: when it is not newer than the last change,
    /// or a day old.
    pub fn access_moves(accessed: Self, modified: Self, changed: Self) -> bool {
        const DAY_SECONDS: i64 = 86_400;
        accessed <= modified || accessed <= changed || Self::now().seconds - accessed.seconds >= DAY_SECONDS
    }

    /// So much later, to the second.
    pub fn later(self, by: Duration) -> Self {
        Timestamp { seconds: self.seconds.saturating_add(by.as_secs() as i64), ..self }
    }

    /// The next representable instant; used to keep change times strictly growing.
    pub fn successor(self) -> Self {
        if self.nanos + 1 < Self::NANOS_PER_SECOND {
            Timestamp { seconds: self.seconds, nanos: self.nanos + 1 }
        } else {
            Timestamp { seconds: self.seconds.saturating_add(1), nanos: 0 }
        }
    }
}
