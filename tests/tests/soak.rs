//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! A minute of `cargo xtask soak`: every kind of step at least once, but for what a slow machine leaves out.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::available,
    soak::{self, Plan, Progress},
};

/// Environment variable that names the agent of another ABI.
const NEXT_BINARY: &str = "SLUICE_NEXT_BIN";
const SEED: u64 = 1;
const DURATION: Duration = Duration::from_secs(60);
/// Steps that the slowest machine makes in this time.
const STEPS_MIN: u32 = 5;

#[test]
fn a_minute_of_everything_at_once_loses_nothing_and_leaves_nothing() -> Result<()> {
    if !available("soak") {
        return Ok(());
    }
    let other_build =
        std::env::var(NEXT_BINARY).with_context(|| format!("{NEXT_BINARY} names the agent of another ABI"))?;
    let plan = Plan { seed: SEED, duration: DURATION, other_build };
    let outcome = soak::run(&plan, |progress| {
        if let Progress::Done(step, _, took) = progress {
            println!("{} {:?} {took:.1?}", step.number, step.action);
        }
    })?;
    println!("{outcome}");
    ensure!(outcome.count() >= STEPS_MIN, "only {} steps", outcome.count());
    Ok(())
}
