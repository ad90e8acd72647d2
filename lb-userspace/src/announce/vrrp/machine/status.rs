//! What a virtual router shows of itself.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde::{Serialize, Serializer};

use super::super::{
    Family, Interval, Priority, Version, Vrid,
    packet::{Advertised, Malformed},
};

/// A state without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StateName {
    /// `Initialize`: takes no part.
    Init,
    /// Hears who is there before it takes part.
    Listening,
    /// `Backup`.
    Backup,
    /// `Active`.
    Active,
    /// Has said that it leaves, and answers until it hears its successor.
    Leaving,
}

impl StateName {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Init, Self::Listening, Self::Backup, Self::Active, Self::Leaving];

    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Listening => "listening",
            Self::Backup => "backup",
            Self::Active => "active",
            Self::Leaving => "leaving",
        }
    }
}

/// Why a state was left for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// All that it needs is there.
    Started,
    /// Has listened long enough.
    Listened,
    /// No active was heard, or no more.
    Silence,
    /// The active has said that it leaves.
    ActiveLeft,
    /// Took over from a living one of lower priority.
    Preempted,
    /// Heard one of higher priority, or of the same and a higher address.
    HigherHeard,
    /// No advertisement has really been sent for so long that others may have taken over: asleep, or sending fails.
    ValidityOver,
    /// Ordered to stop.
    Stopped,
    /// Ordered to go on while it was leaving.
    Resumed,
    /// Has left, and the successor is there.
    SuccessorHeard,
    /// Has left, and nobody came.
    NoSuccessor,
    /// Priority taken away.
    NotEligible,
    /// The interface went down.
    InterfaceDown,
    /// The address to send from went away.
    NoAddress,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 14] = [
        Self::Started,
        Self::Listened,
        Self::Silence,
        Self::ActiveLeft,
        Self::Preempted,
        Self::HigherHeard,
        Self::ValidityOver,
        Self::Stopped,
        Self::Resumed,
        Self::SuccessorHeard,
        Self::NoSuccessor,
        Self::NotEligible,
        Self::InterfaceDown,
        Self::NoAddress,
    ];

    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Listened => "listened",
            Self::Silence => "silence",
            Self::ActiveLeft => "active_left",
            Self::Preempted => "preempted",
            Self::HigherHeard => "higher_heard",
            Self::ValidityOver => "validity_over",
            Self::Stopped => "stopped",
            Self::Resumed => "resumed",
            Self::SuccessorHeard => "successor_heard",
            Self::NoSuccessor => "no_successor",
            Self::NotEligible => "not_eligible",
            Self::InterfaceDown => "interface_down",
            Self::NoAddress => "no_address",
        }
    }
}

/// What an idle virtual router lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It was stopped.
    #[error("it has been stopped")]
    Stopped,
    /// The interface is down.
    #[error("the interface is down")]
    InterfaceUp,
    /// No address to send from.
    #[error("no address to send from: for IPv4 the interface's primary one, for IPv6 a link-local one, not tentative")]
    Address,
    /// It may hold none of its VIPs.
    #[error("this node may hold none of the VIPs")]
    Eligibility,
}

/// Why a well-formed advertisement was not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ignored {
    /// Of another virtual router.
    OtherVrid,
    /// Of the other family.
    OtherFamily,
    /// From our own address: our own, come back, or a second host with our address.
    Own,
    /// Not from a unicast peer.
    NotPeer,
}

impl Ignored {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::OtherVrid, Self::OtherFamily, Self::Own, Self::NotPeer];

    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OtherVrid => "other_vrid",
            Self::OtherFamily => "other_family",
            Self::Own => "own",
            Self::NotPeer => "not_peer",
        }
    }
}

/// How another router differs from what is configured here. It is counted and shown, and its advertisements still
/// count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// It uses the VRID for other addresses altogether: somebody else's virtual router.
    Foreign,
    /// Another list, with some of the same.
    Vips,
    /// Another interval.
    Interval,
    /// Another version.
    Version,
    /// It says that it owns the addresses: VIPs have no owner.
    Owner,
}

impl AlarmKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Foreign, Self::Vips, Self::Interval, Self::Version, Self::Owner];

    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Vips => "vips",
            Self::Interval => "interval",
            Self::Version => "version",
            Self::Owner => "owner",
        }
    }
}

/// An alarm's record: one for each kind, so that no peer fills anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Alarm {
    /// Who gave rise to it last.
    pub from: IpAddr,
    /// When it was first seen, by the agent's clock.
    #[serde(serialize_with = "seconds")]
    pub first: Duration,
    /// When it was last seen.
    #[serde(serialize_with = "seconds")]
    pub last: Duration,
    /// When it was last reported as an event.
    #[serde(skip)]
    pub(super) reported: Duration,
    /// Advertisements that gave rise to it.
    pub count: u64,
}

/// Who was last heard as active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// Its primary address.
    pub address: IpAddr,
    /// Its priority; 0 where it has left.
    pub priority: Advertised,
    /// Between its advertisements.
    #[serde(serialize_with = "interval")]
    pub interval: Interval,
    /// When its last advertisement came, by the agent's clock.
    #[serde(serialize_with = "seconds")]
    pub last: Duration,
}

impl Heard {
    /// Whether it was heard too lately for anybody to hold it dead.
    #[must_use]
    pub fn may_live(&self, now: Duration) -> bool {
        now < self.last + self.interval.active_down_max()
    }
}

/// Counters since the virtual router was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Advertisements really sent, those of priority 0 aside.
    pub sent: u64,
    /// Of priority 0 really sent.
    pub sent_leaves: u64,
    /// That could not be sent, or came too late to be.
    pub unsent: u64,
    /// Heard from a router of higher priority (or of the same and a higher address).
    pub received_higher: u64,
    /// Heard from one of lower priority.
    pub received_lower: u64,
    /// Heard of priority 0.
    pub received_leaves: u64,
    /// Heard while taking no part.
    pub received_idle: u64,
    /// Not looked at, by reason.
    pub ignored: BTreeMap<Ignored, u64>,
    /// Discarded by the driver, by reason.
    pub malformed: BTreeMap<Malformed, u64>,
    /// Changes of state, by cause.
    pub transitions: BTreeMap<Cause, u64>,
    /// Times that listening began anew because nothing had run for a while.
    pub slept: u64,
    /// Events that were dropped because nobody fetched them.
    pub events_lost: u64,
}

/// Everything at once.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its number.
    pub vrid: Vrid,
    /// Of its VIPs.
    pub family: Family,
    /// Of what it sends.
    pub version: Version,
    /// Where it stands.
    pub state: StateName,
    /// Since when, by the agent's clock.
    #[serde(serialize_with = "seconds")]
    pub since: Duration,
    /// What it lacks, where it takes no part.
    pub missing: Vec<Missing>,
    /// What it competes with.
    pub priority: Option<Priority>,
    /// Where it sends from.
    pub address: Option<IpAddr>,
    /// Until when VIPs are answered, by the agent's clock.
    #[serde(serialize_with = "optional_seconds")]
    pub hold_until: Option<Duration>,
    /// Who else was last heard.
    pub heard: Option<Heard>,
    /// VIPs.
    pub vips: usize,
    /// Of them listed in advertisements.
    pub listed: usize,
    /// Counters.
    pub counters: Counters,
    /// What differs elsewhere.
    pub alarms: BTreeMap<AlarmKind, Alarm>,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn interval<S: Serializer>(interval: &Interval, serializer: S) -> Result<S::Ok, S::Error> {
    seconds(&interval.duration(), serializer)
}

fn optional_seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}
