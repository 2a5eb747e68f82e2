//! The trash: what was removed on any mount is found there by root.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::harness::*;

/// The files in the trash, as a mount shows them.
fn kept(mount: &Path) -> Vec<PathBuf> {
    let Ok(hours) = fs::read_dir(mount.join(".trash")) else { return Vec::new() };
    let files = |hour: PathBuf| fs::read_dir(hour).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();
    hours.flat_map(|hour| files(hour.unwrap().path())).collect()
}

fn named(mount: &Path, end: &str) -> PathBuf {
    let kept = kept(mount);
    let found = kept.iter().find(|path| path.file_name().unwrap().to_str().unwrap().ends_with(end));
    found.unwrap_or_else(|| panic!("no {end} among {kept:?}")).clone()
}

#[test]
fn what_is_removed_on_one_mount_is_restored_on_another() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let shown = site.atoll(["--json", "volume", "trash", "vol"]).must_succeed();
    assert!(shown.contains("\"retention_seconds\": null"), "{shown}");
    // Clients that know the whole root know nothing of it.
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
    assert!(!a.join(".trash").exists());
    site.atoll(["volume", "trash", "vol", "--retention", "7"]).must_fail_saying(&["days or hours"]);
    site.atoll(["volume", "trash", "vol", "--retention", "7d"]).must_succeed();

    // Removed at once by a mount that has everything for itself, and told to the server later.
    fs::create_dir(a.join("folder")).unwrap();
    fs::write(a.join("folder/file"), words(50_000)).unwrap();
    fs::remove_dir_all(a.join("folder")).unwrap();
    fs::write(a.join("saved"), "old").unwrap();
    fs::write(a.join("saved.new"), "new").unwrap();
    fs::rename(a.join("saved.new"), a.join("saved")).unwrap();
    fs::File::open(a.join("saved")).unwrap().sync_all().unwrap();
    for mount in [&b, &a] {
        assert_eq!(kept(mount).len(), 2);
        assert_eq!(fs::read(named(mount, "-file")).unwrap(), words(50_000));
        assert_eq!(fs::read(named(mount, "-saved")).unwrap(), b"old");
        assert_eq!(fs::metadata(mount.join(".trash")).unwrap().permissions().mode() & 0o7777, 0o700);
        assert!(!run(mount, "ls", &["-a"]).contains("trash"));
    }
    fs::write(b.join("seen"), "by both").unwrap();
    assert_eq!(fs::read(a.join("seen")).unwrap(), b"by both");
    fs::remove_file(a.join("seen")).unwrap();
    assert_eq!(kept(&b).len(), 3, "at once");
    run(&b, "mv", &[named(&b, "-file").to_str().unwrap(), "restored"]);
    assert_eq!(fs::read(a.join("restored")).unwrap(), words(50_000));
    fs::remove_file(named(&a, "-seen")).unwrap();
    assert_eq!(kept(&b).len(), 1);

    // A file that stays open, removed by its own mount.
    let mut open = fs::OpenOptions::new().read(true).write(true).create_new(true).open(a.join("open")).unwrap();
    open.write_all(b"first").unwrap();
    fs::remove_file(a.join("open")).unwrap();
    open.write_all(b" second").unwrap();
    eventually("the server has heard of it", || kept(&b).len() == 2);
    assert_eq!(fs::read(named(&b, "-open")).unwrap(), b"first second");
    eventually("the mount knows that it has a name again", || open.metadata().unwrap().nlink() == 1);

    site.kill();
    site.start();
    assert_eq!(kept(&a).len(), 2);
    let status = site.atoll(["volume", "trash", "vol"]).must_succeed();
    assert!(status.contains("kept for 7d") && status.contains("2 files"), "{status}");
    assert!(site.atoll(["fsck", "vol", "--read"]).must_succeed().contains("clean"));
    assert!(site.atoll(["trash", "empty", "vol"]).must_succeed().contains("2 files destroyed"));
    for mount in [&a, &b] {
        assert_eq!(kept(mount).len(), 0);
        assert_eq!(fs::read_dir(mount.join(".trash")).unwrap().count(), 0);
    }
    let mut rest = [0; 12];
    open.read_exact_at(&mut rest, 0).unwrap();
    assert_eq!(&rest, b"first second", "who has it open keeps it");
    site.atoll(["volume", "trash", "vol", "--off"]).must_succeed();
    fs::remove_file(a.join("saved")).unwrap();
    fs::remove_file(b.join("restored")).unwrap();
    assert_eq!(kept(&a).len(), 0);
    drop(open);
    assert!(site.atoll(["fsck", "vol", "--read"]).must_succeed().contains("clean"));
}

