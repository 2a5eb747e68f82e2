//! The process of a mount is killed, and nobody who uses the mount notices more than a pause.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::*;

/// SIGKILL who serves a mount; answers who did.
fn kill(site: &Site, mount: &Path) -> Pid {
    let process = site.process_of(mount);
    kill_process(process, Signal::KILL).unwrap();
    process
}

fn eventually_served_by_another(site: &Site, mount: &Path, than: Pid) {
    eventually("another process serves the mount", || {
        site.find_process_of(mount).is_some_and(|process| process != than)
    });
}

/// Names come, move and go; a log grows by a line a round; a record is overwritten, synced now and then, and read back.
/// Answers how many rounds there were and how long the longest took.
fn churn(folder: &Path, is_over: &AtomicBool) -> (u64, Duration) {
    fs::create_dir(folder).unwrap();
    let mut log = OpenOptions::new().append(true).create(true).open(folder.join("log")).unwrap();
    let record = OpenOptions::new().read(true).write(true).create_new(true).open(folder.join("record")).unwrap();
    let (mut rounds, mut longest) = (0_u64, Duration::ZERO);
    while !is_over.load(Ordering::Relaxed) {
        let start = Instant::now();
        let (new, moved) = (folder.join(format!("new-{rounds}")), folder.join("moved"));
        let mut file = File::create_new(&new).unwrap();
        file.write_all(rounds.to_string().as_bytes()).unwrap();
        fs::rename(&new, &moved).unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), rounds.to_string());
        assert!(!new.exists());
        // It stays open without a name.
        fs::remove_file(&moved).unwrap();
        writeln!(file, " and more").unwrap();
        assert_eq!(file.metadata().unwrap().len(), rounds.to_string().len() as u64 + 10);
        fs::create_dir(folder.join("directory")).unwrap();
        fs::hard_link(folder.join("record"), folder.join("directory/link")).unwrap();
        assert_eq!(record.metadata().unwrap().nlink(), 2);
        fs::remove_file(folder.join("directory/link")).unwrap();
        fs::remove_dir(folder.join("directory")).unwrap();
        writeln!(log, "{rounds}").unwrap();
        record.write_all_at(&rounds.to_le_bytes(), 0).unwrap();
        if rounds % 16 == 0 {
            record.sync_data().unwrap();
        }
        let mut found = [0; 8];
        record.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(u64::from_le_bytes(found), rounds);
        rounds += 1;
        longest = longest.max(start.elapsed());
    }
    (rounds, longest)
}

/// Whether a lock can be had through another mount.
fn is_free(file: &Path) -> bool {
    let tried = flock(File::open(file).unwrap(), FlockOperation::NonBlockingLockExclusive);
    assert!(matches!(tried, Ok(()) | Err(rustix::io::Errno::WOULDBLOCK)), "{tried:?}");
    tried.is_ok()
}

