//! The file system as a synchronous machine over a decoded, bounded cache.
//!
//! Invariant: an operation first gathers and checks everything it needs, and
//! stops with [`Stop::Load`] at the first thing that is not cached; only then it
//! changes anything. So a stopped operation can simply be run again. What is
//! cached always equals the store overlaid with the pending writes.
//!
//! Start with [`Core::inode`] (how things are found) and [`Core::cut`] (how
//! changes leave for the store).

mod adopted;
mod adopting;
mod attributes;
mod claims;
mod compaction;
mod data;
mod doubt;
mod linked;
mod listing;
mod made;
mod namespace;
mod publishing;
mod quota;
mod quota_roots;
mod sessions;
mod stamping;
mod trash;
mod unheard;
mod uploads;
mod xattr;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use atoll_lease::locks::LockTable;
use atoll_lease::{Authority, Claim, Rights};
use atoll_store::Page;
use atoll_types::{Attributes, Caller, Errno, FileKind, InodeId, Mode, Name, SegmentId, SessionId, Timestamp};
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::extents::{Changes, ExtentMap};
use crate::format::{self, Counters, Dentry, InodeRecord, KeyRange, Quota, SegmentRecord, SegmentState};
use crate::sessions::SessionRecord;

pub(crate) use adopting::{Found, is_same_version, kind_of};
pub(crate) use claims::Asked;
pub(crate) use compaction::Sparse;
pub(crate) use data::ReadPlan;
pub(crate) use doubt::Belief;
pub(crate) use listing::{Listing, entry};
pub(crate) use publishing::{Content, Job, Move};
pub(crate) use unheard::{Unheard, UnheardChanges};

/// Why an operation did not finish.
#[derive(Debug)]
pub(crate) enum Stop {
    Error(Errno),
    /// Load this and run the operation again.
    Load(Need),
    /// Somebody holds what this excludes: wait until it is given up, and run the step again. Of steps that are no session's.
    Held(Claim),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Stop::Error(errno)
    }
}

/// Who asks for rights that no session is to have.
pub(crate) const NOBODY: SessionId = SessionId(0);

pub(crate) type Step<T> = Result<T, Stop>;

/// Something that is not cached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Need {
    Inode(InodeId),
    Dentry(InodeId, Name),
    Extents(InodeId),
    Xattrs(InodeId),
    /// Whether there is no such inode.
    Vacancy(InodeId),
}

/// Writes that the store does not hold yet; `None` deletes.
pub(crate) type Writes = BTreeMap<Bytes, Option<Bytes>>;

/// An inode number range reserved at a time: at most this many are lost by a crash.
const INODE_RESERVE: u64 = 65_536;

/// There are hundreds of thousands: what few of them have is apart.
pub(crate) struct CachedInode {
    pub record: InodeRecord,
    /// Differs from the store and from the pending writes.
    dirty: bool,
    /// Used since the eviction hand last passed.
    touched: bool,
    pub extents: Option<ExtentMap>,
    pub xattrs: Option<BTreeMap<Bytes, Bytes>>,
    pub directory: Option<Box<Directory>>,
    /// Of a linked file.
    confirmed: Option<doubt::Confirmed>,
}

/// What is known of a directory's names; `None` = known not to be there.
#[derive(Default)]
pub(crate) struct Directory {
    names: FxHashMap<Name, Option<Dentry>>,
    /// Every name is in `names`, and every dentry in `cookies`.
    complete: bool,
    cookies: BTreeMap<u64, Name>,
}

/// Most names (known or known to be absent) kept of an incomplete directory.
const NAMES_KEPT_MAX: usize = 65_536;

#[derive(Clone, Copy)]
struct Segment {
    state: SegmentState,
    /// Bytes that extents refer to now.
    live: i64,
    /// The same as of the last cut, thus of what the store holds after it.
    live_cut: i64,
    /// Bytes that were written to it.
    written: u64,
}

impl Segment {
    fn new(record: SegmentRecord) -> Self {
        let SegmentRecord { state, live, written } = record;
        Segment { state, live, live_cut: live, written }
    }

    fn empty(state: SegmentState) -> Self {
        Segment::new(SegmentRecord { state, live: 0, written: 0 })
    }

    /// Bytes that nothing refers to.
    fn dead(&self) -> u64 {
        self.written.saturating_sub(self.live.max(0) as u64)
    }
}

/// A batch for the store.
pub(crate) struct Cut {
    pub writes: Arc<Writes>,
    /// Everything ordered up to here is in the batch or before it.
    pub ordered: u64,
}

