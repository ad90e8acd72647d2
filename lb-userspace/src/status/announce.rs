//! What is announced, as the status says it.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{BfdStatus, BgpStatus, PeerErrorStatus};

/// What the network is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnnounceStatus {
    /// Every configured VIP that is to be announced by any means.
    pub vips: Vec<VipStatus>,
    /// Virtual routers.
    pub routers: Vec<RouterStatus>,
    /// Who else claims what this node answers for.
    pub conflicts: Vec<ConflictStatus>,
    /// Packets of VRRP that were discarded, by reason.
    pub malformed: BTreeMap<String, u64>,
    /// How far this node has gone in leaving: `marked`, `withdrawing`, `quieting`, `ceasing`, `silencing` or `drained`; nothing
    /// where it stays.
    #[serde(default)]
    pub leaving: Option<String>,
    /// BGP peers, by name.
    #[serde(default)]
    pub bgp: Vec<BgpStatus>,
    /// Connections for BGP that were closed before a word, by whose they were: `stranger`, who is no peer, or `peer`: too
    /// many at once, or without the password.
    #[serde(default)]
    pub bgp_refused: BTreeMap<String, u64>,
    /// BFD sessions, by peer.
    #[serde(default)]
    pub bfd: Vec<BfdStatus>,
    /// Datagrams for BFD that reached no session, by reason.
    #[serde(default)]
    pub bfd_dropped: BTreeMap<String, u64>,
    /// How the thread of BFD is scheduled: `realtime` and its priority, or why it is not.
    #[serde(default)]
    pub bfd_scheduling: Option<String>,
    /// Why nothing is announced.
    pub error: Option<String>,
}

/// A VIP and the means by which it is announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VipStatus {
    /// The VIP.
    pub vip: IpAddr,
    /// Each means.
    pub means: Vec<MeansStatus>,
    /// What looks wrong about it and does not keep it from being announced.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One means of a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeansStatus {
    /// Such as `always on eth0` and `VRRP core: 51 on eth0`.
    pub means: String,
    /// Whether this node answers for it now.
    pub holds: bool,
    /// It is announced as going: this node hands over.
    #[serde(default)]
    pub is_going: bool,
    /// Who answers, as heard on the segment, where this node does not.
    pub holder: Option<IpAddr>,
    /// Everything that is against announcing it from here, or why a peer has not been told of it: name and words.
    pub against: Vec<AgainstStatus>,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgainstStatus {
    /// Its name, as metrics have it.
    pub reason: String,
    /// For people.
    pub text: String,
}

/// A virtual router of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterStatus {
    /// Its group in the configuration.
    pub group: String,
    /// Its interface.
    pub interface: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Its identifier.
    pub vrid: u8,
    /// Version of the protocol.
    pub version: u8,
    /// `init`, `listening`, `backup`, `active` or `leaving`.
    pub state: String,
    /// For how many seconds.
    pub since_seconds: u64,
    /// What it competes with; nothing where it may not.
    pub priority: Option<u8>,
    /// Where it sends from.
    pub address: Option<IpAddr>,
    /// The MAC that its VIPs are at, where it is not the interface's own.
    pub virtual_mac: Option<String>,
    /// What it lacks, where it takes no part.
    pub missing: Vec<String>,
    /// The other router that was last heard.
    pub heard: Option<HeardStatus>,
    /// VIPs that it is for, a link-local one of IPv6 included.
    pub vips: usize,
    /// Of these, listed in advertisements.
    pub listed: usize,
    /// Advertisements sent.
    pub sent: u64,
    /// Advertisements heard.
    pub received: u64,
    /// Advertisements that could not be sent.
    pub unsent: u64,
    /// Changes of state by cause.
    pub transitions: BTreeMap<String, u64>,
    /// Advertisements that were not looked at, and packets that were discarded, by reason.
    pub discarded: BTreeMap<String, u64>,
    /// In what others differ, who did last, and how often.
    pub alarms: BTreeMap<String, AlarmStatus>,
    /// The last thing that went wrong: `malformed`, `differs` or `unsent`.
    #[serde(default)]
    pub last_error: Option<PeerErrorStatus>,
}

/// Another router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeardStatus {
    /// Its address.
    pub address: IpAddr,
    /// Its priority; 0 where it has left.
    pub priority: u8,
}

/// In what others differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AlarmStatus {
    /// Who did last.
    pub from: IpAddr,
    /// How often.
    pub count: u64,
}

/// Somebody else who says that a VIP is his.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConflictStatus {
    /// The VIP.
    pub vip: IpAddr,
    /// Index of the interface where it was heard.
    pub ifindex: u32,
    /// Who said so last.
    pub mac: String,
    /// How often.
    pub count: u64,
}
