//! HEAD, GET and the tags.

use atoll_types::ByteRange;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};

use super::failure::{Failure, Kind, Load, attempts};
use super::{S3Bucket, headers};
use crate::{Head, ObjectInfo, ObjectKey, PART_BYTES, Version};

impl S3Bucket {
    /// What is at the key now, or which the version `id` is.
    pub(super) async fn look(
        &self,
        key: &ObjectKey,
        id: Option<&str>,
        unless: Option<&Version>,
    ) -> Result<Head, Failure> {
        attempts(Load::Light, || self.look_once(key, id, unless)).await
    }

    /// [`S3Bucket::look`] by one attempt: a step of another request's.
    pub(super) async fn look_once(
        &self,
        key: &ObjectKey,
        id: Option<&str>,
        unless: Option<&Version>,
    ) -> Result<Head, Failure> {
        match self.describe(key, id, unless).await {
            Ok(info) if unless.is_some_and(|known| known.etag == info.version.etag) => Ok(Head::Same),
            Ok(info) => Ok(Head::Object(info)),
            Err(failure) if failure.kind == Kind::Same && unless.is_some() => Ok(Head::Same),
            Err(failure) if failure.kind == Kind::Absent => Ok(Head::Absent),
            Err(failure) => Err(failure),
        }
    }

    async fn describe(
        &self,
        key: &ObjectKey,
        id: Option<&str>,
        unless: Option<&Version>,
    ) -> Result<ObjectInfo, Failure> {
        let request = self.client().head_object().bucket(self.name()).key(key.as_str());
        let request = request.set_if_none_match(unless.map(|version| version.etag.clone()));
        headers::info(request.set_version_id(id.map(str::to_owned)).send().await?)
    }

    pub(super) async fn read(&self, key: &ObjectKey, version: &Version, range: ByteRange) -> Result<Bytes, Failure> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if range.len() > PART_BYTES {
            return Err(Failure::new(Kind::Unsupported, format!("{} bytes in one request", range.len())));
        }
        let now = attempts(Load::Bytes(range.len()), || self.read_once(key, version, None, range)).await;
        match (now, &version.id) {
            // It was replaced or deleted; where the bucket keeps versions it can still be read.
            (Err(failure), Some(id)) if matches!(failure.kind, Kind::Condition | Kind::Absent) => {
                let kept = attempts(Load::Bytes(range.len()), || self.read_once(key, version, Some(id), range)).await;
                kept.map_err(gone)
            }
            (other, _) => other.map_err(gone),
        }
    }

    async fn read_once(
        &self,
        key: &ObjectKey,
        version: &Version,
        id: Option<&str>,
        range: ByteRange,
    ) -> Result<Bytes, Failure> {
        let request = self.client().get_object().bucket(self.name()).key(key.as_str());
        let request = request.if_match(&version.etag).set_version_id(id.map(str::to_owned));
        let output = match request.range(format!("bytes={}-{}", range.start, range.end - 1)).send().await {
            Ok(output) => output,
            Err(error) => {
                let failure = Failure::from(error);
                if failure.kind != Kind::Behind {
                    return Err(failure);
                }
                // Some servers look at the range before the condition: is it the end of this version, or of another one?
                let there = self.describe(key, id, None).await?;
                return if there.version.etag == version.etag && there.size <= range.start {
                    Ok(Bytes::new())
                } else {
                    Err(Failure::new(Kind::Condition, "the object is another one"))
                };
            }
        };
        if output.e_tag.is_some() && headers::version(output.e_tag.clone(), None)?.etag != version.etag {
            return Err(Failure::new(Kind::Condition, "the object is another one"));
        }
        let expected = expected_length(&output, range)?;
        body(output, expected).await
    }

    pub(super) async fn read_tags(&self, key: &ObjectKey, id: Option<&str>) -> Result<Vec<(String, String)>, Failure> {
        let output = attempts(Load::Light, || async {
            let request = self.client().get_object_tagging().bucket(self.name()).key(key.as_str());
            Ok(request.set_version_id(id.map(str::to_owned)).send().await?)
        });
        match output.await {
            Ok(output) => Ok(output.tag_set.into_iter().map(|tag| (tag.key, tag.value)).collect()),
            // Nothing can have tags there.
            Err(failure) if failure.kind == Kind::Unsupported => Ok(Vec::new()),
            Err(failure) => Err(failure),
        }
    }
}

/// A version that is not there any more was replaced or deleted.
fn gone(failure: Failure) -> Failure {
    match failure.kind {
        Kind::Absent => Failure::new(Kind::Condition, failure.text),
        _ => failure,
    }
}

/// How many bytes an answer has by what was asked for; an error when it says otherwise.
fn expected_length(output: &GetObjectOutput, range: ByteRange) -> Result<u64, Failure> {
    let wrong = || {
        let (range, length) = (output.content_range.as_deref().unwrap_or("none"), output.content_length.unwrap_or(-1));
        Failure::damaged(format!("an answer of another range ({range}, {length} bytes)"))
    };
    let length = headers::size(output.content_length)?;
    match &output.content_range {
        Some(told) => {
            let (first, last, size) = content_range(told).ok_or_else(wrong)?;
            let right = first == range.start && last.checked_add(1) == Some(range.end.min(size));
            (right && length == last + 1 - first).then_some(length).ok_or_else(wrong)
        }
        // The whole object: as it was asked for, if it is short.
        None if range.start == 0 && length <= range.len() => Ok(length),
        None => Err(wrong()),
    }
}

/// `bytes FIRST-LAST/SIZE`.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then_some((first, last, size))
}

async fn body(mut output: GetObjectOutput, expected: u64) -> Result<Bytes, Failure> {
    let broken = |error| Failure::new(Kind::Passing, format!("an answer broke off: {error}"));
    let mut bytes = BytesMut::with_capacity(expected as usize);
    while let Some(piece) = output.body.try_next().await.map_err(broken)? {
        if (bytes.len() + piece.len()) as u64 > expected {
            return Err(Failure::damaged("an answer is longer than it says"));
        }
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() as u64 != expected {
        return Err(Failure::damaged("an answer is shorter than it says"));
    }
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(length: i64, range: Option<&str>) -> GetObjectOutput {
        GetObjectOutput::builder().content_length(length).set_content_range(range.map(str::to_owned)).build()
    }

    #[test]
    fn bytes_of_another_range_are_refused() {
        let range = ByteRange::new(10, 20);
        let good = |length, text| expected_length(&answer(length, text), range).ok();
        assert_eq!(good(10, Some("bytes 10-19/100")), Some(10));
        assert_eq!(good(5, Some("bytes 10-14/15")), Some(5));
        for (length, text) in [
            (10, Some("bytes 0-9/100")),
            (9, Some("bytes 10-18/100")),
            (10, Some("bytes 10-18/19")),
            (10, Some("bytes 10-19/*")),
            (11, Some("bytes 10-20/100")),
            (10, Some("bytes 10-19/15")),
            (10, None),
        ] {
            assert_eq!(good(length, text), None, "{length} {text:?}");
        }
        assert_eq!(expected_length(&answer(7, None), ByteRange::new(0, 10)).ok(), Some(7));
        assert!(expected_length(&answer(11, None), ByteRange::new(0, 10)).is_err());
    }
}
