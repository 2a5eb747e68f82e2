//! What the hidden names of the root directory stand for, and `.snapshots`: every snapshot as a read-only directory.
//!
//! An inode that is seen through a snapshot has the snapshot's number in the upper 16 bits of its own. An operation that
//! names such inodes is executed by the snapshot's frozen volume, in the numbers of that; what it answers is translated
//! back. Nothing of it is granted to anybody, so that a snapshot can be deleted while it is used: afterwards its
//! number stands for nothing (`ESTALE`), and no other snapshot gets it soon.
//!
//! Invariant: an operation is executed by a frozen volume only while its snapshot is there: who deletes one waits until
//! nobody is in it, and nobody gets in meanwhile ([`SnapshotDirectory::withdraw`]).
//!
//! Advisory locks on what is seen through a snapshot are the volume's own, under the translated numbers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_store::StoreError;
use atoll_types::operation::DirectoryEntry;
use atoll_types::{Attributes, Errno, FileKind, Hidden, InodeId, Mode, Name, Operation, Outcome, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedSemaphorePermit, RwLock, Semaphore};

use crate::core::Step;
use crate::error::VolumeError;
use crate::snapshots::{Snapshot, among};
use crate::volume::{Asking, Volume};

/// Most snapshots of one volume that are open for who looks below `.snapshots`. Of more, the one that was not used for
/// longest is closed.
pub const OPEN_MAX: usize = 8;
/// Most inodes in the decoded cache of each.
const INODES_CACHED_MAX: usize = 20_000;

/// What an operation that concerns `.snapshots` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// What a hidden name stands for. Goes to the volume if the root has an entry of this name.
    Named(Hidden),
    /// A change of it: the same.
    ChangesName(Hidden),
    /// The directory itself.
    Directory,
    /// Something in a snapshot, in whose own numbers the operation is now.
    Snapshot(u16),
    /// An advisory lock on something in a snapshot.
    Lock(u16),
    Refused(Errno),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Volume,
    Directory,
    Snapshot(u16),
}

impl Place {
    fn of(inode: InodeId) -> Place {
        match inode.snapshot() {
            Some(number) => Place::Snapshot(number),
            None if inode == InodeId::SNAPSHOTS => Place::Directory,
            None => Place::Volume,
        }
    }
}

/// The hidden name on which it works.
fn hidden(operation: &Operation) -> Option<Hidden> {
    use Operation as O;
    match operation {
        O::Lookup { parent, name }
        | O::Create { parent, name, .. }
        | O::MakeNode { parent, name, .. }
        | O::MakeDirectory { parent, name, .. }
        | O::MakeSymlink { parent, name, .. }
        | O::Link { parent, name, .. }
        | O::Unlink { parent, name }
        | O::RemoveDirectory { parent, name } => name.hidden(*parent),
        O::Rename { parent, name, new_parent, new_name, .. } => {
            name.hidden(*parent).or_else(|| new_name.hidden(*new_parent))
        }
        _ => None,
    }
}

/// Where an operation goes that is not the volume's own; `None` when it is.
pub(crate) fn route(operation: &mut Operation) -> Option<Route> {
    use Operation as O;
    let (mut places, mut count) = ([Place::Volume; 2], 0);
    operation.inodes_mut(|inode| {
        places[count] = Place::of(*inode);
        count += 1;
    });
    if let O::Parent { inode: InodeId::SNAPSHOTS } = operation {
        *operation = O::GetAttributes { inode: InodeId::ROOT };
        return None;
    }
    if places == [Place::Volume; 2] {
        let hidden = hidden(operation)?;
        return Some(if operation.mutates() { Route::ChangesName(hidden) } else { Route::Named(hidden) });
    }
    let [first, second] = places;
    Some(match operation {
        // It comes from a read-only file system into another one.
        O::Link { .. } | O::Rename { .. } | O::CloneRange { .. } if second == Place::Volume => {
            Route::Refused(Errno::EXDEV)
        }
        operation if operation.mutates() => Route::Refused(Errno::EROFS),
        // They name no snapshot that has to be there.
        O::Release { .. } | O::Unlock { .. } | O::HoldLocks { .. } => return None,
        O::SetLock { .. } | O::TestLock { .. } => match first {
            Place::Snapshot(number) => Route::Lock(number),
            _ => return None,
        },
        operation => match first {
            Place::Snapshot(number) => {
                operation.inodes_mut(|inode| *inode = inode.in_volume());
                Route::Snapshot(number)
            }
            _ => Route::Directory,
        },
    })
}

