//! Which segments lie in the object store, whatever the metadata says.

use atoll_types::SegmentId;
use futures_util::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::staging::segment_of;
use crate::{Blob, BlobError, Result};

/// The segments under a prefix, and their bytes. Other objects are passed over.
///
/// # Errors
/// `Io` from the store.
pub async fn list(objects: &dyn ObjectStore, prefix: &Path) -> Result<Vec<(SegmentId, u64)>> {
    let mut all = objects.list(Some(prefix));
    let mut found = Vec::new();
    while let Some(object) = all.try_next().await.map_err(|error| BlobError::Io(error.to_string()))? {
        if let Some(segment) = object.location.filename().and_then(segment_of) {
            found.push((segment, object.size));
        }
    }
    Ok(found)
}

impl Blob {
    /// The segments in the object store, and their bytes.
    ///
    /// # Errors
    /// `Io` from the store.
    pub async fn objects(&self) -> Result<Vec<(SegmentId, u64)>> {
        list(&*self.inner.config.objects, &self.inner.config.prefix).await
    }
}
