//! Histories of real mounts, checked for linearizability.
//!
//! Workers on several mounts of one volume change and read a few shared objects
//! while mounts are frozen, killed and cut off. Every call and its result is
//! recorded with its time, and every object's history must be one that a single
//! object in a single place could have. Needs root and `/dev/fuse`.
//!
//! `cargo test -p atoll --test history` runs the cases below within about 110 s.
//! `cargo test -p atoll --test history -- --steps 5000000 [--seed S] [--mounts N]
//! [--workers N] [--no-faults] [--faults Crash,Kill] [--alone]` runs one long scenario. With `--s3` the volume is durable in a real S3 server, with
//! `--linked` it is linked to a bucket of one.
//! Clients that are killed or fenced may lose what they have acknowledged and not flushed where a plan says so, with
//! `--may-lose-unflushed` everywhere. Words, `--skip`, `--exact` and `--list` select and name cases as in any other test.
//!
//! Read `history` for what is recorded, `models` for what objects may do,
//! `check` for the search, and `workers` for the work.

mod broken;
mod check;
mod faults;
mod hands;
#[path = "../e2e/harness.rs"]
#[allow(dead_code)]
mod harness;
mod history;
mod loss;
mod models;
mod mounts;
mod names;
mod options;
mod plots;
mod proxy;
mod scenario;
mod selftest;
mod workers;

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use options::Options;
use scenario::{Finding, Place, Plan, Work};

fn fresh_seed() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 16
}

fn plan(name: &str, seed: u64, mounts: usize, steps: u64, seconds: u64) -> Plan {
    Plan {
        name: name.into(),
        seed,
        work: Work::Shared,
        mounts,
        workers_each: 2,
        steps,
        time_max: Duration::from_secs(seconds),
        faults: Vec::new(),
        freeze_min: faults::SHORTEST,
        freeze_max: Duration::from_secs(8),
        may_lose_unflushed: false,
        has_broken_mount: false,
        place: Place::Folder,
    }
}

/// What continuous integration runs: about 100,000 steps, or as many as the time allows.
fn plans() -> Vec<Plan> {
    use faults::Kind;
    vec![
        Plan { workers_each: 1, ..plan("three mounts of one worker", 7, 3, 15_000, 10) },
        plan("two mounts", 1, 2, 15_000, 8),
        plan("four mounts", 2, 4, 20_000, 10),
        Plan {
            faults: vec![Kind::Freeze],
            may_lose_unflushed: true,
            ..plan("three mounts, freezes", 3, 3, 15_000, 14)
        },
        // Each of these freezes ends in a fence, if others change what the frozen mount keeps.
        Plan {
            faults: vec![Kind::Freeze],
            freeze_min: Duration::from_secs(6),
            may_lose_unflushed: true,
            ..plan("three mounts, fences", 6, 3, 15_000, 14)
        },
        Plan { faults: vec![Kind::Kill], may_lose_unflushed: true, ..plan("three mounts, kills", 4, 3, 15_000, 12) },
        Plan { faults: vec![Kind::Cut], ..plan("four mounts, cut connections", 5, 4, 15_000, 10) },
        Plan { faults: vec![Kind::Crash], ..plan("three mounts, crashes of the server", 8, 3, 15_000, 12) },
        Plan { faults: vec![Kind::Replace], ..plan("three mounts, replaced", 9, 3, 15_000, 10) },
        Plan {
            faults: Kind::ALL.into(),
            may_lose_unflushed: true,
            ..plan("four mounts, all faults", fresh_seed(), 4, 20_000, 14)
        },
        Plan { work: Work::Alone, ..plan("three mounts alone", fresh_seed(), 3, 200_000, 8) },
        Plan {
            work: Work::Alone,
            faults: vec![Kind::Cut],
            ..plan("four mounts alone, cut connections", fresh_seed(), 4, 200_000, 8)
        },
        Plan {
            work: Work::Alone,
            faults: vec![Kind::Crash],
            ..plan("three mounts alone, crashes of the server", fresh_seed(), 3, 200_000, 10)
        },
        Plan {
            work: Work::Alone,
            faults: vec![Kind::Replace],
            ..plan("three mounts alone, replaced", fresh_seed(), 3, 200_000, 8)
        },
        Plan {
            work: Work::Alone,
            faults: vec![Kind::Kill],
            may_lose_unflushed: true,
            ..plan("three mounts alone, kills", fresh_seed(), 3, 200_000, 8)
        },
        Plan {
            work: Work::Alone,
            faults: vec![Kind::Freeze],
            freeze_min: Duration::from_secs(6),
            may_lose_unflushed: true,
            ..plan("three mounts alone, fences", fresh_seed(), 3, 200_000, 10)
        },
        Plan { place: Place::Link, ..plan("three mounts in a link", fresh_seed(), 3, 15_000, 10) },
        Plan {
            place: Place::Link,
            faults: vec![Kind::Crash, Kind::Cut, Kind::Replace],
            ..plan("three mounts in a link, crashes, cuts, and replaced", fresh_seed(), 3, 15_000, 12)
        },
        // The first scenario once more, with one mount of another kind.
        Plan {
            has_broken_mount: true,
            workers_each: 1,
            ..plan("three mounts of one worker, a broken one is found out", 7, 3, 15_000, 10)
        },
    ]
}

