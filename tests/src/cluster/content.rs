//! What agents of a cluster are configured with, and what they say of it.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use serde_json::Value;

use super::{Cluster, Node};
use crate::{
    agent::{Agent, Configuration, Service},
    lab::Family,
};

/// Where the echo of a pod listens.
pub const ECHO_PORT: u16 = 7007;
/// The services' port at each VIP.
pub const VIP_PORT: u16 = 7;

impl Cluster {
    /// The configuration of a node's agent: an echo at each VIP, by the node's own pod. `announce` is what stands below
    /// `announce:` beside `node` and `nodes`, as lines of YAML indented by two.
    #[must_use]
    pub fn yaml(&self, node: usize, vips: &[IpAddr], announce: &str) -> String {
        self.yaml_serving(node, vips, vips, announce)
    }

    /// The same, where the node's own pod serves only `served` of them; the others have no backend.
    #[must_use]
    pub fn yaml_serving(&self, node: usize, vips: &[IpAddr], served: &[IpAddr], announce: &str) -> String {
        let host: &Node = &self.nodes[node];
        let service = |vip: &IpAddr| {
            let family = if vip.is_ipv4() { Family::V4 } else { Family::V6 };
            Service {
                name: format!("echo-{}", vip.to_string().replace([':', '.'], "-")),
                vip: *vip,
                protocol: "UDP",
                port: VIP_PORT,
                replies: None,
                rung: "auto",
                backends: served
                    .contains(vip)
                    .then(|| SocketAddr::new(host.pod.addresses.of(family), ECHO_PORT))
                    .into_iter()
                    .collect(),
            }
        };
        let services = vips.iter().map(service).collect();
        let mut yaml = Configuration { mode: "native", services }.yaml_in(host);
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name).collect();
        write!(yaml, "announce:\n  node: {}\n  nodes: [{}]\n{announce}", host.name, names.join(", "))
            .expect("writing to a string cannot fail");
        yaml
    }
}

/// A VIP as an agent sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The VIP.
    pub vip: IpAddr,
    /// This node answers for it.
    pub holds: bool,
}

/// Which VIPs an agent says that it answers for.
pub fn held_by(agent: &Agent) -> Result<Vec<Held>> {
    let status = agent.status()?;
    let all = status["announce"]["vips"].as_array().cloned().unwrap_or_default();
    let held = |entry: &Value| {
        let holds = entry["means"].as_array()?.iter().any(|means| means["holds"] == true);
        Some(Held { vip: entry["vip"].as_str()?.parse().ok()?, holds })
    };
    Ok(all.iter().filter_map(held).collect())
}

/// The states of an agent's virtual routers, in the order of their numbers.
pub fn vip_routers(agent: &Agent) -> Result<Vec<String>> {
    let status = agent.status()?;
    let routers = status["announce"]["routers"].as_array().cloned().unwrap_or_default();
    Ok(routers.iter().filter_map(|router| router["state"].as_str().map(str::to_owned)).collect())
}
