//! The whole system in one process, under one seed: the real server, clients, leases, volume and store, on a network, a
//! disk and an object store that fail as the seed says.
//!
//! Invariant: one seed is one run, to the last byte that was sent. A process runs one simulation, because what it
//! replaces (clocks, random numbers) it replaces for the whole process. See `docs/simulation.md`; begin with `driver`.

mod chain;
mod disk;
// What the histories of real mounts are checked with.
#[path = "../../../tests/history/check.rs"]
mod check;
mod driver;
mod faults;
mod hands;
#[path = "../../../tests/history/history.rs"]
#[expect(dead_code, reason = "plots are of the histories alone")]
mod history;
mod life;
#[path = "../../../tests/history/loss.rs"]
mod loss;
mod machine;
#[path = "../../../tests/history/models.rs"]
mod models;
mod network;
mod objects;
mod processes;
mod seeds;
mod trace;
mod world;

use std::process::ExitCode;

use atoll_types::mutation::{self, Mutation};
use clap::Parser;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::driver::Options;
use crate::faults::Kind;

/// Run the whole of Atoll in simulated time, and check what clients see.
#[derive(Parser)]
struct Arguments {
    /// What decides everything; a fresh one if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Operations of clients, at least.
    #[arg(long, default_value_t = 1_000)]
    steps: u64,
    #[arg(long, default_value_t = 3)]
    clients: usize,
    /// `object` or `local`.
    #[arg(long, default_value = "object")]
    durability: String,
    /// Run seeds for so long, each in a process of its own, and stop at the first that fails.
    #[arg(long, conflicts_with = "seed")]
    seconds: Option<u64>,
    /// Break a rule on purpose: `Unheard`, `EarlySync`, `Repeated`, `WallIgnored` or `Unasked`.
    #[arg(long)]
    mutation: Option<String>,
    /// Show every event.
    #[arg(long)]
    trace: bool,
    /// Only these kinds of rounds, by their names.
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seconds) = arguments.seconds {
        return seeds::run(seconds);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let seed = arguments.seed.unwrap_or_else(seeds::fresh);
    let kinds = Kind::ALL
        .into_iter()
        .filter(|kind| arguments.kinds.is_empty() || arguments.kinds.contains(&format!("{kind:?}")));
    let options = Options {
        seed,
        steps: arguments.steps,
        clients: arguments.clients,
        kinds: kinds.collect(),
        durability: if arguments.durability == "local" { "local" } else { "object" },
        is_shown: arguments.trace,
    };
    if std::env::var_os("ATOLL_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("ATOLL_LOG"))
            .without_time()
            .with_writer(std::io::stderr)
            .init();
    }
    for mutation in Mutation::ALL {
        if arguments.mutation.as_ref().is_some_and(|name| *name == format!("{mutation:?}")) {
            mutation::set_broken(mutation);
        }
    }
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let _clocks = mad_turmoil::time::SimClocksGuard::init();
    let report = driver::run(&options, folder.path().join("data"));
    println!(
        "seed {seed}: {} rounds, {} operations, {:.1} s, {} events, hash {:016x}",
        report.rounds,
        report.operations,
        report.elapsed.as_secs_f64(),
        report.events,
        report.hash
    );
    match report.failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}
