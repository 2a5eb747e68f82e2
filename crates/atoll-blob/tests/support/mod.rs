//! What the tests share: an object store that counts and can refuse, and a
//! stand-in for the committer that remembers what it was told to record.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_blob::{Blob, BlobConfig, Recovered, Staging, SyncPoint};
use atoll_types::{Epoch, SegmentId};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// No promise takes longer to come true; a test that hangs fails instead.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Counting {
    store: Arc<dyn ObjectStore>,
    pub requests: AtomicU64,
    pub puts_fail: AtomicBool,
}

impl Counting {
    pub fn new(store: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Counting { store, requests: AtomicU64::new(0), puts_fail: AtomicBool::new(false) })
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    fn note(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
    }

    fn refuse(&self) -> Result<()> {
        match self.puts_fail.load(Ordering::SeqCst) {
            true => Err(object_store::Error::Generic { store: "counting", source: "told to fail".into() }),
            false => Ok(()),
        }
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counting {}", self.store)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.note();
        self.refuse()?;
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.note();
        self.refuse()?;
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.note();
        self.store.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.note();
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.note();
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.note();
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.note();
        self.store.copy_opts(from, to, options).await
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    Memory,
    Folder,
    Objects,
}

pub const SETUPS: [Setup; 3] = [Setup::Memory, Setup::Folder, Setup::Objects];

/// A place that outlives the blobs opened on it, and what was committed there.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub objects: Arc<Counting>,
    pub setup: Setup,
    epoch: u64,
    /// Segments recorded as open, with their fragments.
    open: BTreeMap<SegmentId, Vec<(u32, Bytes)>>,
}

impl Place {
    pub fn new(setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = match setup {
            Setup::Objects => Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap()),
            _ => Arc::new(InMemory::new()),
        };
        Place { folder, objects: Counting::new(store), setup, epoch: 0, open: BTreeMap::new() }
    }

    pub fn staging(&self) -> PathBuf {
        match self.setup {
            Setup::Objects => self.folder.path().join("volume/data"),
            _ => self.folder.path().join("staging"),
        }
    }

    pub fn config(&self) -> BlobConfig {
        let staging = match self.setup {
            Setup::Memory => Staging::Memory,
            Setup::Folder => Staging::Folder(self.staging()),
            Setup::Objects => Staging::Objects(self.staging()),
        };
        BlobConfig::new(self.objects.clone(), Path::from("volume/data"), staging)
    }

    /// Opens as the next authority would.
    pub async fn open(&mut self, config: BlobConfig) -> Blob {
        self.epoch += 1;
        let recovered = self.open.iter().map(|(segment, f)| Recovered { segment: *segment, fragments: f.clone() });
        let recovered = recovered.collect();
        tokio::time::timeout(PATIENCE, Blob::open(config, Epoch(self.epoch), recovered)).await.unwrap().unwrap()
    }

    /// What the committer does with a sync point.
    pub fn commit(&mut self, blob: &Blob, point: SyncPoint) {
        for segment in point.opened {
            assert!(self.open.insert(segment, Vec::new()).is_none(), "{segment} opened twice");
        }
        for (segment, offset, bytes) in point.fragments {
            self.open.get_mut(&segment).expect("opened before").push((offset, bytes));
        }
        for segment in &point.uploaded {
            self.open.remove(segment).expect("opened before");
        }
        blob.forget(&point.uploaded);
    }

    pub async fn sync(&mut self, blob: &Blob, inline_bytes_max: usize) {
        let point = tokio::time::timeout(PATIENCE, blob.sync(inline_bytes_max)).await.unwrap().unwrap();
        self.commit(blob, point);
    }

    pub async fn close(&mut self, blob: Blob) {
        let point = tokio::time::timeout(PATIENCE, blob.close()).await.unwrap().unwrap();
        self.commit(&blob, point);
        assert_eq!(self.open.len(), 0, "everything is uploaded");
    }

    pub fn recorded_open(&self) -> usize {
        self.open.len()
    }

    /// Syncs whenever the blob asks for it, until everything recorded is uploaded.
    pub async fn drain(&mut self, blob: &Blob) {
        let changed = blob.changed();
        let all = async {
            while !self.open.is_empty() {
                let point = blob.sync(0).await.unwrap();
                self.commit(blob, point);
                if !self.open.is_empty() {
                    changed.notified().await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap();
    }
}

/// `length` bytes that depend on `seed`, incompressible when `noise`.
pub fn sample(seed: u64, length: usize, noise: bool) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes = (0..length).map(|index| {
        if noise {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        } else {
            (seed as usize + index / 97) as u8
        }
    });
    bytes.collect::<Vec<_>>().into()
}
