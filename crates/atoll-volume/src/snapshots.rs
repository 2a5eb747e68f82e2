//! Snapshots: versions of the volume that stay readable until they are deleted.
//!
//! A snapshot is a checkpoint of the store, no more: made whole or not at all. What it refers to are segments, which
//! never change. So the committer deletes one that nothing refers to any more only when no snapshot's own record of it
//! counts bytes in use, and no snapshot is made between the question and the deletion.
//!
//! A snapshot has a number, which is part of the checkpoint's name: both are there, or neither. Clients know files of a
//! snapshot by it ([`crate::snapshot_directory`]), so it is durable that it was given before the checkpoint is made, and
//! nobody gets it again before all others were given.
//!
//! A clone is a volume that begins as a copy of another one's metadata. Its parent keeps a checkpoint for it, and with
//! that the segments that the clone reads and never deletes.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use atoll_store::{Batch, Checkpoint, Frozen, Read, Store, StoreError};
use atoll_types::{Epoch, SegmentId, Timestamp};
use bytes::Bytes;

use crate::cursor::Cursor;
use crate::error::VolumeError;
use crate::format::{self, Ancestor, Counters, KeyRange, SegmentRecord, SegmentState};
use crate::fsck::{Report, Watch};
use crate::volume::{Volume, VolumeConfig, scan_all, settings};

/// Most snapshots of one volume: each is asked before a segment goes.
pub const SNAPSHOTS_MAX: usize = 1000;
/// Most records that restoring one changes: they go in one batch.
const RESTORED_MAX: usize = 2_000_000;
/// Before the names of snapshots among the store's checkpoints.
const PREFIX: &str = "snapshot:";
/// The same, of what clones began as.
const CLONE_PREFIX: &str = "clone:";

/// A version of a volume that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub name: String,
    /// In the upper 16 bits of inodes that are seen through it.
    pub number: u16,
    /// In seconds since 1970.
    pub created: u64,
}

impl Snapshot {
    fn of(checkpoint: Checkpoint) -> Option<Snapshot> {
        let (number, name) = checkpoint.name.strip_prefix(PREFIX)?.split_once(':')?;
        Some(Snapshot { name: name.to_owned(), number: number.parse().ok()?, created: checkpoint.created })
    }

    /// The name of the store's checkpoint.
    pub(crate) fn checkpoint(&self) -> String {
        format!("{PREFIX}{}:{}", self.number, self.name)
    }
}

/// Oldest first.
pub(crate) fn among(checkpoints: Vec<Checkpoint>) -> Vec<Snapshot> {
    checkpoints.into_iter().filter_map(Snapshot::of).collect()
}

async fn find(store: &dyn Store, name: &str) -> Result<Snapshot, VolumeError> {
    let found = among(store.checkpoints().await?).into_iter().find(|found| found.name == name);
    Ok(found.ok_or_else(|| StoreError::CheckpointMissing(name.to_owned()))?)
}

/// Checkpoints whose segments must stay, each with its content once somebody has asked for it.
#[derive(Default)]
pub(crate) struct Kept(BTreeMap<String, Option<Arc<dyn Read>>>);

impl Kept {
    pub fn of(checkpoints: &[Checkpoint]) -> Kept {
        Kept(checkpoints.iter().map(|found| (found.name.clone(), None)).collect())
    }

