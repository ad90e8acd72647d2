//! One thing that is left over or broken at a time.

use super::*;
use crate::{
    model::{Affinity, Backend, Capacities, Protocol, ReplyMode, RungChoice, SELF_TEST_VIPS, Service},
    plan::adopt::tests::world::{CAPACITIES, ip},
};

fn tcp(vip: u8, hosts: impl IntoIterator<Item = u8>) -> Service {
    Service {
        name: "s".into(),
        vip: [198, 51, 100, vip].into(),
        protocol: Protocol::Tcp,
        port: 80,
        replies: ReplyMode::Static,
        rung: RungChoice::Auto,
        affinity: None,
        health_check: None,
        backends: hosts
            .into_iter()
            .map(|last| Backend { address: ip(last), port: 80, weight: 1, drain: false })
            .collect(),
    }
}

fn step(services: Vec<Service>) -> Step {
    let hosts = (1..6).map(|host| (host, false)).collect();
    Step { services, hosts, opaque: [].into(), retires: true, prunes: false }
}

fn key(vip: u8) -> ServiceKey {
    ServiceKey::new(IpAddr::from([198, 51, 100, vip]).into(), 80, 6)
}

#[test]
fn a_service_that_is_broken_is_discarded_in_words_and_made_anew() {
    type Break = fn(&mut Maps);
    fn value(maps: &mut Maps) -> &mut abi::Service {
        maps.services.get_mut(&key(2)).expect("it is there")
    }
    let breaks: [(Break, &str); 8] = [
        (|maps| value(maps).slots_log2 = 8, "service 198.51.100.2:80 TCP: 2^8 slots are no Maglev table"),
        (|maps| value(maps).slots_log2 = 255, "2^255 slots are no Maglev table"),
        (|maps| value(maps).slots += 1, "slots: range"),
        (|maps| value(maps).histories = u32::MAX - 511, "histories: range"),
        (|maps| value(maps).backends_count = 3, "backends: range"),
        (|maps| value(maps).backends = maps.services[&key(1)].backends, "overlaps another one"),
        (|maps| value(maps).id = 64, "its id 64 is not below the capacity of 64"),
        (|maps| value(maps).id = maps.services[&key(1)].id, "another service has its id"),
    ];
    let wanted = step(vec![tcp(1, 1..4), tcp(2, 1..4)]);
    for (break_it, words) in breaks {
        let mut world = World::of(std::slice::from_ref(&wanted));
        break_it(&mut world.maps);
        let adopted = world.maps.adopt(world.now);
        assert!(matches!(&adopted.discarded[..], [line] if line.contains(words)), "{words}: {:?}", adopted.discarded);
        assert!(adopted.ops.contains(&MapOp::RemoveService { key: key(2) }), "{words}: {:?}", adopted.ops);
        assert_eq!(adopted.used.backends.len(), 3, "{words}: ids of the other service");
        assert_eq!(adopted.planner.services().len(), 1, "{words}");
        let (resumed, _) = resume_unseen(&world.maps, &wanted, world.now);
        wanted.assert_owned(&resumed.maps);
        assert_members(&resumed.planner, &resumed.maps);
    }
}

/// As [`resume`], where what is seen meanwhile is broken.
fn resume_unseen(maps: &Maps, step: &Step, now: Duration) -> (World, Adopted) {
    let adopted = maps.adopt(now);
    let mut world = World { planner: adopted.planner.clone(), maps: maps.clone(), now };
    adopted.ops.iter().for_each(|op| world.maps.apply(op));
    let ops = step.plan(&mut world.planner, now);
    world.apply(&ops);
    (world, adopted)
}

