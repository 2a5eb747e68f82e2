//! Mounts as processes of their own that can be frozen, killed and made anew.
//!
//! Invariant: every process and every mount that was started here is gone when
//! its [`Mount`] is. A mount that is made anew gets a directory of its own, so no
//! path leads past a dead mount to what lies under it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use rustix::process::{Pid, Signal};

use crate::hands::{Common, Span};
use crate::harness::{self, PATIENCE, Site};
use crate::proxy::Proxy;

/// The shortest freeze that can end in a fence. The server waits 5 s for the answer to a recall, which it may have
/// sent just before the freeze.
pub const FENCED_AFTER_NS: u64 = 4_500_000_000;
/// How long a mount that goes on may need to notice that it was fenced; what it sends until then is lost, too.
const NOTICED_MAX_NS: u64 = 2_000_000_000;

/// Where workers find a mount, and what was done to it.
pub struct Place {
    now: Mutex<Now>,
    changed: Condvar,
    /// From when to when it was frozen the last time.
    frozen: Mutex<Option<Span>>,
}

#[derive(Clone)]
pub struct Now {
    pub generation: u64,
    pub directory: PathBuf,
    pub is_dead: bool,
}

impl Place {
    fn lock(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().expect("no panic with the lock held")
    }

    /// Whether the mount of this generation was killed, or is about to be.
    pub fn was_killed(&self, generation: u64) -> bool {
        let now = self.lock();
        now.is_dead || now.generation > generation
    }

    /// Whether a call may have failed because the mount was frozen until the server fenced it.
    pub fn may_be_fenced(&self, (call_ns, return_ns): Span) -> bool {
        self.frozen.lock().expect("no panic with the lock held").is_some_and(|(start_ns, end_ns)| {
            // Whoever thaws a mount notes the end after that.
            let end_ns = end_ns.min(return_ns);
            end_ns.saturating_sub(start_ns) >= FENCED_AFTER_NS && call_ns <= end_ns + NOTICED_MAX_NS
        })
    }

    /// Whether a fence may have lost what was made before the end of this call.
    pub fn was_fenced_before(&self, (_, return_ns): Span) -> bool {
        let frozen = *self.frozen.lock().expect("no panic with the lock held");
        frozen.is_some_and(|(start_ns, end_ns)| end_ns.min(return_ns).saturating_sub(start_ns) >= FENCED_AFTER_NS)
    }

    fn note_freeze(&self, span: Span) {
        *self.frozen.lock().expect("no panic with the lock held") = Some(span);
    }

    /// Wait for a living mount; nothing when it does not come in time.
    pub fn living(&self) -> Option<Now> {
        let wait = self.changed.wait_timeout_while(self.lock(), PATIENCE, |now| now.is_dead);
        let (now, timeout) = wait.expect("no panic with the lock held");
        (!timeout.timed_out()).then(|| now.clone())
    }
}

/// How a mount is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Direct,
    /// Through a proxy that can cut its connections.
    Proxied,
    /// By this program, breaking the promises of a client on purpose.
    Broken,
}

pub struct Mount {
    pub number: usize,
    pub place: Arc<Place>,
    kind: Kind,
    proxy: Option<Proxy>,
    child: Option<Child>,
    /// Who serves it, when that is another process than the one that was started.
    heir: Option<Pid>,
    log: PathBuf,
}

impl Mount {
    pub fn start(site: &Site, number: usize, kind: Kind) -> Mount {
        let proxied = kind == Kind::Proxied;
        let proxy = proxied.then(|| Proxy::start(site.path(&format!("proxy{number}")), &site.socket()));
        let now = Now { generation: 0, directory: PathBuf::new(), is_dead: true };
        let place = Arc::new(Place { now: Mutex::new(now), changed: Condvar::new(), frozen: Mutex::new(None) });
        let log = site.path(&format!("mount{number}.log"));
        let mut mount = Mount { number, place, kind, proxy, child: None, heir: None, log };
        mount.mount(site);
        mount
    }

