//! Linked directories: what a bucket holds is a file, and what is written becomes an object.
//!
//! `record` is what is stored, `core::linked` and `core::publishing` the rules; here is what asks the bucket: `ask` for one name, `list` for
//! a directory, `objects` for bytes, `hints` is what it says unasked. `publish` finds what is to be done and when, `settle` does it, with `write`, `moving` and `conflicts`, within a
//! `budget`.

mod adopted;
mod ask;
mod budget;
mod conflicts;
mod hints;
mod list;
mod moving;
mod objects;
mod pages;
mod publish;
pub(crate) mod record;
mod settle;
pub(crate) mod under_way;
mod uploads;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use atoll_lease::{Claim, Rights};
use atoll_link::{Bucket, BucketError, LinkSettings, ObjectKey, Publish, UploadLog, Version};
use atoll_types::operation::DirectoryEntry;
use atoll_types::{Errno, FileKind, InodeId, SessionId};

use crate::volume::Volume;
pub use budget::Traffic;
pub use hints::HintReport;
pub(crate) use objects::{Pattern, Reading};

/// Opens the bucket of a link, which tells the log of its uploads. Nothing is sent yet.
pub type Connect = Arc<dyn Fn(&LinkSettings, Arc<dyn UploadLog>) -> Result<Arc<dyn Bucket>, BucketError> + Send + Sync>;

/// Why a link, or what was asked of it, cannot be.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("only an empty directory can be linked: this one holds files")]
    NotEmpty,
    #[error("this is not a directory")]
    NotADirectory,
    #[error("this lies in a link already")]
    Linked,
    #[error("this is not a linked directory")]
    NotLinked,
    #[error("{0} files have not become objects yet: publish them, or detach with --discard")]
    Unpublished(usize),
    #[error("the file was changed in the bucket, too: {0}")]
    Conflict(String),
    #[error("{0}")]
    LocalOnly(String),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("{0}")]
    Errno(Errno),
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> Self {
        LinkError::Errno(errno)
    }
}

/// A file that is the same in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub key: ObjectKey,
    pub version: Version,
}

/// Something that is not in the bucket as it is in the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    pub inode: InodeId,
    /// The key that it is to have; `None` when it cannot have one.
    pub key: Option<ObjectKey>,
    pub why: String,
}

/// A link, for `status`.
#[derive(Clone, Debug)]
pub struct LinkReport {
    pub root: InodeId,
    pub settings: LinkSettings,
    /// Files and directories whose objects are to be written, copied or moved.
    pub unpublished: usize,
    /// Objects that are to be deleted.
    pub deleting: usize,
    /// Since the volume was opened.
    pub conflicts: u64,
    pub traffic: Traffic,
    /// Files that wait since rewriting them has used up their budget.
    pub held_back: usize,
    /// Why the bucket cannot be used now.
    pub trouble: Option<String>,
    /// Of a link that hears hints.
    pub hints: Option<HintReport>,
    /// The first of those that are not published, and why.
    pub waiting: Vec<Unpublished>,
}

/// What a volume has of its links beside its core.
#[derive(Default)]
pub(crate) struct LinkService {
    connect: OnceLock<Connect>,
    buckets: Mutex<HashMap<InodeId, Arc<dyn Bucket>>>,
    /// There is a link, or was one.
    is_used: AtomicBool,
    pub checks: ask::Checks,
    pub pages: pages::Pages,
    pub objects: objects::Objects,
    pub budgets: budget::Budgets,
    requested: Mutex<publish::Requested>,
    failed: Mutex<publish::Failures>,
    /// A publication or deletion has ended.
    performed: Notify,
    conflicts: Mutex<BTreeMap<InodeId, u64>>,
    /// Why a bucket did not answer last, and when.
    troubles: Mutex<BTreeMap<InodeId, (String, Instant)>>,
    pub worker: Mutex<Option<JoinHandle<()>>>,
}

