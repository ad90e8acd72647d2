//! The forwarding decision of an uplink: one pure function of a frame and the tables.

use crate::{
    abi::{
        Backend, BypassKey, HISTORY, History, NO_BACKEND, NO_OWNER, Service, ServiceKey, Slot, backend_flags, protocol,
        rung, service_flags,
    },
    address::Address,
    answer::{self, IcmpError},
    checksum,
    flow::State,
    headers::{self, ETHERNET, Headers, IPV4, IPV6, TCP, UDP, v4, v6},
    mark::{self, Mark},
    opaque,
    packet::{Frame, View},
    reason::Reason,
    session::{self, Claim, Claimed, Sessions, Socket, flag},
};

/// What becomes of the frame, which has been rewritten accordingly. What is forwarded is counted under its backend, the
/// rest under its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Left to the kernel as it came.
    Pass(Reason),
    /// Not forwarded.
    Drop(Reason),
    /// An answer, out of the interface that the frame came in by.
    Transmit(Reason),
    /// Into the pod.
    Redirect {
        /// Index into `tx_ports`.
        tx_port: u32,
        /// The backend's id, which the packet is counted under.
        backend: u32,
    },
    /// To the uplink's tc ingress program, marked, which hands it to the pod's end of the interface.
    Peer {
        /// As above.
        backend: u32,
    },
    /// To the node's own stack, marked.
    Stack {
        /// As above.
        backend: u32,
    },
    /// For [`slow`](crate::slow::slow) to decide, untouched.
    Slow,
    /// For [`fragment`](crate::slow::fragment) to decide, untouched.
    Fragment,
}

impl Verdict {
    /// Why.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Pass(reason) | Self::Drop(reason) | Self::Transmit(reason) => reason,
            Self::Redirect { .. } | Self::Peer { .. } | Self::Stack { .. } => Reason::Forwarded,
            Self::Slow | Self::Fragment => Reason::NoSlowPath,
        }
    }
}

/// A packet that does not simply go to its slot's owner: TCP of a moved slot, and whatever its service's flags say.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Offer {
    /// Who sent it.
    pub client: Address,
    /// Its service.
    pub service: Service,
    /// The hash that chose its slot.
    pub hash: u64,
    /// Its slot.
    pub slot: Slot,
    /// Host order.
    pub client_port: u16,
    /// Of a TCP segment; none of a datagram.
    pub flags: u8,
    /// [`offer_kind`].
    pub kind: u8,
}
const _: () = assert!(size_of::<Offer>() == 56);

/// Bits of [`Offer::kind`].
pub mod offer_kind {
    /// Of UDP.
    pub const DATAGRAM: u8 = 1 << 0;
    /// An ICMP error quotes it: nothing is remembered, because anybody can send one.
    pub const QUOTED: u8 = 1 << 1;
}

impl Offer {
    /// Whether it is of UDP.
    #[inline(always)]
    pub const fn is_datagram(&self) -> bool {
        self.kind & offer_kind::DATAGRAM != 0
    }

    /// Whether an ICMP error quotes it.
    #[inline(always)]
    pub const fn is_quoted(&self) -> bool {
        self.kind & offer_kind::QUOTED != 0
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        session::opens(self.flags)
    }

    /// Whether it resets one.
    #[inline(always)]
    pub const fn resets(&self) -> bool {
        self.flags & flag::RST != 0
    }
}

