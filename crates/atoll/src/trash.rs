//! `atoll volume trash` and `atoll trash`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use atoll_client::ClientConfig;
use atoll_types::operation::{DirectoryEntry, RenameMode};
use atoll_types::{Errno, Hidden, InodeId, Name, Operation, Timestamp};
use atoll_wire::{AdminReply, AdminRequest, TrashInfo};
use serde_json::json;

use crate::arguments::TrashCommand;
use crate::files::{Remote, explain};
use crate::{Result, admin, print, unexpected};

const HOUR_SECONDS: u64 = 3600;
const DAY_SECONDS: u64 = 24 * HOUR_SECONDS;
/// What comes in one hour is destroyed together.
const RETENTION_SECONDS_MIN: u64 = HOUR_SECONDS;
const RETENTION_SECONDS_MAX: u64 = 3660 * DAY_SECONDS;

/// A number of days or hours, in seconds.
pub fn retention(text: &str) -> Result<u64> {
    let unit = match text.chars().last() {
        Some('h') => HOUR_SECONDS,
        Some('d') => DAY_SECONDS,
        _ => return Err("give it in days or hours, as 7d or 12h".into()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| "give it in days or hours, as 7d or 12h")?;
    let seconds = count.saturating_mul(unit);
    if (RETENTION_SECONDS_MIN..=RETENTION_SECONDS_MAX).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("it is kept for 1 hour to 10 years".into())
    }
}

fn shown(seconds: u64) -> String {
    if seconds.is_multiple_of(DAY_SECONDS) {
        format!("{}d", seconds / DAY_SECONDS)
    } else {
        format!("{}h", seconds / HOUR_SECONDS)
    }
}

/// Set a retention, or none, or show what there is.
pub async fn set(
    config: &ClientConfig,
    name: String,
    retention: Option<u64>,
    is_off: bool,
    as_json: bool,
) -> Result<()> {
    let change = if is_off { Some(None) } else { retention.map(Some) };
    let request = AdminRequest::VolumeTrash { name: name.clone(), change };
    let AdminReply::Trash(TrashInfo { retention_seconds, files, bytes }) = admin(config, request).await? else {
        return Err(unexpected());
    };
    if as_json {
        let all = json!({"volume": name, "retention_seconds": retention_seconds, "files": files, "bytes": bytes});
        print(&all);
    } else {
        let kept = match retention_seconds {
            Some(seconds) => format!("files are kept for {} after their last name went", shown(seconds)),
            None => "files are destroyed when their last name goes".to_owned(),
        };
        println!("volume {name}: {kept}; in the trash are {files} files, {bytes} bytes");
    }
    Ok(())
}

pub async fn run(config: &ClientConfig, command: TrashCommand, as_json: bool) -> Result<()> {
    match command {
        TrashCommand::Empty { volume } => empty(config, volume, as_json).await,
        TrashCommand::List { volume } => {
            Remote::with(config.clone(), &format!("{volume}:/"), async |remote| list(remote, as_json).await).await
        }
        TrashCommand::Restore { volume, entries, to } => {
            let place = format!("{volume}:{}", to.as_deref().unwrap_or("/"));
            let is_placed = to.is_some();
            if is_placed && entries.len() > 1 {
                return Err("--to is for one entry".into());
            }
            Remote::with(config.clone(), &place, async |remote| {
                let mut restored = Vec::new();
                for entry in &entries {
                    let (parent, name) = restore(remote, entry, is_placed).await?;
                    if !as_json {
                        println!("{entry} is {name} in directory {}", parent.0);
                    }
                    restored.push(json!({"entry": entry, "name": name.to_string(), "directory_inode": parent.0}));
                }
                if as_json {
                    print(&json!(restored));
                }
                Ok(())
            })
            .await
        }
    }
}

async fn empty(config: &ClientConfig, volume: String, as_json: bool) -> Result<()> {
    let AdminReply::Trash(TrashInfo { files, bytes, .. }) =
        admin(config, AdminRequest::TrashEmpty { volume: volume.clone() }).await?
    else {
        return Err(unexpected());
    };
    if as_json {
        print(&json!({"volume": volume, "files": files, "bytes": bytes}));
    } else {
        println!("{files} files destroyed, {bytes} bytes");
    }
    Ok(())
}

/// What an entry's name tells: the directory that the file was in, its number, and its name.
fn told(kept: &Name) -> Option<(InodeId, InodeId, Name)> {
    let mut parts = kept.as_bytes().splitn(3, |byte| *byte == b'-');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok().map(InodeId);
    let (parent, inode) = (number()?, number()?);
    Some((parent, inode, Name::new(parts.next()?.to_vec()).ok()?))
}

