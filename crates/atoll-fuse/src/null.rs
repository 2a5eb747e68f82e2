//! A tree in memory, to measure what the kernel and the session loop cost by themselves.
//!
//! Everything is answered on the thread that read the request. Nothing is kept
//! when it ends; a file that lost its last name goes with its last reader. Locks,
//! extended attributes and the finer rules of a file system are not there: this
//! is a measure, not a volume.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_types::operation::{AttributeChanges, DirectoryEntry, NewTime, RenameMode, VolumeStatistics, WriteAt};
use atoll_types::{Attributes, Caller, Errno, FileKind, InodeId, Mode, Name, Operation, Outcome, Timestamp};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use crate::remote::{Done, Lifetimes, Remote, fixed};

/// Largest file, in bytes: it lies in memory.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// See the module.
pub struct NullRemote {
    /// Changes of the name space hold it for writing, everything else for reading.
    nodes: RwLock<FxHashMap<InodeId, Arc<Node>>>,
    next_inode: AtomicU64,
    lifetimes: Lifetimes,
}

struct Node {
    state: Mutex<State>,
    bytes: RwLock<Vec<u8>>,
}

struct State {
    attributes: Attributes,
    parent: InodeId,
    names: BTreeMap<Name, (InodeId, u64)>,
    /// The names again, in the order of their creation: positions of a listing.
    order: BTreeMap<u64, Name>,
    next_cookie: u64,
    target: Bytes,
}

impl Node {
    fn new(attributes: Attributes, parent: InodeId, target: Bytes) -> Arc<Node> {
        let state =
            State { attributes, parent, names: BTreeMap::new(), order: BTreeMap::new(), next_cookie: 1, target };
        Arc::new(Node { state: Mutex::new(state), bytes: RwLock::default() })
    }

    fn attributes(&self) -> Attributes {
        self.state.lock().attributes
    }

    fn resize(&self, size: u64) -> Result<(), Errno> {
        if size > FILE_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        self.bytes.write().resize(size as usize, 0);
        self.touch(size);
        Ok(())
    }

    /// The content changed and has `size` bytes now.
    fn touch(&self, size: u64) {
        let now = Timestamp::now();
        let attributes = &mut self.state.lock().attributes;
        (attributes.size, attributes.allocated) = (size, size);
        (attributes.modified, attributes.changed) = (now, now);
    }
}

impl State {
    fn insert(&mut self, name: Name, inode: InodeId) {
        self.remove(&name);
        self.order.insert(self.next_cookie, name.clone());
        self.names.insert(name, (inode, self.next_cookie));
        self.next_cookie += 1;
        self.changed();
    }

    fn remove(&mut self, name: &Name) {
        if let Some((_, cookie)) = self.names.remove(name) {
            self.order.remove(&cookie);
            self.changed();
        }
    }

    fn changed(&mut self) {
        let now = Timestamp::now();
        (self.attributes.modified, self.attributes.changed) = (now, now);
    }
}

type Nodes = FxHashMap<InodeId, Arc<Node>>;

fn find(nodes: &Nodes, inode: InodeId) -> Result<&Arc<Node>, Errno> {
    nodes.get(&inode).ok_or(Errno::ESTALE)
}

fn child(nodes: &Nodes, parent: InodeId, name: &Name) -> Result<InodeId, Errno> {
    find(nodes, parent)?.state.lock().names.get(name).map(|(inode, _)| *inode).ok_or(Errno::ENOENT)
}

impl Default for NullRemote {
    fn default() -> Self {
        let root = new_attributes(InodeId::ROOT, Mode::new(FileKind::Directory, 0o755), Caller::default());
        let nodes = [(InodeId::ROOT, Node::new(root, InodeId::ROOT, Bytes::new()))];
        let next_inode = AtomicU64::new(InodeId::ROOT.0 + 1);
        NullRemote { nodes: RwLock::new(nodes.into_iter().collect()), next_inode, lifetimes: Lifetimes::default() }
    }
}

impl NullRemote {
    /// A tree of which the kernel keeps names and attributes for so long. It changes only through the kernel.
    pub fn keeping(lifetimes: Lifetimes) -> Self {
        NullRemote { lifetimes, ..NullRemote::default() }
    }

    fn node(&self, inode: InodeId) -> Result<Arc<Node>, Errno> {
        find(&self.nodes.read(), inode).cloned()
    }

    fn lookup(&self, parent: InodeId, name: &Name) -> Result<Attributes, Errno> {
        let nodes = self.nodes.read();
        Ok(find(&nodes, child(&nodes, parent, name)?)?.attributes())
    }

