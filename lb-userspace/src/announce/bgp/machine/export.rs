//! What a session has been sent, and what it is still to be sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use serde::Serialize;

use super::{
    super::{
        packet::{Announcement, Encoding, NextHop, end_of_rib, withdrawal},
        route::{Attributes, Community, Route},
        values::{Family, Prefix, is_link_local},
    },
    Endpoints, InterfaceAddresses, Negotiated,
};

/// Why a route is not announced on a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum NotAnnounced {
    /// There is no session.
    NoSession,
    /// One side does not speak its family.
    FamilyNotNegotiated,
    /// Its configured next hop is IPv6, and the peer takes none for IPv4 (RFC 8950).
    NextHopNeedsExtension,
    /// Its configured next hop is IPv4, which IPv6 prefixes cannot have.
    NextHopOfOtherFamily,
    /// Neither the session nor its interface has an address to send packets to.
    NoNextHop,
    /// The next hop would be the peer itself (RFC 4271, 5.1.3).
    NextHopIsPeer,
    /// An ordered stop has come so far.
    Stopping,
}

impl NotAnnounced {
    /// The name as the status of a VIP shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSession => "no_session",
            Self::FamilyNotNegotiated => "family_not_negotiated",
            Self::NextHopNeedsExtension => "next_hop_needs_extension",
            Self::NextHopOfOtherFamily => "next_hop_of_other_family",
            Self::NoNextHop => "no_next_hop",
            Self::NextHopIsPeer => "next_hop_is_peer",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Display for NotAnnounced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSession => "there is no session with this peer: `sluice status bgp` says why",
            Self::FamilyNotNegotiated => "this peer does not take its address family",
            Self::NextHopNeedsExtension => "this peer takes no IPv6 next hop for IPv4: configure nextHopIpv4 for it",
            Self::NextHopOfOtherFamily => "the configured next hop is IPv4: configure nextHopIpv6 for this peer",
            Self::NoNextHop => {
                "the session has no address of this family that packets could be sent to: configure a next hop"
            }
            Self::NextHopIsPeer => "the next hop would be the peer itself: configure another",
            Self::Stopping => "the session is being ended in order",
        })
    }
}

/// What shapes the announcement of a prefix: prefixes that share it share messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Export {
    family: Family,
    next_hop: NextHop,
    is_leaving: bool,
    attributes: Arc<Attributes>,
}

/// What a session brings to next hops.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a> {
    pub(super) endpoints: Endpoints,
    pub(super) interface: InterfaceAddresses,
    pub(super) negotiated: &'a Negotiated,
    pub(super) is_leaving: bool,
}

impl Site<'_> {
    pub(super) fn export(&self, route: &Route) -> Result<Export, NotAnnounced> {
        let family = route.prefix.family();
        if !self.negotiated.families.contains(&family) {
            return Err(NotAnnounced::FamilyNotNegotiated);
        }
        let next_hop = self.next_hop(family, route.next_hop)?;
        let leads_to_peer = match next_hop {
            NextHop::Ipv4(address) => self.endpoints.remote == address,
            NextHop::Ipv6(address, local) => [Some(address), local].contains(&match self.endpoints.remote {
                IpAddr::V6(remote) => Some(remote),
                IpAddr::V4(remote) => Some(remote.to_ipv6_mapped()),
            }),
        };
        //= rfc4271#5.1.3:peer MUST: a peer is never told to send packets to itself
        if leads_to_peer {
            return Err(NotAnnounced::NextHopIsPeer);
        }
        let Self { is_leaving, .. } = *self;
        Ok(Export { family, next_hop, is_leaving, attributes: Arc::clone(&route.attributes) })
    }

    /// Configured, else the session's local address, else its IPv6 address where RFC 8950 allows, else the interface's.
    fn next_hop(&self, family: Family, configured: Option<IpAddr>) -> Result<NextHop, NotAnnounced> {
        let extended = self.negotiated.extended_next_hop;
        let interface = self.interface;
        match (family, configured, self.endpoints.local) {
            (Family::Ipv4, Some(IpAddr::V4(address)), _) => Ok(NextHop::Ipv4(address)),
            (Family::Ipv4, Some(IpAddr::V6(address)), _) if extended => Ok(self.ipv6(address)),
            (Family::Ipv4, Some(IpAddr::V6(_)), _) => Err(NotAnnounced::NextHopNeedsExtension),
            (Family::Ipv6, Some(IpAddr::V6(address)), _) => Ok(self.ipv6(address)),
            (Family::Ipv6, Some(IpAddr::V4(_)), _) => Err(NotAnnounced::NextHopOfOtherFamily),
            (Family::Ipv4, None, IpAddr::V4(local)) => Ok(NextHop::Ipv4(local)),
            (Family::Ipv4, None, IpAddr::V6(local)) if extended => Ok(self.ipv6(local)),
            (Family::Ipv4, None, IpAddr::V6(_)) => interface.ipv4.map(NextHop::Ipv4).ok_or(NotAnnounced::NoNextHop),
            (Family::Ipv6, None, IpAddr::V6(local)) => Ok(self.ipv6(local)),
            (Family::Ipv6, None, IpAddr::V4(_)) => {
                interface.ipv6.map(|address| NextHop::Ipv6(address, None)).ok_or(NotAnnounced::NoNextHop)
            }
        }
    }

    /// On a link-local session the link-local address goes with the global one. Where there is no global one it stands in
    /// both places, which peers take for none.
    fn ipv6(&self, address: Ipv6Addr) -> NextHop {
        let link_local = match self.endpoints.local {
            IpAddr::V6(local) if is_link_local(local) => local,
            //= rfc2545#3:global MUST: without a common link the next hop has 16 octets
            IpAddr::V6(_) | IpAddr::V4(_) => return NextHop::Ipv6(address, None),
        };
        //= rfc2545#3:link-local MUST: on a link-local session the next hop is a global address and the link-local one
        let global = if is_link_local(address) { self.interface.ipv6.unwrap_or(address) } else { address };
        NextHop::Ipv6(global, Some(link_local))
    }
}

