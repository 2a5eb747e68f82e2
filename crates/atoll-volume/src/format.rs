//! Keys and values of a volume in its store: see `docs/format.md`.
//!
//! Invariant: every key starts with a one-byte tag, numbers are big-endian so
//! that scans are ordered, every value starts with a version byte. Decoding is
//! bounded and never panics: stored bytes are not trusted.

use atoll_blob::{Codec, Compression, Location};
use atoll_link::{BUDGET_DEFAULT, LinkSettings, ObjectKey};
use atoll_types::limits::{NAME_BYTES_MAX, XATTR_NAME_BYTES_MAX};
use atoll_types::{Epoch, FileKind, InodeId, Mode, Name, SegmentId, SessionId, Timestamp};
use bytes::{BufMut, Bytes, BytesMut};

use crate::error::VolumeError;
use crate::extents::Extent;
use crate::links::record::{self, Gone, Linked};

/// Version of everything below. A volume with a larger one is refused untouched; values of smaller ones are read.
pub const FORMAT_VERSION: u8 = 5;
/// The last one whose inodes had no quota root.
const WITHOUT_QUOTA_ROOTS: u8 = 1;
/// The last one whose inodes knew of no bucket.
const WITHOUT_LINKS: u8 = 2;
/// The last one whose links had no queue.
const WITHOUT_QUEUES: u8 = 3;
/// The last one whose links had no budget.
const WITHOUT_BUDGETS: u8 = 4;

type Result<T> = std::result::Result<T, VolumeError>;

const SUPERBLOCK: u8 = b'!';
const COUNTERS: u8 = b'#';
const INODE: u8 = b'i';
const DENTRY: u8 = b'd';
const COOKIE: u8 = b'k';
const XATTR: u8 = b'x';
const EXTENT: u8 = b'e';
const ORPHAN: u8 = b'o';
const SEGMENT: u8 = b's';
const FRAGMENT: u8 = b'f';
const SESSION: u8 = b'n';
const QUOTA: u8 = b'q';
const TRASH: u8 = b't';
const LINK: u8 = b'l';
const GONE: u8 = b'g';
const UNPUBLISHED: u8 = b'u';
const UPLOAD: u8 = b'p';

/// All kinds of keys, in order.
pub const TAGS: [u8; 17] = [
    SUPERBLOCK,
    COUNTERS,
    DENTRY,
    EXTENT,
    FRAGMENT,
    GONE,
    INODE,
    COOKIE,
    LINK,
    SESSION,
    ORPHAN,
    UPLOAD,
    QUOTA,
    SEGMENT,
    TRASH,
    UNPUBLISHED,
    XATTR,
];

fn key(tag: u8, number: u64, rest: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(9 + rest.len());
    key.put_u8(tag);
    key.put_u64(number);
    key.put_slice(rest);
    key.freeze()
}

pub fn superblock_key() -> Bytes {
    Bytes::from_static(&[SUPERBLOCK])
}

pub fn counters_key() -> Bytes {
    Bytes::from_static(&[COUNTERS])
}

pub fn quota_key() -> Bytes {
    Bytes::from_static(&[QUOTA])
}

pub fn directory_quota_key(directory: InodeId) -> Bytes {
    key(QUOTA, directory.0, &[])
}

pub fn trash_key() -> Bytes {
    Bytes::from_static(&[TRASH])
}

pub fn inode_key(inode: InodeId) -> Bytes {
    key(INODE, inode.0, &[])
}

pub fn dentry_key(parent: InodeId, name: &Name) -> Bytes {
    key(DENTRY, parent.0, name.as_bytes())
}

pub fn cookie_key(parent: InodeId, cookie: u64) -> Bytes {
    key(COOKIE, parent.0, &cookie.to_be_bytes())
}

pub fn xattr_key(inode: InodeId, name: &[u8]) -> Bytes {
    key(XATTR, inode.0, name)
}

pub fn extent_key(inode: InodeId, offset: u64) -> Bytes {
    key(EXTENT, inode.0, &offset.to_be_bytes())
}

pub fn orphan_key(inode: InodeId) -> Bytes {
    key(ORPHAN, inode.0, &[])
}

pub fn segment_key(segment: SegmentId) -> Bytes {
    key(SEGMENT, segment.0, &[])
}

