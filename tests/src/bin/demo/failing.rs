//! Nodes that announce the same VIP, and one of them taken away under traffic: by BGP towards a router, and by VRRP beside another
//! vendor's.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{
        Fabric, PortState,
        routed::{FAST, Peers, Stop, Watch, agents},
        team::{Kind, Team},
    },
    lab::{UPLINK, vip, wait_until},
    programs::{PATIENCE, prober::Prober},
};

use super::Screen;

const VRID: u8 = 51;
/// Of a machine that stalls for a while at times; without that, a few hundred milliseconds.
const GAP_MAX: Duration = Duration::from_secs(3);

/// Both; gives the names of those that failed.
pub fn all(screen: Screen) -> Vec<String> {
    let mut failed = Vec::new();
    let mut check = |name: &str, result: Result<String>| match result {
        Ok(summary) => screen.passed(name, &summary),
        Err(error) => {
            screen.failed(name, &error);
            failed.push(name.to_owned());
        }
    };
    let held: IpAddr = vip(1).v4.into();
    screen.title(&format!("Two nodes announce {held} by BGP, watched by BFD (3 × 50 ms); the router is BIRD"));
    check("a node falls silent, BGP", by_bgp(screen));
    screen
        .title(&format!("A node announces {held} by VRRP each 100 ms; the other router on the segment is keepalived"));
    check("the node falls silent, VRRP", by_vrrp(screen));
    failed
}

fn by_bgp(screen: Screen) -> Result<String> {
    let mut peers = Peers::start(Watch::Bfd, FAST, agents(Watch::Bfd, FAST, Stop::Ordered))?;
    let shown = peers.team.cluster.router.command("ip").args(["route", "show", &vip(1).v4.to_string()]).output()?;
    for line in String::from_utf8_lossy(&shown.stdout).lines() {
        screen.line("router", line.trim());
    }
    gap(screen, &mut peers.team)
}

fn by_vrrp(screen: Screen) -> Result<String> {
    let group =
        format!("  vrrp: [{{ name: core, interface: {UPLINK}, vrids: {VRID}, interval: 100ms, priority: 200 }}]\n");
    let sluice = Kind::Sluice { announces: vec![group; 2] };
    let keepalived = Kind::Keepalived { interval: "0.1", vrid: VRID };
    let kind = Kind::Mixed(vec![sluice, keepalived]);
    let mut team = Team::start("demo", Fabric::Segment, 2, &[vip(1).v4.into()], kind)?;
    team.wait_answer(Some(0)).context("the node of the higher priority answers")?;
    screen.line("active", "node a, which runs Sluice, with priority 200; node b, which runs keepalived, has 100");
    gap(screen, &mut team)
}

/// Sends a thousand datagrams a second, cuts off the node that answers, and measures until the other one does.
fn gap(screen: Screen, team: &mut Team) -> Result<String> {
    let prober = Prober::start(&team.cluster.element, team.target())?;
    let from = wait_until("an answer", PATIENCE, || Ok(prober.last_tag()))?;
    let since = prober.now();
    team.cluster.set_port(from.into(), PortState::Disabled)?;
    screen.line("cut off", &format!("node {}, of which nobody is told", team.cluster.nodes[usize::from(from)].name));
    let to = wait_until("another node's answer", PATIENCE, || Ok(prober.last_tag().filter(|tag| *tag != from)))?;
    let probe = prober.stop();
    let moved = probe.moved_from(from, since).context("another node has answered")?;
    let gap = probe.longest_gap();
    screen.line("took over", &format!("node {}", team.cluster.nodes[usize::from(to)].name));
    ensure!(gap < GAP_MAX, "no answer for {gap:?}; {}", team.logs());
    Ok(format!("answered again after {} ms; {} of the datagrams were lost", moved.as_millis(), probe.lost()))
}