impl LinkService {
    pub fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Acquire)
    }

    pub fn use_links(&self) {
        self.is_used.store(true, Ordering::Release);
    }

    fn connect(&self, settings: &LinkSettings, uploads: uploads::Log) -> Result<Arc<dyn Bucket>, BucketError> {
        let connect = self.connect.get();
        connect.ok_or_else(|| BucketError::Away("links are not served here".into()))?(settings, Arc::new(uploads))
    }

    fn open(&self, settings: &LinkSettings, uploads: uploads::Log) -> Result<Arc<dyn Bucket>, BucketError> {
        let mut buckets = self.buckets.lock();
        let link = uploads.link;
        if let Some(bucket) = buckets.get(&link) {
            return Ok(bucket.clone());
        }
        let bucket = self.connect(settings, uploads)?;
        buckets.insert(link, bucket.clone());
        Ok(bucket)
    }

    /// Until something was published or deleted, or a moment has passed.
    async fn until_performed(&self) {
        let _ = tokio::time::timeout(WAIT, self.performed.notified()).await;
    }

    fn count_conflict(&self, link: InodeId) {
        *self.conflicts.lock().entry(link).or_default() += 1;
    }

    fn note_trouble(&self, link: InodeId, error: &BucketError) {
        match error {
            BucketError::Changed | BucketError::Absent => {}
            error => {
                self.troubles.lock().insert(link, (error.to_string(), Instant::now()));
            }
        }
    }

    fn trouble(&self, link: InodeId) -> Option<String> {
        let troubles = self.troubles.lock();
        let (trouble, _) = troubles.get(&link).filter(|(_, at)| at.elapsed() < TROUBLE_SHOWN)?;
        Some(trouble.clone())
    }
}

/// Why a file waits for its budget.
fn waits_for_budget(wait: std::time::Duration) -> String {
    format!(
        "it is rewritten all the time, and its budget is used up: it waits {} s (`atoll publish` does not); a file like that is \
         better kept outside of links, or in a link with a larger --budget",
        wait.as_secs() + 1
    )
}

/// How often who waits for a publication looks, should it not be told.
const WAIT: std::time::Duration = std::time::Duration::from_millis(200);
/// A publication that failed so often is told to who waits for it.
const ATTEMPTS_TOLD: u32 = 2;
/// How long a request that failed is shown as a link's trouble: a bucket that is still in trouble fails again.
const TROUBLE_SHOWN: std::time::Duration = std::time::Duration::from_secs(60);
/// What a report lists of what is not published.
const WAITING_LISTED: usize = 100;

impl Volume {
    /// From now on linked directories are served. Called once, when the volume is open.
    pub fn start_links(&self, connect: Connect) {
        if self.inner.links.connect.set(connect).is_ok() && !self.inner.shared.config.read_only {
            publish::start(self);
        }
    }

    /// Link an empty directory.
    pub async fn link(&self, directory: InodeId, settings: LinkSettings) -> Result<(), LinkError> {
        self.admit().await?;
        self.refuse_within_link(directory).await?;
        // It answers, before anything is made of it.
        let uploads = self.upload_log(directory);
        self.inner.links.connect(&settings, uploads)?.list(&settings.prefix, None, true, 1).await?;
        self.inner.links.use_links();
        let claim = Claim { inode: directory, excludes: Rights::ALL };
        let began = self.excluding(claim, |core| core.begin_link(directory, &settings)).await;
        let ordered = self.inner.shared.core.lock().ordered();
        match began {
            Ok(()) => {}
            Err(Errno::EBUSY) => return Err(LinkError::Linked),
            Err(Errno::ENOTEMPTY) => return Err(LinkError::NotEmpty),
            Err(Errno::ENOTDIR) => return Err(LinkError::NotADirectory),
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.until_durable(ordered).await?)
    }

