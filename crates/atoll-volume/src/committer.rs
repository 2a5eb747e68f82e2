//! One task a volume: turns ordered changes into commits, one after another.
//!
//! A crash between any two steps leaves either the old state or the new one:
//! bytes are durable (or ride in the batch) before the batch that refers to
//! them; a segment's staged copy goes only after the commit that records its
//! upload is durable; an object goes only after its doom is durable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_blob::SyncPoint;
use atoll_lease::Issue;
use atoll_store::{Batch, Scan};
use atoll_types::{Errno, SegmentId};
use tokio::sync::{MutexGuard, watch};

use crate::error::VolumeError;
use crate::format::{self, SegmentState};
use crate::snapshots::Kept;
use crate::volume::Shared;

/// Pause between attempts on a full disk.
const ROOM_PAUSE: Duration = Duration::from_secs(1);

/// How far commits have come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Changes up to this number are durable.
    pub durable: u64,
    /// So are operations up to this position.
    pub order: Issue,
    /// Set for ever when a commit failed.
    pub failed: Option<VolumeError>,
    /// Commits wait for room on the disk.
    pub full: bool,
}

impl Progress {
    /// Of a volume in which nothing changes.
    pub fn settled() -> Self {
        Progress { durable: u64::MAX, order: Issue(u64::MAX), ..Progress::default() }
    }
}

pub(crate) struct Committer {
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
    /// Segments that look like garbage since an instant.
    suspects: VecDeque<(Instant, SegmentId)>,
    doomed: Vec<SegmentId>,
    last_commit: Instant,
}

impl Committer {
    pub fn new(
        shared: Arc<Shared>,
        progress: watch::Sender<Progress>,
        suspects: Vec<SegmentId>,
        doomed: Vec<SegmentId>,
    ) -> Self {
        let now = Instant::now();
        let suspects = suspects.into_iter().map(|id| (now, id)).collect();
        Committer { shared, progress, suspects, doomed, last_commit: now }
    }

    /// Run until the volume closes or a commit fails.
    pub async fn run(mut self) {
        let uploads = self.shared.blob.changed();
        loop {
            let stopping = self.shared.is_closing();
            if let Err(error) = self.commit().await {
                tracing::error!(%error, "commit failed: the volume takes no more changes");
                self.progress.send_modify(|p| p.failed = Some(error));
                return;
            }
            if stopping {
                return;
            }
            let tidy = self.suspects.front().map_or(Duration::from_secs(3600), |(since, _)| {
                (*since + self.shared.config.empty_segments_kept).saturating_duration_since(Instant::now())
            });
            tokio::select! {
                _ = self.shared.work.notified() => {}
                _ = uploads.notified() => {}
                _ = tokio::time::sleep(tidy) => {}
            }
            self.linger().await;
        }
    }

