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

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use atoll_types::locks::Lock;
use atoll_types::{Errno, InodeId, JournalPosition, LockOwner, Operation, Outcome};
use atoll_wire::Resume;
use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::journal::Change;
use crate::locks::Owner;

/// A file gets no longer than this before the other one counts, unless what is known is longer. In bytes.
const BYTES_MAX: u64 = 64 << 20;
/// Answers that are found again: more than can be on their way to the kernel at a time.
const ANSWERS_MAX: usize = 16_384;
/// Numbers of requests are noted so many at a time.
pub(crate) const SEQUENCES: u64 = 65_536;
/// Before the first entry: which file counts.
const HEAD_BYTES: u64 = 8;
/// Longest entry.
const ENTRY_BYTES_MAX: usize = 1 << 30;

pub(crate) type Answer = Result<Outcome, Errno>;

/// The kernel's mark of a request that it sends again (`FUSE_UNIQUE_RESEND`).
pub const SENT_AGAIN: u64 = 1 << 63;

/// With whom the session is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct With {
    pub resume: Option<Resume>,
    pub instance: Option<u64>,
}

/// What the kernel is answered to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub id: u64,
    pub answer: Answer,
    /// What it opens.
    pub opens: Option<InodeId>,
}

/// [`Entry::Everything`], without taking it.
#[derive(Serialize)]
enum Beginning<'a> {
    Everything(&'a Known),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// The beginning of a file; what it knows of the journal follows.
    Everything(Box<Known>),
    /// A change that stands in the journal since before the beginning.
    Stands(Change),
    Connected(With),
    /// Requests may have numbers below this one.
    Sequences(u64),
    /// A request of the kernel that is to be executed once.
    Numbered {
        sequence: u64,
        id: u64,
    },
    /// One of this process's own: what was opened and closed here.
    Said {
        sequence: u64,
        operations: Vec<Operation>,
    },
    /// The authority has answered such a request. `opens`: how many more opens it counts.
    Answered {
        sequence: u64,
        answer: Option<Told>,
        opens: Vec<(InodeId, i32)>,
    },
    /// A change was put into the journal, and what the kernel is answered.
    Made {
        change: Change,
        answer: Option<Told>,
    },
    /// The journal is durable up to here.
    Durable(JournalPosition),
    /// The journal begins anew here. The authority will not count these opens that stood in it.
    Discarded {
        at: JournalPosition,
        opens: Vec<InodeId>,
    },
    /// The kernel opened a file by this request.
    Opened {
        id: u64,
        handle: u64,
        inode: InodeId,
    },
    Closed {
        handle: u64,
    },
    /// Nobody waits for the answer to a request any more that opened a file.
    Abandoned {
        id: u64,
    },
    /// The kernel was told of an inode, or has forgotten it.
    Shown(InodeId),
    Forgotten(InodeId),
    /// All locks that are held of a file.
    Locks {
        inode: InodeId,
        locks: Vec<Lock>,
    },
    /// An owner has locked ranges of a file through a handle, or has none any more.
    Locked {
        handle: u64,
        inode: InodeId,
        owner: LockOwner,
    },
    Unlocked {
        handle: u64,
        inode: InodeId,
        owner: LockOwner,
    },
    LostLocks {
        inode: InodeId,
        owners: Vec<Owner>,
    },
    Failed(Vec<(InodeId, Errno)>),
}

/// The newest of what is asked for again soon or never.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recent<T> {
    order: VecDeque<u64>,
    by_id: FxHashMap<u64, T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent { order: VecDeque::new(), by_id: FxHashMap::default() }
    }
}

impl<T> Recent<T> {
    fn put(&mut self, id: u64, value: T) {
        if self.by_id.insert(id, value).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > ANSWERS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }
}

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

