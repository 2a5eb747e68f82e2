//! What is written becomes objects: one task for a volume, with a bounded number of publications side by side.
//!
//! A publication is planned under the volume's lock ([`crate::core`], `publishing`), done without it, and what is true then is
//! noted under it again. Whatever fails is tried again after a pause, and told by `links`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use atoll_blob::Location;
use atoll_link::names::Prefix;
use atoll_link::{
    BucketError, Condition, Head, Headers, Listed, ObjectInfo, ObjectKey, OnConflict, PART_BYTES, Part, PartSource,
    Publish, posix,
};
use atoll_types::operation::RenameMode;
use atoll_types::{ByteRange, Caller, Errno, FileKind, InodeId, Mode, Name, SessionId, Timestamp, limits};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::LinkError;
use super::record::{BaseObject, Gone, Was};
use crate::core::{Content, Context, Job, ReadPlan};
use crate::extents::{ExtentMap, Piece};
use crate::rebase;
use crate::volume::{Inner, Volume};

/// Publications, copies and deletions side by side.
const TOGETHER: usize = 16;
/// A file that stays open is published when nobody wrote to it for so long.
const OPEN_IDLE: Duration = Duration::from_secs(30);
/// With [`Publish::Idle`].
const IDLE: Duration = Duration::from_secs(5);
/// Pauses after a failure, doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After something else must be done first.
const PAUSE_WAIT: Duration = Duration::from_millis(200);
/// How long the task sleeps when nothing wakes it.
const LOOK: Duration = Duration::from_secs(1);
/// Smallest part of a large object that is copied from the old one: what S3 allows.
const COPY_BYTES_MIN: u64 = 5 << 20;
/// Largest part that is copied at once.
const COPY_BYTES_MAX: u64 = 1 << 30;
/// Objects of a moved directory that are copied side by side.
const COPIES: usize = 16;
/// Most bytes that are read and stored at once when an object's bytes come into the volume.
const LOCAL_BYTES: u64 = 1 << 20;
/// After so many pauses of [`PAUSE_WAIT`] two may wait for each other.
const STUCK: u32 = 5;
/// A larger object that is replaced while a file without a name is open that it was: reads of that fail.
const HELD_BYTES_MAX: u64 = 64 << 20;
/// Times that a publication is begun anew, when the bucket is not as it was taken for.
const ATTEMPTS: usize = 5;

/// In the metadata of objects: who wrote it, and for which file.
const GENERATION: &str = "atoll-generation";

/// Why something is not as it should be in the bucket.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    Wait(&'static str),
    Bucket(String),
    Conflict(String),
    LocalOnly(String),
    Errno(Errno),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Wait(why) => f.write_str(why),
            Trouble::Bucket(why) | Trouble::Conflict(why) | Trouble::LocalOnly(why) => f.write_str(why),
            Trouble::Errno(errno) => write!(f, "{errno}"),
        }
    }
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Trouble::Errno(errno)
    }
}

impl From<BucketError> for Trouble {
    fn from(error: BucketError) -> Self {
        Trouble::Bucket(error.to_string())
    }
}

/// When to try again, and what it failed with.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub trouble: Trouble,
    pub attempts: u32,
    next: Instant,
}

impl Failed {
    /// Whether who waits for it is told, and waits no longer.
    pub fn is_told(&self) -> bool {
        match self.trouble {
            Trouble::Wait(_) => false,
            Trouble::Conflict(_) | Trouble::LocalOnly(_) => true,
            Trouble::Bucket(_) | Trouble::Errno(_) => self.attempts >= super::ATTEMPTS_TOLD,
        }
    }
}

impl From<Trouble> for LinkError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Conflict(why) => LinkError::Conflict(why),
            Trouble::LocalOnly(why) => LinkError::LocalOnly(why),
            Trouble::Bucket(why) => LinkError::Bucket(BucketError::Away(why)),
            Trouble::Wait(why) => LinkError::LocalOnly(why.into()),
            Trouble::Errno(errno) => LinkError::Errno(errno),
        }
    }
}

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Task {
    Publish(InodeId),
    Delete(InodeId, ObjectKey),
}

pub(super) fn start(volume: &Volume) {
    let inner = Arc::downgrade(&volume.inner);
    let work = volume.inner.shared.core.lock().links.work.clone();
    let worker = tokio::spawn(run(inner, work));
    *volume.inner.links.worker.lock() = Some(worker);
}

