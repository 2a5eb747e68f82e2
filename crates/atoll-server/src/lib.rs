//! The server: listeners, sessions, tokens, the registry of volumes.
//!
//! A client is not trusted: every frame is bounded, every request is checked
//! against its session's rights. Start with [`Server::start`], then `connection`.

mod buckets;
mod care;
mod clones;
mod connection;
mod credentials;
mod durable;
mod events;
mod keys;
mod links;
mod metrics;
mod moving;
mod names;
mod ownership;
mod queues;
mod quotas;
mod registry;
mod server;
mod sessions;
mod snapshots;
mod tokens;

pub use server::{Addresses, Server, ServerConfig, ServerError};

/// Bytes that nobody can guess.
fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(bytes)
}