/// What the entries come to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    pub with: With,
    pub sequences: u64,
    /// Requests of the kernel without an answer, by number.
    pub numbered: BTreeMap<u64, u64>,
    /// The same of this process's own.
    pub said: BTreeMap<u64, Vec<Operation>>,
    pub answers: Recent<Answer>,
    /// What requests have opened that have no handle yet.
    pub opening: BTreeMap<u64, InodeId>,
    /// Handles by the requests that opened them.
    pub opened: Recent<u64>,
    /// The journal behind `durable`.
    #[serde(skip)]
    pub journal: VecDeque<Arc<Change>>,
    pub durable: u64,
    pub handles: FxHashMap<u64, InodeId>,
    /// Opens that the authority counts, or will when the journal is executed.
    pub opens: FxHashMap<InodeId, i64>,
    pub inodes: FxHashSet<InodeId>,
    pub locks: FxHashMap<InodeId, Vec<Lock>>,
    pub locked: FxHashMap<u64, FxHashSet<(InodeId, LockOwner)>>,
    pub lost_locks: FxHashMap<InodeId, Vec<Owner>>,
    pub failed: FxHashMap<InodeId, Errno>,
}

fn opened(change: &Change) -> Option<InodeId> {
    match change.operation {
        Operation::Open { inode, .. } => Some(inode),
        _ => None,
    }
}

impl Known {
    fn count(&mut self, inode: InodeId, more: i64) {
        let count = self.opens.entry(inode).or_default();
        *count += more;
        if *count == 0 {
            self.opens.remove(&inode);
        }
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Everything(known) => *self = *known,
            Entry::Stands(change) => self.journal.push_back(Arc::new(change)),
            Entry::Connected(with) => self.with = with,
            Entry::Sequences(below) => self.sequences = below,
            Entry::Numbered { sequence, id } => drop(self.numbered.insert(sequence, id)),
            Entry::Said { sequence, operations } => drop(self.said.insert(sequence, operations)),
            Entry::Answered { sequence, answer, opens } => {
                self.numbered.remove(&sequence);
                self.said.remove(&sequence);
                self.told(answer);
                opens.into_iter().for_each(|(inode, more)| self.count(inode, i64::from(more)));
            }
            Entry::Made { change, answer } => self.made(Arc::new(change), answer),
            Entry::Durable(JournalPosition(position)) => {
                while self.durable < position && self.journal.pop_front().is_some() {
                    self.durable += 1;
                }
            }
            Entry::Discarded { at: JournalPosition(at), opens } => {
                self.journal.clear();
                self.durable = at;
                opens.into_iter().for_each(|inode| self.count(inode, -1));
            }
            Entry::Opened { id, handle, inode } => {
                self.handles.insert(handle, inode);
                self.opening.remove(&id);
                self.opened.put(id, handle);
            }
            Entry::Closed { handle } => {
                self.handles.remove(&handle);
                self.locked.remove(&handle);
            }
            Entry::Abandoned { id } => drop(self.opening.remove(&id)),
            Entry::Shown(inode) => drop(self.inodes.insert(inode)),
            Entry::Forgotten(inode) => drop(self.inodes.remove(&inode)),
            Entry::Locks { inode, locks } => drop(self.locks.insert(inode, locks)),
            Entry::Locked { handle, inode, owner } => {
                self.locked.entry(handle).or_default().insert((inode, owner));
            }
            Entry::Unlocked { handle, inode, owner } => {
                if let Some(owners) = self.locked.get_mut(&handle) {
                    owners.remove(&(inode, owner));
                }
            }
            Entry::LostLocks { inode, owners } => self.lost_locks.entry(inode).or_default().extend(owners),
            Entry::Failed(failed) => self.failed.extend(failed),
        }
    }

    fn told(&mut self, told: Option<Told>) {
        let Some(Told { id, answer, opens }) = told else { return };
        self.answers.put(id, answer);
        self.opening.extend(opens.map(|inode| (id, inode)));
    }

    fn made(&mut self, change: Arc<Change>, answer: Option<Told>) {
        if let Some(inode) = opened(&change) {
            self.count(inode, 1);
        }
        self.told(answer);
        self.journal.push_back(change);
    }

    /// Opens of the journal: the authority counts them when it executes it.
    pub fn opens_to_come(&self) -> impl Iterator<Item = InodeId> {
        self.journal.iter().filter_map(|change| opened(change))
    }
}

