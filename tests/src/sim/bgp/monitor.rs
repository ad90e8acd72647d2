//! How long routes are there in the wrong, and how long VIPs that are served have none.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_userspace::announce::eligibility::Leaving;

use super::{
    agent::{Agent, Phase},
    world::World,
};

/// A time that runs on, and the longest.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    since: Option<Duration>,
    longest: Duration,
}

impl Span {
    fn set(&mut self, is: bool, now: Duration) {
        if let Some(since) = self.since {
            self.longest = self.longest.max(now - since);
        }
        self.since = is.then(|| self.since.unwrap_or(now));
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct View {
    wrong: Span,
    gap: Span,
}

/// What was longest since the last look, of a router and node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) router: usize,
    pub(super) node: usize,
    pub(super) vip: IpAddr,
    /// The route was there, and the node might not announce it.
    pub(super) wrong: Duration,
    /// The VIP was served, and the route was not there.
    pub(super) gap: Duration,
}

#[derive(Debug)]
pub(super) struct Monitor {
    views: BTreeMap<(usize, usize, IpAddr), View>,
}

impl Monitor {
    pub(super) fn new(views: impl Iterator<Item = (usize, usize, IpAddr)>) -> Self {
        Self { views: views.map(|key| (key, View::default())).collect() }
    }
}

impl Agent {
    /// It lives, and whoever is told its routes is told so by itself.
    fn is_well(&self) -> bool {
        self.phase == Phase::Runs && self.hung_since.is_none() && !self.is_silent_leave
    }
}

impl World {
    /// Whether the node may announce the VIP to the router, now.
    pub(super) fn may(&self, router: usize, node: usize, vip: &IpAddr) -> bool {
        let agent = &self.agents[node];
        let is_joined = !self.cut[router][node] && !self.cut[node][router];
        is_joined && agent.is_well() && agent.serves(vip) && agent.leaving() < Leaving::Left
    }

    /// Looks at everything anew, after anything has changed.
    pub(super) fn review(&mut self) {
        let now = self.now;
        let mut views = std::mem::take(&mut self.monitor.views);
        for ((router, node, vip), view) in &mut views {
            let table = &self.tables[&(*router, *node)];
            let runs = self.agents[*router].phase == Phase::Runs;
            let is_there = table.routes.contains_key(vip);
            let is_joined = !self.cut[*router][*node] && !self.cut[*node][*router];
            let leaves = self.agents[*node].leaving() == Leaving::Left;
            view.wrong.set(runs && is_there && !self.may(*router, *node, vip), now);
            let is_served = is_joined && !leaves && self.agents[*node].serves(vip);
            view.gap.set(runs && !is_there && is_served, now);
        }
        self.monitor.views = views;
    }

    /// What was longest, counted anew from here on.
    pub(super) fn look(&mut self) -> Vec<Seen> {
        self.review();
        let now = self.now;
        let seen = |((router, node, vip), view): (&(usize, usize, IpAddr), &mut View)| {
            let seen =
                Seen { router: *router, node: *node, vip: *vip, wrong: view.wrong.longest, gap: view.gap.longest };
            for span in [&mut view.wrong, &mut view.gap] {
                span.longest = Duration::ZERO;
                span.since = span.since.map(|_| now);
            }
            seen
        };
        self.monitor.views.iter_mut().map(seen).collect()
    }
}
