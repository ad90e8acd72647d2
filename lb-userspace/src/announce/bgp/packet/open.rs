//! OPEN (RFC 4271, 4.2) and the capabilities that an announcer has use for (RFC 5492).
//!
//! The codec writes it and reads single capabilities. The lists of parameters and capabilities are walked here, each by
//! its own length: the codec stops in the middle of a capability that it does not like, and would read the rest of the
//! list out of step. It also refuses a whole Graceful Restart or Extended Next Hop capability for one family that it does
//! not know, so those two are read here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use netgauze_bgp_pkt::{
    BgpMessage,
    capabilities::{
        BgpCapability, ExtendedNextHopEncoding, ExtendedNextHopEncodingCapability, FourOctetAsCapability,
        GracefulRestartAddressFamily, GracefulRestartCapability, MultiProtocolExtensionsCapability,
    },
    open::{BgpOpenMessage, BgpOpenMessageParameter},
};
use netgauze_iana::address_family::{AddressFamily, AddressType};
use netgauze_parse_utils::{reader::SliceReader, traits::ParseFrom};
use serde::Serialize;
use thiserror::Error;

use super::{
    super::values::{AS_TRANS, AsNumber, Family, HoldTime, Identifier, RestartTime},
    notification::{Notification, code, open},
    write,
};

/// The one version that is spoken.
pub const VERSION: u8 = 4;

const PARAMETER_CAPABILITIES: u8 = 2;
const CAPABILITY_MULTIPROTOCOL: u8 = 1;
const CAPABILITY_EXTENDED_NEXT_HOP: u8 = 5;
const CAPABILITY_GRACEFUL_RESTART: u8 = 64;
const SAFI_UNICAST: u8 = 1;
const FLAG_RESTARTED: u16 = 0x8000;
const FLAG_NOTIFICATION: u16 = 0x4000;
const FLAG_FORWARDING: u8 = 0x80;
const RESTART_TIME: u16 = 0x0fff;

/// What graceful restart is offered with (RFC 4724, 3; RFC 8538, 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GracefulRestart {
    /// R: the speaker has restarted.
    pub restarted: bool,
    /// N: NOTIFICATIONs keep routes too.
    pub notification: bool,
    /// How long to wait for its return.
    pub time: RestartTime,
    /// Those that it covers, each with F: whether forwarding went on.
    pub families: BTreeMap<Family, bool>,
    /// It covers others, too.
    pub has_other_families: bool,
}

/// What a speaker can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Multiprotocol: what it says it speaks.
    pub families: BTreeSet<Family>,
    /// It has said so of others, too.
    pub has_other_families: bool,
    /// Answers ROUTE-REFRESH.
    pub route_refresh: bool,
    /// Speaks AS numbers of four octets: its own, unchecked.
    pub four_octet_as: Option<u32>,
    /// IPv4 prefixes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Graceful restart, where it is offered.
    pub graceful_restart: Option<GracefulRestart>,
    /// Codes of those that mean nothing here, or are malformed.
    pub others: BTreeSet<u8>,
}

impl Capabilities {
    /// Whether prefixes of a family may be sent: one that names no family at all has IPv4 unicast (RFC 4760, 8).
    #[must_use]
    pub fn speaks(&self, family: Family) -> bool {
        let names_none = self.families.is_empty() && !self.has_other_families;
        self.families.contains(&family) || names_none && family == Family::Ipv4
    }
}

/// An OPEN whose values are each legal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The sender's AS: by capability, else by the field.
    pub as_number: AsNumber,
    /// What it proposes.
    pub hold_time: HoldTime,
    /// Who it is.
    pub identifier: Identifier,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// Why an OPEN is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Lengths that do not add up.
    #[error("the OPEN is malformed: lengths of parameters or capabilities do not add up")]
    Malformed,
    /// Not 4.
    #[error("the peer speaks version {0} of BGP and not {VERSION}")]
    Version(u8),
    /// 0 or 23456.
    #[error("the peer's AS number {0} is reserved: it is not configured, or lacks its number of four octets")]
    As(u32),
    /// Zero.
    #[error("the peer's identifier is 0.0.0.0")]
    Identifier,
    /// 1 or 2.
    #[error("the peer proposes a hold time of {0} s: it must be 0 or at least 3")]
    HoldTime(u16),
    /// A parameter that is none of capabilities.
    #[error("the OPEN has an optional parameter of the unknown type {0}")]
    Parameter(u8),
}

