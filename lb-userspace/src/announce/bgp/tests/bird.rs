//! Real bytes, taken from sessions with BIRD 2.0.12.

use super::{
    super::{machine::*, packet::*, route::*},
    *,
};

fn octets(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("hex")).collect()
}

/// With both families, extended next hop and graceful restart.
const OPEN: &str = "ffffffffffffffffffffffffffffffff004b0104fdea00f00a0000092e022c01040001000101040002000102000506000100010002\
                    400a0078000101000002010041040000fdea46004700";
/// One prefix, End-of-RIB of IPv4, one prefix, End-of-RIB of IPv6.
const UPDATES: &str = "ffffffffffffffffffffffffffffffff0035020000001e900e000d00010104c00002020018c633644001010040020602010000\
                       fdeaffffffffffffffffffffffffffffffff00170200000000ffffffffffffffffffffffffffffffff0044020000002d900e001c\
                       0002011020010db8000000000000000000000002003020010db800ff4001010040020602010000fdeaffffffffffffffffffffff\
                       ffffffffff001d0200000006800f03000201";
/// What we sent in the session in which BIRD learnt 203.0.113.0/28, 203.0.113.1/32 and 2001:db8:1::1/128 as it should.
const OURS: &str = "ffffffffffffffffffffffffffffffff005d020000003c4001010040020602010000fde9400304c000020180040400000032c00804\
                    fde90007c010080004fde94a371b00c0200c0000fde900000001000000021ccb00710020cb007101ffffffffffffffffffffffff\
                    ffffffff0076020000005f900e00260002011020010db8000000000000000000000001008020010db80001000000000000000000\
                    014001010040020602010000fde980040400000032c00804fde90007c010080004fde94a371b00c0200c0000fde9000000010000\
                    0002ffffffffffffffffffffffffffffffff00170200000000ffffffffffffffffffffffffffffffff001e0200000007900f0003\
                    000201";

#[test]
fn its_open_is_read_whole() {
    let frames = frames(&octets(OPEN));
    let open = Open::parse(frames[0].body()).expect("accepted");
    let mut expected = Open { hold_time: seconds(240), ..their_open() };
    expected.capabilities.graceful_restart =
        Some(GracefulRestart { families: [(Family::Ipv4, false), (Family::Ipv6, false)].into(), ..graceful(false) });
    // Enhanced route refresh and long-lived graceful restart mean nothing here.
    expected.capabilities.others = [70, 71].into();
    assert_eq!(open, expected);
}

#[test]
fn its_updates_are_counted_and_its_ends_of_rib_found() {
    let mut bench = Bench::new(settings());
    let id = bench.connect();
    bench.receive(id, &octets(OPEN));
    bench.receive(id, &keepalive());
    bench.events();
    bench.receive(id, &octets(UPDATES));
    let ended: Vec<_> = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::EndOfRib(family, Direction::Received) => Some(family),
            _ => None,
        })
        .collect();
    assert_eq!(ended, Family::ALL);
    assert_eq!(bench.peer.status().counters.received.update, 4);
    // And the codec reads them as the same.
    for frame in frames(&octets(UPDATES)) {
        let update = read_update(&frame, true).expect("an UPDATE");
        assert_eq!(update.end_of_rib().is_some(), read_end_of_rib(frame.body()).is_some());
    }
}

/// Without the capability of four octets, and what we sent as AS 4200000001: BIRD made 4200000001 of AS_TRANS and AS4_PATH.
const NARROW_OPEN: &str =
    "ffffffffffffffffffffffffffffffff002f0104fdea00f00a00000912021001040001000102004002007846004700";
const NARROW: &str = "ffffffffffffffffffffffffffffffff005902000000384001010040020402015ba0400304c000020180040400000032c00804fd\
                      e90007c011060201fa56ea01c0200c0000fde900000001000000021ccb00710020cb007101ffffffffffffffffffffffffffffff\
                      ff00170200000000";
