//! One test for each rule that the others do not show.

use super::{
    super::{machine::*, packet::*, values::*},
    *,
};

/// What is sent for this OPEN.
fn answer(settings: Settings, octets: &[u8]) -> Vec<Out> {
    let mut bench = Bench::new(settings);
    let id = bench.connect();
    bench.acts();
    bench.receive(id, octets);
    bench.outs()
}

fn refused(subcode: u8) -> Vec<Out> {
    vec![Out::Notification(2, subcode), Out::Close]
}

/// An OPEN with other octets at a place.
fn altered(at: usize, octets: &[u8]) -> Vec<u8> {
    let mut open = their_open().emit();
    open[at..at + octets.len()].copy_from_slice(octets);
    open
}

/// An OPEN with these optional parameters.
fn with_parameters(parameters: &[u8]) -> Vec<u8> {
    let length = u8::try_from(parameters.len()).expect("short");
    let fixed = [0xff; 16].into_iter().chain([0, 29 + length, 1, 4, 0xfd, 0xea, 0, 90, 10, 0, 0, 9, length]);
    fixed.chain(parameters.iter().copied()).collect()
}

//= test rfc4271#6.2:version
//= test rfc4271#6.2:hold-time
//= test rfc4271#6.2:parameter
//= test rfc4271#6.2:malformed
//= test rfc6286#2.1:non-zero
//= test rfc6286#2.2:zero
//= test rfc4271#4.2:hold-time
#[test]
fn each_fault_of_an_open_has_its_answer() {
    assert_eq!(answer(settings(), &their_open().emit()), [Out::Keepalive]);
    assert_eq!(answer(settings(), &altered(19, &[3])), refused(1));
    assert_eq!(answer(settings(), &altered(22, &[0, 1])), refused(6));
    assert_eq!(answer(settings(), &altered(22, &[0, 2])), refused(6));
    assert_eq!(answer(settings(), &altered(22, &[0, 3])), [Out::Keepalive]);
    assert_eq!(answer(settings(), &altered(24, &[0; 4])), refused(3));
    assert_eq!(answer(settings(), &with_parameters(&[1, 0])), refused(4));
    assert_eq!(answer(settings(), &with_parameters(&[2, 3, 1, 4, 0])), refused(0));
    assert_eq!(answer(settings(), &with_parameters(&[2, 9, 1, 4])), refused(0));
    assert_eq!(answer(settings(), &with_parameters(&[2])), refused(0));
    let version = OpenError::Version(3).notification();
    assert_eq!(version.data(), [0, 4]);
}

//= test rfc4271#6.2:peer-as
//= test rfc7607#2:zero
//= test rfc7607#2:peer
//= test rfc6793#9:as-trans
//= test rfc6793#4.1:number
#[test]
fn the_peers_as_is_the_one_that_is_expected_and_never_a_reserved_one() {
    let of = |number: u32| {
        let mut open = their_open();
        open.capabilities.four_octet_as = Some(number);
        open.emit()
    };
    assert_eq!(answer(settings(), &of(65003)), refused(2));
    assert_eq!(answer(settings(), &of(0)), refused(2));
    assert_eq!(answer(settings(), &of(23456)), refused(2));
    let external = Settings { peer_as: PeerAs::External, ..settings() };
    assert_eq!(answer(external.clone(), &of(65003)), [Out::Keepalive]);
    assert_eq!(answer(external.clone(), &of(0)), refused(2));
    assert_eq!(answer(external, &of(65001)), refused(2));
    // The capability counts, not the field.
    let large = Settings { peer_as: PeerAs::Number(as_number(4_200_000_000)), ..settings() };
    assert_eq!(answer(large, &of(4_200_000_000)), [Out::Keepalive]);
    assert_eq!(AsNumber::new(0), Err(ValueError::ReservedAs(0)));
    assert_eq!(AsNumber::new(23456), Err(ValueError::ReservedAs(23456)));
}