/// What `steer` asks and tells. BPF maps in the kernel, memory on the host.
pub trait Tables: Sessions {
    /// The service of this VIP, protocol and port; with port and protocol 0, the VIP itself.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// A slot of the Maglev array.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// [`session::claim`], apart from the rest: what few packets need must not take registers from the others.
    fn claim(&self, claimed: &Claimed) -> Claim;
    /// [`offer`], apart from the rest.
    fn offer(&self, offer: &Offer) -> u32;
    /// [`keep`](crate::affinity::keep), apart from the rest.
    fn keep(&self, offer: &Offer, found: u32) -> u16;
    /// Counts a slot whose history is not there.
    fn count_broken_history(&self);
    /// The earlier owners of slots, by their place in the map.
    fn history(&self, index: u32) -> Option<&History>;
    /// The backend that owned a TCP client's connection in a moved slot when it was asked last.
    fn cached_owner(&self, service: u32, client: Address, client_port: u16) -> Option<u32>;
    /// The same, or the one that is recorded, with what is known of the connection.
    fn known_owner(&self, service: u32, client: Address, client_port: u16) -> Option<(u32, State)>;
    /// Remembers a backend that was asked; where `only_known`, in place of another one only.
    fn cache_owner(&self, service: u32, client: Address, client_port: u16, backend: u32, only_known: bool);
    /// The backend that a client's connections go to, where one did within so many coarse ticks. If it is `refreshed`, one
    /// does now.
    fn affinity(&self, service: u32, client: Address, within: u32, refreshed: u32) -> Option<u32>;
    /// Records that they go to that backend; where `only_known`, in place of another record only.
    fn record_affinity(&self, service: u32, client: Address, backend: u32, only_known: bool);
    /// Records a backend that cannot be asked, or what has become of its connection.
    fn keep_owner(&self, service: u32, client: Address, client_port: u16, backend: u32, state: State);
    /// A backend by its place in the map.
    fn backend(&self, index: u32) -> Option<&Backend>;
    /// Seed of [`flow_hash`].
    fn maglev_seed(&self) -> u64;
    /// This node's own address of a family, all zero where it has none.
    fn node_address(&self, is_v4: bool) -> Address;
    /// [`Tables::record_flow`] will be called for this client: what it needs may be fetched.
    #[inline(always)]
    fn expect_flow(&self, _client: Address, _client_port: u16) {}
    /// Records as which service's backend a UDP client reached an endpoint.
    fn record_flow(&self, endpoint: u32, client: Address, client_port: u16, backend: u32);
}

