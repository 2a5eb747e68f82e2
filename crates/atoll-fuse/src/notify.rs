//! Telling the kernel that what it keeps is no longer true.
//!
//! Each call waits until the kernel has dropped it, which takes locks that a
//! request in flight may hold: call from a thread that serves no request.

use std::fs::File;
use std::io::IoSlice;
use std::sync::Arc;

use atoll_types::{InodeId, Name};

use crate::abi::{self, Body};

/// Sends to the kernel of one mount.
#[derive(Clone)]
pub struct Notifier {
    device: Arc<File>,
}

impl Notifier {
    pub(crate) fn new(device: Arc<File>) -> Self {
        Notifier { device }
    }

    /// Attributes and all cached bytes of an inode.
    pub fn inode(&self, inode: InodeId) -> std::io::Result<()> {
        self.send(abi::NOTIFY_INVAL_INODE, Body::default().u64(inode.0).u64(0).u64(0), &[])
    }

    /// What a name stands for, that it is not there included.
    pub fn entry(&self, parent: InodeId, name: &Name) -> std::io::Result<()> {
        let name = name.as_bytes();
        self.send(abi::NOTIFY_INVAL_ENTRY, Body::default().u64(parent.0).u32(name.len() as u32).u32(0), name)
    }

    /// A name was removed with what it stood for: who works in it is told.
    pub fn deleted(&self, parent: InodeId, inode: InodeId, name: &Name) -> std::io::Result<()> {
        let name = name.as_bytes();
        let body = Body::default().u64(parent.0).u64(inode.0).u32(name.len() as u32).u32(0);
        self.send(abi::NOTIFY_DELETE, body, name)
    }

    /// `Ok` also when the kernel keeps nothing of it.
    fn send(&self, code: i32, body: Body, name: &[u8]) -> std::io::Result<()> {
        let end: &[u8] = if name.is_empty() { &[] } else { &[0] };
        let length = 16 + body.0.len() + name.len() + end.len();
        let header = Body::default().u32(length as u32).u32(code as u32).u64(0);
        let parts = [&header.0[..], &body.0, name, end].map(IoSlice::new);
        match rustix::io::writev(&*self.device, &parts) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
