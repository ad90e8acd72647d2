//! Needs root and SLUICE_EBPF_OBJECT. The same packets through `steer` on the host and `sluice_xdp` in the kernel agree
//! in bytes, action, counters and tables; pods' kernels have connections in every state.

use std::net::IpAddr;

use lb_common::{
    headers::ETHERNET,
    packet::Frame as _,
    reason::{REASONS, Reason},
};
use lb_tests::{
    kernel::{Kernel, object},
    packets::{generator::Generator, hex, oracle},
    world::{
        Outcome, Snapshot, World, action,
        content::Content,
        frame::TestFrame,
        holders::{MAC, VIRTUAL_MACS},
        sockets::{Sockets, State},
    },
};

/// Packets between two comparisons of counters and tables.
const BATCH: usize = 4096;
/// Batches with the same sockets, so few that TIME_WAIT does not end meanwhile.
const ROUND: usize = 32;
/// The coarse clock moves four times a second, and a batch takes a tenth.
const ATTEMPTS: usize = 10;
/// Unlimited answers, room for every bypass.
const OPEN_PACKETS: usize = 700_000;
/// Limits that run out, bypasses that run full, indexes that overflow.
const TIGHT_PACKETS: usize = 400_000;

/// Runs the stream of `seed` through both and returns how many packets each reason had.
fn check(seed: u64, packets: usize, content: &Content) -> [u64; REASONS] {
    let mut seen = [0; REASONS];
    let Some(object) = object() else { return seen };
    let mut generator = Generator::new(seed);
    let batches: Vec<_> = (0..packets.div_ceil(BATCH)).collect();
    for (round, batches) in batches.chunks(ROUND).enumerate() {
        let sockets = Sockets::filled(content, seed ^ round as u64);
        assert_every_state(&sockets);
        // In the namespace of the sockets, for the sake of its interfaces.
        let mut kernel = Kernel::load(&object, content);
        let mut world = World::new(content);
        world.sockets = sockets.living(content);
        for batch in batches {
            let packets: Vec<_> = (0..BATCH).map(|_| generator.frame()).collect();
            let name = |at: usize| format!("seed {seed:#x}, packet {}: {}", batch * BATCH + at, hex(&packets[at]));
            let (reasons, snapshot) = agree(&mut kernel, &mut world, &packets, &name);
            for reason in reasons {
                seen[reason.index() as usize] += 1;
            }
            let broken = Reason::BrokenHistory.index() as usize;
            seen[broken] += snapshot.reasons[broken].packets;
        }
        sockets.check();
    }
    seen
}

/// Steers packets through both, which must agree in what becomes of each and in what it leaves. On the host no time passes.
/// Where in the kernel the coarse clock moves, a full bucket of the flow cache may lose another record, the oldest, and
/// whoever had it is dropped for another reason, or goes elsewhere: packets that differ then begin anew.
fn agree(
    kernel: &mut Kernel,
    world: &mut World,
    packets: &[Vec<u8>],
    name: &dyn Fn(usize) -> String,
) -> (Vec<Reason>, Snapshot) {
    let mut differ = String::new();
    for _ in 0..ATTEMPTS {
        kernel.reset();
        world.reset();
        let mut reasons = Vec::with_capacity(packets.len());
        for (at, packet) in packets.iter().enumerate() {
            let (on_host, reason) = world.steer(packet);
            let in_kernel = kernel.steer(packet);
            if on_host != in_kernel {
                differ = format!("{reason:?}, {}\nhost   {}\nkernel {}", name(at), show(&on_host), show(&in_kernel));
                break;
            }
            check_alone(packet, &on_host, reason, &|| format!("{reason:?}, {}", name(at)));
            reasons.push(reason);
        }
        let (snapshot, clock_moved) = kernel.snapshot();
        if reasons.len() == packets.len() {
            match world.snapshot().difference(&snapshot, clock_moved) {
                None => return (reasons, snapshot),
                Some(difference) => differ = format!("after {}: {difference}", name(packets.len() - 1)),
            }
        }
        assert!(clock_moved, "{differ}");
    }
    panic!("{differ}\nthe coarse clock moved each time");
}

