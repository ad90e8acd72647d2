//! Random frames: mostly well formed and for services that are there, with every boundary close by.

mod errors;
mod neighbors;

use std::net::IpAddr;

use lb_common::mark;

use super::{Checksum, Extension, Packet, QINQ, Transport, VLAN, flag, random::Random};
use crate::world::{
    content::{VIPS, direct, moved, pod, service_ports},
    holders::{OTHER_MACS, VIRTUAL_MACS},
    sockets,
};

/// Longest IP packet.
const LONGEST: usize = 65_535;

/// An endless, repeatable stream of frames of at least 14 bytes.
pub struct Generator {
    random: Random,
    /// Fragments of datagrams under way.
    pieces: Vec<Vec<u8>>,
    /// What a client sends next.
    next: Option<Packet>,
    ports: [Vec<u16>; 2],
}

const ODD_SOURCES: [&[&str]; 2] = [
    &[
        "0.0.0.0",
        "0.1.2.3",
        "1.0.0.1",
        "126.255.255.255",
        "127.0.0.1",
        "128.0.0.1",
        "223.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ],
    &["::", "::1", "::2", "0:0:0:1::", "ff02::1", "ff00::", "fe80::1", "feff::1", "::ffff:192.0.2.7"],
];
const ODD_DESTINATIONS: [&[&str]; 2] = [
    &["198.51.100.0", "198.51.100.4", "192.0.2.254", "10.244.7.10", "224.0.0.18", "255.255.255.255", "0.0.0.0"],
    &["2001:db8:1::", "2001:db8:1::4", "fd00:10:244::7:a", "ff02::1:ff00:1", "::ffff:198.51.100.1", "::", "::1"],
];
const FLAGS: [u8; 14] = [
    flag::SYN,
    flag::SYN,
    flag::ACK,
    flag::ACK,
    flag::ACK | flag::PSH,
    flag::SYN | flag::ACK,
    flag::FIN | flag::ACK,
    flag::FIN,
    flag::SYN | flag::FIN,
    flag::RST,
    flag::RST | flag::ACK,
    0,
    0xff,
    0xc0 | flag::SYN,
];

impl Generator {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        let of = |wanted| service_ports().iter().filter(|(_, protocol)| *protocol == wanted).map(|(p, _)| *p).collect();
        Self { random: Random::new(seed), pieces: Vec::new(), next: None, ports: [of(6), of(17)] }
    }

    /// The next frame.
    pub fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.physical();
        if self.random.one_in(16) {
            let mac =
                if self.random.one_in(6) { self.random.pick(&OTHER_MACS) } else { self.random.pick(&VIRTUAL_MACS) };
            frame[..6].copy_from_slice(&mac);
        }
        frame
    }

    /// The next one, to a MAC of this node.
    fn physical(&mut self) -> Vec<u8> {
        if self.random.one_in(60) {
            return self.nonsense();
        }
        if self.random.one_in(20) {
            let mut frame = self.neighbor();
            if self.random.one_in(8) {
                self.mangle(&mut frame);
            }
            return frame;
        }
        if !self.pieces.is_empty() && self.random.one_in(5) {
            let at = self.random.below(self.pieces.len());
            // Some come twice, and then out of order.
            return if self.random.one_in(6) { self.pieces[at].clone() } else { self.pieces.remove(at) };
        }
        if self.random.one_in(12) {
            self.fragment();
        }
        if let Some(packet) = self.next.take() {
            return packet.frame();
        }
        if self.random.one_in(40) {
            return self.reopen().frame();
        }
        let mut frame = self.packet().frame();
        if self.random.one_in(50) {
            frame[6..9].copy_from_slice(&mark::PREFIX);
        }
        if self.random.one_in(8) {
            self.mangle(&mut frame);
        }
        frame
    }

    /// A connection to a service that is recorded, and then its client's next one from the same port to the default service.
    fn reopen(&mut self) -> Packet {
        let family = self.random.below(2);
        let from = 40_000 + self.random.below(24) as u16;
        let first = Packet::from(self.source(family)).to(VIPS[family][1]).tcp(from, 80).syn();
        self.next = Some(first.clone().to(VIPS[family][0]));
        first
    }

    /// Puts the fragments of a packet among those that are under way, mostly in their order.
    fn fragment(&mut self) {
        let mut packet = self.packet();
        let random = &mut self.random;
        packet.identification = random.pick(&[1, 2, 3, 0xffff]);
        packet.fragment = 0;
        packet.padding = 0;
        if random.one_in(2) {
            let length = 1 + random.below(6000);
            packet.payload = random.bytes(length);
        }
        let size = random.pick(&[8, 16, 24, 32, 256, 1400, 1480, 1600]);
        // A router on the way may leave fewer hops to one of them.
        let tired = random.one_in(12);
        let total = packet.datagram_bytes();
        for (at, start) in (0..total).step_by(size).enumerate().take(12) {
            let mut piece = packet.piece(start..total.min(start + size));
            if tired && at > 0 {
                piece.hops = 1;
            }
            self.pieces.push(piece.frame());
        }
        let too_many = self.pieces.len().saturating_sub(UNDER_WAY);
        self.pieces.drain(..too_many);
        if random.one_in(3) {
            self.pieces.reverse();
        }
    }

    /// A frame that is random from its EtherType on, or all of it.
    fn nonsense(&mut self) -> Vec<u8> {
        let length = 14 + if self.random.one_in(3) { self.random.below(1500) } else { self.random.below(100) };
        let mut frame = self.random.bytes(length);
        if !self.random.one_in(4) {
            let kind = self.random.pick(&[0x0800u16, 0x86dd, VLAN, QINQ, 0x0806, 0x88cc]);
            frame[12..14].copy_from_slice(&kind.to_be_bytes());
        }
        frame
    }

    /// Damages a frame, down to 14 bytes.
    pub fn mangle(&mut self, frame: &mut Vec<u8>) {
        let random = &mut self.random;
        let near = frame.len().min(120);
        match random.below(6) {
            0 => frame.truncate(14 + random.below(near - 13)),
            1 => frame.truncate(14 + random.below(frame.len() - 13)),
            2 => {
                for _ in 0..=random.below(4) {
                    frame[random.below(near)] ^= 1 << random.below(8);
                }
            }
            3 => frame[random.below(near)] = random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            4 => {
                let at = 12 + random.below(near - 12);
                frame.remove(at);
                frame.push(0);
            }
            _ => {
                let at = 12 + random.below(near - 12);
                let byte = random.next() as u8;
                frame.insert(at, byte);
            }
        }
        frame[0] &= 0x0f;
    }

    /// The next packet, before any damage.
    pub fn packet(&mut self) -> Packet {
        let family = self.random.below(2);
        let mut packet = Packet::from(self.source(family)).to(self.destination(family));
        self.fill_transport(&mut packet);
        if self.random.one_in(2) {
            self.aim_at_moved_slots(&mut packet, family);
        }
        if self.random.one_in(16) {
            self.come_another_way(&mut packet, family);
        }
        self.fill_network(&mut packet);
        self.fill_ethernet(&mut packet);
        self.fill_payload(&mut packet);
        if self.random.one_in(6) {
            self.make_error(&mut packet, family);
        }
        packet.checksum = match self.random.below(12) {
            0 => Checksum::Wrong,
            1 => Checksum::Zero,
            _ => Checksum::Right,
        };
        if self.random.one_in(30) {
            packet.header_checksum = self.random.pick(&[Checksum::Wrong, Checksum::Zero]);
        }
        if self.random.one_in(16) {
            self.aim_at_zero(&mut packet);
        }
        packet
    }

    fn source(&mut self, family: usize) -> IpAddr {
        let random = &mut self.random;
        if random.one_in(25) {
            return random.pick(ODD_SOURCES[family]).parse().expect("an address");
        }
        sockets::client(family, random.below(24) as u8)
    }

    /// To a service whose slots have moved, from a client that may have a connection with one of its pods.
    fn aim_at_moved_slots(&mut self, packet: &mut Packet, family: usize) {
        let random = &mut self.random;
        packet.source = sockets::client(family, random.below(sockets::CLIENTS) as u8);
        packet.destination = VIPS[family][0].parse().expect("an address");
        let from = sockets::FIRST_PORT + random.below(sockets::PORTS) as u16;
        let (plain, kept) = moved::PORTS.split_at(moved::PLAIN);
        let (to, protocol) = match random.below(6) {
            0 => (direct::PORT_MOVED, 6),
            1 | 2 => random.pick(kept),
            _ => random.pick(plain),
        };
        *packet = if protocol == 17 {
            packet.clone().udp(from, to)
        } else {
            packet.clone().tcp(from, to).flags(random.pick(&FLAGS))
        };
    }

    /// From one of few ports to either of two VIPs that share their pods, so that connections meet records of the other's.
    fn come_another_way(&mut self, packet: &mut Packet, family: usize) {
        let random = &mut self.random;
        packet.source = sockets::client(family, 30);
        packet.destination = VIPS[family][random.below(2)].parse().expect("an address");
        let (from, flags) = (41_000 + random.below(8) as u16, random.pick(&[flag::SYN, flag::SYN, flag::ACK]));
        *packet = packet.clone().tcp(from, 80).flags(flags);
    }

    fn destination(&mut self, family: usize) -> IpAddr {
        let random = &mut self.random;
        let text = match random.below(40) {
            0..3 => random.pick(ODD_DESTINATIONS[family]),
            3..7 => VIPS[family][1],
            7 => VIPS[family][2],
            _ => VIPS[family][0],
        };
        text.parse().expect("an address")
    }

    fn ports(&mut self, of: usize) -> (u16, u16) {
        let random = &mut self.random;
        let from = match random.below(30) {
            0 => 0,
            1 => 65_535,
            2 => random.next() as u16,
            _ => 40_000 + random.below(24) as u16,
        };
        let to = match random.below(30) {
            0 => 0,
            1 => random.next() as u16,
            2 => random.pick(&[1, 52, 79, 163, 8080, 65_535]),
            // Of the other protocol, perhaps.
            3 => random.pick(&self.ports[1 - of]),
            _ => random.pick(&self.ports[of]),
        };
        (from, to)
    }

    fn fill_transport(&mut self, packet: &mut Packet) {
        packet.transport = match self.random.below(20) {
            0..9 => {
                let ports = self.ports(0);
                let random = &mut self.random;
                let options = if random.one_in(3) { random.below(41) } else { 0 };
                let numbers = match random.below(4) {
                    0 => (u32::MAX, u32::MAX),
                    1 => (0, 0),
                    _ => (random.next() as u32, random.next() as u32),
                };
                Transport::Tcp {
                    ports,
                    numbers,
                    flags: random.pick(&FLAGS),
                    options: vec![1; options],
                    offset: random.one_in(25).then(|| random.pick(&[0, 4, 5, 6, 7, 15])),
                }
            }
            9..16 => Transport::Udp { ports: self.ports(1) },
            16..19 => {
                let random = &mut self.random;
                let kind = match random.below(4) {
                    0 => random.pick(&[0, 3, 11, 1, 2, 129, 135, 136, 133]),
                    1 => random.pick(&[8, 128]),
                    _ if packet.source.is_ipv4() => 8,
                    _ => 128,
                };
                let code = if random.one_in(12) { 1 } else { 0 };
                Transport::Icmp { kind, code, rest: random.next() as u32 }
            }
            // The other family's ICMP, tunnels, SCTP, nothing, and extension headers where they don't belong.
            _ => Transport::Other(self.random.pick(&[0, 1, 58, 4, 41, 47, 50, 59, 132, 43, 44, 51, 60, 255])),
        };
    }

    fn fill_network(&mut self, packet: &mut Packet) {
        let random = &mut self.random;
        packet.hops = if random.one_in(10) { random.pick(&[0, 1, 1, 2, 255]) } else { 3 + random.below(250) as u8 };
        if random.one_in(12) {
            packet.options = vec![1; random.below(41)];
        }
        if random.one_in(20) {
            packet.fragment = random.pick(&[0x4000, 0x2000, 0x2001, 0x0001, 0x8000, 0x1fff, 0x3fff, 0xc000]);
        }
        if random.one_in(6) {
            self.fill_extensions(packet);
        }
        if self.random.one_in(25) {
            packet.length_lie = match self.random.below(4) {
                0 => -(1 + self.random.below(40) as i32),
                1 => 1 + self.random.below(40) as i32,
                2 => -LONGEST_LIE,
                _ => self.random.below(LONGEST) as i32 - 2000,
            };
        }
    }

    fn fill_extensions(&mut self, packet: &mut Packet) {
        let random = &mut self.random;
        for _ in 0..1 + random.below(8) {
            let units = match random.below(12) {
                0 => random.below(64) as u8,
                1 => random.next() as u8,
                _ => random.below(3) as u8,
            };
            packet.extensions.push(match random.below(10) {
                0..2 => Extension::HopByHop(units),
                2..5 => Extension::Destination(units),
                5..7 => Extension::Routing { segments_left: u8::from(random.one_in(8)), units },
                7 => Extension::Authentication(units),
                8 => Extension::Fragment(0),
                _ => Extension::Fragment(random.pick(&[0, 1, 8, 0xfff8, 0x0006, 0xfff9, 0x0007])),
            });
        }
        // Exactly at, just below or just beyond the bound of bytes.
        if random.one_in(6) {
            let units = 61 + random.below(5) as u8;
            packet.extensions = vec![Extension::Destination(units)];
            if random.one_in(2) {
                packet.extensions.insert(0, Extension::HopByHop(0));
            }
        }
    }

    fn fill_ethernet(&mut self, packet: &mut Packet) {
        let random = &mut self.random;
        if random.one_in(5) {
            for _ in 0..1 + random.below(2) + usize::from(random.one_in(6)) {
                let tpid = if random.one_in(10) { 0x9100 } else { random.pick(&[VLAN, QINQ]) };
                packet.tags.push((tpid, random.next() as u16));
            }
        }
        if random.one_in(40) {
            packet.macs.0 = random.pick(&[[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]]);
        }
        if random.one_in(5) {
            packet.padding = random.below(47);
        }
    }

    fn fill_payload(&mut self, packet: &mut Packet) {
        let random = &mut self.random;
        let overhead = packet.ip().len();
        let length = match random.below(60) {
            0 => random.below(1600),
            1..8 => {
                // The MTUs, what fits into an ICMP error, and what lies in one piece: one below to two above.
                let edge = random.pick(&[1400, 1500, 9000, 548, 552, 576, 1232, 1236, 1280, 3500]);
                (edge + random.below(4)).saturating_sub(1 + overhead)
            }
            8 if random.one_in(4) => random.pick(&[LONGEST, LONGEST - 1, 60_000]).saturating_sub(overhead),
            _ => random.below(48),
        };
        packet.payload = random.bytes(length.min(LONGEST.saturating_sub(overhead)));
    }

    /// Chooses the payload so that the transport checksum becomes zero once the packet is for a certain pod, or is
    /// zero now.
    fn aim_at_zero(&mut self, packet: &mut Packet) {
        if packet.payload.len() < 2 {
            return;
        }
        packet.checksum = Checksum::Right;
        packet.payload[..2].fill(0);
        let mut twin = packet.clone();
        if !self.random.one_in(3) {
            let id = self.random.pick(&[0, 3, 4]);
            let port = if id == 3 { 80 } else { 8000 + id as u16 };
            twin.destination = pod(packet.source.is_ipv4(), id).into();
            if let Transport::Tcp { ports, .. } | Transport::Udp { ports } = &mut twin.transport {
                ports.1 = port;
            }
        }
        let (bytes, header) = (twin.transport_bytes(), twin.transport_header());
        let at = match twin.transport {
            Transport::Tcp { .. } => 16,
            Transport::Udp { .. } => 6,
            Transport::Icmp { .. } => 2,
            Transport::Other(_) => return,
        };
        // Words of the payload stand at even offsets behind every header.
        debug_assert_eq!(header % 2, 0);
        packet.payload[..2].copy_from_slice(&bytes[at..at + 2]);
    }
}

/// Fragments that wait to be sent, at most.
const UNDER_WAY: usize = 24;
const LONGEST_LIE: i32 = LONGEST as i32;
