//! `cp`, `put`, `get`: between this machine and a volume, without a mount.
//!
//! Bytes, permissions, modification times and symbolic links are copied; owners are the caller's.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use atoll_client::ClientConfig;
use atoll_types::operation::{AttributeChanges, NewTime, OpenFlags, WriteAt};
use atoll_types::{Attributes, Errno, FileKind, InodeId, Name, Operation, Outcome, Timestamp};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;

use crate::Result;
use crate::files::{CHUNK_BYTES, Remote, explain, progress, split};

/// Files copied at a time.
const CONCURRENCY: usize = 16;

pub async fn copy(config: ClientConfig, source: &str, target: &str, recursive: bool) -> Result<()> {
    match (split(source), split(target)) {
        (None, Some(_)) => {
            Remote::with(config, target, async |remote| upload(remote, Path::new(source), recursive).await).await
        }
        (Some(_), None) => {
            Remote::with(config, source, async |remote| download(remote, Path::new(target), recursive).await).await
        }
        _ => Err("give one local path and one VOLUME:/path".into()),
    }
}

/// A file to copy to the volume.
struct Upload {
    source: PathBuf,
    parent: InodeId,
    name: Name,
    metadata: fs::Metadata,
}

async fn upload(remote: &Remote, source: &Path, recursive: bool) -> Result<()> {
    let metadata = fs::metadata(source).map_err(|error| format!("{}: {error}", source.display()))?;
    if metadata.is_dir() && !recursive {
        return Err(format!("{} is a directory: use cp -r", source.display()));
    }
    let (parent, name) = remote.target(source).await?;
    let mut open = vec![(source.to_owned(), parent, name, metadata)];
    let mut files = Vec::new();
    while let Some((source, parent, name, metadata)) = open.pop() {
        let shown = source.display().to_string();
        let fail = |error: std::io::Error| format!("{shown}: {error}");
        if metadata.is_symlink() {
            let target = Bytes::copy_from_slice(fs::read_link(&source).map_err(fail)?.as_os_str().as_bytes());
            remote.call(Operation::MakeSymlink { parent, name, target }).await.map_err(|e| explain(&shown, e))?;
        } else if metadata.is_dir() {
            let inode = directory(remote, parent, name, metadata.mode(), &shown).await?;
            for entry in fs::read_dir(&source).map_err(fail)? {
                let entry = entry.map_err(fail)?;
                let name = Name::new(entry.file_name().as_bytes().to_vec()).map_err(|e| explain(&shown, e))?;
                open.push((entry.path(), inode, name, entry.metadata().map_err(fail)?));
            }
        } else if metadata.is_file() {
            files.push(Upload { source, parent, name, metadata });
        } else {
            eprintln!("atoll: {shown}: not a file, left out");
        }
    }
    let progress = progress(Some(files.iter().map(|file| file.metadata.len()).sum()));
    let each = stream::iter(files).map(Ok);
    each.try_for_each_concurrent(CONCURRENCY, |file| put(remote, file, &progress)).await?;
    progress.finish_and_clear();
    Ok(())
}

/// The directory of this name, made if it is not there.
async fn directory(remote: &Remote, parent: InodeId, name: Name, mode: u32, shown: &str) -> Result<InodeId> {
    let make = Operation::MakeDirectory { parent, name: name.clone(), permissions: mode & 0o777, umask: 0 };
    let made = match remote.call(make).await {
        Err(Errno::EEXIST) => remote.call(Operation::Lookup { parent, name }).await,
        made => made,
    };
    match made {
        Ok(Outcome::Entry(attributes)) if attributes.kind() == FileKind::Directory => Ok(attributes.inode),
        Ok(_) => Err(explain(shown, Errno::ENOTDIR)),
        Err(errno) => Err(explain(shown, errno)),
    }
}

