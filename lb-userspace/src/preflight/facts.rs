//! What was seen of a node. Plain values; `None` is what could not be looked at, and [`Facts::unseen`] says why.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use crate::net::{
    InterfaceIndex,
    ethtool::Queues,
    filters::Filter,
    links::{Link, XdpMode},
    xdp_features::XdpFeatures,
};

/// Everything that [`check`](super::check) looks at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The kernel.
    pub kernel: Kernel,
    /// Capabilities that the process lacks, each with what it is for.
    pub missing_capabilities: Vec<String>,
    /// Memory.
    pub memory: Memory,
    /// The pin directory.
    pub pins: Pins,
    /// The run directory.
    pub run: RunDirectory,
    /// CPUs that packets may be handled on.
    pub cpus: u32,
    /// This node's interfaces, ordered by index.
    pub links: Vec<Link>,
    /// More about those that uplinks mean.
    pub devices: BTreeMap<InterfaceIndex, Device>,
    /// Interfaces of the default routes, of any family.
    pub default_ways: Vec<InterfaceIndex>,
    /// Whether the node forwards IPv4, and IPv6.
    pub forwarding: [Option<bool>; 2],
    /// Interfaces whose reverse path filter is strict (`net.ipv4.conf.*.rp_filter` 1).
    pub strict_reverse_path: Vec<String>,
    /// What could not be looked at.
    pub unseen: Vec<Unseen>,
}

/// What the kernel can.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// Whether it has tcx.
    pub tcx: Option<bool>,
    /// Helpers that it lacks, as `PROGRAM TYPE: bpf_HELPER, which DOES`.
    pub missing_helpers: Vec<String>,
    /// Whether it compiles BPF.
    pub jit: Option<bool>,
    /// Whether its types tell where a packet's checksum state lies.
    pub types: bool,
    /// What it is locked down for: `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// `kernel.unprivileged_bpf_disabled`; 0: anybody may load programs.
    pub unprivileged_bpf_disabled: Option<u8>,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Of the maps that the agent would make, less those of maps that it frees first; 0 where it goes on with what is there.
    pub maps_bytes: u64,
    /// `MemAvailable`.
    pub available_bytes: Option<u64>,
    /// What the control groups of this process leave; none without a limit.
    pub group_left_bytes: Option<u64>,
}

/// The pin directory, as it is.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// Its path.
    pub path: PathBuf,
    /// What is there.
    pub state: PinsState,
    /// Process that holds it.
    pub holder: Option<u32>,
}

/// What is at the pin directory's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PinsState {
    /// Nobody could look.
    #[default]
    Unseen,
    /// Nothing, or an empty directory, and no bpffs: the agent mounts one.
    NoBpffs,
    /// A directory with files, no bpffs, or something that is no directory; what stands in the way.
    NoPlace(String),
    /// A bpffs that cannot be written.
    ReadOnly,
    /// A place on a bpffs: nothing, or a directory without what agents make.
    Free,
    /// What an agent has marked and left, or uses.
    Agents,
    /// What an agent would make is there, and no agent made it: its name.
    Foreign(String),
}

/// The run directory, as it is.
#[derive(Clone, Debug, Default)]
pub struct RunDirectory {
    /// Its path.
    pub path: PathBuf,
    /// Why it cannot be used; none where it can, or can be made.
    pub obstacle: Option<String>,
    /// Process that holds its lock.
    pub holder: Option<u32>,
}

/// More about an interface that programs are attached to.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Name of the driver.
    pub driver: Option<String>,
    /// What the driver can do with XDP.
    pub xdp: Option<XdpFeatures>,
    /// Queues for what comes in.
    pub queues: Option<Queues>,
    /// XDP programs on it that are no agent's of this pin directory.
    pub other_xdp: Vec<Program>,
    /// tcx programs of others, with their place.
    pub other_tcx: Vec<Program>,
    /// Filters of the older kind.
    pub filters: Vec<Filter>,
    /// Whether the driver takes VLAN tags out.
    pub strips_vlan: Option<bool>,
    /// Whether packets are merged (GRO or LRO).
    pub merges: Option<bool>,
    /// Of a veth, the other end.
    pub end: Option<End>,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where on the interface: an XDP mode, `ingress` or `egress`.
    pub place: &'static str,
    /// Its name, where it could be asked for.
    pub name: Option<String>,
    /// Its id, as `bpftool prog show id` takes it.
    pub id: u32,
}

/// The other end of a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Queues that it sends by, where its namespace could be asked.
    pub sending_queues: Option<u32>,
    /// Whether an XDP program runs in its driver.
    pub has_native_xdp: bool,
}

/// What could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// An uplink's interface after it was attached.
#[derive(Clone, Debug)]
pub struct AttachedFacts {
    /// Its name.
    pub interface: String,
    /// Whether it was attached in generic mode.
    pub is_generic: bool,
    /// Whether the configuration leaves the mode to the agent.
    pub is_auto: bool,
    /// Id of the program that was attached, where it is known.
    pub program_id: Option<u32>,
    /// What the kernel reports.
    pub reported: Vec<(XdpMode, u32)>,
    /// Whether the driver takes VLAN tags out all the same.
    pub strips_vlan: bool,
}

/// The addresses of the interfaces.
pub(super) fn has_address(links: &[Link], address: IpAddr) -> bool {
    links.iter().flat_map(|link| &link.addresses).any(|own| own.address == address)
}
