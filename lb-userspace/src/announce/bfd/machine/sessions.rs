//! All sessions of a node: which of them a packet belongs to, whether it may reach it, and whose turn it is.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    num::{NonZeroU8, NonZeroU32},
    time::Duration,
};

use serde::Serialize;

use super::{Event, Pulse, Random, Session, Settings, Status, winners::Winners};
use crate::announce::bfd::packet::{ControlPacket, Discriminator, Malformed, PACKET_BYTES};

/// Sessions at a time: a node's routers and the other nodes of a large cluster. At 50 ms they make 20,000 packets a
/// second each way, about what one thread carries.
pub const SESSIONS_MAX: usize = 1024;
/// The TTL of a packet that no router has passed on (RFC 5082).
pub const TTL_UNTOUCHED: u8 = 255;

/// Events that wait to be fetched: a few of every session. The oldest goes first.
const EVENTS_MAX: usize = 4 * SESSIONS_MAX;

/// A network interface, by its index. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Interface(NonZeroU32);

impl Interface {
    /// `None` for zero, which names no interface.
    #[must_use]
    pub const fn new(index: u32) -> Option<Self> {
        match NonZeroU32::new(index) {
            Some(index) => Some(Self(index)),
            None => None,
        }
    }

    /// The index.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// The least TTL with which a multihop packet may arrive. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MinimumTtl(NonZeroU8);

impl MinimumTtl {
    /// `None` for zero. 1 takes all packets, 254 those that one router has passed on.
    #[must_use]
    pub const fn new(ttl: u8) -> Option<Self> {
        match NonZeroU8::new(ttl) {
            Some(ttl) => Some(Self(ttl)),
            None => None,
        }
    }

    /// As in the packet.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

/// The ports that control packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Port {
    /// 3784 (RFC 5881 4).
    SingleHop,
    /// 4784 (RFC 5883 5).
    Multihop,
}

impl Path {
    /// Where its packets go.
    #[must_use]
    pub const fn port(self) -> Port {
        match self {
            Self::Single { .. } => Port::SingleHop,
            Self::Multi { .. } => Port::Multihop,
        }
    }

    /// The other end.
    #[must_use]
    pub const fn remote(self) -> IpAddr {
        match self {
            Self::Single { remote, .. } | Self::Multi { remote, .. } => remote,
        }
    }
}

impl Port {
    /// The UDP port.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            //= rfc5881#4:port MUST: single hop goes to port 3784
            Self::SingleHop => 3784,
            //= rfc5883#5:port MUST: multihop goes to port 4784
            Self::Multihop => 4784,
        }
    }
}

/// How far the other end may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hops {
    /// On the link.
    Single {
        /// The link.
        interface: Interface,
    },
    /// Behind routers.
    Multi {
        /// What arrives with less is dropped.
        minimum_ttl: MinimumTtl,
    },
}

/// Which path a session watches. There is one session for each, and its events carry this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// To a neighbour on a link.
    Single {
        /// The link.
        interface: Interface,
        /// The neighbour.
        remote: IpAddr,
    },
    /// Between two addresses.
    Multi {
        /// Ours.
        local: IpAddr,
        /// The other end's.
        remote: IpAddr,
    },
}

/// Why a session is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The addresses cannot be the ends of a path.
    #[error("{local} and {remote} are no two ends of a path: give two different unicast addresses of one family")]
    Addresses {
        /// Ours.
        local: IpAddr,
        /// The other end's.
        remote: IpAddr,
    },
    /// The path is watched already.
    #[error("{0:?} has a session already: close that first, or change its settings")]
    Duplicate(Path),
    /// There are [`SESSIONS_MAX`].
    #[error("there are {SESSIONS_MAX} BFD sessions already: take BFD from some peers")]
    Full,
}

/// Both ends of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    local: IpAddr,
    remote: IpAddr,
    hops: Hops,
}

