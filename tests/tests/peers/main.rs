//! Privileged: makes network namespaces, loads programs into the kernel, mounts bpffs, and runs BIRD.
//!
//! The agent tells a router where VIPs are: by BGP, watched by BFD, from its configuration.

mod lab;
mod said;
mod stops;

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, Service, available, check_nothing_left, detach},
    lab::{Family, Lab, Namespace, ROUTER_END, Transport, UPLINK, wait_until},
    programs::{
        PATIENCE,
        bird::Bird,
        conversation::{self, Conversation, Speaker},
        prober::{Prober, Responder, who_answers},
    },
};
use serde_json::{Value, json};

use lab::*;

#[test]
fn a_router_learns_vips_while_a_backend_can_be_reached() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab("learns")?;
    let bird = router(&lab, "tor", "ttl security on;", "")?;
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let peer = ", gtsm: 1, communities: ['64512:100'], largeCommunities: ['64512:1:2'], med: 7, linkBandwidth: 125000000, \
         linkBandwidthType: transitive";
    let mut agent = Agent::start_with(&lab, &yaml(&lab, true, &bgp(peer)))?;
    let routes = wait_routes(&bird, 2)?;
    // Of the link bandwidth the type is 4, the AS 64512, and the last number 125,000,000 as a floating point one has it.
    for words in
        ["(64512,100)", "(64512, 1, 2)", "BGP.med: 7", "BGP.as_path: 64512", "(unknown 0x4, 64512, 1290693416)"]
    {
        ensure!(routes.contains(words), "{words} is not in\n{routes}");
    }
    wait_state(&agent, "established")?;
    for family in Family::BOTH {
        let target = SocketAddr::new(vip(family), VIP_PORT);
        let mut session = wait_until("the router's kernel to know the way", PATIENCE, || {
            Ok(Conversation::open(&lab.element, target, &listener).ok())
        })?;
        session.exchange(Speaker::Pod)?;
    }

    // Without a backend it is withdrawn, and the session stays.
    agent.reload(&yaml(&lab, false, &bgp(peer)))?;
    wait_routes(&bird, 0)?;
    agent.wait_status("a reason", |status| (against(status, vip(Family::V4))? == ["no_backends"]).then_some(()))?;
    // It flapped, and has to be well for a second.
    agent.reload(&yaml(&lab, true, &bgp(peer)))?;
    agent
        .wait_status("to be held down", |status| (against(status, vip(Family::V4))? == ["held_down"]).then_some(()))?;
    wait_routes(&bird, 2)?;
    ensure!(wait_state(&agent, "established")?["established"] == 1, "the session was begun anew");
    agent.stop()?;
    wait_routes(&bird, 0)?;
    check_nothing_left(&lab)
}

/// `more` of the agent's peer, `lines` of the router's, and `kind` of session in the router's BFD.
fn hangs(name: &str, more: &str, lines: &str, kind: &str) -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab(name)?;
    let pace = format!("protocol bfd {{ {kind} {{ interval 100 ms; multiplier 3; }}; }}");
    let bird = router(&lab, "tor", &format!("bfd on; {lines}"), &pace)?;
    let _listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut agent = Agent::start_with(&lab, &yaml(&lab, true, &bgp(&format!(", bfd: fast{more}"))))?;
    wait_routes(&bird, 2)?;
    agent.wait_status("BFD to be up", |status| (status["announce"]["bfd"][0]["state"] == "up").then_some(()))?;
    // Longer than any detection time, far shorter than the hold time.
    agent.signal(libc::SIGSTOP)?;
    wait_routes(&bird, 0)?;
    agent.signal(libc::SIGCONT)?;
    wait_routes(&bird, 2)?;
    let peer = wait_state(&agent, "established")?;
    ensure!(peer["established"] == 2, "{peer:#}");
    agent.wait_status("BFD to be up again", |status| {
        let session = &status["announce"]["bfd"][0];
        (session["state"] == "up" && session["ups"] == 2).then_some(())
    })?;
    agent.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn a_hung_agent_is_missed_by_bfd() -> Result<()> {
    hangs("hung", "", "", "interface \"*\"")
}

