//! Bytes in bulk, in order and at random.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::Advice;

use super::measure::{At, Folder, Random, Scale, seconds_since};
use super::results::Record;
use super::small::BLOCK;
use crate::Result;

const MIB: usize = 1 << 20;

/// Write, read back with the kernel's pages dropped, read again.
pub fn sequential(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let path = folder.path.join("sequential");
    // No two blocks of the file are the same.
    let stamp = |block: &mut [u8], i: usize| block[..8].copy_from_slice(&(i as u64).to_le_bytes());
    let mut block = Random(4).bytes(MIB);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).at("sequential-write")?;
    let start = Instant::now();
    for i in 0..scale.sequential_mib {
        stamp(&mut block, i);
        file.write_all_at(&block, (i * MIB) as u64).at("sequential-write")?;
    }
    file.sync_all().at("sequential-write")?;
    record.sample("sequential-write", scale.sequential_mib as f64 / seconds_since(start));
    drop(file);

    let file = File::open(&path).at("sequential-read-cold")?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).at("sequential-read-cold")?;
    for row in ["sequential-read-cold", "sequential-read-warm"] {
        let mut bytes = vec![0; MIB];
        let mut wrong = 0;
        let start = Instant::now();
        for i in 0..scale.sequential_mib {
            file.read_exact_at(&mut bytes, (i * MIB) as u64).at(row)?;
            stamp(&mut block, i);
            wrong += u64::from(bytes != block);
        }
        record.sample(row, scale.sequential_mib as f64 / seconds_since(start));
        record.fault(row, "wrong content", wrong);
    }
    Ok(())
}

/// Overwrites at random, one fsync for all of them; then every byte is checked.
pub fn random(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    const ROW: &str = "random-write";
    let path = folder.path.join("random");
    let mut expected = Random(5).bytes(scale.random_file_mib * MIB);
    std::fs::write(&path, &expected).at(ROW)?;
    let file = OpenOptions::new().read(true).write(true).open(&path).at(ROW)?;
    file.sync_all().at(ROW)?;

    let blocks = expected.len() / BLOCK;
    let (mut random, mut block) = (Random(6), Random(7).bytes(BLOCK));
    let (start, mut done) = (Instant::now(), 0);
    while done < scale.random_writes && start.elapsed() < scale.loop_time_max && !scale.stop.is_set() {
        let at = random.below(blocks) * BLOCK;
        block[..8].copy_from_slice(&(done as u64).to_le_bytes());
        file.write_all_at(&block, at as u64).at(ROW)?;
        expected[at..at + BLOCK].copy_from_slice(&block);
        done += 1;
    }
    file.sync_all().at(ROW)?;
    record.sample(ROW, done as f64 / seconds_since(start));

    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).at(ROW)?;
    let mut bytes = vec![0; expected.len()];
    file.read_exact_at(&mut bytes, 0).at(ROW)?;
    let wrong = bytes.chunks(BLOCK).zip(expected.chunks(BLOCK)).filter(|(found, wanted)| found != wanted).count();
    record.fault(ROW, "blocks with wrong content", wrong as u64);
    Ok(())
}
