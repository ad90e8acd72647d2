//! What is to be announced: from the configuration and what is known of this node. Pure.

mod routes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    bgp::{self, route::Route, values::Prefix},
    eligibility::{Decision, Facts, InterfaceFacts, Leaving, Means, Reason, Scope, decide},
    vrrp::{
        Family, Interval, Priority, Version, Vrid,
        machine::{Peers, Preemption, Settings, VIPS_MAX, Vips},
        spread::{self, Eligibility},
    },
    warnings::SharedFates,
};
use crate::{
    model::{
        announce::{Always, Announce, VrrpGroup, VrrpVersion},
        bgp::BgpPeer,
    },
    net::{InterfaceIndex, links::Mac},
};

/// Everything that this node announces, or would if it could.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Interfaces on which anything is announced, by name.
    pub segments: BTreeMap<String, Segment>,
    /// Interface and VIP, and whether this node answers, without any election.
    pub always: BTreeMap<(String, IpAddr), bool>,
    /// Interface and VIP that other nodes alone answer for: this host may have it on an interface, and is not asked.
    pub elsewhere: BTreeSet<(String, IpAddr)>,
    /// Virtual routers.
    pub routers: BTreeMap<RouterKey, WantedRouter>,
    /// What each BGP peer is to have, by its name.
    pub routes: BTreeMap<String, BTreeMap<Prefix, Route>>,
    /// For each VIP, what was decided of each means.
    pub decisions: BTreeMap<IpAddr, Vec<(Means, Decision)>>,
    /// VIPs that this node serves, whose virtual routers have others that it cannot serve.
    pub shared_fates: SharedFates,
}

/// An interface as the driver needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What frames are sent by.
    pub index: InterfaceIndex,
    /// Its MAC.
    pub mac: Mac,
    /// Where questions come in.
    pub attached: Vec<InterfaceIndex>,
    /// The VLAN of their frames there; 0: none.
    pub vlan: u16,
    /// It can carry packets.
    pub is_running: bool,
}

/// A virtual router on this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouterKey {
    /// Its interface.
    pub interface: String,
    /// Its family.
    pub family: Family,
    /// Its number.
    pub vrid: Vrid,
}

/// How a virtual router is to be.
#[derive(Clone, Debug)]
pub struct WantedRouter {
    /// The group that it is of.
    pub group: String,
    /// Its settings, with the priority that this node has now.
    pub settings: Settings,
    /// Of its VIPs, those that this node cannot serve: not answered for even where the router is active.
    pub withheld: BTreeSet<IpAddr>,
    /// It hands over to others, and serves what it can until one has taken it.
    pub is_leaving: bool,
}

/// What follows from the configuration for these VIPs, each once.
#[must_use]
pub fn wanted(announce: &Announce, vips: &BTreeSet<IpAddr>, facts: &Facts) -> Wanted {
    let mut wanted = Wanted::default();
    for always in &announce.always {
        wanted.hold(&announce.node, always, vips, facts);
    }
    for group in &announce.vrrp {
        for family in [Family::Ipv4, Family::Ipv6] {
            wanted.elect(announce, group, family, vips, facts);
        }
    }
    for peer in announce.bgp.iter().flat_map(|bgp| &bgp.peers) {
        wanted.tell(&announce.node, peer, vips, facts);
    }
    let interfaces = wanted.always.keys().map(|(interface, _)| interface);
    let interfaces = interfaces.chain(wanted.elsewhere.iter().map(|(interface, _)| interface));
    let interfaces: BTreeSet<&String> = interfaces.chain(wanted.routers.keys().map(|key| &key.interface)).collect();
    let segment = |name: &String| facts.interfaces.get(name).map(|facts| (name.clone(), Segment::of(facts)));
    wanted.segments = interfaces.into_iter().filter_map(segment).collect();
    wanted
}

impl Segment {
    fn of(facts: &InterfaceFacts) -> Self {
        let InterfaceFacts { index, mac, is_running, attached, vlan, .. } = facts;
        // Nothing is announced where it is not known.
        let vlan = vlan.unwrap_or_default();
        Self { index: *index, mac: *mac, attached: attached.clone(), vlan, is_running: *is_running }
    }
}

impl Wanted {
    /// The MACs of virtual routers, and the interfaces that must take frames to them.
    #[must_use]
    pub fn virtual_macs(&self) -> BTreeSet<(InterfaceIndex, Mac)> {
        self.routers.iter().filter_map(|(key, router)| self.virtual_mac(key, router)).collect()
    }

