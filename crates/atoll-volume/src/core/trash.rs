//! Files that lose their last name are kept for a while, where the volume has it so.
//!
//! They get a name in a directory of the hour, below one with a number of its own ([`InodeId::TRASH`]) that no directory
//! names. Invariant: clients make no names in these directories, and hold no rights on them; so a file comes there
//! without anybody being asked, in the same change in which it loses its name.

use atoll_types::{FileKind, InodeId, Mode, Name, Timestamp, limits};
use chrono::DateTime;

use super::{Core, Step, fresh};
use crate::format::{self, Dentry, Retention};

#[derive(Default)]
pub(super) struct Trash {
    retention: Option<Retention>,
    /// Came there by a change that its client made alone, while it was open: the client takes it to have no name.
    taken: Option<InodeId>,
}

/// Where something is kept that loses its last name.
pub(super) struct Place {
    is_first: bool,
    hour: Name,
    /// It is there already.
    directory: Option<InodeId>,
    name: Name,
}

/// Its directory and itself, which tell more than the name does when it has to be cut.
fn kept_name(parent: InodeId, inode: InodeId, name: &Name) -> Vec<u8> {
    let mut kept = format!("{}-{}-", parent.0, inode.0).into_bytes();
    let room = limits::NAME_BYTES_MAX - kept.len();
    let name = name.as_bytes();
    let mut end = name.len().min(room);
    // Not within a character.
    while end < name.len() && end > 0 && name[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    kept.extend_from_slice(&name[..end]);
    kept
}

fn hour(now: Timestamp) -> String {
    DateTime::from_timestamp(now.seconds, 0).unwrap_or_default().format("%Y-%m-%d-%H").to_string()
}

impl Core {
    pub fn retention(&self) -> Option<Retention> {
        self.trash.retention
    }

    pub fn install_retention(&mut self, retention: Option<Retention>) {
        self.trash.retention = retention;
    }

    /// A new retention, with the change after whose commit it is kept.
    pub fn set_retention(&mut self, retention: Option<Retention>) -> u64 {
        self.trash.retention = retention;
        self.write(format::trash_key(), retention.map(|retention| retention.encode()));
        self.order();
        self.ordered()
    }

    /// What came into the trash while its client takes it to have no name, once.
    pub fn take_trashed(&mut self) -> Option<InodeId> {
        self.trash.taken.take()
    }

    /// Whether it is the trash, or one of its directories.
    pub(super) fn is_of_trash(&self, inode: InodeId) -> bool {
        let below = || self.inodes.get(&inode).is_some_and(|cached| cached.record.parent == InodeId::TRASH);
        inode == InodeId::TRASH || below()
    }

    /// Where it is kept when it loses this name, if it is. Changes nothing.
    pub(super) fn gather_trash(&mut self, parent: InodeId, name: &Name, dentry: Dentry) -> Step<Option<Place>> {
        if self.trash.retention.is_none() || !matches!(dentry.kind, FileKind::Regular | FileKind::Symlink) {
            return Ok(None);
        }
        self.directory(parent)?;
        // A bucket has versions for that.
        if self.is_linked(parent) {
            return Ok(None);
        }
        if self.record(dentry.inode)?.links > 1 || self.is_of_trash(parent) {
            return Ok(None);
        }
        // Nothing else can have this name: what is in the trash has another one only beside it.
        let name = Name::new(kept_name(parent, dentry.inode, name))?;
        let hour = Name::new(hour(Timestamp::now()))?;
        if self.is_vacant(InodeId::TRASH)? {
            return Ok(Some(Place { is_first: true, hour, directory: None, name }));
        }
        let directory = match self.dentry(InodeId::TRASH, &hour)? {
            Some(found) => {
                self.directory(found.inode)?;
                Some(found.inode)
            }
            None => None,
        };
        Ok(Some(Place { is_first: false, hour, directory, name }))
    }

    /// It has lost its last name in the tree.
    pub(super) fn move_to_trash(&mut self, dentry: Dentry, place: Place) {
        let now = self.now();
        let directory = |parent| {
            let mut record = fresh(Mode::new(FileKind::Directory, 0o700), 0, 0, now);
            record.links = 2;
            record.parent = parent;
            record.next_cookie = 1;
            record
        };
        if place.is_first {
            self.occupy(InodeId::TRASH);
            self.enter(InodeId::TRASH, directory(InodeId::ROOT));
        }
        let hour = place.directory.unwrap_or_else(|| {
            let hour = self.next_number();
            self.enter(hour, directory(InodeId::TRASH));
            self.add_dentry(InodeId::TRASH, &place.hour, hour, FileKind::Directory);
            self.change(InodeId::TRASH, |record| record.links += 1);
            self.names_changed(InodeId::TRASH);
            hour
        });
        self.add_dentry(hour, &place.name, dentry.inode, dentry.kind);
        self.names_changed(hour);
        self.change(dentry.inode, |record| record.changed = now);
        // The quota of a directory does not hold what was removed from it; the volume's does.
        if self.inodes.get(&dentry.inode).is_some_and(|cached| cached.record.quota_root != InodeId::NONE) {
            self.recharge(dentry.inode, InodeId::NONE, false);
        }
        if self.making.is_some() && self.opens.contains_key(&dentry.inode) {
            self.trash.taken = Some(dentry.inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_where_a_file_was_and_fits() {
        let kept = |name: &str| kept_name(InodeId(7), InodeId(1 << 47), &Name::new(name.to_owned()).unwrap());
        assert_eq!(kept("a b"), b"7-140737488355328-a b");
        for long in ["x".repeat(255), "é".repeat(127), "x€".repeat(63)] {
            let kept = String::from_utf8(kept(&long)).expect("whole characters");
            assert!((252..=limits::NAME_BYTES_MAX).contains(&kept.len()), "{}", kept.len());
            assert!(long.starts_with(kept.strip_prefix("7-140737488355328-").unwrap()));
        }
    }

    #[test]
    fn hours_are_named_in_their_order() {
        assert_eq!(hour(Timestamp { seconds: 0, nanos: 0 }), "1970-01-01-00");
        assert_eq!(hour(Timestamp { seconds: 1_767_229_199, nanos: 0 }), "2026-01-01-00");
    }
}
