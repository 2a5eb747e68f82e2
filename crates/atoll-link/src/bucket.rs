//! What a volume asks of a bucket.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use atoll_types::{ByteRange, Timestamp};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ObjectKey;

/// Objects up to this size are written by one PUT; larger ones in parts of at least this size, in bytes.
pub const PART_BYTES: u64 = 16 << 20;

/// Which bytes an object has: two versions that are equal have the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Version {
    /// As the bucket gave it, with its quotes.
    pub etag: String,
    /// With which it can be read after it was replaced, where the bucket keeps versions.
    pub id: Option<String>,
}

/// What an object has beside its bytes, and what a rewrite keeps of it.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Headers {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_language: Option<String>,
    pub content_disposition: Option<String>,
    pub cache_control: Option<String>,
    pub storage_class: Option<String>,
    /// `AES256`, `aws:kms`, with the key's name.
    pub encryption: Option<(String, Option<String>)>,
    /// User metadata: names in lower case, without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
    /// `None`: not known. [`Bucket::head`] does not ask for them; [`Bucket::tags`] does.
    pub tags: Option<Vec<(String, String)>>,
}

/// An object, as HEAD or a listing tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    pub size: u64,
    pub modified: Timestamp,
    pub version: Version,
    /// It must be restored before it can be read (Glacier and such).
    pub archived: bool,
    /// `None` in a listing.
    pub headers: Option<Headers>,
}

/// What there is at a key.
#[derive(Clone, PartialEq, Eq, Debug)]
// Nearly all of them are objects.
#[expect(clippy::large_enum_variant)]
pub enum Head {
    Absent,
    /// Still the version that the caller named.
    Same,
    Object(ObjectInfo),
}

/// A key of a page: an object, or the common beginning (with its `/`) of several.
#[derive(Clone, PartialEq, Eq, Debug)]
// Nearly all of them are objects.
#[expect(clippy::large_enum_variant)]
pub enum Listed {
    Object(ObjectKey, ObjectInfo),
    Prefix(ObjectKey),
}

impl Listed {
    pub fn key(&self) -> &ObjectKey {
        match self {
            Listed::Object(key, _) | Listed::Prefix(key) => key,
        }
    }
}

/// A part of a listing: everything behind where it was asked for, up to its last entry; up to the end when `end`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Strictly ascending by key, as bytes.
    pub entries: Vec<Listed>,
    pub end: bool,
}

/// When a write is to take effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// There is no object at the key.
    Absent,
    /// The object is this version.
    Is(Version),
}

/// A run of a new object's bytes.
#[derive(Clone, Debug)]
pub enum Part {
    Bytes(Bytes),
    /// Bytes of an object in the same bucket.
    Copy {
        key: ObjectKey,
        version: Version,
        range: ByteRange,
    },
}

