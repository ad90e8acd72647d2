//! Privileged: makes network namespaces, loads programs into the kernel, mounts bpffs, and runs keepalived.
//!
//! A node that shares a segment with others that run keepalived.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Result, ensure};
use lb_tests::{
    agent::available,
    cluster::{
        Asker, Fabric, PortState, held_by,
        team::{Kind, Team},
    },
    lab::{UPLINK, vip, wait_until},
    programs::{PATIENCE, prober::Prober},
};
use serde_json::Value;

const VRID: u8 = 51;
/// What keepalived competes with on the first, the second and the third node.
const KEEPALIVED: [u8; 3] = [150, 100, 50];

/// How many advertisements are heard or sent while what must not happen does not.
const ADVERTISEMENTS: u64 = 20;

/// Sluice on one of two nodes, and keepalived, which has the first VIP alone, on the other.
fn beside(name: &str, ours: usize, priority: u8, vips: u8) -> Result<Team> {
    among(name, 2, ours, priority, vips)
}

/// The same among so many nodes.
fn among(name: &str, nodes: usize, ours: usize, priority: u8, vips: u8) -> Result<Team> {
    // keepalived steps down without a word. Where it hears ours first, ours never hears that there were two, and a router that
    // has its MAC still learns better by the refresh alone, which comes each minute by default.
    let settings = format!("vrids: {VRID}, interval: 100ms, priority: {priority}, refresh: 1s");
    let group = format!("  vrrp: [{{ name: core, interface: {UPLINK}, {settings} }}]\n");
    let mut kinds = vec![Kind::Keepalived { interval: "0.1", vrid: VRID }; nodes];
    kinds[ours] = Kind::Sluice { announces: vec![group; nodes] };
    let vips: Vec<IpAddr> = (1..=vips).map(|last| vip(last).v4.into()).collect();
    Team::start(name, Fabric::Segment, nodes, &vips, Kind::Mixed(kinds))
}

