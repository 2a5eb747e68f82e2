//! From kernel requests to operations, and from outcomes to replies.
//!
//! How long the kernel may keep an answer comes with the answer. Bytes live by the
//! attributes: every read compares size and modification time, which the kernel asks for
//! when it may not keep them.
//!
//! Descriptors that may write go past the page cache: the kernel shows a written page to
//! others on this machine before the authority has ordered the write. So do descriptors
//! that were opened without the right to keep the attributes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atoll_client::{Answer, Chronicle, Handles, SENT_AGAIN};
use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::operation::{
    AllocateMode, AttributeChanges, NewTime, OpenFlags, RenameMode, SeekTo, WriteAt, XattrMode,
};
use atoll_types::{
    Attributes, ByteRange, Errno, FileKind, InodeId, LockOwner, Mode, Name, Operation, Outcome, Timestamp,
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::abi::{self, Body, Fields, Header};
use crate::lookups::Lookups;
use crate::remote::{Lifetimes, Remote};
use crate::session::Reply;
use crate::uptake::{Asker, Effect, Turn, Uptake};

#[derive(Default)]
struct Locked {
    /// Inodes on which this mount ever took a range lock.
    inodes: HashSet<InodeId>,
    /// Owners that locked a range of an inode through an open file, with that file's handle.
    /// What is left at its release was a lock of the open file (OFD).
    handles: HashMap<u64, HashSet<(InodeId, LockOwner)>>,
}

impl Locked {
    /// The owners whose range locks end with the open file. One that the kernel has given to a newer
    /// open file meanwhile is that file's now.
    fn released(&mut self, inode: InodeId, handle: u64) -> Vec<LockOwner> {
        let left = self.handles.remove(&handle).unwrap_or_default();
        let elsewhere = |owner| self.handles.values().any(|owners| owners.contains(&(inode, owner)));
        left.into_iter().map(|(_, owner)| owner).filter(|owner| !elsewhere(*owner)).collect()
    }
}

/// What a mount's adapter knows, for the next process image.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct FsState {
    next_handle: u64,
    inodes: Vec<InodeId>,
    handles: Vec<(u64, Vec<(InodeId, LockOwner)>)>,
    /// What is open, where that is noted.
    open: Vec<(u64, InodeId)>,
}

/// A mounted volume.
pub struct VolumeFs {
    remote: Arc<dyn Remote>,
    locked: Mutex<Locked>,
    next_handle: AtomicU64,
    /// The directory that the kernel knows as the mount's root.
    root: InodeId,
    /// Where the kernel is told when what it keeps is old.
    uptake: Option<Arc<Uptake>>,
    lookups: Arc<Lookups>,
    chronicle: Option<Arc<Chronicle>>,
}

/// A request whose answer tells the kernel attributes, or changes what it has of them.
struct Telling {
    remote: Arc<dyn Remote>,
    uptake: Arc<Uptake>,
    from: Header,
    asker: Asker,
    operation: Operation,
    finish: Box<dyn FnOnce(Answer) + Send>,
}

impl Telling {
    fn send(self) {
        let (remote, from, operation) = (self.remote.clone(), self.from, self.operation.clone());
        remote.submit(from.unique, from.caller(), operation, Box::new(|answer| self.answered(answer)));
    }

    fn answered(self, mut answer: Answer) {
        let Some(&attributes) = answer.result.as_ref().ok().and_then(Outcome::attributes) else {
            return (self.finish)(answer);
        };
        let effect = effect(&self.operation, &answer, attributes.kind());
        match self.uptake.turn(attributes.inode, self.asker, effect, !answer.attributes.is_zero()) {
            Turn::Free => (self.finish)(answer),
            Turn::Once => {
                answer.attributes = Duration::ZERO;
                (self.finish)(answer);
                self.uptake.gave(attributes.inode, self.asker);
            }
            Turn::Wait => {
                let uptake = self.uptake.clone();
                let next: Box<dyn FnOnce() + Send> = match effect {
                    // Attributes may be newer by then.
                    Effect::Tells | Effect::TellsOther => Box::new(|| self.send()),
                    Effect::Sets | Effect::Grows => Box::new(|| self.answered(answer)),
                };
                uptake.wait(attributes.inode, next);
            }
        }
    }
}

/// What the answer does to what the kernel has of the inode that it is about.
fn effect(operation: &Operation, answer: &Answer, kind: FileKind) -> Effect {
    use Operation as O;
    match operation {
        _ if kind != FileKind::Regular => Effect::TellsOther,
        O::SetAttributes { .. } | O::Link { .. } | O::Open { .. } => Effect::Sets,
        O::Create { .. } if !matches!(answer.result, Ok(Outcome::Created { new: true, .. })) => Effect::Sets,
        O::Write { .. } | O::CloneRange { .. } => Effect::Grows,
        _ => Effect::Tells,
    }
}

fn name(bytes: &[u8]) -> Result<Name, Errno> {
    Name::new(Bytes::copy_from_slice(bytes))
}

