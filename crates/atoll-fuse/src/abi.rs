//! Numbers and layouts of the kernel protocol (linux/fuse.h, protocol 7.31 and later).

use atoll_types::{Attributes, Caller, InodeId, Timestamp};

use crate::remote::Lifetimes;

/// What the kernel calls by this number; `root` is the directory that it knows as the mount's root.
pub fn inode(node: u64, root: InodeId) -> InodeId {
    if node == InodeId::ROOT.0 { root } else { InodeId(node) }
}

/// How the kernel calls it.
pub fn node(inode: InodeId, root: InodeId) -> u64 {
    if inode == root { InodeId::ROOT.0 } else { inode.0 }
}

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const REMOVEXATTR: u32 = 24;
pub const FLUSH: u32 = 25;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const RELEASEDIR: u32 = 29;
pub const FSYNCDIR: u32 = 30;
pub const GETLK: u32 = 31;
pub const SETLK: u32 = 32;
pub const SETLKW: u32 = 33;
pub const CREATE: u32 = 35;
pub const INTERRUPT: u32 = 36;
pub const DESTROY: u32 = 38;
pub const IOCTL: u32 = 39;
pub const BATCH_FORGET: u32 = 42;
pub const FALLOCATE: u32 = 43;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;
pub const COPY_FILE_RANGE: u32 = 47;
pub const SYNCFS: u32 = 50;
pub const TMPFILE: u32 = 51;
pub const STATX: u32 = 52;
pub const READDIRPLUS: u32 = 44;

pub const NOTIFY_INVAL_INODE: i32 = 2;
pub const NOTIFY_INVAL_ENTRY: i32 = 3;
/// In the flags of [`NOTIFY_INVAL_ENTRY`] (Linux 6.2; older kernels do not look at them): the name is to be looked up again, and stays.
pub const EXPIRE_ONLY: u32 = 1;
pub const NOTIFY_DELETE: i32 = 6;
pub const NOTIFY_RESEND: i32 = 7;
pub const NOTIFY_INC_EPOCH: i32 = 8;
/// Minor version of the protocol that brought [`NOTIFY_INC_EPOCH`] (Linux 6.16).
pub const MINOR_EPOCH: u32 = 44;
/// The one that brought [`NOTIFY_RESEND`] (Linux 6.9).
pub const MINOR_RESEND: u32 = 40;

/// What this mount wants of the kernel: asynchronous reads and direct I/O, POSIX locks and flock,
/// big writes, the umask left to us, revalidation of data, parallel directory
/// operations, ACLs, 1 MiB requests, symlink targets kept (they never change), kill-priv v2, the longer SETXATTR and INIT.
///
/// Not O_TRUNC inside OPEN: the kernel would find out only afterwards that the file is a program which runs.
pub const FLAGS: u64 = 1
    | 1 << 1
    | 1 << 5
    | 1 << 6
    | 1 << 10
    | 1 << 12
    | 1 << 15
    | 1 << 18
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 28
    | 1 << 29
    | 1 << 30
    | DIRECT_IO_ALLOW_MMAP
    | HAS_RESEND;
pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
/// Requests that were read and not answered can be asked for again.
pub const HAS_RESEND: u64 = 1 << 39;
/// Listings with attributes, where the kernel expects to use them.
pub const LIST_ATTRIBUTES: u64 = 1 << 13 | 1 << 14;

pub const FOPEN_DIRECT_IO: u32 = 1;
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
pub const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
pub const OPEN_KILL_SUIDGID: u32 = 1;
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
pub const LK_FLOCK: u32 = 1;
pub const SETXATTR_ACL_KILL_SGID: u32 = 1;

/// Fields of a request, in order. Short requests give zeros and are found out by `bad`.
pub struct Fields<'a> {
    rest: &'a [u8],
    pub bad: bool,
}

impl<'a> Fields<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Fields { rest, bad: false }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                *head
            }
            None => {
                self.bad = true;
                self.rest = &[];
                [0; N]
            }
        }
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    /// A NUL-terminated string.
    pub fn string(&mut self) -> &'a [u8] {
        match self.rest.iter().position(|&b| b == 0) {
            Some(end) => {
                let string = &self.rest[..end];
                self.rest = &self.rest[end + 1..];
                string
            }
            None => {
                self.bad = true;
                &[]
            }
        }
    }

    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        match self.rest.split_at_checked(length) {
            Some((head, rest)) => {
                self.rest = rest;
                head
            }
            None => {
                self.bad = true;
                &[]
            }
        }
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

