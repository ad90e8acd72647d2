//! `cargo xtask`: set-up, eBPF build, demo, test, bench and lint. Each command runs what it depends on.

mod budget;
mod ebpf;
mod fuzz;
mod lint;
mod packages;
mod results;
mod rules;
mod shell;
mod toolchain;
mod verifier;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, eBPF build, demo, test, bench and lint of Sluice")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or make the eBPF toolchain and install the Debian packages that demo and tests need
    Setup(Setup),
    /// Build the eBPF objects, show what each program costs and compare with the budget
    BuildEbpf(ebpf::Options),
    /// Build the eBPF objects and the release agent that carries them
    Build(workspace::BuildOptions),
    /// Run all tests; those that need root fail in CI and skip elsewhere without it
    Test(workspace::TestOptions),
    /// Show real SNMP, BGP and gRPC reaching pods through a VIP, in network namespaces
    Demo(workspace::DemoOptions),
    /// Measure the data plane
    Bench(workspace::BenchOptions),
    /// Hold TCP sessions through random changes of the backends, from many seeds
    Survive(workspace::SurviveOptions),
    /// Send everything at once through random restarts, upgrades and changes, for as long as is wanted
    Soak(workspace::SoakOptions),
    /// Measure how long a VIP is away when nodes fail, leave and come back, beside the usual daemons
    Failover(workspace::FailoverOptions),
    /// Run simulated virtual routers, and nodes that announce to routers, through faults, each run from a seed
    Sim(workspace::SimOptions),
    /// Give decoders of foreign bytes whatever a fuzzer finds
    Fuzz(fuzz::Options),
    /// Check format, clippy and the repository's rules
    Lint,
}

#[derive(Args)]
struct Setup {
    /// Leave the Debian packages alone
    #[arg(long)]
    toolchain_only: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup(setup) => {
            if !setup.toolchain_only {
                packages::install_missing()?;
            }
            let toolchain = toolchain::find_or_make()?;
            println!("eBPF toolchain: {toolchain}");
            Ok(())
        }
        Command::BuildEbpf(options) => ebpf::build(&options).map(drop),
        Command::Build(options) => workspace::build(&options),
        Command::Test(options) => workspace::test(&options),
        Command::Demo(options) => workspace::demo(&options),
        Command::Bench(options) => workspace::bench(&options),
        Command::Survive(options) => workspace::survive(&options),
        Command::Soak(options) => workspace::soak(&options),
        Command::Failover(options) => workspace::failover(&options),
        Command::Sim(options) => workspace::sim(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Lint => lint::lint(),
    }
}
