//! Quotas of directories, counted anew whenever somebody asks.

use atoll_types::limits::QUOTA_DEPTH_MAX;
use atoll_types::{Errno, InodeId};
use atoll_volume::{Quota, Usage};

use super::reference::{Body, Reference, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaRoot {
    pub limits: Quota,
    /// The quota root that holds it.
    pub parent: InodeId,
}

impl Reference {
    /// A quota root and those that hold it.
    fn chain(&self, root: InodeId) -> Vec<InodeId> {
        let mut chain = Vec::new();
        let mut at = root;
        while let Some(quota) = self.quotas.get(&at) {
            chain.push(at);
            at = quota.parent;
        }
        chain
    }

    pub fn used(&self, root: InodeId) -> Usage {
        let charged = self.nodes.values().filter(|node| self.chain(node.quota_root).contains(&root));
        charged.fold(Usage::default(), |used, node| Usage {
            bytes: used.bytes + node.allocated(),
            inodes: used.inodes + 1,
        })
    }

    /// So much more may be charged to a quota root; it counts already for those that hold `before`, too.
    pub fn check_room(&self, root: InodeId, before: InodeId, bytes: u64, inodes: u64) -> Result<()> {
        let counted = self.chain(before);
        for root in self.chain(root).into_iter().filter(|root| !counted.contains(root)) {
            let (used, limits) = (self.used(root), self.quotas[&root].limits);
            let bytes_fit = bytes == 0 || used.bytes + bytes <= limits.bytes;
            let inodes_fit = inodes == 0 || used.inodes + inodes <= limits.inodes;
            if !bytes_fit || !inodes_fit {
                return Err(Errno::EDQUOT);
            }
        }
        Ok(())
    }

    /// One more inode in a directory.
    pub fn check_birth(&self, parent: InodeId) -> Result<()> {
        self.check_room(self.node(parent)?.quota_root, InodeId::NONE, 0, 1)
    }

    /// The quota root of what moves, from then on.
    pub fn moved_root(&self, inode: InodeId, from: InodeId, to: InodeId) -> Result<InodeId> {
        let (from, to) = (self.node(from)?.quota_root, self.node(to)?.quota_root);
        let node = self.node(inode)?;
        let before = node.quota_root;
        if let Body::Directory(directory) = &node.body {
            if from == to {
                return Ok(before);
            }
            if !directory.names.is_empty() || self.quotas.contains_key(&inode) {
                return Err(Errno::EXDEV);
            }
        } else if before == to {
            return Ok(to);
        } else if node.links > 1 {
            return if from == to { Ok(before) } else { Err(Errno::EXDEV) };
        }
        self.check_room(to, before, node.allocated(), 1).map(|()| to)
    }

    /// The quota root of what gets a further name, or its first.
    pub fn linked_root(&self, inode: InodeId, parent: InodeId) -> Result<InodeId> {
        let to = self.node(parent)?.quota_root;
        let node = self.node(inode)?;
        if node.quota_root == to {
            return Ok(to);
        }
        if node.links > 0 {
            return Err(Errno::EXDEV);
        }
        self.check_room(to, node.quota_root, node.allocated(), 1).map(|()| to)
    }

    /// Quota roots to which nothing is charged are no more.
    pub fn settle_quotas(&mut self) {
        let over: Vec<InodeId> = self.quotas.keys().copied().filter(|root| self.used(*root).inodes == 0).collect();
        self.quotas.retain(|root, _| !over.contains(root));
    }

    /// False when there would be too many inside of each other.
    pub fn set_quota(&mut self, directory: InodeId, limits: Quota) -> bool {
        if let Some(quota) = self.quotas.get_mut(&directory) {
            quota.limits = limits;
            return true;
        }
        let parent = self.nodes[&directory].quota_root;
        let mut found = vec![directory];
        let mut todo = vec![directory];
        while let Some(at) = todo.pop() {
            let Body::Directory(directory) = &self.nodes[&at].body else { continue };
            for entry in directory.names.values() {
                let root = self.nodes[&entry.inode].quota_root;
                if root == parent || root == entry.inode {
                    found.push(entry.inode);
                }
                if root == parent {
                    todo.push(entry.inode);
                }
            }
        }
        let above = self.chain(parent).len();
        // The outermost of those that hold it inside of `parent`.
        let outermost = |inner: InodeId| self.chain(inner).into_iter().rev().nth(above);
        let below = self.quotas.keys().filter(|inner| outermost(**inner).is_some_and(|outer| found.contains(&outer)));
        let deepest = below.map(|inner| self.chain(*inner).len() + 1).max().unwrap_or(above + 1);
        if deepest > QUOTA_DEPTH_MAX {
            return false;
        }
        self.quotas.insert(directory, QuotaRoot { limits, parent });
        for inode in found {
            match self.quotas.get_mut(&inode) {
                Some(inner) if inode != directory => inner.parent = directory,
                _ => self.nodes.get_mut(&inode).expect("a known node").quota_root = directory,
            }
        }
        true
    }

    pub fn remove_quota(&mut self, directory: InodeId) {
        let Some(QuotaRoot { parent, .. }) = self.quotas.remove(&directory) else { return };
        self.nodes.values_mut().filter(|node| node.quota_root == directory).for_each(|node| node.quota_root = parent);
        self.quotas.values_mut().filter(|quota| quota.parent == directory).for_each(|quota| quota.parent = parent);
    }
}
