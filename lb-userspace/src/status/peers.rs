//! BGP peers and BFD sessions, as the status says them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// A BGP peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpStatus {
    /// Its name in the configuration.
    pub name: String,
    /// `idle`, `connect`, `active`, `openSent`, `openConfirm` or `established` (RFC 4271, 8.2.2); nothing where it does not run.
    pub state: Option<String>,
    /// For how many seconds.
    pub since_seconds: u64,
    /// Its address, as far as it is known.
    pub address: Option<IpAddr>,
    /// Ours, of the session.
    pub local_address: Option<IpAddr>,
    /// Its autonomous system: as configured, else as a session says it.
    pub peer_as: Option<u32>,
    /// Its identifier, once a session says it.
    pub identifier: Option<IpAddr>,
    /// In seconds, as agreed; 0: either end may be silent for ever.
    pub hold_time_seconds: Option<u16>,
    /// Address families that are announced.
    pub families: Vec<String>,
    /// Where it can connect to us.
    pub listening: Option<SocketAddr>,
    /// `running`, `gracefulShutdown`, `withdrawn`, `ceased` or `left`.
    pub stage: String,
    /// What BFD says of it: `none`, `up`, `down`, `adminDown` or `silentSince`.
    pub bfd: String,
    /// BFD has lost it, and no session is begun before BFD has it again, or has been silent for 30 s.
    pub is_held_by_bfd: bool,
    /// Prefixes that it has been sent, by family.
    pub announced: BTreeMap<String, usize>,
    /// Prefixes that it has not been sent, by reason.
    pub not_announced: BTreeMap<String, usize>,
    /// Sessions that came to be.
    pub established: u64,
    /// Messages from it, by type.
    pub received: BTreeMap<String, u64>,
    /// Messages to it, by type.
    pub sent: BTreeMap<String, u64>,
    /// Messages that were answered by ending the session, or passed over, by what was wrong: `header`, `open`, `unexpected`
    /// or `refresh`.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// Changes of state by cause.
    pub transitions: BTreeMap<String, u64>,
    /// The last thing that went wrong.
    pub last_error: Option<PeerErrorStatus>,
    /// What keeps it from a session, or from a way to one, and what to do about it.
    pub problems: Vec<String>,
}

/// What went wrong with a peer, or a virtual router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerErrorStatus {
    /// How many seconds ago.
    pub seconds_ago: u64,
    /// Of what kind.
    pub cause: String,
    /// What exactly.
    pub detail: String,
    /// The peer's own words (RFC 9003).
    pub words: Option<String>,
}

/// A BFD session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BfdStatus {
    /// The BGP peer that it watches.
    pub peer: String,
    /// Ours.
    pub local_address: Option<IpAddr>,
    /// The peer's.
    pub address: Option<IpAddr>,
    /// Behind routers (RFC 5883).
    pub is_multihop: bool,
    /// `admin-down`, `down`, `init` or `up`; nothing where it does not run.
    pub state: Option<String>,
    /// For how many seconds.
    pub since_seconds: u64,
    /// Why our state changed last, as the peer is told.
    pub diagnostic: Option<String>,
    /// Why the session was lost the last time.
    pub last_cause: Option<String>,
    /// From one packet of ours to the next, in microseconds, before jitter.
    pub transmit_interval_microseconds: u64,
    /// The silence after which the peer is given up, in microseconds, while it is known.
    pub detection_time_microseconds: Option<u64>,
    /// Packets are held back because the engine, or the data plane, is gone.
    pub is_withheld: bool,
    /// The peer, while it is known.
    pub remote: Option<BfdRemoteStatus>,
    /// Packets to the peer.
    pub sent: u64,
    /// Packets from the peer that counted.
    pub received: u64,
    /// Packets that were due and held back.
    pub withheld: u64,
    /// Packets that the kernel did not take.
    pub send_errors: u64,
    /// Times that it came up.
    pub ups: u64,
    /// Times that it was up and then no more, by cause.
    pub downs: BTreeMap<String, u64>,
    /// Why it does not run.
    pub problem: Option<String>,
}

/// What a peer says of itself by BFD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BfdRemoteStatus {
    /// Its state.
    pub state: String,
    /// Why that changed last.
    pub diagnostic: String,
    /// How often it would like to send, in microseconds.
    pub desired_min_tx_microseconds: u64,
    /// How often it can receive, in microseconds.
    pub required_min_rx_microseconds: u64,
    /// Its multiplier.
    pub multiplier: u8,
}
