//! SlateDB as a volume's store.
//!
//! `local`: SlateDB's own log is off; every commit goes to our [`Log`] and is
//! replayed over SlateDB when the volume is opened. `object`: SlateDB's log in
//! the object store, flushed when somebody waits.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use atoll_object::ObjectRoot;
use atoll_types::{CommitSeq, Epoch};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use slatedb::config::{FlushOptions, FlushType, Settings};
use slatedb::{Db, ErrorKind, WriteBatch};
use tokio::sync::watch;

use crate::log::{self, Log};
use crate::{Batch, Limits, Page, Precondition, Read, Result, Scan, Store, StoreError};

/// Keys of our own; volumes use others.
const APPLIED: &[u8] = b"\0applied";
const EPOCH: &[u8] = b"\0epoch";
/// The growing log file is finished at this size, in bytes.
const LOG_FILE_BYTES_MAX: u64 = 64 << 20;

/// Where a volume's metadata lies.
pub struct SlateConfig {
    pub root: ObjectRoot,
    /// Folder of the local log: durability `local`. `None`: durability `object`.
    pub log: Option<PathBuf>,
    /// Metadata in memory before it is written out, in bytes.
    pub memtable_bytes: usize,
}

pub struct SlateStore {
    db: Arc<Db>,
    epoch: u64,
    next: AtomicU64,
    /// One commit at a time: preconditions, order of the log and of SlateDB agree.
    commit: tokio::sync::Mutex<()>,
    queue: Arc<Queue>,
    durable: watch::Sender<u64>,
    flushing: tokio::sync::Mutex<()>,
}

/// Encoded commits that wait for the log.
struct Queue {
    log: Option<Mutex<Log>>,
    waiting: Mutex<(BytesMut, u64)>,
    failed: Mutex<Option<StoreError>>,
}

fn db_error(error: slatedb::Error) -> StoreError {
    match error.kind() {
        ErrorKind::Closed(slatedb::CloseReason::Fenced) => StoreError::Fenced,
        ErrorKind::Closed(_) => StoreError::Closed,
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

impl SlateStore {
    /// Claim the next epoch and replay what the log holds beyond SlateDB.
    pub async fn open(config: SlateConfig) -> Result<SlateStore> {
        let settings = Settings {
            flush_interval: None,
            wal_enabled: config.log.is_none(),
            l0_sst_size_bytes: config.memtable_bytes,
            max_unflushed_bytes: config.memtable_bytes.saturating_mul(4),
            object_store_max_retries: Some(8),
            garbage_collector_options: None,
            ..Settings::default()
        };
        let db = Db::builder("meta", config.root.store.clone()).with_settings(settings).build().await;
        let db = Arc::new(db.map_err(db_error)?);
        let applied = number(db.get(APPLIED).await.map_err(db_error)?)?;
        let epoch = number(db.get(EPOCH).await.map_err(db_error)?)?;
        let (log, records) = match &config.log {
            Some(folder) => {
                let (log, records) = Log::open(folder, applied)?;
                (Some(Mutex::new(log)), records)
            }
            None => (None, Vec::new()),
        };
        let mut newest = applied;
        let mut logged_epoch = epoch;
        for record in records {
            for (key, value) in &record.batch.writes {
                if key[..] == *EPOCH {
                    logged_epoch = number(value.clone())?;
                }
            }
            newest = record.seq;
            apply(&db, record.seq, &record.batch).await?;
        }
        let (durable, _) = watch::channel(newest);
        let store = SlateStore {
            db,
            epoch: logged_epoch + 1,
            next: AtomicU64::new(newest + 1),
            commit: tokio::sync::Mutex::new(()),
            queue: Arc::new(Queue { log, waiting: Mutex::default(), failed: Mutex::new(None) }),
            durable,
            flushing: tokio::sync::Mutex::new(()),
        };
        let mut claim = Batch::default();
        claim.put(EPOCH, store.epoch.to_be_bytes().to_vec());
        let seq = store.commit(claim).await?;
        store.durable(seq).await?;
        Ok(store)
    }

    async fn holds(&self, precondition: &Precondition) -> Result<bool> {
        Ok(match precondition {
            Precondition::Absent { key } => Read::get(self, key).await?.is_none(),
            Precondition::Equals { key, value } => Read::get(self, key).await?.as_ref() == Some(value),
        })
    }

    /// Write everything queued; one call serves all who wait.
    async fn flush(&self) -> Result<()> {
        if let Some(error) = self.queue.failed.lock().clone() {
            return Err(error);
        }
        if self.queue.log.is_none() {
            let newest = self.next.load(Ordering::Acquire) - 1;
            self.db.flush().await.map_err(db_error)?;
            self.durable.send_replace(newest);
            return Ok(());
        }
        let queue = self.queue.clone();
        let write = move || -> Result<(u64, bool)> {
            let Some(log) = &queue.log else { return Err(StoreError::Closed) };
            let mut log = log.lock();
            let (bytes, newest) = {
                let mut waiting = queue.waiting.lock();
                (waiting.0.split(), waiting.1)
            };
            log.append(&bytes)?;
            let full = log.file_bytes >= LOG_FILE_BYTES_MAX;
            if full {
                log.rotate(newest)?;
            }
            Ok((newest, full))
        };
        let written = tokio::task::spawn_blocking(write).await.map_err(|_| StoreError::Closed)?;
        let (newest, full) = written.inspect_err(|error| *self.queue.failed.lock() = Some(error.clone()))?;
        self.durable.send_replace(newest);
        if full {
            self.cover(newest);
        }
        Ok(())
    }

    /// Write SlateDB's memory out in the background, then drop the log files it covers.
    fn cover(&self, newest: u64) {
        let (db, queue) = (self.db.clone(), self.queue.clone());
        tokio::spawn(async move {
            if let Err(error) = db.flush_with_options(FlushOptions { flush_type: FlushType::MemTable }).await {
                tracing::warn!(%error, "cannot write metadata out; the log keeps growing");
                return;
            }
            if let Some(log) = &queue.log
                && let Err(error) = log.lock().trim(newest)
            {
                tracing::warn!(%error, "cannot remove covered log files");
            }
        });
    }
}

async fn apply(db: &Db, seq: u64, batch: &Batch) -> Result<()> {
    let mut writes = WriteBatch::new();
    for (key, value) in &batch.writes {
        match value {
            Some(value) => writes.put(key, value),
            None => writes.delete(key),
        }
    }
    writes.put(APPLIED, seq.to_be_bytes());
    db.write(writes).await.map(|_| ()).map_err(db_error)
}

async fn collect(mut iterator: slatedb::DbIterator, scan: &Scan) -> Result<Page> {
    let mut page = Page::default();
    while let Some(entry) = iterator.next().await.map_err(db_error)? {
        if page.entries.len() == scan.entries_max {
            page.next = Some(entry.key);
            break;
        }
        page.entries.push((entry.key, entry.value));
    }
    Ok(page)
}

struct View(Arc<slatedb::DbSnapshot>);

#[async_trait]
impl Read for View {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.0.get(key).await.map_err(db_error)
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(self.get(key).await?);
        }
        Ok(values)
    }

    async fn scan(&self, scan: Scan) -> Result<Page> {
        if scan.start >= scan.end {
            return Ok(Page::default());
        }
        let iterator = self.0.scan(scan.start.clone()..scan.end.clone()).await.map_err(db_error)?;
        collect(iterator, &scan).await
    }
}

