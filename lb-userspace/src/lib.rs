//! The agent of Sluice.
//!
//! Three rings: *pure* (`model`, `plan`), *edge* (`config`, `net`, `dataplane`) and the `engine` that joins them.
//! Dependencies point inward.

pub mod cli;
pub mod config;
pub mod dataplane;
pub mod engine;
mod failure;
pub mod model;
pub mod net;
pub mod observe;
pub mod plan;
pub mod status;
