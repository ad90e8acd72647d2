//! The whole table of RFC 5880 6.8.6, as data and through the session.

use super::{Bench, THEIRS, discriminator, ms, settings};
use crate::announce::bfd::{
    machine::{Cause, Event, Input, IsAdminDown, transition},
    packet::{ControlPacket, Diagnostic, State},
};

use Diagnostic::{AdministrativelyDown, DetectionTimeExpired, ForwardingPlaneReset, NeighborSignaledDown};
use State::{AdminDown, Down, Init, Up};

const NOTHING: Diagnostic = Diagnostic::None;

/// State, input, next state, diagnostic (`None`: as before).
const TABLE: [(State, Input, State, Option<Diagnostic>); 32] = [
    (AdminDown, Input::Heard(AdminDown), AdminDown, None),
    (AdminDown, Input::Heard(Down), AdminDown, None),
    (AdminDown, Input::Heard(Init), AdminDown, None),
    (AdminDown, Input::Heard(Up), AdminDown, None),
    (AdminDown, Input::Silence, AdminDown, None),
    (AdminDown, Input::Stop, AdminDown, None),
    //= test rfc5880#6.8.16:enable
    (AdminDown, Input::Resume, Down, Some(NOTHING)),
    (AdminDown, Input::ForwardingPlaneReset, AdminDown, None),
    //= test rfc5880#6.8.6:down
    (Down, Input::Heard(AdminDown), Down, None),
    (Down, Input::Heard(Down), Init, None),
    (Down, Input::Heard(Init), Up, Some(NOTHING)),
    (Down, Input::Heard(Up), Down, None),
    (Down, Input::Silence, Down, None),
    //= test rfc5880#6.8.16:disable
    (Down, Input::Stop, AdminDown, Some(AdministrativelyDown)),
    (Down, Input::Resume, Down, None),
    (Down, Input::ForwardingPlaneReset, Down, Some(ForwardingPlaneReset)),
    //= test rfc5880#6.8.6:init
    (Init, Input::Heard(AdminDown), Down, Some(NeighborSignaledDown)),
    (Init, Input::Heard(Down), Init, None),
    (Init, Input::Heard(Init), Up, Some(NOTHING)),
    (Init, Input::Heard(Up), Up, Some(NOTHING)),
    //= test rfc5880#6.8.4:expiry
    (Init, Input::Silence, Down, Some(DetectionTimeExpired)),
    (Init, Input::Stop, AdminDown, Some(AdministrativelyDown)),
    (Init, Input::Resume, Init, None),
    (Init, Input::ForwardingPlaneReset, Down, Some(ForwardingPlaneReset)),
    //= test rfc5880#6.8.6:admin-down-heard
    (Up, Input::Heard(AdminDown), Down, Some(NeighborSignaledDown)),
    //= test rfc5880#6.8.6:up
    (Up, Input::Heard(Down), Down, Some(NeighborSignaledDown)),
    (Up, Input::Heard(Init), Up, None),
    (Up, Input::Heard(Up), Up, None),
    (Up, Input::Silence, Down, Some(DetectionTimeExpired)),
    (Up, Input::Stop, AdminDown, Some(AdministrativelyDown)),
    (Up, Input::Resume, Up, None),
    //= test rfc5880#6.8.15:forwarding-plane-reset
    (Up, Input::ForwardingPlaneReset, Down, Some(ForwardingPlaneReset)),
];

#[test]
fn every_state_has_its_successor_for_every_input() {
    for (state, input, next, diagnostic) in TABLE {
        let expected = (next != state || diagnostic.is_some()).then_some((next, diagnostic));
        assert_eq!(transition(state, input), expected, "{state:?} and {input:?}");
    }
    for (at, (state, input, ..)) in TABLE.iter().enumerate() {
        assert!(TABLE[..at].iter().all(|(s, i, ..)| (s, i) != (state, input)), "{state:?} and {input:?} stand twice");
    }
}

/// A session in that state, with nothing waiting.
fn in_state(state: State) -> Bench {
    let mut bench = Bench::new(settings(50, 50, 3));
    match state {
        Down => {
            // Of another session, so that the other end is known.
            bench.hear(Up);
        }
        Init => bench.hear(Down),
        Up => bench.come_up(),
        AdminDown => {
            bench.hear(Up);
            bench.session.stop(bench.now);
        }
    }
    bench.sent();
    bench.events();
    assert_eq!(bench.session.state(), state);
    bench
}

