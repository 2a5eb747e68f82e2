//! A scenario: a server, mounts, rounds of random work with or without faults, and
//! a check of every object after every round.
//!
//! Invariant: a round starts and ends with nobody inside a call, its end is looked
//! at once more, and what was seen there is where the next round starts.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::check::{Stuck, Verdict, check};
use crate::faults::{self, Waits, Window, length_ns};
use crate::hands::{Common, Hands, Outcome, Trouble};
use crate::harness::Site;
use crate::history::{Action, Event, Object, Random, mix};
use crate::loss::Loss;
use crate::models::{State, prepare};
use crate::mounts::{Kind, Mount};
use crate::workers::{Crew, Round};

/// Operations of each worker in a round.
const ROUND_OPERATIONS: u64 = 60;
/// Number of the worker that looks at everything at the end of a round.
const OBSERVER: usize = 999;

pub struct Plan {
    pub name: String,
    pub seed: u64,
    pub mounts: usize,
    pub workers_each: usize,
    /// Ends after so many operations, or when the time is over.
    pub steps: u64,
    pub time_max: Duration,
    pub faults: Vec<faults::Kind>,
    pub freeze_min: Duration,
    pub freeze_max: Duration,
    /// Clients may lose what they have acknowledged and not flushed, when they are killed or fenced.
    pub may_lose_unflushed: bool,
    /// The last mount breaks its promises, which the check has to find out.
    pub has_broken_mount: bool,
}

#[derive(Default)]
pub struct Report {
    pub steps: u64,
    pub rounds: u64,
    /// Its time was over before its steps were.
    pub is_cut_short: bool,
    pub elapsed: Duration,
    pub check_time: Duration,
    /// Changes of unknown fate.
    pub unknown: u64,
    /// Operations without a result because their mount was fenced.
    pub fenced: u64,
    pub windows: Vec<Window>,
    pub waits: Waits,
}

/// What a scenario found.
pub enum Finding {
    /// No order explains what was seen, and by which mounts what does not fit was seen.
    Violation { text: String, seen_by: Vec<usize> },
    /// Anything else that must not be.
    Defect(String),
}

/// Run a scenario to its end, or to the first thing that is wrong.
pub fn run(plan: &Plan) -> (Report, Option<Finding>) {
    let start = Instant::now();
    let mut report = Report::default();
    let finding = Scenario::start(plan).and_then(|mut scenario| {
        scenario.rounds(&mut report)?;
        report.elapsed = start.elapsed();
        scenario.end()
    });
    report.elapsed = start.elapsed();
    (report, finding.err())
}

struct Scenario<'a> {
    plan: &'a Plan,
    common: Arc<Common>,
    crew: Crew,
    observers: Vec<Hands>,
    states: HashMap<Object, State>,
    /// Changes of unknown fate that may still happen.
    pending: Vec<Event>,
    random: Random,
    // Before the server, so that it goes first.
    mounts: Vec<Mount>,
    site: Site,
}

fn living<T>(outcome: Outcome<T>) -> Result<T, Finding> {
    outcome.map_err(|trouble| {
        Finding::Defect(match trouble {
            Trouble::Killed => "a mount died that was not killed".into(),
            Trouble::Fenced => "a mount still fails calls when its fence is over".into(),
            Trouble::Defect(text) => text,
        })
    })
}

