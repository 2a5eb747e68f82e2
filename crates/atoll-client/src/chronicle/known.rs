//! What is noted, and what it comes to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use atoll_types::locks::Lock;
use atoll_types::{Errno, InodeId, JournalPosition, LockOwner, Operation, Outcome};
use atoll_wire::Resume;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use crate::journal::Change;
use crate::locks::Owner;

/// Answers that are found again: more than can be on their way to the kernel at a time.
pub(super) const ANSWERS_MAX: usize = 16_384;

pub(crate) type Answer = Result<Outcome, Errno>;

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
    pub fn get(&self, id: u64) -> Option<&T> {
        self.by_id.get(&id)
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.by_id.values()
    }

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

impl Known {
    fn count(&mut self, inode: InodeId, more: i64) {
        let count = self.opens.entry(inode).or_default();
        *count += more;
        if *count == 0 {
            self.opens.remove(&inode);
        }
    }

    pub fn apply(&mut self, entry: Entry) {
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
            Entry::Forgotten(inode) => {
                // Nobody has it open.
                self.inodes.remove(&inode);
                self.locks.remove(&inode);
                self.lost_locks.remove(&inode);
                self.failed.remove(&inode);
            }
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
        if let Some(inode) = change.opens() {
            self.count(inode, 1);
        }
        self.told(answer);
        self.journal.push_back(change);
    }

    /// Opens of the journal: the authority counts them when it executes it.
    pub fn opens_to_come(&self) -> impl Iterator<Item = InodeId> {
        self.journal.iter().filter_map(|change| change.opens())
    }
}