/// What is to be sent yet. A prefix is in one place at most.
#[derive(Debug, Default)]
struct Pending {
    withdrawals: BTreeSet<Prefix>,
    announcements: BTreeMap<Export, BTreeSet<Prefix>>,
    announced_as: BTreeMap<Prefix, Export>,
}

impl Pending {
    fn forget(&mut self, prefix: Prefix) {
        self.withdrawals.remove(&prefix);
        let Some(export) = self.announced_as.remove(&prefix) else { return };
        if let Some(group) = self.announcements.get_mut(&export) {
            group.remove(&prefix);
            if group.is_empty() {
                self.announcements.remove(&export);
            }
        }
    }

    fn announce(&mut self, prefix: Prefix, export: Export) {
        self.announcements.entry(export.clone()).or_default().insert(prefix);
        self.announced_as.insert(prefix, export);
    }

    fn is_empty(&self) -> bool {
        self.withdrawals.is_empty() && self.announcements.is_empty()
    }
}

/// The routes of one session, going out.
#[derive(Debug, Default)]
pub(super) struct RibOut {
    sent: BTreeMap<Prefix, Export>,
    pending: Pending,
    ended: BTreeSet<Family>,
}

impl RibOut {
    /// From here on a prefix is to be there like this, or not at all.
    pub(super) fn want(&mut self, prefix: Prefix, export: Option<Export>) {
        self.pending.forget(prefix);
        match (self.sent.get(&prefix), export) {
            (Some(sent), Some(export)) if *sent == export => {}
            (_, Some(export)) => self.pending.announce(prefix, export),
            (Some(_), None) => {
                self.pending.withdrawals.insert(prefix);
            }
            (None, None) => {}
        }
    }

    /// Sends again what the peer has of a family.
    pub(super) fn refresh(&mut self, family: Family) {
        let sent = self.sent.iter().filter(|(prefix, _)| prefix.family() == family);
        for (prefix, export) in sent {
            if !self.pending.withdrawals.contains(prefix) && !self.pending.announced_as.contains_key(prefix) {
                self.pending.announce(*prefix, export.clone());
            }
        }
    }

    /// The next message: withdrawals first. `ends` is None until nothing is to come before End-of-RIB.
    pub(super) fn next_message(&mut self, encoding: Encoding, ends: Option<&BTreeSet<Family>>) -> Option<Outgoing> {
        let withdrawn = self.next_withdrawal();
        if let Some(octets) = withdrawn.or_else(|| self.next_announcement(encoding)) {
            return Some(Outgoing::Update(octets));
        }
        //= rfc4724#2:end MUST: End-of-RIB follows the first routes of each family, also where there are none
        let family = *ends?.iter().find(|family| !self.ended.contains(*family))?;
        self.ended.insert(family);
        Some(Outgoing::EndOfRib(family, end_of_rib(family)))
    }

    fn next_withdrawal(&mut self) -> Option<Vec<u8>> {
        let family = self.pending.withdrawals.first()?.family();
        let (octets, count) = withdrawal(family, &self.pending.withdrawals)?;
        for _ in 0..count {
            if let Some(prefix) = self.pending.withdrawals.pop_first() {
                self.sent.remove(&prefix);
            }
        }
        Some(octets)
    }

    fn next_announcement(&mut self, encoding: Encoding) -> Option<Vec<u8>> {
        let (export, mut prefixes) = self.pending.announcements.pop_first()?;
        let Export { family, next_hop, is_leaving, ref attributes } = export;
        let announcement = if is_leaving {
            let mut leaving = Attributes::clone(attributes);
            //= rfc8326#4.2:community MUST: all routes are marked before a session is shut down
            leaving.communities.insert(Community::GRACEFUL_SHUTDOWN);
            Announcement::new(family, &leaving, next_hop, encoding)
        } else {
            Announcement::new(family, attributes, next_hop, encoding)
        };
        let (octets, count) = announcement.message(&prefixes)?;
        for _ in 0..count {
            if let Some(prefix) = prefixes.pop_first() {
                self.pending.announced_as.remove(&prefix);
                self.sent.insert(prefix, export.clone());
            }
        }
        if !prefixes.is_empty() {
            self.pending.announcements.insert(export, prefixes);
        }
        Some(octets)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn sent(&self) -> impl Iterator<Item = Prefix> {
        self.sent.keys().copied()
    }
}

/// A message that is ready.
#[derive(Debug)]
pub(super) enum Outgoing {
    Update(Vec<u8>),
    EndOfRib(Family, Vec<u8>),
}
