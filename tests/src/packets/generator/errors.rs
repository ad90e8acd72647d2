//! ICMP errors: what a router or a client says of a packet that a VIP sent, or did not.

use std::net::IpAddr;

use super::Generator;
use crate::{
    packets::{Checksum, Extension, Packet, Transport},
    world::{
        content::{VIPS, backend, moved, pod},
        sockets,
    },
};

/// Bytes that make an ICMPv6 error as long as they get.
const LONGEST_QUOTE: usize = 1232;

impl Generator {
    /// Makes the packet an ICMP error, about a packet that it quotes.
    pub(super) fn make_error(&mut self, packet: &mut Packet, family: usize) {
        let quoted = self.quoted(family);
        let random = &mut self.random;
        let (kind, code) = if random.one_in(12) {
            (random.next() as u8, random.next() as u8)
        } else if family == 0 {
            random.pick(&[(3, 4), (3, 3), (3, 1), (3, 0), (11, 0), (12, 0), (4, 0), (5, 1)])
        } else {
            random.pick(&[(2, 0), (1, 4), (1, 0), (3, 0), (4, 1), (100, 0), (127, 3), (0, 0)])
        };
        let rest = random.next() as u32;
        packet.transport = Transport::Icmp { kind, code, rest: random.pick(&[1300, 0, rest]) };
        packet.source = match random.below(3) {
            0 => quoted.destination,
            _ => sockets::client(family, 200 + random.below(3) as u8),
        };
        packet.destination = if random.one_in(20) { self.destination(family) } else { quoted.source };
        packet.payload = self.quote(&quoted);
    }

    /// A packet of a VIP to a client, or something close to one.
    fn quoted(&mut self, family: usize) -> Packet {
        let (client, vip) = (self.source(family), self.destination(family));
        let of = self.random.below(2);
        let (to, from) = self.ports(of);
        let random = &mut self.random;
        let mut packet = if random.one_in(2) {
            let client = sockets::client(family, random.below(sockets::CLIENTS) as u8);
            let vip: IpAddr = VIPS[family][0].parse().expect("an address");
            let (port, protocol) = random.pick(&moved::PORTS);
            let to = sockets::FIRST_PORT + random.below(sockets::PORTS) as u16;
            let packet = Packet::from(vip).to(client);
            if protocol == 17 { packet.udp(port, to) } else { packet.tcp(port, to) }
        } else {
            let packet = Packet::from(vip).to(client);
            match (of, random.below(12)) {
                (_, 0) => packet.icmp(random.pick(&[3, 11, 1, 2, 0, 129, 8]), 0),
                (_, 1) => Packet { transport: Transport::Other(random.pick(&[47, 50, 132, 6, 17])), ..packet },
                (0, _) => packet.tcp(from, to),
                _ => packet.udp(from, to),
            }
        };
        packet.hops = 1 + random.below(60) as u8;
        if random.one_in(6) {
            packet.options = vec![1; random.below(41)];
        }
        if random.one_in(6) {
            packet.fragment = random.pick(&[0x4000, 0x2000, 0x2001, 0x0001, 0x1fff, 0x8000]);
        }
        if random.one_in(4) {
            for _ in 0..1 + random.below(8) {
                let units = random.below(3) as u8;
                packet.extensions.push(match random.below(8) {
                    0 => Extension::HopByHop(units),
                    1..4 => Extension::Destination(units),
                    4 => Extension::Routing { segments_left: u8::from(random.one_in(3)), units },
                    5 => Extension::Authentication(units),
                    _ => Extension::Fragment(random.pick(&[0, 1, 1, 8, 9, 0xfff8])),
                });
            }
        }
        packet.checksum = random.pick(&[Checksum::Right, Checksum::Right, Checksum::Wrong, Checksum::Zero]);
        let length = if random.one_in(8) { random.below(1500) } else { random.below(40) };
        packet.payload = random.bytes(length);
        if random.one_in(8) {
            aim_at_zero(&mut packet);
        }
        packet
    }

    /// Its first bytes, as many as a router sends: all, a few hundred, or eight behind the IP header, give or take some.
    fn quote(&mut self, quoted: &Packet) -> Vec<u8> {
        let mut bytes = quoted.ip();
        let random = &mut self.random;
        let header = bytes.len() - quoted.transport_bytes().len();
        match random.below(8) {
            0 => bytes.truncate(header + 8),
            1 => bytes.truncate(header + random.below(22)),
            2 => bytes.truncate(header + 16 + random.below(4)),
            3 => bytes.truncate(random.below(bytes.len() + 1)),
            _ => bytes.truncate(LONGEST_QUOTE),
        }
        if random.one_in(10) && !bytes.is_empty() {
            let at = random.below(bytes.len().min(80));
            bytes[at] ^= 1 << random.below(8);
        }
        bytes
    }
}

/// Chooses the payload so that the quoted UDP checksum becomes zero once its source is the pod's, of a service that has
/// but one.
fn aim_at_zero(packet: &mut Packet) {
    let Transport::Udp { ports } = &mut packet.transport else { return };
    ports.0 = 94;
    packet.checksum = Checksum::Right;
    packet.payload = vec![0; 2];
    let mut twin = packet.clone();
    twin.source = pod(packet.source.is_ipv4(), backend::PEER).into();
    if let Transport::Udp { ports } = &mut twin.transport {
        ports.0 = 80;
    }
    packet.payload.copy_from_slice(&twin.transport_bytes()[6..8]);
}
