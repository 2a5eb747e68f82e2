//! The log of a volume with `local` durability: append-only files of commits.
//!
//! The file that grows has zeros behind its last record: an `fdatasync` of what overwrites them has no size or blocks
//! to make durable with it. Zeros are no record, and end a file as well as its end does.
//!
//! A file starts with a header `magic, u32 version, log id, u64 synced, u32 crc32c`
//! and holds records `u32 length, u32 crc32c, u64 seq, u64 synced, batch`. `synced`
//! is the last commit that was durable when the header or record was written: it
//! tells a torn tail, which nobody was promised, from damage to durable commits.
//! Checksums of records are seeded with the log's id: the bytes of another log, or
//! of a log kept as a value in this one, are no records here.
//!
//! In the log of an encrypted store, which has a version of its own, each batch is sealed, bound to the log and to the
//! commit's number; lengths and checksums are those of the sealed bytes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_keys::{Keyring, Purpose};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::sealing::sealing_error;
use crate::{Batch, Result, StoreError};

const MAGIC: &[u8; 12] = b"atoll log\0\0\0";
const VERSION: u32 = 2;
const VERSION_SEALED: u32 = 3;
const HEADER: usize = 44;
const RECORD_HEADER: usize = 24;
/// Zeros that are written behind what is appended when there are none left.
const ROOM_BYTES: usize = 256 * 1024;
/// Who appends more at once waits for its bytes, not for the file's size.
const ROOM_APPEND_BYTES_MAX: usize = ROOM_BYTES / 8;
/// A record larger than this is not ours.
const RECORD_BYTES_MAX: usize = 1 << 31;

fn io(error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            StoreError::NoSpace(format!("log: {error}"))
        }
        _ => StoreError::Io(format!("log: {error}")),
    }
}

/// Names one log for ever: a store knows which one is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogId(pub [u8; 16]);

impl LogId {
    pub fn random() -> Result<LogId> {
        let mut id = [0; 16];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id)).map_err(io)?;
        Ok(LogId(id))
    }

    fn checksum(&self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.0), bytes)
    }
}

/// A commit, as it is appended and read back.
pub(crate) struct Record {
    pub seq: u64,
    pub batch: Batch,
}

