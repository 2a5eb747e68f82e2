//! Starts servers and mounts of the built binary in a scratch folder and ends
//! exactly what it started.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_atoll");

/// Longest wait for anything that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server with its data folder, and the mounts made of it.
pub struct Site {
    pub folder: tempfile::TempDir,
    server: Option<Child>,
    mounts: Vec<PathBuf>,
    /// Further arguments and environment of the server.
    pub serve: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
    ready: String,
    /// The test leaves a volume that is not sound.
    pub damaged: bool,
    /// Outlives the server, which still writes to it when it stops.
    s3: Option<S3>,
}

impl Site {
    /// A running server with one volume called `vol`.
    pub fn new() -> Site {
        let mut site = Site::empty();
        site.start();
        site.atoll(["volume", "create", "vol"]).must_succeed();
        site
    }

    /// A scratch folder and a real S3 server with an empty bucket `bucket`, which the site's server will use.
    pub fn with_s3() -> Site {
        Site::with(None)
    }

    /// The same with moto, which passes what happens in its buckets on to its queues.
    pub fn with_moto() -> Site {
        Site::with(Some("moto"))
    }

    /// The same with SeaweedFS, whose objects are entries of directories, with metadata of their own.
    pub fn with_seaweedfs() -> Site {
        Site::with(Some("seaweedfs"))
    }

    /// With a server that `tests/s3/serve` knows by this name.
    fn with(server: Option<&str>) -> Site {
        let mut site = Site::empty();
        let s3 = S3::start(&site.path("s3"), server, &[]);
        site.environment = s3.environment();
        site.s3 = Some(s3);
        site
    }

    /// A scratch folder and a server with the keys of an S3 server that is started later, by [`Site::start_s3`].
    pub fn before_s3() -> Site {
        let mut site = Site::empty();
        site.environment = S3::keys();
        site
    }

    /// Start a real S3 server with an empty bucket `bucket`, which posts its notifications to this URL.
    pub fn start_s3(&mut self, webhook: &str) {
        self.s3 = Some(S3::start(&self.path("s3"), None, &[("VGW_EVENT_WEBHOOK_URL", webhook)]));
    }

    /// A scratch folder without a server.
    pub fn empty() -> Site {
        assert!(rustix::process::geteuid().is_root(), "the end-to-end tests mount file systems: run them as root");
        assert!(Path::new("/dev/fuse").exists(), "the end-to-end tests need /dev/fuse");
        let folder = tempfile::Builder::new().prefix("atoll-e2e-").tempdir().expect("scratch folder");
        Site {
            folder,
            server: None,
            mounts: Vec::new(),
            serve: Vec::new(),
            environment: Vec::new(),
            ready: String::new(),
            damaged: false,
            s3: None,
        }
    }

    /// Of a site with an S3 server.
    pub fn s3_port(&self) -> u16 {
        self.s3.as_ref().expect("an S3 server").port
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("sock")
    }

