//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! Pods whose sockets cannot be seen are found by their traffic alone, and their sessions survive moves of their slots.

mod user_space;

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    agent::{Agent, Configuration, available, check_nothing_left},
    lab::{Family, Lab, Namespace, Options, PodLink, vip},
    programs::conversation::{self, Conversation, Resets, Speaker, any},
};
use user_space::UserSpace;

const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
/// Where the mesh's proxy listens.
const PROXY_PORT: u16 = 15_006;
/// Sessions that each step opens with the opaque pod, of each family.
const SESSIONS: usize = 6;
/// Longest time until a pod is found.
const FIND_LIMIT: Duration = Duration::from_secs(60);

/// Why a pod's sockets cannot be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A mesh: what comes for the port is redirected to a proxy.
    Mesh {
        /// The application listens on the port as well.
        app: bool,
    },
    /// The listener is bound to the pod's interface.
    Device,
    /// The kernel does not speak TCP there.
    UserSpace,
}

/// What must live as long as the pod serves.
struct Service {
    listener: TcpListener,
    _app: Option<TcpListener>,
    _stack: Option<UserSpace>,
}

fn start(kind: Kind, lab: &Lab) -> Result<Service> {
    let pod = &lab.pods[0];
    let plain = |port| conversation::listen(&pod.namespace, port);
    Ok(match kind {
        Kind::Mesh { app } => {
            nft(
                &pod.namespace,
                &format!(
                    "table inet mesh {{\n chain in {{\n type nat hook prerouting priority dstnat;\n tcp dport \
                     {POD_PORT} redirect to :{PROXY_PORT};\n }}\n}}\n"
                ),
            )?;
            let app = if app { Some(plain(POD_PORT)?) } else { None };
            Service { listener: plain(PROXY_PORT)?, _app: app, _stack: None }
        }
        Kind::Device => {
            let listen = || -> Result<TcpListener> {
                // The standard library cannot bind to a device.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let socket = tokio::net::TcpSocket::new_v6()?;
                    socket.bind_device(Some(b"eth0"))?;
                    socket.bind(any(Family::V6, POD_PORT))?;
                    Ok(socket.listen(128)?.into_std()?)
                })
            };
            Service { listener: pod.namespace.run(listen)?, _app: None, _stack: None }
        }
        Kind::UserSpace => {
            let listener = plain(PROXY_PORT)?;
            let stack = UserSpace::start(pod, POD_PORT, PROXY_PORT)?;
            Service { listener, _app: None, _stack: Some(stack) }
        }
    })
}

