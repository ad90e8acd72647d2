//! Packets that the data plane makes itself, out of the one that it answers: echo replies, resets, ICMP errors.
//! All of them are limited in rate, and none answers what must not be answered.

use crate::{
    abi::protocol,
    address::Address,
    checksum,
    headers::{ETHERNET, Headers, IPV4, IPV6, TCP, UDP, v4, v6},
    limiter::Class,
    packet::{Frame, MAX_SUMMED, View},
    reason::Reason,
    steer::{Tables, Verdict},
};

/// TTL and hop limit of what is made here.
const HOPS: u8 = 64;
/// Bytes of the offending packet that an ICMP error quotes: as many as make it 576 bytes long (RFC 1812, 4.3.2.3).
const QUOTE_V4: usize = 576 - IPV4 - ICMP;
/// As many as make it 1,280 bytes long (RFC 4443, 2.4 (c)).
const QUOTE_V6: usize = 1280 - IPV6 - ICMP;
const _: () = assert!(QUOTE_V4 <= MAX_SUMMED && QUOTE_V6 <= MAX_SUMMED);
/// Bytes of an ICMP error's own header.
const ICMP: usize = 8;

/// ICMP errors of the data plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpError {
    /// Destination unreachable, port unreachable, from the VIP.
    PortUnreachable(Reason),
    /// Time exceeded in transit, from the node.
    TimeExceeded,
    /// Fragmentation needed, or packet too big, from the node.
    TooBig {
        /// Bytes that would fit.
        mtu: u32,
    },
}

impl IcmpError {
    /// Type, code and the 32 bits after the checksum (RFC 792, RFC 1191, RFC 4443).
    #[inline(always)]
    const fn wire(self, is_v4: bool) -> (u8, u8, u32) {
        match (self, is_v4) {
            (Self::PortUnreachable(_), true) => (3, 3, 0),
            (Self::PortUnreachable(_), false) => (1, 4, 0),
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::TooBig { mtu }, true) => (3, 4, mtu & 0xffff),
            (Self::TooBig { mtu }, false) => (2, 0, mtu),
        }
    }

    #[inline(always)]
    const fn reason(self) -> Reason {
        match self {
            Self::PortUnreachable(reason) => reason,
            Self::TimeExceeded => Reason::TtlExceeded,
            Self::TooBig { .. } => Reason::TooBig,
        }
    }

    #[inline(always)]
    const fn class(self) -> Class {
        match self {
            Self::PortUnreachable(_) => Class::Refusal,
            Self::TimeExceeded | Self::TooBig { .. } => Class::IcmpError,
        }
    }
}

/// Whether a packet may be answered at all: not to a group or broadcast at the link, not from an address that is
/// nobody's (RFC 1122, 3.2.2; RFC 4443, 2.4 (e)).
#[inline(always)]
fn may_answer<F: Frame>(frame: &F, headers: &Headers) -> bool {
    let to_group = frame.at::<ETHERNET>(0).is_none_or(|ethernet| ethernet.get::<0, u8>() & 1 != 0);
    let source = headers.source.bytes;
    let nobody = if headers.is_v4 {
        // 0/8, 127/8, and everything from 224/4 up, broadcast included.
        source[12] == 0 || source[12] == 127 || source[12] >= 224
    } else {
        let words = headers.source.words();
        source[0] == 0xff || (words[0] == 0 && u64::from_be(words[1]) <= 1)
    };
    !to_group && !nobody
}

