//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! The address of a backend that another pod has within a second: what is new comes to that one alone, and what is old
//! ends.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, Service, available, check_nothing_left},
    lab::{Family, Lab, Options, Pair, Pod, PodLink, vip, wait_until},
    pinned::Pinned,
    programs::{
        PATIENCE,
        conversation::{self, Conversation, Speaker, any},
    },
};
use lb_userspace::net::{Netlink, links};

const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
/// Between two datagrams of a client.
const BEAT: Duration = Duration::from_millis(1);
/// Datagrams that show where they come to.
const DATAGRAMS: u64 = 100;
/// Sessions of each family, before and after.
const SESSIONS: usize = 4;
/// Pods by their place: who has the address, who gets it where that is another one of the lab, and who never has it.
const OLD: usize = 0;
const NEW: usize = 1;
const OTHER: usize = 2;

/// How the address moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// The pod is deleted, and comes again: another namespace, another veth, another MAC. Twice in a row.
    Deleted,
    /// The other pod is there while the first one still is.
    Beside,
    /// Another pod that is served already gets the address on the interface that it has.
    Taken,
}

/// What listens in a pod.
struct Inside {
    listener: TcpListener,
    /// At an address each, so that answers leave from there.
    receivers: [UdpSocket; 2],
}

impl Inside {
    fn new(pod: &Pod, addresses: Pair) -> Result<Self> {
        let listener = conversation::listen(&pod.namespace, POD_PORT)?;
        let [v4, v6] = Family::BOTH.map(|family| -> Result<UdpSocket> {
            let receiver = pod.namespace.run(|| UdpSocket::bind((addresses.of(family), POD_PORT)))?;
            receiver.set_nonblocking(true)?;
            Ok(receiver)
        });
        Ok(Self { listener, receivers: [v4?, v6?] })
    }

    /// Answers what has arrived, and counts it by family.
    fn answer(&self) -> [u64; 2] {
        let mut bytes = [0; 8];
        self.receivers.each_ref().map(|receiver| {
            let mut counted = 0;
            while let Ok((_, from)) = receiver.recv_from(&mut bytes) {
                counted += 1;
                // A lost answer is found by its absence.
                let _ = receiver.send_to(&bytes, from);
            }
            counted
        })
    }

