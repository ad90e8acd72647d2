//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! What becomes of packets that no pod has a connection for: resets, pods that vanish or come back as others, histories
//! that are not there. All others go on.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
    ops::Range,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    abi::{Bypass, BypassKey, Slot, rung},
    reason::Reason,
};
use lb_tests::{
    agent::{self, Agent, Configuration, available},
    lab::{ELEMENT, Family, Lab, Options, vip, wait_until},
    pinned::Pinned,
    programs::{
        PATIENCE,
        conversation::{self, Conversation, Speaker},
    },
};

const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
/// Of clients; below those that the kernel gives.
const PORTS: Range<u16> = 10_000..32_000;
/// Within which a session that nobody has is reset.
const RESET_LIMIT: Duration = Duration::from_secs(1);
/// For which an owner without an interface is taken to have its sessions still (docs/steering.md).
const GRACE: Duration = Duration::from_secs(30);
/// Small, so that references beyond the maps are possible.
const CAPACITIES: &str = "capacities: {services: 64, backends: 128, maglevSlots: 4096, bypasses: 256, flows: 1024}\n";

/// A backend: pod's number, and whether it drains.
type Backends<'a> = &'a [(usize, bool)];

/// A lab with an agent, and one TCP service of one family before its pods.
struct Stage {
    family: Family,
    listeners: Vec<TcpListener>,
    agent: Agent,
    pinned: Pinned,
    lab: Lab,
    used: RefCell<BTreeSet<u16>>,
}

impl Stage {
    fn new(family: Family, pods: u8, backends: Backends<'_>) -> Result<Self> {
        let mut lab = Lab::new("nobody", Options { pods, ..Options::default() })?;
        lab.attach_router_program()?;
        let listeners = lab.pods.iter().map(|pod| conversation::listen(&pod.namespace, POD_PORT));
        let listeners = listeners.collect::<Result<_>>()?;
        let agent = Agent::start_with(&lab, &yaml(&lab, family, backends))?;
        let stage = Self { family, listeners, pinned: Pinned::of(&agent), agent, lab, used: RefCell::default() };
        stage.settled(backends)?;
        Ok(stage)
    }

    fn vip(&self) -> SocketAddr {
        SocketAddr::new(vip(1).of(self.family), VIP_PORT)
    }

    fn change(&mut self, backends: Backends<'_>) -> Result<()> {
        self.agent.reload(&yaml(&self.lab, self.family, backends))?;
        self.settled(backends)
    }

    fn settled(&self, backends: Backends<'_>) -> Result<()> {
        let address = |pod: usize| self.lab.pods[pod].addresses.of(self.family).to_string();
        self.agent.wait_status("the change to be applied", |status| {
            let shown = status["services"][0]["backends"].as_array()?;
            let right = shown.len() == backends.len()
                && shown.iter().zip(backends).all(|(shown, (pod, drain))| {
                    shown["address"] == address(*pod)
                        && shown["state"] == "ready"
                        && shown["drain"] == *drain
                        && (shown["slots"] == 0) == *drain
                });
            (right && status["lastError"].is_null() && status["waiting"].is_null()).then_some(())
        })
    }

    /// A new session with this pod whose slot is as wanted.
    fn session_with(&self, pod: usize, wanted: impl Fn(u32, Slot) -> bool) -> Result<Conversation> {
        let position = self.position(pod)?;
        for port in PORTS.filter(|port| !self.used.borrow().contains(port)) {
            let (at, slot) = self.pinned.slot(self.vip(), SocketAddr::new(ELEMENT.of(self.family), port))?;
            if slot.owner == position && wanted(at, slot) {
                self.used.borrow_mut().insert(port);
                let from = &self.lab.element;
                let (mut session, place) = Conversation::open_any_from_port(from, port, self.vip(), &self.listeners)?;
                ensure!(place == pod, "the session is with pod {place}, the slot is of pod {pod}");
                session.exchange(Speaker::Client)?;
                return Ok(session);
            }
        }
        bail!("no port has such a slot of pod {pod}")
    }

