//! Folders that a mount works in alone for a while, so that it makes most changes without asking: its journal.
//!
//! Each is one object for the check: two files under names that come, go and move, a file of appended records and a
//! subdirectory. So what a mount loses of its journal must be the end of what it did to all of them together.
//!
//! Bytes and modes belong to inodes, wherever these are named: opening a name and using the descriptor are two events.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::hands::*;
use crate::history::*;
use crate::models::{MODE_BITS, chained, file_word};

/// For each mount.
pub const PLOTS_EACH: usize = 8;
/// Bytes of a file that is not empty: one value, repeated.
const FILE_BYTES: usize = 512;
const NAMES: [&str; 2] = ["a", "b"];
const LOG: &str = "log";
const SUBDIRECTORY: &str = "c";
const NOWHERE: usize = usize::MAX;
/// The longest that a worker pauses between two operations.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// Shared by all workers in a round.
pub struct Plots {
    mounts: usize,
    paths: Vec<String>,
    /// Held while a file is renamed in a plot: see `names` for what two at a time could make the kernel do. Set for
    /// good when the fate of one is unknown.
    renaming: Vec<Mutex<bool>>,
    /// The mount that works in each plot.
    at: Vec<AtomicUsize>,
    /// A mount may end: then it matters what was synced.
    may_lose: bool,
}

impl Plots {
    pub fn new(mounts: usize, round: u64, may_lose: bool) -> Plots {
        let paths: Vec<String> =
            (0..mounts * PLOTS_EACH).map(|plot| format!("m{}/r{round}-{plot}", plot % mounts)).collect();
        let renaming = paths.iter().map(|_| Mutex::new(false)).collect();
        let at = paths.iter().map(|_| AtomicUsize::new(NOWHERE)).collect();
        Plots { mounts, paths, renaming, at, may_lose }
    }

    pub fn objects(&self) -> impl Iterator<Item = Object> + use<> {
        (0..self.paths.len()).map(Object::Plot)
    }

    /// Mostly one that the mount made.
    fn to_work_in(&self, mount: usize, random: &mut Random) -> usize {
        let any = random.below(self.paths.len() as u64) as usize;
        let own = mount + random.below(PLOTS_EACH as u64) as usize * self.mounts;
        let is_free = |plot: usize| [NOWHERE, mount].contains(&self.at[plot].load(Ordering::Relaxed));
        if random.below(8) == 0 && is_free(any) { any } else { own }
    }

    /// Preferably one where another mount is at work.
    fn to_visit(&self, mount: usize, random: &mut Random) -> usize {
        let any = random.below(self.paths.len() as u64) as usize;
        let is_busy = |plot: &usize| ![NOWHERE, mount].contains(&self.at[*plot].load(Ordering::Relaxed));
        let busy: Vec<usize> = (0..self.paths.len()).filter(is_busy).collect();
        if busy.is_empty() || random.below(2) == 0 { any } else { busy[random.below(busy.len() as u64) as usize] }
    }
}

/// A descriptor and the inode it stands for.
type File = (u64, Arc<OwnedFd>);

/// A plot as a worker holds it for a stretch of work.
struct Ground {
    plot: usize,
    folder: Arc<OwnedFd>,
    /// Held open, for reading and writing, and for reading.
    file: Option<File>,
    read_file: Option<File>,
    log: Option<Arc<OwnedFd>>,
}

impl Ground {
    fn object(&self) -> Object {
        Object::Plot(self.plot)
    }
}

fn slot(file: usize) -> usize {
    2 * file
}

impl Hands {
    /// Where a mount makes its plots.
    pub fn make_yard(&mut self, mount: usize) -> Outcome {
        let (base, path) = (self.base(), format!("m{mount}"));
        let answer = self.timed(|| rustix::fs::mkdirat(&*base, path, Mode::RWXU));
        self.good("mkdir", answer).map(drop)
    }