    fn check_untouched(&self, whose: &str) -> Result<()> {
        let datagrams = self.answer();
        ensure!(datagrams == [0; 2], "{whose} has got {datagrams:?} datagrams");
        let accepted = self.listener.accept();
        ensure!(accepted.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{whose} has got a connection");
        Ok(())
    }
}

/// Services of both protocols before the first pod and before the others that have addresses of their own.
fn services(lab: &Lab, way: Way) -> Vec<Service> {
    let pods = [OLD, OTHER, NEW].into_iter().take(if way == Way::Taken { 3 } else { 2 });
    let all = pods.flat_map(|pod| Family::BOTH.map(|family| (pod, family)));
    let before = |(pod, family): (usize, Family), protocol| {
        let name = format!("pod{pod}-{protocol}-{family:?}").to_lowercase();
        let vip = vip(1 + pod as u8).of(family);
        let backend = SocketAddr::new(lab.pods[pod].addresses.of(family), POD_PORT);
        Service { name, vip, protocol, port: VIP_PORT, replies: None, rung: "auto", backends: vec![backend] }
    };
    all.flat_map(|one| ["TCP", "UDP"].map(|protocol| before(one, protocol))).collect()
}

fn target(family: Family) -> SocketAddr {
    SocketAddr::new(vip(1).of(family), VIP_PORT)
}

/// Waits until the maps lead to this pod, and all that was to be written with them is.
fn wait_in_force(lab: &Lab, agent: &Agent, pod: usize) -> Result<()> {
    let (addresses, host_interface) = (lab.pods[OLD].addresses, &lab.pods[pod].host_interface);
    let links = lab.node.run(|| links::of_node(&mut Netlink::open()?))?;
    let link = links.iter().find(|link| link.name == *host_interface).context("the pod has no interface")?;
    let pinned = Pinned::of(agent);
    wait_until("the maps to lead to the pod", PATIENCE, || {
        // One that no rung reaches says no address.
        let leads = |family| {
            let backend = pinned.backend(target(family), addresses.of(family));
            backend.is_ok_and(|backend| backend.ifindex == link.index)
        };
        Ok(Family::BOTH.into_iter().all(leads).then_some(()))
    })
    .with_context(|| agent.log_tail())?;
    agent.wait_status("every service of the address to be ready", |status| {
        let vips = Family::BOTH.map(|family| target(family).ip().to_string());
        let ours = status["services"].as_array()?.iter().filter(|one| vips.iter().any(|vip| one["vip"] == *vip));
        let ready = ours.filter(|service| service["backends"][0]["state"] == "ready").count();
        // Both protocols of both families.
        (ready == 4).then_some(())
    })
}

/// Sends from each client in turn.
fn speak(clients: &[UdpSocket; 2], end: &AtomicBool) {
    let mut number = 0u64;
    while !end.load(Relaxed) {
        for client in clients {
            // What an ICMP error has left at the socket is reported once; the next one is sent.
            let _ = client.send(&number.to_ne_bytes());
        }
        number += 1;
        thread::sleep(BEAT);
    }
}

/// Waits until both clients' datagrams come to this pod, and its answers to them from the VIP.
fn wait_datagrams(clients: &[UdpSocket; 2], inside: &Inside) -> Result<()> {
    let (mut arrived, mut answers) = ([0; 2], [0; 2]);
    wait_until("datagrams in the pod, and answers from the VIP", PATIENCE, || {
        let more = inside.answer();
        for (family, client) in clients.iter().enumerate() {
            arrived[family] += more[family];
            while client.recv(&mut [0; 8]).is_ok() {
                answers[family] += 1;
            }
        }
        Ok(arrived.iter().chain(&answers).all(|count| *count >= DATAGRAMS).then_some(()))
    })
    .with_context(|| format!("{arrived:?} datagrams, {answers:?} answers"))
}

fn open(lab: &Lab, inside: &Inside) -> Result<Vec<Conversation>> {
    let all = Family::BOTH.into_iter().flat_map(|family| [family; SESSIONS]);
    let open = |family| {
        let mut session = Conversation::open(&lab.element, target(family), &inside.listener)?;
        Speaker::BOTH.into_iter().try_for_each(|speaker| session.exchange(speaker))?;
        Ok(session)
    };
    all.map(open).collect()
}

/// A client of each family.
fn clients(lab: &Lab) -> Result<[UdpSocket; 2]> {
    let [v4, v6] = Family::BOTH.map(|family| -> Result<UdpSocket> {
        let client = lab.element.run(|| UdpSocket::bind(any(family, 0)))?;
        lab.element.run(|| client.connect(target(family)))?;
        client.set_nonblocking(true)?;
        Ok(client)
    });
    Ok([v4?, v6?])
}

/// Takes the address from an interface of a pod, or gives it to one; the route leads there.
fn reassign(lab: &Lab, verb: &str, pod: usize) -> Result<()> {
    let Pair { v4, v6 } = lab.pods[OLD].addresses;
    let Pod { host_interface, namespace, .. } = &lab.pods[pod];
    namespace.ip(&format!("address {verb} {v4}/32 dev eth0\naddress {verb} {v6}/128 dev eth0 nodad\n"))?;
    lab.node.ip(&format!("route {verb} {v4}/32 dev {host_interface}\nroute {verb} {v6}/128 dev {host_interface}\n"))
}

fn moves(way: Way, pod_link: PodLink) -> Result<()> {
    if !available("address_moves") {
        return Ok(());
    }
    let mut lab = Lab::new("moves", Options { pods: 3, pod_link, ..Options::default() })?;
    if way == Way::Beside {
        lab.unwire_pod(NEW)?;
        lab.pods[NEW].addresses = lab.pods[OLD].addresses;
    }
    let services = services(&lab, way);
    let agent = Agent::start(&mut lab, &Configuration { mode: "native", services })?;
    wait_in_force(&lab, &agent, OLD)?;
    let clients = clients(&lab)?;
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| speak(&clients, &end));
        let result = under_traffic(&mut lab, &agent, way, &clients);
        end.store(true, Relaxed);
        result
    })?;
    agent.stop()?;
    check_nothing_left(&lab)
}

