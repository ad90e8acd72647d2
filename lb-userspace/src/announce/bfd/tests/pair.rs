//! Two sessions on a virtual link that delays, loses and goes silent.

use std::time::Duration;

use super::{START, discriminator, ms, settings};
use crate::announce::bfd::{
    machine::{Cause, Event, IDLE_INTERVAL, Pulse, Random, Session, Settings},
    packet::{ControlPacket, Diagnostic, State},
};

/// The step of the virtual clock.
const STEP: Duration = Duration::from_micros(500);

/// How a direction of the link behaves.
#[derive(Clone, Copy)]
struct Way {
    /// In hundredths.
    loss: u64,
    /// Packets take between a tenth of this and all of it.
    delay: Duration,
}

const GOOD: Way = Way { loss: 0, delay: Duration::from_millis(2) };
const CUT: Way = Way { loss: 100, ..GOOD };

struct Link {
    ends: [Session; 2],
    /// From the end of that number.
    ways: [Way; 2],
    /// Arrival, receiver, packet.
    flying: Vec<(Duration, usize, ControlPacket)>,
    /// An end that is stopped does nothing.
    stopped: [bool; 2],
    events: Vec<(Duration, usize, Event)>,
    now: Duration,
    random: Random,
}

impl Link {
    fn new(settings: [Settings; 2], ways: [Way; 2], seed: u64) -> Self {
        let end = |at: usize| Session::new(discriminator(at as u32 + 1), settings[at], seed * 2 + at as u64, START);
        Self {
            ends: [end(0), end(1)],
            ways,
            flying: Vec::new(),
            stopped: [false; 2],
            events: Vec::new(),
            now: START,
            random: Random::new(seed),
        }
    }

    fn up(settings: [Settings; 2], seed: u64) -> Self {
        let mut link = Self::new(settings, [GOOD; 2], seed);
        // A detection time of the slow pace, so that all polls are over.
        link.pass(Duration::from_secs(10));
        assert_eq!(link.states(), [State::Up; 2], "seed {seed}");
        link.events.clear();
        link
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        let mut arrived = Vec::new();
        self.flying.retain(|(at, receiver, packet)| {
            let is_here = *at <= now && !self.stopped[*receiver];
            if is_here {
                arrived.push((*receiver, *packet));
            }
            !is_here
        });
        for (receiver, packet) in arrived {
            let _ = self.ends[receiver].handle_packet(&packet, now);
        }
        for at in 0..2 {
            if self.stopped[at] {
                continue;
            }
            self.ends[at].handle_timeout(now);
            while let Some(packet) = self.ends[at].poll_transmit(now, Pulse::at(now)) {
                self.ends[at].handle_sent();
                let way = self.ways[at];
                if self.random.next() % 100 >= way.loss {
                    // The order is kept, as on real links: a packet of an earlier state, overtaken, undoes the later.
                    let before =
                        self.flying.iter().filter(|(_, receiver, _)| *receiver == 1 - at).map(|(at, ..)| *at).max();
                    let arrival = now + self.random.part(way.delay, 10, 100);
                    self.flying.push((before.map_or(arrival, |before| before.max(arrival)), 1 - at, packet));
                }
            }
            while let Some(event) = self.ends[at].poll_event() {
                self.events.push((now - START, at, event));
            }
        }
    }

    fn downs(&self) -> usize {
        self.events.iter().filter(|(_, _, event)| matches!(event, Event::Down { .. })).count()
    }
}

#[test]
fn two_ends_find_each_other_within_a_second_and_a_bit_and_stay() {
    for seed in 0..50 {
        let mut link = Link::new([settings(50, 50, 3); 2], [GOOD; 2], seed);
        link.pass(IDLE_INTERVAL / 4 + ms(10));
        assert_eq!(link.states(), [State::Up; 2], "seed {seed}");
        link.pass(Duration::from_secs(30));
        let told: Vec<_> = link.events.iter().map(|(_, at, event)| (*at, *event)).collect();
        assert!(
            told == [(0, Event::Up), (1, Event::Up)] || told == [(1, Event::Up), (0, Event::Up)],
            "seed {seed}: {told:?}"
        );
    }
}

