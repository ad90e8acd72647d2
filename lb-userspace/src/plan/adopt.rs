//! From maps that an earlier agent has left to a planner that knows what is installed.
//!
//! Backends, ids, positions, slots with their histories and the sizes of tables stay what they are, so that the next plan
//! of the same snapshot writes almost nothing and no session sees a restart. What cannot be understood, or was being
//! written when the agent stopped, is not installed, and is cleaned away: the next plan makes it anew.
//!
//! What is installed follows from the order in which a plan is applied. A service's entry switches to ranges that are
//! written; a member is written after its entry in `backends`, and cleared last of all. So a backend is one of a service
//! where the member names the service and the entry at its position, in the range that the service has, is of its id.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    abi::{self, ServiceKey, endpoint_flags, rung},
    address::Address,
};

mod services;

use self::services::Services;
use super::{
    ids::Ids,
    ops::MapOp,
    planner::{EndpointKey, InstalledEndpoint, Planner, VipKey},
    service::InstalledBackend,
};
use crate::model::{Capacities, Protocol, SELF_TEST_VIPS};

/// The maps that are read as a whole. The order of entries means nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadBack {
    /// `services`.
    pub services: Vec<(ServiceKey, abi::Service)>,
    /// `vips`.
    pub vips: Vec<(Address, u32)>,
    /// `endpoints`.
    pub endpoints: Vec<(ServiceKey, abi::Endpoint)>,
    /// `members` by id; those that are zero may be left out.
    pub members: Vec<(u32, abi::Member)>,
    /// `tx_ports` by id: interfaces; ports without one are left out.
    pub tx_ports: Vec<(u32, u32)>,
}

/// The arrays of which only what services point to is read. `None` beyond the last element.
pub trait Arrays {
    /// An element of `maglev`.
    fn slot(&self, at: u32) -> Option<abi::Slot>;
    /// An element of `histories`.
    fn history(&self, at: u32) -> Option<abi::History>;
    /// An element of `backends`.
    fn backend(&self, at: u32) -> Option<abi::Backend>;
}

/// Identifiers in use. Records that name others are to be removed before anything is planned: the others are free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsedIds {
    /// [`abi::Backend::id`].
    pub backends: BTreeSet<u32>,
    /// [`abi::Backend::endpoint`].
    pub endpoints: BTreeSet<u32>,
    /// [`abi::Service::id`].
    pub services: BTreeSet<u32>,
}

/// What became of maps that were read back.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// Knows what is installed once `ops` are applied.
    pub planner: Planner,
    /// Takes away and mends what is left over. To be applied before the planner's first plan.
    pub ops: Vec<MapOp>,
    /// What was not understood, and why, a line each; a crash alone leaves nothing of the kind.
    pub discarded: Vec<String>,
    /// Identifiers in use.
    pub used: UsedIds,
}

impl Planner {
    /// The planner of maps with these capacities, by what was read back from them at `now`.
    ///
    /// Any content is taken: what makes no sense is named in [`Adopted::discarded`].
    pub fn adopt(
        capacities: Capacities,
        hertz: u64,
        read_back: &ReadBack,
        arrays: &impl Arrays,
        now: Duration,
    ) -> Adopted {
        let mut services = Services::new(Self::new(capacities).at_hertz(hertz), arrays, now);
        services.adopt(read_back);
        let Services { mut planner, ops, mut discarded, used, .. } = services;
        let mut ops = [ops, planner.adopt_endpoints(&read_back.endpoints, &mut discarded)].concat();
        ops.extend(planner.adopt_ports(&read_back.tx_ports, now));
        for (id, member) in &read_back.members {
            if *member != abi::Member::default() && !used.backends.contains(id) {
                ops.push(MapOp::SetMember { id: *id, value: abi::Member::default() });
            }
        }
        for (address, services) in &read_back.vips {
            let vip = IpAddr::from(*address);
            if SELF_TEST_VIPS.contains(&vip) {
                ops.push(MapOp::SetVip { address: *address, services: 0 });
            } else {
                planner.vips.insert(vip, *services);
            }
        }
        planner.service_ids = Ids::in_use(capacities.services, &used.services);
        planner.backend_ids = Ids::in_use(capacities.backends, &used.backends);
        planner.endpoint_ids = Ids::in_use(capacities.backends, &used.endpoints);
        Adopted { planner, ops, discarded, used }
    }

