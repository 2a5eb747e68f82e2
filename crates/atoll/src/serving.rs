//! `serve` and `up`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_client::{Admin, ClientConfig, ServerAddress};
use atoll_server::{Server, ServerConfig};
use atoll_wire::{AdminReply, AdminRequest};

use crate::Result;
use crate::arguments::{KeyFiles, Serve};
use crate::mounting::{self, Serving};
use crate::signals::asked_to_stop;

const CACHE_MIB: u32 = 256;

pub async fn serve(arguments: &Serve) -> Result<()> {
    let arguments = arguments.with_file()?;
    let config = ServerConfig {
        data: arguments.data.ok_or("where does the data go? give --data, ATOLL_DATA or `data` in --config")?,
        store: arguments.store,
        objects: None,
        listen: arguments.listen,
        socket: arguments.socket,
        http: arguments.http,
        tls_cert: arguments.tls_cert,
        tls_key: arguments.tls_key,
        insecure: arguments.insecure,
        cache_bytes_max: cache_bytes(arguments.cache_mib),
        store_patience: arguments.store_patience.map(|seconds| Duration::from_secs(seconds.into())),
        clock: Default::default(),
        key_files: arguments.key_file,
        passphrase_file: arguments.passphrase_file,
    };
    let server = Server::start(config).await.map_err(|error| error.to_string())?;
    let addresses = server.addresses();
    let mut line = format!("ready unix:{}", addresses.socket.display());
    for more in [addresses.tcp.clone(), addresses.http.map(|http| format!("http://{http}"))].into_iter().flatten() {
        line = format!("{line} {more}");
    }
    println!("{line}");
    asked_to_stop().await?;
    server.stop().await.map_err(|error| error.to_string())
}

fn cache_bytes(mib: Option<u32>) -> u64 {
    u64::from(mib.unwrap_or(CACHE_MIB)) << 20
}

fn default_data() -> PathBuf {
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
    home.unwrap_or_else(|| "/var/lib".into()).join("atoll")
}

pub async fn up(directory: &Path, data: Option<PathBuf>, store: Option<String>, keys: &KeyFiles) -> Result<()> {
    mounting::check_directory(directory)?;
    let data = data.unwrap_or_else(default_data);
    let config = ServerConfig {
        data: data.clone(),
        store,
        cache_bytes_max: cache_bytes(None),
        key_files: keys.key_file.clone(),
        passphrase_file: keys.passphrase_file.clone(),
        ..ServerConfig::default()
    };
    let server = Server::start(config).await.map_err(|error| error.to_string())?;
    let address = ServerAddress::Unix(server.addresses().socket.clone());
    let client = ClientConfig::new(address.clone());
    let admin = Admin::connect(&client).await.map_err(|error| error.to_string())?;
    let listed = admin.call(AdminRequest::VolumeList).await.map_err(|error| error.to_string())?;
    let there = matches!(&listed, AdminReply::Volumes(list) if list.iter().any(|v| v.name == "default"));
    if !there {
        let create = AdminRequest::VolumeCreate {
            name: "default".into(),
            durability: "local".into(),
            compression: "lz4".into(),
            encrypt: false,
            link: None,
        };
        admin.call(create).await.map_err(|error| error.to_string())?;
    }
    drop(admin);
    let Serving { client: volume, mounted, .. } = mounting::mount(client, "default", directory, &[]).await?;
    println!("volume `default` is mounted on {}; its data lies in {}", directory.display(), data.display());
    println!("try: cp -a /usr/include {0}/ && ls {0}", directory.display());
    println!("more: ATOLL_SERVER={address} atoll status; Ctrl-C unmounts and stops");
    let mut gone = tokio::task::spawn_blocking(move || mounted.join());
    let unmounted = tokio::select! {
        stop = asked_to_stop() => { stop?; false }
        _ = &mut gone => true,
    };
    if !unmounted {
        mounting::detach(directory)?;
        let _ = gone.await;
    }
    volume.close().await;
    server.stop().await.map_err(|error| error.to_string())
}
