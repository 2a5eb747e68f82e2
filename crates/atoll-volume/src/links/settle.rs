//! What one unpublished inode needs is done, until it needs nothing more or something else must be done before.

use std::collections::BTreeMap;

use atoll_blob::Location;
use atoll_link::{Head, ObjectKey};
use atoll_types::{ByteRange, Errno, InodeId};

use super::objects::{Pattern, Reading};
use super::publish::{Failed, Task, Trouble};
use super::record::BaseObject;
use super::under_way::Subject;
use super::write::Writing;
use crate::core::Job;
use crate::extents::ExtentMap;
use crate::rebase;
use crate::volume::Volume;

/// Most bytes that are read and stored at once when an object's bytes come into the volume.
const LOCAL_BYTES: u64 = 1 << 20;
/// After so many pauses of [`PAUSE_WAIT`] two may wait for each other.
const STUCK: u32 = 5;
/// A larger object that is replaced while a file without a name is open that it was: reads of that fail.
const HELD_BYTES_MAX: u64 = 64 << 20;
/// Times that a publication is begun anew, when the bucket is not as it was taken for.
const ATTEMPTS: usize = 5;

impl Volume {
    /// Do what the inode needs.
    pub(super) async fn settle(&self, inode: InodeId) -> Result<(), Trouble> {
        if !self.inner.shared.core.lock().links.under_way.begin(Subject::Inode(inode)) {
            return Err(Trouble::Wait("it is being published"));
        }
        let _change = self.under_way(Subject::Inode(inode));
        let is_stuck = self.is_stuck(inode);
        for _ in 0..ATTEMPTS {
            match self.settle_once(inode, is_stuck).await {
                Err(Trouble::Errno(Errno::ESTALE)) if self.is_removed(inode).await? => {
                    self.inner.shared.core.lock().publish_settled(inode);
                    return Ok(());
                }
                Ok(true) => {}
                other => return other.map(drop),
            }
        }
        Err(Trouble::Wait("the bucket changes all the time"))
    }

    async fn is_removed(&self, inode: InodeId) -> Result<bool, Errno> {
        match self.alone(|core| core.is_there(inode)).await {
            Err(Errno::ESTALE) => Ok(true),
            there => Ok(!there?),
        }
    }

    /// Do what comes next. True when there may be more.
    async fn settle_once(&self, inode: InodeId, is_stuck: bool) -> Result<bool, Trouble> {
        let planned = self.alone(|core| {
            let job = core.plan_publication(inode)?;
            let subject = job.object();
            Ok(subject.clone().is_none_or(|subject| core.links.under_way.begin(subject)).then_some((job, subject)))
        });
        let Some((job, subject)) = planned.await? else {
            return Err(Trouble::Wait("another change of the object that is there is under way"));
        };
        let _change = subject.map(|subject| self.under_way(subject));
        match job {
            Job::Settled => {
                self.inner.shared.core.lock().publish_settled(inode);
                Ok(false)
            }
            Job::Wait(why) => Err(Trouble::Wait(why)),
            Job::WaitFor(holder) => {
                // Stuck, both may wait for each other: then this one is to need its object no more.
                let is_free = self.release(holder).await?
                    || self.has_no_place(holder).await? && self.localise_whole(holder).await?
                    || is_stuck && self.localise_whole(inode).await?;
                if !is_free {
                    return Err(Trouble::Wait("the object that is there is still that of a file that was moved"));
                }
                Ok(true)
            }
            Job::Directory => self.move_directory(inode, is_stuck, false).await.map(|()| false),
            Job::Localise { link, base, map } => self.localise(inode, link, &base, &map).await.map(|()| false),
            Job::Write { link, key, name, base, content, condition } => {
                if let Some(why) = self.refused(link, &key, base.as_ref()).await? {
                    if base.is_some() {
                        return self.localise_whole(inode).await.map(|_| true);
                    }
                    self.alone(|core| core.replaces_nothing(inode, &key)).await?;
                    return Err(Trouble::LocalOnly(why.into()));
                }
                let work = Writing { inode, link, key: &key, name: &name, base: base.as_ref(), content: &content };
                self.write_object(work, &condition).await
            }
            Job::Copy { link, key, base, content, condition } => {
                if self.refused(link, &key, Some(&base)).await?.is_some() {
                    return self.localise_whole(inode).await.map(|_| true);
                }
                self.copy_object(inode, link, &key, &base, content.as_ref(), &condition).await
            }
        }
    }