/// An answer of a snapshot's volume, in the numbers by which it is seen from here.
fn seen_through(number: u16, outcome: Outcome) -> Outcome {
    let seen = |attributes: Attributes| Attributes { inode: attributes.inode.in_snapshot(number), ..attributes };
    match outcome {
        Outcome::Entry(attributes) => Outcome::Entry(seen(attributes)),
        Outcome::Listing { mut entries, end } => {
            for entry in &mut entries {
                entry.inode = entry.inode.in_snapshot(number);
                entry.attributes = entry.attributes.map(seen);
            }
            Outcome::Listing { entries, end }
        }
        other => other,
    }
}

struct Opened {
    volume: Volume,
    _place: OwnedSemaphorePermit,
}

enum Slot {
    Closed,
    Open(Opened),
    /// It is being deleted.
    Withdrawn,
}

struct Frozen {
    /// Held for reading by who is in it.
    slot: Arc<RwLock<Slot>>,
    /// When it was used last, in uses of any.
    used: u64,
}

pub(crate) struct SnapshotDirectory {
    /// As the store has them; nothing when that is to be asked.
    known: Mutex<Option<Arc<Vec<Snapshot>>>>,
    frozen: Mutex<HashMap<u16, Frozen>>,
    places: Arc<Semaphore>,
    uses: AtomicU64,
}

impl SnapshotDirectory {
    pub fn new(known: Vec<Snapshot>) -> Self {
        SnapshotDirectory {
            known: Mutex::new(Some(Arc::new(known))),
            frozen: Mutex::default(),
            places: Arc::new(Semaphore::new(OPEN_MAX)),
            uses: AtomicU64::new(0),
        }
    }

    pub fn opened(&self) -> usize {
        OPEN_MAX - self.places.available_permits()
    }

    fn slot(&self, number: u16) -> Arc<RwLock<Slot>> {
        let used = self.uses.fetch_add(1, Ordering::Relaxed);
        let mut frozen = self.frozen.lock();
        let new = || Frozen { slot: Arc::new(RwLock::new(Slot::Closed)), used };
        let found = frozen.entry(number).or_insert_with(new);
        found.used = used;
        found.slot.clone()
    }

    /// Let nobody into a snapshot any more, and wait until nobody is in it.
    pub async fn withdraw(&self, number: u16) {
        if let Some(known) = &mut *self.known.lock() {
            let left = known.iter().filter(|found| found.number != number).cloned().collect();
            *known = Arc::new(left);
        }
        *self.slot(number).write().await = Slot::Withdrawn;
    }

    /// It was deleted, or not.
    pub fn withdrawn(&self, number: u16) {
        self.frozen.lock().remove(&number);
    }

    /// Room to open one more: the one that was not used for longest is closed.
    async fn place(&self) -> Result<OwnedSemaphorePermit, Errno> {
        loop {
            if let Ok(place) = self.places.clone().try_acquire_owned() {
                return Ok(place);
            }
            let open = |frozen: &&Frozen| frozen.slot.try_read().is_ok_and(|slot| matches!(*slot, Slot::Open(_)));
            let oldest =
                self.frozen.lock().values().filter(open).min_by_key(|frozen| frozen.used).map(|f| f.slot.clone());
            let Some(oldest) = oldest else {
                // All of them are just being opened or closed.
                return self.places.clone().acquire_owned().await.map_err(|_| Errno::EIO);
            };
            let mut slot = oldest.write().await;
            if matches!(*slot, Slot::Open(_)) {
                *slot = Slot::Closed;
            }
        }
    }

    /// Close all.
    pub fn clear(&self) {
        self.frozen.lock().clear();
    }
}

/// A snapshot that stays while this is held.
struct Inside(OwnedRwLockReadGuard<Slot>);

impl Inside {
    fn volume(&self) -> Result<&Volume, Errno> {
        match &*self.0 {
            Slot::Open(opened) => Ok(&opened.volume),
            Slot::Closed | Slot::Withdrawn => Err(Errno::ESTALE),
        }
    }
}

