//! What the drivers of BGP and BFD say to a router.

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    lab::{Lab, NODE, Namespace, Options, ROUTER_END, UPLINK, privileged, wait_until},
    process::Process,
    programs::{
        PATIENCE,
        tshark::{Capture, Dissection},
    },
};
use lb_userspace::announce::{
    bfd::{
        driver::{Driver, boot_time},
        machine::{self as bfd, Endpoint, Heartbeat, Hops},
        packet::State as BfdState,
    },
    bgp::{
        driver::{PeerReport, Speaker, Wanted, WantedPeer},
        machine::{CeaseReason, InterfaceAddresses, Mode, PeerAs, RestartFacts, Settings, Stage, State},
        packet::Communication,
        route::{Attributes, BandwidthKind, Community, LargeCommunity, LinkBandwidth, Route},
        values::{AsNumber, Family, HoldTime, Identifier, Prefix, RestartTime},
    },
};

use super::{check_found, of_the_node};

const ROUTER: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
/// Sessions by what is peculiar to them; BIRD has one with each address of the node's.
const PEERS: [Peer; 4] = [
    // Everything that both can do.
    Peer { name: "v4", node: "198.51.100.10", local_as: 65001, remote_as: 65002, bird: "" },
    // IPv4 prefixes with IPv6 next hops.
    Peer { name: "v6", node: "2001:db8:2::10", local_as: 65001, remote_as: 65002, bird: "" },
    // AS_TRANS and AS4_PATH.
    Peer { name: "narrow", node: "198.51.100.11", local_as: 4_200_000_001, remote_as: 65002, bird: "enable as4 off;" },
    // Local preference, and link bandwidth of the assigned type.
    Peer { name: "inside", node: "198.51.100.12", local_as: 65001, remote_as: 65001, bird: "" },
];

#[derive(Clone, Copy)]
struct Peer {
    name: &'static str,
    node: &'static str,
    local_as: u32,
    remote_as: u32,
    bird: &'static str,
}

impl Peer {
    fn addresses(self) -> (IpAddr, IpAddr) {
        let node: IpAddr = self.node.parse().expect("an address");
        (node, ROUTER[usize::from(node.is_ipv6())].parse().expect("an address"))
    }

    fn bird(self) -> String {
        let Self { name, local_as, remote_as, bird, .. } = self;
        let (node, router) = self.addresses();
        // Where BIRD is to know two octets alone, it does not take a longer number, but anybody of another AS.
        let neighbor = if u16::try_from(local_as).is_ok() { format!("as {local_as}") } else { "external".to_owned() };
        format!(
            "protocol bgp {name} {{\n\
               local {router} as {remote_as};\n\
               neighbor {node} {neighbor};\n\
               passive on; graceful restart on; {bird}\n\
               ipv4 {{ import all; export none; extended next hop on; }};\n\
               ipv6 {{ import all; export none; }};\n\
             }}\n"
        )
    }

    fn wanted(self, stage: Stage) -> WantedPeer {
        let number = |number| AsNumber::new(number).expect("legal");
        let identifier = Identifier::new(NODE.v4).expect("not zero");
        let settings = Settings {
            mode: Mode::Dial,
            hold_time: HoldTime::from_seconds(9).expect("legal"),
            graceful_restart: Some(RestartTime::DEFAULT),
            bandwidth: BandwidthKind::Transitive,
            ..Settings::new(number(self.local_as), PeerAs::Number(number(self.remote_as)), identifier)
        };
        WantedPeer {
            source: Some(self.addresses().0),
            interface_addresses: InterfaceAddresses { ipv4: None, ipv6: Some(NODE.v6) },
            routes: Arc::new(routes()),
            routes_complete: true,
            stage,
            ..WantedPeer::new(settings, Some(self.addresses().1))
        }
    }
}

fn routes() -> BTreeMap<Prefix, Route> {
    let attributes = Arc::new(Attributes {
        med: Some(50),
        communities: [Community(0xfde9_0007), Community(0xfde9_0008)].into(),
        large_communities: [LargeCommunity(65001, 1, 2), LargeCommunity(65001, 1, 3)].into(),
        link_bandwidth: LinkBandwidth::new(3, 1e6),
        ..Attributes::default()
    });
    let plain = Arc::new(Attributes::default());
    let prefixes = [("203.0.113.0", 28, &attributes), ("203.0.113.1", 32, &plain), ("2001:db8:f::1", 128, &attributes)];
    let of = |(address, length, attributes): (&str, _, &Arc<_>)| {
        let prefix = Prefix::new(address.parse().expect("an address"), length).expect("unicast");
        (prefix, Route { prefix, next_hop: None, attributes: Arc::clone(attributes) })
    };
    prefixes.map(of).into()
}

