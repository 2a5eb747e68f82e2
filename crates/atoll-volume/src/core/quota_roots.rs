//! Directories with a quota, *quota roots*: what is charged to which, and what may move from one to another.
//!
//! Invariant: every inode is charged to the quota root that its record names, and to those that hold that one. What is
//! charged leaves for the store in the batch of the change that charges it. So the record of a quota root is the sum over
//! these inodes in every version of the store, also while they are being charged anew (`stamping`).
//!
//! What was answered already is never refused. Where two places were in one quota root then and are not now, an earlier
//! authority was charging what is below anew (`stamping`), not all of that was durable, and it is about to be done again.
//!
//! An inode gets the quota root of the directory in which it is made, keeps it without a name, and changes it with its only
//! name. A quota root is charged to itself, and its record goes with the last inode that is.

use atoll_lease::Rights;
use atoll_types::limits::QUOTA_DEPTH_MAX;
use atoll_types::operation::VolumeStatistics;
use atoll_types::{Errno, FileKind, InodeId};
use rustc_hash::{FxHashMap, FxHashSet};

use super::quota::{BYTES_AHEAD, INODES_AHEAD};
use super::stamping::Stamping;
use super::{Core, Step, Writes};
use crate::format::{self, Dentry, DirectoryQuota, QuotaState};

/// There are at most `QUOTA_ROOTS_MAX`.
#[derive(Default)]
pub(crate) struct Roots {
    known: FxHashMap<InodeId, DirectoryQuota>,
    dirty: FxHashSet<InodeId>,
    /// Little is left in them since a moment ago.
    tightened: Vec<InodeId>,
    pub(super) stamping: Option<Stamping>,
}

impl DirectoryQuota {
    fn is_tight(&self, clients: u64) -> bool {
        let bytes = self.used.bytes.saturating_add(BYTES_AHEAD.saturating_mul(clients));
        let inodes = self.used.inodes.saturating_add(INODES_AHEAD.saturating_mul(clients));
        match self.state {
            QuotaState::Kept => bytes > self.limits.bytes || inodes > self.limits.inodes,
            // Whoever may change something alone by then might do so when the limits hold.
            QuotaState::Counting => true,
            QuotaState::Leaving => false,
        }
    }

    fn has_room(&self, bytes: u64, inodes: u64) -> bool {
        let fits = |used: u64, more: u64, limit: u64| more == 0 || used.saturating_add(more) <= limit;
        self.state != QuotaState::Kept
            || fits(self.used.bytes, bytes, self.limits.bytes) && fits(self.used.inodes, inodes, self.limits.inodes)
    }
}

impl Roots {
    pub fn install(&mut self, directory: InodeId, quota: DirectoryQuota) {
        self.known.insert(directory, quota);
    }

    pub fn get(&self, directory: InodeId) -> Option<DirectoryQuota> {
        self.known.get(&directory).copied()
    }