fn attributes(outcome: Outcome) -> Result<Attributes, Errno> {
    outcome.attributes().copied().ok_or(Errno::EPROTO)
}

fn lifetimes(answer: &Answer) -> Lifetimes {
    Lifetimes { entry: answer.entry, attributes: answer.attributes }
}

/// Answer the kernel with what `body` makes of an outcome.
fn answering(
    reply: Reply,
    body: impl FnOnce(Outcome, Lifetimes) -> Result<Body, Errno> + Send + 'static,
) -> impl FnOnce(Answer) + Send + 'static {
    move |answer| {
        let lifetimes = lifetimes(&answer);
        match answer.result.and_then(|outcome| body(outcome, lifetimes)) {
            Ok(body) => reply.ok(body),
            Err(errno) => reply.error(errno),
        }
    }
}

impl VolumeFs {
    pub fn new(remote: impl Remote) -> Self {
        let chronicle = remote.chronicle();
        let (remote, next_handle) = (Arc::new(remote), AtomicU64::new(1));
        let (locked, lookups) = (Mutex::default(), Arc::default());
        VolumeFs { remote, locked, next_handle, root: InodeId::ROOT, uptake: None, lookups, chronicle }
    }

    /// For a remote that tells the kernel, by [`KernelCaches`], when what it keeps is old.
    ///
    /// [`KernelCaches`]: crate::KernelCaches
    pub fn with_recalls(remote: impl Remote) -> Self {
        VolumeFs { uptake: Some(Arc::default()), ..Self::new(remote) }
    }

    /// The same with another directory as the root of the mount.
    pub fn rooted_at(self, root: InodeId) -> Self {
        VolumeFs { root, ..self }
    }

    pub fn root(&self) -> InodeId {
        self.root
    }

    /// When no request is being carried out.
    pub fn state(&self) -> FsState {
        let locked = self.locked.lock();
        let owners = |(handle, owners): (&u64, &HashSet<_>)| (*handle, owners.iter().copied().collect());
        FsState {
            next_handle: self.next_handle.load(Ordering::Relaxed),
            inodes: locked.inodes.iter().copied().collect(),
            handles: locked.handles.iter().map(owners).collect(),
            open: self.chronicle.as_ref().map(|noted| noted.handles().open).unwrap_or_default(),
        }
    }

    /// Go on from what another image knew.
    pub fn restore(&self, state: FsState) {
        self.next_handle.store(state.next_handle, Ordering::Relaxed);
        if let Some(chronicle) = &self.chronicle {
            state.open.into_iter().for_each(|(handle, inode)| chronicle.opened(0, handle, inode));
            for (handle, owners) in &state.handles {
                owners.iter().for_each(|(inode, owner)| chronicle.locked(*handle, *inode, *owner));
            }
        }
        let mut locked = self.locked.lock();
        locked.inodes = state.inodes.into_iter().collect();
        let owners = |(handle, owners): (u64, Vec<_>)| (handle, owners.into_iter().collect());
        locked.handles = state.handles.into_iter().map(owners).collect();
    }

    /// Go on from what a process noted that was killed.
    pub fn revive(&self) {
        let Some(chronicle) = &self.chronicle else { return };
        let Handles { last, locked: handles, inodes, .. } = chronicle.handles();
        // The kernel may send again that a handle is closed that is not known any more.
        self.next_handle.store((last | u64::from(u32::MAX)) + 1, Ordering::Relaxed);
        let mut locked = self.locked.lock();
        locked.inodes = inodes.into_iter().collect();
        for (handle, owners) in handles {
            locked.inodes.extend(owners.iter().map(|(inode, _)| *inode));
            locked.handles.insert(handle, owners.into_iter().collect());
        }
    }

    /// The handle for an open: if the kernel sends the request again, the one that it was answered with.
    fn handle(&self, unique: u64) -> (u64, bool) {
        let again = self.chronicle.as_ref().filter(|_| unique & SENT_AGAIN != 0);
        match again.and_then(|chronicle| chronicle.handle(unique)) {
            Some(handle) => (handle, true),
            None => (self.next_handle.fetch_add(1, Ordering::Relaxed), false),
        }
    }

    pub(crate) fn uptake(&self) -> Option<Arc<Uptake>> {
        self.uptake.clone()
    }

    pub(crate) fn lookups(&self) -> Arc<Lookups> {
        self.lookups.clone()
    }

    /// Submit what tells the kernel attributes, or changes what it has of them.
    fn submit_telling(&self, from: Header, operation: Operation, finish: impl FnOnce(Answer) + Send + 'static) {
        match &self.uptake {
            None => self.remote.submit(from.unique, from.caller(), operation, Box::new(finish)),
            Some(uptake) => {
                let asker = Asker { thread: from.pid, at: uptake.is_active().then(Instant::now) };
                let (remote, uptake, finish) = (self.remote.clone(), uptake.clone(), Box::new(finish));
                Telling { remote, uptake, from, asker, operation, finish }.send();
            }
        }
    }