    /// Whether one of them refers to bytes of the segment.
    pub async fn refers_to(&mut self, store: &dyn Store, segment: SegmentId) -> Result<bool, VolumeError> {
        for (name, view) in &mut self.0 {
            if view.is_none() {
                match store.at(name).await {
                    Ok(found) => *view = Some(found),
                    // Its making failed.
                    Err(StoreError::CheckpointMissing(_)) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            let Some(view) = view else { continue };
            let record = view.get(&format::segment_key(segment)).await?;
            if record.map(|record| SegmentRecord::decode(&record)).transpose()?.is_some_and(|found| found.live > 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Volume {
    /// Have every session say what it has changed without asking, and make it durable.
    pub async fn gather(&self) -> Result<(), VolumeError> {
        // Who was told of a change by the last server may still have to make it again.
        self.inner.leases.grace.over().await;
        let writers = self.inner.shared.core.lock().leases.holders_of(atoll_lease::Rights::WRITER);
        self.ask_writers(writers).await;
        let ordered = self.inner.shared.core.lock().ordered();
        self.until_durable(ordered).await.map_err(VolumeError::Undurable)
    }

    /// Keep the volume as it is now. What has returned on any mount before is in it; of what happens meanwhile, each
    /// mount's changes up to some moment are. Every client sees it below `.snapshots` when this returns.
    pub async fn create_snapshot(&self, name: &str) -> Result<(), VolumeError> {
        self.gather().await?;
        let shared = &self.inner.shared;
        let mut kept = shared.snapshots.lock().await;
        let known = among(shared.store.checkpoints().await?);
        if known.iter().any(|found| found.name == name) {
            return Err(StoreError::CheckpointExists(name.to_owned()).into());
        }
        let is_taken = |number| known.iter().any(|found| found.number == number);
        let (number, ordered) = shared.core.lock().number_snapshot(is_taken);
        self.until_durable(ordered).await.map_err(VolumeError::Undurable)?;
        let checkpoint = Snapshot { name: name.to_owned(), number, created: 0 }.checkpoint();
        let result = self.keep(&mut kept, checkpoint, None).await;
        self.show_snapshots().await;
        result
    }

    /// Make a checkpoint, of now or of what another one keeps.
    async fn keep(&self, kept: &mut Kept, name: String, source: Option<String>) -> Result<(), VolumeError> {
        let store = &self.inner.shared.store;
        if kept.0.len() >= SNAPSHOTS_MAX {
            return Err(VolumeError::TooManySnapshots(SNAPSHOTS_MAX));
        }
        // Before it is made: when that fails, it may be there.
        kept.0.entry(name.clone()).or_default();
        match source {
            None => store.checkpoint(&name).await?,
            Some(source) => store.copy_checkpoint(&source, &name).await?,
        }
        Ok(())
    }

    /// Keep the volume as it is now, or as it is at a snapshot, for a volume that begins as its copy. Answers with the name
    /// of the store's checkpoint. Waits for no client: what they have changed without asking is [gathered](Self::gather)
    /// before. Before anybody reads the copy, the bytes have to be uploaded.
    pub async fn keep_for_clone(&self, clone: &str, snapshot: Option<&str>) -> Result<String, VolumeError> {
        let name = format!("{CLONE_PREFIX}{clone}");
        let shared = &self.inner.shared;
        let mut kept = shared.snapshots.lock().await;
        let source = match snapshot {
            Some(snapshot) => Some(find(&*shared.store, snapshot).await?.checkpoint()),
            None => None,
        };
        match self.keep(&mut kept, name.clone(), source.clone()).await {
            // An attempt was cut off: what it was to keep is not what this one is to.
            Err(VolumeError::Store(StoreError::CheckpointExists(_))) => {
                self.let_go(&mut kept, &name).await?;
                self.keep(&mut kept, name.clone(), source).await?;
            }
            result => result?,
        }
        Ok(name)
    }

    /// A volume that began as a copy of this one is gone.
    pub async fn let_go_of_clone(&self, clone: &str) -> Result<(), VolumeError> {
        let mut kept = self.inner.shared.snapshots.lock().await;
        self.let_go(&mut kept, &format!("{CLONE_PREFIX}{clone}")).await
    }

    /// Oldest first.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        Ok(among(self.inner.shared.store.checkpoints().await?))
    }

    /// Delete a snapshot, and in the background what it alone refers to. Nobody may be using it as a volume; who uses it
    /// below `.snapshots` is answered `ESTALE` from now on.
    pub async fn delete_snapshot(&self, name: &str) -> Result<(), VolumeError> {
        let shared = &self.inner.shared;
        let mut kept = shared.snapshots.lock().await;
        let found = find(&*shared.store, name).await?;
        self.inner.snapshot_directory.withdraw(found.number).await;
        let result = self.let_go(&mut kept, &found.checkpoint()).await;
        self.inner.snapshot_directory.withdrawn(found.number);
        self.show_snapshots().await;
        result
    }

    async fn let_go(&self, kept: &mut Kept, name: &str) -> Result<(), VolumeError> {
        let shared = &self.inner.shared;
        shared.store.delete_checkpoint(name).await?;
        kept.0.remove(name);
        shared.core.lock().suspect_empty();
        shared.work.notify_one();
        Ok(())
    }

    /// Check a snapshot, as [`Volume::check`] does the volume.
    pub async fn check_snapshot(&self, name: &str, bytes: bool, watch: Watch<'_>) -> Result<Report, VolumeError> {
        self.check_view(&*self.snapshot_view(name).await?, bytes, watch).await
    }

    pub(crate) async fn snapshot_view(&self, name: &str) -> Result<Arc<dyn Read>, VolumeError> {
        let store = &self.inner.shared.store;
        Ok(store.at(&find(&**store, name).await?.checkpoint()).await?)
    }

    /// The volume as it was at a snapshot, read-only. It reads bytes through this volume, which must stay open.
    pub async fn at_snapshot(&self, name: &str) -> Result<Volume, VolumeError> {
        self.frozen(self.snapshot_view(name).await?, self.inner.shared.config.inode_cache_max).await
    }

    /// What a version of the store shows, as a volume that never changes.
    pub(crate) async fn frozen(&self, view: Arc<dyn Read>, inode_cache_max: usize) -> Result<Volume, VolumeError> {
        let shared = &self.inner.shared;
        let store = Frozen::new(view, shared.store.epoch());
        let blob = shared.blob.clone();
        let config = VolumeConfig { read_only: true, inode_cache_max, ..shared.config };
        // A future of its own kind would hold itself.
        let opening = Volume::open(Arc::new(store), |_, _| Box::pin(async { Ok(blob) }), config);
        let opening: Pin<Box<dyn Future<Output = Result<Volume, VolumeError>> + Send>> = Box::pin(opening);
        opening.await
    }
}

/// The volumes that began as copies of one with these checkpoints.
pub fn clones(checkpoints: Vec<Checkpoint>) -> Vec<String> {
    checkpoints.into_iter().filter_map(|found| Some(found.name.strip_prefix(CLONE_PREFIX)?.to_owned())).collect()
}

/// Make the copy of another volume's metadata that a store holds a volume of its own. Can be repeated.
pub async fn adopt(store: &dyn Store, id: u128, parent: &str) -> Result<(), VolumeError> {
    let mut settings = settings(store).await?;
    if settings.id == id {
        return Ok(());
    }
    settings.id = id;
    // Nobody has written anything in an epoch of the copy yet.
    settings.ancestors.push(Ancestor { volume: parent.to_owned(), newest: Epoch(store.epoch().0 - 1) });
    let mut batch = Batch::default();
    batch.put(format::superblock_key(), settings.encode());
    for (key, _) in scan_all(store, format::all_sessions()).await? {
        batch.delete(key);
    }
    for (key, value) in scan_all(store, format::all_segments()).await? {
        let record = SegmentRecord::decode(&value)?;
        if record.live <= 0 {
            batch.delete(key);
        } else if record.state == SegmentState::Open {
            batch.put(key, SegmentRecord { state: SegmentState::Uploaded, ..record }.encode());
        }
    }
    for (key, _) in scan_all(store, format::all_fragments()).await? {
        batch.delete(key);
    }
    let seq = store.commit(batch).await?;
    Ok(store.durable(seq).await?)
}

/// Turn a volume that is not open back to what it was at a snapshot, in one commit. Its snapshots stay, later ones, too.
pub async fn restore(store: &dyn Store, name: &str) -> Result<(), VolumeError> {
    let then = store.at(&find(store, name).await?.checkpoint()).await?;
    let now = store.snapshot()?;
    let mut batch = Batch::default();
    for range in [
        format::all_dentries(),
        format::all_extents(),
        format::all_inodes(),
        format::all_cookies(),
        format::all_orphans(),
        format::all_xattrs(),
        // They go with what is charged to them. That of the volume stays.
        format::all_directory_quotas(),
    ] {
        put_back(&*now, &*then, range, &mut batch).await?;
    }
    restore_segments(&*now, &*then, &mut batch).await?;
    // Their clients know what is no longer so.
    for (key, _) in scan_all(&*now, format::all_sessions()).await? {
        batch.delete(key);
    }
    batch.put(format::counters_key(), restored_counters(&*now, &*then).await?.encode());
    let seq = store.commit(batch).await?;
    Ok(store.durable(seq).await?)
}

/// What makes a range as it was then.
async fn put_back(now: &dyn Read, then: &dyn Read, range: KeyRange, batch: &mut Batch) -> Result<(), VolumeError> {
    let (mut here, mut there) = (Cursor::new(now, range.clone()), Cursor::new(then, range));
    let (mut new, mut old) = (here.next().await?, there.next().await?);
    loop {
        if batch.writes.len() > RESTORED_MAX {
            return Err(VolumeError::TooFarBack(RESTORED_MAX));
        }
        match (&new, &old) {
            (None, None) => return Ok(()),
            (Some((made, _)), kept)
                if kept.as_ref().is_none_or(|(kept, _)| now.sort_key(made) < now.sort_key(kept)) =>
            {
                batch.delete(made.clone());
                new = here.next().await?;
            }
            (made, Some((kept, value))) => {
                let is_same_key = made.as_ref().is_some_and(|(made, _)| made == kept);
                if !is_same_key || made.as_ref().is_some_and(|(_, made)| made != value) {
                    batch.put(kept.clone(), value.clone());
                }
                if is_same_key {
                    new = here.next().await?;
                }
                old = there.next().await?;
            }
            (Some(_), None) => {}
        }
    }
}

/// Segments stay as they are: what is in use of them is as it was then.
async fn restore_segments(now: &dyn Read, then: &dyn Read, batch: &mut Batch) -> Result<(), VolumeError> {
    let mut used: BTreeMap<Bytes, i64> = BTreeMap::new();
    for (key, value) in scan_all(then, format::all_segments()).await? {
        used.insert(key, SegmentRecord::decode(&value)?.live);
    }
    for (key, value) in scan_all(now, format::all_segments()).await? {
        let record = SegmentRecord::decode(&value)?;
        let before = used.remove(&key).unwrap_or(0);
        if record.state == SegmentState::Doomed && before > 0 {
            return Err(VolumeError::Corrupt(format!("a segment that the snapshot needs is being deleted: {key:?}")));
        }
        if record.live != before {
            batch.put(key, SegmentRecord { live: before, ..record }.encode());
        }
    }
    match used.into_iter().find(|(_, live)| *live > 0) {
        Some((key, _)) => Err(VolumeError::Corrupt(format!("a segment that the snapshot needs is gone: {key:?}"))),
        None => Ok(()),
    }
}

async fn restored_counters(now: &dyn Read, then: &dyn Read) -> Result<Counters, VolumeError> {
    let missing = || VolumeError::Corrupt("no counters".into());
    let of = |found: Option<Bytes>| Counters::decode(&found.ok_or_else(missing)?);
    let (new, old) = (of(now.get(&format::counters_key()).await?)?, of(then.get(&format::counters_key()).await?)?);
    // A number that was given to somebody is given to nobody else.
    Ok(Counters {
        next_inode: new.next_inode.max(old.next_inode),
        inodes: old.inodes,
        last_change: new.last_change.max(Timestamp::now()),
        last_snapshot: new.last_snapshot,
    })
}
