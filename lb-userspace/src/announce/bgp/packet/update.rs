//! UPDATE (RFC 4271, 4.3): built outwards, and inwards only asked whether it is End-of-RIB.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use netgauze_bgp_pkt::{
    BgpMessage,
    community::{
        Community as WireCommunity, ExtendedCommunity, LargeCommunity as WireLargeCommunity,
        NonTransitiveTwoOctetExtendedCommunity, UnknownExtendedCommunity,
    },
    nlri::{Ipv4Unicast, Ipv4UnicastAddress, Ipv6Unicast, Ipv6UnicastAddress},
    path_attribute::{
        As2PathSegment, As4Path, As4PathSegment, AsPath, AsPathSegmentType, Communities, ExtendedCommunities,
        LargeCommunities, LocalPreference, MpReach, MpUnreach, MultiExitDiscriminator, NextHop as WireNextHop,
        Origin as WireOrigin, PathAttribute, PathAttributeValue,
    },
    update::BgpUpdateMessage,
};
use netgauze_parse_utils::WritablePdu;

use super::{
    super::{
        route::{Attributes, BandwidthKind, COMMUNITIES_MAX, LinkBandwidth, Origin},
        values::{AsNumber, Family, Prefix},
    },
    frame::{HEADER_OCTETS, MESSAGE_OCTETS_MAX},
    write,
};

/// Header and the two lengths of lists.
const FIXED_OCTETS: usize = HEADER_OCTETS + 4;
/// Attribute values from this length on have a length of two octets.
const EXTENDED_FROM_OCTETS: usize = 256;
/// Flags, type, length of two octets, AFI, SAFI.
const UNREACH_OCTETS: usize = 7;
const ATTRIBUTE_MP_UNREACH: u8 = 15;
const FLAG_EXTENDED_LENGTH: u8 = 0x10;

/// Where packets for the prefixes go, as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NextHop {
    /// For IPv4 prefixes.
    Ipv4(Ipv4Addr),
    /// For IPv6 prefixes, and IPv4 ones by RFC 8950. On a link-local session the second one is there, too: 32 octets.
    Ipv6(Ipv6Addr, Option<Ipv6Addr>),
}

/// What two speakers have agreed on that shapes attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Encoding {
    /// Ours.
    pub local_as: AsNumber,
    /// Same AS: no number is prepended, and there is a local preference.
    pub is_internal: bool,
    /// Both speak AS numbers of four octets.
    pub four_octet_as: bool,
    /// Of link bandwidth towards other ASes.
    pub bandwidth: BandwidthKind,
}

/// The attributes of one message, ready, and the room that they leave.
#[derive(Debug)]
pub struct Announcement {
    next_hop: NextHop,
    family: Family,
    attributes: Vec<PathAttribute>,
    room: usize,
}

impl Announcement {
    /// For prefixes of one family that share everything.
    #[must_use]
    pub fn new(family: Family, attributes: &Attributes, next_hop: NextHop, encoding: Encoding) -> Self {
        let attributes = to_wire(attributes, next_hop, family, encoding);
        let used: usize = attributes.iter().map(WritablePdu::len).sum();
        let reach = match (family, next_hop) {
            (Family::Ipv4, NextHop::Ipv4(_)) => 0,
            // Flags, type, length, AFI, SAFI, length, reserved.
            (_, NextHop::Ipv4(_)) => 9 + 4,
            (_, NextHop::Ipv6(_, None)) => 9 + 16,
            (_, NextHop::Ipv6(_, Some(_))) => 9 + 32,
        };
        let room = MESSAGE_OCTETS_MAX.saturating_sub(FIXED_OCTETS + used + reach);
        Self { next_hop, family, attributes, room }
    }

