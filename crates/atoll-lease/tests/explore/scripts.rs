//! Small scripts, and every order in which they can go. `ATOLL_EXPLORE_DEEP=1` adds
//! longer ones: minutes, and up to 1 GiB.

use std::time::Instant;

use super::explorer::{First, explore};
use super::operations::Operation::{self, *};
use super::operations::*;
use super::world::Setting;

const STATES_MAX: usize = 20_000_000;
const NOTHING: &[Operation] = &[];

pub fn setting(scripts: Each<&'static [Operation]>) -> Setting {
    Setting {
        scripts,
        in_flight: [1; 3],
        breaks: [0; 3],
        mortal: [false; 3],
        exclusive: false,
        names: 0,
        time: false,
        page_locks: false,
        contended: u32::MAX,
        broken: None,
        strict: false,
    }
}

fn is_deep() -> bool {
    std::env::var_os("ATOLL_EXPLORE_DEEP").is_some()
}

fn holds(name: &str, setting: Setting) {
    let started = Instant::now();
    match explore(&setting, First::Deepest, STATES_MAX) {
        Ok(states) => println!("{name}: {states} states in {:.1?}", started.elapsed()),
        // Once more, for the shortest way to it.
        Err(_) => match explore(&setting, First::Nearest, STATES_MAX) {
            Err(violation) => panic!("{name}: {violation}"),
            Ok(_) => panic!("{name}: depends on the order of exploration"),
        },
    }
}

#[test]
fn readers_and_writers() {
    holds("readers and writers", setting([&[Read, Write, Read], &[Read, Write], &[Read, Read]]));
    if is_deep() {
        holds("three writers", setting([&[Read, Write, Read], &[Read, Write, Read], &[Read, Write, Read]]));
    }
}

#[test]
fn names_and_attributes() {
    holds("names", setting([&[Lookup, Create, Lookup], &[Lookup, Unlink], &[Lookup, Stat, Stat]]));
    holds("names moved away", Setting { names: 1, ..setting([&[Lookup, Lookup], &[MoveAway], &[Write, Create]]) });
    if is_deep() {
        holds("creators", setting([&[Lookup, Create, Unlink], &[Lookup, Create, Lookup], &[Stat, Lookup, Unlink]]));
    }
}

#[test]
fn attributes_and_names_that_are_recalled_apart() {
    holds("attributes, then names", setting([&[Lookup, Stat, Stat], &[Change], &[Create]]));
    holds("attributes of both", setting([&[Lookup, Stat, Stat], &[Change, Stat], &[Create, Unlink]]));
}

#[test]
fn operations_of_one_client_overtake_each_other() {
    let setting = setting([&[Read, Write, Read], &[Read, Write], NOTHING]);
    holds("two in flight", Setting { in_flight: [2, 2, 1], ..setting.clone() });
    let scripts: Each<&[Operation]> = [&[Lookup, Unlink, Create, Lookup], &[Lookup, Create], NOTHING];
    holds("two names in flight", Setting { scripts, in_flight: [2, 2, 1], ..setting.clone() });
    let scripts: Each<&[Operation]> = [&[Read, Write, Read], &[Read, Write], &[Read]];
    holds("two in flight, three clients", Setting { scripts, in_flight: [2, 2, 1], ..setting });
}

#[test]
fn unwritten_changes() {
    let exclusive = |scripts| Setting { exclusive: true, ..setting(scripts) };
    holds("write back", exclusive([&[Write, Write, Read], &[Read, Read], &[Write]]));
    holds("write back names", exclusive([&[Create, Unlink, Lookup], &[Lookup, Lookup], &[Stat, Create]]));
    if is_deep() {
        holds("write back by three", exclusive([&[Write, Write, Read], &[Write, Write, Read], &[Read, Write]]));
    }
}

#[test]
fn rights_are_given_up_unasked() {
    holds("forget", setting([&[Read, Forget(FILE), Read, Read], &[Write], &[Write]]));
    let scripts: Each<&[Operation]> = [&[Write, Forget(FILE), Write, Read], &[Write, Read], NOTHING];
    holds("forget, unwritten", Setting { exclusive: true, ..setting(scripts) });
}

#[test]
fn a_contended_inode_is_not_granted() {
    holds("contended", Setting { contended: 1, ..setting([&[Read, Write], &[Write, Read], &[Read]]) });
}

#[test]
fn connections_break() {
    let breaks = [1, 1, 0];
    holds("lost", Setting { breaks, ..setting([&[Read, Read], &[Write, Read], &[Write]]) });
    holds("lost, names", Setting { breaks, ..setting([&[Lookup, Create], &[Lookup, Unlink], NOTHING]) });
    let setting = setting([&[Write, Read, Read], &[Read, Read], NOTHING]);
    holds("lost, two in flight", Setting { breaks: [2, 0, 0], in_flight: [2, 1, 1], ..setting.clone() });
    holds("lost, unwritten", Setting { breaks: [2, 1, 0], exclusive: true, ..setting });
}

#[test]
fn clients_freeze_and_die() {
    let setting = setting([&[Read, Read], &[Write, Read], NOTHING]);
    holds("frozen", Setting { time: true, ..setting.clone() });
    holds("dead", Setting { time: true, mortal: [true, true, false], ..setting.clone() });
    holds("dead, unwritten", Setting { time: true, mortal: [true, true, false], exclusive: true, ..setting.clone() });
    holds("frozen and lost", Setting { time: true, breaks: [2, 0, 0], ..setting.clone() });
    if is_deep() {
        let scripts: Each<&[Operation]> = [&[Read, Read], &[Write], &[Read]];
        holds("three frozen and lost", Setting { scripts, time: true, breaks: [1, 1, 0], ..setting });
    }
}

#[test]
fn a_client_reconnects_with_an_old_recall() {
    let setting = Setting { time: true, breaks: [1, 0, 0], ..setting([&[Stat, Read, Read], &[Change], NOTHING]) };
    holds("lost with an old recall", setting.clone());
    let scripts: Each<&[Operation]> = [&[Stat, Write, Read], &[Change], NOTHING];
    holds("lost with an old recall, changing", Setting { scripts, ..setting.clone() });
    if is_deep() {
        let scripts: Each<&[Operation]> = [&[Stat, Read, Write, Read], &[Change], &[Write]];
        holds("lost with an old recall, three clients", Setting { scripts, ..setting });
    }
}
