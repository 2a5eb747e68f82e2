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
use crate::harness::{self, Site};
use crate::history::{Action, Event, Object, Random, mix};
use crate::loss::Loss;
use crate::models::{State, prepare};
use crate::mounts::{Kind, Mount};
use crate::plots::Plots;
use crate::workers::{Crew, Round};

/// Operations of each worker in a round.
const ROUND_OPERATIONS: u64 = 60;
/// Number of the worker that looks at everything at the end of a round.
const OBSERVER: usize = 999;
/// How long a round in plots lasts at least.
const ROUND_IN_PLOTS: Duration = Duration::from_millis(1_500);
/// How long it goes on after a fault.
const AFTER_FAULT: Duration = Duration::from_millis(500);
/// The least part of all changes in plots that mounts must have made alone.
const ALONE_PERCENT_MIN: u64 = 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// All on the same few objects.
    Shared,
    /// Each mount for the most part on objects of its own, so that it changes them alone. See `plots`.
    Alone,
}

pub struct Plan {
    pub name: String,
    pub seed: u64,
    pub work: Work,
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
    pub place: Place,
}

/// Where its volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Durable in a folder.
    Folder,
    /// Durable in a real S3 server.
    S3,
    /// Durable in a folder, and linked as a whole to a bucket of a real S3 server.
    Link,
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
    /// Changes in plots, and how many changes mounts made alone.
    pub changes: u64,
    pub alone: u64,
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
        if plan.work == Work::Alone {
            report.alone = scenario.made_alone() + scenario.alone_before;
            if report.alone * 100 < report.changes * ALONE_PERCENT_MIN {
                let (alone, all) = (report.alone, report.changes);
                return Err(Finding::Defect(format!(
                    "only {alone} of {all} changes were made alone: this says nothing"
                )));
            }
        }
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
    /// Changes that were made alone, as servers that died have counted them.
    alone_before: u64,
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
        let mut site = if plan.place == Place::Folder { Site::empty() } else { Site::with_s3() };
        site.serve = ["--http", "127.0.0.1:0"].map(String::from).to_vec();
        if plan.place == Place::S3 {
            site.serve.extend(["--store", "s3://bucket/history"].map(String::from));
        }
        site.start();
        let settings: &[_] = match plan.place {
            Place::Folder => &["--durability", "local"],
            Place::S3 => &["--durability", "object"],
            Place::Link => &["--durability", "local", "--link", "s3://bucket/history"],
        };
        site.atoll([&["volume", "create", "vol"], settings].concat()).must_succeed();
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
        if plan.work == Work::Alone {
            for (number, observer) in observers.iter_mut().enumerate() {
                living(observer.find_mount())?;
                living(observer.make_yard(number))?;
            }
        }
        let places: Vec<_> = mounts.iter().map(|mount| mount.place.clone()).collect();
        let crew = Crew::new(&common, &places, plan.workers_each);
        let mut scenario = Scenario {
            plan,
            common,
            crew,
            observers,
            states: HashMap::new(),
            pending: Vec::new(),
            alone_before: 0,
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
        let plots = self.make_plots(report.rounds)?;
        if plots.is_none() {
            living(self.observers[observer].make_log(&log))?;
            self.sync(observer)?;
        }
        let fault = Arc::new(AtomicBool::new(!self.plan.faults.is_empty()));
        let round = Round {
            log: log.clone(),
            seed: mix(self.plan.seed ^ mix(report.rounds)),
            operations: ROUND_OPERATIONS,
            fault: fault.clone(),
            plots: plots.clone().map(|plots| (plots, Instant::now() + ROUND_IN_PLOTS)),
        };
        let origin_ns = self.common.now_ns();
        let fences_before = self.fences();
        self.crew.start(&round);
        if !self.plan.faults.is_empty() {
            // An observer keeps nothing open in a mount that may die.
            let (common, progress) = (self.common.clone(), self.crew.progress.clone());
            let (kinds, freeze) = (&self.plan.faults, self.plan.freeze_min..self.plan.freeze_max);
            let (warm_up, has_stalls) = if plots.is_some() { (1_500, true) } else { (100, false) };
            let menu = faults::Menu { kinds, freeze, warm_up, has_stalls };
            let alone = self.made_alone();
            let (site, mounts, random) = (&mut self.site, &mut self.mounts, &mut self.random);
            let window = faults::inject(menu, site, mounts, random, &common, &progress);
            if window.kind == faults::Kind::Crash {
                // The figure dies with the server.
                self.alone_before += alone;
            }
            report.windows.push(window);
            if plots.is_some() {
                std::thread::sleep(AFTER_FAULT);
            }
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
        let is_change = |event: &&Event| !event.action.is_read() && !event.is_unknown();
        let (final_log, seen) = match &plots {
            Some(plots) => {
                report.changes += events.iter().filter(is_change).count() as u64;
                living(self.observers[observer].look_at_plots(plots))?;
                (Vec::new(), std::mem::take(&mut self.observers[observer].events))
            }
            None => self.look(observer)?,
        };
        events.extend(&seen);
        let objects: Vec<Object> = match &plots {
            Some(plots) => plots.objects().collect(),
            None => Object::shared().collect(),
        };
        let checking = Instant::now();
        // Of this round, as each has a fault or none has.
        let loss = report.windows.last().filter(|_| self.plan.may_lose_unflushed).and_then(Window::loss);
        for object in objects {
            self.check(object, &events, loss, &final_log, origin_ns, report.rounds - 1)?;
        }
        report.check_time += checking.elapsed();
        if plots.is_none() {
            self.carry_over(&events);
            self.remember(&seen);
            living(self.observers[observer].remove_log())?;
        }
        match report.waits.too_long() {
            Some(event) => Err(Finding::Defect(format!(
                "a call on a living mount took longer than {:?}: {}",
                faults::OTHERS_WAIT_MAX,
                event.describe(origin_ns)
            ))),
            None => Ok(()),
        }
    }

    /// New plots for a round that is worked in plots.
    fn make_plots(&mut self, round: u64) -> Result<Option<Arc<Plots>>, Finding> {
        if self.plan.work == Work::Shared {
            return Ok(None);
        }
        let plots = Plots::new(self.mounts.len(), round, self.plan.may_lose_unflushed);
        for (number, observer) in self.observers.iter_mut().enumerate() {
            living(observer.find_mount())?;
            living(observer.make_plots(&plots, number))?;
        }
        Ok(Some(Arc::new(plots)))
    }

    /// How many changes the server got that mounts had made alone.
    fn made_alone(&self) -> u64 {
        let port = self.site.address("http://").rsplit(':').next().and_then(|port| port.parse().ok());
        let text = port.and_then(|port| harness::http(port, "/metrics")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("atoll_journal_changes_total "));
        line.and_then(|number| number.parse().ok()).unwrap_or_default()
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
        if !self.plan.may_lose_unflushed {
            return Ok(());
        }
        match self.observers[observer].sync_register(0, false) {
            // It said once what was lost.
            Err(Trouble::Fenced) => living(self.observers[observer].sync_register(0, false)),
            outcome => living(outcome),
        }
    }

    fn check(
        &self,
        object: Object,
        events: &[Event],
        loss: Option<Loss>,
        log: &[u64],
        origin_ns: u64,
        round: u64,
    ) -> Result<(), Finding> {
        let of_object = |event: &&Event| event.object == object;
        let loss = loss.map(|loss| loss.event(object));
        let all: Vec<Event> = self.pending.iter().chain(events).filter(of_object).copied().chain(loss).collect();
        let initial = match object {
            Object::Log | Object::Plot(_) => State::default(),
            _ => self.states[&object],
        };
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
                let mut text = format!("{}: {}", head(), explain(&stuck, origin_ns));
                if std::env::var_os("ATOLL_HISTORY_ALL").is_some() {
                    text += "\n  everything";
                    all.iter().for_each(|event| text += &format!("\n    {}", event.describe(origin_ns)));
                }
                return Err(Finding::Violation { text, seen_by });
            }
            Verdict::Undecided(why) => {
                return Err(Finding::Defect(format!("{}: the check is not decided: {why}", head())));
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
        let may_lose = self.plan.may_lose_unflushed;
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
            let is_loss = |line: &str| may_lose && line.contains("changes were lost that had been made here");
            let is_bad = |line: &&str| line.contains("panicked") || (line.contains("ERROR") && !is_loss(line));
            if let Some(line) = log.lines().find(is_bad) {
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
        if let Some(percent) = (self.alone * 100).checked_div(self.changes) {
            let _ = write!(text, ", {percent}% of {} changes alone", self.changes);
        }
        let ms = |event: Option<Event>| event.map_or(0.0, |event| length_ns(&event) as f64 / 1e6);
        let _ = write!(text, "; longest call on a living mount {:.1} ms", ms(self.waits.otherwise));
        if !self.windows.is_empty() {
            let _ = write!(text, ", beside a fault {:.1} ms", ms(self.waits.beside_fault));
        }
        text
    }
}
