//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! The real programs, each first straight to the pods, which proves the scenario, then through the agent's VIPs.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, available},
    lab::{ELEMENT, Family, Lab, Options, PodLink, privileged, vip},
    programs::{
        bird::{self, Bird},
        bulk::{self, BulkServer},
        echo::{self, EchoServer},
        snmp::{self, Kind},
        telemetry::{self, Collector},
    },
    scenario::{self, MainJob, check_source, session_vip, trap_vip},
};

const BULK_PORT: u16 = 9000;
const BULK_BYTES: u64 = 16 << 20;
const ECHO_PORT: u16 = 7777;
const NOTIFICATIONS: u64 = 20;

/// Messages of one kind: enough that missing one of two pods by chance has odds of 2^-15.
const SNMP_MESSAGES: usize = 16;

#[test]
fn traps_and_informs_arrive_with_their_senders_address() -> Result<()> {
    if !privileged("programs") {
        return Ok(());
    }
    let lab = Lab::new("snmp", Options::default())?;
    let receivers = vec![snmp::Receiver::start(&lab.pods[0], lab.directory())?];
    for family in Family::BOTH {
        for kind in [Kind::TrapV2c, Kind::InformV3] {
            let owners = receive_messages(&lab, lab.pods[0].addresses.of(family), family, kind, &receivers)?;
            ensure!(owners == BTreeSet::from([0]), "{kind:?} arrived at {owners:?}");
        }
    }
    Ok(())
}

/// Sends messages and checks each source; gives the receivers that got any.
fn receive_messages(
    lab: &Lab,
    target: std::net::IpAddr,
    family: Family,
    kind: Kind,
    receivers: &[snmp::Receiver],
) -> Result<BTreeSet<usize>> {
    let mut sources = BTreeSet::new();
    let owners =
        snmp::exchange(&lab.element, target, kind, SNMP_MESSAGES, receivers, lab.directory(), |_, received| {
            sources.insert(received.source.ip());
        })?;
    ensure!(sources == BTreeSet::from([ELEMENT.of(family)]), "{kind:?}: the pods saw {sources:?}");
    Ok(owners.into_iter().collect())
}

#[test]
fn a_bgp_session_carries_its_routes() -> Result<()> {
    if !privileged("programs") {
        return Ok(());
    }
    let lab = Lab::new("bgp", Options { pods: 1, ..Options::default() })?;
    for family in Family::BOTH {
        let collector = Bird::collector(&lab.pods[0], family, lab.directory())?;
        let _element = Bird::element(&lab.element, lab.pods[0].addresses.of(family), lab.directory())?;
        let session = collector.wait_session()?;
        ensure!(session.neighbor == ELEMENT.of(family), "the pod saw {}", session.neighbor);
        ensure!(session.routes == bird::announced(family), "the pod learned {:?}", session.routes);
    }
    Ok(())
}

#[test]
fn a_telemetry_stream_arrives_whole() -> Result<()> {
    if !privileged("programs") {
        return Ok(());
    }
    let lab = Lab::new("grpc", Options { pods: 1, ..Options::default() })?;
    let collector = Collector::start(&lab.pods[0].namespace)?;
    for family in Family::BOTH {
        let name = format!("element-{family:?}");
        telemetry::publish(&lab.element, lab.pods[0].addresses.of(family), &name, NOTIFICATIONS)?;
        let received: Vec<_> =
            collector.received().into_iter().filter(|message| message.notification.element == name).collect();
        ensure!(received.len() as u64 == NOTIFICATIONS, "{} notifications arrived", received.len());
        ensure!(received.iter().all(|message| message.source.ip() == ELEMENT.of(family)), "wrong source: {received:?}");
    }
    Ok(())
}

#[test]
fn bulk_tcp_arrives_undamaged_both_ways() -> Result<()> {
    if !privileged("programs") {
        return Ok(());
    }
    for pod_link in [PodLink::Routed, PodLink::Bridge] {
        let lab = Lab::new("bulk", Options { pods: 1, pod_link, ..Options::default() })?;
        let server = BulkServer::start(&lab.pods[0].namespace, BULK_PORT, BULK_BYTES)?;
        for family in Family::BOTH {
            let target = lab.pods[0].addresses.of(family);
            bulk::transfer(&lab.element, target, BULK_PORT, BULK_BYTES, &server)?.check(BULK_BYTES)?;
        }
    }
    Ok(())
}

