//! Notifications: something about interfaces, addresses, routes or neighbours changed here or in a pod.
//!
//! Only *that* something changed is reported. The receiver reads the tables again, at its own pace, so nothing is
//! built on the order or completeness of notifications.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Capability, Error, Result, sys};

/// Notifications that wait here while the receiver is busy: some thousands. Losing some costs one resynchronisation.
const BUFFER_BYTES: u32 = 4 << 20;

/// Notifications read in one [`Monitor::drain`], so that a storm cannot hold its caller.
const DRAIN_NOTIFICATIONS: usize = 4096;

/// Enough for the headers; the rest of a notification is not looked at.
const NOTIFICATION_BYTES: usize = 4096;

// The kernel's rtnetlink groups: interfaces, addresses and routes of both families, neighbours, namespace ids.
const GROUPS: [libc::c_uint; 8] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_NEXTHOP,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_NSID,
];

/// What changed since the last time, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces or addresses, here or in a namespace that has an id here: read [`super::links`] again.
    pub links: bool,
    /// Routes of this namespace: read [`super::routes`] again.
    pub routes: bool,
    /// Neighbours (ARP, NDP) of this namespace.
    pub neighbours: bool,
    /// Notifications were lost: read everything again. The other fields are set, too.
    pub overrun: bool,
    /// More is waiting, and none of it will make the descriptor readable anew: drain again.
    pub more: bool,
}

impl Changes {
    /// Whether anything has to be read again.
    pub fn any(&self) -> bool {
        self.links || self.routes || self.neighbours || self.overrun
    }

    fn lost() -> Self {
        Self { links: true, routes: true, neighbours: true, overrun: true, more: false }
    }
}

/// A subscription to changes. Readable when there are some; for tokio, register it in an `AsyncFd`, which asks for what
/// holds here: its descriptor stays the same and open until it is dropped.
///
/// Open it before the first reading of the tables, or a change in between goes unseen. A new pod's namespace is heard
/// once it has an id here, which it gets no later than its veth's end appears in our namespace, and that is heard too.
pub struct Monitor {
    socket: Socket,
    notification: Vec<u8>,
}

impl Monitor {
    /// Subscribes in the calling thread's namespace.
    ///
    /// # Errors
    /// Without CAP_NET_BROADCAST.
    pub fn open() -> Result<Self> {
        Self::with_buffer(BUFFER_BYTES)
    }

    /// Like [`Monitor::open`], with room for so many bytes of waiting notifications (the kernel has a minimum of its
    /// own, and doubles the value for its overhead).
    pub fn with_buffer(buffer_bytes: u32) -> Result<Self> {
        let error = |action: &'static str, capability| Error::from_io(action, capability);
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(error("open a netlink socket", Capability::NetAdmin))?;
        sys::set_receive_buffer(socket.as_fd(), buffer_bytes)
            .map_err(error("size the buffer for notifications", Capability::NetAdmin))?;
        socket
            .set_listen_all_namespaces(true)
            .map_err(error("listen to changes in pods' namespaces", Capability::NetBroadcast))?;
        for group in GROUPS {
            socket.add_membership(group).map_err(error("subscribe to changes", Capability::NetAdmin))?;
        }
        Ok(Self { socket, notification: vec![0; NOTIFICATION_BYTES] })
    }

