//! What a bucket can do, found out by trying.

use std::collections::BTreeSet;

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, EncodingType};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::failure::{Failure, Kind, Load, attempts, one_attempt};
use super::headers::version;
use super::{S3Bucket, text};
use crate::{BucketError, Condition, Head, ObjectKey};

/// What a bucket can do. `docs/links-buckets.md` says what each lack means.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Capabilities {
    /// PUT with `If-None-Match: *`.
    pub conditional_create: bool,
    /// PUT with `If-Match`.
    pub conditional_replace: bool,
    /// DELETE with `If-Match`.
    pub conditional_delete: bool,
    /// A condition on the target of a copy.
    pub conditional_copy: bool,
    /// A condition on the completion of an upload in parts.
    pub conditional_complete: bool,
    /// Parts that are copied within the bucket, from the version that is named and no other.
    pub part_copy: bool,
    /// A replaced object can still be read.
    pub versions: bool,
    /// Bytes that do not fit their checksum are refused.
    pub checksums: bool,
    pub tags: bool,
    /// An object `a` beside objects `a/…`.
    pub key_beside_prefix: bool,
    /// Objects `a//b` and `a/` are what they are called.
    pub empty_segments: bool,
    /// Likewise `a/./b` and `a/../b`.
    pub dot_segments: bool,
    /// Likewise `a\b`.
    pub backslashes: bool,
    /// What is between two `/` may have more than 255 bytes.
    pub long_segments: bool,
    /// A listing has control characters in keys as they are.
    pub control_characters: bool,
    /// Listings are in the order of the keys, as bytes.
    pub ordered_listing: bool,
}

impl Capabilities {
    /// Whether a PUT is refused when the condition does not hold.
    pub(super) fn checks(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent => self.conditional_create,
            Condition::Is(_) => self.conditional_replace,
        }
    }

    /// Why an object of this key would be taken for another one, or be listed as another one.
    pub(super) fn refuses(&self, key: &ObjectKey) -> Option<&'static str> {
        let key = key.as_str();
        // What XML has no characters for.
        let has_controls = key.contains(|c| matches!(c, '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}'));
        let has_empty = key.starts_with('/') || key.contains("//");
        let has_long = key.split('/').any(|segment| segment.len() > SEGMENT_BYTES);
        let has_dots = key.split('/').any(|segment| matches!(segment, "." | ".."));
        let rules = [
            (
                self.control_characters,
                has_controls,
                "the bucket does not list keys with control characters as they are",
            ),
            (self.backslashes, key.contains('\\'), "the bucket takes a backslash in a key for a slash"),
            (self.empty_segments, has_empty, "the bucket has no keys with empty segments"),
            (self.long_segments, has_long, "the bucket has no keys with segments of more than 255 bytes"),
            (self.dot_segments, has_dots, "the bucket has no keys with `.` or `..` as segments"),
        ];
        rules.into_iter().find(|(can, needs, _)| !can && *needs).map(|(.., why)| why)
    }
}

/// A version that no object has.
const NO_ETAG: &str = "\"00000000000000000000000000000000\"";
/// What a server that has objects as files has room for between two `/`.
const SEGMENT_BYTES: usize = 255;
/// Room for the names of the objects of a probe, below the prefix.
const NAME_BYTES: usize = 80;
/// What clearing away follows of a listing of versions.
const PAGES_MAX: u32 = 8;

impl S3Bucket {
    /// Find out what the bucket can do, with objects whose keys begin with `prefix` and `.atoll/probe-`; they are deleted in
    /// every case, whether the caller waits for the end or not.
    pub async fn probe(&self, prefix: &ObjectKey) -> Result<Capabilities, BucketError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| BucketError::Away(format!("no random numbers: {error}")))?;
        let base = format!("{prefix}.atoll/probe-{}", hex::encode(random));
        if base.len() + NAME_BYTES > ObjectKey::BYTES_MAX {
            return Err(BucketError::Unsupported(format!("a prefix of {} bytes", prefix.as_str().len())));
        }
        let probe = Probe { bucket: self.clone(), base, made: Mutex::default() };
        let task = tokio::spawn(async move {
            let found = probe.look().await;
            let cleared = probe.clear().await;
            found.and_then(|found| cleared.map(|()| found))
        });
        let found = task.await.map_err(|error| BucketError::Away(format!("the probe ended: {error}")))??;
        self.assume(found);
        Ok(found)
    }
}