    fn make(
        &self,
        caller: Caller,
        parent: InodeId,
        name: Name,
        mode: Mode,
        target: Bytes,
    ) -> Result<Attributes, Errno> {
        let mut nodes = self.nodes.write();
        match child(&nodes, parent, &name) {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        let inode = InodeId(self.next_inode.fetch_add(1, Ordering::Relaxed));
        let mut attributes = new_attributes(inode, mode, caller);
        attributes.size = target.len() as u64;
        let directory = attributes.kind() == FileKind::Directory;
        nodes.insert(inode, Node::new(attributes, parent, target));
        let mut state = find(&nodes, parent)?.state.lock();
        state.insert(name, inode);
        state.attributes.links += u32::from(directory);
        Ok(attributes)
    }

    fn link(&self, target: InodeId, parent: InodeId, name: Name) -> Result<Attributes, Errno> {
        let nodes = self.nodes.write();
        if child(&nodes, parent, &name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let node = find(&nodes, target)?;
        node.state.lock().attributes.links += 1;
        find(&nodes, parent)?.state.lock().insert(name, target);
        Ok(node.attributes())
    }

    fn remove(&self, parent: InodeId, name: &Name, directory: bool) -> Result<Outcome, Errno> {
        let mut nodes = self.nodes.write();
        let inode = child(&nodes, parent, name)?;
        may_remove(&nodes, inode, directory)?;
        find(&nodes, parent)?.state.lock().remove(name);
        drop_name(&mut nodes, parent, inode);
        Ok(Outcome::Done)
    }

    fn rename(&self, from: (InodeId, Name), to: (InodeId, Name), mode: RenameMode) -> Result<Outcome, Errno> {
        let mut nodes = self.nodes.write();
        let inode = child(&nodes, from.0, &from.1)?;
        let replaced = child(&nodes, to.0, &to.1).ok();
        let directory = find(&nodes, inode)?.attributes().kind() == FileKind::Directory;
        match (mode, replaced) {
            (RenameMode::Replace, _) | (RenameMode::NoReplace, None) => {}
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            _ => return Err(Errno::EINVAL),
        }
        if replaced == Some(inode) {
            return Ok(Outcome::Done);
        }
        let mut above = to.0;
        while directory && above != InodeId::ROOT {
            if above == inode {
                return Err(Errno::EINVAL);
            }
            above = find(&nodes, above)?.state.lock().parent;
        }
        if let Some(replaced) = replaced {
            may_remove(&nodes, replaced, directory)?;
        }
        find(&nodes, from.0)?.state.lock().remove(&from.1);
        find(&nodes, to.0)?.state.lock().insert(to.1, inode);
        if let Some(replaced) = replaced {
            drop_name(&mut nodes, to.0, replaced);
        }
        if directory {
            find(&nodes, from.0)?.state.lock().attributes.links -= 1;
            find(&nodes, to.0)?.state.lock().attributes.links += 1;
        }
        let mut state = find(&nodes, inode)?.state.lock();
        state.parent = to.0;
        state.attributes.changed = Timestamp::now();
        Ok(Outcome::Done)
    }

    fn set_attributes(&self, inode: InodeId, set: AttributeChanges) -> Result<Attributes, Errno> {
        let node = self.node(inode)?;
        if let Some(size) = set.size {
            node.resize(size)?;
        }
        let now = Timestamp::now();
        let time = |time: NewTime| match time {
            NewTime::Now => now,
            NewTime::At(at) => at,
        };
        let attributes = &mut node.state.lock().attributes;
        if let Some(permissions) = set.permissions {
            attributes.mode = Mode::new(attributes.kind(), permissions);
        }
        attributes.uid = set.uid.unwrap_or(attributes.uid);
        attributes.gid = set.gid.unwrap_or(attributes.gid);
        attributes.accessed = set.accessed.map_or(attributes.accessed, time);
        attributes.modified = set.modified.map_or(attributes.modified, time);
        attributes.changed = now;
        Ok(*attributes)
    }

    fn write(&self, inode: InodeId, at: WriteAt, data: &[u8]) -> Result<Outcome, Errno> {
        let node = self.node(inode)?;
        let mut bytes = node.bytes.write();
        let start = match at {
            WriteAt::End => bytes.len() as u64,
            WriteAt::Offset(offset) => offset,
        };
        let end = start.checked_add(data.len() as u64).filter(|&end| end <= FILE_BYTES_MAX).ok_or(Errno::EFBIG)?;
        let (start, end) = (start as usize, end as usize);
        if start == bytes.len() {
            bytes.extend_from_slice(data);
        } else {
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(data);
        }
        node.touch(bytes.len() as u64);
        Ok(Outcome::Written { offset: start as u64, length: data.len() as u64, attributes: node.attributes() })
    }

    fn list(&self, inode: InodeId, after: u64, most: usize) -> Result<Outcome, Errno> {
        let nodes = self.nodes.read();
        let state = find(&nodes, inode)?.state.lock();
        let mut entries = Vec::new();
        for (&cookie, name) in state.order.range(after + 1..).take(most) {
            let Some(&(inode, _)) = state.names.get(name) else { continue };
            let attributes = find(&nodes, inode)?.attributes();
            let (kind, attributes) = (attributes.kind(), Some(attributes));
            entries.push(DirectoryEntry { name: name.clone(), inode, kind, cookie, attributes });
        }
        let end = entries.len() < most;
        Ok(Outcome::Listing { entries, end })
    }

    fn execute(&self, caller: Caller, operation: Operation) -> Result<Outcome, Errno> {
        use Operation as O;
        let mode = |kind, permissions: u32, umask: u32| Mode::new(kind, permissions & !umask);
        Ok(match operation {
            O::Lookup { parent, name } => Outcome::Entry(self.lookup(parent, &name)?),
            O::GetAttributes { inode } => Outcome::Entry(self.node(inode)?.attributes()),
            O::SetAttributes { inode, changes } => Outcome::Entry(self.set_attributes(inode, changes)?),
            O::ReadSymlink { inode } => Outcome::Data(self.node(inode)?.state.lock().target.clone()),
            O::MakeSymlink { parent, name, target } => {
                Outcome::Entry(self.make(caller, parent, name, mode(FileKind::Symlink, 0o777, 0), target)?)
            }
            O::MakeDirectory { parent, name, permissions, umask } => {
                let mode = mode(FileKind::Directory, permissions, umask);
                Outcome::Entry(self.make(caller, parent, name, mode, Bytes::new())?)
            }
            O::MakeNode { parent, name, mode: m, umask, .. } => {
                let mode = mode(m.kind().ok_or(Errno::EINVAL)?, m.permissions(), umask);
                Outcome::Entry(self.make(caller, parent, name, mode, Bytes::new())?)
            }
            O::Create { parent, name, permissions, umask, flags } => {
                let mode = mode(FileKind::Regular, permissions, umask);
                let (attributes, new) = match self.make(caller, parent, name.clone(), mode, Bytes::new()) {
                    Err(Errno::EEXIST) if !flags.exclusive => (self.lookup(parent, &name)?, false),
                    made => (made?, true),
                };
                if flags.truncate && !new {
                    self.node(attributes.inode)?.resize(0)?;
                }
                Outcome::Created { attributes: self.node(attributes.inode)?.attributes(), new }
            }
            O::Link { inode, parent, name } => Outcome::Entry(self.link(inode, parent, name)?),
            O::Unlink { parent, name } => self.remove(parent, &name, false)?,
            O::RemoveDirectory { parent, name } => self.remove(parent, &name, true)?,
            O::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename((parent, name), (new_parent, new_name), mode)?
            }
            O::Open { inode, flags } => {
                let node = self.node(inode)?;
                if flags.truncate {
                    node.resize(0)?;
                }
                Outcome::Entry(node.attributes())
            }
            O::Read { inode, range } => {
                let node = self.node(inode)?;
                let bytes = node.bytes.read();
                let start = range.start.min(bytes.len() as u64) as usize;
                let end = range.end.min(bytes.len() as u64) as usize;
                Outcome::Data(Bytes::copy_from_slice(&bytes[start..end.max(start)]))
            }
            O::Write { inode, at, data, .. } => self.write(inode, at, &data)?,
            O::ReadDirectory { inode, after, entries_max, .. } => self.list(inode, after, entries_max as usize)?,
            O::Statistics { .. } => Outcome::Space(VolumeStatistics {
                bytes_total: 1 << 40,
                bytes_used: 0,
                inodes_total: 1 << 32,
                inodes_used: self.nodes.read().len() as u64,
            }),
            O::Release { .. } | O::Sync => Outcome::Done,
            _ => return Err(Errno::ENOSYS),
        })
    }
}

impl Remote for Arc<NullRemote> {
    fn submit(&self, _: u64, caller: Caller, operation: Operation, done: Done) {
        done(fixed(self.execute(caller, operation), self.lifetimes));
    }

