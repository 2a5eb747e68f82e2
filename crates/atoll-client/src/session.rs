//! A session: requests in flight, numbered mutations, reconnection.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atoll_lease::{Grant, Issue, Recall};
use atoll_types::limits::COMPOUND_OPERATIONS_MAX;
use atoll_types::locks::Lock;
use atoll_types::{Caller, Errno, InodeId, JournalPosition, Operation, OperationSeq, Outcome, Timestamp};
use atoll_wire::{AdminReply, AdminRequest, Execute, Hello, Lane, RECALLS_MAX, Request, Response, Resume};
use bytes::BytesMut;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::chronicle::{Chronicle, Entry, Known, SENT_AGAIN, SEQUENCES, Told, With};
use crate::clock::{Clock, Moment, Pings};
use crate::connection::{self, Connection};
use crate::journal::Batch;
use crate::retained::{Change, Retained};
use crate::{ClientConfig, ClientError};

/// Requests with at least this payload, or reads as long, take the bulk lane. In bytes.
const BULK_BYTES_MIN: usize = 64 * 1024;
/// Most locks in one request, beside those of its first file.
const LOCKS_AT_A_TIME: usize = 8192;
/// How long a session that is to be suspended may take to end its connection.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between attempts to reconnect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How often a session that keeps answers under leases renews them.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A connection on which nothing was heard for so long is broken, where there are pings.
const SILENCE_MAX: Duration = Duration::from_secs(15);

pub type Results = Vec<Result<Outcome, Errno>>;

/// What the server answered.
#[derive(Default)]
pub(crate) struct Reply {
    pub results: Results,
    pub grants: Vec<Grant>,
    pub order: Issue,
    /// When it changed something.
    pub at: Timestamp,
    /// Everything up to this position is durable.
    pub durable: Issue,
    /// Others wait for this client to have heard of it.
    pub watched: bool,
}

impl Reply {
    fn failed(errno: Errno) -> Self {
        Reply { results: vec![Err(errno)], ..Reply::default() }
    }

    /// The result of a request of one operation.
    pub fn first(&self) -> Result<&Outcome, Errno> {
        match self.results.first() {
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(errno)) => Err(*errno),
            None => Err(Errno::EIO),
        }
    }
}

pub(crate) type Done = Box<dyn FnOnce(Reply) + Send>;

/// Who keeps answers under the session's leases, and changes that are not sent. Called on runtime threads: must not
/// block, and must not call the session.
pub(crate) trait Keeper: Send + Sync {
    fn recalled(&self, recalls: Vec<Recall>);
    /// What is held may be used for another term from `sent` on.
    fn renewed(&self, sent: Moment, now: Timestamp);
    /// Inode numbers to give.
    fn reserved(&self, first: InodeId, count: u32);
    /// What of the journal is to be sent next, and who gets the answer.
    fn next_batch(&self, idle: bool) -> Option<(Batch, Done)>;
    /// How much of the journal was executed, and its end.
    fn journal(&self) -> (JournalPosition, JournalPosition);
    /// Everything behind `since` up to this position is durable.
    fn durable(&self, since: Issue, order: Issue);
    /// The session is over: what it has not executed of the journal is lost. With `all`, so is the authority, and what
    /// is not known to be durable is lost.
    fn ended(&self, all: bool);
    /// Another authority has the journal up to `position`, or the one there is told another process so. Answers opens
    /// that were executed without an answer; `None` when the position is less than there was.
    fn restarted(&self, position: JournalPosition) -> Option<Vec<InodeId>>;
    /// What of the journal an authority before `since` executed first, and when.
    fn next_again(&self, since: Issue) -> Option<(Issue, Batch)>;
    /// `count` changes behind `after` were made again, and stand at `order` now.
    fn made_again(&self, after: JournalPosition, count: usize, results: &Results, order: Issue);
    /// Changes of these inodes are lost.
    fn lost_changes(&self, inodes: Vec<(InodeId, Errno)>);
    /// The connection is lost: nothing may be used any more. Ready when nothing is kept anywhere.
    fn lost(&self) -> oneshot::Receiver<()>;
    /// There is a connection. No term has begun: recalls may be unanswered for long. Numbers are still there if it is
    /// the same server and the same session; locks are, or can be said again, if the session was resumed.
    fn connected(&self, is_same: bool, is_resumed: bool);
    /// All locks that are held, by file, to be said to another server.
    fn locks(&self) -> Vec<(InodeId, Vec<Lock>)>;
    /// The locks of a file may not be held any more.
    fn refused(&self, inode: InodeId);
    /// Everything was made again; it is as if there had been no other authority.
    fn returned(&self);
}

struct Pending {
    execute: Execute,
    lane: Lane,
    done: Done,
}

struct State {
    pending: BTreeMap<u64, Pending>,
    pings: Pings,
    /// Numbers of requests that are executed once and have no answer.
    unanswered: BTreeSet<u64>,
    next_sequence: u64,
    control: Option<mpsc::UnboundedSender<BytesMut>>,
    bulk: Option<mpsc::UnboundedSender<BytesMut>>,
    resume: Option<Resume>,
    /// Which start of the server the session is with.
    instance: Option<u64>,
    /// Without a connection since then.
    away_since: Option<Instant>,
    opens: HashMap<InodeId, u32>,
    /// What a crash of the server may take from it.
    retained: Retained,
    durable: Issue,
    /// Answers that wait until their changes are durable: too much is retained.
    held: VecDeque<(Issue, Done, Reply)>,
    /// What is retained is to become durable.
    pressing: bool,
    /// Another server has the session, and has not all that the last one had. Nothing else is sent to it before.
    returning: bool,
    /// There is a task that sees to that.
    coming_back: bool,
    /// Who waits for what the server says to the session's return, and the request's number.
    confirming: Option<(u64, oneshot::Sender<Reply>)>,
    /// Positions of this server are behind it.
    since: Issue,
    /// Not to be connected for now.
    suspended: bool,
    closed: bool,
    /// It was begun by another process, and nothing was heard since.
    revived: bool,
    chronicle: Option<Arc<Chronicle>>,
    /// Numbers below this one were noted.
    noted: u64,
}

/// What the next image of this process needs to go on with a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SessionState {
    pub resume: Option<Resume>,
    pub instance: Option<u64>,
    pub next_sequence: u64,
    since: Issue,
    pub opens: Vec<(InodeId, u32)>,
}

