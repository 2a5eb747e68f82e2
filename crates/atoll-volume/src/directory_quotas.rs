//! Quotas of directories: set, taken away, and what is below them charged anew meanwhile (`core::stamping`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use atoll_lease::{Claim, Rights};
use atoll_store::Scan;
use atoll_types::limits::{QUOTA_DEPTH_MAX, QUOTA_ROOTS_MAX};
use atoll_types::{Errno, FileKind, InodeId, Name};

use crate::format::{self, DirectoryQuota, InodeRecord, Quota, QuotaState};
use crate::fsck::Progress;
use crate::volume::{Inner, Volume};

/// Names of a directory, or inodes, that are read in one go.
const PAGE: usize = 512;
/// Rights that are asked back at a time.
const ASKED_TOGETHER: usize = 1024;
/// Pause before what failed is tried again; it doubles …
const PAUSE: Duration = Duration::from_secs(1);
/// … up to this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Deeper than any path that the system takes.
const DEPTH_MAX: usize = 4096;

/// Why a directory has not the quota that it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    #[error("it has no quota")]
    NoQuota,
    #[error("at most {QUOTA_DEPTH_MAX} directories with quotas may be inside of each other")]
    TooDeep,
    #[error("at most {QUOTA_ROOTS_MAX} directories of a volume may have quotas: take one away first")]
    TooMany,
    #[error("it is the whole volume: its quota is that of the volume")]
    Root,
    #[error("it is not a directory")]
    NotDirectory,
    #[error("{0}")]
    Other(Errno),
}

impl From<Errno> for QuotaError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ENOTDIR => QuotaError::NotDirectory,
            Errno::ELOOP => QuotaError::TooDeep,
            Errno::EMLINK => QuotaError::TooMany,
            errno => QuotaError::Other(errno),
        }
    }
}

/// Of what is gone, nothing is to be done.
fn unless_gone<T: Default>(result: Result<T, Errno>) -> Result<T, Errno> {
    if matches!(result, Err(Errno::ESTALE)) { Ok(T::default()) } else { result }
}

async fn stamp_until_done(inner: Weak<Inner>, mut pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        let Some(volume) = inner.upgrade().map(|inner| Volume { inner }) else { return };
        let _alone = volume.inner.stamping.lock().await;
        let stamped = volume.stamp_pending(&|_| ()).await;
        if volume.inner.shared.is_closing() {
            return;
        }
        let Err(errno) = stamped else {
            // Under the lock: whoever fails from now on begins anew.
            volume.inner.stamps_again.store(false, Ordering::Release);
            return;
        };
        pause = (pause * 2).clamp(PAUSE, PAUSE_MAX);
        tracing::warn!(%errno, ?pause, "what a quota bounds is not counted: trying again after a pause");
    }
}

type Watch = Box<dyn Fn(Progress) + Send + Sync>;

impl Volume {
    /// By number.
    pub fn directory_quotas(&self) -> Vec<(InodeId, DirectoryQuota)> {
        let mut all: Vec<_> = self.inner.shared.core.lock().roots.all().collect();
        all.sort_unstable_by_key(|(directory, _)| *directory);
        all
    }

