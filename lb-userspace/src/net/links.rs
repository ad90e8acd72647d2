//! Interfaces of this node, and the pods behind its veths, without knowing the CNI.
//!
//! The kernel says for each veth in which namespace its peer is and what index it has there, and dumps the interfaces
//! and addresses of that namespace without anybody entering it (`IFLA_TARGET_NETNSID`, Linux 4.20).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{
        BondMode, InfoBond, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
    },
};

use super::{Error, InterfaceIndex, Netlink, NetnsId, Result, loopback};

/// An Ethernet address; all zero where the interface has none.
pub type Mac = [u8; 6];

/// As people write it.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// The interfaces of a namespace, and the pods reached through them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Ordered by index.
    pub links: Vec<Link>,
    /// One entry for each veth whose peer is in another namespace; ordered by `host_ifindex`. Not only Kubernetes pods:
    /// whatever sits behind such a veth.
    pub pods: Vec<PodInterface>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: InterfaceIndex,
    /// Its name, which its owner may change at any time.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Its address on the wire.
    pub mac: Mac,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Its frames begin with an Ethernet header.
    pub is_ethernet: bool,
    /// Queues that it was made with for frames that come in, and for frames that go out; the driver may use fewer.
    pub queues: (u32, u32),
    /// Its administrator wants it up.
    pub is_up: bool,
    /// It can carry packets: up, and its lower layer too (a veth's peer is up, a cable has a carrier).
    pub is_running: bool,
    /// The bridge, bond or VRF it is part of, in the same namespace.
    pub master: Option<InterfaceIndex>,
    /// The interface it is tied to: a veth's peer, a VLAN's parent. An index in `peer_netns` if that is there.
    pub peer: Option<InterfaceIndex>,
    /// Where `peer` is, if not in the same namespace.
    pub peer_netns: Option<NetnsId>,
    /// XDP programs on it; more than one only where generic mode and native or hardware mode are used side by side.
    pub xdp: Vec<XdpAttachment>,
    /// Its addresses of every scope.
    pub addresses: Vec<InterfaceAddress>,
}

/// What an interface is, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// One end of a pair of virtual Ethernet interfaces.
    Veth,
    /// A bridge of the kernel.
    Bridge,
    /// A VRF: sockets of its members are invisible from outside.
    Vrf,
    /// Several interfaces that are used as one.
    Bond(Bond),
    /// The VLAN of its `peer` with this identifier (802.1Q, 9.6), where the kernel tells it.
    Vlan(Option<u16>),
    /// Any other virtual device, by the kernel's name for the kind.
    Other(String),
    /// No kind: a physical interface, as a rule.
    Physical,
}

/// What matters of a bond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bond {
    /// Sends each frame by every member, so that each that comes in may come several times.
    pub is_broadcast: bool,
    /// The member that carries everything, in the modes that have one.
    pub active: Option<InterfaceIndex>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// Where it runs.
    pub mode: XdpMode,
    /// Its id, as `bpftool prog show id` takes it.
    pub program_id: u32,
}

/// Where an attached XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// On the socket buffer.
    Generic,
    /// On the device.
    Hardware,
}

/// An address with its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The address of this end.
    pub address: IpAddr,
    /// Bits of the subnet, 0–32 or 0–128.
    pub prefix_length: u8,
    /// Routable: neither link-local nor only for the host itself.
    pub is_global: bool,
    /// It is not known yet whether another has it too (RFC 4862, 5.4), and nothing may be sent from it.
    pub is_tentative: bool,
    /// Put there by an agent: see [`loopback`](super::loopback).
    pub is_assigned: bool,
}

/// A pod's interface, seen from its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// The end in this namespace: what packets for the pod are redirected to.
    pub host_ifindex: InterfaceIndex,
    /// Name of that end.
    pub host_name: String,
    /// Address on the wire of that end.
    pub host_mac: Mac,
    /// The pod's end, an index in the pod's namespace.
    pub pod_ifindex: InterfaceIndex,
    /// Name of the pod's end.
    pub pod_name: String,
    /// Where packets for the pod are addressed to on the wire.
    pub pod_mac: Mac,
    /// Largest IP packet in bytes that passes both ends.
    pub mtu: u32,
    /// Both ends are up.
    pub is_running: bool,
    /// The pod's namespace, by our id for it; `bpf_skc_lookup_tcp` takes the same.
    pub netns_id: NetnsId,
    /// Addresses of global scope on the pod's end, ordered. Without those that duplicate address detection refused.
    pub addresses: Vec<IpAddr>,
    /// Addresses of global scope on the pod's `lo`, ordered: VIPs that the pod answers for itself, as a rule.
    pub loopback_addresses: Vec<IpAddr>,
    /// All that the pod's `lo` has, of every scope.
    pub loopback: Vec<InterfaceAddress>,
}

