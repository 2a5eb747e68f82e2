//! What a name of a linked directory stands for now: asked of the bucket before an operation looks.
//!
//! Rule: a lookup asks, with one request when the name is known; a listing lists. A directory that is known is believed until it is
//! listed, or its parent is. Opens, reads and attributes do not ask: the kernel looks the name up before, since it is told to keep
//! nothing, and what is open stays the version that was opened.
//!
//! Under freshness `events` a file that is believed is not asked about: `core::doubt`.
//!
//! An answer is taken over only if nothing of ours has changed the same since it was asked for: `Links::touched_since` in `core::linked`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_link::names::{DIRECTORY_NAME_BYTES_MAX, Prefix, Shown, directory_prefix, object_key, shown};
use atoll_link::{Bucket, BucketError, Freshness, Head, Listed, ObjectInfo, ObjectKey, posix};
use atoll_types::{ByteRange, Errno, FileKind, InodeId, Name, Operation, limits};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::list::PAGE_KEYS;
use super::objects::bucket_errno;
use super::record::BaseObject;
use crate::core::{Belief, Core, Found, Step, kind_of};
use crate::volume::Volume;

/// Checks of names under way: who comes while one runs shares the next one.
#[derive(Default)]
pub(crate) struct Checks {
    running: Mutex<HashMap<(InodeId, Name), Arc<Check>>>,
    moment: AtomicU64,
}

/// When the last check of a name began.
#[derive(Default)]
struct Check(tokio::sync::Mutex<u64>);

impl Checks {
    fn moment(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::AcqRel) + 1
    }
}

/// A question that is under way, until it is dropped.
pub(super) struct Question<'a> {
    volume: &'a Volume,
    pub asked: u64,
    /// Nothing was sent before.
    pub at: Instant,
}

impl Question<'_> {
    /// What an answer to it confirms, and since when.
    pub fn moment(&self) -> (u64, Instant) {
        (self.asked, self.at)
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.volume.inner.shared.core.lock().links.answered(self.asked);
    }
}

/// A name that only the bucket knows about.
struct Unsure {
    link: InodeId,
    prefix: Prefix,
    /// The file that it stood for when it was last asked about, and whether all is known of it that HEAD tells.
    known: Option<(BaseObject, bool)>,
    /// Of a file of which all is known, in a link that hears hints.
    belief: Option<Belief>,
}

impl Core {
    /// `None` when the volume knows best, or what it knows is believed.
    fn unsure(&mut self, parent: InodeId, name: &Name) -> Step<Option<Unsure>> {
        let unsure = self.of_the_bucket(parent, name)?;
        let is_believed = |unsure: &Unsure| unsure.belief == Some(Belief::Believed);
        Ok(unsure.filter(|unsure| !is_believed(unsure)))
    }

    /// `None` when the volume knows best.
    fn of_the_bucket(&mut self, parent: InodeId, name: &Name) -> Step<Option<Unsure>> {
        let Some(linked) = self.linked(parent)? else { return Ok(None) };
        let (link, prefix) = (linked.link, linked.prefix.clone());
        let Some(prefix) = prefix else { return Ok(None) };
        let Some(freshness) = self.links.roots.get(&link).map(|settings| settings.freshness) else { return Ok(None) };
        let Some((inode, kind)) = self.lookup_dentry(parent, name)? else {
            return Ok(Some(Unsure { link, prefix, known: None, belief: None }));
        };
        if kind == FileKind::Directory || freshness == Freshness::Frozen || !self.may_adopt(parent, name)? {
            return Ok(None);
        }
        let linked = self.linked(inode)?;
        let known = linked.and_then(|linked| Some((linked.object.clone()?, linked.is_described)));
        Ok(known.map(|known| {
            let belief = self.belief(link, inode, &known.0.key).filter(|_| known.1);
            Unsure { link, prefix, known: Some(known), belief }
        }))
    }
}

