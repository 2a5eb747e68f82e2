//! Checking and mending volumes.

use std::sync::Arc;

use atoll_store::{SlateStore, Store};
use atoll_types::SegmentId;
use atoll_volume::fsck::{self, Progress, Report, Subject, Watch};
use atoll_wire::{FsckFinding, FsckReport};
use object_store::path::Path;
use tokio::sync::watch;

use crate::names::parts;
use crate::registry::Registry;
use crate::snapshots;

/// Text of findings in one report, in bytes: it has to fit in a frame.
const FINDINGS_BYTES_MAX: usize = 512 << 10;

/// How far some work is.
pub(crate) type Heard = watch::Receiver<Option<Progress>>;

pub(crate) fn progress() -> (impl Fn(Progress) + Send + Sync, Heard) {
    let (sender, heard) = watch::channel(None);
    let tell = move |progress| {
        sender.send_replace(Some(progress));
    };
    (tell, heard)
}

impl Registry {
    /// Check a volume while it goes on. One that cannot be opened is checked without reading bytes.
    pub async fn check(&self, name: &str, read: bool, watch: Watch<'_>) -> Result<FsckReport, String> {
        let text = |error: atoll_volume::VolumeError| format!("volume `{name}`: {error}");
        if let (volume, Some(snapshot)) = parts(name) {
            let report = self.get_volume(volume).await?.check_snapshot(snapshot, read, watch).await;
            return Ok(described(&report.map_err(snapshots::text(volume, snapshot))?));
        }
        self.record(name)?;
        let refused = match self.get(name).await {
            Ok(volume) => return Ok(described(&volume.check(read, watch).await.map_err(text)?)),
            Err(error) => error,
        };
        let slot = self.slot(name);
        let _alone = slot.lock().await;
        let (store, objects) = self.parts(name).await?;
        let view = store.snapshot().map_err(|error| error.to_string())?;
        let epoch = store.epoch();
        let subject = Subject { view: &*view, newest: &*view, objects: &objects, epoch, bytes: None };
        let report = fsck::check(subject, watch).await.map_err(text)?;
        Ok(FsckReport { refused: Some(refused), ..described(&report) })
    }

    /// Mend a volume that nobody uses.
    pub async fn repair(&self, name: &str, watch: Watch<'_>) -> Result<FsckReport, String> {
        if let (_, Some(_)) = parts(name) {
            return Err("a snapshot never changes: clone it, and repair that".into());
        }
        self.record(name)?;
        let slot = self.slot(name);
        let mut open = slot.lock().await;
        self.close_unused(name, &mut open, "it is repaired").await?;
        let (store, objects) = self.parts(name).await?;
        let repair = fsck::repair(&*store, &objects, watch).await;
        let closed = store.close().await;
        let repair = repair.map_err(|error| format!("volume `{name}`: {error}"))?;
        closed.map_err(|error| format!("volume `{name}`: {error}"))?;
        Ok(FsckReport { left: Some(kinds(&repair.after)), ..described(&repair.before) })
    }

    /// Metadata and objects of a volume that is not open.
    async fn parts(&self, name: &str) -> Result<(Arc<SlateStore>, Vec<(SegmentId, u64)>), String> {
        let store = self.open_store(name, &self.record(name)?).await?;
        let segments = self.remote(name).child("segments");
        // Without a superblock that can be read it has none.
        let ancestors = atoll_volume::settings(&*store).await.map(|found| self.ancestors(found)).unwrap_or_default();
        let objects = atoll_blob::list(&*segments.store, &Path::default(), &ancestors).await;
        Ok((store, objects.map_err(|error| error.to_string())?))
    }
}

fn kinds(report: &Report) -> Vec<(String, u64)> {
    report.problems.iter().map(|(problem, count)| (problem.name().to_owned(), *count)).collect()
}

fn described(report: &Report) -> FsckReport {
    let mut room = FINDINGS_BYTES_MAX;
    let findings = report.findings.iter().map(|finding| FsckFinding {
        problem: finding.problem.name().to_owned(),
        inode: finding.inode,
        path: finding.path.clone(),
        text: finding.text.clone(),
        mendable: finding.can_be_mended(),
    });
    let fits = |finding: &FsckFinding| {
        let bytes = 64 + finding.text.len() + finding.path.as_ref().map_or(0, String::len);
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    };
    FsckReport {
        refused: None,
        inodes: report.inodes,
        directories: report.directories,
        names: report.names,
        extents: report.extents,
        bytes: report.bytes,
        segments: report.segments,
        bytes_read: report.bytes_read,
        garbage_objects: report.garbage.len() as u64,
        garbage_bytes: report.garbage_bytes(),
        problems: kinds(report),
        left: None,
        findings: findings.take_while(fits).collect(),
    }
}
