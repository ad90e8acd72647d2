//! Records of the flow cache that are past their time go. Programs only ever write one over another, so without this
//! the cache would name clients of last year, and its fill would say nothing. On the way the agent sees which earlier
//! owners clients are still led to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

use lb_common::{
    flow::{Key, Kind, State},
    steer::slot_of,
};

use super::{Engine, opaque::is_opaque, prune::address_hash};
use crate::plan::{history::SETTLE, maglev::TableSize};

/// Buckets that one tick looks at: 8 MiB, read in a few milliseconds. The default capacity takes one tick, the largest
/// 256.
const BUCKETS_MAX: usize = 65_536;
/// A UDP client that neither asks nor is answered for so long is answered as the pod's own business.
const UDP_IDLE: Duration = Duration::from_secs(600);
/// A shortcut, whose owner the next segment asks again; or a connection of an opaque pod that has said nothing yet, or has
/// closed.
const TCP_IDLE: Duration = Duration::from_secs(600);
/// Coarse ticks that a client's record stays beyond its time: the agent's clock may be one ahead of the kernel's.
const AFFINITY_SLACK: u32 = 1;
/// A connection of an opaque pod: longer than between two keepalives, which are two hours apart where the application
/// says nothing (RFC 9293, 3.8.4).
pub(super) const FLOW_LIFETIME: Duration = Duration::from_secs(9000);

/// Goes round the flow cache, a part of it in each tick.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// The next bucket.
    next: usize,
    round: Option<Round>,
    done: Option<Round>,
}

/// What one round has seen of client affinity.
#[derive(Debug)]
pub(super) struct Round {
    /// No record that was not there then leads to an earlier owner.
    pub started: Duration,
    ended: Duration,
    /// Services that it has looked at the records of.
    services: HashSet<u32>,
    /// By service and backend, slots of a table of the largest size.
    slots: HashMap<(u32, u32), HashSet<u32>>,
}

impl Round {
    /// Whether it has seen the service's records.
    pub fn has_seen(&self, service: u32) -> bool {
        self.services.contains(&service)
    }

    /// The slots of a table of `bits` in which a record leads to the backend.
    pub fn slots(&self, service: u32, backend: u32, bits: u32) -> impl Iterator<Item = u32> {
        let slots = self.slots.get(&(service, backend));
        slots.into_iter().flatten().map(move |slot| slot >> (TableSize::MAX.bits() - bits))
    }
}

impl Engine {
    /// Takes the next part of the flow cache's old records out.
    pub(super) fn sweep_flows(&mut self) {
        let now = self.started.elapsed();
        let kept: HashMap<u32, _> = self
            .planner
            .services()
            .iter()
            .filter(|(_, service)| service.is_kept())
            .map(|(vip, service)| (service.value.id, (*vip, service.value.affinity)))
            .collect();
        if self.sweeper.next == 0 && self.sweeper.done.is_none() {
            let moved = |service: &&crate::plan::service::InstalledService| {
                service.is_kept() && service.slots().is_some_and(|slots| slots.moved() != 0)
            };
            let services = self.planner.services().values().filter(moved).map(|service| service.value.id).collect();
            self.sweeper.round = Some(Round { started: now, ended: now, services, slots: HashMap::new() });
        }
        let (clock, seed) = (&self.clock, self.tables.settings().maglev_seed);
        let mut round = self.sweeper.round.take();
        let backends = self.planner.services().values().flat_map(|service| &service.backends);
        let opaque: BTreeSet<u32> = backends.filter(|b| is_opaque(b)).map(|backend| backend.value.id).collect();
        let is_over = |key: &Key, backend: u32, since: u32| match key.kind() {
            Kind::Udp => clock.age(since) > UDP_IDLE,
            Kind::Tcp => clock.age(since) > tcp_idle(key.state(), opaque.contains(&backend)),
            Kind::Affinity => {
                let service = key.parts().0;
                let Some((vip, ticks)) = kept.get(&service) else { return true };
                if clock.ticks_since(since) > ticks + AFFINITY_SLACK {
                    return true;
                }
                if let Some(round) = round.as_mut().filter(|round| round.has_seen(service)) {
                    let slot = slot_of(address_hash(seed, key.client(), vip), TableSize::MAX.bits() as u8);
                    round.slots.entry((service, backend)).or_default().insert(slot);
                }
                false
            }
        };
        self.sweeper.next = self.tables.sweep_flows(self.sweeper.next, BUCKETS_MAX, is_over);
        match round {
            Some(round) if self.sweeper.next == 0 => {
                self.sweeper.done = Some(Round { ended: self.started.elapsed(), ..round });
            }
            round => self.sweeper.round = round,
        }
    }

    /// The last round, once connections that its records led to have arrived: what pods list from now on has them.
    pub(super) fn take_round(&mut self) -> Option<Round> {
        let now = self.started.elapsed();
        self.sweeper.done.take_if(|round| round.ended + SETTLE < now)
    }

    /// TCP clients whose records name these backends.
    pub(super) fn recorded_clients(&self, backends: &BTreeSet<u32>) -> BTreeMap<u32, Vec<SocketAddr>> {
        let mut clients: BTreeMap<u32, Vec<SocketAddr>> = BTreeMap::new();
        self.tables.sweep_flows(0, usize::MAX, |key, backend, _| {
            if key.kind() == Kind::Tcp && backends.contains(&backend) {
                let client = SocketAddr::new(key.client().into(), key.parts().1);
                clients.entry(backend).or_default().push(client);
            }
            false
        });
        clients
    }
}

/// How long a TCP connection's record stays unused.
const fn tcp_idle(state: State, names_opaque: bool) -> Duration {
    match (names_opaque, state) {
        (true, State::Established) => FLOW_LIFETIME,
        (true, State::Opening | State::Closing) | (false, _) => TCP_IDLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_of_an_opaque_pod_outlives_a_keepalive() {
        let keepalive = Duration::from_secs(2 * 3600);
        assert!(tcp_idle(State::Established, true) > keepalive);
        for (state, names_opaque) in [(State::Established, false), (State::Opening, true), (State::Closing, true)] {
            assert_eq!(tcp_idle(state, names_opaque), Duration::from_secs(600));
        }
    }
}
