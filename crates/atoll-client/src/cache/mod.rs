//! What a mount keeps under its leases: attributes and names, and what it changed in them.
//!
//! Invariant: what is kept of an inode was true when its right was granted, and the
//! right is still held. Answers of one session overtake each other on their way, so
//! each thing remembers the position (`order`) of the operation it came from, and
//! gives way only to newer ones.

mod changes;
mod names;
mod prefetch;

use std::collections::VecDeque;
use std::collections::hash_map;
use std::sync::Arc;
use std::time::Instant;

use atoll_lease::{Grant, Holding, Issue, Recall, Rights};
use atoll_types::locks::Lock;
use atoll_types::operation::DirectoryEntry;
use atoll_types::{
    Attributes, Caller, Errno, FileKind, InodeId, JournalPosition, Mode, Name, Operation, Outcome, Timestamp,
};
use atoll_wire::Made;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::chronicle::{Chronicle, Entry, Known};
use crate::client::Asker;
use crate::journal::{Change, Journal};
use crate::locks::{Locks, Moves, Owner, Request};
use changes::Numbers;
use names::{Named, Names, Page};
pub(crate) use prefetch::{Miss, widened};

/// What of an answer the kernel may keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub entry: bool,
    pub attributes: bool,
    /// Of each entry of a listing: the attributes.
    pub listed: Vec<bool>,
    /// The kernel moves a name, perhaps with its right to be kept, to a directory whose names may not be kept.
    pub moved: bool,
}

/// There are as many as inodes that are held.
#[derive(Default)]
struct Node {
    holding: Holding,
    attributes: Option<Attributes>,
    /// Where the attributes, or word that they are old, came from.
    order: Issue,
    /// Of a directory.
    names: Option<Box<Names>>,
    /// The directory through which the kernel was last told of it.
    via: Option<InodeId>,
    /// Opens that the authority does not know of.
    local_opens: u32,
    /// When it was used last, in rounds of [`Cache::surplus`].
    used: u32,
    /// The kernel may keep the attributes: what came by a listing ahead it has never heard of.
    told: bool,
    /// A read has moved the access time since.
    was_read: bool,
    /// It has no extended attributes.
    is_bare: bool,
    /// A directory that may have got a default ACL from us.
    may_pass_acl: bool,
    /// The kernel forgot it while changes of it were unwritten.
    is_forgotten: bool,
}

const _: () = assert!(size_of::<Node>() <= 224);

impl Node {
    fn names(&mut self) -> &mut Names {
        self.names.get_or_insert_default()
    }

    /// What was granted, or found, up to here must not be taken once this is forgotten.
    fn newest(&self) -> Issue {
        let of_names = self.names.as_ref().map_or(Issue::default(), |names| names.order);
        self.holding.newest().max(self.order).max(of_names)
    }
}

/// Entries of listings that are kept to answer the kernel from.
const LISTED_KEPT_MAX: usize = 16_384;

/// Inodes on which rights are held: when there are more, those not used lately are given up, down to a part.
const HELD_MAX: usize = 150_000;
const HELD_LEFT: usize = HELD_MAX / 5 * 4;
/// Of an inode that the kernel was told of nobody knows how often.
const LOOKUPS_UNKNOWN: u64 = 1 << 62;

/// A name that may not be kept any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldName {
    pub name: Name,
    /// It stood for a directory, in which somebody may work, or on which something may be mounted.
    pub is_directory: bool,
}

/// What has to happen outside before rights are given up.
#[derive(Debug, Default)]
pub(crate) struct Duty {
    pub inode: InodeId,
    /// The kernel keeps attributes.
    pub attributes: bool,
    /// Names that the kernel keeps.
    pub names: Vec<OldName>,
    /// It keeps more of this directory.
    pub more_names: bool,
    pub via: Option<InodeId>,
    /// What stands in the journal up to here is to be executed first.
    pub unwritten: Option<JournalPosition>,
    /// An exclusive right is taken: others around it are given up with it.
    pub exclusive: bool,
    /// A request is under way that may hold the kernel's lock of the directory, or of pages of the file.
    pub busy: bool,
    /// The kernel may just be taking in names of a listing.
    pub shown: bool,
}

impl Duty {
    pub fn is_nothing(&self) -> bool {
        !self.is_known() && self.unwritten.is_none() && !self.exclusive
    }

    /// Whether the kernel keeps something.
    pub fn is_known(&self) -> bool {
        self.attributes || self.keeps_names()
    }

    pub fn keeps_names(&self) -> bool {
        self.more_names || !self.names.is_empty()
    }
}

/// What comes of it when the authority knows of locks.
#[derive(Default)]
pub(crate) struct Told {
    pub moves: Moves<Asker>,
    /// What is given up because the kernel had forgotten it before.
    pub given_up: Vec<Recall>,
    pub lost: Vec<(InodeId, FxHashSet<Owner>)>,
}

#[derive(Default)]
pub(crate) struct Cache {
    /// The kernel is to keep no names of listings for now.
    pub hides_listings: bool,
    /// Rounds of [`Cache::surplus`].
    round: u32,
    nodes: FxHashMap<InodeId, Box<Node>>,
    /// How often the kernel was told of an inode and has not forgotten it.
    lookups: FxHashMap<InodeId, u64>,
    /// Those of them that are directories.
    directories: FxHashSet<InodeId>,
    /// Directories whose names the kernel may keep although the right to that was recalled, and how many recalls that
    /// is.
    dropping: FxHashMap<InodeId, u32>,
    /// Directories with a page of their listing, its number, and how many entries it was kept with; the oldest first.
    paged: VecDeque<(InodeId, u64, usize)>,
    /// The sum of them.
    paged_entries: usize,
    pages: u64,
    /// Requests under way that hold a lock of the kernel on the inode: on a directory's names, on a file's pages.
    under_way: FxHashMap<InodeId, u32>,
    /// Requests under way that change an inode: then nothing of it is changed here.
    changing: FxHashMap<InodeId, u32>,
    /// Requests under way that may take a file's last name: the authority has heard of opens before they were sent.
    taking: u32,
    pub journal: Journal,
    pub locks: Locks<Asker>,
    /// Files whose locks the authority did not let this session hold.
    refused: Vec<InodeId>,
    numbers: Numbers,
    /// When the newest change here was made.
    last_made: Timestamp,
    paused_until: Option<Instant>,
    /// Grants up to here are void for inodes that are not in `nodes`: some were given up and forgotten.
    floor: Issue,
}

/// Locks go to the authority in the journal, behind the changes that were made under them.
fn hands_over(journal: &mut Journal, at: Timestamp) -> impl FnMut(InodeId, Vec<Lock>) -> JournalPosition {
    move |inode, locks| {
        let made = Made { caller: Caller::default(), at, inode: None };
        journal.push(Change { made, operation: Operation::HoldLocks { inode, locks }, touches: Vec::new() }, None);
        journal.end()
    }
}

/// The directories whose names the operation changes.
fn renamed_in(operation: &Operation) -> [Option<InodeId>; 2] {
    use Operation as O;
    match operation {
        O::Create { parent, .. }
        | O::MakeNode { parent, .. }
        | O::MakeDirectory { parent, .. }
        | O::MakeSymlink { parent, .. }
        | O::Link { parent, .. }
        | O::Unlink { parent, .. }
        | O::RemoveDirectory { parent, .. } => [Some(*parent), None],
        O::Rename { parent, new_parent, .. } => [Some(*parent), Some(*new_parent)],
        _ => [None, None],
    }
}

/// The inodes of which the kernel holds a lock while it waits for the operation.
fn locked_by(operation: &Operation) -> [Option<InodeId>; 2] {
    use Operation as O;
    match operation {
        O::Lookup { parent: inode, .. }
        | O::CreateUnnamed { parent: inode, .. }
        | O::ReadDirectory { inode, ahead: false, .. }
        | O::Read { inode, .. }
        | O::Write { inode, .. } => [Some(*inode), None],
        _ => renamed_in(operation),
    }
}

