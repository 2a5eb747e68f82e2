//! A bucket in memory, for property tests and the simulation.
//!
//! It keeps the contract of [`Bucket`] to the letter, and where that leaves room it does what S3 does: equal bytes have equal ETags, a listing tells of no
//! version ids, a write needs no version of an object that was deleted. Nothing in it is random, and its clock counts writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_types::{ByteRange, Timestamp};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::{
    Bucket, BucketError, Condition, Head, Headers, Listed, ObjectInfo, ObjectKey, PART_BYTES, Page, Part, PartSource,
    Source, UploadLog, Version,
};

/// As S3 has it.
const PAGE_KEYS_MAX: usize = 1000;
const PART_BYTES_MIN: u64 = 5 << 20;
const PART_BYTES_MAX: u64 = 5 << 30;
const PARTS_MAX: usize = 10_000;

/// What kind of request a call made of the bucket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RequestKind {
    Head,
    List,
    Get,
    Tags,
    Put,
    CreateUpload,
    UploadPart,
    CopyPart,
    CompleteUpload,
    AbortUpload,
    Copy,
    Delete,
}

/// A request, as the hook sees it that makes faults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub kind: RequestKind,
    /// Of the object that is to be read or written; of a listing, the prefix.
    pub key: ObjectKey,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    None,
    /// It has no effect, and no answer.
    Away,
    /// It has its effect, and no answer.
    LostAnswer,
    /// It has its effect so late, and its answer comes so long after that.
    Late {
        effect: Duration,
        answer: Duration,
    },
}

type Faults = Box<dyn Fn(&Request) -> Fault + Send + Sync>;

/// See the module.
pub struct MemoryBucket {
    url: String,
    /// Replaced and deleted versions can still be read.
    versions: bool,
    delay: Duration,
    faults: Mutex<Option<Faults>>,
    uploads: Mutex<Option<Arc<dyn UploadLog>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectKey, Object>,
    /// By id, with its key: all there ever were, in a bucket with versions.
    kept: BTreeMap<String, (ObjectKey, Object)>,
    writes: u64,
    /// Multipart uploads that were neither completed nor aborted.
    uploads: BTreeSet<u64>,
    uploads_begun: u64,
    requests: BTreeMap<RequestKind, u64>,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    /// Tags included.
    headers: Headers,
    modified: Timestamp,
    version: Version,
    archived: bool,
}

impl Object {
    fn info(&self) -> ObjectInfo {
        ObjectInfo {
            size: self.bytes.len() as u64,
            modified: self.modified,
            version: self.version.clone(),
            archived: self.archived,
            headers: Some(Headers { tags: None, ..self.headers.clone() }),
        }
    }

    fn listed(&self) -> ObjectInfo {
        let version = Version { etag: self.version.etag.clone(), id: None };
        ObjectInfo { headers: None, version, ..self.info() }
    }

    /// Whether it is the version that a caller means, who may have it from a listing.
    fn is(&self, version: &Version) -> bool {
        self.version.etag == version.etag && (version.id.is_none() || self.version.id == version.id)
    }

    fn readable(&self) -> Result<&Object, BucketError> {
        let class = || self.headers.storage_class.clone().unwrap_or_else(|| "GLACIER".to_owned());
        if self.archived { Err(BucketError::Archived(class())) } else { Ok(self) }
    }
}

impl State {
    fn version(&self, key: &ObjectKey, version: &Version) -> Result<&Object, BucketError> {
        if let Some((kept_key, object)) = version.id.as_ref().and_then(|id| self.kept.get(id))
            && kept_key == key
        {
            return object.readable();
        }
        let object = self.objects.get(key).ok_or(BucketError::Absent)?;
        if object.is(version) { object.readable() } else { Err(BucketError::Changed) }
    }

    fn check(&self, key: &ObjectKey, condition: &Condition) -> Result<(), BucketError> {
        let holds = match condition {
            Condition::Absent => !self.objects.contains_key(key),
            Condition::Is(version) => self.objects.get(key).is_some_and(|object| object.is(version)),
        };
        if holds { Ok(()) } else { Err(BucketError::Changed) }
    }

