//! From a snapshot and the places of its pods to the writes that make the maps say so.
//!
//! Pure: `now` is an argument. The planner holds what is installed; a plan that fails changes nothing of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use lb_common::abi::{self, ServiceKey};
use thiserror::Error;

use super::{
    ahead::Ahead,
    difference::{Applied, Difference},
    ids::Ids,
    maglev,
    ops::MapOp,
    ranges::{Epoch, Ranges},
    service::{InstalledService, history_entries},
    tracked::Tracked,
};
use crate::model::{Backend, Capacities, Protocol, ReplyMode, Rung, RungChoice, Service};

/// How long something that was taken out of the maps is left alone, because a program may still hold it: programs
/// run for microseconds.
pub const GRACE: Duration = Duration::from_secs(1);

/// A pod's (address, protocol, port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The pod's address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The pod's port.
    pub port: u16,
    /// The VIP that the pod owns (rung `direct`): under each it is another endpoint.
    pub vip: Option<IpAddr>,
}

impl EndpointKey {
    /// Of a pod that is known by its own address; of a VIP.
    pub const fn new(address: IpAddr, protocol: Protocol, port: u16) -> Self {
        Self { address, protocol, port, vip: None }
    }

    /// The endpoint of a service's backend.
    pub const fn of(service: &Service, backend: &Backend) -> Self {
        let vip = service.rung.owned_vip();
        Self { vip, ..Self::new(backend.address, service.protocol, backend.port) }
    }

    /// The first of an address, in the order of endpoints.
    pub(super) const fn first_of(address: IpAddr) -> Self {
        Self::new(address, Protocol::Tcp, 0)
    }

    /// The address that the pod's sockets have.
    pub fn local_address(&self) -> IpAddr {
        self.vip.unwrap_or(self.address)
    }

    /// As a key of the map `services`, and of `endpoints` where the pod is not known by its interface.
    pub fn to_abi(self) -> ServiceKey {
        ServiceKey::new(self.local_address().into(), self.port, self.protocol.number())
    }
}

/// A service's (VIP, protocol, port).
pub type VipKey = EndpointKey;

/// How packets reach a pod's address now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Host-side interface.
    pub ifindex: u32,
    /// Bytes of the largest IP packet that the pod's interface takes.
    pub mtu: u32,
    /// The pod's MAC.
    pub destination_mac: [u8; 6],
    /// The host-side interface's MAC.
    pub source_mac: [u8; 6],
    /// The pod's namespace as ours names it, or [`abi::HOST_NETNS`].
    pub netns_id: Option<u32>,
    /// The rung that passed its self-test.
    pub rung: Rung,
}

/// Places by pod address and asked-for rung; an address that is missing cannot be reached.
pub type Places = BTreeMap<(IpAddr, RungChoice), Place>;

/// The rung as the maps write it.
pub const fn rung_number(rung: Rung) -> u8 {
    match rung {
        Rung::Redirect => abi::rung::REDIRECT,
        Rung::Peer => abi::rung::PEER,
        Rung::Stack => abi::rung::STACK,
        Rung::Direct => abi::rung::DIRECT,
    }
}

/// Why a snapshot cannot be installed. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A capacity is used up.
    #[error("no room for {what}: capacity {key} is {capacity}; raise it and restart the agent")]
    Full {
        /// What there is no room for.
        what: &'static str,
        /// Configuration key.
        key: &'static str,
        /// Its value.
        capacity: u32,
    },
}

/// A pod's (address, protocol, port) as the maps hold it, whichever services have it.
#[derive(Clone, Debug, PartialEq)]
pub struct InstalledEndpoint {
    /// Index in `endpoint_bypasses`.
    pub id: u32,
    /// Value in `endpoints`, where the return path is concerned with it.
    pub value: Option<abi::Endpoint>,
    /// Key of that value.
    pub(super) key: ServiceKey,
    /// What is the same in every service that has it: the backend without its id and flags.
    pub(super) way: abi::Backend,
    /// Services that have it, the oldest first.
    pub(super) services: Vec<VipKey>,
}

impl InstalledEndpoint {
    /// How packets reach it.
    pub const fn way(&self) -> &abi::Backend {
        &self.way
    }
}

/// Identifiers that nothing uses any more: records that name them must go before they are given out again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Backend ids, and the service that each was one of.
    pub backends: Vec<(u32, VipKey)>,
    /// Endpoint ids.
    pub endpoints: Vec<u32>,
    /// Service ids.
    pub services: Vec<u32>,
}

