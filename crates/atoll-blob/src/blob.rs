//! The handle: append, sync, close, forget, delete. Each is a few steps on
//! [`State`](crate::state::State) under its mutex, with the I/O outside of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use atoll_keys::Keyring;
use atoll_types::limits::EXTENT_BYTES_MAX;
use atoll_types::{Epoch, SegmentId};
use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::cache::cache;
use crate::config::ancestor_of;
use crate::read::Flight;
use crate::rope::Rope;
use crate::staging::{Folder, StageJob, failure, object_name};
use crate::state::{Kind, State, Target};
use crate::{
    BlobConfig, BlobError, BlobStatistics, Location, Recovered, Result, STORED_BYTES_MAX, Staging, SyncPoint, pack,
    upload,
};

/// No segment is larger, whatever the configuration or a recovered fragment says.
const SEGMENT_BYTES_LIMIT: u32 = 1 << 30;
/// What a cached piece costs beside its bytes, about.
const CACHED_OVERHEAD_BYTES: u64 = 96;

/// Segment and offset name a piece.
pub(crate) type PieceKey = (SegmentId, u32);

#[derive(Clone)]
pub(crate) struct PieceWeight;

impl Weighter<PieceKey, Bytes> for PieceWeight {
    fn weight(&self, _: &PieceKey, piece: &Bytes) -> u64 {
        piece.len() as u64 + CACHED_OVERHEAD_BYTES
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) appended_bytes: AtomicU64,
    pub(crate) stored_bytes: AtomicU64,
    pub(crate) cache_hits: AtomicU64,
    pub(crate) cache_misses: AtomicU64,
    pub(crate) get_requests: AtomicU64,
    pub(crate) get_bytes: AtomicU64,
    pub(crate) uploads: AtomicU64,
    pub(crate) upload_bytes: AtomicU64,
    pub(crate) upload_errors: AtomicU64,
    pub(crate) staging_errors: AtomicU64,
    pub(crate) corrupt_pieces: AtomicU64,
    pub(crate) waits: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

pub(crate) struct Inner {
    pub(crate) config: BlobConfig,
    pub(crate) kind: Kind,
    pub(crate) folder: Option<Folder>,
    pub(crate) state: Mutex<State>,
    /// Unpacked, verified pieces of objects.
    pub(crate) cache: Cache<PieceKey, Bytes, PieceWeight>,
    /// Pieces being fetched from the store.
    pub(crate) flights: Mutex<FxHashMap<PieceKey, Arc<Flight>>>,
    /// Groups of pieces being fetched ahead.
    pub(crate) prefetches: AtomicUsize,
    pub(crate) counters: Counters,
    /// Background work has something to look at.
    pub(crate) kick: Notify,
    /// Room for writers may have become free.
    pub(crate) room: Notify,
    /// A segment's state changed.
    pub(crate) progress: Notify,
    /// The committer should sync and commit.
    changed: Arc<Notify>,
    /// One sync at a time, so that points are handed out in order.
    sync_turn: tokio::sync::Mutex<()>,
    /// One writer of staging files at a time.
    stage_turn: tokio::sync::Mutex<()>,
    pub(crate) tasks: Mutex<JoinSet<()>>,
}

/// Ends the background tasks with the last handle.
struct Guard(Arc<Inner>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.tasks.lock().abort_all();
    }
}

/// The bytes of one volume's files. Cheap to clone. Dropping the last handle
/// without [`Blob::close`] is like a crash: what was synced is recovered.
#[derive(Clone)]
pub struct Blob {
    pub(crate) inner: Arc<Inner>,
    _guard: Arc<Guard>,
}

