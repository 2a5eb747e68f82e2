//! A quota of the whole volume: set, kept, and defended against what clients do without asking (`core::quota`).

use std::time::Duration;

use atoll_types::{Errno, InodeId};

use crate::format::Quota;
use crate::volume::Volume;

/// How often who waits for room looks for it.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

impl Volume {
    pub fn quota(&self) -> Quota {
        self.inner.shared.core.lock().quota()
    }

    /// Durable when this returns. What is there already stays, also when it is more.
    pub async fn set_quota(&self, quota: Quota) -> Result<(), Errno> {
        let ordered = self.inner.shared.core.lock().set_quota(quota);
        self.inner.room.notify_waiters();
        self.until_durable(ordered).await
    }

    /// A client has changed these without asking, and little is left: it is to ask for the next change of them.
    pub(crate) fn take_back(&self, inodes: impl Iterator<Item = InodeId>) {
        let mut inodes = inodes.peekable();
        if inodes.peek().is_none() {
            return;
        }
        let new: Vec<InodeId> = {
            let mut taking_back = self.inner.taking_back.lock();
            inodes.filter(|inode| taking_back.insert(*inode)).collect()
        };
        if new.is_empty() {
            return;
        }
        let volume = self.clone();
        tokio::spawn(async move {
            volume.ask_writers(new.iter().copied()).await;
            let mut taking_back = volume.inner.taking_back.lock();
            new.iter().for_each(|inode| {
                taking_back.remove(inode);
            });
        });
    }

    /// Wait until so much is left that clients may change something without asking.
    pub(crate) async fn until_roomy(&self) {
        while self.inner.shared.core.lock().is_tight() {
            let _ = tokio::time::timeout(ROOM_INTERVAL, self.inner.room.notified()).await;
        }
    }
}
