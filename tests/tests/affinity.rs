//! Needs root and SLUICE_EBPF_OBJECT. Where packets of services with client affinity go, in `sluice_xdp` and in the same
//! decision on the host: description, owners, steps.

use std::{collections::HashSet, net::IpAddr};

use lb_common::{
    abi::{ServiceKey, protocol},
    address::Address,
    flow::Key,
    reason::Reason,
};
use lb_tests::{
    kernel::{Kernel, object},
    packets::{Packet, flag, oracle},
    world::{
        Outcome, Snapshot, World,
        content::{
            Content, VIPS, address,
            moved::{AFFINITY, PORT_KEPT, PORT_KEPT_REHASHED, PORT_KEPT_UDP, PORT_REHASHED, SHUT_OFF},
            pod,
        },
        sockets::{CLIENTS, Sockets, State, client, connection},
    },
};

/// The current owner.
const NEW: u32 = 13;
/// The owner before.
const OLD: u32 = 15;
/// One before that takes no new connections.
const DRAINS: u32 = 12;
/// Others.
const A: u32 = 11;
const B: u32 = 20;

const SYN: u8 = flag::SYN;
const DATA: u8 = flag::ACK | flag::PSH;
/// In place of a port: one whose slot by the hash with ports is the case's other one.
const OTHER: u16 = 0;

#[derive(Clone, Copy)]
enum Step {
    /// There is a record of the client, as old as that.
    Knows(u32, u32),
    /// The client has a connection with the pod from this port.
    Has(u16, u32),
    /// The client sends from this port, with these flags where it is TCP, and the pod gets it.
    Sends(u16, u8, u32),
    /// The flow cache is wiped.
    Wiped,
    /// So is the record of the client now.
    Names(Option<u32>),
}
use Step::{Has, Knows, Names, Sends, Wiped};

struct Case {
    what: &'static str,
    service: u16,
    earlier: &'static [u32],
    /// Current and earlier owners of the slot that the other hash names.
    other: Option<(u32, &'static [u32])>,
    steps: &'static [Step],
}

const fn tcp(what: &'static str, earlier: &'static [u32], steps: &'static [Step]) -> Case {
    Case { what, service: PORT_KEPT, earlier, other: None, steps }
}

const fn udp(what: &'static str, earlier: &'static [u32], steps: &'static [Step]) -> Case {
    Case { service: PORT_KEPT_UDP, ..tcp(what, earlier, steps) }
}

/// A case of one family, with its client.
struct Place<'a> {
    case: &'a Case,
    client: IpAddr,
    key: ServiceKey,
    other_port: u16,
}

/// Gives each case a client whose slot no other case has.
fn place<'a>(cases: &'a [Case], content: &mut Content) -> Vec<Place<'a>> {
    let mut taken = HashSet::new();
    let mut places = Vec::new();
    for (family, case) in [0, 1].into_iter().flat_map(|family| cases.iter().map(move |case| (family, case))) {
        let protocol = if case.service == PORT_KEPT_UDP { protocol::UDP } else { protocol::TCP };
        let key = ServiceKey::new(address(VIPS[family][0]), case.service, protocol);
        let (client, at) = (0..CLIENTS as u8)
            .map(|number| client(family, number))
            .map(|client| (client, content.slot_at((client, 0), key)))
            .find(|(_, at)| taken.insert(*at))
            .expect("more clients than cases of a service");
        // Of its own: clients share pods, and connections stay open.
        let first = 42_000 + 100 * places.len() as u16;
        let mut other_port = first;
        match case.other {
            None => content.set_slot(at, key, Some(NEW), case.earlier),
            Some((current, earlier)) => {
                let is_free = |port: &u16| taken.insert(content.slot_at((client, *port), key));
                other_port = (first..first + 100).find(is_free).expect("more slots than cases");
                let by_port = content.slot_at((client, other_port), key);
                let (here, there) = if case.service == PORT_REHASHED { (by_port, at) } else { (at, by_port) };
                content.set_slot(here, key, Some(NEW), case.earlier);
                content.set_slot(there, key, Some(current), earlier);
            }
        }
        places.push(Place { case, client, key, other_port });
    }
    places
}

