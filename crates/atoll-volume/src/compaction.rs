//! Compaction: what is in use of sparse segments is written again, so that they can be deleted.
//!
//! A pass chooses segments, reads all extents of the store once, and moves those that lie in them. A move is an ordinary
//! change of the extent map: a crash between two leaves a file that refers to old and new places. Content, times and leases
//! are not touched, and readers never notice: an emptied segment stays for a while for reads that were planned before.

use std::collections::HashSet;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_blob::Location;
use atoll_types::{Errno, InodeId, SegmentId};
use bytes::Bytes;
use tokio::time::Instant;

use crate::core::Sparse;
use crate::cursor::Cursor;
use crate::error::VolumeError;
use crate::extents::Extent;
use crate::format;
use crate::volume::{Inner, Volume};

/// Extents are moved together up to so many bytes …
pub(crate) const MOVED_BYTES_MAX: u64 = 4 << 20;
/// … and up to so many of them.
pub(crate) const MOVED_MAX: usize = 1024;

/// When segments are compacted, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Compaction {
    /// Pause between two looks.
    pub interval: Duration,
    /// A segment is sparse when at most this part of what was written to it is in use.
    pub live_percent_max: u64,
    /// Nothing is done for less to gain, in bytes …
    pub dead_bytes_min: u64,
    /// … or for less than this part of what is in use.
    pub dead_percent_min: u64,
    /// Bytes in use that one pass writes again, at most (and one segment's).
    pub pass_bytes_max: u64,
    /// Bytes that are written again in a second.
    pub bytes_per_second: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Compaction {
            interval: Duration::from_secs(30),
            live_percent_max: 50,
            dead_bytes_min: 64 << 20,
            dead_percent_min: 10,
            pass_bytes_max: 512 << 20,
            bytes_per_second: 32 << 20,
        }
    }
}

/// What lies in a segment that is to be emptied.
pub(crate) struct Moving {
    pub inode: InodeId,
    pub offset: u64,
    pub extent: Extent,
}

impl Moving {
    /// What is to be read of it.
    pub fn wanted(&self) -> (Location, u32, u32) {
        (self.extent.location, self.extent.skip, self.extent.length)
    }
}

/// Look now and then, until the volume is closed.
pub(crate) async fn run(inner: Weak<Inner>) {
    let Some(interval) = inner.upgrade().map(|inner| inner.shared.config.compaction.interval) else { return };
    loop {
        tokio::time::sleep(interval).await;
        let Some(inner) = inner.upgrade() else { return };
        if let Err(error) = (Volume { inner }).compact().await {
            tracing::warn!(%error, "cannot compact; the next look tries again");
        }
    }
}

impl Volume {
    /// One pass, if there is enough to gain. Answers how many bytes it has written again.
    pub async fn compact(&self) -> Result<u64, VolumeError> {
        let chosen = self.choose().await?;
        if chosen.is_empty() {
            return Ok(0);
        }
        let shared = &self.inner.shared;
        // What is not committed yet is found by the next pass.
        let view = shared.store.snapshot()?;
        let mut extents = Cursor::new(&*view, format::all_extents());
        let started = Instant::now();
        let (mut moved, mut moving, mut bytes) = (0, Vec::new(), 0);
        loop {
            let next = extents.next().await?;
            let is_last = next.is_none();
            if let Some((key, value)) = next {
                let extent = format::decode_extent(&value)?;
                if chosen.contains(&extent.location.segment) {
                    bytes += u64::from(extent.length);
                    let inode = InodeId(format::key_number(&key)?);
                    moving.push(Moving { inode, offset: format::rest_u64(&key)?, extent });
                }
            }
            if is_last || bytes >= MOVED_BYTES_MAX || moving.len() >= MOVED_MAX {
                self.compact_some(std::mem::take(&mut moving)).await?;
                moved += std::mem::take(&mut bytes);
                let due =
                    Duration::from_secs_f64(moved as f64 / shared.config.compaction.bytes_per_second.max(1) as f64);
                tokio::time::sleep_until(started + due).await;
            }
            if is_last {
                tracing::debug!(segments = chosen.len(), bytes = moved, "compacted");
                return Ok(moved);
            }
        }
    }

    /// The segments of one pass; none when there is too little to gain.
    async fn choose(&self) -> Result<HashSet<SegmentId>, VolumeError> {
        let shared = &self.inner.shared;
        let limits = &shared.config.compaction;
        let (sparse, live) = {
            let core = shared.core.lock();
            (core.sparse_segments(limits.live_percent_max), core.bytes_live())
        };
        let least = limits.dead_bytes_min.max(live / 100 * limits.dead_percent_min);
        let mut chosen = HashSet::new();
        let (mut gained, mut written) = (0, 0);
        let mut kept = shared.snapshots.lock().await;
        let incompactible = self.inner.incompactible.lock().clone();
        let may = |segment: &Sparse| self.inner.settings.owns(segment.id) && !incompactible.contains(&segment.id);
        for segment in sparse.into_iter().filter(may) {
            if written > 0 && written + segment.live > limits.pass_bytes_max {
                break;
            }
            // It would stay as it is beside its copy.
            if !kept.refers_to(&*shared.store, segment.id).await? {
                gained += segment.dead;
                written += segment.live;
                chosen.insert(segment.id);
            }
        }
        Ok(if gained >= least.max(1) { chosen } else { HashSet::new() })
    }

    /// Write extents again as far as they can be read, and let their files refer to that.
    async fn compact_some(&self, moving: Vec<Moving>) -> Result<(), VolumeError> {
        let blob = &self.inner.shared.blob;
        let wanted: Vec<_> = moving.iter().map(Moving::wanted).collect();
        if let Ok(contents) = blob.read_many(&wanted).await {
            return self.relocate(moving.into_iter().zip(contents)).await;
        }
        let mut readable = Vec::with_capacity(moving.len());
        for moving in moving {
            let (location, skip, length) = moving.wanted();
            match blob.read(location, skip, length).await {
                Ok(content) => readable.push((moving, content)),
                // Written over since the pass began.
                Err(_) if !self.inner.shared.core.lock().is_used(location.segment) => {}
                Err(error) => {
                    tracing::warn!(%error, segment = %location.segment, "cannot compact: it stays as it is");
                    self.inner.incompactible.lock().insert(location.segment);
                }
            }
        }
        self.relocate(readable.into_iter()).await
    }

    /// Write what extents hold again, and let their files refer to that.
    pub(crate) async fn relocate(&self, moving: impl Iterator<Item = (Moving, Bytes)>) -> Result<(), VolumeError> {
        for (Moving { inode, offset, extent }, content) in moving {
            // A copy: what was read may be a part of something large. One piece, as the extent is in one.
            for location in self.inner.shared.blob.append(Bytes::copy_from_slice(&content)).await? {
                let relocated = self.alone(|core| core.relocate(inode, offset, extent, location)).await;
                match relocated {
                    // The file is gone, and with it what it held.
                    Err(Errno::ESTALE) => {}
                    result => result.map_err(VolumeError::Undurable)?,
                }
            }
            self.inner.bytes_compacted.fetch_add(u64::from(extent.length), Ordering::Relaxed);
        }
        self.inner.shared.work.notify_one();
        Ok(())
    }
}
