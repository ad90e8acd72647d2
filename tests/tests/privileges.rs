//! Privileged: makes network namespaces, loads programs into the kernel and mounts bpffs.
//!
//! What the agent and its helper may still do once they run, under their own limits and under those of the unit.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, BINARY, Configuration, Service, available, check_nothing_left, gro},
    lab::{Family, Lab, Options, UPLINK, vip, wait_until},
    programs::{
        PATIENCE,
        conversation::{self, Conversation, Speaker},
    },
    scenario,
    unit::{Limits, confine},
};

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;

// include/uapi/linux/capability.h
const NET_ADMIN: u64 = 1 << 12;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

/// One service whose packets are rewritten, before the first pod, and one whose VIP the last pod owns.
fn yaml(lab: &Lab) -> String {
    let pods = lab.pods.len();
    let rewritten = Service {
        name: "rewritten".into(),
        vip: vip(1).v4.into(),
        protocol: "TCP",
        port: VIP_PORT,
        replies: None,
        rung: "auto",
        backends: vec![SocketAddr::new(lab.pods[0].addresses.v4.into(), POD_PORT)],
    };
    let owned =
        scenario::service("owned", vip(2).v4.into(), "TCP", VIP_PORT, "direct", &lab.pods[pods - 1..], Family::V4);
    let yaml = Configuration { mode: "native", services: vec![rewritten, owned] }.yaml_in(lab);
    let yaml = yaml.replace("rung: direct\n", "rung: direct\n    assignVip: true\n");
    let peer = "{ name: tor, address: 198.51.100.1, as: 64513, bfd: fast }";
    format!(
        "{yaml}announce: {{ always: [{{ interface: {UPLINK} }}], bfd: [{{ name: fast }}], \
         bgp: {{ localAs: 64512, peers: [{peer}] }} }}\n"
    )
}

fn wait_ready(agent: &Agent) -> Result<()> {
    agent.wait_status("every backend to be ready", |status| {
        let mut services = status["services"].as_array()?.iter();
        services.all(|service| service["backends"][0]["state"] == "ready").then_some(())
    })
}

/// Opens a session through each VIP.
fn forwards(lab: &Lab) -> Result<Vec<Conversation>> {
    let pods = lab.pods.len();
    [(1, &lab.pods[0], POD_PORT), (2, &lab.pods[pods - 1], VIP_PORT)]
        .into_iter()
        .map(|(last, pod, port)| {
            let listener = conversation::listen(&pod.namespace, port)?;
            let mut session =
                Conversation::open(&lab.element, SocketAddr::new(vip(last).v4.into(), VIP_PORT), &listener)?;
            session.exchange(Speaker::Client).with_context(|| format!("VIP {last}"))?;
            Ok(session)
        })
        .collect()
}

/// What `/proc/PID/status` says of a process.
fn facts(id: u32) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{id}/status"))?;
    let pair = |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    Ok(text.lines().filter_map(pair).collect())
}

/// The child of an agent.
fn helper_of(agent: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{agent}/task/{agent}/children"))?;
    let mut ids = children.split_whitespace();
    let id = ids.next().context("the agent has no helper")?.parse()?;
    ensure!(ids.next().is_none(), "the agent has more children than its helper: {children}");
    Ok(id)
}

/// Fails unless a process has exactly these capabilities, can get no others, and is under a filter.
fn check_kept(id: u32, kept: u64) -> Result<()> {
    let facts = facts(id)?;
    for (set, wanted) in [("CapEff", kept), ("CapPrm", kept), ("CapInh", 0), ("CapBnd", 0), ("CapAmb", 0)] {
        ensure!(u64::from_str_radix(&facts[set], 16)? == wanted, "{set} is {}, not {wanted:x}: {facts:#?}", facts[set]);
    }
    ensure!(facts["NoNewPrivs"] == "1" && facts["Seccomp"] == "2", "{facts:#?}");
    Ok(())
}

fn signal(id: u32, signal: libc::c_int) -> Result<()> {
    // SAFETY: no memory is passed; the process is the agent's helper, which the caller has just seen alive.
    ensure!(unsafe { libc::kill(id as libc::pid_t, signal) } == 0, "cannot signal process {id}");
    Ok(())
}

