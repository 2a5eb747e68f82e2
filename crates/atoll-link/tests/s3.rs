//! Buckets of real S3 servers keep the promises of [`Bucket`], on good days and on bad ones.

mod conformance;
#[path = "../../../tests/e2e/faulty_s3.rs"]
mod faulty_s3;

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use atoll_link::{
    Bucket, BucketError, Capabilities, Condition, Head, Headers, Listed, PART_BYTES, Part, PartSource, S3Bucket, Source,
};
use atoll_object::ObjectOptions;
use atoll_types::ByteRange;
use aws_sdk_s3::types::{BucketVersioningStatus, EncodingType, VersioningConfiguration};
use aws_sdk_s3::{Client, config};
use bytes::Bytes;
use conformance::{ALL, Given, bytes, changed, conformance, create, headers, key, there, whole};
use faulty_s3::{Fault, Proxy};
use tokio::sync::Notify;

/// The first start may install the server.
const PATIENCE: Duration = Duration::from_secs(300);

struct Server {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    /// As `tests/s3/serve` knows it.
    async fn start(name: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/s3/serve"))
            .arg(folder.path().join("data"))
            .args([&port.to_string(), name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut server = Server { process, port, _folder: folder };
        let end = Instant::now() + PATIENCE;
        while server.client().head_bucket().bucket("bucket").send().await.is_err() {
            assert!(server.process.try_wait().unwrap().is_none(), "tests/s3/serve {name} ended");
            assert!(Instant::now() < end, "{name} does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        server
    }

    fn options(port: u16) -> ObjectOptions {
        ObjectOptions {
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            access_key_id: Some("atolltest".into()),
            secret_access_key: Some("atolltestsecret".into()),
            allow_http: true,
            ..ObjectOptions::default()
        }
    }

    fn bucket(&self, name: &str) -> S3Bucket {
        S3Bucket::open(&format!("s3://{name}"), &Self::options(self.port)).unwrap()
    }

    /// A client of its own, to see what is really there.
    fn client(&self) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(config::BehaviorVersion::v2026_01_12())
            .region(config::Region::new("us-east-1"))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(config::Credentials::new("atolltest", "atolltestsecret", None, None, "test"))
            .endpoint_url(format!("http://127.0.0.1:{}", self.port))
            .force_path_style(true);
        Client::from_conf(config.build())
    }

    async fn keep_versions(&self) {
        let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        let request = self.client().put_bucket_versioning().bucket("bucket").versioning_configuration(enabled);
        request.send().await.unwrap();
    }

    async fn unfinished_uploads(&self) -> usize {
        let uploads = self.client().list_multipart_uploads().bucket("bucket").send().await.unwrap();
        uploads.uploads.unwrap_or_default().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // With whatever the script started.
        let group = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.process.wait();
    }
}

/// The promises are kept with what the probe finds, and by the replacements for what it does not.
async fn keeps_its_promises(server: Server, expected: Capabilities) {
    let bucket = server.bucket("bucket");
    let found = bucket.probe(&key("a prefix/")).await.unwrap();
    assert_eq!(found, expected);
    assert_eq!(bucket.capabilities(), expected);
    let left = server.client().list_object_versions().bucket("bucket").encoding_type(EncodingType::Url);
    let left = left.send().await.unwrap();
    assert_eq!((left.versions, left.delete_markers), (None, None), "the probe left something behind");
    conformance(&bucket, found).await;
    assert_eq!(server.unfinished_uploads().await, 0);

    server.client().create_bucket().bucket("replaced").send().await.unwrap();
    conformance(&server.bucket("replaced"), Capabilities { versions: false, ..found }).await;
}

/// Objects are files there, with their keys as paths.
const VERSITYGW: Capabilities = Capabilities {
    conditional_copy: false,
    versions: false,
    key_beside_prefix: false,
    empty_segments: false,
    dot_segments: false,
    long_segments: false,
    control_characters: false,
    ..ALL
};

const MOTO: Capabilities = Capabilities {
    conditional_copy: false,
    conditional_complete: false,
    part_copy: false,
    versions: false,
    checksums: false,
    control_characters: false,
    ..ALL
};

/// Objects are entries of directories there.
const SEAWEEDFS: Capabilities = Capabilities {
    versions: false,
    empty_segments: false,
    dot_segments: false,
    backslashes: false,
    ordered_listing: false,
    ..ALL
};

#[tokio::test]
async fn versitygw_keeps_the_promises() {
    keeps_its_promises(Server::start("versitygw").await, VERSITYGW).await;
}

#[tokio::test]
async fn versitygw_with_versions_keeps_the_promises() {
    let server = Server::start("versions").await;
    server.keep_versions().await;
    keeps_its_promises(server, Capabilities { versions: true, ..VERSITYGW }).await;
}

#[tokio::test]
async fn moto_keeps_the_promises() {
    keeps_its_promises(Server::start("moto").await, MOTO).await;
}

#[tokio::test]
async fn moto_with_versions_keeps_the_promises() {
    let server = Server::start("moto").await;
    server.keep_versions().await;
    keeps_its_promises(server, Capabilities { versions: true, ..MOTO }).await;
}

#[tokio::test]
async fn seaweedfs_keeps_the_promises() {
    keeps_its_promises(Server::start("seaweedfs").await, SEAWEEDFS).await;
}

#[tokio::test]
async fn seaweedfs_with_versions_keeps_the_promises() {
    let server = Server::start("seaweedfs").await;
    server.keep_versions().await;
    keeps_its_promises(server, Capabilities { versions: true, ..SEAWEEDFS }).await;
}

#[tokio::test]
async fn an_archived_object_is_seen_and_an_error_to_read() {
    let server = Server::start("moto").await;
    let bucket = server.bucket("bucket");
    let at = key("object");
    let frozen = Headers { storage_class: Some("GLACIER".into()), ..headers("1") };
    let version = bucket.put(&at, "cold".into(), &frozen, &Condition::Absent).await.unwrap();
    assert!(there(&bucket, &at).await.archived);
    let page = bucket.list(&key(""), None, true, 10).await.unwrap();
    assert!(matches!(&page.entries[..], [Listed::Object(_, info)] if info.archived), "{page:?}");
    let outcome = bucket.get(&at, &version, ByteRange::new(0, 4)).await;
    assert!(matches!(outcome, Err(BucketError::Archived(_))), "{outcome:?}");
    let outcome = bucket.copy(&at, Source::Version(&version), &key("copy"), None, &Condition::Absent).await;
    assert!(matches!(outcome, Err(BucketError::Archived(_))), "{outcome:?}");
}

#[tokio::test]
async fn storage_class_and_encryption_outlive_rewrites_and_copies() {
    let server = Server::start("moto").await;
    let bucket = server.bucket("bucket");
    bucket.probe(&key("")).await.unwrap();
    let given = Headers {
        storage_class: Some("STANDARD_IA".into()),
        encryption: Some(("AES256".into(), None)),
        ..headers("1")
    };
    let kept = async |name: &str| {
        let found = there(&bucket, &key(name)).await.headers.unwrap();
        assert_eq!((found.storage_class, found.encryption), (given.storage_class.clone(), given.encryption.clone()));
    };
    let version = bucket.put(&key("put"), "x".into(), &given, &Condition::Absent).await.unwrap();
    kept("put").await;
    let mut parts = Given::of(vec![Part::Bytes("x".into())]);
    bucket.put_parts(&key("parts"), &mut parts, &given, &Condition::Absent).await.unwrap();
    kept("parts").await;
    bucket.copy(&key("put"), Source::Version(&version), &key("copy"), None, &Condition::Absent).await.unwrap();
    kept("copy").await;
}

/// A bucket behind a proxy, with what it can do.
async fn behind_a_proxy(server: &Server) -> (Proxy, S3Bucket) {
    let proxy = Proxy::start(server.port);
    let bucket = S3Bucket::open("s3://bucket", &Server::options(proxy.port)).unwrap();
    bucket.probe(&key("")).await.unwrap();
    (proxy, bucket)
}

#[tokio::test]
async fn a_call_is_one_request() {
    let server = Server::start("versitygw").await;
    let (proxy, bucket) = behind_a_proxy(&server).await;
    let at = key("object");
    let mut before = proxy.requests();
    let mut sent = || proxy.requests() - std::mem::replace(&mut before, proxy.requests());
    let version = create(&bucket, &at, "x").await;
    assert_eq!(sent(), 1);
    bucket.head(&at, Some(&version)).await.unwrap();
    assert_eq!(sent(), 1);
    bucket.get(&at, &version, ByteRange::new(0, 10)).await.unwrap();
    assert_eq!(sent(), 1);
    bucket.list(&key(""), None, true, 10).await.unwrap();
    assert_eq!(sent(), 1);
    bucket.copy(&at, Source::Version(&version), &key("copy"), None, &Condition::Absent).await.unwrap();
    assert!(sent() <= 5);
    bucket.delete(&at, &version).await.unwrap();
    assert!(sent() <= 2);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_known_for_its_own() {
    let server = Server::start("versitygw").await;
    let (proxy, bucket) = behind_a_proxy(&server).await;
    for least in [false, true] {
        if least {
            bucket.assume(Capabilities::default());
        }
        let at = |name: &str| key(format!("lost {least}/{name}"));
        proxy.set(Fault::Lossy);
        let first = bucket.put(&at("put"), "one".into(), &headers("1"), &Condition::Absent).await.unwrap();
        let replace = Condition::Is(first.clone());
        let second = bucket.put(&at("put"), "two".into(), &headers("2"), &replace).await.unwrap();
        // Another one's write is not taken for it.
        changed(bucket.put(&at("put"), "three".into(), &headers("3"), &replace).await);
        let parts = || Given::of(vec![Part::Bytes("parts".into())]);
        bucket.put_parts(&at("parts"), &mut parts(), &headers("4"), &Condition::Absent).await.unwrap();
        changed(bucket.put_parts(&at("parts"), &mut parts(), &headers("5"), &Condition::Absent).await);
        let copied =
            bucket.copy(&at("put"), Source::Version(&second), &at("copy"), None, &Condition::Absent).await.unwrap();
        bucket.delete(&at("copy"), &copied).await.unwrap();
        proxy.set(Fault::None);
        assert_eq!(whole(&bucket, &at("put")).await, "two");
        assert_eq!(whole(&bucket, &at("parts")).await, "parts");
        assert_eq!(bucket.head(&at("copy"), None).await.unwrap(), Head::Absent);
        assert_eq!(there(&bucket, &at("put")).await.version, second);
    }
}

#[tokio::test]
async fn reads_go_on_where_answers_break_off() {
    let server = Server::start("versitygw").await;
    let (proxy, bucket) = behind_a_proxy(&server).await;
    let at = key("object");
    let version = create(&bucket, &at, bytes(100_000, 1)).await;
    proxy.set(Fault::Flaky);
    for start in (0..100_000).step_by(10_000) {
        let range = ByteRange::at(start, 10_000);
        let found = bucket.get(&at, &version, range).await.unwrap();
        assert!(found == bytes(100_000, 1).slice(start as usize..start as usize + 10_000));
        assert_eq!(bucket.list(&key(""), None, true, 10).await.unwrap().entries.len(), 1);
        assert!(matches!(bucket.head(&at, None).await.unwrap(), Head::Object(_)));
    }
}

#[tokio::test]
async fn a_bucket_that_is_away_is_asked_a_few_times_and_no_more() {
    let server = Server::start("versitygw").await;
    let (proxy, bucket) = behind_a_proxy(&server).await;
    proxy.set(Fault::Unavailable);
    let before = proxy.requests();
    let outcome = bucket.head(&key("object"), None).await;
    assert!(matches!(outcome, Err(BucketError::Away(_))), "{outcome:?}");
    assert_eq!(proxy.requests() - before, 4);
    proxy.set(Fault::Away);
    let outcome = bucket.list(&key(""), None, true, 10).await;
    assert!(matches!(outcome, Err(BucketError::Away(_))), "{outcome:?}");
}

#[tokio::test]
async fn who_may_not_is_told_at_once() {
    let server = Server::start("versitygw").await;
    let proxy = Proxy::start(server.port);
    let options = ObjectOptions { secret_access_key: Some("wrong".into()), ..Server::options(proxy.port) };
    let bucket = S3Bucket::open("s3://bucket", &options).unwrap();
    let outcome = bucket.put(&key("object"), Bytes::new(), &headers("1"), &Condition::Absent).await;
    assert!(matches!(outcome, Err(BucketError::Denied(_))), "{outcome:?}");
    let missing = S3Bucket::open("s3://missing", &Server::options(proxy.port)).unwrap();
    let outcome = missing.list(&key(""), None, true, 10).await;
    assert!(matches!(outcome, Err(BucketError::Denied(_))), "{outcome:?}");
    assert!(proxy.requests() <= 3);
}

/// Gives so many parts, and then none, for ever.
struct Stalled {
    left: u32,
    stalls: Arc<Notify>,
}

#[async_trait]
impl PartSource for Stalled {
    async fn next(&mut self) -> Result<Option<Part>, BucketError> {
        if self.left == 0 {
            self.stalls.notify_one();
            return std::future::pending().await;
        }
        self.left -= 1;
        Ok(Some(Part::Bytes(bytes(5 << 20, self.left))))
    }
}

#[tokio::test]
async fn an_upload_that_nobody_waits_for_is_aborted() {
    let server = Server::start("versitygw").await;
    let bucket = server.bucket("bucket");
    bucket.probe(&key("")).await.unwrap();
    let (at, headers) = (key("object"), headers("1"));
    let stalls = Arc::new(Notify::new());
    let mut source = Stalled { left: 2, stalls: stalls.clone() };
    let writing = bucket.put_parts(&at, &mut source, &headers, &Condition::Absent);
    // When it asks for the third part, it knows the upload's name.
    let begun = async {
        stalls.notified().await;
        server.unfinished_uploads().await
    };
    tokio::select! {
        outcome = writing => panic!("{outcome:?}"),
        uploads = begun => assert_eq!(uploads, 1),
    }
    let end = Instant::now() + PATIENCE;
    while server.unfinished_uploads().await > 0 {
        assert!(Instant::now() < end, "the upload is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bucket.head(&at, None).await.unwrap(), Head::Absent);
}

#[tokio::test]
async fn a_large_object_is_copied_in_parts_where_a_copy_knows_no_condition() {
    let server = Server::start("versitygw").await;
    let bucket = server.bucket("bucket");
    let can = bucket.probe(&key("")).await.unwrap();
    bucket.assume(Capabilities { conditional_copy: false, ..can });
    let (from, to) = (key("from"), key("to"));
    let version = create(&bucket, &from, bytes(PART_BYTES as usize, 1)).await;
    bucket.copy(&from, Source::Version(&version), &to, None, &Condition::Absent).await.unwrap();
    assert!(whole(&bucket, &to).await == bytes(PART_BYTES as usize, 1));
    changed(bucket.copy(&from, Source::Version(&version), &to, Some(&headers("2")), &Condition::Absent).await);
    bucket.assume(Capabilities { conditional_copy: false, part_copy: false, ..can });
    bucket.copy(&from, Source::Version(&version), &key("again"), None, &Condition::Absent).await.unwrap();
    assert!(whole(&bucket, &key("again")).await == bytes(PART_BYTES as usize, 1));
    assert_eq!(server.unfinished_uploads().await, 0);
}
