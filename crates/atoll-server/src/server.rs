//! Starting, listening, stopping.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_blob::STORE_PATIENCE;
use atoll_keys::ServerKeys;
use atoll_object::{ObjectOptions, ObjectRoot};
use atoll_wire::clock::Clock;
use axum::extract::State;
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig as TlsConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::buckets::Buckets;
use crate::connection;
use crate::credentials::Credentials;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::sessions::{EXPIRE_INTERVAL, Sessions};
use crate::tokens::Tokens;

/// Most client connections at a time.
const CONNECTIONS_MAX: usize = 4096;
/// How long a stopping server waits for its connections.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How often sessions are checked for recalls that they do not answer.
const FENCE_INTERVAL: Duration = Duration::from_millis(200);

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct ServerConfig {
    /// Log, staging, tokens, registry; made if missing.
    pub data: PathBuf,
    /// Where the objects go; default: `objects` in the data folder.
    pub store: Option<String>,
    /// The same, opened already: in a simulation.
    pub objects: Option<ObjectRoot>,
    pub listen: Option<SocketAddr>,
    /// Default: `atoll.sock` in the data folder.
    pub socket: Option<PathBuf>,
    /// For `/healthz`, `/metrics` and `/events`.
    pub http: Option<SocketAddr>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// Allow plain TCP off loopback.
    pub insecure: bool,
    /// Read cache of each volume, in bytes.
    pub cache_bytes_max: u64,
    /// For how long calls wait for an object store that does not answer; default: `STORE_PATIENCE`.
    pub store_patience: Option<Duration>,
    /// The machine's clocks, or those of a simulation.
    pub clock: Clock,
    /// Files whose lines are keys: the first one wraps keys of volumes, all unwrap them.
    pub key_files: Vec<PathBuf>,
    /// A file whose lines are passphrases, which do the same; the first one wraps when there are no key files.
    pub passphrase_file: Option<PathBuf>,
}

/// Why a server does not start or stop; every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot use the data folder {folder}: {reason}")]
    Data { folder: String, reason: String },
    #[error("another server uses the data folder {0}: stop it, or choose another --data")]
    Locked(String),
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: String, reason: String },
    #[error("{0} is not a loopback address: give --tls-cert and --tls-key, or --insecure if the network is safe")]
    Insecure(SocketAddr),
    #[error("TLS: {0}")]
    Tls(String),
    #[error(transparent)]
    Keys(#[from] atoll_keys::KeyError),
    #[error(transparent)]
    Object(#[from] atoll_object::ObjectError),
    #[error("metrics: {0}")]
    Metrics(String),
    #[error("{0}")]
    Volume(String),
}

/// Where a started server listens.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// With its scheme: `tcp://` or `tls://`.
    pub tcp: Option<String>,
    pub socket: PathBuf,
    pub http: Option<SocketAddr>,
}

/// What all connections share.
pub(crate) struct Context {
    pub registry: Registry,
    pub sessions: Arc<Sessions>,
    pub tokens: Tokens,
    pub metrics: Metrics,
    /// Differs for each start of a server.
    pub instance: u64,
    started: Instant,
    stop: watch::Receiver<bool>,
}

impl Context {
    /// Ready when the server stops.
    pub async fn stopping(&self) {
        let mut stop = self.stop.clone();
        let _ = stop.wait_for(|stopping| *stopping).await;
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub async fn status(&self) -> Result<atoll_wire::Status, String> {
        let mut volumes = Vec::new();
        for name in self.registry.names() {
            volumes.push(self.registry.info(&name, self.sessions.count(Some(&name))).await?);
        }
        Ok(atoll_wire::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.uptime().as_secs(),
            store: self.registry.store_url().to_owned(),
            sessions: self.sessions.count(None),
            volumes,
        })
    }
}

/// A running server. Stop it with [`Server::stop`]; dropping it loses what is not durable.
pub struct Server {
    context: Arc<Context>,
    addresses: Addresses,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    _lock: File,
}

