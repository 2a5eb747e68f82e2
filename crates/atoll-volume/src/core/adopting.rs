//! What the bucket says becomes what a name stands for.
//!
//! Invariant: whoever calls these has found, under the same lock, that nothing of ours is newer than the answer.

use atoll_link::names::Prefix;
use atoll_link::posix::{self, Posix};
use atoll_link::{ObjectInfo, ObjectKey, Version};
use atoll_types::{Errno, FileKind, InodeId, Mode, Name, limits};
use bytes::Bytes;

use super::{Core, Step, fresh};
use crate::format::{Dentry, InodeRecord};
use crate::links::record::{BaseObject, Dirty, Gone, Linked, Was};

/// What an answer of the bucket says of a name.
#[derive(Clone, Debug)]
// Nearly all of them are objects.
#[expect(clippy::large_enum_variant)]
pub(crate) enum Found {
    /// `target`: of a symlink.
    Object {
        key: ObjectKey,
        info: ObjectInfo,
        target: Option<Bytes>,
    },
    Directory(Prefix),
}

impl Core {
    /// Whether an answer of the bucket may change what a name stands for: nothing of ours is under way there.
    pub fn may_adopt(&mut self, parent: InodeId, name: &Name) -> Step<bool> {
        let Some(dentry) = self.dentry(parent, name)? else { return Ok(true) };
        let is_unpublished = self.links.is_unpublished(dentry.inode);
        let linked = self.linked(dentry.inode)?;
        Ok(!is_unpublished && linked.is_some_and(|linked| linked.dirty == Dirty::No && linked.is_home(parent, name)))
    }

    /// Let a name stand for what the bucket has. `None` of what was there before: it went.
    /// The caller has found, under the same lock, that nothing of ours is newer. False when a directory that holds names is in the way.
    pub fn adopt(&mut self, parent: InodeId, name: &Name, found: Option<&Found>) -> Step<bool> {
        let existing = self.dentry(parent, name)?;
        let Some(dentry) = existing else {
            if let Some(found) = found {
                self.enter_found(parent, name, found)?;
            }
            return Ok(true);
        };
        let linked = self.linked(dentry.inode)?.cloned();
        let Some(linked) = linked else { return Ok(true) };
        let is_directory = dentry.kind == FileKind::Directory;
        match found {
            Some(Found::Directory(_)) if is_directory => return Ok(true),
            Some(Found::Object { info, .. }) if !is_directory => {
                let is_same =
                    linked.object.as_ref().is_some_and(|object| is_same_version(&object.version, &info.version));
                if is_same && (info.headers.is_none() || linked.is_described) {
                    return Ok(true);
                }
                let described = info.headers.as_ref().map(posix::read);
                let kind = described.as_ref().map_or(dentry.kind, kind_of);
                if is_same && kind == dentry.kind {
                    self.record(dentry.inode)?;
                    if let Some(posix) = described {
                        self.describe(dentry.inode, &posix);
                    }
                    return Ok(true);
                }
            }
            Some(Found::Object { .. }) => return Ok(true),
            None if is_directory && linked.kept => return Ok(true),
            _ => {}
        }
        if is_directory && self.record(dentry.inode)?.size > 0 {
            return Ok(false);
        }
        self.must_be_free(dentry.inode)?;
        self.gather_drop(dentry)?;
        if let Some(found) = found {
            self.gather_found(parent, found)?;
        }
        self.vanish(parent, name, dentry);
        if let Some(found) = found {
            self.enter_found(parent, name, found)?;
        }
        Ok(true)
    }

    /// The bucket has it no more, and it is as it was there.
    pub(super) fn vanish(&mut self, parent: InodeId, name: &Name, dentry: Dentry) {
        // Who has it open still reads of that version, where the bucket keeps it.
        self.change_linked(dentry.inode, |linked| linked.home = None);
        self.remove_dentry(parent, name, dentry);
        if dentry.kind == FileKind::Directory {
            self.change(parent, |record| record.links -= 1);
        }
        self.names_changed(parent);
        self.drop_link(dentry);
        self.order();
        self.links.adopted.names_changed(parent, self.ordered());
    }

    fn gather_found(&mut self, parent: InodeId, found: &Found) -> Step<()> {
        let record = self.record(parent)?;
        if matches!(found, Found::Directory(_)) && record.links >= limits::LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        Ok(())
    }