/// The inodes that the operation names and changes.
fn changed_by(operation: &Operation) -> [Option<InodeId>; 2] {
    use Operation as O;
    match operation {
        O::Link { inode, parent, .. } => [Some(*inode), Some(*parent)],
        O::SetAttributes { inode, .. }
        | O::Write { inode, .. }
        | O::Allocate { inode, .. }
        | O::CloneRange { target: inode, .. }
        | O::SetXattr { inode, .. }
        | O::RemoveXattr { inode, .. } => [Some(*inode), None],
        O::Open { inode, flags } if flags.truncate => [Some(*inode), None],
        _ => renamed_in(operation),
    }
}

/// Whether it may take the last name of a file.
fn takes_name(operation: &Operation) -> bool {
    matches!(operation, Operation::Unlink { .. } | Operation::Rename { .. })
}

fn is_common(xattr: &[u8]) -> bool {
    let common = ["security.capability", "security.selinux", "system.posix_acl_access", "system.posix_acl_default"];
    common.iter().any(|name| name.as_bytes() == xattr)
}

fn count(counts: &mut FxHashMap<InodeId, u32>, inodes: [Option<InodeId>; 2]) {
    for inode in inodes.into_iter().flatten() {
        *counts.entry(inode).or_default() += 1;
    }
}

fn uncount(counts: &mut FxHashMap<InodeId, u32>, inodes: [Option<InodeId>; 2]) {
    for inode in inodes.into_iter().flatten() {
        if let Some(count) = counts.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&inode);
            }
        }
    }
}

impl Cache {
    fn node(&mut self, inode: InodeId) -> &mut Node {
        let floor = self.floor;
        let new = || Box::new(Node { holding: Holding::since(floor), ..Node::default() });
        let node = self.nodes.entry(inode).or_insert_with(new);
        node.used = self.round;
        node
    }

    fn attributes(&self, inode: InodeId) -> Option<Attributes> {
        let node = self.nodes.get(&inode)?;
        node.attributes.filter(|_| node.holding.rights().contains(Rights::INODE))
    }

    /// The answer, when it can be given from here.
    pub fn answer(&mut self, operation: &Operation) -> Option<(Result<Outcome, Errno>, Kept)> {
        match operation {
            Operation::Lookup { parent, name } => {
                let named = self.stands_for(*parent, name)?;
                let answer = match named {
                    Named::Unknown => return None,
                    Named::Absent => (Err(Errno::ENOENT), Kept { entry: true, ..Kept::default() }),
                    Named::Child(child) => {
                        let attributes = self.attributes(child)?;
                        let node = self.node(child);
                        node.via = Some(*parent);
                        node.told = true;
                        let kept = Kept { entry: true, attributes: !node.was_read, ..Kept::default() };
                        (Ok(Outcome::Entry(attributes)), kept)
                    }
                };
                let names = self.node(*parent).names();
                names.tell_found(name, named);
                names.ahead.hit();
                Some(answer)
            }
            Operation::ReadDirectory { inode, after, with_attributes, .. } => {
                self.list(*inode, *after, *with_attributes)
            }
            Operation::GetAttributes { inode } => {
                let attributes = self.attributes(*inode)?;
                let node = self.node(*inode);
                if node.was_read {
                    return None;
                }
                node.told = true;
                Some((Ok(Outcome::Entry(attributes)), Kept { attributes: true, ..Kept::default() }))
            }
            Operation::Open { inode, flags } if !flags.truncate => {
                let attributes = self.attributes(*inode)?;
                // A file that loses its last name, or has, stays only for opens that the authority knows of.
                if attributes.kind() != FileKind::Regular || attributes.links == 0 || self.taking > 0 {
                    return None;
                }
                let node = self.node(*inode);
                // It publishes a linked file when nobody has it open for writing any more.
                if flags.writes && !node.holding.rights().contains(Rights::INODE_EXCLUSIVE) {
                    return None;
                }
                node.local_opens += 1;
                node.told = true;
                Some((Ok(Outcome::Entry(attributes)), Kept { attributes: true, ..Kept::default() }))
            }
            Operation::ListXattrs { inode } if self.is_bare(*inode) => {
                Some((Ok(Outcome::Data(Default::default())), Kept::default()))
            }
            // What every file system keeps there; others may be made up by the authority.
            Operation::GetXattr { inode, name } if is_common(name) && self.is_bare(*inode) => {
                Some((Err(Errno::ENODATA), Kept::default()))
            }
            _ => None,
        }
    }

    /// What a name stands for, while its directory's names are held.
    fn stands_for(&self, parent: InodeId, name: &Name) -> Option<Named> {
        if name.is_hidden(parent) {
            return None;
        }
        let directory = self.nodes.get(&parent)?;
        directory.names.as_ref().filter(|_| directory.holding.rights().contains(Rights::NAMES))?.get(name)
    }

    /// Part of a listing.
    fn list(&mut self, inode: InodeId, after: u64, with_attributes: bool) -> Option<(Result<Outcome, Errno>, Kept)> {
        let directory = self.nodes.get(&inode).filter(|node| node.holding.rights().contains(Rights::NAMES))?;
        let page = directory.names.as_ref()?.page.as_ref()?;
        let moves = |a: Attributes| Timestamp::access_moves(a.accessed, a.modified, a.changed);
        if !page.is_access && self.attributes(inode).is_none_or(moves) {
            return None;
        }
        let (mut entries, end) = (page.behind(after)?.to_vec(), page.end);
        let mut kept = Kept::default();
        for entry in entries.iter_mut().filter(|_| with_attributes) {
            entry.attributes = self.attributes(entry.inode);
            kept.listed.push(entry.attributes.is_some() && !self.node(entry.inode).was_read);
        }
        if with_attributes {
            self.show(inode, &entries, &mut kept);
        }
        Some((Ok(Outcome::Listing { entries, end }), kept))
    }

    /// What to do about an operation that has to be asked for.
    pub fn miss(&mut self, operation: &Operation) -> Miss {
        match operation {
            // No listing brings it, or any right to it.
            Operation::Lookup { parent, name } if name.is_hidden(*parent) || parent.snapshot().is_some() => Miss::Ask,
            Operation::Lookup { parent, .. } => {
                let is_small = self.attributes(*parent).is_some_and(|a| a.size <= prefetch::SMALL_BYTES_MAX);
                let names = self.node(*parent).names();
                let miss = names.ahead.miss(*parent, is_small && !names.complete);
                if matches!(miss, Miss::Wait | Miss::ListFirst(_)) {
                    count(&mut self.under_way, locked_by(operation));
                }
                miss
            }
            _ => Miss::Ask,
        }
    }

    /// What waited for a listing is asked for once more.
    pub fn waited(&mut self, operation: &Operation) {
        uncount(&mut self.under_way, locked_by(operation));
    }

    /// A page of a listing that nobody asked for came, and was installed. Answers what to ask for next.
    pub fn listed_ahead(&mut self, operation: &Operation, result: Result<&Outcome, Errno>) -> Option<Operation> {
        let &Operation::ReadDirectory { inode, .. } = operation else { return None };
        let last = match result {
            Ok(Outcome::Listing { entries, end: false }) => entries.last().map(|entry| entry.cookie),
            _ => None,
        };
        let holds = self.holds_names(inode);
        let names = self.nodes.get_mut(&inode)?.names();
        let next = last.filter(|_| holds && names.may_list());
        names.ahead.came(inode, next)
    }

