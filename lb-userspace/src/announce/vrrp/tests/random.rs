//! Whatever is done to a virtual router, what must hold holds.

use std::time::Duration;

use proptest::prelude::*;

use super::{SECOND, address, advertisement_each, interval, ms, priority, settings, vips};
use crate::announce::vrrp::machine::{
    Event, GRATUITOUS_GAP_MIN, Preemption, Router, Settings, State, StateName, Stop, Transmit,
};

#[derive(Clone, Debug)]
enum Operation {
    Pass(u64),
    /// To the next timer, and so many milliseconds late.
    Timer(u64),
    Hear(u8, u8, u64),
    Priority(Option<u16>),
    Vips(Vec<u8>),
    Address(Option<u8>),
    Link(bool),
    Stop(bool),
    Start,
    /// Fetched now, and said to be sent so many milliseconds later.
    Fetch(u64),
    SendFails,
    Back(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (0..1500_u64).prop_map(Operation::Pass),
        1 => (0..20_000_u64).prop_map(Operation::Pass),
        12 => prop_oneof![8 => Just(0), 2 => 0..300_u64, 1 => 0..5000_u64].prop_map(Operation::Timer),
        6 => (prop_oneof![Just(0), 90..110_u8, any::<u8>()], 8..13_u8, 1..200_u64)
            .prop_map(|(priority, from, each)| Operation::Hear(priority, from, each * 10)),
        2 => prop::option::of(1..=254_u16).prop_map(Operation::Priority),
        1 => prop::collection::vec(1..20_u8, 1..5).prop_map(Operation::Vips),
        1 => prop::option::of(8..13_u8).prop_map(Operation::Address),
        1 => any::<bool>().prop_map(Operation::Link),
        1 => any::<bool>().prop_map(Operation::Stop),
        2 => Just(Operation::Start),
        12 => prop_oneof![8 => Just(0), 1 => 0..5000_u64].prop_map(Operation::Fetch),
        1 => Just(Operation::SendFails),
        1 => (0..3000_u64).prop_map(Operation::Back),
    ]
}

/// What the world has seen of a router.
struct Observer {
    router: Router,
    now: Duration,
    /// When an advertisement of an active, or the first that says it leaves, was last really sent.
    said: Option<Duration>,
    last_round: Option<Duration>,
    /// The latest time that the router was told.
    latest: Duration,
    state: StateName,
}

impl Observer {
    fn check(&mut self) -> Result<(), TestCaseError> {
        let mut hold = None;
        while let Some(event) = self.router.poll_event() {
            match event {
                Event::Transition { from, to, .. } => {
                    prop_assert_eq!(from, self.state, "transitions follow each other");
                    prop_assert!(is_allowed(from, to), "{:?} to {:?}", from, to);
                    self.state = to;
                }
                Event::Hold { until } => hold = Some(until),
                Event::Release { vips } => prop_assert!(!vips.is_empty()),
                Event::Gratuitous => {
                    let last = self.last_round.replace(self.latest);
                    prop_assert!(last.is_none_or(|last| self.latest >= last + GRATUITOUS_GAP_MIN));
                }
                Event::Alarm { .. } => {}
            }
        }
        prop_assert_eq!(self.router.state().name(), self.state);
        if let (Some(told), Some(until)) = (hold, self.router.hold()) {
            prop_assert!(told <= until);
        }
        self.check_hold()?;
        prop_assert_eq!(
            self.router.missing().is_empty() || self.state == StateName::Leaving,
            self.state != StateName::Init
        );
        prop_assert_eq!(self.router.poll_timeout().is_some(), self.state != StateName::Init);
        Ok(())
    }

    /// Nothing is answered without an advertisement, and not for longer than one stands for.
    fn check_hold(&self) -> Result<(), TestCaseError> {
        let Some(until) = self.router.hold() else { return Ok(()) };
        let interval = self.router.settings().interval;
        let Some(said) = self.said else { return Err(TestCaseError::fail("answers and has said nothing")) };
        match self.router.state() {
            State::Active { .. } if self.state == StateName::Active => {
                prop_assert!(until <= said + interval.active_down_max(), "{:?} after {:?}", until, said);
            }
            State::Leaving { limit, .. } => {
                prop_assert!(until <= limit && limit <= said + interval.active_down_max() * 2)
            }
            State::Init | State::Listening { .. } | State::Backup { .. } | State::Active { .. } => {
                prop_assert!(false, "{:?} answers", self.state);
            }
        }
        Ok(())
    }

