//! Which packets of pods are replies, on the host and through the loaded `sluice_return`; which connections beside the
//! VIPs are recorded. What goes through the kernel needs root and SLUICE_EBPF_OBJECT.

use std::net::IpAddr;

use lb_common::{
    abi::{BypassKey, Endpoint, NO_BACKEND, NO_NETNS, ServiceKey, endpoint_flags, protocol},
    address::Address,
    flow::{Key, State},
    headers,
    reason::Reason,
    reply::{Observed, Place, Reply, ReturnTables as _, observe, reply},
    session::Sessions as _,
    steer::Tables as _,
};
use lb_tests::{
    kernel::{Kernel, object},
    packets::{Checksum, Extension, Packet, Transport, VLAN, flag, hex},
    world::{
        World,
        content::{Content, VIPS, backend, direct, pod},
        frame::TestFrame,
    },
};

const CLIENTS: [&str; 2] = ["203.0.113.9", "2001:db8:c::9"];
const PORT: u16 = 40_000;

/// What becomes of a packet, without the offsets.
#[derive(PartialEq, Debug)]
enum Becomes {
    Passes(Reason),
    Dropped(Reason),
    ComesFrom(Address, u16),
    /// As it is, counted under this backend.
    Leaves(u32),
}
use Becomes::{ComesFrom, Dropped, Leaves, Passes};

/// A pod that talks to a client, in one family.
#[derive(Clone, Copy)]
struct Ends {
    family: usize,
    client: IpAddr,
}

impl Ends {
    fn of(family: usize) -> Self {
        Self { family, client: CLIENTS[family].parse().expect("an address") }
    }

    fn id(self, backend: u32) -> u32 {
        backend + if self.family == 0 { 0 } else { backend::V6 }
    }

    fn pod(self, backend: u32) -> Address {
        pod(self.family == 0, backend)
    }

    fn vip(self, number: usize) -> Address {
        lb_tests::world::content::address(VIPS[self.family][number])
    }

    /// From a pod to the client.
    fn from(self, backend: u32) -> Packet {
        Packet::from(IpAddr::from(self.pod(backend))).to(self.client)
    }

    fn segment(self) -> Packet {
        self.from(backend::REDIRECT).tcp(8000, PORT)
    }

    fn connection(self) -> BypassKey {
        let (client, pod) = (self.client.into(), self.pod(backend::REDIRECT));
        BypassKey { client, pod, client_port: PORT, pod_port: 8000, protocol: protocol::TCP, pad: 0, pad2: 0 }
    }

    fn record(self, world: &World, backend: u32) {
        let (key, id) = (self.connection(), self.id(backend::REDIRECT));
        assert!(world.record_bypass(&key, id, backend));
    }

    /// Flags of the endpoint that [`Ends::segment`] comes from.
    fn flagged(self, content: &mut Content, flags: u16) {
        let pod = self.pod(backend::REDIRECT);
        let endpoints = content.endpoints.iter_mut();
        let wanted = endpoints.filter(|(key, _)| key.address == pod && key.protocol == protocol::TCP);
        for (_, endpoint) in wanted {
            *endpoint = Endpoint { flags, ..*endpoint };
        }
    }
}

fn decide(world: &World, packet: &Packet, place: Place) -> Becomes {
    let frame = TestFrame::new(&packet.frame());
    let Some(headers) = headers::parse(&frame) else { return Passes(Reason::NotAReply) };
    match reply(&frame, world, place, &headers) {
        Reply::Pass(reason) => Passes(reason),
        Reply::Drop(reason) => Dropped(reason),
        Reply::Rewrite { vip, port, .. } => ComesFrom(vip, port),
        Reply::Leave { backend, .. } => Leaves(backend),
        Reply::Message => Passes(Reason::NotAReply),
        Reply::Answer { .. } => Dropped(Reason::SelfTest),
        Reply::Fragment => Dropped(Reason::NoSlowPath),
    }
}

