//! The one binary. Arguments and output live here; everything else is a call
//! into the libraries.

mod arguments;
mod bench;
mod checking;
mod copying;
mod export_file;
mod files;
mod handover;
mod keeper;
mod leases;
mod links;
mod mounting;
mod moving;
mod quotas;
mod serving;
mod signals;
mod snapshots;
mod trash;

use std::process::ExitCode;

use arguments::{Arguments, Command, KeyCommand, LeaseCommand, LogFormat, TokenCommand, VolumeCommand};
use atoll_client::{Admin, ClientConfig};
use atoll_wire::{AdminReply, AdminRequest, QuotaLimits, TokenInfo, VolumeInfo};
use clap::{CommandFactory, Parser};
use files::Remote;
use serde_json::json;

/// What goes wrong is one line for a person.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let arguments = match mounting::helper_arguments(std::env::args_os()) {
        Some(arguments) => Arguments::parse_from(arguments),
        None => Arguments::parse(),
    };
    let filter = match tracing_subscriber::EnvFilter::try_new(&arguments.log) {
        Ok(filter) => filter,
        Err(error) => return finish(Err(format!("--log {}: {error}", arguments.log))),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match arguments.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    if let Command::Keep = &arguments.command {
        return finish(keeper::run());
    }
    if let Command::Mount { source, directory, replace: true, .. } = &arguments.command {
        match mounting::replace(source, directory) {
            Ok(false) => {}
            result => return finish(result.map(drop)),
        }
    }
    if let Command::Mount { source, directory, foreground: false, options, .. } = &arguments.command {
        return finish(mounting::in_background(&arguments, source, directory, options));
    }
    die_whole();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return finish(Err(error.to_string())),
    };
    finish(runtime.block_on(run(arguments)))
}

/// A process in which one task panicked would go on without it, and leave calls unanswered: it ends instead.
fn die_whole() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("atoll: {message}");
            ExitCode::FAILURE
        }
    }
}

/// What a server says that speaks another language than its version tells.
fn unexpected() -> String {
    "the server answered something else".into()
}

fn print(value: &serde_json::Value) {
    println!("{value:#}");
}

async fn admin(config: &ClientConfig, request: AdminRequest) -> Result<AdminReply> {
    let admin = Admin::connect(config).await.map_err(|error| error.to_string())?;
    admin.call(request).await.map_err(|error| error.to_string())
}

