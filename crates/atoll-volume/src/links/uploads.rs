//! Uploads in parts are recorded before they begin, and what is left of them is aborted ([`crate::core`], `uploads`).

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use atoll_link::{BucketError, ObjectKey, UploadLog};
use atoll_types::InodeId;

use super::publish::Trouble;
use crate::volume::{Inner, Volume};

/// Longest id that is recorded, in bytes; S3's have some hundred.
const ID_BYTES_MAX: usize = 1024;
/// Most uploads of a volume that are recorded; a bucket that lets nobody abort any leaves one with each attempt that fails.
const UPLOADS_MAX: usize = 10_000;

impl Volume {
    pub(super) fn upload_log(&self, link: InodeId) -> Log {
        Log { volume: Arc::downgrade(&self.inner), link }
    }

    /// Abort what is left of an upload.
    pub(super) async fn abort_left(&self, link: InodeId, id: &str) -> Result<(), Trouble> {
        let object = self.inner.shared.core.lock().links.uploads.object(link, id).cloned();
        let Some(object) = object else { return Ok(()) };
        self.bucket(link)?.abort(&object, id).await?;
        self.inner.shared.core.lock().drop_upload(link, id);
        Ok(())
    }
}

/// What a link's bucket tells of its uploads.
pub(super) struct Log {
    volume: Weak<Inner>,
    pub link: InodeId,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Log").field(&self.link).finish()
    }
}

impl Log {
    fn volume(&self) -> Option<Volume> {
        self.volume.upgrade().map(|inner| Volume { inner })
    }
}

#[async_trait]
impl UploadLog for Log {
    async fn begun(&self, key: &ObjectKey, upload: &str) -> Result<(), BucketError> {
        let volume = self.volume().ok_or_else(|| BucketError::Away("the volume is closed".into()))?;
        if upload.len() > ID_BYTES_MAX {
            tracing::warn!(%key, bytes = upload.len(), "the id of an upload is too long: should it be left, it is not aborted");
            return Ok(());
        }
        let ordered = {
            let mut core = volume.inner.shared.core.lock();
            (core.links.uploads.len() < UPLOADS_MAX).then(|| core.begin_upload(self.link, upload, key))
        };
        let Some(ordered) = ordered else {
            tracing::warn!(%key, "{UPLOADS_MAX} uploads are recorded: should this one be left, it is not aborted");
            return Ok(());
        };
        let recorded = volume.until_durable(ordered).await;
        recorded.map_err(|errno| BucketError::Away(format!("an upload cannot be recorded: {errno}")))
    }

    fn ended(&self, upload: &str, may_be_left: bool) {
        let Some(volume) = self.volume() else { return };
        let mut core = volume.inner.shared.core.lock();
        match may_be_left {
            true => core.leave_upload(self.link, upload),
            false => core.drop_upload(self.link, upload),
        }
        drop(core);
        volume.inner.shared.work.notify_one();
    }
}
