//! A session whose answers are kept under leases, in this process and in a kernel.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use atoll_lease::{Issue, Leaving, Recall};
use atoll_types::locks::Lock;
use atoll_types::operation::OpenFlags;
use atoll_types::{Caller, Errno, FileKind, InodeId, JournalPosition, Operation, Outcome, Timestamp};
use atoll_wire::TERM_MS;
use parking_lot::{Mutex, RwLock};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};

use crate::aside::{self, Crew};
use crate::cache::{Cache, Duty, Kept, Miss, OldName, Told, widened};
use crate::chronicle::{Chronicle, Entry, Known, SENT_AGAIN, With};
use crate::clock::{Clock, Moment, Offset, Term};
use crate::journal::{Batch, Executed, Journal};
use crate::locks::{Moves, Owner, Request, Sent};
use crate::lost_locks::LostLocks;
use crate::session::{Done, Keeper, Reply, Results, SessionState};
use crate::{ClientConfig, ClientError, Session};

/// How long a change waits for others to be shipped with it.
const LINGER: Duration = Duration::from_millis(2);
/// How long changes may take to become durable before a process hands its session over.
const SAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the kernel may take to send again what it has not been answered by a process that was killed.
const RESEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Most inodes of which lost changes are remembered until somebody hears of it.
const FAILED_MAX: usize = 65_536;

/// A result, and for how long the kernel may use it without asking again.
#[derive(Debug)]
pub struct Answer {
    pub result: Result<Outcome, Errno>,
    /// What the name stands for, also that it is not there.
    pub entry: Duration,
    pub attributes: Duration,
    /// Of each entry of a listing: its attributes.
    pub listed: Vec<Duration>,
}

impl Answer {
    /// Of which nothing may be kept.
    pub fn once(result: Result<Outcome, Errno>) -> Self {
        Answer { result, entry: Duration::ZERO, attributes: Duration::ZERO, listed: Vec::new() }
    }

    fn kept(result: Result<Outcome, Errno>, kept: Kept, left: Left) -> Self {
        let of = |keeps: bool, left: Duration| if keeps { left } else { Duration::ZERO };
        Answer {
            result,
            entry: of(kept.entry, left.names),
            attributes: of(kept.attributes, left.attributes),
            listed: kept.listed.into_iter().map(|keeps| of(keeps, left.attributes)).collect(),
        }
    }
}

/// A kernel that keeps what answers said it may. Each call returns when the kernel has dropped it; called from
/// threads that serve no request.
///
/// `busy` says that a request is under way that may hold a lock which dropping one by one would wait for: then
/// nothing may wait. A process that is killed while the kernel makes it wait for such a lock leaves the request
/// without an answer and the lock held, for ever.
pub trait Kernel: Send + Sync {
    /// Whether names can be dropped at any time; if not, none may be kept.
    fn keeps_names(&self) -> bool;
    /// Names of a directory, also that they are not there; `busy`: not one by one. `shown`: of a listing, which the kernel may be taking in.
    fn drop_names(&self, directory: InodeId, names: Vec<OldName>, busy: bool, shown: bool);
    /// Wait until it has taken in listings of these directories, if it does before long.
    fn settles(&self, directories: Vec<InodeId>) -> bool;
    /// All names at once, without waiting for anything: may be called by who serves a request.
    fn drop_all_names(&self);
    /// Attributes, and with them the word that bytes are fresh. `via` is a directory through which the kernel
    /// was told of the inode last.
    fn drop_attributes(&self, inode: InodeId, via: Option<InodeId>, busy: bool);
    /// All names, and the attributes of these inodes. It may be taking in listings of the directories `shown`.
    fn drop_everything(&self, inodes: Vec<InodeId>, shown: Vec<InodeId>);
}

/// For how long what is held may be used.
#[derive(Clone, Copy)]
struct Left {
    names: Duration,
    attributes: Duration,
}

/// Who waits for an answer.
pub(crate) type Asker = Box<dyn FnOnce(Answer) + Send>;

type Work = (Recall, Duty);

/// A lookup that may be answered by a listing which is on its way.
struct Waiting {
    id: u64,
    caller: Caller,
    operation: Operation,
    done: Asker,
}

