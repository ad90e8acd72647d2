//! What client affinity changes of a service's part of the maps.

use std::net::IpAddr;

use super::*;
use crate::{
    model::{Announce, Backend, Capacities, Limits as Rates, Observation, RungChoice, Snapshot},
    plan::planner::Places,
};

const CAPACITIES: Capacities =
    Capacities { services: 4, backends: 16, maglev_slots: 1 << 15, bypasses: 1, flows: 4, fragments: 8 };

fn service(protocol: Protocol, affinity: Option<u64>, backends: &[(u8, u16, bool)]) -> Service {
    let backend = |&(last, weight, drain): &(u8, u16, bool)| {
        let address = IpAddr::from([10, 0, 0, last]);
        Backend { address, port: 80, weight, drain }
    };
    Service {
        name: "s".into(),
        vip: [198, 51, 100, 1].into(),
        protocol,
        port: 80,
        replies: if protocol == Protocol::Tcp { ReplyMode::Static } else { ReplyMode::Recorded },
        rung: RungChoice::Auto,
        affinity: affinity.map(|seconds| Affinity { timeout: Duration::from_secs(seconds) }),
        health_check: None,
        backends: backends.iter().map(backend).collect(),
    }
}

/// The writes that lead to this service alone.
fn plan(planner: &mut Planner, service: &Service, seconds: u64) -> Vec<MapOp> {
    let snapshot = Snapshot {
        node_addresses: vec![],
        uplinks: vec![],
        pin_directory: "/sys/fs/bpf/sluice".into(),
        run_directory: "/run/sluice".into(),
        capacities: CAPACITIES,
        limits: Rates::default(),
        observation: Observation::default(),
        announce: Announce::default(),
        services: vec![service.clone()],
    };
    planner.plan(&snapshot, &Places::new(), Duration::from_secs(seconds)).expect("it fits")
}

fn installed(planner: &Planner) -> &InstalledService {
    planner.services().values().next().expect("one service")
}

const THREE: &[(u8, u16, bool)] = &[(1, 1, false), (2, 1, false), (3, 1, false)];

#[test]
fn a_switch_of_affinity_is_looked_for_by_both_hashes_until_every_backend_was_heard() {
    let mut planner = Planner::new(CAPACITIES);
    plan(&mut planner, &service(Protocol::Tcp, None, THREE), 0);
    assert!(!installed(&planner).is_rehashed());
    let ops = plan(&mut planner, &service(Protocol::Tcp, Some(60), THREE), 10);
    let flags = installed(&planner).value.flags;
    assert_eq!(flags, service_flags::AFFINITY | service_flags::REHASHED);
    assert!(matches!(ops[..], [MapOp::SetService { .. }]), "no slot and no backend is another: {ops:?}");
    let key = *planner.services().keys().next().expect("one service");
    let positions: Vec<Position> = installed(&planner).unheard().collect();
    assert_eq!(positions.len(), 3);
    let mut heard = |position, at| planner.settle_hash(&key, position, Duration::from_secs(at));
    assert!(heard(positions[0], 11).is_empty(), "what was on its way may not have arrived");
    assert!(heard(positions[1], 12).is_empty() && heard(positions[2], 12).is_empty());
    let last = heard(positions[0], 13);
    assert!(
        matches!(&last[..], [MapOp::SetService { value, .. }] if value.flags == service_flags::AFFINITY),
        "{last:?}"
    );
    assert!(!installed(&planner).is_rehashed());
    plan(&mut planner, &service(Protocol::Tcp, None, THREE), 20);
    assert_eq!(installed(&planner).value.flags, service_flags::REHASHED, "and back");
}

#[test]
fn backends_that_are_gone_have_no_connections_of_the_hash_before() {
    let mut planner = Planner::new(CAPACITIES);
    plan(&mut planner, &service(Protocol::Tcp, None, THREE), 0);
    plan(&mut planner, &service(Protocol::Tcp, Some(60), THREE), 10);
    plan(&mut planner, &service(Protocol::Tcp, Some(60), &[(4, 1, false)]), 11);
    assert!(!installed(&planner).is_rehashed(), "a backend that came after has none either");
}

#[test]
fn a_changed_timeout_changes_nothing_else() {
    let mut planner = Planner::new(CAPACITIES).at_hertz(250);
    plan(&mut planner, &service(Protocol::Tcp, Some(60), THREE), 0);
    assert_eq!(installed(&planner).value.affinity, 59, "60 s are 58.6 ticks of 1.024 s");
    let ops = plan(&mut planner, &service(Protocol::Tcp, Some(1), THREE), 1);
    assert_eq!(installed(&planner).value.affinity, 1);
    assert!(matches!(ops[..], [MapOp::SetService { .. }]), "{ops:?}");
}

#[test]
fn no_record_leads_to_a_backend_that_takes_no_new_connections() {
    for (affinity, wanted) in [(Some(60), [0, backend_flags::DRAINS, backend_flags::DRAINS]), (None, [0; 3])] {
        let mut planner = Planner::new(CAPACITIES);
        let backends = &[(1, 1, false), (2, 1, true), (3, 0, false)];
        plan(&mut planner, &service(Protocol::Tcp, affinity, backends), 0);
        let flags: Vec<u8> = installed(&planner).backends.iter().map(|backend| backend.value.flags).collect();
        assert_eq!(flags, wanted, "affinity {affinity:?}");
    }
}

#[test]
fn udp_slots_remember_their_owners_where_clients_are_kept_together() {
    let more = &[(1, 1, false), (2, 1, false), (3, 1, false), (4, 1, false)];
    for (affinity, wanted) in [(None, false), (Some(60), true)] {
        let mut planner = Planner::new(CAPACITIES);
        plan(&mut planner, &service(Protocol::Udp, affinity, THREE), 0);
        plan(&mut planner, &service(Protocol::Udp, affinity, more), 1);
        let moved = installed(&planner).slots().map_or(0, SlotTable::moved);
        assert_eq!(moved > 0, wanted, "affinity {affinity:?}: {moved} moved slots");
        // A switch makes the next change remembered, or not.
        let other = affinity.map_or(Some(60), |_| None);
        plan(&mut planner, &service(Protocol::Udp, other, more), 2);
        assert!(!installed(&planner).is_rehashed(), "a datagram has no session");
        plan(&mut planner, &service(Protocol::Udp, other, THREE), 3);
        let after = installed(&planner).slots().map_or(0, SlotTable::moved);
        assert_eq!(after > moved, other.is_some(), "affinity {other:?}: {after} moved slots after {moved}");
    }
}
