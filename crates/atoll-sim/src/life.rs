//! Whether a process lives.
//!
//! Invariant: a process that is dead has no effect on anything but itself. It dies between two effects, so at
//! any await that matters, and its tasks vanish at the end of the tick.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of one run of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Life(Arc<AtomicU64>);

const FOR_EVER: u64 = u64::MAX;

impl Life {
    pub fn new() -> Life {
        Life(Arc::new(AtomicU64::new(FOR_EVER)))
    }

    /// Let it die after so many more effects.
    pub fn end_after(&self, effects: u64) {
        self.0.store(effects, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// The process is about to have an effect. False when it must not.
    pub fn acts(&self) -> bool {
        let left = self.0.load(Ordering::Relaxed);
        if left != 0 && left != FOR_EVER {
            self.0.store(left - 1, Ordering::Relaxed);
        }
        left != 0
    }
}
