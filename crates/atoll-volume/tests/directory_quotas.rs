//! Quotas of directories: what is there when one comes is counted while it moves, and what a crash ends goes on.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_store::{Batch, Checkpoint, Limits, MemoryMedium, MemoryStore, Page, Read, Scan, Store, StoreError};
use atoll_types::limits::QUOTA_DEPTH_MAX;
use atoll_types::operation::{RenameMode, WriteAt};
use atoll_types::{
    Caller, CommitSeq, Epoch, Errno, FileKind, InodeId, Made, Mode, Name, Operation, Outcome, SessionId, Timestamp,
};
use atoll_volume::{Durability, Quota, QuotaError, QuotaState, Usage, Volume, VolumeConfig, VolumeSettings};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;

const SESSION: SessionId = SessionId(1);
const ROOT: InodeId = InodeId::ROOT;
const BOUND: Quota = Quota { bytes: 1 << 40, inodes: 1 << 40 };

struct World {
    medium: MemoryMedium,
    objects: Arc<InMemory>,
}

impl World {
    async fn new() -> World {
        let world = World { medium: MemoryMedium::new(), objects: Arc::new(InMemory::new()) };
        let settings = VolumeSettings::new(Durability::Object, 1);
        atoll_volume::format(&MemoryStore::open(&world.medium), &settings, &Caller::default()).await.unwrap();
        world
    }

    async fn open(&self) -> Volume {
        self.open_with(Arc::new(MemoryStore::open(&self.medium))).await
    }

    async fn open_with(&self, store: Arc<dyn Store>) -> Volume {
        let blob = BlobConfig::new(self.objects.clone(), Path::default(), Staging::Memory);
        let opening = |epoch, recovered| -> Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(blob, epoch, recovered))
        };
        let config =
            VolumeConfig { inode_cache_max: 50, commit_lag: Duration::from_millis(1), ..VolumeConfig::default() };
        Volume::open(store, opening, config).await.unwrap()
    }
}

async fn run(volume: &Volume, operation: Operation) -> Result<Outcome, Errno> {
    volume.execute(SESSION, &Caller::default(), operation).await
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).unwrap()
}

async fn directory(volume: &Volume, parent: InodeId, text: &str) -> InodeId {
    let make = Operation::MakeDirectory { parent, name: name(text), permissions: 0o755, umask: 0 };
    run(volume, make).await.unwrap().attributes().unwrap().inode
}

async fn file(volume: &Volume, parent: InodeId, text: &str) -> InodeId {
    let mode = Mode::new(FileKind::Regular, 0o644);
    let make = Operation::MakeNode { parent, name: name(text), mode, umask: 0, device: 0 };
    run(volume, make).await.unwrap().attributes().unwrap().inode
}

async fn write(volume: &Volume, inode: InodeId, bytes: usize) -> Result<Outcome, Errno> {
    let data = Bytes::from(vec![1; bytes]);
    run(volume, Operation::Write { inode, at: WriteAt::End, data, drop_privileges: false }).await
}

async fn rename(volume: &Volume, from: (InodeId, &str), to: (InodeId, &str)) -> Result<Outcome, Errno> {
    let (name, new_name) = (name(from.1), name(to.1));
    let (parent, new_parent) = (from.0, to.0);
    run(volume, Operation::Rename { parent, name, new_parent, new_name, mode: RenameMode::Replace }).await
}

