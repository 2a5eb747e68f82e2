//! Bytes of linked objects: read in blocks, kept by version, ahead of who reads on; a first random read brings a piece of its block.
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

/// What one request of a reader that goes on fetches, in bytes.
const BLOCK_BYTES: u64 = 4 << 20;
/// What the first read of a block fetches where nobody reads on, in bytes: reads of 4 KiB all over a large object would bring a thousand times as
/// much. The second one fetches the block: no block costs more than two requests.
const PIECE_BYTES: u64 = 256 << 10;
/// Most bytes of blocks in memory.
const CACHE_BYTES: u64 = 256 << 20;
/// Blocks that are fetched ahead of a reader.
const AHEAD_BLOCKS: u64 = 12;
/// How often a reader finds a part of its block that others have fetched meanwhile, and that is not its own, before it asks alone.
const ROUNDS_MAX: u32 = 4;

/// What reads of an object are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pattern {
    /// What follows will be read, too.
    Sequential,
    /// Nobody knows what will be read next.
    Random,
}

/// What is read, and how.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub bucket: &'a Arc<dyn Bucket>,
    pub link: InodeId,
    pub object: &'a BaseObject,
    pub pattern: Pattern,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct BlockId {
    link: InodeId,
    key: ObjectKey,
    version: Version,
    number: u64,
}

/// What is kept of a block: all, or a part.
#[derive(Clone)]
struct Kept {
    /// Where it begins in the object.
    start: u64,
    bytes: Bytes,
}

impl Kept {
    fn range(&self) -> ByteRange {
        ByteRange::at(self.start, self.bytes.len() as u64)
    }

    fn holds(&self, range: ByteRange) -> bool {
        self.start <= range.start && range.end <= self.range().end
    }

    /// Bytes of a range that it holds.
    fn slice(&self, range: ByteRange) -> Bytes {
        self.bytes.slice((range.start - self.start) as usize..(range.end - self.start) as usize)
    }
}

#[derive(Clone)]
struct ByLength;

impl Weighter<BlockId, Kept> for ByLength {
    fn weight(&self, _: &BlockId, kept: &Kept) -> u64 {
        kept.bytes.len() as u64 + 1
    }
}

/// Blocks of objects in memory.
#[derive(Clone)]
pub(crate) struct Objects {
    blocks: Arc<Cache<BlockId, Kept, ByLength>>,
}

impl Default for Objects {
    fn default() -> Self {
        let items = (CACHE_BYTES / BLOCK_BYTES) as usize;
        Objects { blocks: Arc::new(atoll_blob::cache(items, CACHE_BYTES, ByLength)) }
    }
}

impl Objects {
    /// Bytes of an object; what others ask for at the same time is fetched once.
    pub async fn read(&self, reading: Reading<'_>, range: ByteRange) -> Result<Bytes, BucketError> {
        let range = ByteRange::new(range.start, range.end.min(reading.object.size));
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let parts = (range.start / BLOCK_BYTES..=(range.end - 1) / BLOCK_BYTES)
            .map(|number| self.part(reading, range.intersection(&block(reading.object, number))));
        let parts = try_join_all(parts).await?;
        if let [part] = &parts[..] {
            return Ok(part.clone());
        }
        let mut bytes = BytesMut::with_capacity(range.len() as usize);
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(bytes.freeze())
    }

    /// Bytes of one block.
    async fn part(&self, reading: Reading<'_>, part: ByteRange) -> Result<Bytes, BucketError> {
        let Reading { bucket, link, object, pattern } = reading;
        let number = part.start / BLOCK_BYTES;
        let block = block(object, number);
        let id = BlockId { link, key: object.key.clone(), version: object.version.clone(), number };
        let mut wanted = match pattern {
            Pattern::Sequential => block,
            Pattern::Random => around(part, block),
        };
        for _ in 0..ROUNDS_MAX {
            let kept = self.blocks.get_or_insert_async(&id, fetch(bucket, object, wanted)).await?;
            if kept.holds(part) {
                return Ok(kept.slice(part));
            }
            // Only what holds less than is wanted goes: another reader may have fetched all of it by now.
            self.blocks.remove_if(&id, |kept| !kept.holds(part));
            wanted = block;
        }
        Ok(fetch(bucket, object, part).await?.bytes)
    }

    /// Fetch what a reader will want next.
    pub fn ahead(&self, reading: Reading<'_>, range: ByteRange) {
        let Reading { bucket, link, object, pattern } = reading;
        let end = range.end.min(object.size);
        if range.start >= end {
            return;
        }
        let first = range.start / BLOCK_BYTES;
        let last = ((end - 1) / BLOCK_BYTES).min(first + AHEAD_BLOCKS);
        for number in first..=last {
            let (objects, bucket, object) = (self.clone(), bucket.clone(), object.clone());
            let block = block(&object, number);
            let part = match pattern {
                Pattern::Sequential => block,
                Pattern::Random => range.intersection(&block),
            };
            // Who reads it asks again, and is told what is wrong.
            tokio::spawn(async move {
                let reading = Reading { bucket: &bucket, link, object: &object, pattern };
                objects.part(reading, part).await.map(drop).ok()
            });
        }
    }
}

