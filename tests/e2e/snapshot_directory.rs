//! `.snapshots` on mounts: files are restored with `cp`.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::harness::*;

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw_os_error)
}

#[test]
fn a_file_is_restored_with_cp_on_any_mount() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::create_dir_all(a.join("folder/below")).unwrap();
    fs::write(a.join("folder/below/file"), words(300_000)).unwrap();
    fs::write(a.join("kept"), "first").unwrap();
    std::os::unix::fs::symlink("kept", a.join("link")).unwrap();
    assert_eq!(names(&a.join(".snapshots")), [""; 0]);
    site.atoll(["snapshot", "create", "vol", "first"]).must_succeed();
    for mount in [&a, &b] {
        assert_eq!(names(&mount.join(".snapshots")), ["first"], "at once");
        assert_eq!(names(mount), ["folder", "kept", "link"], "no listing shows it");
    }
    // The name is known not to be there by listings alone.
    fs::create_dir(b.join("another")).unwrap();
    assert!(!b.join(".snapshots/first/another").exists());
    fs::remove_dir_all(a.join("folder")).unwrap();
    fs::write(a.join("kept"), "second").unwrap();
    site.atoll(["snapshot", "create", "vol", "second"]).must_succeed();
    assert_eq!(names(&b.join(".snapshots")), ["first", "second"]);

    for mount in [&b, &a] {
        let then = mount.join(".snapshots/first");
        assert_eq!(fs::read(then.join("folder/below/file")).unwrap(), words(300_000));
        assert_eq!(fs::read(then.join("kept")).unwrap(), b"first");
        assert_eq!(fs::read(then.join("link")).unwrap(), b"first");
        assert_eq!(fs::read(mount.join(".snapshots/second/kept")).unwrap(), b"second");
        assert!(!mount.join(".snapshots/second/folder").exists());
        let found = run(&then, "find", &["."]);
        let mut found: Vec<&str> = found.lines().collect();
        found.sort();
        assert_eq!(found, [".", "./folder", "./folder/below", "./folder/below/file", "./kept", "./link"]);
        assert!(!run(mount, "find", &["-xdev"]).contains("snapshots"));
        assert!(run(&then, "ls", &["-la", ".."]).contains("second"));
        let number = |path: &str| fs::metadata(mount.join(path)).unwrap().ino();
        assert_ne!(number("kept"), number(".snapshots/first/kept"), "it is another file");
        assert_ne!(number(".snapshots/second/kept"), number(".snapshots/first/kept"));
    }
    run(&b, "cp", &["-a", ".snapshots/first/folder", "."]);
    assert_eq!(fs::read(a.join("folder/below/file")).unwrap(), words(300_000));
    run(&b, "cp", &["-p", ".snapshots/first/kept", "kept"]);
    assert_eq!(fs::read(a.join("kept")).unwrap(), b"first");
    let listed = site.atoll(["ls", "vol:/.snapshots"]).must_succeed();
    assert!(listed.contains("first") && listed.contains("second"), "{listed}");
    assert_eq!(site.atoll(["cat", "vol:/.snapshots/second/kept"]).must_succeed(), "second");
    // Programs can run from there.
    fs::copy("/bin/true", a.join("true")).unwrap();
    site.atoll(["snapshot", "create", "vol", "third"]).must_succeed();
    run(&b, ".snapshots/third/true", &[]);

    site.unmount(&a);
    site.unmount(&b);
    site.atoll(["snapshot", "restore", "vol", "second"]).must_succeed();
    let a = site.mount("m1");
    assert_eq!(names(&a), ["another", "kept", "link"]);
    assert_eq!(names(&a.join(".snapshots")), ["first", "second", "third"]);
    assert_eq!(fs::read(a.join(".snapshots/first/kept")).unwrap(), b"first");
    let then = site.mount_volume("vol@first", "then", &[]);
    assert!(!then.join(".snapshots").exists(), "a snapshot has none");
}

