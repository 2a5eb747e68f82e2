//! Where listings of linked directories go on: what the bucket's last page said, and the places behind pages that were given out before. A page of
//! the bucket's is one request, and a kernel asks for a few names at a time.
//!
//! Rule: names of a page are given out only while it is so young that it belongs to the listing that goes on. Who begins from the start
//! asks the bucket.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::time::Duration;

use atoll_types::{InodeId, Name};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Most ends of pages that are remembered, for who goes on behind a name that has gone meanwhile.
const PLACES_MAX: usize = 4096;
/// Most runs, of up to 1,000 names each, that are kept for who goes on.
const RUNS_MAX: usize = 64;
/// Older ones are listed again.
const RUN_AGE: Duration = Duration::from_secs(2);

/// Names of a run of keys by their places, within the directory: that may move to another prefix meanwhile.
pub(super) struct Run {
    pub names: BTreeMap<Bytes, Name>,
    /// Behind the run; `None`: the run goes to the end.
    pub next: Option<Bytes>,
    pub listed: Instant,
    /// Places of entries that were given out, by their cookies.
    pub given: HashMap<u64, Bytes>,
}

impl Run {
    /// What stands behind that entry; behind none, all.
    pub fn behind(&self, cookie: u64) -> impl Iterator<Item = (&Bytes, &Name)> {
        let from = self.given.get(&cookie).map_or(Bound::Unbounded, Bound::Excluded);
        self.names.range::<Bytes, _>((from, Bound::Unbounded))
    }
}

#[derive(Default)]
pub(crate) struct Pages {
    /// By directory and the cookie of the last entry that was given out.
    places: Mutex<HashMap<(InodeId, u64), Bytes>>,
    /// The last one of each directory.
    runs: Mutex<HashMap<InodeId, Run>>,
}

impl Pages {
    pub(super) fn place(&self, directory: InodeId, cookie: u64) -> Option<Bytes> {
        self.places.lock().get(&(directory, cookie)).cloned()
    }

    /// A page ends with this entry, at this place.
    pub(super) fn ended(&self, directory: InodeId, cookie: u64, at: Bytes) {
        let mut places = self.places.lock();
        if places.len() >= PLACES_MAX {
            places.clear();
        }
        places.insert((directory, cookie), at);
    }

    pub(super) fn keep(&self, directory: InodeId, run: Run) {
        let mut runs = self.runs.lock();
        if runs.len() >= RUNS_MAX {
            runs.retain(|_, run| run.listed.elapsed() < RUN_AGE);
        }
        let is_newer = runs.get(&directory).is_none_or(|kept| kept.listed <= run.listed);
        if runs.len() < RUNS_MAX && is_newer {
            runs.insert(directory, run);
        }
    }

    /// The run that has given out this entry.
    pub(super) fn take(&self, directory: InodeId, cookie: u64) -> Option<Run> {
        let mut runs = self.runs.lock();
        let is_of = |run: &Run| run.given.contains_key(&cookie) && run.listed.elapsed() < RUN_AGE;
        if runs.get(&directory).is_some_and(is_of) { runs.remove(&directory) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        let at = |text: &'static str| (Bytes::from(text), Name::new(text.as_bytes()).unwrap());
        let given = HashMap::from([(1, Bytes::from("a"))]);
        Run { names: BTreeMap::from([at("a"), at("b")]), next: None, listed: Instant::now(), given }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_goes_on_behind_what_it_has_given_out_while_it_is_young() {
        let (pages, directory) = (Pages::default(), InodeId(7));
        pages.keep(directory, run());
        assert!(pages.take(directory, 2).is_none() && pages.take(InodeId(8), 1).is_none());
        let taken = pages.take(directory, 1).unwrap();
        assert_eq!((taken.behind(1).count(), taken.behind(0).count()), (1, 2));
        pages.keep(directory, taken);
        tokio::time::advance(RUN_AGE).await;
        assert!(pages.take(directory, 1).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn listings_that_nobody_goes_on_with_make_room_when_they_are_old() {
        let pages = Pages::default();
        for directory in 0..=RUNS_MAX as u64 {
            pages.keep(InodeId(directory), run());
        }
        assert!(pages.take(InodeId(RUNS_MAX as u64), 1).is_none());
        tokio::time::advance(RUN_AGE).await;
        pages.keep(InodeId(0), run());
        assert_eq!(pages.runs.lock().len(), 1);
    }
}
