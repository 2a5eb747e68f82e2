//! `atoll mount --replace`: the process of a mount becomes another program, and nobody who uses the mount notices.
//!
//! The process takes up no more requests, makes what it has durable, and executes the new program with the connection
//! to the kernel left open and what it knows in a memory file. The new program resumes the session at the server and
//! has the kernel send again what was not answered. Until the very `exec` a failure leaves the old one serving.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_client::{Client, ClientState};
use atoll_fuse::{Connection, FsState, Inherited, VolumeFs};
use atoll_types::InodeId;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::Result;
use crate::keeper::{self, Keeper};

/// Of what one program hands to the next; a program takes over from its own version only.
pub const VERSION: u32 = 3;
/// Tells the new program where the memory file is.
pub const VARIABLE: &str = "ATOLL_HANDOVER";
/// How long the kernel may take over what it was told last. It may never do: then requests are taken up for a moment.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(20);
/// How often that is tried.
const ATTEMPTS_MAX: usize = 100;
/// How long requests may stay unanswered before a replacement is given up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the new program may take to say its version, or to serve.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest path of a program.
const LINE_BYTES_MAX: u64 = 8192;

/// What one program hands to the next.
#[derive(Serialize, Deserialize)]
pub struct Handover {
    pub directory: PathBuf,
    /// The directory of the volume that is mounted.
    pub root: InodeId,
    pub client: ClientState,
    pub filesystem: FsState,
    pub connection: Inherited,
}

/// What this program was handed, if it was.
pub fn received() -> Result<Option<Handover>> {
    let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let read = || -> std::io::Result<Handover> {
        let number = number.to_str().and_then(|number| number.parse().ok());
        let mut file = atoll_fuse::inherited(number.ok_or(std::io::ErrorKind::InvalidInput)?);
        let mut text = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    read().map(Some).map_err(|error| format!("cannot take a mount over: {error}"))
}

/// A mount that is served.
pub struct Served {
    pub directory: PathBuf,
    pub client: Client,
    pub filesystem: Arc<VolumeFs>,
    pub connection: Arc<Connection>,
    pub keeper: Option<Arc<Keeper>>,
}

impl Served {
    /// Become another program. Returns only when that fails; then this one serves on.
    async fn become_program(&self, program: &Path) -> Result<Infallible> {
        if !self.connection.can_be_handed_over() {
            return Err("a mount's process can be replaced from Linux 6.9 on: unmount, and mount anew".into());
        }
        check_version(program).await?;
        for _ in 0..ATTEMPTS_MAX {
            let tried = self.try_to_become(program).await;
            self.connection.open();
            self.client.show_listings();
            match tried {
                Ok(()) => tokio::time::sleep(SILENCE_TIMEOUT).await,
                Err(error) => return Err(error),
            }
        }
        Err("the kernel is busy with the mount: try again".into())
    }

    /// Returns `Ok` when the kernel is still busy with what it was told: threads that wait for it would keep this
    /// process from ending, and may themselves wait for a request.
    async fn try_to_become(&self, program: &Path) -> Result<()> {
        let client = self.client.clone();
        // Before the gate closes: a request in it may hold the lock of a directory for which this waits.
        if !blocking(move || client.hide_listings()).await? {
            return Ok(());
        }
        let connection = self.connection.clone();
        if !blocking(move || connection.close(CLOSE_TIMEOUT)).await? {
            return Err("requests have no answer: try again when the server is there".into());
        }
        let client = self.client.suspend().await?;
        let connection = self.connection.clone();
        let is_silent = blocking(move || connection.silence(SILENCE_TIMEOUT)).await?;
        let error = is_silent.then(|| {
            self.keeper.iter().for_each(|keeper| keeper.dismiss());
            let error = self.execute(program, client);
            let _ = self.keeper.iter().try_for_each(Keeper::recall);
            error
        });
        self.client.resume();
        match error {
            None => Ok(()),
            Some(error) => Err(format!("{}: {error}", program.display())),
        }
    }

    fn execute(&self, program: &Path, client: ClientState) -> std::io::Error {
        let run = || -> std::io::Result<std::io::Error> {
            let connection = self.connection.inherit()?;
            let filesystem = self.filesystem.state();
            let (directory, root) = (self.directory.clone(), self.filesystem.root());
            let handover = Handover { directory, root, client, filesystem, connection };
            // It outlives the `exec`.
            let mut file = std::fs::File::from(rustix::fs::memfd_create("atoll-handover", MemfdFlags::empty())?);
            file.write_all(&serde_json::to_vec(&handover)?)?;
            let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
            let mut command = std::process::Command::new(program);
            command.args(arguments).env(VARIABLE, file.as_raw_fd().to_string()).env_remove(keeper::VARIABLE);
            Ok(command.exec())
        };
        run().unwrap_or_else(|error| error)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// Whether a program can take over from this one.
async fn check_version(program: &Path) -> Result<()> {
    let shown = program.display();
    let mut command = std::process::Command::new(program);
    command.arg("handover-version").stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(START_TIMEOUT, output).await.map_err(|_| format!("{shown} does not end"))?;
    let output = output.map_err(|error| error.to_string())?.map_err(|error| format!("{shown}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().parse::<u32>() {
        Ok(VERSION) => Ok(()),
        Ok(other) => {
            Err(format!("{shown} takes over from version {other} only, this is {VERSION}: unmount, and mount anew"))
        }
        Err(_) => Err(format!("{shown} is no program that can take over a mount")),
    }
}

/// Listen for who wants this process replaced, as long as it lives.
pub async fn listen(socket: PathBuf, served: Served) -> std::io::Result<Infallible> {
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (reader, mut writer) = stream.into_split();
        let (mut reader, mut line) = (BufReader::new(reader.take(LINE_BYTES_MAX)), String::new());
        // One at a time; who says nothing is not waited for.
        let Ok(Ok(_)) = tokio::time::timeout(START_TIMEOUT, reader.read_line(&mut line)).await else { continue };
        let answer = match line.trim() {
            "" => format!("{VERSION}\n"),
            program => match served.become_program(Path::new(program)).await {
                Err(error) => format!("{error}\n"),
                Ok(never) => match never {},
            },
        };
        let _ = writer.write_all(answer.as_bytes()).await;
    }
}

/// Say something to the process of a mount; empty when it ended without an answer.
async fn say(socket: &Path, line: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer).await {
        Ok(_) => Ok(answer.trim().to_owned()),
        // It was executing the new program.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn is_not_listening(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

/// Have the process behind a socket become this program, and wait until that serves.
pub async fn replace(socket: &Path) -> Result<()> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let unreachable = |error: std::io::Error| format!("cannot talk to the process of the mount: {error}");
    let end = Instant::now() + START_TIMEOUT;
    let answer = loop {
        match say(socket, &program.display().to_string()).await {
            // It serves, and does not listen yet.
            Err(error) if is_not_listening(&error) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answer => break answer.map_err(unreachable)?,
        }
    };
    if !answer.is_empty() {
        return Err(answer);
    }
    // Without an answer it was the old one, just about to close its socket.
    while !say(socket, "").await.is_ok_and(|answer| !answer.is_empty()) {
        if Instant::now() >= end {
            return Err("the new program does not serve the mount: see its log".into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
