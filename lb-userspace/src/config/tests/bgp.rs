//! BGP peers and BFD profiles.

use std::time::Duration;

use super::*;
use crate::{
    announce::bgp::{
        machine::{Mode, PeerAs},
        route::{Community, LargeCommunity},
    },
    model::bgp::{Bgp, Distance, PeerPlace, StopMode},
};

fn bgp(keys: &str) -> Bgp {
    taken(&format!("{HEAD}services: []\nannounce: {keys}\n")).announce.bgp.expect("it has BGP")
}

fn with_peer(keys: &str) -> String {
    format!("{{ bgp: {{ localAs: 64512, peers: [{{ name: tor, address: 192.0.2.254, as: 64513{keys} }}] }} }}")
}

fn check_peer_refused(keys: &str, messages: &[&str]) {
    check_refused(&format!("{HEAD}services: []\nannounce: {}\n", with_peer(keys)), messages);
}

fn check_bgp_refused(keys: &str, messages: &[&str]) {
    check_refused(&format!("{HEAD}services: []\nannounce: {keys}\n"), messages);
}

#[test]
fn a_peer_has_the_defaults_of_the_protocol() {
    let bgp = bgp(&with_peer(""));
    assert_eq!((bgp.identifier, bgp.stop, bgp.shutdown_wait), (None, StopMode::Ordered, Duration::from_secs(5)));
    let [peer] = <[_; 1]>::try_from(bgp.peers).unwrap();
    assert_eq!((peer.port.get(), peer.hold_time.seconds(), peer.mode), (179, 90, Mode::DialAndAccept));
    assert_eq!((peer.distance, peer.families.len(), peer.local_preference), (Distance::Direct, 2, 100));
    assert!(peer.bfd.is_none() && peer.graceful_restart.is_none() && peer.extended_next_hop && !peer.bfd_strict);
}

#[test]
fn within_an_as_peers_may_be_far_away_and_one_may_be_known_by_its_interface() {
    let text = "{ bgp: { localAs: 64512, peers: [{ name: a, address: 192.0.2.254, as: 64512 }, \
                { name: b, interface: eth0, as: external, communities: ['64512:7'], largeCommunities: ['1:2:3'] }] } }";
    let [a, b] = <[_; 2]>::try_from(bgp(text).peers).unwrap();
    assert_eq!(a.distance, Distance::Multihop(std::num::NonZeroU8::MAX));
    assert_eq!((b.at, b.peer_as), (PeerPlace::Interface("eth0".to_owned()), PeerAs::External));
    assert_eq!(b.communities, [Community(64512 << 16 | 7)].into());
    assert_eq!(b.large_communities, [LargeCommunity(1, 2, 3)].into());
}

#[test]
fn bfd_profiles_are_named() {
    let text = "{ bfd: [{ name: fast, interval: 50ms }], bgp: { localAs: 64512, peers: \
                [{ name: tor, address: 192.0.2.254, as: 64513, bfd: fast, gracefulRestart: 300s }] } }";
    let profile = bgp(text).peers.remove(0).bfd.expect("it names one");
    assert_eq!((profile.transmit, profile.receive), (Duration::from_millis(50), Duration::from_millis(50)));
    assert_eq!((profile.multiplier.get(), profile.minimum_ttl.get()), (3, 1));
    check_peer_refused(", bfd: ▶slow", &["bfd `slow` is no profile; write the name of one of announce.bfd"]);
    check_bgp_refused(
        "{ bfd: [{ name: a, interval: ▶9ms }, { name: ▶a, multiplier: ▶0 }] }",
        &[
            "interval `9ms` is out of range; write 10ms to 60s, in whole milliseconds (ms) or seconds (s)",
            "name `a` is already written in line 4; remove one of them",
            "multiplier `0` is out of range; write a whole number from 1 to 255",
        ],
    );
}

