//! Operations on one mount, timed and recorded.
//!
//! Invariant: each operation's interval spans one system call (a listing: the
//! calls it is made of); whatever it needs beforehand, like an open descriptor,
//! lies outside. Paths start at a descriptor of this mount, so that a dead mount
//! answers by failing and never by what lies under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::history::*;
use crate::models::MODE_BITS;
use crate::mounts::Place;

/// The folder of the volume in which everything happens.
pub const BASE: &str = "w";
pub const REGISTER_BYTES: [usize; REGISTERS] = [8, 512, 4096];
pub const REGISTER_PATHS: [&str; REGISTERS] = ["r0", "r1", "r2"];
pub const MODE_PATH: &str = "mode";
pub const SIZE_PATH: &str = "size";
const SIZE_MAX: u64 = 1 << 20;
pub const RECORD_BYTES: usize = 8;

/// Why an operation gave no result.
pub enum Trouble {
    /// The mount was killed under it.
    Killed,
    /// The mount was fenced under it, and goes on.
    Fenced,
    /// It is no answer that a living mount may give.
    Defect(String),
}

pub type Outcome<T = ()> = Result<T, Trouble>;
/// From the call to its return, in nanoseconds.
pub type Span = (u64, u64);
pub type Answer<T> = (Result<T, Errno>, Span);

/// What all workers of a scenario share.
pub struct Common {
    pub clock: Instant,
    next_value: AtomicU64,
    /// A fence may lose what was acknowledged.
    may_lose_unflushed: bool,
}

impl Common {
    pub fn new(may_lose_unflushed: bool) -> Common {
        Common { clock: Instant::now(), next_value: AtomicU64::new(1), may_lose_unflushed }
    }

    pub fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    pub fn value(&self) -> u64 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }
}

/// Descriptors that stay open from one operation to the next, by path.
type Held = Vec<(String, Arc<OwnedFd>)>;

pub struct Hands {
    pub common: Arc<Common>,
    pub place: Arc<Place>,
    pub mount: usize,
    pub worker: usize,
    generation: u64,
    base: Option<Arc<OwnedFd>>,
    held: Held,
    pub log: String,
    pub events: Vec<Event>,
}

impl Hands {
    pub fn new(common: Arc<Common>, place: Arc<Place>, mount: usize, worker: usize) -> Hands {
        let (held, log, events) = (Vec::new(), String::new(), Vec::new());
        Hands { common, place, mount, worker, generation: 0, base: None, held, log, events }
    }

    /// Let everything go that belongs to a dead mount, and find the living one.
    pub fn find_mount(&mut self) -> Outcome {
        self.base = None;
        self.held.clear();
        let lost = || Trouble::Defect("a killed mount did not come back in time".into());
        let now = self.place.living().ok_or_else(lost)?;
        self.generation = now.generation;
        let folder = now.directory.join(BASE);
        let answer = self.timed(|| rustix::fs::open(&folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()));
        self.base = Some(Arc::new(self.good("open the base", answer)?.0));
        Ok(())
    }

    pub fn use_log(&mut self, log: &str) {
        let old = std::mem::replace(&mut self.log, log.to_owned());
        self.held.retain(|(path, _)| path.trim_end_matches('+') != old);
    }

    // ---- calls and what becomes of them

    pub fn timed<T>(&self, call: impl FnOnce() -> Result<T, Errno>) -> Answer<T> {
        let start = self.common.now_ns();
        let result = call();
        (result, (start, self.common.now_ns()))
    }

    /// Only death and a fence excuse an error that says nothing about files.
    pub fn answer<T>(&self, (result, span): Answer<T>) -> Outcome<Answer<T>> {
        const OF_DEATH: [Errno; 4] = [Errno::NOTCONN, Errno::CONNABORTED, Errno::IO, Errno::NODEV];
        match result {
            Err(error) if OF_DEATH.contains(&error) && self.place.was_killed(self.generation) => Err(Trouble::Killed),
            Err(Errno::IO) if self.place.may_be_fenced(span) => Err(Trouble::Fenced),
            result => Ok((result, span)),
        }
    }

    pub fn good<T>(&self, what: &str, answer: Answer<T>) -> Outcome<(T, Span)> {
        match self.answer(answer)? {
            (Ok(value), span) => Ok((value, span)),
            (Err(error), _) => Err(self.defect(what, error)),
        }
    }

    /// The same for a file that only this worker knows, made or moved at `since_ns`: a fence may have lost that.
    pub fn good_of_own<T>(&self, what: &str, since_ns: u64, answer: Answer<T>) -> Outcome<(T, Span)> {
        match answer {
            (Err(Errno::NOENT), (_, return_ns))
                if self.common.may_lose_unflushed && self.place.may_be_fenced((since_ns, return_ns)) =>
            {
                Err(Trouble::Fenced)
            }
            answer => self.good(what, answer),
        }
    }

