//! Needs root and SLUICE_EBPF_OBJECT. Who gets a packet of a moved slot, in `sluice_xdp` and with real connections:
//! description, owners, connections, packets in, who gets them.

use std::{collections::HashSet, net::IpAddr};

use lb_common::{
    abi::{ServiceKey, protocol},
    address::Address,
    flow::{Key, State as Known},
    reason::Reason,
};
use lb_tests::{
    kernel::{Kernel, object},
    packets::{Packet, flag, oracle},
    world::{
        content::{
            Content, VIPS,
            moved::{NO_SUCH_NAMESPACE, PORT, PORT_OPAQUE, PORT_RECORDED, SHUT_OFF, UNASKED},
            pod,
        },
        sockets::{Sockets, State, client, connection},
    },
};

/// The current owner.
const NEW: u32 = 13;
/// The owner before.
const OLD: u32 = 12;
/// The one before that.
const OLDER: u32 = 11;
/// Others.
const A: u32 = 15;
const B: u32 = 18;
const C: u32 = 20;

const SYN: u8 = flag::SYN;
const DATA: u8 = flag::ACK | flag::PSH;

/// Who gets a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Pod(u32),
    /// It is answered, or dropped.
    Nobody(Reason),
}
use Who::{Nobody, Pod};

#[derive(Clone, Copy)]
enum Step {
    /// The client sends a segment with these flags.
    Gets(u8, Who),
    /// The connection with this pod is closed by both ends.
    Closes(u32),
    /// The flow cache has the client as this pod's.
    Remembers(u32),
    /// The flow cache gets a record of this pod.
    Recorded(u32, Known),
    /// This is the flow cache's record.
    Knows(Option<(u32, Known)>),
}
use Step::{Closes, Gets, Knows, Recorded, Remembers};

struct Case {
    what: String,
    service: u16,
    current: Option<u32>,
    earlier: Vec<u32>,
    /// The slot's reference instead, which points nowhere.
    lost: Option<u16>,
    connections: Vec<(u32, State)>,
    steps: Vec<Step>,
}

/// The slot moved from `OLDER` to `OLD` to `NEW`.
fn case(what: impl Into<String>, connections: &[(u32, State)], steps: &[Step]) -> Case {
    Case {
        what: what.into(),
        service: PORT,
        current: Some(NEW),
        earlier: vec![OLD, OLDER],
        lost: None,
        connections: connections.to_vec(),
        steps: steps.to_vec(),
    }
}

impl Case {
    fn owned_by(self, current: Option<u32>, earlier: &[u32]) -> Self {
        Self { current, earlier: earlier.to_vec(), ..self }
    }

    fn through(self, service: u16) -> Self {
        Self { service, ..self }
    }

    fn lost(self, reference: u16) -> Self {
        Self { lost: Some(reference), ..self }
    }
}

/// A case in one family, from a port whose slot no other case has.
struct Place<'a> {
    case: &'a Case,
    from: (IpAddr, u16),
    vip: IpAddr,
}

/// Gives each case a slot of its own.
fn place<'a>(cases: &'a [Case], content: &mut Content) -> Vec<Place<'a>> {
    let mut taken = HashSet::new();
    let mut places = Vec::new();
    for (family, case) in [0, 1].into_iter().flat_map(|family| cases.iter().map(move |case| (family, case))) {
        let (client, vip) = (client(family, 0), VIPS[family][0].parse().expect("an address"));
        let service = (vip, case.service);
        let mut own = |port: &u16| taken.insert(std::ptr::from_mut(content.slot_mut((client, *port), service)).addr());
        let from = (client, (50_000..60_000).find(&mut own).expect("more slots than cases"));
        content.set_owners(from, service, case.current, &case.earlier);
        if let Some(reference) = case.lost {
            content.slot_mut(from, service).history = reference;
        }
        places.push(Place { case, from, vip });
    }
    places
}