/// A session with one volume. All methods may be called from any thread.
pub struct Session {
    config: ClientConfig,
    clock: Clock,
    volume: String,
    state: Mutex<State>,
    next_id: AtomicU64,
    keeper: Option<Arc<dyn Keeper>>,
    read_only: AtomicBool,
    /// The session is to end.
    ending: Notify,
    /// The server said that the session is over.
    ended: Notify,
    /// There is no connection, and none is made.
    stopped: Notify,
}

/// How long a closing session waits for the server to hear of it.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

fn encode(id: u64, request: &Request) -> Option<BytesMut> {
    let mut bytes = BytesMut::new();
    match atoll_wire::encode(id, request, &mut bytes) {
        Ok(()) => Some(bytes),
        Err(error) => {
            tracing::error!(%error, "request does not fit a frame");
            None
        }
    }
}

fn lane(execute: &Execute) -> Lane {
    let bytes = |operation: &Operation| match operation {
        Operation::Read { range, .. } => range.len() as usize,
        Operation::Write { data, .. } => data.len(),
        _ => 0,
    };
    let bytes: usize = execute.operations.iter().map(bytes).sum();
    if bytes >= BULK_BYTES_MIN { Lane::Bulk } else { Lane::Control }
}

impl Session {
    /// Connect to a volume. The session reconnects by itself afterwards.
    pub async fn open(config: ClientConfig, volume: &str) -> Result<Arc<Session>, ClientError> {
        Self::open_with(config, volume, None, None, None).await
    }

    /// With leases, if there is somebody who keeps answers under them.
    pub(crate) async fn open_with(
        config: ClientConfig,
        volume: &str,
        keeper: Option<Arc<dyn Keeper>>,
        before: Option<SessionState>,
        chronicle: Option<Arc<Chronicle>>,
    ) -> Result<Arc<Session>, ClientError> {
        let mut state = State { chronicle, ..State::new() };
        if let Some(SessionState { resume, instance, next_sequence, since, opens }) = before {
            let opens = opens.into_iter().collect();
            state = State { resume, instance, next_sequence, since, opens, ..state };
        }
        let session = Self::new(config, volume, keeper, state);
        let first = session.connect(Lane::Control).await?;
        tokio::spawn(session.clone().keep(Some(first)));
        Ok(session)
    }

    fn new(config: ClientConfig, volume: &str, keeper: Option<Arc<dyn Keeper>>, state: State) -> Arc<Session> {
        Arc::new(Session {
            clock: Clock(config.clocks.clone()),
            config,
            volume: volume.to_owned(),
            state: Mutex::new(state),
            next_id: AtomicU64::new(3),
            keeper,
            read_only: AtomicBool::new(false),
            ending: Notify::new(),
            ended: Notify::new(),
            stopped: Notify::new(),
        })
    }

    /// The session of a process that was killed. It is not connected before [`Session::begin`].
    pub(crate) fn revive(
        config: ClientConfig,
        volume: &str,
        keeper: Arc<dyn Keeper>,
        chronicle: Arc<Chronicle>,
    ) -> Arc<Session> {
        let state = chronicle.with(|known| State::revive(known));
        let said = chronicle.with(|known| known.said.clone());
        let session = Self::new(config, volume, Some(keeper), State { chronicle: Some(chronicle), ..state });
        let mut state = session.state.lock();
        for (sequence, operations) in said {
            let execute = Execute { sequence: OperationSeq(sequence), ..request(Caller::default(), operations) };
            state.pending.insert(session.own_id(), Pending { execute, lane: Lane::Control, done: Box::new(|_| ()) });
        }
        drop(state);
        session
    }

    /// Connect a session that was revived, and keep it so.
    pub(crate) fn begin(self: &Arc<Self>) {
        tokio::spawn(self.clone().keep(None));
    }

    /// What the kernel has not sent again it does not wait for any more.
    pub(crate) fn forget_unasked(&self) {
        self.state.lock().forget_unasked();
    }