pub fn fragment_key(segment: SegmentId, offset: u32) -> Bytes {
    key(FRAGMENT, segment.0, &offset.to_be_bytes())
}

pub fn session_key(session: SessionId) -> Bytes {
    key(SESSION, session.0, &[])
}

pub fn link_key(root: InodeId) -> Bytes {
    key(LINK, root.0, &[])
}

pub fn gone_key(root: InodeId, object: &ObjectKey) -> Bytes {
    key(GONE, root.0, object.as_str().as_bytes())
}

pub fn upload_key(root: InodeId, upload: &str) -> Bytes {
    key(UPLOAD, root.0, upload.as_bytes())
}

pub fn unpublished_key(inode: InodeId) -> Bytes {
    key(UNPUBLISHED, inode.0, &[])
}

/// A range of keys, end excluded.
pub type KeyRange = (Bytes, Bytes);

/// Every key of one number under one tag, from `after` (excluded) on.
fn under(tag: u8, number: u64) -> KeyRange {
    (key(tag, number, &[]), key(tag, number + 1, &[]))
}

fn all(tag: u8) -> KeyRange {
    (Bytes::copy_from_slice(&[tag]), Bytes::copy_from_slice(&[tag + 1]))
}

pub fn cookies_after(parent: InodeId, cookie: u64) -> KeyRange {
    (cookie_key(parent, cookie.saturating_add(1)), under(COOKIE, parent.0).1)
}

pub fn dentries_of(parent: InodeId) -> KeyRange {
    under(DENTRY, parent.0)
}

pub fn xattrs_of(inode: InodeId) -> KeyRange {
    under(XATTR, inode.0)
}

pub fn extents_of(inode: InodeId) -> KeyRange {
    under(EXTENT, inode.0)
}

pub fn all_inodes() -> KeyRange {
    all(INODE)
}

pub fn all_dentries() -> KeyRange {
    all(DENTRY)
}

pub fn all_cookies() -> KeyRange {
    all(COOKIE)
}

pub fn all_xattrs() -> KeyRange {
    all(XATTR)
}

pub fn all_extents() -> KeyRange {
    all(EXTENT)
}

pub fn all_orphans() -> KeyRange {
    all(ORPHAN)
}

pub fn all_segments() -> KeyRange {
    all(SEGMENT)
}

pub fn all_fragments() -> KeyRange {
    all(FRAGMENT)
}

pub fn all_directory_quotas() -> KeyRange {
    (directory_quota_key(InodeId::NONE), all(QUOTA).1)
}

pub fn all_links() -> KeyRange {
    all(LINK)
}

pub fn all_gone() -> KeyRange {
    all(GONE)
}

pub fn all_uploads() -> KeyRange {
    all(UPLOAD)
}

pub fn all_unpublished() -> KeyRange {
    all(UNPUBLISHED)
}

pub fn all_sessions() -> KeyRange {
    all(SESSION)
}

/// Every key of a volume.
pub fn everything() -> KeyRange {
    (Bytes::copy_from_slice(&TAGS[..1]), Bytes::copy_from_slice(&[TAGS[TAGS.len() - 1] + 1]))
}

/// Whether a record means something outside its store. The others are what a server needs to go on after a crash.
pub fn is_portable(key: &[u8]) -> bool {
    !matches!(key.first(), Some(&FRAGMENT | &SESSION | &UPLOAD))
}

