//! The session loop and replies.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use atoll_types::Errno;

use crate::abi::{self, Body, Fields, Header};
use crate::adapter::VolumeFs;
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
}

impl Mounted {
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
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
    unique: u64,
    answered: bool,
}

impl Reply {
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
    }
}

/// Mount and serve in threads of its own.
pub fn mount(options: &MountOptions, filesystem: Arc<VolumeFs>) -> Result<Mounted, FuseError> {
    let device = mount::attach(options)?;
    let serve = || -> Result<Mounted, FuseError> {
        let mut device = device;
        let minor = initialise(&mut device, filesystem.lists_attributes())?;
        let mut threads = Vec::new();
        for _ in 1..options.threads.max(1) {
            let clone = Arc::new(clone_device(&device)?);
            let filesystem = filesystem.clone();
            threads.push(std::thread::spawn(move || run(&clone, &filesystem)));
        }
        let device = Arc::new(device);
        let notifier = Notifier::new(device.clone(), minor >= abi::MINOR_EPOCH, filesystem.uptake());
        threads.push(std::thread::spawn(move || run(&device, &filesystem)));
        Ok(Mounted { threads, notifier })
    };
    serve().inspect_err(|_| mount::abandon(&options.directory))
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
fn run(device: &Arc<File>, filesystem: &VolumeFs) {
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
        let reply = Reply { device: device.clone(), unique, answered: false };
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
