//! What the agent says about itself: one document, as JSON for programs and as a table for people.
//!
//! The agent answers who connects to its status socket, and says nothing, with a [`Status`] as JSON, and closes. What may be
//! asked beside that stands in [`Question`].

mod activity;
mod announce;
mod peers;
mod render;
mod socket;
#[cfg(test)]
pub(crate) mod tests;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    model::{Protocol, ReplyMode, Rung},
    preflight::Finding,
};

pub use activity::{Activity, Cause, PROGRAMMING_BOUNDS_MICROSECONDS, Programming, SelfTests};
pub use announce::{
    AgainstStatus, AlarmStatus, AnnounceStatus, ConflictStatus, HeardStatus, MeansStatus, RouterStatus, VipStatus,
};
pub use peers::{BfdRemoteStatus, BfdStatus, BgpStatus, PeerErrorStatus};
pub use render::{render_bfd, render_bgp, render_table, render_vip, render_vrrp};
pub use socket::{Answer, FetchError, Question, Socket, fetch, fetch_diff, serve, tell_drain};

/// The status socket in the run directory.
pub const SOCKET_NAME: &str = "status.sock";
/// The same while the agent starts.
pub const SOCKET_UNREADY_NAME: &str = "status.new";

/// The agent's whole state, as far as an operator can use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Who says so.
    pub source: Source,
    /// Version of the agent.
    pub version: String,
    /// When the agent started, in seconds since 1970 UTC.
    pub since_unix_seconds: u64,
    /// How long the agent has run, by a clock that nobody sets.
    pub uptime_seconds: u64,
    /// This node's addresses, as configured.
    pub node_addresses: Vec<IpAddr>,
    /// Every program that is attached or should be.
    pub programs: Vec<ProgramStatus>,
    /// Services in the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// Every reason, also those without packets.
    pub reasons: Vec<ReasonStatus>,
    /// Every map.
    pub maps: Vec<MapStatus>,
    /// Why the newest configuration was refused, where it was; the one before it is in force.
    pub last_error: Option<String>,
    /// What of the wanted state is not in the maps yet, and why; the agent tries again each second.
    pub waiting: Option<String>,
    /// What pre-flight found of the node, and what the kernel says of the attached uplinks.
    #[serde(default)]
    pub preflight: Vec<Finding>,
    /// Whether metrics, health and state are served.
    pub observation: ObservationStatus,
    /// What the network is told.
    #[serde(default)]
    pub announce: AnnounceStatus,
    /// What the agent has done since it started.
    pub activity: Activity,
}

/// Where a status comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The agent that runs.
    #[default]
    Agent,
    /// The pinned maps of one that does not. What only an agent knows is missing or 0.
    Maps,
}

/// Whether metrics, health and state are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservationStatus {
    /// Where; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// Why not; tried again each second.
    pub error: Option<String>,
}

/// A program at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// Name, as bpftool shows it.
    pub name: String,
    /// Interface that it is attached to.
    pub interface: String,
    /// Where on the interface: `xdp`, `tcx ingress`, `tcx egress`.
    pub attach_point: String,
    /// How, while it is attached.
    pub mode: Option<AttachMode>,
    /// Kernel's id of the program, while it is attached.
    pub program_id: Option<u32>,
    /// Why it is not attached.
    pub error: Option<String>,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachMode {
    /// XDP in the driver.
    Native,
    /// XDP on the socket buffer.
    Generic,
    /// A link in the tcx list.
    Tcx,
}