/// Whether this can be a record of a volume, and one that [means something](is_portable) outside its store.
pub fn check(key: &Bytes, value: &Bytes) -> Result<()> {
    let tag = *key.first().ok_or_else(|| corrupt("key"))?;
    let length = match tag {
        SUPERBLOCK | COUNTERS | TRASH => 1..=1,
        // The volume's own, and those of directories.
        QUOTA if key.len() == 1 => 1..=1,
        QUOTA => 9..=9,
        INODE | ORPHAN | SEGMENT => 9..=9,
        COOKIE | EXTENT => 17..=17,
        DENTRY => 10..=9 + NAME_BYTES_MAX,
        XATTR => 10..=9 + XATTR_NAME_BYTES_MAX,
        LINK | UNPUBLISHED => 9..=9,
        GONE => 10..=9 + ObjectKey::BYTES_MAX,
        _ => return Err(corrupt("key")),
    };
    if !length.contains(&key.len()) {
        return Err(corrupt("key"));
    }
    match tag {
        SUPERBLOCK => VolumeSettings::decode(value).map(drop),
        COUNTERS => Counters::decode(value).map(drop),
        TRASH => Retention::decode(value).map(drop),
        QUOTA if key.len() == 1 => Quota::decode(value).map(drop),
        QUOTA => DirectoryQuota::decode(value).map(drop),
        INODE => InodeRecord::decode(value).map(drop),
        ORPHAN => Fields::new(value, "orphan")?.end(),
        UNPUBLISHED => Fields::new(value, "unpublished")?.end(),
        LINK => decode_link(value).map(drop),
        GONE => {
            gone_object(key)?;
            decode_gone(value).map(drop)
        }
        SEGMENT => SegmentRecord::decode(value).map(drop),
        COOKIE => decode_cookie(value).map(drop),
        EXTENT => decode_extent(value).map(drop),
        DENTRY => {
            Name::new(key_rest(key)).map_err(|_| corrupt("name"))?;
            Dentry::decode(value).map(drop)
        }
        _ => decode_xattr(value).map(drop),
    }
}

/// What follows the tag and the number.
pub fn key_rest(key: &Bytes) -> Bytes {
    key.slice(key.len().min(9)..)
}

/// Where a name that somebody gave begins in a key: an encrypted volume's store hides it from there on.
pub fn name_in_key(key: &[u8]) -> Option<usize> {
    (matches!(key.first(), Some(&DENTRY | &XATTR | &GONE)) && key.len() > 9).then_some(9)
}

/// The number after the tag.
pub fn key_number(key: &[u8]) -> Result<u64> {
    let bytes: [u8; 8] = key.get(1..9).and_then(|b| b.try_into().ok()).ok_or_else(|| corrupt("key"))?;
    Ok(u64::from_be_bytes(bytes))
}

pub fn rest_u64(key: &[u8]) -> Result<u64> {
    let bytes: [u8; 8] = key.get(9..17).and_then(|b| b.try_into().ok()).ok_or_else(|| corrupt("key"))?;
    Ok(u64::from_be_bytes(bytes))
}

pub fn rest_u32(key: &[u8]) -> Result<u32> {
    let bytes: [u8; 4] = key.get(9..13).and_then(|b| b.try_into().ok()).ok_or_else(|| corrupt("key"))?;
    Ok(u32::from_be_bytes(bytes))
}

fn corrupt(what: &str) -> VolumeError {
    VolumeError::Corrupt(format!("malformed {what}"))
}

/// Reads fields of a value in order.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    version: u8,
    what: &'static str,
}

impl<'a> Fields<'a> {
    pub fn new(value: &'a [u8], what: &'static str) -> Result<Self> {
        match value.split_first() {
            Some((&version @ 1..=FORMAT_VERSION, rest)) => Ok(Fields { rest, version, what }),
            Some((&newer, _)) if newer > FORMAT_VERSION => Err(VolumeError::FutureFormat(u32::from(newer))),
            _ => Err(corrupt(what)),
        }
    }

    pub fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| corrupt(self.what))?;
        self.rest = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.take::<1>()?[0])
    }

    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(corrupt(self.what)),
        }
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn time(&mut self) -> Result<Timestamp> {
        let seconds = i64::from_be_bytes(self.take()?);
        let nanos = self.u32()?;
        if nanos >= Timestamp::NANOS_PER_SECOND {
            return Err(corrupt(self.what));
        }
        Ok(Timestamp { seconds, nanos })
    }

    pub fn slice(&mut self, length: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or_else(|| corrupt(self.what))?;
        self.rest = rest;
        Ok(head)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(corrupt(self.what)) }
    }
}

pub(crate) fn value(capacity: usize) -> BytesMut {
    let mut value = BytesMut::with_capacity(capacity + 1);
    value.put_u8(FORMAT_VERSION);
    value
}

fn put_time(value: &mut BytesMut, time: Timestamp) {
    value.put_i64(time.seconds);
    value.put_u32(time.nanos);
}

