//! Advisory locks as values.

use crate::{ByteRange, LockOwner};
use serde::{Deserialize, Serialize};

/// The two name spaces of locks on one inode; they never conflict with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockSpace {
    /// `fcntl` byte-range locks: POSIX (owner = process) and OFD (owner = open file).
    Range,
    /// `flock` locks: the whole file, owner = open file.
    Whole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockKind {
    Shared,
    Exclusive,
}

/// One lock, held or wished for. `range.end == u64::MAX` means to the end of the file, however long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub space: LockSpace,
    pub owner: LockOwner,
    /// Process that asked, as `F_GETLK` reports it; 0 when unknown.
    pub pid: u32,
    pub kind: LockKind,
    pub range: ByteRange,
}
