//! The time after a start in which sessions of the last authority come back.
//!
//! What they were told and the store does not hold, they make again, in the order in which it was made first, all
//! of them together. Whoever has nothing to make again waits until that is done, or until who is missing has had
//! its time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use atoll_lease::Issue;
use atoll_types::SessionId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The longest that operations wait for sessions of an earlier authority, while these make changes again.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// How often it is looked at who is missing, at least, while somebody waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// When nobody has looked for so long, this process did not run, and nobody could come back.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// Before it has said what it makes again, a session may come with anything.
const UNHEARD: Issue = Issue(0);

struct Member {
    /// It makes nothing again that stood before this.
    at: Issue,
    /// It has its turn until then.
    until: Instant,
    /// Its turn has not come: it waits for others, and they not for it.
    waiting: usize,
}

struct State {
    /// Sessions that have not returned.
    members: HashMap<SessionId, Member>,
    /// How long a member may be silent.
    term: Duration,
    until_max: Instant,
    looked: Instant,
}

impl State {
    fn new(sessions: impl IntoIterator<Item = SessionId>, term: Duration, now: Instant) -> State {
        let unheard = |session| (session, Member { at: UNHEARD, until: now + term, waiting: 0 });
        let members = sessions.into_iter().map(unheard).collect();
        State { members, term, until_max: now + term.max(GRACE_MAX), looked: now }
    }

    /// Whether everything that stood before `order` is made again. What two sessions were answered at the same place, which is then
    /// no matter of their order, they make again one after the other: otherwise each would wait for the other.
    fn is_next(&self, session: SessionId, order: Issue) -> bool {
        let mut others = self.members.iter().filter(|(other, _)| **other != session);
        others.all(|(other, member)| (member.at, *other) > (order, session))
    }

    /// Members whose time is over. Time in which this process did not run is nobody's.
    fn overdue(&mut self, now: Instant) -> Vec<SessionId> {
        let unseen = now.saturating_duration_since(self.looked);
        self.looked = now;
        if unseen >= STOOD_STILL {
            self.until_max += unseen;
            self.members.values_mut().for_each(|member| member.until += unseen);
        }
        let is_over = now >= self.until_max;
        let overdue = |member: &Member| is_over || (member.waiting == 0 && now >= member.until);
        let overdue = self.members.iter().filter(|(_, member)| overdue(member)).map(|(session, _)| *session);
        let overdue: Vec<SessionId> = overdue.collect();
        overdue.iter().for_each(|session| {
            self.members.remove(session);
        });
        overdue
    }

    /// When somebody's time is over next, or it is to be looked at again.
    fn next(&self) -> Instant {
        let silent = self.members.values().filter(|member| member.waiting == 0).map(|member| member.until);
        silent.min().unwrap_or(self.until_max).min(self.until_max).min(self.looked + LOOK_INTERVAL)
    }
}

#[derive(Default)]
pub(crate) struct Grace {
    state: Mutex<Option<State>>,
    /// False when there is no grace: nobody has to look.
    active: AtomicBool,
    changed: Notify,
    /// Sessions that did not return in time: nothing of theirs is taken any more.
    missed: Mutex<HashSet<SessionId>>,
}

impl Grace {
    pub fn begin(&self, sessions: impl IntoIterator<Item = SessionId>, term: Duration) {
        let state = State::new(sessions, term, Instant::now());
        if !state.members.is_empty() {
            *self.state.lock() = Some(state);
            self.active.store(true, Ordering::Release);
        }
    }

    /// Whether it lasts. Sees to those whose time is over.
    pub fn lasts(&self) -> bool {
        if !self.active.load(Ordering::Acquire) {
            return false;
        }
        let mut state = self.state.lock();
        let Some(lasting) = &mut *state else { return false };
        let overdue = lasting.overdue(Instant::now());
        if !overdue.is_empty() {
            self.missed.lock().extend(overdue);
            self.moves_on(&mut state);
        }
        state.is_some()
    }

    /// Who waits looks again, for the last time when nobody is missing any more.
    fn moves_on(&self, state: &mut Option<State>) {
        if state.as_ref().is_some_and(|lasting| lasting.members.is_empty()) {
            *state = None;
            self.active.store(false, Ordering::Release);
        }
        self.changed.notify_waiters();
    }