#[test]
fn nothing_below_it_can_be_changed() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::create_dir(mount.join("folder")).unwrap();
    fs::write(mount.join("folder/file"), "then").unwrap();
    site.atoll(["snapshot", "create", "vol", "s"]).must_succeed();
    let (snapshots, then) = (mount.join(".snapshots"), mount.join(".snapshots/s"));
    let refused = |result: std::io::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    refused(fs::create_dir(snapshots.join("new")));
    refused(fs::remove_dir(snapshots.join("s")));
    refused(fs::remove_dir(&snapshots));
    refused(fs::rename(&snapshots, mount.join("other")));
    for directory in [&then, &then.join("folder")] {
        refused(fs::write(directory.join("new"), "x"));
        refused(fs::create_dir(directory.join("new")));
        refused(std::os::unix::fs::symlink("x", directory.join("new")));
    }
    let file = then.join("folder/file");
    refused(fs::write(&file, "x"));
    refused(fs::OpenOptions::new().append(true).open(&file).map(|_| ()));
    refused(fs::remove_file(&file));
    refused(fs::set_permissions(&file, fs::metadata(&file).unwrap().permissions()));
    refused(fs::rename(&file, then.join("folder/other")));
    refused(fs::rename(mount.join("folder/file"), then.join("folder/other")));
    refused(fs::hard_link(mount.join("folder/file"), then.join("other")));
    assert_eq!(errno(fs::create_dir(&snapshots)), Some(Errno::EXIST));
    assert_eq!(errno(fs::rename(&file, mount.join("moved"))), Some(Errno::XDEV));
    assert_eq!(errno(fs::hard_link(&file, mount.join("linked"))), Some(Errno::XDEV));
    assert_eq!(fs::read(&file).unwrap(), b"then");
    assert_eq!(names(&mount), ["folder"]);
    // As on a mount of the snapshot.
    run(&then, "flock", &["-s", "folder/file", "true"]);
    run(&then, "stat", &["-f", "folder"]);
}

#[test]
fn a_snapshot_may_be_deleted_while_it_is_used() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::write(a.join("file"), words(100_000)).unwrap();
    site.atoll(["snapshot", "create", "vol", "s"]).must_succeed();
    let open = fs::File::open(b.join(".snapshots/s/file")).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, 5000).unwrap();
    site.atoll(["snapshot", "delete", "vol", "s"]).must_succeed();
    for mount in [&a, &b] {
        assert_eq!(names(&mount.join(".snapshots")), [""; 0], "at once");
    }
    assert_eq!(errno(open.read_exact_at(&mut byte, 5000)), Some(Errno::STALE));
    assert_eq!(errno(open.metadata()), Some(Errno::STALE));
    assert_eq!(errno(fs::metadata(b.join(".snapshots/s/file"))), Some(Errno::NOENT));
    // One of the same name is another one.
    fs::write(a.join("file"), "new").unwrap();
    site.atoll(["snapshot", "create", "vol", "s"]).must_succeed();
    assert_eq!(errno(open.read_exact_at(&mut byte, 0)), Some(Errno::STALE));
    assert_eq!(fs::read(b.join(".snapshots/s/file")).unwrap(), b"new");
}

#[test]
fn who_is_in_a_snapshot_notices_no_killed_server_and_no_killed_mount() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::create_dir(mount.join("folder")).unwrap();
    fs::write(mount.join("folder/file"), words(100_000)).unwrap();
    site.atoll(["snapshot", "create", "vol", "s"]).must_succeed();
    fs::remove_dir_all(mount.join("folder")).unwrap();
    let folder = mount.join(".snapshots/s/folder");
    let open = fs::File::open(folder.join("file")).unwrap();
    // Its working directory is there.
    let script = "while read line; do cat file | md5sum; done";
    let mut inside = Command::new("sh");
    inside.args(["-c", script]).current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut inside = inside.spawn().unwrap();
    let mut said = BufReader::new(inside.stdout.take().unwrap()).lines();
    let sum = run(&folder, "sh", &["-c", "cat file | md5sum"]);
    let mut check = |what: &str| {
        inside.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), sum.trim(), "{what}");
        let mut bytes = vec![0; words(100_000).len()];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == words(100_000), "{what}");
    };
    check("at first");
    site.kill();
    site.start();
    check("with the next server");
    let process = site.process_of(&mount);
    rustix::process::kill_process(process, Signal::KILL).unwrap();
    check("with the mount's successor");
    site.atoll(["mount", "--replace", "vol", mount.to_str().unwrap()]).must_succeed();
    check("with the next program");
    drop(inside.stdin.take());
    inside.wait().unwrap();
}
