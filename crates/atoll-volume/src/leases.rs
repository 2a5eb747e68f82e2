//! The shell around the lease authority: waits for recalls, and tells sessions of them.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use atoll_lease::{Claim, Counts, Grant, HolderInfo, Issue, Notice, Recall, Rights, WaiterId};
use atoll_types::limits::INODES_RESERVED;
use atoll_types::{Errno, InodeId, Operation, OperationSeq, Outcome, SessionId, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::awake::Awake;
use crate::core::{Asked, Core, NOBODY, Step, Stop, Unheard};
use crate::grace::Grace;
use crate::sessions::Mark;
use crate::volume::{Asking, Volume};

/// How long a client may take to say what it has heard of before changes are made durable instead.
const HEARD_TIMEOUT: Duration = Duration::from_millis(2);

type Tell = Box<dyn Fn(Notice) + Send + Sync>;

pub(crate) struct Leases {
    awake: Awake,
    pub grace: Grace,
    waiting: Mutex<HashMap<WaiterId, oneshot::Sender<()>>>,
    tell: OnceLock<Tell>,
    /// Asks a session which answers it has.
    ask: OnceLock<Box<dyn Fn(SessionId) + Send + Sync>>,
    /// Some session has heard of more of its changes.
    pub heard: Notify,
}

impl Default for Leases {
    fn default() -> Self {
        Leases {
            awake: Awake::new(),
            grace: Grace::default(),
            waiting: Mutex::default(),
            tell: OnceLock::new(),
            ask: OnceLock::new(),
            heard: Notify::new(),
        }
    }
}

impl Leases {
    fn now_ms(&self) -> u64 {
        self.awake.now().as_millis() as u64
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

    /// Until every holder has given up or was fenced.
    pub async fn until_free(&self, blocked: Blocked) {
        self.send(blocked.notices);
        // A sender is dropped unused only when the volume goes away.
        let _ = blocked.freed.await;
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
    asking: Asking<'a>,
    operation: &'a Operation,
    /// The session may keep what the answer earns.
    keeps: bool,
    /// The store is to be told of the execution with its effects.
    is_noted: bool,
    waiting: Waiting<'a>,
    claims: Vec<Claim>,
    /// What the answer shows, and whose clients may not have heard of it.
    unheard: Unheard,
    earned: Earned,
    /// Quota roots in which little is left by now.
    tightened: Vec<InodeId>,
    /// It was made without asking, and so little is left that the next change is to be asked for.
    is_tight: bool,
    /// It came into the trash by a change that was made without asking: the session takes it to have no name.
    trashed: Option<InodeId>,
}

/// What the session may keep of an answer, and where the operation stands among all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earned {
    pub grants: Vec<Grant>,
    pub order: Issue,
    /// When the newest change was made, by then.
    pub at: Timestamp,
    /// Others use what was changed, and their answers wait until the session's client has heard of the change: it should
    /// say so unasked.
    pub watched: bool,
}

/// An operation that others hold up.
pub(crate) struct Blocked {
    notices: Vec<Notice>,
    freed: oneshot::Receiver<()>,
}

impl<'a> Leasing<'a> {
    pub fn new(volume: &'a Volume, asking: Asking<'a>, operation: &'a Operation, keeps: bool) -> Self {
        Leasing {
            volume,
            asking,
            operation,
            keeps,
            is_noted: asking.mark == Mark::None,
            waiting: Waiting::new(volume),
            claims: Vec::new(),
            unheard: Unheard::default(),
            earned: Earned::default(),
            tightened: Vec::new(),
            is_tight: false,
            trashed: None,
        }
    }

    pub fn session(&self) -> SessionId {
        self.asking.session
    }

    pub fn operation(&self) -> &'a Operation {
        self.operation
    }

    /// What the operation touches, as it was executed.
    pub fn touched(&self) -> impl Iterator<Item = InodeId> {
        self.claims.iter().map(|claim| claim.inode)
    }

    /// What was earned, and what holds the answer back.
    pub fn end(mut self) -> (Earned, Unheard) {
        (std::mem::take(&mut self.earned), std::mem::take(&mut self.unheard))
    }

    /// What the session is to ask for from now on before it changes it.
    pub fn to_be_asked(&self) -> impl Iterator<Item = InodeId> {
        self.claims.iter().filter(|_| self.is_tight).map(|claim| claim.inode)
    }

    /// Quota roots in which nobody is to change anything without asking any more.
    pub fn take_tightened(&mut self) -> Vec<InodeId> {
        std::mem::take(&mut self.tightened)
    }

    /// What the session knows something wrong of.
    pub fn trashed(&self) -> impl Iterator<Item = InodeId> {
        self.trashed.into_iter()
    }

    /// The answer will show these inodes.
    fn shows(&mut self, core: &Core, inodes: impl Iterator<Item = InodeId>) {
        // What was made before it was asked for was made under rights that nobody else had.
        if self.asking.made.is_none() {
            core.unheard.before(self.asking.session, inodes, &mut self.unheard);
        }
    }

    /// `None` when nobody holds what the operation excludes; it may be executed while the lock is held.
    pub fn claim(&mut self, core: &mut Core) -> Step<Option<Blocked>> {
        if self.waiting.id.is_some_and(|waiter| !core.leases.is_waiting(waiter)) {
            // The session is over: nobody is there for the answer, and the client may have asked elsewhere.
            return Err(Stop::Error(Errno::EIO));
        }
        if self.asking.made.is_some() && !self.asking.again && !core.leases.is_enrolled(self.session()) {
            // The rights under which it was made went with the session: others may have changed the same since.
            return Err(Stop::Error(Errno::EIO));
        }
        let claims = core.claims(self.operation)?;
        let leases = &self.volume.inner.leases;
        if core.leases.is_free(self.session(), &claims) {
            let contended = |claim: &Claim| core.leases.is_contended(claim.inode, leases.now_ms());
            core.lingers = self.asking.again || self.waiting.id.is_some() || claims.iter().any(contended);
            core.set_made(self.asking.made, self.asking.again);
            self.unheard = Unheard::default();
            self.shows(core, claims.iter().map(|claim| claim.inode));
            self.claims = claims;
            return Ok(None);
        }
        if let Operation::ReadDirectory { ahead: true, .. } = self.operation {
            // Nobody waits for it, so nobody has to give something up for it.
            return Err(Stop::Error(Errno::EAGAIN));
        }
        let session = self.session();
        Ok(Some(self.waiting.begin(core, session, claims)))
    }

    /// Until every holder has given up or was fenced.
    pub async fn wait(&self, blocked: Blocked) {
        self.volume.inner.leases.until_free(blocked).await;
    }

    /// Keep what the answer earns the session.
    pub fn earn(&mut self, core: &mut Core, result: Result<&Outcome, Errno>) {
        let now_ms = self.volume.inner.leases.now_ms();
        if self.asking.made.is_some() {
            core.leases.progress(self.session(), now_ms);
            self.is_tight = core.is_tight_at(&self.claims);
            self.trashed = core.take_trashed();
        }
        self.tightened = core.roots.take_tightened();
        let asked = Asked {
            session: self.session(),
            operation: self.operation,
            claims: &self.claims,
            alone: self.waiting.id.is_none(),
            number: self.asking.made.and_then(|made| made.inode),
        };
        let grants = if self.keeps { core.grants(&asked, result, now_ms) } else { Vec::new() };
        self.earned = Earned { grants, order: core.leases.stamp(), at: core.last_change(), watched: false };
        core.note(self.session(), self.asking.mark, result);
        self.is_noted = true;
        if let Ok(Outcome::Listing { entries, .. }) = result {
            let listed = entries.iter().filter(|entry| entry.attributes.is_some());
            self.shows(core, listed.map(|entry| entry.inode));
        }
        if let (Mark::Numbered { sequence, .. }, true) = (self.asking.mark, result.is_ok() && self.operation.mutates())
        {
            let ordered = core.ordered();
            for claim in &self.claims {
                core.unheard.changed(claim.inode, self.session(), sequence, ordered);
            }
            self.earned.watched = core.lingers;
        }
    }

    /// The answer may be old already: nothing of it is kept.
    pub fn earn_nothing(&mut self, core: &mut Core) {
        self.earned = Earned { order: core.leases.stamp(), at: core.last_change(), ..Earned::default() };
    }

    /// An operation that had no effect to be told with was executed.
    pub fn note(&mut self, result: Result<&Outcome, Errno>) {
        if !self.is_noted {
            self.volume.inner.shared.core.lock().note(self.session(), self.asking.mark, result);
            self.is_noted = true;
        }
    }
}

/// A place among those who wait for rights of others, until it is dropped.
pub(crate) struct Waiting<'a> {
    volume: &'a Volume,
    id: Option<WaiterId>,
}

