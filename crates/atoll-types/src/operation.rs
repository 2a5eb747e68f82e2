//! File-system calls as values, and what they answer.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::locks::{Lock, LockSpace};
use crate::{Attributes, ByteRange, FileKind, InodeId, LockOwner, Mode, Name, Timestamp};

/// Who makes a call. Permissions are checked by the caller's kernel
/// (`default_permissions`); the volume uses this for ownership of new files
/// and for the rules that need to know the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// How a client made a change before it asked, under rights that excluded everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Made {
    pub caller: Caller,
    /// The time that inodes were given by it.
    pub at: Timestamp,
    /// The number that it gave the inode it made, from a reserve of the session.
    pub inode: Option<InodeId>,
}

/// A new time for `utimensat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewTime {
    /// The authority's clock at the moment the call is ordered.
    Now,
    At(Timestamp),
}

/// Which attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttributeChanges {
    /// Permission bits only (`PERMISSION_MASK`).
    pub permissions: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Option<NewTime>,
    pub modified: Option<NewTime>,
    /// Clear set-uid, and set-gid where group-exec is set (the caller lacks `CAP_FSETID`).
    pub drop_privileges: bool,
}

/// `open` flags that the volume acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OpenFlags {
    pub truncate: bool,
    /// The file must not exist (`O_EXCL`); only for `Create`.
    pub exclusive: bool,
    /// See [`AttributeChanges::drop_privileges`]; only with `truncate`.
    pub drop_privileges: bool,
    /// Something will be written. The authority is to know of it ahead, so a client does not answer it from what it keeps, unless it holds
    /// the exclusive right; to the authority it makes no difference, and nobody sends it.
    #[serde(skip)]
    pub writes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RenameMode {
    #[default]
    Replace,
    NoReplace,
    Exchange,
    /// Leave a character device 0:0 under the old name (overlayfs).
    Whiteout,
}

