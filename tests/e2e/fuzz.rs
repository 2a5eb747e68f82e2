//! Whatever bytes a peer sends, the server lives, takes no memory for them, and the volume stays as it is.
//!
//! `ATOLL_SEED=n` repeats a run; `ATOLL_FUZZ_CONNECTIONS` makes it longer.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::operation::{AllocateMode, AttributeChanges, OpenFlags, RenameMode, SeekTo, WriteAt, XattrMode};
use atoll_types::{
    ByteRange, Caller, FileKind, InodeId, JournalPosition, LockOwner, Made, Mode, Name, Operation, OperationSeq,
    SessionId,
};
use atoll_wire::{AdminRequest, Execute, Hello, Lane, Request};
use bytes::{Bytes, BytesMut};

use crate::harness::*;

const CONNECTIONS: u64 = 1500;
/// What a server may need for the sessions that some of them begin, which stay for a while.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

fn operations() -> Vec<Operation> {
    use Operation as O;
    let name = || Name::new(&b"file"[..]).unwrap();
    let (parent, inode) = (InodeId::ROOT, InodeId(2));
    let range = ByteRange::new(3, 900);
    let owner = LockOwner(7);
    let lock = Lock { space: LockSpace::Range, owner, pid: 8, kind: LockKind::Exclusive, range };
    let data = || Bytes::from_static(b"some bytes");
    vec![
        O::Lookup { parent, name: name() },
        O::Parent { inode },
        O::GetAttributes { inode },
        O::SetAttributes { inode, changes: AttributeChanges { size: Some(5), ..AttributeChanges::default() } },
        O::Create { parent, name: name(), permissions: 0o644, umask: 0o22, flags: OpenFlags::default() },
        O::CreateUnnamed { parent, permissions: 0o600, umask: 0 },
        O::MakeNode { parent, name: name(), mode: Mode::new(FileKind::Fifo, 0o600), umask: 0, device: 0 },
        O::MakeDirectory { parent, name: name(), permissions: 0o755, umask: 0 },
        O::MakeSymlink { parent, name: name(), target: data() },
        O::Link { inode, parent, name: name() },
        O::Unlink { parent, name: name() },
        O::RemoveDirectory { parent, name: name() },
        O::Rename { parent, name: name(), new_parent: parent, new_name: name(), mode: RenameMode::Exchange },
        O::ReadSymlink { inode },
        O::Open { inode, flags: OpenFlags::default() },
        O::Release { inode },
        O::Read { inode, range },
        O::Write { inode, at: WriteAt::End, data: data(), drop_privileges: false },
        O::Sync,
        O::Allocate { inode, mode: AllocateMode::PunchHole, range, drop_privileges: false },
        O::Seek { inode, offset: 1, to: SeekTo::Hole },
        O::CloneRange { source: inode, source_offset: 0, target: InodeId(3), target_offset: 9, length: 100 },
        O::ReadDirectory { inode: parent, after: 0, entries_max: 10, with_attributes: true, ahead: false },
        O::GetXattr { inode, name: data() },
        O::SetXattr { inode, name: data(), value: data(), mode: XattrMode::Set, drop_privileges: false },
        O::ListXattrs { inode },
        O::RemoveXattr { inode, name: data() },
        O::Statistics { inode },
        O::TestLock { inode, lock },
        O::SetLock { inode, lock, wait: true },
        O::Unlock { inode, space: LockSpace::Range, owner, range },
        O::HoldLocks { inode, locks: vec![lock; 3] },
    ]
}

fn frame(request: &Request) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    atoll_wire::encode(5, request, &mut bytes).unwrap();
    bytes.to_vec()
}

/// Sound frames, one of each kind.
fn frames() -> Vec<Vec<u8>> {
    let admin = |request| frame(&Request::Admin(request));
    let vol = || "vol".to_owned();
    let mut all = vec![
        frame(&Request::Ping),
        frame(&Request::Reserve),
        frame(&Request::Returned),
        frame(&Request::Cancel(5)),
        frame(&Request::Heard(OperationSeq(9))),
        frame(&Request::Goodbye),
        admin(AdminRequest::Status),
        admin(AdminRequest::VolumeCreate {
            name: "new".into(),
            durability: "local".into(),
            compression: "lz4".into(),
            encrypt: false,
            link: None,
        }),
        admin(AdminRequest::VolumeDelete { name: vol() }),
        admin(AdminRequest::SnapshotCreate { volume: vol(), name: "snapshot".into() }),
        admin(AdminRequest::VolumeClone { source: vol(), snapshot: None, name: "new".into() }),
        admin(AdminRequest::TokenCreate {
            volume: None,
            read_only: false,
            events: false,
            expires_seconds: None,
            label: vol(),
        }),
        admin(AdminRequest::LeaseRevoke { session: SessionId(1) }),
        admin(AdminRequest::Fsck { volume: vol(), repair: true, read: true }),
    ];
    for (number, operation) in operations().into_iter().enumerate() {
        let mutates = operation.mutates();
        let sequence = OperationSeq(if mutates { number as u64 + 1 } else { 0 });
        let execute = Execute { sequence, operations: vec![operation.clone(); 1 + number % 3], ..Execute::default() };
        all.push(frame(&Request::Execute(execute)));
        if mutates {
            let made = vec![Made { caller: Caller::default(), at: Default::default(), inode: Some(InodeId(9)) }];
            let journal = Execute {
                sequence,
                journal: true,
                after: JournalPosition(number as u64),
                made,
                operations: vec![operation],
                ..Execute::default()
            };
            all.push(frame(&Request::Execute(journal)));
        }
    }
    all
}

