//! Privileged: makes network namespaces, loads programs into the kernel and mounts bpffs.
//!
//! `sluice detach`: whatever an agent was doing when it ended, and whatever pods do meanwhile, nothing of it is left, and
//! nothing of anybody else's is touched.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{self, Agent, Configuration, Service, available, check_nothing_left},
    lab::{Family, Lab, Namespace, Options, UPLINK, vip, wait_until},
    programs::{
        PATIENCE,
        conversation::{self, Conversation, Speaker},
    },
};
use lb_userspace::net::ethtool::{Ethtool, Offload};

const PORT: u16 = 8080;
/// Last bytes of the VIPs.
const PLAIN: u8 = 1;
const OWNED: u8 = 2;
const SMALL: &str = "capacities: {services: 8, backends: 16, maglevSlots: 4096, bypasses: 256, flows: 1024}\n";
const LARGER: &str = "capacities: {services: 16, backends: 32, maglevSlots: 8192, bypasses: 512, flows: 2048}\n";

/// A service of rung `auto` and one of rung `direct` before these pods, in generic mode: everything that an agent may change
/// is changed.
fn yaml(lab: &Lab, pods: &[usize]) -> String {
    let service = |name: &str, last: u8, rung| Service {
        name: name.to_owned(),
        vip: vip(last).v4.into(),
        protocol: "TCP",
        port: PORT,
        replies: None,
        rung,
        backends: pods.iter().map(|pod| SocketAddr::new(lab.pods[*pod].addresses.v4.into(), PORT)).collect(),
    };
    let services = vec![service("plain", PLAIN, "auto"), service("owned", OWNED, "direct")];
    let yaml = Configuration { mode: "generic", services }.yaml_in(lab);
    yaml.replacen("rung: direct\n", "rung: direct\n    assignVip: true\n", 1)
}

fn start(lab: &Lab, yaml: &str) -> Result<Agent> {
    let agent = Agent::start_with(lab, yaml)?;
    agent.wait_status("every backend to be ready", |status| {
        let services = status["services"].as_array()?.iter();
        let mut backends = services.flat_map(|service| service["backends"].as_array().into_iter().flatten());
        backends.all(|backend| backend["state"] == "ready").then_some(())
    })?;
    Ok(agent)
}

fn lab(name: &str, pods: u8) -> Result<Lab> {
    let mut lab = Lab::new(name, Options { pods, ..Options::default() })?;
    lab.attach_router_program()?;
    Ok(lab)
}

/// What of a namespace an agent could change.
fn settings(namespace: &Namespace, interface: &str) -> Result<String> {
    let mut text = String::new();
    for arguments in [
        ["ethtool", "-k", interface].as_slice(),
        &["tc", "qdisc", "show", "dev", interface],
        &["ip", "address", "show", "dev", "lo"],
        &["cat", "/proc/sys/net/ipv4/conf/all/arp_ignore", "/proc/sys/net/ipv4/conf/all/arp_announce"],
    ] {
        // Its /proc is the node's, but /proc/sys shows the reader's own namespace.
        let output = namespace.command(arguments[0]).args(&arguments[1..]).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        text += &String::from_utf8_lossy(&output.stdout);
    }
    Ok(text)
}

/// The node's uplink, and each pod's inside and outside.
fn everything(lab: &Lab) -> Result<Vec<String>> {
    let pods = lab.pods.iter().flat_map(|pod| [(&lab.node, &*pod.host_interface), (&pod.namespace, "eth0")]);
    pods.chain([(&lab.node, UPLINK)]).map(|(namespace, interface)| settings(namespace, interface)).collect()
}

fn detach(lab: &Lab) -> Result<Output> {
    Ok(agent::detach_command(lab)?.stdin(Stdio::null()).output()?)
}

fn text(output: &Output) -> String {
    [&*output.stdout, &output.stderr].map(String::from_utf8_lossy).concat()
}

