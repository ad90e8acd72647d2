//! Needs root and SLUICE_EBPF_OBJECT. What `sluice_xdp` does with one packet of each kind: description, packet in,
//! action, packet out.

use std::net::IpAddr;

use lb_common::{
    mark::{self, Mark},
    packet::host::HostFrame,
    reason::Reason,
};
use lb_tests::{
    kernel::{Kernel, object},
    packets::{Checksum, Extension, Packet, QINQ, VLAN, flag, hex},
    world::{
        action::{DROP, PASS, REDIRECT, TX},
        content::{Content, NODE, VIPS, backend, direct, hop, pod, veth},
    },
};

const CLIENTS: [&str; 2] = ["203.0.113.9", "2001:db8:c::9"];

struct Case {
    what: &'static str,
    packet: Packet,
    action: u32,
    reason: Reason,
    /// `None`: the packet as it came.
    out: Option<Packet>,
    mark: Option<Mark>,
}

const fn case(what: &'static str, packet: Packet, action: u32, reason: Reason) -> Case {
    Case { what, packet, action, reason, out: None, mark: None }
}

impl Case {
    fn becomes(mut self, out: Packet) -> Self {
        self.out = Some(out);
        self
    }

    fn for_tc(mut self, mark: Mark) -> Self {
        self.mark = Some(mark);
        self
    }
}

/// Both ends in one family.
#[derive(Clone, Copy)]
struct Ends {
    is_v4: bool,
    client: IpAddr,
    vip: IpAddr,
    node: IpAddr,
}

impl Ends {
    fn of(family: usize) -> Self {
        let [client, vip, node] =
            [CLIENTS[family], VIPS[family][0], NODE[family]].map(|text| text.parse().expect("an address"));
        Self { is_v4: family == 0, client, vip, node }
    }

    fn sent(self) -> Packet {
        Packet::from(self.client).to(self.vip)
    }

    fn to_pod(self, id: u32) -> Packet {
        Packet::from(self.client).to(IpAddr::from(pod(self.is_v4, id))).hops(63)
    }

    fn answer(self) -> Packet {
        Packet::from(self.vip).to(self.client).made_here()
    }

    /// Type and code of an ICMP error by their two families.
    fn error(self, from: IpAddr, v4: (u8, u8), v6: (u8, u8), rest: u32, quote: &Packet) -> Packet {
        let (kind, code) = if self.is_v4 { v4 } else { v6 };
        let ip = quote.ip();
        let longest = if self.is_v4 { 576 - 28 } else { 1280 - 48 };
        let quote = &ip[..(ip.len() & !3).min(longest)];
        Packet::from(from).to(self.client).icmp(kind, code).saying(rest).carrying(quote).made_here()
    }
}

fn check(content: &Content, cases: Vec<Case>) {
    let Some(object) = object() else { return };
    let mut kernel = Kernel::load(&object, content);
    for Case { what, packet, action, reason, out, mark } in cases {
        kernel.reset();
        let frame = packet.frame();
        let outcome = kernel.steer(&frame);
        let wanted = out.map_or(frame, |out| out.frame());
        let wanted = marked(wanted, mark);
        assert_eq!(kernel.reasons(), [(reason, 1)], "{what} ({})", packet.source);
        assert_eq!(outcome.action, action, "{what} ({})", packet.source);
        assert_eq!(outcome.mark, mark, "{what} ({})", packet.source);
        assert_eq!(hex(&outcome.bytes), hex(&wanted), "{what} ({})", packet.source);
    }
}

/// The frame with the mark as its source address.
fn marked(frame: Vec<u8>, mark: Option<Mark>) -> Vec<u8> {
    let frame = HostFrame::new(&frame);
    if let Some(mark) = mark {
        assert!(mark::put(&frame, mark));
    }
    frame.to_vec()
}

