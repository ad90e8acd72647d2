//! `cargo xtask`: set-up, eBPF build, demo, test, bench and lint.
fn main() {}
