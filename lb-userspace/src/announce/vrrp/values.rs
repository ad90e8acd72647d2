//! The numbers of VRRP, each in its own type.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
    time::Duration,
};

use serde::Serialize;

/// Which protocol VIPs, sources and destinations belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// The group that advertisements are sent to (RFC 9568 5.1.1.2 and 5.1.2.2).
    #[must_use]
    pub const fn group(self) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18)),
            Self::Ipv6 => IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12)),
        }
    }

    /// Most addresses that are listed in one advertisement, so that it fits an MTU of 1500 octets: for IPv4 the
    /// counter's end, for IPv6 8 octets and 16 for each after a header of 40.
    #[must_use]
    pub const fn listed_max(self) -> usize {
        match self {
            Self::Ipv4 => 255,
            Self::Ipv6 => 90,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Version {
    /// RFC 3768, IPv4 alone.
    #[serde(rename = "2")]
    V2,
    /// RFC 9568.
    #[serde(rename = "3")]
    V3,
}

/// A virtual router's number within an interface and family, 1 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Vrid(NonZeroU8);

/// Not a VRID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no VRID, choose one from 1 to 255")]
pub struct InvalidVrid(pub u16);

impl Vrid {
    /// Of its number.
    ///
    /// # Errors
    /// 0, and more than 255.
    pub fn new(number: u16) -> Result<Self, InvalidVrid> {
        u8::try_from(number).ok().and_then(NonZeroU8::new).map(Self).ok_or(InvalidVrid(number))
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }

    /// The virtual router's MAC (RFC 9568 7.3).
    //= rfc9568#7.3:mac MUST: the virtual MAC is the family's prefix and the VRID
    #[must_use]
    pub const fn mac(self, family: Family) -> [u8; 6] {
        let kind = match family {
            Family::Ipv4 => 1,
            Family::Ipv6 => 2,
        };
        [0x00, 0x00, 0x5e, 0x00, kind, self.get()]
    }

    /// The link-local VIP of an IPv6 virtual router that is given none.
    #[must_use]
    pub const fn link_local(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x5e, self.get() as u16)
    }
}

impl fmt::Display for Vrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a router that backs a VIP up competes with, 1 to 254: 255 is the owner's and 0 says that an active leaves.
//= rfc9568#5.2.4:backup MUST: our own priority is from 1 to 254
//= rfc3768#5.3.4:backup MUST: our own priority is from 1 to 254
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Priority(NonZeroU8);

/// Not a priority that may be competed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no priority to compete with, choose one from 1 to 254")]
pub struct InvalidPriority(pub u16);

impl Priority {
    /// Of its number.
    ///
    /// # Errors
    /// 0, 255 and more.
    pub fn new(number: u16) -> Result<Self, InvalidPriority> {
        let valid = u8::try_from(number).ok().filter(|number| *number != u8::MAX);
        valid.and_then(NonZeroU8::new).map(Self).ok_or(InvalidPriority(number))
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Time between advertisements, as its version can say it: whole centiseconds up to 40.95 s in version 3 (12 bits),
/// whole seconds up to 255 s in version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interval {
    version: Version,
    units: u16,
}

/// Not an interval of that version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInterval {
    /// Version 3.
    #[error("{0:?} is no interval of version 3, choose 10 ms to 40.95 s in steps of 10 ms")]
    V3(Duration),
    /// Version 2.
    #[error("{0:?} is no interval of version 2, choose 1 s to 255 s in steps of 1 s")]
    V2(Duration),
}

impl Interval {
    /// Most centiseconds (RFC 9568 5.2.7).
    pub const CENTISECONDS_MAX: u16 = 0xfff;

    /// Of a duration.
    ///
    /// # Errors
    /// What the version cannot say.
    pub fn new(version: Version, duration: Duration) -> Result<Self, InvalidInterval> {
        let (unit, most, error) = match version {
            Version::V2 => (Duration::from_secs(1), u16::from(u8::MAX), InvalidInterval::V2(duration)),
            Version::V3 => (Duration::from_millis(10), Self::CENTISECONDS_MAX, InvalidInterval::V3(duration)),
        };
        let whole = duration.as_nanos().is_multiple_of(unit.as_nanos());
        match u16::try_from(duration.as_nanos() / unit.as_nanos()) {
            Ok(units) if whole && (1..=most).contains(&units) => Ok(Self { version, units }),
            Ok(_) | Err(_) => Err(error),
        }
    }

    /// Of what an advertisement says; `None` for zero.
    pub(super) fn from_units(version: Version, units: u16) -> Option<Self> {
        let units = match version {
            Version::V2 => units.min(u16::from(u8::MAX)),
            Version::V3 => units & Self::CENTISECONDS_MAX,
        };
        (units != 0).then_some(Self { version, units })
    }

    /// As advertisements say it: centiseconds in version 3, seconds in version 2.
    pub(super) const fn units(self) -> u16 {
        self.units
    }

    /// The version that it is of.
    #[must_use]
    pub const fn version(self) -> Version {
        self.version
    }

    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        match self.version {
            Version::V2 => Duration::from_secs(self.units as u64),
            Version::V3 => Duration::from_millis(self.units as u64 * 10),
        }
    }

    /// How much later than others a router of this priority takes over, so that the highest comes first (RFC 9568 6.1,
    /// RFC 3768 6.1: there it is of a second, whatever the interval).
    //= rfc9568#6.1:skew MUST: the skew is of the active's interval
    //= rfc3768#6.1:skew MUST: the skew is of one second
    #[must_use]
    pub fn skew(self, priority: Priority) -> Duration {
        let whole = match self.version {
            Version::V2 => Duration::from_secs(1),
            Version::V3 => self.duration(),
        };
        whole * (256 - u32::from(priority.get())) / 256
    }

    /// How long an active is silent when it is held dead: `Active_Down_Interval` of RFC 9568 6.1.
    #[must_use]
    pub fn active_down(self, priority: Priority) -> Duration {
        self.validity() + self.skew(priority)
    }

    /// `active_down` of the slowest, a router of priority 1.
    #[must_use]
    pub fn active_down_max(self) -> Duration {
        self.active_down(Priority(NonZeroU8::MIN))
    }

    /// How long nobody else takes over after an advertisement: three intervals, without anybody's skew.
    #[must_use]
    pub fn validity(self) -> Duration {
        self.duration() * 3
    }
}