    fn submit(
        &self,
        from: Header,
        operation: Operation,
        reply: Reply,
        body: impl FnOnce(Outcome, Lifetimes) -> Result<Body, Errno> + Send + 'static,
    ) {
        self.remote.submit(from.unique, from.caller(), operation, Box::new(answering(reply, body)));
    }

    fn entry(&self, from: Header, operation: Operation, reply: Reply) {
        let (remote, root) = (self.remote.clone(), self.root);
        let entry = move |outcome, lifetimes| {
            let attributes = attributes(outcome)?;
            if attributes.inode == InodeId::ROOT && root != InodeId::ROOT {
                // Above a directory that was moved out of the mount; the kernel would take it for the mount's root.
                return Err(Errno::ESTALE);
            }
            remote.looked_up(attributes.inode, attributes.kind());
            let is_root = attributes.inode == root;
            let body = Body::default();
            Ok(if is_root { body.root(&attributes, lifetimes) } else { body.entry(&attributes, lifetimes) })
        };
        self.submit_telling(from, operation, answering(reply, entry));
    }

    /// Like an entry, but the kernel may keep that the name is not there.
    fn lookup(&self, from: Header, parent: InodeId, name: Name, reply: Reply) {
        let (remote, lookups, thread) = (self.remote.clone(), self.lookups.clone(), from.pid);
        let operation = Operation::Lookup { parent, name: name.clone() };
        let done = move |answer: Answer| {
            let lifetimes = lifetimes(&answer);
            match answer.result.and_then(attributes) {
                Ok(attributes) => {
                    remote.looked_up(attributes.inode, attributes.kind());
                    let body = Body::default().entry(&attributes, lifetimes);
                    if attributes.kind() == FileKind::Directory && !lifetimes.entry.is_zero() {
                        lookups.gives(thread, parent, name);
                        reply.ok(body);
                        lookups.gave(thread);
                    } else {
                        reply.ok(body);
                    }
                }
                Err(Errno::ENOENT) if !lifetimes.entry.is_zero() => reply.ok(Body::default().absent(lifetimes)),
                Err(errno) => reply.error(errno),
            }
        };
        self.submit_telling(from, operation, done);
    }

    fn done(&self, from: Header, operation: Operation, reply: Reply) {
        self.submit(from, operation, reply, |_, _| Ok(Body::default()));
    }

    fn data(&self, from: Header, operation: Operation, reply: Reply) {
        let done = move |answer: Answer| match answer.result {
            Ok(Outcome::Data(bytes)) => reply.bytes(&bytes),
            Ok(_) => reply.error(Errno::EPROTO),
            Err(errno) => reply.error(errno),
        };
        self.remote.submit(from.unique, from.caller(), operation, Box::new(done));
    }

    /// Extended attributes: size 0 asks for the length.
    fn sized(&self, from: Header, operation: Operation, size: u32, reply: Reply) {
        let done = move |answer: Answer| match answer.result {
            Ok(Outcome::Data(bytes)) if size == 0 => reply.ok(Body::default().u32(bytes.len() as u32).u32(0)),
            Ok(Outcome::Data(bytes)) if bytes.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(Outcome::Data(bytes)) => reply.bytes(&bytes),
            Ok(_) => reply.error(Errno::EPROTO),
            Err(errno) => reply.error(errno),
        };
        self.remote.submit(from.unique, from.caller(), operation, Box::new(done));
    }

    /// A signal came for the thread that made request `unique`; false when that request is not known.
    pub(crate) fn interrupt(&self, unique: u64) -> bool {
        self.remote.interrupt(unique, is_killed)
    }

    /// Whether the kernel may keep attributes, so that listings should carry them.
    pub(crate) fn lists_attributes(&self) -> bool {
        self.remote.keeps_attributes()
    }

    /// FORGET, or BATCH_FORGET, which has no answer.
    pub(crate) fn forget(&self, header: Header, body: &[u8]) {
        let mut f = Fields::new(body);
        let forgotten = if header.opcode == abi::FORGET {
            vec![(abi::inode(header.node, self.root), f.u64())]
        } else {
            let (count, _) = (f.u32() as usize, f.u32());
            (0..count.min(body.len() / 16)).map(|_| (abi::inode(f.u64(), self.root), f.u64())).collect()
        };
        self.remote.forget(&forgotten);
        if let Some(uptake) = &self.uptake {
            forgotten.iter().for_each(|(inode, _)| uptake.forget(*inode));
        }
    }

    pub(crate) fn dispatch(&self, header: Header, body: &[u8], reply: Reply) {
        if let Some(uptake) = &self.uptake {
            uptake.heard_of(header.pid);
        }
        self.lookups.heard_of(header.pid);
        let mut f = Fields::new(body);
        if let Err((reply, errno)) = self.try_dispatch(header, &mut f, reply) {
            reply.error(errno);
        }
    }

