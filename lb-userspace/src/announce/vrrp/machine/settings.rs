//! What a virtual router is told.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use super::super::{Family, Interval, Priority, Version, Vrid};

/// VIPs of one virtual router. Each is announced several times at a hand-over, which takes seconds for this many.
pub const VIPS_MAX: usize = 16_384;
/// Unicast peers of one virtual router: each gets a copy of each advertisement, and a cluster's workers on one segment
/// are fewer.
pub const UNICAST_PEERS_MAX: usize = 64;

/// The VIPs of a virtual router in the order that all routers list them in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vips {
    family: Family,
    addresses: Vec<IpAddr>,
}

/// Why addresses are no VIPs of a virtual router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVips {
    /// None.
    #[error("virtual router {0} has no VIP, give it one or remove it")]
    Empty(Vrid),
    /// Too many.
    #[error("virtual router {0} has {1} VIPs, spread all but 16384 over further VRIDs")]
    TooMany(Vrid, usize),
    /// Of the other family.
    #[error("{1} is of another family than virtual router {0}, use a virtual router for each family")]
    Family(Vrid, IpAddr),
}

impl Vips {
    /// In whatever order, each once. An IPv6 virtual router that is given no link-local VIP gets
    /// [`Vrid::link_local`].
    ///
    /// # Errors
    /// None, more than [`VIPS_MAX`], or one of the other family.
    //= rfc9568#5.2.9:link-local MUST: the first IPv6 address listed is a link-local one of the virtual router
    pub fn new(vrid: Vrid, family: Family, addresses: impl IntoIterator<Item = IpAddr>) -> Result<Self, InvalidVips> {
        let mut set: BTreeSet<IpAddr> = addresses.into_iter().collect();
        if set.is_empty() {
            return Err(InvalidVips::Empty(vrid));
        }
        if set.len() > VIPS_MAX {
            return Err(InvalidVips::TooMany(vrid, set.len()));
        }
        if let Some(other) = set.iter().find(|address| Family::of(**address) != family) {
            return Err(InvalidVips::Family(vrid, *other));
        }
        let first = match family {
            Family::Ipv4 => None,
            Family::Ipv6 => Some(set.iter().copied().find(is_link_local).unwrap_or_else(|| vrid.link_local().into())),
        };
        if let Some(first) = &first {
            set.remove(first);
        }
        Ok(Self { family, addresses: first.into_iter().chain(set).collect() })
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Those that advertisements list. The others are carried all the same.
    #[must_use]
    pub fn listed(&self) -> &[IpAddr] {
        &self.addresses[..self.addresses.len().min(self.family.listed_max())]
    }

    /// Whether an address is one of them.
    #[must_use]
    pub fn carries(&self, address: &IpAddr) -> bool {
        // All but the first are in order.
        let rest = self.addresses.get(1..).unwrap_or_default();
        self.addresses.first() == Some(address) || rest.binary_search(address).is_ok()
    }

    /// Of all of them.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }
}

/// Whether an address is an IPv6 link-local one.
pub(super) fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Where advertisements go and may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// The family's group, and anybody on the segment.
    Group,
    /// These alone.
    Unicast(BTreeSet<IpAddr>),
}

/// Whether a router takes over from a living one of lower priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemption {
    /// Never.
    Off,
    /// So long after the first advertisement that was heard of the lower one; without delay when its own timer ends.
    After(Duration),
}

/// A virtual router's configuration, and how things stand at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its number on the interface and within the family.
    pub vrid: Vrid,
    /// Between its advertisements; names the version too.
    pub interval: Interval,
    /// `None`: not eligible.
    pub priority: Option<Priority>,
    /// Whether it preempts.
    pub preemption: Preemption,
    /// It takes nothing over for so long after its start, and after the interface came up.
    pub start_delay: Duration,
    /// The interface's primary IPv4 address, or its IPv6 link-local one. `None` while there is none (or it is
    /// tentative).
    pub address: Option<IpAddr>,
    /// What it is about.
    pub vips: Vips,
    /// Whom it talks to.
    pub peers: Peers,
    /// Whether VIPs are answered with the virtual MAC, else with the interface's own.
    pub has_virtual_mac: bool,
    /// Time between gratuitous announcements of an active; `None` for never, else [`REFRESH`] unless told otherwise.
    pub refresh: Option<Duration>,
}

/// Between gratuitous announcements of an active: a router that steps down in silence leaves caches wrong for so long
/// at most.
pub const REFRESH: Duration = Duration::from_secs(60);

/// Why settings make no virtual router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// Version 2.
    #[error("virtual router {0} has IPv6 VIPs and version 2, use version 3")]
    Version2(Vrid),
    /// The primary address.
    #[error("{1} cannot be the source of virtual router {0}: give an address of its family, for IPv6 a link-local one")]
    Address(Vrid, IpAddr),
    /// A peer.
    #[error("peer {1} of virtual router {0} is of the other family, use a virtual router for each family")]
    PeerFamily(Vrid, IpAddr),
    /// Peers.
    #[error("virtual router {0} has {1} unicast peers, list 1 to 64 or use the group")]
    PeerCount(Vrid, usize),
    /// Refresh of zero.
    #[error("virtual router {0} would refresh without pause, choose a second or more, or none")]
    Refresh(Vrid),
    /// VIPs.
    #[error("virtual router {0} cannot change its family, make another")]
    Family(Vrid),
}

/// Least time between refreshes: each sends two packets for each VIP.
pub const REFRESH_MIN: Duration = Duration::from_secs(1);

impl Settings {
    /// # Errors
    /// What does not fit together.
    pub(super) fn check(&self) -> Result<(), InvalidSettings> {
        let family = self.vips.family();
        if (self.interval.version(), family) == (Version::V2, Family::Ipv6) {
            return Err(InvalidSettings::Version2(self.vrid));
        }
        self.check_address(self.address)?;
        if let Peers::Unicast(peers) = &self.peers {
            if peers.is_empty() || peers.len() > UNICAST_PEERS_MAX {
                return Err(InvalidSettings::PeerCount(self.vrid, peers.len()));
            }
            if let Some(other) = peers.iter().find(|peer| Family::of(**peer) != family) {
                return Err(InvalidSettings::PeerFamily(self.vrid, *other));
            }
        }
        if self.refresh.is_some_and(|refresh| refresh < REFRESH_MIN) {
            return Err(InvalidSettings::Refresh(self.vrid));
        }
        Ok(())
    }

    //= rfc9568#7.2:source MUST: the source is the interface's primary IPv4 or its link-local IPv6 address
    //= rfc3768#7.2:source MUST: the source is the interface's primary address
    pub(super) fn check_address(&self, address: Option<IpAddr>) -> Result<(), InvalidSettings> {
        let family = self.vips.family();
        let fits =
            |address: &IpAddr| Family::of(*address) == family && (family == Family::Ipv4 || is_link_local(address));
        match address {
            Some(address) if !fits(&address) => Err(InvalidSettings::Address(self.vrid, address)),
            Some(_) | None => Ok(()),
        }
    }
}
