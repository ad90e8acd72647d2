//! Simulation of what announces VIPs, on a virtual clock: the same seed, the same run.
//!
//! [`vrrp`] has nodes that share a segment, [`bgp`] nodes that announce to routers and are watched by BFD. A run has its
//! nodes and what is set for them by chance. First come faults one at a time, each with time to settle after it: what it
//! costs is held against the protocol's own formula for that fault. Then faults of all kinds at once, and then quiet.
//!
//! Each node has a clock of its own origin.

pub mod bgp;
mod random;
pub mod vrrp;

use std::time::Duration;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Of everything that was sent and every change of state, with its time.
    pub hash: u64,
    /// Steps that the run took.
    pub steps: u64,
    /// Advertisements or messages sent.
    pub sent: u64,
    /// Changes of state.
    pub transitions: u64,
    /// Longest time that a VIP went without its node or its route, after a fault whose formula allows for some.
    pub longest_gap: Duration,
}

impl Trace {
    /// Of a run that has not begun. Hashes begin with FNV's offset.
    const NONE: Self =
        Self { hash: 0xcbf2_9ce4_8422_2325, steps: 0, sent: 0, transitions: 0, longest_gap: Duration::ZERO };

    /// Takes something into the hash.
    fn note(&mut self, words: &[u64], now: Duration) {
        let time = now.as_nanos() as u64;
        for word in words.iter().chain([&time]) {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            self.hash ^= self.hash >> 29;
        }
    }
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
    use super::{Trace, Violation};

    /// Of each simulation.
    const SEEDS: u64 = 1000;

    fn check_rules(run: fn(u64) -> Result<Trace, Violation>) {
        for seed in 0..SEEDS {
            if let Err(violation) = run(seed) {
                panic!("{violation}");
            }
        }
    }

    fn check_sameness(run: fn(u64) -> Result<Trace, Violation>) {
        let hashes: Vec<_> = (0..10).map(|seed| run(seed).map(|trace| trace.hash)).collect();
        let again: Vec<_> = (0..10).map(|seed| run(seed).map(|trace| trace.hash)).collect();
        assert_eq!(hashes, again);
        assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_thousand_seeds_of_virtual_routers_keep_the_rules() {
        check_rules(super::vrrp::run);
    }

    #[test]
    fn a_thousand_seeds_of_nodes_and_routers_keep_the_rules() {
        check_rules(super::bgp::run);
    }

    #[test]
    fn the_same_seed_is_the_same_run_and_another_is_another() {
        check_sameness(super::vrrp::run);
        check_sameness(super::bgp::run);
    }
}
