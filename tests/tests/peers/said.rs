//! What an agent says of its sessions and virtual routers.

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, available, check_nothing_left},
    lab::{Family, UPLINK},
    programs::keepalived::{Keepalived, Settings, wait_held_by},
};
use serde_json::Value;

use crate::lab::*;

const VRID: u8 = 51;
/// What the router's operator says.
const WORDS: &str = "the rack is moved";

/// A part of the status as JSON.
fn part(agent: &Agent, words: &[&str]) -> Result<Value> {
    let said = agent.ask(&[&["status"], words, &["-o", "json"]].concat())?;
    serde_json::from_str(&said).with_context(|| format!("status {words:?} is no JSON: {said}"))
}

/// Fails where one of these is missing, or nothing.
fn has(value: &Value, fields: &[&str]) -> Result<()> {
    let is_said = |field: &&&str| value.pointer(field).is_some_and(|value| !value.is_null());
    let missing: Vec<_> = fields.iter().filter(|field| !is_said(field)).collect();
    ensure!(missing.is_empty(), "{missing:?} are not said in {value:#}");
    Ok(())
}

#[test]
fn each_part_of_the_status_says_how_things_stand_and_what_the_peers_operator_said() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab("said")?;
    let bird = router(&lab, "tor", "bfd on;", "protocol bfd { interface \"*\" { interval 100 ms; multiplier 5; }; }")?;
    let held = vip(Family::V4);
    let list = [format!("{held}/32")];
    let list = [list[0].as_str()];
    let settings = Settings { version: 3, vrid: VRID, priority: 100, interval: "0.1", vips: &list };
    let keepalived = Keepalived::start(&lab.router, lab.directory(), &settings)?;
    wait_held_by(&lab.router, held, true)?;
    let group = format!("name: core, interface: {UPLINK}, vrids: {VRID}, interval: 100ms, vips: [{held}/32]");
    let announce = bgp(", bfd: fast").replacen('{', &format!("{{ vrrp: [{{ {group} }}], "), 1);
    let agent = Agent::start_with(&lab, &yaml(&lab, true, &announce))?;
    wait_held_by(&lab.router, held, false).with_context(|| keepalived.log_tail())?;
    wait_routes(&bird, 2)?;
    agent.wait_status("BFD to be up", |status| (status["announce"]["bfd"][0]["state"] == "up").then_some(()))?;

    let peers = part(&agent, &["bgp"])?;
    has(
        &peers[0],
        &["/name", "/sinceSeconds", "/address", "/localAddress", "/peerAs", "/identifier", "/holdTimeSeconds"],
    )?;
    has(&peers[0], &["/families/1", "/stage", "/sent/update", "/received/open", "/transitions", "/problems"])?;
    let peer = &peers[0];
    ensure!(peer["state"] == "established" && peer["established"] == 1 && peer["bfd"] == "up", "{peer:#}");
    ensure!(
        peer["announced"].as_object().is_some_and(|families| families.values().all(|count| *count == 1)),
        "{peer:#}"
    );
    let sessions = part(&agent, &["bfd"])?;
    let session = &sessions[0];
    has(
        session,
        &["/peer", "/sinceSeconds", "/localAddress", "/address", "/diagnostic", "/detectionTimeMicroseconds"],
    )?;
    has(session, &["/sent", "/received", "/downs", "/remote/state", "/remote/diagnostic"])?;
    let remote = &session["remote"];
    let timers = ["desiredMinTxMicroseconds", "requiredMinRxMicroseconds"].map(|field| remote[field].as_u64());
    ensure!(session["state"] == "up" && session["ups"] == 1, "{session:#}");
    ensure!(timers == [Some(100_000); 2] && remote["multiplier"] == 5, "{remote:#}");
    let routers = part(&agent, &["vrrp"])?;
    let router = &routers[0];
    has(router, &["/group", "/interface", "/sinceSeconds", "/priority", "/address", "/sent", "/received", "/missing"])?;
    ensure!(router["state"] == "active" && router["vrid"] == VRID && router["family"] == "ipv4", "{router:#}");
    ensure!(router["heard"]["priority"] == 100 && router["heard"]["address"] == "198.51.100.1", "{router:#}");
    ensure!(router["transitions"].as_object().is_some_and(|causes| !causes.is_empty()), "{router:#}");
    let shown = part(&agent, &["vip", &held.to_string()])?;
    let means = shown["means"].as_array().context("no means")?;
    let holds: Vec<_> = means.iter().map(|means| (means["means"].as_str(), means["holds"] == true)).collect();
    let expected = [(Some("VRRP core: 51 on eth0"), true), (Some("BGP tor"), true)];
    ensure!(holds == expected && shown["vip"] == held.to_string().as_str(), "{shown:#}");

    // The router's operator ends the session, and says why (RFC 9003).
    bird.control(&["disable", "node", &format!("\"{WORDS}\"")])?;
    agent.wait_status("the end of the session", |status| {
        (status["announce"]["bgp"][0]["state"] != "established").then_some(())
    })?;
    let peers = part(&agent, &["bgp"])?;
    let error = &peers[0]["lastError"];
    has(error, &["/secondsAgo", "/cause", "/detail"])?;
    ensure!(error["words"] == WORDS, "{error:#}\n{}\n{}", bird.log_tail(), agent.log_tail());
    let detail = error["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("administrative shutdown"), "{error:#}");
    let shown = part(&agent, &["vip", &held.to_string()])?;
    ensure!(shown["means"][1]["against"][0]["reason"] == "no_session", "{shown:#}");
    let table = agent.ask(&["status", "bgp"])?;
    ensure!(table.contains(WORDS), "{table}");
    bird.control(&["enable", "node"])?;
    let peer = wait_state(&agent, "established")?;
    ensure!(peer["established"] == 2 && peer["lastError"]["words"] == WORDS, "{peer:#}");
    wait_routes(&bird, 2)?;
    agent.stop()?;
    check_nothing_left(&lab)
}