    /// Why the bucket has no place for the object of a file. One that is there already, since somebody else has made it, is rewritten.
    async fn refused(
        &self,
        link: InodeId,
        key: &ObjectKey,
        base: Option<&BaseObject>,
    ) -> Result<Option<&'static str>, Trouble> {
        if base.is_some_and(|base| base.key == *key) {
            return Ok(None);
        }
        Ok(self.bucket(link)?.refuses(key).await?)
    }

    /// Whether its last attempt failed, and the next one is still to come.
    pub(super) fn is_to_be_retried(&self, inode: InodeId) -> bool {
        self.inner.links.failed.lock().contains_key(&Task::Publish(inode))
    }

    /// Whether it waits for something else for so long that each may wait for the other.
    pub(super) fn is_stuck(&self, inode: InodeId) -> bool {
        let failed = self.inner.links.failed.lock();
        let waits = |failed: &Failed| matches!(failed.trouble, Trouble::Wait(_)) && failed.attempts >= STUCK;
        failed.get(&Task::Publish(inode)).is_some_and(waits)
    }

    /// Whether the file's directory waits for its place, perhaps for somebody who waits for this file's object.
    async fn has_no_place(&self, inode: InodeId) -> Result<bool, Trouble> {
        let waits = self.alone(|core| match core.linked(inode)?.and_then(|linked| linked.home.clone()) {
            Some((parent, _)) => Ok(!core.has_place(parent)?),
            None => Ok(false),
        });
        Ok(waits.await?)
    }

    /// An open file without a name holds an object no more. False when it is another kind of holder.
    pub(super) async fn release(&self, holder: InodeId) -> Result<bool, Trouble> {
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

    pub(super) async fn localise_whole(&self, inode: InodeId) -> Result<bool, Trouble> {
        let plan = self
            .alone(|core| {
                let content = core.content(inode)?;
                let linked = core.linked(inode)?.cloned();
                Ok(linked.and_then(|linked| Some((linked.link, linked.object?, content.map))))
            })
            .await?;
        let Some((link, object, map)) = plan else { return Ok(false) };
        match self.localise(inode, link, &object, &map).await {
            Err(Trouble::Errno(Errno::ESTALE)) => {}
            result => return result.map(|()| true),
        }
        match self.bucket(link)?.head(&object.key, None).await? {
            Head::Object(info) if self.is_generation_of(inode, &info) => {
                // It was written there, and that was not noted: its bytes are those of the new one.
                self.alone(|core| core.found_there(inode, link, &object.key, &info)).await?;
                Err(Trouble::Wait("its object was found to be newer"))
            }
            _ => Err(Errno::ESTALE.into()),
        }
    }

    /// Bytes of an object come into the volume.
    pub(super) async fn localise(
        &self,
        inode: InodeId,
        link: InodeId,
        base: &BaseObject,
        map: &ExtentMap,
    ) -> Result<(), Trouble> {
        let bucket = self.bucket(link)?;
        let mut places: BTreeMap<u64, Location> = BTreeMap::new();
        for (_, extent) in map.iter() {
            let Some(range) = rebase::base_range(extent) else { continue };
            let reading = Reading { bucket: &bucket, link, object: base, pattern: Pattern::Sequential };
            let mut at = range.start;
            while at < range.end {
                let part = ByteRange::new(at, range.end.min(at + LOCAL_BYTES));
                let read = self.inner.links.objects.read(reading, part).await;
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
}