/// Answers an ICMP echo request to a VIP in place; passes every other ICMP.
#[inline(always)]
pub fn echo<F: Frame, T: Tables>(frame: &mut F, tables: &T, headers: &Headers) -> Verdict {
    let (request, reply) = if headers.is_v4 { (8u8, 0u8) } else { (128, 129) };
    let Some(icmp) = frame.at::<ICMP>(headers.l4) else {
        return Verdict::Pass(Reason::OtherProtocol);
    };
    if icmp.get::<0, u8>() != request || icmp.get::<1, u8>() != 0 {
        return Verdict::Pass(Reason::OtherProtocol);
    }
    if !may_answer(frame, headers) {
        return Verdict::Drop(Reason::NotAnswered);
    }
    if !tables.admit(Class::Echo) {
        return Verdict::Drop(Reason::RateLimited);
    }
    // Type and code are one word of the checksum; swapping addresses changes no sum.
    let change = checksum::change16(u16::from_ne_bytes([request, 0]), u16::from_ne_bytes([reply, 0]));
    icmp.put::<2, u16>(checksum::update(icmp.get::<2, _>(), change));
    icmp.put::<0, u8>(reply);
    let (source, destination) = (headers.source, headers.destination);
    if headers.is_v4 {
        let Some(ip) = frame.at::<IPV4>(headers.l3) else { return Verdict::Drop(Reason::NoRoom) };
        let hops = checksum::change16(u16::from_ne_bytes([headers.hops, 0]), u16::from_ne_bytes([HOPS, 0]));
        ip.put::<{ v4::CHECKSUM }, u16>(checksum::update(ip.get::<{ v4::CHECKSUM }, _>(), hops));
        ip.put::<{ v4::TTL }, u8>(HOPS);
        ip.put::<{ v4::SOURCE }, u32>(destination.v4_word());
        ip.put::<{ v4::DESTINATION }, u32>(source.v4_word());
    } else {
        let Some(ip) = frame.at::<IPV6>(headers.l3) else { return Verdict::Drop(Reason::NoRoom) };
        ip.put::<{ v6::HOPS }, u8>(HOPS);
        put_v6_addresses(ip, destination, source);
    }
    if !swap_macs(frame) {
        return Verdict::Drop(Reason::NoRoom);
    }
    Verdict::Transmit(Reason::EchoAnswered)
}

