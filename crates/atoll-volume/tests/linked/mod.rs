//! A volume whose root is a link to a bucket in memory.

// Each of the tests that share it uses a part.
#![allow(dead_code)]

pub mod way;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_link::{Bucket, Freshness, LinkSettings, MemoryBucket, ObjectKey, RequestKind};
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::operation::{DirectoryEntry, OpenFlags, RenameMode, WriteAt};
use atoll_types::{Attributes, ByteRange, Caller, Errno, InodeId, Name, Operation, Outcome, SessionId};
use atoll_volume::{Durability, Volume, VolumeConfig, VolumeSettings};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;

pub const SESSION: SessionId = SessionId(1);
pub const ROOT: InodeId = InodeId::ROOT;

pub struct Site {
    pub medium: MemoryMedium,
    pub objects: Arc<InMemory>,
    pub bucket: Arc<MemoryBucket>,
    /// [`way::Way::refused`], of authorities to come.
    pub refused: Option<&'static str>,
    /// Of the newest authority.
    is_cut: Mutex<Arc<AtomicBool>>,
}

impl Site {
    pub async fn new() -> Site {
        Site::with(MemoryBucket::new("data")).await
    }

    pub async fn with(bucket: MemoryBucket) -> Site {
        let (medium, objects) = (MemoryMedium::new(), Arc::new(InMemory::new()));
        let site = Site { medium, objects, bucket: Arc::new(bucket), refused: None, is_cut: Mutex::default() };
        let settings = VolumeSettings::new(Durability::Object, 1);
        atoll_volume::format(&MemoryStore::open(&site.medium), &settings, &Caller::default()).await.unwrap();
        site
    }

    pub async fn open(&self) -> Volume {
        let config = BlobConfig::new(self.objects.clone(), Path::default(), Staging::Memory);
        let opening = |epoch, recovered| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(config, epoch, recovered))
        };
        let config = VolumeConfig { inode_cache_max: 8, ..VolumeConfig::default() };
        let volume = Volume::open(Arc::new(MemoryStore::open(&self.medium)), opening, config).await.unwrap();
        let is_cut = Arc::<AtomicBool>::default();
        *self.is_cut.lock().unwrap() = is_cut.clone();
        let way = Arc::new(way::Way { bucket: self.bucket.clone(), is_cut, refused: self.refused });
        volume.start_links(Arc::new(move |_, uploads| {
            way.bucket.set_uploads(uploads);
            Ok(way.clone() as Arc<dyn Bucket>)
        }));
        volume
    }

    /// The newest authority sends the bucket nothing more.
    pub fn cut(&self) {
        self.is_cut.lock().unwrap().store(true, Ordering::Relaxed);
    }

    /// A volume whose root is linked to all of the bucket.
    pub async fn linked(&self) -> Volume {
        self.linked_with(Freshness::Strong).await
    }

    pub async fn linked_with(&self, freshness: Freshness) -> Volume {
        self.linked_as(LinkSettings { freshness, ..LinkSettings::parse("s3://data").unwrap() }).await
    }

    pub async fn linked_as(&self, settings: LinkSettings) -> Volume {
        let volume = self.open().await;
        volume.link(ROOT, settings).await.unwrap();
        volume
    }

    pub fn put(&self, at: &str, bytes: &str) {
        self.bucket.put_object(&key(at), bytes.to_owned());
    }

    pub fn objects(&self) -> BTreeMap<String, String> {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        self.bucket.objects().into_iter().map(|(key, bytes)| (key.to_string(), text(bytes))).collect()
    }

    pub fn all_requests(&self) -> u64 {
        self.bucket.requests().values().sum()
    }

    pub fn requests(&self, kind: RequestKind) -> u64 {
        self.bucket.requests().get(&kind).copied().unwrap_or_default()
    }
}

pub fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

pub fn name(text: &str) -> Name {
    Name::new(text.to_owned()).unwrap()
}

pub async fn ask(volume: &Volume, operation: Operation) -> Result<Outcome, Errno> {
    volume.execute(SESSION, &Caller { uid: 7, gid: 7, pid: 1 }, operation).await
}

pub async fn entry(volume: &Volume, operation: Operation) -> Result<Attributes, Errno> {
    Ok(*ask(volume, operation).await?.attributes().unwrap())
}