    /// Keep a page of a listing, instead of the oldest ones.
    fn keep_page(&mut self, inode: InodeId, page: Page) {
        // Each directory costs something, also an empty one.
        let cost = page.entries.len() + 1;
        self.pages += 1;
        let number = self.pages;
        self.paged_entries += cost;
        self.paged.push_back((inode, number, cost));
        self.node(inode).names().page = Some(Page { number, ..page });
        while self.paged_entries > LISTED_KEPT_MAX
            && let Some((oldest, number, cost)) = self.paged.pop_front()
        {
            self.paged_entries -= cost;
            // It may have had another one since.
            if let Some(names) = self.nodes.get_mut(&oldest).and_then(|node| node.names.as_mut()) {
                names.page.take_if(|page| page.number == number);
            }
        }
    }

    fn is_bare(&self, inode: InodeId) -> bool {
        let is_bare = self.nodes.get(&inode).is_some_and(|node| node.is_bare);
        is_bare && self.attributes(inode).is_some_and(|attributes| attributes.kind() != FileKind::Symlink)
    }

    /// A request goes to the authority. Answers how much of the journal it must not miss.
    pub fn starts(&mut self, operation: &Operation) -> JournalPosition {
        use Operation as O;
        for (inode, count) in self.opens_before(operation) {
            self.tell_opens(inode, count);
        }
        count(&mut self.under_way, locked_by(operation));
        count(&mut self.changing, changed_by(operation));
        self.taking += u32::from(takes_name(operation));
        if let O::SetXattr { inode, .. } | O::RemoveXattr { inode, .. } = operation {
            let node = self.node(*inode);
            node.is_bare = false;
            node.may_pass_acl = true;
        }
        self.position(operation)
    }

    /// How much of the journal an operation must not miss.
    pub fn position(&self, operation: &Operation) -> JournalPosition {
        use Operation as O;
        match operation {
            // What survives of a session's changes is a beginning of them.
            operation if operation.mutates() => self.journal.end(),
            // An open may stand anywhere in it.
            O::Sync | O::Statistics { .. } | O::Release { .. } => self.journal.end(),
            O::Lookup { parent: inode, .. }
            | O::Parent { inode }
            | O::GetAttributes { inode }
            | O::ReadSymlink { inode }
            | O::Open { inode, .. }
            | O::Read { inode, .. }
            | O::Seek { inode, .. }
            | O::ReadDirectory { inode, .. }
            | O::GetXattr { inode, .. }
            | O::ListXattrs { inode } => self.journal.newest(*inode),
            _ => JournalPosition(0),
        }
    }

    fn ends(&mut self, operation: &Operation) {
        uncount(&mut self.under_way, locked_by(operation));
        uncount(&mut self.changing, changed_by(operation));
        self.taking -= u32::from(takes_name(operation));
    }

    /// Whether something was changed here that an answer of the authority misses: it stands behind `after` in the
    /// journal, or was executed after the answer was made.
    fn misses(&self, inode: InodeId, after: JournalPosition, order: Issue) -> bool {
        self.journal.newest(inode) > after || self.nodes.get(&inode).is_some_and(|node| order < node.order)
    }

    /// Correct an answer that may miss what was changed here before it was asked for. False when it must be asked for
    /// again, behind the whole journal.
    pub fn correct(
        &mut self,
        operation: &Operation,
        outcome: &mut Outcome,
        after: JournalPosition,
        order: Issue,
    ) -> bool {
        match (operation, outcome) {
            // Which inode it is about, the answer says first.
            (Operation::Lookup { .. } | Operation::Parent { .. }, Outcome::Entry(attributes))
                if self.misses(attributes.inode, after, order) =>
            {
                match self.attributes(attributes.inode) {
                    Some(known) => *attributes = known,
                    None => return false,
                }
            }
            (_, Outcome::Listing { entries, .. }) => {
                for entry in entries {
                    if self.misses(entry.inode, after, order) {
                        entry.attributes = self.attributes(entry.inode).filter(|_| entry.attributes.is_some());
                    }
                }
            }
            _ => {}
        }
        true
    }

    /// Undo an open; false when the authority has counted it.
    pub fn release(&mut self, inode: InodeId) -> bool {
        match self.nodes.get_mut(&inode) {
            Some(node) if node.local_opens > 0 => {
                node.local_opens -= 1;
                true
            }
            _ => false,
        }
    }

    /// Take the answer of the authority.
    pub fn install(
        &mut self,
        operation: &Operation,
        result: Result<&Outcome, Errno>,
        after: JournalPosition,
        grants: &[Grant],
        order: Issue,
    ) -> Kept {
        use Operation as O;
        self.ends(operation);
        let mut taken: FxHashMap<InodeId, Rights> = FxHashMap::default();
        for grant in grants {
            let node = self.node(grant.inode);
            *taken.entry(grant.inode).or_default() |= node.holding.grant(grant);
            if operation.mutates() && order > node.order {
                node.order = order;
                node.attributes = None;
            }
            if matches!(operation, O::SetXattr { .. } | O::RemoveXattr { .. }) {
                node.is_bare = false;
            }
        }
        let granted = |inode: InodeId, right: Rights| taken.get(&inode).is_some_and(|rights| rights.contains(right));
        let mut kept = Kept::default();
        let entry = result.ok().and_then(Outcome::attributes).copied();
        if let Some(attributes) = entry
            && granted(attributes.inode, Rights::INODE)
        {
            kept.attributes = self.keep(attributes, after, order);
            self.node(attributes.inode).told |= kept.attributes;
            if is_new(operation, result) && granted(attributes.inode, Rights::INODE_EXCLUSIVE) {
                self.node(attributes.inode).is_bare = true;
            }
            if let O::Lookup { parent, .. }
            | O::Create { parent, .. }
            | O::CreateUnnamed { parent, .. }
            | O::MakeNode { parent, .. }
            | O::MakeDirectory { parent, .. }
            | O::MakeSymlink { parent, .. } = operation
            {
                self.node(attributes.inode).via = Some(*parent);
            }
        }
        match operation {
            O::Lookup { parent, name } => {
                let named = match (result, entry) {
                    (Ok(_), Some(attributes)) => Named::Child(attributes.inode),
                    (Err(Errno::ENOENT), _) => Named::Absent,
                    _ => Named::Unknown,
                };
                if named != Named::Unknown && granted(*parent, Rights::NAMES) {
                    kept.entry = self.journal.newest(*parent) <= after && self.name(*parent, name, named, order);
                }
            }
            O::Create { parent, name, .. }
            | O::MakeNode { parent, name, .. }
            | O::MakeDirectory { parent, name, .. }
            | O::MakeSymlink { parent, name, .. }
            | O::Link { parent, name, .. } => {
                if let Some(attributes) = entry {
                    let may = granted(*parent, Rights::NAMES);
                    let named = if may { Named::Child(attributes.inode) } else { Named::Unknown };
                    kept.entry = self.rename(*parent, name, named, order) && may;
                    if matches!(operation, O::MakeDirectory { .. }) && granted(attributes.inode, Rights::NAMES) {
                        // Nobody was in it before.
                        self.node(attributes.inode).names().complete = true;
                    }
                }
            }
            O::Unlink { parent, name } | O::RemoveDirectory { parent, name } if result.is_ok() => {
                let named = if granted(*parent, Rights::NAMES) { Named::Absent } else { Named::Unknown };
                self.rename(*parent, name, named, order);
            }
            O::Rename { parent, name, new_parent, new_name, .. } if result.is_ok() => {
                let kept_by_kernel = |directory| self.holds_names(directory) || self.dropping.contains_key(&directory);
                kept.moved = !(self.holds_names(*parent) && self.holds_names(*new_parent))
                    && (kept_by_kernel(*parent) || kept_by_kernel(*new_parent));
                self.rename(*parent, name, Named::Unknown, order);
                self.rename(*new_parent, new_name, Named::Unknown, order);
            }
            O::Read { inode, .. } => self.read(*inode),
            O::ReadDirectory { inode, after: cookie, ahead, .. } => {
                if let Ok(Outcome::Listing { entries, end }) = result {
                    for entry in entries {
                        let keeps = match entry.attributes {
                            Some(attributes) if granted(entry.inode, Rights::INODE) => {
                                self.keep(attributes, after, order)
                            }
                            _ => false,
                        };
                        kept.listed.push(keeps);
                    }
                    if granted(*inode, Rights::NAMES) {
                        let bare = |entry: &DirectoryEntry| DirectoryEntry { attributes: None, ..entry.clone() };
                        let bare = entries.iter().map(bare).collect();
                        let page = Page { after: *cookie, entries: bare, end: *end, is_access: !ahead, number: 0 };
                        let is_newest = self.install_page(*inode, page, after, order);
                        if is_newest && !ahead {
                            self.show(*inode, entries, &mut kept);
                        }
                    }
                    if !ahead {
                        self.read(*inode);
                    }
                }
            }
            _ => {}
        }
        kept
    }

