//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! ICMP errors find the other end through a VIP: what a router says of a pod's packets reaches the pod, what a pod says of
//! a client's packets reaches the client, and what is too long for the uplink is told to the pod.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    agent::{Agent, Configuration, Service, available},
    lab::{ELEMENT, Family, Lab, Namespace, Options, Pod, PodLink, ROUTER_END, UPLINK, vip, wait_until},
    packets::random::Random,
    programs::{
        PATIENCE,
        bulk::{self, BulkServer},
        conversation::{self, any},
    },
    scenario,
};

const PORT: u16 = 9000;
/// Nobody listens there.
const CLOSED_PORT: u16 = 9;
const BYTES: usize = 4 << 20;
/// Of the link that is narrower than those of the two ends.
const NARROW: u32 = 1300;
/// How long a transfer may stand still before it is held to be lost: several retransmissions.
const STALL: Duration = Duration::from_secs(3);
const RUNGS: [&str; 3] = ["redirect", "peer", "stack"];

/// A lab whose ends have links of 1,500 bytes.
fn lab(name: &str, options: Options) -> Result<Lab> {
    let lab = Lab::new(name, options)?;
    for pod in &lab.pods {
        // TCP must not find out by itself.
        pod.namespace.sysctl(&[("net/ipv4/tcp_mtu_probing", "0"), ("net/ipv4/ip_no_pmtu_disc", "0")])?;
    }
    Ok(lab)
}

/// The router's link to the client is narrow, which the client does not know.
fn narrow_behind_the_router(lab: &Lab) -> Result<()> {
    lab.router.ip(&format!("link set client0 mtu {NARROW}"))
}

fn services(rung: &'static str, pods: &[Pod]) -> Vec<Service> {
    let mut services = Vec::new();
    for family in Family::BOTH {
        let mut add = |protocol: &'static str, port| {
            let name = format!("{protocol}-{family:?}").to_lowercase();
            services.push(scenario::service(&name, vip(1).of(family), protocol, port, rung, pods, family));
        };
        add("TCP", PORT);
        add("UDP", CLOSED_PORT);
    }
    services
}

/// Bytes from the pod to the client, by a connection that the client opens to the VIP.
fn download(lab: &Lab, server: &BulkServer, family: Family) -> Result<()> {
    let transfer = bulk::transfer(&lab.element, vip(1).of(family), PORT, 0, server)?;
    ensure!(transfer.here.sent.bytes == BYTES as u64, "short: {transfer:?}");
    ensure!(transfer.here.sent == transfer.there.received, "damaged: {transfer:?}");
    Ok(())
}

