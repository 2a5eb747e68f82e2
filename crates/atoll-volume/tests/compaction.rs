//! Space that nothing refers to is given back, and nobody sees it happen.

mod support;

use std::sync::Arc;
use std::time::Duration;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::operation::{AllocateMode, OpenFlags, WriteAt};
use atoll_types::{ByteRange, Caller, InodeId, Name, Operation, Outcome, SessionId};
use atoll_volume::{Compaction, Durability, Volume, VolumeConfig, VolumeSettings};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use support::tree;

const SESSION: SessionId = SessionId(1);
const MIB: u64 = 1 << 20;

struct Site {
    medium: MemoryMedium,
    objects: Arc<InMemory>,
}

impl Site {
    async fn new() -> Site {
        let site = Site { medium: MemoryMedium::new(), objects: Arc::new(InMemory::new()) };
        let store = MemoryStore::open(&site.medium);
        let settings = VolumeSettings::new(Durability::Object, 1);
        atoll_volume::format(&store, &settings, &Caller::default()).await.unwrap();
        site
    }

    /// A volume that is compacted only when it is told to.
    async fn open(&self) -> Volume {
        let mut config = BlobConfig::new(self.objects.clone(), Path::default(), Staging::Memory);
        config.segment_bytes_max = MIB as u32;
        let opening = |epoch, recovered| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(config, epoch, recovered))
        };
        let compaction = Compaction {
            interval: Duration::from_secs(3600),
            dead_bytes_min: MIB,
            bytes_per_second: u64::MAX,
            ..Compaction::default()
        };
        let config = VolumeConfig { empty_segments_kept: Duration::ZERO, compaction, ..VolumeConfig::default() };
        Volume::open(Arc::new(MemoryStore::open(&self.medium)), opening, config).await.unwrap()
    }

    async fn stored_bytes(&self) -> u64 {
        let objects = atoll_blob::list(&*self.objects, &Path::default(), &[]).await.unwrap();
        objects.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Until no more is stored than this.
    async fn shrinks_to(&self, volume: &Volume, most: u64) {
        for _ in 0..500 {
            run(volume, Operation::Sync).await;
            if self.stored_bytes().await <= most {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} bytes are stored, {most} are enough", self.stored_bytes().await);
    }
}

async fn run(volume: &Volume, operation: Operation) -> Outcome {
    let text = format!("{operation:?}").chars().take(200).collect::<String>();
    volume.execute(SESSION, &Caller::default(), operation).await.unwrap_or_else(|errno| panic!("{text}: {errno}"))
}

/// Bytes that cannot be packed, other ones for each file.
fn noise(seed: u64, length: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A file of 8 MiB of which little is left, everywhere.
async fn sparse_file(volume: &Volume, name: &str) -> InodeId {
    let create = Operation::Create {
        parent: InodeId::ROOT,
        name: Name::new(Bytes::copy_from_slice(name.as_bytes())).unwrap(),
        permissions: 0o644,
        umask: 0,
        flags: OpenFlags::default(),
    };
    let Outcome::Created { attributes, .. } = run(volume, create).await else { panic!() };
    let inode = attributes.inode;
    for part in 0..8 {
        let at = WriteAt::Offset(part * MIB);
        let data = noise(part + name.len() as u64, MIB);
        run(volume, Operation::Write { inode, at, data, drop_privileges: false }).await;
    }
    run(volume, Operation::Sync).await;
    for part in 0..32 {
        let range = ByteRange::at(part * (MIB / 4) + 50_000, MIB / 4 - 60_000);
        run(volume, Operation::Allocate { inode, mode: AllocateMode::PunchHole, range, drop_privileges: false }).await;
    }
    run(volume, Operation::Sync).await;
    inode
}

#[tokio::test]
async fn what_is_in_use_is_moved_together_and_the_rest_goes() {
    let site = Site::new().await;
    let volume = site.open().await;
    let inode = sparse_file(&volume, "file").await;
    let clone = sparse_file(&volume, "clone").await;
    // One piece that two files refer to, in parts.
    let share = Operation::CloneRange {
        source: inode,
        source_offset: 10_000,
        target: clone,
        target_offset: 100_000,
        length: 25_000,
    };
    run(&volume, share).await;
    run(&volume, Operation::Sync).await;
    let before = tree(&volume).await;
    let (live, stored) = (volume.report().bytes_live, site.stored_bytes().await);
    assert!(stored > 3 * live, "{stored} bytes are stored, {live} in use");
    assert!(volume.report().bytes_dead > 8 * MIB, "{:?}", volume.report());
    let mut written = 0;
    loop {
        let more = volume.compact().await.unwrap();
        if more == 0 {
            break;
        }
        written += more;
        run(&volume, Operation::Sync).await;
        assert!(written <= 2 * live, "it goes on and on: {written} bytes were written, {live} are in use");
    }
    assert_eq!(volume.report().bytes_compacted, written);
    volume.blob().upload().await.unwrap();
    site.shrinks_to(&volume, live * 3 / 2 + MIB).await;
    assert_eq!(tree(&volume).await, before);
    assert!(volume.check(true, &|_| ()).await.unwrap().is_clean());
    volume.close().await.unwrap();
    drop(volume);
    let volume = site.open().await;
    assert_eq!(tree(&volume).await, before);
    assert!(volume.check(true, &|_| ()).await.unwrap().is_clean());
    assert_eq!(volume.compact().await.unwrap(), 0);
}

#[tokio::test]
async fn what_a_snapshot_refers_to_is_not_written_a_second_time() {
    let site = Site::new().await;
    let volume = site.open().await;
    sparse_file(&volume, "file").await;
    volume.create_snapshot("then").await.unwrap();
    let before = tree(&volume).await;
    assert_eq!(volume.compact().await.unwrap(), 0);
    volume.delete_snapshot("then").await.unwrap();
    assert!(volume.compact().await.unwrap() > 0);
    assert_eq!(tree(&volume).await, before);
}

#[tokio::test]
async fn what_cannot_be_read_stays_and_keeps_nothing_else() {
    let site = Site::new().await;
    let volume = site.open().await;
    let inode = sparse_file(&volume, "file").await;
    volume.close().await.unwrap();
    drop(volume);
    // One object is gone.
    let objects = atoll_blob::list(&*site.objects, &Path::default(), &[]).await.unwrap();
    let gone = Path::from(format!("{:016x}", objects[2].0.0));
    object_store::ObjectStoreExt::delete(&*site.objects, &gone).await.unwrap();
    let volume = site.open().await;
    let moved = volume.compact().await.unwrap();
    assert!(moved > 0);
    run(&volume, Operation::Sync).await;
    assert_eq!(volume.compact().await.unwrap(), 0, "what is left cannot be moved");
    let (mut good, mut bad) = (0, 0);
    for part in 0..8 {
        let read = Operation::Read { inode, range: ByteRange::at(part * MIB, 40_000) };
        match volume.execute(SESSION, &Caller::default(), read).await {
            Ok(Outcome::Data(bytes)) => {
                assert_eq!(bytes, noise(part + 4, MIB).slice(..40_000));
                good += 1;
            }
            _ => bad += 1,
        }
    }
    assert!(good >= 6 && bad >= 1, "{good} parts can be read, {bad} cannot");
}
