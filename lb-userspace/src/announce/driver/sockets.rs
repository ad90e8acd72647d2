//! The sockets that virtual routers and announcements use. All `unsafe` of this module is here.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr,
};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::{
    announce::vrrp::{
        Family,
        packet::{HOP_LIMIT, PROTOCOL, TRAFFIC_CLASS},
    },
    net::InterfaceIndex,
};

/// Longest packet that is read; what is longer than 255 addresses is malformed anyway.
pub const PACKET_MAX: usize = 2048;

/// An advertisement as it came.
#[derive(Debug)]
pub struct Received<'a> {
    /// Behind the IP header.
    pub bytes: &'a [u8],
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// By which interface.
    pub interface: InterfaceIndex,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// Raw sockets of VRRP (IP protocol 112), one for each family. Membership of the groups says whose packets come.
#[derive(Debug)]
pub struct Routers {
    v4: Socket,
    v6: Option<Socket>,
}

/// Sends frames as they are.
#[derive(Debug)]
pub struct Frames(Socket);

impl Frames {
    /// Receives nothing.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Sends one out of an interface.
    pub fn send(&self, interface: InterfaceIndex, frame: &[u8]) -> io::Result<()> {
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: the storage is large and aligned enough for any socket address, and all zero bytes are one.
        let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = interface as i32;
        // SAFETY: what was written is a `sockaddr_ll` of this length.
        let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32) };
        self.0.send_to(frame, &address).map(drop)
    }

    /// Has an interface take in all multicast (packet(7)), for as long as this socket lives.
    pub fn hear_all(&self, interface: InterfaceIndex) -> io::Result<()> {
        // SAFETY: integers, for which all zero bytes are a value.
        let mut request: libc::packet_mreq = unsafe { mem::zeroed() };
        (request.mr_ifindex, request.mr_type) = (interface as i32, libc::PACKET_MR_ALLMULTI as u16);
        set_value(self.0.as_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, request)
    }
}

impl Routers {
    /// Opens both; a kernel without IPv6 has one.
    pub fn open() -> io::Result<Self> {
        let protocol = Some(Protocol::from(i32::from(PROTOCOL)));
        let v4 = Socket::new(Domain::IPV4, Type::RAW, protocol)?;
        v4.set_nonblocking(true)?;
        v4.set_multicast_loop_v4(false)?;
        v4.set_multicast_ttl_v4(u32::from(HOP_LIMIT))?;
        v4.set_ttl_v4(u32::from(HOP_LIMIT))?;
        v4.set_tos_v4(u32::from(TRAFFIC_CLASS))?;
        set_flag(v4.as_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO)?;
        // Else the packets of groups that any socket of this host has joined come here.
        clear_flag(v4.as_fd(), libc::IPPROTO_IP, libc::IP_MULTICAST_ALL)?;
        let v6 = match Socket::new(Domain::IPV6, Type::RAW, protocol) {
            Ok(socket) => Some(prepare_v6(socket)?),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }

    /// Both, for whoever waits.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.v4), self.v6.as_ref()].into_iter().flatten().map(Socket::as_fd)
    }