#[test]
fn a_full_volume_has_room_again_when_its_trash_is_emptied() {
    let mut site = Site::new();
    let mount = site.mount("m");
    site.atoll(["volume", "trash", "vol", "--retention", "12h"]).must_succeed();
    site.atoll(["volume", "quota", "vol", "--bytes", "4MiB"]).must_succeed();
    let bytes = vec![7; 3 << 20];
    fs::write(mount.join("file"), &bytes).unwrap();
    fs::remove_file(mount.join("file")).unwrap();
    let full = fs::write(mount.join("file"), &bytes).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::QuotaExceeded);
    // What could be written of it is kept, too.
    fs::remove_file(mount.join("file")).unwrap();
    site.atoll(["trash", "empty", "vol"]).must_succeed();
    fs::write(mount.join("file"), &bytes).unwrap();
}

#[test]
fn what_is_in_the_trash_is_listed_and_put_back_without_a_mount() {
    let mut site = Site::new();
    let mount = site.mount("m");
    assert_eq!(site.atoll(["trash", "list", "vol"]).must_succeed(), "");
    site.atoll(["volume", "trash", "vol", "--retention", "7d"]).must_succeed();
    fs::create_dir(mount.join("old")).unwrap();
    for name in ["a-b", "again", "gone"] {
        fs::write(mount.join("old").join(name), name).unwrap();
    }
    fs::create_dir(mount.join("left")).unwrap();
    fs::rename(mount.join("old/gone"), mount.join("left/gone")).unwrap();
    for path in ["old/a-b", "old/again", "left/gone"] {
        fs::remove_file(mount.join(path)).unwrap();
    }
    fs::write(mount.join("old/again"), "a new one").unwrap();
    fs::remove_dir(mount.join("left")).unwrap();
    fs::rename(mount.join("old"), mount.join("renamed")).unwrap();
    fs::File::open(mount.join("renamed/again")).unwrap().sync_all().unwrap();

    let listed = site.atoll(["--json", "trash", "list", "vol"]).must_succeed();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let entry = |name: &str| {
        let found = listed.as_array().unwrap().iter().find(|row| row["name"] == name);
        let row = found.unwrap_or_else(|| panic!("no {name} in {listed}"));
        assert_eq!(row["bytes"], name.len());
        row["entry"].as_str().unwrap().to_owned()
    };
    assert_eq!(listed.as_array().unwrap().len(), 3);
    assert!(site.atoll(["trash", "list", "vol"]).must_succeed().contains(&entry("a-b")));
    // To the directory that it was in, which has another name now.
    site.atoll(["trash", "restore", "vol", &entry("a-b")]).must_succeed();
    assert_eq!(fs::read(mount.join("renamed/a-b")).unwrap(), b"a-b");
    site.atoll(["trash", "restore", "vol", &entry("a-b")]).must_fail_saying(&["no entry", "trash list"]);
    site.atoll(["trash", "restore", "vol", &entry("again")]).must_fail_saying(&["there again", "--to"]);
    site.atoll(["trash", "restore", "vol", &entry("gone")]).must_fail_saying(&["gone", "--to"]);
    site.atoll(["trash", "restore", "vol", &entry("again"), "--to", "/renamed/before"]).must_succeed();
    site.atoll(["trash", "restore", "vol", &entry("gone"), "--to", "/renamed"]).must_succeed();
    assert_eq!(fs::read(mount.join("renamed/before")).unwrap(), b"again");
    assert_eq!(fs::read(mount.join("renamed/gone")).unwrap(), b"gone");
    assert_eq!(fs::read(mount.join("renamed/again")).unwrap(), b"a new one");
    assert_eq!(site.atoll(["trash", "list", "vol"]).must_succeed(), "");
    for wrong in ["", "x", "x/y", "../x", "2026-01-31-23/1-2-x"] {
        site.atoll(["trash", "restore", "vol", wrong]).must_fail_saying(&["no entry"]);
    }
}
