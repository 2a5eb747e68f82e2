//! The extent map of one file: which location holds which of its bytes.
//!
//! Invariant: extents never overlap, and [`Changes`] names exactly the keys
//! that differ from the map as it was when the `Changes` was made, so that
//! applying them to the persisted keys reproduces the map.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use atoll_blob::Location;
use atoll_types::operation::SeekTo;
use atoll_types::{ByteRange, SegmentId};

/// A run of file bytes inside one stored piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// In bytes, at least 1.
    pub length: u32,
    /// Where the run starts in the unpacked piece, in bytes.
    pub skip: u32,
    pub location: Location,
}

impl Extent {
    /// The part from `from` on, `length` bytes of it.
    fn slice(&self, from: u64, length: u64) -> Extent {
        Extent { length: length as u32, skip: self.skip + from as u32, location: self.location }
    }
}

/// What must be written to the store for the map's changes to last.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub puts: BTreeMap<u64, Extent>,
    pub deletes: BTreeSet<u64>,
    /// Change of live (logical) bytes by segment; those of a linked file's object are in none.
    pub live: HashMap<SegmentId, i64>,
}

impl Changes {
    fn put(&mut self, offset: u64, extent: Extent) {
        self.deletes.remove(&offset);
        self.puts.insert(offset, extent);
        self.count(&extent, 1);
    }

    fn delete(&mut self, offset: u64, extent: &Extent) {
        self.puts.remove(&offset);
        self.deletes.insert(offset);
        self.count(extent, -1);
    }

    fn count(&mut self, extent: &Extent, sign: i64) {
        if extent.location.segment != SegmentId::BASE {
            *self.live.entry(extent.location.segment).or_default() += sign * i64::from(extent.length);
        }
    }
}

/// A part of a read, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    Hole { range: ByteRange },
    Data { offset: u64, extent: Extent },
}

impl Piece {
    /// Whether its bytes are in a linked object.
    pub fn is_of_object(&self) -> bool {
        matches!(self, Piece::Data { extent, .. } if extent.location.segment == SegmentId::BASE)
    }
}

#[derive(Clone, Debug, Default)]
pub struct ExtentMap {
    extents: BTreeMap<u64, Extent>,
    allocated: u64,
}

impl ExtentMap {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn from_entries(entries: impl IntoIterator<Item = (u64, Extent)>) -> Self {
        let extents: BTreeMap<u64, Extent> = entries.into_iter().collect();
        let allocated = extents.values().map(|e| u64::from(e.length)).sum();
        ExtentMap { extents, allocated }
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &Extent)> {
        self.extents.iter().map(|(&offset, extent)| (offset, extent))
    }

    pub fn len(&self) -> usize {
        self.extents.len()
    }

    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Bytes that hold data.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    fn add(&mut self, offset: u64, extent: Extent, changes: &mut Changes) {
        changes.put(offset, extent);
        self.allocated += u64::from(extent.length);
        self.extents.insert(offset, extent);
    }

    fn take(&mut self, offset: u64, changes: &mut Changes) -> Option<Extent> {
        let extent = self.extents.remove(&offset)?;
        changes.delete(offset, &extent);
        self.allocated -= u64::from(extent.length);
        Some(extent)
    }

