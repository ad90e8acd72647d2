//! Privileged: makes network namespaces, loads programs into the kernel, mounts bpffs, and runs keepalived.
//!
//! How a segment learns where a VIP is: without any election, and by VRRP with another vendor's router.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::{
    agent::{Agent, Configuration, Service, available, check_nothing_left, detach},
    lab::{ELEMENT, Family, Lab, NODE, Namespace, ROUTER_END, UPLINK, attach_pass, vip, wait_until},
    packets::Packet,
    pinned::Pinned,
    programs::{
        PATIENCE,
        conversation::{self, Conversation, Speaker},
        keepalived::{Keepalived, Settings, is_held_by, neighbor, wait_held_by},
    },
};
use serde_json::{Value, json};

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;
const VRID: u8 = 51;

fn yaml(lab: &Lab, families: &[Family], has_backends: bool, announce: &str) -> String {
    let service = |family: &Family| {
        let backend = SocketAddr::new(lab.pods[0].addresses.of(*family), POD_PORT);
        Service {
            name: format!("service-{family:?}"),
            vip: vip(1).of(*family),
            protocol: "TCP",
            port: VIP_PORT,
            replies: None,
            rung: "auto",
            backends: if has_backends { vec![backend] } else { Vec::new() },
        }
    };
    let services = families.iter().map(service).collect();
    format!("{}announce: {announce}\n", Configuration { mode: "native", services }.yaml_in(lab))
}

fn target(family: Family) -> SocketAddr {
    SocketAddr::new(vip(1).of(family), VIP_PORT)
}

fn mac_of(namespace: &Namespace, interface: &str) -> Result<String> {
    let output = namespace.command("ip").args(["-j", "link", "show", interface]).output()?;
    let links: Value = serde_json::from_slice(&output.stdout)?;
    Ok(links[0]["address"].as_str().with_context(|| format!("{interface} has no MAC"))?.to_owned())
}

fn mac_of_the_uplink(lab: &Lab) -> Result<String> {
    mac_of(&lab.node, UPLINK)
}

/// The reasons against a VIP's first means.
fn against(status: &Value, vip: IpAddr) -> Option<Vec<String>> {
    let vips = status["announce"]["vips"].as_array()?;
    let means = &vips.iter().find(|entry| entry["vip"] == vip.to_string())?["means"][0];
    let reasons = means["against"].as_array()?;
    Some(reasons.iter().filter_map(|reason| reason["reason"].as_str().map(str::to_owned)).collect())
}

fn forget_neighbors(lab: &Lab) -> Result<()> {
    lab.router.ip(&format!("neighbor flush dev {ROUTER_END}\n"))
}

