//! Namespaces with BIRD in them, and a node with one peer.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lb_tests::lab::wait_until;
use lb_userspace::announce::bgp::{
    driver::{PeerReport, Problem, Report, Secret, Speaker, Wanted, WantedPeer},
    machine::{InterfaceAddresses, Mode, PeerAs, RestartFacts, Settings, State, Status},
    route::{Attributes, Route},
    values::{AsNumber, HoldTime, Identifier, Prefix},
};

/// Longest wait for anything: a few retries of both sides on a busy machine.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
pub const PREFIXES: [&str; 2] = ["203.0.113.1/32", "2001:db8:f::1/128"];
/// What every peer of BIRD has here: it tries again soon.
pub const SOON: &str =
    "hold time 9; error wait time 1, 2; connect retry time 1; connect delay time 1; error forget time 1;";
pub const CHANNELS: &str =
    "ipv4 { import all; export none; extended next hop on; }; ipv6 { import all; export none; };";

pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("a program that is there");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_until(what, WAIT_MAX, || Ok(condition().then_some(()))).unwrap_or_else(|error| panic!("{error:#}"));
}

/// This thread is in that network namespace from here on.
pub fn enter(name: &str) {
    let space = fs::File::open(format!("/run/netns/{name}")).expect("made before");
    // SAFETY: no pointers are passed; the descriptor is that of a network namespace.
    assert_eq!(unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
}

/// Whether the tests can run here; where the environment says that they must, they fail instead.
pub fn has_privileges() -> bool {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let has_bird = Command::new("bird").arg("--version").output().is_ok();
    let must = std::env::var_os("SLUICE_REQUIRE_PRIVILEGES").is_some();
    assert!(!must || is_root && has_bird, "root and bird2 must be there: root {is_root}, bird2 {has_bird}");
    is_root && has_bird
}

/// A node and a router with a link: 10.9.0.1 and .2, 2001:db8:9::1 and ::2, fe80::1 and ::2. All goes with it.
pub struct Lab {
    pub names: [String; 2],
    pub folder: PathBuf,
    pub birds: Vec<(usize, Child)>,
}

pub const NODE: usize = 0;
pub const ROUTER: usize = 1;

impl Lab {
    pub fn new(test: &str) -> Self {
        let suffix = format!("{test}-{}", std::process::id());
        let names = [format!("bgp-{suffix}-0"), format!("bgp-{suffix}-1")];
        let folder = std::env::temp_dir().join(format!("bgp-{suffix}"));
        fs::create_dir_all(&folder).expect("a folder");
        let lab = Self { names, folder, birds: Vec::new() };
        for name in &lab.names {
            run(&format!("ip netns add {name}"));
            run(&format!("ip -n {name} link set lo up"));
        }
        let [node, router] = &lab.names;
        run(&format!("ip -n {node} link add up0 type veth peer name up1 netns {router}"));
        for (space, device, end) in [(node, "up0", 1), (router, "up1", 2)] {
            run(&format!("ip -n {space} link set {device} addrgenmode none up"));
            run(&format!("ip -n {space} addr add 10.9.0.{end}/24 dev {device}"));
            run(&format!("ip -n {space} addr add 2001:db8:9::{end}/64 dev {device} nodad"));
            run(&format!("ip -n {space} addr add fe80::{end}/64 dev {device} nodad"));
        }
        lab
    }

    fn control(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.ctl"))
    }

    pub fn start_bird(&mut self, at: usize, text: &str) {
        self.start_bird_as(at, &at.to_string(), text);
    }

    /// The same by a name, so that there may be more.
    pub fn start_bird_as(&mut self, at: usize, name: &str, text: &str) {
        let (config, control) = (self.folder.join(format!("{name}.conf")), self.control(name));
        let text = format!("router id 10.0.0.{};\nprotocol device {{ }}\n{text}\n", at + 2);
        fs::write(&config, text).expect("the folder is there");
        let mut bird = Command::new("ip");
        bird.args(["netns", "exec", &self.names[at], "bird", "-f", "-c"]).arg(config).arg("-s").arg(&control);
        bird.arg("-P").arg(self.folder.join(format!("{name}.pid")));
        let bird = bird.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ip is there");
        self.birds.push((at, bird));
        until("BIRD answers", || {
            Command::new("birdc").arg("-s").arg(&control).arg("show status").output().is_ok_and(|o| o.status.success())
        });
    }

    /// Kills it, as a crash would.
    pub fn kill_bird(&mut self, at: usize) {
        for (_, bird) in self.birds.extract_if(.., |(of, _)| *of == at).collect::<Vec<_>>().iter_mut() {
            // `ip netns exec` has become BIRD: the process is its own.
            let _ = bird.kill();
            let _ = bird.wait();
        }
    }

    pub fn bird(&self, at: usize, command: &str) -> String {
        self.bird_as(&at.to_string(), command)
    }

    pub fn bird_as(&self, name: &str, command: &str) -> String {
        run(&format!("birdc -s {} {command}", self.control(name).display()))
    }

    pub fn has_routes(&self) -> bool {
        let table = self.bird(ROUTER, "show route");
        PREFIXES.iter().all(|prefix| table.contains(prefix))
    }

    pub fn until_routes(&self) {
        until("the routes in BIRD", || self.has_routes());
    }

    /// Runs the test in the node, on a thread of its own.
    pub fn inside(&mut self, test: impl FnOnce(&mut Self) + Send) {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.names[NODE]);
                test(self);
            });
            if let Err(panic) = inside.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill_bird(NODE);
        self.kill_bird(ROUTER);
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A router's peer: `ends` in BIRD's words, and more settings.
pub fn peer_of_bird(local: &str, neighbour: &str, more: &str) -> String {
    format!("protocol bgp node {{ local {local} as 65002; neighbor {neighbour} as 65001; {SOON} {more} {CHANNELS} }}")
}

