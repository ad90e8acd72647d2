//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! Pods that come, move and go while the agent runs, and the rung that each is reached by.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{ABI_VERSION, Settings};
use lb_tests::{
    agent::{self, Agent, Configuration, Service, available},
    lab::{ELEMENT, Family, Lab, Namespace, Options, PodLink, UPLINK, vip, wait_until},
    programs::{
        PATIENCE,
        conversation::{self, Conversation, Resets, Speaker},
    },
};
use lb_userspace::{
    dataplane::{
        capacity::Sizes,
        object,
        probe::{self, Question},
        programs::Attached,
        tables::Tables,
    },
    model::{Capacities, Rung},
    net::{
        Netlink,
        ethtool::{Ethtool, Offload},
        links,
    },
    plan::planner::Place,
};
use serde_json::Value;

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;

/// A service for each family and each of these pods' last address bytes.
fn services(lab: &Lab, pods: &[u8], rung: &'static str) -> Vec<Service> {
    let first = lab.pods[0].addresses;
    let address = |family, last: u8| match first.of(family) {
        IpAddr::V4(v4) => IpAddr::from([v4.octets()[0], v4.octets()[1], v4.octets()[2], last]),
        IpAddr::V6(v6) => {
            let mut bytes = v6.octets();
            bytes[15] = last;
            IpAddr::from(bytes)
        }
    };
    let mut services = Vec::new();
    for &last in pods {
        for family in Family::BOTH {
            services.push(Service {
                name: format!("pod{last}-{family:?}").to_lowercase(),
                vip: vip(last).of(family),
                protocol: "TCP",
                port: VIP_PORT,
                replies: None,
                rung,
                backends: vec![SocketAddr::new(address(family, last), POD_PORT)],
            });
        }
    }
    services
}

/// Last address bytes of the first and second pod.
const FIRST: u8 = 11;
const SECOND: u8 = 12;

fn start(lab: &mut Lab, services: Vec<Service>, mode: &'static str) -> Result<Agent> {
    Agent::start(lab, &Configuration { mode, services })
}

/// The backends of the services of one pod.
fn backends(status: &Value, last: u8) -> Vec<Value> {
    let vips = Family::BOTH.map(|family| vip(last).of(family).to_string());
    let services = status["services"].as_array().into_iter().flatten();
    services
        .filter(|service| vips.iter().any(|vip| service["vip"] == *vip))
        .map(|service| service["backends"][0].clone())
        .collect()
}

/// Waits until a pod is reached through this interface, and gives the rung.
fn wait_ready(agent: &Agent, last: u8, interface: &str) -> Result<String> {
    agent.wait_status(&format!("the pod at {last} to be reached through {interface}"), |status| {
        let backends = backends(status, last);
        let rung = backends.first()?["rung"].as_str()?.to_owned();
        let ready = |backend: &Value| {
            backend["state"] == "ready" && backend["interface"] == interface && backend["rung"] == rung.as_str()
        };
        backends.iter().all(ready).then_some(rung)
    })
}

/// One connection of each family through a pod's VIPs.
fn converse(lab: &Lab, last: u8, pod: &Namespace) -> Result<()> {
    let listener = conversation::listen(pod, POD_PORT)?;
    for family in Family::BOTH {
        let target = SocketAddr::new(vip(last).of(family), VIP_PORT);
        let mut conversation = Conversation::open(&lab.element, target, &listener)?;
        conversation.exchange(Speaker::Client).and_then(|()| conversation.exchange(Speaker::Pod))?;
        ensure!(conversation.seen_by_pod()?.ip() == ELEMENT.of(family), "the pod sees another client");
    }
    Ok(())
}

