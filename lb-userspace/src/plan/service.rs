//! One service's part of the maps: its backends side by side, its slots with their histories.
//!
//! What programs read is never changed under them in a way that contradicts the service's entry: where a slot moves,
//! the slot alone is written, as one word; where the place of anything changes, backends and slots are written to fresh
//! ranges and the entry switches to both at once.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    abi::{self, COARSE_SHIFT, History, backend_flags, member_flags, service_flags},
    checksum,
};

use super::{
    history::{Change, Limits, List, OWNERS_MAX, Position, Positions, SETTLE, SlotTable, by_position},
    maglev::{self, TableSize},
    ops::MapOp,
    planner::{EndpointKey, PlanError, Planner, Replies, Steps, VipKey, epoch, table_member, vip_key},
    ranges::Range,
};
use crate::model::{Affinity, Protocol, ReplyMode, Service};

/// A service as the maps hold it.
#[derive(Clone, Debug)]
pub struct InstalledService {
    /// Value in `services`.
    pub value: abi::Service,
    /// Its backends, in the order of the configuration.
    pub backends: Vec<InstalledBackend>,
    pub(super) positions: Positions,
    /// Shared by copies of the planner: a plan that fails must leave the table as it was.
    pub(super) table: Option<Table>,
    /// Kept when the table goes: a table never shrinks.
    pub(super) size: Option<TableSize>,
    pub(super) table_of: Vec<maglev::Member>,
    /// TCP: affinity came or went, and with it another hash.
    pub(super) rehashed: Option<Rehashed>,
    /// How replies are recognized; the maps do not say it.
    pub(super) replies: Option<ReplyMode>,
}

/// What is not known yet of a service whose slots are chosen by another hash than before.
#[derive(Clone, Debug)]
pub(super) struct Rehashed {
    /// The change.
    pub(super) since: Duration,
    /// Backends that may still have connections which only the hash before leads to.
    pub(super) unheard: BTreeSet<Position>,
}

/// A backend of one service as the maps hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct InstalledBackend {
    /// The pod's (address, protocol, port).
    pub endpoint: EndpointKey,
    /// Value in `backends`.
    pub value: abi::Backend,
    /// Where in the service's range.
    pub position: Position,
    /// Slots that it owns.
    pub share: u32,
    /// Share of new connections, as configured.
    pub weight: u16,
    /// It takes no new connections, as configured.
    pub drain: bool,
    /// Which of all backends came before which.
    pub since: u64,
}

impl InstalledBackend {
    /// Its value in `members`.
    pub fn member(&self, service: &VipKey) -> abi::Member {
        let flags = [(true, member_flags::USED), (self.endpoint.vip.is_some(), member_flags::DIRECT)];
        let flags = flags.into_iter().chain([(self.drain, member_flags::DRAIN)]).filter(|(is_set, _)| *is_set);
        abi::Member {
            service: service.to_abi(),
            pod: self.endpoint.address.into(),
            since: self.since,
            endpoint: self.value.endpoint,
            port: self.endpoint.port,
            weight: self.weight,
            position: self.position.0,
            flags: flags.fold(0, |flags, (_, flag)| flags | flag),
            ..abi::Member::default()
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) slots: Arc<SlotTable>,
    pub(super) slot_range: Range,
    pub(super) history_range: Option<Range>,
    pub(super) backend_range: Range,
}

impl InstalledService {
    /// Whether this endpoint is one of its backends.
    pub fn has(&self, endpoint: &EndpointKey) -> bool {
        self.backends.iter().any(|backend| backend.endpoint == *endpoint)
    }

    /// Whether its clients are kept together by their address.
    pub const fn is_kept(&self) -> bool {
        self.value.flags & service_flags::AFFINITY != 0
    }

    /// Whether packets are offered to the owners of the slot that the other hash names, too.
    pub const fn is_rehashed(&self) -> bool {
        self.rehashed.is_some()
    }

    /// Backends that may still have connections which only the hash before leads to.
    pub fn unheard(&self) -> impl Iterator<Item = Position> {
        self.rehashed.iter().flat_map(|rehashed| rehashed.unheard.iter().copied())
    }