fn assert_every_state(sockets: &Sockets) {
    sockets.check();
    let census = sockets.census();
    for (is_v4, state) in [true, false].into_iter().flat_map(|is_v4| State::ALL.map(|state| (is_v4, state))) {
        assert!(census.get(&(is_v4, state)).is_some_and(|count| *count > 3), "{state:?} is rare: {census:?}");
    }
}

fn show(outcome: &Outcome) -> String {
    format!("action {} mark {:?} {}", outcome.action, outcome.mark, hex(&outcome.bytes))
}

/// What must hold of the outcome, whoever agrees on it.
fn check_alone(packet: &[u8], outcome: &Outcome, reason: Reason, name: &dyn Fn() -> String) {
    let before = oracle::facts(packet);
    let forwarded = reason == Reason::Forwarded;
    let answered = outcome.action == action::TX;
    if !forwarded && !answered {
        // But for a virtual MAC, which makes way for the interface's own.
        let intact = outcome.bytes == packet
            || reason == Reason::NoPort
            || outcome.bytes == [&MAC, &packet[6..]].concat() && VIRTUAL_MACS.iter().any(|mac| packet.starts_with(mac));
        assert!(intact, "{} is changed, but neither forwarded nor answered", name());
        return;
    }
    if reason == Reason::NeighborAnswered {
        return check_neighbor(packet, &outcome.bytes, name);
    }
    let Some(before) = before else {
        assert!(oracle::is_fragment(packet), "{} is no packet", name());
        assert_eq!(forwarded, oracle::is_fragment(&outcome.bytes) && !answered, "{}", name());
        return;
    };
    let after = oracle::facts(&outcome.bytes).unwrap_or_else(|| panic!("{} became no packet", name()));
    if forwarded {
        assert_eq!(after.length, before.length, "{}", name());
        assert_eq!((after.source, after.protocol), (before.source, before.protocol), "{}", name());
        assert_eq!(after.transport_sum, before.transport_sum, "{}", name());
        assert_eq!(after.header_sum, before.header_sum, "{}", name());
        if after.destination == before.destination {
            assert_eq!(outcome.bytes[ETHERNET..], packet[before.l3..], "{} is for a VIP's own pod", name());
        } else if matches!(after.protocol, 1 | 58) {
            let quote = |bytes: &[u8], facts: &oracle::Facts| bytes[facts.l4 + 8..facts.l3 + facts.length].to_vec();
            let (before, after_quote) = (quote(packet, &before), quote(&outcome.bytes, &after));
            check_quote(&before, &after_quote, after.destination, name);
        }
        return;
    }
    assert_eq!(after.destination, before.source, "{}", name());
    if reason == Reason::EchoAnswered {
        assert_eq!(after.transport_sum, before.transport_sum, "{}", name());
        assert_eq!(after.header_sum, before.header_sum, "{}", name());
        return;
    }
    assert_eq!((after.header_sum, after.transport_sum), (true, Some(true)), "{}", name());
    assert_eq!(outcome.bytes.len(), after.l3 + after.length, "{} has an answer with padding", name());
    if matches!(after.protocol, 1 | 58) {
        let quote = &outcome.bytes[after.l4 + 8..];
        assert!(packet[before.l3..].starts_with(quote), "{} is misquoted", name());
        let longest = if before.source.is_ipv4() { 576 } else { 1280 };
        assert!(after.length <= longest, "{} has an answer that is too long", name());
    }
}

