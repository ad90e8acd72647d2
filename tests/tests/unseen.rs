//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! What has changed while no agent ran, pods, uplinks and the file: the next agent adopts what is there, and all of it
//! is as it is now. Sessions of what has not changed go on.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    agent::{Agent, Configuration, available, check_nothing_left},
    lab::{Family, Lab, Options, UPLINK, vip},
    pinned::Pinned,
    programs::conversation::{self, Conversation, Speaker},
    scenario::service,
};
use serde_json::Value;

const PORT: u16 = 8080;
const PODS: u8 = 3;
/// A VIP by its last byte, and the pods behind it.
type Service<'a> = (u8, &'a [usize]);
/// Nothing happens to this one.
const STAYS: Service = (1, &[0]);
/// What happens to its pod is what is tried.
const CHANGES: Service = (2, &[1]);
const SERVICES: &[Service] = &[STAYS, CHANGES, (3, &[2])];

struct Scene {
    lab: Lab,
    listeners: Vec<TcpListener>,
    /// With the pod that stays.
    sessions: Vec<Conversation>,
    agent: Option<Agent>,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let mut lab = Lab::new(name, Options { pods: PODS, ..Options::default() })?;
        lab.attach_router_program()?;
        let listeners = lab.pods.iter().map(|pod| conversation::listen(&pod.namespace, PORT)).collect::<Result<_>>()?;
        let mut scene = Self { lab, listeners, sessions: Vec::new(), agent: None };
        scene.start("native", SERVICES)?;
        scene.sessions = scene.open(STAYS.0, 0)?;
        Ok(scene)
    }

    /// Starts an agent and waits until everything is in force.
    fn start(&mut self, mode: &'static str, services: &[Service]) -> Result<()> {
        let one = |(last, pods): &Service, family| {
            let pods: Vec<SocketAddr> =
                pods.iter().map(|pod| SocketAddr::new(self.lab.pods[*pod].addresses.of(family), PORT)).collect();
            let name = format!("vip{last}-{family:?}").to_lowercase();
            let service = service(&name, vip(*last).of(family), "TCP", PORT, "auto", &[], family);
            lb_tests::agent::Service { backends: pods, ..service }
        };
        let all = services.iter().flat_map(|service| Family::BOTH.map(|family| one(service, family)));
        let yaml = Configuration { mode, services: all.collect() }.yaml_in(&self.lab);
        let agent = Agent::start_with(&self.lab, &yaml)?;
        agent.wait_status("everything to be in force", |status| {
            let mut backends = 0;
            let mut ready = |backend: &Value| {
                backends += 1;
                let interface = backend["interface"].as_str();
                backend["state"] == "ready" && self.lab.pods.iter().any(|pod| interface == Some(&pod.host_interface))
            };
            let listed = status["services"].as_array()?;
            let is_ready = listed
                .iter()
                .all(|service| service["backends"].as_array().is_some_and(|all| all.iter().all(&mut ready)));
            let wanted: usize = services.iter().map(|(_, pods)| 2 * pods.len()).sum();
            (is_ready && backends == wanted && status["waiting"].is_null()).then_some(())
        })?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Ends the agent as a crash does.
    fn kill(&mut self) -> Result<()> {
        self.agent.take().context("the agent was ended")?.kill()
    }

    /// Sessions of both families through a VIP, which come to this pod.
    fn open(&self, last: u8, pod: usize) -> Result<Vec<Conversation>> {
        let open = |family| {
            let target = SocketAddr::new(vip(last).of(family), PORT);
            let mut session = Conversation::open(&self.lab.element, target, &self.listeners[pod])
                .with_context(|| format!("pod {pod}"))?;
            Speaker::BOTH.into_iter().try_for_each(|speaker| session.exchange(speaker))?;
            Ok(session)
        };
        Family::BOTH.into_iter().map(open).collect()
    }

    /// Sessions of what has not changed, old ones and new ones.
    fn check_goes_on(&mut self) -> Result<()> {
        for session in &mut self.sessions {
            Speaker::BOTH.into_iter().try_for_each(|speaker| session.exchange(speaker)).context("an old session")?;
        }
        self.open(STAYS.0, 0).context("a new session").map(drop)
    }

    /// The mode of the uplink's program, by the status and by the kernel.
    fn mode(&self) -> Result<String> {
        let status = self.agent.as_ref().context("the agent was ended")?.status()?;
        let mut programs = status["programs"].as_array().context("no programs")?.iter();
        let shown = programs.find(|program| program["attachPoint"] == "xdp").context("no XDP program")?;
        let output = self.lab.node.command("ip").args(["-j", "link", "show", UPLINK]).output()?;
        let link: Value = serde_json::from_slice(&output.stdout)?;
        // include/uapi/linux/if_link.h, `XDP_ATTACHED_DRV` and `XDP_ATTACHED_SKB`.
        let mode = match link[0]["xdp"]["mode"].as_u64() {
            Some(1) => "native",
            Some(2) => "generic",
            other => bail!("XDP mode {other:?}"),
        };
        ensure!(shown["mode"] == mode, "the status says {}, the kernel {}", shown["mode"], link[0]["xdp"]);
        Ok(mode.to_owned())
    }

    fn finish(mut self) -> Result<()> {
        self.agent.take().context("the agent was ended")?.stop()?;
        check_nothing_left(&self.lab)
    }
}

