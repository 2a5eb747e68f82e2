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
//! `snapshots` what stays of earlier versions, `snapshot_directory` how clients see that in the volume itself,
//! `portable` what leaves and enters the store, `trash` what destroys files that were kept for long enough, `fsck` what checks
//! and mends it.

pub mod acl;
mod awake;
mod children;
mod committer;
mod compaction;
mod core;
mod cursor;
mod directory_quotas;
mod error;
pub mod extents;
pub mod format;
pub mod fsck;
mod grace;
mod leases;
mod links;
mod portable;
mod quota;
mod rebase;
mod sessions;
mod snapshot_directory;
mod snapshots;
mod trash;
mod volume;

pub use atoll_blob::Compression;
pub use compaction::Compaction;
pub use directory_quotas::QuotaError;
pub use error::VolumeError;
pub use format::{Ancestor, DirectoryQuota, Durability, Quota, QuotaState, Retention, Usage, VolumeSettings};
pub use leases::Earned;
pub use links::{Connect, HintReport, LinkError, LinkReport, Published, Traffic, Unpublished};
pub use portable::{Imported, Record, import, settle};
pub use sessions::{Mark, Results, SessionInfo};
pub use snapshots::{Snapshot, adopt, clones, restore};
pub use trash::TrashReport;
pub use volume::{Asking, Volume, VolumeConfig, VolumeReport, format, settings};