async fn run(inner: Weak<Inner>, work: Arc<tokio::sync::Notify>) {
    if let Some(volume) = inner.upgrade().map(|inner| Volume { inner }) {
        volume.go_on().await;
    }
    let mut running: HashSet<Task> = HashSet::new();
    let mut tasks: JoinSet<(Task, Result<(), Trouble>)> = JoinSet::new();
    loop {
        let Some(volume) = inner.upgrade().map(|inner| Volume { inner }) else { return };
        if volume.inner.shared.is_closing() {
            return;
        }
        let (ready, next) = volume.ready(&running, TOGETHER - running.len());
        for task in ready {
            running.insert(task.clone());
            let volume = volume.clone();
            tasks.spawn(async move {
                let result = volume.perform(&task).await;
                (task, result)
            });
        }
        drop(volume);
        let ended = tokio::select! {
            () = work.notified() => None,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => Some(ended),
            () = tokio::time::sleep(next.min(LOOK)) => None,
        };
        if let Some(ended) = ended {
            let Some(volume) = inner.upgrade().map(|inner| Volume { inner }) else { return };
            match ended {
                Ok((task, result)) => {
                    running.remove(&task);
                    volume.performed(task, result);
                }
                Err(error) => {
                    // A panic ends the whole process; nothing else ends a task.
                    tracing::error!(%error, "a publication ended unexpectedly");
                    running.clear();
                }
            }
        }
    }
}

impl Volume {
    /// What an earlier authority had not published is to be published now.
    async fn go_on(&self) {
        let left = std::mem::take(&mut *self.inner.left_unpublished.lock());
        for inode in left {
            match self.alone(|core| core.install_unpublished(inode)).await {
                // Its inode is gone, and with it what there was to be published.
                Ok(()) | Err(Errno::ESTALE) => {}
                Err(errno) => {
                    tracing::error!(%inode, %errno, "what is to be published cannot be read: it is tried again at the next start")
                }
            }
        }
    }

    /// What can be done now, and when to look again.
    fn ready(&self, running: &HashSet<Task>, most: usize) -> (Vec<Task>, Duration) {
        let now = Instant::now();
        let mut next = LOOK;
        let mut ready = Vec::new();
        let links = &self.inner.links;
        let failed = links.failed.lock();
        let requested = links.requested.lock();
        let core = self.inner.shared.core.lock();
        let mut may_try = |task: &Task| match failed.get(task) {
            Some(failed) if failed.next > now => {
                next = next.min(failed.next - now);
                false
            }
            _ => true,
        };
        for (&inode, waiting) in &core.links.unpublished {
            if ready.len() >= most {
                break;
            }
            let task = Task::Publish(inode);
            if running.contains(&task) || !may_try(&task) {
                continue;
            }
            if requested.contains_key(&inode) || core.is_due(inode, waiting.link, now.duration_since(waiting.changed)) {
                ready.push(task);
            }
        }
        for ((link, key), gone) in &core.links.gone {
            if ready.len() >= most {
                break;
            }
            let task = Task::Delete(*link, key.clone());
            if core.may_delete(*link, key, gone) && !running.contains(&task) && may_try(&task) {
                ready.push(task);
            }
        }
        (ready, next)
    }

    async fn perform(&self, task: &Task) -> Result<(), Trouble> {
        let result = match task {
            Task::Publish(inode) => self.settle(*inode).await,
            Task::Delete(link, key) => self.delete_gone(*link, key).await,
        };
        self.inner.shared.work.notify_one();
        result
    }

    fn performed(&self, task: Task, result: Result<(), Trouble>) {
        let links = &self.inner.links;
        {
            let mut failed = links.failed.lock();
            match result {
                Ok(()) => {
                    failed.remove(&task);
                }
                Err(trouble) => {
                    // Waits are none of a bucket that fails.
                    let is_wait = |trouble: &Trouble| matches!(trouble, Trouble::Wait(_));
                    let before = failed.get(&task).filter(|failed| is_wait(&failed.trouble) == is_wait(&trouble));
                    let attempts = before.map_or(0, |failed| failed.attempts) + 1;
                    let pause = match &trouble {
                        Trouble::Wait(_) => PAUSE_WAIT,
                        Trouble::LocalOnly(_) => PAUSE_MAX,
                        _ => PAUSE_MIN.saturating_mul(1 << attempts.min(10)).min(PAUSE_MAX),
                    };
                    match &trouble {
                        Trouble::Wait(_) => tracing::debug!(?task, %trouble, "waits"),
                        // Told once: `status` says what goes on failing.
                        _ if attempts == 1 => tracing::warn!(?task, %trouble, "cannot bring the bucket up to date"),
                        _ => tracing::debug!(?task, %trouble, attempts, "cannot bring the bucket up to date"),
                    }
                    failed.insert(task, Failed { trouble, attempts, next: Instant::now() + pause });
                }
            }
        }
        links.performed.notify_waiters();
    }

