//! Directory listings in the order in which names were made.

use atoll_types::operation::DirectoryEntry;
use atoll_types::{FileKind, InodeId, Name};

use super::{Core, Step};

/// A page of a listing, or word that it must come from the store.
pub(crate) enum Listing {
    Here { entries: Vec<DirectoryEntry>, end: bool },
    InStore,
}

impl Core {
    /// Differs when a name came or went: each new one takes a position, and each one that goes, its length. Times
    /// do not tell, a client may have given two changes the same.
    pub fn names_state(&mut self, inode: InodeId) -> Step<(u64, u64)> {
        let record = self.directory(inode)?;
        Ok((record.next_cookie, record.size))
    }

    /// Entries after cookie `after`, at most `most` (≥ 1) of them.
    pub fn list(&mut self, inode: InodeId, after: u64, most: usize) -> Step<Listing> {
        self.directory(inode)?;
        let Some(directory) = self.inode(inode)?.directory.as_ref().filter(|d| d.complete) else {
            return Ok(Listing::InStore);
        };
        let mut entries = Vec::new();
        let mut following = directory.cookies.range(after.saturating_add(1)..);
        for (&cookie, name) in following.by_ref().take(most) {
            if let Some(Some(dentry)) = directory.names.get(name) {
                entries.push(entry(name.clone(), dentry.inode, dentry.kind, cookie));
            }
        }
        let end = following.next().is_none();
        Ok(Listing::Here { entries, end })
    }
}

pub(crate) fn entry(name: Name, inode: InodeId, kind: FileKind, cookie: u64) -> DirectoryEntry {
    DirectoryEntry { name, inode, kind, cookie, attributes: None }
}