/// Detaches twice: everything is as it was, and the second time there is nothing to do.
fn check_detached(lab: &Lab, before: &[String]) -> Result<()> {
    let first = detach(lab)?;
    ensure!(first.status.success(), "{}: {}", first.status, text(&first));
    ensure!(text(&first).ends_with("nothing of Sluice is left here\n"), "{}", text(&first));
    check_nothing_left(lab)?;
    let after = everything(lab)?;
    for (after, before) in after.iter().zip(before) {
        ensure!(after == before, "left changed: {after}\nbefore: {before}\n{}", text(&first));
    }
    let pins = lab.bpffs().join("sluice");
    ensure!(!pins.exists(), "{} is left", pins.display());
    check_nothing_to_do(lab)
}

fn check_nothing_to_do(lab: &Lab) -> Result<()> {
    let second = detach(lab)?;
    ensure!(second.status.success(), "{}: {}", second.status, text(&second));
    ensure!(text(&second) == "nothing to do: no agent has left anything here\n", "{}", text(&second));
    Ok(())
}

#[test]
fn nothing_is_left_after_an_orderly_end_after_a_crash_and_of_a_start_that_was_cut_short() -> Result<()> {
    if !available("detach") {
        return Ok(());
    }
    let lab = lab("detach", 1)?;
    let before = everything(&lab)?;
    let (small, larger) = (yaml(&lab, &[0]) + SMALL, yaml(&lab, &[0]) + LARGER);
    let agent = start(&lab, &small)?;
    ensure!(everything(&lab)? != before, "the agent has changed nothing, so this test shows nothing");
    agent.end()?;
    check_detached(&lab, &before).context("an orderly end")?;
    start(&lab, &small)?.kill()?;
    check_detached(&lab, &before).context("SIGKILL")?;
    let pins = lab.bpffs().join("sluice");
    let first_link = |pins: &Path| fs::read_dir(pins.join("links")).is_ok_and(|mut links| links.next().is_some());
    // A first start, cut short with the first map, and with the first link.
    Agent::start_unready(&lab, &small)?.kill()?;
    check_detached(&lab, &before).context("the first map")?;
    let agent = Agent::launch(&lab, &small, |command| command)?;
    wait_until("the first link", PATIENCE, || Ok(first_link(&pins).then_some(())))?;
    agent.kill()?;
    check_detached(&lab, &before).context("the first link")?;
    // A change of capacities, cut short while maps are filled, after they have changed places, and between that.
    for part in ["maps-new", "maps-old", "between"] {
        start(&lab, &small)?.kill()?;
        let agent = Agent::launch(&lab, &larger, |command| command)?;
        let path = pins.join(if part == "between" { "maps-old" } else { part });
        wait_until(part, PATIENCE, || Ok(path.exists().then_some(())))?;
        agent.kill()?;
        if part == "between" {
            fs::rename(pins.join("maps"), pins.join("maps-new"))?;
        }
        check_detached(&lab, &before).with_context(|| format!("cut short at {part}"))?;
    }
    Ok(())
}

#[test]
fn a_running_agent_is_named_and_left_alone() -> Result<()> {
    if !available("detach") {
        return Ok(());
    }
    let lab = lab("running", 1)?;
    let yaml = yaml(&lab, &[0]);
    let agent = start(&lab, &yaml)?;
    let listener = conversation::listen(&lab.pods[0].namespace, PORT)?;
    let mut sessions = [PLAIN, OWNED]
        .map(|last| Conversation::open(&lab.element, SocketAddr::new(vip(last).v4.into(), PORT), &listener));
    let refused = detach(&lab)?;
    ensure!(refused.status.code() == Some(1), "{}: {}", refused.status, text(&refused));
    let whose = format!("another agent runs on this node (process {}, lock ", agent.id());
    ensure!(text(&refused).contains(&whose) && text(&refused).contains("stop it first"), "{}", text(&refused));
    // Nor is what it has made touched by who names other directories, be it running or not.
    let elsewhere = lab.directory().join("elsewhere.yaml");
    fs::write(&elsewhere, yaml.replace("Directory: ", "Directory: /nowhere"))?;
    let refused = agent::detach_by(&lab, &elsewhere)?.stdin(Stdio::null()).output()?;
    ensure!(refused.status.code() == Some(1), "{}: {}", refused.status, text(&refused));
    ensure!(text(&refused).contains(&format!("{UPLINK} runs sluice_xdp")), "{}", text(&refused));
    for session in &mut sessions {
        let session = session.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        session.exchange(Speaker::Client).and_then(|()| session.exchange(Speaker::Pod)).context("after the refusal")?;
    }
    agent.stop()
}