/// An inode as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeRecord {
    pub mode: Mode,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    pub size: u64,
    pub allocated: u64,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub created: Timestamp,
    /// Of a directory: the directory that holds it.
    pub parent: InodeId,
    /// Of a directory: the cookie that the next name gets.
    pub next_cookie: u64,
    /// The quota root that it is charged to; `NONE`: none.
    pub quota_root: InodeId,
    /// It had several names when it came to its quota root: some of them may lie outside.
    pub strays: bool,
    /// What it knows of the bucket, if it lies in a link.
    pub linked: Option<Box<Linked>>,
    /// Of a symlink.
    pub target: Bytes,
}

impl InodeRecord {
    pub fn kind(&self) -> FileKind {
        self.mode.kind().unwrap_or(FileKind::Regular)
    }

    pub fn encode(&self) -> Bytes {
        let linked = self.linked.as_ref().map(record::encode).unwrap_or_default();
        let mut v = value(123 + linked.len() + self.target.len());
        for word in [self.mode.0, self.links, self.uid, self.gid, self.device] {
            v.put_u32(word);
        }
        v.put_u64(self.size);
        v.put_u64(self.allocated);
        for time in [self.accessed, self.modified, self.changed, self.created] {
            put_time(&mut v, time);
        }
        v.put_u64(self.parent.0);
        v.put_u64(self.next_cookie);
        v.put_u64(self.quota_root.0);
        v.put_u8(u8::from(self.strays));
        v.put_u16(linked.len() as u16);
        v.put_slice(&linked);
        v.put_slice(&self.target);
        v.freeze()
    }

    pub fn decode(bytes: &Bytes) -> Result<Self> {
        let mut f = Fields::new(bytes, "inode")?;
        let has_root = f.version > WITHOUT_QUOTA_ROOTS;
        let record = InodeRecord {
            mode: Mode(f.u32()?),
            links: f.u32()?,
            uid: f.u32()?,
            gid: f.u32()?,
            device: f.u32()?,
            size: f.u64()?,
            allocated: f.u64()?,
            accessed: f.time()?,
            modified: f.time()?,
            changed: f.time()?,
            created: f.time()?,
            parent: InodeId(f.u64()?),
            next_cookie: f.u64()?,
            quota_root: InodeId(if has_root { f.u64()? } else { 0 }),
            strays: has_root && f.flag()?,
            linked: if f.version > WITHOUT_LINKS { linked(&mut f)? } else { None },
            target: bytes.slice_ref(f.rest),
        };
        if record.mode.kind().is_none() { Err(corrupt("inode")) } else { Ok(record) }
    }
}

fn linked(f: &mut Fields<'_>) -> Result<Option<Box<Linked>>> {
    let length = f.u16()?;
    let bytes = f.slice(usize::from(length))?;
    if bytes.is_empty() { Ok(None) } else { Ok(Some(Box::new(record::decode(bytes, "inode")?))) }
}

pub fn encode_link(settings: &LinkSettings) -> Bytes {
    encode_record(settings)
}

pub fn decode_link(bytes: &[u8]) -> Result<LinkSettings> {
    let Fields { rest, version, what } = Fields::new(bytes, "link")?;
    // They end before the queue, as if there were none, or before the budget.
    let queue: &[u8] = if version > WITHOUT_QUEUES { &[] } else { &[0] };
    let budget = if version > WITHOUT_BUDGETS { Vec::new() } else { record::encode(&Some(BUDGET_DEFAULT)) };
    record::decode(&[rest, queue, &budget].concat(), what)
}

pub fn encode_gone(gone: &Gone) -> Bytes {
    encode_record(gone)
}

pub fn decode_gone(bytes: &[u8]) -> Result<Gone> {
    record::decode(Fields::new(bytes, "gone object")?.rest, "gone object")
}

/// Of an upload in parts, by the key of its object.
pub fn encode_upload(object: &ObjectKey) -> Bytes {
    encode_record(object)
}

pub fn decode_upload(bytes: &[u8]) -> Result<ObjectKey> {
    record::decode(Fields::new(bytes, "upload")?.rest, "upload")
}

/// The id of the upload that an [`upload_key`] is of.
pub fn upload_id(key: &Bytes) -> Result<String> {
    String::from_utf8(key_rest(key).to_vec()).map_err(|_| corrupt("upload"))
}