struct Shared {
    cache: Mutex<Cache>,
    /// Inodes of which recalls are being carried out.
    leaving: Mutex<FxHashMap<InodeId, Leaving>>,
    lost_locks: Mutex<LostLocks>,
    /// Held from when it is known what is to be sent about locks until it is: the authority gets it in this order.
    lock_order: Mutex<()>,
    /// By directory. Added to under the cache's lock, so that the listing finds all of them.
    waiting: Mutex<FxHashMap<InodeId, Vec<Waiting>>>,
    term: Term,
    kernel: OnceLock<Arc<dyn Kernel>>,
    session: OnceLock<Weak<Session>>,
    work: Crew<Work>,
    /// Held for reading while an answer is made and given to the kernel. Who drops what the kernel keeps holds
    /// it for writing once before: answers made earlier are with the kernel then, later ones know better.
    answering: Arc<RwLock<()>>,
    /// Changes stand in the journal.
    made: Notify,
    /// Enough to fill a batch.
    full: Notify,
    executed: watch::Sender<JournalPosition>,
    /// Why changes of an inode that were made here are lost.
    failed: Mutex<FxHashMap<InodeId, Errno>>,
    clock: Clock,
    offset: Offset,
    chronicle: Option<Arc<Chronicle>>,
    /// Itself, for what outlives a call.
    this: Weak<Shared>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    session: Arc<Session>,
    shared: Arc<Shared>,
}

impl Client {
    /// Connect to a volume. The session reconnects by itself afterwards.
    pub async fn open(config: ClientConfig, volume: &str) -> Result<Client, ClientError> {
        Self::start(config, volume, None).await
    }

    /// Go on with what [`Client::suspend`] gave another image of this process.
    pub async fn take_over(config: ClientConfig, volume: &str, state: ClientState) -> Result<Client, ClientError> {
        Self::start(config, volume, Some(state)).await
    }

    async fn start(config: ClientConfig, volume: &str, state: Option<ClientState>) -> Result<Client, ClientError> {
        let (mut cache, mut before) = (Cache::default(), None);
        let (mut lost_locks, mut failed) = (LostLocks::default(), FxHashMap::default());
        let known = state.as_ref().map(ClientState::to_note).unwrap_or_default();
        let chronicle = config.outlives.then(|| Chronicle::new(known)).transpose();
        let chronicle = chronicle.map_err(|error| ClientError::Chronicle(error.to_string()))?.map(Arc::new);
        if let Some(state) = state {
            cache = Cache::restore(state.known, state.locks, state.journal);
            for (inode, owners) in state.lost_locks {
                lost_locks.lose(inode, owners.into_iter().collect());
            }
            failed = state.failed.into_iter().collect();
            before = Some(state.session);
        }
        if let Some(chronicle) = &chronicle {
            cache.journal.note_in(chronicle.clone());
        }
        let shared = Shared::new(Clock(config.clocks.clone()), cache, lost_locks, failed);
        let keeper = Some(shared.clone() as Arc<dyn Keeper>);
        let session = Session::open_with(config, volume, keeper, before, chronicle.clone()).await?;
        Ok(Self::with(session, shared))
    }

    /// Go on from what a process noted that was killed. Nothing is sent before [`Client::begin`].
    pub fn revive(config: ClientConfig, volume: &str, chronicle: Chronicle) -> Client {
        let chronicle = Arc::new(chronicle);
        let (mut lost_locks, mut failed) = (LostLocks::default(), FxHashMap::default());
        let known = chronicle.with(std::mem::take);
        for (inode, owners) in &known.lost_locks {
            lost_locks.lose(*inode, owners.iter().copied().collect());
        }
        failed.extend(known.failed.iter().map(|(inode, errno)| (*inode, *errno)));
        let (cache, surplus) = Cache::revive(&known, chronicle.clone());
        chronicle.with(|noted| *noted = known);
        let shared = Shared::new(Clock(config.clocks.clone()), cache, lost_locks, failed);
        let session = Session::revive(config, volume, shared.clone(), chronicle.clone());
        let client = Self::with(session, shared);
        surplus.into_iter().for_each(|inode| client.shared.tell(Operation::Release { inode }));
        client
    }

    /// Have the kernel drop what it keeps since the process before, and connect.
    pub fn begin(&self, kernel: Arc<dyn Kernel>) {
        self.attach(kernel.clone());
        let (inodes, shown) = self.shared.cache.lock().clear();
        kernel.drop_everything(inodes, shown);
        self.session.begin();
        let Some(chronicle) = self.chronicle().cloned() else { return };
        let (opening, client) = (chronicle.with(|known| known.opening.clone()), self.clone());
        tokio::spawn(async move {
            tokio::time::sleep(RESEND_TIMEOUT).await;
            client.session.forget_unasked();
            for (id, inode) in opening {
                if chronicle.with(|known| known.opening.contains_key(&id)) {
                    chronicle.note(Entry::Abandoned { id });
                    client.tell(Operation::Release { inode });
                }
            }
        });
    }

    fn with(session: Arc<Session>, shared: Arc<Shared>) -> Client {
        let _ = shared.session.set(Arc::downgrade(&session));
        tokio::spawn(tend(Arc::downgrade(&shared)));
        Client { session, shared }
    }

