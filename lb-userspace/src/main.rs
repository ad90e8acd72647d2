//! `sluice`: the agent and its tools.

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use lb_userspace::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse(), |config| {
        // The call site of `engine::run(config)`.
        bail!("the engine is not part of this build, so {} is not applied", config.display())
    })
}
