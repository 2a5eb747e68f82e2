//! The directories that are measured, made at the start and removed at the end, however it ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::directory::remove_all;
use super::measure::{At, Folder};
use super::results::{Results, Site};
use super::workloads::{On, Workload};
use crate::arguments::Bench;
use crate::{Result, mounting};

/// Longest wait for a null mount to be there, and to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// As good as infinite, and well inside what the kernel can count.
const LIFETIME_SECONDS: u64 = atoll_fuse::Lifetimes::FOREVER.as_secs();

pub struct Sites {
    roots: BTreeMap<Site, PathBuf>,
    /// The volume's root through the second mount.
    second: Option<PathBuf>,
    /// Mount points, the source tree.
    scratch: PathBuf,
    nulls: Vec<Null>,
    /// What the volume says of itself.
    pub durability: String,
}

/// A null mount and its process.
struct Null {
    process: Child,
    directory: PathBuf,
}

impl Sites {
    pub fn open(options: &Bench, workloads: &[&Workload], results: &mut Results) -> Result<Sites> {
        let name = format!("atoll-bench-{}", std::process::id());
        let directory = options.directory.as_deref().ok_or("which directory? give one, or --null-fuse")?;
        mounting::check_directory(directory)?;
        let scratch = std::env::temp_dir().join(&name);
        fs::create_dir(&scratch).at(scratch.display())?;
        let durability = durability(directory);
        // From here on whatever goes wrong, `drop` removes what was made.
        let mut sites = Sites { roots: BTreeMap::new(), second: None, scratch, nulls: Vec::new(), durability };
        let local = match &options.local {
            Some(local) => {
                mounting::check_directory(local)?;
                local.join(&name)
            }
            None => sites.scratch.join("local"),
        };
        sites.make(Site::Local, local.clone())?;
        if rustix::fs::statfs(&local).is_ok_and(|found| found.f_type == TMPFS) {
            results.note("the local directory lies in memory: give --local a directory on a disk".into());
        }
        sites.make(Site::Volume, directory.join(&name))?;
        if let Some(second) = &options.second {
            mounting::check_directory(second)?;
            let seen = second.join(&name);
            if !seen.is_dir() {
                return Err(format!("{} is not another mount of what is in {}", second.display(), directory.display()));
            }
            let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).at(path.display());
            if device(second)? == device(directory)? {
                return Err(format!("{} is the same mount as {}", second.display(), directory.display()));
            }
            sites.second = Some(seen);
        }
        if workloads.iter().any(|workload| workload.on == On::All) {
            for (site, lifetime) in [(Site::Null, None), (Site::NullInfinite, Some(LIFETIME_SECONDS))] {
                if let Err(error) = sites.start_null(site, lifetime) {
                    results.error("-", Some(site), error);
                }
            }
        }
        Ok(sites)
    }

    fn make(&mut self, site: Site, root: PathBuf) -> Result<()> {
        fs::create_dir(&root).at(root.display())?;
        self.roots.insert(site, root);
        Ok(())
    }

    fn start_null(&mut self, site: Site, lifetime_seconds: Option<u64>) -> Result<()> {
        let directory = self.scratch.join(site.key());
        fs::create_dir(&directory).at(directory.display())?;
        let binary = std::env::current_exe().at("this binary")?;
        let mut command = Command::new(binary);
        command.args(["bench", "--null-fuse"]).arg(&directory);
        if let Some(seconds) = lifetime_seconds {
            command.arg("--lifetime").arg(seconds.to_string());
        }
        // A group of its own: Ctrl-C is for the benchmark, which unmounts.
        let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn().at("null FUSE")?;
        self.nulls.push(Null { process, directory: directory.clone() });
        let stdout = self.nulls.last_mut().and_then(|null| null.process.stdout.take());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
            drop(sender.send(line));
        });
        match receiver.recv_timeout(PATIENCE) {
            Ok(line) if line.trim() == "ready" => self.make(site, directory.join("root")),
            _ => Err("null FUSE did not start".into()),
        }
    }

    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The sites that are there and that a workload runs on.
    pub fn of(&self, on: On) -> Vec<Site> {
        Site::ALL.into_iter().filter(|site| on.includes(*site) && self.roots.contains_key(site)).collect()
    }

    pub fn folder(&self, site: Site, workload: &Workload) -> Folder {
        let view = |root: &PathBuf| root.join(workload.name);
        let second = match site {
            Site::Volume => self.second.as_ref().map(view),
            _ => None,
        };
        Folder { path: self.roots.get(&site).map(view).unwrap_or_default(), second }
    }

    /// Leave this site's files: calls on it do not return.
    pub fn abandon(&mut self, site: Site) {
        self.roots.remove(&site);
    }

    /// Remove everything. Tells the first thing that could not be removed, and removes the rest.
    pub fn close(&mut self) -> Result<()> {
        let mut result = Ok(());
        for (site, root) in std::mem::take(&mut self.roots) {
            // A null tree goes with its process.
            if matches!(site, Site::Volume | Site::Local) {
                result = result.and(remove_all(&root));
            }
        }
        for null in self.nulls.drain(..) {
            result = result.and(null.stop());
        }
        result.and(remove_all(&self.scratch))
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        // Nothing is left to do after `close`, which tells what fails.
        let _ = self.close();
    }
}

impl Null {
    fn stop(mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let unmounted = mounting::detach(&self.directory);
        if unmounted.is_err() {
            // Its mount is broken then, and can be taken away.
            let _ = self.process.kill();
            let _ = mounting::detach(&self.directory);
        }
        while self.process.try_wait().at("null FUSE")?.is_none() {
            if Instant::now() >= end {
                let _ = self.process.kill();
                let _ = self.process.wait();
                return Err("null FUSE did not end with its mount".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// `statfs` of a file system in memory.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// The volume's durability mode, which every figure is to be read with.
fn durability(directory: &Path) -> String {
    let mut value = [0; 64];
    match rustix::fs::getxattr(directory, "user.atoll.durability", &mut value) {
        Ok(length) => String::from_utf8_lossy(&value[..length]).into_owned(),
        Err(_) => "unknown".into(),
    }
}