    /// The kernel that keeps answers; before it is there, none may be kept.
    pub fn attach(&self, kernel: Arc<dyn Kernel>) {
        let _ = self.shared.kernel.set(kernel);
    }

    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Where it notes what outlives this process, if it does.
    pub fn chronicle(&self) -> Option<&Arc<Chronicle>> {
        self.shared.chronicle.as_ref()
    }

    /// Send one operation, or answer it from what is kept; `done` may run on this thread and must not block.
    /// `id` as for [`Session::submit`].
    pub fn submit(&self, id: u64, caller: Caller, operation: Operation, done: Asker) {
        debug_assert!(id.is_multiple_of(2));
        let answered = self.chronicle().filter(|_| id & SENT_AGAIN != 0).and_then(|noted| noted.answer(id));
        if let Some(result) = answered {
            return done(Answer::once(result));
        }
        {
            let mut locks = self.shared.lost_locks.lock();
            locks.unlocks(&operation);
            if let Err(errno) = locks.admit(&operation) {
                drop(locks);
                return done(Answer::once(Err(errno)));
            }
        }
        if operation.locked_inode().is_some() {
            return self.shared.lock(Request { id, caller, operation, done: Some(done) });
        }
        let answering = self.shared.answering.read();
        let left = self.shared.left();
        let mut page = None;
        if !left.attributes.is_zero() {
            let mut cache = self.shared.cache.lock();
            if let Some((result, kept)) = cache.answer(&operation) {
                drop(cache);
                return done(Answer::kept(result, kept, left));
            }
            if let Some((result, kept)) = cache.make(id, caller, &operation, self.shared.offset.now(&self.shared.clock))
            {
                let (asks, is_full) = (cache.wants_numbers(), cache.journal.is_full());
                let presses = cache.journal.presses();
                drop(cache);
                if presses {
                    self.session.press();
                }
                self.shared.made.notify_one();
                if is_full {
                    self.shared.full.notify_one();
                }
                if asks {
                    self.session.reserve();
                }
                return done(Answer::kept(result, kept, left));
            }
            let waits = match cache.miss(&operation) {
                Miss::Ask => false,
                Miss::Wait => true,
                Miss::List(listing) => {
                    page = Some(listing);
                    false
                }
                Miss::ListFirst(listing) => {
                    page = Some(listing);
                    true
                }
            };
            if let (true, &Operation::Lookup { parent, .. }) = (waits, &operation) {
                let waiting = Waiting { id, caller, operation, done };
                self.shared.waiting.lock().entry(parent).or_default().push(waiting);
                drop(cache);
                drop(answering);
                if let Some(page) = page {
                    self.shared.list_ahead(page);
                }
                return;
            }
        }
        drop(answering);
        let operation = widened(operation);
        let (after, asks) = {
            let mut cache = self.shared.cache.lock();
            let after = cache.starts(&operation);
            (after, operation.mutates() && cache.wants_numbers())
        };
        if asks {
            self.session.reserve();
        }
        self.shared.want(after);
        let asked = Asked { id, caller, operation: operation.clone(), after };
        let shared = self.shared.clone();
        let install = move |reply: Reply| shared.install(asked, reply, done);
        self.session.submit_kept(id, caller, after, operation, Box::new(install));
        if let Some(page) = page {
            self.shared.list_ahead(page);
        }
    }

    /// Wait until everything that was made here is executed; false when some of it is lost.
    pub async fn flush(&self) -> bool {
        let end = self.shared.cache.lock().journal.end();
        self.shared.flush(end).await;
        self.shared.failed.lock().is_empty()
    }

    /// To be done before [`Client::suspend`], while requests are answered: from now on, until [`Client::show_listings`], the
    /// kernel is to keep no names of listings, and it has taken in those that it was given. Blocks. False when that
    /// takes too long.
    pub fn hide_listings(&self) -> bool {
        self.shared.cache.lock().hides_listings = true;
        // Answers on their way may have names.
        drop(self.shared.answering.write());
        let shown = self.shared.cache.lock().shown();
        let has_settled = self.shared.kernel.get().is_none_or(|kernel| kernel.settles(shown));
        if has_settled {
            self.shared.cache.lock().settled();
        }
        has_settled
    }

    pub fn show_listings(&self) {
        self.shared.cache.lock().hides_listings = false;
    }

