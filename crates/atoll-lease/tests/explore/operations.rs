//! What a client may be asked for, reduced to what leases see of it: registers that
//! are read and written, claims, and what the answer earns. It follows
//! `atoll-volume/src/core/claims.rs`.

use atoll_lease::{Claim, Rights};
use atoll_types::InodeId;

pub const FILE: InodeId = InodeId(7);
pub const DIRECTORY: InodeId = InodeId(5);
pub const INODES: [InodeId; 2] = [FILE, DIRECTORY];

/// A register whose value is how often it was written. The name `f` of the directory stands for the file while the
/// value of `Names` is odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Thing {
    File,
    Directory,
    Names,
}

pub const THINGS: [Thing; 3] = [Thing::File, Thing::Directory, Thing::Names];

impl Thing {
    pub fn inode(self) -> InodeId {
        if self == Thing::File { FILE } else { DIRECTORY }
    }

    pub fn shared(self) -> Rights {
        if self == Thing::Names { Rights::NAMES } else { Rights::INODE }
    }

    pub fn exclusive(self) -> Rights {
        if self == Thing::Names { Rights::NAMES_EXCLUSIVE } else { Rights::INODE_EXCLUSIVE }
    }

    pub fn writer(self) -> Rights {
        self.exclusive() - self.shared()
    }
}

/// One value for each thing.
pub type Each<T> = [T; 3];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Attributes or bytes of the file.
    Read,
    Write,
    /// Attributes of the directory.
    Stat,
    /// Changes them.
    Change,
    Lookup,
    /// Makes the name, or opens what it stands for.
    Create,
    Unlink,
    /// The name goes, and whoever moves it learns nothing of what it stands for then.
    MoveAway,
    /// The kernel forgot the inode: what is held of it is given up unasked.
    Forget(InodeId),
    /// Write back what was written under exclusive rights.
    Flush(InodeId, Each<Option<u64>>),
}

impl Operation {
    /// It is numbered: executed once, its answer kept until the client has it.
    pub fn mutates(self) -> bool {
        !matches!(self, Operation::Read | Operation::Stat | Operation::Lookup)
    }
}

/// What an operation does when the names have this value.
#[derive(Default)]
pub struct Shape {
    pub claims: Vec<Claim>,
    pub reads: Vec<Thing>,
    pub writes: Vec<Thing>,
    /// In the order of the grants.
    pub earns: Vec<(InodeId, Rights)>,
}

pub fn exists(names: u64) -> bool {
    names % 2 == 1
}

/// `exclusive`: the authority grants writers exclusive rights, and they write back.
pub fn shape(operation: Operation, names: u64, exclusive: bool) -> Shape {
    use Thing::{Directory, File, Names};
    let claim = |inode, excludes| Claim { inode, excludes };
    let (inode, directory) = match exclusive {
        true => (Rights::INODE_EXCLUSIVE, Rights::ALL),
        false => (Rights::INODE, Rights::NAMES),
    };
    match operation {
        Operation::Read => Shape {
            claims: vec![claim(FILE, Rights::INODE_WRITER)],
            reads: vec![File],
            earns: vec![(FILE, Rights::INODE)],
            ..Shape::default()
        },
        Operation::Stat => Shape {
            claims: vec![claim(DIRECTORY, Rights::INODE_WRITER)],
            reads: vec![Directory],
            earns: vec![(DIRECTORY, Rights::INODE)],
            ..Shape::default()
        },
        Operation::Write => Shape {
            claims: vec![claim(FILE, Rights::INODE_EXCLUSIVE)],
            writes: vec![File],
            earns: vec![(FILE, inode)],
            ..Shape::default()
        },
        Operation::Change => Shape {
            claims: vec![claim(DIRECTORY, Rights::INODE_EXCLUSIVE)],
            writes: vec![Directory],
            earns: vec![(DIRECTORY, inode)],
            ..Shape::default()
        },
        Operation::Lookup | Operation::Create if exists(names) => Shape {
            claims: vec![claim(DIRECTORY, Rights::NAMES_WRITER), claim(FILE, Rights::INODE_WRITER)],
            reads: vec![Names, File],
            earns: if operation == Operation::Lookup {
                vec![(DIRECTORY, Rights::NAMES), (FILE, Rights::INODE)]
            } else {
                vec![(DIRECTORY, directory), (FILE, Rights::INODE)]
            },
            ..Shape::default()
        },
        Operation::Lookup => Shape {
            claims: vec![claim(DIRECTORY, Rights::NAMES_WRITER)],
            reads: vec![Names],
            earns: vec![(DIRECTORY, Rights::NAMES)],
            ..Shape::default()
        },
        Operation::Create => Shape {
            claims: vec![claim(DIRECTORY, Rights::ALL)],
            writes: vec![Names, Directory],
            earns: vec![(DIRECTORY, directory)],
            ..Shape::default()
        },
        Operation::Unlink | Operation::MoveAway if exists(names) => Shape {
            claims: vec![claim(DIRECTORY, Rights::ALL), claim(FILE, Rights::INODE_EXCLUSIVE)],
            writes: vec![Names, Directory, File],
            earns: vec![(DIRECTORY, directory)],
            ..Shape::default()
        },
        Operation::Unlink | Operation::MoveAway => {
            Shape { claims: vec![claim(DIRECTORY, Rights::ALL)], reads: vec![Names], ..Shape::default() }
        }
        Operation::Flush(inode, values) => {
            let written: Vec<Thing> = THINGS.into_iter().filter(|thing| values[*thing as usize].is_some()).collect();
            let excludes = written.iter().fold(Rights::NONE, |all, thing| all | thing.exclusive());
            Shape {
                claims: vec![claim(inode, excludes)],
                writes: written,
                earns: vec![(inode, Rights::INODE)],
                ..Shape::default()
            }
        }
        Operation::Forget(_) => Shape::default(),
    }
}
