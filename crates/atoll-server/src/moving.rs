//! Exports and imports: a volume's metadata goes to a file and comes from one; its bytes are read from where they lie, and
//! written again.
//!
//! An import lives on its client's connection until the volume is there. What one leaves that was cut off is a claim on
//! the name, and objects; the next attempt to make a volume of that name clears both.

use std::sync::Arc;

use atoll_object::{ObjectOptions, ObjectRoot};
use atoll_store::{Batch, SlateStore, Store};
use atoll_types::Epoch;
use atoll_volume::fsck::Watch;
use atoll_volume::{Imported, Volume, VolumeError};
use atoll_wire::Exported;
use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;

use crate::registry::{Record, Registry, compression_named, durability_named, new_id};
use crate::{names, snapshots};

type Result<T> = std::result::Result<T, String>;

/// Keys and values in one answer, in bytes: with the largest value it still fits in a frame.
const RECORDS_BYTES: usize = 512 << 10;

/// A volume that is being made of an export. Nobody else makes one of the name meanwhile.
pub(crate) struct Import {
    name: String,
    record: Record,
    imported: Imported,
    store: Arc<SlateStore>,
    /// Below it lie the bytes.
    others: ObjectRoot,
    slot: OwnedMutexGuard<Option<Volume>>,
}

impl Import {
    fn text(&self) -> impl Fn(VolumeError) -> String {
        |error| format!("volume `{}`: {error}", self.name)
    }

    pub async fn add(&self, records: Vec<(Bytes, Bytes)>) -> Result<()> {
        let mut batch = Batch::default();
        for record in &records {
            if let Some((key, value)) = atoll_volume::import(record, &self.imported).map_err(self.text())? {
                batch.put(key, value);
            }
        }
        self.store.commit(batch).await.map(drop).map_err(|error| self.text()(error.into()))
    }

    /// Make everything the volume's own, if it is whole.
    async fn draw_in(&self, volume: &Volume, watch: Watch<'_>) -> Result<u64> {
        let report = volume.check(false, watch).await.map_err(self.text())?;
        if let Some(finding) = report.findings.first() {
            let problems: u64 = report.problems.values().sum();
            return Err(format!(
                "{problems} problems in what was imported, the first: {}; its bytes are looked for below {}, and those of a \
                 snapshot go when it is deleted",
                finding.text, self.others.url
            ));
        }
        volume.draw_in(watch).await.map_err(self.text())
    }
}

impl Registry {
    /// Have uploaded what a snapshot refers to, and tell where that is.
    pub async fn export(&self, volume: &str, snapshot: &str) -> Result<Exported> {
        let record = self.record(volume)?;
        if record.encrypted {
            return Err(format!(
                "volume `{volume}` is encrypted, and an export is not: clone it, or copy its files to another volume"
            ));
        }
        let whole = self.get_volume(volume).await?;
        let text = snapshots::text(volume, snapshot);
        // That it is there, before anything is waited for.
        whole.records(snapshot, None, 1).await.map_err(&text)?;
        self.check_without_links(volume, &whole).await?;
        let then = whole.at_snapshot(snapshot).await.map_err(text)?;
        self.check_without_links(&format!("{volume}@{snapshot}"), &then).await?;
        whole.blob().upload().await.map_err(|error| format!("volume `{volume}`: {error}"))?;
        Ok(Exported {
            volume: volume.to_owned(),
            store: self.store_url().to_owned(),
            durability: record.durability()?.name().to_owned(),
            compression: whole.settings().compression.name().to_owned(),
            epoch: whole.epoch().0,
        })
    }

    pub async fn export_records(
        &self,
        volume: &str,
        snapshot: &str,
        from: Option<Bytes>,
    ) -> Result<(Vec<(Bytes, Bytes)>, Option<Bytes>)> {
        if self.record(volume)?.encrypted {
            return Err(format!("volume `{volume}` is encrypted"));
        }
        let records = self.get_volume(volume).await?.records(snapshot, from, RECORDS_BYTES).await;
        records.map_err(snapshots::text(volume, snapshot))
    }

    /// Begin a volume of what an export says.
    pub async fn import(
        &self,
        name: &str,
        durability: &str,
        compression: &str,
        encrypt: bool,
        source: Exported,
    ) -> Result<Import> {
        names::check("volume", name)?;
        names::check("volume", &source.volume)?;
        let durability = durability_named(durability)?;
        let compression = compression_named(compression)?;
        if source.epoch >= u64::from(u32::MAX) {
            return Err(format!("epoch {} is none of a volume", source.epoch));
        }
        if let Some(folder) = source.store.strip_prefix("file://")
            && !std::path::Path::new(folder).is_dir()
        {
            return Err(format!("{}: no such folder here: `--store` names where the bytes lie", source.store));
        }
        let others =
            atoll_object::open(&source.store, &ObjectOptions::from_env()).map_err(|error| error.to_string())?;
        let busy = |_| format!("volume `{name}` is just being made");
        let slot = self.slot(name).try_lock_owned().map_err(busy)?;
        if self.record(name).is_ok() {
            return Err(format!("volume `{name}` exists already"));
        }
        let newest = Epoch(source.epoch);
        let imported = Imported { id: new_id()?, durability, compression, source: source.volume, newest };
        let record = self.claim_new(name, durability, imported.id, encrypt).await?;
        let store = self.open_store_behind(name, &record, newest).await?;
        Ok(Import { name: name.to_owned(), record, imported, store, others, slot })
    }

    /// Check what was imported, and write the bytes again that it refers to. Answers with its inodes and bytes.
    pub async fn end_import(&self, mut import: Import, watch: Watch<'_>) -> Result<(u64, u64)> {
        let name = import.name.clone();
        let text = |error: VolumeError| format!("volume `{name}`: {error}");
        let Import { name, record, imported: Imported { durability, .. }, store, others, .. } = &import;
        let volume = self.open_volume_below(others, name, *durability, store.clone()).await?;
        let drawn = import.draw_in(&volume, watch).await;
        let inodes = volume.report().inodes;
        let closed = volume.close().await;
        let bytes = drawn?;
        closed.map_err(&text)?;
        let store = self.open_store(name, record).await?;
        atoll_volume::settle(&*store).await.map_err(&text)?;
        let volume = self.open_volume(name, *durability, store).await?;
        // Last: a volume without it was never made.
        self.keep_record(name, record)?;
        self.start_links(&volume);
        *import.slot = Some(volume);
        Ok((inodes, bytes))
    }
}
