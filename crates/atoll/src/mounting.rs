//! `mount` and `umount`.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_client::{Chronicle, Client, ClientConfig, ClientError};
use atoll_fuse::{KernelCaches, Lifetimes, MountOptions, Mounted, NullRemote, VolumeFs};
use atoll_types::{Caller, Errno, FileKind, InodeId, Name, Operation};

use crate::Result;
use crate::arguments::{Arguments, LogFormat, read_token};
use crate::files;
use crate::handover::{self, Handover, Served};
use crate::keeper::{self, Keeper, Kept};
use crate::signals::asked_to_stop;

/// How long `umount` waits for the mount's process.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(30);
const THREADS: usize = 3;

pub fn check_directory(directory: &Path) -> Result<()> {
    let shown = directory.display();
    match std::fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(format!("{shown} is not a directory: choose an empty one to mount on")),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {
            Err(format!("the process of an earlier mount on {shown} is gone: `atoll umount {shown}` first"))
        }
        Err(error) => Err(format!("{shown}: {error}: make the directory first")),
    }
}

/// What `-o` and fstab may say.
fn parse(options: &[String], config: &mut ClientConfig, mount: &mut MountOptions) -> Result<()> {
    for option in options.iter().filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("reply_timeout", seconds)) => {
                let seconds = seconds.parse().map_err(|_| format!("reply_timeout={seconds}: give whole seconds"))?;
                config.reply_timeout = Duration::from_secs(seconds);
            }
            Some(("server", server)) => config.address = server.parse().map_err(|e: ClientError| e.to_string())?,
            Some(("token_file", path)) => config.token = Some(read_token(Path::new(path))?),
            Some(("ca", path)) => config.ca = Some(path.into()),
            _ => match option.as_str() {
                "ro" => mount.read_only = true,
                "nosuid" => mount.no_suid = true,
                "nodev" => mount.no_devices = true,
                "noexec" => mount.no_exec = true,
                "noatime" => mount.no_access_times = true,
                "keeper" => config.outlives = true,
                "nokeeper" => config.outlives = false,
                "allow_other" => mount.allow_other = true,
                "noallow_other" => mount.allow_other = false,
                // The defaults, and what fstab says to others.
                "rw" | "suid" | "dev" | "exec" | "relatime" | "defaults" | "_netdev" | "auto" | "noauto" | "nofail"
                | "user" | "users" | "nouser" => {}
                other if other.starts_with("x-") || other.starts_with("comment=") => {}
                other => {
                    return Err(format!(
                        "no mount option `{other}`: there are ro, noatime, nosuid, nodev, noexec, allow_other, \
                         noallow_other, keeper, nokeeper, reply_timeout=SECONDS, server=ADDRESS, token_file=PATH, ca=PATH"
                    ));
                }
            },
        }
    }
    Ok(())
}

/// A mount, and what serves it.
pub struct Serving {
    pub client: Client,
    pub mounted: Mounted,
    filesystem: Arc<VolumeFs>,
}

/// Connect to a volume and mount it, or the directory VOLUME:/path of it.
pub async fn mount(mut config: ClientConfig, source: &str, directory: &Path, options: &[String]) -> Result<Serving> {
    check_directory(directory)?;
    let (volume, path) = files::source(source)?;
    let mut mount = mount_options(source, directory);
    parse(options, &mut config, &mut mount)?;
    let client = Client::open(config, volume).await.map_err(|error| error.to_string())?;
    mount.read_only |= client.session().is_read_only();
    let mounting = async {
        let root = find_directory(&client, path).await.map_err(|why| format!("cannot mount `{source}`: {why}"))?;
        let filesystem = Arc::new(VolumeFs::with_recalls(client.clone()).rooted_at(root));
        Ok((attach(mount, filesystem.clone()).await?, filesystem))
    };
    match mounting.await {
        Ok((mounted, filesystem)) => {
            client.attach(Arc::new(KernelCaches::new(mounted.notifier())));
            Ok(Serving { client, mounted, filesystem })
        }
        Err(error) => {
            client.close().await;
            Err(error)
        }
    }
}

/// The number of requests of a mount that has no kernel yet to number them.
const OWN_REQUEST: u64 = 2;