fn under_traffic(lab: &mut Lab, agent: &Agent, way: Way, clients: &[UdpSocket; 2]) -> Result<()> {
    let addresses = lab.pods[OLD].addresses;
    let first = Inside::new(&lab.pods[OLD], addresses)?;
    let other = Inside::new(&lab.pods[OTHER], lab.pods[OTHER].addresses)?;
    let (mut sessions, mut widows) = (open(lab, &first)?, Vec::new());
    wait_datagrams(clients, &first)?;
    let mut old = Some(first);
    let begun = Instant::now();
    let at = match way {
        Way::Deleted => {
            lab.unwire_pod(OLD)?;
            // These keep the namespace; nothing that they say gets out any more.
            old = None;
            widows = sessions.drain(..).map(Conversation::kill_pod_end).collect::<Result<Vec<_>>>()?;
            lab.renew_pod(OLD)?;
            lab.wire_pod(OLD)?;
            lab.restart_pod(OLD)?;
            OLD
        }
        Way::Beside => {
            lab.wire_pod(NEW)?;
            NEW
        }
        Way::Taken => {
            reassign(lab, "del", OLD)?;
            reassign(lab, "add", NEW)?;
            NEW
        }
    };
    let new = Inside::new(&lab.pods[at], addresses)?;
    let moved = begun.elapsed();
    wait_in_force(lab, agent, at)?;
    println!("{way:?}: the address has moved after {moved:.0?}, in force after {:.0?}", begun.elapsed());
    // What came while the change was not in force yet.
    let before = old.as_ref().map(Inside::answer);
    wait_datagrams(clients, &new)
        .with_context(|| format!("{before:?} datagrams came to the old pod meanwhile"))
        .with_context(|| agent.log_tail())?;
    let mut fresh = open(lab, &new)?;
    for ended in widows {
        ended.await_reset().context("a session of the old pod")?;
    }
    for ended in sessions {
        ended.await_reset().context("a session of the old pod")?;
    }
    old.iter().try_for_each(|old| old.check_untouched("the old pod"))?;
    if way == Way::Beside {
        lab.unwire_pod(OLD)?;
        agent.wait_status("the old pod's interface to be released", |status| {
            let mut programs = status["programs"].as_array()?.iter();
            programs.all(|program| program["interface"] != lab.pods[OLD].host_interface).then_some(())
        })?;
        wait_datagrams(clients, &new).context("the old pod is gone")?;
    }
    for session in &mut fresh {
        Speaker::BOTH.into_iter().try_for_each(|speaker| session.exchange(speaker))?;
    }
    other.check_untouched("a pod of another service")
}

#[test]
fn a_pod_that_is_deleted_and_comes_again_at_once_gets_what_is_new_and_ends_what_is_old() -> Result<()> {
    moves(Way::Deleted, PodLink::Routed)
}

#[test]
fn a_pod_beside_an_old_one_with_the_same_address_gets_what_is_new_and_ends_what_is_old() -> Result<()> {
    moves(Way::Beside, PodLink::Bridge)
}

#[test]
fn a_served_pod_that_takes_anothers_address_gets_what_is_new_and_ends_what_is_old() -> Result<()> {
    moves(Way::Taken, PodLink::Routed)
}
