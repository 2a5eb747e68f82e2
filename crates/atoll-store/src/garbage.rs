//! Objects of SlateDB that its rewriting has left behind.
//!
//! SlateDB deletes what its newest manifest and its checkpoints do not refer to. A reader inside of this process may
//! still be at work on an older version. So each round leaves a checkpoint that lives for two rounds, and
//! there is no round while somebody holds a snapshot.
//!
//! The empty objects by which an authority shuts out its predecessor are never deleted: they would let it in again.

use std::sync::Arc;
use std::time::Duration;

use atoll_object::ObjectRoot;
use object_store::path::Path;
use slatedb::admin::{Admin, AdminBuilder};
use slatedb::config::{CheckpointOptions, GarbageCollectorDirectoryOptions, GarbageCollectorOptions};
use tokio::task::JoinHandle;

/// Held by whoever reads an old version.
pub(crate) type Hold = Arc<()>;

pub(crate) struct Collector {
    task: JoinHandle<()>,
    hold: Hold,
}

impl Collector {
    /// Collect every `interval`, until this is dropped. `logged`: SlateDB keeps no log of its own.
    pub fn start(root: &ObjectRoot, path: Path, logged: bool, interval: Duration) -> Self {
        let admin = AdminBuilder::new(path, root.store.clone()).build();
        let old = Some(GarbageCollectorDirectoryOptions { interval: None, min_age: 2 * interval, dry_run: false });
        let options = GarbageCollectorOptions {
            manifest_options: old,
            wal_options: if logged { None } else { old },
            wal_fence_options: None,
            compacted_options: old,
            compactions_options: old,
            detach_options: None,
            metric_level: None,
            // Whoever is behind what is deleted learns so from them.
            boundary_files_enabled: true,
            object_store_max_retries: Some(3),
        };
        let hold = Hold::default();
        let task = tokio::spawn(run(admin, options, hold.clone(), interval));
        Collector { task, hold }
    }

    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(admin: Admin, options: GarbageCollectorOptions, hold: Hold, interval: Duration) {
    // The collector's and this task's own.
    const NOBODY: usize = 2;
    loop {
        tokio::time::sleep(interval).await;
        if Arc::strong_count(&hold) > NOBODY {
            continue;
        }
        let kept = CheckpointOptions { lifetime: Some(2 * interval), ..CheckpointOptions::default() };
        let collected = match admin.run_gc_once(options.clone()).await {
            Ok(()) => admin.create_detached_checkpoint(&kept).await.map(|_| ()),
            failed => failed,
        };
        if let Err(error) = collected {
            tracing::warn!(%error, "cannot collect old metadata; the next round tries again");
        }
    }
}
