use proptest::prelude::*;

use super::netlink::{Description, parse};
use crate::{
    model::{Uplink, XdpModeChoice},
    net::links::Link,
    preflight::{
        Check,
        resolve::{PLACES_MAX, Resolution, carrier, resolve},
    },
};

fn uplink(interface: &str) -> Uplink {
    Uplink { interface: interface.to_owned(), mode: XdpModeChoice::Auto }
}

fn links(descriptions: &[Description]) -> Vec<Link> {
    descriptions.iter().map(Description::parse).collect()
}

fn resolved(uplinks: &[&str], descriptions: &[Description]) -> Resolution {
    let uplinks: Vec<Uplink> = uplinks.iter().map(|name| uplink(name)).collect();
    resolve(&uplinks, &links(descriptions))
}

/// `expected`: each place with its exits, by name.
#[track_caller]
fn check(uplinks: &[&str], descriptions: &[Description], expected: &[(&str, &[&str])]) {
    let all = links(descriptions);
    let name = |index: u32| all.iter().find(|link| link.index == index).map_or("?", |link| link.name.as_str());
    let resolution = resolved(uplinks, descriptions);
    assert_eq!(resolution.refused, []);
    let places: Vec<(&str, Vec<&str>)> = resolution
        .places
        .iter()
        .map(|place| (name(place.index), place.exits.iter().map(|exit| name(*exit)).collect()))
        .collect();
    let expected: Vec<(&str, Vec<&str>)> = expected.iter().map(|(place, exits)| (*place, exits.to_vec())).collect();
    assert_eq!(places, expected);
}

#[track_caller]
fn check_refused(uplinks: &[&str], descriptions: &[Description], expected: Check, words: &str) {
    let refused = resolved(uplinks, descriptions).refused;
    assert_eq!(refused.iter().map(|finding| finding.id).collect::<Vec<_>>(), [expected], "{refused:?}");
    assert!(refused[0].to_string().contains(words), "{}", refused[0]);
}

fn eth(index: u32) -> Description {
    Description::new(index, &format!("eth{index}"))
}

fn bond(index: u32, active: Option<u32>) -> Description {
    Description::new(index, "bond0").bond(1, active)
}

#[test]
fn a_card_is_attached_to_itself() {
    check(&["eth2"], &[eth(1), eth(2)], &[("eth2", &["eth2"])]);
}

#[test]
fn a_bond_is_attached_at_its_members_with_the_active_one_first() {
    let members = [eth(1).bond_member(9), eth(2).bond_member(9), eth(3), bond(9, Some(2))];
    check(&["bond0"], &members, &[("eth2", &["bond0"]), ("eth1", &["bond0"])]);
    let down = [eth(1).down().bond_member(9), eth(2).bond_member(9), bond(9, None)];
    check(&["bond0"], &down, &[("eth2", &["bond0"]), ("eth1", &["bond0"])]);
}

#[test]
fn a_member_that_joins_is_attached_and_one_that_leaves_is_not() {
    let before = [eth(1).bond_member(9), eth(2), bond(9, None)];
    check(&["bond0"], &before, &[("eth1", &["bond0"])]);
    let after = [eth(1), eth(2).bond_member(9), bond(9, None)];
    check(&["bond0"], &after, &[("eth2", &["bond0"])]);
    check(&["bond0"], &[eth(1), bond(9, None)], &[]);
}

#[test]
fn a_vlan_is_attached_at_its_parent() {
    let vlan = Description::new(5, "eth1.10").vlan(1, 10);
    check(&["eth1.10"], &[eth(1), vlan], &[("eth1", &["eth1.10"])]);
}

#[test]
fn a_vlan_in_a_vlan_on_a_bond_is_attached_at_the_members() {
    let outer = Description::new(10, "outer").vlan(9, 100);
    let inner = Description::new(11, "inner").vlan(10, 7);
    let all = [eth(1).bond_member(9), eth(2).bond_member(9), bond(9, None), outer, inner];
    check(&["inner"], &all, &[("eth1", &["inner"]), ("eth2", &["inner"])]);
}

