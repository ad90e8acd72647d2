//! Links, the queue of what is to come, and the driver of each speaker.

use std::{collections::BTreeMap, time::Duration};

use lb_userspace::announce::{
    bfd::{
        machine::{Event as BfdEvent, Interface, Port, Received, Sessions, Status, TTL_UNTOUCHED},
        packet::{ControlPacket, Sequence, State as BfdState},
    },
    bgp::{
        damping::Damping,
        machine::{Action, Cause, Event, InterfaceAddresses, Peer, RestartFacts, Stage, State},
        packet::{Frame, MessageType, Notification, cease, code, read_end_of_rib},
        values::Family,
    },
    silence::Silence,
};

use super::{
    Trace, Violation,
    agent::{Agent, Datagram, Phase, address, address_v6, endpoint, owner, path},
    faults::Change,
    monitor::Monitor,
    random::Random,
    receiver::{Loss, Receiver},
    streams::Stream,
    update::Update,
};

/// How long a packet is under way.
pub(super) const DELAY: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));
/// How late a speaker is called.
const LATENESS_MAX: Duration = Duration::from_micros(300);
/// Steps of a run: a run that takes more goes round in circles.
const STEPS_MAX: u64 = 1_000_000;
/// Between two packets of BFD that is not up: a second, less a quarter (RFC 5880, 6.8.3 and 6.8.7).
const IDLE_MIN: Duration = Duration::from_millis(750);

/// What is to come.
#[derive(Debug)]
pub(super) enum Coming {
    Datagram(usize, Datagram),
    Syn(u64),
    Segment(u64, usize),
    Wake(usize),
    /// The restart time is over for what a router has of a node.
    Stale(usize, usize),
    /// The engine's turn.
    Tick(usize, u64),
    /// VIPs are installed, and have been looked at.
    Settled(usize, u64),
    Change(Change),
}

/// What BFD told: when, whom, of whom, what.
pub(super) type Told = (Duration, usize, usize, BfdEvent);

#[derive(Debug)]
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) now: Duration,
    pub(super) random: Random,
    pub(super) agents: Vec<Agent>,
    /// What does not pass, from and to.
    pub(super) cut: Vec<Vec<bool>>,
    /// Percent of packets lost.
    pub(super) loss: u64,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub(super) streams_made: u64,
    /// What a router has of a node.
    pub(super) tables: BTreeMap<(usize, usize), Receiver>,
    /// The NOTIFICATION that a router is about to read is a Hard Reset.
    is_hard: bool,
    pub(super) told: Vec<Told>,
    pub(super) monitor: Monitor,
    /// Longest time that any route may be in the wrong after whatever was the last fault.
    pub(super) wrong_max: Option<Duration>,
    pub(super) trace: Trace,
    broken: Option<String>,
    queue: BTreeMap<(Duration, u64), Coming>,
    queued: u64,
    /// Packets between two speakers do not overtake each other.
    arrived: Vec<Vec<Duration>>,
    /// Processes that began, for each speaker.
    pub(super) lives: Vec<u64>,
}

impl World {
    pub(super) fn new(
        seed: u64,
        random: Random,
        agents: Vec<Agent>,
        tables: BTreeMap<(usize, usize), Receiver>,
        monitor: Monitor,
    ) -> Self {
        let count = agents.len();
        Self {
            seed,
            now: Duration::ZERO,
            random,
            agents,
            cut: vec![vec![false; count]; count],
            loss: 0,
            streams: BTreeMap::new(),
            streams_made: 0,
            tables,
            is_hard: false,
            told: Vec::new(),
            monitor,
            wrong_max: None,
            trace: Trace::NONE,
            broken: None,
            queue: BTreeMap::new(),
            queued: 0,
            arrived: vec![vec![Duration::ZERO; count]; count],
            lives: vec![0; count],
        }
    }

    pub(super) fn violation<T>(&self, what: String) -> Result<T, Violation> {
        Err(Violation { seed: self.seed, at: self.now, what })
    }

