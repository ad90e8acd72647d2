//! The system calls of the driver: the one place with `unsafe`. Nothing here decides anything, and nothing allocates.

#![expect(
    unsafe_code,
    reason = "socket options with control messages, ppoll and scheduling have no safe wrapper in std"
)]

use std::{
    io,
    mem::{self, MaybeUninit},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

use crate::announce::bfd::machine::Interface;

/// Octets of a datagram that are read. Control packets have 24; the rest only tells that a datagram is longer.
pub const PAYLOAD_BYTES_MAX: usize = 64;
/// Octets of control messages that are read: two integers and the packet information of either family, with headers.
const CONTROL_BYTES_MAX: usize = 128;
/// DSCP CS6, network control, as the TOS octet.
const TOS_NETWORK_CONTROL: libc::c_int = 0xc0;
/// The highest priority that the queues of an interface know without privileges.
const SOCKET_PRIORITY: libc::c_int = 6;
/// Octets that may wait at a receiving socket: with the kernel's overhead some thousand packets, more than all sessions
/// send while the thread sleeps longest.
const RECEIVE_BUFFER_BYTES: libc::c_int = 2 * 1024 * 1024;

pub use crate::announce::driver::boot_time;

/// An eventfd that does not block.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: `fd` was opened just now and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Wakes who polls the eventfd.
pub fn wake(eventfd: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: eight octets are read from a u64. A full counter wakes as well: the result says nothing.
    unsafe { libc::write(eventfd.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
}

/// Takes the wake-ups away.
pub fn drain(eventfd: &OwnedFd) {
    let mut count = 0_u64;
    // SAFETY: eight octets are written to a u64. An empty counter is fine: the result says nothing.
    unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
}

/// The descriptors that the thread waits for.
#[derive(Debug)]
pub struct Poller<const N: usize> {
    fds: [libc::pollfd; N],
}

impl<const N: usize> Poller<N> {
    /// To begin with.
    #[must_use]
    pub const fn waiting_for_none() -> Self {
        Self { fds: [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; N] }
    }

    /// From here on the place waits for that descriptor.
    pub fn set(&mut self, place: usize, fd: &OwnedFd) {
        self.fds[place].fd = fd.as_raw_fd();
    }

    /// From here on the place waits for nothing.
    pub const fn clear(&mut self, place: usize) {
        self.fds[place].fd = -1;
    }

    /// Waits until something can be read, or so long.
    pub fn wait(&mut self, timeout: Duration) {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        for fd in &mut self.fds {
            fd.revents = 0;
        }
        // SAFETY: the array has N entries and lives as long as the call, like `timeout`; no signal mask is given.
        // After a signal nothing is readable, and the caller comes again.
        unsafe { libc::ppoll(self.fds.as_mut_ptr(), N as libc::nfds_t, &raw const timeout, ptr::null()) };
    }

    /// Whether something can be read there, or has failed.
    #[must_use]
    pub const fn is_ready(&self, place: usize) -> bool {
        self.fds[place].revents != 0
    }
}

/// A socket address of either family, in the kernel's form.
#[derive(Clone, Copy)]
pub struct SocketAddress {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl SocketAddress {
    /// `scope` is the interface of a link-local address, else 0.
    #[must_use]
    pub fn new(address: IpAddr, port: u16, scope: u32) -> Self {
        // SAFETY: sockaddr_storage is plain data, for which all zeros is a value.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let length = match address {
            IpAddr::V4(address) => {
                let name = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: port.to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is made to hold, and aligned for, an address of any family.
                unsafe { ptr::write((&raw mut storage).cast(), name) };
                size_of::<libc::sockaddr_in>()
            }
            IpAddr::V6(address) => {
                let name = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: port.to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: address.octets() },
                    sin6_scope_id: scope,
                };
                // SAFETY: as above.
                unsafe { ptr::write((&raw mut storage).cast(), name) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self { storage, length: length as libc::socklen_t }
    }
}

/// What a new UDP socket is for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Packets are received at a port, at all addresses.
    Receive,
    /// Packets are sent from an address, by one interface or any.
    Send(Option<Interface>),
}

/// Opens a UDP socket that does not block. SO_REUSEADDR is never set: with it another process could take the port and
/// the packets, and nobody would know.
pub fn open(address: IpAddr, port: u16, purpose: Purpose) -> io::Result<OwnedFd> {
    let (family, level) = match address {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_IP),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_IPV6),
    };
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(family, kind, libc::IPPROTO_UDP) })?;
    // SAFETY: `fd` was opened just now and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if address.is_ipv6() {
        set(&socket, level, libc::IPV6_V6ONLY, 1)?;
    }
    let mut scope = 0;
    match (purpose, address) {
        (Purpose::Receive, IpAddr::V4(_)) => {
            set(&socket, level, libc::IP_RECVTTL, 1)?;
            set(&socket, level, libc::IP_PKTINFO, 1)?;
            set_receive_buffer(&socket)?;
        }
        (Purpose::Receive, IpAddr::V6(_)) => {
            set(&socket, level, libc::IPV6_RECVHOPLIMIT, 1)?;
            set(&socket, level, libc::IPV6_RECVPKTINFO, 1)?;
            set_receive_buffer(&socket)?;
        }
        (Purpose::Send(interface), _) => {
            let (ttl, tos) = match address {
                IpAddr::V4(_) => (libc::IP_TTL, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPV6_UNICAST_HOPS, libc::IPV6_TCLASS),
            };
            //= rfc5881#5:ttl-sent MUST: packets leave with TTL 255
            set(&socket, level, ttl, 255)?;
            set(&socket, level, tos, TOS_NETWORK_CONTROL)?;
            set(&socket, libc::SOL_SOCKET, libc::SO_PRIORITY, SOCKET_PRIORITY)?;
            // Nothing is received here.
            set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 0)?;
            if let Some(interface) = interface {
                scope = interface.get();
                //= rfc5881#6:one-hop-path MUST: single-hop packets leave by the link that they watch
                set(&socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, scope as libc::c_int)?;
            }
        }
    }
    let name = SocketAddress::new(address, port, scope);
    // SAFETY: the address lives as long as the call and has the length given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const name.storage).cast(), name.length) })?;
    Ok(socket)
}