pub(crate) struct Core {
    inodes: FxHashMap<InodeId, Box<CachedInode>>,
    hand: VecDeque<InodeId>,
    inodes_max: usize,
    dirty: FxHashSet<InodeId>,
    pending: Writes,
    in_flight: Option<Arc<Writes>>,
    /// Grows when a batch is cut and when it is retired; a load that spans either is repeated: what it
    /// read may have changed, left for the store and the cache, all in between.
    moves: u64,
    /// Number of the newest ordered change.
    ordered: u64,
    counters: Counters,
    next_inode: u64,
    /// The change with which the counters last moved on to cover `next_inode`.
    covered: u64,
    numbers: made::Numbers,
    segments: FxHashMap<SegmentId, Segment>,
    /// Bytes in use of all segments.
    live: i64,
    quota: Quota,
    pub roots: quota_roots::Roots,
    trash: trash::Trash,
    dirty_segments: FxHashSet<SegmentId>,
    /// Segments whose last extent went.
    emptied: Vec<SegmentId>,
    /// Made without a name and never linked since: only these may get a first name (`O_TMPFILE`).
    unnamed: FxHashSet<InodeId>,
    /// Open counts by inode.
    opens: FxHashMap<InodeId, u32>,
    session_opens: HashMap<SessionId, FxHashMap<InodeId, u32>>,
    pub locks: LockTable,
    pub leases: Authority,
    pub links: linked::Links,
    /// The operation that is executed now takes from others what they use: what loses its last name by it lingers.
    pub lingers: bool,
    making: Option<made::Making>,
    /// The latest time that a client was told: it dates by it what it makes, also when our clock was set back since.
    told: Timestamp,
    sessions: FxHashMap<SessionId, SessionRecord>,
    dirty_sessions: FxHashSet<SessionId>,
    pub unheard: UnheardChanges,
    lingering: VecDeque<(Instant, InodeId)>,
    durability: &'static str,
    /// Nothing of it is ever written.
    pub frozen: bool,
}

impl Core {
    pub fn new(
        counters: Counters,
        segments: impl IntoIterator<Item = (SegmentId, SegmentRecord)>,
        inodes_max: usize,
        quota: Quota,
        durability: &'static str,
    ) -> Self {
        let segments: FxHashMap<SegmentId, Segment> =
            segments.into_iter().map(|(id, record)| (id, Segment::new(record))).collect();
        Core {
            inodes: FxHashMap::default(),
            hand: VecDeque::new(),
            inodes_max: inodes_max.max(8),
            dirty: FxHashSet::default(),
            pending: Writes::new(),
            in_flight: None,
            moves: 0,
            ordered: 0,
            next_inode: counters.next_inode,
            counters,
            covered: 0,
            numbers: made::Numbers::default(),
            live: segments.values().map(|segment| segment.live).sum(),
            segments,
            quota,
            roots: quota_roots::Roots::default(),
            trash: trash::Trash::default(),
            dirty_segments: FxHashSet::default(),
            emptied: Vec::new(),
            unnamed: FxHashSet::default(),
            opens: FxHashMap::default(),
            session_opens: HashMap::new(),
            locks: LockTable::default(),
            leases: Authority::default(),
            links: linked::Links::default(),
            lingers: false,
            making: None,
            told: Timestamp::default(),
            sessions: FxHashMap::default(),
            dirty_sessions: FxHashSet::default(),
            lingering: VecDeque::new(),
            unheard: UnheardChanges::default(),
            durability,
            frozen: false,
        }
    }

    // ---- finding

    /// The cached inode, or what to load.
    pub fn inode(&mut self, inode: InodeId) -> Step<&mut CachedInode> {
        match self.inodes.get_mut(&inode) {
            Some(cached) => {
                cached.touched = true;
                Ok(cached.as_mut())
            }
            None => Err(Stop::Load(Need::Inode(inode))),
        }
    }

    fn record(&mut self, inode: InodeId) -> Step<&InodeRecord> {
        self.inode(inode).map(|cached| &cached.record)
    }

    /// The inode when it is a directory that still has a name.
    fn directory(&mut self, inode: InodeId) -> Step<&InodeRecord> {
        let record = self.record(inode)?;
        if record.kind() != FileKind::Directory { Err(Errno::ENOTDIR.into()) } else { Ok(record) }
    }

