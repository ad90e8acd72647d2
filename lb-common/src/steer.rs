//! The forwarding decision of an uplink: one pure function of a frame and the tables.

use crate::{
    abi::{
        Backend, BypassKey, History, NO_OWNER, Service, ServiceKey, Slot, backend_flags, protocol, rung, service_flags,
    },
    address::Address,
    answer::{self, IcmpError},
    checksum,
    flow::State,
    headers::{self, ETHERNET, Headers, IPV4, IPV6, TCP, UDP, v4, v6},
    mark::{self, Mark},
    neighbor::{is_arp, is_discovery},
    offer::{Offer, offer_kind},
    packet::{Frame, View},
    reason::Reason,
    session::{self, Claim, Claimed, Sessions},
    virtual_mac::may_be_virtual,
};

/// What becomes of the frame, which has been rewritten accordingly. What is forwarded is counted under its backend, the
/// rest under its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Left to the kernel as it came, but for a virtual MAC (see [`admit`](crate::virtual_mac::admit)).
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
    /// For [`neighbor`](crate::neighbor::neighbor) to decide, untouched.
    Neighbor,
}

impl Verdict {
    /// Why.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Pass(reason) | Self::Drop(reason) | Self::Transmit(reason) => reason,
            Self::Redirect { .. } | Self::Peer { .. } | Self::Stack { .. } => Reason::Forwarded,
            Self::Slow | Self::Fragment | Self::Neighbor => Reason::NoSlowPath,
        }
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
    /// [`offer`](crate::offer::offer), apart from the rest.
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
    /// [`admit`](crate::virtual_mac::admit), apart from the rest.
    fn admits<F: Frame>(&self, frame: &F) -> bool;
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
    if may_be_virtual(frame) && !tables.admits(frame) {
        return Verdict::Drop(Reason::VirtualMacElsewhere);
    }
    let Some(headers) = headers::parse(frame) else {
        return if is_arp(frame) { Verdict::Neighbor } else { Verdict::Pass(Reason::NotIp) };
    };
    if !tables.may_be_vip(headers.destination) {
        return beside(frame, &headers);
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
        protocol::ICMPV6 if is_discovery(frame, &headers) => Verdict::Neighbor,
        _ if !is_vip(tables, headers.destination) => Verdict::Pass(Reason::NotForUs),
        protocol::ICMP if headers.is_v4 => Verdict::Slow,
        protocol::ICMPV6 if !headers.is_v4 => Verdict::Slow,
        _ => Verdict::Pass(Reason::OtherProtocol),
    }
}

/// What is to no VIP; it may be about one.
#[inline(always)]
fn beside<F: Frame>(frame: &F, headers: &Headers) -> Verdict {
    if headers.protocol == protocol::ICMPV6 && headers.defect.is_none() && is_discovery(frame, headers) {
        Verdict::Neighbor
    } else {
        Verdict::Pass(Reason::NotForUs)
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

/// A client's connection as the pod sees it.
#[inline(always)]
pub(crate) const fn connection(client: Address, client_port: u16, protocol: u8, backend: &Backend) -> BypassKey {
    BypassKey { client, pod: backend.address, client_port, pod_port: backend.port, protocol, pad: 0, pad2: 0 }
}

/// Destination address becomes the backend's; one hop is used up.
#[inline(always)]
pub(crate) fn rewrite_network<F: Frame>(frame: &mut F, headers: &Headers, backend: &Backend) {
    let new = backend.address.words();
    if headers.is_v4 {
        let Some(ip) = frame.at::<IPV4>(headers.l3) else { return };
        let check = ip.get::<{ v4::CHECKSUM }, u16>();
        let change = backend.address_change as u64 + checksum::one_hop(true);
        ip.put::<{ v4::CHECKSUM }, u16>(checksum::update(check, change));
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
