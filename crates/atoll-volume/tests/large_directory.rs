//! A large directory: made, listed page by page while names go, and looked up.
//!
//! `ATOLL_ENTRIES` stands for the number of names.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::{Caller, Errno, FileKind, InodeId, Mode, Name, Operation, Outcome, SessionId};
use atoll_volume::{Durability, Volume, VolumeConfig, VolumeSettings};
use object_store::memory::InMemory;
use object_store::path::Path;

const ENTRIES: u64 = 1_000_000;
const PAGE_ENTRIES: u32 = 1024;
/// For so many names, on a machine that does other things too; more may take proportionally longer.
const TIME_MAX: Duration = Duration::from_secs(120);

async fn open() -> Volume {
    let store = MemoryStore::open(&MemoryMedium::new());
    let settings = VolumeSettings::new(Durability::Object, 1);
    atoll_volume::format(&store, &settings, &Caller::default()).await.unwrap();
    let blob = BlobConfig::new(Arc::new(InMemory::new()), Path::default(), Staging::Memory);
    let opening =
        |epoch, recovered| -> Pin<Box<dyn Future<Output = _> + Send>> { Box::pin(Blob::open(blob, epoch, recovered)) };
    Volume::open(Arc::new(store), opening, VolumeConfig::default()).await.unwrap()
}

async fn call(volume: &Volume, operation: Operation) -> Result<Outcome, Errno> {
    volume.execute(SessionId(1), &Caller::default(), operation).await
}

fn name(number: u64) -> Name {
    Name::new(format!("name-{number:09}").into_bytes()).unwrap()
}

fn number(name: &Name) -> u64 {
    std::str::from_utf8(&name.as_bytes()[5..]).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_directory_is_listed_whole_while_names_go() {
    let entries =
        std::env::var("ATOLL_ENTRIES").map_or(ENTRIES, |text| text.parse().expect("ATOLL_ENTRIES is a number"));
    let start = Instant::now();
    let volume = open().await;
    let make = Operation::MakeDirectory { parent: InodeId::ROOT, name: name(0), permissions: 0o755, umask: 0 };
    let Ok(Outcome::Entry(directory)) = call(&volume, make).await else { panic!("no directory") };
    let parent = directory.inode;
    for number in 0..entries {
        let mode = Mode::new(FileKind::Regular, 0o644);
        let make = Operation::MakeNode { parent, name: name(number), mode, umask: 0, device: 0 };
        call(&volume, make).await.unwrap();
    }
    let made = start.elapsed();

    // Every third name is removed before the listing comes to it, of those in the half that is still to come.
    let is_removed = |number: u64| number >= entries / 2 && number.is_multiple_of(3);
    let (mut after, mut listed, mut removed) = (0, HashSet::new(), Duration::ZERO);
    loop {
        let page = Operation::ReadDirectory {
            inode: parent,
            after,
            entries_max: PAGE_ENTRIES,
            with_attributes: true,
            ahead: false,
        };
        let Ok(Outcome::Listing { entries: page, end }) = call(&volume, page).await else { panic!("no listing") };
        assert!(page.len() <= PAGE_ENTRIES as usize);
        for entry in &page {
            assert!(entry.cookie > after, "positions grow");
            after = entry.cookie;
            let attributes = entry.attributes.expect("attributes of a file that nobody changes");
            assert_eq!((attributes.inode, attributes.links), (entry.inode, 1));
            assert!(listed.insert(number(&entry.name)), "{} is listed twice", entry.name);
        }
        if removed.is_zero() && listed.len() as u64 >= entries / 4 {
            let start = Instant::now();
            for number in (0..entries).filter(|number| is_removed(*number)) {
                call(&volume, Operation::Unlink { parent, name: name(number) }).await.unwrap();
            }
            removed = start.elapsed();
        }
        if end {
            break;
        }
        assert!(!page.is_empty(), "a page that is not the last has entries");
    }
    assert!(!removed.is_zero());
    for number in 0..entries {
        assert_eq!(listed.contains(&number), !is_removed(number), "{}", name(number));
    }
    let all_listed = start.elapsed();

    for number in (0..entries).step_by(97) {
        let found = call(&volume, Operation::Lookup { parent, name: name(number) }).await;
        assert_eq!(found.err(), is_removed(number).then_some(Errno::ENOENT), "{}", name(number));
    }
    let Ok(Outcome::Entry(now)) = call(&volume, Operation::GetAttributes { inode: parent }).await else { panic!() };
    assert_eq!(now.size, listed.len() as u64 * name(0).as_bytes().len() as u64);
    assert_eq!(volume.report().inodes, listed.len() as u64 + 2);
    volume.close().await.unwrap();
    println!(
        "{entries} names: made in {made:?}, listed in {:?}, a sixth removed in {removed:?}, all in {:?}",
        all_listed - made - removed,
        start.elapsed()
    );
    let bound = TIME_MAX * u32::try_from(entries.div_ceil(ENTRIES)).unwrap();
    assert!(start.elapsed() < bound, "{:?}", start.elapsed());
}