    /// Of `fsync`, which says once what a fence has lost of a file.
    pub fn synced(&self, answer: Answer<()>) -> Outcome<((), Span)> {
        match answer {
            (Err(Errno::IO), span) if self.common.may_lose_unflushed && self.place.was_fenced_before(span) => {
                Err(Trouble::Fenced)
            }
            answer => self.good("fsync", answer),
        }
    }

    pub fn defect(&self, what: &str, error: impl std::fmt::Display) -> Trouble {
        Trouble::Defect(format!("mount {} worker {}: {what}: {error}", self.mount, self.worker))
    }

    pub fn record(&mut self, object: Object, action: Action, how: &'static str, (call_ns, return_ns): Span) {
        let (mount, worker) = (self.mount, self.worker);
        self.events.push(Event { object, action, how, call_ns, return_ns, mount, worker });
    }

    /// The inode of a file just opened. A fence closes it, so it is gone if it has no name by then.
    pub fn inode(&self, what: &str, file: &OwnedFd) -> Outcome<u64> {
        match self.timed(|| rustix::fs::fstat(file)) {
            (Err(Errno::STALE), span) if self.place.may_be_fenced(span) => Err(Trouble::Fenced),
            answer => Ok(self.good(what, answer)?.0.st_ino),
        }
    }

    /// Call for a change. If the mount dies or is fenced under it, it may still happen as `attempt`.
    pub fn change<T>(
        &mut self,
        object: Object,
        attempt: Action,
        how: &'static str,
        call: impl FnOnce() -> Result<T, Errno>,
    ) -> Outcome<Answer<T>> {
        let answer = self.timed(call);
        let start = answer.1.0;
        let answer = self.answer(answer);
        if answer.is_err() {
            self.record(object, attempt, how, (start, NEVER_RETURNED));
        }
        answer
    }

    pub fn base(&self) -> Arc<OwnedFd> {
        self.base.clone().expect("find_mount came first")
    }

    /// A new descriptor.
    pub fn open(&self, path: &str, flags: OFlags) -> Outcome<Arc<OwnedFd>> {
        let base = self.base();
        let answer = self.timed(|| rustix::fs::openat(&*base, path, flags | OFlags::CLOEXEC, Mode::RWXU));
        Ok(Arc::new(self.good(path, answer)?.0))
    }

    /// A descriptor for this path: one that stays open, or a new one.
    fn descriptor(&mut self, path: &str, flags: OFlags, is_held: bool) -> Outcome<Arc<OwnedFd>> {
        if !is_held {
            return self.open(path, flags);
        }
        // An appending descriptor is another one than a reading one of the same file.
        let key = if flags.contains(OFlags::APPEND) { format!("{path}+") } else { path.to_owned() };
        if let Some((_, found)) = self.held.iter().find(|(held, _)| *held == key) {
            return Ok(found.clone());
        }
        let opened = self.open(path, flags)?;
        self.held.push((key, opened.clone()));
        Ok(opened)
    }

    // ---- registers: bytes, mode, size

    pub fn write_register(&mut self, number: usize, is_held: bool) -> Outcome {
        let file = self.descriptor(REGISTER_PATHS[number], OFlags::RDWR, is_held)?;
        let value = self.common.value();
        let bytes = value.to_le_bytes().repeat(REGISTER_BYTES[number] / 8);
        let how = if is_held { "pwrite, held descriptor" } else { "pwrite, fresh descriptor" };
        let (object, action) = (Object::Register(number), Action::Write(value));
        match self.change(object, action, how, || rustix::io::pwrite(&*file, &bytes, 0))? {
            (Ok(length), span) if length == bytes.len() => self.record(object, action, how, span),
            (Ok(length), _) => return Err(self.defect(how, format!("only {length} bytes"))),
            (Err(error), _) => return Err(self.defect(how, error)),
        }
        Ok(())
    }

    pub fn read_register(&mut self, number: usize, is_held: bool) -> Outcome {
        let file = self.descriptor(REGISTER_PATHS[number], OFlags::RDWR, is_held)?;
        let mut bytes = vec![0u8; REGISTER_BYTES[number]];
        let how = if is_held { "pread, held descriptor" } else { "pread, fresh descriptor" };
        let answer = self.timed(|| rustix::io::pread(&*file, &mut bytes, 0));
        let (length, span) = self.good(how, answer)?;
        let mut words = bytes[..length].chunks(8).map(|word| word.try_into().map(u64::from_le_bytes));
        let first = words.next().and_then(Result::ok);
        let is_whole = length == bytes.len() && words.all(|word| word.ok() == first);
        let value = first.filter(|_| is_whole).unwrap_or(TORN);
        self.record(Object::Register(number), Action::Read(value), how, span);
        Ok(())
    }

    pub fn sync_register(&mut self, number: usize, is_held: bool) -> Outcome {
        let file = self.descriptor(REGISTER_PATHS[number], OFlags::RDWR, is_held)?;
        let answer = self.timed(|| rustix::fs::fsync(&*file));
        let ((), span) = self.synced(answer)?;
        // With everything that this mount has made.
        Object::shared().for_each(|object| self.record(object, Action::Sync, "fsync", span));
        Ok(())
    }