fn encode(id: &LogId, keys: Option<&Keyring>, synced: u64, record: &Record, out: &mut BytesMut) -> Result<()> {
    let start = out.len();
    out.put_bytes(0, 8);
    out.put_u64_le(record.seq);
    out.put_u64_le(synced);
    match keys {
        None => encode_batch(&record.batch, out),
        Some(keys) => {
            let mut batch = BytesMut::new();
            encode_batch(&record.batch, &mut batch);
            let sealed = keys.seal(Purpose::Log, &bound(id, record.seq), &batch);
            out.put_slice(&sealed.map_err(sealing_error)?);
        }
    }
    let length = (out.len() - start - RECORD_HEADER) as u32;
    let checksum = id.checksum(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// What a sealed batch is bound to.
fn bound(id: &LogId, seq: u64) -> [u8; 24] {
    let mut bound = [0; 24];
    bound[..16].copy_from_slice(&id.0);
    bound[16..].copy_from_slice(&seq.to_le_bytes());
    bound
}

fn encode_batch(batch: &Batch, out: &mut BytesMut) {
    out.put_u32_le(batch.writes.len() as u32);
    for (key, value) in &batch.writes {
        out.put_u16_le(key.len() as u16);
        out.put_u32_le(value.as_ref().map_or(u32::MAX, |v| v.len() as u32));
        out.put_slice(key);
        if let Some(value) = value {
            out.put_slice(value);
        }
    }
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

/// `length, checksum, seq, synced` of a record.
fn record_header(content: &[u8]) -> Option<(usize, u32, u64, u64)> {
    let mut header = content.get(..RECORD_HEADER)?;
    Some((header.get_u32_le() as usize, header.get_u32_le(), header.get_u64_le(), header.get_u64_le()))
}

/// Where the record at the start of `content` ends, if it is whole.
fn whole_record(id: &LogId, content: &[u8]) -> Option<usize> {
    let (length, checksum, ..) = record_header(content)?;
    let end = RECORD_HEADER + length;
    // Zeros have no length.
    ((4..=RECORD_BYTES_MAX).contains(&length) && id.checksum(content.get(8..end)?) == checksum).then_some(end)
}

/// Whether some record in `content`, whose start is damaged, was written when commits after `newest` were durable.
fn was_durable(id: &LogId, content: &[u8], newest: u64) -> bool {
    // The sequence numbers of one file have no gaps, so few places look like a record.
    let seq_max = newest.saturating_add((content.len() / RECORD_HEADER) as u64 + 1);
    (1..content.len()).any(|at| {
        let content = &content[at..];
        record_header(content).is_some_and(|(_, _, seq, synced)| newest < synced && synced < seq && seq <= seq_max)
            && whole_record(id, content).is_some()
    })
}

struct LogFile {
    number: u64,
    path: PathBuf,
    id: LogId,
    /// The last durable commit when the file was made: its own start after that.
    synced: u64,
    records: Vec<Record>,
    /// Bytes that are whole, and whether that is all but zeros.
    whole: u64,
    complete: bool,
}

impl LogFile {
    fn newest(&self) -> u64 {
        self.records.last().map_or(self.synced, |record| record.seq)
    }

    /// `None`: the header is not whole.
    fn read(number: u64, path: PathBuf, keys: Option<&Keyring>) -> Result<Option<LogFile>> {
        let mut content = Bytes::from(fs::read(&path).map_err(io)?);
        let total = content.len() as u64;
        let damaged = |what: &str| StoreError::Corrupt(format!("{}: {what}", path.display()));
        if content.len() < HEADER {
            return Ok(None);
        }
        let mut header = content.split_to(HEADER);
        let checksum = crc32c::crc32c(&header[..HEADER - 4]);
        if header[..12] == MAGIC[..] {
            let version = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
            if version != VERSION && version != VERSION_SEALED {
                let known = format!("this release knows {VERSION} and {VERSION_SEALED}");
                return Err(StoreError::Format(format!("log version {version}, {known}")));
            }
        }
        let is_sealed = header[12..16] == VERSION_SEALED.to_le_bytes();
        header.advance(16);
        let mut id = [0; 16];
        header.copy_to_slice(&mut id);
        let id = LogId(id);
        let synced = header.get_u64_le();
        if header.get_u32_le() != checksum {
            // Nothing follows a header that was not synced.
            return if content.is_empty() { Ok(None) } else { Err(damaged("the header is damaged")) };
        }
        if is_sealed != keys.is_some() {
            let what = if is_sealed { "encrypted, and its store is not" } else { "not encrypted, as its store is" };
            return Err(StoreError::Log(format!("{} is {what}", path.display())));
        }
        let (mut records, mut newest) = (Vec::<Record>::new(), synced);
        while let Some(end) = whole_record(&id, &content) {
            let mut record = content.split_to(end);
            record.advance(8);
            let seq = record.get_u64_le();
            record.advance(8);
            if let Some(keys) = keys {
                let opened = keys.open(Purpose::Log, &bound(&id, seq), &record);
                record = opened.map_err(|error| damaged(&format!("commit {seq}: {error}")))?.into();
            }
            let batch = decode_batch(record).ok_or_else(|| damaged("malformed record"))?;
            if seq != newest + 1 {
                return Err(damaged(&format!("commit {seq} follows {newest}")));
            }
            newest = seq;
            records.push(Record { seq, batch });
        }
        if was_durable(&id, &content, newest) {
            return Err(damaged(&format!("commit {} is damaged, and later ones are not", newest + 1)));
        }
        let whole = total - content.len() as u64;
        let complete = content.iter().all(|byte| *byte == 0);
        Ok(Some(LogFile { number, path, id, synced, records, whole, complete }))
    }
}

/// A log that nobody else uses, read but not changed.
pub(crate) struct LogFolder {
    folder: PathBuf,
    files: Vec<LogFile>,
    /// A last file whose making was cut short.
    half_made: Option<PathBuf>,
    keys: Option<Arc<Keyring>>,
    lock: File,
}

impl LogFolder {
    /// `keys`: those of an encrypted store.
    pub fn open(folder: &Path, keys: Option<Arc<Keyring>>) -> Result<LogFolder> {
        fs::create_dir_all(folder).map_err(io)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(io)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Io(format!("{} is in use by another server", folder.display())))?;
        let mut paths: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| u64::from_str_radix(s, 16).ok());
            if let Some(number) = number
                && path.extension().is_some_and(|e| e == "log")
            {
                paths.push((number, path));
            }
        }
        paths.sort();
        let last = paths.last().map(|(number, _)| *number);
        let mut log = LogFolder { folder: folder.to_owned(), files: Vec::new(), half_made: None, keys, lock };
        for (number, path) in paths {
            match LogFile::read(number, path.clone(), log.keys.as_deref())? {
                Some(file) if file.complete || Some(number) == last => log.files.push(file),
                None if Some(number) == last => log.half_made = Some(path),
                _ => {
                    return Err(StoreError::Corrupt(format!("{} is damaged in the middle of the log", path.display())));
                }
            }
        }
        // A file follows only one that is whole.
        if log.half_made.is_some() && log.files.last().is_some_and(|file| !file.complete) {
            return Err(StoreError::Corrupt(format!("{} is damaged in the middle of the log", folder.display())));
        }
        if let Some(file) = log.files.iter().find(|file| Some(file.id) != log.id()) {
            return Err(StoreError::Log(format!("{} belongs to another log", file.path.display())));
        }
        Ok(log)
    }

    /// `None`: nothing was ever logged here.
    pub fn id(&self) -> Option<LogId> {
        self.files.first().map(|file| file.id)
    }

    /// Cut a torn tail, start a new file, and return the records after `applied`, which the store holds by itself.
    pub fn start(mut self, id: LogId, applied: u64) -> Result<(Log, Vec<Record>)> {
        let mut newest = applied;
        for file in &self.files {
            if file.synced > newest {
                return Err(StoreError::Corrupt(format!(
                    "commits {} to {} are missing before {}",
                    newest + 1,
                    file.synced,
                    file.path.display()
                )));
            }
            newest = newest.max(file.newest());
        }
        if let Some(path) = self.half_made.take() {
            fs::remove_file(path).map_err(io)?;
        }
        if let Some(last) = self.files.last() {
            // What a killed server wrote is not synced before this.
            let file = File::options().write(true).open(&last.path).map_err(io)?;
            file.set_len(last.whole).map_err(io)?;
            file.sync_all().map_err(io)?;
        }
        let number = self.files.last().map_or(0, |file| file.number) + 1;
        let (file, file_bytes) = new_file(&self.folder, number, &id, self.keys.as_deref(), newest)?;
        let (mut finished, mut records, mut found_bytes) = (Vec::new(), Vec::new(), 0);
        for file in self.files {
            finished.push((file.path.clone(), file.newest()));
            found_bytes += if file.newest() > applied { file.whole } else { 0 };
            records.extend(file.records.into_iter().filter(|record| record.seq > applied));
        }
        let (folder, keys) = (self.folder, self.keys);
        let room_end = file_bytes;
        let (synced, _lock) = (newest, self.lock);
        let mut log =
            Log { folder, id, keys, file, file_bytes, found_bytes, room_end, number, synced, finished, _lock };
        log.trim(applied)?;
        Ok((log, records))
    }
}

