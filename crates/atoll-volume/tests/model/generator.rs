//! Random steps: few names, few callers, small files, so that things meet.

use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::operation::{
    AllocateMode, AttributeChanges, NewTime, OpenFlags, RenameMode, SeekTo, WriteAt, XattrMode,
};
use atoll_types::{ByteRange, Caller, FileKind, InodeId, LockOwner, Mode, Name, Operation, SessionId, Timestamp};
use atoll_volume::Quota;
use bytes::Bytes;

use super::acl;
use super::driver::Case;
use super::locks::CELLS;
use super::random::Random;
use super::reference::{Body, Node, Reference};
use super::trash::{self, TrashStep};

/// Directories stop being made above this many nodes, so that the tree keeps changing.
const NODES_MANY: usize = 60;

#[derive(Clone, Debug)]
pub enum Step {
    Execute {
        session: SessionId,
        caller: Caller,
        operation: Operation,
    },
    /// Let the tasks of the volume run.
    Yield,
    EndSession(SessionId),
    /// A waiter for a lock goes away.
    Withdraw(u64),
    /// A waiter for a lock goes away after it was let in and before it heard of it.
    LoseGrant(u64),
    Reopen,
    SetQuota(InodeId, Quota),
    RemoveQuota(InodeId),
    Trash(TrashStep),
    /// Make everything durable, then end without a word.
    Crash,
}

pub struct Generator {
    pub random: Random,
    locks_percent: u64,
    quotas: bool,
    trash: bool,
}

impl Generator {
    pub fn new(case: &Case) -> Self {
        let &Case { seed, locks_percent, quotas, trash, .. } = case;
        Generator { random: Random::new(seed), locks_percent, quotas, trash }
    }

    pub fn step(&mut self, model: &Reference, waiting: &[u64]) -> Step {
        match self.random.below(1000) {
            0..=19 => return Step::Yield,
            20..=22 => return Step::Reopen,
            23..=25 => return Step::Crash,
            26..=28 => return Step::EndSession(self.session()),
            29..=39 if !waiting.is_empty() => {
                let waiter = self.random.pick(waiting);
                return if self.random.chance(50) { Step::Withdraw(waiter) } else { Step::LoseGrant(waiter) };
            }
            40..=54 if self.quotas => return self.quota(model),
            55..=94 if self.trash => return self.trash_step(model),
            _ => {}
        }
        let uid = self.random.pick(&[0, 1000, 1001]);
        let caller = Caller { uid, gid: if uid == 0 { 0 } else { 100 + uid % 2 }, pid: 7 };
        Step::Execute { session: self.session(), caller, operation: self.operation(model) }
    }

    /// Quotas come, change and go; none is of the whole volume.
    fn quota(&mut self, model: &Reference) -> Step {
        let known: Vec<InodeId> = model.quotas.keys().copied().collect();
        if !known.is_empty() && self.random.chance(30) {
            return Step::RemoveQuota(self.random.pick(&known));
        }
        let is_there = |node: &Node| node.kind == FileKind::Directory && node.links > 0;
        let named = |(inode, node): (&InodeId, &Node)| (is_there(node) && *inode != InodeId::ROOT).then_some(*inode);
        let directories: Vec<InodeId> = model.nodes.iter().filter_map(named).collect();
        if directories.is_empty() {
            return Step::Yield;
        }
        let bound = |random: &mut Random, most: u64| if random.chance(30) { u64::MAX } else { random.below(most) };
        let limits = Quota { bytes: bound(&mut self.random, 150_000), inodes: bound(&mut self.random, 25) };
        Step::SetQuota(self.random.pick(&directories), limits)
    }

    fn session(&mut self) -> SessionId {
        SessionId(1 + self.random.below(2))
    }

    pub fn any(&mut self, model: &Reference) -> InodeId {
        let inodes: Vec<InodeId> = model.nodes.keys().copied().collect();
        self.random.pick(&inodes)
    }

