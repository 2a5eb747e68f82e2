//! Small files share objects: what a thousand of them cost in requests to the object store.

#[path = "../../atoll-blob/tests/support/mod.rs"]
mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_object::ObjectRoot;
use atoll_store::{SlateConfig, SlateStore, Store};
use atoll_types::operation::{OpenFlags, WriteAt};
use atoll_types::{ByteRange, Caller, InodeId, Name, Operation, Outcome, SessionId};
use atoll_volume::{Durability, Volume, VolumeConfig, VolumeSettings};
use object_store::memory::InMemory;
use object_store::path::Path;
use support::{Counting, sample};

const FILES: u64 = 1000;
const FILE_BYTES: usize = 4096;
/// Of all kinds, for the file bytes: uploads, and whatever else the blob asks for.
const SEGMENT_REQUESTS_MAX: u64 = 10;
/// For the metadata in the object store, once the volume is closed; while it runs its log lies on the local disk.
const METADATA_REQUESTS_MAX: u64 = 40;

/// Create, write, close: one after another, as a program that unpacks an archive does.
async fn write_files(volume: &Volume) {
    let caller = Caller::default();
    let session = SessionId(1);
    for number in 0..FILES {
        let name = Name::new(format!("f{number}").into_bytes()).unwrap();
        let parent = InodeId::ROOT;
        let create = Operation::Create { parent, name, permissions: 0o644, umask: 0, flags: OpenFlags::default() };
        let Ok(Outcome::Created { attributes, .. }) = volume.execute(session, &caller, create).await else { panic!() };
        let inode = attributes.inode;
        let data = sample(number, FILE_BYTES, true);
        let write = Operation::Write { inode, at: WriteAt::Offset(0), data, drop_privileges: false };
        volume.execute(session, &caller, write).await.unwrap();
        volume.execute(session, &caller, Operation::Release { inode }).await.unwrap();
    }
    volume.execute(session, &caller, Operation::Sync).await.unwrap();
}

async fn read_files(volume: &Volume) {
    for number in 0..FILES {
        let name = Name::new(format!("f{number}").into_bytes()).unwrap();
        let lookup = Operation::Lookup { parent: InodeId::ROOT, name };
        let Ok(Outcome::Entry(found)) = volume.execute(SessionId(2), &Caller::default(), lookup).await else {
            panic!()
        };
        let read = Operation::Read { inode: found.inode, range: ByteRange::at(0, 2 * FILE_BYTES as u64) };
        let bytes = volume.execute(SessionId(2), &Caller::default(), read).await;
        assert_eq!(bytes, Ok(Outcome::Data(sample(number, FILE_BYTES, true))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_small_files_cost_few_requests() {
    let folder = tempfile::tempdir().unwrap();
    let (meta, segments) = (Counting::new(Arc::new(InMemory::new())), Counting::new(Arc::new(InMemory::new())));
    let open = async || {
        let root = ObjectRoot { store: meta.clone(), folder: None, url: "memory:".into() };
        let config = SlateConfig {
            place: "meta".into(),
            root,
            log: Some(folder.path().join("log")),
            memtable_bytes: 32 << 20,
            garbage_interval: Duration::from_secs(300),
            sealing: None,
        };
        let store: Arc<dyn Store> = Arc::new(SlateStore::open(config).await.unwrap());
        store
    };
    let open_volume = async |store| {
        let staging = Staging::Folder(folder.path().join("staging"));
        let config = BlobConfig::new(segments.clone(), Path::default(), staging);
        let opening = |epoch, recovered| -> Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(config, epoch, recovered))
        };
        Volume::open(store, opening, VolumeConfig::default()).await.unwrap()
    };
    let store = open().await;
    let settings = VolumeSettings::new(Durability::Local, 1);
    atoll_volume::format(&*store, &settings, &Caller::default()).await.unwrap();
    let volume = open_volume(store).await;
    let before = (segments.requests(), meta.requests());
    write_files(&volume).await;
    let written = (segments.requests() - before.0, meta.requests() - before.1);
    volume.close().await.unwrap();
    drop(volume);
    let closed = (segments.requests() - before.0, meta.requests() - before.1);

    let volume = open_volume(open().await).await;
    let before = segments.requests();
    read_files(&volume).await;
    let read = segments.requests() - before;
    volume.close().await.unwrap();
    println!(
        "{FILES} files of {FILE_BYTES} bytes, (segments, metadata) requests: written and synced {written:?}, closed \
         {closed:?}; read again in order by {read} requests for segments"
    );
    assert!(closed.0 >= 1, "the bytes are in the object store");
    assert!(closed.0 <= SEGMENT_REQUESTS_MAX, "{closed:?}");
    assert!(closed.1 <= METADATA_REQUESTS_MAX, "{closed:?}");
    // Cold, each file is fetched by itself: what is read ahead is the rest of the file, not its neighbours.
    assert!(read <= FILES, "{read}");
}
