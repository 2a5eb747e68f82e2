//! What every [`Bucket`] promises, checked against one. What it cannot do by its [`Capabilities`] is left out.

use std::collections::BTreeMap;

use async_trait::async_trait;
use atoll_link::{
    Bucket, BucketError, Capabilities, Condition, Head, Headers, Listed, ObjectInfo, ObjectKey, PART_BYTES, Part,
    PartSource, Source, Version,
};
use atoll_types::ByteRange;
use bytes::Bytes;

/// Of a part that is not the last, in bytes.
const PART_MIN: usize = 5 << 20;

/// A bucket that lacks nothing.
pub const ALL: Capabilities = Capabilities {
    conditional_create: true,
    conditional_replace: true,
    conditional_delete: true,
    conditional_copy: true,
    conditional_complete: true,
    part_copy: true,
    versions: true,
    checksums: true,
    tags: true,
    key_beside_prefix: true,
    empty_segments: true,
    dot_segments: true,
    backslashes: true,
    long_segments: true,
    control_characters: true,
    ordered_listing: true,
};

pub async fn conformance(bucket: &dyn Bucket, can: Capabilities) {
    what_is_not_there_is_absent(bucket).await;
    a_write_takes_effect_on_its_condition_alone(bucket).await;
    what_an_object_has_comes_back(bucket, can).await;
    bytes_are_of_the_version_that_was_named(bucket, can).await;
    a_listing_has_every_key_once_however_it_is_cut(bucket, can).await;
    every_key_is_its_own(bucket, can).await;
    an_object_of_parts_has_them_in_order(bucket).await;
    an_object_of_parts_appears_on_its_condition_alone(bucket).await;
    a_copy_is_of_the_version_that_was_named(bucket, can).await;
    only_the_version_that_was_named_is_deleted(bucket).await;
}

pub fn key(text: impl Into<String>) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

/// As a writer sends them: with a generation of its own.
pub fn headers(generation: &str) -> Headers {
    let metadata = BTreeMap::from([("atoll-generation".to_owned(), generation.to_owned())]);
    Headers { metadata, ..Headers::default() }
}

pub async fn create(bucket: &dyn Bucket, at: &ObjectKey, bytes: impl Into<Bytes>) -> Version {
    let created = bucket.put(at, bytes.into(), &headers(&format!("created {at:?}")), &Condition::Absent).await;
    created.unwrap_or_else(|error| panic!("{at:?}: {error}"))
}

pub async fn there(bucket: &dyn Bucket, at: &ObjectKey) -> ObjectInfo {
    match bucket.head(at, None).await.unwrap() {
        Head::Object(info) => info,
        other => panic!("{at}: {other:?}"),
    }
}

pub async fn whole(bucket: &dyn Bucket, at: &ObjectKey) -> Bytes {
    let version = there(bucket, at).await.version;
    bucket.get(at, &version, ByteRange::at(0, PART_BYTES)).await.unwrap()
}

#[track_caller]
pub fn changed<T: std::fmt::Debug>(outcome: Result<T, BucketError>) {
    assert!(matches!(outcome, Err(BucketError::Changed)), "{outcome:?}");
}

/// Of a read of what is there no more: whether there is another version now is told or not.
#[track_caller]
pub fn gone(outcome: Result<Bytes, BucketError>) {
    assert!(matches!(outcome, Err(BucketError::Changed | BucketError::Absent)), "{outcome:?}");
}

fn never() -> Version {
    Version { etag: "\"00000000000000000000000000000000\"".into(), id: None }
}

/// Bytes of which no two pieces are the same.
pub fn bytes(len: usize, seed: u32) -> Bytes {
    (0..len.div_ceil(4) as u32).flat_map(|i| (i ^ seed.rotate_left(16)).to_le_bytes()).take(len).collect()
}