    fn try_dispatch(&self, header: Header, f: &mut Fields<'_>, reply: Reply) -> Result<(), (Reply, Errno)> {
        let inode = abi::inode(header.node, self.root);
        let operation = match self.parse(header, f) {
            Ok(operation) => operation,
            Err(errno) => return Err((reply, errno)),
        };
        if f.bad {
            return Err((reply, Errno::EINVAL));
        }
        match operation {
            Parsed::Entry(operation) => self.entry(header, operation, reply),
            Parsed::Lookup(name) => self.lookup(header, inode, name, reply),
            Parsed::Attr(operation) => {
                let body = |outcome, lifetimes| Ok(Body::default().attr(&attributes(outcome)?, lifetimes));
                self.submit_telling(header, operation, answering(reply, body));
            }
            Parsed::Statx(operation) => {
                let body = |outcome, lifetimes| Ok(Body::default().statx(&attributes(outcome)?, lifetimes));
                self.submit_telling(header, operation, answering(reply, body));
            }
            Parsed::Done(operation) => self.done(header, operation, reply),
            Parsed::Data(operation) => self.data(header, operation, reply),
            Parsed::Sized(operation, size) => self.sized(header, operation, size, reply),
            Parsed::Open(operation, flags) => {
                let (handle, is_open) = self.handle(header.unique);
                if is_open {
                    reply.ok(Body::default().open(handle, page_cache(flags, Lifetimes::default(), false)));
                    return Ok(());
                }
                let truncates = matches!(&operation, Operation::Open { flags, .. } if flags.truncate);
                let (uptake, chronicle) = (self.uptake.clone(), self.chronicle.clone());
                let body = move |_, lifetimes| {
                    if let Some(chronicle) = chronicle {
                        chronicle.opened(header.unique, handle, inode);
                    }
                    let is_disputed = uptake.is_some_and(|uptake| uptake.is_disputed(inode));
                    Ok(Body::default().open(handle, page_cache(flags, lifetimes, is_disputed)))
                };
                if truncates {
                    self.submit_telling(header, operation, answering(reply, body));
                } else {
                    self.submit(header, operation, reply, body);
                }
            }
            Parsed::Create(operation, flags) => {
                let (handle, _) = self.handle(header.unique);
                let (remote, chronicle) = (self.remote.clone(), self.chronicle.clone());
                let body = move |outcome, lifetimes| {
                    let attributes = attributes(outcome)?;
                    remote.looked_up(attributes.inode, attributes.kind());
                    if let Some(chronicle) = chronicle {
                        chronicle.opened(header.unique, handle, attributes.inode);
                    }
                    let open = page_cache(flags, lifetimes, false);
                    Ok(Body::default().entry(&attributes, lifetimes).open(handle, open))
                };
                self.submit_telling(header, operation, answering(reply, body));
            }
            Parsed::Written(operation) => {
                let body = |outcome, _| match outcome {
                    Outcome::Written { length, .. } => Ok(Body::default().u32(length as u32).u32(0)),
                    _ => Err(Errno::EPROTO),
                };
                self.submit_telling(header, operation, answering(reply, body));
            }
            Parsed::Offset(operation) => self.submit(header, operation, reply, |outcome, _| match outcome {
                Outcome::Offset(offset) => Ok(Body::default().u64(offset)),
                _ => Err(Errno::EPROTO),
            }),
            Parsed::Statistics => {
                self.submit(header, Operation::Statistics { inode }, reply, |outcome, _| match outcome {
                    Outcome::Space(s) => {
                        const BLOCK: u64 = 4096;
                        let free = s.bytes_total.saturating_sub(s.bytes_used) / BLOCK;
                        let files_free = s.inodes_total.saturating_sub(s.inodes_used);
                        let mut body = Body::default()
                            .u64(s.bytes_total / BLOCK)
                            .u64(free)
                            .u64(free)
                            .u64(s.inodes_total)
                            .u64(files_free)
                            .u32(BLOCK as u32)
                            .u32(255)
                            .u32(BLOCK as u32);
                        body.0.resize(80, 0);
                        Ok(body)
                    }
                    _ => Err(Errno::EPROTO),
                })
            }
            Parsed::List { offset, size, plus } => self.list(header, inode, offset, size as usize, plus, reply),
            Parsed::Sync => {
                let remote = self.remote.clone();
                self.submit(header, Operation::Sync, reply, move |_, _| match remote.lost(inode) {
                    Some(errno) => Err(errno),
                    None => Ok(Body::default()),
                });
            }
            Parsed::OpenDirectory => reply.ok(Body::default().open(0, 0)),
            Parsed::Nothing => reply.ok(Body::default()),
            Parsed::Release { handle, flocked } => {
                if flocked {
                    let owner = LockOwner(handle);
                    self.remote.tell(Operation::Unlock {
                        inode,
                        space: LockSpace::Whole,
                        owner,
                        range: ByteRange::EVERYTHING,
                    });
                }
                for owner in self.locked.lock().released(inode, handle) {
                    self.remote.tell(Operation::Unlock {
                        inode,
                        space: LockSpace::Range,
                        owner,
                        range: ByteRange::EVERYTHING,
                    });
                }
                // The locks first: who sends it again after the file was closed finds them given back.
                if self.chronicle.as_ref().is_none_or(|chronicle| chronicle.closed(handle)) {
                    self.remote.tell(Operation::Release { inode });
                }
                reply.ok(Body::default());
            }
            Parsed::Flush { handle, owner } => {
                let unlock = {
                    let mut locked = self.locked.lock();
                    if let Some(owners) = locked.handles.get_mut(&handle)
                        && owners.remove(&(inode, owner))
                        && let Some(chronicle) = &self.chronicle
                    {
                        chronicle.unlocked(handle, inode, owner);
                    }
                    locked.inodes.contains(&inode)
                };
                let unlock = unlock.then_some(Operation::Unlock {
                    inode,
                    space: LockSpace::Range,
                    owner,
                    range: ByteRange::EVERYTHING,
                });
                match (self.remote.lost(inode), unlock) {
                    (None, Some(unlock)) => self.done(header, unlock, reply),
                    (None, None) => reply.ok(Body::default()),
                    (Some(errno), unlock) => {
                        unlock.into_iter().for_each(|unlock| self.remote.tell(unlock));
                        reply.error(errno);
                    }
                }
            }
            Parsed::TestLock(lock) => {
                self.submit(header, Operation::TestLock { inode, lock }, reply, |outcome, _| match outcome {
                    Outcome::Conflict(conflict) => Ok(lock_reply(conflict)),
                    _ => Err(Errno::EPROTO),
                });
            }
            Parsed::Unlock(lock) => {
                let Lock { space, owner, range, .. } = lock;
                self.done(header, Operation::Unlock { inode, space, owner, range }, reply);
            }
            Parsed::SetLock { lock, wait, handle } => {
                if lock.space == LockSpace::Range {
                    let mut locked = self.locked.lock();
                    locked.inodes.insert(inode);
                    locked.handles.entry(handle).or_default().insert((inode, lock.owner));
                    if let Some(chronicle) = &self.chronicle {
                        chronicle.locked(handle, inode, lock.owner);
                    }
                }
                let mut reply = reply;
                if wait {
                    reply.may_wait();
                }
                self.done(header, Operation::SetLock { inode, lock, wait }, reply)
            }
        }
        Ok(())
    }