/// How long a server that is just ending, or was killed a moment ago, is waited for.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

async fn lock_data(folder: &Path) -> Result<File, ServerError> {
    let refuse =
        |error: std::io::Error| ServerError::Data { folder: folder.display().to_string(), reason: error.to_string() };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(refuse)?;
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(refuse)?;
    let end = Instant::now() + LOCK_TIMEOUT;
    while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= end {
            return Err(ServerError::Locked(folder.display().to_string()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(lock)
}

fn tls(config: &ServerConfig) -> Result<Option<TlsAcceptor>, ServerError> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else {
        return match (&config.tls_cert, &config.tls_key) {
            (None, None) => Ok(None),
            _ => Err(ServerError::Tls("--tls-cert and --tls-key go together".into())),
        };
    };
    let fail = |what: &Path, error: String| ServerError::Tls(format!("{}: {error}", what.display()));
    let chain = CertificateDer::pem_file_iter(cert).map_err(|e| fail(cert, e.to_string()))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| fail(cert, e.to_string()))?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| fail(key, e.to_string()))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = TlsConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ServerError::Tls(e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .map_err(|e| ServerError::Tls(e.to_string()))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

impl Server {
    pub async fn start(config: ServerConfig) -> Result<Server, ServerError> {
        let tls = tls(&config)?;
        if let Some(address) = config.listen
            && !address.ip().is_loopback()
            && tls.is_none()
            && !config.insecure
        {
            return Err(ServerError::Insecure(address));
        }
        let keys = ServerKeys::load(&config.key_files, config.passphrase_file.as_deref())?;
        let lock = lock_data(&config.data).await?;
        let data = config.data.canonicalize().map_err(|error| ServerError::Data {
            folder: config.data.display().to_string(),
            reason: error.to_string(),
        })?;
        let url = config.store.clone().unwrap_or_else(|| format!("file://{}", data.join("objects").display()));
        let root = match config.objects {
            Some(root) => root,
            None => atoll_object::open(&url, &ObjectOptions::from_env())?,
        };
        let refuse = |file: &'static str| {
            let folder = data.display().to_string();
            move |error: std::io::Error| ServerError::Data { folder, reason: format!("{file}: {error}") }
        };
        let tokens = Tokens::load(data.join("tokens.json")).map_err(refuse("tokens.json"))?;
        let credentials = Credentials::load(data.join("credentials.json")).map_err(refuse("credentials.json"))?;
        let buckets = Buckets::new(ObjectOptions::from_env(), credentials, data.join("buckets.json"));
        let (stop, stopped) = watch::channel(false);
        let sessions: Arc<Sessions> = Arc::default();
        let (cache, patience) = (config.cache_bytes_max, config.store_patience.unwrap_or(STORE_PATIENCE));
        let registry = Registry::open(data.clone(), root, cache, patience, keys, buckets, sessions.clone());
        let context = Arc::new(Context {
            registry: registry.map_err(ServerError::Volume)?.with_clock(config.clock),
            sessions,
            tokens,
            instance: u64::from_le_bytes(crate::random().map_err(|error| ServerError::Volume(error.to_string()))?),
            started: Instant::now(),
            metrics: Metrics::new().map_err(|error| ServerError::Metrics(error.to_string()))?,
            stop: stopped,
        });
        let mut tasks = JoinSet::new();
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));

        let socket = config.socket.clone().unwrap_or_else(|| data.join("atoll.sock"));
        let unix = listen_unix(&socket)?;
        tasks.spawn(accept_unix(context.clone(), unix, connections.clone()));

        let mut tcp = None;
        if let Some(address) = config.listen {
            let refuse =
                |error: std::io::Error| ServerError::Listen { address: address.to_string(), reason: error.to_string() };
            let listener = TcpListener::bind(address).await.map_err(refuse)?;
            let bound = listener.local_addr().map_err(refuse)?;
            tcp = Some(format!("{}://{bound}", if tls.is_some() { "tls" } else { "tcp" }));
            tasks.spawn(accept_tcp(context.clone(), listener, tls, connections));
        }
        let mut http = None;
        if let Some(address) = config.http {
            let refuse =
                |error: std::io::Error| ServerError::Listen { address: address.to_string(), reason: error.to_string() };
            let listener = TcpListener::bind(address).await.map_err(refuse)?;
            http = Some(listener.local_addr().map_err(refuse)?);
            let routes = axum::Router::new()
                .route("/healthz", get(|| async { "ok\n" }))
                .route("/metrics", get(metrics))
                .merge(crate::events::routes())
                .with_state(context.clone());
            let stopping = context.clone();
            tasks.spawn(async move {
                let served = axum::serve(listener, routes);
                let _ = served.with_graceful_shutdown(async move { stopping.stopping().await }).await;
            });
        }
        let expiring = context.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    _ = tokio::time::sleep(EXPIRE_INTERVAL) => expiring.sessions.expire().await,
                    _ = expiring.stopping() => return,
                }
            }
        });
        tasks.spawn(crate::queues::serve(context.clone()));
        let fencing = context.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    _ = tokio::time::sleep(FENCE_INTERVAL) => fencing.sessions.fence().await,
                    _ = fencing.stopping() => return,
                }
            }
        });
        Ok(Server { context, addresses: Addresses { tcp, socket, http }, stop, tasks, _lock: lock })
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serve one more connection, which no listener has accepted and which is trusted: in a simulation.
    pub fn serve<S>(&self, stream: S) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        connection::serve(self.context.clone(), stream, true)
    }

    /// Stop accepting, let requests end, make everything durable, close.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.stop.send_replace(true);
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, drained).await.is_err() {
            tracing::warn!("connections did not end in time");
            self.tasks.abort_all();
        }
        let _ = std::fs::remove_file(&self.addresses.socket);
        self.context.registry.close().await.map_err(ServerError::Volume)
    }
}