#[test]
fn differing_timers_and_a_multiplier_of_one_are_steady() {
    let pairs = [
        [settings(50, 300, 1), settings(200, 20, 4)],
        [settings(1000, 100, 2), settings(100, 50, 1)],
        [settings(50, 50, 1), settings(50, 50, 1)],
        [settings(3000, 3000, 1), settings(20, 20, 255)],
    ];
    for (at, pair) in pairs.into_iter().enumerate() {
        for seed in 0..10 {
            let mut link = Link::up(pair, seed);
            link.pass(Duration::from_secs(60));
            assert_eq!(link.events.first(), None, "pair {at}, seed {seed}");
        }
    }
}

#[test]
fn silence_is_found_by_both_ends_within_the_detection_time() {
    for seed in 0..50 {
        let mut link = Link::up([settings(50, 50, 3), settings(100, 60, 5)], seed);
        let times = [link.ends[0].detection_time(), link.ends[1].detection_time()].map(|time| time.expect("known"));
        assert_eq!(times, [ms(500), ms(180)]);
        let cut = link.now - START;
        link.ways = [CUT; 2];
        link.pass(Duration::from_secs(2));
        assert_eq!(link.events.len(), 2, "seed {seed}: {:?}", link.events);
        for (at, end, event) in &link.events {
            assert!(*at <= cut + times[*end] + GOOD.delay + STEP, "seed {seed}: end {end} at {:?} after", *at - cut);
            let Event::Down { diagnostic, cause } = event else { panic!("seed {seed}: {event:?}") };
            assert_eq!(*diagnostic, Diagnostic::DetectionTimeExpired, "seed {seed}");
            assert!(
                matches!(cause, Cause::Silence { silent_for } if *silent_for >= times[*end]),
                "seed {seed}: {cause:?}"
            );
        }
    }
}

#[test]
fn loss_in_one_direction_is_told_to_the_other_end() {
    for seed in 0..50 {
        let mut link = Link::up([settings(50, 50, 3); 2], seed);
        link.ways[0] = CUT;
        link.pass(ms(200));
        let mut told = link.events.iter().map(|(_, at, event)| (*at, *event));
        assert!(matches!(told.next(), Some((1, Event::Down { cause: Cause::Silence { .. }, .. }))), "seed {seed}");
        let cause = Cause::Remote { diagnostic: Diagnostic::DetectionTimeExpired };
        let heard = Event::Down { diagnostic: Diagnostic::NeighborSignaledDown, cause };
        assert_eq!(told.next(), Some((0, heard)), "seed {seed}");
        link.pass(Duration::from_secs(30));
        assert_eq!(link.downs(), 2, "seed {seed}: no end comes up while only one is heard");
        link.ways[0] = GOOD;
        link.pass(IDLE_INTERVAL * 2);
        assert_eq!(link.states(), [State::Up; 2], "seed {seed}");
    }
}

#[test]
fn a_lossy_link_comes_up_and_what_is_up_bears_what_its_multiplier_says() {
    for seed in 0..30 {
        let lossy = Way { loss: 30, delay: ms(10) };
        let mut link = Link::new([settings(50, 50, 20), settings(70, 30, 20)], [lossy; 2], seed);
        link.pass(Duration::from_secs(60));
        // Twenty in a row are lost once in thirty thousand million packets.
        assert_eq!((link.states(), link.downs()), ([State::Up; 2], 0), "seed {seed}: {:?}", link.events);
        assert!(link.ends.iter().all(|end| !end.status().is_polling), "seed {seed}: polls end in spite of loss");
        // Three in a row often: it flaps, and is up again as soon as the link is good.
        let mut link = Link::new([settings(50, 50, 3); 2], [Way { loss: 60, delay: ms(10) }; 2], seed);
        link.pass(Duration::from_secs(60));
        link.ways = [GOOD; 2];
        link.pass(IDLE_INTERVAL * 4);
        assert_eq!(link.states(), [State::Up; 2], "seed {seed}");
    }
}

