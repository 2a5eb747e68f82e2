//! The contract of [`Bucket`], as a caller relies on it.

use std::sync::Arc;
use std::vec;

use proptest::prelude::*;

use super::*;

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

/// The bucket's answer. Without a delay it never waits.
fn now<T>(call: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(call)
}

fn put(bucket: &MemoryBucket, at: &str, bytes: &'static str, condition: &Condition) -> Result<Version, BucketError> {
    now(bucket.put(&key(at), Bytes::from(bytes), &Headers::default(), condition))
}

struct Parts(vec::IntoIter<Part>);

#[async_trait]
impl PartSource for Parts {
    async fn next(&mut self) -> Result<Option<Part>, BucketError> {
        Ok(self.0.next())
    }
}

fn put_parts(bucket: &MemoryBucket, parts: Vec<Part>, condition: &Condition) -> Result<Version, BucketError> {
    now(bucket.put_parts(&key("whole"), &mut Parts(parts.into_iter()), &Headers::default(), condition))
}

#[test]
fn a_write_takes_effect_only_when_its_condition_holds() {
    let bucket = MemoryBucket::new("b");
    let first = put(&bucket, "a", "1", &Condition::Absent).unwrap();
    assert!(matches!(put(&bucket, "a", "2", &Condition::Absent), Err(BucketError::Changed)));
    let second = put(&bucket, "a", "2", &Condition::Is(first.clone())).unwrap();
    assert!(matches!(put(&bucket, "a", "3", &Condition::Is(first.clone())), Err(BucketError::Changed)));
    assert!(matches!(put(&bucket, "b", "3", &Condition::Is(first.clone())), Err(BucketError::Changed)));
    assert!(matches!(now(bucket.delete(&key("a"), &first)), Err(BucketError::Changed)));
    assert_eq!(bucket.objects().into_values().collect::<Vec<_>>(), ["2"]);
    now(bucket.delete(&key("a"), &second)).unwrap();
    now(bucket.delete(&key("a"), &second)).unwrap();
    assert!(bucket.objects().is_empty());
}

#[test]
fn a_read_has_bytes_of_the_version_that_was_asked_for_or_none() {
    for versions in [false, true] {
        let bucket = MemoryBucket::new("b");
        let bucket = if versions { bucket.with_versions() } else { bucket };
        let first = bucket.put_object(&key("a"), "first");
        let get = |version| now(bucket.get(&key("a"), version, ByteRange::new(1, 99)));
        assert_eq!(get(&first).unwrap(), "irst");
        let second = bucket.put_object(&key("a"), "2");
        assert_eq!(get(&first).ok(), versions.then(|| Bytes::from("irst")));
        assert_eq!(get(&second).unwrap(), "");
        bucket.delete_object(&key("a"));
        assert_eq!(get(&first).ok(), versions.then(|| Bytes::from("irst")));
        let other = now(bucket.get(&key("b"), &first, ByteRange::new(0, 1)));
        assert!(matches!(other, Err(BucketError::Absent)));
    }
}

#[test]
fn a_version_from_a_listing_is_that_of_the_object() {
    let bucket = MemoryBucket::new("b").with_versions();
    let version = bucket.put_object(&key("a"), "1");
    let page = now(bucket.list(&key(""), None, true, 9)).unwrap();
    let [Listed::Object(_, listed)] = &page.entries[..] else { panic!("{page:?}") };
    assert_eq!((&listed.version.etag, &listed.version.id), (&version.etag, &None));
    assert_eq!(now(bucket.head(&key("a"), Some(&listed.version))).unwrap(), Head::Same);
    put(&bucket, "a", "2", &Condition::Is(listed.version.clone())).unwrap();
    let Head::Object(head) = now(bucket.head(&key("a"), Some(&listed.version))).unwrap() else { panic!("no object") };
    assert!(head.version.id.is_some());
    assert_eq!(now(bucket.head(&key("b"), None)).unwrap(), Head::Absent);
}

#[test]
fn an_archived_object_is_seen_and_not_read() {
    let bucket = MemoryBucket::new("b").with_versions();
    let version = bucket.put_object(&key("a"), "1");
    bucket.archive_object(&key("a"));
    assert!(matches!(now(bucket.get(&key("a"), &version, ByteRange::new(0, 1))), Err(BucketError::Archived(_))));
    assert!(matches!(now(bucket.head(&key("a"), None)), Ok(Head::Object(ObjectInfo { archived: true, .. }))));
}

#[test]
fn a_copy_has_all_that_the_object_has_unless_other_headers_are_given() {
    let bucket = MemoryBucket::new("b");
    let tags = Some(vec![("k".to_owned(), "v".to_owned())]);
    let had = Headers { content_type: Some("a/b".to_owned()), tags: tags.clone(), ..Headers::default() };
    let other = Headers::default();
    let version = bucket.put_object_with(&key("a"), "1", had.clone());
    let copy = |to: &str, headers| {
        now(bucket.copy(&key("a"), Source::Version(&version), &key(to), headers, &Condition::Absent))
    };
    copy("b", None).unwrap();
    assert_eq!(bucket.headers(&key("b")), Some(had));
    copy("c", Some(&other)).unwrap();
    assert_eq!(bucket.headers(&key("c")), Some(Headers { tags: tags.clone(), ..Headers::default() }));
    assert_eq!(now(bucket.tags(&key("c"))).ok(), tags);
    assert!(matches!(copy("c", None), Err(BucketError::Changed)));
    bucket.put_object(&key("a"), "2");
    assert!(matches!(copy("d", None), Err(BucketError::Changed)));
}