    fn keeps_attributes(&self) -> bool {
        !self.lifetimes.attributes.is_zero()
    }

    fn tell(&self, _: Operation) {}

    fn interrupt(&self, _: u64, _: fn(u32) -> bool) -> bool {
        true
    }
}

fn new_attributes(inode: InodeId, mode: Mode, caller: Caller) -> Attributes {
    let now = Timestamp::now();
    Attributes {
        inode,
        mode,
        links: if mode.kind() == Some(FileKind::Directory) { 2 } else { 1 },
        uid: caller.uid,
        gid: caller.gid,
        device: 0,
        size: 0,
        allocated: 0,
        accessed: now,
        modified: now,
        changed: now,
        created: now,
        quota_root: InodeId::NONE,
    }
}

fn may_remove(nodes: &Nodes, inode: InodeId, directory: bool) -> Result<(), Errno> {
    let state = find(nodes, inode)?.state.lock();
    match (state.attributes.kind() == FileKind::Directory, directory) {
        (true, false) => Err(Errno::EISDIR),
        (false, true) => Err(Errno::ENOTDIR),
        (true, true) if !state.names.is_empty() => Err(Errno::ENOTEMPTY),
        _ => Ok(()),
    }
}

/// `inode` lost a name in `parent`.
fn drop_name(nodes: &mut Nodes, parent: InodeId, inode: InodeId) {
    let Some(node) = nodes.get(&inode).cloned() else { return };
    let attributes = &mut node.state.lock().attributes;
    if attributes.kind() == FileKind::Directory {
        attributes.links = 0;
        if let Some(parent) = nodes.get(&parent) {
            parent.state.lock().attributes.links -= 1;
        }
    } else {
        attributes.links -= 1;
    }
    attributes.changed = Timestamp::now();
    if attributes.links == 0 {
        nodes.remove(&inode);
    }
}