    fn of(&self, family: Family) -> io::Result<&Socket> {
        match family {
            Family::Ipv4 => Ok(&self.v4),
            Family::Ipv6 => self.v6.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
    }

    /// Hears a family's group on an interface. Twice is once.
    pub fn join(&self, family: Family, interface: InterfaceIndex) -> io::Result<()> {
        let joined = match family.group() {
            IpAddr::V4(group) => self.v4.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(interface)),
            IpAddr::V6(group) => self.of(family)?.join_multicast_v6(&group, interface),
        };
        match joined {
            Err(error) if error.raw_os_error() != Some(libc::EADDRINUSE) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Hears it no more.
    pub fn leave(&self, family: Family, interface: InterfaceIndex) -> io::Result<()> {
        match family.group() {
            IpAddr::V4(group) => self.v4.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(interface)),
            IpAddr::V6(group) => self.of(family)?.leave_multicast_v6(&group, interface),
        }
    }

    /// Hears questions for IPv6 addresses, and says so to switches (MLD). Twice is once.
    pub fn join_solicited(&self, group: Ipv6Addr, interface: InterfaceIndex) -> io::Result<()> {
        match self.of(Family::Ipv6)?.join_multicast_v6(&group, interface) {
            Err(error) if error.raw_os_error() != Some(libc::EADDRINUSE) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Hears them no more.
    pub fn leave_solicited(&self, group: Ipv6Addr, interface: InterfaceIndex) -> io::Result<()> {
        self.of(Family::Ipv6)?.leave_multicast_v6(&group, interface)
    }

    /// Sends an advertisement.
    pub fn send(&self, interface: InterfaceIndex, source: IpAddr, to: IpAddr, bytes: &[u8]) -> io::Result<()> {
        let socket = self.of(Family::of(source))?;
        let to: SockAddr = match to {
            IpAddr::V4(to) => std::net::SocketAddrV4::new(to, 0).into(),
            // The scope is for link-local addresses, of peers and of the group.
            IpAddr::V6(to) => SocketAddrV6::new(to, 0, 0, interface).into(),
        };
        let mut control = Control::default();
        match source {
            IpAddr::V4(source) => {
                let address = libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) };
                let info = libc::in_pktinfo { ipi_ifindex: interface as i32, ipi_spec_dst: address, ipi_addr: address };
                control.put(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            IpAddr::V6(source) => {
                let address = libc::in6_addr { s6_addr: source.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: interface };
                control.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: all zero bytes are a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.bytes.as_mut_ptr().cast(), control.length as _);
        // SAFETY: everything that the message points to lives across the call and has the lengths that it says; nothing
        // of it is written to.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next packet of a family; `None` where there is none now, or the family is not there.
    pub fn receive<'a>(&self, family: Family, buffer: &'a mut [u8; PACKET_MAX]) -> io::Result<Option<Received<'a>>> {
        let Ok(socket) = self.of(family) else { return Ok(None) };
        let mut control = Control::default();
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all zero bytes are a value of both.
        let (mut from, mut message): (libc::sockaddr_in6, libc::msghdr) = unsafe { mem::zeroed() };
        (message.msg_name, message.msg_namelen) = ((&raw mut from).cast(), size_of_val(&from) as u32);
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.bytes.as_mut_ptr().cast(), control.bytes.len() as _);
        // SAFETY: everything that the message points to lives across the call, is nobody else's, and has the lengths
        // that it says; the kernel writes an IPv4 or IPv6 address, which both fit.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
        if length < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        control.length = message.msg_controllen as _;
        let bytes = &buffer[..(length as usize).min(PACKET_MAX)];
        Ok(match family {
            Family::Ipv4 => of_v4(bytes, &control),
            Family::Ipv6 => of_v6(bytes, &control, Ipv6Addr::from(from.sin6_addr.s6_addr)),
        })
    }
}

fn prepare_v6(socket: Socket) -> io::Result<Socket> {
    socket.set_nonblocking(true)?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_multicast_hops_v6(u32::from(HOP_LIMIT))?;
    socket.set_unicast_hops_v6(u32::from(HOP_LIMIT))?;
    set_value(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_TCLASS, i32::from(TRAFFIC_CLASS))?;
    set_flag(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
    set_flag(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT)?;
    clear_flag(socket.as_fd(), libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL)?;
    Ok(socket)
}

/// include/uapi/linux/in6.h.
const IPV6_MULTICAST_ALL: i32 = 29;

/// Raw IPv4 sockets have the IP header in front.
fn of_v4<'a>(bytes: &'a [u8], control: &Control) -> Option<Received<'a>> {
    let header = usize::from(bytes.first()? & 15) * 4;
    let octets = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
    let info: libc::in_pktinfo = control.get(libc::IPPROTO_IP, libc::IP_PKTINFO)?;
    Some(Received {
        bytes: bytes.get(header.max(20)..)?,
        source: octets(12)?.into(),
        destination: octets(16)?.into(),
        interface: info.ipi_ifindex as u32,
        hop_limit: *bytes.get(8)?,
    })
}

fn of_v6<'a>(bytes: &'a [u8], control: &Control, source: Ipv6Addr) -> Option<Received<'a>> {
    let info: libc::in6_pktinfo = control.get(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)?;
    let hop_limit: i32 = control.get(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)?;
    Some(Received {
        bytes,
        source: source.into(),
        destination: Ipv6Addr::from(info.ipi6_addr.s6_addr).into(),
        interface: info.ipi6_ifindex,
        hop_limit: hop_limit as u8,
    })
}

