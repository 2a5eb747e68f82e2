//! Seeds that must hold, a fresh one, and rules that are broken on purpose and must be found out.
//!
//! `ATOLL_SIM_SECONDS` is for how long fresh seeds are tried; without it, it is one seed for each durability mode.

use std::process::{Command, Output};

fn simulate(arguments: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_atoll-sim");
    Command::new(program).args(arguments.split(' ')).output().expect("the simulation runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn must_hold(arguments: &str) -> String {
    let output = simulate(arguments);
    let text = text(&output);
    assert!(output.status.success(), "atoll-sim {arguments}\n{text}");
    text
}

/// Most seeds that are tried with a broken rule: a change of the code gives each of them another run.
const SEEDS_MAX: u64 = 120;

/// A seed fails with a rule broken, for a reason that has to do with it, and holds as it is.
fn must_find(mutation: &str, arguments: &str, reasons: &[&str]) {
    for seed in 1..=SEEDS_MAX {
        let arguments = format!("--seed {seed} {arguments}");
        let output = simulate(&format!("{arguments} --mutation {mutation}"));
        let text = text(&output);
        if !output.status.success() && reasons.iter().any(|reason| text.contains(reason)) {
            must_hold(&arguments);
            return;
        }
    }
    panic!("{mutation} was not found out with {SEEDS_MAX} seeds");
}

#[test]
fn a_seed_gives_the_same_run_to_the_last_byte() {
    for durability in ["object", "local"] {
        let run = || must_hold(&format!("--seed 2 --steps 800 --durability {durability}"));
        assert_eq!(run(), run());
    }
}

#[test]
fn what_clients_see_has_an_order_whatever_fails() {
    for seed in [1, 2, 3, 4] {
        must_hold(&format!("--seed {seed} --steps 1500"));
        must_hold(&format!("--seed {seed} --steps 1500 --durability local"));
    }
}

#[test]
fn a_server_that_dies_again_and_again_takes_nothing_with_it() {
    // They found sessions that waited for each other (`grace.rs` of `atoll-volume`).
    must_hold("--seed 2176878670");
    must_hold("--seed 1459009830 --kinds ServerDies");
}

#[test]
fn what_is_thawed_sees_nothing_old_and_wrong_clocks_are_no_matter() {
    // The last two found what is in `clock.rs` of `atoll-client` now.
    for seed in [1, 2, 3, 1965584466, 1198238568] {
        for durability in ["object", "local"] {
            let kinds = "--kinds ShortFreeze,LongFreeze,ClockSet";
            must_hold(&format!("--seed {seed} --steps 1500 --durability {durability} {kinds}"));
        }
    }
}

#[test]
fn a_server_that_was_frozen_for_any_time_says_nothing_old_and_undoes_nothing() {
    for seed in [1, 2] {
        must_hold(&format!("--seed {seed} --steps 700 --kinds LeftBehind,TakenOver,ServerFreezes"));
        must_hold(&format!("--seed {seed} --steps 700 --kinds LeftBehind,ServerFreezes --durability local"));
    }
    // A thawed server showed what it had just executed and could not commit any more.
    must_hold("--seed 3369508020 --steps 1000");
    // They found changes that lost their times because the server's clock was behind after the freeze.
    must_hold("--seed 4048410267 --steps 800 --kinds ServerFreezes");
    must_hold("--seed 2069839897 --steps 400 --kinds ServerFreezes --durability local");
}

#[test]
fn a_seed_that_nobody_has_tried_holds() {
    let more = match std::env::var("ATOLL_SIM_SECONDS") {
        Ok(seconds) => format!("--seconds {}", seconds.parse::<u64>().expect("a number of seconds").div_ceil(2)),
        Err(_) => "--steps 1500".to_owned(),
    };
    for durability in ["object", "local"] {
        print!("{}", must_hold(&format!("{more} --durability {durability}")));
    }
}

#[test]
fn a_change_that_is_shown_before_its_client_has_heard_of_it_is_found_out() {
    must_find(
        "Unheard",
        "--steps 1500 --kinds ServerDies",
        &["no order explains", "is not in the file", "not the beginning of what is there"],
    );
}

#[test]
fn an_fsync_that_answers_too_early_is_found_out() {
    must_find("EarlySync", "--steps 1800 --kinds BothDie", &["steps are there"]);
}

#[test]
fn a_wall_clock_that_nobody_looks_at_is_found_out() {
    must_find("WallIgnored", "--steps 1500 --kinds LongFreeze", &["no order explains"]);
}

#[test]
fn a_server_that_was_replaced_and_does_not_ask_is_found_out() {
    must_find("Unasked", "--steps 700 --kinds LeftBehind", &["no order explains"]);
}

#[test]
fn a_request_that_is_executed_twice_is_found_out() {
    must_find("Repeated", "--steps 400 --kinds Cuts,ServerDies", &["file exists", "in the file twice"]);
}
