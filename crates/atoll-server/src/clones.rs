//! Clones: volumes that begin as a copy of another one, at once, and share what they have in common with it.
//!
//! A crash while one is made leaves a claim on its name in the store, and with its parent what this keeps for it. The next
//! attempt to make a volume of that name, or to delete the parent, clears both.

use atoll_store::SlateStore;
use atoll_volume::VolumeError;

use crate::registry::{Registry, new_id, place_of_metadata};
use crate::{names, snapshots};

type Result<T> = std::result::Result<T, String>;

impl Registry {
    /// Make a volume that begins as another one is now, or as it is at a snapshot.
    pub async fn clone_volume(&self, source: &str, snapshot: Option<&str>, name: &str) -> Result<()> {
        names::check("volume", name)?;
        let durability = self.record(source)?.durability()?;
        let whole = self.get_volume(source).await?;
        self.check_without_links(source, &whole).await?;
        let slot = self.slot(name);
        let mut open = slot.lock().await;
        if self.record(name).is_ok() {
            return Err(format!("volume `{name}` exists already"));
        }
        if let Some(snapshot) = snapshot {
            // Before anything is left of an attempt.
            let then = whole.at_snapshot(snapshot).await.map_err(snapshots::text(source, snapshot))?;
            self.check_without_links(&format!("{source}@{snapshot}"), &then).await?;
        }
        let id = new_id()?;
        let record = self.claim(name, durability, id, Some(source), whole.blob().keys().is_some()).await?;
        let text = |error: VolumeError| format!("volume `{name}`: {error}");
        if snapshot.is_none() {
            whole.gather().await.map_err(snapshots::text(source, ""))?;
        }
        let kept = {
            // Nobody deletes it before it knows of the clone.
            let _parting = self.parting.lock().await;
            let kept = whole.keep_for_clone(name, snapshot).await;
            kept.map_err(snapshots::text(source, snapshot.unwrap_or_default()))?
        };
        whole.blob().upload().await.map_err(|error| format!("volume `{source}`: {error}"))?;
        if let Some(keys) = whole.blob().keys() {
            // Now, when nothing that the clone has is still to be sealed: it must have the keys of all of it.
            let branch = keys.branch().map_err(|error| error.to_string())?;
            self.keep_keys(name, self.wrap(branch, id).await?).await?;
        }
        let keys = self.keyring(name, &record).await?;
        let (config, place) = (self.store_config(name, durability, keys), place_of_metadata(source));
        SlateStore::branch(&config, &place, &kept).await.map_err(|error| text(error.into()))?;
        let store = self.open_store(name, &record).await?;
        atoll_volume::adopt(&*store, id, source).await.map_err(text)?;
        let volume = self.open_volume(name, durability, store).await?;
        // Last: a volume without it was never made.
        self.keep_record(name, &record)?;
        self.start_links(&volume);
        *open = Some(volume);
        Ok(())
    }

    /// A clone is gone: what its parent keeps for it may go, too.
    pub(crate) async fn let_go_of_clone(&self, parent: &str, name: &str) -> Result<()> {
        if self.record(parent).is_err() {
            tracing::warn!(volume = parent, clone = name, "not here: it keeps what the clone shared with it");
            return Ok(());
        }
        if !self.clones(parent).await?.iter().any(|known| known == name) {
            return Ok(());
        }
        let let_go = self.get_volume(parent).await?.let_go_of_clone(name).await;
        let_go.map_err(|error| format!("volume `{parent}`: {error}"))
    }

    /// Also of a volume that cannot be opened.
    async fn clones(&self, name: &str) -> Result<Vec<String>> {
        let checkpoints = SlateStore::checkpoints_at(&self.root, &place_of_metadata(name)).await;
        Ok(atoll_volume::clones(checkpoints.map_err(|error| format!("volume `{name}`: {error}"))?))
    }

    /// Refuse when other volumes share what this one has.
    pub(crate) async fn check_without_clones(&self, name: &str) -> Result<()> {
        let mut left = Vec::new();
        for clone in self.clones(name).await? {
            let found = self.remote_record(&clone).await?;
            let is_whole = self.record(&clone).is_ok() || found.as_ref().is_some_and(|found| found.owner != self.owner);
            match is_whole {
                true => left.push(format!("`{clone}`")),
                false => self.forget_half_made(&clone, name).await?,
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(format!("volume `{name}` has clones that share what it holds: delete {} first", left.join(", ")))
    }
}