/// The directory at a path of a volume that is not mounted yet.
async fn find_directory(client: &Client, path: &str) -> Result<InodeId> {
    let mut found = InodeId::ROOT;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let name = Name::new(part.as_bytes().to_vec()).map_err(|errno| format!("`{part}`: {errno}"))?;
        let (sender, answer) = tokio::sync::oneshot::channel();
        let lookup = Operation::Lookup { parent: found, name };
        client.submit(OWN_REQUEST, Caller::default(), lookup, Box::new(|answer| drop(sender.send(answer.result))));
        let result =
            answer.await.unwrap_or(Err(Errno::EIO)).and_then(|found| found.attributes().copied().ok_or(Errno::EPROTO));
        let attributes = result.map_err(|errno| match errno {
            Errno::ENOENT => format!("there is no `{part}`: make the directory first"),
            errno => format!("`{part}`: {errno}"),
        })?;
        if attributes.kind() != FileKind::Directory {
            return Err(format!("`{part}` is not a directory: mount the one that holds it"));
        }
        found = attributes.inode;
    }
    Ok(found)
}

/// Go on with a mount that the program before has served.
async fn take_over(mut config: ClientConfig, source: &str, options: &[String], handover: Handover) -> Result<Serving> {
    let Handover { directory, root, client, filesystem: state, connection } = handover;
    let (volume, _) = files::source(source)?;
    parse(options, &mut config, &mut mount_options(source, &directory))?;
    let end = Instant::now() + config.reply_timeout;
    let client = loop {
        match Client::take_over(config.clone(), volume, client.clone()).await {
            Ok(client) => break client,
            Err(ClientError::Unreachable { .. }) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    let filesystem = Arc::new(VolumeFs::with_recalls(client.clone()).rooted_at(root));
    filesystem.restore(state);
    let mounted = atoll_fuse::take_over(&connection, filesystem.clone());
    client.attach(Arc::new(KernelCaches::new(mounted.notifier())));
    Ok(Serving { client, mounted, filesystem })
}

/// Go on with a mount whose process was killed. The client is still to [begin](Client::begin).
fn revive(mut config: ClientConfig, source: &str, options: &[String], kept: &Kept) -> Result<Serving> {
    let (volume, _) = files::source(source)?;
    parse(options, &mut config, &mut mount_options(source, &kept.directory))?;
    let client = Client::revive(config, volume, kept.chronicle()?);
    let filesystem = Arc::new(VolumeFs::with_recalls(client.clone()).rooted_at(kept.root));
    filesystem.revive();
    // Before there is a server: who is killed need not wait for that.
    let mounted = atoll_fuse::take_over(&kept.connection, filesystem.clone());
    Ok(Serving { client, mounted, filesystem })
}

/// Whether the kernel sends requests again that were read and not answered: then a mount can outlive its process.
fn sends_again() -> bool {
    const SINCE: (u32, u32) = (6, 9);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map_while(|number| number.trim().parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= SINCE
}

fn mount_options(source: &str, directory: &Path) -> MountOptions {
    MountOptions {
        directory: directory.to_owned(),
        source: source.to_owned(),
        allow_other: rustix::process::geteuid().is_root(),
        threads: THREADS,
        ..MountOptions::default()
    }
}

async fn attach(options: MountOptions, filesystem: Arc<VolumeFs>) -> Result<Mounted> {
    let mounted = tokio::task::spawn_blocking(move || atoll_fuse::mount(&options, filesystem));
    mounted.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Serve a tree in memory until it is unmounted. It changes through its one kernel only, so any lifetime is right.
pub async fn null(directory: &Path, lifetime_seconds: u64) -> Result<()> {
    check_directory(directory)?;
    let lifetime = Duration::from_secs(lifetime_seconds);
    let tree = Arc::new(NullRemote::keeping(Lifetimes { entry: lifetime, attributes: lifetime }));
    let options = MountOptions {
        directory: directory.to_owned(),
        source: "null".into(),
        threads: THREADS,
        ..MountOptions::default()
    };
    let mounted = attach(options, Arc::new(VolumeFs::new(tree))).await?;
    println!("ready");
    tokio::task::spawn_blocking(move || mounted.join()).await.map_err(|error| error.to_string())
}

/// The arguments of `mount.atoll` and `mount.fuse.atoll`, which `mount` calls as `SOURCE DIRECTORY [-sfnv] [-o OPTIONS]`,
/// in the words of `atoll mount`. `None` when this was called by another name.
pub fn helper_arguments(mut arguments: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let called = PathBuf::from(arguments.next()?);
    if !matches!(called.file_name()?.to_str()?, "mount.atoll" | "mount.fuse.atoll") {
        return None;
    }
    let mut rest: Vec<OsString> = vec!["atoll".into(), "mount".into()];
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-o") => {
                rest.push(argument);
                rest.extend(arguments.next());
            }
            // The type that `mount` was told, which says nothing new.
            Some("-t") => drop(arguments.next()),
            Some("-s" | "-f" | "-n" | "-v" | "-w" | "-sfnv") => {}
            Some("-r") => rest.extend(["-o".into(), "ro".into()]),
            _ => rest.push(argument),
        }
    }
    Some(rest)
}

fn state_folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    match (runtime, rustix::process::geteuid()) {
        (Some(runtime), _) => runtime.join("atoll-mounts"),
        (None, user) if user.is_root() => "/run/atoll-mounts".into(),
        (None, user) => format!("/tmp/atoll-mounts-{}", user.as_raw()).into(),
    }
}

