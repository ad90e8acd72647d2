//! Bytes: of a real peer, one flaw for each check, then random ones.

use std::time::Duration;

use proptest::prelude::*;

use super::{discriminator, ms};
use crate::announce::bfd::packet::{
    ControlPacket, DetectMult, Diagnostic, Discriminator, Malformed, PACKET_BYTES, Sequence, State, View,
};

/// Sent by BIRD 2.0.12 in Down, on its way up with Poll, up, and after it was told of AdminDown.
const REAL: [&str; 4] = [
    "20400318a9e8a64900000000000f4240000186a000000000",
    "20e00318a9e8a64911223344000249f0000186a000000000",
    "20c00318a9e8a64911223344000249f0000186a000000000",
    "23600318a9e8a64911223344000f4240000186a000000000",
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

#[test]
fn packets_of_a_real_peer_are_read_and_written_alike() {
    let packets = REAL.map(|hex| ControlPacket::parse(&bytes(hex)).expect("well formed"));
    let expected = [
        (State::Down, Diagnostic::None, Sequence::Neither, None, ms(1000)),
        (State::Up, Diagnostic::None, Sequence::Poll, Some(discriminator(0x1122_3344)), ms(150)),
        (State::Up, Diagnostic::None, Sequence::Neither, Some(discriminator(0x1122_3344)), ms(150)),
        (State::Down, Diagnostic::NeighborSignaledDown, Sequence::Poll, Some(discriminator(0x1122_3344)), ms(1000)),
    ];
    for ((hex, packet), (state, diagnostic, sequence, yours, transmit)) in REAL.iter().zip(packets).zip(expected) {
        assert_eq!((packet.state, packet.diagnostic, packet.sequence), (state, diagnostic, sequence), "{hex}");
        assert_eq!((packet.my_discriminator, packet.your_discriminator), (discriminator(0xa9e8_a649), yours), "{hex}");
        assert_eq!((packet.desired_min_tx, packet.required_min_rx), (transmit, ms(100)), "{hex}");
        assert_eq!((packet.detect_mult, packet.required_min_echo_rx), (DetectMult::new(3).expect("3"), Duration::ZERO));
        assert!(!packet.is_demand && !packet.is_control_plane_independent, "{hex}");
        assert_eq!(packet.emit().to_vec(), bytes(hex));
    }
}

//= test rfc5880#6.8.6:version
//= test rfc5880#6.8.6:length-least
//= test rfc5880#6.8.6:length-most
//= test rfc5880#6.8.6:detect-mult
//= test rfc5880#6.8.6:multipoint
//= test rfc5880#6.8.6:my-discriminator
//= test rfc5880#6.8.6:your-discriminator-zero
//= test rfc5880#6.8.6:authentication-absent
//= test rfc5880#6.5:poll-and-final
#[test]
fn each_flaw_is_told_by_its_name() {
    let up = bytes(REAL[2]);
    let with = |at: usize, value: u8| {
        let mut bytes = up.clone();
        bytes[at] = value;
        bytes
    };
    let cleared = |at: usize, flags: u8| {
        let mut bytes = with(1, flags);
        bytes[at..at + 4].fill(0);
        bytes
    };
    let authenticated = |length: u8| {
        let mut bytes = with(1, 0xc4);
        bytes[3] = length;
        bytes.extend([1, 3, 1]);
        bytes
    };
    let table = [
        (vec![], Malformed::Truncated),
        (up[..23].to_vec(), Malformed::Truncated),
        (with(0, 0x00), Malformed::Version),
        (with(0, 0x40), Malformed::Version),
        (with(3, 23), Malformed::LengthTooSmall),
        (with(3, 25), Malformed::LengthTooLarge),
        (with(2, 0), Malformed::DetectMultZero),
        (with(1, 0xc1), Malformed::Multipoint),
        (cleared(4, 0xc0), Malformed::MyDiscriminatorZero),
        (cleared(8, 0xc0), Malformed::YourDiscriminatorZero),
        (cleared(8, 0x80), Malformed::YourDiscriminatorZero),
        (authenticated(25), Malformed::LengthTooSmall),
        (authenticated(27), Malformed::Authenticated),
        (with(1, 0xf0), Malformed::PollAndFinal),
    ];
    for (bytes, reason) in table {
        assert_eq!(View::new(&bytes).err(), Some(reason), "{bytes:02x?}");
    }
    for state in [0x00, 0x40] {
        assert!(View::new(&cleared(8, state)).is_ok(), "Down and AdminDown need no discriminator");
    }
    let mut padded = up.clone();
    padded.extend([0xff; 8]);
    assert!(View::new(&padded).is_ok(), "what follows the packet is not looked at");
}

#[test]
fn times_beyond_the_field_are_cut() {
    let mut packet = ControlPacket::parse(&bytes(REAL[2])).expect("well formed");
    packet.desired_min_tx = Duration::from_secs(10_000);
    packet.required_min_rx = Duration::from_nanos(1_999);
    let read = ControlPacket::parse(&packet.emit()).expect("well formed");
    assert_eq!(read.desired_min_tx, Duration::from_micros(u64::from(u32::MAX)));
    assert_eq!(read.required_min_rx, Duration::from_micros(1));
}

fn packet() -> impl Strategy<Value = ControlPacket> {
    let sequence = prop_oneof![Just(Sequence::Neither), Just(Sequence::Poll), Just(Sequence::Final)];
    let flags = (any::<bool>(), any::<bool>(), sequence);
    (0..32u8, 0..4usize, flags, 1..=u8::MAX, 1..=u32::MAX, 1..=u32::MAX, any::<[u32; 3]>()).prop_map(
        |(diagnostic, state, (independent, is_demand, sequence), mult, mine, yours, times)| {
            let times = times.map(|micros| Duration::from_micros(u64::from(micros)));
            ControlPacket {
                diagnostic: Diagnostic::from_bits(diagnostic),
                state: State::ALL[state],
                sequence,
                is_control_plane_independent: independent,
                is_demand,
                detect_mult: DetectMult::new(mult).expect("not zero"),
                my_discriminator: discriminator(mine),
                your_discriminator: Discriminator::new(yours),
                desired_min_tx: times[0],
                required_min_rx: times[1],
                required_min_echo_rx: times[2],
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(packet in packet()) {
        prop_assert_eq!(ControlPacket::parse(&packet.emit()), Ok(packet));
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_what_is_read_is_written_again(
        mut bytes in prop::collection::vec(any::<u8>(), 0..64),
        plausible: bool,
    ) {
        if plausible && bytes.len() >= PACKET_BYTES {
            (bytes[0], bytes[1], bytes[3]) = (bytes[0] & 0x1f | 0x20, bytes[1] & 0xfa, PACKET_BYTES as u8);
        }
        if let Ok(packet) = ControlPacket::parse(&bytes) {
            let mut expected = bytes[..PACKET_BYTES].to_vec();
            expected[3] = PACKET_BYTES as u8;
            prop_assert_eq!(packet.emit().to_vec(), expected);
        }
    }

    #[test]
    fn a_diagnostic_is_its_five_bits(bits: u8) {
        prop_assert_eq!(Diagnostic::from_bits(bits).bits(), bits & 0x1f);
    }
}
