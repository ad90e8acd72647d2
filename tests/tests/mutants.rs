//! Needs root and SLUICE_EBPF_OBJECT. Each of many deliberate defects in `steer` is seen by the comparison with the
//! loaded program: the generator has teeth.

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use lb_common::{
    abi::{BypassKey, ServiceKey, protocol},
    flow::{Key, State},
    fragments,
    steer::Verdict,
};
use lb_tests::{
    kernel::{Kernel, object},
    packets::{Packet, generator::Generator, random::Random},
    world::{
        Outcome, Snapshot, World,
        content::{Content, VIPS, address, moved},
        frame::TestFrame,
        sockets::{self, Sockets, client as address_of},
    },
};

#[expect(warnings, reason = "defects are the point of these copies")]
mod generated {
    use super::{TestFrame, Verdict, World};
    include!(concat!(env!("OUT_DIR"), "/mutants.rs"));
    pub(super) const ALL: &[(&str, fn(&mut TestFrame, &World) -> Verdict)] = MUTANTS;
}

const SEED: u64 = 0x7ee7;
/// Packets between two comparisons of counters and tables.
const BATCH: usize = 1024;
/// In all; a mutant that survives them is not caught.
const BATCHES: usize = 600;

/// Owners that the flow cache has at the start of a batch, right or not: connections and slots have changed meanwhile.
const REMEMBERED: usize = 200;
/// Datagrams that are under way at the start of a batch.
const DATAGRAMS: usize = 20;

/// What the kernel made of a batch.
struct Batch {
    /// With the age in coarse ticks.
    remembered: Vec<(Key, u32, u32)>,
    datagrams: Vec<(fragments::Key, fragments::Record)>,
    packets: Vec<(Vec<u8>, Outcome)>,
    snapshot: Snapshot,
}

fn record(kernel: &mut Kernel, content: &Content) -> Vec<Batch> {
    let (mut generator, mut random) = (Generator::new(SEED), Random::new(SEED));
    let mut batch = || {
        let remembered: Vec<_> = (0..REMEMBERED).map(|_| an_owner(&mut random, content)).collect();
        let datagrams: Vec<_> = (0..DATAGRAMS).map(|_| a_datagram(&mut random, content)).collect();
        let packets: Vec<_> = (0..BATCH).map(|_| generator.frame()).collect();
        loop {
            let (now, jiffies) = record_time(kernel);
            let clock = fragments::Clock { now: jiffies, lifetime: content.settings.fragment_lifetime as u32 };
            datagrams.iter().for_each(|(key, record)| kernel.remember_fragment(key, *record, clock));
            remembered.iter().for_each(|(key, backend, age)| kernel.remember(key, *backend, now.wrapping_sub(*age)));
            let packets = packets.iter().map(|packet| (packet.clone(), kernel.steer(packet))).collect();
            let (snapshot, _) = kernel.snapshot();
            // Which record a full bucket gives up depends on the time, which stands still on the host.
            if record_time(kernel).0 == now {
                return Batch { remembered: remembered.clone(), datagrams: datagrams.clone(), packets, snapshot };
            }
        }
    };
    (0..BATCHES).map(|_| batch()).collect()
}

/// The time of records, of which a datagram leaves one. All tables are empty after.
fn record_time(kernel: &mut Kernel) -> (u32, u32) {
    kernel.reset();
    let datagram = Packet::from("203.0.113.9").to(VIPS[0][0]).udp(1, 53).carrying_bytes(32);
    kernel.steer(&datagram.piece(0..16).frame());
    let now = kernel.record_time().expect("a datagram of a recorded service leaves a record");
    let jiffies = kernel.fragment_time().expect("its first fragment leaves one too");
    kernel.reset();
    (now, jiffies)
}

