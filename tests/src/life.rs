//! What must go on whatever becomes of the agent: sessions of every kind and a stream of datagrams, counted at both ends.

mod programs;
mod stream;

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::{
    programs::Programs,
    stream::{Kind, Stream},
};
use crate::{
    agent::{Agent, Configuration},
    clock::ahead,
    lab::{ELEMENT, Family, Lab, NODE, Namespace, Options, vip},
    pinned::Pinned,
    programs::conversation::{self, Speaker},
    scenario,
    survive::{
        clients::{self, Wanted},
        traffic::{Report, Session, Traffic},
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
pub(crate) const TCP: (u16, u16) = (80, 8080);
/// The TCP service of the second VIPs, which the pods own.
pub(crate) const DIRECT_PORT: u16 = 7179;
/// A port of the node that leads to the first pod, as a NodePort does.
pub(crate) const NODE_PORT: u16 = 30_080;
/// UDP with recorded replies, and without any.
pub(crate) const KINDS: [Kind; 2] =
    [Kind { vip_port: 514, pod_port: 5514, answered: true }, Kind { vip_port: 162, pod_port: 1162, answered: false }];
/// The other uplink, with nothing behind it.
pub const OTHER_UPLINK: &str = "eth1";
/// The maps are read often: no larger than needed.
pub const CAPACITIES: &str = "{services: 64, backends: 128, maglevSlots: 65536, bypasses: 4096, flows: 16384}";

/// Other sizes of all maps that have any.
pub const LARGER_CAPACITIES: &str =
    "{services: 200, backends: 500, maglevSlots: 131072, bypasses: 8192, flows: 65536, fragments: 4096}";

/// What a pod is to the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Of new connections.
    pub weight: u16,
    /// It gets no new connections.
    pub drain: bool,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: 1, drain: false }
    }
}

/// What each pod is to the services; none to those that it is no backend of.
pub type Shares = [Option<Share>; PODS as usize];

/// What of the configuration scenarios change.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The capacities, as YAML.
    pub capacities: &'static str,
    /// Whether the last pod is a backend of the TCP service.
    pub with_last: bool,
    /// Port of a service that carries no traffic.
    pub other_port: u16,
    /// What the pods are to the services that carry traffic.
    pub shares: Shares,
    /// Whether there are the services of the real programs.
    pub programs: bool,
}

impl Wish {
    /// Whether a pod takes new connections.
    #[must_use]
    pub fn serves(&self, pod: usize) -> bool {
        self.shares[pod].is_some_and(|share| !share.drain)
    }

    /// The pods that a service of this name has, and what they are to it.
    fn backends(&self, service: &str) -> Vec<(usize, Share)> {
        let all = self.shares.iter().copied().enumerate();
        let all = all.filter_map(|(pod, share)| Some((pod, share?)));
        match service.rsplit_once('-').map_or(service, |(kind, _)| kind) {
            "other" => vec![(0, Share::default())],
            "tcp" => all.filter(|(pod, _)| self.with_last || *pod + 1 < usize::from(PODS)).collect(),
            _ => all.collect(),
        }
    }
}

impl Default for Wish {
    fn default() -> Self {
        let shares = [Some(Share::default()); PODS as usize];
        Self { capacities: CAPACITIES, with_last: true, other_port: 9000, shares, programs: false }
    }
}

/// A lab with an agent, sessions and datagrams.
pub struct Life {
    // Before the lab, so that nothing speaks when it goes.
    traffic: Traffic,
    stream: Stream,
    programs: Option<Programs>,
    /// The agent; absent while a scenario has it ended.
    pub agent: Option<Agent>,
    /// The lab.
    pub lab: Lab,
    listeners: Listeners,
    sessions: usize,
    /// Sessions that have opened since the beginning.
    opened: usize,
    /// Where ended sessions led, until others take their place.
    owed: Vec<SocketAddr>,
    /// What is configured.
    wish: Wish,
}

struct Listeners {
    tcp: Vec<TcpListener>,
    direct: Vec<TcpListener>,
}

impl Life {
    /// Everything in motion, but the real programs.
    pub fn begin() -> Result<Self> {
        Self::begin_with(Wish::default())
    }