#[test]
fn owners_that_are_not_there_are_dropped_from_slots_in_words() {
    let steps = [step(vec![tcp(1, 1..4)]), step(vec![tcp(1, 1..5)])];
    let world = World::of(&steps);
    let service = world.maps.services[&key(1)];
    let slots = service.slots as usize..(service.slots + (1 << service.slots_log2)) as usize;
    let moved = slots.clone().find(|at| world.maps.slots[*at].history != 0).expect("some slot has moved");
    let still = slots.clone().find(|at| world.maps.slots[*at].history == 0).expect("some slot has not");
    let breaks: [(usize, abi::Slot); 4] = [
        (still, abi::Slot { owner: 77, history: 0 }),
        (still, abi::Slot { history: u16::MAX, ..world.maps.slots[still] }),
        (still, abi::Slot { history: 400, ..world.maps.slots[still] }),
        (moved, abi::Slot { owner: 77, ..world.maps.slots[moved] }),
    ];
    for (at, slot) in breaks {
        let mut maps = world.maps.clone();
        maps.slots[at] = slot;
        let (resumed, adopted) = resume_unseen(&maps, &steps[1], world.now);
        assert_eq!(adopted.discarded, ["service 198.51.100.1:80 TCP: owners of 1 slots"], "{slot:?}");
        let updated = |op: &MapOp| matches!(op, MapOp::UpdateSlots { slots, .. } if slots.len() == 1);
        assert!(adopted.ops.iter().any(updated), "{:?}", adopted.ops);
        steps[1].assert_owned(&resumed.maps);
        let history = |maps: &Maps| maps.found(&service)[at - slots.start].1.len();
        assert_eq!(history(&resumed.maps), history(&world.maps), "earlier owners that exist stay: {slot:?}");
    }
    let mut maps = world.maps.clone();
    let used = maps.slots[moved].history - 1;
    let history = &mut maps.histories[(service.histories + u32::from(used)) as usize];
    *history = abi::History { count: 9, owners: [0, 0, 1, 77, 2, 1, 3] };
    let (resumed, adopted) = resume_unseen(&maps, &steps[1], world.now);
    assert_eq!(adopted.discarded.len(), 1);
    let found = resumed.maps.found(&service);
    let (owner, earlier) = &found[moved - slots.start];
    let hosts: Vec<IpAddr> = owner.iter().chain(earlier).map(|backend| backend.address.into()).collect();
    assert_eq!(hosts, [ip(4), ip(1), ip(2), ip(3)], "each once");
}

#[test]
fn what_a_self_test_or_a_first_look_at_a_pod_left_is_taken_out() {
    let wanted = step(vec![tcp(1, 1..4)]);
    let mut world = World::of(std::slice::from_ref(&wanted));
    let pod = ServiceKey::new(ip(9).into(), 9, 6);
    let test = abi::Service { backends: 1023, backends_count: 1, ..abi::Service::default() };
    let own = ServiceKey::new(SELF_TEST_VIPS[0].into(), 9, 6);
    let of_direct = ServiceKey { port: 9, ..key(1) };
    world.maps.services.extend([(own, test), (of_direct, test)]);
    world.maps.vips.insert(SELF_TEST_VIPS[1].into(), 1);
    world.maps.tx_ports.insert(255, 1);
    let value = abi::Endpoint { flags: endpoint_flags::SELF_TEST, id: 255, ..abi::Endpoint::default() };
    world.maps.endpoints.insert(pod, value);
    let learning = ServiceKey::new(ip(1).into(), 80, 6);
    world.maps.endpoints.get_mut(&learning).expect("it is there").flags |= endpoint_flags::LEARNING;
    let adopted = world.maps.adopt(world.now);
    assert!(adopted.discarded.is_empty(), "{:?}", adopted.discarded);
    for op in [
        MapOp::RemoveService { key: own },
        MapOp::RemoveService { key: of_direct },
        MapOp::RemoveEndpoint { key: pod },
        MapOp::RemoveEndpoint { key: learning },
        MapOp::SetTxPort { id: 255, ifindex: 0 },
        MapOp::SetVip { address: SELF_TEST_VIPS[1].into(), services: 0 },
    ] {
        assert!(adopted.ops.contains(&op), "{op:?} of {:?}", adopted.ops);
    }
    assert_eq!(adopted.ops.len(), 6, "{:?}", adopted.ops);
    let (resumed, _) = resume_unseen(&world.maps, &wanted, world.now);
    assert_members(&resumed.planner, &resumed.maps);
    assert_eq!(resumed.maps.endpoints[&learning].flags, endpoint_flags::STATIC);
}

