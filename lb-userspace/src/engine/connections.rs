//! Connections that reach a pod without a VIP: those that were there first are learned, those that are over forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use lb_common::abi::{BypassKey, endpoint_flags, protocol};
use tracing::{debug, warn};

use super::{Engine, flows::FLOW_LIFETIME};
use crate::{
    memory,
    model::Protocol,
    net::{
        links::PodInterface,
        sockets::{Connection, Listeners, connections},
    },
    plan::{
        ops::MapOp,
        planner::{EndpointKey, GRACE, Retired},
    },
};

/// Writes whose memory is given back at once: those of a start, not those of a change.
const OPS_MANY: usize = 10_000;

/// Coarse ticks that a record is kept at least: a handshake may not have made its socket yet.
const YOUNG: u32 = 12;
/// Coarse ticks after which an unused record of UDP goes: ten minutes at 1000 Hz, more at less.
const UDP_IDLE: u32 = 2400;

impl Engine {
    /// Applies a plan's writes, after those that failed before. An endpoint's first appearance is in two steps: bypasses
    /// are recorded, then what is connected already is listed, and only then are its replies rewritten.
    pub(super) fn apply(&mut self, ops: Vec<MapOp>) -> anyhow::Result<()> {
        let many = ops.len() > OPS_MANY;
        self.pending.extend(ops);
        // Endpoints that stand in front of the writes and are learned.
        let mut learned = 0;
        while let Some(op) = self.pending.pop_front() {
            let applied = match learned {
                0 => self.learn_first(&op),
                more => Ok(more),
            };
            let applied = applied.and_then(|more| {
                learned = more.saturating_sub(1);
                Ok(self.tables.apply(&op)?)
            });
            if let Err(error) = applied {
                self.meter.map_write(false);
                warn!(%error, ?op, "a write failed; it is tried again");
                self.pending.push_front(op);
                return Err(error);
            }
            self.meter.map_write(true);
            self.written = Instant::now();
        }
        if many {
            self.pending.shrink_to_fit();
            memory::release();
        }
        Ok(())
    }

    /// Where `op`, the next write, shows an endpoint whose connections are to be learned, learns those of all that
    /// follow without another write in between: a pod's sockets are listed once for all its ports. How many those are.
    fn learn_first(&mut self, op: &MapOp) -> anyhow::Result<usize> {
        let mut fresh: BTreeMap<IpAddr, BTreeMap<u16, u32>> = BTreeMap::new();
        let mut count = 0;
        for op in std::iter::once(op).chain(&self.pending) {
            let MapOp::SetEndpoint { key, value } = op else { break };
            count += 1;
            let is_there = |value: lb_common::abi::Endpoint| value.flags & endpoint_flags::LEARNING == 0;
            // What leaves a pod that owns its VIP is not rewritten: there is nothing to be learned.
            if key.protocol == protocol::TCP && key.interface == 0 && !self.tables.endpoint(key).is_some_and(is_there) {
                let mut learning = *value;
                learning.flags |= endpoint_flags::LEARNING;
                self.tables.apply(&MapOp::SetEndpoint { key: *key, value: learning })?;
                fresh.entry(key.address.into()).or_default().insert(key.port, value.id);
            }
        }
        for (address, endpoints) in fresh {
            self.learn(address, &endpoints);
        }
        Ok(count)
    }

    /// Records what is connected to the endpoints of an address now, which are given by port.
    fn learn(&mut self, address: IpAddr, endpoints: &BTreeMap<u16, u32>) {
        match self.sockets_of(address, &endpoints.keys().copied().collect::<Vec<_>>()) {
            // The pod's other addresses are other endpoints, with counts of their own.
            Ok(found) => {
                let is_here = |local: &SocketAddr| local.ip() == address;
                self.record(found, |local| endpoints.get(&local.port()).copied().filter(|_| is_here(&local)));
            }
            Err(error) => warn!(pod = %address, ports = endpoints.len(), %error, "cannot list a pod's connections"),
        }
    }

    /// Records what is connected to the served endpoints of a pod that has just come, or come back: nothing of it
    /// can have come through a VIP. A pod that only got another interface keeps its records, because its sessions
    /// through VIPs cannot be told from the others any more.
    pub(super) fn learn_pod(&mut self, pod: &PodInterface, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let cookie = self.helper.cookie(pod.netns_id)?;
        let fresh: Vec<IpAddr> =
            addresses.iter().copied().filter(|address| self.followed.get(address) != Some(&cookie)).collect();
        let endpoints: BTreeMap<(IpAddr, u16), u32> = self
            .planner
            .endpoints()
            .iter()
            .filter(|(key, _)| key.protocol == Protocol::Tcp && key.vip.is_none() && fresh.contains(&key.address))
            .map(|(key, endpoint)| ((key.address, key.port), endpoint.id))
            .collect();
        self.forget_opaque(&fresh);
        if !endpoints.is_empty() {
            for address in &fresh {
                let planner = &self.planner;
                self.tables.forget_pod(*address, |key| endpoint_of(planner, key));
            }
            let ports: BTreeSet<u16> = endpoints.keys().map(|(_, port)| *port).collect();
            let ports: Vec<u16> = ports.into_iter().collect();
            let found = self.helper.connections(pod.netns_id, &ports, Listeners::Without)?;
            self.record(found, |local| endpoints.get(&(local.ip(), local.port())).copied());
        }
        self.followed.extend(fresh.into_iter().map(|address| (address, cookie)));
        Ok(())
    }

