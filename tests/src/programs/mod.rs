//! The real programs that tests send through the data plane. Each scenario takes its target's address, so that it
//! can be run against a pod directly, which shows that the scenario itself works, and against a VIP.

pub mod bird;
pub mod bulk;
pub mod conversation;
pub mod echo;
pub mod keepalived;
pub mod prober;
pub mod snmp;
pub mod telemetry;
pub mod tshark;

use std::{fs, io, net::IpAddr, path::Path, time::Duration};

/// How long a program may take to be ready, and a message to arrive. Generous: test machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An IPv6 address as programs want it before a port.
fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// Makes a directory inside the lab's, unless it is there. The lab's own is never made again: it may be going.
fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
