//! Operations on names, and the scene in which a scenario starts.
//!
//! The kernel looks both names of a rename up, one after the other, before it
//! asks for the rename; when it finds one inode under both it answers "done" and
//! asks for nothing. Another client that renames the first to the second between
//! the two look-ups causes that on any network file system. So that such a
//! success is not taken for one of ours, each pair of shared names belongs to one
//! worker, and the pairs form a ring: only that worker moves a file from the one
//! to the other.

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::hands::*;
use crate::history::*;

/// Where files wait that come from elsewhere or go there.
const ELSEWHERE: &str = "tmp";

/// A listing of a folder with shared names.
#[derive(Clone, Copy)]
pub enum Folder {
    First,
    Second,
    Folders,
}

impl Folder {
    const fn path(self) -> &'static str {
        match self {
            Folder::First => "d0",
            Folder::Second => "d1",
            Folder::Folders => "e",
        }
    }
}

fn paths(object: Object) -> &'static [&'static str] {
    if object == Object::Folders { &FOLDER_PATHS } else { &SLOT_PATHS }
}

impl Hands {
    /// The folders and files that every round uses.
    pub fn set_scene(&mut self) -> Outcome {
        let now = self.place.living().ok_or_else(|| Trouble::Defect("no mount".into()))?;
        let base = now.directory.join(BASE);
        let made = rustix::fs::mkdir(&base, Mode::RWXU).map_err(|error| self.defect("mkdir", error));
        made.and_then(|()| self.find_mount())?;
        for folder in [Folder::First.path(), Folder::Second.path(), Folder::Folders.path(), ELSEWHERE] {
            let base = self.base();
            let answer = self.timed(|| rustix::fs::mkdirat(&*base, folder, Mode::RWXU));
            self.good("mkdir", answer)?;
        }
        for (number, path) in REGISTER_PATHS.into_iter().enumerate() {
            self.open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
            self.write_register(number, true)?;
        }
        for path in [MODE_PATH, SIZE_PATH] {
            self.open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        }
        self.events.clear();
        Ok(())
    }