    /// A directory that may get new names: a removed one may not, nor one of the trash.
    fn living_directory(&mut self, inode: InodeId) -> Step<&InodeRecord> {
        if self.directory(inode)?.parent == InodeId::TRASH || inode == InodeId::TRASH {
            return Err(Errno::EPERM.into());
        }
        let record = self.directory(inode)?;
        if record.links == 0 { Err(Errno::ENOENT.into()) } else { Ok(record) }
    }

    pub fn dentry(&mut self, parent: InodeId, name: &Name) -> Step<Option<Dentry>> {
        self.directory(parent)?;
        let cached = self.inode(parent)?;
        let directory = cached.directory.get_or_insert_default();
        match directory.names.get(name) {
            Some(known) => Ok(*known),
            None if directory.complete => Ok(None),
            None => Err(Stop::Load(Need::Dentry(parent, name.clone()))),
        }
    }

    fn extents(&mut self, inode: InodeId) -> Step<&mut ExtentMap> {
        match &mut self.inode(inode)?.extents {
            Some(map) => Ok(map),
            None => Err(Stop::Load(Need::Extents(inode))),
        }
    }

    fn xattrs(&mut self, inode: InodeId) -> Step<&mut BTreeMap<Bytes, Bytes>> {
        match &mut self.inode(inode)?.xattrs {
            Some(map) => Ok(map),
            None => Err(Stop::Load(Need::Xattrs(inode))),
        }
    }

    pub fn attributes(&mut self, inode: InodeId) -> Step<Attributes> {
        let record = self.record(inode)?;
        Ok(Attributes {
            inode,
            mode: record.mode,
            links: record.links,
            uid: record.uid,
            gid: record.gid,
            device: record.device,
            size: record.size,
            allocated: record.allocated,
            accessed: record.accessed,
            modified: record.modified,
            changed: record.changed,
            created: record.created,
            quota_root: record.quota_root,
        })
    }

    // ---- installing what was loaded

    /// Remember before a load; [`Core::install`] refuses when the store moved meanwhile.
    pub fn load_stamp(&self) -> u64 {
        self.moves
    }

    /// The pending value of a key: `Some(None)` = pending deletion.
    pub fn overlay(&self, key: &Bytes) -> Option<Option<Bytes>> {
        self.pending.get(key).or_else(|| self.in_flight.as_ref()?.get(key)).cloned()
    }

    /// Pending writes of a range, newest first.
    pub fn overlay_range(&self, range: &KeyRange) -> Writes {
        let mut writes = Writes::new();
        let bounds = range.0.clone()..range.1.clone();
        if let Some(in_flight) = &self.in_flight {
            writes.extend(in_flight.range(bounds.clone()).map(|(k, v)| (k.clone(), v.clone())));
        }
        writes.extend(self.pending.range(bounds).map(|(k, v)| (k.clone(), v.clone())));
        writes
    }

    pub fn install_inode(&mut self, stamp: u64, inode: InodeId, record: InodeRecord) {
        if stamp != self.moves || self.inodes.contains_key(&inode) {
            return;
        }
        self.cache(inode, record);
    }

    pub fn install_dentry(&mut self, stamp: u64, parent: InodeId, name: Name, dentry: Option<Dentry>) {
        if stamp != self.moves {
            return;
        }
        if let Some(cached) = self.inodes.get_mut(&parent) {
            let directory = cached.directory.get_or_insert_default();
            if !directory.complete && directory.names.len() >= NAMES_KEPT_MAX {
                **directory = Directory::default();
            }
            directory.names.entry(name).or_insert(dentry);
        }
    }

    pub fn install_extents(&mut self, stamp: u64, inode: InodeId, map: ExtentMap) {
        if stamp != self.moves {
            return;
        }
        if let Some(cached) = self.inodes.get_mut(&inode) {
            cached.extents.get_or_insert(map);
        }
    }

    pub fn install_xattrs(&mut self, stamp: u64, inode: InodeId, map: BTreeMap<Bytes, Bytes>) {
        if stamp != self.moves {
            return;
        }
        if let Some(cached) = self.inodes.get_mut(&inode) {
            cached.xattrs.get_or_insert(map);
        }
    }

    fn cache(&mut self, inode: InodeId, record: InodeRecord) {
        let cached = CachedInode {
            record,
            dirty: false,
            touched: true,
            extents: None,
            xattrs: None,
            directory: None,
            confirmed: None,
        };
        self.inodes.insert(inode, Box::new(cached));
        self.hand.push_back(inode);
    }

