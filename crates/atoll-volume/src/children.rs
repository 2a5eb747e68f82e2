//! The inodes that a listing shows, loaded together: those that were made together lie together in the store, and a scan
//! brings them at the price of a few.

use atoll_types::{InodeId, SessionId};
use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::error::VolumeError;
use crate::format::{self, InodeRecord};
use crate::volume::{Volume, scan_all};

/// A scan reads over so many inodes that nobody asked for, to come to one that somebody did.
const GAP_MAX: u64 = 8;
/// Fewer neighbours are asked for one by one.
const RUN_MIN: usize = 4;
/// Scans under way at a time.
const SCANS_MAX: usize = 8;
/// Commits that may come in between before it is left to who needs an inode to load it.
const ATTEMPTS_MAX: usize = 3;

/// Cuts sorted numbers where too many lie between two.
fn runs(sorted: &[InodeId]) -> (Vec<&[InodeId]>, Vec<InodeId>) {
    let (runs, few): (Vec<_>, Vec<_>) =
        sorted.chunk_by(|one, next| next.0 - one.0 <= GAP_MAX).partition(|run| run.len() >= RUN_MIN);
    (runs, few.concat())
}

impl Volume {
    /// Cache what is not cached of `inodes` and that no other session may be changing. Best effort: what is missing
    /// afterwards is loaded when it is needed.
    pub(crate) async fn load_together(&self, session: SessionId, inodes: &[InodeId]) -> Result<(), VolumeError> {
        let shared = &self.inner.shared;
        for _ in 0..ATTEMPTS_MAX {
            let (stamp, mut absent, mut found) = {
                let core = shared.core.lock();
                let (mut absent, mut found) = (Vec::new(), Vec::new());
                for inode in inodes.iter().copied().filter(|inode| core.is_absent(session, *inode)) {
                    match core.overlay(&format::inode_key(inode)) {
                        Some(value) => found.extend(value.map(|value| (inode, value))),
                        None => absent.push(inode),
                    }
                }
                (core.load_stamp(), absent, found)
            };
            absent.sort_unstable();
            absent.dedup();
            found.extend(self.stored(&absent).await?);
            let records = found.into_iter().map(|(inode, value)| Ok((inode, InodeRecord::decode(&value)?)));
            let records = records.collect::<Result<Vec<_>, VolumeError>>()?;
            let mut core = shared.core.lock();
            if core.load_stamp() == stamp {
                records.into_iter().for_each(|(inode, record)| core.install_inode(stamp, inode, record));
                break;
            }
        }
        Ok(())
    }

    /// What the store has of these, sorted.
    async fn stored(&self, sorted: &[InodeId]) -> Result<Vec<(InodeId, Bytes)>, VolumeError> {
        let store = &*self.inner.shared.store;
        let (runs, few) = runs(sorted);
        let mut found = Vec::with_capacity(sorted.len());
        for runs in runs.chunks(SCANS_MAX) {
            let scans = runs.iter().map(|run| {
                let (first, last) = (run[0], run[run.len() - 1]);
                scan_all(store, (format::inode_key(first), format::inode_key(InodeId(last.0.saturating_add(1)))))
            });
            for (key, value) in try_join_all(scans).await?.into_iter().flatten() {
                let inode = InodeId(format::key_number(&key)?);
                if sorted.binary_search(&inode).is_ok() {
                    found.push((inode, value));
                }
            }
        }
        let keys: Vec<Bytes> = few.iter().map(|inode| format::inode_key(*inode)).collect();
        let values = store.multi_get(&keys).await?;
        found.extend(few.into_iter().zip(values).filter_map(|(inode, value)| Some((inode, value?))));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;

    use atoll_blob::{Blob, BlobConfig, Staging};
    use atoll_store::{MemoryMedium, MemoryStore};
    use atoll_types::{Caller, FileKind, Mode, Name, Operation, Outcome};
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::{Durability, VolumeConfig, VolumeSettings};

    const SESSION: SessionId = SessionId(1);

    #[test]
    fn neighbours_are_scanned_and_the_others_asked_for() {
        let inodes = |numbers: &[u64]| numbers.iter().map(|number| InodeId(*number)).collect::<Vec<_>>();
        let sorted = inodes(&[1, 2, 10, 18, 27, 28, 29, 30, 100, 200, 202]);
        let (scanned, few) = runs(&sorted);
        assert_eq!(scanned, [inodes(&[1, 2, 10, 18]), inodes(&[27, 28, 29, 30])]);
        assert_eq!(few, inodes(&[100, 200, 202]));
        assert_eq!(runs(&[]), (vec![], vec![]));
    }

    async fn open(medium: &MemoryMedium, objects: &Arc<InMemory>) -> Volume {
        let blob = BlobConfig::new(objects.clone(), Path::default(), Staging::Memory);
        let opening = |epoch, recovered| -> Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(blob, epoch, recovered))
        };
        Volume::open(Arc::new(MemoryStore::open(medium)), opening, VolumeConfig::default()).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_listing_shows_is_cached_together_with_the_values_that_it_has() {
        let (medium, objects) = (MemoryMedium::new(), Arc::new(InMemory::new()));
        let settings = VolumeSettings::new(Durability::Object, 1);
        crate::format(&MemoryStore::open(&medium), &settings, &Caller::default()).await.unwrap();
        let volume = open(&medium, &objects).await;
        let mut inodes = Vec::new();
        for number in 0..40u32 {
            let name = Name::new(format!("{number}").into_bytes()).unwrap();
            let mode = Mode::new(FileKind::Regular, 0o600 | number);
            let make = Operation::MakeNode { parent: InodeId::ROOT, name, mode, umask: 0, device: 0 };
            let made = volume.execute(SESSION, &Caller::default(), make).await.unwrap();
            let Outcome::Entry(entry) = made else { panic!("{made:?}") };
            inodes.push(entry.inode);
        }
        volume.close().await.unwrap();
        let volume = open(&medium, &objects).await;
        let first = inodes[0];
        // A run with gaps, one that stands alone, one twice, and one that is not there.
        inodes.retain(|inode| inode.0 % 3 != 0 || inode.0 % 2 == 0);
        let (gone, alone) = (InodeId(1 << 40), inodes.pop().unwrap());
        let asked = [&inodes[..], &[alone, alone, gone]].concat();
        volume.load_together(SESSION, &asked).await.unwrap();
        let mut core = volume.inner.shared.core.lock();
        for inode in inodes.iter().chain([&alone]) {
            let attributes = core.attributes(*inode).expect("it is cached");
            assert_eq!(attributes.mode.permissions() & 0o77, (inode.0 - first.0) as u32);
        }
        assert!(core.is_absent(SESSION, gone));
    }
}