impl Scenario<'_> {
    fn start(plan: &Plan) -> Result<Scenario<'_>, Finding> {
        let site = Site::new();
        let kind = |number: usize| match number {
            last if plan.has_broken_mount && last + 1 == plan.mounts => Kind::Broken,
            odd if odd % 2 == 1 => Kind::Proxied,
            _ => Kind::Direct,
        };
        let mounts: Vec<Mount> = (0..plan.mounts).map(|number| Mount::start(&site, number, kind(number))).collect();
        let common = Arc::new(Common::new(plan.may_lose_unflushed));
        let observe = |mount: &Mount| Hands::new(common.clone(), mount.place.clone(), mount.number, OBSERVER);
        let mut observers: Vec<Hands> = mounts.iter().map(observe).collect();
        living(observers[0].set_scene())?;
        let places: Vec<_> = mounts.iter().map(|mount| mount.place.clone()).collect();
        let crew = Crew::new(&common, &places, plan.workers_each);
        let mut scenario = Scenario {
            plan,
            common,
            crew,
            observers,
            states: HashMap::new(),
            pending: Vec::new(),
            random: Random::new(plan.seed),
            mounts,
            site,
        };
        living(scenario.observers[0].make_log("log"))?;
        let (_, seen) = scenario.look(0)?;
        scenario.remember(&seen);
        living(scenario.observers[0].remove_log())?;
        Ok(scenario)
    }

    fn rounds(&mut self, report: &mut Report) -> Result<(), Finding> {
        let end = Instant::now() + self.plan.time_max;
        while report.steps < self.plan.steps && Instant::now() < end {
            self.round(report)?;
        }
        report.is_cut_short = report.steps < self.plan.steps;
        Ok(())
    }

    fn round(&mut self, report: &mut Report) -> Result<(), Finding> {
        let observer = (report.rounds % self.mounts.len() as u64) as usize;
        let log = format!("log-{}", report.rounds);
        living(self.observers[observer].find_mount())?;
        living(self.observers[observer].make_log(&log))?;
        self.sync(observer)?;
        let fault = Arc::new(AtomicBool::new(!self.plan.faults.is_empty()));
        let round = Round {
            log: log.clone(),
            seed: mix(self.plan.seed ^ mix(report.rounds)),
            operations: ROUND_OPERATIONS,
            fault: fault.clone(),
        };
        let origin_ns = self.common.now_ns();
        let fences_before = self.fences();
        self.crew.start(&round);
        if !self.plan.faults.is_empty() {
            // An observer keeps nothing open in a mount that may die.
            let (common, progress) = (self.common.clone(), self.crew.progress.clone());
            let (kinds, freeze) = (&self.plan.faults, self.plan.freeze_min..self.plan.freeze_max);
            let (site, mounts, random) = (&self.site, &mut self.mounts, &mut self.random);
            report.windows.push(faults::inject(kinds, freeze, site, mounts, random, &common, &progress));
            fault.store(false, Ordering::Release);
        }
        let done = self.crew.finish().map_err(Finding::Defect)?;
        report.rounds += 1;
        let mut events = Vec::new();
        let mut defects = Vec::new();
        let mut fenced = 0;
        for done in done {
            report.steps += done.steps;
            fenced += done.fenced;
            events.extend(done.events);
            defects.extend(done.defect);
        }
        if !defects.is_empty() {
            return Err(Finding::Defect(defects.join("\n")));
        }
        if fenced > 0 && self.fences() == fences_before {
            let text = format!("{fenced} calls failed as if their mount had been fenced, which the server did not do");
            return Err(Finding::Defect(text));
        }
        report.fenced += fenced;
        report.unknown += events.iter().filter(|event| event.is_unknown()).count() as u64;
        for event in &events {
            report.waits.see(event, &report.windows);
        }
        living(self.observers[observer].find_mount())?;
        self.observers[observer].use_log(&log);
        let (final_log, seen) = self.look(observer)?;
        events.extend(&seen);
        let checking = Instant::now();
        // Of this round, as each has a fault or none has.
        let loss = report.windows.last().filter(|_| self.plan.may_lose_unflushed).and_then(Loss::of);
        self.check(&events, loss, &final_log, origin_ns, report.rounds - 1)?;
        report.check_time += checking.elapsed();
        self.carry_over(&events);
        self.remember(&seen);
        living(self.observers[observer].remove_log())?;
        match report.waits.too_long() {
            Some(event) => Err(Finding::Defect(format!(
                "a call on a living mount took longer than {:?}: {}",
                faults::OTHERS_WAIT_MAX,
                event.describe(origin_ns)
            ))),
            None => Ok(()),
        }
    }

    /// How many sessions the server says it has fenced.
    fn fences(&self) -> usize {
        self.site.server_log().matches("session fenced").count()
    }

    fn look(&mut self, observer: usize) -> Result<(Vec<u64>, Vec<Event>), Finding> {
        let hands = &mut self.observers[observer];
        let log = living(hands.look_at_everything())?;
        self.sync(observer)?;
        Ok((log, std::mem::take(&mut self.observers[observer].events)))
    }

    /// What an observer makes and sees is where a round starts: it is not lost.
    fn sync(&mut self, observer: usize) -> Result<(), Finding> {
        if self.plan.may_lose_unflushed { living(self.observers[observer].sync_register(0, false)) } else { Ok(()) }
    }

    fn check(
        &self,
        events: &[Event],
        loss: Option<Loss>,
        log: &[u64],
        origin_ns: u64,
        round: u64,
    ) -> Result<(), Finding> {
        for object in Object::all() {
            let of_object = |event: &&Event| event.object == object;
            let loss = loss.map(|loss| loss.event(object));
            let all: Vec<Event> = self.pending.iter().chain(events).filter(of_object).copied().chain(loss).collect();
            let initial = if object == Object::Log { State::default() } else { self.states[&object] };
            let head = || format!("seed {}, round {round}, {object} (mounts {})", self.plan.seed, self.plan.mounts);
            let verdict = match prepare(object, initial, &all, log) {
                Ok(ready) => check(initial, &ready),
                Err((event, why)) => {
                    let text = format!("{}: {why}\n  {}", head(), event.describe(origin_ns));
                    return Err(Finding::Violation { text, seen_by: vec![event.mount] });
                }
            };
            match verdict {
                Verdict::Linearizable => {}
                Verdict::Violation(stuck) => {
                    let seen_by = stuck.candidates.iter().map(|event| event.mount).collect();
                    let text = format!("{}: {}", head(), explain(&stuck, origin_ns));
                    return Err(Finding::Violation { text, seen_by });
                }
                Verdict::Undecided(why) => {
                    return Err(Finding::Defect(format!("{}: the check is not decided: {why}", head())));
                }
            }
        }
        Ok(())
    }

    /// A write that died and that nobody saw may still come; so may a change of names of the round that is over. The
    /// server has executed what a dead client sent long before another round has passed.
    fn carry_over(&mut self, events: &[Event]) {
        let seen = |object: Object, value: u64| {
            events.iter().any(|event| event.object == object && event.action == Action::Read(value))
        };
        let older = std::mem::take(&mut self.pending);
        let may_come = |event: &Event, is_older: bool| match event.action {
            Action::Write(value) => !seen(event.object, value),
            Action::Append(_) => false,
            _ => !is_older,
        };
        self.pending.extend(older.into_iter().filter(|event| may_come(event, true)));
        self.pending.extend(events.iter().filter(|event| event.is_unknown() && may_come(event, false)));
    }

    fn remember(&mut self, seen: &[Event]) {
        for event in seen {
            let state = self.states.entry(event.object).or_default();
            match event.action {
                Action::Read(value) => state[0] = value,
                Action::Observe { slot, inode } => state[slot] = inode,
                _ => {}
            }
        }
    }

    fn end(self) -> Result<(), Finding> {
        let Scenario { crew, observers, mounts, mut site, .. } = self;
        crew.end();
        drop(observers);
        let mut logs = Vec::new();
        for mount in mounts {
            logs.push((format!("mount {}", mount.number), mount.log()));
            mount.end().map_err(Finding::Defect)?;
        }
        site.stop();
        logs.push(("the server".into(), site.server_log()));
        for (who, log) in logs {
            if let Some(line) = log.lines().find(|line| line.contains("panicked") || line.contains("ERROR")) {
                return Err(Finding::Defect(format!("the log of {who}: {line}")));
            }
        }
        Ok(())
    }
}

