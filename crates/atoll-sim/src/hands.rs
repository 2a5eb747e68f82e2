//! What a client's processes do: operations on what all share, and chains of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_client::{Admin, Answer, Client, ClientConfig};
use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::operation::{AttributeChanges, OpenFlags, RenameMode, WriteAt};
use atoll_types::{ByteRange, Caller, Errno, InodeId, LockOwner, Name, Operation, Outcome};
use atoll_wire::{AdminReply, AdminRequest};
use bytes::Bytes;
use futures_util::future::{join, join_all, join3};
use tokio::sync::oneshot;

use crate::chain::Chain;
use crate::history::{ABSENT, Action, FOLDERS, Object, REGISTERS, SLOTS, SOME_INODE, TORN, UNKNOWN_INODE, add_to_sum};
use crate::life::Life;
use crate::models::MODE_BITS;
use crate::world::{Phase, VOLUME, World};

/// Of the registers: one rides in a commit, one is a piece of a segment, one takes the bulk lane.
const REGISTER_BYTES: [usize; REGISTERS] = [8, 4096, 100_000];
const SIZE_MAX: u64 = 1 << 20;
const LOG_BYTES_MAX: u64 = 1 << 18;
/// The worker that looks at everything at the end of a round.
const OBSERVER: usize = 99;
/// The one that looks when its client was frozen.
const THAWED: usize = 98;
/// How often a client looks for what it is to do.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How often what only sets a round up is tried.
const ATTEMPTS_MAX: usize = 50;

pub struct Hands {
    world: Arc<World>,
    number: usize,
    client: Client,
    life: Life,
    next_id: AtomicU64,
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).expect("a good name")
}

/// The answer says nothing about files.
fn says_nothing(errno: Errno) -> bool {
    matches!(errno, Errno::EIO | Errno::ESTALE)
}

fn everything() -> ByteRange {
    ByteRange { start: 0, end: LOG_BYTES_MAX }
}

impl Hands {
    pub fn new(world: Arc<World>, number: usize, client: Client) -> Hands {
        let life = world.client_life(number);
        Hands { world, number, client, life, next_id: AtomicU64::new(2) }
    }

