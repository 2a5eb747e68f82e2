//! Snapshots are directories below `.snapshots`, for who has the volume open.

mod support;

use std::sync::Arc;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::operation::{DirectoryEntry, OpenFlags, WriteAt};
use atoll_types::{Attributes, ByteRange, Caller, Errno, InodeId, LockOwner, Name, Operation, Outcome, SessionId};
use atoll_volume::{Durability, Volume, VolumeConfig, VolumeSettings};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use support::{tree, tree_below};

const SESSION: SessionId = SessionId(1);
const OTHER: SessionId = SessionId(2);
/// More than are kept open.
const MANY: usize = 12;

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
        Volume::open(Arc::new(MemoryStore::open(&self.medium)), opening, VolumeConfig::default()).await.unwrap()
    }
}

fn name(text: &str) -> Name {
    Name::new(text.to_owned()).unwrap()
}

async fn ask(volume: &Volume, operation: Operation) -> Result<Outcome, Errno> {
    volume.execute(SESSION, &Caller::default(), operation).await
}

async fn lookup(volume: &Volume, parent: InodeId, text: &str) -> Result<Attributes, Errno> {
    Ok(*ask(volume, Operation::Lookup { parent, name: name(text) }).await?.attributes().unwrap())
}

async fn list(volume: &Volume, inode: InodeId, after: u64, entries_max: u32) -> (Vec<DirectoryEntry>, bool) {
    let list = Operation::ReadDirectory { inode, after, entries_max, with_attributes: true, ahead: false };
    let Ok(Outcome::Listing { entries, end }) = ask(volume, list).await else { panic!() };
    (entries, end)
}

/// A file with this content.
async fn write(volume: &Volume, text: &str, content: &str) -> InodeId {
    let (parent, name) = (InodeId::ROOT, name(text));
    let create = Operation::Create { parent, name, permissions: 0o600, umask: 0, flags: OpenFlags::default() };
    let inode = ask(volume, create).await.unwrap().attributes().unwrap().inode;
    let data = Bytes::from(content.to_owned());
    let write = Operation::Write { inode, at: WriteAt::Offset(0), data, drop_privileges: false };
    ask(volume, write).await.unwrap();
    inode
}