/// Waits for something of the agent's only virtual router.
fn wait_router<T>(team: &mut Team, ours: usize, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> Result<T> {
    team.agent(ours)?.wait_status(what, |status| look(&status["announce"]["routers"][0]))
}

fn wait_state(team: &mut Team, ours: usize, wanted: &str) -> Result<()> {
    wait_router(team, ours, &format!("the virtual router to be {wanted}"), |router| {
        (router["state"] == wanted).then_some(())
    })
}

#[test]
fn a_list_that_differs_is_an_alarm_that_names_the_other_router() -> Result<()> {
    if !available("beside") {
        return Ok(());
    }
    let mut team = beside("lists", 0, 200, 2)?;
    let alarm = wait_router(&mut team, 0, "an alarm about the list", |router| {
        let alarm = &router["alarms"]["vips"];
        alarm.is_object().then(|| alarm.clone())
    })?;
    let other = team.cluster.nodes[1].addresses.v4.to_string();
    ensure!(alarm["from"] == other && alarm["count"].as_u64().is_some_and(|count| count > 0), "{alarm}");
    Ok(())
}

/// Whoever leaves serves until another has taken over, and comes back with what it has said before.
#[test]
fn a_drained_node_hands_over_before_it_lets_go() -> Result<()> {
    if !available("beside") {
        return Ok(());
    }
    let mut team = beside("drained", 0, 200, 1)?;
    wait_state(&mut team, 0, "active")?;
    team.wait_answer(Some(0))?;
    let prober = Prober::start(&team.cluster.element, team.target())?;
    team.agent(0)?.ask(&["drain"])?;
    team.agent(0)?.wait_status("traffic to be waited for", |status| {
        (status["announce"]["leaving"] == "quieting").then_some(())
    })?;
    team.agent(0)?.ask(&["drain", "--wait"])?;
    ensure!(!prober.stop().sent.is_empty(), "nothing was sent meanwhile");
    let router = team.agent(0)?.status()?["announce"]["routers"][0].clone();
    ensure!(router["state"] == "init", "drained before it has handed over: {router}");
    let causes = &router["transitions"];
    ensure!(causes["successor_heard"] == 1 && causes["not_eligible"].is_null(), "it let go too soon: {router}");
    team.wait_answer(Some(1))?;
    team.agent(0)?.ask(&["undrain"])?;
    wait_state(&mut team, 0, "active")?;
    team.wait_answer(Some(0)).map(drop)
}

/// Of two that are active the one with the greater address stays (RFC 9568, 6.4.3); of one that is active and one that
/// joins, the one that is active (6.4.2).
fn ties(name: &str, ours: usize) -> Result<()> {
    if !available("beside") {
        return Ok(());
    }
    let theirs = 1 - ours;
    let mut team = beside(name, ours, KEEPALIVED[theirs], 1)?;
    team.wait_competing()?;
    team.cluster.set_port(ours, PortState::Disabled)?;
    wait_state(&mut team, ours, "active")?;
    team.wait_answer(Some(theirs))?;
    team.cluster.set_port(ours, PortState::Forwarding)?;
    wait_state(&mut team, ours, if ours == 1 { "active" } else { "backup" })?;
    team.wait_answer(Some(1))?;

    // The one with the greater address leaves, and comes back.
    team.leave(1)?;
    team.wait_answer(Some(0))?;
    team.join(1)?;
    team.wait_competing()?;
    let (counter, state) = if ours == 0 { ("sent", "active") } else { ("received", "backup") };
    let count = |router: &Value| router[counter].as_u64();
    let from = wait_router(&mut team, ours, "its counters", count)?;
    let router = wait_router(&mut team, ours, "more advertisements", |router| {
        (count(router)? >= from + ADVERTISEMENTS).then(|| router.clone())
    })?;
    ensure!(router["state"] == state, "an equal priority took over: {router}");
    team.wait_answer(Some(0)).map(drop)
}

#[test]
fn of_equal_priorities_the_greater_address_wins_against_ours() -> Result<()> {
    ties("tie0", 0)
}

#[test]
fn of_equal_priorities_the_greater_address_wins_when_it_is_ours() -> Result<()> {
    ties("tie1", 1)
}

/// Waits until one node alone answers for the VIP, for the router and for whoever asks.
fn wait_alone(team: &Team, node: usize) -> Result<()> {
    team.wait_answer(Some(node))?;
    let (asker, only) = (Asker::new(&team.cluster)?, BTreeSet::from([team.cluster.mac(node)?]));
    let address: Ipv4Addr = vip(1).v4;
    let what = format!("node {node} alone to answer for {address}");
    wait_until(&what, PATIENCE, || Ok((asker.ask(address)? == only).then_some(()))).map_err(|e| e.context(team.logs()))
}

/// Three routers that stop hearing each other, and hear each other again: the one with the greatest priority has the VIP
/// then, and no other answers, whoever had it meanwhile.
fn heals(name: &str, ours: usize, priority: u8) -> Result<()> {
    if !available("beside") {
        return Ok(());
    }
    let mut team = among(name, 3, ours, priority, 1)?;
    team.wait_competing()?;
    // The first is cut off from all, the router too: the next one has the VIP where it is asked for.
    wait_alone(&team, 0)?;
    team.cluster.set_port(0, PortState::Disabled)?;
    wait_alone(&team, 1)?;
    let holds = wait_state(&mut team, ours, "active");
    holds.map_err(|error| error.context("both sides of the cut have one"))?;
    team.cluster.set_port(0, PortState::Forwarding)?;
    wait_alone(&team, 0)?;
    // All hear the router and none another: all are active, until they hear each other.
    team.cluster.set_ports(PortState::Isolated)?;
    wait_state(&mut team, ours, "active")?;
    let asker = Asker::new(&team.cluster)?;
    wait_until("three to answer", PATIENCE, || Ok((asker.ask(vip(1).v4)?.len() == 3).then_some(())))?;
    team.cluster.set_ports(PortState::Forwarding)?;
    wait_state(&mut team, ours, if ours == 0 { "active" } else { "backup" })?;
    wait_alone(&team, 0)?;
    let held = held_by(team.agent(ours)?)?;
    ensure!(held.len() == 1 && held[0].holds == (ours == 0), "{held:?}");
    Ok(())
}

#[test]
fn a_split_among_three_heals_where_ours_wins() -> Result<()> {
    heals("split0", 0, 200)
}

#[test]
fn a_split_among_three_heals_where_ours_loses() -> Result<()> {
    heals("split1", 1, 120)
}