    /// Make everything durable, have the kernel keep nothing, and end the connection, but not the session: for the next
    /// image of this process. Nothing may be submitted meanwhile, nor later but after [`Client::resume`].
    pub async fn suspend(&self) -> Result<ClientState, &'static str> {
        const AWAY: &str = "the server does not make changes durable: try again when it is there";
        self.shared.tell_opens();
        self.shared.move_locks(Cache::leave_locks);
        let saved = async {
            loop {
                let end = self.shared.cache.lock().journal.end();
                self.shared.flush(end).await;
                let is_saved = self.session.call(Caller::default(), Operation::Sync).await.is_ok();
                // What nobody waits for, releases say, may have been under way.
                if is_saved && self.session.is_idle() && self.shared.cache.lock().journal.is_durable() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(SAVE_TIMEOUT, saved).await.is_err() {
            return Err(AWAY);
        }
        let session = self.session.suspend().await;
        let mut cache = self.shared.cache.lock();
        match session.filter(|_| cache.journal.is_durable()) {
            Some(session) => Ok(ClientState {
                session,
                journal: cache.journal.end(),
                known: cache.known(),
                locks: cache.locks.held(),
                lost_locks: self.shared.lost_locks.lock().all(),
                failed: self.shared.failed.lock().iter().map(|(inode, errno)| (*inode, *errno)).collect(),
            }),
            None => {
                drop(cache);
                self.resume();
                Err(AWAY)
            }
        }
    }

    /// Go on after [`Client::suspend`].
    pub fn resume(&self) {
        self.session.resume();
    }

    /// Write everything back and end the session.
    pub async fn close(&self) {
        // Without a server this takes as long as a call waits for one.
        let timeout = self.session.reply_timeout();
        let saved = async {
            let is_whole = self.flush().await;
            is_whole && self.session.call(Caller::default(), Operation::Sync).await.is_ok()
        };
        if tokio::time::timeout(timeout, saved).await != Ok(true) {
            tracing::error!("changes that were not made durable may be lost");
        }
        self.session.close().await;
    }

    /// Why changes of an inode were lost that had been made here, once.
    pub fn lost(&self, inode: InodeId) -> Option<Errno> {
        self.shared.failed.lock().remove(&inode)
    }

    /// Send one operation whose result nobody waits for.
    pub fn tell(&self, operation: Operation) {
        if operation.locked_inode().is_some() {
            self.shared.lost_locks.lock().unlocks(&operation);
            let (id, caller) = (self.session.own_id(), Caller::default());
            return self.shared.lock(Request { id, caller, operation, done: None });
        }
        if let Operation::Release { inode } = operation
            && self.shared.cache.lock().release(inode)
        {
            return;
        }
        self.shared.tell(operation);
    }

    /// See [`Session::interrupt`].
    pub fn interrupt(&self, id: u64, is_killed: fn(u32) -> bool) -> bool {
        self.shared.interrupt_waiting(id, is_killed)
            || self.shared.interrupt_lock(id, is_killed)
            || self.session.interrupt(id, is_killed)
    }

    /// The kernel was told of an inode once more; it says so before the kernel is.
    pub fn looked_up(&self, inode: InodeId, kind: FileKind) {
        self.shared.cache.lock().looked_up(inode, kind);
    }

    /// The kernel forgot an inode that it was told of so many times.
    pub fn forget(&self, forgotten: &[(InodeId, u64)]) {
        let given_up: Vec<Recall> = {
            let mut cache = self.shared.cache.lock();
            forgotten.iter().filter_map(|&(inode, times)| cache.forget(inode, times)).collect()
        };
        if !given_up.is_empty() {
            self.session.give_up(given_up);
        }
        // It may have put locks into the journal.
        self.shared.made.notify_one();
    }
}

/// What the next image of this process needs to go on with a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientState {
    session: SessionState,
    journal: JournalPosition,
    /// Inodes that the kernel knows, and how often it was told of them.
    known: Vec<(InodeId, u64)>,
    locks: Vec<(InodeId, Vec<Lock>)>,
    lost_locks: Vec<(InodeId, Vec<Owner>)>,
    failed: Vec<(InodeId, Errno)>,
}

impl ClientState {
    /// The beginning of the next image's chronicle.
    fn to_note(&self) -> Known {
        let SessionState { resume, instance, next_sequence, opens, .. } = &self.session;
        Known {
            with: With { resume: resume.clone(), instance: *instance },
            sequences: *next_sequence,
            durable: self.journal.0,
            opens: opens.iter().map(|(inode, count)| (*inode, i64::from(*count))).collect(),
            inodes: self.known.iter().map(|(inode, _)| *inode).collect(),
            locks: self.locks.iter().cloned().collect(),
            lost_locks: self.lost_locks.iter().cloned().collect(),
            failed: self.failed.iter().copied().collect(),
            ..Known::default()
        }
    }
}

fn open(inode: InodeId) -> Operation {
    Operation::Open { inode, flags: OpenFlags::default() }
}

