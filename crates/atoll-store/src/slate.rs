//! SlateDB as a volume's store.
//!
//! `local`: SlateDB's own log is off; every commit goes to our [`Log`] and is
//! replayed over SlateDB when the volume is opened. `object`: SlateDB's log in
//! the object store, flushed when somebody waits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use atoll_keys::Keyring;
use atoll_object::ObjectRoot;
use atoll_types::{CommitSeq, Epoch};
use bytes::Bytes;
use futures_util::future::{join, try_join_all};
use object_store::path::Path;
use parking_lot::Mutex;
use slatedb::admin::AdminBuilder;
use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, FlushOptions, FlushType, ScanOptions, Settings, SstBlockSize,
};
use slatedb::db_cache::moka::{MokaCache, MokaCacheOptions};
use slatedb::db_cache::{DEFAULT_META_CACHE_CAPACITY, DbCache, SplitCache};
use slatedb::{CloneSourceSpec, Db, DbReadOps, ErrorKind, WriteBatch};
use tokio::sync::watch;

use crate::bind;
use crate::checkpoints::Checkpoints;
use crate::clock::{Clock, newest_ms};
use crate::garbage::{Collector, Hold};
use crate::log::{Log, LogFolder, Record};
use crate::{Batch, Checkpoint, KEY_MIN, Limits, Page, Precondition, Read, Result, Scan, Sealing, Store, StoreError};

/// Where SlateDB lies below the store's place.
const DATABASE: &str = "meta";
/// Keys of our own, before [`KEY_MIN`].
const APPLIED: &[u8] = b"\0applied";
const EPOCH: &[u8] = b"\0epoch";
/// Attempts of one request to the object store, beyond those of its client, a second apart at most; a day where the store
/// refuses at once. SlateDB is of no use after a request of its background work has failed.
pub(crate) const STORE_RETRIES_MAX: u32 = 100_000;
/// Keys that are looked for at a time.
const GETS_MAX: usize = 16;
/// SlateDB's memory is written out when its log has grown by so many objects: a start needs several requests for each. SlateDB itself
/// would wait for eight times as many.
const LOG_OBJECTS_MAX: u64 = 512;
/// The growing log file is finished at this size, in bytes.
const LOG_FILE_BYTES_MAX: u64 = 64 << 20;
/// A start that finds as much in earlier files has them covered, in bytes: each start makes a file, and one server after the other
/// may be killed before its own has grown.
const LOG_FOUND_BYTES_MAX: u64 = 16 << 20;
/// What a log says is applied in batches of this size, in bytes.
const REPLAYED_TOGETHER: usize = 8 << 20;
/// What is read of a table at once. The inodes of a directory's files, and its names, mostly lie together: a store of millions of
/// files answers the next lookup there without another read.
const BLOCK: SstBlockSize = SstBlockSize::Block16Kib;
/// Blocks that are kept in memory, in bytes; indexes and filters are kept beside them, up to 128 MiB.
const BLOCKS_KEPT_MAX: u64 = 384 << 20;
/// A scan reads this far ahead, in bytes: for each entry that is asked for …
const READ_AHEAD_ENTRY: usize = 256;
/// … and at most. A request for each block would take seconds where thousands follow each other.
const READ_AHEAD_MAX: usize = 1 << 20;
/// Requests at a time of a scan that reads so far ahead.
const READS_AT_ONCE: usize = 4;

/// Where a volume's metadata lies.
pub struct SlateConfig {
    pub root: ObjectRoot,
    /// The store's own place below `root`, one or more path segments. Stores that share objects have one root.
    pub place: String,
    /// Folder of the local log: durability `local`. `None`: durability `object`.
    pub log: Option<PathBuf>,
    /// Metadata in memory before it is written out, in bytes.
    pub memtable_bytes: usize,
    /// How often old objects are deleted. They are kept for at least two such intervals.
    pub garbage_interval: Duration,
    /// What it is encrypted with; a store is from its beginning on, or never.
    pub sealing: Option<Sealing>,
}

pub struct SlateStore {
    garbage: Collector,
    checkpoints: Checkpoints,
    shared: Arc<Shared>,
    view: View<Db>,
    epoch: u64,
}

