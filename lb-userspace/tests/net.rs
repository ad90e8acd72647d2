//! Privileged: needs root, for network namespaces that each test makes and removes.
//!
//! `lb_userspace::net` against the kernel itself: a "node" namespace with pods on veths.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_userspace::net::{
    Capability, Error, Netlink, NetnsId,
    ethtool::{self, Ethtool, Offload},
    links::{self, LinkKind, Links, PodInterface},
    monitor::{Changes, Monitor},
    netns::{Namespaces, Netns},
    routes::{self, Family},
    sockets::{self, Listeners, TcpState},
};

/// Long for anything here, short for a person who waits for a failure.
const DEADLINE: Duration = Duration::from_secs(10);

/// False, with a message, where the test cannot run; a failure where the environment says that it must.
fn privileged() -> bool {
    // SAFETY: takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let required = std::env::var("SLUICE_REQUIRE_PRIVILEGES").is_ok_and(|value| value == "1");
    assert!(is_root || !required, "SLUICE_REQUIRE_PRIVILEGES=1, but this is not root");
    if !is_root {
        eprintln!("skipped: needs root for network namespaces");
    }
    is_root
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Asks again until there is an answer.
#[track_caller]
fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network namespace that goes when this does.
struct Namespace {
    name: String,
    netns: Option<Netns>,
}

impl Namespace {
    fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-net-{}-{number}-{role}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let mut namespace = Self { name, netns: None };
        namespace.netns = Some(Netns::open(format!("/run/netns/{}", namespace.name)).unwrap());
        namespace.ip("link set lo up");
        namespace
    }

    fn netns(&self) -> &Netns {
        self.netns.as_ref().unwrap()
    }

    /// `ip` with these words, inside.
    #[track_caller]
    fn ip(&self, words: &str) {
        let arguments: Vec<_> = ["-n", &self.name].into_iter().chain(words.split_whitespace()).collect();
        run("ip", &arguments);
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns().run(work).unwrap()
    }

    fn netlink(&self) -> Netlink {
        self.inside(Netlink::open).unwrap()
    }

    fn snapshot(&self) -> Links {
        links::snapshot(&mut self.netlink()).unwrap()
    }

    /// A pod behind a veth of this node, with these addresses and prefix lengths.
    fn pod(&self, host_name: &str, addresses: &[&str]) -> Namespace {
        let pod = Namespace::new("pod");
        self.ip(&format!("link add {host_name} type veth peer name eth0 netns {}", pod.name));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            pod.ip(&format!("address add {address} dev eth0 {nodad}"));
        }
        self.ip(&format!("link set {host_name} up"));
        pod.ip("link set eth0 up");
        pod
    }

    #[track_caller]
    fn pod_interface(&self, host_name: &str) -> PodInterface {
        self.snapshot().pods.into_iter().find(|pod| pod.host_name == host_name).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Our own descriptor would keep it, and its interfaces, alive.
        self.netns = None;
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

#[test]
fn pods_are_found_behind_routed_and_bridged_veths() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let pod = node.pod("cali1", &["10.1.0.2/32", "2001:db8:1::2/128"]);
    pod.ip("address add 203.0.113.7/32 dev lo");
    pod.ip("link set eth0 mtu 1450");
    let _bridged = node.pod("veth2", &["10.2.0.2/24"]);
    node.ip("link add br0 type bridge");
    node.ip("link set br0 up");
    node.ip("link set veth2 master br0");
    node.ip("address add 10.2.0.1/24 dev br0");
    node.ip("link add local0 type veth peer name local1");

    let links = node.snapshot();
    let found = links.pod_with_address(ip("10.1.0.2")).expect("the routed pod");
    assert_eq!(found, links.pod_with_address(ip("2001:db8:1::2")).unwrap());
    assert_eq!((found.host_name.as_str(), found.pod_name.as_str()), ("cali1", "eth0"));
    assert_eq!(found.addresses, [ip("10.1.0.2"), ip("2001:db8:1::2")]);
    assert_eq!(found.loopback_addresses, [ip("203.0.113.7")]);
    assert_eq!(found.mtu, 1450);
    assert!(found.is_running);
    assert!(links.pod_with_address(ip("203.0.113.7")).is_none());

    let inside = pod.snapshot();
    let eth0 = inside.by_name("eth0").unwrap();
    assert_eq!((found.pod_ifindex, found.pod_mac), (eth0.index, eth0.mac));
    let host = links.by_index(found.host_ifindex).unwrap();
    assert_eq!((host.mac, host.peer, host.peer_netns), (found.host_mac, Some(eth0.index), Some(found.netns_id)));
    assert_ne!(host.mac, eth0.mac);

    let bridged = links.pod_with_address(ip("10.2.0.2")).expect("the bridged pod");
    assert_ne!(bridged.netns_id, found.netns_id);
    let bridge = links.by_name("br0").unwrap();
    assert_eq!((&bridge.kind, bridge.is_up), (&LinkKind::Bridge, true));
    assert_eq!(links.by_name("veth2").unwrap().master, Some(bridge.index));
    assert!(links.addresses().any(|own| own.address == ip("10.2.0.1") && own.prefix_length == 24 && own.is_global));
    assert_eq!(links.by_name("lo").unwrap().kind, LinkKind::Loopback);

    // Both ends are here: a veth, but nobody's pod.
    let local = links.by_name("local0").unwrap();
    assert_eq!((&local.kind, local.peer_netns), (&LinkKind::Veth, None));
    assert_eq!(links.pods.len(), 2);
}

