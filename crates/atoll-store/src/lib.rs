//! An ordered key-value store that holds one volume's metadata.
//!
//! Invariant: commits are totally ordered and a crash leaves a prefix of them;
//! a commit of an authority whose epoch was overtaken fails, at the latest when
//! its durability is waited for, and nothing of it is ever visible to others. Read [`Store`] first.

mod bind;
mod checkpoints;
mod clock;
mod frozen;
mod garbage;
mod log;
mod memory;
mod sealing;
mod slate;

pub use frozen::Frozen;
pub use memory::{MemoryMedium, MemoryStore};
pub use sealing::Sealing;
pub use slate::{SlateConfig, SlateStore};

use std::sync::Arc;

use async_trait::async_trait;
use atoll_types::{CommitSeq, Epoch};
use bytes::Bytes;

/// Why the store refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A newer authority owns the volume; this one must stop.
    #[error("fenced: a newer authority has opened this volume")]
    Fenced,
    /// A precondition of the batch did not hold; nothing was written.
    #[error("precondition failed")]
    Precondition,
    /// The batch is larger than [`Limits`] allows; nothing was written.
    #[error("batch too large: {0}")]
    TooLarge(String),
    /// No key of the caller's: empty, or it starts with the zero byte, as the store's own do.
    #[error("not a key for callers: {0:?}")]
    Key(Bytes),
    /// The local log is not the one this store was written with; nothing was touched.
    #[error("wrong local log: {0}")]
    Log(String),
    /// Stored bytes are not what was written.
    #[error("corrupt store: {0}")]
    Corrupt(String),
    /// The store was written by a newer release.
    #[error("format from the future: {0}")]
    Format(String),
    /// Nobody can wait for a commit that was never made.
    #[error("no commit {0:?} was ordered")]
    Unordered(CommitSeq),
    #[error("a checkpoint `{0}` is there already")]
    CheckpointExists(String),
    #[error("there is no checkpoint `{0}`")]
    CheckpointMissing(String),
    /// It shows a checkpoint, which never changes.
    #[error("read-only")]
    ReadOnly,
    #[error("the store is closed")]
    Closed,
    /// The disk has no room. Nothing is lost, the same call succeeds when there is some.
    #[error("no space: {0}")]
    NoSpace(String),
    /// The medium failed; retrying may help.
    #[error("store I/O: {0}")]
    Io(String),
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// What must hold for a batch to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    Absent { key: Bytes },
    Equals { key: Bytes, value: Bytes },
}

/// Changes that become visible together or not at all. A later write of a key
/// in one batch wins over an earlier one.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub preconditions: Vec<Precondition>,
    /// `None` deletes the key.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
}

impl Batch {
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.push((key.into(), Some(value.into())));
    }

    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.writes.push((key.into(), None));
    }
}

/// A page of a scan, in the order of [`Read::sort_key`].
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub entries: Vec<(Bytes, Bytes)>,
    /// Scan on from here; `None` at the end of the range.
    pub next: Option<Bytes>,
}

/// A version of the store that stays readable, over later commits and openings, until it is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub name: String,
    /// In seconds since 1970.
    pub created: u64,
}

/// Half-open range of keys with a bound on the answer.
#[derive(Clone, Debug)]
pub struct Scan {
    pub start: Bytes,
    pub end: Bytes,
    /// Most entries of one page, at least 1.
    pub entries_max: usize,
}

/// Reads at one version of the store.
#[async_trait]
pub trait Read: Send + Sync {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;
    /// Values in the order of the keys.
    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>>;
    async fn scan(&self, scan: Scan) -> Result<Page>;
    /// Entries of a scan are in the order of this. It is the key's own, but for names that an encrypted store hides.
    fn sort_key(&self, key: &Bytes) -> Bytes {
        key.clone()
    }
}

/// Callers' keys start here; those before are the store's own and never show.
const KEY_MIN: &[u8] = &[1];

/// Bounds of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub batch_writes_max: usize,
    pub batch_bytes_max: usize,
    pub key_bytes_max: usize,
    pub value_bytes_max: usize,
}

impl Limits {
    pub const DEFAULT: Limits =
        Limits { batch_writes_max: 4_000_000, batch_bytes_max: 1 << 30, key_bytes_max: 1024, value_bytes_max: 1 << 20 };

    /// `TooLarge` when the batch is beyond a bound, `Key` when a key is not the caller's.
    pub fn check(&self, batch: &Batch) -> Result<()> {
        let mut bytes = 0;
        for (key, value) in &batch.writes {
            if key.first().is_none_or(|first| *first < KEY_MIN[0]) {
                return Err(StoreError::Key(key.clone()));
            }
            let value_bytes = value.as_ref().map_or(0, Bytes::len);
            if key.len() > self.key_bytes_max || value_bytes > self.value_bytes_max {
                return Err(StoreError::TooLarge(format!("key of {} and value of {value_bytes} bytes", key.len())));
            }
            bytes += key.len() + value_bytes;
        }
        if batch.writes.len() > self.batch_writes_max || bytes > self.batch_bytes_max {
            return Err(StoreError::TooLarge(format!("{} writes, {bytes} bytes", batch.writes.len())));
        }
        Ok(())
    }
}

/// The store of one volume, opened by one authority. Its own [`Read`] methods
/// see every commit that returned.
#[async_trait]
pub trait Store: Read {
    /// The epoch that opening claimed.
    fn epoch(&self) -> Epoch;
    fn limits(&self) -> Limits;
    /// A stable view: later commits do not show in it.
    fn snapshot(&self) -> Result<Arc<dyn Read>>;
    /// Ordered and visible when it returns; durable when [`Store::durable`] says so.
    /// Does not wait for the medium: an authority may learn only from a ticket that it was
    /// overtaken. Dropping the future leaves the commit whole or not made.
    async fn commit(&self, batch: Batch) -> Result<CommitSeq>;
    /// Wait until the commit `seq` and all before it are durable. Callers that wait at
    /// the same time share one flush; a flush is started at once, never by a timer. After a
    /// flush failed, this and every later commit fail: open the store again. `NoSpace` is no such failure.
    async fn durable(&self, seq: CommitSeq) -> Result<()>;
    /// The newest commit known to be durable.
    fn durable_seq(&self) -> CommitSeq;
    /// Keep the store as it is now, with every commit that returned before, under a name that is not taken. It is
    /// durable when this returns; when this fails, it may be there or not.
    async fn checkpoint(&self, name: &str) -> Result<()>;
    /// Keep what a checkpoint keeps under another name, too.
    async fn copy_checkpoint(&self, source: &str, name: &str) -> Result<()>;
    /// All checkpoints, oldest first.
    async fn checkpoints(&self) -> Result<Vec<Checkpoint>>;
    /// What the store held at a checkpoint. To be let go of before that is deleted.
    async fn at(&self, name: &str) -> Result<Arc<dyn Read>>;
    async fn delete_checkpoint(&self, name: &str) -> Result<()>;
    /// Make everything durable and release the medium. Later calls answer `Closed`, but closing
    /// again is fine. A store that is dropped instead keeps a prefix of its commits, with all
    /// that were durable.
    async fn close(&self) -> Result<()>;
}