const BGP: &[(&str, &str)] = &[
    ("OPEN", "bgp.type == 1"),
    ("OPEN with graceful restart", "bgp.cap.type == 64 && bgp.cap.gr.timers.restart_time > 0 && bgp.cap.gr.afi == 2"),
    ("OPEN of who has restarted", "bgp.cap.gr.timers.restart_flag == 1 && bgp.cap.gr.flag.pfs == 1"),
    ("OPEN with extended next hop", "bgp.cap.type == 5 && bgp.cap.enh.nhafi == 2"),
    ("OPEN with AS numbers of four octets", "bgp.cap.type == 65 && bgp.cap.4as == 4200000001"),
    ("OPEN with route refresh", "bgp.type == 1 && bgp.cap.type == 2"),
    ("KEEPALIVE", "bgp.type == 4"),
    ("UPDATE of IPv4", "bgp.type == 2 && bgp.nlri_prefix == 203.0.113.0 && bgp.update.path_attribute.next_hop"),
    ("UPDATE of IPv6", "bgp.type == 2 && bgp.mp_reach_nlri_ipv6_prefix == 2001:db8:f::1"),
    (
        "UPDATE of IPv4 with an IPv6 next hop",
        "bgp.type == 2 && bgp.update.path_attribute.mp_reach_nlri.afi == 1 && \
         bgp.update.path_attribute.mp_reach_nlri.next_hop.ipv6 == 2001:db8:2::10",
    ),
    ("MED", "bgp.update.path_attribute.multi_exit_disc == 50"),
    ("local preference", "bgp.update.path_attribute.local_pref == 100"),
    ("communities", "bgp.update.path_attribute.community_value == 7 && bgp.update.path_attribute.community_value == 8"),
    ("large communities", "bgp.update.path_attribute.type_code == 32"),
    ("link bandwidth, transitive", "bgp.update.path_attribute.type_code == 16 && bgp.ext_com.type == 0x00"),
    ("link bandwidth, not transitive", "bgp.update.path_attribute.type_code == 16 && bgp.ext_com.type == 0x40"),
    ("AS4_PATH", "bgp.update.path_attribute.type_code == 17"),
    ("GRACEFUL_SHUTDOWN", "bgp.update.path_attribute.community_wellknown == 0xffff0000"),
    ("End-of-RIB of IPv4", "bgp.type == 2 && bgp.length == 23"),
    ("End-of-RIB of IPv6", "bgp.type == 2 && bgp.length == 30"),
    ("withdrawal of IPv4", "bgp.type == 2 && bgp.withdrawn_prefix == 203.0.113.0"),
    ("withdrawal of IPv6", "bgp.type == 2 && bgp.mp_unreach_nlri_ipv6_prefix == 2001:db8:f::1"),
    ("NOTIFICATION with words", "bgp.type == 3 && bgp.notify.communication contains \"drained\""),
    (
        "NOTIFICATION: peer de-configured",
        "bgp.type == 3 && bgp.notify.major_error == 6 && bgp.notify.minor_error_cease == 3",
    ),
];

const BFD: &[(&str, &str)] = &[
    ("BFD in Down", "bfd.sta == 1 && ip.ttl == 255"),
    ("BFD on its way", "bfd.sta == 2 || bfd.sta == 3 && bfd.flags.p == 1"),
    ("BFD up, IPv4", "bfd.sta == 3 && udp.dstport == 3784 && ip.ttl == 255"),
    ("BFD up, IPv6", "bfd.sta == 3 && udp.dstport == 3784 && ipv6.hlim == 255"),
    ("BFD up, multihop", "bfd.sta == 3 && udp.dstport == 4784"),
    ("BFD with Final", "bfd.flags.f == 1"),
    ("BFD switched off", "bfd.sta == 0 && bfd.diag == 7"),
];