//= test rfc6286#2.2:same
#[test]
fn our_own_identifier_is_refused_within_the_as_and_allowed_from_another() {
    let internal = Settings { peer_as: PeerAs::Number(as_number(65001)), ..settings() };
    let mut open = Open { as_number: as_number(65001), identifier: identifier(5), ..their_open() };
    open.capabilities.four_octet_as = Some(65001);
    assert_eq!(answer(internal, &open.emit()), refused(3));
    assert_eq!(answer(settings(), &Open { identifier: identifier(5), ..their_open() }.emit()), [Out::Keepalive]);
}

//= test rfc5492#3:unknown
//= test rfc5492#4:several
//= test rfc5492#4:repeated
//= test rfc8950#4:ignored
//= test rfc4724#3:last
#[test]
fn capabilities_that_are_unknown_malformed_or_repeated_end_nothing() {
    // One in each parameter; an unknown one, IPv4 and IPv6 unicast, four octets, and a family without a name.
    let parameters = [
        &[2, 4, 200, 2, 1, 2][..],
        &[2, 14, 1, 4, 0, 1, 0, 1, 1, 4, 0, 1, 0, 1, 2, 0],
        &[2, 12, 1, 4, 0, 2, 0, 1, 1, 4, 0x7f, 0xff, 0, 99],
        &[2, 6, 65, 4, 0, 0, 0xfd, 0xea],
        // Lengths that their codes cannot have.
        &[2, 7, 2, 1, 9, 65, 2, 0, 1],
        // Two next hop entries, one of a family that is not known.
        &[2, 14, 5, 12, 0, 1, 0, 128, 0, 2, 0, 1, 0, 1, 0, 2],
        // Graceful restart twice: the last counts.
        &[2, 4, 64, 2, 0x80, 10],
        &[2, 12, 64, 10, 0x40, 20, 0, 1, 1, 0x80, 0x40, 4, 71, 0],
    ];
    let octets = with_parameters(&parameters.concat());
    let open = Open::parse(&octets[19..]).expect("accepted");
    let expected = Capabilities {
        families: Family::ALL.into(),
        has_other_families: true,
        route_refresh: true,
        four_octet_as: Some(65002),
        extended_next_hop: true,
        graceful_restart: Some(GracefulRestart {
            restarted: false,
            notification: true,
            time: RestartTime::from_seconds(20).expect("fits"),
            families: [(Family::Ipv4, true)].into(),
            has_other_families: true,
        }),
        others: [1, 2, 65, 200].into(),
    };
    assert_eq!(open.capabilities, expected);
    assert_eq!(answer(settings(), &octets), [Out::Keepalive]);
}

//= test rfc5492#5:needed
#[test]
fn a_peer_without_any_of_our_families_is_told_which_it_lacks() {
    let only_v6 = Settings { families: [Family::Ipv6].into(), ..settings() };
    let mut bench = Bench::new(only_v6);
    let id = bench.connect();
    bench.acts();
    bench.receive(id, &with_parameters(&[]));
    assert_eq!(bench.outs(), refused(7));
    let (_, last) = bench.sent.last().expect("a message");
    assert_eq!(last.body(), [2, 7, 1, 4, 0, 2, 0, 1]);
}

//= test rfc4760#8:capability
//= test rfc6793#4.2.1:my-as
//= test rfc6793#4.1:advertise
//= test rfc5492#4:one
//= test rfc4724#3:reserved
#[test]
fn our_open_says_what_we_can_do_in_one_parameter() {
    let settings = Settings {
        local_as: as_number(4_200_000_001),
        graceful_restart: Some(RestartTime::DEFAULT),
        bfd: BfdUse::On,
        ..settings()
    };
    let mut bench = Bench::new(settings);
    bench.connect();
    bench.acts();
    let (_, frame) = bench.sent.first().expect("an OPEN");
    let expected = [
        &[4, 0x5b, 0xa0, 0, 90, 10, 0, 0, 5, 42, 2, 40][..],
        &[1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 5, 6, 0, 1, 0, 1, 0, 2],
        &[64, 10, 0x40, 30, 0, 1, 1, 0, 0, 2, 1, 0, 65, 4, 0xfa, 0x56, 0xea, 0x01],
    ];
    assert_eq!(frame.body(), expected.concat());
}

