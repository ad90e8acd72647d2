//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! The real programs, each first straight to the pods, which proves the scenario, then through the agent's VIPs.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lb_tests::{
    lab::{ELEMENT, Family, Lab, Options, PodLink, privileged},
    programs::{
        bird::{self, Bird},
        bulk::{self, BulkServer},
        echo::{self, EchoServer},
        snmp::{self, Kind},
        telemetry::{self, Collector},
    },
};

const BULK_PORT: u16 = 9000;
const BULK_BYTES: u64 = 16 << 20;
const ECHO_PORT: u16 = 7777;

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
        telemetry::publish(&lab.element, lab.pods[0].addresses.of(family), &name, 20)?;
        let received: Vec<_> =
            collector.received().into_iter().filter(|message| message.notification.element == name).collect();
        ensure!(received.len() == 20, "{} notifications arrived", received.len());
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
