//! The agent of Sluice.
//!
//! Three rings: *pure* (`model`, `plan`, `preflight`), *edge* (`config`, `net`, `dataplane`, `survey`) and the `engine` that joins them.
//! Dependencies point inward.

mod capabilities;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod engine;
mod failure;
pub mod model;
pub mod net;
pub mod plan;
pub mod preflight;
pub mod status;
pub mod survey;
