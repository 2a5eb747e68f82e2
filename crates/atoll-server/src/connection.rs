//! One client connection: frames in, answers out.

use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use atoll_lease::Issue;
use atoll_types::{Errno, InodeId, JournalPosition, Operation, OperationSeq, Outcome, Timestamp};
use atoll_wire::{
    AdminReply, AdminRequest, Execute, FRAME_BYTES_MAX, HELLO_BYTES_MAX, Hello, Lane, LeaseInfo, Request, Response,
    SnapshotInfo, TrashInfo, Welcome,
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use crate::care;
use crate::links::PUBLISHED_MAX;
use crate::moving::Import;
use crate::names::parts;
use crate::server::Context;
use crate::sessions::{Admission, Reply, Results, Session};
use crate::tokens::Rights;
use atoll_volume::fsck::Progress;
use atoll_volume::{Asking, Earned, Mark, Quota, Retention, Snapshot, TrashReport, VolumeError};

/// How long a new connection may take to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Most requests of one connection that execute at a time; more are not read until one ends.
const IN_FLIGHT_MAX: usize = 4096;
/// Most requests of one connection that wait for a lock; more get `ENOLCK`.
const LOCK_WAITS_MAX: usize = 4096;
/// Most requests of one connection that wait for what its session's journal has before them; more get `EAGAIN`.
const JOURNAL_WAITS_MAX: usize = 4096;
/// Answers that wait to be written.
const ANSWERS_QUEUED_MAX: usize = 1024;
/// How long the peer may take no bytes of its answers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between words on how far some work is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

type Answers = mpsc::Sender<BytesMut>;

/// A request that did not end at once.
struct Waiting {
    interrupt: Arc<Notify>,
    /// Set when it waits for a lock, which may take for ever.
    lock_wait: Option<AbortHandle>,
}

struct Connection {
    context: Arc<Context>,
    rights: Rights,
    session: Option<Arc<Session>>,
    /// Of the session's connections.
    generation: u64,
    answers: Answers,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
    tasks: JoinSet<()>,
    in_flight: Arc<Semaphore>,
    lock_waits: Arc<Semaphore>,
    journal_waits: Arc<Semaphore>,
    /// The volume that this connection is making of an export.
    importing: tokio::sync::Mutex<Option<Import>>,
}

/// What a request that does not end at once waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    /// Something that comes to pass without the connection.
    Others,
    /// Another request that may not have been read yet.
    Lock,
    Journal,
}

/// The answer, or none when the client is to ask another server.
type Work = Pin<Box<dyn Future<Output = Option<Response>> + Send>>;

/// Serve until the peer leaves or misbehaves. `trusted`: the socket's permissions let it in.
pub(crate) async fn serve<S>(context: Arc<Context>, stream: S, trusted: bool)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut reader, writer) = tokio::io::split(stream);
    let (answers, outgoing) = mpsc::channel::<BytesMut>(ANSWERS_QUEUED_MAX);
    // Bounded by what the session may hold.
    let (recalls, recalled) = mpsc::unbounded_channel::<BytesMut>();
    let writing = tokio::spawn(write(writer, outgoing, recalled));
    let mut received = BytesMut::with_capacity(64 * 1024);
    let first = async {
        tokio::select! {
            frame = next_frame(&mut reader, &mut received, HELLO_BYTES_MAX) => frame,
            _ = context.stopping() => None,
        }
    };
    if let Ok(Some((id, body))) = tokio::time::timeout(HELLO_TIMEOUT, first).await {
        let hello = atoll_wire::decode_hello(&body).map_err(|error| error.to_string());
        let lane = hello.as_ref().map_or(Lane::Control, |hello| hello.lane);
        let welcomed = match hello {
            Ok(hello) => welcome(&context, hello, trusted).await,
            Err(message) => Err(message),
        };
        match welcomed {
            Ok((rights, session, generation, welcome)) => {
                send(&answers, id, &Response::Welcome(welcome)).await;
                if let Some(session) = session.as_ref().filter(|s| s.leases && lane == Lane::Control) {
                    session.attach(recalls);
                }
                let connection = Connection {
                    context,
                    rights,
                    session,
                    generation,
                    answers,
                    waiting: Arc::default(),
                    tasks: JoinSet::new(),
                    in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
                    lock_waits: Arc::new(Semaphore::new(LOCK_WAITS_MAX)),
                    journal_waits: Arc::new(Semaphore::new(JOURNAL_WAITS_MAX)),
                    importing: tokio::sync::Mutex::default(),
                };
                connection.run(&mut reader, &mut received).await;
            }
            Err(message) => {
                tracing::info!(%message, "client refused");
                context.metrics.refused.inc();
                send(&answers, id, &Response::Refused { message }).await;
                drop(answers);
            }
        }
    } else {
        drop(answers);
    }
    let _ = writing.await;
}