#[test]
fn what_is_said_by_bgp_is_well_formed() -> Result<()> {
    if !privileged("dissect") {
        return Ok(());
    }
    let lab = Lab::new("dissect-bgp", Options { pods: 0, ..Options::default() })?;
    lab.node.ip(&PEERS[2..]
        .iter()
        .map(|peer| format!("address add {}/24 dev {UPLINK}\n", peer.node))
        .collect::<String>())?;
    let bird = Bird::start(&lab.router, lab.directory())?;
    let capture = Capture::start(&lab.router, ROUTER_END)?;
    let restart = RestartFacts { restarted: true, forwarding: Family::ALL.into() };
    let speaker = lab.node.run(|| Speaker::start(4711, || {}))?;
    let want = |stage: &Stage| {
        let peers = PEERS.map(|peer| (peer.name.to_owned(), peer.wanted(stage.clone()))).into();
        speaker.want(Wanted { peers, restart: restart.clone(), ..Wanted::default() });
    };
    let all = |what: &str, holds: &dyn Fn(&PeerReport) -> bool| {
        wait_until(what, PATIENCE, || {
            let report = speaker.report();
            Ok(report.is_some_and(|it| it.peers.len() == PEERS.len() && it.peers.iter().all(holds)).then_some(()))
        })
        .with_context(|| format!("{:#?}\n{}", speaker.report(), bird.log()))
    };
    want(&Stage::Running);
    all("all sessions with all routes", &|peer| {
        peer.status
            .as_ref()
            .is_some_and(|it| it.state == State::Established && it.announced.values().sum::<usize>() == 3)
    })?;
    let updates = |peer: &PeerReport| peer.status.as_ref().map_or(0, |it| it.counters.sent.update);
    let before: Vec<u64> = speaker.report().context("the speaker says nothing")?.peers.iter().map(updates).collect();
    bird.control("reload in all")?;
    wait_until("all routes to be sent once more", PATIENCE, || {
        let report = speaker.report();
        let again = |(peer, before): (&PeerReport, &u64)| {
            let asked = peer.status.as_ref().is_some_and(|it| it.counters.received.route_refresh > 0);
            asked && updates(peer) > *before
        };
        Ok(report.is_some_and(|it| it.peers.iter().zip(&before).all(again)).then_some(()))
    })?;
    for stage in [Stage::GracefulShutdown, Stage::Withdrawn] {
        want(&stage);
        all("the stage", &|peer| peer.stage_sent && peer.status.as_ref().is_some_and(|it| it.stage == stage))?;
    }
    // One is told why in words, the others are no longer configured.
    let words = Some(Communication::new("node drained"));
    let ceased = PEERS[0].wanted(Stage::Ceased(CeaseReason::Shutdown, words));
    let peers = [(PEERS[0].name.to_owned(), ceased)].into();
    speaker.want(Wanted { peers, restart: restart.clone(), ..Wanted::default() });
    wait_until("the last words", PATIENCE, || {
        let report = speaker.report();
        Ok(report.is_some_and(|it| it.peers.len() == 1 && it.peers[0].stage_sent).then_some(()))
    })?;
    let ours = of_the_node(&lab, capture.stop()?)?;
    let dissection = Dissection::new(&ours, lab.directory(), "bgp")?;
    dissection.check(BGP)?;
    // Routes are asked for again, and sent again.
    let sent = dissection.matching("bgp.nlri_prefix == 203.0.113.0 && ip.src == 198.51.100.10")?.len();
    ensure!(sent >= 3, "at first, asked for, and with GRACEFUL_SHUTDOWN: {sent}");

    let is_update = |frame: &[u8]| update_at(frame).is_some();
    check_found(&lab, &ours, "update", is_update, |frame| {
        let at = update_at(frame).expect("as was looked for");
        frame[at + 21] = 0x7f;
    })
}

/// Where an UPDATE with attributes begins in a frame.
fn update_at(frame: &[u8]) -> Option<usize> {
    let at = frame.windows(16).position(|window| window == [0xff; 16])?;
    let &[_, length, kind, _, _, _, attributes] = frame.get(at + 16..at + 23)? else { return None };
    (kind == 2 && length > 40 && attributes > 20).then_some(at)
}

/// Packets of three sessions that are waited for: several of each.
const MORE: u64 = 12;

