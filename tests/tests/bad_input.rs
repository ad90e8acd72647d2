//! Privileged: makes network namespaces, loads programs into the kernel and mounts bpffs.
//!
//! What an agent must not take: refused with the place and the remedy, with nothing left behind, or, while it runs,
//! with the running state kept. And how it ends.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use lb_tests::{
    agent::{Agent, Configuration, Service, available, check_nothing_left},
    lab::{Family, Lab, Options, UPLINK, attach_pass, vip, wait_until},
    programs::{
        PATIENCE,
        conversation::{self, Conversation, Speaker},
    },
};

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;
/// Full with the services of [`base`]; small, so that maps are compared quickly.
const CAPACITIES: &str = "capacities: {services: 2, backends: 3, maglevSlots: 4096, bypasses: 256, flows: 1024}\n";
/// Stands before what is refused; not part of the file.
const MARK: char = '▶';

/// A configuration that is right: two services, three backends in two pods.
fn base(lab: &Lab) -> String {
    let service = |name: &str, last, backends: &[(usize, u16)]| Service {
        name: name.to_owned(),
        vip: vip(last).v4.into(),
        protocol: "TCP",
        port: VIP_PORT,
        replies: None,
        rung: "auto",
        backends: backends
            .iter()
            .map(|(pod, port)| SocketAddr::new(lab.pods[*pod].addresses.v4.into(), *port))
            .collect(),
    };
    let services = vec![service("web", 1, &[(0, POD_PORT), (1, POD_PORT)]), service("second", 2, &[(0, POD_PORT + 1)])];
    Configuration { mode: "native", services }.yaml_in(lab) + CAPACITIES
}

/// A change that makes the configuration bad.
struct Bad {
    name: &'static str,
    /// Each is replaced once; one replacement has the mark.
    changes: &'static [(&'static str, &'static str)],
    message: &'static str,
}

const BAD: &[Bad] = &[
    Bad {
        name: "unknown key",
        changes: &[("    rung: auto", "    ▶rnug: auto")],
        message: "unknown key `rnug`; did you mean `rung`?",
    },
    Bad {
        name: "wrong type",
        changes: &[("ports: [80]", "ports: ▶web")],
        message: "wrong type: a list must stand here",
    },
    Bad {
        name: "VIP of the node",
        changes: &[("vip: \"10.96.0.1\"", "vip: ▶\"198.51.100.10\"")],
        message: "VIP 198.51.100.10 is the address of this node, see line 2",
    },
    Bad {
        name: "VIP of a pod",
        changes: &[("vip: \"10.96.0.1\"", "vip: ▶\"10.244.0.11\"")],
        message: "VIP 10.244.0.11 is the address of a backend",
    },
    Bad {
        name: "VIP and port twice",
        changes: &[(
            "vip: \"10.96.0.2\"\n    protocol: TCP\n    ports: [",
            "vip: \"10.96.0.1\"\n    protocol: TCP\n    ports: [▶",
        )],
        message: "VIP 10.96.0.1 TCP port 80 is already the service `web`",
    },
    Bad {
        name: "backend of another family",
        changes: &[("address: \"10.244.0.12\"", "address: ▶\"fd00:244::c\"")],
        message: "backend fd00:244::c is IPv6 and the VIP 10.96.0.1 is IPv4",
    },
    Bad {
        name: "all weights 0",
        changes: &[(
            "- {address: \"10.244.0.11\", port: 8081, weight: 1}",
            "▶- {address: \"10.244.0.11\", port: 8081, weight: 0}",
        )],
        message: "the weights of all backends are 0",
    },
    Bad {
        name: "too many services",
        changes: &[("ports: [80]", "ports: [80, 81]"), ("{services: 2", "{services: ▶2")],
        message: "3 services do not fit the capacity of 2; set capacities.services to at least 3",
    },
    Bad {
        name: "too many backends",
        changes: &[
            ("port: 8081, weight: 1}", "port: 8081}\n      - {address: \"10.244.0.12\", port: 8081}"),
            ("backends: 3", "backends: ▶3"),
        ],
        message: "4 backends do not fit the capacity of 3; set capacities.backends to at least 4",
    },
];

