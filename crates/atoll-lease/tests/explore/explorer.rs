//! Visits every state that can be reached, each once.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use rustc_hash::{FxHashMap, FxHashSet};

use super::world::{Action, Setting, World};

/// Actions after which operations must have completed when no more faults happen.
const COMPLETE_WITHIN: usize = 1_000;

/// Which states are visited first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Takes little memory.
    Deepest,
    /// A violation is found by the shortest way.
    Nearest,
}

pub struct Violation {
    pub what: String,
    pub way: Vec<Action>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        self.way.iter().enumerate().try_for_each(|(at, action)| writeln!(f, "{:4} {action:?}", at + 1))
    }
}

fn key(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.describe().hash(&mut hasher);
    hasher.finish()
}

/// The number of states, or what is wrong in one. `states_max` is a bound on memory, not a goal.
pub fn explore(setting: &Setting, first: First, states_max: usize) -> Result<usize, Violation> {
    let start = World::new(setting);
    let mut reached: FxHashMap<u64, (u64, Option<Action>)> = FxHashMap::default();
    let mut completes = FxHashSet::default();
    let mut queue = VecDeque::new();
    let origin = key(&start);
    reached.insert(origin, (origin, None));
    queue.push_back((origin, start));
    let way = |reached: &FxHashMap<u64, (u64, Option<Action>)>, mut at: u64, last: Vec<Action>| {
        let mut way = last;
        while let Some((before, Some(action))) = reached.get(&at) {
            way.insert(0, *action);
            at = *before;
        }
        way
    };
    while let Some((at, world)) = if first == First::Deepest { queue.pop_back() } else { queue.pop_front() } {
        if let Err((what, last)) = complete(&world, at, &mut completes) {
            return Err(Violation { what, way: way(&reached, at, last) });
        }
        for action in world.actions() {
            let mut after = world.clone();
            if let Err(what) = after.act(action) {
                return Err(Violation { what, way: way(&reached, at, vec![action]) });
            }
            let to = key(&after);
            if let std::collections::hash_map::Entry::Vacant(entry) = reached.entry(to) {
                entry.insert((at, Some(action)));
                queue.push_back((to, after));
            }
        }
        assert!(reached.len() <= states_max, "more than {states_max} states");
    }
    Ok(reached.len())
}

/// Without more faults every operation completes, and time has to go on only if somebody is dead.
fn complete(world: &World, at: u64, completes: &mut FxHashSet<u64>) -> Result<(), (String, Vec<Action>)> {
    let (mut world, mut at) = (world.clone(), at);
    let (mut passed, mut way) = (Vec::new(), Vec::new());
    while !world.is_complete() && completes.insert(at) {
        passed.push(at);
        let Some(action) = world.helpful().filter(|_| way.len() < COMPLETE_WITHIN) else {
            return Err(("an operation does not complete".into(), way));
        };
        way.push(action);
        world.act(action).map_err(|what| (what, way.clone()))?;
        at = key(&world);
    }
    // A circle that never completes leads back to a state of its own way.
    if !world.is_complete() && passed.contains(&at) {
        return Err(("operations go round in a circle".into(), way));
    }
    Ok(())
}
