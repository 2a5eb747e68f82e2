//! A volume goes to another server while the first one only stands still.

use std::fs;
use std::thread;

use crate::harness::*;

fn put(site: &Site, content: &str) {
    let file = site.path("content");
    fs::write(&file, content).unwrap();
    site.atoll(["put", file.to_str().unwrap(), "vol:/f"]).must_succeed();
}

#[test]
fn a_frozen_server_whose_volume_went_to_another_one_says_nothing_old() {
    let mut first = Site::with_s3();
    first.serve = vec!["--store".into(), "s3://bucket/prefix".into()];
    first.start();
    first.atoll(["volume", "create", "vol", "--durability", "object"]).must_succeed();
    put(&first, "old");
    // It stays with the first server, and shows what it has asked anew at once.
    let mount = first.mount_with("m", &["-o", "reply_timeout=5"]);
    assert_eq!(fs::read_to_string(mount.join("f")).unwrap(), "old");

    let mut second = Site::empty();
    second.environment = first.environment.clone();
    second.serve = first.serve.clone();
    second.start();
    let frozen = first.freeze_server();
    second.atoll(["volume", "attach", "vol"]).must_succeed();
    put(&second, "new");
    let file = mount.join("f");
    let reading = thread::spawn(move || fs::read_to_string(file));
    drop(frozen);
    let read = reading.join().unwrap();
    assert!(read.as_ref().ok().is_none_or(|text| text == "new"), "{read:?}");
    eventually("the first server knows", || {
        let Ran(asked) = first.atoll(["ls", "vol:/"]);
        String::from_utf8_lossy(&asked.stderr).contains("taken over by another server")
    });
    assert!(first.server_log().contains("taken the volume over"), "{}", first.server_log());

    // And back, with its mount.
    second.damaged = true;
    first.atoll(["volume", "attach", "vol"]).must_succeed();
    eventually("the mount goes on", || fs::read_to_string(mount.join("f")).is_ok_and(|text| text == "new"));
    let Ran(asked) = second.atoll(["ls", "vol:/"]);
    assert!(!asked.status.success(), "the second server has lost it");
}
