//! One test for each rule of what is said and when it is answered; those of intervals are in `timing`.

use std::time::Duration;

use super::{Bench, OURS, START, THEIRS, discriminator, ms, settings, theirs};
use crate::announce::bfd::{
    machine::{Event, IDLE_INTERVAL, INTERVAL_MAX, INTERVAL_MIN, Settings, SettingsError},
    packet::{ControlPacket, Diagnostic, Sequence, State},
};

fn with(sequence: Sequence) -> ControlPacket {
    ControlPacket { sequence, ..theirs(State::Up) }
}

//= test rfc5881#3:active
//= test rfc5883#4.3:active
#[test]
fn a_session_speaks_first() {
    for seed in 0..100 {
        let mut bench = Bench::with_seed(settings(50, 60, 3), seed);
        let sent = bench.pass(IDLE_INTERVAL / 4);
        let [(_, packet)] = sent[..] else { panic!("seed {seed}: {sent:?}") };
        assert_eq!((packet.state, packet.diagnostic), (State::Down, Diagnostic::None));
        assert_eq!((packet.my_discriminator, packet.your_discriminator), (discriminator(OURS), None));
        assert_eq!((packet.desired_min_tx, packet.required_min_rx), (IDLE_INTERVAL, ms(60)));
    }
}

//= test rfc5880#6.8.7:control-plane-independent
#[test]
fn packets_say_what_we_are_and_claim_nothing_else() {
    let mut bench = Bench::up(settings(50, 60, 4));
    let sent = bench.pass(ms(50));
    let (_, packet) = sent.last().expect("a packet");
    let expected = ControlPacket {
        diagnostic: Diagnostic::None,
        state: State::Up,
        sequence: Sequence::Neither,
        is_control_plane_independent: false,
        is_demand: false,
        detect_mult: settings(50, 60, 4).detect_mult(),
        my_discriminator: discriminator(OURS),
        your_discriminator: Some(discriminator(THEIRS)),
        desired_min_tx: ms(50),
        required_min_rx: ms(60),
        required_min_echo_rx: Duration::ZERO,
    };
    assert_eq!(*packet, expected);
}

//= test rfc5880#6.8.7:final-answer
#[test]
fn poll_is_answered_at_once_in_each_state_and_leaves_the_timer_alone() {
    for state in [State::Down, State::Init, State::Up] {
        let mut bench = match state {
            State::Up => Bench::up(settings(50, 50, 3)),
            State::AdminDown | State::Down | State::Init => Bench::new(settings(50, 50, 3)),
        };
        match state {
            State::Init => bench.hear(State::Down),
            State::AdminDown | State::Down | State::Up => bench.hear(State::Up),
        }
        bench.sent();
        let next = bench.session.transmit_at();
        // What keeps each state as it is.
        let heard = if state == State::Init { State::Down } else { State::Up };
        bench.hear_packet(&ControlPacket { state: heard, ..with(Sequence::Poll) });
        assert_eq!(bench.session.transmit_at(), Some(Duration::ZERO));
        let answers: Vec<_> = bench.sent().iter().map(|packet| (packet.state, packet.sequence)).collect();
        assert_eq!(answers, [(state, Sequence::Final)]);
        assert_eq!(bench.session.transmit_at(), next, "in {state:?}");
    }
}

//= test rfc5880#6.8.7:final-answer
#[test]
fn poll_is_answered_also_to_who_wants_no_packets() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.hear_packet(&ControlPacket { required_min_rx: Duration::ZERO, ..with(Sequence::Poll) });
    assert_eq!(bench.sent().len(), 1);
}

//= test rfc5880#6.8.7:remote-receives-none
#[test]
fn who_receives_none_is_sent_none_until_it_does() {
    let mut bench = Bench::up(settings(50, 50, 3));
    let silent = ControlPacket { required_min_rx: Duration::ZERO, ..theirs(State::Up) };
    bench.hear_packet(&silent);
    for _ in 0..20 {
        assert_eq!(bench.pass(ms(100)), []);
        bench.hear_packet(&silent);
    }
    bench.hear(State::Up);
    assert!(!bench.pass(ms(50)).is_empty());
}

//= test rfc5880#6.8.18:forget-interval
//= test rfc5880#6.8.1:forget-discriminator
#[test]
fn who_has_been_silent_for_a_detection_time_is_unknown() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.hear_packet(&ControlPacket { required_min_rx: Duration::ZERO, ..theirs(State::Up) });
    let sent = bench.pass(ms(151));
    assert_eq!(bench.session.status().remote, None);
    // The state changes before the other end is forgotten; what is sent then is what is known then.
    assert!(sent.iter().all(|(_, packet)| packet.state == State::Down && packet.your_discriminator.is_none()));
    assert!(!bench.pass(IDLE_INTERVAL).is_empty(), "whatever it wanted before");
    // In Down too.
    bench.hear(State::Up);
    assert!(bench.session.status().remote.is_some());
    bench.pass(ms(151));
    assert_eq!((bench.session.state(), bench.session.status().remote), (State::Down, None));
}

