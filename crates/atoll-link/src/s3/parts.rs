//! Objects that are written in parts.
//!
//! A part is a piece of the caller's bytes, or of an object in the bucket. Where the bucket cannot copy such a piece itself it is
//! read and written, in pieces of [`PART_BYTES`] at most.

use std::collections::VecDeque;

use atoll_types::ByteRange;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::failure::{Failure, Kind, Load, attempts};
use super::headers::{version, with_headers};
use super::write::Mark;
use super::{S3Bucket, text};
use crate::{BucketError, Condition, Headers, ObjectKey, PART_BYTES, Part, PartSource, Version};

/// Parts of one object that are under way at once: what it may hold of memory, in parts.
const PARTS_AT_ONCE: usize = 4;
/// Of one object.
const PARTS_MAX: i32 = 10_000;

impl S3Bucket {
    pub(super) async fn write_parts(
        &self,
        key: &ObjectKey,
        parts: &mut (dyn PartSource + Send),
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.write_marked_parts(key, parts, headers, condition, Mark::of(headers)).await
    }

    pub(super) async fn write_marked_parts(
        &self,
        key: &ObjectKey,
        parts: &mut (dyn PartSource + Send),
        headers: &Headers,
        condition: &Condition,
        mark: Mark<'_>,
    ) -> Result<Version, BucketError> {
        let copies = self.capabilities().part_copy;
        let mut pieces = Pieces { parts, copies, split: VecDeque::new() };
        let Some(first) = pieces.next().await? else {
            // An object in no parts cannot be completed.
            return Ok(self.write_marked(key, bytes::Bytes::new(), headers, condition, mark).await?);
        };
        let upload = self.begin(key, headers).await?;
        let written = async {
            if let Some(uploads) = &self.uploads {
                uploads.begun(key, &upload.target.id).await?;
            }
            let parts = upload.send(first, &mut pieces).await?;
            upload.complete(parts, condition, mark).await.map_err(BucketError::from)
        };
        let written = written.await;
        match written {
            Ok(_) => upload.keep(),
            Err(_) => upload.abort().await,
        }
        written
    }

    async fn begin(&self, key: &ObjectKey, headers: &Headers) -> Result<Upload, Failure> {
        let output = attempts(Load::Light, || async {
            let request = with_headers!(self.client().create_multipart_upload(), headers);
            Ok(request.bucket(self.name()).key(key.as_str()).send().await?)
        })
        .await?;
        let id = output.upload_id.ok_or_else(|| Failure::damaged("an upload without a name"))?;
        Ok(Upload { target: Target { bucket: self.clone(), key: key.clone(), id }, pending: true })
    }

    /// One that is not there any more is aborted.
    pub(super) async fn abort_upload(&self, key: &ObjectKey, id: &str) -> Result<(), Failure> {
        let aborted = attempts(Load::Light, || async {
            self.client().abort_multipart_upload().bucket(self.name()).key(key.as_str()).upload_id(id).send().await?;
            Ok(())
        });
        match aborted.await {
            Err(failure) if failure.kind == Kind::NoUpload => Ok(()),
            aborted => aborted,
        }
    }
}

/// Gives parts that the bucket can take.
struct Pieces<'a> {
    parts: &'a mut (dyn PartSource + Send),
    /// Whether the bucket copies parts itself.
    copies: bool,
    split: VecDeque<Part>,
}

impl Pieces<'_> {
    async fn next(&mut self) -> Result<Option<Part>, BucketError> {
        if let Some(piece) = self.split.pop_front() {
            return Ok(Some(piece));
        }
        match self.parts.next().await? {
            Some(Part::Copy { key, version, range }) if !self.copies => {
                self.split = split(range)
                    .map(|range| Part::Copy { key: key.clone(), version: version.clone(), range })
                    .collect();
                Ok(self.split.pop_front())
            }
            part => Ok(part),
        }
    }
}

/// Pieces of about the same size, so that none is too small to be a part.
fn split(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let count = range.len().div_ceil(PART_BYTES).max(1);
    let cut = move |n: u64| range.start + (u128::from(range.len()) * u128::from(n) / u128::from(count)) as u64;
    (0..count).map(move |n| ByteRange::new(cut(n), cut(n + 1)))
}

/// An upload that is aborted when it is dropped before it is complete.
struct Upload {
    target: Target,
    pending: bool,
}

#[derive(Clone)]
struct Target {
    bucket: S3Bucket,
    key: ObjectKey,
    id: String,
}

impl Upload {
    /// Send all parts; those that are under way are ended when one fails.
    async fn send(&self, first: Part, pieces: &mut Pieces<'_>) -> Result<Vec<CompletedPart>, BucketError> {
        let mut running = JoinSet::new();
        let mut done = Vec::new();
        let mut next = Some(first);
        let mut number = 0;
        let outcome = loop {
            if running.len() == PARTS_AT_ONCE || next.is_none() {
                match running.join_next().await {
                    Some(Ok(Ok(part))) => done.push(part),
                    Some(Ok(Err(error))) => break Err(error),
                    Some(Err(error)) => break Err(BucketError::Away(format!("a part's task ended: {error}"))),
                    None => break Ok(()),
                }
            }
            let Some(part) = next.take() else { continue };
            number += 1;
            if number > PARTS_MAX {
                break Err(BucketError::Unsupported(format!("an object of more than {PARTS_MAX} parts")));
            }
            let target = self.target.clone();
            running.spawn(async move { target.part(part, number).await });
            match pieces.next().await {
                Ok(part) => next = part,
                Err(error) => break Err(error),
            }
        };
        running.shutdown().await;
        outcome?;
        done.sort_by_key(|part: &CompletedPart| part.part_number);
        Ok(done)
    }

