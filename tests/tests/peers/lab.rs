//! A node with one peer, a router that runs BIRD, and what both are configured with.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_tests::{
    agent::{Agent, Configuration, Service},
    lab::{Family, Lab, NODE, Options, wait_until},
    programs::{PATIENCE, bird::Bird},
};
use serde_json::Value;

pub const POD_PORT: u16 = 8080;
pub const VIP_PORT: u16 = 80;
/// Where no route but BGP's leads to.
pub const VIPS: [&str; 2] = ["203.0.113.77", "2001:db8:77::1"];

pub fn vip(family: Family) -> IpAddr {
    let at = match family {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    VIPS[at].parse().expect("an address")
}

pub fn lab(name: &str) -> Result<Lab> {
    let mut lab = Lab::new(name, Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    Ok(lab)
}

pub fn yaml(lab: &Lab, has_backends: bool, announce: &str) -> String {
    let service = |family: &Family| Service {
        name: format!("service-{family:?}"),
        vip: vip(*family),
        protocol: "TCP",
        port: VIP_PORT,
        replies: None,
        rung: "auto",
        backends: if has_backends {
            vec![SocketAddr::new(lab.pods[0].addresses.of(*family), POD_PORT)]
        } else {
            vec![]
        },
    };
    let services = Family::BOTH.iter().map(service).collect();
    format!("{}announce: {announce}\n", Configuration { mode: "native", services }.yaml_in(lab))
}

/// The router's BIRD: `lines` in its BGP protocol, and `bfd` of its BFD protocol.
pub fn router(lab: &Lab, name: &str, lines: &str, bfd: &str) -> Result<Bird> {
    let configuration = format!(
        "router id 198.51.100.1;\n\
         protocol device {{ scan time 1; }}\n\
         protocol direct {{ ipv4; ipv6; }}\n\
         protocol kernel k4 {{ ipv4 {{ export where source = RTS_BGP; }}; }}\n\
         protocol kernel k6 {{ ipv6 {{ export where source = RTS_BGP; }}; }}\n\
         {bfd}\n\
         protocol bgp node {{\n\
           local 198.51.100.1 as 64513;\n\
           neighbor {} as 64512;\n\
           connect delay time 1; connect retry time 1; error wait time 1, 1;\n\
           {lines}\n\
           ipv4 {{ import all; export none; }};\n\
           ipv6 {{ import all; export none; }};\n\
         }}\n",
        NODE.v4
    );
    let bird = Bird::router(&lab.router, name, &configuration, lab.directory())?;
    bird.hurry()?;
    Ok(bird)
}

pub fn bgp(peer: &str) -> String {
    format!(
        "{{ bfd: [{{ name: fast, interval: 100ms }}], \
         bgp: {{ localAs: 64512, shutdownWait: 1s, peers: [{{ name: tor, address: 198.51.100.1, as: 64513{peer} }}] }} }}"
    )
}

/// Waits until the router has this many routes of the node.
pub fn wait_routes(bird: &Bird, count: usize) -> Result<String> {
    let found = wait_until(&format!("{count} routes at the router"), PATIENCE, || {
        let shown = bird.control(&["show", "route", "all", "where", "source", "=", "RTS_BGP"])?;
        let has = VIPS.iter().filter(|vip| shown.contains(&format!("{vip}/"))).count();
        Ok((has == count).then_some(shown))
    });
    found.with_context(|| bird.log_tail())
}

pub fn wait_state(agent: &Agent, state: &str) -> Result<Value> {
    agent.wait_status(&format!("the peer to be {state}"), |status| {
        let peer = &status["announce"]["bgp"][0];
        (peer["state"] == state).then(|| peer.clone())
    })
}

/// The reasons against a VIP's first means.
pub fn against(status: &Value, vip: IpAddr) -> Option<Vec<String>> {
    let vips = status["announce"]["vips"].as_array()?;
    let means = &vips.iter().find(|entry| entry["vip"] == vip.to_string())?["means"][0];
    let reasons = means["against"].as_array()?;
    Some(reasons.iter().filter_map(|reason| reason["reason"].as_str().map(str::to_owned)).collect())
}