impl Bad {
    /// The file, and the refusal of it: `LINE:COLUMN: MESSAGE`.
    fn apply(&self, base: &str) -> Result<(String, String)> {
        let mut text = base.to_owned();
        for (from, to) in self.changes {
            ensure!(text.contains(from), "{}: no {from:?} in\n{text}", self.name);
            text = text.replacen(from, to, 1);
        }
        let mark = text.find(MARK).with_context(|| format!("{}: no mark", self.name))?;
        let line = 1 + text[..mark].matches('\n').count();
        let column = 1 + text[..mark].chars().rev().take_while(|c| *c != '\n').count();
        Ok((text.replacen(MARK, "", 1), format!("sluice.yaml:{line}:{column}: {}", self.message)))
    }
}

fn lab(name: &str, pods: u8) -> Result<Lab> {
    let mut lab = Lab::new(name, Options { pods, ..Options::default() })?;
    lab.attach_router_program()?;
    Ok(lab)
}

/// The agent refuses, and says this.
fn check_refused(lab: &Lab, yaml: &str, change: impl FnOnce(Command) -> Command, wanted: &[&str]) -> Result<()> {
    let said = Agent::refusal(lab, yaml, change)?;
    for part in wanted {
        ensure!(said.contains(part), "the agent does not say {part:?}:\n{said}");
    }
    Ok(())
}

/// Puts a program before the agent that executes it.
fn behind(lab: &Lab, arguments: &[&str], agent: &Command) -> Command {
    let mut command = lab.node.command(arguments[0]);
    command.args(&arguments[1..]).arg(agent.get_program()).args(agent.get_args());
    command
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status().context(program.to_owned())?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

fn vip_target() -> SocketAddr {
    SocketAddr::new(vip(2).of(Family::V4), VIP_PORT)
}

/// One connection through the VIP with a single backend.
fn open(lab: &Lab, listener: &TcpListener) -> Result<Conversation> {
    let mut conversation = Conversation::open(&lab.element, vip_target(), listener)?;
    conversation.exchange(Speaker::Client)?;
    Ok(conversation)
}

fn wait_ready(agent: &Agent) -> Result<()> {
    agent.wait_status("every backend to be ready", |status| {
        let mut services = status["services"].as_array()?.iter();
        let all = |service: &serde_json::Value| {
            service["backends"].as_array().is_some_and(|all| all.iter().all(|backend| backend["state"] == "ready"))
        };
        services.all(all).then_some(())
    })
}

#[test]
fn a_bad_configuration_is_refused_at_the_start_with_its_place() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("refused", 2)?;
    let base = base(&lab);
    for bad in BAD {
        let (text, refusal) = bad.apply(&base)?;
        check_refused(&lab, &text, |agent| agent, &[&refusal]).context(bad.name)?;
        check_nothing_left(&lab).context(bad.name)?;
    }
    Ok(())
}

/// What the maps say of services, as bpftool prints it.
fn installed(agent: &Agent) -> Result<String> {
    let mut text = String::new();
    for map in ["services", "vips", "backend_vips", "maglev", "backends", "endpoints"] {
        let pin = agent.pins().join("maps").join(map);
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(&pin).output()?;
        ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stdout));
        text += &format!("{map}: {}\n", String::from_utf8_lossy(&output.stdout));
    }
    Ok(text)
}

