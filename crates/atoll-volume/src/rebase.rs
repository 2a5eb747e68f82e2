//! The extents of a linked file that are bytes of its object, the *base*.
//!
//! A base extent's location is in [`SegmentId::BASE`], and `location.offset` counts chunks of the object: that keeps both halves of an offset
//! in 32 bits. Slices of a chunk share its location, as slices of a piece do, so that maps are cut and moved as always.
//!
//! Invariant: a base extent lies in one chunk. Which object the base is, the file's record says: when a new one is published, the map
//! changes with it, by [`rebase`].

use std::collections::{BTreeMap, HashMap};

use atoll_blob::{Codec, Location};
use atoll_types::{ByteRange, SegmentId};

use crate::extents::{Changes, Extent, ExtentMap, Piece};

/// In bytes. No base extent crosses a multiple of it in the object.
pub(crate) const BASE_CHUNK: u64 = 1 << 30;

/// The map of a file that is its object, byte by byte.
pub(crate) fn whole(size: u64) -> ExtentMap {
    ExtentMap::from_entries(Run { offset: 0, base: 0, length: size }.extents())
}

/// Which bytes of the object the extent is, if it is some.
pub(crate) fn base_range(extent: &Extent) -> Option<ByteRange> {
    let Extent { location, skip, length } = extent;
    let start = u64::from(location.offset) * BASE_CHUNK + u64::from(*skip);
    (location.segment == SegmentId::BASE).then(|| ByteRange::at(start, u64::from(*length)))
}

/// How the file `now` refers to the new object, of `size` bytes, that holds what `published` was, when until now both refer to the object before it:
/// whatever of it was published, at whatever offset, is there. What was written since stays where it is stored, and holes stay
/// holes.
///
/// `None`, and no changes, when `now` has bytes of the object before that were not published: no file comes to that by changes of its own.
pub(crate) fn rebase(published: &ExtentMap, size: u64, now: &ExtentMap, changes: &mut Changes) -> Option<ExtentMap> {
    let runs = runs(published, size, now)?;
    let mut map = now.clone();
    for (offset, extent) in runs.iter().flat_map(Run::extents) {
        let same = [Piece::Data { offset, extent }];
        if map.read(ByteRange::at(offset, u64::from(extent.length))) != same {
            map.insert(offset, extent, changes);
        }
    }
    Some(map)
}

/// File bytes from `offset` on that are object bytes from `base` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    offset: u64,
    base: u64,
    length: u64,
}

impl Run {
    /// One for each chunk that it touches.
    fn extents(&self) -> impl Iterator<Item = (u64, Extent)> + use<> {
        let Run { offset, base, length } = *self;
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = base + at;
            let skip = start % BASE_CHUNK;
            let taken = (length - at).min(BASE_CHUNK - skip);
            let location = Location {
                segment: SegmentId::BASE,
                offset: (start / BASE_CHUNK) as u32,
                stored: BASE_CHUNK as u32,
                length: BASE_CHUNK as u32,
                codec: Codec::Raw,
                checksum: 0,
            };
            let entry = (offset + at, Extent { length: taken as u32, skip: skip as u32, location });
            at += taken;
            (taken > 0).then_some(entry)
        })
    }
}

/// The parts of `now` that the new object holds, each as long as it can be.
fn runs(published: &ExtentMap, size: u64, now: &ExtentMap) -> Option<Vec<Run>> {
    let places = Places::of(published, size);
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |next: Run| match runs.last_mut() {
        Some(run) if run.offset + run.length == next.offset && run.base + run.length == next.base => {
            run.length += next.length;
        }
        _ => runs.push(next),
    };
    for (start, extent) in now.iter() {
        let end = start + u64::from(extent.length);
        let skip_at = |offset: u64| u64::from(extent.skip) + offset - start;
        let pieces = published.read(ByteRange::new(start, end.min(size)));
        let beyond = ByteRange::new(start.max(size), end);
        for piece in pieces.into_iter().chain((!beyond.is_empty()).then_some(Piece::Hole { range: beyond })) {
            let (range, there) = match piece {
                Piece::Hole { range } => (range, None),
                Piece::Data { offset, extent } => (ByteRange::at(offset, u64::from(extent.length)), Some(extent)),
            };
            if there.is_some_and(|e| e.location == extent.location && u64::from(e.skip) == skip_at(range.start)) {
                add(Run { offset: range.start, base: range.start, length: range.len() });
                continue;
            }
            let mut offset = range.start;
            while offset < range.end {
                let (place, length) = places.next(&extent.location, skip_at(offset), skip_at(range.end));
                match place {
                    Some(base) => add(Run { offset, base, length }),
                    None if extent.location.segment == SegmentId::BASE => return None,
                    None => {}
                }
                offset += length;
            }
        }
    }
    Some(runs)
}

