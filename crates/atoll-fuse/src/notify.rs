//! Telling the kernel that what it keeps is no longer true.
//!
//! A name is dropped under the lock of its directory, which a request in flight may
//! hold for as long as it takes: call from a thread that serves no request. Two
//! mounts that each make a name in one directory hold such locks and wait for each
//! other; so a name that is not dropped in time is dropped with all others at once,
//! which needs no lock.
//!
//! A name of a directory is not dropped but expires, if it can: see [`crate::lookups`].

use std::fs::File;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use atoll_client::{Kernel, OldName};
use atoll_types::{InodeId, Name};
use parking_lot::Mutex;

use crate::abi::{self, Body};
use crate::adapter::VolumeFs;
use crate::gate::Gate;
use crate::lookups::Lookups;
use crate::uptake::Uptake;

/// Sends to the kernel of one mount.
#[derive(Clone)]
pub struct Notifier {
    device: Arc<File>,
    has_epochs: bool,
    uptake: Option<Arc<Uptake>>,
    lookups: Arc<Lookups>,
    gate: Arc<Gate>,
    root: InodeId,
}

impl Notifier {
    pub(crate) fn new(device: Arc<File>, has_epochs: bool, filesystem: &VolumeFs, gate: Arc<Gate>) -> Self {
        let (uptake, lookups) = (filesystem.uptake(), filesystem.lookups());
        Notifier { device, has_epochs, uptake, lookups, gate, root: filesystem.root() }
    }

    /// How the kernel calls it.
    fn node(&self, inode: InodeId) -> u64 {
        abi::node(inode, self.root)
    }

    /// Attributes and all cached bytes of an inode; waits for reads of it that are in flight. False when the kernel
    /// does not know the inode.
    pub fn inode(&self, inode: InodeId) -> std::io::Result<bool> {
        self.send(abi::NOTIFY_INVAL_INODE, Body::default().u64(self.node(inode)).u64(0).u64(0), &[])
    }

    /// Attributes alone, without waiting for anything. False when the kernel does not know the inode.
    pub fn attributes(&self, inode: InodeId) -> std::io::Result<bool> {
        const NO_BYTES: u64 = -1i64 as u64;
        self.send(abi::NOTIFY_INVAL_INODE, Body::default().u64(self.node(inode)).u64(NO_BYTES).u64(0), &[])
    }

    /// What a name stands for, that it is not there included. A directory has no path until it is looked up again, and
    /// what is mounted on it is unmounted.
    pub fn entry(&self, parent: InodeId, name: &Name) -> std::io::Result<bool> {
        self.old_entry(parent, name, 0)
    }

    /// Let a name expire: it is asked for when it is used again. A lookup of it that was answered may be taken in later,
    /// with the right to keep the name.
    pub fn expire(&self, parent: InodeId, name: &Name) -> std::io::Result<bool> {
        self.old_entry(parent, name, abi::EXPIRE_ONLY)
    }

    fn old_entry(&self, parent: InodeId, name: &Name, flags: u32) -> std::io::Result<bool> {
        let name = name.as_bytes();
        let body = Body::default().u64(self.node(parent)).u32(name.len() as u32).u32(flags);
        self.send(abi::NOTIFY_INVAL_ENTRY, body, name)
    }

    /// The same in the way that suits what it stood for.
    fn old_name(&self, parent: InodeId, OldName { name, is_directory }: &OldName) -> std::io::Result<bool> {
        match *is_directory && !self.lookups.is_under_way(parent, name) {
            true => self.expire(parent, name),
            false => self.entry(parent, name),
        }
    }

    /// A name was removed with what it stood for: who works in it is told.
    pub fn deleted(&self, parent: InodeId, inode: InodeId, name: &Name) -> std::io::Result<bool> {
        let name = name.as_bytes();
        let body = Body::default().u64(self.node(parent)).u64(self.node(inode)).u32(name.len() as u32).u32(0);
        self.send(abi::NOTIFY_DELETE, body, name)
    }

    /// All names at once, without waiting for anything.
    pub fn all_names(&self) -> std::io::Result<bool> {
        self.send(abi::NOTIFY_INC_EPOCH, Body::default(), &[])
    }

    /// Have the kernel send again what was read and not answered.
    pub(crate) fn resend(&self) {
        report(self.send(abi::NOTIFY_RESEND, Body::default(), &[]));
    }

