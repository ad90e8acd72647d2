//! What of a node would break steering, found before anything is touched, in words that say what to do.
//!
//! Pure: [`Facts`] are gathered elsewhere (`survey`), and [`check`] says what follows from them. Of each thing that is
//! looked at it was decided once whether it is refused, mended by the agent or warned of: see [`Check`] and
//! `docs/preflight.md`.

mod checks;
pub mod facts;
mod render;
pub mod resolve;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use checks::{attached, check, check_uplinks};
pub use facts::Facts;
pub use render::{Report, render_table};

/// What a finding means for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The agent does not start.
    Refused,
    /// It starts, and something does not work, or not as fast as it could.
    Warned,
    /// It could not be looked at.
    Unseen,
    /// The agent changes it; `sluice detach` puts it back.
    Mended,
    /// Worth knowing.
    Noted,
}

impl Severity {
    /// As it is printed and documented.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Warned => "warned",
            Self::Unseen => "unseen",
            Self::Mended => "mended",
            Self::Noted => "noted",
        }
    }
}

/// The checks by name, each with what its findings mean, always the same.
macro_rules! checks {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal, $severity:ident;)+) => {
        /// What a finding is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Check {
            $($(#[doc = $doc])+ #[serde(rename = $id)] $name,)+
        }

        impl Check {
            /// Every check, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name for people and programs.
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)+
                }
            }

            /// What its findings mean.
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)+
                }
            }
        }
    };
}

checks! {
    /// The kernel has no tcx (Linux 6.6).
    KernelVersion = "kernel-version", Refused;
    /// A helper that the programs call is not there.
    KernelHelper = "kernel-helper", Refused;
    /// BPF is interpreted.
    KernelJit = "kernel-jit", Refused;
    /// The kernel does not show its types, or has no `bpf_cast_to_kern_ctx`: replies cost more.
    KernelTypes = "kernel-types", Warned;
    /// The kernel is locked down for confidentiality.
    KernelLockdown = "kernel-lockdown", Noted;
    /// Everybody may load BPF programs.
    UnprivilegedBpf = "unprivileged-bpf", Warned;
    /// The process lacks capabilities.
    Capabilities = "capabilities", Refused;
    /// The maps do not fit into what memory is available.
    Memory = "memory", Refused;
    /// The maps take more than half of what memory is available.
    MemoryLow = "memory-low", Warned;
    /// The maps do not fit into what the control group leaves.
    MemoryLimit = "memory-limit", Refused;
    /// The pin directory is on no bpffs yet.
    BpffsMissing = "bpffs-missing", Mended;
    /// The pin directory is on a bpffs that is read-only.
    BpffsReadOnly = "bpffs-read-only", Refused;
    /// The pin directory is on no bpffs and holds files, or is none.
    PinsNoPlace = "pins-no-place", Refused;
    /// Somebody else has pinned there.
    PinsForeign = "pins-foreign", Refused;
    /// An agent with another run directory uses the pin directory.
    PinsInUse = "pins-in-use", Refused;
    /// An earlier agent has left its pins.
    PinsLeft = "pins-left", Noted;
    /// The run directory cannot be written.
    RunDirectory = "run-directory", Refused;
    /// An agent runs already.
    AgentRunning = "agent-running", Noted;
    /// No address of the configuration is on an interface.
    NodeAddress = "node-address", Warned;
    /// The node does not forward packets of a family that has services.
    Forwarding = "forwarding", Refused;
    /// Replies to most clients leave by an interface that is no uplink.
    ReplyWay = "reply-way", Warned;
    /// Strict reverse path filtering, where packets may come by several uplinks.
    ReversePath = "reverse-path", Warned;
    /// There is no such interface.
    UplinkMissing = "uplink-missing", Refused;
    /// An interface of a kind that nothing can be steered on.
    UplinkKind = "uplink-kind", Refused;
    /// A port of a bridge.
    UplinkBridgePort = "uplink-bridge-port", Refused;
    /// A member of a bond or team, which is to be named itself.
    UplinkMember = "uplink-member", Refused;
    /// In a VRF.
    UplinkVrf = "uplink-vrf", Refused;
    /// What it is built on is in another namespace, or built in a circle.
    UplinkElsewhere = "uplink-elsewhere", Refused;
    /// Two uplinks mean one interface, by different modes.
    UplinkModes = "uplink-modes", Refused;
    /// More interfaces than the agent attaches to.
    UplinkTooMany = "uplink-too-many", Refused;
    /// A kind of interface that nobody has tried.
    UplinkUntried = "uplink-untried", Warned;
    /// A bond without members.
    UplinkNoMembers = "uplink-no-members", Warned;
    /// A bond in mode broadcast.
    UplinkBroadcast = "uplink-broadcast", Warned;
    /// Down, or without a carrier.
    UplinkDown = "uplink-down", Warned;
    /// What an uplink is: driver, XDP, queues, MTU.
    UplinkIs = "uplink-is", Noted;
    /// Another XDP program is on the interface, or on what is built on it.
    XdpOther = "xdp-other", Refused;
    /// `mode: native`, and the driver cannot.
    XdpNoNative = "xdp-no-native", Refused;
    /// `mode: auto`, and the driver cannot.
    XdpGeneric = "xdp-generic", Warned;
    /// The driver runs programs and does not redirect.
    XdpNoRedirect = "xdp-no-redirect", Warned;
    /// The MTU may be too large for native mode.
    XdpMtu = "xdp-mtu", Warned;
    /// Fewer queues than CPUs.
    XdpQueues = "xdp-queues", Warned;
    /// A veth with fewer queues than its other end: native mode is refused by the kernel.
    VethQueues = "veth-queues", Warned;
    /// A veth whose other end has no XDP program: what XDP sends back vanishes.
    VethPeer = "veth-peer", Warned;
    /// The kernel reports another mode or program than was attached.
    XdpMode = "xdp-mode", Warned;
    /// What is attached, as the kernel reports it.
    XdpAttached = "xdp-attached", Noted;
    /// Other tcx programs are on the interface.
    TcxOther = "tcx-other", Warned;
    /// Filters of the older kind are on the interface.
    TcFilters = "tc-filters", Warned;
    /// The driver takes VLAN tags out of frames.
    VlanStripping = "vlan-stripping", Mended;
    /// It still does, although it was switched off.
    VlanStrippingStays = "vlan-stripping-stays", Warned;
    /// Generic mode, and GRO or LRO are on.
    GenericGro = "generic-gro", Mended;
    /// Something could not be looked at.
    NotSeen = "not-seen", Unseen;
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub id: Check,
    /// What it means for the agent: that of its check.
    pub severity: Severity,
    /// Interface, directory, setting or address.
    pub object: String,
    /// What was found, with the object's name.
    pub found: String,
    /// What to do, where there is something to do.
    pub advice: Option<String>,
}

impl Finding {
    /// With something to do.
    pub(crate) fn new(
        id: Check,
        object: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { advice: Some(advice.into()), ..Self::note(id, object, found) }
    }

    /// With nothing to do.
    pub(crate) fn note(id: Check, object: impl Into<String>, found: impl Into<String>) -> Self {
        Self { id, severity: id.severity(), object: object.into(), found: found.into(), advice: None }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)?;
        self.advice.as_ref().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}
