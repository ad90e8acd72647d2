//! The numbers and names that messages and the machine share. Each can only be built with a legal value.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use netgauze_bgp_pkt::nlri::{Ipv4Unicast, Ipv6Unicast};
use serde::Serialize;
use thiserror::Error;

/// Stands for an AS number of four octets where only two fit (RFC 6793, 9).
pub const AS_TRANS: u16 = 23456;

/// Greatest restart time: 12 bits (RFC 4724, 3).
pub const RESTART_SECONDS_MAX: u16 = 4095;

/// Why a value is not legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Reserved (RFC 7607, 2; RFC 6793, 9).
    #[error("AS number {0} is reserved: give the number that was assigned to this network")]
    ReservedAs(u32),
    /// RFC 4271, 4.2.
    #[error("hold time of {0} s is not allowed: give 0 for none, or 3 s and more")]
    HoldTime(u16),
    /// RFC 6286, 2.1.
    #[error("identifier 0.0.0.0 is not allowed: give any other")]
    Identifier,
    /// RFC 4724, 3.
    #[error("restart time of {0} s does not fit: give at most {RESTART_SECONDS_MAX}")]
    RestartTime(u16),
    /// Longer than an address of its family.
    #[error("prefix length {length} is too long for {address}")]
    PrefixLength {
        /// Of the prefix.
        address: IpAddr,
        /// What was given.
        length: u8,
    },
    /// Multicast, or broadcast.
    #[error("{address}/{length} is not a unicast prefix: only unicast ones can be announced")]
    NotUnicast {
        /// Of the prefix.
        address: IpAddr,
        /// Of the prefix.
        length: u8,
    },
}

/// The number of an autonomous system: four octets, neither 0 nor 23456.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct AsNumber(u32);

impl AsNumber {
    /// Refuses the two reserved numbers.
    pub const fn new(number: u32) -> Result<Self, ValueError> {
        //= rfc7607#2:zero MUST: AS 0 is nobody's, neither ours nor a peer's
        //= rfc6793#9:as-trans MUST: AS_TRANS is nobody's number
        if number == 0 || number == AS_TRANS as u32 { Err(ValueError::ReservedAs(number)) } else { Ok(Self(number)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// What stands for it in fields of two octets (RFC 6793, 4.2.2).
    #[must_use]
    pub fn two_octets(self) -> u16 {
        //= rfc6793#4.2.1:my-as MUST: AS_TRANS stands in the OPEN's field where the number does not fit
        u16::try_from(self.0).unwrap_or(AS_TRANS)
    }

    /// Whether two octets hold it.
    #[must_use]
    pub const fn fits_two_octets(self) -> bool {
        self.0 <= u16::MAX as u32
    }
}

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A BGP Identifier: four octets, not zero (RFC 6286, 2.1). Greater ones win collisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Identifier(Ipv4Addr);

impl Identifier {
    /// Refuses zero.
    pub fn new(identifier: Ipv4Addr) -> Result<Self, ValueError> {
        //= rfc6286#2.1:non-zero MUST: the identifier is any four octets but zero
        if identifier.is_unspecified() { Err(ValueError::Identifier) } else { Ok(Self(identifier)) }
    }

    /// For a node: what is configured, else its IPv4 address, else a hash of its name. The hash is the same on every
    /// build: FNV-1a, which spreads names that differ in one digit.
    #[must_use]
    pub fn choose(configured: Option<Self>, node: Option<Ipv4Addr>, name: &str) -> Self {
        //= rfc6286#2.1:unique SHOULD: the identifier is unique within the AS: the node's address, else of its name
        if let Some(identifier) = configured.or_else(|| node.and_then(|address| Self::new(address).ok())) {
            return identifier;
        }
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self(Ipv4Addr::from(hash.max(1)))
    }

    /// In the form of an address.
    #[must_use]
    pub const fn get(self) -> Ipv4Addr {
        self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long a peer may be silent, in whole seconds: 0 for ever, else 3 and more (RFC 4271, 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct HoldTime(u16);

impl HoldTime {
    /// What RFC 4271, 10 suggests.
    pub const DEFAULT: Self = Self(90);

    /// Refuses 1 and 2.
    pub const fn from_seconds(seconds: u16) -> Result<Self, ValueError> {
        //= rfc4271#4.2:hold-time MUST: a hold time is zero or at least three seconds
        if seconds == 1 || seconds == 2 { Err(ValueError::HoldTime(seconds)) } else { Ok(Self(seconds)) }
    }

    /// In seconds, as it is sent.
    #[must_use]
    pub const fn seconds(self) -> u16 {
        self.0
    }

    /// None where silence is never too long.
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        (self.0 != 0).then(|| Duration::from_secs(self.0.into()))
    }
}

/// How long the peer may wait for our return, in whole seconds, at most 4095 (RFC 4724, 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RestartTime(u16);

impl RestartTime {
    /// So long may a router send to a node that died while it restarted.
    pub const DEFAULT: Self = Self(30);

    /// Refuses what does not fit in 12 bits.
    pub const fn from_seconds(seconds: u16) -> Result<Self, ValueError> {
        if seconds > RESTART_SECONDS_MAX { Err(ValueError::RestartTime(seconds)) } else { Ok(Self(seconds)) }
    }

    /// In seconds, as it is sent.
    #[must_use]
    pub const fn seconds(self) -> u16 {
        self.0
    }

    /// As time.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

/// What is announced: an address family, always unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4,
    /// AFI 2, SAFI 1.
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4-unicast",
            Self::Ipv6 => "ipv6-unicast",
        })
    }
}

/// A unicast prefix without host bits, IPv4 before IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Host bits are cleared. `length` is in bits.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, ValueError> {
        let too_long = |_| ValueError::PrefixLength { address, length };
        let (network, is_unicast) = match address {
            IpAddr::V4(address) => {
                let network = Ipv4Net::new(address, length).map_err(too_long)?.trunc();
                (network.addr().into(), Ipv4Unicast::from_net(network).is_ok())
            }
            IpAddr::V6(address) => {
                let network = Ipv6Net::new(address, length).map_err(too_long)?.trunc();
                (network.addr().into(), Ipv6Unicast::from_net(network).is_ok())
            }
        };
        if is_unicast { Ok(Self { address: network, length }) } else { Err(ValueError::NotUnicast { address, length }) }
    }

    /// Of one address: /32 or /128.
    pub fn host(address: IpAddr) -> Result<Self, ValueError> {
        Self::new(address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// The first address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// In bits.
    #[must_use]
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Of its address.
    #[must_use]
    pub const fn family(self) -> Family {
        Family::of(self.address)
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.length);
                (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.length);
                (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Octets that it takes in a list of prefixes (RFC 4271, 4.3).
    #[must_use]
    pub const fn wire_octets(self) -> usize {
        1 + self.length.div_ceil(8) as usize
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

/// Whether an address is valid on its link only (RFC 4291, 2.5.6).
#[must_use]
pub const fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}
