//! What the agent and its helper say to each other: a length of four bytes, then a message.
//!
//! One request at a time, each with one answer; long lists come in parts. Every message has a limit, whoever sends it.

use std::{
    io::{self, Read, Write},
    net::IpAddr,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::net::{
    self, InterfaceIndex, NetnsId,
    loopback::Raised,
    processes::Holder,
    sockets::{Connection, Listeners},
};

/// The longest message. The longest request names every port, in three bytes each.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Connections in one part of a list; each takes at most 45 bytes.
pub const CONNECTIONS_PER_PART: usize = 4096;
/// Connections in a whole list. A pod with more is an error, not an agent without memory.
pub const CONNECTIONS_MAX: usize = 1 << 20;

/// Something to be done in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Which, by the id that the agent's own namespace has for it.
    pub netns: NetnsId,
    /// What.
    pub work: Work,
}

/// All that the helper can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Tell the namespace's cookie.
    Cookie,
    /// List TCP connections by local port.
    Connections {
        /// The ports.
        ports: Vec<u16>,
        /// Whether listeners are wanted too.
        listeners: Listeners,
    },
    /// Tell whether GRO of an interface is on.
    Gro {
        /// Its number in that namespace.
        interface: InterfaceIndex,
    },
    /// Turn GRO of an interface on or off, and tell how it was.
    SetGro {
        /// Its number in that namespace.
        interface: InterfaceIndex,
        /// How it shall be.
        on: bool,
    },
    /// Tell which settings a VIP on `lo` would raise.
    ToRaise,
    /// Lower settings that were raised for VIPs, unless there are some.
    LowerUnused(Raised),
    /// Put a VIP on `lo`, where these settings were raised before.
    AssignVip(IpAddr, Raised),
    /// Take a VIP that an agent has put there from `lo`.
    WithdrawVip(IpAddr),
    /// Tell which process has one of these sockets, by their inodes. The namespace says nothing here.
    Holder(Vec<u64>),
}

/// What the helper says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Once, unasked: it is there, and has dropped what it does not need.
    Ready,
    /// Once, instead: it cannot do its work.
    NotReady(String),
    /// Of [`Work::Cookie`].
    Cookie(u64),
    /// Of [`Work::Connections`].
    Connections {
        /// At most [`CONNECTIONS_PER_PART`].
        part: Vec<Connection>,
        /// Another part follows.
        more: bool,
    },
    /// Of [`Work::ToRaise`].
    Low(Raised),
    /// Of [`Work::LowerUnused`]: whether it was done.
    Lowered(bool),
    /// Of [`Work::Gro`] and [`Work::SetGro`]: how it was.
    GroWas(bool),
    /// Of [`Work::Holder`].
    Holder(Option<Holder>),
    /// Of the others.
    Done,
    /// The kernel did not do it.
    Failed(net::Error),
}

/// Sends a message.
pub fn send<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    // One write for both, so that the other side wakes up once.
    let mut bytes = postcard::to_extend(message, vec![0; size_of::<u32>()]).map_err(io::Error::other)?;
    let length = bytes.len() - size_of::<u32>();
    if length > MESSAGE_BYTES_MAX {
        return Err(too_long(length));
    }
    bytes[..size_of::<u32>()].copy_from_slice(&(length as u32).to_le_bytes());
    to.write_all(&bytes)
}

/// Receives a message; none where the other side has ended between two messages.
///
/// # Errors
/// Whatever is no message, besides those of the socket.
pub fn receive<T: DeserializeOwned>(mut from: impl Read, buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let mut length = [0; size_of::<u32>()];
    let begun = loop {
        match from.read(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if begun == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[begun..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(too_long(length));
    }
    buffer.resize(length, 0);
    from.read_exact(buffer)?;
    match postcard::take_from_bytes(buffer) {
        Ok((message, [])) => Ok(Some(message)),
        Ok((_, rest)) => Err(malformed(&format!("{} bytes after the message", rest.len()))),
        Err(error) => Err(malformed(&error.to_string())),
    }
}

fn too_long(length: usize) -> io::Error {
    malformed(&format!("a message of {length} bytes, at most {MESSAGE_BYTES_MAX}"))
}

fn malformed(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail)
}

#[cfg(test)]
mod tests;
