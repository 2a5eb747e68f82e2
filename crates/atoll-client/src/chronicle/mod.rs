//! What the process of a mount knows and nobody else does, in files in memory that outlive it.
//!
//! Whatever has an effect beyond its answer is noted before the answer leaves the process: changes that were made here,
//! answers to what must not be carried out twice, what is open and locked, which inodes the kernel knows. Another process that
//! has the files goes on from there: the kernel sends again what has no answer, and what was answered is found here.
//!
//! There are two files. One has a beginning (everything that was known then) and entries behind it; when they are too
//! long, the other one gets a new beginning, and counts from then on. An entry ends with a mark that no other place of a
//! file has: one that is cut off is not there. The process may be killed between any two bytes; the machine may not.
//!
//! Not noted is what only a second fault would miss: changes that the server made for this mount and a crash of the
//! server could take, before they are durable.

mod files;
mod known;

use std::fs::File;
use std::os::fd::OwnedFd;

use atoll_types::{InodeId, LockOwner};
use parking_lot::Mutex;
use rustc_hash::FxHashSet;

use files::Files;
pub(crate) use known::{Answer, Entry, Known, Told, With};

/// Numbers of requests are noted so many at a time.
pub(crate) const SEQUENCES: u64 = 65_536;

/// The kernel's mark of a request that it sends again (`FUSE_UNIQUE_RESEND`).
pub const SENT_AGAIN: u64 = 1 << 63;

/// What the kernel has open.
#[derive(Debug, Default)]
pub struct Handles {
    /// No handle is above this one.
    pub last: u64,
    pub open: Vec<(u64, InodeId)>,
    /// Who has locked ranges of what through which of them.
    pub locked: Vec<(u64, Vec<(InodeId, LockOwner)>)>,
    /// What was ever locked.
    pub inodes: Vec<InodeId>,
}

struct State {
    known: Known,
    /// Nothing when they could not be written: then the process is not survived.
    files: Option<Files>,
}

/// See the module.
pub struct Chronicle {
    state: Mutex<State>,
}

impl Chronicle {
    /// Begin one.
    pub(crate) fn new(known: Known) -> std::io::Result<Chronicle> {
        let files = Files::new(&known)?;
        Ok(Chronicle { state: Mutex::new(State { known, files: Some(files) }) })
    }

    /// Go on with the files of a process that is dead. `None` when they hold nothing that counts.
    pub fn recover(files: [File; 2]) -> std::io::Result<Option<Chronicle>> {
        let found = Files::recover(files)?;
        Ok(found.map(|(files, known)| Chronicle { state: Mutex::new(State { known, files: Some(files) }) }))
    }