/// What a running commit or flush keeps alive when its caller goes away.
struct Shared {
    db: Arc<Db>,
    next: AtomicU64,
    sealing: Option<Sealing>,
    /// One commit at a time: preconditions, order of the log and of SlateDB agree.
    commit: Arc<tokio::sync::Mutex<()>>,
    /// One flush at a time.
    flushing: Arc<tokio::sync::Mutex<()>>,
    durable: watch::Sender<u64>,
    logged: bool,
    /// Of SlateDB's log, since its memory was written out.
    log_objects: AtomicU64,
    /// Commits that wait for the log, in order.
    waiting: Mutex<Vec<Record>>,
    /// `None`: durability `object`, or the store let go of it.
    log: Mutex<Option<Log>>,
    /// Set for ever: what follows a commit whose fate is unknown cannot be promised.
    failed: Mutex<Option<StoreError>>,
}

pub(crate) fn db_error(error: slatedb::Error) -> StoreError {
    match error.kind() {
        ErrorKind::Closed(slatedb::CloseReason::Fenced) => StoreError::Fenced,
        ErrorKind::Closed(slatedb::CloseReason::Clean) => StoreError::Closed,
        ErrorKind::Data => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Io(error.to_string()),
    }
}

fn number(value: Option<Bytes>) -> Result<u64> {
    match value {
        None => Ok(0),
        Some(bytes) => {
            let bytes: [u8; 8] = bytes[..].try_into().map_err(|_| StoreError::Corrupt("counter".into()))?;
            Ok(u64::from_be_bytes(bytes))
        }
    }
}

impl SlateConfig {
    fn own(&self) -> ObjectRoot {
        self.root.child(&self.place)
    }

    fn database(&self) -> Path {
        database(&self.place)
    }

    fn open_log(&self) -> Result<Option<LogFolder>> {
        let keys = self.sealing.as_ref().map(|sealing| sealing.keys.clone());
        self.log.as_deref().map(|folder| LogFolder::open(folder, keys)).transpose()
    }
}

/// What was read of tables, in memory, up to so many bytes.
pub(crate) fn cache(max_capacity: u64) -> Arc<dyn DbCache> {
    Arc::new(MokaCache::new_with_opts(MokaCacheOptions { max_capacity, ..MokaCacheOptions::default() }))
}

/// What compaction replaces stays for as long as the garbage collection lets readers take.
fn compactor(garbage_interval: Duration) -> CompactorOptions {
    let mut options = CompactorOptions::default();
    options.checkpoint_lifetime = 2 * garbage_interval;
    options.poll_interval = options.poll_interval.min(garbage_interval);
    let mut worker = CompactionWorkerOptions::default();
    worker.compactions_poll_interval = worker.compactions_poll_interval.min(garbage_interval);
    options.worker = Some(worker);
    options
}

fn database(place: &str) -> Path {
    Path::from(format!("{place}/{DATABASE}"))
}

impl SlateStore {
    /// Make a store that begins as the one at `source`, with the same root, is at a checkpoint. It refers to that one's
    /// objects for as long as it likes: both the checkpoint and the source must outlive it. A crash leaves what
    /// [`SlateStore::remove`] and removing the place's objects clear.
    pub async fn branch(config: &SlateConfig, source: &str, checkpoint: &str) -> Result<()> {
        let checkpoints = Checkpoints::new(&config.root, database(source), config.sealing.clone());
        let from = checkpoints.existing(checkpoint).await?;
        let reader = checkpoints.read(checkpoint).await?;
        let applied = number(reader.get(APPLIED).await.map_err(db_error)?)?;
        reader.close().await.map_err(db_error)?;
        let log = config.open_log()?;
        if let Some(id) = bind::make(&config.own(), log.is_some()).await?
            && let Some(log) = log
        {
            log.start(id, applied)?;
        }
        let source = CloneSourceSpec::with_checkpoint(database(source), from.id);
        let admin = AdminBuilder::new(config.database(), config.root.store.clone()).build();
        admin.create_clone_builder_from_source(source).build().await.map_err(db_error)
    }

