//! What happens to nodes, routers and links.

use std::{net::IpAddr, time::Duration};

use lb_userspace::announce::{
    bfd::machine::Settings as BfdSettings,
    bgp::{machine::RestartFacts, values::Family},
    leaving::{Departure, Step},
};

use super::{
    agent::{Phase, path},
    world::World,
};

/// How long routes stay marked.
pub(super) const MARK_FOR: Duration = Duration::from_secs(1);

/// A change of the world. One that does not apply (any more) is left out.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// The speaker loses its power, and a router its routes.
    Crash(usize),
    /// The process is killed; a node's data plane goes on.
    Kill(usize),
    /// The data plane is taken away from a node whose agent is dead.
    Detach(usize),
    /// The speaker, or its process, starts.
    Start(usize),
    /// SIGSTOP.
    Stop(usize),
    /// The VM is paused.
    Pause(usize),
    /// After `Stop` or `Pause`.
    Continue(usize),
    /// The engine hangs, and the threads of BGP and BFD do not.
    Hang(usize),
    /// It goes on.
    Unhang(usize),
    /// The program is on the uplink, or not.
    Program(usize, bool),
    /// The data plane has a VIP, or not.
    Install(usize, IpAddr, bool),
    /// So many backends of a VIP are ready.
    Backends(usize, IpAddr, usize),
    /// The node leaves in order.
    Drain(usize),
    /// And comes back.
    Undrain(usize),
    /// The agent leaves without a word.
    Leave(usize),
    /// BFD alone is held down by order, or goes on.
    Order(usize, bool),
    /// Other timers towards another.
    Tune(usize, usize, BfdSettings),
    /// Its clock has gone on by so much as if it had slept.
    Jump(usize, Duration),
    /// Nothing passes from the one to the other.
    Cut(usize, usize),
    /// Those whose bit is set are parted from the others.
    Part(u32),
    /// Percent of packets lost.
    Loss(u64),
    /// All links are whole.
    Heal,
}

impl World {
    pub(super) fn change(&mut self, change: Change) {
        // A route in the wrong may stay for its time after each of them.
        self.check_wrongs();
        self.apply(change);
        self.review();
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Crash(at) => self.crash(at),
            Change::Kill(at) => self.kill(at),
            Change::Detach(at) => {
                let agent = &mut self.agents[at];
                if agent.phase == Phase::Dead {
                    agent.vips.values_mut().for_each(|facts| facts.is_installed = false);
                    agent.restart.forwarding.clear();
                }
            }
            Change::Start(at) => {
                if matches!(self.agents[at].phase, Phase::Dead | Phase::Off) {
                    self.begin(at);
                }
            }
            Change::Stop(at) => self.halt(at, Phase::Stopped),
            Change::Pause(at) => self.halt(at, Phase::Paused),
            Change::Continue(at) => {
                if matches!(self.agents[at].phase, Phase::Stopped | Phase::Paused) {
                    self.agents[at].phase = Phase::Runs;
                    self.decide(at);
                    self.call(at);
                    self.tell_verdicts(at);
                    self.engage(at);
                }
            }
            Change::Hang(at) => {
                let local = self.agents[at].local(self.now);
                self.agents[at].hung_since.get_or_insert(local);
            }
            Change::Unhang(at) => {
                // It beats before it decides: BGP's thread may announce once more what was wanted before.
                if self.agents[at].hung_since.is_some() && self.agents[at].phase == Phase::Runs {
                    self.agents[at].heard = Some(self.agents[at].local(self.now));
                    self.call(at);
                }
                self.agents[at].hung_since = None;
                self.tell_verdicts(at);
                self.engage(at);
            }
            Change::Program(at, is_there) => {
                let local = self.agents[at].local(self.now);
                self.agents[at].bare_since = (!is_there).then_some(local);
                self.engage(at);
            }
            Change::Install(at, vip, is_there) => {
                if let Some(facts) = self.agents[at].vips.get_mut(&vip) {
                    facts.is_installed = is_there;
                }
                self.engage(at);
            }
            Change::Backends(at, vip, reachable) => {
                if let Some(facts) = self.agents[at].vips.get_mut(&vip) {
                    facts.reachable = reachable;
                }
                self.engage(at);
            }
            Change::Drain(at) => {
                let local = self.agents[at].local(self.now);
                self.agents[at].departure = Some(Departure::begin(MARK_FOR, false, local));
                self.engage(at);
            }
            Change::Undrain(at) => self.undrain(at),
            Change::Leave(at) => {
                self.agents[at].is_silent_leave = true;
                self.engage(at);
            }
            Change::Order(at, is_held) => {
                let local = self.agents[at].local(self.now);
                if let Some(sessions) = &mut self.agents[at].sessions {
                    sessions.with_each(|session| if is_held { session.stop(local) } else { session.resume(local) });
                }
                self.tell_verdicts(at);
                self.flush(at);
            }
            Change::Tune(at, other, settings) => {
                let local = self.agents[at].local(self.now);
                if let Some(neighbor) = self.agents[at].neighbor_mut(other) {
                    neighbor.bfd = Some(settings);
                }
                if let Some(sessions) = &mut self.agents[at].sessions {
                    sessions.with(path(other), |session| session.set_settings(settings, local));
                }
                self.flush(at);
            }
            Change::Jump(at, by) => {
                self.agents[at].offset += by;
                self.agents[at].neighbors.iter_mut().for_each(|it| it.last_bfd = None);
                self.call(at);
            }
            Change::Cut(from, to) => self.cut[from][to] = true,
            Change::Part(mask) => {
                let is_in = |at: usize| mask >> at & 1 == 1;
                for from in 0..self.agents.len() {
                    for to in 0..self.agents.len() {
                        self.cut[from][to] |= is_in(from) != is_in(to);
                    }
                }
            }
            Change::Loss(percent) => self.loss = percent,
            Change::Heal => {
                self.loss = 0;
                self.cut.iter_mut().for_each(|from| from.fill(false));
            }
        }
    }

    fn halt(&mut self, at: usize, phase: Phase) {
        if self.agents[at].phase == Phase::Runs {
            self.agents[at].phase = phase;
        }
    }

    fn kill(&mut self, at: usize) {
        if self.agents[at].phase == Phase::Off {
            return;
        }
        self.agents[at].phase = Phase::Dead;
        self.agents[at].restart = RestartFacts { restarted: true, forwarding: Family::ALL.into() };
        self.bury(at);
    }

    fn crash(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        agent.phase = Phase::Off;
        agent.vips.values_mut().for_each(|facts| facts.is_installed = false);
        agent.restart = RestartFacts { restarted: true, ..RestartFacts::default() };
        self.bury(at);
        let now_empty = self.tables.iter_mut().filter(|((router, _), _)| *router == at);
        now_empty.for_each(|(_, table)| table.forget());
    }

    fn bury(&mut self, at: usize) {
        self.drop_streams(at);
        let agent = &mut self.agents[at];
        agent.sessions = None;
        agent.wake = None;
        agent.socket.clear();
        (agent.departure, agent.is_silent_leave, agent.hung_since) = (None, false, None);
        for neighbor in &mut agent.neighbors {
            neighbor.peer = None;
        }
    }

    fn undrain(&mut self, at: usize) {
        let local = self.agents[at].local(self.now);
        let Some(departure) = self.agents[at].departure.take() else { return };
        if departure.step() >= Step::Silence
            && let Some(sessions) = &mut self.agents[at].sessions
        {
            sessions.with_each(|session| session.resume(local));
        }
        self.agents[at].silenced = 0;
        self.tell_verdicts(at);
        self.engage(at);
    }
}
