//! The keeper of a mount: a process that waits until the one that serves the mount is dead, and becomes the next one.
//!
//! It holds further descriptors of the connection to the kernel, so the mount stays, and the files in which the other process
//! notes what it knows ([`Chronicle`]). When that one was killed it executes `atoll mount` again with all of them: the new
//! one starts a keeper of its own, has the kernel drop what it keeps, goes on with the session at the server, and has the kernel send
//! again what was not answered. A process that ends in order says so to its keeper, which ends then, too; one whose keeper
//! was killed starts another one.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_client::Chronicle;
use atoll_fuse::{Connection, Inherited};
use atoll_types::InodeId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::handover;
use crate::mounting::is_dead;

/// Tells the keeper, and the process that it becomes, what it has.
pub const VARIABLE: &str = "ATOLL_KEPT";
/// How often a keeper looks whether the process is dead although it is not gone: the kernel may hold a thread of it until
/// somebody answers a request.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long the threads of a dead process may take to end what they do.
const END_TIMEOUT: Duration = Duration::from_millis(200);
/// Pause before a process that was killed at once is replaced.
const SHORT_LIFE: Duration = Duration::from_millis(100);
/// A process that lives longer does not die of the mount.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// So many short lives in a row are enough: then the mount ends.
const SHORT_LIVES_MAX: u32 = 1000;
/// Says that the mount is no more, or another process's.
const GOODBYE: &[u8] = b"x";

/// What a keeper has.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    pub directory: PathBuf,
    pub connection: Inherited,
    /// The directory of the volume that is mounted.
    pub root: InodeId,
    chronicle: [i32; 2],
    socket: i32,
    /// Who serves the mount.
    pub process: u32,
    /// How many before it lived for a short time, in a row.
    pub short_lives: u32,
    arguments: Vec<OsString>,
}

impl Kept {
    /// What the process noted that was killed. Once.
    pub fn chronicle(&self) -> Result<Chronicle> {
        let files = self.chronicle.map(atoll_fuse::inherited);
        let chronicle = Chronicle::recover(files).map_err(|error| error.to_string())?;
        chronicle.ok_or_else(|| "the process of the mount could not note what it knew".to_owned())
    }
}

/// What this process was left, if it was.
pub fn received() -> Result<Option<Kept>> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let text = text.into_string().map_err(|_| format!("{VARIABLE} is no text"))?;
    serde_json::from_str(&text).map(Some).map_err(|error| format!("{VARIABLE}: {error}"))
}

/// What runs as `atoll keep`: returns when the mount is no more, and becomes its process if that is killed.
pub fn run() -> Result<()> {
    let mut kept = received()?.ok_or("a mount starts its keeper itself")?;
    let mut socket = UnixStream::from(OwnedFd::from(atoll_fuse::inherited(kept.socket)));
    socket.set_read_timeout(Some(LOOK_INTERVAL)).map_err(|error| error.to_string())?;
    let begun = Instant::now();
    loop {
        match socket.read(&mut [0]) {
            Ok(0) => break,
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
        if is_dead(kept.process) {
            break;
        }
    }
    let end = Instant::now() + END_TIMEOUT;
    let is_running = || std::fs::read_dir(format!("/proc/{}/task", kept.process)).is_ok_and(|tasks| tasks.count() > 1);
    while is_running() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    kept.short_lives = if begun.elapsed() < LONG_LIFE { kept.short_lives + 1 } else { 0 };
    if kept.short_lives > SHORT_LIVES_MAX {
        return Err(format!("{SHORT_LIVES_MAX} processes of {} were killed in a row", kept.directory.display()));
    }
    if begun.elapsed() < SHORT_LIFE {
        std::thread::sleep(SHORT_LIFE);
    }
    // Descriptors stay open over it.
    let text = serde_json::to_string(&kept).map_err(|error| error.to_string())?;
    Err(Command::new("/proc/self/exe").arg0("atoll").args(&kept.arguments).env(VARIABLE, text).exec().to_string())
}

/// The keeper of the mount that this process serves, as long as it lives.
pub struct Keeper {
    directory: PathBuf,
    connection: Arc<Connection>,
    root: InodeId,
    chronicle: Arc<Chronicle>,
    short_lives: u32,
    socket: Mutex<Option<UnixStream>>,
}

impl Keeper {
    /// For a mount that can outlive its process. `short_lives`: [`Kept::short_lives`].
    pub fn start(
        directory: PathBuf,
        connection: Arc<Connection>,
        root: InodeId,
        chronicle: Arc<Chronicle>,
        short_lives: u32,
    ) -> Result<Arc<Keeper>> {
        let keeper = Keeper { directory, connection, root, chronicle, short_lives, socket: Mutex::default() };
        let keeper = Arc::new(keeper);
        let socket = keeper.spawn().map_err(|error| format!("cannot start the mount's keeper: {error}"))?;
        keeper.watch(socket)?;
        Ok(keeper)
    }

    fn spawn(&self) -> std::io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = rustix::io::dup(&theirs)?;
        let (connection, _devices) = self.connection.share()?;
        let files = self.chronicle.files().ok_or(std::io::ErrorKind::OutOfMemory)?;
        let [first, second] = files.each_ref().map(rustix::io::dup);
        let (first, second) = (first?, second?);
        let kept = Kept {
            directory: self.directory.clone(),
            connection,
            root: self.root,
            chronicle: [first.as_raw_fd(), second.as_raw_fd()],
            socket: theirs.as_raw_fd(),
            process: std::process::id(),
            short_lives: self.short_lives,
            arguments: std::env::args_os().skip(1).collect(),
        };
        let mut command = Command::new("/proc/self/exe");
        command.arg0("atoll").arg("keep").env(VARIABLE, serde_json::to_string(&kept)?).env_remove(handover::VARIABLE);
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn()?;
        Ok(ours)
    }

    /// Start another one when this one is gone.
    fn watch(self: &Arc<Self>, socket: UnixStream) -> Result<()> {
        let mut listening = socket.try_clone().map_err(|error| error.to_string())?;
        *self.socket.lock() = Some(socket);
        let keeper = Arc::downgrade(self);
        std::thread::spawn(move || {
            while let Ok(0) | Err(_) = listening.read(&mut [0]) {
                let Some(keeper) = keeper.upgrade() else { return };
                let mut socket = keeper.socket.lock();
                if socket.is_none() {
                    return;
                }
                tracing::warn!("the mount's keeper is gone: another one is started");
                match keeper.spawn().and_then(|new| Ok((new.try_clone()?, new))) {
                    Ok((to_listen, new)) => {
                        listening = to_listen;
                        *socket = Some(new);
                    }
                    Err(error) => {
                        tracing::error!(%error, "cannot start the mount's keeper: the mount does not outlive this process");
                        return;
                    }
                }
            }
        });
        Ok(())
    }

    /// This process ends in order, or becomes another program.
    pub fn dismiss(&self) {
        if let Some(mut socket) = self.socket.lock().take() {
            let _ = socket.write_all(GOODBYE);
        }
    }

    /// After [`Keeper::dismiss`], when it did not.
    pub fn recall(self: &Arc<Self>) -> Result<()> {
        let socket = self.spawn().map_err(|error| format!("cannot start the mount's keeper: {error}"))?;
        self.watch(socket)
    }
}
