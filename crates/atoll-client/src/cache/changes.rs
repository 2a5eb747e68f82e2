//! Changes that are made here, at once, while nobody else may look: under exclusive rights.
//!
//! What they do to attributes and names is what the authority does when it executes them later, with the same
//! times and numbers (`atoll-volume`, `core`). Whatever is not certain, the authority is asked for.

use std::time::{Duration, Instant};

use atoll_types::limits;
use atoll_types::operation::{AttributeChanges, NewTime, RenameMode, WriteAt};
use bytes::Bytes;

use super::*;
use crate::chronicle::{SENT_AGAIN, Told};
use crate::journal::Executed;
use crate::session::Reply;

/// More inodes than this are not kept here; then the authority makes what is new, and may refuse to grant it.
const NODES_MAX: usize = 1_000_000;
/// The server gives no inode a time that is further ahead of its clock than 1 s.
const AHEAD_NANOS_MAX: i128 = 500_000_000;
/// How long nothing is made here after something failed that was made here.
const PAUSE: Duration = Duration::from_secs(10);
/// Numbers are asked for when fewer than this are left.
const NUMBERS_LOW: u64 = limits::INODES_RESERVED as u64 / 2;

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.seconds) * i128::from(Timestamp::NANOS_PER_SECOND) + i128::from(time.nanos)
}

/// Numbers for inodes that are made here.
#[derive(Default)]
pub(super) struct Numbers {
    ranges: VecDeque<std::ops::Range<u64>>,
    asked: bool,
}

impl Numbers {
    fn take(&mut self) -> Option<InodeId> {
        let number = self.ranges.front_mut()?.next()?;
        if self.ranges.front().is_some_and(|range| range.is_empty()) {
            self.ranges.pop_front();
        }
        Some(InodeId(number))
    }

    fn left(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// A change that was made here.
struct Effect {
    at: Timestamp,
    outcome: Outcome,
    /// What the authority is to execute.
    operation: Operation,
    /// The number of the inode that it made.
    inode: Option<InodeId>,
    touches: Vec<InodeId>,
    /// What loses its name by it and is open: the authority must hear of each open before.
    opens: Option<(InodeId, u32)>,
}

/// What comes of a batch of the journal.
#[derive(Default)]
pub(crate) struct Answered {
    /// Inodes whose changes failed.
    pub failed: Vec<(InodeId, Errno)>,
    /// What is given up because the kernel had forgotten it before.
    pub given_up: Vec<Recall>,
}

/// An inode to be made.
struct Birth<'a> {
    mode: Mode,
    umask: u32,
    device: u32,
    /// Of a symlink.
    target: Option<&'a Bytes>,
}

impl Cache {
    /// Make a change here, if its rights are held and its outcome is certain. Then it stands in the journal. `id`: of the
    /// kernel's request.
    pub fn make(
        &mut self,
        id: u64,
        caller: Caller,
        operation: &Operation,
        now: Timestamp,
    ) -> Option<(Result<Outcome, Errno>, Kept)> {
        use Operation as O;
        if !operation.mutates() || self.is_paused() || !self.journal.has_room(2 * limits::IO_BYTES_MAX) {
            return None;
        }
        let born = |mode, umask| Birth { mode, umask, device: 0, target: None };
        let effect = match operation {
            O::Write { inode, at, data, drop_privileges } => self.write(*inode, *at, data, *drop_privileges, now)?,
            O::SetAttributes { inode, changes } => self.set_attributes(*inode, changes, now)?,
            O::Create { parent, name, permissions, umask, .. } => {
                let birth = born(Mode::new(FileKind::Regular, *permissions), *umask);
                let effect = self.make_inode(caller, *parent, name, birth, now)?;
                let attributes = *effect.outcome.attributes()?;
                self.node(attributes.inode).local_opens = 1;
                Effect { outcome: Outcome::Created { attributes, new: true }, ..effect }
            }
            O::MakeNode { parent, name, mode, umask, device } => match mode.kind()? {
                FileKind::Directory | FileKind::Symlink => return None,
                _ => {
                    let birth = Birth { device: *device, ..born(*mode, *umask) };
                    self.make_inode(caller, *parent, name, birth, now)?
                }
            },
            O::MakeDirectory { parent, name, permissions, umask } => {
                let birth = born(Mode::new(FileKind::Directory, *permissions), *umask);
                self.make_inode(caller, *parent, name, birth, now)?
            }
            O::MakeSymlink { parent, name, target } => {
                if target.is_empty() || target.len() > limits::SYMLINK_BYTES_MAX {
                    return None;
                }
                let birth = Birth { target: Some(target), ..born(Mode::new(FileKind::Symlink, 0o777), 0) };
                self.make_inode(caller, *parent, name, birth, now)?
            }
            O::Unlink { parent, name } | O::RemoveDirectory { parent, name } => {
                self.remove(*parent, name, operation, now)?
            }
            O::Rename { parent, name, new_parent, new_name, mode } => {
                self.move_name((*parent, name), (*new_parent, new_name), *mode, operation, now)?
            }
            _ => return None,
        };
        let Effect { at, outcome, operation: change, inode, touches, opens } = effect;
        self.last_made = at;
        let made = Made { caller, at, inode };
        if let Some((opened, count)) = opens {
            self.tell_opens(opened, count);
        }
        let opens = matches!(operation, O::Create { .. }).then_some(inode).flatten();
        let told = self.journal.chronicle().map(|_| Told { id: id & !SENT_AGAIN, answer: Ok(outcome.clone()), opens });
        self.journal.push(Change { made, operation: change, touches }, told);
        if let Some(node) = outcome.attributes().and_then(|attributes| self.nodes.get_mut(&attributes.inode)) {
            node.told = true;
        }
        let entry = !matches!(operation, O::Write { .. } | O::SetAttributes { .. });
        let was_read = |attributes: &Attributes| self.nodes.get(&attributes.inode).is_some_and(|node| node.was_read);
        let attributes = !outcome.attributes().is_some_and(was_read);
        Some((Ok(outcome), Kept { entry, attributes, ..Kept::default() }))
    }

