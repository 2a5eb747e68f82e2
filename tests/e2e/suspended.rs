//! A server, or a whole machine, that was suspended goes on where it was, and nobody loses anything.
//!
//! `ATOLL_SUSPENDED_SECONDS` is for how long; 8 without it, which is more than anything waits for a mount.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::crash::{check, work};
use crate::harness::*;

/// After it goes on, calls do so within this time.
const RESUMES_WITHIN: Duration = Duration::from_secs(5);
const WORKS: Duration = Duration::from_millis(400);

fn suspended() -> Duration {
    Duration::from_secs(from_environment("ATOLL_SUSPENDED_SECONDS").unwrap_or(8))
}

/// Suspend it beside workers that have a folder alone and such that look into each other's.
fn suspend_beside_work(is_whole_machine: bool) {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let folders: [PathBuf; 3] = [a.join("a"), b.join("b"), b.join("c")];
    folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let stop = AtomicBool::new(false);
    let (site, mounts) = (&site, [&a, &b]);
    // Asked before: a server that is frozen does not tell.
    let processes = mounts.map(|mount| site.process_of(mount));
    let done: Vec<_> = std::thread::scope(|scope| {
        let _stops = SetOnDrop(&stop);
        let workers: Vec<_> = folders.iter().map(|folder| scope.spawn(|| work(folder, &stop))).collect();
        let looks = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                fs::read(a.join("c/log")).map(drop).unwrap_or_default();
                fs::read_dir(a.join("c")).unwrap().for_each(|entry| drop(entry.unwrap().metadata()));
            }
        });
        std::thread::sleep(WORKS);
        let mut frozen = vec![site.freeze_server()];
        if is_whole_machine {
            frozen.extend(processes.map(Frozen::new));
        }
        std::thread::sleep(suspended());
        drop(frozen);
        std::thread::sleep(WORKS);
        stop.store(true, Ordering::Release);
        looks.join().unwrap();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for (folder, work) in folders.iter().zip(&done) {
        println!("{folder:?}: {} files, longest round {:?}", work.files, work.longest);
        assert!(work.longest < suspended() + RESUMES_WITHIN);
        let inside = folder.file_name().unwrap();
        mounts.iter().for_each(|mount| check(&mount.join(inside), work.files));
    }
}

#[test]
fn a_suspended_server_takes_nothing_from_its_mounts() {
    suspend_beside_work(false);
}

#[test]
fn a_suspended_machine_goes_on_where_it_was() {
    suspend_beside_work(true);
}

/// A mount that is away while the server is killed and started has seconds to come back. They are the server's own.
#[test]
fn a_server_that_stands_still_right_after_a_crash_waits_for_its_mounts_all_the_same() {
    let mut site = Site::new();
    let (mount, other) = (site.mount("m1"), site.mount("m2"));
    fs::create_dir(other.join("other")).unwrap();
    // In a directory of its own a mount changes everything alone.
    let folder = mount.join("folder");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("file");
    fs::write(&path, b"before").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"before");
    let process = site.process_of(&mount);
    let frozen = site.freeze_server();
    fs::write(&path, b"the server has not heard of it").unwrap();
    let away = Frozen::new(process);
    site.kill();
    drop(frozen);
    site.start();
    // The other mount comes back: from then on the server waits for the first one.
    eventually("both sessions are known", || {
        site.atoll(["--json", "status"]).must_succeed().contains("\"sessions\": 2")
    });
    let frozen = site.freeze_server();
    drop(away);
    std::thread::sleep(suspended());
    drop(frozen);
    File::open(&path).unwrap().sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"the server has not heard of it");
}