//= test rfc5880#6.8.7:remote-demand
//= test rfc5880#6.8.14:demand-ends
#[test]
fn demand_mode_of_the_other_end_silences_all_but_polls() {
    let mut bench = Bench::up(settings(50, 50, 3));
    let demand = ControlPacket { is_demand: true, ..theirs(State::Up) };
    let pass_in_demand = |bench: &mut Bench| {
        let mut sent = Vec::new();
        for _ in 0..20 {
            bench.hear_packet(&demand);
            sent.extend(bench.pass(ms(20)));
        }
        sent
    };
    assert_eq!(pass_in_demand(&mut bench), []);
    bench.session.set_settings(settings(60, 50, 3), bench.now);
    let polls = pass_in_demand(&mut bench);
    assert!(polls.len() > 4 && polls.iter().all(|(_, packet)| packet.sequence == Sequence::Poll), "{polls:?}");
    bench.hear_packet(&ControlPacket { is_demand: true, ..with(Sequence::Final) });
    assert_eq!(pass_in_demand(&mut bench), []);
    // It only counts while both are up.
    bench.hear_packet(&ControlPacket { is_demand: true, ..theirs(State::Down) });
    assert!(bench.pass(ms(2000)).len() > 1);
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.hear_packet(&demand);
    bench.hear(State::Up);
    assert!(!bench.pass(ms(50)).is_empty());
}

//= test rfc5880#6.5:poll-on-schedule
//= test rfc5880#6.8.3:poll-on-change
//= test rfc5880#6.8.6:final
#[test]
fn a_change_of_interval_polls_with_the_periodic_packets_until_final() {
    for change in [settings(80, 50, 3), settings(30, 50, 3), settings(50, 80, 3), settings(50, 30, 3)] {
        let mut bench = Bench::up(settings(50, 50, 3));
        bench.pass_heard(ms(500));
        let due = bench.session.transmit_at();
        bench.session.set_settings(change, bench.now);
        assert!(bench.session.transmit_at() == due || change.desired_min_tx() < ms(50), "no packet for the poll alone");
        let sent = bench.pass_heard(ms(500));
        assert!(sent.len() > 5);
        for (_, packet) in sent {
            assert_eq!(packet.sequence, Sequence::Poll);
            assert_eq!(packet.desired_min_tx, change.desired_min_tx());
            assert_eq!(packet.required_min_rx, change.required_min_rx());
        }
        bench.hear_packet(&with(Sequence::Final));
        assert!(bench.pass_heard(ms(500)).iter().all(|(_, packet)| packet.sequence == Sequence::Neither));
    }
}

//= test rfc5880#6.8.3:poll-on-change
#[test]
fn coming_up_and_going_down_change_the_interval_and_poll() {
    let mut bench = Bench::new(settings(50, 50, 3));
    bench.hear(State::Down);
    assert_eq!(bench.sent().last().map(|packet| packet.sequence), Some(Sequence::Neither));
    bench.hear(State::Init);
    let up = bench.sent().pop().expect("sent at once");
    assert_eq!((up.state, up.sequence, up.desired_min_tx), (State::Up, Sequence::Poll, ms(50)));
    bench.hear_packet(&with(Sequence::Final));
    bench.hear(State::Down);
    let down = bench.sent().pop().expect("sent at once");
    assert_eq!((down.state, down.sequence, down.desired_min_tx), (State::Down, Sequence::Poll, IDLE_INTERVAL));
    // A slow session's interval is the same in all states.
    let mut bench = Bench::new(settings(2000, 50, 3));
    bench.hear(State::Init);
    assert_eq!(bench.sent().last().map(|packet| (packet.state, packet.sequence)), Some((State::Up, Sequence::Neither)));
}

#[test]
fn a_change_during_a_poll_sequence_gets_one_of_its_own() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.session.set_settings(settings(100, 50, 3), bench.now);
    bench.pass_heard(ms(100));
    bench.session.set_settings(settings(200, 50, 3), bench.now);
    bench.hear_packet(&with(Sequence::Final));
    assert_eq!(bench.session.transmit_interval(), ms(50), "that was the answer to 100 ms");
    assert!(bench.pass_heard(ms(100)).iter().any(|(_, packet)| packet.sequence == Sequence::Poll));
    bench.hear_packet(&with(Sequence::Final));
    assert_eq!(bench.session.transmit_interval(), ms(200));
}

#[test]
fn final_that_nobody_asked_for_ends_nothing() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.session.set_settings(settings(100, 50, 3), bench.now);
    bench.hear_packet(&with(Sequence::Final));
    assert!(bench.session.status().is_polling, "no packet has asked yet");
    assert_eq!(bench.session.transmit_interval(), ms(50));
}

//= test rfc5880#6.8.12:detect-mult-change
#[test]
fn another_multiplier_goes_out_without_poll() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.session.set_settings(settings(50, 50, 5), bench.now);
    let sent = bench.pass(ms(50));
    let (_, packet) = sent.last().expect("a packet");
    assert_eq!((packet.detect_mult.get(), packet.sequence), (5, Sequence::Neither));
}

