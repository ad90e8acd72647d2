//! How VIPs are announced.

use std::time::Duration;

use super::*;
use crate::model::announce::{Announce, VrrpVersion};

fn announced(keys: &str) -> Announce {
    taken(&format!("{HEAD}services: []\nannounce: {keys}\n")).announce
}

fn check_announce_refused(keys: &str, messages: &[&str]) {
    check_refused(&format!("{HEAD}services: []\nannounce: {keys}\n"), messages);
}

fn group(keys: &str) -> String {
    format!("{{ vrrp: [{{ name: core, interface: eth0, vrids: 51{keys} }}] }}")
}

#[test]
fn nothing_is_announced_unless_it_is_written() {
    assert_eq!(taken(&format!("{HEAD}services: []\n")).announce, Announce::default());
    let node = announced("{ always: [{ interface: eth0 }] }");
    assert_eq!((node.nodes, node.always.len(), node.vrrp.len()), (vec![node.node], 1, 0));
}

#[test]
fn a_group_has_the_defaults_of_the_protocol() {
    let [core] = <[_; 1]>::try_from(announced(&group("")).vrrp).unwrap();
    assert_eq!((core.vrids, core.version, core.interval), (51..=51, VrrpVersion::V3, Duration::from_secs(1)));
    assert_eq!((core.priority, core.preempt, core.refresh), (None, true, Duration::from_secs(60)));
    assert!(
        core.preempt_delay.is_zero() && core.start_delay.is_zero() && core.peers.is_empty() && core.track.is_empty()
    );
    assert!(!core.has_virtual_mac);
    assert!(announced(&group(", virtualMac: true")).vrrp[0].has_virtual_mac);
    let [range] = <[_; 1]>::try_from(announced("{ vrrp: [{ name: a, interface: eth0, vrids: 1-255 }] }").vrrp).unwrap();
    assert_eq!(range.vrids, 1..=255);
}

#[test]
fn the_node_is_one_of_the_nodes() {
    let announce = announced("{ node: b, nodes: [a, b] }");
    assert_eq!((announce.node.as_str(), announce.nodes.len()), ("b", 2));
    check_announce_refused(
        "{ node: ▶c, nodes: [a, ▶a] }",
        &[
            "node `c` is none of nodes; write the same list of nodes on each, with this one in it",
            "node `a` is already written in line 4; remove one of them",
        ],
    );
    check_announce_refused("{ nodes: ▶[a, b] }", &["the key `node` is missing; write which of the nodes this one is"]);
}

#[test]
fn what_vrrp_cannot_say_is_refused() {
    let out_of_range = |key: &str, value: &str, range: &str| format!("{key} `{value}` is out of range; write {range}");
    let units = "in whole milliseconds (ms) or seconds (s)";
    for priority in ["0", "255"] {
        let message = out_of_range("priority", priority, "a whole number from 1 to 254");
        check_announce_refused(&group(&format!(", priority: ▶{priority}")), &[&message]);
    }
    let v3 = |value: &str| out_of_range("interval", value, &format!("10ms to 40.95s, {units}"));
    check_announce_refused(&group(", interval: ▶5ms"), &[&v3("5ms")]);
    check_announce_refused(&group(", interval: ▶41s"), &[&v3("41s")]);
    check_announce_refused(
        &group(", interval: ▶105ms"),
        &["interval `105ms` is between what an advertisement can say; write a multiple of 10ms"],
    );
    check_announce_refused(
        &group(", refresh: ▶500ms"),
        &["refresh `500ms` is too short; write 0s for never, or 1s to 3600s: each VIP is told of each time"],
    );
    check_announce_refused(
        &group(", virtualMac: ▶maybe"),
        &["virtualMac `maybe` is not a truth value; write true or false"],
    );
    check_announce_refused(
        &group(", linkLocal: ▶'2001:db8::1'"),
        &["linkLocal `2001:db8::1` is no link-local IPv6 address; \
           write an address of fe80::/64 that no interface of the segment has"],
    );
    check_announce_refused(
        "{ vrrp: [{ name: core, interface: eth0, vrids: 51-52, linkLocal: ▶'fe80::7' }] }",
        &["linkLocal `fe80::7` would be of several virtual routers; \
           write one identifier in vrids, or leave linkLocal out"],
    );
    check_announce_refused(
        &group(", version: 2, interval: 1s, linkLocal: ▶'fe80::7'"),
        &[
            "linkLocal `fe80::7` is of IPv6, and version 2 of VRRP for IPv4 alone; write version 3, or leave linkLocal out",
        ],
    );
    check_announce_refused(
        &group(", linkLocal: ▶'fe80::5e:34'"),
        &["linkLocal `fe80::5e:34` is what another virtual router has where nothing is written; \
           write another address of fe80::/64"],
    );
    check_announce_refused(
        "{ vrrp: [{ name: a, interface: eth0, vrids: 51, linkLocal: 'fe80::7' }, \
         { name: b, interface: eth0, vrids: 52, linkLocal: ▶'fe80::7' }] }",
        &["linkLocal `fe80::7` is already written in line 4; remove one of them"],
    );
    taken(&format!("{HEAD}services: []\nannounce: {}\n", group(", linkLocal: 'fe80::5e:33'")));
    let v2 = out_of_range("interval", "100ms", &format!("1s to 255s, {units}"));
    check_announce_refused(&group(", version: 2, interval: ▶100ms"), &[&v2]);
    let vrids = |text: &str| {
        format!(
            "vrids `{text}` are no identifiers of virtual routers; write one identifier from 1 to 255, or a range such as 10-13"
        )
    };
    for text in ["0", "256", "5-3", "1-", "a", "0-3"] {
        let keys = format!("{{ vrrp: [{{ name: core, interface: eth0, vrids: ▶'{text}' }}] }}");
        check_announce_refused(&keys, &[&vrids(text)]);
    }
}

