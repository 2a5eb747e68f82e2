//! Which advisory locks a mount holds, and which it lost with its session.
//!
//! Whoever lost a lock does not know it: others may hold it by now. So every read and
//! write of the file through this mount fails until those who lost it have closed or
//! unlocked it.

use atoll_types::locks::LockSpace;
use atoll_types::{ByteRange, Errno, InodeId, LockOwner, Operation};
use rustc_hash::{FxHashMap, FxHashSet};

type Owner = (LockSpace, LockOwner);

#[derive(Default)]
pub(crate) struct HeldLocks {
    held: FxHashMap<InodeId, FxHashSet<Owner>>,
    lost: FxHashMap<InodeId, FxHashSet<Owner>>,
}

fn remove(table: &mut FxHashMap<InodeId, FxHashSet<Owner>>, inode: InodeId, owner: Owner) {
    if let Some(owners) = table.get_mut(&inode) {
        owners.remove(&owner);
        if owners.is_empty() {
            table.remove(&inode);
        }
    }
}

impl HeldLocks {
    /// Whether the operation may be tried.
    pub fn admit(&self, operation: &Operation) -> Result<(), Errno> {
        use Operation as O;
        match operation {
            _ if self.lost.is_empty() => Ok(()),
            O::Read { inode, .. }
            | O::Write { inode, .. }
            | O::Allocate { inode, .. }
            | O::SetLock { inode, .. }
            | O::CloneRange { target: inode, .. }
                if self.lost.contains_key(inode) =>
            {
                Err(Errno::EIO)
            }
            _ => Ok(()),
        }
    }

    /// A lock was taken.
    pub fn taken(&mut self, operation: &Operation) {
        if let Operation::SetLock { inode, lock, .. } = operation {
            self.held.entry(*inode).or_default().insert((lock.space, lock.owner));
        }
    }

    /// An owner lets go; of a part of the file it may still hold others.
    pub fn unlocks(&mut self, operation: &Operation) {
        const EVERYTHING: ByteRange = ByteRange { start: 0, end: u64::MAX };
        if let Operation::Unlock { inode, space, owner, range: EVERYTHING } = operation {
            remove(&mut self.held, *inode, (*space, *owner));
            remove(&mut self.lost, *inode, (*space, *owner));
        }
    }

    /// The session is over, and with it all locks. Answers on how many files.
    pub fn lose(&mut self) -> usize {
        let count = self.held.len();
        for (inode, owners) in self.held.drain() {
            self.lost.entry(inode).or_default().extend(owners);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::locks::{Lock, LockKind};

    const FILE: InodeId = InodeId(7);

    #[test]
    fn a_file_whose_lock_was_lost_fails_until_its_owner_lets_go() {
        let (space, owner, range) = (LockSpace::Whole, LockOwner(3), ByteRange::new(0, u64::MAX));
        let lock = Lock { space, owner, pid: 0, kind: LockKind::Exclusive, range };
        let read = |inode| Operation::Read { inode, range };
        let mut locks = HeldLocks::default();
        locks.taken(&Operation::SetLock { inode: FILE, lock, wait: true });
        assert_eq!(locks.admit(&read(FILE)), Ok(()));
        assert_eq!(locks.lose(), 1);
        assert_eq!(locks.admit(&read(FILE)), Err(Errno::EIO));
        assert_eq!(locks.admit(&read(InodeId(8))), Ok(()));
        locks.unlocks(&Operation::Unlock { inode: FILE, space, owner: LockOwner(4), range });
        assert_eq!(locks.admit(&read(FILE)), Err(Errno::EIO));
        locks.unlocks(&Operation::Unlock { inode: FILE, space, owner, range });
        assert_eq!(locks.admit(&read(FILE)), Ok(()));
    }
}
