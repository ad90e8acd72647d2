//! Privileged: makes network namespaces, loads programs into the kernel, mounts bpffs, and runs BIRD and tshark.
//!
//! Everything that is sent so that the network finds VIPs is read by tshark, which finds no fault with it.

mod speakers;

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, Service, available},
    lab::{Family, Lab, ROUTER_END, UPLINK, vip},
    programs::tshark::{Capture, Dissection, Frame},
};
use serde_json::Value;

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;
const VRID: u8 = 51;

fn yaml(lab: &Lab, families: &[Family], announce: &str) -> String {
    let service = |family: &Family| Service {
        name: format!("service-{family:?}"),
        vip: vip(1).of(*family),
        protocol: "TCP",
        port: VIP_PORT,
        replies: None,
        rung: "auto",
        backends: vec![SocketAddr::new(lab.pods[0].addresses.of(*family), POD_PORT)],
    };
    let services = families.iter().map(service).collect();
    format!("{}announce: {announce}\n", Configuration { mode: "native", services }.yaml_in(lab))
}

/// Runs the agent until it holds its VIPs, has the router ask for them, and stops it.
fn hold_and_stop(lab: &Lab, families: &[Family], yaml: &str) -> Result<()> {
    let agent = Agent::start_with(lab, yaml)?;
    agent.wait_status("all VIPs to be held", |status| {
        let vips = status["announce"]["vips"].as_array()?;
        let mut held = vips.iter().map(|vip| vip["means"].as_array().is_some_and(|all| all.iter().any(is_held)));
        (vips.len() == families.len() && held.all(|held| held)).then_some(())
    })?;
    lab.router.ip(&format!("neighbor flush dev {ROUTER_END}\n"))?;
    for family in families {
        lab.router.run(|| ask(vip(1).of(*family)));
    }
    agent.stop()
}

fn is_held(means: &Value) -> bool {
    means["holds"] == true
}

/// A connection is not needed, the question of who has the address is.
fn ask(vip: IpAddr) {
    let _ = TcpStream::connect_timeout(&SocketAddr::new(vip, VIP_PORT + 1), Duration::from_secs(2));
}

/// By display filter. An answer is to one host, what is told unasked is to all.
const ON_A_SEGMENT: &[(&str, &str)] = &[
    ("advertisements of VRRP 3, IPv4", "vrrp.version == 3 && ip.dst == 224.0.0.18 && ip.ttl == 255 && vrrp.prio > 0"),
    (
        "advertisements of VRRP 3, IPv6",
        "vrrp.version == 3 && ipv6.dst == ff02::12 && ipv6.hlim == 255 && vrrp.prio > 0",
    ),
    ("advertisements of VRRP 2", "vrrp.version == 2 && ip.dst == 224.0.0.18 && ip.ttl == 255 && vrrp.prio > 0"),
    ("the last advertisement, version 3, IPv4", "vrrp.version == 3 && vrrp.prio == 0 && ip"),
    ("the last advertisement, version 3, IPv6", "vrrp.version == 3 && vrrp.prio == 0 && ipv6"),
    ("the last advertisement, version 2", "vrrp.version == 2 && vrrp.prio == 0"),
    ("gratuitous ARP, asking", "arp.isgratuitous && arp.opcode == 1 && arp.src.proto_ipv4 == 10.96.0.1"),
    ("gratuitous ARP, replying", "arp.isgratuitous && arp.opcode == 2 && arp.src.proto_ipv4 == 10.96.0.1"),
    ("answers to ARP", "arp.opcode == 2 && !arp.isgratuitous && arp.src.proto_ipv4 == 10.96.0.1"),
    (
        "neighbor advertisements, unasked",
        "icmpv6.type == 136 && icmpv6.nd.na.target_address == fd00:96::1 && icmpv6.nd.na.flag.s == 0 && \
         icmpv6.nd.na.flag.r == 1 && icmpv6.nd.na.flag.o == 1 && ipv6.dst == ff02::1",
    ),
    (
        "advertisements to a unicast peer",
        "vrrp.version == 3 && ip.dst == 198.51.100.1 && ip.ttl == 255 && vrrp.prio > 0",
    ),
    ("advertisements from a virtual MAC", "vrrp.version == 3 && eth.src == 00:00:5e:00:02:34 && ipv6.dst == ff02::12"),
    (
        "neighbor advertisements of a virtual MAC",
        "icmpv6.type == 136 && icmpv6.opt.linkaddr == 00:00:5e:00:02:34 && icmpv6.nd.na.flag.r == 1",
    ),
    (
        "neighbor advertisements of who is no router, unasked",
        "icmpv6.type == 136 && icmpv6.nd.na.flag.r == 0 && icmpv6.nd.na.flag.s == 0 && icmpv6.nd.na.flag.o == 1",
    ),
    (
        "neighbor advertisements of who is no router, asked for",
        "icmpv6.type == 136 && icmpv6.nd.na.flag.r == 0 && icmpv6.nd.na.flag.s == 1",
    ),
    (
        "neighbor advertisements, asked for",
        "icmpv6.type == 136 && icmpv6.nd.na.target_address == fd00:96::1 && icmpv6.nd.na.flag.s == 1 && \
         icmpv6.opt.type == 2",
    ),
];

