//! Seeds that must hold, a fresh one, and rules that are broken on purpose and must be found out.
//!
//! `ATOLL_SIM_SECONDS` is how long fresh seeds are tried; without it, one is.

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_atoll-sim");
    Command::new(program).args(arguments).output().expect("the simulation runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn must_hold(arguments: &[&str]) -> String {
    let output = simulate(arguments);
    let text = text(&output);
    assert!(output.status.success(), "atoll-sim {}\n{text}", arguments.join(" "));
    text
}

#[test]
fn a_seed_gives_the_same_run_to_the_last_byte() {
    for durability in ["object", "local"] {
        let run = || must_hold(&["--seed", "11", "--steps", "600", "--durability", durability]);
        assert_eq!(run(), run());
    }
}
