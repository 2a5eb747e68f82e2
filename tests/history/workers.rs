//! Threads that do random operations on their mount, round by round.
//!
//! Invariant: between rounds no worker is inside a call. A worker whose mount dies
//! goes on when there is a new one; one whose mount is fenced goes on with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::hands::{Common, Hands, Outcome, Trouble};
use crate::history::{Event, FOLDERS, Object, REGISTERS, Random, SLOTS};
use crate::mounts::Place;
use crate::names::Folder;
use crate::plots::Plots;

/// Most operations of a worker in a round, however long a fault lasts.
const ROUND_OPERATIONS_MAX: u64 = 1_500;
/// Operations that follow when a fault is over.
const AFTER_FAULT: u64 = 10;
/// Deaths of its mount that a worker takes in one round.
const DEATHS_MAX: u32 = 4;

#[derive(Clone)]
pub struct Round {
    pub log: String,
    pub seed: u64,
    pub operations: u64,
    /// While it holds, workers go on, so that a fault meets work.
    pub fault: Arc<AtomicBool>,
    /// Where to work alone, and until when, instead of so many operations on shared objects.
    pub plots: Option<(Arc<Plots>, Instant)>,
}

/// What a worker did in a round.
pub struct Done {
    pub worker: usize,
    pub steps: u64,
    /// Operations without a result because the mount was fenced.
    pub fenced: u64,
    pub events: Vec<Event>,
    pub defect: Option<String>,
}

pub struct Crew {
    orders: Vec<Sender<Round>>,
    done: Receiver<Done>,
    /// Operations that workers finished in all rounds.
    pub progress: Arc<AtomicU64>,
    /// What each worker is at, for when one of them stays there.
    at: Vec<Arc<Mutex<&'static str>>>,
}

impl Crew {
    /// `each` workers on every one of `places`.
    pub fn new(common: &Arc<Common>, places: &[Arc<Place>], each: usize) -> Crew {
        let (sender, done) = mpsc::channel();
        let progress = Arc::new(AtomicU64::new(0));
        let mut crew = Crew { orders: Vec::new(), done, progress: progress.clone(), at: Vec::new() };
        // Neighbours in number are on different mounts, so that the owners of names are spread.
        for worker in 0..places.len() * each {
            let mount = worker % places.len();
            let hands = Hands::new(common.clone(), places[mount].clone(), mount, worker);
            let (order, orders) = mpsc::channel();
            let at = Arc::new(Mutex::new("waiting"));
            let this = Worker { hands, random: Random::new(0), fenced: 0, at: at.clone(), progress: progress.clone() };
            let sender = sender.clone();
            std::thread::spawn(move || this.work(&orders, &sender));
            crew.orders.push(order);
            crew.at.push(at);
        }
        crew
    }

    pub fn start(&self, round: &Round) {
        for order in &self.orders {
            order.send(round.clone()).expect("workers live as long as their crew");
        }
    }

    /// Everything that was done, when all have stopped; or who has not.
    pub fn finish(&self) -> Result<Vec<Done>, String> {
        let mut all: Vec<Done> = Vec::new();
        while all.len() < self.orders.len() {
            match self.done.recv_timeout(crate::harness::PATIENCE) {
                Ok(done) => all.push(done),
                Err(_) => {
                    let missing = (0..self.orders.len()).filter(|&worker| all.iter().all(|d| d.worker != worker));
                    let named = |worker: usize| match self.at[worker].lock() {
                        Ok(at) => format!("worker {worker} in {at}"),
                        Err(_) => format!("worker {worker} panicked"),
                    };
                    let missing: Vec<String> = missing.map(named).collect();
                    return Err(format!("calls that do not return: {}", missing.join(", ")));
                }
            }
        }
        Ok(all)
    }
}

impl Crew {
    /// Let the workers go and wait until they have closed what they hold.
    pub fn end(self) {
        drop(self.orders);
        // The channel ends with its last sender.
        while self.done.recv_timeout(crate::harness::PATIENCE).is_ok() {}
    }
}

struct Worker {
    hands: Hands,
    random: Random,
    fenced: u64,
    at: Arc<Mutex<&'static str>>,
    progress: Arc<AtomicU64>,
}