    fn list(&self, header: Header, inode: InodeId, offset: u64, size: usize, plus: bool, reply: Reply) {
        let operation = Operation::ReadDirectory {
            inode,
            after: offset.saturating_sub(2),
            entries_max: entries_max(size, plus),
            with_attributes: plus,
            ahead: false,
        };
        let (remote, uptake) = (self.remote.clone(), self.uptake.clone());
        let done = move |answer: Answer| {
            let Answer { result, entry: names, listed, .. } = answer;
            let entries = match result {
                Ok(Outcome::Listing { entries, .. }) => entries,
                Ok(_) => return reply.error(Errno::EPROTO),
                Err(errno) => return reply.error(errno),
            };
            let mut body = Vec::with_capacity(size);
            let dots = [(1, &b"."[..]), (2, b"..")].into_iter().filter(|(at, _)| *at > offset);
            for (at, dot) in dots {
                push_entry(&mut body, size, plus.then_some(None), inode.0, at, FileKind::Directory, dot);
            }
            let mut told = Vec::new();
            for (place, entry) in entries.into_iter().enumerate() {
                let (at, name) = (entry.cookie + 2, entry.name.as_bytes());
                let attributes = listed.get(place).copied().unwrap_or_default();
                let lifetimes = Lifetimes { entry: names, attributes };
                // Without attributes an entry tells the kernel only its name: it looks the rest up, as it does what it may not keep.
                let hides = |uptake: &Arc<Uptake>| uptake.hides(entry.inode, entry.kind == FileKind::Regular);
                let hidden = names.is_zero() || uptake.as_ref().is_some_and(hides);
                let described = entry.attributes.filter(|_| !hidden).map(|a| Body::default().entry(&a, lifetimes).0);
                let known = plus && described.is_some();
                let described = plus.then_some(described);
                if !push_entry(&mut body, size, described, entry.inode.0, at, entry.kind, name) {
                    break;
                }
                if known {
                    told.push((entry.inode, entry.kind));
                }
            }
            told.into_iter().for_each(|(inode, kind)| remote.looked_up(inode, kind));
            reply.ok(Body(body));
        };
        self.remote.submit(header.unique, header.caller(), operation, Box::new(done));
    }

