//! Directories hold no more than they may, whoever writes, and `df` shows it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::*;

const MIB: u64 = 1 << 20;

fn set(site: &Site, target: &str, arguments: &[&str]) {
    site.atoll([&["volume", "quota", target], arguments].concat()).must_succeed();
}

/// The quota of a path, as `atoll volume quotas` shows it.
fn quota(site: &Site, path: &str) -> Option<serde_json::Value> {
    let text = site.atoll(["--json", "volume", "quotas", "vol"]).must_succeed();
    let quotas: serde_json::Value = serde_json::from_str(&text).unwrap();
    quotas.as_array().unwrap().iter().find(|quota| quota["path"] == path).cloned()
}

fn used(site: &Site, path: &str) -> (u64, u64) {
    let quota = quota(site, path).unwrap_or_else(|| panic!("{path} has no quota"));
    (quota["bytes"].as_u64().unwrap(), quota["inodes"].as_u64().unwrap())
}

/// Write files of so many bytes until one is refused; answers how many there are.
fn fill(folder: &Path, name: &str, bytes: usize) -> u64 {
    for number in 0..100_000 {
        let path = folder.join(format!("{name}{number}"));
        let write = || {
            let mut file = fs::File::create(&path)?;
            file.write_all(&vec![number as u8; bytes])?;
            file.sync_all()
        };
        if let Err(error) = write() {
            assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
            fs::remove_file(path).unwrap_or_else(|error| assert_eq!(error.kind(), ErrorKind::NotFound));
            return number;
        }
    }
    panic!("nothing is ever refused");
}

/// Bytes of files and inodes below a folder, itself included.
fn count(folder: &Path) -> (u64, u64) {
    let mut total = (0, 1);
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let more = match entry.file_type().unwrap().is_dir() {
            true => count(&entry.path()),
            false => (entry.metadata().unwrap().len(), 1),
        };
        total = (total.0 + more.0, total.1 + more.1);
    }
    total
}

#[test]
fn two_mounts_together_write_what_a_directory_may_hold_and_no_more() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::create_dir_all(a.join("home/ann")).unwrap();
    fs::write(a.join("home/ann/before"), vec![1; 3 * MIB as usize]).unwrap();
    set(&site, "vol:/home/ann", &["--bytes", "40MiB"]);
    let written = std::thread::scope(|scope| {
        let filling = [(&a, "a"), (&b, "b")]
            .map(|(mount, name)| scope.spawn(move || fill(&mount.join("home/ann"), name, MIB as usize)));
        filling.map(|filled| filled.join().unwrap()).iter().sum::<u64>()
    });
    assert!((35..=37).contains(&written), "{written} MiB beside 3 of 40");
    assert!(used(&site, "/home/ann").0 <= 40 * MIB);
    // Elsewhere there is room, and more cannot come in by moving.
    fs::write(b.join("home/free"), vec![2; 5 * MIB as usize]).unwrap();
    let moved = fs::rename(b.join("home/free"), b.join("home/ann/free")).unwrap_err();
    assert_eq!(moved.kind(), ErrorKind::QuotaExceeded, "{moved}");

    let shown = |path: &Path| {
        let space = rustix::fs::statvfs(path).unwrap();
        (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize)
    };
    let part = site.mount_volume("vol:/home/ann", "part", &[]);
    let (size, left) = shown(&part);
    assert_eq!(size, 40 * MIB);
    assert!(left <= 2 * MIB);
    assert_eq!(shown(&a.join("home/ann/before")).0, 40 * MIB, "the same seen from the whole");
    assert!(shown(&a).0 > 40 * MIB);
    let df = run(&part, "df", &["--output=size", "--block-size=1M", "."]);
    assert!(df.lines().any(|line| line.trim() == "40"), "{df}");

    // What is there can be read, changed and removed, and makes room again; for others as well, and after a crash.
    fs::OpenOptions::new().write(true).open(part.join("before")).unwrap().set_len(MIB).unwrap();
    fs::write(b.join("home/ann/again"), vec![2; 2 * MIB as usize]).unwrap();
    site.kill();
    site.start();
    let more = fs::write(part.join("more"), vec![3; 9 * MIB as usize]).unwrap_err();
    assert_eq!(more.kind(), ErrorKind::QuotaExceeded, "{more}");
    fs::remove_file(a.join("home/ann/more")).unwrap();
    set(&site, "vol:/home/ann", &["--none"]);
    assert_eq!(quota(&site, "/home/ann"), None);
    fs::write(part.join("more"), vec![3; 9 * MIB as usize]).unwrap();
}

