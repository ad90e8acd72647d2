//! Plans are applied to maps in memory, and what a packet would find is looked at after every single write.

use std::collections::HashMap;

use lb_common::{abi::endpoint_flags, address::Address};
use proptest::prelude::*;

use super::*;
use crate::{
    model::{Announce, Limits, Observation, Snapshot, Uplink, XdpModeChoice},
    plan::{ops::MapOp, service::InstalledBackend},
};

/// The maps, as the programs read them.
#[derive(Default)]
struct Maps {
    services: HashMap<ServiceKey, abi::Service>,
    vips: HashMap<Address, u32>,
    slots: HashMap<u32, abi::Slot>,
    histories: HashMap<u32, abi::History>,
    backends: HashMap<u32, abi::Backend>,
    endpoints: HashMap<ServiceKey, abi::Endpoint>,
    backend_vips: HashMap<u32, ServiceKey>,
    tx_ports: HashMap<u32, u32>,
}

impl Maps {
    fn apply(&mut self, op: &MapOp) {
        match op.clone() {
            MapOp::SetTxPort { id, ifindex } => drop(self.tx_ports.insert(id, ifindex)),
            MapOp::WriteBackends { offset, backends } => self.backends.extend((offset..).zip(backends)),
            MapOp::WriteSlots { offset, slots } => self.slots.extend((offset..).zip(slots.slots())),
            MapOp::UpdateSlots { offset, slots } => {
                self.slots.extend(slots.into_iter().map(|(at, slot)| (offset + at, slot)));
            }
            MapOp::WriteHistory { at, value } => drop(self.histories.insert(at, value)),
            MapOp::SetBackendVip { id, key } => drop(self.backend_vips.insert(id, key)),
            MapOp::SetEndpoint { key, value } => drop(self.endpoints.insert(key, value)),
            MapOp::RemoveEndpoint { key } => drop(self.endpoints.remove(&key)),
            MapOp::SetService { key, value } => drop(self.services.insert(key, value)),
            MapOp::RemoveService { key } => drop(self.services.remove(&key)),
            MapOp::SetVip { address, services: 0 } => drop(self.vips.remove(&address)),
            MapOp::SetVip { address, services } => drop(self.vips.insert(address, services)),
            MapOp::ClearBackendCounters { .. } | MapOp::SetMember { .. } => {}
        }
    }