    pub(crate) fn reply_timeout(&self) -> Duration {
        self.config.reply_timeout
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Send one operation; `done` gets its result on a runtime thread and must not block.
    /// `id` names it for [`Session::interrupt`]: an even number that no other request of the session has.
    pub fn submit(
        &self,
        id: u64,
        caller: Caller,
        operation: Operation,
        done: Box<dyn FnOnce(Result<Outcome, Errno>) + Send>,
    ) {
        debug_assert!(id.is_multiple_of(2));
        let one = |reply: Reply| done(reply.results.into_iter().next().unwrap_or(Err(Errno::EIO)));
        self.submit_kept(id, caller, JournalPosition(0), operation, Box::new(one));
    }

    /// The same for who may keep the answer. The number may be one of [`Session::own_id`].
    pub(crate) fn submit_kept(
        &self,
        id: u64,
        caller: Caller,
        after: JournalPosition,
        operation: Operation,
        done: Done,
    ) {
        self.send(id, caller, after, vec![operation], done);
    }

    /// Ask for inode numbers. False without a connection.
    pub(crate) fn reserve(&self) -> bool {
        let state = self.state.lock();
        let request = state.control.as_ref().zip(encode(0, &Request::Reserve));
        request.is_some_and(|(control, bytes)| control.send(bytes).is_ok())
    }

    /// Rights were given up.
    pub(crate) fn give_up(&self, rights: Vec<Recall>) {
        let state = self.state.lock();
        for part in rights.chunks(RECALLS_MAX) {
            if let (Some(control), Some(bytes)) = (&state.control, encode(0, &Request::GiveUp(part.to_vec()))) {
                let _ = control.send(bytes);
            }
        }
    }

    pub async fn call(&self, caller: Caller, operation: Operation) -> Result<Outcome, Errno> {
        self.compound(caller, vec![operation]).await.into_iter().next().unwrap_or(Err(Errno::EIO))
    }

    /// Operations in order up to the first that fails, in one round trip.
    pub async fn compound(&self, caller: Caller, operations: Vec<Operation>) -> Results {
        let (sender, receiver) = oneshot::channel();
        let done = move |reply: Reply| {
            let _ = sender.send(reply.results);
        };
        self.send(self.own_id(), caller, JournalPosition(0), operations, Box::new(done));
        receiver.await.unwrap_or_else(|_| vec![Err(Errno::EIO)])
    }

    /// Send one operation whose result nobody waits for.
    pub fn tell(&self, operation: Operation) {
        self.tell_after(JournalPosition(0), operation);
    }

    /// The same, behind what stands in the journal up to `after`.
    pub(crate) fn tell_after(&self, after: JournalPosition, operation: Operation) {
        self.send(self.own_id(), Caller::default(), after, vec![operation], Box::new(|_| ()));
    }

    /// Send one operation that no caller has made.
    pub(crate) fn ask(&self, after: JournalPosition, operation: Operation, done: Done) {
        self.send(self.own_id(), Caller::default(), after, vec![operation], done);
    }

    pub(crate) fn own_id(&self) -> u64 {
        self.next_id.fetch_add(2, Ordering::Relaxed)
    }

    /// A signal came for the caller of a request. A wait for a lock ends in `EINTR`. If the caller is
    /// killed (`is_killed` tells by its number), whatever it waits for answers `EINTR` at once and goes on
    /// without it. False when there is no such request, or not yet.
    pub fn interrupt(self: &Arc<Self>, id: u64, is_killed: fn(u32) -> bool) -> bool {
        let abandoned = {
            let mut state = self.state.lock();
            let away = state.control.is_none() || state.returning;
            let Some(pending) = state.pending.get_mut(&id) else { return false };
            let waits = pending.execute.operations.iter().any(Operation::waits_for_lock);
            if waits && away {
                // The server forgets such a wait with its connection.
                state.pending.remove(&id).map(|pending| pending.done)
            } else if waits {
                if let (Some(control), Some(bytes)) = (&state.control, encode(0, &Request::Cancel(id))) {
                    let _ = control.send(bytes);
                }
                None
            } else if is_killed(pending.execute.caller.pid) {
                let (session, operations) = (Arc::downgrade(self), pending.execute.operations.clone());
                let late = move |reply: Reply| {
                    let Some(session) = session.upgrade() else { return };
                    if let Some(chronicle) = &session.state.lock().chronicle {
                        chronicle.note(Entry::Abandoned { id: id & !SENT_AGAIN });
                    }
                    for (operation, result) in operations.iter().zip(&reply.results) {
                        if let Some(inode) = opened(operation, result) {
                            session.tell(Operation::Release { inode });
                        }
                    }
                };
                Some(std::mem::replace(&mut pending.done, Box::new(late)))
            } else {
                None
            }
        };
        if let Some(done) = abandoned {
            done(Reply::failed(Errno::EINTR));
        }
        true
    }

    /// End the session: the server gives back what it has open and locked at once. Requests without an answer fail.
    pub async fn close(&self) {
        let said = {
            let mut state = self.state.lock();
            state.closed = true;
            let control = state.control.as_ref();
            control.zip(encode(0, &Request::Goodbye)).is_some_and(|(control, bytes)| control.send(bytes).is_ok())
        };
        if said {
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.ended.notified()).await;
        }
        self.ending.notify_one();
    }

