//! How the network is told where VIPs are.

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

use serde::Serialize;

use super::bgp::{Bgp, NodeSelection};

/// What this node announces, and among whom. By default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Announce {
    /// This node's name among those that announce.
    pub node: String,
    /// All nodes that announce, this one among them, each once.
    pub nodes: Vec<String>,
    /// What becomes of VIPs whose backends here all fail their health checks.
    pub when_unhealthy: WhenUnhealthy,
    /// Held without any election.
    pub always: Vec<Always>,
    /// Held by virtual routers.
    pub vrrp: Vec<VrrpGroup>,
    /// Told to routers.
    pub bgp: Option<Bgp>,
}

/// What becomes of a VIP whose backends on this node all fail their health checks. Packets that come go to all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum WhenUnhealthy {
    /// Others are to have it.
    #[default]
    Withdraw,
    /// It stays here.
    Announce,
}

/// VIPs that one node alone answers for on a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Always {
    /// The uplink.
    pub interface: String,
    /// Which VIPs.
    pub vips: Selection,
    /// On which nodes.
    pub nodes: NodeSelection,
}

/// VIPs that virtual routers of a segment share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VrrpGroup {
    /// What status and logs call it.
    pub name: String,
    /// The uplink.
    pub interface: String,
    /// Virtual router identifiers, each with a share of the VIPs.
    pub vrids: RangeInclusive<u8>,
    /// Version of the protocol; 2 is for IPv4 alone.
    pub version: VrrpVersion,
    /// From one advertisement to the next.
    pub interval: Duration,
    /// Of every virtual router here; without one it follows from the node's rank.
    pub priority: Option<u8>,
    /// Whether one with a higher priority takes over from one that is active.
    pub preempt: bool,
    /// How long it waits until then.
    pub preempt_delay: Duration,
    /// How long it listens before it does anything.
    pub start_delay: Duration,
    /// Advertisements go to these instead of the group.
    pub peers: Vec<IpAddr>,
    /// How often who is active says again that it has the VIPs; zero: only once.
    pub refresh: Duration,
    /// VIPs are at their virtual router's MAC instead of the uplink's.
    pub has_virtual_mac: bool,
    /// The link-local VIP of IPv6, where it is not by the virtual router's identifier.
    pub link_local: Option<Ipv6Addr>,
    /// Interfaces without which no VIP is announced.
    pub track: Vec<String>,
    /// Which VIPs.
    pub vips: Selection,
    /// Nodes that take part.
    pub nodes: NodeSelection,
}

impl VrrpGroup {
    /// From one advertisement to the next where nothing is said (RFC 9568, 6.1).
    pub const INTERVAL: Duration = Duration::from_secs(1);
    /// How often an active router says again that it has the VIPs, where nothing is said.
    pub const REFRESH: Duration = Duration::from_secs(60);

    /// With what stands for keys that are left out.
    #[must_use]
    pub fn new(name: &str, interface: &str, vrids: RangeInclusive<u8>) -> Self {
        Self {
            name: name.to_owned(),
            interface: interface.to_owned(),
            vrids,
            version: VrrpVersion::V3,
            interval: Self::INTERVAL,
            priority: None,
            preempt: true,
            preempt_delay: Duration::ZERO,
            start_delay: Duration::ZERO,
            peers: Vec::new(),
            refresh: Self::REFRESH,
            has_virtual_mac: false,
            link_local: None,
            track: Vec::new(),
            vips: Selection::default(),
            nodes: NodeSelection::default(),
        }
    }
}

/// Versions of VRRP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum VrrpVersion {
    /// RFC 3768.
    #[serde(rename = "2")]
    V2,
    /// RFC 9568.
    #[serde(rename = "3")]
    V3,
}

/// Some of the VIPs: those that lie in any of these prefixes; all where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Selection(pub Vec<Prefix>);

impl Selection {
    /// Whether a VIP is one of them.
    pub fn contains(&self, vip: IpAddr) -> bool {
        self.0.is_empty() || self.0.iter().any(|prefix| prefix.contains(vip))
    }
}

/// An address prefix. Bits behind the length are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// Bits, 0 to 32 or 128.
    pub length: u8,
}

impl Prefix {
    /// `None` where the length is beyond the family's, or a bit behind it is set.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = Self { address, length };
        (length <= bits && masked(address, length) == number(address)).then_some(prefix)
    }

    /// The prefix of that length that an address lies in; `None` where the length is beyond the family's.
    pub fn around(address: IpAddr, length: u8) -> Option<Self> {
        let first = match address {
            IpAddr::V4(_) => IpAddr::from(((masked(address, length) >> 96) as u32).to_be_bytes()),
            IpAddr::V6(_) => IpAddr::from(masked(address, length).to_be_bytes()),
        };
        Self::new(first, length)
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.length) == number(self.address)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The first bits of an address.
fn masked(address: IpAddr, length: u8) -> u128 {
    number(address) & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Option<Prefix> {
        let (address, length) = text.split_once('/')?;
        Prefix::new(address.parse().ok()?, length.parse().ok()?)
    }

    #[test]
    fn a_prefix_has_no_bits_behind_its_length() {
        assert!(
            ["192.0.2.0/24", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::/32", "::/0", "::1/128"]
                .map(prefix)
                .iter()
                .all(Option::is_some)
        );
        assert!(["192.0.2.1/24", "192.0.2.0/33", "2001:db8::1/64", "::/129"].map(prefix).iter().all(Option::is_none));
    }

    #[test]
    fn an_address_lies_in_one_prefix_of_each_length() {
        let around = |text: &str, length| Prefix::around(text.parse().unwrap(), length);
        assert_eq!(around("192.0.2.77", 24), prefix("192.0.2.0/24"));
        assert_eq!(around("2001:db8::7:1", 64), prefix("2001:db8::/64"));
        assert_eq!(around("192.0.2.77", 0), prefix("0.0.0.0/0"));
        assert_eq!((around("192.0.2.77", 32), around("192.0.2.77", 33)), (prefix("192.0.2.77/32"), None));
    }

    #[test]
    fn a_selection_is_of_its_prefixes_or_of_all() {
        let some = Selection(["192.0.2.0/25", "2001:db8::/64"].map(|text| prefix(text).unwrap()).to_vec());
        let is_in = |selection: &Selection, text: &str| selection.contains(text.parse().unwrap());
        assert!(is_in(&some, "192.0.2.127") && is_in(&some, "2001:db8::ffff"));
        assert!(!is_in(&some, "192.0.2.128") && !is_in(&some, "2001:db8:0:1::") && !is_in(&some, "::c000:201"));
        assert!(is_in(&Selection::default(), "192.0.2.200") && is_in(&Selection::default(), "fd00::1"));
    }
}