/// An open log: one file grows, older ones wait to be covered by the store.
pub(crate) struct Log {
    folder: PathBuf,
    id: LogId,
    keys: Option<Arc<Keyring>>,
    file: File,
    /// Of the header and the records.
    pub file_bytes: u64,
    /// Of files that the start found and the store did not cover.
    pub found_bytes: u64,
    /// Zeros follow up to here.
    room_end: u64,
    number: u64,
    /// The last durable commit.
    pub synced: u64,
    /// Finished files with the last commit each holds.
    finished: Vec<(PathBuf, u64)>,
    _lock: File,
}

impl Log {
    /// Append the records and make them durable. After `NoSpace` the log is as it was before, after any other
    /// error it must not be used.
    pub fn append(&mut self, records: &[Record]) -> Result<()> {
        let Some(last) = records.last() else { return Ok(()) };
        let mut bytes = BytesMut::new();
        for record in records {
            encode(&self.id, self.keys.as_deref(), self.synced, record, &mut bytes)?;
        }
        let end = self.file_bytes + bytes.len() as u64;
        let length = bytes.len();
        if end > self.room_end && length <= ROOM_APPEND_BYTES_MAX {
            bytes.put_bytes(0, ROOM_BYTES);
        }
        let mut written = self.write(&bytes);
        if written.is_err() && bytes.len() > length {
            bytes.truncate(length);
            written = self.write(&bytes);
        }
        written?;
        // Here a full disk is an error like any other: what became of the pages is not known.
        self.file.sync_data().map_err(|error| StoreError::Io(format!("log: {error}")))?;
        self.room_end = self.room_end.max(self.file_bytes + bytes.len() as u64);
        self.file_bytes = end;
        self.synced = last.seq;
        Ok(())
    }