    /// What an encrypted store is sealed with.
    pub fn keys(&self) -> Option<Arc<Keyring>> {
        self.shared.sealing.as_ref().map(|sealing| sealing.keys.clone())
    }

    /// The checkpoints of a store that need not be open; none when there is no store.
    pub async fn checkpoints_at(root: &ObjectRoot, place: &str) -> Result<Vec<Checkpoint>> {
        let admin = AdminBuilder::new(database(place), root.store.clone()).build();
        match admin.read_manifest(None).await.map_err(db_error)? {
            Some(_) => Checkpoints::new(root, database(place), None).list().await,
            None => Ok(Vec::new()),
        }
    }

    /// Remove a store that is not open, with what it keeps of the one from which it was branched. Can be repeated.
    pub async fn remove(root: &ObjectRoot, place: &str) -> Result<()> {
        let admin = AdminBuilder::new(database(place), root.store.clone()).build();
        if admin.read_manifest(None).await.map_err(db_error)?.is_some() {
            admin.delete_db(true).await.map_err(db_error)?;
        }
        Ok(())
    }

    /// Claim the next epoch and replay what the log holds beyond SlateDB.
    pub async fn open(config: SlateConfig) -> Result<SlateStore> {
        SlateStore::open_behind(config, Epoch(0)).await
    }

    /// The same, with an epoch behind `before`: of a store that is to hold what epochs of another one have left.
    pub async fn open_behind(config: SlateConfig, before: Epoch) -> Result<SlateStore> {
        SlateStore::open_with(config, before, Arc::default()).await
    }

    async fn open_with(config: SlateConfig, before: Epoch, clock: Arc<Clock>) -> Result<SlateStore> {
        // The log first: it refuses a second server before SlateDB fences the first.
        let log = config.open_log()?;
        let own = config.own();
        let admin = AdminBuilder::new(config.database(), config.root.store.clone()).build();
        let (id, manifest) = join(bind::check(&own, DATABASE, log.as_ref()), admin.read_manifest(None)).await;
        let id = id?;
        // SlateDB may write tables before it is open.
        manifest.map_err(db_error)?.iter().for_each(|manifest| clock.must_be_at(newest_ms(manifest)));
        let settings = Settings {
            // What is read is never older than what the garbage collection keeps.
            manifest_poll_interval: Duration::from_secs(1).min(config.garbage_interval / 4),
            flush_interval: None,
            wal_enabled: log.is_none(),
            l0_sst_size_bytes: config.memtable_bytes,
            max_unflushed_bytes: config.memtable_bytes.saturating_mul(4),
            object_store_max_retries: Some(STORE_RETRIES_MAX),
            garbage_collector_options: None,
            compactor_options: Some(compactor(config.garbage_interval)),
            ..Settings::default()
        };
        let caches = SplitCache::new()
            .with_block_cache(Some(cache(BLOCKS_KEPT_MAX)))
            .with_meta_cache(Some(cache(DEFAULT_META_CACHE_CAPACITY)));
        let mut db = Db::builder(config.database(), config.root.store.clone())
            .with_settings(settings)
            .with_sst_block_size(BLOCK)
            .with_db_cache(Arc::new(caches), 0)
            .with_system_clock(clock.clone());
        if let Some(sealing) = &config.sealing {
            db = db.with_block_transformer(sealing.blocks());
        }
        let db = Arc::new(db.build().await.map_err(db_error)?);
        // Every commit has it, so it tells when the newest one was made, which may be in no table yet.
        let newest = db.get_key_value(APPLIED).await.map_err(db_error)?;
        newest.iter().for_each(|newest| clock.must_be_at(newest.create_ts));
        let applied = number(newest.map(|newest| newest.value))?;
        let mut epoch = number(db.get(EPOCH).await.map_err(db_error)?)?;
        let (log, records) = match log.zip(id) {
            Some((log, id)) => {
                let (log, records) = log.start(id, applied)?;
                (Some(log), records)
            }
            None => (None, Vec::new()),
        };
        let newest = records.last().map_or(applied, |record| record.seq);
        let found = last_writes(records);
        if let Some(value) = found.get(EPOCH) {
            epoch = number(value.clone())?;
        }
        if newest > applied {
            replay(&db, config.sealing.as_ref(), newest, found).await?;
        }
        epoch = epoch.max(before.0) + 1;
        // What SlateDB found in its own log is not known. It is written out if there is something.
        let is_long = log.as_ref().is_none_or(|log| log.found_bytes > LOG_FOUND_BYTES_MAX);
        let shared = Shared {
            db: db.clone(),
            next: AtomicU64::new(newest + 1),
            sealing: config.sealing.clone(),
            commit: Arc::default(),
            flushing: Arc::default(),
            durable: watch::channel(newest).0,
            logged: log.is_some(),
            log_objects: AtomicU64::new(0),
            waiting: Mutex::default(),
            log: Mutex::new(log),
            failed: Mutex::new(None),
        };
        let garbage = Collector::start(&config.root, config.database(), shared.logged, config.garbage_interval);
        let checkpoints = Checkpoints::new(&config.root, config.database(), config.sealing.clone());
        let view = View { reader: db, sealing: config.sealing, _hold: None };
        let store = SlateStore { garbage, checkpoints, shared: Arc::new(shared), view, epoch };
        let mut claim = Batch::default();
        claim.put(EPOCH, epoch.to_be_bytes().to_vec());
        let seq = store.order(claim).await?;
        store.durable(seq).await?;
        if is_long {
            store.shared.clone().cover();
        }
        Ok(store)
    }