/// What is installed, and how to get from there to what is wanted.
#[derive(Clone, Debug)]
pub struct Planner {
    pub(super) capacities: Capacities,
    /// Jiffies in a second, which the times of records are counted in.
    pub(super) hertz: u64,
    pub(super) services: Tracked<VipKey, InstalledService>,
    pub(super) endpoints: Tracked<EndpointKey, InstalledEndpoint>,
    pub(super) tx_ports: BTreeMap<u32, u32>,
    /// Endpoints that are reached through each interface.
    pub(super) port_users: HashMap<u32, usize>,
    pub(super) vips: Tracked<IpAddr, u32>,
    pub(super) service_ids: Ids,
    pub(super) backend_ids: Ids,
    pub(super) endpoint_ids: Ids,
    pub(super) tx_port_ids: Ids,
    pub(super) slots: Ranges,
    pub(super) histories: Ranges,
    pub(super) backend_ranges: Ranges,
    pub(super) opaque: BTreeSet<EndpointKey>,
    /// Backends that are gone and whose ids rest, by id.
    pub(super) leaving: BTreeMap<u32, VipKey>,
    /// Backends that have come so far: [`abi::Member::since`] of the next one.
    pub(super) sequence: u64,
    /// Tables for the next plan.
    pub(super) ahead: Ahead,
    /// What the last plan was made from; `None` where that is not known, and everything is looked at.
    pub(super) applied: Option<Applied>,
}