//= test rfc5880#6.8.6:received
#[test]
fn each_packet_that_is_taken_puts_detection_off() {
    let mut bench = Bench::up(settings(50, 50, 3));
    for _ in 0..10 {
        bench.pass(ms(149));
        bench.hear(State::Up);
        assert_eq!(bench.session.silent_since(), bench.now);
    }
    assert_eq!(bench.session.state(), State::Up);
    bench.pass(ms(150));
    assert_eq!(bench.session.state(), State::Down);
    assert_eq!(bench.session.silent_since(), bench.now - ms(150));
}

#[test]
fn silence_counts_from_the_beginning_where_nothing_was_ever_heard() {
    let mut bench = Bench::new(settings(50, 50, 3));
    bench.pass(Duration::from_secs(40));
    assert_eq!(bench.session.silent_since(), START);
}

//= test rfc5880#6.8.16:tell-admin-down
#[test]
fn an_ordered_stop_is_said_at_once_and_for_a_detection_time() {
    let mut bench = Bench::up(settings(50, 50, 3));
    let begun = bench.now;
    bench.session.stop(begun);
    assert_eq!(bench.events(), [], "not before it was sent");
    let first = bench.sent().pop().expect("sent at once");
    assert_eq!((first.state, first.diagnostic), (State::AdminDown, Diagnostic::AdministrativelyDown));
    assert_eq!(bench.events(), [Event::AdminDownSent]);
    let sent = bench.pass(IDLE_INTERVAL * 3 - ms(1));
    assert!(sent.len() >= 2 && sent.iter().all(|(_, packet)| packet.state == State::AdminDown), "{sent:?}");
    assert_eq!(bench.events(), []);
    bench.pass(ms(1));
    assert_eq!(bench.events(), [Event::Stopped], "three times the second that a stopped session keeps to");
    bench.pass(IDLE_INTERVAL * 10);
    assert_eq!(bench.events(), []);
    bench.session.resume(bench.now);
    assert_eq!(bench.session.status().remote, None);
    bench.come_up();
}

#[test]
fn a_stop_waits_no_longer_than_its_limit_for_a_slow_other_end() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.hear_packet(&ControlPacket { required_min_rx: Duration::from_secs(4000), ..theirs(State::Up) });
    bench.session.stop(bench.now);
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.events(), [Event::AdminDownSent, Event::Stopped]);
}

#[test]
fn a_stop_that_cannot_be_said_ends_too() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.hear_packet(&ControlPacket { required_min_rx: Duration::ZERO, ..theirs(State::Up) });
    bench.session.stop(bench.now);
    assert_eq!(bench.pass(IDLE_INTERVAL * 4), []);
    assert_eq!(bench.events(), [Event::Stopped]);
}

//= test rfc5880#6.8.1:detect-mult-nonzero
#[test]
fn settings_that_cannot_be_kept_are_refused() {
    let just = (INTERVAL_MIN, INTERVAL_MAX);
    assert!(Settings::new(just.0, just.1, 1).is_ok() && Settings::new(just.1, just.0, 255).is_ok());
    let (short, long) = (INTERVAL_MIN - Duration::from_nanos(1), INTERVAL_MAX + Duration::from_nanos(1));
    assert_eq!(Settings::new(short, just.0, 3), Err(SettingsError::Transmit(short)));
    assert_eq!(Settings::new(long, just.0, 3), Err(SettingsError::Transmit(long)));
    assert_eq!(Settings::new(just.0, short, 3), Err(SettingsError::Receive(short)));
    assert_eq!(Settings::new(just.0, long, 3), Err(SettingsError::Receive(long)));
    assert_eq!(Settings::new(just.0, just.0, 0), Err(SettingsError::Multiplier));
    let fine = Settings::new(ms(10) + Duration::from_nanos(999), ms(10), 3).expect("in range");
    assert_eq!(fine.desired_min_tx(), ms(10), "what the wire cannot say is left out");
}

#[test]
fn a_status_tells_both_ends() {
    let mut bench = Bench::up(settings(50, 70, 3));
    bench.hear_packet(&ControlPacket { desired_min_tx: ms(90), required_min_rx: ms(80), ..theirs(State::Up) });
    let status = bench.session.status();
    assert_eq!((status.transmit_interval, status.detection_time), (ms(80), Some(ms(270))));
    assert_eq!((status.desired_min_tx, status.required_min_rx, status.detect_mult.get()), (ms(50), ms(70), 3));
    let remote = status.remote.expect("known");
    assert_eq!((remote.desired_min_tx, remote.required_min_rx, remote.detect_mult.get()), (ms(90), ms(80), 3));
    assert_eq!((status.counts.ups, status.counts.downs.total()), (1, 0));
    bench.pass(ms(270));
    let counts = bench.session.status().counts;
    assert_eq!((counts.ups, counts.downs.silence, counts.downs.total()), (1, 1, 1));
}
