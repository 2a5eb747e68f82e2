//! What is known of one directory's names.
//!
//! Most directories are known because their listing was asked for ahead, so a name takes no more than its bytes and
//! one word; and only names that the kernel may keep are dropped there when the right goes.

use atoll_lease::Issue;
use atoll_types::operation::DirectoryEntry;
use atoll_types::{InodeId, Name};
use rustc_hash::FxHashMap;

use super::prefetch::Ahead;

/// Names that come by listings, of one directory. Those of a larger one pass by: who lists it and looks at each finds it.
const LISTED_MAX: usize = 65_536;
/// So many that passed last are known, and up to twice as many.
const PASSING_MAX: usize = 4_096;

/// What a name is known to stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Child(InodeId),
    Absent,
    /// To be asked for.
    Unknown,
}

/// A [`Named`], and whether the kernel may keep it, in one word.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    const TOLD: u64 = 1 << 63;
    const UNKNOWN: u64 = Self::TOLD - 1;

    fn new(named: Named, told: bool) -> Word {
        let number = match named {
            Named::Child(inode) => inode.0,
            Named::Absent => 0,
            Named::Unknown => Self::UNKNOWN,
        };
        Word(number | if told { Self::TOLD } else { 0 })
    }

    fn named(self) -> Named {
        match self.0 & !Self::TOLD {
            0 => Named::Absent,
            Self::UNKNOWN => Named::Unknown,
            number => Named::Child(InodeId(number)),
        }
    }

    fn is_told(self) -> bool {
        self.0 & Self::TOLD != 0
    }
}

/// Part of a listing, to answer the kernel from: its buffers hold less than a page of ours.
#[derive(Default)]
pub(super) struct Page {
    /// It holds every entry behind this cookie up to its last one.
    pub after: u64,
    pub entries: Vec<DirectoryEntry>,
    pub end: bool,
    /// The authority took it for an access.
    pub is_access: bool,
    /// Which of all pages that were kept it is.
    pub number: u64,
}

impl Page {
    /// The entries behind a cookie, if it holds the first of them.
    pub fn behind(&self, after: u64) -> Option<&[DirectoryEntry]> {
        let start = self.entries.partition_point(|entry| entry.cookie <= after);
        let holds = after >= self.after && (self.end || start < self.entries.len());
        holds.then(|| &self.entries[start..])
    }
}

#[derive(Default)]
pub(super) struct Names {
    known: FxHashMap<Box<[u8]>, Word>,
    /// Children that passed by, and those before them; `known` is newer.
    passing: [FxHashMap<Box<[u8]>, InodeId>; 2],
    /// The kernel may keep names that are not in `known`.
    told_more: bool,
    /// A name that is not in `known` is not there.
    pub complete: bool,
    /// Names with cookies up to here are all in `known`.
    listed: u64,
    pub page: Option<Page>,
    /// The newest change of our own among them.
    pub order: Issue,
    pub ahead: Ahead,
    /// The kernel was given a listing whose names it may keep, and may be taking them in.
    pub shown: bool,
}

impl Names {
    pub fn get(&self, name: &Name) -> Option<Named> {
        match self.known.get(name.as_bytes()) {
            Some(word) => Some(word.named()),
            None => match self.passing(name) {
                Some(child) => Some(Named::Child(child)),
                None => self.complete.then_some(Named::Absent),
            },
        }
    }

    fn passing(&self, name: &Name) -> Option<InodeId> {
        self.passing.iter().find_map(|passing| passing.get(name.as_bytes())).copied()
    }

    /// The kernel is told what [`Names::get`] found, and may keep it.
    pub fn tell_found(&mut self, name: &Name, named: Named) {
        if let Some(known) = self.known.get_mut(name.as_bytes()) {
            *known = Word::new(named, true);
        } else if self.passing(name).is_some() {
            self.told_more = true;
        } else {
            self.tell(name, named);
        }
    }

    /// The kernel is told what the name stands for, and may keep it.
    pub fn tell(&mut self, name: &Name, named: Named) {
        let word = Word::new(named, true);
        match self.known.get_mut(name.as_bytes()) {
            Some(known) => *known = word,
            None => drop(self.known.insert(name.as_bytes().into(), word)),
        }
    }

    /// A change of our own: the kernel has followed it, and a listing from before is old.
    pub fn change(&mut self, name: &Name, named: Named) {
        self.tell(name, named);
        self.page = None;
    }

    /// Whether there is room for more of a listing.
    pub fn may_list(&self) -> bool {
        self.known.len() < LISTED_MAX
    }

    /// Take a page of a listing. What a change of our own has left of a name is newer than a page that `misses` some.
    pub fn list(&mut self, page: &Page, misses: bool) {
        let fits = self.may_list();
        if !fits && self.passing[0].len() >= PASSING_MAX {
            self.passing.swap(0, 1);
            self.passing[0].clear();
        }
        for entry in &page.entries {
            let child = Word::new(Named::Child(entry.inode), false);
            match self.known.get_mut(entry.name.as_bytes()) {
                Some(_) if misses => {}
                Some(known) => *known = Word::new(Named::Child(entry.inode), known.is_told()),
                None if fits => drop(self.known.insert(entry.name.as_bytes().into(), child)),
                None => drop(self.passing[0].insert(entry.name.as_bytes().into(), entry.inode)),
            }
        }
        if fits && page.after <= self.listed {
            self.listed = self.listed.max(page.entries.last().map_or(page.after, |entry| entry.cookie));
            self.complete |= page.end;
        }
    }

    /// The kernel is to be given these entries, and may keep the names of those with attributes. False if it may not: not
    /// all of them are as they are known here.
    pub fn show(&mut self, entries: &[DirectoryEntry]) -> bool {
        let named = |entry: &&DirectoryEntry| entry.attributes.is_some();
        let is_known = |entry: &DirectoryEntry| self.get(&entry.name) == Some(Named::Child(entry.inode));
        if !entries.iter().filter(named).all(is_known) {
            return false;
        }
        entries.iter().filter(named).for_each(|entry| self.tell_found(&entry.name, Named::Child(entry.inode)));
        self.shown = true;
        true
    }

    /// The right is gone; answers the names that the kernel may keep, with what they stood for, and whether there are
    /// more.
    pub fn clear(&mut self) -> (Vec<(Name, Named)>, bool) {
        self.complete = false;
        self.listed = 0;
        self.page = None;
        self.shown = false;
        self.ahead.stop();
        self.passing = Default::default();
        let known = std::mem::take(&mut self.known).into_iter();
        let told = known.filter(|(_, word)| word.is_told());
        let told = told.filter_map(|(name, word)| Some((Name::new(name).ok()?, word.named()))).collect();
        (told, std::mem::take(&mut self.told_more))
    }

    /// What is known rests on a change that was not made.
    pub fn doubt(&mut self) {
        self.known.values_mut().for_each(|word| *word = Word::new(Named::Unknown, word.is_told()));
        self.passing = Default::default();
        self.complete = false;
        self.listed = 0;
        self.page = None;
    }

    pub fn children(&self) -> impl Iterator<Item = InodeId> {
        self.known.values().filter_map(|word| match word.named() {
            Named::Child(child) => Some(child),
            _ => None,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}
