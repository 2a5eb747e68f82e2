//! The command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use atoll_client::ClientConfig;
use atoll_types::SessionId;
use clap::{Args, Parser, Subcommand};

use crate::Result;
use crate::links::arguments::{LinkArguments, LinkOptions};

/// One POSIX volume over object storage that many machines read and write at once.
#[derive(Parser)]
#[command(name = "atoll", version, propagate_version = true)]
pub struct Arguments {
    /// The server: unix:PATH, tcp://HOST:PORT or tls://HOST:PORT.
    #[arg(long, global = true, env = "ATOLL_SERVER", default_value = "unix:/run/atoll/atoll.sock")]
    pub server: String,
    /// File with the token; ATOLL_TOKEN holds the token itself.
    #[arg(long, global = true)]
    pub token_file: Option<PathBuf>,
    /// Certificates to trust for tls://, PEM.
    #[arg(long, global = true)]
    pub ca: Option<PathBuf>,
    /// Print JSON for scripts.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log: error, warn, info, debug, or a filter by target.
    #[arg(long, global = true, env = "ATOLL_LOG", default_value = "warn")]
    pub log: String,
    #[arg(long, global = true, env = "ATOLL_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    #[command(subcommand)]
    pub command: Command,
}

/// One line per event, for people or for machines.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
pub enum Command {
    /// Serve, create the volume `default` and mount it, in one foreground process.
    Up {
        directory: PathBuf,
        /// Where the data lies.
        #[arg(long)]
        data: Option<PathBuf>,
        /// file:///FOLDER or s3://BUCKET/PREFIX.
        #[arg(long)]
        store: Option<String>,
        #[command(flatten)]
        keys: KeyFiles,
    },
    /// Serve volumes until SIGTERM or Ctrl-C.
    Serve(Serve),
    /// Create, list, show and delete volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Keys that a server wraps the keys of encrypted volumes with.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Versions of a volume that stay: made at once, whatever the volume holds, and they cost what changes since.
    /// VOLUME@SNAPSHOT stands for one wherever a volume is named: mount it, list it, copy from it. It is read-only.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Files that are kept after their last name went (`atoll volume trash`): root finds them in `.trash` of every mount.
    #[command(subcommand)]
    Trash(TrashCommand),
    /// Directories whose files are the objects of an S3 bucket: what is in the bucket is there at once, and what is written becomes an
    /// object. `atoll link s3://BUCKET/PREFIX VOLUME:/PATH` is short for `atoll link add`.
    Link(LinkArguments),
    /// Wait until files of linked directories, or all files below such directories, are objects as they are now, and print key, ETag and
    /// version of each. Fails when something cannot be one, or was changed in the bucket, too.
    Publish {
        /// Paths on mounts, or VOLUME:/path.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Mount a volume, or the directory VOLUME:/path of it; a snapshot, VOLUME@SNAPSHOT, read-only. Returns once it is usable.
    Mount {
        #[arg(value_name = "VOLUME[:/PATH]")]
        source: String,
        directory: PathBuf,
        /// Stay in the foreground.
        #[arg(long)]
        foreground: bool,
        /// If the volume is mounted there already, have the process that serves it become this program: after an upgrade,
        /// without anybody who uses the mount noticing. It keeps the options that it was started with.
        #[arg(long)]
        replace: bool,
        /// As in fstab: ro, noatime, nosuid, nodev, noexec, allow_other, noallow_other, keeper, nokeeper,
        /// reply_timeout=SECONDS, server=ADDRESS, token_file=PATH, ca=PATH.
        #[arg(short, long = "options", value_delimiter = ',')]
        options: Vec<String>,
    },
    /// What a program that takes a mount over must understand.
    #[command(hide = true)]
    HandoverVersion,
    /// Wait until the process of a mount is killed, and go on with the mount.
    #[command(hide = true)]
    Keep,
    /// Unmount, and wait until the mount's process has gone.
    Umount { directory: PathBuf },
    /// What the server does, and what is mounted here.
    Status {
        /// Instead: which sessions hold leases on VOLUME:/path, and for how long. Rights are `i` (attributes and bytes) and
        /// `n` (names in a directory).
        #[arg(long, value_name = "VOLUME:/PATH")]
        leases: Option<String>,
    },
    /// Leases: what mounts keep of files and directories.
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Tokens that let clients in over the network.
    #[command(subcommand)]
    Token(TokenCommand),
    /// List VOLUME:/path.
    Ls { path: String },
    /// Print the file VOLUME:/path.
    Cat { path: String },
    /// Copy between this machine and VOLUME:/path.
    Cp {
        #[arg(short, long)]
        recursive: bool,
        source: String,
        target: String,
    },
    /// Copy a local file to VOLUME:/path.
    Put { source: String, target: String },
    /// Copy the file VOLUME:/path to this machine.
    Get { source: String, target: String },
    /// Remove VOLUME:/path.
    Rm {
        #[arg(short, long)]
        recursive: bool,
        path: String,
    },
    /// Bytes and files under VOLUME:/path.
    Du { path: String },
    /// Check a volume, while it is in use. Ends with an error when something is wrong that is not repaired.
    Fsck(Fsck),
    /// Delete objects in the store that nothing refers to: what a crash leaves of uploads. Safe at any time.
    Gc {
        volume: String,
        /// Only count them.
        #[arg(long)]
        dry_run: bool,
    },
    /// Measure a mounted directory beside null FUSE and the local disk.
    Bench(Bench),
    /// Print a completion script.
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages to a folder.
    Man { folder: PathBuf },
}

#[derive(Args)]
pub struct Fsck {
    pub volume: String,
    /// Mend what can be mended. Nobody may use the volume meanwhile.
    #[arg(long, conflicts_with = "read")]
    pub repair: bool,
    /// Read all bytes, too, and compare them with their checksums.
    #[arg(long)]
    pub read: bool,
    /// Without a server: the data folder of one that is stopped.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Where that server keeps its objects [default: `objects` in the data folder].
    #[arg(long, requires = "data")]
    pub store: Option<String>,
    #[command(flatten)]
    pub keys: KeyFiles,
}

/// What a server opens encrypted volumes with.
#[derive(Args)]
pub struct KeyFiles {
    /// File whose lines are keys, 32 bytes each in hexadecimal or base64; can be given again. The first key wraps the keys
    /// of volumes, all unwrap them.
    #[arg(long, env = "ATOLL_KEY_FILE", value_name = "FILE")]
    pub key_file: Vec<PathBuf>,
    /// File whose lines are passphrases that unwrap the keys of volumes; without a key file, the first one wraps.
    #[arg(long, env = "ATOLL_PASSPHRASE_FILE", value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Write a new key to FILE, which must not be there yet, readable for you alone. Keep a copy elsewhere: without it
    /// nobody can read the volumes whose keys it wraps.
    Generate { file: PathBuf },
}

/// Workloads run on the directory, on trees in memory behind the same session loop (null FUSE) and on a local disk in turn, and
/// are printed as ratios; wrong answers are counted and make the command fail. Everything it makes is removed again.
#[derive(Args)]
pub struct Bench {
    /// The directory to measure: a mounted volume, or a folder in one.
    #[arg(required_unless_present = "null_fuse", conflicts_with = "null_fuse")]
    pub directory: Option<PathBuf>,
    /// The same directory through another mount, for the rows about two mounts.
    #[arg(long, value_name = "DIRECTORY")]
    pub second: Option<PathBuf>,
    /// A directory on a disk of this machine, best the one that holds the server's data [default: a temporary one].
    #[arg(long, value_name = "DIRECTORY")]
    pub local: Option<PathBuf>,
    /// Only these rows.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub rows: Vec<String>,
    /// Times each workload runs on each site.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    /// Small workloads: a look, not a measurement.
    #[arg(long)]
    pub quick: bool,
    /// Entries of the large directory [default: 100000, with --quick 20000].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub entries: Option<u32>,
    /// Serve a trivial tree in memory on this directory until it is unmounted: what the kernel and the session
    /// loop cost by themselves.
    #[arg(long, value_name = "DIRECTORY")]
    pub null_fuse: Option<PathBuf>,
    /// Seconds for which the kernel may keep the names and attributes of the tree in memory; from a year on, its pages too.
    #[arg(long, value_name = "SECONDS", requires = "null_fuse", default_value_t = 0)]
    pub lifetime: u64,
}

/// Flags win over the environment, and that over the configuration file, whose keys are the flags' names.
#[derive(Args, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Serve {
    /// Configuration file (TOML) with these flags as keys, for example `store = "s3://bucket/prefix"`.
    #[arg(long, env = "ATOLL_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where the server keeps its log, staging, tokens, and by default the objects.
    #[arg(long, env = "ATOLL_DATA")]
    pub data: Option<PathBuf>,
    /// file:///FOLDER or s3://BUCKET/PREFIX (credentials and endpoint from AWS_*).
    #[arg(long, env = "ATOLL_STORE")]
    pub store: Option<String>,
    /// TCP address for clients.
    #[arg(long, env = "ATOLL_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Unix socket for clients [default: atoll.sock in the data folder].
    #[arg(long, env = "ATOLL_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Address of /healthz, /metrics, and /events, where buckets of links post their notifications.
    #[arg(long, env = "ATOLL_HTTP")]
    pub http: Option<SocketAddr>,
    /// Certificate chain for TLS, PEM.
    #[arg(long, env = "ATOLL_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Private key for TLS, PEM.
    #[arg(long, env = "ATOLL_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Allow plain TCP off loopback.
    #[arg(long)]
    pub insecure: bool,
    /// Memory for cached file data of each volume, in MiB [default: 256].
    #[arg(long, env = "ATOLL_CACHE_MIB")]
    pub cache_mib: Option<u32>,
    /// For how long reads and fsyncs wait for an object store that does not answer, in seconds, before they fail with EIO
    /// [default: 300].
    #[arg(long, env = "ATOLL_STORE_PATIENCE", value_name = "SECONDS")]
    pub store_patience: Option<u32>,
    /// File whose lines are keys, 32 bytes each in hexadecimal or base64; can be given again. The first key wraps the keys
    /// of encrypted volumes, all unwrap them. `atoll key generate` makes one.
    #[arg(long, env = "ATOLL_KEY_FILE", value_name = "FILE")]
    pub key_file: Vec<PathBuf>,
    /// File whose lines are passphrases that unwrap the keys of encrypted volumes; without a key file, the first one wraps.
    #[arg(long, env = "ATOLL_PASSPHRASE_FILE", value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

impl Serve {
    /// These flags, with what they leave open taken from the configuration file.
    pub fn with_file(&self) -> Result<Serve> {
        let file = match &self.config {
            None => Serve::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
                toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?
            }
        };
        Ok(Serve {
            config: None,
            data: self.data.clone().or(file.data),
            store: self.store.clone().or(file.store),
            listen: self.listen.or(file.listen),
            socket: self.socket.clone().or(file.socket),
            http: self.http.or(file.http),
            tls_cert: self.tls_cert.clone().or(file.tls_cert),
            tls_key: self.tls_key.clone().or(file.tls_key),
            insecure: self.insecure || file.insecure,
            cache_mib: self.cache_mib.or(file.cache_mib),
            store_patience: self.store_patience.or(file.store_patience),
            key_file: if self.key_file.is_empty() { file.key_file } else { self.key_file.clone() },
            passphrase_file: self.passphrase_file.clone().or(file.passphrase_file),
        })
    }
}