/// An operation that the authority was asked for.
struct Asked {
    id: u64,
    caller: Caller,
    operation: Operation,
    /// How much of the journal it was to see.
    after: JournalPosition,
}

/// Ship what stands in the journal, soon, and give up what is too much, as long as the client lives.
async fn tend(shared: Weak<Shared>) {
    const ROUND: Duration = Duration::from_secs(1);
    let mut next_round = Instant::now() + ROUND;
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let is_made = tokio::time::timeout(ROUND, shared.made.notified()).await.is_ok();
        if next_round <= Instant::now() {
            next_round = Instant::now() + ROUND;
            let surplus = shared.cache.lock().surplus();
            if !surplus.is_empty() {
                tracing::debug!(inodes = surplus.len(), "too much is held");
                shared.recalled(surplus);
            }
            if shared.session().is_none_or(|session| session.is_away_too_long()) {
                shared.move_locks(|cache| cache.locks.give_up());
            }
        }
        if is_made && let Some(session) = shared.session() {
            tokio::select! {
                _ = tokio::time::sleep(LINGER) => {}
                _ = shared.full.notified() => {}
            }
            session.ship(true);
        }
    }
}

impl Shared {
    fn new(clock: Clock, cache: Cache, lost_locks: LostLocks, failed: FxHashMap<InodeId, Errno>) -> Arc<Shared> {
        Arc::new_cyclic(|this: &Weak<Shared>| Shared {
            chronicle: cache.journal.chronicle().cloned(),
            this: this.clone(),
            made: Notify::new(),
            full: Notify::new(),
            executed: watch::Sender::default(),
            failed: Mutex::new(failed),
            clock,
            offset: Offset::default(),
            cache: Mutex::new(cache),
            leaving: Mutex::default(),
            lost_locks: Mutex::new(lost_locks),
            lock_order: Mutex::default(),
            waiting: Mutex::default(),
            term: Term::default(),
            kernel: OnceLock::new(),
            session: OnceLock::new(),
            work: Crew::start(this.clone(), Shared::carry_out),
            answering: Arc::default(),
        })
    }

    /// Ask for a page of a listing that nobody has asked for.
    fn list_ahead(self: &Arc<Self>, page: Operation) {
        let Some(session) = self.session() else { return };
        let after = self.cache.lock().starts(&page);
        self.want(after);
        let (shared, operation) = (self.clone(), page.clone());
        session.ask(after, page, Box::new(move |reply| shared.listed_ahead(operation, after, reply)));
    }

    fn listed_ahead(self: Arc<Self>, operation: Operation, after: JournalPosition, reply: Reply) {
        let next = {
            let mut cache = self.cache.lock();
            cache.install(&operation, reply.first(), after, &reply.grants, reply.order);
            cache.listed_ahead(&operation, reply.first())
        };
        if let Some(next) = next {
            self.list_ahead(next);
        }
        let (Operation::ReadDirectory { inode, .. }, Some(session)) = (operation, self.session()) else { return };
        let waiting = self.waiting.lock().remove(&inode).unwrap_or_default();
        let client = Client { session, shared: self };
        for Waiting { id, caller, operation, done } in waiting {
            client.shared.cache.lock().waited(&operation);
            client.submit(id, caller, operation, done);
        }
    }

    /// A signal came for a lookup that waits for a listing; false when there is no such lookup.
    fn interrupt_waiting(&self, id: u64, is_killed: fn(u32) -> bool) -> bool {
        let killed = {
            let mut waiting = self.waiting.lock();
            let Some(lookups) = waiting.values_mut().find(|lookups| lookups.iter().any(|lookup| lookup.id == id))
            else {
                return false;
            };
            lookups.extract_if(.., |lookup| lookup.id == id && is_killed(lookup.caller.pid)).next()
        };
        if let Some(Waiting { operation, done, .. }) = killed {
            self.cache.lock().waited(&operation);
            done(Answer::once(Err(Errno::EINTR)));
        }
        true
    }

    /// Keep what an answer allows, and hand it on.
    fn install(self: &Arc<Self>, asked: Asked, reply: Reply, done: Asker) {
        let _answering = self.answering.read();
        let Asked { id, caller, operation, after } = asked;
        let mut result = reply.first().cloned();
        let (kept, is_whole) = {
            let mut cache = self.cache.lock();
            let kept =
                cache.install(&operation, result.as_ref().map_err(|errno| *errno), after, &reply.grants, reply.order);
            let correct = |outcome: &mut Outcome| cache.correct(&operation, outcome, after, reply.order);
            (kept, result.as_mut().is_ok_and(correct) || result.is_err())
        };
        if let (true, Some(kernel)) = (kept.moved, self.kernel.get()) {
            kernel.drop_all_names();
        }
        if !is_whole && let Some(session) = self.session() {
            // What it found was changed here before it was asked for.
            let after = {
                let mut cache = self.cache.lock();
                cache.starts(&operation);
                cache.journal.end()
            };
            self.want(after);
            let (shared, again) = (self.clone(), operation.clone());
            let install = move |reply: Reply| {
                let _answering = shared.answering.read();
                let result = reply.first();
                let kept = shared.cache.lock().install(&operation, result, after, &reply.grants, reply.order);
                done(Answer::kept(result.cloned(), kept, shared.left()));
            };
            return session.submit_kept(id, caller, after, again, Box::new(install));
        }
        done(Answer::kept(result, kept, self.left()));
    }