    /// False when the kernel keeps nothing of it.
    fn send(&self, code: i32, body: Body, name: &[u8]) -> std::io::Result<bool> {
        let end: &[u8] = if name.is_empty() { &[] } else { &[0] };
        let length = 16 + body.0.len() + name.len() + end.len();
        let header = Body::default().u32(length as u32).u32(code as u32).u64(0);
        let parts = [&header.0[..], &body.0, name, end].map(IoSlice::new);
        self.gate.enter();
        let written = rustix::io::writev(&*self.device, &parts);
        self.gate.leave();
        match written {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Threads that may be stuck behind directories' locks at a time; then names are dropped all at once.
const NAME_THREADS_MAX: usize = 64;
/// How long a directory's lock is waited for.
const NAMES_TIMEOUT: Duration = Duration::from_millis(20);
/// How long a lookup is waited for that may be making the kernel's inode right now.
const INODE_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a listing is waited for whose names the kernel may be taking in; it holds its directory's lock.
const LISTING_TIMEOUT: Duration = Duration::from_millis(200);
/// More names than this are dropped all at once.
const NAMES_ONE_BY_ONE_MAX: usize = 1024;

struct Job {
    directory: InodeId,
    names: Vec<OldName>,
    done: Sender<()>,
}

/// What the kernel of one mount keeps under leases.
pub struct KernelCaches {
    notifier: Notifier,
    jobs: Sender<Job>,
    queue: Arc<Mutex<Receiver<Job>>>,
    /// Threads, and jobs that none of them has finished.
    load: Arc<Mutex<(usize, usize)>>,
}

impl KernelCaches {
    pub fn new(notifier: Notifier) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        KernelCaches { notifier, jobs, queue: Arc::new(Mutex::new(queue)), load: Arc::default() }
    }

    /// `tell` the kernel that attributes are old, if it may keep some; false when it does not know the inode.
    fn tell_old(&self, inode: InodeId, tell: impl FnOnce() -> bool) {
        match &self.notifier.uptake {
            None => drop(tell()),
            Some(uptake) if uptake.tells_old(inode) => match tell() {
                true => uptake.told_old(inode),
                false => uptake.forget(inode),
            },
            Some(_) => {}
        }
    }

    /// True when the names were dropped in time. If not, all names are dropped when they are.
    fn one_by_one(&self, directory: InodeId, names: Vec<OldName>, timeout: Duration) -> bool {
        self.start(directory, names).recv_timeout(timeout).is_ok()
    }

    /// True when the kernel has taken in, in time, what it was given of these directories: it holds their locks
    /// meanwhile. If not, all names are dropped when it has.
    fn settle(&self, directories: Vec<InodeId>, timeout: Duration) -> bool {
        let taken: Vec<_> = directories.into_iter().map(|directory| self.start(directory, vec![any_name()])).collect();
        let end = Instant::now() + timeout;
        taken.iter().all(|taken| taken.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok())
    }

    /// Drop names; answers when that is done.
    fn start(&self, directory: InodeId, names: Vec<OldName>) -> Receiver<()> {
        {
            let mut load = self.load.lock();
            load.1 += 1;
            if load.0 < load.1 && load.0 < NAME_THREADS_MAX {
                load.0 += 1;
                let (notifier, queue, load) = (self.notifier.clone(), self.queue.clone(), self.load.clone());
                std::thread::spawn(move || drop_names(&notifier, &queue, &load));
            }
        }
        let (done, dropped) = mpsc::channel();
        let _ = self.jobs.send(Job { directory, names, done });
        dropped
    }
}

fn drop_names(notifier: &Notifier, queue: &Mutex<Receiver<Job>>, load: &Mutex<(usize, usize)>) {
    loop {
        let next = queue.lock().recv();
        let Ok(Job { directory, names, done }) = next else { return };
        for name in &names {
            report(notifier.old_name(directory, name));
        }
        load.lock().1 -= 1;
        if done.send(()).is_err() && notifier.has_epochs {
            // Who waited has dropped all names instead, but not those of a listing that was taken in since.
            report(notifier.all_names());
        }
    }
}

/// One that is as good as any to wait for a directory's lock.
fn any_name() -> OldName {
    OldName { name: Name::new(&b"\x01"[..]).expect("a name"), is_directory: false }
}

fn report(result: std::io::Result<bool>) -> bool {
    result.unwrap_or_else(|error| {
        // A mount that is gone keeps nothing.
        if error.raw_os_error() != Some(libc::ENODEV) && error.raw_os_error() != Some(libc::ENOTCONN) {
            tracing::warn!(%error, "cannot tell the kernel");
        }
        false
    })
}

impl Kernel for KernelCaches {
    fn keeps_names(&self) -> bool {
        self.notifier.has_epochs
    }

    fn drop_names(&self, directory: InodeId, names: Vec<OldName>, busy: bool, shown: bool) {
        if shown {
            self.settle(vec![directory], LISTING_TIMEOUT);
        }
        if busy || names.len() > NAMES_ONE_BY_ONE_MAX || !self.one_by_one(directory, names, NAMES_TIMEOUT) {
            self.drop_all_names();
        }
    }

    fn drop_all_names(&self) {
        // Without epochs the kernel was never told to keep a name.
        if self.notifier.has_epochs {
            report(self.notifier.all_names());
        }
    }

    fn drop_attributes(&self, inode: InodeId, via: Option<InodeId>, busy: bool) {
        self.tell_old(inode, || {
            // The bytes too, if nothing holds their pages.
            let dropped = if busy { self.notifier.attributes(inode) } else { self.notifier.inode(inode) };
            if report(dropped) {
                return true;
            }
            // The kernel does not know the inode, or a lookup that was answered is just making it: such a lookup holds
            // its directory's lock, so behind that lock it is made.
            if let Some(directory) = via {
                self.one_by_one(directory, vec![any_name()], INODE_TIMEOUT);
            } else {
                std::thread::sleep(NAMES_TIMEOUT);
            }
            report(self.notifier.attributes(inode))
        });
    }

    fn settles(&self, directories: Vec<InodeId>) -> bool {
        self.settle(directories, LISTING_TIMEOUT)
    }

    fn drop_everything(&self, inodes: Vec<InodeId>, shown: Vec<InodeId>) {
        self.settle(shown, NAMES_TIMEOUT);
        self.drop_all_names();
        for inode in inodes {
            self.tell_old(inode, || report(self.notifier.attributes(inode)));
        }
    }
}