#[test]
fn a_restarted_pod_is_found_at_its_new_interface() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let mut netlink = node.netlink();
    let pod = node.pod("veth1", &["10.1.0.2/32"]);
    let before = node.pod_interface("veth1");
    drop(pod);
    gone(&node, "veth1");
    let _pod = node.pod("veth1", &["10.1.0.2/32"]);
    let links = links::snapshot(&mut netlink).unwrap();
    let after = links.pod_with_address(ip("10.1.0.2")).unwrap();
    assert_ne!(before.host_ifindex, after.host_ifindex);
    assert_ne!(before.pod_mac, after.pod_mac);
}

/// Waits for an interface to go. The kernel forgets a namespace first and destroys its interfaces a little later.
#[track_caller]
fn gone(node: &Namespace, interface: &str) {
    eventually("the interface goes", || node.snapshot().by_name(interface).is_none().then_some(()));
}

#[test]
fn a_namespace_is_found_by_its_id_also_after_the_id_was_reused() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let mut netlink = node.netlink();
    let mut namespaces = Namespaces::default();
    let mut find = |pod: &Namespace| {
        let id = node.pod_interface("veth1").netns_id;
        let found = namespaces.find(&mut netlink, id).unwrap();
        assert!(found.path().ends_with(&pod.name), "{:?}", found.path());
        let links = found.run(|| links::snapshot(&mut Netlink::open().unwrap()).unwrap()).unwrap();
        assert!(links.addresses().any(|own| own.address == ip("10.1.0.2")));
        id
    };
    let pod = node.pod("veth1", &["10.1.0.2/32"]);
    let before = find(&pod);
    drop(pod);
    gone(&node, "veth1");
    let pod = node.pod("veth1", &["10.1.0.2/32"]);
    assert_eq!(before, find(&pod), "ids are not reused at once: this test shows less than it says");

    let unknown = namespaces.find(&mut netlink, NetnsId(12_345)).unwrap_err();
    assert!(matches!(unknown, Error::NoNamespace { id: NetnsId(12_345), .. }), "{unknown}");
}

#[test]
fn a_namespace_that_only_a_process_holds_is_found() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let mut holder = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    eventually("unshare has made its namespace", || std::fs::read_link(&path).ok().filter(|link| *link != own));
    node.ip(&format!("link add veth1 type veth peer name eth0 netns {}", holder.id()));
    let id = node.pod_interface("veth1").netns_id;
    let found = Namespaces::default().find(&mut node.netlink(), id).map(|netns| netns.path().to_owned());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(found.unwrap().to_str(), Some(path.as_str()));
}

