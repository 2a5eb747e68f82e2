//! Of one inode, and of one key, one change is under way at a time.
//!
//! Invariant: while a file's object is being written at a key, nobody looks for it there or deletes what is found, and the other way round. So
//! what a deletion finds at its key is never what a publication has just brought there.

use std::time::Duration;

use atoll_link::ObjectKey;
use atoll_types::{Errno, InodeId};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use super::record::BaseObject;
use crate::volume::Volume;

/// So late may a change still have its effect in the bucket, after nobody waits for its answer any more.
const LATE: Duration = Duration::from_secs(5);
/// So long is a read begun anew, or waits, when the file's object is replaced or moved meanwhile, before it fails with `ESTALE`.
const READ_PATIENCE: Duration = Duration::from_secs(10);

/// What is changed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Subject {
    Inode(InodeId),
    Object(InodeId, ObjectKey),
}

/// Changes that are under way, and those that may be.
#[derive(Default)]
pub(crate) struct UnderWay {
    begun: FxHashSet<Subject>,
    /// When a change of an object ended of which it is not known whether it has had its effect.
    unanswered: FxHashMap<(InodeId, ObjectKey), Instant>,
}

impl UnderWay {
    /// False when another change of it is under way. Who is answered with true ends it ([`Change`]).
    pub fn begin(&mut self, subject: Subject) -> bool {
        self.begun.insert(subject)
    }

    fn end(&mut self, subject: &Subject) {
        self.begun.remove(subject);
    }

    pub fn is_begun(&self, link: InodeId, key: &ObjectKey) -> bool {
        self.begun.contains(&Subject::Object(link, key.clone()))
    }

    /// What was begun at the key has ended, or its authority has, and perhaps not in the bucket.
    pub fn unanswered(&mut self, link: InodeId, key: &ObjectKey) {
        self.unanswered.insert((link, key.clone()), Instant::now());
    }

    /// Whether what was begun at the key may have its effect only now.
    pub fn may_come(&self, link: InodeId, key: &ObjectKey) -> bool {
        self.unanswered.get(&(link, key.clone())).is_some_and(|ended| ended.elapsed() < LATE)
    }

    pub fn forget(&mut self, link: InodeId, key: &ObjectKey) {
        self.unanswered.remove(&(link, key.clone()));
    }
}

/// A change that is under way, until it is dropped.
pub(super) struct Change<'a> {
    volume: &'a Volume,
    subject: Subject,
}

impl Volume {
    /// What was begun under the volume's lock.
    pub(super) fn under_way(&self, subject: Subject) -> Change<'_> {
        Change { volume: self, subject }
    }

    /// A read did not find what was the file's object. True when that was our own doing, since it was published or moved: then another one is
    /// its object by now, and the read is to be planned anew.
    pub(crate) async fn until_replaced(
        &self,
        inode: InodeId,
        link: InodeId,
        base: &BaseObject,
        began: Instant,
    ) -> Result<bool, Errno> {
        while began.elapsed() < READ_PATIENCE {
            if !self.alone(|core| core.has_base(inode, base)).await? {
                return Ok(true);
            }
            let is_begun = self.inner.shared.core.lock().links.under_way.is_begun(link, &base.key);
            // An attempt may have had its effect without an answer: that is found out by the next one.
            if !is_begun && !self.is_to_be_retried(inode) {
                return Ok(false);
            }
            self.inner.links.until_performed().await;
        }
        Ok(false)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut core = self.volume.inner.shared.core.lock();
        core.links.under_way.end(&self.subject);
        if let Subject::Object(link, key) = &self.subject
            && core.links.is_gone(*link, key)
        {
            core.links.under_way.unanswered(*link, key);
        }
        core.links.work.notify_one();
        self.volume.inner.links.performed.notify_waiters();
    }
}
