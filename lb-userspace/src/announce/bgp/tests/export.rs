//! What is announced, and with which attributes.

use std::net::Ipv6Addr;

use netgauze_bgp_pkt::path_attribute::AsPath;

use super::{
    super::{machine::*, packet::*, route::*},
    *,
};

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

const LL: Endpoints = Endpoints {
    local: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    remote: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2)),
};

fn global() -> Endpoints {
    Endpoints { local: v6("2001:db8::1").into(), remote: v6("2001:db8::2").into() }
}

/// A session over these addresses.
fn session(
    settings: Settings,
    endpoints: Endpoints,
    open: &Open,
    interface: InterfaceAddresses,
) -> (Bench, ConnectionId) {
    let mut bench = Bench::new(settings);
    bench.peer.set_interface(interface);
    let id = bench.dialled();
    bench.peer.handle_connected(id, endpoints, bench.now);
    bench.receive(id, &open.emit());
    bench.receive(id, &keepalive());
    bench.peer.set_routes(routes(&["198.51.100.1/32", "2001:db8:1::1/128"]), true);
    bench.acts();
    (bench, id)
}

fn next_hops(bench: &Bench, id: ConnectionId) -> (Option<NextHop>, Option<NextHop>) {
    let table = bench.table(id, true);
    let of = |text: &str| {
        let learnt = table.routes.get(&prefix(text))?;
        let classic = learnt.attributes.iter().find_map(|attribute| match attribute.value() {
            PathAttributeValue::NextHop(next_hop) => Some(NextHop::Ipv4(next_hop.next_hop())),
            _ => None,
        });
        match &learnt.reach {
            None => classic,
            Some(MpReach::Ipv4Unicast { next_hop: IpAddr::V6(global), next_hop_local, .. }) => {
                assert_eq!(classic, None);
                Some(NextHop::Ipv6(*global, *next_hop_local))
            }
            Some(MpReach::Ipv6Unicast { next_hop_global, next_hop_local, .. }) => {
                Some(NextHop::Ipv6(*next_hop_global, *next_hop_local))
            }
            other => panic!("{other:?}"),
        }
    };
    (of("198.51.100.1/32"), of("2001:db8:1::1/128"))
}

//= test rfc4760#3:no-next-hop
//= test rfc8950#3:next-hop
//= test rfc8950#4:both
//= test rfc2545#3:global
//= test rfc2545#3:link-local
#[test]
fn each_family_has_the_first_next_hop_that_there_is() {
    let plain = {
        let mut open = their_open();
        open.capabilities.extended_next_hop = false;
        open
    };
    let extended = their_open();
    let none = InterfaceAddresses::default();
    let both = InterfaceAddresses { ipv4: Some([192, 0, 2, 7].into()), ipv6: Some(v6("2001:db8::7")) };
    let four = |last| Some(NextHop::Ipv4([192, 0, 2, last].into()));
    let six = |text, local: Option<&str>| Some(NextHop::Ipv6(v6(text), local.map(v6)));
    // Session, the peer's OPEN, the interface: next hops of both families.
    let table = [
        (V4, &extended, none, four(1), None),
        (V4, &extended, both, four(1), six("2001:db8::7", None)),
        (global(), &plain, none, None, six("2001:db8::1", None)),
        (global(), &plain, both, four(7), six("2001:db8::1", None)),
        (global(), &extended, both, six("2001:db8::1", None), six("2001:db8::1", None)),
        (LL, &extended, both, six("2001:db8::7", Some("fe80::1")), six("2001:db8::7", Some("fe80::1"))),
        (LL, &extended, none, six("fe80::1", Some("fe80::1")), six("fe80::1", Some("fe80::1"))),
        (LL, &plain, both, four(7), six("2001:db8::7", Some("fe80::1"))),
    ];
    for (endpoints, open, interface, expected_v4, expected_v6) in table {
        let (bench, id) = session(settings(), endpoints, open, interface);
        let what = format!("{endpoints:?} {interface:?} {}", open.capabilities.extended_next_hop);
        assert_eq!(next_hops(&bench, id), (expected_v4, expected_v6), "{what}");
        let reason = |expected: Option<NextHop>| expected.is_none().then_some(NotAnnounced::NoNextHop);
        assert_eq!(bench.peer.why_not(prefix("198.51.100.1/32")), reason(expected_v4), "{what}");
        assert_eq!(bench.peer.why_not(prefix("2001:db8:1::1/128")), reason(expected_v6), "{what}");
    }
}

