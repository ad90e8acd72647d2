//! The ladder of the virtual router: its packets, the transition table, one test for each rule, random operations, and
//! a pair on a lossy link.

mod machine;
mod packet;
mod pair;
mod random;
mod rules;
mod spread;
mod table;

use std::{net::IpAddr, time::Duration};

use super::{
    Family, Interval, Priority, Version, Vrid,
    machine::{Event, Peers, Preemption, REFRESH, Router, Settings, StateName, Vips},
    packet::{Advertised, Advertisement},
};

const SECOND: Duration = Duration::from_secs(1);
const OWN: u16 = 100;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn vrid(number: u16) -> Vrid {
    Vrid::new(number).expect("a VRID")
}

fn priority(number: u16) -> Priority {
    Priority::new(number).expect("a priority")
}

fn interval(duration: Duration) -> Interval {
    Interval::new(Version::V3, duration).expect("an interval")
}

fn address(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn vips(lasts: &[u8]) -> Vips {
    Vips::new(vrid(7), Family::Ipv4, lasts.iter().copied().map(address)).expect("VIPs")
}

/// Priority 100 from 10.0.0.10, each second, version 3, two VIPs.
fn settings() -> Settings {
    Settings {
        vrid: vrid(7),
        interval: interval(SECOND),
        priority: Some(priority(OWN)),
        preemption: Preemption::After(Duration::ZERO),
        start_delay: Duration::ZERO,
        address: Some(address(10)),
        vips: vips(&[100, 101]),
        peers: Peers::Group,
        has_virtual_mac: false,
        refresh: Some(REFRESH),
    }
}

/// As [`settings`] would send it with another priority.
fn advertisement(priority: u8) -> Advertisement {
    advertisement_each(priority, SECOND)
}

fn advertisement_each(priority: u8, each: Duration) -> Advertisement {
    let listed = vec![address(100), address(101)];
    Advertisement::new(vrid(7), Advertised::new(priority), interval(each), listed).expect("an advertisement")
}

/// A router, its clock, and what came out of it. Whatever it wants to send is sent at once.
struct Bench {
    router: Router,
    now: Duration,
    events: Vec<Event>,
    sent: Vec<(Duration, Advertisement)>,
    turns: u32,
}

/// Turns of a test: one that takes more waits for what never comes.
const TURNS_MAX: u32 = 20_000;

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = SECOND * 1000;
        let router = Router::new(settings, now).expect("settings");
        let mut bench = Self { router, now, events: Vec::new(), sent: Vec::new(), turns: 0 };
        bench.settle();
        bench
    }

    fn backup(settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        bench.hear(200, 20);
        while bench.state() == StateName::Listening {
            bench.run(SECOND / 2);
            bench.hear(200, 20);
        }
        assert_eq!(bench.state(), StateName::Backup);
        bench.forget();
        bench
    }

    fn active(settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        while bench.state() != StateName::Active {
            bench.step();
        }
        bench.forget();
        bench
    }

    fn leaving(settings: Settings) -> Self {
        let mut bench = Self::active(settings);
        bench.router.stop(super::machine::Stop::MakeBeforeBreak, bench.now);
        bench.settle();
        bench.forget();
        bench
    }

    fn state(&self) -> StateName {
        self.router.state().name()
    }

    fn forget(&mut self) {
        self.events.clear();
        self.sent.clear();
    }

    fn settle(&mut self) {
        self.turns += 1;
        assert!(self.turns < TURNS_MAX, "{:?} for ever", self.state());
        while let Some(transmit) = self.router.poll_transmit(self.now) {
            assert!(self.now < transmit.not_after);
            self.router.sent(transmit.id, self.now);
            self.sent.push((self.now, transmit.advertisement));
        }
        while let Some(event) = self.router.poll_event() {
            self.events.push(event);
        }
    }

    /// Goes on to the next time that something is due.
    fn step(&mut self) {
        self.now = self.router.poll_timeout().expect("a timer").max(self.now);
        self.router.handle_timeout(self.now);
        self.settle();
    }

    /// Goes on for so long.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.router.poll_timeout().is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = end;
    }

    fn hear_this(&mut self, advertisement: &Advertisement, from: u8) {
        self.router.handle_packet(address(from), advertisement, self.now);
        self.settle();
    }

    fn hear(&mut self, priority: u8, from: u8) {
        self.hear_this(&advertisement(priority), from);
    }

    /// Priorities of what was sent since last asked, and when it was.
    fn said(&mut self) -> Vec<u8> {
        self.sent.drain(..).map(|(_, advertisement)| advertisement.priority().get()).collect()
    }

    fn rounds(&mut self) -> usize {
        self.events.extract_if(.., |event| *event == Event::Gratuitous).count()
    }
}