/// Where in a file the bytes of each location are: by location and position in it, the length and the offset. A byte that is at several places has one
/// of them.
struct Places(HashMap<Location, BTreeMap<u64, (u64, u64)>>);

impl Places {
    fn of(map: &ExtentMap, size: u64) -> Places {
        let mut places = Places(HashMap::new());
        for piece in map.read(ByteRange::new(0, size)) {
            if let Piece::Data { offset, extent } = piece {
                places.add(offset, &extent);
            }
        }
        places
    }

    fn add(&mut self, offset: u64, extent: &Extent) {
        let start = u64::from(extent.skip);
        let end = start + u64::from(extent.length);
        let mut at = start;
        while at < end {
            let (place, length) = self.next(&extent.location, at, end);
            if place.is_none() {
                self.0.entry(extent.location).or_default().insert(at, (length, offset + at - start));
            }
            at += length;
        }
    }

    /// The place of the bytes from `start` on, or that they have none, and for how many of those up to `end` that holds.
    fn next(&self, location: &Location, start: u64, end: u64) -> (Option<u64>, u64) {
        let Some(known) = self.0.get(location) else { return (None, end - start) };
        if let Some((&from, &(length, offset))) = known.range(..=start).next_back()
            && from + length > start
        {
            return (Some(offset + start - from), (from + length).min(end) - start);
        }
        let next = known.range(start..).next().map_or(end, |(&from, _)| from.min(end));
        (None, next - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The file's bytes that are looked at lie around the border of two chunks of its object.
    const ORIGIN: u64 = BASE_CHUNK - 24;
    const SIZE: u64 = 64;

    /// What a byte is: of which segment, and which of its bytes. A hole is `None`.
    type Byte = Option<(SegmentId, u64)>;

    fn bytes_of(map: &ExtentMap) -> Vec<Byte> {
        let pieces = map.read(ByteRange::at(ORIGIN, SIZE)).into_iter();
        let bytes = pieces.flat_map(|piece| -> Vec<Byte> {
            match piece {
                Piece::Hole { range } => vec![None; range.len() as usize],
                Piece::Data { extent, .. } => {
                    let start = base_range(&extent).map_or(u64::from(extent.skip), |range| range.start);
                    (start..start + u64::from(extent.length)).map(|at| Some((extent.location.segment, at))).collect()
                }
            }
        });
        bytes.collect()
    }

    /// What the bytes are when the base is an object with these bytes.
    fn over(object: &[Byte], bytes: Vec<Byte>) -> Vec<Byte> {
        let byte = |byte| match byte {
            Some((SegmentId::BASE, at)) => object.get((at - ORIGIN) as usize).copied().flatten(),
            other => other,
        };
        bytes.into_iter().map(byte).collect()
    }

    fn window() -> ExtentMap {
        let mut map = whole(ORIGIN + SIZE);
        map.remove(ByteRange::new(0, ORIGIN), &mut Changes::default());
        map
    }

    fn staged(segment: u64, length: u32) -> Extent {
        let location =
            Location { segment: SegmentId(segment), offset: 0, stored: length, length, codec: Codec::Raw, checksum: 0 };
        Extent { length, skip: 0, location }
    }

    #[derive(Clone, Debug)]
    enum Edit {
        Write(u64, u64),
        Hole(u64, u64),
        Collapse(u64, u64),
        Gap(u64, u64),
        Copy(u64, u64, u64),
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let length = 1..16_u64;
        let edit = prop_oneof![
            3 => (0..SIZE - 16, length.clone()).prop_map(|(at, length)| Edit::Write(at, length)),
            1 => (0..SIZE - 16, length.clone()).prop_map(|(at, length)| Edit::Hole(at, length)),
            1 => (0..SIZE - 16, length.clone()).prop_map(|(at, length)| Edit::Collapse(at, length)),
            1 => (0..SIZE - 16, length.clone()).prop_map(|(at, length)| Edit::Gap(at, length)),
            1 => (0..SIZE - 16, 0..SIZE - 16, length).prop_map(|(from, to, length)| Edit::Copy(from, to, length)),
        ];
        proptest::collection::vec(edit, 0..6)
    }

    fn edit(map: &mut ExtentMap, edits: Vec<Edit>, first_segment: u64) {
        let changes = &mut Changes::default();
        for (segment, edit) in (first_segment..).zip(edits) {
            let range = |at, length| ByteRange::at(ORIGIN + at, length);
            match edit {
                Edit::Write(at, length) => map.insert(ORIGIN + at, staged(segment, length as u32), changes),
                Edit::Hole(at, length) => map.remove(range(at, length), changes),
                Edit::Collapse(at, length) => map.collapse(range(at, length), changes),
                Edit::Gap(at, length) => map.insert_gap(ORIGIN + at, length, changes),
                Edit::Copy(from, to, length) => {
                    for (offset, extent) in map.clone_range(range(from, length)) {
                        map.insert(ORIGIN + to + offset, extent, changes);
                    }
                }
            }
        }
        map.truncate(ORIGIN + SIZE, changes);
    }

    fn all_base(map: &ExtentMap) -> bool {
        map.iter().all(|(_, extent)| base_range(extent).is_some())
    }

    #[test]
    fn a_whole_file_is_its_object_byte_by_byte() {
        assert!(whole(0).is_empty());
        let map = whole(3 * BASE_CHUNK + 5);
        let ranges: Vec<_> = map.iter().map(|(offset, extent)| (offset, base_range(extent).unwrap())).collect();
        let chunk = |number| ByteRange::at(number * BASE_CHUNK, BASE_CHUNK);
        let last = (3 * BASE_CHUNK, ByteRange::at(3 * BASE_CHUNK, 5));
        assert_eq!(ranges, [(0, chunk(0)), (BASE_CHUNK, chunk(1)), (2 * BASE_CHUNK, chunk(2)), last]);
    }

    #[test]
    fn a_file_that_is_as_published_is_all_base_and_frees_what_was_staged() {
        let mut published = window();
        published.insert(ORIGIN + 20, staged(7, 10), &mut Changes::default());
        let mut changes = Changes::default();
        let map = rebase(&published, ORIGIN + SIZE, &published, &mut changes).unwrap();
        assert_eq!(map.iter().collect::<Vec<_>>(), window().iter().collect::<Vec<_>>());
        assert_eq!(changes.live.into_iter().collect::<Vec<_>>(), [(SegmentId(7), -10)]);
    }

    #[test]
    fn bytes_of_the_object_before_that_were_not_published_are_told() {
        let mut published = window();
        published.insert(ORIGIN + 20, staged(7, 10), &mut Changes::default());
        let mut changes = Changes::default();
        assert!(rebase(&published, ORIGIN + SIZE, &window(), &mut changes).is_none());
        assert!(changes.puts.is_empty() && changes.deletes.is_empty());
    }

    proptest! {
        #[test]
        fn a_rebased_file_has_the_bytes_that_it_had(
            before in edits(),
            since in edits(),
            size in 0..=SIZE,
        ) {
            let mut published = window();
            edit(&mut published, before, 100);
            let size = ORIGIN + size;
            published.truncate(size, &mut Changes::default());
            let mut now = published.clone();
            edit(&mut now, since, 200);

            let mut changes = Changes::default();
            let map = rebase(&published, size, &now, &mut changes).unwrap();
            let object = bytes_of(&published);
            prop_assert_eq!(over(&object, bytes_of(&map)), bytes_of(&now));
            prop_assert_eq!(map.allocated(), now.allocated());

            for (_, extent) in map.iter() {
                if let Some(range) = base_range(extent) {
                    prop_assert!(range.end <= size);
                    prop_assert_eq!(range.start / BASE_CHUNK, (range.end - 1) / BASE_CHUNK);
                } else {
                    prop_assert!(extent.location.segment >= SegmentId(200), "published bytes stay staged");
                }
            }

            let mut stored: BTreeMap<u64, Extent> = now.iter().map(|(offset, extent)| (offset, *extent)).collect();
            for offset in &changes.deletes { stored.remove(offset); }
            stored.extend(changes.puts);
            prop_assert_eq!(stored.into_iter().collect::<Vec<_>>(), map.iter().map(|(o, e)| (o, *e)).collect::<Vec<_>>());
            prop_assert!(!changes.live.contains_key(&SegmentId::BASE));

            let again = rebase(&published, size, &published, &mut Changes::default()).unwrap();
            prop_assert!(all_base(&again));
        }
    }
}
