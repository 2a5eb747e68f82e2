//! The object store is away, slow, throws errors, or answers with wrong bytes. Nothing is lost, and no wrong byte is read.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::faulty_s3::{Fault, Proxy};
use crate::harness::*;

fn behind_a_proxy() -> (Site, Proxy) {
    behind_a_proxy_with(&[])
}

fn behind_a_proxy_with(flags: &[&str]) -> (Site, Proxy) {
    let mut site = Site::with_s3();
    let proxy = Proxy::start(site.s3_port());
    for (name, value) in &mut site.environment {
        if *name == "AWS_ENDPOINT_URL" {
            *value = format!("http://127.0.0.1:{}", proxy.port);
        }
    }
    site.serve = vec!["--store".into(), "s3://bucket/volumes".into(), "--cache-mib".into(), "1".into()];
    site.serve.extend(flags.iter().map(|flag| (*flag).into()));
    site.start();
    (site, proxy)
}

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// Seconds that the store is away; 60 in GOALS.md.
fn away() -> Duration {
    let seconds = std::env::var("ATOLL_STORE_AWAY_SECONDS").ok().map(|text| text.parse().expect("a number"));
    Duration::from_secs(seconds.unwrap_or(6))
}

/// What was made in this many steps is all there.
fn check(folder: &Path, steps: u32) {
    for step in 0..steps {
        assert!(fs::read(folder.join(format!("f{step}"))).unwrap() == words(20_000 + step), "{step}");
    }
}

#[test]
fn while_the_store_is_away_a_local_volume_goes_on() {
    for fault in [Fault::Away, Fault::Unavailable, Fault::Forbidden, Fault::Full] {
        let (mut site, proxy) = behind_a_proxy();
        site.atoll(["volume", "create", "vol"]).must_succeed();
        let mount = site.mount("m");
        write_synced(&mount.join("before"), &words(100_000));
        proxy.set(fault);
        let start = Instant::now();
        let mut steps = 0;
        while start.elapsed() < away() {
            let call = Instant::now();
            write_synced(&mount.join(format!("f{steps}")), &words(20_000 + steps));
            assert!(fs::read(mount.join("before")).unwrap() == words(100_000));
            assert!(call.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", call.elapsed());
            steps += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        check(&mount, steps);
        proxy.set(Fault::None);
        write_synced(&mount.join("after"), b"after");
        site.unmount(&mount);
        site.stop();
        site.start();
        let mount = site.mount("m");
        check(&mount, steps);
        assert!(fs::read(mount.join("before")).unwrap() == words(100_000));
        assert_eq!(fs::read(mount.join("after")).unwrap(), b"after");
    }
}

#[test]
fn a_flaky_and_slow_store_costs_time_only() {
    let (mut site, proxy) = behind_a_proxy();
    site.atoll(["volume", "create", "vol", "--durability", "object"]).must_succeed();
    let mount = site.mount("m");
    let mut steps = 0;
    for fault in [Fault::Flaky, Fault::Slow, Fault::Reset, Fault::Flaky] {
        proxy.set(fault);
        let before = proxy.requests();
        for _ in 0..4 {
            write_synced(&mount.join(format!("f{steps}")), &words(20_000 + steps));
            steps += 1;
        }
        assert!(proxy.requests() > before);
    }
    check(&mount, steps);
    site.kill();
    site.start();
    check(&mount, steps);
    proxy.set(Fault::None);
}

/// Nobody waits for the store for ever when a test fails.
struct Mended<'a>(&'a Proxy);

impl Drop for Mended<'_> {
    fn drop(&mut self) {
        self.0.set(Fault::None);
    }
}