#[test]
fn frames_have_the_tag_of_their_vlan_and_go_by_the_active_member_beneath() {
    let vlan = Description::new(10, "vlan").vlan(9, 100);
    let inner = Description::new(11, "inner").vlan(10, 7);
    let plain = Description::new(12, "plain").vlan(3, 8);
    let lost = Description::new(13, "lost").vlan(99, 8);
    let tagged = Description::new(14, "tagged").vlan(3, 9).bond_member(15);
    let over = Description::new(15, "over").bond(1, None);
    let members = [eth(1).bond_member(9), eth(2).bond_member(9), eth(3), bond(9, Some(2))];
    let all = links(&[&members[..], &[vlan, inner, plain, lost, tagged, over]].concat());
    let of = |name: &str| {
        let link = all.iter().find(|link| link.name == name).unwrap();
        carrier(link, &all).map(|(tag, bond)| (tag, bond.and_then(|bond| bond.active)))
    };
    assert_eq!(of("eth3"), Some((0, None)));
    assert_eq!(of("bond0"), Some((0, Some(2))));
    assert_eq!(of("vlan"), Some((100, Some(2))));
    assert_eq!(of("plain"), Some((8, None)));
    assert_eq!(["inner", "lost", "over"].map(of), [None; 3]);
}

#[test]
fn two_vlans_of_one_parent_are_one_place_with_two_exits() {
    let vlans = [Description::new(5, "a").vlan(1, 10), Description::new(6, "b").vlan(1, 20)];
    let all = [&[eth(1)][..], &vlans].concat();
    check(&["a", "b"], &all, &[("eth1", &["a", "b"])]);
    let uplinks = [uplink("a"), Uplink { mode: XdpModeChoice::Generic, ..uplink("b") }];
    let refused = resolve(&uplinks, &links(&all)).refused;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].id, Check::UplinkModes);
    assert!(refused[0].found.contains("uplink b asks for mode generic on eth1, and another uplink for auto"));
}

#[test]
fn kinds_that_carry_no_frames_from_outside_are_refused_with_the_reason() {
    let of = |description: Description, words: &str| check_refused(&["x"], &[description], Check::UplinkKind, words);
    let x = || Description::new(4, "x");
    of(x().loopback(), "x is the loopback interface");
    of(x().kind("bridge", &[]), "x is a bridge, whose ports take frames before");
    of(x().kind("vrf", &[8, 0, 1, 0, 10, 0, 0, 0]), "x is a VRF");
    of(x().kind("team", &[]), "make it a bond");
    of(
        x().link(1).kind("macvlan", &[]),
        "x is of kind macvlan: it shares the frames of another interface; name that one",
    );
    of(x().link(1).kind("ipvlan", &[]), "x is of kind ipvlan");
    of(x().layer(778).kind("gre", &[]), "x is of kind gre: it is a tunnel");
    of(x().kind("dummy", &[]), "carries nothing from outside");
    of(x().layer(512), "x carries no Ethernet frames");
}

