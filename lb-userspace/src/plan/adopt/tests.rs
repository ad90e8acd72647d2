//! An agent stops, anywhere in a plan; what it has written is read back, and life goes on.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use lb_common::abi::{self, ServiceKey, endpoint_flags};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, RngSeed},
};

use super::Adopted;
use crate::plan::{
    history::Dropped,
    ops::MapOp,
    planner::{EndpointKey, Planner, VipKey},
};

mod world;

use world::{Maps, Step, World, any_step, any_steps, atoms};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(162),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// The planner's part of the maps, without what only the running agent knows.
fn installed(planner: &Planner) -> String {
    let mut text = String::new();
    for (vip, service) in planner.services() {
        text += &format!("{vip:?} {:?}\n", service.value);
        let mut backends = service.backends.clone();
        backends.sort_by_key(|backend| backend.position);
        for backend in backends {
            text += &format!("  {:?}\n", backend.member(vip));
            if service.table.is_some() {
                text += &format!("    {:?} of {} slots\n", backend.value, backend.share);
            }
        }
        if let Some(slots) = service.slots() {
            let lists: Vec<_> = slots.lists().collect();
            text += &format!(
                "  {:?} {} {lists:?} {:?}\n",
                slots.slots().collect::<Vec<_>>(),
                slots.moved(),
                slots.remembered()
            );
        }
    }
    for (key, endpoint) in planner.endpoints() {
        text += &format!("{key:?} {} {:?} {:?}\n", endpoint.id, endpoint.value, endpoint.services);
        if endpoint.value.is_some() {
            text += &format!("  {:?}\n", endpoint.key);
        }
    }
    text + &format!("{:?}", planner.vips())
}

/// The first line in which two texts differ.
fn assert_same(is: &str, wanted: &str) {
    let differs = is.lines().zip(wanted.lines()).find(|(is, wanted)| is != wanted);
    assert!(is == wanted, "{differs:#?}");
}

fn assert_members(planner: &Planner, maps: &Maps) {
    let mut members = std::collections::BTreeMap::new();
    for (vip, service) in planner.services() {
        members.extend(service.backends.iter().map(|backend| (backend.value.id, backend.member(vip))));
    }
    assert_eq!(maps.members, members, "each backend is a member, and nobody else");
    let endpoints = planner.endpoints().values().filter(|endpoint| endpoint.value.is_some());
    let keys: std::collections::HashSet<ServiceKey> = endpoints.map(|endpoint| endpoint.key).collect();
    assert_eq!(maps.endpoints.keys().copied().collect::<std::collections::HashSet<_>>(), keys);
}

