//! `cargo xtask survive [--seeds N] [--sessions N] [--changes N]`: sessions of both families through random changes of the
//! backends, from many seeds.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::survive;

const USAGE: &str = "usage: survive [--seeds N] [--first N] [--sessions N] [--changes N]";

struct Arguments {
    first: u64,
    seeds: u64,
    sessions: usize,
    changes: u32,
}

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
    let mut arguments = Arguments { first: 1, seeds: 20, sessions: 500, changes: 100 };
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a number\n{USAGE}"))?;
        match word.as_str() {
            "--first" => arguments.first = value.parse()?,
            "--seeds" => arguments.seeds = value.parse()?,
            "--sessions" => arguments.sessions = value.parse()?,
            "--changes" => arguments.changes = value.parse()?,
            _ => bail!("unknown argument {word:?}\n{USAGE}"),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<bool> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    ensure!(unsafe { libc::geteuid() } == 0, "this makes network namespaces and loads eBPF: run it as root");
    let mut by_change: BTreeMap<survive::Change, (u32, u64, u64)> = BTreeMap::new();
    let mut lost = 0;
    for seed in arguments.first..arguments.first + arguments.seeds {
        let outcome = survive::run(seed, arguments.sessions, arguments.changes)?;
        println!("seed {seed}: {} of the sessions lost, {} slots at the end", outcome.lost(), outcome.slots);
        lost += outcome.lost();
        for (change, (times, sessions, broken)) in outcome.by_change {
            let sum = by_change.entry(change).or_default();
            *sum = (sum.0 + times, sum.1 + sessions, sum.2 + broken);
        }
    }
    println!("\n{:<10} {:>8} {:>10} {:>6}", "change", "times", "sessions", "lost");
    for (change, (times, sessions, broken)) in by_change {
        println!("{:<10} {times:>8} {sessions:>10} {broken:>6}", format!("{change:?}").to_lowercase());
    }
    println!("\n{}", if lost == 0 { "every session survived".to_owned() } else { format!("{lost} sessions lost") });
    Ok(lost == 0)
}
