//! A lab of several nodes that announce the same VIPs: a network element, a router, the nodes, and a pod on each.
//!
//! ```text
//!                                 switch ┌─ port0 ─ node a ─ pod
//!  element ───── router ═══════════════  ├─ port1 ─ node b ─ pod
//!  192.0.2.10    .1                      └─ port2 ─ node c ─ pod
//! ```
//! Between router and nodes is a namespace of bridges, whose ports are cut and silenced without an end that notices it. On
//! a [`Fabric::Segment`] all are ports of one bridge and in one subnet; by [`Fabric::Routed`] each node has a bridge, a
//! subnet and an interface of the router to itself, as if it were a cable.

mod asker;
mod content;
pub mod moves;
mod ports;
pub mod routed;
pub mod team;

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use aya::Ebpf;

pub use asker::Asker;
pub use content::{ECHO_PORT, Held, VIP_PORT, held_by, vip_routers};
pub use ports::PortState;

use crate::lab::{Directory, Host, Namespace, Options as PodOptions, Pair, Pod, PodLink, UPLINK, attach_pass, unique};

/// The nodes' names, in order.
pub const NAMES: [&str; 3] = ["a", "b", "c"];
/// The router's interface on a segment.
pub const SEGMENT: &str = "segment";
/// Where the VIPs are.
const VIPS: [&str; 2] = ["10.96.0.0/24", "fd00:96::/64"];

/// How nodes and router are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// All on one segment. The router has the VIPs' prefixes on it, and asks who has a VIP.
    Segment,
    /// A link and a subnet for each node. The router has no route to the VIPs until it is told of one.
    Routed,
}

/// A node with its pod.
pub struct Node {
    /// What `announce.node` calls it.
    pub name: &'static str,
    /// Its pod.
    pub pod: Pod,
    /// Its network; it forwards.
    pub namespace: Namespace,
    /// Its addresses on the uplink [`UPLINK`].
    pub addresses: Pair,
    /// The router's addresses on its link.
    pub router: Pair,
    directory: Directory,
}

