//! From a snapshot and the places of its pods to the writes that make the maps say so.
//!
//! Pure: `now` is an argument. The planner holds what is installed; a plan that fails changes nothing of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_common::abi::{self, ServiceKey, endpoint_flags, member_flags, service_flags};
use thiserror::Error;

use super::{
    ids::Ids,
    maglev::{self, TableSize},
    ops::MapOp,
    ranges::{Epoch, Range, Ranges},
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
}

impl EndpointKey {
    /// The endpoint of a service's backend.
    pub const fn of(service: &Service, backend: &Backend) -> Self {
        Self { address: backend.address, protocol: service.protocol, port: backend.port }
    }

    /// As a key of the map `endpoints`.
    pub fn to_abi(self) -> ServiceKey {
        ServiceKey::new(self.address.into(), self.port, self.protocol.number())
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
    /// The pod's namespace as ours names it.
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

/// A service as the maps hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct InstalledService {
    /// Value in `services`.
    pub value: abi::Service,
    /// Member list, in the order of the configuration.
    pub members: Vec<abi::Member>,
    /// Slots of each member.
    pub shares: Vec<u32>,
    size: TableSize,
    slots: Option<Range>,
    member_range: Option<Range>,
    table_of: Vec<maglev::Member>,
}

/// A backend as the maps hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct InstalledBackend {
    /// Index in `backends`.
    pub id: u32,
    /// Value in `backends`.
    pub value: abi::Backend,
    /// Value in `endpoints`, where the return path is concerned with it.
    pub endpoint: Option<abi::Endpoint>,
    /// Services that have it, the oldest first.
    services: Vec<VipKey>,
}

/// Identifiers that nothing uses any more: records that name them must go before they are given out again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Service ids.
    pub services: Vec<u32>,
    /// Backend ids.
    pub backends: Vec<u32>,
}

/// What is installed, and how to get from there to what is wanted.
#[derive(Clone, Debug)]
pub struct Planner {
    capacities: Capacities,
    services: BTreeMap<VipKey, InstalledService>,
    backends: BTreeMap<EndpointKey, InstalledBackend>,
    next_hops: BTreeMap<(u32, [u8; 6]), (u32, abi::NextHop)>,
    vips: BTreeMap<IpAddr, u32>,
    service_ids: Ids,
    backend_ids: Ids,
    next_hop_ids: Ids,
    slots: Ranges,
    member_ranges: Ranges,
}

