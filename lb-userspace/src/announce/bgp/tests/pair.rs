//! Two machines over a virtual stream that is slow, closes one way, breaks and refuses.

use std::collections::{BTreeMap, VecDeque};

use super::{super::machine::*, super::packet::*, *};

/// One end of a stream.
#[derive(Debug, Default)]
struct Pipe {
    octets: VecDeque<u8>,
    /// Whoever wrote has closed.
    is_closed: bool,
}

/// A stream between connection `ids[0]` of the first machine and `ids[1]` of the second.
#[derive(Debug)]
struct Stream {
    ids: [ConnectionId; 2],
    /// To the first and to the second machine.
    pipes: [Pipe; 2],
    open: [bool; 2],
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

struct Pair {
    peers: [Peer; 2],
    tables: [BTreeMap<ConnectionId, (Framer, Table)>; 2],
    streams: Vec<Stream>,
    random: Random,
    now: Duration,
    faulty: bool,
}

impl Pair {
    fn new(seed: u64, modes: [Mode; 2], identifiers: [u8; 2]) -> Self {
        let now = Duration::from_secs(10);
        let peer = |at: usize| {
            let numbers = [as_number(65001), as_number(65002)];
            let settings = Settings {
                mode: modes[at],
                hold_time: seconds(9),
                ..Settings::new(numbers[at], PeerAs::Number(numbers[1 - at]), identifier(identifiers[at]))
            };
            Peer::new(settings, RestartFacts::default(), seed + at as u64, now).expect("legal settings")
        };
        Self {
            peers: [peer(0), peer(1)],
            tables: [BTreeMap::new(), BTreeMap::new()],
            streams: Vec::new(),
            random: Random(seed | 1),
            now,
            faulty: true,
        }
    }

    fn endpoints(at: usize) -> Endpoints {
        if at == 0 { V4 } else { Endpoints { local: V4.remote, remote: V4.local } }
    }

    /// All that the machines want done now.
    fn act(&mut self) {
        for at in 0..2 {
            self.peers[at].handle_timeout(self.now);
            while let Some(action) = self.peers[at].poll_transmit(self.now) {
                match action {
                    Action::Dial(id) => self.dial(at, id),
                    Action::Send(id, octets) => {
                        if let Some(stream) = self.streams.iter_mut().find(|it| it.ids[at] == id && it.open[at]) {
                            stream.pipes[1 - at].octets.extend(&octets);
                        }
                        self.peers[at].handle_written(id, octets.len(), self.now);
                    }
                    Action::Close(id) => {
                        if let Some(stream) = self.streams.iter_mut().find(|it| it.ids[at] == id) {
                            stream.open[at] = false;
                            stream.pipes[1 - at].is_closed = true;
                        }
                        self.peers[at].handle_closed(id, None, self.now);
                    }
                }
            }
            while self.peers[at].poll_event().is_some() {}
        }
    }

    fn dial(&mut self, at: usize, id: ConnectionId) {
        if self.faulty && self.random.below(4) == 0 {
            self.peers[at].handle_closed(id, Some("connection refused"), self.now);
            return;
        }
        let other = self.peers[1 - at].handle_accepted(Self::endpoints(1 - at), self.now);
        let ids = if at == 0 { [id, other] } else { [other, id] };
        self.streams.push(Stream { ids, pipes: Default::default(), open: [true; 2] });
        self.peers[at].handle_connected(id, Self::endpoints(at), self.now);
    }

    /// Some octets of some streams arrive; some streams break.
    fn deliver(&mut self) {
        for index in 0..self.streams.len() {
            for at in 0..2 {
                if self.faulty && self.random.below(3) == 0 {
                    continue;
                }
                let count = if self.faulty { self.random.below(60) } else { u64::MAX };
                let stream = &mut self.streams[index];
                let id = stream.ids[at];
                let count = usize::try_from(count).unwrap_or(usize::MAX).min(stream.pipes[at].octets.len());
                let octets: Vec<u8> = stream.pipes[at].octets.drain(..count).collect();
                let ends = stream.pipes[at].is_closed && stream.pipes[at].octets.is_empty();
                if stream.open[at] && !octets.is_empty() {
                    self.learn(at, id, &octets);
                    self.peers[at].handle_packet(id, &octets, self.now);
                }
                if ends && self.streams[index].open[at] {
                    self.streams[index].open[at] = false;
                    self.streams[index].pipes[1 - at].is_closed = true;
                    self.peers[at].handle_closed(id, None, self.now);
                }
            }
            if self.faulty && self.random.below(200) == 0 {
                // Half of it: this side never hears of it but by silence.
                let at = usize::try_from(self.random.below(2)).expect("0 or 1");
                self.streams[index].open[at] = false;
                let id = self.streams[index].ids[at];
                self.peers[at].handle_closed(id, Some("connection reset"), self.now);
            }
        }
        self.streams.retain(|stream| stream.open != [false; 2]);
    }

    fn learn(&mut self, at: usize, id: ConnectionId, octets: &[u8]) {
        let (framer, table) = self.tables[at].entry(id).or_default();
        let mut rest = octets;
        while let Some(frame) = framer.next(&mut rest).expect("well-formed") {
            table.apply(&frame, true);
        }
    }

    fn run(&mut self, steps: usize, pause: Duration) {
        for _ in 0..steps {
            self.act();
            self.deliver();
            let next = self.peers.iter().filter_map(Peer::poll_timeout).min();
            let moves = !self.streams.iter().all(|it| it.pipes.iter().all(|pipe| pipe.octets.is_empty()));
            self.now = if moves { self.now + pause } else { next.unwrap_or(self.now).max(self.now + pause) };
        }
        self.act();
    }

    /// What the machine at `at` has learnt over its session.
    fn learnt(&self, at: usize) -> Vec<String> {
        let stream = self.streams.iter().find(|it| it.open == [true; 2]).expect("a stream");
        self.tables[at][&stream.ids[at]].1.prefixes()
    }
}

#[test]
fn two_speakers_always_end_up_with_one_session_and_each_others_routes() {
    let modes =
        [[Mode::DialAndAccept, Mode::DialAndAccept], [Mode::Dial, Mode::Accept], [Mode::Accept, Mode::DialAndAccept]];
    for seed in 0..150 {
        for modes in modes {
            for identifiers in [[1, 2], [2, 1], [3, 3]] {
                let mut pair = Pair::new(seed * 7919 + 1, modes, identifiers);
                for step in 0..20_usize {
                    let a: Vec<_> = (0..=step).map(|n| format!("10.0.{step}.{n}/32")).collect();
                    let a: Vec<_> = a.iter().map(String::as_str).collect();
                    pair.peers[0].set_routes(routes(&a), true);
                    pair.peers[1].set_routes(routes(&["198.51.100.1/32"]), true);
                    pair.run(20, Duration::from_millis(20));
                }
                pair.faulty = false;
                pair.run(200, Duration::from_millis(50));
                let what = format!("seed {seed} {modes:?} {identifiers:?}");
                for at in 0..2 {
                    assert_eq!(pair.peers[at].state(), State::Established, "{what} {:?}", pair.peers[at].status());
                }
                assert_eq!(pair.streams.len(), 1, "{what}");
                assert_eq!(pair.learnt(0), ["198.51.100.1/32"], "{what}");
                let announced: Vec<_> = pair.peers[0].announced().map(|it| it.to_string()).collect();
                assert_eq!(pair.learnt(1), announced, "{what}");
                assert_eq!(announced.len(), 20, "{what}");
            }
        }
    }
}
