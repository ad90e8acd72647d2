//! Random operations, hostile packets among them, with invariants after each.

use std::time::Duration;

use proptest::prelude::*;

use super::{OURS, START, discriminator, ms, settings};
use crate::announce::bfd::{
    machine::{Event, IDLE_INTERVAL, Pulse, Session},
    packet::{ControlPacket, DetectMult, Diagnostic, Discriminator, Sequence, State},
};

#[derive(Clone, Debug)]
enum Operation {
    Hear(ControlPacket),
    Pass(u64),
    Set(u64, u64, u8),
    Stop,
    Resume,
    Reset,
    /// The agent hangs, or goes on.
    Hang(bool),
}

fn packet() -> impl Strategy<Value = ControlPacket> {
    let sequence = prop_oneof![Just(Sequence::Neither), Just(Sequence::Poll), Just(Sequence::Final)];
    let time = || prop_oneof![Just(0), 1..100_000u64, Just(1_000_000), Just(u64::from(u32::MAX))];
    // Mostly what brings a session up.
    let state = prop_oneof![1 => Just(0), 3 => Just(1), 3 => Just(2), 6 => Just(3usize)];
    (state, sequence, 0..20u8, 1..5u8, 1..3u32, prop::option::weighted(0.8, Just(OURS)), time(), time()).prop_map(
        |(state, sequence, demand, mult, mine, yours, transmit, receive)| ControlPacket {
            diagnostic: Diagnostic::None,
            state: State::ALL[state],
            sequence,
            is_control_plane_independent: false,
            is_demand: demand == 0,
            detect_mult: DetectMult::new(mult).expect("not zero"),
            my_discriminator: discriminator(mine),
            your_discriminator: yours.and_then(Discriminator::new),
            desired_min_tx: Duration::from_micros(transmit),
            required_min_rx: Duration::from_micros(receive),
            required_min_echo_rx: Duration::ZERO,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        20 => packet().prop_map(Operation::Hear),
        20 => (0..200u64).prop_map(Operation::Pass),
        4 => (500..5000u64).prop_map(Operation::Pass),
        2 => (10..2000u64, 10..2000u64, 1..5u8).prop_map(|(send, take, mult)| Operation::Set(send, take, mult)),
        1 => Just(Operation::Stop),
        1 => Just(Operation::Resume),
        1 => Just(Operation::Reset),
        1 => any::<bool>().prop_map(Operation::Hang),
    ]
}

/// What must hold of everything that a session does.
struct Watched {
    session: Session,
    now: Duration,
    hung_since: Option<Duration>,
    /// The last periodic packet, if the state has not changed since.
    last: Option<Duration>,
    state: State,
    is_up_told: bool,
    polls: usize,
    finals: usize,
}

impl Watched {
    fn new(seed: u64) -> Self {
        Self {
            session: Session::new(discriminator(OURS), settings(50, 50, 3), seed, START),
            now: START,
            hung_since: None,
            last: None,
            state: State::Down,
            is_up_told: false,
            polls: 0,
            finals: 0,
        }
    }

    fn act(&mut self, operation: &Operation) {
        match operation {
            Operation::Hear(packet) => {
                if self.session.handle_packet(packet, self.now).is_ok() {
                    self.polls += usize::from(packet.sequence == Sequence::Poll);
                }
            }
            Operation::Pass(_) => {}
            Operation::Set(transmit, receive, mult) => {
                self.session.set_settings(settings(*transmit, *receive, *mult), self.now);
            }
            Operation::Stop => self.session.stop(self.now),
            Operation::Resume => self.session.resume(self.now),
            Operation::Reset => {
                self.session.reset_forwarding_plane(self.now);
                // Tells Down again where it was down.
                self.last = None;
            }
            Operation::Hang(true) => self.hung_since = self.hung_since.or(Some(self.now)),
            Operation::Hang(false) => self.hung_since = None,
        }
        self.check();
        let Operation::Pass(milliseconds) = operation else { return };
        let end = self.now + ms(*milliseconds);
        let mut rounds = 0;
        loop {
            let next = [self.session.poll_timeout(), self.session.transmit_at()].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            assert!(next > self.now, "time goes on");
            self.now = next;
            self.check();
            rounds += 1;
            assert!(rounds < 2000, "too much is done in {milliseconds} ms");
        }
        self.now = end;
        self.check();
    }

    fn check(&mut self) {
        self.note_state();
        self.session.handle_timeout(self.now);
        self.note_state();
        let pulse = Pulse::at(self.hung_since.unwrap_or(self.now));
        while let Some(packet) = self.session.poll_transmit(self.now, pulse) {
            self.session.handle_sent();
            self.check_packet(&packet, pulse);
        }
        assert!(self.session.transmit_at().is_none_or(|at| at > self.now), "what is due has been sent");
        assert!(self.session.poll_timeout().is_none_or(|at| at > self.now), "what is due has been done");
        let status = self.session.status();
        if status.state == State::Up {
            assert!(status.remote.is_some() && status.detection_time.is_some(), "up with nobody");
            assert!(self.session.poll_timeout().is_some(), "up without a limit");
        }
        let is_stopped = status.state == State::AdminDown;
        assert_eq!(status.diagnostic == Diagnostic::AdministrativelyDown, is_stopped);
        let wants_none = status.remote.is_some_and(|remote| remote.required_min_rx.is_zero() || remote.is_demand);
        assert!(self.session.transmit_at().is_some() || wants_none, "silent for no reason");
    }

    fn check_packet(&mut self, packet: &ControlPacket, pulse: Pulse) {
        assert_eq!(packet.state, self.session.state());
        assert!(packet.state == State::AdminDown || self.session.may_send(self.now, pulse), "a hung agent speaks");
        if packet.state != State::Up {
            assert!(packet.desired_min_tx >= IDLE_INTERVAL);
        }
        if packet.sequence == Sequence::Final {
            self.finals += 1;
            assert!(self.finals <= self.polls, "an answer to nothing");
            return;
        }
        if let Some(last) = self.last
            && packet.state != State::Up
        {
            assert!(self.now - last >= IDLE_INTERVAL * 3 / 4 - Duration::from_micros(1), "{:?} apart", self.now - last);
        }
        self.last = Some(self.now);
    }

    fn note_state(&mut self) {
        if self.session.state() != self.state {
            self.state = self.session.state();
            self.last = None;
        }
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Up => {
                    assert!(!self.is_up_told, "up twice");
                    self.is_up_told = true;
                }
                Event::Down { .. } => {
                    assert!(self.is_up_told, "down without having been up");
                    self.is_up_told = false;
                }
                Event::RemoteAdminDown { .. } | Event::AdminDownSent => self.is_up_told = false,
                Event::Stopped => assert_eq!(self.session.state(), State::AdminDown),
            }
        }
        if self.state == State::AdminDown {
            self.is_up_told = false;
        }
        assert_eq!(self.is_up_told, self.state == State::Up, "the engine knows");
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(seed: u64, operations in prop::collection::vec(operation(), 1..200)) {
        let mut watched = Watched::new(seed);
        for operation in &operations {
            watched.act(operation);
        }
    }
}