impl Volume {
    /// Have the store asked for the snapshots again. Nobody makes or deletes one meanwhile.
    pub(crate) async fn show_snapshots(&self) {
        let found = self.inner.shared.store.checkpoints().await;
        // Who wants to know asks again.
        *self.inner.snapshot_directory.known.lock() = found.ok().map(|found| Arc::new(among(found)));
    }

    async fn known_snapshots(&self) -> Result<Arc<Vec<Snapshot>>, Errno> {
        let known = &self.inner.snapshot_directory.known;
        if let Some(known) = &*known.lock() {
            return Ok(known.clone());
        }
        let _alone = self.inner.shared.snapshots.lock().await;
        self.show_snapshots().await;
        known.lock().clone().ok_or(Errno::EIO)
    }

    async fn snapshot_numbered(&self, number: u16) -> Result<Snapshot, Errno> {
        let known = self.known_snapshots().await?;
        known.iter().find(|found| found.number == number).cloned().ok_or(Errno::ESTALE)
    }

    /// The volume as it was at the snapshot with this number.
    async fn inside(&self, number: u16) -> Result<Inside, Errno> {
        let snapshot = self.snapshot_numbered(number).await?;
        let directory = &self.inner.snapshot_directory;
        let slot = directory.slot(number);
        let inside = slot.clone().read_owned().await;
        if !matches!(*inside, Slot::Closed) {
            return Ok(Inside(inside));
        }
        drop(inside);
        let place = directory.place().await?;
        let mut opening = slot.write_owned().await;
        if matches!(*opening, Slot::Closed) {
            let failed = |error: VolumeError| match error {
                VolumeError::Store(StoreError::CheckpointMissing(_)) => Errno::ESTALE,
                error => {
                    tracing::error!(%error, snapshot = snapshot.name, "cannot open a snapshot");
                    error.errno()
                }
            };
            let config = &self.inner.shared.config;
            let view = self.inner.shared.store.at(&snapshot.checkpoint()).await;
            let view = view.map_err(|error| failed(error.into()))?;
            let inodes = INODES_CACHED_MAX.min(config.inode_cache_max);
            let volume = self.frozen(view, inodes).await.map_err(failed)?;
            *opening = Slot::Open(Opened { volume, _place: place });
        }
        Ok(Inside(opening.downgrade()))
    }