#[test]
fn an_identifier_is_given_out_once_for_an_interface() {
    check_announce_refused(
        "{ vrrp: [{ name: a, interface: eth0, vrids: 10-13 }, { name: ▶a, interface: eth0, vrids: ▶12 }] }",
        &[
            "name `a` is already written in line 4; remove one of them",
            "virtual router 12 is already written for eth0 in line 4; give each group of an interface identifiers of its own",
        ],
    );
}

#[test]
fn what_other_nodes_do_may_be_on_interfaces_of_theirs() {
    let nodes = |others: &str, interface: &str, vrid: &str| {
        format!(
            "{{ node: a, nodes: [a, b], vrrp: [{{ name: one, interface: eth0, vrids: 51 }}, \
             {{ name: two, interface: {interface}, vrids: {vrid}, nodes: [{others}] }}], \
             always: [{{ interface: eth7, nodes: [b] }}] }}"
        )
    };
    let announce = announced(&nodes("b", "eth7", "51"));
    let [one, two] = <[_; 2]>::try_from(announce.vrrp).unwrap();
    assert!(one.nodes.contains("a") && !two.nodes.contains("a") && two.nodes.contains("b"));
    assert!(!announce.always[0].nodes.contains("a"));
    check_announce_refused(
        &nodes("▶c", "eth0", "52"),
        &["node `c` is none of announce.nodes; write names of nodes that announce"],
    );
    check_announce_refused(
        &nodes("a", "▶eth7", "52"),
        &["interface `eth7` is none of the uplinks, so nothing answers there; write the name of one of the uplinks"],
    );
    check_announce_refused(
        &nodes("b", "eth0", "▶51"),
        &["virtual router 51 is already written for eth0 in line 4; \
           give each group of an interface identifiers of its own"],
    );
}

#[test]
fn interfaces_and_prefixes_must_mean_something() {
    check_announce_refused(
        "{ always: [{ interface: ▶eth1 }, ▶{}, { interface: eth0, vips: [▶10.0.0.1/8, ▶10.0.0.0/33, ▶all] }] }",
        &[
            "interface `eth1` is none of the uplinks, so nothing answers there; write the name of one of the uplinks",
            "the key `interface` is missing; write the name of one of the uplinks",
            "`10.0.0.1/8` has bits behind its length; write its first address",
            "`10.0.0.0/33` is no prefix of addresses; write a prefix such as 192.0.2.0/24, or an address",
            "`all` is no prefix of addresses; write a prefix such as 192.0.2.0/24, or an address",
        ],
    );
    check_announce_refused(
        &group(", peers: [▶224.0.0.18, 192.0.2.2, ▶192.0.2.2], track: [▶a/b]"),
        &[
            "peer `224.0.0.18` is a multicast address; write a unicast address that other machines can reach",
            "peer `192.0.2.2` is already written in line 4; remove one of them",
            "interface `a/b` is not a name that Linux allows; write a name that `ip link` shows",
        ],
    );
}