#[derive(Subcommand)]
pub enum VolumeCommand {
    Create {
        name: String,
        /// local: the server's disk; object: the object store.
        #[arg(long, default_value = "local")]
        durability: String,
        /// lz4: file bytes are packed where that saves an eighth; zstd: the same, smaller and slower; none: they are stored
        /// as they are.
        #[arg(long, default_value = "lz4")]
        compression: String,
        /// Encrypt file bytes, names and attributes before they leave the server (AES-256-GCM). The server needs a key:
        /// see --key-file of `atoll serve`.
        #[arg(long)]
        encrypt: bool,
        /// Link the whole volume: its files are the objects of this bucket.
        #[arg(long, value_name = "s3://BUCKET/PREFIX")]
        link: Option<String>,
        #[command(flatten)]
        link_options: LinkOptions,
    },
    /// Take over a volume in this server's store whose data folder is lost or no longer used; durability `object` only.
    Attach {
        name: String,
    },
    /// Make a volume that begins as another one is, at once: they share what they have in common, and neither sees
    /// what the other changes.
    Clone {
        /// VOLUME, or VOLUME@SNAPSHOT.
        source: String,
        name: String,
    },
    /// Write a volume's metadata to a file, as it is now or at a snapshot. Its bytes stay in the store.
    Export {
        /// VOLUME, or VOLUME@SNAPSHOT: its bytes stay for an import until the snapshot is deleted.
        volume: String,
        /// A new file; `-` is the output.
        file: PathBuf,
    },
    /// Make a volume of what was exported, at this server or another one: bytes are read from where they lie, checked, and
    /// written again. Nothing of the exported volume is needed afterwards.
    Import {
        file: PathBuf,
        name: String,
        /// Where the bytes lie: the store of the exported volume's server [default: as the file says].
        #[arg(long)]
        store: Option<String>,
        /// local or object [default: as what was exported].
        #[arg(long)]
        durability: Option<String>,
        /// lz4, zstd or none [default: as what was exported].
        #[arg(long)]
        compression: Option<String>,
        /// Encrypt the new volume.
        #[arg(long)]
        encrypt: bool,
    },
    List,
    #[command(visible_alias = "show")]
    Info {
        name: String,
    },
    /// Wrap the keys of an encrypted volume anew, with the first key of the server: at once, while the volume is in use.
    RotateKey {
        name: String,
        /// Also encrypt with a new data key what is written from now on. What is there stays as it is.
        #[arg(long)]
        data: bool,
    },
    /// Bound what a volume may hold, or a directory of it with everything below: more fails with EDQUOT, and `df` there shows the
    /// bound. What is there already stays, and is counted first.
    Quota {
        #[arg(value_name = "VOLUME[:/PATH]")]
        target: String,
        /// Bytes of files, as 500MiB or 2TB; holes are not counted, and what is packed counts unpacked.
        #[arg(long, required_unless_present_any = ["inodes", "none"])]
        bytes: Option<bytesize::ByteSize>,
        /// Files, directories and all other inodes.
        #[arg(long)]
        inodes: Option<u64>,
        /// No bound.
        #[arg(long, conflicts_with_all = ["bytes", "inodes"])]
        none: bool,
    },
    /// What a volume and its directories with quotas hold and may hold, or one such directory.
    Quotas {
        #[arg(value_name = "VOLUME[:/PATH]")]
        target: String,
    },
    /// Keep files in `.trash` for a while after their last name went. Without a flag: show whether it is so, and what is there.
    Trash {
        name: String,
        /// For how long, in days or hours, as 7d or 12h.
        #[arg(long, value_parser = crate::trash::retention)]
        retention: Option<u64>,
        /// Destroy files when their last name goes. What is in the trash stays: `atoll trash empty` destroys it.
        #[arg(long, conflicts_with = "retention")]
        off: bool,
    },
    /// Delete a volume and everything in it.
    Delete {
        name: String,
    },
}

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Keep the volume as it is now. Everything that has returned on any mount is in it.
    Create {
        volume: String,
        /// [default: the time, as 2026-01-31T23.59.59Z]
        name: Option<String>,
    },
    /// Oldest first.
    List { volume: String },
    /// Delete a snapshot, and what it alone refers to. Nobody may have it mounted.
    Delete { volume: String, name: String },
    /// Turn the volume back to what it was. Nobody may have it mounted. All snapshots stay; make one first to keep what is
    /// there now.
    Restore { volume: String, name: String },
}