//= test rfc4861#7.2.1:join
#[test]
fn a_vip_that_is_always_held_is_found_on_the_segment_while_a_backend_can_be_reached() -> Result<()> {
    if !available("announce") {
        return Ok(());
    }
    let lab = Lab::on_segment("always")?;
    let always = format!("{{ always: [{{ interface: {UPLINK} }}] }}");
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut agent = Agent::start_with(&lab, &yaml(&lab, &Family::BOTH, true, &always))?;
    let mac = mac_of_the_uplink(&lab)?;
    let held = |status: &Value| {
        let all: Option<Vec<_>> = Family::BOTH.iter().map(|family| against(status, vip(1).of(*family))).collect();
        all?.iter().all(Vec::is_empty).then_some(())
    };
    agent.wait_status("both VIPs to be announced", held)?;
    let groups = lab.node.command("ip").args(["-6", "maddress", "show", "dev", UPLINK]).output()?;
    let groups = String::from_utf8_lossy(&groups.stdout).into_owned();
    let [.., high, low] = vip(1).v6.segments();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low).to_string();
    ensure!(groups.split_whitespace().any(|word| word == group), "{group} is not among {groups}");
    forget_neighbors(&lab)?;
    for family in Family::BOTH {
        let mut session = Conversation::open(&lab.element, target(family), &listener)?;
        session.exchange(Speaker::Pod)?;
        let seen = neighbor(&lab.router, ROUTER_END, vip(1).of(family))?;
        ensure!(seen.as_ref() == Some(&mac), "{family:?}: the router has {seen:?} for the VIP, the uplink is {mac}");
        ensure!(lab.router.run(|| is_reached(vip(1).of(family))), "{family:?}: nothing answers the router");
    }

    // Nor while all of its pods fail their health checks, unless the configuration wants it kept here.
    let always_kept = format!("{{ whenUnhealthy: announce, always: [{{ interface: {UPLINK} }}] }}");
    let failing = |announce: &str| {
        let yaml = yaml(&lab, &Family::BOTH, true, announce);
        let check = format!("{{ type: tcp, port: {}, interval: 400ms, timeout: 200ms, fall: 2 }}", POD_PORT + 1);
        yaml.replace("    rung: auto\n", &format!("    rung: auto\n    healthCheck: {check}\n"))
    };
    agent.reload(&failing(&always))?;
    agent.wait_status("both VIPs to be withheld as unhealthy", |status| {
        let of = |family| against(status, vip(1).of(family));
        (of(Family::V4)? == ["unhealthy"] && of(Family::V6)? == ["unhealthy"]).then_some(())
    })?;
    forget_neighbors(&lab)?;
    ensure!(!lab.router.run(|| is_reached(vip(1).v4.into())), "who is unhealthy answers for a VIP");
    agent.reload(&failing(&always_kept))?;
    agent.wait_status("both VIPs to be announced although they are unhealthy", held)?;
    forget_neighbors(&lab)?;
    for family in Family::BOTH {
        Conversation::open(&lab.element, target(family), &listener)?.exchange(Speaker::Pod)?;
    }

    // Nobody answers for it without a backend, and the status says why: neither this node, which may have it on an interface
    // as kube-proxy in IPVS mode does, nor its kernel.
    lab.node.ip(&format!("address add {}/32 dev lo\naddress add {}/128 dev lo\n", vip(1).v4, vip(1).v6))?;
    agent.reload(&yaml(&lab, &Family::BOTH, false, &always))?;
    agent.wait_status("a reason against each VIP", |status| {
        let of = |family| against(status, vip(1).of(family));
        (of(Family::V4)? == ["no_backends"] && of(Family::V6)? == ["no_backends"]).then_some(())
    })?;
    forget_neighbors(&lab)?;
    for family in Family::BOTH {
        ensure!(!lab.router.run(|| is_reached(vip(1).of(family))), "{family:?}: something answers for the VIP");
        ensure!(neighbor(&lab.router, ROUTER_END, vip(1).of(family))?.is_none(), "{family:?}: a neighbor");
    }

    lab.node.ip(&format!("address delete {}/32 dev lo\naddress delete {}/128 dev lo\n", vip(1).v4, vip(1).v6))?;

    // And a dead agent goes on being answered for.
    agent.reload(&yaml(&lab, &Family::BOTH, true, &always))?;
    agent.wait_status("both VIPs to be announced again", held)?;
    agent.kill()?;
    forget_neighbors(&lab)?;
    for family in Family::BOTH {
        Conversation::open(&lab.element, target(family), &listener).with_context(|| format!("{family:?}, no agent"))?;
    }

    // Nor is it without an answer while the next agent makes maps of other capacities.
    let larger = format!("{}capacities: {{ flows: 2048 }}\n", yaml(&lab, &Family::BOTH, true, &always));
    let has_started = AtomicBool::new(false);
    let agent = thread::scope(|scope| {
        let asker = scope.spawn(|| {
            while !has_started.load(Ordering::Relaxed) {
                forget_neighbors(&lab)?;
                ensure!(lab.router.run(|| is_reached(vip(1).v4.into())), "nothing answers while maps are renewed");
            }
            Ok(())
        });
        let agent = Agent::start_with(&lab, &larger);
        has_started.store(true, Ordering::Relaxed);
        asker.join().expect("it does not panic").and(agent)
    })?;
    ensure!(agent.log().iter().any(|line| line.contains("carried over to new maps")), "the maps have stayed");
    agent.kill()?;
    Agent::start_with(&lab, &yaml(&lab, &Family::BOTH, true, "{}"))?.stop()?;
    forget_neighbors(&lab)?;
    ensure!(!lab.router.run(|| is_reached(vip(1).v4.into())), "who announces nothing answers for a VIP");
    check_nothing_left(&lab)
}

