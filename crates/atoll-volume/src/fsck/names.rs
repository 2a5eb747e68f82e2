//! Names beside inodes and directory offsets.

use std::collections::{HashMap, HashSet};

use atoll_types::{FileKind, InodeId, Mode, Name};
use bytes::Bytes;

use super::{COOKIES_MAX, Check, Cursor, Directory, Other, Problem, Remedy, Result, shown};
use crate::format::{self, Dentry, InodeRecord};

type Writes = Vec<(Bytes, Option<Bytes>)>;

impl Check<'_> {
    /// Which inodes there are.
    pub(super) async fn learn_inodes(&mut self) -> Result<()> {
        let mut records = Cursor::new(self.subject.view, format::all_inodes());
        while let Some((key, value)) = records.next().await? {
            let inode = format::key_number(&key).unwrap_or(0);
            let record = match InodeRecord::decode(&value) {
                Ok(record) if inode > 0 && key == format::inode_key(InodeId(inode)) => record,
                Ok(_) => {
                    self.report.delete(Problem::Malformed, None, format!("the key {key:?} of an inode"), key);
                    continue;
                }
                Err(error @ crate::VolumeError::FutureFormat(_)) => return Err(error),
                Err(_) => {
                    self.inodes.broken.insert(inode, None);
                    continue;
                }
            };
            self.report.inodes += 1;
            self.progress("inodes", self.report.inodes, self.counters.inodes);
            if record.kind() == FileKind::Directory {
                self.report.directories += 1;
                let next_cookie = if record.next_cookie < COOKIES_MAX { record.next_cookie.max(1) } else { 1 };
                let directory = Directory { next_cookie, ..Directory::default() };
                self.inodes.directories.insert(inode, directory);
            } else {
                self.inodes.others.push(Other { inode, names: 0, named_in: 0, kind: record.kind() });
            }
        }
        if self.inodes.directories.contains_key(&InodeId::ROOT.0) {
            return Ok(());
        }
        let root = crate::core::root(&atoll_types::Caller::default(), atoll_types::Timestamp::now());
        let writes = vec![(format::inode_key(InodeId::ROOT), Some(root.encode()))];
        self.report.find(Problem::Root, InodeId::ROOT, "there is no root directory".into(), Remedy::Writes(writes));
        self.inodes.others.retain(|other| other.inode != InodeId::ROOT.0);
        self.inodes.directories.insert(InodeId::ROOT.0, Directory::new());
        Ok(())
    }

    /// Every directory, its names beside their offsets.
    pub(super) async fn names(&mut self) -> Result<()> {
        let view = self.subject.view;
        let mut dentries = Cursor::new(view, format::all_dentries());
        let mut cookies = Cursor::new(view, format::all_cookies());
        loop {
            let (one, other) = (dentries.number().await?, cookies.number().await?);
            let Some(parent) = one.into_iter().chain(other).min() else { break };
            let mut names = Vec::new();
            while let Some((key, value)) = dentries.up_to(parent).await? {
                match (Name::new(format::key_rest(&key)), Dentry::decode(&value)) {
                    (Ok(name), Ok(dentry)) if parent > 0 => names.push((name, dentry)),
                    _ => {
                        let text = format!("a name in directory {parent}: {key:?}");
                        self.report.delete(Problem::Malformed, InodeId(parent), text, key);
                    }
                }
            }
            let kept = self.directory(InodeId(parent), names);
            self.offsets(InodeId(parent), kept, &mut cookies).await?;
        }
        self.broken().await
    }

    /// Inodes whose records cannot be read get new ones, when something else says what they are.
    async fn broken(&mut self) -> Result<()> {
        for (inode, kind) in std::mem::take(&mut self.inodes.broken) {
            let text = format!("the record of inode {inode} is missing or malformed");
            let inode = InodeId(inode);
            let Some(kind) = kind else {
                self.report.delete(Problem::Malformed, inode, text, format::inode_key(inode));
                continue;
            };
            self.inodes.rebuilt.insert(inode.0);
            let caller = atoll_types::Caller::default();
            let mut record = crate::core::root(&caller, atoll_types::Timestamp::now());
            record.mode = Mode::new(kind, if kind == FileKind::Directory { 0o700 } else { 0o600 });
            if kind == FileKind::Regular {
                let mut extents = Cursor::new(self.subject.view, format::extents_of(inode));
                while let Some((key, value)) = extents.next().await? {
                    if let (Ok(offset), Ok(extent)) = (format::rest_u64(&key), format::decode_extent(&value)) {
                        record.size = record.size.max(offset + u64::from(extent.length));
                    }
                }
            }
            let writes = vec![(format::inode_key(inode), Some(record.encode()))];
            self.report.find(Problem::Malformed, inode, text, Remedy::Writes(writes));
        }
        Ok(())
    }

    /// The names of one directory. Answers with those that stay, by their offsets.
    fn directory(&mut self, parent: InodeId, names: Vec<(Name, Dentry)>) -> HashMap<u64, (Name, Dentry)> {
        let mut kept = HashMap::with_capacity(names.len());
        if !names.is_empty() && self.inodes.kind(parent.0).is_none() {
            self.inodes.broken.insert(parent.0, Some(FileKind::Directory));
            self.inodes.directories.insert(parent.0, Directory::new());
        }
        let Some(mut directory) = self.inodes.directories.get(&parent.0).copied() else {
            for (name, dentry) in names {
                let text =
                    format!("`{}` names inode {}, in directory {parent}, which is none", shown(&name), dentry.inode);
                let writes = remove(parent, &name, &dentry);
                self.report.find(Problem::NameWithoutDirectory, dentry.inode, text, Remedy::Writes(writes));
            }
            return kept;
        };
        for (name, mut dentry) in names {
            self.report.names += 1;
            self.progress("names", self.report.names, self.counters.inodes);
            let inode = dentry.inode;
            let in_directory = || format!("`{}` in directory {parent}", shown(&name));
            if self.inodes.broken.get(&inode.0) == Some(&None) {
                self.inodes.broken.insert(inode.0, Some(dentry.kind));
            }
            if self.inodes.broken.contains_key(&inode.0) {
                kept.insert(dentry.cookie, (name, dentry));
                continue;
            }
            let Some(kind) = self.inodes.kind(inode.0) else {
                let text = format!("{} names inode {inode}, which is not there", in_directory());
                let writes = remove(parent, &name, &dentry);
                self.report.find(Problem::NameWithoutInode, parent, text, Remedy::Writes(writes));
                continue;
            };
            let is_directory = kind == FileKind::Directory;
            let named = self.inodes.directories.get(&inode.0).is_some_and(|directory| directory.named_in > 0);
            if is_directory && (named || has_no_name(inode)) {
                let text = format!("{} names directory {inode}, which has a name already", in_directory());
                let writes = remove(parent, &name, &dentry);
                self.report.find(Problem::SecondNameOfDirectory, inode, text, Remedy::Writes(writes));
                continue;
            }
            if kind != dentry.kind {
                let text = format!("{} is a {:?}, its name says {:?}", in_directory(), kind, dentry.kind);
                dentry.kind = kind;
                self.report.find(Problem::NameType, inode, text, Remedy::Writes(put(parent, &name, &dentry)));
            }
            if dentry.cookie == 0 || dentry.cookie >= COOKIES_MAX || kept.contains_key(&dentry.cookie) {
                let text = format!("{} has the offset {}, which is bad or taken", in_directory(), dentry.cookie);
                dentry.cookie = directory.next_cookie;
                self.report.find(Problem::DirectoryOffset, inode, text, Remedy::Writes(put(parent, &name, &dentry)));
            }
            directory.next_cookie = directory.next_cookie.max(dentry.cookie.saturating_add(1));
            directory.size += name.as_bytes().len() as u64;
            directory.subdirectories += u32::from(is_directory);
            match self.inodes.directories.get_mut(&inode.0) {
                Some(named) => named.named_in = parent.0,
                None => {
                    if let Some(other) = self.inodes.other(inode.0) {
                        other.names += 1;
                        other.named_in = parent.0;
                    }
                }
            }
            kept.insert(dentry.cookie, (name, dentry));
        }
        // It may have been named by one of its own names.
        directory.named_in = self.inodes.directories.get(&parent.0).map_or(0, |directory| directory.named_in);
        self.inodes.directories.insert(parent.0, directory);
        kept
    }

    async fn offsets(
        &mut self,
        parent: InodeId,
        kept: HashMap<u64, (Name, Dentry)>,
        cookies: &mut Cursor<'_>,
    ) -> Result<()> {
        let mut found = HashSet::with_capacity(kept.len());
        while let Some((key, value)) = cookies.up_to(parent.0).await? {
            let cookie = format::rest_u64(&key).ok().filter(|cookie| key == format::cookie_key(parent, *cookie));
            let expected = cookie.and_then(|cookie| Some((cookie, kept.get(&cookie)?)));
            match expected {
                Some((cookie, (name, dentry))) => {
                    found.insert(cookie);
                    // Older releases have written the same otherwise.
                    let is_it =
                        |(inode, kind, of): (_, _, Name)| (inode, kind, &of) == (dentry.inode, dentry.kind, name);
                    if !format::decode_cookie(&value).is_ok_and(is_it) {
                        let text = format!("offset {cookie} of directory {parent} is not of `{}`", shown(name));
                        let writes = put(parent, name, dentry);
                        self.report.find(Problem::DirectoryOffset, dentry.inode, text, Remedy::Writes(writes));
                    }
                }
                None => {
                    let text = format!("an offset of directory {parent} without a name: {key:?}");
                    self.report.delete(Problem::DirectoryOffset, parent, text, key);
                }
            }
        }
        for (cookie, (name, dentry)) in kept {
            if !found.contains(&cookie) {
                let text = format!("`{}` in directory {parent} is missing in listings", shown(&name));
                let writes = put(parent, &name, &dentry);
                self.report.find(Problem::DirectoryOffset, dentry.inode, text, Remedy::Writes(writes));
            }
        }
        Ok(())
    }

    /// Directories from which no way leads up to the root, nor to one without a name.
    pub(super) async fn loops(&mut self) -> Result<()> {
        let mut good: HashSet<u64> = HashSet::from([InodeId::ROOT.0, InodeId::TRASH.0]);
        let mut loops = Vec::new();
        for start in self.inodes.directories.keys().copied() {
            let mut way = Vec::new();
            let mut at = start;
            while !good.contains(&at) {
                // Good from here on, or ends here: either is looked at once.
                good.insert(at);
                way.push(at);
                at = self.inodes.directories.get(&at).map_or(0, |directory| directory.named_in);
                if at == 0 {
                    break;
                }
            }
            if way.contains(&at) {
                loops.push(InodeId(at));
            }
        }
        for inode in loops {
            let named_in = self.inodes.directories.get(&inode.0).map_or(0, |directory| directory.named_in);
            let mut names = Cursor::new(self.subject.view, format::dentries_of(InodeId(named_in)));
            while let Some((key, value)) = names.next().await? {
                let (Ok(name), Ok(dentry)) = (Name::new(format::key_rest(&key)), Dentry::decode(&value)) else {
                    continue;
                };
                if dentry.inode == inode {
                    let text = format!("directory {inode} is inside of itself, as `{}`", shown(&name));
                    let writes = remove(InodeId(named_in), &name, &dentry);
                    self.report.find(Problem::DirectoryLoop, inode, text, Remedy::Writes(writes));
                }
            }
        }
        Ok(())
    }
}

/// Directories that are found by their numbers.
pub(super) fn has_no_name(inode: InodeId) -> bool {
    inode == InodeId::ROOT || inode == InodeId::TRASH
}

fn remove(parent: InodeId, name: &Name, dentry: &Dentry) -> Writes {
    vec![(format::dentry_key(parent, name), None), (format::cookie_key(parent, dentry.cookie), None)]
}

pub(super) fn put(parent: InodeId, name: &Name, dentry: &Dentry) -> Writes {
    vec![
        (format::dentry_key(parent, name), Some(dentry.encode())),
        (format::cookie_key(parent, dentry.cookie), Some(format::encode_cookie(dentry.inode, dentry.kind, name))),
    ]
}
