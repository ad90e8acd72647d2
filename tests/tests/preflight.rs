//! Privileged: makes network namespaces, loads programs into the kernel and mounts bpffs.
//!
//! What `sluice preflight` finds on a node with real faults, that it touches nothing, and that an agent on such a node does not
//! begin.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, BINARY, Configuration, available, check_nothing_left},
    lab::{Lab, Options, UPLINK, attach_pass, wait_until},
    programs::PATIENCE,
};
use lb_userspace::{
    config,
    dataplane::{capacity::Sizes, object, programs::Attached},
    model::{Capacities, XdpModeChoice},
    net::{Netlink, links},
    survey,
};
use serde_json::Value;

/// The ids of findings with what they are about, by severity.
type Found = BTreeMap<String, Vec<String>>;

struct Answer {
    passed: bool,
    found: Found,
    text: String,
}

impl Answer {
    fn has(&self, severity: &str, finding: &str) -> bool {
        self.found.get(severity).is_some_and(|found| found.iter().any(|one| one == finding))
    }

    fn refuses(&self, finding: &str) -> Result<()> {
        ensure!(!self.passed && self.has("refused", finding), "not refused as {finding}:\n{}", self.text);
        Ok(())
    }

    fn tells(&self, severity: &str, finding: &str) -> Result<()> {
        ensure!(self.passed && self.has(severity, finding), "not {severity} as {finding}:\n{}", self.text);
        Ok(())
    }
}

fn lab(name: &str) -> Result<Lab> {
    Lab::new(&format!("preflight-{name}"), Options { pods: 1, ..Options::default() })
}

/// A configuration without services.
fn base(lab: &Lab) -> String {
    Configuration { mode: "auto", services: Vec::new() }.yaml_in(lab).replace("services:\n", "services: []\n")
}

fn command(lab: &Lab, yaml: &str, arguments: &[&str]) -> Result<Command> {
    let file = lab.directory().join("preflight.yaml");
    fs::write(&file, yaml)?;
    let mut command = lab.node.command(std::env::var_os(BINARY).context(BINARY)?);
    command.args(["preflight", "--config"]).arg(file).args(arguments).stdin(Stdio::null());
    Ok(command)
}