async fn run(arguments: Arguments) -> Result<()> {
    let as_json = arguments.json;
    match &arguments.command {
        Command::Up { directory, data, store, keys } => {
            return serving::up(directory, data.clone(), store.clone(), keys).await;
        }
        Command::Key(KeyCommand::Generate { file }) => {
            let id = atoll_keys::generate(file).map_err(|error| error.to_string())?;
            match as_json {
                true => print(&json!({"key": id.to_string(), "file": file})),
                false => println!("key {id} is in {}: keep a copy elsewhere", file.display()),
            }
            return Ok(());
        }
        Command::Serve(serve) => return serving::serve(serve).await,
        Command::Umount { directory } => return mounting::unmount(directory),
        Command::HandoverVersion => {
            println!("{}", handover::VERSION);
            return Ok(());
        }
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Arguments::command(), "atoll", &mut std::io::stdout());
            return Ok(());
        }
        Command::Man { folder } => {
            std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            let pages = clap_mangen::generate_to(Arguments::command(), folder);
            return pages.map_err(|error| format!("{}: {error}", folder.display()));
        }
        _ => {}
    }
    if let Command::Bench(options) = arguments.command {
        return match &options.null_fuse {
            Some(directory) => mounting::null(directory, options.lifetime).await,
            None => bench::run(options, as_json).await,
        };
    }
    if let Command::Fsck(options) = &arguments.command {
        return checking::fsck(&arguments, options).await;
    }
    let config = arguments.client()?;
    match arguments.command {
        Command::Mount { source, directory, options, .. } => {
            mounting::in_foreground(config, &source, &directory, &options).await
        }
        Command::Status { leases: Some(path) } => leases::show(config, &path, as_json).await,
        Command::Lease(LeaseCommand::Revoke { session }) => leases::revoke(&config, session).await,
        Command::Status { leases: None } => {
            let AdminReply::Status(status) = admin(&config, AdminRequest::Status).await? else { return Ok(()) };
            let mounts = mounting::mounts();
            let mut links = Vec::new();
            for volume in status.volumes.iter().filter(|volume| volume.links > 0) {
                links.extend(links::all(&config, &volume.name).await?.into_iter().map(|link| (&volume.name, link)));
            }
            if as_json {
                print(&json!({
                    "version": status.version, "uptime_seconds": status.uptime_seconds, "store": status.store,
                    "sessions": status.sessions,
                    "volumes": status.volumes.iter().map(volume_json).collect::<Vec<_>>(),
                    "links": links.iter().map(|(volume, link)| links::as_value(volume, link)).collect::<Vec<_>>(),
                    "mounts": mounts.iter().map(|m| json!({"dir": m.0, "volume": m.1, "pid": m.2})).collect::<Vec<_>>(),
                }));
                return Ok(());
            }
            println!("server {} at {}, up {} s", status.version, config.address, status.uptime_seconds);
            println!("store {}, {} sessions", status.store, status.sessions);
            status.volumes.iter().for_each(print_volume);
            for (volume, link) in &links {
                println!("link {}", links::line(volume, link));
            }
            for (directory, volume, pid) in mounts {
                println!("mount {directory}: volume {volume}, process {pid}");
            }
            Ok(())
        }
        Command::Trash(command) => trash::run(&config, command, as_json).await,
        Command::Volume(command) => {
            let request = match command {
                VolumeCommand::Create { name, durability, compression, encrypt, link, link_options } => {
                    let link = link.map(|url| link_options.of(url));
                    AdminRequest::VolumeCreate { name, durability, compression, encrypt, link }
                }
                VolumeCommand::RotateKey { name, data } => AdminRequest::VolumeRotateKey { name, data },
                VolumeCommand::Attach { name } => AdminRequest::VolumeAttach { name },
                VolumeCommand::Clone { source, name } => {
                    let (source, snapshot) = atoll_wire::volume_parts(&source);
                    AdminRequest::VolumeClone { source: source.into(), snapshot: snapshot.map(str::to_owned), name }
                }
                VolumeCommand::Export { volume, file } => {
                    return moving::export(&config, &volume, &file, as_json).await;
                }
                VolumeCommand::Import { file, name, store, durability, compression, encrypt } => {
                    let wishes = moving::Wishes { store, durability, compression, encrypt };
                    return moving::import(&config, &file, name, wishes, as_json).await;
                }
                VolumeCommand::Quota { target, bytes, inodes, none } => {
                    let limits = QuotaLimits { bytes: bytes.map(|size| size.as_u64()), inodes };
                    return quotas::set(&config, &target, (!none).then_some(limits)).await;
                }
                VolumeCommand::Quotas { target } => return quotas::list(&config, &target, as_json).await,
                VolumeCommand::Trash { name, retention, off } => {
                    return trash::set(&config, name, retention, off, as_json).await;
                }
                VolumeCommand::List => AdminRequest::VolumeList,
                VolumeCommand::Info { name } => AdminRequest::VolumeInfo { name },
                VolumeCommand::Delete { name } => AdminRequest::VolumeDelete { name },
            };
            if let AdminReply::Volumes(volumes) = admin(&config, request).await? {
                if as_json {
                    print(&volumes.iter().map(volume_json).collect());
                } else {
                    volumes.iter().for_each(print_volume);
                }
            }
            Ok(())
        }
        Command::Token(command) => {
            let once = matches!(command, TokenCommand::Create { .. });
            let request = match command {
                TokenCommand::Create { volume, read_only, events, expires, label } => {
                    AdminRequest::TokenCreate { volume, read_only, events, expires_seconds: expires, label }
                }
                TokenCommand::List => AdminRequest::TokenList,
                TokenCommand::Revoke { id } => AdminRequest::TokenRevoke { id },
            };
            if let AdminReply::Tokens(tokens) = admin(&config, request).await? {
                match (as_json, once) {
                    (true, true) => print(&tokens.first().map(token_json).unwrap_or_default()),
                    (true, false) => print(&tokens.iter().map(token_json).collect()),
                    (false, _) => tokens.iter().for_each(print_token),
                }
            }
            Ok(())
        }
        Command::Snapshot(command) => snapshots::run(&config, command, as_json).await,
        Command::Link(arguments) => links::run(&config, arguments, as_json).await,
        Command::Publish { paths } => links::publish(&config, paths, as_json).await,
        Command::Gc { volume, dry_run } => checking::gc(&config, volume, dry_run, as_json).await,
        Command::Ls { path } => {
            Remote::with(config, &path, async |remote| files::list(remote, &path, as_json).await).await
        }
        Command::Cat { path } => Remote::with(config, &path, async |remote| files::cat(remote, &path).await).await,
        Command::Cp { recursive, source, target } => copying::copy(config, &source, &target, recursive).await,
        Command::Put { source, target } | Command::Get { source, target } => {
            copying::copy(config, &source, &target, false).await
        }
        Command::Rm { recursive, path } => {
            Remote::with(config, &path, async |remote| files::remove(remote, &path, recursive).await).await
        }
        Command::Du { path } => Remote::with(config, &path, async |remote| files::usage(remote, as_json).await).await,
        Command::Up { .. }
        | Command::Key(_)
        | Command::Serve(_)
        | Command::Umount { .. }
        | Command::Keep
        | Command::HandoverVersion
        | Command::Bench(..)
        | Command::Fsck(..)
        | Command::Completions { .. }
        | Command::Man { .. } => Ok(()),
    }
}

