//! What must go on whatever becomes of the agent: sessions of every kind and a stream of datagrams, counted at both ends.

mod stream;

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::stream::{Kind, Stream};
use crate::{
    agent::{Agent, Configuration},
    lab::{ELEMENT, Family, Lab, NODE, Options, vip},
    pinned::Pinned,
    programs::conversation::{self, Speaker},
    survive::{
        clients::{self, Wanted},
        traffic::{Report, Traffic},
    },
    world::sockets::socket::allow_many,
};

/// Sessions through the VIPs, of both families, half of which the pod speaks in first.
const SESSIONS: usize = 200;
/// Sessions of each other kind and family.
const OTHERS: usize = 5;
/// Pods: the last is no backend of the TCP service at first, and becomes one while half of the sessions are open.
pub const PODS: u8 = 4;
/// The TCP service: port at the first VIPs and in the pods.
const TCP: (u16, u16) = (80, 8080);
/// The TCP service of the second VIPs, which the pods own.
const DIRECT_PORT: u16 = 179;
/// A port of the node that leads to the first pod, as a NodePort does.
const NODE_PORT: u16 = 30_080;
/// UDP with recorded replies, and without any.
const KINDS: [Kind; 2] =
    [Kind { vip_port: 514, pod_port: 5514, answered: true }, Kind { vip_port: 162, pod_port: 1162, answered: false }];
/// The other uplink, with nothing behind it.
pub const OTHER_UPLINK: &str = "eth1";
/// The maps are read often: no larger than needed.
pub const CAPACITIES: &str = "{services: 64, backends: 128, maglevSlots: 65536, bypasses: 4096, flows: 16384}";

/// What of the configuration scenarios change.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The capacities, as YAML.
    pub capacities: &'static str,
    /// Whether the last pod is a backend of the TCP service.
    pub with_last: bool,
    /// Port of a service that carries no traffic.
    pub other_port: u16,
}

impl Default for Wish {
    fn default() -> Self {
        Self { capacities: CAPACITIES, with_last: true, other_port: 9000 }
    }
}

/// A lab with an agent, sessions and datagrams.
pub struct Life {
    // Before the lab, so that nothing speaks when it goes.
    traffic: Traffic,
    stream: Stream,
    /// The agent; absent while a scenario has it ended.
    pub agent: Option<Agent>,
    /// The lab.
    pub lab: Lab,
    listeners: Listeners,
    sessions: usize,
}

struct Listeners {
    tcp: Vec<TcpListener>,
    direct: Vec<TcpListener>,
}

impl Life {
    /// Everything in motion.
    pub fn begin() -> Result<Self> {
        allow_many();
        let mut lab = Lab::new("life", Options { pods: PODS, ..Options::default() })?;
        lab.attach_router_program()?;
        lab.node.ip(&format!(
            "link add {OTHER_UPLINK} type veth peer name other1\nlink set {OTHER_UPLINK} up\nlink set other1 up\n"
        ))?;
        node_port(&lab)?;
        let listen =
            |port| lab.pods.iter().map(|pod| conversation::listen(&pod.namespace, port)).collect::<Result<Vec<_>>>();
        let listeners = Listeners { tcp: listen(TCP.1)?, direct: listen(DIRECT_PORT)? };
        let first = Wish { with_last: false, ..Wish::default() };
        let agent = Agent::start_with(&lab, &yaml(&lab, &first))?;
        settled(&agent, &first)?;
        let stream = Stream::start(&lab, &KINDS)?;
        let mut life = Self { traffic: Traffic::start(), stream, agent: Some(agent), lab, listeners, sessions: 0 };
        life.open_sessions(0..SESSIONS / 2)?;
        // From now on half of the sessions may be in slots that have moved.
        life.reconfigure(&Wish::default())?;
        life.open_sessions(SESSIONS / 2..SESSIONS)?;
        life.open_others()?;
        life.check("begin")?;
        Ok(life)
    }

    fn open_sessions(&mut self, numbers: std::ops::Range<usize>) -> Result<()> {
        let wanted = numbers.map(|number| {
            let family = Family::BOTH[number % 2];
            let target = SocketAddr::new(vip(1).of(family), TCP.0);
            (SocketAddr::new(ELEMENT.of(family), 0), target, Speaker::BOTH[number / 2 % 2])
        });
        self.open(&wanted.collect::<Vec<_>>(), false, false)
    }

