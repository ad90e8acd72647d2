//! Graceful restart (RFC 4724, RFC 8538) and BFD (RFC 9384).

use super::{super::machine::*, super::packet::*, *};

fn facts() -> RestartFacts {
    RestartFacts { restarted: true, forwarding: [Family::Ipv4].into() }
}

fn graceful_settings(bfd: BfdUse) -> Settings {
    Settings { graceful_restart: Some(RestartTime::DEFAULT), bfd, ..settings() }
}

/// What our last OPEN offers.
fn offered(bench: &Bench) -> Option<GracefulRestart> {
    let frame = bench.sent.iter().rev().map(|(_, frame)| frame).find(|frame| frame.kind == MessageType::Open);
    Open::parse(frame.expect("an OPEN").body()).expect("a legal one").capabilities.graceful_restart
}

fn their_graceful_open(notification: bool) -> Open {
    let mut open = their_open();
    open.capabilities.graceful_restart = Some(graceful(notification));
    open
}

#[test]
fn graceful_restart_is_off_by_default() {
    let mut bench = Bench::restarted(settings(), facts());
    bench.connect();
    bench.acts();
    assert_eq!(offered(&bench), None);
}

//= test rfc4724#4.1:restarted
//= test rfc4724#4.1:forwarding
#[test]
fn r_is_set_until_the_first_session_and_f_where_forwarding_went_on() {
    let mut bench = Bench::restarted(graceful_settings(BfdUse::Off), facts());
    let id = bench.connect();
    bench.acts();
    let first = offered(&bench).expect("offered");
    assert!(first.restarted && !first.notification);
    assert_eq!(first.families, [(Family::Ipv4, true), (Family::Ipv6, false)].into());
    // The first connection comes to nothing: the session is still to be re-established.
    bench.peer.handle_closed(id, None, bench.now);
    let id = bench.establish_with(&their_graceful_open(false));
    bench.acts();
    assert!(offered(&bench).expect("offered").restarted);
    bench.peer.handle_closed(id, None, bench.now);
    bench.connect();
    bench.acts();
    assert!(!offered(&bench).expect("offered").restarted);
    // What is forwarded by then counts for the next one.
    let id = bench.establish_with(&their_graceful_open(false));
    bench.peer.set_forwarding([Family::Ipv6].into());
    bench.peer.handle_closed(id, None, bench.now);
    bench.connect();
    bench.acts();
    let last = offered(&bench).expect("offered");
    assert_eq!(last.families, [(Family::Ipv4, false), (Family::Ipv6, true)].into());
}

#[test]
fn an_agent_that_has_not_restarted_sets_no_r() {
    let mut bench = Bench::new(graceful_settings(BfdUse::Off));
    bench.connect();
    bench.acts();
    assert!(!offered(&bench).expect("offered").restarted);
}

//= test rfc4724#4.1:restart-time
#[test]
fn without_bfd_the_restart_time_is_never_above_the_hold_time() {
    for (bfd, hold, expected) in
        [(BfdUse::Off, 9, 9), (BfdUse::Off, 90, 30), (BfdUse::Off, 0, 30), (BfdUse::On, 9, 30), (BfdUse::Strict, 9, 30)]
    {
        let mut bench = Bench::new(Settings { hold_time: seconds(hold), ..graceful_settings(bfd) });
        bench.peer.set_bfd(Bfd::Up, bench.now);
        bench.connect();
        bench.acts();
        assert_eq!(offered(&bench).expect("offered").time.seconds(), expected, "{bfd:?} {hold}");
    }
    // The peer's shorter hold time counts as soon as it is known.
    let mut bench = Bench::new(graceful_settings(BfdUse::Off));
    let id = bench.establish_with(&Open { hold_time: seconds(6), ..their_graceful_open(false) });
    bench.peer.handle_closed(id, None, bench.now);
    bench.connect();
    bench.acts();
    assert_eq!(offered(&bench).expect("offered").time.seconds(), 6);
}

//= test rfc8538#2:notification
//= test rfc8538#2:both
//= test rfc8538#5.1:hard-reset
//= test rfc8538#3.1:encapsulation
#[test]
fn n_is_offered_with_bfd_alone_and_makes_what_must_end_routes_a_hard_reset() {
    for (bfd, theirs, hard) in
        [(BfdUse::On, true, true), (BfdUse::On, false, false), (BfdUse::Off, true, false), (BfdUse::Off, false, false)]
    {
        let mut bench = Bench::new(graceful_settings(bfd));
        bench.peer.set_bfd(Bfd::Up, bench.now);
        bench.establish_with(&their_graceful_open(theirs));
        bench.acts();
        assert_eq!(offered(&bench).expect("offered").notification, bfd != BfdUse::Off);
        bench.peer.set_stage(Stage::Ceased(CeaseReason::PeerRemoved, None), bench.now);
        let subcode = if hard { cease::HARD_RESET } else { cease::PEER_DECONFIGURED };
        assert_eq!(bench.outs(), [Out::Notification(6, subcode), Out::Close]);
        let (_, last) = bench.sent.last().expect("a message");
        let notification = Notification::parse(last.body()).expect("two octets");
        assert_eq!(notification.true_one(), Notification::cease(cease::PEER_DECONFIGURED));
    }
}

#[test]
fn a_peer_that_may_have_its_session_already_is_told_a_hard_reset() {
    let mut bench = Bench::new(graceful_settings(BfdUse::On));
    bench.peer.set_bfd(Bfd::Up, bench.now);
    let id = bench.connect();
    bench.acts();
    // Our KEEPALIVE is on its way to it, and its own to us.
    bench.receive(id, &their_graceful_open(true).emit());
    assert_eq!((bench.outs(), bench.peer.state()), (vec![Out::Keepalive], State::OpenConfirm));
    bench.peer.set_bfd(Bfd::Down, bench.now);
    assert_eq!(bench.outs(), [Out::Notification(6, cease::HARD_RESET), Out::Close]);
}

