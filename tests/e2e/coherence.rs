//! Two mounts, one truth.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::harness::*;

#[test]
fn second_mount_sees_every_change_when_the_call_returns() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for round in 0..20 {
        let name = format!("f{round}");
        assert!(!b.join(&name).exists());
        fs::write(a.join(&name), format!("one{round}")).unwrap();
        assert_eq!(fs::read_to_string(b.join(&name)).unwrap(), format!("one{round}"));
        fs::write(a.join(&name), format!("second{round}")).unwrap();
        assert_eq!(fs::read_to_string(b.join(&name)).unwrap(), format!("second{round}"));
        fs::set_permissions(b.join(&name), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(a.join(&name)).unwrap().mode() & 0o777, 0o600);
        fs::write(a.join("new"), b"third").unwrap();
        fs::rename(a.join("new"), a.join(&name)).unwrap();
        assert_eq!(fs::read(b.join(&name)).unwrap(), b"third");
        assert!(fs::read_dir(&b).unwrap().any(|entry| entry.unwrap().file_name() == name.as_str()));
        fs::remove_file(b.join(&name)).unwrap();
        assert!(!a.join(&name).exists());
    }
}

#[test]
fn an_open_file_sees_what_the_other_mount_writes() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let writer = fs::File::create(a.join("f")).unwrap();
    writer.write_all_at(&[0; 8192], 0).unwrap();
    let reader = fs::File::open(b.join("f")).unwrap();
    let mut bytes = [0u8; 8192];
    for round in 1..100u8 {
        writer.write_all_at(&[round; 8192], 0).unwrap();
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == [round; 8192], "stale bytes in round {round}");
    }
}

/// Two threads, one on each mount; the bodies run at the same time.
fn both(a: &Path, b: &Path, body: impl Fn(usize, &Path) + Sync) {
    std::thread::scope(|scope| {
        scope.spawn(|| body(0, a));
        scope.spawn(|| body(1, b));
    });
}

#[test]
fn appends_from_two_mounts_lose_no_line() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::write(a.join("log"), b"").unwrap();
    both(&a, &b, |who, mount| {
        let mut log = fs::OpenOptions::new().append(true).open(mount.join("log")).unwrap();
        for line in 0..300 {
            log.write_all(format!("{who} {line:05}\n").as_bytes()).unwrap();
        }
    });
    let text = fs::read_to_string(a.join("log")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 600);
    assert_eq!(text, fs::read_to_string(b.join("log")).unwrap());
}

#[test]
fn exactly_one_mount_wins_an_exclusive_create() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let wins = [std::sync::atomic::AtomicU32::new(0), std::sync::atomic::AtomicU32::new(0)];
    both(&a, &b, |who, mount| {
        for round in 0..200 {
            if fs::OpenOptions::new().write(true).create_new(true).open(mount.join(format!("x{round}"))).is_ok() {
                wins[who].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    let [first, second] = wins;
    assert_eq!(first.into_inner() + second.into_inner(), 200);
}

#[test]
fn flock_holds_across_mounts() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::write(a.join("count"), b"0").unwrap();
    both(&a, &b, |_, mount| {
        for _ in 0..100 {
            let file = fs::OpenOptions::new().read(true).write(true).open(mount.join("count")).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
            let mut bytes = [0u8; 16];
            let length = file.read_at(&mut bytes, 0).unwrap();
            let count: u64 = std::str::from_utf8(&bytes[..length]).unwrap().parse().unwrap();
            file.write_all_at((count + 1).to_string().as_bytes(), 0).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
        }
    });
    assert_eq!(fs::read(a.join("count")).unwrap(), b"200");
}

#[test]
fn a_listing_stays_valid_while_others_create_and_delete() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for stable in 0..500 {
        fs::write(a.join(format!("stable{stable:03}")), b"").unwrap();
    }
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            for round in 0..300 {
                let name = b.join(format!("passing{round}"));
                fs::write(&name, b"").unwrap();
                fs::remove_file(&name).unwrap();
            }
        });
        while !changer.is_finished() {
            let mut seen: Vec<_> = fs::read_dir(&a)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with("stable"))
                .collect();
            let all = seen.len();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!((seen.len(), all), (500, 500), "every stable name exactly once");
        }
    });
}

#[test]
fn a_descriptor_whose_lock_was_lost_with_the_session_fails() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::write(a.join("f"), b"one").unwrap();
    let locked = fs::OpenOptions::new().read(true).write(true).open(a.join("f")).unwrap();
    rustix::fs::flock(&locked, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    locked.write_all_at(b"two", 0).unwrap();
    let session = crate::leases::holders(&site, "/f")[0].0.clone();
    site.atoll(["lease", "revoke", &session]).must_succeed();
    // The lock is free for others now, and its old owner cannot know.
    let other = fs::OpenOptions::new().write(true).open(b.join("f")).unwrap();
    eventually("the lock is free", || {
        rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    other.write_all_at(b"six", 0).unwrap();
    eventually("the old owner is told", || locked.write_all_at(b"bad", 0).is_err());
    let error = locked.write_all_at(b"bad", 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert_eq!(fs::read(b.join("f")).unwrap(), b"six");
    drop(locked);
    eventually("the file can be used again", || fs::read(a.join("f")).is_ok_and(|bytes| bytes == b"six"));
}