/// Write answers until there are none left, or the peer takes none.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<BytesMut>,
    mut recalls: mpsc::UnboundedReceiver<BytesMut>,
) {
    // Nothing goes before the answer to the introduction.
    let mut next = outgoing.recv().await;
    while let Some(mut bytes) = next {
        // Whatever else is small and ready goes out with it.
        while bytes.len() < 64 * 1024
            && let Ok(more) = outgoing.try_recv()
        {
            bytes.extend_from_slice(&more);
        }
        if !matches!(tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(&bytes)).await, Ok(Ok(()))) {
            return;
        }
        next = tokio::select! {
            biased;
            Some(recall) = recalls.recv() => Some(recall),
            answer = outgoing.recv() => answer,
        };
    }
    let _ = writer.shutdown().await;
}

async fn next_frame<R: AsyncRead + Unpin>(
    reader: &mut R,
    received: &mut BytesMut,
    most: usize,
) -> Option<(u64, Bytes)> {
    loop {
        match atoll_wire::next_frame(received, most) {
            Ok(Some(frame)) => return Some(frame),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "connection closed: bad frame");
                return None;
            }
        }
        match reader.read_buf(received).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

async fn send(answers: &Answers, id: u64, response: &Response) {
    let mut bytes = BytesMut::new();
    if let Err(error) = atoll_wire::encode(id, response, &mut bytes) {
        tracing::error!(%error, "answer does not fit a frame");
        let refused = refusal(Errno::EOVERFLOW);
        if atoll_wire::encode(id, &refused, &mut bytes).is_err() {
            return;
        }
    }
    // A closed channel means the peer is gone.
    let _ = answers.send(bytes).await;
}

async fn welcome(
    context: &Context,
    hello: Hello,
    trusted: bool,
) -> Result<(Rights, Option<Arc<Session>>, u64, Welcome), String> {
    let mut rights = match &hello.token {
        Some(secret) => context.tokens.check(secret).ok_or("the token is unknown, revoked or has expired")?,
        None if trusted => Rights::everything(),
        None => {
            return Err(
                "a token is needed: `atoll token create` on the server, then ATOLL_TOKEN or --token-file".into()
            );
        }
    };
    // A snapshot never changes.
    let volume = hello.volume.as_deref().map(parts);
    rights.read_only |= matches!(volume, Some((_, Some(_))));
    let mut welcome = Welcome {
        features: 0,
        resume: None,
        resumed: false,
        instance: context.instance,
        since: Issue(0),
        journal: JournalPosition(0),
        read_only: rights.read_only,
    };
    let Some(name) = &hello.volume else { return Ok((rights, None, 0, welcome)) };
    if rights.volume.as_ref().is_some_and(|only| *only != parts(name).0) {
        return Err(format!("the token is not for volume `{name}`"));
    }
    // Opens it, and finds the sessions that it had with the last server.
    let volume = context.registry.get(name).await?;
    let resume = |resume| context.sessions.resume(resume, name, rights.read_only, hello.journal_end, hello.lane);
    let known = hello.resume.as_ref().and_then(resume);
    welcome.resumed = known.is_some();
    welcome.since = volume.since();
    let sessions = Arc::downgrade(&context.sessions);
    volume.on_recall(move |notice| {
        if let Some(sessions) = sessions.upgrade() {
            sessions.recall(notice);
        }
    });
    let sessions = Arc::downgrade(&context.sessions);
    volume.on_unheard(move |session| {
        if let Some(sessions) = sessions.upgrade() {
            sessions.confirm(session);
        }
    });
    let (session, generation) = match known {
        Some((session, generation)) => {
            // What the client asked for before, it asks for again: a lock that is given back must not be taken by a
            // late copy, nor one that is taken be given back.
            session.replaces(generation).await;
            (session, generation)
        }
        None => {
            let Hello { lane, leases, executed, .. } = hello;
            let of = (volume, context.registry.ownership(name)?);
            context.sessions.create(name, of, rights.read_only, leases, executed, lane).await?
        }
    };
    welcome.journal = session.executed();
    welcome.resume = Some(atoll_wire::Resume { session: session.id, secret: session.secret });
    Ok((rights, Some(session), generation, welcome))
}

