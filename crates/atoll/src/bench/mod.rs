//! `atoll bench`: what a mounted directory does, beside null FUSE and the local disk.
//!
//! Figures of one machine say little by themselves, so each workload runs on every
//! site in turn, and a row's result is a ratio between sites of the same run. A wrong
//! answer (stale, lost, torn) is a fault: it is counted, printed, and makes the
//! command fail however good the figures are. Read `rows` for what is measured and
//! `workloads` for what measures it.

mod contention;
mod data;
mod directory;
mod durability;
mod handover;
mod measure;
mod report;
mod results;
mod rows;
mod sites;
mod small;
mod tree;
mod two_mounts;
mod workloads;

use std::io::IsTerminal;
use std::time::Instant;

use crate::Result;
use crate::arguments::Bench;
use measure::Scale;
use results::{Results, Site};
use sites::Sites;

/// Run the benchmark; Ctrl-C and SIGTERM end it early, and everything it made is removed then too.
pub async fn run(options: Bench, as_json: bool) -> Result<()> {
    let scale = Scale::new(&options);
    let stop = scale.stop.clone();
    let (sender, mut finished) = tokio::sync::oneshot::channel();
    // Not a task of the runtime, which would wait for a workload that hangs when it ends.
    std::thread::spawn(move || drop(sender.send(benchmark(&options, scale, as_json))));
    tokio::select! {
        result = &mut finished => return result.unwrap_or_else(|_| Err("the benchmark panicked".into())),
        asked = crate::signals::asked_to_stop() => asked?,
    }
    stop.set();
    finished.await.unwrap_or_else(|_| Err("the benchmark panicked".into()))
}

fn benchmark(options: &Bench, scale: Scale, as_json: bool) -> Result<()> {
    let start = Instant::now();
    let rows = rows::select(&options.rows, options.second.is_some())?;
    let workloads = workloads::select(&rows);
    let mut results = Results::default();
    let mut sites = Sites::open(options, &workloads, &mut results)?;
    let corpus = tree::Corpus::write(sites.scratch(), &scale);
    let scale = match corpus {
        Ok(corpus) => Scale { corpus: corpus.into(), ..scale },
        Err(error) => return sites.close().and(Err(error)),
    };
    'runs: for run in 0..options.runs {
        for workload in &workloads {
            // Each site goes first as often as every other.
            let mut order: Vec<Site> = sites.of(workload.on);
            let first = run as usize % order.len().max(1);
            order.rotate_left(first);
            for site in order {
                if scale.stop.is_set() {
                    results.error("-", None, "interrupted: figures are of the runs before".into());
                    break 'runs;
                }
                if !as_json {
                    progress(run, options.runs, workload.name, site);
                }
                match workloads::run(workload, sites.folder(site, workload), &scale) {
                    Ok(record) => results.add(run, site, record),
                    Err(hung) => {
                        // Whatever comes after it would hang as well, and be measured beside it.
                        results.error(workload.rows[0], Some(site), hung);
                        sites.abandon(site);
                        break 'runs;
                    }
                }
            }
        }
    }
    if let Err(error) = sites.close() {
        results.error("-", None, error);
    }
    if !as_json {
        clear_progress();
    }
    let seconds = start.elapsed().as_secs_f64();
    let report = report::Report { options, scale: &scale, rows: &rows, results: &results, sites: &sites, seconds };
    if as_json {
        crate::print(&report.json())
    } else {
        print!("{}", report.table())
    }
    results.verdict()
}

/// Where it is, for a person who waits.
fn progress(run: u32, runs: u32, workload: &str, site: Site) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[Krun {}/{runs}: {workload} on {}\r", run + 1, site.title());
    }
}

fn clear_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
