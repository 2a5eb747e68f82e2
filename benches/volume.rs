//! A volume in memory, with 100,000 inodes cached: operations from the call to the answer, without sockets and disks.
//!
//! One thread runs everything, so commits are made while somebody waits for them. Unless a benchmark's name says
//! otherwise, that is between the measured parts.

use std::cell::{LazyCell, RefCell};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_lease::{Recall, Rights};
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::operation::{OpenFlags, WriteAt};
use atoll_types::{Caller, FileKind, InodeId, Made, Mode, Name, Operation, Outcome, SessionId, Timestamp, limits};
use atoll_volume::{Durability, Earned, Volume, VolumeConfig, VolumeSettings};
use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use object_store::memory::InMemory;
use object_store::path::Path;
use tokio::runtime::Runtime;

const INODES: u64 = 100_000;
/// Files to write to.
const FILES: u64 = 1_000;
/// Operations between two commits.
const BATCH: u64 = 1_000;
const PAGE_ENTRIES: u32 = 512;
const PAIRS: u64 = limits::COMPOUND_OPERATIONS_MAX as u64 / 2;
/// It keeps what it is told, under leases.
const KEEPING: SessionId = SessionId(1);
const KEEPING_NOTHING: SessionId = SessionId(2);
const CALLER: Caller = Caller { uid: 1000, gid: 1000, pid: 4321 };

struct World {
    runtime: Runtime,
    volume: Volume,
    /// Its names are looked up and listed.
    large: InodeId,
    /// Empty between the measured parts; each session changes one of them alone.
    small: [InodeId; 2],
    files: Vec<InodeId>,
    bytes: Bytes,
    step: u64,
}

impl World {
    fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let volume = runtime.block_on(open());
        let setting_up = SessionId(3);
        volume.enroll(setting_up);
        volume.enroll(KEEPING);
        let none = InodeId::ROOT;
        let mut world =
            World { runtime, volume, large: none, small: [none; 2], files: Vec::new(), bytes: noise(4096), step: 0 };
        let written = world.directory(setting_up, "written");
        world.large = world.directory(setting_up, "large");
        world.small = ["small", "other"].map(|text| world.directory(setting_up, text));
        for number in 0..INODES {
            let mode = Mode::new(FileKind::Regular, 0o644);
            let make = Operation::MakeNode { parent: world.large, name: name(number), mode, umask: 0, device: 0 };
            world.call(setting_up, make);
        }
        world.commit();
        // Nobody holds what it made.
        world.runtime.block_on(world.volume.end_session(setting_up));
        for number in 0..FILES {
            let (Outcome::Created { attributes, .. }, _) = world.call(KEEPING, create(written, number)) else {
                panic!("not created")
            };
            world.call(KEEPING, write(attributes.inode, &world.bytes));
            world.files.push(attributes.inode);
        }
        world.commit();
        assert!(world.volume.report().inodes_cached as u64 >= INODES);
        world
    }

    fn call(&self, session: SessionId, operation: Operation) -> (Outcome, Earned) {
        let (result, earned) = self.runtime.block_on(self.volume.execute_leased(session, &CALLER, operation));
        (result.unwrap(), earned)
    }

    /// Make everything durable, and how long that took.
    fn commit(&self) -> Duration {
        let start = Instant::now();
        self.call(KEEPING, Operation::Sync);
        start.elapsed()
    }

    fn directory(&self, session: SessionId, text: &str) -> InodeId {
        let name = Name::new(text.as_bytes().to_vec()).unwrap();
        let make = Operation::MakeDirectory { parent: InodeId::ROOT, name, permissions: 0o755, umask: 0 };
        let (Outcome::Entry(attributes), _) = self.call(session, make) else { panic!("no directory") };
        attributes.inode
    }

    /// All numbers below `count` in turn, but no neighbours.
    fn next(&mut self, count: u64) -> u64 {
        self.step += 1;
        self.step * 7_777_777 % count
    }

    /// Execute the operations one after another.
    fn time(&self, session: SessionId, operations: Vec<Operation>) -> (Duration, Vec<Outcome>) {
        self.runtime.block_on(async {
            let mut outcomes = Vec::with_capacity(operations.len());
            let start = Instant::now();
            for operation in operations {
                outcomes.push(self.volume.execute_leased(session, &CALLER, operation).await.0.unwrap());
            }
            (start.elapsed(), outcomes)
        })
    }

    /// The same for what the session made before it asked.
    fn time_made(&self, journal: Vec<(Made, Operation)>) -> Duration {
        self.runtime.block_on(async {
            let start = Instant::now();
            for (made, operation) in journal {
                self.volume.execute_made(KEEPING, &made, operation).await.0.unwrap();
            }
            start.elapsed()
        })
    }

    /// Create files, and remove them again when the time was taken.
    fn create(&self, session: SessionId, parent: InodeId, count: u64, commits: bool) -> Duration {
        let (spent, made) = self.time(session, (0..count).map(|number| create(parent, number)).collect());
        let commit = self.commit();
        let made = made.iter().map(|outcome| outcome.attributes().unwrap().inode);
        self.remove(session, parent, made);
        if commits { spent + commit } else { spent }
    }

    /// Remove files that were created one after another, as their client would: it gives up what it holds on them.
    fn remove(&self, session: SessionId, parent: InodeId, made: impl Iterator<Item = InodeId>) {
        for (number, inode) in made.enumerate() {
            self.call(session, Operation::Release { inode });
            let (_, earned) = self.call(session, Operation::Unlink { parent, name: name(number as u64) });
            self.volume.given_up(session, &[Recall { inode, rights: Rights::ALL, issue: earned.order }]);
        }
        self.commit();
    }

    /// Journals of new files and their first 4 KiB, in numbers that were reserved for them.
    fn journals(&self, parent: InodeId, count: u64) -> Vec<Vec<(Made, Operation)>> {
        assert!(count * PAIRS <= u64::from(limits::INODES_RESERVED));
        let (first, _) = self.runtime.block_on(self.volume.reserve(KEEPING)).unwrap();
        let at = Timestamp::now();
        let made = |inode| Made { caller: CALLER, at, inode };
        let pair = |number: u64| {
            let inode = InodeId(first.0 + number);
            [(made(Some(inode)), create(parent, number)), (made(None), write(inode, &self.bytes))]
        };
        (0..count).map(|batch| (batch * PAIRS..(batch + 1) * PAIRS).flat_map(pair).collect()).collect()
    }
}

