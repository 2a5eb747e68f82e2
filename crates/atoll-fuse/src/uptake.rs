//! What the kernel was told of an inode's attributes, and has taken in.
//!
//! An answer that is written to the kernel is taken in only when its asker runs again. Until then the kernel reads by
//! the size that it had, and three things go wrong, none of which it notices:
//! * An answer is dropped if the inode changed in the kernel since it was asked for: by a word that attributes are
//!   old, by another answer, by a write. Who asked reads on with a size that may be older than both.
//! * Who takes a new time in drops the pages afterwards. Another thread finds the new attributes and the old pages.
//! * The answers to `SETATTR`, `LINK` and an open that truncates are never dropped, however old they are by then.
//!
//! So after the kernel was told that attributes are old, they are given to one asker at a time, and not to be kept,
//! until its next request shows that it has taken them in. The others wait, and are answered anew. Then the
//! attributes are as good as any, and may be kept. The same holds for answers that may not be kept in the first place,
//! and for those that are never dropped. Answers to writes may be taken in together, but with none of these.
//!
//! Invariant: between a word that attributes are old and the first answer that may be kept, at most one answer with
//! attributes is under way in the kernel, beside which no write is answered, and no further such word is sent before it
//! is taken in.
//!
//! What is left is a limit of the kernel: it reads by a size that it takes from answers in the order of its threads. An
//! answer that came without a right is not recalled; an asker that is not run for as long as a change elsewhere takes
//! can bring the older size back then, for one read of others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use atoll_types::InodeId;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::threads::{UNSEEN, is_idle, run_nanos};

/// How long an asker is waited for that is not seen to run.
const TAKEN_TIMEOUT: Duration = Duration::from_millis(100);
/// The same of one that cannot be seen: it lives in a process namespace that this process does not see into.
const UNSEEN_TIMEOUT: Duration = Duration::from_millis(1);
/// How often it is looked whether an asker has run, while somebody waits for that.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Who has run for so long since it was looked first has taken its answer in.
const RUN_NANOS: u64 = 1_000_000;

/// For how long after such a word an inode is in dispute: others are changing it, and will go on.
const DISPUTE: Duration = Duration::from_secs(3);
/// Most inodes that are known to be in dispute.
const DISPUTED_MAX: usize = 4096;
/// How often it is looked for such as are in dispute no more, when there are that many.
const CLEAR_INTERVAL: Duration = Duration::from_millis(500);

/// Goes on with an answer that has waited.
type Next = Box<dyn FnOnce() + Send>;

/// Who asked, and when that was read from the kernel, if it matters.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    pub thread: u32,
    pub at: Option<Instant>,
}

/// What an answer does to what the kernel has of an inode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Attributes, dropped if they are too old.
    Tells,
    /// Attributes of what is no regular file: the kernel has no size or pages of it to read by.
    TellsOther,
    /// Attributes, or a size, that are taken in however old they are.
    Sets,
    /// A write: the size grows at least to its end.
    Grows,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// As it is.
    Free,
    /// With attributes that may not be kept.
    Once,
    /// Not now: see [`Uptake::wait`].
    Wait,
}

/// Who may not have taken an answer in.
struct Taker {
    thread: u32,
    /// When it was given; `None`: it is just being written to the kernel, and its asker cannot have run.
    since: Option<Instant>,
}

/// An answer that its asker may not have taken in, or those to writes.
struct Lead {
    takers: Vec<Taker>,
    writes: bool,
    /// The kernel is up to date when it has.
    settles: bool,
    waiting: Vec<Next>,
    /// Who is to tell the kernel that attributes are old, and waits until it has taken this answer in.
    teller: Option<Sender<()>>,
}