/// Pins of the links to programs whose names begin so.
fn links(agent: &Agent, program: &str) -> Result<Vec<PathBuf>> {
    let pins: io::Result<Vec<PathBuf>> =
        fs::read_dir(agent.pins().join("links"))?.map(|entry| Ok(entry?.path())).collect();
    let is_it = |pin: &PathBuf| pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with(program));
    let pins: Vec<PathBuf> = pins?.into_iter().filter(is_it).collect();
    ensure!(!pins.is_empty(), "no link of {program}");
    Ok(pins)
}

fn detach_uplink(agent: &Agent) -> Result<()> {
    links(agent, "sluice_xdp-")?.iter().try_for_each(|pin| detach_link(pin))
}

fn detach_link(pin: &Path) -> Result<()> {
    let output = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(pin).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn programs_that_somebody_detached_are_attached_anew_or_nothing_is_announced() -> Result<()> {
    if !available("announce") {
        return Ok(());
    }
    let lab = Lab::on_segment("detached")?;
    let always = format!("{{ always: [{{ interface: {UPLINK} }}] }}");
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let agent = Agent::start_with(&lab, &yaml(&lab, &[Family::V4], true, &always))?;
    let wait_against = |what: &str, wanted: &[&str]| {
        agent.wait_status(what, |status| (against(status, vip(1).v4.into())? == wanted).then_some(()))
    };
    wait_against("the VIP to be announced", &[])?;
    let mut session = Conversation::open(&lab.element, target(Family::V4), &listener)?;

    let wait_restored = |times| {
        let is_it = |line: &&String| line.contains("somebody has detached a program of ours; it is attached anew");
        let seen = || Ok((agent.log().iter().filter(is_it).count() == times).then_some(()));
        wait_until("programs to be attached anew", PATIENCE, seen).with_context(|| agent.log_tail())
    };
    detach_uplink(&agent)?;
    wait_restored(1)?;
    session.exchange(Speaker::Client)?;
    for pin in links(&agent, "sluice_bypass-")? {
        detach_link(&pin)?;
    }
    wait_restored(2)?;
    session.exchange(Speaker::Pod)?;

    // Whoever removes a pin detaches nothing.
    let pins: Vec<PathBuf> =
        ["sluice_xdp-", "sluice_return-"].iter().map(|name| links(&agent, name)).collect::<Result<Vec<_>>>()?.concat();
    for pin in &pins {
        fs::remove_file(pin)?;
        session.exchange(Speaker::Pod)?;
    }
    wait_until("the pins to be there again", PATIENCE, || Ok(pins.iter().all(|pin| pin.exists()).then_some(())))?;
    session.exchange(Speaker::Pod)?;
    let has_failed = agent.log().iter().any(|line| line.contains("it cannot be attached again"));
    ensure!(!has_failed, "{}", agent.log_tail());

    // Another program may take the place before it is attached anew, or not.
    let other = wait_until("another program to take the place", PATIENCE, || {
        // There may be none between two tries.
        let _ = detach_uplink(&agent);
        Ok(attach_pass(&lab.node, UPLINK).ok())
    })?;
    wait_against("the VIP to be withheld", &["no_program"])?;
    forget_neighbors(&lab)?;
    ensure!(!lab.router.run(|| is_reached(vip(1).v4.into())), "something answers for the VIP");
    drop(other);
    wait_against("the VIP to be announced again", &[])?;
    session.exchange(Speaker::Client)?;
    agent.stop()?;
    check_nothing_left(&lab)
}

/// Whether a neighbor answers for an address: a closed port is refused, and not left without an answer.
fn is_reached(vip: IpAddr) -> bool {
    let refused = TcpStream::connect_timeout(&SocketAddr::new(vip, VIP_PORT + 1), Duration::from_secs(2));
    refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// What the agent says of a VIP to programs.
fn said_of(agent: &Agent, vip: IpAddr) -> Result<Value> {
    let said = agent.ask(&["status", "vip", &vip.to_string(), "-o", "json"])?;
    serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))
}

