//! What was observed: one event for each operation, with the interval in which it
//! must have taken effect.
//!
//! Invariant: an event's effect lies between `call_ns` and `return_ns`. A change
//! whose call ended with the death or the fence of its mount has no end: it may
//! take effect at any time after its call, or never.

use std::fmt;

/// No end: nobody knows whether the change happened.
pub const NEVER_RETURNED: u64 = u64::MAX;
/// What a read gives whose bytes are not of one write. No write has it.
pub const TORN: u64 = u64::MAX;
/// The absence of a name, where an inode is asked for.
pub const ABSENT: u64 = 0;
/// The inode of a file whose creator died before it learned the number. The kernel gives it to no file of a volume.
pub const UNKNOWN_INODE: u64 = u64::MAX;
/// The inode of every directory in [`Object::Folders`], where only existence counts.
pub const SOME_INODE: u64 = 1;

pub const REGISTERS: usize = 3;
/// Names in [`Object::Names`], alternating between two directories.
pub const SLOTS: usize = 6;
pub const SLOT_PATHS: [&str; SLOTS] = ["d0/a", "d1/a", "d0/b", "d1/b", "d0/c", "d1/c"];
pub const FOLDERS: usize = 3;
pub const FOLDER_PATHS: [&str; FOLDERS] = ["e/x", "e/y", "e/z"];
/// Parts of an [`Object::Plot`]: for each of two names its inode and the word of that file, then these.
pub const PLOT_PARTS: [&str; SLOTS] = ["a", "the file a", "b", "the file b", "log", "c"];
pub const LOG_SLOT: usize = 4;
pub const SUBDIRECTORY_SLOT: usize = 5;
/// The bits in the word of a plot's log that count its records.
pub const LINKS_MASK: u64 = 0xffff;

/// What is checked by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Object {
    /// The bytes of a file that is always written whole.
    Register(usize),
    /// The permission bits of a file.
    Mode,
    /// The size of a file.
    Size,
    /// A file that only grows by appended records.
    Log,
    /// The names in two directories and the inode each stands for.
    Names,
    /// Which subdirectories of a directory exist.
    Folders,
    /// A folder with everything in it. See `plots`.
    Plot(usize),
}

impl Object {
    /// What every round of shared work uses.
    pub fn shared() -> impl Iterator<Item = Object> {
        (0..REGISTERS).map(Object::Register).chain([
            Object::Mode,
            Object::Size,
            Object::Log,
            Object::Names,
            Object::Folders,
        ])
    }

    fn slot(self, slot: usize) -> &'static str {
        match self {
            Object::Folders => FOLDER_PATHS[slot],
            Object::Plot(_) => PLOT_PARTS[slot],
            _ => SLOT_PATHS[slot],
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Register(number) => write!(f, "register {number}"),
            Object::Mode => f.write_str("the mode of a file"),
            Object::Size => f.write_str("the size of a file"),
            Object::Log => f.write_str("a file of appended records"),
            Object::Names => f.write_str("the names in d0 and d1"),
            Object::Folders => f.write_str("the subdirectories of e"),
            Object::Plot(number) => write!(f, "plot {number}"),
        }
    }
}

/// An operation with its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Write(u64),
    Read(u64),
    Append(u64),
    /// The record was appended, and then there were so many, with this sum.
    AppendAs {
        record: u64,
        count: u64,
        sum: u64,
    },
    /// So many records, and the sum of them in their order.
    List {
        count: u64,
        sum: u64,
    },
    /// The size of the log as a count of records.
    Length(u64),
    /// The name stands for this inode, or for none.
    Observe {
        slot: usize,
        inode: u64,
    },
    /// The name exists.
    Present {
        slot: usize,
    },
    /// Made where there was nothing.
    Create {
        slot: usize,
        inode: u64,
    },
    Remove {
        slot: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    /// A file from elsewhere was renamed to the name.
    Install {
        slot: usize,
        inode: u64,
    },
    /// The name was renamed away and the file looked at there; of a call that never returned nobody knows which it was.
    Take {
        slot: usize,
        inode: u64,
    },
    /// A file of a plot was made under its name.
    Make {
        file: usize,
        inode: u64,
    },
    Unmake {
        file: usize,
    },
    /// A file of a plot was renamed to the other name.
    Move {
        from: usize,
    },
    /// The bytes of a file became this value, or nothing: 0.
    Put {
        inode: u64,
        value: u64,
    },
    Get {
        inode: u64,
        value: u64,
    },
    SetMode {
        inode: u64,
        mode: u64,
    },
    /// What is known of a file beside its bytes.
    Look {
        inode: u64,
        mode: u64,
        is_empty: bool,
    },
    /// A record was appended to the log of a plot.
    Chain(u64),
    /// All its records were removed.
    Unchain,
    /// It has so many records.
    Links(u64),
    /// Everything that had returned on this mount is flushed.
    Sync,
    /// The mount's client ended, and with it what it had not flushed. See `loss`.
    Lose,
}

