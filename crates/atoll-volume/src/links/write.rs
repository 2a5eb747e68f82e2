//! A file's object is written, or copied from where it was.
//!
//! Every object that is written says in its metadata which volume wrote it, for which file, and by which write: after a crash, or
//! when an answer was lost, that tells what is ours.

use async_trait::async_trait;
use atoll_link::{
    BucketError, Condition, Head, Headers, ObjectInfo, ObjectKey, PART_BYTES, Part, PartSource, Source, posix,
};
use atoll_types::{ByteRange, Errno, FileKind, InodeId, Name, Timestamp};
use bytes::Bytes;

use super::budget::Traffic;
use super::objects::Pattern;
use super::publish::Trouble;
use super::record::BaseObject;
use crate::core::{Content, ReadPlan};
use crate::extents::{ExtentMap, Piece};
use crate::rebase;
use crate::volume::Volume;

/// Smallest part of a large object that is copied from the old one: what S3 allows.
const COPY_BYTES_MIN: u64 = 5 << 20;
/// Largest part that is copied at once.
const COPY_BYTES_MAX: u64 = 1 << 30;
/// In the metadata of objects: who wrote it, and for which file.
const GENERATION: &str = "atoll-generation";

/// A file whose object is to be written.
pub(super) struct Writing<'a> {
    pub inode: InodeId,
    pub link: InodeId,
    pub key: &'a ObjectKey,
    pub name: &'a Name,
    pub base: Option<&'a BaseObject>,
    pub content: &'a Content,
}

impl Volume {
    /// True when it is to be begun anew.
    pub(super) async fn write_object(&self, work: Writing<'_>, condition: &Condition) -> Result<bool, Trouble> {
        let Writing { inode, link, key, name, base, content } = work;
        let bucket = self.bucket(link)?;
        let mut headers = Headers::default();
        if let Some(base) = base {
            match bucket.head(&base.key, None).await? {
                Head::Object(info) if crate::core::is_same_version(&base.version, &info.version) => {
                    headers = info.headers.unwrap_or_default();
                    headers.tags = Some(bucket.tags(&base.key).await?);
                }
                Head::Object(info) if base.key == *key => return self.conflict(&work, Some(info)).await,
                Head::Object(info) if self.is_generation_of(inode, &info) => {
                    // It was written there before it was renamed, and that was not noted.
                    self.alone(|core| core.found_there(inode, link, &base.key, &info)).await?;
                    return Ok(true);
                }
                _ if base.key == *key => return self.conflict(&work, None).await,
                _ => {}
            }
        }
        if headers.content_type.is_none() {
            headers.content_type = posix::guess_content_type(name.as_bytes()).map(str::to_owned);
        }
        posix::write(&mut headers, &content.attributes);
        headers.metadata.insert(GENERATION.into(), self.generation(inode));
        let size = content.attributes.size;
        self.begin_object(inode, key).await?;
        let mut traffic = Traffic { written: content.written, sent: size, copied: 0 };
        let written = if content.attributes.mode.kind() == Some(FileKind::Symlink) {
            bucket.put(key, content.target.clone(), &headers, condition).await
        } else if size <= PART_BYTES {
            let bytes = self.content_bytes(link, base, &content.map, ByteRange::new(0, size)).await?;
            bucket.put(key, bytes, &headers, condition).await
        } else {
            let mut parts = Parts { volume: self, link, base, content, at: 0, copied: 0, failed: None };
            let written = bucket.put_parts(key, &mut parts, &headers, condition).await;
            (traffic.sent, traffic.copied) = (size.saturating_sub(parts.copied), parts.copied);
            if let Some(errno) = parts.failed {
                return Err(errno.into());
            }
            written
        };
        match written {
            Ok(version) => {
                self.alone(|core| core.published(inode, link, key, &version, Some(content))).await?;
                self.count_traffic(link, inode, traffic);
                Ok(false)
            }
            Err(BucketError::Changed) => match bucket.head(key, None).await? {
                Head::Object(info) => self.conflict(&work, Some(info)).await,
                _ => self.conflict(&work, None).await,
            },
            Err(error) => Err(error.into()),
        }
    }

