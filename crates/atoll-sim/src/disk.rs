//! The server's disk when the server dies: what it wrote after that may be there, or not, or in parts.
//!
//! A process that is dead runs on until the end of the tick, with nobody to hear of it. So every state of its files
//! between that of its death and that of its burial is one that a crash of the machine in the middle of a write or
//! before a sync could have left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::history::Random;

/// What reaches a disk whole.
const SECTOR: usize = 512;

/// Every file below a folder, with its bytes.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

pub fn read(folder: &Path) -> Files {
    let mut files = Files::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => drop(files.insert(path.clone(), fs::read(&path).expect("a file"))),
                _ => {}
            }
        }
    }
    files
}

/// Leave of every file a state between that of `before` and what it is now. Answers how many were torn.
pub fn tear(folder: &Path, before: &Files, random: &mut Random) -> usize {
    let mut torn = 0;
    for (path, new) in read(folder) {
        let empty = Vec::new();
        let old = before.get(&path).unwrap_or(&empty);
        if *old == new {
            continue;
        }
        torn += 1;
        if random.below(3) == 0 {
            continue;
        }
        if !before.contains_key(&path) && random.below(3) == 0 {
            fs::remove_file(&path).expect("a file");
            continue;
        }
        fs::write(&path, mixed(old, &new, random)).expect("a file");
    }
    torn
}

/// The new bytes up to some sector, then the old ones: there may have been more than one write with a sync in between.
fn mixed(old: &[u8], new: &[u8], random: &mut Random) -> Vec<u8> {
    let length = if random.below(2) == 0 { old.len() } else { new.len() };
    let mut mixed = vec![0; length];
    let mut takes_new = true;
    for (number, sector) in mixed.chunks_mut(SECTOR).enumerate() {
        takes_new = takes_new && random.below(4) > 0;
        let from = if takes_new { new } else { old };
        let start = number * SECTOR;
        let there = from.get(start..from.len().min(start + sector.len())).unwrap_or_default();
        sector[..there.len()].copy_from_slice(there);
    }
    mixed
}
