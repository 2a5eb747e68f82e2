//! Extended attributes, and the ACLs among them.

use atoll_types::operation::XattrMode;
use atoll_types::{Errno, FileKind, InodeId, Mode, limits};
use bytes::{BufMut, Bytes, BytesMut};

use super::{Core, Step};
use crate::{acl, format};

/// Read-only attribute that names the volume's durability mode; it is not listed.
const DURABILITY: &[u8] = b"user.atoll.durability";

impl Core {
    /// Store an attribute; the set of attributes is cached.
    pub(super) fn put_xattr(&mut self, inode: InodeId, name: Bytes, content: Bytes) {
        self.write(format::xattr_key(inode, &name), Some(format::encode_xattr(&content)));
        if let Ok(set) = self.xattrs(inode) {
            set.insert(name, content);
        }
    }

    pub(super) fn drop_xattr(&mut self, inode: InodeId, name: &[u8]) -> bool {
        let Ok(set) = self.xattrs(inode) else { return false };
        let had = set.remove(name).is_some();
        if had {
            self.write(format::xattr_key(inode, name), None);
        }
        had
    }

    pub fn get_xattr(&mut self, inode: InodeId, name: &[u8]) -> Step<Bytes> {
        self.record(inode)?;
        if name == DURABILITY {
            return Ok(Bytes::from_static(self.durability.as_bytes()));
        }
        Ok(self.xattrs(inode)?.get(name).cloned().ok_or(Errno::ENODATA)?)
    }

    pub fn list_xattrs(&mut self, inode: InodeId) -> Step<Bytes> {
        let set = self.xattrs(inode)?;
        let mut names = BytesMut::new();
        for name in set.keys() {
            names.put_slice(name);
            names.put_u8(0);
        }
        Ok(names.freeze())
    }

    fn check_name(name: &[u8]) -> Result<(), Errno> {
        if name.is_empty() || name.len() > limits::XATTR_NAME_BYTES_MAX {
            return Err(Errno::ERANGE);
        }
        let known = [&b"user."[..], b"trusted.", b"security.", b"system."].iter().any(|p| name.starts_with(p));
        if !known || (name.starts_with(b"system.") && name != acl::ACCESS && name != acl::DEFAULT) {
            return Err(Errno::EOPNOTSUPP);
        }
        if name == DURABILITY { Err(Errno::EPERM) } else { Ok(()) }
    }

    pub fn set_xattr(
        &mut self,
        inode: InodeId,
        name: &Bytes,
        content: &Bytes,
        mode: XattrMode,
        drop_group_privilege: bool,
    ) -> Step<()> {
        let record = self.record(inode)?;
        let (kind, permissions) = (record.kind(), record.mode.permissions());
        Self::check_name(name)?;
        if content.len() > limits::XATTR_VALUE_BYTES_MAX {
            return Err(Errno::E2BIG.into());
        }
        let set = self.xattrs(inode)?;
        let exists = set.contains_key(name);
        match mode {
            XattrMode::Create if exists => return Err(Errno::EEXIST.into()),
            XattrMode::Replace if !exists => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        let listed: usize = set.keys().map(|name| name.len() + 1).sum();
        if !exists && listed + name.len() + 1 > limits::XATTR_LIST_BYTES_MAX {
            return Err(Errno::ENOSPC.into());
        }
        let mut keep = true;
        let mut new_permissions = permissions;
        if name == acl::ACCESS {
            let (after, is_mode_alone) = acl::permissions_after_set_access(content, permissions)?;
            new_permissions = after;
            if drop_group_privilege {
                new_permissions &= !Mode::SET_GID;
            }
            keep = !is_mode_alone;
        } else if name == acl::DEFAULT {
            if kind != FileKind::Directory {
                return Err(Errno::EACCES.into());
            }
            acl::validate(content)?;
        }
        let now = self.now();
        if keep {
            self.put_xattr(inode, name.clone(), content.clone());
        } else {
            self.drop_xattr(inode, name);
        }
        self.change(inode, |record| {
            record.changed = now;
            record.mode = Mode::new(kind, new_permissions);
        });
        self.order();
        Ok(())
    }

    pub fn remove_xattr(&mut self, inode: InodeId, name: &[u8]) -> Step<()> {
        Self::check_name(name)?;
        self.xattrs(inode)?;
        let had = self.drop_xattr(inode, name);
        if !had {
            // Removing a list that the mode says already is no error (as on ext4).
            let is_list = name == acl::ACCESS || name == acl::DEFAULT;
            return if is_list { Ok(()) } else { Err(Errno::ENODATA.into()) };
        }
        let now = self.now();
        self.change(inode, |record| record.changed = now);
        self.order();
        Ok(())
    }
}