fn answer(command: &mut Command) -> Result<Answer> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(&text)
        .with_context(|| format!("no report: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    let mut found = Found::new();
    for finding in report["findings"].as_array().context("no findings")? {
        let word = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        found.entry(word("severity")).or_default().push(format!("{} {}", word("id"), word("object")));
    }
    let passed = output.status.success();
    ensure!(output.status.code() == Some(i32::from(!passed)), "{}", output.status);
    Ok(Answer { passed, found, text })
}

fn look(lab: &Lab, yaml: &str) -> Result<Answer> {
    answer(&mut command(lab, yaml, &["-o", "json"])?)
}

/// As a change of the lab that is taken back.
fn ip(lab: &Lab, line: &str) -> Result<()> {
    lab.node.ip(&format!("{line}\n"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Offloads and programs of the uplink, and what is pinned.
fn state(lab: &Lab) -> Result<String> {
    let offloads = lab.node.command("ethtool").args(["-k", UPLINK]).output()?;
    let programs = lab.node.command("bpftool").arg("net").output()?;
    let pins: Vec<_> = fs::read_dir(lab.bpffs())?.flatten().map(|entry| entry.path()).collect();
    Ok(format!("{offloads:?}{programs:?}{pins:?}{}", lab.directory().join("run").exists()))
}

#[test]
fn a_healthy_node_passes_strictly_and_is_left_as_it_was() -> Result<()> {
    if !available("preflight") {
        return Ok(());
    }
    let mut lab = lab("healthy")?;
    lab.attach_router_program()?;
    let before = state(&lab)?;
    let yaml = base(&lab);
    let all = answer(&mut command(&lab, &yaml, &["-o", "json", "--strict"])?)?;
    all.tells("noted", "uplink-is eth0")?;
    all.tells("mended", "vlan-stripping eth0")?;
    ensure!(all.text.contains("driver veth, native XDP redirect frags, "), "{}", all.text);
    let table = command(&lab, &yaml, &[])?.output()?;
    ensure!(String::from_utf8_lossy(&table.stdout).contains("The agent would start here: 0 refused, 0 warned"));
    // Without a configuration, it is the interface of the default routes.
    let binary = std::env::var_os(BINARY).context(BINARY)?;
    let bare = answer(lab.node.command(binary).args(["preflight", "-o", "json"]))?;
    ensure!(bare.has("noted", "uplink-is eth0"), "{}", bare.text);
    ensure!(state(&lab)? == before, "something was touched");
    Ok(())
}

#[test]
fn memory_is_asked_for_once_whatever_a_start_that_was_cut_short_has_left() -> Result<()> {
    if !available("preflight") {
        return Ok(());
    }
    let lab = lab("memory")?;
    let sized = |services: u32| format!("{}capacities: {{services: {services}}}\n", base(&lab));
    let asked = |yaml: &str| -> Result<u64> {
        let snapshot = config::parse("preflight", yaml)?;
        Ok(lab.node.run(|| survey::gather(&snapshot, []).memory.maps_bytes))
    };
    let (small, large) = (sized(100), sized(200));
    let (all, all_large) = (asked(&small)?, asked(&large)?);
    ensure!(all > 0 && all_large > all, "{all} and {all_large} bytes");
    let cut_short = Agent::start_unready(&lab, &small)?;
    // The first that is pinned need not be one that counts.
    wait_until("a map that is not asked for any more", PATIENCE, || Ok((asked(&small)? < all).then_some(())))?;
    cut_short.kill()?;
    let (rest, rest_large) = (asked(&small)?, asked(&large)?);
    ensure!(rest < all && rest_large < all_large, "{rest} of {all}, {rest_large} of {all_large} bytes");
    let agent = Agent::start_with(&lab, &small)?;
    ensure!(asked(&small)? == 0, "maps that are gone on with are asked for");
    ensure!(asked(&large)? == all_large, "maps beside those that are carried over are not asked for");
    agent.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn faults_of_a_node_are_found_each_with_its_name() -> Result<()> {
    if !available("preflight") {
        return Ok(());
    }
    let lab = lab("faults")?;
    let yaml = base(&lab);
    // The router's end has no program.
    look(&lab, &yaml)?.tells("warned", "veth-peer eth0")?;
    let strict = answer(&mut command(&lab, &yaml, &["-o", "json", "--strict"])?)?;
    ensure!(!strict.passed && strict.has("warned", "veth-peer eth0"), "{}", strict.text);

    look(&lab, &yaml.replace("interface: eth0", "interface: eht0"))?.refuses("uplink-missing eht0")?;
    look(&lab, &yaml.replace("interface: eth0", "interface: lo"))?.refuses("uplink-kind lo")?;

    let other = attach_pass(&lab.node, UPLINK)?;
    look(&lab, &yaml)?.refuses("xdp-other eth0")?;
    drop(other);

    let service = "services: [{name: a, vip: 10.96.0.9, protocol: TCP, ports: [80], backends: []}]\n";
    let with_service = yaml.replace("services: []\n", service);
    lab.node.sysctl(&[("net/ipv4/ip_forward", "0")])?;
    look(&lab, &with_service)?.refuses("forwarding net.ipv4.ip_forward")?;
    lab.node.sysctl(&[("net/ipv4/ip_forward", "1")])?;

    let tc = |arguments: &str| run(lab.node.command("tc").args(arguments.split(' ')));
    tc("qdisc add dev eth0 clsact")?;
    run(lab.node.command("tc").args("filter add dev eth0 ingress bpf bytecode".split(' ')).args([
        "1,6 0 0 4294967295",
        "flowid",
        "1:1",
    ]))?;
    let filtered = look(&lab, &yaml)?;
    filtered.tells("warned", "tc-filters eth0")?;
    ensure!(filtered.text.contains("filters of kind bpf at ingress"), "{}", filtered.text);
    tc("qdisc del dev eth0 clsact")?;

    ip(&lab, "link add br0 type bridge\nlink set eth0 master br0")?;
    look(&lab, &yaml)?.refuses("uplink-bridge-port eth0")?;
    ip(&lab, "link set eth0 nomaster\nlink del br0")?;

    ip(&lab, "link add q0 numrxqueues 1 type veth peer name q1 numtxqueues 4\nlink set q0 up\nlink set q1 up")?;
    run(lab.node.command("ethtool").args(["-L", "q1", "tx", "4"]))?;
    let queues = yaml.replace("interface: eth0", "interface: q0");
    look(&lab, &queues)?.tells("warned", "veth-queues q0")?;
    look(&lab, &queues.replace("mode: auto", "mode: native"))?.refuses("xdp-no-native q0")?;
    ensure!(attach_pass(&lab.node, "q0").is_err(), "the kernel takes the program, so this warns of nothing");
    ip(&lab, "link del q0")?;

    ip(&lab, "link set eth0 down")?;
    look(&lab, &yaml)?.tells("warned", "uplink-down eth0")?;
    Ok(())
}

#[test]
fn what_is_in_the_way_of_the_pins_or_of_privileges_is_found() -> Result<()> {
    if !available("preflight") {
        return Ok(());
    }
    let lab = lab("pins")?;
    let yaml = base(&lab);
    let pins = lab.bpffs().join("sluice").display().to_string();
    let bpffs = lab.bpffs().display().to_string();
    let mount = |how: &str| run(Command::new("mount").args(["-o", how, &bpffs]));
    mount("remount,bind,ro")?;
    look(&lab, &yaml)?.refuses(&format!("bpffs-read-only {pins}"))?;
    mount("remount,bind,rw")?;

    fs::create_dir_all(Path::new(&pins).join("links"))?;
    look(&lab, &yaml)?.refuses(&format!("pins-foreign {pins}"))?;
    fs::remove_dir_all(&pins)?;

    let elsewhere = lab.directory().join("elsewhere");
    let beside = yaml.replace(&pins, &elsewhere.display().to_string());
    look(&lab, &beside)?.tells("mended", &format!("bpffs-missing {}", elsewhere.display()))?;
    fs::create_dir(&elsewhere)?;
    fs::write(elsewhere.join("file"), "")?;
    look(&lab, &beside)?.refuses(&format!("pins-no-place {}", elsewhere.display()))?;

    let run_directory = lab.directory().join("file");
    fs::write(&run_directory, "")?;
    let own = lab.directory().join("run").display().to_string();
    let no_run = yaml.replace(&format!("runDirectory: {own}"), &format!("runDirectory: {}", run_directory.display()));
    look(&lab, &no_run)?.refuses(&format!("run-directory {}", run_directory.display()))?;

    let plain = command(&lab, &yaml, &["-o", "json"])?;
    let mut dropped = lab.node.command("setpriv");
    dropped.args(["--bounding-set", "-all"]).arg(plain.get_program()).args(plain.get_args());
    let unprivileged = answer(&mut dropped)?;
    unprivileged.refuses("capabilities process")?;
    for what in ["not-seen tcx", "not-seen helpers", "not-seen the other end of eth0"] {
        ensure!(unprivileged.has("unseen", what), "{what}: {}", unprivileged.text);
    }
    ensure!(unprivileged.has("noted", "uplink-is eth0"), "{}", unprivileged.text);
    Ok(())
}

#[test]
fn an_agent_refuses_a_faulty_node_before_anything_is_touched() -> Result<()> {
    if !available("preflight") {
        return Ok(());
    }
    let lab = lab("refusal")?;
    let before = state(&lab)?;
    let yaml = base(&lab).replace("interface: eth0", "interface: lo");
    let said = Agent::refusal(&lab, &yaml, |command| command)?;
    ensure!(
        said.contains("this node is not ready, and nothing was changed: [uplink-kind] lo is the loopback"),
        "{said}"
    );
    ensure!(!lab.bpffs().join("sluice").exists(), "the pin directory was made");
    ensure!(!lab.directory().join("run/lock").exists(), "the lock was taken");
    // Its own directory was made by the test.
    fs::remove_dir(lab.directory().join("run"))?;
    ensure!(state(&lab)? == before, "something was touched");
    Ok(())
}

#[test]
fn a_running_agent_is_told_from_others_and_shows_what_it_found() -> Result<()> {
    if !available("preflight") {
        return Ok(());
    }
    let lab = lab("running")?;
    let yaml = base(&lab);
    let agent = Agent::start_with(&lab, &yaml)?;
    let findings = |ids: &[&str]| {
        let wanted: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        agent.wait_status("the findings", move |status| {
            let found = status["preflight"].as_array()?;
            wanted.iter().all(|id| found.iter().any(|finding| finding["id"] == **id)).then_some(())
        })
    };
    findings(&["uplink-is", "veth-peer", "vlan-stripping", "xdp-attached"])?;
    ensure!(agent.status_table()?.contains("the other end of this veth has no XDP program"));

    let run_directory = lab.directory().join("run").display().to_string();
    let own = look(&lab, &yaml)?;
    own.tells("noted", &format!("agent-running {run_directory}"))?;
    let pins = lab.bpffs().join("sluice").display().to_string();
    let beside = yaml.replace("/run\n", "/run2\n");
    look(&lab, &beside)?.refuses(&format!("pins-in-use {pins}"))?;
    let stranger = look(&lab, &beside.replace("/bpf/sluice", "/bpf/stranger"))?;
    stranger.refuses("xdp-other eth0")?;
    ensure!(stranger.has("warned", "tcx-other eth0"), "{}", stranger.text);
    ensure!(stranger.text.contains("tcx program sluice_uplink_i"), "{}", stranger.text);

    agent.kill()?;
    look(&lab, &yaml)?.tells("noted", &format!("pins-left {pins}"))?;
    let generic = Agent::start_with(&lab, &yaml.replace("mode: auto", "mode: generic"))?;
    generic.wait_status("generic mode as the kernel reports it", |status| {
        let attached = status["preflight"].as_array()?.iter().find(|finding| finding["id"] == "xdp-attached")?;
        attached["found"].as_str()?.contains("sluice_xdp runs generic").then_some(())
    })?;
    generic.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn an_interface_that_goes_away_while_it_is_attached_leaves_nothing_behind() -> Result<()> {
    if !available("preflight") {
        return Ok(());
    }
    let lab = lab("vanishing")?;
    let pins = lab.bpffs().join("links");
    fs::create_dir_all(&pins)?;
    ip(&lab, "link add v0 type veth peer name v1")?;
    lab.node.run(|| -> Result<()> {
        let seen =
            links::of_node(&mut Netlink::open()?)?.into_iter().find(|link| link.name == "v0").context("no v0")?;
        ip(&lab, "link del v0")?;
        let sizes = Sizes::new(&Capacities { services: 1, backends: 1, maglev_slots: 256, ..Capacities::default() });
        let mut object = object::load(&sizes, None)?;
        let mut attached = Attached::new(pins.clone());
        for mode in [XdpModeChoice::Auto, XdpModeChoice::Native, XdpModeChoice::Generic] {
            let error = attached.attach_uplink(&mut object, &seen, mode).err().context("it was attached")?;
            ensure!(error.to_string().contains("v0"), "{error}");
        }
        ensure!(attached.interfaces().is_empty() && fs::read_dir(&pins)?.next().is_none(), "something is left");
        Ok(())
    })
}
