//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! The return path: however somebody reached a pod, the answer comes from the address that they talk to, and no
//! connection breaks when the agent starts.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, Service, available},
    lab::{ELEMENT, Family, Lab, NODE, Namespace, Options, PodLink, vip},
    programs::conversation::{self, Conversation, Resets, Speaker, any},
};

/// The pod's port, and that of its service at the VIP: another, so that a port that is not rewritten shows.
const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;
/// Ports of the node that its nftables send to the pod.
const NODE_PORT: u16 = 30080;
const SNAT_PORT: u16 = 30081;
const HOST_PORT: u16 = 8081;
/// Where the element listens for connections that the pod opens.
const ELEMENT_PORT: u16 = 9100;
/// Short connections of a health check.
const HEALTH_CHECKS: usize = 30;
/// Longest wait for a datagram.
const DATAGRAM_LIMIT: Duration = Duration::from_secs(5);
const RUNGS: [&str; 3] = ["redirect", "peer", "stack"];

/// How somebody reaches the first pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The element by the VIP.
    Vip,
    /// The node by the VIP, whose packets leave by the uplink and come back.
    VipFromNode,
    /// Another pod of the node by the VIP, in the same manner.
    VipFromNeighbour,
    /// The element by the pod's own address.
    PodAddress,
    /// The element by a port of the node; the pod sees the element.
    NodePort,
    /// The element by a port of the node; the pod sees the node.
    NodePortWithSnat,
    /// The node by a port of its own.
    HostPort,
    /// The node by the pod's own address.
    Node,
    /// Another pod of the node by the pod's own address.
    Neighbour,
}

impl Way {
    const WITHOUT_VIP: [Self; 6] =
        [Self::PodAddress, Self::NodePort, Self::NodePortWithSnat, Self::HostPort, Self::Node, Self::Neighbour];

    /// All ways that work once the agent runs. Rung `stack` rewrites replies where they leave the node, and those to
    /// clients on the node don't.
    fn with_agent(rung: &str) -> Vec<Self> {
        let mut ways = vec![Self::Vip];
        if rung != "stack" {
            ways.extend([Self::VipFromNode, Self::VipFromNeighbour]);
        }
        ways.extend(Self::WITHOUT_VIP);
        ways
    }

    fn from(self, lab: &Lab) -> &Namespace {
        match self {
            Self::Vip | Self::PodAddress | Self::NodePort | Self::NodePortWithSnat => &lab.element,
            Self::VipFromNode | Self::HostPort | Self::Node => &lab.node,
            Self::VipFromNeighbour | Self::Neighbour => &lab.pods[1].namespace,
        }
    }

    fn target(self, lab: &Lab, family: Family) -> SocketAddr {
        let (address, port) = match self {
            Self::Vip | Self::VipFromNode | Self::VipFromNeighbour => (vip(1), VIP_PORT),
            Self::PodAddress | Self::Node | Self::Neighbour => (lab.pods[0].addresses, POD_PORT),
            Self::NodePort => (NODE, NODE_PORT),
            Self::NodePortWithSnat => (NODE, SNAT_PORT),
            Self::HostPort => (NODE, HOST_PORT),
        };
        SocketAddr::new(address.of(family), port)
    }
}

/// A connection and what it is.
struct Case {
    way: Way,
    family: Family,
    first: Speaker,
    opened: &'static str,
    conversation: Conversation,
}

impl Case {
    /// Opens it, and checks whom the pod sees.
    fn open(
        way: Way,
        family: Family,
        first: Speaker,
        opened: &'static str,
        lab: &Lab,
        listener: &TcpListener,
    ) -> Result<Self> {
        let open = || -> Result<Conversation> {
            let target = way.target(lab, family);
            let mut conversation = Conversation::open_from_port(way.from(lab), fresh_port(), target, listener)?;
            conversation.exchange(first)?;
            let seen = conversation.seen_by_pod()?;
            let right = match way {
                Way::NodePortWithSnat => seen.ip() == NODE.of(family),
                _ => seen == conversation.client_address()?,
            };
            ensure!(right, "the pod sees {seen} instead of {}", conversation.client_address()?);
            Ok(conversation)
        };
        let conversation = open().with_context(|| format!("{way:?} over {family:?}, {first:?} first, {opened}"))?;
        Ok(Self { way, family, first, opened, conversation })
    }

