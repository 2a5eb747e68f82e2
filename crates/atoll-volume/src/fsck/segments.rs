//! Segments: their records beside what refers to them and beside their objects.

use std::collections::{BTreeMap, HashMap, HashSet};

use atoll_blob::Location;
use atoll_types::SegmentId;

use super::{Check, Cursor, Problem, Remedy, Result};
use crate::format::{self, SegmentRecord, SegmentState, VolumeSettings};

/// What is known of one segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// `None`: it has an object and no record.
    record: Option<SegmentRecord>,
    /// There is one that cannot be read.
    is_malformed: bool,
    /// Logical bytes that extents refer to.
    live: i64,
    object: Option<u64>,
    /// Not another volume's, of which this one began as a copy.
    is_own: bool,
}

#[derive(Default)]
pub(super) struct Segments {
    known: BTreeMap<SegmentId, Segment>,
}

impl Segments {
    /// An extent refers to a location. False when there is no such segment.
    pub fn refer(&mut self, location: &Location, length: u64) -> bool {
        let Some(segment) = self.known.get_mut(&location.segment) else { return false };
        segment.live += length as i64;
        true
    }

    /// Why the bytes cannot be in the object store, although they should.
    pub fn lacks(&self, location: &Location) -> Option<(Problem, String)> {
        let segment = self.known.get(&location.segment)?;
        let uploaded = segment.record.is_none_or(|record| record.state != SegmentState::Open);
        let end = u64::from(location.offset) + u64::from(location.stored);
        match segment.object {
            _ if !uploaded => None,
            None => Some((Problem::ObjectMissing, format!("segment {} has no object", location.segment))),
            Some(size) if size < end => {
                let text = format!("the object of segment {} has {size} bytes, {end} are needed", location.segment);
                Some((Problem::ObjectShort, text))
            }
            Some(_) => None,
        }
    }
}

impl Check<'_> {
    pub(super) async fn learn_segments(&mut self) -> Result<()> {
        let superblock = self.subject.view.get(&format::superblock_key()).await?;
        let settings = superblock.and_then(|found| VolumeSettings::decode(&found).ok());
        let is_own = |id| settings.as_ref().is_none_or(|settings| settings.owns(id));
        let objects: HashMap<SegmentId, u64> = self.subject.objects.iter().copied().collect();
        let mut records = Cursor::new(self.subject.view, format::all_segments());
        while let Some((key, value)) = records.next().await? {
            let id = SegmentId(format::key_number(&key).unwrap_or(0));
            match SegmentRecord::decode(&value) {
                Ok(record) if key == format::segment_key(id) => {
                    let object = objects.get(&id).copied();
                    let segment =
                        Segment { record: Some(record), is_malformed: false, live: 0, object, is_own: is_own(id) };
                    self.segments.known.insert(id, segment);
                    self.report.segments += 1;
                }
                // One that has an object gets a record again, if anything refers to it.
                _ if objects.contains_key(&id) && key == format::segment_key(id) => {
                    let object = objects.get(&id).copied();
                    let segment = Segment { record: None, is_malformed: true, live: 0, object, is_own: is_own(id) };
                    self.segments.known.insert(id, segment);
                }
                _ => self.report.delete(Problem::Malformed, None, format!("the record of segment {id}"), key),
            }
        }
        for (id, bytes) in objects {
            let segment =
                Segment { record: None, is_malformed: false, live: 0, object: Some(bytes), is_own: is_own(id) };
            self.segments.known.entry(id).or_insert(segment);
        }
        Ok(())
    }

    pub(super) async fn segments(&mut self) -> Result<()> {
        let open: HashSet<SegmentId> = self
            .segments
            .known
            .iter()
            .filter(|(_, segment)| segment.record.is_some_and(|record| record.state == SegmentState::Open))
            .map(|(id, _)| *id)
            .collect();
        let mut fragments = Cursor::new(self.subject.view, format::all_fragments());
        while let Some((key, _)) = fragments.next().await? {
            let segment = SegmentId(format::key_number(&key).unwrap_or(0));
            if !open.contains(&segment) {
                let text = format!("bytes of segment {segment}, which is not open: {key:?}");
                self.report.delete(Problem::FragmentWithoutSegment, None, text, key);
            }
        }
        for (id, segment) in std::mem::take(&mut self.segments.known) {
            self.segment(id, segment).await?;
        }
        Ok(())
    }

    async fn segment(&mut self, id: SegmentId, segment: Segment) -> Result<()> {
        let put = |state| {
            // As much as is in use was written.
            let written = segment.record.map_or(0, |record| record.written).max(segment.live.max(0) as u64);
            let record = SegmentRecord { state, live: segment.live, written };
            Remedy::Writes(vec![(format::segment_key(id), Some(record.encode()))])
        };
        match segment.record {
            None if segment.live > 0 => {
                let text = format!("segment {id} has an object and {} bytes in use, and no record", segment.live);
                self.report.find(Problem::SegmentRecord, None, text, put(SegmentState::Uploaded));
            }
            None if segment.is_malformed => {
                let text = format!("the record of segment {id}, of which nothing is in use");
                self.report.delete(Problem::Malformed, None, text, format::segment_key(id));
            }
            None => {
                let may_come = id.0 >> 32 >= self.subject.epoch.0;
                if !may_come && segment.is_own && self.subject.newest.get(&format::segment_key(id)).await?.is_none() {
                    self.report.garbage.push((id, segment.object.unwrap_or(0)));
                }
            }
            Some(SegmentRecord { state: SegmentState::Doomed, .. }) if segment.live > 0 => {
                let text = format!("segment {id} is about to be deleted, and {} of its bytes are in use", segment.live);
                self.report.find(Problem::SegmentRecord, None, text, put(SegmentState::Uploaded));
            }
            Some(SegmentRecord { state, live, .. }) if live != segment.live => {
                let text = format!("segment {id} says that {live} of its bytes are in use; {} are", segment.live);
                self.report.find(Problem::SegmentLive, None, text, put(state));
            }
            _ => {}
        }
        Ok(())
    }
}
