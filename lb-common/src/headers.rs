//! From a frame to the few facts that decide: one parser for kernel and host, XDP and tc, IPv4 and IPv6.
//!
//! No header's length is assumed: each is read and bounded, or the frame gets a named defect.

use core::mem::offset_of;

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    abi::protocol,
    address::Address,
    fragments::Key,
    packet::{Frame, View},
    reason::Reason,
};

/// VLAN tags that are looked through (802.1Q, 802.1ad).
pub const MAX_TAGS: usize = 2;
/// IPv6 extension headers that are looked through.
pub const MAX_EXTENSION_HEADERS: usize = 6;
/// Bytes of IPv6 extension headers that are looked through.
pub const MAX_EXTENSION_BYTES: usize = 512;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = EthHdr::LEN;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = Ipv4Hdr::LEN;
/// Bytes of an IPv6 header.
pub const IPV6: usize = Ipv6Hdr::LEN;
/// Bytes of a TCP header without options.
pub const TCP: usize = 20;
/// Bytes of a UDP header, and of the part of TCP's that holds ports and sequence number.
pub const UDP: usize = 8;

/// EtherTypes in memory order.
pub mod ethertype {
    /// 802.1Q.
    pub const VLAN: u16 = 0x8100u16.to_be();
    /// 802.1ad.
    pub const QINQ: u16 = 0x88a8u16.to_be();
    /// RFC 894.
    pub const IPV4: u16 = 0x0800u16.to_be();
    /// RFC 2464.
    pub const IPV6: u16 = 0x86ddu16.to_be();
    /// RFC 826.
    pub const ARP: u16 = 0x0806u16.to_be();
}

/// Offsets in an IPv4 header (RFC 791).
pub mod v4 {
    use super::{Ipv4Hdr, offset_of};
    /// Version and header length.
    pub const VERSION_IHL: usize = 0;
    /// Bytes of the packet.
    pub const LENGTH: usize = 2;
    /// Identification.
    pub const IDENTIFICATION: usize = 4;
    /// Flags and fragment offset.
    pub const FRAGMENT: usize = 6;
    /// Time to live.
    pub const TTL: usize = offset_of!(Ipv4Hdr, ttl);
    /// Protocol.
    pub const PROTOCOL: usize = offset_of!(Ipv4Hdr, proto);
    /// Header checksum.
    pub const CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
    /// Source address.
    pub const SOURCE: usize = offset_of!(Ipv4Hdr, src_addr);
    /// Destination address.
    pub const DESTINATION: usize = offset_of!(Ipv4Hdr, dst_addr);
}

/// Offsets in an IPv6 header (RFC 8200).
pub mod v6 {
    use super::{Ipv6Hdr, offset_of};
    /// Bytes after the header.
    pub const LENGTH: usize = offset_of!(Ipv6Hdr, payload_len);
    /// Next header.
    pub const NEXT: usize = offset_of!(Ipv6Hdr, next_hdr);
    /// Hop limit.
    pub const HOPS: usize = offset_of!(Ipv6Hdr, hop_limit);
    /// Source address.
    pub const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
    /// Destination address.
    pub const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
}

/// IPv6 extension headers (RFC 8200, 4; RFC 4302).
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
}

/// What a frame's headers say.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    /// Offset of the IP header; `ETHERNET` and four for each VLAN tag.
    pub l3: usize,
    /// Offset of the transport header. Of a fragment, that of what it carries in IPv4, of its fragment header in IPv6;
    /// means nothing where there is another defect.
    pub l4: usize,
    /// Bytes of the IP packet; the frame may be longer (Ethernet padding), never shorter.
    pub length: usize,
    /// IPv4, or IPv6.
    pub is_v4: bool,
    /// Transport protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Why only the addresses can be relied on.
    pub defect: Option<Reason>,
}

impl Headers {
    /// Bytes that VLAN tags take.
    #[inline(always)]
    pub const fn tag_bytes(&self) -> usize {
        self.l3 - ETHERNET
    }

    /// Bytes from the transport header to the end of the IP packet.
    #[inline(always)]
    pub const fn l4_length(&self) -> usize {
        (self.l3 + self.length).wrapping_sub(self.l4)
    }
}

/// What makes a packet a fragment.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Says which datagram it is of; 16 bits in IPv4.
    pub identification: u32,
    /// Bytes of the datagram in front of it.
    pub offset: usize,
    /// Bytes of the datagram in it.
    pub length: usize,
    /// Whether others follow.
    pub more: bool,
    /// Transport protocol, or the IPv6 extension header that stands before it.
    pub protocol: u8,
    /// Offset of what it carries: in the first one, the transport header.
    pub l4: usize,
}

/// Where in its datagram a fragment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// At its beginning, with the whole transport header.
    First,
    /// Behind the transport header.
    Later,
    /// What decides about the datagram is not in one piece (RFC 1858, RFC 3128, RFC 7112).
    Bad,
}

