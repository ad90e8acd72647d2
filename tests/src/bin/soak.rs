//! `cargo xtask soak --minutes N [--seed S]`: all kinds of traffic through random restarts, upgrades and changes.

use std::{
    io::{IsTerminal as _, Write as _, stdout},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::soak::{self, Outcome, Plan, Progress};

const USAGE: &str = "usage: soak [--minutes N] [--seed S]";
/// Environment variable that names the agent of another ABI.
const NEXT_BINARY: &str = "SLUICE_NEXT_BIN";

fn main() -> ExitCode {
    match arguments(std::env::args().skip(1)).and_then(|plan| run(&plan)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Plan> {
    let (mut minutes, mut seed) = (10, 1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a number\n{USAGE}"))?;
        match word.as_str() {
            "--minutes" => minutes = value.parse().with_context(|| format!("--minutes {value}"))?,
            "--seed" => seed = value.parse().with_context(|| format!("--seed {value}"))?,
            _ => bail!("unknown argument {word:?}\n{USAGE}"),
        }
    }
    ensure!(minutes > 0, "--minutes 0 would run nothing");
    let other_build = std::env::var(NEXT_BINARY)
        .with_context(|| format!("{NEXT_BINARY} is not set: run this through `cargo xtask soak`"))?;
    Ok(Plan { seed, duration: Duration::from_secs(60 * minutes), other_build })
}

/// Whether nothing was wrong.
fn run(plan: &Plan) -> Result<bool> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    ensure!(unsafe { libc::geteuid() } == 0, "this makes network namespaces and loads eBPF: run it as root");
    println!(
        "seed {}, {} s: 200 sessions, 5000 datagrams a second, SNMP, BGP, telemetry",
        plan.seed,
        plan.duration.as_secs()
    );
    let begun = Instant::now();
    let mut screen = Screen { is_terminal: stdout().is_terminal(), begun };
    let outcome = soak::run(plan, |progress| screen.show(progress));
    screen.clear();
    match outcome {
        Ok(outcome) => {
            print!("\n{outcome}");
            println!("{:.0?}: nothing was lost, nothing is left, nothing has grown", begun.elapsed());
            Ok(true)
        }
        Err(error) => {
            println!("\nFAILED after {:.0?}:", begun.elapsed());
            error.chain().for_each(|part| println!("{part}"));
            println!("again: cargo xtask soak --seed {}", plan.seed);
            Ok(false)
        }
    }
}

/// A line for each step; in a terminal, one more that says what is being done.
struct Screen {
    is_terminal: bool,
    begun: Instant,
}

impl Screen {
    fn show(&mut self, progress: Progress<'_>) {
        self.clear();
        match progress {
            Progress::Begins(step) if self.is_terminal => {
                print!("  … {:>4}  {:?}", step.number, step.action);
                // A terminal that is gone shows nothing, and stops nothing.
                let _ = stdout().flush();
            }
            Progress::Begins(_) => {}
            Progress::Done(step, outcome, took) => {
                let Outcome { datagrams: (sent, _), lines, sessions: (open, _), .. } = outcome;
                println!(
                    "{:>5.0?} s {:>4}  {:08x}  {:<40} {took:>5.1?}  {open} sessions, {lines} lines, {sent} datagrams",
                    self.begun.elapsed().as_secs_f32(),
                    step.number,
                    step.hash,
                    format!("{:?}", step.action),
                );
            }
        }
    }

    fn clear(&self) {
        if self.is_terminal {
            print!("\r\x1b[K");
        }
    }
}
