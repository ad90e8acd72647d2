//! The file while the agent runs: that it has changed, when it is whole again, and what it says then.
//!
//! Whoever changes it does so in one of three ways: he puts another file in its place by a rename, swaps a symlink on the
//! way to it (the kubelet swaps `..data`), or writes into the file as it is. Only the last leaves half of it to be seen, so
//! it is read when the writer has closed it ([`machine`]), and again where it has changed meanwhile ([`source`]).

mod driver;
mod machine;
mod source;
#[cfg(test)]
mod tests;

pub use driver::Watch;
pub use machine::{Outcome, Settling, Sign};
pub use source::{Reading, Version, read, read_at_start, version};
