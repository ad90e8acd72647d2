//! `cargo xtask sim [--seed N] [--seeds N]`: runs of the simulated virtual routers, each from a seed, and what came of them.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::sim;

const USAGE: &str = "usage: sim [--seed N] [--seeds N]";

fn main() -> ExitCode {
    match arguments(std::env::args().skip(1)) {
        Ok((first, seeds)) => run(first, seeds),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The first seed, and how many.
fn arguments(mut words: impl Iterator<Item = String>) -> Result<(u64, u64)> {
    let (mut first, mut seeds) = (0, 1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a number\n{USAGE}"))?;
        match word.as_str() {
            "--seed" => first = value.parse()?,
            "--seeds" => seeds = value.parse()?,
            _ => bail!("unknown argument {word:?}\n{USAGE}"),
        }
    }
    ensure!(seeds > 0, "no seeds: nothing is shown");
    Ok((first, seeds))
}

fn run(first: u64, seeds: u64) -> ExitCode {
    println!(
        "{:>8}  {:>16}  {:>8}  {:>8}  {:>11}  {:>11}",
        "seed", "trace", "steps", "sent", "transitions", "longest gap"
    );
    for seed in first..first.saturating_add(seeds) {
        match sim::run(seed) {
            Ok(sim::Trace { hash, steps, sent, transitions, longest_gap }) => {
                let gap = format!("{} ms", longest_gap.as_millis());
                println!("{seed:>8}  {hash:016x}  {steps:>8}  {sent:>8}  {transitions:>11}  {gap:>11}");
            }
            Err(violation) => {
                eprintln!("error: {violation}: cargo xtask sim --seed {seed}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{seeds} runs keep the rules");
    ExitCode::SUCCESS
}
