//! Each service with its backends, its slots and its ranges.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::abi::{self, ServiceKey, backend_flags, member_flags, service_flags};

use super::{Arrays, ReadBack, UsedIds, is_endpoint, name_of};
use crate::{
    model::{Protocol, SELF_TEST_VIPS},
    plan::{
        history::{Limits, OWNERS_MAX, Position, Positions, SlotTable},
        maglev::TableSize,
        ops::MapOp,
        planner::{EndpointKey, Planner, VipKey, epoch},
        ranges::Range,
        service::{InstalledBackend, InstalledService, Rehashed, Table, lists_of, write_history},
    },
};

/// What is known so far.
pub(super) struct Services<'a, A> {
    pub(super) planner: Planner,
    pub(super) ops: Vec<MapOp>,
    pub(super) discarded: Vec<String>,
    pub(super) used: UsedIds,
    arrays: &'a A,
    now: Duration,
    /// Ids of endpoints, each of one.
    endpoints: HashMap<EndpointKey, u32>,
}

/// A service's ranges and what stands in them.
struct Found {
    size: TableSize,
    slots: Range,
    histories: Range,
    backends: Range,
    entries: Vec<abi::Backend>,
}

impl<'a, A: Arrays> Services<'a, A> {
    pub(super) fn new(planner: Planner, arrays: &'a A, now: Duration) -> Self {
        let (ops, discarded, used, endpoints) = Default::default();
        Self { planner, ops, discarded, used, arrays, now, endpoints }
    }

    /// Takes up each service that is understood, and removes the others.
    pub(super) fn adopt(&mut self, read_back: &ReadBack) {
        let mut members: HashMap<ServiceKey, Vec<(u32, &abi::Member)>> = HashMap::new();
        for (id, member) in read_back.members.iter().filter(|(_, member)| member.flags & member_flags::USED != 0) {
            members.entry(member.service).or_default().push((*id, member));
        }
        let mut services: BTreeMap<(bool, VipKey), abi::Service> = BTreeMap::new();
        for (key, value) in &read_back.services {
            match vip_of(key) {
                _ if is_self_test(key, value) => self.ops.push(MapOp::RemoveService { key: *key }),
                // What is written in the entries of others decides where it contradicts what is not.
                Some(vip) => drop(services.insert((value.backends_count == 0, vip), *value)),
                None => self.discard(key, "no key of a service"),
            }
        }
        for ((_, vip), value) in services {
            let key = vip.to_abi();
            let members = members.remove(&key).unwrap_or_default();
            match self.service(vip, value, members) {
                Ok(service) => self.planner.services.insert(vip, service),
                Err(why) => self.discard(&key, &why),
            }
        }
        self.share_endpoints();
    }

    fn discard(&mut self, key: &ServiceKey, why: &str) {
        self.discarded.push(format!("service {}: {why}", name_of(key)));
        self.ops.push(MapOp::RemoveService { key: *key });
    }

    fn service(
        &mut self,
        vip: VipKey,
        value: abi::Service,
        members: Vec<(u32, &abi::Member)>,
    ) -> Result<InstalledService, String> {
        let capacity = self.planner.capacities.services;
        if value.id >= capacity {
            return Err(format!("its id {} is not below the capacity of {capacity}", value.id));
        }
        if self.used.services.contains(&value.id) {
            return Err(format!("another service has its id {}", value.id));
        }
        let found = if value.backends_count == 0 { None } else { Some(self.ranges(&value)?) };
        self.used.services.insert(value.id);
        let entries = found.as_ref().map(|found| found.entries.as_slice());
        let mut backends = self.backends(&vip, members, entries);
        let identity = |backend: &InstalledBackend| (backend.endpoint.address, backend.endpoint.port);
        let positions = Positions::in_use(backends.iter().map(|backend| (identity(backend), backend.position)));
        let table = found.map(|found| self.table(&vip, &value, found, &positions, &mut backends));
        let is_rehashed = value.flags & service_flags::REHASHED != 0 && vip.protocol == Protocol::Tcp;
        let unheard: BTreeSet<Position> = backends.iter().map(|backend| backend.position).collect();
        let rehashed = (is_rehashed && table.is_some()).then_some(Rehashed { since: self.now, unheard });
        let size = table.as_ref().map(|table| table.slots.size());
        // Without what the table is of, the next plan computes it anew: it may be half written.
        let table_of = Vec::new();
        Ok(InstalledService { value, backends, positions, table, size, table_of, rehashed, replies: None })
    }

