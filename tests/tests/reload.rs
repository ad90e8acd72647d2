//! Privileged: makes network namespaces, loads programs into the kernel and mounts bpffs.
//!
//! What a change of the configuration or of the uplink must leave alone while the agent runs.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, Service, available, check_nothing_left},
    lab::{Family, Lab, Options, UPLINK, vip},
    programs::conversation::{self, Conversation, Speaker},
};
use serde_json::Value;

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;

/// A TCP service before one port of pods of the lab.
fn service(lab: &Lab, last: u8, pods: &[usize], port: u16) -> Service {
    Service {
        name: format!("service-{last}"),
        vip: vip(last).v4.into(),
        protocol: "TCP",
        port: VIP_PORT,
        replies: None,
        rung: "auto",
        backends: pods.iter().map(|pod| SocketAddr::new(lab.pods[*pod].addresses.v4.into(), port)).collect(),
    }
}

fn yaml(lab: &Lab, mode: &'static str, services: Vec<Service>) -> String {
    Configuration { mode, services }.yaml_in(lab)
}

fn target(last: u8) -> SocketAddr {
    SocketAddr::new(vip(last).of(Family::V4), VIP_PORT)
}

/// Waits until a service has as many backends as wanted, all ready.
fn wait_ready(agent: &Agent, last: u8) -> Result<()> {
    let vip = vip(last).v4.to_string();
    agent.wait_status(&format!("every backend of {vip} to be ready"), |status| {
        let service = status["services"].as_array()?.iter().find(|service| service["vip"] == vip)?;
        let backends = service["backends"].as_array()?;
        backends.iter().all(|backend| backend["state"] == "ready" && backend["slots"] != 0).then_some(())
    })
}

fn mode_of_the_uplink(status: &Value) -> Option<&str> {
    status["programs"].as_array()?.iter().find(|program| program["name"] == "sluice_xdp")?["mode"].as_str()
}

