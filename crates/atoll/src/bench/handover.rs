//! How long a lock takes from the mount that gives it up to the mount that waits for it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::measure::{At, Folder, Scale};
use super::results::Record;
use crate::Result;

type Lock = fn(&File, FlockOperation) -> rustix::io::Result<()>;

/// Longest wait for the other thread.
const PATIENCE: Duration = Duration::from_secs(20);
/// From the waiter's word that it is about to wait until it does: what it takes a request to arrive.
const SETTLE: Duration = Duration::from_millis(2);

pub fn flock(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let lock: Lock = |file, operation| rustix::fs::flock(file, operation);
    hand_over(folder, scale, record, lock, ["flock-p50", "flock-p99"])
}

/// Record locks belong to a process, so two threads exclude each other only when they are on different mounts.
pub fn fcntl(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let lock: Lock = |file, operation| rustix::fs::fcntl_lock(file, operation);
    hand_over(folder, scale, record, lock, ["fcntl-p50", "fcntl-p99"])
}

/// Who gave the lock up last: the round, and when.
type Released = Mutex<(usize, Instant)>;

fn hand_over(folder: &Folder, scale: &Scale, record: &mut Record, lock: Lock, rows: [&'static str; 2]) -> Result<()> {
    let [p50, p99] = rows;
    std::fs::write(folder.path.join(p50), 0_u64.to_le_bytes()).at(p50)?;
    let [a, b] = folder.both().map(|mount| OpenOptions::new().read(true).write(true).open(mount.join(p50)));
    let (a, b) = (a.at(p50)?, b.at(p50)?);
    lock(&a, FlockOperation::LockExclusive).at(p50)?;
    let (to_a, from_b) = channel();
    let (to_b, from_a) = channel();
    let released = Mutex::new((0, Instant::now()));
    let released = &released;
    let rounds = scale.hand_overs;
    let (first, second) = std::thread::scope(|scope| {
        // Each file and channel goes with its thread: one that fails gives up the lock and lets the other know.
        let first = scope.spawn(move || turns(0, a, lock, rounds, to_b, from_b, released));
        let second = scope.spawn(move || turns(1, b, lock, rounds, to_a, from_a, released));
        (first.join(), second.join())
    });
    let (mut latencies, mut broken, mut failed) = (Vec::new(), 0, Vec::new());
    for turns in [first, second] {
        match turns.map_err(|_| "a thread panicked")? {
            Ok((measured, early)) => {
                latencies.extend(measured);
                broken += early;
            }
            Err(error) => failed.push(error),
        }
    }
    if !failed.is_empty() {
        return Err(format!("{p50}: {}", failed.join("; ")));
    }
    record.fault(p99, "a lock given to two at once", broken);
    record.latencies(latencies, &[(p50, 0.5), (p99, 0.99)]);
    let counter = std::fs::read(folder.by_other().join(p50)).at(p50)?;
    let counted = counter.try_into().map_or(0, u64::from_le_bytes);
    record.fault(p99, "additions lost under the lock", (rounds as u64).abs_diff(counted));
    Ok(())
}

/// In the even rounds thread 0 holds the lock and thread 1 waits for it, in the odd ones the other way round. The waiter says
/// when it is about to wait, and when it has the lock: only then may the other want it again, as a lock need not be fair.
fn turns(
    who: usize,
    file: File,
    lock: Lock,
    rounds: usize,
    to_other: Sender<()>,
    from_other: Receiver<()>,
    released: &Released,
) -> Result<(Vec<Duration>, u64)> {
    let (mut latencies, mut early) = (Vec::new(), 0);
    for round in 0..rounds {
        if round % 2 == who {
            from_other.recv_timeout(PATIENCE).at("the other does not come to wait")?;
            std::thread::sleep(SETTLE);
            *released.lock().unwrap_or_else(|broken| broken.into_inner()) = (round + 1, Instant::now());
            lock(&file, FlockOperation::Unlock).at("unlock")?;
            from_other.recv_timeout(PATIENCE).at("the other does not get the lock")?;
        } else {
            to_other.send(()).at("the other thread")?;
            lock(&file, FlockOperation::LockExclusive).at("lock")?;
            let now = Instant::now();
            let (last, at) = *released.lock().unwrap_or_else(|broken| broken.into_inner());
            if last == round + 1 {
                latencies.push(now.duration_since(at));
            } else {
                early += 1;
            }
            let mut counter = [0; 8];
            file.read_exact_at(&mut counter, 0).at("read")?;
            file.write_all_at(&(u64::from_le_bytes(counter) + 1).to_le_bytes(), 0).at("write")?;
            to_other.send(()).at("the other thread")?;
        }
    }
    Ok((latencies, early))
}
