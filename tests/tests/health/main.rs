//! Privileged: makes network namespaces, loads programs into the kernel and mounts bpffs.
//!
//! Health checks of the real agent: a pod that does not answer gets no new connections and keeps its sessions.

mod pods;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, Service, available},
    lab::{ELEMENT, Family, Lab, Options, vip, wait_until},
    programs::{
        PATIENCE,
        echo::{self, EchoServer},
        snmp,
    },
};
use serde_json::Value;
use tonic_health::ServingStatus;

use crate::pods::{GRPC_SERVICE, GrpcServer, Server, Session};

const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
/// New connections that are looked at: with two backends all go to one by chance once in half a million times.
const CONNECTIONS: usize = 20;

/// A service before all pods of a lab, with a check.
struct Checked<'a> {
    last: u8,
    protocol: &'static str,
    ports: (u16, u16),
    replies: Option<&'static str>,
    check: &'a str,
}

impl Checked<'_> {
    const fn tcp(last: u8, pod_port: u16, check: &str) -> Checked<'_> {
        Checked { last, protocol: "TCP", ports: (VIP_PORT, pod_port), replies: None, check }
    }

    fn target(&self, family: Family) -> SocketAddr {
        SocketAddr::new(vip(self.last).of(family), self.ports.0)
    }
}

/// The configuration of an agent with these services.
fn yaml(lab: &Lab, family: Family, services: &[Checked]) -> String {
    let plain = |service: &Checked| Service {
        name: format!("service-{}", service.last),
        vip: service.target(family).ip(),
        protocol: service.protocol,
        port: service.ports.0,
        replies: service.replies,
        rung: "auto",
        backends: lab.pods.iter().map(|pod| SocketAddr::new(pod.addresses.of(family), service.ports.1)).collect(),
    };
    let mut yaml = Configuration { mode: "auto", services: services.iter().map(plain).collect() }.yaml_in(lab);
    for service in services {
        let name = format!("  - name: service-{}\n", service.last);
        yaml = yaml.replace(&name, &format!("{name}    healthCheck: {}\n", service.check));
    }
    yaml
}

fn service_of(status: &Value, last: u8) -> Option<&Value> {
    let name = format!("service-{last}");
    status["services"].as_array()?.iter().find(|service| service["name"] == name)
}

/// Waits until the backends of a service are in these states, and get connections where `takes` says so.
fn wait_states(agent: &Agent, last: u8, wanted: [&str; 2], takes: [bool; 2]) -> Result<Value> {
    agent.wait_status(&format!("the backends of service-{last} to be {wanted:?}"), |status| {
        let service = service_of(status, last)?;
        let backends = service["backends"].as_array()?;
        let is_so = backends.iter().zip(wanted.iter().zip(takes)).all(|(backend, (state, takes))| {
            let takes_now = backend["slots"].as_u64().is_some_and(|slots| slots != 0);
            backend["state"] == "ready" && backend["health"]["state"] == *state && takes_now == takes
        });
        is_so.then(|| service.clone())
    })
}

fn last_error(service: &Value, at: usize) -> &str {
    service["backends"][at]["health"]["lastError"].as_str().unwrap_or_default()
}

fn packets_of(agent: &Agent, reason: &str) -> Result<u64> {
    let status = agent.status()?;
    let reasons = status["reasons"].as_array().context("reasons")?;
    let found = reasons.iter().find(|entry| entry["name"] == reason).with_context(|| format!("no reason {reason}"))?;
    found["packets"].as_u64().context("packets")
}

