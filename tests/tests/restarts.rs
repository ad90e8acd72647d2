//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! What is recorded of datagrams, over the agent's end and the next one's start: clients that are answered late, and
//! datagrams in fragments. Sessions are in `life.rs`, client affinity in `clients.rs`, opaque pods in `opaque/`.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, available, check_nothing_left},
    clock::{HOURS, ahead},
    lab::{Family, Lab, Options, vip, wait_until},
    pinned::Pinned,
    programs::{PATIENCE, conversation::any},
    scenario::service,
};

const PORT: u16 = 514;
/// Clients of each family.
const CLIENTS: usize = 8;
/// Longer than two fragments.
const LARGE_BYTES: usize = 4000;
/// Between two datagrams in fragments.
const BEAT: Duration = Duration::from_millis(2);
/// What the last datagrams take to arrive, or not to.
const LANDING: Duration = Duration::from_secs(2);
const CAPACITIES: &str = "capacities: {services: 4, backends: 8, maglevSlots: 4096, flows: 1024, fragments: 2048}\n";
const LARGER: &str = "capacities: {services: 8, backends: 16, maglevSlots: 8192, flows: 4096, fragments: 8192}\n";

struct Scene {
    lab: Lab,
    /// In the pod behind the VIP.
    receiver: UdpSocket,
    /// They take what comes from the VIP alone.
    clients: Vec<UdpSocket>,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let mut lab = Lab::new(name, Options { pods: 1, ..Options::default() })?;
        lab.attach_router_program()?;
        let receiver = lab.pods[0].namespace.run(|| UdpSocket::bind(any(Family::V6, PORT)))?;
        receiver.set_nonblocking(true)?;
        let client = |family| -> Result<UdpSocket> {
            let client = lab.element.run(|| UdpSocket::bind(any(family, 0)))?;
            lab.element.run(|| client.connect(SocketAddr::new(vip(1).of(family), PORT)))?;
            client.set_nonblocking(true)?;
            Ok(client)
        };
        let clients = Family::BOTH.into_iter().cycle().take(2 * CLIENTS).map(client).collect::<Result<_>>()?;
        Ok(Self { lab, receiver, clients })
    }

    /// Starts an agent whose clock is so far ahead, and waits until the pod is reached.
    fn start(&self, capacities: &str, clock: Duration) -> Result<Agent> {
        let one =
            |family| service(&format!("{family:?}"), vip(1).of(family), "UDP", PORT, "auto", &self.lab.pods, family);
        let services = Family::BOTH.map(one).into();
        let yaml = Configuration { mode: "native", services }.yaml_in(&self.lab) + capacities;
        let agent = Agent::start_as(&self.lab, &yaml, |command| ahead(command, clock))?;
        agent.wait_status("the pod to be reached", |status| {
            let services = status["services"].as_array()?;
            let ready = services.iter().filter(|service| service["backends"][0]["state"] == "ready").count();
            (ready == Family::BOTH.len()).then_some(())
        })?;
        Ok(agent)
    }
}

