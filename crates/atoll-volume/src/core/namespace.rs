//! Names: lookup, create, link, unlink, rename, and what keeps an unnamed file alive.

use std::time::{Duration, Instant};

use atoll_types::operation::{OpenFlags, RenameMode};
use atoll_types::{Attributes, Errno, FileKind, InodeId, Mode, Name, SessionId, limits};
use bytes::Bytes;

use super::trash::Place;
use super::{Context, Core, Step, Stop, fresh};
use crate::format::{self, Dentry};
use crate::{acl, format::InodeRecord};

/// How long an inode without names lives on whose last name somebody else was just using: who has found it by
/// that name can still open it, as on a local disk.
const LINGER: Duration = Duration::from_secs(2);
/// Who has it open meanwhile.
const LINGERING: SessionId = SessionId(0);

/// A new inode before it is made.
struct Birth {
    record: InodeRecord,
    access: Option<Bytes>,
    default: Option<Bytes>,
}

impl Core {
    pub fn lookup(&mut self, parent: InodeId, name: &Name) -> Step<Attributes> {
        let dentry = self.dentry(parent, name)?.ok_or(Errno::ENOENT)?;
        self.attributes(dentry.inode)
    }

    /// What a name stands for.
    pub fn lookup_dentry(&mut self, parent: InodeId, name: &Name) -> Step<Option<(InodeId, FileKind)>> {
        Ok(self.dentry(parent, name)?.map(|dentry| (dentry.inode, dentry.kind)))
    }

    pub fn parent(&mut self, inode: InodeId) -> Step<Attributes> {
        let parent = self.directory(inode)?.parent;
        self.attributes(parent)
    }

    /// Owner, mode and ACLs of a new inode in `parent`, whose number is free. Changes nothing.
    fn birth(
        &mut self,
        context: Context<'_>,
        parent: InodeId,
        name: Option<&Name>,
        mode: Mode,
        umask: u32,
    ) -> Step<Birth> {
        self.may_number(context.session)?;
        self.living_directory(parent)?;
        self.check_inodes(parent)?;
        let directory = self.record(parent)?;
        let inherits_group = directory.mode.permissions() & Mode::SET_GID != 0;
        let gid = if inherits_group { directory.gid } else { context.caller.gid };
        let quota_root = directory.quota_root;
        let kind = mode.kind().ok_or(Errno::EINVAL)?;
        let (mut permissions, mut access, mut default) = (mode.permissions(), None, None);
        if kind != FileKind::Symlink {
            match self.xattrs(parent)?.get(acl::DEFAULT).cloned() {
                Some(list) => {
                    let inherited = acl::create_with_default(&list, permissions)?;
                    permissions = inherited.permissions;
                    access = inherited.access;
                    if kind == FileKind::Directory {
                        default = Some(list);
                    }
                }
                None => permissions &= !umask,
            }
        }
        if kind == FileKind::Directory && inherits_group {
            permissions |= Mode::SET_GID;
        }
        let mut record = fresh(Mode::new(kind, permissions), context.caller.uid, gid, Default::default());
        record.quota_root = quota_root;
        record.linked = self.born_linked(parent, name, kind)?;
        if kind == FileKind::Directory {
            record.links = 2;
            record.parent = parent;
            record.next_cookie = 1;
        }
        Ok(Birth { record, access, default })
    }

    fn born(&mut self, mut birth: Birth) -> InodeId {
        let now = self.now();
        birth.record.accessed = now;
        birth.record.modified = now;
        birth.record.changed = now;
        birth.record.created = now;
        let inode = self.new_inode(birth.record);
        self.entered_linked(inode);
        for (name, list) in [(acl::ACCESS, birth.access), (acl::DEFAULT, birth.default)] {
            if let Some(list) = list {
                self.put_xattr(inode, Bytes::from_static(name), list);
            }
        }
        inode
    }

    /// Move the times of a directory whose names changed.
    pub(super) fn names_changed(&mut self, parent: InodeId) {
        let now = self.now();
        self.change(parent, |record| {
            record.modified = now;
            record.changed = now;
        });
    }