    fn position(&self, pod: usize) -> Result<u16> {
        let service = self.pinned.service(self.vip())?;
        let address = self.lab.pods[pod].addresses.of(self.family);
        let backends = self.pinned.backends(&service)?;
        let at = backends.iter().position(|backend| backend.address == address.into()).context("no such backend")?;
        Ok(at as u16)
    }

    fn slot_of(&self, session: &Conversation) -> Result<(u32, Slot)> {
        self.pinned.slot(self.vip(), session.client_address()?)
    }

    fn reason(&self, name: &str) -> Result<u64> {
        let status = self.agent.status()?;
        let reasons = status["reasons"].as_array().context("no reasons")?;
        let found =
            reasons.iter().find(|reason| reason["name"] == name).with_context(|| format!("no reason {name}"))?;
        found["packets"].as_u64().context("no number")
    }

    /// Waits until a pod's backend is reached, in another generation than this one.
    fn reached_anew(&self, pod: usize, before: u32) -> Result<()> {
        let address = self.lab.pods[pod].addresses.of(self.family);
        wait_until("the pod to be reached anew", PATIENCE, || {
            let backend = self.pinned.backend(self.vip(), address)?;
            Ok((backend.generation > before && backend.rung != rung::NONE).then_some(()))
        })
        .with_context(|| self.agent.log_tail())
    }
}

fn yaml(lab: &Lab, family: Family, backends: Backends<'_>) -> String {
    let mut text = CAPACITIES.to_owned() + &Configuration { mode: "native", services: Vec::new() }.yaml_in(lab);
    let vip = vip(1).of(family);
    let _ =
        write!(text, "  - name: only\n    vip: \"{vip}\"\n    protocol: TCP\n    ports: [{VIP_PORT}]\n    backends:\n");
    for (pod, drain) in backends {
        let address = lab.pods[*pod].addresses.of(family);
        let _ = writeln!(text, "      - {{ address: \"{address}\", port: {POD_PORT}, drain: {drain} }}");
    }
    text
}

fn both(test: impl Fn(Family) -> Result<()>) -> Result<()> {
    if !available("nobody") {
        return Ok(());
    }
    Family::BOTH.into_iter().try_for_each(|family| test(family).with_context(|| format!("{family:?}")))
}

#[test]
fn a_flow_that_nobody_owns_is_reset_within_a_second() -> Result<()> {
    both(|family| {
        let mut stage = Stage::new(family, 3, &[(0, false), (1, false), (2, false)])?;
        // While it lives its slot stays a moved one.
        let mut stays = stage.session_with(0, |_, _| true)?;
        stage.change(&[(0, true), (1, false), (2, false)])?;
        let (moved_slot, slot) = stage.slot_of(&stays)?;
        ensure!(slot.history != 0, "the slot of a draining pod's session has moved");
        let gone = if stage.position(1)? == slot.owner { 1 } else { 2 };
        let in_moved = stage.session_with(gone, |at, _| at == moved_slot)?;
        let in_stable = stage.session_with(gone, |_, slot| slot.history == 0)?;
        stage.change(&[(0, true), (3 - gone, false)])?;
        for (session, has_moved) in [(in_moved, true), (in_stable, false)] {
            let (_, slot) = stage.slot_of(&session)?;
            ensure!((slot.history != 0) == has_moved, "{slot:?} where moved is {has_moved}");
            let took = session.await_reset().with_context(|| format!("moved: {has_moved}"))?;
            ensure!(took < RESET_LIMIT, "reset after {took:?}, moved: {has_moved}");
        }
        stays.exchange(Speaker::Client)?;
        stays.exchange(Speaker::Pod)?;
        stage.agent.stop()
    })
}