fn nft(namespace: &Namespace, rules: &str) -> Result<()> {
    let mut child = namespace
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft")?;
    child.stdin.take().context("a pipe")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A service before the lab's pods in each family; draining ones by their index.
fn yaml(lab: &Lab, rung: &str, pods: usize, draining: &[usize]) -> String {
    let mut text = Configuration { mode: "native", services: Vec::new() }.yaml_in(lab);
    for family in Family::BOTH {
        let (name, vip) = (format!("{family:?}").to_lowercase(), vip(1).of(family));
        let _ = write!(text, "  - name: {name}\n    vip: \"{vip}\"\n    protocol: TCP\n    ports: [{VIP_PORT}]\n");
        let _ = write!(text, "    rung: {rung}\n    backends:\n");
        for (at, pod) in lab.pods.iter().enumerate().take(pods) {
            let (address, drain) = (pod.addresses.of(family), draining.contains(&at));
            let _ = writeln!(text, "      - {{ address: \"{address}\", port: {POD_PORT}, drain: {drain} }}");
        }
    }
    text
}

/// Applies what is wanted, and waits until it is in force.
fn settle(agent: &mut Agent, lab: &Lab, rung: &str, pods: usize, draining: &[usize]) -> Result<()> {
    agent.reload(&yaml(lab, rung, pods, draining))?;
    agent.wait_status("the change to be applied", |status| {
        let services = status["services"].as_array()?;
        let as_wanted = services.iter().all(|service| {
            let backends = service["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
            backends.len() == pods
                && backends.iter().enumerate().all(|(at, backend)| {
                    backend["state"] == "ready" && (backend["slots"] == 0) == draining.contains(&at)
                })
        });
        (services.len() == 2 && as_wanted && status["waiting"].is_null()).then_some(())
    })
}

/// Whether a pod is shown as opaque in both families.
fn is_opaque(agent: &Agent, pod: usize) -> Result<[bool; 2]> {
    let status = agent.status()?;
    Ok([0, 1].map(|family| !status["services"][family]["backends"][pod]["opaque"].is_null()))
}

struct Sessions<'a> {
    lab: &'a Lab,
    listeners: Vec<TcpListener>,
    open: Vec<(Conversation, usize)>,
}

impl Sessions<'_> {
    /// Opens sessions until so many more of each family are with a pod. `whose` pods may be reached.
    fn open(&mut self, pod: usize, whose: &[usize]) -> Result<()> {
        for family in Family::BOTH {
            let (mut found, target) = (0, SocketAddr::new(vip(1).of(family), VIP_PORT));
            for _ in 0..SESSIONS * 20 {
                if found == SESSIONS {
                    break;
                }
                let opened = Conversation::open_any(&self.lab.element, target, &self.listeners);
                let (session, at) = opened.with_context(|| format!("session {} of {family:?}", self.open.len()))?;
                ensure!(whose.contains(&at), "a new connection went to pod {at}");
                found += usize::from(at == pod);
                self.open.push((session, at));
            }
            ensure!(found == SESSIONS, "{found} sessions with pod {pod}");
        }
        Ok(())
    }

    /// A line each way in all sessions, half of them speaking from the pod first.
    fn exchange(&mut self, what: &str) -> Result<()> {
        for (number, (session, pod)) in self.open.iter_mut().enumerate() {
            let first = Speaker::BOTH[(number / 2) % 2];
            session.exchange(first).with_context(|| format!("{what}: session {number}, with pod {pod}"))?;
        }
        Ok(())
    }

    /// The same from the pod's end first in each.
    fn exchange_from_pods(&mut self, what: &str) -> Result<()> {
        for (number, (session, pod)) in self.open.iter_mut().enumerate() {
            session
                .exchange(Speaker::Pod)
                .with_context(|| format!("{what}, pods first: session {number}, with pod {pod}"))?;
        }
        Ok(())
    }
}