#[test]
fn what_is_said_by_bfd_is_well_formed() -> Result<()> {
    if !privileged("dissect") {
        return Ok(());
    }
    let lab = Lab::new("dissect-bfd", Options { pods: 0, ..Options::default() })?;
    let capture = Capture::start(&lab.router, ROUTER_END)?;
    let settings = |milliseconds| {
        let interval = Duration::from_millis(milliseconds);
        bfd::Settings::new(interval, interval, 3).expect("in range")
    };
    let mut ends = Vec::new();
    for (namespace, device, is_node) in [(&lab.node, UPLINK, true), (&lab.router, ROUTER_END, false)] {
        let heartbeat = well();
        let mut driver = namespace.run(|| Driver::start(4711, heartbeat, Box::new(|_, _| {}), || {}))?;
        let one = Hops::Single { interface: index(namespace, device)? };
        let many = Hops::Multi { minimum_ttl: bfd::MinimumTtl::new(254).expect("not zero") };
        for (node, router, hops) in [
            (IpAddr::from(NODE.v4), ROUTER[0], one),
            (NODE.v6.into(), ROUTER[1], one),
            (NODE.v4.into(), ROUTER[0], many),
        ] {
            let router = router.parse().expect("an address");
            let (local, remote) = if is_node { (node, router) } else { (router, node) };
            let endpoint = Endpoint::new(local, remote, hops).expect("two ends");
            namespace.run(|| driver.open(endpoint, settings(100)))?;
        }
        ends.push(driver);
    }
    let all_up = || {
        wait_until("all sessions", PATIENCE, || {
            let sessions = ends[0].report()?.sessions;
            Ok(sessions.iter().all(|it| it.status.state == BfdState::Up && !it.status.is_polling).then_some(()))
        })
    };
    all_up()?;
    for end in &ends {
        for session in end.report()?.sessions {
            end.set_settings(session.endpoint.path(), settings(50))?;
        }
    }
    all_up()?;
    let sent =
        |end: &Driver| -> Result<u64> { Ok(end.report()?.sessions.iter().map(|it| it.status.counts.sent).sum()) };
    // Some more of each session, as it is now and then switched off.
    let some_more = || {
        let before = sent(&ends[0])?;
        wait_until("more packets", PATIENCE, || Ok((sent(&ends[0])? >= before + MORE).then_some(())))
    };
    some_more()?;
    ends[0].stop_all()?;
    wait_until("all sessions to be switched off", PATIENCE, || {
        let sessions = ends[0].report()?.sessions;
        Ok(sessions.iter().all(|it| it.status.state == BfdState::AdminDown).then_some(()))
    })?;
    some_more()?;
    let ours = of_the_node(&lab, capture.stop()?)?;
    Dissection::new(&ours, lab.directory(), "bfd")?.check(BFD)?;
    // A length beyond the datagram's.
    let is_bfd = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == 3784_u16.to_be_bytes();
    check_found(&lab, &ours, "bfd", is_bfd, |frame| frame[42 + 3] = 200)
}

/// An engine that is well for longer than any test lasts.
fn well() -> Arc<Heartbeat> {
    let heartbeat = Arc::new(Heartbeat::default());
    heartbeat.beat(boot_time() + Duration::from_secs(3600), true);
    heartbeat
}

fn index(namespace: &Namespace, device: &str) -> Result<bfd::Interface> {
    let name = std::ffi::CString::new(device)?;
    // SAFETY: the name ends in a NUL and lives across the call.
    let index = namespace.run(|| unsafe { libc::if_nametoindex(name.as_ptr()) });
    bfd::Interface::new(index).with_context(|| format!("no interface {device}"))
}

/// The router's BIRD.
struct Bird {
    process: Process,
    socket: std::path::PathBuf,
}

impl Bird {
    fn start(router: &Namespace, directory: &Path) -> Result<Self> {
        let (file, socket) = (directory.join("bird.conf"), directory.join("bird.ctl"));
        let peers: String = PEERS.iter().map(|peer| peer.bird()).collect();
        fs::write(&file, format!("log stderr all;\nrouter id 10.0.0.2;\nprotocol device {{ }}\n{peers}"))?;
        let mut command = router.command("bird");
        command.arg("-f").arg("-c").arg(&file).arg("-s").arg(&socket);
        let mut process = Process::start("bird in the router", &mut command)?;
        wait_until("bird to be ready", PATIENCE, || {
            process.check_running()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Self { process, socket })
    }

    fn control(&self, words: &str) -> Result<()> {
        let output = Command::new("birdc").arg("-s").arg(&self.socket).args(words.split(' ')).output()?;
        ensure!(output.status.success(), "birdc {words}: {}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    fn log(&self) -> String {
        self.process.log_tail()
    }
}