#[test]
fn parts_are_one_object_or_nothing_at_all() {
    let bucket = MemoryBucket::new("b");
    let big = Bytes::from(vec![7; PART_BYTES_MIN as usize]);
    let source = bucket.put_object(&key("source"), big.clone());
    let copy = || Part::Copy { key: key("source"), version: source.clone(), range: ByteRange::at(0, PART_BYTES_MIN) };
    let parts = || vec![copy(), Part::Bytes(big.clone()), Part::Bytes(Bytes::from("end"))];
    put_parts(&bucket, parts(), &Condition::Absent).unwrap();
    assert_eq!(bucket.objects()[&key("whole")].len() as u64, 2 * PART_BYTES_MIN + 3);
    assert!(matches!(put_parts(&bucket, parts(), &Condition::Absent), Err(BucketError::Changed)));
    let small = vec![Part::Bytes(Bytes::from("small")), Part::Bytes(big.clone())];
    bucket.delete_object(&key("whole"));
    assert!(matches!(put_parts(&bucket, small, &Condition::Absent), Err(BucketError::Unsupported(_))));
    bucket.put_object(&key("source"), "changed");
    assert!(matches!(put_parts(&bucket, parts(), &Condition::Absent), Err(BucketError::Changed)));
    assert!(!bucket.objects().contains_key(&key("whole")));
    assert_eq!(bucket.uploads(), 0);
    let requests = bucket.requests();
    assert_eq!((requests[&RequestKind::CreateUpload], requests[&RequestKind::AbortUpload]), (4, 3));
}

#[test]
fn a_fault_has_no_answer_and_its_effect_or_not() {
    let bucket = MemoryBucket::new("b");
    bucket.set_faults(|request| match request.key.as_str() {
        "away" => Fault::Away,
        "lost" => Fault::LostAnswer,
        _ => Fault::None,
    });
    for at in ["away", "lost", "here"] {
        let answer = put(&bucket, at, "1", &Condition::Absent);
        assert_eq!(matches!(answer, Err(BucketError::Away(_))), at != "here");
    }
    // An answer that was lost does not tell of a failure either.
    assert!(matches!(put(&bucket, "lost", "1", &Condition::Absent), Err(BucketError::Away(_))));
    assert_eq!(bucket.objects().keys().map(ObjectKey::as_str).collect::<Vec<_>>(), ["here", "lost"]);
    assert_eq!(bucket.requests()[&RequestKind::Put], 4);
}

#[test]
fn another_tool_can_come_between_a_request_and_its_effect() {
    let bucket = Arc::new(MemoryBucket::new("b"));
    let other = Arc::downgrade(&bucket);
    bucket.set_faults(move |request| {
        if let Some(bucket) = other.upgrade() {
            bucket.put_object(&request.key, "theirs");
        }
        Fault::None
    });
    assert!(matches!(put(&bucket, "a", "ours", &Condition::Absent), Err(BucketError::Changed)));
    assert_eq!(bucket.objects()[&key("a")], "theirs");
}

#[test]
fn a_delay_is_time_of_the_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let bucket = MemoryBucket::new("b").with_delay(Duration::from_secs(3600));
        let before = tokio::time::Instant::now();
        bucket.head(&key("a"), None).await.unwrap();
        assert_eq!(before.elapsed(), Duration::from_secs(3600));
    });
}

proptest! {
    #[test]
    fn pages_are_the_listing_whatever_their_size(
        keys in proptest::collection::btree_set("[a/!0]{1,5}", 0..12),
        prefix in "[a/]{0,2}",
        after in proptest::option::of("[a/!0]{0,4}"),
        delimited: bool,
        size in 1..4_usize,
    ) {
        let bucket = MemoryBucket::new("b");
        for text in &keys {
            bucket.put_object(&key(text), "");
        }
        let mut expected: Vec<String> = Vec::new();
        for text in &keys {
            let Some(rest) = text.strip_prefix(&prefix) else { continue };
            if after.as_ref().is_some_and(|after| text <= after) {
                continue;
            }
            let common = rest.split_once('/').filter(|_| delimited).map(|(segment, _)| format!("{prefix}{segment}/"));
            let entry = common.unwrap_or_else(|| text.clone());
            if after.as_ref() != Some(&entry) && expected.last() != Some(&entry) {
                expected.push(entry);
            }
        }
        let mut listed: Vec<String> = Vec::new();
        let mut from = after.as_deref().map(key);
        loop {
            let page = now(bucket.list(&key(&prefix), from.as_ref(), delimited, size)).unwrap();
            prop_assert!(page.entries.len() <= size);
            listed.extend(page.entries.iter().map(|entry| entry.key().to_string()));
            if page.end {
                break;
            }
            from = page.entries.last().map(|entry| entry.key().clone());
        }
        prop_assert_eq!(listed, expected);
    }
}
