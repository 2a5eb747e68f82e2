//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use atoll_client::ClientConfig;
use clap::{Args, Parser, Subcommand};

use crate::Result;

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
    #[command(subcommand)]
    pub command: Command,
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
    },
    /// Serve volumes until SIGTERM or Ctrl-C.
    Serve(Serve),
    /// Create, list, show and delete volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Mount a volume.
    Mount {
        volume: String,
        directory: PathBuf,
        /// Stay in the foreground.
        #[arg(long)]
        foreground: bool,
        /// ro, reply_timeout=SECONDS.
        #[arg(short, long = "options", value_delimiter = ',')]
        options: Vec<String>,
    },
    /// Unmount, and wait until the mount's process has gone.
    Umount { directory: PathBuf },
    /// What the server does, and what is mounted here.
    Status,
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
    /// Print a completion script.
    Completions { shell: clap_complete::Shell },
}

#[derive(Args)]
pub struct Serve {
    /// Where the server keeps its log, staging, tokens, and by default the objects.
    #[arg(long)]
    pub data: PathBuf,
    /// file:///FOLDER or s3://BUCKET/PREFIX (credentials and endpoint from AWS_*).
    #[arg(long)]
    pub store: Option<String>,
    /// TCP address for clients.
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Unix socket for clients [default: atoll.sock in the data folder].
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Address of /healthz and /metrics.
    #[arg(long)]
    pub http: Option<SocketAddr>,
    #[arg(long)]
    pub tls_cert: Option<PathBuf>,
    #[arg(long)]
    pub tls_key: Option<PathBuf>,
    /// Allow plain TCP off loopback.
    #[arg(long)]
    pub insecure: bool,
}

#[derive(Subcommand)]
pub enum VolumeCommand {
    Create {
        name: String,
        /// local: the server's disk; object: the object store.
        #[arg(long, default_value = "local")]
        durability: String,
    },
    List,
    Info {
        name: String,
    },
    /// Delete a volume and everything in it.
    Delete {
        name: String,
    },
}

#[derive(Subcommand)]
pub enum TokenCommand {
    Create {
        /// Only this volume; without it the token also administers.
        #[arg(long)]
        volume: Option<String>,
        #[arg(long)]
        read_only: bool,
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

impl Arguments {
    pub fn client(&self) -> Result<ClientConfig> {
        let address = self.server.parse().map_err(|error: atoll_client::ClientError| error.to_string())?;
        let mut config = ClientConfig::new(address);
        config.ca = self.ca.clone();
        config.token = match &self.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
                Some(text.trim().to_owned())
            }
            None => std::env::var("ATOLL_TOKEN").ok().filter(|token| !token.is_empty()),
        };
        Ok(config)
    }
}
