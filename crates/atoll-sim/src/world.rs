//! What outlives processes: the network, the bucket, the server's disk, and what everybody saw.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_types::InodeId;
use parking_lot::Mutex;

use crate::chain::Chain;
use crate::disk::{self, Files};
use crate::history::{Action, Event, NEVER_RETURNED, Object, REGISTERS, Random};
use crate::life::Life;
use crate::network::Network;
use crate::objects::Bucket;
use crate::trace::{Trace, now, stamp};

pub const VOLUME: &str = "vol";
/// What clients' wall clocks show at first: they can be set back.
const WALL_BEGIN: Duration = Duration::from_secs(1 << 30);

/// What clients are to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// One makes the volume.
    Found,
    /// One makes what a round needs.
    Prepare { by: usize, is_first: bool },
    /// All work.
    Work { is_shared: bool },
    /// One looks at everything, and removes what the round made.
    Look { by: usize },
    /// One has the volume checked, with all its bytes.
    Check,
}

impl Phase {
    pub fn concerns(self, client: usize) -> bool {
        match self {
            Phase::Found | Phase::Check => client == 0,
            Phase::Prepare { by, .. } | Phase::Look { by } => client == by,
            Phase::Work { .. } => true,
        }
    }
}

/// Where the files are that all work on.
#[derive(Clone, Default)]
pub struct Scene {
    pub registers: [InodeId; REGISTERS],
    pub mode: InodeId,
    pub size: InodeId,
    pub locked: InodeId,
    /// `d0`, `d1` and `e`.
    pub folders: [InodeId; 3],
    pub log: InodeId,
    /// For each client's chain.
    pub chains: Vec<InodeId>,
}

#[derive(Clone, Copy, Debug)]
pub struct Holder {
    pub client: usize,
    pub worker: usize,
    pub is_exclusive: bool,
}

#[derive(Default)]
pub struct Stage {
    pub round: u64,
    pub number: u64,
    pub phase: Option<Phase>,
    /// The newest phase that each client has done.
    pub done: Vec<u64>,
    pub scene: Scene,
    pub is_hot: bool,
    /// Who has taken the lock of the locked file, and has not begun to give it back.
    pub holders: Vec<Holder>,
    /// A client that may have been fenced does not know that its locks are gone.
    pub may_be_fenced: Option<usize>,
    /// Operations that each worker of each client has left.
    pub left: Vec<Vec<u64>>,
    pub events: Vec<Option<Event>>,
    pub final_log: Vec<u64>,
    /// What each client did alone, one after the other.
    pub chains: Vec<Chain>,
    /// Answers that say nothing: the session is over, or the server was away for too long.
    pub lost_answers: Vec<String>,
    /// What must not be.
    pub defects: Vec<String>,
    next_value: u64,
    pub operations: u64,
}

/// How far a machine's clocks are from the time of the simulation.
#[derive(Clone, Copy, Default)]
pub struct Skew {
    /// The boot-time clock has stood still for so long.
    stood: Duration,
    /// The wall clock was set, by so many ms in sum.
    set_ms: i64,
    /// Frozen since then: nothing that runs meanwhile may know the time.
    frozen_at: Option<Duration>,
}

impl Skew {
    fn thaw(&mut self, is_machine: bool) {
        if let Some(frozen_at) = self.frozen_at.take()
            && is_machine
        {
            self.stood += now() - frozen_at;
        }
    }

    /// The boot-time clock and the wall clock.
    fn clocks(&self) -> (Duration, Duration) {
        let now = self.frozen_at.unwrap_or_else(now);
        let wall_ms = (WALL_BEGIN + now).as_millis() as i64 + self.set_ms;
        (now - self.stood, Duration::from_millis(wall_ms as u64))
    }
}