    /// Both ends speak.
    fn check(&mut self) -> Result<()> {
        let Self { way, family, first, opened, conversation } = self;
        let spoken = Speaker::BOTH.into_iter().try_for_each(|speaker| conversation.exchange(speaker));
        spoken.with_context(|| format!("{way:?} over {family:?}, {first:?} first, {opened}"))
    }
}

/// A client's port that no other connection has: the node's own connections, and those that it forwards under its
/// address, look alike to the pod but for it.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn open_all(ways: &[Way], opened: &'static str, lab: &Lab, listener: &TcpListener) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &way in ways {
        for family in Family::BOTH {
            for first in Speaker::BOTH {
                cases.push(Case::open(way, family, first, opened, lab, listener)?);
            }
        }
    }
    Ok(cases)
}

/// A health check of the node: short connections, one after the other.
fn health_checks(lab: &Lab, listener: &TcpListener) -> Result<()> {
    for family in Family::BOTH {
        let target = Way::Node.target(lab, family);
        for number in 1..=HEALTH_CHECKS {
            let check = || -> Result<()> {
                let mut conversation = Conversation::open_from_port(&lab.node, fresh_port(), target, listener)?;
                conversation.exchange(Speaker::Client)?;
                conversation.close()
            };
            check().with_context(|| format!("health check {number} over {family:?}"))?;
        }
    }
    Ok(())
}