    /// The attributes of an inode on which these rights are held and that no request of our own is changing.
    fn owned(&self, inode: InodeId, rights: Rights) -> Option<Attributes> {
        let node = self.nodes.get(&inode)?;
        let owns = node.holding.rights().contains(rights) && !self.changing.contains_key(&inode);
        node.attributes.filter(|_| owns)
    }

    /// The attributes of a directory in which names may be changed here: it is ours alone, and passes on no ACL.
    fn owned_directory(&self, inode: InodeId) -> Option<Attributes> {
        let attributes = self.owned(inode, Rights::ALL)?;
        let passes_acl = self.nodes.get(&inode).is_none_or(|node| node.may_pass_acl);
        (attributes.kind() == FileKind::Directory && attributes.links > 0 && !passes_acl).then_some(attributes)
    }

    fn named(&self, parent: InodeId, name: &Name) -> Option<Named> {
        if name.is_hidden(parent) {
            return None;
        }
        let named = self.nodes.get(&parent)?.names.as_ref()?.get(name)?;
        (named != Named::Unknown).then_some(named)
    }

    /// The time of a change: later than every change that was made here, and of what it changes.
    fn time(&self, now: Timestamp, changes: &[&Attributes]) -> Option<Timestamp> {
        let start = now.max(self.last_made.successor());
        let at = changes.iter().fold(start, |at, attributes| at.max(attributes.changed.successor()));
        (nanos(at) - nanos(now) <= AHEAD_NANOS_MAX).then_some(at)
    }

    fn put(&mut self, attributes: Attributes) {
        self.node(attributes.inode).attributes = Some(attributes);
    }