    /// A command of the binary that talks to this site's server.
    pub fn command<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new(BINARY);
        command
            .args(arguments)
            .env("ATOLL_SERVER", format!("unix:{}", self.socket().display()))
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env_remove("ATOLL_TOKEN")
            .stdin(Stdio::null());
        command
    }

    pub fn atoll<I, S>(&self, arguments: I) -> Ran
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let output = self.command(arguments).output().expect("the binary runs");
        Ran(output)
    }

    /// Start the server and wait for its `ready` line.
    pub fn start(&mut self) {
        assert!(self.server.is_none());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("server.log")).expect("log");
        let child = Command::new(BINARY)
            .arg("serve")
            .arg("--data")
            .arg(self.path("data"))
            .arg("--socket")
            .arg(self.socket())
            .args(&self.serve)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the server starts");
        // Known before it is waited for: one that is not ready in time is ended with the site.
        let line = first_line(self.server.insert(child));
        assert!(line.starts_with("ready"), "expected `ready`, got {line:?}: {}", self.server_log());
        self.ready = line;
    }

    /// The address with this scheme in the `ready` line.
    pub fn address(&self, scheme: &str) -> String {
        let found = self.ready.split_whitespace().find(|word| word.starts_with(scheme));
        found.expect("the ready line has the address").to_owned()
    }

    pub fn server_log(&self) -> String {
        std::fs::read_to_string(self.path("server.log")).unwrap_or_default()
    }

    /// SIGTERM: a graceful stop.
    pub fn stop(&mut self) {
        let mut child = self.server.take().expect("a running server");
        signal(&child, rustix::process::Signal::TERM);
        let status = wait_bounded(&mut child).expect("the server stops in time");
        assert!(status.success(), "graceful stop failed: {status}: {}", self.server_log());
    }

    /// SIGKILL: a crash.
    pub fn kill(&mut self) {
        let mut child = self.server.take().expect("a running server");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Mount `vol` on a new folder called `name`.
    pub fn mount(&mut self, name: &str) -> PathBuf {
        self.mount_with(name, &[])
    }

    pub fn mount_with(&mut self, name: &str, flags: &[&str]) -> PathBuf {
        self.mount_volume("vol", name, flags)
    }

    pub fn mount_volume(&mut self, volume: &str, name: &str, flags: &[&str]) -> PathBuf {
        let directory = self.path(name);
        std::fs::create_dir_all(&directory).expect("mount point");
        let mut arguments = vec![OsStr::new("mount"), OsStr::new(volume), directory.as_os_str()];
        arguments.extend(flags.iter().map(OsStr::new));
        self.atoll(arguments).must_succeed();
        self.mounts.push(directory.clone());
        directory
    }

    /// The process that serves a mount.
    pub fn process_of(&self, mount: &Path) -> rustix::process::Pid {
        self.find_process_of(mount).unwrap_or_else(|| panic!("nobody serves {}", mount.display()))
    }

    /// The same, if there is one right now.
    pub fn find_process_of(&self, mount: &Path) -> Option<rustix::process::Pid> {
        let text = self.atoll(["--json", "status"]).must_succeed();
        let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let mounts = status["mounts"].as_array().expect("mounts");
        let of = mounts.iter().find(|m| m["dir"].as_str() == mount.to_str())?;
        rustix::process::Pid::from_raw(of["pid"].as_i64().expect("a number") as i32)
    }

    pub fn server(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.server.as_ref().expect("a running server"))
    }

    /// SIGSTOP the server until the answer is dropped.
    pub fn freeze_server(&self) -> Frozen {
        Frozen::new(self.server())
    }

    /// What `fsck` finds in the volume, of a server that runs. Every test ends with it.
    fn unsound(&self) -> Option<String> {
        self.server.as_ref().filter(|_| !self.damaged)?;
        let Ran(output) = self.atoll(["fsck", "vol", "--read"]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let errors = text(&output.stderr);
        let is_sound = output.status.success() || errors.contains("no volume `vol`");
        (!is_sound).then(|| text(&output.stdout) + &errors)
    }

    pub fn unmount(&mut self, directory: &Path) {
        self.atoll([OsStr::new("umount"), directory.as_os_str()]).must_succeed();
        self.mounts.retain(|m| m != directory);
        assert!(!is_mounted(directory));
    }
}

/// A process, frozen; it goes on when this is dropped.
pub struct Frozen(rustix::process::Pid);

impl Frozen {
    pub fn new(process: rustix::process::Pid) -> Frozen {
        rustix::process::kill_process(process, rustix::process::Signal::STOP).expect("the process lives");
        Frozen(process)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for mount in std::mem::take(&mut self.mounts) {
            let _ = self.atoll([OsStr::new("umount"), mount.as_os_str()]);
            if is_mounted(&mount) {
                let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
            }
        }
        let unsound = self.unsound();
        if let Some(mut child) = self.server.take() {
            signal(&child, rustix::process::Signal::TERM);
            if wait_bounded(&mut child).is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            eprintln!("--- server log\n{}", self.server_log());
        } else if let Some(findings) = unsound {
            panic!("the test leaves a volume that is not sound: {findings}");
        }
    }
}