/// Adopts, and brings the maps to what is wanted.
fn resume(maps: &Maps, step: &Step, now: Duration) -> (World, Adopted) {
    let adopted = maps.adopt(now);
    let mut world = World { planner: adopted.planner.clone(), maps: maps.clone(), now };
    world.apply(&adopted.ops);
    let ops = step.plan(&mut world.planner, now);
    world.apply(&ops);
    (world, adopted)
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn what_was_written_as_a_whole_is_what_is_installed(steps in any_steps()) {
        let world = World::of(&steps);
        let last = steps.last().expect("there is a step");
        let adopted = world.maps.adopt(world.now);
        prop_assert!(adopted.discarded.is_empty(), "{:?}", adopted.discarded);
        // Ports that lead to backends without a table are found again by the next plan.
        let is_port = |op: &MapOp| matches!(op, MapOp::SetTxPort { .. });
        prop_assert!(adopted.ops.iter().all(is_port), "{:?}", adopted.ops);
        assert_same(&installed(&adopted.planner), &installed(&world.planner));
        let (resumed, _) = resume(&world.maps, last, world.now);
        prop_assert_eq!(resumed.maps.seen(), world.maps.seen());
        prop_assert_eq!(&resumed.maps.endpoints, &world.maps.endpoints);
        prop_assert_eq!(&resumed.maps.members, &world.maps.members);
        let mut planner = adopted.planner;
        let ops = last.plan(&mut planner, world.now);
        prop_assert!(ops.iter().all(is_port), "{ops:?}");
    }

    #[test]
    fn a_crash_anywhere_in_a_plan_loses_no_owner_and_leaves_nothing(
        steps in any_steps(),
        last in any_step(),
        later in any_step(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut world = World::of(&steps);
        let ops = atoms(&world.take(&last));
        let before = world.maps.clone();
        let mut crashed = world.maps.clone();
        ops[..at.index(ops.len() + 1)].iter().for_each(|op| crashed.apply(op));
        world.apply(&ops);

        let (mut resumed, adopted) = resume(&crashed, &last, world.now + Duration::from_secs(1));
        prop_assert!(adopted.discarded.is_empty(), "{:?}", adopted.discarded);
        last.assert_owned(&resumed.maps);
        assert_members(&resumed.planner, &resumed.maps);
        assert_owners_kept(&crashed, &resumed, &last);
        assert_equivalent(&before, &world.maps, &crashed, &resumed.maps);
        let again = last.plan(&mut resumed.planner, resumed.now);
        prop_assert!(again.is_empty(), "{again:?}");

        let ops = resumed.take(&later);
        resumed.apply(&ops);
        later.assert_owned(&resumed.maps);
        assert_members(&resumed.planner, &resumed.maps);
    }
}

/// Who is wanted and was offered packets of a slot at the crash, still is.
fn assert_owners_kept(crashed: &Maps, resumed: &World, last: &Step) {
    for (vip, service) in resumed.planner.services() {
        let Some(before) = crashed.services.get(&vip.to_abi()) else { continue };
        let may_forget = service.slots().is_none_or(|slots| slots.dropped() != Dropped::default());
        if may_forget || before.backends_count == 0 {
            continue;
        }
        let wanted = last.services.iter().find(|service| service.vip == vip.address).expect("it is wanted");
        let identity = |maps: &Maps, backend: &abi::Backend| {
            let member = maps.members.get(&backend.id)?;
            let pod = IpAddr::from(member.pod);
            wanted.backends.iter().any(|backend| backend.address == pod).then_some(pod)
        };
        let (before, after) = (crashed.found(before), resumed.maps.found(&service.value));
        let shift = (after.len() / before.len()).ilog2();
        for (slot, (owner, earlier)) in after.iter().enumerate() {
            let asked: Vec<IpAddr> =
                owner.iter().chain(earlier).filter_map(|backend| identity(&resumed.maps, backend)).collect();
            let (owner, earlier) = &before[slot >> shift];
            for backend in owner.iter().chain(earlier).filter_map(|backend| identity(crashed, backend)) {
                assert!(asked.contains(&backend), "slot {slot} of {vip:?} asks {asked:?}, not {backend}");
            }
        }
    }
}

/// What an agent has written that never crashed is written, but for numbers of its own.
fn assert_equivalent(before: &Maps, whole: &Maps, crashed: &Maps, resumed: &Maps) {
    assert_eq!(whole.vips, resumed.vips);
    let visible = |maps: &Maps| -> HashMap<ServiceKey, (u8, u8, u32)> {
        let part = |(key, value): (&ServiceKey, &abi::Service)| {
            let flags = value.flags & !abi::service_flags::REHASHED;
            // Of a table that is gone the size is forgotten, and so are the sessions that it was for.
            let is_same_table = crashed.services.get(key).is_some_and(|crashed| crashed.backends_count != 0);
            (*key, (if is_same_table { value.slots_log2 } else { 0 }, flags, value.affinity))
        };
        maps.services.iter().map(part).collect()
    };
    assert_eq!(visible(whole), visible(resumed));
    let mut keys: Vec<_> = whole.endpoints.keys().collect();
    let mut found: Vec<_> = resumed.endpoints.keys().collect();
    keys.sort_by_key(|key| (key.address, key.port, key.protocol, key.interface));
    found.sort_by_key(|key| (key.address, key.port, key.protocol, key.interface));
    assert_eq!(keys, found);
    for (key, wanted) in &whole.endpoints {
        let value = resumed.endpoints[key];
        assert_eq!((value.flags, value.netns_id), (wanted.flags, wanted.netns_id), "{key:?}");
        if before.endpoints.get(key).is_some_and(|before| before.vip == wanted.vip) {
            assert_eq!(value.vip, wanted.vip, "{key:?} keeps its default");
        }
    }
    for (key, service) in &whole.services {
        let rehashed = |service: &abi::Service| service.flags & abi::service_flags::REHASHED != 0;
        assert!(!rehashed(service) || rehashed(&resumed.services[key]), "{key:?} looks by both hashes");
    }
}

mod damage;
mod single;
