//! The vocabulary that every stage shares: newtypes, inode attributes,
//! file-system operations and their outcomes, errors, limits. No I/O.
//!
//! [`operation::Operation`] is the heart: one value describes one
//! file-system call, whoever makes it (the kernel through FUSE, the command
//! line, a property test, a replay). The wire encodes it, the volume executes
//! it, the reference model checks it.

pub mod attributes;
pub mod errno;
pub mod ids;
pub mod limits;
pub mod locks;
#[doc(hidden)]
pub mod mutation;
pub mod name;
pub mod operation;
pub mod range;
pub mod time;

pub use attributes::{Attributes, FileKind, Mode};
pub use errno::Errno;
pub use ids::{CommitSeq, Epoch, InodeId, JournalPosition, LockOwner, OperationSeq, SegmentId, SessionId};
pub use name::{Hidden, Name};
pub use operation::{Caller, Made, Operation, Outcome};
pub use range::ByteRange;
pub use time::Timestamp;