impl<'a> Waiting<'a> {
    pub fn new(volume: &'a Volume) -> Self {
        Waiting { volume, id: None }
    }

    pub fn begin(&mut self, core: &mut Core, session: SessionId, claims: Vec<Claim>) -> Blocked {
        let leases = &self.volume.inner.leases;
        let (waiter, notices) = core.leases.wait(session, claims, self.id, leases.now_ms());
        self.id = Some(waiter);
        let (sender, freed) = oneshot::channel();
        leases.waiting.lock().insert(waiter, sender);
        Blocked { notices, freed }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = self.id {
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

    /// Who asks a session for [`Volume::heard`]. Set once, before any session asks for anything.
    pub fn on_unheard(&self, ask: impl Fn(SessionId) + Send + Sync + 'static) {
        let _ = self.inner.leases.ask.set(Box::new(ask));
    }

    /// The client of a session knows the answers of all its changes below this number.
    pub fn heard(&self, session: SessionId, below: OperationSeq) {
        if self.inner.shared.core.lock().unheard.heard(session, below) {
            self.inner.leases.heard.notify_waiters();
        }
    }

    /// Hold an answer back until what it shows is durable, or cannot be taken by a crash unnoticed. Not for long: what is
    /// waited for becomes durable at once. Nobody is shown what never will be.
    pub(crate) async fn until_heard(&self, unheard: Unheard) -> Result<(), Errno> {
        let leases = &self.inner.leases;
        if let Some(ask) = leases.ask.get() {
            unheard.of.iter().for_each(|(session, _)| ask(*session));
        }
        let all_heard = async {
            loop {
                let mut heard = std::pin::pin!(leases.heard.notified());
                heard.as_mut().enable();
                if self.inner.shared.core.lock().unheard.are_heard(&unheard.of) {
                    return;
                }
                heard.await;
            }
        };
        let mut all_heard = std::pin::pin!(all_heard);
        // What they say is mostly on its way, and costs less than a commit.
        if tokio::time::timeout(HEARD_TIMEOUT, &mut all_heard).await.is_ok() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = all_heard => Ok(()),
            durable = self.until_durable(unheard.ordered) => match durable {
                // A disk that is full keeps nobody from reading.
                Err(Errno::ENOSPC) => Ok(()),
                durable => durable,
            }
        }
    }

    /// Have sessions give up the right to change these inodes without asking. Before it does, a session says everything
    /// that it has changed so, these inodes or others.
    pub(crate) async fn ask_writers(&self, inodes: impl IntoIterator<Item = InodeId>) {
        let asked = inodes.into_iter().map(|inode| async move {
            let claim = Claim { inode, excludes: Rights::WRITER };
            let mut waiting = Waiting::new(self);
            let blocked = {
                let mut core = self.inner.shared.core.lock();
                let is_free = core.leases.is_free(NOBODY, &[claim]);
                (!is_free).then(|| waiting.begin(&mut core, NOBODY, vec![claim]))
            };
            if let Some(blocked) = blocked {
                self.inner.leases.until_free(blocked).await;
            }
        });
        futures_util::future::join_all(asked).await;
    }

    /// Run a step that is no session's until nothing is missing and no session holds what it excludes.
    pub(crate) async fn excluding<T>(
        &self,
        claim: Claim,
        mut run: impl FnMut(&mut Core) -> Step<T>,
    ) -> Result<T, Errno> {
        let run = |core: &mut Core| {
            core.must_exclude(claim)?;
            run(core)
        };
        self.alone(run).await
    }

    /// An earlier authority may have granted these sessions rights that end with their terms, `term` from now at
    /// the latest, and told them of changes that the store does not hold: operations wait until then, or until each of
    /// them has [returned](Volume::returned). What was [made before](Asking::made) does not wait.
    pub fn begin_grace(&self, sessions: impl IntoIterator<Item = SessionId>, term: Duration) {
        self.inner.leases.grace.begin(sessions, term);
    }

    /// A session of an earlier authority is there: operations wait another term for it, as long as this goes on,
    /// within bounds.
    pub fn returning(&self, session: SessionId) {
        self.inner.leases.grace.heard(session);
    }

    /// Wait until a change that is made again, and stood at `order` for an earlier authority, is the next one. False
    /// when the session has missed its time.
    pub async fn turn(&self, session: SessionId, order: Issue) -> bool {
        self.inner.leases.grace.turn(session, order).await
    }

    /// A session of an earlier authority uses nothing of what it was granted, and has made everything again.
    pub fn returned(&self, session: SessionId) {
        self.inner.leases.grace.returned(session);
    }

    /// Whether a session of an earlier authority may still come back.
    pub fn may_return(&self, session: SessionId) -> bool {
        self.inner.leases.grace.may_return(session)
    }

    /// Sessions of an earlier authority that did not come back in time.
    pub fn missed_sessions(&self) -> Vec<SessionId> {
        self.inner.leases.grace.missed()
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

    /// The time, for a client that dates by it what it makes in the next term.
    pub fn tell_time(&self) -> Timestamp {
        self.inner.shared.core.lock().tell_time()
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
        self.until_roomy().await;
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
        if self.inner.leases.grace.lasts() {
            // Who had it open comes back.
            return;
        }
        self.reap_orphans().await;
        self.resume_stamping();
        let gone = self.inner.shared.core.lock().lingered(Instant::now());
        self.reap_all(gone).await;
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
