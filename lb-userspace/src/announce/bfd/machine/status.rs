//! What is shown of a session.

use std::time::Duration;

use serde::Serialize;

use super::{Cause, Poll, Session};
use crate::announce::bfd::packet::{DetectMult, Diagnostic, Discriminator, State};

/// What has happened to a session since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SessionCounts {
    /// Packets handed out to be sent.
    pub sent: u64,
    /// Packets that counted.
    pub received: u64,
    /// Packets that were due and not sent, because the engine or the data plane was gone.
    pub withheld: u64,
    /// Times that the session came up.
    pub ups: u64,
    /// Times that it was up and then no more.
    pub downs: Downs,
}

/// Losses of a session that was up, by what caused them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Downs {
    /// Nothing was heard for a detection time.
    pub silence: u64,
    /// The other end said so.
    pub remote: u64,
    /// The other end was stopped by order.
    pub remote_order: u64,
    /// This end was.
    pub own_order: u64,
    /// The own forwarding plane was reset.
    pub forwarding_plane: u64,
}

impl Downs {
    /// Of all causes.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.silence + self.remote + self.remote_order + self.own_order + self.forwarding_plane
    }
}

/// What the other end said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RemoteStatus {
    /// Its discriminator.
    pub discriminator: Discriminator,
    /// Its state.
    pub state: State,
    /// Why that changed last.
    pub diagnostic: Diagnostic,
    /// It would like to send that often.
    pub desired_min_tx: Duration,
    /// It can receive that often.
    pub required_min_rx: Duration,
    /// It can return echo packets that often; zero where it can't.
    pub required_min_echo_rx: Duration,
    /// Its multiplier.
    pub detect_mult: DetectMult,
    /// It wishes for demand mode.
    pub is_demand: bool,
    /// Its BFD outlives its control plane.
    pub is_control_plane_independent: bool,
}

/// A session as it stands. Times of the clock are by the boot clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The own discriminator.
    pub discriminator: Discriminator,
    /// The own state.
    pub state: State,
    /// Since when.
    pub since: Duration,
    /// What the other end is told as the reason for it.
    pub diagnostic: Diagnostic,
    /// Why the session was lost the last time.
    pub last_cause: Option<Cause>,
    /// The own transmit interval as packets say it.
    pub desired_min_tx: Duration,
    /// The own receive interval as packets say it.
    pub required_min_rx: Duration,
    /// The own multiplier.
    pub detect_mult: DetectMult,
    /// The interval of the own packets, before jitter.
    pub transmit_interval: Duration,
    /// The time of silence after which the other end is given up, while it is known.
    pub detection_time: Option<Duration>,
    /// A change of intervals has not been acknowledged yet.
    pub is_polling: bool,
    /// Packets are held back, because the engine or the data plane is gone.
    pub is_withheld: bool,
    /// Since when the other end has been silent.
    pub silent_since: Duration,
    /// The other end, while it is known.
    pub remote: Option<RemoteStatus>,
    /// What has happened.
    pub counts: SessionCounts,
}

impl Session {
    /// The session as it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let remote = self.remote.map(|remote| RemoteStatus {
            discriminator: remote.discriminator,
            state: remote.packet.state,
            diagnostic: remote.packet.diagnostic,
            desired_min_tx: remote.packet.desired_min_tx,
            required_min_rx: remote.packet.required_min_rx,
            required_min_echo_rx: remote.packet.required_min_echo_rx,
            detect_mult: remote.packet.detect_mult,
            is_demand: remote.packet.is_demand,
            is_control_plane_independent: remote.packet.is_control_plane_independent,
        });
        Status {
            discriminator: self.local,
            state: self.state,
            since: self.since,
            diagnostic: self.diagnostic,
            last_cause: self.last_cause,
            desired_min_tx: self.advertised.transmit,
            required_min_rx: self.advertised.receive,
            detect_mult: self.settings.detect_mult(),
            transmit_interval: self.transmit_interval(),
            detection_time: self.detection_time(),
            is_polling: self.poll != Poll::Idle,
            is_withheld: self.is_withheld,
            silent_since: self.silent_since(),
            remote,
            counts: self.counts,
        }
    }
}
