//! A file and its object were both changed: neither is lost.

use atoll_link::{ObjectInfo, OnConflict};
use atoll_types::operation::RenameMode;
use atoll_types::{Caller, Errno, FileKind, InodeId, Mode, Name, SessionId, limits};

use super::publish::Trouble;
use super::record::BaseObject;
use super::write::Writing;
use crate::core::Context;
use crate::rebase;
use crate::volume::Volume;

impl Volume {
    /// The object at the key is not the one that it was taken for. True when the publication is to be begun anew.
    pub(super) async fn conflict(&self, work: &Writing<'_>, there: Option<ObjectInfo>) -> Result<bool, Trouble> {
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
        if self.is_ours(inode, link, key, &info) {
            self.alone(|core| core.found_there(inode, link, key, &info)).await?;
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
                self.alone(|core| core.found_there(inode, link, key, &info)).await?;
                Ok(true)
            }
            OnConflict::BucketWins => {
                let found = self.found(&self.bucket(link)?, key.clone(), info).await?;
                self.alone(|core| {
                    core.must_be_free(inode)?;
                    core.drop_gone(link, key);
                    core.yield_to(inode, Some(&found))
                })
                .await?;
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
    pub(super) async fn bring_home(&self, work: &Writing<'_>, base: &BaseObject) -> Result<(), Trouble> {
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
    pub(super) async fn keep_both(&self, work: &Writing<'_>, info: ObjectInfo) -> Result<(), Trouble> {
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
            core.must_be_free(inode)?;
            core.forget_base(inode, link, key)?;
            core.drop_gone(link, key);
            core.rename(context, parent, &own, directory, &kept, RenameMode::NoReplace)?;
            core.links.touch(link, key);
            core.adopt(parent, &own, Some(&found)).map(drop)
        })
        .await?;
        Ok(())
    }

    /// `.atoll/conflicts` of a link.
    pub(super) async fn conflicts_directory(&self, link: InodeId) -> Result<InodeId, Trouble> {
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
}
