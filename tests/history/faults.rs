//! What goes wrong, and how long others may wait because of it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::hands::Common;
use crate::harness::{PATIENCE, Site};
use crate::history::{Event, Random};
use crate::loss::Loss;
use crate::mounts::{FENCED_AFTER_NS, Mount};

/// Longest that a call on a living mount may take, whatever happens to other clients.
pub const OTHERS_WAIT_MAX: Duration = Duration::from_secs(12);
/// How long the server remembers a client that died, and others may feel it.
const REMEMBERED: Duration = Duration::from_secs(35);
/// The shortest fault that takes time.
pub const SHORTEST: Duration = Duration::from_millis(100);
/// How long the server may need to notice that a connection is back.
const RECOVERY_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// SIGSTOP for a while, then SIGCONT.
    Freeze,
    /// SIGKILL, and a new mount after a while; or the mount outlives it.
    Kill,
    /// All connections of the mount break.
    Cut,
    /// SIGKILL of the server, and a new one after a while.
    Crash,
    /// The mount's process becomes another image of its program.
    Replace,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Freeze, Kind::Kill, Kind::Cut, Kind::Crash, Kind::Replace];

    /// Whether a client's session may be over after it.
    pub fn ends_clients(self) -> bool {
        matches!(self, Kind::Freeze | Kind::Kill)
    }
}

/// What may go wrong in a round.
pub struct Menu<'a> {
    pub kinds: &'a [Kind],
    /// How long a mount is frozen.
    pub freeze: Range<Duration>,
    /// Most operations before it.
    pub warm_up: u64,
    /// The server may be frozen for a moment before a fault, so that what mounts have made waits for it.
    pub has_stalls: bool,
}

/// The longest moment for which the server is frozen.
const STALL_MAX: Duration = Duration::from_millis(300);

/// A fault that happened, in the time of the history.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub kind: Kind,
    /// None when it was the server's.
    pub mount: Option<usize>,
    pub start_ns: u64,
    pub end_ns: u64,
}

impl Window {
    /// Whether, and when, the fault ended a client.
    pub fn loss(&self) -> Option<Loss> {
        let &Window { kind, mount, start_ns, end_ns } = self;
        let is_end = match kind {
            Kind::Kill => true,
            Kind::Freeze => end_ns - start_ns >= FENCED_AFTER_NS,
            Kind::Cut | Kind::Crash | Kind::Replace => false,
        };
        is_end.then_some(Loss::new(mount?, start_ns, end_ns))
    }
}

/// A length of time that is short for the most part: up to 1 s more than the shortest, seldom up to the longest.
fn a_while(random: &mut Random, Range { start, end }: Range<Duration>) -> Duration {
    let end = if random.below(8) == 0 { end } else { end.min(start + Duration::from_secs(1)) };
    start + Duration::from_millis(random.below((end - start).as_millis() as u64))
}