fn hello(token: &str) -> Vec<u8> {
    let hello = Hello {
        features: 0,
        token: Some(token.to_owned()),
        volume: Some("vol".into()),
        resume: None,
        lane: Lane::Control,
        leases: true,
        executed: JournalPosition(0),
        journal_end: JournalPosition(0),
    };
    let mut bytes = BytesMut::new();
    atoll_wire::encode_hello(1, &hello, &mut bytes).unwrap();
    bytes.to_vec()
}

/// Damage bytes in one of the ways in which they are damaged.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = random.below(bytes.len() as u64) as usize;
    match random.below(8) {
        0 => bytes[at] = random.below(256) as u8,
        1 => bytes[at] ^= 1 << random.below(8),
        // Lengths and numbers are written in groups of seven bits.
        2 => bytes[at] = 0xff,
        3 => bytes.truncate(at + 1),
        4 => {
            let length = [0, 1, 7, 1 << 16, u32::MAX, u32::MAX >> 1][random.below(6) as usize];
            bytes.splice(..4.min(bytes.len()), u32::to_le_bytes(length));
        }
        5 => {
            let more = (0..random.below(40)).map(|_| random.below(256) as u8).collect::<Vec<_>>();
            bytes.splice(at..at, more);
        }
        6 => {
            let other = &others[random.below(others.len() as u64) as usize];
            let from = random.below(other.len() as u64) as usize;
            bytes.truncate(at + 1);
            bytes.extend_from_slice(&other[from..]);
        }
        // A frame that says how long it is, with something else in it.
        _ => {
            bytes[at] = random.below(256) as u8;
            bytes.push(random.below(256) as u8);
            let length = (bytes.len() as u32).saturating_sub(4);
            bytes.splice(..4.min(bytes.len()), length.to_le_bytes());
        }
    }
}

/// What files hold, and which there are.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let content = if entry.path().is_dir() { Vec::new() } else { fs::read(entry.path()).unwrap() };
        found.insert(entry.file_name().into_string().unwrap(), content);
    }
    found
}

fn resident_bytes(site: &Site) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", site.server().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn address(site: &Site, scheme: &str) -> String {
    let address = site.address(scheme);
    address.trim_start_matches(scheme).trim_start_matches("//").trim_end_matches('/').to_owned()
}

fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    // It may have closed the connection already.
    if stream.write_all(bytes).is_ok() {
        let _ = stream.read(&mut [0; 4096]);
    }
}

fn fuzz(seed: u64) {
    println!("ATOLL_SEED={seed}");
    let mut site = Site::empty();
    site.serve = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"].map(str::to_owned).into();
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let mount = site.mount("m");
    fs::write(mount.join("file"), words(5000)).unwrap();
    fs::create_dir(mount.join("folder")).unwrap();
    let made = site.atoll(["token", "create", "--volume", "vol", "--read-only", "--json"]).must_succeed();
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let (hello, frames) = (hello(made["secret"].as_str().unwrap()), frames());
    let before = tree(&mount);
    let (tcp, http) = (address(&site, "tcp:"), address(&site, "http:"));

    let mut random = Random(seed);
    let mut memory = None;
    let connections = from_environment("ATOLL_FUZZ_CONNECTIONS").unwrap_or(CONNECTIONS);
    for connection in 0..connections {
        let mut bytes = hello.clone();
        if random.below(4) == 0 {
            damage(&mut random, &mut bytes, &frames);
        }
        for _ in 0..random.below(6) {
            let mut frame = frames[random.below(frames.len() as u64) as usize].clone();
            for _ in 0..random.below(4) {
                damage(&mut random, &mut frame, &frames);
            }
            bytes.extend_from_slice(&frame);
        }
        send(&tcp, &bytes);
        if connection % 10 == 0 {
            let mut request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_vec();
            for _ in 0..random.below(5) {
                damage(&mut random, &mut request, &frames);
            }
            send(&http, &request);
        }
        if connection % 250 == 249 {
            site.atoll(["volume", "info", "vol"]).must_succeed();
            let now = resident_bytes(&site);
            let first = *memory.get_or_insert(now);
            assert!(now < first + GROWTH_BYTES_MAX, "the server grew from {first} to {now} bytes");
        }
    }
    assert_eq!(tree(&mount), before);
    fs::write(mount.join("new"), "new").unwrap();
    assert_eq!(site.atoll(["cat", "vol:/new"]).must_succeed(), "new");
    assert_eq!(site.atoll(["volume", "list"]).must_succeed().lines().count(), 1);
    assert!(!site.server_log().contains("panicked"), "{}", site.server_log());
}

#[test]
fn malformed_input_changes_nothing() {
    if let Some(seed) = from_environment("ATOLL_SEED") {
        return fuzz(seed);
    }
    fuzz(1);
    fuzz(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
}
