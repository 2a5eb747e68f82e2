//! One large directory. It is made once and listed in every run.

use std::fs;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode};

use super::measure::{At, Folder, Scale, parallel, seconds_since};
use super::results::Record;
use crate::Result;

/// Threads that fill or empty a directory, as each waits for its answers.
const THREADS: usize = 16;
/// Directories with fewer entries are emptied by one thread.
const PARALLEL_MIN: usize = 512;

/// Fill `directory` with empty files.
fn fill(directory: &Path, scale: &Scale) -> Result<()> {
    parallel(THREADS, |thread| {
        for i in (thread..scale.directory_entries).step_by(THREADS) {
            if scale.stop.is_set() {
                return Err("interrupted".into());
            }
            // One request, where creating and closing are three.
            let path = directory.join(format!("entry-{i:07}"));
            rustix::fs::mknodat(CWD, &path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0).at("directory")?;
        }
        Ok(())
    })?;
    Ok(())
}

pub fn listing(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let directory = folder.path.join("entries");
    if !directory.exists() {
        let making = folder.by_other().join("making");
        let _ = remove_all(&making);
        fs::create_dir(&making).at("directory")?;
        fill(&making, scale)?;
        fs::rename(&making, folder.by_other().join("entries")).at("directory")?;
    }
    let row = "directory-first";
    let start = Instant::now();
    let first = fs::read_dir(&directory).at(row)?.next().transpose().at(row)?;
    record.sample(row, seconds_since(start) * 1e3);
    record.fault(row, "no first entry", u64::from(first.is_none()));

    for (row, attributes) in [("directory-attributes", true), ("directory-names", false)] {
        let (start, mut entries) = (Instant::now(), 0_usize);
        for entry in fs::read_dir(&directory).at(row)? {
            let entry = entry.at(row)?;
            if attributes {
                entry.metadata().at(row)?;
            }
            entries += 1;
            if scale.stop.is_set() {
                return Err("interrupted".into());
            }
        }
        record.sample(row, entries as f64 / seconds_since(start));
        let missing = entries.abs_diff(scale.directory_entries) as u64;
        record.fault(row, "entries listed are not those made", missing);
    }
    Ok(())
}

/// `rm -rf` by several threads: for cleaning up, not for measuring.
pub fn remove_all(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.and_then(Iterator::collect::<std::io::Result<Vec<_>>>).at(path.display())?,
    };
    let threads = if entries.len() < PARALLEL_MIN { 1 } else { THREADS };
    parallel(threads, |thread| {
        for entry in entries.iter().skip(thread).step_by(threads) {
            let path = entry.path();
            if entry.file_type().at(path.display())?.is_dir() {
                remove_all(&path)?;
            } else {
                fs::remove_file(&path).at(path.display())?;
            }
        }
        Ok(())
    })?;
    fs::remove_dir(path).at(path.display())
}
