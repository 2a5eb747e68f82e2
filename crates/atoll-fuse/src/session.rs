//! The session loop, replies, and the way from one process image to the next.
//!
//! A mount is handed over without the kernel's taking notice: the connection's descriptors outlive an `exec`. Before it,
//! the gate is closed: a request that is read then stays in its thread's hand, and what was read before is answered.
//! What is not (waits for locks) the kernel sends again when the next image asks for it.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use atoll_types::Errno;
use serde::{Deserialize, Serialize};

use crate::abi::{self, Body, Fields, Header};
use crate::adapter::VolumeFs;
use crate::gate::Gate;
use crate::mount::{self, FuseError, MountOptions};
use crate::notify::Notifier;

/// Largest read and write, in bytes.
pub(crate) const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Room for a write and its headers.
const REQUEST_BYTES_MAX: usize = WRITE_BYTES_MAX as usize + 64 * 1024;
/// Oldest minor version of the protocol that is spoken (Linux 5.4).
const MINOR_MIN: u32 = 31;

/// A served mount.
pub struct Mounted {
    threads: Vec<std::thread::JoinHandle<()>>,
    notifier: Notifier,
    connection: Arc<Connection>,
}

/// What the next process image needs to serve a mount: the numbers of its open descriptors, and the kernel's minor
/// version of the protocol.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inherited {
    devices: Vec<i32>,
    minor: u32,
}

/// The connection to the kernel, and what goes over it.
pub struct Connection {
    devices: Vec<Arc<File>>,
    minor: u32,
    /// Inside are those that were taken up and have no answer, but for waits of any length.
    requests: Gate,
    /// Words to the kernel about what it keeps. Such a word may wait for a lock that a request holds.
    notices: Arc<Gate>,
}

impl Connection {
    /// Take up no more requests, and wait until those that were have their answers. False when some have none in time.
    pub fn close(&self, timeout: Duration) -> bool {
        self.requests.close(timeout)
    }

    /// Tell the kernel nothing more. False when something that it is told takes too long: it may be waiting for a request
    /// that was not taken up.
    pub fn silence(&self, timeout: Duration) -> bool {
        self.notices.close(timeout)
    }

    /// Go on after [`Connection::close`] and [`Connection::silence`].
    pub fn open(&self) {
        self.notices.open();
        self.requests.open();
    }

    /// Whether the kernel sends requests again that were not answered.
    pub fn can_be_handed_over(&self) -> bool {
        self.minor >= abi::MINOR_RESEND
    }

    /// Further descriptors, which a child of this process inherits as long as they are kept.
    pub fn share(&self) -> std::io::Result<(Inherited, Vec<OwnedFd>)> {
        let copies = self.devices.iter().map(|device| rustix::io::dup(&**device));
        let copies: Vec<OwnedFd> = copies.collect::<Result<_, _>>()?;
        Ok((Inherited { devices: copies.iter().map(AsRawFd::as_raw_fd).collect(), minor: self.minor }, copies))
    }

    /// Let the descriptors outlive an `exec`.
    pub fn inherit(&self) -> std::io::Result<Inherited> {
        for device in &self.devices {
            rustix::io::fcntl_setfd(&**device, rustix::io::FdFlags::empty())?;
        }
        Ok(Inherited { devices: self.devices.iter().map(|device| device.as_raw_fd()).collect(), minor: self.minor })
    }
}

impl Mounted {
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    pub fn connection(&self) -> Arc<Connection> {
        self.connection.clone()
    }

    /// Wait until it is unmounted.
    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// The answer to one request. Dropped without one, it answers `EIO`.
pub(crate) struct Reply {
    device: Arc<File>,
    connection: Arc<Connection>,
    unique: u64,
    answered: bool,
    counts: bool,
}

impl Reply {
    /// The request may wait for any time: the mount can be handed over before it is answered.
    pub fn may_wait(&mut self) {
        if std::mem::take(&mut self.counts) {
            self.connection.requests.leave();
        }
    }