#[test]
fn a_killed_mount_goes_on_and_loses_nothing() {
    const KILLS: u64 = 20;
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let locked = File::create(a.join("locked")).unwrap();
    flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
    let nameless = OpenOptions::new().read(true).write(true).create_new(true).open(a.join("gone")).unwrap();
    nameless.write_all_at(b"still here", 0).unwrap();
    fs::remove_file(a.join("gone")).unwrap();

    let is_over = AtomicBool::new(false);
    let (alone, shared) = std::thread::scope(|scope| {
        let _over = SetOnDrop(&is_over);
        let alone = [0, 1].map(|number| {
            let folder = a.join(format!("alone-{number}"));
            scope.spawn(|| churn(&{ folder }, &is_over))
        });
        let shared = scope.spawn(|| churn(&a.join("shared"), &is_over));
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // What it makes alone is recalled all the time.
                let lines = fs::read_to_string(b.join("shared/log")).unwrap_or_default();
                assert!(lines.lines().enumerate().all(|(number, line)| line == number.to_string()));
            }
        });
        for number in 0..KILLS {
            std::thread::sleep(Duration::from_millis(60 + (number * 37) % 150));
            let killed = kill(&site, &a);
            assert!(!is_free(&b.join("locked")), "the lock is still held");
            eventually_served_by_another(&site, &a, killed);
        }
        is_over.store(true, Ordering::Relaxed);
        (alone.map(|worker| worker.join().unwrap()), shared.join().unwrap())
    });
    println!("{alone:?} alone, {shared:?} with another mount");

    let rounds = [("alone-0", alone[0].0), ("alone-1", alone[1].0), ("shared", shared.0)];
    for (folder, rounds) in rounds {
        assert!(rounds > KILLS, "{folder}: work goes on");
        let log: String = (0..rounds).map(|number| format!("{number}\n")).collect();
        for mount in [&a, &b] {
            assert_eq!(fs::read_to_string(mount.join(folder).join("log")).unwrap(), log);
            assert_eq!(fs::read_dir(mount.join(folder)).unwrap().count(), 2);
        }
    }
    let mut text = [0; 10];
    nameless.read_exact_at(&mut text, 0).unwrap();
    assert_eq!((&text, nameless.metadata().unwrap().nlink()), (b"still here", 0));
    flock(&locked, FlockOperation::Unlock).unwrap();
    assert!(is_free(&b.join("locked")));
    drop((nameless, locked));

    // Nothing is taken for open that is not: what has no name is freed.
    for (folder, _) in rounds {
        fs::remove_dir_all(b.join(folder)).unwrap();
    }
    fs::remove_file(b.join("locked")).unwrap();
    eventually("everything is freed", || site.atoll(["fsck", "vol"]).must_succeed().starts_with("1 inodes"));
}

#[test]
fn locks_are_handed_on_across_kills() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let path = a.join("locked");
    File::create(&path).unwrap();
    for round in 0..3 {
        let holder = File::open(&path).unwrap();
        flock(&holder, FlockOperation::NonBlockingLockExclusive).unwrap();
        if round == 1 {
            assert!(!is_free(&b.join("locked")), "the server decides now");
        }
        std::thread::scope(|scope| {
            // One waits through each mount.
            let waiters = [&a, &b].map(|mount| {
                scope.spawn(|| {
                    let file = File::open(mount.join("locked")).unwrap();
                    flock(&file, FlockOperation::LockExclusive).unwrap();
                    fs::write(mount.join("holder"), b"here").unwrap();
                })
            });
            std::thread::sleep(Duration::from_millis(100));
            let killed = kill(&site, &a);
            eventually_served_by_another(&site, &a, killed);
            assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
            drop(holder);
            waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        });
        // A file is released behind the back of who closed it.
        eventually("the lock is free", || is_free(&b.join("locked")) && is_free(&path));
    }
}

#[test]
fn a_mount_outlives_its_process_and_its_server() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(a.join("file")).unwrap();
    for round in 0..4_u64 {
        file.write_all_at(&round.to_le_bytes(), 0).unwrap();
        file.sync_all().unwrap();
        let process = site.process_of(&a);
        site.kill();
        kill_process(process, Signal::KILL).unwrap();
        site.start();
        eventually_served_by_another(&site, &a, process);
        let mut found = [0; 8];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(u64::from_le_bytes(found), round);
        assert_eq!(fs::read(b.join("file")).unwrap(), round.to_le_bytes());
    }
}

#[test]
fn a_killed_keeper_is_replaced_and_an_unmounted_one_ends() {
    let mut site = Site::new();
    let a = site.mount("m1");
    fs::write(a.join("file"), b"before").unwrap();
    let keepers = |site: &Site| {
        let mark = format!("XDG_RUNTIME_DIR={}", site.folder.path().display()).into_bytes();
        let is_keeper = |process: &Path| {
            let words = fs::read(process.join("cmdline")).unwrap_or_default();
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            words.ends_with(b"\0keep\0") && environment.split(|byte| *byte == 0).any(|word| word == mark)
        };
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let found = processes.filter(|process| is_keeper(process));
        found.filter_map(|process| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?)).collect::<Vec<_>>()
    };
    let first = keepers(&site);
    assert_eq!(first.len(), 1);
    kill_process(first[0], Signal::KILL).unwrap();
    eventually("there is another keeper", || keepers(&site).len() == 1 && keepers(&site) != first);
    let killed = kill(&site, &a);
    assert_eq!(fs::read(a.join("file")).unwrap(), b"before");
    eventually_served_by_another(&site, &a, killed);
    site.atoll(["mount", "--replace", "vol", a.to_str().unwrap()]).must_succeed();
    eventually("each process has one keeper", || keepers(&site).len() == 1);
    let killed = kill(&site, &a);
    fs::write(a.join("file"), b"after").unwrap();
    eventually_served_by_another(&site, &a, killed);
    site.unmount(&a);
    eventually("the keeper ends", || keepers(&site).is_empty());
}