    /// Note what has just come about.
    pub(crate) fn note(&self, entry: Entry) {
        let mut state = self.state.lock();
        let State { known, files: of } = &mut *state;
        let Some(files) = of else { return known.apply(entry) };
        let (written, entry) = files.append(entry);
        known.apply(entry);
        if let Err(error) = written.and_then(|()| files.begin_if_long(known)) {
            tracing::error!(%error, "what the mount knows cannot be noted: it will not outlive its process");
            files.spoil();
            *of = None;
        }
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.state.lock().known)
    }

    /// What the kernel was answered to a request that must not be carried out again.
    pub(crate) fn answer(&self, id: u64) -> Option<Answer> {
        self.state.lock().known.answers.get(id & !SENT_AGAIN).cloned()
    }

    /// The number that a request of the kernel has, which is sent again and has no answer.
    pub(crate) fn number(&self, id: u64) -> Option<u64> {
        let id = id & !SENT_AGAIN;
        self.state.lock().known.numbered.iter().find(|(_, of)| **of == id).map(|(sequence, _)| *sequence)
    }

    /// To be handed to who is to outlive this process.
    pub fn files(&self) -> Option<[OwnedFd; 2]> {
        self.state.lock().files.as_ref()?.copies().ok()
    }

    // ---- what the adapter knows

    /// The kernel opened a file.
    pub fn opened(&self, id: u64, handle: u64, inode: InodeId) {
        self.note(Entry::Opened { id: id & !SENT_AGAIN, handle, inode });
    }

    /// The handle that a request which is sent again was answered with.
    pub fn handle(&self, id: u64) -> Option<u64> {
        self.state.lock().known.opened.get(id & !SENT_AGAIN).copied()
    }

    /// The kernel closed a file; false when it had been closed before.
    pub fn closed(&self, handle: u64) -> bool {
        let is_open = self.with(|known| known.handles.contains_key(&handle));
        if is_open {
            self.note(Entry::Closed { handle });
        }
        is_open
    }

    pub fn locked(&self, handle: u64, inode: InodeId, owner: LockOwner) {
        self.note(Entry::Locked { handle, inode, owner });
    }

    pub fn unlocked(&self, handle: u64, inode: InodeId, owner: LockOwner) {
        self.note(Entry::Unlocked { handle, inode, owner });
    }

    pub fn handles(&self) -> Handles {
        self.with(|known| {
            let owners = |(handle, owners): (&u64, &FxHashSet<_>)| (*handle, owners.iter().copied().collect());
            let opened = known.opened.values();
            Handles {
                last: known.handles.keys().chain(opened).max().copied().unwrap_or_default(),
                open: known.handles.iter().map(|(handle, inode)| (*handle, *inode)).collect(),
                locked: known.locked.iter().map(owners).collect(),
                inodes: known.locks.keys().copied().collect(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use atoll_types::operation::WriteAt;
    use atoll_types::{Caller, Errno, JournalPosition, Operation, Outcome, Timestamp};
    use atoll_wire::Made;
    use rustix::fs::MemfdFlags;
    use std::os::unix::fs::FileExt;

    use super::files::BYTES_MAX;
    use super::known::ANSWERS_MAX;
    use super::*;
    use crate::journal::Change;

    const FILE: InodeId = InodeId(7);

    fn write(number: u64, bytes: usize) -> Change {
        let made = Made { caller: Caller::default(), at: Timestamp::default(), inode: None };
        let data = vec![number as u8; bytes].into();
        let operation = Operation::Write { inode: FILE, at: WriteAt::Offset(number), data, drop_privileges: false };
        Change { made, operation, touches: vec![FILE] }
    }

    fn made(number: u64, bytes: usize) -> Entry {
        let told = Told { id: 2 * number, answer: Ok(Outcome::Done), opens: None };
        Entry::Made { change: write(number, bytes), answer: Some(told) }
    }

    fn bytes(file: &impl AsFd) -> Vec<u8> {
        let file = File::from(file.as_fd().try_clone_to_owned().unwrap());
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// What another process finds.
    fn recovered(chronicle: &Chronicle) -> Chronicle {
        let files = chronicle.files().unwrap().map(|copy| file(&bytes(&copy)));
        Chronicle::recover(files).unwrap().unwrap()
    }

    fn shown(chronicle: &Chronicle) -> (Vec<Change>, u64, String) {
        chronicle.with(|known| {
            let journal = known.journal.iter().map(|change| (**change).clone()).collect();
            let opens = format!("{:?} {:?} {:?}", known.handles, known.opens, known.numbered);
            (journal, known.durable, opens)
        })
    }

    #[test]
    fn what_was_noted_is_known_to_the_next_process() {
        let chronicle = Chronicle::new(Known::default()).unwrap();
        for number in 0..5 {
            chronicle.note(made(number, 10));
        }
        chronicle.note(Entry::Durable(JournalPosition(2)));
        chronicle.note(Entry::Numbered { sequence: 9, id: 40 });
        chronicle.note(Entry::Numbered { sequence: 10, id: 42 });
        let told = Told { id: 40, answer: Err(Errno::ENOSPC), opens: None };
        chronicle.note(Entry::Answered { sequence: 9, answer: Some(told), opens: vec![(FILE, 1)] });
        chronicle.opened(44 | SENT_AGAIN, 3, FILE);
        for next in [recovered(&chronicle), recovered(&recovered(&chronicle))] {
            assert_eq!(shown(&next).1, 2);
            assert!(format!("{:?}", shown(&next)) == format!("{:?}", shown(&chronicle)));
            assert!(matches!(next.answer(8 | SENT_AGAIN), Some(Ok(Outcome::Done))));
            assert!(matches!(next.answer(40), Some(Err(Errno::ENOSPC))));
            assert_eq!((next.answer(42).is_none(), next.number(42), next.number(40)), (true, Some(10), None));
            assert_eq!((next.handle(44), next.closed(3), next.closed(3)), (Some(3), true, false));
        }
    }

    #[test]
    fn an_entry_that_is_cut_off_anywhere_is_not_there() {
        let chronicle = Chronicle::new(Known::default()).unwrap();
        chronicle.note(made(0, 3));
        let files = chronicle.files().unwrap();
        let before = bytes(&files[1]).len();
        chronicle.note(made(1, 3));
        let whole = bytes(&files[1]);
        for end in before..=whole.len() {
            // What stood there before is of another generation.
            let mut cut = whole[..end].to_vec();
            cut.resize(whole.len() + 64, 0xa5);
            let next = Chronicle::recover([file(&bytes(&files[0])), file(&cut)]).unwrap().unwrap();
            assert_eq!(shown(&next).0.len(), 1 + usize::from(end == whole.len()), "{end} of {}", whole.len());
        }
    }

    #[test]
    fn a_beginning_that_is_cut_off_leaves_the_other_file() {
        let chronicle = Chronicle::new(Known::default()).unwrap();
        chronicle.note(made(0, 3));
        let [first, second] = chronicle.files().unwrap();
        let counts = bytes(&second);
        let mut begun = vec![0; 8];
        begun.extend_from_slice(&counts[8..]);
        for other in [bytes(&first), begun] {
            let next = Chronicle::recover([file(&other), file(&counts)]).unwrap().unwrap();
            assert_eq!(shown(&next).0.len(), 1);
        }
        assert!(Chronicle::recover([file(&[]), file(&[0; 100])]).unwrap().is_none());
    }

    #[test]
    fn it_does_not_grow_with_time() {
        let chronicle = Chronicle::new(Known::default()).unwrap();
        for number in 0..400 {
            chronicle.note(made(number, 1 << 20));
            chronicle.note(Entry::Durable(JournalPosition(number.saturating_sub(3))));
        }
        for file in chronicle.files().unwrap() {
            assert!(File::from(file).metadata().unwrap().len() < BYTES_MAX + (8 << 20));
        }
        let next = recovered(&chronicle);
        let numbers = shown(&next).0.into_iter().map(|change| match change.operation {
            Operation::Write { at: WriteAt::Offset(number), data, .. } => (number, data.len()),
            other => panic!("{other:?}"),
        });
        assert!(numbers.eq((396..400).map(|number| (number, 1 << 20))));
    }

    #[test]
    fn only_the_newest_answers_are_found_again() {
        let chronicle = Chronicle::new(Known::default()).unwrap();
        for number in 0..=ANSWERS_MAX as u64 {
            chronicle.note(made(number, 0));
        }
        assert!(chronicle.answer(0).is_none() && chronicle.answer(2).is_some());
    }
}
