//! Needs root and SLUICE_EBPF_OBJECT. Who is answered for a VIP: description, frame in, action and frame out, by the
//! function on the host and by the loaded program.

use lb_common::reason::Reason;
use lb_tests::{
    kernel::{Kernel, object},
    packets::{
        CLIENT_MAC, Packet, VLAN, hex,
        neighbor::{Arp, Discovery},
    },
    world::{
        World,
        action::{DROP, PASS, TX},
        content::{Content, NODE, VIPS},
        holders::{LINK_LOCAL, MAC, OTHER_MACS, VIRTUAL_MACS, VLAN_ID, VLAN_MAC},
    },
};

const CLIENT: &str = "2001:db8:2::7";
const OTHER_MAC: [u8; 6] = [0x02, 0xbb, 0, 0, 0, 9];
/// A MAC and a nonce (RFC 7527), as careful hosts send.
const NONCE: [u8; 16] = [1, 1, 2, 0xc1, 0, 0, 0, 1, 14, 1, 1, 2, 3, 4, 5, 6];

struct Case {
    what: &'static str,
    frame: Vec<u8>,
    action: u32,
    reason: Reason,
    /// `None`: the frame as it came.
    out: Option<Vec<u8>>,
}

const fn case(what: &'static str, frame: Vec<u8>, action: u32, reason: Reason) -> Case {
    Case { what, frame, action, reason, out: None }
}

fn answered(what: &'static str, frame: Vec<u8>, out: Vec<u8>) -> Case {
    Case { out: Some(out), ..case(what, frame, TX, Reason::NeighborAnswered) }
}

/// A reply to a request, of the same length.
fn is_at(request: &Arp, mac: [u8; 6]) -> Vec<u8> {
    let mut reply =
        Arp { operation: 2, mac, sender: request.target, target: request.sender, ..request.clone() }.frame();
    reply[..6].copy_from_slice(&request.mac);
    let target_mac = 14 + 4 * request.tags.len() + 18;
    reply[target_mac..target_mac + 6].copy_from_slice(&request.mac);
    reply
}

/// An advertisement: to whom, by which MAC, and its flags.
fn tells(question: &Discovery, to: ([u8; 6], &str), mac: [u8; 6], flags: u8) -> Vec<u8> {
    let (to_mac, to) = to;
    let destination = to.parse().expect("an address");
    let told = Discovery { destination, tags: question.tags.clone(), ..Discovery::advertisement(question.target, mac) };
    let mut frame = told.frame();
    frame[..6].copy_from_slice(&to_mac);
    let icmp = 14 + 4 * question.tags.len() + 40;
    // The flags stand in the high byte of a word that was 0: RFC 1624 with one term.
    let check = u16::from_be_bytes([frame[icmp + 2], frame[icmp + 3]]);
    let sum = u32::from(!check) + (u32::from(flags) << 8);
    let check = !((sum & 0xffff) as u16 + (sum >> 16) as u16);
    frame[icmp + 2..icmp + 4].copy_from_slice(&check.to_be_bytes());
    frame[icmp + 4] = flags;
    frame
}

fn check(cases: Vec<Case>) {
    let content = Content::full();
    let mut world = World::new(&content);
    let mut kernel = object().map(|object| Kernel::load(&object, &content));
    for Case { what, frame, action, reason, out } in cases {
        let out = out.unwrap_or_else(|| frame.clone());
        world.reset();
        let (outcome, said) = world.steer(&frame);
        assert_eq!((outcome.action, said), (action, reason), "{what}, on the host");
        assert_eq!(hex(&outcome.bytes), hex(&out), "{what}, on the host");
        let Some(kernel) = &mut kernel else { continue };
        kernel.reset();
        let outcome = kernel.steer(&frame);
        assert_eq!((outcome.action, kernel.reasons()), (action, vec![(reason, 1)]), "{what}, in the kernel");
        assert_eq!(hex(&outcome.bytes), hex(&out), "{what}, in the kernel");
        assert_eq!(world.snapshot().difference(&kernel.snapshot().0, false), None, "{what}");
    }
}