pub struct World {
    pub seed: u64,
    pub trace: Arc<Trace>,
    pub network: Arc<Network>,
    pub bucket: Arc<Bucket>,
    /// The disks of servers.
    data: PathBuf,
    pub durability: &'static str,
    pub stage: Mutex<Stage>,
    pub random: Mutex<Random>,
    /// The server's disk as it was when the server died.
    at_death: Arc<Mutex<Files>>,
    servers: Mutex<Vec<Serving>>,
    clients: Vec<Mutex<Life>>,
    skews: Vec<Mutex<Skew>>,
    /// Of the servers.
    server_thaws: AtomicU64,
}

/// What a server was started for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    First,
    /// On a machine of its own, to which the volume and the address go.
    Successor,
    /// On the disk of a server that is only frozen: it must not start.
    Rival,
}

/// A server, dead or alive.
struct Serving {
    life: Life,
    role: Role,
    /// Which disk it has.
    disk: usize,
    skew: Skew,
}

impl World {
    pub fn new(seed: u64, clients: usize, data: PathBuf, durability: &'static str, trace: Trace) -> Arc<World> {
        let trace = Arc::new(trace);
        Arc::new(World {
            seed,
            network: Network::new(seed ^ 1, clients, trace.clone()),
            bucket: Bucket::new(seed ^ 2, trace.clone()),
            trace,
            data,
            durability,
            stage: Mutex::new(Stage { done: vec![0; clients], ..Stage::default() }),
            random: Mutex::new(Random::new(seed ^ 3)),
            at_death: Arc::default(),
            servers: Mutex::new(vec![Serving { life: Life::new(), role: Role::First, disk: 0, skew: Skew::default() }]),
            clients: (0..clients).map(|_| Mutex::new(Life::new())).collect(),
            skews: (0..clients).map(|_| Mutex::default()).collect(),
            server_thaws: AtomicU64::new(0),
        })
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.random.lock().below(bound)
    }

    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Of the process that runs now, or is about to be started.
    pub fn server_life(&self, server: usize) -> Life {
        self.servers.lock()[server].life.clone()
    }

    pub fn role(&self, server: usize) -> Role {
        self.servers.lock()[server].role
    }

    /// Its data folder.
    pub fn disk(&self, server: usize) -> PathBuf {
        self.data.join(self.servers.lock()[server].disk.to_string())
    }

    /// One more server; answers its number.
    pub fn add_server(&self, role: Role, of: usize) -> usize {
        let mut servers = self.servers.lock();
        let number = servers.len();
        let disk = if role == Role::Rival { servers[of].disk } else { number };
        servers.push(Serving { life: Life::new(), role, disk, skew: Skew::default() });
        number
    }

    pub fn freeze_server(&self, server: usize) {
        let mut servers = self.servers.lock();
        servers[server].skew.frozen_at = Some(now());
        servers[server].life.freeze();
    }

    /// Of a machine that was frozen, the boot-time clock has stood still.
    pub fn thaw_server(&self, server: usize, is_machine: bool) {
        let mut servers = self.servers.lock();
        servers[server].skew.thaw(is_machine);
        servers[server].life.thaw();
        self.server_thaws.fetch_add(1, Ordering::Relaxed);
    }

    pub fn server_thaws(&self) -> u64 {
        self.server_thaws.load(Ordering::Relaxed)
    }

    /// What a server's boot-time clock and its wall clock show.
    pub fn server_clocks(&self, server: usize) -> (Duration, Duration) {
        self.servers.lock()[server].skew.clocks()
    }

    pub fn client_life(&self, client: usize) -> Life {
        self.clients[client].lock().clone()
    }

    pub fn set_clock(&self, client: usize, by_ms: i64) {
        self.skews[client].lock().set_ms += by_ms;
    }

    pub fn freeze_client(&self, client: usize) {
        self.skews[client].lock().frozen_at = Some(now());
        self.client_life(client).freeze();
    }

    /// Of a machine that was frozen, the boot-time clock has stood still.
    pub fn thaw_client(&self, client: usize, is_machine: bool) {
        self.skews[client].lock().thaw(is_machine);
        self.client_life(client).thaw();
    }

