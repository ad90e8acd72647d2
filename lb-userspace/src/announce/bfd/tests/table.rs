//! The table of sessions: which one a packet reaches, and which it may not.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use proptest::prelude::*;

use super::{START, discriminator, ms, settings, theirs};
use crate::announce::bfd::{
    machine::{
        DropReason, Endpoint, Event, Hops, Interface, MinimumTtl, OpenError, Path, Port, Pulse, Received, SESSIONS_MAX,
        Sessions,
    },
    packet::{ControlPacket, Discriminator, Malformed, State},
};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn interface(index: u32) -> Interface {
    Interface::new(index).expect("not zero")
}

fn single(index: u32, local: &str, remote: &str) -> Endpoint {
    let hops = Hops::Single { interface: interface(index) };
    Endpoint::new(address(local), address(remote), hops).expect("two ends")
}

fn multi(local: &str, remote: &str, ttl: u8) -> Endpoint {
    let hops = Hops::Multi { minimum_ttl: MinimumTtl::new(ttl).expect("not zero") };
    Endpoint::new(address(local), address(remote), hops).expect("two ends")
}

/// A packet as the endpoint's other end sends it.
fn from<'a>(endpoint: &Endpoint, payload: &'a [u8]) -> Received<'a> {
    let interface = match endpoint.hops() {
        Hops::Single { interface } => interface,
        Hops::Multi { .. } => interface(9),
    };
    Received {
        port: endpoint.port(),
        source: endpoint.remote(),
        destination: endpoint.local(),
        interface: Some(interface),
        ttl: Some(255),
        payload,
    }
}

fn packet(yours: Option<Discriminator>, state: State) -> [u8; 24] {
    ControlPacket { your_discriminator: yours, ..theirs(state) }.emit()
}

fn table(endpoints: &[Endpoint]) -> Sessions {
    let mut sessions = Sessions::new(7);
    for endpoint in endpoints {
        sessions.open(*endpoint, settings(50, 50, 3), START).expect("room");
    }
    sessions
}

fn own(sessions: &Sessions, endpoint: &Endpoint) -> Option<Discriminator> {
    sessions.status(endpoint.path()).map(|status| status.discriminator)
}

//= test rfc5881#3:first-packet
//= test rfc5883#4.2:first-packet
//= test rfc5880#6.8.6:by-address
#[test]
fn a_first_packet_finds_its_session_by_where_it_comes_from() {
    let all = [
        single(1, "10.0.0.1", "10.0.0.2"),
        single(2, "10.0.0.1", "10.0.0.2"),
        single(1, "fe80::1", "fe80::2"),
        multi("10.0.0.1", "10.0.0.2", 200),
        multi("10.0.0.9", "10.0.0.2", 200),
    ];
    for endpoint in all {
        let mut sessions = table(&all);
        assert_eq!(sessions.handle_packet(&from(&endpoint, &packet(None, State::Down)), START), Ok(endpoint.path()));
        let reached: Vec<_> = sessions.statuses().filter(|(.., status)| status.state == State::Init).collect();
        assert!(matches!(reached[..], [(_, only, _)] if only == endpoint), "{endpoint:?}: {reached:?}");
    }
    let mut sessions = table(&all);
    let payload = packet(None, State::Down);
    let stranger = Received { source: address("10.0.0.3"), ..from(&all[0], &payload) };
    let elsewhere = Received { interface: Some(interface(3)), ..from(&all[0], &payload) };
    let nowhere = Received { interface: None, ..from(&all[0], &payload) };
    let other_end = Received { destination: address("10.0.0.8"), ..from(&all[3], &payload) };
    for received in [stranger, elsewhere, nowhere, other_end] {
        assert_eq!(sessions.handle_packet(&received, START), Err(DropReason::UnknownPeer), "{received:?}");
    }
    assert_eq!(sessions.counts().dropped(DropReason::UnknownPeer), 4);
}

//= test rfc5880#6.8.6:by-discriminator
//= test rfc5880#6.3:only-discriminator
#[test]
fn a_discriminator_finds_the_session_wherever_the_packet_comes_from() {
    let all = [single(1, "10.0.0.1", "10.0.0.2"), single(2, "10.0.1.1", "10.0.1.2")];
    let mut sessions = table(&all);
    let payload = packet(own(&sessions, &all[1]), State::Down);
    assert_eq!(sessions.handle_packet(&from(&all[0], &payload), START), Ok(all[1].path()));
    let payload = packet(Some(discriminator(1)), State::Down);
    assert_eq!(sessions.handle_packet(&from(&all[0], &payload), START), Err(DropReason::UnknownDiscriminator));
    assert_eq!(sessions.status(all[0].path()).map(|status| status.state), Some(State::Down), "its address is no help");
}

