//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! Rung `direct`: pods that own the VIP, sessions that no other rung carries, and who puts the VIP there.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{ABI_VERSION, Settings};
use lb_tests::{
    agent::{self, Agent, Configuration, Service, available},
    lab::{ELEMENT, Family, Lab, Namespace, Options, Pod, PodLink, UPLINK, vip, wait_until},
    programs::{
        PATIENCE,
        bird::{self, Bird, Guard, Side},
        conversation::{self, Conversation, Resets, Speaker},
    },
    scenario,
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
        links, loopback,
        netns::Netns,
    },
    plan::planner::Place,
};
use serde_json::Value;

/// Last byte of the VIP.
const VIP: u8 = 30;

/// The services of one VIP of both families before these pods.
fn services(pods: &[Pod], rung: &'static str, port: u16) -> Vec<Service> {
    let one = |family: Family| {
        let name = format!("direct-{family:?}").to_lowercase();
        scenario::service(&name, vip(VIP).of(family), "TCP", port, rung, pods, family)
    };
    Family::BOTH.map(one).into()
}

/// The configuration, with the VIPs of rung `direct` put on the pods by the agent.
fn yaml(lab: &Lab, services: Vec<Service>, assign: bool) -> String {
    let yaml = Configuration { mode: "native", services }.yaml_in(lab);
    if assign { yaml.replace("rung: direct\n", "rung: direct\n    assignVip: true\n") } else { yaml }
}

fn start(lab: &mut Lab, services: Vec<Service>, assign: bool) -> Result<Agent> {
    lab.attach_router_program()?;
    let yaml = yaml(lab, services, assign);
    Agent::start_with(lab, &yaml)
}

/// Waits until every backend is in this state, and has the VIP by this hand.
fn wait_backends(agent: &Agent, state: &str, vip_on_lo: Option<&str>) -> Result<()> {
    agent.wait_status(&format!("every backend to be {state}, the VIP by {vip_on_lo:?}"), |status| {
        let services = status["services"].as_array()?.iter();
        let mut backends = services.flat_map(|service| service["backends"].as_array().into_iter().flatten());
        let right = |backend: &Value| backend["state"] == state && backend["vipOnLo"].as_str() == vip_on_lo;
        backends.all(right).then_some(())
    })
}

/// The addresses of a namespace's `lo`, with the prefix length and the protocol that says who put each there.
fn loopback(namespace: &Namespace) -> Result<Vec<(IpAddr, u64, Option<String>)>> {
    let output = namespace.command("ip").args(["-j", "address", "show", "dev", "lo"]).output()?;
    let shown: Value = serde_json::from_slice(&output.stdout).context("ip prints no JSON")?;
    let addresses = shown[0]["addr_info"].as_array().context("no addresses")?.iter();
    let address = |info: &Value| {
        let local: IpAddr = info["local"].as_str()?.parse().ok()?;
        let protocol = info["protocol"].as_str().map(str::to_owned);
        (!local.is_loopback()).then_some((local, info["prefixlen"].as_u64()?, protocol))
    };
    Ok(addresses.filter_map(address).collect())
}

/// What of the VIP and of the settings around it is in a pod.
#[derive(Debug, PartialEq, Eq)]
struct Owned {
    v4: bool,
    v6: bool,
    arp_ignore: String,
    arp_announce: String,
}

impl Owned {
    fn of(namespace: &Namespace, last: u8) -> Result<Self> {
        let there = loopback(namespace)?;
        let has = |family: Family, length| {
            there.iter().any(|(address, prefix, _)| (*address, *prefix) == (vip(last).of(family), length))
        };
        let setting =
            |name: &str| namespace.run(|| std::fs::read_to_string(Path::new("/proc/sys/net/ipv4/conf/all").join(name)));
        Ok(Self {
            v4: has(Family::V4, 32),
            v6: has(Family::V6, 128),
            arp_ignore: setting("arp_ignore")?.trim().into(),
            arp_announce: setting("arp_announce")?.trim().into(),
        })
    }

    fn assigned() -> Self {
        Self { v4: true, v6: true, arp_ignore: "1".into(), arp_announce: "2".into() }
    }

    fn nothing() -> Self {
        Self { v4: false, v6: false, arp_ignore: "0".into(), arp_announce: "0".into() }
    }
}

