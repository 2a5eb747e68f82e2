//! The benchmark itself: it ends, leaves nothing behind, and sees nothing wrong.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::*;

/// Bound on a quick benchmark of a debug build, beside whatever else runs.
const QUICK_TIME_MAX: Duration = Duration::from_secs(60);

const ROWS: [&str; 40] = [
    "stat",
    "open-read",
    "pread-cached",
    "stat-uncached",
    "create",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "unpack",
    "find",
    "grep",
    "git-status",
    "git-clone",
    "rm-rf",
    "sequential-write",
    "sequential-read-warm",
    "sequential-read-cold",
    "random-write",
    "fsync-p50",
    "fsync-1-thread",
    "fsync-64-threads",
    "directory-first",
    "directory-attributes",
    "directory-names",
    "visible-p50",
    "visible-p99",
    "visible-max",
    "stale-answers",
    "probes",
    "ping-pong",
    "append",
    "exclusive-create",
    "flock-p50",
    "flock-p99",
    "fcntl-p50",
    "fcntl-p99",
    "mixed-io",
    "ping",
    "fdatasync",
];

#[test]
fn bench_fills_every_row_without_a_fault_and_cleans_up() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let temporary = site.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let start = Instant::now();
    let mut bench = site.command(["bench", "--quick", "--runs", "1", "--entries", "5000", "--json"]);
    bench.arg(&a).arg("--second").arg(&b).env("TMPDIR", &temporary);
    let report = Ran(bench.output().unwrap()).must_succeed();
    assert!(start.elapsed() < QUICK_TIME_MAX, "it took {:?}", start.elapsed());

    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["durability"], "local");
    assert_eq!((&report["faults"], &report["errors"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["name"].as_str().unwrap()).collect::<Vec<_>>(), ROWS);
    for row in rows {
        // The yardsticks are of the machine alone.
        let yardstick = matches!(row["name"].as_str(), Some("ping" | "fdatasync"));
        let site = if yardstick { "local" } else { "volume" };
        let value = row[site]["median"].as_f64();
        // `stale-answers` counts wrong answers, so none is its one right value.
        assert!(value.is_some_and(|value| value > 0.0 || row["name"] == "stale-answers"), "{row:#}");
        assert_eq!(row["faults"], 0);
    }
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn an_interrupted_bench_fails_and_cleans_up() {
    let mut site = Site::new();
    let mount = site.mount("m");
    let temporary = site.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut bench = site.command(["bench", "--rows", "create", "--json"]);
    bench.arg(&mount).env("TMPDIR", &temporary).stdout(Stdio::null()).stderr(Stdio::null());
    let mut bench = bench.spawn().unwrap();
    eventually("the first workload", || {
        fs::read_dir(&mount).unwrap().any(|root| root.unwrap().path().join("small-files").exists())
    });
    signal(&bench, rustix::process::Signal::INT);
    assert_eq!(wait_bounded(&mut bench).expect("it ends").code(), Some(1));
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn bench_refuses_a_second_directory_that_is_no_second_mount() {
    let mut site = Site::new();
    let mount = site.mount("m");
    let elsewhere = site.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for (second, words) in [(&mount, "same mount"), (&elsewhere, "not another mount")] {
        let mut bench = site.command(["bench", "--quick"]);
        bench.arg(&mount).arg("--second").arg(second);
        Ran(bench.output().unwrap()).must_fail_saying(&[words]);
        assert_eq!(fs::read_dir(&mount).unwrap().count(), 0);
    }
}
