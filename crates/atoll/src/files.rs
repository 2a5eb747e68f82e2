//! Files without a mount: `ls`, `cat`, `cp`, `rm`, `du`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_client::{ClientConfig, Session};
use atoll_types::limits::IO_BYTES_MAX;
use atoll_types::operation::{DirectoryEntry, OpenFlags, WriteAt};
use atoll_types::{Attributes, ByteRange, Caller, Errno, FileKind, InodeId, Name, Operation, Outcome};
use bytes::Bytes;
use serde_json::json;

use crate::Result;

/// A place in a volume.
struct Remote {
    session: Arc<Session>,
    caller: Caller,
    path: String,
}

fn split(text: &str) -> Option<(&str, &str)> {
    let (volume, path) = text.split_once(':')?;
    (path.starts_with('/') && !volume.contains('/')).then_some((volume, path))
}

fn explain(path: &str, errno: Errno) -> String {
    match errno {
        Errno::EROFS => format!("{path}: read-only: the token does not allow changes"),
        errno => format!("{path}: {errno}"),
    }
}

impl Remote {
    async fn open(config: ClientConfig, text: &str) -> Result<Remote> {
        let (volume, path) = split(text).ok_or_else(|| format!("`{text}`: give VOLUME:/path"))?;
        let session = Session::open(config, volume).await.map_err(|error| error.to_string())?;
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Ok(Remote { session, caller: Caller { uid, gid, pid: 0 }, path: path.to_owned() })
    }

    async fn call(&self, operation: Operation) -> std::result::Result<Outcome, Errno> {
        self.session.call(self.caller, operation).await
    }

    async fn walk(&self, path: &str) -> Result<Attributes> {
        let mut operations = vec![Operation::GetAttributes { inode: InodeId::ROOT }];
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let name = Name::new(part.as_bytes().to_vec()).map_err(|errno| explain(path, errno))?;
            operations.push(Operation::Lookup { parent: InodeId::PREVIOUS, name });
        }
        let mut found = None;
        for chunk in operations.chunks(atoll_types::limits::COMPOUND_OPERATIONS_MAX - 1) {
            let mut chunk = chunk.to_vec();
            if let Some(Attributes { inode, .. }) = found {
                chunk.insert(0, Operation::GetAttributes { inode });
            }
            for result in self.session.compound(self.caller, chunk).await {
                match result {
                    Ok(Outcome::Entry(attributes)) => found = Some(attributes),
                    Ok(_) => {}
                    Err(errno) => return Err(explain(path, errno)),
                }
            }
        }
        found.ok_or_else(|| explain(path, Errno::EIO))
    }

    /// The directory that holds the last part of a path, and that part.
    async fn parent(&self, path: &str) -> Result<(InodeId, Name)> {
        let path = path.trim_end_matches('/');
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        let name = Name::new(last.as_bytes().to_vec()).map_err(|errno| explain(path, errno))?;
        Ok((self.walk(parent).await?.inode, name))
    }

    async fn list(&self, inode: InodeId) -> Result<Vec<DirectoryEntry>> {
        let mut all: Vec<DirectoryEntry> = Vec::new();
        loop {
            let after = all.last().map_or(0, |entry| entry.cookie);
            let page = Operation::ReadDirectory { inode, after, entries_max: 1024, with_attributes: true };
            match self.call(page).await.map_err(|errno| explain(&self.path, errno))? {
                Outcome::Listing { entries, end } => {
                    let stuck = entries.is_empty();
                    all.extend(entries);
                    if end || stuck {
                        return Ok(all);
                    }
                }
                _ => return Err(explain(&self.path, Errno::EPROTO)),
            }
        }
    }

    async fn read(&self, inode: InodeId, shown: &str, to: &mut (dyn Write + Send)) -> Result<()> {
        let mut offset = 0;
        loop {
            let range = ByteRange::at(offset, IO_BYTES_MAX as u64 / 2);
            match self.call(Operation::Read { inode, range }).await {
                Ok(Outcome::Data(bytes)) if bytes.is_empty() => return Ok(()),
                Ok(Outcome::Data(bytes)) => {
                    to.write_all(&bytes).map_err(|error| error.to_string())?;
                    offset += bytes.len() as u64;
                }
                Ok(_) => return Err(explain(shown, Errno::EPROTO)),
                Err(errno) => return Err(explain(shown, errno)),
            }
        }
    }

    async fn write(&self, source: &Path, parent: InodeId, name: Name) -> Result<()> {
        let shown = source.display().to_string();
        let fail = |errno| explain(&name.to_string(), errno);
        let mut file = fs::File::open(source).map_err(|error| format!("{shown}: {error}"))?;
        let flags = OpenFlags { truncate: true, ..OpenFlags::default() };
        let create = Operation::Create { parent, name: name.clone(), permissions: 0o644, umask: 0, flags };
        let Outcome::Created { attributes: Attributes { inode, .. }, .. } = self.call(create).await.map_err(fail)?
        else {
            return Err(fail(Errno::EPROTO));
        };
        let mut offset = 0;
        loop {
            let mut buffer = Vec::with_capacity(IO_BYTES_MAX / 2);
            let read = Read::by_ref(&mut file).take(IO_BYTES_MAX as u64 / 2).read_to_end(&mut buffer);
            if read.map_err(|error| format!("{shown}: {error}"))? == 0 {
                break;
            }
            let length = buffer.len() as u64;
            let (at, data) = (WriteAt::Offset(offset), Bytes::from(buffer));
            self.call(Operation::Write { inode, at, data, drop_privileges: false }).await.map_err(fail)?;
            offset += length;
        }
        self.call(Operation::Release { inode }).await.map_err(fail)?;
        Ok(())
    }
}

