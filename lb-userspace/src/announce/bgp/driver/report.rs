//! What can be seen of the thread that speaks BGP. Holds no password.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use thiserror::Error;

use super::signatures::Signatures;
use crate::{announce::bgp::machine::Status, net::processes::Holder};

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// By name.
    pub peers: Vec<PeerReport>,
    /// Where we listen.
    pub listening: Vec<SocketAddr>,
    /// Connections that were closed because they came from nobody who is a peer.
    pub strangers: u64,
    /// Connections of peers that were closed before a word: too many at once, or without the password.
    pub refused: u64,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerReport {
    /// As it is wanted.
    pub name: String,
    /// Of its machine; None where it has none, for a reason that is among the problems.
    pub status: Option<Status>,
    /// Whether all that the stage asks for has been sent, to the last octet.
    pub stage_sent: bool,
    /// It is no longer wanted, or not like this, and its last connection ends.
    pub is_leaving: bool,
    /// Both ends of its connections, ours first.
    pub connections: Vec<(SocketAddr, SocketAddr)>,
    /// Where it can connect to us.
    pub listening: Option<SocketAddr>,
    /// What keeps it from a session, or from a way to one, and what to do about it.
    pub problems: Vec<Shown>,
}

/// A problem with its words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Typed.
    pub problem: Problem,
    /// For people.
    pub text: String,
}

impl From<&Problem> for Shown {
    fn from(problem: &Problem) -> Self {
        Self { problem: problem.clone(), text: problem.to_string() }
    }
}

impl Shown {
    /// Sockets of a process that could not be seen.
    #[must_use]
    pub fn unseen(&self) -> Option<&[u64]> {
        match &self.problem {
            Problem::PortTaken { sockets, holder: None, .. }
            | Problem::SessionOfOther { sockets, holder: None, .. } => Some(sockets),
            _ => None,
        }
    }

    /// Sockets, and the process that has them.
    #[must_use]
    pub fn named(&self) -> Option<(&[u64], &Holder)> {
        match &self.problem {
            Problem::PortTaken { sockets, holder: Some(holder), .. }
            | Problem::SessionOfOther { sockets, holder: Some(holder), .. } => Some((sockets, holder)),
            _ => None,
        }
    }

    /// Names the process, which somebody else has seen.
    pub fn name(&mut self, found: &Holder) {
        if let Problem::PortTaken { holder, .. } | Problem::SessionOfOther { holder, .. } = &mut self.problem {
            *holder = Some(found.clone());
            self.text = self.problem.to_string();
        }
    }
}

/// What keeps a peer from a session, or from a way to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Error)]
#[serde(rename_all = "camelCase")]
pub enum Problem {
    /// Settings that do not go together.
    #[error("{0}")]
    Settings(String),
    /// Known by its interface, and not seen there.
    #[error("no neighbour was seen on the interface: let the peer send router advertisements there")]
    NeighbourUnknown,
    /// A link-local address says nothing by itself.
    #[error("{0} is valid on its link alone: name the interface")]
    InterfaceMissing(IpAddr),
    /// Source and peer are of different families.
    #[error("the source address {source_address} and the peer {remote} are not of the same family")]
    Family {
        /// Ours.
        source_address: IpAddr,
        /// The peer's.
        remote: IpAddr,
    },
    /// Another process listens.
    #[error("{address} is held by {}: only dialled until it is free; or give us a source address of our own",
        Holder::describe(.holder.as_ref()))]
    PortTaken {
        /// Where we would listen.
        address: SocketAddr,
        /// Its sockets, by their inodes.
        sockets: Vec<u64>,
        /// Who does, where that can be seen.
        holder: Option<Holder>,
    },
    /// No listening socket for another reason.
    #[error("cannot listen at {address}: {error}; is the address on this node?")]
    Listen {
        /// Where we would.
        address: SocketAddr,
        /// The kernel's words.
        error: String,
    },
    /// It is not known where to listen.
    #[error("no address of ours leads to {remote}: {error}")]
    Unreachable {
        /// The peer's.
        remote: IpAddr,
        /// The kernel's words.
        error: String,
    },
    /// Another process has a session with the same peer from the same address, which ours would end.
    #[error("{} has a session between {local} and {remote} already: give us a source address of our own",
        Holder::describe(.holder.as_ref()))]
    SessionOfOther {
        /// Ours.
        local: IpAddr,
        /// The peer's.
        remote: IpAddr,
        /// Its socket, by its inode.
        sockets: Vec<u64>,
        /// Who, where that can be seen.
        holder: Option<Holder>,
    },
    /// Segments were dropped for their signatures; the kernel does not say whose they were.
    #[error(
        "segments were dropped for their MD5 signatures ({} with another password, {} without one, {} with one that \
         nobody expects): the passwords here and there differ, or the peer has none or does not listen",
        .0.failed, .0.missing, .0.unexpected
    )]
    PasswordMismatch(Signatures),
    /// Two peers between the same addresses are one.
    #[error("the peer {0} has the same addresses: take one of them away, or give this one another source address")]
    Duplicate(String),
    /// Wanted beyond the limit.
    #[error("there are {0} peers already, the most there may be")]
    TooMany(usize),
}
