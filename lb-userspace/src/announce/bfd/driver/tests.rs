//! What the sockets do, over the loopback interface and without privileges.

use std::{
    collections::BTreeSet,
    net::{IpAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use super::{Driver, Error, SOURCE_PORTS, sys};
use crate::announce::bfd::machine::{
    Endpoint, Heartbeat, Hops, Interface, MinimumTtl, OpenError, Path, Settings, TTL_UNTOUCHED,
};

fn loopback() -> Interface {
    Interface::new(1).expect("Linux numbers it so")
}

fn driver() -> Driver {
    Driver::start(3, Arc::new(Heartbeat::default()), Box::new(|_, _| {}), || {}).expect("a thread")
}

fn multi(local: &str, remote: &str) -> Endpoint {
    let hops = Hops::Multi { minimum_ttl: MinimumTtl::new(1).expect("not zero") };
    Endpoint::new(local.parse().expect("an address"), remote.parse().expect("an address"), hops).expect("two ends")
}

//= test rfc5881#5:ttl-sent
#[test]
fn packets_leave_with_the_highest_ttl_and_arrive_with_all_that_is_asked() {
    for (address, port) in [("127.0.0.1", 47_384), ("::1", 47_384)] {
        let address: IpAddr = address.parse().expect("an address");
        let Ok(receiver) = sys::open(super::Family::of(address).any(), port, sys::Purpose::Receive) else {
            assert!(address.is_ipv6(), "a machine may be without IPv6");
            continue;
        };
        for interface in [None, Some(loopback())] {
            let sender = sys::open(address, 0, sys::Purpose::Send(interface)).expect("a socket");
            sys::send(&sender, &[7; 24], &sys::SocketAddress::new(address, port, 0)).expect("sent");
            let mut payload = [0; sys::PAYLOAD_BYTES_MAX];
            let arrival = sys::receive(&receiver, &mut payload).expect("loopback does not wait");
            assert_eq!((arrival.length, &payload[..24]), (24, &[7; 24][..]));
            assert_eq!((arrival.ttl, arrival.interface), (Some(TTL_UNTOUCHED), Some(loopback())));
            assert_eq!((arrival.source, arrival.destination), (address, Some(address)));
            assert!(sys::receive(&receiver, &mut payload).is_none());
        }
    }
}

//= test rfc5881#4:source-port
//= test rfc5881#4:source-port-unique
#[test]
fn each_session_has_a_source_port_of_its_own_in_the_range() {
    let receiver = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let to = sys::SocketAddress::new(
        "127.0.0.1".parse().expect("an address"),
        receiver.local_addr().expect("bound").port(),
        0,
    );
    let mut driver = driver();
    // The range's end is met, and where another has a port the next is taken.
    driver.next_source_port = 65_530;
    let _taken = UdpSocket::bind("127.0.0.1:65532");
    let mut ports = BTreeSet::new();
    for _ in 0..20 {
        let socket = driver.source_socket(&multi("127.0.0.1", "127.0.0.2")).expect("a socket");
        for _ in 0..2 {
            sys::send(&socket, &[1], &to).expect("sent");
        }
        let [first, second] = [(); 2].map(|()| receiver.recv_from(&mut [0; 8]).expect("sent above").1.port());
        assert_eq!(first, second, "one for all packets");
        assert!(SOURCE_PORTS.contains(&first) && first != 65_532, "{first}");
        ports.insert(first);
    }
    assert_eq!(ports.len(), 20);
}

//= test rfc5881#6:one-hop-path
#[test]
fn single_hop_packets_leave_by_their_link_or_not_at_all() {
    let address = "127.0.0.1".parse().expect("an address");
    let nowhere = Interface::new(i32::MAX.unsigned_abs()).expect("not zero");
    let to = sys::SocketAddress::new(address, 9, 0);
    for (interface, leaves) in [(loopback(), true), (nowhere, false)] {
        let socket = sys::open(address, 0, sys::Purpose::Send(Some(interface))).expect("a socket");
        assert_eq!(sys::send(&socket, &[1], &to).is_ok(), leaves, "{interface:?}");
    }
}

#[test]
fn what_cannot_be_done_is_said_at_once() {
    let mut driver = driver();
    let settings = Settings::new(Duration::from_secs(1), Duration::from_secs(1), 3).expect("in range");
    let unknown = Path::Multi { local: [10, 0, 0, 1].into(), remote: [10, 0, 0, 2].into() };
    assert!(matches!(driver.close(unknown), Err(Error::Unknown(path)) if path == unknown));
    let stranger = multi("192.0.2.1", "192.0.2.2");
    match driver.open(stranger, settings) {
        // Where another process of this machine has the port, that comes first.
        Err(Error::Send { .. } | Error::PortTaken { .. }) => {}
        other => panic!("{other:?}"),
    }
    if driver.open(multi("127.0.0.1", "127.0.0.2"), settings).is_ok() {
        let again = driver.open(multi("127.0.0.1", "127.0.0.2"), settings);
        assert!(matches!(again, Err(Error::Refused(OpenError::Duplicate(_)))), "{again:?}");
        assert_eq!(driver.report().expect("the thread lives").sessions.len(), 1);
    }
}

#[test]
fn the_thread_ends_with_the_driver_and_lateness_is_not_measured_without_a_heart() {
    let heartbeat = Arc::new(Heartbeat::default());
    let driver = Driver::start(3, Arc::clone(&heartbeat), Box::new(|_, _| {}), || {}).expect("a thread");
    assert_eq!(driver.report().expect("the thread lives").lateness.packets, 0);
    drop(driver);
    assert_eq!(Arc::strong_count(&heartbeat), 1, "it has let go of everything");
}