    pub fn change_mode(&mut self, is_held: bool) -> Outcome {
        let value = self.common.value() & MODE_BITS;
        let mode = Mode::from_raw_mode(value as u32);
        let action = Action::Write(value);
        let how = if is_held { "fchmod" } else { "chmod" };
        let answer = if is_held {
            let file = self.descriptor(MODE_PATH, OFlags::RDONLY, true)?;
            self.change(Object::Mode, action, how, || rustix::fs::fchmod(&*file, mode))?
        } else {
            let base = self.base();
            let call = || rustix::fs::chmodat(&*base, MODE_PATH, mode, AtFlags::empty());
            self.change(Object::Mode, action, how, call)?
        };
        let ((), span) = self.good(how, answer)?;
        self.record(Object::Mode, action, how, span);
        Ok(())
    }

    pub fn truncate(&mut self, is_held: bool) -> Outcome {
        let file = self.descriptor(SIZE_PATH, OFlags::RDWR, is_held)?;
        let size = self.common.value() % SIZE_MAX;
        let how = if is_held { "ftruncate, held descriptor" } else { "ftruncate, fresh descriptor" };
        let action = Action::Write(size);
        let answer = self.change(Object::Size, action, how, || rustix::fs::ftruncate(&*file, size))?;
        let ((), span) = self.good(how, answer)?;
        self.record(Object::Size, action, how, span);
        Ok(())
    }

    pub fn stat(&mut self, path: &str, is_held: bool) -> Outcome<(rustix::fs::Stat, &'static str, Span)> {
        if is_held {
            let flags = if path == SIZE_PATH { OFlags::RDWR } else { OFlags::RDONLY };
            let file = self.descriptor(path, flags, true)?;
            let answer = self.timed(|| rustix::fs::fstat(&*file));
            let (stat, span) = self.good(path, answer)?;
            return Ok((stat, "fstat", span));
        }
        let base = self.base();
        let answer = self.timed(|| rustix::fs::statat(&*base, path, AtFlags::empty()));
        let (stat, span) = self.good(path, answer)?;
        Ok((stat, "stat", span))
    }

    pub fn read_mode(&mut self, is_held: bool) -> Outcome {
        let (stat, how, span) = self.stat(MODE_PATH, is_held)?;
        self.record(Object::Mode, Action::Read(u64::from(stat.st_mode) & 0o7777), how, span);
        Ok(())
    }

    pub fn read_size(&mut self, is_held: bool) -> Outcome {
        let (stat, how, span) = self.stat(SIZE_PATH, is_held)?;
        self.record(Object::Size, Action::Read(stat.st_size as u64), how, span);
        Ok(())
    }

    // ---- the log

    pub fn append(&mut self, is_held: bool) -> Outcome {
        let path = self.log.clone();
        let file = self.descriptor(&path, OFlags::WRONLY | OFlags::APPEND, is_held)?;
        let record = self.common.value();
        let how = if is_held { "append, held descriptor" } else { "append, fresh descriptor" };
        let action = Action::Append(record);
        match self.change(Object::Log, action, how, || rustix::io::write(&*file, &record.to_le_bytes()))? {
            (Ok(RECORD_BYTES), span) => self.record(Object::Log, action, how, span),
            (Ok(length), _) => return Err(self.defect(how, format!("only {length} bytes"))),
            (Err(error), _) => return Err(self.defect(how, error)),
        }
        Ok(())
    }

    /// Read the log to its end.
    pub fn list_log(&mut self, is_held: bool) -> Outcome<Vec<u64>> {
        let path = self.log.clone();
        let file = self.descriptor(&path, OFlags::RDONLY, is_held)?;
        let how = if is_held { "read to the end, held descriptor" } else { "read to the end, fresh descriptor" };
        let answer = self.timed(|| {
            let (mut all, mut piece) = (Vec::new(), [0u8; 64 << 10]);
            loop {
                let length = rustix::io::pread(&*file, &mut piece, all.len() as u64)?;
                if length == 0 {
                    return Ok(all);
                }
                all.extend_from_slice(&piece[..length]);
            }
        });
        let (bytes, span) = self.good(how, answer)?;
        // Part of a record is as wrong as a wrong one.
        let records: Vec<u64> =
            bytes.chunks(RECORD_BYTES).map(|record| record.try_into().map_or(TORN, u64::from_le_bytes)).collect();
        let (count, sum) = (records.len() as u64, records.iter().fold(0, |sum, &record| add_to_sum(sum, record)));
        self.record(Object::Log, Action::List { count, sum }, how, span);
        Ok(records)
    }

    pub fn read_log_size(&mut self, is_held: bool) -> Outcome {
        let path = self.log.clone();
        let (stat, how, span) = self.stat(&path, is_held)?;
        let size = stat.st_size as u64;
        let count = if size.is_multiple_of(RECORD_BYTES as u64) { size / RECORD_BYTES as u64 } else { TORN };
        self.record(Object::Log, Action::Length(count), how, span);
        Ok(())
    }
}
