//! What a mount that knows nothing asks for: round trips per directory, not per file, and never an old answer.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::harness::*;
use crate::leases::{OPERATIONS, counted, metric};

fn name(number: usize) -> String {
    format!("file-{number:05}")
}

/// What the server was asked for so far, but for what mounts had made before they asked.
fn requests(port: u16) -> u64 {
    let mut last = None;
    eventually("the journals are executed", || {
        let now = (metric(port, OPERATIONS), metric(port, "atoll_journal_changes_total"));
        last.replace(now) == Some(now)
    });
    let (all, made) = last.unwrap();
    all - made
}

/// What `work` asks the server for.
fn asked(port: u16, work: impl FnOnce()) -> u64 {
    let before = requests(port);
    work();
    requests(port) - before
}

/// A volume with a directory `d` of so many files, and a mount that has seen none of them.
fn cold_directory(files: usize) -> (Site, u16, std::path::PathBuf) {
    let (mut site, port) = counted();
    let maker = site.mount("maker");
    fs::create_dir(maker.join("d")).unwrap();
    for number in 0..files {
        fs::write(maker.join("d").join(name(number)), b"1234").unwrap();
    }
    site.unmount(&maker);
    let mount = site.mount("m");
    (site, port, mount)
}

#[test]
fn cold_stats_of_many_files_take_the_round_trips_of_a_listing() {
    const FILES: usize = 2_000;
    let (_site, port, mount) = cold_directory(FILES);
    let stats = asked(port, || {
        for number in 0..FILES {
            assert_eq!(fs::metadata(mount.join("d").join(name(number))).unwrap().len(), 4);
        }
    });
    println!("{stats} requests for {FILES} cold stats");
    assert!(stats < 40, "{stats} requests");
    let absent = asked(port, || {
        for number in 0..100 {
            assert!(!mount.join(format!("d/absent-{number}")).exists());
        }
    });
    assert_eq!(absent, 0, "the whole directory is known");
}

#[test]
fn files_that_another_mount_has_just_made_are_handed_over_together() {
    const FILES: usize = 1_000;
    let (mut site, port) = counted();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::create_dir(a.join("d")).unwrap();
    for number in 0..FILES {
        fs::write(a.join("d").join(name(number)), b"1234").unwrap();
    }
    let contended = metric(port, CONTENDED);
    let stats = asked(port, || {
        for number in 0..FILES {
            assert_eq!(fs::metadata(b.join("d").join(name(number))).unwrap().len(), 4);
        }
    });
    println!("{stats} requests for {FILES} stats of what another mount has just made");
    assert!(stats < 60, "{stats} requests");
    assert_eq!(metric(port, CONTENDED), contended, "a handover is not contention");
}

const CONTENDED: &str = "atoll_volume{figure=\"lease_contended\"";

/// Folders of files that `git` knows.
fn make_tree(at: &Path, folders: usize, files: usize) {
    for folder in 0..folders {
        let folder = at.join(format!("folder-{folder}"));
        fs::create_dir(&folder).unwrap();
        for number in 0..files {
            let mut file = fs::File::create(folder.join(name(number))).unwrap();
            writeln!(file, "{number}").unwrap();
            // A file as young as git's index is read by every `git status`.
            file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        }
    }
}

#[test]
fn a_cold_tree_takes_requests_per_directory() {
    const FOLDERS: usize = 20;
    const FILES: usize = 40;
    let (mut site, port) = counted();
    let maker = site.mount("maker");
    fs::create_dir(maker.join("tree")).unwrap();
    make_tree(&maker.join("tree"), FOLDERS, FILES);
    site.unmount(&maker);

    let mount = site.mount("m1");
    let find = asked(port, || {
        let found = run(&mount, "find", &["tree", "-type", "f", "-size", "+0"]);
        assert_eq!(found.lines().count(), FOLDERS * FILES);
    });
    println!("{find} requests to find in {} cold directories", FOLDERS + 1);
    assert!(find <= 2 * (FOLDERS as u64 + 2), "{find} requests");
    let again = || asked(port, || drop(run(&mount, "find", &["tree", "-type", "f", "-size", "+0"])));
    // The listing has moved the access time of each directory.
    let (second, third) = (again(), again());
    println!("{second} requests to find again, then {third}");
    assert!(second <= FOLDERS as u64 + 4 && third <= 3, "{second} and {third} requests for what is known");
}

