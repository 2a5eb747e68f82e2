//! What `stat` shows of an inode.

use crate::{InodeId, Timestamp};
use serde::{Deserialize, Serialize};

/// File type and permission bits exactly as in `st_mode`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Mode(pub u32);

impl std::fmt::Debug for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0{:o}", self.0)
    }
}

impl Mode {
    pub const TYPE_MASK: u32 = 0o170_000;
    pub const SOCKET: u32 = 0o140_000;
    pub const SYMLINK: u32 = 0o120_000;
    pub const REGULAR: u32 = 0o100_000;
    pub const BLOCK_DEVICE: u32 = 0o060_000;
    pub const DIRECTORY: u32 = 0o040_000;
    pub const CHAR_DEVICE: u32 = 0o020_000;
    pub const FIFO: u32 = 0o010_000;
    pub const SET_UID: u32 = 0o4000;
    pub const SET_GID: u32 = 0o2000;
    pub const STICKY: u32 = 0o1000;
    pub const GROUP_EXEC: u32 = 0o0010;
    /// set-uid, set-gid, sticky and the nine permission bits.
    pub const PERMISSION_MASK: u32 = 0o7777;

    pub fn new(kind: FileKind, permissions: u32) -> Self {
        Mode(kind.bits() | (permissions & Self::PERMISSION_MASK))
    }

    pub fn permissions(self) -> u32 {
        self.0 & Self::PERMISSION_MASK
    }

    /// Without set-uid, and without set-gid where it means "run as the group"; on a directory they mean something else.
    pub fn without_privileges(self) -> Self {
        if self.kind() == Some(FileKind::Directory) {
            return self;
        }
        let mut bits = self.0 & !Self::SET_UID;
        if bits & Self::GROUP_EXEC != 0 {
            bits &= !Self::SET_GID;
        }
        Mode(bits)
    }

    /// `None` for type bits that no file has.
    pub fn kind(self) -> Option<FileKind> {
        FileKind::from_bits(self.0)
    }
}

/// The seven types of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl FileKind {
    pub fn bits(self) -> u32 {
        match self {
            FileKind::Regular => Mode::REGULAR,
            FileKind::Directory => Mode::DIRECTORY,
            FileKind::Symlink => Mode::SYMLINK,
            FileKind::Fifo => Mode::FIFO,
            FileKind::Socket => Mode::SOCKET,
            FileKind::CharDevice => Mode::CHAR_DEVICE,
            FileKind::BlockDevice => Mode::BLOCK_DEVICE,
        }
    }

    /// From the type bits of a mode; other bits are ignored.
    pub fn from_bits(mode: u32) -> Option<Self> {
        Some(match mode & Mode::TYPE_MASK {
            Mode::REGULAR => FileKind::Regular,
            Mode::DIRECTORY => FileKind::Directory,
            Mode::SYMLINK => FileKind::Symlink,
            Mode::FIFO => FileKind::Fifo,
            Mode::SOCKET => FileKind::Socket,
            Mode::CHAR_DEVICE => FileKind::CharDevice,
            Mode::BLOCK_DEVICE => FileKind::BlockDevice,
            _ => return None,
        })
    }

    /// `DT_*` of a directory entry.
    pub fn dirent_type(self) -> u8 {
        (self.bits() >> 12) as u8
    }
}

/// The attributes of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub inode: InodeId,
    pub mode: Mode,
    /// Number of names (for a directory: 2 + sub-directories).
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a character or block device, as Linux encodes it; else 0.
    pub device: u32,
    /// In bytes. For a symlink the target's length, for a directory the sum of its names' lengths.
    pub size: u64,
    /// Bytes that hold data; `st_blocks` is this divided by 512, rounded up.
    pub allocated: u64,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub created: Timestamp,
    /// The directory to whose quota it is charged, and to those that hold that one; `NONE`: the volume alone.
    pub quota_root: InodeId,
}

impl Attributes {
    pub fn kind(&self) -> FileKind {
        self.mode.kind().unwrap_or(FileKind::Regular)
    }
}