/// Directories of hours, with what is in them; none where there is no trash.
async fn kept(remote: &Remote) -> Result<Vec<(Name, Vec<DirectoryEntry>)>> {
    let name = Name::new(Hidden::Trash.name()).map_err(|errno| explain(".trash", errno))?;
    let trash = match remote.call(Operation::Lookup { parent: InodeId::ROOT, name }).await {
        Ok(found) => found.attributes().ok_or_else(|| explain(".trash", Errno::EPROTO))?.inode,
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(explain(".trash", errno)),
    };
    let mut kept = Vec::new();
    for hour in remote.list(trash).await? {
        kept.push((hour.name, remote.list(hour.inode).await?));
    }
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(kept)
}

async fn list(remote: &Remote, as_json: bool) -> Result<()> {
    let mut rows = Vec::new();
    for (hour, mut entries) in kept(remote).await? {
        // A file in the trash changes by coming there, for the most part.
        let removed = |entry: &DirectoryEntry| entry.attributes.map_or(Timestamp::default(), |known| known.changed);
        entries.sort_by_key(removed);
        for entry in entries {
            let (path, removed) = (format!("{hour}/{}", entry.name), removed(&entry));
            let bytes = entry.attributes.map_or(0, |known| known.size);
            if !as_json {
                println!("{} {bytes:>12} {path}", shown_time(removed));
                continue;
            }
            let (parent, _, name) = told(&entry.name).unwrap_or((InodeId::NONE, InodeId::NONE, entry.name));
            rows.push(json!({"entry": path, "name": name.to_string(), "directory_inode": parent.0,
                "inode": entry.inode.0, "bytes": bytes, "removed_seconds": removed.seconds}));
        }
    }
    if as_json {
        print(&json!(rows));
    }
    Ok(())
}

fn shown_time(time: Timestamp) -> String {
    chrono::DateTime::from_timestamp(time.seconds, 0).unwrap_or_default().format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Move it out of the trash: to the path of `remote`, or to the directory that it was in. Answers where it is.
async fn restore(remote: &Remote, entry: &str, is_placed: bool) -> Result<(InodeId, Name)> {
    let wrong =
        || format!("{entry}: no entry of the trash; `atoll trash list` shows them, as HOUR/DIRECTORY-INODE-NAME");
    let (hour, kept) = entry.split_once('/').ok_or_else(wrong)?;
    let kept = Name::new(kept.as_bytes().to_vec()).map_err(|_| wrong())?;
    let (old_parent, _, old_name) = told(&kept).ok_or_else(wrong)?;
    let parent = remote.walk(&format!("/.trash/{hour}")).await.map_err(|_| wrong())?.inode;
    let (new_parent, new_name) = match is_placed {
        true => remote.target(Path::new(OsStr::from_bytes(old_name.as_bytes()))).await?,
        false => (old_parent, old_name),
    };
    let rename =
        Operation::Rename { parent, name: kept, new_parent, new_name: new_name.clone(), mode: RenameMode::NoReplace };
    match remote.call(rename).await {
        Ok(_) => Ok((new_parent, new_name)),
        Err(Errno::EEXIST) => Err(format!("{entry}: {new_name} is there again: give another name with --to")),
        Err(Errno::ESTALE) => Err(format!("{entry}: its directory is gone: say with --to where to put it")),
        Err(Errno::ENOENT) => Err(wrong()),
        Err(errno) => Err(explain(entry, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_tells_where_a_file_was() {
        let told = |text: &str| told(&Name::new(text.as_bytes().to_vec()).unwrap());
        let name = |text: &str| Name::new(text.as_bytes().to_vec()).unwrap();
        assert_eq!(told("815-4711-a-b.odt"), Some((InodeId(815), InodeId(4711), name("a-b.odt"))));
        for wrong in ["815-4711", "815-4711-", "x-1-a", "1-x-a", "report.odt", "-1-a"] {
            assert_eq!(told(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_retention_is_read_in_days_and_hours() {
        assert_eq!(retention("7d"), Ok(7 * DAY_SECONDS));
        assert_eq!(retention("1h"), Ok(HOUR_SECONDS));
        assert_eq!(shown(7 * DAY_SECONDS), "7d");
        assert_eq!(shown(36 * HOUR_SECONDS), "36h");
        for bad in ["", "7", "d", "0d", "-1d", "4000d", "7 d", "99999999999999999999d", "7é"] {
            assert!(retention(bad).is_err(), "{bad}");
        }
    }
}
