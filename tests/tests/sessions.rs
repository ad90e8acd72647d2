//! Who a TCP connection belongs to: what the pod's kernel has decides, and no forged packet changes it.

use lb_common::{
    abi::{BypassKey, NO_BACKEND, protocol},
    headers,
    reason::Reason,
    reply::{Observed, Place, Reply, observe, reply},
    session::Sessions as _,
};
use lb_tests::{
    packets::{Packet, flag},
    world::{
        World,
        content::{Content, VIPS, address, backend, pod},
        frame::TestFrame,
    },
};

const CLIENT: &str = "203.0.113.9";
const PORT: u16 = 40_000;

/// A pod that can be asked for its sockets, behind the default VIP (port 80) and a second one (port 80 too).
fn world() -> World {
    let mut content = Content::full();
    for backend in &mut content.backends {
        backend.netns_id = 7;
    }
    for (_, endpoint) in &mut content.endpoints {
        endpoint.netns_id = 7;
    }
    World::new(&content)
}

fn connection(to: u32) -> BypassKey {
    let (client, pod) = (address(CLIENT), pod(true, to));
    let pod_port = 8000 + to as u16;
    BypassKey { client, pod, client_port: PORT, pod_port, protocol: protocol::TCP, pad: 0, pad2: 0 }
}

fn to_vip(number: usize) -> Packet {
    Packet::from(CLIENT).to(VIPS[0][number]).tcp(PORT, 80)
}

/// The pod that a client's connection to the second VIP goes to, which is one of the first VIP's too.
fn owner(world: &World) -> u32 {
    let (outcome, _) = world.steer(&to_vip(1).syn().frame());
    let packet = &outcome.bytes[14..];
    u32::from(packet[19]) - 10
}

/// The VIP that the pod's next segment would leave under; none where it stays the pod's.
fn leaves_under(world: &World, of: u32) -> Option<usize> {
    let segment = Packet::from(std::net::IpAddr::from(pod(true, of))).to(CLIENT).tcp(8000 + of as u16, PORT);
    let frame = TestFrame::new(&segment.frame());
    match reply(&frame, world, Place::Pod, &headers::parse(&frame)?) {
        Reply::Rewrite { vip, .. } => VIPS[0].iter().position(|text| address(text) == vip),
        _ => None,
    }
}

#[test]
fn a_forged_segment_takes_no_session_over() {
    let mut world = world();
    let pod = owner(&World::new(&world.content));
    world.sockets.insert(connection(pod));
    assert_eq!(leaves_under(&world, pod), Some(0), "a session of the default VIP");
    for packet in [to_vip(1), to_vip(1).syn(), to_vip(1).flags(flag::RST)] {
        world.steer(&packet.frame());
        assert_eq!(leaves_under(&world, pod), Some(0), "after a forged packet to the second VIP");
    }
    assert!(world.bypasses.borrow().is_empty(), "and nothing is recorded");
}

#[test]
fn a_segment_of_no_connection_is_refused_and_not_recorded() {
    let world = world();
    assert_eq!(world.steer(&to_vip(1).frame()).1, Reason::NoSession);
    assert!(world.bypasses.borrow().is_empty());
}

#[test]
fn a_segment_of_another_ways_connection_goes_nowhere() {
    let mut world = world();
    let pod = owner(&World::new(&world.content));
    world.sockets.insert(connection(pod));
    assert_eq!(world.steer(&to_vip(1).frame()).1, Reason::ForeignSession);
}

#[test]
fn a_new_connection_is_not_answered_as_an_old_one_was() {
    let world = world();
    let pod = owner(&world);
    assert_eq!(leaves_under(&world, pod), Some(1), "recorded for the second VIP");
    world.bypasses.borrow_mut().insert(connection(pod), NO_BACKEND);
    world.steer(&to_vip(1).syn().frame());
    assert_eq!(leaves_under(&world, pod), Some(1), "beside the VIPs before, now through the second");
}

#[test]
fn a_connection_to_the_default_vip_clears_what_is_left_of_another() {
    for port in 1..200 {
        let world = world();
        let syn = |number: usize| Packet::from(CLIENT).to(VIPS[0][number]).tcp(port, 80).syn().frame();
        let target = |bytes: &[u8]| bytes[14 + 19];
        let (second, first) = (world.steer(&syn(1)).0, World::new(&world.content).steer(&syn(0)).0);
        if target(&second.bytes) != target(&first.bytes) {
            continue;
        }
        assert_eq!(world.bypasses.borrow().len(), 1);
        world.steer(&syn(0));
        assert!(world.bypasses.borrow().is_empty(), "the record of the second VIP's is gone");
        return;
    }
    panic!("no client port leads both VIPs to one pod");
}

#[test]
fn who_comes_beside_the_vips_takes_no_session_over() {
    let mut world = world();
    let pod = backend::REDIRECT;
    let straight =
        || Packet::from(CLIENT).to(std::net::IpAddr::from(lb_tests::world::content::pod(true, pod))).tcp(PORT, 8000);
    let seen = |world: &World, packet: Packet| observe(&TestFrame::new(&packet.frame()), world, Place::Pod);
    world.sockets.insert(connection(pod));
    for packet in [straight(), straight().syn()] {
        assert_eq!(seen(&world, packet), Observed::Pass(Reason::BypassSeen));
        assert_eq!(leaves_under(&world, pod), Some(0), "the session of the default VIP");
    }
    world.sockets.clear();
    assert_eq!(seen(&world, straight().syn()), Observed::Pass(Reason::BypassSeen));
    assert_eq!(leaves_under(&world, pod), None, "a connection of its own");
    assert_eq!(world.bypass(&connection(pod)).map(|record| record.backend), Some(NO_BACKEND));
}

#[test]
fn segments_of_no_connection_fill_nothing() {
    let mut world = World::new(&world().content.clone().limited([5, 0, 0]));
    world.sockets.clear();
    for port in 1..100 {
        let pod = std::net::IpAddr::from(pod(true, backend::REDIRECT));
        let packet = Packet::from(CLIENT).to(pod).tcp(port, 8000).flags(flag::RST);
        observe(&TestFrame::new(&packet.frame()), &world, Place::Pod);
    }
    assert_eq!(world.bypasses.borrow().len(), 5, "as many as may be refused");
}