impl Host for Node {
    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn addresses(&self) -> Pair {
        self.addresses
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// A running lab of several nodes. Fields are dropped in order: programs and nodes before what they hang on.
pub struct Cluster {
    /// Without them what nodes send by `XDP_TX` vanishes.
    programs: Vec<Ebpf>,
    /// The nodes, as in [`NAMES`].
    pub nodes: Vec<Node>,
    /// Next hop of the element and of the nodes; spreads flows over equal routes by addresses and ports.
    pub router: Namespace,
    /// The bridges between.
    pub switch: Namespace,
    /// The network element.
    pub element: Namespace,
    directory: Directory,
    fabric: Fabric,
}

impl Cluster {
    /// Makes the namespaces and joins them. `name` is for people; the whole name is unique on the machine.
    ///
    /// # Panics
    /// With more nodes than [`NAMES`].
    pub fn new(name: &str, fabric: Fabric, nodes: usize) -> Result<Self> {
        let full_name = unique(name);
        let namespace = |role: &str| Namespace::new(format!("{full_name}-{role}"));
        let directory = Directory::new(&full_name)?;
        let mut cluster = Self {
            programs: Vec::new(),
            nodes: Vec::new(),
            router: namespace("router")?,
            switch: namespace("switch")?,
            element: namespace("element")?,
            directory,
            fabric,
        };
        cluster.join()?;
        for (name, number) in NAMES[..nodes].iter().zip(0..) {
            cluster.add_node(&full_name, name, number)?;
        }
        Ok(cluster)
    }

    /// A directory for what runs outside of the nodes; removed with the cluster.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The router's interface towards a node.
    #[must_use]
    pub fn router_interface(&self, node: usize) -> String {
        match self.fabric {
            Fabric::Segment => SEGMENT.to_owned(),
            Fabric::Routed => format!("node{node}"),
        }
    }

    /// The MAC of a node's uplink.
    pub fn mac(&self, node: usize) -> Result<String> {
        let output = self.nodes[node].namespace.command("ip").args(["-j", "link", "show", UPLINK]).output()?;
        let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(links[0]["address"].as_str().context("the uplink has a MAC")?.to_owned())
    }

    fn join(&self) -> Result<()> {
        let (element, router, switch) = (&self.element, &self.router, &self.switch);
        // Made where it belongs: a link that moves between namespaces takes its IPv6 settings along.
        element.ip(&format!("link add eth0 type veth peer name client0 netns {}", router.name()))?;
        router.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/fib_multipath_hash_policy", "1"),
            ("net/ipv6/fib_multipath_hash_policy", "1"),
        ])?;
        switch.sysctl(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
        element.ip("link set eth0 up\n\
             address add 192.0.2.10/24 dev eth0\n\
             address add 2001:db8:1::10/64 dev eth0 nodad\n")?;
        router.ip("link set client0 up\n\
             address add 192.0.2.1/24 dev client0\n\
             address add 2001:db8:1::1/64 dev client0 nodad\n")?;
        element.ip("route add default via 192.0.2.1\nroute add default via 2001:db8:1::1\n")?;
        element.checksum_offload("eth0", false)?;
        router.checksum_offload("client0", false)?;
        match self.fabric {
            Fabric::Routed => Ok(()),
            Fabric::Segment => {
                self.add_bridge(0, SEGMENT)?;
                let Pair { v4, v6 } = self.addresses(0).1;
                router.ip(&format!(
                    "address add {v4}/24 dev {SEGMENT}\n\
                     address add {v6}/64 dev {SEGMENT} nodad\n\
                     route add {} dev {SEGMENT}\n\
                     route add {} dev {SEGMENT}\n",
                    VIPS[0], VIPS[1]
                ))
            }
        }
    }

    /// A bridge, with a port that is the router's.
    fn add_bridge(&self, number: u8, router_interface: &str) -> Result<()> {
        let router = self.router.name();
        self.switch.ip(&format!(
            "link add bridge{number} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
             link set bridge{number} up\n\
             link add router{number} type veth peer name {router_interface} netns {router}\n\
             link set router{number} master bridge{number} up\n"
        ))?;
        self.router.ip(&format!("link set {router_interface} up\n"))?;
        self.switch.checksum_offload(&format!("router{number}"), false)?;
        self.router.checksum_offload(router_interface, false)
    }

    fn add_node(&mut self, full_name: &str, name: &'static str, number: u8) -> Result<()> {
        let full_name = format!("{full_name}-{name}");
        let (addresses, router) = self.addresses(number);
        let directory = Directory::new(&full_name)?;
        let namespace = Namespace::new(format!("{full_name}-node"))?;
        namespace.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let bridge = match self.fabric {
            Fabric::Segment => 0,
            Fabric::Routed => {
                let interface = format!("node{number}");
                self.add_bridge(number, &interface)?;
                self.router.ip(&format!(
                    "address add {}/28 dev {interface}\naddress add {}/64 dev {interface} nodad\n",
                    router.v4, router.v6
                ))?;
                number
            }
        };
        let prefix = match self.fabric {
            Fabric::Segment => 24,
            Fabric::Routed => 28,
        };
        namespace.ip(&format!("link add {UPLINK} type veth peer name port{number} netns {}", self.switch.name()))?;
        self.switch.ip(&format!("link set port{number} master bridge{bridge} up\n"))?;
        namespace.ip(&format!(
            "link set {UPLINK} up\n\
             address add {}/{prefix} dev {UPLINK}\n\
             address add {}/64 dev {UPLINK} nodad\n\
             route add default via {}\n\
             route add default via {}\n",
            addresses.v4, addresses.v6, router.v4, router.v6
        ))?;
        self.switch.checksum_offload(&format!("port{number}"), false)?;
        namespace.checksum_offload(UPLINK, false)?;
        self.programs.push(attach_pass(&self.switch, &format!("port{number}"))?);
        let options = PodOptions { pods: 1, pod_link: PodLink::Routed, checksum_offload: false };
        let pod = Pod::new(&full_name, (number + 1, 1), &namespace, options)?;
        self.nodes.push(Node { name, pod, namespace, addresses, router, directory });
        Ok(())
    }

    /// A node's, and those of the router on its link.
    fn addresses(&self, number: u8) -> (Pair, Pair) {
        let pair = |last: u8, net: u8| Pair {
            v4: Ipv4Addr::new(198, 51, 100, last),
            v6: [0x2001, 0xdb8, 2, net.into(), 0, 0, 0, last.into()].into(),
        };
        match self.fabric {
            Fabric::Segment => (pair(10 + number, 0), pair(1, 0)),
            Fabric::Routed => (pair(16 * number + 10, number), pair(16 * number + 1, number)),
        }
    }
}