//= test rfc5492#3:retry
#[test]
fn a_peer_that_reads_no_parameters_is_tried_once_without() {
    let mut bench = Bench::new(settings());
    let unsupported = Notification::new(code::OPEN, open_error::UNSUPPORTED_PARAMETER, vec![2]).emit();
    let id = bench.connect();
    bench.receive(id, &unsupported);
    let id = bench.connect();
    bench.acts();
    let (_, frame) = bench.sent.last().expect("an OPEN");
    assert_eq!(frame.octets.len(), 29);
    // The session is one of IPv4 and two octets.
    bench.receive(id, &with_parameters(&[]));
    bench.receive(id, &keepalive());
    let negotiated = bench.peer.status().negotiated.expect("a session");
    assert_eq!((negotiated.families, negotiated.four_octet_as), ([Family::Ipv4].into(), false));
    bench.peer.handle_closed(id, None, bench.now);
    bench.connect();
    bench.acts();
    assert!(bench.sent.last().expect("an OPEN").1.octets.len() > 29);
}

//= test rfc4271#4.2:smaller
//= test rfc4271#4.4:rate
//= test rfc4271#4.4:none
//= test rfc4271#10:jitter
#[test]
fn keepalives_come_at_a_third_of_the_smaller_hold_time_and_never_twice_a_second() {
    for (ours, theirs, hold) in [(90, 30, 30), (9, 90, 9), (3, 3, 3)] {
        let mut bench = Bench::new(Settings { hold_time: seconds(ours), ..settings() });
        let id = bench.establish_with(&Open { hold_time: seconds(theirs), ..their_open() });
        bench.peer.set_routes(BTreeMap::new(), true);
        bench.acts();
        assert_eq!(bench.peer.status().negotiated.map(|it| it.hold_time), Some(seconds(hold)));
        let third = SECOND * u32::from(hold) / 3;
        for _ in 0..50 {
            let before = bench.now;
            while !bench.outs().contains(&Out::Keepalive) {
                bench.receive(id, &keepalive());
                bench.now = bench.peer.poll_timeout().expect("a timer");
                bench.peer.handle_timeout(bench.now);
            }
            let pause = bench.now - before;
            assert!(pause <= third && pause >= (third * 3 / 4).max(SECOND), "{pause:?} of {third:?}");
        }
    }
    for (ours, theirs) in [(0, 90), (90, 0)] {
        let mut bench = Bench::new(Settings { hold_time: seconds(ours), ..settings() });
        bench.establish_with(&Open { hold_time: seconds(theirs), ..their_open() });
        bench.peer.set_routes(BTreeMap::new(), true);
        bench.acts();
        bench.advance(SECOND * 100_000);
        assert_eq!((bench.peer.state(), bench.outs()), (State::Established, vec![]));
    }
}

//= test rfc4271#8.2.2:hold-restart
#[test]
fn keepalives_and_updates_keep_a_session_alive_and_nothing_else_does() {
    let mut bench = Bench::new(settings());
    let id = bench.establish();
    let refresh = [&[0xff; 16][..], &[0, 23, 5, 0, 1, 0, 1]].concat();
    for octets in [keepalive(), end_of_rib(Family::Ipv4)] {
        bench.advance(SECOND * 80);
        bench.receive(id, &octets);
        assert_eq!(bench.peer.state(), State::Established);
    }
    bench.advance(SECOND * 80);
    assert_eq!(bench.peer.state(), State::Established);
    bench.receive(id, &refresh);
    bench.advance(SECOND * 10);
    assert_eq!(bench.last_cause(), Some(Cause::HoldTimerExpired));
}

