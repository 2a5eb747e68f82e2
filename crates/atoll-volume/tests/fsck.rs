//! A check finds what is wrong with a volume, and a repair leaves one that works, with everything that could be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_link::{LinkSettings, ObjectKey};
use atoll_store::{Batch, MemoryMedium, MemoryStore, Read, Scan, Store};
use atoll_types::operation::{AllocateMode, AttributeChanges, OpenFlags, RenameMode, SeekTo, WriteAt, XattrMode};
use atoll_types::{ByteRange, Caller, Errno, FileKind, InodeId, Name, Operation, Outcome, SegmentId, SessionId};
use atoll_volume::fsck::{self, FINDINGS_MAX, Problem, Report};
use atoll_volume::{
    DirectoryQuota, Durability, Quota, QuotaState, Usage, Volume, VolumeConfig, VolumeError, VolumeSettings, format,
};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
const SESSION: SessionId = SessionId(1);

/// What outlives an authority.
#[derive(Clone)]
struct Remains {
    medium: MemoryMedium,
    objects: Arc<dyn ObjectStore>,
}

impl Remains {
    async fn open(&self) -> Volume {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<Volume, VolumeError> {
        let config = BlobConfig::new(self.objects.clone(), Path::default(), Staging::Memory);
        let store = Arc::new(MemoryStore::open(&self.medium));
        let opening = |epoch, recovered| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(config, epoch, recovered))
        };
        Volume::open(store, opening, VolumeConfig::default()).await
    }

    async fn entries(&self) -> BTreeMap<Bytes, Bytes> {
        let store = MemoryStore::open(&self.medium);
        let all = Scan { start: Bytes::from_static(&[1]), end: Bytes::from_static(&[255]), entries_max: 1_000_000 };
        store.scan(all).await.unwrap().entries.into_iter().collect()
    }

    /// Change the metadata behind everybody's back.
    async fn damage(&self, writes: Vec<(Bytes, Option<Bytes>)>) {
        let store = MemoryStore::open(&self.medium);
        store.commit(Batch { writes, ..Batch::default() }).await.unwrap();
    }

    async fn objects(&self) -> Vec<(SegmentId, u64)> {
        atoll_blob::list(&*self.objects, &Path::default(), &[]).await.unwrap()
    }

    async fn check(&self) -> Report {
        let store = MemoryStore::open(&self.medium);
        let view = store.snapshot().unwrap();
        let objects = self.objects().await;
        let subject =
            fsck::Subject { view: &*view, newest: &*view, objects: &objects, epoch: store.epoch(), bytes: None };
        fsck::check(subject, &|_| ()).await.unwrap()
    }

    async fn repair(&self) -> fsck::Repair {
        fsck::repair(&MemoryStore::open(&self.medium), &self.objects().await, &|_| ()).await.unwrap()
    }
}

async fn run(volume: &Volume, operation: Operation) -> Outcome {
    volume.execute(SESSION, &Caller::default(), operation).await.unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).unwrap()
}

async fn directory(volume: &Volume, parent: InodeId, text: &str) -> InodeId {
    let make = Operation::MakeDirectory { parent, name: name(text), permissions: 0o755, umask: 0 };
    run(volume, make).await.attributes().unwrap().inode
}

async fn file(volume: &Volume, parent: InodeId, text: &str, bytes: &'static [u8]) -> InodeId {
    let flags = OpenFlags::default();
    let create = Operation::Create { parent, name: name(text), permissions: 0o644, umask: 0, flags };
    let inode = run(volume, create).await.attributes().unwrap().inode;
    for offset in [0, 1 << 20] {
        let (at, data) = (WriteAt::Offset(offset), Bytes::from_static(bytes));
        run(volume, Operation::Write { inode, at, data, drop_privileges: false }).await;
    }
    run(volume, Operation::Release { inode }).await;
    inode
}

/// A small volume with one of everything, closed.
///
/// ```text
/// /a/b/deep  /a/b/empty/  /a/linked = /a/b/again  /a/symlink  /plain (with an extended attribute)
/// ```
struct Site {
    remains: Remains,
    a: InodeId,
    b: InodeId,
    deep: InodeId,
    linked: InodeId,
    plain: InodeId,
}

