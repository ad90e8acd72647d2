//! Pods: a namespace with one veth into the node.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Result;

use super::{Family, Namespace, Options, Pair};

/// Prefixes of the pods' addresses; the router has routes for both, so that tests can leave the VIPs out.
pub(super) const PREFIX_V4: &str = "10.244.0.0/24";
pub(super) const PREFIX_V6: &str = "fd00:244::/64";

/// First pod's last address byte, less one.
const FIRST_ADDRESS: u8 = 10;

/// The discard port (RFC 863): no program of the tests listens on it.
const UNUSED_PORT: u16 = 9;

/// How pods are connected to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodLink {
    /// A /32 route for each pod; the host side of the veth is the gateway, at a link-local address.
    Routed,
    /// The host sides are ports of the bridge `cni0`, which is the gateway.
    Bridge,
}

/// A pod of the lab's node.
#[derive(Debug)]
pub struct Pod {
    /// Number of the pod, from 1.
    pub index: u8,
    /// Its namespace; the interface is called `eth0`.
    pub namespace: Namespace,
    /// Its addresses.
    pub addresses: Pair,
    /// The node's side of its veth.
    pub host_interface: String,
    lab: String,
    /// Counts the namespaces and veths this pod has had, for fresh names.
    generation: u32,
}

/// What pods of this kind need on the node.
pub(super) fn prepare(node: &Namespace, link: PodLink) -> Result<()> {
    match link {
        PodLink::Routed => Ok(()),
        PodLink::Bridge => node.ip("link add cni0 type bridge\n\
             link set cni0 up\n\
             address add 10.244.0.1/24 dev cni0\n\
             address add fd00:244::1/64 dev cni0 nodad\n"),
    }
}

impl Pod {
    /// `place` is the node's number, which its pods' addresses have in them, and the pod's, from 1.
    pub(crate) fn new(lab: &str, place: (u8, u8), node: &Namespace, options: Options) -> Result<Self> {
        let (net, index) = place;
        let last = FIRST_ADDRESS + index;
        let pod = Self {
            index,
            namespace: Namespace::new(format!("{lab}-pod{index}"))?,
            addresses: Pair {
                v4: [10, 244, net, last].into(),
                v6: [0xfd00, 0x244, 0, net.into(), 0, 0, 0, last.into()].into(),
            },
            host_interface: format!("veth-pod{index}"),
            lab: lab.to_owned(),
            generation: 1,
        };
        pod.wire(node, options)?;
        Ok(pod)
    }

    /// What people call it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("pod{}", self.index)
    }

    pub(super) fn renew(&mut self) -> Result<()> {
        self.generation += 1;
        // The old name goes as its successor takes the field; the kernel ends the old namespace in its own time.
        self.namespace = Namespace::new(format!("{}-pod{}-{}", self.lab, self.index, self.generation))?;
        Ok(())
    }

    pub(super) fn rewire(&mut self, node: &Namespace, options: Options) -> Result<()> {
        self.unwire(node)?;
        self.generation += 1;
        self.host_interface = format!("veth-pod{}-{}", self.index, self.generation);
        self.wire(node, options)
    }

    /// Removes the veth from the host side, which waits for both ends to be gone.
    pub(super) fn unwire(&self, node: &Namespace) -> Result<()> {
        node.ip(&format!("link del {}", self.host_interface))
    }

    pub(super) fn wire(&self, node: &Namespace, options: Options) -> Result<()> {
        let (host, pod) = (&self.host_interface, &self.namespace);
        let Pair { v4, v6 } = self.addresses;
        node.ip(&format!("link add {host} type veth peer name eth0 netns {}\n", pod.name()))?;
        match options.pod_link {
            PodLink::Routed => {
                node.ip(&format!(
                    "link set {host} up\n\
                     address add 169.254.1.1/32 dev {host}\n\
                     address add fe80::1/64 dev {host} nodad\n\
                     route add {v4}/32 dev {host}\n"
                ))?;
                pod.ip(&format!(
                    "link set eth0 up\n\
                     address add {v4}/32 dev eth0\n\
                     address add {v6}/128 dev eth0 nodad\n\
                     route add 169.254.1.1/32 dev eth0 scope link\n\
                     route add default via 169.254.1.1 dev eth0\n\
                     route add default via fe80::1 dev eth0\n"
                ))?;
                // A link is ready for IPv6 routes once both of its ends are up.
                node.ip(&format!("route add {v6}/128 dev {host}\n"))?;
            }
            PodLink::Bridge => {
                node.ip(&format!("link set {host} master cni0 up\n"))?;
                pod.ip(&format!(
                    "link set eth0 up\n\
                     address add {v4}/24 dev eth0\n\
                     address add {v6}/64 dev eth0 nodad\n\
                     route add default via 10.244.0.1\n\
                     route add default via fd00:244::1\n"
                ))?;
            }
        }
        node.checksum_offload(host, options.checksum_offload)?;
        pod.checksum_offload("eth0", options.checksum_offload)
    }

    /// Whether the pod's kernel answers `from`: it refuses a connection to a port that nobody listens on.
    #[must_use]
    pub fn answers(&self, from: &Namespace, family: Family) -> bool {
        let target = SocketAddr::new(self.addresses.of(family), UNUSED_PORT);
        let outcome = from.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(1)));
        outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }
}
