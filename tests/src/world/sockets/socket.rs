//! What the standard library's sockets don't do: connect from a chosen port, hear nothing, name a namespace.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    mem::zeroed,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Lets this process have as many descriptors as it may.
pub(crate) fn allow_many() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit lives across the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

/// Gives this thread's network namespace an id in itself, as a veth's peer would have one (`RTM_NEWNSID`,
/// include/uapi/linux/net_namespace.h).
pub(super) fn name_own_namespace(id: u32) {
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    let own = File::open("/proc/thread-self/ns/net").expect("the kernel's own file");
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    assert!(fd >= 0, "a netlink socket: {}", io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else owns.
    let mut netlink = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let attribute =
        |kind: u16, value: u32| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_ne_bytes()].concat();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    // Header: length, type, flags, sequence, port; then the family and its padding.
    let header = [&36u32.to_ne_bytes()[..], &libc::RTM_NEWNSID.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], &[0; 4]];
    let attributes = [attribute(NETNSA_NSID, id), attribute(NETNSA_FD, own.as_raw_fd() as u32)];
    netlink.write_all(&[header.concat(), attributes.concat()].concat()).expect("netlink takes it");
    let mut answer = [0; 64];
    let length = netlink.read(&mut answer).expect("netlink answers");
    // The error stands behind the answer's header; 0 acknowledges.
    assert!(length >= 20 && answer[16..20] == [0; 4], "netlink refuses: {:?}", &answer[..length]);
}

/// A socket at a client's address and port, which may have others.
pub(crate) fn bound(at: SocketAddr) -> TcpStream {
    let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "a socket: {}", io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { TcpStream::from_raw_fd(fd) };
    set(&socket, libc::SO_REUSEADDR, &1i32);
    let (address, length) = raw(at);
    // SAFETY: the address lives across the call and is at least as long as it says.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(result, 0, "binding to {at}: {}", io::Error::last_os_error());
    socket
}

/// Connects a bound socket.
pub(crate) fn connect(socket: &TcpStream, to: SocketAddr) -> io::Result<()> {
    let (address, length) = raw(to);
    // SAFETY: the address lives across the call and is at least as long as it says.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From now on every segment to the socket is lost: a filter in front of the protocol takes none.
pub(super) fn deafen(socket: &TcpStream) {
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut filter = [libc::sock_filter { code, jt: 0, jf: 0, k: 0 }];
    set(socket, libc::SO_ATTACH_FILTER, &libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() });
}

fn set<T>(socket: &TcpStream, option: i32, value: &T) {
    let (level, length) = (libc::SOL_SOCKET, size_of::<T>() as libc::socklen_t);
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the value lives across the call, and has the option's type as both callers see to.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) };
    assert_eq!(result, 0, "socket option {option}: {}", io::Error::last_os_error());
}

fn raw(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: plain integers, for which zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let length = match address {
        SocketAddr::V4(v4) => {
            let to = (&raw mut storage).cast::<libc::sockaddr_in>();
            let sin_addr = libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) };
            let (sin_family, sin_port) = (libc::AF_INET as u16, v4.port().to_be());
            // SAFETY: the storage is large enough for every family's address, and aligned for it.
            unsafe { to.write(libc::sockaddr_in { sin_family, sin_port, sin_addr, sin_zero: [0; 8] }) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let to = (&raw mut storage).cast::<libc::sockaddr_in6>();
            let sin6_addr = libc::in6_addr { s6_addr: v6.ip().octets() };
            let (sin6_family, sin6_port) = (libc::AF_INET6 as u16, v6.port().to_be());
            let rest = libc::sockaddr_in6 { sin6_family, sin6_port, sin6_flowinfo: 0, sin6_addr, sin6_scope_id: 0 };
            // SAFETY: as above.
            unsafe { to.write(rest) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}
