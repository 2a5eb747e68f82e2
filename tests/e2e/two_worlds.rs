//! One prefix, changed at random through two mounts, by boto3 and by another plain S3 client, while the server and the mounts' processes are
//! killed: neither side is told anything old after the other one's call has returned, nothing is lost, and in the end the tree and the bucket
//! are the same, byte by byte.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};

use crate::boto::Boto;
use crate::faulty_s3::{Fault, Proxy};
use crate::harness::*;
use crate::links::{Plain, linked};

/// Changes in one run; `ATOLL_TWO_WORLDS_STEPS` makes it longer.
const STEPS: u64 = 150;
/// No directory has the name of a file in it, and no name is longer or stranger than any server's keys may be.
const DIRECTORIES: [&str; 4] = ["", "d/", "e/", "d/deep/"];
const FILES: [&str; 5] = ["a", "b", "c", "a-b", "long name"];
/// Of an upload in two parts.
const LARGE_BYTES: usize = (5 << 20) + 4_321;

/// Of a race: what was written on a mount, and whether the bucket never had it.
struct Raced {
    bytes: Vec<u8>,
    is_lost: bool,
}

struct Worlds {
    site: Site,
    plain: Plain,
    boto: Boto,
    /// Roots of the mounts; the linked directory is in each.
    mounts: Vec<PathBuf>,
    kills: Kills,
    /// Objects may still lie where renamed files were: who replaces one there replaces their bytes.
    is_moving: Cell<bool>,
    seed: u64,
    random: Random,
    /// What both sides show, by path.
    files: BTreeMap<String, Vec<u8>>,
    raced: Vec<Raced>,
    written: u64,
    history: Vec<String>,
}

impl Worlds {
    fn new(mut site: Site, seed: u64, link: &[&str]) -> Worlds {
        let plain = linked(&mut site, link);
        let boto = Boto::of(&site);
        let mounts = vec![site.mount("m1"), site.mount("m2")];
        Worlds {
            site,
            plain,
            boto,
            mounts,
            kills: Kills::default(),
            is_moving: Cell::new(false),
            seed,
            random: Random(seed),
            files: BTreeMap::new(),
            raced: Vec::new(),
            written: 0,
            history: Vec::new(),
        }
    }

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

    /// The linked directory on one of the mounts.
    fn mount(&mut self) -> PathBuf {
        let at = self.random.below(self.mounts.len() as u64) as usize;
        self.mounts[at].join("data")
    }

    fn linked(&self) -> impl Iterator<Item = PathBuf> {
        self.mounts.iter().map(|mount| mount.join("data"))
    }

    /// Bytes that nothing else has any of.
    fn bytes(&mut self) -> Vec<u8> {
        let length = self.random.below(3) as usize * 3_000 + 10;
        self.bytes_of(length)
    }

    fn bytes_of(&mut self, length: usize) -> Vec<u8> {
        self.written += 1;
        format!("#{}#", self.written).into_bytes().into_iter().cycle().take(length).collect()
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
        self.must_settle();
        self.is_moving.set(false);
    }