    /// Write behind the last record. What cannot be written whole goes again: nothing was synced, so nothing is lost.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Err(error) = self.file.write_all_at(bytes, self.file_bytes).map_err(io) else { return Ok(()) };
        self.room_end = self.file_bytes;
        self.file.set_len(self.file_bytes).map_err(io)?;
        Err(error)
    }

    /// Finish the growing file and start another.
    pub fn rotate(&mut self) -> Result<()> {
        // The zeros behind it are of no use any more. They do no harm either.
        let _ = self.file.set_len(self.file_bytes);
        self.room_end = self.file_bytes;
        let (file, file_bytes) = new_file(&self.folder, self.number + 1, &self.id, self.keys.as_deref(), self.synced)?;
        self.finished.push((file_path(&self.folder, self.number), self.synced));
        self.number += 1;
        self.file = file;
        self.file_bytes = file_bytes;
        self.room_end = file_bytes;
        Ok(())
    }

    /// Make the next append fail; returns what mends it.
    #[cfg(test)]
    pub fn break_file(&mut self) -> File {
        let read_only = File::open(file_path(&self.folder, self.number)).unwrap();
        std::mem::replace(&mut self.file, read_only)
    }

    #[cfg(test)]
    pub fn mend_file(&mut self, file: File) {
        self.file = file;
    }

    /// Delete finished files whose commits, up to `covered`, the store holds by itself, oldest first.
    pub fn trim(&mut self, covered: u64) -> Result<()> {
        while let Some((path, newest)) = self.finished.first()
            && *newest <= covered
        {
            fs::remove_file(path).map_err(io)?;
            self.finished.remove(0);
        }
        Ok(())
    }
}

fn file_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016x}.log"))
}

fn new_file(folder: &Path, number: u64, id: &LogId, keys: Option<&Keyring>, synced: u64) -> Result<(File, u64)> {
    let path = file_path(folder, number);
    let file = File::options().create_new(true).write(true).open(&path).map_err(io)?;
    let version = if keys.is_some() { VERSION_SEALED } else { VERSION };
    let made = write_header(file, folder, id, version, synced);
    if made.is_err() {
        // The next attempt makes it again.
        fs::remove_file(path).map_err(io)?;
    }
    made
}