    /// A message with as many of the prefixes as fit, from the first on, and their number. None where not one does.
    #[must_use]
    pub fn message<'a>(&self, prefixes: impl IntoIterator<Item = &'a Prefix>) -> Option<(Vec<u8>, usize)> {
        let fitting = fitting(prefixes, self.family, self.room);
        if fitting.is_empty() {
            return None;
        }
        let count = fitting.len();
        //= rfc4271#4.3:both SHOULD: no prefix is both announced and withdrawn in a message
        //= rfc7606#5.1:one-kind MUST: a message has only one of withdrawn routes, NLRI, MP_REACH_NLRI, MP_UNREACH_NLRI
        let (reach, nlri) = match (self.family, self.next_hop) {
            (Family::Ipv4, NextHop::Ipv4(_)) => (None, ipv4(&fitting)),
            (Family::Ipv4, NextHop::Ipv6(global, local)) => {
                //= rfc8950#3:next-hop MUST: IPv4 prefixes with an IPv6 next hop go in MP_REACH_NLRI, 16 or 32 octets
                let nlri = ipv4(&fitting).into();
                (Some(MpReach::Ipv4Unicast { next_hop: global.into(), next_hop_local: local, nlri }), Vec::new())
            }
            (Family::Ipv6, NextHop::Ipv6(global, local)) => {
                let nlri = ipv6(&fitting).into();
                (Some(MpReach::Ipv6Unicast { next_hop_global: global, next_hop_local: local, nlri }), Vec::new())
            }
            // No next hop of an IPv6 prefix is IPv4: see `choose`.
            (Family::Ipv6, NextHop::Ipv4(_)) => return None,
        };
        //= rfc7606#5.1:first MUST: MP_REACH_NLRI and MP_UNREACH_NLRI are the first attribute
        let reach = reach.and_then(|reach| attribute(true, false, PathAttributeValue::MpReach(reach)));
        let attributes: Vec<_> = reach.into_iter().chain(self.attributes.iter().cloned()).collect();
        Some((write(&BgpMessage::Update(BgpUpdateMessage::new(Vec::new(), attributes, nlri))), count))
    }
}

/// A message that takes back as many of the prefixes as fit, from the first on, and their number.
#[must_use]
pub fn withdrawal<'a>(family: Family, prefixes: impl IntoIterator<Item = &'a Prefix>) -> Option<(Vec<u8>, usize)> {
    let room = MESSAGE_OCTETS_MAX - FIXED_OCTETS - UNREACH_OCTETS;
    let fitting = fitting(prefixes, family, room);
    if fitting.is_empty() {
        return None;
    }
    let update = match family {
        Family::Ipv4 => BgpUpdateMessage::new(ipv4(&fitting), Vec::new(), Vec::new()),
        Family::Ipv6 => unreach(ipv6(&fitting)),
    };
    Some((write(&BgpMessage::Update(update)), fitting.len()))
}

/// The end of what is sent first (RFC 4724, 2).
#[must_use]
pub fn end_of_rib(family: Family) -> Vec<u8> {
    let update = match family {
        Family::Ipv4 => BgpUpdateMessage::new(Vec::new(), Vec::new(), Vec::new()),
        Family::Ipv6 => unreach(Vec::new()),
    };
    write(&BgpMessage::Update(update))
}

/// Which family's End-of-RIB the body of an UPDATE is. Nothing else of it is looked at.
#[must_use]
pub fn read_end_of_rib(body: &[u8]) -> Option<Family> {
    let (&[withdrawn_high, withdrawn_low, length_high, length_low], attributes) = body.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    if (withdrawn_high, withdrawn_low) != (0, 0) || length != attributes.len() {
        return None;
    }
    let (afi, safi) = match *attributes {
        [] => return Some(Family::Ipv4),
        [flags, ATTRIBUTE_MP_UNREACH, 3, afi_high, afi_low, safi] if flags & FLAG_EXTENDED_LENGTH == 0 => {
            ([afi_high, afi_low], safi)
        }
        [flags, ATTRIBUTE_MP_UNREACH, 0, 3, afi_high, afi_low, safi] if flags & FLAG_EXTENDED_LENGTH != 0 => {
            ([afi_high, afi_low], safi)
        }
        _ => return None,
    };
    match (u16::from_be_bytes(afi), safi) {
        (1, 1) => Some(Family::Ipv4),
        (2, 1) => Some(Family::Ipv6),
        _ => None,
    }
}

