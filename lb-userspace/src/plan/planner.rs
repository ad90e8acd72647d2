//! From a snapshot and the places of its pods to the writes that make the maps say so.
//!
//! Pure: `now` is an argument. The planner holds what is installed; a plan that fails changes nothing of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use lb_common::abi::{self, ServiceKey, endpoint_flags};
use thiserror::Error;

use super::{
    ids::Ids,
    maglev,
    ops::MapOp,
    ranges::{Epoch, Ranges},
    service::{InstalledService, history_entries},
};
use crate::model::{Backend, Capacities, Protocol, ReplyMode, Rung, RungChoice, Service, Snapshot};

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
    pub(super) services: BTreeMap<VipKey, InstalledService>,
    pub(super) endpoints: BTreeMap<EndpointKey, InstalledEndpoint>,
    pub(super) tx_ports: BTreeMap<u32, u32>,
    pub(super) vips: BTreeMap<IpAddr, u32>,
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
}

impl Planner {
    /// Empty maps with these capacities.
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            hertz: 1000,
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            tx_ports: BTreeMap::new(),
            vips: BTreeMap::new(),
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
        }
    }

    /// The same for a kernel with so many jiffies in a second.
    #[must_use]
    pub fn at_hertz(self, hertz: u64) -> Self {
        Self { hertz, ..self }
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
    pub const fn services(&self) -> &BTreeMap<VipKey, InstalledService> {
        &self.services
    }

    /// Installed endpoints.
    pub const fn endpoints(&self) -> &BTreeMap<EndpointKey, InstalledEndpoint> {
        &self.endpoints
    }

    /// Installed VIPs.
    pub const fn vips(&self) -> &BTreeMap<IpAddr, u32> {
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

    /// The writes that bring the maps to `snapshot`. On an error nothing is planned and nothing changed.
    pub fn plan(&mut self, snapshot: &Snapshot, places: &Places, now: Duration) -> Result<Vec<MapOp>, PlanError> {
        let mut next = self.clone();
        let mut steps = Steps { now, ..Steps::default() };
        next.remove_services(snapshot, &mut steps);
        next.place_endpoints(snapshot, places, &mut steps)?;
        next.write_services(snapshot, &mut steps)?;
        next.write_endpoints(snapshot, &mut steps);
        next.drop_endpoints(snapshot, &mut steps);
        next.count_vips(snapshot, &mut steps);
        *self = next;
        let Steps { prepare, endpoints, show, hide, remove, forget, .. } = steps;
        Ok([hide, prepare, endpoints, show, remove, forget].concat())
    }

    fn remove_services(&mut self, snapshot: &Snapshot, steps: &mut Steps) {
        let wanted: BTreeSet<VipKey> = snapshot.services.iter().map(vip_key).collect();
        let gone: Vec<VipKey> = self.services.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            let Some(service) = self.services.remove(&key) else { continue };
            steps.hide.push(MapOp::RemoveService { key: key.to_abi() });
            self.free_service(key, &service, steps);
            for endpoint in self.endpoints.values_mut() {
                endpoint.services.retain(|service| *service != key);
            }
        }
    }

    pub(super) fn free_backend(&mut self, id: u32, service: VipKey, steps: &mut Steps) {
        steps.forget.push(MapOp::SetMember { id, value: abi::Member::default() });
        self.leaving.insert(id, service);
        self.backend_ids.free(id, steps.now);
    }

    /// Endpoints and the ports that lead to them: nothing points to a new one yet.
    fn place_endpoints(&mut self, snapshot: &Snapshot, places: &Places, steps: &mut Steps) -> Result<(), PlanError> {
        let mut used = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for service in &snapshot.services {
            for backend in &service.backends {
                let key = EndpointKey::of(service, backend);
                if !seen.insert(key) {
                    continue;
                }
                let place = places.get(&(backend.address, service.rung));
                let tx_port = match place {
                    Some(place) => self.tx_port(place.ifindex, &mut used, steps)?,
                    None => 0,
                };
                self.place_endpoint(key, place, tx_port)?;
            }
        }
        let stale: Vec<u32> = self.tx_ports.keys().filter(|key| !used.contains(*key)).copied().collect();
        for key in stale {
            if let Some(id) = self.tx_ports.remove(&key) {
                steps.remove.push(MapOp::SetTxPort { id, ifindex: 0 });
                self.tx_port_ids.free(id, steps.now);
            }
        }
        Ok(())
    }

    fn tx_port(&mut self, ifindex: u32, used: &mut BTreeSet<u32>, steps: &mut Steps) -> Result<u32, PlanError> {
        used.insert(ifindex);
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
        match self.endpoints.get_mut(&key) {
            Some(installed) if installed.way == way => {}
            Some(installed) => {
                way.generation = generation.wrapping_add(1);
                installed.way = way;
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

    fn write_services(&mut self, snapshot: &Snapshot, steps: &mut Steps) -> Result<(), PlanError> {
        let mut wanted: BTreeMap<EndpointKey, Vec<VipKey>> = BTreeMap::new();
        for service in &snapshot.services {
            for backend in &service.backends {
                wanted.entry(EndpointKey::of(service, backend)).or_default().push(vip_key(service));
            }
        }
        for (endpoint, installed) in &mut self.endpoints {
            // The order is that of age: who stays keeps his place, who comes stands last.
            let services = wanted.remove(endpoint).unwrap_or_default();
            installed.services.retain(|service| services.contains(service));
            let come: Vec<VipKey> = services.into_iter().filter(|s| !installed.services.contains(s)).collect();
            installed.services.extend(come);
        }
        let replies: BTreeMap<VipKey, ReplyMode> = snapshot.services.iter().map(|s| (vip_key(s), s.replies)).collect();
        for service in &snapshot.services {
            self.write_service(service, &replies, steps)?;
        }
        Ok(())
    }

    fn write_endpoints(&mut self, snapshot: &Snapshot, steps: &mut Steps) {
        let replies: BTreeMap<VipKey, ReplyMode> = snapshot.services.iter().map(|s| (vip_key(s), s.replies)).collect();
        let mut ids: HashMap<(VipKey, EndpointKey), u32> = HashMap::new();
        for (vip, service) in &self.services {
            ids.extend(service.backends.iter().map(|backend| ((*vip, backend.endpoint), backend.value.id)));
        }
        let (mut moved, mut gone, mut set) = (Vec::new(), Vec::new(), Vec::new());
        for (key, installed) in &mut self.endpoints {
            let is_opaque = Self::is_opaque(&self.opaque, key, &installed.way);
            let opaque = if is_opaque { endpoint_flags::OPAQUE } else { 0 };
            let value = default_service(installed, &replies).and_then(|default| {
                Some(abi::Endpoint {
                    vip: default.address.into(),
                    vip_port: default.port,
                    flags: flags_of(installed, &replies) | opaque,
                    id: installed.id,
                    backend: *ids.get(&(default, *key))?,
                    netns_id: installed.way.netns_id,
                })
            });
            // A pod that owns its VIP is known by its interface, and not at all without one.
            let value = value.filter(|_| key.vip.is_none() || installed.way.ifindex != 0);
            let at = if key.vip.is_some() { key.to_abi().at(installed.way.ifindex) } else { key.to_abi() };
            match (installed.value, value) {
                (Some(_), None) => gone.push(installed.key),
                (Some(_), Some(_)) if at != installed.key => moved.push(installed.key),
                _ => {}
            }
            if let Some(value) = value.filter(|_| value != installed.value || at != installed.key) {
                set.push(MapOp::SetEndpoint { key: at, value });
            }
            (installed.value, installed.key) = (value, at);
        }
        // Before what takes its place, which may need the room.
        steps.endpoints.extend(self.without_endpoints(&moved));
        steps.endpoints.extend(set);
        steps.remove.extend(self.without_endpoints(&gone));
    }

    /// Takes keys out of `endpoints`, but for those that another endpoint has now: two addresses of one pod are one at
    /// its interface.
    fn without_endpoints(&self, keys: &[ServiceKey]) -> Vec<MapOp> {
        let heir = |key| self.endpoints.values().filter(|other| other.key == key).find_map(|other| other.value);
        let op = |&key| match heir(key) {
            Some(value) => MapOp::SetEndpoint { key, value },
            None => MapOp::RemoveEndpoint { key },
        };
        keys.iter().map(op).collect()
    }

    fn drop_endpoints(&mut self, snapshot: &Snapshot, steps: &mut Steps) {
        let wanted: BTreeSet<EndpointKey> =
            snapshot.services.iter().flat_map(|s| s.backends.iter().map(|b| EndpointKey::of(s, b))).collect();
        let gone: Vec<EndpointKey> = self.endpoints.keys().filter(|key| !wanted.contains(key)).copied().collect();
        let mut keys = Vec::new();
        for key in gone {
            let Some(installed) = self.endpoints.remove(&key) else { continue };
            keys.extend(installed.value.map(|_| installed.key));
            self.endpoint_ids.free(installed.id, steps.now);
        }
        steps.remove.extend(self.without_endpoints(&keys));
    }

    /// A VIP is one after its first service is there, and no more before the last one goes.
    fn count_vips(&mut self, snapshot: &Snapshot, steps: &mut Steps) {
        let mut wanted: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for service in &snapshot.services {
            *wanted.entry(service.vip).or_default() += 1;
        }
        for (&vip, &services) in &wanted {
            if self.vips.get(&vip) != Some(&services) {
                steps.show.push(MapOp::SetVip { address: vip.into(), services });
            }
        }
        for &vip in self.vips.keys().filter(|vip| !wanted.contains_key(vip)) {
            steps.hide.insert(0, MapOp::SetVip { address: vip.into(), services: 0 });
        }
        self.vips = wanted;
    }
}

/// Writes by the phase in which they are applied.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) now: Duration,
    hide: Vec<MapOp>,
    pub(super) prepare: Vec<MapOp>,
    endpoints: Vec<MapOp>,
    pub(super) show: Vec<MapOp>,
    remove: Vec<MapOp>,
    forget: Vec<MapOp>,
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

/// Whose replies an endpoint's are where no record says otherwise: the oldest static service, else the oldest recorded.
pub(super) fn default_service(endpoint: &InstalledEndpoint, replies: &BTreeMap<VipKey, ReplyMode>) -> Option<VipKey> {
    let of_mode = |mode| endpoint.services.iter().find(|service| replies.get(service) == Some(&mode)).copied();
    of_mode(ReplyMode::Static).or_else(|| of_mode(ReplyMode::Recorded))
}

fn flags_of(endpoint: &InstalledEndpoint, replies: &BTreeMap<VipKey, ReplyMode>) -> u16 {
    let mut flags = if endpoint.way.rung == abi::rung::STACK { endpoint_flags::STACK } else { 0 };
    for service in &endpoint.services {
        flags |= match replies.get(service) {
            Some(ReplyMode::Static) => endpoint_flags::STATIC,
            Some(ReplyMode::Recorded) => endpoint_flags::RECORDED,
            Some(ReplyMode::None) | None => 0,
        };
    }
    flags
}

/// Ranges count time in milliseconds.
pub(super) const fn epoch(now: Duration) -> Epoch {
    Epoch(now.as_millis() as u64)
}

#[cfg(test)]
mod tests;