#[test]
fn answers_that_come_when_another_agent_runs_leave_from_the_vip() -> Result<()> {
    if !available("restarts") {
        return Ok(());
    }
    let scene = Scene::new("late")?;
    let mut agent = scene.start(CAPACITIES, Duration::ZERO)?;
    let mut asked: Vec<SocketAddr> = Vec::new();
    for client in &scene.clients {
        client.send(b"question")?;
        asked.push(wait_until("a question in the pod", PATIENCE, || {
            Ok(scene.receiver.recv_from(&mut [0; 16]).ok().map(|(_, from)| from))
        })?);
    }
    let answer = |text: &[u8]| asked.iter().try_for_each(|client| scene.receiver.send_to(text, client).map(drop));
    for (what, capacities, clock) in
        [("a clock ahead", CAPACITIES, HOURS), ("a clock behind, and larger", LARGER, Duration::ZERO)]
    {
        agent.kill()?;
        agent = scene.start(capacities, clock)?;
        // By then it has looked at all records.
        agent.wait_age(2)?;
        answer(what.as_bytes())?;
        for client in &scene.clients {
            let mut bytes = [0; 32];
            let heard = || Ok(client.recv(&mut bytes).ok());
            let length = wait_until("an answer from the VIP", PATIENCE, heard).context(what)?;
            ensure!(&bytes[..length] == what.as_bytes(), "another answer");
        }
    }
    // The records are what does it.
    let pinned = Pinned::of(&agent);
    pinned.wipe_flows()?;
    let unrecorded = || pinned.reason(lb_common::reason::Reason::Unrecorded.index());
    let before = unrecorded()?;
    answer(b"lost")?;
    wait_until("answers without a record to be counted", PATIENCE, || {
        Ok((unrecorded()? == before + 2 * CLIENTS as u64).then_some(()))
    })?;
    ensure!(scene.clients.iter().all(|client| client.recv(&mut [0; 16]).is_err()), "an answer from the VIP");
    agent.stop()?;
    check_nothing_left(&scene.lab)
}

/// Sends datagrams in fragments, which the pod answers, while something happens. How many were sent, arrived, and came
/// back.
fn meanwhile(scene: &Scene, happens: impl FnOnce() -> Result<()>) -> Result<[u64; 3]> {
    let [sent, arrived, answers] = [const { AtomicU64::new(0) }; 3];
    let [enough, end] = [const { AtomicBool::new(false) }; 2];
    let count = |counter: &AtomicU64| counter.fetch_add(1, Relaxed);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for client in scene.clients.iter().cycle().take_while(|_| !enough.load(Relaxed)) {
                if client.send(&[7; LARGE_BYTES]).is_ok() {
                    count(&sent);
                }
                thread::sleep(BEAT);
            }
        });
        scope.spawn(|| {
            let mut bytes = [0; LARGE_BYTES];
            while !end.load(Relaxed) {
                while let Ok((LARGE_BYTES, from)) = scene.receiver.recv_from(&mut bytes) {
                    count(&arrived);
                    // A lost answer is found by its absence.
                    let _ = scene.receiver.send_to(&bytes, from);
                }
                for client in &scene.clients {
                    while client.recv(&mut bytes).is_ok_and(|length| length == LARGE_BYTES) {
                        count(&answers);
                    }
                }
                thread::sleep(BEAT / 2);
            }
        });
        let happened = happens();
        enough.store(true, Relaxed);
        sender.join().expect("it does not panic");
        let counted = || [&sent, &arrived, &answers].map(|counter| counter.load(Relaxed));
        // Where some are missing that shows in the counters.
        let _ = wait_until("what was sent to come back", LANDING, || {
            let [sent, arrived, answers] = counted();
            Ok((sent == arrived && sent == answers).then_some(()))
        });
        end.store(true, Relaxed);
        happened.map(|()| counted())
    })
}

#[test]
fn datagrams_in_fragments_arrive_while_one_agent_follows_another() -> Result<()> {
    if !available("restarts") {
        return Ok(());
    }
    let scene = Scene::new("fragments")?;
    let mut agent = Some(scene.start(CAPACITIES, Duration::ZERO)?);
    // Other capacities are other maps: a datagram whose first fragment is in those of before is lost with its others.
    for (capacities, may_lose) in [(CAPACITIES, false), (LARGER, true)] {
        let [sent, arrived, answers] = meanwhile(&scene, || {
            agent.take().context("it runs")?.kill()?;
            agent = Some(scene.start(capacities, Duration::ZERO)?);
            Ok(())
        })?;
        println!("{sent} datagrams, {arrived} arrived, {answers} answers");
        ensure!(sent > 100, "only {sent} datagrams");
        let least = if may_lose { sent - sent / 20 } else { sent };
        ensure!(arrived >= least && answers >= least, "{sent} datagrams, {arrived} arrived, {answers} answers");
    }
    agent.context("it runs")?.stop()?;
    check_nothing_left(&scene.lab)
}
