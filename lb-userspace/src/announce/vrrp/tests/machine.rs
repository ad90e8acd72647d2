//! What a virtual router says of itself and of others, and its limits.

use std::net::IpAddr;

use super::{
    Bench, Family, Interval, SECOND, Version, address, advertisement_each, interval, ms, settings, vips, vrid,
};
use crate::announce::vrrp::{
    machine::{
        ALARM_INTERVAL, AlarmKind, Cause, EVENTS_MAX, Event, Ignored, InvalidSettings, InvalidVips, Missing, Peers,
        Router, Settings, StateName, Stop, UNICAST_PEERS_MAX, VIPS_MAX, Vips,
    },
    packet::{Advertised, Advertisement, Malformed},
};

fn alarms(bench: &mut Bench) -> Vec<AlarmKind> {
    let alarms = bench.events.drain(..).filter_map(|event| match event {
        Event::Alarm { kind, .. } => Some(kind),
        Event::Transition { .. } | Event::Hold { .. } | Event::Release { .. } | Event::Gratuitous => None,
    });
    alarms.collect()
}

fn of(priority: u8, interval: Interval, lasts: &[u8]) -> Advertisement {
    let list = lasts.iter().copied().map(address).collect();
    Advertisement::new(vrid(7), Advertised::new(priority), interval, list).expect("an advertisement")
}

//= test rfc9568#7.1:interval
//= test rfc9568#7.1:addresses
//= test rfc9568#8.3.2:owner
#[test]
fn what_differs_elsewhere_is_an_alarm_and_still_counts() {
    let v2 = Interval::new(Version::V2, SECOND).expect("an interval");
    let second = interval(SECOND);
    let table: [(Advertisement, &[AlarmKind]); 8] = [
        (of(200, second, &[100, 101]), &[]),
        (of(200, second, &[101, 100]), &[]),
        (of(200, second, &[100]), &[AlarmKind::Vips]),
        (of(200, second, &[100, 101, 102]), &[AlarmKind::Vips]),
        (of(200, second, &[1, 2]), &[AlarmKind::Foreign]),
        (of(200, interval(ms(990)), &[100, 101]), &[AlarmKind::Interval]),
        (of(200, v2, &[100, 101]), &[AlarmKind::Version]),
        (of(255, second, &[100, 101]), &[AlarmKind::Owner]),
    ];
    for (heard, expected) in table {
        let mut bench = Bench::new(settings());
        bench.hear_this(&heard, 20);
        assert_eq!(alarms(&mut bench), expected, "{heard:?} while listening");
        let mut bench = Bench::active(settings());
        bench.hear_this(&heard, 20);
        assert_eq!(bench.state(), StateName::Backup, "{heard:?}");
        assert_eq!(alarms(&mut bench), expected);
        let shown = bench.router.status().alarms;
        assert_eq!(shown.keys().copied().collect::<Vec<_>>(), expected);
        assert!(shown.values().all(|alarm| alarm.from == address(20) && alarm.count == 1));
    }
}

#[test]
fn a_link_local_vip_that_everybody_has_by_default_makes_nobody_less_foreign() {
    let of = |vip: &str| Vips::new(vrid(7), Family::Ipv6, [vip.parse().expect("an address")]).expect("VIPs");
    let source = "fe80::a".parse().ok();
    let mut bench = Bench::new(Settings { vips: of("2001:db8::1"), address: source, ..settings() });
    let list = of("2001:db8::2").listed().to_vec();
    let heard = Advertisement::new(vrid(7), Advertised::new(9), interval(SECOND), list).expect("an advertisement");
    bench.router.handle_packet("fe80::b".parse().expect("an address"), &heard, bench.now);
    bench.settle();
    assert_eq!(alarms(&mut bench), [AlarmKind::Foreign]);
}

#[test]
fn an_alarm_is_reported_once_a_minute_and_counted_each_time() {
    let mut bench = Bench::backup(settings());
    let mut reports = 0;
    for _ in 0..ALARM_INTERVAL.as_secs() * 2 {
        bench.hear_this(&of(200, interval(SECOND), &[1]), 20);
        reports += alarms(&mut bench).len();
        bench.run(SECOND);
    }
    assert_eq!((reports, bench.router.status().alarms[&AlarmKind::Foreign].count), (2, 120));
}

