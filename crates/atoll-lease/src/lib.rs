//! The lease protocol: what a client may answer from its own memory, and how
//! that right is taken back. Pure state machines; time is an argument.
//!
//! Invariant: while a session holds a right and has not given it up, no
//! operation of another session that the right excludes is executed. So what a
//! holder answers from memory is what the authority would answer.
//!
//! [`Authority`] is the server's side: it grants, and finds out whom an operation
//! has to wait for. [`Holding`] is the client's side of one inode: it takes grants
//! and recalls in whatever order they arrive; [`Leaving`] says when recalls are
//! answered. `docs/leases.md` has the pictures, `tests/explore.rs` goes through every
//! order of events.
//!
//! [`locks`] is the table of advisory locks, which both sides decide with.

mod authority;
mod holding;
mod leaving;
pub mod locks;
mod rights;

pub use authority::{Authority, Claim, Counts, HolderInfo, Limits, Notice, WaiterId};
pub use holding::Holding;
pub use leaving::Leaving;
pub use rights::{Grant, Issue, Recall, Rights};
