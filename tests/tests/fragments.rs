//! Needs root and SLUICE_EBPF_OBJECT. Datagrams in fragments through the loaded programs: order, lateness, duplicates,
//! changed backends, tiny fragments, floods.

use std::net::IpAddr;

use lb_common::{fragments, reason::Reason};
use lb_tests::{
    kernel::{Kernel, object},
    packets::{Checksum, Packet, oracle},
    world::{
        Outcome,
        action::{DROP, PASS, REDIRECT, TX},
        content::{Content, VIPS, backend, hop, pod, veth},
    },
};

const CLIENTS: [&str; 2] = ["203.0.113.9", "2001:db8:c::9"];
/// Of the datagram in each fragment: what fits an MTU of 1400.
const SIZE: usize = 1344;
/// An SNMP inform of this size is what is asked for.
const PAYLOAD: usize = 8 << 10;
/// What the tests' content says of a record.
const LIFETIME: u32 = 1 << 30;
const YOUNG: u32 = LIFETIME >> fragments::YOUNG_SHIFT;

fn inform(family: usize, id: u16) -> Packet {
    Packet::from(CLIENTS[family]).to(VIPS[family][0]).udp(40_000, 53).carrying_bytes(PAYLOAD).identified(id)
}

fn frames(packet: &Packet) -> Vec<Vec<u8>> {
    packet.pieces(SIZE).iter().map(Packet::frame).collect()
}

fn send(kernel: &mut Kernel, frames: &[Vec<u8>]) -> Vec<Outcome> {
    frames.iter().map(|frame| kernel.steer(frame)).collect()
}

fn actions(outcomes: &[Outcome]) -> Vec<u32> {
    outcomes.iter().map(|outcome| outcome.action).collect()
}

/// The datagram that the fragments make, in a packet with the first one's addresses.
fn together(outcomes: &[Outcome], family: usize) -> Vec<u8> {
    let l4 = if family == 0 { 34 } else { 54 + 8 };
    let datagram: Vec<u8> = outcomes.iter().flat_map(|outcome| outcome.bytes[l4..].to_vec()).collect();
    let mut packet = outcomes[0].bytes[..l4].to_vec();
    if family == 0 {
        let length = (20 + datagram.len()) as u16;
        packet[16..18].copy_from_slice(&length.to_be_bytes());
        packet[20..22].fill(0);
    } else {
        let length = (8 + datagram.len()) as u16;
        packet[18..20].copy_from_slice(&length.to_be_bytes());
        packet[56..58].fill(0);
    }
    packet.extend(datagram);
    packet
}

fn count(kernel: &Kernel, reason: Reason) -> u64 {
    kernel.reasons().iter().find(|(counted, _)| *counted == reason).map_or(0, |(_, packets)| *packets)
}

fn loaded(content: &Content) -> Option<Kernel> {
    Some(Kernel::load(&object()?, content))
}

#[test]
fn a_datagram_of_8_kib_goes_to_one_pod_and_its_checksum_is_right() {
    let Some(mut kernel) = loaded(&Content::full()) else { return };
    for (family, port) in [0, 1].into_iter().flat_map(|family| (0..40).map(move |n| (family, 40_000 + n))) {
        let packet = inform(family, port).udp(port, 53);
        let frames = frames(&packet);
        assert_eq!(frames.len(), 7);
        let outcomes = send(&mut kernel, &frames);
        assert!(outcomes.iter().all(|outcome| outcome.action == outcomes[0].action && outcome.action != DROP));
        assert!(outcomes.iter().all(|outcome| outcome.mark == outcomes[0].mark));
        let facts = oracle::facts(&together(&outcomes, family)).expect("a whole packet");
        assert_eq!(facts.transport_sum, Some(true), "{port} {family}");
        assert_eq!(facts.source, packet.source);
        assert_ne!(facts.destination, packet.destination);
        for outcome in &outcomes {
            let range = if family == 0 { 30..34 } else { 38..54 };
            assert_eq!(outcome.bytes[range.clone()], outcomes[0].bytes[range], "the same pod");
        }
        let whole = kernel.steer(&packet.frame());
        assert!(whole.action == outcomes[0].action || whole.action == TX, "the pod of the whole packet, or too big");
    }
    assert_eq!(kernel.reasons().iter().filter(|(reason, _)| *reason != Reason::TooBig).count(), 1);
}

