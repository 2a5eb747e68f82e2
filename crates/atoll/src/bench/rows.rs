//! The rows of the report: what is measured, and what it should be.

use super::results::{Results, Site, Summary};
use super::workloads;
use crate::Result;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// What a row's value should be at least, or at most where lower is better.
#[derive(Clone, Copy)]
pub enum Goal {
    None,
    /// So many times another site's value of the same run.
    Times(f64, Site),
    Value(f64),
    /// A value that is promised of directories with `FULL_DIRECTORY` entries.
    FullDirectory(f64),
    /// So many times the rate of null FUSE with a hop to another process in each call.
    WithHop(f64),
    /// So many times a hop and an `fdatasync` of the local disk, which is where `local` durability puts a change.
    LocalLog(f64),
    /// So many times this row of the volume itself.
    OfRow(f64, &'static str),
}

pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
    pub goal: Goal,
    /// The goal in words; empty without one.
    pub goal_text: &'static str,
    pub what: &'static str,
}

const fn row(
    name: &'static str,
    unit: &'static str,
    better: Better,
    goal: Goal,
    goal_text: &'static str,
    what: &'static str,
) -> Row {
    Row { name, unit, better, goal, goal_text, what }
}

/// Entries that `Goal::FullDirectory` speaks of.
pub const FULL_DIRECTORY: usize = 1_000_000;

use Better::{Higher, Lower};
use Goal::{FullDirectory, LocalLog, None as NoGoal, OfRow, Times, Value, WithHop};
use Site::{Local, Null, NullInfinite};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("stat", "op/s", Higher, Times(0.9, NullInfinite), "≥ 0.9 × null∞", "stat of files seen before"),
    row("open-read", "op/s", Higher, Times(0.9, NullInfinite), "≥ 0.9 × null∞", "open, read 4 KiB, close; files read before"),
    row("pread-cached", "op/s", Higher, Times(0.9, NullInfinite), "≥ 0.9 × null∞", "4 KiB reads of an open file read before"),
    row("stat-uncached", "op/s", Higher, WithHop(0.7), "≥ 0.7 × 1/(null + ping)", "stat of names this mount was never asked about"),
    row("create", "op/s", Higher, Times(0.7, Null), "≥ 0.7 × null", "create, write 4 KiB, close; own directory"),
    row("rename", "op/s", Higher, Times(0.7, Null), "≥ 0.7 × null", "rename within an own directory"),
    row("unlink", "op/s", Higher, Times(0.7, Null), "≥ 0.7 × null", "unlink in an own directory"),
    row("mkdir", "op/s", Higher, NoGoal, "", "mkdir in an own directory"),
    row("rmdir", "op/s", Higher, NoGoal, "", "rmdir in an own directory"),
    row("unpack", "s", Lower, Times(1.5, Null), "≤ 1.5 × null", "unpack a source tree with tar"),
    row("find", "s", Lower, Times(1.5, Null), "≤ 1.5 × null", "walk the tree with sizes"),
    row("grep", "s", Lower, Times(1.5, Null), "≤ 1.5 × null", "search all of the tree's bytes"),
    row("git-status", "s", Lower, Times(1.5, Null), "≤ 1.5 × null", "git status of the committed tree"),
    row("git-clone", "s", Lower, Times(1.5, Null), "≤ 1.5 × null", "git clone of it beside it"),
    row("rm-rf", "s", Lower, Times(1.5, Null), "≤ 1.5 × null", "remove the tree"),
    row("sequential-write", "MiB/s", Higher, Times(0.8, Null), "≥ 0.8 × null", "1 MiB writes, then fsync"),
    row("sequential-read-warm", "MiB/s", Higher, Times(0.9, NullInfinite), "≥ 0.9 × null∞", "1 MiB reads of what was just read"),
    row("sequential-read-cold", "MiB/s", Higher, NoGoal, "", "1 MiB reads, the kernel's pages dropped (POSIX_FADV_DONTNEED)"),
    row("random-write", "op/s", Higher, Times(0.5, Local), "≥ 0.5 × local", "4 KiB overwrites at random and one fsync"),
    row("fsync-p50", "µs", Lower, LocalLog(1.3), "≤ 1.3 × (fdatasync + ping)", "fsync of an overwritten 4 KiB file"),
    row("fsync-1-thread", "op/s", Higher, NoGoal, "", "4 KiB overwrite and fsync, one thread"),
    row("fsync-64-threads", "op/s", Higher, OfRow(20.0, "fsync-1-thread"), "≥ 20 × one thread", "the same, 64 threads with a file each"),
    row("directory-first", "ms", Lower, FullDirectory(10.0), "≤ 10 with 1,000,000 entries", "first entry of a large directory"),
    row("directory-attributes", "entries/s", Higher, FullDirectory(200_000.0), "≥ 200,000 with 1,000,000 entries", "list it with attributes"),
    row("directory-names", "entries/s", Higher, NoGoal, "", "list its names"),
    row("visible-p50", "µs", Lower, NoGoal, "", "write returned on one mount until read on the other, median"),
    row("visible-p99", "µs", Lower, Value(1_000.0), "≤ 1,000", "the same, 99 of 100"),
    row("visible-max", "µs", Lower, NoGoal, "", "the same, longest"),
    row("stale-answers", "answers", Lower, Value(0.0), "0", "wrong answers by one mount after a change on the other"),
    row("probes", "op/s", Higher, NoGoal, "", "such changes and questions"),
    row("ping-pong", "op/s", Higher, NoGoal, "", "two mounts read and overwrite one block in turns"),
    row("append", "op/s", Higher, NoGoal, "", "two mounts append lines to one file; every line counted"),
    row("exclusive-create", "op/s", Higher, NoGoal, "", "four threads on two mounts create one name; every winner counted"),
    row("flock-p50", "µs", Lower, NoGoal, "", "flock from mount to mount, median"),
    row("flock-p99", "µs", Lower, Value(2_000.0), "≤ 2,000", "the same, 99 of 100"),
    row("fcntl-p50", "µs", Lower, NoGoal, "", "fcntl lock from mount to mount, median"),
    row("fcntl-p99", "µs", Lower, Value(2_000.0), "≤ 2,000", "the same, 99 of 100"),
    row("mixed-io", "op/s", Higher, Value(10_000.0), "≥ 10,000", "four threads on two mounts read and write random 4 KiB of shared files"),
    row("ping", "µs", Lower, NoGoal, "", "yardstick: there and back through a unix socket"),
    row("fdatasync", "µs", Lower, NoGoal, "", "yardstick: append 4 KiB to a local file, fdatasync"),
];