    fn write(
        &mut self,
        inode: InodeId,
        at: WriteAt,
        data: &Bytes,
        drop_privileges: bool,
        now: Timestamp,
    ) -> Option<Effect> {
        let mut attributes = self.owned(inode, Rights::INODE_EXCLUSIVE)?;
        if attributes.kind() != FileKind::Regular || data.is_empty() || data.len() > limits::IO_BYTES_MAX {
            return None;
        }
        let start = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => attributes.size,
        };
        let length = data.len() as u64;
        let end = start.checked_add(length).filter(|&end| end <= limits::FILE_SIZE_MAX)?;
        let when = self.time(now, &[&attributes])?;
        // Of a file with holes it is a guess until the authority has executed it.
        let is_dense = attributes.allocated >= attributes.size && start <= attributes.size;
        attributes.allocated = if is_dense {
            attributes.size.max(end)
        } else {
            (attributes.allocated + length).min(attributes.size.max(end))
        };
        attributes.size = attributes.size.max(end);
        attributes.modified = when;
        attributes.changed = when;
        if drop_privileges {
            attributes.mode = attributes.mode.without_privileges();
        }
        self.put(attributes);
        let operation = Operation::Write { inode, at: WriteAt::Offset(start), data: data.clone(), drop_privileges };
        let outcome = Outcome::Written { offset: start, length, attributes };
        Some(Effect { at: when, outcome, operation, inode: None, touches: vec![inode], opens: None })
    }

    fn set_attributes(&mut self, inode: InodeId, changes: &AttributeChanges, now: Timestamp) -> Option<Effect> {
        let mut attributes = self.owned(inode, Rights::INODE_EXCLUSIVE)?;
        let kind = attributes.kind();
        // An ACL follows the permissions, and capabilities go with the owner.
        let of_owner = changes.permissions.is_some() || changes.uid.is_some() || changes.gid.is_some();
        let is_bare = self.nodes.get(&inode).is_some_and(|node| node.is_bare);
        if (of_owner && !is_bare) || (kind == FileKind::Symlink && changes.permissions.is_some()) {
            return None;
        }
        if changes.size.is_some_and(|size| kind != FileKind::Regular || size > limits::FILE_SIZE_MAX) {
            return None;
        }
        let when = self.time(now, &[&attributes])?;
        let at = |time: NewTime| match time {
            NewTime::Now => when,
            NewTime::At(Timestamp { seconds, nanos }) => {
                Timestamp { seconds, nanos: nanos.min(Timestamp::NANOS_PER_SECOND - 1) }
            }
        };
        attributes.changed = when;
        attributes.uid = changes.uid.unwrap_or(attributes.uid);
        attributes.gid = changes.gid.unwrap_or(attributes.gid);
        if changes.drop_privileges {
            attributes.mode = attributes.mode.without_privileges();
        }
        if let Some(permissions) = changes.permissions {
            attributes.mode = Mode::new(kind, permissions);
        }
        if let Some(size) = changes.size {
            attributes.size = size;
            attributes.allocated = attributes.allocated.min(size);
            attributes.modified = when;
        }
        attributes.accessed = changes.accessed.map_or(attributes.accessed, at);
        attributes.modified = changes.modified.map_or(attributes.modified, at);
        self.put(attributes);
        self.node(inode).was_read &= changes.accessed.is_none();
        let (outcome, operation) = (Outcome::Entry(attributes), Operation::SetAttributes { inode, changes: *changes });
        Some(Effect { at: when, outcome, operation, inode: None, touches: vec![inode], opens: None })
    }

