//! tshark: another reader of everything that is sent. Frames are taken by a packet socket of our own, so that what the
//! sender's end says of itself is left out, and handed over in a file.

use std::{
    ffi::CString,
    fs, io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};

use crate::lab::{Namespace, require_program};

/// A frame, and when it came by the wall clock, which is what the file's format has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Since 1970.
    pub at: Duration,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// Takes all frames that come to an interface, until it is stopped.
pub struct Capture {
    stops: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<Frame>>>,
}

/// Longest frame: what receive offload may make of several.
const FRAME_MAX: usize = 1 << 17;
/// Frames of one capture.
const FRAMES_MAX: usize = 100_000;
/// How long the thread waits for a frame before it looks whether it is to stop.
const LOOK_INTERVAL_MICROS: i64 = 20_000;
/// Octets that may wait at the socket.
const BUFFER_BYTES: i32 = 16 << 20;

impl Capture {
    /// From here on.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let name = CString::new(interface)?;
        let socket = namespace.run(|| open(&name)).with_context(|| format!("cannot capture at {interface}"))?;
        let stops = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stops);
        let thread = std::thread::Builder::new().name("capture".into()).spawn(move || take_all(&socket, &told))?;
        Ok(Self { stops, thread })
    }

    /// What has come.
    ///
    /// # Errors
    /// Those of the socket.
    ///
    /// # Panics
    /// Where the thread did.
    pub fn stop(self) -> Result<Vec<Frame>> {
        self.stops.store(true, Ordering::Relaxed);
        Ok(self.thread.join().expect("it does not panic")?)
    }
}

fn open(interface: &CString) -> io::Result<OwnedFd> {
    // SAFETY: a name that ends in a NUL.
    let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
    // SAFETY: takes no memory. Without a protocol nothing comes before it is bound.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if index == 0 || socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let wait = libc::timeval { tv_sec: 0, tv_usec: LOOK_INTERVAL_MICROS };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &wait)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER_BYTES)?;
    // Groups too, which no socket of this end has joined.
    // SAFETY: integers, for which zero is a value.
    let mut member: libc::packet_mreq = unsafe { mem::zeroed() };
    (member.mr_ifindex, member.mr_type) = (index as i32, libc::PACKET_MR_PROMISC as u16);
    set(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member)?;
    // SAFETY: integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: the address lives across the call and has the length that is said.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn set<T: Copy>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of_val(value) as u32;
    // SAFETY: the value lives across the call and has the length that is said.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn take_all(socket: &OwnedFd, stops: &AtomicBool) -> io::Result<Vec<Frame>> {
    let (mut frames, mut buffer) = (Vec::new(), vec![0; FRAME_MAX]);
    while frames.len() < FRAMES_MAX {
        // SAFETY: integers, for which zero is a value.
        let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut from_length = size_of_val(&from) as u32;
        let (to, length, name) = (buffer.as_mut_ptr().cast(), buffer.len(), (&raw mut from).cast());
        // SAFETY: buffer and address live across the call and have the lengths that are said.
        let taken = unsafe { libc::recvfrom(socket.as_raw_fd(), to, length, 0, name, &raw mut from_length) };
        if taken < 0 {
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock if stops.load(Ordering::Relaxed) => break,
                io::ErrorKind::WouldBlock => continue,
                _ => return Err(error),
            }
        }
        if from.sll_pkttype != libc::PACKET_OUTGOING {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            frames.push(Frame { at, bytes: buffer[..taken as usize].to_vec() });
        }
    }
    Ok(frames)
}

/// A file of frames in the form that every reader of packets takes: that of libpcap, microseconds, Ethernet.
fn pcap(frames: &[Frame]) -> Vec<u8> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    const VERSION: [u16; 2] = [2, 4];
    const ETHERNET: u32 = 1;
    let mut file = MAGIC.to_ne_bytes().to_vec();
    file.extend(VERSION.map(u16::to_ne_bytes).concat());
    // Time zone, accuracy, longest frame, link.
    file.extend([0, 0, FRAME_MAX as u32, ETHERNET].map(u32::to_ne_bytes).concat());
    for Frame { at, bytes } in frames {
        let length = bytes.len() as u32;
        file.extend([at.as_secs() as u32, at.subsec_micros(), length, length].map(u32::to_ne_bytes).concat());
        file.extend(bytes);
    }
    file
}

/// What finds fault. Checksums are looked at, too, which tshark leaves alone by itself: senders' interfaces often do them.
const FAULTS: &str = "_ws.malformed || _ws.expert.severity == error || ip.checksum.status == Bad || \
                      tcp.checksum.status == Bad || udp.checksum.status == Bad || icmpv6.checksum.status == Bad || \
                      vrrp.checksum.status == Bad";
const PREFERENCES: &[&str] = &[
    "ip.check_checksum:TRUE",
    "tcp.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
    "vrrp.v3_checksum_as_in_v2:FALSE",
];

/// Frames as tshark reads them.
pub struct Dissection {
    file: PathBuf,
}

impl Dissection {
    /// Of these frames, in a file of the directory.
    ///
    /// # Errors
    /// The file cannot be written, or tshark is not there.
    pub fn new(frames: &[Frame], directory: &Path, name: &str) -> Result<Self> {
        require_program("tshark", "tshark")?;
        let file = directory.join(name).with_extension("pcap");
        fs::write(&file, pcap(frames)).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { file })
    }

    /// One line for each frame with a fault.
    ///
    /// # Errors
    /// Those of tshark.
    pub fn faults(&self) -> Result<Vec<String>> {
        self.matching(FAULTS)
    }

    /// One line for each frame that a display filter lets through.
    ///
    /// # Errors
    /// Those of tshark, such as a filter that it does not understand.
    pub fn matching(&self, filter: &str) -> Result<Vec<String>> {
        let mut command = Command::new("tshark");
        command.arg("-n").arg("-r").arg(&self.file).args(["-Y", filter]);
        for preference in PREFERENCES {
            command.args(["-o", preference]);
        }
        let output = command.output().context("cannot start tshark")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tshark with {filter:?} failed: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// Nothing has a fault, and each kind of frame is there: what it is, and the display filter that lets it through.
    ///
    /// # Errors
    /// All faults, or all kinds that are not there.
    pub fn check(&self, kinds: &[(&str, &str)]) -> Result<()> {
        let faults = self.faults()?;
        ensure!(faults.is_empty(), "tshark finds fault with\n{}", faults.join("\n"));
        let mut missing = Vec::new();
        for (what, filter) in kinds {
            let count = self.matching(filter)?.len();
            eprintln!("{count:>5} {what}");
            if count == 0 {
                missing.push(format!("{what} ({filter})"));
            }
        }
        let all = || self.matching("").map(|lines| lines.join("\n")).unwrap_or_default();
        ensure!(missing.is_empty(), "never sent: {}, in\n{}", missing.join(", "), all());
        Ok(())
    }
}
