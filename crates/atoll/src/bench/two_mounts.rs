//! What one mount knows of a change that another has just made: the truth, at the first look.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::measure::{At, Folder, Scale, seconds_since};
use super::results::Record;
use super::small::BLOCK;
use crate::Result;

fn open_both(folder: &Folder, name: &str) -> Result<[File; 2]> {
    fs::write(folder.path.join(name), [0; BLOCK]).at(name)?;
    let [a, b] = folder.both().map(|mount| OpenOptions::new().read(true).write(true).open(mount.join(name)));
    Ok([a.at(name)?, b.at(name)?])
}

/// A block all of which says `number`.
fn numbered(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

/// One mount writes, the other has the block in its cache and reads it as soon as the write returned.
pub fn visible(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let [writer, reader] = open_both(folder, "visible")?;
    let mut bytes = [0; BLOCK];
    let (mut latencies, mut stale) = (Vec::new(), 0);
    let start = Instant::now();
    for number in 1..=scale.visible_writes as u64 {
        if start.elapsed() >= scale.loop_time_max || scale.stop.is_set() {
            break;
        }
        reader.read_exact_at(&mut bytes, 0).at("visible")?;
        let block = numbered(number);
        writer.write_all_at(&block, 0).at("visible")?;
        let written = Instant::now();
        reader.read_exact_at(&mut bytes, 0).at("visible")?;
        let wrong = bytes[..] != block[..];
        stale += u64::from(wrong);
        // Until the truth is seen, so that what is late is not printed as fast; bounded, as it may never be.
        while bytes[..] != block[..] && written.elapsed() < Duration::from_secs(1) {
            reader.read_exact_at(&mut bytes, 0).at("visible")?;
        }
        latencies.push(written.elapsed());
    }
    record.fault("visible-p99", "stale reads", stale);
    record.latencies(latencies, &[("visible-p50", 0.5), ("visible-p99", 0.99), ("visible-max", 1.0)]);
    Ok(())
}

/// Both mounts read and write one block in turns, each upon the other's last value.
pub fn ping_pong(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let files = open_both(folder, "ping-pong")?;
    let mut bytes = [0; BLOCK];
    let mut stale = 0;
    record.rate("ping-pong", scale, scale.visible_writes, |turn| {
        let file = &files[turn % 2];
        file.read_exact_at(&mut bytes, 0)?;
        stale += u64::from(bytes[..] != numbered(turn as u64)[..]);
        file.write_all_at(&numbered(turn as u64 + 1), 0)
    })?;
    record.fault("ping-pong", "stale reads", stale);
    Ok(())
}

/// Every kind of change by one mount, and at once the question to the other, which has just seen how it was before.
pub fn stale_answers(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let (start, mut asked) = (Instant::now(), 0_u64);
    let mut stale = 0;
    for round in 0..scale.probes {
        if scale.stop.is_set() {
            break;
        }
        let [a, b] = folder.both();
        let (actor, witness) = if round % 2 == 0 { (a, b) } else { (b, a) };
        for (change, truth) in probe(actor, witness, round).at("stale-answers")? {
            asked += 1;
            stale += u64::from(!truth);
            record.fault("stale-answers", format!("after {change}"), u64::from(!truth));
        }
    }
    record.sample("stale-answers", stale as f64);
    record.sample("probes", asked as f64 / seconds_since(start));
    Ok(())
}

/// That a file is missing is a wrong answer about one that is there; any other failure is a failure.
fn truth(answer: io::Result<bool>) -> io::Result<bool> {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        answer => answer,
    }
}

/// Names of changes, and whether the witness told the truth after each.
fn probe(actor: &Path, witness: &Path, round: usize) -> io::Result<Vec<(&'static str, bool)>> {
    let mut answers = Vec::new();
    let path = |mount: &Path, name: &str| mount.join(format!("{name}{round}"));
    let (mine, theirs) = (path(actor, "f"), path(witness, "f"));
    let (other_mine, other_theirs) = (path(actor, "g"), path(witness, "g"));
    let is_missing = |path: &Path| match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    };
    let listed = |name: &Path| -> io::Result<bool> {
        for entry in fs::read_dir(witness)? {
            if Some(entry?.file_name().as_os_str()) == name.file_name() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let reads = |path: &Path, expected: &[u8]| truth(fs::read(path).map(|bytes| bytes == expected));
    let shows = |path: &Path, right: fn(&fs::Metadata) -> bool| truth(fs::metadata(path).map(|found| right(&found)));

    answers.push(("nothing", is_missing(&theirs)? && !listed(&theirs)?));
    fs::write(&mine, b"one")?;
    answers.push(("create", reads(&theirs, b"one")?));
    answers.push(("create, in the listing", listed(&theirs)?));

    fs::write(&mine, b"second")?;
    answers.push(("overwrite", reads(&theirs, b"second")?));

    let held = File::open(&theirs);
    let held_shows = |right: fn(&fs::Metadata) -> bool| match &held {
        Ok(file) => truth(file.metadata().map(|found| right(&found))),
        // The answer before was wrong, and counted.
        Err(_) => Ok(false),
    };
    OpenOptions::new().write(true).open(&mine)?.set_len(3)?;
    answers.push(("truncate", shows(&theirs, |found| found.len() == 3)? && reads(&theirs, b"sec")?));
    answers.push(("truncate, by an open file", held_shows(|found| found.len() == 3)?));

    fs::set_permissions(&mine, Permissions::from_mode(0o600))?;
    answers.push(("chmod to 600", shows(&theirs, |found| found.mode() & 0o777 == 0o600)?));
    fs::set_permissions(&mine, Permissions::from_mode(0o644))?;
    answers.push(("chmod to 644", shows(&theirs, |found| found.mode() & 0o777 == 0o644)?));

    answers.push(("nothing", is_missing(&other_theirs)?));
    fs::rename(&mine, &other_mine)?;
    answers.push(("rename, at the old name", is_missing(&theirs)? && !listed(&theirs)?));
    answers.push(("rename, at the new name", reads(&other_theirs, b"sec")? && listed(&other_theirs)?));

    fs::write(&mine, b"third")?;
    answers.push(("create of a name that was gone", reads(&theirs, b"third")?));
    fs::rename(&mine, &other_mine)?;
    answers.push(("rename over a file", reads(&other_theirs, b"third")?));

    fs::remove_file(&other_mine)?;
    answers.push(("unlink", is_missing(&other_theirs)? && !listed(&other_theirs)?));
    answers.push(("unlink, by an open file", held_shows(|found| found.nlink() == 0)?));
    Ok(answers)
}