fn wait_owned(namespace: &Namespace, last: u8, wanted: &Owned) -> Result<()> {
    let mut last_seen = None;
    let waited = wait_until("the pod's lo", PATIENCE, || {
        let seen = Owned::of(namespace, last)?;
        let right = seen == *wanted;
        last_seen = Some(seen);
        Ok(right.then_some(()))
    });
    waited.with_context(|| format!("seen {last_seen:?}, wanted {wanted:?}"))
}

/// A counter of the kernel's in a namespace, as `nstat` calls it.
fn counter(namespace: &Namespace, name: &str) -> Result<u64> {
    let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let pair = lines.chunks(2).find(|pair| pair[0].first() == Some(&"TcpExt:")).context("no TcpExt")?;
    let at = pair[0].iter().position(|title| *title == name).with_context(|| format!("no {name}"))?;
    Ok(pair[1][at].parse()?)
}

/// What the kernel counts where a session's segments do not pass its guard.
const fn refusals(guard: Guard) -> Option<&'static str> {
    match guard {
        Guard::None => None,
        Guard::Md5 => Some("TCPMD5Failure"),
        Guard::Ttl => Some("TCPMinTTLDrop"),
    }
}

/// Both ends of a session under a guard: the pod's BIRD, bound to the address, and the element's.
fn session(lab: &Lab, family: Family, guard: Guard, pod_end: IpAddr, target: IpAddr) -> Result<(Bird, Bird)> {
    let (element, directory) = (ELEMENT.of(family), lab.directory());
    let pod = Bird::guarded(Side::Pod(&lab.pods[0]), pod_end, element, guard, directory)?;
    let element = Bird::guarded(Side::Element(&lab.element), element, target, guard, directory)?;
    Ok((pod, element))
}

#[test]
fn bgp_with_md5_and_with_gtsm_comes_up_over_direct() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    for (pod_link, mode) in [(PodLink::Routed, "native"), (PodLink::Bridge, "generic")] {
        let mut lab = Lab::new("direct", Options { pods: 1, pod_link, ..Options::default() })?;
        lab.attach_router_program()?;
        let yaml = yaml(&lab, services(&lab.pods[..1], "direct", bird::PORT), true);
        let agent = Agent::start_with(&lab, &yaml.replace("mode: native", &format!("mode: {mode}")))?;
        wait_backends(&agent, "ready", Some("agent"))?;
        for family in Family::BOTH {
            let target = vip(VIP).of(family);
            for guard in [Guard::Md5, Guard::Ttl] {
                let (pod, element) = session(&lab, family, guard, target, target)?;
                let outcome = pod.wait_session().with_context(|| element.log_tail());
                let seen = outcome
                    .with_context(|| format!("{guard:?} over {family:?}, {pod_link:?}, {mode} mode"))
                    .with_context(|| agent.status_table().unwrap_or_default())
                    .with_context(|| agent.log_tail())?;
                ensure!(seen.neighbor == ELEMENT.of(family), "the pod saw {}", seen.neighbor);
                ensure!(seen.routes == bird::announced(family), "the pod learned {:?}", seen.routes);
            }
        }
        agent.stop()?;
    }
    Ok(())
}

/// What the rung is for: the same sessions over a rung that rewrites don't come up, and without their guard they do.
#[test]
fn bgp_with_md5_or_with_gtsm_does_not_come_up_over_redirect() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    for family in Family::BOTH {
        for guard in [Guard::None, Guard::Md5, Guard::Ttl] {
            let mut lab = Lab::new("direct", Options { pods: 1, ..Options::default() })?;
            let services = services(&lab.pods[..1], "redirect", bird::PORT);
            let agent = start(&mut lab, services, false)?;
            wait_backends(&agent, "ready", None)?;
            let own = lab.pods[0].addresses.of(family);
            let (pod, _element) = session(&lab, family, guard, own, vip(VIP).of(family))?;
            let Some(refused) = refusals(guard) else {
                pod.wait_session()?;
                continue;
            };
            wait_until(&format!("{guard:?} over {family:?} to be refused"), PATIENCE, || {
                Ok((counter(&lab.pods[0].namespace, refused)? >= 3).then_some(()))
            })?;
            ensure!(pod.session()?.is_none(), "{guard:?} over {family:?} came up over redirect");
            agent.stop()?;
        }
    }
    Ok(())
}

const PORT: u16 = 8080;

/// A session through the VIP, with data both ways.
fn open(lab: &Lab, family: Family, listener: &TcpListener) -> Result<Conversation> {
    let target = SocketAddr::new(vip(VIP).of(family), PORT);
    let mut conversation = Conversation::open(&lab.element, target, listener)?;
    conversation.exchange(Speaker::Client).and_then(|()| conversation.exchange(Speaker::Pod))?;
    Ok(conversation)
}

