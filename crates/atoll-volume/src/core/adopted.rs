//! What was found in the bucket and is not durable yet: the next authority would not know its inode's number, and find it anew under another one.
//!
//! Rule: what a client keeps beyond the authority's death does not refer to that. An answer is held back until it is durable when it opens or
//! changes something that was just found, since the client says that again to the next authority, when it is a directory, in which somebody
//! may stay, and when it is a part of a listing that goes on at a name. Other lookups, attributes and listings are asked for again.

use atoll_types::InodeId;
use rustc_hash::FxHashMap;

/// Most inodes, and most directories, that are remembered.
const KEPT_MAX: usize = 65_536;

#[derive(Default)]
pub(crate) struct Adopted {
    /// By inode, the change that has entered it.
    inodes: FxHashMap<InodeId, u64>,
    /// By directory, the last change of its names.
    names: FxHashMap<InodeId, u64>,
    /// The last of all, and of those that were too many to be remembered.
    last: u64,
    beyond: u64,
    durable: u64,
}

impl Adopted {
    pub fn entered(&mut self, inode: InodeId, ordered: u64) {
        self.make_room();
        self.inodes.insert(inode, ordered);
        self.last = ordered;
    }

    pub fn names_changed(&mut self, directory: InodeId, ordered: u64) {
        self.make_room();
        self.names.insert(directory, ordered);
        self.last = ordered;
    }

    fn make_room(&mut self) {
        if self.inodes.len() >= KEPT_MAX || self.names.len() >= KEPT_MAX {
            self.beyond = self.last;
            self.inodes.clear();
            self.names.clear();
        }
    }

    /// The changes up to this one are durable.
    pub fn durable(&mut self, ordered: u64) {
        self.durable = ordered;
        if self.last <= ordered {
            self.inodes.clear();
            self.names.clear();
        }
    }

    /// What must be durable before a client may refer to the inode.
    pub fn of_inode(&self, inode: InodeId) -> Option<u64> {
        let entered = self.inodes.get(&inode).copied().unwrap_or_default();
        Some(entered.max(self.beyond)).filter(|ordered| *ordered > self.durable)
    }

    /// What must be durable before a client may rely on a change that touches these inodes, and names in them.
    pub fn of_change(&self, inodes: impl Iterator<Item = InodeId>) -> Option<u64> {
        let of = |inode| [self.inodes.get(&inode), self.names.get(&inode)].into_iter().flatten().copied().max();
        let newest = inodes.filter_map(of).max().unwrap_or_default();
        Some(newest.max(self.beyond)).filter(|ordered| *ordered > self.durable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InodeId = InodeId(10);
    const B: InodeId = InodeId(11);

    #[test]
    fn what_is_not_durable_is_waited_for() {
        let mut adopted = Adopted::default();
        assert_eq!((adopted.of_inode(A), adopted.of_change([A].into_iter())), (None, None));
        adopted.entered(B, 7);
        adopted.names_changed(A, 8);
        adopted.durable(6);
        assert_eq!((adopted.of_inode(A), adopted.of_inode(B)), (None, Some(7)));
        assert_eq!(adopted.of_change([B, A].into_iter()), Some(8));
        adopted.durable(7);
        assert_eq!((adopted.of_inode(B), adopted.of_change([B].into_iter())), (None, None));
        assert_eq!(adopted.of_change([A, B].into_iter()), Some(8));
        adopted.durable(8);
        assert_eq!(adopted.of_change([A, B].into_iter()), None);
        assert!(adopted.inodes.is_empty() && adopted.names.is_empty());
    }

    #[test]
    fn too_many_wait_for_the_last_of_them() {
        let mut adopted = Adopted::default();
        let many = KEPT_MAX as u64 + 1;
        (1..=many).for_each(|at| adopted.entered(InodeId(at), at));
        assert_eq!(adopted.inodes.len(), 1);
        assert_eq!(adopted.of_inode(InodeId(1)), Some(many - 1));
        assert_eq!(adopted.of_inode(InodeId(many)), Some(many));
        adopted.durable(many - 1);
        assert_eq!(adopted.of_inode(InodeId(1)), None);
    }
}
