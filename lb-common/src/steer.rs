//! The forwarding decision of an uplink: one pure function of a frame and the tables.

use crate::{
    abi::{
        Backend, BypassKey, HISTORY, History, NO_BACKEND, NO_OWNER, Service, ServiceKey, Slot, backend_flags, protocol,
        rung, service_flags,
    },
    address::Address,
    answer::{self, IcmpError},
    checksum,
    headers::{self, ETHERNET, Headers, IPV4, IPV6, TCP, UDP, v4, v6},
    mark::{self, Mark},
    packet::{Frame, View},
    reason::Reason,
    session::{self, Claim, Claimed, Sessions, Socket},
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
}

impl Verdict {
    /// Why.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Pass(reason) | Self::Drop(reason) | Self::Transmit(reason) => reason,
            Self::Redirect { .. } | Self::Peer { .. } | Self::Stack { .. } => Reason::Forwarded,
            Self::Slow => Reason::NoSlowPath,
        }
    }
}

/// A TCP packet of a moved slot.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Offer {
    /// Who sent it.
    pub client: Address,
    /// Its service.
    pub service: Service,
    /// Its slot.
    pub slot: Slot,
    /// Host order.
    pub client_port: u16,
    /// Zero.
    pub pad: u16,
    /// 1 where it opens a connection.
    pub opens: u32,
    /// Zero.
    pub pad2: u32,
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
    fn offer(&self, offer: &Offer) -> u16;
    /// Counts a slot whose history is not there.
    fn count_broken_history(&self);
    /// The earlier owners of slots, by their place in the map.
    fn history(&self, index: u32) -> Option<&History>;
    /// The backend that owned a TCP client's connection in a moved slot when it was asked last.
    fn cached_owner(&self, service: u32, client: Address, client_port: u16) -> Option<u32>;
    /// Remembers such a backend; where `only_known`, in place of another one only.
    fn cache_owner(&self, service: u32, client: Address, client_port: u16, backend: u32, only_known: bool);
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
    z.wrapping_mul(0x9e37_79b9_7f4a_7c15)
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
            Reason::Fragment => Verdict::Slow,
            Reason::OtherProtocol => Verdict::Pass(defect),
            _ => Verdict::Drop(defect),
        };
    }
    match headers.protocol {
        protocol::TCP | protocol::UDP => steer_transport(frame, tables, &headers, |_, _| true),
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
    noted: impl FnOnce(u32, &Backend) -> bool,
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
    if headers.hops <= 1 {
        return answer::icmp_error(frame, tables, headers, IcmpError::TimeExceeded);
    }
    let hash =
        flow_hash(tables.maglev_seed(), headers.source.words(), headers.destination.words(), ports, headers.protocol);
    let opens = headers.protocol == protocol::TCP && opens_connection(frame, headers);
    let (place, backend) = match choose(tables, headers, &service, hash, source_port, opens) {
        Choice::Backend(place, backend) => (place, backend),
        Choice::Nobody => return answer::refuse(frame, tables, headers, Reason::NoBackend),
        Choice::Broken => return Verdict::Drop(Reason::BrokenTable),
    };
    if backend.address.is_v4() != headers.is_v4 {
        return Verdict::Drop(Reason::BrokenTable);
    }
    match backend.rung {
        rung::REDIRECT | rung::PEER | rung::STACK => {}
        rung::NONE => return Verdict::Drop(Reason::BackendUnreachable),
        // Before anything is recorded or counted for a packet that goes nowhere.
        _ => return Verdict::Drop(Reason::BrokenTable),
    }
    if headers.length > backend.mtu as usize {
        return answer::icmp_error(frame, tables, headers, IcmpError::TooBig { mtu: backend.mtu });
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
    if !noted(place, backend) {
        return Verdict::Drop(Reason::FragmentsFull);
    }
    rewrite(frame, headers, backend);
    if is_recorded_udp(headers, &service) {
        tables.record_flow(backend.endpoint, headers.source, source_port, backend.id);
    }
    deliver(frame, headers, backend)
}

#[inline(always)]
fn opens_connection<F: Frame>(frame: &F, headers: &Headers) -> bool {
    frame.at::<TCP>(headers.l4).is_some_and(|tcp| session::opens(tcp.get::<13, _>()))
}

#[inline(always)]
const fn is_recorded_udp(headers: &Headers, service: &Service) -> bool {
    headers.protocol == protocol::UDP && service.flags & service_flags::RECORD != 0
}

/// Where a packet of a service goes.
enum Choice<'a> {
    /// With its place in `backends`.
    Backend(u32, &'a Backend),
    /// No backend takes new connections, and none has this one.
    Nobody,
    Broken,
}

#[inline(always)]
fn choose<'a, T: Tables>(
    tables: &'a T,
    headers: &Headers,
    service: &Service,
    hash: u64,
    client_port: u16,
    opens: bool,
) -> Choice<'a> {
    let Some(slot) = tables.slot(service.slots.wrapping_add(slot_of(hash, service.slots_log2))) else {
        return Choice::Broken;
    };
    let owner = if slot.history != 0 && headers.protocol == protocol::TCP {
        let opens = opens as u32;
        tables.offer(&Offer { client: headers.source, service: *service, slot, client_port, pad: 0, opens, pad2: 0 })
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

/// Who gets a packet of a moved slot: the earlier owner whose kernel has its connection, else the current owner, as
/// positions in the service's backends. A SYN is offered too: its client may use a port again while an earlier owner
/// has the old connection half open.
#[inline(always)]
pub fn offer<T: Tables>(tables: &T, offer: &Offer) -> u16 {
    let Offer { client, service, slot, client_port, .. } = *offer;
    let opens = offer.opens != 0;
    let backend_at = |owner: u16| {
        let there = owner < service.backends_count;
        if there { tables.backend(service.backends.wrapping_add(owner as u32)) } else { None }
    };
    let Some(history) = tables.history(service.histories.wrapping_add(slot.history as u32 - 1)) else {
        // Named by a slot and not there: only the current owner is known.
        tables.count_broken_history();
        return slot.owner;
    };
    // An integer, because the verifier refuses to see the value of an empty option moved.
    let cached = if opens { None } else { tables.cached_owner(service.id, client, client_port) };
    let cached = cached.unwrap_or(NO_BACKEND);
    let current = backend_at(slot.owner);
    if cached != NO_BACKEND && current.is_some_and(|backend| backend.id == cached) {
        return slot.owner;
    }
    for at in 0..HISTORY {
        if at >= history.count as usize {
            break;
        }
        let owner = history.owners[at];
        let Some(backend) = backend_at(owner) else { continue };
        if backend.id == cached && cached != NO_BACKEND {
            return owner;
        }
        if backend.rung != rung::NONE && has(tables, client, client_port, backend) {
            tables.cache_owner(service.id, client, client_port, backend.id, opens);
            return owner;
        }
    }
    if let Some(backend) = current
        && (opens || has(tables, client, client_port, backend))
    {
        tables.cache_owner(service.id, client, client_port, backend.id, opens);
    }
    slot.owner
}

#[inline(always)]
fn has<T: Tables>(tables: &T, client: Address, client_port: u16, backend: &Backend) -> bool {
    let key = connection(client, client_port, protocol::TCP, backend);
    tables.socket(backend.netns_id, &key) == Socket::Living
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

/// By the backend's rung. Pods know no VLAN of the uplink, the node's own stack does.
#[inline(always)]
pub(crate) fn deliver<F: Frame>(frame: &mut F, headers: &Headers, backend: &Backend) -> Verdict {
    match backend.rung {
        rung::REDIRECT => {
            if headers.tag_bytes() != 0 && !frame.shrink_head(headers.tag_bytes()) {
                return Verdict::Drop(Reason::NoRoom);
            }
            if !put_ethernet(frame, headers.is_v4, backend.destination_mac, backend.source_mac) {
                return Verdict::Drop(Reason::NoRoom);
            }
            Verdict::Redirect { tx_port: backend.tx_port, backend: backend.id }
        }
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