async fn must_be_sound(volume: &Volume) {
    let report = volume.check(false, &|_| ()).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

/// What is below a directory, itself included: what its quota should say.
async fn below(volume: &Volume, directory: InodeId) -> Usage {
    let mut seen = HashMap::new();
    let mut todo = vec![directory];
    while let Some(inode) = todo.pop() {
        let found = run(volume, Operation::GetAttributes { inode }).await.unwrap();
        let attributes = *found.attributes().unwrap();
        seen.insert(inode, attributes.allocated);
        if attributes.kind() == FileKind::Directory {
            let list =
                Operation::ReadDirectory { inode, after: 0, entries_max: 4096, with_attributes: false, ahead: false };
            let Ok(Outcome::Listing { entries, end: true }) = run(volume, list).await else { panic!("no listing") };
            todo.extend(entries.into_iter().map(|entry| entry.inode));
        }
    }
    Usage { bytes: seen.values().sum(), inodes: seen.len() as u64 }
}

/// A directory with `count` directories of four files each, besides one that is like it.
async fn trees(volume: &Volume, count: usize) -> [(InodeId, Vec<InodeId>); 2] {
    let mut trees = Vec::new();
    for top in ["inside", "outside"] {
        let top = directory(volume, ROOT, top).await;
        let mut made = vec![top];
        for number in 0..count {
            let parent = made[number / 3];
            let inner = directory(volume, parent, &format!("d{number}")).await;
            for letter in ["a", "b", "c", "d"] {
                let inode = file(volume, inner, letter).await;
                write(volume, inode, 10).await.unwrap();
            }
            made.push(inner);
        }
        trees.push((top, made));
    }
    trees.try_into().unwrap()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Things come, go and move, within both trees and between them, until `task` is over. Answers how many did.
async fn churn<T>(volume: &Volume, random: &mut Random, places: &[InodeId], task: &tokio::task::JoinHandle<T>) -> u64 {
    let (mut done, mut count) = (0, 0_u64);
    while !task.is_finished() {
        let mut pick = || places[random.below(places.len())];
        let (from, to) = (pick(), pick());
        let letter = ["a", "b", "c", "d"][random.below(4)];
        let other = ["a", "b", "c", "d"][random.below(4)];
        let result = match random.below(6) {
            0 => {
                let mode = Mode::new(FileKind::Regular, 0o644);
                run(volume, Operation::MakeNode { parent: to, name: name(letter), mode, umask: 0, device: 0 }).await
            }
            1 => run(volume, Operation::Unlink { parent: from, name: name(letter) }).await,
            2 => {
                let found = run(volume, Operation::Lookup { parent: from, name: name(letter) }).await;
                match found.as_ref().ok().and_then(Outcome::attributes) {
                    Some(file) => write(volume, file.inode, 10).await,
                    None => found,
                }
            }
            3 => {
                let found = run(volume, Operation::Lookup { parent: from, name: name(letter) }).await;
                match found.as_ref().ok().and_then(Outcome::attributes) {
                    Some(file) => {
                        let (inode, name) = (file.inode, name(&format!("{letter}{count}")));
                        run(volume, Operation::Link { inode, parent: to, name }).await
                    }
                    None => found,
                }
            }
            4 => rename(volume, (from, letter), (to, other)).await,
            _ => {
                let inner = format!("d{}", random.below(places.len()));
                rename(volume, (from, &inner), (to, &inner)).await
            }
        };
        done += u64::from(result.is_ok());
        count += 1;
        tokio::task::yield_now().await;
    }
    done
}

#[tokio::test]
async fn what_is_there_is_counted_once_while_it_moves() {
    for seed in 0..12 {
        let volume = World::new().await.open().await;
        let [(inside, mut places), (_, others)] = trees(&volume, 60).await;
        places.extend(others);
        let mut random = Random(seed);
        let setting = volume.clone();
        let task = tokio::spawn(async move { setting.set_directory_quota(inside, BOUND, |_| ()).await });
        let done = churn(&volume, &mut random, &places, &task).await;
        assert!(done > 10, "{done} changes meanwhile");
        task.await.unwrap().unwrap();
        must_be_sound(&volume).await;
        let [(root, quota)] = volume.directory_quotas()[..] else { panic!("one quota") };
        assert_eq!((root, quota.state, quota.limits, quota.parent), (inside, QuotaState::Kept, BOUND, InodeId::NONE));
        // Those with a name outside, too, are charged to where they were found.
        let found = below(&volume, inside).await;
        assert!(quota.used.inodes.abs_diff(found.inodes) <= 30, "{quota:?} {found:?}");

        let removing = volume.clone();
        let task = tokio::spawn(async move { removing.remove_directory_quota(inside, |_| ()).await });
        churn(&volume, &mut random, &places, &task).await;
        task.await.unwrap().unwrap();
        must_be_sound(&volume).await;
        assert!(volume.directory_quotas().is_empty());
        let again = volume.remove_directory_quota(inside, |_| ()).await;
        assert_eq!(again, Err(QuotaError::NoQuota));
        volume.close().await.unwrap();
    }
}

#[test]
fn what_a_crash_ends_goes_on_at_the_next_authority() {
    let (world, inside) = runtime().block_on(async {
        let world = World::new().await;
        let volume = world.open().await;
        let [(inside, _), _] = trees(&volume, 100).await;
        volume.close().await.unwrap();
        (world, inside)
    });
    let whole = Usage { bytes: 100 * 4 * 10, inodes: 1 + 100 * 5 };
    for state in [QuotaState::Counting, QuotaState::Leaving] {
        let life = runtime();
        life.block_on(async {
            let volume = world.open().await;
            let changing = volume.clone();
            tokio::spawn(async move {
                match state {
                    QuotaState::Counting => changing.set_directory_quota(inside, BOUND, |_| ()).await,
                    _ => changing.remove_directory_quota(inside, |_| ()).await,
                }
            });
            loop {
                let quotas = volume.directory_quotas();
                let is_between = |used: Usage| used.inodes > 50 && used.inodes < 450;
                if quotas.iter().any(|(_, quota)| quota.state == state && is_between(quota.used)) {
                    break;
                }
                tokio::task::yield_now().await;
            }
            run(&volume, Operation::Sync).await.unwrap();
            must_be_sound(&volume).await;
        });
        // Every task of the authority is gone.
        life.shutdown_background();
        runtime().block_on(async {
            let volume = world.open().await;
            let is_over = || match (state, &volume.directory_quotas()[..]) {
                (QuotaState::Counting, [(_, quota)]) => quota.state == QuotaState::Kept && quota.used == whole,
                (QuotaState::Leaving, []) => true,
                _ => false,
            };
            while !is_over() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            must_be_sound(&volume).await;
            assert_eq!(below(&volume, inside).await, whole);
            volume.close().await.unwrap();
        });
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[tokio::test]
async fn limits_hold_for_all_that_is_below_and_all_around() {
    let volume = World::new().await.open().await;
    let outer = directory(&volume, ROOT, "outer").await;
    let inner = directory(&volume, outer, "inner").await;
    let deep = directory(&volume, inner, "deep").await;
    let kept = file(&volume, deep, "kept").await;
    write(&volume, kept, 500).await.unwrap();
    volume.set_directory_quota(outer, Quota { bytes: 1000, inodes: u64::MAX }, |_| ()).await.unwrap();
    volume.set_directory_quota(inner, Quota { bytes: 700, inodes: 5 }, |_| ()).await.unwrap();
    assert_eq!(write(&volume, kept, 201).await, Err(Errno::EDQUOT));
    write(&volume, kept, 200).await.unwrap();
    let beside = file(&volume, outer, "beside").await;
    assert_eq!(write(&volume, beside, 301).await, Err(Errno::EDQUOT));
    write(&volume, beside, 300).await.unwrap();
    // What has room in the inner one has none in the outer one.
    volume.set_directory_quota(inner, BOUND, |_| ()).await.unwrap();
    assert_eq!(write(&volume, kept, 1).await, Err(Errno::EDQUOT));
    // From one to the other it counts already for the outer one.
    rename(&volume, (deep, "kept"), (outer, "kept")).await.unwrap();
    let free = file(&volume, ROOT, "free").await;
    write(&volume, free, 1).await.unwrap();
    assert_eq!(rename(&volume, (ROOT, "free"), (deep, "free")).await, Err(Errno::EDQUOT));
    assert_eq!(rename(&volume, (inner, "deep"), (outer, "deep")).await, Ok(Outcome::Done), "it is empty");
    let statistics = |inode| run(&volume, Operation::Statistics { inode });
    let Ok(Outcome::Space(space)) = statistics(inner).await else { panic!("no space") };
    assert_eq!((space.bytes_used, space.bytes_total, space.inodes_used), (0, 0, 1));
    let Ok(Outcome::Space(space)) = statistics(beside).await else { panic!("no space") };
    assert_eq!((space.bytes_used, space.bytes_total, space.inodes_used), (1000, 1000, 5));
    // Less than there is: nothing is lost, and it can go.
    volume.set_directory_quota(outer, Quota { bytes: 1, inodes: 1 }, |_| ()).await.unwrap();
    rename(&volume, (outer, "kept"), (ROOT, "kept")).await.unwrap();
    run(&volume, Operation::Unlink { parent: outer, name: name("beside") }).await.unwrap();
    must_be_sound(&volume).await;

    let around = directory(&volume, ROOT, "around").await;
    let mut parent = around;
    for depth in 0..=QUOTA_DEPTH_MAX {
        parent = directory(&volume, parent, "d").await;
        let set = volume.set_directory_quota(parent, BOUND, |_| ()).await;
        assert_eq!(set, if depth < QUOTA_DEPTH_MAX { Ok(()) } else { Err(QuotaError::TooDeep) });
    }
    assert_eq!(volume.set_directory_quota(around, BOUND, |_| ()).await, Err(QuotaError::TooDeep));
    assert_eq!(volume.set_directory_quota(kept, BOUND, |_| ()).await, Err(QuotaError::NotDirectory));
    assert_eq!(volume.set_directory_quota(ROOT, BOUND, |_| ()).await, Err(QuotaError::Root));
    must_be_sound(&volume).await;
}

#[tokio::test]
async fn whose_last_name_lies_outside_goes_with_its_quota_root_and_the_volume_is_sound() {
    let volume = World::new().await.open().await;
    let first = directory(&volume, ROOT, "first").await;
    let second = directory(&volume, ROOT, "second").await;
    let inode = file(&volume, first, "f").await;
    run(&volume, Operation::Link { inode, parent: second, name: name("f") }).await.unwrap();
    for directory in [first, second] {
        volume.set_directory_quota(directory, BOUND, |_| ()).await.unwrap();
    }
    run(&volume, Operation::Unlink { parent: first, name: name("f") }).await.unwrap();
    must_be_sound(&volume).await;
    volume.remove_directory_quota(first, |_| ()).await.unwrap();
    must_be_sound(&volume).await;
    let mut used = volume.directory_quotas().into_iter().map(|(directory, quota)| (directory, quota.used));
    assert_eq!(used.next(), Some((second, Usage { bytes: 0, inodes: 1 })));
}

#[tokio::test]
async fn what_is_open_without_a_name_is_charged_until_it_is_closed() {
    let volume = World::new().await.open().await;
    let top = directory(&volume, ROOT, "top").await;
    volume.set_directory_quota(top, Quota { bytes: 100, inodes: 2 }, |_| ()).await.unwrap();
    let inode = file(&volume, top, "f").await;
    write(&volume, inode, 100).await.unwrap();
    run(&volume, Operation::Open { inode, flags: Default::default() }).await.unwrap();
    run(&volume, Operation::Unlink { parent: top, name: name("f") }).await.unwrap();
    run(&volume, Operation::RemoveDirectory { parent: ROOT, name: name("top") }).await.unwrap();
    let used = || volume.directory_quotas().into_iter().map(|(_, quota)| quota.used).collect::<Vec<_>>();
    assert_eq!(used(), [Usage { bytes: 100, inodes: 1 }]);
    assert_eq!(write(&volume, inode, 1).await, Err(Errno::EDQUOT));
    must_be_sound(&volume).await;
    run(&volume, Operation::Release { inode }).await.unwrap();
    assert_eq!(used(), []);
    must_be_sound(&volume).await;
}

#[tokio::test]
async fn what_was_answered_already_is_executed_and_counted() {
    let volume = World::new().await.open().await;
    let (one, other) = (directory(&volume, ROOT, "one").await, directory(&volume, ROOT, "other").await);
    let inode = file(&volume, one, "f").await;
    run(&volume, Operation::Link { inode, parent: one, name: name("g") }).await.unwrap();
    for directory in [one, other] {
        volume.set_directory_quota(directory, Quota { bytes: 10, inodes: 2 }, |_| ()).await.unwrap();
    }
    volume.enroll(SESSION);
    let made = Made { at: Timestamp::now(), ..Made::default() };
    let data = Bytes::from_static(b"more than there may be");
    let write = Operation::Write { inode, at: WriteAt::Offset(0), data, drop_privileges: false };
    assert!(volume.execute_made(SESSION, &made, write).await.0.is_ok());
    assert_eq!(self::write(&volume, inode, 1).await, Err(Errno::EDQUOT));
    let (parent, new_parent) = (one, other);
    let (from, to) = (name("f"), name("f"));
    let rename = Operation::Rename { parent, name: from, new_parent, new_name: to, mode: RenameMode::Replace };
    assert_eq!(run(&volume, rename.clone()).await, Err(Errno::EXDEV));
    assert_eq!(volume.execute_made(SESSION, &made, rename).await.0, Ok(Outcome::Done));
    let used: Vec<Usage> = volume.directory_quotas().into_iter().map(|(_, quota)| quota.used).collect();
    assert_eq!(used, [Usage { bytes: 0, inodes: 1 }, Usage { bytes: 22, inodes: 2 }]);
    must_be_sound(&volume).await;
}

/// A store of which nothing can be listed while it is `broken`.
struct Breakable {
    store: MemoryStore,
    broken: Arc<AtomicBool>,
}

#[async_trait]
impl Read for Breakable {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(key).await
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.store.multi_get(keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        if self.broken.load(Ordering::Acquire) {
            return Err(StoreError::Io("broken".into()));
        }
        self.store.scan(scan).await
    }
}

#[async_trait]
impl Store for Breakable {
    fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    fn limits(&self) -> Limits {
        self.store.limits()
    }

    fn snapshot(&self) -> Result<Arc<dyn Read>, StoreError> {
        self.store.snapshot()
    }

    async fn commit(&self, batch: Batch) -> Result<CommitSeq, StoreError> {
        self.store.commit(batch).await
    }

    async fn durable(&self, seq: CommitSeq) -> Result<(), StoreError> {
        self.store.durable(seq).await
    }

    fn durable_seq(&self) -> CommitSeq {
        self.store.durable_seq()
    }

    async fn checkpoint(&self, name: &str) -> Result<(), StoreError> {
        self.store.checkpoint(name).await
    }

    async fn copy_checkpoint(&self, source: &str, name: &str) -> Result<(), StoreError> {
        self.store.copy_checkpoint(source, name).await
    }

    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError> {
        self.store.checkpoints().await
    }

    async fn at(&self, name: &str) -> Result<Arc<dyn Read>, StoreError> {
        self.store.at(name).await
    }

    async fn delete_checkpoint(&self, name: &str) -> Result<(), StoreError> {
        self.store.delete_checkpoint(name).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }
}

#[tokio::test]
async fn what_cannot_be_counted_now_is_counted_when_it_can_be_read() {
    let world = World::new().await;
    let broken = Arc::new(AtomicBool::new(false));
    let store = Breakable { store: MemoryStore::open(&world.medium), broken: broken.clone() };
    let volume = world.open_with(Arc::new(store)).await;
    // More than the cache of inodes holds.
    let [(top, _), _] = trees(&volume, 30).await;
    run(&volume, Operation::Sync).await.unwrap();
    broken.store(true, Ordering::Release);
    assert!(volume.set_directory_quota(top, BOUND, |_| ()).await.is_err());
    assert_eq!(volume.directory_quotas()[0].1.state, QuotaState::Counting);
    broken.store(false, Ordering::Release);
    let is_counted = || volume.directory_quotas()[0].1.state == QuotaState::Kept;
    let counted = async {
        while !is_counted() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), counted).await.expect("it is counted by itself");
    assert_eq!(volume.directory_quotas()[0].1.used, below(&volume, top).await);
    must_be_sound(&volume).await;
    volume.close().await.unwrap();
}