async fn what_is_not_there_is_absent(bucket: &dyn Bucket) {
    let at = key("absent/object");
    assert_eq!(bucket.head(&at, None).await.unwrap(), Head::Absent);
    assert_eq!(bucket.head(&at, Some(&never())).await.unwrap(), Head::Absent);
    gone(bucket.get(&at, &never(), ByteRange::new(0, 10)).await);
    let copy = bucket.copy(&at, Source::Version(&never()), &key("absent/copy"), None, &Condition::Absent).await;
    assert!(matches!(copy, Err(BucketError::Absent)), "{copy:?}");
    changed(bucket.put(&at, Bytes::new(), &headers("a"), &Condition::Is(never())).await);
    bucket.delete(&at, &never()).await.unwrap();
    let page = bucket.list(&key("absent/"), None, true, 10).await.unwrap();
    assert_eq!((page.entries, page.end), (Vec::new(), true));
}

async fn a_write_takes_effect_on_its_condition_alone(bucket: &dyn Bucket) {
    let at = key("write/object");
    let first = bucket.put(&at, "one".into(), &headers("1"), &Condition::Absent).await.unwrap();
    changed(bucket.put(&at, "two".into(), &headers("2"), &Condition::Absent).await);
    assert_eq!(whole(bucket, &at).await, "one");
    let second = bucket.put(&at, "three".into(), &headers("3"), &Condition::Is(first.clone())).await.unwrap();
    changed(bucket.put(&at, "four".into(), &headers("4"), &Condition::Is(first.clone())).await);
    assert_eq!(whole(bucket, &at).await, "three");

    let info = there(bucket, &at).await;
    assert_eq!((info.size, &info.version, info.archived), (5, &second, false));
    assert_ne!(first.etag, second.etag);
    assert_eq!(bucket.head(&at, Some(&second)).await.unwrap(), Head::Same);
    assert!(matches!(bucket.head(&at, Some(&first)).await.unwrap(), Head::Object(info) if info.version == second));
}

async fn what_an_object_has_comes_back(bucket: &dyn Bucket, can: Capabilities) {
    let metadata = [("atoll-generation", "1"), ("plain", "a b"), ("other", "é ☃\n=?"), ("spaced", " x ")];
    let given = Headers {
        content_type: Some("text/x-test".into()),
        content_encoding: Some("x-test".into()),
        content_language: Some("gsw".into()),
        content_disposition: Some("attachment; filename=\"a b\"".into()),
        cache_control: Some("max-age=60".into()),
        metadata: metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        tags: can.tags.then(|| vec![("a key".to_owned(), "a+b=c/d".to_owned()), ("z".to_owned(), String::new())]),
        ..Headers::default()
    };
    let (one, parts) = (key("headers/one"), key("headers/parts"));
    let version = bucket.put(&one, "x".into(), &given, &Condition::Absent).await.unwrap();
    bucket.put_parts(&parts, &mut Given::of(vec![Part::Bytes("x".into())]), &given, &Condition::Absent).await.unwrap();
    bucket.copy(&one, Source::Version(&version), &key("headers/copy"), None, &Condition::Absent).await.unwrap();
    for at in [one.clone(), parts, key("headers/copy")] {
        let found = there(bucket, &at).await.headers.unwrap();
        let kept = Headers {
            storage_class: found.storage_class.clone(),
            encryption: found.encryption.clone(),
            tags: None,
            ..given.clone()
        };
        assert_eq!(found, kept, "{at}");
        let mut tags = bucket.tags(&at).await.unwrap();
        tags.sort();
        assert_eq!(tags, given.tags.clone().unwrap_or_default(), "{at}");
    }
    let replaced = Headers { content_type: Some("text/other".into()), ..headers("2") };
    let at = key("headers/replaced");
    bucket.copy(&one, Source::Version(&version), &at, Some(&replaced), &Condition::Absent).await.unwrap();
    let found = there(bucket, &at).await.headers.unwrap();
    assert_eq!(found.content_type, replaced.content_type);
    assert_eq!(found.metadata, replaced.metadata);
}

