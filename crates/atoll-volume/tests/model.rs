//! A volume does what a POSIX file system does: random operations run on a
//! volume and on a small reference model, and every answer must be the same.
//!
//! `reference` is the model, `generator` makes the operations, `driver` runs
//! and compares. `ATOLL_SEED=n cargo test -p atoll-volume --test model` repeats
//! one run; `ATOLL_STEPS` makes it longer.

mod support;

mod model {
    pub mod acl;
    pub mod content;
    pub mod driver;
    pub mod generator;
    pub mod locks;
    pub mod quotas;
    pub mod random;
    pub mod reference;
    pub mod trash;
}

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use model::driver::{Case, Driver};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// `ATOLL_SEED` and `ATOLL_STEPS` stand for what the case says.
fn run(mut case: Case) -> BTreeMap<String, u64> {
    case.seed = from_environment("ATOLL_SEED").unwrap_or(case.seed);
    case.steps = from_environment("ATOLL_STEPS").map_or(case.steps, |steps| steps as usize);
    Driver::new(case).run()
}

const PLAIN: Case = Case {
    seed: 1,
    steps: 4000,
    inode_cache_max: 100_000,
    staged_on_disk: false,
    locks_percent: 2,
    quotas: false,
    encrypted: false,
    trash: false,
};

/// These must have happened often enough for the run to say something.
fn must_have(tally: &BTreeMap<String, u64>, endings: &[&str]) {
    for ending in endings {
        assert!(tally.contains_key(*ending), "never happened: {ending}");
    }
}

#[test]
fn agrees_with_the_model_when_everything_is_cached() {
    let tally = run(PLAIN);
    let kinds = "Lookup Parent GetAttributes SetAttributes Create CreateUnnamed MakeNode MakeDirectory MakeSymlink \
        Link Unlink RemoveDirectory Rename ReadSymlink Open Release Read Write Sync Allocate Seek CloneRange \
        ReadDirectory GetXattr SetXattr ListXattrs RemoveXattr Statistics TestLock SetLock Unlock \
        HoldLocks";
    let done: Vec<String> = kinds.split_whitespace().map(|kind| format!("{kind} done")).collect();
    must_have(&tally, &done.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(tally["bytes compacted"] > 100_000, "{} bytes compacted", tally["bytes compacted"]);
    must_have(&tally, &["Rename EINVAL", "Rename ENOTEMPTY", "Rename EEXIST", "Link EEXIST", "Seek ENXIO"]);
}

#[test]
fn agrees_with_the_model_when_hardly_anything_is_cached() {
    run(Case { seed: 2, inode_cache_max: 8, ..PLAIN });
}

#[test]
fn agrees_with_the_model_when_bytes_are_staged_on_disk() {
    run(Case { seed: 3, inode_cache_max: 20, staged_on_disk: true, ..PLAIN });
}

#[test]
fn agrees_with_the_model_when_bytes_are_encrypted() {
    run(Case { seed: 5, inode_cache_max: 20, encrypted: true, ..PLAIN });
}

#[test]
fn agrees_with_the_model_of_locks() {
    let tally = run(Case { seed: 4, steps: 10_000, locks_percent: 90, ..PLAIN });
    must_have(&tally, &["SetLock done", "SetLock waits", "SetLock EAGAIN", "SetLock EDEADLK", "HoldLocks EAGAIN"]);
}

#[test]
fn agrees_with_the_model_when_directories_have_quotas() {
    let mut tally = BTreeMap::new();
    for (seed, inode_cache_max) in [(5, 100_000), (6, 8)] {
        let more = run(Case { seed, inode_cache_max, quotas: true, ..PLAIN });
        more.into_iter().for_each(|(ending, count)| *tally.entry(ending).or_default() += count);
    }
    must_have(&tally, &["Write EDQUOT", "CloneRange EDQUOT", "Create EDQUOT", "MakeDirectory EDQUOT", "Rename EDQUOT"]);
    must_have(&tally, &["Rename EXDEV", "Link EXDEV", "set quota Ok(())"]);
}

#[test]
fn agrees_with_the_model_when_files_are_kept_in_the_trash() {
    let tally = run(Case { seed: 7, inode_cache_max: 12, quotas: true, trash: true, ..PLAIN });
    must_have(&tally, &["kept Regular", "kept Symlink", "kept Regular, open", "kept Regular, charged"]);
    must_have(&tally, &["files restored", "files emptied", "files due", "retention set"]);
    must_have(&tally, &["crash before a loss", "crash after a loss"]);
}

#[test]
fn agrees_with_the_model_from_a_fresh_seed() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    println!("ATOLL_SEED={seed}");
    run(Case { seed, inode_cache_max: 12, locks_percent: 5, quotas: true, trash: true, ..PLAIN });
}