    /// Sessions of rung `direct`, and such as reach a pod without a VIP: by a port of the node, from the node itself.
    fn open_others(&mut self) -> Result<()> {
        let pod = self.lab.pods[0].addresses;
        for family in Family::BOTH {
            let wanted = |from: IpAddr, target: IpAddr, port: u16| -> Vec<Wanted> {
                let one = |number: usize| {
                    (SocketAddr::new(from, 0), SocketAddr::new(target, port), Speaker::BOTH[number % 2])
                };
                (0..OTHERS).map(one).collect()
            };
            let (element, node) = (ELEMENT.of(family), NODE.of(family));
            self.open(&wanted(element, vip(2).of(family), DIRECT_PORT), true, false)?;
            self.open(&wanted(element, node, NODE_PORT), false, false)?;
            self.open(&wanted(node, pod.of(family), TCP.1), false, true)?;
        }
        Ok(())
    }

    fn open(&mut self, wanted: &[Wanted], direct: bool, from_node: bool) -> Result<()> {
        let from = if from_node { &self.lab.node } else { &self.lab.element };
        let listeners = if direct { &self.listeners.direct } else { &self.listeners.tcp };
        let opened = clients::open(from, listeners, wanted)?;
        self.sessions += opened.len();
        self.traffic.add(opened.into_iter().map(|(session, _)| session).collect())
    }

    /// The running agent.
    pub fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("the agent was ended")
    }

    /// Ends the agent as a crash does.
    pub fn kill(&mut self) -> Result<()> {
        self.agent.take().context("the agent was ended")?.kill()
    }

    /// Ends the agent in order.
    pub fn end(&mut self) -> Result<()> {
        self.agent.take().context("the agent was ended")?.end()
    }

    /// Starts an agent of this binary, and waits until everything is in force.
    pub fn start(&mut self, binary: Option<&str>, wish: &Wish) -> Result<()> {
        let agent = Agent::start_binary(&self.lab, binary, &yaml(&self.lab, wish))?;
        settled(&agent, wish)?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts an agent that crashes that long after.
    pub fn start_and_kill(&mut self, after: Duration) -> Result<()> {
        Agent::start_and_kill(&self.lab, &yaml(&self.lab, &Wish::default()), after)
    }

    /// Applies another configuration, and waits until it is in force.
    pub fn reconfigure(&mut self, wish: &Wish) -> Result<()> {
        let yaml = yaml(&self.lab, wish);
        let agent = self.agent()?;
        agent.reload(&yaml)?;
        settled(agent, wish)
    }

    /// Writes another configuration and tells the agent, without waiting.
    pub fn rewrite(&mut self, wish: &Wish) -> Result<()> {
        let yaml = yaml(&self.lab, wish);
        self.agent()?.reload(&yaml)
    }

    /// Ends the sessions of a pod, gives it another namespace, and lets it serve again. Datagrams wait meanwhile: those to
    /// this pod have nowhere to go.
    pub fn restart_pod(&mut self, pod: usize) -> Result<()> {
        self.stream.pause()?;
        let ended = self.traffic.take(move |session| session.place == pod)?;
        self.sessions -= ended.len();
        drop(ended);
        self.lab.restart_pod(pod)?;
        let namespace = &self.lab.pods[pod].namespace;
        self.listeners.tcp[pod] = conversation::listen(namespace, TCP.1)?;
        self.listeners.direct[pod] = conversation::listen(namespace, DIRECT_PORT)?;
        self.stream.receive_in(&self.lab.pods[pod])?;
        settled(self.agent()?, &Wish::default())?;
        self.stream.resume();
        Ok(())
    }

    /// Fails unless every session lives, and every datagram and answer has come; and unless new sessions come as well.
    pub fn check(&mut self, scenario: &str) -> Result<Report> {
        let report = self.traffic.tell()?;
        ensure!(report.lost.is_empty(), "{scenario}: {} sessions lost: {:#?}", report.lost.len(), report.lost);
        ensure!(report.sessions == self.sessions, "{scenario}: {} of {} sessions", report.sessions, self.sessions);
        ensure!(report.stalls == 0, "{scenario}: {} stalls, the longest {:?}", report.stalls, report.longest);
        let moved = self.moved()?;
        let counted = self.stream.check().with_context(|| format!("{scenario}: datagrams"))?;
        println!(
            "{scenario}: {} sessions ({moved} slots moved), {} lines, the longest {:.0?}; {} datagrams, {} answers; none lost",
            report.sessions,
            report.lines,
            report.longest,
            counted.iter().map(|kind| kind.sent).sum::<u64>(),
            counted.iter().map(|kind| kind.answers).sum::<u64>(),
        );
        Ok(report)
    }

    /// Slots of the TCP services whose packets are offered to earlier owners, by the maps.
    pub fn moved(&self) -> Result<u64> {
        let pinned = Pinned::at(self.lab.bpffs().join("sluice/maps"));
        let share = |family| pinned.moved_share(SocketAddr::new(vip(1).of(family), TCP.0));
        let slots = |family| {
            Ok::<_, anyhow::Error>(
                share(family)? * f64::from(1 << pinned.service(SocketAddr::new(vip(1).of(family), TCP.0))?.slots_log2),
            )
        };
        Ok(Family::BOTH.into_iter().map(slots).sum::<Result<f64>>()? as u64)
    }

    /// Ends everything, and what the agent has made.
    pub fn finish(self) -> Result<()> {
        let Self { traffic, stream, agent, lab, .. } = self;
        drop((traffic, stream));
        agent.context("the agent was ended")?.stop()?;
        crate::agent::check_nothing_left(&lab)
    }
}

