//! Frames as they are on the wire, for what no program sends, and none receives.

use std::{
    ffi::CString,
    io, mem,
    net::UdpSocket,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::Namespace;

/// The longest frame that a tap takes: of an MTU of 1500, with two VLAN tags.
const FRAME_MAX: usize = 1522;

impl Namespace {
    /// Sends a frame out of an interface.
    pub fn send_frame(&self, interface: &str, frame: &[u8]) -> Result<()> {
        let name = CString::new(interface)?;
        self.run(|| send(&name, frame)).with_context(|| format!("a frame out of {interface}"))
    }

    /// Hears what comes in at an interface by this protocol, whoever it is for.
    pub fn tap(&self, interface: &str, ethertype: u16) -> Result<Tap> {
        let name = CString::new(interface)?;
        self.run(|| tap(&name, ethertype)).with_context(|| format!("a tap at {interface}"))
    }
}

/// A packet socket that hears an interface.
#[derive(Debug)]
pub struct Tap(UdpSocket);

impl Tap {
    /// The next frame that came in, if one does before `deadline`.
    pub fn receive(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let rest = deadline.saturating_duration_since(Instant::now());
        // None is for ever, and it may not be zero.
        self.0.set_read_timeout(Some(rest.max(Duration::from_micros(1))))?;
        let mut frame = vec![0; FRAME_MAX];
        match self.0.recv(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn tap(interface: &CString, ethertype: u16) -> io::Result<Tap> {
    let (socket, mut address) = packet_socket(interface)?;
    address.sll_protocol = ethertype.to_be();
    let (to, length) = ((&raw const address).cast(), size_of_val(&address) as u32);
    // SAFETY: the address lives across the call and has the length that is said.
    if unsafe { libc::bind(socket.as_raw_fd(), to, length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Receives with a time limit like any other socket of datagrams.
    Ok(Tap(UdpSocket::from(socket)))
}

impl Namespace {
    /// Waits for a frame on an interface, coming or going.
    pub fn hear_frame(
        &self,
        interface: &str,
        limit: Duration,
        wanted: impl Fn(&[u8]) -> bool + Send,
    ) -> Result<Vec<u8>> {
        let name = CString::new(interface)?;
        self.run(|| hear(&name, limit, wanted)).with_context(|| format!("no such frame on {interface}"))
    }
}

fn hear(interface: &CString, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    // SAFETY: as below.
    let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
    let every = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(every))?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [mem::MaybeUninit::uninit(); 2048];
        let (length, from) = socket.recv_from(&mut buffer)?;
        // SAFETY: a socket of packets names them by `sockaddr_ll`, which is no longer than the storage.
        let came_by = unsafe { (*from.as_ptr().cast::<libc::sockaddr_ll>()).sll_ifindex };
        // SAFETY: the kernel has written so many bytes.
        let frame: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        if came_by == index as i32 && wanted(&frame) {
            return Ok(frame);
        }
    }
}

fn send(interface: &CString, frame: &[u8]) -> io::Result<()> {
    let (socket, address) = packet_socket(interface)?;
    let (to, length) = ((&raw const address).cast(), size_of_val(&address) as u32);
    // SAFETY: frame and address live across the call and have the lengths that are said.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, length) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket that hears nothing yet, and the address of an interface.
fn packet_socket(interface: &CString) -> io::Result<(OwnedFd, libc::sockaddr_ll)> {
    // SAFETY: a name that ends in a NUL.
    let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
    // SAFETY: takes no memory.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if index == 0 || socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    Ok((socket, address))
}