fn fitting<'a>(prefixes: impl IntoIterator<Item = &'a Prefix>, family: Family, room: usize) -> Vec<Prefix> {
    let mut used = 0;
    let fits = |prefix: &&Prefix| {
        used += prefix.wire_octets();
        prefix.family() == family && used <= room
    };
    prefixes.into_iter().take_while(fits).copied().collect()
}

fn ipv4(prefixes: &[Prefix]) -> Vec<Ipv4UnicastAddress> {
    let to_wire = |prefix: &Prefix| match prefix.address() {
        IpAddr::V4(address) => {
            let network = Ipv4Net::new(address, prefix.length()).ok()?;
            Ipv4Unicast::from_net(network).ok().map(Ipv4UnicastAddress::new_no_path_id)
        }
        IpAddr::V6(_) => None,
    };
    prefixes.iter().filter_map(to_wire).collect()
}

fn ipv6(prefixes: &[Prefix]) -> Vec<Ipv6UnicastAddress> {
    let to_wire = |prefix: &Prefix| match prefix.address() {
        IpAddr::V6(address) => {
            let network = Ipv6Net::new(address, prefix.length()).ok()?;
            Ipv6Unicast::from_net(network).ok().map(|network| Ipv6UnicastAddress::new(None, network))
        }
        IpAddr::V4(_) => None,
    };
    prefixes.iter().filter_map(to_wire).collect()
}

fn unreach(nlri: Vec<Ipv6UnicastAddress>) -> BgpUpdateMessage {
    let value = PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri: nlri.into() });
    BgpUpdateMessage::new(Vec::new(), attribute(true, false, value).into_iter().collect::<Vec<_>>(), Vec::new())
}

/// All but reachability, by type code.
fn to_wire(attributes: &Attributes, next_hop: NextHop, family: Family, encoding: Encoding) -> Vec<PathAttribute> {
    //= rfc4271#5:order SHOULD: attributes go in the order of their types
    let mut wire = Vec::new();
    let mut add = |optional, transitive, value| wire.extend(attribute(optional, transitive, value));
    let origin = match attributes.origin {
        Origin::Igp => WireOrigin::IGP,
        Origin::Egp => WireOrigin::EGP,
        Origin::Incomplete => WireOrigin::Incomplete,
    };
    //= rfc4271#5:mandatory MUST: each announcement has ORIGIN, AS_PATH, and a next hop of its kind
    //= rfc4760#3:no-next-hop SHOULD: NEXT_HOP is left out where MP_REACH_NLRI has one
    //= rfc4271#5.1.1:origin MUST: each announcement has an ORIGIN
    add(false, true, PathAttributeValue::Origin(origin));
    add(false, true, PathAttributeValue::AsPath(as_path(encoding)));
    if let (Family::Ipv4, NextHop::Ipv4(address)) = (family, next_hop) {
        add(false, true, PathAttributeValue::NextHop(WireNextHop::new(address)));
    }
    if let Some(metric) = attributes.med {
        //= rfc4271#5.1.4:med MAY: a metric goes to other ASes where one is configured
        let med = MultiExitDiscriminator::new(metric);
        add(true, false, PathAttributeValue::MultiExitDiscriminator(med));
    }
    if encoding.is_internal {
        //= rfc4271#5.1.5:internal MUST: each announcement within the AS has a LOCAL_PREF
        //= rfc4271#5.1.5:external MUST: none has it towards another AS
        let preference = LocalPreference::new(attributes.local_preference);
        add(false, true, PathAttributeValue::LocalPreference(preference));
    }
    if !attributes.communities.is_empty() {
        //= rfc1997#0:transitive MUST: communities are optional and transitive, four octets each
        // From the greatest on: the well-known ones are not those that are left out.
        let communities = attributes.communities.iter().rev().take(COMMUNITIES_MAX);
        let communities: Vec<_> = communities.map(|value| WireCommunity::new(value.0)).collect();
        add(true, true, PathAttributeValue::Communities(Communities::new(communities)));
    }
    if let Some(bandwidth) = attributes.link_bandwidth {
        //= rfc4360#2:attribute MUST: extended communities are optional and transitive, eight octets each
        let extended = ExtendedCommunities::new(vec![link_bandwidth(bandwidth, encoding)]);
        add(true, true, PathAttributeValue::ExtendedCommunities(extended));
    }
    //= rfc6793#4.2.2:as4-path MUST: AS4_PATH goes to a peer of two octets where AS_TRANS stands for a number
    //= rfc6793#4.2.2:needless MUST: it does not go where two octets hold the whole path
    //= rfc6793#4.1:new MUST: it never goes to a peer of four octets
    if !encoding.four_octet_as && !encoding.is_internal && !encoding.local_as.fits_two_octets() {
        let segment = As4PathSegment::new(AsPathSegmentType::AsSequence, vec![encoding.local_as.get()]);
        add(true, true, PathAttributeValue::As4Path(As4Path::new(vec![segment])));
    }
    if !attributes.large_communities.is_empty() {
        //= rfc8092#5:duplicates MUST: no large community is sent twice
        let large = attributes.large_communities.iter().take(COMMUNITIES_MAX);
        let large: Vec<_> = large.map(|value| WireLargeCommunity::new(value.0, value.1, value.2)).collect();
        add(true, true, PathAttributeValue::LargeCommunities(LargeCommunities::new(large)));
    }
    wire
}