    /// Make the volume, if that is the phase.
    pub async fn found(world: &Arc<World>, number: usize, config: &ClientConfig) {
        loop {
            let phase = world.stage.lock().phase;
            match phase {
                Some(Phase::Found) if number == 0 => break,
                Some(Phase::Found) | None => tokio::time::sleep(LOOK_INTERVAL).await,
                Some(_) => return,
            }
        }
        loop {
            let request = AdminRequest::VolumeCreate {
                name: VOLUME.into(),
                durability: world.durability.into(),
                compression: "lz4".into(),
                encrypt: false,
                link: None,
            };
            let made = match Admin::connect(config).await {
                Ok(admin) => admin.call(request).await.map(drop),
                Err(error) => Err(error),
            };
            match made {
                Ok(()) => break,
                Err(error) => world.trace.note(format_args!("no volume: {error}")),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut stage = world.stage.lock();
        stage.done[number] = stage.number;
    }

    /// Do what each phase asks for, for ever.
    pub async fn follow(self: Arc<Self>) -> turmoil::Result {
        loop {
            let due = {
                let stage = self.world.stage.lock();
                let due = stage.phase.filter(|phase| phase.concerns(self.number));
                due.filter(|_| stage.done[self.number] < stage.number).map(|phase| (stage.number, phase))
            };
            if let Some((number, phase)) = due {
                match phase {
                    Phase::Found => {}
                    Phase::Prepare { is_first, .. } => self.prepare(is_first).await,
                    Phase::Work { is_shared } => self.work(is_shared).await,
                    Phase::Look { .. } => self.look().await,
                    Phase::Check => self.check().await,
                }
                self.world.stage.lock().done[self.number] = number;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn call(&self, operation: Operation) -> Result<Outcome, Errno> {
        let (sender, receiver) = oneshot::channel();
        let id = self.next_id.fetch_add(2, Ordering::Relaxed);
        let tells =
            matches!(operation, Operation::Lookup { .. } | Operation::Create { .. } | Operation::MakeDirectory { .. });
        let client = self.client.clone();
        let done = move |answer: Answer| {
            // As the adapter does: the kernel is told of the inode.
            if let Some(attributes) = answer.result.as_ref().ok().and_then(Outcome::attributes).filter(|_| tells) {
                client.looked_up(attributes.inode, attributes.kind());
            }
            let _ = sender.send(answer.result);
        };
        self.life.thawed().await;
        self.client.submit(id, Caller { uid: 0, gid: 0, pid: 1 }, operation, Box::new(done));
        let result = receiver.await.unwrap_or(Err(Errno::EIO));
        self.life.thawed().await;
        if self.life.is_over() {
            // Nobody is there to see it.
            return std::future::pending().await;
        }
        result
    }

    /// For what must work, sooner or later.
    async fn must(&self, operation: Operation) -> Outcome {
        for _ in 0..ATTEMPTS_MAX {
            match self.call(operation.clone()).await {
                Ok(outcome) => return outcome,
                Err(errno) if says_nothing(errno) => tokio::time::sleep(Duration::from_millis(100)).await,
                // It was done by an attempt before.
                Err(Errno::EEXIST | Errno::ENOENT) => return Outcome::Done,
                Err(errno) => {
                    self.world.defect(format!("client {}: {operation:?}: {errno}", self.number));
                    return std::future::pending().await;
                }
            }
        }
        self.world.defect(format!("client {}: {operation:?} gets no answer", self.number));
        std::future::pending().await
    }

    async fn inode(&self, parent: InodeId, text: &str) -> InodeId {
        let found = self.must(Operation::Lookup { parent, name: name(text) }).await;
        found.attributes().map_or(InodeId::ROOT, |attributes| attributes.inode)
    }

    async fn file(&self, text: &str) -> InodeId {
        let flags = OpenFlags { exclusive: false, ..OpenFlags::default() };
        let parent = InodeId::ROOT;
        let inode = match self
            .must(Operation::Create { parent, name: name(text), permissions: 0o644, umask: 0, flags })
            .await
        {
            Outcome::Created { attributes, .. } => attributes.inode,
            _ => self.inode(parent, text).await,
        };
        self.client.tell(Operation::Release { inode });
        inode
    }

    async fn folder(&self, text: &str) -> InodeId {
        let parent = InodeId::ROOT;
        match self.must(Operation::MakeDirectory { parent, name: name(text), permissions: 0o755, umask: 0 }).await {
            Outcome::Entry(attributes) => attributes.inode,
            _ => self.inode(parent, text).await,
        }
    }

    // ---- phases

    async fn prepare(&self, is_first: bool) {
        let (mut scene, round) = {
            let stage = self.world.stage.lock();
            (stage.scene.clone(), stage.round)
        };
        if is_first {
            for number in 0..REGISTERS {
                scene.registers[number] = self.file(&format!("r{number}")).await;
            }
            scene.mode = self.file("mode").await;
            scene.size = self.file("size").await;
            scene.locked = self.file("locked").await;
            for (number, text) in ["d0", "d1", "e"].into_iter().enumerate() {
                scene.folders[number] = self.folder(text).await;
            }
            for (number, inode) in scene.registers.into_iter().enumerate() {
                let data = Bytes::from(self.world.value().to_le_bytes().repeat(REGISTER_BYTES[number] / 8));
                self.must(Operation::Write { inode, at: WriteAt::Offset(0), data, drop_privileges: false }).await;
            }
        }
        scene.log = self.file(&format!("log-{round}")).await;
        scene.chains.clear();
        for client in 0..self.world.clients() {
            scene.chains.push(self.folder(&format!("c{round}-{client}")).await);
        }
        self.must(Operation::Sync).await;
        self.world.stage.lock().scene = scene;
    }

    async fn work(self: &Arc<Self>, is_shared: bool) {
        // What an earlier round has lost is not of this one.
        let _ = self.lost();
        let workers = if is_shared { self.world.stage.lock().left[self.number].len() } else { 1 };
        let is_over = AtomicBool::new(false);
        let work = join_all((0..workers).map(|worker| {
            let hands = self.clone();
            async move {
                match worker {
                    0 => hands.chain().await,
                    _ => hands.share(worker).await,
                }
            }
        }));
        let work = async {
            work.await;
            is_over.store(true, Ordering::Relaxed);
        };
        join(work, self.look_when_thawed(&is_over)).await;
    }

    /// What a client knows that is thawed may be old, or what a server says that is: it looks at all of it at once.
    async fn look_when_thawed(&self, is_over: &AtomicBool) {
        let thaws = || self.life.thaws() + self.world.server_thaws();
        let before = thaws();
        while thaws() == before {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let registers = join_all((0..REGISTERS).map(|number| self.read_register(number, THAWED)));
        let attributes =
            join_all([Object::Mode, Object::Size, Object::Log].map(|object| self.read_attributes(object, THAWED)));
        let names = join_all((0..SLOTS).map(|slot| self.look_up(Object::Names, slot, THAWED)));
        join3(registers, attributes, names).await;
    }

    async fn think(&self) {
        let ms = match self.world.below(4) {
            0 => 0,
            1 => self.world.below(3),
            2 => self.world.below(20),
            _ => self.world.below(80),
        };
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn takes_turn(&self, worker: usize) -> bool {
        let mut stage = self.world.stage.lock();
        let left = &mut stage.left[self.number][worker];
        let takes = *left > 0;
        *left = left.saturating_sub(1);
        takes
    }

    async fn look(&self) {
        for number in 0..REGISTERS {
            self.read_register(number, OBSERVER).await;
        }
        self.read_attributes(Object::Mode, OBSERVER).await;
        self.read_attributes(Object::Size, OBSERVER).await;
        let log = self.list_log(OBSERVER).await;
        for slot in 0..SLOTS {
            self.look_up(Object::Names, slot, OBSERVER).await;
        }
        for slot in 0..FOLDERS {
            self.look_up(Object::Folders, slot, OBSERVER).await;
        }
        self.must(Operation::Sync).await;
        self.world.stage.lock().final_log = log.unwrap_or_default();
        self.judge_chains().await;
        let round = self.world.stage.lock().round;
        self.must(Operation::Unlink { parent: InodeId::ROOT, name: name(&format!("log-{round}")) }).await;
    }

    /// Compare what is there of each chain, and remove it.
    async fn judge_chains(&self) {
        let (chains, scene, round) = {
            let stage = self.world.stage.lock();
            (stage.chains.clone(), stage.scene.clone(), stage.round)
        };
        for chain in &chains {
            let parent = scene.chains[chain.client];
            let mut found = Vec::new();
            for file in 0..=chain.steps.div_ceil(2) {
                found.push(self.read_file(parent, chain.name(file)).await);
            }
            if let Err(text) = chain.judge(&found) {
                self.world.defect(text);
            }
            for (file, _) in (0..).zip(&found).filter(|(_, found)| found.is_some()) {
                self.must(Operation::Unlink { parent, name: chain.name(file) }).await;
            }
        }
        for client in 0..self.world.clients() {
            let name = name(&format!("c{round}-{client}"));
            self.must(Operation::RemoveDirectory { parent: InodeId::ROOT, name }).await;
        }
    }

    async fn read_file(&self, parent: InodeId, name: Name) -> Option<Vec<u8>> {
        let found = self.must(Operation::Lookup { parent, name }).await;
        let inode = found.attributes()?.inode;
        match self.must(Operation::Read { inode, range: everything() }).await {
            Outcome::Data(bytes) => Some(bytes.to_vec()),
            _ => None,
        }
    }

    async fn check(&self) {
        let config = crate::processes::client_config(&self.world, self.number);
        let ask = async |request| match Admin::connect(&config).await {
            Ok(admin) => admin.call_watched(request, |_| ()).await,
            Err(error) => Err(error),
        };
        match ask(AdminRequest::CollectGarbage { volume: VOLUME.into(), dry_run: false }).await {
            Ok(AdminReply::Garbage { .. }) => {}
            other => self.world.defect(format!("gc: {other:?}")),
        }
        match ask(AdminRequest::Fsck { volume: VOLUME.into(), repair: false, read: true }).await {
            Ok(AdminReply::Fsck(report)) if report.refused.is_none() && report.problems.is_empty() => {
                self.world.trace.note(format_args!("fsck {report:?}"));
            }
            other => self.world.defect(format!("fsck: {other:?}")),
        }
    }

    /// What an operator does beside the work. It may fail when the server dies.
    async fn care(&self, worker: usize) {
        let (volume, name) = (VOLUME.to_owned(), format!("s{}-{worker}", self.number));
        let request = match self.world.below(4) {
            0 => AdminRequest::SnapshotCreate { volume, name },
            1 => AdminRequest::SnapshotDelete { volume, name },
            _ => AdminRequest::CollectGarbage { volume, dry_run: false },
        };
        let config = crate::processes::client_config(&self.world, self.number);
        let asked = async { Admin::connect(&config).await?.call_watched(request, |_| ()).await };
        let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
        if !self.life.is_over() {
            self.world.trace.note(format_args!("care {answer:?}"));
        }
    }

    // ---- locks

    /// Take the lock of a file, wait for it if need be, and give it back after a while.
    async fn hold_lock(&self, worker: usize) {
        let inode = self.scene(|scene| scene.locked);
        let is_exclusive = self.world.below(3) > 0;
        let (space, range) = (LockSpace::Range, ByteRange::EVERYTHING);
        // Sessions tell the owners of different clients apart.
        let owner = LockOwner(worker as u64);
        let kind = if is_exclusive { LockKind::Exclusive } else { LockKind::Shared };
        let lock = Lock { space, owner, pid: 1, kind, range };
        self.world.trace.note(format_args!("lock {}/{worker} waits for {kind:?}", self.number));
        let taken = self.call(Operation::SetLock { inode, lock, wait: true }).await;
        self.world.trace.note(format_args!("lock {}/{worker} {:?}", self.number, taken.as_ref().err()));
        match taken {
            Ok(_) => {
                self.world.takes_lock(self.number, worker, is_exclusive);
                self.think().await;
                self.world
                    .stage
                    .lock()
                    .holders
                    .retain(|holder| (holder.client, holder.worker) != (self.number, worker));
            }
            Err(errno) => self.world.stage.lock().lost_answers.push(format!("{errno}: lock {}/{worker}", self.number)),
        }
        // Also after a failure: the lock was lost, and its file is closed.
        if let Err(errno) = self.call(Operation::Unlock { inode, space, owner, range }).await {
            self.world.stage.lock().lost_answers.push(format!("{errno}: unlock {}/{worker}", self.number));
        }
    }

    // ---- chains

    async fn chain(&self) {
        let at = {
            let mut stage = self.world.stage.lock();
            let generation = stage.chains.iter().filter(|chain| chain.client == self.number).count();
            stage.chains.push(Chain::new(self.number, generation));
            stage.chains.len() - 1
        };
        let parent = self.world.stage.lock().scene.chains[self.number];
        let mut file = InodeId::ROOT;
        while self.takes_turn(0) {
            self.think().await;
            if self.world.below(8) == 0 {
                let steps = self.world.stage.lock().chains[at].steps;
                if self.call(Operation::Sync).await.is_ok() && self.client.lost(parent).is_none() {
                    let mut stage = self.world.stage.lock();
                    stage.chains[at].synced = steps;
                    self.world.trace.note(format_args!("chain {at} synced {steps}"));
                }
                continue;
            }
            let (step, chain) = {
                let mut stage = self.world.stage.lock();
                stage.operations += 1;
                let chain = &mut stage.chains[at];
                chain.is_open = true;
                (chain.steps, chain.clone())
            };
            let result = if step % 2 == 0 {
                let flags = OpenFlags { exclusive: true, ..OpenFlags::default() };
                let name = chain.name(step / 2);
                self.call(Operation::Create { parent, name, permissions: 0o600, umask: 0, flags }).await
            } else {
                let (at, data) = (WriteAt::Offset(0), Bytes::from(chain.content(step / 2)));
                self.call(Operation::Write { inode: file, at, data, drop_privileges: false }).await
            };
            self.world.trace.note(format_args!("chain {at} step {step} {:?}", result.as_ref().err()));
            match result {
                Ok(outcome) => {
                    if let Outcome::Created { attributes, .. } = outcome {
                        file = attributes.inode;
                        self.client.tell(Operation::Release { inode: file });
                    }
                    let mut stage = self.world.stage.lock();
                    stage.chains[at].steps += 1;
                    stage.chains[at].is_open = false;
                }
                Err(errno) => {
                    let mut stage = self.world.stage.lock();
                    stage.chains[at].is_void = true;
                    stage.lost_answers.push(format!("{errno}: {chain:?}"));
                    return;
                }
            }
        }
    }

    // ---- what all share

    async fn share(&self, worker: usize) {
        while self.takes_turn(worker) {
            self.think().await;
            let number = self.world.below(REGISTERS as u64) as usize;
            let slot = self.world.below(SLOTS as u64) as usize;
            let folder = self.world.below(FOLDERS as u64) as usize;
            if self.world.stage.lock().is_hot && self.world.below(8) > 0 {
                match self.world.below(8) {
                    0..3 => self.write_register(0, worker).await,
                    3..6 => self.read_register(0, worker).await,
                    6 => self.append(worker).await,
                    _ => drop(self.list_log(worker).await),
                }
                continue;
            }
            if self.world.below(40) == 0 {
                self.care(worker).await;
            }
            if self.world.below(10) == 0 {
                self.hold_lock(worker).await;
                continue;
            }
            match self.world.below(24) {
                0..3 => self.write_register(number, worker).await,
                3..6 => self.read_register(number, worker).await,
                6 => self.set_attributes(Object::Mode, worker).await,
                7 => self.set_attributes(Object::Size, worker).await,
                8 => self.read_attributes(Object::Mode, worker).await,
                9 => self.read_attributes(Object::Size, worker).await,
                10..13 => self.append(worker).await,
                13 => drop(self.list_log(worker).await),
                14 => self.read_attributes(Object::Log, worker).await,
                15..17 => self.look_up(Object::Names, slot, worker).await,
                17..19 => self.make(Object::Names, slot, worker).await,
                19 => self.remove(Object::Names, slot, worker).await,
                20 => {
                    let to = self.world.below(SLOTS as u64 - 1) as usize;
                    self.rename(slot, if to < slot { to } else { to + 1 }, worker).await;
                }
                21 => self.make(Object::Folders, folder, worker).await,
                22 => self.remove(Object::Folders, folder, worker).await,
                _ => match self.world.below(3) {
                    0 => self.look_up(Object::Folders, folder, worker).await,
                    1 => self.list_names((number % 2) as u64, worker).await,
                    _ => self.sync(worker).await,
                },
            }
        }
    }

    /// Call for something that all share, and record what came of it.
    async fn act(
        &self,
        object: Object,
        attempt: Action,
        worker: usize,
        operation: Operation,
        happened: impl FnOnce(Result<Outcome, Errno>) -> Option<Vec<Action>>,
    ) {
        let how = operation.name();
        let call = self.world.call(object, attempt, how, self.number, worker);
        match self.call(operation).await {
            Err(errno) if says_nothing(errno) => self.world.lost(call, &errno.to_string()),
            result => {
                let shown = format!("{:?}", result.as_ref().err());
                match happened(result) {
                    Some(actions) => self.world.returned(call, &actions),
                    None => self.world.defect(format!("client {} {how} on {object}: {shown}", self.number)),
                }
            }
        }
    }

    fn scene<T>(&self, pick: impl FnOnce(&crate::world::Scene) -> T) -> T {
        pick(&self.world.stage.lock().scene)
    }

    async fn write_register(&self, number: usize, worker: usize) {
        let (inode, value) = (self.scene(|scene| scene.registers[number]), self.world.value());
        let data = Bytes::from(value.to_le_bytes().repeat(REGISTER_BYTES[number] / 8));
        let length = data.len() as u64;
        let operation = Operation::Write { inode, at: WriteAt::Offset(0), data, drop_privileges: false };
        let wrote = move |result| match result {
            Ok(Outcome::Written { length: wrote, .. }) if wrote == length => Some(vec![Action::Write(value)]),
            _ => None,
        };
        self.act(Object::Register(number), Action::Write(value), worker, operation, wrote).await;
    }

    async fn read_register(&self, number: usize, worker: usize) {
        let inode = self.scene(|scene| scene.registers[number]);
        let range = ByteRange { start: 0, end: REGISTER_BYTES[number] as u64 };
        let read = |result| {
            let Ok(Outcome::Data(bytes)) = result else { return None };
            let mut words = bytes.chunks(8).map(|word| word.try_into().map(u64::from_le_bytes));
            let first = words.next().and_then(Result::ok);
            let is_whole = bytes.len() == REGISTER_BYTES[number] && words.all(|word| word.ok() == first);
            Some(vec![Action::Read(first.filter(|_| is_whole).unwrap_or(TORN))])
        };
        let operation = Operation::Read { inode, range };
        self.act(Object::Register(number), Action::Read(TORN), worker, operation, read).await;
    }

    async fn set_attributes(&self, object: Object, worker: usize) {
        let value = self.world.value();
        let (inode, value, changes) = if object == Object::Mode {
            let value = value & MODE_BITS;
            let permissions = Some(value as u32);
            (self.scene(|scene| scene.mode), value, AttributeChanges { permissions, ..Default::default() })
        } else {
            let value = value % SIZE_MAX;
            (self.scene(|scene| scene.size), value, AttributeChanges { size: Some(value), ..Default::default() })
        };
        let set = move |result: Result<Outcome, Errno>| result.is_ok().then(|| vec![Action::Write(value)]);
        self.act(object, Action::Write(value), worker, Operation::SetAttributes { inode, changes }, set).await;
    }

    async fn read_attributes(&self, object: Object, worker: usize) {
        let inode = self.scene(|scene| match object {
            Object::Mode => scene.mode,
            Object::Size => scene.size,
            _ => scene.log,
        });
        let read = |result: Result<Outcome, Errno>| {
            let attributes = *result.ok()?.attributes()?;
            Some(vec![match object {
                Object::Mode => Action::Read(u64::from(attributes.mode.permissions())),
                Object::Size => Action::Read(attributes.size),
                _ if attributes.size % 8 == 0 => Action::Length(attributes.size / 8),
                _ => Action::Length(TORN),
            }])
        };
        let attempt = if object == Object::Log { Action::Length(TORN) } else { Action::Read(TORN) };
        self.act(object, attempt, worker, Operation::GetAttributes { inode }, read).await;
    }

    async fn append(&self, worker: usize) {
        let (inode, record) = (self.scene(|scene| scene.log), self.world.value());
        let data = Bytes::copy_from_slice(&record.to_le_bytes());
        let operation = Operation::Write { inode, at: WriteAt::End, data, drop_privileges: false };
        let wrote = move |result: Result<Outcome, Errno>| result.is_ok().then(|| vec![Action::Append(record)]);
        self.act(Object::Log, Action::Append(record), worker, operation, wrote).await;
    }

    async fn list_log(&self, worker: usize) -> Option<Vec<u64>> {
        let inode = self.scene(|scene| scene.log);
        let mut records = None;
        let read = |result| {
            let Ok(Outcome::Data(bytes)) = result else { return None };
            let found: Vec<u64> =
                bytes.chunks(8).map(|record| record.try_into().map_or(TORN, u64::from_le_bytes)).collect();
            let sum = found.iter().fold(0, |sum, &record| add_to_sum(sum, record));
            let count = found.len() as u64;
            records = Some(found);
            Some(vec![Action::List { count, sum }])
        };
        let attempt = Action::List { count: 0, sum: 0 };
        self.act(Object::Log, attempt, worker, Operation::Read { inode, range: everything() }, read).await;
        records
    }

    /// A name's directory and itself.
    fn place(&self, object: Object, slot: usize) -> (InodeId, Name) {
        if object == Object::Folders {
            (self.scene(|scene| scene.folders[2]), name(["x", "y", "z"][slot]))
        } else {
            (self.scene(|scene| scene.folders[slot % 2]), name(["a", "b", "c"][slot / 2]))
        }
    }

    async fn look_up(&self, object: Object, slot: usize, worker: usize) {
        let (parent, name) = self.place(object, slot);
        let seen = |result| {
            let inode = match result {
                Ok(Outcome::Entry(_)) if object == Object::Folders => SOME_INODE,
                Ok(Outcome::Entry(attributes)) => attributes.inode.0,
                Err(Errno::ENOENT) => ABSENT,
                _ => return None,
            };
            Some(vec![Action::Observe { slot, inode }])
        };
        let attempt = Action::Observe { slot, inode: ABSENT };
        self.act(object, attempt, worker, Operation::Lookup { parent, name }, seen).await;
    }

    async fn list_names(&self, folder: u64, worker: usize) {
        let inode = self.scene(|scene| scene.folders[folder as usize]);
        let operation =
            Operation::ReadDirectory { inode, after: 0, entries_max: 100, with_attributes: true, ahead: false };
        let slots = (0..SLOTS).filter(|slot| slot % 2 == folder as usize);
        let seen = |result| {
            let Ok(Outcome::Listing { entries, end: true }) = result else { return None };
            let observe = |slot: usize| {
                let name = name(["a", "b", "c"][slot / 2]);
                let inode = entries.iter().find(|entry| entry.name == name).map_or(ABSENT, |entry| entry.inode.0);
                Action::Observe { slot, inode }
            };
            Some(slots.map(observe).collect())
        };
        let attempt = Action::Observe { slot: folder as usize, inode: ABSENT };
        self.act(Object::Names, attempt, worker, operation, seen).await;
    }

    async fn make(&self, object: Object, slot: usize, worker: usize) {
        let (parent, name) = self.place(object, slot);
        let (operation, inode) = if object == Object::Folders {
            (Operation::MakeDirectory { parent, name, permissions: 0o755, umask: 0 }, SOME_INODE)
        } else {
            let flags = OpenFlags { exclusive: true, ..OpenFlags::default() };
            (Operation::Create { parent, name, permissions: 0o600, umask: 0, flags }, UNKNOWN_INODE)
        };
        let mut opened = None;
        let made = |result| match result {
            Ok(Outcome::Entry(_)) => Some(vec![Action::Create { slot, inode: SOME_INODE }]),
            Ok(Outcome::Created { attributes, .. }) => {
                opened = Some(attributes.inode);
                Some(vec![Action::Create { slot, inode: attributes.inode.0 }])
            }
            Err(Errno::EEXIST) => Some(vec![Action::Present { slot }]),
            _ => None,
        };
        self.act(object, Action::Create { slot, inode }, worker, operation, made).await;
        if let Some(inode) = opened {
            self.client.tell(Operation::Release { inode });
        }
    }

    async fn remove(&self, object: Object, slot: usize, worker: usize) {
        let (parent, name) = self.place(object, slot);
        let operation = if object == Object::Folders {
            Operation::RemoveDirectory { parent, name }
        } else {
            Operation::Unlink { parent, name }
        };
        let removed = |result| match result {
            Ok(_) => Some(vec![Action::Remove { slot }]),
            Err(Errno::ENOENT) => Some(vec![Action::Observe { slot, inode: ABSENT }]),
            _ => None,
        };
        self.act(object, Action::Remove { slot }, worker, operation, removed).await;
    }

    async fn rename(&self, from: usize, to: usize, worker: usize) {
        let (parent, name) = self.place(Object::Names, from);
        let (new_parent, new_name) = self.place(Object::Names, to);
        let operation = Operation::Rename { parent, name, new_parent, new_name, mode: RenameMode::Replace };
        let renamed = |result| match result {
            Ok(_) => Some(vec![Action::Rename { from, to }]),
            Err(Errno::ENOENT) => Some(vec![Action::Observe { slot: from, inode: ABSENT }]),
            _ => None,
        };
        self.act(Object::Names, Action::Rename { from, to }, worker, operation, renamed).await;
    }

    /// Why changes of what all share are lost: it is said once of each file.
    fn lost(&self) -> Option<Errno> {
        let of_scene = |scene: &crate::world::Scene| {
            [&scene.registers[..], &scene.folders, &[scene.mode, scene.size, scene.log]].concat()
        };
        self.scene(of_scene).into_iter().filter_map(|inode| self.client.lost(inode)).last()
    }

    async fn sync(&self, worker: usize) {
        let calls: Vec<(Object, usize)> = Object::shared()
            .map(|object| (object, self.world.call(object, Action::Sync, "sync", self.number, worker)))
            .collect();
        let result = self.call(Operation::Sync).await;
        let lost = self.lost();
        match result.and_then(|_| lost.map_or(Ok(()), Err)) {
            Ok(()) => calls.into_iter().for_each(|(_, call)| self.world.returned(call, &[Action::Sync])),
            Err(errno) => calls.into_iter().for_each(|(_, call)| self.world.lost(call, &errno.to_string())),
        }
    }
}
