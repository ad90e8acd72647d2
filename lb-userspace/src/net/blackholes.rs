//! Packets for announced prefixes that the data plane has not taken end here, instead of going back to the router that sent
//! them: where the program is gone, and for addresses of an aggregate that nobody has.
//!
//! A routing table of our own holds a blackhole route for each prefix, and a rule for each uplink and family sends what comes
//! in there to it first; what has no route in it goes on to the next rule, and so does what lies in an aggregate and has a
//! route in the main table: pods and links. A rule for each prefix would do the same, but the
//! kernel walks rules one by one for every packet (net/core/fib_rules.c), and looks a table up like any other.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{Error, Netlink, Result};

/// The table; `ip route show table 16081` lists it.
pub const TABLE: u32 = 16081;
/// Of the rules: behind the local table's, before everybody else's.
pub const PRIORITY: u32 = 90;
/// Who has made them (`ip route show proto 83`): as on pods' `lo`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'S');

/// A prefix: its first address and its length.
pub type Prefix = (IpAddr, u8);

/// What is there, or is to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blackholes {
    /// Interfaces, by name, whose packets are looked at.
    pub interfaces: BTreeSet<String>,
    /// What ends here.
    pub prefixes: BTreeSet<Prefix>,
    /// What of that goes on to the next rule (a `throw` route).
    pub passed: BTreeSet<Prefix>,
}

impl Blackholes {
    /// What an earlier agent has left.
    pub fn read(netlink: &mut Netlink) -> Result<Self> {
        let mut found = Self::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            question.header.table = RouteHeader::RT_TABLE_UNSPEC;
            question.attributes.push(RouteAttribute::Table(TABLE));
            match netlink.dump("list blackhole routes", RouteNetlinkMessage::GetRoute(question)) {
                // There is no such table before its first route, or no such family.
                Err(error) if is_one_of(&error, &[libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP]) => {}
                answers => {
                    for answer in answers? {
                        found.prefixes.extend(prefix_of(&answer, RouteType::BlackHole));
                        found.passed.extend(prefix_of(&answer, RouteType::Throw));
                    }
                }
            }
            let mut question = RuleMessage::default();
            question.header.family = family;
            match netlink.dump("list routing rules", RouteNetlinkMessage::GetRule(question)) {
                Err(error) if is_one_of(&error, &[libc::EAFNOSUPPORT, libc::EOPNOTSUPP]) => {}
                answers => found.interfaces.extend(answers?.iter().filter_map(interface_of)),
            }
        }
        Ok(found)
    }

    /// Makes of `self`, which is there, what is wanted. What was done before an error is noted. Routes come before rules, and
    /// go after them.
    pub fn become_like(&mut self, wanted: &Self, netlink: &mut Netlink) -> Result<()> {
        for (kind, there, wanted) in [
            (RouteType::Throw, &mut self.passed, &wanted.passed),
            (RouteType::BlackHole, &mut self.prefixes, &wanted.prefixes),
        ] {
            for prefix in wanted.difference(&there.clone()) {
                let message = RouteNetlinkMessage::NewRoute(route(*prefix, kind));
                let added = netlink.change(&about("add", *prefix), message, NLM_F_CREATE | NLM_F_EXCL);
                tolerate(added, &[libc::EEXIST])?;
                there.insert(*prefix);
            }
        }
        for interface in wanted.interfaces.difference(&self.interfaces.clone()) {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let message = RouteNetlinkMessage::NewRule(rule(family, interface));
                let action = format!("add the rule of {interface} for table {TABLE}");
                let added = netlink.change(&action, message, NLM_F_CREATE | NLM_F_EXCL);
                tolerate(added, &[libc::EEXIST, libc::EAFNOSUPPORT, libc::EOPNOTSUPP])?;
            }
            self.interfaces.insert(interface.clone());
        }
        for interface in self.interfaces.clone().difference(&wanted.interfaces) {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let message = RouteNetlinkMessage::DelRule(rule(family, interface));
                let action = format!("delete the rule of {interface} for table {TABLE}");
                let gone = netlink.change(&action, message, 0);
                tolerate(gone, &[libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP])?;
            }
            self.interfaces.remove(interface);
        }
        for (kind, there, wanted) in [
            (RouteType::BlackHole, &mut self.prefixes, &wanted.prefixes),
            (RouteType::Throw, &mut self.passed, &wanted.passed),
        ] {
            for prefix in there.clone().difference(wanted) {
                let message = RouteNetlinkMessage::DelRoute(route(*prefix, kind));
                tolerate(netlink.change(&about("delete", *prefix), message, 0), &[libc::ESRCH])?;
                there.remove(prefix);
            }
        }
        Ok(())
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty() && self.prefixes.is_empty() && self.passed.is_empty()
    }

    /// Takes up what `other` has, too.
    pub fn add(&mut self, other: &Self) {
        self.interfaces.extend(other.interfaces.iter().cloned());
        self.prefixes.extend(&other.prefixes);
        // Whichever is wanted as the one is not the other.
        self.passed.extend(other.passed.difference(&self.prefixes));
        self.prefixes.retain(|prefix| !self.passed.contains(prefix));
    }

    /// Lets these pass that lie in what ends here: the main table has routes to them.
    pub fn let_pass(&mut self, routes: impl Iterator<Item = Prefix>) {
        // Nothing lies in a single address, of which there may be thousands.
        let is_wide = |(address, length): &Prefix| *length < if address.is_ipv4() { 32 } else { 128 };
        let wide: Vec<Prefix> = self.prefixes.iter().filter(|prefix| is_wide(prefix)).copied().collect();
        for route in routes {
            let is_inside = wide.iter().any(|prefix| is_within(route, *prefix));
            if is_inside && !self.prefixes.contains(&route) {
                self.passed.insert(route);
            }
        }
    }
}

