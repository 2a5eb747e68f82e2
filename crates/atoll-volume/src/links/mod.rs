//! Linked directories: what a bucket holds is a file, and what is written becomes an object.

pub(crate) mod record;

use std::sync::Arc;

use atoll_link::{Bucket, BucketError, LinkSettings, ObjectKey, Version};
use atoll_types::{Errno, InodeId};

use crate::volume::Volume;

/// Opens the bucket of a link. Nothing is sent yet.
pub type Connect = Arc<dyn Fn(&LinkSettings) -> Result<Arc<dyn Bucket>, BucketError> + Send + Sync>;

/// Why a link, or what was asked of it, cannot be.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("only an empty directory can be linked: this one holds files")]
    NotEmpty,
    #[error("this is not a directory")]
    NotADirectory,
    #[error("this lies in a link already")]
    Linked,
    #[error("this is not a linked directory")]
    NotLinked,
    #[error("{0} files have not become objects yet: publish them, or detach with --discard")]
    Unpublished(usize),
    #[error("the file was changed in the bucket, too: {0}")]
    Conflict(String),
    #[error("{0}")]
    LocalOnly(String),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("{0}")]
    Errno(Errno),
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> Self {
        LinkError::Errno(errno)
    }
}

/// A file that is the same in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub key: ObjectKey,
    pub version: Version,
}

/// Something that is not in the bucket as it is in the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    pub inode: InodeId,
    /// The key that it is to have; `None` when it cannot have one.
    pub key: Option<ObjectKey>,
    pub why: String,
}

/// A link, for `status`.
#[derive(Clone, Debug)]
pub struct LinkReport {
    pub root: InodeId,
    pub settings: LinkSettings,
    /// Files and directories whose objects are to be written, copied or moved.
    pub unpublished: usize,
    /// Objects that are to be deleted.
    pub deleting: usize,
    /// Since the volume was opened.
    pub conflicts: u64,
    /// Why the bucket cannot be used now.
    pub trouble: Option<String>,
    /// The first of those that are not published, and why.
    pub waiting: Vec<Unpublished>,
}

impl Volume {
    /// From now on linked directories are served. Called once, when the volume is open.
    pub fn start_links(&self, _connect: Connect) {}

    /// Link an empty directory.
    pub async fn link(&self, _directory: InodeId, _settings: LinkSettings) -> Result<(), LinkError> {
        Err(LinkError::Errno(Errno::EOPNOTSUPP))
    }

    /// Every link, by its directory.
    pub async fn links(&self) -> Vec<LinkReport> {
        Vec::new()
    }

    /// The directory is empty again, and the bucket as it is. With `discard`, what is not published is lost.
    pub async fn detach(&self, _directory: InodeId, _discard: bool) -> Result<(), LinkError> {
        Err(LinkError::NotLinked)
    }

    /// Until the file, or every file below the directory, is an object as it is now.
    pub async fn publish(&self, _inode: InodeId) -> Result<Vec<Published>, LinkError> {
        Err(LinkError::NotLinked)
    }
}
