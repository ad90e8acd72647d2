//! What an agent's engine does for a speaker: eligibility, routes, stages, and what BFD says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_userspace::announce::{
    bfd::{machine::Status, packet::State as BfdState},
    bgp::{
        machine::{Bfd, CeaseReason, Mode, Peer, Stage, State},
        packet::Framer,
        route::Route,
        values::{Family, Prefix},
    },
    eligibility::{Decision, Facts, Leaving, Means, Scope, VipFacts, decide},
    leaving::{Seen, Step},
    silence::LOOK_INTERVAL,
};

use super::{
    agent::{Agent, Neighbor, Phase},
    update::Update,
    world::{Coming, World},
};

/// The engine looks after its peers, and beats, so often.
pub(super) const TICK: Duration = Duration::from_secs(1);

impl Neighbor {
    /// Its kernel takes connections.
    pub(super) const fn accepts(&self) -> bool {
        match self.settings.mode {
            Mode::DialAndAccept | Mode::Accept => true,
            Mode::Dial => false,
        }
    }
}

impl Agent {
    /// How far it has gone in leaving.
    pub(super) fn leaving(&self) -> Leaving {
        self.departure.as_ref().map(|it| it.step().leaving()).unwrap_or_default()
    }

    /// As [`Step::stage`]; spelled out, as mutants have stages of their own.
    fn stage(&self) -> Stage {
        match &self.departure {
            _ if self.is_silent_leave => Stage::Left,
            Some(departure) => match departure.step() {
                Step::Mark => Stage::GracefulShutdown,
                Step::Withdraw | Step::Quiet => Stage::Withdrawn,
                Step::Cease | Step::Silence | Step::Done => Stage::Ceased(CeaseReason::Shutdown, None),
            },
            None => Stage::Running,
        }
    }

    fn is_idle(&self) -> bool {
        self.phase != Phase::Runs || self.hung_since.is_some()
    }

    /// What is announced: nothing for an engine that has fallen silent.
    fn tell_routes(&mut self) {
        let (routes, is_complete) = match self.is_silenced {
            true => (BTreeMap::new(), self.wanted.1),
            false => self.wanted.clone(),
        };
        for peer in self.neighbors.iter_mut().filter_map(|neighbor| neighbor.peer.as_mut()) {
            peer.set_routes(routes.clone(), is_complete);
        }
    }
}

impl World {
    /// Decides anew what is announced, and has it told.
    pub(super) fn engage(&mut self, at: usize) {
        self.decide(at);
        self.flush(at);
        self.review();
    }

    /// What BGP's thread is to announce from here on.
    pub(super) fn decide(&mut self, at: usize) {
        let local = self.agents[at].local(self.now);
        let agent = &mut self.agents[at];
        if agent.is_idle() || agent.is_router {
            return;
        }
        let has_uplink = agent.bare_since.is_none();
        let served: BTreeSet<_> =
            agent.vips.iter().filter(|(_, it)| has_uplink && it.is_served()).map(|(vip, _)| *vip).collect();
        agent.damping.set_eligible(&served, local);
        let held = |vip| agent.damping.held_until(vip).is_some();
        let vips = agent.vips.iter().map(|(vip, it)| (*vip, VipFacts { is_held_down: held(vip), ..*it })).collect();
        let facts = Facts { vips, has_uplink, leaving: agent.leaving(), ..Facts::default() };
        let means = Means::Bgp { peer: "router".to_owned(), interface: None };
        let may = |vip: &&IpAddr| matches!(decide(&facts, **vip, &means, Scope::ALL), Decision::Announce(_));
        let prefixes = facts.vips.keys().filter(may).filter_map(|vip| Prefix::host(*vip).ok());
        let route = |prefix| (prefix, Route { prefix, next_hop: None, attributes: Arc::default() });
        let routes: BTreeMap<_, _> = prefixes.map(route).collect();
        let (stage, is_settled) = (agent.stage(), agent.is_settled);
        // As `Speaker::want`: to want is to live.
        agent.heard = agent.heard.map(|_| local);
        agent.is_silenced = false;
        agent.wanted = (routes, is_settled);
        agent.tell_routes();
        for neighbor in &mut agent.neighbors {
            let Some(peer) = &mut neighbor.peer else { continue };
            if neighbor.stage != stage {
                neighbor.is_stage_sent = stage == Stage::Running;
                neighbor.stage = stage.clone();
                peer.set_stage(stage.clone(), local);
            }
        }
    }

    /// BGP's thread looks whether the engine lives.
    pub(super) fn look_after_engine(&mut self, at: usize) {
        let local = self.agents[at].local(self.now);
        let agent = &mut self.agents[at];
        agent.look_at = local + LOOK_INTERVAL;
        let is_silent = agent.silence.turn(agent.heard, local);
        if agent.is_silenced != is_silent {
            agent.is_silenced = is_silent;
            agent.tell_routes();
        }
        if is_silent && self.agents[at].hung_since.is_none() {
            self.break_rule(format!("{at} withdraws the routes of an engine that lives"));
        }
    }