#[test]
fn each_fragment_has_its_bytes() {
    let Some(mut kernel) = loaded(&Content::full()) else { return };
    for family in [0, 1] {
        let sent = |packet: Packet| packet.udp(5_000, 94).carrying_bytes(3000).checksum(Checksum::Zero);
        let there = sent(Packet::from(CLIENTS[family]).to(VIPS[family][0]));
        let pod = IpAddr::from(pod(family == 0, backend::PEER));
        let out = sent(Packet::from(CLIENTS[family]).to(pod)).udp(5_000, 80).hops(63);
        for (number, (packet, wanted)) in there.pieces(1400).iter().zip(out.pieces(1400)).enumerate() {
            let outcome = kernel.steer(&packet.frame());
            let mark = outcome.mark.expect("rung peer");
            let frame = lb_common::packet::host::HostFrame::new(&wanted.frame());
            assert!(lb_common::mark::put(&frame, mark));
            assert_eq!((outcome.action, outcome.bytes), (PASS, frame.to_vec()), "fragment {number}");
        }
        let jumbo = Packet::from(CLIENTS[family]).to(VIPS[family][0]).tcp(40_000, 90).carrying_bytes(4000);
        let outcomes = send(&mut kernel, &frames(&jumbo.tagged(lb_tests::packets::VLAN, 3)));
        assert_eq!(actions(&outcomes), [REDIRECT; 3]);
        let (pod_end, host_end) = veth(hop::JUMBO);
        assert!(outcomes.iter().all(|o| o.bytes[..6] == pod_end && o.bytes[6..12] == host_end));
        let facts = oracle::facts(&together(&outcomes, family)).expect("a whole packet");
        assert_eq!(facts.transport_sum, Some(true));
    }
}

#[test]
fn what_comes_before_the_first_one_or_long_after_it_is_dropped() {
    let Some(mut kernel) = loaded(&Content::full()) else { return };
    for family in [0, 1] {
        kernel.reset();
        let frames = frames(&inform(family, 7));
        assert_eq!(actions(&send(&mut kernel, &frames[1..3])), [DROP; 2], "the first is not there yet");
        let rest = send(&mut kernel, &[&frames[..1], &frames[3..], &frames[1..3]].concat());
        assert!(rest.iter().all(|outcome| outcome.action == rest[0].action), "what comes again, and late, follows");
        assert_eq!(count(&kernel, Reason::FragmentUnmatched), 2);
        kernel.age_fragments(LIFETIME - YOUNG - 1000);
        assert_ne!(kernel.steer(&frames[1]).action, DROP, "just before the end");
        kernel.age_fragments(LIFETIME);
        assert_eq!(kernel.steer(&frames[2]).action, DROP);
        kernel.steer(&frames[0]);
        kernel.age_fragments(LIFETIME / 2);
        assert_ne!(kernel.steer(&frames[1]).action, DROP);
        kernel.age_fragments(LIFETIME / 2);
        assert_ne!(kernel.steer(&frames[2]).action, DROP, "each one refreshes the record");
        assert_eq!(count(&kernel, Reason::FragmentUnmatched), 3);
    }
}

#[test]
fn another_datagram_is_not_mixed_up_with_it() {
    let Some(mut kernel) = loaded(&Content::full()) else { return };
    let later = |packet: Packet| packet.piece(SIZE..2 * SIZE).frame();
    for family in [0, 1] {
        kernel.steer(&inform(family, 1).piece(0..SIZE).frame());
        let other = inform(family, 1).to(VIPS[family][1]);
        let mut sender = inform(family, 1);
        sender.source = if family == 0 { "203.0.113.8" } else { "2001:db8:c::8" }.parse().expect("an address");
        for packet in [inform(family, 2), other, sender, inform(family, 1).tcp(40_000, 80)] {
            assert_eq!(kernel.steer(&later(packet)).action, DROP);
        }
        assert_ne!(kernel.steer(&later(inform(family, 1))).action, DROP);
        // Fragments to others pass untouched, whatever is on record.
        let elsewhere = inform(family, 1).to(if family == 0 { "198.51.100.9" } else { "2001:db8:1::9" });
        let frame = later(elsewhere);
        assert_eq!(kernel.steer(&frame), Outcome::new(PASS, frame));
    }
}