    /// Mostly one that `wanted` likes, now and then any, or one that is gone.
    fn node(&mut self, model: &Reference, wanted: impl Fn(&Node) -> bool) -> InodeId {
        if self.random.chance(1) && !model.gone.is_empty() {
            return self.random.pick(&model.gone);
        }
        if self.random.chance(5) {
            return self.any(model);
        }
        let good: Vec<InodeId> = model.nodes.iter().filter(|(_, node)| wanted(node)).map(|(id, _)| *id).collect();
        if good.is_empty() { self.any(model) } else { self.random.pick(&good) }
    }

    fn directory(&mut self, model: &Reference) -> InodeId {
        if self.random.chance(20) {
            return InodeId::ROOT;
        }
        self.node(model, |node| node.kind == FileKind::Directory)
    }

    fn file(&mut self, model: &Reference) -> InodeId {
        self.node(model, |node| node.kind == FileKind::Regular)
    }

    fn name(&mut self) -> Name {
        let name = match self.random.below(8) {
            2 if self.trash && self.random.chance(25) => trash::NAME.to_vec(),
            3 if self.trash && self.random.chance(25) => "é".repeat(127).into_bytes(),
            0 => vec![b'x'; 255],
            1 => vec![0xff, 0xfe],
            n => vec![b'a' + n as u8],
        };
        Name::new(name).expect("a good name")
    }

    /// A name that is there, mostly.
    fn known_name(&mut self, model: &Reference, parent: InodeId) -> Name {
        if let Some(Body::Directory(directory)) = model.nodes.get(&parent).map(|node| &node.body)
            && !directory.names.is_empty()
            && self.random.chance(85)
        {
            let names: Vec<&Name> = directory.names.keys().collect();
            return self.random.pick(&names).clone();
        }
        self.name()
    }

    /// A directory and a name in it that `wanted` likes, if there is one.
    pub fn entry(&mut self, model: &Reference, wanted: impl Fn(&Node) -> bool) -> (InodeId, Name) {
        let mut found = Vec::new();
        for (parent, node) in &model.nodes {
            if let Body::Directory(directory) = &node.body {
                let good = directory.names.iter().filter(|(_, entry)| wanted(&model.nodes[&entry.inode]));
                found.extend(good.map(|(name, _)| (*parent, name)));
            }
        }
        if found.is_empty() || self.random.chance(15) {
            let parent = self.directory(model);
            let name = self.known_name(model, parent);
            return (parent, name);
        }
        let (parent, name) = self.random.pick(&found);
        (parent, name.clone())
    }

    fn permissions(&mut self) -> u32 {
        self.random.pick(&[0o644, 0o600, 0o755, 0o777, 0o664, 0o4755, 0o6755, 0o2644, 0o2775, 0o1777, 0])
    }

    fn umask(&mut self) -> u32 {
        self.random.pick(&[0, 0o022, 0o077, 0o027])
    }

    fn flags(&mut self) -> OpenFlags {
        OpenFlags {
            truncate: self.random.chance(15),
            exclusive: self.random.chance(15),
            drop_privileges: self.random.chance(50),
            writes: false,
        }
    }

    fn time(&mut self) -> NewTime {
        match self.random.below(4) {
            0 => NewTime::Now,
            1 => NewTime::At(Timestamp { seconds: 4_000_000_000, nanos: self.random.below(1_000_000_000) as u32 }),
            2 => NewTime::At(Timestamp { seconds: -5, nanos: 999_999_999 }),
            _ => NewTime::At(Timestamp { seconds: self.random.below(2_000_000_000) as i64, nanos: 0 }),
        }
    }

    fn offset(&mut self) -> u64 {
        match self.random.below(20) {
            0..=11 => self.random.below(64),
            12..=15 => 4096 * self.random.below(8),
            16..=17 => self.random.below(8192),
            18 => 128 * 1024 - 8 + self.random.below(16),
            _ => self.random.below(300_000),
        }
    }