pub async fn list(config: ClientConfig, path: &str, as_json: bool) -> Result<()> {
    let remote = Remote::open(config, path).await?;
    let at = remote.walk(&remote.path).await?;
    if at.kind() != FileKind::Directory {
        println!("{path}");
        return Ok(());
    }
    let mut entries = remote.list(at.inode).await?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    if as_json {
        let rows: Vec<_> = entries
            .iter()
            .map(|e| {
                json!({"name": e.name.to_string(), "inode": e.inode.0, "directory": e.kind == FileKind::Directory,
                            "size": e.attributes.map(|a| a.size)})
            })
            .collect();
        println!("{:#}", json!(rows));
        return Ok(());
    }
    for entry in entries {
        let slash = if entry.kind == FileKind::Directory { "/" } else { "" };
        println!("{:>12} {}{slash}", entry.attributes.map_or(0, |a| a.size), entry.name);
    }
    Ok(())
}

pub async fn cat(config: ClientConfig, path: &str) -> Result<()> {
    let remote = Remote::open(config, path).await?;
    let at = remote.walk(&remote.path).await?;
    remote.read(at.inode, path, &mut std::io::stdout()).await
}

pub async fn copy(config: ClientConfig, source: &str, target: &str, recursive: bool) -> Result<()> {
    match (split(source), split(target)) {
        (None, Some((_, path))) => {
            upload(&Remote::open(config, target).await?, Path::new(source), path, recursive).await
        }
        (Some(_), None) => download(&Remote::open(config, source).await?, Path::new(target), recursive).await,
        _ => Err("give one local path and one VOLUME:/path".into()),
    }
}

async fn upload(remote: &Remote, source: &Path, target: &str, recursive: bool) -> Result<()> {
    let metadata = fs::metadata(source).map_err(|error| format!("{}: {error}", source.display()))?;
    let (parent, name) = remote.parent(target).await?;
    if !metadata.is_dir() {
        return remote.write(source, parent, name).await;
    }
    if !recursive {
        return Err(format!("{} is a directory: use cp -r", source.display()));
    }
    let mut open: Vec<(PathBuf, InodeId, Name)> = vec![(source.to_owned(), parent, name)];
    while let Some((path, parent, name)) = open.pop() {
        let shown = path.display().to_string();
        let metadata = fs::symlink_metadata(&path).map_err(|error| format!("{shown}: {error}"))?;
        if metadata.is_symlink() {
            let link = fs::read_link(&path).map_err(|error| format!("{shown}: {error}"))?;
            let target = Bytes::copy_from_slice(link.as_os_str().as_bytes());
            remote.call(Operation::MakeSymlink { parent, name, target }).await.map_err(|e| explain(&shown, e))?;
        } else if metadata.is_dir() {
            let made = Operation::MakeDirectory { parent, name: name.clone(), permissions: 0o755, umask: 0 };
            let inode = match remote.call(made).await {
                Ok(Outcome::Entry(attributes)) => attributes.inode,
                Err(Errno::EEXIST) => match remote.call(Operation::Lookup { parent, name }).await {
                    Ok(Outcome::Entry(attributes)) => attributes.inode,
                    _ => return Err(explain(&shown, Errno::EEXIST)),
                },
                Ok(_) => return Err(explain(&shown, Errno::EPROTO)),
                Err(errno) => return Err(explain(&shown, errno)),
            };
            for entry in fs::read_dir(&path).map_err(|error| format!("{shown}: {error}"))? {
                let entry = entry.map_err(|error| format!("{shown}: {error}"))?;
                let name = Name::new(entry.file_name().as_bytes().to_vec()).map_err(|e| explain(&shown, e))?;
                open.push((entry.path(), inode, name));
            }
        } else if metadata.is_file() {
            remote.write(&path, parent, name).await?;
        } else {
            eprintln!("atoll: {shown}: not a file, left out");
        }
    }
    Ok(())
}