#[test]
fn a_bad_configuration_is_refused_as_a_whole_while_the_agent_runs() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("reload", 2)?;
    let base = base(&lab);
    let mut agent = Agent::start_with(&lab, &base)?;
    wait_ready(&agent)?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT + 1)?;
    let mut session = open(&lab, &listener)?;
    let before = installed(&agent)?;
    let mut rows = Vec::new();
    for bad in BAD {
        let (text, refusal) = bad.apply(&base)?;
        rows.push((bad.name, text, refusal));
    }
    // What only the node knows, and is found out after the maps could have been touched.
    let elsewhere = base.replacen("interface: eth0", "interface: eth9", 1).replacen("10.96.0.2", "10.96.0.3", 1);
    rows.push(("no such interface", elsewhere, "uplink eth9 does not exist on this node; there are: ".to_owned()));
    for (name, text, refusal) in rows {
        let mut row = || -> Result<()> {
            agent.reload(&text)?;
            agent.wait_status("the refusal in the status", |status| {
                status["lastError"].as_str().is_some_and(|error| error.contains(&refusal)).then_some(())
            })?;
            session.exchange(Speaker::Pod)?;
            open(&lab, &listener)?;
            ensure!(installed(&agent)? == before, "the maps have changed");
            Ok(())
        };
        row().context(name)?;
    }
    agent.reload(&base)?;
    agent.wait_status("no error any more", |status| status["lastError"].is_null().then_some(()))?;
    session.exchange(Speaker::Client)?;
    // And a right one is taken, which shows that the agent was listening.
    agent.reload(&base.replacen("weight: 1}", "drain: true}", 1))?;
    agent.wait_status("the draining backend", |status| {
        (status["services"][0]["backends"][0]["drain"] == true).then_some(())
    })?;
    session.exchange(Speaker::Client)?;
    agent.stop()
}

#[test]
fn an_interface_that_cannot_be_had_is_refused_with_the_reason() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("interface", 2)?;
    let base = base(&lab);
    let missing = base.replacen("interface: eth0", "interface: eth9", 1);
    check_refused(&lab, &missing, |agent| agent, &["uplink eth9 does not exist on this node; there are: ", UPLINK])?;
    check_nothing_left(&lab)?;

    let other = attach_pass(&lab.node, UPLINK)?;
    let program: &Xdp = other.program("pass").context("no program")?.try_into()?;
    let id = program.info()?.id();
    let whose = format!("eth0 has XDP program pass (id {id}) already; detach it first");
    for mode in ["native", "generic", "auto"] {
        let yaml = base.replacen("mode: native", &format!("mode: {mode}"), 1);
        check_refused(&lab, &yaml, |agent| agent, &[&whose]).with_context(|| format!("mode {mode}"))?;
    }
    drop(other);
    check_nothing_left(&lab)?;
    Agent::start_with(&lab, &base)?.stop()
}

#[test]
fn missing_privileges_are_named() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("capabilities", 2)?;
    let base = base(&lab);
    let all = ["CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"];
    let drops =
        [("-net_broadcast", 0..1), ("-net_admin", 1..2), ("-sys_admin", 2..3), ("-perfmon,-bpf", 3..5), ("-all", 0..5)];
    for (dropped, missing) in drops {
        let missing = &all[missing];
        let change = |agent: Command| behind(&lab, &["setpriv", "--bounding-set", dropped], &agent);
        let said = Agent::refusal(&lab, &base, change)?;
        ensure!(said.contains("not allowed to run: missing "), "{dropped}: {said}");
        for capability in all {
            ensure!(said.contains(capability) == missing.contains(&capability), "{dropped}: {said}");
        }
        check_nothing_left(&lab)?;
    }
    let enough = "-all,+net_broadcast,+net_admin,+sys_admin,+perfmon,+bpf";
    let agent = Agent::start_as(&lab, &base, |agent| behind(&lab, &["setpriv", "--bounding-set", enough], &agent))?;
    wait_ready(&agent)?;
    agent.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn a_second_agent_is_refused_and_told_of_the_first() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("second", 2)?;
    let base = base(&lab);
    let agent = Agent::start_with(&lab, &base)?;
    wait_ready(&agent)?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT + 1)?;
    let mut session = open(&lab, &listener)?;
    let whose = format!("another agent runs on this node (process {}, lock ", agent.id());
    check_refused(&lab, &base, |agent| agent, &[&whose, "stop it first"])?;
    session.exchange(Speaker::Pod)?;
    open(&lab, &listener)?;
    agent.stop()
}

