//! A link that reads what its bucket tells from a queue, of a real server of the protocol of SQS.

use std::fs;

use serde_json::{Value, json};

use crate::events::{RECHECK, http_port, must_show, must_show_changes, put_all};
use crate::faulty_s3::{Fault, Proxy};
use crate::harness::*;
use crate::links::Plain;

/// A queue called `events` of the site's moto, and a way to it that can fail.
struct Queue {
    port: u16,
    way: Proxy,
}

impl Queue {
    fn of(site: &Site) -> Queue {
        let queue = Queue { port: site.s3_port(), way: Proxy::start(site.s3_port()) };
        queue.create();
        queue
    }

    fn url_by(port: u16) -> String {
        format!("http://127.0.0.1:{port}/123456789012/events")
    }

    /// Where the server is to read it.
    fn url(&self) -> String {
        Self::url_by(self.way.port)
    }

    fn call(&self, action: &str, mut request: Value) -> Value {
        request["QueueUrl"] = Self::url_by(self.port).into();
        let body = request.to_string();
        // Who asks does not matter, but of which service and region.
        let head = format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/x-amz-json-1.0\r\n\
             X-Amz-Target: AmazonSQS.{action}\r\nContent-Length: {}\r\nAuthorization: AWS4-HMAC-SHA256 \
             Credential=atolltest/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n",
            body.len()
        );
        let answer = request_answered(self.port, (head + &body).as_bytes());
        if answer.is_empty() { Value::Null } else { serde_json::from_str(&answer).expect("JSON") }
    }

    fn create(&self) {
        self.call("CreateQueue", json!({"QueueName": "events"}));
    }

    fn delete(&self) {
        self.call("DeleteQueue", json!({}));
    }

    fn send(&self, body: &str) {
        self.call("SendMessage", json!({"MessageBody": body}));
    }

    /// Messages that are not deleted.
    fn left(&self) -> u64 {
        let names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
        let attributes = self.call("GetQueueAttributes", json!({"AttributeNames": names}));
        let count = |name: &str| attributes["Attributes"][name].as_str().expect("a count").parse::<u64>().unwrap();
        names.into_iter().map(count).sum()
    }

    /// Let the bucket send its notifications here.
    fn subscribe(&self) {
        let body = "<NotificationConfiguration><QueueConfiguration><Id>atoll</Id>\
                    <Queue>arn:aws:sqs:us-east-1:123456789012:events</Queue><Event>s3:ObjectCreated:*</Event>\
                    <Event>s3:ObjectRemoved:*</Event></QueueConfiguration></NotificationConfiguration>";
        let head = format!(
            "PUT /bucket?notification HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        request_answered(self.port, (head + body).as_bytes());
    }
}

/// The body of an answer that says that all is well.
fn request_answered(port: u16, bytes: &[u8]) -> String {
    let answer = request(port, bytes).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    body.to_owned()
}

fn link(site: &Site, target: &str, queue: &str) -> Ran {
    let link = ["link", "s3://bucket/data", target, "--freshness", "events", "--recheck", RECHECK, "--queue", queue];
    site.atoll(link)
}

/// A volume `vol` with a link of `bucket/data` at `vol:/data` that reads a queue.
fn reading_site() -> (Site, Plain, Queue) {
    let mut site = Site::with_moto();
    site.serve = ["--http", "127.0.0.1:0"].map(String::from).to_vec();
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let queue = Queue::of(&site);
    link(&site, "vol:/data", &queue.url()).must_succeed();
    let plain = Plain::of(&site);
    (site, plain, queue)
}

fn status(site: &Site) -> Value {
    let status = site.atoll(["--json", "link", "status", "vol:/data"]).must_succeed();
    serde_json::from_str(&status).unwrap()
}

/// Values of a metric, by the text of their labels.
fn metric(site: &Site, name: &str) -> Vec<(String, f64)> {
    let text = http(http_port(site), "/metrics").unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    values.map(|(labels, value)| (labels.to_owned(), value.parse().unwrap())).collect()
}

/// Hints that came by a queue, with this result.
fn hints(site: &Site, result: &str) -> f64 {
    let labels = format!("{{result=\"{result}\",source=\"queue\"}}");
    metric(site, "atoll_hints_total").into_iter().filter(|(of, _)| *of == labels).map(|(_, value)| value).sum()
}

#[test]
fn what_the_bucket_tells_a_queue_is_seen_until_the_link_is_detached() {
    let (mut site, plain, queue) = reading_site();
    queue.subscribe();
    put_all(&plain);
    let mount = site.mount("m").join("data");
    must_show_changes(&site, &plain, &mount, b"new and longer");
    eventually("all messages are deleted", || queue.left() == 0);
    let of_link = status(&site)["queue"].clone();
    assert_eq!((&of_link["url"], &of_link["trouble"]), (&queue.url().into(), &Value::Null), "{of_link}");
    assert!(of_link["messages"].as_u64().unwrap() >= 5 && of_link["answered_seconds"].is_u64(), "{of_link}");
    let text = site.atoll(["status"]).must_succeed();
    assert!(text.contains("notifications, the last"), "{text}");
    // By the next server, too, which has the link from the volume alone.
    site.kill();
    site.start();
    must_show_changes(&site, &plain, &mount, b"after a crash");
    site.atoll(["link", "detach", "vol:/data"]).must_succeed();
    eventually("nobody reads the queue", || metric(&site, "atoll_queue").is_empty());
}

