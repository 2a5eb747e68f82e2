//! One simulation: rounds of work beside faults, each with its check.

use std::sync::Arc;
use std::time::Duration;

use turmoil::Sim;

use crate::check::{Verdict, check};
use crate::faults::{Fault, Kind, Plan};
use crate::history::{Action, Event, Object, Random, mix};
use crate::loss::Loss;
use crate::machine::Machine;
use crate::models::{State, prepare};
use crate::network::Delay;
use crate::objects::Weather;
use crate::processes;
use crate::trace::{Trace, stamp};
use crate::world::{Phase, Role, World};

/// Workers of a client: one on its chain, the others on what all share.
const WORKERS: usize = 3;
/// Operations of a worker in a round.
const OPERATIONS: u64 = 30;
/// A phase that takes longer than this, in the time of the simulation, never ends.
const PHASE_MAX: Duration = Duration::from_secs(180);
/// Between the work of a round and the look at what came of it: what was sent before has arrived or never does.
const QUIET: Duration = Duration::from_secs(2);
/// How long a client that was fenced may need to notice it.
const NOTICED_MAX: Duration = Duration::from_secs(2);

pub struct Options {
    pub seed: u64,
    /// Operations at least.
    pub steps: u64,
    pub clients: usize,
    pub kinds: Vec<Kind>,
    pub durability: &'static str,
    pub is_shown: bool,
}

pub struct Report {
    pub hash: u64,
    pub events: u64,
    pub rounds: u64,
    pub operations: u64,
    pub elapsed: Duration,
    pub failure: Option<String>,
}

pub fn run(options: &Options, data: std::path::PathBuf) -> Report {
    let trace = Trace::new(options.is_shown);
    let world = World::new(options.seed, options.clients, data, options.durability, trace);
    let mut sim = turmoil::Builder::new()
        .simulation_duration(Duration::MAX)
        .tick_duration(Duration::from_millis(1))
        .rng_seed(options.seed)
        .enable_tokio_io()
        .build();
    let machines = vec![Machine::new(&world, 0, Duration::ZERO)];
    for client in 0..options.clients {
        let world = world.clone();
        sim.host(host(client), move || processes::work(world.clone(), client));
    }
    let random = Random::new(mix(options.seed));
    let mut driver = Driver {
        options,
        world: world.clone(),
        sim,
        machines,
        server: 0,
        frozen: 0,
        random,
        down: Vec::new(),
        loss: None,
        rounds: 0,
    };
    let failure = driver.rounds().err();
    let elapsed = driver.sim.elapsed();
    let (hash, events) = world.trace.sum();
    let operations = world.stage.lock().operations;
    Report { hash, events, rounds: driver.rounds, operations, elapsed, failure }
}

fn may_fence(kind: Kind) -> bool {
    matches!(kind, Kind::LongSilence | Kind::LongFreeze | Kind::LeftBehind)
}

fn host(client: usize) -> String {
    format!("client-{client}")
}

fn machine(machines: &mut [Machine], number: usize) -> &mut Machine {
    machines.iter_mut().find(|machine| machine.number == number).expect("its machine")
}

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Process {
    Server,
    Client(usize),
}

struct Driver<'a> {
    options: &'a Options,
    world: Arc<World>,
    /// Of the clients.
    sim: Sim<'static>,
    /// Those of servers that run, or will again.
    machines: Vec<Machine>,
    /// To which clients connect.
    server: usize,
    /// The one that was frozen last.
    frozen: usize,
    random: Random,
    /// Processes that are dead, or about to die, and for how long they will be.
    down: Vec<(Process, Duration, Option<Duration>)>,
    /// The client that ended, and from when until when.
    loss: Option<(usize, u64, Option<u64>)>,
    rounds: u64,
}

type Outcome<T = ()> = Result<T, String>;
/// What everything was at the end of a round.
type States = Vec<(Object, State)>;