#[test]
fn whoever_else_claims_a_vip_is_named_and_what_no_prefix_has_is_warned_of() -> Result<()> {
    if !available("announce") {
        return Ok(());
    }
    let lab = Lab::on_segment("claims")?;
    let always = format!("{{ always: [{{ interface: {UPLINK} }}] }}");
    let agent = Agent::start_with(&lab, &yaml(&lab, &Family::BOTH, true, &always))?;
    let mac = mac_of(&lab.router, ROUTER_END)?;
    for family in Family::BOTH {
        let held = vip(1).of(family);
        let said = said_of(&agent, held)?;
        let warning = said["warnings"][0].as_str().unwrap_or_default();
        ensure!(warning.contains(&format!("in none of the prefixes of {UPLINK}")), "{said:#}");
        ensure!(said["means"][0]["holds"] == true && said["conflicts"] == json!([]), "{said:#}");
    }
    agent.wait_log(&format!("it lies in none of the prefixes of {UPLINK}"))?;

    // keepalived takes it without a look at who has it, and says so to the segment.
    let list = format!("{}/32", vip(1).v4);
    let settings = Settings { version: 3, vrid: VRID, priority: 100, interval: "0.1", vips: &[&list] };
    let keepalived = Keepalived::start(&lab.router, lab.directory(), &settings)?;
    // Another machine just has it, and looks for a neighbor.
    lab.router.ip(&format!("address add {}/128 dev {ROUTER_END} nodad\n", vip(1).v6))?;
    forget_neighbors(&lab)?;
    lab.router.run(|| UdpSocket::bind((vip(1).v6, 0))?.send_to(b"hello", (NODE.v6, 9)))?;
    for family in Family::BOTH {
        let held = vip(1).of(family);
        let conflict = wait_until(&format!("an alarm about {held}"), PATIENCE, || {
            let said = said_of(&agent, held)?;
            Ok(said["conflicts"].get(0).cloned())
        });
        let conflict = conflict.with_context(|| format!("{}\n{}", keepalived.log_tail(), agent.log_tail()))?;
        let count = conflict["count"].as_u64();
        ensure!(conflict["mac"] == mac.as_str() && count.is_some_and(|count| count > 0), "{mac}: {conflict:#}");
        let table = agent.ask(&["status", "vip", &held.to_string()])?;
        ensure!(table.contains(&mac), "{table}");
    }
    let log = agent.log();
    let alarms = log.iter().filter(|line| line.contains("somebody else claims a VIP") && line.contains(&mac));
    ensure!(alarms.count() == Family::BOTH.len(), "{}", agent.log_tail());
    agent.stop()?;
    check_nothing_left(&lab)
}

/// Waits for the state of the only virtual router.
fn wait_state(agent: &Agent, state: &str) -> Result<Value> {
    agent.wait_status(&format!("the virtual router to be {state}"), |status| {
        let router = &status["announce"]["routers"][0];
        (router["state"] == state).then(|| router.clone())
    })
}

