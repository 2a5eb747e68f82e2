//! Small files and directories, one thread, in a directory of one's own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::measure::{At, Folder, Random, Scale};
use super::results::Record;
use crate::Result;

pub const BLOCK: usize = 4096;

fn names(folder: &std::path::Path, kind: &str, count: usize) -> Vec<PathBuf> {
    (0..count).map(|i| folder.join(format!("{kind}{i:06}"))).collect()
}

pub fn files(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let names = names(&folder.path, "f", scale.files);
    let renamed = self::names(&folder.path, "g", scale.files);
    let data = Random(1).bytes(BLOCK);
    let made = record.rate("create", scale, names.len(), |i| File::create_new(&names[i])?.write_all(&data))?;
    let names = &names[..made];

    let mut bytes = vec![0; 2 * BLOCK];
    let mut wrong = 0;
    let mut read = |i: usize| {
        let length = read_up_to(&mut File::open(&names[i % made])?, &mut bytes)?;
        wrong += u64::from(bytes[..length] != data);
        io::Result::Ok(())
    };
    // Once, so that what may be kept is kept.
    (0..made).try_for_each(&mut read).at("open-read")?;
    record.rate("open-read", scale, scale.cached_steps, read)?;
    record.fault("open-read", "wrong content", wrong);

    let mut wrong = 0;
    let mut stat = |i: usize| {
        wrong += u64::from(fs::symlink_metadata(&names[i % made])?.len() != BLOCK as u64);
        io::Result::Ok(())
    };
    (0..made).try_for_each(&mut stat).at("stat")?;
    record.rate("stat", scale, scale.cached_steps, stat)?;
    record.fault("stat", "wrong size", wrong);

    let moved = record.rate("rename", scale, made, |i| fs::rename(&names[i], &renamed[i]))?;
    let left: Vec<&PathBuf> = renamed[..moved].iter().chain(&names[moved..]).collect();
    let removed = record.rate("unlink", scale, left.len(), |i| fs::remove_file(left[i]))?;
    if removed == made {
        record.fault("unlink", "names left in the directory", fs::read_dir(&folder.path).at("unlink")?.count() as u64);
    }
    Ok(())
}

/// As many bytes as there are, up to the buffer's length.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

pub fn directories(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let names = names(&folder.path, "d", scale.files);
    let made = record.rate("mkdir", scale, names.len(), |i| fs::create_dir(&names[i]))?;
    record.rate("rmdir", scale, made, |i| fs::remove_dir(&names[i]))?;
    Ok(())
}

/// Names the mount was never asked about. A second mount makes them; without one there are none, and the answer to
/// each is that there is no such file, which costs the same round trip.
pub fn uncached(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let exist = folder.second.is_some();
    if exist {
        for name in names(folder.by_other(), "n", scale.files) {
            File::create_new(name).at("stat-uncached")?;
        }
    }
    let names = names(&folder.path, "n", scale.files);
    let mut wrong = 0;
    record.rate("stat-uncached", scale, names.len(), |i| {
        match fs::symlink_metadata(&names[i]) {
            Ok(_) => wrong += u64::from(!exist),
            Err(error) if error.kind() == io::ErrorKind::NotFound => wrong += u64::from(exist),
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    record.fault("stat-uncached", "wrong answer about a name", wrong);
    Ok(())
}

/// Reads of a file that the kernel has in its cache already.
pub fn cached_reads(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    const BLOCKS: usize = 256;
    let path = folder.path.join("cached");
    let data = Random(2).bytes(BLOCKS * BLOCK);
    fs::write(&path, &data).at("pread-cached")?;
    let file = File::open(&path).at("pread-cached")?;
    let (mut random, mut bytes, mut wrong) = (Random(3), [0; BLOCK], 0);
    let mut read = |block: usize| {
        file.read_exact_at(&mut bytes, (block * BLOCK) as u64)?;
        wrong += u64::from(bytes != data[block * BLOCK..][..BLOCK]);
        io::Result::Ok(())
    };
    (0..BLOCKS).try_for_each(&mut read).at("pread-cached")?;
    record.rate("pread-cached", scale, scale.cached_steps, |_| read(random.below(BLOCKS)))?;
    record.fault("pread-cached", "wrong content", wrong);
    Ok(())
}
