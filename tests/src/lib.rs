//! What the tests of Sluice share: packet builders, the namespace lab, real programs.

pub mod lab;
