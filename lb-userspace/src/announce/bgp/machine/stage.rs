//! Ordered stops: what a peer is sent as the agent, or the peer's configuration, goes away.

use std::fmt;

use serde::Serialize;

use super::super::packet::{Communication, Notification, cease};

/// Why a session is ended for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum CeaseReason {
    /// The agent stops.
    Shutdown,
    /// The peer is no longer configured.
    PeerRemoved,
    /// The session is ended to be begun anew.
    Reset,
    /// Settings that shape a session have changed.
    SettingsChanged,
}

/// How far an ordered stop has come. May go back to `Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Stage {
    /// No stop.
    #[default]
    Running,
    /// All routes carry GRACEFUL_SHUTDOWN (RFC 8326).
    GracefulShutdown,
    /// No route is announced; the session stays.
    Withdrawn,
    /// Closed with a Cease.
    Ceased(CeaseReason, Option<Communication>),
    /// Closed without a word: the agent comes back, and the peer keeps its routes for as long as it was told.
    Left,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::GracefulShutdown => "graceful shutdown",
            Self::Withdrawn => "withdrawn",
            Self::Ceased(..) => "ceased",
            Self::Left => "left",
        })
    }
}

impl Stage {
    /// Whether sessions may begin.
    pub(super) const fn opens(&self) -> bool {
        match self {
            Self::Running | Self::GracefulShutdown | Self::Withdrawn => true,
            Self::Ceased(..) | Self::Left => false,
        }
    }

    pub(super) const fn announces(&self) -> bool {
        match self {
            Self::Running | Self::GracefulShutdown => true,
            Self::Withdrawn | Self::Ceased(..) | Self::Left => false,
        }
    }

    /// Whether the peer is to forget our routes: not where a session follows at once.
    pub(super) const fn is_final(&self) -> bool {
        match self {
            Self::Ceased(CeaseReason::Shutdown | CeaseReason::PeerRemoved, _) => true,
            Self::Ceased(CeaseReason::Reset | CeaseReason::SettingsChanged, _)
            | Self::Running
            | Self::GracefulShutdown
            | Self::Withdrawn
            | Self::Left => false,
        }
    }

    /// What ends connections at this stage.
    pub(super) fn notification(&self) -> Option<Notification> {
        let (reason, communication) = match self {
            Self::Ceased(reason, communication) => (reason, communication.as_ref()),
            Self::Running | Self::GracefulShutdown | Self::Withdrawn | Self::Left => return None,
        };
        //= rfc4486#4:subcodes SHOULD: a Cease says why
        let subcode = match reason {
            CeaseReason::Shutdown => cease::ADMINISTRATIVE_SHUTDOWN,
            CeaseReason::PeerRemoved => cease::PEER_DECONFIGURED,
            CeaseReason::Reset => cease::ADMINISTRATIVE_RESET,
            CeaseReason::SettingsChanged => cease::OTHER_CHANGE,
        };
        Some(Notification::cease_with(subcode, communication))
    }
}
