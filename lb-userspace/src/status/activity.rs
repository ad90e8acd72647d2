//! What the agent has done since it started, counted.

use serde::{Deserialize, Serialize};

use crate::model::Rung;

/// Counts of what the agent did; all begin at 0 with the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Activity {
    /// Configurations that were taken after the first.
    pub reloads_applied: u64,
    /// Configurations that were refused.
    pub reloads_refused: u64,
    /// When the configuration in force was taken, in seconds since 1970 UTC.
    pub configured_unix_seconds: u64,
    /// Self-tests by rung.
    pub self_tests: Vec<SelfTests>,
    /// Writes to maps that were done.
    pub map_writes: u64,
    /// Writes to maps that failed, each time that one was tried.
    pub map_write_failures: u64,
    /// How often the kernel had more to tell than its buffer holds.
    pub netlink_overruns: u64,
    /// How long changes took to be in force, by what brought them.
    pub programming: Vec<Programming>,
}

/// Self-tests of one rung.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfTests {
    /// The rung.
    pub rung: Rung,
    /// A frame got through, and the answer back.
    pub passed: u64,
    /// It did not.
    pub failed: u64,
}

/// What makes the agent write to the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The configuration.
    Configuration,
    /// What netlink tells of links, addresses and routes.
    Network,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Configuration, Self::Network];

    /// As metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Network => "network",
        }
    }
}

/// Changes that one cause brought: from the moment that the agent saw each until the last of its writes was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Programming {
    /// What brought them.
    pub cause: Cause,
    /// How many took at most [`PROGRAMMING_BOUNDS_MICROSECONDS`] and more than the bound before; longer ones last.
    pub buckets: [u64; PROGRAMMING_BOUNDS_MICROSECONDS.len() + 1],
    /// Of all of them together.
    pub sum_microseconds: u64,
}

/// Bounds of the buckets: from a change of one service to the start of a large node, and a stage that had to wait.
pub const PROGRAMMING_BOUNDS_MICROSECONDS: [u64; 12] =
    [500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 2_500_000, 10_000_000];
