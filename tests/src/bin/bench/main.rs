//! `cargo xtask bench [--check]`: what a packet costs in the loaded programs and on the wire, and what
//! many services, VIPs and peers do.
//!
//! docs/benchmarks.md says what the rows mean.

mod announce;
mod frames;
mod lab_programs;
mod measure;
mod programs;
mod scale;
mod table;
mod wire;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use lb_tests::lab::{Lab, Options};

use crate::lab_programs::LabPrograms;

/// What the command line asks for.
struct Arguments {
    check: bool,
    rounds: u32,
    filter: Option<String>,
    only_wire: bool,
    only_scale: bool,
    only_announce: bool,
}

/// Rounds on the wire take longer.
const ROUNDS_PER_WIRE_ROUND: u32 = 5;

const USAGE: &str =
    "usage: bench [--check] [--rounds N] [--filter PART-OF-A-ROW'S-NAME | --wire | --scale | --announce]";

fn main() -> ExitCode {
    match arguments(std::env::args().skip(1)).and_then(|arguments| run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut arguments =
        Arguments { check: false, rounds: 40, filter: None, only_wire: false, only_scale: false, only_announce: false };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--check" => arguments.check = true,
            "--rounds" => arguments.rounds = words.next().unwrap_or_default().parse()?,
            "--wire" => arguments.only_wire = true,
            "--scale" => arguments.only_scale = true,
            "--announce" => arguments.only_announce = true,
            "--filter" => arguments.filter = words.next(),
            other => bail!("unknown argument {other:?}\n{USAGE}"),
        }
    }
    ensure!(arguments.rounds > 0, "--rounds must be at least 1");
    Ok(arguments)
}

/// Returns whether the run may be called a success.
fn run(arguments: &Arguments) -> Result<bool> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    ensure!(unsafe { libc::geteuid() } == 0, "the benchmark makes network namespaces and loads eBPF: run it as root");
    let is_some = [arguments.only_wire, arguments.only_scale, arguments.only_announce].contains(&true);
    // Without a word all parts run, but a row's name is one of the programs'.
    let runs = |only: bool| only || !is_some && arguments.filter.is_none();
    let mut missed = 0;
    if !is_some {
        let lab = Lab::new("bench", Options { pods: 1, ..Options::default() })?;
        println!("In the loaded programs, by BPF_PROG_TEST_RUN, net of an empty program:\n");
        missed += programs::measure(&lab, arguments.rounds, arguments.filter.as_deref())?.print();
    }
    if runs(arguments.only_wire) {
        println!("\nOn the wire, router to node to pod, UDP of 64 bytes, CPU time with the sender's:\n");
        missed += wire::measure(&mut LabPrograms::load()?, arguments.rounds.div_ceil(ROUNDS_PER_WIRE_ROUND))?.print();
    }
    if runs(arguments.only_scale) {
        println!("\nOne node with 10,000 services and 100,000 backends:\n");
        missed += scale::measure()?;
    }
    if runs(arguments.only_announce) {
        println!("\nAnnouncing, with 100 sessions of BFD and 10,000 VIPs:\n");
        missed += announce::measure()?;
    }
    println!("\n{}", if missed == 0 { "all targets reached".to_owned() } else { format!("{missed} targets missed") });
    Ok(missed == 0 || !arguments.check)
}
