//! What mounts keep: it costs nothing to read again, and it is never old.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::*;

/// A frozen or cut-off mount holds others up for 5 s; the server looks a few times a second.
const FENCED_AFTER_MAX: Duration = Duration::from_millis(6_500);

/// Holders of leases on a path: session and rights.
pub fn holders(site: &Site, path: &str) -> Vec<(String, String)> {
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

/// A site whose server shows its metrics on this port.
pub fn counted() -> (Site, u16) {
    let mut site = Site::empty();
    site.serve = ["--http", "127.0.0.1:0"].map(String::from).to_vec();
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let port = site.address("http://").rsplit(':').next().unwrap().parse().unwrap();
    (site, port)
}

/// Sum of the metrics whose lines start like this.
pub fn metric(port: u16, start: &str) -> u64 {
    let text = http(port, "/metrics").unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with(start)).collect();
    assert!(!lines.is_empty(), "no {start} in\n{text}");
    lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

pub const OPERATIONS: &str = "atoll_operation_seconds_count";
const RECALLS: &str = "atoll_volume{figure=\"lease_recalls\"";

#[test]
fn hot_stats_opens_and_reads_ask_the_server_nothing() {
    let (mut site, port) = counted();
    let mount = site.mount("m");
    let file = mount.join("f");
    fs::write(&file, words(1000)).unwrap();
    // The first read after a change moves the access time.
    for _ in 0..3 {
        fs::read(&file).unwrap();
        fs::metadata(&file).unwrap();
        assert!(!mount.join("missing").exists());
    }
    let before = metric(port, OPERATIONS);
    for _ in 0..1000 {
        assert_eq!(fs::metadata(&file).unwrap().len(), 4000);
        let mut bytes = Vec::new();
        fs::File::open(&file).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes == words(1000));
        assert!(!mount.join("missing").exists());
    }
    let asked = metric(port, OPERATIONS) - before;
    assert!(asked <= 20, "{asked} operations for 1,000 rounds");
}

/// So many folders `d0`, `d1` …: each round has one of its own, because what is recalled often is not kept for a while.
fn folders(mount: &Path, count: usize) {
    for round in 0..count {
        fs::create_dir(mount.join(format!("d{round}"))).unwrap();
    }
}

