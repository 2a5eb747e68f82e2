//! A version of a store, as a store that nobody can change.

use std::sync::Arc;

use async_trait::async_trait;
use atoll_types::{CommitSeq, Epoch};
use bytes::Bytes;

use crate::{Batch, Checkpoint, Limits, Page, Read, Result, Scan, Store, StoreError};

pub struct Frozen {
    view: Arc<dyn Read>,
    epoch: Epoch,
}

impl Frozen {
    /// What `view` shows, for the authority of this epoch.
    pub fn new(view: Arc<dyn Read>, epoch: Epoch) -> Self {
        Frozen { view, epoch }
    }
}

#[async_trait]
impl Read for Frozen {
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
impl Store for Frozen {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn limits(&self) -> Limits {
        Limits::DEFAULT
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>> {
        Ok(self.view.clone())
    }

    async fn commit(&self, _: Batch) -> Result<CommitSeq> {
        Err(StoreError::ReadOnly)
    }

    async fn durable(&self, seq: CommitSeq) -> Result<()> {
        Err(StoreError::Unordered(seq))
    }

    fn durable_seq(&self) -> CommitSeq {
        CommitSeq(0)
    }

    async fn checkpoint(&self, _: &str) -> Result<()> {
        Err(StoreError::ReadOnly)
    }

    async fn copy_checkpoint(&self, _: &str, _: &str) -> Result<()> {
        Err(StoreError::ReadOnly)
    }

    async fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        Ok(Vec::new())
    }

    async fn at(&self, name: &str) -> Result<Arc<dyn Read>> {
        Err(StoreError::CheckpointMissing(name.to_owned()))
    }

    async fn delete_checkpoint(&self, _: &str) -> Result<()> {
        Err(StoreError::ReadOnly)
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
