//! The shell around the lease authority: waits for recalls, and tells sessions of them.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use atoll_lease::{Claim, Counts, Grant, HolderInfo, Issue, Notice, Recall, WaiterId};
use atoll_types::limits::INODES_RESERVED;
use atoll_types::{Errno, InodeId, Made, Operation, Outcome, SessionId};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::core::{Asked, Core, Step, Stop};
use crate::volume::Volume;

/// The longest that operations wait for journals of an earlier authority's sessions, while these come.
const GRACE_MAX: Duration = Duration::from_secs(60);

type Tell = Box<dyn Fn(Notice) + Send + Sync>;

pub(crate) struct Leases {
    started: Instant,
    grace: Mutex<Option<Grace>>,
    /// False when there is no grace: nobody has to look.
    in_grace: AtomicBool,
    graced: Notify,
    waiting: Mutex<HashMap<WaiterId, oneshot::Sender<()>>>,
    tell: OnceLock<Tell>,
}

/// Sessions of an earlier authority that may still use what it granted them, or have made changes under it that only
/// they know.
struct Grace {
    sessions: HashSet<SessionId>,
    until: Instant,
    /// How much longer it lasts when one of them shows that it is there, up to `until_max`.
    term: Duration,
    until_max: Instant,
}

impl Default for Leases {
    fn default() -> Self {
        Leases {
            started: Instant::now(),
            grace: Mutex::default(),
            in_grace: AtomicBool::new(false),
            graced: Notify::new(),
            waiting: Mutex::default(),
            tell: OnceLock::new(),
        }
    }
}

impl Leases {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Wait until no session uses what an earlier authority granted it, and the changes made under it are executed.
    pub async fn grace(&self) {
        while self.is_in_grace() {
            let over = self.graced.notified();
            let until = match &*self.grace.lock() {
                Some(grace) if Instant::now() < grace.until => grace.until,
                _ => {
                    self.in_grace.store(false, Ordering::Release);
                    return;
                }
            };
            tokio::select! {
                _ = over => {}
                _ = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    pub fn is_in_grace(&self) -> bool {
        self.in_grace.load(Ordering::Acquire)
    }

    pub fn wake(&self, waiters: Vec<WaiterId>) {
        if waiters.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock();
        for waiter in waiters {
            if let Some(sender) = waiting.remove(&waiter) {
                // A receiver that is gone has withdrawn.
                let _ = sender.send(());
            }
        }
    }

    fn send(&self, notices: Vec<Notice>) {
        if let Some(tell) = self.tell.get() {
            notices.into_iter().for_each(tell);
        }
    }
}

/// One operation on its way: what it waits for and what it earned.
pub(crate) struct Leasing<'a> {
    volume: &'a Volume,
    session: SessionId,
    operation: &'a Operation,
    /// How the client made the change before it asked.
    made: Option<&'a Made>,
    /// The session may keep what the answer earns.
    keeps: bool,
    waiter: Option<WaiterId>,
    claims: Vec<Claim>,
    earned: Earned,
}

/// What the session may keep of an answer, and where the operation stands among all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earned {
    pub grants: Vec<Grant>,
    pub order: Issue,
}

/// An operation that others hold up.
pub(crate) struct Blocked {
    notices: Vec<Notice>,
    freed: oneshot::Receiver<()>,
}

impl<'a> Leasing<'a> {
    pub fn new(
        volume: &'a Volume,
        session: SessionId,
        operation: &'a Operation,
        made: Option<&'a Made>,
        keeps: bool,
    ) -> Self {
        Leasing { volume, session, operation, made, keeps, waiter: None, claims: Vec::new(), earned: Earned::default() }
    }

    pub fn session(&self) -> SessionId {
        self.session
    }

    pub fn operation(&self) -> &'a Operation {
        self.operation
    }

    pub fn into_earned(mut self) -> Earned {
        std::mem::take(&mut self.earned)
    }

    /// `None` when nobody holds what the operation excludes; it may be executed while the lock is held.
    pub fn claim(&mut self, core: &mut Core) -> Step<Option<Blocked>> {
        if self.waiter.is_some_and(|waiter| !core.leases.is_waiting(waiter)) {
            // The session is over: nobody is there for the answer, and the client may have asked elsewhere.
            return Err(Stop::Error(Errno::EIO));
        }
        if self.made.is_some() && !core.leases.is_enrolled(self.session) {
            // The rights under which it was made went with the session: others may have changed the same since.
            return Err(Stop::Error(Errno::EIO));
        }
        let claims = core.claims(self.operation)?;
        let leases = &self.volume.inner.leases;
        if core.leases.is_free(self.session, &claims) {
            let contended = |claim: &Claim| core.leases.is_contended(claim.inode, leases.now_ms());
            core.lingers = self.waiter.is_some() || claims.iter().any(contended);
            core.set_made(self.made);
            self.claims = claims;
            return Ok(None);
        }
        let (waiter, notices) = core.leases.wait(self.session, claims, self.waiter, leases.now_ms());
        self.waiter = Some(waiter);
        let (sender, freed) = oneshot::channel();
        leases.waiting.lock().insert(waiter, sender);
        Ok(Some(Blocked { notices, freed }))
    }

    /// Until every holder has given up or was fenced.
    pub async fn wait(&self, blocked: Blocked) {
        self.volume.inner.leases.send(blocked.notices);
        // A sender is dropped unused only when the volume goes away.
        let _ = blocked.freed.await;
    }

