//! Mounting and unmounting: by the system call for root, by `fusermount3` for others.

use std::ffi::CString;
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use crate::session::WRITE_BYTES_MAX;

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    pub directory: PathBuf,
    /// What `mount` shows as the source.
    pub source: String,
    /// Let other users in; permissions are checked either way.
    pub allow_other: bool,
    pub read_only: bool,
    pub no_suid: bool,
    pub no_devices: bool,
    pub no_exec: bool,
    pub no_access_times: bool,
    /// Threads that read requests; at least one is started.
    pub threads: usize,
}

/// Why a mount failed; every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    #[error("cannot open /dev/fuse: {0}: load the fuse module, or give the container the device")]
    Device(std::io::Error),
    #[error("cannot mount on {directory}: {reason}")]
    Mount { directory: String, reason: String },
    #[error("cannot unmount {directory}: {reason}")]
    Unmount { directory: String, reason: String },
    #[error("the kernel's FUSE protocol 7.{0} is too old: Linux 5.4 or later is needed")]
    Old(u32),
    #[error("session: {0}")]
    Session(std::io::Error),
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Mount and give back the connection to the kernel.
/// What the kernel reads ahead of a sequential reader, in KiB. Left alone it is 128, and each of them waits for an answer.
const READ_AHEAD_KIB: u32 = 1024;

/// Set it, where that is allowed: to root. Nobody serves the mount yet.
pub(crate) fn read_ahead(directory: &Path) {
    let set = || {
        let of = rustix::fs::statx(CWD, directory, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
        let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", of.stx_dev_major, of.stx_dev_minor);
        std::fs::write(path, READ_AHEAD_KIB.to_string())
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "the kernel reads ahead as far as it does by itself");
    }
}

pub(crate) fn attach(options: &MountOptions) -> Result<File, FuseError> {
    if is_root() { by_system_call(options) } else { by_helper(options) }
}

fn refuse(options: &MountOptions, reason: impl ToString) -> FuseError {
    FuseError::Mount { directory: options.directory.display().to_string(), reason: reason.to_string() }
}

fn by_system_call(options: &MountOptions) -> Result<File, FuseError> {
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(FuseError::Device)?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={WRITE_BYTES_MAX}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|error| refuse(options, error))?;
    let wanted = [
        (options.read_only, MountFlags::RDONLY),
        (options.no_suid, MountFlags::NOSUID),
        (options.no_devices, MountFlags::NODEV),
        (options.no_exec, MountFlags::NOEXEC),
        (options.no_access_times, MountFlags::NOATIME),
    ];
    let mut flags = MountFlags::empty();
    for (_, flag) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
        flags |= flag;
    }
    rustix::mount::mount(options.source.as_str(), &options.directory, "fuse.atoll", flags, Some(data.as_c_str()))
        .map_err(|error| match error {
            rustix::io::Errno::PERM => refuse(options, "the process may not mount (CAP_SYS_ADMIN is missing)"),
            error => refuse(options, error),
        })?;
    Ok(device)
}

/// `fusermount3` mounts and sends the descriptor back over a socket.
fn by_helper(options: &MountOptions) -> Result<File, FuseError> {
    let wanted = [
        (options.allow_other, "allow_other"),
        (options.read_only, "ro"),
        (options.no_exec, "noexec"),
        (options.no_access_times, "noatime"),
    ];
    // A comma would end it.
    let source = options.source.replace('\\', r"\\").replace(',', r"\,");
    let mut text = format!("fsname={source},subtype=atoll,default_permissions,max_read={WRITE_BYTES_MAX},nosuid,nodev");
    for (_, option) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
        text.push(',');
        text.push_str(option);
    }
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| FuseError::Session(error.into()))?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|error| FuseError::Session(error.into()))?;
    let child = Command::new("fusermount3")
        .arg("-o")
        .arg(text)
        .arg("--")
        .arg(&options.directory)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            refuse(options, format!("fusermount3: {error}: install the package fuse3, or mount as root"))
        })?;
    drop(theirs);
    let received = receive(&ours);
    let output = child.wait_with_output().map_err(FuseError::Session)?;
    match received {
        Some(device) if output.status.success() => Ok(device.into()),
        _ => Err(refuse(options, String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// Detach a mount that is not in use.
pub fn unmount(directory: &Path) -> Result<(), FuseError> {
    let refuse = |reason: String| FuseError::Unmount { directory: directory.display().to_string(), reason };
    const BUSY: &str = "it is in use: close what is open in it (`fuser -m` shows it)";
    if is_root() {
        return rustix::mount::unmount(directory, UnmountFlags::empty()).map_err(|error| match error {
            rustix::io::Errno::BUSY => refuse(BUSY.into()),
            error => refuse(error.to_string()),
        });
    }
    let output = Command::new("fusermount3").args(["-u", "--"]).arg(directory).stdin(Stdio::null()).output();
    let output = output.map_err(|error| refuse(format!("fusermount3: {error}: install the package fuse3")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(refuse(BUSY.into())),
        false => Err(refuse(said.trim().to_owned())),
    }
}

/// Detach whatever state the mount is in; what is open in it fails from now on, and who waits for it waits no
/// more.
pub fn abandon(directory: &Path) {
    if is_root() {
        let _ = rustix::mount::unmount(directory, UnmountFlags::FORCE | UnmountFlags::DETACH);
    } else {
        let _ = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(directory).stdin(Stdio::null()).output();
    }
}
