//! Is the volume what it should be, and what is to be done where it is not?
//!
//! A check reads one version of the store from one end to the other: names beside directories' offsets first, then
//! inodes beside their bytes and attributes, then segments beside the objects. It holds some 50 bytes for each
//! inode and one directory at a time. What it finds carries the writes that mend it. A repair commits those and
//! checks again, until nothing is left that can be mended.
//!
//! Nothing of a user's is thrown away: what lost its name gets one in `/lost+found`, and bytes whose object is gone
//! stay referred to, so that they are back when the object is.

mod inodes;
mod links;
mod lost;
mod names;
mod paths;
mod quotas;
mod segments;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use atoll_blob::Blob;
use atoll_store::{Batch, Read, Store};
use atoll_types::{FileKind, InodeId, Name, SegmentId};
use bytes::Bytes;

use crate::cursor::Cursor;
use crate::error::VolumeError;
use crate::format::{self, Counters, VolumeSettings};

type Result<T> = std::result::Result<T, VolumeError>;

/// Most findings of a check that are described, and mended in one go. All are counted.
pub const FINDINGS_MAX: usize = 1000;
/// Offsets and inode numbers as large as these never come up: they are damage, and would overflow.
const COOKIES_MAX: u64 = 1 << 62;
const INODES_MAX: u64 = 1 << 48;
/// Repairs end for certain, whatever lies in the store.
const ROUNDS_MAX: usize = 10_000;

/// What can be wrong. `docs/fsck.md` explains each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Problem {
    /// A key or a value that cannot be read.
    Malformed,
    /// A key of no kind that this release knows.
    UnknownKey,
    /// No root directory.
    Root,
    NameWithoutInode,
    NameWithoutDirectory,
    /// The name says another file type than the inode.
    NameType,
    /// A name and its directory offset do not fit together.
    DirectoryOffset,
    SecondNameOfDirectory,
    /// Directories that are inside of themselves.
    DirectoryLoop,
    DirectorySize,
    DirectoryParent,
    /// A size that no file has.
    FileSize,
    Links,
    /// An inode that has no name and is not waiting to be freed.
    Lost,
    /// What says that an inode waits to be freed, where none does; or the other way round.
    OrphanMark,
    XattrWithoutInode,
    ExtentWithoutFile,
    ExtentOverlap,
    ExtentBeyondEnd,
    ExtentWithoutSegment,
    Allocated,
    SegmentRecord,
    SegmentLive,
    FragmentWithoutSegment,
    ObjectMissing,
    ObjectShort,
    /// Charged to another quota root than the one that holds it, or to none that is there.
    QuotaRoot,
    /// A quota root says that something else is charged to it than is.
    QuotaUsage,
    /// What a link knows of its bucket, where there is no such link, or no such directory or file.
    LinkRecord,
    /// A file or directory in a link that is not there.
    LinkMissing,
    /// Bytes that are not what was written.
    Data,
    Counters,
}

impl Problem {
    pub fn name(self) -> &'static str {
        use Problem as P;
        match self {
            P::Malformed => "malformed",
            P::UnknownKey => "unknown-key",
            P::Root => "root",
            P::NameWithoutInode => "name-without-inode",
            P::NameWithoutDirectory => "name-without-directory",
            P::NameType => "name-type",
            P::DirectoryOffset => "directory-offset",
            P::SecondNameOfDirectory => "second-name-of-directory",
            P::DirectoryLoop => "directory-loop",
            P::DirectorySize => "directory-size",
            P::DirectoryParent => "directory-parent",
            P::FileSize => "file-size",
            P::Links => "links",
            P::Lost => "lost",
            P::OrphanMark => "orphan-mark",
            P::XattrWithoutInode => "xattr-without-inode",
            P::ExtentWithoutFile => "extent-without-file",
            P::ExtentOverlap => "extent-overlap",
            P::ExtentBeyondEnd => "extent-beyond-end",
            P::ExtentWithoutSegment => "extent-without-segment",
            P::Allocated => "allocated",
            P::SegmentRecord => "segment-record",
            P::SegmentLive => "segment-live",
            P::FragmentWithoutSegment => "fragment-without-segment",
            P::ObjectMissing => "object-missing",
            P::ObjectShort => "object-short",
            P::QuotaRoot => "quota-root",
            P::QuotaUsage => "quota-usage",
            P::LinkRecord => "link-record",
            P::LinkMissing => "link-missing",
            P::Data => "data",
            P::Counters => "counters",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What would mend a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Remedy {
    Writes(Vec<(Bytes, Option<Bytes>)>),
    /// A name in `/lost+found`.
    Name,
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub problem: Problem,
    /// The inode that is affected.
    pub inode: Option<InodeId>,
    pub text: String,
    /// A path of the inode, where it has one.
    pub path: Option<String>,
    remedy: Remedy,
}

impl Finding {
    pub fn can_be_mended(&self) -> bool {
        self.remedy != Remedy::None
    }
}

/// What a check went through and what it found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub inodes: u64,
    pub directories: u64,
    pub names: u64,
    pub extents: u64,
    /// Logical bytes in extents.
    pub bytes: u64,
    pub segments: u64,
    /// Bytes that were read and compared with their checksums.
    pub bytes_read: u64,
    /// Objects that nothing refers to, and their bytes: `gc` removes them.
    pub garbage: Vec<(SegmentId, u64)>,
    /// How many of each problem.
    pub problems: BTreeMap<Problem, u64>,
    /// The first of them.
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    pub fn garbage_bytes(&self) -> u64 {
        self.garbage.iter().map(|(_, bytes)| bytes).sum()
    }

    fn find(&mut self, problem: Problem, inode: impl Into<Option<InodeId>>, text: String, remedy: Remedy) {
        *self.problems.entry(problem).or_default() += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { problem, inode: inode.into(), text, path: None, remedy });
        }
    }

    fn delete(&mut self, problem: Problem, inode: impl Into<Option<InodeId>>, text: String, key: Bytes) {
        self.find(problem, inode, text, Remedy::Writes(vec![(key, None)]));
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub phase: &'static str,
    pub done: u64,
    /// 0: not known.
    pub total: u64,
}