impl Links {
    /// The interface of that name.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The interface of that index.
    pub fn by_index(&self, index: InterfaceIndex) -> Option<&Link> {
        self.links.binary_search_by_key(&index, |link| link.index).ok().map(|at| &self.links[at])
    }

    /// This node's own addresses, of every scope.
    pub fn addresses(&self) -> impl Iterator<Item = &InterfaceAddress> {
        self.links.iter().flat_map(|link| &link.addresses)
    }

    /// The pod whose interface has this address. Of several, as when a pod with a fixed address restarts, one that is
    /// running, and then the latest.
    pub fn pod_with_address(&self, address: IpAddr) -> Option<&PodInterface> {
        let has = |pod: &&PodInterface| pod.addresses.contains(&address);
        self.pods.iter().filter(has).max_by_key(|pod| (pod.is_running, pod.host_ifindex))
    }
}

/// Reads the interfaces of the namespace of `netlink`, ordered by index, without looking behind them: two dumps.
pub fn of_node(netlink: &mut Netlink) -> Result<Vec<Link>> {
    read_links(netlink, None)
}

/// The other end of a veth, wherever it is. None if it is gone, or is no veth.
///
/// # Errors
/// Without CAP_NET_ADMIN where that end is in another namespace.
pub fn veth_end(netlink: &mut Netlink, link: &Link) -> Result<Option<Link>> {
    let Some(peer) = link.peer.filter(|_| link.kind == LinkKind::Veth) else { return Ok(None) };
    let links = read_links(netlink, link.peer_netns)?;
    Ok(links.into_iter().find(|end| end.index == peer && end.peer == Some(link.index)))
}

/// Reads the interfaces of the namespace of `netlink`, and the pods behind them: two dumps for each namespace.
///
/// Namespaces are read one after the other; a pod that vanishes meanwhile is left out, and the change is notified.
///
/// # Errors
/// Without CAP_NET_ADMIN, also over the user namespace that owns the pods' namespaces.
pub fn snapshot(netlink: &mut Netlink) -> Result<Links> {
    let links = read_links(netlink, None)?;
    let mut pods = Vec::new();
    let namespaces: BTreeSet<NetnsId> = links.iter().filter_map(veth_peer).map(|(id, _)| id).collect();
    for id in namespaces {
        let inside = match read_links(netlink, Some(id)) {
            Err(Error::NoNamespace { .. }) => continue,
            other => other?,
        };
        let ends = inside.iter().map(|link| (link.index, link)).collect();
        let here = links.iter().filter(|link| veth_peer(link).is_some_and(|(peer_netns, _)| peer_netns == id));
        pods.extend(here.filter_map(|host| pod_interface(host, id, &ends)));
    }
    pods.sort_by_key(|pod: &PodInterface| pod.host_ifindex);
    Ok(Links { links, pods })
}

fn veth_peer(link: &Link) -> Option<(NetnsId, InterfaceIndex)> {
    (link.kind == LinkKind::Veth).then_some(link.peer_netns.zip(link.peer)).flatten()
}

fn pod_interface(host: &Link, netns_id: NetnsId, inside: &BTreeMap<InterfaceIndex, &Link>) -> Option<PodInterface> {
    let pod = inside.get(&host.peer?)?;
    // The id or the index was given to another between the two readings.
    if pod.kind != LinkKind::Veth || pod.peer != Some(host.index) {
        return None;
    }
    let global = |link: &Link| {
        let mut addresses: Vec<_> =
            link.addresses.iter().filter(|address| address.is_global).map(|address| address.address).collect();
        addresses.sort_unstable();
        addresses
    };
    let loopback = inside.values().find(|link| link.kind == LinkKind::Loopback);
    Some(PodInterface {
        host_ifindex: host.index,
        host_name: host.name.clone(),
        host_mac: host.mac,
        pod_ifindex: pod.index,
        pod_name: pod.name.clone(),
        pod_mac: pod.mac,
        mtu: host.mtu.min(pod.mtu),
        is_running: host.is_running && pod.is_running,
        netns_id,
        addresses: global(pod),
        loopback_addresses: loopback.map(|link| global(link)).unwrap_or_default(),
        loopback: loopback.map(|link| link.addresses.clone()).unwrap_or_default(),
    })
}

/// The interfaces with their addresses, of our namespace or of `namespace`.
fn read_links(netlink: &mut Netlink, namespace: Option<NetnsId>) -> Result<Vec<Link>> {
    let mut question = LinkMessage::default();
    // Most of an answer is counters that nobody here reads.
    question.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    question.attributes.extend(namespace.map(|id| LinkAttribute::IfNetnsId(id.0)));
    let answers = dump(netlink, "list interfaces", namespace, RouteNetlinkMessage::GetLink(question))?;
    let mut links: BTreeMap<InterfaceIndex, Link> = answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some((message.header.index, decode_link(message))),
            _ => None,
        })
        .collect();

    let mut question = AddressMessage::default();
    question.attributes.extend(namespace.map(|id| AddressAttribute::TargetNetNsId(id.0)));
    for answer in dump(netlink, "list addresses", namespace, RouteNetlinkMessage::GetAddress(question))? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if let (Some(link), Some(address)) = (links.get_mut(&message.header.index), decode_address(&message)) {
            link.addresses.push(address);
        }
    }
    Ok(links.into_values().collect())
}