impl OpenError {
    /// What is sent for it.
    #[must_use]
    pub fn notification(self) -> Notification {
        let (subcode, data) = match self {
            //= rfc4271#6.2:malformed MUST: a parameter that is known and malformed is answered by 2/0
            Self::Malformed => (open::UNSPECIFIC, Vec::new()),
            //= rfc4271#6.2:version MUST: another version is answered by 2/1 with the one that is spoken
            Self::Version(_) => (open::UNSUPPORTED_VERSION, u16::from(VERSION).to_be_bytes().to_vec()),
            //= rfc7607#2:peer MUST: AS 0 in an OPEN is answered by 2/2
            Self::As(_) => (open::BAD_PEER_AS, Vec::new()),
            //= rfc6286#2.2:zero MUST: a zero identifier is answered by 2/3
            Self::Identifier => (open::BAD_IDENTIFIER, Vec::new()),
            //= rfc4271#6.2:hold-time MUST: a proposed hold time of one or two seconds is answered by 2/6
            Self::HoldTime(_) => (open::UNACCEPTABLE_HOLD_TIME, Vec::new()),
            //= rfc4271#6.2:parameter MUST: an unknown optional parameter is answered by 2/4
            Self::Parameter(_) => (open::UNSUPPORTED_PARAMETER, Vec::new()),
        };
        Notification::new(code::OPEN, subcode, data)
    }
}

impl Open {
    /// From what follows the header.
    pub fn parse(body: &[u8]) -> Result<Self, OpenError> {
        let Some((&[version, as_high, as_low, hold_high, hold_low, a, b, c, d, parameters_length], parameters)) =
            body.split_first_chunk()
        else {
            return Err(OpenError::Malformed);
        };
        if version != VERSION {
            return Err(OpenError::Version(version));
        }
        if parameters.len() != usize::from(parameters_length) {
            return Err(OpenError::Malformed);
        }
        let mut capabilities = Capabilities::default();
        for (kind, value) in read_list(parameters)? {
            if kind != PARAMETER_CAPABILITIES {
                return Err(OpenError::Parameter(kind));
            }
            //= rfc5492#4:several MUST: capabilities may be spread over several parameters
            for (code, value) in read_list(value)? {
                capabilities.read(code, value);
            }
        }
        //= rfc6793#4.1:number MUST: the number in the capability counts, not the field of two octets
        let number = capabilities.four_octet_as.unwrap_or_else(|| u16::from_be_bytes([as_high, as_low]).into());
        let hold_seconds = u16::from_be_bytes([hold_high, hold_low]);
        Ok(Self {
            as_number: AsNumber::new(number).map_err(|_| OpenError::As(number))?,
            hold_time: HoldTime::from_seconds(hold_seconds).map_err(|_| OpenError::HoldTime(hold_seconds))?,
            identifier: Identifier::new(Ipv4Addr::new(a, b, c, d)).map_err(|_| OpenError::Identifier)?,
            capabilities,
        })
    }

    /// The whole message. Without capabilities there is no optional parameter.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let capabilities = self.capabilities.to_wire();
        let parameters: Vec<_> = if capabilities.is_empty() {
            Vec::new()
        } else {
            //= rfc5492#4:one SHOULD: all capabilities go in one parameter
            vec![BgpOpenMessageParameter::new_capabilities(capabilities)]
        };
        let two_octets = self.as_number.two_octets();
        let (hold_seconds, identifier) = (self.hold_time.seconds(), self.identifier.get());
        write(&BgpMessage::Open(BgpOpenMessage::new(two_octets, hold_seconds, identifier, parameters)))
    }
}

/// Pairs of type and value, each behind its length of one octet, to the end.
fn read_list(mut list: &[u8]) -> Result<Vec<(u8, &[u8])>, OpenError> {
    let mut items = Vec::new();
    while let Some((&[kind, length], rest)) = list.split_first_chunk() {
        let (value, rest) = rest.split_at_checked(length.into()).ok_or(OpenError::Malformed)?;
        items.push((kind, value));
        list = rest;
    }
    if list.is_empty() { Ok(items) } else { Err(OpenError::Malformed) }
}

impl Capabilities {
    fn read(&mut self, code: u8, value: &[u8]) {
        //= rfc5492#3:unknown MUST: what is not known is ignored, and never a reason to end a session
        //= rfc5492#4:repeated MUST: the same capability again changes nothing, another value of it counts too
        let known = match code {
            CAPABILITY_EXTENDED_NEXT_HOP => self.read_extended_next_hop(value),
            CAPABILITY_GRACEFUL_RESTART => self.read_graceful_restart(value),
            _ => self.read_by_codec(code, value),
        };
        if known.is_none() {
            self.others.insert(code);
        }
    }

