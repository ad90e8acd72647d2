//! What happens to nodes and to the segment.

use std::time::Duration;

use super::{Violation, node::Phase, world::World};
use lb_userspace::announce::vrrp::{
    Priority,
    machine::{Router, Stop, Vips},
};

/// A change of the world. One that does not apply (any more) is left out.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// The node loses its power.
    Crash(usize),
    /// The agent is killed; the table stays.
    Kill(usize),
    /// The node, or its agent, starts.
    Start(usize),
    /// SIGSTOP.
    Stop(usize),
    /// The VM is paused.
    Pause(usize),
    /// SIGSTOP when it next sends, for so long.
    Trap(usize, Duration),
    /// It has not been sent, then.
    Untrap(usize),
    /// After `Stop`, `Pause` or `Trap`.
    Continue(usize),
    /// An ordered stop.
    Order(usize, Stop),
    /// Takes part again.
    Resume(usize),
    /// What it may hold of a virtual router.
    Eligible(usize, usize, Option<Priority>),
    /// The data plane has the VIPs, or not.
    Install(usize, bool),
    /// The VIPs that it knows for a virtual router.
    List(usize, usize, Vips),
    /// The node's link.
    Link(usize, bool),
    /// Its clock has gone on by so much as if it had slept.
    Jump(usize, Duration),
    /// Those whose bit is set are parted from the others.
    Part(u32),
    /// Nobody hears this one.
    Mute(usize),
    /// Percent of packets lost.
    Loss(u64),
    /// The segment is whole, and loses nothing.
    Heal,
}

impl World {
    pub(super) fn change(&mut self, change: Change) -> Result<(), Violation> {
        match change {
            Change::Crash(at) => {
                self.nodes[at].phase = Phase::Dead;
                self.nodes[at].table.clear();
                self.bury(at);
            }
            Change::Kill(at) => {
                self.nodes[at].phase = Phase::Dead;
                self.bury(at);
            }
            Change::Start(at) => {
                if self.nodes[at].phase == Phase::Dead {
                    self.begin(at)?;
                }
            }
            Change::Stop(at) => self.halt(at, Phase::Stopped),
            Change::Pause(at) => self.halt(at, Phase::Paused),
            Change::Trap(at, pause) => self.nodes[at].trap = Some(pause),
            Change::Untrap(at) => self.nodes[at].trap = None,
            Change::Continue(at) => {
                if matches!(self.nodes[at].phase, Phase::Stopped | Phase::Paused) {
                    self.nodes[at].phase = Phase::Runs;
                    self.send_held(at)?;
                    self.call(at)?;
                }
            }
            Change::Order(at, how) => {
                self.nodes[at].is_ordered = false;
                self.tell(at, |router, local| router.stop(how, local))?;
            }
            Change::Resume(at) => {
                self.nodes[at].is_ordered = true;
                self.tell(at, Router::start)?;
            }
            Change::Eligible(at, router, priority) => {
                // An agent that stands still learns nothing.
                if matches!(self.nodes[at].phase, Phase::Stopped | Phase::Paused) {
                    return Ok(());
                }
                self.nodes[at].settings[router].priority = priority;
                self.compete(at)?;
            }
            Change::Install(at, is_there) => {
                if matches!(self.nodes[at].phase, Phase::Stopped | Phase::Paused) {
                    return Ok(());
                }
                self.nodes[at].is_installed = is_there;
                self.compete(at)?;
            }
            Change::List(at, router, vips) => {
                self.nodes[at].settings[router].vips = vips.clone();
                let local = self.nodes[at].local(self.now);
                if let Some(router) = self.nodes[at].routers.get_mut(router)
                    && let Err(error) = router.set_vips(vips, local)
                {
                    return self.violation(error.to_string());
                }
                self.flush(at)?;
            }
            Change::Link(at, is_up) => {
                self.nodes[at].is_linked = is_up;
                self.tell(at, |router, local| router.set_link(is_up, local))?;
            }
            Change::Jump(at, by) => {
                self.nodes[at].offset += by;
                self.call(at)?;
            }
            Change::Part(mask) => {
                let is_in = |at: usize| mask >> at & 1 == 1;
                for from in 0..self.nodes.len() {
                    for to in 0..self.nodes.len() {
                        self.cut[from][to] |= is_in(from) != is_in(to);
                    }
                }
            }
            Change::Mute(at) => {
                for to in (0..self.nodes.len()).filter(|to| *to != at) {
                    self.cut[at][to] = true;
                }
            }
            Change::Loss(percent) => self.loss = percent,
            Change::Heal => {
                self.loss = 0;
                self.cut.iter_mut().for_each(|from| from.fill(false));
            }
        }
        Ok(())
    }

    /// The engine has decided anew: who may not hold holds nothing from there on.
    fn compete(&mut self, at: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[at];
        let local = node.local(self.now);
        let priorities: Vec<_> = (0..node.settings.len()).map(|router| node.priority(router)).collect();
        for (router, priority) in node.routers.iter_mut().zip(&priorities) {
            router.set_priority(*priority, local);
        }
        self.flush(at)?;
        // A table that an agent has left behind ends by itself.
        let node = &self.nodes[at];
        let is_wrong = |(router, priority): (&Router, &Option<Priority>)| priority.is_none() && router.hold().is_some();
        if node.phase == Phase::Runs && node.routers.iter().zip(&priorities).any(is_wrong) {
            return self.violation(format!("node {at} answers and is not eligible"));
        }
        Ok(())
    }

    fn bury(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        (node.wake, node.held, node.trap) = (None, None, None);
        node.routers.clear();
    }

    fn halt(&mut self, at: usize, phase: Phase) {
        if self.nodes[at].phase == Phase::Runs {
            self.nodes[at].phase = phase;
        }
    }

    fn tell(&mut self, at: usize, verb: impl Fn(&mut Router, Duration)) -> Result<(), Violation> {
        let local = self.nodes[at].local(self.now);
        self.nodes[at].routers.iter_mut().for_each(|router| verb(router, local));
        self.flush(at)
    }
}