//= test rfc826#0:types
//= test rfc826#0:reply
//= test rfc5227#2.1.1:probe
#[test]
fn arp_is_answered_for_vips_that_are_held_and_for_no_others() {
    let held = Arp::request(VIPS[0][0]);
    let in_vlan = held.clone().tagged(VLAN_ID);
    let with_priority = held.clone().tagged(0xe000);
    let probe = held.clone().from("0.0.0.0");
    let group = held.clone().mac([0x33, 0x33, 0, 0, 0, 1]);
    let twice = held.clone().tagged(VLAN_ID).tagged(VLAN_ID);
    check(vec![
        answered("a request", held.frame(), is_at(&held, MAC)),
        answered("a request in a VLAN, where a virtual router holds it", in_vlan.frame(), is_at(&in_vlan, VLAN_MAC)),
        answered("a request with a priority and no VLAN", with_priority.frame(), is_at(&with_priority, MAC)),
        answered("a probe (RFC 5227)", probe.frame(), is_at(&probe, MAC)),
        case("a VIP that is not held", Arp::request(VIPS[0][1]).frame(), DROP, Reason::NeighborElsewhere),
        case("a VIP that is held no more", Arp::request(VIPS[0][2]).frame(), DROP, Reason::NeighborElsewhere),
        case("a VIP in another VLAN", held.clone().tagged(9).frame(), PASS, Reason::NotIp),
        case("a tag within a tag", twice.frame(), PASS, Reason::NotForUs),
        case("somebody else's address", Arp::request("192.0.2.254").frame(), PASS, Reason::NotIp),
        case("a request by a group", group.frame(), DROP, Reason::NotAnswered),
        case("a reply to us", Arp::request(VIPS[0][0]).reply().frame(), PASS, Reason::NotIp),
        case("RARP", Arp { operation: 3, ..held.clone() }.frame(), PASS, Reason::NotIp),
        case("of another link", Arp { kinds: [0, 6, 8, 0, 6, 4], ..held.clone() }.frame(), PASS, Reason::NotIp),
        case("cut short", held.frame()[..41].to_vec(), PASS, Reason::NotIp),
    ]);
}

//= test rfc5227#2.3:announcement
//= test rfc4861#7.1.2:hops
#[test]
fn whoever_claims_a_held_vip_is_noted_and_the_kernel_asked_for_nothing() {
    let claim = Arp::request(VIPS[0][0]).from(VIPS[0][0]);
    let asks_for_another = Arp::request("192.0.2.254").from(VIPS[0][0]).mac(OTHER_MAC);
    let elsewhere = Arp::request(VIPS[0][1]).from(VIPS[0][1]).mac(OTHER_MAC);
    let advertised = Discovery::advertisement(VIPS[1][0], OTHER_MAC);
    let asks =
        Discovery { source: VIPS[1][0].parse().expect("an address"), ..Discovery::solicitation("2001:db8:2::9") };
    check(vec![
        case("gratuitous request", claim.clone().mac(OTHER_MAC).frame(), DROP, Reason::NeighborConflict),
        case("gratuitous reply", claim.clone().mac(OTHER_MAC).reply().frame(), PASS, Reason::NeighborConflict),
        case("our own, come back", claim.mac(MAC).frame(), DROP, Reason::NeighborElsewhere),
        case("a request of who has the VIP", asks_for_another.frame(), PASS, Reason::NeighborConflict),
        case("of a VIP that is not held here", elsewhere.clone().frame(), DROP, Reason::NeighborElsewhere),
        case("the same as a reply", elsewhere.reply().frame(), PASS, Reason::NotIp),
        case("an advertisement", advertised.frame(), PASS, Reason::NeighborConflict),
        case("our own advertisement", Discovery::advertisement(VIPS[1][0], MAC).frame(), PASS, Reason::NotForUs),
        case("from far away", Discovery { hops: 254, ..advertised }.frame(), PASS, Reason::NotForUs),
        case("a solicitation of who has the VIP", asks.frame(), PASS, Reason::NeighborConflict),
    ]);
}