async fn site() -> Site {
    let remains = Remains { medium: MemoryMedium::new(), objects: Arc::new(InMemory::new()) };
    let settings = VolumeSettings::new(Durability::Object, 7);
    atoll_volume::format(&MemoryStore::open(&remains.medium), &settings, &Caller::default()).await.unwrap();
    let volume = remains.open().await;
    let a = directory(&volume, InodeId::ROOT, "a").await;
    let b = directory(&volume, a, "b").await;
    directory(&volume, b, "empty").await;
    let deep = file(&volume, b, "deep", b"deep").await;
    let linked = file(&volume, a, "linked", b"linked").await;
    run(&volume, Operation::Link { inode: linked, parent: b, name: name("again") }).await;
    run(&volume, Operation::MakeSymlink { parent: a, name: name("symlink"), target: Bytes::from_static(b"b") }).await;
    let plain = file(&volume, InodeId::ROOT, "plain", b"plain").await;
    let value = Bytes::from_static(b"value");
    let set = Operation::SetXattr {
        inode: plain,
        name: Bytes::from_static(b"user.x"),
        value,
        mode: XattrMode::Set,
        drop_privileges: false,
    };
    run(&volume, set).await;
    volume.close().await.unwrap();
    Site { remains, a, b, deep, linked, plain }
}

/// The same with quotas of `/a` and `/a/b`.
async fn site_with_quotas() -> Site {
    let site = site().await;
    let volume = site.remains.open().await;
    for directory in [site.b, site.a] {
        let limits = Quota { bytes: 1000, inodes: 100 };
        volume.set_directory_quota(directory, limits, |_| ()).await.unwrap();
    }
    volume.close().await.unwrap();
    site
}

impl Site {
    async fn quotas(&self) -> Vec<(InodeId, DirectoryQuota)> {
        let volume = self.remains.open().await;
        let quotas = volume.directory_quotas();
        volume.close().await.unwrap();
        quotas
    }
}

/// All paths, with what files hold. Nothing of a directory may fail.
async fn tree(remains: &Remains) -> BTreeMap<String, Option<Bytes>> {
    let volume = remains.open().await;
    let mut found = BTreeMap::new();
    let mut todo = vec![(InodeId::ROOT, String::new())];
    while let Some((inode, path)) = todo.pop() {
        let list =
            Operation::ReadDirectory { inode, after: 0, entries_max: 1000, with_attributes: false, ahead: false };
        let Outcome::Listing { entries, .. } = run(&volume, list).await else { panic!("no listing") };
        for entry in entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(entry.name.as_bytes()));
            let read = Operation::Read { inode: entry.inode, range: ByteRange::at(0, 100) };
            let bytes = match entry.kind {
                FileKind::Regular => match volume.execute(SESSION, &Caller::default(), read).await {
                    Ok(Outcome::Data(bytes)) => Some(bytes),
                    _ => None,
                },
                _ => None,
            };
            if entry.kind == FileKind::Directory {
                todo.push((entry.inode, path.clone()));
            }
            found.insert(path, bytes);
        }
    }
    assert!(volume.check(false, &|_| ()).await.unwrap().is_clean());
    volume.close().await.unwrap();
    found
}

/// Damage, check, repair: the problems found, and the tree that is left.
async fn mended(site: &Site, writes: Vec<(Bytes, Option<Bytes>)>) -> (Vec<Problem>, BTreeMap<String, Option<Bytes>>) {
    site.remains.damage(writes).await;
    let found: Vec<Problem> = site.remains.check().await.problems.into_keys().collect();
    let repair = site.remains.repair().await;
    assert!(repair.after.is_clean(), "{:?}", repair.after.findings);
    assert!(repair.mended >= found.len() as u64);
    (found, tree(&site.remains).await)
}

fn paths(tree: &BTreeMap<String, Option<Bytes>>) -> Vec<&str> {
    tree.keys().map(String::as_str).collect()
}

const WHOLE: [&str; 8] = ["/a", "/a/b", "/a/b/again", "/a/b/deep", "/a/b/empty", "/a/linked", "/a/symlink", "/plain"];