#[test]
fn gro_is_switched_inside_a_pod_and_back() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let _pod = node.pod("veth1", &["10.1.0.2/32"]);
    let interface = node.pod_interface("veth1");
    let netns = Namespaces::default().find(&mut node.netlink(), interface.netns_id).unwrap();
    let set = |on| ethtool::set_in(&netns, interface.pod_ifindex, Offload::Gro, on).unwrap();
    assert!(!set(true), "off by default");
    assert!(set(true), "on by now");

    let inside = Ethtool::open_in(&netns).unwrap();
    assert!(inside.get("eth0", Offload::Gro).unwrap());
    let outside = Ethtool::open_in(node.netns()).unwrap();
    assert!(!outside.get("veth1", Offload::Gro).unwrap(), "the other end is left alone");
    assert!(set(false));
    assert!(!inside.get("eth0", Offload::Gro).unwrap());
}

#[test]
fn other_offloads_and_the_driver_are_read_and_refusals_named() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let _pod = node.pod("veth1", &[]);
    let ethtool = Ethtool::open_in(node.netns()).unwrap();
    assert_eq!(ethtool.driver("veth1").unwrap(), "veth");
    for offload in [Offload::TxChecksum, Offload::RxVlan] {
        assert!(ethtool.set("veth1", offload, false).unwrap(), "{offload:?} is on by default");
        assert!(!ethtool.get("veth1", offload).unwrap(), "{offload:?}");
    }
    assert!(!ethtool.set("veth1", Offload::Lro, false).unwrap());
    let refused = ethtool.set("veth1", Offload::Lro, true).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    for name in ["nothere", "a-name-of-more-than-fifteen-bytes"] {
        let missing = ethtool.set(name, Offload::Gro, true).unwrap_err();
        assert!(matches!(missing, Error::NoInterface { .. }), "{missing}");
        assert!(missing.to_string().contains(name), "{missing}");
    }
    assert!(matches!(ethtool.interface_name(9999), Err(Error::NoInterface { .. })));
}

const CLIENT_AND_SERVER: [(&str, &str); 2] = [("10.1.0.1", "10.1.0.2"), ("2001:db8:1::1", "2001:db8:1::2")];

/// A node with those clients' addresses, and a pod with the servers'.
fn node_with_server() -> (Namespace, Namespace) {
    let node = Namespace::new("node");
    let pod = node.pod("veth1", &["10.1.0.2/24", "2001:db8:1::2/64"]);
    node.ip("address add 10.1.0.1/24 dev veth1");
    node.ip("address add 2001:db8:1::1/64 dev veth1 nodad");
    (node, pod)
}

/// Connections of the pod with this client.
fn stages(pod: &Namespace, ports: &[u16], client: IpAddr) -> Vec<(SocketAddr, TcpState)> {
    let all = sockets::connections_in(pod.netns(), ports, Listeners::Without).unwrap();
    let with_client = all.iter().filter(|connection| connection.remote.ip() == client);
    with_client.map(|connection| (connection.local, connection.state)).collect()
}

#[test]
fn connections_are_listed_in_every_stage_and_mapped_addresses_as_ipv4() {
    if !privileged() {
        return;
    }
    let (node, pod) = node_with_server();
    // One listener for both families, as most servers have it; and a port that is asked for only once.
    let listener = pod.inside(|| TcpListener::bind("[::]:8080")).unwrap();
    let _other = pod.inside(|| TcpListener::bind("[::]:9090")).unwrap();
    assert_eq!(sockets::connections_in(pod.netns(), &[8080, 9090], Listeners::Without).unwrap(), []);
    let listening = sockets::connections_in(pod.netns(), &[8080], Listeners::With).unwrap();
    let listening: Vec<_> = listening.iter().map(|listener| (listener.local, listener.state)).collect();
    assert_eq!(listening, [("[::]:8080".parse().unwrap(), TcpState::Listen)]);

    for (client, server) in CLIENT_AND_SERVER {
        let (client, server) = (ip(client), ip(server));
        let local = SocketAddr::new(server, 8080);
        let reaches = |state| {
            let found = || stages(&pod, &[8080], client);
            eventually(&format!("{local} {state:?}"), || (found() == [(local, state)]).then_some(()));
        };
        let mut stream = node.inside(|| TcpStream::connect(local)).unwrap();
        let _unasked = node.inside(|| TcpStream::connect((server, 9090))).unwrap();
        reaches(TcpState::Established);
        let (accepted, remote) = listener.accept().unwrap();
        assert_eq!(remote.ip().to_canonical(), client);
        reaches(TcpState::Established);
        let both = [(local, TcpState::Established), (SocketAddr::new(server, 9090), TcpState::Established)];
        assert_eq!(stages(&pod, &[8080, 9090], client), both);

        // The server closes first, so TIME_WAIT is its.
        drop(accepted);
        reaches(TcpState::FinWait2);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        drop(stream);
        reaches(TcpState::TimeWait);
    }
}

