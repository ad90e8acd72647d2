//! What can be seen of a peer. Holds nothing secret: the machine knows nothing of the kind.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    super::{packet::MessageType, values::Family},
    Bfd, Cause, Negotiated, NotAnnounced, Stage, State,
};

/// Longest error that is kept: a peer's words and the kernel's together are shorter.
const ERROR_CHARACTERS_MAX: usize = 400;

/// Messages of each type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByType {
    /// OPEN.
    pub open: u64,
    /// UPDATE, End-of-RIB among them.
    pub update: u64,
    /// NOTIFICATION.
    pub notification: u64,
    /// KEEPALIVE.
    pub keepalive: u64,
    /// ROUTE-REFRESH.
    pub route_refresh: u64,
}

impl ByType {
    pub(super) fn count(&mut self, kind: MessageType) {
        let counter = match kind {
            MessageType::Open => &mut self.open,
            MessageType::Update => &mut self.update,
            MessageType::Notification => &mut self.notification,
            MessageType::Keepalive => &mut self.keepalive,
            MessageType::RouteRefresh => &mut self.route_refresh,
        };
        *counter += 1;
    }
}

/// Counted since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Messages from the peer.
    pub received: ByType,
    /// Messages to the peer.
    pub sent: ByType,
    /// Malformed headers.
    pub header_errors: u64,
    /// OPENs that were not accepted.
    pub open_errors: u64,
    /// Messages out of turn.
    pub unexpected: u64,
    /// ROUTE-REFRESHes of families that are not sent, or of unknown kinds.
    pub refreshes_ignored: u64,
    /// Sessions that came to be.
    pub established: u64,
}

/// The last thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// When, by the agent's clock.
    pub at: Duration,
    /// Of what kind.
    pub cause: Cause,
    /// What exactly.
    pub detail: String,
    /// What the peer's operator says of it (RFC 9003).
    pub words: Option<String>,
}

impl LastError {
    pub(super) fn new(at: Duration, cause: Cause, detail: &str, words: Option<String>) -> Self {
        Self { at, cause, detail: detail.chars().take(ERROR_CHARACTERS_MAX).collect(), words }
    }
}

/// A peer as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its furthest connection's.
    pub state: State,
    /// By the agent's clock.
    pub since: Duration,
    /// Of the session.
    pub negotiated: Option<Negotiated>,
    /// How far an ordered stop has come.
    pub stage: Stage,
    /// What BFD says.
    pub bfd: Bfd,
    /// BFD lost the peer, and has not released it.
    pub held_by_bfd: bool,
    /// When the next dial is due.
    pub next_dial: Option<Duration>,
    /// Messages and errors.
    pub counters: Counters,
    /// The last error.
    pub last_error: Option<LastError>,
    /// Prefixes that the peer has been sent.
    pub announced: BTreeMap<Family, usize>,
    /// Routes that it has not, by reason.
    pub not_announced: BTreeMap<NotAnnounced, usize>,
    /// Why a family's routes are not announced, where they are not: the reason of one of them. All are told with one next hop.
    pub held_back: BTreeMap<Family, NotAnnounced>,
    /// More than a peer is sent.
    pub left_out: usize,
    /// How often each cause changed something.
    pub causes: BTreeMap<Cause, u64>,
}