#[test]
fn a_hung_agent_is_missed_by_multihop_bfd() -> Result<()> {
    hangs("far", ", multihop: 3", "multihop 3;", "multihop")
}

/// Frames that the router has sent towards the node.
fn frames_to_node(lab: &Lab) -> Result<u64> {
    let read = lab.router.command("ip").args(["-s", "-j", "link", "show", ROUTER_END]).output()?;
    let links: Value = serde_json::from_slice(&read.stdout)?;
    links[0]["stats64"]["tx"]["packets"].as_u64().context("no count of packets")
}

/// Sends them to a VIP, and counts until no more come.
fn frames_for_ten_datagrams(lab: &Lab, family: Family) -> Result<u64> {
    let any = match family {
        Family::V4 => "0.0.0.0:0",
        Family::V6 => "[::]:0",
    };
    let before = frames_to_node(lab)?;
    lab.element.run(|| -> Result<()> {
        let socket = UdpSocket::bind(any)?;
        for _ in 0..10 {
            socket.send_to(b"around and around", SocketAddr::new(vip(family), 162))?;
        }
        Ok(())
    })?;
    let mut last = 0;
    wait_until("the datagrams to come to rest at the node", PATIENCE, || {
        let frames = frames_to_node(lab)? - before;
        let rests = frames >= 10 && frames < last + 5;
        last = frames;
        Ok(rests.then_some(frames))
    })
}

#[test]
fn a_packet_for_a_vip_whose_program_is_gone_does_not_come_back() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab("loop")?;
    let bird = router(&lab, "tor", "graceful restart on;", "")?;
    let yaml = yaml(&lab, true, &bgp(", gracefulRestart: 60s"));
    let agent = Agent::start_with(&lab, &yaml)?;
    wait_routes(&bird, 2)?;
    // Also where nothing of before was there: peers may have routes from before a start of the machine.
    let peer = bird.control(&["show", "protocols", "all", "node"])?;
    ensure!(peer.contains("Restart recovery"), "bit R is not set: {peer}");
    // Without an agent and without a program, while the router keeps its routes: the kernel gets what comes.
    let pins = agent.pins();
    agent.kill()?;
    for link in fs::read_dir(pins.join("links"))? {
        fs::remove_file(link?.path())?;
    }
    wait_until("the program to be gone", PATIENCE, || {
        let shown = lab.node.command("ip").args(["link", "show", UPLINK]).output()?;
        Ok((!String::from_utf8_lossy(&shown.stdout).contains("prog/xdp")).then_some(()))
    })?;
    wait_routes(&bird, 2)?;
    for family in Family::BOTH {
        let frames = frames_for_ten_datagrams(&lab, family)?;
        // Each came once; what else there is are the two sides' neighbour questions and BGP.
        ensure!(frames < 40, "{family:?}: {frames} frames for ten datagrams");
    }
    let rules = lab.node.command("ip").args(["rule", "show"]).output()?;
    ensure!(String::from_utf8_lossy(&rules.stdout).contains("lookup 16081"), "no rule: {rules:?}");
    // Without the rules each goes around until its TTL ends.
    for (family, command) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let delete = lab.node.command("ip").args([command, "rule", "delete", "priority", "90"]).output()?;
        ensure!(delete.status.success(), "{delete:?}");
        let frames = frames_for_ten_datagrams(&lab, family)?;
        ensure!(frames > 200, "{family:?}: {frames} frames for ten datagrams without a rule");
    }
    detach(&lab)?;
    let rules = lab.node.command("ip").args(["rule", "show"]).output()?;
    ensure!(!String::from_utf8_lossy(&rules.stdout).contains("16081"), "still there: {rules:?}");
    check_nothing_left(&lab)
}