#[test]
fn an_open_handshake_is_listed() {
    if !privileged() {
        return;
    }
    let (node, pod) = node_with_server();
    let pod_mac = pod.snapshot().by_name("eth0").unwrap().mac.map(|byte| format!("{byte:02x}")).join(":");
    let listener = pod.inside(|| TcpListener::bind("[::]:8080")).unwrap();
    listener.set_nonblocking(true).unwrap();
    for (client, server) in CLIENT_AND_SERVER {
        let (client, server) = (ip(client), SocketAddr::new(ip(server), 8080));
        // SYNs arrive, and SYN-ACKs go to an address on the wire that is nobody's.
        node.ip(&format!("neighbour replace {} lladdr {pod_mac} dev veth1 nud permanent", server.ip()));
        pod.ip(&format!("neighbour replace {client} lladdr 02:00:00:00:de:ad dev eth0 nud permanent"));
        thread::scope(|scope| {
            let attempt = scope.spawn(|| node.inside(|| TcpStream::connect_timeout(&server, DEADLINE)));
            eventually("half open", || {
                (stages(&pod, &[8080], client) == [(server, TcpState::SynReceived)]).then_some(())
            });
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
            // The retransmitted SYN-ACK then gets through.
            pod.ip(&format!("neighbour del {client} dev eth0"));
            attempt.join().unwrap().unwrap().write_all(b"x").unwrap();
        });
        eventually("accepted", || listener.accept().ok());
    }
}

#[test]
fn the_monitor_hears_addresses_inside_pods_and_sums_changes_up() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let pod = node.pod("veth1", &[]);
    assert_eq!(node.snapshot().pods.len(), 1);
    let mut monitor = node.inside(Monitor::open).unwrap();
    quieten(&mut monitor);

    pod.ip("address add 10.1.0.9/32 dev eth0");
    let links_only = Changes { links: true, ..Changes::default() };
    assert_eq!(monitor.wait(DEADLINE).unwrap(), links_only, "one sum; the pod's route is not ours");
    assert!(node.snapshot().pod_with_address(ip("10.1.0.9")).is_some());
    pod.ip("neighbour add 10.1.0.1 lladdr 02:00:00:00:00:01 dev eth0");
    assert_eq!(monitor.drain().unwrap(), Changes::default(), "nor its neighbours");

    node.ip("route add 10.1.0.9/32 dev veth1");
    assert_eq!(monitor.wait(DEADLINE).unwrap(), Changes { routes: true, ..Changes::default() });
    node.ip("neighbour add 10.1.0.9 lladdr 02:00:00:00:00:02 dev veth1");
    assert_eq!(monitor.wait(DEADLINE).unwrap(), Changes { neighbours: true, ..Changes::default() });
    drop(pod);
    eventually("the pod is gone", || monitor.wait(DEADLINE).unwrap().links.then_some(()));
    let _pod = node.pod("veth2", &[]);
    eventually("another is there", || monitor.wait(DEADLINE).unwrap().links.then_some(()));
}

/// Waits until nothing has changed for longer than duplicate address detection takes: an interface that comes up goes
/// on causing changes for a while.
fn quieten(monitor: &mut Monitor) {
    let end = Instant::now() + 2 * DEADLINE;
    while monitor.wait(Duration::from_secs(3)).unwrap().any() {
        assert!(Instant::now() < end, "changes do not end");
    }
}

#[test]
fn lost_notifications_ask_for_a_resynchronisation_once() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    // The kernel's own minimum: a few notifications.
    let mut monitor = node.inside(|| Monitor::with_buffer(1)).unwrap();
    for number in 1..=20 {
        node.ip(&format!("address add 10.9.0.{number}/32 dev lo"));
    }
    let changes = monitor.wait(DEADLINE).unwrap();
    assert!(changes.overrun && changes.links && changes.routes && changes.neighbours, "{changes:?}");
    assert_eq!(monitor.drain().unwrap(), Changes::default());
    node.ip("address del 10.9.0.1/32 dev lo");
    let changes = monitor.wait(DEADLINE).unwrap();
    assert!(changes.links && !changes.overrun, "{changes:?}");
}