async fn download(remote: &Remote, target: &Path, recursive: bool) -> Result<()> {
    let at = remote.walk(&remote.path).await?;
    if at.kind() == FileKind::Directory && !recursive {
        return Err(format!("{} is a directory: use cp -r", remote.path));
    }
    let mut open = vec![(at.inode, at.kind(), target.to_owned())];
    while let Some((inode, kind, path)) = open.pop() {
        let shown = path.display().to_string();
        let fail = |error: std::io::Error| format!("{shown}: {error}");
        match kind {
            FileKind::Directory => {
                fs::create_dir_all(&path).map_err(fail)?;
                for entry in remote.list(inode).await? {
                    open.push((entry.inode, entry.kind, path.join(std::ffi::OsStr::from_bytes(entry.name.as_bytes()))));
                }
            }
            FileKind::Regular => {
                let mut file = fs::File::create(&path).map_err(fail)?;
                remote.read(inode, &shown, &mut file).await?;
            }
            FileKind::Symlink => {
                let Ok(Outcome::Data(link)) = remote.call(Operation::ReadSymlink { inode }).await else {
                    return Err(explain(&shown, Errno::EIO));
                };
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&link), &path).map_err(fail)?;
            }
            _ => eprintln!("atoll: {shown}: not a file, left out"),
        }
    }
    Ok(())
}

pub async fn remove(config: ClientConfig, path: &str, recursive: bool) -> Result<()> {
    let remote = Remote::open(config, path).await?;
    let at = remote.walk(&remote.path).await?;
    let (parent, name) = remote.parent(&remote.path).await?;
    if at.kind() == FileKind::Directory && !recursive {
        return Err(format!("{path} is a directory: use rm -r"));
    }
    // Children are pushed after their directory, so they go first when the list is undone.
    let mut listed = vec![(parent, name, at.inode, at.kind())];
    let mut next = 0;
    while next < listed.len() {
        let (_, _, inode, kind) = listed[next].clone();
        next += 1;
        if kind == FileKind::Directory {
            for entry in remote.list(inode).await? {
                listed.push((inode, entry.name, entry.inode, entry.kind));
            }
        }
    }
    for (parent, name, _, kind) in listed.into_iter().rev() {
        let shown = name.to_string();
        let operation = match kind {
            FileKind::Directory => Operation::RemoveDirectory { parent, name },
            _ => Operation::Unlink { parent, name },
        };
        remote.call(operation).await.map_err(|errno| explain(&shown, errno))?;
    }
    Ok(())
}

pub async fn usage(config: ClientConfig, path: &str, as_json: bool) -> Result<()> {
    let remote = Remote::open(config, path).await?;
    let at = remote.walk(&remote.path).await?;
    let (mut bytes, mut files, mut open) = (at.allocated, 1u64, Vec::new());
    if at.kind() == FileKind::Directory {
        open.push(at.inode);
    }
    while let Some(inode) = open.pop() {
        for entry in remote.list(inode).await? {
            files += 1;
            bytes += entry.attributes.map_or(0, |a| a.allocated);
            if entry.kind == FileKind::Directory {
                open.push(entry.inode);
            }
        }
    }
    if as_json {
        println!("{:#}", json!({"bytes": bytes, "files": files}));
    } else {
        println!("{bytes} bytes in {files} files and directories");
    }
    Ok(())
}