//= test rfc4271#5.1.3:peer
#[test]
fn a_configured_next_hop_wins_where_its_family_can_be_sent() {
    let mut plain = their_open();
    plain.capabilities.extended_next_hop = false;
    // Prefix, next hop, the peer takes IPv6 next hops, the reason why not.
    let table = [
        ("198.51.100.1/32", "192.0.2.77", false, None),
        ("198.51.100.1/32", "2001:db8::77", false, Some(NotAnnounced::NextHopNeedsExtension)),
        ("198.51.100.1/32", "2001:db8::77", true, None),
        ("2001:db8:1::1/128", "2001:db8::77", false, None),
        ("2001:db8:1::1/128", "192.0.2.77", true, Some(NotAnnounced::NextHopOfOtherFamily)),
        ("198.51.100.1/32", "192.0.2.2", true, Some(NotAnnounced::NextHopIsPeer)),
    ];
    for (of, next_hop, extended, reason) in table {
        let open = if extended { their_open() } else { plain.clone() };
        let (mut bench, id) = session(settings(), V4, &open, InterfaceAddresses::default());
        let next_hop: IpAddr = next_hop.parse().expect("an address");
        let wanted = Route { next_hop: Some(next_hop), ..route(prefix(of)) };
        bench.peer.set_routes([(prefix(of), wanted)].into(), true);
        bench.acts();
        assert_eq!(bench.peer.why_not(prefix(of)), reason, "{of} {next_hop}");
        let expected = match next_hop {
            IpAddr::V4(address) => NextHop::Ipv4(address),
            IpAddr::V6(address) => NextHop::Ipv6(address, None),
        };
        let (found_v4, found_v6) = next_hops(&bench, id);
        assert_eq!(found_v4.or(found_v6), reason.is_none().then_some(expected), "{of} {next_hop}");
    }
}

//= test rfc4760#8:both
#[test]
fn a_family_that_one_side_does_not_speak_is_not_announced_and_says_so() {
    let mut open = their_open();
    open.capabilities.families = [Family::Ipv4].into();
    let both = InterfaceAddresses { ipv4: None, ipv6: Some(v6("2001:db8::7")) };
    let (bench, id) = session(settings(), V4, &open, both);
    assert_eq!(bench.peer.why_not(prefix("2001:db8:1::1/128")), Some(NotAnnounced::FamilyNotNegotiated));
    assert_eq!(bench.table(id, true).prefixes(), ["198.51.100.1/32"]);
    assert_eq!(bench.table(id, true).ended, [Family::Ipv4]);
    let status = bench.peer.status();
    assert_eq!(status.not_announced, [(NotAnnounced::FamilyNotNegotiated, 1)].into());
    assert_eq!(status.held_back, [(Family::Ipv6, NotAnnounced::FamilyNotNegotiated)].into());
    assert_eq!(status.announced, [(Family::Ipv4, 1)].into());
}

fn path(bench: &Bench, id: ConnectionId, four_octet_as: bool) -> (AsPath, Option<Vec<u32>>) {
    let table = bench.table(id, four_octet_as);
    let path = table.value("198.51.100.1/32", |value| match value {
        PathAttributeValue::AsPath(path) => Some(path.clone()),
        _ => None,
    });
    let as4 = table.value("198.51.100.1/32", |value| match value {
        PathAttributeValue::As4Path(path) => {
            Some(path.segments().iter().flat_map(|segment| segment.as_numbers().to_vec()).collect())
        }
        _ => None,
    });
    (path.expect("a path"), as4)
}