    async fn refuse_within_link(&self, directory: InodeId) -> Result<(), LinkError> {
        let mut at = directory;
        loop {
            if self.alone(|core| Ok(core.linked(at)?.is_some())).await? {
                return Err(LinkError::Linked);
            }
            let above = self.alone(|core| core.parent(at)).await.map_err(|errno| match errno {
                Errno::ENOTDIR => LinkError::NotADirectory,
                errno => errno.into(),
            })?;
            if above.inode == at {
                return Ok(());
            }
            at = above.inode;
        }
    }

    /// Every link, by its directory.
    pub async fn links(&self) -> Vec<LinkReport> {
        let roots: Vec<(InodeId, LinkSettings)> = {
            let core = self.inner.shared.core.lock();
            core.links.roots.iter().map(|(root, settings)| (*root, settings.clone())).collect()
        };
        let mut reports = Vec::with_capacity(roots.len());
        for (root, settings) in roots {
            reports.push(self.link_report(root, settings).await);
        }
        reports
    }

    async fn link_report(&self, root: InodeId, settings: LinkSettings) -> LinkReport {
        let (unpublished, deleting) = {
            let core = self.inner.shared.core.lock();
            // What an earlier authority has left may be of any link until it was looked at.
            let of = |link: &InodeId| *link == root || *link == InodeId::NONE;
            let unpublished: Vec<InodeId> =
                core.links.unpublished.iter().filter(|(_, waiting)| of(&waiting.link)).map(|(i, _)| *i).collect();
            let deleting = core.links.gone.iter().filter(|((link, key), gone)| {
                // What is just being written counts as unpublished.
                let is_written = gone.was == record::Was::Attempt && core.links.is_replaced(*link, key);
                of(link) && !gone.is_directory() && !is_written
            });
            let deleting = deleting.count();
            (unpublished, deleting)
        };
        let held_back = unpublished
            .iter()
            .filter(|inode| self.inner.links.budgets.wait(**inode, settings.budget).is_some())
            .count();
        let mut waiting = Vec::new();
        for &inode in unpublished.iter().take(WAITING_LISTED) {
            let key = self.alone(|core| core.key_of(inode)).await.unwrap_or(None);
            let failed = self.inner.links.failed.lock().get(&publish::Task::Publish(inode)).cloned();
            let why = match failed {
                Some(failed) => failed.trouble.to_string(),
                None if self.inner.shared.core.lock().links.is_being_written(inode) => "it is open for writing".into(),
                None => match self.inner.links.budgets.wait(inode, settings.budget) {
                    Some(wait) => waits_for_budget(wait),
                    None => "it is to be published".into(),
                },
            };
            waiting.push(Unpublished { inode, key, why });
        }
        let links = &self.inner.links;
        LinkReport {
            root,
            unpublished: unpublished.len(),
            deleting,
            traffic: links.budgets.traffic(root),
            held_back,
            conflicts: links.conflicts.lock().get(&root).copied().unwrap_or_default(),
            trouble: links.trouble(root),
            hints: self.hints_of(root, &settings),
            settings,
            waiting,
        }
    }

    /// The directory is empty again, and the bucket as it is. With `discard`, what is not published is lost.
    pub async fn detach(&self, directory: InodeId, discard: bool) -> Result<(), LinkError> {
        if !self.inner.shared.core.lock().links.roots.contains_key(&directory) {
            return Err(LinkError::NotLinked);
        }
        if !discard {
            self.publish(directory).await?;
            self.until_deleted(directory).await?;
        }
        // From now on nobody asks the bucket, and nothing is published.
        let settings = self.inner.shared.core.lock().links.roots.remove(&directory);
        let settings = settings.ok_or(LinkError::NotLinked)?;
        let ended = self.end_link(directory, discard).await;
        if ended.is_err() {
            let mut core = self.inner.shared.core.lock();
            core.links.roots.insert(directory, settings);
            // Hints were not heard meanwhile.
            let now = core.links.moment();
            core.links.doubts.doubt_all(directory, now);
            core.links.work.notify_one();
        }
        let ordered = ended?;
        self.inner.links.buckets.lock().remove(&directory);
        self.inner.links.budgets.forget(directory);
        self.inner.shared.work.notify_one();
        Ok(self.until_durable(ordered).await?)
    }

