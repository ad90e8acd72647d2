//! Announcing: how late BFD's packets leave and what they cost, how long it takes until routers have all routes, and how
//! long to decide about all VIPs.

mod bfd;
mod bgp;
mod eligibility;

use anyhow::Result;

use crate::scale::Figure;

/// VIPs of one cluster.
const VIPS: u32 = 10_000;

/// Measures and prints all figures; how many targets are missed.
pub fn measure() -> Result<usize> {
    let figures = bfd::figures()?.into_iter().chain(bgp::figures()?).chain(eligibility::figures());
    Ok(figures.filter(Figure::print).count())
}