#[test]
fn a_probe_client_is_a_gateway_or_else_a_host_of_the_uplinks_subnet() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let _router = node.pod("uplink0", &["192.0.2.254/24"]);
    let mut netlink = node.netlink();
    let mut client = |family| {
        let (links, routes) = (links::snapshot(&mut netlink).unwrap(), routes::snapshot(&mut netlink).unwrap());
        routes.probe_client(&links, links.by_name("uplink0").unwrap().index, family)
    };
    assert_eq!((client(Family::V4), client(Family::V6)), (None, None));

    node.ip("address add 192.0.2.1/24 dev uplink0");
    node.ip("address add 2001:db8::1/64 dev uplink0 nodad");
    assert_eq!(client(Family::V4), Some(ip("192.0.2.2")), "the lowest is ours");
    assert_eq!(client(Family::V6), Some(ip("2001:db8::2")));

    node.ip("route add default via 192.0.2.254 dev uplink0");
    node.ip("-6 route add default via fe80::1 dev uplink0");
    assert_eq!(client(Family::V4), Some(ip("192.0.2.254")));
    assert_eq!(client(Family::V6), Some(ip("2001:db8::2")), "a link-local gateway is no client");
    node.ip("-6 route add 2001:db8:f::/48 via 2001:db8::fe dev uplink0");
    assert_eq!(client(Family::V6), Some(ip("2001:db8::fe")));

    node.ip("route replace default nexthop via 192.0.2.253 dev uplink0 nexthop via 192.0.2.252 dev uplink0");
    assert_eq!(client(Family::V4), Some(ip("192.0.2.253")));
}

#[test]
fn a_missing_namespace_and_missing_privileges_are_named() {
    if !privileged() {
        return;
    }
    let missing = Netns::open("/run/netns/sluice-net-nothere").unwrap_err();
    assert!(missing.to_string().contains("/run/netns/sluice-net-nothere"), "{missing}");
    let no_namespace = Netns::open("/proc/self/status").unwrap().run(|| ()).unwrap_err();
    assert!(no_namespace.to_string().contains("cannot enter the namespace"), "{no_namespace}");

    let node = Namespace::new("node");
    let _pod = node.pod("veth1", &["10.1.0.2/32"]);
    let errors = node.inside(|| {
        become_nobody();
        [
            (Capability::NetAdmin, links::snapshot(&mut Netlink::open().unwrap()).err()),
            (Capability::NetAdmin, Ethtool::open().unwrap().set("veth1", Offload::Gro, true).err()),
            (Capability::NetBroadcast, Monitor::open().err()),
            (Capability::SysAdmin, node.netns().run(|| ()).err()),
            (Capability::SysPtrace, Netns::open("/proc/1/ns/net").err()),
        ]
    });
    for (expected, error) in errors {
        let error = error.expect("needs a privilege");
        assert!(matches!(error, Error::Privilege { capability, .. } if capability == expected), "{error}");
        assert!(error.to_string().contains(&expected.to_string()), "{error}");
    }
}

/// Gives up all privileges of this thread, and of no other: the system call, unlike the C library's function, is about
/// the calling thread alone.
fn become_nobody() {
    const NOBODY: libc::uid_t = 65_534;
    // SAFETY: only integers are passed.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(result, 0);
}

#[test]
#[ignore = "takes a minute: run by hand to see what a full node costs"]
fn a_node_with_250_pods_is_read_in_a_moment() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    let pods: Vec<_> = (0..250).map(|n| node.pod(&format!("veth{n}"), &[&format!("10.1.0.{n}/32")])).collect();
    let mut netlink = node.netlink();
    let started = Instant::now();
    let links = links::snapshot(&mut netlink).unwrap();
    eprintln!("links and pods: {:?}", started.elapsed());
    assert_eq!(links.pods.len(), pods.len());
    let started = Instant::now();
    let mut namespaces = Namespaces::default();
    for pod in &links.pods {
        namespaces.find(&mut netlink, pod.netns_id).unwrap();
    }
    eprintln!("all namespaces by id: {:?}", started.elapsed());
}
