//! Earlier owners that have no connection of a slot any more are not asked for it any more.
//!
//! Where clients are kept together, a record may bring an earlier owner a new connection. Records of earlier owners are
//! never made anew, so the order is: first no record leads there, then no connection is there; that is final.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    abi::{rung, service_flags},
    address::Address,
    steer::{flow_hash, ports_word, slot_of},
};
use tracing::debug;

use super::{Engine, flows::Round, opaque::is_opaque};
use crate::{
    model::Protocol,
    net::sockets::{Connection, Listeners, connections},
    plan::{
        history::Position,
        ops::MapOp,
        planner::{EndpointKey, VipKey},
    },
};

/// How long an earlier owner without an interface is taken to have its sessions still: longer than it takes to move a pod to
/// another interface, shorter than clients wait.
const UNREACHABLE_GRACE: Duration = Duration::from_secs(30);
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
        // Opaque, and no rung reaches them.
        let mut away: BTreeMap<IpAddr, Vec<(VipKey, EndpointKey, Position)>> = BTreeMap::new();
        for (vip, service) in self.planner.services() {
            let Some(slots) = service.slots().filter(|slots| slots.moved() != 0 || service.is_rehashed()) else {
                continue;
            };
            let mut owners: BTreeSet<Position> =
                slots.lists().flat_map(|(_, list)| list.owners().collect::<Vec<_>>()).collect();
            owners.extend(service.unheard());
            for backend in service.backends.iter().filter(|backend| owners.contains(&backend.position)) {
                let owner = (*vip, backend.endpoint, backend.position);
                if is_opaque(backend) && backend.value.rung == rung::NONE {
                    away.entry(backend.endpoint.address).or_default().push(owner);
                } else if !is_opaque(backend) {
                    asked.entry(backend.endpoint.address).or_default().push(owner);
                } else if self.is_all_recorded(&backend.endpoint) {
                    recorded.insert(backend.value.id, owner);
                }
            }
        }
        let round = self.take_round();
        self.prune_recorded(&recorded, round.as_ref());
        self.away.retain(|address, _| asked.contains_key(address) || away.contains_key(address));
        for (address, owners) in away {
            let listed_at = self.started.elapsed();
            if self.has_left(address, listed_at) {
                for (vip, endpoint, position) in owners {
                    self.prune_owner(vip, endpoint, position, listed_at, &[], round.as_ref());
                }
            }
        }
        // Each pass begins behind the last, so that each pod has its turn.
        let mut turns: Vec<_> = asked.into_iter().collect();
        let first = turns.partition_point(|(address, _)| self.listed_to.is_some_and(|last| *address <= last));
        turns.rotate_left(first);
        turns.truncate(PODS_MAX);
        self.listed_to = turns.last().map(|(address, _)| *address);
        for (address, owners) in turns {
            let ports: BTreeSet<u16> = owners.iter().map(|(_, endpoint, _)| endpoint.port).collect();
            let listed_at = self.started.elapsed();
            match self.living_connections(address, &ports.into_iter().collect::<Vec<_>>()) {
                Ok(found) => {
                    // A pod that cannot be found now may be back in a moment, with its sessions: what may be its own is
                    // dropped so long, and not reset.
                    let found = match found {
                        Some(found) => {
                            self.away.remove(&address);
                            found
                        }
                        None => {
                            if !self.has_left(address, listed_at) {
                                continue;
                            }
                            Vec::new()
                        }
                    };
                    for (vip, endpoint, position) in owners {
                        self.prune_owner(vip, endpoint, position, listed_at, &found, round.as_ref());
                    }
                }
                Err(error) => debug!(pod = %address, %error, "cannot list a pod's connections now"),
            }
        }
    }

    /// Whether a pod that cannot be found has been away for so long that its connections are taken to be.
    fn has_left(&mut self, address: IpAddr, now: Duration) -> bool {
        let since = *self.away.entry(address).or_insert(now);
        now.saturating_sub(since) >= UNREACHABLE_GRACE
    }

    /// Opaque pods, by the id of their backend.
    fn prune_recorded(&mut self, owners: &BTreeMap<u32, (VipKey, EndpointKey, Position)>, round: Option<&Round>) {
        if owners.is_empty() {
            return;
        }
        let listed_at = self.started.elapsed();
        let mut clients = self.recorded_clients(&owners.keys().copied().collect());
        for (id, (vip, endpoint, position)) in owners {
            let clients = clients.remove(id).unwrap_or_default();
            self.prune_and_write(*vip, endpoint, *position, listed_at, &clients, round);
        }
    }

    /// Before slots move: takes out of the flow cache who owns connections of these services. No packet of a stable slot asks
    /// or tells the cache, so that a record may be of an earlier connection from the same port, whose owner is an owner
    /// of the slot again. Lost records cost a question each.
    pub(super) fn forget_owners(&self, ops: &[MapOp]) {
        let offsets: BTreeSet<u32> = ops
            .iter()
            .filter_map(|op| match op {
                MapOp::UpdateSlots { offset, .. } | MapOp::WriteSlots { offset, .. } => Some(*offset),
                // Slots move for clients, too, where another hash chooses them.
                MapOp::SetService { value, .. } if value.flags & service_flags::REHASHED != 0 => Some(value.slots),
                _ => None,
            })
            .collect();
        let (mut services, mut opaque) = (HashSet::new(), HashSet::new());
        for service in self.planner.services().values().filter(|service| offsets.contains(&service.value.slots)) {
            services.insert(service.value.id);
            opaque.extend(service.backends.iter().filter(|b| is_opaque(b)).map(|backend| backend.value.id));
        }
        if !services.is_empty() {
            self.tables.forget_owners(&services, &opaque);
        }
    }

    fn prune_owner(
        &mut self,
        vip: VipKey,
        endpoint: EndpointKey,
        position: Position,
        listed_at: Duration,
        found: &[Connection],
        round: Option<&Round>,
    ) {
        let local = SocketAddr::new(endpoint.local_address(), endpoint.port);
        let is_its = |connection: &&Connection| connection.local == local;
        let clients: Vec<SocketAddr> = match vip.protocol {
            Protocol::Tcp => found.iter().filter(is_its).map(|connection| connection.remote).collect(),
            Protocol::Udp => Vec::new(),
        };
        self.prune_and_write(vip, &endpoint, position, listed_at, &clients, round);
    }

    fn prune_and_write(
        &mut self,
        vip: VipKey,
        endpoint: &EndpointKey,
        position: Position,
        listed_at: Duration,
        clients: &[SocketAddr],
        round: Option<&Round>,
    ) {
        let ops = self.prune_one(vip, position, listed_at, clients, round);
        if !ops.is_empty()
            && let Err(error) = self.apply(ops)
        {
            debug!(pod = %endpoint.address, %error, "shorter histories are not written yet");
        }
    }

    fn prune_one(
        &mut self,
        vip: VipKey,
        position: Position,
        listed_at: Duration,
        clients: &[SocketAddr],
        round: Option<&Round>,
    ) -> Vec<MapOp> {
        let Some(service) = self.planner.services().get(&vip) else { return Vec::new() };
        let (bits, seed) = (service.value.slots_log2, self.tables.settings().maglev_seed);
        let by_address = |client: &SocketAddr| slot_of(address_hash(seed, client.ip().into(), &vip), bits);
        let by_port = |client: &SocketAddr| slot_of(port_hash(seed, *client, &vip), bits);
        let by_hash = |client| if service.is_kept() { by_address(client) } else { by_port(client) };
        let mut slots: BTreeSet<u32> = clients.iter().map(by_hash).collect();
        let mut ops = Vec::new();
        let mut since = Some(listed_at);
        if service.is_kept() {
            let backend = service.backends.iter().find(|backend| backend.position == position);
            let seen = round.filter(|round| round.has_seen(service.value.id)).zip(backend);
            since = seen.map(|(round, _)| round.started);
            slots.extend(
                seen.iter().flat_map(|(round, backend)| round.slots(service.value.id, backend.value.id, bits.into())),
            );
        }
        let is_unheard = service.unheard().any(|unheard| unheard == position);
        // Connections from before the change are in the other hash's slots.
        if service.is_rehashed() {
            let all_found = service.slots().is_some_and(|table| {
                let mut its = clients.iter().map(by_hash);
                its.all(|slot| {
                    table.slot(slot).owner == position.0 || table.history(slot).owners().any(|owner| owner == position)
                })
            });
            let other = |client| if service.is_kept() { by_port(client) } else { by_address(client) };
            slots.extend(clients.iter().map(other));
            if is_unheard && all_found {
                ops.extend(self.planner.settle_hash(&vip, position, listed_at));
            }
        }
        if let Some(since) = since {
            let now = self.started.elapsed();
            ops.extend(self.planner.prune(&vip, position, since, |slot| slots.contains(&slot), now));
        }
        ops
    }

    /// The connections of a pod on these ports; none where the pod cannot be found.
    fn living_connections(&mut self, address: IpAddr, ports: &[u16]) -> anyhow::Result<Option<Vec<Connection>>> {
        let finding = self.findings.iter().find(|((found, _), _)| *found == address).map(|(_, finding)| finding);
        let Some(finding) = finding else { return Ok(None) };
        if finding.is_host() {
            return Ok(Some(connections(ports, Listeners::Without)?));
        }
        let Some(id) = finding.pod().map(|pod| pod.netns_id) else { return Ok(None) };
        Ok(Some(self.helper.connections(id, ports, Listeners::Without)?))
    }
}

/// The hash of a client's packets to a VIP.
fn port_hash(seed: u64, client: SocketAddr, vip: &VipKey) -> u64 {
    hash(seed, client.ip().into(), client.port(), vip)
}

/// The same where clients are kept together.
pub(super) fn address_hash(seed: u64, client: Address, vip: &VipKey) -> u64 {
    hash(seed, client, 0, vip)
}

fn hash(seed: u64, client: Address, port: u16, vip: &VipKey) -> u64 {
    let (source, destination) = (client.words(), Address::from(vip.address).words());
    flow_hash(seed, source, destination, ports_word(port, vip.port), vip.protocol.number())
}