    /// Let go of clean inodes beyond the bound, those not used lately first.
    pub fn evict(&mut self) {
        let mut steps = 2 * self.hand.len();
        while self.inodes.len() > self.inodes_max && steps > 0 {
            steps -= 1;
            let Some(inode) = self.hand.pop_front() else { break };
            let Some(cached) = self.inodes.get_mut(&inode) else { continue };
            let keep = cached.dirty || cached.touched || self.opens.contains_key(&inode);
            cached.touched = false;
            if keep {
                self.hand.push_back(inode);
            } else {
                self.inodes.remove(&inode);
            }
        }
    }

    // ---- changing

    fn mark(&mut self, inode: InodeId) {
        if let Some(cached) = self.inodes.get_mut(&inode) {
            cached.dirty = true;
            self.dirty.insert(inode);
        }
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        self.pending.insert(key, value);
    }

    /// Count one ordered change.
    fn order(&mut self) {
        self.ordered += 1;
    }

    /// Let the counters cover the numbers that were given, with the change that is ordered next. False when
    /// they do already.
    fn cover_numbers(&mut self) -> bool {
        if self.next_inode <= self.counters.next_inode {
            return false;
        }
        self.counters.next_inode = self.next_inode + INODE_RESERVE;
        self.covered = self.ordered + 1;
        true
    }

    fn new_inode(&mut self, record: InodeRecord) -> InodeId {
        let inode = self.take_number().unwrap_or_else(|| self.next_number());
        self.enter(inode, record);
        inode
    }

    fn next_number(&mut self) -> InodeId {
        let inode = InodeId(self.next_inode);
        self.next_inode += 1;
        self.cover_numbers();
        inode
    }

    /// An inode that there was not before.
    fn enter(&mut self, inode: InodeId, record: InodeRecord) {
        self.counters.inodes += 1;
        let kind = record.kind();
        self.charge(record.quota_root, 0, 1);
        self.cache(inode, record);
        if let Some(cached) = self.inodes.get_mut(&inode) {
            cached.xattrs = Some(BTreeMap::new());
            match kind {
                FileKind::Regular => cached.extents = Some(ExtentMap::new()),
                FileKind::Directory => {
                    cached.directory = Some(Box::new(Directory { complete: true, ..Directory::default() }));
                }
                _ => {}
            }
        }
        self.mark(inode);
    }

    /// Change the record; the caller has found it before.
    fn change(&mut self, inode: InodeId, change: impl FnOnce(&mut InodeRecord)) {
        if let Some(cached) = self.inodes.get_mut(&inode) {
            change(&mut cached.record);
        }
        self.mark(inode);
    }

    fn add_dentry(&mut self, parent: InodeId, name: &Name, inode: InodeId, kind: FileKind) {
        let mut cookie = 0;
        self.change(parent, |record| {
            cookie = record.next_cookie;
            record.next_cookie += 1;
            record.size += name.as_bytes().len() as u64;
        });
        let dentry = Dentry { inode, kind, cookie };
        if let Some(cached) = self.inodes.get_mut(&parent) {
            let directory = cached.directory.get_or_insert_default();
            directory.names.insert(name.clone(), Some(dentry));
            if directory.complete {
                directory.cookies.insert(cookie, name.clone());
            }
        }
        self.write(format::dentry_key(parent, name), Some(dentry.encode()));
        self.write(format::cookie_key(parent, cookie), Some(format::encode_cookie(inode, kind, name)));
    }

    fn remove_dentry(&mut self, parent: InodeId, name: &Name, dentry: Dentry) {
        self.change(parent, |record| {
            record.size = record.size.saturating_sub(name.as_bytes().len() as u64);
        });
        if let Some(cached) = self.inodes.get_mut(&parent) {
            let directory = cached.directory.get_or_insert_default();
            if directory.complete {
                directory.names.remove(name);
                directory.cookies.remove(&dentry.cookie);
            } else {
                directory.names.insert(name.clone(), None);
            }
        }
        self.write(format::dentry_key(parent, name), None);
        self.write(format::cookie_key(parent, dentry.cookie), None);
    }

