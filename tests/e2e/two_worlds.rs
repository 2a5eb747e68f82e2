//! One prefix, changed at random through two mounts and by a plain S3 client, while the server is killed: neither side is told anything old
//! after the other one's call has returned, nothing is lost, and in the end the tree and the bucket are the same, byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::*;
use crate::links::{Plain, linked_site};

/// Changes in one run; `ATOLL_TWO_WORLDS_STEPS` makes it longer.
const STEPS: u64 = 150;
const DIRECTORIES: [&str; 4] = ["", "d/", "e/", "d/deep/"];
const FILES: [&str; 5] = ["a", "b", "c", "a-b", "long name"];

struct Worlds {
    site: Site,
    plain: Plain,
    mounts: Vec<PathBuf>,
    random: Random,
    /// What both sides show, by path.
    files: BTreeMap<String, Vec<u8>>,
    /// What lost its name in a conflict.
    kept: Vec<Vec<u8>>,
    written: u64,
    history: Vec<String>,
}

impl Worlds {
    fn path(&mut self) -> String {
        let directory = DIRECTORIES[self.random.below(DIRECTORIES.len() as u64) as usize];
        format!("{directory}{}", FILES[self.random.below(FILES.len() as u64) as usize])
    }

    /// One of those that are there.
    fn existing(&mut self) -> Option<String> {
        let count = self.files.len() as u64;
        if count == 0 {
            return None;
        }
        let at = self.random.below(count) as usize;
        self.files.keys().nth(at).cloned()
    }

    fn mount(&mut self) -> PathBuf {
        let at = self.random.below(self.mounts.len() as u64) as usize;
        self.mounts[at].clone()
    }

    /// Bytes that nothing else has.
    fn bytes(&mut self) -> Vec<u8> {
        self.written += 1;
        let length = self.random.below(3) * 3_000;
        [format!("#{}#", self.written).into_bytes(), vec![b'x'; length as usize]].concat()
    }

    fn note(&mut self, what: String) {
        self.history.push(what);
    }

    fn key(path: &str) -> String {
        format!("data/{path}")
    }

    /// Until the bucket has what the mounts show.
    fn publish(&self) {
        self.site.atoll(["publish", "vol:/data"]).must_succeed();
        eventually("nothing waits to be deleted", || {
            let status = self.site.atoll(["--json", "link", "status", "vol:/data"]).must_succeed();
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            status["deleting"] == 0 && status["unpublished"] == 0
        });
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..=3 => {
                let (path, mount, bytes) = (self.path(), self.mount(), self.bytes());
                self.note(format!("write {path} on {}", mount.display()));
                let file = mount.join(&path);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, &bytes).unwrap();
                self.files.insert(path.clone(), bytes);
                self.look(&path);
            }
            4..=6 => {
                // What is not published yet would be a conflict: that is another step's.
                self.publish();
                let (path, bytes) = (self.path(), self.bytes());
                self.note(format!("put {path}"));
                self.plain.put(&Self::key(&path), &bytes);
                self.files.insert(path.clone(), bytes);
                self.look(&path);
            }
            7 => {
                let Some(path) = self.existing() else { return };
                self.publish();
                self.note(format!("delete {path}"));
                self.plain.delete(&Self::key(&path));
                self.files.remove(&path);
                self.look(&path);
            }
            8 => {
                let (Some(path), mount) = (self.existing(), self.mount()) else { return };
                self.note(format!("unlink {path} on {}", mount.display()));
                fs::remove_file(mount.join(&path)).unwrap();
                self.files.remove(&path);
                self.look(&path);
            }
            9 => {
                let (Some(from), to, mount) = (self.existing(), self.path(), self.mount()) else { return };
                self.note(format!("rename {from} to {to} on {}", mount.display()));
                fs::create_dir_all(mount.join(&to).parent().unwrap()).unwrap();
                fs::rename(mount.join(&from), mount.join(&to)).unwrap();
                if let Some(bytes) = self.files.remove(&from) {
                    self.files.insert(to.clone(), bytes);
                }
                self.look(&from);
                self.look(&to);
            }
            10 => {
                let mount = self.mount();
                let (from, to) = if self.random.below(2) == 0 { ("d", "e") } else { ("e", "d") };
                if !mount.join(from).is_dir() || self.files.keys().any(|path| path.starts_with(&format!("{to}/"))) {
                    return;
                }
                if mount.join(to).exists() {
                    fs::remove_dir_all(mount.join(to)).unwrap();
                }
                self.note(format!("rename {from} to {to} on {}", mount.display()));
                fs::rename(mount.join(from), mount.join(to)).unwrap();
                let moved: Vec<String> =
                    self.files.keys().filter(|path| path.starts_with(&format!("{from}/"))).cloned().collect();
                for path in moved {
                    let bytes = self.files.remove(&path).unwrap();
                    self.files.insert(path.replacen(from, to, 1), bytes);
                }
                self.compare();
            }
            _ => self.race(),
        }
    }

    /// Both sides change one file: the bucket's keeps the name, and the other one is kept, unless it was there before.
    fn race(&mut self) {
        let (path, mount) = (self.path(), self.mount());
        let (ours, theirs) = (self.bytes(), self.bytes());
        self.note(format!("race for {path} on {}", mount.display()));
        let file = mount.join(&path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &ours).unwrap();
        self.plain.put(&Self::key(&path), &theirs);
        self.files.insert(path, theirs);
        eventually("the race is over", || {
            self.site.atoll(["publish", "vol:/data"]);
            let status = self.site.atoll(["--json", "link", "status", "vol:/data"]).must_succeed();
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            status["deleting"] == 0 && status["unpublished"] == 0
        });
        self.kept.push(ours);
        self.compare();
    }

    /// Every mount shows what a path is.
    fn look(&self, path: &str) {
        for mount in &self.mounts {
            let found = fs::read(mount.join(path));
            match (self.files.get(path), found) {
                (Some(bytes), Ok(found)) if found == *bytes => {}
                (None, Err(error)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                (expected, found) => panic!(
                    "{path} on {}: {:?} instead of {:?}",
                    mount.display(),
                    found.map(|bytes| beginning(&bytes)),
                    expected.map(|bytes| beginning(bytes))
                ),
            }
        }
    }

    /// Every mount lists and shows what is there, and nothing else.
    fn compare(&self) {
        for mount in &self.mounts {
            let mut found = BTreeMap::new();
            collect(mount, Path::new(""), &mut found);
            assert!(
                found == self.files,
                "{}: {:?} instead of {:?}",
                mount.display(),
                short(&found),
                short(&self.files)
            );
        }
    }

    /// The bucket has what the mounts show, and what was kept of conflicts.
    fn compare_bucket(&self) {
        let mut found = BTreeMap::new();
        let mut kept = Vec::new();
        for key in self.plain.keys("data") {
            let bytes = self.plain.get(&key).unwrap();
            match key.strip_prefix("data/.atoll/conflicts/") {
                Some(_) => kept.push(bytes),
                None => drop(found.insert(key.strip_prefix("data/").unwrap().to_owned(), bytes)),
            }
        }
        assert!(found == self.files, "bucket: {:?} instead of {:?}", short(&found), short(&self.files));
        for bytes in kept {
            assert!(self.kept.contains(&bytes), "kept, and nobody lost it: {}", beginning(&bytes));
        }
    }
}