    /// Commit a batch that is within the limits.
    async fn order(&self, batch: Batch) -> Result<CommitSeq> {
        let turn = self.shared.commit.clone().lock_owned().await;
        self.shared.check()?;
        for precondition in &batch.preconditions {
            let holds = match precondition {
                Precondition::Absent { key } => self.view.get(key).await?.is_none(),
                Precondition::Equals { key, value } => self.view.get(key).await?.as_ref() == Some(value),
            };
            if !holds {
                return Err(StoreError::Precondition);
            }
        }
        let shared = self.shared.clone();
        // A task of its own: a caller that goes away must not part SlateDB from the log.
        let ordered = tokio::spawn(async move {
            let _turn = turn;
            let seq = shared.next.load(Ordering::Acquire);
            apply(&shared.db, shared.sealing.as_ref(), seq, &batch).await.map_err(|error| shared.fail(error))?;
            if shared.logged {
                shared.waiting.lock().push(Record { seq, batch });
            }
            shared.next.store(seq + 1, Ordering::Release);
            Ok(CommitSeq(seq))
        });
        ordered.await.unwrap_or_else(|_| Err(self.shared.fail(StoreError::Closed)))
    }
}

impl Drop for SlateStore {
    /// Lets go of the log, so that the volume can be opened again.
    fn drop(&mut self) {
        self.shared.fail(StoreError::Closed);
        self.shared.log.lock().take();
    }
}

impl Shared {
    fn check(&self) -> Result<()> {
        self.failed.lock().clone().map_or(Ok(()), Err)
    }

    /// The first failure stays, and is returned. A full disk is none.
    fn fail(&self, error: StoreError) -> StoreError {
        if let StoreError::NoSpace(_) = error {
            return error;
        }
        self.failed.lock().get_or_insert(error).clone()
    }

    fn is_closed(&self) -> bool {
        matches!(*self.failed.lock(), Some(StoreError::Closed))
    }

    /// Write everything that waits; one call serves all who wait.
    async fn flush(self: Arc<Self>) -> Result<()> {
        self.check()?;
        if !self.logged {
            let newest = self.next.load(Ordering::Acquire) - 1;
            self.db.flush().await.map_err(db_error)?;
            self.durable.send_replace(newest);
            if self.log_objects.fetch_add(1, Ordering::Relaxed) + 1 >= LOG_OBJECTS_MAX {
                self.log_objects.store(0, Ordering::Relaxed);
                self.cover();
            }
            return Ok(());
        }
        let shared = self.clone();
        let full = atoll_object::aside(move || shared.append()).await.map_err(|_| StoreError::Closed)??;
        if full {
            self.cover();
        }
        Ok(())
    }