//= test rfc5881#5:ttl-received
#[test]
fn a_single_hop_packet_that_a_router_has_passed_on_is_dropped() {
    let endpoint = single(1, "10.0.0.1", "10.0.0.2");
    let mut sessions = table(&[endpoint]);
    let yours = own(&sessions, &endpoint);
    for payload in [packet(None, State::Down), packet(yours, State::Init)] {
        for ttl in [None, Some(0), Some(1), Some(254)] {
            let received = Received { ttl, ..from(&endpoint, &payload) };
            assert_eq!(sessions.handle_packet(&received, START), Err(DropReason::Ttl), "{ttl:?}");
        }
    }
    assert_eq!(sessions.counts().dropped(DropReason::Ttl), 8);
    assert!(sessions.handle_packet(&from(&endpoint, &packet(yours, State::Init)), START).is_ok());
    assert_eq!(sessions.counts().accepted(), 1);
}

#[test]
fn a_multihop_packet_needs_the_ttl_that_is_set() {
    let endpoint = multi("10.0.0.1", "10.9.0.2", 250);
    let mut sessions = table(&[endpoint]);
    let payload = packet(None, State::Down);
    for (ttl, fits) in [(None, false), (Some(249), false), (Some(250), true), (Some(255), true)] {
        let outcome = sessions.handle_packet(&Received { ttl, ..from(&endpoint, &payload) }, START);
        assert_eq!(outcome, if fits { Ok(endpoint.path()) } else { Err(DropReason::Ttl) }, "{ttl:?}");
    }
}

//= test rfc5881#4:port
//= test rfc5883#5:port
#[test]
fn the_other_port_is_no_way_around_the_ttl() {
    assert_eq!((Port::SingleHop.number(), Port::Multihop.number()), (3784, 4784));
    let all = [single(1, "10.0.0.1", "10.0.0.2"), multi("10.0.1.1", "10.9.0.2", 1)];
    let mut sessions = table(&all);
    for (endpoint, port) in [(all[0], Port::Multihop), (all[1], Port::SingleHop)] {
        let payload = packet(own(&sessions, &endpoint), State::Up);
        let received = Received { port, ..from(&endpoint, &payload) };
        assert_eq!(sessions.handle_packet(&received, START), Err(DropReason::WrongPort));
    }
}

//= test rfc5881#2:one-session-a-path
//= test rfc5883#4.1:distinct-ends
#[test]
fn a_path_has_one_session() {
    let all = [single(1, "10.0.0.1", "10.0.0.2"), multi("10.0.0.1", "10.0.0.2", 1)];
    let mut sessions = table(&all);
    for endpoint in [single(1, "10.0.0.7", "10.0.0.2"), multi("10.0.0.1", "10.0.0.2", 200)] {
        let path = endpoint.path();
        assert_eq!(sessions.open(endpoint, settings(50, 50, 3), START), Err(OpenError::Duplicate(path)));
    }
}

#[test]
fn two_ends_are_two_unicast_addresses_of_one_family() {
    let hops = Hops::Single { interface: interface(1) };
    let pairs = [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "fe80::1"),
        ("0.0.0.0", "10.0.0.1"),
        ("10.0.0.1", "224.0.0.1"),
        ("::1", "ff02::1"),
    ];
    for (local, remote) in pairs {
        let (local, remote) = (address(local), address(remote));
        assert_eq!(Endpoint::new(local, remote, hops), Err(OpenError::Addresses { local, remote }));
    }
    let far = Hops::Multi { minimum_ttl: MinimumTtl::new(1).expect("not zero") };
    assert!(Endpoint::new(address("fe80::1"), address("fe80::2"), far).is_err(), "no router passes these on");
    assert!(Endpoint::new(address("fe80::1"), address("fe80::2"), hops).is_ok());
    assert!(Interface::new(0).is_none() && MinimumTtl::new(0).is_none());
}

