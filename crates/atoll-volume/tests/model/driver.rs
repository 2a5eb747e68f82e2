//! Runs the same steps on a volume and on the reference, and compares what can be seen.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_keys::Keyring;
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::operation::DirectoryEntry;
use atoll_types::{
    Attributes, ByteRange, Caller, Errno, FileKind, InodeId, Mode, Name, Operation, Outcome, SessionId, Timestamp,
};
use atoll_volume::fsck::Report;
use atoll_volume::{
    Compaction, DirectoryQuota, Durability, QuotaError, QuotaState, Volume, VolumeConfig, VolumeSettings,
};
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use tokio::runtime::Runtime;

use super::generator::{Generator, Step};
use super::quotas::QuotaRoot;
use super::reference::{Answer, Body, Reference, Time};
use super::trash::TrashStep;
use crate::support::{tree, tree_below};

/// How many steps before a difference are shown.
const STEPS_SHOWN: usize = 30;
/// Everything is compared after this many steps.
const STEPS_BETWEEN_AUDITS: usize = 250;
/// A snapshot is kept over so many audits.
const SNAPSHOTS_KEPT: usize = 3;

/// One kind of volume to try.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub seed: u64,
    pub steps: usize,
    /// Small: inodes are dropped and loaded all the time.
    pub inode_cache_max: usize,
    /// Keep bytes on a disk before they are uploaded; else in memory.
    pub staged_on_disk: bool,
    /// How many operations of a hundred are on locks.
    pub locks_percent: u64,
    /// Directories get quotas and lose them.
    pub quotas: bool,
    pub encrypted: bool,
    /// Files are kept that lose their last name, at times.
    pub trash: bool,
}

type Reply = Result<Outcome, Errno>;
/// What is different, in words.
pub type Check = Result<(), String>;

pub const NOBODY: Caller = Caller { uid: 0, gid: 0, pid: 0 };
pub const LOOKING: SessionId = SessionId(9);

struct Waiter {
    number: u64,
    future: Pin<Box<dyn Future<Output = Reply>>>,
}

/// What outlives the authority.
struct Remains {
    medium: MemoryMedium,
    objects: Arc<dyn ObjectStore>,
    folder: Option<tempfile::TempDir>,
    keys: Option<Arc<Keyring>>,
}

pub struct Driver {
    case: Case,
    remains: Remains,
    /// One for each life of the authority: without it, every task of that life is gone.
    pub runtime: Runtime,
    volume: Option<Volume>,
    pub model: Reference,
    generator: Generator,
    waiters: Vec<Waiter>,
    /// Snapshots, and what they must show.
    snapshots: VecDeque<(String, BTreeMap<String, String>)>,
    /// The newest change that was seen.
    last_change: Timestamp,
    shown: VecDeque<String>,
    /// How often each operation ended how.
    tally: BTreeMap<String, u64>,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn poll<T>(runtime: &Runtime, future: &mut Pin<Box<dyn Future<Output = T>>>) -> Poll<T> {
    // What is polled may start tasks.
    let _within = runtime.enter();
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

pub fn expect<T: PartialEq + std::fmt::Debug>(what: &str, volume: T, model: T) -> Check {
    if volume == model {
        return Ok(());
    }
    let short = |value: &T| {
        let mut text = format!("{value:?}");
        text.truncate(2000);
        text
    };
    Err(format!("{what}: the volume says {}, the model {}", short(&volume), short(&model)))
}

impl Remains {
    fn open(&self, case: &Case, runtime: &Runtime) -> Volume {
        let staging = match &self.folder {
            Some(folder) => Staging::Folder(folder.path().to_owned()),
            None => Staging::Memory,
        };
        let mut config = BlobConfig::new(self.objects.clone(), Path::default(), staging);
        config.segment_bytes_max = 256 * 1024;
        config.cache_bytes_max = 1 << 20;
        config.keys = self.keys.clone();
        let volume_config = VolumeConfig {
            inode_cache_max: case.inode_cache_max,
            commit_lag: Duration::from_millis(1),
            inline_bytes_max: 16 * 1024,
            empty_segments_kept: Duration::ZERO,
            // All the time, and for every byte.
            compaction: Compaction {
                interval: Duration::from_millis(2),
                live_percent_max: 99,
                dead_bytes_min: 0,
                dead_percent_min: 0,
                pass_bytes_max: 256 * 1024,
                bytes_per_second: u64::MAX,
            },
            ..VolumeConfig::default()
        };
        let opening = |epoch, recovered| -> Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(config, epoch, recovered))
        };
        let store = Arc::new(MemoryStore::open(&self.medium));
        runtime.block_on(Volume::open(store, opening, volume_config)).expect("the volume opens")
    }
}