    // ---- locks

    /// A process asks for a lock, about one, or gives one back.
    fn lock(&self, request: Request<Asker>) {
        let may_use = !self.left().attributes.is_zero();
        self.move_locks(|cache| cache.lock(request, may_use));
    }

    /// Send and answer what comes of a change of the locks.
    fn move_locks(&self, moves: impl FnOnce(&mut Cache) -> Moves<Asker>) {
        let order = self.lock_order.lock();
        let (Moves { answered, sent }, told) = {
            let mut cache = self.cache.lock();
            let moves = moves(&mut cache);
            cache.note_locks();
            (moves, cache.locks.told_at())
        };
        let session = self.session();
        for Sent { id, caller, operation } in sent {
            let Some(session) = &session else { break };
            let (shared, asked) = (self.this.clone(), operation.clone());
            let done = move |reply: Reply| {
                if let Some(shared) = shared.upgrade() {
                    shared.lock_answered(id, &asked, &reply);
                }
            };
            session.submit_kept(id, caller, JournalPosition(0), operation, Box::new(done));
        }
        drop(order);
        if let Some(told) = told {
            // Somebody waits until the authority knows.
            self.want(told);
        }
        answered.into_iter().for_each(|(done, result)| done(Answer::once(result)));
    }

    fn lock_answered(&self, id: u64, operation: &Operation, reply: &Reply) {
        let moves = {
            let mut cache = self.cache.lock();
            cache.install(operation, reply.first(), JournalPosition(0), &reply.grants, reply.order);
            let moves = cache.locks.answered(id, operation, reply.first().cloned());
            cache.note_locks();
            moves
        };
        moves.answered.into_iter().for_each(|(done, result)| done(Answer::once(result)));
    }

    /// The journal was executed: the authority may know of more locks.
    fn locks_told(&self) {
        let mut told = Told::default();
        self.move_locks(|cache| {
            told = cache.locks_told();
            std::mem::take(&mut told.moves)
        });
        self.lose_locks(told.lost);
        self.give_up(told.given_up);
    }

    /// A signal came for who waits for a lock; false when that is not known here.
    fn interrupt_lock(&self, id: u64, is_killed: fn(u32) -> bool) -> bool {
        let mut is_known = false;
        self.move_locks(|cache| {
            let moves = cache.locks.interrupt(id, is_killed);
            is_known = moves.is_some();
            moves.unwrap_or_default()
        });
        is_known
    }

    /// Locks of a file are lost: others may hold them.
    fn lose_locks(&self, lost: Vec<(InodeId, FxHashSet<Owner>)>) {
        if lost.is_empty() {
            return;
        }
        tracing::warn!(files = lost.len(), "locks were lost: their files fail until they are closed");
        {
            let cache = self.cache.lock();
            for (inode, owners) in &lost {
                let owners = owners.iter().copied().collect();
                cache.journal.note(|| Entry::LostLocks { inode: *inode, owners });
            }
        }
        let mut locks = self.lost_locks.lock();
        lost.into_iter().for_each(|(inode, owners)| locks.lose(inode, owners));
    }

    // ---- the journal

    /// Everything in the journal up to here is waited for.
    fn want(&self, position: JournalPosition) {
        let waits = {
            let mut cache = self.cache.lock();
            cache.journal.want(position);
            position > cache.journal.executed()
        };
        if let (true, Some(session)) = (waits, self.session()) {
            session.ship(false);
        }
    }

    /// Wait until everything up to here is executed, or lost.
    async fn flush(&self, position: JournalPosition) {
        let mut executed = self.executed.subscribe();
        self.want(position);
        let life = self.cache.lock().journal.life();
        let over = |_: &JournalPosition| {
            let cache = self.cache.lock();
            cache.journal.executed() >= position || cache.journal.life() != life
        };
        let _ = executed.wait_for(over).await;
    }

    /// Send one operation whose result nobody waits for.
    fn tell(&self, operation: Operation) {
        let after = self.cache.lock().position(&operation);
        self.want(after);
        if let Some(session) = self.session() {
            session.tell_after(after, operation);
        }
    }

