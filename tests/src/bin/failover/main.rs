//! `cargo xtask failover [--rounds N] [--check] [--only TEXT]`: how long a VIP is away when a node fails, leaves or comes
//! back, by Sluice and by the daemon that is usual for it, in the same lab. With `--check` a missed bound is an error.

mod bgp;
mod rows;
mod table;
mod vrrp;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    rows::{Row, Side},
    table::{Line, Table},
};

const USAGE: &str = "usage: failover [--rounds N] [--check] [--only TEXT]";

struct Arguments {
    rounds: usize,
    check: bool,
    /// Rows whose name has this in it.
    only: Option<String>,
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
    let mut arguments = Arguments { rounds: 5, check: false, only: None };
    while let Some(word) = words.next() {
        if word == "--check" {
            arguments.check = true;
            continue;
        }
        let value = words.next().with_context(|| format!("{word} needs a value\n{USAGE}"))?;
        match word.as_str() {
            "--rounds" => arguments.rounds = value.parse()?,
            "--only" => arguments.only = Some(value),
            _ => bail!("unknown argument {word:?}\n{USAGE}"),
        }
    }
    ensure!(arguments.rounds > 0, "no rounds measure nothing");
    Ok(arguments)
}

/// Whether everything is as it must be, where that is asked for.
fn run(arguments: &Arguments) -> Result<bool> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    ensure!(unsafe { libc::geteuid() } == 0, "this makes network namespaces and loads eBPF: run it as root");
    let mut table = Table::default();
    let chosen = |row: &Row| arguments.only.as_ref().is_none_or(|only| row.name.contains(only.as_str()));
    for row in rows::all().into_iter().filter(chosen) {
        let measure =
            |side: Side| (row.measure)(side, arguments.rounds).with_context(|| format!("{}: {side:?}", row.name));
        let ours = measure(Side::Sluice)?;
        let usual = if row.usual.is_some() { measure(Side::Usual)? } else { Vec::new() };
        let line = Line { row, ours, usual };
        line.plot();
        table.add(line);
    }
    let missed = table.print();
    if missed > 0 {
        println!("{missed} bounds missed");
    }
    Ok(missed == 0 || !arguments.check)
}