impl Driver {
    pub fn new(case: Case) -> Self {
        let folder = case.staged_on_disk.then(|| tempfile::tempdir().expect("a folder"));
        let keys = case.encrypted.then(|| Arc::new(Keyring::random().expect("keys")));
        let remains = Remains { medium: MemoryMedium::new(), objects: Arc::new(InMemory::new()), folder, keys };
        let runtime = runtime();
        let settings = VolumeSettings::new(Durability::Object, u128::from(case.seed));
        let store = MemoryStore::open(&remains.medium);
        runtime
            .block_on(atoll_volume::format(&store, &settings, &Caller::default()))
            .expect("an empty store is formatted");
        let volume = remains.open(&case, &runtime);
        let get = Operation::GetAttributes { inode: InodeId::ROOT };
        let Ok(Outcome::Entry(root)) = runtime.block_on(volume.execute(LOOKING, &NOBODY, get)) else {
            panic!("no root")
        };
        Driver {
            model: Reference::new(root.changed, "object"),
            last_change: root.changed,
            generator: Generator::new(&case),
            waiters: Vec::new(),
            snapshots: VecDeque::new(),
            shown: VecDeque::new(),
            tally: BTreeMap::new(),
            volume: Some(volume),
            case,
            remains,
            runtime,
        }
    }

    /// Panics at the first difference; tells how often each operation ended how.
    pub fn run(mut self) -> BTreeMap<String, u64> {
        for number in 0..self.case.steps {
            let waiting: Vec<u64> = self.waiters.iter().map(|waiter| waiter.number).collect();
            let step = self.generator.step(&self.model, &waiting);
            self.show(number, &step);
            let mut check = self.step(&step).and_then(|()| self.check_quotas());
            if matches!(step, Step::Trash(TrashStep::Crash(..))) {
                check = check.and_then(|()| self.audit());
            }
            if number % STEPS_BETWEEN_AUDITS == 0 || matches!(step, Step::Reopen | Step::Crash) {
                check = check.and_then(|()| self.audit()).and_then(|()| self.audit_snapshots(number));
            }
            if let Err(difference) = check {
                let steps = Vec::from(self.shown).join("\n");
                panic!(
                    "{steps}\n{:?}, step {number}: {difference}\nATOLL_SEED={} repeats it",
                    self.case, self.case.seed
                );
            }
        }
        self.waiters.clear();
        if let Err(difference) = self.audit_snapshots(self.case.steps) {
            panic!("{:?}, at the end: {difference}\nATOLL_SEED={} repeats it", self.case, self.case.seed);
        }
        self.count_compacted();
        // Looking moves access times, which the model is not told.
        let (_, newest) = self.snapshots.back().expect("a snapshot");
        assert!(self.runtime.block_on(tree(self.volume())) == *newest, "the newest snapshot is not what is there");
        let volume = self.volume.take().expect("an open volume");
        self.runtime.block_on(volume.close()).expect("the volume closes");
        drop(volume);
        self.restore();
        self.tally.append(&mut self.model.trash.tally);
        self.tally
    }

    /// Each snapshot can be gone back to, newer and older ones stay, and the volume goes on.
    fn restore(&mut self) {
        let names: Vec<usize> = (0..self.snapshots.len()).chain((0..self.snapshots.len()).rev()).collect();
        for at in names {
            let (name, then) = self.snapshots[at].clone();
            let store = MemoryStore::open(&self.remains.medium);
            self.runtime.block_on(atoll_volume::restore(&store, &name)).expect("the snapshot is restored");
            self.volume = Some(self.remains.open(&self.case, &self.runtime));
            assert!(self.runtime.block_on(tree(self.volume())) == then, "{name} was restored to something else");
            assert_eq!(self.volume().retention(), self.model.trash.retention, "{name} has changed the retention");
            let report = self.check();
            assert!(report.is_clean(), "{name}: {:?}", report.findings);
            let data = Bytes::from(vec![at as u8; 200_000]);
            let write = |inode| Operation::Write {
                inode,
                at: atoll_types::operation::WriteAt::Offset(0),
                data: data.clone(),
                drop_privileges: false,
            };
            let make = Operation::CreateUnnamed { parent: InodeId::ROOT, permissions: 0o600, umask: 0 };
            let Ok(Outcome::Entry(made)) = self.look(make) else { panic!("nothing can be made") };
            self.look(write(made.inode)).expect("what was made can be written");
            let volume = self.volume.take().expect("an open volume");
            self.runtime.block_on(volume.close()).expect("the volume closes");
        }
    }

