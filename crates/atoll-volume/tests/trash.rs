//! A file that loses its last name is kept for a while, where the volume has it so.

use std::sync::Arc;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::operation::{DirectoryEntry, OpenFlags, RenameMode, WriteAt};
use atoll_types::{Attributes, ByteRange, Caller, Errno, InodeId, Name, Operation, Outcome, SessionId, Timestamp};
use atoll_volume::{
    Durability, Quota, QuotaError, Retention, TrashReport, Usage, Volume, VolumeConfig, VolumeSettings,
};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;

const SESSION: SessionId = SessionId(1);
const DAY: u64 = 24 * 3600;
const WEEK: Retention = Retention(7 * DAY);
const ROOT: InodeId = InodeId::ROOT;

struct Site {
    medium: MemoryMedium,
    objects: Arc<InMemory>,
}

impl Site {
    async fn new() -> Site {
        let site = Site { medium: MemoryMedium::new(), objects: Arc::new(InMemory::new()) };
        let settings = VolumeSettings::new(Durability::Object, 1);
        atoll_volume::format(&MemoryStore::open(&site.medium), &settings, &Caller::default()).await.unwrap();
        site
    }

    async fn open(&self) -> Volume {
        let config = BlobConfig::new(self.objects.clone(), Path::default(), Staging::Memory);
        let opening = |epoch, recovered| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(config, epoch, recovered))
        };
        let config = VolumeConfig { inode_cache_max: 8, ..VolumeConfig::default() };
        Volume::open(Arc::new(MemoryStore::open(&self.medium)), opening, config).await.unwrap()
    }
}

fn name(text: &str) -> Name {
    Name::new(text.to_owned()).unwrap()
}

async fn ask(volume: &Volume, operation: Operation) -> Result<Outcome, Errno> {
    volume.execute(SESSION, &Caller { uid: 7, gid: 7, pid: 1 }, operation).await
}

async fn entry(volume: &Volume, operation: Operation) -> Result<Attributes, Errno> {
    Ok(*ask(volume, operation).await?.attributes().unwrap())
}

async fn lookup(volume: &Volume, parent: InodeId, text: &str) -> Result<Attributes, Errno> {
    entry(volume, Operation::Lookup { parent, name: name(text) }).await
}

async fn list(volume: &Volume, inode: InodeId) -> Vec<DirectoryEntry> {
    let list = Operation::ReadDirectory { inode, after: 0, entries_max: 4096, with_attributes: true, ahead: false };
    let Ok(Outcome::Listing { entries, .. }) = ask(volume, list).await else { panic!() };
    entries
}

/// An open file with this content.
async fn create(volume: &Volume, parent: InodeId, text: &str, content: &str) -> InodeId {
    let flags = OpenFlags::default();
    let create = Operation::Create { parent, name: name(text), permissions: 0o600, umask: 0, flags };
    let inode = entry(volume, create).await.unwrap().inode;
    let data = Bytes::from(content.to_owned());
    ask(volume, Operation::Write { inode, at: WriteAt::Offset(0), data, drop_privileges: false }).await.unwrap();
    inode
}

/// The same, not open.
async fn write(volume: &Volume, parent: InodeId, text: &str, content: &str) -> InodeId {
    let inode = create(volume, parent, text, content).await;
    ask(volume, Operation::Release { inode }).await.unwrap();
    inode
}