    /// The ranges that a service names, and its entries of `backends`.
    fn ranges(&mut self, value: &abi::Service) -> Result<Found, String> {
        let size = 1usize.checked_shl(value.slots_log2.into()).and_then(TableSize::from_slots);
        let size = size.ok_or_else(|| format!("2^{} slots are no Maglev table", value.slots_log2))?;
        let entries = match value.backends_count {
            // One more does not fit into the field, and has no position.
            u16::MAX => 1 << u16::BITS,
            count => count.into(),
        };
        let lists = u32::from(lists_of(size)).max(1).next_power_of_two();
        let slots = Range { offset: value.slots, len: size.slots() as u32 };
        let histories = Range { offset: value.histories, len: lists };
        let backends = Range { offset: value.backends, len: entries };
        let planner = &mut self.planner;
        let parts = [
            ("slots", &mut planner.slots, slots),
            ("histories", &mut planner.histories, histories),
            ("backends", &mut planner.backend_ranges, backends),
        ];
        let mut reserved = Vec::with_capacity(parts.len());
        for (what, ranges, range) in parts {
            match ranges.reserve(range) {
                Ok(()) => reserved.push((ranges, range)),
                Err(error) => {
                    reserved.into_iter().for_each(|(ranges, range)| ranges.free(range, epoch(self.now)));
                    return Err(format!("{what}: {error}"));
                }
            }
        }
        let entry = |at| self.arrays.backend(at).unwrap_or_default();
        let entries = (backends.offset..backends.offset + backends.len).map(entry).collect();
        Ok(Found { size, slots, histories, backends, entries })
    }

    /// The members that are backends of the service, by position. Where there are no entries, because no backend ever
    /// took a connection, all are; of two that contradict each other, the one that came last.
    fn backends(
        &mut self,
        vip: &VipKey,
        mut members: Vec<(u32, &abi::Member)>,
        entries: Option<&[abi::Backend]>,
    ) -> Vec<InstalledBackend> {
        members.sort_unstable_by_key(|(id, member)| (std::cmp::Reverse(member.since), *id));
        let mut positions: BTreeMap<Position, InstalledBackend> = BTreeMap::new();
        let mut identities: BTreeSet<(IpAddr, u16)> = BTreeSet::new();
        for (id, member) in members {
            let is_direct = member.flags & member_flags::DIRECT != 0;
            let endpoint = EndpointKey {
                vip: is_direct.then_some(vip.address),
                ..EndpointKey::new(member.pod.into(), vip.protocol, member.port)
            };
            let position = Position(member.position);
            let identity = (endpoint.address, endpoint.port);
            let value = match entries {
                Some(entries) => entries.get(usize::from(position.0)).copied(),
                None => Some(unplaced(id, &endpoint, member.endpoint)),
            };
            let is_its = |value: &abi::Backend| {
                let there = (value.id, value.address, value.port, value.endpoint);
                there == (id, endpoint.local_address().into(), endpoint.port, member.endpoint)
            };
            let is_free = !positions.contains_key(&position) && !identities.contains(&identity);
            let value = value.filter(|value| position != Position::NONE && is_its(value) && is_free);
            let Some(value) = value.filter(|_| self.claim(id, &endpoint, member.endpoint)) else { continue };
            identities.insert(identity);
            let (weight, drain) = (member.weight, member.flags & member_flags::DRAIN != 0);
            let backend = InstalledBackend { endpoint, value, position, share: 0, weight, drain, since: member.since };
            let value = backend.member(vip);
            if value != *member {
                self.ops.push(MapOp::SetMember { id, value });
            }
            positions.insert(position, backend);
        }
        positions.into_values().collect()
    }