/// Opens sessions, and lets them speak until the first pod is found.
fn find(agent: &Agent, sessions: &mut Sessions) -> Result<()> {
    sessions.open(0, &[0, 1])?;
    ensure!(is_opaque(agent, 0)? == [false; 2], "opaque before it has said anything");
    let begun = Instant::now();
    while is_opaque(agent, 0)? != [true; 2] {
        let found = watched(sessions.lab, agent);
        ensure!(begun.elapsed() < FIND_LIMIT, "not found; without and with a socket: {found:?}");
        sessions.exchange("until it is found").with_context(|| agent.log_tail())?;
    }
    println!("found after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

fn run(kind: Kind, rung: &str) -> Result<()> {
    let pod_link = if kind == Kind::UserSpace { PodLink::Bridge } else { PodLink::Routed };
    let mut lab = Lab::new("opaque", Options { pods: 3, pod_link, ..Options::default() })?;
    lab.attach_router_program()?;
    let lab = lab;
    let service = start(kind, &lab)?;
    let mut listeners = vec![service.listener.try_clone()?];
    listeners.extend(
        [1, 2]
            .map(|at| conversation::listen(&lab.pods[at].namespace, POD_PORT))
            .into_iter()
            .collect::<Result<Vec<_>>>()?,
    );
    let mut agent = Agent::start_with(&lab, &yaml(&lab, rung, 2, &[]))?;
    settle(&mut agent, &lab, rung, 2, &[])?;
    let resets = Resets::of(&lab.element)?;
    let mut sessions = Sessions { lab: &lab, listeners, open: Vec::new() };
    find(&agent, &mut sessions).with_context(|| format!("{kind:?} by {rung}"))?;
    settle(&mut agent, &lab, rung, 2, &[])?;
    sessions.exchange("found")?;
    let table = agent.status_table()?;
    ensure!(table.contains("opaque") && table.contains("without a socket"), "the table does not say so:\n{table}");
    // These say nothing before their slots move.
    sessions.open(0, &[0, 1])?;
    settle(&mut agent, &lab, rung, 2, &[0])?;
    sessions.exchange("draining").with_context(|| agent.log_tail())?;
    sessions.open(1, &[1])?;
    settle(&mut agent, &lab, rung, 3, &[0])?;
    sessions.exchange_from_pods("beside a third pod").with_context(|| agent.log_tail())?;
    settle(&mut agent, &lab, rung, 3, &[])?;
    sessions.exchange("back").with_context(|| agent.log_tail())?;
    sessions.open(0, &[0, 1, 2])?;
    settle(&mut agent, &lab, rung, 3, &[0, 1])?;
    sessions.exchange("two draining").with_context(|| agent.log_tail())?;
    sessions.exchange_from_pods("two draining").with_context(|| agent.log_tail())?;
    for pod in [1, 2] {
        ensure!(is_opaque(&agent, pod)? == [false; 2], "pod {pod} is no opaque one");
    }
    ensure!(Resets::of(&lab.element)? == resets, "connections were reset");
    drop(sessions);
    agent.stop()
}

fn test(kind: Kind, rung: &str) {
    if available("pods whose sockets cannot be seen") {
        run(kind, rung).unwrap_or_else(|error| panic!("{kind:?} by {rung}: {error:?}"));
    }
}

#[test]
fn a_mesh_before_an_application_that_listens_on_the_same_port() {
    test(Kind::Mesh { app: true }, "redirect");
}

#[test]
fn a_mesh_before_an_application_that_listens_elsewhere() {
    test(Kind::Mesh { app: false }, "peer");
}

#[test]
fn a_mesh_that_the_stack_delivers_to() {
    test(Kind::Mesh { app: false }, "stack");
}

#[test]
fn a_listener_that_is_bound_to_a_device() {
    test(Kind::Device, "redirect");
}

#[test]
fn tcp_in_user_space() {
    test(Kind::UserSpace, "redirect");
}

/// What was found stays found, and the records of its sessions are what leads to them: their slots have moved.
#[test]
fn an_opaque_pod_and_its_sessions_are_known_to_the_agents_that_come_after() -> Result<()> {
    const LARGER: &str = "capacities: {services: 200, backends: 500, bypasses: 9000, flows: 262144}\n";
    if !available("pods whose sockets cannot be seen") {
        return Ok(());
    }
    let mut lab = Lab::new("opaque", Options { pods: 2, ..Options::default() })?;
    lab.attach_router_program()?;
    let lab = lab;
    let service = start(Kind::Mesh { app: false }, &lab)?;
    let listeners = vec![service.listener.try_clone()?, conversation::listen(&lab.pods[1].namespace, POD_PORT)?];
    let mut agent = Agent::start_with(&lab, &yaml(&lab, "redirect", 2, &[]))?;
    settle(&mut agent, &lab, "redirect", 2, &[])?;
    let resets = Resets::of(&lab.element)?;
    let mut sessions = Sessions { lab: &lab, listeners, open: Vec::new() };
    find(&agent, &mut sessions)?;
    settle(&mut agent, &lab, "redirect", 2, &[])?;
    sessions.exchange("found")?;
    settle(&mut agent, &lab, "redirect", 2, &[0])?;
    sessions.exchange("draining")?;
    for capacities in ["", LARGER] {
        agent.kill()?;
        sessions.exchange("without an agent")?;
        agent = Agent::start_with(&lab, &(yaml(&lab, "redirect", 2, &[0]) + capacities))?;
        ensure!(is_opaque(&agent, 0)? == [true, true], "an opaque pod is forgotten");
        ensure!(is_opaque(&agent, 1)? == [false, false], "another pod is taken for opaque");
        sessions.exchange_from_pods("with the next agent").with_context(|| agent.log_tail())?;
        sessions.exchange("with the next agent")?;
    }
    sessions.open(1, &[1])?;
    ensure!(Resets::of(&lab.element)? == resets, "connections were reset");
    drop(sessions);
    agent.stop()?;
    check_nothing_left(&lab)
}

/// Addresses of the element that clients use in turn: what is looked after is so once a second for each.
const CLIENTS: u8 = 16;
/// Short connections at least, and how long they go on at least: a segment is looked after once in a tick, at most.
const SHORT: usize = 4000;
const SHORT_TIME: Duration = Duration::from_secs(12);
const WORKERS: usize = 4;

/// Ends a connection at once, by a RST.
fn abort(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the value lives across the call and has the length that is said.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as u32,
        )
    };
    assert_eq!(result, 0, "SO_LINGER");
    drop(stream);
}

