//! What it costs to make a small change durable, and the two yardsticks for it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::measure::{At, Folder, Random, Scale, parallel, seconds_since};
use super::results::Record;
use super::small::BLOCK;
use crate::Result;

const MEDIAN: f64 = 0.5;
const THREADS: usize = 64;

/// Overwrite a small file and fsync it, over and over. Returns the latencies of the fsyncs.
fn overwrite(file: &File, scale: &Scale, count: usize) -> Result<Vec<Duration>> {
    let mut block = Random(8).bytes(BLOCK);
    let (start, mut latencies) = (Instant::now(), Vec::new());
    while latencies.len() < count && start.elapsed() < scale.loop_time_max && !scale.stop.is_set() {
        block[..8].copy_from_slice(&(latencies.len() as u64).to_le_bytes());
        file.write_all_at(&block, 0).at("fsync")?;
        let before = Instant::now();
        file.sync_all().at("fsync")?;
        latencies.push(before.elapsed());
    }
    Ok(latencies)
}

pub fn fsync(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let files: Vec<File> = (0..THREADS)
        .map(|i| File::create_new(folder.path.join(format!("s{i:02}"))))
        .collect::<std::io::Result<_>>()
        .at("fsync")?;
    let start = Instant::now();
    let alone = overwrite(&files[0], scale, scale.fsyncs)?;
    record.sample("fsync-1-thread", alone.len() as f64 / seconds_since(start));
    record.latencies(alone, &[("fsync-p50", MEDIAN)]);
    let start = Instant::now();
    let together = parallel(THREADS, |i| Ok(overwrite(&files[i], scale, scale.fsyncs)?.len()))?;
    record.sample("fsync-64-threads", together.iter().sum::<usize>() as f64 / seconds_since(start));
    Ok(())
}

/// What a log on the local disk and a hop between two threads cost: no server can do an fsync in less.
pub fn yardsticks(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let log = File::create_new(folder.path.join("log")).at("fdatasync")?;
    let block = Random(9).bytes(BLOCK);
    let mut latencies = Vec::new();
    for i in 0..scale.fsyncs {
        log.write_all_at(&block, (i * BLOCK) as u64).at("fdatasync")?;
        let before = Instant::now();
        log.sync_data().at("fdatasync")?;
        latencies.push(before.elapsed());
    }
    record.latencies(latencies, &[("fdatasync", MEDIAN)]);

    let (mut here, mut there) = UnixStream::pair().at("ping")?;
    let latencies = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut message = [0; 64];
            // Ends when the other side goes.
            while there.read_exact(&mut message).and_then(|()| there.write_all(&message)).is_ok() {}
        });
        let mut latencies = Vec::new();
        let mut message = [7; 64];
        for _ in 0..500 {
            let before = Instant::now();
            here.write_all(&message).and_then(|()| here.read_exact(&mut message)).at("ping")?;
            latencies.push(before.elapsed());
        }
        drop(here);
        Result::Ok(latencies)
    })?;
    record.latencies(latencies, &[("ping", MEDIAN)]);
    Ok(())
}