#[test]
fn a_pod_that_was_replaced_unseen_is_reached_and_its_old_sessions_end() -> Result<()> {
    if !available("unseen") {
        return Ok(());
    }
    let mut scene = Scene::new("unseen-pod")?;
    let before = scene.open(CHANGES.0, 1)?;
    scene.kill()?;
    // Behind another interface; the old namespace stays, with its sockets.
    scene.lab.unwire_pod(1)?;
    scene.lab.unwire_pod(2)?;
    scene.lab.pods[2].addresses = scene.lab.pods[1].addresses;
    scene.lab.wire_pod(2)?;
    scene.check_goes_on().context("without an agent")?;
    scene.start("native", &[STAYS, CHANGES])?;
    scene.open(CHANGES.0, 2)?;
    before.into_iter().try_for_each(|session| session.await_reset().map(drop)).context("a session of the old pod")?;
    scene.check_goes_on()?;
    scene.finish()
}

#[test]
fn an_uplink_that_was_replaced_unseen_has_the_programs_again() -> Result<()> {
    if !available("unseen") {
        return Ok(());
    }
    let mut scene = Scene::new("unseen-uplink")?;
    scene.kill()?;
    scene.lab.renew_uplink()?;
    scene.start("native", SERVICES)?;
    scene.check_goes_on()?;
    ensure!(scene.mode()? == "native", "another mode");
    scene.finish()
}

#[test]
fn a_mode_of_the_uplink_that_was_changed_unseen_is_in_force() -> Result<()> {
    if !available("unseen") {
        return Ok(());
    }
    let mut scene = Scene::new("unseen-mode")?;
    for mode in ["generic", "native"] {
        scene.kill()?;
        scene.check_goes_on().context("without an agent")?;
        scene.start(mode, SERVICES).context(mode)?;
        scene.check_goes_on().context(mode)?;
        let found = scene.mode()?;
        ensure!(found == mode, "{found} where {mode} is asked for");
    }
    scene.finish()
}

#[test]
fn a_file_that_was_changed_unseen_is_in_force() -> Result<()> {
    if !available("unseen") {
        return Ok(());
    }
    let mut scene = Scene::new("unseen-file")?;
    let old = scene.open(CHANGES.0, 1)?;
    scene.kill()?;
    // A service goes and another comes; of a third, the backend is another one.
    scene.start("native", &[STAYS, (CHANGES.0, &[2]), (4, &[1])])?;
    scene.check_goes_on()?;
    scene.open(4, 1).context("a new service")?;
    scene.open(CHANGES.0, 2).context("a new backend")?;
    old.into_iter().try_for_each(|session| session.await_reset().map(drop)).context("a backend that is gone")?;
    let pinned = Pinned::of(scene.agent.as_ref().context("it runs")?);
    let gone = |family| pinned.service(SocketAddr::new(vip(3).of(family), PORT)).is_err();
    ensure!(Family::BOTH.into_iter().all(gone), "a service that is gone is there");
    scene.finish()
}