fn long(options: &Options, steps: u64) -> Plan {
    let seed = options.seed.unwrap_or_else(fresh_seed);
    let faults = match &options.faults {
        _ if options.no_faults => Vec::new(),
        Some(kinds) => kinds.clone(),
        None => faults::Kind::ALL.into(),
    };
    let workers_each = options.workers.unwrap_or(2);
    let work = if options.alone { Work::Alone } else { Work::Shared };
    Plan {
        work,
        may_lose_unflushed: faults.iter().any(|kind| kind.ends_clients()),
        faults,
        workers_each,
        ..plan("long", seed, options.mounts.unwrap_or(4), steps, u64::MAX >> 32)
    }
}

/// Run one scenario; true when it passed. Adds its steps to the total.
fn run(plan: &Plan, total: &mut u64) -> bool {
    println!("{}: seed {}, {} mounts of {} workers", plan.name, plan.seed, plan.mounts, plan.workers_each);
    let Ok((report, finding)) = catch_unwind(AssertUnwindSafe(|| scenario::run(plan))) else {
        println!("  FAILED: it panicked, see above");
        return false;
    };
    *total += report.steps;
    println!("  {}", report.summary());
    let wrong = match (plan.has_broken_mount, finding) {
        (false, None) => return true,
        (true, Some(Finding::Violation { text, seen_by })) if seen_by.contains(&(plan.mounts - 1)) => {
            println!("  found out: {}", text.lines().next().unwrap_or_default());
            return true;
        }
        (true, None) => "a client that breaks its promises was not found out".to_owned(),
        (_, Some(Finding::Violation { text, .. })) => format!("not linearizable: {text}"),
        (_, Some(Finding::Defect(text))) => text,
    };
    println!("  FAILED: {wrong}");
    false
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((flag, rest)) = arguments.split_first()
        && flag == broken::FLAG
    {
        return match broken::serve(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let options = match Options::parse(&arguments) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let mut plans = match options.steps {
        Some(steps) => vec![long(&options, steps)],
        None => plans(),
    };
    for plan in &mut plans {
        plan.may_lose_unflushed |= options.may_lose_unflushed;
        plan.place = options.place.unwrap_or(plan.place);
        if options.steps.is_none() {
            plan.seed = options.seed.unwrap_or(plan.seed);
            plan.mounts = options.mounts.unwrap_or(plan.mounts);
            plan.workers_each = options.workers.unwrap_or(plan.workers_each);
            if options.no_faults {
                plan.faults.clear();
            }
        }
    }
    let tests =
        || options::TESTS.iter().chain(&plots::TESTS).chain(&selftest::TESTS).filter(|(name, _)| options.selects(name));
    plans.retain(|plan| options.selects(&plan.name));
    if options.is_list {
        let names = tests().map(|(name, _)| *name).chain(plans.iter().map(|plan| plan.name.as_str()));
        names.for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed, mut steps) = (0, 0, 0);
    let mut count = |is_good: bool| *(if is_good { &mut passed } else { &mut failed }) += 1;
    for (name, test) in tests() {
        let is_good = catch_unwind(test).is_ok();
        println!("{name}: {}", if is_good { "ok" } else { "FAILED" });
        count(is_good);
    }
    for plan in &plans {
        count(run(plan, &mut steps));
    }
    println!("{steps} steps in all");
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
