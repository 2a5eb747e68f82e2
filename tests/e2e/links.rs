//! A linked directory and its bucket are one tree, whoever changes it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_object::ObjectOptions;
use futures_util::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::events::http_port;
use crate::harness::*;
use crate::leases::{OPERATIONS, metric};
use crate::two_worlds::collect;

/// How soon an object is what was written, at the latest.
const PUBLISHED: Duration = Duration::from_secs(2);

/// A plain S3 client of the site's bucket.
pub struct Plain {
    store: Arc<dyn ObjectStore>,
    runtime: tokio::runtime::Runtime,
}

impl Plain {
    pub fn of(site: &Site) -> Plain {
        let options = ObjectOptions {
            endpoint: Some(format!("http://127.0.0.1:{}", site.s3_port())),
            region: Some("us-east-1".into()),
            access_key_id: Some("atolltest".into()),
            secret_access_key: Some("atolltestsecret".into()),
            session_token: None,
            allow_http: true,
        };
        let store = atoll_object::open("s3://bucket", &options).unwrap().store;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Plain { store, runtime }
    }

    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.runtime.block_on(self.store.put(&Key::parse(key).unwrap(), bytes.to_vec().into())).unwrap();
    }

    /// `None`: there is no such object.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let key = Key::parse(key).unwrap();
        self.runtime.block_on(async {
            match self.store.get(&key).await {
                Err(object_store::Error::NotFound { .. }) => None,
                found => Some(found.unwrap().bytes().await.unwrap().to_vec()),
            }
        })
    }

    pub fn etag(&self, key: &str) -> String {
        let found = self.runtime.block_on(self.store.head(&Key::parse(key).unwrap())).unwrap();
        found.e_tag.unwrap().trim_matches('"').to_owned()
    }

    pub fn delete(&self, key: &str) {
        self.runtime.block_on(self.store.delete(&Key::parse(key).unwrap())).unwrap();
    }

    /// Keys below a prefix, in order.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = self.store.list(Some(&Key::parse(prefix).unwrap()));
        let found: Vec<_> = self.runtime.block_on(listed.try_collect()).unwrap();
        let mut keys: Vec<String> = found.into_iter().map(|found| found.location.to_string()).collect();
        keys.sort();
        keys
    }

    /// Wait until an object has these bytes.
    #[track_caller]
    fn must_become(&self, key: &str, bytes: &[u8]) {
        eventually(key, || self.get(key).as_deref() == Some(bytes));
    }
}

/// A server with its `AWS_*` settings, a volume `vol`, and a client of the bucket `bucket`.
fn site() -> (Site, Plain) {
    let mut site = Site::with_s3();
    let plain = start(&mut site);
    (site, plain)
}

fn start(site: &mut Site) -> Plain {
    site.serve = ["--http", "127.0.0.1:0"].map(String::from).to_vec();
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    Plain::of(site)
}

/// The same, with `vol:/data` linked to `bucket/data`.
pub fn linked_site() -> (Site, Plain) {
    let mut site = Site::with_s3();
    let plain = linked(&mut site, &[]);
    (site, plain)
}

/// The same at the site's S3 server, with these arguments of the link.
pub fn linked(site: &mut Site, arguments: &[&str]) -> Plain {
    let plain = start(site);
    link(site, arguments);
    plain
}

