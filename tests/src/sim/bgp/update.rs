//! UPDATE as a router reads it: prefixes, next hop, and whether the route is about to go. Not the writer's own codec.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_userspace::announce::bgp::{packet::Frame, route::Community};

const NEXT_HOP: u8 = 3;
const COMMUNITIES: u8 = 8;
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;
const EXTENDED_LENGTH: u8 = 0x10;

/// What an UPDATE says. All prefixes are of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) withdrawn: Vec<IpAddr>,
    pub(super) announced: Vec<IpAddr>,
    pub(super) next_hop: Option<IpAddr>,
    /// Carries GRACEFUL_SHUTDOWN.
    pub(super) is_leaving: bool,
}

impl Update {
    /// None where it is malformed, or has prefixes that are more than an address.
    pub(super) fn read(frame: &Frame) -> Option<Self> {
        let mut update = Self::default();
        let (withdrawn, rest) = counted(frame.body())?;
        let (mut attributes, nlri) = counted(rest)?;
        update.withdrawn = ipv4(withdrawn)?;
        update.announced = ipv4(nlri)?;
        while let [flags, kind, rest @ ..] = attributes {
            let (value, rest) = match (flags & EXTENDED_LENGTH != 0, rest) {
                (true, _) => counted(rest)?,
                (false, [length, rest @ ..]) => rest.split_at_checked(usize::from(*length))?,
                (false, []) => return None,
            };
            match *kind {
                NEXT_HOP => update.next_hop = Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
                COMMUNITIES => {
                    let going = Community::GRACEFUL_SHUTDOWN.0.to_be_bytes();
                    update.is_leaving = value.chunks(4).any(|community| community == going);
                }
                MP_REACH => {
                    let [0, 2, 1, length, rest @ ..] = value else { return None };
                    let (next_hop, rest) = rest.split_at_checked(usize::from(*length))?;
                    update.next_hop = Some(Ipv6Addr::from(<[u8; 16]>::try_from(next_hop).ok()?).into());
                    update.announced.extend(ipv6(rest.get(1..)?)?);
                }
                MP_UNREACH => {
                    let [0, 2, 1, rest @ ..] = value else { return None };
                    update.withdrawn.extend(ipv6(rest)?);
                }
                _ => {}
            }
            attributes = rest;
        }
        attributes.is_empty().then_some(update)
    }
}

/// What a length of two octets counts, and the rest.
fn counted(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = octets.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

fn ipv4(octets: &[u8]) -> Option<Vec<IpAddr>> {
    let of = |it: &[u8]| <[u8; 5]>::try_from(it).ok().filter(|it| it[0] == 32);
    octets.chunks(5).map(|it| of(it).map(|it| Ipv4Addr::new(it[1], it[2], it[3], it[4]).into())).collect()
}

fn ipv6(octets: &[u8]) -> Option<Vec<IpAddr>> {
    let of = |it: &[u8]| it.split_first().filter(|(length, _)| **length == 128).map(|(_, it)| it.to_vec());
    octets.chunks(17).map(|it| Some(Ipv6Addr::from(<[u8; 16]>::try_from(of(it)?).ok()?).into())).collect()
}
