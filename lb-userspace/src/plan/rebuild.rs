//! The same installed state in empty maps of other capacities.

use std::{collections::HashSet, sync::Arc};

use lb_common::abi;
use thiserror::Error;

use super::{
    ids::Ids,
    ops::MapOp,
    planner::{PlanError, Planner, VipKey, backend_entries},
    ranges::Ranges,
    service::{InstalledService, Table, entries, history_entries, lists_of, write_history},
};
use crate::model::Capacities;

/// Why what is installed cannot be carried over to maps of these capacities. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RebuildError {
    /// What is in use names a place that the new maps do not have.
    #[error(
        "{key} cannot become {capacity}: {what} {highest} is in use; choose {} or more, or run `sluice detach` \
         first, which ends sessions",
        u64::from(*highest) + 1
    )]
    InUse {
        /// What has that number.
        what: &'static str,
        /// Configuration key.
        key: &'static str,
        /// Its new value.
        capacity: u32,
        /// The highest number in use.
        highest: u32,
    },
    /// There is less room than what is installed takes.
    #[error("{0}, or run `sluice detach` first, which ends sessions")]
    Full(#[from] PlanError),
}

impl Planner {
    /// A planner with all that is installed here, under the same ids, in empty maps with these capacities, and the writes
    /// that put it there.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn rebuilt(&self, capacities: Capacities) -> Result<(Self, Vec<MapOp>), RebuildError> {
        let services = ("service", "capacities.services", capacities.services);
        let backends = |what| (what, "capacities.backends", capacities.backends);
        let mut next = Self {
            capacities,
            service_ids: resized(&self.service_ids, services)?,
            backend_ids: resized(&self.backend_ids, backends("backend"))?,
            endpoint_ids: resized(&self.endpoint_ids, backends("endpoint"))?,
            tx_port_ids: resized(&self.tx_port_ids, backends("port to an interface"))?,
            slots: Ranges::new(capacities.maglev_slots),
            histories: Ranges::new(history_entries(capacities.maglev_slots)),
            backend_ranges: Ranges::new(backend_entries(&capacities)),
            applied: None,
            ..self.clone()
        };
        let mut ops: Vec<MapOp> =
            next.tx_ports.iter().map(|(&ifindex, &id)| MapOp::SetTxPort { id, ifindex }).collect();
        // Where none is given back, ranges fit in any order as long as there is room for them in all.
        let mut services = std::mem::take(&mut next.services);
        for (key, service) in services.untracked() {
            next.place_service(*key, service, &mut ops)?;
        }
        next.services = services;
        let mut written = HashSet::new();
        for endpoint in next.endpoints.values() {
            // Two addresses of one pod may share a key.
            if let Some(value) = endpoint.value.filter(|_| written.insert(endpoint.key)) {
                ops.push(MapOp::SetEndpoint { key: endpoint.key, value });
            }
        }
        let show = |(key, service): (&VipKey, &InstalledService)| MapOp::SetService {
            key: key.to_abi(),
            value: service.value,
        };
        ops.extend(next.services.iter().map(show));
        let vips = next.vips.iter();
        ops.extend(vips.map(|(&vip, &services)| MapOp::SetVip { address: vip.into(), services }));
        Ok((next, ops))
    }

    /// A service's backends and table in ranges of this planner.
    fn place_service(
        &mut self,
        key: VipKey,
        service: &mut InstalledService,
        ops: &mut Vec<MapOp>,
    ) -> Result<(), RebuildError> {
        for backend in &service.backends {
            ops.push(MapOp::SetBackendVip { id: backend.value.id, key: key.to_abi() });
        }
        if let Some(table) = &mut service.table {
            self.place_table(table)?;
            write_table(table, entries(&service.backends, table.backend_range), ops);
            service.value.slots = table.slot_range.offset;
            service.value.histories = table.history_range.map_or(0, |range| range.offset);
            service.value.backends = table.backend_range.offset;
        }
        for backend in &service.backends {
            ops.push(MapOp::SetMember { id: backend.value.id, value: backend.member(&key) });
        }
        Ok(())
    }

    fn place_table(&mut self, table: &mut Table) -> Result<(), PlanError> {
        let capacity = self.capacities.maglev_slots;
        let full = PlanError::Full { what: "a Maglev table", key: "capacities.maglevSlots", capacity };
        let size = table.slots.size();
        table.slot_range = self.slots.allocate(size.slots() as u32).ok_or_else(|| full.clone())?;
        table.history_range = Some(self.histories.allocate(u32::from(lists_of(size)).max(1)).ok_or(full)?);
        table.backend_range =
            self.backend_ranges.allocate(table.backend_range.len).ok_or_else(|| self.full_backends())?;
        Ok(())
    }
}

fn write_table(table: &Table, backends: Vec<abi::Backend>, ops: &mut Vec<MapOp>) {
    let Table { slots, slot_range, history_range, backend_range } = table;
    let histories = history_range.map_or(0, |range| range.offset);
    ops.push(MapOp::WriteBackends { offset: backend_range.offset, backends });
    ops.extend(slots.lists().map(|(place, list)| write_history(histories, place, &list)));
    ops.push(MapOp::WriteSlots { offset: slot_range.offset, slots: Arc::clone(slots) });
}

fn resized(ids: &Ids, (what, key, capacity): (&'static str, &'static str, u32)) -> Result<Ids, RebuildError> {
    ids.resized(capacity).map_err(|highest| RebuildError::InUse { what, key, capacity, highest })
}