#[test]
fn a_pod_that_comes_later_is_found_by_itself() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    for pod_link in [PodLink::Routed, PodLink::Bridge] {
        let mut lab = Lab::new("late", Options { pods: 1, pod_link, ..Options::default() })?;
        let services = services(&lab, &[FIRST, SECOND], "auto");
        let agent = start(&mut lab, services, "native")?;
        wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
        let missing = backends(&agent.status()?, SECOND);
        ensure!(missing.iter().all(|backend| backend["state"] != "ready"), "there is no such pod yet: {missing:?}");
        lab.add_pod()?;
        wait_ready(&agent, SECOND, &lab.pods[1].host_interface)?;
        for (last, pod) in [(FIRST, 0), (SECOND, 1)] {
            converse(&lab, last, &lab.pods[pod].namespace).with_context(|| agent.log_tail())?;
        }
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_pod_that_restarts_is_reached_again() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    for pod_link in [PodLink::Routed, PodLink::Bridge] {
        let mut lab = Lab::new("restart", Options { pods: 1, pod_link, ..Options::default() })?;
        let services = services(&lab, &[FIRST], "auto");
        let agent = start(&mut lab, services, "native")?;
        wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
        for _ in 0..2 {
            converse(&lab, FIRST, &lab.pods[0].namespace).with_context(|| agent.log_tail())?;
            lab.restart_pod(0)?;
            // The old interface had the same name: what tells the new one is that it works.
            agent.wait_status("the new pod's GRO to be on", |status| {
                let ready = backends(status, FIRST).iter().all(|backend| backend["state"] == "ready");
                (ready && agent::gro(&lab.pods[0].namespace, "eth0").ok()?).then_some(())
            })?;
            wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
        }
        converse(&lab, FIRST, &lab.pods[0].namespace).with_context(|| agent.log_tail())?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn sessions_outlive_the_move_of_their_pod_to_another_interface() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    for rung in ["redirect", "peer", "stack"] {
        let mut lab = Lab::new("move", Options { pods: 1, ..Options::default() })?;
        let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
        let services = services(&lab, &[FIRST], rung);
        let agent = start(&mut lab, services, "native")?;
        wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
        let mut conversations = Vec::new();
        for family in Family::BOTH {
            for target in [
                SocketAddr::new(vip(FIRST).of(family), VIP_PORT),
                SocketAddr::new(lab.pods[0].addresses.of(family), POD_PORT),
            ] {
                let mut conversation = Conversation::open(&lab.element, target, &listener)?;
                conversation.exchange(Speaker::Client)?;
                conversations.push((target, conversation));
            }
        }
        lab.move_pod(0)?;
        wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
        for (target, conversation) in &mut conversations {
            for speaker in [Speaker::Pod, Speaker::Client] {
                conversation
                    .exchange(speaker)
                    .with_context(|| format!("rung {rung}, the session with {target}"))
                    .with_context(|| agent.status_table().unwrap_or_default())
                    .with_context(|| agent.log_tail())?;
            }
        }
        ensure!(Resets::of(&lab.element)? == Resets::default(), "the element has reset connections");
        drop(listener);
        converse(&lab, FIRST, &lab.pods[0].namespace)?;
        agent.stop()?;
    }
    Ok(())
}

/// GRO is the one thing that the agent changes inside a pod, and only for the rung that needs it.
#[test]
fn gro_is_turned_on_for_redirect_alone_and_put_back() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    for (asked, chosen) in [("auto", "redirect"), ("redirect", "redirect"), ("peer", "peer"), ("stack", "stack")] {
        let mut lab = Lab::new("gro", Options { pods: 1, ..Options::default() })?;
        ensure!(!agent::gro(&lab.pods[0].namespace, "eth0")?, "a new veth has GRO on");
        let services = services(&lab, &[FIRST], asked);
        let agent = start(&mut lab, services, "native")?;
        let rung = wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
        ensure!(rung == chosen, "asked for {asked}, got {rung}");
        let on = agent::gro(&lab.pods[0].namespace, "eth0")?;
        ensure!(on == (chosen == "redirect"), "rung {rung} with GRO {on}");
        converse(&lab, FIRST, &lab.pods[0].namespace)?;
        agent.stop()?;
        ensure!(!agent::gro(&lab.pods[0].namespace, "eth0")?, "GRO was not put back");
        agent::check_nothing_left(&lab)?;
    }
    Ok(())
}