/// One (VIP, protocol, port).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Name in the configuration; none where it was read from the maps.
    pub name: Option<String>,
    /// The virtual address.
    pub vip: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port at the VIP.
    pub port: u16,
    /// How replies are recognized.
    pub replies: ReplyMode,
    /// Where a client stays with its backend: for how long after its last packet.
    pub session_affinity_seconds: Option<u64>,
    /// How its backends are checked; none where they are not.
    pub health_check: Option<String>,
    /// All backends that would get connections have failed their checks, so all of them get connections.
    pub fails_open: bool,
    /// Packets from clients that were forwarded, also to backends that are gone.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// Packets to clients that left under the VIP, also of backends that are gone.
    pub reply_packets: u64,
    /// Bytes of these packets.
    pub reply_bytes: u64,
    /// Slots of the Maglev table; 0 without one.
    pub slots: u32,
    /// Slots whose packets are offered to earlier owners.
    pub moved_slots: u32,
    /// Earlier owners that were dropped from a slot although their sessions may live, since the table was made.
    pub dropped_owners: u64,
    /// Backends in the order of the configuration.
    pub backends: Vec<BackendStatus>,
}

/// One backend of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's port.
    pub port: u16,
    /// Configured weight; none where it was read from the maps.
    pub weight: Option<u16>,
    /// Gets no new connections.
    pub drain: bool,
    /// Slots of the service's table that are this backend's.
    pub slots: u32,
    /// How packets reach it; none while they don't.
    pub rung: Option<Rung>,
    /// Whether it can take packets.
    pub state: BackendState,
    /// Why its connections are recorded: its sockets cannot be seen. None where they can.
    pub opaque: Option<String>,
    /// What the state comes from, in words; none where there is nothing to say.
    pub reason: Option<String>,
    /// The host's interface that leads to it.
    pub interface: Option<String>,
    /// What its health checks have come to; none where it has none.
    pub health: Option<HealthStatus>,
    /// By rung `direct`: whether the pod owns the VIP.
    pub vip_on_lo: Option<VipOnLo>,
    /// Packets sent to it.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// Packets from it that left under the VIP.
    pub reply_packets: u64,
    /// Bytes of these packets.
    pub reply_bytes: u64,
}

/// What the health checks of a backend have come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthStatus {
    /// Whether it gets new connections.
    pub state: HealthState,
    /// For how long.
    pub seconds: u64,
    /// Why the last check that failed did.
    pub last_error: Option<String>,
}

/// Whether a backend answers its health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Not known yet: counts as healthy.
    Unknown,
    /// It does.
    Healthy,
    /// It does not, and drains unless all others fail too.
    Unhealthy,
}

/// Whether a backend can take packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// Its rung passed the self-test.
    Ready,
    /// Found, and not yet tested.
    Pending,
    /// No interface of this node leads to its address.
    NoInterface,
    /// Its pod is on another node.
    Remote,
    /// Its rung, or all of them, did not get a frame through.
    SelfTestFailed,
    /// The kernel refused what it needs; the reason says what.
    Failed,
    /// By rung `direct`: the pod does not own the VIP.
    VipMissing,
    /// Read from the maps, which say only that nothing is sent to it.
    Unknown,
}

/// Whether a pod owns the VIP, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VipOnLo {
    /// It does not.
    Missing,
    /// The agent put it on the pod's `lo`.
    Agent,
    /// Somebody else did.
    Other,
}

impl BackendState {
    /// Those that an agent tells of.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Pending,
        Self::NoInterface,
        Self::Remote,
        Self::SelfTestFailed,
        Self::Failed,
        Self::VipMissing,
    ];

    /// As the table prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Pending => "pending",
            Self::NoInterface => "no interface",
            Self::Remote => "remote",
            Self::SelfTestFailed => "test failed",
            Self::Failed => "failed",
            Self::VipMissing => "VIP missing",
            Self::Unknown => "unknown",
        }
    }
}

/// Packets of one reason, over all CPUs and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonStatus {
    /// Name of the reason.
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// What it means.
    pub doc: String,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapStatus {
    /// Name, as bpftool shows it.
    pub name: String,
    /// Entries in use; none where nobody counts them.
    pub entries: Option<u64>,
    /// Most entries.
    pub capacity: u64,
    /// Memory, by the kernel's account.
    pub bytes: u64,
}