impl Driver<'_> {
    fn rounds(&mut self) -> Outcome {
        self.phase(Phase::Found)?;
        self.phase(Phase::Prepare { by: 0, is_first: true })?;
        let mut states = self.look(0)?.1;
        while self.world.stage.lock().operations < self.options.steps {
            self.rounds += 1;
            self.world.stage.lock().round = self.rounds;
            let (first, last) = {
                let mut pick = || self.random.below(self.options.clients as u64) as usize;
                (pick(), pick())
            };
            self.phase(Phase::Prepare { by: first, is_first: false })?;
            let kind = self.work()?;
            let (events, seen) = self.look(last)?;
            let (lost_answers, log) = {
                let mut stage = self.world.stage.lock();
                (std::mem::take(&mut stage.lost_answers), stage.final_log.clone())
            };
            let may_fail = may_fence(kind) || matches!(kind, Kind::ClientDies | Kind::BothDie);
            if let (false, Some(lost)) = (may_fail, lost_answers.first()) {
                return Err(format!("round {} ({kind:?}): an answer that says nothing: {lost}", self.rounds));
            }
            if kind != Kind::BothDie {
                self.check(kind, &states, &events, &log)?;
            }
            states = seen;
        }
        self.phase(Phase::Check)
    }

    // ---- time

    fn step(&mut self) -> Outcome {
        let elapsed = self.sim.elapsed();
        for machine in &mut self.machines {
            machine.step(elapsed)?;
        }
        self.sim.step().map_err(|error| format!("a process ended: {error}"))?;
        self.world.bucket.arrive();
        if let Some(defect) = self.world.stage.lock().defects.first() {
            return Err(format!("round {}: {defect}", self.rounds));
        }
        self.bury_and_revive();
        Ok(())
    }

    /// Take away what is dead, and start it again when it is time.
    fn bury_and_revive(&mut self) {
        let elapsed = self.sim.elapsed();
        let mut revived = Vec::new();
        for (process, down, since) in &mut self.down {
            let life = match *process {
                Process::Server => self.world.server_life(self.server),
                Process::Client(client) => self.world.client_life(client),
            };
            let name = match *process {
                Process::Server => "server".to_owned(),
                Process::Client(client) => host(client),
            };
            match *since {
                None if life.is_over() => {
                    self.world.trace.note(format_args!("{name} is dead"));
                    match *process {
                        Process::Server => {
                            machine(&mut self.machines, self.server).crash();
                            self.world.tear_disk(self.server);
                        }
                        Process::Client(_) => self.sim.crash(name),
                    }
                    *since = Some(elapsed);
                    if let Process::Client(client) = *process {
                        if let Some((_, _, end @ None)) = &mut self.loss {
                            *end = Some(stamp());
                        }
                        let mut stage = self.world.stage.lock();
                        stage.holders.retain(|holder| holder.client != client);
                        stage
                            .chains
                            .iter_mut()
                            .filter(|chain| chain.client == client)
                            .for_each(|chain| chain.may_lose = true);
                    }
                }
                Some(since) if elapsed >= since + *down => {
                    self.world.trace.note(format_args!("{name} is started"));
                    match *process {
                        Process::Server => {
                            self.world.new_server(self.server);
                            machine(&mut self.machines, self.server).start();
                        }
                        Process::Client(client) => {
                            self.world.new_client(client);
                            self.sim.bounce(name);
                        }
                    }
                    revived.push(*process);
                }
                _ => {}
            }
        }
        self.down.retain(|(process, ..)| !revived.contains(process));
    }

    fn wait(&mut self, length: Duration) -> Outcome {
        let end = self.sim.elapsed() + length;
        while self.sim.elapsed() < end {
            self.step()?;
        }
        Ok(())
    }

    fn phase(&mut self, phase: Phase) -> Outcome {
        self.world.begin_phase(phase);
        let end = self.sim.elapsed() + PHASE_MAX;
        while !self.world.is_phase_done() {
            self.step()?;
            if self.sim.elapsed() > end {
                return Err(self.stuck(phase));
            }
        }
        Ok(())
    }

    fn stuck(&self, phase: Phase) -> String {
        let stage = self.world.stage.lock();
        let open: Vec<String> =
            stage.events.iter().flatten().filter(|event| event.is_unknown()).map(|event| event.describe(0)).collect();
        format!("round {}: {phase:?} does not end; without an answer:\n  {}", self.rounds, open.join("\n  "))
    }

    // ---- a round

    fn work(&mut self) -> Outcome<Kind> {
        let plan = Plan::new(&mut self.random, self.options.clients, &self.options.kinds);
        let kind = plan.kind;
        self.world.trace.note(format_args!("{kind:?} {:?}", plan.faults));
        {
            let mut stage = self.world.stage.lock();
            stage.left = vec![vec![OPERATIONS; WORKERS]; self.options.clients];
            stage.is_hot = plan.is_hot;
            stage.events.clear();
            stage.chains.clear();
            stage.may_be_fenced = None;
        }
        self.loss = None;
        self.world.bucket.turn(plan.weather);
        self.world.network.turn(plan.delay);
        self.world.begin_phase(Phase::Work { is_shared: kind != Kind::BothDie });
        let mut faults = plan.faults;
        let begin = self.sim.elapsed();
        while !self.world.is_phase_done() || !faults.is_empty() || !self.down.is_empty() {
            while let Some(entry) = faults.first_entry().filter(|entry| begin + entry.key().0 <= self.sim.elapsed()) {
                let fault = entry.remove();
                self.strike(fault, kind)?;
            }
            self.step()?;
            if self.sim.elapsed() > begin + PHASE_MAX {
                return Err(self.stuck(Phase::Work { is_shared: true }));
            }
        }
        self.retire();
        self.world.bucket.turn(Weather::FINE);
        self.world.network.turn(Delay { usual_ms: 1, seldom_ms: 3 });
        self.wait(QUIET)?;
        Ok(kind)
    }

    fn strike(&mut self, fault: Fault, kind: Kind) -> Outcome {
        self.world.trace.note(format_args!("{fault:?}"));
        let ms = Duration::from_millis;
        match fault {
            Fault::ServerDies { effects, down_ms } => {
                if !self.down.iter().any(|(process, ..)| *process == Process::Server) {
                    self.world.server_life(self.server).end_after(effects, self.world.watch_disk(self.server));
                    self.down.push((Process::Server, ms(down_ms), None));
                }
            }
            Fault::ClientDies { client, effects, down_ms } => {
                self.loss = Some((client, stamp(), None));
                self.world.client_life(client).end_after(effects, || ());
                self.down.push((Process::Client(client), ms(down_ms), None));
            }
            Fault::Cut { client, all } => self.world.network.cut(client, all),
            Fault::LinkDown { client, is_deaf } => {
                self.may_lose(client, kind);
                self.world.network.set_link(client, [true, !is_deaf]);
            }
            Fault::LinkUp { client } => {
                self.world.network.set_link(client, [false; 2]);
                if kind != Kind::LeftBehind {
                    self.notices(client, kind)?;
                }
            }
            Fault::Notices { client } => self.notices(client, kind)?,
            Fault::ServerFreezes => {
                self.world.freeze_server(self.server);
                machine(&mut self.machines, self.server).freeze(self.sim.elapsed());
                self.frozen = self.server;
            }
            Fault::ServerThaws { is_machine } => {
                self.world.thaw_server(self.frozen, is_machine);
                machine(&mut self.machines, self.frozen).thaw(self.sim.elapsed(), !is_machine);
            }
            Fault::TakeOver => {
                let role = if self.options.durability == "local" { Role::Rival } else { Role::Successor };
                let number = self.world.add_server(role, self.server);
                self.machines.push(Machine::new(&self.world, number, self.sim.elapsed()));
                if role == Role::Successor {
                    self.server = number;
                }
            }
            Fault::ClientFreezes { client } => {
                self.may_lose(client, kind);
                self.world.freeze_client(client);
                self.world.network.set_link(client, [true; 2]);
            }
            Fault::ClientThaws { client, is_machine, link_ms } => {
                self.world.thaw_client(client, is_machine);
                self.wait(ms(link_ms))?;
                self.world.network.set_link(client, [false; 2]);
                self.notices(client, kind)?;
            }
            Fault::ClockSet { client, by_ms } => self.world.set_clock(client, by_ms),
        }
        Ok(())
    }

    /// Servers to which nobody connects any more end.
    fn retire(&mut self) {
        let server = self.server;
        for machine in self.machines.iter_mut().filter(|machine| machine.number != server) {
            self.world.server_life(machine.number).end();
            machine.crash();
        }
        self.machines.retain(|machine| machine.number == server);
    }

    /// From now on the client may be fenced.
    fn may_lose(&mut self, client: usize, kind: Kind) {
        if may_fence(kind) {
            self.world.stage.lock().may_be_fenced = Some(client);
            self.loss = Some((client, stamp(), None));
        }
    }

    /// A client that may have been fenced has had the time to notice it.
    fn notices(&mut self, client: usize, kind: Kind) -> Outcome {
        if !may_fence(kind) {
            return Ok(());
        }
        self.wait(NOTICED_MAX)?;
        if let Some((_, _, end)) = &mut self.loss {
            *end = Some(stamp());
        }
        let mut stage = self.world.stage.lock();
        stage.chains.iter_mut().filter(|chain| chain.client == client).for_each(|chain| chain.is_void = true);
        Ok(())
    }

    /// All events of the round, and what everything was at its end.
    fn look(&mut self, by: usize) -> Outcome<(Vec<Event>, States)> {
        self.phase(Phase::Look { by })?;
        let events: Vec<Event> = std::mem::take(&mut self.world.stage.lock().events).into_iter().flatten().collect();
        let mut states: States = Object::shared().map(|object| (object, State::default())).collect();
        for (object, state) in &mut states {
            for event in events.iter().filter(|event| event.object == *object) {
                match event.action {
                    Action::Read(value) => state[0] = value,
                    Action::Observe { slot, inode } => state[slot] = inode,
                    _ => {}
                }
            }
        }
        Ok((events, states))
    }

    fn check(&self, kind: Kind, states: &[(Object, State)], events: &[Event], log: &[u64]) -> Outcome {
        let loss = self.loss.and_then(|(client, start, end)| Some(Loss::new(client, start, end?)));
        for &(object, state) in states {
            let initial = if object == Object::Log { State::default() } else { state };
            let mut all: Vec<Event> = events.iter().filter(|event| event.object == object).copied().collect();
            all.extend(loss.map(|loss| loss.event(object)));
            let head = format!("round {} ({kind:?}), {object}", self.rounds);
            let ready = prepare(object, initial, &all, log)
                .map_err(|(event, why)| format!("{head}: {why}\n  {}", event.describe(0)))?;
            match check(initial, &ready) {
                Verdict::Linearizable => {}
                Verdict::Undecided(why) => return Err(format!("{head}: the check is not decided: {why}")),
                Verdict::Violation(stuck) => {
                    let lines = |events: &[Event]| {
                        events.iter().map(|event| format!("\n    {}", event.describe(0))).collect::<String>()
                    };
                    return Err(format!(
                        "{head}: no order explains what was seen\n  the longest: {} of {} events, to {:?}, at its end{}\n  \
                         then one of{}\n  meanwhile{}",
                        stuck.ordered,
                        stuck.total,
                        stuck.state,
                        lines(&stuck.last),
                        lines(&stuck.candidates),
                        lines(&stuck.meanwhile),
                    ));
                }
            }
        }
        Ok(())
    }
}