impl Blob {
    /// Opens with a new `epoch`, larger than any before: it is part of each segment's
    /// name. `recovered` are the segments that the last run recorded as open; they
    /// are staged again, sealed and uploaded in the background.
    ///
    /// # Errors
    /// `NoSpace` or `Io` when the staging folder cannot be used.
    pub async fn open(config: BlobConfig, epoch: Epoch, recovered: Vec<Recovered>) -> Result<Blob> {
        if epoch.0 > u64::from(u32::MAX) {
            return Err(BlobError::Io(format!("epoch {epoch} is out of range")));
        }
        let mut config = config;
        config.segment_bytes_max = config.segment_bytes_max.clamp(STORED_BYTES_MAX as u32, SEGMENT_BYTES_LIMIT);
        config.upload_concurrency = config.upload_concurrency.max(1);
        let kind = match &config.staging {
            Staging::Memory => Kind::Memory,
            Staging::Folder(_) => Kind::Folder,
            Staging::Objects(_) => Kind::Objects,
        };
        let mut state = State::new(kind, config.segment_bytes_max, config.segment_age_max, epoch);
        let staging = config.staging.clone();
        let ancestors = config.ancestors.clone();
        let (state, folder) = blocking(move || {
            let folder = Folder::open(&staging, ancestors)?;
            recover(&mut state, folder.as_ref(), epoch, recovered)?;
            Ok((state, folder))
        })
        .await?;
        let pieces = usize::try_from(config.cache_bytes_max / (64 * 1024)).unwrap_or(usize::MAX).clamp(1024, 1 << 20);
        let inner = Arc::new(Inner {
            cache: cache(pieces, config.cache_bytes_max, PieceWeight),
            kind,
            folder,
            state: Mutex::new(state),
            flights: Mutex::default(),
            prefetches: AtomicUsize::new(0),
            counters: Counters::default(),
            kick: Notify::new(),
            room: Notify::new(),
            progress: Notify::new(),
            changed: Arc::new(Notify::new()),
            sync_turn: tokio::sync::Mutex::new(()),
            stage_turn: tokio::sync::Mutex::new(()),
            tasks: Mutex::default(),
            config,
        });
        inner.spawn(upload::run(inner.clone()));
        Ok(Blob { _guard: Arc::new(Guard(inner.clone())), inner })
    }