fn about(verb: &str, (address, length): Prefix) -> String {
    format!("{verb} the blackhole route of {address}/{length}")
}

/// Whether a prefix lies in another, shorter one.
fn is_within((address, length): Prefix, (around, around_length): Prefix) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let differing = bits(address) ^ bits(around);
    let is_same = around_length == 0 || differing >> (128 - u32::from(around_length)) == 0;
    address.is_ipv4() == around.is_ipv4() && length > around_length && is_same
}

fn is_one_of(error: &Error, numbers: &[i32]) -> bool {
    match error {
        Error::Kernel { source, .. } => source.raw_os_error().is_some_and(|number| numbers.contains(&number)),
        _ => false,
    }
}

/// An error that says that it is so already, or that there is no such family, is none.
fn tolerate(result: Result<()>, numbers: &[i32]) -> Result<()> {
    match result {
        Err(error) if is_one_of(&error, numbers) => Ok(()),
        other => other,
    }
}

fn route((address, length): Prefix, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, RouteAddress::Inet6(address)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = PROTOCOL;
    message.header.scope = RouteScope::Universe;
    message.header.kind = kind;
    message.attributes.extend([RouteAttribute::Destination(destination), RouteAttribute::Table(TABLE)]);
    message
}

fn rule(family: AddressFamily, interface: &str) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes.extend([
        RuleAttribute::Iifname(interface.to_owned()),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(PROTOCOL),
    ]);
    message
}

fn prefix_of(answer: &RouteNetlinkMessage, kind: RouteType) -> Option<Prefix> {
    let RouteNetlinkMessage::NewRoute(message) = answer else { return None };
    let is_ours = message.header.kind == kind && message.attributes.contains(&RouteAttribute::Table(TABLE));
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    is_ours.then_some((address.unwrap_or(unspecified), message.header.destination_prefix_length))
}

fn interface_of(answer: &RouteNetlinkMessage) -> Option<String> {
    let RouteNetlinkMessage::NewRule(message) = answer else { return None };
    let has = |wanted: &RuleAttribute| message.attributes.contains(wanted);
    let is_ours = has(&RuleAttribute::Table(TABLE)) && has(&RuleAttribute::Priority(PRIORITY));
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Iifname(name) => Some(name.clone()),
        _ => None,
    });
    name.filter(|_| is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        (address.parse().unwrap(), length.parse().unwrap())
    }

    #[test]
    fn what_lies_in_an_aggregate_and_has_a_route_passes() {
        let ends = ["10.244.0.0/16", "10.244.9.9/32", "2001:db8::/64"].map(prefix).into();
        let mut wanted = Blackholes { prefixes: ends, ..Blackholes::default() };
        let routes = ["0.0.0.0/0", "10.244.0.11/32", "10.0.0.0/8", "10.244.9.9/32", "10.245.0.1/32", "2001:db8::7/128"];
        wanted.let_pass(routes.map(prefix).into_iter());
        assert_eq!(wanted.passed, ["10.244.0.11/32", "2001:db8::7/128"].map(prefix).into());
    }
}
