use std::time::Duration;

use super::*;
use crate::{
    announce::{
        bgp::machine::{Mode, PeerAs},
        eligibility::{self, VipFacts},
    },
    model::{
        announce::{Prefix, Selection},
        bgp::{Bgp, Distance, NodeSelection, PeerPlace, StopMode},
    },
};

/// What is decided of a VIP with one backend.
const ANNOUNCED: Decision = Decision::Announce(eligibility::Attributes { backends: 1, is_going: false });
const NODES: [&str; 3] = ["a", "b", "c"];

fn group() -> VrrpGroup {
    VrrpGroup::new("core", "eth0", 10..=12)
}

fn announce(node: &str, always: Vec<Always>, vrrp: Vec<VrrpGroup>) -> Announce {
    Announce { node: node.to_owned(), nodes: NODES.map(str::to_owned).to_vec(), always, vrrp, ..Announce::default() }
}

fn vips() -> BTreeSet<IpAddr> {
    let v4 = (1..=12u8).map(|last| IpAddr::from([198, 51, 100, last]));
    v4.chain((1..=12u16).map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]))).collect()
}

fn facts() -> Facts {
    let vip = VipFacts { is_installed: true, has_backends: true, reachable: 1, ..VipFacts::default() };
    let addresses = ["192.0.2.1", "fe80::1"].map(|text| text.parse().unwrap()).to_vec();
    let interface = InterfaceFacts {
        index: 2,
        vlan: Some(0),
        is_running: true,
        attached: vec![2],
        addresses,
        ..InterfaceFacts::default()
    };
    Facts {
        vips: vips().into_iter().map(|address| (address, vip)).collect(),
        interfaces: [("eth0".to_owned(), interface)].into(),
        has_uplink: true,
        ..Facts::default()
    }
}

fn priorities(wanted: &Wanted) -> BTreeMap<(Family, u8), Option<u8>> {
    let priority = |router: &WantedRouter| router.settings.priority.map(Priority::get);
    wanted.routers.iter().map(|(key, router)| ((key.family, key.vrid.get()), priority(router))).collect()
}

#[test]
fn each_vip_is_of_one_router_and_each_router_has_another_first_node_in_turn() {
    let of = |node| wanted(&announce(node, Vec::new(), vec![group()]), &vips(), &facts());
    let all = NODES.map(of);
    for family in [Family::Ipv4, Family::Ipv6] {
        let routers = all[0].routers.iter().filter(|(key, _)| key.family == family);
        let carried: Vec<IpAddr> = routers.flat_map(|(_, router)| router.settings.vips.all().to_vec()).collect();
        let carried: Vec<&IpAddr> = carried.iter().filter(|vip| vips().contains(vip)).collect();
        assert_eq!(carried.len(), 12, "{family}: {carried:?}");
    }
    for key in all[0].routers.keys() {
        let mut found: Vec<u8> =
            all.iter().map(|wanted| wanted.routers[key].settings.priority.expect("eligible").get()).collect();
        found.sort_unstable();
        assert_eq!(found, [234, 244, 254], "{key:?}");
    }
}