/// Says something and ends, in one of many ways.
fn short_answers(listener: &TcpListener, stop: &AtomicBool) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        number += 1;
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        match number % 5 {
            0 => drop(stream.write_all(b"goodbye")),
            1 => {
                let _ = stream.write_all(b"goodbye");
                abort(stream);
            }
            2 => {
                let _ = stream.read(&mut [0; 64]);
                let _ = stream.write_all(&[7; 20_000]);
                abort(stream);
            }
            3 => {
                let _ = stream.read(&mut [0; 64]);
                let _ = stream.write_all(&[7; 20_000]);
            }
            _ => abort(stream),
        }
    }
}

fn short_session(from: SocketAddr, to: SocketAddr, number: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connected = runtime.block_on(async {
        let socket = if from.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        tokio::time::timeout(Duration::from_secs(3), socket.connect(to)).await?.map(tokio::net::TcpStream::into_std)
    });
    // A port may be in TIME_WAIT still.
    let Ok(Ok(mut stream)) = connected else { return Ok(()) };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let _ = stream.write_all(b"hello");
    match number % 3 {
        0 => abort(stream),
        1 => drop(stream.read(&mut [0; 100])),
        _ => while stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {},
    }
    Ok(())
}

fn many_short_sessions() -> Result<()> {
    let mut lab = Lab::new("transparent", Options { pods: 1, ..Options::default() })?;
    lab.attach_router_program()?;
    let lab = lab;
    let addresses = |number: u8| -> [IpAddr; 2] {
        let (v4, v6) =
            (Ipv4Addr::new(192, 0, 2, 100 + number), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, number.into()));
        [v4.into(), v6.into()]
    };
    for number in 0..CLIENTS {
        let [v4, v6] = addresses(number);
        lab.element.ip(&format!("address add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\n"))?;
    }
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let mut agent = Agent::start_with(&lab, &yaml(&lab, "redirect", 1, &[]))?;
    settle(&mut agent, &lab, "redirect", 1, &[])?;
    let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let worker = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= SHORT && begun.elapsed() > SHORT_TIME {
                return Ok(());
            }
            let family = number % 2;
            let from = addresses((number / 2 % usize::from(CLIENTS)) as u8)[family];
            // Some use one port again and again.
            let port = if number % 7 == 0 { 3000 } else { 0 };
            let to = SocketAddr::new(vip(1).of(Family::BOTH[family]), VIP_PORT);
            short_session(SocketAddr::new(from, port), to, number)?;
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| short_answers(&listener, &stop));
        let done = lab.element.run(|| {
            thread::scope(|scope| {
                let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
                workers.into_iter().map(|worker| worker.join().expect("a worker")).collect::<Result<Vec<_>>>()
            })
        });
        stop.store(true, Ordering::Relaxed);
        done
    })?;
    let (unseen, seen) = watched(&lab, &agent)?;
    println!("of {next:?} short sessions {seen} segments were seen to have a socket, {unseen} had none");
    ensure!(seen >= 8, "only {seen} segments were looked after");
    ensure!(is_opaque(&agent, 0)? == [false; 2], "taken for opaque");
    agent.stop()
}

/// Segments without and with a socket, of all endpoints.
fn watched(lab: &Lab, agent: &Agent) -> Result<(u64, u64)> {
    let map = agent.pins().join("maps/endpoint_bypasses");
    let output = lab.node.command("bpftool").args(["-j", "map", "dump", "pinned"]).arg(map).output()?;
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).context("bpftool prints JSON")?;
    let word = |entry: &serde_json::Value, at: usize| -> Result<u64> {
        let bytes = entry["value"].as_array().context("bytes")?;
        ensure!(bytes.len() == 32, "{} bytes", bytes.len());
        bytes[8 * at..8 * at + 8].iter().rev().try_fold(0, |sum, byte| {
            let text = byte.as_str().context("a byte")?;
            Ok(sum << 8 | u64::from_str_radix(text.trim_start_matches("0x"), 16)?)
        })
    };
    if entries.is_empty() {
        bail!("the map is empty");
    }
    entries.iter().try_fold((0, 0), |(unseen, seen), entry| Ok((unseen + word(entry, 2)?, seen + word(entry, 3)?)))
}

#[test]
fn a_pod_whose_sockets_are_seen_is_never_taken_for_opaque() {
    if available("short sessions of a pod whose sockets are seen") {
        many_short_sessions().unwrap_or_else(|error| panic!("{error:?}"));
    }
}