    async fn end_link(&self, directory: InodeId, discard: bool) -> Result<u64, LinkError> {
        if !discard {
            let (unpublished, local) = self.count_local(directory).await?;
            if unpublished + local > 0 {
                return Err(LinkError::Unpublished(unpublished + local));
            }
        }
        self.forget_below(directory, discard).await?;
        let end = |core: &mut crate::core::Core| {
            core.end_link(directory)?;
            Ok(core.ordered())
        };
        self.alone(end).await.map_err(|errno| match errno {
            Errno::ENOTEMPTY => LinkError::Unpublished(1),
            errno => errno.into(),
        })
    }

    /// Until no object of the link is to be deleted any more.
    async fn until_deleted(&self, link: InodeId) -> Result<(), LinkError> {
        loop {
            let ended = self.inner.links.performed.notified();
            let left: Vec<publish::Task> = {
                let links = &self.inner.shared.core.lock().links;
                let gone = links.gone.iter().filter(|((of, _), gone)| *of == link && gone.is_free());
                let deletions = gone.map(|((_, key), _)| publish::Task::Delete(link, key.clone()));
                let uploads = links.uploads.of(link).into_iter().map(|upload| publish::Task::Abort(link, upload));
                deletions.chain(uploads).collect()
            };
            if left.is_empty() {
                return Ok(());
            }
            for task in left {
                let failed = self.inner.links.failed.lock().get(&task).cloned();
                if let Some(failed) = failed.filter(|failed| failed.attempts >= ATTEMPTS_TOLD) {
                    return Err(failed.into());
                }
            }
            let _ = tokio::time::timeout(WAIT, ended).await;
        }
    }

    /// Files of a link that are in the volume alone: not published, and such that cannot be.
    async fn count_local(&self, link: InodeId) -> Result<(usize, usize), LinkError> {
        let unpublished = {
            let core = self.inner.shared.core.lock();
            core.links.unpublished.values().filter(|waiting| waiting.link == link).count()
        };
        let mut local = 0;
        let mut directories = vec![link];
        while let Some(directory) = directories.pop() {
            let mut after = 0;
            loop {
                let (entries, end) = self.list_from_store(directory, after, LIST).await?;
                after = entries.last().map_or(after, |entry| entry.cookie);
                for entry in entries {
                    if entry.kind == FileKind::Directory {
                        directories.push(entry.inode);
                        continue;
                    }
                    let is_local = self.is_local(directory, &entry).await?;
                    local += usize::from(is_local);
                }
                if end {
                    break;
                }
            }
        }
        Ok((unpublished, local))
    }

    /// Whether a file is in the volume alone, and not about to be published.
    async fn is_local(&self, directory: InodeId, entry: &DirectoryEntry) -> Result<bool, Errno> {
        self.alone(|core| {
            let linked = core.linked(entry.inode)?;
            let has_object =
                |linked: &record::Linked| linked.is_home(directory, &entry.name) && linked.object.is_some();
            let has_object = linked.is_some_and(has_object);
            Ok(!has_object && !core.links.is_unpublished(entry.inode))
        })
        .await
    }