    /// Offsets of the extents that overlap `range`.
    fn overlapping(&self, range: ByteRange) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        let before = self.extents.range(..range.start).next_back();
        let first =
            before.filter(|(offset, e)| **offset + u64::from(e.length) > range.start).map(|(&offset, _)| offset);
        first.into_iter().chain(self.extents.range(range.start..range.end).map(|(&offset, _)| offset)).collect()
    }

    /// Put `extent` at `offset`, replacing what it overlaps.
    pub fn insert(&mut self, offset: u64, extent: Extent, changes: &mut Changes) {
        self.remove(ByteRange::at(offset, u64::from(extent.length)), changes);
        self.add(offset, extent, changes);
    }

    /// Make a hole.
    pub fn remove(&mut self, range: ByteRange, changes: &mut Changes) {
        for offset in self.overlapping(range) {
            let Some(extent) = self.take(offset, changes) else { continue };
            let end = offset + u64::from(extent.length);
            if offset < range.start {
                self.add(offset, extent.slice(0, range.start - offset), changes);
            }
            if end > range.end {
                self.add(range.end, extent.slice(range.end - offset, end - range.end), changes);
            }
        }
    }

    /// Bytes of `range` that hold data.
    pub fn data_in(&self, range: ByteRange) -> u64 {
        let data = self.read(range).into_iter().filter_map(|piece| match piece {
            Piece::Data { extent, .. } => Some(u64::from(extent.length)),
            Piece::Hole { .. } => None,
        });
        data.sum()
    }

    pub fn truncate(&mut self, size: u64, changes: &mut Changes) {
        self.remove(ByteRange::new(size, u64::MAX), changes);
    }

    /// The bytes of `range` in order, holes included.
    pub fn read(&self, range: ByteRange) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        for offset in self.overlapping(range) {
            let extent = self.extents[&offset];
            let start = offset.max(range.start);
            let end = (offset + u64::from(extent.length)).min(range.end);
            if at < start {
                pieces.push(Piece::Hole { range: ByteRange::new(at, start) });
            }
            pieces.push(Piece::Data { offset: start, extent: extent.slice(start - offset, end - start) });
            at = end;
        }
        if at < range.end {
            pieces.push(Piece::Hole { range: ByteRange::new(at, range.end) });
        }
        pieces
    }

    /// Move everything from `from` on by `to - from` (the caller made room).
    fn shift(&mut self, from: u64, to: u64, changes: &mut Changes) {
        // An extent that crosses the border is cut there first.
        if let Some((&offset, extent)) = self.extents.range(..from).next_back() {
            let extent = *extent;
            let end = offset + u64::from(extent.length);
            if end > from {
                self.take(offset, changes);
                self.add(offset, extent.slice(0, from - offset), changes);
                self.add(from, extent.slice(from - offset, end - from), changes);
            }
        }
        let offsets: Vec<u64> = self.extents.range(from..).map(|(&offset, _)| offset).collect();
        let taken: Vec<(u64, Extent)> =
            offsets.into_iter().filter_map(|o| self.take(o, changes).map(|e| (o - from + to, e))).collect();
        for (offset, extent) in taken {
            self.add(offset, extent, changes);
        }
    }

    /// Remove `range` and move what follows to its start.
    pub fn collapse(&mut self, range: ByteRange, changes: &mut Changes) {
        self.remove(range, changes);
        self.shift(range.end, range.start, changes);
    }

    /// Move what lies at and after `offset` by `length`, leaving a hole.
    pub fn insert_gap(&mut self, offset: u64, length: u64, changes: &mut Changes) {
        self.shift(offset, offset + length, changes);
    }

    /// The extents of `range`, with offsets from its start.
    pub fn clone_range(&self, range: ByteRange) -> Vec<(u64, Extent)> {
        let data = self.read(range).into_iter().filter_map(|piece| match piece {
            Piece::Data { offset, extent } => Some((offset - range.start, extent)),
            Piece::Hole { .. } => None,
        });
        data.collect()
    }

    /// Where the next data or hole at or after `offset` starts; the end of the file is a hole.
    pub fn seek(&self, offset: u64, to: SeekTo, size: u64) -> Option<u64> {
        if offset >= size {
            return None;
        }
        let mut pieces = self.read(ByteRange::new(offset, size)).into_iter();
        let found = pieces.find_map(|piece| match (piece, to) {
            (Piece::Data { offset, .. }, SeekTo::Data) => Some(offset),
            (Piece::Hole { range }, SeekTo::Hole) => Some(range.start),
            _ => None,
        });
        found.or(if to == SeekTo::Hole { Some(size) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_blob::Codec;
    use proptest::prelude::*;

    fn extent(tag: u64, length: u32) -> Extent {
        let location =
            Location { segment: SegmentId(tag), offset: 0, stored: length, length, codec: Codec::Raw, checksum: 0 };
        Extent { length, skip: 0, location }
    }

    /// What each byte of the file is: (segment, position in the piece).
    fn bytes_of(map: &ExtentMap, size: usize) -> Vec<Option<(u64, u32)>> {
        let mut bytes = vec![None; size];
        for (offset, e) in map.iter() {
            for i in 0..e.length {
                bytes[offset as usize + i as usize] = Some((e.location.segment.0, e.skip + i));
            }
        }
        bytes
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u32),
        Remove(u64, u64),
        Collapse(u64, u64),
        Gap(u64, u64),
        Truncate(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..120, 1u32..40).prop_map(|(o, l)| Step::Insert(o, l)),
            2 => (0u64..120, 0u64..40).prop_map(|(o, l)| Step::Remove(o, l)),
            1 => (0u64..120, 1u64..40).prop_map(|(o, l)| Step::Collapse(o, l)),
            1 => (0u64..120, 1u64..20).prop_map(|(o, l)| Step::Gap(o, l)),
            1 => (0u64..150).prop_map(Step::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_an_array_of_bytes(steps in proptest::collection::vec(step(), 1..40)) {
            const SIZE: usize = 2000;
            let mut map = ExtentMap::new();
            let mut model: Vec<Option<(u64, u32)>> = vec![None; SIZE];
            let mut stored: BTreeMap<u64, Extent> = BTreeMap::new();
            let mut live: HashMap<SegmentId, i64> = HashMap::new();
            for (tag, step) in steps.into_iter().enumerate() {
                let mut changes = Changes::default();
                match step {
                    Step::Insert(offset, length) => {
                        map.insert(offset, extent(tag as u64, length), &mut changes);
                        for i in 0..length { model[offset as usize + i as usize] = Some((tag as u64, i)); }
                    }
                    Step::Remove(start, length) => {
                        map.remove(ByteRange::at(start, length), &mut changes);
                        for i in start..start + length { model[i as usize] = None; }
                    }
                    Step::Collapse(start, length) => {
                        map.collapse(ByteRange::at(start, length), &mut changes);
                        model.drain(start as usize..(start + length) as usize);
                        model.resize(SIZE, None);
                    }
                    Step::Gap(start, length) => {
                        map.insert_gap(start, length, &mut changes);
                        for _ in 0..length { model.insert(start as usize, None); }
                        model.truncate(SIZE);
                    }
                    Step::Truncate(size) => {
                        map.truncate(size, &mut changes);
                        for byte in &mut model[size as usize..] { *byte = None; }
                    }
                }
                for (segment, delta) in &changes.live { *live.entry(*segment).or_default() += delta; }
                for offset in &changes.deletes { prop_assert!(!changes.puts.contains_key(offset)); stored.remove(offset); }
                stored.extend(changes.puts);
                prop_assert_eq!(&bytes_of(&map, SIZE), &model);
                prop_assert_eq!(&stored, &map.extents);
                prop_assert_eq!(map.allocated() as usize, model.iter().flatten().count());
                for (segment, bytes) in &live {
                    let now = model.iter().flatten().filter(|(tag, _)| *tag == segment.0).count();
                    prop_assert_eq!(now as i64, *bytes);
                }
                for at in [0u64, 17, 63] {
                    let data = (at as usize..SIZE).find(|&i| model[i].is_some()).map(|i| i as u64);
                    prop_assert_eq!(map.seek(at, SeekTo::Data, SIZE as u64), data);
                    let hole = (at as usize..SIZE).find(|&i| model[i].is_none()).map(|i| i as u64);
                    prop_assert_eq!(map.seek(at, SeekTo::Hole, SIZE as u64), hole);
                }
            }
        }
    }
}