impl Endpoint {
    /// Two different unicast addresses of one family; over several hops none that is only known on a link.
    pub fn new(local: IpAddr, remote: IpAddr, hops: Hops) -> Result<Self, OpenError> {
        let is_end = |address: IpAddr| {
            let is_local_to_link = match address {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            let is_far = matches!(hops, Hops::Multi { .. });
            !(address.is_unspecified() || address.is_multicast() || is_far && is_local_to_link)
        };
        if local == remote || local.is_ipv4() != remote.is_ipv4() || !is_end(local) || !is_end(remote) {
            return Err(OpenError::Addresses { local, remote });
        }
        Ok(Self { local, remote, hops })
    }

    /// Ours.
    #[must_use]
    pub const fn local(&self) -> IpAddr {
        self.local
    }

    /// The other end's.
    #[must_use]
    pub const fn remote(&self) -> IpAddr {
        self.remote
    }

    /// How far the other end may be.
    #[must_use]
    pub const fn hops(&self) -> Hops {
        self.hops
    }

    /// Where its packets go.
    #[must_use]
    pub const fn port(&self) -> Port {
        self.path().port()
    }

    /// Which path this is.
    #[must_use]
    pub const fn path(&self) -> Path {
        match self.hops {
            Hops::Single { interface } => Path::Single { interface, remote: self.remote },
            Hops::Multi { .. } => Path::Multi { local: self.local, remote: self.remote },
        }
    }
}

/// A datagram, with what the kernel says of it.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Where it came to.
    pub port: Port,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// The interface that it came by.
    pub interface: Option<Interface>,
    /// Its TTL or hop limit.
    pub ttl: Option<u8>,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Why a datagram reaches no session. Each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// It is no control packet.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Its TTL says that it comes from too far.
    #[error("the TTL is not 255, or below the minimum of a multihop session")]
    Ttl,
    /// It names a session that there is not.
    #[error("no session has this discriminator")]
    UnknownDiscriminator,
    /// It names no session, and comes from no peer.
    #[error("no session with this peer")]
    UnknownPeer,
    /// A single-hop session's packet to the multihop port, or the other way round.
    #[error("the port is not the session's")]
    WrongPort,
    /// The session is held down by order.
    #[error("the session is stopped")]
    AdminDown,
}

impl DropReason {
    /// All, in the order in which they are counted.
    pub const ALL: [Self; 15] = [
        Self::Malformed(Malformed::Truncated),
        Self::Malformed(Malformed::Version),
        Self::Malformed(Malformed::LengthTooSmall),
        Self::Malformed(Malformed::LengthTooLarge),
        Self::Malformed(Malformed::DetectMultZero),
        Self::Malformed(Malformed::Multipoint),
        Self::Malformed(Malformed::MyDiscriminatorZero),
        Self::Malformed(Malformed::YourDiscriminatorZero),
        Self::Malformed(Malformed::Authenticated),
        Self::Malformed(Malformed::PollAndFinal),
        Self::Ttl,
        Self::UnknownDiscriminator,
        Self::UnknownPeer,
        Self::WrongPort,
        Self::AdminDown,
    ];

    /// For labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed(malformed) => malformed.name(),
            Self::Ttl => "ttl",
            Self::UnknownDiscriminator => "unknown-discriminator",
            Self::UnknownPeer => "unknown-peer",
            Self::WrongPort => "wrong-port",
            Self::AdminDown => "admin-down",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Malformed(malformed) => malformed as usize,
            Self::Ttl => 10,
            Self::UnknownDiscriminator => 11,
            Self::UnknownPeer => 12,
            Self::WrongPort => 13,
            Self::AdminDown => 14,
        }
    }
}

/// Datagrams by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    accepted: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Counts {
    /// That reached a session.
    #[must_use]
    pub const fn accepted(&self) -> u64 {
        self.accepted
    }

    /// That did not, for this reason.
    #[must_use]
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason.index()]
    }

    /// All reasons with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.dropped(reason)))
    }
}

/// A session's place in the table, for what the driver keeps beside it. Below [`SESSIONS_MAX`]; used again after a
/// close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

impl Slot {
    /// The place.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// A packet that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Whose.
    pub slot: Slot,
    /// When it was due; zero for an answer, which is always due at once.
    pub due: Duration,
    /// The payload.
    pub payload: [u8; PACKET_BYTES],
}

#[derive(Debug)]
struct Entry {
    endpoint: Endpoint,
    session: Session,
}

