//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! Client affinity with real connections: clients keep their pod through changes of other backends, for as long as the
//! timeout, and no session depends on it.

use std::{
    fmt::Write as _,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::abi::{Service, ServiceKey, service_flags};
use lb_tests::{
    agent::{Agent, Configuration, available},
    clock::{HOURS, ahead},
    lab::{ELEMENT, Family, Lab, Options, vip, wait_until},
    packets::random::Random,
    programs::conversation::{self, Conversation, Speaker},
};

const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
const UDP_PORT: u16 = 162;
const PODS: usize = 5;
/// Pods that the clients have, and that nothing is done to.
const HOMES: usize = 3;
/// Client addresses of each family.
const CLIENTS: u8 = 8;
const CHANGES: usize = 30;
const LIMIT: Duration = Duration::from_secs(10);
/// Within a tick of their clock records are equally old, and a bucket that is full gives any of them up: so there is room.
const CAPACITIES: &str =
    "capacities: {services: 16, backends: 64, maglevSlots: 1048576, bypasses: 256, flows: 65536}\n";

const LARGER: &str = "capacities: {services: 20, backends: 90, maglevSlots: 2097152, bypasses: 512, flows: 262144}\n";
/// What each pod is at the time: none, or its weight and whether it drains.
type Pods = [Option<(u16, bool)>; PODS];

/// Three pods of weight 1.
const START: Pods = [Some((1, false)), Some((1, false)), Some((1, false)), None, None];

struct Bed {
    lab: Lab,
    listeners: Vec<TcpListener>,
    receivers: Vec<UdpSocket>,
}

impl Bed {
    fn new(name: &str) -> Result<Self> {
        let mut lab = Lab::new(name, Options { pods: PODS as u8, ..Options::default() })?;
        lab.attach_router_program()?;
        let mut lines = String::new();
        for number in 0..CLIENTS {
            writeln!(lines, "addr add {}/24 dev eth0", client(Family::V4, number))?;
            writeln!(lines, "addr add {}/64 dev eth0 nodad", client(Family::V6, number))?;
        }
        lab.element.ip(&lines)?;
        let listeners =
            lab.pods.iter().map(|pod| conversation::listen(&pod.namespace, POD_PORT)).collect::<Result<_>>()?;
        let bind = |pod: &lb_tests::lab::Pod| -> Result<UdpSocket> {
            let socket = pod.namespace.run(|| UdpSocket::bind(conversation::any(Family::V6, UDP_PORT)))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let receivers = lab.pods.iter().map(bind).collect::<Result<_>>()?;
        Ok(Self { lab, listeners, receivers })
    }

    /// A TCP and a UDP service for each family before these pods; affinity for so many seconds, or none.
    fn yaml(&self, pods: &Pods, affinity: Option<u32>) -> String {
        let mut text = Configuration { mode: "native", services: Vec::new() }.yaml_in(&self.lab);
        for (family, (protocol, port, pod_port)) in Family::BOTH
            .into_iter()
            .flat_map(|family| [("TCP", VIP_PORT, POD_PORT), ("UDP", UDP_PORT, UDP_PORT)].map(|p| (family, p)))
        {
            let vip = vip(1).of(family);
            let _ = write!(
                text,
                "  - name: {protocol}-{family:?}\n    vip: \"{vip}\"\n    protocol: {protocol}\n    ports: [{port}]\n"
            );
            if let Some(seconds) = affinity {
                let _ = write!(text, "    sessionAffinity: ClientIP\n    sessionAffinityTimeoutSeconds: {seconds}\n");
            }
            text += "    backends:\n";
            for (pod, state) in self.lab.pods.iter().zip(pods) {
                let Some((weight, drain)) = state else { continue };
                let address = pod.addresses.of(family);
                let _ = writeln!(
                    text,
                    "      - {{ address: \"{address}\", port: {pod_port}, weight: {weight}, drain: {drain} }}"
                );
            }
        }
        text + CAPACITIES
    }

    /// The pod that a new connection of a client comes to.
    fn connect(&self, family: Family, number: u8) -> Result<usize> {
        let target = SocketAddr::new(vip(1).of(family), VIP_PORT);
        let from = SocketAddr::new(client(family, number), 0);
        let _client = self.lab.element.run(|| -> Result<std::net::TcpStream> {
            // The standard library cannot bind a socket that it connects.
            Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let socket = match family {
                    Family::V4 => tokio::net::TcpSocket::new_v4()?,
                    Family::V6 => tokio::net::TcpSocket::new_v6()?,
                };
                socket.bind(from)?;
                tokio::time::timeout(LIMIT, socket.connect(target)).await??.into_std()
            })?)
        })?;
        wait_until("a connection at a pod", LIMIT, || {
            for (at, listener) in self.listeners.iter().enumerate() {
                match listener.accept() {
                    Ok(_) => return Ok(Some(at)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(None)
        })
        .with_context(|| format!("from {from}"))
    }

    /// The pod that a datagram from a new port of a client comes to.
    fn send(&self, family: Family, number: u8) -> Result<usize> {
        let from = SocketAddr::new(client(family, number), 0);
        let socket = self.lab.element.run(|| UdpSocket::bind(from))?;
        let port = socket.local_addr()?.port();
        socket.send_to(&port.to_be_bytes(), (vip(1).of(family), UDP_PORT))?;
        wait_until("a datagram at a pod", LIMIT, || {
            for (at, receiver) in self.receivers.iter().enumerate() {
                let mut bytes = [0; 2];
                match receiver.recv(&mut bytes) {
                    Ok(2) if bytes == port.to_be_bytes() => return Ok(Some(at)),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(None)
        })
        .with_context(|| format!("from {from}"))
    }

    /// Where every client comes to, by TCP and by UDP.
    fn homes(&self) -> Result<Vec<[usize; 2]>> {
        clients().map(|(family, number)| Ok([self.connect(family, number)?, self.send(family, number)?])).collect()
    }

    fn session(&self, family: Family) -> Result<(Conversation, usize)> {
        let target = SocketAddr::new(vip(1).of(family), VIP_PORT);
        Conversation::open_any(&self.lab.element, target, &self.listeners)
    }
}

fn clients() -> impl Iterator<Item = (Family, u8)> {
    Family::BOTH.into_iter().flat_map(|family| (0..CLIENTS).map(move |number| (family, number)))
}

/// Beside the element's own addresses, in their subnets.
fn client(family: Family, number: u8) -> IpAddr {
    match ELEMENT.of(family) {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::from([a, b, c, 100 + number])
        }
        IpAddr::V6(v6) => {
            let mut parts = v6.segments();
            parts[7] = 0x100 + u16::from(number);
            IpAddr::from(parts)
        }
    }
}

/// Waits until the agent has applied what is wanted.
fn settled(agent: &Agent, pods: &Pods, affinity: Option<u32>) -> Result<()> {
    agent.wait_status("the change to be applied", |status| {
        let wanted: Vec<_> = pods.iter().flatten().collect();
        let as_wanted = status["services"].as_array()?.iter().all(|service| {
            let backends = service["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
            service["sessionAffinitySeconds"].as_u64() == affinity.map(u64::from)
                && wanted.len() == backends.len()
                && wanted.iter().zip(backends).all(|((weight, drain), backend)| {
                    backend["weight"] == *weight
                        && backend["drain"] == *drain
                        && backend["state"] == "ready"
                        && (backend["slots"] == 0) == *drain
                })
        });
        (as_wanted && status["lastError"].is_null() && status["waiting"].is_null()).then_some(())
    })
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct FlowBucket([u64; 16]);
// SAFETY: plain integers.
unsafe impl aya::Pod for FlowBucket {}

/// The flow cache of an agent, by its pin.
fn flows(agent: &Agent) -> Result<Array<MapData, FlowBucket>> {
    Ok(Map::Array(MapData::from_pin(agent.pins().join("maps/flows"))?).try_into()?)
}

fn wipe(agent: &Agent) -> Result<()> {
    let mut flows = flows(agent)?;
    for at in 0..flows.len() {
        flows.set(at, FlowBucket([0; 16]), 0)?;
    }
    Ok(())
}

/// Whether there is any record of client affinity: bit 45 of an entry's control word.
fn has_records(agent: &Agent) -> Result<bool> {
    let flows = flows(agent)?;
    let mut any = false;
    for bucket in flows.iter() {
        any |= bucket?.0.iter().step_by(4).any(|control| control >> 45 & 1 != 0);
    }
    Ok(any)
}

/// Whether packets are offered to the owners of the other hash's slots.
fn is_rehashed(agent: &Agent) -> Result<bool> {
    let map = Map::HashMap(MapData::from_pin(agent.pins().join("maps/services"))?);
    let services: HashMap<_, ServiceKey, Service> = map.try_into()?;
    let mut any = false;
    for entry in services.iter() {
        any |= entry?.1.flags & service_flags::REHASHED != 0;
    }
    Ok(any)
}

#[test]
fn clients_keep_their_pod_while_other_backends_change_and_sessions_need_no_cache() -> Result<()> {
    if !available("clients") {
        return Ok(());
    }
    let (bed, mut random, affinity) = (Bed::new("clients")?, Random::new(7), Some(600));
    let mut pods = START;
    let mut agent = Agent::start_with(&bed.lab, &bed.yaml(&pods, affinity))?;
    settled(&agent, &pods, affinity)?;
    let homes = bed.homes()?;
    ensure!(homes.iter().flatten().any(|pod| *pod != homes[0][0]), "clients are spread: {homes:?}");
    let mut sessions = Family::BOTH.map(|family| bed.session(family)).into_iter().collect::<Result<Vec<_>>>()?;
    let mut moved = 0;
    for number in 0..CHANGES {
        let at = HOMES + number % (PODS - HOMES);
        pods[at] = match pods[at] {
            None => Some((random.pick(&[1, 4, 16]), false)),
            Some((weight, false)) if random.one_in(2) => Some((if weight == 16 { 1 } else { 4 * weight }, false)),
            Some((weight, false)) => Some((weight, true)),
            Some((_, true)) => None,
        };
        agent.reload(&bed.yaml(&pods, affinity))?;
        settled(&agent, &pods, affinity)?;
        let now = bed.homes()?;
        ensure!(now == homes, "change {number}, {pods:?}: clients were at {homes:?} and are at {now:?}");
        for (session, _) in &mut sessions {
            session.exchange(Speaker::BOTH[number % 2]).with_context(|| format!("change {number}"))?;
        }
        moved += agent.status()?["services"][0]["movedSlots"].as_u64().unwrap_or_default();
    }
    ensure!(moved > 0, "slots have moved");
    pods[HOMES] = Some((16, false));
    agent.reload(&bed.yaml(&pods, affinity))?;
    settled(&agent, &pods, affinity)?;
    wipe(&agent)?;
    for (session, _) in &mut sessions {
        session.exchange(Speaker::Client).context("after the cache was wiped")?;
    }
    let now = bed.homes()?;
    ensure!(now != homes, "without records clients go to the owners of their slots");
    for (session, _) in &mut sessions {
        session.exchange(Speaker::Pod).context("after the cache was wiped")?;
    }
    ensure!(bed.homes()? == now, "and stay there");
    agent.stop()
}

/// Also with a clock that is hours ahead of the former agent's, or hours behind: ages are told by the kernel's ticks.
#[test]
fn clients_keep_their_pod_over_restarts_with_other_clocks_and_other_capacities() -> Result<()> {
    if !available("clients") {
        return Ok(());
    }
    let (bed, mut pods, affinity) = (Bed::new("restarts")?, START, Some(600));
    let mut agent = Agent::start_with(&bed.lab, &bed.yaml(&pods, affinity))?;
    settled(&agent, &pods, affinity)?;
    let homes = bed.homes()?;
    pods[HOMES] = Some((16, false));
    agent.reload(&bed.yaml(&pods, affinity))?;
    settled(&agent, &pods, affinity)?;
    let yaml = bed.yaml(&pods, affinity);
    let larger = yaml.replacen(CAPACITIES, LARGER, 1);
    for (what, yaml, clock) in
        [("a clock ahead", &yaml, HOURS), ("a clock behind, and larger", &larger, Duration::ZERO)]
    {
        agent.kill()?;
        ensure!(bed.homes()? == homes, "without an agent, before {what}");
        agent = Agent::start_as(&bed.lab, yaml, |command| ahead(command, clock))?;
        settled(&agent, &pods, affinity)?;
        // By then it has looked at all records.
        agent.wait_age(2).context(what)?;
        ensure!(bed.homes()? == homes, "{what}");
    }
    wipe(&agent)?;
    ensure!(bed.homes()? != homes, "without records clients go to the owners of their slots");
    agent.stop()
}

#[test]
fn a_client_that_was_away_longer_than_the_timeout_gets_the_owner_of_its_slot() -> Result<()> {
    if !available("clients") {
        return Ok(());
    }
    let bed = Bed::new("timeout")?;
    let mut pods = START;
    // Long enough for a slow machine first; a change of the timeout alone changes nothing else.
    let mut agent = Agent::start_with(&bed.lab, &bed.yaml(&pods, Some(600)))?;
    settled(&agent, &pods, Some(600))?;
    let homes = bed.homes()?;
    pods[HOMES] = Some((16, false));
    agent.reload(&bed.yaml(&pods, Some(600)))?;
    settled(&agent, &pods, Some(600))?;
    ensure!(bed.homes()? == homes, "within the timeout");
    let affinity = Some(5);
    agent.reload(&bed.yaml(&pods, affinity))?;
    settled(&agent, &pods, affinity)?;
    wait_until("the records to go", Duration::from_secs(30), || Ok((!has_records(&agent)?).then_some(())))?;
    let now = bed.homes()?;
    ensure!(
        now.iter().flatten().filter(|pod| **pod == HOMES).count() > now.len(),
        "most are at the heavy pod: {now:?}"
    );
    agent.stop()
}

#[test]
fn switching_affinity_on_and_off_loses_no_session() -> Result<()> {
    if !available("clients") {
        return Ok(());
    }
    let bed = Bed::new("switch")?;
    let mut pods = START;
    let mut agent = Agent::start_with(&bed.lab, &bed.yaml(&pods, None))?;
    settled(&agent, &pods, None)?;
    let open =
        || Family::BOTH.into_iter().cycle().take(24).map(|family| bed.session(family)).collect::<Result<Vec<_>>>();
    let mut sessions = open()?;
    let first: Vec<usize> = sessions.iter().map(|(_, pod)| *pod).collect();
    ensure!(first.iter().any(|pod| *pod != first[0]), "without affinity sessions are spread: {first:?}");
    for (number, affinity) in [Some(600), None, Some(600)].into_iter().enumerate() {
        agent.reload(&bed.yaml(&pods, affinity))?;
        settled(&agent, &pods, affinity)?;
        for (session, _) in &mut sessions {
            session.exchange(Speaker::BOTH[number % 2]).with_context(|| format!("switch {number}"))?;
        }
        let more = open()?;
        if affinity.is_some() {
            for family in 0..2 {
                let mut its = more.iter().skip(family).step_by(2).map(|(_, pod)| pod);
                let first = its.next();
                ensure!(its.all(|pod| Some(pod) == first), "switch {number}: one client is at several pods");
            }
        }
        sessions.extend(more);
        // And a change of the backends, so that slots of both hashes move.
        pods[HOMES + number % 2] = if number < 2 { Some((4, false)) } else { Some((4, true)) };
        agent.reload(&bed.yaml(&pods, affinity))?;
        settled(&agent, &pods, affinity)?;
        for (session, _) in &mut sessions {
            session.exchange(Speaker::BOTH[number % 2]).with_context(|| format!("change after switch {number}"))?;
        }
    }
    ensure!(is_rehashed(&agent)?, "sessions from before are looked for");
    // The clients' ends first: what a pod ends itself its kernel knows for a minute more.
    sessions.into_iter().try_for_each(|(session, _)| session.close())?;
    wait_until("nothing to be looked for", Duration::from_secs(60), || Ok((!is_rehashed(&agent)?).then_some(())))?;
    agent.stop()
}