    /// Make the plots that a mount starts with.
    pub fn make_plots(&mut self, plots: &Plots, mount: usize) -> Outcome {
        for path in plots.paths.iter().skip(mount).step_by(plots.mounts) {
            let base = self.base();
            let answer = self.timed(|| rustix::fs::mkdirat(&*base, path, Mode::RWXU));
            self.good("mkdir", answer)?;
            self.open(&format!("{path}/{LOG}"), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        }
        if plots.may_lose {
            let log = self.open(&format!("{}/{LOG}", plots.paths[mount]), OFlags::RDWR)?;
            let answer = self.timed(|| rustix::fs::fsync(&*log));
            self.good("fsync of new plots", answer)?;
        }
        Ok(())
    }

    /// Read everything once: what holds at the end of a round.
    pub fn look_at_plots(&mut self, plots: &Plots) -> Outcome {
        for plot in 0..plots.paths.len() {
            let mut ground = self.enter(plots, plot)?;
            self.list_plot(&ground)?;
            for file in 0..NAMES.len() {
                self.stat_name(&ground, file)?;
                self.read_file(&mut ground, file, false, true)?;
            }
            self.read_records(&mut ground, false)?;
        }
        Ok(())
    }

    /// Work, for the most part in one plot at a time, until then, and for as long as a fault lasts.
    pub fn work_in_plots(
        &mut self,
        plots: &Plots,
        random: &mut Random,
        until: Instant,
        fault: &AtomicBool,
        mut step: impl FnMut(),
    ) -> Outcome {
        let mut next_visit = Instant::now();
        while Instant::now() < until || fault.load(Ordering::Acquire) {
            if Instant::now() >= next_visit {
                next_visit = Instant::now() + Duration::from_millis(20 + random.below(180));
                let mut ground = self.enter(plots, plots.to_visit(self.mount, random))?;
                for _ in 0..1 + random.below(2) {
                    step();
                    self.one_in_plot(plots, &mut ground, random, true)?;
                }
                continue;
            }
            let plot = plots.to_work_in(self.mount, random);
            let mut ground = self.enter(plots, plot)?;
            plots.at[plot].store(self.mount, Ordering::Relaxed);
            let end = Instant::now() + Duration::from_millis(10 + random.below(90));
            let mut outcome = Ok(());
            while outcome.is_ok() && Instant::now() < end {
                step();
                outcome = self.one_in_plot(plots, &mut ground, random, false);
                // So that journals are of every length when somebody looks.
                if random.below(4) == 0 {
                    std::thread::sleep(PAUSE_MAX.mul_f64(random.below(100) as f64 / 100.0));
                }
            }
            plots.at[plot].store(NOWHERE, Ordering::Relaxed);
            outcome?;
        }
        Ok(())
    }

    fn enter(&mut self, plots: &Plots, plot: usize) -> Outcome<Ground> {
        let folder = self.open(&plots.paths[plot], OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Ground { plot, folder, file: None, read_file: None, log: None })
    }

    /// One random operation. Each share is in hundredths.
    fn one_in_plot(&mut self, plots: &Plots, ground: &mut Ground, random: &mut Random, is_visit: bool) -> Outcome {
        let file = random.below(NAMES.len() as u64) as usize;
        let is_held = random.below(2) == 0;
        match random.below(100) {
            0..12 => self.create_file(ground, file),
            12..28 => self.write_file(ground, file, is_held),
            28..36 => self.read_file(ground, file, is_held, false),
            36..44 => self.read_file(ground, file, is_held, true),
            44..49 => self.empty_file(ground, file, is_held),
            49..55 => self.change_file_mode(ground, file, is_held),
            55..63 => self.stat_name(ground, file),
            63..69 => self.remove_file(ground, file),
            69..77 => self.move_file(plots, ground, file),
            77..85 => self.append_record(ground, is_held),
            85..88 => self.read_records(ground, is_held),
            88..90 => self.count_records(ground),
            90..91 => self.empty_log(ground, is_held),
            91..93 => self.make_subdirectory(ground),
            93..95 => self.remove_subdirectory(ground),
            95..98 => self.list_plot(ground),
            _ if is_visit => self.list_plot(ground),
            _ => self.sync_plots(plots, ground, is_held),
        }
    }

    /// A fence closes a file without a name.
    fn of_file<T>(&self, what: &str, answer: Answer<T>) -> Outcome<(T, Span)> {
        match answer {
            (Err(Errno::STALE), span) if self.place.may_be_fenced(span) => Err(Trouble::Fenced),
            answer => self.good(what, answer),
        }
    }

    /// The same for a change.
    fn change_file<T>(
        &mut self,
        object: Object,
        action: Action,
        how: &'static str,
        call: impl FnOnce() -> Result<T, Errno>,
    ) -> Outcome<T> {
        let answer = self.change(object, action, how, call)?;
        let start = answer.1.0;
        let answer = self.of_file(how, answer);
        match &answer {
            Ok((_, span)) => self.record(object, action, how, *span),
            Err(_) => self.record(object, action, how, (start, NEVER_RETURNED)),
        }
        Ok(answer?.0)
    }

    /// Change a name that may not be there, or be there already.
    fn change_plot_name<T>(
        &mut self,
        object: Object,
        action: Action,
        otherwise: (Errno, Action),
        how: &'static str,
        call: impl FnOnce() -> Result<T, Errno>,
    ) -> Outcome<Option<T>> {
        match self.change(object, action, how, call)? {
            (Ok(value), span) => {
                self.record(object, action, how, span);
                Ok(Some(value))
            }
            (Err(error), span) if error == otherwise.0 => {
                self.record(object, otherwise.1, how, span);
                Ok(None)
            }
            (Err(error), _) => Err(self.defect(how, error)),
        }
    }

    // ---- the two files

    fn create_file(&mut self, ground: &mut Ground, file: usize) -> Outcome {
        let (folder, object) = (ground.folder.clone(), ground.object());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let attempt = Action::Make { file, inode: UNKNOWN_INODE };
        let otherwise = (Errno::EXIST, Action::Present { slot: slot(file) });
        let call = || rustix::fs::openat(&*folder, NAMES[file], flags, Mode::RUSR | Mode::WUSR);
        if let Some(made) = self.change_plot_name(object, attempt, otherwise, "open O_CREAT|O_EXCL", call)? {
            let at = self.events.len() - 1;
            let inode = self.inode("fstat what was created", &made)?;
            self.events[at].action = Action::Make { file, inode };
            ground.file = Some((inode, Arc::new(made)));
        }
        Ok(())
    }

    /// The file of this name, or one that is held open.
    fn find_file(&mut self, ground: &mut Ground, file: usize, is_held: bool, flags: OFlags) -> Outcome<Option<File>> {
        let is_reading = flags == OFlags::RDONLY;
        if let (true, Some(held)) = (is_held, if is_reading { &ground.read_file } else { &ground.file }) {
            return Ok(Some(held.clone()));
        }
        let call = || rustix::fs::openat(&*ground.folder, NAMES[file], flags | OFlags::CLOEXEC, Mode::empty());
        let answer = self.timed(call);
        let (result, span) = self.answer(answer)?;
        let (object, slot, how) = (ground.object(), slot(file), "open and fstat");
        let opened = match result {
            Ok(opened) => opened,
            Err(Errno::NOENT) => {
                self.record(object, Action::Observe { slot, inode: ABSENT }, how, span);
                return Ok(None);
            }
            Err(error) => return Err(self.defect(how, error)),
        };
        let inode = self.inode(how, &opened)?;
        self.record(object, Action::Observe { slot, inode }, how, span);
        let found = (inode, Arc::new(opened));
        *(if is_reading { &mut ground.read_file } else { &mut ground.file }) = Some(found.clone());
        Ok(Some(found))
    }

    fn write_file(&mut self, ground: &mut Ground, file: usize, is_held: bool) -> Outcome {
        let Some((inode, file)) = self.find_file(ground, file, is_held, OFlags::RDWR)? else { return Ok(()) };
        let value = self.common.value();
        let bytes = value.to_le_bytes().repeat(FILE_BYTES / 8);
        let call = || rustix::io::pwrite(&*file, &bytes, 0);
        let length = self.change_file(ground.object(), Action::Put { inode, value }, "pwrite", call)?;
        if length == bytes.len() { Ok(()) } else { Err(self.defect("pwrite", format!("only {length} bytes"))) }
    }

    fn read_file(&mut self, ground: &mut Ground, file: usize, is_held: bool, is_cached: bool) -> Outcome {
        let (flags, how) =
            if is_cached { (OFlags::RDONLY, "pread, page cache") } else { (OFlags::RDWR, "pread, direct") };
        let Some((inode, file)) = self.find_file(ground, file, is_held, flags)? else { return Ok(()) };
        let mut bytes = [0u8; 2 * FILE_BYTES];
        let answer = self.timed(|| rustix::io::pread(&*file, &mut bytes, 0));
        let (length, span) = self.of_file(how, answer)?;
        let mut words = bytes[..length].chunks(8).map(|word| word.try_into().map_or(TORN, u64::from_le_bytes));
        let first = words.next().unwrap_or(0);
        let is_whole = [0, FILE_BYTES].contains(&length) && words.all(|word| word == first);
        let value = if is_whole { first } else { TORN };
        self.record(ground.object(), Action::Get { inode, value }, how, span);
        Ok(())
    }

    fn empty_file(&mut self, ground: &mut Ground, file: usize, is_held: bool) -> Outcome {
        let Some((inode, file)) = self.find_file(ground, file, is_held, OFlags::RDWR)? else { return Ok(()) };
        let action = Action::Put { inode, value: 0 };
        self.change_file(ground.object(), action, "ftruncate", || rustix::fs::ftruncate(&*file, 0))
    }

    fn change_file_mode(&mut self, ground: &mut Ground, file: usize, is_held: bool) -> Outcome {
        let Some((inode, file)) = self.find_file(ground, file, is_held, OFlags::RDWR)? else { return Ok(()) };
        let mode = self.common.value() & MODE_BITS;
        let call = || rustix::fs::fchmod(&*file, Mode::from_raw_mode(mode as u32));
        self.change_file(ground.object(), Action::SetMode { inode, mode }, "fchmod", call)
    }

    fn stat_name(&mut self, ground: &Ground, file: usize) -> Outcome {
        let answer = self.timed(|| rustix::fs::statat(&*ground.folder, NAMES[file], AtFlags::empty()));
        let (result, span) = self.answer(answer)?;
        let inode = match result {
            Ok(stat) => {
                let size = stat.st_size as usize;
                if size != 0 && size != FILE_BYTES {
                    return Err(self.defect("stat", format!("{} has {size} bytes", NAMES[file])));
                }
                let mode = u64::from(stat.st_mode) & 0o7777;
                let action = Action::Look { inode: stat.st_ino, mode, is_empty: size == 0 };
                self.record(ground.object(), action, "stat", span);
                stat.st_ino
            }
            Err(Errno::NOENT) => ABSENT,
            Err(error) => return Err(self.defect("stat", error)),
        };
        self.record(ground.object(), Action::Observe { slot: slot(file), inode }, "stat", span);
        Ok(())
    }

    fn remove_file(&mut self, ground: &Ground, file: usize) -> Outcome {
        let otherwise = (Errno::NOENT, Action::Observe { slot: slot(file), inode: ABSENT });
        let call = || rustix::fs::unlinkat(&*ground.folder, NAMES[file], AtFlags::empty());
        self.change_plot_name(ground.object(), Action::Unmake { file }, otherwise, "unlink", call).map(drop)
    }

    fn move_file(&mut self, plots: &Plots, ground: &Ground, from: usize) -> Outcome {
        let Ok(mut is_unknown) = plots.renaming[ground.plot].try_lock() else { return Ok(()) };
        if *is_unknown {
            return Ok(());
        }
        let otherwise = (Errno::NOENT, Action::Observe { slot: slot(from), inode: ABSENT });
        let (folder, to) = (&ground.folder, 1 - from);
        let call = || rustix::fs::renameat(&**folder, NAMES[from], &**folder, NAMES[to]);
        let moved = self.change_plot_name(ground.object(), Action::Move { from }, otherwise, "rename", call);
        *is_unknown = moved.is_err();
        moved.map(drop)
    }

    // ---- the log and the subdirectory

    fn log_of(&mut self, ground: &mut Ground, is_held: bool) -> Outcome<Arc<OwnedFd>> {
        if let (true, Some(log)) = (is_held, &ground.log) {
            return Ok(log.clone());
        }
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC;
        let answer = self.timed(|| rustix::fs::openat(&*ground.folder, LOG, flags, Mode::empty()));
        let log = Arc::new(self.good("open the log", answer)?.0);
        ground.log = Some(log.clone());
        Ok(log)
    }

    fn append_record(&mut self, ground: &mut Ground, is_held: bool) -> Outcome {
        let log = self.log_of(ground, is_held)?;
        let record = self.common.value();
        let call = || rustix::io::write(&*log, &record.to_le_bytes());
        let length = self.change_file(ground.object(), Action::Chain(record), "append", call)?;
        if length == RECORD_BYTES { Ok(()) } else { Err(self.defect("append", format!("only {length} bytes"))) }
    }

    fn read_records(&mut self, ground: &mut Ground, is_held: bool) -> Outcome {
        let log = self.log_of(ground, is_held)?;
        let mut bytes = vec![0; 64 << 10];
        let answer = self.timed(|| rustix::io::pread(&*log, &mut bytes, 0));
        let (length, span) = self.good("read the log", answer)?;
        if length == bytes.len() {
            return Err(self.defect("read the log", "it is longer than expected"));
        }
        let records =
            bytes[..length].chunks(RECORD_BYTES).map(|record| record.try_into().map_or(TORN, u64::from_le_bytes));
        let action = Action::Observe { slot: LOG_SLOT, inode: records.fold(0, chained) };
        self.record(ground.object(), action, "pread of the log", span);
        Ok(())
    }

    fn count_records(&mut self, ground: &Ground) -> Outcome {
        let answer = self.timed(|| rustix::fs::statat(&*ground.folder, LOG, AtFlags::empty()));
        let (stat, span) = self.good("stat of the log", answer)?;
        let size = stat.st_size as u64;
        let count = if size.is_multiple_of(RECORD_BYTES as u64) { size / RECORD_BYTES as u64 } else { TORN };
        self.record(ground.object(), Action::Links(count), "stat of the log", span);
        Ok(())
    }

    fn empty_log(&mut self, ground: &mut Ground, is_held: bool) -> Outcome {
        let log = self.log_of(ground, is_held)?;
        let call = || rustix::fs::ftruncate(&*log, 0);
        self.change_file(ground.object(), Action::Unchain, "ftruncate of the log", call)
    }

    fn make_subdirectory(&mut self, ground: &Ground) -> Outcome {
        let action = Action::Create { slot: SUBDIRECTORY_SLOT, inode: SOME_INODE };
        let otherwise = (Errno::EXIST, Action::Present { slot: SUBDIRECTORY_SLOT });
        let call = || rustix::fs::mkdirat(&*ground.folder, SUBDIRECTORY, Mode::RWXU);
        self.change_plot_name(ground.object(), action, otherwise, "mkdir", call).map(drop)
    }

    fn remove_subdirectory(&mut self, ground: &Ground) -> Outcome {
        let action = Action::Remove { slot: SUBDIRECTORY_SLOT };
        let otherwise = (Errno::NOENT, Action::Observe { slot: SUBDIRECTORY_SLOT, inode: ABSENT });
        let call = || rustix::fs::unlinkat(&*ground.folder, SUBDIRECTORY, AtFlags::REMOVEDIR);
        self.change_plot_name(ground.object(), action, otherwise, "rmdir", call).map(drop)
    }

    /// A listing is no picture of one moment: each name counts by itself.
    fn list_plot(&mut self, ground: &Ground) -> Outcome {
        let answer = self.timed(|| {
            let mut entries = Vec::new();
            for entry in Dir::read_from(&*ground.folder)? {
                let entry = entry?;
                entries.push((entry.file_name().to_string_lossy().into_owned(), entry.ino()));
            }
            Ok(entries)
        });
        let (entries, span) = self.good("listing", answer)?;
        let expected = [".", "..", NAMES[0], NAMES[1], LOG, SUBDIRECTORY];
        if let Some((name, _)) = entries.iter().find(|(name, _)| !expected.contains(&name.as_str())) {
            return Err(self.defect("listing", format!("{name} was never made")));
        }
        let found = |name: &str| entries.iter().find(|(other, _)| other == name).map_or(ABSENT, |(_, inode)| *inode);
        if found(LOG) == ABSENT {
            return Err(self.defect("listing", "the log is not there"));
        }
        let subdirectory = if found(SUBDIRECTORY) == ABSENT { ABSENT } else { SOME_INODE };
        for (slot, inode) in [(slot(0), found(NAMES[0])), (slot(1), found(NAMES[1])), (SUBDIRECTORY_SLOT, subdirectory)]
        {
            self.record(ground.object(), Action::Observe { slot, inode }, "listing", span);
        }
        Ok(())
    }

    /// What is synced is all that the mount has made, in every plot.
    fn sync_plots(&mut self, plots: &Plots, ground: &mut Ground, is_held: bool) -> Outcome {
        let log = self.log_of(ground, is_held)?;
        let answer = self.timed(|| rustix::fs::fsync(&*log));
        let ((), span) = self.synced(answer)?;
        if plots.may_lose {
            plots.objects().for_each(|object| self.record(object, Action::Sync, "fsync", span));
        }
        Ok(())
    }
}

/// What must hold of this file.
pub const TESTS: [(&str, fn()); 1] = [("words of plots are what was put into them", words)];

fn words() {
    assert_ne!(chained(chained(0, 1), 2), chained(chained(0, 2), 1));
    assert_eq!(chained(chained(0, 7), 8) & LINKS_MASK, 2);
    assert_ne!(file_word(1, 0o600), file_word(1, 0o601));
}