#[test]
fn all_that_is_missing_is_said_and_each_must_come() {
    let mut bench = Bench::new(Settings { address: None, priority: None, ..settings() });
    bench.router.set_link(false, bench.now);
    bench.router.stop(Stop::Immediate, bench.now);
    assert_eq!(
        bench.router.missing(),
        [Missing::Stopped, Missing::InterfaceUp, Missing::Address, Missing::Eligibility]
    );
    bench.router.start(bench.now);
    bench.router.set_address(Some(address(10)), bench.now).expect("an address");
    bench.router.set_priority(settings().priority, bench.now);
    assert_eq!((bench.state(), bench.router.missing()), (StateName::Init, vec![Missing::InterfaceUp]));
    bench.router.set_link(true, bench.now);
    assert_eq!((bench.state(), bench.router.missing()), (StateName::Listening, vec![]));
}

#[test]
fn the_status_shows_state_times_counters_and_who_is_heard() {
    let mut bench = Bench::backup(settings());
    bench.router.count_malformed(Malformed::HopLimit);
    bench.router.count_malformed(Malformed::HopLimit);
    bench.hear_this(&advertisement_each(210, ms(250)), 21);
    let shown = serde_json::to_value(bench.router.status()).expect("a status");
    for (key, value) in [
        ("/state", serde_json::json!("backup")),
        ("/vrid", 7.into()),
        ("/version", "3".into()),
        ("/family", "ipv4".into()),
        ("/priority", 100.into()),
        ("/hold_until", serde_json::Value::Null),
        ("/heard/address", "10.0.0.21".into()),
        ("/heard/priority", 210.into()),
        ("/heard/interval", 0.25.into()),
        ("/counters/malformed/hop_limit", 2.into()),
        ("/counters/transitions/started", 1.into()),
        ("/alarms/interval/count", 1.into()),
        ("/alarms/interval/from", "10.0.0.21".into()),
        ("/listed", 2.into()),
    ] {
        assert_eq!(shown.pointer(key), Some(&value), "{key} of {shown:#}");
    }
    assert!(bench.router.status().since < bench.now);
}

#[test]
fn an_idle_router_still_knows_whom_it_hears() {
    let mut bench = Bench::new(Settings { priority: None, ..settings() });
    bench.hear(200, 20);
    let status = bench.router.status();
    assert_eq!(status.heard.map(|heard| heard.address), Some(address(20)));
    assert_eq!((status.state, status.counters.received_idle), (StateName::Init, 1));
}

#[test]
fn more_vips_than_fit_are_carried_and_not_listed() {
    let many = |family, count: u32| {
        let of = |number: u32| match family {
            Family::Ipv4 => IpAddr::from(number.to_be_bytes()),
            Family::Ipv6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16]),
        };
        Vips::new(vrid(7), family, (1..=count).map(of))
    };
    let v4 = many(Family::Ipv4, 300).expect("VIPs");
    assert_eq!((v4.all().len(), v4.listed().len()), (300, 255));
    let v6 = many(Family::Ipv6, 300).expect("VIPs");
    assert_eq!((v6.all().len(), v6.listed().len()), (301, 90), "with a link-local one");
    let most = VIPS_MAX as u32;
    assert!(many(Family::Ipv4, most).is_ok());
    assert_eq!(many(Family::Ipv4, most + 1), Err(InvalidVips::TooMany(vrid(7), VIPS_MAX + 1)));
    for (vips, source) in [(v4, "10.0.0.10"), (v6, "fe80::a")] {
        let address = source.parse().ok();
        let mut bench = Bench::active(Settings { vips: vips.clone(), address, ..settings() });
        bench.run(SECOND);
        assert_eq!(bench.sent[0].1.addresses(), vips.listed());
        let mut bytes = Vec::new();
        bench.sent[0].1.emit(source.parse().expect("an address"), vips.family().group(), &mut bytes);
        assert!(bytes.len() + 40 <= 1500);
        // What is not listed is given up with the others.
        bench.router.stop(Stop::Immediate, bench.now);
        bench.settle();
        assert!(bench.events.contains(&Event::Release { vips: vips.all().to_vec() }));
    }
}