    /// Whether the root has an entry of its own with this name, from before it meant something else.
    pub(crate) async fn is_taken(&self, hidden: Hidden) -> Result<bool, Errno> {
        let name = Name::new(hidden.name())?;
        let look = |core: &mut crate::core::Core| -> Step<Attributes> { core.lookup(InodeId::ROOT, &name) };
        match self.alone(look).await {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Where an operation goes that is not the volume's own; `None` when it is.
    pub(crate) async fn elsewhere(&self, operation: &mut Operation) -> Option<Route> {
        let route = route(operation)?;
        // A snapshot shows no snapshots.
        if self.inner.shared.config.read_only && route != Route::Named(Hidden::Trash) {
            return None;
        }
        match route {
            Route::Named(hidden) | Route::ChangesName(hidden) => match self.is_taken(hidden).await {
                Ok(true) => None,
                Ok(false) if hidden == Hidden::Trash => self.to_trash(operation).await,
                Ok(false) if operation.mutates() => Some(Route::Refused(Errno::EROFS)),
                Ok(false) => Some(route),
                Err(errno) => Some(Route::Refused(errno)),
            },
            Route::Lock(number) => match self.snapshot_numbered(number).await {
                Ok(_) => None,
                Err(errno) => Some(Route::Refused(errno)),
            },
            route => Some(route),
        }
    }

    /// The trash is there once something was in it. Nothing else gets its name then, nor while something may come into it.
    async fn to_trash(&self, operation: &mut Operation) -> Option<Route> {
        let is_there = match self.alone(|core| core.attributes(InodeId::TRASH)).await {
            Ok(_) => true,
            Err(Errno::ESTALE) => false,
            Err(errno) => return Some(Route::Refused(errno)),
        };
        match (operation.mutates(), is_there) {
            (true, true) => Some(Route::Refused(Errno::EPERM)),
            // It would hide what is kept from then on.
            (true, false) if self.retention().is_some() => Some(Route::Refused(Errno::EPERM)),
            (true, false) => None,
            (false, true) => {
                *operation = Operation::GetAttributes { inode: InodeId::TRASH };
                None
            }
            (false, false) => Some(Route::Refused(Errno::ENOENT)),
        }
    }

    /// Execute an operation that goes elsewhere.
    pub(crate) async fn execute_elsewhere(
        &self,
        asking: Asking<'_>,
        route: Route,
        operation: Operation,
    ) -> Result<Outcome, Errno> {
        match route {
            Route::Refused(errno) => Err(errno),
            Route::Named(_) | Route::ChangesName(_) => Ok(Outcome::Entry(self.snapshot_directory().await?)),
            Route::Directory => self.in_directory(operation).await,
            Route::Lock(number) | Route::Snapshot(number) => self.in_snapshot(asking, number, operation).await,
        }
    }

    async fn in_snapshot(&self, asking: Asking<'_>, number: u16, operation: Operation) -> Result<Outcome, Errno> {
        let operation = match operation {
            Operation::Parent { inode: InodeId::ROOT } => {
                return Ok(Outcome::Entry(self.snapshot_directory().await?));
            }
            // Nothing of it goes away while somebody has it open, but by the deletion of the snapshot.
            Operation::Open { inode, .. } => Operation::GetAttributes { inode },
            operation => operation,
        };
        let inside = self.inside(number).await?;
        let executed = Box::pin(inside.volume()?.execute(asking.session, asking.caller, operation)).await;
        executed.map(|outcome| seen_through(number, outcome))
    }

    async fn snapshot_directory(&self) -> Result<Attributes, Errno> {
        let known = self.known_snapshots().await?;
        let newest = known.iter().map(|found| found.created).max().unwrap_or(0);
        let changed = Timestamp { seconds: newest as i64, nanos: 0 };
        Ok(Attributes {
            inode: InodeId::SNAPSHOTS,
            mode: Mode::new(FileKind::Directory, 0o555),
            links: 2 + known.len() as u32,
            uid: 0,
            gid: 0,
            device: 0,
            size: known.iter().map(|found| found.name.len() as u64).sum(),
            allocated: 0,
            accessed: changed,
            modified: changed,
            changed,
            created: changed,
            quota_root: InodeId::NONE,
        })
    }

    async fn in_directory(&self, operation: Operation) -> Result<Outcome, Errno> {
        use Operation as O;
        match operation {
            O::GetAttributes { .. } | O::Open { .. } => Ok(Outcome::Entry(self.snapshot_directory().await?)),
            O::Lookup { name, .. } => {
                let known = self.known_snapshots().await?;
                let found = known.iter().find(|found| found.name.as_bytes() == name.as_bytes());
                let number = found.ok_or(Errno::ENOENT)?.number;
                let inside = self.inside(number).await?;
                let root = inside.volume()?.alone(|core| core.attributes(InodeId::ROOT)).await?;
                Ok(seen_through(number, Outcome::Entry(root)))
            }
            O::ReadDirectory { after, entries_max, .. } => {
                let known = self.known_snapshots().await?;
                let mut behind: Vec<&Snapshot> = known.iter().filter(|found| u64::from(found.number) > after).collect();
                behind.sort_by_key(|found| found.number);
                let end = behind.len() <= entries_max as usize;
                behind.truncate(entries_max as usize);
                let entry = |found: &Snapshot| {
                    Some(DirectoryEntry {
                        name: Name::new(found.name.clone()).ok()?,
                        inode: InodeId::ROOT.in_snapshot(found.number),
                        kind: FileKind::Directory,
                        cookie: u64::from(found.number),
                        // Each would have to be opened.
                        attributes: None,
                    })
                };
                Ok(Outcome::Listing { entries: behind.into_iter().filter_map(entry).collect(), end })
            }
            O::ListXattrs { .. } => Ok(Outcome::Data(Default::default())),
            O::GetXattr { .. } => Err(Errno::ENODATA),
            O::Read { .. } | O::Seek { .. } => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::operation::{OpenFlags, RenameMode};
    use atoll_types::{ByteRange, limits};

    fn name(text: &str) -> Name {
        Name::new(text.to_owned()).unwrap()
    }

    fn rename(parent: InodeId, new_parent: InodeId) -> Operation {
        let (old, new_name) = (name("a"), name("b"));
        Operation::Rename { parent, name: old, new_parent, new_name, mode: RenameMode::Replace }
    }

    const FILE: InodeId = InodeId(77);

    #[test]
    fn an_operation_goes_where_its_inodes_are() {
        let seen = FILE.in_snapshot(3);
        let read = |inode| Operation::Read { inode, range: ByteRange::at(0, 9) };
        let mut operation = read(seen);
        assert_eq!(route(&mut operation), Some(Route::Snapshot(3)));
        assert_eq!(operation, read(FILE), "in the snapshot's own numbers");
        assert_eq!(route(&mut read(FILE)), None);
        assert_eq!(route(&mut read(InodeId::PREVIOUS)), None);
        assert_eq!(route(&mut Operation::Sync), None);
        assert_eq!(route(&mut Operation::GetAttributes { inode: InodeId::SNAPSHOTS }), Some(Route::Directory));
        let mut above = Operation::Parent { inode: InodeId::SNAPSHOTS };
        assert_eq!(route(&mut above), None);
        assert_eq!(above, Operation::GetAttributes { inode: InodeId::ROOT });
        let lookup = |parent| Operation::Lookup { parent, name: name(".snapshots") };
        assert_eq!(route(&mut lookup(InodeId::ROOT)), Some(Route::Named(Hidden::Snapshots)));
        assert_eq!(route(&mut lookup(FILE)), None, "in the root alone");
        assert_eq!(route(&mut lookup(InodeId::ROOT.in_snapshot(3))), Some(Route::Snapshot(3)));
        assert_eq!(route(&mut Operation::Release { inode: seen }), None);
    }

    #[test]
    fn nothing_below_it_changes_and_nothing_leaves_it_by_another_way_than_copying() {
        let seen = FILE.in_snapshot(limits::SNAPSHOT_NUMBER_MAX);
        let refused = |errno| Some(Route::Refused(errno));
        assert_eq!(route(&mut rename(seen, FILE)), refused(Errno::EXDEV));
        assert_eq!(route(&mut rename(FILE, seen)), refused(Errno::EROFS));
        assert_eq!(route(&mut rename(seen, seen)), refused(Errno::EROFS));
        assert_eq!(route(&mut rename(InodeId::SNAPSHOTS, InodeId::SNAPSHOTS)), refused(Errno::EROFS));
        let link = |inode, parent| Operation::Link { inode, parent, name: name("l") };
        assert_eq!(route(&mut link(seen, FILE)), refused(Errno::EXDEV));
        assert_eq!(route(&mut link(FILE, seen)), refused(Errno::EROFS));
        let clone = |source, target| {
            let (source_offset, target_offset, length) = (0, 0, 9);
            Operation::CloneRange { source, source_offset, target, target_offset, length }
        };
        assert_eq!(route(&mut clone(seen, FILE)), refused(Errno::EXDEV));
        assert_eq!(route(&mut clone(FILE, seen)), refused(Errno::EROFS));
        let open = |truncate| Operation::Open { inode: seen, flags: OpenFlags { truncate, ..Default::default() } };
        assert_eq!(route(&mut open(true)), refused(Errno::EROFS));
        assert_eq!(route(&mut open(false)), Some(Route::Snapshot(limits::SNAPSHOT_NUMBER_MAX)));
        let make = |parent, text| Operation::MakeDirectory { parent, name: name(text), permissions: 0, umask: 0 };
        assert_eq!(route(&mut make(InodeId::SNAPSHOTS, "x")), refused(Errno::EROFS));
        assert_eq!(route(&mut make(InodeId::ROOT, ".snapshots")), Some(Route::ChangesName(Hidden::Snapshots)));
        assert_eq!(route(&mut make(InodeId::ROOT, ".trash")), Some(Route::ChangesName(Hidden::Trash)));
        assert_eq!(route(&mut make(InodeId::ROOT, "snapshots")), None);
    }
}