#[test]
fn gro_that_was_on_stays_on() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    let mut lab = Lab::new("gro-on", Options { pods: 1, ..Options::default() })?;
    lab.pods[0].namespace.run(|| Ethtool::open()?.set("eth0", Offload::Gro, true))?;
    let services = services(&lab, &[FIRST], "auto");
    let agent = start(&mut lab, services, "native")?;
    wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
    agent.stop()?;
    ensure!(agent::gro(&lab.pods[0].namespace, "eth0")?, "GRO was the pod's own");
    Ok(())
}

#[test]
fn the_status_tells_native_from_generic_mode() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    for (asked, attached) in [("native", "native"), ("generic", "generic"), ("auto", "native")] {
        let mut lab = Lab::new("mode", Options { pods: 1, ..Options::default() })?;
        let services = services(&lab, &[FIRST], "auto");
        let agent = start(&mut lab, services, asked)?;
        wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
        let status = agent.status()?;
        let programs = status["programs"].as_array().context("no programs")?;
        let xdp: Vec<_> = programs.iter().filter(|program| program["attachPoint"] == "xdp").collect();
        ensure!(xdp.len() == 1 && xdp[0]["mode"] == attached, "asked for {asked}: {xdp:?}");
        // And the kernel says the same.
        let output = lab.node.command("ip").args(["-j", "link", "show", UPLINK]).output()?;
        let link: Value = serde_json::from_slice(&output.stdout)?;
        let mode = if attached == "native" { 1 } else { 2 };
        ensure!(link[0]["xdp"]["mode"] == mode, "asked for {asked}: {}", link[0]["xdp"]);
        converse(&lab, FIRST, &lab.pods[0].namespace)?;
        agent.stop()?;
        ensure!(agent::gro(&lab.node, UPLINK)? == agent::gro(&lab.router, "client0")?, "the uplink's GRO is changed");
    }
    Ok(())
}

/// Gives a pod a rule for what comes in.
fn filter(pod: &Namespace, rule: &str) -> Result<()> {
    let rules = format!("table inet pod {{\n chain input {{\n type filter hook input priority 0\n {rule}\n }}\n }}\n");
    let mut child =
        pod.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("nft")?;
    child.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A pod's own filter decides what the self-test sees, and so which rung is taken. What came by XDP has been routed
/// once, what came by the stack twice; only what was redirected bears the MAC of the host-side interface.
#[test]
fn a_rung_that_does_not_get_through_is_passed_over_with_its_reason() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    let silent = |rung: &str| format!("{rung}: no answer to the self-test");
    for (name, chosen) in [("redirect", Some("peer")), ("redirect-and-peer", Some("stack")), ("all", None)] {
        let mut lab = Lab::new("filter", Options { pods: 1, ..Options::default() })?;
        let output = lab.node.command("ip").args(["-j", "link", "show", &lab.pods[0].host_interface]).output()?;
        let link: Value = serde_json::from_slice(&output.stdout)?;
        let mac = link[0]["address"].as_str().context("no MAC")?;
        let rule = match name {
            "redirect" => format!("ether saddr {mac} ip ttl 63 drop"),
            "redirect-and-peer" => "ip ttl 63 drop".to_owned(),
            _ => "drop".to_owned(),
        };
        filter(&lab.pods[0].namespace, &rule)?;
        let services = services(&lab, &[FIRST], "auto").into_iter().filter(|service| service.vip.is_ipv4()).collect();
        let agent = start(&mut lab, services, "native")?;
        let wanted = match chosen {
            Some("peer") => silent("redirect"),
            Some(_) => [silent("redirect"), silent("peer")].join("; "),
            None => [silent("redirect"), silent("peer"), silent("stack")].join("; "),
        };
        let state = if chosen.is_some() { "ready" } else { "self-test-failed" };
        agent.wait_status(&format!("rung {chosen:?} where the pod drops {name}"), |status| {
            let backend = &backends(status, FIRST)[0];
            let right = backend["state"] == state && backend["rung"].as_str() == chosen && backend["reason"] == wanted;
            right.then_some(())
        })?;
        if chosen.is_none() {
            // The filter goes, and the pod is found without anybody's help.
            let cleared = lab.pods[0].namespace.command("nft").args(["flush", "ruleset"]).status()?;
            ensure!(cleared.success(), "nft flush ruleset: {cleared}");
            wait_ready(&agent, FIRST, &lab.pods[0].host_interface)?;
        }
        agent.stop()?;
    }
    Ok(())
}