impl Planner {
    /// Empty maps with these capacities.
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            hertz: 1000,
            services: Tracked::default(),
            endpoints: Tracked::default(),
            tx_ports: BTreeMap::new(),
            port_users: HashMap::new(),
            vips: Tracked::default(),
            service_ids: Ids::new(capacities.services),
            backend_ids: Ids::new(capacities.backends),
            endpoint_ids: Ids::new(capacities.backends),
            tx_port_ids: Ids::new(capacities.backends),
            slots: Ranges::new(capacities.maglev_slots),
            histories: Ranges::new(history_entries(capacities.maglev_slots)),
            backend_ranges: Ranges::new(backend_entries(&capacities)),
            opaque: BTreeSet::new(),
            leaving: BTreeMap::new(),
            sequence: 0,
            ahead: Ahead::default(),
            applied: None,
        }
    }

    /// The same for a kernel with so many jiffies in a second.
    #[must_use]
    pub fn at_hertz(self, hertz: u64) -> Self {
        Self { hertz, ..self }
    }

    /// With tables for the next plan.
    #[must_use]
    pub fn with_ahead(self, ahead: Ahead) -> Self {
        Self { ahead, ..self }
    }

    /// Endpoints of TCP whose sockets cannot be seen, beside those that cannot be asked; planned from the next plan on.
    pub fn set_opaque(&mut self, opaque: BTreeSet<EndpointKey>) {
        self.opaque = opaque;
    }

    /// Whether an endpoint's connections are recorded because nobody can ask for them.
    pub(super) fn is_opaque(opaque: &BTreeSet<EndpointKey>, key: &EndpointKey, way: &abi::Backend) -> bool {
        let is_unasked = way.rung != abi::rung::NONE && way.netns_id == abi::NO_NETNS;
        key.protocol == Protocol::Tcp && (is_unasked || opaque.contains(key))
    }

    /// Those endpoints.
    pub const fn opaque(&self) -> &BTreeSet<EndpointKey> {
        &self.opaque
    }

    /// Installed services.
    pub fn services(&self) -> &BTreeMap<VipKey, InstalledService> {
        &self.services
    }

    /// Installed endpoints.
    pub fn endpoints(&self) -> &BTreeMap<EndpointKey, InstalledEndpoint> {
        &self.endpoints
    }

    /// Installed VIPs.
    pub fn vips(&self) -> &BTreeMap<IpAddr, u32> {
        &self.vips
    }

    /// Backends that have gone, with the service that each was one of, until they are retired: packets that were in
    /// a program's hands may still be counted.
    pub const fn leaving(&self) -> &BTreeMap<u32, VipKey> {
        &self.leaving
    }

    /// Identifiers whose records may be removed now; they are given out again after.
    pub fn retire(&mut self, now: Duration) -> Retired {
        let before = now.saturating_sub(GRACE);
        self.slots.release_before(epoch(before));
        self.histories.release_before(epoch(before));
        self.release_tables(before);
        self.backend_ranges.release_before(epoch(before));
        self.tx_port_ids.release_before(before);
        let backends = self.backend_ids.release_before(before);
        let backends = backends.into_iter().filter_map(|id| Some((id, self.leaving.remove(&id)?)));
        Retired {
            backends: backends.collect(),
            endpoints: self.endpoint_ids.release_before(before),
            services: self.service_ids.release_before(before),
        }
    }

    /// Plans what differs. On an error some of it may be planned: see [`Planner::plan`].
    pub(super) fn plan_difference(
        &mut self,
        difference: &Difference,
        places: &Places,
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let wanted = difference.wanted();
        self.remove_services(difference, steps);
        self.place_endpoints(difference, &wanted, places, steps)?;
        self.write_services(difference, &wanted, steps)?;
        self.write_endpoints(difference, steps);
        self.drop_endpoints(difference, steps);
        self.count_vips(difference, steps);
        Ok(())
    }

    fn remove_services(&mut self, difference: &Difference, steps: &mut Steps) {
        for key in &difference.gone {
            let Some(service) = self.services.remove(key) else { continue };
            steps.hide.push(MapOp::RemoveService { key: key.to_abi() });
            self.free_service(*key, &service, steps);
        }
    }

    pub(super) fn free_backend(&mut self, id: u32, service: VipKey, steps: &mut Steps) {
        steps.forget.push(MapOp::SetMember { id, value: abi::Member::default() });
        self.leaving.insert(id, service);
        self.backend_ids.free(id, steps.now);
    }

    /// Endpoints and the ports that lead to them: nothing points to a new one yet.
    fn place_endpoints(
        &mut self,
        difference: &Difference,
        wanted: &Wanted,
        places: &Places,
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        if difference.is_whole {
            self.port_users.clear();
        } else {
            let installed = difference.endpoints.iter().filter_map(|key| self.endpoints.get(key));
            for way in installed.map(|endpoint| &endpoint.way).filter(|way| way.rung != abi::rung::NONE) {
                if let Some(users) = self.port_users.get_mut(&way.ifindex) {
                    *users -= 1;
                }
            }
        }
        let mut seen = BTreeSet::new();
        for service in &difference.services {
            for backend in &service.backends {
                let key = EndpointKey::of(service, backend);
                if !wanted.contains_key(&key) || !seen.insert(key) {
                    continue;
                }
                let place = places.get(&(backend.address, service.rung));
                let tx_port = match place {
                    Some(place) => self.tx_port(place.ifindex, steps)?,
                    None => 0,
                };
                self.place_endpoint(key, place, tx_port)?;
            }
        }
        let users = &self.port_users;
        let is_used = |ifindex| users.get(ifindex).is_some_and(|users| *users != 0);
        let stale: Vec<u32> = self.tx_ports.keys().filter(|ifindex| !is_used(ifindex)).copied().collect();
        for key in stale {
            self.port_users.remove(&key);
            if let Some(id) = self.tx_ports.remove(&key) {
                steps.remove.push(MapOp::SetTxPort { id, ifindex: 0 });
                self.tx_port_ids.free(id, steps.now);
            }
        }
        Ok(())
    }

    fn tx_port(&mut self, ifindex: u32, steps: &mut Steps) -> Result<u32, PlanError> {
        *self.port_users.entry(ifindex).or_default() += 1;
        if let Some(id) = self.tx_ports.get(&ifindex) {
            return Ok(*id);
        }
        let id = self.tx_port_ids.take().ok_or_else(|| self.full_backends())?;
        self.tx_ports.insert(ifindex, id);
        steps.prepare.push(MapOp::SetTxPort { id, ifindex });
        Ok(id)
    }

    fn place_endpoint(&mut self, key: EndpointKey, place: Option<&Place>, tx_port: u32) -> Result<(), PlanError> {
        let known = self.endpoints.get(&key).map(|installed| (installed.id, installed.way.generation));
        let (id, generation) = match known {
            Some(known) => known,
            None => (self.endpoint_ids.take().ok_or_else(|| self.full_backends())?, 0),
        };
        let mut way = abi::Backend {
            address: key.local_address().into(),
            port: key.port,
            endpoint: id,
            netns_id: abi::NO_NETNS,
            generation,
            ..abi::Backend::default()
        };
        if let Some(place) = place {
            way.rung = rung_number(place.rung);
            (way.ifindex, way.tx_port, way.mtu) = (place.ifindex, tx_port, place.mtu);
            (way.destination_mac, way.source_mac) = (place.destination_mac, place.source_mac);
            way.netns_id = place.netns_id.unwrap_or(abi::NO_NETNS);
        }
        match self.endpoints.get(&key) {
            Some(installed) if installed.way == way => {}
            Some(_) => {
                way.generation = generation.wrapping_add(1);
                if let Some(installed) = self.endpoints.get_mut(&key) {
                    installed.way = way;
                }
            }
            None => {
                let installed = InstalledEndpoint { id, value: None, key: key.to_abi(), way, services: Vec::new() };
                self.endpoints.insert(key, installed);
            }
        }
        Ok(())
    }

    pub(super) fn full_backends(&self) -> PlanError {
        PlanError::Full { what: "another backend", key: "capacities.backends", capacity: self.capacities.backends }
    }

    fn write_services(&mut self, difference: &Difference, wanted: &Wanted, steps: &mut Steps) -> Result<(), PlanError> {
        for key in &difference.endpoints {
            let Some(installed) = self.endpoints.get(key) else { continue };
            // The order is that of age: who stays keeps his place, who comes stands last.
            let services: Vec<VipKey> = wanted.get(key).into_iter().flatten().map(|service| vip_key(service)).collect();
            let stay = installed.services.iter().filter(|service| services.contains(service));
            let come = services.iter().filter(|service| !installed.services.contains(service));
            let mut services: Vec<VipKey> = stay.chain(come).copied().collect();
            // Nearly all have one, and there are very many.
            services.shrink_to_fit();
            if services != installed.services
                && let Some(installed) = self.endpoints.get_mut(key)
            {
                installed.services = services;
            }
        }
        let replies: Replies = difference.services.iter().map(|s| (vip_key(s), s.replies)).collect();
        for service in &difference.services {
            self.write_service(service, &replies, steps)?;
        }
        Ok(())
    }

    /// A VIP is one after its first service is there, and no more before the last one goes.
    fn count_vips(&mut self, difference: &Difference, steps: &mut Steps) {
        let keys = difference.services.iter().map(|service| service.vip);
        let mut vips: BTreeSet<IpAddr> = keys.chain(difference.gone.iter().map(|key| key.address)).collect();
        if difference.is_whole {
            vips.extend(self.vips.keys());
        }
        for vip in vips {
            let of_vip = self.services.range(VipKey::first_of(vip)..).take_while(|(key, _)| key.address == vip);
            match of_vip.count() as u32 {
                0 if self.vips.remove(&vip).is_some() => {
                    steps.hide.insert(0, MapOp::SetVip { address: vip.into(), services: 0 });
                }
                0 => {}
                services if self.vips.get(&vip) == Some(&services) => {}
                services => {
                    self.vips.insert(vip, services);
                    steps.show.push(MapOp::SetVip { address: vip.into(), services });
                }
            }
        }
    }
}

