//! The system calls that no library in use offers safely. All `unsafe` of this module is here.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
    time::Duration,
};

/// An interface name as the kernel's `struct ifreq` holds it: at most 15 bytes, then NULs.
#[derive(Clone, Copy)]
pub struct InterfaceName([u8; libc::IFNAMSIZ]);

impl InterfaceName {
    /// None if the name is empty, too long or contains a NUL.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; libc::IFNAMSIZ];
        if name.is_empty() || name.len() >= bytes.len() || name.contains('\0') {
            return None;
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }

    fn request(self) -> libc::ifreq {
        // SAFETY: `ifreq` is plain data of the C ABI, for which all zero bytes are a value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.0) {
            *to = from as libc::c_char;
        }
        request
    }
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct EthtoolDriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus_info: [u8; 32],
    expansion_rom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}
const _: () = assert!(size_of::<EthtoolDriverInfo>() == 196);

/// The ethtool commands that carry a `struct ethtool_value`: sends `data`, returns what the kernel left there.
pub fn ethtool_value(socket: BorrowedFd<'_>, name: InterfaceName, command: u32, data: u32) -> io::Result<u32> {
    debug_assert_ne!(command, ETHTOOL_GDRVINFO, "that one writes more than a value");
    let mut value = EthtoolValue { command, data };
    let mut request = name.request();
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut value).cast();
    // SAFETY: `request` and the value it points to live across the call, and callers pass only commands whose
    // argument is a `struct ethtool_value` (see `ethtool`), so the kernel writes nothing beyond it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) })?;
    Ok(value.data)
}

const ETHTOOL_GDRVINFO: u32 = 3;

/// The name of an interface's driver.
pub fn ethtool_driver(socket: BorrowedFd<'_>, name: InterfaceName) -> io::Result<String> {
    // SAFETY: integers and arrays of them, for which all zero bytes are a value.
    let mut info: EthtoolDriverInfo = unsafe { mem::zeroed() };
    info.command = ETHTOOL_GDRVINFO;
    let mut request = name.request();
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut info).cast();
    // SAFETY: `request` and the structure it points to live across the call; its layout is the kernel's for this
    // command (size asserted above).
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) })?;
    Ok(until_nul(&info.driver))
}

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
#[derive(Default)]
pub struct EthtoolChannels {
    command: u32,
    /// Most queues that there can be: for what comes in, what goes out, anything else, and both.
    pub most: [u32; 4],
    /// Queues that there are, in the same order.
    pub now: [u32; 4],
}
const _: () = assert!(size_of::<EthtoolChannels>() == 36);

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// The queues of an interface.
pub fn ethtool_channels(socket: BorrowedFd<'_>, name: InterfaceName) -> io::Result<EthtoolChannels> {
    let mut channels = EthtoolChannels { command: ETHTOOL_GCHANNELS, ..EthtoolChannels::default() };
    let mut request = name.request();
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut channels).cast();
    // SAFETY: `request` and the structure it points to live across the call; its layout is the kernel's for this
    // command (size asserted above).
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) })?;
    Ok(channels)
}

/// The name of an interface by index, in the namespace of `socket`.
pub fn interface_name(socket: BorrowedFd<'_>, index: u32) -> io::Result<String> {
    let mut request = InterfaceName([0; libc::IFNAMSIZ]).request();
    request.ifr_ifru.ifru_ifindex = index as libc::c_int;
    // SAFETY: `request` lives across the call, which reads the index and writes the name, both inside it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME as _, &mut request) })?;
    Ok(until_nul(&request.ifr_name.map(|byte| byte as u8)))
}

/// Moves the calling thread, and no other, into a network namespace.
pub fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is open for as long as it is borrowed.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

/// The number of the network namespace that a socket belongs to. No other gets it while the machine runs
/// (`SO_NETNS_COOKIE`, Linux 5.14), unlike the inode, which is reused at once.
pub fn network_namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers describe `cookie` and `length`, which live across the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    })?;
    Ok(cookie)
}

/// Asks for a receive buffer of so many bytes, beyond `net.core.rmem_max` where privileges allow.
pub fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let set = |option| {
        let value = bytes as libc::c_int;
        // SAFETY: the pointer and length describe `value`, which lives across the call.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                ptr::from_ref(&value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        })
    };
    set(libc::SO_RCVBUFFORCE).or_else(|_| set(libc::SO_RCVBUF))?;
    Ok(())
}

/// Waits until `fd` can be read; false after `timeout`.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // Rounded up, so that a short wait is not a busy loop.
    let milliseconds = timeout.as_micros().div_ceil(1000).try_into().unwrap_or(libc::c_int::MAX);
    // SAFETY: one `pollfd`, which lives across the call.
    match check(unsafe { libc::poll(&mut poll, 1, milliseconds) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        other => Ok(other? > 0),
    }
}

/// A control message buffer, aligned as `cmsghdr` wants it; large enough for the one message of 20 bytes.
#[repr(align(8))]
struct ControlBuffer([u8; 64]);

/// Receives one notification: its length, and the namespace id it comes from, if that is not the socket's own.
/// `NETLINK_LISTEN_ALL_NSID` must be set. A longer notification is cut to `buffer`.
pub fn receive_notification(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut control = ControlBuffer([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `msghdr` is plain data of the C ABI, for which all zero bytes are a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: `message` points to `part`, `buffer` and `control`, all of the stated lengths and alive across the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;

    // SAFETY: the kernel set `msg_controllen` to what it wrote into `control`, which is aligned and alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a whole header within `control`.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if level == libc::SOL_NETLINK && kind == libc::NETLINK_LISTEN_ALL_NSID {
            // SAFETY: this message carries one `int` (`netlink_cmsg_listen_all_nsid`); reading allows any alignment.
            let id = unsafe { libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned() };
            return Ok((length, Some(id)));
        }
        // SAFETY: `message` and `header` are as the kernel and `CMSG_FIRSTHDR` left them.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok((length, None))
}

fn until_nul(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
