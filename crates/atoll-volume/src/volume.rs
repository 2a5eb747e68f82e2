//! The asynchronous shell around the core: loads what an operation needs, moves
//! file bytes, waits for locks and for durability.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_blob::readahead::Readahead;
use atoll_blob::{Blob, BlobError, Recovered, STORE_PATIENCE};
use atoll_lease::Issue;
use atoll_lease::locks::{SetOutcome, WaiterId};
use atoll_store::{Batch, Precondition, Read, Scan, Store, StoreError};
use atoll_types::locks::Lock;
use atoll_types::mutation::{Mutation, is_broken};
use atoll_types::{
    ByteRange, Caller, Epoch, Errno, FileKind, InodeId, JournalPosition, Made, Mode, Operation, OperationSeq, Outcome,
    SegmentId, SessionId, Timestamp, limits,
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use crate::committer::{self, Committer, Progress};
use crate::compaction::{self, Compaction};
use crate::core::{self, Context, Core, Listing, NOBODY, Need, ReadPlan, Step, Stop};
use crate::error::VolumeError;
use crate::extents::{ExtentMap, Piece};
use crate::format::{
    self, Counters, Dentry, DirectoryQuota, InodeRecord, KeyRange, Quota, Retention, SegmentRecord, SegmentState,
    VolumeSettings,
};
use crate::fsck;
use crate::leases::{Earned, Leases, Leasing, Waiting};
use crate::links::record::BaseObject;
use crate::links::{LinkService, Pattern, Reading};
use crate::rebase;
use crate::sessions::{Mark, Results, SessionInfo, SessionRecord};
use crate::snapshot_directory::SnapshotDirectory;
use crate::snapshots::{Kept, among};
use crate::trash::{self, TrashReport};

/// Bounds and pace of an open volume.
#[derive(Clone, Copy, Debug)]
pub struct VolumeConfig {
    /// Most inodes in the decoded cache, beyond open and dirty ones.
    pub inode_cache_max: usize,
    /// Gap between commits that nobody waits for.
    pub commit_lag: Duration,
    /// Most bytes of file data that ride in one commit.
    pub inline_bytes_max: usize,
    /// Changes wait for the committer above this many uncommitted writes.
    pub backlog_max: usize,
    /// Size that `statfs` shows, in bytes.
    pub capacity_bytes: u64,
    /// For how long a segment without bytes in use is kept for reads that were planned before.
    pub empty_segments_kept: Duration,
    pub compaction: Compaction,
    /// For how long calls wait for an object store that does not answer.
    pub store_patience: Duration,
    /// Nothing is changed, and nothing committed.
    pub read_only: bool,
}

impl Default for VolumeConfig {
    fn default() -> Self {
        VolumeConfig {
            inode_cache_max: 200_000,
            commit_lag: Duration::from_millis(20),
            inline_bytes_max: 256 * 1024,
            backlog_max: 200_000,
            capacity_bytes: 1 << 50,
            empty_segments_kept: Duration::from_secs(10),
            compaction: Compaction::default(),
            store_patience: STORE_PATIENCE,
            read_only: false,
        }
    }
}

/// Figures for metrics and `status`.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeReport {
    pub inodes: u64,
    pub inodes_cached: usize,
    pub bytes_live: u64,
    /// Bytes in segments that nothing refers to, while their segments are in use.
    pub bytes_dead: u64,
    /// Directories with quotas.
    pub quota_roots: usize,
    /// What is in the trash, as of the last look.
    pub trash: TrashReport,
    /// Bytes that compaction has written again since the volume was opened.
    pub bytes_compacted: u64,
    pub opens: usize,
    pub locks: usize,
    /// Snapshots that are open for who looks below `.snapshots`.
    pub snapshots_open: usize,
    pub ordered: u64,
    pub durable: u64,
}

/// What the shell and the committer share.
pub(crate) struct Shared {
    pub core: Mutex<Core>,
    pub store: Arc<dyn Store>,
    pub blob: Blob,
    pub config: VolumeConfig,
    /// Held while one is made or deleted.
    pub snapshots: tokio::sync::Mutex<Kept>,
    /// Wakes the committer.
    pub work: Notify,
    /// The newest change that somebody waits to be durable.
    wanted: AtomicU64,
    closing: AtomicBool,
}

impl Shared {
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub fn is_urgent(&self, durable: u64) -> bool {
        self.is_closing() || self.wanted.load(Ordering::Acquire) > durable
    }
}

/// An open volume. Cheap to clone.
#[derive(Clone)]
pub struct Volume {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub shared: Arc<Shared>,
    pub settings: VolumeSettings,
    /// Sessions of the last authority.
    restored: Vec<(SessionId, SessionInfo)>,
    progress: watch::Receiver<Progress>,
    committer: Mutex<Option<JoinHandle<()>>>,
    compactor: Mutex<Option<JoinHandle<()>>>,
    /// Inodes that nobody is to change without asking any more.
    pub taking_back: Mutex<HashSet<InodeId>>,
    /// Quota roots below which nobody is to change anything without asking any more.
    pub taking_back_roots: Mutex<HashSet<InodeId>>,
    /// Held while what is below a directory is charged to another quota root.
    pub stamping: tokio::sync::Mutex<()>,
    /// An earlier authority may have left something of that to be done.
    pub left_stamping: AtomicBool,
    /// It failed, and is tried again after a pause.
    pub stamps_again: AtomicBool,
    /// There is room again, perhaps.
    pub room: Notify,
    pub bytes_compacted: AtomicU64,
    /// Segments of which something cannot be read.
    pub incompactible: Mutex<HashSet<SegmentId>>,
    /// Without names since an earlier authority: reaped when nobody can come back who has them open.
    pub orphans: Mutex<Vec<InodeId>>,
    /// Who waits for which lock.
    waiters: Mutex<HashMap<WaiterId, oneshot::Sender<()>>>,
    readers: Mutex<HashMap<InodeId, Readahead>>,
    pub leases: Leases,
    pub snapshot_directory: SnapshotDirectory,
    pub links: LinkService,
    /// What an earlier authority had not published.
    pub left_unpublished: Mutex<Vec<InodeId>>,
    sweeper: Mutex<Option<JoinHandle<()>>>,
    /// As of the last look.
    pub trash: Mutex<TrashReport>,
}

/// Most files whose read pattern is remembered.
const READERS_MAX: usize = 4096;

/// Write a new volume into an empty store.
pub async fn format(store: &dyn Store, settings: &VolumeSettings, owner: &Caller) -> Result<(), VolumeError> {
    let mut batch = Batch::default();
    batch.preconditions.push(Precondition::Absent { key: format::superblock_key() });
    batch.put(format::superblock_key(), settings.encode());
    let now = Timestamp::now();
    batch.put(format::inode_key(InodeId::ROOT), core::root(owner, now).encode());
    let counters = Counters { next_inode: InodeId::ROOT.0 + 1, inodes: 1, last_change: now, last_snapshot: 0 };
    batch.put(format::counters_key(), counters.encode());
    match store.commit(batch).await {
        Ok(seq) => Ok(store.durable(seq).await?),
        Err(StoreError::Precondition) => Err(VolumeError::Exists),
        Err(error) => Err(error.into()),
    }
}