    /// Tell the authority of opens that it does not know of.
    fn tell_opens(&self) {
        let opens = self.cache.lock().take_opens();
        for (inode, count) in opens {
            (0..count).for_each(|_| self.tell(open(inode)));
        }
    }

    /// A batch of the journal was answered.
    fn shipped(&self, voyage: u32, after: JournalPosition, count: usize, reply: Reply) {
        let given_up = self.executed(|journal| Some(journal.answered(voyage, after, count, reply)));
        self.locks_told();
        self.give_up(given_up.unwrap_or_default());
        if let Some(session) = self.session() {
            session.ship(false);
        }
        // What was made meanwhile goes when it has waited for others.
        self.made.notify_one();
    }

    /// Changes of the journal were executed. Answers what is given up because the kernel had forgotten it before.
    fn executed(
        &self,
        answered: impl FnOnce(&mut Journal) -> Option<Vec<(Vec<Executed>, Reply)>>,
    ) -> Option<Vec<Recall>> {
        let (mut failed, mut given_up) = (Vec::new(), Vec::new());
        let executed = {
            // One lock for all of it: what is made in between would be taken for what the authority executed.
            let mut cache = self.cache.lock();
            for (changes, reply) in answered(&mut cache.journal)? {
                let answered = cache.executed(changes, &reply);
                failed.extend(answered.failed);
                given_up.extend(answered.given_up);
            }
            if !failed.is_empty() {
                cache.pause();
            }
            cache.journal.executed()
        };
        self.fail(failed);
        self.executed.send_replace(executed);
        Some(given_up)
    }

    /// Changes of these inodes are lost.
    fn fail(&self, lost: Vec<(InodeId, Errno)>) {
        let Some(&(_, errno)) = lost.first() else { return };
        tracing::error!(inodes = lost.len(), %errno, "changes were lost that had been made here");
        let inodes: Vec<InodeId> = lost.iter().map(|(inode, _)| *inode).collect();
        self.cache.lock().journal.note(|| Entry::Failed(lost.clone()));
        {
            let mut failed = self.failed.lock();
            for (inode, errno) in lost {
                if failed.len() < FAILED_MAX {
                    failed.insert(inode, errno);
                }
            }
        }
        if let Some(kernel) = self.kernel.get().cloned() {
            let (answering, shown) = (self.answering.clone(), self.cache.lock().shown());
            aside::run(move || {
                drop(answering.write());
                kernel.drop_everything(inodes, shown);
            });
        }
    }

    /// For how long what is held may be used. Nothing is without a kernel to tell of recalls.
    fn left(&self) -> Left {
        match self.kernel.get() {
            None => Left { names: Duration::ZERO, attributes: Duration::ZERO },
            Some(kernel) => {
                let attributes = self.term.left_at(self.clock.now());
                Left { names: if kernel.keeps_names() { attributes } else { Duration::ZERO }, attributes }
            }
        }
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session.get()?.upgrade()
    }

    async fn carry_out(self: Arc<Self>, (recall, duty): Work) {
        self.discharge(duty).await;
        self.give_up(self.done(recall.inode));
    }

    /// A duty of a recall is done: what is to be given up now.
    fn done(&self, inode: InodeId) -> Vec<Recall> {
        let mut leaving = self.leaving.lock();
        let Some(of_inode) = leaving.get_mut(&inode) else { return Vec::new() };
        let recalls = of_inode.done();
        if of_inode.is_empty() {
            leaving.remove(&inode);
        }
        recalls
    }

    fn give_up(&self, rights: Vec<Recall>) {
        if let (false, Some(session)) = (rights.is_empty(), self.session()) {
            session.give_up(rights);
        }
    }

    async fn discharge(&self, duty: Duty) {
        if let Some(unwritten) = duty.unwritten {
            self.flush(unwritten).await;
            // Who waits here for a lock goes before those to whom the right is given up.
            self.locks_told();
        }
        if duty.exclusive {
            let around = self.cache.lock().give_up_around(duty.inode);
            self.give_up(around);
        }
        if !duty.is_known() {
            return;
        }
        drop(self.answering.write());
        let keeps_names = duty.keeps_names();
        if let Some(kernel) = self.kernel.get() {
            if keeps_names {
                kernel.drop_names(duty.inode, duty.names, duty.busy || duty.more_names, duty.shown);
            }
            if duty.attributes {
                kernel.drop_attributes(duty.inode, duty.via, duty.busy);
            }
        }
        if keeps_names {
            self.cache.lock().dropped(duty.inode);
        }
    }
}

