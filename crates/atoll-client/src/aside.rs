//! Work that may block: it is done beside the threads of the runtime.
//!
//! A runtime of one thread is a simulation's: there everything is a task and nothing may block, so that one seed gives
//! one order of everything.

use std::sync::{Arc, Weak, mpsc};

use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Pieces of work that a crew does at a time.
const CREW_THREADS: usize = 4;

fn is_simulated(runtime: &Handle) -> bool {
    runtime.runtime_flavor() == RuntimeFlavor::CurrentThread
}

/// Do something once.
pub(crate) fn run(work: impl FnOnce() + Send + 'static) {
    match Handle::try_current() {
        Ok(runtime) if is_simulated(&runtime) => drop(runtime.spawn(async move { work() })),
        _ => drop(std::thread::spawn(work)),
    }
}

/// Does pieces of work for somebody, as long as that somebody lives.
pub(crate) struct Crew<W>(Box<dyn Fn(W) + Send + Sync>);

impl<W: Send + 'static> Crew<W> {
    /// Of the current runtime.
    pub fn start<S, F>(owner: Weak<S>, work: fn(Arc<S>, W) -> F) -> Crew<W>
    where
        S: Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = Handle::current();
        if is_simulated(&runtime) {
            return Crew(Box::new(move |piece| {
                if let Some(owner) = owner.upgrade() {
                    runtime.spawn(work(owner, piece));
                }
            }));
        }
        let (sender, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..CREW_THREADS {
            let (owner, queue, runtime) = (owner.clone(), queue.clone(), runtime.clone());
            std::thread::spawn(move || {
                loop {
                    // Ends when the owner, which holds the sender, is gone.
                    let next = queue.lock().recv();
                    let (Ok(piece), Some(owner)) = (next, owner.upgrade()) else { return };
                    runtime.block_on(work(owner, piece));
                }
            });
        }
        Crew(Box::new(move |piece| drop(sender.send(piece))))
    }

    pub fn give(&self, piece: W) {
        (self.0)(piece);
    }
}