#[derive(Default)]
struct State {
    /// Inodes of which the kernel may keep no attributes, since when; `None`: it is just being told.
    behind: FxHashMap<InodeId, Option<Instant>>,
    leads: FxHashMap<InodeId, Lead>,
    /// Of which answer a thread is the asker.
    threads: FxHashMap<u32, InodeId>,
    /// When attributes were last found to be old.
    disputed: FxHashMap<InodeId, Instant>,
    /// When `disputed` was full and those were dropped that are in dispute no more.
    cleared: Option<Instant>,
    is_looking: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Uptake {
    state: Mutex<State>,
    /// How many inodes are behind or led: mostly none.
    active: AtomicUsize,
}

impl State {
    /// An inode is in dispute from now on, if there is room. A mount that gives up thousands of inodes in a row says so
    /// of each: a full table is not gone through for every one.
    fn dispute(&mut self, inode: InodeId, now: Instant) {
        let is_full = self.disputed.len() >= DISPUTED_MAX;
        if is_full && self.cleared.is_none_or(|cleared| now.duration_since(cleared) >= CLEAR_INTERVAL) {
            self.disputed.retain(|_, since| now.duration_since(*since) < DISPUTE);
            self.cleared = Some(now);
        }
        if self.disputed.len() < DISPUTED_MAX {
            self.disputed.insert(inode, now);
        }
    }

    fn leads(&mut self, inode: InodeId, thread: u32, writes: bool, settles: bool) {
        let before = self.leads.remove(&inode);
        let (mut takers, mut waiting) = (Vec::new(), Vec::new());
        if let Some(before) = before {
            if before.writes && writes {
                takers = before.takers;
                let is_new = |taker: &Taker| taker.since.is_none_or(|since| since.elapsed() < UNSEEN_TIMEOUT);
                takers.retain(|taker| taker.thread != thread || (thread == UNSEEN && is_new(taker)));
            }
            waiting = before.waiting;
        }
        if thread != UNSEEN {
            self.threads.insert(thread, inode);
        }
        takers.push(Taker { thread, since: None });
        self.leads.insert(inode, Lead { takers, writes, settles, waiting, teller: None });
    }

    /// Answers were taken in by those takers. Gives what waited for that, if nothing else is to be taken in.
    fn taken(&mut self, inode: InodeId, by: impl Fn(&Taker) -> bool) -> Vec<Next> {
        let Some(lead) = self.leads.get_mut(&inode) else { return Vec::new() };
        for taker in lead.takers.extract_if(.., |taker| by(taker)) {
            if self.threads.get(&taker.thread) == Some(&inode) {
                self.threads.remove(&taker.thread);
            }
        }
        if !lead.takers.is_empty() {
            return Vec::new();
        }
        let Some(Lead { settles, waiting, teller, .. }) = self.leads.remove(&inode) else { return Vec::new() };
        if let Some(teller) = teller {
            let _ = teller.send(());
        }
        if settles {
            self.behind.remove(&inode);
        }
        waiting
    }
}

impl Uptake {
    /// Whether it matters who asks for what.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        self.active.store(state.behind.len() + state.leads.len(), Ordering::Relaxed);
        result
    }

    /// A thread made a request: it has taken in what it was answered before.
    pub fn heard_of(&self, thread: u32) {
        if !self.is_active() {
            return;
        }
        let next = self.with(|state| {
            let inode = state.threads.remove(&thread);
            inode.map(|inode| state.taken(inode, |taker| taker.thread == thread)).unwrap_or_default()
        });
        next.into_iter().for_each(|next| next());
    }

    /// There is an answer for an asker: what becomes of it. `kept`: the attributes may be kept.
    pub fn turn(&self, inode: InodeId, asker: Asker, effect: Effect, kept: bool) -> Turn {
        let matters = effect == Effect::Sets || (matches!(effect, Effect::Tells | Effect::Grows) && !kept);
        if !self.is_active() && !matters {
            return Turn::Free;
        }
        self.with(|state| {
            if effect == Effect::TellsOther {
                state.behind.remove(&inode);
                return Turn::Free;
            }
            let writes = effect == Effect::Grows;
            let is_other = |taker: &Taker| taker.thread != asker.thread || taker.thread == UNSEEN;
            match state.leads.get(&inode) {
                Some(lead) if !(lead.writes && writes) && lead.takers.iter().any(is_other) => return Turn::Wait,
                _ => {}
            }
            let behind = state.behind.get(&inode).copied();
            if matches!(effect, Effect::Tells | Effect::Grows) && kept && behind.is_none() {
                return Turn::Free;
            }
            let asked_later = |since: Instant| asker.at.is_some_and(|at| at > since);
            let settles = effect == Effect::Tells && kept && behind.flatten().is_some_and(asked_later);
            state.leads(inode, asker.thread, writes, settles);
            Turn::Once
        })
    }

