//! When to ask for a directory's listing before anybody does.
//!
//! Programs look at many files of a directory one by one. Each name that has to be asked for is a round trip, and a
//! listing of hundreds with attributes and rights is one too. So after some misses in a row the listing is asked for,
//! page by page: a few pages at once, then one for each further miss. That of a small directory is asked for instead
//! of its first name. Who finds little of what a listing brought waits for more misses the next time.

use atoll_types::{InodeId, Operation};

/// Misses in a row before the first listing.
const PATIENCE: u32 = 4;
/// The same when listings bring nothing.
const PATIENCE_MAX: u32 = 4_096;
/// Entries asked for at a time.
const PAGE_ENTRIES: u32 = 512;
/// Sum of the names' lengths up to which a listing costs little more than one name.
pub(super) const SMALL_BYTES_MAX: u64 = 1_024;
/// Pages that are asked for without further misses.
const PAGES_AT_ONCE: u32 = 8;

/// What one directory's lookups have been like, and how far its listing has come.
pub(crate) struct Ahead {
    /// In a row.
    misses: u32,
    patience: u32,
    pages: u32,
    /// A page is on its way.
    asked: bool,
    /// Where the listing goes on.
    next: Option<u64>,
}

impl Default for Ahead {
    fn default() -> Self {
        Ahead { misses: 0, patience: PATIENCE, pages: 0, asked: false, next: None }
    }
}

/// What to do about a name that has to be asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    Ask,
    /// Ask, and for this page of the listing too.
    List(Operation),
    /// Ask for this page, and wait for it.
    ListFirst(Operation),
    /// A page is on its way that may bring it.
    Wait,
}

/// A listing that somebody asked for, of as many entries as one of ours: the kernel asks for less at a time.
pub(crate) fn widened(mut operation: Operation) -> Operation {
    if let Operation::ReadDirectory { entries_max, .. } = &mut operation {
        *entries_max = (*entries_max).max(PAGE_ENTRIES);
    }
    operation
}

fn page(inode: InodeId, after: u64) -> Operation {
    Operation::ReadDirectory { inode, after, entries_max: PAGE_ENTRIES, with_attributes: true, ahead: true }
}

impl Ahead {
    pub fn hit(&mut self) {
        self.misses = 0;
        self.patience = (self.patience / 2).max(PATIENCE);
    }

    pub fn miss(&mut self, inode: InodeId, is_small: bool) -> Miss {
        if self.asked {
            return if self.pages < PAGES_AT_ONCE { Miss::Wait } else { Miss::Ask };
        }
        self.misses += 1;
        let instead = is_small && self.patience == PATIENCE;
        if self.next.is_none() {
            if self.misses < self.patience && !instead {
                return Miss::Ask;
            }
            self.patience = (self.patience * 2).min(PATIENCE_MAX);
            self.pages = 0;
        }
        self.asked = true;
        let page = page(inode, self.next.unwrap_or(0));
        if instead { Miss::ListFirst(page) } else { Miss::List(page) }
    }

    /// A page came, and more follow behind this cookie. Answers the page to ask for at once.
    pub fn came(&mut self, inode: InodeId, next: Option<u64>) -> Option<Operation> {
        self.asked = false;
        self.misses = 0;
        self.pages += 1;
        self.next = next;
        let after = next.filter(|_| self.pages < PAGES_AT_ONCE)?;
        self.asked = true;
        Some(page(inode, after))
    }

    /// What was listed is not known any more.
    pub fn stop(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: InodeId = InodeId(5);

    fn misses_until_listed(ahead: &mut Ahead) -> u32 {
        for count in 1..=PATIENCE_MAX {
            match ahead.miss(DIRECTORY, false) {
                Miss::Ask => {}
                Miss::List(operation) => {
                    assert_eq!(operation, page(DIRECTORY, 0));
                    return count;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("it is never listed");
    }

    #[test]
    fn misses_in_a_row_list_a_directory_some_pages_far_and_more_of_them_further() {
        let mut ahead = Ahead::default();
        for _ in 0..10 {
            assert_eq!(ahead.miss(DIRECTORY, false), Miss::Ask);
            ahead.hit();
        }
        assert_eq!(misses_until_listed(&mut ahead), PATIENCE);
        assert_eq!(ahead.miss(DIRECTORY, false), Miss::Wait);
        for number in 1..u64::from(PAGES_AT_ONCE) {
            assert_eq!(ahead.came(DIRECTORY, Some(number)), Some(page(DIRECTORY, number)));
            assert_eq!(ahead.miss(DIRECTORY, false), Miss::Wait);
        }
        assert_eq!(ahead.came(DIRECTORY, Some(90)), None);
        assert_eq!(ahead.miss(DIRECTORY, false), Miss::List(page(DIRECTORY, 90)));
        assert_eq!(ahead.miss(DIRECTORY, false), Miss::Ask, "nobody waits for what may be far away");
        assert_eq!(ahead.came(DIRECTORY, None), None);
        assert_eq!(ahead.miss(DIRECTORY, false), Miss::Ask);
    }

    #[test]
    fn what_brings_nothing_is_tried_ever_less_until_something_is_found() {
        let mut ahead = Ahead::default();
        for round in 0..3 {
            assert_eq!(misses_until_listed(&mut ahead), PATIENCE << round);
            assert_eq!(ahead.came(DIRECTORY, None), None);
        }
        assert_eq!(ahead.miss(DIRECTORY, true), Miss::Ask);
        (0..4).for_each(|_| ahead.hit());
        assert_eq!(misses_until_listed(&mut ahead), PATIENCE);
    }

    #[test]
    fn a_small_directory_is_listed_instead_of_asked_for_a_name() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.miss(DIRECTORY, true), Miss::ListFirst(page(DIRECTORY, 0)));
        assert_eq!(ahead.miss(DIRECTORY, true), Miss::Wait);
        assert_eq!(ahead.came(DIRECTORY, None), None);
        assert_eq!(ahead.miss(DIRECTORY, true), Miss::Ask, "it did not bring the name");
    }
}