/// Bytes of all control messages that are asked for, and more.
const CONTROL_MAX: usize = 128;
/// Bytes of a control message's head, which what it carries is aligned like.
const HEAD: usize = size_of::<libc::cmsghdr>();

/// Control messages of a packet (cmsg(3)).
#[repr(align(8))]
struct Control {
    bytes: [u8; CONTROL_MAX],
    length: usize,
}

impl Default for Control {
    fn default() -> Self {
        Self { bytes: [0; CONTROL_MAX], length: 0 }
    }
}

/// What control messages and options carry: plain integers, any bytes of which are a value.
trait Plain: Copy {}
impl Plain for libc::in_pktinfo {}
impl Plain for libc::in6_pktinfo {}
impl Plain for i32 {}
impl Plain for libc::packet_mreq {}

impl Control {
    /// The only message.
    fn put<T: Plain>(&mut self, level: i32, kind: i32, value: T) {
        const { assert!(HEAD + size_of::<T>() <= CONTROL_MAX) };
        // SAFETY: all zero bytes are a value.
        let mut head: libc::cmsghdr = unsafe { mem::zeroed() };
        (head.cmsg_level, head.cmsg_type) = (level, kind);
        head.cmsg_len = (HEAD + size_of::<T>()) as _;
        // SAFETY: both fit, as was asserted, and need no alignment.
        unsafe {
            ptr::write_unaligned(self.bytes.as_mut_ptr().cast(), head);
            ptr::write_unaligned(self.bytes.as_mut_ptr().add(HEAD).cast(), value);
        }
        self.length = (HEAD + size_of::<T>()).next_multiple_of(align_of::<libc::cmsghdr>());
    }

    fn get<T: Plain>(&self, level: i32, kind: i32) -> Option<T> {
        let mut rest = self.bytes.get(..self.length)?;
        while rest.len() >= HEAD {
            // SAFETY: so many bytes are there, and any are a value.
            let head: libc::cmsghdr = unsafe { ptr::read_unaligned(rest.as_ptr().cast()) };
            let length = head.cmsg_len as usize;
            let carried = rest.get(HEAD..length)?;
            if (head.cmsg_level, head.cmsg_type) == (level, kind) {
                // SAFETY: as above; `Plain` says that any bytes are a value.
                return (carried.len() >= size_of::<T>())
                    .then(|| unsafe { ptr::read_unaligned(carried.as_ptr().cast()) });
            }
            rest = rest.get(length.next_multiple_of(align_of::<libc::cmsghdr>())..)?;
        }
        None
    }
}

fn set_flag(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<()> {
    set_value(socket, level, name, 1)
}

fn clear_flag(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<()> {
    set_value(socket, level, name, 0)
}

/// The options that no library in use has.
fn set_value<T: Plain>(socket: BorrowedFd<'_>, level: i32, name: i32, value: T) -> io::Result<()> {
    let length = size_of_val(&value) as u32;
    // SAFETY: the value lives across the call and has the length that is said.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
