//! What is announced by BGP, to whom, and how those peers are watched.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16},
    path::PathBuf,
    time::Duration,
};

use serde::Serialize;

use super::announce::Selection;
use crate::announce::bgp::{
    machine::{Mode, PeerAs},
    route::{BandwidthKind, Community, LargeCommunity},
    values::{AsNumber, Family, HoldTime, Identifier, Prefix, RestartTime},
};

/// How this node speaks BGP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bgp {
    /// Ours.
    pub local_as: AsNumber,
    /// Ours; None: by the node's addresses or name.
    pub identifier: Option<Identifier>,
    /// What the end of the agent means.
    pub stop: StopMode,
    /// How long routes carry GRACEFUL_SHUTDOWN before they are withdrawn.
    pub shutdown_wait: Duration,
    /// Peers, no two alike.
    pub peers: Vec<BgpPeer>,
}

/// What peers are told when the agent is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum StopMode {
    /// That this node's routes go.
    Ordered,
    /// Nothing: it comes back, and they keep its routes.
    Graceful,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BgpPeer {
    /// What status and logs call it.
    pub name: String,
    /// Where it is.
    pub at: PeerPlace,
    /// Where it listens.
    pub port: NonZeroU16,
    /// Its own.
    pub peer_as: PeerAs,
    /// What is announced to it.
    pub families: BTreeSet<Family>,
    /// What is proposed.
    pub hold_time: HoldTime,
    /// How long a dial may take.
    pub connect_time: Duration,
    /// Who connects.
    pub mode: Mode,
    /// TCP MD5.
    pub password_file: Option<PasswordFile>,
    /// How far away it is.
    pub distance: Distance,
    /// Our end.
    pub source: Option<IpAddr>,
    /// Of IPv4 prefixes; None: of the session.
    pub next_hop_ipv4: Option<IpAddr>,
    /// Of IPv6 prefixes; None: of the session.
    pub next_hop_ipv6: Option<IpAddr>,
    /// IPv4 prefixes with IPv6 next hops are offered.
    pub extended_next_hop: bool,
    /// How long the peer keeps routes while the agent restarts; None: not at all.
    pub graceful_restart: Option<RestartTime>,
    /// How it is watched; None: by the hold time alone.
    pub bfd: Option<BfdProfile>,
    /// Without BFD being up there is no session.
    pub bfd_strict: bool,
    /// With each route.
    pub communities: BTreeSet<Community>,
    /// With each route.
    pub large_communities: BTreeSet<LargeCommunity>,
    /// Within the AS.
    pub local_preference: u32,
    /// With each route.
    pub med: Option<u32>,
    /// Octets a second that a backend stands for; None: no bandwidth is told.
    pub link_bandwidth: Option<u32>,
    /// How bandwidth is marked towards another AS.
    pub bandwidth_kind: BandwidthKind,
    /// Announced in place of what lies in them.
    pub aggregates: BTreeSet<Prefix>,
    /// Which VIPs.
    pub vips: Selection,
    /// Which nodes.
    pub nodes: NodeSelection,
}

/// A file with a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PasswordFile {
    /// Which.
    pub path: PathBuf,
    /// The line of the configuration that names it.
    pub line: u64,
}

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum PeerPlace {
    /// At an address; a link-local one on an interface.
    Address {
        /// The peer's.
        address: IpAddr,
        /// Ours.
        interface: Option<String>,
    },
    /// Wherever the router is that advertises itself on an interface.
    Interface(String),
}

impl PeerPlace {
    /// The interface that is named.
    #[must_use]
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Address { interface, .. } => interface.as_deref(),
            Self::Interface(interface) => Some(interface),
        }
    }
}

/// How far away a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Distance {
    /// On the same link.
    Direct,
    /// So many links away at most.
    Multihop(NonZeroU8),
    /// So many links away at most, and both ends send TTL 255 (GTSM).
    Gtsm(NonZeroU8),
}

impl Distance {
    /// Whether it is on the same link.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        match self {
            Self::Direct => true,
            Self::Multihop(links) | Self::Gtsm(links) => links.get() == 1,
        }
    }
}

/// How BFD watches a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BfdProfile {
    /// What peers name it by.
    pub name: String,
    /// Ours towards the peer.
    pub transmit: Duration,
    /// The peer's towards us.
    pub receive: Duration,
    /// Packets that may be missed, and one more.
    pub multiplier: NonZeroU8,
    /// Of packets that come over several links.
    pub minimum_ttl: NonZeroU8,
}

/// Some of the nodes: those that are named; all where none is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeSelection(pub BTreeSet<String>);

impl NodeSelection {
    /// Whether a node is one of them.
    #[must_use]
    pub fn contains(&self, node: &str) -> bool {
        self.0.is_empty() || self.0.contains(node)
    }
}