fn explain(stuck: &Stuck, origin_ns: u64) -> String {
    let mut text = format!("no order explains it; the longest has {} of {} operations", stuck.ordered, stuck.total);
    let _ = write!(text, "\n  state then {:?}, after", stuck.state);
    for event in &stuck.last {
        let _ = write!(text, "\n    {}", event.describe(origin_ns));
    }
    for (head, events) in [("next must come one of", &stuck.candidates), ("meanwhile", &stuck.meanwhile)] {
        let _ = write!(text, "\n  {head}");
        for event in events {
            let _ = write!(text, "\n    {}", event.describe(origin_ns));
        }
    }
    text
}

impl Report {
    pub fn summary(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let rate = self.steps as f64 / seconds;
        let mut text = format!("{} steps in {} rounds, {seconds:.1} s, {rate:.0} steps/s", self.steps, self.rounds);
        if self.is_cut_short {
            text.push_str(" (the time was over)");
        }
        let _ = write!(text, ", checks {:.1} s", self.check_time.as_secs_f64());
        if !self.windows.is_empty() {
            let count = |kind| self.windows.iter().filter(|window| window.kind == kind).count();
            for kind in faults::Kind::ALL {
                let _ = write!(text, ", {kind:?} {}", count(kind));
            }
            let _ = write!(text, ", changes of unknown fate {}, calls of fenced mounts {}", self.unknown, self.fenced);
        }
        let ms = |event: Option<Event>| event.map_or(0.0, |event| length_ns(&event) as f64 / 1e6);
        let _ = write!(text, "; longest call on a living mount {:.1} ms", ms(self.waits.otherwise));
        if !self.windows.is_empty() {
            let _ = write!(text, ", beside a fault {:.1} ms", ms(self.waits.beside_fault));
        }
        text
    }
}