    /// Whether nothing but waits for locks is under way, and nothing can be lost with the server.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.lock().is_idle()
    }

    /// End the connection, but not the session, and make none until [`Session::resume`]. `None` when something is not
    /// finished or not durable.
    pub(crate) async fn suspend(&self) -> Option<SessionState> {
        // An earlier attempt may have been given up before it was heard.
        std::pin::pin!(self.stopped.notified()).as_mut().enable();
        self.state.lock().suspended = true;
        self.ending.notify_one();
        let stopped = tokio::time::timeout(SUSPEND_TIMEOUT, self.stopped.notified()).await.is_ok();
        let state = self.state.lock();
        (stopped && state.is_idle()).then(|| SessionState {
            resume: state.resume.clone(),
            instance: state.instance,
            next_sequence: state.next_sequence,
            since: state.since,
            opens: state.opens.iter().map(|(inode, count)| (*inode, *count)).collect(),
        })
    }

    /// Connect again after [`Session::suspend`].
    pub(crate) fn resume(&self) {
        self.state.lock().suspended = false;
        self.ending.notify_one();
    }

    /// Whether requests fail because there was no server for too long.
    pub(crate) fn is_away_too_long(&self) -> bool {
        self.fails(&self.state.lock())
    }

    fn fails(&self, state: &State) -> bool {
        state.closed || state.away_since.is_some_and(|since| since.elapsed() >= self.config.reply_timeout)
    }

    fn send(&self, id: u64, caller: Caller, after: JournalPosition, operations: Vec<Operation>, done: Done) {
        let mut state = self.state.lock();
        if self.fails(&state) {
            drop(state);
            done(Reply::failed(Errno::EIO));
            return;
        }
        // The journal may have been given up since the caller looked.
        let end = |keeper: &Arc<dyn Keeper>| if after.0 == 0 { after } else { after.min(keeper.journal().1) };
        let after = self.keeper.as_ref().map_or(after, end);
        let execute = Execute { after, ..request(caller, operations) };
        if let Err(done) = state.send(id, execute, done) {
            drop(state);
            done(Reply::failed(Errno::EINVAL));
        }
    }

    /// Send what is due of the journal. Without a connection it stays there.
    pub(crate) fn ship(&self, idle: bool) {
        let Some(keeper) = &self.keeper else { return };
        let mut unsent = Vec::new();
        {
            let mut state = self.state.lock();
            if state.control.is_none() || state.closed || state.returning {
                return;
            }
            // Under the lock: a batch that was taken is sent before the session can be found to be over.
            while let Some((Batch { after, made, operations }, done)) = keeper.next_batch(idle) {
                let execute = Execute { after, journal: true, made, ..request(Caller::default(), operations) };
                unsent.extend(state.send(self.own_id(), execute, done).err());
            }
        }
        for done in unsent {
            done(Reply::failed(Errno::EINVAL));
        }
    }

    fn answer(&self, id: u64, reply: Reply) {
        let (answered, presses, moved) = {
            let mut state = self.state.lock();
            let moved = state.durable < reply.durable;
            let mut answered = state.durable(reply.durable);
            if let Some((_, sender)) = state.confirming.take_if(|(confirming, _)| *confirming == id) {
                let _ = sender.send(reply);
            } else if let Some(Pending { execute, done, .. }) = state.pending.remove(&id) {
                state.unanswered.remove(&execute.sequence.0);
                if reply.watched {
                    state.say_heard();
                }
                let opens = match execute.again {
                    None => state.track(&execute.operations, &reply.results),
                    Some(_) => Vec::new(),
                };
                state.note_answer(id, &execute, &reply, opens);
                let order = reply.order;
                // What was made here first, the journal keeps.
                let is_kept = execute.made.is_empty() && order > state.durable;
                match is_kept.then(|| Change::of(execute, &reply)).flatten() {
                    Some(change) => {
                        state.retained.keep(order, change);
                        if state.retained.presses() {
                            state.held.push_back((order, done, reply));
                        } else {
                            answered.push((done, reply));
                        }
                    }
                    None => answered.push((done, reply)),
                }
            }
            (answered, state.retained.presses(), moved.then_some((state.since, state.durable)))
        };
        if let (Some((since, durable)), Some(keeper)) = (moved, &self.keeper) {
            keeper.durable(since, durable);
        }
        for (done, reply) in answered {
            done(reply);
        }
        if presses {
            self.press();
        }
    }

    /// What is retained is to become durable: it is too much.
    pub(crate) fn press(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.pressing, true) {
            // The flag falls with the answer: see `State::durable`.
            let sync = request(Caller::default(), vec![Operation::Sync]);
            let _ = state.send(self.own_id(), sync, Box::new(|_| ()));
        }
    }

    // ---- connections

    async fn connect(&self, lane: Lane) -> Result<Connection, ClientError> {
        let (executed, journal_end) = self.keeper.as_ref().map(|keeper| keeper.journal()).unwrap_or_default();
        let hello = Hello {
            features: 0,
            token: self.config.token.clone(),
            volume: Some(self.volume.clone()),
            resume: self.state.lock().resume.clone(),
            lane,
            leases: self.keeper.is_some(),
            executed,
            journal_end,
        };
        let connection = connection::connect(&self.config, hello).await?;
        self.read_only.store(connection.welcome.read_only, Ordering::Relaxed);
        if lane == Lane::Control {
            self.state.lock().resume = connection.welcome.resume.clone();
        }
        Ok(connection)
    }

    /// Keep the session connected until it is closed.
    async fn keep(self: Arc<Self>, first: Option<Connection>) {
        let mut next = first;
        loop {
            if let Some(control) = next.take() {
                let bulk = self.connect(Lane::Bulk).await.ok();
                self.run(control, bulk).await;
                if let Some(keeper) = &self.keeper {
                    // Before the server can take us for connected: it may know nothing of what is kept.
                    let _ = keeper.lost().await;
                }
            }
            if self.state.lock().closed {
                self.fail_all();
                return;
            }
            if self.state.lock().suspended {
                self.stopped.notify_one();
                self.ending.notified().await;
                continue;
            }
            match self.connect(Lane::Control).await {
                Ok(connection) => {
                    tracing::info!(resumed = connection.welcome.resumed, "reconnected");
                    next = Some(connection);
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot reconnect");
                    let away = self.state.lock().away_since.map(|since| since.elapsed());
                    if away.is_some_and(|away| away >= self.config.reply_timeout) {
                        self.fail_all();
                    }
                    tokio::select! {
                        _ = tokio::time::sleep(RECONNECT_PAUSE) => {}
                        _ = self.ending.notified() => {}
                    }
                }
            }
        }
    }

    /// Serve on these connections until one breaks.
    async fn run(self: &Arc<Self>, control: Connection, bulk: Option<Connection>) {
        let (control_sender, control_queue) = mpsc::unbounded_channel();
        let (bulk_sender, bulk_queue) = mpsc::unbounded_channel();
        let Connection { reader: mut control_reader, writer: control_writer, welcome } = control;
        let mut lost = Vec::new();
        let is_older;
        let is_resumed = welcome.resumed;
        let (is_same, returning, comes_back) = {
            let mut state = self.state.lock();
            state.control = Some(control_sender);
            state.bulk = bulk.is_some().then_some(bulk_sender);
            state.away_since = None;
            state.since = welcome.since;
            let before = state.instance.replace(welcome.instance);
            let is_other = before.is_some_and(|before| before != welcome.instance);
            if self.keeper.is_some() {
                state.ping(self.clock.now());
            }
            if is_other {
                state.forget_requests();
            }
            let is_told = std::mem::take(&mut state.revived) || is_other;
            let opens = match &self.keeper {
                Some(keeper) if welcome.resumed && is_told => keeper.restarted(welcome.journal),
                _ => Some(Vec::new()),
            };
            is_older = opens.is_none();
            opens.into_iter().flatten().for_each(|inode| *state.opens.entry(inode).or_default() += 1);
            state.note_connection();
            if is_older {
                // A session of an older copy of the volume is not this one.
                state.resume = None;
                state.control = None;
            }
            if before.is_some() && (is_older || !welcome.resumed) {
                // The session is over: which of its changes were still made, and are there, nobody knows.
                lost = state.take(changes);
                let inodes = state.retained.discard();
                lost.extend(std::mem::take(&mut state.held).into_iter().map(|(_, done, _)| done));
                if let Some(keeper) = &self.keeper {
                    keeper.ended(is_other);
                    if is_other {
                        keeper.lost_changes(inodes.into_iter().map(|inode| (inode, Errno::EIO)).collect());
                    }
                    state.wait_for_at_most(keeper.journal().0);
                }
            }
            state.returning |= is_other || (before.is_some() && !welcome.resumed);
            state.send_again();
            let is_same = welcome.resumed && !is_other;
            let comes_back = state.returning && !is_older && !(is_same && state.coming_back);
            state.coming_back |= comes_back;
            (is_same, state.returning, comes_back)
        };
        for done in lost {
            done(Reply::failed(Errno::EIO));
        }
        if is_older {
            return;
        }
        if let Some(keeper) = &self.keeper {
            keeper.connected(is_same, is_resumed);
        }
        if comes_back {
            // Now that it is known what is lost.
            tokio::spawn(self.clone().come_back(welcome.instance));
        }
        if !returning {
            self.has_returned();
        }
        let heard = Mutex::new(Instant::now());
        let receive_control = async {
            while let Some((id, response)) = control_reader.next().await {
                *heard.lock() = Instant::now();
                self.take(id, response);
            }
        };
        let renewing = async {
            if self.keeper.is_none() {
                return std::future::pending().await;
            }
            while heard.lock().elapsed() < SILENCE_MAX {
                tokio::time::sleep(PING_INTERVAL).await;
                self.state.lock().ping(self.clock.now());
            }
            tracing::warn!("the server says nothing: connecting anew");
        };
        let bulk_lane = async {
            match bulk {
                None => std::future::pending().await,
                Some(Connection { mut reader, writer, .. }) => {
                    let receive = async {
                        while let Some((id, response)) = reader.next().await {
                            self.take(id, response);
                        }
                    };
                    tokio::select! { _ = receive => {}, _ = pump(writer, bulk_queue) => {} }
                    // A server that has heard the goodbye ends both lanes; its answer comes on the other one.
                    if self.state.lock().closed {
                        std::future::pending().await
                    }
                }
            }
        };
        tokio::select! {
            _ = receive_control => {}
            _ = pump(control_writer, control_queue) => {}
            _ = bulk_lane => {}
            _ = renewing => {}
            _ = self.ending.notified() => {}
        }
        let mut state = self.state.lock();
        state.control = None;
        state.bulk = None;
        if state.confirming.take().is_some() {
            // Who waits for it goes away; the next connection begins here.
            state.coming_back = false;
        }
        state.away_since = Some(Instant::now());
        // What was granted ends with the connection.
        state.held.iter_mut().for_each(|(_, _, reply)| reply.grants.clear());
    }

    /// Make again, in its order, what the last server had and this one may not have.
    async fn come_back(self: Arc<Self>, instance: u64) {
        loop {
            let (sender, receiver) = oneshot::channel();
            let done = Box::new(move |reply: Reply| drop(sender.send(reply)));
            let mut batch = None;
            let (kept, sent) = {
                let mut state = self.state.lock();
                if state.instance != Some(instance) {
                    return;
                }
                let journal = self.keeper.as_ref().and_then(|keeper| keeper.next_again(state.since));
                let kept = state.retained.next_again(state.since);
                match (kept, journal) {
                    (Some((key, change)), journal) if journal.as_ref().is_none_or(|(order, _)| key.0 < *order) => {
                        let Change { sequence, made, operations } = change.clone();
                        let again = Some(key.0);
                        let execute = Execute { sequence, made, again, ..request(Caller::default(), operations) };
                        (Some(key), state.post(self.own_id(), execute, done))
                    }
                    (_, Some((order, Batch { after, made, operations }))) => {
                        batch = Some((after, operations.len()));
                        let again = Some(order);
                        let asked = request(Caller::default(), operations);
                        let execute = Execute { after, journal: true, made, again, ..asked };
                        (None, state.send(self.own_id(), execute, done))
                    }
                    _ => break,
                }
            };
            if let Err(done) = sent {
                done(Reply::failed(Errno::EINVAL));
            }
            // Without an answer there is another server, or none.
            let Ok(reply) = receiver.await else { return };
            // A refusal has no position.
            let order = reply.order.max(Issue(self.state.lock().since.0 + 1));
            let failed = reply.results.iter().find_map(|result| result.as_ref().err()).copied();
            match kept {
                None => {
                    if let (Some((after, count)), Some(keeper)) = (batch, &self.keeper) {
                        keeper.made_again(after, count, &reply.results, order);
                    }
                }
                Some(key) => {
                    let mut state = self.state.lock();
                    match failed {
                        None => state.retained.made_again(key, order),
                        Some(errno) => {
                            let inodes = state.retained.lose(key).map(|change| change.inodes()).unwrap_or_default();
                            drop(state);
                            let inodes = inodes.into_iter().map(|inode| (inode, errno)).collect();
                            match &self.keeper {
                                Some(keeper) => keeper.lost_changes(inodes),
                                None => tracing::error!(%errno, "changes were lost with the server"),
                            }
                        }
                    }
                }
            }
        }
        if !self.lock_again(instance).await || self.confirm(instance, &Request::Returned).await.is_none() {
            return;
        }
        {
            let mut state = self.state.lock();
            if state.instance != Some(instance) {
                return;
            }
            state.coming_back = false;
            state.returning = false;
            state.send_again();
        }
        self.has_returned();
    }

    /// Say to another server what is locked. False when the connection was lost.
    async fn lock_again(&self, instance: u64) -> bool {
        let Some(keeper) = &self.keeper else { return true };
        let mut held: VecDeque<(InodeId, Vec<Lock>)> = keeper.locks().into();
        while !held.is_empty() {
            let (mut operations, mut locks_sent) = (Vec::new(), 0);
            for (inode, locks) in &held {
                locks_sent += locks.len();
                let is_full = locks_sent > LOCKS_AT_A_TIME || operations.len() == COMPOUND_OPERATIONS_MAX;
                if is_full && !operations.is_empty() {
                    break;
                }
                operations.push(Operation::HoldLocks { inode: *inode, locks: locks.clone() });
            }
            let again = Request::Execute(request(Caller::default(), operations));
            let Some(reply) = self.confirm(instance, &again).await else { return false };
            // It ends with the first that is refused.
            let results = if reply.results.is_empty() { vec![Err(Errno::EIO)] } else { reply.results };
            for ((inode, _), result) in held.drain(..results.len().min(held.len())).zip(results) {
                if let Err(errno) = result {
                    tracing::warn!(%inode, %errno, "locks are lost with the server");
                    keeper.refused(inode);
                }
            }
        }
        true
    }

    /// Say something to the server that the session returns to, and wait for its answer; `None` when the connection was
    /// lost: the next one begins anew.
    async fn confirm(&self, instance: u64, request: &Request) -> Option<Reply> {
        let (sender, confirmed) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.instance != Some(instance) {
                return None;
            }
            if state.control.is_none() {
                state.coming_back = false;
                return None;
            }
            if *request == Request::Returned {
                // What is open is said before anything else can close it.
                state.open_again();
            }
            let id = self.own_id();
            state.confirming = Some((id, sender));
            if let Some(bytes) = encode(id, request) {
                state.deliver(Lane::Control, bytes);
            }
        }
        confirmed.await.ok()
    }

    fn has_returned(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.returned();
        }
    }

    fn take(&self, id: u64, response: Response) {
        match response {
            Response::Results { results, grants, order, at, durable, watched } => {
                self.answer(id, Reply { results, grants, order, at, durable, watched });
            }
            Response::Refused { message } => {
                tracing::warn!(%message, "request refused");
                self.answer(id, Reply::failed(Errno::EIO));
            }
            Response::Recall(recalls) => match &self.keeper {
                Some(keeper) => keeper.recalled(recalls),
                None => self.give_up(recalls),
            },
            Response::Pong { renewed, now, durable } => {
                let sent = self.state.lock().pings.answered(id);
                if let (true, Some(keeper), Some(sent)) = (renewed, &self.keeper, sent) {
                    keeper.renewed(sent, now);
                }
                // No request has this id.
                self.answer(0, Reply { durable, ..Reply::default() });
            }
            Response::Reserved { first, count } => {
                if let Some(keeper) = &self.keeper {
                    keeper.reserved(first, count);
                }
            }
            Response::Returned => {
                self.answer(id, Reply::default());
            }
            Response::Ended => self.ended.notify_one(),
            Response::Confirm => self.state.lock().say_heard(),
            _ => {}
        }
    }

    /// Answer all requests; those of the journal wait for a server as long as the session is open.
    fn fail_all(&self) {
        let failed: Vec<Done> = {
            let mut state = self.state.lock();
            let closed = state.closed;
            let mut failed = state.take(|execute| closed || execute.made.is_empty());
            if closed {
                failed.extend(std::mem::take(&mut state.held).into_iter().map(|(_, done, _)| done));
            }
            failed
        };
        for done in failed {
            done(Reply::failed(Errno::EIO));
        }
    }
}