#[test]
fn a_record_of_a_backend_that_has_changed_is_none() {
    let content = Content::full();
    let Some(mut kernel) = loaded(&content) else { return };
    let packet = Packet::from(CLIENTS[0]).to(VIPS[0][0]).udp(5_000, 94).carrying_bytes(4000);
    let frames = frames(&packet);
    kernel.steer(&frames[0]);
    assert_eq!(kernel.steer(&frames[1]).action, PASS);
    let is_it = |b: &lb_common::abi::Backend| b.id == content.backend_id(VIPS[0][0], 94, 17, backend::PEER);
    let place = content.backends.iter().position(is_it).expect("in the content");
    let there = content.backends[place];
    for changed in [
        lb_common::abi::Backend { generation: there.generation + 1, ..there },
        lb_common::abi::Backend { id: there.id + 1, ..there },
    ] {
        kernel.set_backend(place as u32, &changed);
        assert_eq!(kernel.steer(&frames[2]).action, DROP);
    }
    assert_eq!(count(&kernel, Reason::FragmentUnmatched), 2);
    kernel.set_backend(place as u32, &there);
    assert_eq!(kernel.steer(&frames[2]).action, PASS);
}

#[test]
fn tiny_and_overlapping_fragments_are_dropped() {
    let Some(mut kernel) = loaded(&Content::full()) else { return };
    for family in [0, 1] {
        kernel.reset();
        let tcp = Packet::from(CLIENTS[family]).to(VIPS[family][0]).tcp(40_000, 90).carrying_bytes(400);
        let udp = Packet::from(CLIENTS[family]).to(VIPS[family][0]).udp(5_000, 94).carrying_bytes(400);
        for (packet, part, action) in [
            (&tcp, 0..8, DROP),
            (&tcp, 0..16, DROP),
            (&tcp, 8..16, DROP),
            (&tcp, 16..80, DROP),
            (&udp, 0..0, DROP),
            (&udp, 0..8, PASS),
            (&udp, 8..16, PASS),
            (&tcp, 0..24, REDIRECT),
            (&tcp, 24..80, REDIRECT),
        ] {
            assert_eq!(kernel.steer(&packet.piece(part.clone()).frame()).action, action, "{part:?} {family}");
        }
        assert_eq!(count(&kernel, Reason::BadFragment), 5);
    }
}

#[test]
fn only_the_first_one_is_answered() {
    let Some(mut kernel) = loaded(&Content::full()) else { return };
    for family in [0, 1] {
        // To a pod behind an MTU of 1500.
        let packet = inform(family, 3).udp(40_000, 94);
        let frame = |packet: &Packet, part| packet.piece(part).frame();
        assert_eq!(kernel.steer(&frame(&packet.clone().hops(1), 0..SIZE)).action, TX);
        assert_eq!(kernel.steer(&frame(&packet, SIZE..2 * SIZE)).action, DROP, "no record of what was answered");
        let closed = packet.clone().udp(40_000, 4_444);
        assert_eq!(kernel.steer(&frame(&closed, 0..SIZE)).action, TX);
        kernel.steer(&frame(&packet, 0..SIZE));
        assert_eq!(kernel.steer(&frame(&packet.clone().hops(1), SIZE..2 * SIZE)).action, DROP);
        assert_eq!(kernel.steer(&frame(&packet, SIZE..5000)).action, DROP, "longer than the MTU");
        assert_ne!(kernel.steer(&frame(&packet, SIZE..2 * SIZE)).action, DROP);
    }
    assert_eq!(count(&kernel, Reason::NotAnswered), 4);
}

/// First fragments of this many datagrams, which never end.
fn flood(kernel: &mut Kernel, from: impl Fn(u32) -> Packet, count: u32) -> u32 {
    (0..count).filter(|number| kernel.steer(&from(*number).piece(0..SIZE).frame()).action != DROP).count() as u32
}

fn bystander(number: u8) -> Packet {
    let mut packet = inform(0, 9);
    packet.source = [203, 0, 113, number].into();
    packet
}

#[test]
fn a_flood_of_one_sender_harms_no_other_not_even_in_its_bucket() {
    let mut content = Content::full();
    // One bucket, so that all share it.
    content.fragments_log2 = 0;
    let Some(mut kernel) = loaded(&content) else { return };
    let from_one = |number: u32| inform(0, number as u16).udp(number as u16, 53);
    assert_eq!(flood(&mut kernel, from_one, 10_000), fragments::SHARE);
    for number in 10..200 {
        let outcomes = send(&mut kernel, &frames(&bystander(number)));
        assert!(outcomes.iter().all(|outcome| outcome.action != DROP), "bystander {number}");
        assert_eq!(flood(&mut kernel, from_one, 20), fragments::SHARE, "its records are known again, and no more");
    }
    assert_eq!(count(&kernel, Reason::FragmentUnmatched), 0);
    assert!(count(&kernel, Reason::FragmentsFull) >= 10_000 - u64::from(fragments::SHARE));
}