#[test]
fn an_agent_without_privileges_serves_pods_that_come_later_and_ends_with_its_helper() -> Result<()> {
    if !available("privileges") {
        return Ok(());
    }
    let mut lab = Lab::new("kept", Options { pods: 2, ..Options::default() })?;
    lab.attach_router_program()?;
    let yaml = yaml(&lab);
    let mut agent = Agent::start_with(&lab, &yaml)?;
    wait_ready(&agent)?;
    let helper = helper_of(agent.id())?;
    check_kept(agent.id(), NET_ADMIN)?;
    check_kept(helper, NET_ADMIN | SYS_ADMIN | SYS_PTRACE)?;
    ensure!(facts(helper)?["Threads"] == "1", "the helper has threads");

    // Attaching, GRO, cookie, list of sockets and VIP, all for a pod that was not there at start.
    for index in [0, 1] {
        lab.restart_pod(index)?;
    }
    agent.wait_status("the pods that are new", |status| {
        let mut services = status["services"].as_array()?.iter();
        let is_new = |service: &serde_json::Value| service["backends"][0]["interface"].is_string();
        services.all(|service| service["backends"][0]["state"] == "ready" && is_new(service)).then_some(())
    })?;
    wait_until("GRO of the new pod", PATIENCE, || Ok(gro(&lab.pods[0].namespace, "eth0")?.then_some(())))?;
    forwards(&lab)?;

    // What is for the agent is not for its helper.
    for ignored in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        signal(helper, ignored)?;
    }
    agent.reload(&yaml)?;
    lab.restart_pod(1)?;
    wait_ready(&agent)?;
    signal(helper, libc::SIGKILL)?;
    let (status, said) = agent.wait_end()?;
    ensure!(!status.success(), "the agent ended with {status}");
    ensure!(said.contains(&format!("the helper for pods' namespaces (process {helper}) ended early")), "{said}");
    Ok(())
}

#[test]
fn a_helper_does_not_outlive_its_agent() -> Result<()> {
    if !available("privileges") {
        return Ok(());
    }
    let mut lab = Lab::new("orphan", Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    let agent = Agent::start_unready(&lab, &yaml(&lab))?;
    let helper = helper_of(agent.id())?;
    agent.kill()?;
    wait_until("the helper to end", PATIENCE, || Ok((!Path::new(&format!("/proc/{helper}")).exists()).then_some(())))
}

fn unit_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/sluice.service")
}

#[test]
fn the_unit_is_valid_and_exposes_little() -> Result<()> {
    if !available("privileges") {
        return Ok(());
    }
    let lab = Lab::new("verify", Options { pods: 0, ..Options::default() })?;
    // The unit names the binary where it is installed; what is verified is everything else.
    let unit = fs::read_to_string(unit_file())?;
    let copy = lab.directory().join("sluice.service");
    fs::write(&copy, unit.replace("/usr/local/bin/sluice", std::env::var(BINARY)?.as_str()))?;
    let analyze = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("systemd-analyze").args(arguments).arg(&copy).output().context("systemd-analyze")?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {}\n{said}", output.status);
        Ok(said)
    };
    let said = analyze(&["verify", "--man=no"])?;
    // Other units of the machine may have faults of their own.
    ensure!(!said.contains("sluice.service"), "{said}");
    // In tenths: 3.9, where a service without any sandboxing has 9.6.
    analyze(&["security", "--offline=yes", "--no-pager", "--threshold=39"])?;
    Ok(())
}

/// The service manager's end of sd_notify(3).
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path).with_context(|| format!("cannot bind {}", path.display()))?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self(socket))
    }

    fn next(&self) -> Result<BTreeMap<String, String>> {
        let mut message = vec![0; 8192];
        let length = self.0.recv(&mut message).context("the agent tells nothing")?;
        let text = std::str::from_utf8(&message[..length])?;
        let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        text.lines().map(|line| pair(line).with_context(|| format!("no assignment: {line:?}"))).collect()
    }

    /// Passes over messages until one assigns this.
    fn wait(&self, key: &str, value: &str) -> Result<BTreeMap<String, String>> {
        loop {
            let message = self.next()?;
            if message.get(key).is_some_and(|its| its == value) {
                return Ok(message);
            }
        }
    }
}

/// The agent's command under limits, with the lab's places for the unit's.
fn under(lab: &Lab, limits: &Limits, agent: &Command) -> Result<Command> {
    // The unit hides home directories, where the binary may be.
    let binary = lab.directory().join("sluice");
    // By another process: a program that some process, be it one that another test has just forked, has open for writing
    // cannot be executed (ETXTBSY).
    let copied = Command::new("cp").arg(agent.get_program()).arg(&binary).status()?;
    ensure!(copied.success(), "cp ended with {copied}");
    let mut command = lab.node.command(binary);
    command.args(agent.get_args());
    command.env("NOTIFY_SOCKET", lab.directory().join("notify")).env("WATCHDOG_USEC", "30000000");
    let (pins, runtime) = (lab.bpffs(), lab.directory().join("run"));
    confine(command, limits, &[("/sys/fs/bpf", &pins), ("/run/sluice", &runtime)])
}