async fn bytes_are_of_the_version_that_was_named(bucket: &dyn Bucket, can: Capabilities) {
    let at = key("bytes/object");
    let content = bytes(1000, 1);
    let first = create(bucket, &at, content.clone()).await;
    let get = async |version: &Version, start, end| bucket.get(&at, version, ByteRange::new(start, end)).await;
    for (start, end) in [(0, 1), (0, 1000), (10, 20), (999, 1000), (990, 2000), (0, PART_BYTES)] {
        let cut = content.slice(start as usize..end.min(1000) as usize);
        assert_eq!(get(&first, start, end).await.unwrap(), cut, "{start}..{end}");
    }
    for (start, end) in [(1000, 1001), (5000, 6000), (5, 5)] {
        assert_eq!(get(&first, start, end).await.unwrap(), "", "{start}..{end}");
    }
    let second = bucket.put(&at, "other".into(), &headers("2"), &Condition::Is(first.clone())).await.unwrap();
    if can.versions {
        assert_eq!(get(&first, 10, 20).await.unwrap(), content.slice(10..20));
        assert_eq!(get(&first, 1000, 1001).await.unwrap(), "");
    } else {
        changed(get(&first, 0, 10).await);
        // Behind the end of what is there now.
        changed(get(&first, 10, 20).await);
    }
    assert_eq!(get(&second, 0, 10).await.unwrap(), "other");
    bucket.delete(&at, &second).await.unwrap();
    match can.versions {
        true => assert_eq!(get(&second, 0, 10).await.unwrap(), "other"),
        false => gone(get(&second, 0, 10).await),
    }
    let too_long = get(&second, 0, PART_BYTES + 1).await;
    assert!(matches!(too_long, Err(BucketError::Unsupported(_))), "{too_long:?}");
    let empty = key("bytes/empty");
    let version = create(bucket, &empty, "").await;
    assert_eq!(bucket.get(&empty, &version, ByteRange::new(0, 10)).await.unwrap(), "");

    let large = key("bytes/large");
    let version = create(bucket, &large, bytes(PART_BYTES as usize, 2)).await;
    assert_eq!(
        bucket.get(&large, &version, ByteRange::at(0, PART_BYTES)).await.unwrap(),
        bytes(PART_BYTES as usize, 2)
    );
}

/// What follows the prefix of keys that are difficult; what `can` rules out is not there.
fn difficult(can: Capabilities) -> Vec<String> {
    let mut names: Vec<String> =
        ["a.b", "a b", "a+b c%20é", "?#&=<>\"'", "%2F", "%", "☃", "z/\u{10FFFF}x", "z/y", "z/yy/z", "z0"]
            .map(str::to_owned)
            .into();
    // Some servers have names of at most 255 bytes, of which they use some themselves.
    names.push(vec!["long".repeat(30); 7].join("/"));
    if can.control_characters {
        names.push("c/\u{1}\u{7f}".to_owned());
    }
    if can.backslashes {
        names.push("\\".to_owned());
    }
    if can.key_beside_prefix {
        names.extend(["b", "b/c", "b/c/d", "b-"].map(str::to_owned));
    }
    if can.empty_segments {
        names.extend(["d//e", "d///", "d/", "/f", "/"].map(str::to_owned));
    }
    if can.dot_segments {
        names.extend(["./g", "../h", "i/../j", ".", ".."].map(str::to_owned));
    }
    names
}

async fn a_listing_has_every_key_once_however_it_is_cut(bucket: &dyn Bucket, can: Capabilities) {
    let prefix = "listing/p/";
    let mut keys: Vec<String> = difficult(can).iter().map(|name| format!("{prefix}{name}")).collect();
    keys.sort();
    for outside in ["listing/o", "listing/p0", "listing/q/z"] {
        create(bucket, &key(outside), "x").await;
    }
    for at in &keys {
        create(bucket, &key(at), at.clone()).await;
    }
    for (prefix, delimited) in [(prefix, true), (prefix, false), ("listing/p/z", true), ("listing/p/z/", true)] {
        let mut expected: Vec<(bool, String)> = keys
            .iter()
            .filter_map(|key| {
                let rest = key.strip_prefix(prefix)?;
                let slash = rest.find('/').filter(|_| delimited);
                Some(slash.map_or((false, key.clone()), |slash| (true, format!("{prefix}{}", &rest[..=slash]))))
            })
            .collect();
        expected.dedup();
        for max in [1, 2, 3, 1000] {
            let mut found = Vec::new();
            let mut after: Option<ObjectKey> = None;
            loop {
                let page = bucket.list(&key(prefix), after.as_ref(), delimited, max).await.unwrap();
                assert!(page.entries.len() <= max && (page.end || !page.entries.is_empty()), "{page:?}");
                for entry in &page.entries {
                    assert!(after.as_ref().is_none_or(|after| entry.key() > after), "{entry:?} after {after:?}");
                    after = Some(entry.key().clone());
                    if let Listed::Object(key, info) = entry {
                        assert_eq!(info.size as usize, key.as_str().len());
                        assert!(!info.archived);
                    }
                    found.push((matches!(entry, Listed::Prefix(_)), entry.key().as_str().to_owned()));
                }
                if page.end {
                    break;
                }
            }
            assert_eq!(found, expected, "{prefix} {delimited} {max}");
        }
    }
    // From a place where there is no key, or another prefix.
    let from = async |after: &str| bucket.list(&key(prefix), Some(&key(after)), true, 1).await.unwrap();
    assert_eq!(from("listing/o").await.entries[0], from(prefix).await.entries[0]);
    assert_eq!(from("listing/p/y").await.entries[0].key().as_str(), "listing/p/z/");
    assert!(from("listing/q").await.entries.is_empty());
    let version = there(bucket, &key("listing/p/a.b")).await.version;
    let page = bucket.list(&key("listing/p/a.b"), None, false, 1).await.unwrap();
    assert!(matches!(&page.entries[0], Listed::Object(_, info) if info.version.etag == version.etag), "{page:?}");
}

