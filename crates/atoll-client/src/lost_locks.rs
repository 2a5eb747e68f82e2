//! Files on which processes of this mount lost advisory locks with the session.
//!
//! Whoever lost a lock does not know it: others may hold it by now. So every read and
//! write of the file through this mount fails until those who lost it have closed or
//! unlocked it.

use atoll_types::{ByteRange, Errno, InodeId, Operation};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::locks::Owner;

#[derive(Default)]
pub(crate) struct LostLocks(FxHashMap<InodeId, FxHashSet<Owner>>);

impl LostLocks {
    pub fn all(&self) -> Vec<(InodeId, Vec<Owner>)> {
        self.0.iter().map(|(inode, owners)| (*inode, owners.iter().copied().collect())).collect()
    }

    /// Whether the operation may be tried.
    pub fn admit(&self, operation: &Operation) -> Result<(), Errno> {
        use Operation as O;
        match operation {
            _ if self.0.is_empty() => Ok(()),
            O::Read { inode, .. }
            | O::Write { inode, .. }
            | O::Allocate { inode, .. }
            | O::SetLock { inode, .. }
            | O::CloneRange { target: inode, .. }
                if self.0.contains_key(inode) =>
            {
                Err(Errno::EIO)
            }
            _ => Ok(()),
        }
    }

    /// An owner lets go; of a part of the file it may have lost others.
    pub fn unlocks(&mut self, operation: &Operation) {
        if let Operation::Unlock { inode, space, owner, range: ByteRange::EVERYTHING } = operation
            && let Some(owners) = self.0.get_mut(inode)
        {
            owners.remove(&(*space, *owner));
            if owners.is_empty() {
                self.0.remove(inode);
            }
        }
    }

    /// These owners lost what they held of a file.
    pub fn lose(&mut self, inode: InodeId, owners: FxHashSet<Owner>) {
        if !owners.is_empty() {
            self.0.entry(inode).or_default().extend(owners);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::LockOwner;
    use atoll_types::locks::LockSpace;

    const FILE: InodeId = InodeId(7);

    #[test]
    fn a_file_whose_lock_was_lost_fails_until_its_owner_lets_go() {
        let (space, owner, range) = (LockSpace::Whole, LockOwner(3), ByteRange::EVERYTHING);
        let read = |inode| Operation::Read { inode, range };
        let mut locks = LostLocks::default();
        assert_eq!(locks.admit(&read(FILE)), Ok(()));
        locks.lose(FILE, FxHashSet::from_iter([(space, owner)]));
        assert_eq!(locks.admit(&read(FILE)), Err(Errno::EIO));
        assert_eq!(locks.admit(&read(InodeId(8))), Ok(()));
        locks.unlocks(&Operation::Unlock { inode: FILE, space, owner: LockOwner(4), range });
        assert_eq!(locks.admit(&read(FILE)), Err(Errno::EIO));
        locks.unlocks(&Operation::Unlock { inode: FILE, space, owner, range });
        assert_eq!(locks.admit(&read(FILE)), Ok(()));
    }
}