#[derive(Subcommand)]
pub enum TrashCommand {
    /// What is in the trash, oldest first: when it was removed (UTC), its size in bytes, and its entry.
    List { volume: String },
    /// Put files back into the directories that they were removed from.
    Restore {
        volume: String,
        /// As `atoll trash list` shows them: HOUR/DIRECTORY-INODE-NAME.
        #[arg(required = true)]
        entries: Vec<String>,
        /// Put it there: a path in the volume, of a directory or with its new name.
        #[arg(long, value_name = "/PATH")]
        to: Option<String>,
    },
    /// Destroy everything that is in the trash, however long it has been there.
    Empty { volume: String },
}

#[derive(Subcommand)]
pub enum TokenCommand {
    Create {
        /// Only this volume; without it the token also administers.
        #[arg(long)]
        volume: Option<String>,
        #[arg(long)]
        read_only: bool,
        /// For whoever posts notifications of buckets to /events of --http: it lets in nobody else, and nowhere else.
        #[arg(long, conflicts_with = "read_only")]
        events: bool,
        /// Seconds until it expires.
        #[arg(long)]
        expires: Option<u64>,
        #[arg(long, default_value = "")]
        label: String,
    },
    List,
    Revoke {
        id: String,
    },
}

#[derive(Subcommand)]
pub enum LeaseCommand {
    /// End a session: what it keeps, has open and has locked is given back. Its mount goes on in a new session.
    Revoke {
        /// As `status --leases` shows it, for example s1b56.
        session: SessionId,
    },
}

impl Arguments {
    pub fn client(&self) -> Result<ClientConfig> {
        let address = self.server.parse().map_err(|error: atoll_client::ClientError| error.to_string())?;
        let mut config = ClientConfig::new(address);
        config.ca = self.ca.clone();
        config.token = match &self.token_file {
            Some(path) => Some(read_token(path)?),
            None => std::env::var("ATOLL_TOKEN").ok().filter(|token| !token.is_empty()),
        };
        Ok(config)
    }
}

pub fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}