/// What is fixed of the volume that a store holds.
pub async fn settings(store: &dyn Store) -> Result<VolumeSettings, VolumeError> {
    let superblock = store.get(&format::superblock_key()).await?.ok_or(VolumeError::Missing)?;
    VolumeSettings::decode(&superblock)
}

/// Positions of one authority: those of the next, with a later epoch, are all larger.
const POSITION_BITS: u32 = 40;

/// What the positions of the store's authority are behind.
fn since(store: &dyn Store) -> Issue {
    Issue(store.epoch().0 << POSITION_BITS)
}

/// Who asks for an operation, and what is known of it beyond itself.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    pub session: SessionId,
    pub caller: &'a Caller,
    /// The session made it before it asked, with the time and the number that it gave. The session is enrolled, or
    /// this fails with `EIO`.
    pub made: Option<&'a Made>,
    /// Which of the session's changes it is.
    pub mark: Mark,
    /// It is made again after an earlier authority executed it: what was opened by it is not counted, and nothing is
    /// earned.
    pub again: bool,
}

impl<'a> Asking<'a> {
    pub fn new(session: SessionId, caller: &'a Caller) -> Self {
        Asking { session, caller, made: None, mark: Mark::None, again: false }
    }
}

/// The inode that an operation opened by making it.
fn opened(operation: &Operation, result: &Result<Outcome, Errno>) -> Option<InodeId> {
    match operation {
        Operation::Create { .. } | Operation::CreateUnnamed { .. } | Operation::Open { .. } => {
            result.as_ref().ok()?.attributes().map(|attributes| attributes.inode)
        }
        _ => None,
    }
}

/// The file that an operation has made, or whose bytes it has changed.
fn written_by(operation: &Operation, outcome: &Outcome) -> Option<InodeId> {
    use Operation as O;
    match (operation, outcome) {
        (O::Create { flags, .. }, Outcome::Created { attributes, new }) if *new || flags.truncate => {
            Some(attributes.inode)
        }
        (O::Open { inode, flags }, _) if flags.truncate => Some(*inode),
        (O::SetAttributes { inode, changes }, _) if changes.size.is_some() => Some(*inode),
        (O::Write { inode, .. } | O::Allocate { inode, .. } | O::CloneRange { target: inode, .. }, _) => Some(*inode),
        _ => None,
    }
}

type Opening = Pin<Box<dyn Future<Output = Result<Blob, BlobError>> + Send>>;