/// Pods other than the first are deleted and made anew all the time.
#[test]
fn pods_may_come_and_go_meanwhile() -> Result<()> {
    if !available("detach") {
        return Ok(());
    }
    const PODS: u8 = 4;
    let mut lab = lab("come", PODS)?;
    let before = [settings(&lab.pods[0].namespace, "eth0")?, settings(&lab.node, UPLINK)?];
    let all: Vec<usize> = (0..PODS.into()).collect();
    let yaml = yaml(&lab, &all);
    let mut commands = Vec::new();
    for round in 0..3 {
        start(&lab, &yaml).with_context(|| format!("round {round}"))?.kill()?;
        let command = agent::detach_command(&lab)?;
        let over = AtomicBool::new(false);
        let output = thread::scope(|scope| {
            let detached = scope.spawn(|| {
                let mut command = command;
                let output = command.stdin(Stdio::null()).output();
                over.store(true, Relaxed);
                output
            });
            let mut restarts = 0;
            let mut next = (1..usize::from(PODS)).cycle();
            while !over.load(Relaxed) || restarts == 0 {
                lab.restart_pod(next.next().expect("a cycle has no end"))?;
                restarts += 1;
            }
            let output = detached.join().expect("the thread does not panic")?;
            println!("{restarts} restarts of pods while detaching");
            Ok::<_, anyhow::Error>(output)
        })?;
        ensure!(output.status.success(), "round {round}: {}: {}", output.status, text(&output));
        check_nothing_left(&lab)?;
        let after = [settings(&lab.pods[0].namespace, "eth0")?, settings(&lab.node, UPLINK)?];
        ensure!(after == before, "{after:?}\nbefore: {before:?}\n{}", text(&output));
        commands.push(text(&output));
    }
    check_nothing_to_do(&lab)
}

#[test]
fn gro_is_as_the_pod_had_it_and_goes_back_with_the_agent_down_or_up() -> Result<()> {
    if !available("detach") {
        return Ok(());
    }
    let lab = lab("gro", 2)?;
    let gro = |pod: usize| agent::gro(&lab.pods[pod].namespace, "eth0");
    lab.pods[0].namespace.run(|| Ethtool::open()?.set("eth0", Offload::Gro, true))?;
    let (both, first) = (yaml(&lab, &[0, 1]), yaml(&lab, &[0]));
    start(&lab, &both)?.kill()?;
    ensure!(gro(0)? && gro(1)?, "redirect needs GRO");
    // The second pod is a backend no more when the next agent starts.
    let mut agent = start(&lab, &first)?;
    wait_until("the second pod's GRO to be off", PATIENCE, || Ok((!gro(1)?).then_some(())))?;
    // It is one again, and is none while the agent runs.
    agent.reload(&both)?;
    wait_until("the second pod's GRO to be on", PATIENCE, || Ok(gro(1)?.then_some(())))?;
    agent.reload(&first)?;
    wait_until("the second pod's GRO to be off again", PATIENCE, || Ok((!gro(1)?).then_some(())))?;
    agent.stop()?;
    ensure!(gro(0)?, "GRO was the pod's own");
    Ok(())
}

