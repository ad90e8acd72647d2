//! What must hold of frames whatever decided about them: checksums from scratch, by a parser of its own.

use std::net::IpAddr;

use lb_common::{headers, reason::Reason};

use super::{finish, pseudo_header, sum};
use crate::world::frame::TestFrame;

/// What a frame says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the transport header.
    pub l4: usize,
    /// Bytes of the IP packet.
    pub length: usize,
    /// Transport protocol.
    pub protocol: u8,
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// The IPv4 header's checksum is right; always so for IPv6.
    pub header_sum: bool,
    /// The transport checksum; `None` where there is none to be right.
    pub transport_sum: Option<bool>,
}

fn octets<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller gave N bytes")
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(octets(bytes.get(at..at + 2)?))))
}

/// The facts of a whole, unfragmented IP packet in a frame with any number of tags; `None` of anything else.
pub fn facts(frame: &[u8]) -> Option<Facts> {
    let mut l3 = 14;
    while matches!(be16(frame, l3 - 2)?, 0x8100 | 0x88a8) {
        l3 += 4;
    }
    let packet = frame.get(l3..)?;
    match be16(frame, l3 - 2)? {
        0x0800 => v4(packet, l3),
        0x86dd => v6(packet, l3),
        _ => None,
    }
}

fn v4(packet: &[u8], l3: usize) -> Option<Facts> {
    let header = usize::from(packet.first()? & 15) * 4;
    let length = be16(packet, 2)?;
    let whole = packet.get(..length)?;
    if header < 20 || header > length || be16(whole, 6)? & 0x3fff != 0 || packet[0] >> 4 != 4 {
        return None;
    }
    let source = IpAddr::from(octets::<4>(&whole[12..16]));
    let destination = IpAddr::from(octets::<4>(&whole[16..20]));
    let protocol = whole[9];
    let transport_sum = transport_sum(&whole[header..], protocol, source, destination);
    let header_sum = finish(sum(&whole[..header])) == 0;
    Some(Facts { l3, l4: l3 + header, length, protocol, source, destination, header_sum, transport_sum })
}

fn v6(packet: &[u8], l3: usize) -> Option<Facts> {
    let length = 40 + be16(packet, 4)?;
    let whole = packet.get(..length)?;
    if packet[0] >> 4 != 6 {
        return None;
    }
    let source = IpAddr::from(octets::<16>(&whole[8..24]));
    let destination = IpAddr::from(octets::<16>(&whole[24..40]));
    let (mut next, mut at) = (whole[6], 40);
    loop {
        let header = whole.get(at..)?;
        let units = |unit: usize| Some(8 + usize::from(*header.get(1)?) * unit);
        let bytes = match next {
            0 | 60 => units(8)?,
            43 if *header.get(3)? == 0 => units(8)?,
            44 if be16(header, 2)? & 0xfff9 == 0 => 8,
            51 => units(4)?,
            43 | 44 => return None,
            _ => break,
        };
        next = *header.first()?;
        at += bytes;
    }
    let transport_sum = transport_sum(whole.get(at..)?, next, source, destination);
    Some(Facts { l3, l4: l3 + at, length, protocol: next, source, destination, header_sum: true, transport_sum })
}

fn transport_sum(segment: &[u8], protocol: u8, source: IpAddr, destination: IpAddr) -> Option<bool> {
    let pseudo = match protocol {
        6 if segment.len() >= 20 => pseudo_header(source, destination, protocol, segment.len()),
        17 if segment.len() >= 8 && segment[6..8] != [0, 0] => {
            pseudo_header(source, destination, protocol, segment.len())
        }
        1 if source.is_ipv4() && segment.len() >= 8 => 0,
        58 if source.is_ipv6() && segment.len() >= 8 => pseudo_header(source, destination, protocol, segment.len()),
        _ => return None,
    };
    Some(finish(pseudo + sum(segment)) == 0)
}

/// Whether a frame carries a fragment.
pub fn is_fragment(frame: &[u8]) -> bool {
    let parsed = headers::parse(&TestFrame::new(frame));
    parsed.is_some_and(|headers| headers.defect == Some(Reason::Fragment))
}