#[test]
fn what_bgp_cannot_say_is_refused() {
    let reserved = "write the number that was assigned to this network, or one from 64512 to 65534";
    for number in ["0", "23456"] {
        let own = format!("localAs {number} is reserved; {reserved}");
        let text = format!("{{ bgp: {{ localAs: ▶{number}, peers: [{{ name: a, address: 192.0.2.2, as: 1 }}] }} }}");
        check_bgp_refused(&text, &[&own]);
        let theirs = format!("as {number} is reserved; {reserved}");
        let text = format!("{{ bgp: {{ localAs: 1, peers: [{{ name: a, address: 192.0.2.2, as: ▶{number} }}] }} }}");
        check_bgp_refused(&text, &[&theirs]);
    }
    for time in ["1s", "2s"] {
        let message = format!("holdTime `{time}` is too short; write 0s for ever, or at least 3s");
        check_peer_refused(&format!(", holdTime: ▶{time}"), &[&message]);
    }
    check_peer_refused(", holdTime: ▶3500ms", &["`3500ms` is not in whole seconds; write whole seconds"]);
    check_peer_refused(
        ", multihop: 2, gtsm: ▶1",
        &[
            "gtsm and multihop exclude each other: what has come over links has no TTL of 255; write gtsm with the number \
           of links, or multihop, not both",
        ],
    );
    check_peer_refused(
        ", gracefulRestart: ▶4096s",
        &["gracefulRestart `4096s` is out of range; write 0ns to 4095s, in whole milliseconds (ms) or seconds (s)"],
    );
    check_peer_refused(
        ", gracefulRestart: ▶120s",
        &[
            "gracefulRestart `120s` is longer than the hold time, and no BFD tells of a dead node; write at most 90s, or \
           name a profile of BFD",
        ],
    );
    check_peer_refused(
        ", communities: [▶'65536:1'], largeCommunities: [▶'1:2']",
        &[
            "`65536:1` is no community; write two numbers up to 65535, such as 64512:100; larger ones fit in \
             largeCommunities",
            "`1:2` is no large community; write three numbers, such as 64512:1:2",
        ],
    );
    check_peer_refused(
        ", aggregates: [▶224.0.0.0/8], nextHopIpv6: ▶192.0.2.1",
        &[
            "`224.0.0.0/8` is no unicast prefix; write a prefix of unicast addresses",
            "nextHopIpv6 `192.0.2.1` is an IPv4 address; write an IPv6 address of this node",
        ],
    );
    check_peer_refused(", nodes: [▶b]", &["node `b` is none of announce.nodes; write names of nodes that announce"]);
}

#[test]
fn where_sessions_come_from_is_no_vip() {
    const VIP: &str =
        "[{ name: a, vip: ▶198.51.100.1, protocol: TCP, ports: [80], backends: [{ address: 10.0.0.1 }] }]";
    let file = |vip: &str, peer: &str| {
        let peer = format!("{{ name: tor, address: 192.0.2.254, as: 64513{peer} }}");
        let announce = format!("{{ node: a, nodes: [a, b], bgp: {{ localAs: 1, peers: [{peer}] }} }}");
        format!("{HEAD}services: {vip}\nannounce: {announce}\n")
    };
    check_refused(
        &file(VIP, ", source: 198.51.100.1"),
        &["VIP 198.51.100.1 is the address of this node, see line 4; choose an address that no machine and no pod has"],
    );
    // Of another node, or where the VIP's holder is a next hop.
    for peer in [", source: 198.51.100.1, nodes: [b]", ", nextHopIpv4: 198.51.100.1"] {
        taken(&file(&VIP.replace('▶', ""), peer));
    }
}

#[test]
fn a_peer_is_somewhere_and_there_once() {
    check_bgp_refused(
        "{ bgp: { localAs: 1, peers: [▶{ name: a, as: 2 }, { name: b, address: ▶fe80::1, as: 2 }] } }",
        &[
            "the key `address` is missing; write the peer's address, or the interface on which it advertises itself",
            "address `fe80::1` is valid on its link alone; write the interface too",
        ],
    );
    check_bgp_refused(
        "{ bgp: { localAs: 1, peers: [{ name: a, address: 192.0.2.2, as: 2 }, { name: ▶a, address: ▶192.0.2.2, as: 2 }] } }",
        &[
            "name `a` is already written in line 4; remove one of them",
            "peer `192.0.2.2` is already written in line 4; remove one of them",
        ],
    );
    check_bgp_refused(
        "{ bgp: { localAs: 1, peers: [{ name: a, address: 192.0.2.2, as: 2 }, \
         { name: b, address: ▶192.0.2.2, interface: eth0, as: 2 }] } }",
        &["peer `192.0.2.2` is already written in line 4; remove one of them"],
    );
    check_bgp_refused(
        "{ bfd: [{ name: f }], bgp: { localAs: 1, peers: [{ name: a, address: 192.0.2.2, as: 2, bfd: f }, \
         { name: b, address: 192.0.2.2, source: 192.0.2.9, as: 2, bfd: ▶f }] } }",
        &["BFD already watches a peer there, in line 4; take bfd from one of them: one session watches the link to a \
           neighbour"],
    );
    check_peer_refused(
        ", source: ▶'2001:db8::1'",
        &[
            "source `2001:db8::1` is not of the peer's family; write an address of the family that the session goes over",
        ],
    );
    check_bgp_refused(
        "{ bgp: ▶▶{} }",
        &[
            "the key `localAs` is missing; write the number of this node's autonomous system",
            "the key `peers` is missing; write the routers that are told of VIPs",
        ],
    );
}
