//! Snapshots, what is restored from them, and clones.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::*;

fn snapshots(site: &Site) -> Vec<String> {
    let text = site.atoll(["--json", "snapshot", "list", "vol"]).must_succeed();
    let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    list.as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap().to_owned()).collect()
}

/// Objects with bytes of files.
fn segments(site: &Site, volume: &str) -> usize {
    let folder = site.path("data/objects/volumes").join(volume).join("segments");
    fs::read_dir(folder).map_or(0, |entries| entries.count())
}

#[test]
fn a_snapshot_has_what_returned_before_it_on_any_mount_and_nothing_later() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for mount in [&a, &b] {
        fs::create_dir(mount.join(mount.file_name().unwrap())).unwrap();
    }
    let own = |mount: &Path, round: u32| mount.join(mount.file_name().unwrap()).join(format!("f{round}"));
    for round in 0..12 {
        for mount in [&a, &b] {
            // Made without asking the server, which hears of it later.
            fs::write(own(mount, round), round.to_string()).unwrap();
            fs::write(mount.join("shared"), format!("{round} {}", mount.display())).unwrap();
        }
        site.atoll(["snapshot", "create", "vol", &format!("s{round}")]).must_succeed();
        for mount in [&a, &b] {
            fs::remove_file(own(mount, round)).unwrap();
        }
        fs::write(a.join("shared"), "later").unwrap();
    }
    assert_eq!(snapshots(&site), (0..12).map(|round| format!("s{round}")).collect::<Vec<_>>());
    let round = |site: &Site, round: u32| {
        let read = |path: &str| site.atoll(["cat", &format!("vol@s{round}:/{path}")]).must_succeed();
        assert_eq!(read("shared"), format!("{round} {}", b.display()));
        for folder in ["m1", "m2"] {
            assert_eq!(read(&format!("{folder}/f{round}")), round.to_string());
        }
        assert!(site.atoll(["fsck", &format!("vol@s{round}"), "--read"]).must_succeed().contains("clean"));
    };
    (0..12).for_each(|number| round(&site, number));
    site.kill();
    site.start();
    (0..12).for_each(|number| round(&site, number));
}

#[test]
fn a_snapshot_is_read_only_stays_and_can_be_gone_back_to() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::create_dir(mount.join("folder")).unwrap();
    fs::write(mount.join("folder/file"), words(100_000)).unwrap();
    site.atoll(["snapshot", "create", "vol", "first"]).must_succeed();
    site.atoll(["snapshot", "create", "vol", "first"]).must_fail_saying(&["has a snapshot `first` already"]);
    site.atoll(["snapshot", "create", "vol", "a/b"]).must_fail_saying(&["`a/b` is no name for a snapshot"]);
    site.atoll(["snapshot", "delete", "vol", "nothing"]).must_fail_saying(&["no snapshot `nothing`", "snapshot list"]);
    fs::remove_dir_all(mount.join("folder")).unwrap();
    fs::write(mount.join("new"), "new").unwrap();

    let then = site.mount_volume("vol@first", "then", &[]);
    assert_eq!(fs::read(then.join("folder/file")).unwrap(), words(100_000));
    assert!(!then.join("new").exists());
    let refused =
        |result: std::io::Result<()>| assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    refused(fs::write(then.join("new"), ""));
    refused(fs::remove_file(then.join("folder/file")));
    site.atoll(["rm", "vol@first:/folder/file"]).must_fail_saying(&["read-only"]);
    site.atoll(["snapshot", "delete", "vol", "first"]).must_fail_saying(&["in use by 1 sessions", "unmount"]);
    site.atoll(["snapshot", "restore", "vol", "first"]).must_fail_saying(&["in use", "unmount"]);
    site.atoll(["volume", "delete", "vol"]).must_fail_saying(&["in use", "unmount"]);
    site.kill();
    site.start();
    // The mount comes back to the next server.
    assert_eq!(fs::read(then.join("folder/file")).unwrap(), words(100_000));

    site.unmount(&then);
    site.unmount(&mount);
    site.atoll(["snapshot", "restore", "vol", "nothing"]).must_fail_saying(&["no snapshot `nothing`"]);
    site.atoll(["snapshot", "create", "vol", "second"]).must_succeed();
    site.atoll(["snapshot", "restore", "vol", "first"]).must_succeed();
    let mount = site.mount("m");
    assert_eq!(fs::read(mount.join("folder/file")).unwrap(), words(100_000));
    assert!(!mount.join("new").exists());
    fs::write(mount.join("newer"), "newer").unwrap();
    site.unmount(&mount);
    site.atoll(["snapshot", "restore", "vol", "second"]).must_succeed();
    let mount = site.mount("m");
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 1);
    assert_eq!(fs::read(mount.join("new")).unwrap(), b"new");

    // What the first snapshot alone refers to goes with it, a while later.
    let before = segments(&site, "vol");
    assert!(before > 0);
    site.atoll(["snapshot", "delete", "vol", "first"]).must_succeed();
    assert_eq!(snapshots(&site), ["second"]);
    let end = Instant::now() + PATIENCE;
    while segments(&site, "vol") >= before {
        assert!(Instant::now() < end, "{before} segments are still there");
        pause();
    }
}

