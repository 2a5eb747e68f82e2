//! What a POSIX file system does, as plainly as it can be written.
//!
//! [`Reference::execute`] follows the order in which Linux checks things
//! (`fs/namei.c`, `fs/attr.c`, `fs/xattr.c` and ext4). Inode numbers are the
//! volume's: a new inode gets the number that the volume answered.

use std::collections::{BTreeMap, BTreeSet};

use atoll_types::locks::Lock;
use atoll_types::operation::{
    AllocateMode, AttributeChanges, NewTime, OpenFlags, RenameMode, SeekTo, WriteAt, XattrMode,
};
use atoll_types::{Caller, Errno, FileKind, InodeId, Mode, Name, Operation, SessionId, Timestamp, limits};

use super::acl;
use super::content::Content;
use super::locks::{Locks, Set};
use super::quotas::QuotaRoot;
use super::trash::Trash;

pub type Result<T> = std::result::Result<T, Errno>;

const DAY_SECONDS: i64 = 86_400;

/// A time as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    Is(Timestamp),
    /// It moved to the moment of this operation; the next look tells to what.
    Moved,
}

impl Time {
    pub fn known(self) -> Timestamp {
        match self {
            Time::Is(time) => time,
            Time::Moved => panic!("nobody looked at a time that moved"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub inode: InodeId,
    pub cookie: u64,
}

#[derive(Clone, Debug)]
pub struct Directory {
    pub names: BTreeMap<Name, Entry>,
    pub parent: InodeId,
    next_cookie: u64,
}

#[derive(Clone, Debug)]
pub enum Body {
    File(Content),
    Directory(Directory),
    Symlink(Vec<u8>),
    Special,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: FileKind,
    pub permissions: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
    pub created: Time,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub body: Body,
    pub opens: BTreeMap<SessionId, u32>,
    /// The quota root that it is charged to.
    pub quota_root: InodeId,
    /// Made without a name and never linked since (`O_TMPFILE`).
    linkable: bool,
}

impl Node {
    /// An empty directory that belongs to root.
    pub fn directory_of_root(permissions: u32, parent: InodeId, time: Time) -> Self {
        Node {
            kind: FileKind::Directory,
            permissions,
            links: 2,
            uid: 0,
            gid: 0,
            device: 0,
            accessed: time,
            modified: time,
            changed: time,
            created: time,
            xattrs: BTreeMap::new(),
            body: Body::Directory(Directory { names: BTreeMap::new(), parent, next_cookie: 1 }),
            opens: BTreeMap::new(),
            quota_root: InodeId::NONE,
            linkable: false,
        }
    }

    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File(content) => content.size,
            Body::Directory(directory) => directory.names.keys().map(|name| name.as_bytes().len() as u64).sum(),
            Body::Symlink(target) => target.len() as u64,
            Body::Special => 0,
        }
    }

    pub fn allocated(&self) -> u64 {
        match &self.body {
            Body::File(content) => content.allocated(),
            _ => 0,
        }
    }

    fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }

    fn drop_privileges(&mut self) {
        if self.is_directory() {
            return;
        }
        self.permissions &= !Mode::SET_UID;
        if self.permissions & Mode::GROUP_EXEC != 0 {
            self.permissions &= !Mode::SET_GID;
        }
    }

    fn content_changed(&mut self, drop_privileges: bool) {
        self.modified = Time::Moved;
        self.changed = Time::Moved;
        if drop_privileges {
            self.drop_privileges();
        }
    }
}

/// What an operation answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Done,
    Entry(InodeId),
    Created {
        inode: InodeId,
        new: bool,
    },
    Data(Vec<u8>),
    Names(BTreeSet<Vec<u8>>),
    Written {
        offset: u64,
        length: u64,
        inode: InodeId,
    },
    Offset(u64),
    /// All that follows the asked position: the volume may answer a part of it.
    Listing(Vec<(Name, InodeId, u64)>),
    Space {
        bytes_used: u64,
        inodes_used: u64,
    },
    /// One of these, or none if there are none.
    Conflict(Vec<Lock>),
    /// It waits under this number.
    Waits(u64),
}

