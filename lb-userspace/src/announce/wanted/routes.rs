//! The routes that a BGP peer is to have.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    announce::bgp::{
        aggregate::{self, Eligibility},
        route::{Attributes, LinkBandwidth, Origin, Route},
        values::{Family, Prefix},
    },
    model::bgp::BgpPeer,
};

/// For VIPs that are announced, each with the number of its backends on this node.
pub(super) fn routes(peer: &BgpPeer, announced: &BTreeMap<IpAddr, usize>) -> BTreeMap<Prefix, Route> {
    // Whether other nodes can serve a VIP is not known here: each has a prefix of its own as well.
    let here = |vip: &IpAddr| (*vip, Eligibility { here: true, everywhere: false });
    let prefixes = aggregate::prefixes(&announced.keys().map(here).collect(), &peer.aggregates);
    let mut by_backends: BTreeMap<usize, Arc<Attributes>> = BTreeMap::new();
    let mut route = |prefix: Prefix| {
        let backends = match peer.link_bandwidth {
            None => 0,
            Some(_) => backends(prefix, announced, &peer.aggregates),
        };
        let attributes = by_backends.entry(backends).or_insert_with(|| Arc::new(attributes(peer, backends)));
        let next_hop = match prefix.family() {
            Family::Ipv4 => peer.next_hop_ipv4,
            Family::Ipv6 => peer.next_hop_ipv6,
        };
        (prefix, Route { prefix, next_hop, attributes: Arc::clone(attributes) })
    };
    prefixes.into_iter().map(&mut route).collect()
}

/// Backends behind a prefix.
fn backends(prefix: Prefix, announced: &BTreeMap<IpAddr, usize>, aggregates: &BTreeSet<Prefix>) -> usize {
    if !aggregates.contains(&prefix) {
        return announced.get(&prefix.address()).copied().unwrap_or_default();
    }
    announced.iter().filter(|(vip, _)| prefix.contains(**vip)).map(|(_, backends)| backends).sum()
}

fn attributes(peer: &BgpPeer, backends: usize) -> Attributes {
    #[expect(clippy::cast_precision_loss, reason = "shares need no more than 24 bits")]
    let unit = peer.link_bandwidth.map(|unit| unit as f32);
    let backends = u32::try_from(backends).unwrap_or(u32::MAX);
    Attributes {
        origin: Origin::Igp,
        local_preference: peer.local_preference,
        med: peer.med,
        communities: peer.communities.clone(),
        large_communities: peer.large_communities.clone(),
        link_bandwidth: unit.and_then(|unit| LinkBandwidth::new(backends, unit)),
    }
}