#[test]
fn an_echo_comes_from_where_it_was_asked() -> Result<()> {
    if !privileged("programs") {
        return Ok(());
    }
    let lab = Lab::new("echo", Options { pods: 1, ..Options::default() })?;
    let _server = EchoServer::start(&lab.pods[0].namespace, "pod1", ECHO_PORT)?;
    for family in Family::BOTH {
        let answer = echo::ask(&lab.element, lab.pods[0].addresses.of(family), ECHO_PORT)?;
        ensure!(answer.server == "pod1" && answer.seen == answer.sent_from, "{answer:?}");
    }
    Ok(())
}

#[test]
fn the_main_job_works_through_vips() -> Result<()> {
    if !available("programs") {
        return Ok(());
    }
    for pod_link in [PodLink::Routed, PodLink::Bridge] {
        let mut lab = Lab::new("job", Options { pods: scenario::PODS, pod_link, ..Options::default() })?;
        let job = MainJob::start(&lab)?;
        let configuration = Configuration { mode: "native", services: scenario::services(&lab, "auto") };
        let agent = Agent::start(&mut lab, &configuration)?;
        for family in Family::BOTH {
            main_job(&lab, &job, family)
                .with_context(|| format!("{pod_link:?} pods over {family:?}"))
                .with_context(|| agent.log_tail())?;
        }
        agent.stop()?;
    }
    Ok(())
}

fn main_job(lab: &Lab, job: &MainJob, family: Family) -> Result<()> {
    for kind in [Kind::TrapV2c, Kind::InformV3] {
        let owners = receive_messages(lab, trap_vip(family), family, kind, &job.receivers)?;
        ensure!(owners.len() == job.receivers.len(), "{kind:?} arrived at receivers {owners:?} only");
    }
    let element = Bird::element(&lab.element, session_vip(family), lab.directory())?;
    let session = job.speaker(family).wait_session().with_context(|| element.log_tail())?;
    check_source("BGP", session.neighbor, family)?;
    let name = format!("element-{family:?}");
    telemetry::publish(&lab.element, session_vip(family), &name, NOTIFICATIONS)?;
    let received = job.collector.received();
    let stream: Vec<_> = received.iter().filter(|message| message.notification.element == name).collect();
    ensure!(stream.len() as u64 == NOTIFICATIONS, "{} of {NOTIFICATIONS} notifications arrived", stream.len());
    stream.iter().try_for_each(|message| check_source("telemetry", message.source.ip(), family))
}

#[test]
fn bulk_tcp_through_a_vip_is_undamaged_in_native_mode() -> Result<()> {
    bulk_in_every_rung("native")
}

/// Generic mode drops segments that were merged before XDP; the agent turns GRO and LRO off at the uplink.
#[test]
fn bulk_tcp_through_a_vip_is_undamaged_in_generic_mode() -> Result<()> {
    bulk_in_every_rung("generic")
}

fn bulk_in_every_rung(mode: &'static str) -> Result<()> {
    if !available("programs") {
        return Ok(());
    }
    // With offload a pod's packets carry the pseudo header's share of a checksum, without it the whole.
    for (rung, checksum_offload) in
        ["redirect", "peer", "stack"].into_iter().flat_map(|rung| [(rung, false), (rung, true)])
    {
        let mut lab = Lab::new("rungs", Options { pods: 1, checksum_offload, ..Options::default() })?;
        let bulk = BulkServer::start(&lab.pods[0].namespace, BULK_PORT, BULK_BYTES)?;
        let _echo = EchoServer::start(&lab.pods[0].namespace, "pod1", ECHO_PORT)?;
        let mut services = Vec::new();
        for family in Family::BOTH {
            let mut add = |name: &str, protocol, port| {
                let name = format!("{name}-{family:?}").to_lowercase();
                services.push(scenario::service(&name, vip(1).of(family), protocol, port, rung, &lab.pods, family));
            };
            add("bulk", "TCP", BULK_PORT);
            add("echo", "UDP", ECHO_PORT);
        }
        let agent = Agent::start(&mut lab, &Configuration { mode, services })?;
        for family in Family::BOTH {
            let target = vip(1).of(family);
            let outcome = bulk::transfer(&lab.element, target, BULK_PORT, BULK_BYTES, &bulk)
                .and_then(|transfer| transfer.check(BULK_BYTES))
                .and_then(|()| echo::ask(&lab.element, target, ECHO_PORT))
                .and_then(|echo| check_source("echo", echo.seen.ip(), family));
            outcome
                .with_context(|| format!("rung {rung}, {mode} mode, offload {checksum_offload}, {family:?}"))
                .with_context(|| agent.log_tail())?;
        }
        agent.stop()?;
    }
    Ok(())
}