//= test rfc5880#6.8.1:random-discriminator
//= test rfc5880#6.8.1:unique-discriminator
#[test]
fn as_many_sessions_as_there_may_be_have_discriminators_of_their_own() {
    let endpoint = |number: usize| multi("10.0.0.1", &format!("10.1.{}.{}", number / 250, number % 250 + 1), 1);
    let all: Vec<Endpoint> = (0..SESSIONS_MAX).map(endpoint).collect();
    let mut sessions = table(&all);
    assert_eq!(sessions.open(endpoint(SESSIONS_MAX), settings(50, 50, 3), START), Err(OpenError::Full));
    let numbers: BTreeSet<u32> = sessions.statuses().map(|(.., status)| status.discriminator.get()).collect();
    assert_eq!(numbers.len(), SESSIONS_MAX);
    let upper = numbers.iter().filter(|number| **number > u32::MAX / 2).count();
    assert!((SESSIONS_MAX / 3..SESSIONS_MAX * 2 / 3).contains(&upper), "{upper} in the upper half");
    // A place that becomes free is used again, and what was known of its last session is not.
    let slot = sessions.close(all[500].path()).expect("was there");
    assert_eq!(sessions.close(all[500].path()), None);
    assert_eq!(sessions.open(endpoint(SESSIONS_MAX), settings(50, 50, 3), START), Ok(slot));
    let payload = packet(None, State::Down);
    assert_eq!(sessions.handle_packet(&from(&all[500], &payload), START), Err(DropReason::UnknownPeer));
}

#[test]
fn each_session_sends_in_its_turn_and_tells_its_own_events() {
    let all: Vec<Endpoint> = (1..=100).map(|number| single(number, "10.0.0.1", "10.0.0.2")).collect();
    let mut sessions = table(&all);
    let mut now = START;
    let mut sent = vec![0; 100];
    while now < START + Duration::from_secs(10) {
        now = sessions.poll_timeout().expect("always one").max(now);
        sessions.handle_timeout(now);
        while let Some(transmit) = sessions.poll_transmit(now, Pulse::at(now)) {
            assert!(transmit.due <= now);
            sent[transmit.slot.index()] += 1;
        }
    }
    assert!(sent.iter().all(|count| (10..=14).contains(count)), "{sent:?}");
    let up = all[41];
    assert!(sessions.handle_packet(&from(&up, &packet(own(&sessions, &up), State::Init)), now).is_ok());
    assert_eq!(sessions.poll_event(), Some((up.path(), Event::Up)));
    assert_eq!(sessions.poll_event(), None);
    now += ms(151);
    sessions.handle_timeout(now);
    assert!(matches!(sessions.poll_event(), Some((path, Event::Down { .. })) if path == up.path()));
}

#[test]
fn a_stopped_session_drops_by_name() {
    let endpoint = single(1, "10.0.0.1", "10.0.0.2");
    let mut sessions = table(&[endpoint]);
    sessions.with_each(|session| session.stop(START));
    let sent = sessions.poll_transmit(START, Pulse::at(START)).expect("at once");
    assert_eq!(sessions.poll_event(), None, "the kernel may not take it");
    sessions.handle_sent(sent.slot);
    assert_eq!(sessions.poll_event(), Some((endpoint.path(), Event::AdminDownSent)));
    let payload = packet(None, State::Down);
    assert_eq!(sessions.handle_packet(&from(&endpoint, &payload), START), Err(DropReason::AdminDown));
    assert_eq!(sessions.with(endpoint.path(), |session| session.resume(START)), Some(()));
    assert!(sessions.handle_packet(&from(&endpoint, &payload), START).is_ok());
    let unknown = Path::Single { interface: interface(2), remote: address("10.0.0.2") };
    assert_eq!(sessions.with(unknown, |session| session.resume(START)), None);
}

proptest! {
    #[test]
    fn whatever_comes_is_taken_or_counted(
        payloads in prop::collection::vec((any::<Vec<u8>>(), any::<Option<u8>>(), any::<bool>()), 0..50),
    ) {
        let endpoint = single(1, "10.0.0.1", "10.0.0.2");
        let mut sessions = table(&[endpoint]);
        for (payload, ttl, is_near) in &payloads {
            let ttl = if *is_near { Some(255) } else { *ttl };
            let _ = sessions.handle_packet(&Received { ttl, payload, ..from(&endpoint, &[]) }, START);
        }
        let dropped: u64 = sessions.counts().drops().map(|(_, count)| count).sum();
        prop_assert_eq!(sessions.counts().accepted() + dropped, payloads.len() as u64);
    }
}

#[test]
fn each_reason_has_a_counter_of_its_own() {
    let endpoint = single(1, "10.0.0.1", "10.0.0.2");
    let mut sessions = table(&[endpoint]);
    let _ = sessions.handle_packet(&from(&endpoint, &[]), START);
    for (reason, count) in sessions.counts().drops() {
        assert_eq!(count, u64::from(reason == DropReason::Malformed(Malformed::Truncated)), "{reason}");
    }
    assert_eq!(DropReason::ALL.map(DropReason::name).into_iter().collect::<BTreeSet<_>>().len(), DropReason::ALL.len());
}