#[test]
fn a_mount_that_writes_without_asking_is_stopped_where_the_quota_of_a_directory_is() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::create_dir_all(mount.join("own/deep")).unwrap();
    set(&site, "vol:/own", &["--bytes", "200MiB", "--inodes", "20000"]);
    assert_eq!(fill(&mount.join("own/deep"), "f", 256 << 10), 800);
    assert_eq!(used(&site, "/own"), (200 * MIB, 802));
    fs::remove_dir_all(mount.join("own/deep")).unwrap();
    // It has the right to make names in all of these alone.
    for folder in 0..100 {
        fs::create_dir_all(mount.join(format!("own/{folder}"))).unwrap();
        fs::write(mount.join(format!("own/{folder}/first")), "").unwrap();
    }
    let mut made = 0;
    'full: for round in 0.. {
        for folder in 0..100 {
            match fs::write(mount.join(format!("own/{folder}/{round}")), "") {
                Ok(()) => made += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
                    break 'full;
                }
            }
        }
    }
    assert_eq!(made, 20_000 - 201);
    assert_eq!(used(&site, "/own"), (0, 20_000));
}

#[test]
fn a_mount_that_may_write_thousands_of_files_alone_asks_before_the_quota_is_reached() {
    const FILES: usize = 3000;
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::create_dir(mount.join("own")).unwrap();
    set(&site, "vol:/own", &["--bytes", "150MiB"]);
    let path = |number: usize| mount.join(format!("own/{number}"));
    for number in 0..FILES {
        fs::write(path(number), "").unwrap();
    }
    let mut written = 0;
    for number in 0..FILES {
        // Nothing here says to the server that it is about to be written.
        let mut file = fs::OpenOptions::new().write(true).open(path(number)).unwrap();
        match file.write(&vec![1; 200 << 10]) {
            Ok(bytes) => written += bytes as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
                break;
            }
        }
    }
    assert!(written <= 150 * MIB && written > 149 * MIB, "{written}");
    assert_eq!(used(&site, "/own").0, written);
}

#[test]
fn what_is_moved_from_one_quota_to_another_is_charged_there() {
    let mut site = Site::new();
    let (mount, other) = (site.mount("m1"), site.mount("m2"));
    fs::create_dir_all(mount.join("a/inner/tree")).unwrap();
    fs::create_dir(mount.join("b")).unwrap();
    for number in 0..20 {
        fs::write(mount.join(format!("a/inner/tree/{number}")), vec![1; 1000]).unwrap();
    }
    for path in ["vol:/a", "vol:/a/inner", "vol:/b"] {
        set(&site, path, &["--bytes", "1GiB", "--inodes", "1000000"]);
    }
    assert_eq!((used(&site, "/a"), used(&site, "/a/inner")), ((20_000, 23), (20_000, 22)));
    // The mount may do all of this alone, but for that it leads from one to the other.
    fs::rename(mount.join("a/inner/tree/0"), mount.join("b/0")).unwrap();
    assert_eq!((used(&site, "/a"), used(&site, "/b")), ((19_000, 22), (1000, 2)));
    let error = |result: std::io::Result<()>| result.unwrap_err().kind();
    assert_eq!(error(fs::rename(mount.join("a/inner/tree"), mount.join("b/tree"))), ErrorKind::CrossesDevices);
    assert_eq!(error(fs::rename(mount.join("a/inner"), mount.join("b/inner"))), ErrorKind::CrossesDevices);
    assert_eq!(error(fs::hard_link(mount.join("a/inner/tree/1"), mount.join("b/1"))), ErrorKind::CrossesDevices);
    fs::hard_link(mount.join("a/inner/tree/1"), mount.join("a/inner/tree/one")).unwrap();
    assert_eq!(error(fs::rename(mount.join("a/inner/tree/1"), mount.join("b/1"))), ErrorKind::CrossesDevices);
    run(&mount, "mv", &["a/inner/tree", "b/tree"]);
    assert_eq!(fs::read(other.join("b/tree/19")).unwrap(), vec![1; 1000]);
    assert_eq!((used(&site, "/a"), used(&site, "/a/inner")), ((0, 2), (0, 1)));
    // 20 files, one of them with two names, and two directories.
    assert_eq!(used(&site, "/b"), (20_000, 22));
    fs::rename(mount.join("a/inner"), mount.join("a/renamed")).unwrap();
    fs::create_dir(mount.join("a/empty")).unwrap();
    fs::rename(mount.join("a/empty"), mount.join("b/empty")).unwrap();
    assert_eq!((used(&site, "/a").1, used(&site, "/b").1), (2, 23));

    // Snapshots and clones have them, too.
    site.atoll(["snapshot", "create", "vol", "then"]).must_succeed();
    let then = site.atoll(["volume", "quotas", "vol@then"]).must_succeed();
    assert!(then.contains("/b: 20000 of 1073741824 bytes, 23 of 1000000 inodes"), "{then}");
    let part = site.mount_volume("vol@then:/b", "then", &[]);
    assert_eq!(fs::read(part.join("tree/19")).unwrap(), vec![1; 1000]);
    assert_eq!(error(fs::write(part.join("new"), "")), ErrorKind::ReadOnlyFilesystem);
    let space = rustix::fs::statvfs(&part).unwrap();
    assert_eq!((space.f_blocks * space.f_frsize, space.f_files), (1 << 30, 1_000_000));
    site.unmount(&part);
    site.atoll(["volume", "clone", "vol", "copy"]).must_succeed();
    site.atoll(["volume", "quotas", "copy:/a/renamed"]).must_succeed();
    site.atoll(["volume", "quotas", "vol:/b/tree"]).must_fail_saying(&["vol:/b/tree has no quota"]);
    site.atoll(["volume", "quota", "vol:/b/tree", "--none"]).must_fail_saying(&["vol:/b/tree", "no quota"]);
    site.atoll(["volume", "quota", "vol:/b/0", "--bytes", "1"]).must_fail_saying(&["not a directory"]);
    site.atoll(["volume", "quota", "vol:/c", "--bytes", "1"]).must_fail_saying(&["/c", "no such file"]);
    fs::remove_dir_all(mount.join("b")).unwrap();
    eventually("the quota goes with its directory", || quota(&site, "/b").is_none());
}