fn check(cases: &[Case]) {
    let Some(object) = object() else { return };
    let mut content = Content::full();
    let places = place(cases, &mut content);
    let mut sockets = Sockets::new(&content);
    let mut kernel = Kernel::load(&object, &content);
    for Place { case, from, vip } in places {
        kernel.reset();
        let what = &case.what;
        let connection = |pod: u32| connection(&content, from.0, from.1, pod);
        case.connections.iter().for_each(|(pod, state)| sockets.put(connection(*pod), *state));
        sockets.check();
        let mut packets = 0;
        for (number, step) in (1..).zip(&case.steps) {
            match *step {
                Closes(pod) => {
                    sockets.close(&connection(pod));
                    sockets.check();
                }
                Remembers(pod) => {
                    let vip = vip.to_string();
                    let service = content.service_id(&vip, case.service, protocol::TCP);
                    let backend = content.backend_id(&vip, case.service, protocol::TCP, pod);
                    kernel.remember(&Key::tcp(service, from.0.into(), from.1), backend, 0);
                }
                Gets(flags, who) => {
                    let packet = Packet::from(from.0).to(vip).tcp(from.1, case.service).flags(flags);
                    assert_eq!(steer(&mut kernel, &packet), who, "{what}, step {number}, from {}", from.0);
                    packets += 1;
                }
                Recorded(pod, known) => {
                    let (key, id) = record(&content, from, (vip, case.service), pod);
                    kernel.remember(&key.in_state(known), id, kernel.record_time().unwrap_or(0));
                }
                Knows(wanted) => {
                    let flows = kernel.snapshot().0.flows;
                    let known: Vec<_> = flows.iter().flatten().flatten().map(|(key, id)| (*id, key.state())).collect();
                    let wanted = wanted.map(|(pod, known)| (record(&content, from, (vip, case.service), pod).1, known));
                    assert_eq!(known, Vec::from_iter(wanted), "{what}, step {number}, from {}", from.0);
                }
            }
        }
        let broken = kernel.reasons().into_iter().find(|(reason, _)| *reason == Reason::BrokenHistory);
        let wanted = case.lost.map(|_| (Reason::BrokenHistory, packets));
        assert_eq!(broken, wanted, "{what}, histories that are not there, from {}", from.0);
        if case.lost.is_some() {
            let snapshot = kernel.snapshot().0;
            assert!(snapshot.flows.iter().flatten().all(Option::is_none), "{what}: a record in the flow cache");
            assert!(snapshot.bypasses.is_empty(), "{what}: a bypass");
        }
    }
}

/// The key of a connection's record, and the id of a pod in its service.
fn record(content: &Content, from: (IpAddr, u16), to: (IpAddr, u16), pod: u32) -> (Key, u32) {
    let key = ServiceKey::new(to.0.into(), to.1, protocol::TCP);
    let (_, service) = content.services.iter().find(|(known, _)| *known == key).expect("a service");
    let id = content.backend_id(&to.0.to_string(), to.1, protocol::TCP, pod);
    (Key::tcp(service.id, from.0.into(), from.1), id)
}

fn steer(kernel: &mut Kernel, packet: &Packet) -> Who {
    let before = kernel.reasons();
    let outcome = kernel.steer(&packet.frame());
    let mut counted = kernel.reasons();
    counted.retain(|count| count.0 != Reason::BrokenHistory && !before.contains(count));
    let [(reason, _)] = counted[..] else { panic!("one packet is counted as {counted:?}") };
    if reason != Reason::Forwarded {
        return Nobody(reason);
    }
    let destination = oracle::facts(&outcome.bytes).expect("a packet").destination;
    let is_v4 = destination.is_ipv4();
    Pod((0..32).find(|id| pod(is_v4, *id) == Address::from(destination)).expect("a pod of the content"))
}

