//! The client: a session with one volume that survives broken connections and
//! restarted servers, one that keeps answers under leases, and an administrative connection.
//!
//! Invariant: a request is answered exactly once: by the server, or with `EIO`
//! when the server was away for longer than the reply timeout. What is answered
//! from memory is what the server would answer (`cache`, `docs/leases.md`).

mod address;
mod aside;
mod cache;
mod chronicle;
mod client;
mod clock;
mod connection;
mod journal;
mod locks;
mod lost_locks;
mod retained;
mod session;

pub use address::ServerAddress;
pub use cache::OldName;
pub use chronicle::{Chronicle, Handles, SENT_AGAIN};
pub use client::{Answer, Client, ClientState, Kernel};
pub use clock::Clocks;
pub use connection::{Dialer, Halves};
pub use session::{Admin, Session};

use std::path::PathBuf;
use std::time::Duration;

/// How to reach a server. The token does not show in `Debug`.
#[derive(Clone)]
pub struct ClientConfig {
    pub address: ServerAddress,
    pub token: Option<String>,
    /// Certificates to trust for `tls://`, PEM.
    pub ca: Option<PathBuf>,
    pub connect_timeout: Duration,
    /// How long calls wait while the server is away before they fail with `EIO`.
    pub reply_timeout: Duration,
    /// Note what another process needs to go on when this one is killed: see [`Client::chronicle`].
    pub outlives: bool,
    /// Connects instead of the address, in a simulation.
    pub dialer: Option<Dialer>,
    /// Instead of the machine's, in a simulation.
    pub clocks: Option<Clocks>,
}

impl ClientConfig {
    pub fn new(address: ServerAddress) -> Self {
        ClientConfig {
            address,
            token: None,
            ca: None,
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(30),
            outlives: false,
            dialer: None,
            clocks: None,
        }
    }
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientConfig({})", self.address)
    }
}

/// Why a server cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{0}` is not a server: use unix:PATH, tcp://HOST:PORT or tls://HOST:PORT")]
    Address(String),
    #[error("cannot reach the server at {address}: {reason}: is `atoll serve` running there?")]
    Unreachable { address: String, reason: String },
    #[error("TLS: {0}")]
    Tls(String),
    /// The server said no, and why.
    #[error("{0}")]
    Refused(String),
    #[error("no memory file: {0}")]
    Chronicle(String),
    #[error("the server does not speak this protocol")]
    Protocol,
}
