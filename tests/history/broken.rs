//! A mount that breaks its promises: its kernel keeps names and attributes for a
//! fixed time, whatever others change meanwhile. The checker must find it out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_client::{ClientConfig, ServerAddress, Session};
use atoll_fuse::{Lifetimes, MountOptions, VolumeFs, WithoutLeases};

/// `--broken-mount VOLUME DIRECTORY SERVER` makes this program such a mount.
pub const FLAG: &str = "--broken-mount";

const LIFETIME: Duration = Duration::from_secs(1);

/// Serve until unmounted.
pub fn serve(arguments: &[OsString]) -> Result<(), String> {
    let [volume, directory, server] = arguments else { return Err(format!("{FLAG} VOLUME DIRECTORY SERVER")) };
    let text = |argument: &OsString| argument.clone().into_string().map_err(|_| "not UTF-8".to_owned());
    let (volume, server) = (text(volume)?, text(server)?);
    let address: ServerAddress = server.parse().map_err(|error| format!("{error}"))?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let session = runtime.block_on(Session::open(ClientConfig::new(address), &volume));
    let session = session.map_err(|error| error.to_string())?;
    let options = MountOptions {
        directory: PathBuf::from(directory),
        source: volume,
        allow_other: true,
        threads: 3,
        ..MountOptions::default()
    };
    let lifetimes = Lifetimes { entry: LIFETIME, attributes: LIFETIME };
    let remote = WithoutLeases { session: session.clone(), lifetimes };
    let mounted = atoll_fuse::mount(&options, Arc::new(VolumeFs::new(remote)));
    let mounted = mounted.map_err(|error| error.to_string())?;
    println!("ready");
    mounted.join();
    runtime.block_on(session.close());
    Ok(())
}