    /// The authority has read of an inode, and perhaps moved its access time.
    fn read(&mut self, inode: InodeId) {
        if let Some(node) = self.nodes.get_mut(&inode)
            && node.attributes.is_some_and(|a| Timestamp::access_moves(a.accessed, a.modified, a.changed))
        {
            node.was_read = true;
        }
    }

    /// Keep attributes unless newer ones are known.
    fn keep(&mut self, attributes: Attributes, after: JournalPosition, order: Issue) -> bool {
        if self.misses(attributes.inode, after, order) {
            return false;
        }
        let node = self.node(attributes.inode);
        node.order = order;
        node.attributes = Some(attributes);
        node.was_read = false;
        true
    }

    /// False when something newer is known.
    fn install_page(&mut self, inode: InodeId, page: Page, after: JournalPosition, order: Issue) -> bool {
        let newest = self.journal.newest(inode);
        let names = self.node(inode).names();
        let misses = newest > after || order < names.order;
        names.list(&page, misses);
        if !misses {
            self.keep_page(inode, page);
        }
        !misses
    }

    fn holds_names(&self, directory: InodeId) -> bool {
        self.nodes.get(&directory).is_some_and(|node| node.holding.rights().contains(Rights::NAMES))
    }

    /// Keep what a name stands for; false when something newer is known.
    fn name(&mut self, parent: InodeId, name: &Name, named: Named, order: Issue) -> bool {
        let holds = self.holds_names(parent);
        let Some(names) = self.nodes.get_mut(&parent).map(|node| node.names()) else { return false };
        let newest = order >= names.order;
        if newest && holds {
            names.tell(name, named);
        }
        newest
    }

    /// Keep what a change of our own made of a name.
    fn rename(&mut self, parent: InodeId, name: &Name, named: Named, order: Issue) -> bool {
        let newest = self.name(parent, name, named, order);
        let holds = self.holds_names(parent);
        let names = self.node(parent).names();
        names.order = names.order.max(order);
        names.page = None;
        if !newest && holds {
            names.tell(name, Named::Unknown);
        }
        newest
    }

    /// The authority counts these opens from now on. In the journal, so that whatever takes a name later, here or
    /// there, comes behind them.
    fn tell_opens(&mut self, inode: InodeId, count: u32) {
        let made = Made { caller: Caller::default(), at: self.last_made, inode: None };
        for _ in 0..count {
            let operation = Operation::Open { inode, flags: Default::default() };
            // It changes nothing that is kept.
            self.journal.push(Change { made, operation, touches: Vec::new() }, None);
        }
    }

    /// A process asks for a lock, about one, or gives one back. `may_use`: what is held may be used.
    pub fn lock(&mut self, request: Request<Asker>, may_use: bool) -> Moves<Asker> {
        let node = request.operation.locked_inode().and_then(|inode| self.nodes.get(&inode));
        let is_ours = may_use && node.is_some_and(|node| node.holding.rights().contains(Rights::INODE_EXCLUSIVE));
        self.locks.request(request, is_ours, &mut hands_over(&mut self.journal, self.last_made))
    }

    /// Hand all locks over that were decided here.
    pub fn leave_locks(&mut self) -> Moves<Asker> {
        self.locks.leave_all(&mut hands_over(&mut self.journal, self.last_made));
        Moves::default()
    }

    /// Note what locks are held, where that has changed.
    pub fn note_locks(&mut self) {
        let changed = self.locks.take_changed();
        for (inode, locks) in changed {
            self.journal.note(|| Entry::Locks { inode, locks });
        }
    }

    /// Opens that the authority must know of before it executes an operation that may take a file's last name.
    fn opens_before(&mut self, operation: &Operation) -> Vec<(InodeId, u32)> {
        use Operation as O;
        let (parent, name) = match operation {
            O::Unlink { parent, name } | O::Rename { new_parent: parent, new_name: name, .. } => (parent, name),
            _ => return Vec::new(),
        };
        let mut opens = Vec::new();
        let mut take = |inode: InodeId, node: &mut Node| {
            if node.local_opens > 0 {
                opens.push((inode, std::mem::take(&mut node.local_opens)));
            }
        };
        match self.nodes.get(parent).and_then(|directory| directory.names.as_ref()?.get(name)) {
            Some(Named::Child(child)) => {
                if let Some(node) = self.nodes.get_mut(&child) {
                    take(child, node);
                }
            }
            Some(Named::Absent) => {}
            // It may be any of them.
            Some(Named::Unknown) | None => self.nodes.iter_mut().for_each(|(inode, node)| take(*inode, node)),
        }
        opens
    }

    /// What to give up because too much is held: to be treated like recalls. Call about once a second.
    pub fn surplus(&mut self) -> Vec<Recall> {
        self.round += 1;
        if self.nodes.len() > HELD_MAX {
            self.tidy();
        }
        self.surplus_beyond(HELD_MAX, HELD_LEFT)
    }

    /// Forget what nothing is known of any more.
    fn tidy(&mut self) {
        let (journal, floor) = (&self.journal, &mut self.floor);
        self.nodes.retain(|inode, node| {
            let is_used = !node.holding.rights().is_empty() || node.local_opens > 0 || journal.touches(*inode);
            if !is_used {
                *floor = (*floor).max(node.newest());
            }
            is_used
        });
        self.nodes.shrink_to(HELD_MAX);
    }

    fn surplus_beyond(&mut self, most: usize, left: usize) -> Vec<Recall> {
        if self.nodes.len() <= most {
            return Vec::new();
        }
        let held = self.nodes.iter().filter(|(_, node)| !node.holding.rights().is_empty());
        let mut held: Vec<(u32, InodeId)> = held.map(|(inode, node)| (node.used, *inode)).collect();
        if held.len() <= most {
            return Vec::new();
        }
        let surplus = held.len() - left;
        held.select_nth_unstable(surplus);
        held.truncate(surplus);
        let recall = |(_, inode): (u32, InodeId)| {
            let holding = &self.nodes.get(&inode)?.holding;
            // What is being changed is in use.
            let is_idle = !self.journal.touches(inode) && !self.under_way.contains_key(&inode);
            is_idle.then(|| Recall { inode, rights: holding.rights(), issue: holding.issue() })
        };
        held.into_iter().filter_map(recall).collect()
    }