    /// Without a waiter, leave a short gap so that more changes share the commit.
    async fn linger(&self) {
        let due = self.last_commit + self.shared.config.commit_lag;
        while !self.shared.is_urgent(self.progress.borrow().durable) {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                _ = self.shared.work.notified() => {}
                _ = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Suspects that may go now. No snapshot is made until the guard is dropped.
    async fn unneeded<'a>(&mut self, shared: &'a Shared) -> (Vec<SegmentId>, Option<MutexGuard<'a, Kept>>) {
        let now = Instant::now();
        self.suspects.extend(shared.core.lock().take_emptied().into_iter().map(|id| (now, id)));
        let due =
            self.suspects.partition_point(|(since, _)| now.duration_since(*since) >= shared.config.empty_segments_kept);
        if due == 0 {
            return (Vec::new(), None);
        }
        let due: Vec<SegmentId> = self.suspects.drain(..due).map(|(_, id)| id).collect();
        let mut later = |id| self.suspects.push_back((now, id));
        let Ok(mut kept) = shared.snapshots.try_lock() else {
            // One is being made.
            due.into_iter().for_each(later);
            return (Vec::new(), None);
        };
        let mut unneeded = Vec::with_capacity(due.len());
        for id in due {
            match kept.refers_to(&*shared.store, id).await {
                Ok(false) => unneeded.push(id),
                // It is looked at again when a snapshot is deleted.
                Ok(true) => {}
                Err(error) => {
                    tracing::warn!(%error, segment = %id, "cannot tell whether a snapshot needs it: it stays for now");
                    later(id);
                }
            }
        }
        (unneeded, Some(kept))
    }

    async fn commit(&mut self) -> Result<(), VolumeError> {
        let shared = self.shared.clone();
        let (unneeded, _no_snapshot_meanwhile) = self.unneeded(&shared).await;
        let (cut, order) = {
            let mut core = self.shared.core.lock();
            self.doomed.extend(unneeded.into_iter().filter(|id| core.doom(*id)));
            (core.has_changes().then(|| core.cut()), core.leases.newest())
        };
        // After the cut: it covers every byte that the batch refers to.
        let point = self.with_room(|| self.shared.blob.sync(self.shared.config.inline_bytes_max)).await?;
        let nothing = point.opened.is_empty() && point.fragments.is_empty() && point.uploaded.is_empty();
        if cut.is_none() && nothing {
            // What was executed since has changed nothing.
            self.progress.send_if_modified(|p| std::mem::replace(&mut p.order, order) != order);
            return Ok(());
        }
        let mut batch = Batch::default();
        if let Some(cut) = &cut {
            batch.writes.extend(cut.writes.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        add_segments(&self.shared, &point, &mut batch).await?;
        let seq = self.shared.store.commit(batch).await?;
        self.shared.core.lock().retire();
        self.with_room(|| self.shared.store.durable(seq)).await?;
        self.last_commit = Instant::now();
        if let Some(cut) = cut {
            self.shared.core.lock().durable(cut.ordered);
            self.progress.send_modify(|p| {
                p.durable = cut.ordered;
                p.order = order;
            });
        }
        self.shared.blob.forget(&point.uploaded);
        self.delete_doomed().await;
        Ok(())
    }

    /// A full disk loses nothing: try again until there is room. Who waits meanwhile is told `ENOSPC`.
    async fn with_room<T, E: Into<VolumeError>, F: Future<Output = Result<T, E>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, VolumeError> {
        loop {
            match attempt().await.map_err(Into::into) {
                Err(error) if error.errno() == Errno::ENOSPC && !self.shared.is_closing() => {
                    tracing::warn!(%error, "commits wait for room");
                    self.progress.send_modify(|p| p.full = true);
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                result => {
                    self.progress.send_if_modified(|p| std::mem::take(&mut p.full));
                    return result;
                }
            }
        }
    }

    async fn delete_doomed(&mut self) {
        for segment in std::mem::take(&mut self.doomed) {
            match self.shared.blob.delete(segment).await {
                Ok(()) => self.shared.core.lock().bury(segment),
                // Kept as doomed in the store: tried again when the volume is opened.
                Err(error) => tracing::warn!(%segment, %error, "cannot delete an empty segment"),
            }
        }
    }
}

/// What a sync point says of segments: states, fragments, and fragments that the object replaces.
async fn add_segments(shared: &Shared, point: &SyncPoint, batch: &mut Batch) -> Result<(), VolumeError> {
    {
        let mut core = shared.core.lock();
        for (ids, state) in [(&point.opened, SegmentState::Open), (&point.uploaded, SegmentState::Uploaded)] {
            for (key, value) in core.record_segments(ids, state) {
                batch.put(key, value);
            }
        }
    }
    for segment in &point.uploaded {
        let (start, end) = (format::fragment_key(*segment, 0), format::fragment_key(*segment, u32::MAX));
        let mut next = Some(start);
        while let Some(start) = next {
            let page = shared.store.scan(Scan { start, end: end.clone(), entries_max: 1024 }).await?;
            for (key, _) in page.entries {
                batch.delete(key);
            }
            next = page.next;
        }
    }
    for (segment, offset, bytes) in &point.fragments {
        batch.put(format::fragment_key(*segment, *offset), bytes.clone());
    }
    Ok(())
}

/// Write every pending change of a volume that takes no more operations.
pub(crate) async fn close(shared: &Shared) -> Result<(), VolumeError> {
    let point = shared.blob.close().await?;
    let mut batch = Batch::default();
    {
        let mut core = shared.core.lock();
        if core.has_changes() {
            batch.writes.extend(core.cut().writes.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
    }
    add_segments(shared, &point, &mut batch).await?;
    if !batch.writes.is_empty() {
        let seq = shared.store.commit(batch).await?;
        shared.store.durable(seq).await?;
        shared.core.lock().retire();
    }
    shared.blob.forget(&point.uploaded);
    shared.store.close().await?;
    Ok(())
}