    /// `parts`: of how many, when it was written in parts.
    fn write(&mut self, key: &ObjectKey, bytes: Bytes, headers: Headers, parts: Option<usize>, keep: bool) -> Version {
        self.writes += 1;
        let id = keep.then(|| format!("v{}", self.writes));
        let version = Version { etag: etag(&bytes, parts), id: id.clone() };
        let modified = Timestamp { seconds: self.writes as i64, nanos: 0 };
        let object = Object { bytes, headers, modified, version: version.clone(), archived: false };
        if let Some(id) = id {
            self.kept.insert(id, (key.clone(), object.clone()));
        }
        self.objects.insert(key.clone(), object);
        version
    }

    fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>, delimited: bool, max: usize) -> Page {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let max = max.clamp(1, PAGE_KEYS_MAX);
        let mut entries = Vec::new();
        let mut from = match after {
            Some(after) if after >= prefix => Excluded(after.clone()),
            _ => Included(prefix.clone()),
        };
        while let Some((key, object)) = self.objects.range((from, Unbounded)).next() {
            let Some(rest) = key.as_str().strip_prefix(prefix.as_str()) else { break };
            let (entry, next) = match rest.split_once('/').filter(|_| delimited) {
                Some((segment, _)) => {
                    let common = &key.as_str()[..prefix.as_str().len() + segment.len() + 1];
                    let behind = [&common[..common.len() - 1], "0"].concat();
                    let (Some(common), Some(behind)) = (ObjectKey::new(common), ObjectKey::new(behind)) else { break };
                    (Listed::Prefix(common), Included(behind))
                }
                None => (Listed::Object(key.clone(), object.listed()), Excluded(key.clone())),
            };
            from = next;
            if matches!(&entry, Listed::Prefix(common) if Some(common) == after) {
                continue;
            }
            if entries.len() == max {
                return Page { entries, end: false };
            }
            entries.push(entry);
        }
        Page { entries, end: true }
    }
}

/// By the bytes alone, as in S3.
fn etag(bytes: &Bytes, parts: Option<usize>) -> String {
    let hash = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, bytes).hash(&mut hasher);
        hasher.finish()
    };
    let parts = parts.map(|count| format!("-{count}")).unwrap_or_default();
    format!("\"{:016x}{:016x}{parts}\"", hash(0), hash(1))
}

fn no_answer() -> BucketError {
    BucketError::Away("no answer".to_owned())
}

fn checked_len(range: ByteRange) -> Result<ByteRange, BucketError> {
    let too_long = || BucketError::Unsupported(format!("{} bytes in one request", range.len()));
    if range.len() > PART_BYTES { Err(too_long()) } else { Ok(range) }
}

fn cut(bytes: &Bytes, range: ByteRange) -> Bytes {
    let end = range.end.min(bytes.len() as u64);
    bytes.slice(range.start.min(end) as usize..end as usize)
}

impl MemoryBucket {
    /// Without versions, delay and faults.
    pub fn new(name: &str) -> MemoryBucket {
        MemoryBucket {
            url: format!("s3://{name}"),
            versions: false,
            delay: Duration::ZERO,
            faults: Mutex::new(None),
            uploads: Mutex::new(None),
            state: Mutex::new(State::default()),
        }
    }

    /// Keep each version, and give them ids.
    pub fn with_versions(self) -> MemoryBucket {
        MemoryBucket { versions: true, ..self }
    }

    /// Of each request, half of it before its effect and half of it after.
    pub fn with_delay(self, delay: Duration) -> MemoryBucket {
        MemoryBucket { delay, ..self }
    }

    /// Ask this what becomes of each request.
    pub fn set_faults(&self, faults: impl Fn(&Request) -> Fault + Send + Sync + 'static) {
        *self.faults.lock() = Some(Box::new(faults));
    }

    /// Tell this of uploads that begin from now on.
    pub fn set_uploads(&self, uploads: Arc<dyn UploadLog>) {
        *self.uploads.lock() = Some(uploads);
    }

    /// How many requests there were.
    pub fn requests(&self) -> BTreeMap<RequestKind, u64> {
        self.state.lock().requests.clone()
    }

