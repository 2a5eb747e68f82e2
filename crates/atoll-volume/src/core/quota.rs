//! How much the volume may hold.
//!
//! What clients have made without asking was answered already, and is executed whatever it needs. So well before a
//! quota is reached nobody is given the right to make anything without asking, or numbers for new inodes; and who has
//! such a right loses it as soon as it is used.

use atoll_lease::Claim;
use atoll_types::limits::INODES_RESERVED;
use atoll_types::operation::VolumeStatistics;
use atoll_types::{ByteRange, Errno, InodeId};

use super::{Core, Step};
use crate::format::{self, Quota};

/// What one client may write without asking until it has to ask: its journal, and as much again.
pub(super) const BYTES_AHEAD: u64 = 64 << 20;
/// The same for inodes: the numbers that it may have.
pub(super) const INODES_AHEAD: u64 = 2 * INODES_RESERVED as u64;
/// What `statfs` shows where nothing bounds them.
const INODES_SHOWN_MAX: u64 = 1 << 48;

impl Core {
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// A new quota, with the change after whose commit it is kept.
    pub fn set_quota(&mut self, quota: Quota) -> u64 {
        self.quota = quota;
        self.write(format::quota_key(), (quota != Quota::NONE).then(|| quota.encode()));
        self.order();
        self.ordered()
    }

    /// Whether so little is left that every change has to be asked for.
    pub fn is_tight(&self) -> bool {
        if self.quota == Quota::NONE {
            return false;
        }
        let clients = self.leases.enrolled() as u64;
        let bytes = self.bytes_live().saturating_add(BYTES_AHEAD * clients);
        let inodes = self.inodes_used().saturating_add(INODES_AHEAD * clients);
        bytes > self.quota.bytes || inodes > self.quota.inodes
    }

    /// Whether so little is left in the volume, or in a directory with a quota around one of these, that every change there
    /// has to be asked for.
    pub fn is_tight_at(&self, claims: &[Claim]) -> bool {
        if self.roots.is_empty() {
            return self.is_tight();
        }
        let clients = self.leases.enrolled() as u64;
        let root = |claim: &Claim| self.inodes.get(&claim.inode).map(|cached| cached.record.quota_root);
        self.is_tight() || claims.iter().filter_map(root).any(|root| self.roots.is_tight(root, clients))
    }

    /// Whether one more inode may be made in a directory.
    pub(super) fn check_inodes(&mut self, parent: InodeId) -> Step<()> {
        if self.making.is_some() {
            return Ok(());
        }
        let root = self.record(parent)?.quota_root;
        let fits = self.inodes_used() < self.quota.inodes && self.roots.have_room(root, InodeId::NONE, 0, 1);
        if fits { Ok(()) } else { Err(Errno::EDQUOT.into()) }
    }

    /// Whether a range of a file may hold so many bytes instead of what it holds.
    pub(super) fn check_bytes(&mut self, inode: InodeId, range: ByteRange, bytes: u64) -> Step<()> {
        let root = self.record(inode)?.quota_root;
        if self.making.is_some() || (self.quota == Quota::NONE && root == InodeId::NONE) {
            return Ok(());
        }
        let grows = bytes.saturating_sub(self.extents(inode)?.data_in(range));
        let fits = self.bytes_live().saturating_add(grows) <= self.quota.bytes
            && self.roots.have_room(root, InodeId::NONE, grows, 0);
        if grows == 0 || fits { Ok(()) } else { Err(Errno::EDQUOT.into()) }
    }

    /// What there is where an inode is. What is used is never more than there is, also where a quota came later.
    pub fn statistics(&mut self, inode: InodeId, capacity_bytes: u64) -> Step<VolumeStatistics> {
        let root = self.record(inode)?.quota_root;
        let (bytes, inodes) = (self.bytes_live(), self.inodes_used());
        let whole = VolumeStatistics {
            bytes_total: self.quota.bytes.min(capacity_bytes).max(bytes),
            bytes_used: bytes,
            inodes_total: self.quota.inodes.min(INODES_SHOWN_MAX).max(inodes),
            inodes_used: inodes,
        };
        Ok(self.roots.statistics(root, whole))
    }
}