#[test]
fn a_connection_stays_with_the_owner_that_has_it() {
    let open = State::Established;
    check(&[
        case("a new connection goes to the current owner", &[], &[Gets(SYN, Pod(NEW))]),
        case(
            "a session of the owner before stays there, whatever its segments say",
            &[(OLD, open)],
            &[Gets(DATA, Pod(OLD)), Gets(SYN, Pod(OLD)), Gets(flag::FIN, Pod(OLD)), Gets(flag::RST, Pod(OLD))],
        ),
        case("a session of the one before that", &[(OLDER, open)], &[Gets(DATA, Pod(OLDER)), Gets(DATA, Pod(OLDER))]),
        case(
            "a session of the first of seven",
            &[(OLDER, open)],
            &[Gets(DATA, Pod(OLDER)), Gets(flag::RST, Pod(OLDER))],
        )
        .owned_by(Some(NEW), &[OLD, A, B, C, UNASKED, NO_SUCH_NAMESPACE, OLDER]),
        case("a session of the current owner", &[(NEW, open)], &[Gets(DATA, Pod(NEW)), Gets(SYN, Pod(NEW))]),
        case("of two that have it the later owner gets it", &[(OLDER, open), (OLD, open)], &[Gets(DATA, Pod(OLD))]),
        case("an earlier owner goes before the current one", &[(NEW, open), (OLD, open)], &[Gets(DATA, Pod(OLD))]),
        case("who owned the slot never is not asked", &[(A, open)], &[Gets(DATA, Pod(NEW))]),
        case(
            "a segment of nobody's session goes to the current owner, who resets it",
            &[],
            &[Gets(DATA, Pod(NEW)), Gets(flag::RST, Pod(NEW))],
        ),
        case("in a stable slot nobody is asked", &[(OLD, open)], &[Gets(DATA, Pod(NEW))]).owned_by(Some(NEW), &[]),
    ]);
}

#[test]
fn every_state_of_a_connection_says_whose_it_is() {
    let of = |(owner, state): (u32, State)| {
        let gets = if state.is_living() { owner } else { NEW };
        case(format!("{state:?} at {owner}"), &[(owner, state)], &[Gets(DATA, Pod(gets)), Gets(SYN, Pod(gets))])
    };
    // One that listens for both families could accept what is to wait.
    let dual = State::ALL.into_iter().filter(|state| *state != State::Waiting).map(|state| (OLD, state));
    let cases: Vec<_> = dual.chain(State::ALL.map(|state| (OLDER, state))).map(of).collect();
    check(&cases);
}

#[test]
fn a_client_may_use_its_port_again() {
    check(&[
        case(
            "while an earlier owner is in TIME_WAIT: a new connection, with the current one",
            &[(OLD, State::TimeWait)],
            &[Gets(SYN, Pod(NEW)), Gets(DATA, Pod(NEW))],
        ),
        case(
            "while an earlier owner has closed and waits for the client",
            &[(OLD, State::HalfClosed)],
            &[Gets(SYN, Pod(NEW))],
        ),
        case(
            "while an earlier owner has it half open: there, for the SYN-ACK is under way",
            &[(OLD, State::HalfOpen)],
            &[Gets(SYN, Pod(OLD)), Gets(flag::ACK, Pod(OLD))],
        ),
        case(
            "while an earlier owner still has it: there, whose kernel knows its own",
            &[(OLD, State::LastAck)],
            &[Gets(SYN, Pod(OLD))],
        ),
    ]);
}

#[test]
fn the_cache_answers_until_a_syn_says_otherwise() {
    let open = State::Established;
    check(&[
        case(
            "what an owner said once is used without asking again; a SYN asks, and makes it right",
            &[(OLD, open)],
            &[
                Gets(DATA, Pod(OLD)),
                Closes(OLD),
                Gets(DATA, Pod(OLD)),
                Gets(SYN, Pod(NEW)),
                Gets(DATA, Pod(NEW)),
                Gets(flag::RST, Pod(NEW)),
            ],
        ),
        case(
            "a SYN is not remembered: the next segment asks",
            &[(OLD, open)],
            &[Gets(SYN, Pod(OLD)), Closes(OLD), Gets(DATA, Pod(NEW))],
        ),
    ]);
}

