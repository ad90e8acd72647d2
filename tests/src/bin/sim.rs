//! `cargo xtask sim [--machine vrrp|bgp] [--seed N] [--seeds N]`: simulated runs of virtual routers, and of nodes that announce to
//! routers, each from a seed, and what came of them.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::sim::{self, Trace, Violation};

const USAGE: &str = "usage: sim [--machine vrrp|bgp] [--seed N] [--seeds N]";

/// What is simulated: a name, and the run of a seed.
type Machine = (&'static str, fn(u64) -> Result<Trace, Violation>);

const MACHINES: [Machine; 2] = [("vrrp", sim::vrrp::run), ("bgp", sim::bgp::run)];

struct Arguments {
    /// None: all.
    machine: Option<Machine>,
    first: u64,
    seeds: u64,
}

fn main() -> ExitCode {
    match arguments(std::env::args().skip(1)) {
        Ok(Arguments { machine, first, seeds }) => {
            let machines = machine.as_ref().map_or(&MACHINES[..], std::slice::from_ref);
            let keeps = |machine: &Machine| run(*machine, first, seeds) == ExitCode::SUCCESS;
            if machines.iter().all(keeps) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut arguments = Arguments { machine: None, first: 0, seeds: 1 };
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value\n{USAGE}"))?;
        match word.as_str() {
            "--machine" => {
                let machine = MACHINES.into_iter().find(|(name, _)| *name == value);
                arguments.machine =
                    Some(machine.with_context(|| format!("no machine {value:?} is simulated\n{USAGE}"))?);
            }
            "--seed" => arguments.first = value.parse()?,
            "--seeds" => arguments.seeds = value.parse()?,
            _ => bail!("unknown argument {word:?}\n{USAGE}"),
        }
    }
    ensure!(arguments.seeds > 0, "no seeds: nothing is shown");
    Ok(arguments)
}

fn run((machine, run): Machine, first: u64, seeds: u64) -> ExitCode {
    println!(
        "{machine:>8}  {:>16}  {:>8}  {:>8}  {:>11}  {:>11}",
        "trace", "steps", "sent", "transitions", "longest gap"
    );
    for seed in first..first.saturating_add(seeds) {
        match run(seed) {
            Ok(Trace { hash, steps, sent, transitions, longest_gap }) => {
                let gap = format!("{} ms", longest_gap.as_millis());
                println!("{seed:>8}  {hash:016x}  {steps:>8}  {sent:>8}  {transitions:>11}  {gap:>11}");
            }
            Err(violation) => {
                eprintln!("error: {violation}: cargo xtask sim --machine {machine} --seed {seed}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{seeds} runs keep the rules");
    ExitCode::SUCCESS
}
