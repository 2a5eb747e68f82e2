//! Lookups of directories whose answers the kernel may not have taken in.
//!
//! The kernel drops an old name of a directory for good, or lets it expire. A process that works in a directory whose
//! name was dropped has no path any more, and what is mounted on it is unmounted; an expired name is looked up again
//! and stays. But the kernel looks an expired name up without a lock, and takes the answer in when the asker runs
//! again: with it comes the right to keep the name, though the name may have expired once more meanwhile.
//!
//! So a name expires only while no such answer is under way. Otherwise it is dropped: what comes late finds it gone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use atoll_types::{InodeId, Name};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::threads;

/// An asker that cannot be seen has run after that time.
const UNSEEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Most answers that are remembered, of each kind of asker. If there are more, no name expires for [`UNSEEN_TIMEOUT`].
const GIVEN_MAX: usize = 4096;

/// An answer: the kernel may keep the name.
struct Given {
    directory: InodeId,
    name: Name,
}

impl Given {
    fn is_of(&self, directory: InodeId, name: &Name) -> bool {
        self.directory == directory && self.name == *name
    }
}

#[derive(Default)]
struct State {
    /// By asker, and whether it is with the kernel.
    seen: FxHashMap<u32, (Given, bool)>,
    /// The oldest first.
    unseen: VecDeque<(Instant, Given)>,
    /// When one was last not remembered.
    missed: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct Lookups {
    state: Mutex<State>,
    /// How many of them have an asker that is seen.
    seen: AtomicUsize,
}

impl Lookups {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        self.seen.store(state.seen.len(), Ordering::Relaxed);
        result
    }

    /// A thread is about to be told that it may keep the name of a directory.
    pub fn gives(&self, thread: u32, directory: InodeId, name: Name) {
        let given = Given { directory, name };
        self.with(|state| {
            let now = Instant::now();
            if thread == threads::UNSEEN {
                let is_old = |(since, _): &(Instant, Given)| now.duration_since(*since) > UNSEEN_TIMEOUT;
                while state.unseen.front().is_some_and(is_old) {
                    state.unseen.pop_front();
                }
                state.unseen.push_back((now, given));
                if state.unseen.len() > GIVEN_MAX {
                    state.unseen.pop_front();
                    state.missed = Some(now);
                }
                return;
            }
            if state.seen.len() >= GIVEN_MAX && !state.seen.contains_key(&thread) {
                state.seen.retain(|thread, (_, is_given)| !(*is_given && threads::is_idle(*thread)));
            }
            match state.seen.len() < GIVEN_MAX {
                true => drop(state.seen.insert(thread, (given, false))),
                false => state.missed = Some(now),
            }
        });
    }

    /// The answer is with the kernel.
    pub fn gave(&self, thread: u32) {
        if let Some((_, is_given)) = self.state.lock().seen.get_mut(&thread) {
            *is_given = true;
        }
    }

    /// A thread made a request: it has taken in what it was answered before.
    pub fn heard_of(&self, thread: u32) {
        if self.seen.load(Ordering::Relaxed) > 0 {
            self.with(|state| state.seen.remove(&thread));
        }
    }

    /// Whether an answer may be under way that says that the name may be kept.
    pub fn is_under_way(&self, directory: InodeId, name: &Name) -> bool {
        self.with(|state| {
            let is_recent = |since: &Instant| since.elapsed() <= UNSEEN_TIMEOUT;
            state.seen.retain(|thread, (given, is_given)| {
                !(given.is_of(directory, name) && *is_given && threads::is_idle(*thread))
            });
            state.missed.as_ref().is_some_and(is_recent)
                || state.seen.values().any(|(given, _)| given.is_of(directory, name))
                || state.unseen.iter().any(|(since, given)| is_recent(since) && given.is_of(directory, name))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, mpsc};

    use super::*;

    const DIRECTORY: InodeId = InodeId(7);

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes().to_vec()).unwrap()
    }

    fn is_under_way(lookups: &Lookups, text: &str) -> bool {
        lookups.is_under_way(DIRECTORY, &name(text))
    }

    /// A thread that computes, and waits for nothing.
    struct Computing {
        thread: u32,
        ends: Arc<AtomicBool>,
    }

    impl Computing {
        fn start() -> Computing {
            let ends = Arc::<AtomicBool>::default();
            let (tell, told) = mpsc::channel();
            let until = ends.clone();
            std::thread::spawn(move || {
                tell.send(threads::own_id()).unwrap();
                while !until.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let thread = told.recv().unwrap();
            while threads::is_idle(thread) {
                std::thread::yield_now();
            }
            Computing { thread, ends }
        }
    }

    impl Drop for Computing {
        fn drop(&mut self) {
            self.ends.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_answer_is_under_way_until_its_asker_is_heard_of() {
        let lookups = Lookups::default();
        let computing = Computing::start();
        let thread = computing.thread;
        assert!(!is_under_way(&lookups, "a"));
        lookups.gives(thread, DIRECTORY, name("a"));
        lookups.gave(thread);
        assert!(is_under_way(&lookups, "a") && !is_under_way(&lookups, "b"));
        assert!(!lookups.is_under_way(InodeId(8), &name("a")));
        lookups.heard_of(u32::MAX);
        assert!(is_under_way(&lookups, "a"));
        lookups.heard_of(thread);
        assert!(!is_under_way(&lookups, "a"));
    }

    #[test]
    fn an_asker_that_sleeps_has_taken_in_what_is_with_the_kernel() {
        let lookups = Lookups::default();
        let (hold, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            tell.send(threads::own_id()).unwrap();
            let _ = held.recv();
        });
        let sleeper = told.recv().unwrap();
        while !threads::is_idle(sleeper) {
            std::thread::yield_now();
        }
        lookups.gives(sleeper, DIRECTORY, name("a"));
        assert!(is_under_way(&lookups, "a"), "it is not with the kernel");
        lookups.gave(sleeper);
        assert!(!is_under_way(&lookups, "a"));
        drop(hold);
    }

    #[test]
    fn of_an_asker_that_cannot_be_seen_nothing_is_taken_for_granted() {
        let lookups = Lookups::default();
        lookups.gives(threads::UNSEEN, DIRECTORY, name("a"));
        lookups.gives(threads::UNSEEN, DIRECTORY, name("b"));
        lookups.heard_of(threads::UNSEEN);
        assert!(is_under_way(&lookups, "a") && is_under_way(&lookups, "b"));
        let old = Instant::now() - 2 * UNSEEN_TIMEOUT;
        lookups.state.lock().unseen.iter_mut().for_each(|(since, _)| *since = old);
        assert!(!is_under_way(&lookups, "a"));
        lookups.gives(threads::UNSEEN, DIRECTORY, name("c"));
        assert_eq!(lookups.state.lock().unseen.len(), 1, "old ones are forgotten");
    }

    #[test]
    fn while_one_may_be_forgotten_all_are_under_way() {
        for thread in [|_| threads::UNSEEN, |at| at as u32 + 1] as [fn(usize) -> u32; 2] {
            let lookups = Lookups::default();
            (0..GIVEN_MAX).for_each(|at| lookups.gives(thread(at), DIRECTORY, name("a")));
            assert!(!is_under_way(&lookups, "b"));
            lookups.gives(thread(GIVEN_MAX), DIRECTORY, name("c"));
            assert!(is_under_way(&lookups, "b"));
            lookups.state.lock().missed = Some(Instant::now() - 2 * UNSEEN_TIMEOUT);
            assert!(!is_under_way(&lookups, "b"));
        }
    }
}
