//! What the agent is told to do, validated. Every source (file, later Kubernetes) produces a [`Snapshot`];
//! everything after it is shared.

pub mod announce;
pub mod bgp;
pub mod health;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::announce::Announce;
use self::health::HealthCheck;

/// Uplinks of one node, which is what the map of uplinks holds; a bond of everything that fits into a machine has fewer.
pub const UPLINKS_MAX: u32 = 16;

/// The whole wanted state, as one source gives it. Consistent: see `config` for what is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// This node's own addresses, as the configuration names them.
    pub node_addresses: Vec<IpAddr>,
    /// The interfaces that packets for VIPs arrive on.
    pub uplinks: Vec<Uplink>,
    /// Directory on a bpffs under which maps and links are pinned.
    pub pin_directory: PathBuf,
    /// Directory of the agent's lock file and status socket.
    pub run_directory: PathBuf,
    /// How large the maps are; fixed while the agent runs.
    pub capacities: Capacities,
    /// How often the data plane itself answers.
    pub limits: Limits,
    /// How the agent is watched; fixed while it runs.
    pub observation: Observation,
    /// How the network is told where VIPs are.
    pub announce: Announce,
    /// One entry for each (VIP, protocol, port); no key twice.
    pub services: Vec<Service>,
}

/// An interface that the XDP program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uplink {
    /// Interface name, at most 15 bytes (`IFNAMSIZ`).
    pub interface: String,
    /// How the program is attached.
    pub mode: XdpModeChoice,
}

/// How an XDP program may be attached to an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpModeChoice {
    /// Native where the driver can, generic otherwise.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// On the socket buffer, after the driver; slower, works everywhere.
    Generic,
}

/// Entries of each map. Memory follows from these alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacities {
    /// Services: (VIP, protocol, port).
    pub services: u32,
    /// Backends, each (address, protocol, port) once however many services share it.
    pub backends: u32,
    /// Maglev slots over all services. A changed table needs a second range while it is switched.
    pub maglev_slots: u32,
    /// Recorded bypasses: connections that reach a pod without Sluice, or through a VIP that is not the endpoint's default.
    pub bypasses: u32,
    /// Entries of the flow cache (recorded UDP).
    pub flows: u32,
    /// Datagrams under way in fragments.
    pub fragments: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            services: 4096,
            backends: 16_384,
            maglev_slots: 1 << 22,
            bypasses: 1 << 16,
            flows: 1 << 18,
            fragments: 1 << 14,
        }
    }
}

/// Rates of the packets that the data plane makes itself, per CPU and second, with as many in one burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// TCP RST and ICMP unreachable for closed ports and services without a backend.
    pub refusals: u32,
    /// ICMP echo replies for VIPs.
    pub echo_replies: u32,
    /// ICMP Time Exceeded and Packet Too Big.
    pub icmp_errors: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { refusals: 1000, echo_replies: 1000, icmp_errors: 1000 }
    }
}

/// How the agent is watched over HTTP. Whoever can reach it from elsewhere needs a token, over TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// Where metrics, health and state are served; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// Served over TLS with these.
    pub tls: Option<TlsFiles>,
    /// File with the token that metrics and state are given for.
    pub token_file: Option<PathBuf>,
    /// Backends at most that have time series of their own.
    pub backend_series: u32,
}

/// Port on 127.0.0.1 unless the file says otherwise.
pub const OBSERVATION_PORT_DEFAULT: u16 = 16080;

impl Default for Observation {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, OBSERVATION_PORT_DEFAULT))),
            tls: None,
            token_file: None,
            backend_series: 10_000,
        }
    }
}

/// PEM files of a server's TLS. Read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    /// The certificate, followed by those that lead to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The protocol of that number, if it is one of these.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp].into_iter().find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// How a reply is told from what the pod sends on its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplyMode {
    /// All that leaves the endpoint's port carries the VIP as its source. The only mode of TCP.
    Static,
    /// UDP: replies to clients whose packets came through the VIP carry it. The default of UDP.
    Recorded,
    /// UDP: nothing is rewritten, recorded or looked up.
    None,
}

/// How a packet gets from the uplink into the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// `XDP_REDIRECT` into the host-side veth.
    Redirect,
    /// `bpf_redirect_peer` at the uplink's tc ingress.
    Peer,
    /// `XDP_PASS`, and the kernel routes.
    Stack,
    /// As `Redirect`, and not rewritten: the pod owns the VIP.
    Direct,
}

impl Rung {
    /// As the configuration writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Peer => "peer",
            Self::Stack => "stack",
            Self::Direct => "direct",
        }
    }
}

/// The rung that the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RungChoice {
    /// The best one whose self-test passes.
    #[default]
    Auto,
    /// `direct` or none: what is found out of a pod and one VIP says nothing of another.
    Direct {
        /// The service's, which the pods own.
        vip: IpAddr,
        /// The agent puts it on the pods' `lo`.
        assign: bool,
    },
    /// This one or none.
    #[serde(untagged)]
    Only(Rung),
}

impl RungChoice {
    /// The VIP that the pods own.
    pub const fn owned_vip(self) -> Option<IpAddr> {
        match self {
            Self::Direct { vip, .. } => Some(vip),
            Self::Auto | Self::Only(_) => None,
        }
    }
}

/// The VIPs of self-tests, which no service may have: the dummy address of RFC 7600, and one of the discard prefix of
/// RFC 6666.
pub const SELF_TEST_VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8))];

/// One (VIP, protocol, port) and the backends behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Name in the configuration; a service with several ports appears once for each, under the same name.
    pub name: String,
    /// The virtual address.
    pub vip: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port at the VIP, never 0.
    pub port: u16,
    /// How replies are recognized.
    pub replies: ReplyMode,
    /// Asked-for delivery rung.
    pub rung: RungChoice,
    /// Whether a client's connections and datagrams go to one backend.
    pub affinity: Option<Affinity>,
    /// Whether and how its backends are asked if they are well.
    pub health_check: Option<HealthCheck>,
    /// Of the VIP's family; each (address, port) once. May be empty: the service then refuses.
    pub backends: Vec<Backend>,
}

/// That a client, by its address, stays with the backend that it has (Kubernetes: `sessionAffinity: ClientIP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Affinity {
    /// After its last packet; whole seconds.
    pub timeout: Duration,
}

/// A pod's address and port behind a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's port, never 0.
    pub port: u16,
    /// Share of new connections relative to the service's other backends, 1 to 1000 (0 only beside others that are not).
    pub weight: u16,
    /// No new connections.
    pub drain: bool,
}