/// What the pod's kernel has learned of the way to a client.
fn learned(pod: &Namespace, client: IpAddr) -> Result<Option<u32>> {
    let output = pod.command("ip").args(["route", "get", &client.to_string()]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
    Ok(words.nth(1).and_then(|mtu| mtu.parse().ok()))
}

fn check_learned(pod: &Namespace, family: Family) -> Result<()> {
    let learned = learned(pod, ELEMENT.of(family))?;
    ensure!(learned == Some(NARROW), "the pod has learned {learned:?}, not {NARROW}");
    Ok(())
}

fn packets(agent: &Agent, reason: &str) -> Result<u64> {
    let status = agent.status()?;
    let reasons = status["reasons"].as_array().context("no reasons in the status")?;
    let found = reasons.iter().find(|found| found["name"] == reason);
    Ok(found.and_then(|found| found["packets"].as_u64()).unwrap_or(0))
}

#[test]
fn a_pod_learns_the_path_mtu_and_a_client_that_a_port_is_closed_in_every_rung() -> Result<()> {
    if !available("path_mtu") {
        return Ok(());
    }
    for rung in RUNGS {
        let mut lab = lab("pmtu", Options { pods: 1, ..Options::default() })?;
        narrow_behind_the_router(&lab)?;
        let server = BulkServer::start(&lab.pods[0].namespace, PORT, BYTES as u64)?;
        let services = services(rung, &lab.pods);
        let agent = Agent::start(&mut lab, &Configuration { mode: "native", services })?;
        for family in Family::BOTH {
            download(&lab, &server, family)
                .and_then(|()| check_learned(&lab.pods[0].namespace, family))
                .and_then(|()| check_refused(&lab.element, family))
                .with_context(|| format!("rung {rung}, {family:?}, {}", agent.status().unwrap_or_default()["reasons"]))
                .with_context(|| agent.log_tail())?;
        }
        agent.stop()?;
    }
    Ok(())
}

/// A datagram to a port that the pod has closed is refused, as if there was no VIP.
fn check_refused(element: &Namespace, family: Family) -> Result<()> {
    let socket = element.run(|| UdpSocket::bind(any(family, 0)))?;
    socket.connect((vip(1).of(family), CLOSED_PORT))?;
    socket.set_read_timeout(Some(STALL))?;
    // The pod's kernel limits how often it says so, and the first datagram may wait for a neighbour.
    wait_until("the refusal of a datagram", PATIENCE, || {
        let refused = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
        match socket.send(b"anybody there?").and_then(|_| socket.recv(&mut [0; 64])) {
            Err(error) if refused(&error) => Ok(Some(())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(_) => bail!("a closed port answers"),
        }
    })
}

/// With the checksums of pods and node left to devices that do not compute them: errors have theirs all the same.
#[test]
fn errors_are_whole_where_checksums_are_left_to_the_device() -> Result<()> {
    if !available("path_mtu") {
        return Ok(());
    }
    for (rung, pod_link) in [("redirect", PodLink::Routed), ("stack", PodLink::Routed), ("peer", PodLink::Bridge)] {
        let options = Options { pods: 1, checksum_offload: true, pod_link };
        let mut lab = lab("offload", options)?;
        let services = services(rung, &lab.pods);
        let agent = Agent::start(&mut lab, &Configuration { mode: "native", services })?;
        for family in Family::BOTH {
            check_refused(&lab.element, family)
                .with_context(|| format!("rung {rung}, {family:?}"))
                .with_context(|| agent.log_tail())?;
        }
        agent.stop()?;
    }
    Ok(())
}

/// Two pods behind a VIP of each family.
fn drained(lab: &Lab, rung: &str, first: bool) -> Result<String> {
    let mut text = Configuration { mode: "native", services: Vec::new() }.yaml_in(lab);
    for family in Family::BOTH {
        let (name, vip) = (format!("{family:?}").to_lowercase(), vip(1).of(family));
        writeln!(
            text,
            "  - name: {name}\n    vip: \"{vip}\"\n    protocol: TCP\n    ports: [{PORT}]\n    rung: {rung}"
        )?;
        text += "    backends:\n";
        for (pod, drain) in lab.pods.iter().zip([first, false]) {
            let address = pod.addresses.of(family);
            writeln!(text, "      - {{ address: \"{address}\", port: {PORT}, drain: {drain} }}")?;
        }
    }
    Ok(text)
}

/// A session that the first pod holds.
struct Held {
    client: TcpStream,
    pod: TcpStream,
}

impl Held {
    fn open(lab: &Lab, family: Family) -> Result<Self> {
        let listeners: Vec<_> =
            lab.pods.iter().map(|pod| conversation::listen(&pod.namespace, PORT)).collect::<Result<_>>()?;
        let target = SocketAddr::new(vip(1).of(family), PORT);
        // One of two pods takes each; that it is always the other has odds of 2^-64.
        for _ in 0..64 {
            let client = lab.element.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
            let (pod, at) = wait_until("a connection at a pod", PATIENCE, || {
                for (at, listener) in listeners.iter().enumerate() {
                    match listener.accept() {
                        Ok((stream, _)) => return Ok(Some((stream, at))),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(None)
            })?;
            if at == 0 {
                pod.set_nonblocking(false)?;
                for stream in [&client, &pod] {
                    stream.set_read_timeout(Some(STALL))?;
                    stream.set_write_timeout(Some(STALL))?;
                }
                return Ok(Self { client, pod });
            }
        }
        bail!("no connection reached the first pod")
    }

    /// How many bytes of the pod's reach the client as they were before nothing moves any more.
    fn arriving(&self) -> Result<usize> {
        let sent = Random::new(0xd07e).bytes(BYTES);
        std::thread::scope(|scope| {
            scope.spawn(|| (&self.pod).write_all(&sent));
            let (mut arrived, mut chunk) = (0, vec![0; 64 << 10]);
            while arrived < BYTES {
                match (&self.client).read(&mut chunk) {
                    Ok(0) => break,
                    Ok(length) => {
                        ensure!(sent[arrived..].starts_with(&chunk[..length]), "damaged behind byte {arrived}");
                        arrived += length;
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(arrived)
        })
    }
}

/// Sessions of both families that the first pod holds, whose slots have moved to the second.
fn held_in_moved_slots(lab: &mut Lab, rung: &str) -> Result<(Agent, [Held; 2])> {
    lab.attach_router_program()?;
    let mut agent = Agent::start_with(lab, &drained(lab, rung, false)?)?;
    let held = [Held::open(lab, Family::V4)?, Held::open(lab, Family::V6)?];
    agent.reload(&drained(lab, rung, true)?)?;
    agent.wait_status("the first pod to own no slot", |status| {
        let services = status["services"].as_array()?;
        let is_moved = |service: &serde_json::Value| service["backends"][0]["slots"] == 0;
        (services.len() == 2 && services.iter().all(is_moved) && status["waiting"].is_null()).then_some(())
    })?;
    Ok((agent, held))
}

#[test]
fn a_pod_learns_the_path_mtu_of_a_session_whose_slot_has_moved() -> Result<()> {
    if !available("path_mtu") {
        return Ok(());
    }
    for rung in RUNGS {
        let mut lab = lab("moved", Options::default())?;
        narrow_behind_the_router(&lab)?;
        let (agent, held) = held_in_moved_slots(&mut lab, rung)?;
        for (family, held) in Family::BOTH.into_iter().zip(&held) {
            let arrived = held.arriving().with_context(|| format!("rung {rung}, {family:?}"))?;
            ensure!(arrived == BYTES, "rung {rung}, {family:?}: {arrived} of {BYTES} bytes arrive");
            check_learned(&lab.pods[0].namespace, family)?;
        }
        drop(held);
        agent.stop()?;
    }
    Ok(())
}

/// The control of the others: where the router says nothing, nothing arrives.
#[test]
fn without_the_routers_errors_a_transfer_stands_still() -> Result<()> {
    if !available("path_mtu") {
        return Ok(());
    }
    let mut lab = lab("silent", Options::default())?;
    narrow_behind_the_router(&lab)?;
    silence(&lab.router)?;
    let (agent, held) = held_in_moved_slots(&mut lab, "redirect")?;
    for (family, held) in Family::BOTH.into_iter().zip(&held) {
        let arrived = held.arriving()?;
        ensure!(arrived < BYTES / 2, "{family:?}: {arrived} of {BYTES} bytes arrive unasked");
        let learned = learned(&lab.pods[0].namespace, ELEMENT.of(family))?;
        ensure!(learned != Some(NARROW), "{family:?}: the pod has learned {learned:?} from nobody");
        held.client.shutdown(std::net::Shutdown::Both)?;
        held.pod.shutdown(std::net::Shutdown::Both)?;
    }
    drop(held);
    agent.stop()
}

/// The router sends no ICMP errors.
fn silence(router: &Namespace) -> Result<()> {
    let rules = "table inet silence { chain output { type filter hook output priority 0; \
                 icmp type { destination-unreachable, time-exceeded } drop; \
                 icmpv6 type { packet-too-big, destination-unreachable, time-exceeded } drop; }; }";
    let output = router.command("nft").arg(rules).output().context("nft")?;
    ensure!(output.status.success(), "nft refuses: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Where the uplink is narrower than the pods' interfaces, the redirect does not look; with segmentation left to the
/// device and without.
#[test]
fn a_reply_that_is_too_long_for_the_uplink_is_told_to_the_pod() -> Result<()> {
    if !available("path_mtu") {
        return Ok(());
    }
    for (rung, checksum_offload, pod_link) in [
        ("redirect", false, PodLink::Routed),
        ("redirect", true, PodLink::Routed),
        ("peer", false, PodLink::Bridge),
        ("peer", true, PodLink::Bridge),
        ("stack", true, PodLink::Routed),
    ] {
        let mut lab = lab("uplink", Options { pods: 1, checksum_offload, pod_link })?;
        lab.node.ip(&format!("link set {UPLINK} mtu {NARROW}"))?;
        lab.router.ip(&format!("link set {ROUTER_END} mtu {NARROW}"))?;
        // What leaves the node is in packets, as on a wire.
        lab.node.checksum_offload(UPLINK, false)?;
        let server = BulkServer::start(&lab.pods[0].namespace, PORT, BYTES as u64)?;
        let services = services(rung, &lab.pods);
        let agent = Agent::start(&mut lab, &Configuration { mode: "native", services })?;
        for family in Family::BOTH {
            download(&lab, &server, family)
                .and_then(|()| check_learned(&lab.pods[0].namespace, family))
                .with_context(|| format!("rung {rung}, {pod_link:?}, offload {checksum_offload}, {family:?}"))
                .with_context(|| format!("{}", agent.status().unwrap_or_default()["reasons"]))?;
        }
        let told = packets(&agent, "reply_too_big")?;
        ensure!((told > 0) == (rung != "stack"), "rung {rung}: {told} replies are too big");
        agent.stop()?;
    }
    Ok(())
}