#[test]
fn what_a_mount_keeps_is_dropped_before_anothers_change_returns() {
    const ROUNDS: usize = 60;
    let (mut site, port) = counted();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    folders(&a, ROUNDS);
    let before = metric(port, RECALLS);
    for round in 0..ROUNDS {
        let at = |mount: &Path, name: &str| mount.join(format!("d{round}")).join(name);
        for name in ["written", "mode", "target", "moved", "gone"] {
            fs::write(at(&a, name), format!("first {name}")).unwrap();
        }
        for _ in 0..3 {
            for name in ["written", "mode", "target", "moved", "gone"] {
                assert_eq!(fs::read_to_string(at(&b, name)).unwrap(), format!("first {name}"));
            }
            assert!(!at(&b, "absent").exists());
        }
        let open = fs::File::open(at(&b, "written")).unwrap();

        fs::write(at(&a, "written"), b"second, longer").unwrap();
        assert_eq!(fs::metadata(at(&b, "written")).unwrap().len(), 14, "round {round}");
        assert_eq!(fs::read(at(&b, "written")).unwrap(), b"second, longer", "round {round}");
        let mut bytes = [0; 14];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"second, longer", "round {round}");
        fs::set_permissions(at(&a, "mode"), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(fs::metadata(at(&b, "mode")).unwrap().mode() & 0o777, 0o640, "round {round}");
        fs::rename(at(&a, "moved"), at(&a, "target")).unwrap();
        assert_eq!(fs::read(at(&b, "target")).unwrap(), b"first moved", "round {round}");
        assert!(!at(&b, "moved").exists(), "round {round}");
        fs::remove_file(at(&a, "gone")).unwrap();
        assert_eq!(fs::File::open(at(&b, "gone")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        fs::write(at(&a, "absent"), b"here").unwrap();
        assert_eq!(fs::read(at(&b, "absent")).unwrap(), b"here", "round {round}");
    }
    let recalls = metric(port, RECALLS) - before;
    assert!(recalls >= ROUNDS as u64, "only {recalls} recalls: nothing was kept");
}

#[test]
fn absent_names_are_kept_until_somebody_makes_them() {
    const ROUNDS: usize = 20;
    let (mut site, port) = counted();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    folders(&a, ROUNDS);
    for round in 0..ROUNDS {
        let name = format!("d{round}/n");
        assert!(!b.join(&name).exists());
        let before = metric(port, OPERATIONS);
        for _ in 0..200 {
            assert!(!b.join(&name).exists());
        }
        let asked = metric(port, OPERATIONS) - before;
        assert!(asked <= 5, "{asked} operations for an absent name, round {round}");
        match round % 3 {
            0 => fs::write(a.join(&name), b"").unwrap(),
            1 => fs::create_dir(a.join(&name)).unwrap(),
            _ => std::os::unix::fs::symlink(".", a.join(&name)).unwrap(),
        }
        assert!(b.join(&name).exists(), "round {round}");
    }
}

#[test]
fn a_file_that_was_opened_under_a_lease_stays_readable_after_it_is_unlinked_elsewhere() {
    let (mut site, port) = counted();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let bytes = words(1 << 18);
    fs::write(a.join("f"), &bytes).unwrap();
    fs::metadata(b.join("f")).unwrap();
    let opens = "atoll_operation_seconds_count{operation=\"open\"}";
    let before = metric(port, opens);
    let mut open = fs::File::open(b.join("f")).unwrap();
    assert_eq!(metric(port, opens), before, "the open was not local: this says nothing");
    fs::remove_file(a.join("f")).unwrap();
    assert!(!b.join("f").exists());
    let mut read = Vec::new();
    open.read_to_end(&mut read).unwrap();
    assert!(read == bytes);
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    drop(open);
    eventually("the file is freed", || metric(port, "atoll_volume{figure=\"inodes\"") == 1);
}

#[test]
fn a_frozen_mount_holds_others_up_for_a_bounded_time_and_shows_nothing_old_afterwards() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for name in ["f", "g"] {
        fs::write(a.join(name), b"old").unwrap();
        for _ in 0..3 {
            assert_eq!(fs::read(b.join(name)).unwrap(), b"old");
        }
    }
    assert!(!b.join("absent").exists());
    let open = fs::File::open(b.join("f")).unwrap();
    let frozen = Frozen::new(site.process_of(&b));
    let start = Instant::now();
    fs::write(a.join("f"), b"new one").unwrap();
    let waited = start.elapsed();
    fs::remove_file(a.join("g")).unwrap();
    fs::write(a.join("absent"), b"").unwrap();
    assert!(waited < FENCED_AFTER_MAX, "the writer waited {waited:?}");
    assert!(start.elapsed() < FENCED_AFTER_MAX + Duration::from_secs(1), "every change waited anew");
    println!("the writer waited {waited:?}");
    // Asked while the mount is frozen: it must not be answered from the kernel's memory.
    let during = {
        let path = b.join("f");
        std::thread::spawn(move || fs::metadata(path).map(|m| m.len()))
    };
    drop(frozen);
    assert_eq!(during.join().unwrap().unwrap(), 7);
    assert_eq!(fs::read(b.join("f")).unwrap(), b"new one");
    assert!(!b.join("g").exists() && b.join("absent").exists());
    let mut bytes = [0; 7];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"new one");
    fs::write(b.join("back"), b"1").unwrap();
    assert_eq!(fs::read(a.join("back")).unwrap(), b"1");
}

#[test]
fn mounts_see_each_others_changes_at_once_after_a_server_was_killed() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for round in 0..3 {
        let name = format!("f{round}");
        fs::write(a.join(&name), b"old").unwrap();
        fs::File::open(a.join(&name)).unwrap().sync_all().unwrap();
        for mount in [&a, &b] {
            for _ in 0..3 {
                assert_eq!(fs::read(mount.join(&name)).unwrap(), b"old");
                assert!(!mount.join("absent").exists());
            }
        }
        site.kill();
        site.start();
        fs::write(a.join(&name), b"changed").unwrap();
        assert_eq!(fs::read(b.join(&name)).unwrap(), b"changed", "round {round}");
        fs::rename(b.join(&name), b.join("absent")).unwrap();
        assert_eq!(fs::read(a.join("absent")).unwrap(), b"changed", "round {round}");
        assert!(!a.join(&name).exists(), "round {round}");
        fs::remove_file(a.join("absent")).unwrap();
        assert!(!b.join("absent").exists(), "round {round}");
    }
}