fn listen_unix(path: &Path) -> Result<UnixListener, ServerError> {
    let refuse =
        |error: std::io::Error| ServerError::Listen { address: path.display().to_string(), reason: error.to_string() };
    // A socket that nobody listens on is left from a crash; the data folder's lock is ours.
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(refuse(std::io::Error::other("another server listens there")));
        }
        std::fs::remove_file(path).map_err(refuse)?;
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(refuse)?;
    }
    let listener = UnixListener::bind(path).map_err(refuse)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(refuse)?;
    Ok(listener)
}

async fn accept_unix(context: Arc<Context>, listener: UnixListener, connections: Arc<Semaphore>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
                let context = context.clone();
                open.spawn(async move {
                    // Only root and the owner get through the socket's permissions.
                    connection::serve(context, stream, true).await;
                    drop(permit);
                });
            }
            Some(_) = open.join_next() => {}
            _ = context.stopping() => break,
        }
    }
    while open.join_next().await.is_some() {}
}

async fn accept_tcp(
    context: Arc<Context>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    connections: Arc<Semaphore>,
) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, peer)) = accepted else { continue };
                let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
                let (context, tls) = (context.clone(), tls.clone());
                let _ = stream.set_nodelay(true);
                open.spawn(async move {
                    match tls {
                        None => connection::serve(context, stream, false).await,
                        Some(tls) => match tokio::time::timeout(Duration::from_secs(10), tls.accept(stream)).await {
                            Ok(Ok(stream)) => connection::serve(context, stream, false).await,
                            _ => tracing::info!(%peer, "TLS handshake failed"),
                        },
                    }
                    drop(permit);
                });
            }
            Some(_) = open.join_next() => {}
            _ = context.stopping() => break,
        }
    }
    while open.join_next().await.is_some() {}
}

async fn metrics(State(context): State<Arc<Context>>) -> String {
    context.metrics.text(&context).await
}