#[test]
fn a_session_of_an_earlier_owner_survives_the_move_of_its_slot() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    let mut lab = Lab::new("direct-drain", Options { pods: 2, ..Options::default() })?;
    let first = conversation::listen(&lab.pods[0].namespace, PORT)?;
    let second = conversation::listen(&lab.pods[1].namespace, PORT)?;
    let before = services(&lab.pods[..1], "direct", PORT);
    let mut agent = start(&mut lab, before, true)?;
    wait_backends(&agent, "ready", Some("agent"))?;
    let mut old = Vec::new();
    for family in Family::BOTH {
        for _ in 0..8 {
            old.push(open(&lab, family, &first)?);
        }
    }
    // Both pods own the VIP now, and the first gets nothing new.
    let both = yaml(&lab, services(&lab.pods, "direct", PORT), true);
    let draining = Family::BOTH.iter().fold(both, |yaml, family| {
        let backend = format!("{}\", port: {PORT}", lab.pods[0].addresses.of(*family));
        yaml.replace(&backend, &format!("{backend}, drain: true"))
    });
    agent.reload(&draining)?;
    agent.wait_status("both pods, the first draining", |status| {
        let services = status["services"].as_array()?;
        let right = |service: &Value| {
            let backends = service["backends"].as_array().map_or(&[][..], Vec::as_slice);
            backends.len() == 2
                && backends[0]["drain"] == true
                && backends[0]["slots"] == 0
                && backends.iter().all(|backend| backend["state"] == "ready")
        };
        services.iter().all(right).then_some(())
    })?;
    for family in Family::BOTH {
        open(&lab, family, &second).context("a new session goes to the second pod")?;
    }
    for (at, conversation) in old.iter_mut().enumerate() {
        for speaker in [Speaker::Pod, Speaker::Client] {
            conversation
                .exchange(speaker)
                .with_context(|| format!("session {at} of the earlier owner"))
                .with_context(|| agent.status_table().unwrap_or_default())?;
        }
    }
    ensure!(Resets::of(&lab.element)? == Resets::default(), "the element has reset connections");
    agent.stop()
}

#[test]
fn the_agent_puts_the_vip_on_the_pods_and_takes_it_away() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    const OTHER: u8 = VIP + 1;
    let mut lab = Lab::new("direct-vip", Options::default())?;
    let wanted = |lab: &Lab, pods: std::ops::Range<usize>| services(&lab.pods[pods], "direct", PORT);
    let first = wanted(&lab, 0..1);
    let mut agent = start(&mut lab, first.clone(), true)?;
    wait_backends(&agent, "ready", Some("agent"))?;
    wait_owned(&lab.pods[0].namespace, VIP, &Owned::assigned())?;
    wait_owned(&lab.pods[1].namespace, VIP, &Owned::nothing())?;
    // Another VIP takes its place.
    let mut others = first.clone();
    for (service, family) in others.iter_mut().zip(Family::BOTH) {
        service.vip = vip(OTHER).of(family);
    }
    agent.reload(&yaml(&lab, others, true))?;
    wait_owned(&lab.pods[0].namespace, OTHER, &Owned::assigned())?;
    wait_owned(&lab.pods[0].namespace, VIP, &Owned { v4: false, v6: false, ..Owned::assigned() })?;
    // Another pod takes the pod's place.
    let second = wanted(&lab, 1..2);
    agent.reload(&yaml(&lab, second.clone(), true))?;
    wait_owned(&lab.pods[0].namespace, OTHER, &Owned::nothing())?;
    wait_owned(&lab.pods[1].namespace, VIP, &Owned::assigned())?;
    // It is not to be put there any more.
    agent.reload(&yaml(&lab, second.clone(), false))?;
    wait_backends(&agent, "vip-missing", Some("missing"))?;
    wait_owned(&lab.pods[1].namespace, VIP, &Owned::nothing())?;
    let status = agent.status()?;
    let reason = status["services"][0]["backends"][0]["reason"].as_str().unwrap_or_default().to_owned();
    ensure!(reason.starts_with("VIP not on lo: ") && reason.contains("assignVip: true"), "{reason}");
    agent.reload(&yaml(&lab, second, true))?;
    wait_backends(&agent, "ready", Some("agent"))?;
    // A pod that is made anew has nothing, and gets it.
    for change in [Lab::restart_pod, Lab::move_pod] {
        change(&mut lab, 1)?;
        wait_owned(&lab.pods[1].namespace, VIP, &Owned::assigned())?;
        let interface = lab.pods[1].host_interface.clone();
        agent.wait_status("the pod to be reached again", |status| {
            let services = status["services"].as_array()?;
            let right = |service: &Value| {
                let backend = &service["backends"][0];
                backend["state"] == "ready" && backend["interface"] == interface.as_str()
            };
            services.iter().all(right).then_some(())
        })?;
    }
    agent.stop()?;
    wait_owned(&lab.pods[1].namespace, VIP, &Owned::nothing())?;
    agent::check_nothing_left(&lab)
}