fn volume_json(v: &VolumeInfo) -> serde_json::Value {
    json!({"name": v.name, "durability": v.durability, "store": v.store, "compression": v.compression, "clone_of": v.clone_of, "open": v.open,
           "encryption": v.encryption, "wrapping_key": v.wrapping_key,
           "inodes": v.inodes, "bytes": v.bytes,
           "quota_bytes": v.quota_bytes, "quota_inodes": v.quota_inodes,
           "links": v.links, "unpublished": v.unpublished, "sessions": v.sessions})
}

fn print_volume(v: &VolumeInfo) {
    let of = |most: Option<u64>| most.map(|most| format!(" of {most}")).unwrap_or_default();
    let (inodes, bytes) = (of(v.quota_inodes), of(v.quota_bytes));
    let state =
        if v.open { format!("{}{inodes} inodes, {}{bytes} bytes", v.inodes, v.bytes) } else { "not open".to_owned() };
    let clone = v.clone_of.as_ref().map(|parent| format!(", clone of {parent}")).unwrap_or_default();
    let key = v.wrapping_key.as_deref().unwrap_or("unknown");
    let encryption = v.encryption.as_ref().map(|cipher| format!(", {cipher} with key {key}")).unwrap_or_default();
    let links =
        if v.links > 0 { format!(", {} links with {} unpublished", v.links, v.unpublished) } else { String::new() };
    println!(
        "volume {}: durability {}, {state}, {} sessions, {}{clone}{encryption}{links}",
        v.name, v.durability, v.sessions, v.store
    );
}

fn token_json(t: &TokenInfo) -> serde_json::Value {
    json!({"id": t.id, "label": t.label, "volume": t.volume, "read_only": t.read_only, "events": t.events, "expires": t.expires,
           "secret": t.secret})
}

fn print_token(t: &TokenInfo) {
    let volume = t.volume.as_deref().unwrap_or("all volumes");
    let rights = match (t.events, t.read_only) {
        (true, _) => "events",
        (false, true) => "read-only",
        (false, false) => "read-write",
    };
    match &t.secret {
        Some(secret) => println!("{secret}\n(token {}, {volume}, {rights}; the secret is not shown again)", t.id),
        None => println!("{} {volume} {rights} {}", t.id, t.label),
    }
}
