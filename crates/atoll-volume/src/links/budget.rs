//! What rewriting files costs, and a bound for it.
//!
//! An object is written as a whole, or by parts of some MiB, however little of it has changed. A file that is rewritten all the time would be
//! sent all the time: so what is sent of each file beyond what was written to it has a budget. When that is used up, the file waits until
//! enough of it has come back; who asks for the file to be published does not wait.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use atoll_types::InodeId;
use parking_lot::Mutex;
use tokio::time::Instant;

/// In which a budget comes back.
pub(super) const INTERVAL: Duration = Duration::from_secs(600);
/// Most files whose budget is partly used. If there are more, those that have used the least start anew.
const FILES_MAX: usize = 16_384;

/// What has gone to a bucket for a link, since its volume was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that were written to files since they were objects before.
    pub written: u64,
    /// Bytes of the objects that were sent for them.
    pub sent: u64,
    /// Bytes that were copied within the bucket.
    pub copied: u64,
}

/// What was sent of a file too much, and has not come back at that moment.
#[derive(Clone, Copy)]
struct Used {
    bytes: u64,
    at: Instant,
}

impl Used {
    fn left_at(self, now: Instant, budget: u64) -> u64 {
        let back = u128::from(budget) * now.duration_since(self.at).as_millis() / INTERVAL.as_millis();
        self.bytes.saturating_sub(u64::try_from(back).unwrap_or(u64::MAX))
    }
}

#[derive(Default)]
pub(crate) struct Budgets {
    files: Mutex<HashMap<InodeId, Used>>,
    traffic: Mutex<BTreeMap<InodeId, Traffic>>,
}

impl Budgets {
    /// A file's object is as the file was.
    pub fn published(&self, link: InodeId, inode: InodeId, budget: Option<u64>, done: Traffic) {
        {
            let mut traffic = self.traffic.lock();
            let all = traffic.entry(link).or_default();
            all.written += done.written;
            all.sent += done.sent;
            all.copied += done.copied;
        }
        let (Some(budget), excess @ 1..) = (budget, done.sent.saturating_sub(done.written)) else { return };
        let now = Instant::now();
        let mut files = self.files.lock();
        let before = files.get(&inode).map_or(0, |used| used.left_at(now, budget));
        files.insert(inode, Used { bytes: before.saturating_add(excess), at: now });
        if files.len() > FILES_MAX {
            // Half of them at once: it is seldom gone through all.
            let mut all: Vec<(u64, InodeId)> =
                files.iter().map(|(inode, used)| (used.left_at(now, budget), *inode)).collect();
            all.select_nth_unstable(FILES_MAX / 2);
            for (_, inode) in &all[..FILES_MAX / 2] {
                files.remove(inode);
            }
        }
    }

    /// How long a file is to wait.
    pub fn wait(&self, inode: InodeId, budget: Option<u64>) -> Option<Duration> {
        let budget = budget?;
        let left = self.files.lock().get(&inode)?.left_at(Instant::now(), budget);
        let over = left.checked_sub(budget).filter(|over| *over > 0)?;
        let millis = u128::from(over) * INTERVAL.as_millis() / u128::from(budget.max(1));
        Some(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX).saturating_add(1)))
    }

    /// Of a link.
    pub fn traffic(&self, link: InodeId) -> Traffic {
        self.traffic.lock().get(&link).copied().unwrap_or_default()
    }

    /// The link is no more.
    pub fn forget(&self, link: InodeId) {
        self.traffic.lock().remove(&link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: InodeId = InodeId(1);
    const FILE: InodeId = InodeId(2);
    const BUDGET: Option<u64> = Some(1_000);

    fn publish(budgets: &Budgets, inode: InodeId, written: u64, sent: u64) {
        budgets.published(LINK, inode, BUDGET, Traffic { written, sent, copied: 5 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_waits_when_more_was_sent_than_comes_back() {
        let budgets = Budgets::default();
        publish(&budgets, FILE, 100, 600);
        publish(&budgets, FILE, 100, 600);
        assert_eq!(budgets.wait(FILE, BUDGET), None, "it is used up, and not exceeded");
        publish(&budgets, FILE, 0, 500);
        let wait = budgets.wait(FILE, BUDGET).unwrap();
        assert_eq!(wait.as_secs(), INTERVAL.as_secs() / 2);
        assert_eq!((budgets.wait(InodeId(3), BUDGET), budgets.wait(FILE, None)), (None, None));
        tokio::time::advance(wait).await;
        assert_eq!(budgets.wait(FILE, BUDGET), None);
        publish(&budgets, FILE, 0, 1);
        assert!(budgets.wait(FILE, BUDGET).is_some());
        tokio::time::advance(2 * INTERVAL).await;
        publish(&budgets, FILE, 0, 1_000);
        assert_eq!(budgets.wait(FILE, BUDGET), None, "all of it has come back");
        assert_eq!(budgets.traffic(LINK), Traffic { written: 200, sent: 2_701, copied: 25 });
        assert_eq!(budgets.traffic(FILE), Traffic::default());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_costs_nothing_however_much_it_is() {
        let budgets = Budgets::default();
        for _ in 0..100 {
            publish(&budgets, FILE, 1 << 40, 1 << 40);
        }
        assert_eq!(budgets.wait(FILE, BUDGET), None);
        assert!(budgets.files.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_are_known_are_bounded_and_the_worst_stay() {
        let budgets = Budgets::default();
        for inode in 0..3 * FILES_MAX as u64 {
            publish(&budgets, InodeId(inode), 0, if inode % 4 == 0 { 5_000 } else { 1 });
            assert!(budgets.files.lock().len() <= FILES_MAX);
        }
        let worst = budgets.files.lock().values().filter(|used| used.bytes == 5_000).count();
        assert!(worst > FILES_MAX / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_of_nothing_and_one_of_everything_are_no_trouble() {
        let budgets = Budgets::default();
        for budget in [Some(0), Some(u64::MAX)] {
            budgets.published(LINK, FILE, budget, Traffic { written: 0, sent: u64::MAX / 2, copied: 0 });
            tokio::time::advance(INTERVAL).await;
            budgets.wait(FILE, budget);
        }
    }
}