    /// A file's object was written or copied, and what that took.
    fn count_traffic(&self, link: InodeId, inode: InodeId, traffic: Traffic) {
        let budget = self.inner.shared.core.lock().links.budget(link);
        self.inner.links.budgets.published(link, inode, budget, traffic);
    }

    /// Before an object is written: should that not be noted, for a crash or a lost answer, it is looked for.
    pub(super) async fn begin_object(&self, inode: InodeId, key: &ObjectKey) -> Result<(), Errno> {
        match self.alone(|core| core.begin_object(inode, key)).await? {
            Some(ordered) => self.until_durable(ordered).await,
            None => Ok(()),
        }
    }

    /// Unique for each write, and of this file.
    pub(super) fn generation(&self, inode: InodeId) -> String {
        let mut nonce = [0u8; 8];
        // Without randomness the time still tells writes apart.
        if getrandom::fill(&mut nonce).is_err() {
            nonce = (Timestamp::now().seconds as u64 ^ u64::from(Timestamp::now().nanos)).to_be_bytes();
        }
        format!("{}{:016x}", self.own_generation(inode), u64::from_be_bytes(nonce))
    }

    /// Whether an object was written by this volume, for that file.
    pub(super) fn is_generation_of(&self, inode: InodeId, info: &ObjectInfo) -> bool {
        let generation = info.headers.as_ref().and_then(|headers| headers.metadata.get(GENERATION));
        generation.is_some_and(|generation| generation.starts_with(&self.own_generation(inode)))
    }

    /// Whether the object at the key was written by this volume, for that file or for one that may have been written there before.
    pub(super) fn is_ours(&self, inode: InodeId, link: InodeId, key: &ObjectKey, info: &ObjectInfo) -> bool {
        let gone = self.inner.shared.core.lock().links.gone.get(&(link, key.clone())).cloned();
        let mut others = gone.iter().flat_map(|gone| &gone.of);
        self.is_generation_of(inode, info) || others.any(|&other| self.is_generation_of(other, info))
    }

    fn own_generation(&self, inode: InodeId) -> String {
        format!("{:032x}-{:x}-", self.inner.settings.id, inode.0)
    }

    /// Bytes of a file as it was.
    pub(super) async fn content_bytes(
        &self,
        link: InodeId,
        base: Option<&BaseObject>,
        map: &ExtentMap,
        range: ByteRange,
    ) -> Result<Bytes, Errno> {
        let pieces = map.read(range);
        let plan = ReadPlan { range, pieces, base: base.map(|base| (link, base.clone())) };
        self.fetch(&plan, Pattern::Sequential).await
    }

