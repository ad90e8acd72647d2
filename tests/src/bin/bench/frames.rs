//! Frames, and what is written into them each time.

use std::net::{IpAddr, SocketAddr};

use lb_common::{abi::protocol, address::Address, checksum};

use crate::lab_programs::Load;

/// Nobody's: where only programs see the frame.
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Any value: updates are incremental, and nobody verifies it.
const CHECK: u16 = 0x1234;

/// A packet between two sockets.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// From.
    pub source: SocketAddr,
    /// To.
    pub destination: SocketAddr,
    /// TCP or UDP.
    pub protocol: u8,
    /// TCP flags.
    pub flags: u8,
    /// Bytes after the transport header.
    pub payload: usize,
}

impl Packet {
    /// Whether it is IPv4.
    pub const fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// The frame, with everything that [`Self::load`] does not write.
    pub fn frame(&self) -> Vec<u8> {
        let transport = if self.protocol == protocol::TCP { 20 } else { 8 };
        // The programs that write headers want room for TCP's.
        let length = (transport + self.payload).max(20);
        let mut frame = MACS.concat();
        if self.is_v4() {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + length as u16).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, self.protocol, 0, 0]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((length as u16).to_be_bytes());
            frame.extend([self.protocol, 64]);
        }
        for address in [self.source.ip(), self.destination.ip()] {
            match address {
                IpAddr::V4(v4) => frame.extend(v4.octets()),
                IpAddr::V6(v6) => frame.extend(v6.octets()),
            }
        }
        let l4 = frame.len();
        frame.extend(self.source.port().to_be_bytes());
        frame.extend(self.destination.port().to_be_bytes());
        frame.resize(l4 + length, 0);
        if self.protocol == protocol::TCP {
            frame[l4 + 12..l4 + 14].copy_from_slice(&[0x50, self.flags]);
            frame[l4 + 14..l4 + 16].copy_from_slice(&[0xff, 0xff]);
        } else {
            frame[l4 + 4..l4 + 6].copy_from_slice(&(length as u16).to_be_bytes());
        }
        frame
    }

    /// What is written into the frame before each run, for this many flows.
    pub fn load(&self, target: u32, flows: u32) -> Load {
        let words = |address: SocketAddr| {
            let address = Address::from(address.ip());
            if address.is_v4() { [0, u64::from(address.v4_word())] } else { address.words() }
        };
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let frame = self.frame();
        let word = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        Load {
            next: 0,
            source: words(self.source),
            destination: words(self.destination),
            macs: [word(0), word(4), word(8)],
            ports: u32::from_ne_bytes([ports[0], ports[1], ports[2], ports[3]]),
            flows_mask: flows - 1,
            target,
            ip_check: if self.is_v4() { checksum::finish(sum(&frame[14..34])) } else { 0 },
            check: CHECK,
            protocol: self.protocol,
            hops: 64,
            pad: 0,
        }
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum()
}
