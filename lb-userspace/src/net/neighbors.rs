//! Routers on a link, as the kernel has heard of them.

use std::net::Ipv6Addr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::{InterfaceIndex, Netlink, Result};

/// Link-local addresses of IPv6 routers on an interface, in order: those whose router advertisements the kernel has heard,
/// whether it follows them or not (`ndisc_router_discovery` of net/ipv6/ndisc.c).
pub fn routers(netlink: &mut Netlink, interface: InterfaceIndex) -> Result<Vec<Ipv6Addr>> {
    let mut question = NeighbourMessage::default();
    question.header.family = AddressFamily::Inet6;
    let answers = netlink.dump("list neighbours", RouteNetlinkMessage::GetNeighbour(question))?;
    let mut found: Vec<Ipv6Addr> = answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => router(&message, interface),
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn router(message: &NeighbourMessage, interface: InterfaceIndex) -> Option<Ipv6Addr> {
    let header = &message.header;
    let is_there = header.ifindex == interface
        && header.flags.contains(NeighbourFlags::Router)
        && header.state != NeighbourState::Failed;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(*address),
        _ => None,
    });
    address.filter(|address| is_there && address.is_unicast_link_local())
}