impl Connection {
    async fn run<R: AsyncRead + Unpin>(mut self, reader: &mut R, received: &mut BytesMut) {
        let context = self.context.clone();
        let mut stopping = pin!(context.stopping());
        let (session, generation) = (self.session.clone(), self.generation);
        let mut over = pin!(async {
            match &session {
                Some(session) => session.over().await,
                None => std::future::pending().await,
            }
        });
        let replaced = pin!(async {
            match &session {
                Some(session) => session.replaced(generation).await,
                None => std::future::pending().await,
            }
        });
        let serving = async {
            loop {
                tokio::select! {
                    frame = next_frame(reader, received, FRAME_BYTES_MAX) => {
                        let Some((id, body)) = frame else { break false };
                        if !self.handle(id, &body).await {
                            break false;
                        }
                    }
                    Some(_) = self.tasks.join_next() => {}
                    _ = &mut stopping => break true,
                    _ = &mut over => break false,
                }
            }
        };
        let stopped = tokio::select! {
            biased;
            // Also in the middle of a request.
            _ = replaced => false,
            stopped = serving => stopped,
        };
        if stopped {
            // The client asks again for its locks when it has found a server.
            let lock_waits = self.waiting.lock().values().filter_map(|w| w.lock_wait.clone()).collect::<Vec<_>>();
            lock_waits.iter().for_each(AbortHandle::abort);
            while self.tasks.join_next().await.is_some() {}
        } else {
            // Nobody is there for the answers. Mutations go on in tasks of their own.
            self.tasks.shutdown().await;
        }
        if let Some(session) = &self.session {
            session.disconnected(self.generation);
        }
    }

