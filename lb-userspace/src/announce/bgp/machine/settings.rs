//! What is configured for a peer, and what the agent knows of its own restart.

use std::{collections::BTreeSet, time::Duration};

use serde::Serialize;
use thiserror::Error;

use super::super::{
    route::BandwidthKind,
    values::{AsNumber, Family, HoldTime, Identifier, RestartTime},
};

/// Bounds of the time that a dial may take: below, no handshake over a long path ends; above, the kernel has given up.
const DIAL_TIME: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(120);

/// Whose AS a peer must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PeerAs {
    /// This one.
    Number(AsNumber),
    /// Any but ours, for peers that are known by their interface.
    External,
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Mode {
    /// Both.
    DialAndAccept,
    /// We.
    Dial,
    /// The peer: passive mode.
    Accept,
}

impl Mode {
    pub(super) const fn dials(self) -> bool {
        match self {
            Self::DialAndAccept | Self::Dial => true,
            Self::Accept => false,
        }
    }

    pub(super) const fn accepts(self) -> bool {
        match self {
            Self::DialAndAccept | Self::Accept => true,
            Self::Dial => false,
        }
    }
}

/// Whether BFD watches the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum BfdUse {
    /// No.
    Off,
    /// It does, and a session may begin without it.
    On,
    /// No session begins before it is Up.
    Strict,
}

/// What is configured for a peer. Names nothing that is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Ours.
    pub local_as: AsNumber,
    /// The peer's.
    pub peer_as: PeerAs,
    /// Ours.
    pub identifier: Identifier,
    /// What is to be announced.
    pub families: BTreeSet<Family>,
    /// What is proposed.
    pub hold_time: HoldTime,
    /// Who connects.
    pub mode: Mode,
    /// How long a dial may take: 1 s to 120 s.
    pub dial_time: Duration,
    /// IPv4 prefixes with IPv6 next hops are offered (RFC 8950).
    pub extended_next_hop: bool,
    /// Graceful restart; None where it is off, as by default.
    pub graceful_restart: Option<RestartTime>,
    /// Whether BFD watches the peer.
    pub bfd: BfdUse,
    /// How link bandwidth is marked towards another AS.
    pub bandwidth: BandwidthKind,
}

/// Why settings do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// Nothing to announce.
    #[error("the peer has no address families: name ipv4, ipv6 or both")]
    NoFamilies,
    /// Too short or too long.
    #[error("a dial time of {0:?} is not allowed: give 1 s to 120 s")]
    DialTime(Duration),
}

impl Settings {
    /// Defaults around what has none.
    #[must_use]
    pub fn new(local_as: AsNumber, peer_as: PeerAs, identifier: Identifier) -> Self {
        Self {
            local_as,
            peer_as,
            identifier,
            families: Family::ALL.into(),
            hold_time: HoldTime::DEFAULT,
            mode: Mode::DialAndAccept,
            dial_time: Duration::from_secs(10),
            extended_next_hop: true,
            graceful_restart: None,
            bfd: BfdUse::Off,
            bandwidth: BandwidthKind::NonTransitive,
        }
    }

    /// Whether they go together.
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.families.is_empty() {
            return Err(SettingsError::NoFamilies);
        }
        if !DIAL_TIME.contains(&self.dial_time) {
            return Err(SettingsError::DialTime(self.dial_time));
        }
        Ok(())
    }
}

/// What the agent knows of its own restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestartFacts {
    /// Set where it has started: the peer may have a session of before still, and is told in its first OPEN.
    pub restarted: bool,
    /// Pinned maps were adopted: traffic of these families was forwarded all the time.
    pub forwarding: BTreeSet<Family>,
}
