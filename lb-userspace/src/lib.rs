//! The agent of Sluice.
//!
//! Three rings: *pure* (`model`, `plan`, `preflight`), *edge* (`config`, `net`, `privileges`, `supervisor`, `dataplane`, `survey`) and
//! the `engine` that joins them.
//! Dependencies point inward.

pub mod announce;
mod capabilities;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod engine;
mod failure;
pub mod health;
mod memory;
pub mod model;
pub mod net;
pub mod observe;
pub mod plan;
pub mod preflight;
pub mod privileges;
pub mod status;
pub mod supervisor;
pub mod survey;
