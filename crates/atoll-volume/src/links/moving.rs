//! Directories that were moved: what lies below their old prefix is copied to the new one, and deleted there.

use atoll_link::names::Prefix;
use atoll_link::{BucketError, Condition, Listed, ObjectInfo, ObjectKey, Source};
use atoll_types::{Errno, FileKind, InodeId, Name};
use futures_util::{StreamExt, stream};

use super::publish::Trouble;
use crate::core::Move;
use crate::volume::Volume;

/// Objects of a moved directory that are copied side by side.
const COPIES: usize = 16;
/// Keys of a moved directory that are looked at together.
const MOVE_PAGE: usize = 1000;

impl Volume {
    /// Copy what lies below a directory's old prefix to its new one, and delete it there. When it is `stuck`, its bytes come into the
    /// volume first: others wait for its old place, and it perhaps for theirs.
    pub(super) async fn move_directory(&self, directory: InodeId, stuck: bool, within: bool) -> Result<(), Trouble> {
        let plan = self.alone(|core| core.plan_move(directory, stuck, within)).await;
        let plan = match plan {
            Err(Errno::ENAMETOOLONG) => {
                return Err(Trouble::LocalOnly("the directory's path is too long, or no text, for a key".into()));
            }
            Err(Errno::EBUSY) => return Err(Trouble::Wait("another directory is still to be moved away from there")),
            other => other?,
        };
        let Some(Move { link, from, to, away }) = plan else { return Ok(()) };
        let mut after = None;
        loop {
            let Some(page) = self.reconcile(directory, after, MOVE_PAGE).await? else { return Ok(()) };
            if let Some(Listed::Object(key, info)) = &page.marker {
                self.move_marker(link, key, info, &to).await?;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        // All of them are known by now; some may lie elsewhere, from a move before this one.
        let mut after = 0;
        loop {
            let (entries, end) = self.list_from_store(directory, after, MOVE_PAGE).await?;
            after = entries.last().map_or(after, |entry| entry.cookie);
            let moved = entries.into_iter().map(|entry| self.move_child(directory, entry.name, away));
            let mut moved = stream::iter(moved).buffer_unordered(COPIES);
            let mut failed = None;
            while let Some(result) = moved.next().await {
                failed = failed.or(result.err());
            }
            if let Some(trouble) = failed {
                return Err(trouble);
            }
            if end {
                break;
            }
        }
        if away {
            // Where it belongs is found next.
            return Ok(self.alone(|core| core.moved_away(directory, &from)).await?);
        }
        if self.alone(|core| core.moved_prefix(directory, &from, &to)).await? {
            Ok(())
        } else {
            Err(Trouble::Wait("it was moved again"))
        }
    }

    async fn move_child(&self, directory: InodeId, name: Name, away: bool) -> Result<(), Trouble> {
        let found = self.alone(|core| core.lookup_dentry(directory, &name)).await?;
        let Some((inode, kind)) = found else { return Ok(()) };
        let (is_unpublished, has_place) = self
            .alone(|core| {
                let is_unpublished = core.links.is_unpublished(inode);
                let linked = core.linked(inode)?.cloned();
                let linked = linked.as_ref();
                let is_home = linked.is_some_and(|linked| linked.is_home(directory, &name));
                let has_place = linked.is_some_and(|linked| linked.prefix.is_some() || linked.object.is_some());
                if is_unpublished && kind != FileKind::Directory {
                    // It is published on its own.
                    core.hold_object(inode)?;
                }
                let object = linked.and_then(|linked| linked.object.clone());
                let is_in_place = kind != FileKind::Directory && core.key_of(inode)? == object.map(|object| object.key);
                Ok((is_unpublished, has_place && is_home && !is_in_place))
            })
            .await?;
        match (kind, is_unpublished) {
            // One that is moved on its own finds its place itself, and until then this one's keys are kept from others.
            (FileKind::Directory, true) if has_place => Err(Trouble::Wait("a directory below it is still being moved")),
            _ if !has_place => Ok(()),
            (FileKind::Directory, _) => Box::pin(self.move_directory(inode, away, true)).await,
            // Also one that is not published: it is not before its directory has a place, and somebody may wait for its object.
            _ if away => self.localise_whole(inode).await.map(drop),
            (_, true) => Ok(()),
            (_, false) => match Box::pin(self.settle(inode)).await {
                // Its object is not below the old prefix any more.
                Err(Trouble::LocalOnly(_)) => Ok(()),
                settled => settled,
            },
        }
    }

    pub(super) async fn move_marker(
        &self,
        link: InodeId,
        key: &ObjectKey,
        info: &ObjectInfo,
        to: &Prefix,
    ) -> Result<(), Trouble> {
        let bucket = self.bucket(link)?;
        if bucket.refuses(&to.key).await?.is_none() {
            match bucket.copy(key, Source::Version(&info.version), &to.key, None, &Condition::Absent).await {
                Ok(_) | Err(BucketError::Changed | BucketError::Absent) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match bucket.delete(key, &info.version).await {
            Ok(()) | Err(BucketError::Changed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