    /// How many multipart uploads nobody completed or aborted.
    pub fn uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }

    /// Another tool writes, without a condition.
    pub fn put_object(&self, key: &ObjectKey, bytes: impl Into<Bytes>) -> Version {
        self.put_object_with(key, bytes, Headers::default())
    }

    pub fn put_object_with(&self, key: &ObjectKey, bytes: impl Into<Bytes>, headers: Headers) -> Version {
        self.state.lock().write(key, bytes.into(), headers, None, self.versions)
    }

    /// Another tool deletes.
    pub fn delete_object(&self, key: &ObjectKey) {
        self.state.lock().objects.remove(key);
    }

    /// The object moves to an archive, from which it cannot be read.
    pub fn archive_object(&self, key: &ObjectKey) {
        let mut state = self.state.lock();
        let State { objects, kept, .. } = &mut *state;
        if let Some(object) = objects.get_mut(key) {
            object.archived = true;
            if let Some((_, kept)) = object.version.id.as_ref().and_then(|id| kept.get_mut(id)) {
                kept.archived = true;
            }
        }
    }

    /// All there are now.
    pub fn objects(&self) -> BTreeMap<ObjectKey, Bytes> {
        let state = self.state.lock();
        state.objects.iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// What the object has beside its bytes, with its tags.
    pub fn headers(&self, key: &ObjectKey) -> Option<Headers> {
        self.state.lock().objects.get(key).map(|object| object.headers.clone())
    }

    async fn wait(&self) {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay / 2).await;
        }
    }

    /// One request: `effect`, and its answer if that arrives.
    async fn request<T>(
        &self,
        kind: RequestKind,
        key: &ObjectKey,
        effect: impl FnOnce(&mut State) -> Result<T, BucketError>,
    ) -> Result<T, BucketError> {
        self.wait().await;
        let request = Request { kind, key: key.clone() };
        let fault = self.faults.lock().as_ref().map_or(Fault::None, |faults| faults(&request));
        if let Fault::Late { effect, .. } = fault {
            tokio::time::sleep(effect).await;
        }
        let answer = {
            let mut state = self.state.lock();
            *state.requests.entry(kind).or_default() += 1;
            match fault {
                Fault::None | Fault::Late { .. } => effect(&mut state),
                Fault::Away => Err(no_answer()),
                Fault::LostAnswer => effect(&mut state).and(Err(no_answer())),
            }
        };
        self.wait().await;
        if let Fault::Late { answer, .. } = fault {
            tokio::time::sleep(answer).await;
        }
        // Whatever the answer would have been.
        if fault == Fault::LostAnswer { Err(no_answer()) } else { answer }
    }

    /// The bytes of all parts, and how many there are.
    async fn upload(
        &self,
        key: &ObjectKey,
        parts: &mut (dyn PartSource + Send),
    ) -> Result<(Bytes, usize), BucketError> {
        let mut bytes = BytesMut::new();
        let (mut count, mut last) = (0, PART_BYTES_MIN);
        while let Some(part) = parts.next().await? {
            if last < PART_BYTES_MIN || part.len() > PART_BYTES_MAX || count == PARTS_MAX {
                return Err(BucketError::Unsupported(format!(
                    "part {count} of {last} bytes, followed by {}",
                    part.len()
                )));
            }
            (count, last) = (count + 1, part.len());
            match part {
                Part::Bytes(part) => {
                    self.request(RequestKind::UploadPart, key, |_| Ok(())).await?;
                    bytes.extend_from_slice(&part);
                }
                Part::Copy { key: from, version, range } => {
                    let copied = self.request(RequestKind::CopyPart, key, |state| {
                        Ok(cut(&state.version(&from, &version)?.bytes, range))
                    });
                    bytes.extend_from_slice(&copied.await?);
                }
            }
        }
        Ok((bytes.freeze(), count))
    }
}

impl fmt::Debug for MemoryBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("MemoryBucket").field("url", &self.url).field("objects", &state.objects.len()).finish()
    }
}