#[test]
fn owners_that_cannot_take_a_packet_get_none() {
    let (open, no_backend) = (State::Established, Nobody(Reason::NoBackend));
    let unreachable = Nobody(Reason::BackendUnreachable);
    check(&[
        case("no owner: new connections are refused", &[], &[Gets(SYN, no_backend), Gets(DATA, no_backend)])
            .owned_by(None, &[OLD]),
        case("no owner: sessions go on", &[(OLD, open)], &[Gets(DATA, Pod(OLD)), Gets(SYN, Pod(OLD))])
            .owned_by(None, &[OLD]),
        case("no owner, and none before", &[(OLD, open)], &[Gets(SYN, no_backend)]).owned_by(None, &[]),
        case(
            "what nobody has may be of an earlier owner that cannot be reached: dropped; new connections are not",
            &[(SHUT_OFF, open)],
            &[Gets(DATA, unreachable), Gets(flag::RST, unreachable), Gets(SYN, Pod(NEW)), Gets(DATA, unreachable)],
        )
        .owned_by(Some(NEW), &[SHUT_OFF]),
        case(
            "sessions of those that can be reached go on beside it",
            &[(OLDER, open)],
            &[Gets(DATA, Pod(OLDER)), Closes(OLDER), Gets(SYN, Pod(NEW))],
        )
        .owned_by(Some(NEW), &[SHUT_OFF, OLDER]),
        case(
            "with a record in the cache and without one alike",
            &[],
            &[Gets(DATA, unreachable), Remembers(SHUT_OFF), Gets(DATA, unreachable), Gets(SYN, Pod(NEW))],
        )
        .owned_by(Some(NEW), &[SHUT_OFF]),
        case("and those of the current owner", &[(NEW, open)], &[Gets(DATA, Pod(NEW)), Gets(DATA, Pod(NEW))])
            .owned_by(Some(NEW), &[OLDER, SHUT_OFF]),
        case(
            "without a current owner: new connections are refused, what may be its own is dropped",
            &[],
            &[Gets(SYN, no_backend), Gets(DATA, unreachable)],
        )
        .owned_by(None, &[SHUT_OFF]),
        case(
            "the current owner cannot be reached: dropped; sessions of others go on",
            &[(OLD, open)],
            &[Gets(DATA, Pod(OLD))],
        )
        .owned_by(Some(SHUT_OFF), &[OLD]),
        case("the current owner cannot be reached: new connections are dropped", &[], &[Gets(SYN, unreachable)])
            .owned_by(Some(SHUT_OFF), &[OLD]),
        case("an earlier owner that cannot be asked has nothing", &[(UNASKED, open)], &[Gets(DATA, Pod(NEW))])
            .owned_by(Some(NEW), &[UNASKED]),
        case("nor has one in a namespace that is not there", &[(NO_SUCH_NAMESPACE, open)], &[Gets(DATA, Pod(NEW))])
            .owned_by(Some(NEW), &[NO_SUCH_NAMESPACE, UNASKED]),
    ]);
}

#[test]
fn a_history_that_is_not_there_is_counted_and_disturbs_nothing() {
    let open = State::Established;
    check(&[
        case("the current owner gets everything", &[(OLD, open)], &[Gets(DATA, Pod(NEW)), Gets(SYN, Pod(NEW))])
            .lost(60_000),
        // The first one of the content is empty, as those are that were never written.
        case("so also where the list was never written", &[(OLD, open)], &[Gets(DATA, Pod(NEW)), Gets(SYN, Pod(NEW))])
            .lost(1),
        case("the slot beside has its history", &[(OLD, open)], &[Gets(DATA, Pod(OLD)), Gets(SYN, Pod(OLD))]),
    ]);
}