impl Planner {
    /// Empty maps with these capacities.
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            vips: BTreeMap::new(),
            service_ids: Ids::new(capacities.services),
            backend_ids: Ids::new(capacities.backends),
            next_hop_ids: Ids::new(capacities.backends),
            slots: Ranges::new(capacities.maglev_slots),
            member_ranges: Ranges::new(member_capacity(&capacities)),
        }
    }

    /// Installed services.
    pub const fn services(&self) -> &BTreeMap<VipKey, InstalledService> {
        &self.services
    }

    /// Installed backends.
    pub const fn backends(&self) -> &BTreeMap<EndpointKey, InstalledBackend> {
        &self.backends
    }

    /// Installed VIPs.
    pub const fn vips(&self) -> &BTreeMap<IpAddr, u32> {
        &self.vips
    }

    /// Identifiers whose records may be removed now; they are given out again after.
    pub fn retire(&mut self, now: Duration) -> Retired {
        let before = now.saturating_sub(GRACE);
        self.slots.release_before(epoch(before));
        self.member_ranges.release_before(epoch(before));
        self.next_hop_ids.release_before(before);
        Retired { services: self.service_ids.release_before(before), backends: self.backend_ids.release_before(before) }
    }

    /// The writes that bring the maps to `snapshot`. On an error nothing is planned and nothing changed.
    pub fn plan(&mut self, snapshot: &Snapshot, places: &Places, now: Duration) -> Result<Vec<MapOp>, PlanError> {
        let mut next = self.clone();
        let mut steps = Steps { now, ..Steps::default() };
        next.remove_services(snapshot, &mut steps);
        next.place_backends(snapshot, places, &mut steps)?;
        next.write_services(snapshot, &mut steps)?;
        next.write_endpoints(snapshot, &mut steps);
        next.drop_backends(snapshot, &mut steps);
        next.count_vips(snapshot, &mut steps);
        *self = next;
        let Steps { prepare, endpoints, show, hide, remove, .. } = steps;
        Ok([hide, prepare, endpoints, show, remove].concat())
    }

    fn remove_services(&mut self, snapshot: &Snapshot, steps: &mut Steps) {
        let wanted: BTreeSet<VipKey> = snapshot.services.iter().map(vip_key).collect();
        let gone: Vec<VipKey> = self.services.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            let Some(service) = self.services.remove(&key) else { continue };
            steps.hide.push(MapOp::RemoveService { key: key.to_abi() });
            self.service_ids.free(service.value.id, steps.now);
            for (ranges, range) in [(&mut self.slots, service.slots), (&mut self.member_ranges, service.member_range)] {
                if let Some(range) = range {
                    ranges.free(range, epoch(steps.now));
                }
            }
            for backend in self.backends.values_mut() {
                backend.services.retain(|service| *service != key);
            }
        }
    }

    /// Next hops and backends: nothing points to a new one yet.
    fn place_backends(&mut self, snapshot: &Snapshot, places: &Places, steps: &mut Steps) -> Result<(), PlanError> {
        let mut used = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for service in &snapshot.services {
            for backend in &service.backends {
                let key = EndpointKey::of(service, backend);
                if !seen.insert(key) {
                    continue;
                }
                let place = places.get(&(backend.address, service.rung));
                let next_hop = match place {
                    Some(place) => self.next_hop(place, &mut used, steps)?,
                    None => 0,
                };
                self.place_backend(key, place, next_hop, steps)?;
            }
        }
        let stale: Vec<(u32, [u8; 6])> = self.next_hops.keys().filter(|key| !used.contains(*key)).copied().collect();
        for key in stale {
            if let Some((id, _)) = self.next_hops.remove(&key) {
                steps.remove.push(MapOp::SetNextHop { id, value: abi::NextHop::default() });
                self.next_hop_ids.free(id, steps.now);
            }
        }
        Ok(())
    }

    fn next_hop(
        &mut self,
        place: &Place,
        used: &mut BTreeSet<(u32, [u8; 6])>,
        steps: &mut Steps,
    ) -> Result<u32, PlanError> {
        let key = (place.ifindex, place.destination_mac);
        used.insert(key);
        let value = abi::NextHop {
            ifindex: place.ifindex,
            mtu: place.mtu,
            destination_mac: place.destination_mac,
            source_mac: place.source_mac,
            pad: 0,
        };
        let id = match self.next_hops.get(&key) {
            Some((id, installed)) if *installed == value => return Ok(*id),
            Some((id, _)) => *id,
            None => self.next_hop_ids.take().ok_or_else(|| self.full_backends())?,
        };
        self.next_hops.insert(key, (id, value));
        steps.prepare.push(MapOp::SetNextHop { id, value });
        Ok(id)
    }

    fn place_backend(
        &mut self,
        key: EndpointKey,
        place: Option<&Place>,
        next_hop: u32,
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let installed = self.backends.get(&key);
        let (id, generation) = match installed {
            Some(backend) => (backend.id, backend.value.generation),
            None => (self.backend_ids.take().ok_or_else(|| self.full_backends())?, 0),
        };
        let mut value = abi::Backend {
            address: key.address.into(),
            port: key.port,
            protocol: key.protocol.number(),
            rung: place.map_or(abi::rung::NONE, |place| rung_number(place.rung)),
            next_hop,
            netns_id: place.and_then(|place| place.netns_id).unwrap_or(u32::MAX),
            generation,
            pad: 0,
            pad2: 0,
        };
        match self.backends.get_mut(&key) {
            Some(backend) if backend.value == value => {}
            Some(backend) => {
                value.generation = generation.wrapping_add(1);
                backend.value = value;
                steps.prepare.push(MapOp::SetBackend { id, value });
            }
            None => {
                steps.prepare.push(MapOp::ClearBackendCounters { id });
                steps.prepare.push(MapOp::SetBackend { id, value });
                self.backends.insert(key, InstalledBackend { id, value, endpoint: None, services: Vec::new() });
            }
        }
        Ok(())
    }

    fn full_backends(&self) -> PlanError {
        PlanError::Full { what: "another backend", key: "capacities.backends", capacity: self.capacities.backends }
    }

    fn write_services(&mut self, snapshot: &Snapshot, steps: &mut Steps) -> Result<(), PlanError> {
        let mut wanted: BTreeMap<EndpointKey, Vec<VipKey>> = BTreeMap::new();
        for service in &snapshot.services {
            for backend in &service.backends {
                wanted.entry(EndpointKey::of(service, backend)).or_default().push(vip_key(service));
            }
        }
        for (endpoint, installed) in &mut self.backends {
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

    fn write_service(
        &mut self,
        service: &Service,
        replies: &BTreeMap<VipKey, ReplyMode>,
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let key = vip_key(service);
        let table_of: Vec<maglev::Member> = service.backends.iter().map(table_member).collect();
        let members: Vec<abi::Member> = service.backends.iter().map(|b| self.member(service, b, replies)).collect();
        let old = self.services.get(&key).cloned();
        let id = match &old {
            Some(old) => old.value.id,
            None => {
                let capacity = self.capacities.services;
                let full = PlanError::Full { what: "another service", key: "capacities.services", capacity };
                let id = self.service_ids.take().ok_or(full)?;
                steps.prepare.push(MapOp::ClearServiceCounters { id });
                steps.prepare.push(MapOp::SetServiceAddress { id, key: key.to_abi() });
                id
            }
        };
        let flags = if service.replies == ReplyMode::Recorded { service_flags::RECORD } else { 0 };
        let same_backends =
            old.as_ref().is_some_and(|old| old.table_of == table_of && same_ids(&old.members, &members));
        let installed = match old {
            Some(mut old) if same_backends => {
                if old.members != members {
                    let offset = old.value.members;
                    steps.prepare.push(MapOp::UpdateMembers { offset, members: members.clone() });
                    old.members = members;
                }
                let value = abi::Service { flags, ..old.value };
                if value != old.value {
                    old.value = value;
                    steps.show.push(MapOp::SetService { key: key.to_abi(), value });
                }
                old
            }
            old => {
                let installed = self.new_table(id, flags, old.as_ref(), table_of, members, steps)?;
                steps.show.push(MapOp::SetService { key: key.to_abi(), value: installed.value });
                installed
            }
        };
        self.services.insert(key, installed);
        Ok(())
    }

    /// A table in a fresh range; the old range stays until no program can hold it.
    fn new_table(
        &mut self,
        id: u32,
        flags: u32,
        old: Option<&InstalledService>,
        table_of: Vec<maglev::Member>,
        members: Vec<abi::Member>,
        steps: &mut Steps,
    ) -> Result<InstalledService, PlanError> {
        let serving = table_of.iter().any(|member| member.weight != 0);
        let smallest = maglev::table_size(table_of.iter().map(|member| member.weight));
        // A table never shrinks: its size is part of what keeps flows where they are.
        let size = old.map_or(smallest, |old| old.size.max(smallest));
        let mut value = abi::Service { id, flags, ..abi::Service::default() };
        let mut shares = vec![0; members.len()];
        let (mut slots, mut member_range) = (None, None);
        if serving {
            let capacity = self.capacities.maglev_slots;
            let full = PlanError::Full { what: "a Maglev table", key: "capacities.maglevSlots", capacity };
            let range = self.slots.allocate(size.slots() as u32).ok_or(full)?;
            let owners = maglev::owners(&table_of, size);
            for owner in &owners {
                shares[usize::from(*owner)] += 1;
            }
            let table = owners.iter().map(|&owner| abi::Slot { owner, history: 0 }).collect();
            steps.prepare.push(MapOp::WriteSlots { offset: range.offset, slots: table });
            let list = self.member_ranges.allocate(members.len().next_power_of_two() as u32);
            let list = list.ok_or_else(|| self.full_backends())?;
            steps.prepare.push(MapOp::WriteMembers { offset: list.offset, members: members.clone() });
            value.slots = range.offset;
            value.slots_log2 = size.bits();
            value.members = list.offset;
            value.members_count = members.len() as u32;
            (slots, member_range) = (Some(range), Some(list));
        }
        if let Some(old) = old {
            for (ranges, range) in [(&mut self.slots, old.slots), (&mut self.member_ranges, old.member_range)] {
                if let Some(range) = range {
                    ranges.free(range, epoch(steps.now));
                }
            }
        }
        Ok(InstalledService { value, members, shares, size, slots, member_range, table_of })
    }

    fn member(&self, service: &Service, backend: &Backend, replies: &BTreeMap<VipKey, ReplyMode>) -> abi::Member {
        let Some(installed) = self.backends.get(&EndpointKey::of(service, backend)) else {
            return abi::Member::default();
        };
        let is_default = default_service(installed, replies).is_none_or(|default| default == vip_key(service));
        let record = service.replies == ReplyMode::Static && !is_default;
        abi::Member { backend: installed.id, flags: if record { member_flags::RECORD } else { 0 } }
    }

    fn write_endpoints(&mut self, snapshot: &Snapshot, steps: &mut Steps) {
        let replies: BTreeMap<VipKey, ReplyMode> = snapshot.services.iter().map(|s| (vip_key(s), s.replies)).collect();
        for (key, backend) in &mut self.backends {
            let endpoint = default_service(backend, &replies).and_then(|default| {
                let service = self.services.get(&default)?;
                Some(abi::Endpoint {
                    vip: default.address.into(),
                    vip_port: default.port,
                    flags: flags_of(backend, &replies),
                    backend: backend.id,
                    service: service.value.id,
                    pad: 0,
                })
            });
            if endpoint != backend.endpoint {
                match endpoint {
                    Some(value) => steps.endpoints.push(MapOp::SetEndpoint { key: key.to_abi(), value }),
                    None => steps.remove.push(MapOp::RemoveEndpoint { key: key.to_abi() }),
                }
                backend.endpoint = endpoint;
            }
        }
    }

    fn drop_backends(&mut self, snapshot: &Snapshot, steps: &mut Steps) {
        let wanted: BTreeSet<EndpointKey> =
            snapshot.services.iter().flat_map(|s| s.backends.iter().map(|b| EndpointKey::of(s, b))).collect();
        let gone: Vec<EndpointKey> = self.backends.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            let Some(backend) = self.backends.remove(&key) else { continue };
            if backend.endpoint.is_some() {
                steps.remove.push(MapOp::RemoveEndpoint { key: key.to_abi() });
            }
            steps.remove.push(MapOp::SetBackend { id: backend.id, value: abi::Backend::default() });
            self.backend_ids.free(backend.id, steps.now);
        }
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
struct Steps {
    now: Duration,
    hide: Vec<MapOp>,
    prepare: Vec<MapOp>,
    endpoints: Vec<MapOp>,
    show: Vec<MapOp>,
    remove: Vec<MapOp>,
}

/// Entries of `members`: each list takes the next power of two.
pub const fn member_capacity(capacities: &Capacities) -> u32 {
    capacities.backends.next_power_of_two().saturating_mul(4)
}

pub(super) fn vip_key(service: &Service) -> VipKey {
    VipKey { address: service.vip, protocol: service.protocol, port: service.port }
}

fn table_member(backend: &Backend) -> maglev::Member {
    let weight = if backend.drain { 0 } else { backend.weight };
    maglev::Member { identity: (backend.address, backend.port), weight }
}

fn same_ids(old: &[abi::Member], new: &[abi::Member]) -> bool {
    old.iter().map(|member| member.backend).eq(new.iter().map(|member| member.backend))
}

/// Whose replies a backend's are where no record says otherwise: the oldest static service, else the oldest recorded.
fn default_service(backend: &InstalledBackend, replies: &BTreeMap<VipKey, ReplyMode>) -> Option<VipKey> {
    let of_mode = |mode| backend.services.iter().find(|service| replies.get(service) == Some(&mode)).copied();
    of_mode(ReplyMode::Static).or_else(|| of_mode(ReplyMode::Recorded))
}

fn flags_of(backend: &InstalledBackend, replies: &BTreeMap<VipKey, ReplyMode>) -> u16 {
    let mut flags = if backend.value.rung == abi::rung::STACK { endpoint_flags::STACK } else { 0 };
    for service in &backend.services {
        flags |= match replies.get(service) {
            Some(ReplyMode::Static) => endpoint_flags::STATIC,
            Some(ReplyMode::Recorded) => endpoint_flags::RECORDED,
            Some(ReplyMode::None) | None => 0,
        };
    }
    flags
}

/// Ranges count time in milliseconds.
const fn epoch(now: Duration) -> Epoch {
    Epoch(now.as_millis() as u64)
}

#[cfg(test)]
mod tests;
