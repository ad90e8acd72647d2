//! Privileged: makes network namespaces, loads programs into the kernel, mounts bpffs, and runs keepalived.
//!
//! A node that shares a segment with one that runs keepalived, whose list of VIPs is another.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use lb_tests::{
    agent::available,
    cluster::{
        Fabric, PortState,
        team::{Kind, Team},
    },
    lab::{UPLINK, vip},
};
use serde_json::Value;

const VRID: u8 = 51;
const NODES: usize = 2;
/// What keepalived competes with on the first and on the second node.
const KEEPALIVED: [u8; NODES] = [150, 100];

/// How many advertisements are heard or sent while what must not happen does not.
const ADVERTISEMENTS: u64 = 20;

/// Sluice on one of two nodes, and keepalived, which has the first VIP alone, on the other.
fn beside(name: &str, ours: usize, priority: u8, vips: u8) -> Result<Team> {
    // keepalived steps down without a word: that a router has its MAC still is mended by the refresh.
    let settings = format!("vrids: {VRID}, interval: 100ms, priority: {priority}, refresh: 1s");
    let group = format!("  vrrp: [{{ name: core, interface: {UPLINK}, {settings} }}]\n");
    let mut kinds = vec![Kind::Keepalived { interval: "0.1", vrid: VRID }; NODES];
    kinds[ours] = Kind::Sluice { announces: vec![group; NODES] };
    let vips: Vec<IpAddr> = (1..=vips).map(|last| vip(last).v4.into()).collect();
    Team::start(name, Fabric::Segment, NODES, &vips, Kind::Mixed(kinds))
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
    team.agent(0)?.ask(&["drain"])?;
    let router = wait_router(&mut team, 0, "the virtual router to have left", |router| {
        (router["state"] == "init").then(|| router.clone())
    })?;
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