    /// The slots and their histories, where it has a table.
    pub fn slots(&self) -> Option<&SlotTable> {
        self.table.as_ref().map(|table| &*table.slots)
    }
}

/// Lists that a table of this size may have: as many as its share of the map.
pub(super) const fn lists_of(size: TableSize) -> u16 {
    let lists = size.slots() as u32 / SLOTS_PER_LIST;
    if lists > u16::MAX as u32 { u16::MAX } else { lists as u16 }
}

/// Ten backends in 2,048 slots, in a simulation of everything that happens to them, had 469 lists at most
/// (docs/steering.md); larger services have fewer for each slot.
const SLOTS_PER_LIST: u32 = 4;

/// Entries of `histories`: the share of each table, rounded up to powers of two.
pub const fn history_entries(maglev_slots: u32) -> u32 {
    if maglev_slots < SLOTS_PER_LIST { 1 } else { maglev_slots / SLOTS_PER_LIST }
}

impl Planner {
    pub(super) fn write_service(
        &mut self,
        service: &Service,
        replies: &Replies,
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let key = vip_key(service);
        let old = self.services.remove(&key);
        let mut next = match old.clone() {
            Some(old) => old,
            None => self.new_service()?,
        };
        let identities: Vec<_> = service.backends.iter().map(|backend| (backend.address, backend.port)).collect();
        let positions = next.positions.update(&identities, steps.now).map_err(|_| self.full_backends())?;
        let members;
        (next.backends, members) = self.backends(service, &positions, old.as_ref(), replies, steps)?;
        let table_of: Vec<maglev::Member> = service.backends.iter().map(table_member).collect();
        let serves = table_of.iter().any(|member| member.weight != 0);
        if next.table.is_some() && !service.backends.is_empty() || serves {
            let same = next.table.is_some() && next.table_of == table_of;
            next.table_of = table_of;
            let smallest = maglev::table_size(next.table_of.iter().map(|member| member.weight));
            let size = next.size.map_or(smallest, |size| size.max(smallest));
            next.size = Some(size);
            let limits = Limits { lists: lists_of(size), owners: remembered(service) };
            let column = (!same).then(|| by_position(&self.ahead.owners(&key, &next.table_of, size), &positions));
            let before = old.as_ref().map_or(&[][..], |old| &old.backends);
            self.write_table(&mut next, before, limits, column.as_deref(), steps)?;
        } else {
            next.table_of = table_of;
            if let Some(table) = next.table.take() {
                self.free_table(&table, steps.now);
            }
            next.value = abi::Service { id: next.value.id, ..abi::Service::default() };
        }
        // After what they name: a member whose entry has its id is one of the service.
        steps.prepare.extend(members);
        next.replies = Some(service.replies);
        next.rehash(service, old.as_ref(), steps.now);
        next.value.flags = flags(service, next.rehashed.is_some());
        next.value.affinity = service.affinity.map_or(0, |affinity| ticks(affinity, self.hertz));
        if next.backends.iter().any(|backend| backend.value.flags & backend_flags::OPAQUE != 0) {
            next.value.flags |= service_flags::OPAQUE;
        }
        if old.is_none_or(|old| old.value != next.value) {
            steps.show.push(MapOp::SetService { key: key.to_abi(), value: next.value });
        }
        self.services.insert(key, next);
        Ok(())
    }

    fn new_service(&mut self) -> Result<InstalledService, PlanError> {
        let capacity = self.capacities.services;
        let full = PlanError::Full { what: "another service", key: "capacities.services", capacity };
        let id = self.service_ids.take().ok_or(full)?;
        Ok(InstalledService {
            value: abi::Service { id, ..abi::Service::default() },
            backends: Vec::new(),
            positions: Positions::default(),
            table: None,
            size: None,
            table_of: Vec::new(),
            rehashed: None,
            replies: None,
        })
    }

