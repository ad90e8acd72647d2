//! `cargo xtask survive [--seeds N] [-- --sessions N --changes N]`: sessions of both families through random changes of
//! the backends, from many seeds. `--without-histories` is the negative control, and must fail.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::survive::{self, Met, Outcome, Plan};

const USAGE: &str = "usage: survive [--seeds N] [--first N] [--sessions N] [--changes N] [--without-histories]";

struct Arguments {
    first: u64,
    seeds: u64,
    sessions: usize,
    changes: u32,
    without_histories: bool,
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
    let mut arguments = Arguments { first: 1, seeds: 20, sessions: 1000, changes: 100, without_histories: false };
    while let Some(word) = words.next() {
        if word == "--without-histories" {
            arguments.without_histories = true;
            continue;
        }
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
    let Arguments { sessions, changes, without_histories, .. } = *arguments;
    let mut sum = Outcome::default();
    let mut failed = 0;
    for seed in arguments.first..arguments.first + arguments.seeds {
        let begun = Instant::now();
        let outcome = survive::run(&Plan { seed, sessions, changes, without_histories })?;
        let verdict = outcome.check().and_then(|()| outcome.check_reach());
        let (lost, slots, seconds) = (outcome.lost(), outcome.slots, begun.elapsed().as_secs());
        let what = verdict.as_ref().map_or_else(|error| format!("{error:#}"), |()| "all right".to_owned());
        println!("seed {seed}: {lost} sessions lost, {slots} slots at the end, {seconds} s: {what}");
        failed += u64::from(verdict.is_err());
        add(&mut sum, outcome);
    }
    print(&sum);
    println!("\n{}", if failed == 0 { "every session survived".to_owned() } else { format!("{failed} seeds failed") });
    Ok(failed == 0)
}

fn add(sum: &mut Outcome, outcome: Outcome) {
    for (change, met) in outcome.by_change {
        let known = sum.by_change.entry(change).or_default();
        *known = Met {
            times: known.times + met.times,
            sessions: known.sessions + met.sessions,
            lost: known.lost + met.lost,
        };
    }
    sum.growths += outcome.growths;
    sum.lines += outcome.lines;
    sum.stalls += outcome.stalls;
    sum.longest = sum.longest.max(outcome.longest);
    sum.resets += outcome.resets;
    sum.resets_sent += outcome.resets_sent;
    sum.wiped += outcome.wiped;
    sum.unrecorded += outcome.unrecorded;
    for at in 0..2 {
        sum.reused[at] += outcome.reused[at];
        sum.reused_elsewhere[at] += outcome.reused_elsewhere[at];
    }
    for at in 0..4 {
        sum.datagrams[at] += outcome.datagrams[at];
    }
}

fn print(sum: &Outcome) {
    println!("\n{:<15} {:>8} {:>10} {:>6}", "change", "times", "sessions", "lost");
    for (change, Met { times, sessions, lost }) in &sum.by_change {
        println!("{:<15} {times:>8} {sessions:>10} {lost:>6}", format!("{change:?}").to_lowercase());
    }
    let [closed, vanished] = sum.reused;
    let [closed_elsewhere, vanished_elsewhere] = sum.reused_elsewhere;
    let [datagrams, wrong, unanswered, repeated] = sum.datagrams;
    println!("\n{} lines exchanged, {} stalls, the longest {:?}", sum.lines, sum.stalls, sum.longest);
    println!("{} resets reached clients; clients sent {}", sum.resets, sum.resets_sent);
    println!("{closed} ports used again in TIME_WAIT, {closed_elsewhere} came to another pod");
    println!(
        "{vanished} ports used again while the pod had the old connection, {vanished_elsewhere} came to another pod"
    );
    println!("{} records wiped out of the flow cache; the tables grew {} times", sum.wiped, sum.growths);
    println!("{datagrams} datagrams, {wrong} in a wrong pod, {unanswered} unanswered, {repeated} repeated");
    println!("{} answers did not leave from the VIP", sum.unrecorded);
}