/// A clone begins as its source was, and each goes its own way.
fn clones(mut site: Site, durability: &str) {
    site.start();
    site.atoll(["volume", "create", "vol", "--durability", durability]).must_succeed();
    let mount = site.mount("m");
    fs::write(mount.join("kept"), words(500_000)).unwrap();
    fs::write(mount.join("changed"), words(1000)).unwrap();
    site.atoll(["snapshot", "create", "vol", "then"]).must_succeed();
    fs::write(mount.join("later"), "later").unwrap();

    // Of now, with a mount at work, and of a snapshot.
    site.atoll(["volume", "clone", "vol", "now"]).must_succeed();
    site.atoll(["volume", "clone", "vol@then", "old"]).must_succeed();
    site.atoll(["volume", "clone", "vol", "now"]).must_fail_saying(&["volume `now` exists already"]);
    site.atoll(["volume", "clone", "vol@nothing", "x"]).must_fail_saying(&["no snapshot `nothing`"]);
    site.atoll(["volume", "clone", "nothing", "x"]).must_fail_saying(&["no volume `nothing`"]);
    site.atoll(["snapshot", "delete", "vol", "then"]).must_succeed();

    // The source loses what the clones have of it, and its bytes with it.
    fs::remove_file(mount.join("kept")).unwrap();
    fs::write(mount.join("changed"), "by the source").unwrap();
    let (now, old) = (site.mount_volume("now", "now", &[]), site.mount_volume("old", "old", &[]));
    assert_eq!(fs::read(now.join("later")).unwrap(), b"later");
    assert!(!old.join("later").exists());
    for clone in [&now, &old] {
        assert_eq!(fs::read(clone.join("kept")).unwrap(), words(500_000));
        assert_eq!(fs::read(clone.join("changed")).unwrap(), words(1000));
        fs::write(clone.join("changed"), format!("by {}", clone.display())).unwrap();
        fs::write(clone.join("own"), words(70_000)).unwrap();
        fs::File::open(clone.join("own")).unwrap().sync_all().unwrap();
    }
    // A clone of a clone has bytes of both.
    site.atoll(["volume", "clone", "now", "next"]).must_succeed();
    site.unmount(&now);
    site.kill();
    site.start();
    let next = site.mount_volume("next", "next", &[]);
    assert_eq!(fs::read(next.join("kept")).unwrap(), words(500_000));
    assert_eq!(fs::read(next.join("own")).unwrap(), words(70_000));
    assert_eq!(fs::read_to_string(next.join("changed")).unwrap(), format!("by {}", now.display()));
    assert_eq!(fs::read_to_string(old.join("changed")).unwrap(), format!("by {}", old.display()));
    assert_eq!(fs::read_to_string(mount.join("changed")).unwrap(), "by the source");
    for volume in ["vol", "now", "old", "next"] {
        assert!(site.atoll(["fsck", volume, "--read"]).must_succeed().contains("clean"), "{volume}");
        let garbage = site.atoll(["--json", "gc", volume, "--dry-run"]).must_succeed();
        assert!(garbage.contains("\"objects\": 0"), "{volume}: {garbage}");
    }
    let info = site.atoll(["--json", "volume", "info", "next"]).must_succeed();
    assert!(info.contains("\"clone_of\": \"now\""), "{info}");

    // Long after the source's bytes would have gone.
    std::thread::sleep(Duration::from_secs(12));
    fs::remove_file(next.join("kept")).unwrap();
    fs::write(next.join("changed"), "").unwrap();
    fs::File::open(next.join("changed")).unwrap().sync_all().unwrap();
    site.unmount(&mount);
    site.unmount(&next);
    site.unmount(&old);
    site.atoll(["volume", "delete", "vol"]).must_fail_saying(&["has clones", "`now`", "`old`"]);
    site.atoll(["volume", "delete", "now"]).must_fail_saying(&["has clones", "`next`"]);
    site.kill();
    site.start();
    let old = site.mount_volume("old", "old", &[]);
    assert_eq!(fs::read(old.join("kept")).unwrap(), words(500_000));
    site.unmount(&old);
    for volume in ["next", "now"] {
        site.atoll(["volume", "delete", volume]).must_succeed();
    }
    let old = site.mount_volume("old", "old", &[]);
    assert_eq!(fs::read(old.join("kept")).unwrap(), words(500_000));
    site.unmount(&old);
    site.atoll(["volume", "delete", "old"]).must_succeed();
    site.atoll(["volume", "delete", "vol"]).must_succeed();
}

