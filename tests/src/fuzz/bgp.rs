//! What comes over a BGP connection: the stream, each message that is read, and a whole session.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use lb_userspace::announce::bgp::{
    machine::{Action, ConnectionId, Endpoints, Mode, Peer, PeerAs, RestartFacts, Settings},
    packet::{
        Capabilities, Communication, Frame, FrameError, Framer, HEADER_OCTETS, MESSAGE_OCTETS_MAX, MessageType,
        Notification, Open, RouteRefresh, cease, end_of_rib, keepalive, read_end_of_rib,
    },
    route::{Attributes, Route},
    values::{AsNumber, Family, HoldTime, Identifier, Prefix},
};

/// The first octet is the size of the pieces in which the rest comes; 0: all at once.
pub(super) fn frame(input: &[u8]) {
    let Some((piece, stream)) = input.split_first() else { return };
    let whole = read(stream, stream.len());
    assert_eq!(whole, read(stream, (*piece).into()), "in whatever pieces it comes");
    let (frames, error) = whole;
    assert!(frames.len() <= stream.len() / HEADER_OCTETS);
    let read: Vec<u8> = frames.iter().flat_map(|frame| frame.octets.clone()).collect();
    assert_eq!(read, stream[..read.len()], "nothing is lost or made up");
    if let Some(answer) = error.and_then(FrameError::notification) {
        check_notification(&answer);
    }
}

/// Messages up to an error.
fn read(stream: &[u8], piece: usize) -> (Vec<Frame>, Option<FrameError>) {
    let (mut framer, mut frames) = (Framer::default(), Vec::new());
    for mut piece in stream.chunks(piece.max(1)) {
        loop {
            match framer.next(&mut piece) {
                Ok(Some(frame)) => {
                    assert!((HEADER_OCTETS..=MESSAGE_OCTETS_MAX).contains(&frame.octets.len()));
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(piece.is_empty(), "all of it is taken where no message is left");
    }
    (frames, None)
}

/// The only message in what we have written.
fn only(octets: &[u8], kind: MessageType) -> Frame {
    let (mut frames, error) = read(octets, octets.len());
    assert!(frames.len() == 1 && error.is_none() && frames[0].octets == octets, "{frames:?}, {error:?}");
    let frame = frames.remove(0);
    assert_eq!(frame.kind, kind);
    frame
}

pub(super) fn open(input: &[u8]) {
    let mut open = match Open::parse(input) {
        Ok(open) => open,
        Err(error) => return check_notification(&error.notification()),
    };
    // What means nothing here is not said again.
    let said = &mut open.capabilities;
    said.others.clear();
    said.has_other_families = false;
    if let Some(restart) = &mut said.graceful_restart {
        restart.has_other_families = false;
    }
    let frame = only(&open.emit(), MessageType::Open);
    assert_eq!(Open::parse(frame.body()), Ok(open.clone()));
    assert!(open.capabilities.families_to_wire().len() <= 6 * Family::ALL.len());
}

pub(super) fn notification(input: &[u8]) {
    let Some(read) = Notification::parse(input) else { return assert!(input.len() < 2) };
    assert_eq!((read.code(), read.subcode()), (input[0], input[1]));
    assert!(input[2..].starts_with(read.data()));
    check_notification(&read);
}

fn check_notification(notification: &Notification) {
    let frame = only(&notification.emit(), MessageType::Notification);
    assert_eq!(Notification::parse(frame.body()).as_ref(), Some(notification));
    let shown = [notification.to_string(), notification.words().unwrap_or_default()];
    assert!(!shown.iter().flat_map(|text| text.chars()).any(char::is_control), "{shown:?} is not fit to be shown");
    let hardened = notification.hardened();
    only(&hardened.emit(), MessageType::Notification);
    assert!(hardened.is_hard_reset());
    let inner = hardened.true_one();
    assert_eq!((inner.code(), inner.subcode()), (notification.code(), notification.subcode()));
    assert!(notification.data().starts_with(inner.data()));
    if let Some(words) = notification.words() {
        let said = Communication::new(&words);
        only(&Notification::cease_with(cease::ADMINISTRATIVE_RESET, Some(&said)).emit(), MessageType::Notification);
    }
}

/// What is looked for in an UPDATE, and a ROUTE-REFRESH.
pub(super) fn update(input: &[u8]) {
    if let Some(family) = read_end_of_rib(input) {
        let frame = only(&end_of_rib(family), MessageType::Update);
        assert_eq!(read_end_of_rib(frame.body()), Some(family));
        // Two empty lists around an attribute without prefixes, at most.
        assert!(input.len() <= 4 + 4 + 3, "{family:?} ends by {} octets", input.len());
    }
    if let Some(RouteRefresh(family)) = RouteRefresh::parse(input) {
        assert_eq!(input, [0, family as u8 + 1, 0, 1]);
    }
}

const ENDPOINTS: Endpoints =
    Endpoints { local: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), remote: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)) };