    fn enter_found(&mut self, parent: InodeId, name: &Name, found: &Found) -> Step<()> {
        self.gather_found(parent, found)?;
        let directory = self.record(parent)?;
        let (uid, gid, quota_root) = (directory.uid, directory.gid, directory.quota_root);
        let permissions = directory.mode.permissions() & 0o777;
        let Some(link) = self.link_of(parent)? else { return Ok(()) };
        let now = self.now();
        let mut linked = Linked {
            link,
            home: Some((parent, Bytes::copy_from_slice(name.as_bytes()))),
            object: None,
            prefix: None,
            dirty: Dirty::No,
            kept: false,
            is_described: true,
        };
        let mut record = match found {
            Found::Directory(prefix) => {
                linked.prefix = Some(prefix.clone());
                let mut record = fresh(Mode::new(FileKind::Directory, permissions), uid, gid, now);
                record.links = 2;
                record.parent = parent;
                record.next_cookie = 1;
                record
            }
            Found::Object { key, info, target } => {
                let posix = info.headers.as_ref().map(posix::read);
                let kind = posix.as_ref().map_or(FileKind::Regular, kind_of);
                linked.is_described = info.headers.is_some();
                linked.object = Some(BaseObject {
                    key: key.clone(),
                    version: info.version.clone(),
                    size: info.size,
                    archived: info.archived,
                });
                let mut record = fresh(Mode::new(kind, permissions & 0o666), uid, gid, info.modified);
                record.size = info.size;
                if kind == FileKind::Symlink {
                    record.mode = Mode::new(kind, 0o777);
                    record.target = target.clone().unwrap_or_default();
                } else {
                    record.allocated = info.size;
                }
                if let Some(posix) = &posix {
                    apply(&mut record, posix);
                }
                record
            }
        };
        record.quota_root = quota_root;
        record.linked = Some(Box::new(linked));
        let kind = record.kind();
        let allocated = record.allocated as i64;
        let inode = self.next_number();
        self.enter(inode, record);
        self.charge(quota_root, allocated, 0);
        if let Some(cached) = self.inodes.get_mut(&inode) {
            // Made of its object when they are needed.
            cached.extents = None;
            if let Some(directory) = &mut cached.directory {
                // What it holds is listed when it is looked at, and may be more than is kept in memory.
                directory.complete = false;
            }
        }
        self.add_dentry(parent, name, inode, kind);
        if kind == FileKind::Directory {
            self.change(parent, |record| record.links += 1);
        }
        self.names_changed(parent);
        self.order();
        self.links.adopted.names_changed(parent, self.ordered());
        self.links.adopted.entered(inode, self.ordered());
        Ok(())
    }

    /// What HEAD tells, after a listing.
    fn describe(&mut self, inode: InodeId, posix: &Posix) {
        self.change(inode, |record| {
            apply(record, posix);
            if let Some(linked) = &mut record.linked {
                linked.is_described = true;
            }
        });
        self.order();
    }

    /// A file that is to be copied is another object by now: that is what it is.
    pub fn replace_base(&mut self, inode: InodeId, link: InodeId, key: &ObjectKey, found: &Found) -> Step<()> {
        let Found::Object { info, target, .. } = found else { return Ok(()) };
        self.record(inode)?;
        self.must_be_free(inode)?;
        let version = info.version.clone();
        let object =
            BaseObject { key: key.clone(), version: version.clone(), size: info.size, archived: info.archived };
        let gone =
            self.links.gone.get(&(link, key.clone())).map(|gone| Gone { was: Was::Object(version), ..gone.clone() });
        if let Some(gone) = gone {
            self.put_gone(link, key.clone(), gone);
        }
        let (mut grown, mut root) = (0, InodeId::NONE);
        self.change(inode, |record| {
            record.size = info.size;
            // A kernel takes bytes of the same size and time for the same.
            let is_alike = record.modified == info.modified;
            record.modified = if is_alike { info.modified.successor() } else { info.modified };
            if record.kind() == FileKind::Regular {
                grown = info.size.wrapping_sub(record.allocated) as i64;
                record.allocated = info.size;
            }
            if let Some(target) = target {
                record.target = target.clone();
            }
            root = record.quota_root;
            if let Some(linked) = &mut record.linked {
                linked.object = Some(object);
            }
        });
        self.charge(root, grown, 0);
        if let Some(cached) = self.inodes.get_mut(&inode) {
            cached.extents = None;
        }
        self.order();
        Ok(())
    }
}

/// A listing tells no version's number.
pub(crate) fn is_same_version(one: &Version, other: &Version) -> bool {
    one.etag == other.etag && (one.id.is_none() || other.id.is_none() || one.id == other.id)
}

/// What an object is shown as: a file, or a symlink.
pub(crate) fn kind_of(posix: &Posix) -> FileKind {
    match posix.kind {
        FileKind::Symlink => FileKind::Symlink,
        _ => FileKind::Regular,
    }
}

fn apply(record: &mut InodeRecord, posix: &Posix) {
    if let Some(permissions) = posix.permissions
        && record.kind() != FileKind::Symlink
    {
        record.mode = Mode::new(record.kind(), u32::from(permissions));
    }
    record.uid = posix.uid.unwrap_or(record.uid);
    record.gid = posix.gid.unwrap_or(record.gid);
    if let Some(modified) = posix.modified {
        record.modified = modified;
        record.changed = record.changed.max(modified);
    }
    record.accessed = posix.accessed.unwrap_or(record.accessed);
}