    /// Keep what the answer earns the session.
    pub fn earn(&mut self, core: &mut Core, result: Result<&Outcome, Errno>) {
        let now_ms = self.volume.inner.leases.now_ms();
        if self.made.is_some() {
            core.leases.progress(self.session, now_ms);
        }
        let asked = Asked {
            session: self.session,
            operation: self.operation,
            claims: &self.claims,
            alone: self.waiter.is_none(),
            number: self.made.and_then(|made| made.inode),
        };
        let grants = if self.keeps { core.grants(&asked, result, now_ms) } else { Vec::new() };
        self.earned = Earned { grants, order: core.leases.stamp() };
    }
}

impl Drop for Leasing<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.volume.inner.shared.core.lock().leases.withdraw(waiter);
            self.volume.inner.leases.waiting.lock().remove(&waiter);
        }
    }
}

impl Volume {
    /// Where recalls go. Set once, before any session enrolls.
    pub fn on_recall(&self, tell: impl Fn(Notice) + Send + Sync + 'static) {
        let _ = self.inner.leases.tell.set(Box::new(tell));
    }

    /// An earlier authority may have granted these sessions rights that end with their terms, `term` from now at
    /// the latest, and they may have made changes under them: operations wait until then, or until each of them has
    /// [returned](Volume::returned). What was [made before](Volume::execute_made) does not wait.
    pub fn begin_grace(&self, sessions: impl IntoIterator<Item = SessionId>, term: Duration) {
        let sessions: HashSet<SessionId> = sessions.into_iter().collect();
        if !sessions.is_empty() {
            let now = Instant::now();
            let grace = Grace { sessions, until: now + term, term, until_max: now + term.max(GRACE_MAX) };
            *self.inner.leases.grace.lock() = Some(grace);
            self.inner.leases.in_grace.store(true, Ordering::Release);
        }
    }

    /// A session of an earlier authority has connected anew, and executes what it made meanwhile: operations wait
    /// another term, as long as this goes on, within bounds.
    pub fn returning(&self, session: SessionId) {
        if let Some(grace) = &mut *self.inner.leases.grace.lock()
            && grace.sessions.contains(&session)
            && Instant::now() < grace.until
        {
            grace.until = (Instant::now() + grace.term).min(grace.until_max);
        }
    }

    /// A session of an earlier authority uses nothing of what it was granted, and everything that it made is executed.
    pub fn returned(&self, session: SessionId) {
        let mut grace = self.inner.leases.grace.lock();
        if let Some(Grace { sessions, .. }) = &mut *grace {
            sessions.remove(&session);
            if sessions.is_empty() {
                *grace = None;
                self.inner.leases.graced.notify_waiters();
            }
        }
    }

    /// Sessions of an earlier authority that have not returned in time yet.
    pub fn unreturned_sessions(&self) -> Vec<SessionId> {
        let grace = self.inner.leases.grace.lock();
        let left = grace.iter().filter(|grace| Instant::now() < grace.until);
        left.flat_map(|grace| grace.sessions.iter().copied()).collect()
    }

    /// The session wants leases and will answer recalls.
    pub fn enroll(&self, session: SessionId) {
        self.inner.shared.core.lock().leases.enroll(session);
    }

    /// A session gave rights up.
    pub fn given_up(&self, session: SessionId, rights: &[Recall]) {
        let now_ms = self.inner.leases.now_ms();
        for recall in rights {
            let free = self.inner.shared.core.lock().leases.acknowledge(session, recall, now_ms);
            self.inner.leases.wake(free);
        }
    }

    /// What a session was told to give up and has not.
    pub fn unanswered_recalls(&self, session: SessionId) -> Vec<Recall> {
        self.inner.shared.core.lock().leases.unanswered(session)
    }

    /// Whether a session may use what it holds for another term.
    pub fn may_renew(&self, session: SessionId) -> bool {
        self.inner.shared.core.lock().leases.may_renew(session, self.inner.leases.now_ms())
    }

    /// Sessions that hold others up for too long: to be ended. Call a few times a second.
    pub fn overdue_sessions(&self) -> Vec<SessionId> {
        let now_ms = self.inner.leases.now_ms();
        let mut core = self.inner.shared.core.lock();
        core.leases.sweep(now_ms);
        let overdue = core.leases.overdue(now_ms);
        overdue.iter().for_each(|_| core.leases.count_fenced());
        overdue
    }

    /// Inode numbers that are the session's to give to what it makes before it asks, until it is over: the first one
    /// and how many. No later authority of the volume gives them to anybody either.
    pub async fn reserve(&self, session: SessionId) -> Result<(InodeId, u32), Errno> {
        let (first, covered) = self.inner.shared.core.lock().draw_numbers();
        self.until_durable(covered).await?;
        self.inner.shared.core.lock().hand_numbers(session, first);
        Ok((first, INODES_RESERVED))
    }

    /// The session is over: for who [reserved](Volume::reserve) meanwhile.
    pub fn forget_reserves(&self, session: SessionId) {
        self.inner.shared.core.lock().forget_reserves(session);
    }

    /// Free what lost its last name a while ago. Call a few times a second.
    pub async fn reap_lingering(&self) {
        let gone = self.inner.shared.core.lock().lingered(Instant::now());
        for inode in gone {
            if let Err(errno) = self.reap(inode).await {
                tracing::warn!(%inode, %errno, "cannot reap an inode without names");
            }
        }
    }

    /// Holders of an inode, and for how long each has held it, in ms.
    pub fn lease_holders(&self, inode: InodeId) -> Vec<(HolderInfo, u64)> {
        let now_ms = self.inner.leases.now_ms();
        let holders = self.inner.shared.core.lock().leases.holders(inode);
        holders.into_iter().map(|holder| (holder, now_ms.saturating_sub(holder.since_ms))).collect()
    }

    /// Figures of the leases, and how many pairs of inode and holder there are.
    pub fn lease_counts(&self) -> (Counts, usize) {
        let core = self.inner.shared.core.lock();
        (core.leases.counts(), core.leases.held())
    }
}
