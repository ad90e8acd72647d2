//! Bytes: those of a real router (keepalived 2.2.7, captured), of RFC texts' fields one by one, and random ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{Family, Interval, SECOND, Version, ms, priority, vrid};
use crate::announce::vrrp::{
    Priority, Vrid,
    packet::{Advertised, Advertisement, InvalidAdvertisement, Malformed, VersionRule, check_hop_limit},
};

const V4: (IpAddr, IpAddr) = (IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)), IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18)));
const V6: (IpAddr, IpAddr) =
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12)));

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).expect("a digit") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The message, its addresses, and what it says: version, VRID, priority, interval in ms, list.
type Real = (&'static str, (IpAddr, IpAddr), Version, u16, u8, u64, &'static [&'static str]);

const REAL: [Real; 6] = [
    ("31339602001939390a0900640a090065", V4, Version::V3, 51, 150, 250, &["10.9.0.100", "10.9.0.101"]),
    ("313300020019cf390a0900640a090065", V4, Version::V3, 51, 0, 250, &["10.9.0.100", "10.9.0.101"]),
    (
        "3134c8020064db62fe8000000000000000000000005e003420010db8000000000000000000000007",
        V6,
        Version::V3,
        52,
        200,
        1000,
        &["fe80::5e:34", "2001:db8::7"],
    ),
    (
        "313400020064a363fe8000000000000000000000005e003420010db8000000000000000000000007",
        V6,
        Version::V3,
        52,
        0,
        1000,
        &["fe80::5e:34", "2001:db8::7"],
    ),
    ("21356401000170590a0900660000000000000000", V4, Version::V2, 53, 100, 1000, &["10.9.0.102"]),
    ("213500010001d4590a0900660000000000000000", V4, Version::V2, 53, 0, 1000, &["10.9.0.102"]),
];

//= test rfc9568#5.2.8:pseudo-header
//= test rfc9568#7.2:fill
//= test rfc3768#7.2:fill
//= test rfc3768#5.3.10:sent
#[test]
fn what_a_real_router_sends_is_read_and_would_be_sent_alike() {
    for (hex, (source, destination), version, number, priority, milliseconds, list) in REAL {
        let bytes = bytes(hex);
        let read = Advertisement::parse(&bytes, source, destination, VersionRule::Only(version)).expect(hex);
        let list: Vec<IpAddr> = list.iter().map(|address| address.parse().expect("an address")).collect();
        assert_eq!(
            (read.version(), read.vrid(), read.priority().get(), read.interval().duration(), read.addresses()),
            (version, vrid(number), priority, ms(milliseconds), &list[..])
        );
        let mut out = vec![1, 2, 3];
        read.emit(source, destination, &mut out);
        assert_eq!(out, bytes);
    }
}

/// A message with `change` made to it and the checksum mended.
fn spoiled(at: usize, change: impl FnOnce(&mut Vec<u8>)) -> Result<Advertisement, Malformed> {
    let (hex, (source, destination), version, ..) = REAL[at];
    let mut bytes = bytes(hex);
    change(&mut bytes);
    mend(&mut bytes, version, source, destination);
    Advertisement::parse(&bytes, source, destination, VersionRule::Any)
}

/// RFC 1071, written differently.
fn mend(bytes: &mut [u8], version: Version, source: IpAddr, destination: IpAddr) {
    if bytes.len() < 8 {
        return;
    }
    (bytes[6], bytes[7]) = (0, 0);
    let mut all = Vec::new();
    if version == Version::V3 {
        for address in [source, destination] {
            match address {
                IpAddr::V4(address) => all.extend(address.octets()),
                IpAddr::V6(address) => all.extend(address.octets()),
            }
        }
        all.extend([0, 112]);
        all.extend((bytes.len() as u16).to_be_bytes());
    }
    all.extend(&*bytes);
    if all.len() % 2 == 1 {
        all.push(0);
    }
    let mut sum = 0_u16;
    for pair in all.chunks(2) {
        let (next, carries) = sum.overflowing_add(u16::from_be_bytes([pair[0], pair[1]]));
        sum = next + u16::from(carries);
    }
    let [high, low] = (!sum).to_be_bytes();
    (bytes[6], bytes[7]) = (high, low);
}

//= test rfc9568#7.1:version
//= test rfc9568#7.1:type
//= test rfc9568#5.2.2:type
//= test rfc9568#5.2.5:count
//= test rfc9568#7.1:complete
//= test rfc9568#7.1:interval-zero
//= test rfc9568#7.1:discard
//= test rfc3768#7.1:version
//= test rfc3768#5.3.2:type
//= test rfc3768#7.1:complete
//= test rfc3768#7.1:authentication
//= test rfc3768#7.1:discard
#[test]
fn each_fault_has_its_reason() {
    type Change = fn(&mut Vec<u8>);
    let table: [(usize, Change, Malformed); 15] = [
        (0, |bytes| bytes.truncate(7), Malformed::Short),
        (0, Vec::clear, Malformed::Short),
        (0, |bytes| bytes[0] = 0x41, Malformed::Version),
        (0, |bytes| bytes[0] = 0x11, Malformed::Version),
        (2, |bytes| bytes[0] = 0x21, Malformed::VersionFamily),
        (0, |bytes| bytes[0] = 0x32, Malformed::Type),
        (4, |bytes| bytes[0] = 0x20, Malformed::Type),
        (0, |bytes| bytes[3] = 0, Malformed::Count),
        (0, |bytes| bytes.truncate(15), Malformed::Length),
        (2, |bytes| bytes[3] = 3, Malformed::Length),
        (4, |bytes| bytes.truncate(11), Malformed::Length),
        (0, |bytes| bytes[1] = 0, Malformed::Vrid),
        (0, |bytes| (bytes[4], bytes[5]) = (0xf0, 0), Malformed::Interval),
        (4, |bytes| bytes[5] = 0, Malformed::Interval),
        (4, |bytes| bytes[4] = 1, Malformed::Authentication),
    ];
    for (at, change, reason) in table {
        assert_eq!(spoiled(at, change), Err(reason), "{reason:?}");
    }
    let (hex, (source, _), ..) = REAL[0];
    let mixed = Advertisement::parse(&bytes(hex), source, V6.1, VersionRule::Any);
    assert_eq!(mixed, Err(Malformed::Family));
}

#[test]
fn the_rule_decides_which_version_is_let_in() {
    for (hex, (source, destination), version, ..) in REAL {
        for (rule, is_let_in) in [
            (VersionRule::Any, true),
            (VersionRule::Only(Version::V2), version == Version::V2),
            (VersionRule::Only(Version::V3), version == Version::V3),
        ] {
            let read = Advertisement::parse(&bytes(hex), source, destination, rule);
            assert_eq!(read.err(), (!is_let_in).then_some(Malformed::Version));
        }
    }
}

//= test rfc9568#7.1:checksum
//= test rfc3768#7.1:checksum
#[test]
fn no_single_bit_can_flip_unseen() {
    for (hex, (source, destination), ..) in REAL {
        for bit in 0..hex.len() * 4 {
            let mut bytes = bytes(hex);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = Advertisement::parse(&bytes, source, destination, VersionRule::Any);
            assert!(read.is_err(), "bit {bit} of {hex}: {read:?}");
        }
    }
}

//= test rfc9568#5.2.8:pseudo-header
#[test]
fn the_checksum_of_version_3_covers_the_addresses_of_the_packet_and_that_of_version_2_does_not() {
    for (hex, (_, destination), version, ..) in REAL {
        let other = match Family::of(destination) {
            Family::Ipv4 => "10.9.0.2".parse(),
            Family::Ipv6 => "fe80::2".parse(),
        };
        let read = Advertisement::parse(&bytes(hex), other.expect("an address"), destination, VersionRule::Any);
        assert_eq!(read.err(), (version == Version::V3).then_some(Malformed::Checksum));
    }
}

//= test rfc9568#5.2.6:received
//= test rfc9568#5.2.6:sent
#[test]
fn reserved_bits_are_ignored_and_sent_as_zero() {
    let read = spoiled(0, |bytes| bytes[4] |= 0xf0).expect("bits are ignored");
    let mut out = Vec::new();
    read.emit(V4.0, V4.1, &mut out);
    assert_eq!(out, bytes(REAL[0].0));
}

#[test]
fn more_octets_than_the_list_needs_are_no_fault() {
    assert!(spoiled(0, |bytes| bytes.extend([1, 2, 3])).is_ok());
    assert!(spoiled(4, |bytes| bytes.truncate(12)).is_ok(), "nobody needs the authentication data");
}

//= test rfc9568#5.1.1.3:received
//= test rfc9568#5.1.1.3:sent
//= test rfc9568#5.1.2.3:received
//= test rfc9568#5.1.2.3:sent
//= test rfc3768#5.2.3:received
//= test rfc3768#5.2.3:sent
//= test rfc3768#7.1:ttl
#[test]
fn only_255_shows_that_no_router_lies_between() {
    for hop_limit in 0..255 {
        assert_eq!(check_hop_limit(hop_limit), Err(Malformed::HopLimit));
    }
    assert_eq!(check_hop_limit(crate::announce::vrrp::packet::HOP_LIMIT), Ok(()));
}

//= test rfc9568#7.2:protocol
//= test rfc3768#7.2:protocol
#[test]
fn protocol_groups_and_traffic_class_are_the_registered_ones() {
    use crate::announce::vrrp::packet::{PROTOCOL, TRAFFIC_CLASS};
    assert_eq!((PROTOCOL, TRAFFIC_CLASS), (112, 0xc0));
    assert_eq!(Family::Ipv4.group().to_string(), "224.0.0.18");
    assert_eq!(Family::Ipv6.group().to_string(), "ff02::12");
}

//= test rfc9568#7.3:mac
#[test]
fn the_virtual_mac_is_of_its_family_and_vrid() {
    assert_eq!(vrid(0x33).mac(Family::Ipv4), [0, 0, 0x5e, 0, 1, 0x33]);
    assert_eq!(vrid(0xff).mac(Family::Ipv6), [0, 0, 0x5e, 0, 2, 0xff]);
}

#[test]
fn each_reason_is_listed_once_and_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = Malformed::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Malformed::ALL.len());
    for reason in Malformed::ALL {
        let shown = serde_json::to_value(reason).expect("a name");
        assert_eq!(shown, reason.name());
    }
}

