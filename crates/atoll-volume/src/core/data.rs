//! File bytes: which locations a read needs, and what a write, an allocation
//! or a clone does to the extent map.

use atoll_blob::Location;
use atoll_types::operation::{AllocateMode, SeekTo, WriteAt};
use atoll_types::{Attributes, ByteRange, Errno, FileKind, InodeId, SegmentId, limits};

use super::{Core, Step};
use crate::extents::{Changes, Extent, Piece};
use crate::links::record::BaseObject;

/// What a read has to fetch.
pub(crate) struct ReadPlan {
    /// The bytes asked for, cut at the end of the file.
    pub range: ByteRange,
    pub pieces: Vec<Piece>,
    /// The link and the object that pieces may be of.
    pub base: Option<(InodeId, BaseObject)>,
}

impl Core {
    pub(super) fn regular(&mut self, inode: InodeId) -> Step<u64> {
        let record = self.record(inode)?;
        match record.kind() {
            FileKind::Regular => Ok(record.size),
            FileKind::Directory => Err(Errno::EISDIR.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    pub fn plan_read(&mut self, inode: InodeId, range: ByteRange) -> Step<ReadPlan> {
        let size = self.regular(inode)?;
        let length = range.len().min(limits::IO_BYTES_MAX as u64);
        let range = ByteRange::new(range.start, (range.start + length).min(size));
        if range.is_empty() {
            return Ok(ReadPlan { range: ByteRange::new(range.start, range.start), pieces: Vec::new(), base: None });
        }
        let pieces = self.extents(inode)?.read(range);
        let linked = self.linked(inode)?;
        let base = linked.and_then(|linked| Some((linked.link, linked.object.clone()?)));
        Ok(ReadPlan { range, pieces, base })
    }

    /// The locations of a range that a reader will probably want next.
    pub fn plan_prefetch(&mut self, inode: InodeId, range: ByteRange) -> Vec<Location> {
        let Ok(map) = self.extents(inode) else { return Vec::new() };
        let data = map.read(range).into_iter().filter_map(|piece| match piece {
            Piece::Data { extent, .. } if extent.location.segment != SegmentId::BASE => Some(extent.location),
            _ => None,
        });
        data.collect()
    }

    /// Bytes that lie at `locations`, one after another, become file content.
    pub fn write_data(
        &mut self,
        inode: InodeId,
        at: WriteAt,
        locations: &[Location],
        drop: bool,
    ) -> Step<(u64, u64, Attributes)> {
        let size = self.regular(inode)?;
        let start = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => size,
        };
        let length: u64 = locations.iter().map(|l| u64::from(l.length)).sum();
        let end = start.checked_add(length).filter(|&end| end <= limits::FILE_SIZE_MAX).ok_or(Errno::EFBIG)?;
        if length == 0 {
            return Ok((start, 0, self.attributes(inode)?));
        }
        self.check_bytes(inode, ByteRange::new(start, end), length)?;
        let map = self.extents(inode)?;
        let mut changes = Changes::default();
        let mut offset = start;
        for &location in locations {
            map.insert(offset, Extent { length: location.length, skip: 0, location }, &mut changes);
            offset += u64::from(location.length);
        }
        self.count_written(locations);
        self.bytes_changed(inode);
        self.links.wrote(inode, length);
        self.apply_changes(inode, changes);
        self.touch_data(inode, end.max(size), drop);
        Ok((start, length, self.attributes(inode)?))
    }

    /// After any change of content: size, times, privileges.
    fn touch_data(&mut self, inode: InodeId, size: u64, drop: bool) {
        let now = self.now();
        self.change(inode, |record| {
            record.size = size;
            record.modified = now;
            record.changed = now;
            if drop {
                record.mode = record.mode.without_privileges();
            }
        });
        self.order();
    }

    pub fn allocate(&mut self, inode: InodeId, mode: AllocateMode, range: ByteRange, drop: bool) -> Step<()> {
        let size = self.regular(inode)?;
        if range.is_empty() {
            return Err(Errno::EINVAL.into());
        }
        if range.end > limits::FILE_SIZE_MAX {
            return Err(Errno::EFBIG.into());
        }
        self.gather_bytes(inode)?;
        let shifts = matches!(mode, AllocateMode::CollapseRange | AllocateMode::InsertRange);
        if shifts && self.is_linked(inode) {
            // Bytes of an object stay where they are in it.
            return Err(Errno::EOPNOTSUPP.into());
        }
        let mut changes = Changes::default();
        let grown = match mode {
            AllocateMode::Allocate { keep_size } | AllocateMode::Zero { keep_size } if keep_size => size,
            _ => size.max(range.end),
        };
        let new_size = match mode {
            AllocateMode::Allocate { .. } => grown,
            AllocateMode::Zero { .. } => {
                self.extents(inode)?.remove(range, &mut changes);
                grown
            }
            AllocateMode::PunchHole => {
                self.extents(inode)?.remove(range, &mut changes);
                size
            }
            AllocateMode::CollapseRange => {
                if range.end >= size {
                    return Err(Errno::EINVAL.into());
                }
                self.extents(inode)?.collapse(range, &mut changes);
                size - range.len()
            }
            AllocateMode::InsertRange => {
                if range.start >= size {
                    return Err(Errno::EINVAL.into());
                }
                let new_size = size.checked_add(range.len()).filter(|&s| s <= limits::FILE_SIZE_MAX);
                let new_size = new_size.ok_or(Errno::EFBIG)?;
                self.extents(inode)?.insert_gap(range.start, range.len(), &mut changes);
                new_size
            }
        };
        self.bytes_changed(inode);
        self.apply_changes(inode, changes);
        self.touch_data(inode, new_size, drop);
        Ok(())
    }

    pub fn seek(&mut self, inode: InodeId, offset: u64, to: SeekTo) -> Step<u64> {
        let size = self.regular(inode)?;
        Ok(self.extents(inode)?.seek(offset, to, size).ok_or(Errno::ENXIO)?)
    }

    pub fn clone_range(
        &mut self,
        source: InodeId,
        source_offset: u64,
        target: InodeId,
        target_offset: u64,
        length: u64,
    ) -> Step<(u64, u64, Attributes)> {
        for inode in [source, target] {
            if self.record(inode)?.kind() == FileKind::Directory {
                return Err(Errno::EISDIR.into());
            }
        }
        if self.linked(source)?.is_some() {
            // They may be an object's: who copies reads and writes.
            return Err(Errno::EOPNOTSUPP.into());
        }
        let source_size = self.regular(source)?;
        let target_size = self.regular(target)?;
        let range = ByteRange::new(source_offset, source_offset.saturating_add(length).min(source_size));
        if range.is_empty() {
            return Ok((target_offset, 0, self.attributes(target)?));
        }
        let end = target_offset.checked_add(range.len()).filter(|&end| end <= limits::FILE_SIZE_MAX);
        let end = end.ok_or(Errno::EFBIG)?;
        if source == target && range.overlaps(&ByteRange::new(target_offset, end)) {
            return Err(Errno::EINVAL.into());
        }
        self.extents(target)?;
        let shared = self.extents(source)?.clone_range(range);
        let bytes = shared.iter().map(|(_, extent)| u64::from(extent.length)).sum();
        self.check_bytes(target, ByteRange::new(target_offset, end), bytes)?;
        let map = self.extents(target)?;
        let mut changes = Changes::default();
        map.remove(ByteRange::new(target_offset, end), &mut changes);
        for (offset, extent) in shared {
            map.insert(target_offset + offset, extent, &mut changes);
        }
        self.bytes_changed(target);
        self.links.wrote(target, bytes);
        self.apply_changes(target, changes);
        self.touch_data(target, end.max(target_size), false);
        Ok((target_offset, range.len(), self.attributes(target)?))
    }
}

impl Core {
    /// Run `then` once the extent map of a regular file is cached.
    pub fn extents_then<T>(&mut self, inode: InodeId, then: impl FnOnce(&mut Core) -> Step<T>) -> Step<T> {
        self.regular(inode)?;
        self.extents(inode)?;
        then(self)
    }
}