    /// Move what waits into the log. Answers whether a log file was finished.
    fn append(&self) -> Result<bool> {
        let mut log = self.log.lock();
        let Some(log) = log.as_mut() else { return Err(StoreError::Closed) };
        let mut records = std::mem::take(&mut *self.waiting.lock());
        let appended = log.append(&records);
        if matches!(appended, Err(StoreError::NoSpace(_))) {
            let mut waiting = self.waiting.lock();
            records.append(&mut waiting);
            *waiting = records;
        }
        appended?;
        let mut full = log.file_bytes >= LOG_FILE_BYTES_MAX;
        if full && let Err(error) = log.rotate() {
            // The file goes on growing.
            tracing::warn!(%error, "cannot start a log file; the next flush tries again");
            full = false;
        }
        self.durable.send_replace(log.synced);
        Ok(full)
    }

    /// Write SlateDB's memory out in the background, then drop the log files it covers.
    fn cover(self: Arc<Self>) {
        let newest = *self.durable.borrow();
        tokio::spawn(async move {
            if let Err(error) = self.db.flush_with_options(FlushOptions { flush_type: FlushType::MemTable }).await {
                if !self.is_closed() {
                    tracing::warn!(%error, "cannot write metadata out; the log keeps growing");
                }
                return;
            }
            if let Some(log) = self.log.lock().as_mut()
                && let Err(error) = log.trim(newest)
            {
                tracing::warn!(%error, "cannot remove covered log files");
            }
        });
    }
}

async fn apply(db: &Db, sealing: Option<&Sealing>, seq: u64, batch: &Batch) -> Result<()> {
    let mut writes = hidden(sealing, &batch.writes);
    writes.put(APPLIED, seq.to_be_bytes());
    db.write(writes).await.map(|_| ()).map_err(db_error)
}

fn hidden(sealing: Option<&Sealing>, writes: &[(Bytes, Option<Bytes>)]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for (key, value) in writes {
        let key = sealing.map_or_else(|| key.clone(), |sealing| sealing.hide(key));
        match value {
            Some(value) => batch.put(&key, value),
            None => batch.delete(&key),
        }
    }
    batch
}

/// The last of the writes to each key: most of what a log holds was written over or deleted since.
fn last_writes(records: Vec<Record>) -> BTreeMap<Bytes, Option<Bytes>> {
    records.into_iter().flat_map(|record| record.batch.writes).collect()
}

/// Apply what a log holds up to commit `newest`. A crash in between leaves a part of it with the old [`APPLIED`]: the next start does
/// all of it again.
async fn replay(db: &Db, sealing: Option<&Sealing>, newest: u64, found: BTreeMap<Bytes, Option<Bytes>>) -> Result<()> {
    let (mut part, mut bytes) = (Batch::default(), 0);
    for (key, value) in found {
        bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        part.writes.push((key, value));
        if bytes >= REPLAYED_TOGETHER {
            db.write(hidden(sealing, &part.writes)).await.map_err(db_error)?;
            (part, bytes) = Default::default();
        }
    }
    apply(db, sealing, newest, &part).await
}

async fn collect(mut iterator: slatedb::DbIterator, sealing: Option<&Sealing>, entries_max: usize) -> Result<Page> {
    let mut page = Page::default();
    while let Some(entry) = iterator.next().await.map_err(db_error)? {
        let key = sealing.map_or_else(|| Ok(entry.key.clone()), |sealing| sealing.reveal(entry.key.clone()))?;
        if page.entries.len() == entries_max {
            page.next = Some(key);
            break;
        }
        page.entries.push((key, entry.value));
    }
    Ok(page)
}

/// What callers see of SlateDB: our own keys are not there, and names not hidden.
struct View<R> {
    reader: Arc<R>,
    sealing: Option<Sealing>,
    /// Of an old version: what it refers to stays.
    _hold: Option<Hold>,
}

