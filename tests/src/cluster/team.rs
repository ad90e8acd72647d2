//! A cluster whose nodes all announce the same VIPs, by Sluice or by the daemon that is usual for it, with an echo behind
//! each: what a failover is measured at.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Cluster, ECHO_PORT, Fabric, VIP_PORT, vip_routers};
use crate::{
    agent::{Agent, detach},
    lab::{Host as _, UPLINK, wait_until},
    programs::{
        PATIENCE,
        bird::Bird,
        keepalived::{Keepalived, Settings},
        prober::{Responder, who_answers},
    },
};

/// How often in a row the same node must answer until it is believed.
const ALIKE: usize = 4;
/// From one question to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What announces on each node.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The agent.
    Sluice {
        /// For each node, what [`Cluster::yaml`] takes: lines of YAML below `announce:`.
        announces: Vec<String>,
    },
    /// keepalived, which puts the VIP on the uplink. The first node has the highest priority.
    Keepalived {
        /// Seconds between advertisements, as it writes them.
        interval: &'static str,
        /// Its virtual router.
        vrid: u8,
    },
    /// BIRD, with the VIP on the node's `lo`.
    Bird {
        /// Each node's configuration.
        configurations: Vec<String>,
    },
    /// For each node another, which says of it what it says of all.
    Mixed(Vec<Kind>),
}

impl Kind {
    /// What announces on a node.
    ///
    /// # Panics
    /// Where a mixture has nothing for it.
    fn of(&self, node: usize) -> &Self {
        match self {
            Self::Mixed(kinds) => kinds[node].of(node),
            Self::Sluice { .. } | Self::Keepalived { .. } | Self::Bird { .. } => self,
        }
    }
}

enum Daemon {
    Sluice(Box<Agent>),
    Keepalived(Keepalived),
    Bird(Bird),
}

/// A cluster at work.
pub struct Team {
    daemons: Vec<Option<Daemon>>,
    _responders: Vec<Responder>,
    /// Where it works.
    pub cluster: Cluster,
    /// What is announced.
    pub vips: Vec<IpAddr>,
    kind: Kind,
}

impl Team {
    /// Starts everything; whoever is to hold may not hold yet. The daemons that are not Sluice have the first VIP only.
    pub fn start(name: &str, fabric: Fabric, nodes: usize, vips: &[IpAddr], kind: Kind) -> Result<Self> {
        let cluster = Cluster::new(name, fabric, nodes)?;
        let mut responders = Vec::new();
        for (node, tag) in cluster.nodes.iter().zip(0..) {
            let (namespace, at) = match kind.of(tag.into()) {
                Kind::Sluice { .. } => {
                    let any: IpAddr = std::net::Ipv6Addr::UNSPECIFIED.into();
                    (&node.pod.namespace, SocketAddr::new(any, ECHO_PORT))
                }
                Kind::Keepalived { .. } => (&node.namespace, SocketAddr::new(vips[0], VIP_PORT)),
                Kind::Mixed(_) => bail!("a mixture in a mixture"),
                Kind::Bird { .. } => {
                    node.namespace.ip(&format!("address add {}/32 dev lo\n", vips[0]))?;
                    (&node.namespace, SocketAddr::new(vips[0], VIP_PORT))
                }
            };
            // Not every node has the VIP on an interface when it begins.
            namespace.sysctl(&[("net/ipv4/ip_nonlocal_bind", "1")])?;
            responders.push(Responder::start(namespace, at, tag)?);
        }
        let daemons = cluster.nodes.iter().map(|_| None).collect();
        let mut team = Self { daemons, _responders: responders, cluster, vips: vips.to_vec(), kind };
        // All at the same time: most of a start is the kernel's verifier.
        (0..nodes).try_for_each(|node| team.begin(node))?;
        (0..nodes).try_for_each(|node| team.wait_ready(node))?;
        Ok(team)
    }

    /// Starts a node's daemon.
    pub fn join(&mut self, node: usize) -> Result<()> {
        self.begin(node)?;
        self.wait_ready(node)
    }

