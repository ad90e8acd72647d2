//! Nodes (2 to 6) that share a segment, their virtual routers (1 to 4) and VIPs.
//!
//! After each fault how long a VIP goes unanswered and how long two nodes answer for it is held against the formula. Once
//! quiet each VIP must come to be answered by exactly one node, and stay so.
//!
//! What answers is a table with times, as in the data plane: it goes on while the agent stands still or is dead.

mod faults;
mod monitor;
mod node;
mod scenario;
mod world;

pub use scenario::run;

use super::{Trace, Violation, random};