/// The hash whose high bits choose a slot: the same on every node of a cluster.
#[inline(always)]
pub const fn flow_hash(seed: u64, source: [u64; 2], destination: [u64; 2], ports: u32, protocol: u8) -> u64 {
    // Two halves that the processor multiplies at the same time.
    let x = (source[0] ^ destination[0].rotate_left(17) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let y = (source[1] ^ destination[1].rotate_left(29)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let z = (x ^ (x >> 32)).wrapping_add(y ^ (y >> 32)) ^ ports as u64 ^ (protocol as u64) << 32;
    z.wrapping_mul(LAST)
}

/// What [`flow_hash`] multiplies by in the end, and what undoes it.
const LAST: u64 = 0x9e37_79b9_7f4a_7c15;
const UNDONE: u64 = 0xf1de_83e1_9937_733d;
const _: () = assert!(LAST.wrapping_mul(UNDONE) == 1);

/// A flow's hash as if its client's port were 0; from that one the flow's own again.
#[inline(always)]
pub const fn toggle_client_port(hash: u64, client_port: u16) -> u64 {
    (hash.wrapping_mul(UNDONE) ^ ports_word(client_port, 0) as u64).wrapping_mul(LAST)
}

/// Source and destination port as [`flow_hash`] takes them: as they lie in a packet.
#[inline(always)]
pub const fn ports_word(source: u16, destination: u16) -> u32 {
    let (s, d) = (source.to_be_bytes(), destination.to_be_bytes());
    u32::from_ne_bytes([s[0], s[1], d[0], d[1]])
}

/// Position within a service's slots: the high bits, so that a table four times the size refines a smaller one.
#[inline(always)]
pub const fn slot_of(hash: u64, slots_log2: u8) -> u32 {
    // In two steps, because a shift by 64 is none.
    ((hash >> 1) >> (63 - (slots_log2 & 31))) as u32
}

/// Decides what becomes of a frame and rewrites it.
#[inline(always)]
pub fn steer<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    if mark::is_marked(frame) {
        return Verdict::Drop(Reason::ForeignMark);
    }
    let Some(headers) = headers::parse(frame) else {
        return Verdict::Pass(Reason::NotIp);
    };
    if !tables.may_be_vip(headers.destination) {
        return Verdict::Pass(Reason::NotForUs);
    }
    if let Some(defect) = headers.defect {
        if !is_vip(tables, headers.destination) {
            return Verdict::Pass(Reason::NotForUs);
        }
        return match defect {
            Reason::Fragment => Verdict::Fragment,
            Reason::OtherProtocol => Verdict::Pass(defect),
            _ => Verdict::Drop(defect),
        };
    }
    match headers.protocol {
        protocol::TCP | protocol::UDP => steer_transport(frame, tables, &headers, |_, _, _| true),
        _ if !is_vip(tables, headers.destination) => Verdict::Pass(Reason::NotForUs),
        protocol::ICMP if headers.is_v4 => Verdict::Slow,
        protocol::ICMPV6 if !headers.is_v4 => Verdict::Slow,
        _ => Verdict::Pass(Reason::OtherProtocol),
    }
}

/// Whether an address is a VIP.
#[inline(always)]
pub fn is_vip<T: Tables>(tables: &T, address: Address) -> bool {
    tables.service(&ServiceKey::of_vip(address)).is_some()
}

/// Steers by ports and service. `noted` is told the chosen backend and its place before anything is rewritten; where it
/// says no, there is no room for the record of a fragment.
#[inline(always)]
pub(crate) fn steer_transport<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    headers: &Headers,
    noted: impl FnOnce(&F, u32, &Backend) -> bool,
) -> Verdict {
    let Some(transport) = frame.at::<UDP>(headers.l4) else {
        // Within the IP packet, as the parser saw, but not in what this program can reach.
        return Verdict::Pass(Reason::NotForUs);
    };
    let ports: u32 = transport.get::<0, _>();
    let source_port = u16::from_be(transport.get::<0, _>());
    let port = u16::from_be(transport.get::<2, _>());
    let key = ServiceKey::new(headers.destination, port, headers.protocol);
    let service = match tables.service(&key) {
        Some(service) if port != 0 => service,
        _ if is_vip(tables, headers.destination) => return answer::refuse(frame, tables, headers, Reason::PortClosed),
        _ => return Verdict::Pass(Reason::NotForUs),
    };
    if service.backends_count == 0 {
        return answer::refuse(frame, tables, headers, Reason::NoBackend);
    }
    if is_recorded_udp(headers, &service) {
        tables.expect_flow(headers.source, source_port);
    }
    let hash =
        flow_hash(tables.maglev_seed(), headers.source.words(), headers.destination.words(), ports, headers.protocol);
    let flags = tcp_flags(frame, headers);
    let opens = session::opens(flags);
    let (place, backend) = match choose(tables, headers, &service, hash, source_port, Kind::Packet { flags }) {
        Choice::Backend(place, backend) => (place, backend),
        Choice::Nobody => return answer::refuse(frame, tables, headers, Reason::NoBackend),
        Choice::Broken => return Verdict::Drop(Reason::BrokenTable),
    };
    // Before anything is recorded or counted for a packet that goes nowhere.
    if let Some(reason) = unusable(backend, headers.is_v4) {
        return Verdict::Drop(reason);
    }
    // A pod that owns the VIP is the packet's destination, and this node is no hop on the way there: it gets what is in
    // its last hop (RFC 1122, 3.2.1.7), and 255 as 255 (RFC 5082, 3).
    let is_direct = backend.rung == rung::DIRECT;
    let error = if headers.hops <= 1 && !is_direct {
        Some(IcmpError::TimeExceeded)
    } else if headers.length > backend.mtu as usize {
        Some(IcmpError::TooBig { mtu: backend.mtu })
    } else {
        None
    };
    if let Some(error) = error {
        return answer::icmp_error(frame, tables, headers, error);
    }
    if is_direct {
        if !noted(frame, place, backend) {
            return Verdict::Drop(Reason::FragmentsFull);
        }
        return into_pod(frame, headers, backend);
    }
    let is_recorded = backend.flags & backend_flags::RECORD != 0;
    if (is_recorded || opens && tables.has_bypasses(backend.endpoint)) && !is_recorded_udp(headers, &service) {
        let key = connection(headers.source, source_port, headers.protocol, backend);
        match tables.claim(&Claimed::new(key, backend, opens)) {
            Claim::Granted => {}
            Claim::Full => return Verdict::Drop(Reason::BypassesFull),
            Claim::Foreign => return Verdict::Drop(Reason::ForeignSession),
            Claim::NoSession => return answer::refuse(frame, tables, headers, Reason::NoSession),
        }
    }
    if !noted(frame, place, backend) {
        return Verdict::Drop(Reason::FragmentsFull);
    }
    rewrite(frame, headers, backend);
    if is_recorded_udp(headers, &service) {
        tables.record_flow(backend.endpoint, headers.source, source_port, backend.id);
    }
    deliver(frame, headers, backend)
}