    fn parse(&self, header: Header, f: &mut Fields<'_>) -> Result<Parsed, Errno> {
        use Operation as O;
        let inode = abi::inode(header.node, self.root);
        let parent = inode;
        Ok(match header.opcode {
            abi::LOOKUP => match f.string() {
                b"." => Parsed::Entry(O::GetAttributes { inode }),
                b".." if inode == self.root => Parsed::Entry(O::GetAttributes { inode }),
                b".." => Parsed::Entry(O::Parent { inode }),
                bytes => Parsed::Lookup(name(bytes)?),
            },
            abi::GETATTR => Parsed::Attr(O::GetAttributes { inode }),
            abi::STATX => Parsed::Statx(O::GetAttributes { inode }),
            abi::SETATTR => Parsed::Attr(O::SetAttributes { inode, changes: changes(f) }),
            abi::READLINK => Parsed::Data(O::ReadSymlink { inode }),
            abi::SYMLINK => {
                let name = name(f.string())?;
                Parsed::Entry(O::MakeSymlink { parent, name, target: Bytes::copy_from_slice(f.string()) })
            }
            abi::MKNOD => {
                let (mode, device, umask, _) = (f.u32(), f.u32(), f.u32(), f.u32());
                Parsed::Entry(O::MakeNode { parent, name: name(f.string())?, mode: Mode(mode), umask, device })
            }
            abi::MKDIR => {
                let (mode, umask) = (f.u32(), f.u32());
                let permissions = Mode(mode).permissions();
                Parsed::Entry(O::MakeDirectory { parent, name: name(f.string())?, permissions, umask })
            }
            abi::UNLINK => Parsed::Done(O::Unlink { parent, name: name(f.string())? }),
            abi::RMDIR => Parsed::Done(O::RemoveDirectory { parent, name: name(f.string())? }),
            abi::RENAME | abi::RENAME2 => {
                let new_parent = abi::inode(f.u64(), self.root);
                let flags = if header.opcode == abi::RENAME2 {
                    let flags = f.u32();
                    f.u32();
                    flags
                } else {
                    0
                };
                let mode = match flags {
                    0 => RenameMode::Replace,
                    1 => RenameMode::NoReplace,
                    2 => RenameMode::Exchange,
                    4 => RenameMode::Whiteout,
                    _ => return Err(Errno::EINVAL),
                };
                let (name, new_name) = (name(f.string())?, name(f.string())?);
                Parsed::Done(O::Rename { parent, name, new_parent, new_name, mode })
            }
            abi::LINK => {
                let target = InodeId(f.u64());
                Parsed::Entry(O::Link { inode: target, parent, name: name(f.string())? })
            }
            abi::OPEN => {
                let (flags, open_flags) = (f.u32(), f.u32());
                if writes(flags) && inode.snapshot().is_some() {
                    return Err(Errno::EROFS);
                }
                let open = OpenFlags {
                    truncate: flags & libc::O_TRUNC as u32 != 0,
                    exclusive: false,
                    drop_privileges: open_flags & abi::OPEN_KILL_SUIDGID != 0,
                    writes: writes(flags),
                };
                Parsed::Open(O::Open { inode, flags: open }, flags)
            }
            abi::CREATE => {
                let (flags, mode, umask, open_flags) = (f.u32(), f.u32(), f.u32(), f.u32());
                let open = OpenFlags {
                    truncate: flags & libc::O_TRUNC as u32 != 0,
                    exclusive: flags & libc::O_EXCL as u32 != 0,
                    drop_privileges: open_flags & abi::OPEN_KILL_SUIDGID != 0,
                    writes: writes(flags),
                };
                let permissions = Mode(mode).permissions();
                let create = O::Create { parent, name: name(f.string())?, permissions, umask, flags: open };
                Parsed::Create(create, flags)
            }
            abi::TMPFILE => {
                let (flags, mode, umask, _) = (f.u32(), f.u32(), f.u32(), f.u32());
                let permissions = Mode(mode).permissions();
                Parsed::Create(O::CreateUnnamed { parent, permissions, umask }, flags)
            }
            abi::READ => {
                let (_, offset, size) = (f.u64(), f.u64(), f.u32());
                Parsed::Data(O::Read { inode, range: ByteRange::at(offset, u64::from(size)) })
            }
            abi::WRITE => {
                let (_, offset, size, write_flags) = (f.u64(), f.u64(), f.u32(), f.u32());
                let (_, flags, _) = (f.u64(), f.u32(), f.u32());
                let append = flags & libc::O_APPEND as u32 != 0;
                let at = if append { WriteAt::End } else { WriteAt::Offset(offset) };
                let data = Bytes::copy_from_slice(f.bytes(size as usize));
                let drop_privileges = write_flags & abi::WRITE_KILL_SUIDGID != 0;
                Parsed::Written(O::Write { inode, at, data, drop_privileges })
            }
            abi::STATFS => Parsed::Statistics,
            abi::RELEASE => {
                let (handle, _, flags) = (f.u64(), f.u32(), f.u32());
                Parsed::Release { handle, flocked: flags & abi::RELEASE_FLOCK_UNLOCK != 0 }
            }
            abi::FLUSH => {
                let (handle, _, owner) = (f.u64(), f.u64(), f.u64());
                Parsed::Flush { handle, owner: LockOwner(owner) }
            }
            abi::FSYNC | abi::FSYNCDIR | abi::SYNCFS => Parsed::Sync,
            abi::SETXATTR => {
                let (size, flags, extra, _) = (f.u32(), f.u32(), f.u32(), f.u32());
                let drop_privileges = extra & abi::SETXATTR_ACL_KILL_SGID != 0;
                let name = Bytes::copy_from_slice(f.string());
                let value = Bytes::copy_from_slice(f.bytes(size as usize));
                let mode = match flags {
                    0 => XattrMode::Set,
                    1 => XattrMode::Create,
                    2 => XattrMode::Replace,
                    _ => return Err(Errno::EINVAL),
                };
                Parsed::Done(O::SetXattr { inode, name, value, mode, drop_privileges })
            }
            abi::GETXATTR => {
                let (size, _) = (f.u32(), f.u32());
                Parsed::Sized(O::GetXattr { inode, name: Bytes::copy_from_slice(f.string()) }, size)
            }
            abi::LISTXATTR => Parsed::Sized(O::ListXattrs { inode }, f.u32()),
            abi::REMOVEXATTR => Parsed::Done(O::RemoveXattr { inode, name: Bytes::copy_from_slice(f.string()) }),
            abi::OPENDIR => Parsed::OpenDirectory,
            abi::RELEASEDIR => Parsed::Nothing,
            abi::READDIR | abi::READDIRPLUS => {
                let (_, offset, size) = (f.u64(), f.u64(), f.u32());
                Parsed::List { offset, size, plus: header.opcode == abi::READDIRPLUS }
            }
            abi::GETLK | abi::SETLK | abi::SETLKW => return lock(header, f),
            abi::FALLOCATE => {
                let (_, offset, length, mode) = (f.u64(), f.u64(), f.u64(), f.u32() as i32);
                const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
                let keep_size = mode & KEEP != 0;
                let mode = match mode & !KEEP {
                    0 => AllocateMode::Allocate { keep_size },
                    libc::FALLOC_FL_PUNCH_HOLE if keep_size => AllocateMode::PunchHole,
                    libc::FALLOC_FL_ZERO_RANGE => AllocateMode::Zero { keep_size },
                    libc::FALLOC_FL_COLLAPSE_RANGE if !keep_size => AllocateMode::CollapseRange,
                    libc::FALLOC_FL_INSERT_RANGE if !keep_size => AllocateMode::InsertRange,
                    _ => return Err(Errno::EOPNOTSUPP),
                };
                let range = ByteRange::at(offset, length);
                Parsed::Done(O::Allocate { inode, mode, range, drop_privileges: false })
            }
            abi::LSEEK => {
                let (_, offset, whence) = (f.u64(), f.u64(), f.u32() as i32);
                let to = match whence {
                    libc::SEEK_DATA => SeekTo::Data,
                    libc::SEEK_HOLE => SeekTo::Hole,
                    _ => return Err(Errno::EINVAL),
                };
                Parsed::Offset(O::Seek { inode, offset, to })
            }
            abi::COPY_FILE_RANGE => {
                let (_, source_offset, target, _, target_offset, length) =
                    (f.u64(), f.u64(), InodeId(f.u64()), f.u64(), f.u64(), f.u64());
                // The reply counts in 32 bits.
                let length = length.min(1 << 30);
                Parsed::Written(O::CloneRange { source: inode, source_offset, target, target_offset, length })
            }
            abi::IOCTL => return Err(Errno::ENOTTY),
            _ => return Err(Errno::ENOSYS),
        })
    }
}

