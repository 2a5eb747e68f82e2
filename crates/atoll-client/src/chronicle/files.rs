//! Two files in memory, of which one counts: entries behind a beginning.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use atoll_types::Operation;
use bytes::Bytes;
use rustix::fs::MemfdFlags;
use serde::Serialize;

use super::known::{Entry, Known};

/// A file gets no longer than this before the other one counts, unless what is known is longer. In bytes.
pub(super) const BYTES_MAX: u64 = 64 << 20;
/// Before the first entry: which file counts.
const HEAD_BYTES: u64 = 8;
/// Longest entry.
const ENTRY_BYTES_MAX: usize = 1 << 30;

/// [`Entry::Everything`], without taking it.
#[derive(Serialize)]
enum Beginning<'a> {
    Everything(&'a Known),
}

/// The bytes of a write go beside its entry.
fn payload(entry: &mut Entry) -> Option<&mut Bytes> {
    match entry {
        Entry::Made { change, .. } | Entry::Stands(change) => match &mut change.operation {
            Operation::Write { data, .. } => Some(data),
            _ => None,
        },
        _ => None,
    }
}

pub(super) struct Files {
    files: [File; 2],
    /// The one that counts.
    current: usize,
    generation: u64,
    end: u64,
    /// Where its beginning ends.
    begun: u64,
}

impl Files {
    pub fn new(known: &Known) -> std::io::Result<Files> {
        let new = || rustix::fs::memfd_create("atoll-chronicle", MemfdFlags::CLOEXEC).map(File::from);
        let files = [new()?, new()?];
        let mut files = Files { files, current: 0, generation: 0, end: HEAD_BYTES, begun: HEAD_BYTES };
        files.begin(known)?;
        Ok(files)
    }

    /// Go on with the files of another process, and what they come to; `None` when neither counts.
    pub fn recover(files: [File; 2]) -> std::io::Result<Option<(Files, Known)>> {
        let generation = |file: &File| {
            let mut head = [0; HEAD_BYTES as usize];
            file.read_exact_at(&mut head, 0).map_or(0, |()| u64::from_le_bytes(head))
        };
        let generations = files.each_ref().map(generation);
        let current = usize::from(generations[1] > generations[0]);
        let generation = generations[current];
        if generation == 0 {
            return Ok(None);
        }
        let (mut known, mut end) = (Known::default(), HEAD_BYTES);
        while let Some((entry, next)) = Files::read(&files[current], generation, end) {
            known.apply(entry);
            end = next;
        }
        let mut files = Files { files, current, generation, end, begun: HEAD_BYTES };
        files.begin(&known)?;
        Ok(Some((files, known)))
    }

    /// Further descriptors of both.
    pub fn copies(&self) -> std::io::Result<[OwnedFd; 2]> {
        let copy = |file: BorrowedFd<'_>| file.try_clone_to_owned();
        Ok([copy(self.files[0].as_fd())?, copy(self.files[1].as_fd())?])
    }

    fn mark(generation: u64, at: u64) -> [u8; 8] {
        (generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at).to_le_bytes()
    }

    /// Write an entry at `at`, its payload beside it; answers where it ends.
    fn write(
        &self,
        which: usize,
        generation: u64,
        at: u64,
        entry: &impl Serialize,
        data: &[u8],
    ) -> std::io::Result<u64> {
        let text = postcard::to_allocvec(entry).map_err(std::io::Error::other)?;
        let mut head = [0; 8];
        head[..4].copy_from_slice(&(text.len() as u32).to_le_bytes());
        head[4..].copy_from_slice(&(data.len() as u32).to_le_bytes());
        let end = at + 16 + text.len() as u64 + data.len() as u64;
        let mark = Self::mark(generation, end);
        let mut parts = [&head[..], &text, data, &mark].map(IoSlice::new);
        let (mut parts, mut at) = (&mut parts[..], at);
        while at < end {
            let written = rustix::io::pwritev(&self.files[which], parts, at)?;
            at += written as u64;
            IoSlice::advance_slices(&mut parts, written);
        }
        Ok(end)
    }

    fn read(file: &File, generation: u64, at: u64) -> Option<(Entry, u64)> {
        let mut head = [0; 8];
        file.read_exact_at(&mut head, at).ok()?;
        let length = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize);
        let (text_bytes, data_bytes) = (length(&head[..4])?, length(&head[4..])?);
        if text_bytes > ENTRY_BYTES_MAX || data_bytes > ENTRY_BYTES_MAX {
            return None;
        }
        let end = at + 16 + (text_bytes + data_bytes) as u64;
        let mut mark = [0; 8];
        file.read_exact_at(&mut mark, end - 8).ok()?;
        if mark != Self::mark(generation, end) {
            return None;
        }
        let mut bytes = vec![0; text_bytes + data_bytes];
        file.read_exact_at(&mut bytes, at + 8).ok()?;
        let mut entry = postcard::from_bytes(&bytes[..text_bytes]).ok()?;
        if let Some(data) = payload(&mut entry) {
            *data = Bytes::from(bytes).slice(text_bytes..);
        }
        Some((entry, end))
    }

    /// Write an entry behind the others, and give it back.
    pub fn append(&mut self, mut entry: Entry) -> (std::io::Result<()>, Entry) {
        let data = payload(&mut entry).map(std::mem::take).unwrap_or_default();
        let end = self.write(self.current, self.generation, self.end, &entry, &data);
        if let Some(place) = payload(&mut entry) {
            *place = data;
        }
        (end.map(|end| self.end = end), entry)
    }

    /// Nothing of it counts any more.
    pub fn spoil(&self) {
        for file in &self.files {
            let _ = rustix::io::pwrite(file, &0_u64.to_le_bytes(), 0);
        }
    }

    /// Have the other file count when this one is too long.
    pub fn begin_if_long(&mut self, known: &Known) -> std::io::Result<()> {
        let is_long = self.end > BYTES_MAX && self.end > 2 * self.begun;
        if is_long { self.begin(known) } else { Ok(()) }
    }

    /// Have the other file begin with all that is known, and count.
    fn begin(&mut self, known: &Known) -> std::io::Result<()> {
        let (next, generation) = (1 - self.current, self.generation + 1);
        rustix::io::pwrite(&self.files[next], &0_u64.to_le_bytes(), 0)?;
        let mut end = self.write(next, generation, HEAD_BYTES, &Beginning::Everything(known), &[])?;
        for change in &known.journal {
            let mut stands = Entry::Stands((**change).clone());
            let data = payload(&mut stands).map(std::mem::take).unwrap_or_default();
            end = self.write(next, generation, end, &stands, &data)?;
        }
        rustix::io::pwrite(&self.files[next], &generation.to_le_bytes(), 0)?;
        (self.current, self.generation, self.end, self.begun) = (next, generation, end, end);
        Ok(())
    }
}