fn check(cases: &[Case]) {
    let Some(object) = object() else { return };
    let mut content = Content::full();
    let places = place(cases, &mut content);
    let mut sockets = Sockets::new(&content);
    let (mut kernel, mut world) = (Kernel::load(&object, &content), World::new(&content));
    for Place { case, client, key, other_port } in places {
        kernel.reset();
        let now = coarse_now(&mut kernel);
        world.reset();
        let service = content.services.iter().find(|(known, _)| *known == key).expect("a service").1;
        let record = Key::affinity(service.id, client.into());
        let is_v4 = client.is_ipv4();
        let id_of = |pod: u32| content.backend_id(VIPS[usize::from(!is_v4)][0], case.service, key.protocol, pod);
        let port_of = |port: u16| if port == OTHER { other_port } else { port };
        for (number, step) in (1..).zip(case.steps) {
            let name = format!("{}, step {number}, from {client}", case.what);
            match *step {
                Knows(pod, age) => {
                    world.remember(&record, id_of(pod), age);
                    // The kernel's clock may move on by one.
                    let age = if age == AFFINITY { age - 1 } else { age };
                    kernel.remember(&record, id_of(pod), now.wrapping_sub(age));
                }
                Has(port, pod) => {
                    let connection = connection(&content, client, port_of(port), pod);
                    sockets.put(connection, State::Established);
                    sockets.check();
                    world.sockets.insert(connection);
                }
                Sends(port, flags, wanted) => {
                    let packet = Packet::from(client).to(IpAddr::from(key.address));
                    let packet = match key.protocol {
                        protocol::UDP => packet.udp(port_of(port), case.service),
                        _ => packet.tcp(port_of(port), case.service).flags(flags),
                    };
                    let (host, reason) = world.steer(&packet.frame());
                    assert_eq!(reason, Reason::Forwarded, "{name}");
                    assert_eq!(destination(&host), Some(wanted), "{name}, on the host");
                    assert_eq!(destination(&kernel.steer(&packet.frame())), Some(wanted), "{name}, in the kernel");
                }
                Wiped => {
                    kernel.reset();
                    world.reset();
                }
                Names(pod) => {
                    let wanted = pod.map(id_of);
                    assert_eq!(named(&world.snapshot(), &record), wanted, "{name}, on the host");
                    assert_eq!(named(&kernel.snapshot().0, &record), wanted, "{name}, in the kernel");
                }
            }
        }
    }
}

fn coarse_now(kernel: &mut Kernel) -> u32 {
    kernel.steer(&Packet::from("203.0.113.9").to(VIPS[0][0]).udp(1, 53).frame());
    let now = kernel.record_time().expect("a datagram of a recorded service leaves a record");
    kernel.reset();
    now
}

fn destination(outcome: &Outcome) -> Option<u32> {
    let destination = oracle::facts(&outcome.bytes)?.destination;
    (0..32).find(|id| pod(destination.is_ipv4(), *id) == Address::from(destination))
}

fn named(snapshot: &Snapshot, record: &Key) -> Option<u32> {
    snapshot.flows.iter().flatten().flatten().find(|(key, _)| key == record).map(|(_, backend)| *backend)
}

#[test]
fn a_client_stays_with_its_backend_where_slots_move() {
    check(&[
        tcp(
            "in a slot that has not moved all ports lead to its owner, and only a connection makes a record",
            &[],
            &[
                Sends(40_000, SYN, NEW),
                Sends(40_001, DATA, NEW),
                Names(None),
                Has(40_002, NEW),
                Sends(40_002, DATA, NEW),
                Names(Some(NEW)),
                Sends(50_000, SYN, NEW),
            ],
        ),
        tcp(
            "in a moved slot new connections go where the record says, from any port, and it stays",
            &[A, OLD],
            &[
                Knows(OLD, 5),
                Sends(40_000, SYN, OLD),
                Sends(40_001, SYN, OLD),
                Sends(50_000, SYN, OLD),
                Names(Some(OLD)),
            ],
        ),
        tcp("as long as the timeout", &[OLD], &[Knows(OLD, AFFINITY), Sends(40_000, SYN, OLD), Names(Some(OLD))]),
        tcp(
            "and no longer: then the record follows",
            &[OLD],
            &[Knows(OLD, AFFINITY + 1), Sends(40_000, SYN, NEW), Names(Some(NEW)), Sends(40_001, SYN, NEW)],
        ),
        tcp(
            "nor to one that drains, whose sessions stay",
            &[DRAINS],
            &[
                Knows(DRAINS, 0),
                Has(40_000, DRAINS),
                Sends(40_000, DATA, DRAINS),
                Sends(40_001, SYN, NEW),
                Names(Some(NEW)),
                Sends(40_000, DATA, DRAINS),
                Names(Some(NEW)),
            ],
        ),
        tcp("nor to one that cannot be reached", &[SHUT_OFF], &[Knows(SHUT_OFF, 0), Sends(40_000, SYN, NEW)]),
    ]);
}