/// The key in the bucket that a [`gone_key`] is of.
pub fn gone_object(key: &Bytes) -> Result<ObjectKey> {
    let text = String::from_utf8(key_rest(key).to_vec()).map_err(|_| corrupt("gone object"))?;
    ObjectKey::new(text).ok_or_else(|| corrupt("gone object"))
}

fn encode_record<T: serde::Serialize>(record: &T) -> Bytes {
    let encoded = record::encode(record);
    let mut v = value(encoded.len());
    v.put_slice(&encoded);
    v.freeze()
}

/// A name of a directory, without the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dentry {
    pub inode: InodeId,
    pub kind: FileKind,
    pub cookie: u64,
}

fn kind_from(byte: u8) -> Result<FileKind> {
    FileKind::from_bits(u32::from(byte) << 12).ok_or_else(|| corrupt("file type"))
}

impl Dentry {
    pub fn encode(&self) -> Bytes {
        let mut v = value(17);
        v.put_u64(self.inode.0);
        v.put_u8(self.kind.dirent_type());
        v.put_u64(self.cookie);
        v.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut f = Fields::new(bytes, "dentry")?;
        let dentry = Dentry { inode: InodeId(f.u64()?), kind: kind_from(f.u8()?)?, cookie: f.u64()? };
        f.end()?;
        Ok(dentry)
    }
}

/// The value under a cookie: the dentry again, with its name.
pub fn encode_cookie(inode: InodeId, kind: FileKind, name: &Name) -> Bytes {
    let mut v = value(9 + name.as_bytes().len());
    v.put_u64(inode.0);
    v.put_u8(kind.dirent_type());
    v.put_slice(name.as_bytes());
    v.freeze()
}

pub fn decode_cookie(bytes: &Bytes) -> Result<(InodeId, FileKind, Name)> {
    let mut f = Fields::new(bytes, "cookie")?;
    let inode = InodeId(f.u64()?);
    let kind = kind_from(f.u8()?)?;
    let name = Name::new(bytes.slice_ref(f.rest)).map_err(|_| corrupt("name"))?;
    Ok((inode, kind, name))
}

pub fn encode_xattr(content: &[u8]) -> Bytes {
    let mut v = value(content.len());
    v.put_slice(content);
    v.freeze()
}

pub fn decode_xattr(bytes: &Bytes) -> Result<Bytes> {
    let f = Fields::new(bytes, "xattr")?;
    Ok(bytes.slice_ref(f.rest))
}

pub fn encode_extent(extent: &Extent) -> Bytes {
    let location = extent.location;
    let mut v = value(40);
    v.put_u32(extent.length);
    v.put_u32(extent.skip);
    v.put_u64(location.segment.0);
    v.put_u32(location.offset);
    v.put_u32(location.stored);
    v.put_u32(location.length);
    v.put_u8(location.codec.number());
    v.put_u32(location.checksum);
    v.freeze()
}

pub fn decode_extent(bytes: &[u8]) -> Result<Extent> {
    let mut f = Fields::new(bytes, "extent")?;
    let (length, skip) = (f.u32()?, f.u32()?);
    let location = Location {
        segment: SegmentId(f.u64()?),
        offset: f.u32()?,
        stored: f.u32()?,
        length: f.u32()?,
        codec: Codec::numbered(f.u8()?).ok_or_else(|| corrupt("extent"))?,
        checksum: f.u32()?,
    };
    f.end()?;
    let fits = skip.checked_add(length).is_some_and(|end| end <= location.length);
    // More than it holds only when it is sealed.
    let bounded = location.segment == SegmentId::BASE
        || location.length as usize <= atoll_types::limits::EXTENT_BYTES_MAX
            && location.stored as usize <= location.length as usize + atoll_blob::SEALED_BYTES;
    if length == 0 || !fits || !bounded { Err(corrupt("extent")) } else { Ok(Extent { length, skip, location }) }
}

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Its bytes are staged or in fragments.
    Open,
    /// Its object is whole.
    Uploaded,
    /// No extent refers to it; its object is about to go.
    Doomed,
}

/// What is recorded of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRecord {
    pub state: SegmentState,
    /// Logical bytes that extents refer to.
    pub live: i64,
    /// Logical bytes that were written to it.
    pub written: u64,
}

