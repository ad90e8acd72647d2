//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! How an agent is watched: ready only when packets flow, counters that grow with traffic, a status for root alone, and what
//! the pinned maps say when the agent is dead.

use std::{
    io::{Read as _, Write as _},
    mem::offset_of,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Output,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::{abi::ABI_VERSION, agent::About};
use lb_tests::{
    agent::{Agent, BINARY, Configuration, Service, available},
    lab::{Family, Lab, Options, UPLINK, vip, wait_until},
    programs::conversation::{self, Conversation, Speaker},
};
use lb_userspace::{
    model::OBSERVATION_PORT_DEFAULT,
    status::{self, FetchError},
};
use serde_json::Value;

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;
/// Far longer than an agent takes to start, and to see a change.
const LIMIT: Duration = Duration::from_secs(60);
/// A user who is not root; nobody, as a rule.
const OTHER_USER: u32 = 65_534;
const LABELS: &str = r#"{service="web",vip="10.96.0.1",protocol="TCP",port="80""#;

fn target() -> SocketAddr {
    SocketAddr::new(vip(1).of(Family::V4), VIP_PORT)
}

fn yaml(lab: &Lab) -> String {
    let service = Service {
        name: "web".into(),
        vip: target().ip(),
        protocol: "TCP",
        port: VIP_PORT,
        replies: None,
        rung: "redirect",
        backends: vec![SocketAddr::new(lab.pods[0].addresses.v4.into(), POD_PORT)],
    };
    Configuration { mode: "native", services: vec![service] }.yaml_in(lab)
}

/// Status and body of a page of the node's agent; none while nobody listens.
fn get(lab: &Lab, path: &str) -> Result<Option<(u16, String)>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, OBSERVATION_PORT_DEFAULT));
    let Ok(mut stream) = lab.node.run(|| TcpStream::connect(address)) else { return Ok(None) };
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    let status = head.split(' ').nth(1).context("a head has a status")?.parse()?;
    Ok(Some((status, body.to_owned())))
}

fn metrics(lab: &Lab) -> Result<String> {
    let (status, text) = get(lab, "/metrics")?.context("nobody listens")?;
    ensure!(status == 200 && text.ends_with("# EOF\n"), "{status}\n{text}");
    Ok(text)
}

/// The value of one series.
fn value(text: &str, series: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.with_context(|| format!("no series {series} in\n{text}"))?.parse().context("not a whole number")
}

/// Packets to the service, to its backend, to all, and back.
fn counters(text: &str, lab: &Lab) -> Result<[u64; 4]> {
    let backend = format!("{LABELS},backend=\"{}:{POD_PORT}\"}}", lab.pods[0].addresses.v4);
    Ok([
        value(text, &format!("sluice_service_packets_total{LABELS}}}"))?,
        value(text, &format!("sluice_backend_packets_total{backend}"))?,
        value(text, "sluice_reason_packets_total{reason=\"forwarded\"}")?,
        value(text, &format!("sluice_backend_reply_packets_total{backend}"))?,
    ])
}

/// `sluice status` with these arguments, in the node.
fn status_command(lab: &Lab, configuration: &Path, output: &str) -> Result<Output> {
    let mut command = lab.node.command(std::env::var_os(BINARY).context("no binary")?);
    command.args(["status", "-o", output, "--config"]).arg(configuration);
    command.output().context("sluice status")
}

#[test]
fn an_agent_is_ready_when_packets_flow_and_its_counters_grow_with_them() -> Result<()> {
    if !available("observe") {
        return Ok(());
    }
    let mut lab = Lab::new("observe", Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let agent = Agent::start_unready(&lab, &yaml(&lab))?;
    wait_until("the agent to be ready", LIMIT, || Ok(get(&lab, "/readyz")?.filter(|(status, _)| *status == 200)))?;
    // At once: an agent that said so too early refuses or loses this.
    let mut session = Conversation::open(&lab.element, target(), &listener)?;
    ensure!(get(&lab, "/healthz")?.is_some_and(|(status, _)| status == 200));

    let first = metrics(&lab)?;
    ensure!(value(&first, &format!("sluice_uplink_xdp_mode{{interface=\"{UPLINK}\",mode=\"native\"}}"))? == 1);
    ensure!(value(&first, "sluice_self_tests_total{rung=\"redirect\",result=\"passed\"}")? == 1);
    ensure!(value(&first, "sluice_programming_duration_seconds_count{cause=\"configuration\"}")? == 1);
    ensure!(value(&first, "sluice_map_writes_total{result=\"done\"}")? > 0);
    let before = counters(&first, &lab)?;
    for _ in 0..5 {
        session.exchange(Speaker::Pod)?;
    }
    wait_until("every counter to grow", LIMIT, || {
        let now = counters(&metrics(&lab)?, &lab)?;
        Ok(now.iter().zip(before).all(|(now, before)| *now >= before + 5).then_some(()))
    })?;
    uplink_away(&lab)?;
    session.exchange(Speaker::Client)?;
    agent.stop()
}

/// An uplink that is gone makes the agent unready, not unhealthy.
fn uplink_away(lab: &Lab) -> Result<()> {
    lab.node.ip(&format!("link set {UPLINK} name elsewhere"))?;
    let unready = |told: &(u16, String)| told.0 == 503 && told.1.contains(UPLINK);
    wait_until("the agent to be unready", LIMIT, || Ok(get(lab, "/readyz")?.filter(unready)))?;
    ensure!(get(lab, "/healthz")?.is_some_and(|(status, _)| status == 200), "healthy all the same");
    wait_until("the metrics to say so", LIMIT, || {
        let text = metrics(lab)?;
        let none = value(&text, &format!("sluice_uplink_xdp_mode{{interface=\"{UPLINK}\",mode=\"none\"}}"))?;
        Ok((none == 1 && value(&text, "sluice_waiting")? == 1).then_some(()))
    })?;
    lab.node.ip(&format!("link set elsewhere name {UPLINK}"))?;
    wait_until("the agent to be ready again", LIMIT, || Ok(get(lab, "/readyz")?.filter(|(status, _)| *status == 200)))
        .map(drop)
}

#[test]
fn a_status_is_for_root_and_after_a_crash_the_maps_tell_it() -> Result<()> {
    if !available("observe") {
        return Ok(());
    }
    let mut lab = Lab::new("crashed", Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let agent = Agent::start_with(&lab, &yaml(&lab))?;
    agent.wait_status("the backend to be ready", |status| {
        (status["services"][0]["backends"][0]["state"] == "ready").then_some(())
    })?;
    let mut session = Conversation::open(&lab.element, target(), &listener)?;
    check_refused_to_others(&lab.directory().join("run").join(status::SOCKET_NAME))?;
    let configuration = agent.configuration();
    let alive = status_command(&lab, &configuration, "yaml")?;
    let text = String::from_utf8(alive.stdout)?;
    ensure!(alive.status.success() && text.starts_with("source: agent\n"), "{text}");
    let maps = agent.pins().join("maps");
    agent.kill()?;
    check_told_by_maps(&lab, &configuration, &mut session, &listener)?;
    check_foreign_abi(&lab, &configuration, &maps)
}

/// Nobody but root may connect, whatever the directories above allow.
fn check_refused_to_others(socket: &Path) -> Result<()> {
    let mode = std::fs::metadata(socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "mode {mode:o}");
    let asked = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            // SAFETY: no preconditions; it changes this thread alone, and takes from it what lets root open everything.
            unsafe { libc::setfsuid(OTHER_USER) };
            status::fetch(socket)
        });
        other.join().expect("the thread does not panic")
    });
    ensure!(matches!(asked, Err(FetchError::Permission { .. })), "{asked:?}");
    status::fetch(socket).context("root is let in")?;
    Ok(())
}

