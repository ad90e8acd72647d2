//! Simulation of nodes that share a segment, on a virtual clock: the same seed, the same run.
//!
//! A run has nodes (2 to 6), virtual routers (1 to 4) and their VIPs by chance. First come faults one at a time, each
//! with time to settle after it: how long a VIP goes unanswered and how long two nodes answer for it is held against
//! the protocol's own formula for that fault. Then faults of all kinds at once, and then quiet: each VIP must come to
//! be answered by exactly one node, and stay so.
//!
//! Each node has a clock of its own origin. What answers is a table with times, as in the data plane: it goes on while
//! the agent stands still or is dead.

mod faults;
mod monitor;
mod node;
mod random;
mod scenario;
mod world;

pub use scenario::run;

use std::time::Duration;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Of everything that was sent and every change of state, with its time.
    pub hash: u64,
    /// Steps that the run took.
    pub steps: u64,
    /// Advertisements sent.
    pub sent: u64,
    /// Changes of state.
    pub transitions: u64,
    /// Longest time that a VIP went unanswered after a fault whose formula allows for some.
    pub longest_gap: Duration,
}

/// What must not be, and was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, after {at:?}: {what}; run this seed again to see it")]
pub struct Violation {
    /// Of the run.
    pub seed: u64,
    /// Virtual time.
    pub at: Duration,
    /// What.
    pub what: String,
}

#[cfg(test)]
mod tests {
    use super::run;

    #[test]
    fn a_thousand_seeds_keep_the_rules() {
        for seed in 0..1000 {
            if let Err(violation) = run(seed) {
                panic!("{violation}");
            }
        }
    }

    #[test]
    fn the_same_seed_is_the_same_run_and_another_is_another() {
        let hashes: Vec<_> = (0..10).map(|seed| run(seed).map(|trace| trace.hash)).collect();
        let again: Vec<_> = (0..10).map(|seed| run(seed).map(|trace| trace.hash)).collect();
        assert_eq!(hashes, again);
        assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