/// Refuses a TCP segment or UDP datagram for `reason`.
#[inline(always)]
pub fn refuse<F: Frame, T: Tables>(frame: &mut F, tables: &T, headers: &Headers, reason: Reason) -> Verdict {
    if headers.protocol == protocol::TCP {
        reset(frame, tables, headers, reason)
    } else {
        icmp_error(frame, tables, headers, IcmpError::PortUnreachable(reason))
    }
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Turns a segment into the RST that answers it (RFC 9293, 3.10.7.1).
#[inline(always)]
fn reset<F: Frame, T: Tables>(frame: &mut F, tables: &T, headers: &Headers, reason: Reason) -> Verdict {
    let Some(tcp) = frame.at::<TCP>(headers.l4) else {
        return Verdict::Drop(Reason::Malformed);
    };
    let flags: u8 = tcp.get::<13, _>();
    let header = (tcp.get::<12, u8>() >> 4) as usize * 4;
    if flags & RST != 0 || !may_answer(frame, headers) {
        return Verdict::Drop(Reason::NotAnswered);
    }
    if header < TCP || header > headers.l4_length() {
        return Verdict::Drop(Reason::Malformed);
    }
    if !tables.admit(Class::Refusal) {
        return Verdict::Drop(Reason::RateLimited);
    }
    let (sequence, acknowledgement, answer_flags) = if flags & ACK != 0 {
        (tcp.get::<8, u32>(), 0, RST)
    } else {
        let carried = (headers.l4_length() - header) as u32 + (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32;
        (0, u32::from_be(tcp.get::<4, _>()).wrapping_add(carried).to_be(), RST | ACK)
    };
    let (from, to): (u16, u16) = (tcp.get::<2, _>(), tcp.get::<0, _>());
    // Without options and extension headers: what is left of the packet lies behind the new headers.
    let l4 = headers.l3 + if headers.is_v4 { IPV4 } else { IPV6 };
    if !frame.truncate(l4 + TCP) {
        return Verdict::Drop(Reason::NoRoom);
    }
    let Some(tcp) = frame.at::<TCP>(l4) else { return Verdict::Drop(Reason::NoRoom) };
    let offset_flags = u16::from_ne_bytes([(TCP as u8 / 4) << 4, answer_flags]);
    let sum = checksum::address_sum(headers.source.words())
        + checksum::address_sum(headers.destination.words())
        + (protocol::TCP as u16).to_be() as u64
        + (TCP as u16).to_be() as u64
        + from as u64
        + to as u64
        + checksum::halves(sequence as u64)
        + checksum::halves(acknowledgement as u64)
        + offset_flags as u64;
    // An IPv4-mapped address adds its ffff, which is zero in ones' complement.
    tcp.put::<0, u16>(from);
    tcp.put::<2, u16>(to);
    tcp.put::<4, u32>(sequence);
    tcp.put::<8, u32>(acknowledgement);
    tcp.put::<12, u16>(offset_flags);
    tcp.put::<14, u16>(0);
    tcp.put::<16, u16>(checksum::finish(sum));
    tcp.put::<18, u16>(0);
    let ip = Ip { is_v4: headers.is_v4, source: headers.destination, destination: headers.source };
    if !ip.put(frame, headers.l3, protocol::TCP, TCP) || !swap_macs(frame) {
        return Verdict::Drop(Reason::NoRoom);
    }
    Verdict::Transmit(reason)
}

/// Turns a packet into the ICMP error that quotes it.
#[inline(always)]
pub fn icmp_error<F: Frame, T: Tables>(frame: &mut F, tables: &T, headers: &Headers, error: IcmpError) -> Verdict {
    if !may_answer(frame, headers) {
        return Verdict::Drop(Reason::NotAnswered);
    }
    if !tables.admit(error.class()) {
        return Verdict::Drop(Reason::RateLimited);
    }
    let (ip_bytes, limit) = if headers.is_v4 { (IPV4, QUOTE_V4) } else { (IPV6, QUOTE_V6) };
    let quoted = if headers.length < limit { headers.length & !3 } else { limit };
    let source = match error {
        IcmpError::PortUnreachable(_) => headers.destination,
        _ => node_or(tables, headers),
    };
    let added = ip_bytes + ICMP;
    if !swap_macs(frame) || !frame.truncate(headers.l3 + quoted) || !frame.grow_head(added) {
        return Verdict::Drop(Reason::NoRoom);
    }
    if !move_ethernet(frame, added, headers.tag_bytes()) {
        return Verdict::Drop(Reason::NoRoom);
    }
    let l4 = headers.l3 + ip_bytes;
    let (kind, code, rest) = error.wire(headers.is_v4);
    let mut sum = frame.sum(l4 + ICMP, quoted);
    let first = u16::from_ne_bytes([kind, code]);
    sum += first as u64 + rest.to_be() as u64;
    if !headers.is_v4 {
        sum += checksum::address_sum(source.words())
            + checksum::address_sum(headers.source.words())
            + (protocol::ICMPV6 as u16).to_be() as u64
            + ((ICMP + quoted) as u16).to_be() as u64;
    }
    let Some(icmp) = frame.at::<ICMP>(l4) else { return Verdict::Drop(Reason::NoRoom) };
    icmp.put::<0, u16>(first);
    icmp.put::<2, u16>(checksum::finish(sum));
    icmp.put::<4, u32>(rest.to_be());
    let ip = Ip { is_v4: headers.is_v4, source, destination: headers.source };
    let protocol = if headers.is_v4 { protocol::ICMP } else { protocol::ICMPV6 };
    if !ip.put(frame, headers.l3, protocol, ICMP + quoted) {
        return Verdict::Drop(Reason::NoRoom);
    }
    Verdict::Transmit(error.reason())
}

/// The node's own address of the packet's family, else the packet's destination.
#[inline(always)]
fn node_or<T: Tables>(tables: &T, headers: &Headers) -> Address {
    let node = tables.node_address(headers.is_v4);
    if node.words() == [0, 0] { headers.destination } else { node }
}

/// A plain IP header.
struct Ip {
    is_v4: bool,
    source: Address,
    destination: Address,
}

impl Ip {
    /// Writes the header for `payload` bytes at `l3`.
    #[inline(always)]
    fn put<F: Frame>(&self, frame: &mut F, l3: usize, protocol: u8, payload: usize) -> bool {
        if self.is_v4 {
            let Some(ip) = frame.at::<IPV4>(l3) else { return false };
            let (from, to) = (self.source.v4_word(), self.destination.v4_word());
            let version = u16::from_ne_bytes([0x45, 0]);
            let length = ((IPV4 + payload) as u16).to_be();
            let do_not_fragment = 0x4000u16.to_be();
            let hops = u16::from_ne_bytes([HOPS, protocol]);
            let sum = version as u64 + length as u64 + do_not_fragment as u64 + hops as u64 + from as u64 + to as u64;
            ip.put::<{ v4::VERSION_IHL }, u16>(version);
            ip.put::<{ v4::LENGTH }, u16>(length);
            ip.put::<4, u16>(0);
            ip.put::<{ v4::FRAGMENT }, u16>(do_not_fragment);
            ip.put::<{ v4::TTL }, u16>(hops);
            ip.put::<{ v4::CHECKSUM }, u16>(checksum::finish(sum));
            ip.put::<{ v4::SOURCE }, u32>(from);
            ip.put::<{ v4::DESTINATION }, u32>(to);
        } else {
            let Some(ip) = frame.at::<IPV6>(l3) else { return false };
            ip.put::<0, u32>(0x6000_0000u32.to_be());
            ip.put::<{ v6::LENGTH }, u16>((payload as u16).to_be());
            ip.put::<{ v6::NEXT }, u8>(protocol);
            ip.put::<{ v6::HOPS }, u8>(HOPS);
            put_v6_addresses(ip, self.source, self.destination);
        }
        true
    }
}

#[inline(always)]
fn put_v6_addresses<V: View<IPV6>>(ip: V, source: Address, destination: Address) {
    let (from, to) = (source.words(), destination.words());
    ip.put::<{ v6::SOURCE }, u64>(from[0]);
    ip.put::<{ v6::SOURCE + 8 }, u64>(from[1]);
    ip.put::<{ v6::DESTINATION }, u64>(to[0]);
    ip.put::<{ v6::DESTINATION + 8 }, u64>(to[1]);
}

/// Sends the frame back to where it came from.
#[inline(always)]
fn swap_macs<F: Frame>(frame: &mut F) -> bool {
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return false };
    let (a, b): (u32, u16) = (ethernet.get::<0, _>(), ethernet.get::<4, _>());
    let (c, d): (u32, u16) = (ethernet.get::<6, _>(), ethernet.get::<10, _>());
    ethernet.put::<0, u32>(c);
    ethernet.put::<4, u16>(d);
    ethernet.put::<6, u32>(a);
    ethernet.put::<10, u16>(b);
    true
}

/// Copies the Ethernet header, tags included, from `added` to the front.
#[inline(always)]
pub(crate) fn move_ethernet<F: Frame>(frame: &mut F, added: usize, tag_bytes: usize) -> bool {
    let (Some(from), Some(to)) = (frame.at::<ETHERNET>(added), frame.at::<ETHERNET>(0)) else { return false };
    to.put::<0, u64>(from.get::<0, _>());
    to.put::<8, u32>(from.get::<8, _>());
    to.put::<12, u16>(from.get::<12, _>());
    for tag in 0..2 {
        if tag * 4 < tag_bytes {
            let at = ETHERNET + tag * 4;
            let (Some(from), Some(to)) = (frame.at::<4>(added + at), frame.at::<4>(at)) else { return false };
            to.put::<0, u32>(from.get::<0, _>());
        }
    }
    true
}

const _: () = assert!(UDP == ICMP);