/// Another pod under the address of one that has just gone, in a namespace that bears the same number.
#[test]
fn a_pod_that_comes_back_as_another_has_nothing_of_the_old_one() -> Result<()> {
    both(|family| {
        let mut stage = Stage::new(family, 2, &[(0, false), (1, false)])?;
        let address = stage.lab.pods[0].addresses.of(family);
        let in_moved = stage.session_with(0, |_, _| true)?;
        let mut other = stage.session_with(1, |_, slot| slot.history == 0)?;
        let beside = Conversation::open(&stage.lab.element, SocketAddr::new(address, POD_PORT), &stage.listeners[0])?;
        stage.change(&[(0, true), (1, false)])?;
        let (moved_slot, slot) = stage.slot_of(&in_moved)?;
        ensure!(slot.history != 0, "the slot has moved");
        let before = stage.pinned.backend(stage.vip(), address)?;
        let ports = [in_moved.client_address()?.port(), beside.client_address()?.port()];

        let begun = Instant::now();
        stage.lab.unwire_pod(0)?;
        let clients = [in_moved.kill_pod_end()?, beside.kill_pod_end()?];
        drop(stage.listeners.remove(0));
        stage.lab.renew_pod(0)?;
        wait_until("the namespace's number to be free", PATIENCE, || {
            Ok((!namespace_ids(&stage.lab)?.contains(&before.netns_id)).then_some(()))
        })?;
        stage.lab.wire_pod(0)?;
        let away = begun.elapsed();
        ensure!(namespace_ids(&stage.lab)?.contains(&before.netns_id), "the number is given out again");
        stage.listeners.insert(0, conversation::listen(&stage.lab.pods[0].namespace, POD_PORT)?);
        stage.reached_anew(0, before.generation)?;
        println!("away for {away:?}, reached again after {:?}", begun.elapsed());
        stage.settled(&[(0, true), (1, false)])?;

        let after = stage.pinned.backend(stage.vip(), address)?;
        ensure!(after.netns_id == before.netns_id && after.ifindex != before.ifindex, "{before:?}, then {after:?}");
        ensure!(agent::gro(&stage.lab.pods[0].namespace, "eth0")?, "the new pod's GRO is off");
        let known = bypass_ports(&stage.pinned)?;
        ensure!(ports.iter().all(|port| !known.contains(port)), "records of the old pod: {known:?}");
        for (client, what) in clients.into_iter().zip(["through the VIP", "beside it"]) {
            let took = client.await_reset().with_context(|| what.to_owned())?;
            ensure!(took < RESET_LIMIT, "{what}: reset after {took:?}");
        }
        other.exchange(Speaker::Pod)?;
        // The new pod has no connection of the slot, whatever the old one had.
        wait_until("the old pod's slot to be pruned", PATIENCE, || {
            let client = SocketAddr::new(ELEMENT.of(family), ports[0]);
            Ok((stage.pinned.slot(stage.vip(), client)?.1.history == 0).then_some(()))
        })?;
        // And its own sessions are its own.
        stage.change(&[(0, false), (1, false)])?;
        let mut new = stage.session_with(0, |at, _| at == moved_slot)?;
        stage.change(&[(0, true), (1, false)])?;
        let moved = stage.pinned.moved_share(stage.vip())?;
        wait_until("slots without a session to be pruned", PATIENCE, || {
            Ok((stage.pinned.moved_share(stage.vip())? < moved).then_some(()))
        })?;
        ensure!(stage.slot_of(&new)?.1.history != 0, "the new pod's session is forgotten");
        new.exchange(Speaker::Client)?;
        new.exchange(Speaker::Pod)?;
        stage.agent.stop()
    })
}

/// The numbers that the node has for other namespaces.
fn namespace_ids(lab: &Lab) -> Result<BTreeSet<u32>> {
    let output = lab.node.command("ip").args(["netns", "list-id"]).output().context("ip")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_prefix("nsid ")?.split(' ').next()?.parse().ok()).collect())
}

/// The ports of clients whose connections are recorded.
fn bypass_ports(pinned: &Pinned) -> Result<Vec<u16>> {
    let map = Map::HashMap(MapData::from_pin(pinned.path("bypasses"))?);
    let bypasses: HashMap<_, BypassKey, Bypass> = map.try_into()?;
    bypasses.keys().map(|key| Ok(key?.client_port)).collect()
}

/// An agent that does nothing for a while.
struct Frozen(libc::pid_t);

impl Frozen {
    fn new(agent: &Agent) -> Result<Self> {
        let frozen = Self(agent.id() as libc::pid_t);
        frozen.send(libc::SIGSTOP)?;
        Ok(frozen)
    }