fn link(site: &Site, arguments: &[&str]) -> String {
    site.atoll([&["link", "s3://bucket/data", "vol:/data"], arguments].concat()).must_succeed()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn status(site: &Site, target: &str) -> serde_json::Value {
    json(&site.atoll(["--json", "link", "status", target]).must_succeed())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_another_tool_puts_is_seen_by_the_next_call_on_every_mount() {
    let (mut site, plain) = site();
    plain.put("data/before/deep/file", b"old");
    plain.put("outside", b"not below the prefix");
    link(&site, &[]);
    let (one, other) = (site.mount("m1").join("data"), site.mount("m2").join("data"));
    for mount in [&one, &other] {
        assert_eq!(names(mount), ["before"]);
        assert_eq!(fs::read(mount.join("before/deep/file")).unwrap(), b"old");
    }
    plain.put("data/new", b"first");
    for mount in [&one, &other] {
        assert_eq!(fs::metadata(mount.join("new")).unwrap().len(), 5);
        assert_eq!(names(mount), ["before", "new"]);
        assert_eq!(fs::read(mount.join("new")).unwrap(), b"first");
    }
    plain.put("data/new", b"and another one");
    for mount in [&one, &other] {
        assert_eq!(fs::read(mount.join("new")).unwrap(), b"and another one");
        assert_eq!(fs::metadata(mount.join("new")).unwrap().len(), 15);
    }
    plain.delete("data/new");
    for mount in [&one, &other] {
        assert_eq!(fs::metadata(mount.join("new")).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(names(mount), ["before"]);
    }
}

#[test]
fn what_is_read_again_comes_from_the_mount_until_it_changes() {
    let (mut site, plain) = site();
    let large = words(1 << 20);
    plain.put("data/file", &large);
    link(&site, &[]);
    let (one, other) = (site.mount("m1").join("data/file"), site.mount("m2").join("data/file"));
    let port = http_port(&site);
    let reads = || metric(port, &format!("{OPERATIONS}{{operation=\"read\"}}"));
    let opens = || metric(port, &format!("{OPERATIONS}{{operation=\"open\"}}"));
    assert!(fs::read(&one).unwrap() == large && fs::read(&other).unwrap() == large);
    let before = reads() + opens();
    assert!(fs::read(&one).unwrap() == large && fs::read(&other).unwrap() == large);
    assert_eq!(reads() + opens(), before);
    let mut open = fs::File::open(&one).unwrap();
    // Whoever changes it.
    plain.put("data/file", b"by another tool");
    for mount in [&other, &one] {
        assert_eq!(fs::read(mount).unwrap(), b"by another tool");
    }
    let mut found = Vec::new();
    match open.read_to_end(&mut found) {
        Ok(_) => assert!(found == large, "what the kernel had of the old version, and no other bytes"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::StaleNetworkFileHandle),
    }
    eventually("it is kept again", || {
        fs::metadata(&one).unwrap();
        let before = opens();
        fs::read(&one).unwrap();
        opens() == before
    });
    // Who writes is known to do so: it is no object before it is closed.
    let writing = fs::OpenOptions::new().write(true).open(&one).unwrap();
    writing.write_all_at(b"BY", 0).unwrap();
    assert_eq!(fs::read(&other).unwrap(), b"BY another tool");
    std::thread::sleep(PUBLISHED);
    assert_eq!(plain.get("data/file").unwrap(), b"by another tool");
    drop(writing);
    plain.must_become("data/file", b"BY another tool");
    plain.delete("data/file");
    for mount in [&one, &other] {
        assert_eq!(fs::read(mount).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_file_that_is_closed_is_an_object_of_the_same_bytes_a_moment_later() {
    let (mut site, plain) = site();
    link(&site, &[]);
    let (one, other) = (site.mount("m1").join("data"), site.mount("m2").join("data"));
    fs::create_dir(one.join("folder")).unwrap();
    fs::write(one.join("folder/small"), b"hello").unwrap();
    let closed = Instant::now();
    assert_eq!(fs::read(other.join("folder/small")).unwrap(), b"hello");
    plain.must_become("data/folder/small", b"hello");
    assert!(closed.elapsed() < PUBLISHED, "{:?}", closed.elapsed());
    // In several parts.
    let large = words(5 << 20);
    fs::write(one.join("large"), &large).unwrap();
    plain.must_become("data/large", &large);
    assert_eq!(fs::read(other.join("large")).unwrap(), large);
    // Written anew, from the other mount.
    fs::write(other.join("folder/small"), b"hello again").unwrap();
    plain.must_become("data/folder/small", b"hello again");
    assert_eq!(fs::read(one.join("folder/small")).unwrap(), b"hello again");
    eventually("nothing waits", || status(&site, "vol:/data")["unpublished"] == 0);
}

#[test]
fn what_is_renamed_or_removed_on_a_mount_is_so_in_the_bucket() {
    let (mut site, plain) = site();
    for key in ["data/a", "data/b", "data/tree/1", "data/tree/deep/2"] {
        plain.put(key, key.as_bytes());
    }
    link(&site, &[]);
    let mount = site.mount("m").join("data");
    fs::remove_file(mount.join("a")).unwrap();
    fs::rename(mount.join("b"), mount.join("c")).unwrap();
    fs::rename(mount.join("tree"), mount.join("moved")).unwrap();
    // At once here, whatever the bucket has.
    assert_eq!(names(&mount), ["c", "moved"]);
    assert_eq!(fs::read(mount.join("c")).unwrap(), b"data/b");
    assert_eq!(fs::read(mount.join("moved/deep/2")).unwrap(), b"data/tree/deep/2");
    eventually("the bucket follows", || plain.keys("data") == ["data/c", "data/moved/1", "data/moved/deep/2"]);
    assert_eq!(plain.get("data/moved/deep/2").unwrap(), b"data/tree/deep/2");
    // Written beside and put in its place, as editors do.
    fs::write(mount.join(".c.tmp"), b"new").unwrap();
    fs::rename(mount.join(".c.tmp"), mount.join("c")).unwrap();
    plain.must_become("data/c", b"new");
    eventually("nothing is left", || plain.keys("data") == ["data/c", "data/moved/1", "data/moved/deep/2"]);
    fs::remove_dir_all(mount.join("moved")).unwrap();
    eventually("all of it goes", || plain.keys("data") == ["data/c"]);
}

#[test]
fn names_of_which_the_bucket_has_no_keys_are_in_the_volume_alone() {
    let (mut site, plain) = linked_site();
    assert_eq!(status(&site, "vol:/data")["capabilities"]["control_characters"], false, "the server has changed");
    let (a, b) = (site.mount("m1").join("data"), site.mount("m2").join("data"));
    for name in ["bell\x07", "ok", "moved", "d/f"] {
        fs::create_dir_all(a.join(name).parent().unwrap()).unwrap();
        fs::write(a.join(name), name).unwrap();
    }
    eventually("the rest is published", || plain.keys("data") == ["data/d/f", "data/moved", "data/ok"]);
    fs::rename(a.join("moved"), a.join("moved\x01")).unwrap();
    fs::rename(a.join("d"), a.join("d\x02")).unwrap();
    eventually("what is moved there leaves", || plain.keys("data") == ["data/ok"]);
    assert_eq!(names(&b), ["bell\x07", "d\x02", "moved\x01", "ok"]);
    assert_eq!(names(&b.join("d\x02")), ["f"]);
    for (name, bytes) in [("bell\x07", "bell\x07"), ("moved\x01", "moved"), ("d\x02/f", "d/f")] {
        assert_eq!(fs::read_to_string(b.join(name)).unwrap(), bytes);
    }
    // Its key would have more bytes between two `/` than the server has room for.
    let long = a.join(OsStr::from_bytes(&[0xe4; 255]));
    assert!(!long.exists());
    fs::write(&long, "long").unwrap();
    assert_eq!(fs::read_to_string(b.join(long.file_name().unwrap())).unwrap(), "long");
    fs::remove_file(long).unwrap();
    let publish = site.atoll([OsStr::new("publish"), a.join("bell\x07").as_os_str()]);
    publish.must_fail_saying(&["does not list keys with control characters"]);

    // Back under names of which the bucket has keys.
    fs::rename(b.join("moved\x01"), b.join("moved")).unwrap();
    fs::rename(b.join("d\x02"), b.join("e")).unwrap();
    fs::remove_file(b.join("bell\x07")).unwrap();
    eventually("what has a key again is published", || plain.keys("data") == ["data/e/f", "data/moved", "data/ok"]);
    eventually("nothing is left", || status(&site, "vol:/data")["unpublished"] == 0);
}

#[test]
fn publish_waits_for_the_object_and_tells_its_etag() {
    let (mut site, plain) = site();
    link(&site, &["--publish", "manual"]);
    let mount = site.mount("m").join("data");
    fs::create_dir(mount.join("folder")).unwrap();
    fs::write(mount.join("file"), b"one").unwrap();
    fs::write(mount.join("folder/inner"), b"two").unwrap();
    // The server has them when they are durable.
    fs::File::open(mount.join("file")).unwrap().sync_all().unwrap();
    let waiting = status(&site, "vol:/data");
    assert!(waiting["unpublished"].as_u64().unwrap() >= 1, "{waiting}");
    assert!(waiting["waiting"].to_string().contains("data/file"), "{waiting}");
    assert_eq!(plain.get("data/file"), None);
    let port = http_port(&site);
    let counted = |figure: &str| {
        let text = http(port, "/metrics").unwrap();
        let of = |line: &&str| {
            line.starts_with("atoll_link{") && line.contains(figure) && line.contains("s3://bucket/data/")
        };
        let line = text.lines().find(of).unwrap_or_else(|| panic!("no {figure} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert!(counted("unpublished") >= 1);

    let path = mount.join("file");
    let text = site.atoll(["publish".as_ref(), path.as_os_str()]).must_succeed();
    assert_eq!(plain.get("data/file").unwrap(), b"one");
    assert!(text.starts_with("data/file ") && text.contains(&plain.etag("data/file")), "{text}");
    // All below a directory, by its path in the volume.
    let published = json(&site.atoll(["--json", "publish", "vol:/data"]).must_succeed());
    assert_eq!(plain.get("data/folder/inner").unwrap(), b"two");
    assert!(published[0]["objects"].to_string().contains(&plain.etag("data/folder/inner")), "{published}");
    assert_eq!(status(&site, "vol:/data")["unpublished"], 0);
    assert_eq!((counted("unpublished"), counted("in_trouble")), (0, 0));
    assert_eq!(json(&site.atoll(["--json", "status"]).must_succeed())["links"][0]["path"], "/data");

    fs::write(site.path("elsewhere"), "").unwrap();
    let elsewhere = site.path("elsewhere");
    site.atoll(["publish".as_ref(), elsewhere.as_os_str()]).must_fail_saying(&["no volume is mounted there"]);
    fs::write(site.path("m").join("unlinked"), "").unwrap();
    site.atoll(["publish", "vol:/unlinked"]).must_fail_saying(&["no linked directory", "atoll link list vol"]);
}

#[test]
fn a_conflict_keeps_both_and_publish_tells() {
    let (mut site, plain) = site();
    plain.put("data/file", b"first");
    link(&site, &["--publish", "manual"]);
    let mount = site.mount("m").join("data");
    fs::write(mount.join("file"), b"ours").unwrap();
    fs::File::open(mount.join("file")).unwrap().sync_all().unwrap();
    plain.put("data/file", b"theirs");
    site.atoll(["publish", "vol:/data/file"]).must_fail_saying(&["changed in the bucket"]);
    assert_eq!(plain.get("data/file").unwrap(), b"theirs");
    eventually("ours is kept beside", || {
        plain.keys("data/.atoll/conflicts").iter().any(|key| plain.get(key).as_deref() == Some(b"ours"))
    });
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"theirs");
    assert_eq!(status(&site, "vol:/data")["conflicts"], 1);
}

#[test]
fn a_detached_bucket_has_what_was_shown() {
    let (mut site, plain) = site();
    plain.put("data/theirs", b"theirs");
    link(&site, &["--publish", "manual"]);
    let mount = site.mount("m").join("data");
    fs::write(mount.join("ours"), b"ours").unwrap();
    // Nothing that a bucket can hold.
    let socket = UnixListener::bind(mount.join("socket")).unwrap();
    site.atoll(["link", "detach", "vol:/data"]).must_fail_saying(&["vol:/data", "--discard"]);
    drop(socket);
    fs::remove_file(mount.join("socket")).unwrap();
    let shown: Vec<_> = names(&mount).into_iter().map(|name| (fs::read(mount.join(&name)).unwrap(), name)).collect();
    site.atoll(["link", "detach", "vol:/data"]).must_succeed();
    for (bytes, name) in shown {
        assert_eq!(plain.get(&format!("data/{name}")).unwrap(), bytes, "{name}");
    }
    assert_eq!(plain.keys("data"), ["data/ours", "data/theirs"]);
    assert_eq!(names(&mount), [""; 0]);
    assert_eq!(json(&site.atoll(["--json", "link", "list", "vol"]).must_succeed()), serde_json::json!([]));
    // An ordinary directory again.
    fs::write(mount.join("plain"), b"plain").unwrap();
    site.atoll(["link", "detach", "vol:/data"]).must_fail_saying(&["not a linked directory"]);
    assert_eq!(plain.keys("data"), ["data/ours", "data/theirs"]);
}

/// A tool that knows nothing of Atoll copies a tree into the bucket, and all that is there afterwards out of it.
#[test]
fn another_tool_syncs_a_tree_in_and_out() {
    let (mut site, _plain) = linked_site();
    let mount = site.mount("m").join("data");
    let sync = |from: &str, to: &str| {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/s3/aws"));
        command.envs(site.environment.iter().map(|(name, value)| (*name, value)));
        let done = command.args(["s3", "sync", "--only-show-errors", from, to]).output().expect("tests/s3/aws starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let tree = |root: &Path| {
        let mut files = BTreeMap::new();
        collect(root, "".as_ref(), &mut files);
        files
    };
    let (theirs, copy) = (site.path("theirs"), site.path("copy"));
    let large = words(5 << 20);
    for (at, bytes) in [("a file", &b"1"[..]), ("deep/er/ä", b"2"), ("deep/empty", b""), ("deep/large", &large)] {
        fs::create_dir_all(theirs.join(at).parent().unwrap()).unwrap();
        fs::write(theirs.join(at), bytes).unwrap();
    }
    sync(theirs.to_str().unwrap(), "s3://bucket/data");
    let mut expected = tree(&theirs);
    assert!(tree(&mount) == expected);

    fs::create_dir(mount.join("ours")).unwrap();
    fs::rename(mount.join("deep/er"), mount.join("ours/moved")).unwrap();
    fs::write(mount.join("ours/large"), &large).unwrap();
    fs::write(mount.join("deep/empty"), b"no more").unwrap();
    fs::remove_file(mount.join("a file")).unwrap();
    expected = tree(&mount);
    assert_eq!(expected.keys().collect::<Vec<_>>(), ["deep/empty", "deep/large", "ours/large", "ours/moved/ä"]);
    site.atoll(["link", "detach", "vol:/data"]).must_succeed();
    sync("s3://bucket/data", copy.to_str().unwrap());
    assert!(tree(&copy) == expected);
}

#[test]
fn what_cannot_be_linked_is_refused_with_what_to_do() {
    let (mut site, _) = site();
    let mount = site.mount("m");
    let port = site.s3_port().to_string();
    site.atoll(["link", "bucket/data", "vol:/data"]).must_fail_saying(&["s3://"]);
    site.atoll(["link", "s3://bucket/data", "vol"]).must_fail_saying(&["VOLUME:/path"]);
    site.atoll(["link", "s3://missing/data", "vol:/data"]).must_fail_saying(&["s3://missing/data/", "no such bucket"]);
    site.atoll(["link", "s3://bucket", "vol:/data", "--credentials", "none"])
        .must_fail_saying(&["no credentials `none`", "atoll link credentials set none"]);
    site.atoll(["link", "s3://bucket", "vol:/data", "--endpoint", &format!("127.0.0.1:{port}")])
        .must_fail_saying(&["no endpoint", "https://"]);
    // Nothing is left of an attempt.
    assert_eq!(names(&mount), [""; 0]);
    fs::create_dir(mount.join("full")).unwrap();
    fs::write(mount.join("full/file"), "").unwrap();
    site.atoll(["link", "s3://bucket/data", "vol:/full"]).must_fail_saying(&["vol:/full", "empty directory"]);
    site.atoll(["link", "s3://bucket/data", "vol:/full/file"]).must_fail_saying(&["not a directory"]);
    site.atoll(["link", "s3://bucket/data", "vol:/none/data"]).must_fail_saying(&["no such file"]);

    let made = link(&site, &[]);
    assert!(made.contains("vol:/data is s3://bucket/data/") && made.contains("conditional_create"), "{made}");
    site.atoll(["link", "s3://bucket/more", "vol:/data/more"]).must_fail_saying(&["in a link already"]);
    site.atoll(["snapshot", "create", "vol", "then"]).must_succeed();
    let file = site.path("export");
    site.atoll(["volume", "clone", "vol", "copy"]).must_fail_saying(&["linked", "one bucket"]);
    site.atoll(["volume", "clone", "vol@then", "copy"]).must_fail_saying(&["linked", "one bucket"]);
    site.atoll(["volume".as_ref(), "export".as_ref(), "vol".as_ref(), file.as_os_str()])
        .must_fail_saying(&["linked", "one bucket"]);
    site.atoll(["volume", "info", "copy"]).must_fail_saying(&["no volume `copy`"]);
}

#[test]
fn a_whole_volume_can_be_a_bucket_and_its_link_outlives_the_server() {
    let (mut site, plain) = site();
    plain.put("whole/file", b"theirs");
    site.atoll(["volume", "create", "whole", "--link", "s3://missing/whole"]).must_fail_saying(&["no such bucket"]);
    site.atoll(["volume", "info", "whole"]).must_fail_saying(&["no volume `whole`"]);
    site.atoll(["volume", "create", "whole", "--link", "s3://bucket/whole", "--freshness", "strong"]).must_succeed();
    let mount = site.mount_volume("whole", "m", &[]);
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"theirs");
    fs::write(mount.join("ours"), b"ours").unwrap();
    plain.must_become("whole/ours", b"ours");
    let before = status(&site, "whole:/");
    assert_eq!(before["url"], "s3://bucket/whole/");
    site.kill();
    site.start();
    plain.put("whole/later", b"later");
    assert_eq!(fs::read(mount.join("later")).unwrap(), b"later");
    assert_eq!(status(&site, "whole:/")["capabilities"], before["capabilities"]);
}

#[test]
fn a_link_uses_the_credentials_that_it_names_and_nobody_is_told_them() {
    let mut site = Site::with_s3();
    // The server's own do not open the bucket.
    for (name, value) in &mut site.environment {
        if *name == "AWS_SECRET_ACCESS_KEY" {
            *value = "another-secret".into();
        }
    }
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let plain = Plain::of(&site);
    plain.put("data/file", b"theirs");
    let arguments = ["link", "s3://bucket/data", "vol:/data"];
    site.atoll(arguments).must_fail_saying(&["access is denied", "--credentials"]);

    let set = |secret: &str| {
        let mut command = site.command(["link", "credentials", "set", "team"]);
        command.env("AWS_ACCESS_KEY_ID", "atolltest").env("AWS_SECRET_ACCESS_KEY", secret);
        Ran(command.env_remove("AWS_SESSION_TOKEN").stdin(Stdio::null()).output().unwrap())
    };
    set("atolltestsecret").must_succeed();
    site.atoll([&arguments[..], &["--credentials", "team"]].concat()).must_succeed();
    assert_eq!(site.atoll(["link", "credentials", "list"]).must_succeed(), "team\n");
    let kept = fs::metadata(site.path("data/credentials.json")).unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    let shown = site.atoll(["--json", "link", "list", "vol"]).must_succeed();
    assert!(shown.contains("team") && !shown.contains("atolltestsecret"), "{shown}");

    let mount = site.mount("m").join("data");
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"theirs");
    // Replaced while the link is in use: it goes on with the new ones.
    let file = site.path("keys");
    fs::write(&file, "aws_access_key_id = atolltest\naws_secret_access_key = wrong\n").unwrap();
    let set_file = ["link", "credentials", "set", "team", "--file"].map(std::ffi::OsStr::new);
    site.atoll([&set_file[..], &[file.as_os_str()]].concat()).must_succeed();
    plain.put("data/new", b"new");
    fs::read(mount.join("new")).unwrap_err();
    fs::write(&file, "aws_access_key_id = atolltest\naws_secret_access_key = atolltestsecret\n").unwrap();
    site.atoll([&set_file[..], &[file.as_os_str()]].concat()).must_succeed();
    eventually("it goes on", || fs::read(mount.join("new")).is_ok_and(|bytes| bytes == b"new"));
    site.atoll(["link", "credentials", "delete", "other"]).must_fail_saying(&["no credentials `other`"]);
    assert!(!site.server_log().contains("atolltestsecret"));
}

#[test]
fn who_may_write_to_a_volume_may_publish_in_it_and_nothing_else() {
    let (site, plain) = site();
    link(&site, &["--publish", "manual"]);
    let token = |arguments: &[&str]| {
        let made = site.atoll([&["--json", "token", "create"], arguments].concat()).must_succeed();
        json(&made)["secret"].as_str().unwrap().to_owned()
    };
    let with =
        |token: &str, arguments: &[&str]| Ran(site.command(arguments).env("ATOLL_TOKEN", token).output().unwrap());
    let (writer, reader) = (token(&["--volume", "vol"]), token(&["--volume", "vol", "--read-only"]));
    let local = site.path("local");
    fs::write(&local, b"bytes").unwrap();
    with(&writer, &["put", local.to_str().unwrap(), "vol:/data/file"]).must_succeed();
    with(&reader, &["publish", "vol:/data/file"]).must_fail_saying(&["may not administer"]);
    with(&writer, &["link", "detach", "vol:/data"]).must_fail_saying(&["may not administer"]);
    with(&writer, &["link", "credentials", "list"]).must_fail_saying(&["may not administer"]);
    with(&writer, &["publish", "vol:/data/file"]).must_succeed();
    assert_eq!(plain.get("data/file").unwrap(), b"bytes");
}
