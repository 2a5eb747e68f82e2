//! Two mounts that want the same thing at the same time: nothing is lost, and one wins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::time::Instant;

use super::measure::{At, Folder, Random, Scale, parallel, seconds_since};
use super::results::Record;
use super::small::BLOCK;
use crate::Result;

/// Half of them on each mount.
const THREADS: usize = 4;

/// Both mounts append lines to one file.
pub fn append(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    const LINE: usize = 64;
    let line = |who: usize, i: usize| format!("{who} {i:08} {:>width$}\n", "", width = LINE - 12);
    fs::write(folder.path.join("log"), b"").at("append")?;
    let start = Instant::now();
    let counts = parallel(2, |who| {
        let mut log = OpenOptions::new().append(true).open(folder.both()[who].join("log")).at("append")?;
        let mut written = 0;
        while written < scale.appends && start.elapsed() < scale.loop_time_max && !scale.stop.is_set() {
            log.write_all(line(who, written).as_bytes()).at("append")?;
            written += 1;
        }
        Ok(written)
    })?;
    record.sample("append", counts.iter().sum::<usize>() as f64 / seconds_since(start));
    for mount in folder.both() {
        let log = fs::read_to_string(mount.join("log")).at("append")?;
        // Each writer's lines are all there, whole and in its order.
        let mut next = [0; 2];
        let mut torn = 0;
        for found in log.split_inclusive('\n') {
            match (0..2).find(|&who| found == line(who, next[who])) {
                Some(who) => next[who] += 1,
                None => torn += 1,
            }
        }
        let lost: usize = counts.iter().zip(next).map(|(written, found)| written.saturating_sub(found)).sum();
        record.fault("append", "lines lost", lost as u64);
        record.fault("append", "lines torn, repeated or out of order", torn);
    }
    Ok(())
}

/// Four threads create the same name with O_EXCL: one may.
pub fn exclusive(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let barrier = Barrier::new(THREADS);
    let start = Instant::now();
    let won = parallel(THREADS, |who| {
        let mount = folder.both()[who % 2];
        let mut won = vec![false; scale.races];
        let mut failed = None;
        // No thread leaves early: the others would wait for it.
        for (race, won) in won.iter_mut().enumerate() {
            barrier.wait();
            match File::create_new(mount.join(format!("race{race}"))) {
                Ok(_) => *won = true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(won), Err).at("exclusive-create")
    })?;
    record.sample("exclusive-create", scale.races as f64 / seconds_since(start));
    for race in 0..scale.races {
        let winners = won.iter().filter(|won| won[race]).count();
        record.fault("exclusive-create", "races with several winners", u64::from(winners > 1));
        record.fault("exclusive-create", "races without a winner", u64::from(winners == 0));
    }
    Ok(())
}

/// Four threads read and write random blocks of files that all share.
pub fn mixed(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    const FILES: usize = 4;
    const BLOCKS: usize = 256;
    // Every word names its block, so that bytes of another place are found out.
    let words = |file: usize, block: usize, writer: u64| {
        let word = ((file * BLOCKS + block) as u64) << 32 | writer;
        word.to_le_bytes().repeat(BLOCK / 8)
    };
    for file in 0..FILES {
        let content: Vec<u8> = (0..BLOCKS).flat_map(|block| words(file, block, 0)).collect();
        fs::write(folder.path.join(format!("shared{file}")), content).at("mixed-io")?;
    }
    let start = Instant::now();
    let done = parallel(THREADS, |who| {
        let mount = folder.both()[who % 2];
        let open = |file| OpenOptions::new().read(true).write(true).open(mount.join(format!("shared{file}")));
        let files = (0..FILES).map(open).collect::<io::Result<Vec<File>>>().at("mixed-io")?;
        let mut random = Random(20 + who as u64);
        let mut bytes = [0; BLOCK];
        let (mut operations, mut wrong) = (0_u64, 0_u64);
        while start.elapsed() < scale.loop_time_max && !scale.stop.is_set() {
            let (file, block) = (random.below(FILES), random.below(BLOCKS));
            let offset = (block * BLOCK) as u64;
            if random.below(2) == 0 {
                files[file].write_all_at(&words(file, block, operations & 0xffff_ffff), offset).at("mixed-io")?;
            } else {
                files[file].read_exact_at(&mut bytes, offset).at("mixed-io")?;
                let (place, whole) = ((file * BLOCKS + block) as u32, &bytes);
                wrong += u64::from(whole.chunks(8).any(|word| word[4..] != place.to_le_bytes()));
            }
            operations += 1;
        }
        Ok((operations, wrong))
    })?;
    record.sample("mixed-io", done.iter().map(|(operations, _)| operations).sum::<u64>() as f64 / seconds_since(start));
    record.fault("mixed-io", "blocks with bytes of another place", done.iter().map(|(_, wrong)| wrong).sum());
    Ok(())
}