#[test]
fn what_an_agent_that_crashed_left_is_taken_over_or_away() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    let mut lab = Lab::new("direct-crash", Options { pods: 1, ..Options::default() })?;
    let listener = conversation::listen(&lab.pods[0].namespace, PORT)?;
    let all = services(&lab.pods, "direct", PORT);
    let agent = start(&mut lab, all.clone(), true)?;
    wait_backends(&agent, "ready", Some("agent"))?;
    let mut sessions = vec![open(&lab, Family::V4, &listener)?, open(&lab, Family::V6, &listener)?];
    agent.kill()?;
    wait_owned(&lab.pods[0].namespace, VIP, &Owned::assigned())?;
    let agent = Agent::start_with(&lab, &yaml(&lab, all, true))?;
    wait_backends(&agent, "ready", Some("agent"))?;
    for session in &mut sessions {
        session.exchange(Speaker::Pod).and_then(|()| session.exchange(Speaker::Client)).context("the next agent")?;
    }
    agent.kill()?;
    let agent = Agent::start_with(&lab, &yaml(&lab, Vec::new(), true).replace("services:\n", "services: []\n"))?;
    wait_owned(&lab.pods[0].namespace, VIP, &Owned::nothing())?;
    agent.stop()
}

#[test]
fn an_address_that_somebody_else_put_there_is_used_and_left_alone() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    let mut lab = Lab::new("direct-other", Options { pods: 1, ..Options::default() })?;
    let (v4, v6) = (vip(VIP).v4, vip(VIP).v6);
    let put = format!("address add {v4}/32 dev lo\naddress add {v6}/128 dev lo nodad\n");
    let by_hand = Owned { v4: true, v6: true, ..Owned::nothing() };
    lab.pods[0].namespace.ip(&put)?;
    let listener = conversation::listen(&lab.pods[0].namespace, PORT)?;
    lab.attach_router_program()?;
    for assign in [true, false] {
        let agent = Agent::start_with(&lab, &yaml(&lab, services(&lab.pods, "direct", PORT), assign))?;
        wait_backends(&agent, "ready", Some("other"))?;
        open(&lab, Family::V4, &listener).and_then(|_| open(&lab, Family::V6, &listener))?;
        wait_owned(&lab.pods[0].namespace, VIP, &by_hand)?;
        if !assign {
            lab.pods[0].namespace.ip(&put.replace("add", "del").replace(" nodad", "").replace("delress", "address"))?;
            wait_backends(&agent, "vip-missing", Some("missing"))?;
            lab.pods[0].namespace.ip(&put)?;
            wait_backends(&agent, "ready", Some("other"))?;
        }
        agent.stop()?;
        ensure!(Owned::of(&lab.pods[0].namespace, VIP)? == by_hand, "the agent took what is not its own");
    }
    Ok(())
}