    fn length(&mut self) -> u64 {
        match self.random.below(20) {
            0..=11 => 1 + self.random.below(40),
            12..=15 => 4096,
            16..=17 => self.random.below(8192),
            18 => 0,
            _ => self.random.below(200_000),
        }
    }

    fn bytes(&mut self, length: u64) -> Bytes {
        let first = self.random.number();
        if self.random.chance(50) {
            return vec![first as u8; length as usize].into();
        }
        let mut filler = Random::new(first);
        (0..length).map(|_| filler.number() as u8).collect::<Vec<u8>>().into()
    }

    fn list(&mut self) -> Bytes {
        let mut entries = vec![(acl::USER_OBJ, self.random.below(8) as u16, u32::MAX)];
        let named = self.random.chance(60);
        if named {
            entries.push((acl::USER, self.random.below(8) as u16, 1000));
            if self.random.chance(50) {
                entries.push((acl::USER, self.random.below(8) as u16, 1001));
            }
        }
        entries.push((acl::GROUP_OBJ, self.random.below(8) as u16, u32::MAX));
        if self.random.chance(30) && named {
            entries.push((acl::GROUP, self.random.below(8) as u16, 100));
        }
        if named || self.random.chance(20) {
            entries.push((acl::MASK, self.random.below(8) as u16, u32::MAX));
        }
        entries.push((acl::OTHER, self.random.below(8) as u16, u32::MAX));
        if self.random.chance(10) {
            let at = self.random.below(entries.len() as u64) as usize;
            match self.random.below(4) {
                0 => drop(entries.remove(at)),
                1 => entries.swap(0, at),
                2 => entries[at].1 = 8,
                _ => entries[at].0 = 3,
            }
        }
        let mut value = acl::encode(&entries);
        match self.random.below(40) {
            0 => value.clear(),
            1 => value.truncate(4),
            2 => value[0] = 1,
            3 => value.truncate(7),
            _ => {}
        }
        value.into()
    }

    fn xattr(&mut self) -> Bytes {
        let name = match self.random.below(24) {
            0 => "user.atoll.durability",
            1 => "unknown.name",
            2 => "user.",
            3 => "system.unknown",
            4 => "",
            5..=6 => "security.capability",
            7..=8 => "trusted.a",
            9..=12 => "system.posix_acl_access",
            13..=15 => "system.posix_acl_default",
            16..=19 => "user.a",
            20..=22 => "user.b",
            _ => return [&b"user."[..], &vec![b'n'; 250 + self.random.below(2) as usize]].concat().into(),
        };
        Bytes::from_static(name.as_bytes())
    }

    fn lock(&mut self) -> Lock {
        let space = self.random.pick(&[LockSpace::Range, LockSpace::Range, LockSpace::Whole]);
        let kind = self.random.pick(&[LockKind::Shared, LockKind::Exclusive]);
        let owner = LockOwner(1 + self.random.below(3));
        let start = self.random.below(CELLS);
        let range = match space {
            LockSpace::Whole => ByteRange::new(0, u64::MAX),
            LockSpace::Range if self.random.chance(20) => ByteRange::new(start, u64::MAX),
            LockSpace::Range => ByteRange::new(start, start + 1 + self.random.below(CELLS - start)),
        };
        Lock { space, owner, pid: 100 + owner.0 as u32, kind, range }
    }

    fn lock_operation(&mut self) -> Operation {
        // Two inodes are enough: locks do not look at what they lock.
        let (inode, lock) = (InodeId(self.random.below(2)), self.lock());
        match self.random.below(12) {
            0..=1 => Operation::TestLock { inode, lock },
            10..=11 => {
                // Of one owner: what a client's processes hold never conflicts.
                let locks = (0..self.random.below(4))
                    .map(|_| Lock { owner: lock.owner, pid: lock.pid, ..self.lock() })
                    .collect();
                Operation::HoldLocks { inode, locks }
            }
            2..=7 => Operation::SetLock { inode, lock, wait: self.random.chance(60) },
            _ => {
                let Lock { space, owner, range, .. } = lock;
                Operation::Unlock { inode, space, owner, range }
            }
        }
    }

