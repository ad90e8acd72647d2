//! Routed nodes, and a router of which BIRD learns their routes.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, Result};

use super::{
    Fabric,
    team::{Kind, Team},
};
use crate::{
    lab::{vip, wait_until},
    programs::{PATIENCE, bird::Bird},
};

/// Nodes that there are.
pub const NODES: usize = 2;
const ROUTER_AS: u32 = 64513;
const NODES_AS: u32 = 64512;
/// From one packet of BFD to the next, in milliseconds, on both sides; three may be missed. The least that a virtual machine can
/// keep that stands still for 50 to 75 ms at times.
pub const FAST: u32 = 50;

/// The same for BIRD.
fn pace(milliseconds: u32) -> String {
    format!("interval {milliseconds} ms; multiplier 3;")
}

/// What the router makes of BFD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Nothing.
    Without,
    /// A node that falls silent is gone.
    Bfd,
    /// A restart that was announced is one for BFD too.
    BfdGraceful,
}

impl Watch {
    const fn line(self) -> &'static str {
        match self {
            Self::Without => "",
            Self::Bfd => "bfd on;",
            Self::BfdGraceful => "bfd graceful;",
        }
    }
}

/// What agents do at SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// They say that they go.
    Ordered,
    /// They say nothing, and come back.
    Graceful,
}

/// Agents on the nodes.
#[must_use]
pub fn agents(watch: Watch, milliseconds: u32, stop: Stop) -> Kind {
    Kind::Sluice { announces: (0..NODES).map(|node| announce(node, watch, milliseconds, stop)).collect() }
}

/// BIRD on the nodes.
#[must_use]
pub fn speakers() -> Kind {
    Kind::Bird { configurations: (0..NODES).map(speaker).collect() }
}

/// A team, and the router's BIRD, which goes before what it speaks with.
pub struct Peers {
    /// The router's BIRD.
    pub router: Bird,
    /// The nodes.
    pub team: Team,
}

impl Peers {
    /// Starts everything, and waits until the router has routes over all nodes.
    pub fn start(watch: Watch, milliseconds: u32, kind: Kind) -> Result<Self> {
        Self::start_with(&[vip(1).v4.into()], watch, milliseconds, kind)
    }

    /// The same with these VIPs, the first one that of probes.
    pub fn start_with(vips: &[IpAddr], watch: Watch, milliseconds: u32, kind: Kind) -> Result<Self> {
        let team = Team::start("routed", Fabric::Routed, NODES, vips, kind)?;
        let router = Bird::router(&team.cluster.router, "router", &router(watch, milliseconds), team.directory())?;
        router.hurry()?;
        let peers = Self { router, team };
        peers.wait_routes(watch)?;
        Ok(peers)
    }

    /// Waits until the router knows of all nodes and its kernel has a route over all, and BFD is up where it is wanted.
    pub fn wait_routes(&self, watch: Watch) -> Result<()> {
        let ready = wait_until("routes over all nodes", PATIENCE, || {
            let output =
                self.team.cluster.router.command("ip").args(["route", "show", &vip(1).v4.to_string()]).output()?;
            let hops = String::from_utf8_lossy(&output.stdout).matches(" via ").count();
            let up = self.router.control(&["show", "bfd", "sessions"])?.matches(" Up ").count();
            Ok((hops == NODES && (watch == Watch::Without || up == NODES)).then_some(()))
        });
        ready.with_context(|| format!("{}\n{}", self.router.log_tail(), self.team.logs()))
    }
}

/// The addresses of a node and of its router, as the cluster gives them.
fn addresses(node: usize) -> (String, String) {
    (format!("198.51.100.{}", 16 * node + 10), format!("198.51.100.{}", 16 * node + 1))
}

fn announce(node: usize, watch: Watch, milliseconds: u32, stop: Stop) -> String {
    let router = addresses(node).1;
    let (profile, bfd) = match watch {
        Watch::Without => (String::new(), ""),
        Watch::Bfd | Watch::BfdGraceful => {
            (format!("  bfd: [{{ name: fast, interval: {milliseconds}ms, multiplier: 3 }}]\n"), ", bfd: fast")
        }
    };
    let (stop, restart) = match stop {
        Stop::Ordered => ("ordered", ""),
        Stop::Graceful => ("graceful", ", gracefulRestart: 30s"),
    };
    format!(
        "{profile}  bgp:\n    localAs: {NODES_AS}\n    stop: {stop}\n    shutdownWait: 1s\n    \
         peers: [{{ name: tor, address: {router}, as: {ROUTER_AS}, families: [ipv4]{bfd}{restart} }}]\n"
    )
}

/// A node's BIRD, which exports the VIP that is on `lo`.
fn speaker(node: usize) -> String {
    let (own, router) = addresses(node);
    format!(
        "router id {own};\n\
         protocol device {{ scan time 1; }}\n\
         protocol static announced {{ ipv4; route {vip}/32 via \"lo\"; }}\n\
         protocol bfd {{ interface \"*\" {{ {bfd} }}; }}\n\
         protocol bgp tor {{\n\
           local {own} as {NODES_AS};\n\
           neighbor {router} as {ROUTER_AS};\n\
           connect delay time 1; connect retry time 1; error wait time 1, 1;\n\
           bfd on;\n\
           ipv4 {{ import none; export where source = RTS_STATIC; next hop self; }};\n\
         }}\n",
        vip = vip(1).v4,
        bfd = pace(FAST)
    )
}

/// The router: equal routes of all nodes become one over all.
fn router(watch: Watch, milliseconds: u32) -> String {
    let mut text = format!(
        "router id 198.51.100.254;\n\
         debug protocols {{ states }};\n\
         protocol device {{ scan time 1; }}\n\
         protocol direct {{ ipv4; }}\n\
         protocol kernel {{ merge paths on; ipv4 {{ export where source = RTS_BGP; }}; }}\n\
         protocol bfd {{ interface \"*\" {{ {} }}; }}\n",
        pace(milliseconds)
    );
    for node in 0..NODES {
        let (own, router) = addresses(node);
        write!(
            text,
            "protocol bgp node{node} {{\n\
               local {router} as {ROUTER_AS};\n\
               neighbor {own} as {NODES_AS};\n\
               connect delay time 1; connect retry time 1; error wait time 1, 1; error forget time 1;\n\
               {}\n\
               ipv4 {{ import all; export none; }};\n\
             }}\n",
            watch.line()
        )
        .expect("writing to a string cannot fail");
    }
    text
}