impl Action {
    /// Whether it leaves every state as it is.
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Action::Read(_)
                | Action::List { .. }
                | Action::Length(_)
                | Action::Observe { .. }
                | Action::Present { .. }
                | Action::Get { .. }
                | Action::Look { .. }
                | Action::Links(_)
                | Action::Sync
        )
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub object: Object,
    pub action: Action,
    /// By which calls.
    pub how: &'static str,
    pub call_ns: u64,
    pub return_ns: u64,
    pub mount: usize,
    pub worker: usize,
}

impl Event {
    pub fn is_unknown(&self) -> bool {
        self.return_ns == NEVER_RETURNED
    }

    /// One line for people, with times since `origin_ns`.
    pub fn describe(&self, origin_ns: u64) -> String {
        let ms = |ns: u64| ns as f64 / 1e6 - origin_ns as f64 / 1e6;
        let end = if self.is_unknown() { "never".into() } else { format!("{:.3}", ms(self.return_ns)) };
        let slot = |slot: usize| self.object.slot(slot);
        let action = match self.action {
            Action::Write(value) => format!("write {value}"),
            Action::Read(TORN) => "read bytes of more than one write".into(),
            Action::Read(value) => format!("read {value}"),
            Action::Append(record) => format!("append {record}"),
            Action::AppendAs { record, count, .. } => format!("append {record} as number {count}"),
            Action::List { count, sum } => format!("read {count} records (sum {sum:x})"),
            Action::Length(count) => format!("size of {count} records"),
            Action::Observe { slot: at, inode: ABSENT } => format!("{} does not exist", slot(at)),
            Action::Observe { slot: at, inode } => format!("{} is inode {inode}", slot(at)),
            Action::Present { slot: at } => format!("{} exists", slot(at)),
            Action::Create { slot: at, inode } => format!("create {} as inode {inode}", slot(at)),
            Action::Remove { slot: at } => format!("remove {}", slot(at)),
            Action::Rename { from, to } => format!("rename {} to {}", slot(from), slot(to)),
            Action::Install { slot: at, inode } => format!("rename inode {inode} from elsewhere to {}", slot(at)),
            Action::Take { slot: at, inode } => format!("rename {} elsewhere, it was inode {inode}", slot(at)),
            Action::Make { file, inode } => format!("make {} as inode {inode}", slot(2 * file)),
            Action::Unmake { file } => format!("remove {}", slot(2 * file)),
            Action::Move { from } => format!("rename {} to the other name", slot(2 * from)),
            Action::Put { inode, value } => format!("write {value} to inode {inode}"),
            Action::Get { inode, value: TORN } => format!("read bytes of more than one write from inode {inode}"),
            Action::Get { inode, value } => format!("read {value} from inode {inode}"),
            Action::SetMode { inode, mode } => format!("mode {mode:o} for inode {inode}"),
            Action::Look { inode, mode, is_empty } => {
                format!("inode {inode} has mode {mode:o} and is {}", if is_empty { "empty" } else { "full" })
            }
            Action::Chain(record) => format!("append {record} to the log"),
            Action::Unchain => "empty the log".into(),
            Action::Links(count) => format!("{count} records in the log"),
            Action::Sync => "everything is synced".into(),
            Action::Lose => "what was not flushed may be lost".into(),
        };
        let (mount, worker, how) = (self.mount, self.worker, self.how);
        format!("[{:>10.3} .. {end:>10}] ms  mount {mount} worker {worker:<3} {action}  ({how})", ms(self.call_ns))
    }
}

/// The sum of a list that [`Action::List`] carries, one record more.
pub fn add_to_sum(sum: u64, record: u64) -> u64 {
    mix(sum ^ record)
}

/// A bijection of 64 bits that leaves no pattern (splitmix64).
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random numbers that a seed repeats.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(mix(seed))
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound
    }
}