    /// Notes a backend's ids, unless they are others' or beyond the capacity.
    fn claim(&mut self, id: u32, endpoint: &EndpointKey, endpoint_id: u32) -> bool {
        let capacity = self.planner.capacities.backends;
        let is_its = match self.endpoints.get(endpoint) {
            Some(known) => *known == endpoint_id,
            None => !self.used.endpoints.contains(&endpoint_id),
        };
        let is_claimed = is_its && id < capacity && endpoint_id < capacity && self.used.backends.insert(id);
        if is_claimed {
            self.used.endpoints.insert(endpoint_id);
            self.endpoints.insert(*endpoint, endpoint_id);
        }
        is_claimed
    }

    /// The slots, with owners and histories that exist; what each backend owns.
    fn table(
        &mut self,
        vip: &VipKey,
        value: &abi::Service,
        found: Found,
        positions: &Positions,
        backends: &mut [InstalledBackend],
    ) -> Table {
        let (slot_range, history_range) = (found.slots, found.histories);
        let no_one = abi::Slot { owner: abi::NO_OWNER, history: 0 };
        let slot = |at| self.arrays.slot(at).unwrap_or(no_one);
        let slots = (slot_range.offset..slot_range.offset + slot_range.len).map(slot).collect();
        let is_kept = value.flags & service_flags::AFFINITY != 0;
        let owners = if vip.protocol == Protocol::Tcp || is_kept { OWNERS_MAX } else { 0 };
        let limits = Limits { lists: lists_of(found.size), owners };
        let history = |place| self.arrays.history(history_range.offset + u32::from(place));
        let exists = |position| positions.contains(position);
        let (slots, change) = SlotTable::read_back((found.size, limits), slots, history, exists, self.now);
        if !change.slots.is_empty() {
            let count = change.slots.len();
            self.discarded.push(format!("service {}: owners of {count} slots", name_of(&vip.to_abi())));
            let lists = change.lists.iter();
            self.ops.extend(lists.map(|(place, list)| write_history(history_range.offset, *place, list)));
            self.ops.push(MapOp::UpdateSlots { offset: slot_range.offset, slots: change.slots });
        }
        let mut shares = vec![0u32; positions.end()];
        for owner in slots.owners().filter(|owner| *owner != abi::NO_OWNER) {
            shares[usize::from(owner)] += 1;
        }
        for backend in backends {
            backend.share = shares[usize::from(backend.position.0)];
        }
        let history_range = Some(history_range);
        Table { slots: Arc::new(slots), slot_range, history_range, backend_range: found.backends }
    }

    /// Endpoints by what all their services have, in the order in which they got them.
    fn share_endpoints(&mut self) {
        let services = std::mem::take(&mut self.planner.services);
        let mut all: Vec<(u64, &VipKey, &InstalledBackend)> = Vec::new();
        for (vip, service) in services.iter() {
            all.extend(service.backends.iter().map(|backend| (backend.since, vip, backend)));
        }
        all.sort_by_key(|(since, ..)| *since);
        self.planner.sequence = all.last().map_or(0, |(since, ..)| since.saturating_add(1));
        for (_, vip, backend) in all {
            self.planner.adopt_endpoint(*vip, backend);
            let is_tcp = vip.protocol == Protocol::Tcp;
            if is_tcp && backend.value.flags & backend_flags::OPAQUE != 0 && backend.value.netns_id != abi::NO_NETNS {
                self.planner.opaque.insert(backend.endpoint);
            }
        }
        self.planner.services = services;
    }
}

/// A backend that no entry says more of.
fn unplaced(id: u32, endpoint: &EndpointKey, endpoint_id: u32) -> abi::Backend {
    abi::Backend {
        address: endpoint.local_address().into(),
        id,
        endpoint: endpoint_id,
        port: endpoint.port,
        netns_id: abi::NO_NETNS,
        ..abi::Backend::default()
    }
}

fn vip_of(key: &ServiceKey) -> Option<VipKey> {
    let protocol = Protocol::from_number(key.protocol).filter(|_| is_endpoint(key) && key.interface == 0)?;
    Some(VipKey::new(key.address.into(), protocol, key.port))
}

/// What the question for a rung leaves where the agent is killed: a service of one slot, under a VIP of its own or one
/// that a pod owns.
fn is_self_test(key: &ServiceKey, value: &abi::Service) -> bool {
    let has_one_slot = (value.slots_log2, value.backends_count, value.flags) == (0, 1, 0);
    has_one_slot || SELF_TEST_VIPS.contains(&key.address.into())
}
