//! What mounts keep: it costs nothing to read again, and it is never old.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::*;

/// Holders of leases on a path: session and rights.
fn holders(site: &Site, path: &str) -> Vec<(String, String)> {
    let text = site.atoll(["--json", "status", "--leases", &format!("vol:{path}")]).must_succeed();
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    status["holders"].as_array().unwrap().iter().map(|h| (word(&h["session"]), word(&h["rights"]))).collect()
}

#[test]
fn a_mount_shows_up_as_holder_and_goes_on_after_its_session_is_revoked() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/f"), b"bytes").unwrap();
    fs::metadata(mount.join("d/f")).unwrap();
    let (file, folder) = (holders(&site, "/d/f"), holders(&site, "/d"));
    assert_eq!((file.len(), folder.len()), (1, 1), "{file:?} {folder:?}");
    let session = file[0].0.clone();
    assert_eq!(session, folder[0].0);
    assert_eq!(file[0].1, "i");
    assert!(folder[0].1.contains('n'), "{folder:?}");
    let text = site.atoll(["status", "--leases", "vol:/d/f"]).must_succeed();
    assert!(text.contains(&format!("session {session}: i for ")), "{text}");

    site.atoll(["lease", "revoke", &session]).must_succeed();
    let start = Instant::now();
    assert_eq!(fs::read(mount.join("d/f")).unwrap(), b"bytes");
    fs::write(mount.join("d/g"), b"more").unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    eventually("a new session that holds the file", || {
        fs::metadata(mount.join("d/f")).unwrap();
        holders(&site, "/d/f").iter().any(|(other, rights)| *other != session && rights == "i")
    });
    site.atoll(["lease", "revoke", &session]).must_fail_saying(&["no session", &session, "status --leases"]);
}

#[test]
fn wrong_words_about_leases_are_explained() {
    let site = Site::new();
    site.atoll(["status", "--leases", "vol"]).must_fail_saying(&["VOLUME:/path"]);
    site.atoll(["status", "--leases", "vol:/missing"]).must_fail_saying(&["/missing", "no such file"]);
    site.atoll(["status", "--leases", "none:/"]).must_fail_saying(&["none"]);
    site.atoll(["lease", "revoke", "12"]).must_fail_saying(&["no session", "s1b56"]);
}
