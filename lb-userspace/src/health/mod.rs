//! Whether pods answer: checks from the node into the pod, by TCP, HTTP, gRPC or a datagram.
//!
//! The machine decides when what is asked and what follows from the answers; the driver asks, on a thread of its own,
//! so that nothing the engine does at length makes a pod look dead. The engine lets failed backends drain.
//!
//! A check is a bypass like any connection of the node to a pod: `sluice_bypass` records it, and the return programs
//! leave its replies alone. What is unknown counts as healthy. What had failed before a restart counts as failed until it passes.

pub mod driver;
pub mod machine;
mod probe;
pub mod targets;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::model::health::{Probe, Timing};

/// What is asked, and whom. Services that ask the same have one check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    /// The pod's address, and the port that is asked.
    pub address: SocketAddr,
    /// What is asked.
    pub probe: Probe,
}

/// A check: whom, what and when.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Whom and what.
    pub subject: Subject,
    /// When, and what decides.
    pub timing: Timing,
}

/// What the checks of a target have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No check has passed yet, and not enough have failed: counts as healthy.
    Unknown,
    /// Answers.
    Healthy,
    /// Does not: gets no new connections.
    Unhealthy,
}

/// What has become of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub target: Arc<Target>,
    /// What its checks have come to.
    pub verdict: Verdict,
    /// Since when, by the agent's clock.
    pub since: Duration,
    /// Why the last check that failed did.
    pub last_error: Option<String>,
}

/// How one check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pod has answered.
    Passed,
    /// It has not, and why.
    Failed(String),
}