//= test rfc9568#5.2.9:family
#[test]
fn what_cannot_be_said_cannot_be_made() {
    let second = Interval::new(Version::V3, SECOND).expect("an interval");
    let of = |interval, addresses| Advertisement::new(vrid(1), Advertised::LEAVES, interval, addresses).map(drop);
    assert_eq!(of(second, vec![]), Err(InvalidAdvertisement::Empty));
    assert_eq!(of(second, vec![V4.0; 256]), Err(InvalidAdvertisement::TooMany(256)));
    assert_eq!(of(second, vec![V4.0, V6.0]), Err(InvalidAdvertisement::Mixed(V6.0)));
    let second = Interval::new(Version::V2, SECOND).expect("an interval");
    assert_eq!(of(second, vec![V6.0]), Err(InvalidAdvertisement::Version2));
}

//= test rfc9568#5.2.4:backup
//= test rfc3768#5.3.4:backup
#[test]
fn numbers_have_their_ranges() {
    for number in [0, 256, 1000] {
        assert!(Vrid::new(number).is_err());
    }
    for number in [0, 255, 256] {
        assert!(Priority::new(number).is_err());
    }
    assert_eq!((vrid(255).get(), priority(1).get(), priority(254).get()), (255, 1, 254));
    let valid = |version, milliseconds| Interval::new(version, ms(milliseconds)).is_ok();
    assert!(valid(Version::V3, 10) && valid(Version::V3, 40_950));
    assert!(!valid(Version::V3, 0) && !valid(Version::V3, 5) && !valid(Version::V3, 15) && !valid(Version::V3, 40_960));
    assert!(valid(Version::V2, 1000) && valid(Version::V2, 255_000));
    assert!(
        !valid(Version::V2, 0) && !valid(Version::V2, 100) && !valid(Version::V2, 1500) && !valid(Version::V2, 256_000)
    );
}