    /// Everything in motion that is wished for.
    pub fn begin_with(wish: Wish) -> Result<Self> {
        allow_many();
        let mut lab = Lab::new("life", Options { pods: PODS, ..Options::default() })?;
        lab.attach_router_program()?;
        lab.node.ip(&other_uplink())?;
        node_port(&lab)?;
        let listen =
            |port| lab.pods.iter().map(|pod| conversation::listen(&pod.namespace, port)).collect::<Result<Vec<_>>>();
        let listeners = Listeners { tcp: listen(TCP.1)?, direct: listen(DIRECT_PORT)? };
        let first = Wish { with_last: false, ..wish.clone() };
        let agent = Agent::start_with(&lab, &yaml(&lab, &first))?;
        settled(&agent, &first)?;
        let stream = Stream::start(&lab, &KINDS)?;
        let programs = wish.programs.then(|| Programs::start(&lab)).transpose()?;
        let mut life = Self {
            traffic: Traffic::start(),
            stream,
            programs,
            agent: Some(agent),
            lab,
            listeners,
            sessions: 0,
            opened: 0,
            owed: Vec::new(),
            wish: first,
        };
        life.open_sessions(0..SESSIONS / 2)?;
        // From now on half of the sessions may be in slots that have moved.
        life.reconfigure(&wish)?;
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
        self.open(&wanted.collect::<Vec<_>>())
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
            self.open(&wanted(element, vip(2).of(family), DIRECT_PORT))?;
            self.open(&wanted(element, node, NODE_PORT))?;
            self.open(&wanted(node, pod.of(family), TCP.1))?;
        }
        Ok(())
    }

    /// Opens sessions that all have clients in the same namespace and listeners of the same kind.
    fn open(&mut self, wanted: &[Wanted]) -> Result<()> {
        let Some((local, target, _)) = wanted.first() else { return Ok(()) };
        let from: &Namespace = if NODE.of(family(local)) == local.ip() { &self.lab.node } else { &self.lab.element };
        let listeners = if target.port() == DIRECT_PORT { &self.listeners.direct } else { &self.listeners.tcp };
        let opened = clients::open(from, listeners, wanted)?;
        for (session, _) in &opened {
            let (place, target) = (session.place, session.target);
            ensure!(!is_vip(&target) || self.wish.serves(place), "{target}: a new session is in pod {place}");
        }
        self.sessions += opened.len();
        self.opened += opened.len();
        self.traffic.add(opened.into_iter().map(|(session, _)| session).collect())
    }

    /// Ends sessions, of those that `pick` takes, in order: the pods say goodbye.
    fn close(&mut self, pick: impl FnMut(&Session) -> bool + Send + 'static) -> Result<usize> {
        let ended = self.traffic.take(pick)?;
        let count = ended.len();
        self.sessions -= count;
        self.owed.extend(ended.iter().map(|session| session.target));
        ended.into_iter().try_for_each(clients::close)?;
        Ok(count)
    }

    /// Ends every so-manyth session, beginning with one of them.
    pub fn close_some(&mut self, first: usize, every: usize) -> Result<usize> {
        let mut next = first;
        self.close(move |_| {
            next += 1;
            next.is_multiple_of(every)
        })
    }

    /// Opens a session for each that has ended.
    pub fn replenish(&mut self) -> Result<usize> {
        let mut owed = std::mem::take(&mut self.owed);
        owed.sort_unstable();
        for same in owed.chunk_by(|one, other| one == other) {
            let target = same[0];
            let family = family(&target);
            let is_own = self.lab.pods.iter().any(|pod| pod.addresses.of(family) == target.ip());
            let local = SocketAddr::new(if is_own { NODE.of(family) } else { ELEMENT.of(family) }, 0);
            let wanted: Vec<_> = (0..same.len()).map(|at| (local, target, Speaker::BOTH[at % 2])).collect();
            self.open(&wanted)?;
        }
        Ok(owed.len())
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
        self.go_on_with(agent, wish)
    }

    /// As [`start`](Self::start), an agent whose clock is so far ahead.
    pub fn start_ahead(&mut self, by: Duration, wish: &Wish) -> Result<()> {
        let agent = Agent::start_as(&self.lab, &yaml(&self.lab, wish), |command| ahead(command, by))?;
        self.go_on_with(agent, wish)
    }

    fn go_on_with(&mut self, agent: Agent, wish: &Wish) -> Result<()> {
        settled(&agent, wish)?;
        self.agent = Some(agent);
        self.wish = wish.clone();
        // Where a pod has restarted without an agent, datagrams have waited for one.
        self.stream.resume();
        Ok(())
    }

    /// Starts an agent that crashes that long after.
    pub fn start_and_kill(&mut self, after: Duration) -> Result<()> {
        Agent::start_and_kill(&self.lab, &yaml(&self.lab, &self.wish), after)
    }

    /// The same, once its log has this text.
    pub fn start_and_kill_at(&mut self, text: &str) -> Result<()> {
        Agent::start_and_kill_at(&self.lab, &yaml(&self.lab, &self.wish), text)
    }

    /// Applies another configuration, and waits until it is in force.
    pub fn reconfigure(&mut self, wish: &Wish) -> Result<()> {
        let yaml = yaml(&self.lab, wish);
        let agent = self.agent()?;
        agent.reload(&yaml)?;
        settled(agent, wish)?;
        self.wish = wish.clone();
        Ok(())
    }

    /// As [`reconfigure`](Self::reconfigure), where pods are taken out: their sessions through VIPs end before, and no
    /// datagram is on its way meanwhile. How many sessions ended.
    pub fn take_out(&mut self, wish: &Wish) -> Result<usize> {
        let shares = wish.shares;
        let ended = self.close(move |session| shares[session.place].is_none() && is_vip(&session.target))?;
        self.stream.pause()?;
        self.reconfigure(wish)?;
        self.stream.resume();
        Ok(ended)
    }

    /// Writes another configuration and tells the agent, without waiting.
    pub fn rewrite(&mut self, wish: &Wish) -> Result<()> {
        let yaml = yaml(&self.lab, wish);
        self.agent()?.reload(&yaml)
    }

    /// Ends the sessions of a pod, gives it another namespace, and lets it serve again. Datagrams wait meanwhile: those to
    /// this pod have nowhere to go. Without an agent they wait until one starts. How many sessions ended.
    pub fn restart_pod(&mut self, pod: usize) -> Result<usize> {
        self.stream.pause()?;
        let ended = self.traffic.take(move |session| session.place == pod)?;
        let count = ended.len();
        self.sessions -= count;
        self.owed.extend(ended.iter().map(|session| session.target));
        drop(ended);
        if let Some(programs) = &mut self.programs {
            programs.end_in(pod)?;
        }
        self.lab.restart_pod(pod)?;
        let namespace = &self.lab.pods[pod].namespace;
        self.listeners.tcp[pod] = conversation::listen(namespace, TCP.1)?;
        self.listeners.direct[pod] = conversation::listen(namespace, DIRECT_PORT)?;
        self.stream.receive_in(&self.lab.pods[pod])?;
        if let Some(programs) = &mut self.programs {
            programs.start_in(&self.lab, pod)?;
        }
        if let Some(agent) = &self.agent {
            settled(agent, &self.wish)?;
            self.stream.resume();
        }
        Ok(count)
    }

    /// Fails unless every session lives, and every datagram and answer has come; and unless new sessions come as well.
    pub fn check(&mut self, scenario: &str) -> Result<Report> {
        let report = self.check_sessions(scenario)?;
        let moved = self.moved()?;
        let (datagrams, answers) = self.check_datagrams(scenario)?;
        println!(
            "{scenario}: {} sessions ({moved} slots moved), {} lines, the longest {:.0?}; {datagrams} datagrams, {answers} answers; none lost",
            report.sessions, report.lines, report.longest,
        );
        Ok(report)
    }

    /// Fails unless every session lives. What they said since the last time.
    pub fn check_sessions(&self, scenario: &str) -> Result<Report> {
        let report = self.traffic.tell()?;
        ensure!(report.lost.is_empty(), "{scenario}: {} sessions lost: {:#?}", report.lost.len(), report.lost);
        ensure!(report.sessions == self.sessions, "{scenario}: {} of {} sessions", report.sessions, self.sessions);
        ensure!(report.stalls == 0, "{scenario}: {} stalls, the longest {:?}", report.stalls, report.longest);
        Ok(report)
    }

    /// Fails unless every datagram and every answer has come. How many there were of both since the beginning.
    pub fn check_datagrams(&self, scenario: &str) -> Result<(u64, u64)> {
        let counted = self.stream.check().with_context(|| format!("{scenario}: datagrams"))?;
        let sum = |of: fn(&stream::Counted) -> u64| counted.iter().map(of).sum();
        Ok((sum(|kind| kind.sent), sum(|kind| kind.answers)))
    }

    /// Datagrams that have arrived in each pod.
    #[must_use]
    pub fn datagrams_by_pod(&self) -> Vec<u64> {
        self.stream.arrived_by_pod()
    }

    /// Fails unless the real programs' sessions live, and their messages arrive.
    pub fn check_programs(&mut self) -> Result<()> {
        let Some(programs) = &mut self.programs else { return Ok(()) };
        programs.check(&self.lab)
    }

    /// Messages that the real programs have exchanged: of SNMP, and of telemetry.
    #[must_use]
    pub fn program_messages(&self) -> (u64, u64) {
        self.programs.as_ref().map_or((0, 0), Programs::messages)
    }

    /// What is configured.
    #[must_use]
    pub const fn wish(&self) -> &Wish {
        &self.wish
    }

    /// Sessions that there are, and that have opened since the beginning.
    #[must_use]
    pub const fn sessions(&self) -> (usize, usize) {
        (self.sessions, self.opened)
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

    /// The other uplink goes, and another comes in its place. Waits until that is served.
    pub fn renew_other_uplink(&mut self) -> Result<()> {
        self.lab.node.ip(&format!("link del {OTHER_UPLINK}\n"))?;
        self.check_sessions("the other uplink is gone")?;
        self.wait_other_uplink(false)?;
        self.lab.node.ip(&other_uplink())?;
        self.wait_other_uplink(true)
    }

    /// Waits until the status says that the other uplink has its XDP program, or has none. It is a row either way.
    fn wait_other_uplink(&mut self, attached: bool) -> Result<()> {
        let what = if attached { "the uplink to be attached" } else { "the uplink to be missed" };
        self.agent()?.wait_status(what, |status| {
            let mut rows = status["programs"].as_array()?.iter();
            let row = rows.find(|p| p["interface"] == OTHER_UPLINK && p["name"] == "sluice_xdp")?;
            (row["mode"].is_string() == attached).then_some(())
        })
    }

    /// Ends everything, and what the agent has made.
    pub fn finish(self) -> Result<()> {
        let Self { traffic, stream, programs, agent, lab, .. } = self;
        drop((traffic, stream, programs));
        agent.context("the agent was ended")?.stop()?;
        crate::agent::check_nothing_left(&lab)
    }
}

