//! Copies within the bucket.

use async_trait::async_trait;
use atoll_types::ByteRange;
use aws_sdk_s3::types::{MetadataDirective, TaggingDirective};

use super::failure::{Failure, Kind, Load, attempts};
use super::headers::{version, with_headers};
use super::write::Mark;
use super::{S3Bucket, text};
use crate::{BucketError, Condition, Head, Headers, ObjectInfo, ObjectKey, Part, PartSource, Source, Version};

/// Larger objects are copied in parts.
const COPY_BYTES_MAX: u64 = 5 << 30;
/// Where a copy knows no condition, and a write does: smaller objects are read and written, which is fewer requests than a copy in parts.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Of the largest object these are as many as there may be, and more.
const COPIED_PART_BYTES: u64 = 1 << 30;

impl S3Bucket {
    pub(super) async fn copy_to(
        &self,
        from: &ObjectKey,
        source: Source<'_>,
        to: &ObjectKey,
        headers: Option<&Headers>,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        let version = source.version();
        // Needed for what a copy does not take along by itself: the storage class and the encryption.
        let (source, id) = match source {
            Source::Told(info) => (info.clone(), None),
            Source::Version(version) => self.source(from, version).await?,
        };
        if source.archived {
            let class = source.headers.as_ref().and_then(|headers| headers.storage_class.clone());
            return Err(BucketError::Archived(class.unwrap_or_default()));
        }
        let mark = headers.map_or(Mark::Like(&source), Mark::of);
        let can = self.capabilities();
        let one_request = source.size <= COPY_BYTES_MAX;
        let conditional = can.conditional_copy || source.size == 0 || !(can.part_copy && can.conditional_complete);
        // Also where neither a copy nor its parts can be bound to a condition.
        let by_writing = !can.conditional_copy && source.size <= READ_BYTES_MAX && can.checks(condition);
        if one_request && conditional && !by_writing {
            return Ok(self.copy_once(from, &source, id, to, headers, condition, mark).await?);
        }
        let mut kept = headers.or(source.headers.as_ref()).cloned().unwrap_or_default();
        if kept.tags.is_none() {
            kept.tags = Some(self.read_tags(from, id).await?);
        }
        let version = Version { etag: version.etag.clone(), id: id.map(str::to_owned) };
        if by_writing {
            let bytes = self.read(from, &version, ByteRange::at(0, source.size)).await?;
            return Ok(self.write_marked(to, bytes, &kept, condition, mark).await?);
        }
        let mut parts = Ranges { key: from, version, left: ByteRange::at(0, source.size) };
        self.write_marked_parts(to, &mut parts, &kept, condition, mark).await
    }

    /// The object that is to be copied, and the name of its version when it is not at its key any more.
    async fn source<'a>(
        &self,
        from: &ObjectKey,
        version: &'a Version,
    ) -> Result<(ObjectInfo, Option<&'a str>), BucketError> {
        let now = self.look(from, None, None).await?;
        match (now, &version.id) {
            (Head::Object(info), _) if info.version.etag == version.etag => Ok((info, None)),
            (_, Some(id)) => match self.look(from, Some(id), None).await? {
                Head::Object(info) if info.version.etag == version.etag => Ok((info, Some(id))),
                _ => Err(BucketError::Changed),
            },
            (Head::Absent, None) => Err(BucketError::Absent),
            _ => Err(BucketError::Changed),
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn copy_once(
        &self,
        from: &ObjectKey,
        source: &ObjectInfo,
        id: Option<&str>,
        to: &ObjectKey,
        headers: Option<&Headers>,
        condition: &Condition,
        mark: Mark<'_>,
    ) -> Result<Version, Failure> {
        let (none_match, matches) = condition.headers();
        let capable = self.capabilities().conditional_copy;
        let unchanged = Headers::default();
        let kept = source.headers.as_ref().unwrap_or(&unchanged);
        let copied = attempts(Load::Copied(source.size), || async {
            let mut request = match headers {
                Some(headers) => with_headers!(self.client().copy_object(), headers)
                    .metadata_directive(MetadataDirective::Replace)
                    .set_tagging_directive(headers.tags.is_some().then_some(TaggingDirective::Replace)),
                None => {
                    let (encryption, key) = kept.encryption.clone().unzip();
                    self.client()
                        .copy_object()
                        .metadata_directive(MetadataDirective::Copy)
                        .set_storage_class(kept.storage_class.as_deref().map(Into::into))
                        .set_server_side_encryption(encryption.as_deref().map(Into::into))
                        .set_ssekms_key_id(key.flatten())
                }
            };
            if capable {
                request = request.set_if_none_match(none_match.clone()).set_if_match(matches.clone());
            } else if let Some(version) = self.look_first(to, condition, mark).await? {
                return Ok(version);
            }
            let request = request
                .bucket(self.name())
                .key(to.as_str())
                .copy_source(text::copy_source(self.name(), from.as_str(), id))
                .copy_source_if_match(&source.version.etag);
            let output = request.send().await?;
            version(output.copy_object_result.and_then(|result| result.e_tag), output.version_id)
        });
        match copied.await {
            Err(failure) if failure.kind == Kind::Condition => self.own_effect(to, mark).await,
            copied => copied,
        }
    }
}

/// An object, in parts.
struct Ranges<'a> {
    key: &'a ObjectKey,
    version: Version,
    left: ByteRange,
}

#[async_trait]
impl PartSource for Ranges<'_> {
    async fn next(&mut self) -> Result<Option<Part>, BucketError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let range = ByteRange::new(self.left.start, self.left.end.min(self.left.start + COPIED_PART_BYTES));
        self.left.start = range.end;
        Ok(Some(Part::Copy { key: self.key.clone(), version: self.version.clone(), range }))
    }
}