/// Restarts the agent by `end` under traffic that only BGP's routes lead, and fails where a datagram is lost or the router forgets a
/// route for a moment.
fn restarts(name: &str, peer: &str, lines: &str, bfd: &str, end: impl FnOnce(Agent) -> Result<()>) -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab(name)?;
    let bird = router(&lab, "tor", lines, bfd)?;
    let service = Service {
        name: "traps".to_owned(),
        vip: vip(Family::V4),
        protocol: "UDP",
        port: VIP_PORT,
        replies: None,
        rung: "auto",
        backends: vec![SocketAddr::new(lab.pods[0].addresses.v4.into(), POD_PORT)],
    };
    let _echo = Responder::start(&lab.pods[0].namespace, service.backends[0], 0)?;
    let announce = bgp(peer).replace("shutdownWait: 1s", "stop: graceful");
    let yaml = Configuration { mode: "native", services: vec![service] }.yaml_in(&lab);
    let yaml = format!("{yaml}announce: {announce}\n");
    let agent = Agent::start_with(&lab, &yaml)?;
    wait_routes(&bird, 1)?;
    wait_until("the router's kernel to know the way", PATIENCE, || {
        who_answers(&lab.element, vip(Family::V4), VIP_PORT)
    })?;
    let prober = Prober::start(&lab.element, SocketAddr::new(vip(Family::V4), VIP_PORT))?;
    end(agent)?;
    let agent = Agent::start_with(&lab, &yaml)?;
    wait_state(&agent, "established")?;
    wait_until("the restarted node's own route, no longer stale", PATIENCE, || {
        let shown = bird.control(&["show", "protocols", "all", "node"])?;
        Ok((shown.contains("BGP state:          Established") && !shown.contains("Neighbor graceful restart active"))
            .then_some(()))
    })?;
    wait_routes(&bird, 1)?;
    let probe = prober.stop();
    let (sent, lost, when) = (probe.sent.len(), probe.lost(), probe.lost_before_end());
    let logs = || format!("{}\n{}", bird.log_tail(), agent.log_tail());
    ensure!(lost == 0 && sent > 500, "{lost} of {sent} datagrams were lost, {when:?} before the end\n{}", logs());
    let status = wait_state(&agent, "established")?;
    ensure!(status["established"] == 1, "{status:#}");
    agent.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn a_graceful_restart_loses_nothing_and_the_router_keeps_its_routes() -> Result<()> {
    restarts("graceful", ", gracefulRestart: 60s", "graceful restart on;", "", Agent::end)
}

#[test]
fn an_agent_that_is_killed_and_started_anew_loses_nothing_with_graceful_restart() -> Result<()> {
    restarts("killed", ", gracefulRestart: 60s", "graceful restart on;", "", Agent::kill)
}

#[test]
fn a_router_with_bfd_graceful_keeps_routes_of_a_node_that_restarts() -> Result<()> {
    let bfd = "protocol bfd { interface \"*\" { interval 100 ms; multiplier 3; }; }";
    restarts("bfd", ", gracefulRestart: 60s, bfd: fast", "graceful restart on; bfd graceful;", bfd, Agent::end)
}

/// The link-local address of an interface.
fn link_local(namespace: &Namespace, interface: &str) -> Result<String> {
    wait_until(&format!("the link-local address of {interface}"), PATIENCE, || {
        let shown =
            namespace.command("ip").args(["-6", "-o", "address", "show", interface, "scope", "link"]).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        Ok(shown.split_whitespace().find_map(|word| Some(word.strip_suffix("/64")?.to_owned())))
    })
}