impl Piece {
    /// Whether it carries TCP or UDP, in IPv6 without further extension headers.
    #[inline(always)]
    pub const fn is_of_service(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP)
    }

    /// Where in its datagram it is.
    #[inline(always)]
    pub const fn position(&self) -> Position {
        let header = transport_minimum(self.protocol, false);
        if self.offset == 0 {
            if self.length < header { Position::Bad } else { Position::First }
        } else if self.offset < header {
            Position::Bad
        } else {
            Position::Later
        }
    }

    /// The datagram, from whom and to whom the headers say.
    #[inline(always)]
    pub const fn key(&self, headers: &Headers) -> Key {
        Key::inbound(headers.source, headers.destination, self.identification, self.protocol)
    }

    /// The headers of the datagram that a first fragment begins.
    #[inline(always)]
    pub const fn as_whole(&self, headers: &Headers) -> Headers {
        Headers { l4: self.l4, protocol: self.protocol, defect: None, ..*headers }
    }
}

/// The piece whose headers [`Piece::as_whole`] has made.
#[inline(always)]
pub fn piece_of<F: Frame>(frame: &F, whole: &Headers) -> Option<Piece> {
    piece(frame, &Headers { l4: whole.l4 - if whole.is_v4 { 0 } else { FRAGMENT }, ..*whole })
}

/// Bytes of an IPv6 fragment header (RFC 8200, 4.5).
const FRAGMENT: usize = 8;

/// The piece that a packet with the defect [`Reason::Fragment`] is. `None` where its header is cut short.
#[inline(always)]
pub fn piece<F: Frame>(frame: &F, headers: &Headers) -> Option<Piece> {
    let (identification, field, more, protocol, l4) = if headers.is_v4 {
        let ip = frame.at::<IPV4>(headers.l3)?;
        let field = u16::from_be(ip.get::<{ v4::FRAGMENT }, _>());
        let identification = u16::from_be(ip.get::<{ v4::IDENTIFICATION }, _>()) as u32;
        (identification, field << 3, field & 0x2000 != 0, headers.protocol, headers.l4)
    } else {
        let header = frame.at::<FRAGMENT>(headers.l4)?;
        let field = u16::from_be(header.get::<2, _>());
        let identification = u32::from_be(header.get::<4, _>());
        (identification, field & 0xfff8, field & 1 != 0, header.get::<0, u8>(), headers.l4 + FRAGMENT)
    };
    let end = headers.l3 + headers.length;
    if l4 > end {
        return None;
    }
    Some(Piece { identification, offset: field as usize, length: end - l4, more, protocol, l4 })
}

/// The EtherType behind up to [`MAX_TAGS`] VLAN tags, and the offset of what it is of.
#[inline(always)]
pub fn kind<F: Frame>(frame: &F) -> Option<(u16, usize)> {
    let (mut kind, mut l3) = match frame.bare() {
        Some(kind) => (kind, 0),
        None => (frame.at::<ETHERNET>(0)?.get::<12, u16>(), ETHERNET),
    };
    for _ in 0..MAX_TAGS {
        if kind == ethertype::VLAN || kind == ethertype::QINQ {
            kind = frame.at::<4>(l3)?.get::<2, _>();
            l3 += 4;
        }
    }
    Some((kind, l3))
}

/// The VLAN of a frame by where its network header is: 0 of one without any. `None` where there is a tag within a tag.
#[inline(always)]
pub fn vlan<F: Frame>(frame: &F, l3: usize) -> Option<u16> {
    const TAGGED: usize = ETHERNET + 4;
    match l3 {
        ETHERNET => Some(0),
        TAGGED => Some(u16::from_be(frame.at::<2>(ETHERNET)?.get::<0, _>()) & 0xfff),
        _ => None,
    }
}

/// Reads the headers of a frame. `None` for what is not IP, or too short to say from whom to whom.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Option<Headers> {
    let (kind, l3) = kind(frame)?;
    match kind {
        ethertype::IPV4 => parse_v4(frame, l3),
        ethertype::IPV6 => parse_v6(frame, l3),
        _ => None,
    }
}

#[inline(always)]
fn parse_v4<F: Frame>(frame: &F, l3: usize) -> Option<Headers> {
    let ip = frame.at::<IPV4>(l3)?;
    let version_ihl: u8 = ip.get::<{ v4::VERSION_IHL }, _>();
    let header = (version_ihl & 15) as usize * 4;
    let length = u16::from_be(ip.get::<{ v4::LENGTH }, _>()) as usize;
    // More fragments, or an offset; the reserved bit and DF are neither.
    let fragment = ip.get::<{ v4::FRAGMENT }, u16>() & 0x3fffu16.to_be() != 0;
    let protocol: u8 = ip.get::<{ v4::PROTOCOL }, _>();
    let defect = if version_ihl >> 4 != 4
        || header < IPV4
        || length < header + transport_minimum(protocol, fragment)
        || !frame.holds(l3 + length)
    {
        Some(Reason::Malformed)
    } else if fragment {
        Some(Reason::Fragment)
    } else {
        None
    };
    Some(Headers {
        l3,
        l4: l3 + header,
        length,
        is_v4: true,
        protocol,
        hops: ip.get::<{ v4::TTL }, _>(),
        source: Address::from_v4_word(ip.get::<{ v4::SOURCE }, _>()),
        destination: Address::from_v4_word(ip.get::<{ v4::DESTINATION }, _>()),
        defect,
    })
}