/// None of UDP's.
#[inline(always)]
fn tcp_flags<F: Frame>(frame: &F, headers: &Headers) -> u8 {
    if headers.protocol != protocol::TCP {
        return 0;
    }
    frame.at::<TCP>(headers.l4).map_or(0, |tcp| tcp.get::<13, _>())
}

#[inline(always)]
const fn is_recorded_udp(headers: &Headers, service: &Service) -> bool {
    headers.protocol == protocol::UDP && service.flags & service_flags::RECORD != 0
}

/// Why a backend gets no packet of this family.
#[inline(always)]
pub fn unusable(backend: &Backend, is_v4: bool) -> Option<Reason> {
    if backend.address.is_v4() != is_v4 {
        return Some(Reason::BrokenTable);
    }
    match backend.rung {
        rung::REDIRECT | rung::PEER | rung::STACK | rung::DIRECT => None,
        rung::NONE => Some(Reason::BackendUnreachable),
        _ => Some(Reason::BrokenTable),
    }
}

/// How a packet speaks of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It is of it.
    Packet {
        /// Of a TCP segment; none of a datagram.
        flags: u8,
    },
    /// An ICMP error quotes one that went the other way.
    Quoted,
}

/// Where a packet of a service goes.
pub enum Choice<'a> {
    /// To this one, with its place in `backends`.
    Backend(u32, &'a Backend),
    /// No backend takes new connections, and none has this one.
    Nobody,
    /// The tables contradict each other.
    Broken,
}

/// Who gets a packet of a service: the owner of its slot, or whom the offer finds.
#[inline(always)]
pub fn choose<'a, T: Tables>(
    tables: &'a T,
    headers: &Headers,
    service: &Service,
    hash: u64,
    client_port: u16,
    kind: Kind,
) -> Choice<'a> {
    let by_address = service.flags & service_flags::AFFINITY != 0;
    let hash = if by_address { toggle_client_port(hash, client_port) } else { hash };
    let Some(slot) = tables.slot(service.slots.wrapping_add(slot_of(hash, service.slots_log2))) else {
        return Choice::Broken;
    };
    let is_tcp = headers.protocol == protocol::TCP;
    let is_offered = is_tcp && (slot.history != 0 || service.flags & service_flags::OFFERED != 0);
    let owner = if is_offered || by_address {
        let (flags, quoted) = match kind {
            Kind::Packet { flags } => (flags, 0),
            Kind::Quoted => (0, offer_kind::QUOTED),
        };
        let kind = quoted | if is_tcp { 0 } else { offer_kind::DATAGRAM };
        let offered = Offer { client: headers.source, service: *service, hash, slot, client_port, flags, kind };
        let found = if is_offered { tables.offer(&offered) } else { slot.owner as u32 };
        if by_address { tables.keep(&offered, found) } else { found as u16 }
    } else {
        slot.owner
    };
    if owner >= service.backends_count {
        return if owner == NO_OWNER { Choice::Nobody } else { Choice::Broken };
    }
    let place = service.backends.wrapping_add(owner as u32);
    match tables.backend(place) {
        Some(backend) => Choice::Backend(place, backend),
        None => Choice::Broken,
    }
}

/// Who gets a TCP packet of a moved slot, or of a service whose flags say so, as a position in the service's backends,
/// with [`HAS_IT`] where one is known to have its connection: the opaque owner that its record names, else who is asked
/// for it, else the current owner.
#[inline(always)]
pub fn offer<T: Tables>(tables: &T, offer: &Offer) -> u32 {
    let has_opaque = offer.service.flags & service_flags::OPAQUE != 0;
    if has_opaque {
        let owner = opaque::recorded(tables, offer);
        if owner != NO_OWNER {
            return owner as u32 | HAS_IT;
        }
    }
    let found = ask(tables, offer);
    // With client affinity the last word is not said yet.
    if has_opaque && offer.service.flags & service_flags::AFFINITY == 0 {
        opaque::begin(tables, offer, found as u16);
    }
    found
}