/// Mounts served by processes of this machine: directory, volume with the path in it, process.
pub fn mounts() -> Vec<(String, String, u32)> {
    recorded().into_iter().filter(|(.., process)| !is_dead(*process)).collect()
}

/// The same with those whose process was killed.
fn recorded() -> Vec<(String, String, u32)> {
    let Ok(entries) = std::fs::read_dir(state_folder()) else { return Vec::new() };
    let parse = |entry: std::fs::DirEntry| -> Option<(String, String, u32)> {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let text = std::fs::read_to_string(entry.path()).ok()?;
        let (volume, directory) = text.split_once('\n')?;
        Some((directory.to_owned(), volume.to_owned(), pid))
    };
    entries.flatten().filter_map(parse).collect()
}

pub async fn in_foreground(config: ClientConfig, source: &str, directory: &Path, options: &[String]) -> Result<()> {
    let (handover, kept) = (handover::received()?, keeper::received()?);
    let is_first = handover.is_none() && kept.is_none();
    let short_lives = kept.as_ref().map(|kept| kept.short_lives).unwrap_or_default();
    let is_revived = handover.is_none() && kept.is_some();
    let config = ClientConfig { outlives: sends_again(), ..config };
    // Nobody serves a directory that is being taken over: it must not be looked at.
    let (directory, serving) = match (handover, kept) {
        (Some(handover), _) => (handover.directory.clone(), take_over(config, source, options, handover).await?),
        (None, Some(kept)) => {
            let serving = revive(config, source, options, &kept)?;
            for left in [state_folder().join(kept.process.to_string()), socket_of(kept.process)] {
                let _ = std::fs::remove_file(left);
            }
            (kept.directory, serving)
        }
        (None, None) => {
            let directory = directory.canonicalize().map_err(|error| format!("{}: {error}", directory.display()))?;
            let serving = mount(config, source, &directory, options).await?;
            (directory, serving)
        }
    };
    let Serving { client, mounted, filesystem } = serving;
    let connection = mounted.connection();
    let start = |chronicle: &Arc<Chronicle>| {
        let keeper =
            Keeper::start(directory.clone(), connection.clone(), filesystem.root(), chronicle.clone(), short_lives);
        keeper.inspect_err(|error| eprintln!("atoll: {error}: the mount does not outlive its process")).ok()
    };
    let keeper = client.chronicle().filter(|_| connection.can_be_handed_over()).and_then(start);
    if is_revived {
        // With a keeper already: this process may be killed, too.
        client.begin(Arc::new(KernelCaches::new(mounted.notifier())));
    }
    let folder = state_folder();
    let (state, socket) = (folder.join(std::process::id().to_string()), socket_of(std::process::id()));
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(&state, format!("{source}\n{}", directory.display()));
    let at = directory.clone();
    let served = Served { directory, client: client.clone(), filesystem, connection, keeper: keeper.clone() };
    let listening = handover::listen(socket.clone(), served);
    tokio::spawn(async move {
        let Err(error) = listening.await;
        eprintln!("atoll: the process of this mount cannot be replaced: {error}");
    });
    tokio::spawn(unmount_when_asked(at));
    if is_first {
        println!("ready");
    }
    let joined = tokio::task::spawn_blocking(move || mounted.join()).await;
    client.close().await;
    keeper.iter().for_each(|keeper| keeper.dismiss());
    let _ = std::fs::remove_file(state);
    let _ = std::fs::remove_file(socket);
    joined.map_err(|error| error.to_string())
}