/// The path's numbers, and whether they have two octets.
fn numbers(path: &AsPath) -> (Vec<u32>, bool) {
    match path {
        AsPath::As2PathSegments(segments) => {
            let numbers = segments.iter().flat_map(|segment| segment.as_numbers().to_vec());
            (numbers.map(u32::from).collect(), true)
        }
        AsPath::As4PathSegments(segments) => {
            (segments.iter().flat_map(|segment| segment.as_numbers().to_vec()).collect(), false)
        }
    }
}

//= test rfc4271#5.1.2:external
//= test rfc4271#5.1.2:internal
//= test rfc6793#4.1:width
//= test rfc6793#4.1:new
//= test rfc6793#4.2.2:as4-path
//= test rfc6793#4.2.2:needless
#[test]
fn the_path_has_the_width_that_was_agreed_on() {
    // Our AS, theirs, four octets there: numbers of the path, those of AS4_PATH.
    let table = [
        (65001, 65002, true, vec![65001], None),
        (65001, 65002, false, vec![65001], None),
        (4_200_000_001, 65002, true, vec![4_200_000_001], None),
        (4_200_000_001, 65002, false, vec![23456], Some(vec![4_200_000_001])),
        (65001, 65001, true, vec![], None),
        (65001, 65001, false, vec![], None),
    ];
    for (ours, theirs, four_octet_as, expected, expected_as4) in table {
        let settings = Settings { local_as: as_number(ours), peer_as: PeerAs::Number(as_number(theirs)), ..settings() };
        let mut open = Open { as_number: as_number(theirs), ..their_open() };
        open.capabilities.four_octet_as = four_octet_as.then_some(theirs);
        let (bench, id) = session(settings, V4, &open, InterfaceAddresses::default());
        let (path, as4) = path(&bench, id, four_octet_as);
        let (found, is_narrow) = numbers(&path);
        assert_eq!((found, as4), (expected.clone(), expected_as4), "{ours} {theirs} {four_octet_as}");
        assert!(is_narrow != four_octet_as || expected.is_empty());
    }
}

//= test rfc4271#5:mandatory
//= test rfc4271#5.1.1:origin
//= test rfc4271#5.1.4:med
//= test rfc4271#5.1.5:internal
//= test rfc4271#5.1.5:external
//= test rfc1997#0:transitive
//= test rfc4360#2:attribute
//= test rfc8092#5:duplicates
#[test]
fn attributes_go_out_as_they_are_wanted_and_preference_within_the_as_alone() {
    let attributes = Attributes {
        origin: Origin::Incomplete,
        local_preference: 200,
        med: Some(7),
        communities: [Community(0xfde9_0001), Community(0xfde9_0002)].into(),
        large_communities: [LargeCommunity(1, 2, 3)].into(),
        link_bandwidth: LinkBandwidth::new(4, 1000.0),
    };
    for (peer_as, kind, extended) in [
        (65002, BandwidthKind::NonTransitive, [0x40, 0x04]),
        (65002, BandwidthKind::Transitive, [0x00, 0x04]),
        (65001, BandwidthKind::Transitive, [0x40, 0x04]),
    ] {
        let settings = Settings { peer_as: PeerAs::Number(as_number(peer_as)), bandwidth: kind, ..settings() };
        let mut open = Open { as_number: as_number(peer_as), ..their_open() };
        open.capabilities.four_octet_as = Some(peer_as);
        let (mut bench, id) = session(settings, V4, &open, InterfaceAddresses::default());
        bench.sent.clear();
        let wanted = Route { attributes: Arc::new(attributes.clone()), ..route(prefix("198.51.100.1/32")) };
        bench.peer.set_routes([(wanted.prefix, wanted)].into(), true);
        bench.acts();
        let (_, frame) = bench.sent.first().expect("an announcement");
        let is_internal = peer_as == 65001;
        let mut expected = vec![0, 0, 0, 0];
        let mut add = |flags: u8, kind: u8, value: &[u8]| {
            expected.extend_from_slice(&[flags, kind, u8::try_from(value.len()).expect("short")]);
            expected.extend_from_slice(value);
        };
        add(0x40, 1, &[2]);
        if is_internal {
            add(0x40, 2, &[])
        } else {
            add(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xe9])
        }
        add(0x40, 3, &[192, 0, 2, 1]);
        add(0x80, 4, &[0, 0, 0, 7]);
        if is_internal {
            add(0x40, 5, &[0, 0, 0, 200]);
        }
        add(0xc0, 8, &[0xfd, 0xe9, 0, 2, 0xfd, 0xe9, 0, 1]);
        let bandwidth = 4000_f32.to_be_bytes();
        add(0xc0, 16, &[&extended[..], &[0xfd, 0xe9], &bandwidth].concat());
        add(0xc0, 32, &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
        let length = u16::try_from(expected.len() - 4).expect("short").to_be_bytes();
        expected[2..4].copy_from_slice(&length);
        expected.extend_from_slice(&[32, 198, 51, 100, 1]);
        let table = bench.table(id, true);
        assert_eq!(table.prefixes(), ["198.51.100.1/32"]);
        assert_eq!(frame.body(), expected, "towards {peer_as} {kind:?}");
    }
}

