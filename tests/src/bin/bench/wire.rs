//! CPU time a packet on the wire: from the router through the node into the pod's socket.
//!
//! Three labs take turns: one with the agent, one whose kernel forwards, one that drops at the node.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use lb_common::abi::protocol;
use lb_tests::{
    agent::{Agent, Configuration, Service},
    lab::{ELEMENT, Family, Lab, Namespace, Options, ROUTER_END, UPLINK, vip, wait_until},
};

use crate::{
    frames::Packet,
    lab_programs::{LabPrograms, Load, TRANSMIT},
    measure::{Cpu, Samples},
    table::{Bound, Line, Table},
};

/// Packets of one path in one round.
const PACKETS: u32 = 400_000;
/// Of these, the part that may get lost: a veth's ring overflows where another process gets the CPU.
const LOSS_LIMIT: f64 = 0.001;
const PORT: u16 = 162;
/// Makes a frame of 64 bytes.
const PAYLOAD: usize = 22;

const PLAIN: &str = "plain kernel forwarding";
const BARE: &str = "XDP redirect without any decision";

/// One lab and what is sent through it.
struct Path {
    name: &'static str,
    lab: Lab,
    /// Held for as long as packets are sent.
    _agent: Option<Agent>,
    /// Never read: once it is full, each packet is delivered as far as the socket and counted as an error there.
    _sink: UdpSocket,
    frame: Vec<u8>,
    load: Load,
    router_end: u32,
    delivers: bool,
    samples: Samples,
}

impl Path {
    fn new(name: &'static str, lab: Lab, agent: Option<Agent>, destination: IpAddr, delivers: bool) -> Result<Self> {
        wait_until("the pod to answer", Duration::from_secs(10), || {
            Ok((!delivers || lab.pods[0].answers(&lab.element, Family::V4)).then_some(()))
        })?;
        // Where nobody rewrites frames, they must be the pod's from the start.
        let (_, mac) =
            if name == BARE { interface(&lab.pods[0].namespace, "eth0")? } else { interface(&lab.node, UPLINK)? };
        let (router_end, router_mac) = interface(&lab.router, ROUTER_END)?;
        let packet = Packet {
            source: SocketAddr::new(ELEMENT.of(Family::V4), 40_000),
            destination: SocketAddr::new(destination, PORT),
            protocol: protocol::UDP,
            flags: 0,
            payload: PAYLOAD,
        };
        let mut load = packet.load(TRANSMIT, 1);
        // No checksum, which IPv4 allows; the pod would verify one.
        load.check = 0;
        let macs = [mac, router_mac].concat();
        load.macs = std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| macs[4 * word + byte])));
        let sink = lab.pods[0].namespace.run(|| UdpSocket::bind(("0.0.0.0", PORT)))?;
        let frame = packet.frame();
        Ok(Self {
            name,
            lab,
            _agent: agent,
            _sink: sink,
            frame,
            load,
            router_end,
            delivers,
            samples: Samples::default(),
        })
    }

    fn send(&mut self, programs: &mut LabPrograms, warm_up: bool) -> Result<()> {
        let before = delivered(&self.lab.pods[0].namespace)?;
        let time = self.lab.router.run(|| -> Result<Duration> {
            let cpu = Cpu::bind()?;
            let send = || programs.send(&self.load, &self.frame, self.router_end, PACKETS);
            Ok(cpu.time(send)?.1)
        })?;
        let arrived = delivered(&self.lab.pods[0].namespace)? - before;
        if warm_up {
            return Ok(());
        }
        let sent = if self.delivers { arrived } else { u64::from(PACKETS) };
        let lost = 1.0 - sent as f64 / f64::from(PACKETS);
        ensure!(lost <= LOSS_LIMIT, "{}: {:.1} % of the packets did not arrive", self.name, 100.0 * lost);
        self.samples.add(time.as_nanos() as f64 / sent as f64);
        Ok(())
    }
}

/// Measures all paths in turn.
pub fn measure(programs: &mut LabPrograms, rounds: u32) -> Result<Table> {
    let lab = |name| Lab::new(name, Options { pods: 1, ..Options::default() });
    let (dropping, bare, plain, mut steered) = (lab("drop")?, lab("bare")?, lab("plain")?, lab("sluice")?);
    dropping.node.run(|| -> Result<()> {
        programs.xdp("drop")?.attach(UPLINK, XdpMode::Driver).context("cannot attach drop")?;
        Ok(())
    })?;
    // Frames that XDP sends over a veth arrive only where the other end polls.
    for (namespace, end) in [(&plain.node, UPLINK), (&bare.pods[0].namespace, "eth0")] {
        let polling = namespace.command("ethtool").args(["-K", end, "gro", "on"]).status()?;
        ensure!(polling.success(), "ethtool cannot turn GRO on");
    }
    let pod = plain.pods[0].addresses.of(Family::V4);
    let service = Service {
        name: "traps".into(),
        vip: vip(1).of(Family::V4),
        protocol: "UDP",
        port: PORT,
        replies: Some("none"),
        rung: "redirect",
        backends: vec![SocketAddr::new(pod, PORT)],
    };
    let agent = Agent::start(&mut steered, &Configuration { mode: "native", services: vec![service] })?;
    let mut paths = [
        Path::new("XDP_DROP on the node (the limit)", dropping, None, pod, false)?,
        Path::new(BARE, bare, None, pod, true)?,
        Path::new(PLAIN, plain, None, pod, true)?,
        Path::new("rung redirect", steered, Some(agent), vip(1).of(Family::V4), true)?,
    ];
    // Only now: it takes what tells the labs that their pods answer, too.
    let bare = &paths[1].lab;
    let (pod_port, _) = interface(&bare.node, &bare.pods[0].host_interface)?;
    bare.node.run(|| -> Result<()> {
        programs.set_port(pod_port)?;
        programs.xdp("redirect")?.attach(UPLINK, XdpMode::Driver).context("cannot attach redirect")?;
        Ok(())
    })?;
    for round in 0..=rounds {
        for path in &mut paths {
            path.send(programs, round == 0)?;
        }
    }
    let mut table = Table::default();
    for path in &paths {
        table.add(Line {
            name: path.name.to_owned(),
            samples: path.samples.clone(),
            bound: if path.load.destination == paths[3].load.destination {
                Bound::Ratios(vec![(PLAIN.to_owned(), "plain", 0.6)])
            } else {
                Bound::None
            },
        });
    }
    Ok(table)
}

/// Datagrams that have reached a socket of the namespace: read, or refused by a full buffer.
fn delivered(namespace: &Namespace) -> Result<u64> {
    let text = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(str::split_whitespace);
    let (names, values) = (lines.next().context("no UDP counters")?, lines.next().context("no UDP counters")?);
    names
        .zip(values)
        .filter(|(name, _)| ["InDatagrams", "RcvbufErrors"].contains(name))
        .map(|(_, value)| value.parse::<u64>().context("a UDP counter is no number"))
        .sum()
}

/// Index and MAC of an interface.
pub fn interface(namespace: &Namespace, name: &str) -> Result<(u32, [u8; 6])> {
    let output = namespace.command("ip").args(["-json", "link", "show", "dev", name]).output()?;
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).context("ip wrote no JSON")?;
    let index = links[0]["ifindex"].as_u64().with_context(|| format!("no interface {name}"))?;
    let bytes: Vec<u8> =
        links[0]["address"].as_str().unwrap_or_default().split(':').flat_map(|b| u8::from_str_radix(b, 16)).collect();
    Ok((index as u32, bytes.try_into().ok().with_context(|| format!("{name} has no MAC"))?))
}