fn delivered(ends: Ends) -> Vec<Case> {
    let to_veth = |packet: Packet| {
        let (destination, source) = veth(hop::JUMBO);
        packet.macs(destination, source)
    };
    let (peer, jumbo) = (backend::PEER, backend::JUMBO);
    vec![
        case("a SYN goes into the pod", ends.sent().tcp(40_000, 90).syn(), REDIRECT, Reason::Forwarded)
            .becomes(to_veth(ends.to_pod(jumbo).tcp(40_000, 8008).syn())),
        case(
            "tags and padding: the tags go",
            ends.sent().tagged(QINQ, 7).tagged(VLAN, 9).tcp(40_000, 90).padded(6),
            REDIRECT,
            Reason::Forwarded,
        )
        .becomes(to_veth(ends.to_pod(jumbo).tcp(40_000, 8008).padded(6))),
        case(
            "a wrong checksum stays as wrong as it was",
            ends.sent().tcp(40_000, 90).checksum(Checksum::Wrong),
            REDIRECT,
            Reason::Forwarded,
        )
        .becomes(to_veth(ends.to_pod(jumbo).tcp(40_000, 8008).checksum(Checksum::Wrong))),
        case("a datagram for the peer of a veth", ends.sent().udp(5_000, 94), PASS, Reason::Forwarded)
            .becomes(ends.to_pod(peer).udp(5_000, 80))
            .for_tc(Mark::Peer(103)),
        case(
            "a datagram without checksum",
            ends.sent().udp(5_000, 94).tagged(VLAN, 1).checksum(Checksum::Zero),
            PASS,
            Reason::Forwarded,
        )
        .becomes(ends.to_pod(peer).udp(5_000, 80).checksum(Checksum::Zero))
        .for_tc(Mark::Peer(103)),
        case("a segment for the stack keeps its tag", ends.sent().tagged(VLAN, 5).tcp(1, 93), PASS, Reason::Forwarded)
            .becomes(ends.to_pod(backend::STACK).tagged(VLAN, 5).tcp(1, 8004))
            .for_tc(Mark::Stack),
    ]
}

fn refused(ends: Ends) -> Vec<Case> {
    let syn = ends.sent().tcp(40_000, 4_444).syn().numbered(7, 0).carrying(b"hello").padded(9);
    let data = ends.sent().tcp(40_000, 443).numbered(1, 77).carrying(b"hello");
    let reset = |from, flags| ends.answer().tcp(from, 40_000).flags(flags);
    let datagram = ends.sent().udp(5_000, 4_444).carrying_bytes(999);
    let traced = ends.sent().udp(5_000, 94).hops(1).carrying(b"traceroute");
    let jumbo = ends.sent().tagged(VLAN, 5).udp(5_000, 94).carrying_bytes(1473);
    let closed = |quote| ends.error(ends.vip, (3, 3), (1, 4), 0, quote);
    let (request, reply) = (ends.sent().echo_request().carrying(b"ping").hops(3), if ends.is_v4 { 0 } else { 129 });
    let replied = |reply| {
        let mut packet = ends.answer().icmp(reply, 0).carrying(b"ping");
        (packet.identification, packet.fragment) = (0x1234, 0);
        packet
    };
    vec![
        case("a SYN to a closed port", syn.clone(), TX, Reason::PortClosed)
            .becomes(reset(4_444, flag::RST | flag::ACK).numbered(0, 13)),
        case("data for a service without a backend", data, TX, Reason::NoBackend)
            .becomes(reset(443, flag::RST).numbered(77, 0)),
        case("a datagram to a closed port", datagram.clone(), TX, Reason::PortClosed).becomes(closed(&datagram)),
        case("a RST to a closed port", syn.clone().flags(flag::RST), DROP, Reason::NotAnswered),
        case("a SYN to a group's MAC", syn.to_mac([0xff; 6]), DROP, Reason::NotAnswered),
        case("the last hop", traced.clone(), TX, Reason::TtlExceeded).becomes(ends.error(
            ends.node,
            (11, 0),
            (3, 0),
            0,
            &traced,
        )),
        case("one byte more than the pod's MTU", jumbo.clone(), TX, Reason::TooBig)
            .becomes(ends.error(ends.node, (3, 4), (2, 0), 1500, &jumbo).tagged(VLAN, 5)),
        case("an echo request", request.clone(), TX, Reason::EchoAnswered).becomes(replied(reply)),
        case("an echo reply", ends.sent().icmp(reply, 0), PASS, Reason::OtherProtocol),
    ]
}

