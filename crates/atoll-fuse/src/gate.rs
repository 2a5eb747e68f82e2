//! A gate for threads, which can be closed when nobody is inside.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Lets threads through, or makes them wait; and says when none is inside.
#[derive(Default)]
pub(crate) struct Gate {
    is_closed: AtomicBool,
    closed: Mutex<()>,
    opened: Condvar,
    inside: AtomicUsize,
}

impl Gate {
    /// Go in, when it is open. [`Gate::leave`] follows.
    pub fn enter(&self) {
        loop {
            // Counted first: who closes the gate looks at the count afterwards.
            self.inside.fetch_add(1, Ordering::SeqCst);
            if !self.is_closed.load(Ordering::SeqCst) {
                return;
            }
            self.leave();
            let mut closed = self.closed.lock();
            self.opened.wait_while(&mut closed, |()| self.is_closed.load(Ordering::SeqCst));
        }
    }

    /// Go in, even if it is closed.
    pub fn force(&self) {
        self.inside.fetch_add(1, Ordering::SeqCst);
    }

    pub fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Let nobody in, and wait until nobody is inside. False when somebody stays too long.
    pub fn close(&self, timeout: Duration) -> bool {
        self.is_closed.store(true, Ordering::SeqCst);
        let end = Instant::now() + timeout;
        while self.inside.load(Ordering::SeqCst) > 0 {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    pub fn open(&self) {
        let _closed = self.closed.lock();
        self.is_closed.store(false, Ordering::SeqCst);
        self.opened.notify_all();
    }
}