    fn must_settle(&self) {
        eventually("nothing waits to be published or deleted", || {
            let status = self.site.atoll(["--json", "link", "status", "vol:/data"]).must_succeed();
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            status["deleting"] == 0 && status["unpublished"] == 0
        });
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0..=2 => self.write(),
            3 => self.overwrite(),
            4..=6 => self.put(),
            7 => self.copy(),
            8 => self.delete(),
            9 => self.delete_directory(),
            10 => self.unlink(),
            11 => self.rename(),
            12 => self.rename_directory(),
            13 => self.list(),
            _ => self.race(),
        }
    }

    fn write(&mut self) {
        let (path, mount, bytes) = (self.path(), self.mount(), self.bytes());
        self.note(format!("write {path} on {}", mount.display()));
        let file = mount.join(&path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &bytes).unwrap();
        self.files.insert(path.clone(), bytes);
        self.look(&path);
    }

    /// Somewhere within a file, or behind its end.
    fn overwrite(&mut self) {
        let (Some(path), mount, new) = (self.existing(), self.mount(), self.bytes()) else { return };
        let length = self.files[&path].len();
        let at = self.random.below(length as u64 + 1) as usize;
        self.note(format!("write {path} at {at} on {}", mount.display()));
        let file = fs::File::options().write(true).open(mount.join(&path)).unwrap();
        file.write_all_at(&new, at as u64).unwrap();
        drop(file);
        let bytes = self.files.get_mut(&path).unwrap();
        bytes.resize(length.max(at + new.len()), 0);
        bytes[at..at + new.len()].copy_from_slice(&new);
        self.look(&path);
    }

    fn put(&mut self) {
        // What is not published yet would be a conflict: that is another step's.
        self.publish();
        let (path, mut bytes) = (self.path(), self.bytes());
        let key = Self::key(&path);
        match self.random.below(8) {
            0..=2 => {
                self.note(format!("put {path}"));
                self.plain.put(&key, &bytes);
            }
            3..=5 => {
                self.note(format!("put {path} by boto3"));
                self.boto.put(&key, &bytes);
            }
            how => {
                if how == 7 {
                    bytes = self.bytes_of(LARGE_BYTES);
                }
                self.note(format!("put {path} by boto3, in parts of {} bytes", bytes.len()));
                self.boto.put_parts(&key, &bytes);
            }
        }
        self.files.insert(path.clone(), bytes);
        self.look(&path);
    }

    fn copy(&mut self) {
        let (Some(from), to) = (self.existing(), self.path()) else { return };
        // S3 copies nothing onto itself.
        if from == to {
            return;
        }
        self.publish();
        self.note(format!("copy {from} to {to} by boto3"));
        self.boto.copy(&Self::key(&from), &Self::key(&to));
        self.files.insert(to.clone(), self.files[&from].clone());
        self.look(&to);
    }

    fn delete(&mut self) {
        let Some(path) = self.existing() else { return };
        self.publish();
        if self.random.below(2) == 0 {
            self.note(format!("delete {path}"));
            self.plain.delete(&Self::key(&path));
        } else {
            self.note(format!("delete {path} by boto3"));
            self.boto.delete(&[Self::key(&path)]);
        }
        self.files.remove(&path);
        self.look(&path);
    }

    /// All that is below a directory, with one request.
    fn delete_directory(&mut self) {
        self.publish();
        let keys = self.boto.keys("data/d/", 2);
        if keys.is_empty() {
            return;
        }
        self.note(format!("delete {keys:?} by boto3"));
        self.boto.delete(&keys);
        for key in keys {
            let path = key.strip_prefix("data/").unwrap();
            assert!(self.files.remove(path).is_some(), "{key} was listed, and is not there");
            self.look(path);
        }
        self.compare();
    }

    fn unlink(&mut self) {
        let (Some(path), mount) = (self.existing(), self.mount()) else { return };
        self.note(format!("unlink {path} on {}", mount.display()));
        fs::remove_file(mount.join(&path)).unwrap();
        self.files.remove(&path);
        self.look(&path);
    }

    fn rename(&mut self) {
        let (Some(from), to, mount) = (self.existing(), self.path(), self.mount()) else { return };
        self.note(format!("rename {from} to {to} on {}", mount.display()));
        self.is_moving.set(true);
        fs::create_dir_all(mount.join(&to).parent().unwrap()).unwrap();
        fs::rename(mount.join(&from), mount.join(&to)).unwrap();
        if let Some(bytes) = self.files.remove(&from) {
            self.files.insert(to.clone(), bytes);
        }
        self.look(&from);
        self.look(&to);
    }

    fn rename_directory(&mut self) {
        let mount = self.mount();
        let (from, to) = if self.random.below(2) == 0 { ("d", "e") } else { ("e", "d") };
        if !mount.join(from).is_dir() || self.files.keys().any(|path| path.starts_with(&format!("{to}/"))) {
            return;
        }
        if mount.join(to).exists() {
            fs::remove_dir_all(mount.join(to)).unwrap();
        }
        self.note(format!("rename {from} to {to} on {}", mount.display()));
        self.is_moving.set(true);
        fs::rename(mount.join(from), mount.join(to)).unwrap();
        let moved: Vec<String> =
            self.files.keys().filter(|path| path.starts_with(&format!("{from}/"))).cloned().collect();
        for path in moved {
            let bytes = self.files.remove(&path).unwrap();
            self.files.insert(path.replacen(from, to, 1), bytes);
        }
        self.compare();
    }

    /// What was published, the bucket lists and has.
    fn list(&mut self) {
        self.publish();
        self.note("list by boto3".into());
        let mut keys = self.boto.keys("data/", 3);
        keys.retain(|key| !key.starts_with("data/.atoll/"));
        keys.sort();
        let expected: Vec<String> = self.files.keys().map(|path| Self::key(path)).collect();
        assert_eq!(keys, expected);
        if let Some(path) = self.existing() {
            let found = self.boto.get(&Self::key(&path));
            assert!(
                found.as_ref() == self.files.get(&path),
                "{path} in the bucket: {:?}",
                found.map(|b| beginning(&b))
            );
        }
    }

    /// Both sides change one file: the bucket's keeps the name, and the other one is kept, unless it was there before.
    fn race(&mut self) {
        if self.is_moving.get() {
            self.publish();
        }
        let (path, mount) = (self.path(), self.mount());
        let (ours, theirs) = (self.bytes(), self.bytes());
        self.note(format!("race for {path} on {}", mount.display()));
        let file = mount.join(&path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &ours).unwrap();
        // Half of the time the server stands still just then, and publishes nothing first.
        let frozen = (self.random.below(2) == 0).then(|| self.site.freeze_server());
        let replaced = self.boto.swap(&Self::key(&path), &theirs);
        drop(frozen);
        self.files.insert(path, theirs);
        let is_lost = replaced.as_ref() != Some(&ours);
        self.note(format!("which it {} first", if is_lost { "did not reach" } else { "reached" }));
        self.raced.push(Raced { bytes: ours, is_lost });
        // It fails for a conflict.
        self.site.atoll(["publish", "vol:/data"]);
        self.must_settle();
        self.compare();
    }

    fn kill_server(&mut self) {
        self.note("kill the server".into());
        self.kills.server(&mut self.site, &self.mounts);
    }

    fn kill_mount(&mut self) {
        let at = self.random.below(self.mounts.len() as u64) as usize;
        self.note(format!("kill who serves {}", self.mounts[at].display()));
        self.kills.mount(&self.site, &self.mounts, at);
    }

    /// Every mount shows what a path is.
    fn look(&self, path: &str) {
        for mount in self.linked() {
            must_be(&mount, path, self.files.get(path), fs::read(mount.join(path)));
        }
    }

    /// Every mount lists and shows what is there, and nothing else.
    fn compare(&self) {
        for mount in self.linked() {
            let mut found = BTreeMap::new();
            collect(&mount, Path::new(""), &mut found);
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
        for bytes in &kept {
            assert!(
                self.raced.iter().any(|raced| raced.bytes == *bytes),
                "kept, and nobody lost it: {}",
                beginning(bytes)
            );
        }
        for raced in self.raced.iter().filter(|raced| raced.is_lost) {
            assert!(kept.contains(&raced.bytes), "lost in a conflict: {}", beginning(&raced.bytes));
        }
    }
}