    /// Notes what of `endpoints` is whose. What is left is taken out.
    fn adopt_endpoints(&mut self, read: &[(ServiceKey, abi::Endpoint)], discarded: &mut Vec<String>) -> Vec<MapOp> {
        let mut listed: HashMap<ServiceKey, Vec<(ServiceKey, abi::Endpoint)>> = HashMap::new();
        for (key, value) in read {
            // What was still learning is to begin anew, and self-tests are over.
            if value.flags & (endpoint_flags::SELF_TEST | endpoint_flags::LEARNING) == 0 {
                listed.entry(key.at(0)).or_default().push((*key, *value));
            }
        }
        let mut kept = HashSet::new();
        let mut endpoints = std::mem::take(&mut self.endpoints);
        for (key, installed) in endpoints.untracked() {
            let listed = listed.get(&key.to_abi()).map_or(&[][..], Vec::as_slice);
            let found = match key.vip {
                None => listed.iter().find(|(at, _)| at.interface == 0).copied(),
                Some(_) => self.at_interface(key, installed, listed),
            };
            if let Some((at, value)) = found {
                kept.insert(at);
                (installed.key, installed.value) = (at, Some(value));
            }
        }
        self.endpoints = endpoints;
        let mut ops = Vec::new();
        for (key, value) in read.iter().filter(|(key, _)| !kept.contains(key)) {
            if value.flags & endpoint_flags::SELF_TEST == 0 && !is_endpoint(key) {
                discarded.push(format!("endpoint {}: no key of an endpoint", name_of(key)));
            }
            ops.push(MapOp::RemoveEndpoint { key: *key });
        }
        ops
    }

    /// What stands for a pod that owns its VIP: the entry of its id; else the one at its interface, which another address
    /// of the pod has written.
    fn at_interface(
        &self,
        key: &EndpointKey,
        installed: &InstalledEndpoint,
        listed: &[(ServiceKey, abi::Endpoint)],
    ) -> Option<(ServiceKey, abi::Endpoint)> {
        let ifindex = installed.way.ifindex;
        let here = |(at, _): &&(ServiceKey, abi::Endpoint)| at.interface == ifindex;
        let its = listed.iter().filter(|(at, value)| at.interface != 0 && value.id == installed.id);
        if let Some(own) = its.clone().find(here).or_else(|| its.clone().next()) {
            return Some(*own);
        }
        let (at, value) = listed.iter().filter(|(at, _)| at.interface != 0).find(here)?;
        let default = VipKey::new(value.vip.into(), key.protocol, value.vip_port);
        let backends = &self.services.get(&default)?.backends;
        let backend = backends.iter().find(|backend| backend.endpoint == *key)?.value.id;
        let value = abi::Endpoint { id: installed.id, backend, netns_id: installed.way.netns_id, ..*value };
        Some((*at, value))
    }

    /// Notes the ports that installed backends are reached by. The others are emptied.
    fn adopt_ports(&mut self, read: &[(u32, u32)], now: Duration) -> Vec<MapOp> {
        let backends = self.services.values().filter(|service| service.table.is_some());
        let ways = backends.flat_map(|service| &service.backends).map(|backend| &backend.value);
        let ways = ways.filter(|way| way.rung != rung::NONE && way.tx_port < self.capacities.backends);
        let named: BTreeSet<(u32, u32)> = ways.map(|way| (way.tx_port, way.ifindex)).collect();
        let mut ops = Vec::new();
        for &(id, ifindex) in read {
            if named.contains(&(id, ifindex)) && !self.tx_ports.contains_key(&ifindex) {
                self.tx_ports.insert(ifindex, id);
            } else {
                ops.push(MapOp::SetTxPort { id, ifindex: 0 });
            }
        }
        let used: BTreeSet<u32> = self.tx_ports.values().copied().collect();
        let ids: BTreeSet<u32> = named.iter().map(|(id, _)| *id).chain(used.iter().copied()).collect();
        self.tx_port_ids = Ids::in_use(self.capacities.backends, &ids);
        // Whose interface is gone: the next plan leads nobody there, and only then may it lead to another one.
        for id in ids.difference(&used) {
            self.tx_port_ids.free(*id, now);
        }
        ops
    }

    /// Takes up the endpoint of an installed backend. The older one of two services comes first.
    fn adopt_endpoint(&mut self, service: VipKey, backend: &InstalledBackend) {
        let way = abi::Backend { id: 0, flags: 0, address_change: 0, ..backend.value };
        let installed = self.endpoints.untracked().entry(backend.endpoint).or_insert_with(|| InstalledEndpoint {
            id: way.endpoint,
            value: None,
            key: backend.endpoint.to_abi(),
            way,
            services: Vec::new(),
        });
        let age = |way: &abi::Backend| (way.generation, way.rung != rung::NONE);
        if age(&installed.way) < age(&way) {
            installed.way = way;
        }
        installed.services.push(service);
    }
}

/// As people write it.
fn name_of(key: &ServiceKey) -> String {
    let socket = SocketAddr::new(key.address.into(), key.port);
    match Protocol::from_number(key.protocol) {
        Some(protocol) => format!("{socket} {protocol}"),
        None => format!("{socket} of protocol {}", key.protocol),
    }
}

/// Whether a key can be one of an endpoint or, without an interface, of a service.
fn is_endpoint(key: &ServiceKey) -> bool {
    key.port != 0 && key.pad == 0 && Protocol::from_number(key.protocol).is_some()
}

#[cfg(test)]
mod tests;
