//! Framing and values: what is legal, what is not, and any bytes.

use proptest::prelude::*;

use super::{super::packet::*, *};

fn header(length: u16, kind: u8) -> Vec<u8> {
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind]].concat()
}

/// The answer to these octets: code, subcode, data.
fn answer(octets: &[u8]) -> Option<(u8, u8, Vec<u8>)> {
    let error = Framer::default().next(&mut &octets[..]).expect_err("malformed");
    error.notification().map(|it| (it.code(), it.subcode(), it.data().to_vec()))
}

//= test rfc4271#6.1:marker
//= test rfc4271#6.1:length
//= test rfc4271#6.1:type
//= test rfc4271#6.4:no-answer
#[test]
fn each_fault_of_a_header_has_its_answer() {
    let mut marker = header(19, 4);
    marker[15] = 0xfe;
    assert_eq!(answer(&marker), Some((1, 1, vec![])));
    // The first octet decides: what is no BGP at all is not waited for.
    assert_eq!(answer(b"GET"), Some((1, 1, vec![])));
    let lengths = [(0, 4), (18, 4), (20, 4), (4097, 2), (65535, 2), (28, 1), (22, 2), (22, 5), (24, 5)];
    for (length, kind) in lengths {
        assert_eq!(answer(&header(length, kind)), Some((1, 2, length.to_be_bytes().to_vec())), "{length} {kind}");
    }
    for kind in [0, 6, 255] {
        assert_eq!(answer(&header(19, kind)), Some((1, 3, vec![kind])));
    }
    assert_eq!(answer(&header(20, 3)), None);
}

#[test]
fn the_shortest_and_the_longest_message_of_each_type_are_read() {
    for (kind, least, greatest) in [(1, 29, 4096), (2, 23, 4096), (3, 21, 4096), (4, 19, 19), (5, 23, 23_u16)] {
        for length in [least, greatest] {
            let mut octets = header(length, kind);
            octets.resize(length.into(), 0);
            let mut rest = &octets[..];
            let frame = Framer::default().next(&mut rest).expect("legal").expect("whole");
            assert_eq!((frame.octets.len(), frame.kind.code(), rest.len()), (length.into(), kind, 0));
            assert_eq!(frame.body().len(), usize::from(length) - HEADER_OCTETS);
        }
    }
}

#[test]
fn end_of_rib_is_told_from_other_updates() {
    for family in Family::ALL {
        let octets = end_of_rib(family);
        assert_eq!(read_end_of_rib(&octets[HEADER_OCTETS..]), Some(family));
    }
    // MP_UNREACH_NLRI of IPv4, with a short length; of a multicast family; with a prefix; two attributes.
    assert_eq!(read_end_of_rib(&[0, 0, 0, 6, 0x80, 15, 3, 0, 1, 1]), Some(Family::Ipv4));
    assert_eq!(read_end_of_rib(&[0, 0, 0, 6, 0x80, 15, 3, 0, 2, 2]), None);
    assert_eq!(read_end_of_rib(&[0, 0, 0, 7, 0x80, 15, 4, 0, 2, 1, 0]), None);
    assert_eq!(read_end_of_rib(&[0, 0, 0, 10, 0x80, 15, 3, 0, 2, 1, 0x40, 1, 1, 0]), None);
    assert_eq!(read_end_of_rib(&[0, 0, 0, 0, 0]), None);
    assert_eq!(read_end_of_rib(&[0, 1, 0, 0, 0]), None);
    assert_eq!(read_end_of_rib(&[]), None);
}