/// SIGKILL for the server and for those who serve mounts, one at a time: nothing is promised of both at once.
#[derive(Default)]
pub struct Kills {
    /// Who served a mount, the last one that was killed.
    killed: HashMap<PathBuf, Pid>,
}

impl Kills {
    /// Another server is ready afterwards.
    pub fn server(&self, site: &mut Site, mounts: &[PathBuf]) {
        self.wait_for(site, mounts);
        site.kill();
        site.start();
    }

    /// Whoever uses it next waits for another process.
    pub fn mount(&mut self, site: &Site, mounts: &[PathBuf], at: usize) {
        self.wait_for(site, mounts);
        let process = site.process_of(&mounts[at]);
        kill_process(process, Signal::KILL).unwrap();
        self.killed.insert(mounts[at].clone(), process);
    }

    /// Every mount is served, by another one than was killed.
    fn wait_for(&self, site: &Site, mounts: &[PathBuf]) {
        for mount in mounts {
            eventually("the mount is served", || {
                let now = site.find_process_of(mount);
                now.is_some() && now.as_ref() != self.killed.get(mount)
            });
            fs::metadata(mount.join("data")).unwrap();
        }
    }
}

/// What was read of a path. `None`: there is nothing.
#[track_caller]
pub fn must_be(mount: &Path, path: &str, expected: Option<&Vec<u8>>, found: std::io::Result<Vec<u8>>) {
    match (expected, found) {
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

fn beginning(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(12)]).into_owned()
}

fn short(files: &BTreeMap<String, Vec<u8>>) -> Vec<(&str, String)> {
    files.iter().map(|(path, bytes)| (path.as_str(), beginning(bytes))).collect()
}

pub fn collect(root: &Path, below: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
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

fn run(site: Site, kills: bool) {
    run_on(Worlds::new(site, fresh_seed(), &[]), kills, STEPS);
}

fn run_on(mut worlds: Worlds, kills: bool, steps: u64) {
    let seed = worlds.seed;
    let steps = from_environment("ATOLL_TWO_WORLDS_STEPS").unwrap_or(steps);
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for step in 0..steps {
            match step % 14 {
                6 if kills => worlds.kill_mount(),
                13 if kills => worlds.kill_server(),
                _ => {}
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
        "seed {seed}: {steps} steps, {} races, {} of them conflicts; {}",
        worlds.raced.len(),
        worlds.raced.iter().filter(|raced| raced.is_lost).count(),
        fsck.lines().last().unwrap_or_default()
    );
}

pub fn fresh_seed() -> u64 {
    let seed = from_environment("ATOLL_TWO_WORLDS_SEED");
    seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into())
}

#[test]
fn a_tree_and_its_bucket_are_one() {
    run(Site::with_s3(), false);
}

#[test]
fn a_tree_and_its_bucket_are_one_while_servers_and_mounts_are_killed() {
    run(Site::with_s3(), true);
}

/// Another server, which lists directory by directory and keeps no empty one.
#[test]
fn a_tree_and_its_bucket_are_one_in_seaweedfs() {
    run(Site::with_seaweedfs(), true);
}

/// The server reaches the bucket by a way that delays, refuses and loses; the other clients do not.
#[test]
fn a_tree_and_its_bucket_are_one_when_the_way_to_it_is_bad() {
    let site = Site::with_s3();
    let way = Proxy::start(site.s3_port());
    let endpoint = format!("http://127.0.0.1:{}", way.port);
    let worlds = Worlds::new(site, fresh_seed(), &["--endpoint", &endpoint]);
    // What the bucket can do is not found out so.
    way.set(Fault::Moody);
    // Each of its steps takes seconds.
    run_on(worlds, true, STEPS / 6);
}