fn left_alone(ends: Ends) -> Vec<Case> {
    let mut short = ends.sent().udp(1, 94);
    short.length_lie = 1;
    let elsewhere = Packet::from(ends.client).to(if ends.is_v4 { "198.51.100.9" } else { "2001:db8:1::9" });
    let fragment = match ends.is_v4 {
        true => ends.sent().echo_request().fragment(0x2000),
        false => ends.sent().extended(Extension::Fragment(1)).echo_request(),
    };
    vec![
        case("a packet for somebody else", elsewhere.tcp(1, 80), PASS, Reason::NotForUs),
        case("GRE to a VIP", Packet { transport: other(47), ..ends.sent() }, PASS, Reason::OtherProtocol),
        case("no connection of a recorded service", ends.sent().tcp(1, 179), DROP, Reason::ForeignSession),
        case("a fragment of ICMP", fragment, PASS, Reason::Fragment),
        case("a packet that is shorter than it says", short, DROP, Reason::Malformed),
        case("three tags", (0..3).fold(ends.sent().udp(1, 94), |p, _| p.tagged(VLAN, 1)), PASS, Reason::NotIp),
        case("a backend that cannot be reached", ends.sent().tcp(1, 81), DROP, Reason::BackendUnreachable),
        case("a backend of the other family", ends.sent().tcp(1, 84), DROP, Reason::BrokenTable),
        case("a backend whose port is not in the table", ends.sent().tcp(1, 85), DROP, Reason::NoPort)
            .becomes(ends.to_pod(backend::NO_PORT).tcp(1, 8007).macs(veth(hop::MISSING).0, veth(hop::MISSING).1)),
        case("a backend of an unknown rung", ends.sent().udp(1, 86), DROP, Reason::BrokenTable),
        case("an interface that has gone", ends.sent().tcp(1, 87), DROP, Reason::NoPort)
            .becomes(ends.to_pod(backend::GONE).tcp(1, 8002).macs(veth(hop::GONE).0, veth(hop::GONE).1)),
    ]
}

const fn other(protocol: u8) -> lb_tests::packets::Transport {
    lb_tests::packets::Transport::Other(protocol)
}

#[test]
fn packets_of_services_are_delivered_by_every_rung() {
    let cases = [0, 1].map(Ends::of).map(delivered).into_iter().flatten();
    check(&Content::full(), cases.collect());
}

/// To pods that own the VIP: nothing changes but MACs and tags.
fn untouched(ends: Ends) -> Vec<Case> {
    let tcp = |hops| ends.sent().hops(hops).tcp(40_000, direct::PORT).numbered(3, 4).carrying(b"open").padded(5);
    let udp = || ends.sent().hops(255).udp(40_000, direct::PORT_UDP).carrying(b"control");
    let kept = |what, packet: Packet| {
        let (destination, source) = veth(hop::VETH);
        let mut out = packet.clone().macs(destination, source);
        out.tags.clear();
        case(what, packet, REDIRECT, Reason::Forwarded).becomes(out)
    };
    let long = ends.sent().hops(1).udp(40_000, direct::PORT_UDP).carrying_bytes(1473);
    vec![
        kept("a SYN", tcp(64).syn()),
        kept("255 hops", tcp(255)),
        kept("the last hop", tcp(1)),
        kept("no hop", tcp(0)),
        kept("two tags", tcp(255).tagged(QINQ, 7).tagged(VLAN, 9)),
        kept("options", tcp(255).with_options(24)),
        kept("a wrong checksum", tcp(255).checksum(Checksum::Wrong)),
        kept("a datagram", udp()),
        kept("a tagged datagram without checksum", udp().tagged(VLAN, 3).checksum(Checksum::Zero)),
        case("one byte more than the pod's MTU, in its last hop", long.clone(), TX, Reason::TooBig)
            .becomes(ends.error(ends.node, (3, 4), (2, 0), 1500, &long)),
    ]
}

#[test]
fn packets_to_pods_that_own_the_vip_keep_every_byte() {
    let cases = [0, 1].map(Ends::of).map(untouched).into_iter().flatten();
    check(&Content::full(), cases.collect());
}

#[test]
fn what_cannot_be_delivered_is_answered() {
    let cases = [0, 1].map(Ends::of).map(refused).into_iter().flatten();
    check(&Content::full(), cases.collect());
}

