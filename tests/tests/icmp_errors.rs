//! Needs root and SLUICE_EBPF_OBJECT. ICMP errors through the loaded programs, inwards and outwards: description, error in,
//! action, error out.

use std::net::IpAddr;

use lb_common::{
    abi::{NO_BACKEND, ServiceKey, protocol},
    icmp,
    mark::{self, Mark},
    packet::host::HostFrame,
    reason::Reason,
    reply::Place,
};
use lb_tests::{
    kernel::{Kernel, object},
    packets::{Checksum, Extension, Packet, Transport, VLAN, flag, hex},
    world::{
        World,
        action::{DROP, PASS, REDIRECT},
        content::{
            Content, VIPS, backend, direct, hop,
            moved::{DUAL, PORT},
            pod, veth,
        },
        frame::TestFrame,
        sockets::{Sockets, State, client, connection},
    },
};

const CLIENTS: [&str; 2] = ["203.0.113.9", "2001:db8:c::9"];
const ROUTERS: [&str; 2] = ["192.0.2.77", "2001:db8:77::1"];
const CLIENT_PORT: u16 = 40_000;
/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT` (include/uapi/linux/pkt_cls.h).
const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECTED: i32 = 7;

/// All ends in one family.
#[derive(Clone, Copy)]
struct Ends {
    family: usize,
    client: IpAddr,
    router: IpAddr,
    vip: IpAddr,
}

impl Ends {
    const BOTH: [usize; 2] = [0, 1];

    fn of(family: usize) -> Self {
        let [client, router, vip] =
            [CLIENTS[family], ROUTERS[family], VIPS[family][0]].map(|text| text.parse().expect("an address"));
        Self { family, client, router, vip }
    }

    fn is_v4(self) -> bool {
        self.family == 0
    }

    fn pod(self, id: u32) -> IpAddr {
        pod(self.is_v4(), id).into()
    }

    /// A packet of the VIP to the client.
    fn sent(self) -> Packet {
        Packet::from(self.vip).to(self.client)
    }

    /// "Too big", from a router, about what this says, as far as it is quoted.
    fn too_big(self, quote: &[u8]) -> Packet {
        let (kind, code) = if self.is_v4() { (3, 4) } else { (2, 0) };
        Packet::from(self.router).to(self.vip).icmp(kind, code).saying(1300).carrying(quote)
    }
}

struct Case {
    what: &'static str,
    packet: Packet,
    action: u32,
    reason: Reason,
    out: Option<Packet>,
    mark: Option<Mark>,
}

/// An error about a packet of a pod's, which the VIP sent as `quoted`, of which `bytes` are quoted.
fn delivered(what: &'static str, ends: Ends, quoted: &Packet, id: u32, bytes: usize) -> Case {
    let mut own = quoted.clone();
    own.source = ends.pod(id);
    let pod_port = if id == backend::PEER { 80 } else { 8000 + id as u16 };
    if let Transport::Tcp { ports, .. } | Transport::Udp { ports } = &mut own.transport {
        ports.0 = pod_port;
    }
    let cut = |packet: &Packet| packet.ip()[..packet.ip().len().min(bytes)].to_vec();
    let mut out = ends.too_big(&cut(&own)).hops(63);
    out.destination = ends.pod(id);
    let (action, mark) = match id {
        backend::PEER => (PASS, Some(Mark::Peer(103))),
        backend::STACK => (PASS, Some(Mark::Stack)),
        _ => {
            let (destination, source) = veth(if id == backend::JUMBO { hop::JUMBO } else { hop::VETH });
            out = out.macs(destination, source);
            (REDIRECT, None)
        }
    };
    Case { what, packet: ends.too_big(&cut(quoted)), action, reason: Reason::Forwarded, out: Some(out), mark }
}

const fn dropped(what: &'static str, packet: Packet, reason: Reason) -> Case {
    Case { what, packet, action: DROP, reason, out: None, mark: None }
}

const fn passed(what: &'static str, packet: Packet) -> Case {
    Case { what, packet, action: PASS, reason: Reason::OtherProtocol, out: None, mark: None }
}

fn check(content: &Content, cases: Vec<Case>) {
    let Some(object) = object() else { return };
    let mut kernel = Kernel::load(&object, content);
    for Case { what, packet, action, reason, out, mark } in cases {
        kernel.reset();
        let frame = packet.frame();
        let outcome = kernel.steer(&frame);
        let wanted = HostFrame::new(&out.map_or(frame, |out| out.frame()));
        assert!(mark.is_none_or(|mark| mark::put(&wanted, mark)));
        assert_eq!(kernel.reasons(), [(reason, 1)], "{what} ({})", packet.source);
        assert_eq!(outcome.action, action, "{what} ({})", packet.source);
        assert_eq!(hex(&outcome.bytes), hex(&wanted.to_vec()), "{what} ({})", packet.source);
        let (snapshot, _) = kernel.snapshot();
        assert!(snapshot.bypasses.is_empty(), "{what}: a bypass");
        assert!(snapshot.flows.iter().flatten().all(Option::is_none), "{what}: a record");
    }
}

const ALL: usize = usize::MAX;

#[test]
fn errors_reach_the_pod_whose_packet_they_quote() {
    let mut cases = Vec::new();
    for ends in Ends::BOTH.map(Ends::of) {
        let segment = ends.sent().tcp(90, CLIENT_PORT).carrying_bytes(500);
        let datagram = ends.sent().udp(94, CLIENT_PORT).carrying_bytes(100);
        let header = if ends.is_v4() { 20 } else { 40 };
        cases.extend([
            delivered("about a whole segment", ends, &segment, backend::JUMBO, ALL),
            delivered("about its first eight bytes", ends, &segment, backend::JUMBO, header + 8),
            delivered("about it up to its checksum", ends, &segment, backend::JUMBO, header + 16),
            delivered("about it, checksum and all", ends, &segment, backend::JUMBO, header + 18),
            delivered(
                "about a segment with a wrong checksum",
                ends,
                &segment.clone().checksum(Checksum::Wrong),
                backend::JUMBO,
                ALL,
            ),
            delivered(
                "about a segment with options",
                ends,
                &segment.clone().with_options(12).extended(Extension::Destination(2)),
                backend::JUMBO,
                ALL,
            ),
            delivered(
                "about a first fragment",
                ends,
                &datagram.clone().fragment(0x2000).extended(Extension::Fragment(1)),
                backend::PEER,
                ALL,
            ),
            delivered("about a datagram, by the peer of a veth", ends, &datagram, backend::PEER, ALL),
            delivered(
                "about a datagram without checksum",
                ends,
                &datagram.clone().checksum(Checksum::Zero),
                backend::PEER,
                ALL,
            ),
            delivered(
                "about a segment, by the stack",
                ends,
                &ends.sent().tcp(93, CLIENT_PORT),
                backend::STACK,
                header + 8,
            ),
        ]);
        let mut tagged = delivered("with a tag, which goes", ends, &segment, backend::JUMBO, 200);
        tagged.packet = tagged.packet.tagged(VLAN, 7);
        cases.push(tagged);
    }
    check(&Content::full(), cases);
}

#[test]
fn errors_that_are_nobodys_go_nowhere() {
    let mut cases = Vec::new();
    for ends in Ends::BOTH.map(Ends::of) {
        let error = |packet: &Packet| ends.too_big(&packet.ip());
        let segment = ends.sent().tcp(90, CLIENT_PORT);
        let foreign = Packet::from(ends.client).to(ends.vip).tcp(CLIENT_PORT, 90);
        let other_vip = Packet { source: VIPS[ends.family][1].parse().expect("an address"), ..segment.clone() };
        let (kind, reply) = if ends.is_v4() { (11, 0) } else { (3, 129) };
        let later = segment.clone().fragment(0x2001).extended(Extension::Fragment(9));
        let header = if ends.is_v4() { 20 } else { 40 };
        let chain = (0..7).fold(segment.clone(), |packet, _| packet.extended(Extension::Destination(0)));
        cases.extend([
            dropped("about the client's own packet", error(&foreign), Reason::IcmpForeign),
            dropped("about another VIP's packet", error(&other_vip), Reason::IcmpForeign),
            dropped("about an error", error(&ends.sent().icmp(kind, 0)), Reason::IcmpForeign),
            dropped("about a later fragment", error(&later), Reason::IcmpNoPorts),
            dropped("about a closed port", error(&ends.sent().tcp(4_444, 1)), Reason::IcmpUnowned),
            dropped("about a service of the other protocol", error(&ends.sent().udp(90, 1)), Reason::IcmpUnowned),
            dropped("about a service without a backend", error(&ends.sent().tcp(443, 1)), Reason::IcmpUnowned),
            dropped("about a pod that cannot be reached", error(&ends.sent().tcp(81, 1)), Reason::BackendUnreachable),
            dropped("about broken tables", error(&ends.sent().tcp(83, 1)), Reason::BrokenTable),
            dropped("in its last hop", error(&segment).hops(1), Reason::NotAnswered),
            dropped("about seven bytes", ends.too_big(&segment.ip()[..header + 7]), Reason::Malformed),
            dropped("about less than a header", ends.too_big(&segment.ip()[..header - 1]), Reason::Malformed),
            dropped(
                "about seven bytes and padding",
                ends.too_big(&segment.ip()[..header + 7]).padded(20),
                Reason::Malformed,
            ),
            passed("about an echo reply", error(&ends.sent().icmp(reply, 0))),
            passed("about GRE", error(&Packet { transport: Transport::Other(47), ..ends.sent() }.carrying_bytes(8))),
        ]);
        if ends.is_v4() {
            let quench = ends.too_big(&segment.ip()).icmp(4, 0);
            let redirect = ends.too_big(&segment.ip()).icmp(5, 1);
            cases.extend([passed("a source quench", quench), passed("a redirect", redirect)]);
        } else {
            cases.push(dropped("about seven extension headers", error(&chain), Reason::TooManyHeaders));
        }
    }
    check(&Content::full(), cases);
}

#[test]
fn an_error_about_a_session_in_a_moved_slot_reaches_the_owner_that_has_it() {
    let Some(object) = object() else { return };
    let (new, old) = (13, DUAL[0]);
    let mut content = Content::full();
    let places = [0usize, 1].map(|family| {
        let from = (client(family, 0), 50_001 + family as u16);
        let vip: IpAddr = VIPS[family][0].parse().expect("an address");
        content.set_owners(from, (vip, PORT), Some(new), &[old]);
        (family, from, vip)
    });
    let mut sockets = Sockets::new(&content);
    let mut kernel = Kernel::load(&object, &content);
    for (family, from, vip) in places {
        let error = |kernel: &mut Kernel| {
            kernel.reset();
            let quoted = Packet::from(vip).to(from.0).tcp(PORT, from.1).flags(flag::ACK).ip();
            let outcome = kernel.steer(&Ends::of(family).too_big(&quoted).frame());
            let (snapshot, _) = kernel.snapshot();
            assert!(snapshot.flows.iter().flatten().all(Option::is_none), "an error is remembered");
            lb_tests::packets::oracle::facts(&outcome.bytes).expect("a packet").destination
        };
        assert_eq!(error(&mut kernel), Ends::of(family).pod(new), "of nobody's session: the current owner");
        sockets.put(connection(&content, from.0, from.1, old), State::Established);
        sockets.check();
        assert_eq!(error(&mut kernel), Ends::of(family).pod(old), "the session's owner");
    }
}

/// An error of a pod about a client's packet, in and out.
fn told(ends: Ends, from: IpAddr, request: &Packet, id: u32, vip: (IpAddr, u16)) -> (Packet, Packet) {
    let (kind, code) = if ends.is_v4() { (3, 3) } else { (1, 4) };
    let error = |from: IpAddr, quote: &Packet| {
        Packet::from(from).to(ends.client).icmp(kind, code).saying(0).carrying(&quote.ip())
    };
    let mut as_sent = request.clone();
    as_sent.destination = vip.0;
    if let Transport::Tcp { ports, .. } | Transport::Udp { ports } = &mut as_sent.transport {
        ports.1 = vip.1;
    }
    let own = from == ends.pod(id);
    (error(from, request), error(if own { vip.0 } else { from }, &as_sent))
}

#[test]
fn errors_of_pods_reach_the_client_from_the_vip() {
    let Some(object) = object() else { return };
    let content = Content::full();
    let mut kernel = Kernel::load(&object, &content);
    let macs = ([2, 9, 9, 9, 9, 1], [2, 9, 9, 9, 9, 2]);
    kernel.add_routes(&content, &[0, 1].map(|family| Ends::of(family).client.into()), macs);
    for ends in Ends::BOTH.map(Ends::of) {
        let to = |id: u32| Packet::from(ends.client).to(ends.pod(id)).hops(9);
        let datagram = to(backend::REDIRECT).udp(CLIENT_PORT, 8000).carrying(b"anybody there?");
        let unsummed = datagram.clone().checksum(Checksum::Zero);
        let segment = to(backend::REDIRECT).tcp(CLIENT_PORT, 8000).with_options(8).extended(Extension::HopByHop(1));
        for (what, request, from, port) in [
            ("about a datagram", &datagram, ends.pod(0), 162),
            ("about a datagram without checksum", &unsummed, ends.pod(0), 162),
            ("about a segment", &segment, ends.pod(0), 80),
            ("from a router behind the pod", &datagram, ends.router, 162),
        ] {
            kernel.reset();
            let (error, out) = told(ends, from, request, backend::REDIRECT, (ends.vip, port));
            let (action, bytes) = kernel.run_tc("sluice_return", &error.frame());
            assert_eq!(kernel.reasons(), [(Reason::Replied, 1)], "{what} to {}", ends.client);
            assert_eq!(action, REDIRECTED, "{what} to {}", ends.client);
            assert_eq!(hex(&bytes), hex(&out.hops(63).macs(macs.0, macs.1).frame()), "{what} to {}", ends.client);
        }
        // Of the rung `stack` at the uplink: from the pod, and from the node about the pod.
        let request = to(backend::STACK).udp(CLIENT_PORT, 8004).carrying(b"anybody there?");
        for from in [ends.pod(backend::STACK), ends.router] {
            kernel.reset();
            let (error, out) = told(ends, from, &request, backend::STACK, (ends.vip, 162));
            let outcome = kernel.run_tc("sluice_uplink_out", &error.frame());
            assert_eq!(kernel.reasons(), [(Reason::Replied, 1)], "from {from}");
            assert_eq!((outcome.0, hex(&outcome.1)), (UNSPEC, hex(&out.frame())), "from {from}");
        }
    }
}

/// What health checks by datagram go by. Counted whichever way the datagram came, and only where the pod's own kernel says it.
#[test]
fn a_port_that_a_pods_kernel_calls_unreachable_is_counted_for_its_endpoint() {
    let Some(object) = object() else { return };
    let content = Content::full();
    let mut kernel = Kernel::load(&object, &content);
    let world = World::new(&content);
    for ends in Ends::BOTH.map(Ends::of) {
        let to = |id: u32| Packet::from(ends.client).to(ends.pod(id)).hops(9);
        let from = |from: IpAddr, request: &Packet| told(ends, from, request, 0, (ends.vip, 162)).0;
        let (kind, code) = if ends.is_v4() { (3, 1) } else { (1, 3) };
        let of_host = |request: &Packet| {
            Packet::from(ends.pod(0)).to(ends.client).icmp(kind, code).saying(0).carrying(&request.ip())
        };
        let (datagram, segment) = (to(0).udp(CLIENT_PORT, 8000), to(0).tcp(CLIENT_PORT, 8000));
        let (other, unrecorded) = (to(0).udp(CLIENT_PORT, 9), to(backend::JUMBO).udp(CLIENT_PORT, 8008));
        let owned = Packet { destination: ends.vip, ..to(0).udp(CLIENT_PORT, direct::PORT_UDP) };
        let of = |address: IpAddr, port| ServiceKey::new(address.into(), port, protocol::UDP);
        for (what, packet, counted) in [
            ("about a datagram through a VIP", from(ends.pod(0), &datagram), Some(of(ends.pod(0), 8000))),
            ("at the last hop", from(ends.pod(0), &datagram).hops(1), Some(of(ends.pod(0), 8000))),
            (
                "whom no record names",
                from(ends.pod(backend::JUMBO), &unrecorded),
                Some(of(ends.pod(backend::JUMBO), 8008)),
            ),
            (
                "a pod's that owns the VIP",
                from(ends.vip, &owned),
                Some(of(ends.vip, direct::PORT_UDP).at(direct::INTERFACE)),
            ),
            ("from a router", from(ends.router, &datagram), None),
            ("host unreachable", of_host(&datagram), None),
            ("about a segment", from(ends.pod(0), &segment), None),
            ("of a port without a service", from(ends.pod(0), &other), None),
        ] {
            let id = counted.map(|key| {
                content.endpoints.iter().find(|(known, _)| *known == key).expect("an endpoint").1.id as usize
            });
            let frame = packet.frame();
            let before = (kernel.refused(), world.refused());
            kernel.run_tc("sluice_return", &frame);
            icmp::to_client(&TestFrame::new(&frame), &world, Place::Pod);
            for (place, before, after) in [("kernel", before.0, kernel.refused()), ("host", before.1, world.refused())]
            {
                let mut wanted = before;
                id.into_iter().for_each(|id| wanted[id] += 1);
                assert_eq!(after, wanted, "{what}, {}, {place}", ends.client);
            }
        }
    }
}

#[test]
fn errors_of_pods_about_what_came_another_way_are_left_alone() {
    let Some(object) = object() else { return };
    let content = Content::full();
    let mut kernel = Kernel::load(&object, &content);
    for ends in Ends::BOTH.map(Ends::of) {
        let endpoint = content
            .endpoints
            .iter()
            .find(|(key, _)| *key == ServiceKey::new(ends.pod(0).into(), 8000, protocol::TCP))
            .expect("an endpoint")
            .1;
        let key = lb_common::abi::BypassKey {
            client: ends.client.into(),
            pod: ends.pod(0).into(),
            client_port: CLIENT_PORT,
            pod_port: 8000,
            protocol: protocol::TCP,
            pad: 0,
            pad2: 0,
        };
        let to = |id: u32| Packet::from(ends.client).to(ends.pod(id));
        let segment = to(0).tcp(CLIENT_PORT, 8000);
        let unrecorded = to(backend::JUMBO).udp(CLIENT_PORT, 8008);
        let from_vip = Packet { source: ends.vip, ..to(0).tcp(80, 8000) };
        let error = |request: &Packet| told(ends, ends.pod(0), request, 0, (ends.vip, 80)).0;
        for (what, packet, bypass, action, reason) in [
            ("a bypass", error(&segment), Some(NO_BACKEND), UNSPEC, Reason::Bypassed),
            ("of a service that is gone", error(&segment), Some(9_999), SHOT, Reason::RecordWithoutService),
            ("another port", error(&to(0).tcp(CLIENT_PORT, 9)), None, UNSPEC, Reason::NotAReply),
            ("whom no record names", error(&unrecorded), None, UNSPEC, Reason::Unrecorded),
            (
                "the pod's own packet",
                error(&Packet::from(ends.pod(0)).to(ends.client).tcp(8000, 1)),
                None,
                UNSPEC,
                Reason::NotAReply,
            ),
            ("the last hop", error(&segment).hops(1), None, UNSPEC, Reason::TtlExceeded),
            ("a VIP", Packet { destination: ends.vip, ..error(&from_vip) }, None, SHOT, Reason::ReplyToVip),
            ("an echo", Packet::from(ends.pod(0)).to(ends.client).echo_request(), None, UNSPEC, Reason::NotAReply),
            (
                "less than eight bytes",
                Packet { payload: segment.ip()[..25].to_vec(), ..error(&segment) },
                None,
                UNSPEC,
                Reason::NotAReply,
            ),
        ] {
            kernel.reset();
            if let Some(backend) = bypass {
                kernel.add_bypass(key, endpoint.id, backend);
            }
            let frame = packet.frame();
            assert_eq!(kernel.run_tc("sluice_return", &frame), (action, frame), "{what}, {}", ends.client);
            assert_eq!(kernel.reasons(), [(reason, 1)], "{what}, {}", ends.client);
        }
    }
}

#[test]
fn a_reply_longer_than_its_route_is_left_to_the_stack() {
    let Some(object) = object() else { return };
    let content = Content::full();
    let mut kernel = Kernel::load(&object, &content);
    let macs = ([2, 9, 9, 9, 9, 1], [2, 9, 9, 9, 9, 2]);
    kernel.add_routes(&content, &[0, 1].map(|family| Ends::of(family).client.into()), macs);
    for ends in Ends::BOTH.map(Ends::of) {
        let header = if ends.is_v4() { 40 } else { 60 };
        let of = |length: usize| {
            let segment = Packet::from(ends.pod(0)).to(ends.client).tcp(8000, CLIENT_PORT);
            segment.fragment(0x4000).carrying_bytes(length - header)
        };
        let longest = lb_tests::kernel::ROUTE_MTU as usize;
        kernel.reset();
        assert_eq!(kernel.run_tc("sluice_return", &of(longest).frame()).0, REDIRECTED);
        assert_eq!(kernel.reasons(), [(Reason::Replied, 1)]);
        kernel.reset();
        let frame = of(longest + 1).frame();
        assert_eq!(kernel.run_tc("sluice_return", &frame), (UNSPEC, frame), "as it came");
        assert_eq!(kernel.reasons(), [(Reason::ReplyTooBig, 1)]);
        if ends.is_v4() {
            kernel.reset();
            let (action, bytes) = kernel.run_tc("sluice_return", &of(longest + 1).fragment(0).frame());
            assert_eq!(action, UNSPEC, "the stack makes fragments of it");
            let source = lb_tests::packets::oracle::facts(&bytes).expect("a packet").source;
            assert_eq!((source, kernel.reasons()), (ends.vip, vec![(Reason::Replied, 1)]));
        }
    }
}