/// Let one fault of these kinds happen in the middle of the work, and mend it.
pub fn inject(
    menu: Menu<'_>,
    site: &mut Site,
    mounts: &mut [Mount],
    random: &mut Random,
    common: &Common,
    progress: &AtomicU64,
) -> Window {
    let Menu { kinds, freeze, warm_up, has_stalls } = menu;
    let mut kind = kinds[random.below(kinds.len() as u64) as usize];
    if kind == Kind::Cut && !mounts.iter().any(Mount::can_be_cut) {
        kind = Kind::Freeze;
    }
    let able: Vec<usize> =
        (0..mounts.len()).filter(|&number| kind != Kind::Cut || mounts[number].can_be_cut()).collect();
    let number = able[random.below(able.len() as u64) as usize];
    wait_for(progress, 20 + random.below(warm_up));
    let mount = &mut mounts[number];
    let stalled = (has_stalls && random.below(2) == 0).then(|| {
        let stalled = site.freeze_server();
        std::thread::sleep(STALL_MAX.mul_f64(random.below(100) as f64 / 100.0));
        stalled
    });
    let start_ns = common.now_ns();
    // A fault's length is part of the test, so this is a sleep and no wait for an event.
    match kind {
        Kind::Freeze => {
            let length = a_while(random, freeze);
            mount.freeze(common, || {
                drop(stalled);
                std::thread::sleep(length);
            });
        }
        Kind::Kill if mount.outlives() => {
            drop(stalled);
            for _ in 0..1 + random.below(3) {
                mount.hand_on(site);
                wait_for(progress, 1 + random.below(60));
            }
            kind = Kind::Replace;
        }
        Kind::Kill => {
            mount.kill();
            drop(stalled);
            std::thread::sleep(a_while(random, SHORTEST..Duration::from_secs(2)));
            mount.revive(site);
        }
        Kind::Cut => {
            mount.cut();
            drop(stalled);
            for _ in 0..random.below(5) {
                wait_for(progress, 1 + random.below(60));
                mount.cut();
            }
            wait_for(progress, 1 + random.below(60));
        }
        Kind::Crash => {
            site.kill();
            drop(stalled);
            std::thread::sleep(Duration::from_millis(random.below(500)));
            site.start();
            // Sometimes while mounts make again what the first one took.
            for _ in 0..random.below(3) {
                std::thread::sleep(Duration::from_millis(random.below(200)));
                site.kill();
                site.start();
            }
            wait_for(progress, 1 + random.below(60));
        }
        Kind::Replace => {
            drop(stalled);
            for _ in 0..1 + random.below(3) {
                mount.replace(site);
                wait_for(progress, 1 + random.below(60));
            }
        }
    }
    let mount = (kind != Kind::Crash).then_some(number);
    Window { kind, mount, start_ns, end_ns: common.now_ns() }
}

/// Wait until workers have done so many operations more. Those that wait for nothing have stopped: no reason to wait.
fn wait_for(progress: &AtomicU64, more: u64) {
    const IDLE: Duration = Duration::from_millis(500);
    let target = progress.load(Ordering::Relaxed) + more;
    let (end, mut last, mut moved) = (Instant::now() + PATIENCE, 0, Instant::now());
    while Instant::now() < end && moved.elapsed() < IDLE {
        let now = progress.load(Ordering::Relaxed);
        if now >= target {
            return;
        }
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Longest waits on mounts to which nothing was done at the time.
#[derive(Clone, Copy, Default)]
pub struct Waits {
    /// While another client was frozen or dead (or remembered as such), or cut off.
    pub beside_fault: Option<Event>,
    pub otherwise: Option<Event>,
}

pub fn length_ns(event: &Event) -> u64 {
    event.return_ns - event.call_ns
}

impl Waits {
    pub fn see(&mut self, event: &Event, windows: &[Window]) {
        let overlaps = |window: &Window, after: Duration| {
            event.call_ns <= window.end_ns + after.as_nanos() as u64 && event.return_ns >= window.start_ns
        };
        let suffers = |window: &&Window| window.mount == Some(event.mount) && overlaps(window, RECOVERY_MAX);
        if event.is_unknown() || windows.iter().any(|window| suffers(&window)) {
            return;
        }
        let beside = windows
            .iter()
            .any(|window| overlaps(window, if window.kind == Kind::Kill { REMEMBERED } else { Duration::ZERO }));
        let longest = if beside { &mut self.beside_fault } else { &mut self.otherwise };
        if longest.is_none_or(|other| length_ns(&other) < length_ns(event)) {
            *longest = Some(*event);
        }
    }

    /// The call that took longer than any may.
    pub fn too_long(&self) -> Option<Event> {
        let too_long = |event: &Event| u128::from(length_ns(event)) > OTHERS_WAIT_MAX.as_nanos();
        [self.beside_fault, self.otherwise].into_iter().flatten().find(too_long)
    }
}