/// Who answers new connections.
fn answering(lab: &Lab, target: SocketAddr) -> Result<BTreeSet<String>> {
    (0..CONNECTIONS).map(|_| Ok(Session::open(&lab.element, target)?.name)).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_pod_that_stops_listening_gets_no_new_connections_and_keeps_its_sessions() -> Result<()> {
    if !available("health") {
        return Ok(());
    }
    let mut lab = Lab::new("health-tcp", Options { pods: 2, ..Options::default() })?;
    lab.attach_router_program()?;
    let start = |at: usize| Server::named(&lab.pods[at].namespace, &lab.pods[at].name(), POD_PORT);
    let (mut one, two) = (start(0)?, start(1)?);
    let service = Checked::tcp(1, POD_PORT, "{ type: tcp, interval: 400ms, timeout: 400ms, rise: 2, fall: 2 }");
    let target = service.target(Family::V4);
    let yaml = yaml(&lab, Family::V4, &[service]);
    let agent = Agent::start_with(&lab, &yaml)?;
    wait_states(&agent, 1, ["healthy"; 2], [true; 2])?;
    let mut sessions = Vec::new();
    for _ in 0..CONNECTIONS {
        sessions.push(Session::open(&lab.element, target)?);
    }
    ensure!(sessions.iter().map(|s| s.name.clone()).collect::<BTreeSet<_>>() == names(&["pod1", "pod2"]));

    // Checks reach the endpoint beside the VIP, although all its replies are the VIP's.
    let bypasses = packets_of(&agent, "bypassed")?;
    wait_until("the reply to another check", PATIENCE, || {
        Ok((packets_of(&agent, "bypassed")? > bypasses).then_some(()))
    })?;
    let strangers: Vec<_> = one.peers().into_iter().filter(|peer| *peer != ELEMENT.of(Family::V4)).collect();
    ensure!(!strangers.is_empty(), "checks are seen by the pod");
    ensure!(!strangers.contains(&target.ip()), "and do not come from the VIP: {strangers:?}");

    drop(one);
    let failed = wait_states(&agent, 1, ["unhealthy", "healthy"], [false, true])?;
    ensure!(last_error(&failed, 0) == "connection refused", "{failed:#}");
    ensure!(failed["failsOpen"] == false && failed["healthCheck"] == "tcp every 400ms", "{failed:#}");
    ensure!(answering(&lab, target)? == names(&["pod2"]));
    for session in &mut sessions {
        session.exchange("still there?").with_context(|| format!("a session of {}", session.name))?;
    }
    let table = agent.status_table()?;
    ensure!(table.contains("unhealthy") && table.contains("health check failed for"), "{table}");

    // An agent that starts anew knows it before it has asked.
    agent.end()?;
    let agent = Agent::start_with(&lab, &yaml)?;
    let known = service_of(&agent.status()?, 1).context("the service")?.clone();
    ensure!(known["backends"][0]["health"]["state"] == "unhealthy", "{known:#}");
    ensure!(answering(&lab, target)? == names(&["pod2"]));

    one = start(0)?;
    wait_states(&agent, 1, ["healthy"; 2], [true; 2])?;
    ensure!(answering(&lab, target)? == names(&["pod1", "pod2"]));

    // Where all fail, all are used.
    drop((one, two));
    let failed = wait_states(&agent, 1, ["unhealthy"; 2], [true; 2])?;
    ensure!(failed["failsOpen"] == true, "{failed:#}");
    for session in &mut sessions {
        session.exchange("and now?").with_context(|| format!("a session of {}", session.name))?;
    }
    agent.stop()
}

#[test]
fn a_pod_that_says_it_is_not_well_is_taken_at_its_word() -> Result<()> {
    if !available("health") {
        return Ok(());
    }
    const HTTP: u8 = 2;
    const GRPC: u8 = 3;
    let mut lab = Lab::new("health-said", Options { pods: 2, ..Options::default() })?;
    lab.attach_router_program()?;
    let statuses = [200, 302].map(|status| Arc::new(AtomicU16::new(status)));
    let http = lab.pods.iter().zip(&statuses);
    let http: Result<Vec<_>> =
        http.map(|(pod, status)| Server::http(&pod.namespace, 8081, Arc::clone(status))).collect();
    let grpc: Result<Vec<_>> = lab.pods.iter().map(|pod| GrpcServer::start(&pod.namespace, 8082)).collect();
    let (http, grpc) = (http?, grpc?);
    let timing = "interval: 400ms, timeout: 400ms, rise: 1, fall: 2";
    let of_http = format!("{{ type: http, port: 8081, path: '/healthz?deep=1', host: collector.example, {timing} }}");
    let of_grpc = format!("{{ type: grpc, service: {GRPC_SERVICE}, {timing} }}");
    // A UDP service whose pods are asked by HTTP, and one of TCP that is asked itself.
    let services = [
        Checked { last: HTTP, protocol: "UDP", ports: (162, 1162), replies: Some("none"), check: &of_http },
        Checked::tcp(GRPC, 8082, &of_grpc),
    ];
    let agent = Agent::start_with(&lab, &yaml(&lab, Family::V6, &services))?;
    for last in [HTTP, GRPC] {
        wait_states(&agent, last, ["healthy"; 2], [true; 2])?;
    }
    statuses[1].store(503, Ordering::Relaxed);
    grpc[0].set(ServingStatus::NotServing)?;
    let failed = wait_states(&agent, HTTP, ["healthy", "unhealthy"], [true, false])?;
    ensure!(last_error(&failed, 1) == "HTTP status 503", "{failed:#}");
    let failed = wait_states(&agent, GRPC, ["unhealthy", "healthy"], [false, true])?;
    ensure!(last_error(&failed, 0) == "gRPC health NOT_SERVING", "{failed:#}");

    statuses[1].store(204, Ordering::Relaxed);
    grpc[0].set(ServingStatus::Serving)?;
    for last in [HTTP, GRPC] {
        wait_states(&agent, last, ["healthy"; 2], [true; 2])?;
    }
    drop(http);
    agent.stop()
}

#[test]
fn a_receiver_of_datagrams_that_ends_is_found_by_its_unreachable_port_whatever_the_replies() -> Result<()> {
    if !available("health") {
        return Ok(());
    }
    const CHECK: &str = "{ type: udp, interval: 1s, timeout: 300ms, rise: 2, fall: 2 }";
    let mut lab = Lab::new("health-udp", Options { pods: 2, ..Options::default() })?;
    lab.attach_router_program()?;
    let service = |last: u8, replies| Checked {
        last,
        protocol: "UDP",
        ports: (500 + u16::from(last), 1500 + u16::from(last)),
        replies: Some(replies),
        check: CHECK,
    };
    // Of static replies the kernel of the node sees no port unreachable: it is rewritten for a client of the VIP.
    let services = [service(1, "static"), service(2, "recorded"), service(3, "none")];
    for pod in &lab.pods {
        // All of these are told to one sender, the node: more than once a second.
        pod.namespace.sysctl(&[("net/ipv4/icmp_ratelimit", "0")])?;
    }
    let start = |pod: usize, service: &Checked| {
        let pod = &lab.pods[pod];
        EchoServer::start(&pod.namespace, &pod.name(), service.ports.1)
    };
    let run = |pod: usize| services.iter().map(|service| start(pod, service)).collect::<Result<Vec<_>>>();
    let (first, second) = (run(0)?, run(1)?);
    let agent = Agent::start_with(&lab, &yaml(&lab, Family::V4, &services))?;
    for service in &services {
        wait_states(&agent, service.last, ["healthy"; 2], [true; 2])?;
    }
    drop(first);
    for service in &services {
        let failed = wait_states(&agent, service.last, ["unhealthy", "healthy"], [false, true])?;
        let why = last_error(&failed, 0);
        ensure!(why.contains("unreachable") || why == "connection refused", "{failed:#}");
    }
    for service in &services[..2] {
        for _ in 0..CONNECTIONS {
            let answer = echo::ask(&lab.element, service.target(Family::V4).ip(), service.ports.0)?;
            ensure!(answer.server == "pod2", "{answer:?}");
        }
    }
    let first = run(0)?;
    for service in &services {
        wait_states(&agent, service.last, ["healthy"; 2], [true; 2])?;
    }
    drop((first, second));
    agent.stop()
}

/// The datagram is empty, which is no SNMP; `snmptrapd` must not mind.
#[test]
fn a_trap_receiver_is_checked_by_datagrams_and_not_disturbed() -> Result<()> {
    if !available("health") {
        return Ok(());
    }
    let mut lab = Lab::new("health-traps", Options { pods: 2, ..Options::default() })?;
    lab.attach_router_program()?;
    let directory = lab.directory().to_path_buf();
    let receivers: Result<Vec<_>> = lab.pods.iter().map(|pod| snmp::Receiver::start(pod, &directory)).collect();
    let receivers = receivers?;
    let check = "{ type: udp, interval: 1s, timeout: 200ms, fall: 1 }";
    let service = Checked { last: 4, protocol: "UDP", ports: (snmp::PORT, snmp::PORT), replies: Some("none"), check };
    let target = service.target(Family::V6);
    let agent = Agent::start_with(&lab, &yaml(&lab, Family::V6, &[service]))?;
    wait_states(&agent, 4, ["healthy"; 2], [true; 2])?;
    // Three more checks, and nothing has changed since the first.
    agent.wait_status("some checks more", |status| {
        let backends = service_of(status, 4)?["backends"].as_array()?;
        let long = |backend: &Value| backend["health"]["seconds"].as_u64() >= Some(3);
        (backends.iter().all(|b| b["health"]["state"] == "healthy") && backends.iter().all(long)).then_some(())
    })?;
    let kind = snmp::Kind::TrapV2c;
    snmp::exchange(&lab.element, target.ip(), kind, 4, &receivers, &directory, |_, _| {})?;
    for receiver in &receivers {
        ensure!(receiver.received().len() <= 4, "{}", receiver.log_tail());
    }
    drop(receivers);
    let failed = wait_states(&agent, 4, ["unhealthy"; 2], [true; 2])?;
    ensure!(failed["failsOpen"] == true, "{failed:#}");
    agent.stop()
}
