//! Records of the flow cache that are past their time go. Programs only ever write one over another, so without this
//! the cache would name clients of last year, and its fill would say nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use lb_common::flow::{Key, State};

use super::{Engine, opaque::is_opaque};

/// Buckets that one tick looks at: 8 MiB, read in a few milliseconds. The default capacity takes one tick, the largest
/// 256.
const BUCKETS_MAX: usize = 65_536;
/// A UDP client that neither asks nor is answered for so long is answered as the pod's own business.
const UDP_IDLE: Duration = Duration::from_secs(600);
/// A shortcut, whose owner the next segment asks again; or a connection of an opaque pod that has said nothing yet, or has
/// closed.
const TCP_IDLE: Duration = Duration::from_secs(600);
/// A connection of an opaque pod: longer than between two keepalives, which are two hours apart where the application
/// says nothing (RFC 9293, 3.8.4).
pub(super) const FLOW_LIFETIME: Duration = Duration::from_secs(9000);

/// Goes round the flow cache, a part of it in each tick.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// The next bucket.
    next: usize,
}

impl Engine {
    /// Takes the next part of the flow cache's old records out.
    pub(super) fn sweep_flows(&mut self) {
        let clock = &self.clock;
        let backends = self.planner.services().values().flat_map(|service| &service.backends);
        let opaque: BTreeSet<u32> = backends.filter(|b| is_opaque(b)).map(|backend| backend.value.id).collect();
        let is_over =
            |key: &Key, backend: u32, since: u32| clock.age(since) > idle_limit(key, opaque.contains(&backend));
        self.sweeper.next =
            self.tables.sweep_flows(self.sweeper.next, BUCKETS_MAX, |key, backend, since| is_over(key, backend, since));
    }

    /// TCP clients whose records name these backends.
    pub(super) fn recorded_clients(&self, backends: &BTreeSet<u32>) -> BTreeMap<u32, Vec<SocketAddr>> {
        let mut clients: BTreeMap<u32, Vec<SocketAddr>> = BTreeMap::new();
        self.tables.sweep_flows(0, usize::MAX, |key, backend, _| {
            if key.is_tcp() && backends.contains(&backend) {
                let client = SocketAddr::new(key.client().into(), key.parts().1);
                clients.entry(backend).or_default().push(client);
            }
            false
        });
        clients
    }
}

/// How long a record stays unused.
const fn idle_limit(key: &Key, names_opaque: bool) -> Duration {
    match (key.is_tcp(), names_opaque, key.state()) {
        (true, true, State::Established) => FLOW_LIFETIME,
        (true, ..) => TCP_IDLE,
        (false, ..) => UDP_IDLE,
    }
}

#[cfg(test)]
mod tests {
    use lb_common::address::Address;

    use super::*;

    #[test]
    fn only_a_connection_of_an_opaque_pod_outlives_a_keepalive() {
        let key = Key::tcp(1, Address::from_words([0, 5]), 7);
        let keepalive = Duration::from_secs(2 * 3600);
        assert!(idle_limit(&key, true) > keepalive);
        for other in [
            idle_limit(&key, false),
            idle_limit(&key.in_state(State::Opening), true),
            idle_limit(&key.in_state(State::Closing), true),
            idle_limit(&Key::udp(1, Address::from_words([0, 5]), 7), true),
        ] {
            assert_eq!(other, Duration::from_secs(600));
        }
    }
}
