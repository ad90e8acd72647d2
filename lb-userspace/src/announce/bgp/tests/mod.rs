//! The ladder of the machine, and real bytes for the messages.

mod bird;
mod collision;
mod damping;
mod export;
mod musts;
mod packet;
mod pair;
mod random;
mod restart;
mod stop;
mod transition;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use netgauze_bgp_pkt::{
    BgpMessage,
    path_attribute::{MpReach, MpUnreach, PathAttribute, PathAttributeValue},
    update::BgpUpdateMessage,
    wire::deserializer::BgpParsingContext,
};
use netgauze_parse_utils::{reader::SliceReader, traits::ParseFromWithOneInput};

use proptest::{prelude::ProptestConfig, test_runner::RngSeed};

use super::{
    machine::{Action, Cause, ConnectionId, Endpoints, Event, Peer, PeerAs, RestartFacts, Settings, State},
    packet::{Capabilities, Frame, Framer, GracefulRestart, MessageType, Notification, Open, keepalive},
    route::{Attributes, Route},
    values::{AsNumber, Family, HoldTime, Identifier, Prefix, RestartTime},
};

/// The same cases in every run.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(4271), failure_persistence: None, ..ProptestConfig::default() }
}

const SECOND: Duration = Duration::from_secs(1);
const V4: Endpoints =
    Endpoints { local: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), remote: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)) };

fn as_number(number: u32) -> AsNumber {
    AsNumber::new(number).expect("a legal AS number")
}

fn identifier(last: u8) -> Identifier {
    Identifier::new([10, 0, 0, last].into()).expect("not zero")
}

fn seconds(seconds: u16) -> HoldTime {
    HoldTime::from_seconds(seconds).expect("a legal hold time")
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').expect("address and length");
    Prefix::new(address.parse().expect("an address"), length.parse().expect("a length")).expect("a unicast prefix")
}

/// AS 65001 towards AS 65002; ours is 10.0.0.5, between what collision tests give the peer.
fn settings() -> Settings {
    Settings::new(as_number(65001), PeerAs::Number(as_number(65002)), identifier(5))
}

fn route(prefix: Prefix) -> Route {
    Route { prefix, next_hop: None, attributes: Arc::new(Attributes::default()) }
}

fn routes(prefixes: &[&str]) -> BTreeMap<Prefix, Route> {
    prefixes.iter().map(|text| (prefix(text), route(prefix(text)))).collect()
}

/// A peer's OPEN that agrees with [`settings`] in everything.
fn their_open() -> Open {
    Open {
        as_number: as_number(65002),
        hold_time: seconds(90),
        identifier: identifier(9),
        capabilities: Capabilities {
            families: Family::ALL.into(),
            route_refresh: true,
            four_octet_as: Some(65002),
            extended_next_hop: true,
            ..Capabilities::default()
        },
    }
}

fn graceful(notification: bool) -> GracefulRestart {
    GracefulRestart {
        restarted: false,
        notification,
        time: RestartTime::from_seconds(120).expect("fits"),
        families: [(Family::Ipv4, true), (Family::Ipv6, true)].into(),
        has_other_families: false,
    }
}

/// What a peer sees of us.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Out {
    Dial,
    Open,
    Keepalive,
    Update,
    EndOfRib(Family),
    /// Code and subcode.
    Notification(u8, u8),
    Close,
}

fn frames(octets: &[u8]) -> Vec<Frame> {
    let (mut framer, mut rest) = (Framer::default(), octets);
    std::iter::from_fn(|| framer.next(&mut rest).expect("what we send is well-formed")).collect()
}

fn out(frame: &Frame) -> Out {
    match frame.kind {
        MessageType::Open => Out::Open,
        MessageType::Keepalive => Out::Keepalive,
        MessageType::Update => super::packet::read_end_of_rib(frame.body()).map_or(Out::Update, Out::EndOfRib),
        MessageType::Notification => {
            let notification = Notification::parse(frame.body()).expect("two octets");
            Out::Notification(notification.code(), notification.subcode())
        }
        MessageType::RouteRefresh => unreachable!("never sent"),
    }
}