/// A request that is not numbered yet.
fn request(caller: Caller, operations: Vec<Operation>) -> Execute {
    Execute { caller, operations, ..Execute::default() }
}

impl State {
    fn new() -> State {
        State {
            pending: BTreeMap::new(),
            pings: Pings::default(),
            unanswered: BTreeSet::new(),
            next_sequence: 1,
            control: None,
            bulk: None,
            resume: None,
            instance: None,
            away_since: None,
            opens: HashMap::new(),
            retained: Retained::default(),
            durable: Issue::default(),
            held: VecDeque::new(),
            pressing: false,
            returning: false,
            coming_back: false,
            confirming: None,
            since: Issue::default(),
            suspended: false,
            closed: false,
            revived: false,
            chronicle: None,
            noted: 0,
        }
    }

    /// What a process knew that was killed.
    fn revive(known: &Known) -> State {
        let mut opens = known.opens.clone();
        // Those will be counted when the journal is executed.
        known.opens_to_come().for_each(|inode| *opens.entry(inode).or_default() -= 1);
        let count =
            |(inode, count): (InodeId, i64)| Some((inode, u32::try_from(count).ok().filter(|count| *count > 0)?));
        State {
            resume: known.with.resume.clone(),
            instance: known.with.instance,
            next_sequence: known.sequences.max(1),
            noted: known.sequences,
            unanswered: known.numbered.keys().chain(known.said.keys()).copied().collect(),
            opens: opens.into_iter().filter_map(count).collect(),
            away_since: Some(Instant::now()),
            revived: true,
            ..State::new()
        }
    }