    /// Takes bytes and says where they will be. Returns at once unless memory or the
    /// staging disk is full; no disk write happens here. The memory behind `data` is
    /// kept until the segment is staged or uploaded: pass no small slice of a large buffer.
    ///
    /// # Errors
    /// `NoSpace` while the staging disk is full, `Closed`, `Io` when the system has no random bytes to seal with.
    pub async fn append(&self, data: Bytes) -> Result<Vec<Location>> {
        let inner = &*self.inner;
        count(&inner.counters.appended_bytes, data.len() as u64);
        let mut packed = Vec::with_capacity(data.len().div_ceil(EXTENT_BYTES_MAX));
        let mut stored_bytes = 0;
        let mut rest = data;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(EXTENT_BYTES_MAX));
            let length = piece.len() as u32;
            let (stored, codec) = pack::pack(piece, inner.config.compression, inner.keys())?;
            stored_bytes += stored.len() as u64;
            let checksum = crc32c::crc32c(&stored);
            packed.push((stored, codec, length, checksum));
        }
        let mut locations = Vec::with_capacity(packed.len());
        let mut waited = false;
        loop {
            let room = inner.room.notified();
            tokio::pin!(room);
            {
                let mut state = inner.state.lock();
                if state.closing {
                    return Err(BlobError::Closed);
                }
                if let Some(reason) = &state.no_space {
                    return Err(BlobError::NoSpace(reason.clone()));
                }
                let dirty_full =
                    state.dirty_bytes > 0 && state.dirty_bytes + stored_bytes > inner.config.dirty_bytes_max;
                if !dirty_full && state.staged_bytes <= inner.config.staging_bytes_max {
                    let mut kick = false;
                    let dirty_before = state.dirty_bytes;
                    for (stored, codec, length, checksum) in packed {
                        let (location, sealed) = state.push(stored, codec, length, checksum)?;
                        // A new segment has a deadline, a sealed one can be staged.
                        kick |= sealed || location.offset == 0;
                        locations.push(location);
                    }
                    // Look at staging about once in a chunk.
                    kick |= dirty_before >> 20 != state.dirty_bytes >> 20;
                    drop(state);
                    count(&inner.counters.stored_bytes, stored_bytes);
                    if kick {
                        inner.kick.notify_one();
                    }
                    return Ok(locations);
                }
                state.seal();
                room.as_mut().enable();
            }
            if !waited {
                waited = true;
                count(&inner.counters.waits, 1);
            }
            // What holds the room may wait to be recorded, or its upload to be committed.
            inner.kick.notify_one();
            inner.changed.notify_one();
            room.await;
        }
    }

    /// Makes every append that returned before this call durable, together with the
    /// commit of what is returned. Not yet durable bytes of at most `inline_bytes_max`
    /// in sum ride in that commit as fragments; more are written to the staging disk,
    /// or without one uploaded, before this returns. Points must be committed in the
    /// order in which they were returned.
    ///
    /// # Errors
    /// `NoSpace` or `Io` from the staging disk: nothing is lost, the call can be repeated.
    pub async fn sync(&self, inline_bytes_max: usize) -> Result<SyncPoint> {
        let inner = &self.inner;
        let _turn = inner.sync_turn.lock().await;
        let target = {
            let mut state = inner.state.lock();
            let (target, bytes) = state.pending();
            if bytes <= inline_bytes_max as u64 {
                let fragments = state.take_fragments();
                let point = state.report(fragments);
                drop(state);
                inner.kick.notify_one();
                return Ok(point);
            }
            if inner.kind == Kind::Memory {
                state.seal();
                state.want(&target);
            }
            target
        };
        if inner.kind == Kind::Memory {
            inner.kick.notify_one();
            inner.wait_in_store(&target).await;
        } else {
            // Whether it failed or not, background staging should look again.
            inner.stage(Some(&target)).await.inspect_err(|_| inner.kick.notify_one())?;
        }
        let point = inner.state.lock().report(Vec::new());
        inner.kick.notify_one();
        Ok(point)
    }

    /// Notified when a call of [`Blob::sync`] would have something to report: an upload
    /// finished, or a writer waits for a segment to be recorded.
    pub fn changed(&self) -> Arc<Notify> {
        self.inner.changed.clone()
    }

    /// Removes a segment that nothing refers to any more: its object, its staged file, its cached pieces.
    ///
    /// # Errors
    /// `Io` from the store; can be repeated. A missing object is fine.
    pub async fn delete(&self, segment: SegmentId) -> Result<()> {
        let inner = self.inner.clone();
        inner.state.lock().remove(segment);
        inner.room.notify_waiters();
        inner.progress.notify_waiters();
        inner.cache.retain(|(cached, _), _| *cached != segment);
        if inner.folder.is_some() {
            let shared = inner.clone();
            blocking(move || shared.remove_file(segment)).await?;
        }
        if inner.kind == Kind::Objects {
            return Ok(());
        }
        inner.delete_object(segment).await
    }

    /// Takes no more appends, seals and uploads everything. What is returned must be
    /// committed before [`Blob::forget`]. Reads go on working. Waits as long as the store fails.
    ///
    /// # Errors
    /// `NoSpace` or `Io` from the staging disk; can be repeated.
    pub async fn close(&self) -> Result<SyncPoint> {
        let inner = &self.inner;
        let _turn = inner.sync_turn.lock().await;
        let target = {
            let mut state = inner.state.lock();
            state.closing = true;
            state.seal();
            state.all()
        };
        inner.room.notify_waiters();
        inner.send(&target).await?;
        Ok(inner.state.lock().report(Vec::new()))
    }

    /// Waits until everything that was appended before this call is in the object store, as long as that fails.
    ///
    /// # Errors
    /// `NoSpace` or `Io` from the staging disk; can be repeated.
    pub async fn upload(&self) -> Result<()> {
        let target = {
            let mut state = self.inner.state.lock();
            state.seal();
            state.all()
        };
        self.inner.send(&target).await
    }

    /// The commit that recorded these segments as uploaded is durable: their staged files go.
    pub fn forget(&self, uploaded: &[SegmentId]) {
        let gone = {
            let mut state = self.inner.state.lock();
            let mut gone = state.forgettable(uploaded);
            gone.retain(|segment| state.remove(*segment));
            gone
        };
        self.inner.room.notify_waiters();
        if self.inner.kind != Kind::Folder || gone.is_empty() {
            return;
        }
        let inner = self.inner.clone();
        atoll_object::aside(move || {
            for segment in gone {
                if let Err(error) = inner.remove_file(segment) {
                    tracing::warn!(%segment, %error, "cannot delete a staged file; the next start does");
                }
            }
        });
    }

    /// What pieces are sealed with.
    pub fn keys(&self) -> Option<Arc<Keyring>> {
        self.inner.config.keys.clone()
    }

    pub fn statistics(&self) -> BlobStatistics {
        let counters = &self.inner.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.inner.state.lock();
        BlobStatistics {
            dirty_bytes: state.dirty_bytes,
            staged_bytes: state.staged_bytes,
            cached_bytes: self.inner.cache.weight(),
            segments_pending: state.segments_pending() as u64,
            appended_bytes: get(&counters.appended_bytes),
            stored_bytes: get(&counters.stored_bytes),
            cache_hits: get(&counters.cache_hits),
            cache_misses: get(&counters.cache_misses),
            get_requests: get(&counters.get_requests),
            get_bytes: get(&counters.get_bytes),
            uploads: get(&counters.uploads),
            upload_bytes: get(&counters.upload_bytes),
            upload_errors: get(&counters.upload_errors),
            staging_errors: get(&counters.staging_errors),
            corrupt_pieces: get(&counters.corrupt_pieces),
            waits: get(&counters.waits),
        }
    }
}

