//! `setattr` and the rules that tie attributes together.

use atoll_types::operation::{AttributeChanges, NewTime};
use atoll_types::{Attributes, Errno, FileKind, InodeId, Mode, Timestamp, limits};

use super::{Core, Step};
use crate::{acl, extents::Changes};

impl Core {
    pub fn set_attributes(&mut self, inode: InodeId, changes: &AttributeChanges) -> Step<Attributes> {
        let record = self.record(inode)?;
        let kind = record.kind();
        let old_size = record.size;
        if let Some(size) = changes.size {
            match kind {
                FileKind::Regular => {}
                FileKind::Directory => return Err(Errno::EISDIR.into()),
                _ => return Err(Errno::EINVAL.into()),
            }
            if size > limits::FILE_SIZE_MAX {
                return Err(Errno::EFBIG.into());
            }
            self.gather_bytes(inode)?;
            if size < old_size {
                self.extents(inode)?;
            }
        }
        if changes.permissions.is_some() && kind == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let mut narrowed = None;
        if let Some(permissions) = changes.permissions
            && let Some(list) = self.xattrs(inode)?.get(acl::ACCESS).cloned()
        {
            narrowed = Some(acl::access_after_chmod(&list, permissions)?);
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.xattrs(inode)?;
        }

        let now = self.now();
        let at = |time: NewTime| match time {
            NewTime::Now => now,
            NewTime::At(Timestamp { seconds, nanos }) => {
                Timestamp { seconds, nanos: nanos.min(Timestamp::NANOS_PER_SECOND - 1) }
            }
        };
        let mut cut = Changes::default();
        if let Some(size) = changes.size
            && size < old_size
        {
            self.extents(inode)?.truncate(size, &mut cut);
        }
        self.change(inode, |record| {
            record.changed = now;
            if changes.uid.is_some() || changes.gid.is_some() {
                record.uid = changes.uid.unwrap_or(record.uid);
                record.gid = changes.gid.unwrap_or(record.gid);
            }
            if changes.drop_privileges {
                record.mode = record.mode.without_privileges();
            }
            if let Some(permissions) = changes.permissions {
                record.mode = Mode::new(kind, permissions);
            }
            if let Some(size) = changes.size {
                record.size = size;
                record.modified = now;
            }
            if let Some(time) = changes.accessed {
                record.accessed = at(time);
            }
            if let Some(time) = changes.modified {
                record.modified = at(time);
            }
        });
        if changes.size.is_some() {
            self.bytes_changed(inode);
        } else if *changes != AttributeChanges::default() {
            self.attributes_changed(inode);
        }
        self.apply_changes(inode, cut);
        if let Some(list) = narrowed {
            self.put_xattr(inode, bytes::Bytes::from_static(acl::ACCESS), list);
        }
        if (changes.uid.is_some() || changes.gid.is_some()) && kind != FileKind::Directory {
            self.drop_xattr(inode, b"security.capability");
        }
        self.order();
        self.attributes(inode)
    }

    /// Move the access time as `relatime` does.
    pub fn accessed(&mut self, inode: InodeId) {
        if self.frozen {
            return;
        }
        let Ok(record) = self.record(inode) else { return };
        if Timestamp::access_moves(record.accessed, record.modified, record.changed) {
            // Later than every change, so that the next access finds it fresh even when the clock went back.
            let now = self.now();
            self.change(inode, |record| record.accessed = now);
            self.order();
        }
    }
}