/// Only the dead agent's maps are left, and traffic goes on.
fn check_told_by_maps(
    lab: &Lab,
    configuration: &Path,
    session: &mut Conversation,
    listener: &TcpListener,
) -> Result<()> {
    let left = || -> Result<Value> {
        let told = status_command(lab, configuration, "json")?;
        let complaint = String::from_utf8_lossy(&told.stderr).into_owned();
        ensure!(told.status.code() == Some(1), "{:?}: {complaint}", told.status);
        ensure!(complaint.contains("no agent is running"), "{complaint}");
        serde_json::from_slice(&told.stdout).with_context(|| complaint)
    };
    let first = left()?;
    ensure!(first["source"] == "maps", "{first:#}");
    let service = &first["services"][0];
    ensure!(service["vip"] == "10.96.0.1" && service["port"] == VIP_PORT && service["name"].is_null(), "{service:#}");
    let backend = &service["backends"][0];
    let address = lab.pods[0].addresses.v4.to_string();
    ensure!(backend["address"] == *address && backend["rung"] == "redirect", "{backend:#}");
    ensure!(backend["slots"] == service["slots"] && service["slots"] != 0, "one backend has every slot: {service:#}");
    let programs = first["programs"].as_array().context("programs")?;
    let uplink = programs.iter().find(|program| program["name"] == "sluice_xdp").context("no sluice_xdp")?;
    ensure!(uplink["interface"] == UPLINK && uplink["mode"] == "native", "{uplink:#}");

    session.exchange(Speaker::Pod)?;
    Conversation::open(&lab.element, target(), listener)?.exchange(Speaker::Client)?;
    let second = left()?;
    let packets = |status: &Value| {
        let reasons = status["reasons"].as_array().context("reasons")?;
        let forwarded = reasons.iter().find(|reason| reason["name"] == "forwarded").context("no forwarded")?;
        let of = |value: &Value| value["packets"].as_u64().context("a number");
        anyhow::Ok([of(&status["services"][0])?, of(&status["services"][0]["backends"][0])?, of(forwarded)?])
    };
    let (before, after) = (packets(&first)?, packets(&second)?);
    ensure!(before.iter().zip(after).all(|(before, after)| *before > 0 && after >= before + 4), "{before:?} {after:?}");
    let table = status_command(lab, configuration, "table")?;
    let table = String::from_utf8(table.stdout)?;
    ensure!(table.contains("no agent") && table.contains("TCP 10.96.0.1:80"), "{table}");
    Ok(())
}

/// Maps of another layout are not read.
fn check_foreign_abi(lab: &Lab, configuration: &Path, maps: &Path) -> Result<()> {
    let mut about: Array<MapData, [u8; size_of::<About>()]> =
        Map::from_map_data(MapData::from_pin(maps.join("about"))?)?.try_into()?;
    let mut bytes = about.get(&0, 0)?;
    let version = &mut bytes[offset_of!(About, abi_version)..][..4];
    ensure!(version == ABI_VERSION.to_ne_bytes());
    version.copy_from_slice(&77u32.to_ne_bytes());
    about.set(0, bytes, 0)?;
    let told = status_command(lab, configuration, "json")?;
    let complaint = String::from_utf8_lossy(&told.stderr).into_owned();
    ensure!(told.status.code() == Some(1) && told.stdout.is_empty(), "{:?}", told.status);
    let refused = format!("are of ABI 77, and this `sluice` reads ABI {ABI_VERSION}");
    ensure!(complaint.contains(&refused), "{complaint}");
    Ok(())
}