#[async_trait]
impl<R: DbReadOps + Send + Sync> Read for View<R> {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if key < KEY_MIN {
            return Ok(None);
        }
        match &self.sealing {
            None => self.reader.get(key).await,
            Some(sealing) => self.reader.get(sealing.hide(&Bytes::copy_from_slice(key))).await,
        }
        .map_err(db_error)
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let mut values = Vec::with_capacity(keys.len());
        for some in keys.chunks(GETS_MAX) {
            values.extend(try_join_all(some.iter().map(|key| self.get(key))).await?);
        }
        Ok(values)
    }

    async fn scan(&self, scan: Scan) -> Result<Page> {
        let start = self.sort_key(&scan.start.max(Bytes::from_static(KEY_MIN)));
        let end = self.sort_key(&scan.end);
        if start >= end {
            return Ok(Page::default());
        }
        let read_ahead_bytes = scan.entries_max.saturating_mul(READ_AHEAD_ENTRY).clamp(1, READ_AHEAD_MAX);
        let max_fetch_tasks = if read_ahead_bytes == READ_AHEAD_MAX { READS_AT_ONCE } else { 1 };
        let options = ScanOptions { read_ahead_bytes, max_fetch_tasks, cache_blocks: true, ..ScanOptions::default() };
        let iterator = self.reader.scan_with_options(start..end, &options).await.map_err(db_error)?;
        collect(iterator, self.sealing.as_ref(), scan.entries_max).await
    }

    fn sort_key(&self, key: &Bytes) -> Bytes {
        self.sealing.as_ref().map_or_else(|| key.clone(), |sealing| sealing.hide(key))
    }
}

#[async_trait]
impl Read for SlateStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.view.get(key).await
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.view.multi_get(keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Page> {
        self.view.scan(scan).await
    }

    fn sort_key(&self, key: &Bytes) -> Bytes {
        self.view.sort_key(key)
    }
}

#[async_trait]
impl Store for SlateStore {
    fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    fn limits(&self) -> Limits {
        Limits::DEFAULT
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>> {
        let (reader, sealing) = (self.shared.db.snapshot().map_err(db_error)?, self.shared.sealing.clone());
        Ok(Arc::new(View { reader, sealing, _hold: Some(self.garbage.hold()) }))
    }

    async fn commit(&self, batch: Batch) -> Result<CommitSeq> {
        self.limits().check(&batch)?;
        self.order(batch).await
    }

    async fn durable(&self, seq: CommitSeq) -> Result<()> {
        if self.shared.is_closed() {
            return Err(StoreError::Closed);
        }
        if seq.0 >= self.shared.next.load(Ordering::Acquire) {
            return Err(StoreError::Unordered(seq));
        }
        while *self.shared.durable.borrow() < seq.0 {
            // Those who come while one flush runs share the next one.
            let turn = self.shared.flushing.clone().lock_owned().await;
            if *self.shared.durable.borrow() >= seq.0 {
                break;
            }
            let shared = self.shared.clone();
            // A task of its own: a failure counts even when nobody waits any more.
            let flushed = tokio::spawn(async move {
                let _turn = turn;
                shared.clone().flush().await.map_err(|error| shared.fail(error))
            });
            flushed.await.unwrap_or_else(|_| Err(self.shared.fail(StoreError::Closed)))?;
        }
        Ok(())
    }

    fn durable_seq(&self) -> CommitSeq {
        CommitSeq(*self.shared.durable.borrow())
    }

    async fn checkpoint(&self, name: &str) -> Result<()> {
        // Nothing is committed meanwhile: SlateDB's own log would hold it beside the checkpoint, for a branch to find.
        let _turn = self.shared.commit.lock().await;
        self.shared.check()?;
        // What a log alone holds must not be behind what a checkpoint shows.
        let newest = self.shared.next.load(Ordering::Acquire) - 1;
        self.durable(CommitSeq(newest)).await?;
        self.checkpoints.create(&self.shared.db, name).await
    }

    async fn copy_checkpoint(&self, source: &str, name: &str) -> Result<()> {
        self.checkpoints.copy(source, name).await
    }

    async fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        self.checkpoints.list().await
    }

    async fn at(&self, name: &str) -> Result<Arc<dyn Read>> {
        let reader = Arc::new(self.checkpoints.read(name).await?);
        Ok(Arc::new(View { reader, sealing: self.shared.sealing.clone(), _hold: None }))
    }

    async fn delete_checkpoint(&self, name: &str) -> Result<()> {
        self.checkpoints.delete(name).await
    }

