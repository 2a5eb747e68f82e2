//! Files without a mount: `ls`, `cat`, `rm`, `du`.

use std::io::Write;
use std::sync::Arc;

use atoll_client::{ClientConfig, Session};
use atoll_types::operation::DirectoryEntry;
use atoll_types::{Attributes, ByteRange, Caller, Errno, FileKind, InodeId, Name, Operation, Outcome};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::Result;

/// Bytes of one read or write.
pub const CHUNK_BYTES: u64 = 512 * 1024;

/// A place in a volume.
pub struct Remote {
    session: Arc<Session>,
    caller: Caller,
    pub path: String,
}

pub fn split(text: &str) -> Option<(&str, &str)> {
    let (volume, path) = text.split_once(':')?;
    (path.starts_with('/') && !volume.contains('/')).then_some((volume, path))
}

/// The volume of VOLUME or VOLUME:/path, and the path.
pub fn source(text: &str) -> Result<(&str, &str)> {
    match text.contains(':') {
        true => split(text).ok_or_else(|| format!("`{text}`: give VOLUME or VOLUME:/path")),
        false => Ok((text, "/")),
    }
}

pub fn explain(path: &str, errno: Errno) -> String {
    match errno {
        Errno::EROFS => format!("{path}: read-only: the token does not allow changes"),
        errno => format!("{path}: {errno}"),
    }
}

impl Remote {
    /// Work at VOLUME:/path, in a session that ends with the work.
    pub async fn with<T>(config: ClientConfig, text: &str, work: impl AsyncFnOnce(&Remote) -> Result<T>) -> Result<T> {
        let remote = Remote::open(config, text).await?;
        let result = work(&remote).await;
        remote.session.close().await;
        result
    }

    async fn open(config: ClientConfig, text: &str) -> Result<Remote> {
        let (volume, path) = split(text).ok_or_else(|| format!("`{text}`: give VOLUME:/path"))?;
        let session = Session::open(config, volume).await.map_err(|error| error.to_string())?;
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Ok(Remote { session, caller: Caller { uid, gid, pid: 0 }, path: path.to_owned() })
    }

    pub async fn call(&self, operation: Operation) -> std::result::Result<Outcome, Errno> {
        self.session.call(self.caller, operation).await
    }

    pub async fn compound(&self, operations: Vec<Operation>) -> Vec<std::result::Result<Outcome, Errno>> {
        self.session.compound(self.caller, operations).await
    }

    pub async fn walk(&self, path: &str) -> Result<Attributes> {
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
            for result in self.compound(chunk).await {
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
    pub async fn parent(&self, path: &str) -> Result<(InodeId, Name)> {
        let path = path.trim_end_matches('/');
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        let name = Name::new(last.as_bytes().to_vec()).map_err(|errno| explain(path, errno))?;
        Ok((self.walk(parent).await?.inode, name))
    }

    /// Where `source` goes: the name that the path gives, or its own name in the directory that the path is.
    pub async fn target(&self, source: &std::path::Path) -> Result<(InodeId, Name)> {
        use std::os::unix::ffi::OsStrExt;
        let inside = match self.walk(&self.path).await {
            Ok(at) if at.kind() == FileKind::Directory => Some(at.inode),
            _ => None,
        };
        match (inside, source.file_name()) {
            (Some(parent), Some(name)) => {
                let name = Name::new(name.as_bytes().to_vec()).map_err(|errno| explain(&self.path, errno))?;
                Ok((parent, name))
            }
            _ => self.parent(&self.path).await,
        }
    }

    pub async fn list(&self, inode: InodeId) -> Result<Vec<DirectoryEntry>> {
        let mut all: Vec<DirectoryEntry> = Vec::new();
        loop {
            let after = all.last().map_or(0, |entry| entry.cookie);
            let page =
                Operation::ReadDirectory { inode, after, entries_max: 1024, with_attributes: true, ahead: false };
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

    /// Copy a file's bytes.
    pub async fn read(
        &self,
        inode: InodeId,
        shown: &str,
        to: &mut (dyn Write + Send),
        progress: &ProgressBar,
    ) -> Result<()> {
        let mut offset = 0;
        loop {
            match self.call(Operation::Read { inode, range: ByteRange::at(offset, CHUNK_BYTES) }).await {
                Ok(Outcome::Data(bytes)) if bytes.is_empty() => return Ok(()),
                Ok(Outcome::Data(bytes)) => {
                    to.write_all(&bytes).map_err(|error| format!("{shown}: {error}"))?;
                    offset += bytes.len() as u64;
                    progress.inc(bytes.len() as u64);
                }
                Ok(_) => return Err(explain(shown, Errno::EPROTO)),
                Err(errno) => return Err(explain(shown, errno)),
            }
        }
    }
}

/// A progress bar in bytes; hidden when standard error is no terminal.
pub fn progress(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos} {msg}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

pub async fn list(remote: &Remote, path: &str, as_json: bool) -> Result<()> {
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

pub async fn cat(remote: &Remote, path: &str) -> Result<()> {
    let at = remote.walk(&remote.path).await?;
    if at.kind() != FileKind::Regular {
        return Err(format!("{path} is not a regular file"));
    }
    remote.read(at.inode, path, &mut std::io::stdout(), &ProgressBar::hidden()).await
}

pub async fn remove(remote: &Remote, path: &str, recursive: bool) -> Result<()> {
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
    let progress = progress(None).with_message("removed");
    for (parent, name, _, kind) in listed.into_iter().rev() {
        let shown = name.to_string();
        let operation = match kind {
            FileKind::Directory => Operation::RemoveDirectory { parent, name },
            _ => Operation::Unlink { parent, name },
        };
        remote.call(operation).await.map_err(|errno| explain(&shown, errno))?;
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(())
}

pub async fn usage(remote: &Remote, as_json: bool) -> Result<()> {
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