    /// The service's backends, and what changes of `members`; who stays keeps his id.
    fn backends(
        &mut self,
        service: &Service,
        positions: &[Position],
        old: Option<&InstalledService>,
        replies: &Replies,
        steps: &mut Steps,
    ) -> Result<(Vec<InstalledBackend>, Vec<MapOp>), PlanError> {
        let key = vip_key(service);
        let mut known: HashMap<EndpointKey, &InstalledBackend> =
            old.iter().flat_map(|old| &old.backends).map(|backend| (backend.endpoint, backend)).collect();
        let mut members = Vec::new();
        let mut backends = Vec::with_capacity(service.backends.len());
        for (backend, &position) in service.backends.iter().zip(positions) {
            let endpoint = EndpointKey::of(service, backend);
            let before = known.remove(&endpoint);
            let (id, share, since) = match before {
                Some(before) => (before.value.id, before.share, before.since),
                None => {
                    let (id, has_counted) = self.backend_ids.take_noted().ok_or_else(|| self.full_backends())?;
                    if has_counted {
                        steps.prepare.push(MapOp::ClearBackendCounters { id });
                    }
                    steps.prepare.push(MapOp::SetBackendVip { id, key: key.to_abi() });
                    let since = self.sequence;
                    self.sequence = since.saturating_add(1);
                    (id, 0, since)
                }
            };
            let Some(installed) = self.endpoints.get(&endpoint) else { continue };
            let is_default = self.default_service(installed, replies).is_none_or(|default| default == key);
            let record = service.replies == ReplyMode::Static && !is_default;
            let drains = service.affinity.is_some() && (backend.drain || backend.weight == 0);
            let opaque = Self::is_opaque(self.opaque(), &endpoint, &installed.way);
            let flags =
                [(record, backend_flags::RECORD), (drains, backend_flags::DRAINS), (opaque, backend_flags::OPAQUE)];
            let flags = flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag);
            let is_v4 = key.address.is_ipv4();
            let address_change = checksum::change_address(key.address.into(), installed.way.address, is_v4);
            let value = abi::Backend { id, flags, address_change, ..installed.way };
            let (weight, drain) = (backend.weight, backend.drain);
            let installed = InstalledBackend { endpoint, value, position, share, weight, drain, since };
            if before.is_none_or(|before| (before.weight, before.drain, before.position) != (weight, drain, position)) {
                members.push(MapOp::SetMember { id, value: installed.member(&key) });
            }
            backends.push(installed);
        }
        let mut gone: Vec<u32> = known.into_values().map(|backend| backend.value.id).collect();
        gone.sort_unstable();
        for id in gone {
            self.free_backend(id, key, steps);
        }
        Ok((backends, members))
    }

    /// `column` are the slots' owners, where they may have changed.
    fn write_table(
        &mut self,
        service: &mut InstalledService,
        before: &[InstalledBackend],
        limits: Limits,
        column: Option<&[Position]>,
        steps: &mut Steps,
    ) -> Result<(), PlanError> {
        let (slots, change) = match &service.table {
            None => (Arc::new(SlotTable::of(column.unwrap_or_default(), limits)), Change::default()),
            Some(table) => {
                let mut slots = Arc::clone(&table.slots);
                if slots.remembered() != limits.owners {
                    Arc::make_mut(&mut slots).remember(limits.owners);
                }
                let mut change = Change::default();
                if let Some(column) = column {
                    let exists = |position| service.positions.contains(position);
                    let table = Arc::make_mut(&mut slots);
                    table.allow(limits.lists);
                    change = table.change(column, exists, steps.now);
                }
                (slots, change)
            }
        };
        if column.is_some() {
            let mut shares = vec![0u32; service.positions.end()];
            for owner in slots.owners().filter(|owner| *owner != abi::NO_OWNER) {
                shares[usize::from(owner)] += 1;
            }
            for backend in &mut service.backends {
                backend.share = shares[usize::from(backend.position.0)];
            }
        }
        let in_place = service.table.as_ref().filter(|_| !change.grown);
        let in_place = in_place.and_then(|table| fits(table, &service.backends, before));
        match (in_place, service.table.take()) {
            (Some(written), Some(mut table)) => {
                for (at, backend) in written {
                    let offset = table.backend_range.offset + at as u32;
                    steps.prepare.push(MapOp::WriteBackends { offset, backends: vec![backend] });
                }
                let histories = table.history_range.map_or(0, |range| range.offset);
                steps.prepare.extend(change.lists.iter().map(|(place, list)| write_history(histories, *place, list)));
                if !change.slots.is_empty() {
                    steps.show.push(MapOp::UpdateSlots { offset: table.slot_range.offset, slots: change.slots });
                }
                table.slots = slots;
                service.table = Some(table);
            }
            (None, Some(mut table)) if !change.grown && change.slots.is_empty() => {
                let range = self.fresh_backends(service, steps)?;
                self.backend_ranges.free(std::mem::replace(&mut table.backend_range, range), epoch(steps.now));
                service.table = Some(table);
            }
            (_, old) => {
                let fresh = self.fresh_table(service, slots, steps)?;
                if let Some(old) = old {
                    self.free_table(&old, steps.now);
                }
                service.table = Some(fresh);
            }
        }
        Ok(())
    }