#[test]
fn pins_that_are_anothers_are_left_alone() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("pins", 2)?;
    let base = base(&lab);
    // A run directory of its own is no way around the first agent.
    let agent = Agent::start_with(&lab, &base)?;
    wait_ready(&agent)?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT + 1)?;
    let mut session = open(&lab, &listener)?;
    let beside = base.replacen("/run\n", "/run2\n", 1);
    ensure!(beside != base, "no run directory in\n{base}");
    check_refused(&lab, &beside, |agent| agent, &["another agent uses it", "or set another pinDirectory"])?;
    session.exchange(Speaker::Pod)?;
    open(&lab, &listener)?;
    agent.stop()?;

    let maps = lab.bpffs().join("other").join("maps");
    let map = maps.join("connections").display().to_string();
    fs::create_dir_all(&maps)?;
    let sizes = ["type", "hash", "key", "4", "value", "4", "entries", "4", "name", "connections"];
    run("bpftool", &[&["map", "create", &map], sizes.as_slice()].concat())?;
    let elsewhere = base.replacen("/bpf/sluice", "/bpf/other", 1);
    let wanted = ["`maps` is there, and not an agent's", "set pinDirectory to a directory of its own"];
    check_refused(&lab, &elsewhere, |agent| agent, &wanted)?;
    run("bpftool", &["map", "show", "pinned", &map])?;

    let files = lab.directory().join("files");
    fs::create_dir_all(&files)?;
    fs::write(files.join("file"), "precious")?;
    let own = lab.bpffs().join("sluice").display().to_string();
    let covering = base.replacen(&own, &files.display().to_string(), 1);
    check_refused(&lab, &covering, |agent| agent, &["it holds files, which a mount would hide"])?;
    check_nothing_left(&lab)
}

#[test]
fn an_agent_outlives_a_log_that_is_full() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("log", 2)?;
    let script = ["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"];
    let agent = Agent::start_as(&lab, &base(&lab), |agent| behind(&lab, &script, &agent))?;
    wait_ready(&agent)?;
    agent.stop()
}

/// Both in a mount namespace of the agent's own: the one of this machine stays as it is.
#[test]
fn a_bpffs_that_is_not_mounted_is_mounted() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("mount", 2)?;
    let base = base(&lab);
    let own = lab.bpffs().join("sluice").display().to_string();
    let usual = "/sys/fs/bpf/sluice-lab";
    for (pins, unmounted, mounted) in [
        (own.as_str(), lab.bpffs().display().to_string(), own.as_str()),
        (usual, "/sys/fs/bpf".to_owned(), "/sys/fs/bpf"),
    ] {
        let yaml = base.replacen(&own, pins, 1);
        let script = format!("umount --quiet {unmounted} || true; exec \"$@\"");
        let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
        let agent = Agent::start_as(&lab, &yaml, |agent| behind(&lab, &wrapper, &agent))?;
        wait_ready(&agent)?;
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", agent.id()))?;
        let there = mounts.lines().any(|line| {
            let mut words = line.split(' ').skip(1);
            words.next() == Some(mounted) && words.next() == Some("bpf")
        });
        ensure!(there, "no bpffs at {mounted}:\n{mounts}");
        let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT + 1)?;
        open(&lab, &listener)?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_bpffs_that_is_read_only_is_refused_with_advice() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("readonly", 2)?;
    let bpffs = lab.bpffs().display().to_string();
    run("mount", &["-o", "remount,bind,ro", &bpffs])?;
    let wanted = ["Read-only file system", "remount the bpffs read-write, or set pinDirectory to one that is"];
    check_refused(&lab, &base(&lab), |agent| agent, &wanted)?;
    run("mount", &["-o", "remount,bind,rw", &bpffs])?;
    check_nothing_left(&lab)
}