/// The question goes to the VIP itself, through the rung: neither a pod without it nor a veth without NAPI answers it.
#[test]
fn the_self_test_is_answered_by_a_pod_that_owns_the_vip() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    let lab = Lab::new("direct-probe", Options { pods: 1, ..Options::default() })?;
    let pod = &lab.pods[0];
    let gro = |on| pod.namespace.run(|| Ethtool::open()?.set("eth0", Offload::Gro, on)).map(drop);
    // Whatever the interface's number, the pod knows its neighbours by now.
    let answers = || Family::BOTH.into_iter().all(|family| pod.answers(&lab.node, family));
    wait_until("the pod to answer", PATIENCE, || Ok(answers().then_some(())))?;
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
        gro(true)?;
        for family in Family::BOTH {
            let address = pod.addresses.of(family);
            let site = links.pod_with_address(address).context("no pod")?;
            let vip = vip(VIP).of(family);
            let question = Question {
                address,
                vip: Some(vip),
                place: Place {
                    ifindex: site.host_ifindex,
                    mtu: site.mtu,
                    destination_mac: site.pod_mac,
                    source_mac: site.host_mac,
                    netns_id: None,
                    rung: Rung::Direct,
                },
                client: ELEMENT.of(family),
                uplink: uplink.index,
                generic: false,
                uplink_mac: uplink.mac,
                port: 1,
            };
            if !attached.contains(site.host_ifindex) {
                attached.attach_return(&mut object, site.host_ifindex, &site.host_name)?;
            }
            let mut ask = || probe::ask(&mut object, &mut tables, &sizes, &question);
            ensure!(!ask()?, "{family:?}: an answer of a pod that does not own the VIP");
            let netns = Netns::open(pod.namespace.path())?;
            loopback::assign(&netns, vip, 0)?;
            ensure!(ask()?, "{family:?}: no answer where everything is right");
            gro(false)?;
            ensure!(!ask()?, "{family:?}: an answer through a veth that loses what is redirected");
            gro(true)?;
            loopback::withdraw(&netns, vip)?;
            ensure!(!ask()?, "{family:?}: an answer after the VIP is gone");
        }
        Ok(())
    })
}

/// By default a pod names the VIP as the sender of its own questions, and a gateway that is strict about who may be
/// where does not answer them.
#[test]
fn a_strict_gateway_answers_pods_that_the_agent_gave_the_vip() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    let mut lab = Lab::new("direct-arp", Options { pods: 1, ..Options::default() })?;
    let filter = format!("net/ipv4/conf/{}/rp_filter", lab.pods[0].host_interface);
    lab.node.sysctl(&[(filter.as_str(), "1")])?;
    let v4 = || services(&lab.pods, "direct", PORT).into_iter().filter(|service| service.vip.is_ipv4()).collect();
    let all: Vec<Service> = v4();
    let pod = &lab.pods[0].namespace;
    pod.ip(&format!("address add {}/32 dev lo\n", vip(VIP).v4))?;
    pod.ip("neigh flush dev eth0\n")?;
    let agent = start(&mut lab, all.clone(), false)?;
    wait_backends(&agent, "self-test-failed", Some("other")).context("without the settings")?;
    let pod = &lab.pods[0].namespace;
    pod.sysctl(&[("net/ipv4/conf/all/arp_announce", "2")])?;
    wait_backends(&agent, "ready", Some("other")).context("with the setting")?;
    pod.sysctl(&[("net/ipv4/conf/all/arp_announce", "0")])?;
    pod.ip(&format!("address del {}/32 dev lo\n", vip(VIP).v4))?;
    pod.ip("neigh flush dev eth0\n")?;
    wait_backends(&agent, "vip-missing", Some("missing"))?;
    agent.stop()?;
    lab.pods[0].namespace.ip("neigh flush dev eth0\n")?;
    let agent = Agent::start_with(&lab, &yaml(&lab, all, true))?;
    wait_backends(&agent, "ready", Some("agent")).context("by the agent")?;
    agent.stop()
}

/// Whether a pod answers for a VIP on its link: it then refuses a connection to a port that nobody listens on.
fn answers_on_link(lab: &Lab) -> bool {
    let target = SocketAddr::new(vip(VIP).v4.into(), PORT);
    let outcome = lab.node.run(|| TcpStream::connect_timeout(&target, PATIENCE));
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// By default it does, and would draw what the whole link sends to the VIP to itself.
#[test]
fn a_pod_that_the_agent_gave_the_vip_does_not_answer_for_it_on_its_link() -> Result<()> {
    if !available("direct") {
        return Ok(());
    }
    let mut lab = Lab::new("direct-link", Options { pods: 1, pod_link: PodLink::Bridge, ..Options::default() })?;
    let v4 = vip(VIP).v4;
    lab.node.ip(&format!("route add {v4}/32 dev cni0\n"))?;
    let pod = &lab.pods[0].namespace;
    pod.ip(&format!("address add {v4}/32 dev lo\n"))?;
    ensure!(answers_on_link(&lab), "nobody asks the pod: the test proves nothing");
    pod.ip(&format!("address del {v4}/32 dev lo\n"))?;
    lab.node.ip("neigh flush dev cni0\n")?;
    let all = services(&lab.pods, "direct", PORT);
    let agent = start(&mut lab, all, true)?;
    wait_backends(&agent, "ready", Some("agent"))?;
    ensure!(!answers_on_link(&lab), "the pod answers for the VIP on its link");
    agent.stop()
}