/// Runs a table of cases in both families, each on fresh tables.
fn check(cases: impl Fn(Ends, &World) -> Vec<(&'static str, Packet, Becomes)>) {
    for ends in [0, 1].map(Ends::of) {
        let world = World::new(&Content::full());
        for (what, packet, wanted) in cases(ends, &world) {
            assert_eq!(decide(&world, &packet, Place::Pod), wanted, "{what} to {}", ends.client);
        }
    }
}

#[test]
fn replies_of_static_services_come_from_the_default_vip() {
    check(|ends, _| {
        vec![
            ("a segment", ends.segment(), ComesFrom(ends.vip(0), 80)),
            ("a tagged SYN-ACK", ends.segment().flags(18).tagged(VLAN, 2), ComesFrom(ends.vip(0), 80)),
            ("a datagram", ends.from(backend::REDIRECT).udp(8000, 9), ComesFrom(ends.vip(0), 162)),
            ("another port", ends.from(backend::REDIRECT).tcp(8001, PORT), Passes(Reason::NotAReply)),
            ("another pod", ends.from(15).tcp(8000, PORT), Passes(Reason::NotAReply)),
            ("the last hop", ends.segment().hops(1), Passes(Reason::TtlExceeded)),
            (
                "a reply to a VIP",
                Packet { destination: ends.vip(1).into(), ..ends.segment() },
                Dropped(Reason::ReplyToVip),
            ),
            ("an echo", ends.from(backend::REDIRECT).echo_request(), Passes(Reason::NotAReply)),
            ("a fragment, for the slow path", fragment(ends.segment()), Dropped(Reason::NoSlowPath)),
            ("a pod of the stack", ends.from(backend::STACK).tcp(8004, PORT), Passes(Reason::NotAReply)),
        ]
    });
}

fn fragment(packet: Packet) -> Packet {
    packet.fragment(0x2000).extended(Extension::Fragment(1))
}

#[test]
fn a_connection_that_is_recorded_keeps_its_source() {
    check(|ends, world| {
        ends.record(world, NO_BACKEND);
        vec![
            ("a bypass", ends.segment(), Passes(Reason::Bypassed)),
            ("another connection", ends.from(backend::REDIRECT).tcp(8000, 1), ComesFrom(ends.vip(0), 80)),
        ]
    });
    check(|ends, world| {
        ends.record(world, world.content.backend_id(VIPS[ends.family][1], 80, protocol::TCP, backend::REDIRECT));
        vec![("a session of the second VIP", ends.segment(), ComesFrom(ends.vip(1), 80))]
    });
    check(|ends, world| {
        ends.record(world, 9_999);
        vec![("a session of a service that has gone", ends.segment(), Dropped(Reason::RecordWithoutService))]
    });
}

#[test]
fn recorded_udp_answers_whom_the_record_names() {
    check(|ends, world| {
        let second = world.content.backend_id(VIPS[ends.family][1], 53, protocol::UDP, backend::REDIRECT);
        world.record_flow(ends.id(backend::JUMBO), ends.client.into(), 5_353, second);
        let from = |to| ends.from(backend::JUMBO).udp(8008, to);
        vec![
            ("who came through the second VIP", from(5_353), ComesFrom(ends.vip(1), 53)),
            ("who came through none", from(5_354), Passes(Reason::Unrecorded)),
        ]
    });
}

#[test]
fn a_connection_that_the_pod_opens_is_a_bypass() {
    for ends in [0, 1].map(Ends::of) {
        let world = World::new(&Content::full().with_bypasses(1));
        assert_eq!(decide(&world, &ends.segment().syn(), Place::Pod), Passes(Reason::Bypassed));
        assert_eq!(world.bypasses.borrow().get(&ends.connection()), Some(&NO_BACKEND));
        assert_eq!(decide(&world, &ends.segment(), Place::Pod), Passes(Reason::Bypassed), "what follows");
        let second = ends.from(backend::REDIRECT).tcp(8000, 1).syn();
        assert_eq!(decide(&world, &second, Place::Pod), Dropped(Reason::BypassesFull), "no room for another");
    }
}

#[test]
fn flags_of_an_endpoint_say_where_and_whether_replies_are_rewritten() {
    use endpoint_flags::{LEARNING, SELF_TEST, STACK, STATIC};
    for ends in [0, 1].map(Ends::of) {
        let rewritten = || ComesFrom(ends.vip(0), 80);
        for (flags, at_pod, at_uplink) in [
            (STATIC, rewritten(), Passes(Reason::NotAReply)),
            (STATIC | STACK, Passes(Reason::NotAReply), rewritten()),
            (STATIC | LEARNING, Passes(Reason::NotAReply), Passes(Reason::NotAReply)),
            (STATIC | SELF_TEST, Dropped(Reason::SelfTest), Passes(Reason::NotAReply)),
            (0, Passes(Reason::NotAReply), Passes(Reason::NotAReply)),
        ] {
            let mut content = Content::full();
            ends.flagged(&mut content, flags);
            let world = World::new(&content);
            assert_eq!(decide(&world, &ends.segment(), Place::Pod), at_pod, "flags {flags:#x} at the pod");
            assert_eq!(decide(&world, &ends.segment(), Place::Uplink), at_uplink, "flags {flags:#x} at the uplink");
        }
    }
}

#[test]
fn connections_beside_the_vips_are_observed() {
    for ends in [0, 1].map(Ends::of) {
        let world = World::new(&Content::full().with_bypasses(1));
        let towards = |to: u32| Packet::from(ends.client).to(IpAddr::from(ends.pod(to)));
        let seen = |packet: Packet, place| observe(&TestFrame::new(&packet.frame()), &world, place);
        let (recorded, ignored) = (Observed::Pass(Reason::BypassSeen), Observed::Pass(Reason::NotForUs));
        assert_eq!(seen(towards(0).udp(PORT, 8000), Place::Pod), ignored, "UDP has no bypasses");
        assert_eq!(seen(towards(0).tcp(PORT, 9), Place::Pod), ignored, "no endpoint");
        assert_eq!(seen(towards(4).tcp(PORT, 8004), Place::Pod), ignored, "the stack's are seen at the uplink");
        assert_eq!(seen(towards(0).tcp(PORT, 8000).syn(), Place::Pod), recorded);
        assert_eq!(world.bypasses.borrow().get(&ends.connection()), Some(&NO_BACKEND));
        assert_eq!(seen(towards(0).tcp(PORT, 8000), Place::Pod), recorded, "what is known needs no room");
        let full = Observed::Drop(Reason::BypassesFull);
        assert_eq!(seen(towards(4).tcp(PORT, 8004), Place::Uplink), full, "no room for another");
    }
}

#[test]
fn a_session_of_a_vip_stays_one_when_it_is_seen_at_the_pod() {
    for ends in [0, 1].map(Ends::of) {
        let world = World::new(&Content::full());
        ends.record(&world, 7);
        let packet = Packet::from(ends.client).to(IpAddr::from(ends.pod(0))).tcp(PORT, 8000);
        let seen = observe(&TestFrame::new(&packet.frame()), &world, Place::Pod);
        assert_eq!(seen, Observed::Pass(Reason::BypassSeen));
        assert_eq!(world.bypasses.borrow().get(&ends.connection()), Some(&7));
    }
}

impl Ends {
    /// From a VIP, as a pod that owns it speaks.
    fn of_vip(self) -> Packet {
        Packet::from(IpAddr::from(self.vip(0))).to(self.client)
    }

    fn owner(self, world: &World, port: u16, protocol: u8) -> u32 {
        world.content.backend_id(VIPS[self.family][0], port, protocol, direct::OWNER)
    }
}

#[test]
fn a_pod_that_owns_the_vip_is_known_by_its_interface() {
    check(|ends, world| {
        let backend = ends.owner(world, direct::PORT, protocol::TCP);
        let segment = || ends.of_vip().tcp(direct::PORT, PORT);
        let to_vip = Packet { destination: ends.vip(1).into(), ..segment() };
        vec![
            ("a segment", segment(), Leaves(backend)),
            ("a SYN-ACK with 255 hops", segment().flags(flag::SYN | flag::ACK).hops(255), Leaves(backend)),
            ("the last hop", segment().hops(1), Leaves(backend)),
            (
                "a datagram",
                ends.of_vip().udp(direct::PORT_UDP, 9),
                Leaves(ends.owner(world, direct::PORT_UDP, protocol::UDP)),
            ),
            ("a connection of its own", segment().syn(), Passes(Reason::Bypassed)),
            ("another port of the VIP", ends.of_vip().tcp(80, PORT), Passes(Reason::NotAReply)),
            ("the other protocol", ends.of_vip().udp(direct::PORT, PORT), Passes(Reason::NotAReply)),
            ("another VIP", Packet { source: ends.vip(1).into(), ..segment() }, Passes(Reason::NotAReply)),
            ("to a VIP", to_vip, Dropped(Reason::ReplyToVip)),
            ("a fragment, which is for another program", fragment(segment()), Dropped(Reason::NoSlowPath)),
        ]
    });
}

#[test]
fn whoever_else_speaks_from_the_vip_is_left_to_the_stack() {
    for ends in [0, 1].map(Ends::of) {
        let mut world = World::new(&Content::full());
        let segment = ends.of_vip().tcp(direct::PORT_MANY, PORT);
        let own = Leaves(ends.owner(&world, direct::PORT_MANY, protocol::TCP));
        assert_eq!(decide(&world, &segment, Place::Pod), own);
        assert_eq!(decide(&world, &segment, Place::Uplink), Passes(Reason::NotAReply), "at the uplink");
        let writes = world.writes.get();
        world.interface = 100 + direct::NARROW;
        let narrow = world.content.backend_id(VIPS[ends.family][0], direct::PORT_MANY, protocol::TCP, direct::NARROW);
        assert_eq!(decide(&world, &segment, Place::Pod), Leaves(narrow), "the other pod that owns it");
        world.interface = 77;
        for packet in [segment.clone(), segment.syn()] {
            assert_eq!(decide(&world, &packet, Place::Pod), Passes(Reason::NotAReply), "no backend's pod");
        }
        assert_eq!(world.writes.get(), writes, "nothing is recorded");
    }
}

#[test]
fn the_answer_of_a_pod_that_owns_the_vip_to_a_self_test_goes_no_further() {
    for ends in [0, 1].map(Ends::of) {
        let mut content = Content::full();
        for (_, endpoint) in content.endpoints.iter_mut().filter(|(key, _)| key.interface == direct::INTERFACE) {
            endpoint.flags = endpoint_flags::SELF_TEST;
        }
        let world = World::new(&content);
        for packet in [ends.of_vip().tcp(direct::PORT, PORT), ends.of_vip().tcp(direct::PORT, PORT).syn()] {
            assert_eq!(decide(&world, &packet, Place::Pod), Dropped(Reason::SelfTest));
        }
    }
}

#[test]
fn the_loaded_program_sends_out_what_a_vips_own_pods_send_as_it_is() {
    let Some(object) = object() else { return };
    let content = Content::full();
    let mut elsewhere = content.clone();
    for (key, _) in elsewhere.endpoints.iter_mut().filter(|(key, _)| key.interface == direct::INTERFACE) {
        key.interface += 1;
    }
    let (mut kernel, mut foreign) = (Kernel::load(&object, &content), Kernel::load(&object, &elsewhere));
    let macs = ([2, 9, 9, 9, 9, 1], [2, 9, 9, 9, 9, 2]);
    kernel.add_routes(&content, &[0, 1].map(|family| Ends::of(family).client.into()), macs);
    for ends in [0, 1].map(Ends::of) {
        for (what, packet) in [
            ("a segment", ends.of_vip().tcp(direct::PORT, PORT).hops(255).carrying_bytes(1001)),
            ("a segment with a wrong checksum", ends.of_vip().tcp(direct::PORT, PORT).checksum(Checksum::Wrong)),
            ("the last hop", ends.of_vip().tcp(direct::PORT_MANY, PORT).hops(1)),
            ("a datagram", ends.of_vip().udp(direct::PORT_UDP, 9).hops(255).with_options(12)),
        ] {
            kernel.reset();
            let (action, bytes) = kernel.run_tc("sluice_return", &packet.frame());
            assert_eq!(kernel.reasons(), [(Reason::Replied, 1)], "{what} to {}", ends.client);
            assert_eq!(action, REDIRECTED, "{what} to {}", ends.client);
            let out = packet.clone().macs(macs.0, macs.1);
            assert_eq!(hex(&bytes), hex(&out.frame()), "{what} to {}", ends.client);
            foreign.reset();
            let (action, bytes) = foreign.run_tc("sluice_return", &packet.frame());
            assert_eq!((action, hex(&bytes)), (UNSPEC, hex(&packet.frame())), "{what} from no backend's pod");
            assert_eq!(foreign.reasons(), [(Reason::NotAReply, 1)], "{what} from no backend's pod");
        }
    }
}

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT` (include/uapi/linux/pkt_cls.h).
const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECTED: i32 = 7;

#[test]
fn the_loaded_program_rewrites_replies() {
    let Some(object) = object() else { return };
    let content = Content::full();
    rewrites_replies(&mut Kernel::load(&object, &content), &content);
}

#[test]
fn a_kernel_that_does_not_say_what_a_checksum_is_updates_it() {
    let Some(object) = object() else { return };
    let content = Content::full();
    rewrites_replies(&mut Kernel::load_as_compiled(&object, &content), &content);
}

fn rewrites_replies(kernel: &mut Kernel, content: &Content) {
    let macs = ([2, 9, 9, 9, 9, 1], [2, 9, 9, 9, 9, 2]);
    kernel.add_routes(content, &[0, 1].map(|family| Ends::of(family).client.into()), macs);
    for ends in [0, 1].map(Ends::of) {
        let replied = |packet: Packet, port| {
            let mut out = packet.hops(63).macs(macs.0, macs.1);
            out.source = ends.vip(0).into();
            match &mut out.transport {
                Transport::Tcp { ports, .. } | Transport::Udp { ports } => ports.0 = port,
                Transport::Icmp { .. } | Transport::Other(_) => {}
            }
            out
        };
        let datagram = ends.from(backend::REDIRECT).udp(8000, 9).carrying(b"inform");
        for (what, packet, port) in [
            ("a segment", ends.segment().carrying_bytes(1001), 80),
            ("a segment with a wrong checksum", ends.segment().checksum(Checksum::Wrong), 80),
            ("a segment with options", ends.segment().with_options(12).flags(flag::SYN | flag::ACK), 80),
            ("a datagram", datagram.clone(), 162),
        ] {
            kernel.reset();
            let (action, bytes) = kernel.run_tc("sluice_return", &packet.frame());
            assert_eq!(kernel.reasons(), [(Reason::Replied, 1)], "{what} to {}", ends.client);
            assert_eq!(action, REDIRECTED, "{what} to {}", ends.client);
            assert_eq!(hex(&bytes), hex(&replied(packet, port).frame()), "{what} to {}", ends.client);
        }
        if ends.family == 0 {
            let unsummed = datagram.checksum(Checksum::Zero);
            let (_, bytes) = kernel.run_tc("sluice_return", &unsummed.frame());
            assert_eq!(hex(&bytes), hex(&replied(unsummed, 162).frame()), "a datagram without checksum");
        }
    }
}

#[test]
fn the_sum_that_the_kernel_has_beside_a_reply_stays_right() {
    let Some(object) = object() else { return };
    let content = Content::full();
    let mut kernel = Kernel::load(&object, &content);
    let macs = ([2, 9, 9, 9, 9, 1], [2, 9, 9, 9, 9, 2]);
    kernel.add_routes(&content, &[0, 1].map(|family| Ends::of(family).client.into()), macs);
    for ends in [0, 1].map(Ends::of) {
        let datagram = ends.from(backend::REDIRECT).udp(8000, 9).carrying(b"inform");
        let mut packets = vec![ends.segment().carrying_bytes(1001), datagram.clone()];
        if ends.family == 0 {
            packets.push(datagram.checksum(Checksum::Zero));
        }
        for packet in packets {
            let frame = packet.frame();
            let Some(run) = kernel.run_tc_complete("sluice_return", &frame) else { return };
            assert_eq!(run, kernel.run_tc("sluice_return", &frame), "to {}", ends.client);
            assert_eq!(run.0, REDIRECTED, "to {}", ends.client);
        }
    }
}

#[test]
fn what_an_opaque_pod_says_is_recorded() {
    let Some(object) = object() else { return };
    let mut content = Content::full();
    for ends in [0, 1].map(Ends::of) {
        ends.flagged(&mut content, endpoint_flags::STATIC | endpoint_flags::OPAQUE);
    }
    let mut kernel = Kernel::load(&object, &content);
    let macs = ([2, 9, 9, 9, 9, 1], [2, 9, 9, 9, 9, 2]);
    kernel.add_routes(&content, &[0, 1].map(|family| Ends::of(family).client.into()), macs);
    for ends in [0, 1].map(Ends::of) {
        kernel.reset();
        let world = World::new(&content);
        let vip = ServiceKey::new(ends.vip(0), 80, protocol::TCP);
        let service = content.services.iter().find(|(key, _)| *key == vip).expect("a service").1.id;
        let key = Key::tcp(service, ends.client.into(), PORT);
        let id = content.backend_id(VIPS[ends.family][0], 80, protocol::TCP, backend::REDIRECT);
        let (ack, data) = (ends.segment().flags(flag::ACK), ends.segment().carrying(b"x"));
        let (end, reset) = (ends.segment().flags(flag::ACK | flag::FIN), ends.segment().flags(flag::RST));
        for (what, packet, wanted) in [
            ("a SYN-ACK", ends.segment().flags(flag::SYN | flag::ACK), None),
            ("a RST", reset.clone(), None),
            ("a FIN of no connection", end.clone(), None),
            ("an ACK", ack.clone(), Some(State::Established)),
            ("a FIN", end, Some(State::Closing)),
            ("the ACK of the other FIN", ack, Some(State::Closing)),
            ("payload", data, Some(State::Established)),
            ("a RST of a connection", reset, Some(State::Closing)),
        ] {
            let frame = packet.frame();
            assert_eq!(decide(&world, &packet, Place::Pod), ComesFrom(ends.vip(0), 80), "{what} to {}", ends.client);
            assert_eq!(kernel.run_tc("sluice_return", &frame).0, REDIRECTED, "{what} to {}", ends.client);
            let wanted: Vec<_> = wanted.map(|state| (key.in_state(state), id)).into_iter().collect();
            for snapshot in [world.snapshot(), kernel.snapshot().0] {
                let records: Vec<_> = snapshot.flows.iter().flatten().flatten().copied().collect();
                assert_eq!(records, wanted, "{what} to {}", ends.client);
            }
        }
    }
}

#[test]
fn whether_a_pods_sockets_are_seen_is_counted_once_in_a_tick() {
    for ends in [0, 1].map(Ends::of) {
        let mut content = Content::full();
        content.endpoints.iter_mut().for_each(|(_, endpoint)| endpoint.netns_id = 7);
        let mut world = World::new(&content);
        let after = |world: &World, packet: &Packet| {
            world.now.set(world.now.get() + 1);
            assert_eq!(decide(world, packet, Place::Pod), ComesFrom(ends.vip(0), 80));
            let watch = &world.counts(ends.id(backend::REDIRECT)).expect("an endpoint").watch;
            (watch.run(), watch.unseen.load(), watch.seen.load())
        };
        let data = ends.segment().carrying(b"x");
        assert_eq!(after(&world, &ends.segment().flags(flag::ACK)), (0, 0, 0), "no payload");
        assert_eq!(after(&world, &data.clone().flags(flag::RST)), (0, 0, 0), "a RST");
        assert_eq!(after(&world, &data), (1, 1, 0));
        world.now.set(world.now.get() - 1);
        assert_eq!(after(&world, &data), (1, 1, 0), "in the same tick");
        assert_eq!(after(&world, &data), (2, 2, 0));
        world.sockets.insert(ends.connection());
        assert_eq!(after(&world, &data), (0, 2, 1));
        for (_, endpoint) in &mut content.endpoints {
            endpoint.netns_id = NO_NETNS;
        }
        assert_eq!(after(&World::new(&content), &data), (0, 0, 0), "nobody to be asked");
    }
}

#[test]
fn the_loaded_programs_leave_bypasses_alone_and_record_them() {
    let Some(object) = object() else { return };
    let content = Content::full();
    let mut kernel = Kernel::load(&object, &content);
    for ends in [0, 1].map(Ends::of) {
        kernel.reset();
        let id = ends.id(backend::REDIRECT);
        let frame = ends.segment().frame();
        let beside = Packet::from(ends.client).to(IpAddr::from(ends.pod(backend::REDIRECT))).tcp(PORT, 8000).syn();
        assert_eq!(kernel.run_tc("sluice_bypass", &beside.frame()), (UNSPEC, beside.frame()));
        assert_eq!(kernel.run_tc("sluice_return", &frame), (UNSPEC, frame.clone()), "the bypass's reply");
        assert_eq!(kernel.reasons(), [(Reason::Bypassed, 1), (Reason::BypassSeen, 1)]);
        let (snapshot, _) = kernel.snapshot();
        assert_eq!(snapshot.bypasses, [(ends.connection(), NO_BACKEND)].into());
        assert_eq!(snapshot.bypass_counts[id as usize], 1);
        kernel.reset();
        kernel.add_bypass(ends.connection(), id, 9_999);
        assert_eq!(kernel.run_tc("sluice_return", &frame), (SHOT, frame), "a session of a service that has gone");
        assert_eq!(kernel.reasons(), [(Reason::RecordWithoutService, 1)]);
    }
}
