//! `sluice`: the agent and its tools.

use std::process::ExitCode;

use clap::Parser;
use lb_userspace::{
    cli::{self, Cli},
    engine,
};

fn main() -> ExitCode {
    cli::run(Cli::parse(), engine::run)
}