    /// Snapshots show what was there when they were made; one more is made, and the oldest goes.
    fn audit_snapshots(&mut self, number: usize) -> Check {
        for (name, then) in &self.snapshots {
            let now = self.runtime.block_on(self.snapshot_tree(name));
            expect(&format!("snapshot {name}"), &now, then)?;
            let report = self.runtime.block_on(self.volume().check_snapshot(name, true, &|_| ()));
            let report = report.expect("a snapshot that can be checked");
            if !report.is_clean() {
                return Err(format!("snapshot {name} is not sound: {:?}", report.findings));
            }
        }
        if self.snapshots.len() >= SNAPSHOTS_KEPT
            && let Some((oldest, _)) = self.snapshots.pop_front()
        {
            self.runtime.block_on(self.volume().delete_snapshot(&oldest)).expect("the snapshot is deleted");
        }
        let name = format!("at-{number}");
        let then = self.runtime.block_on(async {
            self.volume().create_snapshot(&name).await.expect("a snapshot is made");
            self.snapshot_tree(&name).await
        });
        self.snapshots.push_back((name, then));
        Ok(())
    }

    async fn snapshot_tree(&self, name: &str) -> BTreeMap<String, String> {
        let volume = self.volume();
        let then = tree(&volume.at_snapshot(name).await.expect("a snapshot that opens")).await;
        let lookup =
            Operation::Lookup { parent: InodeId::SNAPSHOTS, name: Name::new(name.to_owned()).expect("a name") };
        let found = volume.execute(LOOKING, &NOBODY, lookup).await.expect("a snapshot below `.snapshots`");
        let root = found.attributes().expect("its root").inode;
        assert!(tree_below(volume, root).await == then, "`.snapshots/{name}` shows something else");
        then
    }

    fn show(&mut self, number: usize, step: &Step) {
        let mut text = match step {
            Step::Execute { session, caller, operation: Operation::Write { inode, at, data, drop_privileges } } => {
                let length = data.len();
                format!(
                    "{session:?} {} Write {inode:?} {at:?}, {length} bytes, drop_privileges: {drop_privileges}",
                    caller.uid
                )
            }
            Step::Execute { session, caller, operation } => format!("{session:?} {} {operation:?}", caller.uid),
            step => format!("{step:?}"),
        };
        text.truncate(400);
        self.shown.push_back(format!("{number}: {text}"));
        if self.shown.len() > STEPS_SHOWN {
            self.shown.pop_front();
        }
    }

