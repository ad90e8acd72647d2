//! The advertisement on the wire (RFC 9568 5, RFC 3768 5).
//!
//! The IP header is the driver's: protocol [`PROTOCOL`], hop limit [`HOP_LIMIT`] both ways, traffic class
//! [`TRAFFIC_CLASS`], destination [`Family::group`] or a unicast peer.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_common::checksum::finish;
use serde::Serialize;

use super::{Family, Interval, Priority, Version, Vrid};

/// IP protocol and next header (RFC 9568 5.1.1.4 and 5.1.2.4).
//= rfc9568#7.2:protocol MUST: advertisements leave as IP protocol 112
//= rfc3768#7.2:protocol MUST: advertisements leave as IP protocol 112
pub const PROTOCOL: u8 = 112;
/// TTL and hop limit of each advertisement, so that none comes from beyond a router.
//= rfc9568#5.1.1.3:sent MUST: advertisements leave with TTL 255
//= rfc9568#5.1.2.3:sent MUST: advertisements leave with hop limit 255
//= rfc3768#5.2.3:sent MUST: advertisements leave with TTL 255
pub const HOP_LIMIT: u8 = 255;
/// TOS and traffic class: network control (DSCP CS6).
pub const TRAFFIC_CLASS: u8 = 0xc0;

/// Fixed part of the message, octets.
pub const HEADER_LEN: usize = 8;
/// Authentication data at the end of a version 2 message, octets: zero, and looked at by nobody.
const AUTHENTICATION_LEN: usize = 8;
/// The only type of message.
const ADVERTISEMENT: u8 = 1;

/// Why a packet is discarded.
//= rfc9568#7.1:discard MUST: what fails a check is discarded, counted by its reason
//= rfc3768#7.1:discard MUST: what fails a check is discarded, counted by its reason
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// TTL or hop limit.
    #[error("the hop limit is not 255: it came through a router, look for a relay or a forged packet")]
    HopLimit,
    /// Source and destination are of two families.
    #[error("source and destination are of different families")]
    Family,
    /// Shorter than its fixed part.
    #[error("shorter than 8 octets")]
    Short,
    /// Not the version that this virtual router speaks.
    #[error("another version of the protocol: configure the same on all routers")]
    Version,
    /// Version 2 over IPv6.
    #[error("version 2 over IPv6, which only version 3 knows")]
    VersionFamily,
    /// Not an advertisement.
    #[error("not an advertisement")]
    Type,
    /// Lists no address.
    #[error("lists no address")]
    Count,
    /// Ends within its list.
    #[error("ends before the last address that it counts")]
    Length,
    /// Checksum.
    #[error("wrong checksum")]
    Checksum,
    /// VRID 0.
    #[error("VRID 0")]
    Vrid,
    /// Interval 0.
    #[error("interval 0")]
    Interval,
    /// Version 2 with authentication.
    #[error("authentication, which is not offered: turn it off at the sender")]
    Authentication,
}

impl Malformed {
    /// All reasons, in the order of the checks.
    pub const ALL: [Self; 12] = [
        Self::HopLimit,
        Self::Family,
        Self::Short,
        Self::Version,
        Self::VersionFamily,
        Self::Type,
        Self::Count,
        Self::Length,
        Self::Checksum,
        Self::Vrid,
        Self::Interval,
        Self::Authentication,
    ];

    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HopLimit => "hop_limit",
            Self::Family => "family",
            Self::Short => "short",
            Self::Version => "version",
            Self::VersionFamily => "version_family",
            Self::Type => "type",
            Self::Count => "count",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::Vrid => "vrid",
            Self::Interval => "interval",
            Self::Authentication => "authentication",
        }
    }
}

/// Which versions are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionRule {
    /// This one alone.
    Only(Version),
    /// Both: another version than its own is an alarm of the virtual router.
    Any,
}

impl VersionRule {
    const fn admits(self, version: Version) -> bool {
        matches!(
            (self, version),
            (Self::Any, _) | (Self::Only(Version::V2), Version::V2) | (Self::Only(Version::V3), Version::V3)
        )
    }
}

/// Checks the TTL or hop limit that a packet came with.
///
/// # Errors
/// Anything but 255.
//= rfc9568#5.1.1.3:received MUST: an advertisement of another TTL than 255 is discarded
//= rfc9568#5.1.2.3:received MUST: an advertisement of another hop limit than 255 is discarded
//= rfc3768#5.2.3:received MUST: an advertisement of another TTL than 255 is discarded
//= rfc3768#7.1:ttl MUST: an advertisement of another TTL than 255 is discarded
pub const fn check_hop_limit(hop_limit: u8) -> Result<(), Malformed> {
    if hop_limit == HOP_LIMIT { Ok(()) } else { Err(Malformed::HopLimit) }
}

/// A priority as advertisements carry it: any octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Advertised(u8);

impl Advertised {
    /// The sender stops being active (RFC 9568 5.2.4).
    pub const LEAVES: Self = Self(0);
    /// The sender owns the addresses.
    pub const OWNER: Self = Self(255);