/// The earlier owner whose kernel has the connection, else the current owner. A SYN is offered too: its client may use a
/// port again while an earlier owner has the old connection half open. What nobody has may be of an earlier owner that
/// cannot be reached now: it gets it, that is, nobody does, so that no session is reset because its pod's interface is
/// away for a moment.
#[inline(always)]
fn ask<T: Tables>(tables: &T, offer: &Offer) -> u32 {
    let Offer { client, service, slot, client_port, .. } = offer;
    if slot.history == 0 && service.flags & service_flags::REHASHED == 0 {
        return slot.owner as u32;
    }
    let opens = offer.opens();
    let Some(history) = owners_before(tables, service, *slot) else {
        // Named by a slot and not there, or never written: only the current owner is known.
        tables.count_broken_history();
        return slot.owner as u32;
    };
    // An integer, because the verifier refuses to see the value of an empty option moved.
    let cached = if opens { None } else { tables.cached_owner(service.id, *client, *client_port) };
    let cached = cached.unwrap_or(NO_BACKEND);
    let current = backend_at(tables, service, slot.owner);
    if cached != NO_BACKEND && current.is_some_and(|backend| backend.id == cached) {
        return slot.owner as u32 | HAS_IT;
    }
    let earlier = earlier(tables, offer, history, cached);
    if earlier & HAS_IT != 0 {
        return earlier;
    }
    if let Some(backend) = current
        && !offer.is_quoted()
        && (opens || has(tables, *client, *client_port, backend))
    {
        tables.cache_owner(service.id, *client, *client_port, backend.id, opens);
        return slot.owner as u32 | if opens { 0 } else { HAS_IT };
    }
    if opens || earlier == NO_OWNER as u32 { slot.owner as u32 } else { earlier }
}

/// In what [`offer`] returns: the owner has the packet's connection.
pub const HAS_IT: u32 = 1 << 16;

/// A slot's earlier owners as a [`History`] has them, in two words: no pointer to lose sight of, no memory to index.
#[derive(Clone, Copy)]
pub(crate) struct Earlier {
    low: u64,
    high: u64,
}

impl Earlier {
    #[inline(always)]
    fn new(history: &History) -> Self {
        let [a, b, c, d, e, f, g] = history.owners;
        let word = |a: u16, b: u16, c: u16, d: u16| a as u64 | (b as u64) << 16 | (c as u64) << 32 | (d as u64) << 48;
        Self { low: word(history.count, a, b, c), high: word(d, e, f, g) }
    }

    #[inline(always)]
    const fn count(self) -> usize {
        (self.low & 0xffff) as usize
    }

    /// The one at a place, or [`NO_OWNER`].
    #[inline(always)]
    pub(crate) const fn at(self, at: usize) -> u16 {
        if at >= self.count() || at >= HISTORY {
            return NO_OWNER;
        }
        let word = if at < 3 { self.low } else { self.high };
        (word >> ((at + 1) % 4 * 16)) as u16
    }
}

/// The earlier owners of a slot; `None` where it names a list that is not there, or was never written.
#[inline(always)]
pub(crate) fn owners_before<T: Tables>(tables: &T, service: &Service, slot: Slot) -> Option<Earlier> {
    if slot.history == 0 {
        return Some(Earlier { low: 0, high: 0 });
    }
    let at = service.histories.wrapping_add(slot.history as u32 - 1);
    tables.history(at).filter(|history| history.count != 0).map(Earlier::new)
}

/// A service's backend by its position.
#[inline(always)]
pub(crate) fn backend_at<'a, T: Tables>(tables: &'a T, service: &Service, owner: u16) -> Option<&'a Backend> {
    let there = owner < service.backends_count;
    if there { tables.backend(service.backends.wrapping_add(owner as u32)) } else { None }
}

