//! Which pods are opaque: their kernels do not show their connections under the packets' own addresses and ports.
//!
//! The return programs look now and then for the socket of a segment with payload that leaves an endpoint, and count how
//! often in a row there was none. Once is a socket that has just died; a connection whose socket is seen begins the count
//! anew. What was found opaque stays so for as long as its pod lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::abi::{NO_NETNS, backend_flags};
use tracing::info;

use super::{Engine, flows::FLOW_LIFETIME};
use crate::{
    model::Protocol,
    plan::{planner::EndpointKey, service::InstalledBackend},
};

/// Segments in a row without a socket, each in another tick, that make an endpoint opaque. A pod whose sockets are seen
/// has such a segment where a socket dies while its last segment is on its way, which takes microseconds.
pub(super) const UNSEEN_MIN: u32 = 5;

/// An opaque endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opaque {
    /// When it was found, since the agent's start: what its connections say from then on is recorded.
    since: Duration,
    why: Why,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Why {
    Unseen { segments: u32 },
    NotAsked,
}

impl Opaque {
    /// One that an earlier agent has found.
    pub(super) const fn found(since: Duration, why: Why) -> Self {
        Self { since, why }
    }
}

/// Opaque endpoints.
pub(super) type OpaqueEndpoints = BTreeMap<EndpointKey, Opaque>;

impl Engine {
    /// Takes up what the return programs have counted. True where what is wanted has changed.
    pub(super) fn find_opaque(&mut self) -> bool {
        let now = self.started.elapsed();
        let backends = self.planner.services().values().flat_map(|service| &service.backends);
        let unasked: BTreeSet<EndpointKey> = backends
            .filter(|backend| is_opaque(backend) && backend.value.netns_id == NO_NETNS)
            .map(|backend| backend.endpoint)
            .collect();
        let (planner, before) = (&self.planner, self.opaque.len());
        self.opaque.retain(|key, opaque| {
            planner.endpoints().contains_key(key) && (opaque.why != Why::NotAsked || unasked.contains(key))
        });
        let mut changed = self.opaque.len() != before;
        for (key, endpoint) in self.planner.endpoints().iter().filter(|(key, _)| key.protocol == Protocol::Tcp) {
            let segments = self.tables.watch(endpoint.id).run();
            if segments >= UNSEEN_MIN && !self.opaque.contains_key(key) {
                let backend = SocketAddr::new(key.address, key.port);
                info!(%backend, segments, "opaque: its connections are recorded from now on");
                self.opaque.insert(*key, Opaque { since: now, why: Why::Unseen { segments } });
                changed = true;
            }
        }
        for key in unasked {
            self.opaque.entry(key).or_insert(Opaque { since: now, why: Why::NotAsked });
        }
        changed
    }

    /// Another pod has these addresses now.
    pub(super) fn forget_opaque(&mut self, addresses: &[IpAddr]) {
        self.opaque.retain(|key, _| !addresses.contains(&key.address));
        for (_, endpoint) in self.planner.endpoints().iter().filter(|(key, _)| addresses.contains(&key.address)) {
            self.tables.watch(endpoint.id).clear();
        }
    }

    /// What the planner is told. Who cannot be asked it sees itself, but not while no rung reaches the pod, which keeps its
    /// connections and so its records meanwhile.
    pub(super) fn opaque_endpoints(&self) -> BTreeSet<EndpointKey> {
        self.opaque.keys().copied().collect()
    }

    /// Whether each living connection of an opaque endpoint has a record: it has said something, or is taken for dead.
    pub(super) fn is_all_recorded(&self, endpoint: &EndpointKey) -> bool {
        let now = self.started.elapsed();
        self.opaque.get(endpoint).is_some_and(|opaque| now.saturating_sub(opaque.since) > FLOW_LIFETIME)
    }

    /// Why an endpoint is opaque, where it is.
    pub(super) fn why_opaque(&self, endpoint: &EndpointKey) -> Option<String> {
        Some(match self.opaque.get(endpoint)?.why {
            Why::Unseen { segments } => format!(
                "{segments} segments in a row left without a socket under their addresses and ports, as of a service mesh \
                 inside the pod, sockets bound to a device, or TCP in user space: connections are recorded"
            ),
            Why::NotAsked => "the pod's namespace cannot be asked for sockets: connections are recorded".into(),
        })
    }
}

/// Whether the maps say that a backend is opaque.
pub(super) const fn is_opaque(backend: &InstalledBackend) -> bool {
    backend.value.flags & backend_flags::OPAQUE != 0
}
