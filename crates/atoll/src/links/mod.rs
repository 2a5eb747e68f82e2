//! `atoll link` and `atoll publish`.

pub mod arguments;
mod credentials;
mod publish;

use atoll_client::ClientConfig;
use atoll_types::{Errno, FileKind, InodeId, Operation};
use atoll_wire::{AdminReply, AdminRequest, HintsInfo, Link, LinkInfo, QueueInfo, UnpublishedInfo};
use serde_json::json;

use crate::files::{self, Remote};
use crate::quotas::is_root;
use crate::{Result, admin, print, unexpected};
use arguments::{LinkAdd, LinkArguments, LinkCommand};
pub use publish::run as publish;

pub async fn run(config: &ClientConfig, arguments: LinkArguments, as_json: bool) -> Result<()> {
    let Some(command) = arguments.command() else {
        return Err("give s3://BUCKET/PREFIX and VOLUME:/path, or a command: see `atoll link --help`".into());
    };
    match command {
        LinkCommand::Add(link) => add_link(config, link, as_json).await,
        LinkCommand::List { volume } => {
            let links = all(config, &volume).await?;
            match as_json {
                true => print(&links.iter().map(|link| as_value(&volume, link)).collect()),
                false => links.iter().for_each(|link| show(&volume, link)),
            }
            Ok(())
        }
        LinkCommand::Status { target } => {
            let (volume, directory) = directory_of(config, &target).await?;
            let link = one(config, AdminRequest::LinkStatus { volume: volume.clone(), directory }).await;
            let link = link.map_err(|error| format!("{target}: {error}"))?;
            if as_json {
                print(&as_value(&volume, &link));
                return Ok(());
            }
            show(&volume, &link);
            link.waiting.iter().for_each(show_waiting);
            let more = link.unpublished.saturating_sub(link.waiting.len() as u64);
            if more > 0 {
                println!("  and {more} more");
            }
            Ok(())
        }
        LinkCommand::Detach { target, discard } => {
            let (volume, directory) = directory_of(config, &target).await?;
            let detached = admin(config, AdminRequest::LinkDetach { volume, directory, discard }).await;
            detached.map_err(|error| format!("{target}: {error}"))?;
            if as_json {
                print(&json!({"path": target}));
            }
            Ok(())
        }
        LinkCommand::Credentials(command) => credentials::run(config, command, as_json).await,
    }
}

/// All links of a volume, without what waits in them.
pub async fn all(config: &ClientConfig, volume: &str) -> Result<Vec<LinkInfo>> {
    let mut found = Vec::new();
    let mut after = InodeId::NONE;
    loop {
        let AdminReply::Links(links) =
            admin(config, AdminRequest::LinkList { volume: volume.to_owned(), after }).await?
        else {
            return Err(unexpected());
        };
        let Some(last) = links.last() else { break };
        after = last.directory;
        found.extend(links);
    }
    found.sort_by(|one: &LinkInfo, other| one.path.cmp(&other.path));
    Ok(found)
}

async fn one(config: &ClientConfig, request: AdminRequest) -> Result<LinkInfo> {
    match admin(config, request).await? {
        AdminReply::Links(links) => links.into_iter().next().ok_or_else(unexpected),
        _ => Err(unexpected()),
    }
}

async fn directory_of(config: &ClientConfig, target: &str) -> Result<(String, InodeId)> {
    let (volume, _) = files::source(target)?;
    let target = if target.contains(':') { target.to_owned() } else { format!("{target}:/") };
    let walk = async |remote: &Remote| Ok(remote.walk(&remote.path).await?.inode);
    Ok((volume.to_owned(), Remote::with(config.clone(), &target, walk).await?))
}

async fn add_link(config: &ClientConfig, add: LinkAdd, as_json: bool) -> Result<()> {
    let LinkAdd { link, target, options } = add;
    let Some((volume, _)) = files::split(&target) else {
        return Err(format!("`{target}`: give VOLUME:/path, for example work:/data"));
    };
    let volume = volume.to_owned();
    let (directory, is_new) = Remote::with(config.clone(), &target, found_or_made).await?;
    let link = options.of(link);
    let made = one(config, AdminRequest::LinkCreate { volume: volume.clone(), directory, link }).await;
    if made.is_err() && is_new {
        // As if nothing had been asked for; what somebody has put there meanwhile stays.
        let _ = Remote::with(config.clone(), &target, removed).await;
    }
    let made = made.map_err(|error| format!("{target}: {error}"))?;
    match as_json {
        true => print(&as_value(&volume, &made)),
        false => show(&volume, &made),
    }
    Ok(())
}

/// The directory at the path, made if it is not there, and whether it was.
async fn found_or_made(remote: &Remote) -> Result<(InodeId, bool)> {
    if is_root(&remote.path) {
        return Ok((InodeId::ROOT, false));
    }
    let (parent, name) = remote.parent(&remote.path).await?;
    let (found, is_new) = match remote.call(Operation::Lookup { parent, name: name.clone() }).await {
        Err(Errno::ENOENT) => {
            (remote.call(Operation::MakeDirectory { parent, name, permissions: 0o755, umask: 0 }).await, true)
        }
        found => (found, false),
    };
    let found = found.and_then(|found| found.attributes().copied().ok_or(Errno::EPROTO));
    match found {
        Ok(attributes) if attributes.kind() == FileKind::Directory => Ok((attributes.inode, is_new)),
        Ok(_) => Err(files::explain(&remote.path, Errno::ENOTDIR)),
        Err(errno) => Err(files::explain(&remote.path, errno)),
    }
}