/// Who may have a connection beside its slot's current owner: the earlier owners and, where the hash has changed, the
/// owners of the slot that the other one names, the current one and those before.
#[derive(Clone, Copy)]
pub(crate) struct Beside {
    earlier: Earlier,
    other: u16,
    others: Earlier,
    end: usize,
}

impl Beside {
    /// Places at most.
    pub(crate) const MAX: usize = 2 * HISTORY + 1;

    #[inline(always)]
    pub(crate) fn new<T: Tables>(tables: &T, offer: &Offer, earlier: Earlier) -> Self {
        let Offer { service, slot, client_port, .. } = offer;
        let (mut other, mut others, mut end) = (NO_OWNER, Earlier { low: 0, high: 0 }, earlier.count());
        if service.flags & service_flags::REHASHED != 0 {
            let hash = toggle_client_port(offer.hash, *client_port);
            let at = service.slots.wrapping_add(slot_of(hash, service.slots_log2));
            if let Some(named) = tables.slot(at) {
                end = Self::MAX;
                other = if named.owner == slot.owner { NO_OWNER } else { named.owner };
                others = owners_before(tables, service, named).unwrap_or(others);
            }
        }
        Self { earlier, other, others, end }
    }

    /// The one at a place below [`Beside::MAX`], or [`NO_OWNER`]; none after the last.
    #[inline(always)]
    pub(crate) const fn at(&self, at: usize) -> Option<u16> {
        if at >= self.end {
            return None;
        }
        Some(match at {
            HISTORY => self.other,
            at if at < HISTORY => self.earlier.at(at),
            at => self.others.at(at - HISTORY - 1),
        })
    }
}

/// The first of those beside the current owner who has a TCP client's connection, with [`HAS_IT`]; else one that cannot be
/// reached, else [`NO_OWNER`].
#[inline(always)]
fn earlier<T: Tables>(tables: &T, offer: &Offer, history: Earlier, cached: u32) -> u32 {
    let Offer { client, service, client_port, .. } = offer;
    let mut nobody = NO_OWNER as u32;
    let beside = Beside::new(tables, offer, history);
    for at in 0..Beside::MAX {
        let Some(owner) = beside.at(at) else { break };
        let Some(backend) = backend_at(tables, service, owner) else { continue };
        if backend.id == cached && cached != NO_BACKEND {
            return owner as u32 | HAS_IT;
        }
        if backend.rung == rung::NONE {
            nobody = owner as u32;
        } else if has(tables, *client, *client_port, backend) {
            if !offer.is_quoted() {
                tables.cache_owner(service.id, *client, *client_port, backend.id, offer.opens());
            }
            return owner as u32 | HAS_IT;
        }
    }
    nobody
}

#[inline(always)]
pub(crate) fn has<T: Tables>(tables: &T, client: Address, client_port: u16, backend: &Backend) -> bool {
    let key = connection(client, client_port, protocol::TCP, backend);
    // Of an opaque pod no answer means anything.
    !opaque::is_opaque(backend) && tables.socket(backend.netns_id, &key) == Socket::Living
}

/// A client's connection as the pod sees it.
#[inline(always)]
const fn connection(client: Address, client_port: u16, protocol: u8, backend: &Backend) -> BypassKey {
    BypassKey { client, pod: backend.address, client_port, pod_port: backend.port, protocol, pad: 0, pad2: 0 }
}

/// What one hop less changes in the IPv4 header's sum: the TTL is the high byte of its word, so `~m + m'` is
/// `-0x100` whatever it was.
const ONE_HOP: u64 = 0xfeffu16.to_be() as u64;

/// Destination address becomes the backend's; one hop is used up.
#[inline(always)]
pub(crate) fn rewrite_network<F: Frame>(frame: &mut F, headers: &Headers, backend: &Backend) {
    let new = backend.address.words();
    if headers.is_v4 {
        let Some(ip) = frame.at::<IPV4>(headers.l3) else { return };
        let check = ip.get::<{ v4::CHECKSUM }, u16>();
        ip.put::<{ v4::CHECKSUM }, u16>(checksum::update(check, backend.address_change as u64 + ONE_HOP));
        ip.put::<{ v4::TTL }, u8>(headers.hops - 1);
        ip.put::<{ v4::DESTINATION }, u32>(backend.address.v4_word());
    } else {
        let Some(ip) = frame.at::<IPV6>(headers.l3) else { return };
        ip.put::<{ v6::HOPS }, u8>(headers.hops - 1);
        ip.put::<{ v6::DESTINATION }, u64>(new[0]);
        ip.put::<{ v6::DESTINATION + 8 }, u64>(new[1]);
    }
}