/// Each address that does not answer takes more than half a second, in which the agent does nothing else.
#[test]
fn pods_that_do_not_answer_keep_neither_the_agent_nor_other_pods_waiting() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    const PODS: u8 = 12;
    let mut lab = Lab::new("silent", Options { pods: PODS, ..Options::default() })?;
    for pod in &lab.pods[..usize::from(PODS) - 1] {
        filter(&pod.namespace, "drop")?;
    }
    let all: Vec<u8> = (FIRST..FIRST + PODS).collect();
    let services = services(&lab, &all, "auto").into_iter().filter(|service| service.vip.is_ipv4()).collect();
    let agent = start(&mut lab, services, "native")?;
    wait_ready(&agent, FIRST + PODS - 1, &lab.pods[usize::from(PODS) - 1].host_interface)?;
    for _ in 0..3 {
        // Gives up after five seconds.
        agent.status()?;
    }
    agent.stop()
}

/// The negative control: the self-test fails where the rung does, whatever interface flags say.
#[test]
fn the_self_test_has_teeth() -> Result<()> {
    if !available("pods") {
        return Ok(());
    }
    let lab = Lab::new("teeth", Options { pods: 1, ..Options::default() })?;
    let pod = &lab.pods[0];
    let gro = |on| pod.namespace.run(|| Ethtool::open()?.set("eth0", Offload::Gro, on)).map(drop);
    lab.node.run(|| -> Result<()> {
        let sizes = Sizes::new(&Capacities::default());
        let mut object = object::load(&sizes, None)?;
        let settings = Settings { abi_version: ABI_VERSION, table_seed: 1, ..Settings::default() };
        let mut tables = Tables::new(&mut object, &sizes, settings)?;
        let links = links::snapshot(&mut Netlink::open()?)?;
        let uplink = links.by_name(UPLINK).context("no uplink")?.clone();
        let pins = lab.bpffs().join("links");
        std::fs::create_dir(&pins)?;
        let mut attached = Attached::new(pins);
        for family in Family::BOTH {
            let address = pod.addresses.of(family);
            let site = links.pod_with_address(address).context("no pod")?;
            let question = Question {
                address,
                vip: None,
                place: Place {
                    ifindex: site.host_ifindex,
                    mtu: site.mtu,
                    destination_mac: site.pod_mac,
                    source_mac: site.host_mac,
                    netns_id: None,
                    rung: Rung::Redirect,
                },
                client: ELEMENT.of(family),
                uplink: uplink.index,
                generic: false,
                uplink_mac: uplink.mac,
                port: 1,
            };
            gro(true)?;
            let mut ask = || probe::ask(&mut object, &mut tables, &sizes, &question);
            ensure!(!ask()?, "{family:?}: an answer without a return program");
            attached.attach_return(&mut object, site.host_ifindex, &site.host_name)?;
            let mut ask = || probe::ask(&mut object, &mut tables, &sizes, &question);
            ensure!(ask()?, "{family:?}: no answer where everything is right");
            gro(false)?;
            ensure!(!ask()?, "{family:?}: an answer through a veth that loses what is redirected");
            gro(true)?;
            ensure!(ask()?, "{family:?}: no answer with GRO on again");
            attached.detach(site.host_ifindex);
            // The kernel lets go of a link after a grace period.
            wait_until(&format!("no answer over {family:?} without the return program"), PATIENCE, || {
                Ok((!ask()?).then_some(()))
            })?;
        }
        Ok(())
    })
}
