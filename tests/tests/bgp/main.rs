//! Privileged: needs root for network namespaces, and BIRD 2.
//!
//! The driver against BIRD: the node is one namespace and the router another, which each test makes and removes.

mod collisions;
mod lab;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    os::fd::AsRawFd,
    sync::Arc,
    thread,
};

use lb_userspace::announce::bgp::{
    driver::{Interface, Problem, Ttl, Wanted, WantedPeer},
    machine::{Cause, CeaseReason, Mode, PeerAs, RestartFacts, Stage, State},
    packet::Communication,
    route::{Attributes, Route},
    values::{Family, HoldTime, Prefix, RestartTime},
};
use socket2::{Domain, Socket, Type};

use lab::*;

#[test]
fn both_families_are_announced_over_ipv4() {
    with_bird("v4", &passive(""), |lab| {
        let node = Node::with(&peer(Mode::Dial, "10.9.0.2"));
        node.until_established();
        lab.until_routes();
        assert!(node.report().listening.is_empty(), "nobody connects to who only dials");
    });
}

#[test]
fn many_routes_are_written_in_parts_while_the_session_stays() {
    /// Some megabytes: more than the socket's buffers hold, as each has attributes of its own.
    const ROUTES: u32 = 50_000;
    with_bird("many", &passive(""), |lab| {
        let route = |at: u32| {
            let prefix = Prefix::host(IpAddr::V4((0x0b00_0000 + at).into())).expect("unicast");
            let attributes = Attributes { med: Some(at), ..Attributes::default() };
            (prefix, Route { prefix, next_hop: None, attributes: Arc::new(attributes) })
        };
        let routes = Arc::new((0..ROUTES).map(route).collect());
        let node = Node::with(&WantedPeer { routes, ..peer(Mode::Dial, "10.9.0.2") });
        let expected = format!("{ROUTES} of {ROUTES} routes for {ROUTES} networks in table master4");
        until("all routes", || lab.bird(ROUTER, "show route count").contains(&expected));
        node.until("their count", |_, status| status.announced.get(&Family::Ipv4) == Some(&(ROUTES as usize)));
        assert_eq!(node.peer().and_then(|peer| peer.status).expect("it runs").counters.established, 1);
    });
}

#[test]
fn both_families_are_announced_over_ipv6_from_the_source_address() {
    with_bird("v6", &peer_of_bird("2001:db8:9::2", "2001:db8:9::3", "passive on;"), |lab| {
        run(&format!("ip -n {} addr add 2001:db8:9::3/64 dev up0 nodad", lab.names[NODE]));
        let source = "2001:db8:9::3".parse().ok();
        let node = Node::with(&WantedPeer { source, ..peer(Mode::DialAndAccept, "2001:db8:9::2") });
        node.until_established();
        lab.until_routes();
        let ends = node.peer().expect("wanted").connections;
        assert!(ends.iter().any(|(local, _)| Some(local.ip()) == source), "{ends:?}");
        assert_eq!(node.report().listening, ["[2001:db8:9::3]:179".parse().expect("an address")]);
    });
}

#[test]
fn who_only_accepts_is_connected_to() {
    with_bird("accept", &dialling(""), |lab| {
        let node = Node::with(&peer(Mode::Accept, "10.9.0.2"));
        node.until_established();
        lab.until_routes();
        let report = node.report();
        assert_eq!(report.listening, ["10.9.0.1:179".parse().expect("an address")]);
        assert_eq!(report.peers[0].connections[0].0.port(), 179);
    });
}

#[test]
fn who_both_dial_have_one_session() {
    with_bird("both", &dialling(""), |lab| {
        let node = Node::with(&peer(Mode::DialAndAccept, "10.9.0.2"));
        node.until_established();
        lab.until_routes();
        node.until("one connection", |peer, status| peer.connections.len() == 1 && status.state == State::Established);
    });
}

#[test]
fn a_stranger_is_closed_and_counted() {
    with_bird("stranger", &passive(""), |lab| {
        let node = Node::with(&peer(Mode::Accept, "10.9.0.99"));
        node.until("a listening socket", |peer, _| peer.listening.is_some());
        run(&format!("ip netns exec {} timeout 5 bash -c :>/dev/tcp/10.9.0.1/179", lab.names[ROUTER]));
        until("a count", || node.report().strangers == 1);
    });
}

//= test rfc2385#2.0:signed
#[test]
fn the_same_password_on_both_sides_is_a_session_whoever_dials() {
    for (test, config, mode) in [
        ("md5-dial", passive("password \"same\";"), Mode::Dial),
        ("md5-accept", dialling("password \"same\";"), Mode::Accept),
    ] {
        with_bird(test, &config, |lab| {
            let node = Node::with(&WantedPeer { password: secret("same"), ..peer(mode, "10.9.0.2") });
            node.until_established();
            lab.until_routes();
            let shown = format!("{:?} {}", node.report(), serde_json::to_string(&node.report()).expect("plain"));
            assert!(!shown.contains("same\""), "{shown}");
        });
    }
}

