//! One client connection: frames in, answers out.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use atoll_types::{Errno, InodeId, OperationSeq, Outcome};
use atoll_wire::{AdminReply, AdminRequest, Execute, Hello, Request, Response, Welcome};
use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use crate::server::Context;
use crate::sessions::{Admission, Results, Session};
use crate::tokens::Rights;

/// How long a new connection may take to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Most requests of one connection that execute or wait at a time.
const IN_FLIGHT_MAX: usize = 4096;
/// Answers that wait to be written.
const ANSWERS_QUEUED_MAX: usize = 1024;

type Answers = mpsc::Sender<BytesMut>;

struct Connection {
    context: Arc<Context>,
    rights: Rights,
    session: Option<Arc<Session>>,
    answers: Answers,
    /// Requests that can be cancelled, by id.
    waiting: Arc<Mutex<HashMap<u64, Arc<Notify>>>>,
}

/// Serve until the peer leaves or misbehaves. `trusted`: the socket's permissions let it in.
pub(crate) async fn serve<S>(context: Arc<Context>, stream: S, trusted: bool)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (answers, mut outgoing) = mpsc::channel::<BytesMut>(ANSWERS_QUEUED_MAX);
    let writing = tokio::spawn(async move {
        while let Some(mut bytes) = outgoing.recv().await {
            // Whatever else is ready goes out with it.
            while bytes.len() < 64 * 1024
                && let Ok(more) = outgoing.try_recv()
            {
                bytes.extend_from_slice(&more);
            }
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    let mut received = BytesMut::with_capacity(64 * 1024);
    let hello = tokio::time::timeout(HELLO_TIMEOUT, next_request(&mut reader, &mut received)).await;
    if let Ok(Some((id, Request::Hello(hello)))) = hello {
        match welcome(&context, hello, trusted).await {
            Ok((rights, session, welcome)) => {
                send(&answers, id, &Response::Welcome(welcome)).await;
                let mut connection = Connection { context, rights, session, answers, waiting: Arc::default() };
                connection.run(&mut reader, &mut received).await;
            }
            Err(message) => {
                tracing::info!(%message, "client refused");
                send(&answers, id, &Response::Refused { message }).await;
            }
        }
    }
    let _ = writing.await;
}

async fn next_request<R: AsyncRead + Unpin>(reader: &mut R, received: &mut BytesMut) -> Option<(u64, Request)> {
    loop {
        match atoll_wire::next_frame(received)
            .and_then(|frame| frame.map(|(id, body)| Ok((id, atoll_wire::decode::<Request>(&body)?))).transpose())
        {
            Ok(Some(request)) => return Some(request),
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
        let refused = Response::Results(vec![Err(Errno::EOVERFLOW)]);
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
) -> Result<(Rights, Option<Arc<Session>>, Welcome), String> {
    if hello.version != atoll_wire::VERSION {
        return Err(format!(
            "the client speaks protocol {}, this server {}: use the same release on both sides",
            hello.version,
            atoll_wire::VERSION
        ));
    }
    let rights = match &hello.token {
        Some(secret) => context.tokens.check(secret).ok_or("the token is unknown, revoked or has expired")?,
        None if trusted => Rights::everything(),
        None => {
            return Err(
                "a token is needed: `atoll token create` on the server, then ATOLL_TOKEN or --token-file".into()
            );
        }
    };
    let mut welcome = Welcome {
        version: atoll_wire::VERSION,
        features: 0,
        resume: None,
        resumed: false,
        read_only: rights.read_only,
    };
    let Some(name) = &hello.volume else { return Ok((rights, None, welcome)) };
    if rights.volume.as_ref().is_some_and(|only| only != name) {
        return Err(format!("the token is not for volume `{name}`"));
    }
    let known = hello.resume.as_ref().and_then(|resume| context.sessions.resume(resume, name, rights.read_only));
    welcome.resumed = known.is_some();
    let session = match known {
        Some(session) => session,
        None => context.sessions.create(name, context.registry.get(name).await?, rights.read_only)?,
    };
    welcome.resume = Some(atoll_wire::Resume { session: session.id, secret: session.secret });
    Ok((rights, Some(session), welcome))
}

impl Connection {
    async fn run<R: AsyncRead + Unpin>(&mut self, reader: &mut R, received: &mut BytesMut) {
        if let Some(session) = &self.session {
            session.connected();
        }
        loop {
            let request = tokio::select! {
                request = next_request(reader, received) => request,
                _ = self.context.stopping() => None,
            };
            let Some((id, request)) = request else { break };
            match request {
                Request::Hello(_) => break,
                Request::Ping => send(&self.answers, id, &Response::Pong).await,
                Request::Cancel(waiting) => {
                    if let Some(cancel) = self.waiting.lock().get(&waiting) {
                        cancel.notify_one();
                    }
                }
                Request::Admin(request) => {
                    let response = match self.administer(request).await {
                        Ok(reply) => Response::Admin(reply),
                        Err(message) => Response::Refused { message },
                    };
                    send(&self.answers, id, &response).await;
                }
                Request::Execute(execute) => {
                    if execute.check().is_err() {
                        break;
                    }
                    self.execute(id, execute).await;
                }
            }
        }
        if let Some(session) = &self.session {
            session.disconnected();
        }
    }

    /// Run a request here as long as it does not wait; then in a task of its own.
    async fn execute(&mut self, id: u64, execute: Execute) {
        let Some(session) = self.session.clone() else {
            return send(&self.answers, id, &Response::Refused { message: "no volume is open".into() }).await;
        };
        let cancel = Arc::new(Notify::new());
        let mut work: Pin<Box<dyn Future<Output = Results> + Send>> = Box::pin(numbered(session, execute));
        let first = std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
        if let Poll::Ready(results) = first {
            self.context.count(&results);
            return send(&self.answers, id, &Response::Results(results)).await;
        }
        if self.waiting.lock().len() >= IN_FLIGHT_MAX {
            let results = work.await;
            return send(&self.answers, id, &Response::Results(results)).await;
        }
        self.waiting.lock().insert(id, cancel.clone());
        let (answers, waiting, context) = (self.answers.clone(), self.waiting.clone(), self.context.clone());
        tokio::spawn(async move {
            let results = tokio::select! {
                biased;
                results = work => results,
                _ = cancel.notified() => vec![Err(Errno::EINTR)],
            };
            waiting.lock().remove(&id);
            context.count(&results);
            send(&answers, id, &Response::Results(results)).await;
        });
    }

    async fn administer(&self, request: AdminRequest) -> Result<AdminReply, String> {
        if !self.rights.administers() {
            return Err("this token may not administer the server".into());
        }
        let context = &self.context;
        let text = |error: std::io::Error| error.to_string();
        Ok(match request {
            AdminRequest::VolumeCreate { name, durability } => {
                context.registry.create(&name, &durability).await?;
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
                let sessions = context.sessions.count(Some(&name));
                if sessions > 0 {
                    return Err(format!("volume `{name}` is in use by {sessions} sessions: unmount it first"));
                }
                context.registry.delete(&name).await?;
                AdminReply::Done
            }
            AdminRequest::TokenCreate { volume, read_only, expires_seconds, label } => {
                let made = context.tokens.create(volume, read_only, expires_seconds, label).map_err(text)?;
                AdminReply::Tokens(vec![made])
            }
            AdminRequest::TokenList => AdminReply::Tokens(context.tokens.list()),
            AdminRequest::TokenRevoke { id } => {
                if !context.tokens.revoke(&id).map_err(text)? {
                    return Err(format!("no token `{id}`: `atoll token list` shows what there is"));
                }
                AdminReply::Done
            }
            AdminRequest::Status => AdminReply::Status(context.status().await?),
        })
    }
}

/// Execute a request, numbered mutations exactly once.
async fn numbered(session: Arc<Session>, execute: Execute) -> Results {
    if execute.sequence == OperationSeq(0) {
        return compound(&session, &execute).await;
    }
    match session.admit(execute.sequence, execute.acknowledged) {
        Admission::TooMany => vec![Err(Errno::EAGAIN)],
        Admission::Repeat(mut answer) => match answer.wait_for(Option::is_some).await {
            Ok(results) => results.clone().unwrap_or_default(),
            Err(_) => vec![Err(Errno::EIO)],
        },
        Admission::Execute(answer) => {
            // In a task of its own: a lost connection must not stop a change half-way.
            let work = tokio::spawn(async move {
                let results = compound(&session, &execute).await;
                answer.send_replace(Some(results.clone()));
                results
            });
            work.await.unwrap_or_else(|_| vec![Err(Errno::EIO)])
        }
    }
}

async fn compound(session: &Session, execute: &Execute) -> Results {
    let mut results = Vec::with_capacity(execute.operations.len());
    let mut previous = None;
    for operation in &execute.operations {
        let mut operation = operation.clone();
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
            session.volume.execute(session.id, &execute.caller, operation).await
        };
        if let Ok(
            Outcome::Entry(attributes) | Outcome::Created { attributes, .. } | Outcome::Written { attributes, .. },
        ) = &result
        {
            previous = Some(attributes.inode);
        }
        let failed = result.is_err();
        results.push(result);
        if failed {
            break;
        }
    }
    results
}