#[test]
fn a_silent_peer_is_told_so_without_a_hard_reset() {
    let mut bench = Bench::new(graceful_settings(BfdUse::On));
    bench.establish_with(&their_graceful_open(true));
    bench.acts();
    bench.advance(SECOND * 90);
    assert!(bench.outs().contains(&Out::Notification(4, 0)));
}

//= test rfc4724#2:end
#[test]
fn end_of_rib_waits_for_the_first_verdicts_and_no_longer_than_half_the_restart_time() {
    let mut bench = Bench::new(graceful_settings(BfdUse::Off));
    bench.peer.set_routes(routes(&["192.0.2.9/32"]), false);
    bench.establish_with(&their_graceful_open(false));
    assert_eq!(bench.outs(), [Out::Open, Out::Keepalive, Out::Update]);
    bench.peer.set_routes(routes(&["192.0.2.9/32", "192.0.2.10/32"]), true);
    let ends = [Out::EndOfRib(Family::Ipv4), Out::EndOfRib(Family::Ipv6)];
    assert_eq!(bench.outs(), [vec![Out::Update], ends.to_vec()].concat());
    // Once a session: neither later routes nor later doubts bring another.
    bench.peer.set_routes(routes(&[]), false);
    bench.advance(SECOND * 20);
    assert!(!bench.outs().iter().any(|out| matches!(out, Out::EndOfRib(_))));

    let mut late = Bench::new(graceful_settings(BfdUse::Off));
    late.establish_with(&their_graceful_open(false));
    late.advance(SECOND * 15 - Duration::from_millis(1));
    assert_eq!(late.outs(), [Out::Open, Out::Keepalive]);
    late.advance(Duration::from_millis(1));
    assert_eq!(late.outs(), ends);
}

#[test]
fn after_bfd_lost_the_peer_a_session_waits_for_bfd_or_for_half_a_minute_of_silence() {
    let mut bench = Bench::new(Settings { bfd: BfdUse::On, ..settings() });
    // It comes up without BFD, and BFD that was never up takes nothing down.
    bench.peer.set_bfd(Bfd::Down, bench.now);
    bench.establish();
    bench.peer.set_bfd(Bfd::Up, bench.now);
    bench.acts();
    bench.peer.set_bfd(Bfd::Down, bench.now);
    assert_eq!(bench.outs(), [Out::Notification(6, 10), Out::Close]);
    assert!(bench.peer.status().held_by_bfd);
    bench.advance(SECOND * 200);
    assert_eq!(bench.outs(), []);
    bench.accept();
    assert_eq!(bench.outs(), [Out::Notification(6, 5), Out::Close]);
    let silent = bench.now;
    bench.peer.set_bfd(Bfd::SilentSince(silent), bench.now);
    assert_eq!(bench.peer.poll_timeout(), Some(silent + SECOND * 30));
    bench.advance(SECOND * 30 - Duration::from_millis(1));
    assert_eq!(bench.outs(), []);
    bench.advance(Duration::from_millis(1));
    assert_eq!(bench.outs(), [Out::Dial]);
    // And at once where BFD is up again.
    bench.establish();
    bench.peer.set_bfd(Bfd::Up, bench.now);
    bench.peer.set_bfd(Bfd::SilentSince(bench.now), bench.now);
    bench.acts();
    bench.peer.set_bfd(Bfd::Up, bench.now);
    bench.redial();
    assert_eq!(bench.peer.state(), State::Connect);
}

#[test]
fn what_a_peer_said_at_the_end_is_kept_where_its_bfd_falls_silent_after_it() {
    let mut bench = Bench::new(Settings { bfd: BfdUse::On, ..settings() });
    let session = bench.establish();
    bench.peer.set_bfd(Bfd::Up, bench.now);
    let words = Communication::new("the rack is moved");
    bench.receive(session, &Notification::cease_with(cease::ADMINISTRATIVE_SHUTDOWN, Some(&words)).emit());
    bench.peer.set_bfd(Bfd::SilentSince(bench.now), bench.now);
    let status = bench.peer.status();
    let error = status.last_error.expect("the peer said why");
    assert_eq!((error.cause, error.words.as_deref()), (Cause::NotificationReceived, Some("the rack is moved")));
    assert!(status.held_by_bfd);
}

//= test rfc5882#4.2:admin-down
#[test]
fn bfd_that_the_other_side_switched_off_closes_nothing_and_releases_nothing() {
    let mut bench = Bench::new(Settings { bfd: BfdUse::Strict, ..settings() });
    assert_eq!((bench.outs(), bench.peer.state()), (vec![], State::Idle));
    bench.peer.set_bfd(Bfd::Up, bench.now);
    bench.establish();
    bench.peer.set_bfd(Bfd::AdminDown, bench.now);
    assert_eq!(bench.peer.state(), State::Established);
    bench.peer.set_bfd(Bfd::Up, bench.now);
    bench.peer.set_bfd(Bfd::Down, bench.now);
    bench.peer.set_bfd(Bfd::AdminDown, bench.now);
    bench.acts();
    bench.advance(SECOND * 100);
    assert_eq!((bench.outs(), bench.peer.state()), (vec![], State::Idle));
}

#[test]
fn a_peer_without_bfd_is_not_touched_by_it() {
    let mut bench = Bench::new(settings());
    bench.establish();
    bench.peer.set_bfd(Bfd::Up, bench.now);
    bench.peer.set_bfd(Bfd::Down, bench.now);
    assert_eq!(bench.peer.state(), State::Established);
}