    /// As it stands on the wire.
    #[must_use]
    pub const fn new(octet: u8) -> Self {
        Self(octet)
    }

    /// As it stands on the wire.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl From<Priority> for Advertised {
    fn from(priority: Priority) -> Self {
        Self(priority.get())
    }
}

impl fmt::Display for Advertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an advertisement cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAdvertisement {
    /// Without addresses.
    #[error("no address is listed, give at least one")]
    Empty,
    /// Too many.
    #[error("{0} addresses are listed, leave all but 255 out")]
    TooMany(usize),
    /// Of two families.
    #[error("{0} is of another family than the first address, use a virtual router for each family")]
    Mixed(IpAddr),
    /// Version 2.
    #[error("version 2 knows no IPv6, use version 3")]
    Version2,
}

/// What a router says of itself and its virtual router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    vrid: Vrid,
    priority: Advertised,
    interval: Interval,
    addresses: Vec<IpAddr>,
}

impl Advertisement {
    /// Of its parts.
    ///
    /// # Errors
    /// No address, more than 255, of two families, or IPv6 in version 2.
    //= rfc9568#5.2.9:family MUST: listed addresses are of one family, the packet's
    pub fn new(
        vrid: Vrid,
        priority: Advertised,
        interval: Interval,
        addresses: Vec<IpAddr>,
    ) -> Result<Self, InvalidAdvertisement> {
        let family = Family::of(*addresses.first().ok_or(InvalidAdvertisement::Empty)?);
        if addresses.len() > usize::from(u8::MAX) {
            return Err(InvalidAdvertisement::TooMany(addresses.len()));
        }
        if let Some(other) = addresses.iter().find(|address| Family::of(**address) != family) {
            return Err(InvalidAdvertisement::Mixed(*other));
        }
        match (interval.version(), family) {
            (Version::V2, Family::Ipv6) => Err(InvalidAdvertisement::Version2),
            (Version::V2, Family::Ipv4) | (Version::V3, _) => Ok(Self { vrid, priority, interval, addresses }),
        }
    }

    /// Of the protocol.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.interval.version()
    }

    /// Which virtual router of the interface and family.
    #[must_use]
    pub const fn vrid(&self) -> Vrid {
        self.vrid
    }

    /// The sender's.
    #[must_use]
    pub const fn priority(&self) -> Advertised {
        self.priority
    }

    /// Time to the sender's next one.
    #[must_use]
    pub const fn interval(&self) -> Interval {
        self.interval
    }

    /// The VIPs that the sender lists: one at least, of one family.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Of the listed addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        // Never empty: see `new`.
        self.addresses.first().map_or(Family::Ipv4, |address| Family::of(*address))
    }

    /// Reads a message, which is all that follows the IP headers. `source` and `destination` are the packet's.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn parse(bytes: &[u8], source: IpAddr, destination: IpAddr, rule: VersionRule) -> Result<Self, Malformed> {
        let view = View::new(bytes, source, destination, rule)?;
        let vrid = Vrid::new(u16::from(view.vrid())).map_err(|_| Malformed::Vrid)?;
        //= rfc9568#7.1:interval-zero MUST: an advertisement with an interval of zero is discarded
        let interval = Interval::from_units(view.version, view.interval()).ok_or(Malformed::Interval)?;
        let addresses = view.addresses().collect();
        Self::new(vrid, Advertised(view.priority()), interval, addresses).map_err(|error| match error {
            InvalidAdvertisement::Empty | InvalidAdvertisement::TooMany(_) => Malformed::Count,
            InvalidAdvertisement::Mixed(_) => Malformed::Family,
            InvalidAdvertisement::Version2 => Malformed::VersionFamily,
        })
    }

    /// Writes the message over what `out` held. `source` and `destination` will be the packet's.
    //= rfc9568#7.2:fill MUST: fields and checksum are filled in for each packet
    //= rfc3768#7.2:fill MUST: fields and checksum are filled in for each packet
    pub fn emit(&self, source: IpAddr, destination: IpAddr, out: &mut Vec<u8>) {
        let version = self.version();
        out.clear();
        let number = match version {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        // As many as `new` lets in.
        let count = u8::try_from(self.addresses.len()).unwrap_or(u8::MAX);
        out.extend([number << 4 | ADVERTISEMENT, self.vrid.get(), self.priority.get(), count]);
        match version {
            // Type 0, and the interval in its low octet.
            Version::V2 => out.extend([0, self.interval.units().to_be_bytes()[1]]),
            //= rfc9568#5.2.6:sent MUST: the reserved bits leave as zero
            Version::V3 => out.extend(self.interval.units().to_be_bytes()),
        }
        out.extend([0, 0]);
        for address in self.addresses.iter().take(usize::from(count)) {
            match address {
                IpAddr::V4(address) => out.extend(address.octets()),
                IpAddr::V6(address) => out.extend(address.octets()),
            }
        }
        if version == Version::V2 {
            //= rfc3768#5.3.10:sent SHOULD: authentication data leave as zero
            out.extend([0; AUTHENTICATION_LEN]);
        }
        let checksum = checksum(version, source, destination, out);
        out[6..8].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Whether this lists the same addresses, in whatever order.
    #[must_use]
    pub fn lists_same(&self, others: &[IpAddr]) -> bool {
        self.addresses == others || self.addresses.iter().collect::<BTreeSet<_>>() == others.iter().collect()
    }
}

/// A message whose length, version and checksum have been checked.
struct View<'a> {
    bytes: &'a [u8; HEADER_LEN],
    list: &'a [u8],
    version: Version,
    family: Family,
}