/// Where a block lies within its object.
fn block(object: &BaseObject, number: u64) -> ByteRange {
    let start = number * BLOCK_BYTES;
    ByteRange::new(start, object.size.min(start + BLOCK_BYTES))
}

/// Whole pieces of the block that hold the range.
fn around(range: ByteRange, block: ByteRange) -> ByteRange {
    let start = range.start - range.start % PIECE_BYTES;
    ByteRange::new(start, range.end.next_multiple_of(PIECE_BYTES).min(block.end))
}

async fn fetch(bucket: &Arc<dyn Bucket>, object: &BaseObject, range: ByteRange) -> Result<Kept, BucketError> {
    let bytes = bucket.get(&object.key, &object.version, range).await?;
    if bytes.len() as u64 != range.len() {
        return Err(BucketError::Wrong(format!("{} bytes of {} were asked for", range.len(), object.key)));
    }
    Ok(Kept { start: range.start, bytes })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use atoll_link::{MemoryBucket, RequestKind};

    use super::*;

    const LINK: InodeId = InodeId(7);
    const SIZE: u64 = 2 * BLOCK_BYTES + 1000;

    struct Site {
        memory: Arc<MemoryBucket>,
        bucket: Arc<dyn Bucket>,
        bytes: Bytes,
        object: BaseObject,
        objects: Objects,
    }

    impl Site {
        fn new() -> Site {
            let memory = Arc::new(MemoryBucket::new("data").with_delay(Duration::from_millis(1)));
            let bytes = Bytes::from_iter((0..SIZE).map(|at| (at / 1000 % 251) as u8));
            let key = ObjectKey::new("large").unwrap();
            let version = memory.put_object(&key, bytes.clone());
            let object = BaseObject { key, version, size: SIZE, archived: false };
            Site { bucket: memory.clone(), memory, bytes, object, objects: Objects::default() }
        }

        async fn read(&self, start: u64, length: u64, pattern: Pattern) {
            let range = ByteRange::at(start, length);
            let reading = Reading { bucket: &self.bucket, link: LINK, object: &self.object, pattern };
            let read = self.objects.read(reading, range).await.unwrap();
            assert!(read == self.bytes.slice(start as usize..SIZE.min(start + length) as usize), "{range:?}");
        }

        /// Requests that were sent, and bytes that are kept.
        fn cost(&self) -> (u64, u64) {
            let requests = self.memory.requests().get(&RequestKind::Get).copied().unwrap_or_default();
            (requests, self.objects.blocks.weight() - self.objects.blocks.len() as u64)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_random_read_brings_a_piece_and_the_second_one_its_block() {
        let site = Site::new();
        site.read(PIECE_BYTES + 5, 4096, Pattern::Random).await;
        site.read(PIECE_BYTES, PIECE_BYTES, Pattern::Random).await;
        assert_eq!(site.cost(), (1, PIECE_BYTES));
        site.read(3 * PIECE_BYTES, 4096, Pattern::Random).await;
        assert_eq!(site.cost(), (2, BLOCK_BYTES));
        site.read(0, BLOCK_BYTES, Pattern::Random).await;
        assert_eq!(site.cost(), (2, BLOCK_BYTES));
        // Over the border of two blocks, and at the end.
        site.read(2 * BLOCK_BYTES - 10, 20, Pattern::Random).await;
        assert_eq!(site.cost(), (4, BLOCK_BYTES + PIECE_BYTES + 1000));
        site.read(SIZE - 1, 4096, Pattern::Random).await;
        site.read(SIZE, 4096, Pattern::Random).await;
        assert_eq!(site.cost().0, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_on_gets_whole_blocks() {
        let site = Site::new();
        site.read(100, 4096, Pattern::Sequential).await;
        assert_eq!(site.cost(), (1, BLOCK_BYTES));
        site.read(BLOCK_BYTES, 4096, Pattern::Random).await;
        site.read(BLOCK_BYTES, BLOCK_BYTES, Pattern::Sequential).await;
        assert_eq!(site.cost(), (3, 2 * BLOCK_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn readers_of_one_block_at_the_same_time_share_two_requests() {
        let site = Site::new();
        let reads = (0..BLOCK_BYTES / PIECE_BYTES).map(|piece| {
            let pattern = if piece % 3 == 1 { Pattern::Sequential } else { Pattern::Random };
            site.read(piece * PIECE_BYTES + 17, 4096, pattern)
        });
        futures_util::future::join_all(reads).await;
        assert_eq!(site.cost(), (2, BLOCK_BYTES));
    }
}
