//! A volume holds no more than it may, whoever writes.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::harness::*;

const MIB: u64 = 1 << 20;

fn set(site: &Site, arguments: &[&str]) {
    site.atoll([&["volume", "quota", "vol"], arguments].concat()).must_succeed();
}

/// Write files of so many bytes until one is refused; answers how many there are.
fn fill(mount: &Path, name: &str, bytes: usize) -> u64 {
    for number in 0..100_000 {
        let path = mount.join(format!("{name}{number}"));
        // A part of the last one may fit.
        if let Err(error) = fs::write(&path, vec![number as u8; bytes]) {
            assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
            fs::remove_file(path).unwrap_or_else(|error| assert_eq!(error.kind(), ErrorKind::NotFound));
            return number;
        }
    }
    panic!("nothing is ever refused");
}

#[test]
fn two_mounts_together_write_what_the_quota_leaves_and_no_more() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::write(a.join("before"), vec![1; 3 * MIB as usize]).unwrap();
    set(&site, &["--bytes", "40MiB"]);
    let written = std::thread::scope(|scope| {
        let filling = [(&a, "a"), (&b, "b")].map(|(mount, name)| scope.spawn(move || fill(mount, name, 1 << 20)));
        filling.map(|filled| filled.join().unwrap()).iter().sum::<u64>()
    });
    // Each may have had a part of a file when the other one got the last room.
    assert!((35..=37).contains(&written), "{written} MiB beside 3 of 40");
    let space = rustix::fs::statvfs(&a).unwrap();
    assert_eq!(space.f_blocks * space.f_frsize, 40 * MIB);
    assert!(space.f_bavail * space.f_frsize <= 2 * MIB);
    let used = site.atoll(["--json", "volume", "info", "vol"]).must_succeed();
    let used: serde_json::Value = serde_json::from_str(&used).unwrap();
    let used = &used[0];
    assert_eq!((&used["quota_bytes"], &used["quota_inodes"]), (&(40 * MIB).into(), &serde_json::Value::Null));
    assert!(used["bytes"].as_u64().unwrap() <= 40 * MIB, "{used}");

    // What is there can be read, changed and removed, and makes room again; for others as well.
    fs::write(a.join("full"), vec![0; 2 * MIB as usize])
        .unwrap_or_else(|e| assert_eq!(e.kind(), ErrorKind::QuotaExceeded));
    fs::remove_file(b.join("full")).unwrap();
    assert_eq!(fs::read(b.join("before")).unwrap(), vec![1; 3 * MIB as usize]);
    fs::OpenOptions::new().write(true).open(b.join("before")).unwrap().set_len(MIB).unwrap();
    fs::write(a.join("again"), vec![2; 2 * MIB as usize]).unwrap();
    site.kill();
    site.start();
    let more = fs::write(b.join("more"), vec![3; 4 * MIB as usize]).unwrap_err();
    assert_eq!(more.kind(), ErrorKind::QuotaExceeded, "{more}");

    // Less than there is: nothing is lost, and nothing more is taken.
    set(&site, &["--bytes", "1MiB"]);
    assert_eq!(fs::read(a.join("again")).unwrap(), vec![2; 2 * MIB as usize]);
    let more = fs::write(b.join("little"), "little").unwrap_err();
    assert_eq!(more.kind(), ErrorKind::QuotaExceeded, "{more}");
    let space = rustix::fs::statvfs(&b).unwrap();
    assert_eq!(space.f_bavail, 0);
    set(&site, &["--none"]);
    fs::write(b.join("more"), vec![3; 4 * MIB as usize]).unwrap();
}

#[test]
fn a_mount_that_writes_without_asking_is_stopped_where_the_quota_is() {
    let mut site = Site::new();
    let mount = site.mount("m");
    set(&site, &["--bytes", "200MiB"]);
    fs::create_dir(mount.join("own")).unwrap();
    let written = fill(&mount.join("own"), "f", 256 << 10);
    assert_eq!(written, 800);
    let used = site.atoll(["--json", "volume", "info", "vol"]).must_succeed();
    assert!(used.contains(&format!("\"bytes\": {}", 200 * MIB)), "{used}");
}

#[test]
fn a_mount_that_holds_much_asks_again_before_a_quota_is_reached() {
    let mut site = Site::new();
    let mount = site.mount("m");
    for folder in ["a", "b"] {
        fs::create_dir(mount.join(folder)).unwrap();
        for number in 0..10_000 {
            fs::write(mount.join(folder).join(number.to_string()), "").unwrap();
        }
    }
    set(&site, &["--inodes", "40000", "--bytes", "100MiB"]);
    // The root, two folders, 20,000 files.
    assert_eq!(fill(&mount.join("a"), "more", 0), 40_000 - 20_003);
    fs::remove_dir_all(mount.join("b")).unwrap();
    // 80 KiB each, in all folders that there are.
    assert_eq!(fill(&mount.join("a"), "full", 80 << 10), 100 * 1024 / 80);
    set(&site, &["--none"]);
    assert!(fs::write(mount.join("free"), "free").is_ok());
}

#[test]
fn inodes_are_counted() {
    let mut site = Site::new();
    let mount = site.mount("m");
    set(&site, &["--inodes", "100"]);
    // The root is one.
    assert_eq!(fill(&mount, "f", 0), 99);
    let refused = |result: std::io::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::QuotaExceeded);
    refused(fs::create_dir(mount.join("folder")));
    refused(std::os::unix::fs::symlink("f0", mount.join("link")));
    fs::hard_link(mount.join("f0"), mount.join("name")).unwrap();
    fs::rename(mount.join("f1"), mount.join("f2")).unwrap();
    fs::create_dir(mount.join("folder")).unwrap();
    refused(fs::write(mount.join("f200"), ""));
    site.atoll(["volume", "quota", "vol"]).must_fail_saying(&["--bytes"]);
    site.atoll(["volume", "quota", "vol", "--bytes", "many"]).must_fail_saying(&["many"]);
    site.atoll(["volume", "quota", "nothing", "--bytes", "1GB"]).must_fail_saying(&["no volume `nothing`"]);
}