/// In a directory that is an agent's, and in one that is not.
#[test]
fn pins_of_somebody_else_are_left_alone() -> Result<()> {
    if !available("detach") {
        return Ok(());
    }
    let lab = lab("others", 1)?;
    let yaml = yaml(&lab, &[0]) + SMALL;
    let pins = lab.bpffs().join("sluice");
    start(&lab, &yaml)?.kill()?;
    let foreign = ["foreign", "maps/foreign", "links/foreign"].map(|name| pins.join(name));
    for path in &foreign {
        let path = path.display().to_string();
        let map = ["map", "create", &path, "type", "hash", "key", "4", "value", "4", "entries", "4", "name", "foreign"];
        let status = Command::new("bpftool").args(map).status()?;
        ensure!(status.success(), "bpftool: {status}");
    }
    let are_there = || foreign.iter().all(|path| path.exists());
    start(&lab, &yaml)?.kill()?;
    ensure!(are_there(), "an agent that adopts has removed another's pin");
    let refusal = Agent::refusal(&lab, &yaml.replacen(SMALL, LARGER, 1), |command| command)?;
    let path = foreign[1].display().to_string();
    ensure!(refusal.contains(&path) && refusal.contains("no agent's"), "{refusal}");
    ensure!(are_there(), "an agent that refuses has removed another's pin");
    let detached = detach(&lab)?;
    ensure!(detached.status.success() && are_there(), "{}: {}", detached.status, text(&detached));
    for path in &foreign[1..] {
        ensure!(text(&detached).contains(&format!("left {}", path.display())), "{}", text(&detached));
    }
    let left: Vec<_> = ["maps", "links"].iter().flat_map(|part| fs::read_dir(pins.join(part))).flatten().collect();
    ensure!(left.len() == 2, "{left:?}");
    // What is left is nobody's that Sluice knows.
    let refusal = Agent::refusal(&lab, &yaml, |command| command)?;
    ensure!(refusal.contains("not an agent's") && are_there(), "{refusal}");
    let again = detach(&lab)?;
    ensure!(!again.status.success() && are_there(), "{}: {}", again.status, text(&again));
    Ok(())
}

/// Who removes an address by hand has removed the note on it of what was changed for it.
#[test]
fn settings_raised_for_a_vip_that_was_removed_by_hand_are_lowered_again() -> Result<()> {
    if !available("detach") {
        return Ok(());
    }
    let lab = lab("by-hand", 1)?;
    let pod = &lab.pods[0].namespace;
    let before = everything(&lab)?;
    let own: IpAddr = vip(OWNED).of(Family::V4);
    let has_vip = || Ok::<_, anyhow::Error>(settings(pod, "eth0")?.contains(&own.to_string()));
    let remove = || pod.ip(&format!("address del {own}/32 dev lo\n"));
    let arp = |name: &str| pod.run(|| fs::read_to_string(Path::new("/proc/sys/net/ipv4/conf/all").join(name)));
    let yaml = yaml(&lab, &[0]);
    // The agent puts it there again, and later takes it away.
    let mut agent = start(&lab, &yaml)?;
    remove()?;
    wait_until("the VIP to be back", PATIENCE, || Ok(has_vip()?.then_some(())))?;
    ensure!(arp("arp_ignore")?.trim() == "1" && arp("arp_announce")?.trim() == "2", "not raised");
    agent.reload(
        &Configuration { mode: "generic", services: Vec::new() }.yaml_in(&lab).replace("services:\n", "services: []\n"),
    )?;
    wait_until("the settings to be lowered", PATIENCE, || {
        Ok((arp("arp_ignore")?.trim() == "0" && arp("arp_announce")?.trim() == "0").then_some(()))
    })?;
    agent.kill()?;
    check_detached(&lab, &before).context("taken away")?;
    // It is removed while no agent runs.
    start(&lab, &yaml)?.kill()?;
    remove()?;
    check_detached(&lab, &before).context("no agent")?;
    start(&lab, &yaml)?.kill()?;
    remove()?;
    start(&lab, &yaml)?.stop()?;
    ensure!(everything(&lab)? == before, "the next agent has put it there again");
    Ok(())
}
