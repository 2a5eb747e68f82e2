//! TO BE CONNECTED: stands for `atoll_link::{S3Bucket, Capabilities}` until that is there; then this file goes, and `buckets.rs` and `links.rs`
//! name those. No bucket can be used through it.

use async_trait::async_trait;
use atoll_link::{Bucket, BucketError, Condition, Head, Headers, ObjectKey, Page, PartSource, Version};
use atoll_object::ObjectOptions;
use atoll_types::ByteRange;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Capabilities {
    pub conditional_create: bool,
    pub versions: bool,
}

#[derive(Clone, Debug)]
pub struct S3Bucket(String);

type Result<T> = std::result::Result<T, BucketError>;

fn missing<T>() -> Result<T> {
    Err(BucketError::Unsupported("this build reaches no buckets".into()))
}

impl S3Bucket {
    pub fn open(url: &str, _options: &ObjectOptions) -> Result<S3Bucket> {
        Ok(S3Bucket(url.to_owned()))
    }

    pub async fn probe(&self, _prefix: &ObjectKey) -> Result<Capabilities> {
        missing()
    }

    pub fn assume(&self, _capabilities: Capabilities) {}
}

#[async_trait]
impl Bucket for S3Bucket {
    fn url(&self) -> &str {
        &self.0
    }

    async fn head(&self, _: &ObjectKey, _: Option<&Version>) -> Result<Head> {
        missing()
    }

    async fn list(&self, _: &ObjectKey, _: Option<&ObjectKey>, _: bool, _: usize) -> Result<Page> {
        missing()
    }

    async fn get(&self, _: &ObjectKey, _: &Version, _: ByteRange) -> Result<Bytes> {
        missing()
    }

    async fn tags(&self, _: &ObjectKey) -> Result<Vec<(String, String)>> {
        missing()
    }

    async fn put(&self, _: &ObjectKey, _: Bytes, _: &Headers, _: &Condition) -> Result<Version> {
        missing()
    }

    async fn put_parts(
        &self,
        _: &ObjectKey,
        _: &mut (dyn PartSource + Send),
        _: &Headers,
        _: &Condition,
    ) -> Result<Version> {
        missing()
    }

    async fn copy(
        &self,
        _: &ObjectKey,
        _: &Version,
        _: &ObjectKey,
        _: Option<&Headers>,
        _: &Condition,
    ) -> Result<Version> {
        missing()
    }

    async fn delete(&self, _: &ObjectKey, _: &Version) -> Result<()> {
        missing()
    }
}
