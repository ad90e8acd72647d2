use super::*;

fn link(index: InterfaceIndex, kind: LinkKind) -> Link {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Link { kind, ..decode_link(message) }
}

#[test]
fn a_pod_interface_needs_both_ends_to_name_each_other() {
    let host = Link { peer: Some(2), peer_netns: Some(NetnsId(0)), mtu: 1500, ..link(7, LinkKind::Veth) };
    let check = |pod: Link, expected: Option<u32>| {
        let found = pod_interface(&host, NetnsId(0), &BTreeMap::from([(pod.index, &pod)]));
        assert_eq!(found.map(|pod| pod.mtu), expected, "{pod:?}");
    };
    let pod = Link { peer: Some(7), mtu: 1450, ..link(2, LinkKind::Veth) };
    check(pod.clone(), Some(1450));
    check(Link { peer: Some(8), ..pod.clone() }, None);
    check(Link { index: 3, ..pod.clone() }, None);
    check(Link { kind: LinkKind::Physical, ..pod }, None);
}

#[test]
fn xdp_programs_are_listed_by_mode() {
    let native = XdpAttachment { mode: XdpMode::Native, program_id: 5 };
    let generic = XdpAttachment { mode: XdpMode::Generic, program_id: 6 };
    let check = |attributes: &[LinkXdp], expected: &[XdpAttachment]| {
        assert_eq!(decode_xdp(attributes), expected, "{attributes:?}");
    };
    check(&[LinkXdp::Attached(XdpAttached::None)], &[]);
    check(&[LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(5), LinkXdp::DrvProgId(5)], &[native]);
    check(
        &[LinkXdp::Attached(XdpAttached::Multiple), LinkXdp::SkbProgId(6), LinkXdp::DrvProgId(5)],
        &[generic, native],
    );
}

#[test]
fn an_address_in_use_on_a_point_to_point_link_is_the_local_one() {
    let mut message = AddressMessage::default();
    let (ours, theirs) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    message.attributes = vec![AddressAttribute::Address(theirs), AddressAttribute::Local(ours)];
    let known = decode_address(&message).unwrap();
    assert!(known.address == ours && !known.is_tentative);
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Tentative));
    assert!(decode_address(&message).unwrap().is_tentative);
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Tentative | AddressFlags::Optimistic));
    assert!(!decode_address(&message).unwrap().is_tentative, "it may be used meanwhile (RFC 4429)");
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Dadfailed));
    assert_eq!(decode_address(&message), None);
}