    /// Wait until it is over.
    pub async fn over(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.lasts() {
                return;
            }
            self.moved(changed).await;
        }
    }

    /// Wait until something of it changes.
    async fn moved(&self, changed: Notified<'_>) {
        let Some(until) = self.state.lock().as_ref().map(State::next) else { return };
        tokio::select! {
            _ = changed => {}
            _ = tokio::time::sleep_until(until.into()) => {}
        }
    }

    /// Whether the session has not made everything again yet.
    pub fn awaits(&self, session: SessionId) -> bool {
        self.lasts() && self.state.lock().as_ref().is_some_and(|lasting| lasting.members.contains_key(&session))
    }

    /// A session is there: it gets another term.
    pub fn heard(&self, session: SessionId) {
        self.count(session, 0);
    }

    /// The same, of a session for which so many more requests wait for their turn.
    fn count(&self, session: SessionId, more: isize) {
        if let Some(state) = &mut *self.state.lock()
            && let Some(member) = state.members.get_mut(&session)
        {
            member.waiting = member.waiting.saturating_add_signed(more);
            member.until = Instant::now() + state.term;
        }
    }

    /// A session makes again what stood at `order`: wait until everything before it is made again. False when the
    /// session has missed its time.
    pub async fn turn(&self, session: SessionId, order: Issue) -> bool {
        let _waiting = Waiting::new(self, session);
        loop {
            let changed = self.changed.notified();
            if !self.lasts() {
                return self.may_return(session);
            }
            if self.is_next(session, order) {
                return self.may_return(session);
            }
            self.moved(changed).await;
        }
    }

    /// Whether a session that comes to `order` need not wait for others: there is no time left to it, or it is its turn.
    fn is_next(&self, session: SessionId, order: Issue) -> bool {
        let mut state = self.state.lock();
        let Some(state) = &mut *state else { return true };
        let Some(member) = state.members.get_mut(&session) else { return true };
        if member.at < order {
            member.at = order;
            self.changed.notify_waiters();
        }
        state.is_next(session, order)
    }

    /// A session has made everything again.
    pub fn returned(&self, session: SessionId) {
        let mut state = self.state.lock();
        if state.as_mut().is_some_and(|lasting| lasting.members.remove(&session).is_some()) {
            self.moves_on(&mut state);
        }
    }

    /// Whether a session of the last authority may come back.
    pub fn may_return(&self, session: SessionId) -> bool {
        self.lasts();
        !self.missed.lock().contains(&session)
    }

    /// Sessions that did not return in time.
    pub fn missed(&self) -> Vec<SessionId> {
        self.lasts();
        self.missed.lock().iter().copied().collect()
    }
}

/// A session that waits for its turn; its time goes on when this is dropped.
struct Waiting<'a>(&'a Grace, SessionId);

impl<'a> Waiting<'a> {
    fn new(grace: &'a Grace, session: SessionId) -> Self {
        grace.count(session, 1);
        Waiting(grace, session)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.count(self.1, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn grace(term_ms: u64) -> Grace {
        let grace = Grace::default();
        grace.begin([A, B], Duration::from_millis(term_ms));
        grace
    }

    #[tokio::test]
    async fn what_was_made_first_is_made_again_first() {
        let grace = grace(60_000);
        let late = grace.turn(A, Issue(7));
        tokio::pin!(late);
        assert!(futures_util::poll!(&mut late).is_pending(), "the other may come with anything");
        assert!(grace.turn(B, Issue(5)).await);
        assert!(futures_util::poll!(&mut late).is_pending(), "the other may come with 6");
        let next = grace.turn(B, Issue(8));
        tokio::pin!(next);
        assert!(futures_util::poll!(&mut next).is_pending());
        assert!(late.await);
        grace.returned(A);
        assert!(next.await);
        assert!(grace.lasts());
        grace.returned(B);
        assert!(!grace.lasts());
    }

    #[tokio::test]
    async fn two_that_come_to_the_same_place_do_not_wait_for_each_other() {
        let grace = grace(60_000);
        let second = grace.turn(B, Issue(7));
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending(), "the other may come with anything");
        assert!(grace.turn(A, Issue(7)).await);
        assert!(futures_util::poll!(&mut second).is_pending());
        grace.returned(A);
        assert!(second.await);
    }

    #[tokio::test]
    async fn who_does_not_come_back_is_waited_for_no_longer_than_its_term() {
        let grace = grace(30);
        assert!(grace.turn(A, Issue(7)).await, "who waits does not miss its time meanwhile");
        assert!(grace.may_return(A) && !grace.may_return(B));
        assert!(!grace.turn(B, Issue(1)).await);
        grace.over().await;
        assert!(!grace.may_return(A), "it was silent for as long");
        assert_eq!(grace.missed().len(), 2);
    }

    #[test]
    fn the_time_of_a_server_that_stood_still_is_taken_from_nobody() {
        let (begin, term) = (Instant::now(), Duration::from_secs(4));
        let mut state = State::new([A, B], term, begin);
        let looks = |state: &mut State, from: Instant, until: Instant| {
            let mut now = from;
            while now < until {
                assert!(state.overdue(now).is_empty());
                now = state.next().min(until);
            }
            state.overdue(until).len()
        };
        let frozen = begin + term / 2;
        assert_eq!(looks(&mut state, begin, frozen), 0);
        let thawed = frozen + GRACE_MAX * 2;
        assert_eq!(looks(&mut state, thawed, thawed + term / 2 - Duration::from_millis(1)), 0);
        assert_eq!(looks(&mut state, thawed + term / 2, thawed + term / 2), 2);
    }

    #[tokio::test]
    async fn who_gives_up_its_turn_is_silent_again() {
        let grace = grace(30);
        drop(Box::pin(grace.turn(A, Issue(7))));
        grace.over().await;
        assert_eq!(grace.missed().len(), 2);
    }
}