    pub fn all(&self) -> impl Iterator<Item = (InodeId, DirectoryQuota)> {
        self.known.iter().map(|(directory, quota)| (*directory, *quota))
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// For the next batch.
    pub(super) fn put(&mut self, directory: InodeId, quota: DirectoryQuota) {
        self.known.insert(directory, quota);
        self.dirty.insert(directory);
    }

    pub(super) fn remove(&mut self, directory: InodeId) {
        self.known.remove(&directory);
        self.dirty.insert(directory);
    }

    pub(super) fn are_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn write(&mut self, writes: &mut Writes) {
        for directory in self.dirty.drain() {
            let record = self.known.get(&directory).map(DirectoryQuota::encode);
            writes.insert(format::directory_quota_key(directory), record);
        }
    }

    /// A quota root and those that hold it. Also where the store says nonsense it ends.
    pub(super) fn chain(&self, root: InodeId) -> impl Iterator<Item = (InodeId, &DirectoryQuota)> {
        let next = |root: InodeId| self.known.get(&root).map(|quota| (root, quota));
        std::iter::successors(next(root), move |(_, quota)| next(quota.parent)).take(QUOTA_DEPTH_MAX)
    }

    /// Those right inside of `parent` in which, themselves included, more than so many are inside of each other.
    pub(super) fn higher_than(&self, parent: InodeId, most: usize) -> Vec<InodeId> {
        let mut heights: FxHashMap<InodeId, usize> = FxHashMap::default();
        for &root in self.known.keys() {
            for (depth, (above, _)) in self.chain(root).enumerate() {
                let height = heights.entry(above).or_default();
                *height = (depth + 1).max(*height);
            }
        }
        let inside = self.known.iter().filter(|(_, quota)| quota.parent == parent).map(|(root, _)| *root);
        inside.filter(|root| heights.get(root).is_some_and(|height| *height > most)).collect()
    }

    /// Whether so little is left that every change has to be asked for.
    pub fn is_tight(&self, root: InodeId, clients: u64) -> bool {
        self.chain(root).any(|(_, quota)| quota.is_tight(clients))
    }

    /// Whether so much more may be charged to a quota root. What is charged to `before` already counts for those that hold both.
    pub(super) fn have_room(&self, root: InodeId, before: InodeId, bytes: u64, inodes: u64) -> bool {
        let holds_before = |root: InodeId| self.chain(before).any(|(other, _)| other == root);
        self.chain(root).all(|(root, quota)| quota.has_room(bytes, inodes) || holds_before(root))
    }

    fn charge(&mut self, root: InodeId, bytes: i64, inodes: i64, clients: u64) {
        let mut at = root;
        for _ in 0..QUOTA_DEPTH_MAX {
            let Some(quota) = self.known.get_mut(&at) else { return };
            let was_tight = quota.is_tight(clients);
            quota.used.bytes = quota.used.bytes.saturating_add_signed(bytes);
            quota.used.inodes = quota.used.inodes.saturating_add_signed(inodes);
            if !was_tight && quota.is_tight(clients) {
                self.tightened.push(at);
            }
            self.dirty.insert(at);
            let (is_over, parent) = (quota.used.inodes == 0 && inodes < 0, quota.parent);
            if is_over {
                self.known.remove(&at);
            }
            at = parent;
        }
    }

    /// Quota roots in which little is left since the last call.
    pub fn take_tightened(&mut self) -> Vec<InodeId> {
        std::mem::take(&mut self.tightened)
    }

    /// What there is in the quota root, and no more than there is in what holds it.
    pub(super) fn statistics(&self, root: InodeId, whole: VolumeStatistics) -> VolumeStatistics {
        let stays = |(_, quota): &(_, &DirectoryQuota)| quota.state != QuotaState::Leaving;
        let Some((_, nearest)) = self.chain(root).find(stays) else { return whole };
        let mut bytes = whole.bytes_total - whole.bytes_used;
        let mut inodes = whole.inodes_total - whole.inodes_used;
        for (_, quota) in self.chain(root).filter(|(_, quota)| quota.state == QuotaState::Kept) {
            bytes = bytes.min(quota.limits.bytes.saturating_sub(quota.used.bytes));
            inodes = inodes.min(quota.limits.inodes.saturating_sub(quota.used.inodes));
        }
        VolumeStatistics {
            bytes_total: nearest.used.bytes.saturating_add(bytes),
            bytes_used: nearest.used.bytes,
            inodes_total: nearest.used.inodes.saturating_add(inodes),
            inodes_used: nearest.used.inodes,
        }
    }
}

impl Core {
    /// More, or less, is charged to a quota root and those that hold it.
    pub(super) fn charge(&mut self, root: InodeId, bytes: i64, inodes: i64) {
        if root != InodeId::NONE {
            self.roots.charge(root, bytes, inodes, self.leases.enrolled() as u64);
        }
    }

