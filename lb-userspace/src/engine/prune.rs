//! Earlier owners that have no connection of a slot any more are not asked for it any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::protocol,
    address::Address,
    steer::{flow_hash, ports_word, slot_of},
};
use tracing::debug;

use super::{Engine, opaque::is_opaque};
use crate::{
    net::sockets::{Connection, Listeners, TcpState, connections, connections_in},
    plan::{
        history::Position,
        planner::{EndpointKey, VipKey},
    },
};

/// Pods whose sockets are listed in one pass: a listing is some ten microseconds and more with thousands of sockets.
const PODS_MAX: usize = 256;

impl Engine {
    /// Lists the sockets of pods that were owners of moved slots, and takes them out of the histories of slots where they
    /// have none. Of opaque pods the records are listed instead, once each living connection has one.
    pub(super) fn prune_histories(&mut self) {
        // What is not written yet says nothing of where connections went.
        if !self.pending.is_empty() {
            return;
        }
        let mut asked: BTreeMap<IpAddr, Vec<(VipKey, EndpointKey, Position)>> = BTreeMap::new();
        let mut recorded: BTreeMap<u32, (VipKey, EndpointKey, Position)> = BTreeMap::new();
        for (vip, service) in self.planner.services() {
            let Some(slots) = service.slots().filter(|slots| slots.moved() != 0) else { continue };
            let earlier: BTreeSet<Position> =
                slots.lists().flat_map(|(_, list)| list.owners().collect::<Vec<_>>()).collect();
            for backend in service.backends.iter().filter(|backend| earlier.contains(&backend.position)) {
                let owner = (*vip, backend.endpoint, backend.position);
                if !is_opaque(backend) {
                    asked.entry(backend.endpoint.address).or_default().push(owner);
                } else if self.is_all_recorded(&backend.endpoint) {
                    recorded.insert(backend.value.id, owner);
                }
            }
        }
        self.prune_recorded(&recorded);
        for (address, owners) in asked.into_iter().take(PODS_MAX) {
            let ports: BTreeSet<u16> = owners.iter().map(|(_, endpoint, _)| endpoint.port).collect();
            let listed_at = self.started.elapsed();
            match self.living_connections(address, &ports.into_iter().collect::<Vec<_>>()) {
                Ok(Some(found)) => {
                    for (vip, endpoint, position) in owners {
                        self.prune_one(vip, endpoint, position, listed_at, &found);
                    }
                }
                // A pod that cannot be found now may be back in a moment, with its sessions.
                Ok(None) => {}
                Err(error) => debug!(%address, %error, "cannot list a pod's connections now"),
            }
        }
    }

    /// Opaque pods, by the id of their backend.
    fn prune_recorded(&mut self, owners: &BTreeMap<u32, (VipKey, EndpointKey, Position)>) {
        if owners.is_empty() {
            return;
        }
        let listed_at = self.started.elapsed();
        let mut clients = self.recorded_clients(&owners.keys().copied().collect());
        for (id, (vip, endpoint, position)) in owners {
            let local = SocketAddr::new(endpoint.address, endpoint.port);
            let of_client = |remote| Connection { local, remote, state: TcpState::Established };
            let found: Vec<Connection> = clients.remove(id).unwrap_or_default().into_iter().map(of_client).collect();
            self.prune_one(*vip, *endpoint, *position, listed_at, &found);
        }
    }

    fn prune_one(
        &mut self,
        vip: VipKey,
        endpoint: EndpointKey,
        position: Position,
        listed_at: std::time::Duration,
        found: &[Connection],
    ) {
        let Some(bits) = self.planner.services().get(&vip).map(|service| service.value.slots_log2) else { return };
        let seed = self.tables.settings().maglev_seed;
        let local = SocketAddr::new(endpoint.address, endpoint.port);
        let slots: BTreeSet<u32> = found
            .iter()
            .filter(|connection| connection.local == local)
            .map(|connection| slot_of(hash(seed, connection.remote, &vip), bits))
            .collect();
        let now = self.started.elapsed();
        let ops = self.planner.prune(&vip, position, listed_at, |slot| slots.contains(&slot), now);
        if !ops.is_empty()
            && let Err(error) = self.apply(ops)
        {
            debug!(%endpoint.address, %error, "shorter histories are not written yet");
        }
    }

    /// The connections of a pod on these ports; none where the pod cannot be found.
    fn living_connections(&mut self, address: IpAddr, ports: &[u16]) -> anyhow::Result<Option<Vec<Connection>>> {
        let finding = self.findings.iter().find(|((found, _), _)| *found == address).map(|(_, finding)| finding);
        let Some(finding) = finding else { return Ok(None) };
        if finding.is_host() {
            return Ok(Some(connections(ports, Listeners::Without)?));
        }
        let Some(id) = finding.pod().map(|pod| pod.netns_id) else { return Ok(None) };
        let netns = self.namespaces.find(&mut self.netlink, id)?;
        Ok(Some(connections_in(&netns, ports, Listeners::Without)?))
    }
}

/// The hash of a client's packets to a VIP.
fn hash(seed: u64, client: SocketAddr, vip: &VipKey) -> u64 {
    let [source, destination] = [client.ip(), vip.address].map(|address| Address::from(address).words());
    flow_hash(seed, source, destination, ports_word(client.port(), vip.port), protocol::TCP)
}