//= test rfc2385#2.0:signed
#[test]
fn a_wrong_password_of_who_dials_us_is_said_so() {
    for (test, theirs) in [("md5-other", "password \"other\";"), ("md5-none", "")] {
        with_bird(test, &dialling(theirs), |_| {
            let node = Node::with(&WantedPeer { password: secret("ours"), ..peer(Mode::Accept, "10.9.0.2") });
            node.until_problem("a wrong password", |problem| match problem {
                Problem::PasswordMismatch(it) => {
                    if theirs.is_empty() {
                        it.missing > 0
                    } else {
                        it.failed > 0
                    }
                }
                _ => false,
            });
            let status = node.peer().and_then(|peer| peer.status).expect("it runs");
            assert_eq!(status.last_error.expect("it was told").cause, Cause::PasswordMismatch);
            // Once it is set right, all is well.
            if !theirs.is_empty() {
                node.want(&WantedPeer { password: secret("other"), ..peer(Mode::Accept, "10.9.0.2") });
                node.until_established();
                node.until("no problem", |peer, _| peer.problems.is_empty());
            }
        });
    }
}

#[test]
fn a_wrong_password_towards_whom_we_dial_looks_like_no_answer() {
    with_bird("md5-silent", &passive("password \"other\";"), |_| {
        let node = Node::with(&WantedPeer { password: secret("ours"), ..peer(Mode::Dial, "10.9.0.2") });
        node.until("no answer", |_, status| {
            let said = |it: &lb_userspace::announce::bgp::machine::LastError| {
                it.cause == Cause::DialTimedOut && it.detail.contains("password")
            };
            status.last_error.as_ref().is_some_and(said)
        });
    });
}

//= test rfc5082#3:sent
#[test]
fn ttl_security_is_a_session_whoever_dials() {
    let ttl = Ttl::Gtsm { hops: NonZeroU8::MIN };
    for (test, config, mode, remote) in [
        ("gtsm-dial", passive("ttl security on;"), Mode::Dial, "10.9.0.2"),
        ("gtsm-accept", dialling("ttl security on;"), Mode::Accept, "10.9.0.2"),
        ("gtsm-v6", peer_of_bird("2001:db8:9::2", "2001:db8:9::1", "ttl security on;"), Mode::Accept, "2001:db8:9::2"),
    ] {
        with_bird(test, &config, |lab| {
            let node = Node::with(&WantedPeer { ttl, ..peer(mode, remote) });
            node.until_established();
            lab.until_routes();
        });
    }
}

//= test rfc5082#3:received
#[test]
fn a_peer_without_ttl_security_is_not_heard_whoever_dials() {
    for (test, config, mode) in
        [("gtsm-none-accept", dialling(""), Mode::Accept), ("gtsm-none-dial", passive(""), Mode::Dial)]
    {
        with_bird(test, &config, |_| {
            let ttl = Ttl::Gtsm { hops: NonZeroU8::MIN };
            let node = Node::with(&WantedPeer { ttl, ..peer(mode, "10.9.0.2") });
            until("that the kernel drops for the TTL", || extended_counter("TCPMinTTLDrop") > 2);
            let counters = node.peer().and_then(|peer| peer.status).expect("it runs").counters;
            assert_eq!((counters.received.open, counters.established), (0, 0));
        });
    }
}

//= test rfc5082#3:sent
#[test]
fn a_listening_socket_answers_with_255_before_it_is_known_how_far_the_peer_is() {
    with_bird("listener", &passive(""), |lab| {
        let node = Node::with(&peer(Mode::Accept, "10.9.0.2"));
        node.until("a listening socket", |peer, _| peer.listening.is_some());
        let socket = thread::scope(|scope| {
            let router = scope.spawn(|| {
                enter(&lab.names[ROUTER]);
                Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket")
            });
            router.join().expect("no panic")
        });
        let least: i32 = 255;
        let length = size_of_val(&least) as u32;
        // SAFETY: the value lives across the call and has the length that is said.
        let done = unsafe {
            let value = (&raw const least).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MINTTL, value, length)
        };
        assert_eq!(done, 0);
        let to: SocketAddr = "10.9.0.1:179".parse().expect("an address");
        socket.connect_timeout(&to.into(), WAIT_MAX).expect("its answer is not dropped");
    });
}

