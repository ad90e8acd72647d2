//! Two connections with one peer (RFC 4271, 6.8): each state of the other one, both orders of identifiers.

use super::{super::machine::*, *};

/// A peer whose identifier is below or above ours, which is 10.0.0.5.
fn open_of(last: u8) -> Open {
    Open { identifier: identifier(last), ..their_open() }
}

/// One dialled and one accepted, both in OpenSent.
fn both() -> (Bench, ConnectionId, ConnectionId) {
    let mut bench = Bench::new(settings());
    let dialled = bench.dialled();
    let accepted = bench.accept();
    bench.peer.handle_connected(dialled, V4, bench.now);
    bench.acts();
    (bench, dialled, accepted)
}

//= test rfc4271#6.8:identifiers
//= test rfc4271#6.8:open-sent
//= test rfc4271#6.8:cease
//= test rfc4486#4:collision
#[test]
fn the_first_open_decides_between_two_connections_in_open_sent() {
    for (theirs, we_win) in [(4, true), (9, false)] {
        for first_is_dialled in [true, false] {
            let (mut bench, dialled, accepted) = both();
            let first = if first_is_dialled { dialled } else { accepted };
            bench.receive(first, &open_of(theirs).emit());
            let (winner, loser) = if we_win { (dialled, accepted) } else { (accepted, dialled) };
            let mut expected = vec![(loser, Out::Notification(6, 7)), (loser, Out::Close)];
            if first == winner {
                expected.push((winner, Out::Keepalive));
            }
            assert_eq!(bench.acts(), expected, "theirs {theirs}, first dialled {first_is_dialled}");
            if first != winner {
                bench.receive(winner, &open_of(theirs).emit());
            }
            bench.receive(winner, &keepalive());
            assert_eq!(bench.peer.state(), State::Established);
        }
    }
}

//= test rfc4271#6.8:open-confirm
#[test]
fn a_second_open_is_weighed_against_a_connection_in_open_confirm() {
    for (theirs, we_win) in [(4, true), (9, false)] {
        for first_is_dialled in [true, false] {
            let (mut bench, dialled, accepted) = both();
            // Both OPENs are late: neither connection was weighed while it waited.
            bench.now += SECOND * 6;
            let (first, second) = if first_is_dialled { (dialled, accepted) } else { (accepted, dialled) };
            bench.receive(first, &open_of(theirs).emit());
            assert_eq!(bench.acts(), [(first, Out::Keepalive)]);
            bench.receive(second, &open_of(theirs).emit());
            let loser = if we_win { accepted } else { dialled };
            let mut expected = vec![(loser, Out::Notification(6, 7)), (loser, Out::Close)];
            if loser == first {
                expected.push((second, Out::Keepalive));
            }
            assert_eq!(bench.acts(), expected, "theirs {theirs}, first dialled {first_is_dialled}");
        }
    }
}

//= test rfc4271#6.8:established
#[test]
fn a_new_connection_beside_a_session_is_closed_whoever_is_greater() {
    for theirs in [4, 9] {
        let mut bench = Bench::new(settings());
        let session = bench.establish_with(&open_of(theirs));
        bench.acts();
        let second = bench.accept();
        bench.receive(second, &open_of(theirs).emit());
        assert_eq!(bench.acts(), [(second, Out::Open), (second, Out::Notification(6, 7)), (second, Out::Close)]);
        bench.receive(session, &keepalive());
        assert_eq!(bench.peer.state(), State::Established);
    }
}

//= test rfc6286#2.3:equal
#[test]
fn equal_identifiers_of_two_ases_are_decided_by_as_number() {
    // Theirs is 65002, ours 65001.
    let (mut bench, dialled, accepted) = both();
    bench.receive(dialled, &open_of(5).emit());
    assert_eq!(bench.acts(), [(dialled, Out::Notification(6, 7)), (dialled, Out::Close)]);
    bench.receive(accepted, &open_of(5).emit());
    bench.receive(accepted, &keepalive());
    assert_eq!(bench.peer.state(), State::Established);
}

#[test]
fn identifiers_are_compared_as_numbers_and_not_octet_by_octet_from_the_end() {
    let (mut bench, dialled, accepted) = both();
    let open = Open { identifier: Identifier::new([9, 255, 255, 255].into()).expect("not zero"), ..their_open() };
    bench.receive(accepted, &open.emit());
    assert_eq!(bench.acts(), [(accepted, Out::Notification(6, 7)), (accepted, Out::Close)]);
    assert_eq!(bench.peer.state(), State::OpenSent);
    bench.receive(dialled, &open.emit());
    assert_eq!(bench.peer.state(), State::OpenConfirm);
}

#[test]
fn a_dial_that_is_out_is_given_up_once_the_peer_has_sent_an_open() {
    let mut bench = Bench::new(settings());
    let dialled = bench.dialled();
    let accepted = bench.accept();
    bench.receive(accepted, &open_of(4).emit());
    let acts = bench.acts();
    assert_eq!(acts, [(accepted, Out::Open), (dialled, Out::Close), (accepted, Out::Keepalive)]);
    // It succeeds all the same: the driver was told to close it.
    bench.peer.handle_connected(dialled, V4, bench.now);
    assert_eq!(bench.acts(), []);
}

#[test]
fn an_accepted_connection_that_is_followed_by_another_was_given_up_by_the_peer() {
    let mut bench = Bench::new(Settings { mode: Mode::Accept, ..settings() });
    let first = bench.accept();
    let second = bench.accept();
    let expected = [(first, Out::Open), (first, Out::Notification(6, 7)), (first, Out::Close), (second, Out::Open)];
    assert_eq!(bench.acts(), expected);
}

#[test]
fn a_peer_that_restarts_replaces_all_of_its_older_connections() {
    let mut bench = Bench::new(settings());
    let mut open = their_open();
    open.capabilities.graceful_restart = Some(graceful(false));
    let session = bench.establish_with(&open);
    let early = bench.accept();
    bench.acts();
    bench.now += SECOND * 5;
    let late = bench.accept();
    let collision = Out::Notification(6, 7);
    assert_eq!(bench.acts(), [(session, Out::Close), (early, collision), (early, Out::Close), (late, Out::Open)]);
}

//= test rfc4724#5:replaced
#[test]
fn a_new_connection_of_a_peer_that_restarts_replaces_the_session_without_a_word() {
    let mut bench = Bench::new(settings());
    let mut open = their_open();
    open.capabilities.graceful_restart = Some(graceful(false));
    let session = bench.establish_with(&open);
    bench.acts();
    // The other half of a collision comes late: it is no restart.
    let late = bench.accept();
    bench.receive(late, &open.emit());
    assert_eq!(bench.acts().last(), Some(&(late, Out::Close)));
    assert_eq!(bench.peer.state(), State::Established);
    bench.now += SECOND * 5;
    let second = bench.accept();
    assert_eq!(bench.acts(), [(session, Out::Close), (second, Out::Open)]);
    bench.receive(second, &open.emit());
    bench.receive(second, &keepalive());
    assert_eq!(bench.peer.state(), State::Established);
}