    /// Forget every name below a directory; objects stay.
    async fn forget_below(&self, directory: InodeId, discard: bool) -> Result<(), LinkError> {
        loop {
            let (entries, _) = self.list_from_store(directory, 0, LIST).await?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                if entry.kind == FileKind::Directory {
                    Box::pin(self.forget_below(entry.inode, discard)).await?;
                } else if !discard {
                    // It was made or changed meanwhile.
                    let is_unpublished = self.inner.shared.core.lock().links.is_unpublished(entry.inode);
                    if is_unpublished || self.is_local(directory, &entry).await? {
                        return Err(LinkError::Unpublished(1));
                    }
                }
                self.alone(|core| core.forget_found(directory, &entry.name)).await?;
            }
        }
    }

    /// Until the file, or every file below the directory, is an object as it is now.
    pub async fn publish(&self, inode: InodeId) -> Result<Vec<Published>, LinkError> {
        if self.alone(|core| Ok(core.linked(inode)?.is_none())).await? {
            return Err(LinkError::NotLinked);
        }
        let is_directory =
            self.alone(|core| Ok(core.attributes(inode)?.mode.kind())).await? == Some(FileKind::Directory);
        let mut published = Vec::new();
        let wanted = if is_directory { self.unpublished_below(inode).await? } else { vec![inode] };
        for together in wanted.chunks(LIST) {
            let each = together.iter().map(|&inode| self.publish_one(inode));
            for result in futures_util::future::join_all(each).await {
                published.extend(result?);
            }
        }
        if !is_directory && published.is_empty() {
            let why =
                "the file is in the volume alone: it has other names, is no plain file, or no key can have its name";
            return Err(LinkError::LocalOnly(why.into()));
        }
        Ok(published)
    }

    async fn unpublished_below(&self, directory: InodeId) -> Result<Vec<InodeId>, LinkError> {
        let all: Vec<InodeId> = self.inner.shared.core.lock().links.unpublished.keys().copied().collect();
        let mut below = Vec::new();
        for inode in all {
            let is_below = self.alone(|core| core.is_home_below(inode, directory)).await;
            match is_below {
                Ok(true) => below.push(inode),
                Ok(false) | Err(Errno::ESTALE) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(below)
    }

    async fn publish_one(&self, inode: InodeId) -> Result<Option<Published>, LinkError> {
        let _request = publish::Request::new(self, inode);
        let conflicts = |volume: &Volume| volume.inner.links.conflicts.lock().values().sum::<u64>();
        let before = conflicts(self);
        loop {
            let ended = self.inner.links.performed.notified();
            if !self.inner.shared.core.lock().links.is_unpublished(inode) {
                break;
            }
            let failed = self.inner.links.failed.lock().get(&publish::Task::Publish(inode)).cloned();
            if let Some(failed) = failed.filter(publish::Failed::is_told) {
                return Err(failed.into());
            }
            let _ = tokio::time::timeout(WAIT, ended).await;
        }
        let linked = self.alone(|core| Ok(core.linked(inode)?.cloned())).await;
        let object = match linked {
            Ok(linked) => linked.and_then(|linked| linked.object),
            Err(Errno::ESTALE) => None,
            Err(errno) => return Err(errno.into()),
        };
        let object = object.map(|object| Published { key: object.key, version: object.version });
        match object {
            Some(object) if conflicts(self) > before && object.key.as_str().contains(".atoll/conflicts/") => {
                Err(LinkError::Conflict(format!("it is {} now", object.key)))
            }
            object => Ok(object),
        }
    }

    /// Before a link's fsync returns: what the session has written is published, where that is the policy.
    pub(crate) async fn publish_synced(&self, session: SessionId) -> Result<(), Errno> {
        if !self.inner.links.is_used() {
            return Ok(());
        }
        let wanted = self.inner.shared.core.lock().written_with_policy(session, Publish::Fsync);
        let each = wanted.into_iter().map(|inode| self.publish_one(inode));
        for result in futures_util::future::join_all(each).await {
            match result {
                // As a name that has no key: what can be done is done.
                Ok(_) | Err(LinkError::LocalOnly(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, "a synced file is durable, and not published");
                    return Err(Errno::EIO);
                }
            }
        }
        Ok(())
    }
}

/// Entries that are looked at together.
const LIST: usize = 1000;

impl From<publish::Failed> for LinkError {
    fn from(failed: publish::Failed) -> Self {
        failed.trouble.into()
    }
}