#[async_trait]
impl Bucket for MemoryBucket {
    fn url(&self) -> &str {
        &self.url
    }

    async fn head(&self, key: &ObjectKey, unless: Option<&Version>) -> Result<Head, BucketError> {
        let answer = self.request(RequestKind::Head, key, |state| {
            Ok(match state.objects.get(key) {
                None => Head::Absent,
                Some(object) if unless.is_some_and(|version| object.is(version)) => Head::Same,
                Some(object) => Head::Object(object.info()),
            })
        });
        answer.await
    }

    async fn list(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
        delimited: bool,
        max: usize,
    ) -> Result<Page, BucketError> {
        self.request(RequestKind::List, prefix, |state| Ok(state.list(prefix, after, delimited, max))).await
    }

    async fn get(&self, key: &ObjectKey, version: &Version, range: ByteRange) -> Result<Bytes, BucketError> {
        let range = checked_len(range)?;
        self.request(RequestKind::Get, key, |state| Ok(cut(&state.version(key, version)?.bytes, range))).await
    }

    async fn tags(&self, key: &ObjectKey) -> Result<Vec<(String, String)>, BucketError> {
        let answer = self.request(RequestKind::Tags, key, |state| {
            let object = state.objects.get(key).ok_or(BucketError::Absent)?;
            Ok(object.headers.tags.clone().unwrap_or_default())
        });
        answer.await
    }

    async fn put(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        checked_len(ByteRange::at(0, bytes.len() as u64))?;
        let answer = self.request(RequestKind::Put, key, |state| {
            state.check(key, condition)?;
            Ok(state.write(key, bytes, headers.clone(), None, self.versions))
        });
        answer.await
    }

    async fn put_parts(
        &self,
        key: &ObjectKey,
        parts: &mut (dyn PartSource + Send),
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        let created = self.request(RequestKind::CreateUpload, key, |state| {
            state.uploads_begun += 1;
            state.uploads.insert(state.uploads_begun);
            Ok(state.uploads_begun)
        });
        let upload = created.await?;
        let (id, log) = (upload.to_string(), self.uploads.lock().clone());
        let written = async {
            if let Some(log) = &log {
                log.begun(key, &id).await?;
            }
            let (bytes, count) = self.upload(key, parts).await?;
            let completed = self.request(RequestKind::CompleteUpload, key, |state| {
                state.check(key, condition)?;
                if !state.uploads.remove(&upload) {
                    return Err(no_answer());
                }
                Ok(state.write(key, bytes, headers.clone(), Some(count), self.versions))
            });
            completed.await
        };
        let written = written.await;
        // When that fails, too, why nothing was written is the answer all the same.
        let is_left = written.is_err() && self.abort(key, &id).await.is_err();
        if let Some(log) = log {
            log.ended(&id, is_left);
        }
        written
    }

    async fn abort(&self, key: &ObjectKey, upload: &str) -> Result<(), BucketError> {
        let aborted = self.request(RequestKind::AbortUpload, key, |state| {
            if let Ok(upload) = upload.parse() {
                state.uploads.remove(&upload);
            }
            Ok(())
        });
        aborted.await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        source: Source<'_>,
        to: &ObjectKey,
        headers: Option<&Headers>,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        let answer = self.request(RequestKind::Copy, to, |state| {
            let Object { bytes, headers: had, .. } = state.version(from, source.version())?.clone();
            state.check(to, condition)?;
            let headers = match headers {
                // Tags that nobody read are not to be replaced by none.
                Some(headers) => Headers { tags: headers.tags.clone().or(had.tags), ..headers.clone() },
                None => had,
            };
            Ok(state.write(to, bytes, headers, None, self.versions))
        });
        answer.await
    }

    async fn delete(&self, key: &ObjectKey, version: &Version) -> Result<(), BucketError> {
        let answer = self.request(RequestKind::Delete, key, |state| match state.objects.get(key) {
            None => Ok(()),
            Some(object) if object.is(version) => {
                state.objects.remove(key);
                Ok(())
            }
            Some(_) => Err(BucketError::Changed),
        });
        answer.await
    }
}

#[cfg(test)]
mod tests;