    /// A new inode under a new name. `prepare` finishes the record.
    pub fn make(
        &mut self,
        context: Context<'_>,
        parent: InodeId,
        name: &Name,
        mode: Mode,
        umask: u32,
        prepare: impl FnOnce(&mut InodeRecord),
    ) -> Step<Attributes> {
        if self.dentry(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let mut birth = self.birth(context, parent, Some(name), mode, umask)?;
        let kind = birth.record.kind();
        if kind == FileKind::Directory && self.record(parent)?.links >= limits::LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        prepare(&mut birth.record);
        let inode = self.born(birth);
        self.add_dentry(parent, name, inode, kind);
        if kind == FileKind::Directory {
            self.change(parent, |record| record.links += 1);
        }
        self.names_changed(parent);
        self.order();
        self.attributes(inode)
    }

    pub fn create(
        &mut self,
        context: Context<'_>,
        parent: InodeId,
        name: &Name,
        permissions: u32,
        umask: u32,
        flags: OpenFlags,
    ) -> Step<(Attributes, bool)> {
        if let Some(dentry) = self.dentry(parent, name)? {
            if flags.exclusive {
                return Err(Errno::EEXIST.into());
            }
            return match dentry.kind {
                FileKind::Directory => Err(Errno::EISDIR.into()),
                FileKind::Regular => Ok((self.open(context.session, dentry.inode, flags)?, false)),
                // The kernel opens symlinks and special files itself after a lookup.
                _ => Ok((self.attributes(dentry.inode)?, false)),
            };
        }
        let made = self.make(context, parent, name, Mode::new(FileKind::Regular, permissions), umask, |_| ())?;
        self.count_open(context.session, made.inode);
        Ok((made, true))
    }

    pub fn create_unnamed(
        &mut self,
        context: Context<'_>,
        parent: InodeId,
        permissions: u32,
        umask: u32,
    ) -> Step<Attributes> {
        let mut birth = self.birth(context, parent, None, Mode::new(FileKind::Regular, permissions), umask)?;
        birth.record.links = 0;
        let inode = self.born(birth);
        self.write(format::orphan_key(inode), Some(Bytes::from_static(&[format::FORMAT_VERSION])));
        self.unnamed.insert(inode);
        self.count_open(context.session, inode);
        self.order();
        self.attributes(inode)
    }

    pub fn link(&mut self, inode: InodeId, parent: InodeId, name: &Name) -> Step<Attributes> {
        let record = self.record(inode)?;
        let (kind, links) = (record.kind(), record.links);
        if self.dentry(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        self.living_directory(parent)?;
        if kind == FileKind::Directory {
            return Err(Errno::EPERM.into());
        }
        if links >= limits::LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        if links == 0 && (!self.unnamed.contains(&inode) || !self.opens.contains_key(&inode)) {
            return Err(Errno::ENOENT.into());
        }
        self.same_link(inode, parent)?;
        let dentry = Dentry { inode, kind, cookie: 0 };
        let home = if links == 0 { Some(self.gather_move(dentry, parent, name)?) } else { None };
        if let Some(root) = self.linked_root(inode, parent)? {
            self.recharge(inode, root, links > 0);
        }
        if links == 0 {
            self.unnamed.remove(&inode);
            self.write(format::orphan_key(inode), None);
        }
        let now = self.now();
        self.change(inode, |record| {
            record.links += 1;
            record.changed = now;
        });
        self.add_dentry(parent, name, inode, kind);
        if let Some(home) = home {
            self.first_home(inode, parent, name, home);
        }
        self.names_changed(parent);
        self.order();
        self.attributes(inode)
    }

    pub fn unlink(&mut self, parent: InodeId, name: &Name) -> Step<()> {
        let dentry = self.dentry(parent, name)?.ok_or(Errno::ENOENT)?;
        if dentry.kind == FileKind::Directory {
            return Err(Errno::EISDIR.into());
        }
        let kept = self.gather_loss(parent, name, dentry)?;
        self.remove_dentry(parent, name, dentry);
        self.lost_home(parent, name, dentry.inode);
        self.names_changed(parent);
        self.lose(dentry, kept);
        self.order();
        Ok(())
    }

    /// What becomes of something that loses a name: where it is kept, if it is. Loads what [`Core::lose`] will touch.
    fn gather_loss(&mut self, parent: InodeId, name: &Name, dentry: Dentry) -> Step<Option<Place>> {
        let kept = self.gather_trash(parent, name, dentry)?;
        if kept.is_none() {
            self.gather_drop(dentry)?;
        }
        Ok(kept)
    }

    fn lose(&mut self, dentry: Dentry, kept: Option<Place>) {
        match kept {
            Some(place) => self.move_to_trash(dentry, place),
            None => self.drop_link(dentry),
        }
    }

    pub fn remove_directory(&mut self, parent: InodeId, name: &Name) -> Step<()> {
        let dentry = self.dentry(parent, name)?.ok_or(Errno::ENOENT)?;
        if dentry.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        self.must_be_empty(dentry.inode)?;
        self.not_a_link(dentry.inode)?;
        self.gather_drop(dentry)?;
        self.remove_dentry(parent, name, dentry);
        self.lost_home(parent, name, dentry.inode);
        self.change(parent, |record| record.links -= 1);
        self.names_changed(parent);
        self.drop_link(dentry);
        self.order();
        Ok(())
    }

    /// A directory's size is the sum of its names' lengths, so it is empty exactly at zero.
    pub(super) fn must_be_empty(&mut self, inode: InodeId) -> Step<()> {
        if self.directory(inode)?.size > 0 { Err(Errno::ENOTEMPTY.into()) } else { Ok(()) }
    }

    /// Load what [`Core::drop_link`] will touch.
    pub(super) fn gather_drop(&mut self, dentry: Dentry) -> Step<()> {
        let record = self.record(dentry.inode)?;
        let last = record.links <= 1 || dentry.kind == FileKind::Directory;
        if last && !self.lingers && !self.opens.contains_key(&dentry.inode) {
            self.gather_free(dentry.inode)?;
        }
        Ok(())
    }

    fn gather_free(&mut self, inode: InodeId) -> Step<()> {
        if self.record(inode)?.kind() == FileKind::Regular {
            self.extents(inode)?;
        }
        self.xattrs(inode)?;
        Ok(())
    }

    /// One name less; the last one frees the inode, or orphans it while it is open.
    pub(super) fn drop_link(&mut self, dentry: Dentry) {
        let now = self.now();
        let mut left = 0;
        self.change(dentry.inode, |record| {
            record.links = if dentry.kind == FileKind::Directory { 0 } else { record.links.saturating_sub(1) };
            record.changed = now;
            left = record.links;
        });
        if left == 0 {
            if self.lingers {
                self.count_open(LINGERING, dentry.inode);
                self.lingering.push_back((Instant::now(), dentry.inode));
            }
            if self.opens.contains_key(&dentry.inode) {
                let marker = Some(Bytes::from_static(&[format::FORMAT_VERSION]));
                self.write(format::orphan_key(dentry.inode), marker);
            } else {
                self.free(dentry.inode);
            }
        }
    }

    /// Remove every trace of an inode without names and opens; its parts are cached.
    fn free(&mut self, inode: InodeId) {
        let Some(mut cached) = self.inodes.remove(&inode) else { return };
        self.free_linked(inode, &cached.record);
        self.dirty.remove(&inode);
        self.unnamed.remove(&inode);
        self.charge(cached.record.quota_root, -(cached.record.allocated as i64), -1);
        if let Some(map) = &mut cached.extents {
            let mut changes = crate::extents::Changes::default();
            map.truncate(0, &mut changes);
            self.apply_changes(inode, changes);
        }
        for name in cached.xattrs.unwrap_or_default().into_keys() {
            self.write(format::xattr_key(inode, &name), None);
        }
        self.write(format::inode_key(inode), None);
        self.write(format::orphan_key(inode), None);
        self.counters.inodes = self.counters.inodes.saturating_sub(1);
    }

    /// Free an orphan that nobody has open.
    pub fn reap(&mut self, inode: InodeId) -> Step<()> {
        let named = self.record(inode)?.links > 0;
        if named || self.opens.contains_key(&inode) {
            return Ok(());
        }
        self.gather_free(inode)?;
        self.free(inode);
        self.order();
        Ok(())
    }

    pub fn rename(
        &mut self,
        context: Context<'_>,
        parent: InodeId,
        name: &Name,
        new_parent: InodeId,
        new_name: &Name,
        mode: RenameMode,
    ) -> Step<()> {
        self.directory(parent)?;
        self.directory(new_parent)?;
        let source = self.dentry(parent, name)?.ok_or(Errno::ENOENT)?;
        self.living_directory(new_parent)?;
        let target = self.dentry(new_parent, new_name)?;
        let moves_directory = source.kind == FileKind::Directory;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
            _ => {}
        }
        if moves_directory && self.is_above(source.inode, new_parent)? {
            return Err(Errno::EINVAL.into());
        }
        self.same_link(parent, new_parent)?;
        if let (RenameMode::Exchange, Some(other)) = (mode, target) {
            self.living_directory(parent)?;
            return self.exchange(parent, name, source, new_parent, new_name, other);
        }
        let mut kept = None;
        if let Some(target) = target {
            if target.kind == FileKind::Directory && self.is_above(target.inode, parent)? {
                return Err(Errno::ENOTEMPTY.into());
            }
            if target.inode == source.inode {
                return Ok(());
            }
            match (moves_directory, target.kind == FileKind::Directory) {
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                (true, true) => {
                    self.must_be_empty(target.inode)?;
                    self.not_a_link(target.inode)?;
                }
                (false, false) => {}
            }
            kept = self.gather_loss(new_parent, new_name, target)?;
        }
        let charged = self.moved_root(source, parent, new_parent)?;
        let gains_directory = moves_directory && parent != new_parent && target.is_none();
        if gains_directory && self.record(new_parent)?.links >= limits::LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        let home = self.gather_move(source, new_parent, new_name)?;
        let whiteout = if mode == RenameMode::Whiteout {
            Some(self.birth(context, parent, Some(name), Mode::new(FileKind::CharDevice, 0), 0)?)
        } else {
            None
        };

        self.moved(source, parent, new_parent, charged);
        self.remove_dentry(parent, name, source);
        if let Some(target) = target {
            self.remove_dentry(new_parent, new_name, target);
            self.lost_home(new_parent, new_name, target.inode);
            if moves_directory {
                self.change(new_parent, |record| record.links -= 1);
            }
        }
        self.add_dentry(new_parent, new_name, source.inode, source.kind);
        self.moved_home((parent, name), (new_parent, new_name), home, source);
        if moves_directory {
            self.change(parent, |record| record.links -= 1);
            self.change(new_parent, |record| record.links += 1);
        }
        let now = self.now();
        self.change(source.inode, |record| {
            record.changed = now;
            if moves_directory {
                record.parent = new_parent;
            }
        });
        if let Some(birth) = whiteout {
            let inode = self.born(birth);
            self.add_dentry(parent, name, inode, FileKind::CharDevice);
        }
        self.names_changed(parent);
        self.names_changed(new_parent);
        if let Some(target) = target {
            self.lose(target, kept);
        }
        self.order();
        Ok(())
    }

    fn exchange(
        &mut self,
        parent: InodeId,
        name: &Name,
        source: Dentry,
        new_parent: InodeId,
        new_name: &Name,
        other: Dentry,
    ) -> Step<()> {
        if source.inode == other.inode {
            return Ok(());
        }
        if other.kind == FileKind::Directory && self.is_above(other.inode, parent)? {
            return Err(Errno::EINVAL.into());
        }
        let (here, there) = (self.record(parent)?.quota_root, self.record(new_parent)?.quota_root);
        if here != there && self.making.is_none() {
            return Err(Errno::EXDEV.into());
        }
        let source_root = self.moved_root(source, parent, new_parent)?;
        let other_root = self.moved_root(other, new_parent, parent)?;
        let home = self.gather_move(source, new_parent, new_name)?;
        let other_home = self.gather_move(other, parent, name)?;
        self.moved(source, parent, new_parent, source_root);
        self.moved(other, new_parent, parent, other_root);
        self.remove_dentry(parent, name, source);
        self.remove_dentry(new_parent, new_name, other);
        self.add_dentry(new_parent, new_name, source.inode, source.kind);
        self.add_dentry(parent, name, other.inode, other.kind);
        self.moved_home((parent, name), (new_parent, new_name), home, source);
        self.moved_home((new_parent, new_name), (parent, name), other_home, other);
        let now = self.now();
        for (moved, from, to) in [(source, parent, new_parent), (other, new_parent, parent)] {
            let is_directory = moved.kind == FileKind::Directory;
            self.change(moved.inode, |record| {
                record.changed = now;
                if is_directory {
                    record.parent = to;
                }
            });
            if is_directory {
                self.change(from, |record| record.links -= 1);
                self.change(to, |record| record.links += 1);
            }
        }
        self.names_changed(parent);
        self.names_changed(new_parent);
        self.order();
        Ok(())
    }

    /// True when `directory` is `below` or one of the directories above it.
    pub(super) fn is_above(&mut self, directory: InodeId, below: InodeId) -> Step<bool> {
        let mut at = below;
        // Directories of a damaged volume may lie in a circle: who comes back to the last mark is in one.
        let (mut mark, mut steps) = (at, 0_u64);
        loop {
            if at == directory {
                return Ok(true);
            }
            if at == InodeId::ROOT {
                return Ok(false);
            }
            at = self.record(at)?.parent;
            if at == mark {
                return Err(Errno::EIO.into());
            }
            steps += 1;
            if steps.is_power_of_two() {
                mark = at;
            }
        }
    }

    // ---- opens

    pub fn open(&mut self, session: SessionId, inode: InodeId, flags: OpenFlags) -> Step<Attributes> {
        let kind = self.record(inode)?.kind();
        if flags.truncate && kind == FileKind::Directory {
            return Err(Errno::EISDIR.into());
        }
        if flags.truncate && kind == FileKind::Regular {
            let changes = atoll_types::operation::AttributeChanges {
                size: Some(0),
                drop_privileges: flags.drop_privileges,
                ..Default::default()
            };
            self.set_attributes(inode, &changes)?;
        }
        self.count_open(session, inode);
        self.attributes(inode)
    }

    fn count_open(&mut self, session: SessionId, inode: InodeId) {
        *self.opens.entry(inode).or_default() += 1;
        *self.session_opens.entry(session).or_default().entry(inode).or_default() += 1;
    }

    /// Undo one open. The inode is to be reaped when this answers true.
    pub fn release(&mut self, session: SessionId, inode: InodeId) -> bool {
        let Some(mine) = self.session_opens.get_mut(&session) else { return false };
        match mine.get_mut(&inode) {
            None => return false,
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => {
                mine.remove(&inode);
                self.closed_linked(session, inode);
            }
        }
        self.uncount(inode, 1)
    }

    fn uncount(&mut self, inode: InodeId, count: u32) -> bool {
        let Some(total) = self.opens.get_mut(&inode) else { return false };
        *total = total.saturating_sub(count);
        if *total > 0 {
            return false;
        }
        self.opens.remove(&inode);
        // An open inode is never evicted, so an orphan is cached here.
        self.inodes.get(&inode).is_some_and(|cached| cached.record.links == 0)
    }

    /// Forget a session's opens; lists the inodes to be reaped.
    pub fn end_session(&mut self, session: SessionId) -> Vec<InodeId> {
        let opens = self.session_opens.remove(&session).unwrap_or_default();
        let mut reaped = Vec::new();
        for (inode, count) in opens {
            self.closed_linked(session, inode);
            if self.uncount(inode, count) {
                reaped.push(inode);
            }
        }
        reaped
    }

    /// Inodes that lost their last name long enough ago and are to be reaped now.
    pub fn lingered(&mut self, now: Instant) -> Vec<InodeId> {
        let mut gone = Vec::new();
        while let Some(&(since, inode)) = self.lingering.front()
            && now.duration_since(since) >= LINGER
        {
            self.lingering.pop_front();
            if self.release(LINGERING, inode) {
                gone.push(inode);
            }
        }
        gone
    }

    pub fn opens(&self) -> usize {
        self.opens.len()
    }

    pub fn read_symlink(&mut self, inode: InodeId) -> Step<Bytes> {
        let record = self.record(inode)?;
        if record.kind() != FileKind::Symlink {
            return Err(Stop::Error(Errno::EINVAL));
        }
        let target = record.target.clone();
        self.accessed(inode);
        Ok(target)
    }
}
