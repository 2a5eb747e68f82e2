//! What a mount changes alone it changes at once, and nobody can tell from what they see.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::*;

/// A folder that this mount made, so that it is its own.
fn own(mount: &Path, name: &str) -> std::path::PathBuf {
    let folder = mount.join(name);
    fs::create_dir(&folder).unwrap();
    // The first change asks for what the later ones need.
    fs::write(folder.join("first"), b"first").unwrap();
    fs::metadata(&folder).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    folder
}

/// Many kinds of change under a folder, each of which others must see.
fn change(folder: &Path, count: usize) {
    for number in 0..count {
        let sub = folder.join(format!("s{number}"));
        fs::create_dir(&sub).unwrap();
        let path = sub.join("made");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&words(number as u32 + 1)).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        file.write_all(b"more").unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000 + number as u64)).unwrap();
        fs::rename(&path, sub.join("kept")).unwrap();
        fs::write(sub.join("gone"), b"gone").unwrap();
        fs::remove_file(sub.join("gone")).unwrap();
        std::os::unix::fs::symlink("kept", sub.join("link")).unwrap();
    }
}

fn check(folder: &Path, count: usize) {
    for number in 0..count {
        let sub = folder.join(format!("s{number}"));
        let mut names: Vec<_> = fs::read_dir(&sub).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["kept", "link"], "{sub:?}");
        let mut expected = words(number as u32 + 1);
        expected.extend_from_slice(b"more");
        assert!(fs::read(sub.join("link")).unwrap() == expected, "{sub:?}");
        let kept = fs::metadata(sub.join("kept")).unwrap();
        assert_eq!((kept.len(), kept.mode() & 0o7777), (expected.len() as u64, 0o640));
        assert_eq!(kept.mtime(), 1_000 + number as i64);
        assert_eq!(kept.blocks(), kept.len().div_ceil(512));
        assert_eq!(fs::metadata(&sub).unwrap().size(), 8);
    }
}

#[test]
fn changes_in_a_folder_of_ones_own_need_no_server_and_are_seen_by_everybody() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let folder = own(&a, "d");
    let frozen = site.freeze_server();
    let start = Instant::now();
    change(&folder, 20);
    assert!(start.elapsed() < Duration::from_secs(3), "longer than a term: {:?}", start.elapsed());
    drop(frozen);
    check(&b.join("d"), 20);
    check(&folder, 20);
}

#[test]
fn what_a_mount_shows_before_and_after_it_was_written_back_is_the_same() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let folder = own(&a, "d");
    let facts = |path: &Path| {
        let m = fs::symlink_metadata(path).unwrap();
        (m.ino(), m.mode(), m.nlink(), m.size(), m.blocks(), (m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()))
    };
    let frozen = site.freeze_server();
    change(&folder, 5);
    let names = ["", "s1", "s4", "s4/kept", "s0/link"];
    let before: Vec<_> = names.iter().map(|name| facts(&folder.join(name))).collect();
    drop(frozen);
    fs::File::open(&folder).unwrap().sync_all().unwrap();
    for (name, before) in names.iter().zip(&before) {
        assert_eq!(facts(&b.join("d").join(name)), *before, "{name}");
        assert_eq!(facts(&folder.join(name)), *before, "{name}");
    }
}

#[test]
fn changes_outlive_a_server_that_was_killed_before_it_heard_of_them() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let folder = own(&a, "d");
    fs::File::open(folder.join("first")).unwrap().sync_all().unwrap();
    let frozen = site.freeze_server();
    change(&folder, 10);
    site.kill();
    drop(frozen);
    site.start();
    // The other mount asks first: it must not see the time before.
    check(&b.join("d"), 10);
    check(&folder, 10);
}

#[test]
fn what_a_killed_mount_made_survives_as_a_beginning_of_it_and_whole_when_it_was_synced() {
    let mut site = Site::new();
    let (a, b) = (site.mount_with("m1", &["-o", "nokeeper"]), site.mount("m2"));
    let folder = own(&a, "d");
    for number in 0..200 {
        fs::write(folder.join(format!("f{number}")), words(number)).unwrap();
        if number == 99 {
            fs::File::open(folder.join("f0")).unwrap().sync_all().unwrap();
        }
    }
    rustix::process::kill_process(site.process_of(&a), rustix::process::Signal::KILL).unwrap();
    let there = |number: u32| match fs::read(b.join(format!("d/f{number}"))) {
        Ok(bytes) => {
            // A name comes before its bytes.
            assert!(bytes == words(number) || bytes.is_empty(), "f{number}");
            Some(bytes == words(number))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("f{number}: {error}"),
    };
    let states: Vec<Option<bool>> = (0..200).map(there).collect();
    let whole = states.iter().take_while(|state| **state == Some(true)).count();
    assert!(whole >= 100, "{whole} of 100 that were synced");
    assert!(states.iter().skip(whole + 1).all(|state| state.is_none()), "not a beginning: {states:?}");
    println!("{whole} of 200 files survived");
}

#[test]
fn a_session_that_was_fenced_says_what_it_lost_once() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let folder = own(&a, "d");
    let file = fs::File::create(folder.join("f")).unwrap();
    file.write_all_at(b"old", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(folder.join("f")).unwrap(), b"old");
    file.write_all_at(b"Old", 0).unwrap();
    let process = site.process_of(&a);
    // More than fits into the socket while nobody reads it.
    let frozen = site.freeze_server();
    for number in 0..16 {
        file.write_all_at(&vec![7; 1 << 20], number << 20).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    let mount = Frozen::new(process);
    drop(frozen);
    let path = b.join("d/f");
    let start = Instant::now();
    let seen = fs::read(&path).unwrap();
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    assert!(seen.len() < 16 << 20, "nothing was lost: this says nothing");
    fs::write(&path, b"new").unwrap();
    drop(mount);
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(5));
    file.sync_all().unwrap();
    assert_eq!(fs::read(folder.join("f")).unwrap(), b"new");
    file.write_all_at(b"now", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"now");
}

#[test]
fn an_unmount_writes_everything_back() {
    let mut site = Site::new();
    let a = site.mount("m1");
    let folder = own(&a, "d");
    change(&folder, 30);
    site.unmount(&a);
    let b = site.mount("m2");
    check(&b.join("d"), 30);
}

#[test]
fn a_default_acl_is_inherited_by_what_is_made_alone() {
    let mut site = Site::new();
    let a = site.mount("m1");
    let folder = own(&a, "d");
    fs::write(folder.join("before"), b"").unwrap();
    run(&folder, "setfacl", &["-d", "-m", "u:daemon:rwx", "."]);
    fs::create_dir(folder.join("sub")).unwrap();
    fs::write(folder.join("sub/after"), b"").unwrap();
    for name in ["sub", "sub/after"] {
        assert!(run(&folder, "getfacl", &[name]).contains("user:daemon:rwx"), "{name}");
    }
    assert!(!run(&folder, "getfacl", &["before"]).contains("daemon"));
}