/// On a link-local session, with both families: BIRD had both next hops.
const LINK_LOCAL_OPEN: &str = "ffffffffffffffffffffffffffffffff00430104fdea00f00a000009260224010400010001010400020001020005060001\
                               000100024002007841040000fdea46004700";
const LINK_LOCAL: &str = "ffffffffffffffffffffffffffffffff0074020000005d900e002f0001012020010db8000000000000000000000001fe80000000\
                          000000f8628dfffe8edd43001ccb00710020cb0071014001010040020602010000fde980040400000032c00804fde90007c0200c\
                          0000fde90000000100000002ffffffffffffffffffffffffffffffff007b0200000064900e00360002012020010db80000000000\
                          00000000000001fe80000000000000f8628dfffe8edd43008020010db800010000000000000000000140010100400206020100\
                          00fde980040400000032c00804fde90007c0200c0000fde90000000100000002ffffffffffffffffffffffffffffffff001702\
                          00000000ffffffffffffffffffffffffffffffff001e0200000007900f0003000201";
/// Without any capability.
const BARE_OPEN: &str = "ffffffffffffffffffffffffffffffff001d0104fdea00f00a00000900";
const BARE: &str = "ffffffffffffffffffffffffffffffff0050020000002f400101004002040201fde9400304c000020180040400000032c00804fde9\
                    0007c0200c0000fde900000001000000021ccb00710020cb007101ffffffffffffffffffffffffffffffff00170200000000";

/// What it understood in those sessions is what we still send.
fn check(settings: Settings, endpoints: Endpoints, bandwidth: Option<LinkBandwidth>, open: &str, expected: &str) {
    let mut bench = Bench::new(settings);
    let attributes = Arc::new(Attributes {
        med: Some(50),
        communities: [Community(0xfde9_0007)].into(),
        large_communities: [LargeCommunity(65001, 1, 2)].into(),
        link_bandwidth: bandwidth,
        ..Attributes::default()
    });
    let of = |text: &str| Route { attributes: Arc::clone(&attributes), ..route(prefix(text)) };
    let wanted = ["203.0.113.1/32", "203.0.113.0/28", "2001:db8:1::1/128"].map(|text| (prefix(text), of(text)));
    bench.peer.set_interface(InterfaceAddresses { ipv4: None, ipv6: "2001:db8::1".parse().ok() });
    bench.peer.set_routes(wanted.into(), true);
    let id = bench.dialled();
    bench.peer.handle_connected(id, endpoints, bench.now);
    bench.receive(id, &octets(open));
    bench.receive(id, &keepalive());
    bench.acts();
    let updates = bench.sent.iter().filter(|(_, frame)| frame.kind == MessageType::Update);
    let sent: Vec<u8> = updates.flat_map(|(_, frame)| frame.octets.clone()).collect();
    assert_eq!(sent, octets(expected));
}

#[test]
fn both_families_over_ipv4_are_sent_as_it_understood_them() {
    let graceful_restart = Some(RestartTime::DEFAULT);
    let settings = Settings { graceful_restart, bandwidth: BandwidthKind::Transitive, ..settings() };
    check(settings, V4, LinkBandwidth::new(3, 1e6), OPEN, OURS);
}

#[test]
fn an_as_of_four_octets_is_sent_to_a_peer_of_two_as_it_understood_it() {
    check(Settings { local_as: as_number(4_200_000_001), ..settings() }, V4, None, NARROW_OPEN, NARROW);
}

#[test]
fn next_hops_on_a_link_local_session_are_sent_as_it_understood_them() {
    let local = IpAddr::V6("fe80::f862:8dff:fe8e:dd43".parse().expect("an address"));
    let remote = IpAddr::V6("fe80::a0f1:73ff:fe7a:966f".parse().expect("an address"));
    let settings = Settings { peer_as: PeerAs::External, ..settings() };
    check(settings, Endpoints { local, remote }, None, LINK_LOCAL_OPEN, LINK_LOCAL);
}

#[test]
fn a_peer_without_capabilities_is_sent_what_it_understood() {
    check(settings(), V4, None, BARE_OPEN, BARE);
}
