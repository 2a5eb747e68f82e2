//! Why a volume cannot be made, opened or committed to.

use std::time::Duration;

use atoll_blob::BlobError;
use atoll_store::StoreError;
use atoll_types::Errno;

#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("a volume exists here already")]
    Exists,
    #[error("no volume here: create one first")]
    Missing,
    /// Nothing was touched.
    #[error("the volume has format {0}, this release knows up to {known}: use a newer release", known = crate::format::FORMAT_VERSION)]
    FutureFormat(u32),
    #[error("corrupt volume: {0}")]
    Corrupt(String),
    #[error("changes cannot be made durable: {0}")]
    Undurable(Errno),
    #[error("{0} snapshots are there already, and more are not kept: delete some first")]
    TooManySnapshots(usize),
    #[error(
        "more than {0} records of metadata have changed since, too many to put back at once: clone the snapshot instead"
    )]
    TooFarBack(usize),
    #[error("its root directory has an entry `.trash`: rename it first")]
    TrashNamed,
    #[error("the trash cannot be read or emptied: {0}")]
    Trash(Errno),
    #[error("the object store has not answered for {} s: what waits for it goes on when it is back", .0.as_secs())]
    Away(Duration),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

impl VolumeError {
    /// What an application sees of it.
    pub fn errno(&self) -> Errno {
        match self {
            VolumeError::Store(StoreError::Fenced) => Errno::ESTALE,
            VolumeError::Blob(BlobError::NoSpace(_)) | VolumeError::Store(StoreError::NoSpace(_)) => Errno::ENOSPC,
            VolumeError::Undurable(errno) | VolumeError::Trash(errno) => *errno,
            _ => Errno::EIO,
        }
    }
}