async fn every_key_is_its_own(bucket: &dyn Bucket, can: Capabilities) {
    for name in difficult(can) {
        let at = key(format!("keys/{name}"));
        let first = create(bucket, &at, name.clone()).await;
        assert_eq!(whole(bucket, &at).await, name);
        let copy = key(format!("keys/copy/{name}"));
        bucket.copy(&at, Source::Version(&first), &copy, None, &Condition::Absent).await.unwrap();
        assert_eq!(whole(bucket, &copy).await, name);
        bucket.put(&at, "again".into(), &headers("2"), &Condition::Is(first)).await.unwrap();
        assert_eq!(whole(bucket, &copy).await, name);
        let version = there(bucket, &at).await.version;
        bucket.delete(&at, &version).await.unwrap();
        assert_eq!(bucket.head(&at, None).await.unwrap(), Head::Absent, "{at}");
    }
}

/// Parts, and possibly a failure after them.
pub struct Given {
    parts: std::vec::IntoIter<Part>,
    error: Option<BucketError>,
}

impl Given {
    pub fn of(parts: Vec<Part>) -> Given {
        Given { parts: parts.into_iter(), error: None }
    }
}

#[async_trait]
impl PartSource for Given {
    async fn next(&mut self) -> Result<Option<Part>, BucketError> {
        match (self.parts.next(), self.error.take()) {
            (Some(part), error) => {
                self.error = error;
                Ok(Some(part))
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }
}

async fn an_object_of_parts_has_them_in_order(bucket: &dyn Bucket) {
    let source = key("parts/source");
    let base = bytes(PART_BYTES as usize, 3);
    let version = create(bucket, &source, base.clone()).await;
    let copied = ByteRange::new(1000, 1000 + (6 << 20));
    let parts = vec![
        Part::Bytes(bytes(PART_MIN, 4)),
        Part::Copy { key: source.clone(), version: version.clone(), range: copied },
        Part::Bytes(bytes(PART_MIN, 5)),
        Part::Bytes(bytes(PART_MIN, 6)),
        Part::Bytes(bytes(PART_MIN, 7)),
        Part::Bytes(bytes(PART_MIN, 8)),
        Part::Copy { key: source.clone(), version, range: ByteRange::new(0, 10) },
    ];
    let mut expected = bytes(PART_MIN, 4).to_vec();
    expected.extend(&base[1000..1000 + (6 << 20)]);
    (5..=8).for_each(|seed| expected.extend(bytes(PART_MIN, seed)));
    expected.extend(&base[..10]);

    let at = key("parts/object");
    let version = bucket.put_parts(&at, &mut Given::of(parts), &headers("1"), &Condition::Absent).await.unwrap();
    let info = there(bucket, &at).await;
    assert_eq!((info.size, &info.version), (expected.len() as u64, &version));
    for start in (0..expected.len()).step_by(PART_BYTES as usize) {
        let range = ByteRange::at(start as u64, PART_BYTES);
        let found = bucket.get(&at, &version, range).await.unwrap();
        assert!(found == expected[start..expected.len().min(start + PART_BYTES as usize)], "from {start}");
    }

    let empty = key("parts/empty");
    bucket.put_parts(&empty, &mut Given::of(Vec::new()), &headers("1"), &Condition::Absent).await.unwrap();
    assert_eq!(there(bucket, &empty).await.size, 0);
}

async fn an_object_of_parts_appears_on_its_condition_alone(bucket: &dyn Bucket) {
    let at = key("conditions/object");
    let one = |text: &'static str| Given::of(vec![Part::Bytes(text.into())]);
    let first = bucket.put_parts(&at, &mut one("one"), &headers("1"), &Condition::Absent).await.unwrap();
    changed(bucket.put_parts(&at, &mut one("two"), &headers("2"), &Condition::Absent).await);
    assert_eq!(whole(bucket, &at).await, "one");
    let replace = Condition::Is(first.clone());
    let second = bucket.put_parts(&at, &mut one("three"), &headers("3"), &replace).await.unwrap();
    changed(bucket.put_parts(&at, &mut one("four"), &headers("4"), &replace).await);
    assert_eq!(whole(bucket, &at).await, "three");

    let stale = vec![Part::Copy { key: at.clone(), version: never(), range: ByteRange::new(0, 3) }];
    let replace = Condition::Is(second);
    changed(bucket.put_parts(&at, &mut Given::of(stale), &headers("5"), &replace).await);
    let failing = BucketError::Away("a test".into());
    let mut broken = Given { error: Some(failing), ..one("six") };
    let outcome = bucket.put_parts(&at, &mut broken, &headers("6"), &replace).await;
    assert!(matches!(outcome, Err(BucketError::Away(_))), "{outcome:?}");
    assert_eq!(whole(bucket, &at).await, "three");
}

async fn a_copy_is_of_the_version_that_was_named(bucket: &dyn Bucket, can: Capabilities) {
    let (from, to) = (key("copies/from"), key("copies/to"));
    let first = create(bucket, &from, "one").await;
    let copied = bucket.copy(&from, Source::Version(&first), &to, None, &Condition::Absent).await.unwrap();
    assert_eq!(there(bucket, &to).await.version, copied);
    // The generation says whose write a copy is.
    let copy = async |version: &Version, generation: &str, condition: &Condition| {
        bucket.copy(&from, Source::Version(version), &to, Some(&headers(generation)), condition).await
    };
    changed(copy(&first, "2", &Condition::Absent).await);
    changed(copy(&first, "3", &Condition::Is(never())).await);
    let second = bucket.put(&from, "two".into(), &headers("4"), &Condition::Is(first.clone())).await.unwrap();
    match can.versions {
        true => {
            let copied = copy(&first, "5", &Condition::Is(copied)).await.unwrap();
            assert_eq!(whole(bucket, &to).await, "one");
            copy(&second, "6", &Condition::Is(copied)).await.unwrap();
        }
        false => {
            changed(copy(&first, "5", &Condition::Is(copied.clone())).await);
            assert_eq!(whole(bucket, &to).await, "one");
            copy(&second, "6", &Condition::Is(copied)).await.unwrap();
        }
    }
    assert_eq!(whole(bucket, &to).await, "two");

    let (empty, to) = (key("copies/empty"), key("copies/empty-too"));
    let version = create(bucket, &empty, "").await;
    bucket.copy(&empty, Source::Version(&version), &to, None, &Condition::Absent).await.unwrap();
    assert_eq!(there(bucket, &to).await.size, 0);
}

async fn only_the_version_that_was_named_is_deleted(bucket: &dyn Bucket) {
    let at = key("delete/object");
    let first = create(bucket, &at, "one").await;
    let second = bucket.put(&at, "two".into(), &headers("2"), &Condition::Is(first.clone())).await.unwrap();
    changed(bucket.delete(&at, &first).await);
    assert_eq!(whole(bucket, &at).await, "two");
    bucket.delete(&at, &second).await.unwrap();
    assert_eq!(bucket.head(&at, None).await.unwrap(), Head::Absent);
    bucket.delete(&at, &second).await.unwrap();
}