    fn apply(&mut self, operation: Operation) -> Result<(), TestCaseError> {
        let told = match &operation {
            Operation::Pass(_) => Duration::ZERO,
            Operation::Back(milliseconds) => self.now.saturating_sub(ms(*milliseconds)),
            _ => Duration::MAX,
        };
        self.operate(operation)?;
        self.latest = self.latest.max(told.min(self.now));
        Ok(())
    }

    fn operate(&mut self, operation: Operation) -> Result<(), TestCaseError> {
        let router = &mut self.router;
        match operation {
            Operation::Pass(milliseconds) => self.now += ms(milliseconds),
            Operation::Timer(late) => {
                if let Some(at) = router.poll_timeout() {
                    self.now = self.now.max(at + ms(late));
                }
                router.handle_timeout(self.now);
                prop_assert!(router.poll_timeout().is_none_or(|at| at > self.now), "all that was due is done");
            }
            Operation::Hear(priority, from, each) => {
                router.handle_packet(address(from), &advertisement_each(priority, ms(each)), self.now);
            }
            Operation::Priority(number) => router.set_priority(number.map(priority), self.now),
            Operation::Vips(lasts) => router.set_vips(vips(&lasts), self.now).expect("VIPs"),
            Operation::Address(last) => router.set_address(last.map(address), self.now).expect("an address"),
            Operation::Link(is_up) => router.set_link(is_up, self.now),
            Operation::Stop(true) => router.stop(Stop::MakeBeforeBreak, self.now),
            Operation::Stop(false) => router.stop(Stop::Immediate, self.now),
            Operation::Start => router.start(self.now),
            Operation::Fetch(late) => {
                if let Some(transmit) = router.poll_transmit(self.now) {
                    self.now += ms(late);
                    self.send(transmit)?;
                }
            }
            Operation::SendFails => {
                if let Some(transmit) = router.poll_transmit(self.now) {
                    router.unsent(transmit.id);
                }
            }
            Operation::Back(milliseconds) => {
                // Only for one call: the clock itself does not.
                router.handle_timeout(self.now.saturating_sub(ms(milliseconds)));
            }
        }
        Ok(())
    }

    fn send(&mut self, transmit: Transmit) -> Result<(), TestCaseError> {
        let before = self.router.hold();
        let said = transmit.advertisement.priority().get();
        let eligible = self.router.settings().priority.map(|priority| priority.get());
        prop_assert!(said == 0 || eligible == Some(said), "nobody that is not eligible says he is active");
        self.router.sent(transmit.id, self.now);
        if self.now < transmit.not_after {
            self.said = Some(self.now);
        } else {
            prop_assert!(self.router.hold() <= before, "too late to be believed");
        }
        Ok(())
    }
}

fn is_allowed(from: StateName, to: StateName) -> bool {
    use StateName::{Active, Backup, Init, Leaving, Listening};
    matches!(
        (from, to),
        (Init, Listening)
            | (Listening, Backup | Init)
            | (Backup, Active | Init)
            | (Active, Backup | Leaving | Init)
            | (Leaving, Init | Active)
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_nothing_is_answered_that_was_not_advertised(
        operations in prop::collection::vec(operation(), 1..120),
        preemption in prop_oneof![Just(Preemption::Off), (0..3_u32).prop_map(|n| Preemption::After(SECOND * n))],
        each in 1..150_u64,
    ) {
        let now = SECOND * 500;
        let settings = Settings { preemption, interval: interval(ms(each * 10)), ..settings() };
        let router = Router::new(settings, now).expect("settings");
        let mut observer = Observer { router, now, said: None, last_round: None, latest: Duration::ZERO, state: StateName::Init };
        observer.check()?;
        for operation in operations {
            observer.apply(operation)?;
            observer.check()?;
        }
        // And left alone, and able to, it becomes active.
        let router = &mut observer.router;
        router.set_priority(Some(priority(7)), observer.now);
        router.set_link(true, observer.now);
        router.set_address(Some(address(10)), observer.now).expect("an address");
        router.start(observer.now);
        let end = observer.now + SECOND * 60;
        while observer.now < end {
            observer.apply(Operation::Fetch(0))?;
            observer.check()?;
            observer.apply(Operation::Timer(0))?;
            observer.check()?;
        }
        prop_assert!(observer.router.hold().is_some());
    }
}