async fn read(volume: &Volume, inode: InodeId) -> Result<String, Errno> {
    let Outcome::Data(bytes) = ask(volume, Operation::Read { inode, range: ByteRange::at(0, 4096) }).await? else {
        panic!()
    };
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn every_snapshot_is_a_directory_and_few_are_open_at_a_time() {
    let volume = Site::new().await.open().await;
    let mut then = Vec::new();
    for round in 0..MANY {
        write(&volume, "file", &format!("round {round}")).await;
        volume.create_snapshot(&format!("s{round}")).await.unwrap();
        then.push(tree(&volume).await);
    }
    assert_eq!(lookup(&volume, InodeId::ROOT, ".snapshots").await.unwrap().inode, InodeId::SNAPSHOTS);
    assert!(list(&volume, InodeId::ROOT, 0, 100).await.0.iter().all(|entry| entry.name.as_bytes() == b"file"));
    // Page by page.
    let (mut names, mut after) = (Vec::new(), 0);
    loop {
        let (entries, end) = list(&volume, InodeId::SNAPSHOTS, after, 5).await;
        after = entries.last().unwrap().cookie;
        names.extend(entries.into_iter().map(|entry| String::from_utf8(entry.name.as_bytes().to_vec()).unwrap()));
        if end {
            break;
        }
    }
    assert_eq!(names, (0..MANY).map(|round| format!("s{round}")).collect::<Vec<_>>());
    for round in (0..MANY).chain((0..MANY).rev()) {
        let root = lookup(&volume, InodeId::SNAPSHOTS, &format!("s{round}")).await.unwrap().inode;
        assert_eq!(tree_below(&volume, root).await, then[round]);
        let file = lookup(&volume, root, "file").await.unwrap().inode;
        assert_eq!(read(&volume, file).await.unwrap(), format!("round {round}"));
        let above = ask(&volume, Operation::Parent { inode: root }).await.unwrap();
        assert_eq!(above.attributes().unwrap().inode, InodeId::SNAPSHOTS);
        assert!(volume.report().snapshots_open <= 8);
    }
    let reads = (0..MANY).map(|round| {
        let volume = volume.clone();
        tokio::spawn(async move {
            let root = lookup(&volume, InodeId::SNAPSHOTS, &format!("s{round}")).await.unwrap().inode;
            let file = lookup(&volume, root, "file").await.unwrap().inode;
            assert_eq!(read(&volume, file).await.unwrap(), format!("round {round}"));
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
    assert_eq!(
        ask(&volume, Operation::Lookup { parent: InodeId::SNAPSHOTS, name: name("none") }).await,
        Err(Errno::ENOENT)
    );
}

#[tokio::test]
async fn who_is_in_a_snapshot_that_is_deleted_never_sees_another_one() {
    let site = Site::new().await;
    let volume = site.open().await;
    write(&volume, "file", "first").await;
    volume.create_snapshot("s").await.unwrap();
    let root = lookup(&volume, InodeId::SNAPSHOTS, "s").await.unwrap().inode;
    let file = lookup(&volume, root, "file").await.unwrap().inode;
    let open = Operation::Open { inode: file, flags: OpenFlags::default() };
    assert_eq!(ask(&volume, open.clone()).await.unwrap().attributes().unwrap().inode, file);
    assert_eq!(read(&volume, file).await.unwrap(), "first");
    volume.delete_snapshot("s").await.unwrap();
    let gone = [Operation::GetAttributes { inode: file }, open, Operation::Lookup { parent: root, name: name("file") }];
    for operation in gone {
        assert_eq!(ask(&volume, operation).await, Err(Errno::ESTALE));
    }
    assert_eq!(list(&volume, InodeId::SNAPSHOTS, 0, 100).await.0, []);
    write(&volume, "file", "other").await;
    volume.create_snapshot("s").await.unwrap();
    assert_eq!(read(&volume, file).await, Err(Errno::ESTALE));
    volume.delete_snapshot("s").await.unwrap();
    volume.close().await.unwrap();
    // The next authority gives the number to nobody either.
    let volume = site.open().await;
    volume.create_snapshot("s").await.unwrap();
    assert_eq!(read(&volume, file).await, Err(Errno::ESTALE));
    assert_eq!(ask(&volume, Operation::Release { inode: file }).await, Ok(Outcome::Done));
    let root = lookup(&volume, InodeId::SNAPSHOTS, "s").await.unwrap().inode;
    let file = lookup(&volume, root, "file").await.unwrap().inode;
    assert_eq!(read(&volume, file).await.unwrap(), "other");
}

#[tokio::test]
async fn files_of_snapshots_are_locked_among_all_who_have_the_volume() {
    let volume = Site::new().await.open().await;
    let own = write(&volume, "file", "x").await;
    volume.create_snapshot("s").await.unwrap();
    let root = lookup(&volume, InodeId::SNAPSHOTS, "s").await.unwrap().inode;
    let inode = lookup(&volume, root, "file").await.unwrap().inode;
    let lock = |session, inode| {
        let volume = volume.clone();
        let (space, kind, range) = (LockSpace::Whole, LockKind::Exclusive, ByteRange::EVERYTHING);
        let lock = Lock { space, owner: LockOwner(1), pid: 1, kind, range };
        async move {
            let set = Operation::SetLock { inode, lock, wait: false };
            volume.execute(session, &Caller::default(), set).await
        }
    };
    assert_eq!(lock(SESSION, inode).await, Ok(Outcome::Done));
    assert_eq!(lock(OTHER, inode).await, Err(Errno::EAGAIN));
    assert_eq!(lock(OTHER, own).await, Ok(Outcome::Done), "the file itself is another one");
    volume.end_session(SESSION).await;
    assert_eq!(lock(OTHER, inode).await, Ok(Outcome::Done));
    volume.delete_snapshot("s").await.unwrap();
    assert_eq!(lock(OTHER, inode).await, Err(Errno::ESTALE));
}
