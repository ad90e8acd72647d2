//! One configured peer: its connections, its session and what it is sent. Pure: time is an argument, by the agent's
//! clock, and connections are numbers that the driver has sockets for.
//!
//! Inputs: [`Peer::handle_connected`], [`Peer::handle_accepted`], [`Peer::handle_closed`], [`Peer::handle_packet`],
//! [`Peer::handle_written`], [`Peer::handle_timeout`], and what is wanted: [`Peer::set_routes`], [`Peer::set_stage`],
//! [`Peer::set_bfd`], [`Peer::set_interface`]. Outputs: [`Peer::poll_transmit`], [`Peer::poll_timeout`],
//! [`Peer::poll_event`], [`Peer::status`].
//!
//! A peer has up to two connections, one dialled and one accepted, until one of them is the session (RFC 4271, 6.8).

mod agree;
mod collision;
mod connections;
mod export;
mod peer;
mod session;
mod settings;
mod stage;
mod status;
mod timers;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use serde::Serialize;

pub use agree::Negotiated;
pub use export::NotAnnounced;
pub use peer::Peer;
pub use settings::{BfdUse, Mode, PeerAs, RestartFacts, Settings, SettingsError};
pub use stage::{CeaseReason, Stage};
pub use status::{ByType, Counters, LastError, Status};

use super::values::Family;

/// One attempt at a connection, or an accepted one; never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ConnectionId(pub(super) u64);

/// The addresses of a connection: IPv4 as IPv4, never mapped into IPv6, or next hops are of the wrong family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Ours.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
}

/// Addresses of the interface that a session goes over, for next hops that the session itself cannot give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceAddresses {
    /// The first one.
    pub ipv4: Option<Ipv4Addr>,
    /// The first global one.
    pub ipv6: Option<Ipv6Addr>,
}

/// What the driver does, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connects to the peer, and says what came of it under this number.
    Dial(ConnectionId),
    /// Writes these octets, and says how many of them the kernel has taken.
    Send(ConnectionId, Vec<u8>),
    /// Writes what it still has, for a short while, closes, and says so. Nothing that comes from it counts any more.
    Close(ConnectionId),
}

/// The states of RFC 4271, 8.2.2. A peer is in that of its furthest connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum State {
    /// Neither dials nor accepts: stopped, held by BFD, or it only dials and waits to do so.
    Idle,
    /// Accepts, and may be waiting to dial.
    Active,
    /// Dials.
    Connect,
    /// Has sent OPEN.
    OpenSent,
    /// Has both OPENs, and waits for the peer's agreement.
    OpenConfirm,
    /// Has a session.
    Established,
}

/// Why a state changed, or a connection ended. Without data: names for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Cause {
    /// It may begin.
    Started,
    /// Ordered.
    Stopped,
    /// Time to dial.
    Dialled,
    /// Refused, or unreachable.
    DialFailed,
    /// No answer in time.
    DialTimedOut,
    /// A connection is there.
    Connected,
    /// It was closed, or broke.
    ConnectionLost,
    /// One was accepted that is not wanted.
    ConnectionRejected,
    /// The peer's OPEN is accepted.
    OpenReceived,
    /// The peer has agreed.
    KeepaliveReceived,
    /// The peer ended it.
    NotificationReceived,
    /// What came is no message.
    HeaderError,
    /// The peer's OPEN is not accepted.
    OpenError,
    /// A message came out of turn.
    UnexpectedMessage,
    /// The peer sent no OPEN.
    OpenTimerExpired,
    /// The peer was silent.
    HoldTimerExpired,
    /// The peer took nothing.
    SendHoldTimerExpired,
    /// Two connections, and this one lost.
    Collision,
    /// The peer has restarted, and its new connection replaces the old one.
    PeerRestarted,
    /// The peer signs with another password, or with none, or we do (RFC 2385). Found by the driver.
    PasswordMismatch,
    /// Another process listens where we would. Found by the driver.
    PortTaken,
    /// BFD lost the peer.
    BfdDown,
    /// BFD forbids it no more.
    BfdReleased,
}

/// What BFD knows of the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Bfd {
    /// Is not used, or not yet known.
    #[default]
    None,
    /// Both ways.
    Up,
    /// Not, while packets come.
    Down,
    /// Switched off on the other side: says nothing about forwarding (RFC 5882, 4.2).
    AdminDown,
    /// Not, and no packet has come since then.
    SilentSince(Duration),
}

/// Which way something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Direction {
    /// From the peer.
    Received,
    /// To the peer.
    Sent,
}

/// What has happened, for logs and for who waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another state.
    Transition {
        /// When.
        at: Duration,
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Why.
        cause: Cause,
    },
    /// Something failed.
    Error(LastError),
    /// A session has begun, with this.
    Negotiated(Box<Negotiated>),
    /// End-of-RIB.
    EndOfRib(Family, Direction),
    /// What the stage asks for has been sent, to the last octet.
    StageSent(Stage),
    /// So many routes are more than a peer is sent, and left out.
    RoutesLeftOut(usize),
}