    /// Found on the way; the run ends with it. The first one counts.
    pub(super) fn break_rule(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// Makes a change at its time.
    pub(super) fn plan(&mut self, at: Duration, change: Change) {
        self.push(at, Coming::Change(change));
    }

    pub(super) fn push(&mut self, at: Duration, coming: Coming) {
        self.queue.insert((at, self.queued), coming);
        self.queued += 1;
    }

    pub(super) fn delay(&mut self) -> Duration {
        self.random.time(DELAY.0, DELAY.1)
    }

    /// Whether a packet passes now.
    pub(super) fn carries(&mut self, from: usize, to: usize) -> bool {
        !(self.cut[from][to] || self.loss > 0 && self.random.is_within(self.loss))
    }

    /// Lets time pass.
    pub(super) fn run_until(&mut self, end: Duration) -> Result<(), Violation> {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), coming) = entry.remove_entry();
            self.now = at;
            self.trace.steps += 1;
            if self.trace.steps > STEPS_MAX {
                return self.violation(format!("more than {STEPS_MAX} steps"));
            }
            self.step(coming);
            if let Some(what) = self.broken.take() {
                return self.violation(what);
            }
        }
        self.now = end;
        Ok(())
    }

    fn step(&mut self, coming: Coming) {
        match coming {
            Coming::Datagram(to, datagram) => match self.agents[to].phase {
                Phase::Dead | Phase::Paused | Phase::Off => {}
                Phase::Stopped => self.agents[to].keep(datagram),
                Phase::Runs => {
                    self.agents[to].keep(datagram);
                    self.call(to);
                }
            },
            Coming::Syn(stream) => self.syn(stream),
            Coming::Segment(stream, end) => self.segment(stream, end),
            Coming::Wake(at) => {
                if self.agents[at].wake == Some(self.now) {
                    self.agents[at].wake = None;
                    self.call(at);
                }
            }
            Coming::Stale(router, node) => {
                let now = self.now;
                if let Some(table) = self.tables.get_mut(&(router, node)) {
                    table.pass(now);
                    self.review();
                }
            }
            Coming::Tick(at, life) => self.tick(at, life),
            Coming::Settled(at, life) => self.settle(at, life),
            Coming::Change(change) => self.change(change),
        }
    }

    /// The driver's turn: what has come in time counts, so packets before timers.
    pub(super) fn call(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        if agent.phase != Phase::Runs {
            return;
        }
        let local = agent.local(self.now);
        let Some(sessions) = &mut agent.sessions else { return };
        while let Some(Datagram { source, payload }) = agent.socket.pop_front() {
            let received = Received {
                port: Port::SingleHop,
                source,
                destination: address(at),
                interface: Interface::new(1),
                ttl: Some(TTL_UNTOUCHED),
                payload: &payload,
            };
            // A packet to a process of before names a session that there is not.
            let _ = sessions.handle_packet(&received, local);
        }
        sessions.handle_timeout(local);
        self.look_after_engine(at);
        self.hear(at);
        for neighbor in 0..self.agents[at].neighbors.len() {
            let it = &mut self.agents[at].neighbors[neighbor];
            if let Some(peer) = it.peer.as_mut().filter(|it| it.poll_timeout().is_some_and(|due| due <= local)) {
                let other = it.other;
                peer.handle_timeout(local);
                self.take_events(at, other, None);
            }
        }
        self.flush(at);
    }

    /// What is to be sent, and what follows from it.
    pub(super) fn flush(&mut self, at: usize) {
        if self.agents[at].phase != Phase::Runs {
            return;
        }
        self.take_bfd_events(at);
        self.send_datagrams(at);
        self.take_bfd_events(at);
        let local = self.agents[at].local(self.now);
        for neighbor in 0..self.agents[at].neighbors.len() {
            let other = self.agents[at].neighbors[neighbor].other;
            while let Some(action) =
                self.agents[at].neighbors[neighbor].peer.as_mut().and_then(|peer| peer.poll_transmit(local))
            {
                self.act(at, other, action);
            }
            self.take_events(at, other, None);
        }
        self.set_wake(at);
    }

    fn act(&mut self, at: usize, other: usize, action: Action) {
        let local = self.agents[at].local(self.now);
        match action {
            Action::Dial(id) => self.dial(at, other, id),
            Action::Send(id, octets) => {
                let length = octets.len();
                self.trace.sent += 1;
                self.trace.note(&[1, at as u64, other as u64, length as u64], self.now);
                self.check_sent(at, &octets);
                self.write(at, other, id, octets);
                if let Some(peer) = self.agents[at].neighbor_mut(other).and_then(|it| it.peer.as_mut()) {
                    peer.handle_written(id, length, local);
                }
            }
            Action::Close(id) => {
                self.close(at, other, id);
                if let Some(peer) = self.agents[at].neighbor_mut(other).and_then(|it| it.peer.as_mut()) {
                    peer.handle_closed(id, None, local);
                }
            }
        }
    }

    fn send_datagrams(&mut self, at: usize) {
        let local = self.agents[at].local(self.now);
        let pulse = self.agents[at].pulse(local);
        loop {
            let Some(sessions) = &mut self.agents[at].sessions else { return };
            let Some(transmit) = sessions.poll_transmit(local, pulse) else { return };
            sessions.handle_sent(transmit.slot);
            // Sessions are opened in the order of neighbors.
            let to = self.agents[at].neighbors.iter().filter(|it| it.bfd.is_some()).nth(transmit.slot.index());
            let Some(to) = to.map(|it| it.other) else { return };
            self.trace.note(&[2, at as u64, to as u64], self.now);
            self.check_pace(at, to, &transmit.payload);
            if !self.carries(at, to) {
                continue;
            }
            let arrival = self.arrived[at][to].max(self.now + self.delay());
            self.arrived[at][to] = arrival;
            let datagram = Datagram { source: address(at), payload: transmit.payload };
            self.push(arrival, Coming::Datagram(to, datagram));
        }
    }

    /// RFC 5880, 6.8.3: at least a second between packets in any state but Up.
    fn check_pace(&mut self, at: usize, to: usize, payload: &[u8]) {
        let Ok(packet) = ControlPacket::parse(payload) else {
            return self.break_rule(format!("{at} sends a malformed packet of BFD"));
        };
        let now = self.now;
        let Some(neighbor) = self.agents[at].neighbor_mut(to) else { return };
        neighbor.bfd_sent += 1;
        if packet.sequence == Sequence::Final {
            return;
        }
        let before = neighbor.last_bfd.replace((now, packet.state));
        let is_early = |(last, state)| state == packet.state && now < last + IDLE_MIN;
        if packet.state != BfdState::Up && before.is_some_and(is_early) {
            self.break_rule(format!("{at} sends {to} {:?} after {before:?}: too soon", packet.state));
        }
    }

    fn take_bfd_events(&mut self, at: usize) {
        let mut has_changed = false;
        while let Some((path, event)) = self.agents[at].sessions.as_mut().and_then(Sessions::poll_event) {
            let Some(other) = owner(path.remote()) else { continue };
            has_changed = true;
            self.trace.transitions += 1;
            self.told.push((self.now, at, other, event));
            match event {
                BfdEvent::AdminDownSent => self.agents[at].silenced += 1,
                BfdEvent::Down { .. } => {
                    if let Some(table) = self.tables.get_mut(&(at, other)) {
                        table.bfd_down();
                        self.review();
                    }
                }
                BfdEvent::Up | BfdEvent::RemoteAdminDown { .. } | BfdEvent::Stopped => {}
            }
        }
        if has_changed {
            self.tell_verdicts(at);
        }
    }

    /// A router is about to read this over a stream.
    pub(super) fn foresee(&mut self, at: usize, other: usize, stream: u64, frame: &Frame) {
        let read = || Notification::parse(frame.body()).filter(|_| frame.kind == MessageType::Notification);
        let Some(notification) = read() else { return };
        self.is_hard = notification.is_hard_reset();
        // RFC 8538, 5.1: else the routes of who goes for good would stay.
        let keeps = self.tables.get(&(at, other)).is_some_and(|it| it.session == Some(stream) && it.keeps_notified());
        let ends = matches!(notification.subcode(), cease::ADMINISTRATIVE_SHUTDOWN | cease::BFD_DOWN);
        if keeps && notification.code() == code::CEASE && ends {
            self.break_rule(format!("node {other} tells {at} no Hard Reset, and goes: {notification}"));
        }
    }

    /// A router has read this.
    pub(super) fn learn(&mut self, at: usize, other: usize, stream: u64, frame: &Frame) {
        let Some(table) = self.tables.get_mut(&(at, other)).filter(|table| table.session == Some(stream)) else {
            return;
        };
        if frame.kind != MessageType::Update {
            return;
        }
        match read_end_of_rib(frame.body()) {
            Some(family) => table.end(family),
            None => match Update::read(frame) {
                Some(update) => table.learn(update),
                None => self.break_rule(format!("{other} sent {at} a malformed UPDATE: {frame:02x?}")),
            },
        }
        self.review();
    }

    /// What has become of a session. `stream`: over which the machine has just been told something.
    pub(super) fn take_events(&mut self, at: usize, other: usize, stream: Option<u64>) {
        let next = |world: &mut Self| world.agents[at].neighbor_mut(other)?.peer.as_mut()?.poll_event();
        while let Some(event) = next(self) {
            match event {
                Event::Transition { from, to, cause, .. } => {
                    self.trace.transitions += 1;
                    self.trace.note(&[3, at as u64, other as u64, to as u64, cause as u64], self.now);
                    if from == State::Established {
                        self.lose(at, other, cause);
                    }
                }
                Event::Negotiated(negotiated) => {
                    let table = self.tables.get_mut(&(at, other));
                    if let (Some(table), Some(stream)) = (table, stream) {
                        table.begin(stream, &negotiated);
                        let forwarding = &self.agents[other].restart.forwarding;
                        let lost = table.routes.keys().find(|vip| !forwarding.contains(&Family::of(**vip))).copied();
                        // RFC 4724, 4.1: F is not set for who has not gone on forwarding.
                        if let Some(vip) = lost {
                            self.break_rule(format!("{at} keeps {vip} of {other}, which has lost its data plane"));
                        }
                        self.review();
                    }
                }
                Event::StageSent(stage) => {
                    if let Some(it) = self.agents[at].neighbor_mut(other).filter(|it| it.stage == stage) {
                        it.is_stage_sent = true;
                    }
                }
                Event::Error(_) | Event::EndOfRib(..) | Event::RoutesLeftOut(_) => {}
            }
        }
    }

    fn lose(&mut self, at: usize, other: usize, cause: Cause) {
        let loss = match cause {
            Cause::ConnectionLost | Cause::PeerRestarted | Cause::SendHoldTimerExpired => Loss::Broke,
            Cause::NotificationReceived if self.is_hard => Loss::HardReset,
            Cause::BfdDown => Loss::Bfd,
            _ => Loss::Notified,
        };
        let now = self.now;
        if let Some(table) = self.tables.get_mut(&(at, other)) {
            table.lose(loss, now);
            if let Some(until) = table.stale_until {
                self.push(until, Coming::Stale(at, other));
            }
            self.review();
        }
    }

    fn set_wake(&mut self, at: usize) {
        let agent = &self.agents[at];
        let peers = agent.neighbors.iter().filter_map(|it| it.peer.as_ref()?.poll_timeout());
        let bfd = agent.sessions.as_ref().and_then(Sessions::poll_timeout);
        let Some(due) = peers.chain(bfd).chain([agent.look_at]).min() else { return };
        let due = due.saturating_sub(agent.offset).max(self.now);
        // Called early it finds nothing to do, and is called again.
        if agent.wake.is_some_and(|wake| wake <= due && wake > self.now) {
            return;
        }
        let wake = due + self.random.time(Duration::from_micros(1), LATENESS_MAX);
        self.agents[at].wake = Some(wake);
        self.push(wake, Coming::Wake(at));
    }

    /// A process begins.
    pub(super) fn begin(&mut self, at: usize) {
        self.lives[at] += 1;
        let seed = self.random.next();
        let agent = &mut self.agents[at];
        let local = agent.local(self.now);
        agent.phase = Phase::Runs;
        agent.socket.clear();
        (agent.hung_since, agent.departure, agent.is_silent_leave) = (None, None, false);
        (agent.is_settled, agent.silenced) = (agent.is_router, 0);
        (agent.heard, agent.is_silenced, agent.look_at) = (None, false, local);
        (agent.silence, agent.wanted) = (Silence::new(local), (BTreeMap::new(), false));
        agent.damping = Damping::new();
        let mut sessions = Sessions::new(seed);
        let restart = if agent.is_router { RestartFacts::default() } else { agent.restart.clone() };
        for neighbor in &mut agent.neighbors {
            (neighbor.stage, neighbor.is_stage_sent, neighbor.last_bfd) = (Stage::Running, true, None);
            if let Some(settings) = neighbor.bfd {
                sessions.open(endpoint(at, neighbor.other), settings, local).expect("one session for each neighbor");
            }
            let mut peer = Peer::new(neighbor.settings.clone(), restart.clone(), seed ^ neighbor.other as u64, local)
                .expect("legal settings");
            peer.set_interface(InterfaceAddresses { ipv4: None, ipv6: Some(address_v6(at)) });
            neighbor.peer = Some(peer);
        }
        agent.sessions = Some(sessions);
        let life = self.lives[at];
        let settled = self.now + self.random.time(Duration::from_millis(50), Duration::from_millis(800));
        let tick = self.now + self.random.time(Duration::from_millis(50), Duration::from_secs(1));
        self.push(settled, Coming::Settled(at, life));
        self.push(tick, Coming::Tick(at, life));
        self.tell_verdicts(at);
        self.engage(at);
        self.flush(at);
    }

    /// The session of BFD that a speaker has with another, as it stands.
    pub(super) fn bfd_status(&self, at: usize, other: usize) -> Option<Status> {
        self.agents[at].sessions.as_ref()?.status(path(other))
    }
}
