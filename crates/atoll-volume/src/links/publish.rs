//! What is written becomes objects: one task for a volume, with a bounded number of publications side by side.
//!
//! A publication is planned under the volume's lock ([`crate::core`], `publishing`), done without it, and what is true then is
//! noted under it again. Whatever fails is tried again after a pause, and told by `links`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use atoll_link::{BucketError, Head, ObjectKey, Publish};
use atoll_types::{Errno, InodeId};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::LinkError;
use super::record::{Gone, Was};
use super::under_way::Subject;
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
/// Before anything is changed that an earlier authority has left: what it had sent when it was killed has its effect within that time.
const ARRIVAL: Duration = Duration::from_secs(1);
/// How long the task sleeps when nothing wakes it.
const LOOK: Duration = Duration::from_secs(1);

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
    Abort(InodeId, String),
}

pub(super) fn start(volume: &Volume) {
    let inner = Arc::downgrade(&volume.inner);
    let work = volume.inner.shared.core.lock().links.work.clone();
    let worker = tokio::spawn(run(inner, work));
    *volume.inner.links.worker.lock() = Some(worker);
}

async fn run(inner: Weak<Inner>, work: Arc<tokio::sync::Notify>) {
    if let Some(volume) = inner.upgrade().map(|inner| Volume { inner }) {
        let is_left = volume.go_on().await;
        drop(volume);
        if is_left {
            tokio::time::sleep(ARRIVAL).await;
        }
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
    /// What an earlier authority had not published is to be published now. False when there is nothing of it.
    async fn go_on(&self) -> bool {
        let has_changes = {
            let mut core = self.inner.shared.core.lock();
            let links = &mut core.links;
            for (link, key) in links.gone.keys() {
                links.under_way.unanswered(*link, key);
            }
            !links.gone.is_empty() || !links.uploads.is_empty()
        };
        let left = std::mem::take(&mut *self.inner.left_unpublished.lock());
        let is_left = has_changes || !left.is_empty();
        for inode in left {
            match self.alone(|core| core.install_unpublished(inode)).await {
                // Its inode is gone, and with it what there was to be published.
                Ok(()) | Err(Errno::ESTALE) => {}
                Err(errno) => {
                    tracing::error!(%inode, %errno, "what is to be published cannot be read: it is tried again at the next start")
                }
            }
        }
        is_left
    }

    /// What can be done now, and when to look again.
    fn ready(&self, running: &HashSet<Task>, most: usize) -> (Vec<Task>, Duration) {
        let now = Instant::now();
        let mut next = LOOK;
        let mut ready = Vec::new();
        let links = &self.inner.links;
        let mut failed = links.failed.lock();
        let requested = links.requested.lock();
        let core = self.inner.shared.core.lock();
        if failed.len() > core.links.unpublished.len() + core.links.gone.len() + core.links.uploads.len() {
            // What is over may have failed before.
            failed.retain(|task, _| match task {
                Task::Publish(inode) => core.links.unpublished.contains_key(inode),
                Task::Delete(link, key) => core.links.gone.contains_key(&(*link, key.clone())),
                Task::Abort(link, upload) => core.links.uploads.object(*link, upload).is_some(),
            });
        }
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
            let is_requested = requested.contains_key(&inode);
            if !is_requested && !core.is_due(inode, waiting.link, now.duration_since(waiting.changed)) {
                continue;
            }
            // One that waits for its budget is looked at again after [`LOOK`].
            if is_requested || links.budgets.wait(inode, core.links.budget(waiting.link)).is_none() {
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
        for (link, upload) in core.links.uploads.to_abort() {
            if ready.len() >= most {
                break;
            }
            let task = Task::Abort(link, upload.to_owned());
            if !running.contains(&task) && may_try(&task) {
                ready.push(task);
            }
        }
        (ready, next)
    }

    async fn perform(&self, task: &Task) -> Result<(), Trouble> {
        let result = match task {
            Task::Publish(inode) => self.settle(*inode).await,
            Task::Delete(link, key) => self.delete_gone(*link, key).await,
            Task::Abort(link, upload) => self.abort_left(*link, upload).await,
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
                        Trouble::LocalOnly(_) => tracing::debug!(?task, %trouble, "in the volume alone"),
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
        let subject = Subject::Object(link, key.clone());
        let (gone, ordered) = {
            let mut core = self.inner.shared.core.lock();
            let gone = core.links.gone.get(&(link, key.clone()));
            let Some(gone) = gone.filter(|gone| core.may_delete(link, key, gone)).cloned() else { return Ok(()) };
            core.links.under_way.begin(subject.clone());
            (gone, core.ordered())
        };
        let _change = self.under_way(subject);
        // After a crash, the object may be needed that a copy, or bytes in the volume, were to take the place of.
        self.until_durable(ordered).await?;
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
            && gone.of.iter().any(|&inode| self.is_generation_of(inode, &info))
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
}

impl crate::core::Core {
    /// Whether a gone object is to be deleted: not what something is written over, or soon will be, and not what may come only now.
    fn may_delete(&self, link: InodeId, key: &ObjectKey, gone: &Gone) -> bool {
        let under_way = &self.links.under_way;
        gone.is_free()
            && !self.links.is_replaced(link, key)
            && !under_way.is_begun(link, key)
            && (gone.was != Was::Attempt || !under_way.may_come(link, key))
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