#[test]
fn the_units_limits_suffice_and_the_service_manager_is_told_the_truth() -> Result<()> {
    if !available("privileges") {
        return Ok(());
    }
    let mut lab = Lab::new("unit", Options { pods: 2, ..Options::default() })?;
    lab.attach_router_program()?;
    let manager = Manager::listen(&lab.directory().join("notify"))?;
    let (yaml, limits) = (yaml(&lab), Limits::read(&unit_file())?);
    let mut agent = Agent::launch(&lab, &yaml, |agent| under(&lab, &limits, &agent).expect("limits can be put on"))?;
    let first = manager.next().with_context(|| agent.log_tail())?;
    ensure!(first["READY"] == "1" && first["STATUS"] == "services: 2, pods reached: 2 of 2", "{first:?}");
    // At once: ready means that it forwards.
    forwards(&lab)?;
    check_kept(agent.id(), NET_ADMIN)?;
    check_kept(helper_of(agent.id())?, NET_ADMIN | SYS_ADMIN | SYS_PTRACE)?;
    agent.wait_status("to listen for BGP, and BFD to be before ordinary threads", |status| {
        let announce = &status["announce"];
        let is_first = announce["bfdScheduling"].as_str()?.starts_with("realtime");
        (announce["bgp"][0]["listening"] == "198.51.100.10:179" && is_first).then_some(())
    })?;
    for _ in 0..2 {
        manager.wait("WATCHDOG", "1")?;
    }

    agent.reload(&yaml.replace("rewritten", "renamed"))?;
    let reloading = manager.wait("RELOADING", "1")?;
    ensure!(reloading["MONOTONIC_USEC"].parse::<u64>().is_ok_and(|time| time > 0), "{reloading:?}");
    manager.wait("READY", "1")?;
    agent.reload("no: configuration\n")?;
    manager.wait("RELOADING", "1")?;
    let refused = manager.wait("READY", "1")?;
    ensure!(refused["STATUS"].contains("; configuration refused: "), "{refused:?}");
    agent.reload(&yaml)?;
    manager.wait("RELOADING", "1")?;
    manager.wait("READY", "1")?;

    lab.restart_pod(0)?;
    wait_ready(&agent)?;
    forwards(&lab)?;
    agent.stop()?;
    let last = manager.wait("STOPPING", "1")?;
    ensure!(last["STATUS"] == "stopping", "{last:?}");
    check_nothing_left(&lab)
}

/// Without which the test above could not fail.
#[test]
fn less_than_the_units_limits_allow_is_too_little() -> Result<()> {
    if !available("privileges") {
        return Ok(());
    }
    let lab = Lab::new("less", Options { pods: 1, ..Options::default() })?;
    let (yaml, unit) = (yaml(&lab), fs::read_to_string(unit_file())?);
    for (enough, less, said) in [
        (" CAP_SYS_ADMIN CAP_SYS_PTRACE", " CAP_SYS_PTRACE", "missing CAP_SYS_ADMIN"),
        (" bpf seccomp", " seccomp", "failed to create map"),
        (" bpf seccomp", " bpf", "cannot install the system call filter"),
        (" /sys/fs/bpf", "", "Read-only file system"),
        ("RuntimeDirectory=sluice\n", "", "Read-only file system"),
        ("AF_NETLINK ", "", "netlink"),
        (" CAP_NET_RAW CAP_PERFMON", " CAP_PERFMON", "give the agent CAP_NET_RAW"),
        (" AF_INET6 AF_PACKET", " AF_INET6", "raw sockets cannot be opened"),
    ] {
        ensure!(unit.contains(enough), "{enough} is not in the unit");
        let limits = Limits::parse(&unit.replacen(enough, less, 1))?;
        let refusal = Agent::refusal(&lab, &yaml, |agent| under(&lab, &limits, &agent).expect("limits can be put on"))
            .with_context(|| format!("without {enough}"))?;
        ensure!(refusal.contains(said), "without {enough}: {refusal}");
        check_nothing_left(&lab)?;
    }
    Ok(())
}