#[tokio::test]
async fn a_sound_volume_is_clean() {
    let site = site().await;
    let report = site.remains.check().await;
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!((report.inodes, report.directories, report.names, report.extents), (8, 4, 8, 6));
    assert_eq!(report.bytes, 2 * (4 + 6 + 5));
    assert!(report.garbage.is_empty());
    assert_eq!(paths(&tree(&site.remains).await), WHOLE);
}

#[tokio::test]
async fn what_an_older_release_has_written_is_sound() {
    let site = site().await;
    let before = tree(&site.remains).await;
    // The last version that differs from this one in links alone, of which there are none.
    let of_old = |value: &Bytes| Some(Bytes::from([&[3], value.strip_prefix(&[format::FORMAT_VERSION])?].concat()));
    let entries = site.remains.entries().await;
    let writes = entries.iter().filter_map(|(key, value)| Some((key.clone(), Some(of_old(value)?))));
    site.remains.damage(writes.collect()).await;
    let repair = site.remains.repair().await;
    assert!(repair.before.is_clean(), "{:?}", repair.before.findings);
    assert_eq!(tree(&site.remains).await, before);
}

#[tokio::test]
async fn a_file_without_a_name_gets_one() {
    let site = site().await;
    let key = format::dentry_key(site.b, &name("deep"));
    let (found, tree) = mended(&site, vec![(key, None)]).await;
    assert_eq!(found, [Problem::DirectoryOffset, Problem::DirectorySize, Problem::Lost]);
    let lost = format!("/lost+found/#{}", site.deep);
    assert_eq!(tree[&lost].as_ref().unwrap(), &b"deep\0\0"[..].iter().chain(&[0; 94]).copied().collect::<Bytes>());
}

#[tokio::test]
async fn a_name_without_an_inode_goes() {
    let site = site().await;
    let inode = format::inode_key(site.plain);
    // Its name says what it was, so it is back; without one it goes.
    let (found, tree) =
        mended(&site, vec![(inode.clone(), None), (format::xattr_key(site.plain, b"user.x"), None)]).await;
    assert!(found.contains(&Problem::NameWithoutInode), "{found:?}");
    assert!(!tree.contains_key("/plain"));
}

#[tokio::test]
async fn an_inode_whose_record_is_damaged_keeps_its_name_and_bytes() {
    let site = site().await;
    let damaged = Some(Bytes::from_static(b"\x01 no record"));
    let writes = vec![(format::inode_key(site.plain), damaged.clone()), (format::inode_key(site.b), damaged)];
    let (found, tree) = mended(&site, writes).await;
    assert!(found.contains(&Problem::Malformed), "{found:?}");
    assert_eq!(paths(&tree), WHOLE);
    assert_eq!(&tree["/plain"].as_ref().unwrap()[..5], b"plain");
}

#[tokio::test]
async fn a_directory_that_is_gone_comes_back_with_its_names() {
    let site = site().await;
    let (_, tree) = mended(&site, vec![(format::inode_key(site.b), None)]).await;
    let lost = format!("/lost+found/#{}", site.b);
    for inside in ["deep", "again", "empty"] {
        assert!(tree.contains_key(&format!("{lost}/{inside}")), "{:?}", paths(&tree));
    }
}

