//! A link that hears what a real S3 server tells of its bucket: what others change is seen without asking all the time.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Instant;

use crate::harness::*;
use crate::links::Plain;

/// Far longer than any test: what is seen of a known file was told.
pub const RECHECK: &str = "86400";

fn token(site: &Site, arguments: &[&str]) -> String {
    let made = site.atoll([&["--json", "token", "create"], arguments].concat()).must_succeed();
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    made["secret"].as_str().unwrap().to_owned()
}

pub fn http_port(site: &Site) -> u16 {
    site.address("http://").rsplit(':').next().unwrap().parse().unwrap()
}

/// A server whose volume `vol` has a listening link with `bucket/data` at `vol:/data`, and an S3 server that posts to it.
fn listening_site() -> (Site, Plain) {
    let mut site = Site::before_s3();
    site.serve = ["--http", "127.0.0.1:0"].map(String::from).to_vec();
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let port = http_port(&site);
    // The next server listens there, too.
    site.serve = vec!["--http".into(), format!("127.0.0.1:{port}")];
    let secret = token(&site, &["--events", "--volume", "vol"]);
    site.start_s3(&format!("http://127.0.0.1:{port}/events/{secret}"));
    let endpoint = format!("http://127.0.0.1:{}", site.s3_port());
    let link = ["link", "s3://bucket/data", "vol:/data", "--endpoint", &endpoint, "--freshness", "events"];
    site.atoll([&link[..], &["--recheck", RECHECK]].concat()).must_succeed();
    let plain = Plain::of(&site);
    (site, plain)
}

/// Post a document, and tell the status.
fn posted(port: u16, path: &str, header: &str, document: &[u8]) -> u16 {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}Content-Length: {}\r\n\r\n",
        document.len()
    );
    let answer = request(port, &[head.as_bytes(), document].concat()).expect("an answer");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

/// Wait until a path shows something, and print how long that took.
pub fn must_show(path: &Path, is_so: impl Fn(std::io::Result<Vec<u8>>) -> bool) {
    let began = Instant::now();
    eventually(&path.display().to_string(), || is_so(fs::read(path)));
    println!("{} as it is now after {:?}", path.display(), began.elapsed());
}

/// Objects that [`must_show_changes`] changes.
pub fn put_all(plain: &Plain) {
    for key in ["data/file", "data/deep/other", "data/a b+c%41", "data/goes"] {
        plain.put(key, b"old");
    }
}

/// What is put and deleted in the bucket is seen at a mount of `vol:/data`, which does not ask by itself.
pub fn must_show_changes(site: &Site, plain: &Plain, mount: &Path, content: &[u8]) {
    for name in ["file", "deep/other", "a b+c%41"] {
        assert!(fs::read(mount.join(name)).is_ok(), "{name} is known");
        plain.put(&format!("data/{name}"), content);
        // Another version may be read of while it is replaced.
        must_show(&mount.join(name), |found| found.is_ok_and(|bytes| bytes == content));
    }
    plain.put("data/goes", content);
    must_show(&mount.join("goes"), |found| found.is_ok_and(|bytes| bytes == content));
    plain.delete("data/goes");
    must_show(&mount.join("goes"), |found| found.is_err_and(|error| error.kind() == ErrorKind::NotFound));
    let status = site.atoll(["--json", "link", "status", "vol:/data"]).must_succeed();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["freshness"], &status["recheck_seconds"]), (&"events".into(), &86_400.into()), "{status}");
    assert!(status["hints"]["hints"].as_u64().unwrap() >= 5, "{status}");
    assert!(status["hints"]["last_seconds"].is_u64(), "{status}");
}

#[test]
fn what_the_bucket_tells_is_seen_and_a_known_file_is_not_asked_about() {
    let (mut site, plain) = listening_site();
    put_all(&plain);
    let mount = site.mount("m").join("data");
    must_show_changes(&site, &plain, &mount, b"new and longer");
    site.kill();
    // Nobody hears of this one.
    plain.put("data/file", b"while nobody listens");
    site.start();
    must_show(&mount.join("file"), |found| found.is_ok_and(|bytes| bytes == b"while nobody listens"));
    must_show_changes(&site, &plain, &mount, b"after a crash");
    // What is known costs no request, from whichever end it is looked at.
    let requests = || {
        let text = http(http_port(&site), "/metrics").unwrap();
        let of = |line: &&str| line.starts_with("atoll_bucket_requests{");
        text.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    // Notifications of what was seen already may still come.
    eventually("looks without a request", || {
        let before = requests();
        for _ in 0..20 {
            assert_eq!(fs::read(mount.join("file")).unwrap(), b"after a crash");
        }
        requests() == before
    });
}

#[test]
fn only_senders_are_heard_and_only_documents() {
    let (mut site, plain) = listening_site();
    plain.put("data/file", b"old");
    let mount = site.mount("m").join("data");
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"old");
    let port = http_port(&site);
    let sender = token(&site, &["--events"]);
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let document = br#"{"Records":[{"eventName":"x","s3":{"bucket":{"name":"bucket"},"object":{"key":"data/file"}}}]}"#;
    for wrong in ["wrong", &token(&site, &[]), &token(&site, &["--volume", "vol"]), &sender[..sender.len() - 1]] {
        assert_eq!(posted(port, "/events", &bearer(wrong), document), 401);
        assert_eq!(posted(port, &format!("/events/{wrong}"), "", document), 401);
    }
    assert_eq!(posted(port, "/events", "", document), 401);
    assert_eq!(posted(port, "/events", &bearer(&sender), document), 200);
    assert_eq!(posted(port, &format!("/events/{sender}"), "", document), 200);
    let mut random = Random(from_environment("ATOLL_SEED").unwrap_or(1));
    for _ in 0..300 {
        let mut bad = document.to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(bad.len() as u64) as usize;
            bad[at] = random.below(256) as u8;
        }
        bad.truncate(random.below(bad.len() as u64 + 1) as usize);
        assert!([200, 400].contains(&posted(port, "/events", &bearer(&sender), &bad)));
    }
    assert_eq!(posted(port, "/events", &bearer(&sender), &[b'['; 100_000]), 400);
    assert_eq!(posted(port, "/events", &bearer(&sender), &vec![b' '; (1 << 20) + 1]), 413);
    // A sender is let in nowhere else.
    let mut other = site.command(["ls", "vol:/"]);
    Ran(other.env("ATOLL_TOKEN", &sender).output().unwrap()).must_fail_saying(&["token"]);
    let metrics = http(port, "/metrics").unwrap();
    for result in ["heard", "refused", "malformed"] {
        assert!(metrics.contains(&format!("atoll_hints_total{{result=\"{result}\",source=\"webhook\"}}")), "{metrics}");
    }
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"old");
    assert!(!site.server_log().contains(&sender) && !site.server_log().contains("panicked"));
}
