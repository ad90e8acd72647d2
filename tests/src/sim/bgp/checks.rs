//! What must be so once all is quiet.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_userspace::announce::{bfd::packet::State as BfdState, bgp::values::Family};

use super::{
    agent::{address, address_v6},
    engine::is_established,
    monitor::Seen,
    plan::{Pair, Plan},
    receiver::Learnt,
    streams::Stream,
    world::World,
};

impl World {
    /// Why a pair is not quiet; None where it is.
    pub(super) fn unrest(&self, plan: &Plan, pair: Pair) -> Option<String> {
        let Pair { router, node } = pair;
        let sides = [(router, node), (node, router)];
        for (at, other) in sides {
            let neighbor = self.agents[at].neighbor(other)?;
            if !is_established(neighbor.peer.as_ref()) {
                let state = neighbor.peer.as_ref().map(|peer| (peer.state(), peer.poll_timeout()));
                return Some(format!("{at} has no session with {other}: {state:?}"));
            }
            if let Some(why) = self.bfd_unrest(at, other) {
                return Some(why);
            }
        }
        let table = &self.tables[&(router, node)];
        let expected: BTreeMap<IpAddr, Learnt> = plan.vips.iter().filter_map(|vip| self.expected(pair, vip)).collect();
        if table.routes != expected {
            return Some(format!("{router} has {:?} of {node}, and is to have {expected:?}", table.routes));
        }
        let families = Family::ALL.into_iter().filter(|family| {
            let speaks = |(at, other): (usize, usize)| self.agents[at].neighbor(other).map(|it| &it.settings.families);
            sides.into_iter().filter_map(speaks).all(|families| families.contains(family))
        });
        if !families.eq(table.ended.iter().copied()) {
            return Some(format!("{router} has End-of-RIB of {node} for {:?}", table.ended));
        }
        let is_of = |stream: &Stream| sides.contains(&(stream.ends[0].agent, stream.ends[1].agent));
        let own: Vec<_> = self.streams.iter().filter(|(_, stream)| is_of(stream)).collect();
        if own.iter().any(|(_, stream)| stream.is_stalled()) {
            return Some(format!("{router} and {node} wait for what was lost"));
        }
        let streams: Vec<u64> = own.into_iter().map(|(id, _)| *id).collect();
        (streams != table.session.as_slice()).then(|| format!("{router} and {node} have connections {streams:?}"))
    }

    fn bfd_unrest(&self, at: usize, other: usize) -> Option<String> {
        let wanted = (self.interval(at, other)?, self.detection(at, other)?);
        let status = self.bfd_status(at, other)?;
        let found = (status.transmit_interval, status.detection_time.unwrap_or_default());
        let is_quiet = status.state == BfdState::Up && !status.is_polling && found == wanted;
        (!is_quiet).then(|| {
            format!(
                "BFD of {at} with {other} is {:?}, {found:?} instead of {wanted:?}, polls: {}",
                status.state, status.is_polling
            )
        })
    }

    fn expected(&self, pair: Pair, vip: &IpAddr) -> Option<(IpAddr, Learnt)> {
        let Pair { router, node } = pair;
        let next_hop = match vip {
            IpAddr::V4(_) => address(node),
            IpAddr::V6(_) => address_v6(node).into(),
        };
        let learnt = Learnt { next_hop: Some(next_hop), is_leaving: false, is_stale: false };
        (self.may(router, node, vip) && self.is_spoken(router, node, vip)).then_some((*vip, learnt))
    }

    /// Whether VIPs are told with the mark of who is about to go.
    pub(super) fn is_marked(&self, pair: Pair) -> bool {
        self.tables[&(pair.router, pair.node)].routes.values().all(|learnt| learnt.is_leaving)
    }

    /// No route was in the wrong for longer than anything may take. Counted anew from here on.
    pub(super) fn check_wrongs(&mut self) {
        let Some(limit) = self.wrong_max else { return };
        let worst = self.look().into_iter().max_by_key(|seen| seen.wrong);
        if let Some(seen) = worst.filter(|seen| seen.wrong > limit) {
            self.break_rule(format!("a route was in the wrong for longer than {limit:?}: {seen:?}"));
        }
    }

    /// Packets of BFD while nothing happens: by the agreed interval, and up to a quarter more.
    pub(super) fn check_bfd_rate(&mut self, pairs: &[Pair], time: Duration, before: &[u64]) {
        let sides = pairs.iter().flat_map(|pair| [(pair.router, pair.node), (pair.node, pair.router)]);
        for ((at, other), before) in sides.zip(before) {
            let (Some(interval), Some(neighbor)) = (self.interval(at, other), self.agents[at].neighbor(other)) else {
                continue;
            };
            let sent = (neighbor.bfd_sent - before) as f64;
            let most = time.as_secs_f64() / interval.as_secs_f64();
            if sent < most - 2.0 || sent > most / 0.75 + 2.0 {
                return self.break_rule(format!("{at} sent {other} {sent} packets of BFD at {interval:?} in {time:?}"));
            }
        }
    }

    /// Packets of BFD so far, of each side of each pair.
    pub(super) fn bfd_sent(&self, pairs: &[Pair]) -> Vec<u64> {
        let sides = pairs.iter().flat_map(|pair| [(pair.router, pair.node), (pair.node, pair.router)]);
        sides.map(|(at, other)| self.agents[at].neighbor(other).map_or(0, |it| it.bfd_sent)).collect()
    }
}

/// What was seen of a pair.
pub(super) fn of_pair(seen: &[Seen], pair: Pair) -> impl Iterator<Item = &Seen> {
    seen.iter().filter(move |seen| seen.router == pair.router && seen.node == pair.node)
}
