//! What the tests of Sluice share: packet builders, the namespace lab, real programs.

pub mod agent;
pub mod clock;
pub mod cluster;
pub mod fuzz;
pub mod halted;
pub mod kernel;
pub mod lab;
pub mod life;
pub mod mutant;
pub mod packets;
pub mod pinned;
pub mod process;
pub mod programs;
pub mod scenario;
pub mod sim;
pub mod soak;
pub mod survive;
pub mod unit;
pub mod world;
