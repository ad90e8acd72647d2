//! The segment, the queue of what is to come, and the driver of each node.

use std::{collections::BTreeMap, mem, net::IpAddr, time::Duration};

use super::{
    Trace, Violation,
    monitor::Monitor,
    node::{Node, Packet, Phase},
    random::Random,
};
use lb_userspace::announce::vrrp::{
    Family,
    machine::{Event, Router, StateName, Transmit},
    packet::{Advertised, Advertisement, VersionRule},
};

/// How long a packet is under way.
pub(super) const DELAY: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));
/// How late an agent is called.
const LATENESS_MAX: Duration = Duration::from_micros(300);
/// Steps of a run: a run that takes more goes round in circles.
const STEPS_MAX: u64 = 2_000_000;

/// What is to come.
#[derive(Debug)]
enum Coming {
    Arrival(usize, Packet),
    Wake(usize),
    Change(super::faults::Change),
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) now: Duration,
    pub(super) random: Random,
    pub(super) nodes: Vec<Node>,
    /// What does not pass, from and to.
    pub(super) cut: Vec<Vec<bool>>,
    /// Percent of packets lost on the way to each node.
    pub(super) loss: u64,
    rule: VersionRule,
    /// Whom a host of the segment, beside node 0, has for each VIP by the last announcement. It asks nobody.
    pub(super) cache: BTreeMap<IpAddr, usize>,
    /// Times that a node became active.
    pub(super) takeovers: u64,
    pub(super) monitor: Monitor,
    pub(super) trace: Trace,
    queue: BTreeMap<(Duration, u64), Coming>,
    queued: u64,
    /// Packets between two nodes do not overtake each other.
    arrived: Vec<Vec<Duration>>,
}

impl World {
    pub(super) fn new(seed: u64, random: Random, nodes: Vec<Node>, rule: VersionRule, monitor: Monitor) -> Self {
        let count = nodes.len();
        Self {
            seed,
            now: Duration::ZERO,
            random,
            nodes,
            cut: vec![vec![false; count]; count],
            loss: 0,
            rule,
            cache: BTreeMap::new(),
            takeovers: 0,
            monitor,
            trace: Trace::NONE,
            queue: BTreeMap::new(),
            queued: 0,
            arrived: vec![vec![Duration::ZERO; count]; count],
        }
    }

    pub(super) fn violation<T>(&self, what: String) -> Result<T, Violation> {
        Err(Violation { seed: self.seed, at: self.now, what })
    }

    /// Makes a change at its time.
    pub(super) fn plan(&mut self, at: Duration, change: super::faults::Change) {
        self.push(at, Coming::Change(change));
    }

    fn push(&mut self, at: Duration, coming: Coming) {
        self.queue.insert((at, self.queued), coming);
        self.queued += 1;
    }