struct Probe {
    bucket: S3Bucket,
    base: String,
    /// What may have been written, and versions of it: not all of it need be in a listing.
    made: Mutex<BTreeSet<(String, Option<String>)>>,
}

/// Conditions of a request: what `If-None-Match` and `If-Match` say.
type Conditions<'a> = (Option<&'a str>, Option<&'a str>);

const CREATE: Conditions<'static> = (Some("*"), None);
const ANOTHER: Conditions<'static> = (None, Some(NO_ETAG));
const NONE: Conditions<'static> = (None, None);

fn is(etag: &str) -> Conditions<'_> {
    (None, Some(etag))
}

impl Probe {
    async fn look(&self) -> Result<Capabilities, Failure> {
        let mut found = Capabilities::default();
        let object = self.key("object");
        let (first, id) = self.put(&object, "one", NONE).await?;
        found.versions = id.is_some();
        found.conditional_create = refuses(self.put(&object, "two", CREATE).await)?
            && allows(self.put(&self.key("created"), "one", CREATE).await)?;
        let etag = self.etag(&object).await?.unwrap_or(first);
        found.conditional_replace =
            refuses(self.put(&object, "three", ANOTHER).await)? && allows(self.put(&object, "four", is(&etag)).await)?;
        found.checksums = self.refuses_wrong_checksum().await?;
        found.tags = self.keeps_tags().await?;
        found.conditional_copy = self.copies_on_condition(&object).await?;
        (found.part_copy, found.conditional_complete) = self.parts(&object).await?;
        found.conditional_delete = self.deletes_on_condition(&object).await?;
        found.key_beside_prefix = self.holds(&["beside", "beside/below"]).await?;
        found.empty_segments = self.holds(&["empty//below", "empty/"]).await?;
        found.dot_segments = self.holds(&["dots/./below", "dots/../below"]).await?;
        found.backslashes = self.holds(&["back\\slash"]).await?;
        found.long_segments = self.has_long_segments().await?;
        found.ordered_listing = self.lists_in_order().await?;
        // The last: some listings are not readable with these.
        found.control_characters = self.lists_control_characters().await?;
        Ok(found)
    }

    /// The key of an object that is going to be written.
    fn key(&self, name: &str) -> String {
        let key = format!("{}/{name}", self.base);
        self.note(&key, None);
        key
    }

    fn note(&self, key: &str, version: Option<String>) {
        self.made.lock().insert((key.to_owned(), version));
    }

    async fn put(
        &self,
        key: &str,
        text: &'static str,
        (none_match, matches): Conditions<'_>,
    ) -> Result<(String, Option<String>), Failure> {
        attempts(Load::Light, || async {
            let request = self.bucket.client().put_object().bucket(self.bucket.name()).key(key);
            let request = request.set_if_none_match(none_match.map(str::to_owned));
            let request = request.set_if_match(matches.map(str::to_owned));
            let output = request.body(Bytes::from_static(text.as_bytes()).into()).send().await?;
            let version = version(output.e_tag, output.version_id)?;
            self.note(key, version.id.clone());
            Ok((version.etag, version.id))
        })
        .await
    }

    /// `None`: there is no object.
    async fn etag(&self, key: &str) -> Result<Option<String>, Failure> {
        match self.bucket.look(&object_key(key)?, None, None).await? {
            Head::Object(info) => Ok(Some(info.version.etag)),
            _ => Ok(None),
        }
    }