    /// Persist what an extent map's change did.
    fn apply_changes(&mut self, inode: InodeId, changes: Changes) {
        for offset in changes.deletes {
            self.write(format::extent_key(inode, offset), None);
        }
        for (offset, extent) in changes.puts {
            self.write(format::extent_key(inode, offset), Some(format::encode_extent(&extent)));
        }
        for (segment, delta) in changes.live {
            if segment == SegmentId::BASE {
                continue;
            }
            let entry = self.segments.entry(segment).or_insert(Segment::empty(SegmentState::Open));
            let before = entry.live;
            entry.live += delta;
            self.live += delta;
            self.dirty_segments.insert(segment);
            if before > 0 && entry.live <= 0 {
                self.emptied.push(segment);
            }
        }
        let Some(cached) = self.inodes.get(&inode) else { return };
        if let Some(allocated) = cached.extents.as_ref().map(ExtentMap::allocated) {
            let grown = allocated.wrapping_sub(cached.record.allocated) as i64;
            self.charge(cached.record.quota_root, grown, 0);
            self.change(inode, |record| record.allocated = allocated);
        }
    }

    // ---- leaving for the store

    pub fn ordered(&self) -> u64 {
        self.ordered
    }

    /// The changes up to this one are durable.
    pub fn durable(&mut self, ordered: u64) {
        self.unheard.durable(ordered);
        self.links.adopted.durable(ordered);
    }

    /// Nobody keeps anything of the inode: what is about to be changed of it is no session's doing.
    pub fn must_be_free(&self, inode: InodeId) -> Step<()> {
        self.must_exclude(Claim { inode, excludes: Rights::INODE_EXCLUSIVE })
    }

    /// No session holds what it excludes.
    pub fn must_exclude(&self, claim: Claim) -> Step<()> {
        if self.leases.is_free(NOBODY, &[claim]) { Ok(()) } else { Err(Stop::Held(claim)) }
    }

    pub fn has_changes(&self) -> bool {
        let is_dirty = !self.dirty.is_empty() || !self.dirty_segments.is_empty() || !self.dirty_sessions.is_empty();
        is_dirty || self.roots.are_dirty() || !self.pending.is_empty()
    }

    /// Writes that wait to be cut.
    pub fn backlog(&self) -> usize {
        self.pending.len() + self.dirty.len()
    }

    /// Take everything pending as one batch, now in flight.
    pub fn cut(&mut self) -> Cut {
        let mut writes = std::mem::take(&mut self.pending);
        for inode in std::mem::take(&mut self.dirty) {
            if let Some(cached) = self.inodes.get_mut(&inode) {
                cached.dirty = false;
                writes.insert(format::inode_key(inode), Some(cached.record.encode()));
            }
        }
        for segment in std::mem::take(&mut self.dirty_segments) {
            if let Some(known) = self.segments.get_mut(&segment) {
                known.live_cut = known.live;
                let record = SegmentRecord { state: known.state, live: known.live, written: known.written };
                writes.insert(format::segment_key(segment), Some(record.encode()));
            }
        }
        self.write_sessions(&mut writes);
        self.roots.write(&mut writes);
        writes.insert(format::counters_key(), Some(self.counters.encode()));
        let writes = Arc::new(writes);
        self.in_flight = Some(writes.clone());
        self.moves += 1;
        Cut { writes, ordered: self.ordered }
    }

    /// The batch in flight is in the store now.
    pub fn retire(&mut self) {
        self.in_flight = None;
        self.moves += 1;
    }

    /// Segments were opened or uploaded; their records, for the batch that says so. They count what the
    /// last cut left: a record that ran ahead of its extents would let a crash doom a segment in use.
    pub fn record_segments(&mut self, ids: &[SegmentId], state: SegmentState) -> Vec<(Bytes, Bytes)> {
        let mut records = Vec::with_capacity(ids.len());
        for &id in ids {
            let segment = self.segments.entry(id).or_insert(Segment::empty(state));
            if segment.state == SegmentState::Open {
                segment.state = state;
            }
            if segment.state == SegmentState::Uploaded && segment.live <= 0 {
                self.emptied.push(id);
            }
            let record = SegmentRecord { state: segment.state, live: segment.live_cut, written: segment.written };
            records.push((format::segment_key(id), record.encode()));
        }
        records
    }

    /// Segments that may have become garbage since the last call.
    pub fn take_emptied(&mut self) -> Vec<SegmentId> {
        std::mem::take(&mut self.emptied)
    }

    /// Doom a segment if it is still garbage: true when its object may go once this is durable.
    pub fn doom(&mut self, segment: SegmentId) -> bool {
        match self.segments.get_mut(&segment) {
            Some(s) if s.state == SegmentState::Uploaded && s.live <= 0 => {
                s.state = SegmentState::Doomed;
                self.dirty_segments.insert(segment);
                true
            }
            _ => false,
        }
    }