    /// Lets time pass.
    pub(super) fn run_until(&mut self, end: Duration) -> Result<(), Violation> {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), coming) = entry.remove_entry();
            self.pass(at);
            self.trace.steps += 1;
            if self.trace.steps > STEPS_MAX {
                return self.violation(format!("more than {STEPS_MAX} steps"));
            }
            match coming {
                Coming::Arrival(to, packet) => self.arrive(to, packet)?,
                Coming::Wake(node) => {
                    if self.nodes[node].wake == Some(at) {
                        self.nodes[node].wake = None;
                        self.call(node)?;
                    }
                }
                Coming::Change(change) => self.change(change)?,
            }
        }
        self.pass(end);
        Ok(())
    }

    pub(super) fn pass(&mut self, to: Duration) {
        self.monitor.pass(&self.nodes, self.now, to);
        self.now = to;
    }

    fn arrive(&mut self, to: usize, packet: Packet) -> Result<(), Violation> {
        let node = &mut self.nodes[to];
        if !node.is_linked {
            return Ok(());
        }
        match node.phase {
            Phase::Dead | Phase::Paused => Ok(()),
            Phase::Stopped => {
                node.keep(packet);
                Ok(())
            }
            Phase::Runs => {
                node.keep(packet);
                self.call(to)
            }
        }
    }

    /// The driver's turn: reads its socket empty, then does what is due, then sends.
    pub(super) fn call(&mut self, at: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[at];
        if node.phase != Phase::Runs {
            return Ok(());
        }
        let local = node.local(self.now);
        while let Some(packet) = node.socket.pop_front() {
            match Advertisement::parse(&packet.bytes, packet.source, packet.destination, self.rule) {
                Ok(heard) => {
                    if let Some(router) = node.routers.iter_mut().find(|router| router.vrid() == heard.vrid()) {
                        router.handle_packet(packet.source, &heard, local);
                    }
                }
                Err(reason) => return self.violation(format!("node {at} sent what is malformed: {reason}")),
            }
        }
        for router in &mut node.routers {
            if router.poll_timeout().is_some_and(|due| due <= local) {
                router.handle_timeout(local);
            }
        }
        self.flush(at)
    }

    /// Events, then what is to be sent. An agent that stands still does so later.
    pub(super) fn flush(&mut self, at: usize) -> Result<(), Violation> {
        if self.nodes[at].phase != Phase::Runs {
            return Ok(());
        }
        for router in 0..self.nodes[at].routers.len() {
            self.take_events(at, router);
            let local = self.nodes[at].local(self.now);
            while let Some(transmit) = self.nodes[at].routers[router].poll_transmit(local) {
                if let Some(pause) = self.nodes[at].trap.take() {
                    self.nodes[at].held = Some((router, transmit));
                    self.nodes[at].phase = Phase::Stopped;
                    self.plan(self.now + pause, super::faults::Change::Continue(at));
                    return Ok(());
                }
                self.send(at, router, transmit)?;
                self.take_events(at, router);
            }
        }
        self.set_wake(at);
        Ok(())
    }

    pub(super) fn send(&mut self, at: usize, router: usize, transmit: Transmit) -> Result<(), Violation> {
        let local = self.nodes[at].local(self.now);
        if local >= transmit.not_after {
            self.nodes[at].routers[router].unsent(transmit.id);
            return Ok(());
        }
        let said = transmit.advertisement.priority();
        let may = self.nodes[at].priority(router).map(Advertised::from);
        if said != Advertised::LEAVES && may != Some(said) {
            return self.violation(format!("node {at} advertises {said} and may {may:?}"));
        }
        if !self.nodes[at].is_linked {
            self.nodes[at].routers[router].unsent(transmit.id);
            return Ok(());
        }
        let vrid = transmit.advertisement.vrid().get();
        self.note(&[1, at as u64, u64::from(vrid), u64::from(said.get())]);
        self.trace.sent += 1;
        let (source, destination) = (transmit.source, Family::of(transmit.source).group());
        let mut bytes = Vec::new();
        transmit.advertisement.emit(source, destination, &mut bytes);
        for to in (0..self.nodes.len()).filter(|to| *to != at) {
            let delay = self.random.time(DELAY.0, DELAY.1);
            if self.cut[at][to] || self.random.is_within(self.loss) {
                continue;
            }
            let arrival = self.arrived[at][to].max(self.now + delay);
            self.arrived[at][to] = arrival;
            self.push(arrival, Coming::Arrival(to, Packet { source, destination, bytes: bytes.clone() }));
        }
        self.nodes[at].routers[router].sent(transmit.id, local);
        Ok(())
    }

    fn take_events(&mut self, at: usize, router: usize) {
        while let Some(event) = self.nodes[at].routers[router].poll_event() {
            let node = &mut self.nodes[at];
            match event {
                Event::Transition { from, to, cause } => {
                    self.takeovers += u64::from(to == StateName::Active);
                    self.trace.transitions += 1;
                    self.note(&[2, at as u64, router as u64, from as u64, to as u64, cause as u64]);
                }
                Event::Hold { until } => {
                    let vips = node.routers[router].vips().all().to_vec();
                    node.table.extend(vips.into_iter().map(|vip| (vip, until)));
                }
                Event::Release { vips } => node.table.retain(|vip, _| !vips.contains(vip)),
                Event::Gratuitous => {
                    if node.is_linked && !self.cut[at][0] {
                        let vips = node.routers[router].vips().all().iter();
                        self.cache.extend(vips.map(|vip| (*vip, at)));
                    }
                }
                Event::Alarm { .. } => {}
            }
        }
    }

    fn set_wake(&mut self, at: usize) {
        let node = &self.nodes[at];
        let Some(due) = node.routers.iter().filter_map(Router::poll_timeout).min() else { return };
        let due = due.saturating_sub(node.offset).max(self.now);
        // Called early it finds nothing to do, and is called again.
        if node.wake.is_some_and(|wake| wake <= due && wake > self.now) {
            return;
        }
        let wake = due + self.random.time(Duration::ZERO, LATENESS_MAX);
        self.nodes[at].wake = Some(wake);
        self.push(wake, Coming::Wake(at));
    }

    /// Starts an agent.
    pub(super) fn begin(&mut self, at: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[at];
        let local = node.local(self.now);
        node.phase = Phase::Runs;
        node.is_ordered = true;
        node.routers.clear();
        node.socket.clear();
        (node.held, node.trap) = (None, None);
        let (mut settings, is_linked) = (node.settings.clone(), node.is_linked);
        for (router, settings) in settings.iter_mut().enumerate() {
            settings.priority = node.priority(router);
        }
        for settings in settings {
            match Router::new(settings, local) {
                Ok(router) => self.nodes[at].routers.push(router),
                Err(error) => return self.violation(error.to_string()),
            }
        }
        if !is_linked {
            self.nodes[at].routers.iter_mut().for_each(|router| router.set_link(false, local));
        }
        self.flush(at)
    }

    /// What was to be sent when it was stopped, if any.
    pub(super) fn send_held(&mut self, at: usize) -> Result<(), Violation> {
        match mem::take(&mut self.nodes[at].held) {
            Some((router, transmit)) => self.send(at, router, transmit),
            None => Ok(()),
        }
    }

    fn note(&mut self, words: &[u64]) {
        self.trace.note(words, self.now);
    }
}
