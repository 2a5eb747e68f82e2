//! The bytes of files: packed into immutable segments, staged on the local
//! disk where there is one, kept in the object store, cached in memory.
//!
//! Invariant: bytes at a [`Location`] never change. A location is handed out by
//! [`Blob::append`] before the bytes are durable; [`Blob::sync`] makes them so.
//! A segment identifier is never used twice. What an encrypted volume hands to a
//! disk, the store or a commit is sealed.
//!
//! Start with `blob` (append, sync, close), then `state` (what is known of each
//! segment, without I/O), `staging` (files), `upload` (background work), `read`.

mod blob;
mod cache;
mod config;
mod objects;
mod pack;
mod read;
pub mod readahead;
mod rope;
mod staging;
mod state;
mod upload;

pub use blob::Blob;
pub use cache::cache;
pub use config::{Ancestor, BlobConfig, BlobStatistics, Compression, Recovered, STORE_PATIENCE, Staging};
pub use objects::list;
pub use readahead::Readahead;

/// What sealing adds to a piece of an encrypted volume.
pub use atoll_keys::SEALED_BYTES;

use atoll_types::SegmentId;
use atoll_types::limits::EXTENT_BYTES_MAX;
use bytes::Bytes;

/// No piece takes more than this where it is stored, in bytes.
pub(crate) const STORED_BYTES_MAX: usize = EXTENT_BYTES_MAX + SEALED_BYTES;

/// How the bytes of a piece are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    Raw,
    Lz4,
    Zstd,
}

impl Codec {
    /// As it lies in formats.
    pub fn number(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    pub fn numbered(number: u8) -> Option<Codec> {
        [Codec::Raw, Codec::Lz4, Codec::Zstd].into_iter().find(|codec| codec.number() == number)
    }
}

/// Where one piece of file bytes lies. At most `EXTENT_BYTES_MAX` bytes long unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    pub segment: SegmentId,
    /// Offset in the segment, in bytes.
    pub offset: u32,
    /// Bytes stored there.
    pub stored: u32,
    /// Bytes after unpacking; equal to `stored` when `codec` is `Raw` and the volume is not encrypted.
    pub length: u32,
    pub codec: Codec,
    /// CRC-32C of the stored bytes.
    pub checksum: u32,
}

/// Why bytes could not be written or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes at this location are not what was written. The log line names the segment.
    #[error("segment {segment}: bytes {offset}+{length} do not match their checksum")]
    Corrupt { segment: SegmentId, offset: u32, length: u32 },
    /// The segment's object is gone.
    #[error("segment {0} is missing from the object store")]
    Missing(SegmentId),
    /// The disk under the staging log, or the store, has no room.
    #[error("no space: {0}")]
    NoSpace(String),
    #[error("object store: {0}")]
    Io(String),
    #[error("closed")]
    Closed,
}

pub type Result<T> = std::result::Result<T, BlobError>;

/// What [`Blob::sync`] asks the caller to commit together with the metadata
/// that refers to the bytes appended so far.
#[derive(Clone, Debug, Default)]
#[must_use = "bytes are durable only once what a sync point returns is committed"]
pub struct SyncPoint {
    /// Segments that are referred to for the first time: record them as open.
    pub opened: Vec<SegmentId>,
    /// Bytes that are durable only once this commit is: `(segment, offset, bytes)`.
    pub fragments: Vec<(SegmentId, u32, Bytes)>,
    /// Segments now whole in the object store: record that and forget their fragments.
    pub uploaded: Vec<SegmentId>,
}