    fn make_inode(
        &mut self,
        caller: Caller,
        parent: InodeId,
        name: &Name,
        birth: Birth<'_>,
        now: Timestamp,
    ) -> Option<Effect> {
        let Birth { mode, umask, device, target } = birth;
        let mut directory = self.owned_directory(parent)?;
        if self.named(parent, name)? != Named::Absent || self.nodes.len() >= NODES_MAX {
            return None;
        }
        let kind = mode.kind()?;
        let is_directory = kind == FileKind::Directory;
        if is_directory && directory.links >= limits::LINKS_MAX {
            return None;
        }
        let when = self.time(now, &[&directory])?;
        let inode = self.numbers.take()?;
        let inherits_group = directory.mode.permissions() & Mode::SET_GID != 0;
        let mut permissions = mode.permissions();
        if kind != FileKind::Symlink {
            permissions &= !umask;
        }
        if is_directory && inherits_group {
            permissions |= Mode::SET_GID;
        }
        let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        let attributes = Attributes {
            inode,
            mode: Mode::new(kind, permissions),
            links: if is_directory { 2 } else { 1 },
            uid: caller.uid,
            gid: if inherits_group { directory.gid } else { caller.gid },
            device: if is_device { device } else { 0 },
            size: target.map_or(0, |target| target.len() as u64),
            allocated: 0,
            accessed: when,
            modified: when,
            changed: when,
            created: when,
            quota_root: directory.quota_root,
        };
        let node = self.node(inode);
        node.holding.own(if is_directory { Rights::ALL } else { Rights::INODE_EXCLUSIVE });
        node.is_bare = true;
        if is_directory {
            node.names().complete = true;
        }
        node.via = Some(parent);
        self.put(attributes);
        directory.links += u32::from(is_directory);
        directory.size += name.as_bytes().len() as u64;
        self.rename_in(directory, when, name, Named::Child(inode));
        let name = name.clone();
        let operation = match (kind, target) {
            (_, Some(target)) => Operation::MakeSymlink { parent, name, target: target.clone() },
            (FileKind::Directory, _) => {
                Operation::MakeDirectory { parent, name, permissions: mode.permissions(), umask }
            }
            _ => Operation::MakeNode { parent, name, mode, umask, device },
        };
        let (outcome, touches) = (Outcome::Entry(attributes), vec![inode, parent]);
        Some(Effect { at: when, outcome, operation, inode: Some(inode), touches, opens: None })
    }

    /// A name of an owned directory changed.
    fn rename_in(&mut self, mut directory: Attributes, when: Timestamp, name: &Name, named: Named) {
        directory.modified = when;
        directory.changed = when;
        let parent = directory.inode;
        self.put(directory);
        self.node(parent).names().change(name, named);
    }

    /// What would lose its name: a directory only when it is empty.
    fn victim(&self, inode: InodeId) -> Option<Attributes> {
        let attributes = self.owned(inode, Rights::INODE_EXCLUSIVE)?;
        if attributes.kind() == FileKind::Directory {
            self.owned(inode, Rights::ALL).filter(|directory| directory.size == 0)?;
        }
        Some(attributes)
    }

    /// Answers the opens that the authority must hear of.
    fn drop_link(&mut self, mut victim: Attributes, when: Timestamp) -> Option<(InodeId, u32)> {
        let is_directory = victim.kind() == FileKind::Directory;
        victim.links = if is_directory { 0 } else { victim.links.saturating_sub(1) };
        victim.changed = when;
        self.put(victim);
        Some((victim.inode, std::mem::take(&mut self.node(victim.inode).local_opens)))
    }

    fn remove(&mut self, parent: InodeId, name: &Name, operation: &Operation, now: Timestamp) -> Option<Effect> {
        let mut directory = self.owned_directory(parent)?;
        let Named::Child(child) = self.named(parent, name)? else { return None };
        let victim = self.victim(child)?;
        let is_directory = victim.kind() == FileKind::Directory;
        if is_directory != matches!(operation, Operation::RemoveDirectory { .. }) {
            return None;
        }
        let when = self.time(now, &[&directory, &victim])?;
        directory.links -= u32::from(is_directory);
        directory.size = directory.size.saturating_sub(name.as_bytes().len() as u64);
        self.rename_in(directory, when, name, Named::Absent);
        let opens = self.drop_link(victim, when);
        let (operation, touches) = (operation.clone(), vec![child, parent]);
        Some(Effect { at: when, outcome: Outcome::Done, operation, inode: None, touches, opens })
    }

