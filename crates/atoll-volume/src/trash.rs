//! Files that lost their last name a while ago are destroyed (`core::trash` keeps them until then).
//!
//! A file is destroyed by an operation like any other one, a name of it at a time: who has it open keeps it, and a crash
//! leaves the rest to the next look.

use std::future::Future;
use std::pin::Pin;
use std::sync::Weak;
use std::time::{Duration, Instant};

use atoll_types::operation::DirectoryEntry;
use atoll_types::{Caller, Errno, FileKind, Hidden, InodeId, Name, Operation, Timestamp};

use crate::core::NOBODY;
use crate::error::VolumeError;
use crate::format::{self, InodeRecord, Retention};
use crate::volume::{Inner, Volume};

/// Pause between two looks …
const INTERVAL: Duration = Duration::from_secs(60);
/// … and when the last one has left something to destroy.
const INTERVAL_BUSY: Duration = Duration::from_secs(1);
/// A look takes at most this part of the time.
const LOOKS_PART: u32 = 20;
/// Most files that one look destroys.
const DESTROYED_MAX: usize = 10_000;
/// Entries that are read together.
const PAGE: usize = 1000;
/// What comes into one directory of the trash, in seconds.
const HOUR: i64 = 3600;

/// What is in the trash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrashReport {
    pub files: u64,
    /// Holes not counted.
    pub bytes: u64,
}

/// Look now and then, until the volume is closed. With a type of its own: what it executes may open volumes, which do this.
pub(crate) fn run(inner: Weak<Inner>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let mut pause = INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            let Some(inner) = inner.upgrade() else { return };
            let started = Instant::now();
            let done = (Volume { inner }).look_at_trash(Timestamp::now()).await;
            pause = INTERVAL.max(started.elapsed() * LOOKS_PART);
            match done {
                Ok(DESTROYED_MAX) => pause = INTERVAL_BUSY,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "cannot look at the trash; the next look tries again"),
            }
        }
    })
}

impl Volume {
    pub fn retention(&self) -> Option<Retention> {
        self.inner.shared.core.lock().retention()
    }

    /// Keep files for so long that lose their last name, or destroy them at once. What is in the trash stays there
    /// without a retention. Durable when this returns.
    pub async fn set_retention(&self, retention: Option<Retention>) -> Result<(), VolumeError> {
        if retention.is_some() && self.is_taken(Hidden::Trash).await.map_err(VolumeError::Trash)? {
            return Err(VolumeError::TrashNamed);
        }
        let ordered = self.inner.shared.core.lock().set_retention(retention);
        self.until_durable(ordered).await.map_err(VolumeError::Undurable)
    }

    /// Destroy what was kept for long enough at this time, a bounded number of files: answers how many. Counts the rest
    /// when nothing more is to be destroyed.
    pub async fn look_at_trash(&self, now: Timestamp) -> Result<usize, VolumeError> {
        let mut left = DESTROYED_MAX;
        if let Some(Retention(seconds)) = self.retention() {
            let newest = now.seconds.saturating_sub_unsigned(seconds).saturating_sub(HOUR);
            self.empty(|created| created.seconds <= newest, &mut left).await.map_err(VolumeError::Trash)?;
        }
        if left > 0 {
            self.count_trash().await?;
        }
        Ok(DESTROYED_MAX - left)
    }

    /// Destroy everything in the trash: answers with what was in it.
    pub async fn empty_trash(&self) -> Result<TrashReport, VolumeError> {
        // What mounts have removed without asking is to be in it, if they can say so.
        let _ = self.gather().await;
        let found = self.count_trash().await?;
        let mut left = usize::MAX;
        self.empty(|_| true, &mut left).await.map_err(VolumeError::Trash)?;
        self.count_trash().await?;
        Ok(found)
    }

    /// What is in the trash; what was changed meanwhile is counted, or not.
    pub async fn count_trash(&self) -> Result<TrashReport, VolumeError> {
        let ordered = self.inner.shared.core.lock().ordered();
        // On a full disk, as of the last commit.
        let _ = self.until_durable(ordered).await;
        let mut report = TrashReport::default();
        for hour in self.list_all(InodeId::TRASH).await.map_err(VolumeError::Trash)? {
            let mut after = 0;
            loop {
                let page = self.list_from_store(hour.inode, after, PAGE).await.map_err(VolumeError::Trash)?;
                let keys: Vec<_> = page.0.iter().map(|entry| format::inode_key(entry.inode)).collect();
                for record in self.inner.shared.store.multi_get(&keys).await?.into_iter().flatten() {
                    report.files += 1;
                    report.bytes += InodeRecord::decode(&record)?.allocated;
                }
                match page {
                    (entries, false) => after = entries.last().map_or(u64::MAX, |last| last.cookie),
                    (_, true) => break,
                }
            }
        }
        *self.inner.trash.lock() = report;
        Ok(report)
    }

    async fn list_all(&self, directory: InodeId) -> Result<Vec<DirectoryEntry>, Errno> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map_or(0, |last: &DirectoryEntry| last.cookie);
            let (entries, end) = self.list_from_store(directory, after, PAGE).await?;
            all.extend(entries);
            if end {
                return Ok(all);
            }
        }
    }

    /// Destroy what is in directories that were made at such times, as long as something is `left` to be destroyed.
    async fn empty(&self, is_due: impl Fn(Timestamp) -> bool, left: &mut usize) -> Result<(), Errno> {
        for hour in self.list_all(InodeId::TRASH).await? {
            let created = match self.alone(|core| core.attributes(hour.inode)).await {
                Ok(attributes) => attributes.created,
                // Somebody else was faster.
                Err(Errno::ESTALE) => continue,
                Err(errno) => return Err(errno),
            };
            if hour.kind != FileKind::Directory || !is_due(created) {
                continue;
            }
            let mut after = 0;
            loop {
                let (entries, end) = self.list_from_store(hour.inode, after, PAGE).await?;
                for entry in entries {
                    if *left == 0 {
                        return Ok(());
                    }
                    after = entry.cookie;
                    *left -= usize::from(self.destroy(hour.inode, entry.name).await?);
                }
                if end {
                    break;
                }
            }
            let remove = Operation::RemoveDirectory { parent: InodeId::TRASH, name: hour.name };
            match self.execute(NOBODY, &Caller::default(), remove).await {
                // Something has just come into it, or it is gone.
                Ok(_) | Err(Errno::ENOTEMPTY | Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    async fn destroy(&self, parent: InodeId, name: Name) -> Result<bool, Errno> {
        match self.execute(NOBODY, &Caller::default(), Operation::Unlink { parent, name }).await {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}