/// Sends a datagram, or says why not. Never waits.
pub fn send(socket: &OwnedFd, payload: &[u8], to: &SocketAddress) -> io::Result<()> {
    // SAFETY: both buffers live as long as the call and have the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            payload.as_ptr().cast(),
            payload.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            (&raw const to.storage).cast(),
            to.length,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What came with a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Octets of the payload in the buffer.
    pub length: usize,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: Option<IpAddr>,
    /// The interface that it came by.
    pub interface: Option<Interface>,
    /// Its TTL or hop limit.
    pub ttl: Option<u8>,
}

/// Control messages want the alignment of their header.
#[repr(C, align(8))]
struct ControlBuffer([MaybeUninit<u8>; CONTROL_BYTES_MAX]);

/// Takes one datagram. `None` where there is none.
pub fn receive(socket: &OwnedFd, payload: &mut [u8; PAYLOAD_BYTES_MAX]) -> Option<Arrival> {
    // SAFETY: sockaddr_storage and msghdr are plain data, for which all zeros is a value.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = ControlBuffer([const { MaybeUninit::uninit() }; CONTROL_BYTES_MAX]);
    let mut part = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of_val(&name) as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES_MAX as _;
    // SAFETY: all buffers that the header points to live as long as the call and have the lengths given.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(length).ok()?;
    let source = address_of(&name)?;
    let mut arrival = Arrival { length, source, destination: None, interface: None, ttl: None };
    // SAFETY: the kernel has filled the header in, and its control buffer is still there.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header that CMSG_FIRSTHDR or CMSG_NXTHDR returns lies wholly in the control buffer and is aligned.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        // SAFETY: as above, and the kernel has written a whole value of the message's type behind it.
        unsafe { arrival.take(level, kind, libc::CMSG_DATA(header)) };
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Some(arrival)
}

impl Arrival {
    /// # Safety
    ///
    /// `data` points to a value of the type that the kernel uses for messages of this level and kind.
    unsafe fn take(&mut self, level: libc::c_int, kind: libc::c_int, data: *const u8) {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                // SAFETY: both are an int; it need not be aligned.
                self.ttl = u8::try_from(unsafe { data.cast::<libc::c_int>().read_unaligned() }).ok();
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: this is an in_pktinfo; it need not be aligned.
                let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                self.destination = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into());
                self.interface = Interface::new(info.ipi_ifindex.unsigned_abs());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: this is an in6_pktinfo; it need not be aligned.
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                self.destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                self.interface = Interface::new(info.ipi6_ifindex);
            }
            _ => {}
        }
    }
}

/// Gives the calling thread a real-time priority, and asks for exact wake-ups also where that is not allowed.
pub fn make_realtime(priority: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers are passed. A kernel that refuses wakes a little later: the result says nothing.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) };
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: `parameters` lives as long as the call; 0 is the calling thread.
    let result =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    check(result).map(drop)
}

/// Processor time of the calling thread.
#[must_use]
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that lives as long as the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn address_of(name: &libc::sockaddr_storage) -> Option<IpAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in, and sockaddr_storage is aligned for it.
            let name = unsafe { *ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is a sockaddr_in6, and sockaddr_storage is aligned for it.
            let name = unsafe { *ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(name.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// As large as is allowed: without privileges the kernel keeps to its own limit.
fn set_receive_buffer(socket: &OwnedFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        .or_else(|_| set(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER_BYTES))
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value lives as long as the call and has the length given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    check(result).map(drop)
}

fn check(result: libc::c_int) -> io::Result<RawFd> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