/// Make, move and remove files in a folder until it is over.
fn churn(folder: &Path, is_over: &AtomicBool) {
    for round in 0_u64.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let (parent, other) = (folder.join((round % 50).to_string()), folder.join((round % 49).to_string()));
        let (new, moved) = (parent.join(format!("new-{round}")), other.join(format!("moved-{}", round % 500)));
        fs::write(&new, vec![1; (round % 5000) as usize]).unwrap();
        fs::rename(&new, &moved).unwrap();
        if round % 3 == 0 {
            fs::remove_file(&moved).unwrap();
        }
    }
}

#[test]
fn a_tree_in_use_is_counted_also_when_the_server_is_killed_meanwhile() {
    let mut site = Site::new();
    let (mount, other) = (site.mount("m1"), site.mount("m2"));
    let tree = mount.join("tree");
    for folder in 0..50 {
        fs::create_dir_all(tree.join(folder.to_string())).unwrap();
        for number in 0..200 {
            fs::write(tree.join(format!("{folder}/{number}")), vec![7; 100]).unwrap();
        }
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churning = scope.spawn(|| churn(&tree, &is_over));
        let over = SetOnDrop(&is_over);
        for round in 0..4 {
            let arguments: &[&str] = if round % 2 == 0 { &["--bytes", "10GiB"] } else { &["--none"] };
            let mut command = site.command([&["volume", "quota", "vol:/tree"], arguments].concat());
            let mut setting = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            if round < 2 {
                // In the middle of it, or not long after.
                eventually("it begins", || match quota(&site, "/tree") {
                    None => round == 1,
                    Some(quota) => round == 0 || quota["state"] == "leaving",
                });
                site.kill();
                site.start();
            }
            let failed = !setting.wait().unwrap().success();
            // What was not durable yet was not begun; all else goes on by itself.
            let is_as_before = match quota(&site, "/tree") {
                None => round % 2 == 0,
                Some(quota) => round % 2 == 1 && quota["state"] == "kept",
            };
            if failed && is_as_before {
                set(&site, "vol:/tree", arguments);
            }
            let wanted = (round % 2 == 0).then_some("kept");
            eventually("it is over", || quota(&site, "/tree").as_ref().map(|q| q["state"].as_str().unwrap()) == wanted);
            assert!(!churning.is_finished());
        }
        set(&site, "vol:/tree", &["--bytes", "10GiB"]);
        drop(over);
        churning.join().unwrap();
    });
    // What was removed while the other mount looked lives on for a moment.
    let right = count(&other.join("tree"));
    eventually("what is charged is what is there", || used(&site, "/tree") == right);
    assert!(right.1 > 10_000);
    assert!(fs::metadata(&tree).unwrap().nlink() >= 52);
}