/// Hears of the progress, now and then.
pub type Watch<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// What is there to be checked.
pub struct Subject<'a> {
    /// One version of the metadata.
    pub view: &'a dyn Read,
    /// The newest version: what it no longer holds may be gone from the objects, too.
    pub newest: &'a dyn Read,
    /// The segments in the object store, listed after `view` was taken, and their bytes.
    pub objects: &'a [(SegmentId, u64)],
    /// Segments of this epoch may be about to be referred to.
    pub epoch: atoll_types::Epoch,
    /// Read all bytes, too.
    pub bytes: Option<&'a Blob>,
}

/// Of one directory, from its names.
#[derive(Clone, Copy, Debug, Default)]
struct Directory {
    /// The directory that names it; 0: none does.
    named_in: u64,
    /// Sum of the lengths of its names.
    size: u64,
    subdirectories: u32,
    /// Above all offsets in use.
    next_cookie: u64,
}

impl Directory {
    fn new() -> Self {
        Directory { next_cookie: 1, ..Directory::default() }
    }
}

/// Of one inode that is no directory.
#[derive(Clone, Copy, Debug)]
struct Other {
    inode: u64,
    names: u32,
    /// A directory that names it; 0: none does.
    named_in: u64,
    kind: FileKind,
}

/// What the names have to fit to.
#[derive(Default)]
struct Inodes {
    directories: HashMap<u64, Directory>,
    /// By number.
    others: Vec<Other>,
    /// Without a record that can be read, and what their names say they are.
    broken: HashMap<u64, Option<FileKind>>,
    /// Those of them that get a new record.
    rebuilt: HashSet<u64>,
}

impl Inodes {
    fn other(&mut self, inode: u64) -> Option<&mut Other> {
        let index = self.others.binary_search_by_key(&inode, |other| other.inode).ok()?;
        Some(&mut self.others[index])
    }

    fn kind(&self, inode: u64) -> Option<FileKind> {
        if self.directories.contains_key(&inode) {
            return Some(FileKind::Directory);
        }
        let index = self.others.binary_search_by_key(&inode, |other| other.inode).ok()?;
        Some(self.others[index].kind)
    }
}

struct Check<'a> {
    subject: Subject<'a>,
    watch: Watch<'a>,
    counters: Counters,
    inodes: Inodes,
    segments: segments::Segments,
    quotas: quotas::Quotas,
    links: links::Links,
    report: Report,
}