fn as_path(encoding: Encoding) -> AsPath {
    let Encoding { local_as, is_internal, four_octet_as, .. } = encoding;
    let kind = AsPathSegmentType::AsSequence;
    match (is_internal, four_octet_as) {
        //= rfc4271#5.1.2:internal MUST: what comes from here has an empty path within the AS
        (true, true) => AsPath::as4_path_segments(Vec::new()),
        (true, false) => AsPath::as2_path_segments(Vec::new()),
        //= rfc4271#5.1.2:external MUST: and one sequence with our number towards other ASes
        //= rfc6793#4.1:width MUST: the path's width is what was negotiated
        (false, true) => AsPath::as4_path_segments(vec![As4PathSegment::new(kind, vec![local_as.get()])]),
        (false, false) => AsPath::as2_path_segments(vec![As2PathSegment::new(kind, vec![local_as.two_octets()])]),
    }
}

/// Within the AS always the assigned, non-transitive type.
fn link_bandwidth(bandwidth: LinkBandwidth, encoding: Encoding) -> ExtendedCommunity {
    let (number, bits) = (encoding.local_as.two_octets(), bandwidth.bits());
    match encoding.bandwidth {
        BandwidthKind::Transitive if !encoding.is_internal => {
            let (number, bits) = (number.to_be_bytes(), bits.to_be_bytes());
            let value = [number[0], number[1], bits[0], bits[1], bits[2], bits[3]];
            ExtendedCommunity::Unknown(UnknownExtendedCommunity::new(0x00, 0x04, value))
        }
        BandwidthKind::Transitive | BandwidthKind::NonTransitive => {
            ExtendedCommunity::NonTransitiveTwoOctet(NonTransitiveTwoOctetExtendedCommunity::LinkBandwidth {
                global_admin: number,
                local_admin: bits,
            })
        }
    }
}

/// With a length of two octets where one does not do. None is for flags that the type cannot have: not ours.
fn attribute(optional: bool, transitive: bool, value: PathAttributeValue) -> Option<PathAttribute> {
    let is_reach = matches!(value, PathAttributeValue::MpReach(_) | PathAttributeValue::MpUnreach(_));
    let short = PathAttribute::from(optional, transitive, false, false, value).ok()?;
    // Flags, type, length. Reachability always has two octets: so its room is known before it is filled.
    let is_long = short.len() - 3 >= EXTENDED_FROM_OCTETS;
    if !is_long && !is_reach {
        return Some(short);
    }
    PathAttribute::from(optional, transitive, false, true, short.value().clone()).ok()
}