/// The figures of `docs/performance.md`.
#[test]
fn common_operations_on_a_cold_mount_take_few_round_trips() {
    let (mut site, port) = counted();
    let maker = site.mount("maker");
    fs::create_dir_all(maker.join("a/b/c")).unwrap();
    fs::write(maker.join("a/b/c/d"), b"small").unwrap();
    fs::create_dir(maker.join("repository")).unwrap();
    run(&maker.join("repository"), "git", &["init", "-q"]);
    make_tree(&maker.join("repository"), 20, 40);
    run(&maker.join("repository"), "git", &["add", "."]);
    run(&maker.join("repository"), "git", &["commit", "-q", "-m", "all"]);
    site.unmount(&maker);

    type Work = fn(&Path);
    let rows: [(&str, u64, Work); 6] = [
        ("stat a/b/c/d", 5, |mount| assert_eq!(fs::metadata(mount.join("a/b/c/d")).unwrap().len(), 5)),
        ("open + read + close of a/b/c/d", 6, |mount| assert_eq!(fs::read(mount.join("a/b/c/d")).unwrap(), b"small")),
        // One of them is the release, for which nobody waits.
        ("create + write + close of a new name in the root", 4, |mount| {
            fs::write(mount.join("new"), b"small").unwrap()
        }),
        ("the same of 100 names", 8, |mount| {
            (0..100).for_each(|number| fs::write(mount.join(format!("new-{number}")), b"small").unwrap());
        }),
        ("find, 22 directories of 40 files", 48, |mount| {
            run(mount, "find", &["repository", "-path", "*/.git", "-prune", "-o", "-size", "+0", "-print"]);
        }),
        ("git status, 800 files in 20 directories", 80, |mount| {
            assert_eq!(run(&mount.join("repository"), "git", &["status", "--porcelain"]), "");
        }),
    ];
    for (number, (what, most, work)) in rows.into_iter().enumerate() {
        let mount = site.mount(&format!("m{number}"));
        let requests = asked(port, || work(&mount));
        println!("| {what} | {requests} |");
        assert!(requests <= most, "{what}: {requests}");
        site.unmount(&mount);
    }
}

/// In each directory the second mount looks at one file after the other, so that it asks for the listing, while the
/// first one changes names.
#[test]
fn a_change_beside_a_listing_ahead_is_seen_at_once() {
    const DIRECTORIES: usize = 24;
    const FILES: usize = 700;
    let (mut site, _) = counted();
    let maker = site.mount("maker");
    for directory in 0..DIRECTORIES {
        fs::create_dir(maker.join(format!("d{directory}"))).unwrap();
        for number in 0..FILES {
            fs::write(maker.join(format!("d{directory}")).join(name(number)), b"").unwrap();
        }
    }
    site.unmount(&maker);
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for round in 0..DIRECTORIES {
        let (a, b) = (a.join(format!("d{round}")), b.join(format!("d{round}")));
        let (looked_at, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for number in 0..FILES {
                        let _ = fs::metadata(b.join(name(number)));
                        looked_at.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            // Before, while and after the listing is on its way.
            while looked_at.load(Ordering::Relaxed) < round % 12 {
                std::hint::spin_loop();
            }
            let (gone, moved) = (name(FILES - 1 - round), name(300 + round));
            match round % 3 {
                0 => fs::write(a.join("new"), b"new").unwrap(),
                1 => fs::remove_file(a.join(&gone)).unwrap(),
                _ => fs::rename(a.join(&moved), a.join("moved")).unwrap(),
            }
            match round % 3 {
                0 => assert_eq!(fs::read(b.join("new")).unwrap(), b"new", "round {round}"),
                1 => assert!(!b.join(&gone).exists(), "round {round}"),
                _ => assert!(b.join("moved").exists() && !b.join(&moved).exists(), "round {round}"),
            }
            fs::write(a.join(name(0)), b"longer").unwrap();
            assert_eq!(fs::metadata(b.join(name(0))).unwrap().len(), 6, "round {round}");
            assert!(!b.join("late").exists());
            fs::create_dir(a.join("late")).unwrap();
            assert!(b.join("late").is_dir(), "round {round}");
            fs::remove_dir(a.join("late")).unwrap();
            assert!(!b.join("late").exists(), "round {round}");
            is_over.store(true, Ordering::Relaxed);
        });
        let names = |at: &Path| -> BTreeSet<_> { fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect() };
        assert_eq!(names(&a), names(&b), "round {round}");
    }
}

/// The kernel keeps the names of listings, and is just taking them in when one of them moves elsewhere. Each directory is
/// left alone for a while between two changes: of one that is always in dispute nothing is kept.
#[test]
fn a_change_beside_listings_of_the_kernel_is_seen_at_once() {
    const DIRECTORIES: usize = 12;
    const FILES: usize = 300;
    const ROUNDS: usize = 8;
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for directory in 0..DIRECTORIES {
        let at = a.join(format!("d{directory}"));
        fs::create_dir(&at).unwrap();
        (0..FILES).for_each(|number| fs::write(at.join(name(number)), b"").unwrap());
        fs::write(at.join("0"), b"").unwrap();
    }
    let (is_over, listed) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for lister in 0..2 {
            let (b, is_over, listed) = (&b, &is_over, &listed);
            scope.spawn(move || {
                for directory in (lister..).map(|turn| turn % DIRECTORIES) {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let entries = fs::read_dir(b.join(format!("d{directory}"))).unwrap();
                    let found = entries.filter(|entry| entry.as_ref().unwrap().metadata().is_ok()).count();
                    assert!(found >= FILES);
                    listed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _over = SetOnDrop(&is_over);
        for round in 0..ROUNDS {
            for directory in (0..DIRECTORIES).map(|directory| format!("d{directory}")) {
                let (old, new) = (round.to_string(), (round + 1).to_string());
                let before = listed.load(Ordering::Relaxed);
                eventually("listings go on", || listed.load(Ordering::Relaxed) > before);
                fs::rename(a.join(&directory).join(&old), a.join(&directory).join(&new)).unwrap();
                let at = b.join(&directory);
                assert!(at.join(&new).exists() && !at.join(&old).exists(), "{directory}, round {round}");
            }
        }
    });
}