fn beginning(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(12)]).into_owned()
}

fn short(files: &BTreeMap<String, Vec<u8>>) -> Vec<(&str, String)> {
    files.iter().map(|(path, bytes)| (path.as_str(), beginning(bytes))).collect()
}

fn collect(root: &Path, below: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if path == Path::new(".atoll") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            collect(root, &path, found);
        } else {
            found.insert(path.to_str().unwrap().to_owned(), fs::read(root.join(&path)).unwrap());
        }
    }
}

fn run_with(seed: u64, kills: bool) {
    let (mut site, plain) = linked_site();
    let mounts = vec![site.mount("m1").join("data"), site.mount("m2").join("data")];
    let random = Random(seed);
    let (files, kept) = (BTreeMap::new(), Vec::new());
    let mut worlds = Worlds { site, plain, mounts, random, files, kept, written: 0, history: Vec::new() };
    let steps = from_environment("ATOLL_TWO_WORLDS_STEPS").unwrap_or(STEPS);
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for step in 0..steps {
            if kills && step % 17 == 16 {
                worlds.note("kill".into());
                worlds.site.kill();
                worlds.site.start();
            }
            worlds.step();
        }
        worlds.compare();
        worlds.publish();
        worlds.compare();
        worlds.compare_bucket();
    }));
    if let Err(panic) = told {
        let from = worlds.history.len().saturating_sub(25);
        eprintln!("seed {seed}, after:\n{}", worlds.history[from..].join("\n"));
        eprintln!("{}", worlds.site.server_log());
        std::panic::resume_unwind(panic);
    }
    let fsck = worlds.site.atoll(["fsck", "vol"]).must_succeed();
    println!(
        "seed {seed}: {steps} steps, {} conflicts kept; {}",
        worlds.kept.len(),
        fsck.lines().last().unwrap_or_default()
    );
}

fn fresh_seed() -> u64 {
    let seed = from_environment("ATOLL_TWO_WORLDS_SEED");
    seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into())
}

#[test]
fn a_tree_and_its_bucket_are_one() {
    run_with(fresh_seed(), false);
}

#[test]
fn a_tree_and_its_bucket_are_one_while_the_server_is_killed() {
    run_with(fresh_seed(), true);
}
