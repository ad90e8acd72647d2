//! `sluice`: the agent and its tools.
fn main() {}
