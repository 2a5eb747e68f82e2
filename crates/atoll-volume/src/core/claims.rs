//! Which rights of other sessions an operation excludes, and which it earns its own session.
//!
//! Both are found under the same lock under which the operation is executed, so a
//! grant is true when it is made, and an operation is executed only while no other
//! session may answer from memory what it changes.
//!
//! Who changes something alone earns it exclusively, to make the next changes without asking. An operation that took
//! something from others earns shared rights only: what several clients use would go back and forth, each time after
//! its holder has written back.
//!
//! No names are granted in a linked directory, where the bucket has the last word ([`Core::keepable`]), and nothing on the directories of the
//! trash: files come there that nobody has asked about.
//!
//! Invariant: the exclusive half on a directory itself is granted only while it has no default ACL. So a client that holds
//! it knows what it makes there: new inodes get the mode that they are asked for, and no ACL. Only the holder itself can
//! set one meanwhile; it gives the right up when it does.

use atoll_lease::{Claim, Grant, Rights};
use atoll_types::{Attributes, Errno, FileKind, InodeId, Name, Operation, Outcome, SessionId};

use super::{Core, Step, Stop};
use crate::acl;

/// What changing a directory's names changes: the names and the directory's own times and size.
const DIRECTORY: Rights = Rights::ALL;