pub struct Reference {
    pub nodes: BTreeMap<InodeId, Node>,
    pub locks: Locks,
    pub quotas: BTreeMap<InodeId, QuotaRoot>,
    pub trash: Trash,
    /// Nodes that the last operation may have changed.
    pub touched: BTreeSet<InodeId>,
    /// Inodes that are no more.
    pub gone: Vec<InodeId>,
    durability: &'static str,
}

impl Reference {
    pub fn new(root_time: Timestamp, durability: &'static str) -> Self {
        let root = Node::directory_of_root(0o755, InodeId::ROOT, Time::Is(root_time));
        Reference {
            nodes: BTreeMap::from([(InodeId::ROOT, root)]),
            locks: Locks::default(),
            quotas: BTreeMap::new(),
            trash: Trash::default(),
            touched: BTreeSet::new(),
            gone: Vec::new(),
            durability,
        }
    }

    // ---- finding

    pub fn node(&self, inode: InodeId) -> Result<&Node> {
        self.nodes.get(&inode).ok_or(Errno::ESTALE)
    }

    pub fn touch(&mut self, inode: InodeId) -> &mut Node {
        self.touched.insert(inode);
        self.nodes.get_mut(&inode).expect("a node that was found")
    }

    fn directory(&self, inode: InodeId) -> Result<&Directory> {
        match &self.node(inode)?.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn child(&self, parent: InodeId, name: &Name) -> Result<Option<InodeId>> {
        Ok(self.directory(parent)?.names.get(name).map(|entry| entry.inode))
    }

    fn must_be_alive(&self, parent: InodeId) -> Result<()> {
        if self.is_of_trash(parent) {
            return Err(Errno::EPERM);
        }
        if self.node(parent)?.links == 0 { Err(Errno::ENOENT) } else { Ok(()) }
    }

    /// A name that is about to be made in a directory.
    fn must_be_free(&self, parent: InodeId, name: &Name) -> Result<()> {
        if self.child(parent, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        self.must_be_alive(parent)
    }

    fn content(&self, inode: InodeId) -> Result<&Content> {
        match &self.node(inode)?.body {
            Body::File(content) => Ok(content),
            Body::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn content_mut(&mut self, inode: InodeId) -> &mut Content {
        match &mut self.touch(inode).body {
            Body::File(content) => content,
            _ => panic!("{inode:?} is no file"),
        }
    }

    /// True when `above` is `inode` or one of the directories that hold it.
    fn is_above(&self, above: InodeId, mut inode: InodeId) -> bool {
        loop {
            if inode == above {
                return true;
            }
            if inode == InodeId::ROOT {
                return false;
            }
            inode = self.directory(inode).expect("a directory").parent;
        }
    }

    // ---- names

    pub fn add_name(&mut self, parent: InodeId, name: &Name, inode: InodeId) {
        let node = self.touch(parent);
        node.modified = Time::Moved;
        node.changed = Time::Moved;
        let Body::Directory(directory) = &mut node.body else { panic!("{parent:?} is no directory") };
        let cookie = directory.next_cookie;
        directory.next_cookie += 1;
        directory.names.insert(name.clone(), Entry { inode, cookie });
        let child = self.touch(inode);
        if let Body::Directory(directory) = &mut child.body {
            directory.parent = parent;
            self.touch(parent).links += 1;
        }
    }

    pub fn remove_name(&mut self, parent: InodeId, name: &Name) -> InodeId {
        let node = self.touch(parent);
        node.modified = Time::Moved;
        node.changed = Time::Moved;
        let Body::Directory(directory) = &mut node.body else { panic!("{parent:?} is no directory") };
        let inode = directory.names.remove(name).expect("a name that was found").inode;
        if self.touch(inode).is_directory() {
            self.touch(parent).links -= 1;
        }
        inode
    }

    /// One name less; without names and opens it is gone.
    pub fn drop_link(&mut self, inode: InodeId) {
        let node = self.touch(inode);
        node.links = if node.is_directory() { 0 } else { node.links - 1 };
        node.changed = Time::Moved;
        self.reap(inode);
    }

    fn reap(&mut self, inode: InodeId) {
        if self.nodes.get(&inode).is_some_and(|node| node.links == 0 && node.opens.is_empty()) {
            self.nodes.remove(&inode);
            self.touched.remove(&inode);
            self.gone.push(inode);
        }
    }

    /// A new node without a name.
    fn born(&mut self, caller: &Caller, parent: InodeId, mode: Mode, umask: u32, body: Body, inode: InodeId) {
        assert!(!self.nodes.contains_key(&inode) && !self.gone.contains(&inode), "{inode:?} is used again");
        let kind = mode.kind().expect("a type of file");
        let mut permissions = mode.permissions();
        let directory = self.node(parent).expect("a parent that was found");
        let set_gid = directory.permissions & Mode::SET_GID != 0;
        let gid = if set_gid { directory.gid } else { caller.gid };
        let quota_root = directory.quota_root;
        let mut xattrs = BTreeMap::new();
        if kind != FileKind::Symlink {
            match directory.xattrs.get(acl::DEFAULT) {
                None => permissions &= !umask,
                Some(list) => {
                    let entries = acl::decode(list).expect("a kept list").expect("a kept list");
                    let narrowed = acl::with_mode(&entries, |permissions, bits| permissions & bits, permissions);
                    permissions = permissions & !0o777 | acl::mode_of(&narrowed);
                    if !acl::is_mode(&narrowed) {
                        xattrs.insert(acl::ACCESS.to_vec(), acl::encode(&narrowed));
                    }
                    if kind == FileKind::Directory {
                        xattrs.insert(acl::DEFAULT.to_vec(), list.clone());
                    }
                }
            }
        }
        if kind == FileKind::Directory && set_gid {
            permissions |= Mode::SET_GID;
        }
        let links = if kind == FileKind::Directory { 2 } else { 1 };
        let node = Node {
            kind,
            permissions,
            links,
            uid: caller.uid,
            gid,
            device: 0,
            accessed: Time::Moved,
            modified: Time::Moved,
            changed: Time::Moved,
            created: Time::Moved,
            xattrs,
            body,
            opens: BTreeMap::new(),
            quota_root,
            linkable: false,
        };
        self.nodes.insert(inode, node);
        self.touched.insert(inode);
    }

    fn link(&mut self, inode: InodeId, parent: InodeId, name: &Name) -> Result<Answer> {
        self.node(inode)?;
        self.must_be_free(parent, name)?;
        let node = self.node(inode)?;
        if node.is_directory() {
            return Err(Errno::EPERM);
        }
        if node.links == 0 && !node.linkable {
            return Err(Errno::ENOENT);
        }
        let quota_root = self.linked_root(inode, parent)?;
        self.add_name(parent, name, inode);
        let node = self.touch(inode);
        node.quota_root = quota_root;
        node.linkable = false;
        node.links += 1;
        node.changed = Time::Moved;
        Ok(Answer::Entry(inode))
    }

    fn rename(
        &mut self,
        caller: &Caller,
        (parent, name): (InodeId, &Name),
        (new_parent, new_name): (InodeId, &Name),
        mode: RenameMode,
        whiteout: Option<InodeId>,
    ) -> Result<Answer> {
        self.directory(parent)?;
        self.directory(new_parent)?;
        let source = self.child(parent, name)?.ok_or(Errno::ENOENT)?;
        self.must_be_alive(new_parent)?;
        let target = self.child(new_parent, new_name)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.node(source)?.is_directory() && self.is_above(source, new_parent) {
            return Err(Errno::EINVAL);
        }
        if mode == RenameMode::Exchange {
            self.must_be_alive(parent)?;
        }
        if let Some(target) = target
            && self.node(target)?.is_directory()
            && self.is_above(target, parent)
        {
            return Err(if mode == RenameMode::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(Answer::Done);
        }
        if let (RenameMode::Exchange, Some(target)) = (mode, target) {
            if self.node(parent)?.quota_root != self.node(new_parent)?.quota_root {
                return Err(Errno::EXDEV);
            }
            let there = self.moved_root(source, parent, new_parent)?;
            let back = self.moved_root(target, new_parent, parent)?;
            self.touch(source).quota_root = there;
            self.touch(target).quota_root = back;
            self.remove_name(parent, name);
            self.remove_name(new_parent, new_name);
            self.add_name(new_parent, new_name, source);
            self.add_name(parent, name, target);
            self.touch(source).changed = Time::Moved;
            self.touch(target).changed = Time::Moved;
            return Ok(Answer::Done);
        }
        if let Some(target) = target {
            let (moved, replaced) = (self.node(source)?, self.node(target)?);
            match (moved.is_directory(), replaced.is_directory()) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if replaced.size() > 0 => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        let quota_root = self.moved_root(source, parent, new_parent)?;
        if mode == RenameMode::Whiteout {
            self.must_be_alive(parent)?;
            self.check_birth(parent)?;
        }
        self.touch(source).quota_root = quota_root;
        if let Some(target) = target {
            self.remove_name(new_parent, new_name);
            self.lose(target, new_parent, new_name)?;
        }
        self.remove_name(parent, name);
        self.add_name(new_parent, new_name, source);
        self.touch(source).changed = Time::Moved;
        if mode == RenameMode::Whiteout {
            let inode = whiteout.expect("the whiteout's number");
            self.born(caller, parent, Mode::new(FileKind::CharDevice, 0), 0, Body::Special, inode);
            self.add_name(parent, name, inode);
        }
        Ok(Answer::Done)
    }

    // ---- attributes

    fn set_attributes(&mut self, inode: InodeId, changes: &AttributeChanges) -> Result<Answer> {
        let node = self.node(inode)?;
        if let Some(size) = changes.size {
            self.content(inode)?;
            if size > limits::FILE_SIZE_MAX {
                return Err(Errno::EFBIG);
            }
        }
        if changes.permissions.is_some() && node.kind == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        let node = self.touch(inode);
        node.changed = Time::Moved;
        if changes.uid.is_some() || changes.gid.is_some() {
            node.uid = changes.uid.unwrap_or(node.uid);
            node.gid = changes.gid.unwrap_or(node.gid);
            if !node.is_directory() {
                node.xattrs.remove(&b"security.capability"[..]);
            }
        }
        if changes.drop_privileges {
            node.drop_privileges();
        }
        if let Some(permissions) = changes.permissions {
            node.permissions = permissions;
            if let Some(list) = node.xattrs.get_mut(acl::ACCESS) {
                let entries = acl::decode(list).expect("a kept list").expect("a kept list");
                *list = acl::encode(&acl::with_mode(&entries, |_, bits| bits, permissions));
            }
        }
        if let (Some(size), Body::File(content)) = (changes.size, &mut node.body) {
            content.resize(size);
            node.modified = Time::Moved;
        }
        let at = |time| match time {
            NewTime::Now => Time::Moved,
            NewTime::At(time) => Time::Is(time),
        };
        node.accessed = changes.accessed.map_or(node.accessed, at);
        node.modified = changes.modified.map_or(node.modified, at);
        Ok(Answer::Entry(inode))
    }

    /// `relatime`: mount(8).
    fn accessed(&mut self, inode: InodeId) {
        let node = self.touch(inode);
        let (accessed, modified, changed) = (node.accessed.known(), node.modified.known(), node.changed.known());
        let old = Timestamp::now().seconds.saturating_sub(accessed.seconds) >= DAY_SECONDS;
        if accessed <= modified || accessed <= changed || old {
            node.accessed = Time::Moved;
        }
    }

    fn open(&mut self, session: SessionId, inode: InodeId, flags: OpenFlags) -> Result<()> {
        let kind = self.node(inode)?.kind;
        if flags.truncate && kind == FileKind::Directory {
            return Err(Errno::EISDIR);
        }
        if flags.truncate && kind == FileKind::Regular {
            let changes = AttributeChanges {
                size: Some(0),
                drop_privileges: flags.drop_privileges,
                ..AttributeChanges::default()
            };
            self.set_attributes(inode, &changes)?;
        }
        *self.touch(inode).opens.entry(session).or_default() += 1;
        Ok(())
    }

    fn release(&mut self, session: SessionId, inode: InodeId) {
        let Some(node) = self.nodes.get_mut(&inode) else { return };
        if let Some(count) = node.opens.get_mut(&session) {
            *count -= 1;
            if *count == 0 {
                node.opens.remove(&session);
            }
        }
        self.reap(inode);
    }

    /// The session's opens and locks go; lists the waiters that get in.
    pub fn end_session(&mut self, session: SessionId) -> Vec<u64> {
        let inodes: Vec<InodeId> = self.nodes.keys().copied().collect();
        for inode in inodes {
            self.nodes.get_mut(&inode).expect("a known node").opens.remove(&session);
            self.reap(inode);
        }
        self.settle_quotas();
        self.locks.end_session(session)
    }

    /// The authority ended: every session is over.
    pub fn restart(&mut self) {
        for inode in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.nodes.get_mut(&inode).expect("a known node").opens.clear();
            self.reap(inode);
        }
        self.settle_quotas();
        self.locks = Locks::default();
    }

    // ---- content

    fn allocate(&mut self, inode: InodeId, mode: AllocateMode, start: u64, end: u64, drop: bool) -> Result<Answer> {
        let size = self.content(inode)?.size;
        if start >= end {
            return Err(Errno::EINVAL);
        }
        if end > limits::FILE_SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        match mode {
            AllocateMode::CollapseRange if end >= size => return Err(Errno::EINVAL),
            AllocateMode::InsertRange if start >= size => return Err(Errno::EINVAL),
            AllocateMode::InsertRange if size.saturating_add(end - start) > limits::FILE_SIZE_MAX => {
                return Err(Errno::EFBIG);
            }
            _ => {}
        }
        let content = self.content_mut(inode);
        match mode {
            AllocateMode::Allocate { .. } => {}
            AllocateMode::PunchHole | AllocateMode::Zero { .. } => content.punch(start, end),
            AllocateMode::CollapseRange => content.collapse(start, end),
            AllocateMode::InsertRange => content.insert(start, end - start),
        }
        if let AllocateMode::Allocate { keep_size: false } | AllocateMode::Zero { keep_size: false } = mode {
            content.size = size.max(end);
        }
        self.touch(inode).content_changed(drop);
        Ok(Answer::Done)
    }

    fn clone_range(&mut self, source: InodeId, from: u64, target: InodeId, to: u64, length: u64) -> Result<Answer> {
        if self.node(source)?.is_directory() || self.node(target)?.is_directory() {
            return Err(Errno::EISDIR);
        }
        let end = from.saturating_add(length).min(self.content(source)?.size);
        self.content(target)?;
        let length = end.saturating_sub(from);
        if length > 0 {
            if source == target && to < end && from < to + length {
                return Err(Errno::EINVAL);
            }
            let cells = self.content(source)?.copy(from, end);
            self.check_growth(target, to, length, cells.iter().flatten().count() as u64)?;
            self.content_mut(target).paste(to, &cells);
            self.touch(target).content_changed(false);
        }
        Ok(Answer::Written { offset: to, length, inode: target })
    }

    // ---- extended attributes

    /// `writes` is false for a look.
    fn check_xattr(&self, inode: InodeId, name: &[u8], writes: bool) -> Result<()> {
        let kind = self.node(inode)?.kind;
        if name.is_empty() || name.len() > limits::XATTR_NAME_BYTES_MAX {
            return Err(Errno::ERANGE);
        }
        let is_list = name == acl::ACCESS || name == acl::DEFAULT;
        if is_list {
            return if kind == FileKind::Symlink { Err(Errno::EOPNOTSUPP) } else { Ok(()) };
        }
        let spaces = [&b"user."[..], b"trusted.", b"security."];
        let space = spaces.into_iter().find(|space| name.starts_with(space)).ok_or(Errno::EOPNOTSUPP)?;
        if name == space {
            return Err(Errno::EINVAL);
        }
        if name == b"user.atoll.durability" {
            return if writes { Err(Errno::EPERM) } else { Ok(()) };
        }
        if space == b"user." && kind != FileKind::Regular && kind != FileKind::Directory {
            return Err(if writes { Errno::EPERM } else { Errno::ENODATA });
        }
        Ok(())
    }

    fn get_xattr(&self, inode: InodeId, name: &[u8]) -> Result<Answer> {
        self.check_xattr(inode, name, false)?;
        if name == b"user.atoll.durability" {
            return Ok(Answer::Data(self.durability.as_bytes().to_vec()));
        }
        Ok(Answer::Data(self.node(inode)?.xattrs.get(name).cloned().ok_or(Errno::ENODATA)?))
    }

    fn set_xattr(&mut self, inode: InodeId, name: &[u8], value: &[u8], mode: XattrMode, drop: bool) -> Result<Answer> {
        if name == acl::ACCESS || name == acl::DEFAULT {
            return self.set_list(inode, name, value, drop);
        }
        self.check_xattr(inode, name, true)?;
        if value.len() > limits::XATTR_VALUE_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let exists = self.node(inode)?.xattrs.contains_key(name);
        match mode {
            XattrMode::Create if exists => return Err(Errno::EEXIST),
            XattrMode::Replace if !exists => return Err(Errno::ENODATA),
            _ => {}
        }
        let node = self.touch(inode);
        node.xattrs.insert(name.to_vec(), value.to_vec());
        node.changed = Time::Moved;
        Ok(Answer::Done)
    }

    fn set_list(&mut self, inode: InodeId, name: &[u8], value: &[u8], drop: bool) -> Result<Answer> {
        let node = self.node(inode)?;
        let Some(entries) = acl::decode(value)? else { return self.remove_xattr(inode, name) };
        if node.kind == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        if name == acl::DEFAULT && !node.is_directory() {
            return Err(Errno::EACCES);
        }
        if !acl::is_valid(&entries) {
            return Err(Errno::EINVAL);
        }
        let node = self.touch(inode);
        node.changed = Time::Moved;
        node.xattrs.insert(name.to_vec(), value.to_vec());
        if name == acl::ACCESS {
            node.permissions = node.permissions & !0o777 | acl::mode_of(&entries);
            if drop {
                node.permissions &= !Mode::SET_GID;
            }
            if acl::is_mode(&entries) {
                node.xattrs.remove(acl::ACCESS);
            }
        }
        Ok(Answer::Done)
    }

    fn remove_xattr(&mut self, inode: InodeId, name: &[u8]) -> Result<Answer> {
        self.check_xattr(inode, name, true)?;
        if self.node(inode)?.xattrs.contains_key(name) {
            let node = self.touch(inode);
            node.xattrs.remove(name);
            node.changed = Time::Moved;
        } else if name != acl::ACCESS && name != acl::DEFAULT {
            return Err(Errno::ENODATA);
        }
        Ok(Answer::Done)
    }

    // ---- all operations

    /// `new` is the number that the volume gave to what this operation makes.
    /// The second value lists the waiters for locks that it let in.
    pub fn execute(
        &mut self,
        session: SessionId,
        caller: &Caller,
        operation: &Operation,
        new: Option<InodeId>,
    ) -> (Result<Answer>, Vec<u64>) {
        use Operation as O;
        self.touched.clear();
        match operation {
            O::SetLock { inode, lock, wait } => {
                let (set, granted) = self.locks.set(*inode, session, lock, *wait);
                let answer = match set {
                    Set::Granted => Ok(Answer::Done),
                    Set::WouldBlock => Err(Errno::EAGAIN),
                    Set::Deadlock => Err(Errno::EDEADLK),
                    Set::Waits(number) => Ok(Answer::Waits(number)),
                };
                (answer, granted)
            }
            O::Unlock { inode, space, owner, range } => {
                (Ok(Answer::Done), self.locks.unlock(*inode, session, *space, *owner, *range))
            }
            O::HoldLocks { inode, locks } => match self.locks.replace(*inode, session, locks) {
                Some(granted) => (Ok(Answer::Done), granted),
                None => (Err(Errno::EAGAIN), Vec::new()),
            },
            _ => {
                let answer = self.execute_unlocked(session, caller, operation, new);
                self.settle_quotas();
                (answer, Vec::new())
            }
        }
    }

    /// So many bytes of data are to be in a range.
    fn check_growth(&self, inode: InodeId, start: u64, length: u64, data: u64) -> Result<()> {
        let before = self.content(inode)?.copy(start, start + length).iter().flatten().count() as u64;
        self.check_room(self.node(inode)?.quota_root, InodeId::NONE, data.saturating_sub(before), 0)
    }

    fn execute_unlocked(
        &mut self,
        session: SessionId,
        caller: &Caller,
        operation: &Operation,
        new: Option<InodeId>,
    ) -> Result<Answer> {
        use Operation as O;
        if let Some(answer) = self.by_hidden_name(operation) {
            return answer;
        }
        let fresh = || new.ok_or(Errno::EPROTO);
        match operation {
            O::Lookup { parent, name } => Ok(Answer::Entry(self.child(*parent, name)?.ok_or(Errno::ENOENT)?)),
            O::Parent { inode } => {
                let parent = self.directory(*inode)?.parent;
                self.node(parent)?;
                Ok(Answer::Entry(parent))
            }
            O::GetAttributes { inode } => self.node(*inode).map(|_| Answer::Entry(*inode)),
            O::SetAttributes { inode, changes } => self.set_attributes(*inode, changes),
            O::Create { parent, name, permissions, umask, flags } => {
                if let Some(inode) = self.child(*parent, name)? {
                    let kind = self.node(inode)?.kind;
                    if flags.exclusive {
                        return Err(Errno::EEXIST);
                    }
                    match kind {
                        FileKind::Directory => return Err(Errno::EISDIR),
                        FileKind::Regular => self.open(session, inode, *flags)?,
                        _ => {}
                    }
                    return Ok(Answer::Created { inode, new: false });
                }
                self.must_be_alive(*parent)?;
                self.check_birth(*parent)?;
                let mode = Mode::new(FileKind::Regular, *permissions);
                self.born(caller, *parent, mode, *umask, Body::File(Content::default()), fresh()?);
                self.add_name(*parent, name, fresh()?);
                self.open(session, fresh()?, OpenFlags::default())?;
                Ok(Answer::Created { inode: fresh()?, new: true })
            }
            O::CreateUnnamed { parent, permissions, umask } => {
                self.directory(*parent)?;
                self.must_be_alive(*parent)?;
                self.check_birth(*parent)?;
                let mode = Mode::new(FileKind::Regular, *permissions);
                self.born(caller, *parent, mode, *umask, Body::File(Content::default()), fresh()?);
                let node = self.touch(fresh()?);
                node.links = 0;
                node.linkable = true;
                self.open(session, fresh()?, OpenFlags::default())?;
                Ok(Answer::Entry(fresh()?))
            }
            O::MakeNode { parent, name, mode, umask, device } => {
                let body = match mode.kind() {
                    None | Some(FileKind::Directory | FileKind::Symlink) => return Err(Errno::EINVAL),
                    Some(FileKind::Regular) => Body::File(Content::default()),
                    Some(_) => Body::Special,
                };
                self.must_be_free(*parent, name)?;
                self.check_birth(*parent)?;
                self.born(caller, *parent, *mode, *umask, body, fresh()?);
                self.add_name(*parent, name, fresh()?);
                let node = self.touch(fresh()?);
                if matches!(node.kind, FileKind::CharDevice | FileKind::BlockDevice) {
                    node.device = *device;
                }
                Ok(Answer::Entry(fresh()?))
            }
            O::MakeDirectory { parent, name, permissions, umask } => {
                self.must_be_free(*parent, name)?;
                self.check_birth(*parent)?;
                let body = Body::Directory(Directory { names: BTreeMap::new(), parent: *parent, next_cookie: 1 });
                let mode = Mode::new(FileKind::Directory, *permissions);
                self.born(caller, *parent, mode, *umask, body, fresh()?);
                self.add_name(*parent, name, fresh()?);
                Ok(Answer::Entry(fresh()?))
            }
            O::MakeSymlink { parent, name, target } => {
                if target.is_empty() {
                    return Err(Errno::ENOENT);
                }
                if target.len() > limits::SYMLINK_BYTES_MAX {
                    return Err(Errno::ENAMETOOLONG);
                }
                self.must_be_free(*parent, name)?;
                self.check_birth(*parent)?;
                let mode = Mode::new(FileKind::Symlink, 0o777);
                self.born(caller, *parent, mode, 0, Body::Symlink(target.to_vec()), fresh()?);
                self.add_name(*parent, name, fresh()?);
                Ok(Answer::Entry(fresh()?))
            }
            O::Link { inode, parent, name } => self.link(*inode, *parent, name),
            O::Unlink { parent, name } => {
                let inode = self.child(*parent, name)?.ok_or(Errno::ENOENT)?;
                if self.node(inode)?.is_directory() {
                    return Err(Errno::EISDIR);
                }
                self.remove_name(*parent, name);
                self.lose(inode, *parent, name)?;
                Ok(Answer::Done)
            }
            O::RemoveDirectory { parent, name } => {
                let inode = self.child(*parent, name)?.ok_or(Errno::ENOENT)?;
                if !self.directory(inode)?.names.is_empty() {
                    return Err(Errno::ENOTEMPTY);
                }
                self.remove_name(*parent, name);
                self.drop_link(inode);
                Ok(Answer::Done)
            }
            O::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename(caller, (*parent, name), (*new_parent, new_name), *mode, new)
            }
            O::ReadSymlink { inode } => match &self.node(*inode)?.body {
                Body::Symlink(target) => {
                    let target = target.clone();
                    self.accessed(*inode);
                    Ok(Answer::Data(target))
                }
                _ => Err(Errno::EINVAL),
            },
            O::Open { inode, flags } => self.open(session, *inode, *flags).map(|()| Answer::Entry(*inode)),
            O::Release { inode } => {
                self.release(session, *inode);
                Ok(Answer::Done)
            }
            O::Read { inode, range } => {
                let content = self.content(*inode)?;
                let end = range.end.min(range.start.saturating_add(limits::IO_BYTES_MAX as u64));
                let bytes = content.read(range.start, end);
                if !range.is_empty() {
                    self.accessed(*inode);
                }
                Ok(Answer::Data(bytes))
            }
            O::Write { inode, at, data, drop_privileges } => {
                if data.len() > limits::IO_BYTES_MAX {
                    return Err(Errno::EINVAL);
                }
                let size = self.content(*inode)?.size;
                let offset = match at {
                    WriteAt::Offset(offset) => *offset,
                    WriteAt::End => size,
                };
                let length = data.len() as u64;
                if offset.checked_add(length).is_none_or(|end| end > limits::FILE_SIZE_MAX) {
                    return Err(Errno::EFBIG);
                }
                if length > 0 {
                    self.check_growth(*inode, offset, length, length)?;
                    self.content_mut(*inode).write(offset, data);
                    self.touch(*inode).content_changed(*drop_privileges);
                }
                Ok(Answer::Written { offset, length, inode: *inode })
            }
            O::Sync => Ok(Answer::Done),
            O::Allocate { inode, mode, range, drop_privileges } => {
                self.allocate(*inode, *mode, range.start, range.end, *drop_privileges)
            }
            O::Seek { inode, offset, to } => {
                let found = self.content(*inode)?.seek(*offset, *to == SeekTo::Data);
                found.map(Answer::Offset).ok_or(Errno::ENXIO)
            }
            O::CloneRange { source, source_offset, target, target_offset, length } => {
                self.clone_range(*source, *source_offset, *target, *target_offset, *length)
            }
            O::ReadDirectory { inode, after, ahead, .. } => {
                let names = &self.directory(*inode)?.names;
                let mut entries: Vec<_> = names.iter().map(|(n, e)| (n.clone(), e.inode, e.cookie)).collect();
                entries.retain(|entry| entry.2 > *after);
                entries.sort_by_key(|entry| entry.2);
                if !*ahead {
                    self.accessed(*inode);
                }
                Ok(Answer::Listing(entries))
            }
            O::GetXattr { inode, name } => self.get_xattr(*inode, name),
            O::SetXattr { inode, name, value, mode, drop_privileges } => {
                self.set_xattr(*inode, name, value, *mode, *drop_privileges)
            }
            O::ListXattrs { inode } => Ok(Answer::Names(self.node(*inode)?.xattrs.keys().cloned().collect())),
            O::RemoveXattr { inode, name } => self.remove_xattr(*inode, name),
            O::Statistics { inode } => Ok(match self.node(*inode)?.quota_root {
                InodeId::NONE => Answer::Space {
                    bytes_used: self.nodes.values().map(Node::allocated).sum(),
                    inodes_used: self.nodes.len() as u64,
                },
                root => {
                    let used = self.used(root);
                    Answer::Space { bytes_used: used.bytes, inodes_used: used.inodes }
                }
            }),
            O::TestLock { inode, lock } => Ok(Answer::Conflict(self.locks.test(*inode, session, lock))),
            O::SetLock { .. } | O::Unlock { .. } | O::HoldLocks { .. } => unreachable!("handled by `execute`"),
        }
    }
}
