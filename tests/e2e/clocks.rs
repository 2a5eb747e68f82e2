//! The server's clock is set forward and back, while it runs and between two servers. Mounts do not notice.
//!
//! Clocks of mounts, and those of virtual machines that are suspended, are for the simulation (`docs/simulation.md`).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::*;

/// Longest that a synced write may take, whatever time it is.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// libfaketime, which gives a program the time that a file says.
fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").expect("libraries").flatten();
    let mut found =
        folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).filter(|path| path.exists());
    found.next().expect("libfaketime, for this test: apt-get install faketime")
}

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_server_whose_clock_is_set_forward_and_back_goes_on() {
    for durability in ["local", "object"] {
        let mut site = Site::empty();
        let clock = site.path("clock");
        fs::write(&clock, "+0").unwrap();
        let text = |path: &Path| path.to_str().expect("a path that can be read").to_owned();
        site.environment = vec![
            ("LD_PRELOAD", text(&library())),
            ("FAKETIME_TIMESTAMP_FILE", text(&clock)),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ];
        site.start();
        site.atoll(["volume", "create", "vol", "--durability", durability]).must_succeed();
        let mount = site.mount("m");
        let days =
            [("+0", false), ("+1d", false), ("+1d", true), ("-1d", false), ("-1d", true), ("-30d", true), ("+0", true)];
        for (step, (day, is_killed)) in (0..).zip(days) {
            fs::write(&clock, day).unwrap();
            if is_killed {
                site.kill();
                site.start();
            }
            let start = Instant::now();
            write_synced(&mount.join(format!("f{step}")), &words(30_000 + step));
            assert!(start.elapsed() < WRITE_MAX, "{durability}, {day}: {:?}", start.elapsed());
            for step in 0..=step {
                let file = mount.join(format!("f{step}"));
                assert!(fs::read(file).unwrap() == words(30_000 + step), "{durability}, {day}: {step}");
            }
        }
        // What is there is what it is for a server that never knew another time.
        site.unmount(&mount);
        site.stop();
        site.environment.clear();
        site.start();
        let mount = site.mount("m");
        for (step, _) in (0..).zip(days) {
            assert!(fs::read(mount.join(format!("f{step}"))).unwrap() == words(30_000 + step), "{durability}: {step}");
        }
    }
}