#[test]
fn clones_share_a_folder() {
    clones(Site::empty(), "local");
}

#[test]
fn clones_share_a_bucket() {
    let mut site = Site::with_s3();
    site.serve = vec!["--store".into(), "s3://bucket/prefix".into()];
    clones(site, "local");
}

#[test]
fn clones_share_a_bucket_that_is_all_there_is() {
    let mut site = Site::with_s3();
    site.serve = vec!["--store".into(), "s3://bucket/prefix".into()];
    clones(site, "object");
}

#[test]
fn a_server_that_is_killed_leaves_snapshots_and_clones_whole_or_not_made() {
    let mut site = Site::new();
    let mount = site.mount("m");
    for round in 0..10_u64 {
        fs::write(mount.join("file"), format!("round {round}")).unwrap();
        fs::write(mount.join(format!("f{round}")), words(20_000)).unwrap();
        let (snapshot, clone) = (format!("s{round}"), format!("c{round}"));
        let mut making = [vec!["snapshot", "create", "vol", &snapshot], vec!["volume", "clone", "vol", &clone]]
            .map(|arguments| site.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(7 * round));
        site.kill();
        let done = making.each_mut().map(|command| command.wait().unwrap().success());
        site.start();
        let listed = snapshots(&site);
        assert!(!done[0] || listed.contains(&snapshot), "{snapshot} was made: {listed:?}");
        for name in &listed {
            assert!(site.atoll(["fsck", &format!("vol@{name}"), "--read"]).must_succeed().contains("clean"), "{name}");
        }
        if listed.contains(&snapshot) {
            assert_eq!(site.atoll(["cat", &format!("vol@{snapshot}:/file")]).must_succeed(), format!("round {round}"));
        }
        let volumes = site.atoll(["volume", "list"]).must_succeed();
        let is_made = volumes.contains(&format!("volume {clone}:"));
        assert!(is_made || !done[1], "{clone} was made: {volumes}");
        if !is_made && round % 2 == 0 {
            // What is left of it is in nobody's way.
            site.atoll(["volume", "clone", "vol", &clone]).must_succeed();
        }
        if is_made || round % 2 == 0 {
            assert!(site.atoll(["fsck", &clone, "--read"]).must_succeed().contains("clean"));
            assert_eq!(site.atoll(["cat", &format!("{clone}:/file")]).must_succeed(), format!("round {round}"));
            site.atoll(["volume", "delete", &clone]).must_succeed();
        }
    }
    site.unmount(&mount);
    site.atoll(["volume", "delete", "vol"]).must_succeed();
}