pub fn passive(more: &str) -> String {
    peer_of_bird("10.9.0.2", "10.9.0.1", &format!("passive on; {more}"))
}

pub fn dialling(more: &str) -> String {
    peer_of_bird("10.9.0.2", "10.9.0.1", more)
}

pub fn settings(mode: Mode) -> Settings {
    let number = |number| AsNumber::new(number).expect("legal");
    let identifier = Identifier::new("10.0.0.1".parse().expect("an address")).expect("legal");
    let hold_time = HoldTime::from_seconds(9).expect("legal");
    let peer_as = PeerAs::Number(number(65002));
    let dial_time = Duration::from_secs(2);
    Settings { hold_time, mode, dial_time, ..Settings::new(number(65001), peer_as, identifier) }
}

pub fn peer(mode: Mode, remote: &str) -> WantedPeer {
    let route = |prefix: &str| {
        let (address, length) = prefix.split_once('/').expect("a prefix");
        let prefix = Prefix::new(address.parse().expect("an address"), length.parse().expect("a number"));
        let prefix = prefix.expect("unicast");
        (prefix, Route { prefix, next_hop: None, attributes: Arc::new(Attributes::default()) })
    };
    let interface_addresses = InterfaceAddresses { ipv4: "10.9.0.1".parse().ok(), ipv6: "2001:db8:9::1".parse().ok() };
    let routes: BTreeMap<_, _> = PREFIXES.map(route).into();
    let remote: IpAddr = remote.parse().expect("an address");
    WantedPeer {
        interface_addresses,
        routes: Arc::new(routes),
        routes_complete: true,
        ..WantedPeer::new(settings(mode), Some(remote))
    }
}

pub fn secret(words: &str) -> Option<Secret> {
    Some(Secret::new(words.as_bytes()).expect("legal"))
}

/// The driver with one peer.
pub struct Node {
    pub speaker: Speaker,
    pub restart: RestartFacts,
}

impl Node {
    pub fn start() -> Self {
        Self::restarted(RestartFacts::default())
    }

    pub fn restarted(restart: RestartFacts) -> Self {
        Self { speaker: Speaker::start(4711, || {}).expect("a thread"), restart }
    }

    pub fn want(&self, peer: &WantedPeer) {
        let peers = [("router".to_owned(), peer.clone())].into();
        self.speaker.want(Wanted { peers, restart: self.restart.clone(), ..Wanted::default() });
    }

    pub fn with(peer: &WantedPeer) -> Self {
        let node = Self::start();
        node.want(peer);
        node
    }

    pub fn report(&self) -> Report {
        // A busy machine may keep the thread from answering in time.
        let end = Instant::now() + WAIT_MAX;
        loop {
            if let Some(report) = self.speaker.report() {
                return report;
            }
            assert!(Instant::now() < end, "the thread does not answer");
        }
    }

    pub fn peer(&self) -> Option<PeerReport> {
        self.report().peers.into_iter().next()
    }

    /// Waits for something that the peer's report shows.
    pub fn until(&self, what: &str, mut condition: impl FnMut(&PeerReport, &Status) -> bool) {
        let mut last = Report::default();
        let seen = wait_until(what, WAIT_MAX, || {
            last = self.report();
            let peer = last.peers.first();
            let is_seen = peer.is_some_and(|peer| peer.status.as_ref().is_some_and(|status| condition(peer, status)));
            Ok(is_seen.then_some(()))
        });
        seen.unwrap_or_else(|error| panic!("{error:#}: {last:#?}"));
    }

    pub fn until_established(&self) {
        self.until("a session", |_, status| status.state == State::Established);
    }

    pub fn until_problem(&self, what: &str, mut is_it: impl FnMut(&Problem) -> bool) {
        self.until(what, |peer, _| peer.problems.iter().any(|shown| is_it(&shown.problem)));
    }
}

/// With BIRD at the router.
pub fn with_bird(test: &str, config: &str, then: impl FnOnce(&mut Lab) + Send) {
    if !has_privileges() {
        return;
    }
    let mut lab = Lab::new(test);
    lab.start_bird(ROUTER, config);
    lab.inside(then);
}

/// Of this thread's namespace.
pub fn extended_counter(name: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/netstat").expect("the kernel counts");
    let mut lines = table.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
    let at = names.split_whitespace().position(|it| it == name).expect("a name of a counter");
    numbers.split_whitespace().nth(at).and_then(|number| number.parse().ok()).expect("a number")
}
