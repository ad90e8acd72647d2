//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! TCP sessions outlive every change of the other backends, and datagrams find a pod that serves.

use anyhow::{Result, ensure};
use lb_tests::{
    agent::available,
    survive::{self, Plan},
};

const SEED: u64 = 1;

#[test]
fn sessions_outlive_changes_of_the_backends() -> Result<()> {
    if !available("survive") {
        return Ok(());
    }
    let outcome = survive::run(&Plan { seed: SEED, sessions: 1000, changes: 100, without_histories: false })?;
    println!("{outcome:#?}");
    outcome.check()?;
    outcome.check_reach()
}

/// The negative control.
#[test]
fn without_histories_sessions_are_lost() -> Result<()> {
    if !available("survive") {
        return Ok(());
    }
    let outcome = survive::run(&Plan { seed: SEED, sessions: 100, changes: 10, without_histories: true })?;
    ensure!(outcome.lost() > 0, "nobody noticed: {outcome:?}");
    Ok(())
}
