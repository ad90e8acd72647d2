//! Ordered stops (RFC 8326, RFC 4486, RFC 9003), and the ways back.

use netgauze_bgp_pkt::path_attribute::PathAttributeValue;

use super::{super::machine::*, super::packet::*, *};

fn stages(bench: &mut Bench) -> Vec<Stage> {
    let told = bench.events().into_iter().filter_map(|event| match event {
        Event::StageSent(stage) => Some(stage),
        _ => None,
    });
    told.collect()
}

fn marked(bench: &Bench, id: ConnectionId) -> usize {
    let table = bench.table(id, true);
    let is_marked = |of: &&String| {
        table.value(of, |value| match value {
            PathAttributeValue::Communities(communities) => {
                communities.communities().iter().any(|it| it.value() == 0xffff_0000).then_some(())
            }
            _ => None,
        })
    };
    table.prefixes().iter().filter(|of| is_marked(of).is_some()).count()
}

fn running() -> (Bench, ConnectionId) {
    let mut bench = Bench::new(settings());
    bench.peer.set_routes(routes(&["198.51.100.1/32", "198.51.100.2/32", "2001:db8::1/128"]), true);
    bench.peer.set_interface(InterfaceAddresses { ipv4: None, ipv6: "2001:db8::5".parse().ok() });
    let id = bench.establish();
    bench.acts();
    bench.events();
    (bench, id)
}

//= test rfc8326#4.2:community
//= test rfc9003#2:subcodes
#[test]
fn a_stop_marks_all_routes_then_withdraws_them_then_ceases_with_words() {
    let (mut bench, id) = running();
    assert_eq!(marked(&bench, id), 0);
    bench.peer.set_stage(Stage::GracefulShutdown, bench.now);
    bench.acts();
    assert_eq!((marked(&bench, id), stages(&mut bench)), (3, vec![Stage::GracefulShutdown]));
    bench.peer.set_stage(Stage::Withdrawn, bench.now);
    bench.acts();
    assert_eq!(bench.table(id, true).prefixes(), Vec::<String>::new());
    assert_eq!((bench.peer.state(), stages(&mut bench)), (State::Established, vec![Stage::Withdrawn]));
    let end = Stage::Ceased(CeaseReason::Shutdown, Some(Communication::new("node drained")));
    bench.peer.set_stage(end.clone(), bench.now);
    assert_eq!(bench.outs(), [Out::Notification(6, 2), Out::Close]);
    assert_eq!(stages(&mut bench), [end]);
    let (_, last) = bench.sent.last().expect("a message");
    assert_eq!(last.body(), [&[6, 2, 12], b"node drained".as_slice()].concat());
    bench.advance(SECOND * 1000);
    assert_eq!((bench.outs(), bench.peer.state()), (vec![], State::Idle));
}

#[test]
fn a_stage_is_told_once_the_last_octet_is_out_and_not_before() {
    let (mut bench, id) = running();
    bench.peer.set_stage(Stage::GracefulShutdown, bench.now);
    let mut unsent = 0;
    while let Some(action) = bench.peer.poll_transmit(bench.now) {
        if let Action::Send(_, octets) = action {
            unsent += octets.len();
        }
    }
    assert_eq!(stages(&mut bench), []);
    bench.peer.handle_written(id, unsent - 1, bench.now);
    bench.acts();
    assert_eq!(stages(&mut bench), []);
    bench.peer.handle_written(id, 1, bench.now);
    bench.acts();
    assert_eq!(stages(&mut bench), [Stage::GracefulShutdown]);
    // Closing counts too.
    bench.peer.set_stage(Stage::Ceased(CeaseReason::Shutdown, None), bench.now);
    while bench.peer.poll_transmit(bench.now).is_some() {}
    assert_eq!(stages(&mut bench), []);
    bench.peer.handle_closed(id, None, bench.now);
    assert_eq!((bench.outs(), stages(&mut bench).len()), (vec![], 1));
}

#[test]
fn without_a_session_a_stage_is_told_at_once() {
    let mut bench = Bench::new(settings());
    bench.peer.set_stage(Stage::Withdrawn, bench.now);
    bench.acts();
    assert_eq!(stages(&mut bench), [Stage::Withdrawn]);
}

#[test]
fn a_drain_that_is_taken_back_announces_all_again_without_the_mark() {
    let (mut bench, id) = running();
    bench.peer.set_stage(Stage::GracefulShutdown, bench.now);
    bench.acts();
    bench.peer.set_stage(Stage::Withdrawn, bench.now);
    bench.acts();
    bench.peer.set_stage(Stage::Running, bench.now);
    bench.acts();
    assert_eq!((bench.table(id, true).routes.len(), marked(&bench, id)), (3, 0));
    assert_eq!(stages(&mut bench), [Stage::GracefulShutdown, Stage::Withdrawn]);
}

#[test]
fn an_ordered_restart_leaves_without_a_word() {
    let (mut bench, _) = running();
    bench.peer.set_stage(Stage::Left, bench.now);
    assert_eq!(bench.outs(), [Out::Close]);
    bench.advance(SECOND * 100);
    assert_eq!((bench.outs(), stages(&mut bench)), (vec![], vec![Stage::Left]));
}

//= test rfc4486#4:subcodes
#[test]
fn each_reason_has_its_subcode_and_may_be_followed_by_a_start() {
    for (reason, subcode) in [
        (CeaseReason::Shutdown, 2),
        (CeaseReason::PeerRemoved, 3),
        (CeaseReason::Reset, 4),
        (CeaseReason::SettingsChanged, 6),
    ] {
        let (mut bench, _) = running();
        bench.peer.set_stage(Stage::Ceased(reason, None), bench.now);
        assert_eq!(bench.outs(), [Out::Notification(6, subcode), Out::Close]);
        bench.peer.set_stage(Stage::Running, bench.now);
        assert_eq!(bench.outs(), [Out::Dial]);
    }
}

#[test]
fn a_session_that_is_begun_anew_at_once_keeps_its_routes_where_notifications_do() {
    for (reason, subcode) in [
        (CeaseReason::Shutdown, 9),
        (CeaseReason::PeerRemoved, 9),
        (CeaseReason::Reset, 4),
        (CeaseReason::SettingsChanged, 6),
    ] {
        let graceful_restart = Some(RestartTime::DEFAULT);
        let mut bench = Bench::new(Settings { bfd: BfdUse::On, graceful_restart, ..settings() });
        let mut open = their_open();
        open.capabilities.graceful_restart = Some(graceful(true));
        bench.establish_with(&open);
        bench.acts();
        bench.peer.set_stage(Stage::Ceased(reason, None), bench.now);
        assert_eq!(bench.outs(), [Out::Notification(6, subcode), Out::Close]);
    }
}

#[test]
fn the_peers_words_are_kept_and_made_harmless() {
    let (mut bench, id) = running();
    let words = Communication::new("maintenance\u{1b}[31m until 14:00");
    bench.receive(id, &Notification::cease_with(cease::ADMINISTRATIVE_SHUTDOWN, Some(&words)).emit());
    let error = bench.peer.status().last_error.expect("one");
    assert_eq!(error.words.as_deref(), Some("maintenance\u{fffd}[31m until 14:00"));
    assert!(error.detail.starts_with("administrative shutdown (6/2)"), "{}", error.detail);
    assert_eq!(error.cause, Cause::NotificationReceived);
}
