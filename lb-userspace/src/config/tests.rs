use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;
use crate::model::{Capacities, Limits, Protocol, ReplyMode, Rung, RungChoice, XdpModeChoice};

mod announce;
mod bgp;
mod direct;
mod health;
mod observation;
mod schema;
mod shape;

/// Stands before a value that is refused; not part of the file.
const MARK: char = '▶';

const HEAD: &str = "\
node: { addresses: [192.0.2.1, '2001:db8::1'] }
uplinks: [{ interface: eth0 }]
";

fn problems(text: &str) -> Vec<Problem> {
    match parse("test.yaml", text) {
        Err(ConfigError::Refused { problems, .. }) => problems,
        Err(other) => panic!("{other}"),
        Ok(snapshot) => panic!("taken: {snapshot:#?}\n{text}"),
    }
}

/// The file without its marks is refused at the marks, with these messages and no others.
#[track_caller]
fn check_refused(marked: &str, messages: &[&str]) {
    let mut text = String::new();
    let mut places = Vec::new();
    let (mut line, mut column) = (1, 1);
    for c in marked.chars() {
        match c {
            MARK => {
                places.push(Position { line, column });
                continue;
            }
            '\n' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
        text.push(c);
    }
    let found = problems(&text);
    let expected: Vec<String> = places
        .iter()
        .zip(messages)
        .map(|(Position { line, column }, message)| format!("{line}:{column}: {message}"))
        .collect();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "\n{text}");
    assert_eq!(places.len(), messages.len(), "a mark for each message");
}

#[track_caller]
fn check_service_refused(service: &str, messages: &[&str]) {
    check_refused(&format!("{HEAD}services:\n{service}"), messages);
}