impl Inner {
    pub(crate) fn keys(&self) -> Option<&Keyring> {
        self.config.keys.as_deref()
    }

    /// Starts background work that ends with the last handle.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    pub(crate) fn object_path(&self, segment: SegmentId) -> object_store::path::Path {
        self.config.prefix.clone().join(object_name(segment))
    }

    /// Where a segment's object is, the volume's own or an ancestor's.
    pub(crate) fn place(&self, segment: SegmentId) -> (&dyn ObjectStore, object_store::path::Path) {
        match ancestor_of(&self.config.ancestors, segment) {
            Some(ancestor) => (&*ancestor.objects, ancestor.prefix.clone().join(object_name(segment))),
            None => (&*self.config.objects, self.object_path(segment)),
        }
    }

    pub(crate) async fn delete_object(&self, segment: SegmentId) -> Result<()> {
        if ancestor_of(&self.config.ancestors, segment).is_some() {
            return Ok(());
        }
        match self.config.objects.delete(&self.object_path(segment)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(BlobError::Io(error.to_string())),
        }
    }

    fn remove_file(&self, segment: SegmentId) -> Result<()> {
        match &self.folder {
            Some(folder) => folder.remove(segment).map_err(|error| failure(&error)),
            None => Ok(()),
        }
    }

    /// Writes to files what is due, or all of `only`, and makes it durable.
    pub(crate) async fn stage(self: &Arc<Self>, only: Option<&Target>) -> Result<()> {
        if self.folder.is_none() {
            return Ok(());
        }
        let _turn = self.stage_turn.lock().await;
        let jobs = self.state.lock().stage_jobs(only);
        let shared = self.clone();
        let result = match jobs.is_empty() {
            true => Ok(()),
            false => blocking(move || shared.write_files(&jobs)).await,
        };
        let published = {
            let mut state = self.state.lock();
            state.no_space = match &result {
                Err(BlobError::NoSpace(reason)) => Some(reason.clone()),
                // Nothing was due: whether the disk is full is still unknown.
                _ => None,
            };
            state.publish_staged()
        };
        if result.is_err() {
            count(&self.counters.staging_errors, 1);
        }
        if published {
            self.changed.notify_one();
        }
        self.room.notify_waiters();
        self.progress.notify_waiters();
        result
    }

    fn write_files(&self, jobs: &[StageJob]) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        for job in jobs {
            folder.write(job).map_err(|error| failure(&error))?;
            if !self.state.lock().staged(job.segment, job.end) {
                // Deleted while it was written.
                self.remove_file(job.segment)?;
            }
        }
        Ok(())
    }

    /// Sealed segments are in the store when this returns.
    async fn send(self: &Arc<Self>, target: &Target) -> Result<()> {
        match self.stage(Some(target)).await {
            // What does not fit on the staging disk is uploaded from memory.
            Err(BlobError::NoSpace(_)) if self.kind == Kind::Folder => {}
            result => result?,
        }
        self.state.lock().want(target);
        self.kick.notify_one();
        self.wait_in_store(target).await;
        Ok(())
    }

    async fn wait_in_store(&self, target: &Target) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.state.lock().in_store(target) {
                return;
            }
            progress.await;
        }
    }

    /// The object of a segment is whole in the store.
    pub(crate) fn upload_finished(&self, segment: SegmentId) -> bool {
        let pieces = self.state.lock().uploaded(segment);
        let known = pieces.is_some();
        for piece in pieces.into_iter().flatten() {
            // What was just written is likely to be read.
            if let Some((codec, length)) = piece.packing
                && let Some(bytes) = pack::decode(piece.bytes, codec, length, self.keys())
            {
                self.cache.insert((segment, piece.offset), bytes);
            }
        }
        self.room.notify_waiters();
        self.progress.notify_waiters();
        self.changed.notify_one();
        known
    }
}