    /// Stop using rights; answers what has to happen before they are given up.
    pub fn recall(&mut self, recall: &Recall) -> Duty {
        let busy = self.under_way.contains_key(&recall.inode);
        // Who changes names has the directory for itself: nobody is in the middle of a listing.
        let is_locked = self.changing.contains_key(&recall.inode);
        if let Some(node) = self.nodes.get_mut(&recall.inode)
            && (node.holding.rights() & recall.rights).overlaps(Rights::INODE)
        {
            let opens = std::mem::take(&mut node.local_opens);
            self.tell_opens(recall.inode, opens);
        }
        if recall.rights.overlaps(Rights::INODE_EXCLUSIVE) {
            self.locks.leave(recall.inode, &mut hands_over(&mut self.journal, self.last_made));
        }
        // All of it: what the others will see of our changes is a beginning of them.
        let unwritten = (self.journal.end() > self.journal.executed()).then_some(self.journal.end());
        let mut duty = Duty { inode: recall.inode, busy, unwritten, ..Duty::default() };
        let Some(node) = self.nodes.get_mut(&recall.inode) else {
            self.floor = self.floor.max(recall.issue);
            return duty;
        };
        let held = node.holding.recall(recall);
        if held.overlaps(Rights::INODE) {
            node.attributes = None;
            node.is_bare = false;
            duty.attributes = std::mem::take(&mut node.told);
            duty.via = node.via.filter(|via| !self.under_way.contains_key(via));
        }
        duty.exclusive = held.overlaps(Rights::INODE_WRITER | Rights::NAMES_WRITER);
        if held.overlaps(Rights::NAMES)
            && let Some(names) = &mut node.names
        {
            duty.shown = names.shown && !is_locked;
            let (told, more) = names.clear();
            let is_directory = |named| matches!(named, Named::Child(child) if self.directories.contains(&child));
            let old = |(name, named)| OldName { name, is_directory: is_directory(named) };
            (duty.names, duty.more_names) = (told.into_iter().map(old).collect(), more);
            if duty.keeps_names() {
                *self.dropping.entry(recall.inode).or_default() += 1;
            }
        }
        duty
    }

    /// The kernel has dropped the names of a recall.
    pub fn dropped(&mut self, directory: InodeId) {
        if let hash_map::Entry::Occupied(mut count) = self.dropping.entry(directory) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// The journal was executed: what comes of it for locks.
    pub fn locks_told(&mut self) -> Told {
        let (told, moves) = self.locks.executed(self.journal.executed());
        let mut result = Told { moves, ..Told::default() };
        for inode in std::mem::take(&mut self.refused) {
            let (owners, mut moves) = self.locks.lose(inode);
            result.lost.push((inode, owners));
            result.moves.answered.append(&mut moves.answered);
        }
        for inode in told {
            if self.nodes.get(&inode).is_some_and(|node| node.is_forgotten) {
                result.given_up.extend(self.forget(inode, 0));
            }
        }
        result
    }

    /// How often the kernel was told of which inodes.
    pub fn known(&self) -> Vec<(InodeId, u64)> {
        self.lookups.iter().map(|(inode, count)| (*inode, *count)).collect()
    }

    /// Go on from what another image of this process knew: nothing is held, and the kernel keeps nothing.
    pub fn restore(known: Vec<(InodeId, u64)>, locks: Vec<(InodeId, Vec<Lock>)>, journal: JournalPosition) -> Cache {
        let mut cache = Cache { lookups: known.into_iter().collect(), ..Cache::default() };
        cache.journal = Journal::starting_at(journal);
        cache.locks.restore(locks);
        cache
    }

    /// Go on from what a process knew that was killed. How often it told the kernel of an inode is not known: the kernel
    /// is never taken to have forgotten one of them. Answers opens that the authority counts and nobody has.
    pub fn revive(known: &Known, chronicle: Arc<Chronicle>) -> (Cache, Vec<InodeId>) {
        let mut cache =
            Cache { lookups: known.inodes.iter().map(|inode| (*inode, LOOKUPS_UNKNOWN)).collect(), ..Cache::default() };
        cache.journal = Journal::restore(known);
        cache.journal.note_in(chronicle);
        let mut here: FxHashMap<InodeId, i64> = FxHashMap::default();
        known.handles.values().chain(known.opening.values()).for_each(|inode| *here.entry(*inode).or_default() += 1);
        known.opens.iter().for_each(|(inode, count)| *here.entry(*inode).or_default() -= count);
        for operation in known.said.values().flatten() {
            match operation {
                Operation::Open { inode, .. } => *here.entry(*inode).or_default() -= 1,
                Operation::Release { inode } => *here.entry(*inode).or_default() += 1,
                _ => {}
            }
        }
        let mut surplus = Vec::new();
        for (inode, count) in here {
            match u32::try_from(count) {
                Ok(0) => {}
                Ok(count) => cache.node(inode).local_opens = count,
                Err(_) => surplus.extend((count..0).map(|_| inode)),
            }
        }
        let locks = known.locks.iter().map(|(inode, locks)| (*inode, locks.clone())).collect();
        cache.locks.revive(locks);
        cache.leave_locks();
        (cache, surplus)
    }

    /// The kernel was told of an inode once more.
    pub fn looked_up(&mut self, inode: InodeId, kind: FileKind) {
        let count = self.lookups.entry(inode).or_default();
        *count += 1;
        if *count == 1 {
            self.journal.note(|| Entry::Shown(inode));
        }
        if kind == FileKind::Directory {
            self.directories.insert(inode);
        }
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.is_forgotten = false;
        }
    }

    /// The kernel forgot an inode so many times; what it held is given up when that was the last.
    pub fn forget(&mut self, inode: InodeId, times: u64) -> Option<Recall> {
        if let Some(lookups) = self.lookups.get_mut(&inode) {
            *lookups = lookups.saturating_sub(times);
            if *lookups > 0 {
                return None;
            }
            self.lookups.remove(&inode);
            self.directories.remove(&inode);
            self.journal.note(|| Entry::Forgotten(inode));
        }
        let node = self.nodes.get_mut(&inode)?;
        if node.local_opens > 0 || inode == InodeId::ROOT {
            return None;
        }
        if self.locks.is_untold(inode) {
            self.locks.leave(inode, &mut hands_over(&mut self.journal, self.last_made));
        }
        if self.journal.touches(inode) || self.locks.is_being_told(inode) {
            node.is_forgotten = true;
            return None;
        }
        // The kernel keeps no names of a directory that it forgot.
        let mut node = self.nodes.remove(&inode)?;
        let given_up = node.holding.release(inode, Rights::ALL);
        self.floor = self.floor.max(node.newest());
        (!given_up.rights.is_empty()).then_some(given_up)
    }

    /// The kernel is given a listing. Without the right to keep the names it looks each up, and takes the attributes then.
    fn show(&mut self, directory: InodeId, entries: &[DirectoryEntry], kept: &mut Kept) {
        kept.entry = !self.hides_listings && self.node(directory).names().show(entries);
        for entry in entries.iter().filter(|entry| kept.entry && entry.attributes.is_some()) {
            let node = self.node(entry.inode);
            node.via = Some(directory);
            node.told = true;
        }
    }

    /// The kernel has taken in all names that it was given.
    pub fn settled(&mut self) {
        self.nodes.values_mut().filter_map(|node| node.names.as_mut()).for_each(|names| names.shown = false);
    }

    /// Directories of which the kernel may just be taking in names of a listing.
    pub fn shown(&self) -> Vec<InodeId> {
        let shown = |node: &Node| node.names.as_ref().is_some_and(|names| names.shown);
        self.nodes.iter().filter(|(_, node)| shown(node)).map(|(inode, _)| *inode).collect()
    }

    /// Forget everything that rests on leases; answers the inodes that the kernel knows, and what is [`Cache::shown`].
    pub fn clear(&mut self) -> (Vec<InodeId>, Vec<InodeId>) {
        let shown = self.shown();
        self.locks.leave_all(&mut hands_over(&mut self.journal, self.last_made));
        self.floor = self.nodes.values().map(|node| node.newest()).fold(self.floor, Issue::max);
        let floor = self.floor;
        self.nodes.retain(|_, node| {
            let (local_opens, via) = (node.local_opens, node.via);
            **node = Node { holding: Holding::since(floor), local_opens, via, ..Node::default() };
            local_opens > 0
        });
        self.paged.clear();
        self.paged_entries = 0;
        (self.lookups.keys().copied().chain([InodeId::ROOT]).collect(), shown)
    }