/// Whether a thread is dying: every fatal signal becomes a pending SIGKILL.
fn is_killed(thread: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else { return false };
    let kill = 1 << (libc::SIGKILL - 1);
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")))
        .any(|set| u64::from_str_radix(set.trim(), 16).is_ok_and(|pending| pending & kill != 0))
}

/// A request, by how its outcome is answered.
enum Parsed {
    Entry(Operation),
    Lookup(Name),
    Attr(Operation),
    Statx(Operation),
    Done(Operation),
    Sync,
    Data(Operation),
    Sized(Operation, u32),
    Open(Operation, u32),
    Create(Operation, u32),
    Written(Operation),
    Offset(Operation),
    Statistics,
    List { offset: u64, size: u32, plus: bool },
    OpenDirectory,
    Nothing,
    Release { handle: u64, flocked: bool },
    Flush { handle: u64, owner: LockOwner },
    TestLock(Lock),
    SetLock { lock: Lock, wait: bool, handle: u64 },
    Unlock(Lock),
}

fn writes(open_flags: u32) -> bool {
    open_flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

/// How a descriptor that is opened with these flags treats the page cache.
fn page_cache(open_flags: u32, lifetimes: Lifetimes, is_disputed: bool) -> u32 {
    let passes = writes(open_flags) || is_disputed || lifetimes.attributes.is_zero();
    let direct = if passes { abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES } else { 0 };
    direct | abi::FOPEN_KEEP_CACHE
}

fn changes(f: &mut Fields<'_>) -> AttributeChanges {
    let (valid, _, _, size, _) = (f.u32(), f.u32(), f.u64(), f.u64(), f.u64());
    let (atime, mtime, _) = (f.u64(), f.u64(), f.u64());
    let (atime_nanos, mtime_nanos, _) = (f.u32(), f.u32(), f.u32());
    let (mode, _, uid, gid, _) = (f.u32(), f.u32(), f.u32(), f.u32(), f.u32());
    let has = |bit: u32| valid & bit != 0;
    let time = |set: bool, now: bool, seconds: u64, nanos: u32| match (set, now) {
        (_, true) => Some(NewTime::Now),
        (true, false) => Some(NewTime::At(Timestamp { seconds: seconds as i64, nanos })),
        (false, false) => None,
    };
    AttributeChanges {
        permissions: has(1).then_some(Mode(mode).permissions()),
        uid: has(2).then_some(uid),
        gid: has(4).then_some(gid),
        size: has(8).then_some(size),
        accessed: time(has(16), has(128), atime, atime_nanos),
        modified: time(has(32), has(256), mtime, mtime_nanos),
        drop_privileges: has(2048),
    }
}

fn lock(header: Header, f: &mut Fields<'_>) -> Result<Parsed, Errno> {
    let (handle, owner, start, last, kind, pid, flags) =
        (f.u64(), f.u64(), f.u64(), f.u64(), f.u32() as i32, f.u32(), f.u32());
    let end = if last >= i64::MAX as u64 { u64::MAX } else { last + 1 };
    let space = if flags & abi::LK_FLOCK != 0 { LockSpace::Whole } else { LockSpace::Range };
    let range = if space == LockSpace::Whole { ByteRange::EVERYTHING } else { ByteRange::new(start, end) };
    let exclusive = kind == libc::F_WRLCK;
    // The kernel names the owner of a flock by the address of the open file, which the next open may
    // get again before the release of this one arrives. The handle is the open file, and never reused.
    let owner = if space == LockSpace::Whole { handle } else { owner };
    let lock = Lock {
        space,
        owner: LockOwner(owner),
        pid,
        kind: if exclusive { LockKind::Exclusive } else { LockKind::Shared },
        range,
    };
    Ok(match (header.opcode, kind) {
        (abi::GETLK, _) => Parsed::TestLock(lock),
        (_, libc::F_UNLCK) => Parsed::Unlock(lock),
        (opcode, libc::F_RDLCK | libc::F_WRLCK) => Parsed::SetLock { lock, wait: opcode == abi::SETLKW, handle },
        _ => return Err(Errno::EINVAL),
    })
}

fn lock_reply(conflict: Option<Lock>) -> Body {
    match conflict {
        None => Body::default().u64(0).u64(0).u32(libc::F_UNLCK as u32).u32(0),
        Some(lock) => {
            let kind = if lock.kind == LockKind::Exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
            let last = if lock.range.end == u64::MAX { i64::MAX as u64 } else { lock.range.end - 1 };
            Body::default().u64(lock.range.start).u64(last).u32(kind as u32).u32(lock.pid)
        }
    }
}

/// Bytes of `fuse_entry_out`.
const ENTRY_BYTES: usize = 128;

/// Entries that fit a buffer, if their names are short.
fn entries_max(size: usize, plus: bool) -> u32 {
    let least = 24 + 8 + if plus { ENTRY_BYTES } else { 0 };
    u32::try_from(size / least).unwrap_or(u32::MAX).max(1)
}

/// Append a directory entry if it fits, behind `plus` in a listing with attributes.
fn push_entry(
    body: &mut Vec<u8>,
    size: usize,
    plus: Option<Option<Vec<u8>>>,
    inode: u64,
    offset: u64,
    kind: FileKind,
    name: &[u8],
) -> bool {
    let before = if plus.is_some() { ENTRY_BYTES } else { 0 };
    let length = before + (24 + name.len()).next_multiple_of(8);
    if body.len() + length > size {
        return false;
    }
    let end = body.len() + length;
    match plus {
        Some(Some(entry)) => body.extend_from_slice(&entry),
        Some(None) => body.resize(body.len() + ENTRY_BYTES, 0),
        None => {}
    }
    body.extend_from_slice(&inode.to_ne_bytes());
    body.extend_from_slice(&offset.to_ne_bytes());
    body.extend_from_slice(&(name.len() as u32).to_ne_bytes());
    body.extend_from_slice(&u32::from(kind.dirent_type()).to_ne_bytes());
    body.extend_from_slice(name);
    body.resize(end, 0);
    true
}