/// keepalived with its defaults, as it meets Sluice in one version and family.
fn meets_keepalived(name: &str, version: u8, family: Family, interval: &str) -> Result<()> {
    if !available("announce") {
        return Ok(());
    }
    let lab = Lab::on_segment(name)?;
    let held = vip(1).of(family);
    let (v4, v6) = (format!("{}/32", vip(1).v4), format!("{}/128", vip(1).v6));
    let link_local = format!("fe80::5e:{VRID:x}/64");
    let vips: &[&str] = match family {
        Family::V4 => &[&v4],
        Family::V6 => &[&link_local, &v6],
    };
    let settings = Settings { version, vrid: VRID, priority: 100, interval, vips };
    let milliseconds = (interval.parse::<f64>()? * 1000.0) as u32;
    let group = |more: &str| {
        let group = format!(
            "{{ vrrp: [{{ name: lab, interface: {UPLINK}, vrids: {VRID}, version: {version}, interval: {milliseconds}ms{more} }}] }}"
        );
        yaml(&lab, &[family], true, &group)
    };
    let keepalived = Keepalived::start(&lab.router, lab.directory(), &settings)?;
    wait_held_by(&lab.router, held, true)?;

    // The higher priority takes over, and hands over when it stops.
    let agent = Agent::start_with(&lab, &group(""))?;
    let router = wait_state(&agent, "active")?;
    ensure!(router["alarms"].as_object().is_some_and(serde_json::Map::is_empty), "alarms: {router}");
    wait_held_by(&lab.router, held, false).with_context(|| keepalived.log_tail())?;
    forget_neighbors(&lab)?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut session = Conversation::open(&lab.element, target(family), &listener)?;
    session.exchange(Speaker::Pod)?;
    agent.stop()?;
    wait_held_by(&lab.router, held, true)?;

    // One that dies is missed.
    let agent = Agent::start_with(&lab, &group(""))?;
    wait_state(&agent, "active")?;
    wait_held_by(&lab.router, held, false)?;
    agent.kill()?;
    wait_held_by(&lab.router, held, true)?;

    // One that stands still has let go when it goes on, and takes its turn again.
    let mut agent = Agent::start_with(&lab, &group(""))?;
    wait_state(&agent, "active")?;
    wait_held_by(&lab.router, held, false)?;
    agent.signal(libc::SIGSTOP)?;
    wait_held_by(&lab.router, held, true)?;
    agent.signal(libc::SIGCONT)?;
    wait_held_by(&lab.router, held, false)?;
    let router = wait_state(&agent, "active")?;
    ensure!(router["transitions"]["validity_over"] == 1, "{router}");
    agent.stop()?;
    wait_held_by(&lab.router, held, true)?;

    // The lower priority waits until the other one leaves.
    let agent = Agent::start_with(&lab, &group(", priority: 50"))?;
    let router = wait_state(&agent, "backup")?;
    ensure!(router["heard"]["priority"] == 100, "{router}");
    ensure!(is_held_by(&lab.router, held)?, "keepalived gave way to a lower priority");
    keepalived.stop()?;
    wait_state(&agent, "active")?;
    forget_neighbors(&lab)?;
    Conversation::open(&lab.element, target(family), &listener)?;
    let mac = mac_of_the_uplink(&lab)?;
    wait_until("the uplink's MAC", PATIENCE, || {
        Ok((neighbor(&lab.router, ROUTER_END, held)?.as_ref() == Some(&mac)).then_some(()))
    })?;
    agent.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn version_3_for_ipv4_meets_keepalived() -> Result<()> {
    meets_keepalived("vrrp34", 3, Family::V4, "0.1")
}

#[test]
fn version_3_for_ipv6_meets_keepalived() -> Result<()> {
    meets_keepalived("vrrp36", 3, Family::V6, "0.1")
}

#[test]
fn version_2_meets_keepalived() -> Result<()> {
    meets_keepalived("vrrp2", 2, Family::V4, "1")
}

/// What the node's uplink lets in beside its own MAC.
fn lets_in(lab: &Lab, mac: &str) -> Result<bool> {
    let output = lab.node.command("bridge").args(["fdb", "show", "dev", UPLINK]).output().context("bridge fdb")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.starts_with(mac) && line.contains("self")))
}