//= test rfc9687#3.3:expires
//= test rfc9687#3.3:restart
//= test rfc9687#3.3:none
//= test rfc9687#3.4:default
#[test]
fn a_peer_that_takes_nothing_for_eight_minutes_or_twice_the_hold_time_is_left() {
    for (hold, limit) in [(90, 480), (300, 600)] {
        let mut bench = Bench::new(Settings { hold_time: seconds(hold), ..settings() });
        let id = bench.establish_with(&Open { hold_time: seconds(hold), ..their_open() });
        bench.acts();
        // From here on the kernel takes nothing, and then one octet.
        let starve = |bench: &mut Bench, time: u32| {
            for _ in 0..time {
                bench.advance(SECOND);
                while bench.peer.poll_transmit(bench.now).is_some() {}
                bench.receive(id, &keepalive());
            }
        };
        bench.peer.set_routes(routes(&["198.51.100.1/32"]), true);
        while bench.peer.poll_transmit(bench.now).is_some() {}
        starve(&mut bench, limit - 1);
        bench.peer.handle_written(id, 1, bench.now);
        starve(&mut bench, limit - 1);
        assert_eq!(bench.peer.state(), State::Established);
        bench.advance(SECOND);
        assert_eq!(bench.last_cause(), Some(Cause::SendHoldTimerExpired));
        assert!(bench.outs().iter().all(|out| !matches!(out, Out::Notification(..))));
    }
}

#[test]
fn what_the_kernel_does_not_take_is_not_built() {
    let mut bench = Bench::new(settings());
    let id = bench.establish();
    bench.acts();
    let many = (0..60_000_u32).map(|n| Prefix::host(IpAddr::V4((0x0a00_0000 + n).into())).expect("unicast"));
    bench.peer.set_routes(many.map(|prefix| (prefix, route(prefix))).collect(), true);
    let mut octets = 0;
    while let Some(action) = bench.peer.poll_transmit(bench.now) {
        if let Action::Send(_, it) = action {
            octets += it.len();
        }
    }
    assert!((65_536..65_536 + 4096).contains(&octets), "{octets}");
    // All are withdrawn before the rest was announced: it never is.
    bench.peer.set_routes(BTreeMap::new(), true);
    bench.peer.handle_written(id, octets, bench.now);
    let acts = bench.acts();
    assert!(acts.len() < 20, "{}", acts.len());
    assert_eq!(bench.peer.announced().count(), 0);
}

#[test]
fn each_failure_doubles_the_wait_up_to_a_minute_and_a_lasting_session_ends_that() {
    let mut bench = Bench::new(settings());
    let mut waits = Vec::new();
    let wait = |bench: &mut Bench| {
        let before = bench.now;
        bench.redial();
        bench.now - before
    };
    let id = bench.dialled();
    bench.peer.handle_closed(id, Some("connection refused"), bench.now);
    for _ in 0..8 {
        let before = bench.now;
        let id = bench.redial();
        waits.push(bench.now - before);
        bench.peer.handle_closed(id, Some("connection refused"), bench.now);
    }
    for (wait, expected) in waits.iter().zip([1, 2, 4, 8, 16, 32, 60, 60]) {
        let full = SECOND * expected;
        assert!(*wait <= full && *wait >= full * 3 / 4, "{waits:?}");
    }
    // One that is over at once makes no difference, one that lasts does.
    let id = bench.establish();
    bench.receive(id, &Notification::cease(cease::OUT_OF_RESOURCES).emit());
    assert!(wait(&mut bench) >= SECOND * 45);
    bench.peer.handle_closed(id, None, bench.now);
    let mut bench = Bench::new(settings());
    for _ in 0..5 {
        let id = bench.redial();
        bench.peer.handle_closed(id, None, bench.now);
    }
    let id = bench.establish();
    for _ in 0..3 {
        bench.advance(SECOND * 30);
        bench.receive(id, &keepalive());
        bench.acts();
    }
    bench.peer.handle_closed(id, None, bench.now);
    assert!(wait(&mut bench) <= SECOND);
}

