//! Histories of real mounts, checked for linearizability.
//!
//! Workers on several mounts of one volume change and read a few shared objects
//! while mounts are frozen, killed and cut off. Every call and its result is
//! recorded with its time, and every object's history must be one that a single
//! object in a single place could have. Needs root and `/dev/fuse`.
//!
//! `cargo test -p atoll --test history` runs the cases below within about 110 s.
//! `cargo test -p atoll --test history -- --steps 5000000 [--seed S] [--mounts N]
//! [--workers N] [--no-faults]` runs one long scenario. A word selects the cases that have it
//! in their name.
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
mod models;
mod mounts;
mod names;
mod proxy;
mod scenario;
mod selftest;
mod workers;

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use scenario::{Finding, Plan};

#[derive(Default)]
struct Options {
    steps: Option<u64>,
    seed: Option<u64>,
    mounts: Option<usize>,
    workers: Option<usize>,
    no_faults: bool,
    words: Vec<String>,
}

fn options(arguments: &[OsString]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = arguments.iter().map(|argument| argument.to_string_lossy());
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|value| value.parse::<u64>().ok());
            value.ok_or_else(|| format!("{argument} needs a number"))
        };
        match argument.as_ref() {
            "--steps" => options.steps = Some(number()?),
            "--seed" => options.seed = Some(number()?),
            "--mounts" => match number()? {
                mounts @ 2..=4 => options.mounts = Some(mounts as usize),
                other => return Err(format!("--mounts {other}: 2 to 4")),
            },
            "--workers" => match number()? {
                workers @ 1..=4 => options.workers = Some(workers as usize),
                other => return Err(format!("--workers {other}: 1 to 4 on each mount")),
            },
            "--no-faults" => options.no_faults = true,
            // What `cargo test` hands to every target.
            "--nocapture" | "--no-capture" | "--quiet" | "-q" | "--show-output" => {}
            word if !word.starts_with('-') => options.words.push(word.to_owned()),
            other => {
                return Err(format!("no option {other}: there are --steps, --seed, --mounts, --workers, --no-faults"));
            }
        }
    }
    Ok(options)
}

fn fresh_seed() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 16
}

fn plan(name: &str, seed: u64, mounts: usize, steps: u64, seconds: u64) -> Plan {
    Plan {
        name: name.into(),
        seed,
        mounts,
        workers_each: 2,
        steps,
        time_max: Duration::from_secs(seconds),
        faults: Vec::new(),
        freeze_min: faults::SHORTEST,
        freeze_max: Duration::from_secs(8),
        has_broken_mount: false,
    }
}

/// What continuous integration runs: about 100,000 steps, or as many as the time allows.
fn plans() -> Vec<Plan> {
    use faults::Kind;
    vec![
        Plan { workers_each: 1, ..plan("three mounts of one worker", 7, 3, 15_000, 10) },
        plan("two mounts", 1, 2, 15_000, 8),
        plan("four mounts", 2, 4, 20_000, 10),
        Plan { faults: vec![Kind::Freeze], ..plan("three mounts, freezes", 3, 3, 15_000, 14) },
        // Each of these freezes ends in a fence, if others change what the frozen mount keeps.
        Plan {
            faults: vec![Kind::Freeze],
            freeze_min: Duration::from_secs(6),
            ..plan("three mounts, fences", 6, 3, 15_000, 14)
        },
        Plan { faults: vec![Kind::Kill], ..plan("three mounts, kills", 4, 3, 15_000, 12) },
        Plan { faults: vec![Kind::Cut], ..plan("four mounts, cut connections", 5, 4, 15_000, 10) },
        Plan { faults: Kind::ALL.into(), ..plan("four mounts, all faults", fresh_seed(), 4, 20_000, 14) },
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
    let faults = if options.no_faults { Vec::new() } else { faults::Kind::ALL.into() };
    let workers_each = options.workers.unwrap_or(2);
    Plan { faults, workers_each, ..plan("long", seed, options.mounts.unwrap_or(4), steps, u64::MAX >> 32) }
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
    let options = match options(&arguments) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let is_wanted = |name: &str| options.words.is_empty() || options.words.iter().any(|word| name.contains(word));
    let (mut passed, mut failed) = (0, 0);
    let mut count = |is_good: bool| *(if is_good { &mut passed } else { &mut failed }) += 1;
    for (name, test) in selftest::TESTS {
        if is_wanted(name) {
            let is_good = catch_unwind(test).is_ok();
            println!("checker: {name}: {}", if is_good { "ok" } else { "FAILED" });
            count(is_good);
        }
    }
    let mut plans = match options.steps {
        Some(steps) => vec![long(&options, steps)],
        None => plans(),
    };
    for plan in &mut plans {
        if options.steps.is_none() {
            plan.seed = options.seed.unwrap_or(plan.seed);
            plan.mounts = options.mounts.unwrap_or(plan.mounts);
            plan.workers_each = options.workers.unwrap_or(plan.workers_each);
            if options.no_faults {
                plan.faults.clear();
            }
        }
    }
    let mut steps = 0;
    for plan in plans.iter().filter(|plan| is_wanted(&plan.name)) {
        count(run(plan, &mut steps));
    }
    println!("{steps} steps in all");
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