    /// A log of its own for a round.
    pub fn make_log(&mut self, path: &str) -> Outcome {
        self.use_log(path);
        self.open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).map(drop)
    }

    pub fn remove_log(&mut self) -> Outcome {
        let (base, path) = (self.base(), self.log.clone());
        self.use_log("");
        let answer = self.timed(|| rustix::fs::unlinkat(&*base, path, AtFlags::empty()));
        self.good("unlink the log", answer).map(drop)
    }

    /// Read everything once: what holds at the end of a round. Gives the log.
    pub fn look_at_everything(&mut self) -> Outcome<Vec<u64>> {
        (0..REGISTERS).try_for_each(|number| self.read_register(number, false))?;
        self.read_mode(false)?;
        self.read_size(false)?;
        for folder in [Folder::First, Folder::Second, Folder::Folders] {
            self.list(folder)?;
        }
        (0..SLOTS).try_for_each(|slot| self.look_up(Object::Names, slot))?;
        (0..FOLDERS).try_for_each(|slot| self.look_up(Object::Folders, slot))?;
        self.read_log_size(false)?;
        self.list_log(false)
    }

    pub fn create(&mut self, slot: usize) -> Outcome {
        let (base, how) = (self.base(), "open O_CREAT|O_EXCL");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let attempt = Action::Create { slot, inode: UNKNOWN_INODE };
        let call = || rustix::fs::openat(&*base, SLOT_PATHS[slot], flags, Mode::RUSR);
        match self.change(Object::Names, attempt, how, call)? {
            (Ok(file), span) => {
                let at = self.events.len();
                self.record(Object::Names, attempt, how, span);
                let inode = self.inode("fstat what was created", &file)?;
                self.events[at].action = Action::Create { slot, inode };
            }
            (Err(Errno::EXIST), span) => self.record(Object::Names, Action::Present { slot }, how, span),
            (Err(error), _) => return Err(self.defect(how, error)),
        }
        Ok(())
    }

    pub fn make_folder(&mut self, slot: usize) -> Outcome {
        let (base, how) = (self.base(), "mkdir");
        let action = Action::Create { slot, inode: SOME_INODE };
        let call = || rustix::fs::mkdirat(&*base, FOLDER_PATHS[slot], Mode::RWXU);
        match self.change(Object::Folders, action, how, call)? {
            (Ok(()), span) => self.record(Object::Folders, action, how, span),
            (Err(Errno::EXIST), span) => self.record(Object::Folders, Action::Present { slot }, how, span),
            (Err(error), _) => return Err(self.defect(how, error)),
        }
        Ok(())
    }

    pub fn remove(&mut self, object: Object, slot: usize) -> Outcome {
        let base = self.base();
        let (how, flags) = match object {
            Object::Folders => ("rmdir", AtFlags::REMOVEDIR),
            _ => ("unlink", AtFlags::empty()),
        };
        let action = Action::Remove { slot };
        let answer = self.change(object, action, how, || rustix::fs::unlinkat(&*base, paths(object)[slot], flags))?;
        self.changed_or_absent(object, action, slot, how, answer)
    }

    /// Rename a shared name to the next one of the ring.
    pub fn rename(&mut self, object: Object, from: usize) -> Outcome {
        let (base, names, how) = (self.base(), paths(object), "rename");
        let to = (from + 1) % names.len();
        let action = Action::Rename { from, to };
        let answer =
            self.change(object, action, how, || rustix::fs::renameat(&*base, names[from], &*base, names[to]))?;
        self.changed_or_absent(object, action, from, how, answer)
    }

    /// Record the change, or that the name it needs was not there.
    fn changed_or_absent(
        &mut self,
        object: Object,
        action: Action,
        slot: usize,
        how: &'static str,
        answer: Answer<()>,
    ) -> Outcome {
        match answer {
            (Ok(()), span) => self.record(object, action, how, span),
            (Err(Errno::NOENT), span) => self.record(object, Action::Observe { slot, inode: ABSENT }, how, span),
            (Err(error), _) => return Err(self.defect(how, error)),
        }
        Ok(())
    }

    fn elsewhere(&self) -> String {
        format!("{ELSEWHERE}/{}", self.common.value())
    }

    /// Make a file under a name that nobody else knows, and rename it to a shared one.
    pub fn install(&mut self, slot: usize) -> Outcome {
        let (base, path, how) = (self.base(), self.elsewhere(), "rename from elsewhere");
        let made_ns = self.common.now_ns();
        let file = self.open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        let inode = self.inode("fstat what was created", &file)?;
        let action = Action::Install { slot, inode };
        let call = || rustix::fs::renameat(&*base, &path, &*base, SLOT_PATHS[slot]);
        let answer = self.change(Object::Names, action, how, call)?;
        let ((), span) = self.good_of_own(how, made_ns, answer)?;
        self.record(Object::Names, action, how, span);
        Ok(())
    }

    /// Rename a shared name to one that nobody else knows, and look which file it was.
    pub fn take(&mut self, slot: usize) -> Outcome {
        let (base, path, how) = (self.base(), self.elsewhere(), "rename elsewhere");
        let attempt = Action::Take { slot, inode: UNKNOWN_INODE };
        let call = || rustix::fs::renameat(&*base, SLOT_PATHS[slot], &*base, &path);
        let answer = self.change(Object::Names, attempt, how, call)?;
        let (is_taken, at, taken_ns) = (answer.0.is_ok(), self.events.len(), answer.1.0);
        self.changed_or_absent(Object::Names, attempt, slot, how, answer)?;
        if is_taken {
            let answer = self.timed(|| rustix::fs::statat(&*base, &path, AtFlags::empty()));
            let inode = self.good_of_own("stat what was taken", taken_ns, answer)?.0.st_ino;
            self.events[at].action = Action::Take { slot, inode };
            let answer = self.timed(|| rustix::fs::unlinkat(&*base, &path, AtFlags::empty()));
            self.good_of_own("unlink what was taken", taken_ns, answer)?;
        }
        Ok(())
    }

    pub fn look_up(&mut self, object: Object, slot: usize) -> Outcome {
        let base = self.base();
        let answer = self.timed(|| rustix::fs::statat(&*base, paths(object)[slot], AtFlags::empty()));
        let found = self.answer(answer)?;
        let found = (found.0.map(|stat| stat.st_ino), found.1);
        self.found(object, slot, "stat", found)
    }

    pub fn open_and_look(&mut self, slot: usize) -> Outcome {
        let (base, how) = (self.base(), "open and fstat");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let answer = self.timed(|| rustix::fs::openat(&*base, SLOT_PATHS[slot], flags, Mode::empty()));
        let (result, span) = self.answer(answer)?;
        let result = match result {
            Ok(file) => Ok(self.inode("fstat what was opened", &file)?),
            Err(error) => Err(error),
        };
        self.found(Object::Names, slot, how, (result, span))
    }

    fn found(&mut self, object: Object, slot: usize, how: &'static str, answer: Answer<u64>) -> Outcome {
        let inode = match answer.0 {
            Ok(_) if object == Object::Folders => SOME_INODE,
            Ok(inode) => inode,
            Err(Errno::NOENT) => ABSENT,
            Err(error) => return Err(self.defect(&format!("{how} of {}", paths(object)[slot]), error)),
        };
        self.record(object, Action::Observe { slot, inode }, how, answer.1);
        Ok(())
    }

    /// List a folder. A listing is no picture of one moment: each name it has, and each that it lacks, counts by itself.
    pub fn list(&mut self, folder: Folder) -> Outcome {
        let (base, how) = (self.base(), "listing");
        let object = if matches!(folder, Folder::Folders) { Object::Folders } else { Object::Names };
        let answer = self.timed(|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&*base, folder.path(), flags, Mode::empty())?;
            let mut entries = Vec::new();
            for entry in Dir::new(opened)? {
                let entry = entry?;
                entries.push((entry.file_name().to_string_lossy().into_owned(), entry.ino()));
            }
            Ok(entries)
        });
        let (entries, span) = self.good(how, answer)?;
        let in_folder = |path: &&str| path.split('/').next() == Some(folder.path());
        let mut listed = vec![false; paths(object).len()];
        for (name, inode) in entries.into_iter().filter(|(name, _)| name != "." && name != "..") {
            let path = format!("{}/{name}", folder.path());
            let Some(slot) = paths(object).iter().position(|known| *known == path) else {
                return Err(self.defect(how, format!("{path} was never made")));
            };
            listed[slot] = true;
            let inode = if object == Object::Folders { SOME_INODE } else { inode };
            self.record(object, Action::Observe { slot, inode }, how, span);
        }
        for (slot, _) in paths(object).iter().enumerate().filter(|(_, path)| in_folder(path)) {
            if !listed[slot] {
                self.record(object, Action::Observe { slot, inode: ABSENT }, how, span);
            }
        }
        Ok(())
    }
}