#[test]
fn the_data_plane_outlives_a_killed_agent_and_the_next_one_takes_over() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("killed", 2)?;
    let base = base(&lab);
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT + 1)?;
    let beside = SocketAddr::new(lab.pods[0].addresses.v4.into(), POD_PORT + 1);
    let mut beside = Conversation::open(&lab.element, beside, &listener)?;
    let mut agent = Agent::start_with(&lab, &base)?;
    for _ in 0..2 {
        wait_ready(&agent)?;
        let mut session = open(&lab, &listener)?;
        agent.kill()?;
        session.exchange(Speaker::Pod).context("without an agent")?;
        open(&lab, &listener).context("without an agent")?;
        beside.exchange(Speaker::Pod).context("without an agent")?;
        agent = Agent::start_with(&lab, &base)?;
        wait_ready(&agent)?;
        session.exchange(Speaker::Client).context("with the next agent")?;
        open(&lab, &listener).context("with the next agent")?.exchange(Speaker::Pod)?;
        beside.exchange(Speaker::Client).context("with the next agent")?;
    }
    agent.stop()?;
    check_nothing_left(&lab)
}

/// Offloads and queueing disciplines of the uplink and of a pod's interface.
fn settings(lab: &Lab) -> Result<String> {
    let mut text = String::new();
    for (namespace, interface) in
        [(&lab.node, UPLINK), (&lab.node, &lab.pods[0].host_interface), (&lab.pods[0].namespace, "eth0")]
    {
        for arguments in [["ethtool", "-k", interface].as_slice(), &["tc", "qdisc", "show", "dev", interface]] {
            let output = namespace.command(arguments[0]).args(&arguments[1..]).output()?;
            ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            text += &String::from_utf8_lossy(&output.stdout);
        }
    }
    Ok(text)
}

#[test]
fn signals_are_heard_while_the_agent_starts() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    let lab = lab("start", 2)?;
    let base = base(&lab);
    Agent::start_unready(&lab, &base)?.stop().context("SIGTERM")?;
    check_nothing_left(&lab)?;
    let mut agent = Agent::start_unready(&lab, &base)?;
    agent.reload(&base.replacen("10.96.0.2", "10.96.0.3", 1)).context("SIGHUP")?;
    agent.wait_ready()?;
    agent.wait_status("the changed service", |status| (status["services"][1]["vip"] == "10.96.0.3").then_some(()))?;
    agent.stop()
}

#[test]
fn sigterm_leaves_nothing_behind() -> Result<()> {
    if !available("bad_input") {
        return Ok(());
    }
    for mode in ["native", "generic"] {
        let lab = lab("stop", 2)?;
        let before = settings(&lab)?;
        let agent = Agent::start_with(&lab, &base(&lab).replacen("mode: native", &format!("mode: {mode}"), 1))?;
        wait_ready(&agent)?;
        ensure!(settings(&lab)? != before, "the agent has changed nothing, so this test shows nothing");
        let status = agent.status()?;
        let programs = status["programs"].as_array().context("no programs")?;
        let ids: Vec<String> = programs.iter().map(|program| program["programId"].to_string()).collect();
        ensure!(ids.len() >= 5, "{programs:?}");
        agent.stop()?;
        check_nothing_left(&lab)?;
        for id in ids {
            wait_until(&format!("program {id} to be gone"), PATIENCE, || {
                let shown = Command::new("bpftool").args(["prog", "show", "id", &id]).output()?;
                Ok((!shown.status.success()).then_some(()))
            })?;
        }
        let after = settings(&lab)?;
        ensure!(after == before, "{mode} mode left the node changed: {after}\nbefore: {before}");
    }
    Ok(())
}