#[test]
fn one_reader_serves_all_links_of_a_queue_and_what_cannot_be_read_holds_up_nothing() {
    let (mut site, plain, queue) = reading_site();
    link(&site, "vol:/again", &queue.url()).must_succeed();
    for key in ["data/a", "data/b"] {
        plain.put(key, b"old");
    }
    let root = site.mount("m");
    let (mount, again) = (root.join("data"), root.join("again"));
    let document = |bucket: &str, key: &str| {
        json!({"Records": [{"eventName": "x", "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}]}).to_string()
    };
    let wrapped = json!({"Type": "Notification", "Message": document("bucket", "data%2Fb")}).to_string();
    for (key, document) in [("a", document("bucket", "data/a")), ("b", wrapped)] {
        for folder in [&mount, &again] {
            assert_eq!(fs::read(folder.join(key)).unwrap(), b"old");
        }
        plain.put(&format!("data/{key}"), b"new");
        // More than one answer holds.
        for number in 0..25 {
            queue.send(["no document", "{}", "[[[", "{\"Records\":[{}]}"][number % 4]);
        }
        queue.send(&json!({"Event": "s3:TestEvent"}).to_string());
        queue.send(&document_of_nobody());
        queue.send(&document);
        for folder in [&mount, &again] {
            must_show(&folder.join(key), |found| found.is_ok_and(|bytes| bytes == b"new"));
        }
    }
    eventually("all messages are deleted", || queue.left() == 0);
    eventually("all are counted", || {
        [("heard", 2.0), ("unrelated", 5.0), ("malformed", 50.0)]
            .iter()
            .all(|(result, count)| hints(&site, result) >= *count)
    });
    let of_queue: Vec<_> = metric(&site, "atoll_queue").into_iter().filter(|(of, _)| of.contains("messages")).collect();
    assert!(matches!(&of_queue[..], [(_, count)] if *count >= 56.0), "{of_queue:?}");
    let log = site.server_log();
    assert_eq!(log.matches("cannot be read is deleted").count(), 1, "{log}");
}

/// Of a bucket and of a key that are in no link.
fn document_of_nobody() -> String {
    let record = |bucket: &str, key: &str| json!({"s3": {"bucket": {"name": bucket}, "object": {"key": key}}});
    json!({"Records": [record("other", "data/a"), record("bucket", "outside")]}).to_string()
}

#[test]
fn a_server_that_is_killed_before_it_deletes_a_message_loses_no_hint() {
    let (mut site, plain, queue) = reading_site();
    plain.put("data/file", b"old");
    let file = site.mount("m").join("data/file");
    assert_eq!(fs::read(&file).unwrap(), b"old");
    queue.way.set(Fault::Undeleted);
    queue.subscribe();
    plain.put("data/file", b"new");
    must_show(&file, |found| found.is_ok_and(|bytes| bytes == b"new"));
    eventually("a deletion fails", || status(&site)["queue"]["trouble"].is_string());
    site.kill();
    assert!(queue.left() > 0);
    queue.way.set(Fault::None);
    site.start();
    must_show(&file, |found| found.is_ok_and(|bytes| bytes == b"new"));
    eventually("the message comes again", || hints(&site, "heard") >= 1.0 && queue.left() == 0);
}

#[test]
fn a_queue_that_cannot_be_read_is_told_of_and_tried_again() {
    let (mut site, plain, queue) = reading_site();
    let nothing = queue.url().replace("events", "nothing");
    link(&site, "vol:/other", &nothing).must_fail_saying(&["nothing", "no such queue"]);
    let whole = |queue: &str| {
        let link = ["--link", "s3://bucket/whole", "--freshness", "events", "--queue", queue];
        site.atoll([&["volume", "create", "whole"], &link[..]].concat())
    };
    whole(&nothing).must_fail_saying(&["nothing", "no such queue"]);
    whole(&queue.url()).must_succeed();
    let links: Value = serde_json::from_str(&site.atoll(["--json", "link", "list", "whole"]).must_succeed()).unwrap();
    assert_eq!(links[0]["queue"]["url"], queue.url(), "{links}");
    site.atoll(["link", "s3://bucket/other", "vol:/other", "--freshness", "strong", "--queue", &nothing])
        .must_fail_saying(&["--freshness events"]);
    plain.put("data/file", b"old");
    let file = site.mount("m").join("data/file");
    assert_eq!(fs::read(&file).unwrap(), b"old");
    let must_tell = |site: &Site, words: &str| {
        eventually(words, || site.atoll(["status"]).must_succeed().contains(words));
        assert!(status(site)["queue"]["trouble"].as_str().unwrap().contains(words));
    };
    queue.subscribe();
    queue.way.set(Fault::Forbidden);
    // What waits in vain ends.
    queue.send("{}");
    must_tell(&site, "sqs:ReceiveMessage");
    queue.way.set(Fault::Away);
    must_tell(&site, "does not answer");
    queue.way.set(Fault::None);
    queue.delete();
    must_tell(&site, "no such queue");
    // Nothing else is affected.
    assert_eq!(fs::read(&file).unwrap(), b"old");
    fs::write(file.with_file_name("new"), b"ours").unwrap();
    queue.create();
    eventually("the queue is read again", || status(&site)["queue"]["trouble"].is_null());
    plain.put("data/file", b"new");
    must_show(&file, |found| found.is_ok_and(|bytes| bytes == b"new"));
    let failures = metric(&site, "atoll_queue").into_iter().find(|(of, _)| of.contains("failures")).unwrap().1;
    assert!(failures >= 3.0, "{failures}");
}