impl<'a> View<'a> {
    fn new(bytes: &'a [u8], source: IpAddr, destination: IpAddr, rule: VersionRule) -> Result<Self, Malformed> {
        let family = Family::of(source);
        if family != Family::of(destination) {
            return Err(Malformed::Family);
        }
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Short)?;
        //= rfc9568#7.1:version MUST: a packet of another version is discarded
        //= rfc3768#7.1:version MUST: a packet of another version is discarded
        let version = match header[0] >> 4 {
            2 => Version::V2,
            3 => Version::V3,
            _ => return Err(Malformed::Version),
        };
        if !rule.admits(version) {
            return Err(Malformed::Version);
        }
        if (version, family) == (Version::V2, Family::Ipv6) {
            return Err(Malformed::VersionFamily);
        }
        //= rfc9568#5.2.2:type MUST: what is not an advertisement is discarded
        //= rfc9568#7.1:type MUST: what is not an advertisement is discarded
        //= rfc3768#5.3.2:type MUST: what is not an advertisement is discarded
        if header[0] & 0xf != ADVERTISEMENT {
            return Err(Malformed::Type);
        }
        //= rfc9568#5.2.5:count MUST: an advertisement without addresses is ignored
        let count = usize::from(header[3]);
        if count == 0 {
            return Err(Malformed::Count);
        }
        //= rfc9568#7.1:complete MUST: a packet that ends within its fields or list is discarded
        //= rfc3768#7.1:complete MUST: a packet that ends within its fields or list is discarded
        let octets = match family {
            Family::Ipv4 => 4,
            Family::Ipv6 => 16,
        };
        let list = rest.get(..count * octets).ok_or(Malformed::Length)?;
        //= rfc9568#7.1:checksum MUST: a packet with a wrong checksum is discarded
        //= rfc3768#7.1:checksum MUST: a packet with a wrong checksum is discarded
        if checksum(version, source, destination, bytes) != 0 {
            return Err(Malformed::Checksum);
        }
        //= rfc3768#7.1:authentication MUST: an authentication type that is not configured is discarded
        if version == Version::V2 && header[4] != 0 {
            return Err(Malformed::Authentication);
        }
        Ok(Self { bytes: header, list, version, family })
    }

    const fn vrid(&self) -> u8 {
        self.bytes[1]
    }

    const fn priority(&self) -> u8 {
        self.bytes[2]
    }

    /// In the version's units.
    const fn interval(&self) -> u16 {
        match self.version {
            Version::V2 => self.bytes[5] as u16,
            //= rfc9568#5.2.6:received MUST: the reserved bits are ignored
            Version::V3 => u16::from_be_bytes([self.bytes[4], self.bytes[5]]) & Interval::CENTISECONDS_MAX,
        }
    }

    fn addresses(&self) -> Box<dyn Iterator<Item = IpAddr> + 'a> {
        match self.family {
            Family::Ipv4 => Box::new(self.list.as_chunks::<4>().0.iter().map(|octets| Ipv4Addr::from(*octets).into())),
            Family::Ipv6 => Box::new(self.list.as_chunks::<16>().0.iter().map(|octets| Ipv6Addr::from(*octets).into())),
        }
    }
}

/// The Internet checksum (RFC 1071) over the whole message, in version 3 with the pseudo header of RFC 8200 8.1, over
/// IPv4 its shorter form. Over a message that holds its checksum this is zero.
//= rfc9568#5.2.8:pseudo-header MUST: version 3's checksum covers the pseudo header
fn checksum(version: Version, source: IpAddr, destination: IpAddr, message: &[u8]) -> u16 {
    let mut sum = Sum::default();
    match version {
        Version::V2 => {}
        Version::V3 => {
            for address in [source, destination] {
                match address {
                    IpAddr::V4(address) => sum.add(&address.octets()),
                    IpAddr::V6(address) => sum.add(&address.octets()),
                }
            }
            // Length and protocol; in IPv6's longer form only zeros are added.
            sum.0 += message.len() as u64 + u64::from(PROTOCOL);
        }
    }
    sum.add(message);
    finish(sum.0)
}

#[derive(Default)]
struct Sum(u64);

impl Sum {
    /// An odd octet at the end counts as the high one of a word.
    fn add(&mut self, bytes: &[u8]) {
        let (words, odd) = bytes.as_chunks::<2>();
        self.0 += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        self.0 += odd.first().map_or(0, |octet| u64::from(*octet) << 8);
    }
}
