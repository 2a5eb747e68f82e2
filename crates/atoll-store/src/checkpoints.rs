//! Named checkpoints of SlateDB: what we keep, beside those of the [garbage collection](crate::garbage), which have no
//! name.

use atoll_object::ObjectRoot;
use object_store::path::Path;
use slatedb::admin::{Admin, AdminBuilder};
use slatedb::config::{CheckpointOptions, CheckpointScope, DbReaderOptions};
use slatedb::{Db, DbReader, DbReaderMode};

use crate::slate::{STORE_RETRIES_MAX, cache, db_error};
use crate::{Checkpoint, Result, Sealing, StoreError};

/// Memory for what one reader has decoded, in bytes.
const CACHE_BYTES_MAX: u64 = 32 << 20;

pub(crate) struct Checkpoints {
    root: ObjectRoot,
    path: Path,
    admin: Admin,
    sealing: Option<Sealing>,
    /// One at a time: names stay unique.
    turn: tokio::sync::Mutex<()>,
}

impl Checkpoints {
    /// Without `sealing` none of an encrypted store can be read; they are listed, made and deleted all the same.
    pub fn new(root: &ObjectRoot, path: Path, sealing: Option<Sealing>) -> Self {
        let admin = AdminBuilder::new(path.clone(), root.store.clone()).build();
        Checkpoints { root: root.clone(), path, admin, sealing, turn: tokio::sync::Mutex::default() }
    }

    async fn named(&self, name: &str) -> Result<Option<slatedb::Checkpoint>> {
        let mut found = self.admin.list_checkpoints(Some(name)).await.map_err(db_error)?;
        Ok(found.pop())
    }

    pub async fn existing(&self, name: &str) -> Result<slatedb::Checkpoint> {
        self.named(name).await?.ok_or_else(|| StoreError::CheckpointMissing(name.to_owned()))
    }

    async fn check_free(&self, name: &str) -> Result<()> {
        match self.named(name).await? {
            Some(_) => Err(StoreError::CheckpointExists(name.to_owned())),
            None => Ok(()),
        }
    }

    pub async fn create(&self, db: &Db, name: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.check_free(name).await?;
        let options = CheckpointOptions { name: Some(name.to_owned()), ..CheckpointOptions::default() };
        db.create_checkpoint(CheckpointScope::All, &options).await.map_err(db_error)?;
        Ok(())
    }

    /// Keep what another checkpoint keeps.
    pub async fn copy(&self, source: &str, name: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.check_free(name).await?;
        let source = Some(self.existing(source).await?.id);
        let options = CheckpointOptions { name: Some(name.to_owned()), source, lifetime: None };
        self.admin.create_detached_checkpoint(&options).await.map_err(db_error)?;
        Ok(())
    }

    pub async fn list(&self) -> Result<Vec<Checkpoint>> {
        let all = self.admin.list_checkpoints(None).await.map_err(db_error)?;
        let mut named: Vec<_> = all
            .into_iter()
            .filter_map(|found| Some((found.create_time, found.name.filter(|name| !name.is_empty())?)))
            .collect();
        // Those of one second stay in the order in which they were made.
        named.sort_by_key(|(time, _)| *time);
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        Ok(named.into_iter().map(|(time, name)| Checkpoint { name, created: seconds(time.timestamp()) }).collect())
    }

    pub async fn read(&self, name: &str) -> Result<DbReader> {
        let found = self.existing(name).await?;
        let options = DbReaderOptions {
            // It holds everything in tables: its making has seen to that.
            skip_wal_replay: true,
            object_store_max_retries: Some(STORE_RETRIES_MAX),
            ..DbReaderOptions::default()
        };
        let mut reader = DbReader::builder(self.path.clone(), self.root.store.clone())
            .with_reader_mode(DbReaderMode::Checkpoint(found.id))
            .with_options(options)
            .with_db_cache(cache(CACHE_BYTES_MAX), 0);
        if let Some(sealing) = &self.sealing {
            reader = reader.with_block_transformer(sealing.blocks());
        }
        reader.build().await.map_err(db_error)
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        let found = self.existing(name).await?;
        self.admin.delete_checkpoint(found.id).await.map_err(db_error)
    }
}