/// The rows of these names, or all that can be filled.
pub fn select(names: &[String], second: bool) -> Result<Vec<&'static Row>> {
    let two = |row: &Row| workloads::of(row.name).is_some_and(|workload| workload.on.needs_second());
    if names.is_empty() {
        return Ok(ROWS.iter().filter(|row| second || !two(row)).collect());
    }
    let known = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let row = ROWS
            .iter()
            .find(|row| row.name == name)
            .ok_or_else(|| format!("no row `{name}`: there are {}", known()))?;
        if two(row) && !second { Err(format!("row `{name}` needs --second")) } else { Ok(row) }
    };
    names.iter().map(find).collect()
}

/// Whether a row is where it should be.
pub struct Verdict {
    /// The median of what was asked for in each run.
    pub target: f64,
    /// `None`: this run cannot show it.
    pub reached: Option<bool>,
}

impl Row {
    /// The goal against the volume's values; `None` without a goal or without what it refers to.
    pub fn verdict(&self, results: &Results, durability: &str, entries: usize) -> Option<Verdict> {
        let local = |row, run| results.sample(row, Site::Local, run);
        let target = |run| match self.goal {
            Goal::None => None,
            Goal::Times(factor, site) => Some(factor * results.sample(self.name, site, run)?),
            Goal::Value(value) | Goal::FullDirectory(value) => Some(value),
            Goal::WithHop(factor) => {
                let seconds = 1.0 / results.sample(self.name, Site::Null, run)? + local("ping", run)? / 1e6;
                Some(factor / seconds)
            }
            // Other modes put the change elsewhere.
            Goal::LocalLog(_) if durability != "local" => None,
            Goal::LocalLog(factor) => Some(factor * (local("fdatasync", run)? + local("ping", run)?)),
            Goal::OfRow(factor, row) => Some(factor * results.sample(row, Site::Volume, run)?),
        };
        let runs: Vec<(f64, f64)> =
            results.samples(self.name, Site::Volume).filter_map(|(run, value)| Some((value, target(run)?))).collect();
        // Positive when better than asked for.
        let margin = |(value, target): &(f64, f64)| match self.better {
            Better::Higher => value - target,
            Better::Lower => target - value,
        };
        let met = Summary::of(runs.iter().map(margin))?.median >= 0.0;
        let faulty = results.faults.iter().any(|fault| fault.row == self.name);
        let shown = !matches!(self.goal, Goal::FullDirectory(_)) || entries >= FULL_DIRECTORY;
        let reached = match met && !faulty {
            true if !shown => None,
            reached => Some(reached),
        };
        Some(Verdict { target: Summary::of(runs.iter().map(|(_, target)| *target))?.median, reached })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::Record;
    use crate::bench::workloads::WORKLOADS;

    fn results(samples: &[(&'static str, Site, f64)]) -> Results {
        let mut results = Results::default();
        for &(row, site, value) in samples {
            results.add(0, site, Record { samples: vec![(row, value)], ..Record::default() });
        }
        results
    }

    fn verdict(name: &str, results: &Results, entries: usize) -> Option<Verdict> {
        ROWS.iter().find(|row| row.name == name).unwrap().verdict(results, "local", entries)
    }

    #[test]
    fn every_row_is_filled_by_one_workload() {
        for row in ROWS {
            assert_eq!(
                WORKLOADS.iter().filter(|workload| workload.rows.contains(&row.name)).count(),
                1,
                "{}",
                row.name
            );
        }
        let filled: usize = WORKLOADS.iter().map(|workload| workload.rows.len()).sum();
        assert_eq!(filled, ROWS.len());
    }

    #[test]
    fn goals_compare_with_the_same_run() {
        let slow = results(&[("create", Site::Volume, 69.0), ("create", Site::Null, 100.0)]);
        assert_eq!(verdict("create", &slow, 0).unwrap().reached, Some(false));
        let fast = results(&[("create", Site::Volume, 71.0), ("create", Site::Null, 100.0)]);
        assert_eq!(verdict("create", &fast, 0).unwrap().reached, Some(true));
        let alone = results(&[("create", Site::Volume, 71.0)]);
        assert!(verdict("create", &alone, 0).is_none());
    }

    #[test]
    fn an_uncached_operation_may_cost_one_hop_more_than_null() {
        let samples = [("stat-uncached", Site::Volume, 7_000.0), ("stat-uncached", Site::Null, 20_000.0)];
        let mut results = results(&samples);
        results.add(0, Site::Local, Record { samples: vec![("ping", 50.0)], ..Record::default() });
        let verdict = verdict("stat-uncached", &results, 0).unwrap();
        assert!((verdict.target - 7_000.0).abs() < 1e-6);
    }

    #[test]
    fn a_small_directory_can_only_miss_the_goal_of_a_large_one() {
        let good = results(&[("directory-first", Site::Volume, 1.0)]);
        assert_eq!(verdict("directory-first", &good, 1_000).unwrap().reached, None);
        assert_eq!(verdict("directory-first", &good, FULL_DIRECTORY).unwrap().reached, Some(true));
        let bad = results(&[("directory-first", Site::Volume, 11.0)]);
        assert_eq!(verdict("directory-first", &bad, 1_000).unwrap().reached, Some(false));
    }

    #[test]
    fn a_fault_in_one_run_is_not_outvoted_by_the_others() {
        let mut results = Results::default();
        for (run, stale) in [0, 0, 1].into_iter().enumerate() {
            let mut record = Record::default();
            record.sample("stale-answers", stale as f64);
            record.fault("stale-answers", "after chmod", stale);
            results.add(run as u32, Site::Volume, record);
        }
        assert_eq!(verdict("stale-answers", &results, 0).unwrap().reached, Some(false));
    }
}