    /// False ends the connection.
    async fn handle(&mut self, id: u64, body: &[u8]) -> bool {
        let request = match atoll_wire::decode::<Request>(body) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%error, "connection closed: bad request");
                return false;
            }
        };
        if !self.context.tokens.holds(&mut self.rights) {
            let message = "the token was revoked or has expired".into();
            send(&self.answers, id, &Response::Refused { message }).await;
            return false;
        }
        match request {
            Request::Ping => {
                let renewed =
                    self.session.as_ref().is_some_and(|s| !s.has_ended() && s.is_sure() && s.volume.may_renew(s.id));
                let durable = self.session.as_ref().map_or(Issue(0), |session| session.volume.durable());
                let now = self.session.as_ref().map_or_else(Timestamp::now, |session| session.volume.tell_time());
                send(&self.answers, id, &Response::Pong { renewed, now, durable }).await;
            }
            Request::GiveUp(rights) => {
                if let Some(session) = &self.session {
                    tracing::debug!(session = %session.id, ?rights, "given up");
                    session.volume.given_up(session.id, &rights);
                }
            }
            Request::Cancel(waiting) => {
                if let Some(waiting) = self.waiting.lock().get(&waiting) {
                    waiting.interrupt.notify_one();
                }
            }
            Request::Admin(request) => {
                let response = match self.administer(id, request).await {
                    Ok(reply) => Response::Admin(reply),
                    Err(message) => Response::Refused { message },
                };
                send(&self.answers, id, &response).await;
            }
            Request::Heard(below) => {
                if let Some(session) = &self.session {
                    session.heard(below);
                }
            }
            Request::Goodbye => {
                if let Some(session) = &self.session {
                    self.context.sessions.end(session).await;
                }
                send(&self.answers, id, &Response::Ended).await;
                return false;
            }
            Request::Returned => {
                if let Some(session) = &self.session {
                    session.made_again();
                }
                send(&self.answers, id, &Response::Returned).await;
            }
            Request::Execute(execute) => self.execute(id, execute).await,
            Request::Reserve => {
                if let Some(session) = self.session_or_refuse(id).await {
                    self.answer(id, WaitsFor::Others, Box::pin(async { Some(reserve(session).await) })).await;
                }
            }
        }
        true
    }

    async fn session_or_refuse(&self, id: u64) -> Option<Arc<Session>> {
        if self.session.is_none() {
            send(&self.answers, id, &Response::Refused { message: "no volume is open".into() }).await;
        }
        self.session.clone()
    }

    async fn execute(&mut self, id: u64, execute: Execute) {
        let Some(session) = self.session_or_refuse(id).await else { return };
        let waits_for = if execute.operations.iter().any(Operation::waits_for_lock) {
            WaitsFor::Lock
        } else if execute.after > session.executed() {
            WaitsFor::Journal
        } else {
            WaitsFor::Others
        };
        let context = self.context.clone();
        let work = async move {
            let reply = in_turn(context, session.clone(), execute).await?;
            if !session.holds().await {
                return None;
            }
            Some(results(reply, session.volume.durable()))
        };
        self.answer(id, waits_for, Box::pin(work)).await;
    }

    /// Answer a request here if it does not wait; else in a task of its own.
    async fn answer(&mut self, id: u64, waits_for: WaitsFor, mut work: Work) {
        let first = std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
        if let Poll::Ready(response) = first {
            if let Some(response) = response {
                send(&self.answers, id, &response).await;
            }
            return;
        }
        let permit = match waits_for {
            // Everything else ends by itself, also while nothing is read.
            WaitsFor::Others => self.in_flight.clone().acquire_owned().await.map_err(|_| Errno::EIO),
            WaitsFor::Lock => self.lock_waits.clone().try_acquire_owned().map_err(|_| Errno::ENOLCK),
            WaitsFor::Journal => self.journal_waits.clone().try_acquire_owned().map_err(|_| Errno::EAGAIN),
        };
        let permit = match permit {
            Ok(permit) => permit,
            Err(errno) => return send(&self.answers, id, &refusal(errno)).await,
        };
        let interrupt = Arc::new(Notify::new());
        let (answers, waiting) = (self.answers.clone(), self.waiting.clone());
        self.waiting.lock().insert(id, Waiting { interrupt: interrupt.clone(), lock_wait: None });
        let task = self.tasks.spawn(async move {
            let response = tokio::select! {
                biased;
                response = work => response,
                _ = interrupt.notified() => Some(refusal(Errno::EINTR)),
            };
            waiting.lock().remove(&id);
            if let Some(response) = response {
                send(&answers, id, &response).await;
            }
            drop(permit);
        });
        if waits_for == WaitsFor::Lock
            && let Some(waiting) = self.waiting.lock().get_mut(&id)
        {
            waiting.lock_wait = Some(task);
        }
    }

    async fn administer(&self, id: u64, request: AdminRequest) -> Result<AdminReply, String> {
        if !self.may_ask(&request) {
            return Err("this token may not administer the server".into());
        }
        let context = &self.context;
        let text = |error: std::io::Error| error.to_string();
        Ok(match request {
            AdminRequest::VolumeCreate { name, durability, compression, encrypt, link } => {
                context.registry.create_linked(&name, &durability, &compression, encrypt, link).await?;
                AdminReply::Done
            }
            AdminRequest::VolumeRotateKey { name, data } => {
                context.registry.rotate_key(&name, data).await?;
                let info = context.registry.info(&name, context.sessions.count(Some(&name))).await?;
                AdminReply::Volumes(vec![info])
            }
            AdminRequest::VolumeAttach { name } => {
                context.registry.attach(&name).await?;
                AdminReply::Done
            }
            AdminRequest::VolumeQuota { name, bytes, inodes } => {
                let quota = Quota { bytes: bytes.unwrap_or(u64::MAX), inodes: inodes.unwrap_or(u64::MAX) };
                let set = context.registry.get_volume(&name).await?.set_quota(quota).await;
                set.map_err(|errno| format!("volume `{name}`: {errno}"))?;
                AdminReply::Done
            }
            AdminRequest::DirectoryQuota { volume, directory, limits } => {
                let (tell, heard) = care::progress();
                let work = context.registry.set_directory_quota(&volume, directory, limits, tell);
                self.watched(id, heard, work).await?;
                AdminReply::Done
            }
            AdminRequest::DirectoryQuotas { volume, after } => {
                AdminReply::Quotas(context.registry.directory_quotas(&volume, after).await?)
            }
            AdminRequest::VolumeTrash { name, change } => {
                let volume = context.registry.get_volume(&name).await?;
                let text = |error: VolumeError| format!("volume `{name}`: {error}");
                if let Some(change) = change {
                    volume.set_retention(change.map(Retention)).await.map_err(text)?;
                }
                let found = volume.count_trash().await.map_err(text)?;
                AdminReply::Trash(trash_info(volume.retention(), found))
            }
            AdminRequest::TrashEmpty { volume: name } => {
                let volume = context.registry.get_volume(&name).await?;
                let emptied = volume.empty_trash().await.map_err(|error| format!("volume `{name}`: {error}"))?;
                AdminReply::Trash(trash_info(volume.retention(), emptied))
            }
            AdminRequest::VolumeClone { source, snapshot, name } => {
                context.registry.clone_volume(&source, snapshot.as_deref(), &name).await?;
                AdminReply::Done
            }
            AdminRequest::VolumeList => {
                let mut volumes = Vec::new();
                for name in context.registry.names() {
                    volumes.push(context.registry.info(&name, context.sessions.count(Some(&name))).await?);
                }
                AdminReply::Volumes(volumes)
            }
            AdminRequest::VolumeInfo { name } => {
                context.registry.get(&name).await?;
                let info = context.registry.info(&name, context.sessions.count(Some(&name))).await?;
                AdminReply::Volumes(vec![info])
            }
            AdminRequest::VolumeDelete { name } => {
                context.registry.delete(&name).await?;
                AdminReply::Done
            }
            AdminRequest::TokenCreate { volume, read_only, events, expires_seconds, label } => {
                let made = context.tokens.create(volume, read_only, events, expires_seconds, label).map_err(text)?;
                AdminReply::Tokens(vec![made])
            }
            AdminRequest::TokenList => AdminReply::Tokens(context.tokens.list()),
            AdminRequest::TokenRevoke { id } => {
                if !context.tokens.revoke(&id).map_err(text)? {
                    return Err(format!("no token `{id}`: `atoll token list` shows what there is"));
                }
                AdminReply::Done
            }
            AdminRequest::Leases { volume, inode } => {
                let holders = context.registry.get(&volume).await?.lease_holders(inode);
                let info = |(holder, ms): (atoll_lease::HolderInfo, u64)| LeaseInfo {
                    session: holder.session,
                    rights: holder.rights.to_string(),
                    recalling: holder.recalling.to_string(),
                    seconds: ms / 1000,
                };
                AdminReply::Leases(holders.into_iter().map(info).collect())
            }
            AdminRequest::LeaseRevoke { session } => {
                if !context.sessions.revoke(session).await {
                    return Err(format!("no session `{session}`: `atoll status --leases VOLUME:/path` shows them"));
                }
                AdminReply::Done
            }
            AdminRequest::Fsck { volume, repair, read } => {
                let registry = &context.registry;
                let (tell, heard) = care::progress();
                let work = async {
                    match repair {
                        true => registry.repair(&volume, &tell).await,
                        false => registry.check(&volume, read, &tell).await,
                    }
                };
                AdminReply::Fsck(Box::new(self.watched(id, heard, work).await?))
            }
            AdminRequest::CollectGarbage { volume, dry_run } => {
                let found = context.registry.get(&volume).await?.collect_garbage(dry_run).await;
                let (objects, bytes) = found.map_err(|error| format!("volume `{volume}`: {error}"))?;
                AdminReply::Garbage { objects, bytes }
            }
            AdminRequest::SnapshotCreate { volume, name } => {
                context.registry.create_snapshot(&volume, &name).await?;
                AdminReply::Done
            }
            AdminRequest::SnapshotList { volume } => {
                let info = |found: Snapshot| SnapshotInfo { name: found.name, created: found.created };
                AdminReply::Snapshots(context.registry.snapshots(&volume).await?.into_iter().map(info).collect())
            }
            AdminRequest::SnapshotDelete { volume, name } => {
                context.registry.delete_snapshot(&volume, &name).await?;
                AdminReply::Done
            }
            AdminRequest::SnapshotRestore { volume, name } => {
                context.registry.restore_snapshot(&volume, &name).await?;
                AdminReply::Done
            }
            AdminRequest::Export { volume, snapshot } => {
                AdminReply::Exported(context.registry.export(&volume, &snapshot).await?)
            }
            AdminRequest::ExportRecords { volume, snapshot, from } => {
                let (records, next) = context.registry.export_records(&volume, &snapshot, from).await?;
                AdminReply::Records { records, next }
            }
            AdminRequest::Import { name, durability, compression, encrypt, source } => {
                let mut importing = self.importing.lock().await;
                // One that was begun before is over, and its name is free.
                importing.take();
                *importing = Some(context.registry.import(&name, &durability, &compression, encrypt, source).await?);
                AdminReply::Done
            }
            AdminRequest::ImportRecords(records) => {
                self.importing.lock().await.as_ref().ok_or("no import was begun")?.add(records).await?;
                AdminReply::Done
            }
            AdminRequest::ImportEnd => {
                let import = self.importing.lock().await.take().ok_or("no import was begun")?;
                let (tell, heard) = care::progress();
                let (inodes, bytes) = self.watched(id, heard, context.registry.end_import(import, &tell)).await?;
                AdminReply::Imported { inodes, bytes }
            }
            AdminRequest::LinkCreate { volume, directory, link } => {
                AdminReply::Links(vec![context.registry.link(&volume, directory, link).await?])
            }
            AdminRequest::LinkList { volume, after } => {
                AdminReply::Links(context.registry.links(&volume, after).await?)
            }
            AdminRequest::LinkStatus { volume, directory } => {
                AdminReply::Links(vec![context.registry.link_status(&volume, directory).await?])
            }
            AdminRequest::LinkDetach { volume, directory, discard } => {
                context.registry.detach(&volume, directory, discard).await?;
                AdminReply::Done
            }
            AdminRequest::Publish { volume, inode } => {
                let (_tell, heard) = care::progress();
                let mut objects = self.watched(id, heard, context.registry.publish(&volume, inode)).await?;
                while objects.len() > PUBLISHED_MAX {
                    let rest = objects.split_off(PUBLISHED_MAX);
                    let part = AdminReply::Published { objects, more: true };
                    send(&self.answers, id, &Response::Admin(part)).await;
                    objects = rest;
                }
                AdminReply::Published { objects, more: false }
            }
            AdminRequest::CredentialsSet { name, credentials } => {
                context.registry.buckets.set_credentials(&name, credentials)?;
                AdminReply::Done
            }
            AdminRequest::CredentialsList => AdminReply::Credentials(context.registry.buckets.credentials.names()),
            AdminRequest::CredentialsDelete { name } => {
                if !context.registry.buckets.delete_credentials(&name)? {
                    return Err(format!("no credentials `{name}`: `atoll link credentials list` shows what there is"));
                }
                AdminReply::Done
            }
            AdminRequest::Status => AdminReply::Status(context.status().await?),
        })
    }

    /// Who may write to a volume may also ask that it is published.
    fn may_ask(&self, request: &AdminRequest) -> bool {
        let publishes = |volume: &str| !self.rights.read_only && self.rights.volume.as_deref() == Some(volume);
        self.rights.administers() || matches!(request, AdminRequest::Publish { volume, .. } if publishes(volume))
    }

    /// Does long work, and tells the client now and then how far it is.
    async fn watched<T>(
        &self,
        id: u64,
        mut heard: care::Heard,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
            }
            let progress = *heard.borrow_and_update();
            if let Some(Progress { phase, done, total }) = progress {
                let reply = AdminReply::Progress { phase: phase.to_owned(), done, total };
                send(&self.answers, id, &Response::Admin(reply)).await;
            }
            if self.answers.is_closed() {
                return Err("the client is gone".into());
            }
        }
    }
}