impl Worker {
    fn work(mut self, orders: &Receiver<Round>, done: &Sender<Done>) {
        let mut trouble = self.hands.find_mount();
        for round in orders {
            self.random = Random::new(round.seed ^ (self.hands.worker as u64) << 48);
            self.hands.use_log(&round.log);
            let mut steps = 0;
            let mut deaths = 0;
            let defect = loop {
                match trouble.and_then(|()| self.round(&round, &mut steps)) {
                    Ok(()) => break None,
                    Err(Trouble::Defect(text)) => break Some(text),
                    Err(_) if deaths == DEATHS_MAX => break Some("too many deaths of a mount".into()),
                    Err(Trouble::Killed | Trouble::Fenced) => deaths += 1,
                }
                self.say("finding the mount again");
                trouble = self.hands.find_mount();
            };
            trouble = Ok(());
            self.say("waiting");
            let worker = self.hands.worker;
            let fenced = std::mem::take(&mut self.fenced);
            let events = std::mem::take(&mut self.hands.events);
            if done.send(Done { worker, steps, fenced, events, defect }).is_err() {
                return;
            }
        }
    }

    fn say(&self, what: &'static str) {
        *self.at.lock().expect("no panic with the lock held") = what;
    }

    fn round(&mut self, round: &Round, steps: &mut u64) -> Outcome {
        if let Some((plots, until)) = &round.plots {
            return self.round_in_plots(plots, *until, round, steps);
        }
        let mut after = AFTER_FAULT;
        while *steps < ROUND_OPERATIONS_MAX {
            if *steps >= round.operations && !round.fault.load(Ordering::Acquire) {
                if after == 0 {
                    return Ok(());
                }
                after -= 1;
            }
            *steps += 1;
            self.progress.fetch_add(1, Ordering::Relaxed);
            match self.one() {
                Err(Trouble::Fenced) => self.fenced += 1,
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn round_in_plots(&mut self, plots: &Plots, until: Instant, round: &Round, steps: &mut u64) -> Outcome {
        self.say("plots");
        let Worker { hands, random, progress, .. } = self;
        let mut step = || {
            *steps += 1;
            progress.fetch_add(1, Ordering::Relaxed);
        };
        loop {
            match hands.work_in_plots(plots, random, until, &round.fault, &mut step) {
                Err(Trouble::Fenced) => self.fenced += 1,
                outcome => return outcome,
            }
        }
    }

    /// One random operation. Each share is in hundredths.
    fn one(&mut self) -> Outcome {
        let register = self.random.below(REGISTERS as u64) as usize;
        let slot = self.random.below(SLOTS as u64) as usize;
        let folder = self.random.below(FOLDERS as u64) as usize;
        let is_held = self.random.below(2) == 0;
        let worker = self.hands.worker;
        let choice = self.random.below(100);
        self.say(match choice {
            0..37 => "a register",
            37..45 => "a mode",
            45..53 => "a size",
            53..65 => "the log",
            65..91 => "names",
            _ => "folders",
        });
        let hands = &mut self.hands;
        match choice {
            0..15 => hands.write_register(register, is_held),
            15..36 => hands.read_register(register, is_held),
            36..37 => hands.sync_register(register, is_held),
            37..41 => hands.change_mode(is_held),
            41..45 => hands.read_mode(is_held),
            45..49 => hands.truncate(is_held),
            49..53 => hands.read_size(is_held),
            53..59 => hands.append(is_held),
            59..62 => hands.list_log(is_held).map(drop),
            62..65 => hands.read_log_size(is_held),
            65..70 => hands.create(slot),
            70..74 => hands.remove(Object::Names, slot),
            // See `names` for who may rename what.
            74..78 if worker < SLOTS => hands.rename(Object::Names, worker),
            74..80 => hands.install(slot),
            80..82 => hands.take(slot),
            82..86 => hands.look_up(Object::Names, slot),
            86..88 => hands.open_and_look(slot),
            88..91 => hands.list(if is_held { Folder::First } else { Folder::Second }),
            91..93 => hands.make_folder(folder),
            93..95 => hands.remove(Object::Folders, folder),
            95..96 if worker < FOLDERS => hands.rename(Object::Folders, worker),
            95..98 => hands.look_up(Object::Folders, folder),
            _ => hands.list(Folder::Folders),
        }
    }
}