async fn read(volume: &Volume, inode: InodeId) -> Result<String, Errno> {
    let Outcome::Data(bytes) = ask(volume, Operation::Read { inode, range: ByteRange::at(0, 4096) }).await? else {
        panic!()
    };
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

fn unlink(parent: InodeId, text: &str) -> Operation {
    Operation::Unlink { parent, name: name(text) }
}

fn rename(parent: InodeId, old: &Name, new_parent: InodeId, new: &str) -> Operation {
    let mode = RenameMode::Replace;
    Operation::Rename { parent, name: old.clone(), new_parent, new_name: name(new), mode }
}

/// Everything in the trash: the directory, the name, the inode.
async fn kept(volume: &Volume) -> Vec<(InodeId, Name, InodeId)> {
    let Ok(trash) = lookup(volume, ROOT, ".trash").await else { return Vec::new() };
    let mut kept = Vec::new();
    for hour in list(volume, trash.inode).await {
        kept.extend(list(volume, hour.inode).await.into_iter().map(|found| (hour.inode, found.name, found.inode)));
    }
    kept
}

async fn is_clean(volume: &Volume) {
    let report = volume.check(true, &|_| ()).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

fn in_days(days: u64) -> Timestamp {
    let now = Timestamp::now();
    Timestamp { seconds: now.seconds + (days * DAY) as i64, ..now }
}

#[tokio::test]
async fn without_a_retention_nothing_is_kept() {
    let volume = Site::new().await.open().await;
    let file = write(&volume, ROOT, "file", "x").await;
    ask(&volume, unlink(ROOT, "file")).await.unwrap();
    assert_eq!(read(&volume, file).await, Err(Errno::ESTALE));
    assert_eq!(lookup(&volume, ROOT, ".trash").await, Err(Errno::ENOENT));
    assert_eq!(volume.empty_trash().await.unwrap(), TrashReport::default());
    // The name is free for as long as it stands for nothing.
    write(&volume, ROOT, ".trash", "mine").await;
    assert!(volume.set_retention(Some(WEEK)).await.unwrap_err().to_string().contains("rename"));
    ask(&volume, unlink(ROOT, ".trash")).await.unwrap();
    volume.set_retention(Some(WEEK)).await.unwrap();
}

#[tokio::test]
async fn a_file_that_loses_its_last_name_is_found_in_the_trash_and_restored() {
    let site = Site::new().await;
    let volume = site.open().await;
    volume.set_retention(Some(WEEK)).await.unwrap();
    let make = Operation::MakeDirectory { parent: ROOT, name: name("folder"), permissions: 0o700, umask: 0 };
    let folder = entry(&volume, make).await.unwrap().inode;
    let removed = write(&volume, folder, "removed", "removed").await;
    let replaced = write(&volume, ROOT, "replaced", "replaced").await;
    write(&volume, ROOT, "new", "new").await;
    let linked = write(&volume, ROOT, "linked", "linked").await;
    let inode = linked;
    ask(&volume, Operation::Link { inode, parent: ROOT, name: name("second") }).await.unwrap();
    ask(&volume, Operation::MakeSymlink { parent: ROOT, name: name("link"), target: "there".into() }).await.unwrap();
    let before = volume.report().inodes;

    ask(&volume, unlink(folder, "removed")).await.unwrap();
    ask(&volume, Operation::RemoveDirectory { parent: ROOT, name: name("folder") }).await.unwrap();
    ask(&volume, rename(ROOT, &name("new"), ROOT, "replaced")).await.unwrap();
    ask(&volume, unlink(ROOT, "linked")).await.unwrap();
    ask(&volume, unlink(ROOT, "link")).await.unwrap();
    let unnamed = Operation::CreateUnnamed { parent: ROOT, permissions: 0o600, umask: 0 };
    let unnamed = entry(&volume, unnamed).await.unwrap().inode;
    ask(&volume, Operation::Release { inode: unnamed }).await.unwrap();

    let found = kept(&volume).await;
    let names: Vec<String> = found.iter().map(|(_, name, _)| String::from_utf8_lossy(name.as_bytes()).into()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(names[0], format!("{}-{}-removed", folder.0, removed.0));
    assert_eq!(names[1], format!("{}-{}-replaced", ROOT.0, replaced.0));
    assert!(names[2].ends_with("-link"), "{names:?}");
    assert_eq!(read(&volume, removed).await.unwrap(), "removed");
    // The trash and its directory came, the folder went.
    assert_eq!(volume.report().inodes, before + 1);
    assert_eq!(volume.count_trash().await.unwrap(), TrashReport { files: 3, bytes: 15 });
    is_clean(&volume).await;
    let trash = lookup(&volume, ROOT, ".trash").await.unwrap();
    assert_eq!((trash.mode.permissions(), trash.uid, trash.links), (0o700, 0, 3));
    assert!(!list(&volume, ROOT).await.iter().any(|entry| entry.inode == trash.inode));

    // The same after a restart, and in a snapshot.
    volume.create_snapshot("s").await.unwrap();
    volume.close().await.unwrap();
    let volume = site.open().await;
    assert_eq!(volume.retention(), Some(WEEK));
    assert_eq!(kept(&volume).await, found);
    let then = lookup(&volume, InodeId::SNAPSHOTS, "s").await.unwrap().inode;
    let then = lookup(&volume, then, ".trash").await.unwrap().inode;
    assert_eq!(list(&volume, then).await.len(), 1);

    let (hour, kept_name, _) = &found[0];
    ask(&volume, rename(*hour, kept_name, ROOT, "restored")).await.unwrap();
    assert_eq!(lookup(&volume, ROOT, "restored").await.unwrap().inode, removed);
    // What is removed there is gone at once.
    let (hour, kept_name, _) = &found[1];
    ask(&volume, Operation::Unlink { parent: *hour, name: kept_name.clone() }).await.unwrap();
    assert_eq!(read(&volume, replaced).await, Err(Errno::ESTALE));
    // A second time.
    ask(&volume, unlink(ROOT, "restored")).await.unwrap();
    assert_eq!(read(&volume, removed).await.unwrap(), "removed");
    is_clean(&volume).await;
}

#[tokio::test]
async fn nothing_is_put_into_the_trash_but_by_its_removal() {
    let volume = Site::new().await.open().await;
    volume.set_retention(Some(WEEK)).await.unwrap();
    write(&volume, ROOT, "file", "x").await;
    ask(&volume, unlink(ROOT, "file")).await.unwrap();
    let other = write(&volume, ROOT, "other", "x").await;
    let (hour, kept_name, _) = kept(&volume).await[0].clone();
    for parent in [InodeId::TRASH, hour] {
        let refused = [
            Operation::MakeDirectory { parent, name: name("x"), permissions: 0, umask: 0 },
            Operation::Link { inode: other, parent, name: name("x") },
            rename(ROOT, &name("other"), parent, "x"),
            rename(hour, &kept_name, parent, "x"),
            Operation::CreateUnnamed { parent, permissions: 0, umask: 0 },
        ];
        for operation in refused {
            assert_eq!(ask(&volume, operation.clone()).await, Err(Errno::EPERM), "{operation:?}");
        }
    }
    let (new_parent, new_name, mode) = (ROOT, name("other"), RenameMode::Exchange);
    let exchange = Operation::Rename { parent: hour, name: kept_name, new_parent, new_name, mode };
    assert_eq!(ask(&volume, exchange).await, Err(Errno::EPERM));
    let remove = Operation::RemoveDirectory { parent: ROOT, name: name(".trash") };
    assert_eq!(ask(&volume, remove).await, Err(Errno::EPERM));
    assert_eq!(ask(&volume, rename(ROOT, &name("other"), ROOT, ".trash")).await, Err(Errno::EPERM));
    is_clean(&volume).await;
}

#[tokio::test]
async fn with_a_retention_nothing_gets_the_name_of_the_trash_before_it_is_there() {
    let volume = Site::new().await.open().await;
    volume.set_retention(Some(WEEK)).await.unwrap();
    write(&volume, ROOT, "file", "x").await;
    let make = Operation::MakeDirectory { parent: ROOT, name: name(".trash"), permissions: 0o700, umask: 0 };
    assert_eq!(ask(&volume, make.clone()).await, Err(Errno::EPERM));
    assert_eq!(ask(&volume, rename(ROOT, &name("file"), ROOT, ".trash")).await, Err(Errno::EPERM));
    assert_eq!(lookup(&volume, ROOT, ".trash").await, Err(Errno::ENOENT));
    ask(&volume, unlink(ROOT, "file")).await.unwrap();
    assert_eq!(lookup(&volume, ROOT, ".trash").await.unwrap().inode, InodeId::TRASH);
    assert_eq!(kept(&volume).await.len(), 1);
}

#[tokio::test]
async fn what_was_kept_for_long_enough_is_destroyed_and_an_open_file_lives_on() {
    let volume = Site::new().await.open().await;
    volume.set_retention(Some(WEEK)).await.unwrap();
    for number in 0..2500 {
        let file = format!("f{number}");
        write(&volume, ROOT, &file, "content").await;
        ask(&volume, unlink(ROOT, &file)).await.unwrap();
    }
    let open = create(&volume, ROOT, "open", "open").await;
    ask(&volume, unlink(ROOT, "open")).await.unwrap();
    // Of a file that is open the same is kept as of any other.
    assert_eq!(entry(&volume, Operation::GetAttributes { inode: open }).await.unwrap().links, 1);
    assert_eq!(volume.look_at_trash(in_days(6)).await.unwrap(), 0);
    assert_eq!(volume.report().trash.files, 2501);
    assert_eq!(volume.look_at_trash(in_days(8)).await.unwrap(), 2501);
    assert_eq!(volume.report().trash, TrashReport::default());
    assert_eq!(list(&volume, InodeId::TRASH).await, []);
    assert_eq!(read(&volume, open).await.unwrap(), "open");
    ask(&volume, Operation::Release { inode: open }).await.unwrap();
    assert_eq!(read(&volume, open).await, Err(Errno::ESTALE));
    // The root, and the trash.
    assert_eq!(volume.report().inodes, 2);
    is_clean(&volume).await;

    // Without a retention it stays until it is emptied.
    write(&volume, ROOT, "last", "last").await;
    ask(&volume, unlink(ROOT, "last")).await.unwrap();
    volume.set_retention(None).await.unwrap();
    assert_eq!(volume.look_at_trash(in_days(1000)).await.unwrap(), 0);
    assert_eq!(volume.empty_trash().await.unwrap(), TrashReport { files: 1, bytes: 4 });
    assert_eq!(volume.count_trash().await.unwrap(), TrashReport::default());
    write(&volume, ROOT, "later", "later").await;
    ask(&volume, unlink(ROOT, "later")).await.unwrap();
    assert_eq!(kept(&volume).await, []);
    is_clean(&volume).await;
}

#[tokio::test]
async fn a_volume_that_is_restored_to_before_its_trash_keeps_files_again() {
    let site = Site::new().await;
    let volume = site.open().await;
    volume.create_snapshot("before").await.unwrap();
    volume.set_retention(Some(WEEK)).await.unwrap();
    write(&volume, ROOT, "file", "x").await;
    ask(&volume, unlink(ROOT, "file")).await.unwrap();
    volume.close().await.unwrap();
    drop(volume);
    atoll_volume::restore(&MemoryStore::open(&site.medium), "before").await.unwrap();
    let volume = site.open().await;
    assert_eq!(kept(&volume).await, []);
    is_clean(&volume).await;
    let file = write(&volume, ROOT, "file", "again").await;
    ask(&volume, unlink(ROOT, "file")).await.unwrap();
    assert_eq!(read(&volume, file).await.unwrap(), "again");
    assert_eq!(kept(&volume).await.len(), 1);
    is_clean(&volume).await;
}

#[tokio::test]
async fn what_is_removed_leaves_the_quota_of_its_directory_and_comes_back_to_it() {
    let site = Site::new().await;
    let volume = site.open().await;
    volume.set_retention(Some(WEEK)).await.unwrap();
    let make = Operation::MakeDirectory { parent: ROOT, name: name("bounded"), permissions: 0o755, umask: 0 };
    let bounded = entry(&volume, make).await.unwrap().inode;
    volume.set_directory_quota(bounded, Quota { bytes: 1 << 20, inodes: 3 }, |_| ()).await.unwrap();
    let used = || volume.directory_quotas()[0].1.used;
    write(&volume, bounded, "a", "1234").await;
    let open = create(&volume, bounded, "b", "56").await;
    assert_eq!(used(), Usage { bytes: 6, inodes: 3 });
    ask(&volume, unlink(bounded, "a")).await.unwrap();
    ask(&volume, unlink(bounded, "b")).await.unwrap();
    assert_eq!(used(), Usage { bytes: 0, inodes: 1 });
    // Also while it is open, and still written to.
    let data = Bytes::from_static(b"789");
    ask(&volume, Operation::Write { inode: open, at: WriteAt::End, data, drop_privileges: false }).await.unwrap();
    assert_eq!(used(), Usage { bytes: 0, inodes: 1 });
    ask(&volume, Operation::Release { inode: open }).await.unwrap();
    is_clean(&volume).await;

    let trash = lookup(&volume, ROOT, ".trash").await.unwrap().inode;
    let refused = volume.set_directory_quota(trash, Quota::NONE, |_| ()).await;
    assert_eq!(refused, Err(QuotaError::Other(Errno::EPERM)));
    for (hour, old, inode) in kept(&volume).await {
        let new = format!("back{inode}");
        ask(&volume, rename(hour, &old, bounded, &new)).await.unwrap();
    }
    assert_eq!(used(), Usage { bytes: 9, inodes: 3 });
    is_clean(&volume).await;
    volume.close().await.unwrap();
    let volume = site.open().await;
    assert_eq!(volume.directory_quotas()[0].1.used, Usage { bytes: 9, inodes: 3 });
    is_clean(&volume).await;
    volume.close().await.unwrap();
}
