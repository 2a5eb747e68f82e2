//! The log of a volume with `local` durability: append-only files of commits.
//!
//! A file starts with a 16-byte header (magic, version) and holds records
//! `u32 length, u32 crc32c, u64 seq, batch`. A record that is torn or does not
//! match its checksum ends the last file; anywhere else it is corruption.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Batch, Result, StoreError};

const MAGIC: &[u8; 12] = b"atoll log\0\0\0";
const VERSION: u32 = 1;
const RECORD_HEADER: usize = 16;
/// A record larger than this is not ours.
const RECORD_BYTES_MAX: u32 = 1 << 31;

fn io(error: std::io::Error) -> StoreError {
    StoreError::Io(format!("log: {error}"))
}

/// A commit read back.
pub(crate) struct Record {
    pub seq: u64,
    pub batch: Batch,
}

pub(crate) fn encode(seq: u64, batch: &Batch, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, 8);
    out.put_u64_le(seq);
    out.put_u32_le(batch.writes.len() as u32);
    for (key, value) in &batch.writes {
        out.put_u16_le(key.len() as u16);
        out.put_u32_le(value.as_ref().map_or(u32::MAX, |v| v.len() as u32));
        out.put_slice(key);
        if let Some(value) = value {
            out.put_slice(value);
        }
    }
    let length = (out.len() - start - RECORD_HEADER) as u32;
    let checksum = crc32c::crc32c(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

fn decode_batch(mut body: Bytes) -> Option<Batch> {
    let count = body.try_get_u32_le().ok()?;
    let mut batch = Batch::default();
    for _ in 0..count {
        let key = body.try_get_u16_le().ok()? as usize;
        let value = body.try_get_u32_le().ok()?;
        if body.remaining() < key {
            return None;
        }
        let key = body.split_to(key);
        let value = match value {
            u32::MAX => None,
            length if body.remaining() >= length as usize => Some(body.split_to(length as usize)),
            _ => return None,
        };
        batch.writes.push((key, value));
    }
    body.is_empty().then_some(batch)
}

/// The records of one file and how many of its bytes are whole.
fn read_file(path: &Path) -> Result<(Vec<Record>, u64, bool)> {
    let mut content = Bytes::from(fs::read(path).map_err(io)?);
    let total = content.len() as u64;
    let mut records = Vec::new();
    if content.len() < 16 {
        return Ok((records, 0, false));
    }
    if &content[..12] != MAGIC {
        return Err(StoreError::Corrupt(format!("{} is not a log", path.display())));
    }
    let version = u32::from_le_bytes([content[12], content[13], content[14], content[15]]);
    if version > VERSION {
        return Err(StoreError::Format(format!("log version {version}: use a newer release")));
    }
    content.advance(16);
    let mut whole = 16;
    while content.len() >= RECORD_HEADER {
        let length = u32::from_le_bytes([content[0], content[1], content[2], content[3]]);
        let checksum = u32::from_le_bytes([content[4], content[5], content[6], content[7]]);
        let end = RECORD_HEADER + length as usize;
        if length > RECORD_BYTES_MAX || content.len() < end || crc32c::crc32c(&content[8..end]) != checksum {
            break;
        }
        let mut record = content.split_to(end);
        record.advance(8);
        let seq = record.get_u64_le();
        let batch = decode_batch(record).ok_or_else(|| StoreError::Corrupt("malformed log record".into()))?;
        records.push(Record { seq, batch });
        whole += end as u64;
    }
    Ok((records, whole, whole == total))
}

/// An open log: one file grows, older ones wait to be covered by the store.
pub(crate) struct Log {
    folder: PathBuf,
    file: File,
    pub file_bytes: u64,
    number: u64,
    /// Finished files with the last commit each holds.
    finished: Vec<(PathBuf, u64)>,
    _lock: File,
}

impl Log {
    /// Open the folder, cut a torn tail, and return the records after `applied`.
    pub fn open(folder: &Path, applied: u64) -> Result<(Log, Vec<Record>)> {
        fs::create_dir_all(folder).map_err(io)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(io)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Io(format!("{} is in use by another process", folder.display())))?;
        let mut files: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| u64::from_str_radix(s, 16).ok());
            if let Some(number) = number
                && path.extension().is_some_and(|e| e == "log")
            {
                files.push((number, path));
            }
        }
        files.sort();
        let mut records = Vec::new();
        let mut finished = Vec::new();
        let last = files.last().map_or(0, |(number, _)| *number);
        for (number, path) in files {
            let (found, whole, complete) = read_file(&path)?;
            if !complete {
                if number != last {
                    return Err(StoreError::Corrupt(format!("{} is damaged in the middle of the log", path.display())));
                }
                let file = File::options().write(true).open(&path).map_err(io)?;
                file.set_len(whole).map_err(io)?;
                file.sync_all().map_err(io)?;
            }
            let newest = found.last().map_or(applied, |record| record.seq);
            finished.push((path, newest));
            records.extend(found.into_iter().filter(|record| record.seq > applied));
        }
        let (file, file_bytes) = new_file(folder, last + 1)?;
        let log = Log { folder: folder.to_owned(), file, file_bytes, number: last + 1, finished, _lock: lock };
        Ok((log, records))
    }

    /// Append encoded records and make them durable. After an error the log must not be used.
    pub fn append(&mut self, records: &[u8]) -> Result<()> {
        self.file.write_all(records).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        self.file_bytes += records.len() as u64;
        Ok(())
    }

    /// Finish the growing file, whose last commit is `newest`, and start another.
    pub fn rotate(&mut self, newest: u64) -> Result<()> {
        let path = file_path(&self.folder, self.number);
        let (file, file_bytes) = new_file(&self.folder, self.number + 1)?;
        self.finished.push((path, newest));
        self.number += 1;
        self.file = file;
        self.file_bytes = file_bytes;
        Ok(())
    }

    /// Delete finished files whose commits the store holds by itself.
    pub fn trim(&mut self, covered: u64) -> Result<()> {
        let (gone, kept) = self.finished.drain(..).partition(|(_, newest)| *newest <= covered);
        self.finished = kept;
        let gone: Vec<(PathBuf, u64)> = gone;
        for (path, _) in gone {
            fs::remove_file(path).map_err(io)?;
        }
        Ok(())
    }
}

