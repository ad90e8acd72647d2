//! A plan that fails changes nothing: what it has touched is put back.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{
    ahead::Ahead,
    difference::Difference,
    ids::Ids,
    ops::MapOp,
    planner::{Places, PlanError, Planner, Steps, VipKey},
    ranges::Ranges,
};
use crate::model::Snapshot;

/// What of a planner is small enough to be copied before each plan.
struct Pools {
    tx_ports: BTreeMap<u32, u32>,
    port_users: HashMap<u32, usize>,
    ids: [Ids; 4],
    ranges: [Ranges; 3],
    leaving: BTreeMap<u32, VipKey>,
    sequence: u64,
}

impl Planner {
    /// The writes that bring the maps to `snapshot`. On an error nothing is planned and nothing changed.
    ///
    /// Costs what differs from the last plan's snapshot, places and opaque endpoints, and a comparison with those.
    pub fn plan(&mut self, snapshot: &Snapshot, places: &Places, now: Duration) -> Result<Vec<MapOp>, PlanError> {
        let pools = self.pools();
        self.services.begin();
        self.endpoints.begin();
        self.vips.begin();
        let planned = self.try_plan(snapshot, places, now);
        self.ahead = Ahead::default();
        match planned {
            Ok(steps) => {
                self.services.commit();
                self.endpoints.commit();
                self.vips.commit();
                let Steps { prepare, endpoints, show, hide, remove, forget, .. } = steps;
                let phases = [hide, prepare, endpoints, show, remove, forget];
                let mut ops = Vec::with_capacity(phases.iter().map(Vec::len).sum());
                ops.extend(phases.into_iter().flatten());
                Ok(ops)
            }
            Err(error) => {
                self.services.roll_back();
                self.endpoints.roll_back();
                self.vips.roll_back();
                self.restore(pools);
                Err(error)
            }
        }
    }

    fn try_plan(&mut self, snapshot: &Snapshot, places: &Places, now: Duration) -> Result<Steps, PlanError> {
        // Out of the planner, which is changed while what it was told before is looked at.
        let before = self.applied.take();
        let difference = Difference::new(self, before.as_ref(), snapshot, places);
        let mut steps = Steps { now, ..Steps::default() };
        let planned = self.plan_difference(&difference, places, &mut steps);
        let replaced = difference.replaced();
        self.applied = before;
        planned?;
        self.applied.get_or_insert_default().follow(snapshot, places, &self.opaque, replaced);
        Ok(steps)
    }

    fn pools(&self) -> Pools {
        let ids = [&self.service_ids, &self.backend_ids, &self.endpoint_ids, &self.tx_port_ids];
        Pools {
            tx_ports: self.tx_ports.clone(),
            port_users: self.port_users.clone(),
            ids: ids.map(Clone::clone),
            ranges: [&self.slots, &self.histories, &self.backend_ranges].map(Clone::clone),
            leaving: self.leaving.clone(),
            sequence: self.sequence,
        }
    }

    fn restore(&mut self, pools: Pools) {
        let Pools { tx_ports, port_users, ids, ranges, leaving, sequence } = pools;
        (self.tx_ports, self.port_users, self.leaving, self.sequence) = (tx_ports, port_users, leaving, sequence);
        [self.service_ids, self.backend_ids, self.endpoint_ids, self.tx_port_ids] = ids;
        [self.slots, self.histories, self.backend_ranges] = ranges;
    }
}
