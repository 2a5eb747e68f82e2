//! Charging what is below a directory to another quota root: when the directory gets a quota, or loses it.
//!
//! It goes from the top down, a directory at a time, while the volume changes: a directory is charged anew before its names
//! are read, so what comes into it later is charged right at once. What moves to where everything was charged anew already
//! is charged anew as it moves, or, if it is a directory, looked at once more. A crash leaves the record of the quota
//! root, which says that this is not over; it begins again from the top then, and finds most of it done.

use atoll_types::limits::{QUOTA_DEPTH_MAX, QUOTA_ROOTS_MAX};
use atoll_types::{Errno, FileKind, InodeId, Name};

use super::{Core, Step};
use crate::format::{DirectoryQuota, Quota, QuotaState, Usage};

/// What is being charged anew.
pub(super) struct Stamping {
    /// Everything below it.
    directory: InodeId,
    from: InodeId,
    to: InodeId,
    /// Directories whose names are to be read.
    todo: Vec<InodeId>,
}

impl Core {
    /// A new quota of a directory that has none, for which nothing is counted yet.
    pub fn begin_counting(&mut self, directory: InodeId, limits: Quota) -> Step<()> {
        if self.is_of_trash(directory) {
            return Err(Errno::EPERM.into());
        }
        let parent = self.living_directory(directory)?.quota_root;
        let above = self.roots.chain(parent).count();
        for inner in self.roots.higher_than(parent, QUOTA_DEPTH_MAX.saturating_sub(above + 1)) {
            if self.is_above(directory, inner)? {
                return Err(Errno::ELOOP.into());
            }
        }
        if above >= QUOTA_DEPTH_MAX {
            return Err(Errno::ELOOP.into());
        }
        if self.roots.len() >= QUOTA_ROOTS_MAX {
            return Err(Errno::EMLINK.into());
        }
        let quota = DirectoryQuota { state: QuotaState::Counting, parent, limits, used: Usage::default() };
        self.roots.put(directory, quota);
        self.recharge(directory, directory, false);
        self.order();
        Ok(())
    }

    /// Change a quota that is there, with its state.
    pub fn change_quota(&mut self, directory: InodeId, change: impl FnOnce(&mut DirectoryQuota)) -> Step<()> {
        let mut quota = self.roots.get(directory).ok_or(Errno::ENOENT)?;
        change(&mut quota);
        self.roots.put(directory, quota);
        self.order();
        Ok(())
    }

    /// Begin from the top what the state of a quota asks for; false when it asks for nothing.
    pub fn begin_stamping(&mut self, directory: InodeId) -> bool {
        let Some(quota) = self.roots.get(directory) else { return false };
        let (from, to) = match quota.state {
            QuotaState::Kept => return false,
            QuotaState::Counting => (quota.parent, directory),
            QuotaState::Leaving => (directory, quota.parent),
        };
        self.roots.stamping = Some(Stamping { directory, from, to, todo: vec![directory] });
        true
    }

    /// Whether what is charged to one of these and gets a name in the other is charged to that: it would be soon anyway.
    pub(super) fn is_stamped(&self, before: InodeId, root: InodeId) -> bool {
        self.roots.stamping.as_ref().is_some_and(|stamping| (stamping.from, stamping.to) == (before, root))
    }

    /// A directory may have come to where everything was charged anew already.
    pub fn stamp_later(&mut self, directory: InodeId) {
        if let Some(stamping) = &mut self.roots.stamping {
            stamping.todo.push(directory);
        }
    }

    /// The next directory to look at.
    pub fn next_to_stamp(&mut self) -> Option<InodeId> {
        self.roots.stamping.as_mut()?.todo.pop()
    }

    pub fn end_stamping(&mut self) {
        self.roots.stamping = None;
    }

    /// Charge a directory anew, while nobody else may make names in it. True when those in it are next.
    pub fn stamp_directory(&mut self, inode: InodeId) -> Step<bool> {
        let Some(&Stamping { directory, from, to, .. }) = self.roots.stamping.as_ref() else { return Ok(false) };
        let record = self.record(inode)?;
        let (root, is_alive) = (record.quota_root, record.links > 0);
        if !is_alive || !self.is_above(directory, inode)? {
            return Ok(false);
        }
        if inode != directory && root == inode {
            self.stamp_root(inode);
            return Ok(false);
        }
        if root == from {
            self.recharge(inode, to, false);
            self.order();
        }
        Ok(root == from || root == to)
    }

    /// A quota root is held by another one from now on.
    fn stamp_root(&mut self, inner: InodeId) {
        let Some(&Stamping { from, to, .. }) = self.roots.stamping.as_ref() else { return };
        if let Some(quota) = self.roots.get(inner).filter(|quota| quota.parent == from) {
            let (bytes, inodes) = (quota.used.bytes as i64, quota.used.inodes as i64);
            self.charge(to, bytes, inodes);
            self.charge(from, -bytes, -inodes);
            self.roots.put(inner, DirectoryQuota { parent: to, ..quota });
            self.order();
        }
    }

    /// Charge what a name stands for anew, if it still does.
    pub fn stamp_name(&mut self, parent: InodeId, name: &Name, inode: InodeId) -> Step<()> {
        let is_named = self.dentry(parent, name)?.is_some_and(|dentry| dentry.inode == inode);
        if is_named { self.stamp(inode, false) } else { Ok(()) }
    }

    /// Charge anew what was not found by a name: where its last one lies, nobody looked.
    pub fn stamp_unfound(&mut self, inode: InodeId) -> Step<()> {
        let strays = self.record(inode)?.strays;
        self.stamp(inode, strays)
    }

    fn stamp(&mut self, inode: InodeId, strays: bool) -> Step<()> {
        let Some(&Stamping { from, to, .. }) = self.roots.stamping.as_ref() else { return Ok(()) };
        let record = self.record(inode)?;
        let has_others = record.links > 1 && record.kind() != FileKind::Directory;
        if record.quota_root == from {
            self.recharge(inode, to, strays || has_others);
            self.order();
        }
        Ok(())
    }

    /// Whether anything is charged to a quota root that is leaving. Quota roots whose directories are gone have no names.
    pub fn leaves_something(&mut self, directory: InodeId) -> bool {
        let inner: Vec<InodeId> =
            self.roots.all().filter(|(_, quota)| quota.parent == directory).map(|(inner, _)| inner).collect();
        inner.into_iter().for_each(|inner| self.stamp_root(inner));
        self.roots.get(directory).is_some()
    }

    /// The quota is over.
    pub fn remove_quota(&mut self, directory: InodeId) {
        self.roots.remove(directory);
        self.order();
    }
}