/// One file; what fits one request takes one round trip.
async fn put(remote: &Remote, file: Upload, progress: &ProgressBar) -> Result<()> {
    let shown = file.source.display().to_string();
    let fail = |error: std::io::Error| format!("{shown}: {error}");
    let mut content = fs::File::open(&file.source).map_err(fail)?;
    let mut chunk = || -> Result<Bytes> {
        let mut buffer = Vec::new();
        content.by_ref().take(CHUNK_BYTES).read_to_end(&mut buffer).map_err(fail)?;
        Ok(buffer.into())
    };
    let flags = OpenFlags { truncate: true, ..OpenFlags::default() };
    let permissions = file.metadata.permissions().mode() & 0o777;
    let create = Operation::Create { parent: file.parent, name: file.name, permissions, umask: 0, flags };
    let write =
        |inode, offset, data| Operation::Write { inode, at: WriteAt::Offset(offset), data, drop_privileges: false };
    let first = chunk()?;
    let mut offset = first.len() as u64;
    let mut results = remote.compound(vec![create, write(InodeId::PREVIOUS, 0, first)]).await.into_iter();
    let Some(created) = results.next() else { return Err(explain(&shown, Errno::EPROTO)) };
    let inode = match created.map_err(|errno| explain(&shown, errno))? {
        Outcome::Created { attributes: Attributes { inode, .. }, .. } => inode,
        _ => return Err(explain(&shown, Errno::EPROTO)),
    };
    let mut copied = results.next().unwrap_or(Err(Errno::EPROTO));
    progress.inc(offset);
    while copied.is_ok() && offset < file.metadata.len() {
        let data = chunk()?;
        if data.is_empty() {
            break;
        }
        let length = data.len() as u64;
        copied = remote.call(write(inode, offset, data)).await;
        offset += length;
        progress.inc(length);
    }
    let modified = Timestamp { seconds: file.metadata.mtime(), nanos: file.metadata.mtime_nsec() as u32 };
    let changes = AttributeChanges { modified: Some(NewTime::At(modified)), ..AttributeChanges::default() };
    let end = vec![Operation::Release { inode }, Operation::SetAttributes { inode, changes }];
    let ended = remote.compound(end).await.into_iter().find_map(std::result::Result::err);
    match (copied.err(), ended) {
        (Some(errno), _) | (None, Some(errno)) => Err(explain(&shown, errno)),
        (None, None) => Ok(()),
    }
}

async fn download(remote: &Remote, target: &Path, recursive: bool) -> Result<()> {
    let at = remote.walk(&remote.path).await?;
    if at.kind() == FileKind::Directory && !recursive {
        return Err(format!("{} is a directory: use cp -r", remote.path));
    }
    let target = match (target.is_dir(), remote.path.trim_end_matches('/').rsplit('/').next()) {
        // Into the directory, as cp does.
        (true, Some(name)) if !name.is_empty() => target.join(name),
        _ => target.to_owned(),
    };
    let mut open = vec![(at, target)];
    let mut files = Vec::new();
    while let Some((at, path)) = open.pop() {
        let shown = path.display().to_string();
        let fail = |error: std::io::Error| format!("{shown}: {error}");
        match at.kind() {
            FileKind::Directory => {
                fs::create_dir_all(&path).map_err(fail)?;
                for entry in remote.list(at.inode).await? {
                    // A name without attributes was removed while the directory was listed.
                    if let Some(attributes) = entry.attributes {
                        open.push((attributes, path.join(std::ffi::OsStr::from_bytes(entry.name.as_bytes()))));
                    }
                }
            }
            FileKind::Regular => files.push((at, path)),
            FileKind::Symlink => {
                let Ok(Outcome::Data(link)) = remote.call(Operation::ReadSymlink { inode: at.inode }).await else {
                    return Err(explain(&shown, Errno::EIO));
                };
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&link), &path).map_err(fail)?;
            }
            _ => eprintln!("atoll: {shown}: not a file, left out"),
        }
    }
    let progress = progress(Some(files.iter().map(|(at, _)| at.size).sum()));
    let each = stream::iter(files).map(Ok);
    each.try_for_each_concurrent(CONCURRENCY, |(at, path)| get(remote, at, path, &progress)).await?;
    progress.finish_and_clear();
    Ok(())
}

async fn get(remote: &Remote, at: Attributes, path: PathBuf, progress: &ProgressBar) -> Result<()> {
    let shown = path.display().to_string();
    let fail = |error: std::io::Error| format!("{shown}: {error}");
    let mut file = fs::File::create(&path).map_err(fail)?;
    remote.read(at.inode, &shown, &mut file, progress).await?;
    file.set_permissions(fs::Permissions::from_mode(at.mode.permissions() & 0o777)).map_err(fail)?;
    // Times before 1970 are left as they are.
    let since = u64::try_from(at.modified.seconds).ok().map(|seconds| Duration::new(seconds, at.modified.nanos));
    match since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)) {
        Some(modified) => file.set_modified(modified).map_err(fail),
        None => Ok(()),
    }
}
