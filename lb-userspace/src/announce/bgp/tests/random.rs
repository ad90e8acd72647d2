//! Random operations, with what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{super::machine::*, super::packet::*, *};

#[derive(Clone, Debug)]
enum Operation {
    Wait(u64),
    Connected,
    Accepted,
    Lost(usize),
    Open(usize, u8, bool),
    Keepalive(usize),
    Bytes(usize, Vec<u8>),
    Notification(usize, u8, u8),
    Refresh(usize, u8),
    Routes(BTreeSet<u8>, bool),
    Stage(u8),
    Bfd(u8),
    Interface(bool),
    /// How much of what was sent the kernel takes, in percent.
    Written(usize, usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let on = 0_usize..3;
    prop_oneof![
        3 => (0_u64..100_000).prop_map(Operation::Wait),
        4 => Just(Operation::Connected),
        2 => Just(Operation::Accepted),
        1 => on.clone().prop_map(Operation::Lost),
        4 => (on.clone(), 1_u8..10, any::<bool>()).prop_map(|(on, id, graceful)| Operation::Open(on, id, graceful)),
        5 => on.clone().prop_map(Operation::Keepalive),
        1 => (on.clone(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(on, it)| Operation::Bytes(on, it)),
        1 => (on.clone(), any::<u8>(), any::<u8>()).prop_map(|(on, a, b)| Operation::Notification(on, a, b)),
        1 => (on.clone(), 0_u8..4).prop_map(|(on, afi)| Operation::Refresh(on, afi)),
        5 => (prop::collection::btree_set(0_u8..12, 0..12), any::<bool>()).prop_map(|(a, b)| Operation::Routes(a, b)),
        1 => (0_u8..8).prop_map(Operation::Stage),
        1 => (0_u8..5).prop_map(Operation::Bfd),
        1 => any::<bool>().prop_map(Operation::Interface),
        2 => (on, 0_usize..=100).prop_map(|(on, part)| Operation::Written(on, part)),
    ]
}

/// One connection as a router sees it.
#[derive(Default)]
struct Line {
    framer: Framer,
    table: Table,
    unsent: usize,
    has_their_open: bool,
    is_agreed: bool,
    is_over: bool,
    opens: usize,
}

struct World {
    peer: Peer,
    now: Duration,
    lines: BTreeMap<ConnectionId, Line>,
    dialling: BTreeSet<ConnectionId>,
    wanted: BTreeMap<Prefix, Route>,
    is_stopping: bool,
}

impl World {
    fn new(mode: Mode, bfd: BfdUse) -> Self {
        let restart = Some(RestartTime::DEFAULT);
        let settings = Settings { mode, bfd, graceful_restart: restart, ..settings() };
        let now = Duration::from_secs(1);
        let peer = Peer::new(settings, RestartFacts::default(), 3, now).expect("legal settings");
        Self {
            peer,
            now,
            lines: BTreeMap::new(),
            dialling: BTreeSet::new(),
            wanted: BTreeMap::new(),
            is_stopping: false,
        }
    }

    fn line(&self, on: usize) -> Option<ConnectionId> {
        self.lines.iter().filter(|(_, line)| !line.is_over).map(|(id, _)| *id).nth(on)
    }

    fn apply(&mut self, operation: &Operation) {
        let now = self.now;
        let receive = |world: &mut Self, on: usize, octets: &[u8]| {
            if let Some(id) = world.line(on) {
                world.peer.handle_packet(id, octets, now);
            }
        };
        match operation {
            Operation::Wait(millis) => {
                self.now += Duration::from_millis(*millis);
                self.peer.handle_timeout(self.now);
            }
            Operation::Connected => {
                if let Some(id) = self.dialling.pop_first() {
                    self.lines.insert(id, Line::default());
                    self.peer.handle_connected(id, V4, now);
                }
            }
            Operation::Accepted => {
                let id = self.peer.handle_accepted(V4, now);
                self.lines.insert(id, Line::default());
            }
            Operation::Lost(on) => {
                if let Some(id) = self.line(*on) {
                    self.lines.get_mut(&id).expect("there").is_over = true;
                    self.peer.handle_closed(id, None, now);
                }
            }
            Operation::Open(on, last, is_graceful) => {
                let mut open = Open { identifier: identifier(*last), ..their_open() };
                open.capabilities.graceful_restart = is_graceful.then(|| graceful(true));
                if let Some(line) = self.line(*on).and_then(|id| self.lines.get_mut(&id)) {
                    line.has_their_open = true;
                }
                receive(self, *on, &open.emit());
            }
            Operation::Keepalive(on) => {
                if let Some(line) = self.line(*on).and_then(|id| self.lines.get_mut(&id)) {
                    line.is_agreed = line.has_their_open;
                }
                receive(self, *on, &keepalive());
            }
            Operation::Bytes(on, octets) => receive(self, *on, octets),
            Operation::Notification(on, code, subcode) => {
                receive(self, *on, &Notification::new(*code, *subcode, vec![3, b'a']).emit());
            }
            Operation::Refresh(on, afi) => {
                receive(self, *on, &[&[0xff; 16][..], &[0, 23, 5, 0, *afi, 0, 1]].concat());
            }
            Operation::Routes(numbers, complete) => {
                let v4 = |n: &u8| prefix(&format!("10.0.0.{n}/32"));
                let v6 = |n: &u8| prefix(&format!("2001:db8::{n}/128"));
                self.wanted = numbers.iter().flat_map(|n| [v4(n), v6(n)]).map(|it| (it, route(it))).collect();
                self.peer.set_routes(self.wanted.clone(), *complete);
            }
            Operation::Stage(stage) => {
                let stage = match stage {
                    0 => Stage::GracefulShutdown,
                    1 => Stage::Withdrawn,
                    2 => Stage::Ceased(CeaseReason::Reset, Some(Communication::new("words"))),
                    3 => Stage::Left,
                    _ => Stage::Running,
                };
                self.is_stopping = !matches!(stage, Stage::Running | Stage::GracefulShutdown);
                self.peer.set_stage(stage, now);
            }
            Operation::Bfd(state) => {
                let bfd = [Bfd::None, Bfd::Up, Bfd::Down, Bfd::AdminDown, Bfd::SilentSince(now)];
                self.peer.set_bfd(bfd[usize::from(*state)], now);
            }
            Operation::Interface(has) => {
                let ipv6 = has.then(|| "2001:db8::ff".parse().expect("an address"));
                self.peer.set_interface(InterfaceAddresses { ipv4: None, ipv6 });
            }
            Operation::Written(on, part) => {
                if let Some(id) = self.line(*on) {
                    self.take(id, *part);
                }
            }
        }
    }

    fn take(&mut self, id: ConnectionId, percent: usize) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        let taken = line.unsent * percent / 100;
        line.unsent -= taken;
        self.peer.handle_written(id, taken, self.now);
    }

    /// Does what the machine wants, and checks it.
    fn act(&mut self) {
        while let Some(action) = self.peer.poll_transmit(self.now) {
            match action {
                Action::Dial(id) => {
                    assert!(!self.is_stopping || self.peer.status().stage == Stage::Withdrawn);
                    self.dialling.insert(id);
                }
                Action::Send(id, octets) => {
                    let line = self.lines.get_mut(&id).expect("only over connections that are there");
                    line.unsent += octets.len();
                    let mut rest = &octets[..];
                    while let Some(frame) = line.framer.next(&mut rest).expect("well-formed") {
                        match frame.kind {
                            MessageType::Update => assert!(line.is_agreed, "no UPDATE before a session"),
                            MessageType::Open => line.opens += 1,
                            MessageType::Keepalive => assert!(line.has_their_open),
                            MessageType::Notification => {}
                            MessageType::RouteRefresh => panic!("never asked for"),
                        }
                        assert!(line.opens == 1 || frame.kind == MessageType::Notification, "OPEN first, once");
                        line.table.apply(&frame, true);
                    }
                    for family in Family::ALL {
                        let ends = line.table.ended.iter().filter(|it| **it == family).count();
                        assert!(ends <= 1, "End-of-RIB once for each family and session");
                    }
                }
                Action::Close(id) => {
                    self.dialling.remove(&id);
                    if let Some(line) = self.lines.get_mut(&id) {
                        line.is_over = true;
                    }
                    self.peer.handle_closed(id, None, self.now);
                }
            }
        }
        let events: Vec<_> = std::iter::from_fn(|| self.peer.poll_event()).collect();
        assert!(events.len() < 256);
        let open = self.lines.values().filter(|line| !line.is_over).count() + self.dialling.len();
        assert!(open <= 2, "two connections at most");
        assert!(self.peer.poll_timeout().is_none_or(|at| at > self.now), "nothing that is due is left");
    }

    /// Once nothing more comes and the kernel takes all, the peer has what is wanted and nothing else.
    fn settle(&mut self) {
        for _ in 0..10 {
            for id in self.lines.keys().copied().collect::<Vec<_>>() {
                self.take(id, 100);
            }
            self.act();
        }
        if self.peer.state() != State::Established {
            assert_eq!(self.peer.announced().count(), 0);
            return;
        }
        let lines = self.lines.values().filter(|line| !line.is_over && line.is_agreed);
        let announced: Vec<_> = self.peer.announced().collect();
        let wanted = self.wanted.keys().filter(|it| self.peer.why_not(**it).is_none()).copied();
        assert_eq!(announced, wanted.collect::<Vec<_>>());
        assert!(lines.into_iter().any(|line| line.table.routes.keys().copied().eq(announced.iter().copied())));
    }
}

proptest! {
    #![proptest_config(config(2000))]
    #[test]
    fn whatever_happens_the_rules_hold(
        mode in prop::sample::select(vec![Mode::DialAndAccept, Mode::Dial, Mode::Accept]),
        bfd in prop::sample::select(vec![BfdUse::Off, BfdUse::On, BfdUse::Strict]),
        operations in prop::collection::vec(operation(), 1..120)
    ) {
        let mut world = World::new(mode, bfd);
        world.act();
        for operation in &operations {
            world.apply(operation);
            world.act();
        }
        world.settle();
    }
}

proptest! {
    #![proptest_config(config(256))]
    #[test]
    fn random_bytes_in_any_state_end_a_connection_at_most(
        octets in prop::collection::vec(any::<u8>(), 0..400), is_framed in any::<bool>(), kind in 1_u8..6, state in 0..3
    ) {
        let mut bench = Bench::new(settings());
        let id = bench.connect();
        if state > 0 {
            bench.receive(id, &their_open().emit());
        }
        if state > 1 {
            bench.receive(id, &keepalive());
        }
        bench.acts();
        let length = u16::try_from(19 + octets.len()).expect("short").to_be_bytes();
        let header = [&[0xff; 16][..], &length, &[kind]].concat();
        let all = if is_framed { [header, octets].concat() } else { octets };
        bench.receive(id, &all);
        let outs = bench.outs();
        prop_assert!(!outs.contains(&Out::Update));
        prop_assert!(bench.peer.state() >= State::Active);
    }
}
