//! The ladder of the machine: bytes, the transition table, one test for each rule, the table of sessions, pairs on a
//! lossy link, and random operations with invariants.

mod heartbeat;
mod packets;
mod pair;
mod random;
mod rules;
mod table;
mod timing;
mod transitions;

use std::time::Duration;

use super::{
    machine::{Event, Pulse, Session, Settings},
    packet::{ControlPacket, DetectMult, Diagnostic, Discriminator, Sequence, State},
};

const OURS: u32 = 0x0a0b_0c0d;
const THEIRS: u32 = 0x1122_3344;
/// The agent's clock does not begin at zero.
const START: Duration = Duration::from_secs(1000);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn discriminator(value: u32) -> Discriminator {
    Discriminator::new(value).expect("not zero")
}

fn settings(transmit: u64, receive: u64, mult: u8) -> Settings {
    Settings::new(ms(transmit), ms(receive), mult).expect("in range")
}

/// A packet of the other end, which wants 50 ms both ways and three of them.
fn theirs(state: State) -> ControlPacket {
    ControlPacket {
        diagnostic: Diagnostic::None,
        state,
        sequence: Sequence::Neither,
        is_control_plane_independent: false,
        is_demand: false,
        detect_mult: DetectMult::new(3).expect("not zero"),
        my_discriminator: discriminator(THEIRS),
        your_discriminator: Some(discriminator(OURS)),
        desired_min_tx: ms(50),
        required_min_rx: ms(50),
        required_min_echo_rx: Duration::ZERO,
    }
}

/// A session with its clock, and an agent that is well.
struct Bench {
    session: Session,
    now: Duration,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self::with_seed(settings, 1)
    }

    fn with_seed(settings: Settings, seed: u64) -> Self {
        Self { session: Session::new(discriminator(OURS), settings, seed, START), now: START }
    }

    /// Up by the usual way, its first packets sent and the poll sequence over.
    fn up(settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        bench.come_up();
        bench
    }

    fn come_up(&mut self) {
        self.hear(State::Down);
        self.sent();
        self.hear(State::Up);
        self.sent();
        self.hear_packet(&ControlPacket { sequence: Sequence::Final, ..theirs(State::Up) });
        self.sent();
        self.events();
        assert_eq!(self.session.state(), State::Up);
        assert!(!self.session.status().is_polling);
    }

    fn hear(&mut self, state: State) {
        self.hear_packet(&theirs(state));
    }

    fn hear_packet(&mut self, packet: &ControlPacket) {
        let _ = self.session.handle_packet(packet, self.now);
    }

    /// What is sent now.
    fn sent(&mut self) -> Vec<ControlPacket> {
        self.session.handle_timeout(self.now);
        let next = || {
            let packet = self.session.poll_transmit(self.now, Pulse::at(self.now))?;
            self.session.handle_sent();
            Some(packet)
        };
        std::iter::from_fn(next).collect()
    }

    /// The clock goes on by `time`, and all that is due on the way happens: what was sent, and when.
    fn pass(&mut self, time: Duration) -> Vec<(Duration, ControlPacket)> {
        let end = self.now + time;
        let mut sent = Vec::new();
        loop {
            sent.extend(self.sent().into_iter().map(|packet| (self.now, packet)));
            let next = [self.session.poll_timeout(), self.session.transmit_at()].into_iter().flatten().min();
            match next {
                Some(next) if next <= end => self.now = next.max(self.now),
                Some(_) | None => break,
            }
        }
        self.now = end;
        sent
    }

    /// As [`pass`](Self::pass), while the other end sends every 10 ms that it is up.
    fn pass_heard(&mut self, time: Duration) -> Vec<(Duration, ControlPacket)> {
        let end = self.now + time;
        let mut sent = Vec::new();
        while self.now < end {
            self.hear(State::Up);
            sent.extend(self.pass(ms(10).min(end - self.now)));
        }
        sent
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }
}