#[test]
fn a_peer_at_a_loopback_address_is_a_session_of_more_links() {
    with_bird("multihop", &peer_of_bird("10.8.0.2", "10.8.0.1", "multihop 3;"), |lab| {
        let [node, router] = &lab.names;
        run(&format!("ip -n {node} addr add 10.8.0.1/32 dev lo"));
        run(&format!("ip -n {router} addr add 10.8.0.2/32 dev lo"));
        run(&format!("ip -n {node} route add 10.8.0.2 via 10.9.0.2"));
        run(&format!("ip -n {router} route add 10.8.0.1 via 10.9.0.1"));
        let ttl = Ttl::Multihop(NonZeroU8::new(3).expect("is not 0"));
        let source = "10.8.0.1".parse().ok();
        let node = Node::with(&WantedPeer { ttl, source, ..peer(Mode::DialAndAccept, "10.8.0.2") });
        node.until_established();
        lab.until_routes();
    });
}

#[test]
fn a_link_local_session_is_one_whoever_dials() {
    for (test, more, mode) in [("link-dial", "passive on;", Mode::Dial), ("link-accept", "", Mode::Accept)] {
        with_bird(test, &peer_of_bird("fe80::2", "fe80::1%'up1'", more), |lab| {
            let index = fs::read_to_string("/sys/class/net/up0/ifindex").ok();
            // The file is of the namespace that /sys was mounted in: another one has to be asked.
            let index = index.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| {
                let line = run(&format!("ip -n {} -o link show up0", lab.names[NODE]));
                line.split(':').next().and_then(|index| index.parse().ok()).expect("an index")
            });
            let mut wanted = WantedPeer { interface: Interface::new(index), ..peer(mode, "fe80::2") };
            wanted.settings.peer_as = PeerAs::External;
            let node = Node::start();
            node.want(&WantedPeer { remote: None, ..wanted.clone() });
            until("that the neighbour is not known", || {
                node.peer().is_some_and(|it| it.problems.iter().any(|it| it.problem == Problem::NeighbourUnknown))
            });
            node.want(&wanted);
            node.until_established();
            // It goes on where the neighbour is not seen for a while.
            node.want(&WantedPeer { remote: None, ..wanted.clone() });
            lab.until_routes();
            node.want(&wanted);
            let peer = node.peer().expect("it is wanted");
            assert!(!peer.is_leaving);
            assert_eq!(peer.status.expect("it runs").counters.established, 1);
        });
    }
}

#[test]
fn a_refused_connection_is_dialled_again() {
    if !has_privileges() {
        return;
    }
    Lab::new("refused").inside(|lab| {
        let node = Node::with(&peer(Mode::Dial, "10.9.0.2"));
        node.until("the kernel's words", |_, status| {
            status.last_error.as_ref().is_some_and(|it| it.detail == "connection refused")
        });
        lab.start_bird(ROUTER, &passive(""));
        node.until_established();
    });
}

#[test]
fn a_router_that_crashed_has_its_routes_again() {
    with_bird("crash", &dialling(""), |lab| {
        let node = Node::with(&peer(Mode::DialAndAccept, "10.9.0.2"));
        node.until_established();
        lab.until_routes();
        lab.kill_bird(ROUTER);
        node.until("the end of the session", |_, status| status.state != State::Established);
        lab.start_bird(ROUTER, &dialling(""));
        node.until_established();
        lab.until_routes();
    });
}

#[test]
fn an_ordered_stop_is_seen_stage_by_stage() {
    with_bird("drain", &passive(""), |lab| {
        let mut wanted = peer(Mode::Dial, "10.9.0.2");
        let mut node = Node::with(&wanted);
        node.until_established();
        lab.until_routes();
        let mut stage = |stage: Stage| {
            wanted.stage = stage;
            node.want(&wanted);
            node.until("the stage", |peer, status| status.stage == wanted.stage && peer.stage_sent);
        };
        stage(Stage::GracefulShutdown);
        let all = || lab.bird(ROUTER, "show route all");
        until("the community on both", || all().matches("(65535,0)").count() == PREFIXES.len());
        stage(Stage::Withdrawn);
        until("no routes", || !all().contains("BGP.as_path"));
        assert!(lab.bird(ROUTER, "show protocols all node").contains("Established"));
        stage(Stage::Ceased(CeaseReason::Shutdown, Some(Communication::new("node drained"))));
        let protocol = || lab.bird(ROUTER, "show protocols all node");
        until("the words", || protocol().contains("Administrative shutdown"));
        assert!(protocol().contains("node drained"), "{}", protocol());
        node.speaker.stop();
        assert!(node.speaker.report().is_none());
    });
}