#[test]
fn the_session_follows_the_table() {
    for (state, input, next, diagnostic) in TABLE {
        let mut bench = in_state(state);
        let before = bench.session.status().diagnostic;
        match input {
            Input::Heard(heard) => bench.hear(heard),
            Input::Silence => {
                let Some(at) = bench.session.poll_timeout() else { panic!("{state:?} waits for nothing") };
                bench.now = at;
                bench.session.handle_timeout(at);
            }
            Input::Stop => bench.session.stop(bench.now),
            Input::Resume => bench.session.resume(bench.now),
            Input::ForwardingPlaneReset => bench.session.reset_forwarding_plane(bench.now),
        }
        let status = bench.session.status();
        assert_eq!((status.state, status.diagnostic), (next, diagnostic.unwrap_or(before)), "{state:?} and {input:?}");
        let sent = bench.sent();
        if state != next {
            assert_eq!(sent.last().map(|packet| packet.state), Some(next), "{state:?} and {input:?} is told at once");
        }
    }
}

#[test]
fn the_engine_hears_of_each_change_that_matters() {
    let mut bench = in_state(Up);
    bench.hear_packet(&ControlPacket { diagnostic: ForwardingPlaneReset, ..super::theirs(Down) });
    let cause = Cause::Remote { diagnostic: ForwardingPlaneReset };
    assert_eq!(bench.events(), [Event::Down { diagnostic: NeighborSignaledDown, cause }]);
    assert_eq!(bench.session.status().last_cause, Some(cause));
    bench.hear(Down);
    assert_eq!(bench.events(), [], "on the way up there is nothing to tell");
    bench.hear(Up);
    assert_eq!(bench.events(), [Event::Up]);
    bench.sent();
    bench.session.reset_forwarding_plane(bench.now);
    let down = Event::Down { diagnostic: ForwardingPlaneReset, cause: Cause::ForwardingPlane };
    assert_eq!(bench.events(), [down]);
    let downs = bench.session.status().counts.downs;
    assert_eq!((downs.remote, downs.forwarding_plane, downs.total()), (1, 1, 2));
}

//= test rfc5882#4.2:admin-down
#[test]
fn an_order_of_the_other_end_is_no_failure_of_the_path() {
    for state in [Down, Init, Up] {
        let mut bench = in_state(state);
        let order = ControlPacket { diagnostic: AdministrativelyDown, ..super::theirs(AdminDown) };
        bench.hear_packet(&order);
        let told = Event::RemoteAdminDown { diagnostic: AdministrativelyDown };
        assert_eq!(bench.events(), [told], "in {state:?}, and no Down");
        bench.hear_packet(&order);
        assert_eq!(bench.events(), [], "once");
        let downs = bench.session.status().counts.downs;
        assert_eq!((downs.remote_order, downs.total()), (u64::from(state == Up), u64::from(state == Up)));
        bench.hear(Down);
        bench.hear(Up);
        assert_eq!(bench.events(), [Event::Up], "after {state:?}");
        bench.session.stop(bench.now);
        assert_eq!(bench.session.status().counts.downs.own_order, 1);
    }
}

#[test]
fn the_reason_stays_to_be_read_until_the_session_is_up_again() {
    let mut bench = in_state(Up);
    bench.pass(ms(1000));
    assert_eq!((bench.session.state(), bench.session.status().diagnostic), (Down, DetectionTimeExpired));
    bench.hear(Down);
    assert_eq!((bench.session.state(), bench.session.status().diagnostic), (Init, DetectionTimeExpired));
    bench.hear(Init);
    assert_eq!((bench.session.state(), bench.session.status().diagnostic), (Up, NOTHING));
}

//= test rfc5880#6.8.6:admin-down-discards
//= test rfc5880#6.8.6:remote-values
#[test]
fn a_stopped_session_takes_the_senders_values_and_nothing_else() {
    let mut bench = in_state(AdminDown);
    let silent_since = bench.session.silent_since();
    bench.now += ms(5);
    let poll = ControlPacket {
        sequence: crate::announce::bfd::packet::Sequence::Poll,
        my_discriminator: discriminator(THEIRS + 1),
        required_min_rx: ms(2000),
        ..super::theirs(Down)
    };
    assert_eq!(bench.session.handle_packet(&poll, bench.now), Err(IsAdminDown));
    assert_eq!(bench.sent(), [], "Poll is not answered");
    assert_eq!(bench.session.silent_since(), silent_since);
    let remote = bench.session.status().remote.expect("known");
    assert_eq!((remote.discriminator, remote.state), (discriminator(THEIRS + 1), Down));
    assert_eq!(bench.session.transmit_interval(), ms(2000));
}