impl Volume {
    /// Open the volume that the store holds and finish what a crash left.
    /// `open_blob` gets the store's epoch and the segments that were not yet whole.
    pub async fn open(
        store: Arc<dyn Store>,
        open_blob: impl FnOnce(Epoch, Vec<Recovered>) -> Opening,
        config: VolumeConfig,
    ) -> Result<Volume, VolumeError> {
        let settings = settings(&*store).await?;
        let counters = store.get(&format::counters_key()).await?;
        let counters = Counters::decode(&counters.ok_or_else(|| VolumeError::Corrupt("no counters".into()))?)?;

        let quota = match store.get(&format::quota_key()).await? {
            Some(found) => Quota::decode(&found)?,
            None => Quota::NONE,
        };
        let mut segments = Vec::new();
        let mut recovered: BTreeMap<u64, Recovered> = BTreeMap::new();
        for (key, value) in scan_all(&*store, format::all_segments()).await? {
            let id = atoll_types::SegmentId(format::key_number(&key)?);
            let record = SegmentRecord::decode(&value)?;
            if record.state == SegmentState::Open {
                recovered.insert(id.0, Recovered { segment: id, fragments: Vec::new() });
            }
            segments.push((id, record));
        }
        for (key, value) in scan_all(&*store, format::all_fragments()).await? {
            if let Some(segment) = recovered.get_mut(&format::key_number(&key)?) {
                segment.fragments.push((format::rest_u32(&key)?, value));
            }
        }
        let blob = open_blob(store.epoch(), recovered.into_values().collect()).await?;

        let of = |which: fn(&SegmentRecord) -> bool| {
            segments.iter().filter(|(_, record)| which(record)).map(|(id, _)| *id).collect::<Vec<_>>()
        };
        let suspects = of(|record| record.state == SegmentState::Uploaded && record.live <= 0);
        let doomed = of(|record| record.state == SegmentState::Doomed);
        let retention = match store.get(&format::trash_key()).await? {
            Some(found) => Some(Retention::decode(&found)?),
            None => None,
        };
        let mut core = Core::new(counters, segments, config.inode_cache_max, quota, settings.durability.name());
        core.install_retention(retention);
        core.leases.start_behind(since(&*store));
        core.frozen = config.read_only;
        for (key, value) in scan_all(&*store, format::all_directory_quotas()).await? {
            core.roots.install(InodeId(format::key_number(&key)?), DirectoryQuota::decode(&value)?);
        }
        let links = LinkService::default();
        for (key, value) in scan_all(&*store, format::all_links()).await? {
            core.links.roots.insert(InodeId(format::key_number(&key)?), format::decode_link(&value)?);
            links.use_links();
        }
        for (key, value) in scan_all(&*store, format::all_gone()).await? {
            let object = (InodeId(format::key_number(&key)?), format::gone_object(&key)?);
            core.links.gone.insert(object, format::decode_gone(&value)?);
        }
        for (key, value) in scan_all(&*store, format::all_uploads()).await? {
            let link = InodeId(format::key_number(&key)?);
            core.links.uploads.left(link, format::upload_id(&key)?, format::decode_upload(&value)?);
        }
        let mut left_unpublished = Vec::new();
        for (key, _) in scan_all(&*store, format::all_unpublished()).await? {
            let inode = InodeId(format::key_number(&key)?);
            core.links.left(inode);
            left_unpublished.push(inode);
        }
        let mut restored = Vec::new();
        // Those of a version that cannot change are of no use in it.
        let sessions = if config.read_only { Vec::new() } else { scan_all(&*store, format::all_sessions()).await? };
        for (key, value) in sessions {
            let (session, record) = (SessionId(format::key_number(&key)?), SessionRecord::decode(&value)?);
            restored.push((session, record.info));
            core.install_session(session, record);
        }
        let mut orphans = Vec::new();
        let unnamed = if config.read_only { Vec::new() } else { scan_all(&*store, format::all_orphans()).await? };
        for (key, _) in unnamed {
            orphans.push(InodeId(format::key_number(&key)?));
        }
        let checkpoints = store.checkpoints().await?;
        let snapshots = tokio::sync::Mutex::new(Kept::of(&checkpoints));
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            snapshots,
            store,
            blob,
            config,
            work: Notify::new(),
            wanted: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        });
        let (committer, progress) = if config.read_only {
            (None, watch::channel(Progress::settled()).1)
        } else {
            let (sender, progress) = watch::channel(Progress::default());
            (Some(tokio::spawn(Committer::new(shared.clone(), sender, suspects, doomed).run())), progress)
        };
        let volume = Volume {
            inner: Arc::new(Inner {
                shared,
                settings,
                progress,
                committer: Mutex::new(committer),
                compactor: Mutex::new(None),
                taking_back: Mutex::default(),
                taking_back_roots: Mutex::default(),
                stamping: tokio::sync::Mutex::default(),
                left_stamping: AtomicBool::new(!config.read_only),
                stamps_again: AtomicBool::new(false),
                room: Notify::new(),
                bytes_compacted: AtomicU64::new(0),
                incompactible: Mutex::default(),
                restored,
                orphans: Mutex::new(orphans),
                waiters: Mutex::new(HashMap::new()),
                readers: Mutex::new(HashMap::new()),
                leases: Leases::default(),
                snapshot_directory: SnapshotDirectory::new(among(checkpoints)),
                links,
                left_unpublished: Mutex::new(left_unpublished),
                sweeper: Mutex::new(None),
                trash: Mutex::default(),
            }),
        };
        if volume.restored_sessions().is_empty() {
            volume.reap_orphans().await;
            volume.resume_stamping();
        }
        if !config.read_only {
            *volume.inner.compactor.lock() = Some(tokio::spawn(compaction::run(Arc::downgrade(&volume.inner))));
            *volume.inner.sweeper.lock() = Some(tokio::spawn(trash::run(Arc::downgrade(&volume.inner))));
        }
        Ok(volume)
    }

    pub fn settings(&self) -> &VolumeSettings {
        &self.inner.settings
    }

    /// Sessions of the last authority that were not over.
    pub fn restored_sessions(&self) -> &[(SessionId, SessionInfo)] {
        &self.inner.restored
    }

    /// Positions of this authority are behind this one, those of earlier ones are not.
    pub fn since(&self) -> Issue {
        since(&*self.inner.shared.store)
    }

    /// Operations up to this position are durable.
    pub fn durable(&self) -> Issue {
        self.inner.progress.borrow().order
    }

    pub fn report(&self) -> VolumeReport {
        let core = self.inner.shared.core.lock();
        VolumeReport {
            inodes: core.inodes_used(),
            inodes_cached: core.inodes_cached(),
            bytes_live: core.bytes_live(),
            bytes_dead: core.bytes_dead(),
            quota_roots: core.roots.len(),
            trash: *self.inner.trash.lock(),
            bytes_compacted: self.inner.bytes_compacted.load(Ordering::Relaxed),
            opens: core.opens(),
            locks: core.locks.len(),
            snapshots_open: self.inner.snapshot_directory.opened(),
            ordered: core.ordered(),
            durable: self.inner.progress.borrow().durable,
        }
    }

    /// Check the volume as it is now, while it goes on; with `bytes`, read all of them.
    pub async fn check(&self, bytes: bool, watch: fsck::Watch<'_>) -> Result<fsck::Report, VolumeError> {
        let ordered = self.inner.shared.core.lock().ordered();
        // Without it a check would be of some moment before. A volume that cannot commit can still be checked.
        let _ = self.until_durable(ordered).await;
        self.check_view(&*self.inner.shared.store.snapshot()?, bytes, watch).await
    }

    pub(crate) async fn check_view(
        &self,
        view: &dyn Read,
        bytes: bool,
        watch: fsck::Watch<'_>,
    ) -> Result<fsck::Report, VolumeError> {
        let shared = &self.inner.shared;
        let objects = shared.blob.objects().await?;
        let subject = fsck::Subject {
            view,
            newest: &*shared.store,
            objects: &objects,
            epoch: shared.store.epoch(),
            bytes: bytes.then_some(&shared.blob),
        };
        fsck::check(subject, watch).await
    }

    /// Delete objects that nothing refers to, or only count them. Answers with their number and bytes.
    ///
    /// A crash leaves them when it comes between the upload of a segment and the commit that names it.
    pub async fn collect_garbage(&self, dry_run: bool) -> Result<(u64, u64), VolumeError> {
        let shared = &self.inner.shared;
        let mut objects = shared.blob.objects().await?;
        {
            let core = shared.core.lock();
            // Only this authority names new segments, and those have its epoch.
            let is_old = |id: SegmentId| id.0 >> 32 < shared.store.epoch().0 && self.inner.settings.owns(id);
            objects.retain(|(id, _)| is_old(*id) && !core.has_segment(*id));
        }
        let found = (objects.len() as u64, objects.iter().map(|(_, bytes)| bytes).sum());
        if !dry_run {
            for (segment, _) in objects {
                shared.blob.delete(segment).await?;
            }
        }
        Ok(found)
    }

    pub fn blob(&self) -> &Blob {
        &self.inner.shared.blob
    }

    /// Execute one operation; it is ordered when this returns. Dropping the future of a waiting
    /// `SetLock` withdraws the request.
    pub async fn execute(&self, session: SessionId, caller: &Caller, operation: Operation) -> Result<Outcome, Errno> {
        self.execute_leased(session, caller, operation).await.0
    }

    /// Execute one operation, and tell what the session may keep of the answer. Waits, a bounded time, for
    /// other sessions to give up what the operation excludes.
    pub async fn execute_leased(
        &self,
        session: SessionId,
        caller: &Caller,
        operation: Operation,
    ) -> (Result<Outcome, Errno>, Earned) {
        self.execute_asked(Asking::new(session, caller), operation).await
    }

    /// Execute one operation that the session made before it asked, with the time and the number that it gave.
    pub async fn execute_made(
        &self,
        session: SessionId,
        made: &Made,
        operation: Operation,
    ) -> (Result<Outcome, Errno>, Earned) {
        let asking = Asking { made: Some(made), ..Asking::new(session, &made.caller) };
        self.execute_asked(asking, operation).await
    }

    /// The same, with what is known of the operation beyond itself.
    pub async fn execute_asked(
        &self,
        asking: Asking<'_>,
        mut operation: Operation,
    ) -> (Result<Outcome, Errno>, Earned) {
        if let Some(route) = self.elsewhere(&mut operation).await {
            let result = self.execute_elsewhere(asking, route, operation).await;
            let mut core = self.inner.shared.core.lock();
            core.note(asking.session, asking.mark, result.as_ref().map_err(|errno| *errno));
            return (result, Earned::default());
        }
        if let Err(errno) = self.freshen(&operation).await {
            return (Err(errno), Earned::default());
        }
        let grace = &self.inner.leases.grace;
        let mut keeps = !asking.again;
        match &operation {
            _ if asking.made.is_some() => {}
            Operation::Release { .. } => {}
            // Counted at once: who had the file open before comes back in time, whoever removes its name afterwards.
            // The attributes may be old still, so nothing is kept of them.
            Operation::Open { flags, .. } if !flags.truncate => keeps = !grace.lasts(),
            // So that nobody else can get the lock before.
            Operation::HoldLocks { .. } if grace.awaits(asking.session) => grace.heard(asking.session),
            _ => grace.over().await,
        }
        if operation.mutates()
            && let Err(errno) = self.admit().await
        {
            return (Err(errno), Earned::default());
        }
        if let Err(errno) = self.until_known(&operation).await {
            return (Err(errno), Earned::default());
        }
        let mut leasing = Leasing::new(self, asking, &operation, keeps);
        let result = match &operation {
            // What the session has open and locked, it says apart.
            Operation::Open { flags, .. } if asking.again && !flags.truncate => Ok(Outcome::Done),
            Operation::HoldLocks { .. } if asking.again => Ok(Outcome::Done),
            _ => self.run(&mut leasing, asking.caller).await,
        };
        if asking.again
            && let Some(inode) = opened(&operation, &result)
        {
            // A file without a name lingers: it was opened before it lost it.
            self.inner.shared.core.lock().release(asking.session, inode);
        }
        if !matches!(operation, Operation::Release { .. }) {
            leasing.note(result.as_ref().map_err(|errno| *errno));
        }
        self.take_back(leasing.to_be_asked().chain(leasing.trashed()));
        self.take_back_roots(leasing.take_tightened());
        let adopted = self.adopted(&leasing, &result);
        let (earned, unheard) = leasing.end();
        if let Some(adopted) = adopted
            && let Err(errno) = self.until_adopted(adopted).await
        {
            return (Err(errno), Earned::default());
        }
        if !unheard.is_nothing()
            && !is_broken(Mutation::Unheard)
            && let Err(errno) = self.until_heard(unheard).await
        {
            return (Err(errno), Earned::default());
        }
        (result, earned)
    }

    /// A new session. With leases, it is known to the next authority when this returns.
    pub async fn begin_session(
        &self,
        session: SessionId,
        info: SessionInfo,
        journal: JournalPosition,
    ) -> Result<(), Errno> {
        let ordered = self.inner.shared.core.lock().begin_session(session, info, journal);
        if info.leases { self.until_durable(ordered).await } else { Ok(()) }
    }

    /// The answers of a numbered change that was executed, as far as the client may not have them; `None` when it was
    /// not executed.
    pub fn answers(&self, session: SessionId, sequence: OperationSeq) -> Option<Results> {
        self.inner.shared.core.lock().answers(session, sequence)
    }

    /// Up to where the journal of a session is executed.
    pub fn journal(&self, session: SessionId) -> JournalPosition {
        self.inner.shared.core.lock().journal(session).unwrap_or_default()
    }

    /// The position of the newest operation.
    pub fn newest(&self) -> Issue {
        self.inner.shared.core.lock().leases.newest()
    }

    async fn run(&self, leasing: &mut Leasing<'_>, caller: &Caller) -> Result<Outcome, Errno> {
        let session = leasing.session();
        let context = Context { session, caller };
        let entry = Outcome::Entry;
        let written = |(offset, length, attributes)| Outcome::Written { offset, length, attributes };
        use Operation as O;
        match leasing.operation() {
            O::Lookup { parent, name } => self.step(leasing, |c| c.lookup(*parent, name).map(entry)).await,
            O::Parent { inode } => self.step(leasing, |c| c.parent(*inode).map(entry)).await,
            O::GetAttributes { inode } => self.step(leasing, |c| c.attributes(*inode).map(entry)).await,
            O::SetAttributes { inode, changes } => {
                self.change(leasing, |c| c.set_attributes(*inode, changes).map(entry)).await
            }
            O::Create { parent, name, permissions, umask, flags } => {
                let make = |c: &mut Core| {
                    let (attributes, new) = c.create(context, *parent, name, *permissions, *umask, *flags)?;
                    Ok(Outcome::Created { attributes, new })
                };
                self.change(leasing, make).await
            }
            O::CreateUnnamed { parent, permissions, umask } => {
                self.change(leasing, |c| c.create_unnamed(context, *parent, *permissions, *umask).map(entry)).await
            }
            O::MakeNode { parent, name, mode, umask, device } => {
                match mode.kind() {
                    None | Some(FileKind::Directory | FileKind::Symlink) => return Err(Errno::EINVAL),
                    Some(_) => {}
                }
                let is_device = matches!(mode.kind(), Some(FileKind::CharDevice | FileKind::BlockDevice));
                let device = if is_device { *device } else { 0 };
                let make =
                    |c: &mut Core| c.make(context, *parent, name, *mode, *umask, |r| r.device = device).map(entry);
                self.change(leasing, make).await
            }
            O::MakeDirectory { parent, name, permissions, umask } => {
                let mode = Mode::new(FileKind::Directory, *permissions);
                self.change(leasing, |c| c.make(context, *parent, name, mode, *umask, |_| ()).map(entry)).await
            }
            O::MakeSymlink { parent, name, target } => {
                if target.is_empty() {
                    return Err(Errno::ENOENT);
                }
                if target.len() > limits::SYMLINK_BYTES_MAX {
                    return Err(Errno::ENAMETOOLONG);
                }
                let mode = Mode::new(FileKind::Symlink, 0o777);
                let make = |c: &mut Core| {
                    let prepare = |record: &mut InodeRecord| {
                        record.size = target.len() as u64;
                        record.target = target.clone();
                    };
                    c.make(context, *parent, name, mode, 0, prepare).map(entry)
                };
                self.change(leasing, make).await
            }
            O::Link { inode, parent, name } => self.change(leasing, |c| c.link(*inode, *parent, name).map(entry)).await,
            O::Unlink { parent, name } => self.change(leasing, |c| c.unlink(*parent, name).map(done)).await,
            O::RemoveDirectory { parent, name } => {
                self.change(leasing, |c| c.remove_directory(*parent, name).map(done)).await
            }
            O::Rename { parent, name, new_parent, new_name, mode } => {
                self.change(leasing, |c| c.rename(context, *parent, name, *new_parent, new_name, *mode).map(done)).await
            }
            O::ReadSymlink { inode } => self.step(leasing, |c| c.read_symlink(*inode).map(Outcome::Data)).await,
            O::Open { inode, flags } => self.change(leasing, |c| c.open(session, *inode, *flags).map(entry)).await,
            O::Release { inode } => {
                let reap = self.inner.shared.core.lock().release(session, *inode);
                if reap {
                    self.reap(*inode).await?;
                }
                Ok(Outcome::Done)
            }
            O::Read { inode, range } => Ok(Outcome::Data(self.read(leasing, *inode, *range).await?)),
            O::Write { inode, at, data, drop_privileges } => {
                if data.len() > limits::IO_BYTES_MAX {
                    return Err(Errno::EINVAL);
                }
                let locations = self.inner.shared.blob.append(data.clone()).await.map_err(blob_errno)?;
                let write = |c: &mut Core| c.write_data(*inode, *at, &locations, *drop_privileges).map(written);
                self.change(leasing, write).await
            }
            O::Sync if is_broken(Mutation::EarlySync) => Ok(Outcome::Done),
            O::Sync => {
                self.sync().await?;
                self.publish_synced(session).await.map(done)
            }
            O::Allocate { inode, mode, range, drop_privileges } => {
                let allocate = |c: &mut Core| {
                    c.extents_then(*inode, |c| c.allocate(*inode, *mode, *range, *drop_privileges)).map(done)
                };
                self.change(leasing, allocate).await
            }
            O::Seek { inode, offset, to } => {
                self.step(leasing, |c| c.seek(*inode, *offset, *to).map(Outcome::Offset)).await
            }
            O::CloneRange { source, source_offset, target, target_offset, length } => {
                let clone = |c: &mut Core| {
                    c.clone_range(*source, *source_offset, *target, *target_offset, *length).map(written)
                };
                self.change(leasing, clone).await
            }
            O::ReadDirectory { inode, after, entries_max, with_attributes, ahead } => {
                let most = *entries_max as usize;
                if self.is_linked(*inode).await? {
                    return match ahead {
                        // Nothing of it could be kept.
                        true => Err(Errno::EAGAIN),
                        false => self.list_linked(session, *inode, *after, most.max(1), *with_attributes).await,
                    };
                }
                self.list(leasing, *inode, *after, most, *with_attributes, *ahead).await
            }
            O::GetXattr { inode, name } => self.step(leasing, |c| c.get_xattr(*inode, name).map(Outcome::Data)).await,
            O::SetXattr { inode, name, value, mode, drop_privileges } => {
                let set = |c: &mut Core| c.set_xattr(*inode, name, value, *mode, *drop_privileges).map(done);
                self.change(leasing, set).await
            }
            O::ListXattrs { inode } => self.step(leasing, |c| c.list_xattrs(*inode).map(Outcome::Data)).await,
            O::RemoveXattr { inode, name } => self.change(leasing, |c| c.remove_xattr(*inode, name).map(done)).await,
            O::Statistics { inode } => {
                let capacity = self.inner.shared.config.capacity_bytes;
                self.alone(|core| core.statistics(*inode, capacity)).await.map(Outcome::Space)
            }
            O::TestLock { inode, lock } => {
                self.step(leasing, |c| Ok(Outcome::Conflict(c.locks.test(*inode, session, lock)))).await
            }
            O::SetLock { inode, lock, wait } => {
                let set = |core: &mut Core, leasing: &mut Leasing<'_>| {
                    let (outcome, granted) = core.locks.set(*inode, session, lock, *wait);
                    if outcome == SetOutcome::Granted {
                        leasing.earn(core, Ok(&Outcome::Done));
                    }
                    Ok((outcome, granted))
                };
                let (outcome, granted) = self.claimed(leasing, set).await?;
                self.grant(granted);
                match outcome {
                    SetOutcome::Granted => Ok(Outcome::Done),
                    SetOutcome::WouldBlock => Err(Errno::EAGAIN),
                    SetOutcome::Deadlock => Err(Errno::EDEADLK),
                    SetOutcome::TooMany => Err(Errno::ENOLCK),
                    SetOutcome::Queued(waiter) => self.wait_for_lock(waiter).await.map(done),
                }
            }
            O::Unlock { inode, space, owner, range } => {
                let granted = {
                    let mut core = self.inner.shared.core.lock();
                    if core.locks.unlocks_too_little(*inode, session, *space, *owner, *range) {
                        return Err(Errno::ENOLCK);
                    }
                    core.locks.unlock(*inode, session, *space, *owner, *range)
                };
                self.grant(granted);
                Ok(Outcome::Done)
            }
            O::HoldLocks { inode, locks } => self.hold_locks(leasing, *inode, locks).await.map(done),
        }
    }

    /// The session is over: its opens and locks are given back.
    pub async fn end_session(&self, session: SessionId) {
        let (granted, free, orphans) = {
            let mut core = self.inner.shared.core.lock();
            core.forget_reserves(session);
            core.forget_session(session);
            (core.locks.end_session(session), core.leases.end_session(session), core.end_session(session))
        };
        self.inner.leases.heard.notify_waiters();
        self.inner.shared.work.notify_one();
        self.grant(granted);
        self.inner.leases.wake(free);
        self.reap_all(orphans).await;
    }

    /// Free what was left without names by an earlier authority and nobody has open.
    pub(crate) async fn reap_orphans(&self) {
        let orphans = std::mem::take(&mut *self.inner.orphans.lock());
        self.reap_all(orphans).await;
    }

    /// Free inodes without names that nobody has open.
    pub(crate) async fn reap_all(&self, inodes: Vec<InodeId>) {
        for inode in inodes {
            if let Err(errno) = self.reap(inode).await {
                tracing::warn!(%inode, %errno, "cannot reap an inode without names");
            }
        }
    }

    /// Make everything durable and whole in the object store. Operations must have ended.
    pub async fn close(&self) -> Result<(), VolumeError> {
        let shared = &self.inner.shared;
        if shared.config.read_only {
            return Ok(());
        }
        self.inner.snapshot_directory.clear();
        let workers = [
            self.inner.compactor.lock().take(),
            self.inner.sweeper.lock().take(),
            self.inner.links.worker.lock().take(),
        ];
        for worker in workers.into_iter().flatten() {
            worker.abort();
            // Ended is ended.
            let _ = worker.await;
        }
        shared.closing.store(true, Ordering::Release);
        shared.work.notify_one();
        let committer = self.inner.committer.lock().take();
        if let Some(committer) = committer
            && committer.await.is_err()
        {
            return Err(VolumeError::Corrupt("the committer ended unexpectedly".into()));
        }
        let failed = self.inner.progress.borrow().failed.clone();
        match failed {
            Some(error) => Err(error),
            None => committer::close(shared).await,
        }
    }

    // ---- steps

    /// Run a step until nothing is missing and nobody else holds what it excludes; grants what its answer earns.
    async fn step(
        &self,
        leasing: &mut Leasing<'_>,
        mut run: impl FnMut(&mut Core) -> Step<Outcome>,
    ) -> Result<Outcome, Errno> {
        self.claimed(leasing, |core, leasing| {
            let result = run(core);
            match &result {
                Ok(outcome) => leasing.earn(core, Ok(outcome)),
                Err(Stop::Error(errno)) => leasing.earn(core, Err(*errno)),
                Err(Stop::Load(_) | Stop::Held(_)) => {}
            }
            result
        })
        .await
    }

    /// Run a step until nothing is missing and nobody else holds what the operation excludes.
    async fn claimed<T>(
        &self,
        leasing: &mut Leasing<'_>,
        mut run: impl FnMut(&mut Core, &mut Leasing<'_>) -> Step<T>,
    ) -> Result<T, Errno> {
        loop {
            let stopped = {
                let mut core = self.inner.shared.core.lock();
                match leasing.claim(&mut core) {
                    Err(stop) => Err(stop),
                    Ok(Some(blocked)) => Ok(blocked),
                    Ok(None) => {
                        let result = run(&mut core, leasing);
                        core.set_made(None, false);
                        match result {
                            Ok(value) => {
                                core.evict();
                                return Ok(value);
                            }
                            Err(stop) => Err(stop),
                        }
                    }
                }
            };
            match stopped {
                Ok(blocked) => leasing.wait(blocked).await,
                Err(Stop::Error(errno)) => return Err(errno),
                Err(Stop::Load(need)) => self.load(need).await?,
                Err(Stop::Held(claim)) => self.excluding(claim, |_| Ok(())).await?,
            }
        }
    }

    /// A step that may order a change: the committer hears of it.
    async fn change(
        &self,
        leasing: &mut Leasing<'_>,
        mut run: impl FnMut(&mut Core) -> Step<Outcome>,
    ) -> Result<Outcome, Errno> {
        let (session, operation) = (leasing.session(), leasing.operation());
        let run = |core: &mut Core| {
            let outcome = run(core)?;
            if let Some(inode) = written_by(operation, &outcome) {
                core.note_writer(session, inode);
            }
            Ok(outcome)
        };
        let value = self.step(leasing, run).await?;
        self.inner.shared.work.notify_one();
        Ok(value)
    }

    /// Free an unnamed inode that nobody has open.
    async fn reap(&self, inode: InodeId) -> Result<(), Errno> {
        self.alone(|core| core.reap(inode)).await?;
        self.inner.shared.work.notify_one();
        Ok(())
    }

    /// Run a step that is no session's until nothing is missing, and nobody keeps what it changes.
    pub(crate) async fn alone<T>(&self, mut run: impl FnMut(&mut Core) -> Step<T>) -> Result<T, Errno> {
        let mut waiting = Waiting::new(self);
        loop {
            let stopped = {
                let mut core = self.inner.shared.core.lock();
                match run(&mut core) {
                    Ok(value) => {
                        core.evict();
                        return Ok(value);
                    }
                    Err(Stop::Error(errno)) => return Err(errno),
                    Err(Stop::Load(need)) => Err(need),
                    Err(Stop::Held(claim)) => Ok(waiting.begin(&mut core, NOBODY, vec![claim])),
                }
            };
            match stopped {
                Ok(blocked) => self.inner.leases.until_free(blocked).await,
                Err(need) => self.load(need).await?,
            }
        }
    }

    /// Whether a commit failed: nothing more is committed here.
    pub(crate) fn has_failed(&self) -> bool {
        self.inner.progress.borrow().failed.is_some()
    }

    /// Whether a commit failed because the volume is another server's.
    pub fn is_fenced(&self) -> bool {
        matches!(self.inner.progress.borrow().failed, Some(VolumeError::Store(StoreError::Fenced)))
    }

    /// Fail when commits failed, wait while too much is uncommitted.
    pub(crate) async fn admit(&self) -> Result<(), Errno> {
        if self.inner.shared.config.read_only {
            return Err(Errno::EROFS);
        }
        let mut progress = self.inner.progress.clone();
        loop {
            let durable = {
                let now = progress.borrow_and_update();
                if let Some(error) = &now.failed {
                    return Err(error.errno());
                }
                if now.full {
                    return Err(Errno::ENOSPC);
                }
                now.durable
            };
            let (backlog, ordered) = {
                let core = self.inner.shared.core.lock();
                (core.backlog(), core.ordered())
            };
            if backlog <= self.inner.shared.config.backlog_max || durable >= ordered {
                return Ok(());
            }
            self.inner.shared.work.notify_one();
            if progress.changed().await.is_err() {
                return Err(Errno::EIO);
            }
        }
    }

    async fn sync(&self) -> Result<(), Errno> {
        let target = self.inner.shared.core.lock().ordered();
        // The commit goes on without us: nothing of it is given up, and who asks later waits for the same.
        let durable = self.patiently(async { Ok::<_, VolumeError>(self.until_durable(target).await) }).await;
        durable.map_err(|error| {
            tracing::error!(%error, "a sync ends without its commit");
            error.errno()
        })?
    }

    /// What needs the object store, if that answers before our patience ends.
    pub(crate) async fn patiently<T, E: Into<VolumeError>>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, VolumeError> {
        let patience = self.inner.shared.config.store_patience;
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(_) => Err(VolumeError::Away(patience)),
        }
    }

    /// Until the changes up to `target` are durable.
    pub(crate) async fn until_durable(&self, target: u64) -> Result<(), Errno> {
        let mut progress = self.inner.progress.clone();
        self.inner.shared.wanted.fetch_max(target, Ordering::AcqRel);
        loop {
            {
                let now = progress.borrow_and_update();
                if now.durable >= target {
                    return Ok(());
                }
                if let Some(error) = &now.failed {
                    return Err(error.errno());
                }
                if now.full {
                    return Err(Errno::ENOSPC);
                }
            }
            self.inner.shared.work.notify_one();
            if progress.changed().await.is_err() {
                return Err(Errno::EIO);
            }
        }
    }

    pub(crate) async fn load(&self, need: Need) -> Result<(), Errno> {
        self.try_load(need).await.map_err(|error| {
            if !matches!(error, LoadError::NotThere) {
                tracing::error!(%error, "cannot read metadata");
            }
            match error {
                LoadError::NotThere => Errno::ESTALE,
                LoadError::Volume(error) => error.errno(),
            }
        })
    }

    async fn try_load(&self, need: Need) -> Result<(), LoadError> {
        let shared = &self.inner.shared;
        match need {
            Need::Inode(inode) => {
                let (stamp, found) = self.get(format::inode_key(inode)).await?;
                let record = InodeRecord::decode(&found.ok_or(LoadError::NotThere)?)?;
                shared.core.lock().install_inode(stamp, inode, record);
            }
            Need::Dentry(parent, name) => {
                let (stamp, found) = self.get(format::dentry_key(parent, &name)).await?;
                let dentry = found.map(|bytes| Dentry::decode(&bytes)).transpose()?;
                shared.core.lock().install_dentry(stamp, parent, name, dentry);
            }
            Need::Extents(inode) => {
                if self.install_implied(inode).await? {
                    return Ok(());
                }
                let (stamp, entries) = self.range(format::extents_of(inode)).await?;
                let mut extents = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    extents.push((format::rest_u64(&key)?, format::decode_extent(&value)?));
                }
                shared.core.lock().install_extents(stamp, inode, ExtentMap::from_entries(extents));
            }
            Need::Xattrs(inode) => {
                let (stamp, entries) = self.range(format::xattrs_of(inode)).await?;
                let mut set = BTreeMap::new();
                for (key, value) in entries {
                    set.insert(format::key_rest(&key), format::decode_xattr(&value)?);
                }
                shared.core.lock().install_xattrs(stamp, inode, set);
            }
            Need::Vacancy(inode) => {
                let (stamp, found) = self.get(format::inode_key(inode)).await?;
                let record = found.map(|bytes| InodeRecord::decode(&bytes)).transpose()?;
                shared.core.lock().install_vacancy(stamp, inode, record);
            }
        }
        Ok(())
    }

    /// The extents of a file whose bytes are its object's are not stored.
    async fn install_implied(&self, inode: InodeId) -> Result<bool, LoadError> {
        loop {
            let stopped = {
                let mut core = self.inner.shared.core.lock();
                match core.implied_extents(inode) {
                    Ok(None) => return Ok(false),
                    Ok(Some(map)) => {
                        let stamp = core.load_stamp();
                        core.install_extents(stamp, inode, map);
                        return Ok(true);
                    }
                    Err(stop) => stop,
                }
            };
            match stopped {
                Stop::Load(need) => Box::pin(self.try_load(need)).await?,
                Stop::Error(_) | Stop::Held(_) => return Ok(false),
            }
        }
    }

    /// A key's newest value.
    pub(crate) async fn newest_value(&self, key: Bytes) -> Result<Option<Bytes>, Errno> {
        self.get(key).await.map(|(_, value)| value).map_err(|error| {
            tracing::error!(%error, "cannot read metadata");
            Errno::EIO
        })
    }

    /// A key's newest value, and the stamp to install it with.
    async fn get(&self, key: Bytes) -> Result<(u64, Option<Bytes>), LoadError> {
        let (stamp, pending) = {
            let core = self.inner.shared.core.lock();
            (core.load_stamp(), core.overlay(&key))
        };
        match pending {
            Some(value) => Ok((stamp, value)),
            None => Ok((stamp, self.patiently(self.inner.shared.store.get(&key)).await?)),
        }
    }

    /// All entries of a range.
    async fn range(&self, range: KeyRange) -> Result<(u64, Vec<(Bytes, Bytes)>), LoadError> {
        let (stamp, overlay) = {
            let core = self.inner.shared.core.lock();
            (core.load_stamp(), core.overlay_range(&range))
        };
        let entries = self.patiently(scan_all(&*self.inner.shared.store, range.clone())).await?;
        let page = atoll_store::Page { entries, next: None };
        Ok((stamp, core::merge(page, overlay, &range.1)))
    }

    // ---- data

    async fn read(&self, leasing: &mut Leasing<'_>, inode: InodeId, range: ByteRange) -> Result<Bytes, Errno> {
        let began = tokio::time::Instant::now();
        loop {
            let plan = self
                .claimed(leasing, |core, _| {
                    let plan = core.plan_read(inode, range)?;
                    // Asking for nothing is no access.
                    if !range.is_empty() {
                        core.accessed(inode);
                    }
                    Ok(plan)
                })
                .await?;
            let pattern = self.read_ahead(inode, plan.range, plan.base.as_ref());
            match (self.fetch(&plan, pattern).await, &plan.base) {
                (Err(Errno::ESTALE), Some((link, base))) if self.until_replaced(inode, *link, base, began).await? => {}
                (read, _) => return read,
            }
        }
    }

    pub(crate) async fn fetch(&self, plan: &ReadPlan, pattern: Pattern) -> Result<Bytes, Errno> {
        if plan.pieces.iter().any(Piece::is_of_object) {
            return self.fetch_linked(plan, pattern).await;
        }
        let wanted: Vec<_> = plan
            .pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Data { extent, .. } => Some((extent.location, extent.skip, extent.length)),
                Piece::Hole { .. } => None,
            })
            .collect();
        let mut parts = self.inner.shared.blob.read_many(&wanted).await.map_err(blob_errno)?.into_iter();
        if let ([Piece::Data { .. }], Some(whole)) = (&plan.pieces[..], parts.as_slice().first()) {
            return Ok(whole.clone());
        }
        let mut bytes = BytesMut::with_capacity(plan.range.len() as usize);
        for piece in &plan.pieces {
            match piece {
                Piece::Hole { range } => bytes.resize(bytes.len() + range.len() as usize, 0),
                Piece::Data { .. } => bytes.extend_from_slice(&parts.next().ok_or(Errno::EIO)?),
            }
        }
        Ok(bytes.freeze())
    }

    /// The same, where some pieces are an object's.
    async fn fetch_linked(&self, plan: &ReadPlan, pattern: Pattern) -> Result<Bytes, Errno> {
        let (link, object) = plan.base.as_ref().ok_or(Errno::EIO)?;
        let bucket = self.bucket(*link).map_err(|error| self.told(*link, error))?;
        let reading = Reading { bucket: &bucket, link: *link, object, pattern };
        let mut parts = Vec::with_capacity(plan.pieces.len());
        for piece in &plan.pieces {
            parts.push(match piece {
                Piece::Hole { range } => Bytes::from(vec![0; range.len() as usize]),
                Piece::Data { extent, .. } => match rebase::base_range(extent) {
                    Some(range) => {
                        let read = self.inner.links.objects.read(reading, range).await;
                        let bytes = read.map_err(|error| self.told_of(*link, object, error))?;
                        if bytes.len() as u64 != range.len() {
                            return Err(Errno::EIO);
                        }
                        bytes
                    }
                    None => {
                        let wanted = [(extent.location, extent.skip, extent.length)];
                        let read = self.inner.shared.blob.read_many(&wanted).await.map_err(blob_errno)?;
                        read.into_iter().next().ok_or(Errno::EIO)?
                    }
                },
            });
        }
        if let [whole] = &parts[..] {
            return Ok(whole.clone());
        }
        let mut bytes = BytesMut::with_capacity(plan.range.len() as usize);
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(bytes.freeze())
    }

    /// Fetch ahead of a reader whose pattern is known. Answers with the pattern.
    fn read_ahead(&self, inode: InodeId, range: ByteRange, base: Option<&(InodeId, BaseObject)>) -> Pattern {
        if range.is_empty() {
            return Pattern::Random;
        }
        let window_max = self.inner.shared.blob.window_bytes_max();
        let (ahead, pattern) = {
            let mut readers = self.inner.readers.lock();
            if readers.len() >= READERS_MAX && !readers.contains_key(&inode) {
                readers.clear();
            }
            let reader = readers.entry(inode).or_default();
            let ahead = reader.observe(range.start, range.len(), window_max);
            (ahead, if reader.is_sequential() { Pattern::Sequential } else { Pattern::Random })
        };
        if let Some(ahead) = ahead {
            let locations = self.inner.shared.core.lock().plan_prefetch(inode, ahead);
            self.inner.shared.blob.prefetch(locations);
            if let Some((link, object)) = base
                && let Ok(bucket) = self.bucket(*link)
            {
                self.inner.links.objects.ahead(Reading { bucket: &bucket, link: *link, object, pattern }, ahead);
            }
        }
        pattern
    }

    // ---- listings

    async fn list(
        &self,
        leasing: &mut Leasing<'_>,
        inode: InodeId,
        after: u64,
        most: usize,
        with_attributes: bool,
        ahead: bool,
    ) -> Result<Outcome, Errno> {
        /// About what fits one reply with names of usual length.
        const ENTRIES_MAX: usize = 4096;
        let most = most.clamp(1, ENTRIES_MAX);
        let session = leasing.session();
        let (listing, names) = self
            .claimed(leasing, |core, _| {
                let listing = core.list(inode, after, most)?;
                if !ahead {
                    core.accessed(inode);
                }
                Ok((listing, core.names_state(inode)?))
            })
            .await?;
        let (entries, end) = match listing {
            Listing::Here { entries, end } => (entries, end),
            Listing::InStore => self.list_from_store(inode, after, most).await?,
        };
        let mut listed = entries;
        if with_attributes {
            let children: Vec<_> = listed.iter().map(|entry| entry.inode).collect();
            self.load_together(session, &children).await.map_err(|error| {
                tracing::error!(%error, "cannot read metadata");
                error.errno()
            })?;
        }
        self.claimed(leasing, |core, leasing| {
            // What was listed is true no longer if a name changed since: then it carries names alone, and none is kept.
            let is_current = core.names_state(inode)? == names;
            if with_attributes && is_current {
                for entry in &mut listed {
                    // A child that another session may be changing is looked up when it is asked for.
                    if core.is_quiet(session, entry.inode) {
                        match core.attributes(entry.inode) {
                            Ok(attributes) => entry.attributes = Some(attributes),
                            Err(Stop::Error(_)) => {}
                            Err(load) => return Err(load),
                        }
                    }
                }
            }
            let outcome = Outcome::Listing { entries: std::mem::take(&mut listed), end };
            if is_current {
                leasing.earn(core, Ok(&outcome));
            } else {
                leasing.earn_nothing(core);
            }
            Ok(outcome)
        })
        .await
    }

    pub(crate) async fn list_from_store(
        &self,
        inode: InodeId,
        mut after: u64,
        most: usize,
    ) -> Result<(Vec<atoll_types::operation::DirectoryEntry>, bool), Errno> {
        let failed = |error: VolumeError| {
            tracing::error!(%error, "cannot list a directory");
            error.errno()
        };
        loop {
            let range = format::cookies_after(inode, after);
            let overlay = self.inner.shared.core.lock().overlay_range(&range);
            let scan = Scan { start: range.0.clone(), end: range.1.clone(), entries_max: most };
            let page = self.patiently(self.inner.shared.store.scan(scan)).await.map_err(failed)?;
            let next = page.next.clone();
            let merged = core::merge(page, overlay, &range.1);
            let end = next.is_none() && merged.len() <= most;
            let mut entries = Vec::with_capacity(merged.len().min(most));
            for (key, value) in merged.into_iter().take(most) {
                let cookie = format::rest_u64(&key).map_err(failed)?;
                let (child, kind, name) = format::decode_cookie(&value).map_err(failed)?;
                entries.push(core::entry(name, child, kind, cookie));
            }
            match next {
                // Everything of this page was deleted meanwhile: go on behind it.
                Some(next) if entries.is_empty() => {
                    after = format::rest_u64(&next).map_err(failed)?.saturating_sub(1);
                }
                _ => return Ok((entries, end)),
            }
        }
    }

    // ---- locks

    async fn hold_locks(&self, leasing: &mut Leasing<'_>, inode: InodeId, locks: &[Lock]) -> Result<(), Errno> {
        if locks.len() > limits::LOCKS_PER_FILE_MAX || locks.iter().any(|lock| lock.range.is_empty()) {
            return Err(Errno::EINVAL);
        }
        let hold = |core: &mut Core, leasing: &mut Leasing<'_>| {
            let granted = core.locks.replace(inode, leasing.session(), locks).ok_or(Stop::Error(Errno::EAGAIN))?;
            leasing.earn(core, Ok(&Outcome::Done));
            Ok(granted)
        };
        let granted = self.claimed(leasing, hold).await?;
        self.grant(granted);
        // The client's journal has moved on.
        self.inner.shared.work.notify_one();
        Ok(())
    }

    fn grant(&self, granted: Vec<WaiterId>) {
        if granted.is_empty() {
            return;
        }
        let mut waiters = self.inner.waiters.lock();
        for waiter in granted {
            if let Some(sender) = waiters.remove(&waiter) {
                // Where the receiver is gone, its guard gives the lock back.
                let _ = sender.send(());
            }
        }
    }

    async fn wait_for_lock(&self, waiter: WaiterId) -> Result<(), Errno> {
        let (sender, receiver) = oneshot::channel();
        self.inner.waiters.lock().insert(waiter, sender);
        // It may have been granted before the sender was there.
        if !self.inner.shared.core.lock().locks.is_waiting(waiter) {
            self.grant(vec![waiter]);
        }
        let _guard = WaitGuard { volume: self, waiter };
        receiver.await.map_err(|_| Errno::EINTR)?;
        self.inner.shared.core.lock().locks.seen(waiter);
        Ok(())
    }
}

/// Withdraws a lock request whose waiter went away, also when it was granted and the waiter never heard of it.
struct WaitGuard<'a> {
    volume: &'a Volume,
    waiter: WaiterId,
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.volume.inner.waiters.lock().remove(&self.waiter);
        let granted = self.volume.inner.shared.core.lock().locks.withdraw(self.waiter);
        self.volume.grant(granted);
    }
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("no such inode")]
    NotThere,
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

fn done(_: ()) -> Outcome {
    Outcome::Done
}

fn blob_errno(error: BlobError) -> Errno {
    tracing::error!(%error, "file data");
    VolumeError::from(error).errno()
}

pub(crate) async fn scan_all<R: Read + ?Sized>(store: &R, range: KeyRange) -> Result<Vec<(Bytes, Bytes)>, VolumeError> {
    let mut entries = Vec::new();
    let mut next = Some(range.0);
    while let Some(start) = next {
        let page = store.scan(Scan { start, end: range.1.clone(), entries_max: 4096 }).await?;
        entries.extend(page.entries);
        next = page.next;
    }
    Ok(entries)
}