/// A machine with its clock, and all that it ever sent.
struct Bench {
    peer: Peer,
    now: Duration,
    sent: Vec<(ConnectionId, Frame)>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self::restarted(settings, RestartFacts::default())
    }

    fn restarted(settings: Settings, facts: RestartFacts) -> Self {
        let now = Duration::from_secs(1000);
        Self { peer: Peer::new(settings, facts, 7, now).expect("legal settings"), now, sent: Vec::new() }
    }

    /// What it does now, by connection; the kernel takes all and confirms each close.
    fn acts(&mut self) -> Vec<(ConnectionId, Out)> {
        let mut acts = Vec::new();
        while let Some(action) = self.peer.poll_transmit(self.now) {
            match action {
                Action::Dial(id) => acts.push((id, Out::Dial)),
                Action::Send(id, octets) => {
                    for frame in frames(&octets) {
                        acts.push((id, out(&frame)));
                        self.sent.push((id, frame));
                    }
                    self.peer.handle_written(id, octets.len(), self.now);
                }
                Action::Close(id) => {
                    acts.push((id, Out::Close));
                    self.peer.handle_closed(id, None, self.now);
                }
            }
        }
        acts
    }

    fn outs(&mut self) -> Vec<Out> {
        self.acts().into_iter().map(|(_, out)| out).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.peer.poll_event()).collect()
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.peer.handle_timeout(self.now);
    }

    fn receive(&mut self, id: ConnectionId, octets: &[u8]) {
        self.peer.handle_packet(id, octets, self.now);
    }

    /// The dial that is out.
    fn dialled(&mut self) -> ConnectionId {
        let acts = self.acts();
        acts.iter().rev().find(|(_, out)| *out == Out::Dial).map(|(id, _)| *id).expect("a dial")
    }

    /// On to the next dial.
    fn redial(&mut self) -> ConnectionId {
        for _ in 0..100 {
            if let Some((id, _)) = self.acts().into_iter().find(|(_, out)| *out == Out::Dial) {
                return id;
            }
            self.now = self.peer.poll_timeout().expect("a timer").max(self.now);
            self.peer.handle_timeout(self.now);
        }
        panic!("no dial");
    }

    fn connect(&mut self) -> ConnectionId {
        let id = self.redial();
        self.peer.handle_connected(id, V4, self.now);
        id
    }

    fn accept(&mut self) -> ConnectionId {
        self.peer.handle_accepted(V4, self.now)
    }

    fn establish_with(&mut self, open: &Open) -> ConnectionId {
        let id = self.connect();
        self.receive(id, &open.emit());
        self.receive(id, &keepalive());
        assert_eq!(self.peer.state(), State::Established);
        id
    }

    fn establish(&mut self) -> ConnectionId {
        self.establish_with(&their_open())
    }

    /// What a router on the other side has, by everything that was sent on this connection.
    fn table(&self, id: ConnectionId, four_octet_as: bool) -> Table {
        let mut table = Table::default();
        for (_, frame) in self.sent.iter().filter(|(on, _)| *on == id) {
            table.apply(frame, four_octet_as);
        }
        table
    }

    fn last_cause(&self) -> Option<Cause> {
        self.peer.status().last_error.map(|error| error.cause)
    }
}

/// Attributes and next hop, as the codec's own decoder reads them.
#[derive(Clone, Debug, PartialEq)]
struct Learnt {
    attributes: Vec<PathAttribute>,
    reach: Option<MpReach>,
}

/// A router's view.
#[derive(Debug, Default)]
struct Table {
    routes: BTreeMap<Prefix, Learnt>,
    ended: Vec<Family>,
    updates: usize,
}

impl Table {
    fn apply(&mut self, frame: &Frame, four_octet_as: bool) {
        let Some(update) = read_update(frame, four_octet_as) else { return };
        self.updates += 1;
        self.ended.extend(super::packet::read_end_of_rib(frame.body()));
        let v4 = |address: &netgauze_bgp_pkt::nlri::Ipv4UnicastAddress| prefix(&address.network().to_string());
        let v6 = |address: &netgauze_bgp_pkt::nlri::Ipv6UnicastAddress| prefix(&address.network().to_string());
        for withdrawn in update.withdraw_routes() {
            self.routes.remove(&v4(withdrawn));
        }
        let mut rest = Vec::new();
        let (mut reached, mut reach) = (BTreeSet::new(), None);
        for attribute in update.path_attributes() {
            match attribute.value() {
                PathAttributeValue::MpReach(it) => {
                    reach = Some(match it.clone() {
                        MpReach::Ipv4Unicast { next_hop, next_hop_local, nlri } => {
                            reached.extend(nlri.iter().map(v4));
                            MpReach::Ipv4Unicast { next_hop, next_hop_local, nlri: Box::new([]) }
                        }
                        MpReach::Ipv6Unicast { next_hop_global, next_hop_local, nlri } => {
                            reached.extend(nlri.iter().map(v6));
                            MpReach::Ipv6Unicast { next_hop_global, next_hop_local, nlri: Box::new([]) }
                        }
                        other => panic!("{other:?}"),
                    });
                }
                PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                    for withdrawn in nlri {
                        self.routes.remove(&v6(withdrawn));
                    }
                }
                _ => rest.push(attribute.clone()),
            }
        }
        reached.extend(update.nlri().iter().map(v4));
        for prefix in reached {
            self.routes.insert(prefix, Learnt { attributes: rest.clone(), reach: reach.clone() });
        }
    }

    fn prefixes(&self) -> Vec<String> {
        self.routes.keys().map(ToString::to_string).collect()
    }

    fn value<T>(&self, of: &str, pick: impl Fn(&PathAttributeValue) -> Option<T>) -> Option<T> {
        self.routes.get(&prefix(of))?.attributes.iter().find_map(|attribute| pick(attribute.value()))
    }
}

fn read_update(frame: &Frame, four_octet_as: bool) -> Option<BgpUpdateMessage> {
    let mut context = if four_octet_as { BgpParsingContext::default() } else { BgpParsingContext::asn2_default() };
    let message = BgpMessage::parse(&mut SliceReader::new(&frame.octets), &mut context);
    match message.expect("the codec reads what we send") {
        BgpMessage::Update(update) => Some(update),
        _ => None,
    }
}
