//! VIPs that move from one node to another while they are probed.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::team::Team;
use crate::{
    lab::wait_until,
    programs::{
        PATIENCE,
        prober::{Probe, Prober},
    },
};

/// A node that was the one to answer, until another was.
#[derive(Clone, Debug)]
pub struct Move {
    /// The node.
    pub from: usize,
    /// How long after the event another answered for the first time.
    pub took: Duration,
    /// What became of the probes.
    pub probe: Probe,
}

/// A probe of a team, with the node that answered when it began.
pub struct Probing {
    prober: Prober,
    tag: u8,
}

impl Probing {
    /// Begins, and waits for an answer.
    pub fn start(team: &Team) -> Result<Self> {
        let prober = Prober::start(&team.cluster.element, team.target())?;
        let tag = wait_until("an answer", PATIENCE, || Ok(prober.last_tag()))?;
        Ok(Self { prober, tag })
    }

    /// The node that answered.
    #[must_use]
    pub fn node(&self) -> usize {
        self.tag.into()
    }

    /// When it is, as the probe counts.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.prober.now()
    }

    /// Waits until another node answers.
    pub fn wait_moved(&self) -> Result<()> {
        let other = || Ok(self.prober.last_tag().filter(|tag| *tag != self.tag).map(drop));
        wait_until("another node's answer", PATIENCE, other)
    }

    /// Waits until the same node answers again.
    pub fn wait_back(&self) -> Result<()> {
        let same = || Ok(self.prober.last_tag().filter(|tag| *tag == self.tag).map(drop));
        wait_until("the first node's answer", PATIENCE, same)
    }

    /// Ends it. `since` is when the event began.
    pub fn stop(self, since: Duration) -> Result<Move> {
        let probe = self.prober.stop();
        let took = probe.moved_from(self.tag, since);
        ensure!(took.is_some(), "nobody but node {} has answered", self.tag);
        Ok(Move { from: self.tag.into(), took: took.unwrap_or_default(), probe })
    }
}

/// Probes while something happens to the node that answers, until another one does.
pub fn moved(team: &mut Team, event: impl FnOnce(&mut Team, usize) -> Result<()>) -> Result<Move> {
    let probing = Probing::start(team)?;
    let since = probing.now();
    event(team, probing.node())?;
    probing.wait_moved()?;
    probing.stop(since)
}

/// Fails where a datagram had no answer.
pub fn check_nothing_lost(team: &Team, probe: &Probe) -> Result<()> {
    let (lost, sent, when) = (probe.lost(), probe.sent.len(), probe.lost_before_end());
    ensure!(lost == 0, "{lost} of {sent} lost, {when:?} before the end, {:?}\n{}", probe.histogram(), team.logs());
    Ok(())
}