//= test rfc4861#7.1.1:valid
//= test rfc4861#7.1.1:probe
//= test rfc4861#7.2.4:unspecified
//= test rfc4861#7.2.4:solicited
//= test rfc4861#7.2.4:override
//= test rfc4861#7.2.4:router
//= test rfc4861#7.2.4:mac
#[test]
fn a_valid_solicitation_is_answered_and_no_other() {
    const SOLICITED: u8 = 0x60;
    const ROUTER: u8 = 0xe0;
    let held = Discovery::solicitation(VIPS[1][0]);
    let unicast = Discovery { destination: held.target, ..held.clone() };
    let nonce = held.clone().options(&NONCE);
    let bare = unicast.clone().options(&[]);
    let in_vlan = held.clone().tagged(VLAN_ID);
    let link_local = Discovery::solicitation(LINK_LOCAL);
    let link_local_unicast = Discovery { destination: link_local.target, ..link_local.clone() };
    let probe = held.clone().probe();
    let probe_in_vlan = probe.clone().tagged(VLAN_ID);
    let client = (CLIENT_MAC, CLIENT);
    let all = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1");
    let broken = |what, question: Discovery| case(what, question.frame(), DROP, Reason::Malformed);
    check(vec![
        answered("to the group", held.frame(), tells(&held, client, MAC, SOLICITED)),
        answered("to the VIP", unicast.frame(), tells(&unicast, client, MAC, SOLICITED)),
        answered("with a nonce, which is cut off", nonce.frame(), tells(&nonce, client, MAC, SOLICITED)),
        answered("without a MAC, for which there is room made", bare.frame(), tells(&bare, client, MAC, SOLICITED)),
        answered("in a VLAN, of a router", in_vlan.frame(), tells(&in_vlan, client, VLAN_MAC, ROUTER)),
        answered("a router's link-local VIP", link_local.frame(), tells(&link_local, client, MAC, ROUTER)),
        answered("the same, asked itself", link_local_unicast.frame(), tells(&link_local_unicast, client, MAC, ROUTER)),
        answered("a probe (RFC 4862), told to all", probe.frame(), tells(&probe, all, MAC, 0x20)),
        answered("a probe in a VLAN", probe_in_vlan.frame(), tells(&probe_in_vlan, all, VLAN_MAC, 0xa0)),
        case("a VIP that is not held", Discovery::solicitation(VIPS[1][1]).frame(), DROP, Reason::NeighborElsewhere),
        case("one that is held no more", Discovery::solicitation(VIPS[1][2]).frame(), DROP, Reason::NeighborElsewhere),
        case("no VIP", Discovery::solicitation("2001:db8:2::9").frame(), PASS, Reason::NotForUs),
        broken("from beyond a router", Discovery { hops: 254, ..held.clone() }),
        broken("with a wrong sum", Discovery { error: 1, ..held.clone() }),
        broken("with a code", Discovery { code: 1, ..held.clone() }),
        broken("with an option without length", held.clone().options(&[14, 0, 0, 0, 0, 0, 0, 0])),
        broken("with an option beyond the end", held.clone().options(&[14, 2, 0, 0, 0, 0, 0, 0])),
        broken("with half an option", held.clone().options(&[14, 1, 0, 0])),
        broken("with more options than anybody sends", held.clone().options(&[14, 1, 0, 0, 0, 0, 0, 0].repeat(9))),
        broken("a probe that tells a MAC", probe.clone().options(&[1, 1, 2, 0, 0, 0, 0, 1])),
        broken("a probe that is not to the group", Discovery { destination: held.target, ..probe }),
    ]);
}

#[test]
fn frames_to_a_virtual_mac_are_for_this_node_while_its_router_is_active() {
    let [held_v4, held_v6, elsewhere, ..] = VIRTUAL_MACS;
    let at = |mac: [u8; 6], packet: &Packet| packet.clone().to_mac(mac).frame();
    let own = |frame: &[u8]| [&MAC, &frame[6..]].concat();
    let taken = |what, frame: Vec<u8>, reason| Case { out: Some(own(&frame)), ..case(what, frame, PASS, reason) };
    let to_node = [Packet::from("192.0.2.7").to(NODE[0]), Packet::from(CLIENT).to(NODE[1])];
    let [v4, v6] = to_node.map(|packet| packet.tcp(40_000, 22).syn());
    let refused = Packet::from("192.0.2.7").to(VIPS[0][0]).tcp(40_000, 9).syn();
    let in_vlan = v4.clone().tagged(VLAN, VLAN_ID);
    let (mut request, held) = (Arp::request(VIPS[0][0]).frame(), Arp::request(VIPS[0][0]));
    request[..6].copy_from_slice(&held_v4);
    let mut cases = vec![
        taken("to the node itself", at(held_v4, &v4), Reason::NotForUs),
        taken("to the node itself in IPv6", at(held_v6, &v6), Reason::NotForUs),
        taken("in the VLAN of another router", at(elsewhere, &in_vlan), Reason::NotForUs),
        answered("a question to it alone", request, is_at(&held, MAC)),
        case("to a router that is not active", at(elsewhere, &v4), DROP, Reason::VirtualMacElsewhere),
        case("to its VIP", at(elsewhere, &refused), DROP, Reason::VirtualMacElsewhere),
        case("to one that is active no more", at(VIRTUAL_MACS[4], &v4), DROP, Reason::VirtualMacElsewhere),
        case("in a VLAN where it is nobody's", at(held_v4, &in_vlan), PASS, Reason::NotForUs),
    ];
    cases.extend(OTHER_MACS.map(|mac| case("to a MAC that looks like these", at(mac, &v4), PASS, Reason::NotForUs)));
    check(cases);
}