/// Unmount at SIGTERM or Ctrl-C; the process ends with the mount. One that is in use is taken away when that is said a
/// second time.
async fn unmount_when_asked(directory: PathBuf) {
    if asked_to_stop().await.is_err() {
        return;
    }
    let at = directory.clone();
    let detached = tokio::task::spawn_blocking(move || detach(&at));
    tokio::select! {
        detached = detached => {
            let Ok(Err(error)) = detached else { return };
            eprintln!("atoll: {error}; say it again to end all the same");
            let _ = asked_to_stop().await;
        }
        _ = asked_to_stop() => {}
    }
    let _ = tokio::task::spawn_blocking(move || atoll_fuse::abandon(&directory)).await;
}

/// Where the process of a mount listens.
fn socket_of(process: u32) -> PathBuf {
    state_folder().join(format!("{process}.socket"))
}

/// Have the process that serves a volume on a directory become this program. False when there is none.
pub fn replace(source: &str, directory: &Path) -> Result<bool> {
    let shown = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()).display().to_string();
    let Some((_, mounted, process)) = mounts().into_iter().find(|(at, ..)| *at == shown) else { return Ok(false) };
    let whole = |text: &str| -> Result<(String, String)> {
        let (volume, path) = files::source(text)?;
        Ok((volume.to_owned(), path.trim_end_matches('/').to_owned()))
    };
    if whole(&mounted)? != whole(source)? {
        return Err(format!("`{mounted}` is mounted on {shown}, not `{source}`"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(handover::replace(&socket_of(process)))?;
    Ok(true)
}

/// Run the mount in a process of its own and return once it is usable.
pub fn in_background(arguments: &Arguments, source: &str, directory: &Path, options: &[String]) -> Result<()> {
    check_directory(directory)?;
    let binary = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(binary);
    command.arg("--server").arg(&arguments.server).arg("--log").arg(&arguments.log);
    if arguments.log_format == LogFormat::Json {
        command.args(["--log-format", "json"]);
    }
    if let Some(path) = &arguments.token_file {
        command.arg("--token-file").arg(path.canonicalize().unwrap_or_else(|_| path.clone()));
    }
    if let Some(path) = &arguments.ca {
        command.arg("--ca").arg(path.canonicalize().unwrap_or_else(|_| path.clone()));
    }
    command.arg("mount").arg(source).arg(directory).arg("--foreground");
    if !options.is_empty() {
        command.arg("--options").arg(options.join(","));
    }
    let log = std::env::temp_dir().join(format!("atoll-mount-{}.log", std::process::id()));
    let errors = std::fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).process_group(0);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(&log);
    if line.trim() == "ready" {
        return Ok(());
    }
    let _ = child.wait();
    Err(said.trim().strip_prefix("atoll: ").unwrap_or(said.trim()).to_owned())
}

/// Unmount; when the mount is busy for a moment only, wait for that.
pub fn detach(directory: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match atoll_fuse::unmount(directory) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= end => return Err(error.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// True for a process that was killed, also while the kernel still holds what it was doing.
pub fn is_dead(process: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return true };
    // The state follows the name, which is in parentheses and may hold any others.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

pub fn unmount(directory: &Path) -> Result<()> {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let shown = directory.display().to_string();
    let here = table.lines().any(|line| {
        let mut words = line.split(' ');
        words.nth(1) == Some(shown.as_str()) && words.next() == Some("fuse.atoll")
    });
    if !here {
        return Err(format!("no volume is mounted on {shown}"));
    }
    let (dead, living): (Vec<u32>, Vec<u32>) = recorded()
        .into_iter()
        .filter(|(mounted, ..)| *mounted == shown)
        .map(|(.., process)| process)
        .partition(|process| is_dead(*process));
    let process = living.first().copied();
    if process.is_none() && !dead.is_empty() {
        // Nobody will ever answer those who wait for this mount.
        atoll_fuse::abandon(&directory);
        for process in dead {
            let _ = std::fs::remove_file(state_folder().join(process.to_string()));
        }
        return Ok(());
    }
    detach(&directory)?;
    let end = Instant::now() + UNMOUNT_TIMEOUT;
    while let Some(pid) = process
        && state_folder().join(pid.to_string()).exists()
        && !is_dead(pid)
    {
        if Instant::now() >= end {
            return Err(format!("unmounted, but process {pid} has not ended"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