    /// Segments whose bytes nothing refers to are looked at again.
    pub fn suspect_empty(&mut self) {
        let empty = |segment: &Segment| segment.state == SegmentState::Uploaded && segment.live <= 0;
        self.emptied.extend(self.segments.iter().filter(|(_, segment)| empty(segment)).map(|(id, _)| *id));
    }

    /// The object of a doomed segment is gone.
    pub fn bury(&mut self, segment: SegmentId) {
        self.live -= self.segments.remove(&segment).map_or(0, |gone| gone.live);
        self.dirty_segments.remove(&segment);
        self.write(format::segment_key(segment), None);
    }

    pub fn has_segment(&self, segment: SegmentId) -> bool {
        self.segments.contains_key(&segment)
    }

    /// Whether anything refers to it.
    pub fn is_used(&self, segment: SegmentId) -> bool {
        self.segments.get(&segment).is_some_and(|segment| segment.live > 0)
    }

    pub fn bytes_live(&self) -> u64 {
        self.live.max(0) as u64
    }

    /// Bytes that nothing refers to, in segments of which some are in use.
    pub fn bytes_dead(&self) -> u64 {
        self.segments.values().filter(|segment| segment.live > 0).map(Segment::dead).sum()
    }

    pub fn inodes_used(&self) -> u64 {
        self.counters.inodes
    }

    pub fn inodes_cached(&self) -> usize {
        self.inodes.len()
    }
}

/// The record of a new inode.
fn fresh(mode: Mode, uid: u32, gid: u32, now: Timestamp) -> InodeRecord {
    InodeRecord {
        mode,
        links: 1,
        uid,
        gid,
        device: 0,
        size: 0,
        allocated: 0,
        accessed: now,
        modified: now,
        changed: now,
        created: now,
        parent: InodeId(0),
        next_cookie: 0,
        quota_root: InodeId::NONE,
        strays: false,
        linked: None,
        target: Bytes::new(),
    }
}

/// The root directory of a new volume.
pub(crate) fn root(owner: &Caller, now: Timestamp) -> InodeRecord {
    let mut root = fresh(Mode::new(FileKind::Directory, 0o755), owner.uid, owner.gid, now);
    root.links = 2;
    root.parent = InodeId::ROOT;
    root.next_cookie = 1;
    root
}

/// Who and when, for the steps of one operation.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub session: SessionId,
    pub caller: &'a Caller,
}

/// Overlay pending writes on a page of the store, bounded like the page.
pub(crate) fn merge(page: Page, overlay: Writes, end: &Bytes) -> Vec<(Bytes, Bytes)> {
    let horizon = page.next.unwrap_or_else(|| end.clone());
    let mut merged: BTreeMap<Bytes, Bytes> = page.entries.into_iter().collect();
    for (key, value) in overlay {
        if key >= horizon {
            break;
        }
        match value {
            Some(value) => merged.insert(key, value),
            None => merged.remove(&key),
        };
    }
    merged.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core() -> Core {
        let mut core = Core::new(Counters { next_inode: 2, ..Counters::default() }, [], 8, Quota::NONE, "local");
        core.cache(InodeId::ROOT, root(&Caller::default(), Timestamp::default()));
        core
    }

    #[test]
    fn a_load_that_spans_a_cut_is_refused() {
        let mut core = core();
        let stamp = core.load_stamp();
        core.mark(InodeId::ROOT);
        core.cut();
        core.inodes.clear();
        core.install_inode(stamp, InodeId::ROOT, root(&Caller::default(), Timestamp::default()));
        assert!(core.inode(InodeId::ROOT).is_err());
    }

    #[test]
    fn the_record_of_a_segment_counts_what_its_batch_refers_to() {
        let mut core = core();
        let segment = SegmentId(5);
        let live = |bytes| Changes { live: HashMap::from([(segment, bytes)]), ..Changes::default() };
        core.apply_changes(InodeId::ROOT, live(100));
        core.cut();
        core.apply_changes(InodeId::ROOT, live(-100));
        let records = core.record_segments(&[segment], SegmentState::Uploaded);
        let record = SegmentRecord { state: SegmentState::Uploaded, live: 100, written: 0 };
        assert_eq!(SegmentRecord::decode(&records[0].1).unwrap(), record);
        let cut = core.cut();
        let written = cut.writes[&format::segment_key(segment)].clone().unwrap();
        assert_eq!(SegmentRecord::decode(&written).unwrap(), SegmentRecord { live: 0, ..record });
    }
}