    /// What a client's boot-time clock and its wall clock show.
    pub fn clocks(&self, client: usize) -> (Duration, Duration) {
        self.skews[client].lock().clocks()
    }

    pub fn new_server(&self, server: usize) {
        self.servers.lock()[server].life = Life::new();
    }

    pub fn new_client(&self, client: usize) {
        *self.clients[client].lock() = Life::new();
    }

    /// What to do at the death of a server.
    pub fn watch_disk(&self, server: usize) -> impl FnOnce() + Send + 'static {
        let (at_death, folder) = (self.at_death.clone(), self.disk(server).join("volumes"));
        move || *at_death.lock() = disk::read(&folder)
    }

    /// The server is buried.
    pub fn tear_disk(&self, server: usize) {
        let before = std::mem::take(&mut *self.at_death.lock());
        let torn = disk::tear(&self.disk(server).join("volumes"), &before, &mut self.random.lock());
        self.trace.note(format_args!("disk: {torn} files were being written"));
    }

    pub fn begin_phase(&self, phase: Phase) {
        let mut stage = self.stage.lock();
        stage.number += 1;
        stage.phase = Some(phase);
        self.trace.note(format_args!("round {} {phase:?}", stage.round));
    }

    /// Whether all whom it concerns have done the phase.
    pub fn is_phase_done(&self) -> bool {
        let stage = self.stage.lock();
        let Some(phase) = stage.phase else { return true };
        (0..self.clients()).all(|client| !phase.concerns(client) || stage.done[client] >= stage.number)
    }

    /// Somebody has the lock now, and nobody whom it excludes.
    pub fn takes_lock(&self, client: usize, worker: usize, is_exclusive: bool) {
        let taker = Holder { client, worker, is_exclusive };
        let mut stage = self.stage.lock();
        let is_sure = |holder: &&Holder| stage.may_be_fenced != Some(holder.client);
        let excluded = |holder: &&Holder| holder.is_exclusive || is_exclusive;
        if let Some(other) = stage.holders.iter().filter(is_sure).find(excluded).filter(|_| is_sure(&&taker)) {
            let text = format!("{taker:?} has the lock that {other:?} has");
            stage.defects.push(text);
        }
        stage.holders.push(taker);
    }

    // ---- the history

    pub fn value(&self) -> u64 {
        let mut stage = self.stage.lock();
        stage.next_value += 1;
        stage.next_value
    }

    /// Somebody calls. If nothing more is heard of it, it may happen at any time or never.
    pub fn call(&self, object: Object, action: Action, how: &'static str, mount: usize, worker: usize) -> usize {
        let call_ns = stamp();
        self.trace.note(format_args!("call {mount}/{worker} {object:?} {action:?} {how}"));
        let mut stage = self.stage.lock();
        stage.operations += 1;
        stage.events.push(Some(Event { object, action, how, call_ns, return_ns: NEVER_RETURNED, mount, worker }));
        stage.events.len() - 1
    }

    /// It returned, and this is what happened; more than one thing where it looked at more.
    pub fn returned(&self, call: usize, actions: &[Action]) {
        let return_ns = stamp();
        self.trace.note(format_args!("return {call} {actions:?}"));
        let mut stage = self.stage.lock();
        let Some(event) = stage.events[call].take() else { return };
        let happened = actions.iter().map(|action| Some(Event { action: *action, return_ns, ..event }));
        stage.events.extend(happened);
    }

    /// Its answer says nothing. What only looked at something did not happen.
    pub fn lost(&self, call: usize, why: &str) {
        self.trace.note(format_args!("lost {call} {why}"));
        let mut stage = self.stage.lock();
        let Some(event) = stage.events[call] else { return };
        stage.lost_answers.push(format!("{why}: {}", event.describe(0)));
        if event.action.is_read() {
            stage.events[call] = None;
        }
    }

    pub fn defect(&self, text: String) {
        self.trace.note(format_args!("defect {text}"));
        self.stage.lock().defects.push(text);
    }
}