    /// Number a request if executing it twice is not the same as once, and send it. Gives `done` back when it does not fit a frame.
    fn send(&mut self, id: u64, mut execute: Execute, done: Done) -> Result<(), Done> {
        if changes(&execute) || execute.operations.iter().any(counts) {
            let sequence = self.number(id, &execute);
            execute.sequence = OperationSeq(sequence);
            self.unanswered.insert(sequence);
        }
        self.post(id, execute, done)
    }

    /// The number of a request that is to be executed once: the same when the kernel sends it again.
    fn number(&mut self, id: u64, execute: &Execute) -> u64 {
        let before = self.chronicle.as_ref().filter(|_| is_of_kernel(id) && id & SENT_AGAIN != 0);
        if let Some(sequence) = before.and_then(|chronicle| chronicle.number(id)) {
            return sequence;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        if let Some(chronicle) = &self.chronicle {
            if self.next_sequence > self.noted {
                self.noted = self.next_sequence + SEQUENCES;
                chronicle.note(Entry::Sequences(self.noted));
            }
            if is_of_kernel(id) {
                chronicle.note(Entry::Numbered { sequence, id: id & !SENT_AGAIN });
            } else if !execute.journal {
                chronicle.note(Entry::Said { sequence, operations: execute.operations.clone() });
            }
        }
        sequence
    }

    /// Note what a request was answered that is not carried out again, and what the authority counts. What was made
    /// here was noted when it was.
    fn note_answer(&self, id: u64, execute: &Execute, reply: &Reply, opens: Vec<(InodeId, i32)>) {
        let Some(chronicle) = self.chronicle.as_ref().filter(|_| execute.made.is_empty()) else { return };
        let sequence = execute.sequence.0;
        if sequence == 0 && opens.is_empty() {
            return;
        }
        let answer = execute.operations.first().zip(reply.results.first()).filter(|_| is_of_kernel(id));
        let told = |(operation, answer): (&Operation, &Result<Outcome, Errno>)| {
            let opens = opened(operation, answer);
            Told { id: id & !SENT_AGAIN, answer: answer.clone(), opens }
        };
        let answer = answer.map(told);
        chronicle.note(Entry::Answered { sequence, answer, opens });
    }

    fn note_connection(&self) {
        if let Some(chronicle) = &self.chronicle {
            chronicle.note(Entry::Connected(With { resume: self.resume.clone(), instance: self.instance }));
        }
    }

    fn forget_unasked(&mut self) {
        let Some(chronicle) = self.chronicle.clone() else { return };
        let asked: BTreeSet<u64> = self.pending.values().map(|pending| pending.execute.sequence.0).collect();
        let unasked: Vec<u64> = chronicle.with(|known| known.numbered.keys().copied().collect());
        for sequence in unasked.into_iter().filter(|sequence| !asked.contains(sequence)) {
            self.unanswered.remove(&sequence);
            chronicle.note(Entry::Answered { sequence, answer: None, opens: Vec::new() });
        }
    }

    /// Send a request that has its number, now or when the session has returned.
    fn post(&mut self, id: u64, mut execute: Execute, done: Done) -> Result<(), Done> {
        let lane = lane(&execute);
        let acknowledged = self.acknowledged();
        execute.acknowledged = acknowledged;
        let released = self.retained.first_sequence().map_or(acknowledged, OperationSeq);
        execute.released = released.min(acknowledged);
        let is_due = !self.returning || execute.again.is_some();
        let request = Request::Execute(execute);
        let bytes = encode(id, &request);
        let Request::Execute(execute) = request else { return Ok(()) };
        match bytes {
            Some(bytes) => {
                if is_due {
                    self.deliver(lane, bytes);
                }
                self.pending.insert(id, Pending { execute, lane, done });
                Ok(())
            }
            None => {
                self.unanswered.remove(&execute.sequence.0);
                Err(done)
            }
        }
    }

    /// Whether nothing but waits for locks is under way, and nothing can be lost with the server.
    fn is_idle(&self) -> bool {
        let waits = |pending: &Pending| pending.execute.operations.iter().all(Operation::waits_for_lock);
        let is_all_durable = self.held.is_empty() && self.retained.first_sequence().is_none();
        !self.returning && is_all_durable && self.pending.values().all(waits)
    }

    /// Everything up to this position is durable. Answers what waited for that.
    fn durable(&mut self, order: Issue) -> Vec<(Done, Reply)> {
        let mut answered = Vec::new();
        if order > self.durable {
            self.durable = order;
            self.pressing = false;
            self.retained.durable(self.since, order);
            while let Some((_, done, reply)) = self.held.pop_front_if(|(held, ..)| *held <= order) {
                answered.push((done, reply));
            }
        }
        answered
    }

    /// What was sent to the last server of the journal, and to have changes made again, is sent anew.
    fn forget_requests(&mut self) {
        self.pressing = false;
        self.take(|execute| !execute.made.is_empty());
    }

    fn deliver(&self, lane: Lane, bytes: BytesMut) {
        let sender = match lane {
            Lane::Bulk => self.bulk.as_ref().or(self.control.as_ref()),
            Lane::Control => self.control.as_ref(),
        };
        if let Some(sender) = sender {
            // A broken connection is replaced; the request is sent again then.
            let _ = sender.send(bytes);
        }
    }

    /// Requests without an answer that nobody will answer any more.
    fn take(&mut self, which: impl Fn(&Execute) -> bool) -> Vec<Done> {
        let taken = self.pending.extract_if(.., |_, pending| which(&pending.execute));
        let taken = taken.map(|(_, Pending { execute, done, .. })| {
            self.unanswered.remove(&execute.sequence.0);
            done
        });
        taken.collect()
    }

    /// Nothing behind this position of the journal will ever be executed.
    fn wait_for_at_most(&mut self, position: JournalPosition) {
        for pending in self.pending.values_mut() {
            pending.execute.after = pending.execute.after.min(position);
        }
    }

    /// Every change below this number has its answer.
    fn acknowledged(&self) -> OperationSeq {
        OperationSeq(self.unanswered.first().copied().unwrap_or(self.next_sequence))
    }

    fn say_heard(&self) {
        if let Some(bytes) = encode(0, &Request::Heard(self.acknowledged())) {
            self.deliver(Lane::Control, bytes);
        }
    }

    /// Ask for a term. A ping's id is when it was sent: the answer brings it back.
    fn ping(&mut self, now: Moment) {
        self.pings.sent(now);
        if let Some(bytes) = encode(now.to_id(), &Request::Ping) {
            self.deliver(Lane::Control, bytes);
        }
    }

    fn send_again(&self) {
        let is_due = |pending: &Pending| !self.returning || pending.execute.again.is_some();
        for (id, pending) in self.pending.iter().filter(|(_, pending)| is_due(pending)) {
            if let Some(bytes) = encode(*id, &Request::Execute(pending.execute.clone())) {
                self.deliver(pending.lane, bytes);
            }
        }
    }

    /// The server knows nothing of this session any more: count its opens anew.
    fn open_again(&self) {
        for (&inode, &count) in &self.opens {
            for _ in 0..count {
                let open = Operation::Open { inode, flags: Default::default() };
                let execute = request(Caller::default(), vec![open]);
                if let Some(bytes) = encode(0, &Request::Execute(execute)) {
                    self.deliver(Lane::Control, bytes);
                }
            }
        }
    }

    /// Count what a request opened and released. Answers how many more opens there are.
    fn track(&mut self, operations: &[Operation], results: &[Result<Outcome, Errno>]) -> Vec<(InodeId, i32)> {
        let mut previous = None;
        let mut more = Vec::new();
        for (operation, result) in operations.iter().zip(results) {
            if let Some(inode) = opened(operation, result) {
                *self.opens.entry(inode).or_default() += 1;
                more.push((inode, 1));
            }
            let outcome = result.as_ref().ok();
            let released = match (operation, outcome) {
                (Operation::Release { inode: InodeId::PREVIOUS }, Some(_)) => previous,
                (Operation::Release { inode }, Some(_)) => Some(*inode),
                _ => None,
            };
            if let Some(inode) = released
                && let Some(count) = self.opens.get_mut(&inode)
            {
                *count -= 1;
                more.push((inode, -1));
                if *count == 0 {
                    self.opens.remove(&inode);
                }
            }
            let found = outcome.and_then(Outcome::attributes);
            previous = found.map(|attributes| attributes.inode).or(previous);
        }
        more
    }
}

/// Whether it counts what is open: neither twice.
fn counts(operation: &Operation) -> bool {
    matches!(operation, Operation::Open { .. } | Operation::Release { .. })
}

/// The kernel's numbers are even.
fn is_of_kernel(id: u64) -> bool {
    id.is_multiple_of(2)
}

fn changes(execute: &Execute) -> bool {
    !execute.made.is_empty() || execute.operations.iter().any(Operation::mutates)
}

/// The inode that this operation opened: it may name it as the one that the operation before it was about.
fn opened(operation: &Operation, result: &Result<Outcome, Errno>) -> Option<InodeId> {
    match (operation, result) {
        (Operation::Open { .. }, Ok(Outcome::Entry(attributes))) => Some(attributes.inode),
        (Operation::Open { inode, .. }, Ok(_)) if *inode != InodeId::PREVIOUS => Some(*inode),
        (Operation::Create { .. }, Ok(Outcome::Created { attributes, .. }))
        | (Operation::CreateUnnamed { .. }, Ok(Outcome::Entry(attributes))) => Some(attributes.inode),
        _ => None,
    }
}

async fn pump(mut writer: connection::Writing, mut queue: mpsc::UnboundedReceiver<BytesMut>) {
    while let Some(mut bytes) = queue.recv().await {
        while bytes.len() < BULK_BYTES_MIN
            && let Ok(more) = queue.try_recv()
        {
            bytes.extend_from_slice(&more);
        }
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// An administrative connection.
pub struct Admin {
    connection: tokio::sync::Mutex<Connection>,
}

impl Admin {
    pub async fn connect(config: &ClientConfig) -> Result<Admin, ClientError> {
        let hello = Hello {
            features: 0,
            token: config.token.clone(),
            volume: None,
            resume: None,
            lane: Lane::Control,
            leases: false,
            executed: Default::default(),
            journal_end: Default::default(),
        };
        Ok(Admin { connection: tokio::sync::Mutex::new(connection::connect(config, hello).await?) })
    }

    pub async fn call(&self, request: AdminRequest) -> Result<AdminReply, ClientError> {
        self.call_watched(request, |_| ()).await
    }

    /// The same; `heard` gets each reply that another one follows.
    pub async fn call_watched(
        &self,
        request: AdminRequest,
        mut heard: impl FnMut(AdminReply),
    ) -> Result<AdminReply, ClientError> {
        let mut connection = self.connection.lock().await;
        let bytes = encode(2, &Request::Admin(request)).ok_or(ClientError::Protocol)?;
        connection.writer.write_all(&bytes).await.map_err(|_| ClientError::Protocol)?;
        loop {
            match connection.reader.next().await {
                Some((_, Response::Admin(part))) if part.goes_on() => heard(part),
                Some((_, Response::Admin(reply))) => return Ok(reply),
                Some((_, Response::Refused { message })) => return Err(ClientError::Refused(message)),
                _ => return Err(ClientError::Protocol),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_wire::{FRAME_BYTES_MAX, Welcome};
    use tokio::io::{AsyncReadExt, DuplexStream};

    use super::*;
    use crate::connection::{Reading, Writing};
    use crate::{Dialer, ServerAddress};

    const FILE: InodeId = InodeId(7);

    /// A lane, as the server has it.
    struct Served {
        stream: DuplexStream,
        received: BytesMut,
    }

    impl Served {
        /// Answer the introduction.
        async fn welcome(stream: DuplexStream) -> Served {
            let mut lane = Served { stream, received: BytesMut::new() };
            atoll_wire::decode_hello(&lane.next().await).unwrap();
            let since = Issue(0);
            let journal = JournalPosition(0);
            let (resume, resumed, read_only) = (None, false, false);
            let welcome = Welcome { features: 0, resume, resumed, instance: 1, since, journal, read_only };
            lane.send(&Response::Welcome(welcome)).await;
            lane
        }

        async fn next(&mut self) -> bytes::Bytes {
            loop {
                if let Some((_, body)) = atoll_wire::next_frame(&mut self.received, FRAME_BYTES_MAX).unwrap() {
                    return body;
                }
                assert_ne!(self.stream.read_buf(&mut self.received).await.unwrap(), 0);
            }
        }

        async fn send(&mut self, response: &Response) {
            let mut bytes = BytesMut::new();
            atoll_wire::encode(0, response, &mut bytes).unwrap();
            self.stream.write_all(&bytes).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_goodbye_is_answered_although_the_other_lane_ends_first() {
        let (dialed, mut streams) = mpsc::unbounded_channel();
        let dialer: Dialer = Arc::new(move || {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let _ = dialed.send(theirs);
            let (reader, writer) = tokio::io::split(ours);
            Box::pin(async move { Ok((Box::new(reader) as Reading, Box::new(writer) as Writing)) })
        });
        let address = ServerAddress::Unix("nowhere".into());
        let config = ClientConfig { dialer: Some(dialer), ..ClientConfig::new(address) };
        let server = tokio::spawn(async move {
            let mut control = Served::welcome(streams.recv().await.unwrap()).await;
            let bulk = Served::welcome(streams.recv().await.unwrap()).await;
            assert_eq!(atoll_wire::decode::<Request>(&control.next().await).unwrap(), Request::Goodbye);
            drop(bulk);
            tokio::time::sleep(Duration::from_millis(20)).await;
            control.send(&Response::Ended).await;
            control
        });
        let session = Session::open(config, "v").await.unwrap();
        while session.state.lock().bulk.is_none() {
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        session.close().await;
        assert!(start.elapsed() < GOODBYE_TIMEOUT, "the answer was not heard");
        server.await.unwrap();
    }

    #[test]
    fn what_must_not_be_executed_twice_is_numbered() {
        let mut state = State::new();
        let mut number = |id, operation| {
            let execute = request(Caller::default(), vec![operation]);
            assert!(state.send(id, execute, Box::new(|_| ())).is_ok());
            state.pending[&id].execute.sequence.0
        };
        assert_eq!(number(1, Operation::SetAttributes { inode: FILE, changes: Default::default() }), 1);
        assert_eq!(number(3, Operation::GetAttributes { inode: FILE }), 0);
        // Sent again when it was executed, it would take an open from another descriptor.
        assert_eq!(number(5, Operation::Release { inode: FILE }), 2);
        // A session that is over has made the change, or not; that a file is closed stays true.
        assert_eq!(state.take(changes).len(), 1);
    }

    #[test]
    fn opens_of_what_an_earlier_operation_found_are_counted() {
        let mut state = State::new();
        let found = |inode| {
            let mode = atoll_types::Mode::new(atoll_types::FileKind::Regular, 0o644);
            let at = Timestamp::default();
            Ok(Outcome::Entry(atoll_types::Attributes {
                inode,
                mode,
                links: 1,
                uid: 0,
                gid: 0,
                device: 0,
                size: 0,
                allocated: 0,
                accessed: at,
                modified: at,
                changed: at,
                created: at,
                quota_root: InodeId::NONE,
            }))
        };
        let name = atoll_types::Name::new(&b"f"[..]).unwrap();
        let lookup = Operation::Lookup { parent: InodeId::ROOT, name };
        let open = Operation::Open { inode: InodeId::PREVIOUS, flags: Default::default() };
        let release = Operation::Release { inode: InodeId::PREVIOUS };
        state.track(&[lookup.clone(), open], &[found(FILE), found(FILE)]);
        assert_eq!(state.opens.get(&FILE), Some(&1), "a server that knows nothing of it is told");
        assert_eq!(state.opens.len(), 1);
        state.track(&[lookup, release], &[found(FILE), Ok(Outcome::Done)]);
        assert!(state.opens.is_empty());
    }
}