    fn virtual_mac(&self, key: &RouterKey, router: &WantedRouter) -> Option<(InterfaceIndex, Mac)> {
        let segment = self.segments.get(&key.interface).filter(|_| router.settings.has_virtual_mac)?;
        Some((segment.index, key.vrid.mac(key.family)))
    }

    /// Has routers take no part whose MACs the interfaces do not take: what is sent to them would be lost.
    pub fn silence(&mut self, refused: &BTreeSet<(InterfaceIndex, Mac)>) {
        let is_refused = |(key, router): &(&RouterKey, &WantedRouter)| {
            self.virtual_mac(key, router).is_some_and(|mac| refused.contains(&mac))
        };
        let silent: Vec<RouterKey> = self.routers.iter().filter(is_refused).map(|(key, _)| key.clone()).collect();
        for key in silent {
            let Some(router) = self.routers.get_mut(&key) else { continue };
            router.settings.priority = None;
            for vip in router.settings.vips.all() {
                for (means, decision) in self.decisions.get_mut(vip).into_iter().flatten() {
                    if means.is_of(&key) {
                        decision.add(Reason::MacRefused { interface: key.interface.clone() });
                    }
                }
            }
        }
    }

    fn hold(&mut self, node: &str, always: &Always, vips: &BTreeSet<IpAddr>, facts: &Facts) {
        for vip in vips {
            let (has_vip, has_node) = (always.vips.contains(*vip), always.nodes.contains(node));
            let scope = Scope { has_vip, has_node, ..Scope::ALL };
            let decision = self.decide(*vip, Means::Always { interface: always.interface.clone() }, scope, facts);
            if has_vip && has_node {
                let holds = self.always.entry((always.interface.clone(), *vip)).or_default();
                *holds |= matches!(decision, Decision::Announce(_));
            } else if has_vip {
                self.elsewhere.insert((always.interface.clone(), *vip));
            }
        }
    }

    /// What a BGP peer is told.
    fn tell(&mut self, node: &str, peer: &BgpPeer, vips: &BTreeSet<IpAddr>, facts: &Facts) {
        let means = Means::Bgp { peer: peer.name.clone(), interface: peer.at.interface().map(str::to_owned) };
        let has_node = peer.nodes.contains(node);
        let mut announced = BTreeMap::new();
        for vip in vips {
            let has_family = peer.families.contains(&bgp::values::Family::of(*vip));
            let scope = Scope { has_vip: peer.vips.contains(*vip), has_family, has_node };
            if let Decision::Announce(attributes) = self.decide(*vip, means.clone(), scope, facts) {
                announced.insert(*vip, attributes.backends);
            }
        }
        self.routes.insert(peer.name.clone(), routes::routes(peer, &announced));
    }

    fn decide(&mut self, vip: IpAddr, means: Means, scope: Scope, facts: &Facts) -> Decision {
        let decision = decide(facts, vip, &means, scope);
        self.decisions.entry(vip).or_default().push((means, decision.clone()));
        decision
    }