    /// Bound what a directory may hold, or bound it otherwise. When this returns, everything below is counted, the limits hold, and
    /// that is durable. What is there already stays, also when it is more. Goes on when nobody waits for it.
    pub async fn set_directory_quota(
        &self,
        directory: InodeId,
        limits: Quota,
        watch: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<(), QuotaError> {
        self.change_directory_quota(directory, Some(limits), Box::new(watch)).await
    }

    /// Take a directory's quota away. When this returns, nothing is charged to it any more, and that is durable.
    pub async fn remove_directory_quota(
        &self,
        directory: InodeId,
        watch: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<(), QuotaError> {
        self.change_directory_quota(directory, None, Box::new(watch)).await
    }

    async fn change_directory_quota(
        &self,
        directory: InodeId,
        limits: Option<Quota>,
        watch: Watch,
    ) -> Result<(), QuotaError> {
        if directory == InodeId::ROOT {
            return Err(QuotaError::Root);
        }
        self.admit().await?;
        let volume = self.clone();
        let work = tokio::spawn(async move {
            let _alone = volume.inner.stamping.lock().await;
            volume.inner.leases.grace.over().await;
            volume.stamp_pending(&watch).await?;
            let has_one = volume.inner.shared.core.lock().roots.get(directory).is_some();
            match (limits, has_one) {
                (Some(limits), true) => {
                    volume.alone(|core| core.change_quota(directory, |q| q.limits = limits)).await?
                }
                (Some(limits), false) => {
                    let claim = Claim { inode: directory, excludes: Rights::ALL };
                    volume.excluding(claim, |core| core.begin_counting(directory, limits)).await?;
                }
                (None, true) => {
                    volume.alone(|core| core.change_quota(directory, |q| q.state = QuotaState::Leaving)).await?;
                }
                (None, false) => return Err(QuotaError::NoQuota),
            }
            volume.inner.shared.work.notify_one();
            if let Err(errno) = volume.stamp_pending(&watch).await {
                volume.stamp_again(PAUSE);
                return Err(errno.into());
            }
            if limits.is_some() {
                volume.take_back_root(directory).await;
            }
            let ordered = volume.inner.shared.core.lock().ordered();
            Ok(volume.until_durable(ordered).await?)
        });
        work.await.unwrap_or(Err(QuotaError::Other(Errno::EIO)))
    }

    /// Go on with what an earlier authority has begun, when its sessions are back or over.
    pub(crate) fn resume_stamping(&self) {
        if !self.inner.left_stamping.swap(false, Ordering::AcqRel) {
            return;
        }
        let is_begun = |quota: DirectoryQuota| quota.state != QuotaState::Kept;
        if !self.inner.shared.core.lock().roots.all().any(|(_, quota)| is_begun(quota)) {
            return;
        }
        self.stamp_again(Duration::ZERO);
    }

    /// Go on with what was begun, after a pause and with further ones after failures, until it is done.
    fn stamp_again(&self, pause: Duration) {
        if !self.inner.stamps_again.swap(true, Ordering::AcqRel) {
            tokio::spawn(stamp_until_done(Arc::downgrade(&self.inner), pause));
        }
    }

    /// Bring to an end what was begun.
    async fn stamp_pending(&self, watch: &(dyn Fn(Progress) + Send + Sync)) -> Result<(), Errno> {
        for (directory, _) in self.directory_quotas() {
            if !self.inner.shared.core.lock().begin_stamping(directory) {
                continue;
            }
            let stamped = self.stamp_below(directory, watch).await;
            self.inner.shared.core.lock().end_stamping();
            stamped?;
            let finish = |quota: &mut DirectoryQuota| quota.state = QuotaState::Kept;
            let state = self.inner.shared.core.lock().roots.get(directory).map(|quota| quota.state);
            match state {
                Some(QuotaState::Counting) => self.alone(|core| core.change_quota(directory, finish)).await?,
                Some(_) => {
                    tracing::warn!(%directory, "something is left of a quota that was taken away: fsck mends it");
                    self.inner.shared.core.lock().remove_quota(directory);
                }
                // The directory is gone, or nothing is charged to it any more.
                None => {}
            }
            self.inner.shared.work.notify_one();
        }
        Ok(())
    }

    async fn stamp_below(&self, directory: InodeId, watch: &(dyn Fn(Progress) + Send + Sync)) -> Result<(), Errno> {
        let mut done = 0;
        loop {
            let next = self.inner.shared.core.lock().next_to_stamp();
            let Some(next) = next else { break };
            self.admit().await?;
            if self.inner.shared.is_closing() {
                // The next authority goes on.
                return Err(Errno::EIO);
            }
            // Who makes names in it alone would go on to have them charged as before.
            let claim = Claim { inode: next, excludes: Rights::ALL };
            if !unless_gone(self.excluding(claim, |core| core.stamp_directory(next)).await)? {
                continue;
            }
            let mut after = 0;
            loop {
                let (entries, end) = self.list_from_store(next, after, PAGE).await?;
                for entry in entries {
                    after = entry.cookie;
                    done += 1;
                    if entry.kind == FileKind::Directory {
                        self.inner.shared.core.lock().stamp_later(entry.inode);
                    } else {
                        let stamp = self.alone(|core| core.stamp_name(next, &entry.name, entry.inode));
                        unless_gone(stamp.await)?;
                    }
                }
                watch(Progress { phase: "count", done, total: 0 });
                self.inner.shared.work.notify_one();
                self.admit().await?;
                tokio::task::yield_now().await;
                if end {
                    break;
                }
            }
        }
        let leaves = |quota: DirectoryQuota| quota.state == QuotaState::Leaving;
        let is_leaving = self.inner.shared.core.lock().roots.get(directory).is_some_and(leaves);
        if is_leaving && self.inner.shared.core.lock().leaves_something(directory) {
            self.stamp_rest(directory).await?;
        }
        Ok(())
    }

    /// What is charged to a quota root and has no name below it: files that are open without a name, or have one elsewhere.
    async fn stamp_rest(&self, directory: InodeId) -> Result<(), Errno> {
        let ordered = self.inner.shared.core.lock().ordered();
        self.until_durable(ordered).await?;
        let (mut next, end) = (Some(format::all_inodes().0), format::all_inodes().1);
        while let Some(start) = next {
            let scan = Scan { start, end: end.clone(), entries_max: PAGE };
            let page = self.inner.shared.store.scan(scan).await.map_err(|error| {
                tracing::error!(%error, "cannot read inodes");
                crate::VolumeError::from(error).errno()
            })?;
            for (key, value) in page.entries {
                let is_charged = |record: InodeRecord| record.quota_root == directory;
                if let (Ok(inode), true) = (format::key_number(&key), InodeRecord::decode(&value).is_ok_and(is_charged))
                {
                    unless_gone(self.alone(|core| core.stamp_unfound(InodeId(inode))).await)?;
                }
            }
            self.inner.shared.work.notify_one();
            self.admit().await?;
            next = page.next;
        }
        Ok(())
    }

    /// Nobody is to change anything below without asking any more.
    async fn take_back_root(&self, root: InodeId) {
        let held = self.inner.shared.core.lock().held_tightly(root);
        for inodes in held.chunks(ASKED_TOGETHER) {
            self.ask_writers(inodes.iter().copied()).await;
        }
    }

    /// The same for several, without waiting for it.
    pub(crate) fn take_back_roots(&self, roots: Vec<InodeId>) {
        for root in roots {
            if !self.inner.taking_back_roots.lock().insert(root) {
                continue;
            }
            let volume = self.clone();
            tokio::spawn(async move {
                volume.take_back_root(root).await;
                volume.inner.taking_back_roots.lock().remove(&root);
            });
        }
    }

    /// Paths of directories, of those that have one.
    pub async fn directory_paths(&self, directories: &[InodeId]) -> Result<HashMap<InodeId, String>, Errno> {
        let mut names: HashMap<InodeId, HashMap<InodeId, Name>> = HashMap::new();
        let mut paths = HashMap::new();
        for &directory in directories {
            let (mut parts, mut at) = (Vec::new(), directory);
            while at != InodeId::ROOT && parts.len() < DEPTH_MAX {
                let Ok(parent) = self.alone(|core| core.parent(at)).await else { break };
                let known = match names.entry(parent.inode) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(self.subdirectories(parent.inode).await?),
                };
                let Some(name) = known.get(&at) else { break };
                parts.push(String::from_utf8_lossy(name.as_bytes()).into_owned());
                at = parent.inode;
            }
            if at == InodeId::ROOT {
                parts.reverse();
                paths.insert(directory, format!("/{}", parts.join("/")));
            }
        }
        Ok(paths)
    }

    async fn subdirectories(&self, parent: InodeId) -> Result<HashMap<InodeId, Name>, Errno> {
        let (mut found, mut after) = (HashMap::new(), 0);
        loop {
            let (entries, end) = self.list_from_store(parent, after, PAGE).await?;
            after = entries.last().map_or(after, |entry| entry.cookie);
            let directories = entries.into_iter().filter(|entry| entry.kind == FileKind::Directory);
            found.extend(directories.map(|entry| (entry.inode, entry.name)));
            if end {
                return Ok(found);
            }
        }
    }
}