    fn sockets_of(&mut self, address: IpAddr, ports: &[u16]) -> anyhow::Result<Vec<Connection>> {
        let finding = self.findings.iter().find(|((found, _), _)| *found == address).map(|(_, finding)| finding);
        match finding {
            Some(finding) if finding.is_host() => Ok(connections(ports, Listeners::Without)?),
            Some(finding) => match finding.pod().map(|pod| pod.netns_id) {
                Some(id) => Ok(self.helper.connections(id, ports, Listeners::Without)?),
                None => Ok(Vec::new()),
            },
            None => Ok(Vec::new()),
        }
    }

    fn record(&mut self, found: Vec<Connection>, endpoint_of: impl Fn(SocketAddr) -> Option<u32>) {
        let since = self.clock.coarse();
        for connection in found {
            let Some(endpoint) = endpoint_of(connection.local) else { continue };
            let key = key_of(&connection);
            if let Err(error) = self.tables.record_bypass(&key, endpoint, since) {
                warn!(%error, backend = %connection.local, client = %connection.remote, "cannot record a connection");
            }
        }
    }

    /// Forgets records whose connection is over: the pod has no such socket.
    pub(super) fn sweep_bypasses(&mut self) {
        let mut by_pod: BTreeMap<IpAddr, Vec<(BypassKey, u32)>> = BTreeMap::new();
        for (key, bypass) in self.tables.bypasses() {
            let age = self.clock.ticks_since(bypass.since);
            by_pod.entry(key.pod.into()).or_default().push((key, age));
        }
        let opaque_idle = self.clock.ticks(FLOW_LIFETIME);
        for (pod, records) in by_pod {
            let ports: BTreeSet<u16> = records.iter().map(|(key, _)| key.pod_port).collect();
            let alive = match self.sockets_of(pod, &ports.into_iter().collect::<Vec<_>>()) {
                Ok(found) => found.iter().map(key_of).collect::<BTreeSet<_>>(),
                Err(error) => {
                    debug!(%pod, %error, "cannot list a pod's connections now");
                    continue;
                }
            };
            for (key, age) in records {
                let over = match key.protocol {
                    // No socket of theirs is seen.
                    protocol::TCP if is_opaque(&self.planner, &key) => age > opaque_idle,
                    protocol::TCP => age > YOUNG && !alive.contains(&key),
                    _ => age > UDP_IDLE,
                };
                if over {
                    let endpoint = endpoint_of(&self.planner, &key);
                    if let Err(error) = self.tables.remove_bypass(&key, endpoint) {
                        warn!(%error, %pod, "cannot remove the record of a connection");
                    }
                }
            }
        }
    }

    /// Lets go of identifiers that nothing uses, with whatever is recorded under them. The planner counts the rest from
    /// its plan, and the writes may have come much later.
    pub(super) fn retire(&mut self) {
        if !self.pending.is_empty() || self.written.elapsed() < GRACE {
            return;
        }
        let retired = self.planner.retire(self.started.elapsed());
        if retired == Retired::default() {
            return;
        }
        self.keep_traffic(&retired.backends);
        let backends: Vec<u32> = retired.backends.iter().map(|(id, _)| *id).collect();
        self.tables.forget_flows(&retired.endpoints, &retired.services, &backends);
        for (key, bypass) in self.tables.bypasses() {
            let endpoint = endpoint_of(&self.planner, &key);
            if (backends.contains(&bypass.backend) || endpoint.is_none())
                && let Err(error) = self.tables.remove_bypass(&key, endpoint)
            {
                warn!(%error, pod = %IpAddr::from(key.pod), "cannot remove the record of a connection");
            }
        }
        for endpoint in retired.endpoints {
            self.tables.clear_bypass_count(endpoint);
        }
    }
}

fn key_of(connection: &Connection) -> BypassKey {
    BypassKey {
        client: connection.remote.ip().into(),
        pod: connection.local.ip().into(),
        client_port: connection.remote.port(),
        pod_port: connection.local.port(),
        protocol: protocol::TCP,
        pad: 0,
        pad2: 0,
    }
}

/// Whether a record is of an endpoint whose sockets cannot be seen.
fn is_opaque(planner: &crate::plan::planner::Planner, key: &BypassKey) -> bool {
    let endpoint = EndpointKey::new(key.pod.into(), Protocol::Tcp, key.pod_port);
    let value = planner.endpoints().get(&endpoint).and_then(|endpoint| endpoint.value);
    value.is_some_and(|value| value.flags & endpoint_flags::OPAQUE != 0)
}

/// The installed endpoint of a record.
pub(super) fn endpoint_of(planner: &crate::plan::planner::Planner, key: &BypassKey) -> Option<u32> {
    let protocol = if key.protocol == protocol::TCP { Protocol::Tcp } else { Protocol::Udp };
    let endpoint = EndpointKey::new(key.pod.into(), protocol, key.pod_port);
    planner.endpoints().get(&endpoint).map(|endpoint| endpoint.id)
}
