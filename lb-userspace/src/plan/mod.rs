//! From what is wanted and what is installed to what must be written: pure.

pub mod adopt;
pub mod ahead;
pub mod diff;
mod difference;
mod endpoints;
pub mod history;
pub mod ids;
pub mod maglev;
pub mod ops;
pub mod planner;
pub mod ranges;
pub mod rebuild;
pub mod room;
pub mod service;
mod tracked;
mod transaction;