#[test]
fn a_peer_that_is_no_longer_wanted_is_told_so_and_other_settings_are_another_session() {
    with_bird("removed", &dialling(""), |lab| {
        let wanted = peer(Mode::DialAndAccept, "10.9.0.2");
        let node = Node::with(&wanted);
        node.until_established();
        let mut other = wanted.clone();
        other.settings.hold_time = HoldTime::from_seconds(6).expect("legal");
        node.want(&other);
        node.until("the new hold time", |_, status| {
            status.negotiated.as_ref().is_some_and(|it| it.hold_time.seconds() == 6)
        });
        node.speaker.want(Wanted::default());
        until("its end", || node.report().peers.is_empty());
        until("the reason", || lab.bird(ROUTER, "show protocols all node").contains("Peer de-configured"));
        assert!(node.report().listening.is_empty());
    });
}

#[test]
fn a_peer_that_is_renamed_is_one_as_soon_as_the_other_has_ended() {
    with_bird("renamed", &dialling(""), |_| {
        let wanted = peer(Mode::DialAndAccept, "10.9.0.2");
        let node = Node::with(&wanted);
        node.until_established();
        // Said once, as where nothing else changes.
        node.speaker.want(Wanted { peers: [("another".to_owned(), wanted)].into(), ..Wanted::default() });
        node.until("the same session under another name", |peer, status| {
            peer.name == "another" && status.state == State::Established
        });
    });
}

#[test]
fn routes_are_kept_over_a_restart_whether_it_was_ordered_or_not() {
    for (test, is_ordered) in [("restart", true), ("death", false)] {
        with_bird(test, &dialling(""), |lab| {
            let mut wanted = peer(Mode::DialAndAccept, "10.9.0.2");
            wanted.settings.graceful_restart = Some(RestartTime::DEFAULT);
            let mut node = Node::with(&wanted);
            node.until_established();
            lab.until_routes();
            if is_ordered {
                node.want(&WantedPeer { stage: Stage::Left, ..wanted.clone() });
                node.until("the end", |peer, status| status.stage == Stage::Left && peer.stage_sent);
                node.speaker.stop();
            }
            drop(node);
            until("the end in BIRD", || !lab.bird(ROUTER, "show protocols node").contains("Established"));
            assert!(lab.has_routes(), "{}", lab.bird(ROUTER, "show route"));
            let node = Node::restarted(RestartFacts { restarted: true, forwarding: Family::ALL.into() });
            node.want(&wanted);
            node.until("a session, and the routes all the time", |_, status| {
                assert!(lab.has_routes(), "{}", lab.bird(ROUTER, "show route"));
                status.state == State::Established
            });
            node.until("all routes", |_, status| status.announced.len() == 2);
            lab.until_routes();
        });
    }
}

#[test]
fn another_speaker_on_the_node_is_named() {
    let both = format!("{} {}", dialling(""), passive("").replace("node", "ours").replace("10.9.0.1", "10.9.0.3"));
    with_bird("taken", &both, |lab| {
        let theirs = peer_of_bird("10.9.0.1", "10.9.0.2", "");
        let theirs = theirs.replace("65001", "swap").replace("65002", "65001").replace("swap", "65002");
        lab.start_bird(NODE, &theirs);
        until("their session", || lab.bird(NODE, "show protocols node").contains("Established"));
        run(&format!("ip -n {} addr add 10.9.0.3/24 dev up0", lab.names[NODE]));
        let pid = lab.birds.last().expect("started").1.id();
        let is_theirs = |holder: &Option<lb_userspace::announce::bgp::driver::Holder>| {
            holder.as_ref().is_some_and(|holder| (holder.pid, holder.name.as_str()) == (pid, "bird"))
        };
        let wanted = peer(Mode::DialAndAccept, "10.9.0.2");
        let node = Node::with(&wanted);
        node.until_problem("who has the port", |problem| match problem {
            Problem::PortTaken { holder, .. } => is_theirs(holder),
            _ => false,
        });
        node.until_problem("who has the session", |problem| match problem {
            Problem::SessionOfOther { holder, .. } => is_theirs(holder),
            _ => false,
        });
        node.until("that it is not dialled", |_, status| {
            let is_said = status.last_error.as_ref().is_some_and(|it| it.detail.contains("has a session between"));
            is_said && status.counters.sent.open == 0
        });
        assert!(lab.bird(NODE, "show protocols node").contains("Established"), "theirs goes on");
        // With an address of our own we dial, though the port stays taken.
        node.want(&WantedPeer { source: "10.9.0.3".parse().ok(), ..wanted });
        node.until_established();
        lab.until_routes();
        node.until_problem("the port", |problem| matches!(problem, Problem::PortTaken { .. }));
        assert!(lab.bird(NODE, "show protocols node").contains("Established"), "theirs goes on");
    });
}