#[test]
fn a_flood_of_many_senders_ends_nothing_that_is_under_way() {
    let mut content = Content::full();
    content.fragments_log2 = 4;
    let Some(mut kernel) = loaded(&content) else { return };
    let under_way: Vec<_> = (10..30).map(|number| frames(&bystander(number))).collect();
    for frames in &under_way {
        assert_ne!(kernel.steer(&frames[0]).action, DROP);
    }
    let from_many = |number: u32| {
        let mut packet = inform(0, 1);
        packet.source = [10, 9, (number >> 8) as u8, number as u8].into();
        packet
    };
    let admitted = flood(&mut kernel, from_many, 20_000);
    assert_eq!(admitted, 16 * fragments::WAYS as u32 - 20, "the table is full");
    for frames in &under_way {
        let rest = send(&mut kernel, &frames[1..]);
        assert!(rest.iter().all(|outcome| outcome.action != DROP));
    }
    // Whole packets don't notice.
    let whole = inform(0, 1).udp(1, 94).carrying_bytes(9);
    assert_eq!(kernel.steer(&whole.frame()).action, PASS);
    // Those that have ended make way, the others once they are old.
    assert_eq!(flood(&mut kernel, |number| from_many(30_000 + number), 20_000), 20);
    assert_eq!(kernel.steer(&bystander(40).piece(0..SIZE).frame()).action, DROP, "newcomers are refused");
    kernel.age_fragments(YOUNG);
    let outcomes = send(&mut kernel, &frames(&bystander(40)));
    assert!(outcomes.iter().all(|outcome| outcome.action != DROP));
}

#[test]
fn replies_in_fragments_carry_the_vip_and_what_is_no_reply_is_left_alone() {
    const SHOT: i32 = 2;
    const UNSPEC: i32 = -1;
    const REDIRECTED: i32 = 7;
    let content = Content::full();
    let Some(mut kernel) = loaded(&content) else { return };
    let clients = CLIENTS.map(|client| client.parse::<IpAddr>().expect("an address").into());
    kernel.add_routes(&content, &clients, ([2; 6], [4; 6]));
    for family in [0, 1] {
        kernel.reset();
        let reply = |port| {
            let packet = Packet::from(IpAddr::from(pod(family == 0, backend::REDIRECT))).to(CLIENTS[family]);
            packet.udp(port, 40_000).carrying_bytes(PAYLOAD).identified(5)
        };
        // Port 8000 is that of a static service, 162 of the VIP; nobody has 8001.
        let (ours, other) = (frames(&reply(8000)), frames(&reply(8001)));
        let run = |kernel: &mut Kernel, frame: &[u8]| kernel.run_tc("sluice_return", frame);
        assert_eq!(run(&mut kernel, &ours[1]), (UNSPEC, ours[1].clone()), "nothing is known of it");
        let outcomes: Vec<_> = ours.iter().map(|frame| run(&mut kernel, frame)).collect();
        assert!(outcomes.iter().all(|(action, _)| *action == REDIRECTED), "{family}: {:?}", kernel.reasons());
        let outcomes: Vec<_> =
            outcomes.into_iter().map(|(_, bytes)| Outcome { action: 0, mark: None, bytes }).collect();
        let facts = oracle::facts(&together(&outcomes, family)).expect("a whole packet");
        assert_eq!(facts.source, VIPS[family][0].parse::<IpAddr>().expect("an address"));
        assert_eq!(facts.transport_sum, Some(true));
        for outcome in &outcomes {
            let range = if family == 0 { 26..30 } else { 22..38 };
            assert_eq!(outcome.bytes[range.clone()], outcomes[0].bytes[range], "the same source");
        }
        // The same identification again, by a datagram that is no reply: it does not follow.
        for frame in &other {
            assert_eq!(run(&mut kernel, frame), (UNSPEC, frame.clone()));
        }
        // More than its share at a time is dropped, and never sent under the pod's own address.
        let actions = (10..20).map(|id| run(&mut kernel, &reply(8000).identified(id).piece(0..SIZE).frame()).0);
        let share = fragments::SHARE as usize;
        let actions: Vec<_> = actions.collect();
        assert_eq!(actions.iter().filter(|action| **action == REDIRECTED).count(), share);
        assert_eq!(actions.iter().filter(|action| **action == SHOT).count(), 10 - share);
    }
}
