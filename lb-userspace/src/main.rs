//! `sluice`: the agent and its tools.

use std::process::ExitCode;

use clap::Parser;
use lb_userspace::{
    cli::{self, Actions, Cli},
    engine,
};

fn main() -> ExitCode {
    cli::run(Cli::parse(), &Actions { agent: engine::run, detach: engine::detach::run })
}
