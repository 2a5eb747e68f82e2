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
/// How long before a freeze of the server a client may lose its connections.
const CUT_BEFORE_MAX_MS: u64 = 60;
/// For how long a client has been silent when it is left behind.
const QUIET_MS: u64 = 600;
/// How soon another server takes over.
const TAKEN_OVER_AFTER_MAX_MS: u64 = 2_000;
/// How soon clients go to it.
const MOVES_MAX_MS: u64 = 1_000;
/// How long one needs to notice that it was given up.
const NOTICES_MS: u64 = 5_000;
/// How long the network of a thawed machine may need.
const LINK_MAX_MS: u64 = 400;
/// By how much a clock is set: up to 18 hours.
const CLOCK_SET_MAX_MS: u64 = 1 << 26;
/// How long before the freeze a wrong clock is set right.
const CLOCK_MENDED_MAX_MS: u64 = 2_000;

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
    /// The server or a client is frozen, and nobody is fenced for it.
    ShortFreeze,
    /// A client is frozen for so long that it may be fenced. Its clocks go on meanwhile, or its machine stands still.
    LongFreeze,
    /// The server is frozen for any time.
    ServerFreezes,
    /// The server is frozen, and another one takes over, to which all clients go. The first one may be thawed at any time.
    /// Where the data is on its disk (`local`), the other one must not start.
    TakenOver,
    /// The same, and one client stays where it is: the other server may give it up.
    LeftBehind,
    /// The wall clock of a client is set, forward and back.
    ClockSet,
    /// The server and a client die at about the same time. What others had seen of the client may be gone, so
    /// all work by themselves.
    BothDie,
}

impl Kind {
    pub const ALL: [Kind; 13] = [
        Kind::Quiet,
        Kind::Cuts,
        Kind::ServerDies,
        Kind::ClientDies,
        Kind::ShortSilence,
        Kind::LongSilence,
        Kind::ShortFreeze,
        Kind::LongFreeze,
        Kind::ServerFreezes,
        Kind::TakenOver,
        Kind::LeftBehind,
        Kind::ClockSet,
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
    ServerFreezes,
    /// `is_machine`: its clocks have stood still, but for the wall clock that it is told.
    ServerThaws {
        is_machine: bool,
    },
    /// Another server is started.
    TakeOver,
    /// A client that may have been given up has had the time to notice it.
    Notices {
        client: usize,
    },
    ClientFreezes {
        client: usize,
    },
    /// `is_machine`: its boot-time clock has stood still. Its network comes up later.
    ClientThaws {
        client: usize,
        is_machine: bool,
        link_ms: u64,
    },
    ClockSet {
        client: usize,
        by_ms: i64,
    },
}

/// For how long a server is frozen: often until another one has taken over and clients have not given it up yet.
fn server_freeze_ms(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 100 + random.below(6_000),
        1 => 100 + random.below(40_000),
        _ => 10_000 + random.below(5_500),
    }
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
            Kind::ShortFreeze => {
                let length = random.below(FENCED_AFTER_MS);
                if random.below(3) == 0 {
                    plan.add(begin, Fault::ServerFreezes);
                    plan.add(begin + length, Fault::ServerThaws { is_machine: random.below(2) == 0 });
                } else {
                    plan.freeze(random, client, begin, length);
                }
            }
            Kind::LongFreeze => {
                let length = 4_500 + random.below(6_000);
                plan.is_hot = random.below(2) == 0;
                if random.below(3) == 0 {
                    // An operator's mistake, mended before.
                    let by_ms = 1 + random.below(CLOCK_SET_MAX_MS) as i64;
                    plan.add(0, Fault::ClockSet { client, by_ms });
                    plan.add(
                        begin.saturating_sub(random.below(CLOCK_MENDED_MAX_MS)),
                        Fault::ClockSet { client, by_ms: -by_ms },
                    );
                }
                plan.freeze(random, client, begin, length);
            }
            Kind::ServerFreezes => {
                let length = server_freeze_ms(random);
                plan.add(begin, Fault::ServerFreezes);
                plan.add(begin + length, Fault::ServerThaws { is_machine: random.below(2) == 0 });
                plan.cuts(random, clients, 0);
                if random.below(3) == 0 {
                    // The server knows of it, and the client cannot come back.
                    plan.add(
                        begin.saturating_sub(1 + random.below(CUT_BEFORE_MAX_MS)),
                        Fault::Cut { client, all: true },
                    );
                }
            }
            Kind::TakenOver | Kind::LeftBehind => {
                let left = (kind == Kind::LeftBehind).then_some(client);
                let at = begin + QUIET_MS;
                if let Some(client) = left {
                    // What it has changed and others have seen is durable when it is given up.
                    plan.weather = Weather::FINE;
                    plan.add(begin, Fault::LinkDown { client, is_deaf: false });
                    plan.add(at + 1, Fault::LinkUp { client });
                }
                let (length, later) = (server_freeze_ms(random), random.below(TAKEN_OVER_AFTER_MAX_MS));
                plan.add(at, Fault::ServerFreezes);
                plan.add(at + later, Fault::TakeOver);
                for client in (0..clients).filter(|client| left != Some(*client)) {
                    plan.add(at + later + 5 + random.below(MOVES_MAX_MS), Fault::Cut { client, all: true });
                }
                plan.add(at + length, Fault::ServerThaws { is_machine: random.below(2) == 0 });
                if let Some(client) = left {
                    plan.add(at + length.max(later) + NOTICES_MS, Fault::Notices { client });
                }
            }
            Kind::ClockSet => {
                for _ in 0..1 + random.below(5) {
                    let size = 1 << random.below(CLOCK_SET_MAX_MS.ilog2().into());
                    let by_ms = (size + random.below(size)) as i64 * if random.below(2) == 0 { 1 } else { -1 };
                    let client = random.below(clients as u64) as usize;
                    plan.add(random.below(2 * BEGIN_MAX_MS), Fault::ClockSet { client, by_ms });
                }
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

    fn freeze(&mut self, random: &mut Random, client: usize, at_ms: u64, length_ms: u64) {
        self.add(at_ms, Fault::ClientFreezes { client });
        let (is_machine, link_ms) = (random.below(3) > 0, random.below(LINK_MAX_MS));
        self.add(at_ms + length_ms, Fault::ClientThaws { client, is_machine, link_ms });
    }

    fn cuts(&mut self, random: &mut Random, clients: usize, least: u64) {
        for _ in 0..least + random.below(5) {
            let (client, all) = (random.below(clients as u64) as usize, random.below(3) > 0);
            self.add(random.below(2 * BEGIN_MAX_MS), Fault::Cut { client, all });
        }
    }
}
