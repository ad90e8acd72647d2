//! What is announced: prefixes with their attributes, before a session gives them their form.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use serde::Serialize;

use super::values::Prefix;

/// Prefixes that a peer is sent at most: ten times what a cluster has VIPs. More are left out, counted, and said so.
pub const ROUTES_MAX: usize = 100_000;
/// Communities of each kind on a route: a full list leaves room in a message for prefixes.
pub const COMMUNITIES_MAX: usize = 64;

/// A community (RFC 1997): AS number and value, 16 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Community(pub u32);

impl Community {
    /// RFC 8326, 3: 65535:0.
    pub const GRACEFUL_SHUTDOWN: Self = Self(0xffff_0000);
}

/// A large community (RFC 8092): AS number and two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct LargeCommunity(pub u32, pub u32, pub u32);

/// ORIGIN (RFC 4271, 5.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Origin {
    /// From within the AS.
    #[default]
    Igp,
    /// By EGP.
    Egp,
    /// Otherwise.
    Incomplete,
}

/// How link bandwidth is marked towards other ASes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum BandwidthKind {
    /// 0x4004, as within the AS.
    #[default]
    NonTransitive,
    /// 0x0004, which some routers send and expect.
    Transitive,
}

/// A share of the traffic in octets a second, above 0: zero would mean none at all to a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct LinkBandwidth(u32);

impl LinkBandwidth {
    /// Of a node with so many ready backends, each of `unit` octets a second. None where that is not above 0, or not
    /// finite.
    #[must_use]
    pub fn new(backends: u32, unit: f32) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "shares need no more than 24 bits")]
        let octets = backends as f32 * unit;
        (octets.is_normal() && octets > 0.0).then(|| Self(octets.to_bits()))
    }

    /// As it is sent: IEEE 754, single precision.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// What goes with a prefix. Sets have no order and no duplicates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Attributes {
    /// Where it comes from.
    pub origin: Origin,
    /// Within the AS alone; greater ones win.
    pub local_preference: u32,
    /// Smaller ones win.
    pub med: Option<u32>,
    /// At most [`COMMUNITIES_MAX`] are sent.
    pub communities: BTreeSet<Community>,
    /// At most [`COMMUNITIES_MAX`] are sent.
    pub large_communities: BTreeSet<LargeCommunity>,
    /// On all nodes or on none.
    pub link_bandwidth: Option<LinkBandwidth>,
}

impl Default for Attributes {
    /// Nothing but what must be there, and the local preference that routers take for granted.
    fn default() -> Self {
        Self {
            origin: Origin::Igp,
            local_preference: 100,
            med: None,
            communities: BTreeSet::new(),
            large_communities: BTreeSet::new(),
            link_bandwidth: None,
        }
    }
}

/// A prefix that a peer is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What is announced.
    pub prefix: Prefix,
    /// Where packets go; None lets the session choose.
    pub next_hop: Option<IpAddr>,
    /// What goes with it. Shared: most routes have the same.
    pub attributes: Arc<Attributes>,
}
