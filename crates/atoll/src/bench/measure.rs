//! How much of everything, and the loops that time it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::results::Record;
use super::tree::Corpus;
use crate::Result;
use crate::arguments::Bench;

/// Set when the user asked to stop; every timed loop looks at it.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts and bounds of the workloads.
#[derive(Clone)]
pub struct Scale {
    /// A timed loop ends after it, whatever its count.
    pub loop_time_max: Duration,
    /// A workload that takes longer is taken to hang.
    pub workload_time_max: Duration,
    pub files: usize,
    /// Steps of loops that should never leave the kernel.
    pub cached_steps: usize,
    pub tree_files: usize,
    pub tree_directories: usize,
    pub sequential_mib: usize,
    pub random_file_mib: usize,
    pub random_writes: usize,
    pub fsyncs: usize,
    pub directory_entries: usize,
    /// Writes on one mount that are read on the other.
    pub visible_writes: usize,
    /// Rounds of every kind of change that the other mount is asked about.
    pub probes: usize,
    pub appends: usize,
    pub races: usize,
    pub hand_overs: usize,
    pub stop: Stop,
    pub corpus: Arc<Corpus>,
}

impl Scale {
    pub fn new(options: &Bench) -> Scale {
        let full = Scale {
            loop_time_max: Duration::from_secs(3),
            workload_time_max: Duration::from_secs(600),
            files: 1_500,
            cached_steps: 20_000,
            tree_files: 1_500,
            tree_directories: 150,
            sequential_mib: 128,
            random_file_mib: 64,
            random_writes: 20_000,
            fsyncs: 300,
            directory_entries: options.entries.unwrap_or(100_000) as usize,
            visible_writes: 2_000,
            probes: 100,
            appends: 1_000,
            races: 300,
            hand_overs: 200,
            stop: Stop::default(),
            corpus: Arc::default(),
        };
        if !options.quick {
            return full;
        }
        Scale {
            loop_time_max: Duration::from_millis(500),
            workload_time_max: Duration::from_secs(120),
            files: 200,
            cached_steps: 4_000,
            tree_files: 200,
            tree_directories: 20,
            sequential_mib: 16,
            random_file_mib: 8,
            random_writes: 1_000,
            fsyncs: 50,
            directory_entries: options.entries.unwrap_or(20_000) as usize,
            visible_writes: 300,
            probes: 20,
            appends: 150,
            races: 50,
            hand_overs: 50,
            ..full
        }
    }
}

/// The folder of one workload on one site; empty when the workload starts.
pub struct Folder {
    pub path: PathBuf,
    /// The same folder through the second mount.
    pub second: Option<PathBuf>,
}

impl Folder {
    /// The folder by the mount that is not under test, if there is one: what is made there is news to the other.
    pub fn by_other(&self) -> &PathBuf {
        self.second.as_ref().unwrap_or(&self.path)
    }

    /// Both views. Without a second mount they are one, and agree as any local file system's do.
    pub fn both(&self) -> [&PathBuf; 2] {
        [&self.path, self.by_other()]
    }
}

/// Says what failed.
pub trait At<T> {
    fn at(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: std::fmt::Display> At<T> for std::result::Result<T, E> {
    fn at(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

impl Record {
    /// Call `step` with 0, 1, … up to `count` times within the bound on time; the sample is steps per second. Returns
    /// how many there were.
    pub fn rate(
        &mut self,
        row: &'static str,
        scale: &Scale,
        count: usize,
        mut step: impl FnMut(usize) -> io::Result<()>,
    ) -> Result<usize> {
        let start = Instant::now();
        let mut done = 0;
        while done < count && start.elapsed() < scale.loop_time_max && !scale.stop.is_set() {
            step(done).at(row)?;
            done += 1;
        }
        self.sample(row, done as f64 / seconds_since(start));
        Ok(done)
    }

    /// The seconds that `body` takes.
    pub fn seconds<T>(&mut self, row: &'static str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let value = body().at(row)?;
        self.sample(row, seconds_since(start));
        Ok(value)
    }

    /// Percentiles of latencies, in microseconds.
    pub fn latencies(&mut self, mut latencies: Vec<Duration>, rows: &[(&'static str, f64)]) {
        latencies.sort();
        for &(row, fraction) in rows {
            let at = ((latencies.len() as f64 * fraction) as usize).min(latencies.len().saturating_sub(1));
            if let Some(latency) = latencies.get(at) {
                self.sample(row, latency.as_secs_f64() * 1e6);
            }
        }
    }
}

/// Never zero, as it divides.
pub fn seconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64().max(1e-9)
}

/// `body(0)` to `body(threads - 1)` at the same time.
pub fn parallel<T: Send>(threads: usize, body: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn({
                    let body = &body;
                    move || body(thread)
                })
            })
            .collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<T>>| {
            handle.join().unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        // All of them end before the first error is told.
        let results: Vec<Result<T>> = handles.into_iter().map(join).collect();
        results.into_iter().collect()
    })
}

/// SplitMix64: the same numbers in every run and on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}