#[test]
fn everything_else_is_left_alone_or_dropped() {
    let cases = [0, 1].map(Ends::of).map(left_alone).into_iter().flatten();
    check(&Content::full(), cases.collect());
}

#[test]
fn options_and_extension_headers_are_looked_through_up_to_their_bound() {
    let (v4, v6) = (Ends::of(0), Ends::of(1));
    let chain = |n| (0..n).fold(v6.sent(), |packet, _| packet.extended(Extension::Destination(0)));
    let peered = |what, packet: Packet| {
        let mut out = packet.clone().hops(63).udp(1, 80);
        out.destination = pod(packet.source.is_ipv4(), backend::PEER).into();
        case(what, packet, PASS, Reason::Forwarded).becomes(out).for_tc(Mark::Peer(103))
    };
    check(
        &Content::full(),
        vec![
            peered("forty bytes of options", v4.sent().with_options(40).udp(1, 94)),
            peered("six extension headers", chain(6).udp(1, 94)),
            case("seven extension headers", chain(7).udp(1, 94), DROP, Reason::TooManyHeaders),
            peered("512 bytes of extension headers", v6.sent().extended(Extension::Destination(63)).udp(1, 94)),
            case(
                "520 bytes of extension headers",
                v6.sent().extended(Extension::Destination(64)).udp(1, 94),
                DROP,
                Reason::TooManyHeaders,
            ),
            peered("an atomic fragment", v6.sent().extended(Extension::Fragment(0)).udp(1, 94)),
            case(
                "a packet on its way through a router",
                v6.sent().extended(Extension::Routing { segments_left: 1, units: 2 }).udp(1, 94),
                PASS,
                Reason::OtherProtocol,
            ),
        ],
    );
}

#[test]
fn an_ipv6_packet_with_an_ipv4_mapped_address_is_no_packet_of_a_vip() {
    let mapped = Packet::from(CLIENTS[1]).to(&*format!("::ffff:{}", VIPS[0][0]));
    let from_mapped = Packet::from("::ffff:203.0.113.9").to(VIPS[1][0]);
    check(
        &Content::full(),
        vec![
            case("an echo request", mapped.clone().echo_request(), DROP, Reason::Malformed),
            case("a closed port", mapped.clone().tcp(1, 4_444).syn(), DROP, Reason::Malformed),
            case("a service", mapped.udp(1, 94), DROP, Reason::Malformed),
            case("from a mapped address", from_mapped.udp(1, 94), DROP, Reason::Malformed),
        ],
    );
}

#[test]
fn answers_stop_where_their_limit_is_used_up() {
    let ends = Ends::of(0);
    let content = Content::full().limited([0, 0, 0]);
    check(
        &content,
        vec![
            case("a refusal", ends.sent().tcp(1, 4_444).syn(), DROP, Reason::RateLimited),
            case("an echo request", ends.sent().echo_request(), DROP, Reason::RateLimited),
            case("the last hop", ends.sent().udp(1, 94).hops(1), DROP, Reason::RateLimited),
        ],
    );
}

#[test]
fn a_connection_that_cannot_be_recorded_is_dropped() {
    let Some(object) = object() else { return };
    let mut kernel = Kernel::load(&object, &Content::full().with_bypasses(1));
    let ends = Ends::of(0);
    let actions = [1, 2, 1].map(|port| kernel.steer(&ends.sent().tcp(port, 179).syn().frame()).action);
    assert_eq!(actions, [REDIRECT, DROP, REDIRECT], "the second connection, while the first goes on");
    assert_eq!(kernel.reasons(), [(Reason::Forwarded, 2), (Reason::BypassesFull, 1)]);
}

#[test]
fn what_the_slow_path_would_decide_is_dropped_where_that_is_missing() {
    let Some(object) = object() else { return };
    let mut kernel = Kernel::load(&object, &Content::full());
    let frame = Ends::of(0).sent().echo_request().frame();
    let actions = [false, true].map(|there| {
        kernel.set_slow_path(there);
        kernel.steer(&frame).action
    });
    assert_eq!(actions, [DROP, TX]);
    assert_eq!(kernel.reasons(), [(Reason::EchoAnswered, 1), (Reason::NoSlowPath, 1)]);
}