    fn changes(&mut self) -> AttributeChanges {
        let mut changes = AttributeChanges::default();
        match self.random.below(8) {
            0..=1 => changes.permissions = Some(self.permissions()),
            2 => {
                changes.uid = self.random.chance(70).then_some(self.random.pick(&[0, 1000, 1001]));
                changes.gid = self.random.chance(70).then_some(self.random.pick(&[0, 100, 101]));
                changes.drop_privileges = self.random.chance(70);
            }
            3..=4 => {
                changes.size = Some(match self.random.below(12) {
                    0 => 0,
                    1 => u64::MAX >> self.random.below(3),
                    _ => self.offset(),
                });
                changes.drop_privileges = self.random.chance(50);
            }
            5..=6 => {
                changes.accessed = self.random.chance(70).then(|| self.time());
                changes.modified = self.random.chance(70).then(|| self.time());
            }
            _ => {}
        }
        changes
    }

    fn allocate(&mut self, model: &Reference) -> Operation {
        let keep_size = self.random.chance(50);
        let modes = [
            AllocateMode::Allocate { keep_size },
            AllocateMode::PunchHole,
            AllocateMode::Zero { keep_size },
            AllocateMode::CollapseRange,
            AllocateMode::InsertRange,
        ];
        let (mode, start, length) = (self.random.pick(&modes), self.offset(), self.length());
        let too_far = self.random.chance(2);
        let start = if too_far { u64::MAX - 2 * length } else { start };
        let drop_privileges = self.random.chance(50);
        Operation::Allocate { inode: self.file(model), mode, range: ByteRange::at(start, length), drop_privileges }
    }

    fn rename(&mut self, model: &Reference) -> Operation {
        let (parent, name) = self.entry(model, |_| true);
        let (new_parent, new_name) =
            if self.random.chance(50) { self.entry(model, |_| true) } else { (self.directory(model), self.name()) };
        let modes = [
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
            RenameMode::Whiteout,
        ];
        Operation::Rename { parent, name, new_parent, new_name, mode: self.random.pick(&modes) }
    }

    fn make_node(&mut self, model: &Reference) -> Operation {
        let kinds = [
            FileKind::Regular,
            FileKind::Fifo,
            FileKind::Socket,
            FileKind::CharDevice,
            FileKind::BlockDevice,
            FileKind::Directory,
        ];
        let mut mode = Mode::new(self.random.pick(&kinds), self.permissions());
        if self.random.chance(3) {
            mode = Mode(0o644);
        }
        let device = self.random.below(1000) as u32;
        let (parent, name) = (self.directory(model), self.name());
        Operation::MakeNode { parent, name, mode, umask: self.umask(), device }
    }