#[test]
fn a_port_whose_interface_is_gone_leads_nowhere_else_while_packets_are_on_their_way() {
    let wanted = step(vec![tcp(1, 1..4)]);
    let mut world = World::of(std::slice::from_ref(&wanted));
    let (&id, &gone) = world.maps.tx_ports.iter().next().expect("there are ports");
    world.maps.tx_ports.remove(&id);
    let mut adopted = world.maps.adopt(world.now);
    assert!(adopted.ops.is_empty(), "{:?}", adopted.ops);
    let mut other = wanted.clone();
    other.hosts.remove(&(gone as u8));
    other.services.push(tcp(2, [5]));
    let ops = other.plan(&mut adopted.planner, world.now);
    let ports: Vec<_> = ops.iter().filter(|op| matches!(op, MapOp::SetTxPort { .. })).collect();
    assert!(matches!(ports[..], [MapOp::SetTxPort { id: taken, ifindex: 5 }] if *taken != id), "{ports:?}");
}

#[test]
fn what_moved_before_is_pruned_by_what_is_listed_a_while_after() {
    let mut world = World::of(&[step(vec![tcp(1, 1..4)]), step(vec![tcp(1, 1..5)])]);
    let mut planner = world.maps.adopt(world.now).planner;
    let (vip, service) = planner.services().iter().next().expect("it is there");
    let (vip, table) = (*vip, service.slots().expect("it has slots"));
    let moved = table.moved();
    let owner = table.lists().next().expect("slots have moved").1.owners().next().expect("from somebody");
    world.now += Duration::from_millis(500);
    assert_eq!(planner.prune(&vip, owner, world.now, |_| false, world.now), [], "it may have come after");
    world.now += Duration::from_secs(1);
    let ops = planner.prune(&vip, owner, world.now, |_| false, world.now);
    assert!(matches!(&ops[..], [MapOp::UpdateSlots { slots, .. }] if !slots.is_empty()), "{ops:?}");
    assert!(planner.services()[&vip].slots().is_some_and(|slots| slots.moved() < moved));
}

#[test]
fn both_hashes_are_asked_until_every_backend_was_heard_again() {
    let kept = Service { affinity: Some(Affinity { timeout: Duration::from_secs(60) }), ..tcp(1, 1..4) };
    let world = World::of(&[step(vec![tcp(1, 1..4)]), step(vec![kept])]);
    let mut planner = world.maps.adopt(world.now).planner;
    let vip = VipKey::new([198, 51, 100, 1].into(), Protocol::Tcp, 80);
    let unheard: Vec<_> = planner.services()[&vip].unheard().collect();
    assert_eq!(unheard.len(), 3);
    for position in &unheard {
        assert_eq!(planner.settle_hash(&vip, *position, world.now + Duration::from_millis(500)), []);
    }
    let later = world.now + Duration::from_secs(2);
    let ops: Vec<MapOp> = unheard.iter().flat_map(|position| planner.settle_hash(&vip, *position, later)).collect();
    assert!(matches!(ops[..], [MapOp::SetService { .. }]), "{ops:?}");
}

#[test]
fn opaque_endpoints_are_opaque_still() {
    let wanted = Step { opaque: [2].into(), ..step(vec![tcp(1, 1..4)]) };
    let world = World::of(&[wanted]);
    let opaque = world.maps.adopt(world.now).planner.opaque().clone();
    assert_eq!(opaque, [EndpointKey::new(ip(2), Protocol::Tcp, 80)].into());
}

#[test]
fn maps_that_are_too_small_for_what_is_installed_are_refused_in_words() {
    let world = World::of(&[step(vec![tcp(1, 1..4), tcp(2, 1..4)])]);
    let words = |capacities| world.planner.rebuilt(capacities).expect_err("it is too small").to_string();
    let ids = words(Capacities { backends: 5, ..CAPACITIES });
    assert_eq!(
        ids,
        "capacities.backends cannot become 5: backend 5 is in use; choose 6 or more, or run `sluice detach` \
         first, which ends sessions"
    );
    let services = words(Capacities { services: 1, ..CAPACITIES });
    assert!(services.contains("capacities.services cannot become 1: service 1 is in use"), "{services}");
    let slots = words(Capacities { maglev_slots: 2048, ..CAPACITIES });
    assert!(slots.contains("capacities.maglevSlots is 2048") && slots.contains("sluice detach"), "{slots}");
    let enough = Capacities { services: 2, backends: 6, maglev_slots: 4096, ..CAPACITIES };
    assert!(world.planner.rebuilt(enough).is_ok());
}
