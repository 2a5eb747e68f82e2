//! Start, stop, crash, start again.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use crate::harness::*;

#[test]
fn all_of_it_is_still_there_after_a_restart() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::create_dir_all(mount.join("a/b/c")).unwrap();
    let big = words(3_000_000);
    fs::write(mount.join("a/big"), &big).unwrap();
    fs::write(mount.join("a/b/small"), b"small").unwrap();
    fs::hard_link(mount.join("a/b/small"), mount.join("a/b/c/link")).unwrap();
    symlink("../small", mount.join("a/b/c/symlink")).unwrap();
    fs::set_permissions(mount.join("a/big"), fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(mount.join("a/big")).unwrap();
    site.unmount(&mount);
    site.stop();

    site.start();
    let mount = site.mount("m");
    assert!(fs::read(mount.join("a/big")).unwrap() == big);
    let after = fs::metadata(mount.join("a/big")).unwrap();
    assert_eq!(
        (before.ino(), before.mode(), before.mtime(), before.mtime_nsec(), before.ctime_nsec()),
        (after.ino(), after.mode(), after.mtime(), after.mtime_nsec(), after.ctime_nsec())
    );
    assert_eq!(fs::read(mount.join("a/b/c/symlink")).unwrap(), b"small");
    assert_eq!(fs::metadata(mount.join("a/b/c/link")).unwrap().nlink(), 2);
}

#[test]
fn what_was_fsynced_survives_sigkill_of_the_server() {
    let mut site = Site::new();
    let mount = site.mount("m");
    for round in 0..3u8 {
        let small = fs::File::create(mount.join(format!("small{round}"))).unwrap();
        small.write_all_at(&[round; 5000], 0).unwrap();
        small.sync_all().unwrap();
        let large = fs::File::create(mount.join(format!("large{round}"))).unwrap();
        large.write_all_at(&vec![round; 700_000], 0).unwrap();
        large.sync_data().unwrap();
        drop((small, large));
        site.kill();
        site.start();
        for past in 0..=round {
            assert!(fs::read(mount.join(format!("small{past}"))).unwrap() == [past; 5000]);
            assert!(fs::read(mount.join(format!("large{past}"))).unwrap() == vec![past; 700_000]);
        }
    }
}

#[test]
fn up_serves_and_mounts_in_one_process_and_sigterm_unmounts() {
    let site = Site::empty();
    let mount = site.path("m");
    fs::create_dir(&mount).unwrap();
    let start = || {
        let mut child = Command::new(BINARY)
            .arg("up")
            .arg(&mount)
            .arg("--data")
            .arg(site.path("data"))
            .env("XDG_RUNTIME_DIR", site.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let first = first_line(&mut child);
        assert!(!first.is_empty(), "up ended without a word");
        eventually("the mount appears", || is_mounted(&mount));
        child
    };
    let mut child = start();
    fs::write(mount.join("kept"), b"kept").unwrap();
    signal(&child, rustix::process::Signal::TERM);
    assert!(wait_bounded(&mut child).expect("up ends").success());
    assert!(!is_mounted(&mount));
    let mut child = start();
    assert_eq!(fs::read(mount.join("kept")).unwrap(), b"kept");
    signal(&child, rustix::process::Signal::INT);
    assert!(wait_bounded(&mut child).expect("up ends").success());
    assert!(!is_mounted(&mount));
}

#[test]
fn files_are_reachable_without_a_mount() {
    let site = Site::new();
    let local = site.path("local");
    fs::create_dir_all(local.join("sub")).unwrap();
    fs::write(local.join("one"), b"1").unwrap();
    fs::write(local.join("sub/two"), vec![2u8; 200_000]).unwrap();
    site.atoll(["cp", "-r", local.to_str().unwrap(), "vol:/tree"]).must_succeed();
    assert!(site.atoll(["ls", "vol:/tree"]).must_succeed().contains("one"));
    assert_eq!(site.atoll(["cat", "vol:/tree/one"]).must_succeed(), "1");
    let back = site.path("back");
    site.atoll(["cp", "-r", "vol:/tree", back.to_str().unwrap()]).must_succeed();
    assert!(fs::read(back.join("sub/two")).unwrap() == vec![2u8; 200_000]);
    site.atoll(["rm", "-r", "vol:/tree"]).must_succeed();
    site.atoll(["ls", "vol:/tree"]).must_fail_saying(&["tree"]);
}

#[test]
fn an_unlinked_file_lives_until_its_last_descriptor_is_closed() {
    let mut site = Site::new();
    let (first, second) = (site.mount("m1"), site.mount("m2"));
    fs::write(first.join("f"), b"still here").unwrap();
    let mut open = fs::OpenOptions::new().read(true).write(true).open(first.join("f")).unwrap();
    fs::remove_file(second.join("f")).unwrap();
    assert!(!first.join("f").exists());
    let mut bytes = String::new();
    open.read_to_string(&mut bytes).unwrap();
    assert_eq!(bytes, "still here");
    open.write_all(b", and writable").unwrap();
    assert_eq!(open.metadata().unwrap().len(), 24);
}

#[test]
fn a_killed_server_gives_a_bounded_error_and_a_restarted_one_is_reconnected() {
    let mut site = Site::new();
    let mount = site.mount_with("m", &["-o", "reply_timeout=2"]);
    let file = mount.join("f");
    fs::write(&file, b"before").unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    for _ in 0..2 {
        site.kill();
        // Bounded: the server stays away, so the call ends in EIO.
        let error = fs::read(&file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
        // A process that waits for the server dies at once when it is killed.
        let mut waiting = std::process::Command::new("cat").arg(&file).stderr(Stdio::null()).spawn().unwrap();
        waiting.kill().unwrap();
        assert!(wait_bounded(&mut waiting).is_some(), "SIGKILL must end a waiting process");
        site.start();
        eventually("the mount reconnects", || fs::read(&file).is_ok_and(|bytes| bytes == b"before"));
        fs::write(mount.join("after"), b"after").unwrap();
    }
    site.unmount(&mount);
}