#[test]
fn a_node_competes_less_for_what_it_can_hold_in_part_and_not_for_what_it_cannot() {
    let announce = announce("a", Vec::new(), vec![VrrpGroup { vrids: 10..=10, priority: Some(200), ..group() }]);
    let mut facts = facts();
    let all = wanted(&announce, &vips(), &facts);
    assert_eq!(priorities(&all), [((Family::Ipv4, 10), Some(200)), ((Family::Ipv6, 10), Some(200))].into());
    let first = |facts: &mut Facts, change: fn(&mut VipFacts)| change(facts.vips.values_mut().next().unwrap());
    first(&mut facts, |vip| vip.reachable = 0);
    let part = wanted(&announce, &vips(), &facts);
    assert_eq!(priorities(&part)[&(Family::Ipv4, 10)], Some(72));
    let withheld: Vec<IpAddr> = part.routers.values().flat_map(|router| router.withheld.iter().copied()).collect();
    assert_eq!(withheld, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
    let sharing: Vec<IpAddr> = vips().into_iter().filter(|vip| vip.is_ipv4() && *vip != withheld[0]).collect();
    assert_eq!(part.shared_fates.keys().copied().collect::<Vec<_>>(), sharing, "served beside one that is not");
    assert!(all.shared_fates.is_empty());
    // Nobody can hold it, so it takes nothing from this node.
    first(&mut facts, |vip| vip.has_backends = false);
    assert_eq!(priorities(&wanted(&announce, &vips(), &facts))[&(Family::Ipv4, 10)], Some(200));
    facts.vips.values_mut().for_each(|vip| vip.reachable = 0);
    assert_eq!(priorities(&wanted(&announce, &vips(), &facts))[&(Family::Ipv4, 10)], None);
    facts.interfaces.clear();
    let gone = wanted(&announce, &vips(), &facts);
    assert!(gone.segments.is_empty() && gone.routers.values().all(|router| router.settings.priority.is_none()));
}

#[test]
fn a_leaving_node_hands_over_what_it_serves() {
    let announce = announce("a", Vec::new(), vec![VrrpGroup { vrids: 10..=10, priority: Some(200), ..group() }]);
    let mut facts = facts();
    facts.vips.values_mut().next().unwrap().reachable = 0;
    let stays = wanted(&announce, &vips(), &facts);
    for leaving in [Leaving::HandsOver, Leaving::Left] {
        let leaves = wanted(&announce, &vips(), &Facts { leaving, ..facts.clone() });
        assert_eq!(priorities(&leaves), priorities(&stays), "{leaving:?}");
        for (key, router) in &leaves.routers {
            assert!(router.is_leaving && !stays.routers[key].is_leaving, "{leaving:?}, {key:?}");
            assert_eq!(router.withheld, stays.routers[key].withheld, "{leaving:?}, {key:?}");
        }
        let is_draining = |decision: &Decision| match decision {
            Decision::Announce(_) => false,
            Decision::Withhold(reasons) => reasons.contains(&Reason::Draining),
        };
        assert!(leaves.decisions.values().flatten().all(|(_, decision)| is_draining(decision)), "{leaving:?}");
    }
}

#[test]
fn only_nodes_that_are_named_take_part_and_are_ranked() {
    let some = NodeSelection(["b".to_owned(), "c".to_owned()].into());
    let always = Always { interface: "eth0".to_owned(), vips: Selection::default(), nodes: some.clone() };
    let group = VrrpGroup { nodes: some, ..group() };
    let of = |node| wanted(&announce(node, vec![always.clone()], vec![group.clone()]), &vips(), &facts());
    let [out, second, third] = NODES.map(of);
    assert!(out.routers.is_empty() && out.always.is_empty());
    // Its kernel may have a VIP on an interface, and would answer for it.
    assert_eq!(out.elsewhere.iter().map(|(_, vip)| *vip).collect::<BTreeSet<_>>(), vips());
    assert!(out.segments.contains_key("eth0") && second.elsewhere.is_empty());
    let excluded = Decision::Withhold([Reason::NodeExcluded].into());
    assert!(out.decisions.values().flatten().all(|(_, decision)| *decision == excluded));
    for key in second.routers.keys() {
        let mut found = [&second, &third].map(|wanted| wanted.routers[key].settings.priority.unwrap().get());
        found.sort_unstable();
        assert_eq!(found, [244, 254], "{key:?}");
    }
    assert_eq!(second.always.len(), 24);
}

#[test]
fn a_link_local_vip_that_is_configured_is_listed_first() {
    let configured = "fe80::77".parse().unwrap();
    let group = VrrpGroup { vrids: 10..=10, link_local: Some(configured), ..group() };
    let found = wanted(&announce("a", Vec::new(), vec![group]), &vips(), &facts());
    let first = |router: &WantedRouter| router.settings.vips.listed()[0];
    let expected = [IpAddr::from([198, 51, 100, 1]), configured.into()];
    assert_eq!(found.routers.values().map(first).collect::<Vec<_>>(), expected);
    assert!(found.routers.values().all(|router| router.settings.vips.all().len() <= 13), "in place of the usual one");
}

#[test]
fn a_router_whose_mac_is_refused_is_silent_and_its_vips_say_so() {
    let mut facts = facts();
    facts.vips.values_mut().next().unwrap().reachable = 0;
    let group = VrrpGroup { vrids: 10..=10, has_virtual_mac: true, ..group() };
    let mut found = wanted(&announce("a", Vec::new(), vec![group]), &vips(), &facts);
    let refused = found.virtual_macs().into_iter().filter(|(_, mac)| mac[4] == 1).collect();
    found.silence(&refused);
    assert_eq!(
        priorities(&found),
        [((Family::Ipv4, 10), None), ((Family::Ipv6, 10), Some(254))].into(),
        "the MAC of IPv4 has 01 there (RFC 9568, 7.3)"
    );
    for (vip, decisions) in &found.decisions {
        let mut expected = BTreeSet::new();
        if vip.is_ipv4() {
            expected.insert(Reason::MacRefused { interface: "eth0".to_owned() });
        }
        if *vip == IpAddr::from([198, 51, 100, 1]) {
            expected.insert(Reason::NoReachableBackend);
        }
        let expected = if expected.is_empty() { ANNOUNCED } else { Decision::Withhold(expected) };
        assert_eq!(decisions[0].1, expected, "{vip}");
    }
}

#[test]
fn what_a_virtual_router_cannot_carry_has_every_reason() {
    let mut facts = facts();
    facts.vips.values_mut().for_each(|vip| vip.reachable = 0);
    let v2 = VrrpGroup { version: VrrpVersion::V2, ..group() };
    let found = wanted(&announce("a", Vec::new(), vec![v2]), &vips(), &facts);
    let of_v6: Vec<&Decision> =
        found.decisions.iter().filter(|(vip, _)| vip.is_ipv6()).map(|(_, of)| &of[0].1).collect();
    let both = Decision::Withhold([Reason::NoReachableBackend, Reason::Version].into());
    assert!(of_v6.len() == 12 && of_v6.iter().all(|decision| **decision == both), "{of_v6:?}");
}

#[test]
fn version_2_has_no_ipv6_and_peers_are_of_their_family() {
    let peers = ["192.0.2.2", "fe80::2"].map(|text| text.parse().unwrap()).to_vec();
    let v2 = VrrpGroup { version: VrrpVersion::V2, peers: peers.clone(), ..group() };
    let found = wanted(&announce("a", Vec::new(), vec![v2]), &vips(), &facts());
    assert!(found.routers.keys().all(|key| key.family == Family::Ipv4) && !found.routers.is_empty());
    let of_v6 = found.decisions.iter().filter(|(vip, _)| vip.is_ipv6()).flat_map(|(_, means)| means);
    assert!(
        of_v6.clone().count() == 12 && of_v6.clone().all(|(_, d)| *d == Decision::Withhold([Reason::Version].into()))
    );
    let v3 = VrrpGroup { peers, ..group() };
    for (key, router) in &wanted(&announce("a", Vec::new(), vec![v3]), &vips(), &facts()).routers {
        let Peers::Unicast(peers) = &router.settings.peers else { panic!("{key:?} has no peers") };
        assert!(peers.len() == 1 && peers.iter().all(|peer| Family::of(*peer) == key.family), "{key:?}: {peers:?}");
    }
}

#[test]
fn what_is_always_held_is_held_where_it_may_and_each_decision_is_kept() {
    let prefix = Prefix::new("198.51.100.0".parse().unwrap(), 30).unwrap();
    let always =
        Always { interface: "eth0".to_owned(), vips: Selection(vec![prefix]), nodes: NodeSelection::default() };
    let mut facts = facts();
    facts.vips.values_mut().next().unwrap().reachable = 0;
    let found = wanted(&announce("a", vec![always], Vec::new()), &vips(), &facts);
    let held: Vec<(String, bool)> = found.always.iter().map(|((_, vip), holds)| (vip.to_string(), *holds)).collect();
    let expected = [("198.51.100.1", false), ("198.51.100.2", true), ("198.51.100.3", true)];
    assert_eq!(held, expected.map(|(vip, holds)| (vip.to_owned(), holds)));
    let not_selected = Decision::Withhold([Reason::NotSelected].into());
    assert_eq!(found.decisions.values().flatten().filter(|(_, decision)| *decision == not_selected).count(), 24 - 3);
    assert_eq!(found.segments.keys().collect::<Vec<_>>(), ["eth0"]);
}

fn peer(name: &str) -> BgpPeer {
    BgpPeer {
        name: name.to_owned(),
        at: PeerPlace::Address { address: "192.0.2.254".parse().unwrap(), interface: None },
        port: bgp::driver::BGP_PORT,
        peer_as: PeerAs::External,
        families: bgp::values::Family::ALL.into(),
        hold_time: bgp::values::HoldTime::DEFAULT,
        connect_time: Duration::from_secs(10),
        mode: Mode::DialAndAccept,
        password_file: None,
        distance: Distance::Direct,
        source: None,
        next_hop_ipv4: None,
        next_hop_ipv6: None,
        extended_next_hop: true,
        graceful_restart: None,
        bfd: None,
        bfd_strict: false,
        communities: BTreeSet::new(),
        large_communities: BTreeSet::new(),
        local_preference: 100,
        med: None,
        link_bandwidth: None,
        bandwidth_kind: bgp::route::BandwidthKind::NonTransitive,
        aggregates: BTreeSet::new(),
        vips: Selection::default(),
        nodes: NodeSelection::default(),
    }
}

fn told(peers: Vec<BgpPeer>, facts: &Facts) -> Wanted {
    let bgp = Bgp {
        local_as: bgp::values::AsNumber::new(64512).unwrap(),
        identifier: None,
        stop: StopMode::Ordered,
        shutdown_wait: Duration::ZERO,
        peers,
    };
    wanted(&Announce { bgp: Some(bgp), ..announce("a", Vec::new(), Vec::new()) }, &vips(), facts)
}

fn bgp_prefix(text: &str) -> bgp::values::Prefix {
    let (address, length) = text.split_once('/').unwrap();
    bgp::values::Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
}

#[test]
fn each_peer_has_routes_to_the_vips_that_are_for_it_and_can_be_served() {
    let mut facts = facts();
    facts.vips.values_mut().next().unwrap().reachable = 0;
    let model_prefix = Prefix::new("198.51.100.0".parse().unwrap(), 30).unwrap();
    let some = BgpPeer { vips: Selection(vec![model_prefix]), ..peer("some") };
    let ipv6 = BgpPeer { families: [bgp::values::Family::Ipv6].into(), ..peer("ipv6") };
    let elsewhere = BgpPeer { nodes: NodeSelection(["b".to_owned()].into()), ..peer("elsewhere") };
    let found = told(vec![peer("all"), some, ipv6, elsewhere], &facts);
    assert_eq!(found.routes["all"].len(), 23);
    let of_some: Vec<String> = found.routes["some"].keys().map(ToString::to_string).collect();
    assert_eq!(of_some, ["198.51.100.2/32", "198.51.100.3/32"]);
    assert!(found.routes["ipv6"].len() == 12 && found.routes["ipv6"].keys().all(|prefix| prefix.length() == 128));
    assert!(found.routes["elsewhere"].is_empty());
    let of_last = &found.decisions[&"198.51.100.12".parse::<IpAddr>().unwrap()];
    let decisions: Vec<&Decision> = of_last.iter().map(|(_, decision)| decision).collect();
    let against = |reason: Reason| Decision::Withhold([reason].into());
    let expected =
        [&ANNOUNCED, &against(Reason::NotSelected), &against(Reason::Family), &against(Reason::NodeExcluded)];
    assert_eq!(decisions, expected);
}

#[test]
fn an_aggregate_is_announced_with_the_vips_in_it_and_bandwidth_is_of_all_their_backends() {
    let mut facts = facts();
    facts.vips.values_mut().next().unwrap().reachable = 3;
    let aggregates = [bgp_prefix("198.51.100.0/28"), bgp_prefix("203.0.113.0/24")].into();
    let families = [bgp::values::Family::Ipv4].into();
    let tor = BgpPeer { aggregates, families, link_bandwidth: Some(1000), ..peer("tor") };
    let routes = &told(vec![tor], &facts).routes["tor"];
    assert_eq!(routes.len(), 12 + 1, "{:?}", routes.keys());
    let bandwidth = |text: &str| {
        let told = routes[&bgp_prefix(text)].attributes.link_bandwidth.unwrap();
        f32::from_bits(told.bits())
    };
    let told = ["198.51.100.0/28", "198.51.100.1/32", "198.51.100.2/32"].map(bandwidth);
    assert_eq!(told, [14_000.0, 3000.0, 1000.0]);
}

#[test]
fn a_virtual_mac_that_an_interface_does_not_take_keeps_its_router_silent() {
    let own_mac = group();
    let group = VrrpGroup { vrids: 10..=10, has_virtual_mac: true, ..own_mac.clone() };
    let mut found = wanted(&announce("a", Vec::new(), vec![group]), &vips(), &facts());
    let [v4, v6] = [1, 2].map(|family| (2, [0, 0, 0x5e, 0, family, 10]));
    assert_eq!(found.virtual_macs(), [v4, v6].into());
    found.silence(&[v6].into());
    assert_eq!(priorities(&found), [((Family::Ipv4, 10), Some(254)), ((Family::Ipv6, 10), None)].into());
    assert!(
        wanted(&announce("a", Vec::new(), vec![VrrpGroup { vrids: 10..=10, ..own_mac }]), &vips(), &facts())
            .virtual_macs()
            .is_empty()
    );
}