#[inline(always)]
fn parse_v6<F: Frame>(frame: &F, l3: usize) -> Option<Headers> {
    let ip = frame.at::<IPV6>(l3)?;
    let payload = u16::from_be(ip.get::<{ v6::LENGTH }, _>()) as usize;
    let length = IPV6 + payload;
    let (protocol, extensions, mut defect) = match ip.get::<{ v6::NEXT }, u8>() {
        next @ (protocol::TCP | protocol::UDP | protocol::ICMPV6) => (next, 0, None),
        next => skip_extensions(frame, l3 + IPV6, next),
    };
    let source = Address::from_words([ip.get::<{ v6::SOURCE }, _>(), ip.get::<{ v6::SOURCE + 8 }, _>()]);
    let destination = Address::from_words([ip.get::<{ v6::DESTINATION }, _>(), ip.get::<{ v6::DESTINATION + 8 }, _>()]);
    // The tables hold IPv4 addresses in their mapped form, which no packet carries (RFC 4038, 4.2): one that does
    // must not pass for IPv4.
    let mapped = source.is_v4() | destination.is_v4();
    if ip.get::<0, u8>() >> 4 != 6
        || mapped
        || payload < extensions + transport_minimum(protocol, defect.is_some())
        || !frame.holds(l3 + length)
    {
        defect = Some(Reason::Malformed);
    }
    Some(Headers {
        l3,
        l4: l3 + IPV6 + extensions,
        length,
        is_v4: false,
        protocol,
        hops: ip.get::<{ v6::HOPS }, _>(),
        source,
        destination,
        defect,
    })
}

/// Bytes of transport header that must be there for the packet to be steered.
#[inline(always)]
const fn transport_minimum(protocol: u8, opaque: bool) -> usize {
    match protocol {
        _ if opaque => 0,
        protocol::TCP => TCP,
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => UDP,
        _ => 0,
    }
}

/// Ports as they lie in a TCP or UDP packet, and flags, none of UDP. `None` where the header is beyond what can be reached.
#[inline(always)]
pub fn ports_and_flags<F: Frame>(frame: &F, headers: &Headers) -> Option<(u32, u8)> {
    if headers.protocol == protocol::TCP {
        let tcp = frame.at::<TCP>(headers.l4)?;
        Some((tcp.get::<0, _>(), tcp.get::<13, _>()))
    } else {
        Some((frame.at::<UDP>(headers.l4)?.get::<0, _>(), 0))
    }
}

/// Source and destination port of that word, host order.
#[inline(always)]
pub const fn split_ports(ports: u32) -> (u16, u16) {
    let [a, b, c, d] = ports.to_ne_bytes();
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// Follows extension headers from `next` at `start`: the transport protocol, bytes of extensions, and a defect.
#[inline(always)]
fn skip_extensions<F: Frame>(frame: &F, start: usize, next: u8) -> (u8, usize, Option<Reason>) {
    follow_extensions::<false, F>(frame, start, next)
}

/// The same in a packet that an ICMP error quotes: behind the header of a first fragment its transport is looked for.
#[inline(always)]
pub fn skip_quoted_extensions<F: Frame>(frame: &F, start: usize, next: u8) -> (u8, usize, Option<Reason>) {
    follow_extensions::<true, F>(frame, start, next)
}

#[inline(always)]
fn follow_extensions<const QUOTED: bool, F: Frame>(
    frame: &F,
    start: usize,
    mut next: u8,
) -> (u8, usize, Option<Reason>) {
    let mut bytes = 0;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let unit = match next {
            extension::AUTHENTICATION => 4,
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION | extension::FRAGMENT => 8,
            _ => return (next, bytes, None),
        };
        let Some(header) = frame.at::<8>(start + bytes) else {
            return (next, bytes, Some(Reason::Malformed));
        };
        let units = header.get::<1, u8>() as usize;
        if next == extension::FRAGMENT {
            // An atomic fragment (RFC 6946) is a whole packet; anything else is a piece of one.
            let piece = if QUOTED { 0xfff8 } else { 0xfff9u16 };
            if header.get::<2, u16>() & piece.to_be() != 0 {
                return (next, bytes, Some(Reason::Fragment));
            }
            bytes += 8;
        } else {
            // Segments left: the destination is not the last one, and the checksum is not over it.
            if next == extension::ROUTING && header.get::<3, u8>() != 0 {
                return (next, bytes, Some(Reason::OtherProtocol));
            }
            // RFC 4302, 2.2: in four-byte units, less two. RFC 8200: in eight-byte units, less one.
            bytes += 8 + units * unit;
        }
        if bytes > MAX_EXTENSION_BYTES {
            return (next, 0, Some(Reason::TooManyHeaders));
        }
        next = header.get::<0, _>();
    }
    match next {
        extension::HOP_BY_HOP
        | extension::ROUTING
        | extension::DESTINATION
        | extension::FRAGMENT
        | extension::AUTHENTICATION => (next, 0, Some(Reason::TooManyHeaders)),
        _ => (next, bytes, None),
    }
}