/// A connection from the router to a closed port of the node itself: whether the node's own stack has answered.
fn node_answers(lab: &Lab, family: Family) -> bool {
    let target = SocketAddr::new(NODE.of(family), VIP_PORT);
    let refused = lab.router.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(1)));
    refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Beside keepalived with its own MAC: this kernel has no macvlan, which it needs for a virtual one.
//= test rfc9568#6.4.2:mac
//= test rfc3768#6.4.2:mac
//= test rfc9568#6.4.3:mac
//= test rfc3768#6.4.3:mac
//= test rfc9568#7.2:mac
//= test rfc3768#7.2:mac
fn has_its_own_mac(name: &str, mode: &str, version: u8, family: Family, interval: &str) -> Result<()> {
    if !available("announce") {
        return Ok(());
    }
    let lab = Lab::on_segment(name)?;
    let held = vip(1).of(family);
    // Another link-local VIP than the usual one, as where keepalived was there first.
    let (v4, v6, link_local) = (format!("{}/32", vip(1).v4), format!("{}/128", vip(1).v6), "fe80::77/64");
    let first = if family == Family::V6 { ", linkLocal: 'fe80::77'" } else { "" };
    let (vips, mac): (&[&str], [u8; 6]) = match family {
        Family::V4 => (&[&v4], [0, 0, 0x5e, 0, 1, VRID]),
        Family::V6 => (&[link_local, &v6], [0, 0, 0x5e, 0, 2, VRID]),
    };
    let text = mac.map(|octet| format!("{octet:02x}")).join(":");
    let milliseconds = (interval.parse::<f64>()? * 1000.0) as u32;
    let group = |more: &str| {
        let group = format!(
            "{{ vrrp: [{{ name: lab, interface: {UPLINK}, vrids: {VRID}, version: {version}, interval: {milliseconds}ms{first}{more} }}] }}"
        );
        yaml(&lab, &[family], true, &group).replace("native", mode)
    };
    let settings = Settings { version, vrid: VRID, priority: 100, interval, vips };
    let keepalived = Keepalived::start(&lab.router, lab.directory(), &settings)?;
    wait_held_by(&lab.router, held, true)?;

    // The VIP moves to the virtual MAC, which reaches pods and the node itself.
    let mut agent = Agent::start_with(&lab, &group(", virtualMac: true"))?;
    let pinned = Pinned::of(&agent);
    let router = wait_state(&agent, "active")?;
    ensure!(router["virtualMac"] == text, "{router}");
    wait_held_by(&lab.router, held, false).with_context(|| keepalived.log_tail())?;
    ensure!(lets_in(&lab, &text)?, "{text} is not in the uplink's filter");
    let ip = if family == Family::V4 { (23, 14) } else { (20, 14) };
    let is_advertisement = |frame: &[u8]| frame[6..12] == mac && frame.get(ip.0) == Some(&112);
    let sent = lab.router.hear_frame(ROUTER_END, PATIENCE, is_advertisement)?;
    ensure!(sent[0] & 1 == 1 && sent[ip.1] >> 4 == if family == Family::V4 { 4 } else { 6 }, "{sent:02x?}");
    forget_neighbors(&lab)?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut session = Conversation::open(&lab.element, target(family), &listener)?;
    session.exchange(Speaker::Pod)?;
    let seen = neighbor(&lab.router, ROUTER_END, held)?;
    ensure!(seen.as_ref() == Some(&text), "the router has {seen:?} for the VIP");
    lab.router.ip(&format!("neighbor replace {} lladdr {text} dev {ROUTER_END} nud permanent\n", NODE.of(family)))?;
    ensure!(node_answers(&lab, family), "the node's own stack gets nothing that is sent to the virtual MAC");

    // A backup drops what is still sent there, and forwards nothing.
    agent.reload(&group(", virtualMac: true, priority: 50"))?;
    wait_held_by(&lab.router, held, true)?;
    wait_state(&agent, "backup")?;
    let elsewhere = Reason::VirtualMacElsewhere.index();
    let (dropped, forwarded) = (pinned.reason(elsewhere)?, pinned.forwarded()?);
    const FRAMES: u64 = 20;
    for port in 0..FRAMES as u16 {
        let syn = Packet::from(ELEMENT.of(family)).to(held).tcp(40_000 + port, VIP_PORT).syn().to_mac(mac);
        lab.router.send_frame(ROUTER_END, &syn.frame())?;
    }
    wait_until("the frames to be dropped", PATIENCE, || {
        Ok((pinned.reason(elsewhere)? >= dropped + FRAMES).then_some(()))
    })?;
    ensure!(pinned.forwarded()? == forwarded, "a backup forwards what is sent to the virtual MAC");
    ensure!(!node_answers(&lab, family), "a backup's stack gets what is sent to the virtual MAC");

    // With it the VIP comes back, and so do sessions.
    agent.reload(&group(", virtualMac: true"))?;
    wait_state(&agent, "active")?;
    wait_held_by(&lab.router, held, false)?;
    session.exchange(Speaker::Pod)?;
    Conversation::open(&lab.element, target(family), &listener)?.exchange(Speaker::Pod)?;
    let seen = neighbor(&lab.router, ROUTER_END, held)?;
    ensure!(seen.as_ref() == Some(&text), "the router has {seen:?} for the VIP that came back");
    ensure!(node_answers(&lab, family), "the node's own stack gets nothing any more");

    // Without it the VIP is at the uplink's MAC again.
    agent.reload(&group(""))?;
    wait_state(&agent, "active")?;
    wait_until(
        "the filter to let the virtual MAC in no more",
        PATIENCE,
        || Ok((!lets_in(&lab, &text)?).then_some(())),
    )?;
    forget_neighbors(&lab)?;
    session.exchange(Speaker::Pod)?;
    let (seen, own) = (neighbor(&lab.router, ROUTER_END, held)?, mac_of_the_uplink(&lab)?);
    ensure!(seen.as_ref() == Some(&own), "the router has {seen:?} for the VIP, the uplink is {own}");

    // What a dead agent has left is taken over, or taken down.
    agent.reload(&group(", virtualMac: true"))?;
    wait_state(&agent, "active")?;
    agent.kill()?;
    ensure!(lets_in(&lab, &text)?, "the filter went with the agent");
    let agent = Agent::start_with(&lab, &group(""))?;
    wait_until("another agent to shut it out", PATIENCE, || Ok((!lets_in(&lab, &text)?).then_some(())))?;
    agent.end()?;
    let agent = Agent::start_with(&lab, &group(", virtualMac: true"))?;
    wait_state(&agent, "active")?;
    agent.kill()?;
    let said = detach(&lab)?;
    ensure!(said.contains(&format!("took virtual MAC {text} from the filter of {UPLINK}")), "{said}");
    ensure!(!lets_in(&lab, &text)?, "detach leaves {text} in the filter");
    check_nothing_left(&lab)
}

#[test]
fn a_virtual_mac_of_ipv4_moves_with_the_vip() -> Result<()> {
    has_its_own_mac("vmac4", "native", 3, Family::V4, "0.1")
}

#[test]
fn a_virtual_mac_of_ipv6_moves_with_the_vip_in_generic_mode() -> Result<()> {
    has_its_own_mac("vmac6", "generic", 3, Family::V6, "0.1")
}

#[test]
fn a_virtual_mac_of_version_2_moves_with_the_vip() -> Result<()> {
    has_its_own_mac("vmac2", "generic", 2, Family::V4, "1")
}