/// An operation that was executed, as far as what it earns depends on it.
pub(crate) struct Asked<'a> {
    pub session: SessionId,
    pub operation: &'a Operation,
    pub claims: &'a [Claim],
    /// It took nothing from other sessions.
    pub alone: bool,
    /// What the client calls the inode that it made.
    pub number: Option<InodeId>,
}

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
            // Who holds the exclusive right decides about locks alone.
            | O::TestLock { inode, .. }
            | O::SetLock { inode, .. }
            | O::HoldLocks { inode, .. }
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
            // Immutable, counted, or the session's own: who has a lock to give back excludes the exclusive right of others.
            O::ReadSymlink { .. } | O::Release { .. } | O::Sync | O::Statistics { .. } | O::Unlock { .. } => {}
        }
        Ok(claims.0)
    }

    /// True when no other session may be changing the inode.
    pub fn is_quiet(&self, session: SessionId, inode: InodeId) -> bool {
        self.leases.is_free(session, &[Claim { inode, excludes: Rights::INODE_WRITER }])
    }

    /// True when the inode is not cached, and quiet.
    pub fn is_absent(&self, session: SessionId, inode: InodeId) -> bool {
        !self.inodes.contains_key(&inode) && self.is_quiet(session, inode)
    }

    /// What is earned on a directory whose names the session changed.
    fn earned_by_names(&self, directory: InodeId, alone: bool) -> Rights {
        let xattrs = self.inodes.get(&directory).and_then(|cached| cached.xattrs.as_ref());
        let is_plain = xattrs.is_some_and(|xattrs| !xattrs.contains_key(acl::DEFAULT));
        if alone && is_plain { DIRECTORY } else { Rights::NAMES }
    }

    /// What is earned on a file that the session changed.
    fn earned_by_change(&self, inode: InodeId, alone: bool) -> Rights {
        let is_regular = self.inodes.get(&inode).is_some_and(|cached| cached.record.kind() == FileKind::Regular);
        if alone && is_regular { Rights::INODE_EXCLUSIVE } else { Rights::INODE }
    }

    /// Whether nobody but the session has the file open, as far as is known.
    fn is_open_for_one(&self, session: SessionId, inode: InodeId) -> bool {
        let own = self.session_opens.get(&session).and_then(|opens| opens.get(&inode)).copied().unwrap_or_default();
        self.opens.get(&inode).copied().unwrap_or_default() == own
    }

    /// What of these rights the session may have: it does not decide about locks where others have any.
    fn beside_locks(&self, session: SessionId, inode: InodeId, rights: Rights) -> Rights {
        if self.locks.is_used_by_others(inode, session) { rights - Rights::INODE_WRITER } else { rights }
    }

    /// What is earned on an inode that the session made, of any kind but directory.
    fn earned_by_making(&self, inode: InodeId) -> Rights {
        let xattrs = self.inodes.get(&inode).and_then(|cached| cached.xattrs.as_ref());
        if xattrs.is_some_and(|xattrs| xattrs.is_empty()) { Rights::INODE_EXCLUSIVE } else { Rights::INODE }
    }

    /// What the session may keep of the operation's answer. Whatever the operation changed and the answer does
    /// not describe is granted again: what the session keeps of it is old.
    pub fn grants(&mut self, asked: &Asked<'_>, result: Result<&Outcome, Errno>, now_ms: u64) -> Vec<Grant> {
        use Operation as O;
        let &Asked { session, operation, claims, alone, number } = asked;
        let alone = alone && !self.is_tight_at(claims);
        let mut grants = Vec::new();
        if operation.mutates() && result.is_ok() {
            let changed = claims.iter().filter(|claim| claim.excludes.contains(Rights::INODE_EXCLUSIVE));
            grants.extend(changed.filter_map(|claim| self.leases.touch(session, claim.inode)));
        }
        let Ok(outcome) = result else {
            if let (O::Lookup { parent, .. }, Err(Errno::ENOENT)) = (operation, result)
                && !self.is_of_trash(*parent)
                && !self.is_linked(*parent)
            {
                grants.extend(self.leases.grant(session, *parent, Rights::NAMES, now_ms));
            }
            return grants;
        };
        let mut earned = Vec::new();
        match operation {
            O::Lookup { parent, .. } => earned.push((*parent, Rights::NAMES)),
            // What was there already was found, as by a lookup.
            O::Create { parent, .. } if matches!(outcome, Outcome::Created { new: false, .. }) => {
                earned.push((*parent, Rights::NAMES));
            }
            O::Create { parent, .. }
            | O::MakeNode { parent, .. }
            | O::MakeDirectory { parent, .. }
            | O::MakeSymlink { parent, .. }
            | O::Link { parent, .. }
            | O::Unlink { parent, .. }
            | O::RemoveDirectory { parent, .. } => earned.push((*parent, self.earned_by_names(*parent, alone))),
            O::Rename { parent, new_parent, .. } => {
                earned.push((*parent, self.earned_by_names(*parent, alone)));
                earned.push((*new_parent, self.earned_by_names(*new_parent, alone)));
            }
            O::ReadDirectory { inode, .. } => earned.push((*inode, Rights::NAMES)),
            O::Allocate { inode, .. } => earned.push((*inode, self.earned_by_change(*inode, alone))),
            // Where others have it open, they will want to lock it, too.
            O::SetLock { inode, .. } | O::TestLock { inode, .. }
                // Of a snapshot nothing is granted.
                if inode.snapshot().is_none() && self.is_open_for_one(session, *inode) =>
            {
                earned.push((*inode, self.earned_by_change(*inode, alone)));
            }
            _ => {}
        }
        if let Some(&Attributes { inode, .. }) = outcome.attributes() {
            // What has a number of the client's is the client's alone, whatever else its making had to wait for.
            let alone = alone || number == Some(inode);
            let is_new = operation.made_inode(outcome).is_some();
            let rights = match operation {
                O::MakeDirectory { .. } => self.earned_by_names(inode, alone) | Rights::INODE,
                _ if is_new && alone => self.earned_by_making(inode),
                O::Create { flags, .. } | O::Open { flags, .. } if flags.truncate => {
                    self.earned_by_change(inode, alone)
                }
                O::Write { .. } | O::SetAttributes { .. } | O::CloneRange { .. } => self.earned_by_change(inode, alone),
                _ => Rights::INODE,
            };
            if is_new && number == Some(inode) {
                grants.extend(self.leases.grant_made(session, inode, rights, now_ms));
            } else {
                earned.push((inode, rights));
            }
        }
        let mut grant = |inode, rights| {
            if self.is_of_trash(inode) {
                return;
            }
            let rights = self.beside_locks(session, inode, rights & self.keepable(inode));
            grants.extend(self.leases.grant(session, inode, rights, now_ms));
        };
        earned.into_iter().for_each(|(inode, rights)| grant(inode, rights));
        if let Outcome::Listing { entries, .. } = outcome {
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