    /// The virtual routers of a group and family.
    fn elect(
        &mut self,
        announce: &Announce,
        group: &VrrpGroup,
        family: Family,
        vips: &BTreeSet<IpAddr>,
        facts: &Facts,
    ) {
        let vrids: Vec<Vrid> = group.vrids.clone().filter_map(|vrid| Vrid::new(u16::from(vrid)).ok()).collect();
        let means = |vrid| {
            let (interface, track) = (group.interface.clone(), group.track.clone());
            Means::Vrrp { group: group.name.clone(), interface, vrid, track }
        };
        let has_node = group.nodes.contains(&announce.node);
        let mut shares: BTreeMap<Vrid, Vec<IpAddr>> = BTreeMap::new();
        for vip in vips.iter().filter(|vip| Family::of(**vip) == family) {
            let Some(vrid) = spread::vrid(*vip, &vrids) else { continue };
            if group.vips.contains(*vip) && has_node {
                shares.entry(vrid).or_default().push(*vip);
            } else {
                let scope = Scope { has_vip: group.vips.contains(*vip), has_node, ..Scope::ALL };
                self.decide(*vip, means(vrid), scope, facts);
                if scope.has_vip {
                    self.elsewhere.insert((group.interface.clone(), *vip));
                }
            }
        }
        let link_local = group.link_local.is_some() && family == Family::Ipv6;
        let no_family = group.version == VrrpVersion::V2 && family == Family::Ipv6;
        let nodes: Vec<&str> =
            announce.nodes.iter().map(String::as_str).filter(|node| group.nodes.contains(node)).collect();
        for (vrid, share) in shares {
            let means = means(vrid);
            let refused = if no_family {
                Some(Reason::Version)
            } else {
                (share.len() + usize::from(link_local) > VIPS_MAX).then_some(Reason::TooManyVips)
            };
            if let Some(reason) = refused {
                for vip in share {
                    let mut decision = decide(facts, vip, &means, Scope::ALL);
                    decision.add(reason.clone());
                    self.decisions.entry(vip).or_default().push((means.clone(), decision));
                }
                continue;
            }
            let (mut held, mut withheld, mut is_split) = (Vec::new(), BTreeSet::new(), false);
            for vip in &share {
                let has_backends = facts.vips.get(vip).is_some_and(|vip| vip.has_backends);
                // What a node hands over it serves until then.
                let holds = match self.decide(*vip, means.clone(), Scope::ALL, facts) {
                    Decision::Announce(_) => true,
                    Decision::Withhold(reasons) => {
                        is_split |= reasons == [Reason::NoReachableBackend].into();
                        reasons.iter().all(|reason| *reason == Reason::Draining)
                    }
                };
                if !holds {
                    withheld.insert(*vip);
                }
                held.push((has_backends, holds));
            }
            // Nobody can hold a VIP without any backend, and so it says nothing of this node.
            let counted = || held.iter().filter(|(has_backends, _)| *has_backends);
            let eligibility = match (counted().count(), counted().filter(|(_, holds)| *holds).count()) {
                (_, 0) => Eligibility::None,
                (all, some) if some < all => Eligibility::Partial,
                _ => Eligibility::Full,
            };
            if eligibility == Eligibility::Partial && is_split {
                for vip in share.iter().filter(|vip| !withheld.contains(*vip)) {
                    self.shared_fates.entry(*vip).or_default().insert((group.name.clone(), vrid));
                }
            }
            let rank = spread::rank(&announce.node, vrid, &nodes).unwrap_or(nodes.len());
            let address = facts.interfaces.get(&group.interface).and_then(|facts| facts.source(share[0]));
            if let Some(settings) = settings(group, vrid, family, share, address, priority(group, rank, eligibility)) {
                let key = RouterKey { interface: group.interface.clone(), family, vrid };
                let (group, is_leaving) = (group.name.clone(), facts.leaving != Leaving::Stays);
                self.routers.insert(key, WantedRouter { group, settings, withheld, is_leaving });
            }
        }
    }
}

/// A node's priority: configured, or by rank.
fn priority(group: &VrrpGroup, rank: usize, eligibility: Eligibility) -> Option<Priority> {
    match group.priority {
        None => spread::priority(rank, eligibility),
        Some(_) if eligibility == Eligibility::None => None,
        // As much less as for a rank, and no less than the lowest.
        Some(priority) if eligibility == Eligibility::Partial => {
            Priority::new(u16::from(priority).saturating_sub(spread::PARTIAL_PENALTY).max(1)).ok()
        }
        Some(priority) => Priority::new(u16::from(priority)).ok(),
    }
}

/// `None` where the group's version has no such family.
fn settings(
    group: &VrrpGroup,
    vrid: Vrid,
    family: Family,
    vips: Vec<IpAddr>,
    address: Option<IpAddr>,
    priority: Option<Priority>,
) -> Option<Settings> {
    let version = match group.version {
        VrrpVersion::V2 if family == Family::Ipv6 => return None,
        VrrpVersion::V2 => Version::V2,
        VrrpVersion::V3 => Version::V3,
    };
    let link_local = group.link_local.map(IpAddr::V6).filter(|_| family == Family::Ipv6);
    let peers: BTreeSet<IpAddr> = group.peers.iter().copied().filter(|peer| Family::of(*peer) == family).collect();
    Some(Settings {
        vrid,
        interval: Interval::new(version, group.interval).ok()?,
        priority,
        preemption: if group.preempt { Preemption::After(group.preempt_delay) } else { Preemption::Off },
        start_delay: group.start_delay,
        address,
        vips: Vips::new(vrid, family, vips.into_iter().chain(link_local)).ok()?,
        peers: if peers.is_empty() { Peers::Group } else { Peers::Unicast(peers) },
        has_virtual_mac: group.has_virtual_mac,
        refresh: (!group.refresh.is_zero()).then_some(group.refresh),
    })
}

#[cfg(test)]
mod tests;