//= test rfc6286#2.1:unique
#[test]
fn the_identifier_is_configured_or_the_nodes_address_or_made_of_its_name() {
    let node = Some([192, 0, 2, 3].into());
    assert_eq!(Identifier::choose(Some(identifier(1)), node, "a"), identifier(1));
    assert_eq!(Some(Identifier::choose(None, node, "a").get()), node);
    let hashed = |name| Identifier::choose(None, None, name);
    assert_ne!(hashed("worker-1"), hashed("worker-2"));
    assert_eq!(hashed("worker-1"), hashed("worker-1"));
    assert!(Identifier::new([0, 0, 0, 0].into()).is_err());
}

//= test rfc9003#4:length
//= test rfc9003#6:sanitize
#[test]
fn words_that_do_not_fit_their_length_are_not_shown() {
    let words = |data: &[u8]| Notification::new(code::CEASE, cease::ADMINISTRATIVE_SHUTDOWN, data.to_vec()).words();
    assert_eq!(words(&[]), None);
    assert_eq!(words(&[0]), None);
    assert_eq!(words(&[9, b'a']), None);
    assert_eq!(words(&[1, b'a', b'b']).as_deref(), Some("a"));
    assert_eq!(words(&[2, 0xff, b'\n']).as_deref(), Some("\u{fffd}\u{fffd}"));
    let long = Communication::new(&"ü".repeat(200));
    let data = Notification::cease_with(cease::ADMINISTRATIVE_RESET, Some(&long));
    assert_eq!((data.data().len(), data.data()[0]), (255, 254));
    assert!(Notification::cease_with(cease::COLLISION, Some(&long)).data().is_empty());
    let hard = data.hardened();
    assert_eq!(
        (hard.words(), hard.to_string().starts_with("hard reset (6/9): administrative reset (6/4): üü")),
        (data.words(), true)
    );
}

#[test]
fn the_status_can_be_read_by_machines() {
    let mut bench = Bench::new(settings());
    bench.peer.set_routes(routes(&["198.51.100.1/32", "2001:db8::1/128"]), true);
    bench.establish();
    bench.acts();
    let status = serde_json::to_value(bench.peer.status()).expect("plain data");
    assert_eq!(status["state"], "Established");
    assert_eq!(status["announced"]["Ipv4"], 1);
    assert_eq!(status["not_announced"]["NoNextHop"], 1);
    assert_eq!(status["counters"]["sent"]["update"], 3);
}

#[test]
fn what_only_the_driver_can_find_is_shown_like_other_errors() {
    let mut bench = Bench::new(settings());
    bench.peer.handle_error(Cause::PasswordMismatch, "192.0.2.2 signs with another password", bench.now);
    let status = bench.peer.status();
    assert_eq!(status.last_error.map(|it| it.cause), Some(Cause::PasswordMismatch));
    assert_eq!(status.causes.get(&Cause::PasswordMismatch), Some(&1));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let now = Duration::ZERO;
    let none = Settings { families: BTreeSet::new(), ..settings() };
    assert_eq!(Peer::new(none, RestartFacts::default(), 0, now).err(), Some(SettingsError::NoFamilies));
    let hasty = Settings { dial_time: Duration::ZERO, ..settings() };
    let expected = Some(SettingsError::DialTime(Duration::ZERO));
    assert_eq!(Peer::new(hasty, RestartFacts::default(), 0, now).err(), expected);
    assert_eq!(HoldTime::from_seconds(2), Err(ValueError::HoldTime(2)));
    assert_eq!(RestartTime::from_seconds(4096), Err(ValueError::RestartTime(4096)));
    assert!(Prefix::new([224, 0, 0, 1].into(), 32).is_err());
    assert!(Prefix::new([10, 0, 0, 1].into(), 33).is_err());
    assert_eq!(prefix("10.1.2.3/8").to_string(), "10.0.0.0/8");
}