fn other_uplink() -> String {
    format!("link add {OTHER_UPLINK} type veth peer name other1\nlink set {OTHER_UPLINK} up\nlink set other1 up\n")
}

const fn family(address: &SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Whether a session through this address is one of a service, which ends with its backend.
fn is_vip(target: &SocketAddr) -> bool {
    [1, 2].iter().any(|last| vip(*last).of(family(target)) == target.ip())
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
    let services = if wish.programs { scenario::services(lab, "auto") } else { Vec::new() };
    let bare = Configuration { mode: "native", services }.yaml_in(lab);
    let bare = bare.replacen("pinDirectory", &format!("  - interface: {OTHER_UPLINK}\npinDirectory"), 1);
    let mut text = format!("capacities: {}\n{bare}", wish.capacities);
    let mut service = |name: &str, vip: IpAddr, protocol: &str, ports: (u16, u16), extra: &str| {
        text += &format!(
            "  - {{name: {name}, vip: \"{vip}\", protocol: {protocol}, ports: [{}]{extra}, backends: [",
            ports.0
        );
        for (pod, Share { weight, drain }) in wish.backends(name) {
            let address = lab.pods[pod].addresses.of(family(&SocketAddr::new(vip, 0)));
            let port = ports.1;
            text += &format!("{{address: \"{address}\", port: {port}, weight: {weight}, drain: {drain}}}, ");
        }
        text += "]}\n";
    };
    for family in Family::BOTH {
        let name = |what: &str| format!("{what}-{family:?}").to_lowercase();
        let [recorded, none] = KINDS;
        service(&name("tcp"), vip(1).of(family), "TCP", TCP, "");
        service(&name("syslog"), vip(1).of(family), "UDP", (recorded.vip_port, recorded.pod_port), "");
        service(&name("datagrams"), vip(1).of(family), "UDP", (none.vip_port, none.pod_port), ", replies: none");
        let direct = ", rung: direct, assignVip: true";
        service(&name("direct"), vip(2).of(family), "TCP", (DIRECT_PORT, DIRECT_PORT), direct);
        service(&name("other"), vip(3).of(family), "TCP", (wish.other_port, 9), "");
    }
    text
}

/// Services of the traffic, and those of the real programs.
const SERVICES: (usize, usize) = (10, 6);

/// Waits until everything of a wish is in force.
fn settled(agent: &Agent, wish: &Wish) -> Result<()> {
    agent.wait_status("everything to be in force", |status| {
        let services = status["services"].as_array()?;
        let expected = SERVICES.0 + if wish.programs { SERVICES.1 } else { 0 };
        let is_as_wished = |service: &Value| {
            let backends = service["backends"].as_array()?;
            let is_ready = backends.iter().all(|backend| backend["state"] == "ready");
            let name = service["name"].as_str()?;
            let is_shared = ["tcp", "syslog", "datagrams", "direct"].iter().any(|kind| name.starts_with(kind));
            let wanted = wish.backends(name);
            let has_shares = wanted.len() == backends.len()
                && wanted.iter().zip(backends).all(|((_, share), backend)| {
                    let is_idle = backend["slots"] == 0;
                    backend["weight"] == share.weight && backend["drain"] == share.drain && is_idle == share.drain
                });
            (is_ready && (!is_shared || has_shares)).then_some(())
        };
        let other = services.iter().any(|service| service["port"] == wish.other_port);
        let all = services.len() == expected && services.iter().all(|service| is_as_wished(service).is_some());
        (all && other && status["lastError"].is_null() && status["waiting"].is_null()).then_some(())
    })
}