impl SegmentRecord {
    pub fn encode(&self) -> Bytes {
        let mut v = value(17);
        v.put_u8(match self.state {
            SegmentState::Open => 0,
            SegmentState::Uploaded => 1,
            SegmentState::Doomed => 2,
        });
        v.put_i64(self.live);
        v.put_u64(self.written);
        v.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut f = Fields::new(bytes, "segment")?;
        let state = match f.u8()? {
            0 => SegmentState::Open,
            1 => SegmentState::Uploaded,
            2 => SegmentState::Doomed,
            _ => return Err(corrupt("segment")),
        };
        let live = i64::from_be_bytes(f.take()?);
        // Records of the first releases end here.
        let written = if f.is_empty() { live.max(0) as u64 } else { f.u64()? };
        f.end()?;
        Ok(SegmentRecord { state, live, written })
    }
}

/// How much a volume may hold, or a directory with everything below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of files, holes not counted.
    pub bytes: u64,
    pub inodes: u64,
}

impl Quota {
    pub const NONE: Quota = Quota { bytes: u64::MAX, inodes: u64::MAX };

    pub fn encode(&self) -> Bytes {
        let mut v = value(16);
        v.put_u64(self.bytes);
        v.put_u64(self.inodes);
        v.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut f = Fields::new(bytes, "quota")?;
        let quota = Quota { bytes: f.u64()?, inodes: f.u64()? };
        f.end()?;
        Ok(quota)
    }
}

/// What is charged to a quota root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of files, holes not counted.
    pub bytes: u64,
    pub inodes: u64,
}

/// Where the quota of a directory is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaState {
    /// What was there before is being charged to it; its limits do not hold yet.
    Counting,
    Kept,
    /// What is charged to it is being charged to what holds it; its limits hold no longer.
    Leaving,
}

impl QuotaState {
    pub fn name(self) -> &'static str {
        match self {
            QuotaState::Counting => "counting",
            QuotaState::Kept => "kept",
            QuotaState::Leaving => "leaving",
        }
    }
}

/// The quota of one directory, a *quota root*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryQuota {
    pub state: QuotaState,
    /// The quota root that holds it; `NONE`: none.
    pub parent: InodeId,
    pub limits: Quota,
    /// Charged to it and to the quota roots that it holds.
    pub used: Usage,
}

impl DirectoryQuota {
    pub fn encode(&self) -> Bytes {
        let mut v = value(41);
        v.put_u8(match self.state {
            QuotaState::Counting => 0,
            QuotaState::Kept => 1,
            QuotaState::Leaving => 2,
        });
        for number in [self.parent.0, self.limits.bytes, self.limits.inodes, self.used.bytes, self.used.inodes] {
            v.put_u64(number);
        }
        v.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut f = Fields::new(bytes, "quota of a directory")?;
        let state = match f.u8()? {
            0 => QuotaState::Counting,
            1 => QuotaState::Kept,
            2 => QuotaState::Leaving,
            _ => return Err(corrupt("quota of a directory")),
        };
        let quota = DirectoryQuota {
            state,
            parent: InodeId(f.u64()?),
            limits: Quota { bytes: f.u64()?, inodes: f.u64()? },
            used: Usage { bytes: f.u64()?, inodes: f.u64()? },
        };
        f.end()?;
        Ok(quota)
    }
}

/// For how long files are kept that lost their last name, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention(pub u64);

impl Retention {
    pub fn encode(&self) -> Bytes {
        let mut v = value(8);
        v.put_u64(self.0);
        v.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut f = Fields::new(bytes, "retention")?;
        let retention = Retention(f.u64()?);
        f.end()?;
        Ok(retention)
    }
}

/// Numbers that must outlive the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// No inode at or above this number exists.
    pub next_inode: u64,
    pub inodes: u64,
    pub last_change: Timestamp,
    /// The number of the newest snapshot; 0 without any.
    pub last_snapshot: u16,
}

