//! Each of many deliberate faults of the machines of BGP and BFD is seen by the simulation: its rules have teeth.

use std::cell::Cell;

use lb_tests::mutant;

#[expect(warnings, reason = "faults are the point of this copy")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/session_mutants.rs"));
}

/// A mutant that survives so many runs is not caught: as many as the rules are tested with.
const SEEDS: u64 = 1000;

thread_local! {
    static CHOSEN: Cell<usize> = const { Cell::new(0) };
}

/// Whether this fault is to be there.
fn is_chosen(mutation: usize) -> bool {
    CHOSEN.get() == mutation
}

/// Runs seeds with a fault until it is noticed.
fn find(mutation: usize) -> Option<String> {
    CHOSEN.set(mutation);
    (0..SEEDS).find_map(|seed| match mutant::run(|| generated::sim::bgp::run(seed)) {
        Some(run) => run.err().map(|violation| violation.to_string()),
        None => Some(format!("seed {seed}: panic")),
    })
}

fn check_mutants(mutants: &[(usize, &'static str)]) {
    let mut survivors = Vec::new();
    for (mutation, name) in [(0, "nothing is changed")].iter().chain(mutants) {
        match find(*mutation) {
            Some(what) => println!("{name}: {what}"),
            None => survivors.push(*name),
        }
    }
    assert_eq!(survivors, ["nothing is changed"], "only the copy without a fault passes {SEEDS} seeds");
    assert!(mutants.len() > 10);
}

#[test]
fn every_mutant_of_bfd_is_caught() {
    check_mutants(generated::BFD);
}

#[test]
fn every_mutant_of_bgp_is_caught() {
    check_mutants(generated::BGP);
}