fn trash_info(retention: Option<Retention>, TrashReport { files, bytes }: TrashReport) -> TrashInfo {
    TrashInfo { retention_seconds: retention.map(|Retention(seconds)| seconds), files, bytes }
}

/// An answer of which nothing may be kept.
fn only(results: Results) -> Reply {
    (results, Earned::default())
}

fn results((results, earned): Reply, durable: Issue) -> Response {
    let Earned { grants, order, at, watched } = earned;
    Response::Results { results, grants, order, at, durable, watched }
}

/// An answer without any position among others.
fn refusal(errno: Errno) -> Response {
    results(only(vec![Err(errno)]), Issue(0))
}

/// Inode numbers for what the session's client makes.
async fn reserve(session: Arc<Session>) -> Response {
    let reserved = if session.read_only { Err(Errno::EROFS) } else { session.volume.reserve(session.id).await };
    if session.has_ended() {
        // It may have been before the numbers were there.
        session.volume.forget_reserves(session.id);
        return refusal(Errno::EIO);
    }
    match reserved {
        Ok((first, count)) => Response::Reserved { first, count },
        Err(errno) => refusal(errno),
    }
}

/// Execute a request when everything before it in the session's journal is. No answer when the server stops before:
/// the client asks the next one.
async fn in_turn(context: Arc<Context>, session: Arc<Session>, execute: Execute) -> Option<Reply> {
    let all = |errno| only(vec![Err(errno); execute.operations.len()]);
    if let Err(errno) = check(&session, &execute) {
        return Some(all(errno));
    }
    session.heard(execute.acknowledged);
    let its_turn = tokio::select! {
        biased;
        its_turn = session.until_executed(execute.after) => its_turn,
        _ = context.stopping() => return None,
    };
    if let Err(errno) = its_turn {
        return Some(all(errno));
    }
    if let Some(order) = execute.again {
        let its_turn = tokio::select! {
            biased;
            its_turn = session.volume.turn(session.id, order) => its_turn,
            _ = context.stopping() => return None,
        };
        if !its_turn || session.has_ended() {
            return Some(all(Errno::EIO));
        }
        if !execute.journal {
            return Some(made_again(context, session, execute).await);
        }
    }
    Some(numbered(context, session, execute).await)
}