    /// Takes what is waiting, without waiting for more.
    pub fn drain(&mut self) -> Result<Changes> {
        let mut changes = Changes::default();
        for _ in 0..DRAIN_NOTIFICATIONS {
            match sys::receive_notification(self.socket.as_fd(), &mut self.notification) {
                Ok((length, from)) => note(&self.notification[..length], from.is_some(), &mut changes),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(changes),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => changes = Changes::lost(),
                    _ => return Err(Error::new("read notifications", Capability::NetAdmin, error)),
                },
            }
        }
        changes.more = true;
        Ok(changes)
    }

    /// Waits for changes for at most `timeout`; none have come if nothing is set.
    pub fn wait(&mut self, timeout: Duration) -> Result<Changes> {
        let error = Error::from_io("wait for notifications", Capability::NetAdmin);
        if sys::wait_readable(self.socket.as_fd(), timeout).map_err(|source: io::Error| error(source))? {
            self.drain()
        } else {
            Ok(Changes::default())
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Adds one datagram to the sum. `elsewhere`: it comes from another namespace.
fn note(datagram: &[u8], elsewhere: bool, changes: &mut Changes) {
    // A notification is one message; a cut one still has its header, and its length is not asked.
    let Some(header) = datagram.get(..NETLINK_HEADER_BYTES) else { return };
    let family = datagram.get(NETLINK_HEADER_BYTES).copied().unwrap_or_default();
    match NetlinkBuffer::new(header).message_type() {
        libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => changes.links = true,
        RTM_NEWNSID | RTM_DELNSID => changes.links = true,
        // Pods' own routes and neighbours are their business, and change with their traffic.
        _ if elsewhere => {}
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE | RTM_NEWNEXTHOP | RTM_DELNEXTHOP => changes.routes = true,
        // The same message tells what a bridge learned, which is nothing to us.
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH if i32::from(family) == libc::AF_BRIDGE => {}
        // Nobody is there to be resolved, and the kernel gives such entries up as it likes: its table is one for all namespaces.
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH if datagram.get(NEIGHBOUR_TYPE) == Some(&libc::RTN_MULTICAST) => {}
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => changes.neighbours = true,
        _ => {}
    }
}

const NETLINK_HEADER_BYTES: usize = 16;
/// Of `ndm_type`, after family, padding, interface, state and flags (`struct ndmsg`, linux/neighbour.h).
const NEIGHBOUR_TYPE: usize = NETLINK_HEADER_BYTES + 11;
const RTM_NEWNSID: u16 = 88;
const RTM_DELNSID: u16 = 89;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: u16, family: i32, elsewhere: bool, expected: Changes) {
        let mut datagram = [0; 20];
        datagram[4..6].copy_from_slice(&kind.to_ne_bytes());
        datagram[16] = family as u8;
        let mut changes = Changes::default();
        note(&datagram, elsewhere, &mut changes);
        assert_eq!(changes, expected);
    }

    #[test]
    fn changes_are_told_apart_and_only_links_matter_elsewhere() {
        let none = Changes::default();
        let links = Changes { links: true, ..none };
        let routes = Changes { routes: true, ..none };
        let neighbours = Changes { neighbours: true, ..none };
        for elsewhere in [false, true] {
            check(libc::RTM_DELLINK, libc::AF_UNSPEC, elsewhere, links);
            check(libc::RTM_NEWADDR, libc::AF_INET6, elsewhere, links);
        }
        check(libc::RTM_NEWROUTE, libc::AF_INET, false, routes);
        check(libc::RTM_NEWROUTE, libc::AF_INET, true, none);
        check(libc::RTM_NEWNEIGH, libc::AF_INET, false, neighbours);
        check(libc::RTM_NEWNEIGH, libc::AF_INET, true, none);
        check(libc::RTM_NEWNEIGH, libc::AF_BRIDGE, false, none);
    }

    #[test]
    fn neighbours_that_are_groups_are_nothing() {
        for (kind, expected) in [(libc::RTN_UNICAST, true), (libc::RTN_MULTICAST, false)] {
            let mut datagram = [0; NETLINK_HEADER_BYTES + 12];
            datagram[4..6].copy_from_slice(&libc::RTM_DELNEIGH.to_ne_bytes());
            datagram[NETLINK_HEADER_BYTES] = libc::AF_INET6 as u8;
            datagram[NEIGHBOUR_TYPE] = kind;
            let mut changes = Changes::default();
            note(&datagram, false, &mut changes);
            assert_eq!(changes, Changes { neighbours: expected, ..Changes::default() });
        }
    }

    #[test]
    fn a_short_notification_is_nothing() {
        let mut changes = Changes::default();
        note(&[0; 15], false, &mut changes);
        assert_eq!(changes, Changes::default());
    }
}
