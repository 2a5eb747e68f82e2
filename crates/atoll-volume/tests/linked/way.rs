//! The way of an authority to the bucket, which ends with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use atoll_link::{
    Bucket, BucketError, Condition, Head, Headers, MemoryBucket, ObjectKey, Page, PartSource, Source, Version,
};
use atoll_types::ByteRange;
use bytes::Bytes;

pub const REFUSED: &str = "the bucket does not want it";

/// When the authority is killed, nothing more is sent; what was sent arrives.
#[derive(Debug)]
pub struct Way {
    pub bucket: Arc<MemoryBucket>,
    pub is_cut: Arc<AtomicBool>,
    /// The bucket has no place for keys of which this is a component.
    pub refused: Option<&'static str>,
}

impl Way {
    async fn send<T>(&self, request: impl Future<Output = Result<T, BucketError>>) -> Result<T, BucketError> {
        if self.is_cut.load(Ordering::Relaxed) {
            return Err(BucketError::Away("killed".into()));
        }
        request.await
    }
}

/// Whether one of the path's components is this one.
pub fn is_below(path: &str, component: &str) -> bool {
    path.split('/').any(|of| of == component)
}

#[async_trait]
impl Bucket for Way {
    fn url(&self) -> &str {
        self.bucket.url()
    }

    async fn refuses(&self, key: &ObjectKey) -> Result<Option<&'static str>, BucketError> {
        let is_refused = self.refused.is_some_and(|refused| is_below(key.as_str(), refused));
        Ok(is_refused.then_some(REFUSED))
    }

    async fn head(&self, key: &ObjectKey, unless: Option<&Version>) -> Result<Head, BucketError> {
        self.send(self.bucket.head(key, unless)).await
    }

    async fn list(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
        delimited: bool,
        max: usize,
    ) -> Result<Page, BucketError> {
        self.send(self.bucket.list(prefix, after, delimited, max)).await
    }

    async fn get(&self, key: &ObjectKey, version: &Version, range: ByteRange) -> Result<Bytes, BucketError> {
        self.send(self.bucket.get(key, version, range)).await
    }

    async fn tags(&self, key: &ObjectKey) -> Result<Vec<(String, String)>, BucketError> {
        self.send(self.bucket.tags(key)).await
    }

    async fn put(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.send(self.bucket.put(key, bytes, headers, condition)).await
    }

    async fn put_parts(
        &self,
        key: &ObjectKey,
        parts: &mut (dyn PartSource + Send),
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.send(self.bucket.put_parts(key, parts, headers, condition)).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        source: Source<'_>,
        to: &ObjectKey,
        headers: Option<&Headers>,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.send(self.bucket.copy(from, source, to, headers, condition)).await
    }

    async fn delete(&self, key: &ObjectKey, version: &Version) -> Result<(), BucketError> {
        self.send(self.bucket.delete(key, version)).await
    }

    async fn abort(&self, key: &ObjectKey, upload: &str) -> Result<(), BucketError> {
        self.send(self.bucket.abort(key, upload)).await
    }
}