fn dump(
    netlink: &mut Netlink,
    what: &str,
    namespace: Option<NetnsId>,
    question: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>> {
    let Some(id) = namespace else { return netlink.dump(what, question) };
    let action = format!("{what} of the namespace with id {id}");
    netlink.dump(&action, question).map_err(|error| match error {
        Error::Kernel { action, source } if source.raw_os_error() == Some(libc::EINVAL) => {
            Error::NoNamespace { action, id }
        }
        other => other,
    })
}

pub(crate) fn decode_link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: if flags.contains(LinkFlags::Loopback) { LinkKind::Loopback } else { LinkKind::Physical },
        mac: [0; 6],
        mtu: 0,
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        queues: (1, 1),
        is_up: flags.contains(LinkFlags::Up),
        is_running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        master: None,
        peer: None,
        peer_netns: None,
        xdp: Vec::new(),
        addresses: Vec::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::NumRxQueues(queues) => link.queues.0 = queues,
            LinkAttribute::NumTxQueues(queues) => link.queues.1 = queues,
            LinkAttribute::Controller(index) => link.master = Some(index),
            // 0: the peer is gone, or there is none, as for a tunnel.
            LinkAttribute::Link(index) if index != 0 => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(id) if id >= 0 => link.peer_netns = Some(NetnsId(id)),
            LinkAttribute::LinkInfo(infos) => link.kind = decode_kind(&infos).unwrap_or(link.kind),
            LinkAttribute::Xdp(attributes) => link.xdp = decode_xdp(&attributes),
            _ => {}
        }
    }
    link
}

fn decode_kind(infos: &[LinkInfo]) -> Option<LinkKind> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Veth) => Some(LinkKind::Veth),
        LinkInfo::Kind(InfoKind::Bridge) => Some(LinkKind::Bridge),
        LinkInfo::Kind(InfoKind::Vrf) => Some(LinkKind::Vrf),
        LinkInfo::Kind(InfoKind::Bond) => Some(LinkKind::Bond(decode_bond(infos))),
        LinkInfo::Kind(InfoKind::Vlan) => Some(LinkKind::Vlan(decode_vlan(infos))),
        LinkInfo::Kind(other) => Some(LinkKind::Other(other.to_string())),
        _ => None,
    })
}

fn decode_vlan(infos: &[LinkInfo]) -> Option<u16> {
    let id = |info: &LinkInfo| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => data.iter().find_map(|attribute| match attribute {
            InfoVlan::Id(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    };
    infos.iter().find_map(id)
}

fn decode_bond(infos: &[LinkInfo]) -> Bond {
    let mut bond = Bond::default();
    let data = infos.iter().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Bond(data)) => Some(data),
        _ => None,
    });
    for attribute in data.flatten() {
        match attribute {
            InfoBond::Mode(mode) => bond.is_broadcast = *mode == BondMode::Broadcast,
            InfoBond::ActivePort(index) if *index != 0 => bond.active = Some(*index),
            _ => {}
        }
    }
    bond
}

/// The kernel gives the id twice: in general while only one program is attached, and by mode always.
fn decode_xdp(attributes: &[LinkXdp]) -> Vec<XdpAttachment> {
    let attached = attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkXdp::Attached(attached) if *attached != XdpAttached::None));
    let attachment = |attribute: &LinkXdp| {
        let (mode, program_id) = match *attribute {
            LinkXdp::DrvProgId(id) => (XdpMode::Native, id),
            LinkXdp::SkbProgId(id) => (XdpMode::Generic, id),
            LinkXdp::HwProgId(id) => (XdpMode::Hardware, id),
            _ => return None,
        };
        (attached && program_id != 0).then_some(XdpAttachment { mode, program_id })
    };
    attributes.iter().filter_map(attachment).collect()
}

fn decode_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let (mut local, mut address, mut is_assigned, mut flags) = (None, None, false, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface `Address` is the other end's; IPv6 has only that one otherwise.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Protocol(protocol) => is_assigned = *protocol == loopback::ASSIGNED,
            _ => {}
        }
    }
    let address = local.or(address).filter(|_| !flags.contains(AddressFlags::Dadfailed))?;
    let is_tentative = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    let is_global = message.header.scope == AddressScope::Universe;
    Some(InterfaceAddress { address, prefix_length: message.header.prefix_len, is_global, is_tentative, is_assigned })
}

#[cfg(test)]
mod tests;