#[async_trait]
impl Read for SlateStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.db.get(key).await.map_err(db_error)
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(Read::get(self, key).await?);
        }
        Ok(values)
    }

    async fn scan(&self, scan: Scan) -> Result<Page> {
        if scan.start >= scan.end {
            return Ok(Page::default());
        }
        let iterator = self.db.scan(scan.start.clone()..scan.end.clone()).await.map_err(db_error)?;
        collect(iterator, &scan).await
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
        Ok(Arc::new(View(self.db.snapshot().map_err(db_error)?)))
    }

    async fn commit(&self, batch: Batch) -> Result<CommitSeq> {
        self.limits().check(&batch)?;
        let _turn = self.commit.lock().await;
        if let Some(error) = self.queue.failed.lock().clone() {
            return Err(error);
        }
        for precondition in &batch.preconditions {
            if !self.holds(precondition).await? {
                return Err(StoreError::Precondition);
            }
        }
        let seq = self.next.load(Ordering::Acquire);
        apply(&self.db, seq, &batch).await?;
        if self.queue.log.is_some() {
            let mut waiting = self.queue.waiting.lock();
            log::encode(seq, &batch, &mut waiting.0);
            waiting.1 = seq;
        }
        self.next.store(seq + 1, Ordering::Release);
        Ok(CommitSeq(seq))
    }

    async fn durable(&self, seq: CommitSeq) -> Result<()> {
        while *self.durable.borrow() < seq.0 {
            // Those who come while one flush runs share the next one.
            let _turn = self.flushing.lock().await;
            if *self.durable.borrow() < seq.0 {
                self.flush().await?;
            }
        }
        Ok(())
    }

    fn durable_seq(&self) -> CommitSeq {
        CommitSeq(*self.durable.borrow())
    }

    async fn close(&self) -> Result<()> {
        let newest = self.next.load(Ordering::Acquire) - 1;
        self.durable(CommitSeq(newest)).await?;
        self.db.close().await.map_err(db_error)?;
        *self.queue.failed.lock() = Some(StoreError::Closed);
        Ok(())
    }
}