#[test]
fn link_bandwidth_is_never_zero_and_a_full_set_of_communities_keeps_the_mark() {
    assert_eq!(LinkBandwidth::new(0, 1e9), None);
    assert_eq!(LinkBandwidth::new(3, 0.0), None);
    assert_eq!(LinkBandwidth::new(3, f32::INFINITY), None);
    let communities = (0..1000).map(Community).chain([Community::GRACEFUL_SHUTDOWN]).collect();
    let large_communities = (0..1000).map(|n| LargeCommunity(n, n, n)).collect();
    let attributes = Attributes { communities, large_communities, ..Attributes::default() };
    let encoding = Encoding {
        local_as: as_number(4_200_000_001),
        is_internal: false,
        four_octet_as: false,
        bandwidth: BandwidthKind::NonTransitive,
    };
    let next_hop = NextHop::Ipv6(v6("2001:db8::1"), Some(v6("fe80::1")));
    let announcement = Announcement::new(Family::Ipv6, &attributes, next_hop, encoding);
    let prefixes: Vec<_> = (0..4000_u32).map(|n| prefix(&format!("2001:db8:{n:x}::1/128"))).collect();
    let (octets, count) = announcement.message(&prefixes).expect("room for some");
    assert!(count >= 100 && octets.len() <= MESSAGE_OCTETS_MAX && octets.len() > MESSAGE_OCTETS_MAX - 17);
    let frame = &frames(&octets)[0];
    let mut table = Table::default();
    table.apply(frame, false);
    let marks = table.value(&prefixes[0].to_string(), |value| match value {
        PathAttributeValue::Communities(it) => Some(it.communities().iter().map(|it| it.value()).collect::<Vec<_>>()),
        _ => None,
    });
    let marks = marks.expect("communities");
    assert_eq!((marks.len(), marks[0]), (COMMUNITIES_MAX, Community::GRACEFUL_SHUTDOWN.0));
}