impl Header {
    pub fn caller(&self) -> Caller {
        Caller { uid: self.uid, gid: self.gid, pid: self.pid }
    }
}

pub const HEADER_BYTES: usize = 40;

/// Split a request from the kernel; `None` when it is shorter than it says.
pub fn parse(request: &[u8]) -> Option<(Header, &[u8])> {
    let mut f = Fields::new(request);
    let length = f.u32() as usize;
    let header = Header { opcode: f.u32(), unique: f.u64(), node: f.u64(), uid: f.u32(), gid: f.u32(), pid: f.u32() };
    (!f.bad && length >= HEADER_BYTES && length <= request.len()).then(|| (header, &request[HEADER_BYTES..length]))
}

/// Builds a reply's body.
#[derive(Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn attributes(self, a: &Attributes) -> Self {
        self.u64(a.inode.0)
            .u64(a.size)
            .u64(a.allocated.div_ceil(512))
            .u64(a.accessed.seconds as u64)
            .u64(a.modified.seconds as u64)
            .u64(a.changed.seconds as u64)
            .u32(a.accessed.nanos)
            .u32(a.modified.nanos)
            .u32(a.changed.nanos)
            .u32(a.mode.0)
            .u32(a.links)
            .u32(a.uid)
            .u32(a.gid)
            .u32(a.device)
            .u32(4096)
            .u32(0)
    }

    /// `fuse_entry_out`.
    pub fn entry(self, a: &Attributes, l: Lifetimes) -> Self {
        self.u64(a.inode.0)
            .u64(0)
            .u64(l.entry.as_secs())
            .u64(l.attributes.as_secs())
            .u32(l.entry.subsec_nanos())
            .u32(l.attributes.subsec_nanos())
            .attributes(a)
    }

    /// `fuse_entry_out` of the mount's root.
    pub fn root(self, a: &Attributes, l: Lifetimes) -> Self {
        let start = self.0.len();
        let mut body = self.entry(a, l);
        body.0[start..start + 8].copy_from_slice(&InodeId::ROOT.0.to_ne_bytes());
        body
    }

    /// `fuse_entry_out` of a name that is not there.
    pub fn absent(self, l: Lifetimes) -> Self {
        let mut body = self.u64(0).u64(0).u64(l.entry.as_secs()).u64(0).u32(l.entry.subsec_nanos()).u32(0);
        body.0.resize(body.0.len() + 88, 0);
        body
    }

    /// `fuse_attr_out`.
    pub fn attr(self, a: &Attributes, l: Lifetimes) -> Self {
        self.u64(l.attributes.as_secs()).u32(l.attributes.subsec_nanos()).u32(0).attributes(a)
    }

    /// `fuse_statx_out`.
    pub fn statx(self, a: &Attributes, l: Lifetimes) -> Self {
        const BASIC_AND_BIRTH: u32 = 0xfff;
        let time = |body: Body, t: Timestamp| body.u64(t.seconds as u64).u32(t.nanos).u32(0);
        let body = self.u64(l.attributes.as_secs()).u32(l.attributes.subsec_nanos()).u32(0).u64(0).u64(0);
        let body = body.u32(BASIC_AND_BIRTH).u32(4096).u64(0).u32(a.links).u32(a.uid).u32(a.gid);
        let body = body.u16(a.mode.0 as u16).u16(0);
        let body = body.u64(a.inode.0).u64(a.size).u64(a.allocated.div_ceil(512)).u64(0);
        let body = [a.accessed, a.created, a.changed, a.modified].into_iter().fold(body, time);
        let (major, minor) = (rustix::fs::major(a.device.into()), rustix::fs::minor(a.device.into()));
        let mut body = body.u32(major).u32(minor).u32(0).u32(0);
        body.0.resize(body.0.len() + 14 * 8, 0);
        body
    }

    pub fn open(self, handle: u64, flags: u32) -> Self {
        self.u64(handle).u32(flags).u32(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_foreign_requests_are_refused() {
        let mut state = 7u64;
        for length in 0..300 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                    (state >> 33) as u8
                })
                .collect();
            if let Some((_, body)) = parse(&bytes) {
                let mut f = Fields::new(body);
                f.string();
                f.u64();
                f.bytes(usize::MAX);
                assert!(f.bad);
            }
        }
    }
}