/// Puts the segments of the last run into `state`, durable again.
fn recover(state: &mut State, folder: Option<&Folder>, epoch: Epoch, recovered: Vec<Recovered>) -> Result<()> {
    let objects = state.is_objects();
    for Recovered { segment, fragments } in recovered {
        let end = fragments.iter().map(|(offset, bytes)| u64::from(*offset) + bytes.len() as u64).max().unwrap_or(0);
        if end > u64::from(SEGMENT_BYTES_LIMIT) {
            return Err(BlobError::Io(format!("segment {segment}: a fragment ends at {end}")));
        }
        let rope = Rope::recovered(fragments);
        let Some(folder) = folder else {
            let length = rope.end();
            state.recovered(segment, rope, length, 0, true, length == 0);
            continue;
        };
        let staged = folder.length(segment).map_err(|error| failure(&error))?;
        if staged.is_none() && !objects {
            // The staging disk is not the one of the last run, which may have uploaded the whole.
            let length = rope.end();
            state.recovered(segment, rope, length, 0, true, length == 0);
            continue;
        }
        let length = u32::try_from(staged.unwrap_or(0).max(end))
            .ok()
            .filter(|length| *length <= SEGMENT_BYTES_LIMIT)
            .ok_or_else(|| BlobError::Io(format!("segment {segment}: its staged file is too long")))?;
        if length > 0 {
            // Also when there are no fragments: the bytes in the file may not have reached the disk.
            let job = StageJob { segment, chunks: rope.from(0).collect(), end: length, created: true };
            folder.write(&job).map_err(|error| failure(&error))?;
        }
        state.recovered(segment, Rope::default(), length, length, false, objects || length == 0);
    }
    match folder {
        Some(folder) => folder.remove_strays(epoch, |segment| state.contains(segment)).map_err(|error| failure(&error)),
        None => Ok(()),
    }
}

/// Runs what may block off the executor.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match atoll_object::aside(work).await {
        Ok(result) => result,
        Err(error) => Err(BlobError::Io(format!("background work ended early: {error}"))),
    }
}