fn node_port(lab: &Lab) -> Result<()> {
    let pod = lab.pods[0].addresses;
    let rules = format!(
        "table inet node {{\n  chain prerouting {{\n    type nat hook prerouting priority filter\n    \
         ip daddr {} tcp dport {NODE_PORT} dnat ip to {}:{port}\n    \
         ip6 daddr {} tcp dport {NODE_PORT} dnat ip6 to [{}]:{port}\n  }}\n}}\n",
        NODE.v4,
        pod.v4,
        NODE.v6,
        pod.v6,
        port = TCP.1
    );
    let mut nft = lab.node.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nft")?;
    nft.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refuses:\n{rules}");
    Ok(())
}

/// The whole configuration of a wish.
pub fn yaml(lab: &Lab, wish: &Wish) -> String {
    let bare = Configuration { mode: "native", services: Vec::new() }.yaml_in(lab);
    let bare = bare.replacen("pinDirectory", &format!("  - interface: {OTHER_UPLINK}\npinDirectory"), 1);
    let mut text = format!("capacities: {}\n{bare}", wish.capacities);
    let mut service = |name: &str, vip: IpAddr, protocol: &str, ports: (u16, u16), extra: &str, pods: usize| {
        text += &format!(
            "  - {{name: {name}, vip: \"{vip}\", protocol: {protocol}, ports: [{}]{extra}, backends: [",
            ports.0
        );
        for pod in &lab.pods[..pods] {
            let address = if vip.is_ipv4() { IpAddr::V4(pod.addresses.v4) } else { IpAddr::V6(pod.addresses.v6) };
            text += &format!("{{address: \"{address}\", port: {}, weight: 1}}, ", ports.1);
        }
        text += "]}\n";
    };
    let all = usize::from(PODS);
    for family in Family::BOTH {
        let name = |what: &str| format!("{what}-{family:?}").to_lowercase();
        let [recorded, none] = KINDS;
        service(&name("tcp"), vip(1).of(family), "TCP", TCP, "", all - usize::from(!wish.with_last));
        service(&name("syslog"), vip(1).of(family), "UDP", (recorded.vip_port, recorded.pod_port), "", all);
        service(&name("traps"), vip(1).of(family), "UDP", (none.vip_port, none.pod_port), ", replies: none", all);
        let direct = ", rung: direct, assignVip: true";
        service(&name("direct"), vip(2).of(family), "TCP", (DIRECT_PORT, DIRECT_PORT), direct, all);
        service(&name("other"), vip(3).of(family), "TCP", (wish.other_port, 9), "", 1);
    }
    text
}

/// Waits until everything of a wish is in force.
fn settled(agent: &Agent, wish: &Wish) -> Result<()> {
    agent.wait_status("everything to be in force", |status| {
        let services = status["services"].as_array()?;
        let ready = |backend: &Value| backend["state"] == "ready";
        let all_ready =
            services.iter().flat_map(|service| service["backends"].as_array().into_iter().flatten()).all(ready);
        let other = services.iter().any(|service| service["port"] == wish.other_port);
        let tcp = services.first()?["backends"].as_array()?.len() == usize::from(PODS) - usize::from(!wish.with_last);
        let quiet = status["lastError"].is_null() && status["waiting"].is_null();
        (services.len() == 10 && all_ready && other && tcp && quiet).then_some(())
    })
}
