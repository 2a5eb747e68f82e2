//! What is read from an object store takes few requests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_object::ObjectRoot;
use atoll_store::{Batch, Read as _, Scan, SlateConfig, SlateStore, Store as _};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// Counts what is read.
#[derive(Debug, Default)]
struct Counting {
    store: InMemory,
    gets: AtomicU64,
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counting {}", self.store)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.store.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key {number:08}"))
}

#[tokio::test]
async fn a_scan_reads_many_blocks_with_each_request() {
    const ENTRIES: u64 = 20_000;
    let objects = Arc::new(Counting::default());
    let open = || {
        SlateStore::open(SlateConfig {
            root: ObjectRoot { store: objects.clone(), folder: None, url: "memory:".into() },
            place: "store".into(),
            log: None,
            memtable_bytes: 1 << 20,
            garbage_interval: Duration::from_secs(300),
            sealing: None,
        })
    };
    let store = open().await.unwrap();
    for first in (0..ENTRIES).step_by(1000) {
        let mut batch = Batch::default();
        for number in first..first + 1000 {
            // Nothing in it repeats, so that it takes its room where it is stored.
            let mut value = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().repeat(12);
            value.iter_mut().zip(0..).for_each(|(byte, index): (&mut u8, u8)| *byte = byte.wrapping_mul(index | 1));
            batch.put(key(number), value);
        }
        let seq = store.commit(batch).await.unwrap();
        store.durable(seq).await.unwrap();
    }
    store.close().await.unwrap();
    let store = open().await.unwrap();
    let before = objects.gets.load(Ordering::SeqCst);
    let (mut next, mut found) = (Some(key(0)), 0);
    while let Some(start) = next {
        let page = store.scan(Scan { start, end: key(ENTRIES), entries_max: 1000 }).await.unwrap();
        found += page.entries.len() as u64;
        next = page.next;
    }
    assert_eq!(found, ENTRIES);
    let gets = objects.gets.load(Ordering::SeqCst) - before;
    // Some 600 blocks. A page of 1000 entries may begin in two objects, and read their indexes.
    assert!((5..100).contains(&gets), "{gets}");
}
