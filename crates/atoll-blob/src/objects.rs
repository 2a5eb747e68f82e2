//! Which segments lie in the object store, whatever the metadata says.

use atoll_types::SegmentId;
use futures_util::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::staging::segment_of;
use crate::{Ancestor, Blob, BlobError, Result};

/// The segments under a prefix and those of ancestors that a volume may have from them, and their bytes. Other objects
/// are passed over.
///
/// # Errors
/// `Io` from the store.
pub async fn list(objects: &dyn ObjectStore, prefix: &Path, ancestors: &[Ancestor]) -> Result<Vec<(SegmentId, u64)>> {
    let mut found = Vec::new();
    let mut oldest = 0;
    for ancestor in ancestors {
        list_epochs(&*ancestor.objects, &ancestor.prefix, oldest, ancestor.newest.0, &mut found).await?;
        oldest = ancestor.newest.0 + 1;
    }
    list_epochs(objects, prefix, oldest, u64::MAX, &mut found).await?;
    Ok(found)
}

async fn list_epochs(
    objects: &dyn ObjectStore,
    prefix: &Path,
    oldest: u64,
    newest: u64,
    found: &mut Vec<(SegmentId, u64)>,
) -> Result<()> {
    let mut all = objects.list(Some(prefix));
    while let Some(object) = all.try_next().await.map_err(|error| BlobError::Io(error.to_string()))? {
        if let Some(segment) = object.location.filename().and_then(segment_of)
            && (oldest..=newest).contains(&(segment.0 >> 32))
        {
            found.push((segment, object.size));
        }
    }
    Ok(())
}

impl Blob {
    /// The segments in the object store, ancestors' among them, and their bytes.
    ///
    /// # Errors
    /// `Io` from the store.
    pub async fn objects(&self) -> Result<Vec<(SegmentId, u64)>> {
        let config = &self.inner.config;
        list(&*config.objects, &config.prefix, &config.ancestors).await
    }
}