    async fn complete(
        &self,
        parts: Vec<CompletedPart>,
        condition: &Condition,
        mark: Mark<'_>,
    ) -> Result<Version, Failure> {
        let Target { bucket, key, id } = &self.target;
        let capable = bucket.capabilities().conditional_complete;
        let (none_match, matches) = condition.headers();
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        // The bucket may put the object together before it answers.
        let completed = attempts(Load::Copied(u64::from(u32::MAX)), || async {
            let mut request = bucket.client().complete_multipart_upload();
            if capable {
                request = request.set_if_none_match(none_match.clone()).set_if_match(matches.clone());
            } else if let Some(version) = bucket.look_first(key, condition, mark).await? {
                return Ok(version);
            }
            let request = request.bucket(bucket.name()).key(key.as_str()).upload_id(id);
            let output = request.multipart_upload(parts.clone()).send().await?;
            version(output.e_tag, output.version_id)
        });
        match completed.await {
            Err(failure) if matches!(failure.kind, Kind::Condition | Kind::Absent | Kind::NoUpload) => {
                match bucket.own_effect(key, mark).await {
                    // Nothing is said about the object when somebody else has aborted the upload.
                    Err(own) if own.kind == Kind::Condition => Err(failure),
                    own => own,
                }
            }
            completed => completed,
        }
    }

    fn keep(mut self) {
        self.pending = false;
        self.target.ended(false);
    }

    async fn abort(mut self) {
        self.pending = false;
        self.target.abort().await;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.pending
            && let Ok(runtime) = Handle::try_current()
        {
            let target = self.target.clone();
            runtime.spawn(async move { target.abort().await });
        }
    }
}

impl Target {
    async fn part(&self, part: Part, number: i32) -> Result<CompletedPart, BucketError> {
        let etag = match part {
            Part::Bytes(bytes) => self.send(bytes, number).await?,
            Part::Copy { key, version, range } if self.bucket.capabilities().part_copy => {
                self.copy(&key, &version, range, number).await.map_err(|failure| match failure.kind {
                    Kind::Absent => BucketError::Changed,
                    _ => failure.into(),
                })?
            }
            Part::Copy { key, version, range } => {
                let bytes = self.bucket.read(&key, &version, range).await?;
                if bytes.len() as u64 != range.len() {
                    return Err(BucketError::Wrong("a part's range goes over its object's end".to_owned()));
                }
                self.send(bytes, number).await?
            }
        };
        Ok(CompletedPart::builder().e_tag(etag).part_number(number).build())
    }

    /// The request's signature has the SHA-256 of the bytes: the server checks what arrived.
    async fn send(&self, bytes: bytes::Bytes, number: i32) -> Result<String, Failure> {
        let output = attempts(Load::Bytes(bytes.len() as u64), || async {
            let request = self.bucket.client().upload_part().bucket(self.bucket.name()).key(self.key.as_str());
            Ok(request.upload_id(&self.id).part_number(number).body(bytes.clone().into()).send().await?)
        })
        .await?;
        output.e_tag.ok_or_else(|| Failure::damaged("a part without an ETag"))
    }

    async fn copy(&self, key: &ObjectKey, version: &Version, range: ByteRange, number: i32) -> Result<String, Failure> {
        let now = self.copy_from(key, version, None, range, number).await;
        match (now, &version.id) {
            (Err(failure), Some(id)) if matches!(failure.kind, Kind::Condition | Kind::Absent) => {
                self.copy_from(key, version, Some(id), range, number).await
            }
            (other, _) => other,
        }
    }

    async fn copy_from(
        &self,
        key: &ObjectKey,
        version: &Version,
        id: Option<&str>,
        range: ByteRange,
        number: i32,
    ) -> Result<String, Failure> {
        let output = attempts(Load::Copied(range.len()), || async {
            let request = self.bucket.client().upload_part_copy().bucket(self.bucket.name()).key(self.key.as_str());
            let request = request
                .upload_id(&self.id)
                .part_number(number)
                .copy_source(text::copy_source(self.bucket.name(), key.as_str(), id))
                .copy_source_if_match(&version.etag)
                .copy_source_range(format!("bytes={}-{}", range.start, range.end - 1));
            Ok(request.send().await?)
        })
        .await?;
        let etag = output.copy_part_result.and_then(|result| result.e_tag);
        etag.ok_or_else(|| Failure::damaged("a part without an ETag"))
    }

    /// Failing that, the parts lie in the bucket, and cost, until somebody aborts the upload: who keeps the log, or the bucket's rule for
    /// incomplete uploads.
    async fn abort(&self) {
        let aborted = self.bucket.abort_upload(&self.key, &self.id).await;
        if let Err(failure) = &aborted {
            tracing::warn!(key = %self.key, error = failure.text, "parts of an upload that failed are left in the bucket");
        }
        self.ended(aborted.is_err());
    }

    fn ended(&self, may_be_left: bool) {
        if let Some(uploads) = &self.bucket.uploads {
            uploads.ended(&self.id, may_be_left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_split_into_pieces_that_can_be_parts() {
        for len in [1, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES - 1, (5 << 30) - 3] {
            let range = ByteRange::at(7, len);
            let pieces: Vec<_> = split(range).collect();
            assert_eq!(pieces[0].start, range.start);
            assert_eq!(pieces.last().unwrap().end, range.end);
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(pieces.iter().all(|piece| piece.len() <= PART_BYTES));
            assert!(pieces.len() == 1 || pieces.iter().all(|piece| piece.len() >= 5 << 20));
        }
    }
}
