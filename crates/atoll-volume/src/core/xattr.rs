//! Extended attributes, and the ACLs among them.

use atoll_types::operation::XattrMode;
use atoll_types::{Errno, FileKind, InodeId, Mode, limits};
use bytes::{BufMut, Bytes, BytesMut};

use super::{Core, Step};
use crate::{acl, format};

/// Read-only attribute that names the volume's durability mode; it is not listed.
const DURABILITY: &[u8] = b"user.atoll.durability";

fn is_list(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

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
        let kind = self.record(inode)?.kind();
        match Self::check_name(kind, name) {
            // Nobody may set it, so it is not there.
            Err(Errno::EPERM) => return Err(Errno::ENODATA.into()),
            result => result?,
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

    /// Whether an inode of this kind may have the attribute: `xattr(7)`.
    fn check_name(kind: FileKind, name: &[u8]) -> Result<(), Errno> {
        if name.is_empty() || name.len() > limits::XATTR_NAME_BYTES_MAX {
            return Err(Errno::ERANGE);
        }
        if is_list(name) {
            return if kind == FileKind::Symlink { Err(Errno::EOPNOTSUPP) } else { Ok(()) };
        }
        let spaces = [&b"user."[..], b"trusted.", b"security."];
        let space = spaces.into_iter().find(|space| name.starts_with(space)).ok_or(Errno::EOPNOTSUPP)?;
        if name == space {
            return Err(Errno::EINVAL);
        }
        let may_be_users = matches!(kind, FileKind::Regular | FileKind::Directory);
        if name == DURABILITY || (space == b"user." && !may_be_users) { Err(Errno::EPERM) } else { Ok(()) }
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
        if is_list(name) && acl::is_absent(content)? {
            return self.remove_xattr(inode, name);
        }
        Self::check_name(kind, name)?;
        if content.len() > limits::XATTR_VALUE_BYTES_MAX {
            return Err(Errno::E2BIG.into());
        }
        let set = self.xattrs(inode)?;
        let exists = set.contains_key(name);
        match mode {
            // Linux has no such modes for lists.
            _ if is_list(name) => {}
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
        let kind = self.record(inode)?.kind();
        Self::check_name(kind, name)?;
        self.xattrs(inode)?;
        let had = self.drop_xattr(inode, name);
        if !had {
            // Removing a list that the mode says already is no error (as on ext4).
            return if is_list(name) { Ok(()) } else { Err(Errno::ENODATA.into()) };
        }
        let now = self.now();
        self.change(inode, |record| record.changed = now);
        self.order();
        Ok(())
    }
}