#[test]
fn parts_of_something_are_refused_with_what_to_name_instead() {
    let of = |master: Description, kind: &str, check: Check, words: &str| {
        // A bridge's ports have a state of one byte (IFLA_BRPORT_STATE), a VRF's a table of four.
        let length = if kind == "bridge" { 5 } else { 8 };
        check_refused(&["eth1"], &[eth(1).part_of(9, kind, &[length, 0, 1, 0, 3, 0, 0, 0]), master], check, words);
    };
    let master = |name: &str| Description::new(9, name);
    of(master("br0").kind("bridge", &[]), "bridge", Check::UplinkBridgePort, "eth1 is a port of br0");
    of(master("ovs-system").kind("openvswitch", &[]), "openvswitch", Check::UplinkBridgePort, "a port of ovs-system");
    of(master("blue").kind("vrf", &[8, 0, 1, 0, 10, 0, 0, 0]), "vrf", Check::UplinkVrf, "in the VRF blue");
    let bonded = [eth(1).bond_member(9), bond(9, None)];
    check_refused(&["eth1"], &bonded, Check::UplinkMember, "name bond0: the agent attaches to its members");
    of(master("team0").kind("team", &[]), "team", Check::UplinkMember, "member of the team team0");
    // What lies below an uplink is asked the same.
    let vrf = || master("blue").kind("vrf", &[8, 0, 1, 0, 10, 0, 0, 0]);
    let vlan = Description::new(5, "v").vlan(1, 10);
    let below = [eth(1).part_of(9, "vrf", &[8, 0, 1, 0, 10, 0, 0, 0]), vlan.clone(), vrf()];
    check_refused(&["v"], &below, Check::UplinkVrf, "eth1 is in the VRF blue");
    let above = [eth(1), vlan.part_of(9, "vrf", &[8, 0, 1, 0, 10, 0, 0, 0]), vrf()];
    check_refused(&["v"], &above, Check::UplinkVrf, "v is in the VRF blue");
}

#[test]
fn a_name_that_does_not_exist_gets_the_nearest() {
    let wanted = "uplink eth9 does not exist on this node; there are: eth1, bond0; did you mean eth1?";
    check_refused(&["eth9"], &[eth(1), bond(2, None)], Check::UplinkMissing, wanted);
    check_refused(&["wan"], &[eth(1)], Check::UplinkMissing, "there are: eth1; write the name of one");
    let many: Vec<Description> = (1..=40).map(eth).collect();
    check_refused(&["eth99"], &many, Check::UplinkMissing, "and 24 more");
}

#[test]
fn what_is_built_in_a_circle_or_in_another_namespace_is_refused() {
    let circle = [Description::new(5, "a").vlan(6, 1), Description::new(6, "b").vlan(5, 1)];
    check_refused(&["a"], &circle, Check::UplinkElsewhere, "is built on more than 8 devices");
    let elsewhere = [eth(1), Description::new(5, "a").vlan(1, 1).elsewhere(0)];
    check_refused(&["a"], &elsewhere, Check::UplinkElsewhere, "the parent of VLAN a is not in this network namespace");
    check_refused(&["a"], &[Description::new(5, "a").vlan(7, 1)], Check::UplinkElsewhere, "parent of VLAN a");
}

#[test]
fn more_members_than_places_are_refused() {
    let members = 1..=PLACES_MAX as u32 + 1;
    let mut all: Vec<Description> = members.map(|index| eth(index).bond_member(900)).collect();
    all.push(bond(900, None));
    let resolution = resolved(&["bond0"], &all);
    assert_eq!(resolution.places.len(), PLACES_MAX);
    assert_eq!(resolution.refused[0].id, Check::UplinkTooMany);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Messages with any bytes changed, and links that name each other in any way, are resolved to something.
    #[test]
    fn any_bytes_are_resolved_without_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..24)) {
        let original = [
            eth(1).bond_member(9),
            bond(9, Some(1)),
            Description::new(5, "v").vlan(9, 10),
            Description::new(6, "br0").kind("bridge", &[]),
        ];
        let mut messages: Vec<Vec<u8>> = original.iter().map(Description::bytes).collect();
        for (place, byte) in changes {
            let message = place.index(messages.len() * 64);
            let bytes = &mut messages[message % 4];
            let at = message / 4 % bytes.len().max(1);
            bytes[at] = byte;
        }
        let links: Vec<Link> = messages.iter().filter_map(|bytes| parse(bytes)).collect();
        for name in ["v", "bond0", "eth1", "br0"] {
            let resolution = resolve(&[uplink(name)], &links);
            prop_assert!(resolution.places.len() + resolution.refused.len() <= links.len() + 1);
        }
    }
}
