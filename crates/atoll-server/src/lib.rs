//! The server: listeners, sessions, tokens, the registry of volumes.
//!
//! A client is not trusted: every frame is bounded, every request is checked
//! against its session's rights. Start with [`Server::start`], then `connection`.

mod connection;
mod metrics;
mod registry;
mod server;
mod sessions;
mod tokens;

pub use server::{Addresses, Server, ServerConfig, ServerError};
