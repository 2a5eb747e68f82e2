//! One file through two mounts in turn: random writes, truncations and reads, beside the same bytes in memory.
//!
//! `ATOLL_SEED=n` repeats a run; `ATOLL_STEPS` makes it longer.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::*;

const FILE_BYTES_MAX: u64 = 256 * 1024;
const STEPS: u64 = 3000;

/// One mount's view, with descriptors that stay open.
struct Side {
    path: PathBuf,
    writer: File,
    reader: File,
}

impl Side {
    fn new(mount: &Path) -> Side {
        let path = mount.join("f");
        let writer = OpenOptions::new().write(true).create(true).truncate(false).open(&path).unwrap();
        let reader = File::open(&path).unwrap();
        Side { path, writer, reader }
    }

    fn reopen(&mut self) {
        self.reader = File::open(&self.path).unwrap();
    }
}

/// Run the steps; a wrong byte names the step.
fn exercise(seed: u64, steps: u64) {
    println!("ATOLL_SEED={seed}");
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let mut sides = [Side::new(&a), Side::new(&b)];
    let mut random = Random(seed);
    let mut model: Vec<u8> = Vec::new();
    for step in 0..steps {
        let side = &mut sides[random.below(2) as usize];
        let offset = random.below(FILE_BYTES_MAX);
        let longest = if random.below(4) == 0 { 64 * 1024 } else { 5000 };
        let length = 1 + random.below(longest);
        let end = (offset + length).min(FILE_BYTES_MAX);
        match random.below(10) {
            0..=3 => {
                let bytes: Vec<u8> = (offset..end).map(|at| (at as u8) ^ (step as u8)).collect();
                side.writer.write_all_at(&bytes, offset).unwrap();
                model.resize(model.len().max(end as usize), 0);
                model[offset as usize..end as usize].copy_from_slice(&bytes);
            }
            4 => {
                side.writer.set_len(offset).unwrap();
                model.resize(offset as usize, 0);
            }
            5 => side.reopen(),
            6 => assert!(
                fs::metadata(&side.path).unwrap().len() == model.len() as u64,
                "size in step {step}, seed {seed}: {} instead of {}",
                fs::metadata(&side.path).unwrap().len(),
                model.len()
            ),
            _ => {
                let mut bytes = vec![0; length as usize];
                let mut have = 0;
                while have < bytes.len() {
                    match side.reader.read_at(&mut bytes[have..], offset + have as u64).unwrap() {
                        0 => break,
                        more => have += more,
                    }
                }
                let from = (offset as usize).min(model.len());
                let expected = &model[from..(offset + length).min(model.len() as u64).max(from as u64) as usize];
                let differs = bytes[..have].iter().zip(expected).position(|(one, other)| one != other);
                assert!(
                    differs.is_none() && have == expected.len(),
                    "read of {length} at {offset} in step {step}, seed {seed}: {have} bytes instead of {}, first \
                     difference at {differs:?}",
                    expected.len()
                );
            }
        }
    }
    for side in &sides {
        assert!(fs::read(&side.path).unwrap() == model, "the whole file at the end, seed {seed}");
    }
}

fn steps() -> u64 {
    from_environment("ATOLL_STEPS").unwrap_or(STEPS)
}

#[test]
fn two_mounts_of_one_file_agree_with_the_model() {
    exercise(from_environment("ATOLL_SEED").unwrap_or(1), steps());
}

#[test]
fn two_mounts_of_one_file_agree_with_the_model_from_a_fresh_seed() {
    exercise(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64), steps());
}