    async fn close(&self) -> Result<()> {
        let _turn = self.shared.commit.lock().await;
        if self.shared.is_closed() {
            return Ok(());
        }
        let newest = self.shared.next.load(Ordering::Acquire) - 1;
        let flushed = self.durable(CommitSeq(newest)).await;
        let closed = self.shared.db.close().await.map_err(db_error);
        *self.shared.failed.lock() = Some(StoreError::Closed);
        self.shared.log.lock().take();
        flushed.and(closed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use atoll_object::ObjectOptions;
    use futures_util::FutureExt;
    use slatedb_common::clock::SystemClock;

    use super::*;

    fn put(key: &'static str) -> Batch {
        let mut batch = Batch::default();
        batch.put(key, "value");
        batch
    }

    fn config(folder: &std::path::Path, has_log: bool) -> SlateConfig {
        let url = format!("file://{}/objects", folder.display());
        SlateConfig {
            root: atoll_object::open(&url, &ObjectOptions::default()).unwrap(),
            place: "store".into(),
            log: has_log.then(|| folder.join("log")),
            memtable_bytes: 1 << 20,
            garbage_interval: Duration::from_secs(300),
            sealing: None,
        }
    }

    #[tokio::test]
    async fn a_start_reads_a_bounded_number_of_log_objects() {
        let folder = tempfile::tempdir().unwrap();
        let store = SlateStore::open(config(folder.path(), false)).await.unwrap();
        for _ in 0..2 * LOG_OBJECTS_MAX {
            let seq = store.commit(put("key")).await.unwrap();
            store.durable(seq).await.unwrap();
        }
        // As it is left by a crash.
        let config = config(folder.path(), false);
        let admin = AdminBuilder::new(config.database(), config.root.store.clone()).build();
        let is_covered = async {
            while admin.read_manifest(None).await.unwrap().unwrap().replay_after_wal_id() < LOG_OBJECTS_MAX {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), is_covered).await.expect("the older half is in tables");
        drop(store);
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_stops_neither_commits_nor_tables() {
        const DAY_MS: i64 = 86_400_000;
        for has_log in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let ahead = Arc::new(Clock::default());
            ahead.must_be_at(ahead.now().timestamp_millis() + DAY_MS);
            for clock in [ahead, Arc::default()] {
                let config = config(folder.path(), has_log);
                let store = SlateStore::open_with(config, Epoch(0), clock.clone()).await.unwrap();
                let seq = store.commit(put("key")).await.unwrap();
                store.durable(seq).await.unwrap();
                if store.epoch == 1 {
                    // The newest table is younger than the newest commit.
                    clock.must_be_at(clock.now().timestamp_millis() + DAY_MS);
                }
                let table = store.shared.db.flush_with_options(FlushOptions { flush_type: FlushType::MemTable });
                tokio::time::timeout(Duration::from_secs(20), table).await.expect("a table is written").unwrap();
                store.close().await.unwrap();
            }
        }
    }

    /// After a failed write or sync the kernel may have dropped the pages: the next
    /// sync that succeeds says nothing about them.
    #[tokio::test]
    async fn a_failed_log_write_is_never_followed_by_a_promise() {
        let folder = tempfile::tempdir().unwrap();
        let config = || config(folder.path(), true);
        let store = SlateStore::open(config()).await.unwrap();
        let kept = store.commit(put("kept")).await.unwrap();
        store.durable(kept).await.unwrap();
        let lost = store.commit(put("lost")).await.unwrap();
        let good = store.shared.log.lock().as_mut().unwrap().break_file();
        // The caller that would learn of it goes away at once.
        assert!(store.durable(lost).now_or_never().is_none());
        let failed = async {
            while store.shared.check().is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), failed).await.expect("the failure went unseen");
        store.shared.log.lock().as_mut().unwrap().mend_file(good);
        assert!(matches!(store.durable(lost).await, Err(StoreError::Io(_))));
        assert!(matches!(store.commit(put("later")).await, Err(StoreError::Io(_))));
        store.durable(kept).await.unwrap();
        drop(store);
        let store = SlateStore::open(config()).await.unwrap();
        assert!(store.get(b"kept").await.unwrap().is_some());
        assert!(store.get(b"later").await.unwrap().is_none());
    }
}
