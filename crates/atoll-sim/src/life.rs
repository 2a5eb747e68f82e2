//! Whether a process lives, and whether it is frozen.
//!
//! Invariant: a process that is dead has no effect on anything but itself and its disk, which is put right when it is
//! buried. It dies between two effects, so at any await that matters; its tasks vanish at the end of the tick.
//! While it is frozen it has no effect either, and nothing reaches it. What a client does by itself meanwhile nobody can
//! tell; a server does nothing (`machine.rs`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Of one run of a process. Cheap to clone.
#[derive(Clone)]
pub struct Life(Arc<State>);

struct State {
    /// Effects that are left; 0 is death.
    left: AtomicU64,
    at_end: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    frozen: Mutex<Frozen>,
}

#[derive(Default)]
struct Frozen {
    is: bool,
    thaws: u64,
    waiting: Vec<Waker>,
}

const FOR_EVER: u64 = u64::MAX;

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_over() { "dead" } else { "alive" })
    }
}

impl Life {
    pub fn new() -> Life {
        Life(Arc::new(State { left: AtomicU64::new(FOR_EVER), at_end: Mutex::default(), frozen: Mutex::default() }))
    }

    /// Let it die after so many more effects, at least one.
    pub fn end_after(&self, effects: u64, at_end: impl FnOnce() + Send + 'static) {
        *self.0.at_end.lock() = Some(Box::new(at_end));
        self.0.left.store(effects, Ordering::Relaxed);
    }

    pub fn freeze(&self) {
        self.0.frozen.lock().is = true;
    }

    pub fn thaw(&self) {
        let mut frozen = self.0.frozen.lock();
        frozen.is = false;
        frozen.thaws += 1;
        std::mem::take(&mut frozen.waiting).into_iter().for_each(Waker::wake);
    }

    pub fn is_frozen(&self) -> bool {
        self.0.frozen.lock().is
    }

    /// How often it was thawed.
    pub fn thaws(&self) -> u64 {
        self.0.frozen.lock().thaws
    }

    /// Ready when it is not frozen.
    pub fn poll_thawed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut frozen = self.0.frozen.lock();
        if frozen.is {
            frozen.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    pub async fn thawed(&self) {
        std::future::poll_fn(|cx| self.poll_thawed(cx)).await;
    }

    /// It has no effect any more.
    pub fn end(&self) {
        self.0.left.store(0, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.0.left.load(Ordering::Relaxed) == 0
    }

    /// The process is about to have an effect. False when it must not.
    pub fn acts(&self) -> bool {
        let left = self.0.left.load(Ordering::Relaxed);
        if left != 0 && left != FOR_EVER {
            self.0.left.store(left - 1, Ordering::Relaxed);
            if left == 1
                && let Some(at_end) = self.0.at_end.lock().take()
            {
                at_end();
            }
        }
        left != 0
    }
}