/// `fallocate` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocateMode {
    /// Space exists by construction: only the size may grow.
    Allocate {
        keep_size: bool,
    },
    PunchHole,
    Zero {
        keep_size: bool,
    },
    CollapseRange,
    InsertRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeekTo {
    Data,
    Hole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    Offset(u64),
    /// At the end of the file as the authority orders it (`O_APPEND`).
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum XattrMode {
    #[default]
    Set,
    /// `EEXIST` if it is there.
    Create,
    /// `ENODATA` if it is not.
    Replace,
}

/// One file-system call. Names are checked before this value exists; every
/// other rule is the volume's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// → [`Outcome::Entry`]. `.` and `..` are not names: see `Parent`.
    Lookup { parent: InodeId, name: Name },
    /// The directory that holds `inode` (a directory) → [`Outcome::Entry`]; the root's is the root.
    Parent { inode: InodeId },
    /// → [`Outcome::Entry`]
    GetAttributes { inode: InodeId },
    /// → [`Outcome::Entry`]
    SetAttributes { inode: InodeId, changes: AttributeChanges },
    /// Create a regular file, or open it if it exists and `flags.exclusive` is not set;
    /// either way it is open afterwards → [`Outcome::Created`].
    Create { parent: InodeId, name: Name, permissions: u32, umask: u32, flags: OpenFlags },
    /// `O_TMPFILE`: a regular file without a name, open → [`Outcome::Entry`].
    CreateUnnamed { parent: InodeId, permissions: u32, umask: u32 },
    /// Any kind but directory and symlink, not open → [`Outcome::Entry`].
    MakeNode { parent: InodeId, name: Name, mode: Mode, umask: u32, device: u32 },
    /// → [`Outcome::Entry`]
    MakeDirectory { parent: InodeId, name: Name, permissions: u32, umask: u32 },
    /// → [`Outcome::Entry`]
    MakeSymlink { parent: InodeId, name: Name, target: Bytes },
    /// A further name for `inode` → [`Outcome::Entry`].
    Link { inode: InodeId, parent: InodeId, name: Name },
    /// → [`Outcome::Done`]
    Unlink { parent: InodeId, name: Name },
    /// → [`Outcome::Done`]
    RemoveDirectory { parent: InodeId, name: Name },
    /// → [`Outcome::Done`]
    Rename { parent: InodeId, name: Name, new_parent: InodeId, new_name: Name, mode: RenameMode },
    /// → [`Outcome::Data`]
    ReadSymlink { inode: InodeId },
    /// Count one more open of a regular file, so that it outlives its last name → [`Outcome::Entry`].
    Open { inode: InodeId, flags: OpenFlags },
    /// Undo one `Open` or `Create` → [`Outcome::Done`].
    Release { inode: InodeId },
    /// At most `IO_BYTES_MAX`; short only at the end of the file → [`Outcome::Data`].
    Read { inode: InodeId, range: ByteRange },
    /// → [`Outcome::Written`]
    Write { inode: InodeId, at: WriteAt, data: Bytes, drop_privileges: bool },
    /// Wait until every change that was ordered before this call is durable → [`Outcome::Done`].
    Sync,
    /// → [`Outcome::Done`]
    Allocate { inode: InodeId, mode: AllocateMode, range: ByteRange, drop_privileges: bool },
    /// `ENXIO` at or past the end → [`Outcome::Offset`].
    Seek { inode: InodeId, offset: u64, to: SeekTo },
    /// Share extents; no bytes move. Stops at the source's end → [`Outcome::Written`].
    CloneRange { source: InodeId, source_offset: u64, target: InodeId, target_offset: u64, length: u64 },
    /// Entries whose cookie is greater than `after` (0 = from the start), without `.` and `..` → [`Outcome::Listing`].
    /// With `ahead` nobody has asked for it yet: it is no access, and takes nothing from others (`EAGAIN` if it would).
    ReadDirectory { inode: InodeId, after: u64, entries_max: u32, with_attributes: bool, ahead: bool },
    /// → [`Outcome::Data`]
    GetXattr { inode: InodeId, name: Bytes },
    /// → [`Outcome::Done`]
    SetXattr { inode: InodeId, name: Bytes, value: Bytes, mode: XattrMode, drop_privileges: bool },
    /// NUL-terminated names, one after another → [`Outcome::Data`].
    ListXattrs { inode: InodeId },
    /// → [`Outcome::Done`]
    RemoveXattr { inode: InodeId, name: Bytes },
    /// What there is where the inode is: in the quota that holds it most closely, or in the volume → [`Outcome::Space`].
    Statistics { inode: InodeId },
    /// The first lock that `lock` would have to wait for → [`Outcome::Conflict`].
    TestLock { inode: InodeId, lock: Lock },
    /// Take or convert; with `wait` queue first-in-first-out until granted, `EDEADLK` or cancelled
    /// (`EINTR`), else `EAGAIN` → [`Outcome::Done`].
    SetLock { inode: InodeId, lock: Lock, wait: bool },
    /// `ENOLCK` where it would leave too many parts → [`Outcome::Done`].
    Unlock { inode: InodeId, space: LockSpace, owner: LockOwner, range: ByteRange },
    /// These are all locks that the session holds on the inode: its client has decided about them, or had them
    /// from an authority that is no more. `EAGAIN` where others hold what they exclude → [`Outcome::Done`].
    HoldLocks { inode: InodeId, locks: Vec<Lock> },
}

impl Operation {
    /// True when it changes the volume: it needs write access and a session number.
    pub fn mutates(&self) -> bool {
        match self {
            Operation::Open { flags, .. } => flags.truncate,
            Operation::SetAttributes { .. }
            | Operation::Create { .. }
            | Operation::CreateUnnamed { .. }
            | Operation::MakeNode { .. }
            | Operation::MakeDirectory { .. }
            | Operation::MakeSymlink { .. }
            | Operation::Link { .. }
            | Operation::Unlink { .. }
            | Operation::RemoveDirectory { .. }
            | Operation::Rename { .. }
            | Operation::Write { .. }
            | Operation::Allocate { .. }
            | Operation::CloneRange { .. }
            | Operation::SetXattr { .. }
            | Operation::RemoveXattr { .. } => true,
            _ => false,
        }
    }
}

macro_rules! names {
    ($($variant:ident $name:literal,)*) => {
        impl Operation {
            /// Every value of [`Operation::name`].
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The operation's name in metrics and logs.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Operation::$variant { .. } => $name,)*
                }
            }
        }
    };
}

names! {
    Lookup "lookup",
    Parent "parent",
    GetAttributes "get_attributes",
    SetAttributes "set_attributes",
    Create "create",
    CreateUnnamed "create_unnamed",
    MakeNode "make_node",
    MakeDirectory "make_directory",
    MakeSymlink "make_symlink",
    Link "link",
    Unlink "unlink",
    RemoveDirectory "remove_directory",
    Rename "rename",
    ReadSymlink "read_symlink",
    Open "open",
    Release "release",
    Read "read",
    Write "write",
    Sync "sync",
    Allocate "allocate",
    Seek "seek",
    CloneRange "clone_range",
    ReadDirectory "read_directory",
    GetXattr "get_xattr",
    SetXattr "set_xattr",
    ListXattrs "list_xattrs",
    RemoveXattr "remove_xattr",
    Statistics "statistics",
    TestLock "test_lock",
    SetLock "set_lock",
    Unlock "unlock",
    HoldLocks "hold_locks",
}