/// Destination address and port become the backend's; one hop is used up.
#[inline(always)]
fn rewrite<F: Frame>(frame: &mut F, headers: &Headers, backend: &Backend) {
    rewrite_network(frame, headers, backend);
    let Some(ports) = frame.at::<UDP>(headers.l4) else { return };
    let port = backend.port.to_be();
    let change = backend.address_change as u64 + checksum::change16(ports.get::<2, _>(), port);
    ports.put::<2, u16>(port);
    if headers.protocol == protocol::TCP {
        let Some(check) = frame.at::<2>(headers.l4 + 16) else { return };
        check.put::<0, u16>(checksum::update(check.get::<0, _>(), change));
    } else {
        let check = ports.get::<6, u16>();
        if check != 0 {
            ports.put::<6, u16>(checksum::udp(checksum::update(check, change)));
        }
    }
}

/// By the host-side interface of its veth.
#[inline(always)]
fn into_pod<F: Frame>(frame: &mut F, headers: &Headers, backend: &Backend) -> Verdict {
    if headers.tag_bytes() != 0 && !frame.shrink_head(headers.tag_bytes()) {
        return Verdict::Drop(Reason::NoRoom);
    }
    if !put_ethernet(frame, headers.is_v4, backend.destination_mac, backend.source_mac) {
        return Verdict::Drop(Reason::NoRoom);
    }
    Verdict::Redirect { tx_port: backend.tx_port, backend: backend.id }
}

/// By the backend's rung. Pods know no VLAN of the uplink, the node's own stack does.
#[inline(always)]
pub fn deliver<F: Frame>(frame: &mut F, headers: &Headers, backend: &Backend) -> Verdict {
    match backend.rung {
        rung::REDIRECT | rung::DIRECT => into_pod(frame, headers, backend),
        rung::PEER => {
            if headers.tag_bytes() != 0 {
                let Some(ethernet) = frame.at::<ETHERNET>(0) else { return Verdict::Drop(Reason::NoRoom) };
                let destination = destination_mac(ethernet);
                // The mark takes the source's place.
                if !frame.shrink_head(headers.tag_bytes()) || !put_ethernet(frame, headers.is_v4, destination, [0; 6]) {
                    return Verdict::Drop(Reason::NoRoom);
                }
            }
            match mark::put(frame, Mark::Peer(backend.ifindex)) {
                true => Verdict::Peer { backend: backend.id },
                false => Verdict::Drop(Reason::NoRoom),
            }
        }
        rung::STACK => match mark::put(frame, Mark::Stack) {
            true => Verdict::Stack { backend: backend.id },
            false => Verdict::Drop(Reason::NoRoom),
        },
        _ => Verdict::Drop(Reason::BrokenTable),
    }
}

#[inline(always)]
fn destination_mac<V: View<ETHERNET>>(ethernet: V) -> [u8; 6] {
    let (a, b) = (ethernet.get::<0, u32>().to_ne_bytes(), ethernet.get::<4, u16>().to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1]]
}

/// Writes an untagged Ethernet header.
#[inline(always)]
fn put_ethernet<F: Frame>(frame: &mut F, is_v4: bool, destination: [u8; 6], source: [u8; 6]) -> bool {
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return false };
    let (d, s) = (destination, source);
    ethernet.put::<0, u32>(u32::from_ne_bytes([d[0], d[1], d[2], d[3]]));
    ethernet.put::<4, u16>(u16::from_ne_bytes([d[4], d[5]]));
    ethernet.put::<6, u32>(u32::from_ne_bytes([s[0], s[1], s[2], s[3]]));
    ethernet.put::<10, u16>(u16::from_ne_bytes([s[4], s[5]]));
    ethernet.put::<12, u16>(if is_v4 { headers::ethertype::IPV4 } else { headers::ethertype::IPV6 });
    true
}
