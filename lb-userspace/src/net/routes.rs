//! Routes of this namespace, as far as a test packet needs them.

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType},
};

use super::{
    Error, InterfaceIndex, Netlink, Result,
    links::{InterfaceAddress, Links},
};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// One way out: a route's next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// First address of the destinations; unspecified for the default route.
    pub destination: IpAddr,
    /// Bits of the destination that matter; 0 for the default route.
    pub prefix_length: u8,
    /// The router; none where destinations are neighbours themselves.
    pub gateway: Option<IpAddr>,
    /// The interface it leaves by.
    pub interface: InterfaceIndex,
    /// Of equal destinations the lowest is used.
    pub metric: u32,
}

/// Unicast routes of the main table, one for each next hop, in the kernel's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(pub Vec<Route>);

/// Reads the routes of the namespace of `netlink`.
pub fn snapshot(netlink: &mut Netlink) -> Result<Routes> {
    let mut routes = Vec::new();
    for (family, unspecified) in [
        (AddressFamily::Inet, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        (AddressFamily::Inet6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    ] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        // The kernel filters for it; a node full of pods or BGP routes may have large tables of other kinds.
        question.header.table = RouteHeader::RT_TABLE_MAIN;
        let answers = match netlink.dump("list routes", RouteNetlinkMessage::GetRoute(question)) {
            // A namespace has no such table before its first route.
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => continue,
            other => other?,
        };
        for answer in answers {
            if let RouteNetlinkMessage::NewRoute(message) = answer {
                decode(&message, unspecified, &mut routes);
            }
        }
    }
    Ok(Routes(routes))
}

impl Routes {
    /// The route that packets to an address take: the longest prefix, and of equal ones the lowest metric.
    pub fn to(&self, address: IpAddr) -> Option<&Route> {
        let covering = self.0.iter().filter(|route| covers(route.destination, route.prefix_length, address));
        covering.min_by_key(|route| (Reverse(route.prefix_length), route.metric))
    }

    /// The default gateway of a family through an interface.
    pub fn default_gateway(&self, interface: InterfaceIndex, family: Family) -> Option<IpAddr> {
        self.gateways(interface, family).find(|(prefix_length, _)| *prefix_length == 0).map(|(_, gateway)| gateway)
    }

    /// An address beyond `uplink` that a test packet may claim to come from, so that the answer leaves by that uplink:
    /// a gateway of a route through it, the default route's before others'; else the lowest host address of the
    /// uplink's subnets that is not this node's. Whether anybody has it does not matter. None if the uplink has no
    /// address of that family wider than a single host.
    ///
    /// Link-local gateways, common in IPv6, are no use: a pod cannot answer them.
    pub fn probe_client(&self, links: &Links, uplink: InterfaceIndex, family: Family) -> Option<IpAddr> {
        let ours = |address: IpAddr| links.addresses().any(|own| own.address == address);
        let mut gateways = self.gateways(uplink, family);
        if let Some((_, gateway)) = gateways.find(|(_, gateway)| !is_link_local(*gateway) && !ours(*gateway)) {
            return Some(gateway);
        }
        let subnets = links.by_index(uplink)?.addresses.iter();
        let mut subnets = subnets.filter(|own| own.is_global && Family::of(own.address) == family);
        // Each address that is taken by us costs one more, so the search ends.
        subnets.find_map(|subnet| hosts(subnet).find(|host| !ours(*host)))
    }

    /// Prefix length and gateway, default routes and low metrics first.
    fn gateways(&self, interface: InterfaceIndex, family: Family) -> impl Iterator<Item = (u8, IpAddr)> {
        let through = |route: &&Route| route.interface == interface && Family::of(route.destination) == family;
        let mut routes: Vec<&Route> = self.0.iter().filter(through).collect();
        routes.sort_by_key(|route| (route.prefix_length, route.metric));
        let usable = move |gateway: &IpAddr| Family::of(*gateway) == family;
        routes.into_iter().filter_map(move |route| Some((route.prefix_length, route.gateway.filter(usable)?)))
    }
}

/// Whether a prefix covers an address.
fn covers(prefix: IpAddr, length: u8, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((prefix, prefix_width), (address, width)) = (bits(prefix), bits(address));
    prefix_width == width && (length == 0 || (prefix ^ address) >> (128 - u32::from(length)) == 0)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Host addresses of a subnet from the lowest up. Network and broadcast address of IPv4 and the routers' anycast
/// address of IPv6 (RFC 4291, section 2.6.1) are none, except on links between two (RFC 3021, RFC 6164).
fn hosts(subnet: &InterfaceAddress) -> Box<dyn Iterator<Item = IpAddr>> {
    let bits = if subnet.address.is_ipv4() { 32 } else { 128 };
    let host_bits = bits - u32::from(subnet.prefix_length).min(bits);
    let (number, build): (u128, fn(u128) -> IpAddr) = match subnet.address {
        IpAddr::V4(address) => (address.to_bits().into(), |number| Ipv4Addr::from_bits(number as u32).into()),
        IpAddr::V6(address) => (address.to_bits(), |number| Ipv6Addr::from_bits(number).into()),
    };
    let last = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
    let (lowest, highest) = match (host_bits, bits) {
        (0, _) => return Box::new(std::iter::empty()),
        (1, _) => (0, 1),
        (_, 32) => (1, last - 1),
        (_, _) => (1, last),
    };
    let network = number & !last;
    Box::new((lowest..=highest).map(move |host| build(network | host)))
}

fn decode(message: &RouteMessage, unspecified: IpAddr, routes: &mut Vec<Route>) {
    if message.header.kind != RouteType::Unicast {
        return;
    }
    let mut route = Route {
        destination: unspecified,
        prefix_length: message.header.destination_prefix_length,
        gateway: None,
        interface: 0,
        metric: 0,
    };
    let mut next_hops: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination = plain(address).unwrap_or(unspecified),
            RouteAttribute::Gateway(address) => route.gateway = plain(address),
            RouteAttribute::Oif(index) => route.interface = *index,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::MultiPath(hops) => next_hops = hops,
            // The kernel filters only since Linux 4.20 and only where it was asked strictly.
            RouteAttribute::Table(table) if *table != u32::from(RouteHeader::RT_TABLE_MAIN) => return,
            _ => {}
        }
    }
    if next_hops.is_empty() {
        routes.push(route);
    }
    routes.extend(next_hops.iter().map(|hop| {
        let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => plain(address),
            _ => None,
        });
        Route { gateway, interface: hop.interface_index, ..route }
    }));
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn subnet(text: &str) -> InterfaceAddress {
        let (address, length) = text.split_once('/').unwrap();
        InterfaceAddress {
            address: ip(address),
            prefix_length: length.parse().unwrap(),
            is_global: true,
            is_tentative: false,
            is_assigned: false,
        }
    }

    #[test]
    fn host_addresses_start_above_the_network_and_end_below_the_broadcast_address() {
        let check = |text: &str, expected: &[&str]| {
            let found: Vec<_> = hosts(&subnet(text)).take(3).collect();
            assert_eq!(found, expected.iter().map(|text| ip(text)).collect::<Vec<_>>(), "{text}");
        };
        check("192.0.2.77/24", &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        check("192.0.2.77/30", &["192.0.2.77", "192.0.2.78"]);
        check("192.0.2.77/31", &["192.0.2.76", "192.0.2.77"]);
        check("192.0.2.77/32", &[]);
        check("1.2.3.4/0", &["0.0.0.1", "0.0.0.2", "0.0.0.3"]);
        check("2001:db8::9/64", &["2001:db8::1", "2001:db8::2", "2001:db8::3"]);
        check("2001:db8::9/127", &["2001:db8::8", "2001:db8::9"]);
        check("2001:db8::9/128", &[]);
        check("2001:db8::9/0", &["::1", "::2", "::3"]);
    }

    #[test]
    fn a_prefix_covers_what_begins_like_it() {
        assert!(covers(ip("10.1.0.0"), 16, ip("10.1.255.1")));
        assert!(!covers(ip("10.1.0.0"), 16, ip("10.2.0.1")));
        assert!(covers(ip("::"), 0, ip("2001:db8::1")) && !covers(ip("::"), 0, ip("10.0.0.1")));
        assert!(covers(ip("2001:db8::1"), 128, ip("2001:db8::1")));
    }

    #[test]
    fn the_longest_prefix_wins_and_then_the_lowest_metric() {
        let route = |to: &str, interface, metric| {
            let InterfaceAddress { address, prefix_length, .. } = subnet(to);
            Route { destination: address, prefix_length, gateway: None, interface, metric }
        };
        let routes = Routes(vec![
            route("0.0.0.0/0", 2, 100),
            route("0.0.0.0/0", 3, 200),
            route("10.1.0.0/16", 5, 300),
            route("10.1.0.0/16", 4, 50),
            route("::/0", 6, 1),
        ]);
        let to = |address: &str| routes.to(ip(address)).map(|route| route.interface);
        assert_eq!([to("192.0.2.1"), to("10.1.2.3"), to("2001:db8::1")], [Some(2), Some(4), Some(6)]);
        assert_eq!(Routes::default().to(ip("10.1.2.3")), None);
    }

    #[test]
    fn a_default_gateway_comes_first_then_others_but_never_a_link_local_one() {
        let route = |to: &str, gateway: &str, metric| {
            let InterfaceAddress { address, prefix_length, .. } = subnet(to);
            Route { destination: address, prefix_length, gateway: Some(ip(gateway)), interface: 3, metric }
        };
        let client = |routes: &[Route], family| Routes(routes.to_vec()).probe_client(&Links::default(), 3, family);
        let special = route("10.0.0.0/8", "192.0.2.9", 0);
        let high = route("0.0.0.0/0", "192.0.2.2", 200);
        let low = route("0.0.0.0/0", "192.0.2.1", 100);
        assert_eq!(client(&[special, high, low], Family::V4), Some(ip("192.0.2.1")));
        assert_eq!(client(&[special], Family::V4), Some(ip("192.0.2.9")));
        assert_eq!(client(&[special], Family::V6), None);
        assert_eq!(client(&[Route { interface: 4, ..low }], Family::V4), None);
        assert_eq!(client(&[route("::/0", "fe80::1", 0)], Family::V6), None);
    }
}
