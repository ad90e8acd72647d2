//! Each of many deliberate faults of a virtual router is seen by the simulation: its rules have teeth.

use lb_tests::mutant;

#[expect(warnings, reason = "faults are the point of these copies")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/router_mutants.rs"));
    pub(super) const ALL: &[(&str, fn(u64) -> Result<(), String>)] = ROUTERS;
}

/// A mutant that survives so many runs is not caught.
const SEEDS: u64 = 200;

#[test]
fn every_mutant_of_a_virtual_router_is_caught() {
    let mut survivors = Vec::new();
    for (name, run) in generated::ALL {
        let caught = (0..SEEDS).find(|seed| !matches!(mutant::run(|| run(*seed)), Some(Ok(()))));
        match caught {
            Some(seed) => println!("seed {seed:>3}: {name}"),
            None => survivors.push(*name),
        }
    }
    assert_eq!(survivors, ["nothing is changed"], "only the copy without a fault passes {SEEDS} seeds");
    assert!(generated::ALL.len() > 10);
}
