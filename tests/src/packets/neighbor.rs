//! ARP packets and messages of Neighbor Discovery.

use std::net::{IpAddr, Ipv4Addr};

use super::{CLIENT_MAC, ToIp, VLAN, finish, pseudo_header, sum};

/// An ARP packet (RFC 826), by default a request of a client.
#[derive(Clone, Debug)]
pub struct Arp {
    /// 1: request, 2: reply.
    pub operation: u16,
    /// Who sends it.
    pub mac: [u8; 6],
    /// Whose address that is.
    pub sender: Ipv4Addr,
    /// The address that is asked for.
    pub target: Ipv4Addr,
    /// VLAN tags, outermost first: TPID and TCI.
    pub tags: Vec<(u16, u16)>,
    /// Hardware type, protocol type, lengths of addresses.
    pub kinds: [u8; 6],
}

fn v4(address: impl ToIp) -> Ipv4Addr {
    match address.to_ip() {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6} is not IPv4"),
    }
}

impl Arp {
    /// Who has it?
    pub fn request(target: impl ToIp) -> Self {
        Self {
            operation: 1,
            mac: CLIENT_MAC,
            sender: Ipv4Addr::new(192, 0, 2, 7),
            target: v4(target),
            tags: Vec::new(),
            kinds: [0, 1, 8, 0, 6, 4],
        }
    }

    /// From this address.
    #[must_use]
    pub fn from(self, sender: impl ToIp) -> Self {
        Self { sender: v4(sender), ..self }
    }

    /// As a reply.
    #[must_use]
    pub fn reply(self) -> Self {
        Self { operation: 2, ..self }
    }

    /// In a VLAN.
    #[must_use]
    pub fn tagged(mut self, tci: u16) -> Self {
        self.tags.push((VLAN, tci));
        self
    }

    /// Of this MAC.
    #[must_use]
    pub fn mac(self, mac: [u8; 6]) -> Self {
        Self { mac, ..self }
    }

    /// As it comes from the wire, padded as Ethernet does.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = ethernet([0xff; 6], self.mac, &self.tags, 0x0806);
        frame.extend(self.kinds);
        frame.extend(self.operation.to_be_bytes());
        frame.extend(self.mac);
        frame.extend(self.sender.octets());
        frame.extend([0; 6]);
        frame.extend(self.target.octets());
        frame.resize(frame.len().max(60), 0);
        frame
    }
}

/// A message of Neighbor Discovery (RFC 4861), by default a client's solicitation with its MAC.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// 135: solicitation, 136: advertisement.
    pub kind: u8,
    /// ICMPv6 code.
    pub code: u8,
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// What it is about.
    pub target: IpAddr,
    /// Hop limit.
    pub hops: u8,
    /// Sender's MAC.
    pub mac: [u8; 6],
    /// What follows the target.
    pub options: Vec<u8>,
    /// What is added to the right checksum.
    pub error: u16,
    /// VLAN tags, outermost first: TPID and TCI.
    pub tags: Vec<(u16, u16)>,
}

impl Discovery {
    /// Who has it?
    pub fn solicitation(target: impl ToIp) -> Self {
        let target = target.to_ip();
        let group = crate::world::holders::solicited_node(target.into());
        let mac = [&[1, 1][..], &CLIENT_MAC].concat();
        Self {
            kind: 135,
            code: 0,
            source: "2001:db8:2::7".to_ip(),
            destination: group.into(),
            target,
            hops: 255,
            mac: CLIENT_MAC,
            options: mac,
            error: 0,
            tags: Vec::new(),
        }
    }

    /// I have it.
    pub fn advertisement(target: impl ToIp, mac: [u8; 6]) -> Self {
        let target = target.to_ip();
        let options = [&[2, 1][..], &mac].concat();
        Self { kind: 136, source: target, destination: "ff02::1".to_ip(), mac, options, ..Self::solicitation(target) }
    }

    /// By who has no address yet, and therefore does not tell a MAC.
    #[must_use]
    pub fn probe(self) -> Self {
        Self { source: "::".to_ip(), options: Vec::new(), ..self }
    }

    /// With these options instead.
    #[must_use]
    pub fn options(self, options: &[u8]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    /// In a VLAN.
    #[must_use]
    pub fn tagged(mut self, tci: u16) -> Self {
        self.tags.push((VLAN, tci));
        self
    }

    /// As it comes from the wire.
    pub fn frame(&self) -> Vec<u8> {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut message = vec![self.kind, self.code, 0, 0, 0, 0, 0, 0];
        message.extend(octets(self.target));
        message.extend(&self.options);
        let check = finish(sum(&message) + pseudo_header(self.source, self.destination, 58, message.len()));
        message[2..4].copy_from_slice(&check.wrapping_add(self.error).to_be_bytes());
        let group = [
            0x33,
            0x33,
            octets(self.destination)[12],
            octets(self.destination)[13],
            octets(self.destination)[14],
            octets(self.destination)[15],
        ];
        let mut frame = ethernet(group, self.mac, &self.tags, 0x86dd);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((message.len() as u16).to_be_bytes());
        frame.extend([58, self.hops]);
        frame.extend(octets(self.source));
        frame.extend(octets(self.destination));
        frame.extend(message);
        frame
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], tags: &[(u16, u16)], kind: u16) -> Vec<u8> {
    let mut frame = [to, from].concat();
    for (tpid, tci) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(kind.to_be_bytes());
    frame
}
