//! Directories that were moved: what lies below their old prefix is copied to the new one, and deleted there.

use atoll_link::names::Prefix;
use atoll_link::{BucketError, Condition, Listed, ObjectInfo, ObjectKey};
use atoll_types::{Errno, FileKind, InodeId, Name};
use futures_util::{StreamExt, stream};

use super::publish::Trouble;
use crate::volume::Volume;

/// Objects of a moved directory that are copied side by side.
const COPIES: usize = 16;
/// Keys of a moved directory that are looked at together.
const MOVE_PAGE: usize = 1000;

impl Volume {
    /// Copy what lies below a directory's old prefix to its new one, and delete it there. When it is `stuck`, its bytes come into the
    /// volume first: others wait for its old place, and it perhaps for theirs.
    pub(super) async fn move_directory(&self, directory: InodeId, stuck: bool) -> Result<(), Trouble> {
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

    pub(super) async fn move_child(
        &self,
        directory: InodeId,
        name: Name,
        from: &Prefix,
        stuck: bool,
    ) -> Result<(), Trouble> {
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

    pub(super) async fn move_marker(
        &self,
        link: InodeId,
        key: &ObjectKey,
        info: &ObjectInfo,
        to: &Prefix,
    ) -> Result<(), Trouble> {
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
