//! Two virtual routers on a link that loses packets.

use std::time::Duration;

use super::{SECOND, address, interval, ms, priority, settings};
use crate::announce::vrrp::{
    machine::{Router, Settings, Stop},
    packet::Advertisement,
};

/// Steps of virtual time.
const STEP: Duration = Duration::from_millis(1);

/// xorshift64: any will do that is the same each time.
struct Random(u64);

impl Random {
    fn percent(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % 100
    }
}

struct Pair {
    routers: [Router; 2],
    sources: [u8; 2],
    now: Duration,
    random: Random,
    /// Percent of what each says that is lost.
    loss: [u64; 2],
    in_flight: Vec<(Duration, usize, Advertisement)>,
    both: Duration,
    none: Duration,
}

impl Pair {
    fn new(seed: u64, priorities: [u16; 2], each: Duration) -> Self {
        let now = SECOND;
        let of = |at: usize| {
            let settings = Settings {
                priority: Some(priority(priorities[at])),
                address: Some(address(10 + at as u8)),
                interval: interval(each),
                ..settings()
            };
            Router::new(settings, now).expect("settings")
        };
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (loss, zero) = ([0, 0], Duration::ZERO);
        Self {
            routers: [of(0), of(1)],
            sources: [10, 11],
            now,
            random,
            loss,
            in_flight: vec![],
            both: zero,
            none: zero,
        }
    }

    fn holds(&self) -> [bool; 2] {
        self.routers.each_ref().map(|router| router.hold().is_some_and(|until| self.now < until))
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            for (_, from, said) in self.in_flight.extract_if(.., |(at, ..)| *at <= self.now) {
                self.routers[1 - from].handle_packet(address(self.sources[from]), &said, self.now);
            }
            for at in [0, 1] {
                if self.routers[at].poll_timeout().is_some_and(|due| due <= self.now) {
                    self.routers[at].handle_timeout(self.now);
                }
                while let Some(transmit) = self.routers[at].poll_transmit(self.now) {
                    self.routers[at].sent(transmit.id, self.now);
                    if self.random.percent() >= self.loss[at] {
                        self.in_flight.push((self.now + STEP, at, transmit.advertisement));
                    }
                }
                while self.routers[at].poll_event().is_some() {}
            }
            match self.holds() {
                [true, true] => self.both += STEP,
                [false, false] => self.none += STEP,
                [true, false] | [false, true] => {}
            }
        }
    }

    /// Of the time since last asked: answered by both, by none.
    fn overlaps(&mut self) -> (Duration, Duration) {
        (std::mem::take(&mut self.both), std::mem::take(&mut self.none))
    }
}

#[test]
fn the_higher_priority_is_active_and_with_equal_ones_the_higher_address() {
    for (priorities, winner) in [([100, 200], [false, true]), ([200, 100], [true, false]), ([100, 100], [false, true])]
    {
        let mut pair = Pair::new(1, priorities, ms(100));
        pair.run(SECOND * 5);
        assert_eq!(pair.holds(), winner, "{priorities:?}");
    }
}

#[test]
fn a_lossy_link_is_outlived_and_the_pair_ends_with_one() {
    for seed in 1..=50 {
        let mut pair = Pair::new(seed, [200, 100], ms(100));
        pair.loss = [30, 30];
        pair.run(SECOND * 60);
        pair.loss = [0, 0];
        pair.run(SECOND);
        pair.overlaps();
        pair.run(SECOND * 10);
        assert_eq!((pair.holds(), pair.overlaps()), ([true, false], (Duration::ZERO, Duration::ZERO)), "seed {seed}");
    }
}

#[test]
fn with_a_dead_active_the_other_answers_after_its_wait_and_never_both() {
    for (each, bound) in [(ms(100), ms(310)), (SECOND, ms(3100))] {
        let mut pair = Pair::new(3, [254, 244], each);
        pair.run(SECOND * 20);
        pair.overlaps();
        // Dead: neither hears nor speaks, and its answers end by themselves.
        pair.loss = [100, 100];
        pair.routers[0].set_link(false, pair.now);
        pair.run(SECOND * 10);
        let (both, none) = pair.overlaps();
        assert_eq!((pair.holds(), both), ([false, true], Duration::ZERO));
        assert!(none <= bound, "{none:?} without an answer at {each:?}");
    }
}

#[test]
fn a_hand_over_leaves_no_gap_even_if_half_is_lost() {
    for seed in 1..=50 {
        let mut pair = Pair::new(seed, [254, 244], ms(100));
        pair.run(SECOND * 5);
        pair.overlaps();
        pair.loss = [50, 50];
        pair.routers[0].stop(Stop::MakeBeforeBreak, pair.now);
        pair.run(SECOND);
        assert_eq!(pair.holds(), [false, true]);
        let (both, none) = pair.overlaps();
        assert_eq!(none, Duration::ZERO, "seed {seed}: both {both:?}");
        assert!(both <= ms(400), "seed {seed}");
    }
}

#[test]
fn a_split_brain_heals_with_the_first_advertisement_of_either() {
    for priorities in [[254, 244], [244, 254], [100, 100]] {
        let mut pair = Pair::new(9, priorities, SECOND);
        pair.run(SECOND * 10);
        pair.loss = [100, 100];
        pair.run(SECOND * 10);
        assert_eq!(pair.holds(), [true, true]);
        pair.loss = [0, 0];
        pair.overlaps();
        pair.run(SECOND * 10);
        let (both, none) = pair.overlaps();
        assert!(both <= SECOND + ms(5) && none == Duration::ZERO, "{both:?}, {none:?}");
        assert_eq!(pair.holds(), [priorities[0] > priorities[1], priorities[0] <= priorities[1]]);
    }
}