/// Make changes again that an earlier server executed, if the store does not hold them.
async fn made_again(context: Arc<Context>, session: Arc<Session>, execute: Execute) -> Reply {
    let alone = session.again.clone().lock_owned().await;
    let work = tokio::spawn(async move {
        let done = session.volume.answers(session.id, execute.sequence);
        let reply = match done {
            Some(_) => {
                let earned = Earned { order: session.volume.newest(), ..Earned::default() };
                (vec![Ok(Outcome::Done); execute.operations.len()], earned)
            }
            None => compound(&context, &session, execute, Vec::new()).await,
        };
        drop(alone);
        reply
    });
    work.await.unwrap_or_else(|_| only(vec![Err(Errno::EIO)]))
}

/// Execute a request, numbered ones exactly once.
async fn numbered(context: Arc<Context>, session: Arc<Session>, execute: Execute) -> Reply {
    if execute.sequence == OperationSeq(0) {
        return compound(&context, &session, execute, Vec::new()).await;
    }
    match session.admit(execute.sequence, execute.acknowledged) {
        Admission::TooMany => only(vec![Err(Errno::EAGAIN)]),
        Admission::Acknowledged => only(vec![Err(Errno::EPROTO)]),
        Admission::Repeat(mut answer) => match answer.wait_for(Option::is_some).await {
            Ok(reply) => reply.clone().unwrap_or_default(),
            Err(_) => only(vec![Err(Errno::EIO)]),
        },
        Admission::Execute(answer) => {
            // In a task of its own: a lost connection must not stop a change half-way.
            let work = tokio::spawn(async move {
                let reply = if execute.journal {
                    journaled(&context, &session, execute).await
                } else {
                    once(&context, &session, execute).await
                };
                answer.send_replace(Some(reply.clone()));
                reply
            });
            work.await.unwrap_or_else(|_| only(vec![Err(Errno::EIO)]))
        }
    }
}