impl Counters {
    pub fn encode(&self) -> Bytes {
        let mut v = value(30);
        v.put_u64(self.next_inode);
        v.put_u64(self.inodes);
        put_time(&mut v, self.last_change);
        v.put_u16(self.last_snapshot);
        v.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut f = Fields::new(bytes, "counters")?;
        let (next_inode, inodes, last_change) = (f.u64()?, f.u64()?, f.time()?);
        // Those of version 1 end here.
        let last_snapshot = if f.is_empty() { 0 } else { f.u16()? };
        let counters = Counters { next_inode, inodes, last_change, last_snapshot };
        f.end()?;
        Ok(counters)
    }
}

/// How far a durable change has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On the server's disk.
    Local,
    /// In the object store.
    Object,
}

impl Durability {
    pub fn name(self) -> &'static str {
        match self {
            Durability::Local => "local",
            Durability::Object => "object",
        }
    }
}

/// A volume of which another one began as a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    pub volume: String,
    /// Segments of epochs up to this one, and above that of the ancestor before, are that volume's.
    pub newest: Epoch,
}

/// What is fixed when a volume is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSettings {
    pub durability: Durability,
    /// Unique among all volumes.
    pub id: u128,
    pub compression: Compression,
    /// Oldest first.
    pub ancestors: Vec<Ancestor>,
}

impl VolumeSettings {
    pub fn new(durability: Durability, id: u128) -> Self {
        VolumeSettings { durability, id, compression: Compression::default(), ancestors: Vec::new() }
    }

    /// Whether a segment is the volume's own, and not an ancestor's.
    pub fn owns(&self, segment: SegmentId) -> bool {
        self.ancestors.last().is_none_or(|ancestor| segment.0 >> 32 > ancestor.newest.0)
    }

