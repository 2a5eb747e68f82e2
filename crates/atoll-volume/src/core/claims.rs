//! Which rights of other sessions an operation excludes, and which it earns its own session.
//!
//! Both are found under the same lock under which the operation is executed, so a
//! grant is true when it is made, and an operation is executed only while no other
//! session may answer from memory what it changes.

use atoll_lease::{Claim, Grant, Rights};
use atoll_types::{Errno, FileKind, InodeId, Name, Operation, Outcome, SessionId};

use super::{Core, Step, Stop};

/// What changing a directory's names changes: the names and the directory's own times and size.
const DIRECTORY: Rights = Rights::ALL;

#[derive(Default)]
struct Claims(Vec<Claim>);

impl Claims {
    fn add(&mut self, inode: InodeId, excludes: Rights) {
        match self.0.iter_mut().find(|claim| claim.inode == inode) {
            Some(claim) => claim.excludes |= excludes,
            None => self.0.push(Claim { inode, excludes }),
        }
    }
}

impl Core {
    /// What the name stands for now; an operation that cannot be is told so when it is executed.
    fn named(&mut self, parent: InodeId, name: &Name) -> Step<Option<(InodeId, FileKind)>> {
        match self.dentry(parent, name) {
            Ok(found) => Ok(found.map(|dentry| (dentry.inode, dentry.kind))),
            Err(Stop::Error(_)) => Ok(None),
            Err(load) => Err(load),
        }
    }

    /// What other sessions must not hold while the operation is executed. A listing names only its
    /// directory: children that somebody else may be changing are listed without attributes.
    pub fn claims(&mut self, operation: &Operation) -> Step<Vec<Claim>> {
        use Operation as O;
        let mut claims = Claims::default();
        match operation {
            O::Lookup { parent, name } => {
                claims.add(*parent, Rights::NAMES_WRITER);
                if let Some((child, _)) = self.named(*parent, name)? {
                    claims.add(child, Rights::INODE_WRITER);
                }
            }
            O::Parent { inode } => {
                claims.add(*inode, Rights::INODE_WRITER);
                match self.parent(*inode) {
                    Ok(parent) => claims.add(parent.inode, Rights::INODE_WRITER),
                    Err(Stop::Error(_)) => {}
                    Err(load) => return Err(load),
                }
            }
            O::GetAttributes { inode }
            | O::Read { inode, .. }
            | O::Seek { inode, .. }
            | O::GetXattr { inode, .. }
            | O::ListXattrs { inode }
            | O::CreateUnnamed { parent: inode, .. } => claims.add(*inode, Rights::INODE_WRITER),
            O::SetAttributes { inode, .. }
            | O::Write { inode, .. }
            | O::Allocate { inode, .. }
            | O::SetXattr { inode, .. }
            | O::RemoveXattr { inode, .. } => claims.add(*inode, Rights::INODE_EXCLUSIVE),
            O::Create { parent, name, flags, .. } => match self.named(*parent, name)? {
                None => claims.add(*parent, DIRECTORY),
                Some((child, _)) => {
                    claims.add(*parent, Rights::NAMES_WRITER);
                    let excludes = if flags.truncate { Rights::INODE_EXCLUSIVE } else { Rights::INODE_WRITER };
                    claims.add(child, excludes);
                }
            },
            O::MakeNode { parent, .. } | O::MakeDirectory { parent, .. } | O::MakeSymlink { parent, .. } => {
                claims.add(*parent, DIRECTORY);
            }
            O::Link { inode, parent, .. } => {
                claims.add(*parent, DIRECTORY);
                claims.add(*inode, Rights::INODE_EXCLUSIVE);
            }
            O::Unlink { parent, name } | O::RemoveDirectory { parent, name } => {
                claims.add(*parent, DIRECTORY);
                if let Some(victim) = self.named(*parent, name)? {
                    claims.victim(victim);
                }
            }
            O::Rename { parent, name, new_parent, new_name, .. } => {
                claims.add(*parent, DIRECTORY);
                claims.add(*new_parent, DIRECTORY);
                if let Some((moved, _)) = self.named(*parent, name)? {
                    claims.add(moved, Rights::INODE_EXCLUSIVE);
                }
                if let Some(victim) = self.named(*new_parent, new_name)? {
                    claims.victim(victim);
                }
            }
            O::Open { inode, flags } => {
                let excludes = if flags.truncate { Rights::INODE_EXCLUSIVE } else { Rights::INODE_WRITER };
                claims.add(*inode, excludes);
            }
            O::CloneRange { source, target, .. } => {
                claims.add(*source, Rights::INODE_WRITER);
                claims.add(*target, Rights::INODE_EXCLUSIVE);
            }
            O::ReadDirectory { inode, .. } => claims.add(*inode, Rights::NAMES_WRITER),
            // Immutable, counted, or kept at the authority alone.
            O::ReadSymlink { .. }
            | O::Release { .. }
            | O::Sync
            | O::Statistics
            | O::TestLock { .. }
            | O::SetLock { .. }
            | O::Unlock { .. } => {}
        }
        Ok(claims.0)
    }