/// What no client that keeps to the protocol asks for.
fn check(session: &Session, execute: &Execute) -> Result<(), Errno> {
    let is_numbered = execute.sequence != OperationSeq(0);
    let is_made = execute.made.len() == execute.operations.len();
    let waits = || execute.operations.iter().any(Operation::waits_for_lock);
    let sound = if execute.journal {
        // Without leases there are no rights under which anything is made.
        is_numbered && session.leases && is_made && !waits()
    } else if execute.again.is_some() {
        is_numbered && is_made && !waits()
    } else {
        execute.made.is_empty() && (is_numbered || !execute.operations.iter().any(Operation::mutates))
    };
    if sound { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Execute numbered changes, as far as an earlier server has not.
async fn once(context: &Context, session: &Session, execute: Execute) -> Reply {
    let before = if session.restored { session.volume.answers(session.id, execute.sequence) } else { None };
    match before {
        // What they answered is not known: another release has kept it.
        Some(results) if results.is_empty() => only(vec![Err(Errno::EIO); execute.operations.len()]),
        before => compound(context, session, execute, before.unwrap_or_default()).await,
    }
}

/// Execute what comes next in the session's journal. A part that another process of the client has sent already, which
/// was killed, is not executed again: what it answered, nobody knows.
async fn journaled(context: &Context, session: &Session, mut execute: Execute) -> Reply {
    let changes = execute.operations.len();
    let Some(end) = execute.after.0.checked_add(changes as u64).map(JournalPosition) else {
        return only(vec![Err(Errno::EPROTO); changes]);
    };
    let mut before = 0;
    loop {
        let (start, is_now) = session.begin(execute.after, end);
        if is_now {
            break;
        }
        if let Err(errno) = session.until_executed(start).await {
            return only(vec![Err(errno); changes]);
        }
        let done = (start.0 - execute.after.0) as usize;
        execute.operations.drain(..done);
        execute.made.drain(..done);
        (execute.after, before) = (start, before + done);
        if execute.operations.is_empty() {
            let earned = Earned { order: session.volume.newest(), ..Earned::default() };
            return (vec![Ok(Outcome::Done); changes], earned);
        }
    }
    let (results, earned) = compound(context, session, execute, Vec::new()).await;
    context.metrics.journaled(&results);
    session.advance(end);
    (std::iter::repeat_n(Ok(Outcome::Done), before).chain(results).collect(), earned)
}

/// Execute operations in order behind those that have `results`: of a journal all, else up to the first that fails.
async fn compound(context: &Context, session: &Session, execute: Execute, mut results: Results) -> Reply {
    let mut earned = Earned::default();
    if !results.is_empty() {
        earned.order = session.volume.newest();
    }
    let attributes = |result: &std::result::Result<Outcome, Errno>| result.as_ref().ok()?.attributes().copied();
    let mut previous = results.iter().rev().find_map(attributes).map(|attributes| attributes.inode);
    let mut goes_on = results.last().is_none_or(Result::is_ok);
    // That something is open the next server is told anew.
    let lasts = |operation: &Operation| operation.mutates() || matches!(operation, Operation::Release { .. });
    let is_noted = execute.sequence != OperationSeq(0) && execute.operations.iter().any(lasts);
    for (at, mut operation) in execute.operations.into_iter().enumerate().skip(results.len()) {
        if !goes_on {
            break;
        }
        let mark = if execute.journal {
            Mark::Journal(JournalPosition(execute.after.0 + at as u64 + 1))
        } else if !is_noted {
            Mark::None
        } else {
            let Execute { sequence, acknowledged, released, .. } = execute;
            Mark::Numbered { sequence, acknowledged, released }
        };
        let (name, started) = (operation.name(), Instant::now());
        let mut known = true;
        operation.inodes_mut(|inode| {
            if *inode == InodeId::PREVIOUS {
                match previous {
                    Some(found) => *inode = found,
                    None => known = false,
                }
            }
        });
        let result = if !known {
            Err(Errno::EINVAL)
        } else if session.read_only && operation.mutates() {
            Err(Errno::EROFS)
        } else {
            let made = execute.made.get(at);
            let caller = made.map_or(&execute.caller, |made| &made.caller);
            let asking = Asking { session: session.id, caller, made, mark, again: execute.again.is_some() };
            let (result, also) = session.volume.execute_asked(asking, operation).await;
            earned.grants.extend(also.grants);
            earned.order = earned.order.max(also.order);
            earned.at = earned.at.max(also.at);
            earned.watched |= also.watched;
            result
        };
        if let Some(attributes) = attributes(&result) {
            previous = Some(attributes.inode);
        }
        let failed = result.is_err();
        context.metrics.executed(name, started, failed);
        results.push(result);
        goes_on = !failed || execute.journal;
    }
    (results, earned)
}
