//! Segments of which little is in use, and what is moved out of them.

use atoll_blob::Location;
use atoll_types::{InodeId, SegmentId};

use super::{Core, Segment, Step};
use crate::extents::{Changes, Extent};
use crate::format::SegmentState;

/// A segment with bytes that nothing refers to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sparse {
    pub id: SegmentId,
    pub live: u64,
    pub dead: u64,
}

impl Core {
    /// Bytes were written there; a segment is known from its first ones on.
    pub fn count_written(&mut self, locations: &[Location]) {
        for location in locations {
            let segment = self.segments.entry(location.segment).or_insert(Segment::empty(SegmentState::Open));
            segment.written += u64::from(location.length);
            self.dirty_segments.insert(location.segment);
        }
    }

    /// Whole segments of which at most this part is in use, those with the most to gain first.
    pub fn sparse_segments(&self, live_percent_max: u64) -> Vec<Sparse> {
        let sparse = |(id, segment): (&SegmentId, &Segment)| {
            let (live, dead) = (segment.live.max(0) as u64, segment.dead());
            let is_sparse = segment.state == SegmentState::Uploaded
                && live > 0
                && dead > 0
                && live.saturating_mul(100) <= segment.written.saturating_mul(live_percent_max);
            is_sparse.then_some(Sparse { id: *id, live, dead })
        };
        let mut found: Vec<Sparse> = self.segments.iter().filter_map(sparse).collect();
        found.sort_unstable_by_key(|sparse| (std::cmp::Reverse(sparse.dead), sparse.id));
        found
    }

    /// What `old` held at `offset` lies at `new`, too: let the file refer to that where it still refers to `old`. Content
    /// and times stay.
    pub fn relocate(&mut self, inode: InodeId, offset: u64, old: Extent, new: Location) -> Step<()> {
        self.regular(inode)?;
        let map = self.extents(inode)?;
        let mut changes = Changes::default();
        for (at, now) in map.clone_range(atoll_types::ByteRange::at(offset, u64::from(old.length))) {
            let skip = old.skip + at as u32;
            if now.location == old.location && now.skip == skip {
                map.insert(offset + at, Extent { skip: now.skip - old.skip, location: new, ..now }, &mut changes);
            }
        }
        self.count_written(&[new]);
        if !changes.puts.is_empty() {
            self.apply_changes(inode, changes);
            self.order();
        }
        Ok(())
    }
}