/// A real S3 server over HTTP with an empty bucket called `bucket`.
struct S3 {
    process: Child,
    port: u16,
}

impl S3 {
    /// As `tests/s3/serve` knows it, or its default.
    fn start(folder: &Path, server: Option<&str>, environment: &[(&str, &str)]) -> S3 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("its number").port();
        drop(free);
        let process = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/s3/serve"))
            .arg(folder)
            .arg(port.to_string())
            .args(server)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("tests/s3/serve starts");
        let s3 = S3 { process, port };
        // The first start may build the server.
        for _ in 0..5 {
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end {
                if http(s3.port, "/bucket").is_some_and(|answer| !answer.starts_with("HTTP/1.1 404")) {
                    return s3;
                }
                pause();
            }
        }
        panic!("the S3 server does not answer");
    }

    /// What a server needs to use it.
    fn environment(&self) -> Vec<(&'static str, String)> {
        [vec![("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port))], S3::keys()].concat()
    }

    fn keys() -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", "atolltest".into()),
            ("AWS_SECRET_ACCESS_KEY", "atolltestsecret".into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // With whatever the script started.
        let group = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.process.wait();
    }
}

/// The answer to a GET on this machine; `None` when nobody answers.
pub fn http(port: u16, path: &str) -> Option<String> {
    request(port, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
}

/// The answer to these bytes.
pub fn request(port: u16, bytes: &[u8]) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(bytes).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// So many words of four bytes, each another one.
pub fn words(count: u32) -> Vec<u8> {
    (0..count).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A finished command.
pub struct Ran(pub Output);

impl Ran {
    #[track_caller]
    pub fn must_succeed(self) -> String {
        assert!(self.0.status.success(), "{}: {}", self.0.status, self.errors());
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    /// The command must fail with a message that holds every one of `words`.
    #[track_caller]
    pub fn must_fail_saying(self, words: &[&str]) {
        assert!(!self.0.status.success(), "expected a failure, it succeeded");
        let errors = self.errors().to_lowercase();
        for word in words {
            assert!(errors.contains(&word.to_lowercase()), "the message lacks {word:?}: {errors}");
        }
        assert!(!errors.contains("panicked"), "a panic is not a message: {errors}");
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}

/// A number that whoever runs the tests may give.
pub fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Ends the work also when the test fails: who works is waited for.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    let _ = rustix::process::kill_process(pid, signal);
}

/// The first line of a child's standard output; empty when it ended without one.
pub fn first_line(child: &mut Child) -> String {
    let stdout = child.stdout.take().expect("piped standard output");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        let _ = sender.send(line);
        // Keep the pipe open and empty for as long as the child lives.
        let _ = reader.read_to_end(&mut Vec::new());
    });
    receiver.recv_timeout(PATIENCE).expect("a line in time")
}

/// The exit status, or `None` when the child lives on past the bound.
pub fn wait_bounded(child: &mut Child) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        pause();
    }
    None
}

/// Wait until `condition` holds, within the bound.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen in {PATIENCE:?}");
        pause();
    }
}

pub fn pause() {
    std::thread::park_timeout(Duration::from_millis(10));
}

pub fn is_mounted(directory: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(1) == directory.to_str())
}

/// Run a program to success with the bound on its time.
#[track_caller]
pub fn run(directory: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["--kill-after=5", "300", program])
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "a")
        .env("GIT_AUTHOR_EMAIL", "a@example.com")
        .env("GIT_COMMITTER_NAME", "a")
        .env("GIT_COMMITTER_EMAIL", "a@example.com")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
