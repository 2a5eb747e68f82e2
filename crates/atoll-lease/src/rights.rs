//! Rights, and the three messages that carry them.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub, SubAssign};

use atoll_types::InodeId;
use serde::{Deserialize, Serialize};

/// A set of rights on one inode. An exclusive right always comes with its shared one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Rights(u8);

impl Rights {
    pub const NONE: Rights = Rights(0);
    /// Keep the inode's attributes, bytes and extended attributes.
    pub const INODE: Rights = Rights(1);
    /// Change them without asking; nobody else keeps them.
    pub const INODE_EXCLUSIVE: Rights = Rights(3);
    /// Keep the directory's names, and which are not there.
    pub const NAMES: Rights = Rights(4);
    /// Change them without asking; nobody else keeps them.
    pub const NAMES_EXCLUSIVE: Rights = Rights(12);
    pub const ALL: Rights = Rights(15);
    /// The exclusive halves alone: what a reader must take from others.
    pub const INODE_WRITER: Rights = Rights(2);
    pub const NAMES_WRITER: Rights = Rights(8);

    /// Both.
    pub const WRITER: Rights = Rights(10);

    const BITS: usize = 4;

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn overlaps(self, other: Rights) -> bool {
        self.0 & other.0 != 0
    }

    /// Rights that nobody else may hold beside these.
    pub fn excluded(self) -> Rights {
        let mut excluded = Rights::NONE;
        for (shared, exclusive, both) in [
            (Rights::INODE, Rights::INODE_WRITER, Rights::INODE_EXCLUSIVE),
            (Rights::NAMES, Rights::NAMES_WRITER, Rights::NAMES_EXCLUSIVE),
        ] {
            if self.overlaps(exclusive) {
                excluded |= both;
            } else if self.overlaps(shared) {
                excluded |= exclusive;
            }
        }
        excluded
    }

    /// Without exclusive halves whose shared half is missing.
    pub fn whole(self) -> Rights {
        let mut whole = self;
        for (shared, exclusive) in [(Rights::INODE, Rights::INODE_WRITER), (Rights::NAMES, Rights::NAMES_WRITER)] {
            if !whole.overlaps(shared) {
                whole -= exclusive;
            }
        }
        whole
    }

    pub(crate) fn number(self) -> u64 {
        self.0.into()
    }

    pub(crate) fn bits(self) -> impl Iterator<Item = usize> {
        (0..Self::BITS).filter(move |bit| self.0 & (1 << bit) != 0)
    }

    pub(crate) fn bit(bit: usize) -> Rights {
        Rights(1 << bit)
    }
}

impl BitOr for Rights {
    type Output = Rights;
    fn bitor(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
}

impl BitOrAssign for Rights {
    fn bitor_assign(&mut self, other: Rights) {
        self.0 |= other.0;
    }
}

impl BitAnd for Rights {
    type Output = Rights;
    fn bitand(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }
}

impl Sub for Rights {
    type Output = Rights;
    fn sub(self, other: Rights) -> Rights {
        Rights(self.0 & !other.0)
    }
}

impl SubAssign for Rights {
    fn sub_assign(&mut self, other: Rights) {
        self.0 &= !other.0;
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `i` and `n` for the inode and its names, in capitals when exclusive.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for (shared, exclusive, small, capital) in
            [(Rights::INODE, Rights::INODE_WRITER, 'i', 'I'), (Rights::NAMES, Rights::NAMES_WRITER, 'n', 'N')]
        {
            if self.overlaps(exclusive) {
                text.push(capital);
            } else if self.overlaps(shared) {
                text.push(small);
            }
        }
        f.write_str(if text.is_empty() { "-" } else { &text })
    }
}

/// Orders grants and recalls of one authority; replies and recalls overtake each other on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Issue(pub u64);

/// Rights that ride on the reply of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    pub inode: InodeId,
    pub rights: Rights,
    pub issue: Issue,
}

/// From the authority: give up these rights of every grant up to `issue`. From the client, as the
/// acknowledgement or unasked: they are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recall {
    pub inode: InodeId,
    pub rights: Rights,
    pub issue: Issue,
}
