//! A source tree, as people and their tools use one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::measure::{At, Folder, Random, Scale};
use super::results::Record;
use crate::Result;

const PROGRAM_TIME_MAX: Duration = Duration::from_secs(100);
/// How often the end of a program is looked for: far less than any program takes.
const POLL: Duration = Duration::from_micros(200);
const WORDS: [&str; 12] =
    ["lease", "return", "struct", "error", "open", "(self)", "{", "}", "let", "inode", "match", "//"];
const SOUGHT: &[u8] = b"inode match";

/// The tree's content, and an archive of it where there is `tar`.
#[derive(Default)]
pub struct Corpus {
    files: Vec<(PathBuf, Vec<u8>)>,
    archive: Option<PathBuf>,
    bytes: u64,
    matches: usize,
}

impl Corpus {
    /// Generate the tree and archive it in the folder `scratch`.
    pub fn write(scratch: &Path, scale: &Scale) -> Result<Corpus> {
        let mut random = Random(10);
        let files: Vec<(PathBuf, Vec<u8>)> = (0..scale.tree_files)
            .map(|i| {
                let directory = i % scale.tree_directories;
                let path = format!("src/part{:02}/module{directory:03}/file{i:05}.rs", directory % 10);
                // Most files are small and some are not.
                let length = 500 << random.below(6);
                let mut text = String::new();
                while text.len() < length {
                    text.push_str(WORDS[random.below(WORDS.len())]);
                    text.push(if random.below(8) == 0 { '\n' } else { ' ' });
                }
                (path.into(), text.into_bytes())
            })
            .collect();
        let bytes = files.iter().map(|(_, content)| content.len() as u64).sum();
        let matches = files.iter().map(|(_, content)| occurrences(content)).sum();
        let mut corpus = Corpus { files, archive: None, bytes, matches };
        if exists("tar") {
            let (source, archive) = (scratch.join("source"), scratch.join("source.tar"));
            fs::create_dir(&source).at("source tree")?;
            corpus.write_files(&source)?;
            let tar = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&source).arg("src").output();
            tar.at("tar")?.status.success().then_some(()).ok_or("tar cannot archive the source tree")?;
            corpus.archive = Some(archive);
        }
        Ok(corpus)
    }

    fn write_files(&self, directory: &Path) -> Result<()> {
        for (path, content) in &self.files {
            let path = directory.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).at("source tree")?;
            }
            fs::write(&path, content).at("source tree")?;
        }
        Ok(())
    }

    fn unpack(&self, directory: &Path) -> Result<()> {
        let Some(archive) = &self.archive else { return self.write_files(directory) };
        let mut tar = Command::new("tar");
        tar.arg("--no-same-owner").arg("-xf").arg(archive).current_dir(directory);
        run(&mut tar).map(drop)
    }
}

fn occurrences(content: &[u8]) -> usize {
    content.windows(SOUGHT.len()).filter(|window| *window == SOUGHT).count()
}

fn exists(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// What the program printed; it must succeed, and in time.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().at(&name)?;
    let end = Instant::now() + PROGRAM_TIME_MAX;
    while child.try_wait().at(&name)?.is_none() {
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("{name}: no end in {PROGRAM_TIME_MAX:?}"));
        }
        std::thread::sleep(POLL);
    }
    let output = child.wait_with_output().at(&name)?;
    if !output.status.success() {
        return Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Git with no settings but these.
fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command
        .current_dir(directory)
        .args(["-c", "safe.directory=*", "-c", "user.name=bench", "-c", "user.email=bench@example.com"])
        .args(["-c", "gc.auto=0"])
        .args(arguments)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_OPTIONAL_LOCKS", "0")])
        // `safe.directory` is not taken from the command line by the other half of a clone.
        .envs([("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")]);
    run(&mut command)
}

/// Files and bytes under `directory`, as `find -size` would ask.
fn walk(directory: &Path, visit: &mut impl FnMut(&Path, u64) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(directory).at(directory.display())? {
        let entry = entry.at(directory.display())?;
        let path = entry.path();
        let metadata = entry.metadata().at(path.display())?;
        if metadata.is_dir() { walk(&path, visit)? } else { visit(&path, metadata.len())? }
    }
    Ok(())
}

pub fn tree(folder: &Folder, scale: &Scale, record: &mut Record) -> Result<()> {
    let corpus = &scale.corpus;
    let tree = folder.path.join("tree");
    fs::create_dir(&tree).at("unpack")?;
    record.seconds("unpack", || corpus.unpack(&tree))?;

    let (mut files, mut bytes) = (0, 0);
    record.seconds("find", || {
        walk(&tree, &mut |_, length| {
            files += 1;
            bytes += length;
            Ok(())
        })
    })?;
    let right = (files, bytes) == (corpus.files.len(), corpus.bytes);
    record.fault("find", format!("{files} files of {bytes} bytes found"), u64::from(!right));

    let mut matches = 0;
    record.seconds("grep", || {
        walk(&tree, &mut |path, _| {
            matches += occurrences(&fs::read(path).at(path.display())?);
            Ok(())
        })
    })?;
    record.fault("grep", format!("{matches} matches found"), u64::from(matches != corpus.matches));

    if exists("git") {
        let clone = folder.path.join("clone");
        git(&tree, &["init", "-q"]).and_then(|_| git(&tree, &["add", "-A"])).at("git-status")?;
        git(&tree, &["commit", "-qm", "all"]).at("git-status")?;
        let status = record.seconds("git-status", || git(&tree, &["status", "--porcelain"]))?;
        record.fault("git-status", "a clean tree is called changed", status.lines().count() as u64);
        let arguments = ["clone", "-q", "--no-hardlinks", ".", "../clone"];
        record.seconds("git-clone", || git(&tree, &arguments))?;
        let broken = git(&clone, &["fsck", "--full"]).err();
        record.fault("git-clone", broken.clone().unwrap_or_default(), u64::from(broken.is_some()));
        fs::remove_dir_all(&clone).at("git-clone")?;
        fs::remove_dir_all(tree.join(".git")).at("git-clone")?;
    } else {
        record.notes.push("there is no git here: git-status and git-clone are left out".into());
    }
    if corpus.archive.is_none() {
        record.notes.push("there is no tar here: unpack writes the files itself".into());
    }
    record.seconds("rm-rf", || fs::remove_dir_all(&tree).at("tree"))
}
