//! PUT, DELETE, and conditions where the bucket knows none.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::failure::{Failure, Kind, Load, attempts};
use super::headers::{version, with_headers};
use super::{GENERATION, S3Bucket};
use crate::{Condition, Head, Headers, ObjectInfo, ObjectKey, Version};

impl Condition {
    /// As the headers `If-None-Match` and `If-Match` say it.
    pub(super) fn headers(&self) -> (Option<String>, Option<String>) {
        match self {
            Condition::Absent => (Some("*".to_owned()), None),
            Condition::Is(version) => (None, Some(version.etag.clone())),
        }
    }

    fn holds(&self, head: &Head) -> bool {
        match (self, head) {
            (Condition::Absent, Head::Absent) => true,
            (Condition::Is(version), Head::Object(there)) => there.version.etag == version.etag,
            _ => false,
        }
    }
}

/// Which effect a write was to have, so that it is recognised when its answer was lost.
#[derive(Clone, Copy)]
pub(super) enum Mark<'a> {
    /// The generation of what is written; without one nothing is recognised.
    Generation(Option<&'a str>),
    /// A copy with all that this object has.
    Like(&'a ObjectInfo),
}

impl<'a> Mark<'a> {
    pub fn of(headers: &'a Headers) -> Mark<'a> {
        Mark::Generation(headers.metadata.get(GENERATION).map(String::as_str))
    }

    fn is_on(self, there: &ObjectInfo) -> bool {
        let generation = |info: &ObjectInfo| info.headers.as_ref()?.metadata.get(GENERATION).cloned();
        match self {
            Mark::Generation(wanted) => wanted.is_some() && generation(there).as_deref() == wanted,
            Mark::Like(source) if generation(source).is_some() => generation(there) == generation(source),
            Mark::Like(source) => {
                (there.size, &there.version.etag, &there.headers)
                    == (source.size, &source.version.etag, &source.headers)
            }
        }
    }
}

impl S3Bucket {
    pub(super) async fn write(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, Failure> {
        self.write_marked(key, bytes, headers, condition, Mark::of(headers)).await
    }

    pub(super) async fn write_marked(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        headers: &Headers,
        condition: &Condition,
        mark: Mark<'_>,
    ) -> Result<Version, Failure> {
        let checksum = BASE64.encode(crc32c::crc32c(&bytes).to_be_bytes());
        let (none_match, matches) = condition.headers();
        let capable = self.capabilities().checks(condition);
        let written = attempts(Load::Bytes(bytes.len() as u64), || async {
            let mut request = with_headers!(self.client().put_object(), headers);
            if capable {
                request = request.set_if_none_match(none_match.clone()).set_if_match(matches.clone());
            } else if let Some(version) = self.look_first(key, condition, mark).await? {
                return Ok(version);
            }
            let request = request.bucket(self.name()).key(key.as_str()).body(bytes.clone().into());
            let output = request.checksum_crc32_c(&checksum).send().await?;
            if output.checksum_crc32_c.as_ref().is_some_and(|told| *told != checksum) {
                return Err(Failure::damaged("the bucket holds bytes with another checksum"));
            }
            version(output.e_tag, output.version_id)
        });
        match written.await {
            Err(failure) if matches!(failure.kind, Kind::Condition | Kind::Absent) => self.own_effect(key, mark).await,
            written => written,
        }
    }

    /// In place of a condition on the write that follows: another write between the two is lost. `Some`: an earlier attempt was
    /// the write.
    pub(super) async fn look_first(
        &self,
        key: &ObjectKey,
        condition: &Condition,
        mark: Mark<'_>,
    ) -> Result<Option<Version>, Failure> {
        match self.look_once(key, None, None).await? {
            head if condition.holds(&head) => Ok(None),
            Head::Object(there) if mark.is_on(&there) => Ok(Some(there.version)),
            _ => Err(Failure::new(Kind::Condition, "the object is another one")),
        }
    }

    /// A condition failed: by an earlier attempt of the same write, whose answer was lost?
    pub(super) async fn own_effect(&self, key: &ObjectKey, mark: Mark<'_>) -> Result<Version, Failure> {
        match self.look(key, None, None).await? {
            Head::Object(there) if mark.is_on(&there) => Ok(there.version),
            _ => Err(Failure::new(Kind::Condition, "the object is another one")),
        }
    }

    pub(super) async fn remove(&self, key: &ObjectKey, version: &Version) -> Result<(), Failure> {
        let capable = self.capabilities().conditional_delete;
        let condition = Condition::Is(version.clone());
        let removed = attempts(Load::Light, || async {
            let mut request = self.client().delete_object().bucket(self.name()).key(key.as_str());
            if capable {
                request = request.if_match(&version.etag);
            } else if !condition.holds(&self.look_once(key, None, None).await?) {
                return Err(Failure::new(Kind::Condition, "the object is another one"));
            }
            request.send().await?;
            Ok(())
        });
        match removed.await {
            Err(failure) if failure.kind == Kind::Absent => Ok(()),
            // It may have been deleted by an attempt whose answer was lost.
            Err(failure) if failure.kind == Kind::Condition => match self.look(key, None, None).await? {
                Head::Absent => Ok(()),
                _ => Err(failure),
            },
            removed => removed,
        }
    }
}