    pub fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("an open volume")
    }

    pub fn look(&self, operation: Operation) -> Reply {
        self.runtime.block_on(self.volume().execute(LOOKING, &NOBODY, operation))
    }

    fn step(&mut self, step: &Step) -> Check {
        match step {
            Step::Execute { session, caller, operation } => self.execute(*session, *caller, operation),
            Step::Yield => {
                self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
                Ok(())
            }
            Step::EndSession(session) => {
                self.runtime.block_on(self.volume().end_session(*session));
                let granted = self.model.end_session(*session);
                // The server drops what an ended session waits for.
                let model = &self.model;
                self.waiters.retain(|waiter| granted.contains(&waiter.number) || model.locks.is_waiting(waiter.number));
                self.settle_waiters(granted, None)
            }
            Step::Withdraw(number) => self.withdraw(*number),
            Step::LoseGrant(number) => self.lose_grant(*number),
            Step::SetQuota(directory, limits) => {
                let set = self.volume().set_directory_quota(*directory, *limits, |_| ());
                let set = self.runtime.block_on(set);
                let model = match self.model.is_of_trash(*directory) {
                    true => Err(QuotaError::Other(Errno::EPERM)),
                    false if self.model.set_quota(*directory, *limits) => Ok(()),
                    false => Err(QuotaError::TooDeep),
                };
                self.note(&format!("set quota {set:?}"), 1);
                expect("setting a quota", set, model)
            }
            Step::RemoveQuota(directory) => {
                let removed = self.volume().remove_directory_quota(*directory, |_| ());
                let removed = self.runtime.block_on(removed);
                self.model.remove_quota(*directory);
                expect("removing a quota", removed, Ok(()))
            }
            Step::Trash(step) => self.trash_step(step),
            Step::Reopen | Step::Crash => {
                self.reopen(matches!(step, Step::Crash));
                Ok(())
            }
        }
    }

    /// What is charged to each quota root is what there is.
    fn check_quotas(&self) -> Check {
        let quota = |(&root, quota): (&InodeId, &QuotaRoot)| {
            let &QuotaRoot { limits, parent } = quota;
            (root, DirectoryQuota { state: QuotaState::Kept, parent, limits, used: self.model.used(root) })
        };
        expect("quotas", self.volume().directory_quotas(), self.model.quotas.iter().map(quota).collect())
    }

    pub fn note(&mut self, what: &str, count: u64) {
        if count > 0 {
            *self.tally.entry(what.to_owned()).or_default() += count;
        }
    }

    fn count_compacted(&mut self) {
        self.note("bytes compacted", self.volume().report().bytes_compacted);
    }

    fn reopen(&mut self, crash: bool) {
        if crash {
            self.look(Operation::Sync).expect("the volume syncs");
        }
        self.begin_anew(crash);
        self.model.restart();
    }

    /// Another authority has the volume; the last one ends in order, or it crashes.
    pub fn begin_anew(&mut self, crash: bool) {
        self.waiters.clear();
        self.count_compacted();
        let volume = self.volume.take().expect("an open volume");
        if !crash {
            self.runtime.block_on(volume.close()).expect("the volume closes");
        }
        drop(volume);
        std::mem::replace(&mut self.runtime, runtime()).shutdown_background();
        self.volume = Some(self.remains.open(&self.case, &self.runtime));
    }

    // ---- locks

    /// The waiters that were let in hear of it and the others do not; `lost` goes away instead of listening.
    fn settle_waiters(&mut self, mut granted: Vec<u64>, lost: Option<u64>) -> Check {
        if let Some(lost) = lost {
            self.waiters.retain(|waiter| waiter.number != lost);
            granted.retain(|&number| number != lost);
            granted.extend(self.model.locks.withdraw(lost));
        }
        let mut waiters = std::mem::take(&mut self.waiters);
        let mut check = Ok(());
        waiters.retain_mut(|waiter| {
            let heard = match poll(&self.runtime, &mut waiter.future) {
                Poll::Pending => None,
                Poll::Ready(reply) => Some(reply),
            };
            let due = granted.contains(&waiter.number).then_some(Ok(Outcome::Done));
            if check.is_ok() {
                check = expect(&format!("waiter {}", waiter.number), heard.clone(), due);
            }
            if heard.is_some() {
                self.model.locks.seen(waiter.number);
            }
            heard.is_none()
        });
        self.waiters = waiters;
        check
    }

    fn count(&mut self, operation: &Operation, answer: &Result<Answer, Errno>) {
        let text = format!("{operation:?}");
        let kind = text.split([' ', '{']).next().unwrap_or_default();
        let end = match answer {
            Ok(Answer::Waits(_)) => "waits".to_owned(),
            Ok(_) => "done".to_owned(),
            Err(errno) => format!("{errno:?}"),
        };
        self.note(&format!("{kind} {end}"), 1);
    }

    fn withdraw(&mut self, number: u64) -> Check {
        self.waiters.retain(|waiter| waiter.number != number);
        let granted = self.model.locks.withdraw(number);
        self.settle_waiters(granted, None)
    }

    /// Everybody else unlocks everything, so that the waiter gets in; it leaves before it hears of it.
    fn lose_grant(&mut self, number: u64) -> Check {
        let Some((inode, holder, space)) = self.model.locks.blocker_of(number) else { return Ok(()) };
        let (session, owner) = holder;
        let range = ByteRange::new(0, u64::MAX);
        let unlock = Operation::Unlock { inode, space, owner, range };
        self.runtime.block_on(self.volume().execute(session, &NOBODY, unlock.clone())).map_err(|e| e.to_string())?;
        let (_, granted) = self.model.execute(session, &NOBODY, &unlock, None);
        let lost = granted.contains(&number).then_some(number);
        self.settle_waiters(granted, lost)
    }

    // ---- operations

    pub fn execute(&mut self, session: SessionId, caller: Caller, operation: &Operation) -> Check {
        let started = Timestamp::now();
        let volume = self.volume().clone();
        let reply = if let Operation::SetLock { .. } = operation {
            let operation = operation.clone();
            let volume = volume.clone();
            let mut future: Pin<Box<dyn Future<Output = Reply>>> =
                Box::pin(async move { volume.execute(session, &caller, operation).await });
            match poll(&self.runtime, &mut future) {
                Poll::Ready(reply) => Some(reply),
                Poll::Pending => {
                    self.waiters.push(Waiter { number: u64::MAX, future });
                    None
                }
            }
        } else {
            Some(self.runtime.block_on(volume.execute(session, &caller, operation.clone())))
        };
        let new = self.new_inode(operation, &reply);
        let may_lose = self.case.trash && matches!(operation, Operation::Unlink { .. } | Operation::Rename { .. });
        if may_lose {
            self.model.trash.hour = self.hour_since(started);
        }
        let (answer, granted) = self.model.execute(session, &caller, operation, new);
        self.count(operation, &answer);
        match (reply, answer) {
            (None, Ok(Answer::Waits(number))) => {
                self.waiters.last_mut().expect("the new waiter").number = number;
            }
            (reply, answer) => {
                let reply = reply.ok_or_else(|| format!("the volume waits, the model says {answer:?}"))?;
                // Times first: the answer is compared with them.
                self.settle(started)?;
                self.compare(operation, reply, answer)?;
            }
        }
        self.settle_waiters(granted, None)?;
        if may_lose {
            self.check_trash()?;
        }
        for _ in 0..2 {
            let inode = self.generator.any(&self.model);
            self.check_node(inode)?;
        }
        Ok(())
    }

    /// The inode that the volume made, if it did.
    fn new_inode(&self, operation: &Operation, reply: &Option<Reply>) -> Option<InodeId> {
        let inode = match (operation, reply.as_ref()?.as_ref().ok()?) {
            (Operation::Rename { parent, name, mode, .. }, _) => {
                if *mode != atoll_types::operation::RenameMode::Whiteout {
                    return None;
                }
                let lookup = Operation::Lookup { parent: *parent, name: name.clone() };
                let Ok(Outcome::Entry(attributes)) = self.look(lookup) else { return None };
                attributes.inode
            }
            (_, Outcome::Entry(attributes) | Outcome::Created { attributes, .. }) => attributes.inode,
            _ => return None,
        };
        (!self.model.nodes.contains_key(&inode)).then_some(inode)
    }

    fn attributes(&self, inode: InodeId) -> Result<Attributes, String> {
        match self.look(Operation::GetAttributes { inode }) {
            Ok(Outcome::Entry(attributes)) => Ok(attributes),
            other => Err(format!("attributes of {inode:?}: {other:?}")),
        }
    }

    /// Learn the times that the operation moved: they are of now, and all later than every change before.
    pub fn settle(&mut self, started: Timestamp) -> Check {
        let mut newest = self.last_change;
        for inode in std::mem::take(&mut self.model.touched) {
            let real = self.attributes(inode)?;
            let node = self.model.nodes.get_mut(&inode).expect("a touched node");
            let times = [
                ("accessed", &mut node.accessed, real.accessed),
                ("modified", &mut node.modified, real.modified),
                ("changed", &mut node.changed, real.changed),
                ("created", &mut node.created, real.created),
            ];
            for (what, time, now) in times {
                if *time == Time::Moved {
                    if now < started || now <= self.last_change {
                        return Err(format!("{inode:?}: `{what}` did not move, it is {now:?}"));
                    }
                    *time = Time::Is(now);
                    newest = newest.max(now);
                }
            }
            self.check_attributes(inode, &real)?;
        }
        self.last_change = newest;
        Ok(())
    }

    fn check_node(&self, inode: InodeId) -> Check {
        self.check_attributes(inode, &self.attributes(inode)?)
    }

    fn check_attributes(&self, inode: InodeId, real: &Attributes) -> Check {
        let node = self.model.node(inode).map_err(|_| format!("{inode:?} is gone in the model"))?;
        let of = |what: &str| format!("{what} of {inode:?}");
        expect(&of("number"), real.inode, inode)?;
        expect(&of("mode"), real.mode, Mode::new(node.kind, node.permissions))?;
        expect(&of("links"), real.links, node.links)?;
        expect(&of("owner"), (real.uid, real.gid), (node.uid, node.gid))?;
        expect(&of("device"), real.device, node.device)?;
        expect(&of("size"), real.size, node.size())?;
        expect(&of("quota root"), real.quota_root, node.quota_root)?;
        expect(&of("allocated bytes"), real.allocated, node.allocated())?;
        expect(&of("access time"), Time::Is(real.accessed), node.accessed)?;
        expect(&of("modification time"), Time::Is(real.modified), node.modified)?;
        expect(&of("change time"), Time::Is(real.changed), node.changed)?;
        expect(&of("creation time"), Time::Is(real.created), node.created)
    }

    pub fn compare(&self, operation: &Operation, reply: Reply, answer: Result<Answer, Errno>) -> Check {
        match (reply, answer) {
            (Ok(Outcome::Done), Ok(Answer::Done)) => Ok(()),
            (Ok(Outcome::Entry(real)), Ok(Answer::Entry(inode))) => self.check_attributes(inode, &real),
            (Ok(Outcome::Created { attributes, new: really }), Ok(Answer::Created { inode, new })) => {
                expect("newly made", really, new)?;
                self.check_attributes(inode, &attributes)
            }
            (Ok(Outcome::Data(real)), Ok(Answer::Data(bytes))) => expect("bytes", &real[..], &bytes[..]),
            (Ok(Outcome::Data(real)), Ok(Answer::Names(names))) => {
                let mut listed: Vec<Vec<u8>> = real.split(|&b| b == 0).map(<[u8]>::to_vec).collect();
                expect("end of the list", listed.pop(), Some(Vec::new()))?;
                listed.sort();
                expect("attribute names", listed, names.into_iter().collect())
            }
            (
                Ok(Outcome::Written { offset: at, length: n, attributes }),
                Ok(Answer::Written { offset, length, inode }),
            ) => {
                expect("written", (at, n), (offset, length))?;
                self.check_attributes(inode, &attributes)
            }
            (Ok(Outcome::Offset(real)), Ok(Answer::Offset(offset))) => expect("offset", real, offset),
            (Ok(Outcome::Listing { entries, end }), Ok(Answer::Listing(following))) => {
                let Operation::ReadDirectory { entries_max, with_attributes, .. } = operation else {
                    return Err("a listing".into());
                };
                self.compare_listing(&entries, end, &following, *entries_max, *with_attributes)
            }
            (Ok(Outcome::Space(space)), Ok(Answer::Space { bytes_used, inodes_used })) => {
                expect("bytes used", space.bytes_used, bytes_used)?;
                expect("inodes used", space.inodes_used, inodes_used)
            }
            (Ok(Outcome::Conflict(real)), Ok(Answer::Conflict(candidates))) => match real {
                None => expect("conflicts", Vec::new(), candidates),
                Some(lock) if candidates.contains(&lock) => Ok(()),
                Some(lock) => Err(format!("the conflict {lock:?} is none of {candidates:?}")),
            },
            (Err(real), Err(errno)) => expect("error", real, errno),
            (reply, answer) => {
                let mut text = format!("the volume says {reply:?}, the model {answer:?}");
                text.truncate(2000);
                Err(text)
            }
        }
    }

    fn compare_listing(
        &self,
        entries: &[DirectoryEntry],
        end: bool,
        following: &[(Name, InodeId, u64)],
        entries_max: u32,
        with_attributes: bool,
    ) -> Check {
        let listed: Vec<_> = entries.iter().map(|e| (e.name.clone(), e.inode, e.cookie)).collect();
        expect("listing", &listed[..], &following[..listed.len().min(following.len())])?;
        if listed.len() > entries_max.max(1) as usize {
            return Err(format!("{} entries where {entries_max} were asked for", listed.len()));
        }
        if end && listed.len() < following.len() || !end && listed.is_empty() {
            return Err(format!("end is {end} after {} of {} entries", listed.len(), following.len()));
        }
        for entry in entries {
            expect("type of an entry", entry.kind, self.model.nodes[&entry.inode].kind)?;
            expect("attributes of an entry are there", entry.attributes.is_some(), with_attributes)?;
            if let Some(attributes) = &entry.attributes {
                self.check_attributes(entry.inode, attributes)?;
            }
        }
        Ok(())
    }

    // ---- everything

    fn audit(&mut self) -> Check {
        for inode in self.model.nodes.keys().copied().collect::<Vec<_>>() {
            self.check_node(inode)?;
            self.audit_xattrs(inode)?;
            match self.model.nodes[&inode].kind {
                FileKind::Regular => self.audit_content(inode)?,
                FileKind::Directory => self.audit_names(inode)?,
                _ => {}
            }
        }
        for &inode in self.model.gone.iter().rev().take(50) {
            expect(
                "attributes of one that is gone",
                self.look(Operation::GetAttributes { inode }),
                Err(Errno::ESTALE),
            )?;
        }
        let report = self.check();
        if !report.is_clean() {
            return Err(format!("not a sound volume: {:?}", report.findings));
        }
        if self.case.trash {
            self.audit_trash()?;
        }
        self.ask(&Operation::Statistics { inode: InodeId::ROOT })
    }

    /// What `fsck` says.
    fn check(&self) -> Report {
        let volume = self.volume.as_ref().expect("an open volume");
        self.runtime.block_on(volume.check(true, &|_| ())).expect("a volume that can be checked")
    }

    /// One more operation of both sides.
    fn ask(&mut self, operation: &Operation) -> Check {
        let started = Timestamp::now();
        let reply = self.look(operation.clone());
        let (answer, _) = self.model.execute(LOOKING, &NOBODY, operation, None);
        self.settle(started)?;
        self.compare(operation, reply, answer)
    }

    fn audit_xattrs(&mut self, inode: InodeId) -> Check {
        self.ask(&Operation::ListXattrs { inode })?;
        for name in self.model.nodes[&inode].xattrs.keys().cloned().collect::<Vec<_>>() {
            self.ask(&Operation::GetXattr { inode, name: Bytes::from(name) })?;
        }
        Ok(())
    }

    fn audit_content(&mut self, inode: InodeId) -> Check {
        use atoll_types::operation::SeekTo;
        let Body::File(content) = &self.model.nodes[&inode].body else { return Ok(()) };
        let known = content.size.min(1 << 20);
        let mut at = 0;
        // Every run of data and of holes.
        while at < known {
            for to in [SeekTo::Data, SeekTo::Hole] {
                self.ask(&Operation::Seek { inode, offset: at, to })?;
            }
            let Body::File(content) = &self.model.nodes[&inode].body else { return Ok(()) };
            let next = [content.seek(at, true), content.seek(at, false)].into_iter().flatten().filter(|&n| n > at);
            at = next.min().unwrap_or(known);
        }
        self.ask(&Operation::Read { inode, range: ByteRange::new(0, known + 1) })
    }

    fn audit_names(&mut self, inode: InodeId) -> Check {
        let mut after = 0;
        let mut listed = BTreeMap::new();
        loop {
            let list = Operation::ReadDirectory { inode, after, entries_max: 3, with_attributes: false, ahead: false };
            let started = Timestamp::now();
            let reply = self.look(list.clone());
            let (answer, _) = self.model.execute(LOOKING, &NOBODY, &list, None);
            self.settle(started)?;
            self.compare(&list, reply.clone(), answer)?;
            let Ok(Outcome::Listing { entries, end }) = reply else { return Err("no listing".into()) };
            after = entries.last().map_or(after, |entry| entry.cookie);
            listed.extend(entries.into_iter().map(|entry| (entry.name, entry.inode)));
            if end {
                break;
            }
        }
        let Body::Directory(directory) = &self.model.nodes[&inode].body else { return Ok(()) };
        let names: BTreeMap<Name, InodeId> = directory.names.iter().map(|(n, e)| (n.clone(), e.inode)).collect();
        expect("all names", listed, names.clone())?;
        for name in names.into_keys() {
            self.ask(&Operation::Lookup { parent: inode, name })?;
        }
        self.ask(&Operation::Parent { inode })
    }
}
