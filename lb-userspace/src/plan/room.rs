//! Room for what comes, where the maps are full of what goes.
//!
//! What is taken out of the maps rests for [`GRACE`] before its place is given out again. Where there is no other place,
//! one configuration follows another in two steps: first what goes is taken out, and after the rest the new is put in.

use std::time::Duration;

use super::{
    ops::MapOp,
    planner::{EndpointKey, GRACE, Places, PlanError, Planner, vip_key},
};
use crate::model::Snapshot;

/// How far a plan leads.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// To all that is wanted.
    Whole(Vec<MapOp>),
    /// To what is wanted and installed already; there is room for the rest when what was taken out has rested. To be
    /// planned again after [`GRACE`].
    Part(Vec<MapOp>, PlanError),
}

impl Planner {
    /// As [`Planner::plan`], in two steps where the maps have room in no other way.
    ///
    /// # Errors
    /// Where there will be no room either when everything has rested. Nothing is planned and nothing changed.
    pub fn plan_in_stages(&mut self, snapshot: &Snapshot, places: &Places, now: Duration) -> Result<Stage, PlanError> {
        let full = match self.plan(snapshot, places, now) {
            Ok(ops) => return Ok(Stage::Whole(ops)),
            Err(full) => full,
        };
        let mut next = self.clone();
        let ops = next.plan(&self.what_stays(snapshot), places, now)?;
        // Nobody shall lose a service for one that will not come.
        let mut rested = next.clone();
        rested.retire(now + 2 * GRACE);
        rested.plan(snapshot, places, now)?;
        *self = next;
        Ok(Stage::Part(ops, full))
    }

    /// The wanted services and backends that are installed.
    fn what_stays(&self, wanted: &Snapshot) -> Snapshot {
        let mut stays = wanted.clone();
        stays.services.retain_mut(|service| {
            let Some(installed) = self.services().get(&vip_key(service)) else { return false };
            let mut backends = std::mem::take(&mut service.backends);
            backends.retain(|backend| installed.has(&EndpointKey::of(service, backend)));
            service.backends = backends;
            true
        });
        stays
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Announce, Backend, Capacities, Limits, Observation, Protocol, ReplyMode, RungChoice, Service};

    const FULL: Capacities =
        Capacities { services: 2, backends: 2, maglev_slots: 512, bypasses: 1, flows: 4, fragments: 8 };

    /// Services by the last byte of their VIP, each before a pod of the same number.
    fn snapshot(services: &[u8]) -> Snapshot {
        let service = |&last: &u8| Service {
            name: last.to_string(),
            vip: [198, 51, 100, last].into(),
            protocol: Protocol::Tcp,
            port: 80,
            replies: ReplyMode::Static,
            rung: RungChoice::Auto,
            affinity: None,
            health_check: None,
            backends: vec![Backend { address: [10, 0, 0, last].into(), port: 80, weight: 1, drain: false }],
        };
        Snapshot {
            node_addresses: Vec::new(),
            uplinks: Vec::new(),
            pin_directory: "/sys/fs/bpf/sluice".into(),
            run_directory: "/run/sluice".into(),
            capacities: FULL,
            limits: Limits::default(),
            observation: Observation::default(),
            announce: Announce::default(),
            services: services.iter().map(service).collect(),
        }
    }

    fn installed(planner: &Planner) -> Vec<String> {
        planner.services().keys().map(|key| key.address.to_string()).collect()
    }

    #[test]
    fn one_service_takes_the_place_of_another_after_a_rest() {
        let (mut planner, places) = (Planner::new(FULL), Places::new());
        let whole = planner.plan_in_stages(&snapshot(&[1, 2]), &places, Duration::ZERO);
        assert!(matches!(whole, Ok(Stage::Whole(_))), "{whole:?}");
        let wanted = snapshot(&[1, 3]);
        let part = planner.plan_in_stages(&wanted, &places, Duration::ZERO).unwrap();
        let Stage::Part(ops, full) = part else { panic!("{part:?}") };
        assert!(full.to_string().contains("capacities.backends is 2"), "{full}");
        assert!(ops.iter().any(|op| matches!(op, MapOp::RemoveService { .. })), "{ops:?}");
        assert_eq!(installed(&planner), ["198.51.100.1"]);

        let early = planner.plan_in_stages(&wanted, &places, GRACE / 2).unwrap();
        assert!(matches!(&early, Stage::Part(ops, _) if ops.is_empty()), "{early:?}");
        planner.retire(GRACE);
        let whole = planner.plan_in_stages(&wanted, &places, GRACE).unwrap();
        assert!(matches!(whole, Stage::Whole(_)), "{whole:?}");
        assert_eq!(installed(&planner), ["198.51.100.1", "198.51.100.3"]);
    }

    #[test]
    fn nothing_is_taken_out_for_what_will_not_fit_either() {
        let (mut planner, places) = (Planner::new(FULL), Places::new());
        planner.plan(&snapshot(&[1, 2]), &places, Duration::ZERO).unwrap();
        planner.plan_in_stages(&snapshot(&[3, 4, 5]), &places, Duration::ZERO).unwrap_err();
        assert_eq!(installed(&planner), ["198.51.100.1", "198.51.100.2"]);
    }
}