    /// An answer whose turn it was is with the kernel.
    pub fn gave(&self, inode: InodeId, asker: Asker) {
        if let Some(lead) = self.state.lock().leads.get_mut(&inode) {
            let is_it = |taker: &&mut Taker| taker.thread == asker.thread && taker.since.is_none();
            lead.takers.iter_mut().find(is_it).into_iter().for_each(|taker| taker.since = Some(Instant::now()));
        }
    }

    /// Go on with an answer when the one before it has been taken in; never on this thread, which may hold what `next`
    /// needs.
    pub fn wait(self: &Arc<Self>, inode: InodeId, next: Next) {
        self.with(|state| match state.leads.get_mut(&inode) {
            None => drop(std::thread::spawn(next)),
            Some(lead) => {
                lead.waiting.push(next);
                self.start_looking(state);
            }
        });
    }

    fn start_looking(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.is_looking, true) {
            let uptake = self.clone();
            std::thread::spawn(move || uptake.look());
        }
    }

    /// See whether askers have run, as long as somebody waits for that.
    fn look(&self) {
        // For how long askers had run when it was looked first.
        let mut seen: FxHashMap<(u32, Instant), u64> = FxHashMap::default();
        loop {
            std::thread::sleep(LOOK_INTERVAL);
            let waited_for: Option<Vec<(InodeId, u32, Instant)>> = self.with(|state| {
                let is_waited_for = |lead: &Lead| !lead.waiting.is_empty() || lead.teller.is_some();
                let waited_for = || state.leads.iter().filter(|(_, lead)| is_waited_for(lead));
                state.is_looking = waited_for().next().is_some();
                let takers =
                    waited_for().flat_map(|(inode, lead)| lead.takers.iter().map(move |taker| (*inode, taker)));
                let given = takers.filter_map(|(inode, taker)| Some((inode, taker.thread, taker.since?)));
                state.is_looking.then(|| given.collect())
            });
            let Some(waited_for) = waited_for else { return };
            for (inode, thread, since) in waited_for {
                let has_run = is_idle(thread)
                    || run_nanos(thread).is_some_and(|nanos| {
                        nanos.saturating_sub(*seen.entry((thread, since)).or_insert(nanos)) >= RUN_NANOS
                    });
                let timeout = if thread == UNSEEN { UNSEEN_TIMEOUT } else { TAKEN_TIMEOUT };
                if !has_run && since.elapsed() < timeout {
                    continue;
                }
                let is_it = |taker: &Taker| taker.thread == thread && taker.since == Some(since);
                let next = self.with(|state| state.taken(inode, is_it));
                next.into_iter().for_each(|next| next());
            }
        }
    }

    /// The kernel is to be told that attributes are old. False when it keeps none, and must not be told again. Waits for
    /// an answer that is under way: the word would make the kernel drop it.
    pub fn tells_old(self: &Arc<Self>, inode: InodeId) -> bool {
        let (teller, taken) = mpsc::channel();
        let is_led = self.with(|state| match state.leads.get_mut(&inode) {
            // The kernel takes a write in whatever it is told.
            Some(lead) if lead.writes => false,
            None => false,
            Some(lead) => {
                lead.teller = Some(teller);
                self.start_looking(state);
                true
            }
        });
        if is_led {
            let _ = taken.recv_timeout(2 * TAKEN_TIMEOUT);
        }
        self.with(|state| {
            if let Some(lead) = state.leads.get_mut(&inode) {
                lead.settles = false;
            }
            state.dispute(inode, Instant::now());
            state.behind.entry(inode).or_default().is_none()
        })
    }

    /// The kernel was told.
    pub fn told_old(&self, inode: InodeId) {
        self.with(|state| {
            if let Some(since) = state.behind.get_mut(&inode) {
                *since = Some(Instant::now());
            }
        });
    }

    /// Whether others have just been changing the inode: who opens it had better not read by what the kernel has of it.
    pub fn is_disputed(&self, inode: InodeId) -> bool {
        self.state.lock().disputed.get(&inode).is_some_and(|since| since.elapsed() < DISPUTE)
    }

    /// Whether a listing must not tell attributes of an inode: the kernel is to ask for them.
    pub fn hides(&self, inode: InodeId, is_regular: bool) -> bool {
        self.is_active()
            && self.with(|state| {
                if !is_regular {
                    state.behind.remove(&inode);
                }
                state.behind.contains_key(&inode) || state.leads.contains_key(&inode)
            })
    }

    /// The kernel knows nothing of an inode any more.
    pub fn forget(&self, inode: InodeId) {
        if self.is_active() {
            let next = self.with(|state| {
                state.behind.remove(&inode);
                state.taken(inode, |_| true)
            });
            next.into_iter().for_each(|next| next());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(7);

    fn asker(thread: u32) -> Asker {
        Asker { thread, at: Some(Instant::now()) }
    }

    fn tells(uptake: &Uptake, thread: u32) -> Turn {
        let turn = uptake.turn(FILE, asker(thread), Effect::Tells, true);
        if turn == Turn::Once {
            uptake.gave(FILE, asker(thread));
        }
        turn
    }

    fn old(uptake: &Arc<Uptake>) -> bool {
        let tells = uptake.tells_old(FILE);
        uptake.told_old(FILE);
        tells
    }

    #[test]
    fn attributes_are_free_until_they_are_old_and_again_when_one_asker_has_taken_them_in() {
        let uptake = Arc::new(Uptake::default());
        assert_eq!((tells(&uptake, 1), tells(&uptake, 2)), (Turn::Free, Turn::Free));
        assert!(old(&uptake));
        assert_eq!((tells(&uptake, 1), tells(&uptake, 2)), (Turn::Once, Turn::Wait));
        uptake.heard_of(2);
        assert_eq!(tells(&uptake, 2), Turn::Wait);
        uptake.heard_of(1);
        assert_eq!((tells(&uptake, 1), tells(&uptake, 2)), (Turn::Free, Turn::Free));
        assert!(!uptake.is_active());
    }

    #[test]
    fn inodes_in_dispute_are_bounded_and_a_full_table_is_not_gone_through_for_each() {
        let (mut state, start) = (State::default(), Instant::now());
        let inodes = |from: u64| (from..from + 2 * DISPUTED_MAX as u64).map(InodeId);
        inodes(0).for_each(|inode| state.dispute(inode, start));
        assert_eq!((state.disputed.len(), state.cleared), (DISPUTED_MAX, Some(start)));
        let soon = start + CLEAR_INTERVAL / 2;
        inodes(1 << 32).for_each(|inode| state.dispute(inode, soon));
        assert_eq!((state.disputed.len(), state.cleared), (DISPUTED_MAX, Some(start)));
        let late = start + DISPUTE;
        inodes(2 << 32).for_each(|inode| state.dispute(inode, late));
        assert_eq!((state.disputed.len(), state.cleared), (DISPUTED_MAX, Some(late)));
        assert!(state.disputed.values().all(|since| *since == late), "nothing else is in dispute");
    }

    #[test]
    fn the_kernel_is_told_once_until_it_has_taken_an_answer_in() {
        let uptake = Arc::new(Uptake::default());
        assert!(old(&uptake) && !old(&uptake));
        // An asker of whom nothing is known is waited for.
        let start = Instant::now();
        assert_eq!(tells(&uptake, UNSEEN), Turn::Once);
        assert!(old(&uptake) && start.elapsed() >= UNSEEN_TIMEOUT);
        assert!(!old(&uptake));
    }

    #[test]
    fn what_was_asked_for_before_the_kernel_was_told_settles_nothing() {
        let uptake = Arc::new(Uptake::default());
        let early = asker(1);
        assert!(old(&uptake));
        assert_eq!(uptake.turn(FILE, early, Effect::Tells, true), Turn::Once);
        uptake.heard_of(1);
        assert_eq!((tells(&uptake, 2), tells(&uptake, 3)), (Turn::Once, Turn::Wait));
    }

    #[test]
    fn what_may_not_be_kept_and_what_is_never_dropped_goes_alone() {
        let uptake = Arc::new(Uptake::default());
        for (effect, kept) in [(Effect::Tells, false), (Effect::Sets, true), (Effect::Sets, false)] {
            assert_eq!(uptake.turn(FILE, asker(1), effect, kept), Turn::Once);
            assert_eq!(tells(&uptake, 2), Turn::Wait);
            assert_eq!(uptake.turn(FILE, asker(2), Effect::Grows, false), Turn::Wait);
            assert_eq!(uptake.turn(FILE, asker(2), Effect::Grows, true), Turn::Wait);
            uptake.heard_of(1);
            assert!(!uptake.is_active());
        }
        assert_eq!(uptake.turn(FILE, asker(1), Effect::Grows, true), Turn::Free);
    }

    #[test]
    fn who_sleeps_before_the_answer_is_with_the_kernel_has_not_taken_it_in() {
        let uptake = Arc::new(Uptake::default());
        let (sender, receiver) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            tell.send(crate::threads::own_id()).unwrap();
            let _ = held.recv();
        });
        let sleeper = told.recv().unwrap();
        assert!(old(&uptake));
        assert_eq!(uptake.turn(FILE, asker(sleeper), Effect::Tells, true), Turn::Once);
        assert_eq!(tells(&uptake, u32::MAX), Turn::Wait);
        uptake.wait(FILE, Box::new(move || sender.send(()).unwrap()));
        assert!(receiver.recv_timeout(20 * LOOK_INTERVAL).is_err());
        uptake.gave(FILE, asker(sleeper));
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(hold);
    }

    #[test]
    fn writes_are_taken_in_together_and_attributes_after_them() {
        let uptake = Arc::new(Uptake::default());
        let writes = |thread| uptake.turn(FILE, asker(thread), Effect::Grows, false);
        assert_eq!((writes(1), writes(2), writes(1)), (Turn::Once, Turn::Once, Turn::Once));
        assert_eq!((tells(&uptake, 1), tells(&uptake, 3)), (Turn::Wait, Turn::Wait));
        uptake.heard_of(1);
        assert_eq!((tells(&uptake, 1), tells(&uptake, 2)), (Turn::Wait, Turn::Free));
        uptake.heard_of(2);
        assert_eq!(uptake.turn(FILE, asker(3), Effect::Tells, false), Turn::Once);
        assert_eq!(writes(1), Turn::Wait);
        uptake.heard_of(3);
        assert_eq!(writes(1), Turn::Once);
        // It does not matter to a write what the kernel is told.
        assert!(uptake.tells_old(FILE));
    }

    #[test]
    fn a_directory_has_no_bytes_to_wait_for() {
        let uptake = Arc::new(Uptake::default());
        assert!(old(&uptake) && uptake.hides(FILE, true));
        assert_eq!(uptake.turn(FILE, asker(1), Effect::TellsOther, true), Turn::Free);
        assert!(old(&uptake), "the kernel may keep it again");
    }

    #[test]
    fn who_waits_goes_on_when_the_asker_makes_no_request_any_more() {
        let uptake = Arc::new(Uptake::default());
        let (sender, receiver) = std::sync::mpsc::channel();
        use crate::threads::own_id;
        let gone = std::thread::spawn(own_id).join().unwrap();
        // One that computes, as long as it is heard.
        let (computes, computing) = std::sync::mpsc::channel();
        std::thread::spawn(move || while computes.send(own_id()).is_ok() {});
        for thread in [gone, UNSEEN, computing.recv().unwrap()] {
            assert!(old(&uptake));
            assert_eq!(tells(&uptake, thread), Turn::Once);
            assert_eq!(tells(&uptake, u32::MAX), Turn::Wait);
            let sender = sender.clone();
            uptake.wait(FILE, Box::new(move || sender.send(()).unwrap()));
            receiver.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(!uptake.is_active());
        }
    }
}