    fn move_name(
        &mut self,
        (parent, name): (InodeId, &Name),
        (new_parent, new_name): (InodeId, &Name),
        mode: RenameMode,
        operation: &Operation,
        now: Timestamp,
    ) -> Option<Effect> {
        if !matches!(mode, RenameMode::Replace | RenameMode::NoReplace) {
            return None;
        }
        let mut from = self.owned_directory(parent)?;
        let to = self.owned_directory(new_parent)?;
        let Named::Child(child) = self.named(parent, name)? else { return None };
        let mut moved = self.owned(child, Rights::INODE_EXCLUSIVE)?;
        let moves_directory = moved.kind() == FileKind::Directory;
        if moves_directory && parent != new_parent {
            // Whether it would move below itself, the authority knows.
            return None;
        }
        if from.quota_root != to.quota_root {
            // Whether it may, the authority knows.
            return None;
        }
        let victim = match self.named(new_parent, new_name)? {
            Named::Child(target) if target == child || mode == RenameMode::NoReplace => return None,
            Named::Child(target) => Some(self.victim(target)?),
            _ => None,
        };
        if victim.is_some_and(|victim| moves_directory != (victim.kind() == FileKind::Directory)) {
            return None;
        }
        let when = self.time(now, &[&from, &to, &moved, victim.as_ref().unwrap_or(&moved)])?;
        from.size = from.size.saturating_sub(name.as_bytes().len() as u64);
        self.rename_in(from, when, name, Named::Absent);
        let mut to = self.nodes.get(&new_parent)?.attributes?;
        if victim.is_some() {
            to.size = to.size.saturating_sub(new_name.as_bytes().len() as u64);
            to.links -= u32::from(moves_directory);
        }
        to.size += new_name.as_bytes().len() as u64;
        self.rename_in(to, when, new_name, Named::Child(child));
        moved.changed = when;
        self.put(moved);
        self.node(child).via = Some(new_parent);
        let mut touches = vec![child, parent, new_parent];
        let opens = match victim {
            Some(victim) => {
                touches.push(victim.inode);
                self.drop_link(victim, when)
            }
            None => None,
        };
        let operation = operation.clone();
        Some(Effect { at: when, outcome: Outcome::Done, operation, inode: None, touches, opens })
    }

    /// Let the authority make changes for a while, so that who makes them hears of errors.
    pub fn pause(&mut self) {
        self.paused_until = Some(Instant::now() + PAUSE);
    }

    fn is_paused(&mut self) -> bool {
        if self.paused_until.is_some_and(|until| until <= Instant::now()) {
            self.paused_until = None;
        }
        self.paused_until.is_some()
    }

    // ---- numbers

    /// Whether inode numbers should be asked for; says so once.
    pub fn wants_numbers(&mut self) -> bool {
        let wants = !self.numbers.asked && self.numbers.left() < NUMBERS_LOW;
        self.numbers.asked |= wants;
        wants
    }

    pub fn reserved(&mut self, first: InodeId, count: u32) {
        self.numbers.asked = false;
        self.numbers.ranges.push_back(first.0..first.0 + u64::from(count));
    }

    /// The session is over, and its numbers with it.
    pub fn forget_numbers(&mut self) {
        self.numbers = Numbers::default();
    }

    // ---- the authority executes

    /// A batch of the journal was answered.
    pub fn executed(&mut self, executed: Vec<Executed>, reply: &Reply) -> Answered {
        let mut answered = Answered::default();
        for grant in &reply.grants {
            self.node(grant.inode).holding.grant(grant);
        }
        for Executed { change, settled, result } in executed {
            if let (Operation::Open { inode, .. }, Err(errno)) = (&change.operation, &result) {
                tracing::warn!(%inode, %errno, "an open file is lost");
            }
            if let (Operation::HoldLocks { inode, .. }, Err(_)) = (&change.operation, &result) {
                self.refused.push(*inode);
            }
            for &inode in &change.touches {
                let Some(node) = self.nodes.get_mut(&inode) else { continue };
                // The answer to a later request may have come first.
                let is_newest = reply.order >= node.order;
                node.order = node.order.max(reply.order);
                if let Some(names) = &mut node.names {
                    names.order = names.order.max(reply.order);
                }
                if let Err(errno) = &result {
                    // What is known of it rests on a change that was not made.
                    node.attributes = None;
                    if let Some(names) = &mut node.names {
                        names.doubt();
                    }
                    answered.failed.push((inode, *errno));
                }
                if is_newest && settled.contains(&inode) {
                    let known = result.as_ref().ok().and_then(Outcome::attributes).filter(|a| a.inode == inode);
                    if let (Some(known), Some(guessed)) = (known, &mut node.attributes) {
                        // What was guessed, and what a read may have moved.
                        guessed.allocated = known.allocated;
                        guessed.accessed = known.accessed;
                        // A quota may have been set around a file meanwhile; around a directory only while nobody owns it.
                        if known.kind() != FileKind::Directory {
                            guessed.quota_root = known.quota_root;
                        }
                        if known != guessed {
                            // Only its links, when a request of our own has just taken a name of it.
                            let is_explained = known.links != guessed.links;
                            debug_assert!(is_explained, "{known:?} is not {guessed:?}: {}", change.operation.name());
                            if !is_explained {
                                tracing::error!(
                                    ?known,
                                    ?guessed,
                                    "a change was executed differently from how it was made"
                                );
                            }
                            node.attributes = None;
                        }
                    }
                }
                if settled.contains(&inode) && node.is_forgotten {
                    answered.given_up.extend(self.forget(inode, 0));
                }
            }
        }
        answered
    }