fn any_open() -> impl Strategy<Value = Open> {
    let families = || prop::collection::btree_set(prop::sample::select(Family::ALL.to_vec()), 0..=2);
    let restart = (any::<bool>(), any::<bool>(), 0_u16..4096, families(), any::<bool>());
    let number = (1..u32::MAX).prop_filter("reserved", |number| *number != 23456);
    (
        (number, any::<bool>(), 3_u16.., 1_u32..0xe000_0000),
        families(),
        (any::<bool>(), any::<bool>()),
        prop::option::of(restart),
    )
        .prop_map(|((number, is_wide, hold, id), families, (route_refresh, extended_next_hop), restart)| {
            let number = if is_wide { number } else { number % 23455 + 1 };
            Open {
                as_number: as_number(number),
                hold_time: seconds(hold),
                identifier: Identifier::new(id.into()).expect("not zero"),
                capabilities: Capabilities {
                    families,
                    route_refresh,
                    four_octet_as: is_wide.then_some(number),
                    extended_next_hop,
                    graceful_restart: restart.map(|(restarted, notification, time, families, forwarding)| {
                        GracefulRestart {
                            restarted,
                            notification,
                            time: RestartTime::from_seconds(time).expect("fits"),
                            families: families.into_iter().map(|family| (family, forwarding)).collect(),
                            has_other_families: false,
                        }
                    }),
                    ..Capabilities::default()
                },
            }
        })
}

proptest! {
    #![proptest_config(config(256))]
    #[test]
    fn an_open_is_read_as_it_was_written_by_us_and_by_the_codec(open in any_open()) {
        let octets = open.emit();
        prop_assert_eq!(Open::parse(&octets[HEADER_OCTETS..]), Ok(open.clone()));
        let message = BgpMessage::parse(&mut SliceReader::new(&octets), &mut BgpParsingContext::default());
        let Ok(BgpMessage::Open(theirs)) = message else { panic!("{message:?}") };
        prop_assert_eq!(theirs.my_asn4(), open.as_number.get());
        prop_assert_eq!(theirs.hold_time(), open.hold_time.seconds());
        prop_assert_eq!(theirs.bgp_id(), open.identifier.get());
    }

    #[test]
    fn a_notification_is_read_as_it_was_written(
        code in any::<u8>(), subcode in any::<u8>(), data in prop::collection::vec(any::<u8>(), 0..5000)
    ) {
        let notification = Notification::new(code, subcode, data);
        let frames = frames(&notification.emit());
        prop_assert_eq!(frames.len(), 1);
        prop_assert_eq!(Notification::parse(frames[0].body()), Some(notification.clone()));
        // Nothing about it makes it unfit to be shown.
        prop_assert!(!notification.to_string().chars().any(char::is_control));
        prop_assert!(notification.hardened().emit().len() <= MESSAGE_OCTETS_MAX);
    }

    #[test]
    fn any_bytes_are_messages_or_a_named_fault_in_whatever_pieces_they_come(
        body in prop::collection::vec(any::<u8>(), 0..200), kind in 0_u8..7, cuts in prop::collection::vec(1_usize..40, 1..20)
    ) {
        let length = u16::try_from(19 + body.len()).expect("short");
        let octets = [header(length, kind), body, header(19, 4)].concat();
        let read = |pieces: Vec<&[u8]>| {
            let (mut framer, mut found) = (Framer::default(), Vec::new());
            for mut piece in pieces {
                loop {
                    match framer.next(&mut piece) {
                        Ok(Some(frame)) => found.push(Ok(frame)),
                        Ok(None) => break,
                        Err(error) => {
                            found.push(Err(error));
                            return found;
                        }
                    }
                }
            }
            found
        };
        let mut pieces = Vec::new();
        let mut rest = &octets[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        prop_assert_eq!(read(pieces), read(vec![&octets]));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Framer::default().next(&mut &octets[..]);
        let _ = Open::parse(&octets);
        let _ = read_end_of_rib(&octets);
        let _ = RouteRefresh::parse(&octets);
        if let Some(notification) = Notification::parse(&octets) {
            let _ = (notification.to_string(), notification.words(), notification.true_one());
        }
    }

    #[test]
    fn an_open_of_any_capabilities_is_read_or_refused(list in prop::collection::vec(
        (prop::sample::select(vec![1_u8, 2, 5, 64, 65, 69, 70, 71, 73]), prop::collection::vec(any::<u8>(), 0..20)), 0..8
    )) {
        let list: Vec<u8> = list.into_iter().flat_map(|(code, value)| {
            [vec![code, u8::try_from(value.len()).expect("short")], value].concat()
        }).collect();
        let length = u8::try_from(list.len()).expect("short");
        let body = [&[4, 0xfd, 0xea, 0, 90, 10, 0, 0, 9, length + 2, 2, length][..], &list].concat();
        match Open::parse(&body) {
            Ok(_) | Err(OpenError::As(_)) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
