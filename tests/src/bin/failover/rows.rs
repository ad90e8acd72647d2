//! What is measured, and what must be reached.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use lb_tests::{
    cluster::team::Team,
    programs::prober::{Probe, Prober},
};

use crate::{bgp, vrrp};

/// How long a probe runs before anything happens.
const LEAD: Duration = Duration::from_millis(500);

/// Who announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The agent.
    Sluice,
    /// The row's usual daemon.
    Usual,
}

/// What a row must reach. A node that takes over does so by its own clock; a loss has no such excuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The longest gap.
    Gap(Duration),
    /// Nothing is lost.
    NoLoss,
    /// Nothing is lost, and the same node goes on answering.
    NoLossAndStayed,
    /// Nothing is lost, and another node answers within this time.
    NoLossAndMoved(Duration),
}

/// One event, with the two sides that it happens to.
pub struct Row {
    /// What happens.
    pub name: &'static str,
    /// Who else is measured.
    pub usual: Option<&'static str>,
    /// What Sluice must reach.
    pub bound: Bound,
    /// Measures so many rounds.
    pub measure: Box<dyn Fn(Side, usize) -> Result<Vec<Round>>>,
}

/// What one round brought.
#[derive(Clone, Debug)]
pub struct Round {
    /// The longest time without an answer.
    pub gap: Duration,
    /// The longest time in which the prober itself stood still.
    pub stall: Duration,
    /// Datagrams without an answer.
    pub lost: usize,
    /// How long the event itself took, a stop or a start.
    pub took: Duration,
    /// When another node answered, counted from the event.
    pub moved: Option<Duration>,
    /// Gaps by powers of two of milliseconds.
    pub histogram: std::collections::BTreeMap<u64, usize>,
}

/// All rows.
#[must_use]
pub fn all() -> Vec<Row> {
    vrrp::rows().into_iter().chain(bgp::rows()).collect()
}

/// Probes while `event` happens to the node that answers, and for `observe` after.
pub fn observe(
    team: &mut Team,
    observe: Duration,
    event: impl FnOnce(&mut Team, usize) -> Result<()>,
) -> Result<Round> {
    let prober = Prober::start(&team.cluster.element, team.target())?;
    thread::sleep(LEAD);
    let tag = prober.last_tag().context("nobody answers before anything happens")?;
    let since = prober.now();
    event(team, tag.into())?;
    let took = prober.now() - since;
    thread::sleep((since + observe).saturating_sub(prober.now()));
    Ok(Round { took, ..Round::of(&prober.stop(), tag, since) })
}

impl Round {
    fn of(probe: &Probe, tag: u8, since: Duration) -> Self {
        Self {
            gap: probe.longest_gap(),
            stall: probe.longest_stall(),
            lost: probe.lost(),
            took: Duration::ZERO,
            moved: probe.moved_from(tag, since),
            histogram: probe.histogram(),
        }
    }
}