/// The table of sessions. Only opening one allocates.
#[derive(Debug)]
pub struct Sessions {
    entries: Box<[Option<Entry>]>,
    by_discriminator: HashMap<Discriminator, usize>,
    by_path: HashMap<Path, usize>,
    transmits: Winners,
    timeouts: Winners,
    events: VecDeque<(Path, Event)>,
    random: Random,
    counts: Counts,
}

impl Sessions {
    /// None yet. `seed` is random: discriminators come from it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            entries: (0..SESSIONS_MAX).map(|_| None).collect(),
            by_discriminator: HashMap::with_capacity(SESSIONS_MAX),
            by_path: HashMap::with_capacity(SESSIONS_MAX),
            transmits: Winners::new(SESSIONS_MAX),
            timeouts: Winners::new(SESSIONS_MAX),
            events: VecDeque::with_capacity(EVENTS_MAX),
            random: Random::new(seed),
            counts: Counts::default(),
        }
    }

    /// Begins a session.
    pub fn open(&mut self, endpoint: Endpoint, settings: Settings, now: Duration) -> Result<Slot, OpenError> {
        let path = endpoint.path();
        //= rfc5881#2:one-session-a-path MUST: no two single-hop sessions share a path
        //= rfc5883#4.1:distinct-ends MUST: no two multihop sessions share both addresses
        if self.by_path.contains_key(&path) {
            return Err(OpenError::Duplicate(path));
        }
        let at = self.entries.iter().position(Option::is_none).ok_or(OpenError::Full)?;
        let discriminator = self.unused_discriminator();
        let session = Session::new(discriminator, settings, self.random.next(), now);
        self.entries[at] = Some(Entry { endpoint, session });
        self.by_discriminator.insert(discriminator, at);
        self.by_path.insert(path, at);
        self.refresh(at);
        Ok(Slot(at))
    }

    /// Ends a session without a word. The other end finds out by silence, unless it was stopped before.
    pub fn close(&mut self, path: Path) -> Option<Slot> {
        let at = self.by_path.remove(&path)?;
        if let Some(entry) = self.entries[at].take() {
            self.by_discriminator.remove(&entry.session.discriminator());
        }
        self.refresh(at);
        Some(Slot(at))
    }

    /// Does something to one session. `None` where there is no such session.
    pub fn with<R>(&mut self, path: Path, act: impl FnOnce(&mut Session) -> R) -> Option<R> {
        let at = *self.by_path.get(&path)?;
        let result = act(&mut self.entries[at].as_mut()?.session);
        self.refresh(at);
        Some(result)
    }

    /// Does something to each session.
    pub fn with_each(&mut self, mut act: impl FnMut(&mut Session)) {
        for at in 0..self.entries.len() {
            if let Some(entry) = &mut self.entries[at] {
                act(&mut entry.session);
                self.refresh(at);
            }
        }
    }

    /// A datagram has come.
    pub fn handle_packet(&mut self, received: &Received<'_>, now: Duration) -> Result<Path, DropReason> {
        let outcome = self.accept(received, now);
        match outcome {
            Ok(_) => self.counts.accepted += 1,
            Err(reason) => self.counts.dropped[reason.index()] += 1,
        }
        outcome
    }

    /// Does what is due by `now`, but for sending.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some((at, place)) = self.timeouts.first()
            && at <= now
        {
            if let Some(entry) = &mut self.entries[place] {
                entry.session.handle_timeout(now);
            }
            self.refresh(place);
        }
    }

    /// The next packet that is due at `now`.
    pub fn poll_transmit(&mut self, now: Duration, pulse: Pulse) -> Option<Transmit> {
        while let Some((due, place)) = self.transmits.first()
            && due <= now
        {
            let packet = self.entries[place].as_mut().and_then(|entry| entry.session.poll_transmit(now, pulse));
            self.refresh(place);
            if let Some(packet) = packet {
                return Some(Transmit { slot: Slot(place), due, payload: packet.emit() });
            }
        }
        None
    }

    /// The session's packet has really left.
    pub fn handle_sent(&mut self, slot: Slot) {
        if let Some(entry) = &mut self.entries[slot.0] {
            entry.session.handle_sent();
            self.fetch_events(slot.0);
        }
    }

    /// When there is something to do next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let first = |winners: &Winners| winners.first().map(|(at, _)| at);
        super::earliest(first(&self.transmits), first(&self.timeouts))
    }

    /// The next news of a session.
    pub fn poll_event(&mut self) -> Option<(Path, Event)> {
        self.events.pop_front()
    }

    /// Datagrams by what became of them.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// All sessions as they stand.
    pub fn statuses(&self) -> impl Iterator<Item = (Slot, Endpoint, Status)> + '_ {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(at, entry)| entry.as_ref().map(|entry| (Slot(at), entry.endpoint, entry.session.status())))
    }

    /// One session as it stands.
    #[must_use]
    pub fn status(&self, path: Path) -> Option<Status> {
        let at = *self.by_path.get(&path)?;
        Some(self.entries[at].as_ref()?.session.status())
    }

    fn accept(&mut self, received: &Received<'_>, now: Duration) -> Result<Path, DropReason> {
        //= rfc5881#5:ttl-received MUST: a single-hop packet with a TTL other than 255 is discarded
        if received.port == Port::SingleHop && received.ttl != Some(TTL_UNTOUCHED) {
            return Err(DropReason::Ttl);
        }
        let packet = ControlPacket::parse(received.payload)?;
        let at = self.select(&packet, received)?;
        let Some(entry) = &mut self.entries[at] else { return Err(DropReason::UnknownDiscriminator) };
        if entry.endpoint.port() != received.port {
            return Err(DropReason::WrongPort);
        }
        match entry.endpoint.hops {
            Hops::Single { .. } => {}
            Hops::Multi { minimum_ttl } => {
                if received.ttl.is_none_or(|ttl| ttl < minimum_ttl.get()) {
                    return Err(DropReason::Ttl);
                }
            }
        }
        let path = entry.endpoint.path();
        let taken = entry.session.handle_packet(&packet, now);
        self.refresh(at);
        taken.map(|()| path).map_err(|super::IsAdminDown| DropReason::AdminDown)
    }

    fn select(&self, packet: &ControlPacket, received: &Received<'_>) -> Result<usize, DropReason> {
        if let Some(discriminator) = packet.your_discriminator {
            //= rfc5880#6.8.6:by-discriminator MUST: a discriminator selects the session, or the packet is discarded
            //= rfc5880#6.3:only-discriminator MUST: alone, wherever the packet comes from
            return self.by_discriminator.get(&discriminator).copied().ok_or(DropReason::UnknownDiscriminator);
        }
        //= rfc5880#6.8.6:by-address MUST: without one other fields select the session, or the packet is discarded
        let path = match received.port {
            //= rfc5881#3:first-packet MUST: single hop: the interface and the source select it
            Port::SingleHop => {
                let interface = received.interface.ok_or(DropReason::UnknownPeer)?;
                Path::Single { interface, remote: received.source }
            }
            //= rfc5883#4.2:first-packet MUST: multihop: both addresses select it
            Port::Multihop => Path::Multi { local: received.destination, remote: received.source },
        };
        self.by_path.get(&path).copied().ok_or(DropReason::UnknownPeer)
    }

    fn unused_discriminator(&mut self) -> Discriminator {
        // Ends soon: of four thousand million at most SESSIONS_MAX are taken.
        loop {
            //= rfc5880#6.8.1:random-discriminator SHOULD: the own discriminator is random
            let drawn = Discriminator::new((self.random.next() >> 32) as u32);
            //= rfc5880#6.8.1:unique-discriminator MUST: and no other session's, and not zero
            if let Some(discriminator) = drawn.filter(|drawn| !self.by_discriminator.contains_key(drawn)) {
                return discriminator;
            }
        }
    }

    /// Takes a session's times and events over after anything was done to it.
    fn refresh(&mut self, at: usize) {
        let Some(entry) = &mut self.entries[at] else {
            self.transmits.set(at, None);
            self.timeouts.set(at, None);
            return;
        };
        self.transmits.set(at, entry.session.transmit_at());
        self.timeouts.set(at, entry.session.poll_timeout());
        self.fetch_events(at);
    }

    fn fetch_events(&mut self, at: usize) {
        let Some(entry) = &mut self.entries[at] else { return };
        while let Some(event) = entry.session.poll_event() {
            if self.events.len() == EVENTS_MAX {
                self.events.pop_front();
            }
            self.events.push_back((entry.endpoint.path(), event));
        }
    }
}
