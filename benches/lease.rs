//! The lease protocol: the authority's side with few and with a million inodes held, and the client's side.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use atoll_lease::{Authority, Claim, Grant, Holding, Issue, Limits, Recall, Rights};
use atoll_types::{InodeId, SessionId};
use criterion::{Criterion, criterion_group, criterion_main};

/// Each inode is held by one of them.
const OWNERS: u64 = 10;
/// Who holds some inodes together.
const READERS: u64 = 100;
const WRITER: SessionId = SessionId(1_000);
/// How many inodes are held by all readers, and how many conflicts are timed at a time.
const SHARED: u64 = 256;

struct World {
    authority: Authority,
    inodes: u64,
    step: u64,
    now_ms: u64,
}

impl World {
    fn new(inodes: u64) -> World {
        let mut authority = Authority::new(Limits::default());
        authority.enroll(WRITER);
        for number in 0..OWNERS {
            authority.enroll(SessionId(number));
        }
        for number in 0..READERS {
            authority.enroll(reader(number));
        }
        for number in 0..inodes {
            let (inode, owner) = place(number);
            authority.grant(owner, inode, Rights::INODE, 0).unwrap();
        }
        let mut world = World { authority, inodes, step: 0, now_ms: 0 };
        world.share();
        world
    }

    /// An inode and who holds it: all of them in turn, but no neighbours.
    fn next(&mut self) -> (InodeId, SessionId) {
        self.step += 1;
        place(self.step * 7_777_777 % self.inodes)
    }

    fn next_shared(&mut self) -> InodeId {
        self.step += 1;
        self.shared(self.step % SHARED)
    }

    fn shared(&self, number: u64) -> InodeId {
        place(self.inodes + number).0
    }

    fn share(&mut self) {
        for number in 0..SHARED {
            for reader in (0..READERS).map(reader) {
                self.authority.grant(reader, self.shared(number), Rights::INODE, self.now_ms).unwrap();
            }
        }
    }

    /// So much later that no inode is contended.
    fn rest(&mut self) {
        self.now_ms += 10_000;
        self.authority.sweep(self.now_ms);
    }

    /// What an operation does that conflicts: it waits, every holder gives up, and it is done.
    fn conflict(&mut self, inode: InodeId, holders: u64) {
        let claims = vec![Claim { inode, excludes: Rights::INODE_EXCLUSIVE }];
        assert!(!self.authority.is_free(WRITER, &claims));
        let (waiter, notices) = self.authority.wait(WRITER, claims, None, self.now_ms);
        assert_eq!(notices.len() as u64, holders);
        let mut freed = Vec::new();
        for notice in &notices {
            freed = self.authority.acknowledge(notice.session, &notice.recall, self.now_ms);
        }
        assert_eq!(freed, [waiter]);
        self.authority.withdraw(waiter);
    }
}

fn place(number: u64) -> (InodeId, SessionId) {
    (InodeId(2 + number), SessionId(number % OWNERS))
}

fn reader(number: u64) -> SessionId {
    SessionId(100 + number)
}

/// Time rounds of up to [`SHARED`] iterations, with what each round has to put right left out.
fn in_rounds(iterations: u64, mut round: impl FnMut(u64) -> Duration) -> Duration {
    let (mut left, mut spent) = (iterations, Duration::ZERO);
    while left > 0 {
        let now = left.min(SHARED);
        spent += round(now);
        left -= now;
    }
    spent
}

fn authority(c: &mut Criterion, held: &str, inodes: u64) {
    let mut group = c.benchmark_group(format!("authority, {held} inodes held"));
    let mut world = LazyCell::new(|| World::new(inodes));

    group.bench_function("is_free + grant, its own holder", |b| {
        let world = LazyCell::force_mut(&mut world);
        b.iter(|| {
            let (inode, session) = world.next();
            let is_free = world.authority.is_free(session, &[Claim { inode, excludes: Rights::INODE_WRITER }]);
            (is_free, world.authority.grant(session, inode, Rights::INODE, world.now_ms))
        });
    });
    group.bench_function("is_free + grant + acknowledge, beside 1 holder", |b| {
        let world = LazyCell::force_mut(&mut world);
        b.iter(|| {
            let (inode, _) = world.next();
            let is_free = world.authority.is_free(WRITER, &[Claim { inode, excludes: Rights::INODE_WRITER }]);
            let Grant { inode, rights, issue } =
                world.authority.grant(WRITER, inode, Rights::INODE, world.now_ms).unwrap();
            (is_free, world.authority.acknowledge(WRITER, &Recall { inode, rights, issue }, world.now_ms))
        });
    });
    group.bench_function("is_free + grant, beside 100 holders", |b| {
        let world = LazyCell::force_mut(&mut world);
        let last = reader(READERS - 1);
        b.iter(|| {
            let inode = world.next_shared();
            let is_free = world.authority.is_free(last, &[Claim { inode, excludes: Rights::INODE_WRITER }]);
            (is_free, world.authority.grant(last, inode, Rights::INODE, world.now_ms))
        });
    });
    group.bench_function("wait + acknowledge + withdraw, 1 reader", |b| {
        let world = LazyCell::force_mut(&mut world);
        b.iter_custom(|iterations| {
            in_rounds(iterations, |count| {
                world.rest();
                let places: Vec<_> = (0..count).map(|_| world.next()).collect();
                let start = Instant::now();
                places.iter().for_each(|(inode, _)| world.conflict(*inode, 1));
                let spent = start.elapsed();
                for (inode, owner) in places {
                    world.authority.grant(owner, inode, Rights::INODE, world.now_ms).unwrap();
                }
                spent
            })
        });
    });
    group.bench_function("wait + 100 × acknowledge + withdraw, 100 readers", |b| {
        let world = LazyCell::force_mut(&mut world);
        b.iter_custom(|iterations| {
            in_rounds(iterations, |count| {
                world.rest();
                let start = Instant::now();
                (0..count).for_each(|number| world.conflict(world.shared(number), READERS));
                let spent = start.elapsed();
                world.share();
                spent
            })
        });
    });
    group.finish();
}

fn few(c: &mut Criterion) {
    authority(c, "1,024", 1_024);
}

fn million(c: &mut Criterion) {
    authority(c, "1,000,000", 1_000_000);
}

fn holding(c: &mut Criterion) {
    let inode = InodeId(2);
    let mut holding = Holding::default();
    let mut issue = 0;
    c.bench_function("holding/grant + recall", |b| {
        b.iter(|| {
            issue += 1;
            let taken = holding.grant(black_box(&Grant { inode, rights: Rights::ALL, issue: Issue(issue) }));
            (taken, holding.recall(black_box(&Recall { inode, rights: Rights::ALL, issue: Issue(issue) })))
        });
    });
}

criterion_group!(benches, few, million, holding);
criterion_main!(benches);
