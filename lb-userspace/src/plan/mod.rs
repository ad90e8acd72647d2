//! From what is wanted and what is installed to what must be written: pure.

pub mod maglev;
pub mod ranges;