async fn open() -> Volume {
    let store = MemoryStore::open(&MemoryMedium::new());
    let settings = VolumeSettings::new(Durability::Object, 1);
    atoll_volume::format(&store, &settings, &Caller::default()).await.unwrap();
    let blob = BlobConfig::new(Arc::new(InMemory::new()), Path::default(), Staging::Memory);
    let opening =
        |epoch, recovered| -> Pin<Box<dyn Future<Output = _> + Send>> { Box::pin(Blob::open(blob, epoch, recovered)) };
    Volume::open(Arc::new(store), opening, VolumeConfig::default()).await.unwrap()
}

fn name(number: u64) -> Name {
    Name::new(format!("name-{number:09}").into_bytes()).unwrap()
}

fn create(parent: InodeId, number: u64) -> Operation {
    Operation::Create { parent, name: name(number), permissions: 0o644, umask: 0o22, flags: OpenFlags::default() }
}

fn write(inode: InodeId, bytes: &Bytes) -> Operation {
    Operation::Write { inode, at: WriteAt::Offset(0), data: bytes.clone(), drop_privileges: false }
}

/// Bytes that do not compress.
fn noise(count: usize) -> Bytes {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Time `iterations`, at most `most` at a time.
fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    world: &RefCell<LazyCell<World>>,
    most: u64,
    mut time: impl FnMut(&mut World, u64) -> Duration,
) {
    group.bench_function(name, |b| {
        let mut world = world.borrow_mut();
        let world = LazyCell::force_mut(&mut world);
        b.iter_custom(|iterations| {
            let (mut left, mut spent) = (iterations, Duration::ZERO);
            while left > 0 {
                let now = left.min(most);
                spent += time(world, now);
                left -= now;
            }
            spent
        });
    });
}

fn volume(c: &mut Criterion) {
    let world: RefCell<LazyCell<World>> = RefCell::new(LazyCell::new(World::new));
    let mut group = c.benchmark_group("volume, 100,000 inodes cached");
    for (place, session, text) in [(0, KEEPING, ""), (1, KEEPING_NOTHING, ", by a session without leases")] {
        bench(&mut group, &format!("lookup{text}"), &world, BATCH, |world, count| {
            let numbers: Vec<_> = (0..count).map(|_| world.next(INODES)).collect();
            let lookup = |number| Operation::Lookup { parent: world.large, name: name(number) };
            world.time(session, numbers.into_iter().map(lookup).collect()).0
        });
        bench(&mut group, &format!("create{text}"), &world, BATCH, |world, count| {
            world.create(session, world.small[place], count, false)
        });
    }
    bench(&mut group, "create + its part of a commit of 1,000", &world, BATCH, |world, count| {
        world.create(KEEPING, world.small[0], count, true)
    });
    for commits in [false, true] {
        let text = if commits { " + its part of a commit of 1,000" } else { "" };
        bench(&mut group, &format!("overwrite of 4 KiB{text}"), &world, BATCH, |world, count| {
            let files: Vec<_> = (0..count).map(|_| world.next(FILES) as usize).collect();
            let writes = files.into_iter().map(|file| write(world.files[file], &world.bytes)).collect();
            let (spent, _) = world.time(KEEPING, writes);
            let commit = world.commit();
            if commits { spent + commit } else { spent }
        });
    }
    let most = u64::from(limits::INODES_RESERVED) / PAIRS;
    let pairs = format!("journal batch of {PAIRS} × (create + write of 4 KiB)");
    bench(&mut group, &pairs, &world, most, |world, count| {
        let parent = world.small[0];
        let journals = world.journals(parent, count);
        let made: Vec<_> = journals.iter().flatten().filter_map(|(made, _)| made.inode).collect();
        let spent = journals.into_iter().map(|journal| world.time_made(journal)).sum();
        world.commit();
        world.remove(KEEPING, parent, made.into_iter());
        spent
    });
    let mut after = 0;
    bench(&mut group, "listing of 512 names with attributes", &world, BATCH, |world, count| {
        let mut spent = Duration::ZERO;
        for _ in 0..count {
            let inode = world.large;
            let list = Operation::ReadDirectory {
                inode,
                after,
                entries_max: PAGE_ENTRIES,
                with_attributes: true,
                ahead: false,
            };
            let (time, outcomes) = world.time(KEEPING, vec![list]);
            let Some(Outcome::Listing { entries, .. }) = outcomes.first() else { panic!("no listing") };
            assert!(entries.len() == PAGE_ENTRIES as usize && entries.iter().all(|entry| entry.attributes.is_some()));
            spent += time;
            // The last page is shorter.
            let next = entries.last().map_or(0, |entry| entry.cookie);
            after = if next > INODES - u64::from(PAGE_ENTRIES) { 0 } else { next };
        }
        spent
    });
    group.finish();
}

criterion_group!(benches, volume);
criterion_main!(benches);
