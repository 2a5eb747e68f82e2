//! Who executes what the kernel asks for.

use std::sync::Arc;
use std::time::Duration;

use atoll_client::{Answer, Chronicle, Client, Session};
use atoll_types::{Caller, Errno, FileKind, InodeId, Operation};

/// How long the kernel may use what an answer says without asking again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lifetimes {
    /// Of a name.
    pub entry: Duration,
    pub attributes: Duration,
}

impl Lifetimes {
    /// As good as infinite, and well inside what the kernel can count.
    pub const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
}

pub type Done = Box<dyn FnOnce(Answer) + Send>;

/// Who executes operations.
pub trait Remote: Send + Sync + 'static {
    /// `done` is called once, from any thread. `id` is even and names the request for `interrupt`.
    fn submit(&self, id: u64, caller: Caller, operation: Operation, done: Done);
    /// Fire and forget.
    fn tell(&self, operation: Operation);
    /// A signal came for the caller; one that `is_killed` will never look at the answer.
    /// False when there is no such request, or not yet.
    fn interrupt(&self, id: u64, is_killed: fn(u32) -> bool) -> bool;
    /// The kernel is about to be told of an inode once more.
    fn looked_up(&self, _inode: InodeId, _kind: FileKind) {}
    /// The kernel forgot inodes that it was told of so many times.
    fn forget(&self, _forgotten: &[(InodeId, u64)]) {}
    /// Why changes of an inode are lost that were answered before they were executed, once.
    fn lost(&self, _inode: InodeId) -> Option<Errno> {
        None
    }
    /// Whether the kernel may ever keep attributes, so that listings should carry them.
    fn keeps_attributes(&self) -> bool;
    /// Where it is noted what outlives this process.
    fn chronicle(&self) -> Option<Arc<Chronicle>> {
        None
    }
}

impl Remote for Client {
    fn submit(&self, id: u64, caller: Caller, operation: Operation, done: Done) {
        Client::submit(self, id, caller, operation, done);
    }

    fn tell(&self, operation: Operation) {
        Client::tell(self, operation);
    }

    fn interrupt(&self, id: u64, is_killed: fn(u32) -> bool) -> bool {
        Client::interrupt(self, id, is_killed)
    }

    fn looked_up(&self, inode: InodeId, kind: FileKind) {
        Client::looked_up(self, inode, kind);
    }

    fn forget(&self, forgotten: &[(InodeId, u64)]) {
        Client::forget(self, forgotten);
    }

    fn lost(&self, inode: InodeId) -> Option<Errno> {
        Client::lost(self, inode)
    }

    fn keeps_attributes(&self) -> bool {
        true
    }

    fn chronicle(&self) -> Option<Arc<Chronicle>> {
        Client::chronicle(self).cloned()
    }
}

/// A session without leases whose answers the kernel keeps for fixed times. They are true only while nobody
/// else changes the volume, or with lifetimes of zero.
pub struct WithoutLeases {
    pub session: Arc<Session>,
    pub lifetimes: Lifetimes,
}

impl Remote for WithoutLeases {
    fn submit(&self, id: u64, caller: Caller, operation: Operation, done: Done) {
        let lifetimes = self.lifetimes;
        let done = move |result| done(fixed(result, lifetimes));
        self.session.submit(id, caller, operation, Box::new(done));
    }

    fn tell(&self, operation: Operation) {
        self.session.tell(operation);
    }

    fn interrupt(&self, id: u64, is_killed: fn(u32) -> bool) -> bool {
        self.session.interrupt(id, is_killed)
    }

    fn keeps_attributes(&self) -> bool {
        !self.lifetimes.attributes.is_zero()
    }
}

/// An answer that may be kept for fixed times.
pub(crate) fn fixed(
    result: Result<atoll_types::Outcome, atoll_types::Errno>,
    Lifetimes { entry, attributes }: Lifetimes,
) -> Answer {
    let listed = match &result {
        Ok(atoll_types::Outcome::Listing { entries, .. }) => vec![attributes; entries.len()],
        _ => Vec::new(),
    };
    Answer { result, entry, attributes, listed }
}
