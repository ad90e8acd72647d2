//! Ten million random and mutated frames: each is counted under exactly one reason, none is read or written out of
//! bounds, and what is not forwarded changes nothing but limiters. Part of them go through the loaded program, which
//! needs root and SLUICE_EBPF_OBJECT.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use lb_common::reason::{REASONS, Reason};
use lb_tests::{
    fuzz::{is_kept, may_change, may_record},
    kernel::{Kernel, object},
    packets::{generator::Generator, hex, random::Random},
    world::{World, content::Content},
};

const HOST_FRAMES: u64 = 9_500_000;
const KERNEL_FRAMES: u64 = 500_000;
/// One for each CPU of the smallest machine that this runs on.
const THREADS: u64 = 2;
/// Frames between two looks at the tables.
const BATCH: u64 = 5_000;
const SEED: u64 = 0xf022;

/// Frames that come from a few good ones, damaged again and again, or from nothing at all.
struct Fuzzer {
    random: Random,
    generator: Generator,
    seeds: Vec<Vec<u8>>,
}

impl Fuzzer {
    fn new(seed: u64) -> Self {
        let mut generator = Generator::new(seed);
        // Short ones: damage then falls on headers.
        let short = |generator: &mut Generator| std::iter::from_fn(|| Some(generator.frame())).find(|f| f.len() < 400);
        let seeds = (0..256).filter_map(|_| short(&mut generator)).collect();
        Self { random: Random::new(!seed), generator, seeds }
    }

    fn frame(&mut self) -> Vec<u8> {
        if self.random.one_in(8) {
            let length = 14 + self.random.below(120);
            let mut frame = self.random.bytes(length);
            frame[0] &= 0x0f;
            return frame;
        }
        let at = self.random.below(self.seeds.len());
        let mut frame = self.seeds[at].clone();
        for _ in 0..=self.random.below(3) {
            if frame.len() > 20 {
                self.generator.mangle(&mut frame);
            }
        }
        if self.random.one_in(64) {
            // What damage made of a frame is damaged further.
            let worn = frame.len() < 60 || self.random.one_in(4);
            self.seeds[at] = if worn { self.generator.frame() } else { frame.clone() };
        }
        frame
    }
}

/// How many frames had each reason.
fn steer_on_host(seed: u64, frames: u64, content: &Content) -> [u64; REASONS] {
    let mut fuzzer = Fuzzer::new(seed);
    let mut world = World::new(content);
    let mut seen = [0; REASONS];
    for number in 0..frames {
        if number % BATCH == 0 {
            world.reset();
        }
        let frame = fuzzer.frame();
        let (writes, counted) = (world.writes.get(), world.packets_counted());
        let name = || format!("seed {seed:#x}, frame {number}: {}", hex(&frame));
        let Ok((outcome, reason)) = catch_unwind(AssertUnwindSafe(|| world.steer(&frame))) else {
            panic!("steer panics at {}", name())
        };
        assert_eq!(world.packets_counted(), counted + 1, "{reason:?} of {}", name());
        assert!(may_record(reason) || world.writes.get() == writes, "{reason:?} left a record of {}", name());
        assert!(may_change(reason) || is_kept(&frame, &outcome.bytes), "{reason:?} changed {}", name());
        seen[reason.index() as usize] += 1;
    }
    seen
}

#[test]
fn any_bytes_have_one_reason_on_the_host() {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let content = Content::full().with_bypasses(3).limited([40, 10, 5]);
                let seen = steer_on_host(SEED + thread, HOST_FRAMES / THREADS, &content);
                for listed in &Reason::ALL[..=Reason::NoPort.index() as usize] {
                    let reason = listed.0;
                    let some = seen[reason.index() as usize] > 100;
                    assert_eq!(some, reason != Reason::Replied, "frames with {reason:?}: {seen:?}");
                }
            });
        }
    });
}

#[test]
fn any_bytes_have_one_reason_in_the_kernel() {
    let Some(object) = object() else { return };
    let content = Content::full().with_bypasses(3).limited([40, 10, 5]);
    let (mut kernel, mut world) = (Kernel::load(&object, &content), World::new(&content));
    let mut fuzzer = Fuzzer::new(!SEED);
    for batch in 0..KERNEL_FRAMES / BATCH {
        kernel.reset();
        world.reset();
        for _ in 0..BATCH {
            let frame = fuzzer.frame();
            let (host, reason) = world.steer(&frame);
            assert!(host == kernel.steer(&frame), "seed {:#x}, {reason:?}: {}", !SEED, hex(&frame));
        }
        let (snapshot, clock_moved) = kernel.snapshot();
        let forwarded: u64 = snapshot.backends.iter().map(|traffic| traffic.packets).sum();
        let counted: u64 = snapshot.reasons.iter().map(|counter| counter.packets).sum();
        let beside = snapshot.reasons[Reason::BrokenHistory.index() as usize].packets;
        assert_eq!(forwarded + counted - beside, BATCH, "batch {batch}");
        assert_eq!(world.snapshot().difference(&snapshot, clock_moved), None, "batch {batch}");
    }
}