#[test]
fn a_router_that_advertises_itself_is_a_peer_by_its_interface_alone() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab("unnumbered")?;
    let configuration = format!(
        "router id 198.51.100.1;\n\
         protocol device {{ scan time 1; }}\n\
         protocol radv {{ interface \"{ROUTER_END}\" {{ max ra interval 4; min delay 3; }}; }}\n\
         protocol bgp node {{\n\
           local as 64513;\n\
           neighbor {}%{ROUTER_END} as 64512;\n\
           connect delay time 1; connect retry time 1; error wait time 1, 1;\n\
           ipv4 {{ import all; export none; extended next hop on; }};\n\
           ipv6 {{ import all; export none; }};\n\
         }}\n",
        link_local(&lab.node, UPLINK)?
    );
    let bird = Bird::router(&lab.router, "tor", &configuration, lab.directory())?;
    let announce = format!(
        "{{ bgp: {{ localAs: 64512, shutdownWait: 0s, peers: [{{ name: tor, interface: {UPLINK}, as: external }}] }} }}"
    );
    let agent = Agent::start_with(&lab, &yaml(&lab, true, &announce))?;
    let routes = wait_routes(&bird, 2)?;
    ensure!(routes.contains("BGP.next_hop: "), "{routes}");
    let peer = wait_state(&agent, "established")?;
    let router = link_local(&lab.router, ROUTER_END)?;
    ensure!(peer["address"] == router.as_str() && peer["peerAs"] == 64513, "{peer:#}");
    agent.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn a_daemon_that_has_our_ports_is_named_and_peers_are_dialled_until_it_ends() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab("taken")?;
    let bird = router(&lab, "tor", "passive on; bfd on;", "protocol bfd { interface \"*\"; }")?;
    // It holds BGP's port at every address, and those of BFD.
    let other = "router id 198.51.100.10; protocol device {} protocol bfd { interface \"*\"; } \
                 protocol bgp third { local 198.51.100.10 as 64900; neighbor 198.51.100.99 as 64901; passive on; bfd on; ipv4 { import none; export none; }; }";
    let other = Bird::router(&lab.node, "other", other, lab.directory())?;
    lab.node.wait_listening(Transport::Tcp, 179, PATIENCE)?;
    let agent = Agent::start_with(&lab, &yaml(&lab, true, &bgp(", bfd: fast")))?;
    wait_routes(&bird, 2)?;
    agent.wait_status("both ports to be named as taken", |status| {
        let announce = &status["announce"];
        let problem = announce["bgp"][0]["problems"][0].as_str()?;
        let of_bfd = announce["bfd"][0]["problem"].as_str()?;
        let is_named = |text: &str| text.contains(&format!("bird (pid {})", other.id()));
        (problem.contains("198.51.100.10:179") && is_named(problem) && is_named(of_bfd)).then_some(())
    })?;

    // Once it has ended both are ours, without anybody's doing.
    other.stop()?;
    agent.wait_status("both ports to be ours", |status| {
        let announce = &status["announce"];
        let is_ours =
            announce["bgp"][0]["listening"] == "198.51.100.10:179" && announce["bgp"][0]["problems"] == json!([]);
        (is_ours && announce["bfd"][0]["state"] == "up").then_some(())
    })?;
    agent.stop()?;
    check_nothing_left(&lab)
}

#[test]
fn a_password_stands_in_a_file_and_nowhere_else() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    const SECRET: &str = "hunter2-of-the-tor";
    let lab = lab("password")?;
    let bird = router(&lab, "tor", &format!("password \"{SECRET}\";"), "")?;
    let file = lab.directory().join("tor.password");
    let announce = bgp(&format!(", passwordFile: {}", file.display()));
    let refusal = Agent::refusal(&lab, &yaml(&lab, true, &announce), |command| command)?;
    for part in ["line ", ": BGP peer tor: the password in", "No such file"] {
        ensure!(refusal.contains(part), "{refusal}");
    }
    fs::write(&file, format!("not {SECRET}\n"))?;
    let mut agent = Agent::start_with(&lab, &yaml(&lab, true, &announce))?;
    agent.wait_status("the passwords to differ", |status| {
        let problems = status["announce"]["bgp"][0]["problems"].as_array()?;
        problems.iter().any(|problem| problem.as_str().is_some_and(|text| text.contains("MD5"))).then_some(())
    })?;
    agent.wait_status("a reason at the VIP", |status| {
        (against(status, vip(Family::V4))? == ["no_session"]).then_some(())
    })?;
    fs::write(&file, "x".repeat(81))?;
    agent.hangup()?;
    agent.wait_status("a refusal", |status| status["lastError"].as_str()?.contains("81 octets").then_some(()))?;
    fs::write(&file, format!("{SECRET}\n"))?;
    agent.hangup()?;
    wait_routes(&bird, 2)?;
    let said = format!("{}\n{}", agent.status()?, agent.log().join("\n"));
    ensure!(!said.contains("hunter2"), "{said}");
    agent.stop()?;
    check_nothing_left(&lab)
}