/// What a node of a cluster does to packets, in its own netfilter: ports that lead to the pod, and no packet of a
/// connection whose beginning it has not seen.
fn install_node_ports(lab: &Lab) -> Result<()> {
    let pod = lab.pods[0].addresses;
    let dnat = |port: u16| {
        format!(
            "    ip daddr {} tcp dport {port} dnat ip to {}:{POD_PORT}\n    \
                 ip6 daddr {} tcp dport {port} dnat ip6 to [{}]:{POD_PORT}\n",
            NODE.v4, pod.v4, NODE.v6, pod.v6
        )
    };
    let chain = |name: &str, kind: &str, rules: &str| {
        format!("  chain {name} {{\n    type {kind} hook {name} priority filter\n{rules}  }}\n")
    };
    let snat = format!(
        "    meta nfproto ipv4 meta l4proto tcp ct original proto-dst {SNAT_PORT} snat ip to {}\n    \
             meta nfproto ipv6 meta l4proto tcp ct original proto-dst {SNAT_PORT} snat ip6 to {}\n",
        NODE.v4, NODE.v6
    );
    let rules = [
        "table inet node {\n".to_owned(),
        chain("prerouting", "nat", &[NODE_PORT, SNAT_PORT, HOST_PORT].map(dnat).concat()),
        chain("output", "nat", &dnat(HOST_PORT)),
        chain("postrouting", "nat", &snat),
        chain("forward", "filter", "    ct state invalid drop\n"),
        "}\n".to_owned(),
    ]
    .concat();
    let file = lab.directory().join("node.nft");
    std::fs::write(&file, &rules)?;
    let output = lab.node.command("nft").arg("-f").arg(&file).stdin(Stdio::null()).output().context("nft")?;
    ensure!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn service(
    name: &str,
    vip: SocketAddr,
    protocol: &'static str,
    replies: Option<&'static str>,
    rung: &'static str,
    backend: SocketAddr,
) -> Service {
    Service { name: name.to_owned(), vip: vip.ip(), protocol, port: vip.port(), replies, rung, backends: vec![backend] }
}

/// A TCP service of both families before the first pod.
fn tcp_services(lab: &Lab, rung: &'static str) -> Vec<Service> {
    let of = |family| {
        let name = format!("tcp-{family:?}").to_lowercase();
        let backend = SocketAddr::new(lab.pods[0].addresses.of(family), POD_PORT);
        service(&name, SocketAddr::new(vip(1).of(family), VIP_PORT), "TCP", None, rung, backend)
    };
    Family::BOTH.map(of).to_vec()
}

/// Starts the agent, and makes sure that the rung is the one that the test is about.
fn start(lab: &mut Lab, services: Vec<Service>) -> Result<Agent> {
    let wanted: Vec<&str> = services.iter().map(|service| service.rung).collect();
    let agent = Agent::start(lab, &Configuration { mode: "native", services })?;
    agent.wait_status("every backend to be ready", |status| {
        let services = status["services"].as_array()?;
        let ready = services.iter().zip(&wanted).all(|(service, rung)| {
            let backend = &service["backends"][0];
            backend["state"] == "ready" && backend["rung"] == *rung
        });
        ready.then_some(())
    })?;
    Ok(agent)
}

fn table(pod_link: PodLink, rung: &'static str) -> Result<()> {
    let mut lab = Lab::new("table", Options { pods: 2, pod_link, ..Options::default() })?;
    install_node_ports(&lab)?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut cases = open_all(&Way::WITHOUT_VIP, "before", &lab, &listener)?;
    health_checks(&lab, &listener).context("before")?;
    let services = tcp_services(&lab, rung);
    let agent = start(&mut lab, services)?;
    let rest = |cases: &mut Vec<Case>| -> Result<()> {
        // The self-test itself has drawn some from the pod.
        let pod_before = Resets::of(&lab.pods[0].namespace)?;
        cases.iter_mut().try_for_each(Case::check)?;
        cases.extend(open_all(&Way::with_agent(rung), "after", &lab, &listener)?);
        health_checks(&lab, &listener).context("after")?;
        cases.iter_mut().try_for_each(Case::check)?;
        ensure!(Resets::of(&lab.pods[0].namespace)? == pod_before, "the pod has reset connections");
        for namespace in [&lab.element, &lab.node, &lab.pods[1].namespace] {
            let resets = Resets::of(namespace)?;
            ensure!(resets == Resets::default(), "{}: {resets:?}", namespace.name());
        }
        if pod_link == PodLink::Routed && rung == "redirect" {
            forget_what_is_over(&agent, cases)?;
        }
        Ok(())
    };
    rest(&mut cases)
        .with_context(|| format!("{pod_link:?} pods, rung {rung}"))
        .with_context(|| agent.log_tail())
        .with_context(|| agent.status_table().unwrap_or_default())?;
    agent.stop()
}

/// Records go with their connections: health checks don't fill the map, and what lives on keeps its record.
fn forget_what_is_over(agent: &Agent, cases: &mut [Case]) -> Result<()> {
    let through_vip = [Way::Vip, Way::VipFromNode, Way::VipFromNeighbour];
    let alive = cases.iter().filter(|case| !through_vip.contains(&case.way)).count();
    agent.wait_status(&format!("records of {alive} connections alone"), |status| {
        let bypasses = status["maps"].as_array()?.iter().find(|map| map["name"] == "bypasses")?;
        (bypasses["entries"].as_u64()? == alive as u64).then_some(())
    })?;
    cases.iter_mut().try_for_each(Case::check)
}

#[test]
fn whoever_reaches_a_pod_is_answered_from_where_they_asked() -> Result<()> {
    if !available("return_path") {
        return Ok(());
    }
    for pod_link in [PodLink::Routed, PodLink::Bridge] {
        for rung in RUNGS {
            table(pod_link, rung)?;
        }
    }
    Ok(())
}

#[test]
fn a_pod_may_open_connections_from_its_service_port() -> Result<()> {
    if !available("return_path") {
        return Ok(());
    }
    for rung in RUNGS {
        let mut lab = Lab::new("own", Options { pods: 1, ..Options::default() })?;
        let listener = conversation::listen(&lab.element, ELEMENT_PORT)?;
        let open = |lab: &Lab, family| -> Result<Conversation> {
            let pod = &lab.pods[0];
            let target = SocketAddr::new(ELEMENT.of(family), ELEMENT_PORT);
            let mut conversation = Conversation::open_from_port(&pod.namespace, POD_PORT, target, &listener)?;
            conversation.exchange(Speaker::Client)?;
            let seen = conversation.seen_by_pod()?;
            let own = SocketAddr::new(pod.addresses.of(family), POD_PORT);
            ensure!(seen == own, "the element sees {seen} instead of {own}");
            Ok(conversation)
        };
        let mut before = open(&lab, Family::V4)?;
        let services = tcp_services(&lab, rung);
        let agent = start(&mut lab, services)?;
        let mut rest = || -> Result<()> {
            before.exchange(Speaker::Pod).context("opened before")?;
            open(&lab, Family::V6).context("opened after")?.exchange(Speaker::Pod)?;
            before.exchange(Speaker::Client)?;
            ensure!(Resets::of(&lab.element)? == Resets::default(), "the element has reset connections");
            Ok(())
        };
        rest().with_context(|| format!("rung {rung}")).with_context(|| agent.log_tail())?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn several_vips_share_one_tcp_endpoint() -> Result<()> {
    if !available("return_path") {
        return Ok(());
    }
    for rung in RUNGS {
        let mut lab = Lab::new("vips", Options { pods: 1, ..Options::default() })?;
        let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
        let mut services = Vec::new();
        let mut targets = Vec::new();
        for family in Family::BOTH {
            let pod = SocketAddr::new(lab.pods[0].addresses.of(family), POD_PORT);
            for (last, port) in [(1, VIP_PORT), (2, VIP_PORT), (2, VIP_PORT + 1)] {
                let target = SocketAddr::new(vip(last).of(family), port);
                let name = format!("vip{last}-{port}-{family:?}").to_lowercase();
                services.push(service(&name, target, "TCP", None, rung, pod));
                targets.push(target);
            }
            targets.push(pod);
        }
        let agent = start(&mut lab, services)?;
        let rest = || -> Result<()> {
            // A connection is one only if its answers come from where it was dialled.
            let open = |target: &SocketAddr| {
                let mut conversation = Conversation::open(&lab.element, *target, &listener)?;
                conversation.exchange(Speaker::Client)?;
                Ok(conversation)
            };
            let mut conversations = targets.iter().map(open).collect::<Result<Vec<_>>>()?;
            for conversation in &mut conversations {
                conversation.exchange(Speaker::Pod)?;
                ensure!(conversation.seen_by_pod()? == conversation.client_address()?, "wrong client");
            }
            ensure!(Resets::of(&lab.element)? == Resets::default(), "the element has reset connections");
            Ok(())
        };
        rest().with_context(|| format!("rung {rung}")).with_context(|| agent.log_tail())?;
        agent.stop()?;
    }
    Ok(())
}

fn udp(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    let socket = namespace.run(|| UdpSocket::bind(address)).with_context(|| format!("cannot bind {address}"))?;
    socket.set_read_timeout(Some(DATAGRAM_LIMIT))?;
    Ok(socket)
}

/// Sends a datagram and returns the source under which it arrives.
fn send(from: &UdpSocket, target: SocketAddr, to: &UdpSocket) -> Result<SocketAddr> {
    let mut buffer = [0; 64];
    from.send_to(b"datagram", target).with_context(|| format!("cannot send to {target}"))?;
    let (_, source) = to.recv_from(&mut buffer).with_context(|| format!("no datagram to {target} arrives"))?;
    Ok(source)
}

/// Asks a pod from the element and returns the source of the answer.
fn ask(lab: &Lab, target: SocketAddr, pod: &UdpSocket) -> Result<SocketAddr> {
    let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
    let client = udp(&lab.element, SocketAddr::new(ELEMENT.of(family), 0))?;
    let seen = send(&client, target, pod)?;
    ensure!(seen == client.local_addr()?, "the pod sees {seen} instead of {}", client.local_addr()?);
    send(pod, seen, &client).with_context(|| format!("answer from {target}"))
}

#[test]
fn udp_replies_follow_the_mode_of_their_service() -> Result<()> {
    if !available("return_path") {
        return Ok(());
    }
    const MODES: [&str; 3] = ["recorded", "none", "static"];
    for rung in RUNGS {
        let mut lab = Lab::new("udp", Options { pods: 1, ..Options::default() })?;
        let mut services = Vec::new();
        let mut rows = Vec::new();
        for family in Family::BOTH {
            for (port, mode) in (5001..).zip(MODES) {
                let target = SocketAddr::new(vip(1).of(family), port);
                let pod = SocketAddr::new(lab.pods[0].addresses.of(family), port + 1000);
                let name = format!("{mode}-{family:?}").to_lowercase();
                services.push(service(&name, target, "UDP", Some(mode), rung, pod));
                rows.push((mode, family, target, pod));
            }
        }
        let agent = start(&mut lab, services)?;
        for (mode, family, target, pod) in rows {
            let row = || -> Result<()> {
                let socket = udp(&lab.pods[0].namespace, pod)?;
                let other = udp(&lab.element, any(family, 0))?;
                let elsewhere = SocketAddr::new(ELEMENT.of(family), other.local_addr()?.port());
                let expect = |what: &str, source: SocketAddr, wanted: SocketAddr| {
                    ensure!(source == wanted, "{what} comes from {source} instead of {wanted}");
                    Ok(())
                };
                let reply = if mode == "none" { pod } else { target };
                let own = if mode == "static" { target } else { pod };
                expect("a reply", ask(&lab, target, &socket)?, reply)?;
                expect("what the pod sends by itself", send(&socket, elsewhere, &other)?, own)?;
                expect("a reply beside the VIP", ask(&lab, pod, &socket)?, own)?;
                expect("a reply after these", ask(&lab, target, &socket)?, reply)
            };
            row()
                .with_context(|| format!("rung {rung}, replies {mode}, {family:?}"))
                .with_context(|| agent.status_table().unwrap_or_default())?;
        }
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn several_vips_share_one_udp_endpoint() -> Result<()> {
    if !available("return_path") {
        return Ok(());
    }
    for rung in RUNGS {
        let mut lab = Lab::new("udp-vips", Options { pods: 1, ..Options::default() })?;
        let mut services = Vec::new();
        let mut rows = Vec::new();
        for family in Family::BOTH {
            for (port, mode) in [(5001, "recorded"), (5003, "static")] {
                let pod = SocketAddr::new(lab.pods[0].addresses.of(family), port + 1000);
                let targets: [SocketAddr; 2] = [1, 2].map(|last| SocketAddr::new(vip(last).of(family), port));
                for (number, target) in (1..).zip(targets) {
                    let name = format!("{mode}-{number}-{family:?}").to_lowercase();
                    services.push(service(&name, target, "UDP", Some(mode), rung, pod));
                }
                rows.push((mode, targets, pod));
            }
        }
        let agent = start(&mut lab, services)?;
        for (mode, targets, pod) in rows {
            let socket = udp(&lab.pods[0].namespace, pod)?;
            for target in targets.into_iter().chain(targets) {
                let source = ask(&lab, target, &socket)
                    .with_context(|| format!("rung {rung}, replies {mode}"))
                    .with_context(|| agent.log_tail())?;
                ensure!(source == target, "rung {rung}, replies {mode}: {source} answers for {target}");
            }
        }
        agent.stop()?;
    }
    Ok(())
}

/// The one thing that a client on the node itself adds: its address is local, and its answer must come in.
#[test]
fn udp_replies_reach_a_client_on_the_node() -> Result<()> {
    if !available("return_path") {
        return Ok(());
    }
    for rung in ["redirect", "peer"] {
        let mut lab = Lab::new("local", Options { pods: 1, ..Options::default() })?;
        let of = |family| {
            let pod = SocketAddr::new(lab.pods[0].addresses.of(family), 6001);
            let target = SocketAddr::new(vip(1).of(family), 5001);
            (service(&format!("{family:?}").to_lowercase(), target, "UDP", None, rung, pod), target, pod)
        };
        let rows = Family::BOTH.map(of);
        let agent = start(&mut lab, rows.iter().map(|(service, ..)| service.clone()).collect())?;
        for (_, target, pod) in rows {
            let row = || -> Result<SocketAddr> {
                let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
                let socket = udp(&lab.pods[0].namespace, pod)?;
                let client = udp(&lab.node, SocketAddr::new(NODE.of(family), 0))?;
                let seen = send(&client, target, &socket)?;
                ensure!(seen.ip() == NODE.of(family), "the pod sees {seen}");
                send(&socket, seen, &client)
            };
            let source = row().with_context(|| format!("rung {rung}")).with_context(|| agent.log_tail())?;
            ensure!(source == target, "rung {rung}: {source} answers for {target}");
        }
        agent.stop()?;
    }
    Ok(())
}