    fn write(&mut self, error: i32, parts: &[&[u8]]) {
        self.answered = true;
        let length = 16 + parts.iter().map(|p| p.len()).sum::<usize>();
        let header = Body::default().u32(length as u32).u32(error as u32).u64(self.unique);
        let mut slices = vec![IoSlice::new(&header.0)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        if let Err(error) = rustix::io::writev(&*self.device, &slices)
            // The request was interrupted, or the mount is gone.
            && error != rustix::io::Errno::NOENT
            && error != rustix::io::Errno::NODEV
        {
            tracing::warn!(%error, "cannot answer the kernel");
        }
    }

    pub fn ok(mut self, body: Body) {
        self.write(0, &[&body.0]);
    }

    pub fn bytes(mut self, bytes: &[u8]) {
        self.write(0, &[bytes]);
    }

    pub fn error(mut self, errno: Errno) {
        self.write(-i32::from(errno.0), &[]);
    }

    /// A request that has no answer.
    pub fn nothing(mut self) {
        self.answered = true;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.write(-i32::from(Errno::EIO.0), &[]);
        }
        self.may_wait();
    }
}

/// Mount and serve in threads of its own.
pub fn mount(options: &MountOptions, filesystem: Arc<VolumeFs>) -> Result<Mounted, FuseError> {
    let device = mount::attach(options)?;
    let open = || -> Result<Mounted, FuseError> {
        let mut device = device;
        let minor = initialise(&mut device, filesystem.lists_attributes())?;
        mount::read_ahead(&options.directory);
        let mut devices = Vec::new();
        for _ in 1..options.threads.max(1) {
            devices.push(clone_device(&device)?);
        }
        devices.push(device);
        Ok(serve(devices, minor, filesystem))
    };
    open().inspect_err(|_| mount::abandon(&options.directory))
}

/// A descriptor that the image of this process before left open, by the number that it told. Once for each number.
pub fn inherited(number: i32) -> File {
    // SAFETY: the image before left it open for this call alone; nothing else in this process knows the number.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    let _ = rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC);
    descriptor.into()
}

/// Serve a mount that the image of this process before has served. Once for each such image.
pub fn take_over(connection: &Inherited, filesystem: Arc<VolumeFs>) -> Mounted {
    let devices = connection.devices.iter().map(|number| inherited(*number)).collect();
    let mounted = serve(devices, connection.minor, filesystem);
    mounted.notifier.resend();
    mounted
}

fn serve(devices: Vec<File>, minor: u32, filesystem: Arc<VolumeFs>) -> Mounted {
    let devices: Vec<Arc<File>> = devices.into_iter().map(Arc::new).collect();
    let notices = Arc::<Gate>::default();
    let notifier = Notifier::new(devices[0].clone(), minor >= abi::MINOR_EPOCH, &filesystem, notices.clone());
    let connection = Arc::new(Connection { devices, minor, requests: Gate::default(), notices });
    let threads = connection.devices.iter().map(|device| {
        let (device, connection, filesystem) = (device.clone(), connection.clone(), filesystem.clone());
        std::thread::spawn(move || run(&device, &connection, &filesystem))
    });
    Mounted { threads: threads.collect(), notifier, connection }
}

/// A further descriptor of the same connection, with a queue of its own.
fn clone_device(device: &File) -> Result<File, FuseError> {
    const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;
    let clone = File::options().read(true).write(true).open("/dev/fuse").map_err(FuseError::Device)?;
    let source = device.as_raw_fd() as u32;
    // SAFETY: the kernel reads one u32 behind the pointer, which lives across the call.
    let done = unsafe { libc::ioctl(clone.as_raw_fd(), FUSE_DEV_IOC_CLONE as _, &source) };
    if done != 0 {
        return Err(FuseError::Session(std::io::Error::last_os_error()));
    }
    let owned: OwnedFd = clone.into();
    Ok(owned.into())
}

/// Agree on the protocol; answers the kernel's minor version.
fn initialise(device: &mut File, list_attributes: bool) -> Result<u32, FuseError> {
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    let length = device.read(&mut buffer).map_err(FuseError::Session)?;
    let malformed = || FuseError::Session(std::io::Error::other("the kernel did not introduce itself"));
    let (header, body) = abi::parse(&buffer[..length]).ok_or_else(malformed)?;
    let mut f = Fields::new(body);
    let (major, minor, readahead, low, high) = (f.u32(), f.u32(), f.u32(), f.u32(), f.u32());
    if header.opcode != abi::INIT || major != 7 {
        return Err(malformed());
    }
    if minor < MINOR_MIN {
        return Err(FuseError::Old(minor));
    }
    let offered = u64::from(low) | u64::from(high) << 32;
    let wanted = if list_attributes { abi::FLAGS | abi::LIST_ATTRIBUTES } else { abi::FLAGS };
    let flags = offered & wanted;
    let pages = (WRITE_BYTES_MAX / 4096) as u16;
    let mut reply = Body::default()
        .u32(7)
        .u32(minor.min(40))
        .u32(readahead.min(WRITE_BYTES_MAX))
        .u32(flags as u32)
        .u16(64)
        .u16(48)
        .u32(WRITE_BYTES_MAX)
        .u32(1)
        .u16(pages)
        .u16(0)
        .u32((flags >> 32) as u32);
    reply.0.resize(64, 0);
    let header = Body::default().u32(16 + 64).u32(0).u64(header.unique);
    rustix::io::writev(&*device, &[IoSlice::new(&header.0), IoSlice::new(&reply.0)])
        .map_err(|error| FuseError::Session(error.into()))?;
    Ok(minor)
}

/// Read requests until the mount is gone.
fn run(device: &Arc<File>, connection: &Arc<Connection>, filesystem: &VolumeFs) {
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    loop {
        let length = match rustix::io::read(&**device, &mut buffer) {
            Ok(length) => length,
            Err(rustix::io::Errno::NODEV) => return,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::NOENT) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot read from the kernel");
                return;
            }
        };
        let Some((header, body)) = abi::parse(&buffer[..length]) else {
            tracing::error!("malformed request from the kernel");
            continue;
        };
        let Header { opcode, unique, .. } = header;
        if !matches!(opcode, abi::FORGET | abi::BATCH_FORGET | abi::INTERRUPT) {
            connection.requests.enter();
        } else {
            connection.requests.force();
        }
        let (device, connection) = (device.clone(), connection.clone());
        let reply = Reply { device, connection, unique, answered: false, counts: true };
        match opcode {
            abi::FORGET | abi::BATCH_FORGET => {
                filesystem.forget(header, body);
                reply.nothing();
            }
            abi::INTERRUPT => match filesystem.interrupt(Fields::new(body).u64()) {
                true => reply.nothing(),
                // Not submitted yet, or answered already: the kernel sends it again or forgets it.
                false => reply.error(Errno::EAGAIN),
            },
            abi::DESTROY => reply.ok(Body::default()),
            _ => filesystem.dispatch(header, body, reply),
        }
    }
}