/// By endpoint, the services that want it, in the snapshot's order.
type Wanted<'a> = BTreeMap<EndpointKey, Vec<&'a Service>>;

/// How replies are recognized, of services that are being written.
pub(super) type Replies = HashMap<VipKey, ReplyMode>;

/// Writes by the phase in which they are applied.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) now: Duration,
    pub(super) hide: Vec<MapOp>,
    pub(super) prepare: Vec<MapOp>,
    pub(super) endpoints: Vec<MapOp>,
    pub(super) show: Vec<MapOp>,
    pub(super) remove: Vec<MapOp>,
    pub(super) forget: Vec<MapOp>,
}

/// Entries of `backends`: each service's take the next power of two, twice while they are replaced.
pub const fn backend_entries(capacities: &Capacities) -> u32 {
    capacities.backends.next_power_of_two().saturating_mul(4)
}

pub(super) fn vip_key(service: &Service) -> VipKey {
    VipKey::new(service.vip, service.protocol, service.port)
}

pub(super) fn table_member(backend: &Backend) -> maglev::Member {
    let weight = if backend.drain { 0 } else { backend.weight };
    maglev::Member { identity: (backend.address, backend.port), weight }
}

/// Ranges count time in milliseconds.
pub(super) const fn epoch(now: Duration) -> Epoch {
    Epoch(now.as_millis() as u64)
}

#[cfg(test)]
mod tests;
