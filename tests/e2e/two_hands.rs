//! One prefix, changed through mounts and by S3 clients at the same time, each at paths of its own, while servers and mounts are killed: what
//! one side has changed, the other one shows as soon as it was told that it is so.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::boto::Boto;
use crate::harness::*;
use crate::links::{Plain, linked};
use crate::two_worlds::{Kills, collect, fresh_seed, must_be};

/// Changes by each hand; `ATOLL_TWO_HANDS_ROUNDS` makes it longer.
const ROUNDS: u64 = 100;
/// Changes between two kills.
const KILL_EVERY: u64 = 12;
const DIRECTORIES: [&str; 3] = ["", "d/", "d/deep/"];

/// Who changes files that begin with `name`, and knows what they are.
struct Hand<'a> {
    name: &'static str,
    random: Random,
    /// Linked directories.
    mounts: &'a [PathBuf],
    boto: Boto,
    files: BTreeMap<String, Vec<u8>>,
    written: u64,
}

impl Hand<'_> {
    fn path(&mut self) -> String {
        let directory = DIRECTORIES[self.random.below(DIRECTORIES.len() as u64) as usize];
        format!("{directory}{}-{}", self.name, self.random.below(4))
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.written += 1;
        format!("{} {} ", self.name, self.written).repeat(1 + self.random.below(3) as usize * 400).into_bytes()
    }

    /// Another one that is there.
    fn other_than(&mut self, path: &str) -> Option<String> {
        let others: Vec<&String> = self.files.keys().filter(|other| *other != path).collect();
        let at = self.random.below(others.len().max(1) as u64) as usize;
        others.get(at).map(|other| (*other).clone())
    }

    fn look(&self, path: &str) {
        for mount in self.mounts {
            must_be(mount, path, self.files.get(path), fs::read(mount.join(path)));
        }
    }

    /// A change through a mount. The other one shows it when the call has returned, the bucket when it is published.
    fn change_a_mount(&mut self, site: &RwLock<Site>) {
        let (path, bytes) = (self.path(), self.bytes());
        let mount = &self.mounts[self.random.below(self.mounts.len() as u64) as usize];
        match (self.random.below(5), self.other_than(&path)) {
            (0, Some(from)) => {
                fs::rename(mount.join(&from), mount.join(&path)).unwrap();
                let bytes = self.files.remove(&from).unwrap();
                self.files.insert(path.clone(), bytes);
                self.look(&from);
            }
            (1, Some(path)) => {
                fs::remove_file(mount.join(&path)).unwrap();
                self.files.remove(&path);
                return self.look(&path);
            }
            _ => {
                fs::write(mount.join(&path), &bytes).unwrap();
                self.files.insert(path.clone(), bytes);
            }
        }
        self.look(&path);
        // A server that is killed meanwhile fails it.
        let mut publish = site.read().unwrap().command(["publish".as_ref(), mount.join(&path).as_os_str()]);
        eventually("the file is published", || publish.output().unwrap().status.success());
        let found = self.boto.get(&format!("data/{path}"));
        assert!(found.as_ref() == self.files.get(&path), "{path} in the bucket, published");
    }

    /// A change of the bucket. Each mount shows it when the call has returned.
    fn change_the_bucket(&mut self, plain: &Plain) {
        let (path, bytes) = (self.path(), self.bytes());
        let key = format!("data/{path}");
        match (self.random.below(6), self.other_than(&path)) {
            (0, Some(from)) => {
                self.boto.copy(&format!("data/{from}"), &key);
                let bytes = self.files[&from].clone();
                self.files.insert(path.clone(), bytes);
                return self.look(&path);
            }
            (1, Some(path)) => {
                self.boto.delete(&[format!("data/{path}")]);
                self.files.remove(&path);
                return self.look(&path);
            }
            (2, _) => self.boto.put_parts(&key, &bytes),
            (3, _) => plain.put(&key, &bytes),
            _ => self.boto.put(&key, &bytes),
        }
        self.files.insert(path.clone(), bytes);
        self.look(&path);
    }
}

#[test]
fn what_one_side_changes_the_other_one_shows_at_once_while_both_work() {
    let (seed, rounds) = (fresh_seed(), from_environment("ATOLL_TWO_HANDS_ROUNDS").unwrap_or(ROUNDS));
    println!("seed {seed}");
    let mut site = Site::with_s3();
    let plain = linked(&mut site, &[]);
    let mounts = [site.mount("m1"), site.mount("m2")];
    let linked = mounts.each_ref().map(|mount| mount.join("data"));
    // Made on a mount, so that they stay when nothing is in them.
    fs::create_dir_all(linked[0].join("d/deep")).unwrap();
    let hand = |name, seed| {
        let (mounts, boto) = (&linked[..], Boto::of(&site));
        Hand { name, random: Random(seed), mounts, boto, files: BTreeMap::new(), written: 0 }
    };
    let (mut ours, mut theirs) = (hand("ours", seed), hand("theirs", !seed));
    let (site, done) = (RwLock::new(site), AtomicU64::new(0));
    let kills = std::thread::scope(|scope| {
        let working = [
            scope.spawn(|| {
                for _ in 0..rounds {
                    ours.change_a_mount(&site);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }),
            scope.spawn(|| {
                for _ in 0..rounds {
                    theirs.change_the_bucket(&plain);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }),
        ];
        let (mut kills, mut random) = (Kills::default(), Random(seed));
        for number in 1.. {
            eventually("the work goes on", || {
                working.iter().all(|hand| hand.is_finished()) || done.load(Ordering::Relaxed) >= number * KILL_EVERY
            });
            if working.iter().all(|hand| hand.is_finished()) {
                return number - 1;
            }
            match random.below(3) {
                2 => kills.server(&mut site.write().unwrap(), &mounts),
                mount => kills.mount(&site.read().unwrap(), &mounts, mount as usize),
            }
        }
        unreachable!("the work ends")
    });
    let site = site.into_inner().unwrap();
    site.atoll(["publish", "vol:/data"]).must_succeed();
    let expected: BTreeMap<_, _> = ours.files.into_iter().chain(theirs.files).collect();
    for mount in &linked {
        let mut found = BTreeMap::new();
        collect(mount, "".as_ref(), &mut found);
        assert!(found == expected, "{}: {:?} instead of {:?}", mount.display(), found.keys(), expected.keys());
    }
    let keys = expected.keys().map(|path| format!("data/{path}"));
    let keys: Vec<String> = keys.collect();
    eventually("the bucket has no other keys", || plain.keys("data") == keys);
    for (path, bytes) in &expected {
        assert!(plain.get(&format!("data/{path}")).as_ref() == Some(bytes), "{path} in the bucket");
    }
    println!("{rounds} changes on each side, {kills} kills");
}