fn any_advertisement() -> impl Strategy<Value = (Advertisement, IpAddr, IpAddr)> {
    let v4 = prop::collection::vec(any::<[u8; 4]>().prop_map(IpAddr::from), 1..=255);
    let v6 = prop::collection::vec(any::<[u8; 16]>().prop_map(IpAddr::from), 1..=90);
    let of = |version, list: Vec<IpAddr>, vrid: u16, priority, units: u16, source, destination| {
        let interval = match version {
            Version::V2 => Interval::new(version, SECOND * u32::from(units % 255 + 1)),
            Version::V3 => Interval::new(version, ms(u64::from(units % 4095 + 1) * 10)),
        };
        let vrid = Vrid::new(vrid).expect("a VRID");
        let made = Advertisement::new(vrid, Advertised::new(priority), interval.expect("an interval"), list);
        (made.expect("an advertisement"), source, destination)
    };
    let parts = (1..=255_u16, any::<u8>(), any::<u16>(), any::<[u8; 4]>(), any::<[u8; 4]>());
    let parts6 = (1..=255_u16, any::<u8>(), any::<u16>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    prop_oneof![
        (v4, any::<bool>(), parts).prop_map(move |(list, is_2, (vrid, priority, units, from, to))| {
            let version = if is_2 { Version::V2 } else { Version::V3 };
            of(version, list, vrid, priority, units, from.into(), to.into())
        }),
        (v6, parts6).prop_map(move |(list, (vrid, priority, units, from, to))| {
            of(Version::V3, list, vrid, priority, units, from.into(), to.into())
        }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read((made, source, destination) in any_advertisement()) {
        let mut out = Vec::new();
        made.emit(source, destination, &mut out);
        prop_assert!(out.len() <= 1500 - 40);
        prop_assert_eq!(Advertisement::parse(&out, source, destination, VersionRule::Any), Ok(made));
        // And the checksum is what another way of computing it says.
        let mut mended = out.clone();
        let version = if out[0] >> 4 == 2 { Version::V2 } else { Version::V3 };
        mend(&mut mended, version, source, destination);
        prop_assert_eq!(out, mended);
    }

    #[test]
    fn any_bytes_are_read_or_have_a_reason(
        mut bytes in prop::collection::vec(any::<u8>(), 0..1500),
        version in 0..4u8,
        is_6: bool,
    ) {
        let (source, destination) = if is_6 { V6 } else { V4 };
        let _ = Advertisement::parse(&bytes, source, destination, VersionRule::Any);
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | 1;
        }
        mend(&mut bytes, if version == 2 { Version::V2 } else { Version::V3 }, source, destination);
        if let Ok(read) = Advertisement::parse(&bytes, source, destination, VersionRule::Any) {
            prop_assert_eq!(read.addresses().len(), usize::from(bytes[3]));
        }
    }
}
