//! The TCP sockets of BGP with the options that it needs. All `unsafe` of the driver is here.

use std::{
    collections::BTreeMap,
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::wanted::{Interface, SECRET_OCTETS_MAX, Secret, Ttl};
use crate::announce::bgp::values::is_link_local;

/// DSCP CS6, what routers give to routing protocols (RFC 4594, 3.2).
const TRAFFIC_CLASS: u8 = 0xc0;
/// Connections that wait to be accepted: a few for each peer of an address.
const BACKLOG: i32 = 64;
/// What a listening socket sends (RFC 5082, 3): its SYN-ACK is dropped by a peer with GTSM otherwise.
const TTL_MAX: u8 = 255;
/// include/uapi/linux/in6.h.
const IPV6_MINHOPCOUNT: i32 = 73;

/// `struct tcp_md5sig` of include/uapi/linux/tcp.h.
#[repr(C)]
struct Md5Key {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: i32,
    key: [u8; SECRET_OCTETS_MAX],
}

const _: () = assert!(size_of::<Md5Key>() == 216);

/// With the interface, where the address needs it.
pub fn socket_address(address: IpAddr, port: u16, interface: Option<Interface>) -> SocketAddr {
    match address {
        IpAddr::V6(v6) if is_link_local(v6) => {
            SocketAddrV6::new(v6, port, 0, interface.map_or(0, Interface::get)).into()
        }
        IpAddr::V4(_) | IpAddr::V6(_) => SocketAddr::new(address, port),
    }
}

/// The address that the kernel sends from towards another. Nothing is sent.
pub fn local_towards(remote: SocketAddr) -> io::Result<IpAddr> {
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.connect(&remote.into())?;
    Ok(address_of(&socket.local_addr()?)?.ip())
}

/// A socket that listens at one address, which nobody else may have: without SO_REUSEPORT. The keys are there before
/// the first connection can come.
pub fn listen(at: SocketAddr, keys: &BTreeMap<IpAddr, Secret>, least_ttl: u8) -> io::Result<Socket> {
    let socket = stream(at)?;
    // What is left of earlier connections does not keep us from listening; who listens does.
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    set_ttl(&socket, at.ip(), TTL_MAX)?;
    set_least_ttl(&socket, at.ip(), least_ttl)?;
    for (remote, key) in keys {
        set_key(&socket, *remote, Some(key))?;
    }
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Begins to connect.
pub fn dial(from: Option<SocketAddr>, to: SocketAddr, ttl: Ttl, password: Option<&Secret>) -> io::Result<Socket> {
    let socket = stream(to)?;
    restrict(&socket, to.ip(), ttl)?;
    if let Some(password) = password {
        set_key(&socket, to.ip(), Some(password))?;
    }
    if let Some(from) = from {
        socket.bind(&from.into())?;
    }
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        Ok(()) | Err(_) => Ok(socket),
    }
}

/// The next connection that has come, and where from.
pub fn accept(listener: &Socket) -> io::Result<Option<(Socket, SocketAddr)>> {
    match listener.accept() {
        Ok((socket, from)) => {
            socket.set_nonblocking(true)?;
            Ok(Some((socket, address_of(&from)?)))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// What an accepted connection needs beside what the listening socket had.
pub fn prepare_accepted(socket: &Socket, from: IpAddr, ttl: Ttl) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    restrict(socket, from, ttl)
}

/// Whether a dial has succeeded; an error where it has failed.
pub fn is_connected(socket: &Socket) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends what goes without waiting; None where nothing does. A peer that is gone is an error and no signal.
pub fn send(socket: &Socket, octets: &[u8]) -> io::Result<Option<usize>> {
    match socket.send_with_flags(octets, libc::MSG_NOSIGNAL) {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets or removes the key that segments to and from an address are signed with (RFC 2385).
pub fn set_key(socket: &Socket, remote: IpAddr, key: Option<&Secret>) -> io::Result<()> {
    // SAFETY: all zero bytes are a value.
    let mut value: Md5Key = unsafe { mem::zeroed() };
    value.address = *storage(remote);
    if let Some(key) = key {
        let octets = key.octets();
        value.key_length = octets.len() as u16;
        value.key[..octets.len()].copy_from_slice(octets);
    }
    //= rfc2385#2.0:signed MUST: every segment between the two carries a signature, or is dropped
    match set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_MD5SIG, &value) {
        // There was none to remove.
        Err(error) if key.is_none() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

/// Our end, or the other one, of a socket.
pub fn address_of(address: &SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// What the kernel says, in lower case and without its number.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string().to_lowercase();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn stream(of: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(of), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match of {
        SocketAddr::V4(_) => socket.set_tos_v4(TRAFFIC_CLASS.into())?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_tclass_v6(TRAFFIC_CLASS.into())?;
        }
    }
    Ok(socket)
}

fn set_ttl(socket: &Socket, family: IpAddr, ttl: u8) -> io::Result<()> {
    match family {
        IpAddr::V4(_) => socket.set_ttl_v4(ttl.into()),
        IpAddr::V6(_) => socket.set_unicast_hops_v6(ttl.into()),
    }
}

/// How far packets go, and from how far they may come.
fn restrict(socket: &Socket, remote: IpAddr, ttl: Ttl) -> io::Result<()> {
    set_ttl(socket, remote, ttl.sent())?;
    set_least_ttl(socket, remote, ttl.least_received())
}

/// From how far packets may come; 0 for anywhere.
pub fn set_least_ttl(socket: &Socket, family: IpAddr, least: u8) -> io::Result<()> {
    let (level, name) = match family {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT),
    };
    //= rfc5082#3:received MUST: packets of a peer with GTSM that came from further away than it is are dropped
    set_option(socket.as_fd(), level, name, &i32::from(least))
}

fn storage(address: IpAddr) -> Box<libc::sockaddr_storage> {
    // SAFETY: all zero bytes are a value.
    let mut storage: Box<libc::sockaddr_storage> = Box::new(unsafe { mem::zeroed() });
    match address {
        IpAddr::V4(address) => {
            // SAFETY: the storage is large and aligned enough for any socket address, and is nobody else's.
            let v4 = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in>() };
            v4.sin_family = libc::AF_INET as u16;
            v4.sin_addr.s_addr = u32::from_ne_bytes(Ipv4Addr::octets(&address));
        }
        IpAddr::V6(address) => {
            // SAFETY: as above.
            let v6 = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in6>() };
            v6.sin6_family = libc::AF_INET6 as u16;
            v6.sin6_addr.s6_addr = Ipv6Addr::octets(&address);
        }
    }
    storage
}

/// The options that no library in use has.
fn set_option<T>(socket: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let (start, length) = ((&raw const *value).cast(), size_of::<T>() as u32);
    // SAFETY: the value lives across the call and has the length that is said; the kernel only reads it.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, start, length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