    async fn refuses_wrong_checksum(&self) -> Result<bool, Failure> {
        let key = self.key("checksum");
        let request = self.bucket.client().put_object().bucket(self.bucket.name()).key(&key);
        let request = request.body(Bytes::from_static(b"probe").into()).checksum_crc32_c("AAAAAA==");
        // One attempt: the failure that is looked for is one that is worth another attempt anywhere else.
        match one_attempt(async { Ok(request.send().await?) }).await {
            Ok(output) => {
                self.note(&key, output.version_id);
                Ok(false)
            }
            Err(failure) if matches!(failure.kind, Kind::Damaged | Kind::Unsupported) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    async fn keeps_tags(&self) -> Result<bool, Failure> {
        let key = self.key("tags");
        let put = attempts(Load::Light, || async {
            let request = self.bucket.client().put_object().bucket(self.bucket.name()).key(&key);
            let output = request.tagging("atoll=probe").body(Bytes::new().into()).send().await?;
            self.note(&key, output.version_id);
            Ok(())
        });
        if !allows(put.await)? {
            return Ok(false);
        }
        let tags = self.bucket.read_tags(&object_key(&key)?, None).await?;
        Ok(tags == [("atoll".to_owned(), "probe".to_owned())])
    }

    async fn copies_on_condition(&self, object: &str) -> Result<bool, Failure> {
        let target = self.key("copy");
        self.copy(object, &target, NONE).await?;
        let Some(etag) = self.etag(&target).await? else { return Ok(false) };
        Ok(refuses(self.copy(object, &target, CREATE).await)?
            && refuses(self.copy(object, &target, ANOTHER).await)?
            && allows(self.copy(object, &target, is(&etag)).await)?)
    }

    async fn copy(&self, from: &str, to: &str, (none_match, matches): Conditions<'_>) -> Result<(), Failure> {
        attempts(Load::Light, || async {
            let request = self.bucket.client().copy_object().bucket(self.bucket.name()).key(to);
            let request = request.set_if_none_match(none_match.map(str::to_owned));
            let request = request.set_if_match(matches.map(str::to_owned));
            let output = request.copy_source(text::copy_source(self.bucket.name(), from, None)).send().await?;
            self.note(to, output.version_id);
            Ok(())
        })
        .await
    }

    /// Whether parts are copied, and whether an upload is completed on conditions.
    async fn parts(&self, object: &str) -> Result<(bool, bool), Failure> {
        let target = self.key("parts");
        let (etag, _) = self.put(&target, "before", NONE).await?;
        let begun = attempts(Load::Light, || async {
            Ok(self.bucket.client().create_multipart_upload().bucket(self.bucket.name()).key(&target).send().await?)
        });
        let begun = match begun.await {
            Ok(output) => output.upload_id,
            Err(failure) if failure.kind == Kind::Unsupported => return Ok((false, false)),
            Err(failure) => return Err(failure),
        };
        let upload = begun.ok_or_else(|| Failure::damaged("an upload without a name"))?;
        let found = self.upload(object, &target, &etag, &upload).await;
        let request = self.bucket.client().abort_multipart_upload().bucket(self.bucket.name()).key(&target);
        // It is complete if all went well, and then there is none any more.
        let _ = one_attempt(async { Ok(request.upload_id(&upload).send().await?) }).await;
        found
    }

    async fn upload(&self, object: &str, target: &str, etag: &str, upload: &str) -> Result<(bool, bool), Failure> {
        let source = self.etag(object).await?.unwrap_or_default();
        let copies = refuses(self.copy_part(object, NO_ETAG, target, upload).await)?;
        let part = match copies {
            true => self.copy_part(object, &source, target, upload).await.map(Some),
            false => Ok(None),
        };
        let (copies, part) = match part {
            Ok(Some(part)) => (true, part),
            Ok(None) => (false, self.put_part(target, upload).await?),
            Err(failure) if failure.kind == Kind::Unsupported => (false, self.put_part(target, upload).await?),
            Err(failure) => return Err(failure),
        };
        let completes = refuses(self.complete(target, upload, &part, CREATE).await)?
            && refuses(self.complete(target, upload, &part, ANOTHER).await)?
            && allows(self.complete(target, upload, &part, is(etag)).await)?;
        Ok((copies, completes))
    }

    async fn copy_part(&self, from: &str, etag: &str, to: &str, upload: &str) -> Result<String, Failure> {
        attempts(Load::Light, || async {
            let request = self.bucket.client().upload_part_copy().bucket(self.bucket.name()).key(to).upload_id(upload);
            let request = request.part_number(1).copy_source(text::copy_source(self.bucket.name(), from, None));
            let output = request.copy_source_if_match(etag).copy_source_range("bytes=1-2").send().await?;
            let etag = output.copy_part_result.and_then(|result| result.e_tag);
            etag.ok_or_else(|| Failure::damaged("a part without an ETag"))
        })
        .await
    }

    async fn put_part(&self, to: &str, upload: &str) -> Result<String, Failure> {
        attempts(Load::Light, || async {
            let request = self.bucket.client().upload_part().bucket(self.bucket.name()).key(to).upload_id(upload);
            let output = request.part_number(1).body(Bytes::from_static(b"part").into()).send().await?;
            output.e_tag.ok_or_else(|| Failure::damaged("a part without an ETag"))
        })
        .await
    }

    async fn complete(
        &self,
        key: &str,
        upload: &str,
        part: &str,
        (none_match, matches): Conditions<'_>,
    ) -> Result<(), Failure> {
        let part = CompletedPart::builder().e_tag(part).part_number(1).build();
        let parts = CompletedMultipartUpload::builder().parts(part).build();
        attempts(Load::Light, || async {
            let request = self.bucket.client().complete_multipart_upload().bucket(self.bucket.name()).key(key);
            let request = request.set_if_none_match(none_match.map(str::to_owned));
            let request = request.set_if_match(matches.map(str::to_owned));
            let output = request.upload_id(upload).multipart_upload(parts.clone()).send().await?;
            self.note(key, output.version_id);
            Ok(())
        })
        .await
    }

    async fn deletes_on_condition(&self, object: &str) -> Result<bool, Failure> {
        let delete = async |etag: &str| {
            let request = self.bucket.client().delete_object().bucket(self.bucket.name()).key(object);
            let output = one_attempt(async { Ok(request.if_match(etag).send().await?) }).await?;
            self.note(object, output.version_id);
            Ok::<(), Failure>(())
        };
        let Some(etag) = self.etag(object).await? else { return Ok(false) };
        Ok(refuses(delete(NO_ETAG).await)? && self.etag(object).await?.is_some() && allows(delete(&etag).await)?)
    }

    /// Whether objects of these names are there beside each other, under these names and no others.
    async fn holds(&self, names: &[&str]) -> Result<bool, Failure> {
        for name in names {
            match self.put(&self.key(name), "odd", NONE).await {
                Ok(_) => {}
                Err(failure) if matches!(failure.kind, Kind::Denied | Kind::Passing) => return Err(failure),
                // However a server says that it cannot.
                Err(_) => return Ok(false),
            }
        }
        let page = match self.bucket.page(&object_key(&format!("{}/", self.base))?, None, false, usize::MAX).await {
            // An answer that nobody can read, for what is in it.
            Err(failure) if failure.kind == Kind::Damaged => return Ok(false),
            page => page?,
        };
        let listed: BTreeSet<&str> = page.entries.iter().map(|entry| entry.key().as_str()).collect();
        let mut there = true;
        for name in names {
            let key = self.key(name);
            there &= listed.contains(key.as_str()) && self.etag(&key).await?.is_some();
        }
        Ok(there)
    }

    /// A server that has not does not even say that there is no such object.
    async fn has_long_segments(&self) -> Result<bool, Failure> {
        let Some(key) = ObjectKey::new(format!("{}/{}", self.base, "long".repeat(SEGMENT_BYTES / 2))) else {
            return Ok(true);
        };
        match self.bucket.look(&key, None, None).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.kind == Kind::Unsupported => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// In keys, and in what it repeats of the question.
    async fn lists_control_characters(&self) -> Result<bool, Failure> {
        let name = "control\u{1}";
        if !self.holds(&[name]).await? {
            return Ok(false);
        }
        let key = self.key(name);
        match self.bucket.answer(&object_key(&key)?, Some(key), None, false, 1).await {
            Ok(answer) => Ok(answer.entries.is_empty()),
            Err(failure) if failure.kind == Kind::Damaged => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// A server that has directories may list what is below `order/` in the place of `order`.
    async fn lists_in_order(&self) -> Result<bool, Failure> {
        for name in ["order/below", "order-", "order.x"] {
            self.put(&self.key(name), "order", NONE).await?;
        }
        let prefix = object_key(&format!("{}/order", self.base))?;
        let all = self.bucket.answer(&prefix, None, None, false, usize::from(u8::MAX)).await?;
        let first = self.bucket.answer(&prefix, None, None, true, 1).await?;
        let first: Vec<_> = first.entries.iter().map(|entry| entry.key().as_str()).collect();
        Ok(all.in_order && first == [self.key("order-")])
    }

    /// Delete all that the probe made, and older versions of it.
    async fn clear(&self) -> Result<(), Failure> {
        let base = format!("{}/", self.base);
        // Objects, their versions and what the server took for other keys; then the marks of all these deletions.
        self.delete_noted().await?;
        let page = self.bucket.page(&object_key(&base)?, None, false, usize::MAX).await?;
        page.entries.iter().for_each(|entry| self.note(entry.key().as_str(), None));
        self.delete_noted().await?;
        self.delete_noted().await?;
        let (mut key, mut id) = (None, None);
        for _ in 0..PAGES_MAX {
            let request = self.bucket.client().list_object_versions().bucket(self.bucket.name()).prefix(&base);
            let request = request.encoding_type(EncodingType::Url).set_key_marker(key).set_version_id_marker(id);
            // A server without versions need not know the question.
            let Ok(output) = one_attempt(async { Ok(request.send().await?) }).await else { return Ok(()) };
            let versions = output.versions.into_iter().flatten().map(|version| (version.key, version.version_id));
            let markers = output.delete_markers.into_iter().flatten().map(|marker| (marker.key, marker.version_id));
            let encoded = output.encoding_type == Some(EncodingType::Url);
            for (key, id) in versions.chain(markers) {
                let key = key.and_then(|key| if encoded { text::listed_key(&key) } else { Some(key) });
                let (Some(key), Some(id)) = (key, id) else { continue };
                self.delete(&key, Some(&id)).await?;
            }
            (key, id) = (output.next_key_marker, output.next_version_id_marker);
            if output.is_truncated != Some(true) {
                break;
            }
        }
        Ok(())
    }

    async fn delete_noted(&self) -> Result<(), Failure> {
        let noted = std::mem::take(&mut *self.made.lock());
        // Below before above: some servers have directories.
        for (key, version) in noted.iter().rev() {
            self.delete(key, version.as_deref()).await?;
        }
        Ok(())
    }

    async fn delete(&self, key: &str, id: Option<&str>) -> Result<(), Failure> {
        let deleted = attempts(Load::Light, || async {
            let request = self.bucket.client().delete_object().bucket(self.bucket.name()).key(key);
            let output = request.set_version_id(id.map(str::to_owned)).send().await?;
            if id.is_none() && output.version_id.is_some() {
                self.note(key, output.version_id);
            }
            Ok(())
        });
        match deleted.await {
            // It could not be written either.
            Err(failure) if matches!(failure.kind, Kind::Absent | Kind::Unsupported) => Ok(()),
            deleted => deleted,
        }
    }
}

fn object_key(key: &str) -> Result<ObjectKey, Failure> {
    ObjectKey::new(key).ok_or_else(|| Failure::new(Kind::Unsupported, "a key that is too long"))
}

/// Whether a request was refused whose condition did not hold.
fn refuses<T>(outcome: Result<T, Failure>) -> Result<bool, Failure> {
    match outcome {
        Ok(_) => Ok(false),
        Err(failure) if failure.kind == Kind::Condition => Ok(true),
        Err(failure) if failure.kind == Kind::Unsupported => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Whether a request was done whose condition held.
fn allows<T>(outcome: Result<T, Failure>) -> Result<bool, Failure> {
    match outcome {
        Ok(_) => Ok(true),
        Err(failure) if matches!(failure.kind, Kind::Condition | Kind::Unsupported) => Ok(false),
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_refused_that_a_bucket_has_no_place_for() {
        let none = Capabilities::default();
        let all = Capabilities {
            control_characters: true,
            backslashes: true,
            empty_segments: true,
            dot_segments: true,
            long_segments: true,
            ..none
        };
        let long = "a".repeat(SEGMENT_BYTES);
        for key in ["bell\u{7}", "a\nb", "a\\b", "a//b", "/a", "a//", "./a", "a/../b", "a/.", &format!("d/{long}a")] {
            let key = ObjectKey::new(key).unwrap();
            assert!(none.refuses(&key).is_some(), "{key}");
            assert_eq!(all.refuses(&key), None, "{key}");
        }
        for key in ["a", "a/b", "a/", "a/.b/..c", "ä b", "a\u{7f}", &format!("{long}/{long}")] {
            assert_eq!(none.refuses(&ObjectKey::new(key).unwrap()), None, "{key}");
        }
    }
}