    /// True when it is to be begun anew.
    pub(super) async fn copy_object(
        &self,
        inode: InodeId,
        link: InodeId,
        key: &ObjectKey,
        base: &BaseObject,
        content: Option<&Content>,
        condition: &Condition,
    ) -> Result<bool, Trouble> {
        let bucket = self.bucket(link)?;
        let source = match bucket.head(&base.key, None).await? {
            Head::Object(info) if crate::core::is_same_version(&base.version, &info.version) => info,
            Head::Object(info) => {
                // It was replaced there: that is what the file is now.
                let found = self.found(&bucket, base.key.clone(), info).await?;
                self.alone(|core| core.if_based(inode, base, |core| core.replace_base(inode, link, &base.key, &found)))
                    .await?;
                return Ok(true);
            }
            _ => {
                self.alone(|core| core.if_based(inode, base, |core| core.yield_to(inode, None))).await?;
                return Ok(true);
            }
        };
        let mut headers = source.headers.clone().unwrap_or_default();
        if let Some(content) = content {
            posix::write(&mut headers, &content.attributes);
        }
        headers.metadata.insert(GENERATION.into(), self.generation(inode));
        self.begin_object(inode, key).await?;
        match bucket.copy(&base.key, Source::Told(&source), key, Some(&headers), condition).await {
            Ok(version) => {
                self.alone(|core| core.published(inode, link, key, &version, content)).await?;
                self.count_traffic(link, inode, Traffic { copied: source.size, ..Traffic::default() });
                Ok(false)
            }
            Err(BucketError::Changed | BucketError::Absent) => {
                self.copy_conflict(inode, link, key, base, &source).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// There is another object where a copy was to be.
    pub(super) async fn copy_conflict(
        &self,
        inode: InodeId,
        link: InodeId,
        key: &ObjectKey,
        base: &BaseObject,
        source: &ObjectInfo,
    ) -> Result<bool, Trouble> {
        if !self.alone(|core| core.has_base(inode, base)).await? {
            // What it was to be a copy of went by our doing.
            return Ok(true);
        }
        let bucket = self.bucket(link)?;
        let Head::Object(info) = bucket.head(key, None).await? else {
            self.alone(|core| core.forget_base(inode, link, key)).await?;
            return Ok(true);
        };
        let is_copy = info.size == source.size && info.version.etag == source.version.etag;
        let is_of_another = !self.is_generation_of(inode, &info) && self.is_ours(inode, link, key, &info);
        if base.key != *key && is_copy && !is_of_another {
            self.alone(|core| core.published(inode, link, key, &info.version, None)).await?;
            return Ok(true);
        }
        let content = self.alone(|core| core.content(inode)).await?;
        let Some((_, name)) = self.alone(|core| Ok(core.linked(inode)?.and_then(|linked| linked.home.clone()))).await?
        else {
            return Ok(true);
        };
        let name = Name::new(name)?;
        let work = Writing { inode, link, key, name: &name, base: Some(base), content: &content };
        self.conflict(&work, Some(info)).await
    }
}

/// The parts of a large object: what is as it was is copied from the old one.
struct Parts<'a> {
    volume: &'a Volume,
    link: InodeId,
    base: Option<&'a BaseObject>,
    content: &'a Content,
    at: u64,
    copied: u64,
    failed: Option<Errno>,
}

impl Parts<'_> {
    /// Where bytes begin again that are worth a copy.
    fn changed_from(&self, at: u64) -> u64 {
        let size = self.content.attributes.size;
        let pieces = self.content.map.read(ByteRange::new(at, size));
        let starts = pieces.iter().filter_map(|piece| match piece {
            Piece::Data { offset, extent } if rebase::base_range(extent).is_some() => Some(*offset),
            _ => None,
        });
        let mut worth = starts.filter(|&start| self.unchanged_from(start) - start >= COPY_BYTES_MIN);
        worth.next().unwrap_or(size)
    }

    /// How far bytes go on from here that are the object's at the same place.
    fn unchanged_from(&self, at: u64) -> u64 {
        let mut end = at;
        for piece in self.content.map.read(ByteRange::new(at, self.content.attributes.size)) {
            match piece {
                Piece::Data { offset, extent }
                    if offset == end && rebase::base_range(&extent).is_some_and(|r| r.start == offset) =>
                {
                    end += u64::from(extent.length);
                }
                _ => break,
            }
        }
        end
    }
}

#[async_trait]
impl PartSource for Parts<'_> {
    async fn next(&mut self) -> Result<Option<Part>, BucketError> {
        let (at, size) = (self.at, self.content.attributes.size);
        if at >= size {
            return Ok(None);
        }
        let unchanged = self.unchanged_from(at).min(at + COPY_BYTES_MAX);
        if let Some(base) = self.base
            && unchanged - at >= COPY_BYTES_MIN
        {
            // The rest must not become too small for a part, unless it is the last one.
            let end = if size - unchanged < COPY_BYTES_MIN && unchanged < size {
                unchanged.min(size - COPY_BYTES_MIN)
            } else {
                unchanged
            };
            if end - at >= COPY_BYTES_MIN || end == size {
                self.at = end;
                self.copied += end - at;
                let (key, version) = (base.key.clone(), base.version.clone());
                return Ok(Some(Part::Copy { key, version, range: ByteRange::new(at, end) }));
            }
        }
        // Parts grow with the object, of which there are at most 10,000.
        let part = PART_BYTES.max(size.div_ceil(9_000));
        let range = ByteRange::new(at, self.changed_from(at).clamp(at + COPY_BYTES_MIN, at + part).min(size));
        match self.volume.content_bytes(self.link, self.base, &self.content.map, range).await {
            Ok(bytes) => {
                self.at = range.end;
                Ok(Some(Part::Bytes(bytes)))
            }
            Err(errno) => {
                self.failed = Some(errno);
                Err(BucketError::Away(format!("its bytes cannot be read: {errno}")))
            }
        }
    }
}