fn write_header(mut file: File, folder: &Path, id: &LogId, version: u32, synced: u64) -> Result<(File, u64)> {
    let mut header = MAGIC.to_vec();
    header.put_u32_le(version);
    header.put_slice(&id.0);
    header.put_u64_le(synced);
    header.put_u32_le(crc32c::crc32c(&header));
    file.write_all(&header).map_err(io)?;
    file.sync_all().map_err(io)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok((file, header.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: LogId = LogId([7; 16]);

    fn record(seq: u64) -> Record {
        let mut batch = Batch::default();
        batch.put(format!("k{seq}"), &b"value"[..]);
        batch.delete(&b"gone"[..]);
        Record { seq, batch }
    }

    fn open(folder: &Path, applied: u64) -> Result<(Log, Vec<u64>)> {
        let (log, records) = LogFolder::open(folder, None)?.start(ID, applied)?;
        Ok((log, records.iter().map(|record| record.seq).collect()))
    }

    #[test]
    fn records_come_back_after_a_restart_without_a_torn_tail() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, none) = open(folder.path(), 0).unwrap();
        assert!(none.is_empty());
        log.append(&[record(1)]).unwrap();
        log.append(&[record(2)]).unwrap();
        let (path, end) = (file_path(folder.path(), log.number), log.file_bytes);
        drop(log);
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[9; 40], end).unwrap();
        let (mut log, records) = open(folder.path(), 1).unwrap();
        assert_eq!(records, [2]);
        log.append(&[record(3)]).unwrap();
        drop(log);
        assert_eq!(open(folder.path(), 0).unwrap().1, [1, 2, 3]);
    }

    /// Of records synced together any may be torn by a power cut, not only the last.
    #[test]
    fn a_hole_in_an_unsynced_group_is_a_torn_tail() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = open(folder.path(), 0).unwrap();
        log.append(&[record(1)]).unwrap();
        let hole = log.file_bytes;
        log.append(&[record(2), record(3), record(4)]).unwrap();
        let path = file_path(folder.path(), log.number);
        drop(log);
        let mut content = fs::read(&path).unwrap();
        content[hole as usize..hole as usize + 30].fill(0);
        fs::write(&path, content).unwrap();
        assert_eq!(open(folder.path(), 0).unwrap().1, [1]);
    }

    #[test]
    fn a_log_kept_as_a_value_is_no_record() {
        let other = tempfile::tempdir().unwrap();
        let (mut log, _) = LogFolder::open(other.path(), None).unwrap().start(LogId([8; 16]), 0).unwrap();
        for seq in 1..10 {
            log.append(&[record(seq)]).unwrap();
        }
        let image = fs::read(file_path(other.path(), 1)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = open(folder.path(), 0).unwrap();
        log.append(&[record(1)]).unwrap();
        let mut batch = Batch::default();
        batch.put("k", image);
        log.append(&[Record { seq: 2, batch }]).unwrap();
        let (path, length) = (file_path(folder.path(), 1), log.file_bytes);
        drop(log);
        File::options().write(true).open(path).and_then(|file| file.set_len(length - 1)).unwrap();
        assert_eq!(open(folder.path(), 0).unwrap().1, [1]);
    }

    fn open_sealed(folder: &Path, keys: &Arc<Keyring>) -> Result<(Log, Vec<u64>)> {
        let (log, records) = LogFolder::open(folder, Some(keys.clone()))?.start(ID, 0)?;
        Ok((log, records.iter().map(|record| record.seq).collect()))
    }

    #[test]
    fn a_sealed_log_is_read_with_its_keys_only_and_in_its_order_only() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Arc::new(Keyring::random().unwrap());
        let (mut log, _) = open_sealed(folder.path(), &keys).unwrap();
        let mut ends = vec![log.file_bytes];
        for seq in 1..=3 {
            log.append(&[record(seq)]).unwrap();
            ends.push(log.file_bytes);
        }
        drop(log);
        let path = file_path(folder.path(), 1);
        let whole = fs::read(&path).unwrap();
        assert!(!whole.windows(5).any(|part| part == b"value"), "plain bytes are in the log");
        let refused = |keys| LogFolder::open(folder.path(), keys).err();
        assert!(matches!(refused(None), Some(StoreError::Log(_))));
        let wrong = refused(Some(Arc::new(Keyring::random().unwrap())));
        assert!(matches!(wrong, Some(StoreError::Corrupt(_))), "{wrong:?}");
        // The second record with the third's content, and a checksum that fits.
        let mut swapped = whole.clone();
        let (second, third) = (ends[1] as usize..ends[2] as usize, ends[2] as usize..ends[3] as usize);
        assert_eq!(second.len(), third.len());
        swapped.copy_within(third.start + RECORD_HEADER..third.end, second.start + RECORD_HEADER);
        let checksum = ID.checksum(&swapped[second.start + 8..second.end]);
        swapped[second.start + 4..second.start + 8].copy_from_slice(&checksum.to_le_bytes());
        fs::write(&path, swapped).unwrap();
        let moved = refused(Some(keys.clone()));
        assert!(matches!(moved, Some(StoreError::Corrupt(_))), "{moved:?}");
        fs::write(&path, whole).unwrap();
        assert_eq!(open_sealed(folder.path(), &keys).unwrap().1, [1, 2, 3]);
        let plain = tempfile::tempdir().unwrap();
        drop(open(plain.path(), 0).unwrap());
        let exchanged = LogFolder::open(plain.path(), Some(keys)).err();
        assert!(matches!(exchanged, Some(StoreError::Log(_))), "a plain log is none of an encrypted store");
    }

    #[test]
    fn missing_commits_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = open(folder.path(), 0).unwrap();
        log.append(&[record(1), record(2)]).unwrap();
        log.rotate().unwrap();
        log.append(&[record(3)]).unwrap();
        drop(log);
        fs::remove_file(file_path(folder.path(), 1)).unwrap();
        assert!(matches!(open(folder.path(), 1), Err(StoreError::Corrupt(_))));
        assert_eq!(open(folder.path(), 2).unwrap().1, [3]);
    }

    #[test]
    fn a_file_grows_into_zeros_and_ends_without_them() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = open(folder.path(), 0).unwrap();
        let length = |number| fs::metadata(file_path(folder.path(), number)).unwrap().len();
        log.append(&[record(1)]).unwrap();
        let with_room = length(1);
        assert!(with_room >= ROOM_BYTES as u64);
        for seq in 2..1000 {
            log.append(&[record(seq)]).unwrap();
        }
        assert_eq!(length(1), with_room, "nothing but bytes is made durable");
        let finished = log.file_bytes;
        log.rotate().unwrap();
        assert_eq!(length(1), finished);
        log.append(&[record(1000)]).unwrap();
        // As if that had not been done in time.
        File::options().write(true).open(file_path(folder.path(), 1)).unwrap().set_len(with_room).unwrap();
        drop(log);
        let (log, records) = open(folder.path(), 0).unwrap();
        assert!(records.iter().copied().eq(1..=1000));
        drop(log);
        assert_eq!(open(folder.path(), 999).unwrap().1, [1000]);
    }

    #[test]
    fn a_log_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _first = open(folder.path(), 0).unwrap();
        assert!(open(folder.path(), 0).is_err());
    }

    #[test]
    fn covered_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = open(folder.path(), 0).unwrap();
        log.append(&[record(1)]).unwrap();
        log.rotate().unwrap();
        log.append(&[record(2)]).unwrap();
        log.trim(1).unwrap();
        assert!(!file_path(folder.path(), 1).exists());
        drop(log);
        assert_eq!(open(folder.path(), 1).unwrap().1, [2]);
    }
}
