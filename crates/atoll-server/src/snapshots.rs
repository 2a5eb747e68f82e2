//! Snapshots of volumes, by `VOLUME@SNAPSHOT`.

use atoll_store::{Store, StoreError};
use atoll_volume::{Snapshot, Volume, VolumeError};

use crate::names;
use crate::registry::Registry;

type Result<T> = std::result::Result<T, String>;

/// What went wrong with a snapshot, for people.
pub(crate) fn text(volume: &str, snapshot: &str) -> impl Fn(VolumeError) -> String {
    move |error| match error {
        VolumeError::Store(StoreError::CheckpointMissing(_)) => {
            format!("no snapshot `{snapshot}` of volume `{volume}`: `atoll snapshot list {volume}` shows what there is")
        }
        VolumeError::Store(StoreError::CheckpointExists(_)) => {
            format!("volume `{volume}` has a snapshot `{snapshot}` already")
        }
        error => format!("volume `{volume}`: {error}"),
    }
}

impl Registry {
    pub(crate) async fn get_snapshot(&self, volume: &str, snapshot: &str) -> Result<Volume> {
        // The volume first, and without its slot: who closes it takes that one first, too.
        let whole = self.get_volume(volume).await?;
        // What is not used any more stays until somebody wants a snapshot.
        self.let_go_of_snapshots(volume);
        let slot = self.slot(&format!("{volume}@{snapshot}"));
        let mut open = slot.lock().await;
        if let Some(snapshot) = &*open {
            return Ok(snapshot.clone());
        }
        let found = whole.at_snapshot(snapshot).await.map_err(text(volume, snapshot))?;
        *open = Some(found.clone());
        Ok(found)
    }

    pub async fn create_snapshot(&self, volume: &str, snapshot: &str) -> Result<()> {
        names::check("snapshot", snapshot)?;
        self.get_volume(volume).await?.create_snapshot(snapshot).await.map_err(text(volume, snapshot))
    }

    pub async fn snapshots(&self, volume: &str) -> Result<Vec<Snapshot>> {
        self.get_volume(volume).await?.snapshots().await.map_err(text(volume, ""))
    }

    pub async fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<()> {
        let whole = self.get_volume(volume).await?;
        let name = format!("{volume}@{snapshot}");
        let slot = self.slot(&name);
        // Nobody opens it meanwhile.
        let mut open = slot.lock().await;
        let sessions = self.sessions.count(Some(&name));
        if sessions > 0 {
            return Err(format!("snapshot `{name}` is in use by {sessions} sessions: unmount it first"));
        }
        open.take();
        whole.delete_snapshot(snapshot).await.map_err(text(volume, snapshot))
    }

    /// Turn a volume that nobody uses back to what it was at a snapshot.
    pub async fn restore_snapshot(&self, volume: &str, snapshot: &str) -> Result<()> {
        let record = self.record(volume)?;
        // Those that had it mounted when the last server ended count, too.
        self.get_volume(volume).await?;
        let slot = self.slot(volume);
        let mut open = slot.lock().await;
        self.close_unused(volume, &mut open, "it is restored").await?;
        let store = self.open_store(volume, &record).await?;
        let restored = atoll_volume::restore(&*store, snapshot).await;
        let closed = store.close().await;
        restored.map_err(text(volume, snapshot))?;
        closed.map_err(|error| format!("volume `{volume}`: {error}"))
    }

    /// Close a volume that nobody uses.
    pub(crate) async fn close_unused(&self, name: &str, open: &mut Option<Volume>, before: &str) -> Result<()> {
        let sessions = self.sessions.count(Some(name));
        if sessions > 0 {
            return Err(format!("volume `{name}` is in use by {sessions} sessions: unmount it before {before}"));
        }
        self.let_go_of_snapshots(name);
        match open.take() {
            Some(volume) => volume.close().await.map_err(|error| format!("volume `{name}`: {error}")),
            None => Ok(()),
        }
    }
}
