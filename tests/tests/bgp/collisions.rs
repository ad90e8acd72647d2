//! Two connections with one peer (RFC 4271, 6.8), for real.

use std::time::{Duration, Instant};

use lb_userspace::announce::bgp::{
    driver::WantedPeer,
    machine::{Cause, Mode, State},
    values::Identifier,
};

use crate::lab::*;

/// Attempts at a collision on a machine that stands still again and again.
const ATTEMPTS_MAX: usize = 5;
/// Below and above BIRD's.
const LESS: &str = "10.0.0.1";
const GREATER: &str = "10.0.0.9";

fn peer_as(identifier: &str) -> WantedPeer {
    let mut peer = peer(Mode::DialAndAccept, "10.9.0.2");
    peer.settings.identifier = Identifier::new(identifier.parse().expect("an address")).expect("legal");
    peer
}

/// Drops what these rules of nftables match, until the table goes.
fn drop_of(rules: &[(&str, &str)]) {
    run("nft add table inet held");
    for (hook, _) in rules {
        run(&format!("nft add chain inet held {hook} {{ type filter hook {hook} priority 0 ; }}"));
    }
    for (hook, rule) in rules {
        run(&format!("nft add rule inet held {hook} {rule} drop"));
    }
}

fn let_pass() {
    run("nft delete table inet held");
}

/// Has one hook pass everything, while the rules of others stay in place.
fn let_pass_at(hook: &str) {
    run(&format!("nft flush chain inet held {hook}"));
}

/// Has a session on the connection that is to stay, after one collision.
fn check_session(node: &Node, lab: &Lab, ours_stays: bool) {
    node.until("a session on one of them", |peer, status| {
        peer.connections.len() == 1 && status.state == State::Established
    });
    lab.until_routes();
    let report = node.peer().expect("wanted");
    assert_eq!(report.connections[0].1.port() == 179, ours_stays, "{:?}", report.connections);
    let status = report.status.expect("a machine");
    assert_eq!((status.causes.get(&Cause::Collision), status.counters.established), (Some(&1), 1), "{status:#?}");
}

/// Both dial, and neither hears the other's OPEN before both connections are there: which of them stays follows from the
/// identifiers, as long as both are young.
fn collides(test: &str, identifier: &str, ours_stays: bool) {
    with_bird(test, &dialling(""), |lab| {
        let attempt = || {
            drop_of(&[("input", "tcp flags & psh == psh"), ("output", "tcp flags & psh == psh")]);
            let (node, begin) = (Node::with(&peer_as(identifier)), Instant::now());
            node.until("two connections", |peer, _| peer.connections.len() == 2);
            let_pass();
            // A connection that has waited for longer is taken for dead, and not weighed: on a machine that stands still, again.
            (begin.elapsed() < Duration::from_secs(4)).then_some(node)
        };
        let node = (0..ATTEMPTS_MAX).find_map(|_| attempt()).expect("a machine that does not stand still");
        check_session(&node, lab, ours_stays);
    });
}

//= test rfc4271#6.8:cease
#[test]
fn of_two_connections_ours_stays_where_our_identifier_is_greater() {
    collides("greater", GREATER, true);
}

#[test]
fn of_two_connections_theirs_stays_where_our_identifier_is_less() {
    collides("less", LESS, false);
}

/// Ours has BIRD's OPEN, BIRD has not heard ours and dials, too: its second connection is weighed against the first.
fn collides_in_open_confirm(test: &str, identifier: &str, ours_stays: bool) {
    with_bird(test, &dialling(""), |lab| {
        // BIRD may not connect, and hears nothing on our connection.
        let silence = ("output", "tcp dport 179 tcp flags & psh == psh");
        drop_of(&[silence, ("input", "tcp dport 179 tcp flags & (syn | ack) == syn")]);
        let node = Node::with(&peer_as(identifier));
        node.until("BIRD's OPEN", |_, status| status.state == State::OpenConfirm);
        let dialled = node.peer().expect("wanted").connections;
        assert!(dialled.len() == 1 && dialled[0].1.port() == 179, "{dialled:?}");
        // Ours is sent again all the time, and must not be heard in between.
        let_pass_at("input");
        node.until("a collision", |_, status| status.causes.contains_key(&Cause::Collision));
        let_pass();
        check_session(&node, lab, ours_stays);
    });
}

//= test rfc4271#6.8:open-confirm
#[test]
fn in_open_confirm_ours_stays_where_our_identifier_is_greater() {
    collides_in_open_confirm("confirm-greater", GREATER, true);
}

//= test rfc4271#6.8:open-confirm
#[test]
fn in_open_confirm_theirs_takes_the_place_of_ours_where_our_identifier_is_less() {
    collides_in_open_confirm("confirm-less", LESS, false);
}

/// Another BIRD of the same router dials beside the one that has the session.
//= test rfc4271#6.8:established
#[test]
fn a_connection_beside_a_session_is_refused_whoever_is_greater() {
    for (test, identifier) in [("beside-greater", GREATER), ("beside-less", LESS)] {
        with_bird(test, &passive("graceful restart off;"), |lab| {
            let node = Node::with(&peer_as(identifier));
            node.until_established();
            lab.until_routes();
            let session = node.peer().expect("wanted").connections;
            let second = dialling("graceful restart off;").replace("local 10.9.0.2 as", "local 10.9.0.2 port 1790 as");
            lab.start_bird_as(ROUTER, "second", &second);
            let shown = || lab.bird_as("second", "show protocols all node");
            until("its refusal", || shown().contains("Connection collision resolution"));
            node.until("the session to be as it was", |peer, status| {
                peer.connections == session && status.state == State::Established
            });
            let status = node.peer().and_then(|peer| peer.status).expect("it runs");
            assert!(status.causes.get(&Cause::Collision).is_some_and(|count| *count >= 1), "{status:#?}");
            assert_eq!((status.counters.established, lab.has_routes()), (1, true), "{status:#?}");
        });
    }
}
