//! The client protocol: frames from messages, and messages from frames.

use std::fmt::Debug;

use atoll_lease::{Grant, Issue, Rights};
use atoll_types::operation::{DirectoryEntry, OpenFlags, WriteAt};
use atoll_types::{
    Attributes, Caller, FileKind, InodeId, JournalPosition, Mode, Name, Operation, OperationSeq, Outcome, Timestamp,
    limits,
};
use atoll_wire::{Execute, FRAME_BYTES_MAX, Made, Request, Response};
use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn message<M: Serialize + DeserializeOwned + PartialEq + Debug>(c: &mut Criterion, name: &str, message: &M) {
    let mut wire = BytesMut::new();
    atoll_wire::encode(1, message, &mut wire).unwrap();
    let (_, body) = atoll_wire::next_frame(&mut wire, FRAME_BYTES_MAX).unwrap().unwrap();
    assert_eq!(atoll_wire::decode::<M>(&body).as_ref(), Ok(message));

    let mut group = c.benchmark_group(format!("wire, {name}"));
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("encode", |b| {
        b.iter(|| {
            wire.clear();
            atoll_wire::encode(1, message, &mut wire)
        });
    });
    group.bench_function("decode", |b| b.iter(|| atoll_wire::decode::<M>(&body)));
    group.finish();
}

fn name(number: u64) -> Name {
    Name::new(format!("name-{number:09}").into_bytes()).unwrap()
}

const AT: Timestamp = Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 };

fn execute(operations: Vec<Operation>, made: Vec<Made>) -> Request {
    Request::Execute(Execute {
        caller: Caller { uid: 1000, gid: 1000, pid: 4321 },
        sequence: OperationSeq(54_321),
        acknowledged: OperationSeq(54_320),
        released: OperationSeq(54_000),
        after: JournalPosition(12_345),
        journal: !made.is_empty(),
        again: None,
        made,
        operations,
    })
}

fn lookup(c: &mut Criterion) {
    let lookup = Operation::Lookup { parent: InodeId(123_456), name: name(1) };
    message(c, "a request to look one name up", &execute(vec![lookup], Vec::new()));
}

fn listing(c: &mut Criterion) {
    let entry = |number: u64| {
        let inode = InodeId(123_456 + number);
        let attributes = Attributes { inode, ..attributes() };
        let kind = FileKind::Regular;
        DirectoryEntry { name: name(number), inode, kind, cookie: 1 + number, attributes: Some(attributes) }
    };
    let entries: Vec<_> = (0..512).map(entry).collect();
    let grant = |entry: &DirectoryEntry| Grant { inode: entry.inode, rights: Rights::INODE, issue: Issue(1 << 30) };
    let grants = entries.iter().map(grant).collect();
    let results = vec![Ok(Outcome::Listing { entries, end: false })];
    let reply = Response::Results { results, grants, order: Issue(1 << 30), at: AT, durable: Issue(1), watched: false };
    message(c, "a reply with 512 names, attributes and grants", &reply);
}

fn attributes() -> Attributes {
    Attributes {
        inode: InodeId(123_456),
        mode: Mode::new(FileKind::Regular, 0o644),
        links: 1,
        uid: 1000,
        gid: 1000,
        device: 0,
        size: 4096,
        allocated: 4096,
        accessed: AT,
        modified: AT,
        changed: AT,
        created: AT,
        quota_root: InodeId::NONE,
    }
}

fn journal(c: &mut Criterion) {
    let made = |number| Made {
        caller: Caller { uid: 1000, gid: 1000, pid: 4321 },
        at: AT,
        inode: Some(InodeId(123_456 + number)),
    };
    let create = |number| Operation::Create {
        parent: InodeId(123_456),
        name: name(number),
        permissions: 0o644,
        umask: 0o22,
        flags: OpenFlags::default(),
    };
    let count = limits::COMPOUND_OPERATIONS_MAX as u64;
    let batch = execute((0..count).map(create).collect(), (0..count).map(made).collect());
    message(c, &format!("a journal batch of {count} creates"), &batch);
}

fn write(c: &mut Criterion) {
    let data = Bytes::from(vec![7; limits::IO_BYTES_MAX]);
    let write =
        Operation::Write { inode: InodeId(123_456), at: WriteAt::Offset(1 << 30), data, drop_privileges: false };
    message(c, "a write of 1 MiB", &execute(vec![write], Vec::new()));
}

criterion_group!(benches, lookup, listing, journal, write);
criterion_main!(benches);