    /// True when no other session may be changing the inode.
    pub fn is_quiet(&self, session: SessionId, inode: InodeId) -> bool {
        self.leases.is_free(session, &[Claim { inode, excludes: Rights::INODE_WRITER }])
    }

    /// What the session may keep of the operation's answer. Whatever the operation changed and the answer does
    /// not describe is granted again: what the session keeps of it is old.
    pub fn grants(
        &mut self,
        session: SessionId,
        operation: &Operation,
        claims: &[Claim],
        result: Result<&Outcome, Errno>,
        now_ms: u64,
    ) -> Vec<Grant> {
        use Operation as O;
        let mut grants = Vec::new();
        if operation.mutates() && result.is_ok() {
            let changed = claims.iter().filter(|claim| claim.excludes.contains(Rights::INODE_EXCLUSIVE));
            grants.extend(changed.filter_map(|claim| self.leases.touch(session, claim.inode)));
        }
        let mut grant = |inode, rights| grants.extend(self.leases.grant(session, inode, rights, now_ms));
        match operation {
            O::Lookup { parent, .. } if matches!(result, Ok(_) | Err(Errno::ENOENT)) => grant(*parent, Rights::NAMES),
            O::Create { parent, .. }
            | O::MakeNode { parent, .. }
            | O::MakeDirectory { parent, .. }
            | O::MakeSymlink { parent, .. }
            | O::Link { parent, .. }
            | O::Unlink { parent, .. }
            | O::RemoveDirectory { parent, .. }
                if result.is_ok() =>
            {
                grant(*parent, Rights::NAMES);
            }
            O::Rename { parent, new_parent, .. } if result.is_ok() => {
                grant(*parent, Rights::NAMES);
                grant(*new_parent, Rights::NAMES);
            }
            O::ReadDirectory { inode, .. } if result.is_ok() => grant(*inode, Rights::NAMES),
            _ => {}
        }
        if let (O::MakeDirectory { .. }, Ok(Outcome::Entry(made))) = (operation, result) {
            grant(made.inode, Rights::NAMES);
        }
        if let Some(attributes) = result.ok().and_then(Outcome::attributes) {
            grant(attributes.inode, Rights::INODE);
        }
        if let Ok(Outcome::Listing { entries, .. }) = result {
            for entry in entries.iter().filter(|entry| entry.attributes.is_some()) {
                grant(entry.inode, Rights::INODE);
            }
        }
        grants
    }
}

impl Claims {
    /// Something that loses a name.
    fn victim(&mut self, (inode, kind): (InodeId, FileKind)) {
        let names = if kind == FileKind::Directory { Rights::NAMES_EXCLUSIVE } else { Rights::NONE };
        self.add(inode, Rights::INODE_EXCLUSIVE | names);
    }
}