#[test]
fn an_end_that_begins_anew_within_the_detection_time_is_noticed() {
    for seed in 0..50 {
        let mut link = Link::up([settings(50, 50, 30); 2], seed);
        link.ends[1] = Session::new(discriminator(99), settings(50, 50, 30), seed, link.now);
        link.pass(IDLE_INTERVAL / 4 + ms(50));
        assert!(
            matches!(
                link.events.first(),
                Some((_, 0, Event::Down { diagnostic: Diagnostic::NeighborSignaledDown, .. }))
            ),
            "seed {seed}: {:?}",
            link.events
        );
        link.pass(IDLE_INTERVAL * 2);
        assert_eq!(link.states(), [State::Up; 2], "seed {seed}");
    }
}

#[test]
fn an_end_that_was_stopped_and_goes_on_comes_up_again() {
    for seed in 0..30 {
        for pause in [ms(100), ms(1000), ms(10_000)] {
            let mut link = Link::up([settings(50, 50, 3); 2], seed);
            link.stopped[1] = true;
            link.pass(pause);
            let downs = link.downs();
            assert!(if pause > ms(150) { downs == 1 } else { downs == 0 }, "seed {seed}, {pause:?}: {:?}", link.events);
            link.stopped[1] = false;
            link.pass(IDLE_INTERVAL * 5);
            assert_eq!(link.states(), [State::Up; 2], "seed {seed}, {pause:?}");
        }
    }
}

#[test]
fn a_change_of_intervals_takes_nothing_down() {
    for seed in 0..20 {
        let mut link = Link::up([settings(50, 50, 3); 2], seed);
        let lossy = Way { loss: 5, delay: ms(20) };
        for (at, change) in [
            (0, settings(500, 50, 3)),
            (1, settings(50, 500, 3)),
            (0, settings(20, 20, 10)),
            (1, settings(1000, 1000, 3)),
            (0, settings(300, 20, 10)),
            (1, settings(30, 30, 10)),
        ] {
            link.ways = if seed % 2 == 0 { [GOOD; 2] } else { [Way { loss: 0, ..lossy }; 2] };
            let now = link.now;
            link.ends[at].set_settings(change, now);
            link.pass(ms(130));
            // Before the poll sequence is over on slow links: one more change.
            link.ends[1 - at].set_settings(settings(60, 60, 3), now + ms(130));
            link.pass(Duration::from_secs(10));
            assert_eq!(link.events, [], "seed {seed}, after {change:?}");
            assert!(link.ends.iter().all(|end| !end.status().is_polling), "seed {seed}");
            let (one, two) = (link.ends[at].status(), link.ends[1 - at].status());
            let expected = change.desired_min_tx().max(two.required_min_rx);
            assert_eq!((one.transmit_interval, one.desired_min_tx), (expected, change.desired_min_tx()), "seed {seed}");
        }
    }
}

#[test]
fn an_ordered_stop_is_no_failure_at_the_other_end() {
    for seed in 0..20 {
        let mut link = Link::up([settings(50, 50, 3); 2], seed);
        let now = link.now;
        link.ends[0].stop(now);
        link.pass(ms(10));
        let told: Vec<_> = link.events.iter().map(|(_, at, event)| (*at, *event)).collect();
        let order = Event::RemoteAdminDown { diagnostic: Diagnostic::AdministrativelyDown };
        assert_eq!(told, [(0, Event::AdminDownSent), (1, order)], "seed {seed}");
        link.pass(Duration::from_secs(4));
        assert_eq!(link.downs(), 0, "seed {seed}");
        assert_eq!(link.states(), [State::AdminDown, State::Down], "seed {seed}");
        let now = link.now;
        link.ends[0].resume(now);
        link.pass(IDLE_INTERVAL * 2);
        assert_eq!(link.states(), [State::Up; 2], "seed {seed}");
    }
}