struct Files {
    files: [File; 2],
    /// The one that counts.
    current: usize,
    generation: u64,
    end: u64,
    /// Where its beginning ends.
    begun: u64,
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

impl Files {
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
        use std::os::unix::fs::FileExt;
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
    fn append(&mut self, mut entry: Entry) -> (std::io::Result<()>, Entry) {
        let data = payload(&mut entry).map(std::mem::take).unwrap_or_default();
        let end = self.write(self.current, self.generation, self.end, &entry, &data);
        if let Some(place) = payload(&mut entry) {
            *place = data;
        }
        (end.map(|end| self.end = end), entry)
    }

    /// Nothing of it counts any more.
    fn spoil(&self) {
        for file in &self.files {
            let _ = rustix::io::pwrite(file, &0_u64.to_le_bytes(), 0);
        }
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

impl Chronicle {
    /// Begin one.
    pub(crate) fn new(known: Known) -> std::io::Result<Chronicle> {
        let new = || rustix::fs::memfd_create("atoll-chronicle", MemfdFlags::CLOEXEC).map(File::from);
        let files = [new()?, new()?];
        let mut files = Files { files, current: 0, generation: 0, end: HEAD_BYTES, begun: HEAD_BYTES };
        files.begin(&known)?;
        Ok(Chronicle { state: Mutex::new(State { known, files: Some(files) }) })
    }

    /// Go on with the files of a process that is dead. `None` when they hold nothing that counts.
    pub fn recover(files: [File; 2]) -> std::io::Result<Option<Chronicle>> {
        use std::os::unix::fs::FileExt;
        let mut newest: Option<(usize, u64)> = None;
        for (which, file) in files.iter().enumerate() {
            let mut head = [0; HEAD_BYTES as usize];
            let is_whole = file.read_exact_at(&mut head, 0).is_ok();
            let generation = u64::from_le_bytes(head);
            if is_whole && generation > newest.map_or(0, |(_, newest)| newest) {
                newest = Some((which, generation));
            }
        }
        let Some((current, generation)) = newest else { return Ok(None) };
        let mut known = Known::default();
        let mut end = HEAD_BYTES;
        while let Some((entry, next)) = Files::read(&files[current], generation, end) {
            known.apply(entry);
            end = next;
        }
        let mut files = Files { files, current, generation, end, begun: HEAD_BYTES };
        files.begin(&known)?;
        Ok(Some(Chronicle { state: Mutex::new(State { known, files: Some(files) }) }))
    }

    /// Note what has just come about.
    pub(crate) fn note(&self, entry: Entry) {
        let mut state = self.state.lock();
        let State { known, files: of } = &mut *state;
        let Some(files) = of else { return known.apply(entry) };
        let (written, entry) = files.append(entry);
        known.apply(entry);
        let is_long = files.end > BYTES_MAX && files.end > 2 * files.begun;
        if let Err(error) = written.and_then(|()| if is_long { files.begin(known) } else { Ok(()) }) {
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
        self.state.lock().known.answers.by_id.get(&(id & !SENT_AGAIN)).cloned()
    }

    /// The number that a request of the kernel has, which is sent again and has no answer.
    pub(crate) fn number(&self, id: u64) -> Option<u64> {
        let id = id & !SENT_AGAIN;
        self.state.lock().known.numbered.iter().find(|(_, of)| **of == id).map(|(sequence, _)| *sequence)
    }

    /// To be handed to who is to outlive this process.
    pub fn files(&self) -> Option<[std::os::fd::OwnedFd; 2]> {
        let state = self.state.lock();
        let [first, second] = &state.files.as_ref()?.files;
        let copy = |file: BorrowedFd<'_>| file.try_clone_to_owned().ok();
        Some([copy(first.as_fd())?, copy(second.as_fd())?])
    }

    // ---- what the adapter knows

    /// The kernel opened a file.
    pub fn opened(&self, id: u64, handle: u64, inode: InodeId) {
        self.note(Entry::Opened { id: id & !SENT_AGAIN, handle, inode });
    }

    /// The handle that a request which is sent again was answered with.
    pub fn handle(&self, id: u64) -> Option<u64> {
        self.state.lock().known.opened.by_id.get(&(id & !SENT_AGAIN)).copied()
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
            let opened = known.opened.by_id.values();
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
    use atoll_types::operation::WriteAt;
    use atoll_types::{Caller, Timestamp};
    use atoll_wire::Made;
    use std::os::unix::fs::FileExt;

    use super::*;

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
