//! Nodes (2 to 4) that announce VIPs to routers (1 or 2) by BGP, watched by BFD.
//!
//! Both sides run the agent's machines; what a router learns is kept by a model of a receiver (`receiver.rs`), which loses
//! and keeps routes by the rules of RFC 4271, 4724, 5882 and 8538. Whether a node may announce a VIP is decided from the
//! state of its data plane by `announce::eligibility`, as in the agent.
//!
//! What is asked: no announcement leaves a node whose data plane has not got the VIP; a route that is in the wrong goes
//! within the protocol's own time, which is BFD's detection time, the hold time, the restart time, or the longest silence of
//! an engine; what is promised to disturb nothing disturbs nothing; once quiet each router has exactly the routes of who may
//! announce, and both ends of BFD agree.

mod agent;
mod checks;
mod engine;
mod faults;
mod monitor;
mod plan;
mod receiver;
mod scenario;
mod streams;
mod update;
mod world;

pub use scenario::run;

use super::{Trace, Violation, random};
