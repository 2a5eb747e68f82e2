//! `atoll publish`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use atoll_client::{Admin, ClientConfig};
use atoll_types::InodeId;
use atoll_wire::{AdminReply, AdminRequest, PublishedInfo};
use serde_json::json;

use crate::files::{self, Remote};
use crate::{Result, print, unexpected};

/// Have everything at these paths in its bucket, and show as what. Goes on behind what cannot be, and fails in the end.
pub async fn run(config: &ClientConfig, paths: Vec<PathBuf>, as_json: bool) -> Result<()> {
    let (mut shown, mut failed) = (Vec::new(), 0);
    for path in &paths {
        let result = publish(config, path).await;
        let objects = result.as_deref().unwrap_or_default();
        if as_json {
            let objects = objects.iter().map(as_value).collect::<Vec<_>>();
            shown.push(json!({"path": path.display().to_string(), "objects": objects, "error": result.as_ref().err()}));
        } else {
            objects.iter().for_each(|object| println!("{}", line(object)));
        }
        if let Err(error) = &result {
            eprintln!("atoll: {}: {error}", path.display());
            failed += 1;
        }
    }
    if as_json {
        print(&shown.into());
    }
    match (failed, paths.len()) {
        (0, _) => Ok(()),
        (_, 1) => Err("it is not published".into()),
        (_, paths) => Err(format!("{failed} of {paths} paths are not published")),
    }
}

async fn publish(config: &ClientConfig, path: &Path) -> Result<Vec<PublishedInfo>> {
    let (volume, inode) = match path.to_str().and_then(|text| Some((text, files::split(text)?.0))) {
        Some((text, volume)) => {
            let walk = async |remote: &Remote| Ok(remote.walk(&remote.path).await?.inode);
            (volume.to_owned(), Remote::with(config.clone(), text, walk).await?)
        }
        None => {
            let path = path.to_owned();
            let found = tokio::task::spawn_blocking(move || on_mount(&path)).await;
            found.map_err(|error| error.to_string())??
        }
    };
    let admin = Admin::connect(config).await.map_err(|error| error.to_string())?;
    let mut published = Vec::new();
    let part = |part| {
        if let AdminReply::Published { objects, .. } = part {
            published.extend(objects);
        }
    };
    let last = admin.call_watched(AdminRequest::Publish { volume, inode }, part).await;
    match last.map_err(|error| error.to_string())? {
        AdminReply::Published { objects, .. } => published.extend(objects),
        _ => return Err(unexpected()),
    }
    Ok(published)
}

/// The volume that is mounted where a path is, and the inode there. The server has what was written to it.
fn on_mount(path: &Path) -> Result<(String, InodeId)> {
    let text = |error: std::io::Error| error.to_string();
    let real = path.canonicalize().map_err(text)?;
    let metadata = fs::symlink_metadata(&real).map_err(text)?;
    let mounts = fs::read("/proc/self/mountinfo").map_err(text)?;
    let Some(volume) = volume_on(&String::from_utf8_lossy(&mounts), metadata.dev()) else {
        return Err("no volume is mounted there: give a path on a mount, or VOLUME:/path".into());
    };
    flush(&real, &metadata).map_err(text)?;
    Ok((volume, InodeId(metadata.ino())))
}

/// What the kernel and the mount still hold goes to the server.
fn flush(path: &Path, metadata: &fs::Metadata) -> std::io::Result<()> {
    if metadata.is_file() {
        return File::open(path)?.sync_all();
    }
    let directory = if metadata.is_dir() { path } else { path.parent().unwrap_or(path) };
    let directory = File::open(directory)?;
    // Of all files there; then everything that was changed before.
    rustix::fs::syncfs(&directory)?;
    directory.sync_all()
}

/// The volume whose mount is the device of this number, by what `/proc/self/mountinfo` says.
fn volume_on(mounts: &str, device: u64) -> Option<String> {
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let is_it = mount.split(' ').nth(2) == Some(wanted.as_str()) && kind.next() == Some("fuse.atoll");
        let source = if is_it { kind.next() } else { None }?;
        Some(source.split(':').next().unwrap_or(source).to_owned())
    })
}

fn as_value(object: &PublishedInfo) -> serde_json::Value {
    json!({"key": object.key, "etag": object.etag, "version": object.version})
}

fn line(object: &PublishedInfo) -> String {
    let version = object.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
    format!("{} {}{version}", object.key, object.etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_device() {
        let mounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                      90 22 0:50 / /mnt/a rw shared:7 master:2 - fuse.atoll work rw,user_id=0\n\
                      91 22 0:51 / /mnt/with\\040space rw - fuse.atoll data:/a\\040b rw\n\
                      92 22 0:52 / /mnt/other rw - fuse.sshfs work rw\n";
        let volume = |minor| volume_on(mounts, rustix::fs::makedev(0, minor));
        assert_eq!(volume(50).as_deref(), Some("work"));
        assert_eq!(volume(51).as_deref(), Some("data"));
        assert_eq!(volume(52), None);
        assert_eq!(volume(53), None);
        assert_eq!(volume_on(mounts, rustix::fs::makedev(8, 1)), None);
    }
}
