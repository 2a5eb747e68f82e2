//! How much the volume may hold.
//!
//! What clients have made without asking was answered already, and is executed whatever it needs. So well before a
//! quota is reached nobody is given the right to make anything without asking, or numbers for new inodes; and who has
//! such a right loses it as soon as it is used.

use atoll_types::limits::INODES_RESERVED;
use atoll_types::{ByteRange, Errno, InodeId};

use super::{Core, Step};
use crate::format::{self, Quota};

/// What one client may write without asking until it has to ask: its journal, and as much again.
const BYTES_AHEAD: u64 = 64 << 20;
/// The same for inodes: the numbers that it may have.
const INODES_AHEAD: u64 = 2 * INODES_RESERVED as u64;

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

    /// Whether one more inode may be made.
    pub(super) fn check_inodes(&self) -> Step<()> {
        let fits = self.making.is_some() || self.inodes_used() < self.quota.inodes;
        if fits { Ok(()) } else { Err(Errno::EDQUOT.into()) }
    }

    /// Whether a range of a file may hold so many bytes instead of what it holds.
    pub(super) fn check_bytes(&mut self, inode: InodeId, range: ByteRange, bytes: u64) -> Step<()> {
        if self.making.is_some() || self.quota == Quota::NONE {
            return Ok(());
        }
        let grows = bytes.saturating_sub(self.extents(inode)?.data_in(range));
        let fits = grows == 0 || self.bytes_live().saturating_add(grows) <= self.quota.bytes;
        if fits { Ok(()) } else { Err(Errno::EDQUOT.into()) }
    }
}
