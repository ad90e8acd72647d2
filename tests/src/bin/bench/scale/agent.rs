//! The real agent with 10,000 services: the times are those of its own log.

use std::{
    fmt::Write as _,
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use lb_tests::{
    agent::{Agent, Configuration, Service},
    lab::{Family, Lab, Namespace, Options, vip, wait_until},
};
use lb_userspace::{
    config,
    dataplane::capacity::Sizes,
    model::{Protocol, Snapshot},
};

use super::{Figure, median, memory, protocol_name};

const SERVICES: usize = 10_000;
const BACKENDS: usize = 10;
/// Services at one VIP.
const PORTS: usize = 40;
/// Port of the first service at a VIP, and of the first backend in a pod.
const FIRST_PORT: usize = 1000;
const CHANGES: usize = 9;
const LIMIT: Duration = Duration::from_secs(120);
/// In MiB: megabytes are meant by the target, and a mebibyte is more.
const MEGABYTE: f64 = 1e6;

/// Some room for what comes while what goes rests, and slots of 10,000 tables of 2,048, twice, in the next power of two.
const CAPACITIES: &str = "capacities:\n  services: 10200\n  backends: 102000\n  maglevSlots: 67108864\n";

/// Each (family, protocol) has a quarter of the services, and the ports of two addresses suffice.
fn service(number: usize, lab: &Lab, drained: bool) -> Service {
    let (family, protocol) = (Family::BOTH[number % 2], [Protocol::Tcp, Protocol::Udp][number / 2 % 2]);
    let first = FIRST_PORT + number / 4 * BACKENDS;
    let pod = lab.pods[0].addresses.of(family);
    let backends = (first..first + BACKENDS - usize::from(drained)).map(|port| SocketAddr::new(pod, port as u16));
    Service {
        name: format!("service-{number}"),
        vip: vip((number / 2 / PORTS + 1) as u8).of(family),
        protocol: protocol_name(protocol),
        port: (FIRST_PORT + number / 2 % PORTS) as u16,
        replies: Some("static"),
        rung: "redirect",
        backends: backends.collect(),
    }
}

/// The file; `changed` is the service that lacks a backend.
fn yaml(lab: &Lab, changed: Option<usize>) -> String {
    let services = (0..SERVICES).map(|number| service(number, lab, changed == Some(number))).collect();
    let mut yaml = Configuration { mode: "native", services }.yaml_in(lab);
    yaml.write_str(CAPACITIES).expect("writing to a string cannot fail");
    yaml
}

/// All figures of the agent.
pub fn figures() -> Result<Vec<Figure>> {
    let mut lab = Lab::new("scale", Options { pods: 1, ..Options::default() })?;
    wait_until("the pod to answer", Duration::from_secs(10), || {
        Ok(lab.pods[0].answers(&lab.element, Family::V4).then_some(()))
    })?;
    let text = yaml(&lab, None);
    let mut figures =
        vec![Figure::new("file of 10,000 services with 100,000 backends", text.len() as f64 / MEGABYTE, "MB", None)];
    let snapshot = config::parse("scale", &text)?;
    let last = service(SERVICES - 1, &lab, false);
    let target = SocketAddr::new(last.vip, last.port);
    let _echo = Echo::start(&lab.pods[0].namespace, &last.backends)?;
    lab.attach_router_program()?;

    let client = Client::start(&lab.element, target);
    let mut agent = Agent::start_with(&lab, &text)?;
    let forwarded = client.finish()?;
    let log = Log::of(&agent);
    figures.push(Figure::time("parsing it", log.duration("configuration read")?, None));
    // The first line after the kernel has verified the programs.
    let (parsed, loaded) = (log.time("configuration read")?, log.time("uplink attached")?);
    figures.push(Figure::time(
        "start: from the parsed file to the first packet's reply",
        forwarded - parsed,
        Some(1000.0),
    ));
    figures.push(Figure::time("  of it until the kernel has verified the programs", loaded - parsed, None));
    figures.push(Figure::time("  of it from there on", forwarded - loaded, None));
    figures.push(Figure::time("  from the parsed file until the agent serves", log.time("ready")? - parsed, None));
    let mut changes = Vec::new();
    for change in 0..CHANGES {
        // One comes back, another goes.
        let number = (change / 2 * 2001 + 3) % SERVICES;
        agent.reload(&yaml(&lab, change.is_multiple_of(2).then_some(number)))?;
        let line = |log: &Log| log.nth("configuration applied", change).is_some();
        wait_until("the change to be applied", LIMIT, || Ok(line(&Log::of(&agent)).then_some(())))?;
        changes.push(duration_in(&Log::of(&agent).nth("configuration applied", change).context("a change")?)?);
    }
    figures.push(Figure::time("one change: from the parsed file to the maps", median(changes), Some(5.0)));
    figures.extend(memory_figures(&agent, &snapshot)?);
    agent.status()?;
    figures.push(rest("resident without mapped maps, after a status", &agent, None)?);
    agent.end()?;

    let agent = Agent::start_with(&lab, &yaml(&lab, None))?;
    let log = Log::of(&agent);
    figures.push(Figure::time(
        "restart: what is there is adopted",
        log.time("ready")? - log.time("configuration read")?,
        None,
    ));
    figures.push(rest("resident without mapped maps, after a restart", &agent, None)?);
    agent.stop()?;
    Ok(figures)
}

fn rest(name: &str, agent: &Agent, limit: Option<f64>) -> Result<Figure> {
    Ok(Figure::new(name, memory::resident(agent.id())?.rest as f64 / MEGABYTE, "MB", limit))
}

fn memory_figures(agent: &Agent, snapshot: &Snapshot) -> Result<Vec<Figure>> {
    let resident = memory::resident(agent.id())?;
    let cpus = std::thread::available_parallelism()?.get() as u64;
    let maps: u64 = Sizes::new(&snapshot.capacities).maps(cpus).iter().map(|(_, _, bytes)| bytes).sum();
    Ok(vec![
        Figure::new("resident without mapped maps", resident.rest as f64 / MEGABYTE, "MB", Some(60.0)),
        Figure::new("  of mapped maps beside that", resident.maps as f64 / MEGABYTE, "MB", None),
        Figure::new("  the most at any time, with mapped maps", resident.peak as f64 / MEGABYTE, "MB", None),
        Figure::new("all maps, by the capacities", maps as f64 / MEGABYTE, "MB", None),
    ])
}

/// What the agent has written to its log.
struct Log(Vec<String>);

impl Log {
    fn of(agent: &Agent) -> Self {
        Self(agent.log())
    }

    fn nth(&self, text: &str, number: usize) -> Option<String> {
        self.0.iter().filter(|line| line.contains(text)).nth(number).cloned()
    }

    /// Since the epoch; the time stands first in a line, in UTC.
    fn time(&self, text: &str) -> Result<Duration> {
        let line = self.nth(text, 0).with_context(|| format!("no line {text:?} in {:?}", self.0))?;
        time_of_day(&line).with_context(|| format!("no time in {line}"))
    }

    fn duration(&self, text: &str) -> Result<Duration> {
        duration_in(&self.nth(text, 0).with_context(|| format!("no line {text:?}"))?)
    }
}

/// `2026-01-31T23:59:59.999999Z`, within its day.
fn time_of_day(line: &str) -> Option<Duration> {
    let clock = line.split_once('T')?.1.split_once('Z')?.0;
    let mut parts = clock.split(':');
    let (hours, minutes): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Duration::from_secs(3600 * hours + 60 * minutes) + Duration::from_secs_f64(parts.next()?.parse().ok()?))
}

