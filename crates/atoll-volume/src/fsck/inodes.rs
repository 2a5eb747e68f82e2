//! Inodes beside what belongs to them: extents, extended attributes, marks of orphans and of what is to be published.

use atoll_blob::Location;
use atoll_types::{FileKind, InodeId, SegmentId, limits};
use bytes::Bytes;

use super::names::has_no_name;
use super::{COOKIES_MAX, Check, Cursor, Problem, Remedy, Result};
use crate::format::{self, InodeRecord};
use crate::links::record::Dirty;

/// Pieces that are read from the store in one go.
const READ_TOGETHER: usize = 256;

/// A piece of a file that is to be read.
struct Unread {
    inode: InodeId,
    what: String,
    location: Location,
    /// Where the view has it.
    entry: (Bytes, Bytes),
}

/// Entries that are ordered by inode and gone through together.
struct Beside<'a> {
    unread: Vec<Unread>,
    extents: Cursor<'a>,
    xattrs: Cursor<'a>,
    orphans: Cursor<'a>,
    unpublished: Cursor<'a>,
}

impl Check<'_> {
    pub(super) async fn inodes(&mut self) -> Result<()> {
        let view = self.subject.view;
        let mut records = Cursor::new(view, format::all_inodes());
        let mut beside = Beside {
            unread: Vec::new(),
            extents: Cursor::new(view, format::all_extents()),
            xattrs: Cursor::new(view, format::all_xattrs()),
            orphans: Cursor::new(view, format::all_orphans()),
            unpublished: Cursor::new(view, format::all_unpublished()),
        };
        let mut done = 0;
        while let Some((key, value)) = records.next().await? {
            let inode = format::key_number(&key).unwrap_or(0);
            let Ok(record) = InodeRecord::decode(&value) else { continue };
            if self.inodes.kind(inode) != Some(record.kind()) || key != format::inode_key(InodeId(inode)) {
                continue;
            }
            self.without_inode(&mut beside, inode - 1).await?;
            self.inode(&mut beside, InodeId(inode), record).await?;
            done += 1;
            self.progress("bytes", done, self.report.inodes);
        }
        self.without_inode(&mut beside, u64::MAX).await?;
        self.read(&mut beside.unread).await
    }

    /// What was true of the view may be over by now, and its object gone.
    async fn is_newest(&self, key: &Bytes, value: &Bytes) -> Result<bool> {
        Ok(self.subject.newest.get(key).await?.as_ref() == Some(value))
    }

    /// Read bytes and compare them with their checksums.
    async fn read(&mut self, unread: &mut Vec<Unread>) -> Result<()> {
        let Some(blob) = self.subject.bytes else { return Ok(()) };
        let results = blob.verify(unread.iter().map(|piece| piece.location).collect()).await;
        for (piece, result) in unread.drain(..).zip(results) {
            self.report.bytes_read += u64::from(piece.location.stored);
            if let Err(error) = result
                && self.is_newest(&piece.entry.0, &piece.entry.1).await?
            {
                let text = format!("{}: {error}", piece.what);
                self.report.find(Problem::Data, piece.inode, text, Remedy::None);
            }
        }
        Ok(())
    }

    /// What belongs to no inode, up to `last`.
    async fn without_inode(&mut self, beside: &mut Beside<'_>, last: u64) -> Result<()> {
        while let Some((key, _)) = beside.extents.up_to(last).await? {
            if !self.is_broken(&key) {
                let text = format!("bytes of an inode that is not there: {key:?}");
                self.report.delete(Problem::ExtentWithoutFile, None, text, key);
            }
        }
        while let Some((key, _)) = beside.xattrs.up_to(last).await? {
            if !self.is_broken(&key) {
                let text = format!("an extended attribute of an inode that is not there: {key:?}");
                self.report.delete(Problem::XattrWithoutInode, None, text, key);
            }
        }
        while let Some((key, _)) = beside.orphans.up_to(last).await? {
            let text = format!("a mark to free an inode that is not there: {key:?}");
            self.report.delete(Problem::OrphanMark, None, text, key);
        }
        while let Some((key, _)) = beside.unpublished.up_to(last).await? {
            if !self.is_broken(&key) {
                let text = format!("a mark to publish an inode that is not there: {key:?}");
                self.report.delete(Problem::LinkRecord, None, text, key);
            }
        }
        Ok(())
    }

    /// Its record is about to be made anew.
    fn is_broken(&self, key: &[u8]) -> bool {
        format::key_number(key).is_ok_and(|inode| self.inodes.rebuilt.contains(&inode))
    }

    async fn inode(&mut self, beside: &mut Beside<'_>, inode: InodeId, stored: InodeRecord) -> Result<()> {
        let mut right = stored.clone();
        let mut wrong: Vec<(Problem, String)> = Vec::new();
        let (allocated, end) = self.extents(beside, inode, &stored).await?;
        let size = match stored.kind() {
            FileKind::Regular if stored.size > limits::FILE_SIZE_MAX => end,
            FileKind::Symlink => stored.target.len() as u64,
            _ => stored.size,
        };
        if stored.size != size {
            wrong.push((Problem::FileSize, format!("size {} instead of {size}", stored.size)));
            right.size = size;
        }
        if stored.kind() == FileKind::Regular && stored.allocated != allocated {
            wrong.push((Problem::Allocated, format!("allocated {} instead of {allocated} bytes", stored.allocated)));
            right.allocated = allocated;
        }
        while let Some((key, value)) = beside.xattrs.up_to(inode.0).await? {
            if let Err(error) = format::decode_xattr(&value) {
                let text = format!("an extended attribute of inode {inode}: {error}");
                self.report.delete(Problem::Malformed, inode, text, key);
            }
        }
        let mut marked = false;
        while let Some((key, _)) = beside.orphans.up_to(inode.0).await? {
            marked |= key == format::orphan_key(inode);
        }
        let unpublished = beside.unpublished.up_to(inode.0).await?.map(|(key, _)| key);
        self.linked(inode, &stored, unpublished);

        let named = match self.inodes.directories.get(&inode.0).copied() {
            Some(directory) => {
                let named = has_no_name(inode) || directory.named_in > 0;
                let parent = if has_no_name(inode) { InodeId::ROOT.0 } else { directory.named_in };
                if named && stored.parent.0 != parent {
                    let text = format!("its parent is {} instead of {parent}", stored.parent);
                    wrong.push((Problem::DirectoryParent, text));
                    right.parent = InodeId(parent);
                }
                if stored.size != directory.size {
                    wrong.push((Problem::DirectorySize, format!("size {} instead of {}", stored.size, directory.size)));
                    right.size = directory.size;
                }
                if stored.next_cookie < directory.next_cookie || stored.next_cookie >= COOKIES_MAX {
                    let text =
                        format!("the next offset is {} instead of {}", stored.next_cookie, directory.next_cookie);
                    wrong.push((Problem::DirectoryOffset, text));
                    right.next_cookie = directory.next_cookie;
                }
                if named || stored.links > 0 {
                    right.links = 2 + directory.subdirectories;
                }
                named
            }
            None => {
                let names = self.inodes.other(inode.0).map_or(0, |other| other.names);
                if names > 0 {
                    right.links = names;
                }
                names > 0
            }
        };
        if let Some(root) = self.charge(inode, &stored) {
            wrong
                .push((Problem::QuotaRoot, format!("charged to the quota of {} instead of {root}", stored.quota_root)));
            (right.quota_root, right.strays) = (root, false);
        }
        if right.links != stored.links {
            wrong.push((Problem::Links, format!("{} links instead of {}", stored.links, right.links)));
        }
        for (problem, text) in wrong {
            let writes = vec![(format::inode_key(inode), Some(right.encode()))];
            self.report.find(problem, inode, format!("inode {inode}: {text}"), Remedy::Writes(writes));
        }

        let key = format::orphan_key(inode);
        match (named, stored.links > 0, marked) {
            (true, _, true) => {
                self.report.delete(
                    Problem::OrphanMark,
                    inode,
                    format!("inode {inode} has a name and is to be freed"),
                    key,
                );
            }
            (false, true, _) => {
                self.report.find(Problem::Lost, inode, format!("inode {inode} has no name"), Remedy::Name);
            }
            (false, false, false) => {
                let mark = Bytes::from_static(&[format::FORMAT_VERSION]);
                let text = format!("inode {inode} has no name and is never freed");
                self.report.find(Problem::OrphanMark, inode, text, Remedy::Writes(vec![(key, Some(mark))]));
            }
            _ => {}
        }
        Ok(())
    }

    /// The bytes of one inode; answers how many there are, and where they end.
    async fn extents(&mut self, beside: &mut Beside<'_>, inode: InodeId, record: &InodeRecord) -> Result<(u64, u64)> {
        let (mut allocated, mut end) = (0, 0);
        let mut read: Option<Location> = None;
        while let Some((key, value)) = beside.extents.up_to(inode.0).await? {
            let (offset, extent) = match (format::rest_u64(&key), format::decode_extent(&value)) {
                (Ok(offset), Ok(extent)) if key == format::extent_key(inode, offset) => (offset, extent),
                _ => {
                    let text = format!("bytes of inode {inode}: {key:?}");
                    self.report.delete(Problem::Malformed, inode, text, key);
                    continue;
                }
            };
            if record.kind() != FileKind::Regular {
                let text = format!("bytes of inode {inode}, which is a {:?}", record.kind());
                self.report.delete(Problem::ExtentWithoutFile, inode, text, key);
                continue;
            }
            let length = u64::from(extent.length);
            let what = format!("inode {inode}, bytes {offset}+{length}");
            if offset < end {
                let text = format!("{what}: they overlap those before");
                self.report.delete(Problem::ExtentOverlap, inode, text, key);
                continue;
            }
            if offset.checked_add(length).is_none_or(|end| end > record.size) {
                let text = format!("{what}: the file ends at {}", record.size);
                let mut rest = extent;
                rest.length = record.size.saturating_sub(offset).min(length) as u32;
                let rest = (rest.length > 0).then(|| format::encode_extent(&rest));
                self.report.find(Problem::ExtentBeyondEnd, inode, text, Remedy::Writes(vec![(key, rest)]));
                continue;
            }
            if extent.location.segment == SegmentId::BASE && has_object(record) {
                // The bucket says whether they are there.
                end = offset + length;
                allocated += length;
                self.report.extents += 1;
                self.report.bytes += length;
                continue;
            }
            if !self.segments.refer(&extent.location, length) {
                let text = format!("{what}: segment {} is not there", extent.location.segment);
                self.report.delete(Problem::ExtentWithoutSegment, inode, text, key);
                continue;
            }
            end = offset + length;
            allocated += length;
            self.report.extents += 1;
            self.report.bytes += length;
            if let Some((problem, text)) = self.segments.lacks(&extent.location) {
                if self.is_newest(&key, &value).await? {
                    self.report.find(problem, inode, format!("{what}: {text}"), Remedy::None);
                }
            } else if self.subject.bytes.is_some() && read.replace(extent.location) != Some(extent.location) {
                beside.unread.push(Unread { inode, what, location: extent.location, entry: (key, value) });
                if beside.unread.len() >= READ_TOGETHER {
                    self.read(&mut beside.unread).await?;
                }
            }
        }
        if let Some(linked) = &record.linked
            && let Some(object) = &linked.object
            && linked.dirty != Dirty::Bytes
            && record.kind() == FileKind::Regular
        {
            // Those of its object, which are not stored.
            return Ok((object.size, object.size));
        }
        Ok((allocated, end))
    }
}

fn has_object(record: &InodeRecord) -> bool {
    record.linked.as_ref().is_some_and(|linked| linked.object.is_some())
}
