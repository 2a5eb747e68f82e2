//! A server's machine, which has a simulation of its own: where that does not go on, the server is frozen, with its timers
//! and in the middle of whatever it does.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use turmoil::Sim;

use crate::processes;
use crate::trace;
use crate::world::World;

const TICK: Duration = Duration::from_millis(1);
const HOST: &str = "server";

/// A process that is thawed finds that its clock has leapt, before anything else of it runs.
#[derive(Default)]
struct Leap {
    by: Option<Duration>,
    waker: Option<Waker>,
}

async fn with_leaps(leap: Arc<Mutex<Leap>>, work: impl Future<Output = turmoil::Result>) -> turmoil::Result {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        let by = {
            let mut leap = leap.lock();
            leap.waker = Some(context.waker().clone());
            leap.by.take()
        };
        if let Some(by) = by {
            // It leaps when this is polled for the first time; then it would only yield.
            let _ = std::pin::pin!(tokio::time::advance(by)).poll(context);
        }
        work.as_mut().poll(context)
    })
    .await
}

pub struct Machine {
    pub number: usize,
    sim: Sim<'static>,
    leap: Arc<Mutex<Leap>>,
    frozen_at: Option<Duration>,
}

impl Machine {
    /// A machine that is switched on when the simulation has been going on for `elapsed`.
    pub fn new(world: &Arc<World>, number: usize, elapsed: Duration) -> Machine {
        let mut sim = turmoil::Builder::new()
            .simulation_duration(Duration::MAX)
            .tick_duration(TICK)
            .rng_seed(world.seed ^ (number as u64) << 32)
            .enable_tokio_io()
            .build();
        while sim.elapsed() < elapsed {
            sim.step().expect("nothing runs");
        }
        let leap = Arc::new(Mutex::new(Leap::default()));
        let (of_host, world) = (leap.clone(), world.clone());
        sim.host(HOST, move || with_leaps(of_host.clone(), processes::serve(world.clone(), number)));
        Machine { number, sim, leap, frozen_at: None }
    }

    /// The simulation has been going on for `elapsed`.
    pub fn step(&mut self, elapsed: Duration) -> Result<(), String> {
        if self.frozen_at.is_some() {
            return Ok(());
        }
        let leap = self.leap.lock().by.unwrap_or_default();
        trace::set_stood((elapsed - self.sim.elapsed()).saturating_sub(leap));
        let stepped = self.sim.step().map_err(|error| format!("server {} ended: {error}", self.number));
        trace::set_stood(Duration::ZERO);
        stepped.map(drop)
    }

    pub fn freeze(&mut self, elapsed: Duration) {
        self.frozen_at.get_or_insert(elapsed);
    }

    /// `leaps`: its clock went on. That of a machine that stood still did not.
    pub fn thaw(&mut self, elapsed: Duration, leaps: bool) {
        let Some(frozen_at) = self.frozen_at.take().filter(|_| leaps) else { return };
        let mut leap = self.leap.lock();
        leap.by = Some(elapsed - frozen_at);
        leap.waker.take().into_iter().for_each(Waker::wake);
    }

    pub fn crash(&mut self) {
        self.sim.crash(HOST);
    }

    pub fn start(&mut self) {
        self.sim.bounce(HOST);
    }
}