//= test rfc4271#4.3:both
//= test rfc7606#5.1:one-kind
//= test rfc7606#5.1:first
//= test rfc4271#5:order
#[test]
fn ten_thousand_prefixes_go_in_as_few_messages_as_hold_them_each_of_one_kind() {
    let interface = InterfaceAddresses { ipv4: None, ipv6: Some(v6("2001:db8::7")) };
    let (mut bench, id) = session(settings(), V4, &their_open(), interface);
    let vips = (0..5000_u32).flat_map(|n| [format!("10.0.{}.{}/32", n / 250, n % 250), format!("2001:db8::{n:x}/128")]);
    let wanted: BTreeMap<_, _> = vips.map(|text| (prefix(&text), route(prefix(&text)))).collect();
    bench.sent.clear();
    bench.peer.set_routes(wanted.clone(), true);
    bench.acts();
    assert_eq!(bench.table(id, true).routes.len(), 10_000);
    // The two that were there are withdrawn; 4096 octets hold 800 prefixes of IPv4 or 236 of IPv6.
    assert!(bench.sent.len() <= 2 + 5000_usize.div_ceil(800) + 5000_usize.div_ceil(236), "{}", bench.sent.len());
    bench.peer.set_routes(BTreeMap::new(), true);
    bench.acts();
    assert_eq!(bench.table(id, true).routes.len(), 0);
    for (_, frame) in bench.sent.iter().filter(|(_, frame)| frame.kind == MessageType::Update) {
        let update = read_update(frame, true).expect("an UPDATE");
        let kinds: Vec<u8> =
            update.path_attributes().iter().map(|it| it.path_attribute_type().expect("known").into()).collect();
        let (reach, rest) = match kinds.split_first() {
            Some((14 | 15, rest)) => (1, rest),
            _ => (0, &kinds[..]),
        };
        assert!(rest.is_sorted() && !rest.contains(&14) && !rest.contains(&15), "{kinds:?}");
        let lists = usize::from(!update.withdraw_routes().is_empty()) + usize::from(!update.nlri().is_empty());
        assert_eq!(lists + reach, 1);
    }
}

//= test rfc2918#4:answer
//= test rfc2918#4:ignore
#[test]
fn a_refresh_is_answered_by_all_routes_of_its_family_and_no_others() {
    let refresh = |body: &[u8]| [&[0xff; 16][..], &[0, 23, 5], body].concat();
    let interface = InterfaceAddresses { ipv4: None, ipv6: Some(v6("2001:db8::7")) };
    let (mut bench, id) = session(settings(), V4, &their_open(), interface);
    for (body, expected) in [
        ([0, 1, 0, 1], vec!["198.51.100.1/32"]),
        ([0, 2, 0, 1], vec!["2001:db8:1::1/128"]),
        ([0, 2, 0, 2], vec![]),
        // The markers of RFC 7313.
        ([0, 1, 1, 1], vec![]),
    ] {
        bench.sent.clear();
        bench.receive(id, &refresh(&body));
        bench.acts();
        assert_eq!(bench.table(id, true).prefixes(), expected, "{body:?}");
        assert_eq!(bench.table(id, true).ended, []);
    }
    assert_eq!(bench.peer.status().counters.refreshes_ignored, 2);
    assert_eq!(bench.peer.status().counters.received.route_refresh, 4);
}

#[test]
fn a_refresh_never_brings_back_what_is_about_to_be_withdrawn() {
    let (mut bench, id) = session(settings(), V4, &their_open(), InterfaceAddresses::default());
    bench.peer.set_routes(BTreeMap::new(), true);
    bench.receive(id, &[&[0xff; 16][..], &[0, 23, 5, 0, 1, 0, 1]].concat());
    bench.acts();
    assert_eq!(bench.table(id, true).prefixes(), Vec::<String>::new());
}

#[test]
fn changed_interface_addresses_move_next_hops() {
    let (mut bench, id) = session(settings(), V4, &their_open(), InterfaceAddresses::default());
    assert_eq!(next_hops(&bench, id).1, None);
    bench.peer.set_interface(InterfaceAddresses { ipv4: None, ipv6: Some(v6("2001:db8::7")) });
    bench.acts();
    assert_eq!(next_hops(&bench, id).1, Some(NextHop::Ipv6(v6("2001:db8::7"), None)));
    bench.peer.set_interface(InterfaceAddresses::default());
    bench.acts();
    assert_eq!(bench.table(id, true).prefixes(), ["198.51.100.1/32"]);
}
