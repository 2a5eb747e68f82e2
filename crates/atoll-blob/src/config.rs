//! What a [`Blob`](crate::Blob) is opened with and what it reports.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_keys::Keyring;
use atoll_types::{Epoch, SegmentId};
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;

/// An object store that is away for less than this costs its callers time and no errors.
pub const STORE_PATIENCE: Duration = Duration::from_secs(300);

/// Where bytes wait until their segment's object is in the store.
#[derive(Clone, Debug)]
pub enum Staging {
    /// No disk: segments live in memory until uploaded, and bytes too many to ride
    /// in a commit are durable only by a PUT.
    Memory,
    /// A local folder of this volume alone: segments are appended to files, made
    /// durable there, uploaded in the background, then deleted.
    Folder(PathBuf),
    /// The folder where a `file://` store keeps this prefix: the sealed file is the object.
    Objects(PathBuf),
}

/// How pieces are packed, where that saves at least an eighth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    None,
    #[default]
    Lz4,
    Zstd,
}

impl Compression {
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

/// Where the segments lie that a volume has from another one, of which it began as a copy.
#[derive(Clone, Debug)]
pub struct Ancestor {
    /// Segments of epochs up to this one, and above that of the ancestor before, are there.
    pub newest: Epoch,
    pub objects: Arc<dyn ObjectStore>,
    pub prefix: Path,
    /// The same place in the file system, for a `file://` store.
    pub folder: Option<PathBuf>,
}

/// Whose the segment is; `None`: the volume's own.
pub(crate) fn ancestor_of(ancestors: &[Ancestor], segment: SegmentId) -> Option<&Ancestor> {
    ancestors.iter().find(|ancestor| segment.0 >> 32 <= ancestor.newest.0)
}

/// Limits and places. `BlobConfig::new` holds the defaults.
#[derive(Clone, Debug)]
pub struct BlobConfig {
    pub objects: Arc<dyn ObjectStore>,
    /// Objects are named `prefix/<16 hex digits>`.
    pub prefix: Path,
    pub staging: Staging,
    /// Oldest first. What is theirs is read, and never deleted.
    pub ancestors: Vec<Ancestor>,
    /// A segment is sealed when the next piece would pass this size. At most 1 GiB.
    pub segment_bytes_max: u32,
    /// An open segment older than this is sealed in the background.
    pub segment_age_max: Duration,
    /// Bytes in memory that are neither staged nor uploaded; writers wait above it.
    pub dirty_bytes_max: u64,
    /// Bytes on the staging disk that are not uploaded and forgotten; writers wait above it.
    pub staging_bytes_max: u64,
    /// Unpacked pieces read from the store and kept in memory.
    pub cache_bytes_max: u64,
    pub compression: Compression,
    /// What pieces are sealed with; `None`: they lie as they are.
    pub keys: Option<Arc<Keyring>>,
    /// For how long reads ask a store that does not answer.
    pub store_patience: Duration,
    /// Segments being uploaded at once; each holds up to `segment_bytes_max` in memory.
    pub upload_concurrency: usize,
}

impl BlobConfig {
    /// The defaults of a server.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: Path, staging: Staging) -> Self {
        BlobConfig {
            objects,
            prefix,
            staging,
            ancestors: Vec::new(),
            segment_bytes_max: 64 << 20,
            segment_age_max: Duration::from_secs(5),
            dirty_bytes_max: 256 << 20,
            staging_bytes_max: 8 << 30,
            cache_bytes_max: 512 << 20,
            compression: Compression::default(),
            keys: None,
            store_patience: STORE_PATIENCE,
            upload_concurrency: 4,
        }
    }
}

/// A segment that the last run recorded as open, with the fragments it committed.
#[derive(Clone, Debug)]
pub struct Recovered {
    pub segment: SegmentId,
    /// `(offset, bytes)` as a sync point returned them.
    pub fragments: Vec<(u32, Bytes)>,
}

/// A snapshot of gauges and of counters since open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlobStatistics {
    /// Bytes in memory, neither staged nor uploaded.
    pub dirty_bytes: u64,
    /// Bytes on the staging disk.
    pub staged_bytes: u64,
    pub cached_bytes: u64,
    /// Segments not yet uploaded and forgotten.
    pub segments_pending: u64,
    /// Bytes given to `append`.
    pub appended_bytes: u64,
    /// The same bytes after packing.
    pub stored_bytes: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub get_requests: u64,
    pub get_bytes: u64,
    pub uploads: u64,
    pub upload_bytes: u64,
    pub upload_errors: u64,
    pub staging_errors: u64,
    /// Pieces that did not match their checksum.
    pub corrupt_pieces: u64,
    /// Appends that had to wait for room.
    pub waits: u64,
}
