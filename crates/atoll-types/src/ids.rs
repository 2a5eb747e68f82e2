//! Identifiers. No bare `u64` crosses a crate boundary.

use std::fmt;

use crate::limits;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

id!(
    /// Number of an inode: 16 bits that are 0 in the volume itself, or the number of a snapshot; then a 48-bit counter.
    /// Never reused in its volume.
    InodeId,
    "i"
);
id!(
    /// One client's session with one volume, chosen by the server.
    SessionId,
    "s"
);
id!(
    /// Generation of a volume's authority. A commit of an older epoch fails.
    Epoch,
    "e"
);
id!(
    /// Number of a mutation inside its session: 1, 2, 3 … 0 means unnumbered.
    OperationSeq,
    "o"
);
id!(
    /// Position of a change in the journal of a session's client: 1, 2, 3 … 0 is before the first.
    JournalPosition,
    "j"
);
id!(
    /// Position of a commit in the volume's log. Grows by at least one a commit.
    CommitSeq,
    "c"
);
id!(
    /// An immutable object that packs file bytes. Never reused.
    SegmentId,
    "g"
);
id!(
    /// Owner of advisory locks inside a session, as the kernel names it.
    LockOwner,
    "l"
);

/// Reads what `Display` writes.
impl std::str::FromStr for SessionId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('s').and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.map(SessionId).ok_or_else(|| format!("`{text}` is no session: give it as it is shown, like s1b56"))
    }
}

impl SegmentId {
    /// No segment: the object whose bytes a linked file has where it was not written since.
    pub const BASE: SegmentId = SegmentId(u64::MAX);
}

impl InodeId {
    /// The root directory of every volume (the number FUSE reserves for it).
    pub const ROOT: InodeId = InodeId(1);
    /// No inode's.
    pub const NONE: InodeId = InodeId(0);
    /// In a compound request: the inode that the operation before this one returned.
    pub const PREVIOUS: InodeId = InodeId(u64::MAX);
    /// The directory that shows the snapshots ([`Name::is_hidden`](crate::Name::is_hidden)): in no store.
    pub const SNAPSHOTS: InodeId = InodeId(Self::COUNTER_MAX - 1);
    /// The directory of what lost its last name, once there was something ([`Name::is_hidden`](crate::Name::is_hidden)).
    pub const TRASH: InodeId = InodeId(Self::COUNTER_MAX);
    const COUNTER_BITS: u32 = 48;
    const COUNTER_MAX: u64 = (1 << Self::COUNTER_BITS) - 1;

    /// The snapshot through which it is seen, if it is not the volume's own.
    pub fn snapshot(self) -> Option<u16> {
        let number = (self.0 >> Self::COUNTER_BITS) as u16;
        (1..=limits::SNAPSHOT_NUMBER_MAX).contains(&number).then_some(number)
    }

    /// An inode of the volume as it is seen through a snapshot.
    pub fn in_snapshot(self, number: u16) -> InodeId {
        InodeId(u64::from(number) << Self::COUNTER_BITS | self.in_volume().0)
    }

    /// Its own number, in the volume or in a snapshot.
    pub fn in_volume(self) -> InodeId {
        InodeId(self.0 & Self::COUNTER_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_in_a_snapshot_is_none_of_the_volume() {
        assert_eq!(InodeId(7).snapshot(), None);
        assert_eq!(InodeId::SNAPSHOTS.snapshot(), None);
        assert_eq!(InodeId::PREVIOUS.snapshot(), None);
        for number in [1, limits::SNAPSHOT_NUMBER_MAX] {
            for inode in [InodeId::ROOT, InodeId(7), InodeId::SNAPSHOTS] {
                let seen = inode.in_snapshot(number);
                assert_eq!((seen.snapshot(), seen.in_volume()), (Some(number), inode));
            }
        }
    }

    #[test]
    fn a_session_reads_back_as_it_is_shown() {
        for number in [0, 0x1b56, u64::MAX] {
            assert_eq!(SessionId(number).to_string().parse(), Ok(SessionId(number)));
        }
        for bad in ["", "s", "1b56", "sx", "s10000000000000000"] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
    }
}