impl Operation {
    /// True when it may wait for another's lock, for ever.
    pub fn waits_for_lock(&self) -> bool {
        matches!(self, Operation::SetLock { wait: true, .. })
    }

    /// The inode on whose advisory locks a process works with it.
    pub fn locked_inode(&self) -> Option<InodeId> {
        match self {
            Operation::TestLock { inode, .. } | Operation::SetLock { inode, .. } | Operation::Unlock { inode, .. } => {
                Some(*inode)
            }
            _ => None,
        }
    }

    /// Visit every inode number that the operation names.
    pub fn inodes_mut(&mut self, mut visit: impl FnMut(&mut InodeId)) {
        use Operation as O;
        match self {
            O::Lookup { parent, .. }
            | O::Create { parent, .. }
            | O::CreateUnnamed { parent, .. }
            | O::MakeNode { parent, .. }
            | O::MakeDirectory { parent, .. }
            | O::MakeSymlink { parent, .. }
            | O::Unlink { parent, .. }
            | O::RemoveDirectory { parent, .. } => visit(parent),
            O::Parent { inode }
            | O::GetAttributes { inode }
            | O::SetAttributes { inode, .. }
            | O::ReadSymlink { inode }
            | O::Open { inode, .. }
            | O::Release { inode }
            | O::Read { inode, .. }
            | O::Write { inode, .. }
            | O::Allocate { inode, .. }
            | O::Seek { inode, .. }
            | O::ReadDirectory { inode, .. }
            | O::GetXattr { inode, .. }
            | O::SetXattr { inode, .. }
            | O::ListXattrs { inode }
            | O::RemoveXattr { inode, .. }
            | O::TestLock { inode, .. }
            | O::SetLock { inode, .. }
            | O::Unlock { inode, .. }
            | O::HoldLocks { inode, .. }
            | O::Statistics { inode } => visit(inode),
            O::Link { inode: first, parent: second, .. }
            | O::Rename { parent: first, new_parent: second, .. }
            | O::CloneRange { source: first, target: second, .. } => {
                visit(first);
                visit(second);
            }
            O::Sync => {}
        }
    }

    /// The inode that it made, with this outcome.
    pub fn made_inode(&self, outcome: &Outcome) -> Option<InodeId> {
        use Operation as O;
        let is_new = match self {
            O::Create { .. } => matches!(outcome, Outcome::Created { new: true, .. }),
            O::CreateUnnamed { .. } | O::MakeNode { .. } | O::MakeDirectory { .. } | O::MakeSymlink { .. } => true,
            _ => false,
        };
        outcome.attributes().filter(|_| is_new).map(|attributes| attributes.inode)
    }
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    pub name: Name,
    pub inode: InodeId,
    pub kind: FileKind,
    /// Position: the creation sequence of the name, never reused in its directory.
    pub cookie: u64,
    /// Present when the listing asked for attributes.
    pub attributes: Option<Attributes>,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumeStatistics {
    pub bytes_total: u64,
    pub bytes_used: u64,
    pub inodes_total: u64,
    pub inodes_used: u64,
}

/// What a successful operation answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    Entry(Attributes),
    /// `new` tells whether the name was made by this call.
    Created {
        attributes: Attributes,
        new: bool,
    },
    Data(Bytes),
    /// Where the bytes went, how many, and the attributes afterwards.
    Written {
        offset: u64,
        length: u64,
        attributes: Attributes,
    },
    Offset(u64),
    /// `end` is true when no entry follows the last one.
    Listing {
        entries: Vec<DirectoryEntry>,
        end: bool,
    },
    Space(VolumeStatistics),
    Conflict(Option<Lock>),
}

impl Outcome {
    /// The attributes that it carries, of the one inode that it is about.
    pub fn attributes(&self) -> Option<&Attributes> {
        match self {
            Outcome::Entry(attributes) | Outcome::Created { attributes, .. } | Outcome::Written { attributes, .. } => {
                Some(attributes)
            }
            _ => None,
        }
    }
}