    /// Waits until a node's agent answers; the other daemons are waited for as they begin.
    fn wait_ready(&mut self, node: usize) -> Result<()> {
        match self.daemons.get_mut(node) {
            Some(Some(Daemon::Sluice(agent))) => agent.wait_ready(),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: usize) -> Result<()> {
        let host = &self.cluster.nodes[node];
        let daemon = match self.kind.of(node) {
            Kind::Sluice { .. } => {
                let yaml = self.yaml(node, &self.vips)?;
                Daemon::Sluice(Box::new(Agent::launch(host, &yaml, |command| command)?))
            }
            Kind::Keepalived { interval, vrid } => {
                let vip = format!("{}/32", self.vips[0]);
                // The usual example's, and less by as much again.
                let priority = 150 - 50 * u8::try_from(node)?;
                let settings = Settings { version: 3, vrid: *vrid, priority, interval, vips: &[&vip] };
                Daemon::Keepalived(Keepalived::start_on(&host.namespace, UPLINK, host.directory(), &settings)?)
            }
            Kind::Mixed(_) => bail!("a mixture in a mixture"),
            Kind::Bird { configurations } => {
                let text = configurations.get(node).context("a configuration for each node")?;
                let bird = Bird::router(&host.namespace, host.name, text, host.directory())?;
                // As the agent's own thread for BFD runs.
                bird.hurry()?;
                Daemon::Bird(bird)
            }
        };
        self.daemons[node] = Some(daemon);
        Ok(())
    }

    /// The configuration of a node's agent whose pod serves these VIPs.
    pub fn yaml(&self, node: usize, served: &[IpAddr]) -> Result<String> {
        let Kind::Sluice { announces } = self.kind.of(node) else { bail!("no agent is to run on node {node}") };
        let announce = announces.get(node).context("what each node announces")?;
        Ok(self.cluster.yaml_serving(node, &self.vips, served, announce))
    }

    /// Ends a node's daemon in order, with everything that it has made.
    pub fn leave(&mut self, node: usize) -> Result<()> {
        match self.take(node)? {
            Daemon::Sluice(agent) => agent.stop(),
            Daemon::Keepalived(keepalived) => keepalived.stop(),
            Daemon::Bird(bird) => bird.stop(),
        }
    }

    /// Ends a node's agent in order, and leaves the data plane.
    pub fn end(&mut self, node: usize) -> Result<()> {
        match self.take(node)? {
            Daemon::Sluice(agent) => agent.end(),
            Daemon::Keepalived(_) | Daemon::Bird(_) => bail!("only agents leave a data plane"),
        }
    }

    /// Kills a node's agent.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        match self.take(node)? {
            Daemon::Sluice(agent) => agent.kill(),
            Daemon::Keepalived(_) | Daemon::Bird(_) => bail!("only agents are killed"),
        }
    }

    /// Removes what a killed agent has left.
    pub fn detach(&self, node: usize) -> Result<()> {
        detach(&self.cluster.nodes[node]).map(drop)
    }

    /// A node's agent.
    pub fn agent(&mut self, node: usize) -> Result<&mut Agent> {
        match self.daemons.get_mut(node) {
            Some(Some(Daemon::Sluice(agent))) => Ok(agent),
            _ => bail!("no agent runs on node {node}"),
        }
    }

    fn take(&mut self, node: usize) -> Result<Daemon> {
        self.daemons.get_mut(node).and_then(Option::take).with_context(|| format!("nothing runs on node {node}"))
    }

    /// Where probes go.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.vips[0], VIP_PORT)
    }

    /// Waits until one node has answered several times in a row, `wanted` where it is named; who it is.
    pub fn wait_answer(&self, wanted: Option<usize>) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        let (mut last, mut alike) = (None, 0);
        loop {
            let now = who_answers(&self.cluster.element, self.vips[0], VIP_PORT)?.map(usize::from);
            alike = if now == last { alike + 1 } else { 1 };
            last = now;
            match now {
                Some(node) if alike >= ALIKE && wanted.is_none_or(|wanted| wanted == node) => return Ok(node),
                _ => {}
            }
            ensure!(
                Instant::now() < deadline,
                "node {last:?} answers for {}, not {wanted:?}\n{}",
                self.vips[0],
                self.logs()
            );
            thread::sleep(PAUSE);
        }
    }

    /// Waits until each agent's virtual routers are active, or ready to be: a start takes its time, and who has not begun
    /// takes nothing over. The other daemons say nothing of it.
    pub fn wait_competing(&self) -> Result<()> {
        for daemon in self.daemons.iter().flatten() {
            let Daemon::Sluice(agent) = daemon else { continue };
            wait_until("virtual routers that compete", PATIENCE, || {
                let states = vip_routers(agent)?;
                let all = !states.is_empty() && states.iter().all(|state| state == "active" || state == "backup");
                Ok(all.then_some(()))
            })
            .with_context(|| agent.log_tail())?;
        }
        Ok(())
    }

    /// What the daemons have said last.
    #[must_use]
    pub fn logs(&self) -> String {
        let log = |daemon: &Daemon| match daemon {
            Daemon::Sluice(agent) => agent.log_tail(),
            Daemon::Keepalived(keepalived) => keepalived.log_tail(),
            Daemon::Bird(bird) => bird.log_tail(),
        };
        self.daemons.iter().flatten().map(log).collect::<Vec<_>>().join("\n")
    }

    /// Where files go that are no node's.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.cluster.directory()
    }
}