#[test]
fn what_tells_a_segment_of_vips_is_well_formed() -> Result<()> {
    if !available("dissect") {
        return Ok(());
    }
    let lab = Lab::on_segment("dissect")?;
    let capture = Capture::start(&lab.router, ROUTER_END)?;
    let vrrp = |groups: &[&str]| {
        let group = |(at, more): (usize, &&str)| format!("{{ name: lab{at}, interface: {UPLINK}, {more} }}");
        let groups: Vec<String> = groups.iter().enumerate().map(group).collect();
        format!("{{ vrrp: [{}] }}", groups.join(", "))
    };
    let plain = vrrp(&[&format!("vrids: {VRID}, version: 3, interval: 100ms")]);
    hold_and_stop(&lab, &Family::BOTH, &yaml(&lab, &Family::BOTH, &plain))?;
    let second = vrrp(&[&format!("vrids: {VRID}, version: 2, interval: 1s")]);
    hold_and_stop(&lab, &[Family::V4], &yaml(&lab, &[Family::V4], &second))?;
    let unicast = format!("vrids: {VRID}, interval: 100ms, peers: [198.51.100.1], vips: [{}]", vip(1).v4);
    let virtual_mac = format!("vrids: {}, interval: 100ms, virtualMac: true, vips: [{}]", VRID + 1, vip(1).v6);
    hold_and_stop(&lab, &Family::BOTH, &yaml(&lab, &Family::BOTH, &vrrp(&[&unicast, &virtual_mac])))?;
    let always = format!("{{ always: [{{ interface: {UPLINK} }}] }}");
    hold_and_stop(&lab, &Family::BOTH, &yaml(&lab, &Family::BOTH, &always))?;
    let frames = capture.stop()?;
    let ours = of_the_node(&lab, frames)?;
    Dissection::new(&ours, lab.directory(), "segment")?.check(ON_A_SEGMENT)?;

    // An address of an advertisement, the length of an address in ARP, an option's length: each is found.
    let is_advertisement = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 112;
    check_found(&lab, &ours, "vrrp", is_advertisement, |frame| frame[14 + 20 + 11] ^= 1)?;
    check_found(&lab, &ours, "arp", |frame| frame[12..14] == [8, 6], |frame| frame[18] = 40)?;
    let is_told = |frame: &[u8]| frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 136;
    check_found(&lab, &ours, "na", is_told, |frame| frame[14 + 40 + 25] = 9)
}

/// Frames of the node's uplink, by whatever MAC: what else is heard there is not ours to mend.
fn of_the_node(lab: &Lab, frames: Vec<Frame>) -> Result<Vec<Frame>> {
    let output = lab.node.command("ip").args(["-j", "link", "show", UPLINK]).output()?;
    let links: Value = serde_json::from_slice(&output.stdout)?;
    let text = links[0]["address"].as_str().context("the uplink has a MAC")?;
    let mac: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    let is_ours = |source: &[u8]| source == mac || source.starts_with(&[0, 0, 0x5e, 0]);
    Ok(frames.into_iter().filter(|frame| frame.bytes.get(6..12).is_some_and(is_ours)).collect())
}

/// The first frame of a kind, damaged, is the one that the same check finds.
fn check_found(
    lab: &Lab,
    frames: &[Frame],
    name: &str,
    is_it: impl Fn(&[u8]) -> bool,
    damage: impl FnOnce(&mut [u8]),
) -> Result<()> {
    let at = frames.iter().position(|frame| is_it(&frame.bytes)).with_context(|| format!("no frame of {name}"))?;
    let mut frames = frames[at..].iter().take(3).cloned().collect::<Vec<_>>();
    damage(&mut frames[0].bytes);
    let faults = Dissection::new(&frames, lab.directory(), &format!("broken-{name}"))?.faults()?;
    ensure!(faults.len() == 1 && faults[0].trim_start().starts_with("1 "), "{name}: {faults:?}");
    Ok(())
}