    /// Everything in fresh ranges; the old ones stay until no program can hold them.
    fn fresh_table(
        &mut self,
        service: &mut InstalledService,
        slots: Arc<SlotTable>,
        steps: &mut Steps,
    ) -> Result<Table, PlanError> {
        let capacity = self.capacities.maglev_slots;
        let full = PlanError::Full { what: "a Maglev table", key: "capacities.maglevSlots", capacity };
        let size = slots.size();
        let slot_range = self.slots.allocate(size.slots() as u32).ok_or_else(|| full.clone())?;
        let history_range = self.histories.allocate(u32::from(lists_of(size)).max(1)).ok_or(full)?;
        let backend_range = self.fresh_backends(service, steps)?;
        steps.prepare.extend(slots.lists().map(|(place, list)| write_history(history_range.offset, place, &list)));
        steps.prepare.push(MapOp::WriteSlots { offset: slot_range.offset, slots: Arc::clone(&slots) });
        service.value.slots = slot_range.offset;
        service.value.slots_log2 = size.bits() as u8;
        service.value.histories = history_range.offset;
        Ok(Table { slots, slot_range, history_range: Some(history_range), backend_range })
    }

    fn fresh_backends(&mut self, service: &mut InstalledService, steps: &mut Steps) -> Result<Range, PlanError> {
        let end = service.positions.end().max(1).next_power_of_two();
        let range = self.backend_ranges.allocate(end as u32).ok_or_else(|| self.full_backends())?;
        let backends = entries(&service.backends, range);
        steps.prepare.push(MapOp::WriteBackends { offset: range.offset, backends });
        service.value.backends = range.offset;
        service.value.backends_count = end.min(usize::from(u16::MAX)) as u16;
        Ok(range)
    }

    /// Takes a removed service's ids and ranges back.
    pub(super) fn free_service(&mut self, key: VipKey, service: &InstalledService, steps: &mut Steps) {
        self.service_ids.free(service.value.id, steps.now);
        for backend in &service.backends {
            self.free_backend(backend.value.id, key, steps);
        }
        if let Some(table) = &service.table {
            self.free_table(table, steps.now);
        }
    }

    fn free_table(&mut self, table: &Table, now: Duration) {
        self.slots.free(table.slot_range, epoch(now));
        self.backend_ranges.free(table.backend_range, epoch(now));
        if let Some(range) = table.history_range {
            self.histories.free(range, epoch(now));
        }
    }

    /// What of the tables' own rested until `before` is free again.
    pub(super) fn release_tables(&mut self, before: Duration) {
        for service in self.services.untracked().values_mut() {
            let Some(table) = &mut service.table else { continue };
            let slots = Arc::make_mut(&mut table.slots);
            slots.release_before(before);
            service.positions.release_before(before, |position| slots.refers_to(position));
        }
    }

    /// A backend has listed its connections at `listed_at`, and the present hash leads to all of them. It gets none by the
    /// hash before, so that is final; after the last backend nothing is looked for there any more.
    pub fn settle_hash(&mut self, key: &VipKey, position: Position, listed_at: Duration) -> Vec<MapOp> {
        let Some(service) = self.services.get_mut(key) else { return Vec::new() };
        let Some(rehashed) = service.rehashed.as_mut().filter(|rehashed| rehashed.since + SETTLE < listed_at) else {
            return Vec::new();
        };
        rehashed.unheard.remove(&position);
        if !rehashed.unheard.is_empty() {
            return Vec::new();
        }
        service.rehashed = None;
        service.value.flags &= !service_flags::REHASHED;
        vec![MapOp::SetService { key: key.to_abi(), value: service.value }]
    }