/// A datagram whose first fragment went to one of the backends, or to whom that was before.
fn a_datagram(random: &mut Random, content: &Content) -> (fragments::Key, fragments::Record) {
    let family = random.below(2);
    let client = address_of(family, random.below(24) as u8);
    let (id, protocol) = (random.pick(&[1, 2, 3, 0xffff]), random.pick(&[6, 17, 17]));
    let place = random.below(content.backends.len()) as u32;
    let of_family = |at: &u32| content.backends[*at as usize].address.is_v4() == (family == 0);
    let place = (place..content.backends.len() as u32).chain(0..place).find(of_family).expect("both have backends");
    let mut record = fragments::Record::new(place, &content.backends[place as usize]);
    record.generation += u32::from(random.one_in(3));
    (fragments::Key::inbound(client.into(), address(VIPS[family][0]), id, protocol), record)
}

/// One of a service's backends, as the owner of a client's connection, or as the one that its connections go to.
fn an_owner(random: &mut Random, content: &Content) -> (Key, u32, u32) {
    let family = random.below(2);
    let (port, protocol) = loop {
        let (port, protocol) = random.pick(&moved::PORTS);
        if protocol == protocol::TCP || port == moved::PORT_KEPT_UDP {
            break (port, protocol);
        }
    };
    let client = address_of(family, random.below(sockets::CLIENTS) as u8);
    let client_port = sockets::FIRST_PORT + random.below(sockets::PORTS) as u16;
    let key = ServiceKey::new(address(VIPS[family][0]), port, protocol);
    let (_, service) = content.services.iter().find(|(known, _)| *known == key).expect("a service with moved slots");
    let backend = content.backends[service.backends as usize + random.below(service.backends_count.into())];
    if service.affinity != 0 && (protocol != protocol::TCP || random.one_in(2)) {
        let age = random.pick(&[0, 1, service.affinity, service.affinity + 1, 1 << 20]);
        return (Key::affinity(service.id, client.into()), backend.id, age);
    }
    let state = random.pick(&[State::Established, State::Opening, State::Closing]);
    (Key::tcp(service.id, client.into(), client_port).in_state(state), backend.id, 0)
}

/// The number of the packet, from 1, at which the mutant differs from the kernel.
fn caught_after(
    batches: &[Batch],
    steer: fn(&mut TestFrame, &World) -> Verdict,
    content: &Content,
    sockets: &HashSet<BypassKey>,
) -> Option<usize> {
    let mut world = World::new(content);
    world.sockets.clone_from(sockets);
    for (number, batch) in batches.iter().enumerate() {
        world.reset();
        batch.remembered.iter().for_each(|(key, backend, age)| world.remember(key, *backend, *age));
        batch.datagrams.iter().for_each(|(key, record)| world.remember_fragment(key, *record));
        for (at, (packet, kernel)) in batch.packets.iter().enumerate() {
            // A defect may also show as an overflow.
            let host = catch_unwind(AssertUnwindSafe(|| world.run(packet, steer).0));
            if host.ok().as_ref() != Some(kernel) {
                return Some(number * BATCH + at + 1);
            }
        }
        if world.snapshot().difference(&batch.snapshot, false).is_some() {
            return Some((number + 1) * BATCH);
        }
    }
    None
}

#[test]
fn every_mutant_of_steer_is_caught() {
    let Some(object) = object() else { return };
    let mut content = Content::full().with_bypasses(24);
    // Few, so that records of datagrams have to make way.
    content.fragments_log2 = 0;
    let sockets = Sockets::filled(&content, SEED);
    sockets.check();
    let batches = record(&mut Kernel::load(&object, &content), &content);
    sockets.check();
    let living = sockets.living(&content);
    let (next, threads) = (AtomicUsize::new(0), 2);
    let results = thread::scope(|scope| {
        let work = || {
            let mut results = Vec::new();
            while let Some((name, steer)) = generated::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                results.push((*name, caught_after(&batches, *steer, &content, &living)));
            }
            results
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect::<Vec<_>>()
    });
    let mut survivors = Vec::new();
    for (name, caught) in &results {
        match caught {
            Some(packets) => println!("{packets:>7} packets: {name}"),
            None => survivors.push(*name),
        }
    }
    assert_eq!(survivors, ["nothing is changed"], "only the copy without a defect passes {} packets", BATCHES * BATCH);
    assert!(results.len() > 20);
}
