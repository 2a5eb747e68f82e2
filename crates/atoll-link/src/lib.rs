//! Native buckets: the objects that a linked directory shows as files.
//!
//! Start with [`Bucket`]: all that a volume asks of one. What a volume knows of its linked files, and when it asks, lives in
//! `atoll-volume`; nothing here knows of inodes.

mod bucket;
mod key;
mod memory;
pub mod names;
pub mod notification;
pub mod posix;
mod queue;
mod quoting;
mod s3;
mod settings;

pub use bucket::{
    Bucket, BucketError, Condition, Head, Headers, Listed, ObjectInfo, PART_BYTES, Page, Part, PartSource, Source,
    UploadLog, Version,
};
pub use key::ObjectKey;
pub use memory::{Fault, MemoryBucket, Request, RequestKind};
pub use queue::{MESSAGES_MAX, Message, Queue, QueueError, QueueUrl, WAIT_MAX};
pub use s3::{Capabilities, S3Bucket, Sent};
pub use settings::{BUDGET_DEFAULT, RECHECK_SECONDS_DEFAULT, RECHECK_SECONDS_MAX, RECHECK_SECONDS_MIN};
pub use settings::{Freshness, LinkSettings, OnConflict, Publish};
