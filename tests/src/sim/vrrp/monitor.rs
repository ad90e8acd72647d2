//! How long each VIP goes unanswered, and how long two nodes answer for it.

use std::{net::IpAddr, time::Duration};

use super::node::Node;

/// A VIP as those see it who are joined.
#[derive(Clone, Debug)]
struct View {
    vip: IpAddr,
    router: usize,
    group: Vec<usize>,
    silent_since: Option<Duration>,
    doubled_since: Option<Duration>,
    gap: Duration,
    overlap: Duration,
}

/// What was longest since the last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) vip: IpAddr,
    pub(super) router: usize,
    pub(super) gap: Duration,
    pub(super) overlap: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Monitor {
    vips: Vec<(IpAddr, usize)>,
    views: Vec<View>,
}

impl Monitor {
    /// For VIPs and the virtual routers that carry them.
    pub(super) const fn new(vips: Vec<(IpAddr, usize)>) -> Self {
        Self { vips, views: Vec::new() }
    }

    /// From here on nodes are joined in these groups.
    pub(super) fn group(&mut self, groups: &[Vec<usize>]) {
        self.views = groups
            .iter()
            .flat_map(|group| self.vips.iter().map(move |(vip, router)| (group.clone(), *vip, *router)))
            .map(|(group, vip, router)| View {
                vip,
                router,
                group,
                silent_since: None,
                doubled_since: None,
                gap: Duration::ZERO,
                overlap: Duration::ZERO,
            })
            .collect();
    }

    /// Time passes in which no table changes: answers only end.
    pub(super) fn pass(&mut self, nodes: &[Node], from: Duration, to: Duration) {
        for view in &mut self.views {
            let (mut first, mut second) = (Duration::ZERO, Duration::ZERO);
            for at in &view.group {
                let until = nodes[*at].answers_until(view.vip);
                if until > first {
                    (first, second) = (until, first);
                } else {
                    second = second.max(until);
                }
            }
            if first > from {
                view.silent_since = None;
            }
            if first < to {
                let since = *view.silent_since.get_or_insert(first.max(from));
                view.gap = view.gap.max(to - since);
            }
            if second > from {
                let since = *view.doubled_since.get_or_insert(from);
                view.overlap = view.overlap.max(second.min(to) - since);
            }
            if second < to {
                view.doubled_since = None;
            }
        }
    }

    /// What was longest of each VIP in each group, counted anew from here on.
    pub(super) fn look(&mut self) -> Vec<Seen> {
        let seen = |view: &mut View| {
            let seen = Seen { vip: view.vip, router: view.router, gap: view.gap, overlap: view.overlap };
            (view.gap, view.overlap) = (Duration::ZERO, Duration::ZERO);
            (view.silent_since, view.doubled_since) = (None, None);
            seen
        };
        self.views.iter_mut().map(seen).collect()
    }
}
