//! The metadata of a volume, outside its store: read record by record at a snapshot, and made a volume again elsewhere.
//!
//! An import begins as a clone does, with segments that are another volume's. Then it has its bytes written again as its
//! own ([`Volume::draw_in`]), and in the end nothing of the other one is needed ([`settle`]). Records are not trusted: each
//! is decoded before it is written, and what they make together is checked before anybody sees it.
//!
//! A crash leaves a store that no record of a volume names; who makes a volume of the name clears it.

use atoll_blob::Compression;
use atoll_store::{Batch, Scan, Store};
use atoll_types::{Epoch, InodeId, SegmentId};
use bytes::Bytes;

use crate::compaction::{MOVED_BYTES_MAX, MOVED_MAX, Moving};
use crate::cursor::Cursor;
use crate::error::VolumeError;
use crate::format::{self, Ancestor, Durability, SegmentRecord, SegmentState, VolumeSettings};
use crate::fsck::{Progress, Watch};
use crate::volume::{Volume, scan_all, settings};

/// Key and value of the volume's store.
pub type Record = (Bytes, Bytes);

/// What an imported volume is to be, beside what its records say.
#[derive(Clone, Debug)]
pub struct Imported {
    pub id: u128,
    pub durability: Durability,
    pub compression: Compression,
    /// The volume that the records are of …
    pub source: String,
    /// … and its newest epoch.
    pub newest: Epoch,
}

impl Volume {
    /// The epoch up to which segments that a snapshot refers to may be.
    pub fn epoch(&self) -> Epoch {
        self.inner.shared.store.epoch()
    }

    /// Records of a snapshot from a key on, of about so many bytes and at least one, and where the next ones start. What a
    /// server needs to go on after a crash is not among them.
    pub async fn records(
        &self,
        snapshot: &str,
        from: Option<Bytes>,
        bytes: usize,
    ) -> Result<(Vec<Record>, Option<Bytes>), VolumeError> {
        let view = self.snapshot_view(snapshot).await?;
        let (first, end) = format::everything();
        let mut rest = Some(from.unwrap_or(first));
        let (mut records, mut taken) = (Vec::new(), 0);
        while let Some(start) = rest.take() {
            let page = view.scan(Scan { start, end: end.clone(), entries_max: 1024 }).await?;
            rest = page.next;
            for (key, value) in page.entries {
                if !format::is_portable(&key) {
                    continue;
                }
                if taken > 0 && taken + key.len() + value.len() > bytes {
                    return Ok((records, Some(key)));
                }
                taken += key.len() + value.len();
                records.push((key, value));
            }
        }
        Ok((records, None))
    }

    /// Write everything again that is stored in segments of other volumes, as this one's own. Nobody else uses it;
    /// [`settle`] tells if something is left.
    pub async fn draw_in(&self, watch: Watch<'_>) -> Result<u64, VolumeError> {
        let view = self.inner.shared.store.snapshot()?;
        let total = self.report().bytes_live;
        let mut extents = Cursor::new(&*view, format::all_extents());
        let (mut drawn, mut moving, mut bytes) = (0, Vec::new(), 0);
        loop {
            let next = extents.next().await?;
            let is_last = next.is_none();
            if let Some((key, value)) = next {
                let extent = format::decode_extent(&value)?;
                if !self.inner.settings.owns(extent.location.segment) {
                    bytes += u64::from(extent.length);
                    let inode = InodeId(format::key_number(&key)?);
                    moving.push(Moving { inode, offset: format::rest_u64(&key)?, extent });
                }
            }
            if is_last || bytes >= MOVED_BYTES_MAX || moving.len() >= MOVED_MAX {
                let wanted: Vec<_> = moving.iter().map(Moving::wanted).collect();
                let contents = self.inner.shared.blob.read_many(&wanted).await?;
                self.relocate(moving.drain(..).zip(contents)).await?;
                drawn += std::mem::take(&mut bytes);
                watch(Progress { phase: "bytes", done: drawn, total });
            }
            if is_last {
                return Ok(drawn);
            }
        }
    }
}

/// What one record of an export makes in a new store; nothing, if it is of no use there.
///
/// # Errors
/// `Corrupt` when it is no record of a volume, or none that an export holds.
pub fn import(record: &Record, imported: &Imported) -> Result<Option<Record>, VolumeError> {
    let (key, value) = record;
    format::check(key, value)?;
    if *key == format::superblock_key() {
        let of_source = VolumeSettings::decode(value)?;
        if of_source.ancestors.last().is_some_and(|ancestor| ancestor.newest >= imported.newest) {
            return Err(VolumeError::Corrupt("an ancestor that is newer than its clone".into()));
        }
        let mut settings = VolumeSettings { compression: imported.compression, ..of_source };
        (settings.id, settings.durability) = (imported.id, imported.durability);
        settings.ancestors.push(Ancestor { volume: imported.source.clone(), newest: imported.newest });
        return Ok(Some((key.clone(), settings.encode())));
    }
    if format::all_segments().0[..] == key[..1] {
        if format::key_number(key)? >> 32 > imported.newest.0 {
            return Err(VolumeError::Corrupt("a segment of a later epoch".into()));
        }
        let record = SegmentRecord::decode(value)?;
        let uploaded = SegmentRecord { state: SegmentState::Uploaded, ..record };
        return Ok((record.live > 0).then(|| (key.clone(), uploaded.encode())));
    }
    Ok(Some(record.clone()))
}

/// Forget the volumes whose bytes an import began with: there are none left.
pub async fn settle(store: &dyn Store) -> Result<(), VolumeError> {
    let mut settings = settings(store).await?;
    let mut batch = Batch::default();
    for (key, value) in scan_all(store, format::all_segments()).await? {
        if settings.owns(SegmentId(format::key_number(&key)?)) {
            continue;
        }
        if SegmentRecord::decode(&value)?.live > 0 {
            return Err(VolumeError::Corrupt("bytes of another volume are counted that nothing refers to".into()));
        }
        batch.delete(key);
    }
    settings.ancestors.clear();
    batch.put(format::superblock_key(), settings.encode());
    let seq = store.commit(batch).await?;
    Ok(store.durable(seq).await?)
}