#[test]
fn a_mount_that_is_asked_to_stop_unmounts_when_nobody_uses_it() {
    let mut site = Site::new();
    let a = site.mount("m1");
    let file = File::create(a.join("file")).unwrap();
    kill_process(site.process_of(&a), Signal::TERM).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(is_mounted(&a), "it is in use");
    drop(file);
    eventually("it is unmounted", || !is_mounted(&a));
    eventually("nobody serves it", || site.find_process_of(&a).is_none());

    let b = site.mount("m2");
    let file = File::open(b.join("file")).unwrap();
    let process = site.process_of(&b);
    eventually("it is gone all the same when that is said again", || {
        let _ = kill_process(process, Signal::INT);
        std::thread::sleep(Duration::from_millis(100));
        !is_mounted(&b) && site.find_process_of(&b).is_none()
    });
    drop(file);
}

/// Kill who serves `a` while a call that waits there holds a directory's lock in the kernel, and a name of that directory
/// is to be dropped, which needs the lock. Answers who was killed, the call, and the removal that wants the name dropped.
fn kill_while_a_directory_is_locked(site: &Site, [a, b, c]: [&Path; 3]) -> (Pid, [Child; 2]) {
    let begin = |program: &str, path: &Path| Command::new(program).arg(path).spawn().unwrap();
    fs::create_dir(c.join("shared")).unwrap();
    fs::write(c.join("shared/old"), b"").unwrap();
    for mount in [a, b] {
        fs::metadata(mount.join("shared/old")).unwrap();
        assert!(!mount.join("shared/new").exists());
    }
    let killed = site.process_of(a);
    // The server waits for it until it is given up.
    let _frozen = Frozen::new(site.process_of(b));
    let making = begin("mkdir", &a.join("shared/new"));
    std::thread::sleep(Duration::from_millis(200));
    let removing = begin("rm", &c.join("shared/old"));
    std::thread::sleep(Duration::from_millis(200));
    kill_process(killed, Signal::KILL).unwrap();
    // The kernel would not let a thread go that waits for the lock.
    eventually("the process ends", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", killed.as_raw_pid()));
        tasks.map_or(0, |tasks| tasks.count()) <= 1
    });
    (killed, [making, removing])
}

/// Whether a program succeeded; it is ended if it does not end.
fn succeeds(mut child: Child) -> bool {
    let status = wait_bounded(&mut child);
    let _ = child.kill();
    status.expect("it ends").success()
}

#[test]
fn a_mount_outlives_its_process_while_a_directory_is_locked() {
    let mut site = Site::new();
    let (a, b, c) = (site.mount("m1"), site.mount("m2"), site.mount("m3"));
    let (killed, calls) = kill_while_a_directory_is_locked(&site, [&a, &b, &c]);
    assert_eq!(calls.map(succeeds), [true, true]);
    eventually_served_by_another(&site, &a, killed);
    for mount in [&a, &b, &c] {
        let names: Vec<_> = fs::read_dir(mount.join("shared")).unwrap().map(|name| name.unwrap().file_name()).collect();
        assert_eq!(names, ["new"]);
    }
}

#[test]
fn who_waits_for_a_mount_without_keeper_is_told_that_its_process_is_dead() {
    let mut site = Site::new();
    let a = site.mount_with("m1", &["-o", "nokeeper"]);
    let (b, c) = (site.mount("m2"), site.mount("m3"));
    let (_, calls) = kill_while_a_directory_is_locked(&site, [&a, &b, &c]);
    assert_eq!(calls.map(succeeds), [false, true], "the call fails, and others go on");
}
