//! A volume that another server has taken over shows nobody what it cannot make durable any more.

use std::sync::Arc;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::{Caller, Errno, InodeId, Name, Operation, OperationSeq, Outcome, SessionId};
use atoll_volume::{Asking, Durability, Mark, Volume, VolumeConfig, VolumeSettings};
use object_store::memory::InMemory;
use object_store::path::Path;

const OURS: SessionId = SessionId(1);
const OTHER: SessionId = SessionId(2);

async fn open(medium: &MemoryMedium) -> Volume {
    let config = BlobConfig::new(Arc::new(InMemory::new()), Path::default(), Staging::Memory);
    let opening = |epoch, recovered| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
        Box::pin(Blob::open(config, epoch, recovered))
    };
    Volume::open(Arc::new(MemoryStore::open(medium)), opening, VolumeConfig::default()).await.unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text.to_owned()).unwrap()
}

async fn make(volume: &Volume, sequence: u64, text: &str) {
    let caller = Caller::default();
    let mark =
        Mark::Numbered { sequence: OperationSeq(sequence), acknowledged: OperationSeq(0), released: OperationSeq(0) };
    let operation = Operation::MakeDirectory { parent: InodeId::ROOT, name: name(text), permissions: 0o755, umask: 0 };
    let asking = Asking { mark, ..Asking::new(OURS, &caller) };
    volume.execute_asked(asking, operation).await.0.unwrap();
}

async fn look(volume: &Volume, text: &str) -> Result<Outcome, Errno> {
    let operation = Operation::Lookup { parent: InodeId::ROOT, name: name(text) };
    volume.execute(OTHER, &Caller::default(), operation).await
}

#[tokio::test]
async fn what_never_becomes_durable_is_shown_to_nobody_else() {
    let medium = MemoryMedium::new();
    let settings = VolumeSettings::new(Durability::Object, 1);
    atoll_volume::format(&MemoryStore::open(&medium), &settings, &Caller::default()).await.unwrap();
    let volume = open(&medium).await;
    make(&volume, 1, "durable").await;
    look(&volume, "durable").await.expect("it is made durable, then shown");
    assert!(!volume.is_fenced());

    let taken = open(&medium).await;
    make(&volume, 2, "late").await;
    assert_eq!(look(&volume, "late").await, Err(Errno::ESTALE), "its client may have to make it again elsewhere");
    assert!(volume.is_fenced());
    assert_eq!(look(&taken, "late").await, Err(Errno::ENOENT));

    volume.heard(OURS, OperationSeq(3));
    look(&volume, "late").await.expect("its client makes it again, in its place");
    taken.close().await.unwrap();
}
