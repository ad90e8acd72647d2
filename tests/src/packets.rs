//! Frames that read as prose: `Packet::from("192.0.2.7").to("198.51.100.1").tcp(40_000, 179).syn().frame()`.
//!
//! Checksums are computed from scratch here, by other code than the data plane's, so that each checks the other.

pub mod generator;
pub mod neighbor;
pub mod oracle;
pub mod random;

use std::{net::IpAddr, ops::Range};

/// Source and destination MAC of a frame unless a test says otherwise.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0xc1, 0, 0, 0, 1];
/// The node's.
pub const NODE_MAC: [u8; 6] = [0x02, 0x0d, 0, 0, 0, 2];

/// 802.1Q.
pub const VLAN: u16 = 0x8100;
/// 802.1ad.
pub const QINQ: u16 = 0x88a8;

/// TCP flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgement counts.
    pub const ACK: u8 = 16;
}

/// How a checksum field is filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// As its RFC says.
    Right,
    /// One off.
    Wrong,
    /// Zero: "none" in UDP over IPv4, wrong elsewhere.
    Zero,
}

/// An IPv6 extension header; units are those of its length field, and the field may lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extension {
    /// Hop-by-hop options of `8 + 8 * units` bytes.
    HopByHop(u8),
    /// Destination options of `8 + 8 * units` bytes.
    Destination(u8),
    /// A routing header of `8 + 8 * units` bytes.
    Routing {
        /// Zero: the packet is where it was going.
        segments_left: u8,
        /// Of eight bytes.
        units: u8,
    },
    /// A fragment header with this offset-and-flags field; 0 makes the fragment atomic.
    Fragment(u16),
    /// An authentication header of `8 + 4 * units` bytes.
    Authentication(u8),
}

impl Extension {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing { .. } => 43,
            Self::Fragment(_) => 44,
            Self::Authentication(_) => 51,
            Self::Destination(_) => 60,
        }
    }

    fn bytes(self, next: u8, identification: u32) -> Vec<u8> {
        let (units, unit) = match self {
            Self::HopByHop(units) | Self::Destination(units) | Self::Routing { units, .. } => (units, 8),
            Self::Authentication(units) => (units, 4),
            Self::Fragment(_) => (0, 0),
        };
        let mut bytes = vec![0; 8 + usize::from(units) * unit];
        bytes[0] = next;
        bytes[1] = units;
        match self {
            Self::Routing { segments_left, .. } => bytes[3] = segments_left,
            Self::Fragment(field) => {
                bytes[2..4].copy_from_slice(&field.to_be_bytes());
                bytes[4..8].copy_from_slice(&identification.to_be_bytes());
            }
            // PadN over the rest (RFC 8200, 4.2), as far as its length goes.
            Self::HopByHop(_) | Self::Destination(_) => {
                let rest = (bytes.len() - 4).min(255) as u8;
                bytes[2..4].copy_from_slice(&[1, rest]);
            }
            Self::Authentication(_) => {}
        }
        bytes
    }
}

/// What the IP packet carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Sequence and acknowledgement number.
        numbers: (u32, u32),
        /// [`flag`].
        flags: u8,
        /// Options, padded to a multiple of four.
        options: Vec<u8>,
        /// Instead of the true header length in words.
        offset: Option<u8>,
    },
    /// UDP.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
    },
    /// ICMP or ICMPv6, by the packet's family.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier and sequence number, or whatever stands there.
        rest: u32,
    },
    /// Payload only.
    Other(u8),
}