    /// Opens that the authority does not know of; it is told of them at once.
    pub fn take_opens(&mut self) -> Vec<(InodeId, u32)> {
        let opens = self.nodes.iter_mut().map(|(inode, node)| (*inode, std::mem::take(&mut node.local_opens)));
        opens.filter(|(_, count)| *count > 0).collect()
    }

    /// The authority has not heard of these opens.
    pub fn untold(&mut self, opens: Vec<InodeId>) {
        for inode in opens {
            if let Some(node) = self.nodes.get_mut(&inode) {
                node.local_opens += 1;
            }
        }
    }
}

/// Whether the operation made an inode.
fn is_new(operation: &Operation, result: Result<&Outcome, Errno>) -> bool {
    use Operation as O;
    match operation {
        O::Create { .. } => matches!(result, Ok(Outcome::Created { new: true, .. })),
        O::MakeNode { .. } | O::MakeDirectory { .. } | O::MakeSymlink { .. } => result.is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::Mode;
    use atoll_types::operation::RenameMode;

    const DIRECTORY: InodeId = InodeId(5);
    const FILE: InodeId = InodeId(7);
    const ASKED: JournalPosition = JournalPosition(0);

    fn file(size: u64) -> Attributes {
        Attributes {
            inode: FILE,
            mode: Mode::new(FileKind::Regular, 0o644),
            links: 1,
            uid: 0,
            gid: 0,
            device: 0,
            size,
            allocated: 0,
            accessed: Timestamp { seconds: 1 << 40, nanos: 0 },
            modified: Timestamp::default(),
            changed: Timestamp::default(),
            created: Timestamp::default(),
            quota_root: InodeId::NONE,
        }
    }

    fn name() -> Name {
        Name::new(&b"f"[..]).unwrap()
    }

    fn lookup() -> Operation {
        Operation::Lookup { parent: DIRECTORY, name: name() }
    }

    fn grants(issue: u64) -> Vec<Grant> {
        let grant = |inode, rights| Grant { inode, rights, issue: Issue(issue) };
        vec![grant(DIRECTORY, Rights::NAMES), grant(FILE, Rights::INODE)]
    }

    fn looked_up(cache: &mut Cache, size: u64, order: u64) -> Kept {
        cache.install(&lookup(), Ok(&Outcome::Entry(file(size))), ASKED, &grants(order), Issue(order))
    }

    #[test]
    fn what_is_granted_is_answered_until_it_is_recalled() {
        let mut cache = Cache::default();
        assert!(cache.answer(&lookup()).is_none());
        let kept = looked_up(&mut cache, 3, 1);
        assert!(kept.entry && kept.attributes);
        assert!(cache.answer(&lookup()).is_some());
        let recall = Recall { inode: FILE, rights: Rights::INODE_EXCLUSIVE, issue: Issue(1) };
        cache.recall(&recall);
        assert!(cache.answer(&lookup()).is_none());
    }

    #[test]
    fn an_answer_that_a_recall_overtook_is_not_kept() {
        let mut cache = Cache::default();
        cache.recall(&Recall { inode: FILE, rights: Rights::INODE_EXCLUSIVE, issue: Issue(9) });
        let kept = looked_up(&mut cache, 3, 9);
        assert!(!kept.attributes);
        assert!(looked_up(&mut cache, 3, 10).attributes);
    }

    #[test]
    fn an_answer_that_our_own_change_overtook_is_not_kept() {
        let mut cache = Cache::default();
        looked_up(&mut cache, 1, 1);
        let changes = Default::default();
        let change = Operation::SetAttributes { inode: FILE, changes };
        let grant = [Grant { inode: FILE, rights: Rights::INODE, issue: Issue(4) }];
        cache.install(&change, Ok(&Outcome::Entry(file(2))), ASKED, &grant, Issue(4));
        assert!(!looked_up(&mut cache, 1, 3).attributes);
        let get = Operation::GetAttributes { inode: FILE };
        assert_eq!(cache.answer(&get).unwrap().0, Ok(Outcome::Entry(file(2))));
    }

    fn old(name: Name) -> OldName {
        OldName { name, is_directory: false }
    }

    #[test]
    fn a_name_that_is_dropped_is_known_to_be_of_a_directory_as_long_as_the_kernel_knows_it() {
        for forgets in [false, true] {
            let mut cache = Cache::default();
            looked_up(&mut cache, 1, 1);
            cache.looked_up(FILE, FileKind::Directory);
            if forgets {
                cache.looked_up(FILE, FileKind::Directory);
                cache.forget(FILE, 2);
            }
            let duty = cache.recall(&Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(1) });
            assert_eq!(duty.names, [OldName { name: name(), is_directory: !forgets }]);
        }
    }

    #[test]
    fn a_name_moves_with_the_right_to_be_kept_only_if_the_kernel_may_keep_it() {
        let to = InodeId(9);
        let moved = |cache: &mut Cache, order| {
            let (new_parent, new_name, mode) = (to, name(), RenameMode::Replace);
            let rename = Operation::Rename { parent: DIRECTORY, name: name(), new_parent, new_name, mode };
            cache.starts(&rename);
            cache.install(&rename, Ok(&Outcome::Done), ASKED, &[], Issue(order)).moved
        };
        let recall = |inode, issue| Recall { inode, rights: Rights::NAMES, issue: Issue(issue) };
        let mut cache = Cache::default();
        assert!(!moved(&mut cache, 1), "it was never kept");
        looked_up(&mut cache, 2, 2);
        assert!(moved(&mut cache, 3));
        looked_up(&mut cache, 4, 4);
        let duty = cache.recall(&recall(DIRECTORY, 4));
        assert!(duty.keeps_names() && moved(&mut cache, 5), "it is kept until it was dropped");
        cache.dropped(DIRECTORY);
        assert!(!moved(&mut cache, 6));

        looked_up(&mut cache, 7, 7);
        let names = [Grant { inode: to, rights: Rights::NAMES, issue: Issue(7) }];
        let lookup = Operation::Lookup { parent: to, name: Name::new(&b"other"[..]).unwrap() };
        cache.starts(&lookup);
        cache.install(&lookup, Err(Errno::ENOENT), ASKED, &names, Issue(7));
        assert!(!moved(&mut cache, 8), "it may be kept where it is now");
        cache.recall(&recall(to, 7));
        assert!(moved(&mut cache, 9));
    }

    #[test]
    fn a_name_that_we_moved_away_is_not_answered() {
        let mut cache = Cache::default();
        looked_up(&mut cache, 1, 1);
        let to = Name::new(&b"g"[..]).unwrap();
        let (parent, new_parent) = (DIRECTORY, DIRECTORY);
        let rename = Operation::Rename { parent, name: name(), new_parent, new_name: to, mode: RenameMode::Replace };
        cache.starts(&rename);
        cache.install(&rename, Ok(&Outcome::Done), ASKED, &grants(5), Issue(5));
        assert!(cache.answer(&lookup()).is_none());
        assert!(!looked_up(&mut cache, 1, 4).entry, "an older answer does not bring it back");
        assert!(cache.answer(&lookup()).is_none());
    }

    #[test]
    fn a_directory_that_we_made_is_known_whole_until_it_is_recalled() {
        let mut cache = Cache::default();
        let (parent, made) = (InodeId::ROOT, Attributes { inode: DIRECTORY, ..file(0) });
        let make = Operation::MakeDirectory { parent, name: name(), permissions: 0o755, umask: 0 };
        let grant = [Grant { inode: DIRECTORY, rights: Rights::INODE | Rights::NAMES, issue: Issue(1) }];
        cache.install(&make, Ok(&Outcome::Entry(made)), ASKED, &grant, Issue(1));
        assert_eq!(cache.answer(&lookup()).unwrap().0, Err(Errno::ENOENT));
        let duty = cache.recall(&Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(1) });
        assert_eq!(duty.names, [old(name())], "the kernel may keep that it is not there");
        assert!(cache.answer(&lookup()).is_none());
    }

    #[test]
    fn the_authority_hears_of_an_open_before_the_name_goes() {
        let mut cache = Cache::default();
        looked_up(&mut cache, 1, 1);
        let open = Operation::Open { inode: FILE, flags: Default::default() };
        assert!(cache.answer(&open).is_some() && cache.answer(&open).is_some());
        let unlink = Operation::Unlink { parent: DIRECTORY, name: name() };
        assert_eq!(cache.starts(&unlink), JournalPosition(2), "the unlink is executed behind both");
        let told = cache.journal.next_batch(true).unwrap().operations;
        assert_eq!(told, [open.clone(), open]);
        assert!(!cache.release(FILE), "the authority counts them");
        assert_eq!(cache.position(&Operation::Release { inode: FILE }), JournalPosition(2));
        assert!(!cache.journal.touches(FILE), "answers of the authority are as good as before");
    }

    #[test]
    fn the_authority_hears_of_who_will_write_unless_it_can_change_nothing_meanwhile() {
        let open = Operation::Open {
            inode: FILE,
            flags: atoll_types::operation::OpenFlags { writes: true, ..Default::default() },
        };
        let mut cache = Cache::default();
        looked_up(&mut cache, 1, 1);
        assert!(cache.answer(&open).is_none());
        cache.node(FILE).holding.own(Rights::INODE_EXCLUSIVE);
        assert!(cache.answer(&open).is_some());
    }

    #[test]
    fn the_authority_hears_of_an_open_before_its_right_is_given_up() {
        let mut cache = Cache::default();
        looked_up(&mut cache, 1, 1);
        assert!(cache.answer(&Operation::Open { inode: FILE, flags: Default::default() }).is_some());
        let duty = cache.recall(&Recall { inode: FILE, rights: Rights::INODE_EXCLUSIVE, issue: Issue(1) });
        assert_eq!(duty.unwritten, Some(JournalPosition(1)));
        assert!(!cache.release(FILE));
    }

    #[test]
    fn what_was_not_used_lately_is_given_up_when_too_much_is_held() {
        let mut cache = Cache::default();
        let grant = |inode| [Grant { inode, rights: Rights::INODE, issue: Issue(inode.0) }];
        for number in 1..=10 {
            let inode = InodeId(number);
            let outcome = Outcome::Entry(Attributes { inode, ..file(0) });
            let get = Operation::GetAttributes { inode };
            cache.install(&get, Ok(&outcome), ASKED, &grant(inode), Issue(number));
        }
        cache.round += 1;
        for number in 1..=4 {
            assert!(cache.answer(&Operation::GetAttributes { inode: InodeId(number) }).is_some());
        }
        assert!(cache.surplus_beyond(10, 8).is_empty());
        let mut given_up = cache.surplus_beyond(9, 4);
        given_up.sort_by_key(|recall| recall.inode);
        let expected = |inode| Recall { inode: InodeId(inode), rights: Rights::INODE, issue: Issue(inode) };
        assert_eq!(given_up, (5..=10).map(expected).collect::<Vec<_>>());
        for recall in given_up {
            assert!(cache.recall(&recall).attributes);
        }
        assert!(cache.surplus_beyond(9, 4).is_empty());
    }

    #[test]
    fn an_open_outlives_the_connection_and_is_told_before_what_is_asked_for_without_one() {
        let mut cache = Cache::default();
        looked_up(&mut cache, 1, 1);
        assert!(cache.answer(&Operation::Open { inode: FILE, flags: Default::default() }).is_some());
        cache.clear();
        assert_eq!(cache.starts(&Operation::Unlink { parent: DIRECTORY, name: name() }), JournalPosition(1));
        assert!(cache.take_opens().is_empty(), "the journal tells of it");
        let (_, opens) = cache.journal.discard(false);
        cache.untold(opens);
        assert_eq!(cache.take_opens(), [(FILE, 1)], "the next session has to hear of it");
    }

    #[test]
    fn while_a_name_goes_the_authority_is_asked_for_opens() {
        let mut cache = Cache::default();
        looked_up(&mut cache, 1, 1);
        let open = Operation::Open { inode: FILE, flags: Default::default() };
        let unlink = Operation::Unlink { parent: DIRECTORY, name: name() };
        let after = cache.starts(&unlink);
        assert!(cache.answer(&open).is_none(), "the authority would not hear of it in time");
        cache.install(&unlink, Err(Errno::EIO), after, &[], Issue(2));
        assert!(cache.answer(&open).is_some());
    }

    #[test]
    fn what_was_forgotten_is_given_up_and_older_grants_are_void() {
        let mut cache = Cache::default();
        looked_up(&mut cache, 1, 3);
        cache.looked_up(FILE, FileKind::Regular);
        let given_up = cache.forget(FILE, 1).unwrap();
        assert_eq!((given_up.rights, given_up.issue), (Rights::INODE, Issue(3)));
        assert!(!looked_up(&mut cache, 1, 2).attributes);
    }

    fn page(after: u64, ahead: bool) -> Operation {
        Operation::ReadDirectory { inode: DIRECTORY, after, entries_max: 512, with_attributes: true, ahead }
    }

    /// A page with one file of this number, called the same.
    fn entry(number: u64) -> DirectoryEntry {
        let inode = InodeId(number);
        let name = Name::new(number.to_string().into_bytes()).unwrap();
        let attributes = Some(Attributes { inode, ..file(number) });
        DirectoryEntry { name, inode, kind: FileKind::Regular, cookie: number, attributes }
    }

    fn listed(cache: &mut Cache, after: u64, number: u64, end: bool, order: u64) {
        let outcome = Outcome::Listing { entries: vec![entry(number)], end };
        let grant = |inode, rights| Grant { inode, rights, issue: Issue(order) };
        let grants = [grant(DIRECTORY, Rights::NAMES), grant(InodeId(number), Rights::INODE)];
        cache.install(&page(after, true), Ok(&outcome), ASKED, &grants, Issue(order));
    }

    fn look(cache: &mut Cache, text: &str) -> Option<Result<InodeId, Errno>> {
        let name = Name::new(text.as_bytes().to_vec()).unwrap();
        let (result, _) = cache.answer(&Operation::Lookup { parent: DIRECTORY, name })?;
        Some(result.map(|outcome| outcome.attributes().unwrap().inode))
    }

    #[test]
    fn a_directory_that_was_listed_whole_is_answered_until_it_is_recalled() {
        let mut cache = Cache::default();
        listed(&mut cache, 0, 20, false, 1);
        assert_eq!(look(&mut cache, "20"), Some(Ok(InodeId(20))));
        assert_eq!(look(&mut cache, "absent"), None);
        listed(&mut cache, 20, 30, true, 2);
        assert_eq!(look(&mut cache, "30"), Some(Ok(InodeId(30))));
        assert_eq!(look(&mut cache, "absent"), Some(Err(Errno::ENOENT)));
        let duty = cache.recall(&Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(2) });
        assert_eq!(duty.names.len(), 3, "the kernel was told of each");
        assert_eq!((look(&mut cache, "20"), look(&mut cache, "absent")), (None, None));
        listed(&mut cache, 30, 40, true, 3);
        assert_eq!(look(&mut cache, "absent"), None, "what comes before it may have changed");
    }

    #[test]
    fn what_was_listed_ahead_is_recalled_without_the_kernel_until_it_asks() {
        let mut cache = Cache::default();
        listed(&mut cache, 0, 20, true, 1);
        listed(&mut cache, 0, 30, true, 2);
        look(&mut cache, "30");
        let recall = |inode| Recall { inode: InodeId(inode), rights: Rights::INODE_EXCLUSIVE, issue: Issue(2) };
        assert!(cache.recall(&recall(20)).is_nothing());
        assert!(cache.recall(&recall(30)).attributes);
        let duty = cache.recall(&Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(2) });
        assert_eq!(duty.names, [old(entry(30).name)]);
    }

    #[test]
    fn a_page_that_a_recall_overtook_is_not_kept() {
        let mut cache = Cache::default();
        listed(&mut cache, 0, 20, false, 1);
        cache.recall(&Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(5) });
        listed(&mut cache, 20, 30, true, 4);
        assert_eq!((look(&mut cache, "30"), look(&mut cache, "absent")), (None, None));
    }

    #[test]
    fn a_page_brings_nothing_back_that_our_own_changes_took() {
        let mut cache = Cache::default();
        listed(&mut cache, 0, 20, false, 1);
        let unlink = Operation::Unlink { parent: DIRECTORY, name: entry(30).name };
        let after = cache.starts(&unlink);
        let grant = [Grant { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(9) }];
        cache.install(&unlink, Ok(&Outcome::Done), after, &grant, Issue(9));
        listed(&mut cache, 20, 30, true, 5);
        assert_eq!(look(&mut cache, "30"), Some(Err(Errno::ENOENT)));
        assert_eq!(look(&mut cache, "20"), Some(Ok(InodeId(20))));
    }

    #[test]
    fn the_kernel_is_answered_from_a_page_that_it_has_read_a_part_of() {
        let mut cache = Cache::default();
        let entries: Vec<DirectoryEntry> = (10..20).map(entry).collect();
        let outcome = Outcome::Listing { entries, end: true };
        let grant = |inode, rights| Grant { inode, rights, issue: Issue(1) };
        let grants = [grant(DIRECTORY, Rights::NAMES), grant(InodeId(15), Rights::INODE)];
        cache.starts(&page(0, false));
        cache.install(&page(0, false), Ok(&outcome), ASKED, &grants, Issue(1));
        let (rest, kept) = cache.answer(&page(13, false)).unwrap();
        let Ok(Outcome::Listing { entries, end: true }) = rest else { panic!("{rest:?}") };
        assert_eq!(entries.iter().map(|entry| entry.cookie).collect::<Vec<_>>(), (14..20).collect::<Vec<_>>());
        assert_eq!(entries.iter().position(|entry| entry.attributes.is_some()), Some(1));
        assert_eq!(kept.listed, [false, true, false, false, false, false]);
        assert!(
            matches!(cache.answer(&page(19, false)), Some((Ok(Outcome::Listing { entries, .. }), _)) if entries.is_empty())
        );
        cache.recall(&Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(1) });
        assert!(cache.answer(&page(13, false)).is_none());
    }

    #[test]
    fn names_of_a_listing_are_kept_by_the_kernel_and_dropped_when_it_has_taken_them_in() {
        let mut cache = Cache::default();
        let outcome =
            Outcome::Listing { entries: vec![entry(20), DirectoryEntry { attributes: None, ..entry(30) }], end: true };
        let grant = |inode, rights, issue| Grant { inode, rights, issue: Issue(issue) };
        let listed = |cache: &mut Cache, order| {
            let grants = [grant(DIRECTORY, Rights::NAMES, order), grant(InodeId(20), Rights::INODE, order)];
            cache.starts(&page(0, false));
            cache.install(&page(0, false), Ok(&outcome), ASKED, &grants, Issue(order)).entry
        };
        let recall = |issue| Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(issue) };
        assert!(listed(&mut cache, 1));
        let duty = cache.recall(&recall(1));
        let names = vec![old(entry(20).name)];
        assert_eq!((duty.names, duty.shown), (names, true), "it is told only of what has attributes");
        assert!(!listed(&mut cache, 1), "the recall overtook it");
        assert!(!cache.recall(&recall(1)).shown);
        assert!(listed(&mut cache, 2));
        let unlink = Operation::Unlink { parent: DIRECTORY, name: entry(20).name };
        cache.starts(&unlink);
        assert!(!cache.recall(&recall(2)).shown, "nobody lists a directory in which a name changes");
        listed(&mut cache, 3);
        assert_eq!(cache.clear().1, [DIRECTORY]);
    }

    /// A page of 4,096 entries, which is not the last one.
    fn large_page(cache: &mut Cache, first: u64) -> Kept {
        let entries: Vec<DirectoryEntry> = (first..first + 4_096).map(entry).collect();
        let grant = |inode, rights| Grant { inode, rights, issue: Issue(first) };
        let mut grants = vec![grant(DIRECTORY, Rights::NAMES)];
        grants.extend(entries.iter().map(|entry| grant(entry.inode, Rights::INODE)));
        let page = page(first - 1, false);
        cache.starts(&page);
        cache.install(&page, Ok(&Outcome::Listing { entries, end: false }), ASKED, &grants, Issue(first))
    }

    #[test]
    fn names_of_a_large_listing_pass_by_and_are_answered_meanwhile() {
        let mut cache = Cache::default();
        let pages = (0..20).map(|page| 100 + page * 4_096);
        let kept: Vec<bool> = pages.map(|first| large_page(&mut cache, first).entry).collect();
        let rest = cache.answer(&page(100 + 20 * 4_096 - 10, false));
        let Some((Ok(Outcome::Listing { entries, .. }), _)) = rest else { panic!("{rest:?}") };
        assert_eq!(entries.len(), 9, "the last page is there, however many there were before");
        assert_eq!(kept, [true; 20]);
        let (first, passed, last) = (100, 100 + 16 * 4_096, 100 + 20 * 4_096 - 1);
        assert_eq!(look(&mut cache, &first.to_string()), Some(Ok(InodeId(first))));
        assert_eq!(look(&mut cache, &passed.to_string()), None, "it is long gone");
        let lookup = Operation::Lookup { parent: DIRECTORY, name: entry(last).name };
        let (_, kept) = cache.answer(&lookup).unwrap();
        assert!(kept.attributes && kept.entry);
        assert_eq!(look(&mut cache, "absent"), None);
        // A change of our own is newer than what passed.
        let unlink = Operation::Unlink { parent: DIRECTORY, name: entry(last).name };
        let after = cache.starts(&unlink);
        let grant = [Grant { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(1 << 40) }];
        cache.install(&unlink, Ok(&Outcome::Done), after, &grant, Issue(1 << 40));
        assert_eq!(look(&mut cache, &last.to_string()), Some(Err(Errno::ENOENT)));
        let duty = cache.recall(&Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(1 << 40) });
        assert_eq!((duty.names.len(), duty.more_names), (16 * 4_096 + 1, true));
        assert_eq!(look(&mut cache, &(last - 1).to_string()), None);
    }

    #[test]
    fn a_lookup_waits_for_a_listing_that_is_on_its_way() {
        let mut cache = Cache::default();
        let miss = |cache: &mut Cache| cache.miss(&lookup());
        for _ in 0..3 {
            assert_eq!(miss(&mut cache), Miss::Ask);
        }
        assert_eq!(miss(&mut cache), Miss::List(page(0, true)));
        assert_eq!(miss(&mut cache), Miss::Wait);
        let duty = cache.recall(&Recall { inode: DIRECTORY, rights: Rights::NAMES, issue: Issue(1) });
        assert!(duty.busy, "the kernel holds the directory's lock meanwhile");
        assert_eq!(cache.listed_ahead(&page(0, true), Err(Errno::EAGAIN)), None);
        cache.waited(&lookup());
        assert_eq!(miss(&mut cache), Miss::Ask);
    }
}