fn taken(text: &str) -> Snapshot {
    parse("test.yaml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn with_services(services: &str) -> String {
    format!("{HEAD}services:\n{services}")
}

#[test]
fn what_is_left_out_has_its_default() {
    let snapshot = taken(&with_services(
        "  - { name: bgp, vip: 198.51.100.1, protocol: TCP, ports: [179], backends: [{ address: 10.0.0.1 }] }\n  \
         - { name: traps, vip: 198.51.100.1, protocol: UDP, ports: [162, 163] }\n",
    ));
    assert_eq!(snapshot.uplinks[0].mode, XdpModeChoice::Auto);
    assert_eq!(snapshot.pin_directory, Path::new("/sys/fs/bpf/sluice"));
    assert_eq!(snapshot.run_directory, Path::new("/run/sluice"));
    assert_eq!(snapshot.capacities, Capacities::default());
    assert_eq!(snapshot.limits, Limits::default());
    let [bgp, trap, other] = &snapshot.services[..] else { panic!("{:?}", snapshot.services) };
    assert_eq!((bgp.protocol, bgp.replies, bgp.rung), (Protocol::Tcp, ReplyMode::Static, RungChoice::Auto));
    let backend = &bgp.backends[0];
    assert_eq!((backend.port, backend.weight, backend.drain), (179, 1, false));
    assert_eq!((trap.port, trap.replies), (162, ReplyMode::Recorded));
    assert_eq!((other.port, other.name.as_str()), (163, "traps"));
    assert!(other.backends.is_empty());
}

#[test]
fn what_is_written_is_taken() {
    let snapshot = taken(
        "node: { addresses: ['2001:db8::1'] }
uplinks: [{ interface: eth0, mode: native }, { interface: bond0, mode: generic }]
pinDirectory: /sys/fs/bpf/other
runDirectory: /run/other
capacities: { services: 1, backends: 2, maglevSlots: 1024, bypasses: 3, flows: 64, fragments: 32 }
limits: { refusals: 0, echoReplies: 5, icmpErrors: 1000000 }
services:
  - name: syslog
    vip: 2001:db8:1::1
    protocol: UDP
    ports: [514]
    replies: none
    rung: peer
    backends:
      - { address: '2001:db8:2::1', port: 1514, weight: 3, drain: true }
      - { address: '2001:db8:2::2', weight: 0 }
",
    );
    assert_eq!(snapshot.uplinks[0].mode, XdpModeChoice::Native);
    assert_eq!(snapshot.uplinks[1].mode, XdpModeChoice::Generic);
    assert_eq!(snapshot.pin_directory, Path::new("/sys/fs/bpf/other"));
    assert_eq!(snapshot.run_directory, Path::new("/run/other"));
    let Capacities { services, backends, maglev_slots, bypasses, flows, fragments } = snapshot.capacities;
    assert_eq!((services, backends, maglev_slots, bypasses, flows, fragments), (1, 2, 1024, 3, 64, 32));
    assert_eq!(snapshot.limits, Limits { refusals: 0, echo_replies: 5, icmp_errors: 1_000_000 });
    let service = &snapshot.services[0];
    assert_eq!((service.replies, service.rung), (ReplyMode::None, RungChoice::Only(Rung::Peer)));
    let [first, second] = &service.backends[..] else { panic!("{service:?}") };
    assert_eq!((first.port, first.weight, first.drain), (1514, 3, true));
    assert_eq!((second.port, second.weight, second.drain), (514, 0, false));
}

#[test]
fn tcp_and_udp_share_a_vip_and_port_and_static_services_an_endpoint() {
    let snapshot = taken(&with_services(
        "  - { name: a, vip: 198.51.100.1, protocol: TCP, ports: [53], backends: [{ address: 10.0.0.1 }] }
  - { name: b, vip: 198.51.100.1, protocol: UDP, ports: [53], replies: static, backends: [{ address: 10.0.0.1 }] }
  - { name: c, vip: 198.51.100.2, protocol: UDP, ports: [53], replies: static, backends: [{ address: 10.0.0.1 }] }
",
    ));
    assert_eq!(snapshot.services.len(), 3);
}

#[test]
fn a_service_may_drain_all_its_backends_or_have_none() {
    taken(&with_services(
        "  - { name: a, vip: 198.51.100.1, protocol: TCP, ports: [53], backends: [{ address: 10.0.0.1, drain: true }] }
  - { name: b, vip: 198.51.100.1, protocol: UDP, ports: [53], backends: [] }
",
    ));
    taken(&format!("{HEAD}services: []\n"));
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    check_refused(&format!("{HEAD}▶sevices: []\n"), &["unknown key `sevices`; did you mean `services`?"]);
    check_service_refused("  - name: a\n    ▶bakends: []\n", &["unknown key `bakends`; did you mean `backends`?"]);
    check_service_refused(
        "  - { name: a, backends: [{ ▶adress: 10.0.0.1 }] }\n",
        &["unknown key `adress`; did you mean `address`?"],
    );
    check_refused(
        &format!("{HEAD}capacities: {{ ▶maglev_slots: 128 }}\nservices: []\n"),
        &["unknown key `maglev_slots`; did you mean `maglevSlots`?"],
    );
    check_refused("node: { ▶colour: red }\n", &["unknown key `colour`; the keys here are addresses"]);
}

#[test]
fn wrong_types_are_refused() {
    let list = "wrong type: a list must stand here; write [a, b], or lines that start with `- `";
    let single = "wrong type: a single value must stand here; write the value behind the key, without a list or keys";
    let keys = "wrong type: keys with values must stand here; write `key: value` lines, indented below the key";
    check_service_refused("  - { name: a, ports: ▶162 }\n", &[list]);
    check_service_refused("  - { name: a, vip: ▶[198.51.100.1] }\n", &[single]);
    check_service_refused("  - { name: a, vip: ▶{ address: 198.51.100.1 } }\n", &[single]);
    check_service_refused("  - ▶traps\n", &[keys]);
    check_refused("node: ▶192.0.2.1\n", &[keys]);
    check_refused("▶[]\n", &[keys]);
    check_service_refused(
        "  - { name: a, vip: 198.51.100.1, protocol: TCP, ports: [▶http, ▶1.5, ▶'', ▶0x50], \
         backends: [{ address: 10.0.0.1, drain: ▶yes }] }\n",
        &[
            "port `http` is not a whole number; write a whole number from 1 to 65535",
            "port `1.5` is not a whole number; write a whole number from 1 to 65535",
            "port `` is not a whole number; write a whole number from 1 to 65535",
            "port `0x50` is not a whole number; write a whole number from 1 to 65535",
            "drain `yes` is not a truth value; write true or false",
        ],
    );
}

#[test]
fn broken_yaml_is_refused_where_it_breaks() {
    let advice = "look for a missing quote, bracket or colon, or wrong indentation, here or on the line before";
    check_refused("node: ▶'a\n", &[&format!("not valid YAML: unclosed quote; {advice}")]);
    check_refused("uplinks: ▶[{ interface: eth0 }\n", &[&format!("not valid YAML: unclosed bracket '['; {advice}")]);
    check_refused(
        &format!("{HEAD}services: []\n---\n▶services: []\n"),
        &["a second YAML document starts here; keep one document in the file, without `---` after it"],
    );
}

#[test]
fn a_key_written_twice_is_refused() {
    check_service_refused(
        "  - name: a\n    vip: 198.51.100.1\n    ▶vip: 198.51.100.2\n",
        &["the key `vip` is written twice; keep one of them"],
    );
}

#[test]
fn an_empty_file_is_refused() {
    let message = "the file holds no configuration; \
                   write at least node, uplinks and services; deploy/samples/standalone.yaml is a start";
    for text in ["▶", "▶\n\n", "▶# nothing here\n", "▶null\n"] {
        check_refused(text, &[message]);
    }
}

#[test]
fn missing_keys_are_all_named() {
    check_refused(
        "▶▶▶limits: {}\n",
        &[
            "the key `node` is missing; \
             write node: { addresses: [192.0.2.1] } with the addresses of this machine",
            "the key `uplinks` is missing; \
             write uplinks: [{ interface: eth0 }] with the interfaces that VIP traffic arrives on",
            "the key `services` is missing; write services: [] for a node without any",
        ],
    );
    check_service_refused(
        "  - ▶▶▶{ name: a, backends: [▶{ port: 1 }] }\n  - ▶{ vip: 198.51.100.1, protocol: TCP, ports: [1] }\n",
        &[
            "the key `vip` is missing; write vip: with the virtual address of the service",
            "the key `protocol` is missing; write protocol: TCP or protocol: UDP",
            "the key `ports` is missing; write ports: [162]",
            "the key `address` is missing; write address: with the pod's address",
            "the key `name` is missing; write name: with a word that tells the service from others",
        ],
    );
}

#[test]
fn a_vip_that_is_the_nodes_or_a_pods_address_is_refused() {
    check_service_refused(
        "  - { name: a, vip: ▶192.0.2.1, protocol: TCP, ports: [1] }
  - { name: b, vip: ▶10.0.0.1, protocol: TCP, ports: [1] }
  - { name: c, vip: 198.51.100.1, protocol: UDP, ports: [1], backends: [{ address: 10.0.0.1 }] }
",
        &[
            "VIP 192.0.2.1 is the address of this node, see line 1; choose an address that no machine and no pod has",
            "VIP 10.0.0.1 is the address of a backend, see line 6; choose an address that no machine and no pod has",
        ],
    );
    // However it is written.
    check_service_refused(
        "  - { name: a, vip: ▶'2001:DB8:0::1', protocol: TCP, ports: [1] }\n",
        &["VIP 2001:db8::1 is the address of this node, see line 1; choose an address that no machine and no pod has"],
    );
}

#[test]
fn a_vip_that_no_service_can_have_is_refused() {
    let reachable = "write a unicast address that other machines can reach";
    let cases = [
        ("0.0.0.0", "is the unspecified address", reachable),
        ("'::'", "is the unspecified address", reachable),
        ("224.0.0.18", "is a multicast address", reachable),
        ("ff02::12", "is a multicast address", reachable),
        ("127.0.0.1", "is a loopback address", reachable),
        ("'::1'", "is a loopback address", reachable),
        ("169.254.1.1", "is a link-local address", reachable),
        ("fe80::1", "is a link-local address", reachable),
        ("255.255.255.255", "is the broadcast address", reachable),
        ("192.0.0.8", "is what the agent tests pods with", "choose another address"),
        ("100::8", "is what the agent tests pods with", "choose another address"),
        ("'::ffff:198.51.100.1'", "is IPv4-mapped, which no packet carries", "write the IPv4 address 198.51.100.1"),
        ("198.51.100.1/32", "is not an IP address", "write the address without a prefix length"),
        (
            "collector.example",
            "is not an IP address",
            "write an IPv4 or IPv6 address, for example 192.0.2.10 or 2001:db8::10",
        ),
    ];
    for (vip, what, advice) in cases {
        let shown = vip.trim_matches('\'');
        check_service_refused(
            &format!("  - name: a\n    vip: ▶{vip}\n    protocol: TCP\n    ports: [1]\n"),
            &[&format!("VIP `{shown}` {what}; {advice}")],
        );
    }
}

#[test]
fn the_same_vip_protocol_and_port_twice_is_refused_with_both_places() {
    check_service_refused(
        "  - { name: traps, vip: 198.51.100.1, protocol: UDP, ports: [162, ▶162] }
  - { name: other, vip: 198.51.100.1, protocol: UDP, ports: [161, ▶162] }
",
        &[
            "VIP 198.51.100.1 UDP port 162 is already the service `traps` in line 4, column 62; \
             remove the port from one of them, or use another VIP",
            "VIP 198.51.100.1 UDP port 162 is already the service `traps` in line 4, column 62; \
             remove the port from one of them, or use another VIP",
        ],
    );
}

#[test]
fn two_services_of_one_name_are_refused() {
    check_service_refused(
        "  - { name: a, vip: 198.51.100.1, protocol: UDP, ports: [1] }
  - { name: ▶a, vip: 198.51.100.1, protocol: UDP, ports: [2] }
  - { name: ▶a b, vip: 198.51.100.1, protocol: UDP, ports: [3] }
",
        &[
            "another service is called `a` too, in line 4; give each service a name of its own",
            "the service name `a b` cannot be used; \
             write 1 to 253 ASCII letters, digits and punctuation, without spaces",
        ],
    );
}

#[test]
fn a_backend_of_another_family_is_refused() {
    check_service_refused(
        "  - { name: a, vip: 198.51.100.1, protocol: UDP, ports: [1], backends: [{ address: ▶'2001:db8:2::1' }] }\n",
        &["backend 2001:db8:2::1 is IPv6 and the VIP 198.51.100.1 is IPv4; \
           write the pod's IPv4 address, or a service of its own for each family"],
    );
}

#[test]
fn the_same_backend_twice_is_refused_also_on_one_of_the_ports() {
    check_service_refused(
        "  - name: a
    vip: 198.51.100.1
    protocol: UDP
    ports: [161, 162]
    backends:
      - { address: 10.0.0.1 }
      - ▶{ address: 10.0.0.1, port: 162 }
      - { address: 10.0.0.1, port: 163 }
      - ▶{ address: 10.0.0.1 }
",
        &[
            "backend 10.0.0.1 port 162 is already in line 9; remove one of them; a larger share is a larger weight",
            "backend 10.0.0.1 port 161 is already in line 9; remove one of them; a larger share is a larger weight",
        ],
    );
}

#[test]
fn backends_whose_weights_are_all_0_are_refused() {
    check_service_refused(
        "  - { name: a, vip: 198.51.100.1, protocol: UDP, ports: [1], \
         backends: ▶[{ address: 10.0.0.1, weight: 0 }, { address: 10.0.0.2, weight: 0 }] }\n",
        &["the weights of all backends are 0, so none would get a connection; \
           give one a weight from 1 to 1000, or write drain: true where no new connections are wanted"],
    );
}

#[test]
fn ports_and_weights_out_of_range_are_refused() {
    check_service_refused(
        "  - name: a
    vip: 198.51.100.1
    protocol: UDP
    ports: [▶0, ▶65536, ▶-1, ▶99999999999999999999]
    backends:
      - { address: 10.0.0.1, port: ▶0 }
      - { address: 10.0.0.2, weight: ▶1001 }
      - { address: ▶127.0.0.1 }
",
        &[
            "port `0` is out of range; write a whole number from 1 to 65535",
            "port `65536` is out of range; write a whole number from 1 to 65535",
            "port `-1` is out of range; write a whole number from 1 to 65535",
            "port `99999999999999999999` is out of range; write a whole number from 1 to 65535",
            "port `0` is out of range; write a whole number from 1 to 65535",
            "weight `1001` is out of range; write a whole number from 0 to 1000",
            "backend address `127.0.0.1` is a loopback address; write a unicast address that other machines can reach",
        ],
    );
    check_service_refused(
        "  - { name: a, vip: 198.51.100.1, protocol: UDP, ports: ▶[] }\n",
        &["the list `ports` is empty; write 1 to 4096 entries"],
    );
}

#[test]
fn choices_are_refused_with_what_they_can_be() {
    check_service_refused(
        "  - { name: a, vip: 198.51.100.1, protocol: ▶udp, ports: [1], rung: ▶fastest }
  - { name: b, vip: 198.51.100.1, protocol: ▶SCTP, ports: [1] }
  - { name: c, vip: 198.51.100.1, protocol: TCP, ports: [1], replies: ▶recorded }
  - { name: d, vip: 198.51.100.1, protocol: UDP, ports: [1], replies: ▶recoded }
",
        &[
            "protocol `udp` is unknown; did you mean `UDP`? it can be TCP, UDP",
            "rung `fastest` is unknown; write one of auto, redirect, peer, stack, direct",
            "protocol `SCTP` is unknown; write one of TCP, UDP",
            "replies `recorded` is for UDP, and the service is TCP; remove the key: replies of TCP are always static",
            "replies `recoded` is unknown; did you mean `recorded`? it can be static, recorded, none",
        ],
    );
}

#[test]
fn bad_nodes_and_uplinks_are_refused() {
    check_refused(
        "node: { addresses: [192.0.2.1, ▶192.0.2.1, ▶'::'] }
uplinks:
  - { interface: eth0 }
  - { interface: ▶eth0 }
  - { interface: ▶'' }
  - { interface: ▶interface-of-16-b, mode: ▶driver }
  - { interface: ▶eth/0 }
  - ▶{ mode: native }
pinDirectory: ▶sluice
runDirectory: ▶/run/../etc
services: []
",
        &[
            "node address `192.0.2.1` is already written in line 1; remove one of them",
            "node address `::` is the unspecified address; write a unicast address that other machines can reach",
            "uplink `eth0` is already written in line 3; remove one of them",
            "the interface name is empty; write a name that `ip link` shows",
            "interface `interface-of-16-b` has 17 bytes, at most 15 are possible; write a name that `ip link` shows",
            "mode `driver` is unknown; write one of auto, native, generic",
            "interface `eth/0` is not a name that Linux allows; write a name that `ip link` shows",
            "the key `interface` is missing; write interface: eth0",
            "pinDirectory `sluice` is not an absolute path; write a path that starts with / and has no ..",
            "runDirectory `/run/../etc` is not an absolute path; write a path that starts with / and has no ..",
        ],
    );
    check_refused(
        "node: { addresses: ▶[] }\nuplinks: ▶[]\nservices: []\n",
        &["the list `addresses` is empty; write 1 to 64 entries", "the list `uplinks` is empty; write 1 to 16 entries"],
    );
    let long = format!("/run/{}", "s".repeat(91));
    let found = problems(&format!("{HEAD}runDirectory: {long}\nservices: []\n"));
    assert_eq!((found.len(), found[0].position), (1, Position { line: 3, column: 15 }));
    let advice = "write a path of at most 95 bytes without NUL: a socket is made in it, and the path of a socket has at most 107";
    assert_eq!(found[0].advice, advice);
    taken(&format!("{HEAD}runDirectory: {}\nservices: []\n", &long[..95]));
}

#[test]
fn absurd_capacities_and_limits_are_refused() {
    check_refused(
        &format!(
            "{HEAD}services: []
capacities:
  services: ▶0
  backends: ▶4000000000
  maglevSlots: ▶1000
  bypasses: ▶none
  flows: ▶2
  fragments: ▶100
limits: {{ refusals: ▶1000001, echoReplies: ▶-1 }}
"
        ),
        &[
            "services `0` is out of range; write a whole number from 1 to 65536",
            "backends `4000000000` is out of range; write a whole number from 1 to 1048576",
            "maglevSlots 1000 is not a power of two; write 512 or 1024",
            "bypasses `none` is not a whole number; write a whole number from 1 to 16777216",
            "flows `2` is out of range; write a whole number from 4 to 67108864",
            "fragments 100 is not a power of two; write 64 or 128",
            "refusals `1000001` is out of range; write a whole number from 0 to 1000000",
            "echoReplies `-1` is out of range; write a whole number from 0 to 1000000",
        ],
    );
}

#[test]
fn more_than_the_capacities_is_refused() {
    check_refused(
        &format!(
            "{HEAD}capacities: {{ services: ▶1, backends: ▶2, maglevSlots: ▶1024 }}
services:
  - name: a
    vip: 198.51.100.1
    protocol: UDP
    ports: [1, 2]
    backends: [{{ address: 10.0.0.1 }}, {{ address: 10.0.0.2, port: 7 }}]
"
        ),
        &[
            "2 services do not fit the capacity of 1; \
             set capacities.services to at least 2 (at most 65536), or configure fewer",
            // Each address once for each port.
            "4 backends do not fit the capacity of 2; \
             set capacities.backends to at least 4 (at most 1048576), or configure fewer",
            // 512 for each, twice.
            "the services need 2048 Maglev slots (the most by `a`: 512 slots) and the capacity is 1024; \
             set capacities.maglevSlots to 2048, or let the weights of a service lie closer together",
        ],
    );
    // Without the key, at the first service.
    let ports: Vec<String> = (1..=4096).map(|port| port.to_string()).collect();
    check_service_refused(
        &format!(
            "  - ▶{{ name: a, vip: 198.51.100.1, protocol: UDP, ports: [{}] }}
  - {{ name: b, vip: 198.51.100.2, protocol: UDP, ports: [1] }}\n",
            ports.join(", ")
        ),
        &["4097 services do not fit the capacity of 4096; \
           set capacities.services to at least 4097 (at most 65536), or configure fewer"],
    );
}

#[test]
fn every_problem_is_reported_in_the_order_of_the_file() {
    let error = parse("sluice.yaml", "node: { addresses: [x] }\nuplinks: []\nservices: []\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "sluice.yaml:1:21: node address `x` is not an IP address; \
         write an IPv4 or IPv6 address, for example 192.0.2.10 or 2001:db8::10\n\
         sluice.yaml:2:10: the list `uplinks` is empty; write 1 to 16 entries"
    );
}

#[test]
fn a_message_is_bounded_and_cannot_command_the_terminal() {
    let many = vec!["x"; 200].join(", ");
    let error = parse("f", &format!("node: {{ addresses: [{many}] }}\nuplinks: []\nservices: []\n")).unwrap_err();
    assert_eq!(error.to_string().lines().count(), 51);
    assert!(error.to_string().ends_with("f: and 152 more problems"), "{error}");

    let found = problems(&format!("{HEAD}services: []\npinDirectory: \"\\e[31m{}\"\n", "p".repeat(4000)));
    assert!(found[0].what.len() < 200, "{}", found[0].what);
    assert!(!found[0].what.contains('\u{1b}'));
}

#[test]
fn values_behind_an_alias_are_reported_where_they_are_used() {
    check_service_refused(
        "  - { name: a, vip: 198.51.100.1, protocol: UDP, ports: [&port 162, 163] }
  - { name: b, vip: 198.51.100.1, protocol: UDP, ports: [▶*port] }\n",
        &["VIP 198.51.100.1 UDP port 162 is already the service `a` in line 4, column 64; \
           remove the port from one of them, or use another VIP"],
    );
}

/// A file of its own for one test, removed with it.
struct TestFile(PathBuf);

impl TestFile {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("sluice-config-{}-{name}", std::process::id())))
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_that_is_not_utf8_is_refused_where_it_is_not() {
    let file = TestFile::new("latin1.yaml");
    fs::write(&file.0, b"# Z\xc3\xbcrich\n# Z\xfcrich\n").unwrap();
    let error = load(&file.0).unwrap_err().to_string();
    let place = format!("{}:2:4: this byte is not UTF-8; save the file as UTF-8", file.0.display());
    assert!(error.starts_with(&place), "{error}");
}

#[test]
fn a_file_that_is_too_large_is_refused_unread() {
    let file = TestFile::new("large.yaml");
    File::create(&file.0).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
    let error = load(&file.0).unwrap_err().to_string();
    assert!(error.contains("is larger than 64 MiB; a configuration is not"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_refused_by_its_name() {
    let error = load(Path::new("/nonexistent/sluice.yaml")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/sluice.yaml: cannot be read: No such file"), "{error}");
}

fn repository_file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_example_of_the_reference_is_valid() {
    let reference = repository_file("docs/configuration.md");
    let examples: Vec<&str> = reference
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().expect("split yields at least one part"))
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        taken(example);
    }
}