/// A packet before it becomes bytes.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Destination and source MAC.
    pub macs: ([u8; 6], [u8; 6]),
    /// TPID and TCI of VLAN tags, outermost first.
    pub tags: Vec<(u16, u16)>,
    /// Source.
    pub source: IpAddr,
    /// Destination, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// IPv4 options, padded to a multiple of four.
    pub options: Vec<u8>,
    /// Identification in IPv4 and in IPv6 fragment headers.
    pub identification: u16,
    /// The bytes of transport header and payload that are in it; `None`: all.
    pub part: Option<Range<usize>>,
    /// IPv4 flags and fragment offset.
    pub fragment: u16,
    /// IPv6 extension headers.
    pub extensions: Vec<Extension>,
    /// What it carries.
    pub transport: Transport,
    /// TCP window.
    pub window: u16,
    /// Behind the transport header.
    pub payload: Vec<u8>,
    /// Transport checksum.
    pub checksum: Checksum,
    /// IPv4 header checksum.
    pub header_checksum: Checksum,
    /// Added to the IP length field: a lie.
    pub length_lie: i32,
    /// Bytes behind the IP packet.
    pub padding: usize,
}

impl Packet {
    /// A packet from this address.
    pub fn from(source: impl ToIp) -> Self {
        let source = source.to_ip();
        Self {
            macs: (NODE_MAC, CLIENT_MAC),
            tags: Vec::new(),
            source,
            destination: source,
            hops: 64,
            options: Vec::new(),
            identification: 0x1234,
            part: None,
            fragment: 0,
            extensions: Vec::new(),
            transport: Transport::Other(59),
            window: 0x2000,
            payload: Vec::new(),
            checksum: Checksum::Right,
            header_checksum: Checksum::Right,
            length_lie: 0,
            padding: 0,
        }
    }

    /// To this address.
    pub fn to(mut self, destination: impl ToIp) -> Self {
        self.destination = destination.to_ip();
        assert_eq!(self.source.is_ipv4(), self.destination.is_ipv4(), "a packet has one family");
        self
    }

    /// Carries TCP.
    pub fn tcp(mut self, from: u16, to: u16) -> Self {
        let numbers = (0x1000_0001, 0x2000_0002);
        let (flags, options) = (flag::ACK, Vec::new());
        self.transport = Transport::Tcp { ports: (from, to), numbers, flags, options, offset: None };
        self
    }

    /// Carries UDP.
    pub fn udp(mut self, from: u16, to: u16) -> Self {
        self.transport = Transport::Udp { ports: (from, to) };
        self
    }

    /// Carries ICMP or ICMPv6 of this type and code.
    pub fn icmp(mut self, kind: u8, code: u8) -> Self {
        self.transport = Transport::Icmp { kind, code, rest: 0x0102_0003 };
        self
    }

    /// Carries an ICMP echo request.
    pub fn echo_request(self) -> Self {
        let kind = if self.source.is_ipv4() { 8 } else { 128 };
        self.icmp(kind, 0)
    }