/// The field `microseconds` of a line.
fn duration_in(line: &str) -> Result<Duration> {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix("microseconds="));
    Ok(Duration::from_micros(value.with_context(|| format!("no duration in {line}"))?.parse()?))
}

/// Answers on all of a service's ports.
struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How long a socket waits before its thread looks whether to stop.
const TICK: Duration = Duration::from_millis(100);

impl Echo {
    fn start(pod: &Namespace, backends: &[SocketAddr]) -> Result<Self> {
        let mut echo = Self { stop: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        for backend in backends {
            let port = backend.port();
            let socket = pod.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?;
            socket.set_read_timeout(Some(TICK))?;
            let stop = Arc::clone(&echo.stop);
            echo.threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, source)) = socket.recv_from(&mut buffer) {
                        // A lost answer is asked for again.
                        let _ = socket.send_to(&buffer[..length], source);
                    }
                }
            }));
        }
        Ok(echo)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Asks a VIP once a millisecond until it answers.
struct Client(JoinHandle<io::Result<Duration>>);

impl Client {
    fn start(element: &Namespace, target: SocketAddr) -> Self {
        Self(element.spawn(move || {
            let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
            let socket = UdpSocket::bind(if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { any })?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(Duration::from_millis(1)))?;
            let mut buffer = [0; 16];
            loop {
                // What the node says before it knows the VIP comes as an error of either.
                if socket.send(b"there?").is_ok() && socket.recv(&mut buffer).is_ok() {
                    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    return Ok(Duration::from_nanos((now.as_nanos() % (86_400 * 1_000_000_000)) as u64));
                }
            }
        }))
    }

    /// When it answered, within its day.
    fn finish(self) -> Result<Duration> {
        Ok(self.0.join().map_err(|_| anyhow::anyhow!("the client has panicked"))??)
    }
}
