//! Datagrams of VRRP and BFD, and what the agent's processes say to each other.

use std::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_userspace::{
    announce::{
        bfd::packet::{ControlPacket, PACKET_BYTES},
        vrrp::{
            Version,
            packet::{Advertisement, HEADER_LEN, PROTOCOL, VersionRule},
        },
    },
    privileges::protocol::{Answer, MESSAGE_BYTES_MAX, Request, receive, send},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::packets::{finish, pseudo_header, sum};

/// Where a BFD packet has its length, which says less than the datagram where more follows.
const BFD_LENGTH_AT: usize = 3;

pub(super) fn bfd(input: &[u8]) {
    match ControlPacket::parse(input) {
        Err(error) => assert!(!error.name().is_empty()),
        Ok(packet) => {
            let written = packet.emit();
            assert_eq!(ControlPacket::parse(&written), Ok(packet));
            let mut as_long = input[..PACKET_BYTES].to_vec();
            as_long[BFD_LENGTH_AT] = PACKET_BYTES as u8;
            assert_eq!(written[..], as_long, "nothing of it is lost");
        }
    }
}

const V4: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)), IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18))];
const V6: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12))];
/// Bits of the first octet: IPv6; the checksum is mended, so that what lies behind it is reached; the version that is let
/// in, where it is one.
const IPV6: u8 = 1;
const MENDED: u8 = 2;
const ONLY_V2: u8 = 4;
const ONLY_V3: u8 = 8;

/// The first octet says how the rest came.
pub(super) fn vrrp(input: &[u8]) {
    let Some((way, message)) = input.split_first() else { return };
    let [source, destination] = if way & IPV6 == 0 { V4 } else { V6 };
    let rule = match way & (ONLY_V2 | ONLY_V3) {
        ONLY_V2 => VersionRule::Only(Version::V2),
        ONLY_V3 => VersionRule::Only(Version::V3),
        _ => VersionRule::Any,
    };
    let mut message = message.to_vec();
    if way & MENDED != 0 {
        mend(&mut message, source, destination);
    }
    let read = match Advertisement::parse(&message, source, destination, rule) {
        Ok(read) => read,
        Err(error) => return assert!(!error.name().is_empty()),
    };
    let mut written = Vec::new();
    read.emit(source, destination, &mut written);
    let again = Advertisement::parse(&written, source, destination, VersionRule::Only(read.version()));
    assert_eq!(again.as_ref(), Ok(&read));
    // Reserved bits, authentication and what follows are not ours to repeat.
    let address = if source.is_ipv4() { 4 } else { 16 };
    let list = HEADER_LEN..HEADER_LEN + read.addresses().len() * address;
    assert_eq!((&written[..4], &written[list.clone()]), (&message[..4], &message[list]));
}

fn mend(message: &mut [u8], source: IpAddr, destination: IpAddr) {
    if message.len() < HEADER_LEN || message.len() > usize::from(u16::MAX) {
        return;
    }
    message[6..8].fill(0);
    let pseudo = if message[0] >> 4 == 3 { pseudo_header(source, destination, PROTOCOL, message.len()) } else { 0 };
    let check = finish(pseudo + sum(message));
    message[6..8].copy_from_slice(&check.to_be_bytes());
}

/// Either side is given it: the helper has privileges that the agent has dropped, the agent holds what pods' kernels say.
pub(super) fn helper(input: &[u8]) {
    message::<Request>(input);
    message::<Answer>(input);
}

fn message<T: Serialize + DeserializeOwned + Debug>(mut input: &[u8]) {
    let mut buffer = Vec::new();
    let received = receive::<T>(&mut input, &mut buffer);
    assert!(buffer.len() <= MESSAGE_BYTES_MAX);
    let Ok(Some(message)) = received else { return };
    let (mut written, mut again) = (Vec::new(), Vec::new());
    send(&mut written, &message).expect("what was received is no longer when it is sent");
    let read: T = receive(&written[..], &mut buffer).expect("a message").expect("one");
    send(&mut again, &read).expect("as before");
    assert_eq!(again, written, "{message:?} is read as {read:?}");
}
