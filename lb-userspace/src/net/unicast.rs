//! MACs beside an interface's own that its filter lets in (`ip maddr` does not list them, `bridge fdb show dev` does).
//!
//! A device that has no such filter, or no room in it, hears everything instead (net/core/dev.c, `__dev_set_rx_mode`); a bond
//! and a VLAN pass the MAC on to what is below them.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::{Error, InterfaceIndex, Netlink, Result, links::Mac};

/// Lets frames to a MAC in. False where that is so already.
///
/// # Errors
/// Needs CAP_NET_ADMIN.
pub fn let_in(netlink: &mut Netlink, interface: InterfaceIndex, mac: Mac) -> Result<bool> {
    let request = RouteNetlinkMessage::NewNeighbour(message(interface, mac));
    let action = format!("have interface {interface} take frames to a virtual MAC");
    match netlink.change(&action, request, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(Error::Kernel { source, .. }) if is(&source, libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets them in no more. An interface that is gone has taken its filter along.
///
/// # Errors
/// Needs CAP_NET_ADMIN.
pub fn shut_out(netlink: &mut Netlink, interface: InterfaceIndex, mac: Mac) -> Result<()> {
    let request = RouteNetlinkMessage::DelNeighbour(message(interface, mac));
    let action = format!("have interface {interface} take no frames to a virtual MAC");
    match netlink.change(&action, request, 0) {
        Err(Error::Kernel { source, .. }) if is(&source, libc::ENOENT) => Ok(()),
        Err(Error::NoInterface { .. }) => Ok(()),
        done => done,
    }
}

fn is(error: &io::Error, number: i32) -> bool {
    error.raw_os_error() == Some(number)
}

/// `NTF_SELF`: the device's own filter, not a bridge's table that it is a port of.
fn message(interface: InterfaceIndex, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = interface;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}