const NOW: Duration = Duration::from_secs(1000);
/// What one message makes the machine do at most: an answer to a refresh is withdrawals and announcements of both
/// families, and their ends.
const ACTIONS_PER_MESSAGE: usize = 8;
/// OPEN, KEEPALIVE, the routes, their ends, NOTIFICATION, close.
const ACTIONS_BESIDE: usize = 12;

/// Of the first octet: how far the session is before the rest comes.
const PHASE: u8 = 3;

/// The first octet says how far the session is, and in which pieces the rest comes.
pub(super) fn session(input: &[u8]) {
    let Some((way, stream)) = input.split_first() else { return };
    let settings = Settings { mode: Mode::Accept, ..settings() };
    let mut peer = Peer::new(settings, RestartFacts::default(), 7, NOW).expect("legal settings");
    peer.set_routes(routes(), true);
    let mut wire =
        Wire { id: peer.handle_accepted(ENDPOINTS, NOW), sent: Framer::default(), closed: false, actions: 0 };
    wire.pump(&mut peer);
    let greeting = [their_open().emit(), keepalive()];
    for message in greeting.iter().take((way & PHASE).into()) {
        peer.handle_packet(wire.id, message, NOW);
        wire.pump(&mut peer);
    }
    let piece = if *way <= PHASE { stream.len().max(1) } else { (way >> 2).into() };
    for piece in stream.chunks(piece) {
        peer.handle_packet(wire.id, piece, NOW);
        wire.pump(&mut peer);
    }
    let received = peer.status().counters.received;
    let messages = [received.open, received.update, received.notification, received.keepalive, received.route_refresh];
    let messages = messages.iter().sum::<u64>() as usize;
    assert!(messages <= greeting.len() + stream.len() / HEADER_OCTETS);
    assert!(wire.actions <= ACTIONS_BESIDE + ACTIONS_PER_MESSAGE * messages, "{} for {messages}", wire.actions);
    assert!(peer.poll_timeout().is_some() || wire.closed, "a session has a timer");
    serde_json::to_string(&peer.status()).expect("it can be shown");
}

/// The driver's side.
struct Wire {
    id: ConnectionId,
    sent: Framer,
    closed: bool,
    actions: usize,
}

impl Wire {
    /// Does all that is to be done.
    fn pump(&mut self, peer: &mut Peer) {
        while let Some(action) = peer.poll_transmit(NOW) {
            self.actions += 1;
            match action {
                Action::Dial(id) => unreachable!("it only accepts, and dials {id:?}"),
                Action::Send(id, octets) => {
                    assert!(id == self.id && !self.closed, "sent after the end");
                    let mut rest = &octets[..];
                    while self.sent.next(&mut rest).expect("what we send is well-formed").is_some() {}
                    peer.handle_written(id, octets.len(), NOW);
                }
                Action::Close(id) => {
                    assert!(id == self.id && !self.closed, "closed twice");
                    self.closed = true;
                    peer.handle_closed(id, None, NOW);
                }
            }
        }
        while let Some(event) = peer.poll_event() {
            assert!(!format!("{event:?}").is_empty());
        }
    }
}

fn as_number(number: u32) -> AsNumber {
    AsNumber::new(number).expect("a legal AS number")
}

fn identifier(last: u8) -> Identifier {
    Identifier::new(Ipv4Addr::new(10, 0, 0, last)).expect("not zero")
}

/// AS 65001 towards 65002, whose BIRD is in the corpus.
fn settings() -> Settings {
    Settings::new(as_number(65001), PeerAs::Number(as_number(65002)), identifier(5))
}

fn their_open() -> Open {
    let capabilities = Capabilities {
        families: Family::ALL.into(),
        route_refresh: true,
        four_octet_as: Some(65002),
        extended_next_hop: true,
        ..Capabilities::default()
    };
    Open { as_number: as_number(65002), hold_time: HoldTime::DEFAULT, identifier: identifier(9), capabilities }
}

fn routes() -> BTreeMap<Prefix, Route> {
    let of = |address: &str| {
        let prefix = Prefix::host(address.parse().expect("an address")).expect("unicast");
        (prefix, Route { prefix, next_hop: None, attributes: Arc::new(Attributes::default()) })
    };
    ["203.0.113.1", "2001:db8:f::1"].map(of).into()
}