    fn read_by_codec(&mut self, code: u8, value: &[u8]) -> Option<()> {
        let mut octets = vec![code, u8::try_from(value.len()).ok()?];
        octets.extend_from_slice(value);
        match BgpCapability::parse(&mut SliceReader::new(&octets)) {
            Ok(BgpCapability::MultiProtocolExtensions(multiprotocol)) => match multiprotocol.address_type() {
                AddressType::Ipv4Unicast => {
                    self.families.insert(Family::Ipv4);
                }
                AddressType::Ipv6Unicast => {
                    self.families.insert(Family::Ipv6);
                }
                _ => self.has_other_families = true,
            },
            Ok(BgpCapability::RouteRefresh) => self.route_refresh = true,
            Ok(BgpCapability::FourOctetAs(four)) => self.four_octet_as = Some(four.asn4()),
            Ok(_) => return None,
            Err(_) => {
                // A family without a name in the codec.
                self.has_other_families |= code == CAPABILITY_MULTIPROTOCOL;
                return None;
            }
        }
        Some(())
    }

    fn read_extended_next_hop(&mut self, value: &[u8]) -> Option<()> {
        let (entries, rest) = value.as_chunks();
        if !rest.is_empty() {
            return None;
        }
        for &[afi_high, afi_low, safi_high, safi_low, next_high, next_low] in entries {
            let entry = [[afi_high, afi_low], [safi_high, safi_low], [next_high, next_low]].map(u16::from_be_bytes);
            //= rfc8950#4:ignored SHOULD: combinations that are not known are passed over
            self.extended_next_hop |= entry == [1, SAFI_UNICAST.into(), 2];
        }
        Some(())
    }

    fn read_graceful_restart(&mut self, value: &[u8]) -> Option<()> {
        let (&[high, low], list) = value.split_first_chunk()?;
        let (entries, rest) = list.as_chunks();
        if !rest.is_empty() {
            return None;
        }
        let header = u16::from_be_bytes([high, low]);
        let mut restart = GracefulRestart {
            restarted: header & FLAG_RESTARTED != 0,
            notification: header & FLAG_NOTIFICATION != 0,
            time: RestartTime::from_seconds(header & RESTART_TIME).ok()?,
            families: BTreeMap::new(),
            has_other_families: false,
        };
        for &[afi_high, afi_low, safi, flags] in entries {
            let forwarding = flags & FLAG_FORWARDING != 0;
            match (u16::from_be_bytes([afi_high, afi_low]), safi) {
                (1, SAFI_UNICAST) => {
                    restart.families.insert(Family::Ipv4, forwarding);
                }
                (2, SAFI_UNICAST) => {
                    restart.families.insert(Family::Ipv6, forwarding);
                }
                _ => restart.has_other_families = true,
            }
        }
        //= rfc4724#3:last MUST: of several capabilities of graceful restart the last one counts
        self.graceful_restart = Some(restart);
        Some(())
    }

    /// Without `others`, which we have none of.
    fn to_wire(&self) -> Vec<BgpCapability> {
        let multiprotocol = self.families.iter().map(|family| {
            BgpCapability::MultiProtocolExtensions(MultiProtocolExtensionsCapability::new(address_type(*family)))
        });
        let refresh = self.route_refresh.then_some(BgpCapability::RouteRefresh);
        let extended = self.extended_next_hop.then(|| {
            let encoding = ExtendedNextHopEncoding::new(AddressType::Ipv4Unicast, AddressFamily::IPv6);
            BgpCapability::ExtendedNextHopEncoding(ExtendedNextHopEncodingCapability::new(vec![encoding]))
        });
        let restart = self.graceful_restart.as_ref().map(|restart| {
            let families: Vec<_> = restart
                .families
                .iter()
                .map(|(family, forwarding)| GracefulRestartAddressFamily::new(*forwarding, address_type(*family)))
                .collect();
            let GracefulRestart { restarted, notification, time, .. } = restart;
            let time = time.seconds();
            //= rfc4724#3:reserved MUST: bits without meaning are sent as zero
            BgpCapability::GracefulRestartCapability(GracefulRestartCapability::new(
                *restarted,
                *notification,
                time,
                families,
            ))
        });
        let four = self.four_octet_as.map(|number| BgpCapability::FourOctetAs(FourOctetAsCapability::new(number)));
        multiprotocol.chain(refresh).chain(extended).chain(restart).chain(four).collect()
    }

    /// The data of an answer "unsupported capability" that asks for these families: our capabilities as they are sent
    /// (RFC 5492, 5).
    #[must_use]
    pub fn families_to_wire(&self) -> Vec<u8> {
        let entry = |family: &Family| {
            let afi = u16::from(address_type(*family).address_family()).to_be_bytes();
            [CAPABILITY_MULTIPROTOCOL, 4, afi[0], afi[1], 0, SAFI_UNICAST]
        };
        self.families.iter().flat_map(entry).collect()
    }
}

/// The codec's name of a family.
pub(super) const fn address_type(family: Family) -> AddressType {
    match family {
        Family::Ipv4 => AddressType::Ipv4Unicast,
        Family::Ipv6 => AddressType::Ipv6Unicast,
    }
}

// AS_TRANS is what a speaker without the capability sends for a number that does not fit: it names nobody.
const _: () = assert!(AsNumber::new(AS_TRANS as u32).is_err());
