//! Keys of encrypted volumes, and what is sealed with them.
//!
//! A volume has data keys ([`Keyring`]), with which everything is sealed that leaves the process. They lie in the store,
//! wrapped ([`KeyRecord`]) with a key that only the server has ([`ServerKeys`]).
//!
//! Invariant: no key seals two messages with one nonce, whatever is restored from a backup or happens twice: each message
//! has a key of its own, made from a data key and random bytes that lie beside the message.
//!
//! Start with `keyring` (sealing), then `record` (what lies in the store), `server` (key files and passphrases).

mod keyring;
mod names;
mod passphrase;
mod record;
mod secret;
mod server;

pub use keyring::{DataKey, KeyId, Keyring, Purpose, SEALED_BYTES};
pub use record::{KEYS_MAX, KeyRecord, RECORD_BYTES_MAX};
pub use server::{ServerKeys, WrappingId, generate};

/// Why keys could not be had, or bytes not be opened with them. No message holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Changed since they were sealed, sealed for another place, or never sealed.
    #[error("sealed bytes are not what was written")]
    Forged,
    /// Sealed with a data key that the volume does not have.
    #[error("sealed with data key {0}, which the volume does not have")]
    Unknown(KeyId),
    /// The server has no key at all.
    #[error("{0}")]
    NoKey(String),
    /// The server's keys are not the one with which the volume's are wrapped.
    #[error("{0}")]
    WrongKey(String),
    /// A key file or passphrase file cannot be used.
    #[error("{0}")]
    File(String),
    /// The volume's key record is no such record, or was changed.
    #[error("key record: {0}")]
    Record(String),
    #[error("key record of version {0}: written by a newer release")]
    Future(u32),
    #[error("the system gives no random bytes")]
    Random,
}

pub type Result<T> = std::result::Result<T, KeyError>;
