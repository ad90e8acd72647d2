//! Needs root and SLUICE_EBPF_OBJECT. Each of many deliberate defects in `steer` is seen by the comparison with the
//! loaded program: the generator has teeth.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use lb_common::steer::Verdict;
use lb_tests::{
    kernel::{Kernel, object},
    packets::generator::Generator,
    world::{Outcome, Snapshot, World, content::Content, frame::TestFrame},
};

#[expect(warnings, reason = "defects are the point of these copies")]
mod generated {
    use super::{TestFrame, Verdict, World};
    include!(concat!(env!("OUT_DIR"), "/mutants.rs"));
    pub(super) const ALL: &[(&str, fn(&mut TestFrame, &World) -> Verdict)] = MUTANTS;
}

const SEED: u64 = 0x7ee7;
/// Packets between two comparisons of counters and tables.
const BATCH: usize = 256;
/// In all; a mutant that survives them is not caught.
const BATCHES: usize = 240;

/// What the kernel made of a batch.
struct Batch {
    packets: Vec<(Vec<u8>, Outcome)>,
    snapshot: Snapshot,
    clock_moved: bool,
}

fn record(kernel: &mut Kernel) -> Vec<Batch> {
    let mut generator = Generator::new(SEED);
    let mut batch = || {
        kernel.reset();
        let packets = (0..BATCH).map(|_| generator.frame()).map(|packet| {
            let outcome = kernel.steer(&packet);
            (packet, outcome)
        });
        let packets = packets.collect();
        let (snapshot, clock_moved) = kernel.snapshot();
        Batch { packets, snapshot, clock_moved }
    };
    (0..BATCHES).map(|_| batch()).collect()
}

/// The number of the packet, from 1, at which the mutant differs from the kernel.
fn caught_after(batches: &[Batch], steer: fn(&mut TestFrame, &World) -> Verdict, content: &Content) -> Option<usize> {
    let mut world = World::new(content);
    for (number, batch) in batches.iter().enumerate() {
        world.reset();
        for (at, (packet, kernel)) in batch.packets.iter().enumerate() {
            // A defect may also show as an overflow.
            let host = catch_unwind(AssertUnwindSafe(|| world.run(packet, steer).0));
            if host.ok().as_ref() != Some(kernel) {
                return Some(number * BATCH + at + 1);
            }
        }
        if world.snapshot().difference(&batch.snapshot, batch.clock_moved).is_some() {
            return Some((number + 1) * BATCH);
        }
    }
    None
}

#[test]
fn every_mutant_of_steer_is_caught() {
    let Some(object) = object() else { return };
    let content = Content::full().with_bypasses(8);
    let batches = record(&mut Kernel::load(&object, &content));
    let (next, threads) = (AtomicUsize::new(0), 2);
    let results = thread::scope(|scope| {
        let work = || {
            let mut results = Vec::new();
            while let Some((name, steer)) = generated::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                results.push((*name, caught_after(&batches, *steer, &content)));
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
