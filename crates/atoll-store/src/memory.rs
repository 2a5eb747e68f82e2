//! A store in memory, for tests: the medium outlives the authority, so that
//! reopening and fencing can be tried.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use atoll_types::{CommitSeq, Epoch};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::{Batch, Checkpoint, Limits, Page, Precondition, Read, Result, Scan, Store, StoreError};

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Default)]
struct Medium {
    map: Map,
    epoch: u64,
    seq: u64,
    checkpoints: Vec<(Checkpoint, Map)>,
}

impl Medium {
    fn kept(&self, name: &str) -> Result<&Map> {
        let found = self.checkpoints.iter().find(|(known, _)| known.name == name);
        found.map(|(_, map)| map).ok_or_else(|| StoreError::CheckpointMissing(name.to_owned()))
    }

    fn keep(&mut self, name: &str, map: Map) -> Result<()> {
        if self.kept(name).is_ok() {
            return Err(StoreError::CheckpointExists(name.to_owned()));
        }
        let created = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        self.checkpoints.push((Checkpoint { name: name.to_owned(), created }, map));
        Ok(())
    }
}

/// What survives a [`MemoryStore`].
#[derive(Clone, Default)]
pub struct MemoryMedium(Arc<Mutex<Medium>>);

impl MemoryMedium {
    pub fn new() -> Self {
        Self::default()
    }
}

pub struct MemoryStore {
    medium: MemoryMedium,
    epoch: u64,
    closed: Mutex<bool>,
}

impl MemoryStore {
    /// Claims the next epoch; stores opened before are fenced.
    pub fn open(medium: &MemoryMedium) -> Self {
        let mut inner = medium.0.lock();
        inner.epoch += 1;
        MemoryStore { medium: medium.clone(), epoch: inner.epoch, closed: Mutex::new(false) }
    }

    fn check(&self) -> Result<()> {
        if *self.closed.lock() { Err(StoreError::Closed) } else { Ok(()) }
    }
}

fn page(map: &Map, scan: &Scan) -> Page {
    if scan.start >= scan.end {
        return Page::default();
    }
    let mut range = map.range::<Bytes, _>((Bound::Included(&scan.start), Bound::Excluded(&scan.end)));
    let entries = range.by_ref().take(scan.entries_max).map(|(k, v)| (k.clone(), v.clone())).collect();
    Page { entries, next: range.next().map(|(key, _)| key.clone()) }
}

#[async_trait]
impl Read for Map {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(BTreeMap::get(self, key).cloned())
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        Ok(keys.iter().map(|key| BTreeMap::get(self, key).cloned()).collect())
    }

    async fn scan(&self, scan: Scan) -> Result<Page> {
        Ok(page(self, &scan))
    }
}

#[async_trait]
impl Read for MemoryStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.check()?;
        Ok(self.medium.0.lock().map.get(key).cloned())
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        self.check()?;
        let medium = self.medium.0.lock();
        Ok(keys.iter().map(|key| medium.map.get(key).cloned()).collect())
    }

    async fn scan(&self, scan: Scan) -> Result<Page> {
        self.check()?;
        Ok(page(&self.medium.0.lock().map, &scan))
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    fn limits(&self) -> Limits {
        Limits::DEFAULT
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>> {
        self.check()?;
        Ok(Arc::new(self.medium.0.lock().map.clone()))
    }

    async fn commit(&self, batch: Batch) -> Result<CommitSeq> {
        self.check()?;
        self.limits().check(&batch)?;
        let mut medium = self.medium.0.lock();
        if medium.epoch != self.epoch {
            return Err(StoreError::Fenced);
        }
        let holds = batch.preconditions.iter().all(|precondition| match precondition {
            Precondition::Absent { key } => !medium.map.contains_key(key),
            Precondition::Equals { key, value } => medium.map.get(key) == Some(value),
        });
        if !holds {
            return Err(StoreError::Precondition);
        }
        for (key, value) in batch.writes {
            match value {
                Some(value) => medium.map.insert(key, value),
                None => medium.map.remove(&key),
            };
        }
        medium.seq += 1;
        Ok(CommitSeq(medium.seq))
    }

    async fn durable(&self, seq: CommitSeq) -> Result<()> {
        self.check()?;
        if seq.0 > self.medium.0.lock().seq { Err(StoreError::Unordered(seq)) } else { Ok(()) }
    }

    fn durable_seq(&self) -> CommitSeq {
        CommitSeq(self.medium.0.lock().seq)
    }

    async fn checkpoint(&self, name: &str) -> Result<()> {
        self.check()?;
        let mut medium = self.medium.0.lock();
        let map = medium.map.clone();
        medium.keep(name, map)
    }

    async fn copy_checkpoint(&self, source: &str, name: &str) -> Result<()> {
        let mut medium = self.medium.0.lock();
        let map = medium.kept(source)?.clone();
        medium.keep(name, map)
    }

    async fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        Ok(self.medium.0.lock().checkpoints.iter().map(|(known, _)| known.clone()).collect())
    }

    async fn at(&self, name: &str) -> Result<Arc<dyn Read>> {
        Ok(Arc::new(self.medium.0.lock().kept(name)?.clone()))
    }

    async fn delete_checkpoint(&self, name: &str) -> Result<()> {
        let mut medium = self.medium.0.lock();
        let at = medium.checkpoints.iter().position(|(known, _)| known.name == name);
        medium.checkpoints.remove(at.ok_or_else(|| StoreError::CheckpointMissing(name.to_owned()))?);
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        *self.closed.lock() = true;
        Ok(())
    }
}
