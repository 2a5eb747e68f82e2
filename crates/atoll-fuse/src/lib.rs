//! The FUSE mount: the kernel's protocol, the session loop, and the adapter that
//! turns the kernel's requests into operations of a volume.
//!
//! Invariant: every request of the kernel is answered exactly once; a reply that
//! is dropped answers `EIO`. No file-system rule lives here. Read `session` for
//! the loop and `adapter` for the meaning of each request. This is the only
//! crate with `unsafe`: one system call that has no safe wrapper, and descriptors
//! that an image of the process inherits.

mod abi;
mod adapter;
mod gate;
mod lookups;
mod mount;
mod notify;
mod null;
mod remote;
mod session;
mod threads;
mod uptake;

pub use adapter::{FsState, VolumeFs};
pub use mount::{FuseError, MountOptions, abandon, unmount};
pub use notify::{KernelCaches, Notifier};
pub use null::NullRemote;
pub use remote::{Lifetimes, Remote, WithoutLeases};
pub use session::{Connection, Inherited, Mounted, inherited, mount, take_over};