    /// With exactly these TCP flags.
    pub fn flags(mut self, new: u8) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = new;
        }
        self
    }

    /// A SYN without ACK.
    pub fn syn(self) -> Self {
        self.flags(flag::SYN)
    }

    /// With these TCP sequence and acknowledgement numbers.
    pub fn numbered(mut self, sequence: u32, acknowledgement: u32) -> Self {
        if let Transport::Tcp { numbers, .. } = &mut self.transport {
            *numbers = (sequence, acknowledgement);
        }
        self
    }

    /// With this in the four bytes behind the ICMP checksum.
    pub fn saying(mut self, new: u32) -> Self {
        if let Transport::Icmp { rest, .. } = &mut self.transport {
            *rest = new;
        }
        self
    }

    /// As the data plane makes packets itself: 64 hops, not to be fragmented, no identification, no window.
    pub fn made_here(mut self) -> Self {
        (self.hops, self.identification, self.window) = (64, 0, 0);
        self.fragment = if self.source.is_ipv4() { 0x4000 } else { 0 };
        self.macs = (CLIENT_MAC, NODE_MAC);
        self
    }

    /// With these MACs, destination first.
    pub fn macs(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.macs = (destination, source);
        self
    }

    /// With this payload.
    pub fn carrying(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// With a payload of this many bytes.
    pub fn carrying_bytes(mut self, length: usize) -> Self {
        self.payload = (0..length).map(|i| (i * 7 + 3) as u8).collect();
        self
    }

    /// With this TTL or hop limit.
    pub fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// With one more VLAN tag, inside those it has.
    pub fn tagged(mut self, tpid: u16, tci: u16) -> Self {
        self.tags.push((tpid, tci));
        self
    }

    /// With one more IPv6 extension header.
    pub fn extended(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// With IPv4 options of this many no-operations.
    pub fn with_options(mut self, bytes: usize) -> Self {
        self.options = vec![1; bytes];
        self
    }

    /// With this IPv4 flags-and-offset field.
    pub fn fragment(mut self, field: u16) -> Self {
        self.fragment = field;
        self
    }

    /// Of this datagram.
    pub fn identified(mut self, identification: u16) -> Self {
        self.identification = identification;
        self
    }

    /// Bytes of transport header and payload.
    pub fn datagram_bytes(&self) -> usize {
        self.transport_bytes().len()
    }

    /// The fragment with these bytes of transport header and payload, of which the first's number is a multiple of 8.
    pub fn piece(&self, part: Range<usize>) -> Self {
        let more = part.end < self.datagram_bytes();
        let mut piece = self.clone();
        if self.source.is_ipv4() {
            piece.fragment = (part.start / 8) as u16 | if more { 0x2000 } else { 0 };
        } else {
            piece.extensions.push(Extension::Fragment(part.start as u16 | u16::from(more)));
        }
        piece.part = Some(part);
        piece
    }

    /// The fragments that a sender makes, of at most this many bytes of the datagram each: a multiple of 8.
    pub fn pieces(&self, size: usize) -> Vec<Self> {
        let total = self.datagram_bytes();
        (0..total).step_by(size).map(|start| self.piece(start..total.min(start + size))).collect()
    }

    /// With the transport checksum filled this way.
    pub fn checksum(mut self, checksum: Checksum) -> Self {
        self.checksum = checksum;
        self
    }

    /// With Ethernet padding of this many bytes.
    pub fn padded(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// To this MAC.
    pub fn to_mac(mut self, mac: [u8; 6]) -> Self {
        self.macs.0 = mac;
        self
    }

    /// The IP protocol number of what it carries.
    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Icmp { .. } if self.source.is_ipv4() => 1,
            Transport::Icmp { .. } => 58,
            Transport::Other(protocol) => protocol,
        }
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = [self.macs.0, self.macs.1].concat();
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(if self.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(self.ip());
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }

    /// The IP packet.
    pub fn ip(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let transport = self.part.clone().map_or(transport.clone(), |part| transport[part].to_vec());
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut options = self.options.clone();
                options.resize(options.len().next_multiple_of(4).min(40), 0);
                let header = 20 + options.len();
                let length = self.lied(header + transport.len());
                let mut ip = vec![0x40 | (header / 4) as u8, 0, length[0], length[1]];
                ip.extend(self.identification.to_be_bytes());
                ip.extend(self.fragment.to_be_bytes());
                ip.extend([self.hops, self.protocol(), 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(options);
                let check = fill(self.header_checksum, finish(sum(&ip)));
                ip[10..12].copy_from_slice(&check);
                ip.extend(transport);
                ip
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = Vec::new();
                for (i, extension) in self.extensions.iter().enumerate() {
                    let next = self.extensions.get(i + 1).map_or(self.protocol(), |next| next.number());
                    extensions.extend(extension.bytes(next, self.identification.into()));
                }
                let length = self.lied(extensions.len() + transport.len());
                let first = self.extensions.first().map_or(self.protocol(), |first| first.number());
                let mut ip = vec![0x60, 0, 0, 0, length[0], length[1], first, self.hops];
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(extensions);
                ip.extend(transport);
                ip
            }
            _ => unreachable!("`to` keeps one family"),
        }
    }

    fn lied(&self, length: usize) -> [u8; 2] {
        ((length as i32 + self.length_lie).clamp(0, 0xffff) as u16).to_be_bytes()
    }

    /// Bytes of the transport header.
    fn transport_header(&self) -> usize {
        match &self.transport {
            Transport::Tcp { options, .. } => 20 + options.len().next_multiple_of(4).min(40),
            Transport::Udp { .. } | Transport::Icmp { .. } => 8,
            Transport::Other(_) => 0,
        }
    }

    /// The transport header and payload; the checksum is over the packet's final destination, as it must be.
    fn transport_bytes(&self) -> Vec<u8> {
        let (mut bytes, check_at) = match &self.transport {
            Transport::Tcp { ports, numbers, flags, options, offset } => {
                let mut options = options.clone();
                options.resize(options.len().next_multiple_of(4).min(40), 0);
                let words = offset.unwrap_or((5 + options.len() / 4) as u8);
                let mut tcp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
                tcp.extend(numbers.0.to_be_bytes());
                tcp.extend(numbers.1.to_be_bytes());
                tcp.extend([words << 4, *flags]);
                tcp.extend(self.window.to_be_bytes());
                tcp.extend([0; 4]);
                tcp.extend(options);
                (tcp, Some(16))
            }
            Transport::Udp { ports } => {
                let length = ((8 + self.payload.len()) as u16).to_be_bytes();
                let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
                ([ports, length.to_vec(), vec![0, 0]].concat(), Some(6))
            }
            Transport::Icmp { kind, code, rest } => {
                ([vec![*kind, *code, 0, 0], rest.to_be_bytes().to_vec()].concat(), Some(2))
            }
            Transport::Other(_) => (Vec::new(), None),
        };
        bytes.extend(&self.payload);
        if let Some(at) = check_at {
            let pseudo = match self.protocol() {
                1 => 0,
                protocol => pseudo_header(self.source, self.destination, protocol, bytes.len()),
            };
            let right = match finish(pseudo + sum(&bytes)) {
                0 if self.protocol() == 17 => 0xffff,
                right => right,
            };
            bytes[at..at + 2].copy_from_slice(&fill(self.checksum, right));
        }
        bytes
    }
}

fn fill(checksum: Checksum, right: u16) -> [u8; 2] {
    match checksum {
        Checksum::Right => right.to_be_bytes(),
        Checksum::Wrong => right.wrapping_add(1).to_be_bytes(),
        Checksum::Zero => [0, 0],
    }
}

/// Ones'-complement sum over big-endian words, an odd last byte padded (RFC 1071).
pub fn sum(bytes: &[u8]) -> u64 {
    // By hand: of an iterator the compiler may take the copy that a library without optimization has made.
    let (mut sum, mut at) = (0, 0);
    while at + 1 < bytes.len() {
        sum += u64::from(bytes[at]) << 8 | u64::from(bytes[at + 1]);
        at += 2;
    }
    if at < bytes.len() { sum + (u64::from(bytes[at]) << 8) } else { sum }
}

/// The checksum for a sum.
pub fn finish(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sum over the pseudo header of IPv4 (RFC 768) or IPv6 (RFC 8200, 8.1).
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let address = |ip| match ip {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    address(source) + address(destination) + u64::from(protocol) + length as u64
}

/// What can stand for an address in a test.
pub trait ToIp {
    /// The address; panics on text that is none.
    fn to_ip(self) -> IpAddr;
}

impl ToIp for &str {
    fn to_ip(self) -> IpAddr {
        self.parse().unwrap_or_else(|_| panic!("{self:?} is no address"))
    }
}

impl ToIp for IpAddr {
    fn to_ip(self) -> IpAddr {
        self
    }
}

/// Bytes as hex, for a failure's message.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