    /// Exclusive halves, in the neighbourhood of an inode, on which nothing unwritten rests: who recalls one of a
    /// directory will want the others.
    pub fn give_up_around(&mut self, inode: InodeId) -> Vec<Recall> {
        const GIVEN_UP_MAX: usize = atoll_wire::RECALLS_MAX - 1;
        let Some(node) = self.nodes.get(&inode) else { return Vec::new() };
        let is_leaf = node.names.as_ref().is_none_or(|names| names.is_empty());
        let directory = if is_leaf { node.via } else { Some(inode) };
        let Some(names) = directory.and_then(|directory| self.nodes.get(&directory)?.names.as_ref()) else {
            return Vec::new();
        };
        let children = names.children();
        let exclusive = Rights::INODE_WRITER | Rights::NAMES_WRITER;
        let held: Vec<InodeId> = children
            .filter(|child| {
                let owns = |node: &Node| node.holding.rights().overlaps(exclusive);
                let rests = self.locks.is_untold(*child) || self.locks.is_being_told(*child);
                !rests && !self.journal.touches(*child) && self.nodes.get(child).is_some_and(|node| owns(node))
            })
            .take(GIVEN_UP_MAX)
            .collect();
        let release = |child: InodeId| self.nodes.get_mut(&child).map(|node| node.holding.release(child, exclusive));
        held.into_iter().filter_map(release).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: InodeId = InodeId(5);
    const NOW: Timestamp = Timestamp { seconds: 1_000, nanos: 0 };
    const CALLER: Caller = Caller { uid: 7, gid: 8, pid: 9 };

    fn name(text: &str) -> Name {
        Name::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    /// A directory that was just made, with numbers to make inodes with.
    fn cache() -> Cache {
        let mut cache = Cache::default();
        let attributes = Attributes {
            inode: DIRECTORY,
            mode: Mode::new(FileKind::Directory, 0o755),
            links: 2,
            uid: 0,
            gid: 0,
            device: 0,
            size: 0,
            allocated: 0,
            accessed: NOW,
            modified: NOW,
            changed: NOW,
            created: NOW,
            quota_root: InodeId::NONE,
        };
        let make = Operation::MakeDirectory { parent: InodeId::ROOT, name: name("d"), permissions: 0o755, umask: 0 };
        let grant = [Grant { inode: DIRECTORY, rights: Rights::ALL, issue: Issue(1) }];
        cache.starts(&make);
        cache.install(&make, Ok(&Outcome::Entry(attributes)), JournalPosition(0), &grant, Issue(1));
        cache.reserved(InodeId(100), 10);
        cache
    }

    fn create(text: &str) -> Operation {
        let flags = Default::default();
        Operation::Create { parent: DIRECTORY, name: name(text), permissions: 0o666, umask: 0o022, flags }
    }

    fn make(cache: &mut Cache, operation: &Operation) -> Option<Outcome> {
        cache.make(2, CALLER, operation, NOW).map(|(result, _)| result.unwrap())
    }

    fn made(cache: &mut Cache, text: &str) -> Attributes {
        *make(cache, &create(text)).unwrap().attributes().unwrap()
    }

    fn of(cache: &mut Cache, inode: InodeId) -> Attributes {
        let (result, _) = cache.answer(&Operation::GetAttributes { inode }).unwrap();
        *result.unwrap().attributes().unwrap()
    }

    fn write(inode: InodeId, at: WriteAt, bytes: usize) -> Operation {
        Operation::Write { inode, at, data: vec![1; bytes].into(), drop_privileges: false }
    }

    #[test]
    fn a_file_is_made_written_renamed_and_removed_without_asking() {
        let mut cache = cache();
        let file = made(&mut cache, "f");
        assert_eq!((file.inode, file.mode.permissions(), file.uid, file.gid), (InodeId(100), 0o644, 7, 8));
        assert!(file.created > NOW && of(&mut cache, DIRECTORY).modified == file.created);
        make(&mut cache, &write(file.inode, WriteAt::End, 3)).unwrap();
        make(&mut cache, &write(file.inode, WriteAt::End, 4)).unwrap();
        assert_eq!((of(&mut cache, file.inode).size, of(&mut cache, file.inode).allocated), (7, 7));
        let (parent, new_parent, mode) = (DIRECTORY, DIRECTORY, RenameMode::Replace);
        let rename = Operation::Rename { parent, name: name("f"), new_parent, new_name: name("long"), mode };
        make(&mut cache, &rename).unwrap();
        assert_eq!(of(&mut cache, DIRECTORY).size, 4);
        let lookup = |text| Operation::Lookup { parent: DIRECTORY, name: name(text) };
        assert_eq!(cache.answer(&lookup("f")).unwrap().0, Err(Errno::ENOENT));
        assert_eq!(cache.answer(&lookup("long")).unwrap().0.unwrap().attributes().unwrap().inode, file.inode);
        make(&mut cache, &Operation::Unlink { parent, name: name("long") }).unwrap();
        assert_eq!((of(&mut cache, file.inode).links, of(&mut cache, DIRECTORY).size), (0, 0));
        let open = Operation::Open { inode: file.inode, flags: Default::default() };
        assert!(cache.answer(&open).is_none(), "the authority would hear of it after the name went");
        // It was open: the authority hears of that before the name goes.
        let batch = cache.journal.next_batch(true).unwrap();
        let names: Vec<&str> = batch.operations.iter().map(Operation::name).collect();
        assert_eq!(names, ["make_node", "write", "write", "rename", "open", "unlink"]);
        assert!(batch.made.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert_eq!(batch.made[0].inode, Some(file.inode));
    }

    #[test]
    fn what_is_not_ours_alone_is_asked_for() {
        let mut cache = cache();
        assert!(make(&mut cache, &create("f")).is_some());
        assert!(make(&mut cache, &create("f")).is_none(), "it is there");
        let recall = Recall { inode: DIRECTORY, rights: Rights::NAMES_WRITER, issue: Issue(1) };
        let duty = cache.recall(&recall);
        assert_eq!(duty.unwritten, Some(JournalPosition(1)));
        assert!(make(&mut cache, &create("g")).is_none(), "somebody looks");
        assert!(make(&mut cache, &write(InodeId(100), WriteAt::End, 1)).is_some(), "into the file nobody does");
    }

    #[test]
    fn what_leads_from_one_quota_to_another_is_asked_for() {
        let mut cache = cache();
        made(&mut cache, "f");
        let folder =
            |text| Operation::MakeDirectory { parent: DIRECTORY, name: name(text), permissions: 0o755, umask: 0 };
        let inner = *make(&mut cache, &folder("inner")).unwrap().attributes().unwrap();
        let rename = |parent, new_parent| {
            let (name, new_name, mode) = (name("f"), name("f"), RenameMode::Replace);
            Operation::Rename { parent, name, new_parent, new_name, mode }
        };
        make(&mut cache, &rename(DIRECTORY, inner.inode)).unwrap();
        let moved = Attributes { quota_root: inner.inode, ..of(&mut cache, inner.inode) };
        cache.put(moved);
        assert!(make(&mut cache, &rename(inner.inode, DIRECTORY)).is_none());
        let inside = Operation::MakeSymlink { parent: inner.inode, name: name("s"), target: Bytes::from_static(b"t") };
        let inside = make(&mut cache, &inside).unwrap();
        assert_eq!(inside.attributes().unwrap().quota_root, inner.inode, "what is made there is charged there");
    }

    #[test]
    fn nothing_is_made_beside_a_request_of_our_own() {
        let mut cache = cache();
        let file = made(&mut cache, "f").inode;
        let request = write(file, WriteAt::Offset(0), 1);
        assert_eq!(cache.starts(&request), JournalPosition(1));
        assert!(make(&mut cache, &request).is_none());
        cache.install(&request, Err(Errno::EIO), JournalPosition(1), &[], Issue(2));
        assert!(make(&mut cache, &request).is_some());
    }

    #[test]
    fn an_answer_that_misses_a_change_is_corrected_and_not_kept() {
        let mut cache = cache();
        let old = made(&mut cache, "f");
        let by_link = Operation::Lookup { parent: InodeId::ROOT, name: name("link") };
        let after = cache.starts(&by_link);
        make(&mut cache, &write(old.inode, WriteAt::End, 3)).unwrap();
        let mut outcome = Outcome::Entry(old);
        let grant = [Grant { inode: old.inode, rights: Rights::INODE, issue: Issue(5) }];
        let kept = cache.install(&by_link, Ok(&outcome), after, &grant, Issue(5));
        assert!(!kept.attributes);
        assert!(cache.correct(&by_link, &mut outcome, after, Issue(5)));
        assert_eq!(outcome.attributes().unwrap().size, 3);
        cache.clear();
        assert!(!cache.correct(&by_link, &mut outcome, after, Issue(5)), "it is asked for again");
    }

    #[test]
    fn what_has_attributes_of_its_own_keeps_its_permissions_at_the_authority() {
        let mut cache = cache();
        let file = made(&mut cache, "f").inode;
        let chmod = |permissions| {
            let changes = AttributeChanges { permissions: Some(permissions), ..AttributeChanges::default() };
            Operation::SetAttributes { inode: file, changes }
        };
        assert!(make(&mut cache, &chmod(0o600)).is_some());
        let (name, value, mode) = (Bytes::from("user.x"), Bytes::new(), Default::default());
        let set = Operation::SetXattr { inode: file, name, value, mode, drop_privileges: false };
        let after = cache.starts(&set);
        cache.install(&set, Ok(&Outcome::Done), after, &[], Issue(3));
        assert!(make(&mut cache, &chmod(0o644)).is_none());
    }

    #[test]
    fn without_numbers_nothing_is_made() {
        let mut cache = cache();
        for number in 0..10 {
            assert!(make(&mut cache, &create(&format!("f{number}"))).is_some());
        }
        assert!(make(&mut cache, &create("f")).is_none());
        assert!(cache.wants_numbers() && !cache.wants_numbers(), "they are asked for once");
        cache.reserved(InodeId(500), 10);
        assert_eq!(made(&mut cache, "f").inode, InodeId(500));
    }

    #[test]
    fn neighbours_are_given_up_together_once_they_are_written() {
        let mut cache = cache();
        for text in ["a", "b"] {
            made(&mut cache, text);
        }
        assert!(cache.give_up_around(DIRECTORY).is_empty(), "unwritten");
        let batch = cache.journal.next_batch(true).unwrap();
        let grants = |issue| {
            [100, 101].map(|inode| Grant {
                inode: InodeId(inode),
                rights: Rights::INODE_EXCLUSIVE,
                issue: Issue(issue),
            })
        };
        let results = vec![Ok(Outcome::Done); 2];
        let reply = Reply { results, grants: grants(8).to_vec(), order: Issue(9), ..Reply::default() };
        for (changes, reply) in cache.journal.answered(0, batch.after, 2, reply) {
            assert!(cache.executed(changes, &reply).failed.is_empty());
        }
        let mut given_up = cache.give_up_around(InodeId(100));
        given_up.sort_by_key(|recall| recall.inode);
        let expected = |inode| Recall { inode: InodeId(inode), rights: Rights::INODE_WRITER, issue: Issue(8) };
        assert_eq!(given_up, [expected(100), expected(101)]);
        assert!(make(&mut cache, &write(InodeId(100), WriteAt::End, 1)).is_none());
    }
}
