//! A server that is killed takes nothing with it that a living mount was told, synced or not.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::*;

const KILLS: u32 = 6;

/// What a worker did in one folder until it was stopped, and the longest call.
pub struct Work {
    pub files: u32,
    pub longest: Duration,
}

/// Every file goes through a few changes, and none of them is synced.
pub fn work(folder: &Path, stop: &AtomicBool) -> Work {
    let mut work = Work { files: 0, longest: Duration::ZERO };
    let mut log = fs::File::options().append(true).create(true).open(folder.join("log")).unwrap();
    while !stop.load(Ordering::Acquire) {
        let start = Instant::now();
        let number = work.files;
        let path = folder.join(format!("t{number}"));
        fs::write(&path, words(number + 1)).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"over", 4).unwrap();
        fs::rename(&path, folder.join(format!("f{number}"))).unwrap();
        writeln!(log, "{number}").unwrap();
        if number % 3 == 2 {
            fs::remove_file(folder.join(format!("f{}", number - 1))).unwrap();
        }
        work.files += 1;
        work.longest = work.longest.max(start.elapsed());
    }
    work
}

pub fn check(folder: &Path, files: u32) {
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert!(
        log.lines().eq((0..files).map(|number| number.to_string())),
        "{folder:?}: {} lines of {files}",
        log.lines().count()
    );
    let mut expected: Vec<String> = vec!["log".into()];
    for number in 0..files {
        if number % 3 == 1 && number + 1 < files {
            continue;
        }
        expected.push(format!("f{number}"));
        let mut bytes = words(number + 1);
        if bytes.len() < 8 {
            bytes.resize(8, 0);
        }
        bytes[4..8].copy_from_slice(b"over");
        assert!(fs::read(folder.join(format!("f{number}"))).unwrap() == bytes, "{folder:?}/f{number}");
    }
    expected.sort();
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, expected, "{folder:?}");
}

/// Kill the server again and again beside one worker in each folder; check what there is through each mount.
fn kill_beside(site: &mut Site, folders: &[PathBuf], mounts: &[PathBuf]) {
    let stop = AtomicBool::new(false);
    let done: Vec<Work> = std::thread::scope(|scope| {
        let workers: Vec<_> = folders.iter().map(|folder| scope.spawn(|| work(folder, &stop))).collect();
        for kill in 0..KILLS {
            std::thread::sleep(Duration::from_millis(150 + 97 * u64::from(kill)));
            site.kill();
            site.start();
        }
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Release);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for (folder, work) in folders.iter().zip(&done) {
        println!("{folder:?}: {} files, longest round {:?}", work.files, work.longest);
        assert!(work.longest < Duration::from_secs(5));
        let inside = folder.components().rev().take(1).collect::<PathBuf>();
        for mount in mounts {
            check(&mount.join(&inside), work.files);
        }
    }
}

#[test]
fn nothing_that_a_mount_made_alone_is_lost_with_the_server() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let folders = [a.join("a"), b.join("b")];
    folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
    kill_beside(&mut site, &folders, &[a.clone(), b.clone()]);
    let c = site.mount("m3");
    site.unmount(&a);
    site.unmount(&b);
    site.kill();
    site.start();
    assert!(fs::read_dir(c.join("a")).unwrap().count() > 1, "an unmounted client has made its changes durable");
}

#[test]
fn nothing_that_the_server_executed_for_mounts_is_lost_with_it() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    // Each works where the other looks all the time: nothing is made alone.
    let folders = [a.join("a"), a.join("b")];
    folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                for folder in ["a", "b"] {
                    if let Ok(entries) = fs::read_dir(b.join(folder)) {
                        entries.flatten().for_each(|entry| drop(entry.metadata()));
                    }
                    let _ = fs::read(b.join(folder).join("log"));
                }
            }
        });
        kill_beside(&mut site, &folders, &[a.clone(), b.clone()]);
        stop.store(true, Ordering::Release);
    });
}

#[test]
fn what_one_mount_builds_on_what_another_made_comes_back_in_order() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for round in 0..4 {
        // Back and forth, without a pause, so that the store has none of it when the server dies.
        let mut path = PathBuf::from(format!("r{round}"));
        for step in 0..8 {
            let mount = if step % 2 == 0 { &a } else { &b };
            fs::create_dir(mount.join(&path)).unwrap();
            fs::write(mount.join(&path).join("f"), words(step)).unwrap();
            path.push(format!("s{step}"));
        }
        let numbers: Vec<u64> = path.ancestors().skip(1).map(|at| fs::metadata(a.join(at)).unwrap().ino()).collect();
        site.kill();
        site.start();
        for mount in [&b, &a] {
            let found = path.ancestors().skip(1).map(|at| fs::metadata(mount.join(at)).unwrap().ino());
            assert!(found.eq(numbers.iter().copied()), "round {round}");
        }
        let mut path = PathBuf::from(format!("r{round}"));
        for step in 0..8 {
            assert!(fs::read(b.join(&path).join("f")).unwrap() == words(step), "round {round}, step {step}");
            path.push(format!("s{step}"));
        }
    }
}

#[test]
fn a_file_without_a_name_stays_open_across_a_crash() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let old = fs::File::options().read(true).write(true).create_new(true).open(a.join("old")).unwrap();
    old.write_all_at(b"synced", 0).unwrap();
    old.sync_all().unwrap();
    fs::remove_file(a.join("old")).unwrap();
    old.sync_all().unwrap();
    let new = fs::File::options().read(true).write(true).create_new(true).open(b.join("new")).unwrap();
    new.write_all_at(b"not synced", 0).unwrap();
    fs::remove_file(a.join("new")).unwrap();
    site.kill();
    site.start();
    let mut bytes = [0; 10];
    old.read_exact_at(&mut bytes[..6], 0).unwrap();
    assert_eq!(&bytes[..6], b"synced");
    new.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"not synced");
    assert_eq!((old.metadata().unwrap().nlink(), new.metadata().unwrap().nlink()), (0, 0));
    // They are freed when they are closed, and not before.
    std::thread::sleep(Duration::from_secs(6));
    old.write_all_at(b"again", 0).unwrap();
    drop((old, new));
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
}