#[test]
fn while_the_store_is_away_an_object_volume_waits_with_its_fsyncs_alone() {
    for fault in [Fault::Away, Fault::Forbidden] {
        let (mut site, proxy) = behind_a_proxy();
        site.atoll(["volume", "create", "vol", "--durability", "object"]).must_succeed();
        let mount = site.mount("m");
        proxy.set(fault);
        let syncing = mount.join("f0");
        std::thread::scope(|scope| {
            let _mended = Mended(&proxy);
            let sync = scope.spawn(move || write_synced(&syncing, &words(20_000)));
            let start = Instant::now();
            let mut steps = 1;
            while start.elapsed() < away().min(Duration::from_secs(20)) {
                let path = mount.join(format!("f{steps}"));
                fs::write(&path, words(20_000 + steps)).unwrap();
                assert!(fs::read(&path).unwrap() == words(20_000 + steps));
                steps += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(!sync.is_finished(), "nothing can be durable");
            proxy.set(Fault::None);
            sync.join().unwrap();
            check(&mount, steps);
            site.kill();
            site.start();
            check(&mount, steps);
        });
    }
}

/// A process that sleeps each time that it is looked at waits.
const SEEN_WAITING: u32 = 20;

/// A mount of a server that has just started: bytes of the file are nowhere but in the store.
fn with_bytes_in_the_store(site: &mut Site, bytes: &[u8]) -> (PathBuf, fs::File) {
    site.atoll(["volume", "create", "vol", "--durability", "object"]).must_succeed();
    let mount = site.mount("m");
    write_synced(&mount.join("far"), bytes);
    site.unmount(&mount);
    site.stop();
    site.start();
    let mount = site.mount("m");
    let far = fs::File::open(mount.join("far")).unwrap();
    (mount, far)
}

#[test]
fn a_store_that_is_away_for_a_while_costs_readers_and_fsyncs_time_only() {
    for fault in [Fault::Away, Fault::Forbidden] {
        let (mut site, proxy) = behind_a_proxy();
        let bytes = words(1_000_000);
        let (mount, far) = with_bytes_in_the_store(&mut site, &bytes);
        proxy.set(fault);
        std::thread::scope(|scope| {
            let _mended = Mended(&proxy);
            let reader = scope.spawn(|| {
                let mut read = vec![0; bytes.len()];
                far.read_exact_at(&mut read, 0).map(|()| read)
            });
            let near = mount.join("near");
            let sync = scope.spawn(move || write_synced(&near, &words(200_000)));
            std::thread::sleep(away().max(Duration::from_secs(20)));
            assert!(!reader.is_finished(), "nobody can have given it its bytes");
            assert!(!sync.is_finished(), "nothing can be durable");
            // Who waits can be killed.
            for waits in ["if=far of=/dev/null bs=64k skip=20 count=1", "if=/dev/zero of=killed count=1 conv=fsync"] {
                let mut dd = Command::new("dd");
                let mut dd = dd.args(waits.split(' ')).current_dir(&mount).stderr(Stdio::null()).spawn().unwrap();
                let stat = format!("/proc/{}/stat", dd.id());
                let mut seen = 0;
                eventually("dd waits", || {
                    let waits = fs::read_to_string(&stat)
                        .is_ok_and(|stat| ["(dd) S", "(dd) D"].iter().any(|w| stat.contains(w)));
                    seen = if waits { seen + 1 } else { 0 };
                    seen == SEEN_WAITING
                });
                dd.kill().unwrap();
                assert!(wait_bounded(&mut dd).is_some(), "{waits}: it cannot be killed");
            }
            proxy.set(Fault::None);
            assert!(reader.join().unwrap().unwrap() == bytes, "{fault:?}");
            sync.join().unwrap();
        });
        site.kill();
        site.start();
        assert!(fs::read(mount.join("near")).unwrap() == words(200_000));
    }
}

#[test]
fn a_store_that_stays_away_is_an_error_after_a_while_and_good_again_when_it_is_back() {
    for fault in [Fault::Away, Fault::Forbidden] {
        let (mut site, proxy) = behind_a_proxy_with(&["--store-patience", "3"]);
        let bytes = words(1_000_000);
        let (mount, far) = with_bytes_in_the_store(&mut site, &bytes);
        write_synced(&mount.join("acknowledged"), &words(30_000));
        proxy.set(fault);
        let mended = Mended(&proxy);
        let is_refused = |result: std::io::Result<()>| {
            assert_eq!(result.expect_err("the store is away").raw_os_error(), Some(5), "{fault:?}");
        };
        let mut read = vec![0; bytes.len()];
        is_refused(far.read_exact_at(&mut read, 0));
        let mut files = Vec::new();
        for (number, count) in [20_000, 200_000].into_iter().enumerate() {
            let mut file = fs::File::create(mount.join(format!("refused{number}"))).unwrap();
            file.write_all(&words(count)).unwrap();
            is_refused(file.sync_all());
            is_refused(file.sync_all());
            files.push(file);
        }
        // The server and what it has go on.
        fs::write(mount.join("meanwhile"), b"meanwhile").unwrap();
        assert_eq!(fs::read(mount.join("meanwhile")).unwrap(), b"meanwhile");
        drop(mended);
        eventually("what was refused is durable", || files.iter().all(|file| file.sync_all().is_ok()));
        eventually("its bytes are there", || far.read_exact_at(&mut read, 0).is_ok());
        assert!(read == bytes, "{fault:?}");
        site.kill();
        site.start();
        assert!(fs::read(mount.join("acknowledged")).unwrap() == words(30_000));
        assert!(fs::read(mount.join("refused0")).unwrap() == words(20_000));
        assert!(fs::read(mount.join("refused1")).unwrap() == words(200_000));
        assert_eq!(fs::read(mount.join("meanwhile")).unwrap(), b"meanwhile");
    }
}

#[test]
fn wrong_bytes_are_an_error_and_never_data() {
    for fault in [Fault::WrongBytes, Fault::Truncated] {
        let (mut site, proxy) = behind_a_proxy();
        site.atoll(["volume", "create", "vol"]).must_succeed();
        let mount = site.mount("m");
        let bytes = words(2_000_000);
        write_synced(&mount.join("file"), &bytes);
        site.unmount(&mount);
        // Nothing is staged or cached any more.
        site.stop();
        site.start();
        let mount = site.mount("m");
        proxy.set(fault);
        let file = fs::File::open(mount.join("file")).unwrap();
        let mut refused = 0;
        for offset in (0..bytes.len()).step_by(1 << 20) {
            let mut part = vec![0; (1 << 20).min(bytes.len() - offset)];
            match file.read_exact_at(&mut part, offset as u64) {
                Ok(()) => assert!(part == bytes[offset..offset + part.len()], "{fault:?}: wrong bytes at {offset}"),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(5), "{fault:?}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "{fault:?}");
        proxy.set(Fault::None);
        eventually("the bytes are good again", || fs::read(mount.join("file")).is_ok_and(|read| read == bytes));
    }
}

#[test]
fn a_volume_whose_metadata_come_with_wrong_bytes_is_refused_until_they_are_right() {
    for fault in [Fault::WrongBytes, Fault::Truncated] {
        let (mut site, proxy) = behind_a_proxy();
        site.atoll(["volume", "create", "vol"]).must_succeed();
        let mount = site.mount("m");
        for number in 0..200 {
            write_synced(&mount.join(format!("f{number}")), &words(number));
        }
        site.unmount(&mount);
        site.stop();
        site.start();
        proxy.set(fault);
        // Nothing of it is known to this server yet.
        for _ in 0..3 {
            let Ran(output) = site.atoll(["volume", "info", "vol"]);
            assert!(!output.status.success(), "{fault:?}: {}", String::from_utf8_lossy(&output.stdout));
        }
        proxy.set(Fault::None);
        eventually("the volume is there again", || site.atoll(["volume", "info", "vol"]).0.status.success());
        let mount = site.mount("m");
        for number in 0..200 {
            assert!(fs::read(mount.join(format!("f{number}"))).unwrap() == words(number), "{fault:?}: {number}");
        }
    }
}