    /// A pod has listed its connections at `listed_at`: slots where it has none, by what `has_connection` says of a
    /// slot's number, do not ask it any more.
    pub fn prune(
        &mut self,
        service: &VipKey,
        position: Position,
        listed_at: Duration,
        has_connection: impl Fn(u32) -> bool,
        now: Duration,
    ) -> Vec<MapOp> {
        let Some(table) = self.services.get_mut(service).and_then(|service| service.table.as_mut()) else {
            return Vec::new();
        };
        let change = Arc::make_mut(&mut table.slots).prune(position, listed_at, has_connection, now);
        let histories = table.history_range.map_or(0, |range| range.offset);
        let mut ops: Vec<MapOp> =
            change.lists.iter().map(|(place, list)| write_history(histories, *place, list)).collect();
        if !change.slots.is_empty() {
            ops.push(MapOp::UpdateSlots { offset: table.slot_range.offset, slots: change.slots });
        }
        ops
    }
}

impl InstalledService {
    /// Notes that the hash has changed, and forgets it where nobody can have a connection from before.
    fn rehash(&mut self, service: &Service, old: Option<&Self>, now: Duration) {
        let changed = old.is_some_and(|old| old.table.is_some() && old.is_kept() != service.affinity.is_some());
        if changed && service.protocol == Protocol::Tcp {
            let unheard = self.backends.iter().map(|backend| backend.position).collect();
            self.rehashed = Some(Rehashed { since: now, unheard });
        }
        if let Some(rehashed) = &mut self.rehashed {
            rehashed.unheard.retain(|position| self.positions.contains(*position));
        }
        if self.table.is_none() || self.rehashed.as_ref().is_some_and(|rehashed| rehashed.unheard.is_empty()) {
            self.rehashed = None;
        }
    }
}

/// Earlier owners that the slots remember: where there are connections to keep where they are, or clients.
const fn remembered(service: &Service) -> usize {
    match service.protocol {
        Protocol::Tcp => OWNERS_MAX,
        Protocol::Udp if service.affinity.is_some() => OWNERS_MAX,
        Protocol::Udp => 0,
    }
}

fn flags(service: &Service, rehashed: bool) -> u8 {
    let mut flags = 0;
    if service.replies == ReplyMode::Recorded {
        flags |= service_flags::RECORD;
    }
    if service.affinity.is_some() {
        flags |= service_flags::AFFINITY;
    }
    if rehashed {
        flags |= service_flags::REHASHED;
    }
    flags
}

/// Coarse ticks that have passed at most since a packet that is no longer ago than the timeout.
const fn ticks(affinity: Affinity, hertz: u64) -> u32 {
    (affinity.timeout.as_secs() * hertz).div_ceil(1 << COARSE_SHIFT) as u32
}

/// What stands in a range of backends.
pub(super) fn entries(backends: &[InstalledBackend], range: Range) -> Vec<abi::Backend> {
    let mut entries = vec![abi::Backend::default(); range.len as usize];
    for backend in backends {
        entries[usize::from(backend.position.0)] = backend.value;
    }
    entries
}

/// The entries of backends to be written where they stand: those that nothing refers to yet. `None` where one that
/// programs may be reading differs, or one has no room.
fn fits(
    table: &Table,
    backends: &[InstalledBackend],
    before: &[InstalledBackend],
) -> Option<Vec<(usize, abi::Backend)>> {
    let there = entries(before, table.backend_range);
    let mut written = Vec::new();
    for backend in backends {
        let at = usize::from(backend.position.0);
        if *there.get(at)? == backend.value {
            continue;
        }
        if table.slots.refers_to(backend.position) {
            return None;
        }
        written.push((at, backend.value));
    }
    Some(written)
}

pub(super) fn write_history(offset: u32, place: u16, list: &List) -> MapOp {
    let value = History { count: list.count, owners: list.owners };
    MapOp::WriteHistory { at: offset + u32::from(place), value }
}

#[cfg(test)]
mod tests;