    /// An inode is another quota root's from now on. `strays`: some of its names may lie elsewhere.
    pub(super) fn recharge(&mut self, inode: InodeId, root: InodeId, strays: bool) {
        let Some(cached) = self.inodes.get(&inode) else { return };
        let (before, bytes) = (cached.record.quota_root, cached.record.allocated as i64);
        self.charge(root, bytes, 1);
        self.charge(before, -bytes, -1);
        self.change(inode, |record| {
            record.quota_root = root;
            record.strays = strays;
        });
    }

    /// What a file without a name, or with others, is charged to when it gets one in `parent`, if that changes.
    pub(super) fn linked_root(&mut self, inode: InodeId, parent: InodeId) -> Step<Option<InodeId>> {
        let root = self.record(parent)?.quota_root;
        let record = self.record(inode)?;
        let (before, bytes, is_unnamed) = (record.quota_root, record.allocated, record.links == 0);
        if before == root || self.is_stamped(before, root) {
            return Ok((before != root).then_some(root));
        }
        if !is_unnamed {
            return if self.making.is_some() { Ok(Some(root)) } else { Err(Errno::EXDEV.into()) };
        }
        self.check_charge(before, root, bytes).map(|()| Some(root))
    }

    /// What a name's inode is charged to when the name moves, if that changes.
    pub(super) fn moved_root(&mut self, name: Dentry, parent: InodeId, new_parent: InodeId) -> Step<Option<InodeId>> {
        let from = self.record(parent)?.quota_root;
        let to = self.record(new_parent)?.quota_root;
        let record = self.record(name.inode)?;
        let (before, bytes, links, size) = (record.quota_root, record.allocated, record.links, record.size);
        if name.kind == FileKind::Directory {
            // What is below it is charged with it, and so is what a quota root holds.
            let is_alone = size == 0 && self.roots.get(name.inode).is_none();
            return match (from == to, is_alone) {
                (true, _) => Ok(None),
                (false, true) => self.check_charge(before, to, 0).map(|()| Some(to)),
                (false, false) if self.making.is_some() => Ok(None),
                (false, false) => Err(Errno::EXDEV.into()),
            };
        }
        if before == to || self.is_stamped(before, to) {
            return Ok((before != to).then_some(to));
        }
        match (links > 1, from == to) {
            // It is charged to where another name of it was.
            (true, true) => Ok(None),
            (true, false) if self.making.is_some() => Ok(Some(to)),
            (true, false) => Err(Errno::EXDEV.into()),
            (false, _) => self.check_charge(before, to, bytes).map(|()| Some(to)),
        }
    }

    /// A name moves, and its inode is charged to `root`, if that changes.
    pub(super) fn moved(&mut self, name: Dentry, parent: InodeId, new_parent: InodeId, root: Option<InodeId>) {
        if let Some(root) = root {
            let has_others = self.inodes.get(&name.inode).is_some_and(|cached| cached.record.links > 1);
            self.recharge(name.inode, root, has_others && name.kind != FileKind::Directory);
        }
        if name.kind == FileKind::Directory && parent != new_parent {
            self.stamp_later(name.inode);
        }
    }

    fn check_charge(&self, before: InodeId, root: InodeId, bytes: u64) -> Step<()> {
        let fits = self.making.is_some() || self.roots.have_room(root, before, bytes, 1);
        if fits { Ok(()) } else { Err(Errno::EDQUOT.into()) }
    }

    /// What is held below a quota root to be changed without asking, when little is left there.
    pub fn held_tightly(&self, root: InodeId) -> Vec<InodeId> {
        let clients = self.leases.enrolled() as u64;
        if !self.roots.get(root).is_some_and(|quota| quota.is_tight(clients)) {
            return Vec::new();
        }
        let is_below = |inode: &InodeId| {
            // Of what is not cached nobody knows.
            let cached = self.inodes.get(inode);
            cached.is_none_or(|cached| self.roots.chain(cached.record.quota_root).any(|(above, _)| above == root))
        };
        self.leases.holders_of(Rights::WRITER).into_iter().filter(is_below).collect()
    }
}