impl Volume {
    /// Ask the bucket what an operation will find, where it has the last word.
    pub(crate) async fn freshen(&self, operation: &Operation) -> Result<(), Errno> {
        if !self.inner.links.is_used() {
            return Ok(());
        }
        match operation {
            Operation::Lookup { parent, name } => self.freshen_name(*parent, name).await,
            Operation::RemoveDirectory { parent, name } => self.freshen_emptiness(*parent, name).await,
            Operation::Rename { parent, name, new_parent, new_name, .. } => {
                self.until_moved(*parent, name).await?;
                self.until_moved(*new_parent, new_name).await
            }
            _ => Ok(()),
        }
    }

    pub(super) fn question(&self) -> Question<'_> {
        let asked = self.inner.shared.core.lock().links.ask();
        Question { volume: self, asked, at: Instant::now() }
    }

    /// The bucket of a link.
    pub(crate) fn bucket(&self, link: InodeId) -> Result<Arc<dyn Bucket>, BucketError> {
        let settings = self.inner.shared.core.lock().links.roots.get(&link).cloned();
        let settings = settings.ok_or_else(|| BucketError::Unsupported("the link is no more".into()))?;
        self.inner.links.open(&settings, self.upload_log(link))
    }

    /// `None` when the volume knows best, or the operation says itself what is wrong.
    async fn unsure(&self, parent: InodeId, name: &Name) -> Result<Option<Unsure>, Errno> {
        match self.alone(|core| core.unsure(parent, name)).await {
            Err(Errno::ENOTDIR | Errno::ESTALE) => Ok(None),
            other => other,
        }
    }

    async fn freshen_name(&self, parent: InodeId, name: &Name) -> Result<(), Errno> {
        if self.unsure(parent, name).await?.is_none() {
            return Ok(());
        }
        let checks = &self.inner.links.checks;
        let came = checks.moment();
        let check = checks.running.lock().entry((parent, name.clone())).or_default().clone();
        let result = async {
            let mut began = check.0.lock().await;
            if *began > came {
                return Ok(());
            }
            let begins = checks.moment();
            let Some(unsure) = self.unsure(parent, name).await? else { return Ok(()) };
            self.ask_name(parent, name, unsure).await.inspect_err(|errno| {
                tracing::debug!(%parent, ?name, %errno, "cannot ask the bucket for a name");
            })?;
            *began = begins;
            Ok(())
        }
        .await;
        let mut running = checks.running.lock();
        // This one's and the table's.
        if Arc::strong_count(&check) == 2 {
            running.remove(&(parent, name.clone()));
        }
        result
    }

    async fn ask_name(&self, parent: InodeId, name: &Name, unsure: Unsure) -> Result<(), Errno> {
        let Unsure { link, prefix, known, belief } = unsure;
        let bucket = self.bucket(link).map_err(|error| self.told(link, error))?;
        let question = self.question();
        if let Some(belief) = belief {
            self.inner.shared.core.lock().links.doubts.asks(link, belief);
        }
        let told = |error| self.told(link, error);
        let below = directory_prefix(&prefix, name.as_bytes()).ok();
        let key = match &known {
            Some((object, _)) => Some(object.key.clone()),
            None => object_key(&prefix, name.as_bytes()).ok(),
        };
        let mut witness = None;
        let found = match &known {
            Some((object, is_described)) => {
                let unless = is_described.then_some(&object.version);
                match bucket.head(&object.key, unless).await.map_err(told)? {
                    Head::Same => {
                        return match belief {
                            Some(_) => {
                                let moment = question.moment();
                                self.alone(|core| core.confirm(parent, name, &object.version, moment)).await
                            }
                            None => Ok(()),
                        };
                    }
                    Head::Object(info) => Some(self.found(&bucket, object.key.clone(), info).await.map_err(told)?),
                    Head::Absent => {
                        witness = self.find_below(&bucket, link, below.as_ref(), question.asked).await.map_err(told)?;
                        witness.as_ref().and(below.clone()).map(Found::Directory)
                    }
                }
            }
            None => {
                let head = async {
                    match &key {
                        Some(key) if !self.is_gone(link, key) => match bucket.head(key, None).await {
                            Err(BucketError::Unsupported(_)) if bucket.refuses(key).await?.is_some() => {
                                Ok(Head::Absent)
                            }
                            head => head,
                        },
                        _ => Ok(Head::Absent),
                    }
                };
                let (head, directory) =
                    tokio::join!(head, self.find_below(&bucket, link, below.as_ref(), question.asked));
                witness = directory.map_err(told)?;
                match (head.map_err(told)?, &witness, &key) {
                    (Head::Object(info), None, Some(key))
                        if self
                            .is_shown(&bucket, link, &prefix, name, (key, &info), question.asked)
                            .await
                            .map_err(told)? =>
                    {
                        Some(self.found(&bucket, key.clone(), info).await.map_err(told)?)
                    }
                    _ => witness.as_ref().and(below.clone()).map(Found::Directory),
                }
            }
        };
        self.alone(|core| {
            let now = core.of_the_bucket(parent, name)?;
            // Another authority over this name by now, or the directory is another one.
            if now.is_none_or(|now| now.prefix != prefix || now.link != link) {
                return Ok(());
            }
            let mut keys = key.iter().chain(below.as_ref().map(|below| &below.key)).chain(&witness);
            if keys.any(|key| core.links.is_ours(link, key, question.asked)) {
                return Ok(());
            }
            core.adopt(parent, name, found.as_ref())?;
            match &found {
                Some(Found::Object { info, .. }) => core.confirm(parent, name, &info.version, question.moment()),
                _ => Ok(()),
            }
        })
        .await?;
        self.inner.shared.work.notify_one();
        Ok(())
    }

    pub(super) fn is_gone(&self, link: InodeId, key: &ObjectKey) -> bool {
        self.inner.shared.core.lock().links.is_gone(link, key)
    }

    /// Whether the object goes by this name: by the one that has it beside a directory, only while there is one.
    async fn is_shown(
        &self,
        bucket: &Arc<dyn Bucket>,
        link: InodeId,
        prefix: &Prefix,
        name: &Name,
        (key, info): (&ObjectKey, &ObjectInfo),
        asked: u64,
    ) -> Result<bool, BucketError> {
        match shown(prefix, &Listed::Object(key.clone(), info.clone())) {
            Ok(Shown::File(plain)) if plain == *name => Ok(true),
            Ok(Shown::File(plain)) if plain.as_bytes().len() <= DIRECTORY_NAME_BYTES_MAX => {
                let below = directory_prefix(prefix, plain.as_bytes()).ok();
                Ok(self.find_below(bucket, link, below.as_ref(), asked).await?.is_some())
            }
            _ => Ok(false),
        }
    }

    /// A key below a prefix that tells that there is a directory: not one of which the volume knows better since it asked.
    pub(super) async fn find_below(
        &self,
        bucket: &Arc<dyn Bucket>,
        link: InodeId,
        below: Option<&Prefix>,
        asked: u64,
    ) -> Result<Option<ObjectKey>, BucketError> {
        let Some(below) = below else { return Ok(None) };
        if self.is_gone(link, &below.key) {
            return Ok(None);
        }
        let (mut after, mut most) = (None, FIRST_KEYS);
        loop {
            let page = bucket.list(&below.key, after.as_ref(), false, most).await?;
            let is_there = |key: &&ObjectKey| !self.is_ours_below(link, key, below, asked);
            if let Some(key) = page.entries.iter().map(Listed::key).find(is_there) {
                return Ok(Some(key.clone()));
            }
            match page.entries.last() {
                Some(last) if !page.end => after = Some(last.key().clone()),
                _ => return Ok(None),
            }
            most = PAGE_KEYS;
        }
    }

    /// Whether the volume knows better than an answer to the question what is at a key, or at a directory between it and a prefix.
    fn is_ours_below(&self, link: InodeId, key: &ObjectKey, above: &Prefix, asked: u64) -> bool {
        let core = self.inner.shared.core.lock();
        let text = key.as_str();
        let deeper = text.char_indices().filter(|(at, c)| *c == '/' && *at >= above.key.as_str().len());
        let mut directories = deeper.filter_map(|(at, _)| ObjectKey::new(&text[..=at]));
        core.links.is_ours(link, key, asked) || directories.any(|above| core.links.is_ours(link, &above, asked))
    }

    /// An object as a name will stand for it.
    pub(super) async fn found(
        &self,
        bucket: &Arc<dyn Bucket>,
        key: ObjectKey,
        info: ObjectInfo,
    ) -> Result<Found, BucketError> {
        let is_symlink =
            info.headers.as_ref().is_some_and(|headers| kind_of(&posix::read(headers)) == FileKind::Symlink);
        let target = if is_symlink && info.size <= limits::SYMLINK_BYTES_MAX as u64 && info.size > 0 {
            Some(bucket.get(&key, &info.version, ByteRange::at(0, info.size)).await?)
        } else {
            None
        };
        let mut info = info;
        if is_symlink && target.as_ref().is_none_or(|target: &Bytes| target.contains(&0)) {
            // A target that no symlink can have: it is shown as what it is.
            if let Some(headers) = &mut info.headers {
                headers.metadata.clear();
            }
            return Ok(Found::Object { key, info, target: None });
        }
        Ok(Found::Object { key, info, target })
    }

    /// Before a directory is moved again: until its objects are where the last move has brought it, for a while.
    async fn until_moved(&self, parent: InodeId, name: &Name) -> Result<(), Errno> {
        let end = tokio::time::Instant::now() + MOVE_PATIENCE;
        loop {
            let moving = self.alone(|core| match core.lookup_dentry(parent, name)? {
                Some((directory, FileKind::Directory)) => core.is_moving(directory),
                _ => Ok(false),
            });
            // Whatever else is wrong, the operation says itself.
            if !moving.await.unwrap_or_default() || tokio::time::Instant::now() >= end {
                return Ok(());
            }
            self.inner.links.until_performed().await;
        }
    }

    /// Before a directory is removed: names below it that nobody has looked at count.
    async fn freshen_emptiness(&self, parent: InodeId, name: &Name) -> Result<(), Errno> {
        let found = self.alone(|core| core.lookup_dentry(parent, name)).await;
        let Ok(Some((directory, FileKind::Directory))) = found else { return Ok(()) };
        let mut after = None;
        loop {
            let Some(page) = self.reconcile(directory, after, FIRST_KEYS).await? else { return Ok(()) };
            if let Some(Listed::Object(key, info)) = page.marker {
                // It goes with the directory.
                let (version, archived) = (info.version, info.archived);
                let object = BaseObject { key, version, size: info.size, archived };
                self.alone(|core| {
                    core.change_linked(directory, |linked| linked.object = Some(object.clone()));
                    Ok(())
                })
                .await?;
            }
            // What is gone is still listed.
            let is_empty = self
                .alone(|core| {
                    for name in page.names.values() {
                        if core.named_entry(directory, name)?.is_some() {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                })
                .await?;
            match page.next {
                Some(next) if is_empty => after = Some(next),
                _ => return Ok(()),
            }
        }
    }

    /// What a call fails with; the link's trouble is known to who asks for it.
    pub(crate) fn told(&self, link: InodeId, error: BucketError) -> Errno {
        self.inner.links.note_trouble(link, &error);
        bucket_errno(&error)
    }

    /// The same, when an object was to be read: whether it is another one is asked by the next look.
    pub(crate) fn told_of(&self, link: InodeId, object: &BaseObject, error: BucketError) -> Errno {
        if matches!(error, BucketError::Changed | BucketError::Absent) {
            self.inner.shared.core.lock().doubt(link, &object.key);
        }
        self.told(link, error)
    }
}

/// A directory that is moved again waits so long for the last move, and fails with `EBUSY` then.
const MOVE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// Enough to know that something is there, beside what is gone.
const FIRST_KEYS: usize = 16;
