//! `fsck` and `gc`.

use atoll_client::{Admin, ClientConfig, ServerAddress};
use atoll_server::{Server, ServerConfig};
use atoll_wire::{AdminReply, AdminRequest, FsckFinding, FsckReport};
use indicatif::ProgressBar;
use serde_json::json;

use crate::arguments::{Arguments, Fsck};
use crate::{Result, admin, print, unexpected};

/// Ask a server for long work; the terminal shows how far it is.
pub async fn watched(config: &ClientConfig, request: AdminRequest) -> Result<AdminReply> {
    watched_on(&Admin::connect(config).await.map_err(|error| error.to_string())?, request).await
}

/// The same, on a connection that is there.
pub async fn watched_on(admin: &Admin, request: AdminRequest) -> Result<AdminReply> {
    // Draws on a terminal only.
    let bar = ProgressBar::new_spinner();
    let reply = admin.call_watched(request, |progress| {
        if let AdminReply::Progress { phase, done, total } = progress {
            let of = if total > done { format!(" of {total}") } else { String::new() };
            bar.set_message(format!("{phase}: {done}{of}"));
            bar.tick();
        }
    });
    let reply = reply.await;
    bar.finish_and_clear();
    reply.map_err(|error| error.to_string())
}

pub async fn fsck(arguments: &Arguments, options: &Fsck) -> Result<()> {
    let Fsck { volume, repair, read, .. } = options;
    let request = AdminRequest::Fsck { volume: volume.clone(), repair: *repair, read: *read };
    let reply = match &options.data {
        None => watched(&arguments.client()?, request).await?,
        Some(data) => {
            if !data.is_dir() {
                return Err(format!("{}: no data folder of a server", data.display()));
            }
            let config = ServerConfig {
                data: data.clone(),
                store: options.store.clone(),
                key_files: options.keys.key_file.clone(),
                passphrase_file: options.keys.passphrase_file.clone(),
                ..ServerConfig::default()
            };
            let server = Server::start(config).await.map_err(|error| error.to_string())?;
            let address = ServerAddress::Unix(server.addresses().socket.clone());
            let reply = watched(&ClientConfig::new(address), request).await;
            server.stop().await.map_err(|error| error.to_string())?;
            reply?
        }
    };
    let AdminReply::Fsck(report) = reply else { return Err(unexpected()) };
    if arguments.json {
        print(&as_json(&report));
    } else {
        show(&report);
    }
    let left: u64 = report.left.as_ref().unwrap_or(&report.problems).iter().map(|(_, count)| count).sum();
    match (left, repair, report.findings.iter().any(|finding| finding.mendable)) {
        (0, ..) => Ok(()),
        (_, false, true) => Err(format!(
            "volume `{volume}`: {left} problems; unmount it everywhere and run `atoll fsck {volume} --repair`"
        )),
        _ => Err(format!("volume `{volume}`: {left} problems that cannot be mended: see docs/fsck.md")),
    }
}

pub async fn gc(config: &ClientConfig, volume: String, dry_run: bool, as_json: bool) -> Result<()> {
    let request = AdminRequest::CollectGarbage { volume, dry_run };
    let AdminReply::Garbage { objects, bytes } = admin(config, request).await? else {
        return Err(unexpected());
    };
    if as_json {
        print(&json!({"objects": objects, "bytes": bytes, "deleted": !dry_run}));
    } else {
        let verb = if dry_run { "would be" } else { "were" };
        println!("{objects} objects of {bytes} bytes {verb} deleted");
    }
    Ok(())
}

fn kinds(kinds: &[(String, u64)]) -> serde_json::Value {
    kinds.iter().map(|(kind, count)| (kind.clone(), json!(count))).collect::<serde_json::Map<_, _>>().into()
}

fn as_json(report: &FsckReport) -> serde_json::Value {
    let finding = |finding: &FsckFinding| {
        json!({"problem": finding.problem, "inode": finding.inode, "path": finding.path, "text": finding.text,
               "mendable": finding.mendable})
    };
    json!({
        "clean": report.left.as_ref().unwrap_or(&report.problems).is_empty(),
        "refused": report.refused, "inodes": report.inodes, "directories": report.directories, "names": report.names,
        "extents": report.extents, "bytes": report.bytes, "bytes_read": report.bytes_read,
        "segments": report.segments, "garbage_objects": report.garbage_objects, "garbage_bytes": report.garbage_bytes,
        "problems": kinds(&report.problems), "left": report.left.as_deref().map(kinds),
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

fn show(report: &FsckReport) {
    if let Some(refused) = &report.refused {
        println!("cannot be opened: {refused}");
    }
    for FsckFinding { problem, path, text, .. } in &report.findings {
        let path = path.as_ref().map(|path| format!(" ({path})")).unwrap_or_default();
        println!("{problem}: {text}{path}");
    }
    let found: u64 = report.problems.iter().map(|(_, count)| count).sum();
    if found > report.findings.len() as u64 {
        println!("and {} more", found - report.findings.len() as u64);
    }
    println!(
        "{} inodes, {} of them directories; {} names; {} bytes in {} extents; {} segments",
        report.inodes, report.directories, report.names, report.bytes, report.extents, report.segments
    );
    if report.bytes_read > 0 {
        println!("{} stored bytes were read", report.bytes_read);
    }
    if report.garbage_objects > 0 {
        println!("{} objects of {} bytes are garbage", report.garbage_objects, report.garbage_bytes);
    }
    match &report.left {
        Some(left) if left.is_empty() => println!("{found} problems, all mended"),
        Some(left) => println!("{found} problems, {} are left", left.iter().map(|(_, count)| count).sum::<u64>()),
        None if found == 0 => println!("clean"),
        None => println!("{found} problems"),
    }
}
