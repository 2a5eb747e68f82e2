//! Seeds that nobody has tried.

use std::fs::File;
use std::io::Read;
use std::process::{Command, ExitCode};

/// One that the system's own random numbers give, short enough to be read out.
pub fn fresh() -> u64 {
    let mut bytes = [0; 4];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("random numbers");
    u64::from(u32::from_le_bytes(bytes))
}

/// How long the machine has been up, in seconds: this program's clocks stand still outside a simulation.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("the machine's uptime");
    text.split(' ').next().and_then(|seconds| seconds.parse().ok()).expect("a number")
}

/// Run this program with fresh seeds and the other arguments, until the time is over or one fails.
pub fn run(seconds: u64) -> ExitCode {
    let end = uptime() + seconds as f64;
    let program = std::env::current_exe().expect("this program");
    let mut others: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => drop(arguments.next()),
            other if other.starts_with("--seconds=") => {}
            _ => others.push(argument),
        }
    }
    while uptime() < end {
        let seed = fresh().to_string();
        let status = Command::new(&program).args(&others).args(["--seed", &seed]).status().expect("this program runs");
        if !status.success() {
            println!("seed {seed} fails");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
