//! Aggregates: one prefix for many VIPs.
//!
//! A node announces an aggregate while any VIP in it is eligible there. Traffic for the others then comes too, so a node
//! whose VIP is eligible while it is not so everywhere announces that VIP by its own /32 or /128, which wins over the
//! aggregate at the router.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::values::Prefix;

/// What is known of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Eligibility {
    /// On this node.
    pub here: bool,
    /// On every node that may announce its aggregate: they need no prefix of its own, as whichever node gets its traffic
    /// can answer. Where that is not known, say no.
    pub everywhere: bool,
}

/// The prefixes that this node announces: an aggregate while a VIP in it is eligible here, and a VIP's own prefix while
/// it is eligible here and lies in no aggregate or is not eligible everywhere. All aggregates around a VIP are
/// announced, nested ones too.
#[must_use]
pub fn prefixes(vips: &BTreeMap<IpAddr, Eligibility>, aggregates: &BTreeSet<Prefix>) -> BTreeSet<Prefix> {
    let mut announced = BTreeSet::new();
    for (vip, eligibility) in vips.iter().filter(|(_, eligibility)| eligibility.here) {
        let around: Vec<_> = aggregates.iter().filter(|aggregate| aggregate.contains(*vip)).collect();
        if around.is_empty() || !eligibility.everywhere {
            announced.extend(Prefix::host(*vip));
        }
        announced.extend(around);
    }
    announced
}
