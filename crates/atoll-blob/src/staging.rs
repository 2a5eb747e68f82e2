//! Files of segments on the local disk: written whole chunks at a time, made
//! durable before anybody relies on them. Everything here blocks; callers that
//! may touch a cold disk run it off the executor.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_types::{Epoch, SegmentId};
use bytes::Bytes;
use quick_cache::sync::Cache;

use crate::config::ancestor_of;
use crate::{Ancestor, BlobError, Result, Staging};

/// Open files kept for reading.
const OPEN_FILES_MAX: usize = 256;
const STAGED_SUFFIX: &str = ".staged";

/// What has to be written to one segment's file.
pub(crate) struct StageJob {
    pub(crate) segment: SegmentId,
    pub(crate) chunks: Vec<(u32, Bytes)>,
    /// Up to here the file is complete once the job is done.
    pub(crate) end: u32,
    /// The file may be new: its directory entry must become durable too.
    pub(crate) created: bool,
}

/// The folder, and the files of it that are open for reading.
pub(crate) struct Folder {
    root: PathBuf,
    /// Whose segments are in folders of their own.
    ancestors: Vec<Ancestor>,
    suffix: &'static str,
    open: Cache<SegmentId, Arc<File>>,
}

pub(crate) fn object_name(segment: SegmentId) -> String {
    format!("{:016x}", segment.0)
}

/// The segment whose object has this name.
pub(crate) fn segment_of(name: &str) -> Option<SegmentId> {
    let segment = SegmentId(u64::from_str_radix(name, 16).ok()?);
    (object_name(segment) == name).then_some(segment)
}

pub(crate) fn failure(error: &io::Error) -> BlobError {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => BlobError::NoSpace(error.to_string()),
        _ => BlobError::Io(error.to_string()),
    }
}

impl Folder {
    /// `None` when nothing is kept on a disk.
    pub(crate) fn open(staging: &Staging, ancestors: Vec<Ancestor>) -> Result<Option<Self>> {
        let (root, suffix) = match staging {
            Staging::Memory => return Ok(None),
            Staging::Folder(root) => (root, STAGED_SUFFIX),
            Staging::Objects(root) => (root, ""),
        };
        // What waits for its upload is never another volume's.
        let ancestors = if suffix.is_empty() { ancestors } else { Vec::new() };
        std::fs::create_dir_all(root).map_err(|error| failure(&error))?;
        let mut folder = root.as_path();
        // The folder itself must survive a crash, not only what is in it.
        while let Some(parent) = folder.parent() {
            if File::open(parent).and_then(|parent| parent.sync_all()).is_err() {
                break;
            }
            folder = parent;
        }
        Ok(Some(Folder { root: root.clone(), ancestors, suffix, open: Cache::new(OPEN_FILES_MAX) }))
    }

    pub(crate) fn path(&self, segment: SegmentId) -> PathBuf {
        let root = self.ancestor(segment).unwrap_or(&self.root);
        root.join(object_name(segment) + self.suffix)
    }

    /// The folder of the other volume that has the segment.
    fn ancestor(&self, segment: SegmentId) -> Option<&PathBuf> {
        ancestor_of(&self.ancestors, segment)?.folder.as_ref()
    }

    pub(crate) fn length(&self, segment: SegmentId) -> io::Result<Option<u64>> {
        match std::fs::metadata(self.path(segment)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the chunks and makes them durable.
    pub(crate) fn write(&self, job: &StageJob) -> io::Result<()> {
        let path = self.path(job.segment);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        for (offset, bytes) in &job.chunks {
            file.write_all_at(bytes, u64::from(*offset))?;
        }
        file.sync_data()?;
        if job.created {
            File::open(&self.root)?.sync_all()?;
        }
        Ok(())
    }

    fn file(&self, segment: SegmentId) -> io::Result<Arc<File>> {
        self.open.get_or_insert_with(&segment, || File::open(self.path(segment)).map(Arc::new))
    }

    /// The bytes when they are in the page cache; `None` when reading them would wait for the disk.
    pub(crate) fn read_cached(&self, segment: SegmentId, offset: u32, length: u32) -> io::Result<Option<Bytes>> {
        let file = self.file(segment)?;
        let mut buffer = vec![0; length as usize];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        match rustix::io::preadv2(&*file, &mut [IoSliceMut::new(&mut buffer)], u64::from(offset), flags) {
            Ok(count) if count == buffer.len() => Ok(Some(buffer.into())),
            // Short, would block or not supported: the waiting read tells which.
            _ => Ok(None),
        }
    }

    /// At most `length` bytes; fewer where the file ends.
    pub(crate) fn read(&self, segment: SegmentId, offset: u32, length: u32) -> io::Result<Bytes> {
        let file = self.file(segment)?;
        let mut buffer = vec![0; length as usize];
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], u64::from(offset) + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(buffer.into())
    }

    /// Asks the kernel to read ahead.
    pub(crate) fn advise(&self, segment: SegmentId, offset: u32, length: u32) {
        if let Ok(file) = self.file(segment) {
            let length = std::num::NonZeroU64::new(u64::from(length));
            // A hint: where it is refused the read will simply wait.
            let _ = rustix::fs::fadvise(&*file, u64::from(offset), length, rustix::fs::Advice::WillNeed);
        }
    }

    /// Removes the file, unless it is another volume's; fine when there is none.
    pub(crate) fn remove(&self, segment: SegmentId) -> io::Result<()> {
        if self.ancestor(segment).is_some() {
            self.open.remove(&segment);
            return Ok(());
        }
        let removed = std::fs::remove_file(self.path(segment));
        self.open.remove(&segment);
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes staged files of epochs before `epoch` that `keep` does not want: their segments
    /// were uploaded or never recorded. Objects are never touched.
    pub(crate) fn remove_strays(&self, epoch: Epoch, keep: impl Fn(SegmentId) -> bool) -> io::Result<()> {
        if self.suffix.is_empty() {
            return Ok(());
        }
        for entry in std::fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            if let Some(segment) = staged_segment(Path::new(&name))
                && segment.0 >> 32 < epoch.0
                && !keep(segment)
            {
                self.remove(segment)?;
            }
        }
        Ok(())
    }
}

fn staged_segment(name: &Path) -> Option<SegmentId> {
    segment_of(name.to_str()?.strip_suffix(STAGED_SUFFIX)?)
}
