//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! TCP sessions outlive every change of the other backends.

use anyhow::{Result, ensure};
use lb_tests::{agent::available, survive};

const SEED: u64 = 1;

#[test]
fn sessions_outlive_changes_of_the_backends() -> Result<()> {
    if !available("survive") {
        return Ok(());
    }
    let outcome = survive::run(SEED, 50, 30)?;
    ensure!(outcome.lost() == 0, "seed {SEED}: {outcome:?}");
    Ok(())
}
