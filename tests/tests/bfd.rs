//! Privileged: makes network namespaces, and runs BIRD.
//!
//! The driver against BIRD, each in a namespace that the test makes and removes; a third one routes for multihop.

use std::{
    fs,
    net::IpAddr,
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use lb_tests::lab::wait_until;
use lb_userspace::announce::bfd::{
    driver::{Driver, Error, Report, SessionReport, boot_time},
    machine::{Cause, DropReason, Endpoint, Event, Heartbeat, Hops, Interface, MinimumTtl, Path, Settings},
    packet::{Diagnostic, State},
};

/// Longest wait for anything: a second's pace of a session that is down, a few times, on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How much later than the protocol says something may be seen here: virtual machines stall.
const SLACK: Duration = Duration::from_millis(150);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("a program that is there");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the tests can run here; where the environment says that they must, they fail instead.
fn has_privileges() -> bool {
    lb_tests::lab::privileged("bfd")
}

/// Namespaces, and the BIRDs in them. All goes with it.
struct Lab {
    names: Vec<String>,
    folder: PathBuf,
    birds: Vec<Child>,
}

impl Lab {
    fn new(test: &str, namespaces: usize) -> Self {
        let suffix = format!("{test}-{}", std::process::id());
        let names: Vec<String> = (0..namespaces).map(|at| format!("bfd-{suffix}-{at}")).collect();
        let folder = std::env::temp_dir().join(format!("bfd-{suffix}"));
        fs::create_dir_all(&folder).expect("a folder");
        let lab = Self { names, folder, birds: Vec::new() };
        for name in &lab.names {
            run(&format!("ip netns add {name}"));
            run(&format!("ip -n {name} link set lo up"));
        }
        lab
    }

    /// Two namespaces with a link: `up0` and `up1`, 10.9.0.1 and .2, fe80::1 and ::2.
    fn pair(test: &str) -> Self {
        let lab = Self::new(test, 2);
        lab.link(0, 1, "up0", "up1", "10.9.0");
        lab
    }

    fn link(&self, one: usize, two: usize, name: &str, other: &str, net: &str) {
        let (a, b) = (&self.names[one], &self.names[two]);
        run(&format!("ip -n {a} link add {name} type veth peer name {other} netns {b}"));
        for (space, device, end) in [(a, name, 1), (b, other, 2)] {
            run(&format!("ip -n {space} link set {device} addrgenmode none up"));
            run(&format!("ip -n {space} addr add {net}.{end}/24 dev {device}"));
            run(&format!("ip -n {space} addr add fe80::{end}/64 dev {device} nodad"));
        }
    }

    fn ip(&self, at: usize, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.names[at]))
    }

    fn start_bird(&mut self, at: usize, bfd: &str) {
        let (config, control) = (self.folder.join(format!("{at}.conf")), self.control(at));
        let text = format!("router id 10.0.0.{};\nprotocol device {{ }}\nprotocol bfd {{ {bfd} }}\n", at + 1);
        fs::write(&config, text).expect("the folder is there");
        let mut bird = Command::new("ip");
        bird.args(["netns", "exec", &self.names[at], "bird", "-f", "-c"]).arg(config).arg("-s").arg(&control);
        bird.arg("-P").arg(self.folder.join(format!("{at}.pid")));
        self.birds.push(bird.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ip is there"));
        until("BIRD answers", || {
            Command::new("birdc").arg("-s").arg(&control).arg("show status").output().is_ok_and(|o| o.status.success())
        });
    }

    fn control(&self, at: usize) -> PathBuf {
        self.folder.join(format!("{at}.ctl"))
    }

    /// The words of BIRD's line about a peer.
    fn bird_says(&self, at: usize, peer: &str) -> Vec<String> {
        let text = run(&format!("birdc -s {} show bfd sessions", self.control(at).display()));
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(peer));
        line.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    fn is_up_at_bird(&self, at: usize, peer: &str) -> bool {
        self.bird_says(at, peer).iter().any(|word| word == "Up")
    }

    /// Runs the test in the first namespace, on a thread of its own.
    fn inside(&self, test: impl FnOnce(&mut Node) + Send) {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let space = fs::File::open(format!("/run/netns/{}", self.names[0])).expect("made above");
                // SAFETY: no pointers are passed; the descriptor is that of a network namespace.
                assert_eq!(unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
                test(&mut Node::start());
            });
            if let Err(panic) = inside.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for bird in &mut self.birds {
            // `ip netns exec` has become BIRD: the process is its own.
            let _ = bird.kill();
            let _ = bird.wait();
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The driver, with an engine that is well until it is told otherwise.
struct Node {
    driver: Driver,
    events: Receiver<(Instant, Path, Event)>,
    is_well: Arc<AtomicBool>,
}

impl Node {
    fn start() -> Self {
        let heartbeat = Arc::new(Heartbeat::default());
        let is_well = Arc::new(AtomicBool::new(true));
        let (heart, well) = (Arc::downgrade(&heartbeat), Arc::clone(&is_well));
        thread::spawn(move || {
            while let Some(heart) = heart.upgrade() {
                if well.load(Ordering::Relaxed) {
                    heart.beat(boot_time(), true);
                }
                thread::sleep(ms(10));
            }
        });
        let (tell, events) = mpsc::channel();
        let sink = move |path, event| {
            // The test may be over.
            let _ = tell.send((Instant::now(), path, event));
        };
        Self { driver: Driver::start(4711, heartbeat, Box::new(sink), || {}).expect("a thread"), events, is_well }
    }

    fn open(&mut self, endpoint: Endpoint, settings: Settings) {
        self.driver.open(endpoint, settings).expect("a session");
    }

    /// The next event of the path, and when it came.
    fn next(&self, path: Path) -> (Instant, Event) {
        loop {
            let (at, of, event) =
                self.events.recv_timeout(WAIT_MAX).unwrap_or_else(|_| panic!("no event: {:#?}", self.report()));
            if of == path {
                return (at, event);
            }
        }
    }

    fn report(&self) -> Report {
        self.driver.report().expect("the thread lives")
    }

    fn session(&self, path: Path) -> SessionReport {
        let report = self.report();
        report.sessions.into_iter().find(|session| session.endpoint.path() == path).expect("opened above")
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_until(what, WAIT_MAX, || Ok(holds().then_some(()))).unwrap_or_else(|error| panic!("{error:#}"));
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn settings(milliseconds: u64) -> Settings {
    Settings::new(ms(milliseconds), ms(milliseconds), 3).expect("in range")
}

/// To be called inside the namespace: an index is only known there.
fn single(device: &str, local: &str, remote: &str) -> Endpoint {
    let name = std::ffi::CString::new(device).expect("a name");
    // SAFETY: the name ends with a zero and lives as long as the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let interface = Interface::new(index).expect("the device is there");
    Endpoint::new(address(local), address(remote), Hops::Single { interface }).expect("two ends")
}

const BIRD_100: &str = "interface \"up1\" { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; };
    neighbor 10.9.0.1 dev \"up1\"; neighbor fe80::1 dev \"up1\";";

#[test]
fn both_families_come_up_intervals_change_by_poll_and_a_stop_is_heard() {
    if !has_privileges() {
        return;
    }
    let mut lab = Lab::pair("up");
    lab.start_bird(1, BIRD_100);
    lab.inside(|node| {
        for (local, remote) in [("10.9.0.1", "10.9.0.2"), ("fe80::1", "fe80::2")] {
            let endpoint = single("up0", local, remote);
            let path = endpoint.path();
            node.open(endpoint, settings(100));
            assert_eq!(node.next(path).1, Event::Up);
            until("up at BIRD", || lab.is_up_at_bird(1, local));
            until("no poll is left", || !node.session(path).status.is_polling);
            let status = node.session(path).status;
            let remote_status = status.remote.expect("known");
            assert_eq!((remote_status.desired_min_tx, remote_status.required_min_rx), (ms(100), ms(100)));
            assert_eq!((remote_status.state, remote_status.detect_mult.get()), (State::Up, 3));
            assert_eq!((status.transmit_interval, status.detection_time), (ms(100), Some(ms(300))));

            node.driver.set_settings(path, settings(200)).expect("open");
            until("BIRD knows the new intervals", || {
                let said = lab.bird_says(1, local);
                said.iter().any(|word| word == "0.200") && said.iter().any(|word| word == "0.600")
            });
            until("BIRD has answered", || !node.session(path).status.is_polling);
            let status = node.session(path).status;
            assert_eq!((status.transmit_interval, status.detection_time), (ms(200), Some(ms(600))));
            node.driver.set_settings(path, settings(50)).expect("open");
            until("the way back", || node.session(path).status.detection_time == Some(ms(300)));

            node.driver.stop(path).expect("open");
            let (sent, event) = node.next(path);
            assert_eq!(event, Event::AdminDownSent);
            until("down at BIRD", || !lab.is_up_at_bird(1, local));
            assert!(sent.elapsed() < ms(300), "by word, and not by silence: {:?}", sent.elapsed());
            until("BIRD says why", || {
                node.session(path)
                    .status
                    .remote
                    .is_some_and(|remote| remote.diagnostic == Diagnostic::NeighborSignaledDown)
            });
            assert_eq!(node.next(path).1, Event::Stopped);
            assert_eq!(node.session(path).status.counts.downs.own_order, 1);
            node.driver.resume(path).expect("open");
            assert_eq!(node.next(path).1, Event::Up);
            node.driver.close(path).expect("open");
        }
        assert_eq!(node.report().sessions.len(), 0);
    });
}

#[test]
fn a_silent_loss_is_found_in_time_and_the_session_comes_back() {
    if !has_privileges() {
        return;
    }
    let mut lab = Lab::pair("loss");
    lab.start_bird(1, BIRD_100);
    lab.inside(|node| {
        let endpoint = single("up0", "10.9.0.1", "10.9.0.2");
        let path = endpoint.path();
        node.open(endpoint, settings(100));
        assert_eq!(node.next(path).1, Event::Up);
        until("no poll is left", || !node.session(path).status.is_polling);
        for _ in 0..3 {
            let cut = Instant::now();
            lab.ip(1, "link set up1 down");
            let (at, event) = node.next(path);
            let Event::Down { diagnostic: Diagnostic::DetectionTimeExpired, cause: Cause::Silence { silent_for } } =
                event
            else {
                panic!("{event:?}");
            };
            assert!(
                silent_for >= ms(300) && at - cut < ms(300) + SLACK,
                "{silent_for:?}, {:?} after the cut",
                at - cut
            );
            let silent_since = node.session(path).status.silent_since;
            assert!(boot_time() - silent_since < WAIT_MAX);
            lab.ip(1, "link set up1 up");
            assert_eq!(node.next(path).1, Event::Up);
            until("up at BIRD", || lab.is_up_at_bird(1, "10.9.0.1"));
        }
    });
}

#[test]
fn a_hung_engine_is_given_up_by_bird_and_what_bird_says_of_it_is_shown() {
    if !has_privileges() {
        return;
    }
    let mut lab = Lab::pair("hung");
    lab.start_bird(1, BIRD_100);
    lab.inside(|node| {
        let endpoint = single("up0", "10.9.0.1", "10.9.0.2");
        let path = endpoint.path();
        node.open(endpoint, settings(100));
        assert_eq!(node.next(path).1, Event::Up);
        until("no poll is left", || !node.session(path).status.is_polling);
        let hung = Instant::now();
        node.is_well.store(false, Ordering::Relaxed);
        let (at, event) = node.next(path);
        let cause = Cause::Remote { diagnostic: Diagnostic::DetectionTimeExpired };
        assert_eq!(event, Event::Down { diagnostic: Diagnostic::NeighborSignaledDown, cause });
        // A detection time until it stops, and one until BIRD gives it up.
        assert!(at - hung > ms(500) && at - hung < ms(600) + SLACK, "{:?}", at - hung);
        let status = node.session(path).status;
        assert_eq!(status.remote.map(|remote| remote.diagnostic), Some(Diagnostic::DetectionTimeExpired));
        assert!(status.is_withheld && status.counts.withheld > 0);
        thread::sleep(ms(2000));
        assert!(!lab.is_up_at_bird(1, "10.9.0.1"));
        node.is_well.store(true, Ordering::Relaxed);
        assert_eq!(node.next(path).1, Event::Up);
    });
}

#[test]
fn multihop_goes_through_a_router_and_heeds_the_minimum_ttl() {
    if !has_privileges() {
        return;
    }
    let mut lab = Lab::new("multi", 3);
    lab.link(0, 2, "up0", "r0", "10.9.0");
    lab.link(1, 2, "up1", "r1", "10.9.1");
    run(&format!("ip netns exec {} sysctl -qw net.ipv4.ip_forward=1", lab.names[2]));
    for (at, net) in [(0, "10.9.0"), (1, "10.9.1")] {
        lab.ip(at, &format!("addr add 10.255.0.{}/32 dev lo", at + 1));
        lab.ip(at, &format!("route add default via {net}.2"));
        lab.ip(2, &format!("route add 10.255.0.{}/32 via {net}.1", at + 1));
    }
    let bird = "multihop { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; };
        neighbor 10.255.0.1 local 10.255.0.2 multihop yes;";
    lab.start_bird(1, bird);
    lab.inside(|node| {
        let open = |node: &mut Node, ttl| {
            let hops = Hops::Multi { minimum_ttl: MinimumTtl::new(ttl).expect("not zero") };
            let endpoint = Endpoint::new(address("10.255.0.1"), address("10.255.0.2"), hops).expect("two ends");
            node.open(endpoint, settings(100));
            endpoint.path()
        };
        // BIRD begins with the usual TTL of 64, and the router takes one.
        let path = open(node, 64);
        until("packets come from too far", || {
            node.report().dropped.iter().any(|(reason, count)| *reason == DropReason::Ttl && *count > 1)
        });
        assert_eq!(node.session(path).status.state, State::Down);
        node.driver.close(path).expect("open");
        let path = open(node, 63);
        assert_eq!(node.next(path).1, Event::Up);
        until("up at BIRD", || lab.is_up_at_bird(1, "10.255.0.1"));
        let cut = Instant::now();
        until("no poll is left", || !node.session(path).status.is_polling);
        lab.ip(2, "link set r1 down");
        let (_, event) = node.next(path);
        assert!(
            matches!(event, Event::Down { cause: Cause::Silence { .. }, .. }),
            "{event:?} after {:?}",
            cut.elapsed()
        );
    });
}

#[test]
fn a_port_that_bird_holds_is_told_by_its_name_and_ours_cannot_be_taken() {
    if !has_privileges() {
        return;
    }
    let mut lab = Lab::pair("port");
    lab.start_bird(0, "accept ipv4 direct; interface \"up0\" { }; neighbor 10.9.0.2 dev \"up0\";");
    let mut bird = lab.birds.pop().expect("started above");
    lab.inside(|node| {
        let endpoint = single("up0", "10.9.0.1", "10.9.0.2");
        let error = node.driver.open(endpoint, settings(100)).expect_err("BIRD holds the port");
        let Error::PortTaken { port: 3784, holder: Some(holder), .. } = &error else { panic!("{error:?}") };
        assert_eq!((holder.name.as_str(), holder.pid), ("bird", bird.id()));
        assert!(error.to_string().contains("bird (pid "), "{error}");
        bird.kill().expect("it runs");
        bird.wait().expect("it runs");
        node.open(endpoint, settings(100));
        assert_eq!(bind_as_bird_does(3784), Some(libc::EADDRINUSE), "nobody takes our packets");
        node.driver.close(endpoint.path()).expect("open");
        until("the port is free again", || bind_as_bird_does(3784).is_none());
    });
}

/// Binds a socket with SO_REUSEADDR: the error's number, if there is one.
fn bind_as_bird_does(port: u16) -> Option<i32> {
    let one: libc::c_int = 1;
    let name = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    };
    // SAFETY: the option's value and the address live as long as the calls and have the lengths given; the descriptor
    // is closed here and known nowhere else.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR,
            (&raw const one).cast(),
            size_of_val(&one) as u32,
        );
        let result = libc::bind(socket, (&raw const name).cast(), size_of_val(&name) as u32);
        let error = std::io::Error::last_os_error().raw_os_error();
        libc::close(socket);
        error.filter(|_| result != 0)
    }
}