#[tokio::test]
async fn nobody_looks_for_the_root_above_a_circle_for_ever() {
    let site = site().await;
    let entries = site.remains.entries().await;
    let below = |inode, parent| {
        let key = format::inode_key(inode);
        let mut record = format::InodeRecord::decode(&entries[&key]).unwrap();
        record.parent = parent;
        (key, Some(record.encode()))
    };
    site.remains.damage(vec![below(site.a, site.b), below(site.b, site.a)]).await;
    let volume = site.remains.open().await;
    let (old, new_name, mode) = (name("empty"), name("moved"), RenameMode::Replace);
    let rename = Operation::Rename { parent: site.b, name: old, new_parent: site.a, new_name, mode };
    assert_eq!(volume.execute(SESSION, &Caller::default(), rename).await.unwrap_err(), Errno::EIO);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn links_sizes_and_parents_are_counted_again() {
    let site = site().await;
    let entries = site.remains.entries().await;
    let change = |inode, change: fn(&mut format::InodeRecord)| {
        let key = format::inode_key(inode);
        let mut record = format::InodeRecord::decode(&entries[&key]).unwrap();
        change(&mut record);
        (key, Some(record.encode()))
    };
    let writes = vec![
        change(site.linked, |record| record.links = 9),
        change(site.deep, |record| record.allocated = 1),
        change(site.a, |record| {
            record.size += 1;
            record.links = 7;
            record.next_cookie = 0;
        }),
        change(site.b, |record| record.parent = InodeId::ROOT),
    ];
    let (found, tree) = mended(&site, writes).await;
    assert_eq!(
        found,
        [
            Problem::DirectoryOffset,
            Problem::DirectorySize,
            Problem::DirectoryParent,
            Problem::Links,
            Problem::Allocated
        ]
    );
    assert_eq!(paths(&tree), WHOLE);
}

#[tokio::test]
async fn a_directory_inside_of_itself_comes_out() {
    let site = site().await;
    let entries = site.remains.entries().await;
    // `/a` is renamed to `/a/b/a`.
    let from = format::dentry_key(InodeId::ROOT, &name("a"));
    let dentry = entries[&from].clone();
    let cookie = format::Dentry::decode(&dentry).unwrap().cookie;
    let writes = vec![
        (from, None),
        (format::cookie_key(InodeId::ROOT, cookie), None),
        (format::dentry_key(site.b, &name("a")), Some(dentry)),
    ];
    let (found, tree) = mended(&site, writes).await;
    assert!(found.contains(&Problem::DirectoryLoop), "{found:?}");
    assert!(paths(&tree).iter().any(|path| path.ends_with("/deep")), "{:?}", paths(&tree));
    assert!(paths(&tree).iter().any(|path| path.ends_with("/linked")), "{:?}", paths(&tree));
}

#[tokio::test]
async fn a_missing_object_is_told_and_nothing_is_thrown_away() {
    let site = site().await;
    let (segment, bytes) = site.remains.objects().await[0];
    let path = Path::from(format!("{:016x}", segment.0));
    let content = site.remains.objects.get(&path).await.unwrap().bytes().await.unwrap();
    site.remains.objects.delete(&path).await.unwrap();
    let repair = site.remains.repair().await;
    assert_eq!(repair.after.problems.keys().copied().collect::<Vec<_>>(), [Problem::ObjectMissing]);
    assert!(repair.after.findings.iter().any(|finding| finding.path.as_deref() == Some("/a/b/deep")));
    site.remains.objects.put(&path, content.slice(..bytes as usize - 1).into()).await.unwrap();
    assert_eq!(site.remains.check().await.problems.into_keys().collect::<Vec<_>>(), [Problem::ObjectShort]);
    site.remains.objects.put(&path, content.into()).await.unwrap();
    assert!(site.remains.check().await.is_clean());
}

#[tokio::test]
async fn damaged_bytes_are_found_by_reading_them() {
    let site = site().await;
    let (segment, bytes) = site.remains.objects().await[0];
    let path = Path::from(format!("{:016x}", segment.0));
    site.remains.objects.put(&path, vec![0x55; bytes as usize].into()).await.unwrap();
    assert!(site.remains.check().await.is_clean());
    let volume = site.remains.open().await;
    let report = volume.check(true, &|_| ()).await.unwrap();
    assert_eq!(report.problems[&Problem::Data], 6);
    assert!(report.bytes_read > 0);
}

#[tokio::test]
async fn objects_that_nothing_refers_to_are_garbage() {
    let site = site().await;
    let stray = SegmentId(1 << 32 | 0xffff);
    site.remains.objects.put(&Path::from(format!("{:016x}", stray.0)), vec![1; 10].into()).await.unwrap();
    // Of an authority that may still be about to refer to it.
    let coming = SegmentId(0xffff << 32);
    site.remains.objects.put(&Path::from(format!("{:016x}", coming.0)), vec![1; 10].into()).await.unwrap();
    let report = site.remains.check().await;
    assert!(report.is_clean());
    assert_eq!(report.garbage, [(stray, 10)]);
    let volume = site.remains.open().await;
    let objects = site.remains.objects().await.len();
    assert_eq!(volume.collect_garbage(true).await.unwrap(), (1, 10));
    assert_eq!(site.remains.objects().await.len(), objects);
    assert_eq!(volume.collect_garbage(false).await.unwrap(), (1, 10));
    assert_eq!(site.remains.objects().await.len(), objects - 1);
    assert_eq!(volume.collect_garbage(false).await.unwrap(), (0, 0));
    volume.close().await.unwrap();
    assert_eq!(paths(&tree(&site.remains).await), WHOLE);
}

#[tokio::test]
async fn what_is_charged_to_quotas_is_counted_and_mended() {
    let site = site_with_quotas().await;
    assert!(site.remains.check().await.is_clean());
    let right = site.quotas().await;
    let quota = |parent, bytes, inodes| DirectoryQuota {
        state: QuotaState::Kept,
        parent,
        limits: Quota { bytes: 1000, inodes: 100 },
        used: Usage { bytes, inodes },
    };
    // `linked` has a name in `b`, whose quota came first.
    let expected = [(site.a, quota(InodeId::NONE, 2 * (4 + 6), 6)), (site.b, quota(site.a, 2 * (4 + 6), 4))];
    assert_eq!(right, expected);

    let entries = site.remains.entries().await;
    let record = |inode, change: fn(&mut format::InodeRecord)| {
        let key = format::inode_key(inode);
        let mut record = format::InodeRecord::decode(&entries[&key]).unwrap();
        change(&mut record);
        (key, Some(record.encode()))
    };
    let of_b = |quota: Option<DirectoryQuota>| (format::directory_quota_key(site.b), quota.map(|q| q.encode()));
    let wrong_usage = Usage { bytes: 7, inodes: 3 };
    let malformed = (format::directory_quota_key(site.b), Some(Bytes::from_static(&[1, 9])));
    let damages = [
        (record(site.deep, |record| record.quota_root = InodeId::NONE), true),
        (record(site.deep, |record| record.quota_root = InodeId(4711)), true),
        (record(site.b, |record| record.quota_root = record.parent), true),
        (of_b(Some(DirectoryQuota { used: wrong_usage, ..right[1].1 })), true),
        (of_b(Some(DirectoryQuota { parent: InodeId::NONE, ..right[1].1 })), true),
        (of_b(Some(DirectoryQuota { parent: site.b, ..right[1].1 })), true),
        (of_b(None), false),
        (malformed, false),
    ];
    for (damage, comes_back) in damages {
        let site = site_with_quotas().await;
        let (found, tree) = mended(&site, vec![damage.clone()]).await;
        let is_of_quotas = |problem: &Problem| {
            matches!(problem, Problem::QuotaRoot | Problem::QuotaUsage)
                || (*problem == Problem::Malformed && !comes_back)
        };
        assert!(found.iter().any(is_of_quotas), "{damage:?}: {found:?}");
        assert_eq!(paths(&tree), WHOLE);
        let left = site.quotas().await;
        if comes_back {
            assert_eq!(left, right, "{damage:?}");
        } else {
            assert_eq!(left, [(site.a, DirectoryQuota { used: Usage { inodes: 6, ..right[0].1.used }, ..right[0].1 })]);
        }
    }
}

#[tokio::test]
async fn records_of_links_that_are_not_there_go() {
    let site = site().await;
    let settings = format::encode_link(&LinkSettings::parse("s3://bucket").unwrap());
    let (object, none) = (ObjectKey::new("object").unwrap(), InodeId(1 << 40));
    let (mark, malformed) = (Bytes::from_static(&[format::FORMAT_VERSION]), Bytes::from_static(b"\xff no record"));
    let writes = [
        (format::link_key(site.a), settings.clone()),
        (format::link_key(site.b), malformed.clone()),
        (format::link_key(none), settings),
        (format::upload_key(site.a, "id"), format::encode_upload(&object)),
        (format::upload_key(site.a, "malformed"), malformed.clone()),
        (format::gone_key(site.a, &object), malformed),
        (format::unpublished_key(site.plain), mark.clone()),
        (format::unpublished_key(none), mark),
    ];
    let (found, tree) = mended(&site, writes.map(|(key, value)| (key, Some(value))).to_vec()).await;
    assert_eq!(found, [Problem::Malformed, Problem::LinkRecord]);
    assert_eq!(paths(&tree), WHOLE);
}

#[tokio::test]
async fn more_than_one_round_can_tell_is_mended() {
    let site = site().await;
    let count = 2 * FINDINGS_MAX as u64 + 10;
    let strays = (0..count).map(|n| (format::xattr_key(InodeId(1000 + n), b"x"), Some(Bytes::from_static(&[1]))));
    site.remains.damage(strays.collect()).await;
    let repair = site.remains.repair().await;
    assert_eq!(repair.before.problems[&Problem::XattrWithoutInode], count);
    assert_eq!(repair.before.findings.len(), FINDINGS_MAX);
    assert!(repair.after.is_clean());
    assert_eq!(repair.mended, count);
}

#[tokio::test]
async fn a_malformed_record_of_a_segment_that_nothing_refers_to_goes() {
    let site = site().await;
    let entries = site.remains.entries().await;
    let mut writes: Vec<_> = entries.keys().filter(|key| key[0] == b'e').map(|key| (key.clone(), None)).collect();
    let segment = entries.keys().find(|key| key[0] == b's').unwrap();
    writes.push((segment.clone(), Some(Bytes::from_static(&[format::FORMAT_VERSION]))));
    site.remains.damage(writes).await;
    let repair = site.remains.repair().await;
    assert_eq!(repair.before.problems[&Problem::Malformed], 1);
    assert!(repair.after.is_clean());
    site.remains.open().await.close().await.unwrap();
}

/// One way to damage the metadata.
#[derive(Clone, Debug)]
enum Damage {
    Remove(prop::sample::Index),
    Replace(prop::sample::Index, Vec<u8>),
    /// Give one key the value of another of its kind.
    Mix(prop::sample::Index, prop::sample::Index),
    /// One byte of a value.
    Flip(prop::sample::Index, prop::sample::Index),
    /// A value under a key of its kind that is not there.
    Add(prop::sample::Index, u64),
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        index().prop_map(Damage::Remove),
        (index(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(at, bytes)| Damage::Replace(at, bytes)),
        (index(), index()).prop_map(|(one, other)| Damage::Mix(one, other)),
        (index(), index()).prop_map(|(at, byte)| Damage::Flip(at, byte)),
        (index(), 0..40u64).prop_map(|(at, number)| Damage::Add(at, number)),
    ]
}

impl Damage {
    fn writes(&self, entries: &[(Bytes, Bytes)]) -> Option<(Bytes, Option<Bytes>)> {
        Some(match self {
            Damage::Remove(at) => (at.get(entries).0.clone(), None),
            Damage::Replace(at, bytes) => {
                (at.get(entries).0.clone(), Some(Bytes::from([&[format::FORMAT_VERSION], &bytes[..]].concat())))
            }
            Damage::Mix(one, other) => {
                let key = one.get(entries).0.clone();
                let kind: Vec<_> = entries.iter().filter(|(other, _)| other[0] == key[0]).collect();
                (key, Some(other.get(&kind).1.clone()))
            }
            Damage::Flip(at, byte) => {
                let (key, value) = at.get(entries).clone();
                let mut value = value.to_vec();
                // The first byte is the format's version.
                let byte = 1 + byte.index(value.len().checked_sub(1).filter(|left| *left > 0)?);
                value[byte] ^= 1 << (byte % 8);
                (key, Some(value.into()))
            }
            Damage::Add(at, number) => {
                let (key, value) = at.get(entries).clone();
                let mut key = key.to_vec();
                key.get_mut(1..9)?.copy_from_slice(&number.to_be_bytes());
                (key.into(), Some(value))
            }
        })
    }
}

/// Everything that a client can ask about inodes with small numbers and names that are there.
fn everything() -> Vec<Operation> {
    let names = ["a", "b", "deep", "empty", "linked", "again", "symlink", "plain", "new"];
    let some = ByteRange::new(0, 1 << 20);
    let mut all = vec![Operation::Statistics { inode: InodeId::ROOT }];
    for inode in (1..16).map(InodeId) {
        let flags = OpenFlags::default();
        let listing =
            Operation::ReadDirectory { inode, after: 0, entries_max: 100, with_attributes: true, ahead: false };
        let data = Bytes::from_static(b"written");
        let mode = XattrMode::Set;
        let xattr = Bytes::from_static(b"user.x");
        all.extend([
            Operation::GetAttributes { inode },
            Operation::Parent { inode },
            listing,
            Operation::Open { inode, flags },
            Operation::Read { inode, range: some },
            Operation::Seek { inode, offset: 1, to: SeekTo::Data },
            Operation::Write { inode, at: WriteAt::Offset(3), data: data.clone(), drop_privileges: false },
            Operation::Write { inode, at: WriteAt::End, data: data.clone(), drop_privileges: true },
            Operation::Allocate {
                inode,
                mode: AllocateMode::PunchHole,
                range: ByteRange::new(1, 9),
                drop_privileges: false,
            },
            Operation::SetAttributes {
                inode,
                changes: AttributeChanges { size: Some(5), ..AttributeChanges::default() },
            },
            Operation::CloneRange {
                source: inode,
                source_offset: 0,
                target: InodeId(inode.0 + 1),
                target_offset: 0,
                length: 4096,
            },
            Operation::Release { inode },
            Operation::ReadSymlink { inode },
            Operation::ListXattrs { inode },
            Operation::GetXattr { inode, name: xattr.clone() },
            Operation::SetXattr { inode, name: xattr.clone(), value: data, mode, drop_privileges: false },
            Operation::RemoveXattr { inode, name: xattr },
        ]);
        for text in names {
            all.push(Operation::Lookup { parent: inode, name: name(text) });
        }
        let new = || name(&format!("new{inode}"));
        all.extend([
            Operation::MakeDirectory { parent: inode, name: new(), permissions: 0o755, umask: 0 },
            Operation::Link { inode, parent: InodeId::ROOT, name: new() },
            Operation::Rename {
                parent: inode,
                name: name(names[inode.0 as usize % names.len()]),
                new_parent: InodeId(inode.0 % 5 + 1),
                new_name: name("plain"),
                mode: RenameMode::Replace,
            },
        ]);
    }
    for parent in (1..16).rev().map(InodeId) {
        for text in names {
            all.push(Operation::Unlink { parent, name: name(text) });
            all.push(Operation::RemoveDirectory { parent, name: name(text) });
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn whatever_is_damaged_a_repair_leaves_a_volume_that_works(damages in prop::collection::vec(damage(), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let site = site_with_quotas().await;
            // The superblock says what the volume is; without it there is none.
            let entries: Vec<_> = site.remains.entries().await.into_iter().filter(|(key, _)| key[0] != b'!').collect();
            let writes: Vec<_> = damages.iter().filter_map(|damage| damage.writes(&entries)).collect();
            site.remains.damage(writes).await;
            let repair = site.remains.repair().await;
            let left: BTreeSet<Problem> = repair.after.problems.into_keys().collect();
            // Bytes that were never there cannot be made up.
            let allowed = BTreeSet::from([Problem::ObjectMissing, Problem::ObjectShort]);
            assert!(left.is_subset(&allowed), "{:?}", repair.after.findings);
            if left.is_empty() {
                tree(&site.remains).await;
            }
        });
    }

    #[test]
    fn whatever_is_damaged_using_it_fails_at_worst(damages in prop::collection::vec(damage(), 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let site = site().await;
            let entries: Vec<_> = site.remains.entries().await.into_iter().collect();
            let writes: Vec<_> = damages.iter().filter_map(|damage| damage.writes(&entries)).collect();
            site.remains.damage(writes).await;
            let Ok(volume) = site.remains.try_open().await else { return };
            let caller = Caller::default();
            for operation in everything() {
                let text = format!("{operation:?}");
                let done = volume.execute(SESSION, &caller, operation);
                let _ = tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("no answer: {text}"));
            }
            let _ = tokio::time::timeout(PATIENCE, volume.close()).await.expect("it closes");
        });
    }
}