#[test]
fn a_claim_asks_the_owner_that_was_found() {
    let open = State::Established;
    let cases = [
        case("a new connection is recorded", &[], &[Gets(SYN, Pod(NEW)), Gets(DATA, Pod(NEW))]),
        case("a segment of no session is refused", &[], &[Gets(DATA, Nobody(Reason::NoSession))]),
        case(
            "a session of an earlier owner through another service",
            &[(OLD, open)],
            &[Gets(DATA, Nobody(Reason::ForeignSession)), Gets(SYN, Pod(OLD))],
        ),
        case(
            "a port used again in TIME_WAIT is a new connection",
            &[(OLD, State::TimeWait)],
            &[Gets(DATA, Nobody(Reason::NoSession)), Gets(SYN, Pod(NEW)), Gets(DATA, Pod(NEW))],
        ),
    ];
    check(&cases.map(|case| case.through(PORT_RECORDED)));
}

/// In [`PORT_OPAQUE`], `OLD`, `A` and `C` are opaque.
#[test]
fn opaque_owners_are_recorded_and_not_asked() {
    let open = State::Established;
    let (opening, established, closing) = (Known::Opening, Known::Established, Known::Closing);
    let cases = [
        case(
            "the socket of an opaque owner means nothing",
            &[(OLD, open)],
            &[Gets(DATA, Pod(NEW)), Gets(SYN, Pod(NEW))],
        ),
        case("an owner that can be asked is asked", &[(OLDER, open)], &[Gets(DATA, Pod(OLDER)), Gets(SYN, Pod(OLDER))]),
        case(
            "a recorded connection stays, SYNs too: its SYN-ACK may be under way",
            &[],
            &[Recorded(OLD, opening), Gets(SYN, Pod(OLD)), Gets(DATA, Pod(OLD)), Knows(Some((OLD, opening)))],
        ),
        case(
            "a record goes before a socket",
            &[(OLDER, open)],
            &[Recorded(OLD, established), Gets(DATA, Pod(OLD)), Gets(SYN, Pod(OLD)), Knows(Some((OLD, established)))],
        )
        .owned_by(Some(NEW), &[OLDER, OLD]),
        case(
            "what closes is finished there, and its client may use the port again",
            &[],
            &[Recorded(OLD, closing), Gets(DATA, Pod(OLD)), Knows(Some((OLD, closing))), Gets(SYN, Pod(NEW))],
        ),
        case(
            "a client that resets its connection may use the port again",
            &[],
            &[
                Recorded(OLD, established),
                Gets(flag::RST, Pod(OLD)),
                Knows(Some((OLD, closing))),
                Gets(DATA, Pod(OLD)),
                Gets(SYN, Pod(NEW)),
            ],
        ),
        case("who is no owner gets nothing by a record", &[], &[Recorded(C, established), Gets(DATA, Pod(NEW))]),
        case(
            "a new connection with the current owner is recorded",
            &[],
            &[Gets(SYN, Pod(A)), Knows(Some((A, opening))), Gets(DATA, Pod(A)), Knows(Some((A, opening)))],
        )
        .owned_by(Some(A), &[OLD]),
        case("in a stable slot too", &[], &[Gets(SYN, Pod(A)), Knows(Some((A, opening)))]).owned_by(Some(A), &[]),
        case(
            "a segment of no connection records nothing",
            &[],
            &[Gets(DATA, Pod(A)), Gets(flag::RST, Pod(A)), Knows(None)],
        )
        .owned_by(Some(A), &[]),
        case("nor does one to an owner that can be asked", &[], &[Gets(SYN, Pod(NEW)), Knows(None)])
            .owned_by(Some(NEW), &[]),
        case(
            "no owner: recorded sessions go on",
            &[],
            &[Recorded(OLD, established), Gets(DATA, Pod(OLD)), Gets(SYN, Pod(OLD))],
        )
        .owned_by(None, &[OLD]),
    ];
    check(&cases.map(|case| case.through(PORT_OPAQUE)));
}