fn file_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016x}.log"))
}

fn new_file(folder: &Path, number: u64) -> Result<(File, u64)> {
    let mut file = File::options().create_new(true).append(true).open(file_path(folder, number)).map_err(io)?;
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    file.write_all(&header).map_err(io)?;
    file.sync_all().map_err(io)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok((file, header.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(key: &str) -> Batch {
        let mut batch = Batch::default();
        batch.put(key.as_bytes().to_vec(), &b"value"[..]);
        batch.delete(&b"gone"[..]);
        batch
    }

    fn append(log: &mut Log, seq: u64) {
        let mut bytes = BytesMut::new();
        encode(seq, &batch(&format!("k{seq}")), &mut bytes);
        log.append(&bytes).unwrap();
    }

    #[test]
    fn records_come_back_after_a_restart_without_a_torn_tail() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, none) = Log::open(folder.path(), 0).unwrap();
        assert!(none.is_empty());
        append(&mut log, 1);
        append(&mut log, 2);
        let path = file_path(folder.path(), log.number);
        drop(log);
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(&[9; 40]).unwrap();
        let (mut log, records) = Log::open(folder.path(), 1).unwrap();
        assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [2]);
        assert_eq!(records[0].batch.writes.len(), 2);
        append(&mut log, 3);
        drop(log);
        let (_log, records) = Log::open(folder.path(), 0).unwrap();
        assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_log_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Log::open(folder.path(), 0).unwrap();
        assert!(Log::open(folder.path(), 0).is_err());
    }

    #[test]
    fn covered_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(folder.path(), 0).unwrap();
        append(&mut log, 1);
        log.rotate(1).unwrap();
        append(&mut log, 2);
        log.trim(1).unwrap();
        drop(log);
        let (_log, records) = Log::open(folder.path(), 0).unwrap();
        assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [2]);
    }
}