    fn send(&self, signal: i32) -> Result<()> {
        // SAFETY: takes numbers only; the agent is a child that has not been waited for.
        ensure!(unsafe { libc::kill(self.0, signal) } == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = self.send(libc::SIGCONT);
    }
}

/// The pod's kernel says yes, and its interface is not there any more. Its sessions wait for the interface, whether the
/// flow cache knows them or not.
#[test]
fn a_pod_that_vanishes_between_question_and_delivery_costs_only_its_own_packets() -> Result<()> {
    both(|family| {
        let mut stage = Stage::new(family, 2, &[(0, false), (1, false)])?;
        let mut cached = stage.session_with(0, |_, _| true)?;
        let mut uncached = stage.session_with(0, |_, _| true)?;
        let mut other = stage.session_with(1, |_, _| true)?;
        stage.change(&[(0, true), (1, false)])?;
        cached.exchange(Speaker::Client)?;
        let before = stage.pinned.backend(stage.vip(), stage.lab.pods[0].addresses.of(family))?;
        let counted = stage.reason("no_port")?;
        let frozen = Frozen::new(&stage.agent)?;
        stage.lab.unwire_pod(0)?;
        cached.say_in_vain(Duration::from_millis(300))?;
        other.exchange(Speaker::Client)?;
        other.exchange(Speaker::Pod)?;
        stage.session_with(1, |_, _| true)?;
        drop(frozen);
        // From here on the agent knows.
        stage.agent.wait_status("the agent to miss the interface", |status| {
            (status["services"][0]["backends"][0]["state"] == "no-interface").then_some(())
        })?;
        ensure!(stage.reason("no_port")? > counted, "nothing is counted under no_port");
        let counted = stage.reason("backend_unreachable")?;
        stage.pinned.wipe_flows()?;
        uncached.say_in_vain(Duration::from_millis(300))?;
        ensure!(stage.reason("backend_unreachable")? > counted, "nothing is counted under backend_unreachable");
        other.exchange(Speaker::Client)?;
        stage.session_with(1, |_, slot| slot.history != 0)?;
        // The interface is back, and so are the sessions.
        stage.lab.wire_pod(0)?;
        stage.reached_anew(0, before.generation)?;
        for session in [&mut cached, &mut uncached] {
            session.hear_late()?;
            session.exchange(Speaker::Pod)?;
            session.exchange(Speaker::Client)?;
        }
        stage.agent.stop()
    })
}

/// The flow cache has who owned the old connection, and no packet of a stable slot tells it of the new one.
#[test]
fn a_port_used_again_in_a_stable_slot_is_not_taken_for_the_old_connection() -> Result<()> {
    both(|family| {
        let mut stage = Stage::new(family, 2, &[(0, false), (1, false)])?;
        let mut old = stage.session_with(0, |_, _| true)?;
        let client = old.client_address()?;
        stage.change(&[(0, true), (1, false)])?;
        ensure!(stage.slot_of(&old)?.1.history != 0, "the slot has moved");
        old.exchange(Speaker::Client)?;
        drop(old.kill_pod_end()?);
        wait_until("the slot to be stable again", PATIENCE, || {
            Ok((stage.pinned.slot(stage.vip(), client)?.1.history == 0).then_some(()))
        })?;
        let from = &stage.lab.element;
        let (mut new, pod) = Conversation::open_any_from_port(from, client.port(), stage.vip(), &stage.listeners)?;
        ensure!(pod == 1, "pod 0 takes no new connections");
        stage.change(&[(0, false), (1, true)])?;
        let (_, slot) = stage.slot_of(&new)?;
        ensure!(slot.history != 0 && slot.owner == stage.position(0)?, "the slot is the old owner's again: {slot:?}");
        new.exchange(Speaker::Client)?;
        new.exchange(Speaker::Pod)?;
        stage.agent.stop()
    })
}

/// What stays away is given up, or its sessions would never be reset.
#[test]
fn an_earlier_owner_that_stays_away_is_given_up() -> Result<()> {
    if !available("nobody") {
        return Ok(());
    }
    let mut stage = Stage::new(Family::V4, 2, &[(0, false), (1, false)])?;
    let session = stage.session_with(0, |_, _| true)?;
    stage.change(&[(0, true), (1, false)])?;
    let begun = Instant::now();
    stage.lab.unwire_pod(0)?;
    wait_until("the owner to be given up", 2 * GRACE, || Ok((stage.slot_of(&session)?.1.history == 0).then_some(())))
        .with_context(|| stage.agent.log_tail())?;
    ensure!(begun.elapsed() >= GRACE, "given up after {:?}", begun.elapsed());
    let took = session.await_reset()?;
    ensure!(took < RESET_LIMIT, "reset after {took:?}");
    stage.agent.stop()
}

#[test]
fn a_history_that_points_nowhere_costs_only_the_sessions_of_its_slot() -> Result<()> {
    both(|family| {
        let mut stage = Stage::new(family, 3, &[(0, false), (1, false), (2, false)])?;
        let [beyond, unwritten] = [stage.session_with(0, |_, _| true)?, stage.session_with(0, |_, _| true)?];
        let mut beside = stage.session_with(0, |_, _| true)?;
        stage.change(&[(0, true), (1, false), (2, false)])?;
        let (kept_at, _) = stage.slot_of(&beside)?;
        let mut other = stage.session_with(1, |_, slot| slot.history == 0)?;
        let frozen = Frozen::new(&stage.agent)?;
        let mut corrupted = Vec::new();
        for (session, reference) in [(beyond, 60_000u16), (unwritten, 500)] {
            let (at, _) = stage.slot_of(&session)?;
            ensure!(at != kept_at, "the sessions have slots of their own");
            set_reference(&stage.pinned.path("maglev"), at, reference)?;
            let (_, slot) = stage.slot_of(&session)?;
            ensure!(slot.history == reference, "bpftool wrote {slot:?}");
            corrupted.push((at, slot.owner));
            let counted = broken_histories(&stage.pinned)?;
            // Only the current owner is known, and has not the session.
            let took = session.await_reset()?;
            ensure!(took < RESET_LIMIT, "reset after {took:?}");
            ensure!(broken_histories(&stage.pinned)? > counted, "reference {reference} is not counted");
        }
        for session in [&mut beside, &mut other] {
            session.exchange(Speaker::Client)?;
            session.exchange(Speaker::Pod)?;
        }
        // New connections of the corrupted slots.
        for (at, owner) in corrupted {
            let pod = if stage.position(1)? == owner { 1 } else { 2 };
            stage.session_with(pod, |of, _| of == at)?.exchange(Speaker::Pod)?;
        }
        drop(frozen);
        stage.agent.stop()
    })
}

fn broken_histories(pinned: &Pinned) -> Result<u64> {
    pinned.reason(Reason::BrokenHistory.index())
}

/// By hand, as in an accident.
fn set_reference(maglev: &Path, slot: u32, reference: u16) -> Result<()> {
    let bpftool = |verb: &str, more: &[String]| -> Result<String> {
        let key = (slot / 16).to_le_bytes().map(|byte| byte.to_string());
        let output = Command::new("bpftool")
            .args(["-j", "map", verb, "pinned"])
            .arg(maglev)
            .arg("key")
            .args(key)
            .args(more)
            .output()
            .context("bpftool")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "bpftool map {verb}: {text}");
        Ok(text)
    };
    let shown: serde_json::Value = serde_json::from_str(&bpftool("lookup", &[])?)?;
    let value = shown["value"].as_array().context("no value")?;
    let byte = |byte: &serde_json::Value| u8::from_str_radix(byte.as_str()?.trim_start_matches("0x"), 16).ok();
    let mut bytes = value.iter().map(byte).collect::<Option<Vec<u8>>>().context("no bytes")?;
    let at = (slot % 16) as usize * size_of::<Slot>() + 2;
    bytes[at..at + 2].copy_from_slice(&reference.to_le_bytes());
    let words = ["value".to_owned()].into_iter().chain(bytes.iter().map(u8::to_string));
    bpftool("update", &words.collect::<Vec<_>>()).map(drop)
}