    /// Every slot of every visible service leads to a backend of the service whose replies find back.
    fn check(&self) {
        for (key, service) in &self.services {
            if service.backends_count == 0 {
                continue;
            }
            for at in 0..1u32 << service.slots_log2 {
                let slot = self.slots[&(service.slots + at)];
                if slot.owner == abi::NO_OWNER {
                    continue;
                }
                assert!(slot.owner < service.backends_count, "slot {at} of {key:?} names a backend");
                let backend = self.backends[&(service.backends + u32::from(slot.owner))];
                assert_eq!(
                    self.backend_vips.get(&backend.id),
                    Some(key),
                    "slot {at} of {key:?} leads to its own backend"
                );
                if backend.rung != abi::rung::NONE {
                    assert_eq!(self.tx_ports[&backend.tx_port], backend.ifindex, "its port is there");
                }
            }
        }
    }
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn backend(last: u8, weight: u16) -> Backend {
    Backend { address: ip(last), port: 80, weight, drain: false }
}

fn service(vip: u8, protocol: Protocol, replies: ReplyMode, backends: Vec<Backend>) -> Service {
    let vip = IpAddr::from([198, 51, 100, vip]);
    Service {
        name: "s".into(),
        vip,
        protocol,
        port: 80,
        replies,
        rung: RungChoice::Auto,
        affinity: None,
        health_check: None,
        backends,
    }
}

fn tcp(vip: u8, backends: Vec<Backend>) -> Service {
    service(vip, Protocol::Tcp, ReplyMode::Static, backends)
}

const CAPACITIES: Capacities =
    Capacities { services: 8, backends: 16, maglev_slots: 1 << 15, bypasses: 1, flows: 4, fragments: 8 };

fn snapshot(services: Vec<Service>) -> Snapshot {
    Snapshot {
        node_addresses: vec![],
        uplinks: vec![Uplink { interface: "eth0".into(), mode: XdpModeChoice::Auto }],
        pin_directory: "/sys/fs/bpf/sluice".into(),
        run_directory: "/run/sluice".into(),
        capacities: CAPACITIES,
        limits: Limits::default(),
        observation: Observation::default(),
        announce: Announce::default(),
        services,
    }
}

fn place(last: u8) -> Place {
    let mac = [2, 0, 0, 0, 0, last];
    Place {
        ifindex: last.into(),
        mtu: 1500,
        destination_mac: mac,
        source_mac: mac,
        netns_id: Some(last.into()),
        rung: Rung::Redirect,
    }
}

fn places(hosts: impl IntoIterator<Item = u8>) -> Places {
    hosts.into_iter().map(|host| ((ip(host), RungChoice::Auto), place(host))).collect()
}

fn apply(maps: &mut Maps, ops: &[MapOp]) {
    for op in ops {
        maps.apply(op);
        maps.check();
    }
}

fn endpoint_of(planner: &Planner, last: u8, protocol: Protocol) -> Option<abi::Endpoint> {
    planner.endpoints()[&EndpointKey::new(ip(last), protocol, 80)].value
}

fn direct(vip: u8, last: &[u8]) -> Service {
    let service = tcp(vip, last.iter().map(|last| backend(*last, 1)).collect());
    Service { rung: RungChoice::Direct { vip: service.vip, assign: false }, ..service }
}

#[test]
fn pods_that_own_a_vip_are_endpoints_under_it_at_their_interfaces() {
    let (mut planner, mut maps) = (Planner::new(CAPACITIES), Maps::default());
    let services = vec![direct(1, &[1, 2]), direct(2, &[1]), tcp(3, vec![backend(1, 1)])];
    let mut places = places([1]);
    for (service, last) in [(&services[0], 1), (&services[0], 2), (&services[1], 1)] {
        places.insert((ip(last), service.rung), Place { rung: Rung::Direct, ..place(last) });
    }
    let mut plan = |services: &[Service], places: &Places, now| {
        let ops = planner.plan(&snapshot(services.to_vec()), places, Duration::from_secs(now)).unwrap();
        apply(&mut maps, &ops);
        let mut keys: Vec<_> = maps
            .endpoints
            .iter()
            .map(|(key, value)| (IpAddr::from(key.address), key.interface, IpAddr::from(value.vip)))
            .collect();
        keys.sort();
        (keys, maps.backends.values().filter(|b| b.rung == abi::rung::DIRECT).map(|b| b.address).collect::<Vec<_>>())
    };
    let vip = |last| IpAddr::from([198, 51, 100, last]);
    let (keys, addresses) = plan(&services, &places, 0);
    assert_eq!(keys, [(ip(1), 0, vip(3)), (vip(1), 1, vip(1)), (vip(1), 2, vip(1)), (vip(2), 1, vip(2))]);
    assert!(addresses.iter().all(|address| [vip(1), vip(2)].contains(&IpAddr::from(*address))), "{addresses:?}");
    assert_eq!(addresses.len(), 3);
    // The first pod moves to the interface that the second one had; the second one is gone.
    places.insert((ip(1), services[0].rung), Place { rung: Rung::Direct, ..place(2) });
    places.remove(&(ip(2), services[0].rung));
    assert_eq!(plan(&services, &places, 10).0, [(ip(1), 0, vip(3)), (vip(1), 2, vip(1)), (vip(2), 1, vip(2))]);
    // Two addresses of one pod: it is known as long as one of them is a backend's.
    places.insert((ip(2), services[0].rung), Place { rung: Rung::Direct, ..place(2) });
    assert_eq!(plan(&services, &places, 20).0.len(), 3);
    let fewer = [direct(1, &[2]), services[2].clone()];
    assert_eq!(plan(&fewer, &places, 30).0, [(ip(1), 0, vip(3)), (vip(1), 2, vip(1))]);
    assert_eq!(plan(&[], &places, 40).0, []);
}

#[test]
fn a_plan_that_is_applied_leaves_nothing_to_do() {
    let mut planner = Planner::new(CAPACITIES);
    let wanted = snapshot(vec![tcp(1, vec![backend(1, 1), backend(2, 3)])]);
    let ops = planner.plan(&wanted, &places(1..3), Duration::ZERO).unwrap();
    apply(&mut Maps::default(), &ops);
    assert_eq!(planner.plan(&wanted, &places(1..3), Duration::ZERO).unwrap(), []);
}

#[test]
fn a_service_without_a_backend_that_takes_connections_refuses() {
    let mut planner = Planner::new(CAPACITIES);
    let drained = Backend { drain: true, ..backend(1, 1) };
    planner.plan(&snapshot(vec![tcp(1, vec![drained])]), &places([1]), Duration::ZERO).unwrap();
    let installed = planner.services().values().next().unwrap();
    assert_eq!(installed.value.backends_count, 0);
}

#[test]
fn the_oldest_service_of_an_endpoint_stays_its_default() {
    let mut planner = Planner::new(CAPACITIES);
    let (old, new) = (tcp(2, vec![backend(1, 1)]), tcp(1, vec![backend(1, 1)]));
    planner.plan(&snapshot(vec![old.clone()]), &places([1]), Duration::ZERO).unwrap();
    planner.plan(&snapshot(vec![new.clone(), old]), &places([1]), Duration::ZERO).unwrap();
    assert_eq!(endpoint_of(&planner, 1, Protocol::Tcp).unwrap().vip, IpAddr::from([198, 51, 100, 2]).into());
    let recorded: Vec<u8> = planner.services().values().map(|service| service.backends[0].value.flags).collect();
    assert_eq!(recorded, [abi::backend_flags::RECORD, 0], "connections of the younger one are recorded");
    planner.plan(&snapshot(vec![new]), &places([1]), Duration::ZERO).unwrap();
    assert_eq!(endpoint_of(&planner, 1, Protocol::Tcp).unwrap().vip, IpAddr::from([198, 51, 100, 1]).into());
    assert_eq!(planner.services().values().next().unwrap().backends[0].value.flags, 0);
}

#[test]
fn replies_none_leaves_no_endpoint() {
    let mut planner = Planner::new(CAPACITIES);
    let silent = service(1, Protocol::Udp, ReplyMode::None, vec![backend(1, 1)]);
    planner.plan(&snapshot(vec![silent]), &places([1]), Duration::ZERO).unwrap();
    assert_eq!(endpoint_of(&planner, 1, Protocol::Udp), None);
    let recorded = service(1, Protocol::Udp, ReplyMode::Recorded, vec![backend(1, 1)]);
    planner.plan(&snapshot(vec![recorded]), &places([1]), Duration::ZERO).unwrap();
    assert_eq!(endpoint_of(&planner, 1, Protocol::Udp).unwrap().flags, endpoint_flags::RECORDED);
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut planner = Planner::new(Capacities { services: 1, ..CAPACITIES });
    planner.plan(&snapshot(vec![tcp(1, vec![backend(1, 1)])]), &places([1]), Duration::ZERO).unwrap();
    let before = format!("{:?}", planner.services());
    let two = snapshot(vec![tcp(1, vec![backend(2, 1)]), tcp(2, vec![backend(2, 1)])]);
    let refusal = planner.plan(&two, &places([1, 2]), Duration::ZERO).unwrap_err().to_string();
    assert!(refusal.contains("capacities.services is 1"), "{refusal}");
    assert_eq!(format!("{:?}", planner.services()), before);
}

#[test]
fn a_pod_that_goes_and_comes_back_changes_no_slot() {
    let mut planner = Planner::new(CAPACITIES);
    let wanted = snapshot(vec![tcp(1, vec![backend(1, 1), backend(2, 1)])]);
    let mut maps = Maps::default();
    apply(&mut maps, &planner.plan(&wanted, &places(1..3), Duration::ZERO).unwrap());
    let gone = planner.plan(&wanted, &places([2]), Duration::from_secs(1)).unwrap();
    apply(&mut maps, &gone);
    assert!(!gone.iter().any(|op| matches!(op, MapOp::WriteSlots { .. })), "slots are written");
    let back = planner.plan(&wanted, &places(1..3), Duration::from_secs(2)).unwrap();
    apply(&mut maps, &back);
    assert!(planner.services().values().flat_map(|s| &s.backends).all(|b| b.value.rung == abi::rung::REDIRECT));
}

#[test]
fn a_range_that_a_program_may_still_read_is_not_written() {
    let mut planner = Planner::new(CAPACITIES);
    let first = planner.plan(&snapshot(vec![tcp(1, vec![backend(1, 1)])]), &places(1..9), Duration::ZERO).unwrap();
    let old = first.iter().find_map(|op| match op {
        MapOp::WriteSlots { offset, .. } => Some(*offset),
        _ => None,
    });
    for (round, host) in (2..8).enumerate() {
        let now = Duration::from_millis(100 * round as u64);
        planner.retire(now);
        let ops = planner.plan(&snapshot(vec![tcp(1, vec![backend(host, 1)])]), &places(1..9), now).unwrap();
        for op in &ops {
            if let MapOp::WriteSlots { offset, .. } = op {
                assert_ne!(Some(*offset), old, "written {now:?} after it was given up");
            }
        }
    }
}

#[test]
fn an_opaque_endpoint_is_one_in_each_service_of_tcp_and_nowhere_else() {
    let mut planner = Planner::new(CAPACITIES);
    let of = |vip, protocol| service(vip, protocol, ReplyMode::Static, vec![backend(1, 1), backend(2, 1)]);
    let wanted = snapshot(vec![of(1, Protocol::Tcp), of(2, Protocol::Tcp), of(3, Protocol::Udp)]);
    let mut reached = places([1, 2]);
    let opaque = |planner: &Planner| -> Vec<(bool, [bool; 2])> {
        let is_flagged = |backend: &InstalledBackend| backend.value.flags & abi::backend_flags::OPAQUE != 0;
        let of_service = |service: &InstalledService| {
            let flags = [0, 1].map(|at| is_flagged(&service.backends[at]));
            (service.value.flags & abi::service_flags::OPAQUE != 0, flags)
        };
        planner.services().values().map(of_service).collect()
    };
    let none = (false, [false; 2]);
    planner.plan(&wanted, &reached, Duration::ZERO).unwrap();
    assert_eq!(opaque(&planner), [none; 3]);
    planner.set_opaque([EndpointKey::new(ip(2), Protocol::Tcp, 80)].into());
    let ops = planner.plan(&wanted, &reached, Duration::from_secs(9)).unwrap();
    assert_eq!(opaque(&planner), [(true, [false, true]), (true, [false, true]), none]);
    assert!(!ops.iter().any(|op| matches!(op, MapOp::UpdateSlots { .. } | MapOp::WriteSlots { .. })), "no slot moves");
    for (last, wanted) in [(1, 0), (2, endpoint_flags::OPAQUE)] {
        let flags = endpoint_of(&planner, last, Protocol::Tcp).unwrap().flags;
        assert_eq!(flags & endpoint_flags::OPAQUE, wanted, "pod {last}");
        assert_eq!(endpoint_of(&planner, last, Protocol::Udp).unwrap().flags & endpoint_flags::OPAQUE, 0);
    }
    planner.set_opaque(BTreeSet::new());
    reached.get_mut(&(ip(1), RungChoice::Auto)).unwrap().netns_id = None;
    planner.plan(&wanted, &reached, Duration::from_secs(18)).unwrap();
    assert_eq!(opaque(&planner), [(true, [true, false]), (true, [true, false]), none], "who cannot be asked is opaque");
}

fn any_services() -> impl Strategy<Value = Vec<Service>> {
    let kind = prop_oneof![
        Just((Protocol::Tcp, ReplyMode::Static)),
        Just((Protocol::Udp, ReplyMode::Recorded)),
        Just((Protocol::Udp, ReplyMode::Static)),
        Just((Protocol::Udp, ReplyMode::None)),
    ];
    let backends = proptest::collection::btree_map(1u8..6, (1u16..4, any::<bool>()), 0..4);
    let one = (kind, backends).prop_map(|((protocol, replies), backends)| {
        let backend = |(host, (weight, drain))| Backend { drain, ..backend(host, weight) };
        service(0, protocol, replies, backends.into_iter().map(backend).collect())
    });
    proptest::collection::btree_map(1u8..5, one, 0..4).prop_map(|services| {
        let named = |(vip, service): (u8, Service)| Service { vip: IpAddr::from([198, 51, 100, vip]), ..service };
        services.into_iter().map(named).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_ever_finds_a_half_written_table(
        steps in proptest::collection::vec((any_services(), proptest::collection::vec(1u8..6, 0..6)), 1..12)
    ) {
        let mut planner = Planner::new(CAPACITIES);
        let mut maps = Maps::default();
        let mut now = Duration::ZERO;
        for (services, hosts) in steps {
            now += Duration::from_secs(2);
            planner.retire(now);
            let wanted = snapshot(services);
            let places = places(hosts);
            apply(&mut maps, &planner.plan(&wanted, &places, now).unwrap());
            prop_assert_eq!(maps.services.len(), wanted.services.len());
            let endpoints = planner.endpoints().values().filter(|endpoint| endpoint.value.is_some()).count();
            prop_assert_eq!(maps.endpoints.len(), endpoints);
            prop_assert_eq!(planner.plan(&wanted, &places, now).unwrap(), vec![]);
            planner.applied = None;
            prop_assert_eq!(planner.plan(&wanted, &places, now).unwrap(), vec![], "nothing was overlooked");
        }
    }

    #[test]
    fn a_plan_of_the_difference_writes_what_a_plan_of_everything_writes(
        steps in proptest::collection::vec(any_step(), 1..12)
    ) {
        let capacities = Capacities { services: 3, ..CAPACITIES };
        let mut planner = Planner::new(capacities);
        let mut now = Duration::ZERO;
        for (services, hosts, opaque, stack) in steps {
            now += Duration::from_secs(2);
            planner.retire(now);
            let wanted = snapshot(services);
            let mut places = places(hosts);
            let stacked: Vec<_> = places.iter().map(|((address, _), place)| (*address, *place)).collect();
            places.extend(stacked.into_iter().filter(|_| stack).map(|(address, place)| {
                ((address, RungChoice::Only(Rung::Stack)), Place { rung: Rung::Stack, ..place })
            }));
            planner.set_opaque(opaque.into_iter().map(|last| EndpointKey::new(ip(last), Protocol::Tcp, 80)).collect());
            let mut whole = planner.clone().with_ahead(Ahead::of(&wanted.services));
            whole.applied = None;
            let before = state_of(&planner);
            let (ops, all) = (planner.plan(&wanted, &places, now), whole.plan(&wanted, &places, now));
            if ops.is_err() {
                prop_assert_eq!(state_of(&planner), before, "a plan that fails changes nothing");
            }
            prop_assert_eq!(ops, all);
            whole.applied.clone_from(&planner.applied);
            prop_assert_eq!(state_of(&planner), state_of(&whole));
        }
    }
}

/// All of a planner, hashes in order.
fn state_of(planner: &Planner) -> String {
    let ports: BTreeMap<_, _> = planner.port_users.iter().filter(|(_, users)| **users != 0).collect();
    let services: Vec<_> = planner.services.values().map(|s| (s.value, &s.backends, s.replies, s.slots())).collect();
    let ids = [&planner.service_ids, &planner.backend_ids, &planner.endpoint_ids, &planner.tx_port_ids];
    let room = [&planner.slots, &planner.histories, &planner.backend_ranges]
        .map(|ranges| (ranges.available(), ranges.longest()));
    format!(
        "{services:?} {:?} {:?} {:?} {ports:?} {ids:?} {room:?} {:?} {} {:?}",
        *planner.endpoints, *planner.vips, planner.tx_ports, planner.leaving, planner.sequence, planner.applied
    )
}

type Step = (Vec<Service>, Vec<u8>, BTreeSet<u8>, bool);

/// Services in any order, by two rungs; pods that are there; opaque ones; and whether rung `stack` reaches them.
fn any_step() -> impl Strategy<Value = Step> {
    let services = (any_services(), any::<[bool; 4]>()).prop_map(|(services, stack)| {
        let by_rung = |(service, stack)| match stack {
            true => Service { rung: RungChoice::Only(Rung::Stack), ..service },
            false => service,
        };
        services.into_iter().zip(stack).map(by_rung).collect::<Vec<_>>()
    });
    let opaque = proptest::collection::btree_set(1u8..6, 0..3);
    (services.prop_shuffle(), proptest::collection::vec(1u8..6, 0..6), opaque, any::<bool>())
}
