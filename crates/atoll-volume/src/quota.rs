//! A quota of the whole volume: set, kept, and defended against what clients do without asking (`core::quota`).

use std::sync::atomic::Ordering;

use atoll_types::Errno;

use crate::format::Quota;
use crate::volume::Volume;

impl Volume {
    pub fn quota(&self) -> Quota {
        self.inner.shared.core.lock().quota()
    }

    /// Durable when this returns. What is there already stays, also when it is more.
    pub async fn set_quota(&self, quota: Quota) -> Result<(), Errno> {
        self.inner.leases.grace.over().await;
        let (ordered, is_tight) = {
            let mut core = self.inner.shared.core.lock();
            (core.set_quota(quota), core.is_tight())
        };
        if is_tight {
            self.take_back();
        }
        self.until_durable(ordered).await
    }

    /// Take back, in the background, every right to change something without asking.
    pub(crate) fn take_back(&self) {
        if self.inner.taking_back.swap(true, Ordering::AcqRel) {
            return;
        }
        let volume = self.clone();
        tokio::spawn(async move {
            // New ones are not given meanwhile, but on what a client makes under those that it still has.
            while volume.ask_writers().await && volume.inner.shared.core.lock().is_tight() {}
            volume.inner.taking_back.store(false, Ordering::Release);
        });
    }
}
