//! What goes wrong in a round, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::Random;
use crate::network::Delay;
use crate::objects::Weather;

/// When faults begin, after the work of a round has.
const BEGIN_MAX_MS: u64 = 1_500;
/// Most effects that a process still has, before it dies.
const EFFECTS_MAX: u64 = 60;
/// A link that is down for less than this long fences nobody: the server waits 5 s for the answer to a recall, which it
/// may have sent just before.
pub const FENCED_AFTER_MS: u64 = 3_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing but delays.
    Quiet,
    /// Connections break.
    Cuts,
    /// The server dies, up to three times; connections break.
    ServerDies,
    /// A client dies.
    ClientDies,
    /// A link is down, and nobody is fenced for it.
    ShortSilence,
    /// A link is down for so long that its client may be fenced.
    LongSilence,
    /// The server and a client die at about the same time. What others had seen of the client may be gone, so
    /// all work by themselves.
    BothDie,
}

impl Kind {
    pub const ALL: [Kind; 7] = [
        Kind::Quiet,
        Kind::Cuts,
        Kind::ServerDies,
        Kind::ClientDies,
        Kind::ShortSilence,
        Kind::LongSilence,
        Kind::BothDie,
    ];
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    ServerDies {
        effects: u64,
        down_ms: u64,
    },
    ClientDies {
        client: usize,
        effects: u64,
        down_ms: u64,
    },
    Cut {
        client: usize,
        all: bool,
    },
    /// `is_deaf`: what the client says still arrives.
    LinkDown {
        client: usize,
        is_deaf: bool,
    },
    LinkUp {
        client: usize,
    },
}

pub struct Plan {
    pub kind: Kind,
    pub weather: Weather,
    pub delay: Delay,
    /// All work on the same two files for the most part.
    pub is_hot: bool,
    /// By time since the work began.
    pub faults: BTreeMap<(Duration, usize), Fault>,
}

impl Plan {
    pub fn new(random: &mut Random, clients: usize, kinds: &[Kind]) -> Plan {
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        let weather = match random.below(3) {
            0 => Weather::FINE,
            1 => Weather { usual_ms: 30, seldom_ms: 400, ..Weather::FINE },
            _ => Weather { usual_ms: 10, seldom_ms: 100, fails_before: 20, fails_after: 20 },
        };
        let delay = match random.below(3) {
            0 => Delay { usual_ms: 0, seldom_ms: 2 },
            1 => Delay { usual_ms: 4, seldom_ms: 40 },
            _ => Delay { usual_ms: 25, seldom_ms: 150 },
        };
        let is_hot = random.below(3) == 0;
        let mut plan = Plan { kind, weather, delay, is_hot, faults: BTreeMap::new() };
        let client = random.below(clients as u64) as usize;
        let begin = random.below(BEGIN_MAX_MS);
        match kind {
            Kind::Quiet => {}
            Kind::Cuts => plan.cuts(random, clients, 1),
            Kind::ServerDies => {
                let mut at = begin;
                for _ in 0..1 + random.below(3) {
                    let down_ms = random.below(600);
                    plan.add(at, Fault::ServerDies { effects: 1 + random.below(EFFECTS_MAX), down_ms });
                    at += down_ms + random.below(3_000);
                }
                match random.below(3) {
                    0 => plan.cuts(random, clients, 0),
                    // A client does not hear of what it did, and comes back before it is given up.
                    1 => {
                        let down = begin.saturating_sub(random.below(150));
                        plan.add(down, Fault::LinkDown { client, is_deaf: true });
                        plan.weather = Weather { usual_ms: 200, seldom_ms: 400, ..Weather::FINE };
                        plan.is_hot = true;
                        plan.add(begin + 100 + random.below(FENCED_AFTER_MS / 2), Fault::LinkUp { client });
                    }
                    _ => {}
                }
            }
            Kind::ClientDies => {
                let (effects, down_ms) = (1 + random.below(EFFECTS_MAX), random.below(8_000));
                plan.add(begin, Fault::ClientDies { client, effects, down_ms });
                if random.below(3) == 0 {
                    plan.cuts(random, clients, 0);
                }
            }
            Kind::ShortSilence | Kind::LongSilence => {
                let is_short = kind == Kind::ShortSilence;
                let length = if is_short { random.below(FENCED_AFTER_MS) } else { 4_500 + random.below(6_000) };
                plan.add(begin, Fault::LinkDown { client, is_deaf: random.below(3) == 0 });
                plan.add(begin + length, Fault::LinkUp { client });
            }
            Kind::BothDie => {
                let effects = 1 + random.below(EFFECTS_MAX);
                let (first, second) = (begin + random.below(50), begin + random.below(50));
                plan.add(first, Fault::ClientDies { client, effects, down_ms: random.below(3_000) });
                let effects = 1 + random.below(EFFECTS_MAX);
                plan.add(second, Fault::ServerDies { effects, down_ms: random.below(1_000) });
            }
        }
        plan
    }

    fn add(&mut self, at_ms: u64, fault: Fault) {
        self.faults.insert((Duration::from_millis(at_ms), self.faults.len()), fault);
    }

    fn cuts(&mut self, random: &mut Random, clients: usize, least: u64) {
        for _ in 0..least + random.below(5) {
            let (client, all) = (random.below(clients as u64) as usize, random.below(3) > 0);
            self.add(random.below(2 * BEGIN_MAX_MS), Fault::Cut { client, all });
        }
    }
}
