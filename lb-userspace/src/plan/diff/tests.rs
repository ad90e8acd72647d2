use super::*;
use crate::model::{Announce, ReplyMode, Rung, XdpModeChoice};

const CAPACITIES: Capacities =
    Capacities { services: 4, backends: 16, maglev_slots: 1 << 14, bypasses: 1, flows: 4, fragments: 8 };

fn service(last: u8, backends: &[(u8, u16)]) -> Service {
    let backend =
        |&(last, weight): &(u8, u16)| Backend { address: [10, 0, 0, last].into(), port: 80, weight, drain: false };
    Service {
        name: format!("service-{last}"),
        vip: [198, 51, 100, last].into(),
        protocol: Protocol::Tcp,
        port: 80,
        replies: ReplyMode::Static,
        rung: RungChoice::Auto,
        affinity: None,
        health_check: None,
        backends: backends.iter().map(backend).collect(),
    }
}

fn snapshot(services: Vec<Service>) -> Snapshot {
    Snapshot {
        node_addresses: vec![[192, 0, 2, 1].into()],
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

/// What a reload from one to the other would change; and that it is what the plan then does, slot by slot.
fn between(before: &Snapshot, after: &Snapshot) -> Diff {
    let (mut planner, places) = (Planner::new(before.capacities), Places::new());
    planner.plan(before, &places, Duration::ZERO).unwrap();
    let found = diff(&planner, before, after, &places, Duration::from_secs(9));
    let untouched = format!("{:?}", planner.services());
    diff(&planner, before, after, &places, Duration::from_secs(9));
    assert_eq!(format!("{:?}", planner.services()), untouched, "asking changes nothing");
    found
}

fn pod(last: u8) -> SocketAddr {
    SocketAddr::new([10, 0, 0, last].into(), 80)
}

#[test]
fn the_same_configuration_changes_nothing_and_writes_nothing() {
    let same = snapshot(vec![service(1, &[(1, 1), (2, 3)]), service(2, &[])]);
    let diff = between(&same, &same);
    assert!(diff.is_empty() && diff.writes.is_empty() && diff.notes.is_empty(), "{diff:?}");
}

#[test]
fn a_backend_that_goes_gives_all_its_slots_to_the_others_and_few_else_move() {
    let three = snapshot(vec![service(1, &[(1, 1), (2, 1), (3, 1)]), service(2, &[(9, 1)])]);
    let two = snapshot(vec![service(1, &[(1, 1), (2, 1)]), service(2, &[(9, 1)])]);
    let diff = between(&three, &two);
    let [change] = &diff.services[..] else { panic!("{diff:?}") };
    assert_eq!((change.change, change.vip), (Change::Changed, [198, 51, 100, 1].into()));
    let gone = BackendChange { address: pod(3), change: Change::Removed, settings: Vec::new() };
    assert_eq!(change.backends, [gone]);
    let slots = change.slots.as_ref().unwrap();
    assert_eq!((slots.before, slots.after), (2048, 2048));
    let from_the_gone: u32 = slots.moves.iter().filter(|one| one.from == Some(pod(3))).map(|one| one.slots).sum();
    assert!((682..=683).contains(&from_the_gone), "a third: {slots:?}");
    assert!(slots.moves.iter().all(|one| one.to.is_some() && one.to != Some(pod(3))), "{slots:?}");
    assert_eq!(slots.moved, slots.moves.iter().map(|one| one.slots).sum::<u32>());
    assert_eq!(diff.writes["maglev"], u64::from(slots.moved), "{:?}", diff.writes);
}

#[test]
fn what_is_drained_keeps_its_sessions_and_loses_its_slots() {
    let before = snapshot(vec![service(1, &[(1, 1), (2, 1)])]);
    let mut after = before.clone();
    after.services[0].backends[1].drain = true;
    let diff = between(&before, &after);
    let [change] = &diff.services[..] else { panic!("{diff:?}") };
    let drained = Setting { key: "drain".into(), before: "false".into(), after: "true".into() };
    assert_eq!(change.backends, [BackendChange { address: pod(2), change: Change::Changed, settings: vec![drained] }]);
    let [all] = &change.slots.as_ref().unwrap().moves[..] else { panic!("{change:?}") };
    assert_eq!((all.from, all.to, all.slots), (Some(pod(2)), Some(pod(1)), 256));
}

#[test]
fn services_come_and_go_without_moves() {
    let before = snapshot(vec![service(1, &[(1, 1)]), service(2, &[(2, 5)])]);
    let after = snapshot(vec![service(3, &[(3, 1)]), service(1, &[(1, 1)])]);
    let diff = between(&before, &after);
    let seen: Vec<_> = diff.services.iter().map(|service| (service.change, service.name.as_str())).collect();
    assert_eq!(seen, [(Change::Added, "service-3"), (Change::Removed, "service-2")]);
    let slots: Vec<_> = diff.services.iter().map(|service| service.slots.clone().unwrap()).collect();
    assert_eq!((slots[0].before, slots[0].after, slots[0].moved), (0, 128, 0));
    assert_eq!((slots[1].before, slots[1].after, slots[1].moved), (128, 0, 0));
}

#[test]
fn a_table_that_grows_is_compared_by_the_flows_in_it() {
    let before = snapshot(vec![service(1, &[(1, 1)])]);
    let after = snapshot(vec![service(1, &[(1, 1), (2, 1)])]);
    let diff = between(&before, &after);
    let slots = diff.services[0].slots.clone().unwrap();
    assert_eq!((slots.before, slots.after, slots.moved), (128, 512, 256));
    assert_eq!(slots.moves, [Move { from: Some(pod(1)), to: Some(pod(2)), slots: 256 }]);
}

#[test]
fn every_key_that_changes_is_named() {
    let before = snapshot(vec![service(1, &[])]);
    let mut after = before.clone();
    after.node_addresses.push([192, 0, 2, 2].into());
    after.limits.echo_replies = 7;
    after.uplinks = vec![
        Uplink { interface: "eth0".into(), mode: XdpModeChoice::Generic },
        Uplink { interface: "eth1".into(), mode: XdpModeChoice::Auto },
    ];
    let renamed = &mut after.services[0];
    renamed.name = "other".into();
    renamed.replies = ReplyMode::None;
    renamed.rung = RungChoice::Only(Rung::Peer);
    renamed.affinity = Some(Affinity { timeout: Duration::from_secs(60) });
    let diff = between(&before, &after);
    let show = |settings: &[Setting]| -> Vec<String> {
        settings.iter().map(|one| format!("{}: {} -> {}", one.key, one.before, one.after)).collect()
    };
    assert_eq!(
        show(&diff.settings),
        ["node.addresses: 192.0.2.1 -> 192.0.2.1, 192.0.2.2", "limits.echoReplies: 1000 -> 7"]
    );
    let uplinks: Vec<_> = diff.uplinks.iter().map(|one| (one.interface.as_str(), one.change)).collect();
    assert_eq!(uplinks, [("eth0", Change::Changed), ("eth1", Change::Added)]);
    assert_eq!(show(&diff.uplinks[0].settings), ["mode: auto -> generic"]);
    let expected = [
        "name: service-1 -> other",
        "replies: static -> none",
        "rung: auto -> peer",
        "sessionAffinity: None -> ClientIP for 60 s",
    ];
    assert_eq!(show(&diff.services[0].settings), expected);
}

#[test]
fn what_does_not_fit_is_said_and_what_fits_after_a_rest_too() {
    let small = |mut snapshot: Snapshot| {
        snapshot.capacities = Capacities { services: 1, backends: 1, ..CAPACITIES };
        snapshot
    };
    let before = small(snapshot(vec![service(1, &[(1, 1)])]));
    let replaced = between(&before, &small(snapshot(vec![service(2, &[(2, 1)])])));
    assert!(replaced.refused.is_none() && replaced.notes[0].starts_with("in two steps, 1 s apart"), "{replaced:?}");
    assert_eq!(replaced.services[0].slots.as_ref().unwrap().after, 128, "what is there in the end");
    let beside = between(&before, &small(snapshot(vec![service(1, &[(1, 1)]), service(2, &[(2, 1)])])));
    assert!(beside.refused.as_ref().is_some_and(|why| why.contains("capacities.")), "{beside:?}");
}
