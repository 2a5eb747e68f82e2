//! The workloads, in the order in which they run.

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};

use super::measure::{At, Folder, Scale};
use super::results::{Record, Site};
use super::rows::Row;
use super::{contention, data, directory, durability, handover, small, tree, two_mounts};
use crate::Result;

/// The sites a workload makes sense on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum On {
    All,
    /// One of the yardsticks.
    Local,
    /// Needs two mounts; on the local disk both views are the same directory, where all must be right as well.
    Pair,
    /// Needs two mounts, and one directory is no substitute.
    PairOnly,
}

impl On {
    pub fn includes(self, site: Site) -> bool {
        match self {
            On::All => true,
            On::Local => site == Site::Local,
            On::Pair => matches!(site, Site::Volume | Site::Local),
            On::PairOnly => site == Site::Volume,
        }
    }

    pub fn needs_second(self) -> bool {
        matches!(self, On::Pair | On::PairOnly)
    }
}

pub struct Workload {
    pub name: &'static str,
    pub rows: &'static [&'static str],
    pub on: On,
    /// Whether its files stay for the next run.
    keep: bool,
    run: fn(&Folder, &Scale, &mut Record) -> Result<()>,
}

const fn workload(
    name: &'static str,
    on: On,
    run: fn(&Folder, &Scale, &mut Record) -> Result<()>,
    rows: &'static [&'static str],
) -> Workload {
    Workload { name, rows, on, keep: false, run }
}

#[rustfmt::skip]
pub const WORKLOADS: &[Workload] = &[
    workload("yardsticks", On::Local, durability::yardsticks, &["ping", "fdatasync"]),
    workload("small-files", On::All, small::files, &["stat", "open-read", "create", "rename", "unlink"]),
    workload("cached-reads", On::All, small::cached_reads, &["pread-cached"]),
    workload("directories", On::All, small::directories, &["mkdir", "rmdir"]),
    workload("uncached", On::All, small::uncached, &["stat-uncached"]),
    workload("tree", On::All, tree::tree, &["unpack", "find", "grep", "git-status", "git-clone", "rm-rf"]),
    workload("sequential", On::All, data::sequential,
             &["sequential-write", "sequential-read-warm", "sequential-read-cold"]),
    workload("random", On::All, data::random, &["random-write"]),
    workload("fsync", On::All, durability::fsync, &["fsync-p50", "fsync-1-thread", "fsync-64-threads"]),
    Workload { keep: true, ..workload("directory", On::All, directory::listing,
             &["directory-first", "directory-attributes", "directory-names"]) },
    workload("visible", On::Pair, two_mounts::visible, &["visible-p50", "visible-p99", "visible-max"]),
    workload("stale-answers", On::Pair, two_mounts::stale_answers, &["stale-answers", "probes"]),
    workload("ping-pong", On::Pair, two_mounts::ping_pong, &["ping-pong"]),
    workload("append", On::Pair, contention::append, &["append"]),
    workload("exclusive-create", On::Pair, contention::exclusive, &["exclusive-create"]),
    workload("flock", On::Pair, handover::flock, &["flock-p50", "flock-p99"]),
    workload("fcntl", On::PairOnly, handover::fcntl, &["fcntl-p50", "fcntl-p99"]),
    workload("mixed-io", On::Pair, contention::mixed, &["mixed-io"]),
];

/// The workload that fills a row.
pub fn of(row: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|workload| workload.rows.contains(&row))
}

/// Those that fill one of the rows; the yardsticks always, as goals refer to them.
pub fn select(rows: &[&'static Row]) -> Vec<&'static Workload> {
    let wanted =
        |workload: &&Workload| workload.on == On::Local || rows.iter().any(|row| workload.rows.contains(&row.name));
    WORKLOADS.iter().filter(wanted).collect()
}

/// Run one. What fails inside is in the record; `Err` says that it does not end.
pub fn run(workload: &'static Workload, folder: Folder, scale: &Scale) -> Result<Record> {
    let bound = scale.workload_time_max;
    let scale = scale.clone();
    let (sender, receiver) = channel();
    // A thread, so that a call that never returns does not keep the benchmark from its end.
    std::thread::spawn(move || {
        let mut record = Record::default();
        if let Err(error) = in_folder(workload, &folder, &scale, &mut record) {
            record.error = Some((workload.name, error));
        }
        drop(sender.send(record));
    });
    match receiver.recv_timeout(bound) {
        Ok(record) => Ok(record),
        Err(RecvTimeoutError::Timeout) => Err(format!("no end in {bound:?}; nothing was measured after it")),
        Err(RecvTimeoutError::Disconnected) => {
            Ok(Record { error: Some((workload.name, "panicked".into())), ..Record::default() })
        }
    }
}

fn in_folder(workload: &Workload, folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    if !workload.keep {
        // What an earlier run left when it failed.
        directory::remove_all(&folder.path)?;
    }
    fs::create_dir_all(&folder.path).at(workload.name)?;
    let result = (workload.run)(folder, scale, record);
    if !workload.keep { result.and(directory::remove_all(&folder.path)) } else { result }
}