    fn mount(&mut self, site: &Site) {
        let generation = self.place.lock().generation + 1;
        let directory = site.path(&format!("mount{}-{generation}", self.number));
        std::fs::create_dir_all(&directory).expect("mount point");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("log");
        let socket = self.proxy.as_ref().map_or(site.socket(), |proxy| proxy.socket().to_owned());
        let server = format!("unix:{}", socket.display());
        let mut command = match self.kind {
            Kind::Broken => {
                let mut command = Command::new(std::env::current_exe().expect("this program"));
                command.arg(crate::broken::FLAG).arg("vol").arg(&directory).arg(&server);
                command
            }
            Kind::Direct | Kind::Proxied => {
                let mut command = site.command(["mount", "vol", "--foreground"]);
                // Every other one stays dead when it is killed.
                let keeper = if self.outlives() { "keeper" } else { "nokeeper" };
                command.args(["-o", keeper]).arg(&directory).env("ATOLL_SERVER", &server);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("the mount starts");
        let line = harness::first_line(&mut child);
        self.child = Some(child);
        let mut now = self.place.lock();
        now.directory = directory;
        now.generation = generation;
        assert_eq!(line.trim(), "ready", "mount {}: {}", self.number, self.log());
        now.is_dead = false;
        self.place.changed.notify_all();
    }

    pub fn can_be_cut(&self) -> bool {
        self.proxy.is_some()
    }

    pub fn cut(&self) {
        self.proxy.as_ref().expect("a proxied mount").cut();
    }

    /// SIGSTOP for as long as `meanwhile` takes, then SIGCONT.
    pub fn freeze(&self, common: &Common, meanwhile: impl FnOnce()) {
        let start_ns = common.now_ns();
        self.place.note_freeze((start_ns, u64::MAX));
        self.signal(Signal::STOP);
        meanwhile();
        self.signal(Signal::CONT);
        self.place.note_freeze((start_ns, common.now_ns()));
    }

    fn process(&self) -> Pid {
        self.heir.unwrap_or_else(|| Pid::from_child(self.child.as_ref().expect("a mount's process")))
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.process(), signal).expect("the process lives");
    }

    /// Whether the mount goes on when its process is killed.
    pub fn outlives(&self) -> bool {
        self.kind != Kind::Broken && self.number.is_multiple_of(2)
    }

    /// SIGKILL of the process, and nobody who uses the mount notices.
    pub fn hand_on(&mut self, site: &Site) {
        let killed = self.process();
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            child.wait().expect("it was killed");
        }
        let directory = self.place.lock().directory.clone();
        harness::eventually("another process serves the mount", || {
            self.heir = site.find_process_of(&directory).filter(|process| *process != killed);
            self.heir.is_some()
        });
    }

    /// Have the process become another image of its program.
    pub fn replace(&self, site: &Site) {
        let directory = self.place.lock().directory.clone();
        site.atoll(["mount", "--replace", "vol", directory.to_str().expect("UTF-8")]).must_succeed();
    }

    /// SIGKILL. What is under way fails, and everything after it, until [`Mount::revive`].
    pub fn kill(&mut self) {
        self.place.lock().is_dead = true;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let directory = self.place.lock().directory.clone();
            end_killed(&mut child, &directory);
        }
        self.heir = None;
    }

    /// Take what a killed process left away, and mount again elsewhere.
    pub fn revive(&mut self, site: &Site) {
        detach(&self.place.lock().directory);
        self.mount(site);
    }

    /// Unmount what nobody uses any more, and see the process end well.
    pub fn end(mut self) -> Result<(), String> {
        let directory = self.place.lock().directory.clone();
        let mut refused = Ok(());
        // Closed files are released behind the back of who closed them.
        harness::eventually("unmounting", || {
            refused = rustix::mount::unmount(&directory, rustix::mount::UnmountFlags::empty());
            refused != Err(rustix::io::Errno::BUSY)
        });
        refused.map_err(|error| format!("mount {} cannot be unmounted: {error}", self.number))?;
        let Some(mut child) = self.child.take() else {
            let heir = self.process();
            // It is nobody's child here.
            harness::eventually("the mount's process ends", || rustix::process::test_kill_process(heir).is_err());
            return Ok(());
        };
        match harness::wait_bounded(&mut child) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("mount {} ended with {status}: {}", self.number, self.log())),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("mount {} does not end when it is unmounted", self.number))
            }
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.kill();
        detach(&self.place.now.lock().unwrap_or_else(|poison| poison.into_inner()).directory);
    }
}

/// A killed process does not end while the kernel waits, for one of its threads, for a directory in which a call waits for
/// the process: docs/leases.md. Who is in its place has `umount -f` end these calls.
fn end_killed(child: &mut std::process::Child, directory: &Path) {
    if harness::wait_bounded(child).is_none() {
        let _ = rustix::mount::unmount(directory, rustix::mount::UnmountFlags::FORCE);
        let _ = child.wait();
    }
}

fn detach(directory: &Path) {
    if harness::is_mounted(directory) {
        let _ = rustix::mount::unmount(directory, rustix::mount::UnmountFlags::DETACH);
    }
}