impl Keeper for Shared {
    fn recalled(&self, recalls: Vec<Recall>) {
        let mut given_up = Vec::new();
        for recall in recalls {
            let duty = self.cache.lock().recall(&recall);
            let has_duty = !duty.is_nothing();
            {
                let mut leaving = self.leaving.lock();
                let of_inode = leaving.entry(recall.inode).or_default();
                given_up.extend(of_inode.begin(recall, has_duty));
                if of_inode.is_empty() {
                    leaving.remove(&recall.inode);
                }
            }
            if has_duty {
                self.work.give((recall, duty));
            }
        }
        self.give_up(given_up);
    }

    fn renewed(&self, sent: Moment, now: Timestamp) {
        // What is made in this term gets its time from the server's clock.
        if self.offset.observe(sent, self.clock.now(), now) {
            self.term.renew(sent, TERM_MS);
        }
    }

    fn reserved(&self, first: InodeId, count: u32) {
        self.cache.lock().reserved(first, count);
    }

    fn next_batch(&self, idle: bool) -> Option<(Batch, Done)> {
        let mut cache = self.cache.lock();
        let batch = cache.journal.next_batch(idle)?;
        let (voyage, after, count) = (cache.journal.voyage(), batch.after, batch.made.len());
        let shared = self.this.clone();
        let done = move |reply: Reply| {
            if let Some(shared) = shared.upgrade() {
                shared.shipped(voyage, after, count, reply);
            }
        };
        Some((batch, Box::new(done)))
    }

    fn journal(&self) -> (JournalPosition, JournalPosition) {
        let cache = self.cache.lock();
        (cache.journal.executed(), cache.journal.end())
    }

    fn durable(&self, since: Issue, order: Issue) {
        self.cache.lock().journal.durable(since, order);
    }

    fn restarted(&self, position: JournalPosition) -> Option<Vec<InodeId>> {
        let mut opens = Vec::new();
        // The server holds no rights of this session to be given up.
        let has_all = self.executed(|journal| {
            let executed = journal.restarted(position)?;
            let changes = executed.iter().flat_map(|(changes, _)| changes);
            opens.extend(changes.filter_map(|executed| executed.change.opens()));
            Some(executed)
        });
        if has_all.is_none() {
            tracing::error!("the server misses changes that were durable: it was brought back from an older copy");
        }
        has_all.map(|_| opens)
    }

    fn next_again(&self, since: Issue) -> Option<(Issue, Batch)> {
        self.cache.lock().journal.next_again(since)
    }

    fn made_again(&self, after: JournalPosition, count: usize, results: &Results, order: Issue) {
        let lost = {
            let mut cache = self.cache.lock();
            let lost = cache.journal.failed_again(after, results);
            cache.journal.made_again(after, count, order);
            lost
        };
        self.fail(lost);
    }

    fn lost_changes(&self, inodes: Vec<(InodeId, Errno)>) {
        self.fail(inodes);
    }

    fn ended(&self, all: bool) {
        let (lost, executed) = {
            let mut cache = self.cache.lock();
            let (lost, opens) = cache.journal.discard(all);
            // The next session is told of them: the files may still be there.
            cache.untold(opens);
            (lost, cache.journal.executed())
        };
        self.fail(lost.into_iter().map(|inode| (inode, Errno::EIO)).collect());
        self.executed.send_replace(executed);
    }

    fn lost(&self) -> oneshot::Receiver<()> {
        self.term.end();
        let (inodes, shown) = self.cache.lock().clear();
        let (sender, receiver) = oneshot::channel();
        let Some(kernel) = self.kernel.get().cloned() else {
            let _ = sender.send(());
            return receiver;
        };
        let answering = self.answering.clone();
        // Not by the crew that carries recalls out: it may be waiting for the next connection.
        aside::run(move || {
            drop(answering.write());
            kernel.drop_everything(inodes, shown);
            let _ = sender.send(());
        });
        receiver
    }

    fn connected(&self, is_same: bool, is_resumed: bool) {
        if !is_same {
            self.cache.lock().forget_numbers();
        }
        if !is_resumed {
            let mut lost = Vec::new();
            self.move_locks(|cache| {
                let (owners, moves) = cache.locks.lose_all();
                lost = owners;
                moves
            });
            self.lose_locks(lost);
        }
    }

    fn locks(&self) -> Vec<(InodeId, Vec<Lock>)> {
        self.cache.lock().locks.held()
    }

    fn refused(&self, inode: InodeId) {
        let mut lost = Vec::new();
        self.move_locks(|cache| {
            let (owners, moves) = cache.locks.lose(inode);
            lost.push((inode, owners));
            moves
        });
        self.lose_locks(lost);
    }

    fn returned(&self) {
        self.locks_told();
        self.tell_opens();
        if let Some(session) = self.session() {
            session.ship(true);
        }
    }
}