    /// VIPs are installed and have been looked at.
    pub(super) fn settle(&mut self, at: usize, life: u64) {
        if self.lives[at] != life || self.agents[at].is_router {
            return;
        }
        if self.agents[at].is_idle() {
            let again = self.now + TICK;
            return self.push(again, Coming::Settled(at, life));
        }
        let agent = &mut self.agents[at];
        agent.is_settled = true;
        agent.vips.values_mut().for_each(|facts| facts.is_installed = true);
        self.engage(at);
    }

    /// What time brings to the engine.
    pub(super) fn tick(&mut self, at: usize, life: u64) {
        if self.lives[at] != life || self.agents[at].sessions.is_none() {
            return;
        }
        let next = self.now + TICK;
        self.push(next, Coming::Tick(at, life));
        if self.agents[at].is_idle() {
            return;
        }
        self.tell_verdicts(at);
        let local = self.agents[at].local(self.now);
        self.agents[at].heard = Some(local);
        let seen = self.seen(at);
        let agent = &mut self.agents[at];
        let mut has_changed = agent.damping.poll_timeout().is_some_and(|due| due <= local);
        if let Some(departure) = &mut agent.departure
            && departure.follow(&seen, local)
        {
            has_changed = true;
            if departure.step() == Step::Silence
                && let Some(sessions) = &mut agent.sessions
            {
                sessions.with_each(|session| session.stop(local));
            }
        }
        match has_changed {
            true => self.engage(at),
            false => self.flush(at),
        }
    }

    fn seen(&self, at: usize) -> Seen {
        let agent = &self.agents[at];
        let is_up = |it: &&Neighbor| it.peer.as_ref().is_some_and(|peer| peer.state() == State::Established);
        Seen {
            sessions: agent.neighbors.iter().filter(is_up).count(),
            is_told: agent.neighbors.iter().all(|it| it.is_stage_sent),
            rate: Some(0),
            is_silent: agent.silenced >= agent.neighbors.iter().filter(|it| it.bfd.is_some()).count(),
            holds: false,
        }
    }

    /// Tells BGP what BFD says.
    pub(super) fn tell_verdicts(&mut self, at: usize) {
        if self.agents[at].is_idle() {
            return;
        }
        let local = self.agents[at].local(self.now);
        for neighbor in 0..self.agents[at].neighbors.len() {
            let other = self.agents[at].neighbors[neighbor].other;
            let Some(said) = self.bfd_status(at, other).map(|status| verdict(&status)) else { continue };
            if let Some(peer) = &mut self.agents[at].neighbors[neighbor].peer {
                peer.set_bfd(said, local);
            }
            self.take_events(at, other, None);
        }
    }

    /// No announcement without a data plane that has the VIP, and a backend behind it. Whose engine hangs cannot know.
    pub(super) fn check_sent(&mut self, at: usize, octets: &[u8]) {
        let Ok(Some(frame)) = Framer::default().next(&mut &*octets) else {
            return self.break_rule(format!("{at} sends what is no message: {octets:02x?}"));
        };
        let announced = Update::read(&frame).filter(|_| frame.kind as u8 == 1).unwrap_or_default().announced;
        for vip in announced {
            let agent = &self.agents[at];
            let is_known = agent.hung_since.is_none();
            if is_known && (!agent.serves(&vip) || agent.leaving() == Leaving::Left) {
                self.break_rule(format!("node {at} announces {vip}, which it does not serve"));
            }
        }
    }

    /// Whether both sides speak a VIP's family.
    pub(super) fn is_spoken(&self, router: usize, node: usize, vip: &IpAddr) -> bool {
        let speaks = |at: usize, other| {
            self.agents[at].neighbor(other).is_some_and(|it| it.settings.families.contains(&Family::of(*vip)))
        };
        speaks(router, node) && speaks(node, router)
    }
}

/// As the engine has it from a report of BFD's thread.
fn verdict(status: &Status) -> Bfd {
    match (status.state, status.remote) {
        (BfdState::Up, _) => Bfd::Up,
        (BfdState::AdminDown, _) => Bfd::AdminDown,
        (BfdState::Down | BfdState::Init, Some(remote)) if remote.state == BfdState::AdminDown => Bfd::AdminDown,
        (BfdState::Down | BfdState::Init, Some(_)) => Bfd::Down,
        (BfdState::Down | BfdState::Init, None) => Bfd::SilentSince(status.silent_since),
    }
}

/// Whether a machine has a session.
pub(super) fn is_established(peer: Option<&Peer>) -> bool {
    peer.is_some_and(|peer| peer.state() == State::Established)
}
