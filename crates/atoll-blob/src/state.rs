//! What is known of each segment between its first byte and the commit that
//! records its object. No I/O: the shell asks what to stage and upload and
//! reports back what was done.
//!
//! Invariants, for every segment: `staged <= length`, `covered <= length`; the
//! rope holds everything from `staged` on until the object is in the store; a
//! background upload starts only after a sync point returned the segment in `opened`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use atoll_types::{Epoch, SegmentId};
use bytes::Bytes;

use crate::rope::{Piece, Rope, coalesce};
use crate::staging::StageJob;
use crate::{BlobError, Codec, Location, Result, SyncPoint};

/// An open segment with this much in memory is staged without waiting for a sync.
const STAGE_BYTES: u32 = 8 << 20;
/// Small pieces are joined up to this size before they are written or sent.
pub(crate) const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Which staging is in use, without its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    Folder,
    Objects,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    Waiting,
    Running,
    /// The object is whole in the store.
    Done,
    /// A sync point said so.
    Reported,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) rope: Rope,
    pub(crate) length: u32,
    /// The file is complete and durable up to here.
    pub(crate) staged: u32,
    /// Durable up to here once the commits of the sync points so far are.
    pub(crate) covered: u32,
    pub(crate) sealed: bool,
    /// A sync point returned it in `opened`.
    pub(crate) recorded: bool,
    /// A sync waits for the object: upload it although it is not recorded.
    pub(crate) wanted: bool,
    /// Recovered: the object may be in the store already, and more complete than what is left here.
    pub(crate) probe: bool,
    pub(crate) upload: Upload,
    opened_at: Instant,
}

impl Segment {
    fn new() -> Self {
        Segment {
            rope: Rope::default(),
            length: 0,
            staged: 0,
            covered: 0,
            sealed: false,
            recorded: false,
            wanted: false,
            probe: false,
            upload: Upload::Waiting,
            opened_at: Instant::now(),
        }
    }

    fn in_store(&self) -> bool {
        matches!(self.upload, Upload::Done | Upload::Reported)
    }

    fn pending(&self) -> u32 {
        if self.in_store() { 0 } else { self.length - self.covered }
    }
}

/// Where the bytes of a location are now.
pub(crate) enum Source {
    Memory(Bytes),
    File,
    Store,
}

/// Segments, and how many bytes of them.
pub(crate) type Target = Vec<(SegmentId, u32)>;

/// What an upload sends.
pub(crate) struct Content {
    /// Up to here it is in the segment's file, …
    pub(crate) staged: u32,
    /// … and the rest is here.
    pub(crate) rest: Vec<(u32, Bytes)>,
    pub(crate) length: u32,
    /// Look first whether the store has it already.
    pub(crate) probe: bool,
}

pub(crate) struct State {
    kind: Kind,
    segment_bytes_max: u32,
    segment_age_max: Duration,
    epoch: Epoch,
    next: u32,
    open: Option<SegmentId>,
    segments: BTreeMap<SegmentId, Segment>,
    /// Bytes in all ropes.
    pub(crate) dirty_bytes: u64,
    /// Bytes in staging files that will be deleted after the upload.
    pub(crate) staged_bytes: u64,
    pub(crate) uploading: usize,
    pub(crate) closing: bool,
    /// The staging disk is full: what it said.
    pub(crate) no_space: Option<String>,
}

impl State {
    pub(crate) fn new(kind: Kind, segment_bytes_max: u32, segment_age_max: Duration, epoch: Epoch) -> Self {
        State {
            kind,
            segment_bytes_max,
            segment_age_max,
            epoch,
            next: 0,
            open: None,
            segments: BTreeMap::new(),
            dirty_bytes: 0,
            staged_bytes: 0,
            uploading: 0,
            closing: false,
            no_space: None,
        }
    }