    fn operation(&mut self, model: &Reference) -> Operation {
        use Operation as O;
        if self.random.chance(self.locks_percent) {
            return self.lock_operation();
        }
        let crowded = model.nodes.len() > NODES_MANY;
        match self.random.below(100) {
            0..=2 => {
                let parent = self.directory(model);
                O::Lookup { parent, name: self.known_name(model, parent) }
            }
            3 => O::Parent { inode: self.directory(model) },
            4..=5 => O::GetAttributes { inode: self.node(model, |_| true) },
            6..=12 => O::SetAttributes { inode: self.node(model, |_| true), changes: self.changes() },
            13..=17 => {
                let (parent, name) = (self.directory(model), self.name());
                let (permissions, umask, flags) = (self.permissions(), self.umask(), self.flags());
                O::Create { parent, name, permissions, umask, flags }
            }
            18 => {
                let (parent, permissions, umask) = (self.directory(model), self.permissions(), self.umask());
                O::CreateUnnamed { parent, permissions, umask }
            }
            19..=20 => self.make_node(model),
            21..=25 if !crowded => {
                let (parent, name, umask) = (self.directory(model), self.name(), self.umask());
                O::MakeDirectory { parent, name, permissions: self.permissions() & 0o1777, umask }
            }
            21..=25 => {
                let (parent, name) = self.entry(model, |node| node.kind == FileKind::Directory);
                O::RemoveDirectory { parent, name }
            }
            26..=27 => {
                let length = self.random.pick(&[0, 1, 5, 100, 4095, 4096]);
                let (parent, name) = (self.directory(model), self.name());
                O::MakeSymlink { parent, name, target: Bytes::from(vec![b't'; length]) }
            }
            28..=31 => {
                let inode = if self.random.chance(30) {
                    self.node(model, |node| node.links == 0)
                } else {
                    self.node(model, |node| node.kind != FileKind::Directory)
                };
                O::Link { inode, parent: self.directory(model), name: self.name() }
            }
            32..=36 => {
                let (parent, name) = self.entry(model, |node| node.kind != FileKind::Directory);
                O::Unlink { parent, name }
            }
            37..=38 => {
                let (parent, name) = self.entry(model, |node| node.kind == FileKind::Directory && node.size() == 0);
                O::RemoveDirectory { parent, name }
            }
            39..=46 => self.rename(model),
            47 => O::ReadSymlink { inode: self.node(model, |node| node.kind == FileKind::Symlink) },
            48..=49 => O::Open { inode: self.file(model), flags: self.flags() },
            50..=54 => O::Release { inode: self.node(model, |node| !node.opens.is_empty()) },
            55..=59 => O::Read { inode: self.file(model), range: ByteRange::at(self.offset(), self.length()) },
            60..=70 => {
                let length = self.length();
                let (inode, data) = (self.file(model), self.bytes(length));
                // The model has a cell for every byte up to the last one that was written.
                let may_append = model.nodes.get(&inode).is_none_or(|node| node.size() < 1 << 20);
                let append = may_append && self.random.chance(30);
                let at = if append { WriteAt::End } else { WriteAt::Offset(self.offset()) };
                O::Write { inode, at, data, drop_privileges: self.random.chance(50) }
            }
            71..=72 => O::Sync,
            73..=76 => self.allocate(model),
            77 => {
                let to = self.random.pick(&[SeekTo::Data, SeekTo::Hole]);
                O::Seek { inode: self.file(model), offset: self.offset(), to }
            }
            78..=80 => {
                let source = self.file(model);
                let target = if self.random.chance(20) { source } else { self.file(model) };
                let (source_offset, target_offset) = (self.offset(), self.offset());
                O::CloneRange { source, source_offset, target, target_offset, length: self.length() }
            }
            81..=83 => {
                let inode = self.directory(model);
                let (after, entries_max) = (self.random.below(20), self.random.below(6) as u32);
                let with_attributes = self.random.chance(50);
                O::ReadDirectory { inode, after, entries_max, with_attributes, ahead: self.random.chance(20) }
            }
            84..=85 => O::GetXattr { inode: self.node(model, |node| !node.xattrs.is_empty()), name: self.xattr() },
            86..=90 => {
                let (inode, name) = (self.node(model, |_| true), self.xattr());
                let is_list = name == acl::ACCESS || name == acl::DEFAULT;
                let inode = if name == acl::DEFAULT { self.directory(model) } else { inode };
                let length = self.random.pick(&[0, 3, 100, 65_536, 65_537]);
                let value = if is_list { self.list() } else { self.bytes(length) };
                let mode = self.random.pick(&[XattrMode::Set, XattrMode::Set, XattrMode::Create, XattrMode::Replace]);
                O::SetXattr { inode, name, value, mode, drop_privileges: self.random.chance(50) }
            }
            91 => O::ListXattrs { inode: self.node(model, |node| !node.xattrs.is_empty()) },
            92..=93 => O::RemoveXattr { inode: self.node(model, |node| !node.xattrs.is_empty()), name: self.xattr() },
            94 => O::Statistics { inode: self.any(model) },
            _ => self.lock_operation(),
        }
    }
}
