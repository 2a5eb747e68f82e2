//! The process of a mount is replaced by another program, and nobody who uses the mount notices.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::harness::*;

/// Overwrite, sync and read back a record; answers the longest time that took.
fn overwrite(path: &Path, is_over: &AtomicBool, rounds: &AtomicU64) -> Duration {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let mut longest = Duration::ZERO;
    while !is_over.load(Ordering::Relaxed) {
        let (start, number) = (Instant::now(), rounds.load(Ordering::Relaxed) + 1);
        file.write_all_at(&number.to_le_bytes(), 0).unwrap();
        file.sync_data().unwrap();
        let mut found = [0; 8];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(u64::from_le_bytes(found), number);
        rounds.store(number, Ordering::Relaxed);
        longest = longest.max(start.elapsed());
    }
    longest
}

/// Names come, move and go, and a log grows by one line a round.
fn churn(folder: &Path, is_over: &AtomicBool) -> u64 {
    fs::create_dir(folder).unwrap();
    let mut log = OpenOptions::new().append(true).create(true).open(folder.join("log")).unwrap();
    let mut rounds = 0;
    while !is_over.load(Ordering::Relaxed) {
        let (new, moved) = (folder.join(format!("new-{rounds}")), folder.join("moved"));
        let mut file = File::create_new(&new).unwrap();
        file.write_all(rounds.to_string().as_bytes()).unwrap();
        fs::rename(&new, &moved).unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), rounds.to_string());
        assert!(!new.exists());
        fs::remove_file(&moved).unwrap();
        writeln!(log, "{rounds}").unwrap();
        rounds += 1;
    }
    rounds
}

/// Ends the work also when the test fails: who works is waited for.
struct Over<'a>(&'a AtomicBool, &'a File);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = flock(self.1, FlockOperation::Unlock);
    }
}

/// What a process that works in the mount writes, line by line, as long as it is fed.
fn shell(folder: &Path) -> std::process::Child {
    let script = "while read line; do echo \"$line\" >> shell.log && cat shell.log > copy && mv copy last; done";
    let mut command = Command::new("sh");
    command.arg("-ec").arg(script).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_mount_is_replaced_under_load_and_nobody_notices() {
    const REPLACEMENTS: usize = 6;
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let process = site.process_of(&a);
    let folder = a.join("folder");
    fs::create_dir(&folder).unwrap();

    let locked = File::create(folder.join("locked")).unwrap();
    flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut nameless = OpenOptions::new().read(true).write(true).create_new(true).open(folder.join("gone")).unwrap();
    nameless.write_all(b"still here").unwrap();
    fs::remove_file(folder.join("gone")).unwrap();
    let mut shell = shell(&folder);
    let mut feed = shell.stdin.take().unwrap();

    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (longest, made) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| overwrite(&folder.join("record"), &is_over, &rounds));
        let churner = scope.spawn(|| churn(&folder.join("churn"), &is_over));
        // Waits for the lock across all replacements.
        let waiter = scope.spawn(|| {
            let file = File::open(folder.join("locked")).unwrap();
            flock(&file, FlockOperation::LockExclusive).unwrap();
        });
        let over = Over(&is_over, &locked);
        for number in 0..REPLACEMENTS {
            writeln!(feed, "line {number}").unwrap();
            let before = rounds.load(Ordering::Relaxed);
            site.atoll(["mount", "--replace", "vol", a.to_str().unwrap()]).must_succeed();
            eventually("work goes on", || rounds.load(Ordering::Relaxed) > before + 2);
            assert_eq!(site.process_of(&a), process, "it is the same process");
            let environment = fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())).unwrap();
            assert!(environment.windows(15).any(|part| part == b"ATOLL_HANDOVER="), "and another image");
            let elsewhere = File::open(b.join("folder/locked")).unwrap();
            let tried = flock(&elsewhere, FlockOperation::NonBlockingLockShared);
            assert_eq!(tried, Err(rustix::io::Errno::WOULDBLOCK), "the lock is still held");
            assert_eq!(fs::read(b.join("folder/record")).unwrap().len(), 8);
        }
        assert!(!waiter.is_finished());
        drop(over);
        waiter.join().unwrap();
        (writer.join().unwrap(), churner.join().unwrap())
    });
    println!("{rounds:?} synced writes, the longest in {longest:?}; {made} rounds of names");

    drop(feed);
    assert!(shell.wait().unwrap().success());
    let lines: String = (0..REPLACEMENTS).map(|number| format!("line {number}\n")).collect();
    let log: String = (0..made).map(|number| format!("{number}\n")).collect();
    for mount in [&a, &b] {
        let folder = mount.join("folder");
        assert_eq!(fs::read(folder.join("record")).unwrap(), rounds.load(Ordering::Relaxed).to_le_bytes());
        assert_eq!(fs::read_to_string(folder.join("churn/log")).unwrap(), log);
        assert_eq!(fs::read_dir(folder.join("churn")).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(folder.join("last")).unwrap(), lines);
    }
    let mut text = [0; 10];
    nameless.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"still here");
    drop((nameless, locked));
}

#[test]
fn who_cannot_take_a_mount_over_leaves_the_old_program_serving() {
    let mut site = Site::new();
    let mount = site.mount("m1");
    fs::write(mount.join("file"), b"before").unwrap();
    let process = site.process_of(&mount).as_raw_nonzero();
    for (program, why) in [("/bin/true", "no program that can take over"), ("/nonexistent", "No such file")] {
        let mut socket = UnixStream::connect(site.path(&format!("atoll-mounts/{process}.socket"))).unwrap();
        writeln!(socket, "{program}").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(why), "{answer}");
        assert_eq!(fs::read(mount.join("file")).unwrap(), b"before");
    }
    let other = site.atoll(["mount", "--replace", "other", mount.to_str().unwrap()]);
    other.must_fail_saying(&["`vol` is mounted on"]);
    fs::write(mount.join("file"), b"after").unwrap();
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"after");
}

#[test]
fn a_mount_that_was_replaced_outlives_a_killed_server() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let locked = File::create(a.join("locked")).unwrap();
    flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut nameless = File::create_new(a.join("gone")).unwrap();
    fs::remove_file(a.join("gone")).unwrap();
    site.atoll(["mount", "--replace", "vol", a.to_str().unwrap()]).must_succeed();
    nameless.write_all(b"nobody has synced this").unwrap();
    fs::write(a.join("file"), b"nor this").unwrap();
    site.kill();
    site.start();
    for _ in 0..2 {
        assert_eq!(fs::read(a.join("file")).unwrap(), b"nor this");
        assert_eq!(fs::read(b.join("file")).unwrap(), b"nor this");
        assert_eq!(nameless.metadata().unwrap().len(), 22);
        let elsewhere = File::open(b.join("locked")).unwrap();
        let tried = flock(&elsewhere, FlockOperation::NonBlockingLockShared);
        assert_eq!(tried, Err(rustix::io::Errno::WOULDBLOCK), "the lock is still held");
        site.atoll(["mount", "--replace", "vol", a.to_str().unwrap()]).must_succeed();
    }
    flock(&locked, FlockOperation::Unlock).unwrap();
    flock(File::open(b.join("locked")).unwrap(), FlockOperation::NonBlockingLockShared).unwrap();
}
