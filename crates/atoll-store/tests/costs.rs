//! What reads and starts cost does not grow with what was written, nor with the starts before.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use atoll_object::{ObjectOptions, ObjectRoot};
use atoll_store::{Batch, Read, Scan, SlateConfig, SlateStore, Store};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A store in memory that counts reads.
#[derive(Debug, Default)]
struct Counting {
    store: InMemory,
    reads: AtomicU64,
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counting {}", self.store)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.store.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &ObjectPath, ranges: &[std::ops::Range<u64>]) -> Result<Vec<Bytes>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.store.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

fn config(root: ObjectRoot, log: Option<&Path>, memtable_bytes: usize) -> SlateConfig {
    SlateConfig {
        root,
        place: "store".into(),
        log: log.map(Path::to_owned),
        memtable_bytes,
        garbage_interval: Duration::from_secs(300),
        sealing: None,
    }
}

async fn commit(store: &SlateStore, entries: impl Iterator<Item = (String, Vec<u8>)>) {
    let mut batch = Batch::default();
    entries.for_each(|(key, value)| batch.put(key, value));
    let seq = store.commit(batch).await.unwrap();
    store.durable(seq).await.unwrap();
}

#[tokio::test]
async fn many_entries_are_read_in_few_requests() {
    const ENTRIES: usize = 2_000;
    let objects = Arc::new(Counting::default());
    let root = || ObjectRoot { store: objects.clone(), folder: None, url: "memory:".into() };
    let store = SlateStore::open(config(root(), None, 4 << 20)).await.unwrap();
    for number in 0..ENTRIES {
        commit(&store, std::iter::once((format!("key {number:08}"), vec![number as u8; 8_192]))).await;
    }
    store.close().await.unwrap();
    let store = SlateStore::open(config(root(), None, 4 << 20)).await.unwrap();
    let before = objects.reads.load(Ordering::SeqCst);
    let scan = Scan { start: "key ".into(), end: "key!".into(), entries_max: ENTRIES };
    let page = store.scan(scan).await.unwrap();
    assert!(page.entries.iter().map(|(_, value)| value.len()).eq(std::iter::repeat_n(8_192, ENTRIES)));
    let reads = objects.reads.load(Ordering::SeqCst) - before;
    assert!((1..ENTRIES as u64 / 10).contains(&reads), "{reads} requests");
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_scan_reads_many_blocks_with_each_request() {
    const ENTRIES: u64 = 20_000;
    let objects = Arc::new(Counting::default());
    let root = || ObjectRoot { store: objects.clone(), folder: None, url: "memory:".into() };
    let key = |number: u64| format!("key {number:08}");
    // Nothing in it repeats, so that it takes its room where it is stored.
    let value = |number: u64| {
        let mut value = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().repeat(12);
        value.iter_mut().zip(0..).for_each(|(byte, index): (&mut u8, u8)| *byte = byte.wrapping_mul(index | 1));
        value
    };
    let store = SlateStore::open(config(root(), None, 1 << 20)).await.unwrap();
    for first in (0..ENTRIES).step_by(1000) {
        commit(&store, (first..first + 1000).map(|number| (key(number), value(number)))).await;
    }
    store.close().await.unwrap();
    let store = SlateStore::open(config(root(), None, 1 << 20)).await.unwrap();
    let before = objects.reads.load(Ordering::SeqCst);
    let (mut next, mut found) = (Some(key(0).into()), 0);
    while let Some(start) = next {
        let page = store.scan(Scan { start, end: key(ENTRIES).into(), entries_max: 1000 }).await.unwrap();
        found += page.entries.len() as u64;
        next = page.next;
    }
    assert_eq!(found, ENTRIES);
    let reads = objects.reads.load(Ordering::SeqCst) - before;
    // Some 600 blocks. A page of 1000 entries may begin in two objects, and read their indexes.
    assert!((5..100).contains(&reads), "{reads}");
}

#[tokio::test]
async fn what_servers_that_were_killed_have_left_in_the_log_is_covered_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (url, log) = (format!("file://{}/objects", folder.path().display()), folder.path().join("log"));
    let open = || {
        SlateStore::open(config(atoll_object::open(&url, &ObjectOptions::default()).unwrap(), Some(&log), 256 << 20))
    };
    let value = |round: u8, number: u8| vec![round ^ number; 1 << 20];
    for round in 0..3 {
        let store = open().await.unwrap();
        commit(&store, (0..6).map(|number| (format!("key {number}"), value(round, number)))).await;
        // Dropped as by a crash: nothing is written out.
    }
    let logs = || std::fs::read_dir(&log).unwrap().flatten().filter(|entry| entry.path().extension().is_some()).count();
    assert_eq!(logs(), 3);
    let store = open().await.unwrap();
    let is_covered = async {
        while logs() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_covered).await.expect("earlier files go");
    drop(store);
    let store = open().await.unwrap();
    for number in 0..6 {
        let found = store.get(format!("key {number}").as_bytes()).await.unwrap();
        assert!(found.is_some_and(|found| found[..] == value(2, number)), "key {number}");
    }
    store.close().await.unwrap();
}