#[test]
fn a_record_picks_among_owners_and_takes_no_connection_away() {
    check(&[
        tcp("one that is no owner is not picked", &[OLD], &[Knows(B, 0), Sends(40_000, SYN, NEW), Names(Some(NEW))]),
        tcp(
            "a wiped cache loses affinity, and no session",
            &[OLD],
            &[
                Knows(OLD, 0),
                Sends(40_000, SYN, OLD),
                Has(40_000, OLD),
                Sends(40_000, DATA, OLD),
                Wiped,
                Sends(40_000, DATA, OLD),
                Names(None),
                Sends(40_001, SYN, NEW),
                Sends(40_000, DATA, OLD),
            ],
        ),
        tcp(
            "an earlier owner's connection makes no record",
            &[OLD],
            &[Has(40_000, OLD), Sends(40_000, DATA, OLD), Names(None), Sends(40_001, SYN, NEW)],
        ),
        tcp(
            "what the current owner has stays there, and the record as it is",
            &[OLD],
            &[
                Knows(OLD, 0),
                Has(40_000, NEW),
                Sends(40_000, SYN, NEW),
                Sends(40_000, DATA, NEW),
                Names(Some(OLD)),
                Sends(40_001, SYN, OLD),
            ],
        ),
        tcp(
            "a connection of the current owner makes a record where there is none",
            &[OLD],
            &[Sends(40_000, DATA, NEW), Names(None), Has(40_000, NEW), Sends(40_000, DATA, NEW), Names(Some(NEW))],
        ),
    ]);
}

#[test]
fn datagrams_go_where_the_last_ones_went() {
    check(&[
        udp("every datagram is recorded", &[], &[Sends(40_000, 0, NEW), Names(Some(NEW)), Sends(40_001, 0, NEW)]),
        udp("in a moved slot too", &[OLD], &[Sends(40_000, 0, NEW), Names(Some(NEW))]),
        udp(
            "a record leads on",
            &[OLD],
            &[Knows(OLD, 3), Sends(40_000, 0, OLD), Sends(40_001, 0, OLD), Names(Some(OLD))],
        ),
    ]);
    check(&[
        udp("until it is too old", &[OLD], &[Knows(OLD, AFFINITY + 1), Sends(40_000, 0, NEW), Names(Some(NEW))]),
        udp("or its backend drains", &[DRAINS], &[Knows(DRAINS, 0), Sends(40_000, 0, NEW), Names(Some(NEW))]),
        udp("or the cache is wiped", &[OLD], &[Knows(OLD, 0), Sends(40_000, 0, OLD), Wiped, Sends(40_000, 0, NEW)]),
    ]);
}

#[test]
fn after_a_switch_sessions_stay_where_the_other_hash_led_them() {
    let switched = |service, what, current, earlier, steps| Case {
        service,
        other: Some((current, earlier)),
        ..tcp(what, &[], steps)
    };
    const STEPS: &[Step] = &[
        Has(OTHER, OLD),
        Sends(OTHER, DATA, OLD),
        Wiped,
        Sends(OTHER, DATA, OLD),
        Sends(OTHER, SYN, OLD),
        Wiped,
        Sends(OTHER, DATA, OLD),
    ];
    check(&[
        switched(PORT_KEPT_REHASHED, "on: the owner of its slot by port", OLD, &[], STEPS),
        switched(PORT_KEPT_REHASHED, "on: an earlier owner of its slot by port", A, &[B, OLD], STEPS),
        switched(
            PORT_KEPT_REHASHED,
            "on: new connections",
            OLD,
            &[A],
            &[Sends(OTHER, SYN, NEW), Sends(OTHER, DATA, NEW)],
        ),
        switched(PORT_REHASHED, "off: the owner of its slot by address", OLD, &[], STEPS),
        switched(PORT_REHASHED, "off: an earlier owner of its slot by address", A, &[B, OLD], STEPS),
        switched(PORT_REHASHED, "off: new connections", OLD, &[A], &[Sends(OTHER, SYN, NEW), Sends(OTHER, DATA, NEW)]),
    ]);
}