pub async fn lookup(volume: &Volume, parent: InodeId, text: &str) -> Result<Attributes, Errno> {
    entry(volume, Operation::Lookup { parent, name: name(text) }).await
}

/// What a path leads to.
pub async fn walk(volume: &Volume, path: &str) -> Result<Attributes, Errno> {
    let mut at = entry(volume, Operation::GetAttributes { inode: ROOT }).await?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        at = lookup(volume, at.inode, part).await?;
    }
    Ok(at)
}

pub async fn list_in(volume: &Volume, inode: InodeId, entries_max: u32) -> Vec<DirectoryEntry> {
    let (mut listed, mut after) = (Vec::new(), 0);
    loop {
        let list = Operation::ReadDirectory { inode, after, entries_max, with_attributes: true, ahead: false };
        let Ok(Outcome::Listing { entries, end }) = ask(volume, list).await else { panic!() };
        after = entries.last().map_or(after, |entry| entry.cookie);
        listed.extend(entries);
        if end {
            return listed;
        }
    }
}

pub async fn names(volume: &Volume, path: &str) -> Vec<String> {
    let inode = walk(volume, path).await.unwrap().inode;
    let text = |entry: DirectoryEntry| String::from_utf8(entry.name.as_bytes().to_vec()).unwrap();
    list_in(volume, inode, 4096).await.into_iter().map(text).collect()
}

/// An open file with this content.
pub async fn create(volume: &Volume, parent: InodeId, text: &str, content: &str) -> InodeId {
    let flags = OpenFlags::default();
    let create = Operation::Create { parent, name: name(text), permissions: 0o640, umask: 0, flags };
    let inode = entry(volume, create).await.unwrap().inode;
    put(volume, inode, 0, content).await;
    inode
}

pub async fn put(volume: &Volume, inode: InodeId, at: u64, content: &str) {
    let data = Bytes::from(content.to_owned());
    ask(volume, Operation::Write { inode, at: WriteAt::Offset(at), data, drop_privileges: false }).await.unwrap();
}

/// The same, not open.
pub async fn write(volume: &Volume, parent: InodeId, text: &str, content: &str) -> InodeId {
    let inode = create(volume, parent, text, content).await;
    ask(volume, Operation::Release { inode }).await.unwrap();
    inode
}

pub async fn make_directory(volume: &Volume, parent: InodeId, text: &str) -> InodeId {
    let make = Operation::MakeDirectory { parent, name: name(text), permissions: 0o755, umask: 0 };
    entry(volume, make).await.unwrap().inode
}

pub async fn read(volume: &Volume, inode: InodeId) -> Result<String, Errno> {
    let Outcome::Data(bytes) = ask(volume, Operation::Read { inode, range: ByteRange::at(0, 1 << 20) }).await? else {
        panic!()
    };
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

pub async fn read_path(volume: &Volume, path: &str) -> Result<String, Errno> {
    let found = walk(volume, path).await?;
    read(volume, found.inode).await
}

pub async fn unlink(volume: &Volume, parent: InodeId, text: &str) {
    ask(volume, Operation::Unlink { parent, name: name(text) }).await.unwrap();
}

pub async fn rename(
    volume: &Volume,
    parent: InodeId,
    text: &str,
    new_parent: InodeId,
    new_text: &str,
    mode: RenameMode,
) {
    let (old, new_name) = (name(text), name(new_text));
    ask(volume, Operation::Rename { parent, name: old, new_parent, new_name, mode }).await.unwrap();
}

/// Until the bucket is as the volume is.
pub async fn settle(volume: &Volume) {
    settle_but(volume, 0).await;
}

/// The same, but for so many files that it has no place for.
pub async fn settle_but(volume: &Volume, refused: usize) {
    // Answers that are lost one after another make long pauses.
    for _ in 0..2400 {
        let reports = volume.links().await;
        let is_refused = |waiting: &atoll_volume::Unpublished| waiting.why == way::REFUSED;
        let is_settled = |report: &atoll_volume::LinkReport| {
            report.unpublished == refused && report.waiting.iter().all(is_refused) && report.deleting == 0
        };
        if reports.iter().all(is_settled) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the bucket is not as the volume is: {:?}", volume.links().await);
}

pub fn tree(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(key, bytes)| ((*key).to_owned(), (*bytes).to_owned())).collect()
}