    async fn delete_gone(&self, link: InodeId, key: &ObjectKey) -> Result<(), Trouble> {
        let gone = {
            let core = self.inner.shared.core.lock();
            let gone = core.links.gone.get(&(link, key.clone()));
            gone.filter(|gone| core.may_delete(link, key, gone)).cloned()
        };
        let Some(gone) = gone else { return Ok(()) };
        let bucket = self.bucket(link)?;
        let is_deleted = match &gone.was {
            Was::Object(version) => match bucket.delete(key, version).await {
                Ok(()) => true,
                Err(BucketError::Changed) => false,
                Err(error) => return Err(error.into()),
            },
            _ => false,
        };
        if !is_deleted
            && let Head::Object(info) = bucket.head(key, None).await?
            && self.is_generation_of(gone.of, &info)
        {
            // Ours, and a crash came before it was noted. Another one's stays.
            match bucket.delete(key, &info.version).await {
                Ok(()) | Err(BucketError::Changed) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut core = self.inner.shared.core.lock();
        if core.links.gone.get(&(link, key.clone())) == Some(&gone) {
            core.drop_gone(link, key);
        }
        Ok(())
    }

    /// Do what the inode needs.
    async fn settle(&self, inode: InodeId) -> Result<(), Trouble> {
        let is_stuck = self.is_stuck(inode);
        for _ in 0..ATTEMPTS {
            let job = self.alone(|core| core.plan_publication(inode)).await?;
            let again = match job {
                Job::Settled => {
                    self.inner.shared.core.lock().publish_settled(inode);
                    false
                }
                Job::Wait(why) => return Err(Trouble::Wait(why)),
                Job::WaitFor(holder) => {
                    // Stuck, both may wait for each other: then this one is to need its object no more.
                    let is_free = self.release(holder).await? || is_stuck && self.localise_whole(inode).await?;
                    if !is_free {
                        return Err(Trouble::Wait("the object that is there is still that of a file that was moved"));
                    }
                    true
                }
                Job::Directory => {
                    self.move_directory(inode, is_stuck).await?;
                    false
                }
                Job::Localise { link, base, map } => {
                    self.localise(inode, link, &base, &map).await?;
                    false
                }
                Job::Write { link, key, name, base, content, condition } => {
                    let work = Writing { inode, link, key: &key, name: &name, base: base.as_ref(), content: &content };
                    self.write_object(work, &condition).await?
                }
                Job::Copy { link, key, base, content, condition } => {
                    self.copy_object(inode, link, &key, &base, content.as_ref(), &condition).await?
                }
            };
            if !again {
                return Ok(());
            }
        }
        Err(Trouble::Wait("the bucket changes all the time"))
    }

    /// Whether it waits for something else for so long that each may wait for the other.
    fn is_stuck(&self, inode: InodeId) -> bool {
        let failed = self.inner.links.failed.lock();
        let waits = |failed: &Failed| matches!(failed.trouble, Trouble::Wait(_)) && failed.attempts >= STUCK;
        failed.get(&Task::Publish(inode)).is_some_and(waits)
    }

    /// An open file without a name holds an object no more. False when it is another kind of holder.
    async fn release(&self, holder: InodeId) -> Result<bool, Trouble> {
        let Some((link, object, map)) = self.alone(|core| core.plan_release(holder)).await? else { return Ok(false) };
        // Of a version with a number it can still be read.
        if object.version.id.is_none() && object.size <= HELD_BYTES_MAX {
            match self.localise(holder, link, &object, &map).await {
                Ok(()) => return Ok(true),
                // It is not there any more.
                Err(Trouble::Errno(Errno::ESTALE)) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        self.inner.shared.core.lock().release_gone(link, &object.key, holder);
        Ok(true)
    }

    async fn localise_whole(&self, inode: InodeId) -> Result<bool, Trouble> {
        let plan = self
            .alone(|core| {
                let content = core.content(inode)?;
                let linked = core.linked(inode)?.cloned();
                Ok(linked.and_then(|linked| Some((linked.link, linked.object?, content.map))))
            })
            .await?;
        let Some((link, object, map)) = plan else { return Ok(false) };
        self.localise(inode, link, &object, &map).await?;
        Ok(true)
    }

    // ---- writing

    /// True when it is to be begun anew.
    async fn write_object(&self, work: Writing<'_>, condition: &Condition) -> Result<bool, Trouble> {
        let Writing { inode, link, key, name, base, content } = work;
        let bucket = self.bucket(link)?;
        let mut headers = Headers::default();
        if let Some(base) = base {
            match bucket.head(&base.key, None).await? {
                Head::Object(info) if crate::core::is_same_version(&base.version, &info.version) => {
                    headers = info.headers.unwrap_or_default();
                    headers.tags = Some(bucket.tags(&base.key).await?);
                }
                Head::Object(info) if base.key == *key => return self.conflict(&work, Some(info)).await,
                _ if base.key == *key => return self.conflict(&work, None).await,
                _ => {}
            }
        }
        if headers.content_type.is_none() {
            headers.content_type = posix::guess_content_type(name.as_bytes()).map(str::to_owned);
        }
        posix::write(&mut headers, &content.attributes);
        headers.metadata.insert(GENERATION.into(), self.generation(inode));
        let size = content.attributes.size;
        self.begin_object(inode, key).await?;
        let written = if content.attributes.mode.kind() == Some(FileKind::Symlink) {
            bucket.put(key, content.target.clone(), &headers, condition).await
        } else if size <= PART_BYTES {
            let bytes = self.content_bytes(link, base, &content.map, ByteRange::new(0, size)).await?;
            bucket.put(key, bytes, &headers, condition).await
        } else {
            let mut parts = Parts { volume: self, link, base, content, at: 0, failed: None };
            let written = bucket.put_parts(key, &mut parts, &headers, condition).await;
            if let Some(errno) = parts.failed {
                return Err(errno.into());
            }
            written
        };
        match written {
            Ok(version) => {
                self.alone(|core| core.published(inode, link, key, &version, Some(content))).await?;
                Ok(false)
            }
            Err(BucketError::Changed) => match bucket.head(key, None).await? {
                Head::Object(info) => self.conflict(&work, Some(info)).await,
                _ => self.conflict(&work, None).await,
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Before an object is written where there was none of this file: should a crash come before that is noted, it is looked for.
    async fn begin_object(&self, inode: InodeId, key: &ObjectKey) -> Result<(), Errno> {
        match self.alone(|core| core.begin_object(inode, key)).await? {
            Some(ordered) => self.until_durable(ordered).await,
            None => Ok(()),
        }
    }

    /// Unique for each write, and of this file.
    fn generation(&self, inode: InodeId) -> String {
        let mut nonce = [0u8; 8];
        // Without randomness the time still tells writes apart.
        if getrandom::fill(&mut nonce).is_err() {
            nonce = (Timestamp::now().seconds as u64 ^ u64::from(Timestamp::now().nanos)).to_be_bytes();
        }
        format!("{}{:016x}", self.own_generation(inode), u64::from_be_bytes(nonce))
    }

    /// Whether an object was written by this volume, for that file.
    fn is_generation_of(&self, inode: InodeId, info: &ObjectInfo) -> bool {
        let generation = info.headers.as_ref().and_then(|headers| headers.metadata.get(GENERATION));
        generation.is_some_and(|generation| generation.starts_with(&self.own_generation(inode)))
    }

    fn own_generation(&self, inode: InodeId) -> String {
        format!("{:032x}-{:x}-", self.inner.settings.id, inode.0)
    }

    /// Bytes of a file as it was.
    async fn content_bytes(
        &self,
        link: InodeId,
        base: Option<&BaseObject>,
        map: &ExtentMap,
        range: ByteRange,
    ) -> Result<Bytes, Errno> {
        let pieces = map.read(range);
        self.fetch(ReadPlan { range, pieces, base: base.map(|base| (link, base.clone())) }).await
    }

    // ---- conflicts

    /// The object at the key is not the one that it was taken for. True when the publication is to be begun anew.
    async fn conflict(&self, work: &Writing<'_>, there: Option<ObjectInfo>) -> Result<bool, Trouble> {
        let &Writing { inode, link, key, .. } = work;
        let Some(info) = there else {
            // Deleted there and changed here: what was changed stays.
            if let Some(base) = work.base
                && base.key == *key
            {
                self.bring_home(work, base).await?;
            }
            self.alone(|core| core.forget_base(inode, link, key)).await?;
            return Ok(true);
        };
        if self.is_generation_of(inode, &info) {
            self.alone(|core| core.adopt_base(inode, link, key, &info)).await?;
            return Ok(true);
        }
        let policy = self.inner.shared.core.lock().links.roots.get(&link).map(|settings| settings.on_conflict);
        let policy = policy.unwrap_or_default();
        self.inner.links.count_conflict(link);
        tracing::warn!(key = %key, volume_bytes = work.content.attributes.size, bucket_bytes = info.size,
            %policy, "a file and its object were both changed");
        match policy {
            OnConflict::VolumeWins => {
                if let Some(base) = work.base
                    && base.key == *key
                {
                    self.bring_home(work, base).await?;
                }
                self.alone(|core| core.adopt_base(inode, link, key, &info)).await?;
                Ok(true)
            }
            OnConflict::BucketWins => {
                let found = self.found(&self.bucket(link)?, key.clone(), info).await?;
                self.alone(|core| core.yield_to(inode, Some(&found))).await?;
                Ok(true)
            }
            OnConflict::Fail => Err(Trouble::Conflict(format!(
                "{key} was changed in the bucket, too: rename the file, or delete the object"
            ))),
            OnConflict::KeepBoth => {
                if let Some(base) = work.base {
                    self.bring_home(work, base).await?;
                }
                self.keep_both(work, info).await?;
                Ok(true)
            }
        }
    }

    /// Parts of a changed file that are still its object's come into the volume, before that object is given up.
    async fn bring_home(&self, work: &Writing<'_>, base: &BaseObject) -> Result<(), Trouble> {
        if !work.content.map.iter().any(|(_, extent)| rebase::base_range(extent).is_some()) {
            return Ok(());
        }
        match self.localise(work.inode, work.link, base, &work.content.map).await {
            Err(Trouble::Errno(Errno::ESTALE)) => Err(Trouble::Conflict(format!(
                "{} was replaced in the bucket, which keeps no versions: the part of it that was not changed here is lost there",
                base.key
            ))),
            other => other,
        }
    }

    /// The file goes to `.atoll/conflicts`, and its name to the bucket's object.
    async fn keep_both(&self, work: &Writing<'_>, info: ObjectInfo) -> Result<(), Trouble> {
        let &Writing { inode, link, key, name, .. } = work;
        let found = self.found(&self.bucket(link)?, key.clone(), info).await?;
        let directory = self.conflicts_directory(link).await?;
        let when = chrono::Utc::now().format("%Y%m%dT%H%M%SZ");
        let mut kept = name.as_bytes().to_vec();
        kept.truncate(limits::NAME_BYTES_MAX - 48);
        while std::str::from_utf8(&kept).is_err_and(|error| error.error_len().is_none()) {
            kept.pop();
        }
        kept.extend_from_slice(format!(".{when}-{:x}", inode.0).as_bytes());
        let kept = Name::new(kept)?;
        let caller = Caller::default();
        let context = Context { session: SessionId(0), caller: &caller };
        self.alone(|core| {
            let linked = core.linked(inode)?.cloned();
            let Some((parent, own)) = linked.and_then(|linked| linked.home) else { return Ok(()) };
            let own = Name::new(own)?;
            core.forget_base(inode, link, key)?;
            core.rename(context, parent, &own, directory, &kept, RenameMode::NoReplace)?;
            core.links.touch(link, key);
            core.adopt(parent, &own, Some(&found)).map(drop)
        })
        .await?;
        Ok(())
    }

    /// `.atoll/conflicts` of a link.
    async fn conflicts_directory(&self, link: InodeId) -> Result<InodeId, Trouble> {
        let mut at = link;
        for part in [&b".atoll"[..], b"conflicts"] {
            let name = Name::new(part)?;
            let caller = Caller::default();
            let context = Context { session: SessionId(0), caller: &caller };
            let lookup = atoll_types::Operation::Lookup { parent: at, name: name.clone() };
            self.freshen(&lookup).await?;
            at = self
                .alone(|core| match core.lookup_dentry(at, &name)? {
                    Some((inode, _)) => Ok(inode),
                    None => {
                        let mode = Mode::new(FileKind::Directory, 0o755);
                        core.make(context, at, &name, mode, 0, |_| ()).map(|made| made.inode)
                    }
                })
                .await?;
        }
        Ok(at)
    }

    // ---- copying

    /// True when it is to be begun anew.
    async fn copy_object(
        &self,
        inode: InodeId,
        link: InodeId,
        key: &ObjectKey,
        base: &BaseObject,
        content: Option<&Content>,
        condition: &Condition,
    ) -> Result<bool, Trouble> {
        let bucket = self.bucket(link)?;
        let source = match bucket.head(&base.key, None).await? {
            Head::Object(info) if crate::core::is_same_version(&base.version, &info.version) => info,
            Head::Object(info) => {
                // It was replaced there: that is what the file is now.
                let found = self.found(&bucket, base.key.clone(), info).await?;
                self.alone(|core| core.replace_base(inode, link, &base.key, &found)).await?;
                return Ok(true);
            }
            _ => {
                self.alone(|core| core.yield_to(inode, None)).await?;
                return Ok(true);
            }
        };
        let mut headers = source.headers.clone().unwrap_or_default();
        if let Some(content) = content {
            posix::write(&mut headers, &content.attributes);
        }
        headers.metadata.insert(GENERATION.into(), self.generation(inode));
        self.begin_object(inode, key).await?;
        match bucket.copy(&base.key, &base.version, key, Some(&headers), condition).await {
            Ok(version) => {
                self.alone(|core| core.published(inode, link, key, &version, content)).await?;
                Ok(false)
            }
            Err(BucketError::Changed | BucketError::Absent) => {
                self.copy_conflict(inode, link, key, base, &source).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// There is another object where a copy was to be.
    async fn copy_conflict(
        &self,
        inode: InodeId,
        link: InodeId,
        key: &ObjectKey,
        base: &BaseObject,
        source: &ObjectInfo,
    ) -> Result<bool, Trouble> {
        let bucket = self.bucket(link)?;
        let Head::Object(info) = bucket.head(key, None).await? else {
            self.alone(|core| {
                core.drop_gone(link, key);
                Ok(())
            })
            .await?;
            return Ok(true);
        };
        let is_copy = info.size == source.size && info.version.etag == source.version.etag;
        let is_own = self.is_generation_of(inode, &info);
        if base.key != *key && (is_copy || is_own) {
            self.alone(|core| core.published(inode, link, key, &info.version, None)).await?;
            return Ok(true);
        }
        if is_own {
            self.alone(|core| core.adopt_base(inode, link, key, &info)).await?;
            return Ok(true);
        }
        let content = self.alone(|core| core.content(inode)).await?;
        let Some((_, name)) = self.alone(|core| Ok(core.linked(inode)?.and_then(|linked| linked.home.clone()))).await?
        else {
            return Ok(true);
        };
        let name = Name::new(name)?;
        let work = Writing { inode, link, key, name: &name, base: Some(base), content: &content };
        self.conflict(&work, Some(info)).await
    }

    /// Bytes of an object come into the volume.
    async fn localise(&self, inode: InodeId, link: InodeId, base: &BaseObject, map: &ExtentMap) -> Result<(), Trouble> {
        let bucket = self.bucket(link)?;
        let mut places: BTreeMap<u64, Location> = BTreeMap::new();
        for (_, extent) in map.iter() {
            let Some(range) = rebase::base_range(extent) else { continue };
            let mut at = range.start;
            while at < range.end {
                let part = ByteRange::new(at, range.end.min(at + LOCAL_BYTES));
                let read = self.inner.links.objects.read(&bucket, link, base, part).await;
                let bytes = read.map_err(|error| Trouble::Errno(super::objects::bucket_errno(&error)))?;
                for location in self.inner.shared.blob.append(bytes).await.map_err(|error| {
                    tracing::error!(%error, "file data");
                    Errno::EIO
                })? {
                    places.insert(at, location);
                    at += u64::from(location.length);
                }
            }
        }
        Ok(self.alone(|core| core.localised(inode, base, &places)).await?)
    }

    // ---- moving directories

    /// Copy what lies below a directory's old prefix to its new one, and delete it there. When it is `stuck`, its bytes come into the
    /// volume first: others wait for its old place, and it perhaps for theirs.
    async fn move_directory(&self, directory: InodeId, stuck: bool) -> Result<(), Trouble> {
        let plan = self.alone(|core| core.plan_move(directory, stuck)).await;
        let plan = match plan {
            Err(Errno::ENAMETOOLONG) => {
                return Err(Trouble::LocalOnly("the directory's path is too long, or no text, for a key".into()));
            }
            Err(Errno::EBUSY) => return Err(Trouble::Wait("another directory is still to be moved away from there")),
            other => other?,
        };
        let Some((link, from, to)) = plan else { return Ok(()) };
        let mut after = None;
        loop {
            let Some(page) = self.reconcile(directory, after, MOVE_PAGE).await? else { return Ok(()) };
            if let Some(Listed::Object(key, info)) = &page.marker {
                self.move_marker(link, key, info, &to).await?;
            }
            let moved = page.names.into_values().map(|name| self.move_child(directory, name, &from, stuck));
            let mut moved = stream::iter(moved).buffer_unordered(COPIES);
            let mut failed = None;
            while let Some(result) = moved.next().await {
                failed = failed.or(result.err());
            }
            if let Some(trouble) = failed {
                return Err(trouble);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if stuck {
            // Where it belongs is found next.
            return Ok(self.alone(|core| core.moved_away(directory, &from)).await?);
        }
        if self.alone(|core| core.moved_prefix(directory, &from, &to)).await? {
            Ok(())
        } else {
            Err(Trouble::Wait("it was moved again"))
        }
    }

    async fn move_child(&self, directory: InodeId, name: Name, from: &Prefix, stuck: bool) -> Result<(), Trouble> {
        let found = self.alone(|core| core.lookup_dentry(directory, &name)).await?;
        let Some((inode, kind)) = found else { return Ok(()) };
        if kind == FileKind::Directory {
            // One that was made here, or has been moved, finds its place itself.
            let prefix = self.alone(|core| Ok(core.linked(inode)?.and_then(|linked| linked.prefix.clone()))).await?;
            let is_below = prefix.is_some_and(|prefix| prefix.key.as_str().starts_with(from.key.as_str()));
            return if is_below { Box::pin(self.move_directory(inode, stuck)).await } else { Ok(()) };
        }
        // What was changed here is published on its own.
        let is_clean = self
            .alone(|core| {
                let is_unpublished = core.links.is_unpublished(inode);
                let linked = core.linked(inode)?;
                let object = linked.and_then(|linked| linked.object.as_ref());
                let is_clean = !is_unpublished && object.is_some_and(|o| o.key.as_str().starts_with(from.key.as_str()));
                if is_unpublished {
                    core.hold_object(inode)?;
                }
                Ok(is_clean)
            })
            .await?;
        match (is_clean, stuck) {
            (false, _) => Ok(()),
            (true, false) => Box::pin(self.settle(inode)).await,
            (true, true) => self.localise_whole(inode).await.map(drop),
        }
    }

    async fn move_marker(&self, link: InodeId, key: &ObjectKey, info: &ObjectInfo, to: &Prefix) -> Result<(), Trouble> {
        let bucket = self.bucket(link)?;
        match bucket.copy(key, &info.version, &to.key, None, &Condition::Absent).await {
            Ok(_) | Err(BucketError::Changed | BucketError::Absent) => {}
            Err(error) => return Err(error.into()),
        }
        match bucket.delete(key, &info.version).await {
            Ok(()) | Err(BucketError::Changed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Keys of a moved directory that are looked at together.
const MOVE_PAGE: usize = 1000;

/// A file whose object is to be written.
struct Writing<'a> {
    inode: InodeId,
    link: InodeId,
    key: &'a ObjectKey,
    name: &'a Name,
    base: Option<&'a BaseObject>,
    content: &'a Content,
}

/// The parts of a large object: what is as it was is copied from the old one.
struct Parts<'a> {
    volume: &'a Volume,
    link: InodeId,
    base: Option<&'a BaseObject>,
    content: &'a Content,
    at: u64,
    failed: Option<Errno>,
}

impl Parts<'_> {
    /// Where bytes begin again that are worth a copy.
    fn changed_from(&self, at: u64) -> u64 {
        let size = self.content.attributes.size;
        let pieces = self.content.map.read(ByteRange::new(at, size));
        let starts = pieces.iter().filter_map(|piece| match piece {
            Piece::Data { offset, extent } if rebase::base_range(extent).is_some() => Some(*offset),
            _ => None,
        });
        let mut worth = starts.filter(|&start| self.unchanged_from(start) - start >= COPY_BYTES_MIN);
        worth.next().unwrap_or(size)
    }

    /// How far bytes go on from here that are the object's at the same place.
    fn unchanged_from(&self, at: u64) -> u64 {
        let mut end = at;
        for piece in self.content.map.read(ByteRange::new(at, self.content.attributes.size)) {
            match piece {
                Piece::Data { offset, extent }
                    if offset == end && rebase::base_range(&extent).is_some_and(|r| r.start == offset) =>
                {
                    end += u64::from(extent.length);
                }
                _ => break,
            }
        }
        end
    }
}

#[async_trait]
impl PartSource for Parts<'_> {
    async fn next(&mut self) -> Result<Option<Part>, BucketError> {
        let (at, size) = (self.at, self.content.attributes.size);
        if at >= size {
            return Ok(None);
        }
        let unchanged = self.unchanged_from(at).min(at + COPY_BYTES_MAX);
        if let Some(base) = self.base
            && unchanged - at >= COPY_BYTES_MIN
        {
            // The rest must not become too small for a part, unless it is the last one.
            let end = if size - unchanged < COPY_BYTES_MIN && unchanged < size {
                unchanged.min(size - COPY_BYTES_MIN)
            } else {
                unchanged
            };
            if end - at >= COPY_BYTES_MIN || end == size {
                self.at = end;
                let (key, version) = (base.key.clone(), base.version.clone());
                return Ok(Some(Part::Copy { key, version, range: ByteRange::new(at, end) }));
            }
        }
        // Parts grow with the object, of which there are at most 10,000.
        let part = PART_BYTES.max(size.div_ceil(9_000));
        let range = ByteRange::new(at, self.changed_from(at).clamp(at + COPY_BYTES_MIN, at + part).min(size));
        match self.volume.content_bytes(self.link, self.base, &self.content.map, range).await {
            Ok(bytes) => {
                self.at = range.end;
                Ok(Some(Part::Bytes(bytes)))
            }
            Err(errno) => {
                self.failed = Some(errno);
                Err(BucketError::Away(format!("its bytes cannot be read: {errno}")))
            }
        }
    }
}

impl crate::core::Core {
    /// Whether a gone object is to be deleted: not what something is written over soon.
    fn may_delete(&self, link: InodeId, key: &ObjectKey, gone: &Gone) -> bool {
        gone.is_free() && (gone.was == Was::Attempt || !self.links.is_replaced(link, key))
    }

    /// Whether it is time to publish a file.
    fn is_due(&self, inode: InodeId, link: InodeId, unchanged: Duration) -> bool {
        let Some(settings) = self.links.roots.get(&link) else { return false };
        match settings.publish {
            Publish::OnClose | Publish::Fsync => !self.links.is_being_written(inode) || unchanged >= OPEN_IDLE,
            Publish::Idle => unchanged >= IDLE,
            Publish::Manual => false,
        }
    }
}

/// What was asked to be published: how many wait for each.
pub(super) type Requested = HashMap<InodeId, usize>;

pub(super) type Failures = HashMap<Task, Failed>;

/// Keeps a file among those that are published at once.
pub(super) struct Request<'a> {
    volume: &'a Volume,
    inode: InodeId,
}

impl<'a> Request<'a> {
    pub fn new(volume: &'a Volume, inode: InodeId) -> Self {
        *volume.inner.links.requested.lock().entry(inode).or_default() += 1;
        let links = &volume.inner.links;
        links.failed.lock().remove(&Task::Publish(inode));
        volume.inner.shared.core.lock().links.work.notify_one();
        Request { volume, inode }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let mut requested = self.volume.inner.links.requested.lock();
        if let Some(count) = requested.get_mut(&self.inode) {
            *count -= 1;
            if *count == 0 {
                requested.remove(&self.inode);
            }
        }
    }
}