#[test]
fn an_uplink_whose_mode_is_changed_stays_attached() -> Result<()> {
    if !available("reload") {
        return Ok(());
    }
    let mut lab = Lab::new("mode", Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    let of_mode = |mode| yaml(&lab, mode, vec![service(&lab, 1, &[0], POD_PORT)]);
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut agent = Agent::start_with(&lab, &of_mode("auto"))?;
    wait_ready(&agent, 1)?;
    let mut session = Conversation::open(&lab.element, target(1), &listener)?;
    for (mode, attached) in [("native", "native"), ("generic", "generic"), ("auto", "native")] {
        agent.reload(&of_mode(mode))?;
        agent
            .wait_status(&format!("the uplink in {attached} mode"), |status| {
                (status["lastError"].is_null() && mode_of_the_uplink(status) == Some(attached)).then_some(())
            })
            .with_context(|| format!("mode {mode}"))?;
        session.exchange(Speaker::Pod).with_context(|| format!("mode {mode}, the session"))?;
        Conversation::open(&lab.element, target(1), &listener).with_context(|| format!("mode {mode}"))?;
    }
    agent.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn an_uplink_that_is_gone_is_told_of_and_taken_again_when_it_is_back() -> Result<()> {
    if !available("reload") {
        return Ok(());
    }
    let mut lab = Lab::new("gone", Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let agent = Agent::start_with(&lab, &yaml(&lab, "native", vec![service(&lab, 1, &[0], POD_PORT)]))?;
    wait_ready(&agent, 1)?;
    let mut session = Conversation::open(&lab.element, target(1), &listener)?;
    lab.node.ip(&format!("link set {UPLINK} name elsewhere"))?;
    agent.wait_status("the missing uplink", |status| {
        let told = status["waiting"].as_str()?.contains(&format!("uplink {UPLINK} does not exist on this node"));
        (told && mode_of_the_uplink(status).is_none()).then_some(())
    })?;
    lab.node.ip(&format!("link set elsewhere name {UPLINK}"))?;
    agent.wait_status("the uplink that is back", |status| {
        (status["waiting"].is_null() && mode_of_the_uplink(status).is_some()).then_some(())
    })?;
    session.exchange(Speaker::Pod)?;
    agent.stop()
}

/// A configuration with more weight on the first backend of the service that stands `nth`.
fn heavy(yaml: &str, nth: usize) -> String {
    let mut parts: Vec<&str> = yaml.split("  - name: ").collect();
    let changed = parts[nth + 1].replacen("weight: 1", "weight: 10", 1);
    parts[nth + 1] = &changed;
    parts.join("  - name: ")
}

/// The table of a service never shrinks, so that there may be no room for another one of its size.
#[test]
fn a_configuration_that_does_not_fit_the_maps_leaves_sessions_alone() -> Result<()> {
    if !available("reload") {
        return Ok(());
    }
    let mut lab = Lab::new("unfit", Options { pods: 3, ..Options::default() })?;
    lab.attach_router_program()?;
    let config = |services: Vec<Service>| {
        let capacities = "capacities: {services: 8, backends: 16, maglevSlots: 8192, bypasses: 256, flows: 1024}\n";
        yaml(&lab, "native", services) + capacities
    };
    let large = |last: u8| service(&lab, last, &[0, 1], POD_PORT + u16::from(last));
    let all = |more: Vec<Service>| config([vec![large(1), large(2), large(3)], more].concat());
    let with_session = || service(&lab, 4, &[2], POD_PORT);
    // With weights of 10 and 1 each of the three in turn grows to 2,048 slots, which it keeps.
    let mut agent = Agent::start_with(&lab, &heavy(&all(vec![with_session()]), 0))?;
    for nth in 1..3 {
        wait_ready(&agent, 4)?;
        agent.reload(&heavy(&all(vec![with_session()]), nth))?;
        agent.wait_status("the table to have grown", |status| {
            (status["services"][nth]["slots"] == 2048).then_some(())
        })?;
    }
    let listener = conversation::listen(&lab.pods[2].namespace, POD_PORT)?;
    let mut session = Conversation::open(&lab.element, target(4), &listener)?;

    agent.reload(&heavy(&all(vec![large(5), large(6)]), 3))?;
    agent.wait_status("the refusal in the status", |status| {
        status["lastError"].as_str().is_some_and(|error| error.contains("no room for a Maglev table")).then_some(())
    })?;
    session.exchange(Speaker::Pod)?;
    session.exchange(Speaker::Client)?;
    agent.stop()
}

/// An identifier that was given up rests, because a program may still hold it.
#[test]
fn where_the_maps_are_full_one_takes_the_place_of_another_after_a_rest() -> Result<()> {
    if !available("reload") {
        return Ok(());
    }
    let mut lab = Lab::new("full", Options { pods: 3, ..Options::default() })?;
    lab.attach_router_program()?;
    let config = |services: Vec<Service>| {
        let capacities = "capacities: {services: 2, backends: 2, maglevSlots: 4096, bypasses: 256, flows: 1024}\n";
        yaml(&lab, "native", services) + capacities
    };
    let kept = || service(&lab, 1, &[0], POD_PORT);
    let mut agent = Agent::start_with(&lab, &config(vec![kept(), service(&lab, 2, &[1], POD_PORT)]))?;
    wait_ready(&agent, 2)?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut session = Conversation::open(&lab.element, target(1), &listener)?;

    agent.reload(&config(vec![kept(), service(&lab, 3, &[2], POD_PORT)]))?;
    agent.wait_status("the rest in the status", |status| {
        status["waiting"].as_str().is_some_and(|waiting| waiting.contains("capacities.")).then_some(())
    })?;
    session.exchange(Speaker::Pod)?;
    wait_ready(&agent, 3)?;
    let status = agent.status()?;
    ensure!(status["waiting"].is_null() && status["lastError"].is_null(), "{status:#}");
    let listener = conversation::listen(&lab.pods[2].namespace, POD_PORT)?;
    Conversation::open(&lab.element, target(3), &listener)?.exchange(Speaker::Client)?;
    session.exchange(Speaker::Client)?;
    agent.stop()
}