async fn removed(remote: &Remote) -> Result<()> {
    let (parent, name) = remote.parent(&remote.path).await?;
    let removed = remote.call(Operation::RemoveDirectory { parent, name }).await;
    removed.map(drop).map_err(|errno| files::explain(&remote.path, errno))
}

pub fn as_value(volume: &str, info: &LinkInfo) -> serde_json::Value {
    let link = &info.link;
    let waiting = |file: &UnpublishedInfo| json!({"inode": file.inode.to_string(), "key": file.key, "why": file.why});
    let capabilities: serde_json::Map<_, _> =
        info.capabilities.iter().map(|(name, can)| (name.clone(), json!(can))).collect();
    json!({"volume": volume, "path": info.path, "directory": info.directory.to_string(), "url": link.url,
           "endpoint": link.endpoint, "region": link.region, "credentials": link.credentials,
           "freshness": link.freshness, "recheck_seconds": link.recheck_seconds, "publish": link.publish, "on_conflict": link.on_conflict,
           "budget": link.budget, "written_bytes": info.written, "sent_bytes": info.sent, "copied_bytes": info.copied,
           "held_back": info.held_back,
           "unpublished": info.unpublished, "deleting": info.deleting, "conflicts": info.conflicts,
           "trouble": info.trouble, "hints": info.hints.as_ref().map(hints_value),
           "queue": info.queue.as_ref().map(|queue| queue_value(link, queue)), "capabilities": capabilities,
           "waiting": info.waiting.iter().map(waiting).collect::<Vec<_>>()})
}

fn hints_value(hints: &HintsInfo) -> serde_json::Value {
    json!({"hints": hints.hints, "last_seconds": hints.last_seconds, "asked_in_doubt": hints.asked_in_doubt,
           "asked_in_time": hints.asked_in_time})
}

fn queue_value(link: &Link, queue: &QueueInfo) -> serde_json::Value {
    json!({"url": link.queue, "messages": queue.messages, "answered_seconds": queue.answered_seconds,
           "trouble": queue.trouble})
}

fn heard(hints: &HintsInfo) -> String {
    match hints.last_seconds {
        Some(seconds) => format!("{} notifications, the last {seconds} s ago", hints.hints),
        None => "no notification yet".into(),
    }
}

/// What was sent for what was written.
fn traffic(info: &LinkInfo) -> String {
    let amplification = match info.written {
        0 => String::new(),
        written => format!(" ({:.1} times)", info.sent as f64 / written as f64),
    };
    let held_back = match info.held_back {
        0 => String::new(),
        files => format!("; {files} files wait for their budget"),
    };
    format!(
        "{} bytes sent for {} written{amplification}, {} copied within the bucket{held_back}",
        info.sent, info.written, info.copied
    )
}

/// `VOLUME:/path is s3://…`, what is not in the bucket, what it has told, and what is wrong.
pub fn line(volume: &str, info: &LinkInfo) -> String {
    let path = info.path.clone().unwrap_or_else(|| format!("(directory {})", info.directory));
    let counts = format!("{} unpublished, {} deleting, {} conflicts", info.unpublished, info.deleting, info.conflicts);
    let heard = info.hints.as_ref().map(|hints| format!(", {}", heard(hints))).unwrap_or_default();
    let queue = info.queue.as_ref().and_then(|queue| queue.trouble.as_ref());
    let troubles: String = info.trouble.iter().chain(queue).map(|trouble| format!("; {trouble}")).collect();
    format!("{volume}:{path} is {}: {counts}{heard}{troubles}", info.link.url)
}

fn show(volume: &str, info: &LinkInfo) {
    println!("{}", line(volume, info));
    let link = &info.link;
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    let (mut freshness, publish) = (text(&link.freshness), text(&link.publish));
    if let Some(seconds) = link.recheck_seconds {
        freshness = format!("{freshness} (recheck {seconds} s)");
    }
    println!("  freshness {freshness}, publish {publish}, on conflict {}", text(&link.on_conflict));
    if info.sent > 0 {
        println!("  {}", traffic(info));
    }
    if let (Some(url), Some(queue)) = (&link.queue, &info.queue) {
        let answered = queue.answered_seconds.map_or("not read yet".into(), |seconds| format!("read {seconds} s ago"));
        println!("  queue {url}: {} messages, {answered}", queue.messages);
    }
    let own = [("endpoint", &link.endpoint), ("region", &link.region), ("credentials", &link.credentials)];
    for (what, value) in own {
        if let Some(value) = value {
            println!("  {what} {value}");
        }
    }
    let named = |wanted: bool| {
        let names = info.capabilities.iter().filter(|(_, can)| *can == wanted).map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    match info.capabilities.is_empty() {
        true => println!("  what the bucket can do is found out before the first write"),
        false => println!("  the bucket has: {}\n  it lacks: {}", named(true), named(false)),
    }
}

fn show_waiting(file: &UnpublishedInfo) {
    let name = file.key.clone().unwrap_or_else(|| format!("(inode {})", file.inode));
    println!("  {name}: {}", file.why);
}