impl Check<'_> {
    fn progress(&self, phase: &'static str, done: u64, total: u64) {
        if done.is_multiple_of(8192) {
            (self.watch)(Progress { phase, done, total });
        }
    }

    async fn run(&mut self) -> Result<()> {
        self.unknown_keys().await?;
        self.learn_quotas().await?;
        self.learn_links().await?;
        self.learn_inodes().await?;
        self.names().await?;
        self.loops().await?;
        self.learn_segments().await?;
        self.inodes().await?;
        self.links_without_directories();
        self.quotas();
        self.segments().await?;
        self.sessions().await?;
        self.counters();
        paths::add(self.subject.view, &mut self.report).await
    }

    async fn unknown_keys(&mut self) -> Result<()> {
        let mut start = 1;
        for tag in format::TAGS.into_iter().chain([u8::MAX]) {
            let mut between =
                Cursor::new(self.subject.view, (Bytes::copy_from_slice(&[start]), Bytes::from(vec![tag])));
            while let Some((key, _)) = between.next().await? {
                let text = format!("key {:?} is of no kind that this release knows", key);
                self.report.find(Problem::UnknownKey, None, text, Remedy::None);
            }
            start = tag.saturating_add(1);
        }
        Ok(())
    }

    async fn sessions(&mut self) -> Result<()> {
        let mut sessions = Cursor::new(self.subject.view, format::all_sessions());
        while let Some((key, value)) = sessions.next().await? {
            if let Err(error) = crate::sessions::SessionRecord::decode(&value) {
                self.report.delete(Problem::Malformed, None, format!("the record of a session: {error}"), key);
            }
        }
        Ok(())
    }

    fn counters(&mut self) {
        let last = self.inodes.others.last().map(|other| other.inode);
        let directories = self.inodes.directories.keys().copied().filter(|inode| *inode != InodeId::TRASH.0);
        let last = directories.max().max(last).unwrap_or(0);
        let right = Counters {
            inodes: self.report.inodes,
            next_inode: Some(self.counters.next_inode).filter(|next| *next < INODES_MAX).unwrap_or(0).max(last + 1),
            ..self.counters
        };
        if right != self.counters {
            let text = format!(
                "counters say {} inodes with numbers below {}; there are {} with numbers up to {last}",
                self.counters.inodes, self.counters.next_inode, right.inodes
            );
            let writes = vec![(format::counters_key(), Some(right.encode()))];
            self.report.find(Problem::Counters, None, text, Remedy::Writes(writes));
        }
    }
}

/// Check a volume. Fails only when it cannot be read, or is of a newer release.
pub async fn check(subject: Subject<'_>, watch: Watch<'_>) -> Result<Report> {
    let superblock = subject.view.get(&format::superblock_key()).await?.ok_or(VolumeError::Missing)?;
    VolumeSettings::decode(&superblock)?;
    let counters = subject.view.get(&format::counters_key()).await?.unwrap_or_default();
    let counters = match Counters::decode(&counters) {
        Err(VolumeError::Corrupt(_)) => Counters::default(),
        counters => counters?,
    };
    let mut check = Check {
        subject,
        watch,
        counters,
        inodes: Inodes::default(),
        segments: segments::Segments::default(),
        quotas: quotas::Quotas::default(),
        links: links::Links::default(),
        report: Report::default(),
    };
    check.run().await?;
    Ok(check.report)
}

/// What a repair did.
#[derive(Clone, Debug)]
pub struct Repair {
    /// What the first check found.
    pub before: Report,
    /// What is left.
    pub after: Report,
    pub mended: u64,
}

/// Mend a volume that nobody has open. Each round is one commit: a crash in between leaves a volume that is better
/// than before, and the next repair goes on.
pub async fn repair(store: &dyn Store, objects: &[(SegmentId, u64)], watch: Watch<'_>) -> Result<Repair> {
    let mut before = None;
    let mut mended = 0;
    for _ in 0..ROUNDS_MAX {
        let view = store.snapshot()?;
        let (newest, epoch): (&dyn Read, _) = (&*view, store.epoch());
        let subject = Subject { view: newest, newest, objects, epoch, bytes: None };
        let report = check(subject, watch).await?;
        let mut batch = Batch::default();
        let mut unnamed = Vec::new();
        for finding in &report.findings {
            match &finding.remedy {
                Remedy::Writes(writes) => {
                    mended += 1;
                    batch.writes.extend(writes.iter().cloned());
                }
                Remedy::Name => unnamed.extend(finding.inode),
                Remedy::None => {}
            }
        }
        // Names last: they go by what records say.
        if batch.writes.is_empty() {
            mended += unnamed.len() as u64;
            lost::name(newest, &unnamed, &mut batch).await?;
        }
        let done = batch.writes.is_empty();
        if !done {
            let seq = store.commit(batch).await?;
            store.durable(seq).await?;
        }
        let first = before.get_or_insert_with(|| report.clone());
        if done {
            return Ok(Repair { before: first.clone(), after: report, mended });
        }
    }
    Err(VolumeError::Corrupt("a repair does not come to an end: please report it".into()))
}

/// A name as text on one line.
fn shown(name: &Name) -> String {
    String::from_utf8_lossy(name.as_bytes()).escape_debug().to_string()
}
