//! The file system of one volume: inodes, directories, extents, locks, over a
//! [`atoll_store::Store`] for metadata and an [`atoll_blob::Blob`] for bytes.
//!
//! Invariant: an operation is *ordered* when [`Volume::execute`] returns; every
//! operation that starts afterwards sees it. It is *durable* when a later
//! [`Operation::Sync`](atoll_types::Operation::Sync) returned. A crash leaves a
//! prefix of the ordered operations that contains every durable one.
//!
//! An operation waits for other sessions' leases (`leases`, and `core::claims` for which).
//!
//! `core` is the pure machine, `volume` the shell that loads and reads,
//! `committer` the task that makes changes durable, `compaction` the one that gives space back, `format` what lies in the store,
//! `snapshots` what stays of earlier versions, `fsck` what checks and mends it.

pub mod acl;
mod committer;
mod compaction;
mod core;
mod cursor;
mod error;
pub mod extents;
pub mod format;
pub mod fsck;
mod grace;
mod leases;
mod quota;
mod sessions;
mod snapshots;
mod volume;

pub use atoll_blob::Compression;
pub use compaction::Compaction;
pub use error::VolumeError;
pub use format::{Ancestor, Durability, Quota, VolumeSettings};
pub use leases::Earned;
pub use sessions::{Mark, Results, SessionInfo};
pub use snapshots::{Snapshot, adopt, clones, restore};
pub use volume::{Asking, Volume, VolumeConfig, VolumeReport, format, settings};