    pub fn encode(&self) -> Bytes {
        let mut v = value(17);
        v.put_u8(match self.durability {
            Durability::Local => 0,
            Durability::Object => 1,
        });
        v.put_u128(self.id);
        v.put_u8(match self.compression {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        });
        for ancestor in &self.ancestors {
            v.put_u64(ancestor.newest.0);
            // Names are bounded by far less.
            v.put_u32(ancestor.volume.len() as u32);
            v.put_slice(ancestor.volume.as_bytes());
        }
        v.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut f = Fields::new(bytes, "superblock")?;
        let durability = match f.u8()? {
            0 => Durability::Local,
            1 => Durability::Object,
            _ => return Err(corrupt("superblock")),
        };
        let id = u128::from_be_bytes(f.take()?);
        // Superblocks of the first releases end here.
        let compression = match if f.is_empty() { 1 } else { f.u8()? } {
            0 => Compression::None,
            1 => Compression::Lz4,
            2 => Compression::Zstd,
            _ => return Err(corrupt("superblock")),
        };
        let mut ancestors = Vec::new();
        while !f.is_empty() {
            let newest = Epoch(f.u64()?);
            let length = f.u32()? as usize;
            let name = f.slice(length)?.to_vec();
            let volume = String::from_utf8(name).map_err(|_| corrupt("superblock"))?;
            ancestors.push(Ancestor { volume, newest });
        }
        Ok(VolumeSettings { durability, id, compression, ancestors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_foreign_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from([&[FORMAT_VERSION][..], &bytes].concat());
            for tag in TAGS {
                let key = Bytes::from([&[tag][..], &bytes].concat());
                for length in [0, 1, 9, 12, 17, key.len()] {
                    let _ = check(&key.slice(..length.min(key.len())), &bytes);
                }
            }
            let _ = InodeRecord::decode(&bytes);
            let _ = Dentry::decode(&bytes);
            let _ = decode_cookie(&bytes);
            let _ = decode_extent(&bytes);
            let _ = SegmentRecord::decode(&bytes);
            let _ = Counters::decode(&bytes);
            let _ = Quota::decode(&bytes);
            let _ = Retention::decode(&bytes);
            let _ = VolumeSettings::decode(&bytes);
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        assert!(matches!(VolumeSettings::decode(&[9, 0]), Err(VolumeError::FutureFormat(9))));
        assert!(matches!(VolumeSettings::decode(&[1, 0]), Err(VolumeError::Corrupt(_))));
    }

    #[test]
    fn what_a_server_needs_after_a_crash_is_in_no_export() {
        for key in [session_key(SessionId(1)), fragment_key(SegmentId(1), 2), upload_key(InodeId(1), "id")] {
            assert!(!is_portable(&key) && check(&key, &Bytes::from_static(&[FORMAT_VERSION])).is_err());
        }
        let name = Name::new(&b"n"[..]).unwrap();
        let dentry = Dentry { inode: InodeId(2), kind: FileKind::Regular, cookie: 3 };
        let (key, value) = (dentry_key(InodeId(1), &name), dentry.encode());
        assert!(is_portable(&key));
        check(&key, &value).unwrap();
        check(&key.slice(..9), &value).unwrap_err();
        check(&key, &value.slice(1..)).unwrap_err();
    }

    #[test]
    fn records_come_back_as_they_were() {
        let time = Timestamp { seconds: -5, nanos: 999_999_999 };
        let record = InodeRecord {
            mode: Mode::new(FileKind::Symlink, 0o777),
            links: 2,
            uid: 3,
            gid: 4,
            device: 5,
            size: 6,
            allocated: 7,
            accessed: time,
            modified: time,
            changed: time,
            created: time,
            parent: InodeId(8),
            next_cookie: 9,
            quota_root: InodeId(6),
            strays: true,
            linked: Some(Box::new(Linked {
                link: InodeId(3),
                home: Some((InodeId(4), Bytes::from_static(b"name"))),
                object: None,
                prefix: Some(atoll_link::names::Prefix::new(ObjectKey::new("a/b/").unwrap())),
                dirty: crate::links::record::Dirty::Attributes,
                kept: true,
                is_described: false,
            })),
            target: Bytes::from_static(b"to"),
        };
        assert_eq!(InodeRecord::decode(&record.encode()).unwrap(), record);
        let without = InodeRecord { linked: None, ..record };
        // What a version has before `linked` was there, and before quota roots were.
        let (new, at) = (without.encode(), 101);
        let of_old = Bytes::from([&[WITHOUT_LINKS], &new[1..at + 9], &new[at + 11..]].concat());
        assert_eq!(InodeRecord::decode(&of_old).unwrap(), without);
        let of_old = Bytes::from([&[WITHOUT_QUOTA_ROOTS], &new[1..at], &new[at + 11..]].concat());
        let without = InodeRecord { quota_root: InodeId::NONE, strays: false, ..without };
        assert_eq!(InodeRecord::decode(&of_old).unwrap(), without);
        let name = Name::new(&b"n"[..]).unwrap();
        assert_eq!(
            decode_cookie(&encode_cookie(InodeId(1), FileKind::Fifo, &name)).unwrap(),
            (InodeId(1), FileKind::Fifo, name)
        );
        let mut settings = VolumeSettings::new(Durability::Object, 7);
        let of_old = settings.encode().slice(..18);
        assert_eq!(VolumeSettings::decode(&of_old).unwrap(), settings);
        for compression in [Compression::None, Compression::Zstd] {
            settings.compression = compression;
            assert_eq!(VolumeSettings::decode(&settings.encode()).unwrap(), settings);
        }
        for (volume, newest) in [("a", 3), ("b", 9)] {
            settings.ancestors.push(Ancestor { volume: volume.into(), newest: Epoch(newest) });
        }
        assert_eq!(VolumeSettings::decode(&settings.encode()).unwrap(), settings);
        let mut link = LinkSettings::parse("s3://bucket/prefix").unwrap();
        let new = encode_link(&link);
        let end = new.len() - record::encode(&link.budget).len();
        for (version, end) in [(WITHOUT_QUEUES, end - 1), (WITHOUT_BUDGETS, end)] {
            assert_eq!(decode_link(&[&[version], &new[1..end]].concat()).unwrap(), link);
        }
        link.budget = None;
        link.queue = Some("https://sqs.us-east-1.amazonaws.com/1/q".to_owned().try_into().unwrap());
        assert_eq!(decode_link(&encode_link(&link)).unwrap(), link);
        let segment = SegmentRecord { state: SegmentState::Doomed, live: -3, written: 9 };
        assert_eq!(SegmentRecord::decode(&segment.encode()).unwrap(), segment);
        let of_old = [&[FORMAT_VERSION, 1][..], &7_i64.to_be_bytes()].concat();
        let segment = SegmentRecord { state: SegmentState::Uploaded, live: 7, written: 7 };
        assert_eq!(SegmentRecord::decode(&of_old).unwrap(), segment);
    }
}
