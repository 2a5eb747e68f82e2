//! Notifications of a bucket: hints, by which nothing is known and much may be in doubt. `core::doubt` has the rules.

use std::time::Duration;

use atoll_link::{LinkSettings, ObjectKey};
use atoll_types::InodeId;

use crate::volume::Volume;

/// What a link with freshness `events` has heard since the volume was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HintReport {
    pub hints: u64,
    /// Since the last one.
    pub last: Option<Duration>,
    /// Known files that the bucket was asked about because of a hint or a change of ours.
    pub asked_in_doubt: u64,
    /// The same, because they were not confirmed for the link's recheck time, or not since they are in memory.
    pub asked_in_time: u64,
}

impl Volume {
    /// Something may have happened to an object of this bucket; `None`: to any of them. Tells how many links may hold it: the next look
    /// at it there asks the bucket.
    pub fn hint(&self, bucket: &str, key: Option<&ObjectKey>) -> usize {
        self.inner.shared.core.lock().hint(bucket, key)
    }

    /// Links whose notifications come from queues. None when the volume takes no more changes: another server may have it and them.
    pub fn links_with_queue(&self) -> Vec<LinkSettings> {
        if self.has_failed() {
            return Vec::new();
        }
        let core = self.inner.shared.core.lock();
        core.links.roots.values().filter(|settings| settings.queue.is_some()).cloned().collect()
    }

    /// `None`: the link does not listen.
    pub(super) fn hints_of(&self, link: InodeId, settings: &LinkSettings) -> Option<HintReport> {
        settings.freshness.recheck_seconds()?;
        let heard = self.inner.shared.core.lock().links.doubts.heard(link);
        Some(HintReport {
            hints: heard.hints,
            last: heard.last.map(|at| at.elapsed()),
            asked_in_doubt: heard.asked_in_doubt,
            asked_in_time: heard.asked_in_time,
        })
    }
}