    pub(crate) fn segments_pending(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn contains(&self, segment: SegmentId) -> bool {
        self.segments.contains_key(&segment)
    }

    pub(crate) fn is_objects(&self) -> bool {
        self.kind == Kind::Objects
    }

    /// Every segment, whatever its state.
    pub(crate) fn all(&self) -> Target {
        self.segments.iter().map(|(id, segment)| (*id, segment.length)).collect()
    }

    /// Assigns the next offset to a piece. True when this sealed a segment.
    pub(crate) fn push(&mut self, stored: Bytes, codec: Codec, length: u32, checksum: u32) -> Result<(Location, bool)> {
        let size = stored.len() as u32;
        let mut sealed = false;
        if let Some(open) = self.open
            && self.segments.get(&open).is_none_or(|s| s.length.saturating_add(size) > self.segment_bytes_max)
        {
            sealed = self.seal();
        }
        let id = match self.open {
            Some(id) => id,
            None => {
                let id = SegmentId(self.epoch.0 << 32 | u64::from(self.next));
                self.next = self.next.checked_add(1).ok_or_else(|| BlobError::Io("segment numbers used up".into()))?;
                self.open = Some(id);
                id
            }
        };
        let segment = self.segments.entry(id).or_insert_with(Segment::new);
        let location = Location { segment: id, offset: segment.length, stored: size, length, codec, checksum };
        segment.length += size;
        segment.rope.push(Piece { offset: location.offset, bytes: stored, packing: Some((codec, length)) });
        self.dirty_bytes += u64::from(size);
        Ok((location, sealed))
    }

    /// No more bytes go to the open segment. True when there was one.
    pub(crate) fn seal(&mut self) -> bool {
        let Some(segment) = self.open.take().and_then(|id| self.segments.get_mut(&id)) else { return false };
        segment.sealed = true;
        true
    }

    /// Seals the open segment when it is too old; when to look again. The second is true when it was sealed.
    pub(crate) fn seal_aged(&mut self, now: Instant) -> (Option<Instant>, bool) {
        let Some(segment) = self.open.and_then(|id| self.segments.get(&id)) else { return (None, false) };
        let due = segment.opened_at + self.segment_age_max;
        if due <= now { (None, self.seal()) } else { (Some(due), false) }
    }

    pub(crate) fn recovered(&mut self, id: SegmentId, rope: Rope, length: u32, staged: u32, probe: bool, done: bool) {
        self.dirty_bytes += rope.bytes();
        if self.kind == Kind::Folder {
            self.staged_bytes += u64::from(staged);
        }
        let upload = if done { Upload::Done } else { Upload::Waiting };
        let segment = Segment {
            rope,
            length,
            staged,
            covered: length,
            sealed: true,
            recorded: true,
            probe,
            upload,
            ..Segment::new()
        };
        self.segments.insert(id, segment);
        if id.0 >> 32 == self.epoch.0 {
            self.next = self.next.max((id.0 as u32).saturating_add(1));
        }
    }

    pub(crate) fn source(&self, location: &Location) -> Source {
        let absent = if self.kind == Kind::Objects { Source::File } else { Source::Store };
        let Some(segment) = self.segments.get(&location.segment) else { return absent };
        if let Some(bytes) = segment.rope.slice(location.offset, location.stored) {
            return Source::Memory(bytes);
        }
        if u64::from(location.offset) + u64::from(location.stored) <= u64::from(segment.staged) {
            return Source::File;
        }
        absent
    }

    /// What is not durable yet, and how many bytes that is.
    pub(crate) fn pending(&self) -> (Target, u64) {
        let target: Target =
            self.segments.iter().filter(|(_, s)| s.pending() > 0).map(|(id, s)| (*id, s.length)).collect();
        let bytes = self.segments.values().map(|segment| u64::from(segment.pending())).sum();
        (target, bytes)
    }

    /// Hands the pending bytes to the caller's commit.
    pub(crate) fn take_fragments(&mut self) -> Vec<(SegmentId, u32, Bytes)> {
        let mut fragments = Vec::new();
        for (id, segment) in self.segments.iter_mut().filter(|(_, segment)| segment.pending() > 0) {
            let chunks = coalesce(segment.rope.from(segment.covered), CHUNK_BYTES_MAX);
            fragments.extend(chunks.into_iter().map(|(offset, bytes)| (*id, offset, bytes)));
            segment.covered = segment.length;
        }
        fragments
    }

    /// The rest of a sync point. The caller passes what this returns to its commit.
    pub(crate) fn report(&mut self, fragments: Vec<(SegmentId, u32, Bytes)>) -> SyncPoint {
        let mut point = SyncPoint { fragments, ..SyncPoint::default() };
        for (id, segment) in &mut self.segments {
            if !segment.recorded {
                segment.recorded = true;
                point.opened.push(*id);
            }
            if segment.upload == Upload::Done {
                segment.upload = Upload::Reported;
                point.uploaded.push(*id);
            }
        }
        point
    }

    /// Lets the segments of `target` be uploaded at once.
    pub(crate) fn want(&mut self, target: &Target) {
        for (id, _) in target {
            if let Some(segment) = self.segments.get_mut(id) {
                segment.wanted = true;
            }
        }
    }

    /// True when every segment of `target` is in the store or was deleted.
    pub(crate) fn in_store(&self, target: &Target) -> bool {
        target.iter().all(|(id, _)| self.segments.get(id).is_none_or(Segment::in_store))
    }

    /// What to write to files now: of `only`, when given; else what is sealed or has grown large.
    pub(crate) fn stage_jobs(&self, only: Option<&Target>) -> Vec<StageJob> {
        if self.kind == Kind::Memory {
            return Vec::new();
        }
        let due = |id: &SegmentId, segment: &Segment| match only {
            Some(target) => target.iter().any(|(wanted, _)| wanted == id),
            None => segment.sealed || segment.length - segment.staged >= STAGE_BYTES,
        };
        self.segments
            .iter()
            .filter(|(id, segment)| {
                !segment.in_store() && !segment.probe && segment.staged < segment.length && due(id, segment)
            })
            .map(|(id, segment)| StageJob {
                segment: *id,
                chunks: coalesce(segment.rope.from(segment.staged), CHUNK_BYTES_MAX),
                end: segment.length,
                created: segment.staged == 0,
            })
            .collect()
    }

    /// The file of a segment is durable up to `end`. False when the segment is gone and its file with it must be.
    pub(crate) fn staged(&mut self, id: SegmentId, end: u32) -> bool {
        let Some(segment) = self.segments.get_mut(&id) else { return false };
        if end > segment.staged {
            if self.kind == Kind::Folder {
                self.staged_bytes += u64::from(end - segment.staged);
            }
            segment.staged = end;
            segment.covered = segment.covered.max(end);
            self.dirty_bytes -= segment.rope.drop_before(end);
        }
        true
    }

    /// Objects: segments whose sealed file is complete are objects. True when there was a new one.
    pub(crate) fn publish_staged(&mut self) -> bool {
        let mut any = false;
        if self.kind == Kind::Objects {
            for segment in self.segments.values_mut() {
                if segment.upload == Upload::Waiting && segment.sealed && segment.staged == segment.length {
                    segment.upload = Upload::Done;
                    any = true;
                }
            }
        }
        any
    }

    /// The oldest segment that may be uploaded now.
    pub(crate) fn next_upload(&mut self) -> Option<SegmentId> {
        let (kind, free) = (self.kind, !self.closing && self.no_space.is_none());
        let ready = |segment: &Segment| {
            segment.upload == Upload::Waiting
                && segment.sealed
                && (segment.recorded || segment.wanted)
                // Staged first, so that memory is free while the upload takes its time.
                && (kind == Kind::Memory || segment.staged == segment.length || segment.probe || !free)
        };
        if kind == Kind::Objects {
            return None;
        }
        let (id, segment) = self.segments.iter_mut().find(|(_, segment)| ready(segment))?;
        segment.upload = Upload::Running;
        self.uploading += 1;
        Some(*id)
    }

    /// What is to be sent; `None` when the segment was deleted.
    pub(crate) fn content(&self, id: SegmentId) -> Option<Content> {
        let segment = self.segments.get(&id)?;
        Some(Content {
            staged: segment.staged,
            rest: coalesce(segment.rope.from(segment.staged), CHUNK_BYTES_MAX),
            length: segment.length,
            probe: segment.probe,
        })
    }

    /// The object is in the store. Returns the pieces that were still in memory; `None` when the segment was deleted.
    pub(crate) fn uploaded(&mut self, id: SegmentId) -> Option<Vec<Piece>> {
        let segment = self.segments.get_mut(&id)?;
        segment.upload = Upload::Done;
        segment.covered = segment.length;
        self.dirty_bytes -= segment.rope.bytes();
        Some(segment.rope.take().into())
    }

    /// Forgets a segment; true when it may have a file.
    pub(crate) fn remove(&mut self, id: SegmentId) -> bool {
        if self.open == Some(id) {
            self.open = None;
        }
        let Some(segment) = self.segments.remove(&id) else { return false };
        self.dirty_bytes -= segment.rope.bytes();
        if self.kind == Kind::Folder {
            self.staged_bytes -= u64::from(segment.staged);
        }
        self.kind != Kind::Memory
    }

    /// Those of `ids` whose upload is complete.
    pub(crate) fn forgettable(&self, ids: &[SegmentId]) -> Vec<SegmentId> {
        ids.iter().copied().filter(|id| self.segments.get(id).is_some_and(Segment::in_store)).collect()
    }
}