/// Commits of two processes on two mounts, each with its own writes and counts.
#[test]
fn sqlite_keeps_every_commit_of_two_mounts_that_write_one_database() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let seconds: u64 = from_environment("ATOLL_SQLITE_SECONDS").unwrap_or(10);
    let make = "import sqlite3; c = sqlite3.connect('both.db'); c.execute('pragma journal_mode=delete');
c.execute('create table t(who, number, filler, unique(who, number))')";
    run(&a, "python3", &["-c", make]);
    let write = "import sqlite3, sys, time
who, end, n = sys.argv[1], time.time() + float(sys.argv[2]), 0
c = sqlite3.connect('both.db', timeout=60, isolation_level=None)
while time.time() < end:
    c.execute('begin immediate')
    for _ in range(3):
        c.execute('insert into t values(?, ?, ?)', (who, n, 'x' * (n * 37 % 3000)))
        n += 1
    c.execute('commit')
    assert c.execute('select count(*) from t where who = ?', (who,)).fetchone()[0] == n
print(n)
";
    let writer = |mount: &Path, who: &str| {
        let bound = (seconds + 120).to_string();
        let seconds = seconds.to_string();
        std::process::Command::new("timeout")
            .args([&bound, "python3", "-c", write, who, &seconds])
            .current_dir(mount)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let writers = [writer(&a, "a"), writer(&b, "b")];
    let counts = writers.map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().unwrap()
    });
    println!("rows written by each mount in {seconds} s: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "one of them never came to write: {counts:?}");
    let check = "import sqlite3, sys
c = sqlite3.connect('both.db')
assert c.execute('pragma integrity_check').fetchone()[0] == 'ok'
found = [c.execute('select count(*), max(number) from t where who = ?', (who,)).fetchone() for who in 'ab']
assert found == [(int(n), int(n) - 1) for n in sys.argv[1:]], (found, sys.argv)
";
    for mount in [&a, &b] {
        run(mount, "python3", &["-c", check, &counts[0].to_string(), &counts[1].to_string()]);
    }
}

/// What a frozen mount's kernel says of a file's size, or the mount when it goes on.
fn size_asked_while_frozen(frozen: Frozen, path: &Path) -> u64 {
    let path = path.to_owned();
    let during = std::thread::spawn(move || fs::metadata(path).map(|m| m.len()));
    // Time for the kernel to answer from its memory, if it does.
    std::thread::park_timeout(Duration::from_millis(300));
    drop(frozen);
    during.join().unwrap().unwrap()
}

#[test]
fn a_mount_that_was_frozen_while_the_server_was_killed_shows_nothing_old() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::write(a.join("f"), b"old").unwrap();
    fs::File::open(a.join("f")).unwrap().sync_all().unwrap();
    for _ in 0..3 {
        assert_eq!(fs::read(b.join("f")).unwrap(), b"old");
    }
    let frozen = Frozen::new(site.process_of(&b));
    site.kill();
    site.start();
    let start = Instant::now();
    fs::write(a.join("f"), b"changed").unwrap();
    println!("written after {:?}", start.elapsed());
    assert_eq!(size_asked_while_frozen(frozen, &b.join("f")), 7);
}

#[test]
fn a_revoked_session_that_is_frozen_shows_nothing_old() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::create_dir(b.join("d")).unwrap();
    fs::write(b.join("d/f"), b"old").unwrap();
    for _ in 0..3 {
        assert_eq!(fs::read(b.join("d/f")).unwrap(), b"old");
    }
    let session = holders(&site, "/d/f").remove(0).0;
    let frozen = Frozen::new(site.process_of(&b));
    site.atoll(["lease", "revoke", &session]).must_succeed();
    let start = Instant::now();
    fs::write(a.join("d/f"), b"changed").unwrap();
    println!("written after {:?}", start.elapsed());
    assert_eq!(size_asked_while_frozen(frozen, &b.join("d/f")), 7);
}