#[test]
fn settings_that_do_not_fit_together_are_refused() {
    let refused = |settings: Settings| Router::new(settings, SECOND).err();
    assert_eq!(refused(settings()), None);
    let link_local: IpAddr = "fe80::1".parse().expect("an address");
    let v6 = Vips::new(vrid(7), Family::Ipv6, [link_local]).expect("VIPs");
    let second = Interval::new(Version::V2, SECOND).expect("an interval");
    let of = Settings { vips: v6.clone(), address: None, interval: second, ..settings() };
    assert_eq!(refused(of), Some(InvalidSettings::Version2(vrid(7))));
    let of = Settings { address: Some(link_local), ..settings() };
    assert_eq!(refused(of), Some(InvalidSettings::Address(vrid(7), link_local)));
    let unicast = |peers| Settings { peers: Peers::Unicast(peers), ..settings() };
    assert_eq!(refused(unicast([].into())), Some(InvalidSettings::PeerCount(vrid(7), 0)));
    assert_eq!(refused(unicast([link_local].into())), Some(InvalidSettings::PeerFamily(vrid(7), link_local)));
    let many = (0..=UNICAST_PEERS_MAX as u8).map(address).collect();
    assert_eq!(refused(unicast(many)), Some(InvalidSettings::PeerCount(vrid(7), UNICAST_PEERS_MAX + 1)));
    let of = Settings { refresh: Some(ms(10)), ..settings() };
    assert_eq!(refused(of), Some(InvalidSettings::Refresh(vrid(7))));
    let mut router = Router::new(settings(), SECOND).expect("settings");
    assert_eq!(router.set_vips(v6, SECOND), Err(InvalidSettings::Family(vrid(7))));
    assert_eq!(Vips::new(vrid(7), Family::Ipv4, []), Err(InvalidVips::Empty(vrid(7))));
    assert_eq!(Vips::new(vrid(7), Family::Ipv4, [link_local]), Err(InvalidVips::Family(vrid(7), link_local)));
}

#[test]
fn events_that_nobody_fetches_fill_no_memory() {
    let mut bench = Bench::active(settings());
    for at in 0..1000 {
        bench.now += SECOND;
        bench.router.set_priority((at % 2 == 0).then(|| settings().priority).flatten(), bench.now);
    }
    let waiting = std::iter::from_fn(|| bench.router.poll_event()).count();
    let lost = bench.router.status().counters.events_lost;
    assert!(waiting == EVENTS_MAX && lost > 0, "{waiting} wait, {lost} are lost");
}

#[test]
fn added_vips_are_announced_once_they_have_been_advertised() {
    let mut bench = Bench::active(settings());
    bench.run(SECOND * 10);
    bench.forget();
    bench.router.set_vips(vips(&[100, 101, 102]), bench.now).expect("VIPs");
    assert_eq!(bench.router.poll_event(), None);
    bench.settle();
    assert_eq!(bench.said(), [100]);
    assert_eq!(bench.events, [Event::Hold { until: bench.now + SECOND * 3 }, Event::Gratuitous]);
}

#[test]
fn version_2_is_spoken_where_its_interval_is_set() {
    let second = Interval::new(Version::V2, SECOND).expect("an interval");
    let mut bench = Bench::active(Settings { interval: second, ..settings() });
    bench.run(SECOND);
    assert_eq!(bench.sent[0].1.version(), Version::V2);
    bench.hear_this(&of(200, second, &[100, 101]), 20);
    assert_eq!((bench.state(), alarms(&mut bench)), (StateName::Backup, vec![]));
}

#[test]
fn reasons_and_kinds_are_named_as_they_are_shown() {
    for reason in Ignored::ALL {
        assert_eq!(serde_json::to_value(reason).expect("a name"), reason.name());
    }
    for kind in AlarmKind::ALL {
        assert_eq!(serde_json::to_value(kind).expect("a name"), kind.name());
    }
    for cause in Cause::ALL {
        assert_eq!(serde_json::to_value(cause).expect("a name"), cause.name());
    }
    for state in StateName::ALL {
        assert_eq!(serde_json::to_value(state).expect("a name"), state.name());
    }
}
