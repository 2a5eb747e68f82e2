//! A volume does what a POSIX file system does: random operations run on a
//! volume and on a small reference model, and every answer must be the same.
//!
//! `reference` is the model, `generator` makes the operations, `driver` runs
//! and compares. `ATOLL_SEED=n cargo test -p atoll-volume --test model` repeats
//! one run; `ATOLL_STEPS` makes it longer.

mod model {
    pub mod acl;
    pub mod content;
    pub mod driver;
    pub mod generator;
    pub mod locks;
    pub mod random;
    pub mod reference;
}

use std::time::{SystemTime, UNIX_EPOCH};

use model::driver::{Case, Driver};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// `ATOLL_SEED` stands for the given seed.
fn run(seed: u64, inode_cache_max: usize, staged_on_disk: bool) {
    let seed = from_environment("ATOLL_SEED").unwrap_or(seed);
    let steps = from_environment("ATOLL_STEPS").unwrap_or(4000) as usize;
    Driver::new(Case { seed, steps, inode_cache_max, staged_on_disk }).run();
}

#[test]
fn agrees_with_the_model_when_everything_is_cached() {
    run(1, 100_000, false);
}

#[test]
fn agrees_with_the_model_when_hardly_anything_is_cached() {
    run(2, 8, false);
}

#[test]
fn agrees_with_the_model_when_bytes_are_staged_on_disk() {
    run(3, 20, true);
}

#[test]
fn agrees_with_the_model_from_a_fresh_seed() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    println!("ATOLL_SEED={seed}");
    run(seed, 12, false);
}