impl Part {
    pub fn len(&self) -> u64 {
        match self {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::Copy { range, .. } => range.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The version that a copy is of.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    Version(&'a Version),
    /// What [`Bucket::head`] has just told: it is not asked again.
    Told(&'a ObjectInfo),
}

impl<'a> Source<'a> {
    pub fn version(self) -> &'a Version {
        match self {
            Source::Version(version) => version,
            Source::Told(info) => &info.version,
        }
    }
}

/// Why a bucket did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BucketError {
    /// The object is not the version that the caller named, or there is one where there was to be none. Nothing was changed.
    #[error("the object was changed by somebody else")]
    Changed,
    /// A copy or a read of an object that is not there.
    #[error("there is no such object")]
    Absent,
    /// The object must be restored from its archive first.
    #[error("the object is archived ({0}): restore it before it is read")]
    Archived(String),
    #[error("the bucket refuses: {0}: check its policy and the credentials of the link")]
    Denied(String),
    /// The bucket cannot do this, whoever asks.
    #[error("the bucket cannot do this: {0}")]
    Unsupported(String),
    /// It did not answer, or answered with an error, each time it was asked; a change may have been made or not.
    #[error("the bucket does not answer: {0}")]
    Away(String),
    /// An answer that contradicts what was asked, or itself (a checksum, a length).
    #[error("the bucket's answer is wrong: {0}")]
    Wrong(String),
}

/// A bucket with plain objects. Calls are bounded in time, and retried a bounded number of times.
#[async_trait]
pub trait Bucket: Send + Sync + fmt::Debug {
    /// For messages: `s3://bucket`.
    fn url(&self) -> &str;

    /// Why the bucket has no place for an object of this key: it would take it for another one, or list it as another one. `None`:
    /// nothing speaks against it.
    async fn refuses(&self, _key: &ObjectKey) -> Result<Option<&'static str>, BucketError> {
        Ok(None)
    }

    /// One request. With `unless`, only an object of another version is described.
    async fn head(&self, key: &ObjectKey, unless: Option<&Version>) -> Result<Head, BucketError>;

    /// Keys that begin with `prefix` and are greater than `after` as bytes (`None`: from the first), one request, at most `max`
    /// (up to 1000). With `delimited`, what lies behind the next `/` is one [`Listed::Prefix`]; one that equals `after` is not
    /// listed again.
    async fn list(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
        delimited: bool,
        max: usize,
    ) -> Result<Page, BucketError>;

    /// Bytes of that version, at most [`PART_BYTES`], cut at the object's end. [`BucketError::Changed`] when it is there no more:
    /// never bytes of another one.
    async fn get(&self, key: &ObjectKey, version: &Version, range: ByteRange) -> Result<Bytes, BucketError>;

    /// The tags of the object that is at the key now.
    async fn tags(&self, key: &ObjectKey) -> Result<Vec<(String, String)>, BucketError>;

    /// Write an object of at most [`PART_BYTES`] by one request.
    ///
    /// When an answer is lost and the condition fails as the request is sent again, the object's `atoll-generation` (in
    /// `headers.metadata`, which the caller makes unique for each write) tells whether it was this call's own effect.
    async fn put(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError>;

    /// Write an object of any size: parts of at least 5 MiB and at most 5 GiB (the last one may be smaller), at most 10,000, several at a time;
    /// `parts` gives them one by one as they are needed. The object appears when all of it is there; otherwise nothing is left.
    async fn put_parts(
        &self,
        key: &ObjectKey,
        parts: &mut (dyn PartSource + Send),
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError>;

    /// Copy that version, of any size, with all it has beside its bytes; `headers` replaces what it has.
    async fn copy(
        &self,
        from: &ObjectKey,
        source: Source<'_>,
        to: &ObjectKey,
        headers: Option<&Headers>,
        condition: &Condition,
    ) -> Result<Version, BucketError>;

    /// Delete the object if it is that version. An absent object is [`Ok`]: it is deleted.
    async fn delete(&self, key: &ObjectKey, version: &Version) -> Result<(), BucketError>;

    /// Give up an upload in parts, by the id of which [`UploadLog::begun`] has told. One that is not there is [`Ok`].
    async fn abort(&self, key: &ObjectKey, upload: &str) -> Result<(), BucketError>;
}

/// Is told of uploads in parts, whose parts cost until they are completed or aborted: to abort what a process that was killed has left.
#[async_trait]
pub trait UploadLog: Send + Sync + fmt::Debug {
    /// Nothing is sent of it before this returns; an error ends it.
    async fn begun(&self, key: &ObjectKey, upload: &str) -> Result<(), BucketError>;

    /// It is completed or aborted; with `may_be_left`, or neither, as far as that is known.
    fn ended(&self, upload: &str, may_be_left: bool);
}

/// Gives the parts of an object, in order.
#[async_trait]
pub trait PartSource {
    async fn next(&mut self) -> Result<Option<Part>, BucketError>;
}