/// An answer about an address is of that address, to who asked, and right.
fn check_neighbor(question: &[u8], answer: &[u8], name: &dyn Fn() -> String) {
    let Some(told) = oracle::facts(answer) else {
        // Behind the tags, ARP: operation, sender, target.
        let arp = if question[12] == 0x08 { ETHERNET } else { ETHERNET + 4 };
        let part = |frame: &[u8], from: usize, to: usize| frame[arp + from..arp + to].to_vec();
        assert_eq!(part(answer, 6, 8), [0, 2], "{}", name());
        assert_eq!(part(answer, 14, 18), part(question, 24, 28), "{}", name());
        assert_eq!(part(answer, 18, 28), part(question, 8, 18), "{}", name());
        assert_eq!((&answer[..6], answer.len()), (&part(question, 8, 14)[..], question.len()), "{}", name());
        return;
    };
    let asked = oracle::facts(question).unwrap_or_else(|| panic!("{} is no packet", name()));
    assert_eq!((told.transport_sum, answer.len()), (Some(true), told.l4 + 32), "{}", name());
    assert_eq!(answer[told.l4 + 8..told.l4 + 24], question[asked.l4 + 8..asked.l4 + 24], "{}", name());
    let target: [u8; 16] = answer[told.l4 + 8..told.l4 + 24].try_into().expect("16 bytes");
    assert_eq!((answer[told.l4], told.source), (136, IpAddr::from(target)), "{}", name());
    let to_all = IpAddr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(told.destination, if asked.source.is_unspecified() { to_all } else { asked.source }, "{}", name());
}

/// What a forwarded ICMP error quotes is from the pod that gets it, and as right as it was. Only what is whole can be told.
fn check_quote(before: &[u8], after: &[u8], pod: IpAddr, name: &dyn Fn() -> String) {
    let kind = if pod.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    let facts = |quote: &[u8]| oracle::facts(&[&[0; 12], &kind[..], quote].concat());
    if let (Some(before), Some(after)) = (facts(before), facts(after)) {
        assert_eq!((after.source, after.destination), (pod, before.destination), "{}", name());
        assert_eq!(after.header_sum, before.header_sum, "{}", name());
        assert_eq!(after.transport_sum, before.transport_sum, "{}", name());
    }
}

/// Every reason that `sluice_xdp` has, but for those that need a frame no test run can make.
fn assert_covered(seen: &[u64; REASONS], missing: &[Reason]) {
    if seen.iter().all(|count| *count == 0) {
        return;
    }
    use Reason::{BrokenHistory, ForeignSession, IcmpForeign, IcmpNoPorts, IcmpUnowned, NoSession};
    let sessions = [ForeignSession, NoSession, BrokenHistory, IcmpForeign, IcmpNoPorts, IcmpUnowned];
    let fragments = [Reason::FragmentUnmatched, Reason::BadFragment, Reason::FragmentsFull];
    let listed = Reason::ALL[..=Reason::NoPort.index() as usize].iter().map(|listed| listed.0);
    let neighbors =
        [Reason::NeighborAnswered, Reason::NeighborElsewhere, Reason::NeighborConflict, Reason::VirtualMacElsewhere];
    for reason in listed.chain(sessions).chain(fragments).chain(neighbors) {
        let name = reason.name();
        let expected = !missing.contains(&reason) && reason != Reason::Replied;
        assert_eq!(seen[reason.index() as usize] > 0, expected, "packets with reason {name}: {seen:?}");
    }
}

#[test]
fn host_and_kernel_agree_where_nothing_runs_out() {
    let seen = check(0x5107, OPEN_PACKETS, &Content::full());
    assert_covered(&seen, &[Reason::RateLimited, Reason::BypassesFull]);
}

#[test]
fn host_and_kernel_agree_where_limits_and_tables_run_out() {
    let content = Content::full().limited([200, 100, 50]).with_bypasses(60).with_index_log2(2);
    let seen = check(0x71_6874, TIGHT_PACKETS, &content);
    assert_covered(&seen, &[]);
}

#[test]
fn a_frame_in_fragments_is_as_long_as_the_kernel_says() {
    assert_eq!(TestFrame::new(&[0; 5000]).length(), lb_tests::world::frame::LINEAR);
}
