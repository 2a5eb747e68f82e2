//! Bytes of linked objects: read in blocks, kept by version, ahead of who reads on.
//!
//! Invariant: a block is of one version of an object, which never changes: what is kept needs no invalidation.

use std::sync::Arc;

use atoll_link::{Bucket, BucketError, ObjectKey, Version};
use atoll_types::{ByteRange, Errno, InodeId};
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::record::BaseObject;

/// What one request fetches, in bytes.
const BLOCK_BYTES: u64 = 4 << 20;
/// Most bytes of blocks in memory.
const CACHE_BYTES: u64 = 256 << 20;
/// Blocks that are fetched ahead of a reader.
const AHEAD_BLOCKS: u64 = 12;

#[derive(Clone, PartialEq, Eq, Hash)]
struct BlockId {
    link: InodeId,
    key: ObjectKey,
    version: Version,
    number: u64,
}

#[derive(Clone)]
struct ByLength;

impl Weighter<BlockId, Bytes> for ByLength {
    fn weight(&self, _: &BlockId, block: &Bytes) -> u64 {
        block.len() as u64 + 1
    }
}

/// Blocks of objects in memory.
#[derive(Clone)]
pub(crate) struct Objects {
    blocks: Arc<Cache<BlockId, Bytes, ByLength>>,
}

impl Default for Objects {
    fn default() -> Self {
        let items = (CACHE_BYTES / BLOCK_BYTES) as usize;
        Objects { blocks: Arc::new(atoll_blob::cache(items, CACHE_BYTES, ByLength)) }
    }
}

impl Objects {
    /// Bytes of an object; what others ask for at the same time is fetched once.
    pub async fn read(
        &self,
        bucket: &Arc<dyn Bucket>,
        link: InodeId,
        object: &BaseObject,
        range: ByteRange,
    ) -> Result<Bytes, BucketError> {
        let range = ByteRange::new(range.start, range.end.min(object.size));
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let numbers = range.start / BLOCK_BYTES..=(range.end - 1) / BLOCK_BYTES;
        let blocks = try_join_all(numbers.clone().map(|number| self.block(bucket, link, object, number))).await?;
        let mut bytes = BytesMut::with_capacity(range.len() as usize);
        for (number, block) in numbers.zip(blocks) {
            let at = number * BLOCK_BYTES;
            let part = range.start.max(at) - at..range.end.min(at + block.len() as u64) - at;
            if part.start == 0 && part.end == block.len() as u64 && range.len() == part.end {
                return Ok(block);
            }
            bytes.extend_from_slice(&block[part.start as usize..part.end as usize]);
        }
        Ok(bytes.freeze())
    }

    async fn block(
        &self,
        bucket: &Arc<dyn Bucket>,
        link: InodeId,
        object: &BaseObject,
        number: u64,
    ) -> Result<Bytes, BucketError> {
        let id = BlockId { link, key: object.key.clone(), version: object.version.clone(), number };
        let range = ByteRange::at(number * BLOCK_BYTES, BLOCK_BYTES.min(object.size - number * BLOCK_BYTES));
        let fetch = async {
            let block = bucket.get(&object.key, &object.version, range).await?;
            if block.len() as u64 == range.len() {
                Ok(block)
            } else {
                Err(BucketError::Wrong(format!("{} bytes of {} were asked for", range.len(), object.key)))
            }
        };
        self.blocks.get_or_insert_async(&id, fetch).await
    }

    /// Fetch what a reader will want next.
    pub fn ahead(&self, bucket: &Arc<dyn Bucket>, link: InodeId, object: &BaseObject, range: ByteRange) {
        let end = range.end.min(object.size);
        if range.start >= end {
            return;
        }
        let first = range.start / BLOCK_BYTES;
        let last = ((end - 1) / BLOCK_BYTES).min(first + AHEAD_BLOCKS);
        for number in first..=last {
            let (objects, bucket, object) = (self.clone(), bucket.clone(), object.clone());
            // Who reads it asks again, and is told what is wrong.
            tokio::spawn(async move { objects.block(&bucket, link, &object, number).await.map(drop).ok() });
        }
    }
}

/// What a call fails with when the bucket does not do what it needs.
pub(crate) fn bucket_errno(error: &BucketError) -> Errno {
    match error {
        BucketError::Changed | BucketError::Absent => Errno::ESTALE,
        BucketError::Denied(_) => Errno::EACCES,
        BucketError::Unsupported(_) => Errno::EOPNOTSUPP,
        BucketError::Archived(_) | BucketError::Away(_) | BucketError::Wrong(_) => Errno::EIO,
    }
}
