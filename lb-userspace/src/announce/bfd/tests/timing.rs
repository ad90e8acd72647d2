//! Intervals, jitter and detection times.

use std::time::Duration;

use super::{Bench, ms, settings, theirs};
use crate::announce::bfd::{
    machine::{Cause, Event, IDLE_INTERVAL},
    packet::{ControlPacket, DetectMult, Diagnostic, Sequence, State},
};

const FINAL: ControlPacketChange = |packet| ControlPacket { sequence: Sequence::Final, ..packet };

type ControlPacketChange = fn(ControlPacket) -> ControlPacket;

/// The gaps between packets, in parts of `interval`: the least, the greatest, the mean.
fn gaps(sent: &[(Duration, ControlPacket)], interval: Duration) -> (f64, f64, f64) {
    let gaps: Vec<f64> =
        sent.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs_f64() / interval.as_secs_f64()).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    (gaps.iter().copied().fold(f64::MAX, f64::min), gaps.iter().copied().fold(0.0, f64::max), mean)
}

//= test rfc5880#6.8.7:jitter
//= test rfc5880#6.8.7:jitter-alone
#[test]
fn packets_come_early_by_up_to_a_quarter_and_alone_by_a_tenth_at_least() {
    for (mult, latest, mean) in [(3, 1.0, 0.875), (2, 1.0, 0.875), (1, 0.9, 0.825)] {
        for seed in 0..10 {
            let mut bench = Bench::with_seed(settings(50, 50, mult), seed);
            bench.come_up();
            bench.pass_heard(ms(50));
            let sent = bench.pass_heard(Duration::from_secs(50));
            let (least, most, found) = gaps(&sent, ms(50));
            assert!(least >= 0.7499 && most <= latest + 0.0001, "seed {seed}, multiplier {mult}: {least} to {most}");
            assert!(least < 0.76 && most > latest - 0.01, "seed {seed}, multiplier {mult}: all of the range is used");
            assert!((found - mean).abs() < 0.01, "seed {seed}, multiplier {mult}: {found} is the mean");
        }
    }
}

//= test rfc5880#6.8.3:slow-start
#[test]
fn at_most_a_packet_a_second_leaves_while_the_session_is_not_up() {
    for seed in 0..20 {
        let mut bench = Bench::with_seed(settings(10, 10, 3), seed);
        let sent = bench.pass(Duration::from_secs(100));
        let (least, most, _) = gaps(&sent, IDLE_INTERVAL);
        assert!(least >= 0.7499 && most <= 1.0001, "seed {seed}: {least} to {most} seconds");
        assert!(sent.iter().all(|(_, packet)| packet.desired_min_tx == IDLE_INTERVAL));
        // Init, and Down after having been up, are no different.
        bench.hear(State::Down);
        assert_eq!(bench.sent().len(), 1, "the change is told");
        let mut init = Vec::new();
        for _ in 0..1000 {
            bench.hear(State::Down);
            init.extend(bench.pass(ms(10)));
        }
        let (least, ..) = gaps(&init, IDLE_INTERVAL);
        assert!(least >= 0.7499, "seed {seed}: {least} seconds in Init");
        bench.hear(State::Up);
        bench.sent();
        bench.pass(ms(200));
        assert_eq!(bench.session.state(), State::Down);
        bench.pass(IDLE_INTERVAL);
        let (least, ..) = gaps(&bench.pass(Duration::from_secs(20)), IDLE_INTERVAL);
        assert!(least >= 0.7499, "seed {seed}: {least} seconds after a loss");
    }
}

//= test rfc5880#6.8.7:changed-contents
#[test]
fn a_change_of_state_waits_for_no_timer() {
    let mut bench = Bench::new(settings(50, 50, 3));
    bench.pass(IDLE_INTERVAL);
    for (heard, state) in [(State::Down, State::Init), (State::Up, State::Up), (State::Down, State::Down)] {
        bench.now += ms(1);
        bench.hear(heard);
        assert_eq!(bench.sent().last().map(|packet| packet.state), Some(state));
        bench.hear(if state == State::Init { State::Down } else { State::Up });
        assert_eq!(bench.sent(), [], "once");
    }
}

//= test rfc5880#6.8.2:interval
//= test rfc5880#6.8.7:recalculate
#[test]
fn the_slower_end_sets_the_pace() {
    for (ours, wished, pace) in [(50, 200, 200), (200, 50, 200), (50, 50, 50)] {
        let mut bench = Bench::up(settings(ours, 50, 3));
        let packet = ControlPacket { required_min_rx: ms(wished), ..theirs(State::Up) };
        let mut sent = Vec::new();
        for _ in 0..1000 {
            bench.hear_packet(&packet);
            sent.extend(bench.pass(ms(10)));
        }
        let (least, most, _) = gaps(&sent, ms(pace));
        assert!(least >= 0.7499 && most <= 1.0001, "{ours} and {wished}: {least} to {most}");
    }
}

//= test rfc5880#6.8.7:recalculate
#[test]
fn a_wish_for_less_holds_from_the_next_packet_on() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.pass_heard(ms(500));
    let last = bench.pass_heard(ms(50)).last().expect("a packet").0;
    bench.hear_packet(&ControlPacket { required_min_rx: ms(1000), desired_min_tx: ms(1000), ..theirs(State::Up) });
    let next = bench.pass(ms(1000)).first().expect("a packet").0;
    assert!(next - last >= ms(750) - ms(1), "{:?}", next - last);
}

/// Some peers ask for a second until up, and lower that then.
//= test rfc5880#6.8.7:recalculate
#[test]
fn an_interval_that_falls_is_kept_from_the_last_packet_on() {
    for seed in 0..50 {
        let slow = |state| ControlPacket { required_min_rx: ms(1000), desired_min_tx: ms(1000), ..theirs(state) };
        let mut bench = Bench::with_seed(settings(50, 50, 3), seed);
        bench.hear_packet(&slow(State::Down));
        bench.sent();
        bench.hear_packet(&slow(State::Up));
        let up = bench.sent();
        assert_eq!(up.last().map(|packet| packet.state), Some(State::Up));
        let sent_at = bench.now;
        assert!(bench.session.transmit_at() >= Some(sent_at + ms(750)), "a second, less jitter");
        // The wish falls soon after: its end now expects a packet every 50 ms.
        bench.now += ms(5);
        bench.hear_packet(&ControlPacket { sequence: Sequence::Poll, ..theirs(State::Up) });
        bench.sent();
        let next = bench.session.transmit_at().expect("a packet");
        assert!(next <= sent_at + ms(45), "seed {seed}: {:?} after the last", next - sent_at);
        // Or so late that a packet is overdue by the new measure.
        let mut bench = Bench::with_seed(settings(50, 50, 3), seed);
        bench.hear_packet(&slow(State::Init));
        bench.sent();
        bench.now += ms(400);
        bench.hear(State::Up);
        assert_eq!(bench.sent().len(), 1, "seed {seed}: at once");
    }
}

//= test rfc5880#6.8.3:slower-waits
#[test]
fn a_longer_transmit_interval_waits_for_final_and_a_shorter_does_not() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.session.set_settings(settings(500, 50, 3), bench.now);
    let sent = bench.pass_heard(ms(1000));
    assert!(sent.len() >= 19, "{} in a second", sent.len());
    bench.hear_packet(&FINAL(theirs(State::Up)));
    assert_eq!(bench.session.transmit_interval(), ms(500));
    assert!(bench.pass_heard(ms(1000)).len() <= 3);
    bench.session.set_settings(settings(50, 50, 3), bench.now);
    assert_eq!(bench.session.transmit_interval(), ms(50));
    // Not up, nobody relies on the old one.
    let mut bench = Bench::new(settings(1000, 50, 3));
    bench.session.set_settings(settings(3000, 50, 3), bench.now);
    assert_eq!(bench.session.transmit_interval(), ms(3000));
}

//= test rfc5880#6.8.3:shorter-detection-waits
#[test]
fn a_shorter_receive_interval_waits_for_final_and_a_longer_does_not() {
    let mut bench = Bench::up(settings(50, 200, 3));
    assert_eq!(bench.session.detection_time(), Some(ms(600)));
    bench.session.set_settings(settings(50, 100, 3), bench.now);
    bench.sent();
    assert_eq!(bench.session.detection_time(), Some(ms(600)), "the other end may not know yet");
    bench.pass_heard(ms(100));
    bench.hear_packet(&FINAL(theirs(State::Up)));
    assert_eq!(bench.session.detection_time(), Some(ms(300)));
    bench.session.set_settings(settings(50, 400, 3), bench.now);
    assert_eq!(bench.session.detection_time(), Some(ms(1200)));
}

//= test rfc5880#6.8.4:detection-time
#[test]
fn detection_takes_the_other_ends_multiplier_and_the_slower_of_the_two_intervals() {
    for (receive, transmit, mult, ours) in [(50, 50, 3, 7), (50, 200, 3, 7), (200, 50, 5, 1), (50, 50, 1, 9)] {
        let mut bench = Bench::up(settings(50, receive, ours));
        let detect_mult = DetectMult::new(mult).expect("not zero");
        bench.hear_packet(&ControlPacket { detect_mult, desired_min_tx: ms(transmit), ..theirs(State::Up) });
        bench.sent();
        let expected = ms(receive.max(transmit)) * u32::from(mult);
        assert_eq!(bench.session.detection_time(), Some(expected));
        bench.pass(expected - ms(1));
        assert_eq!((bench.session.state(), bench.events()), (State::Up, vec![]));
        bench.pass(ms(1));
        let cause = Cause::Silence { silent_for: expected };
        let down = Event::Down { diagnostic: Diagnostic::DetectionTimeExpired, cause };
        assert_eq!((bench.session.state(), bench.events()), (State::Down, vec![down]));
    }
}

#[test]
fn an_interval_that_the_other_end_changes_counts_at_once_for_detection() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.hear_packet(&ControlPacket { desired_min_tx: ms(1000), ..theirs(State::Up) });
    bench.pass(ms(2999));
    assert_eq!(bench.session.state(), State::Up);
    bench.hear(State::Up);
    bench.pass(ms(150));
    assert_eq!(bench.session.state(), State::Down);
}

#[test]
fn a_late_thread_makes_no_burst() {
    let mut bench = Bench::up(settings(50, 50, 3));
    bench.hear_packet(&ControlPacket { desired_min_tx: ms(10_000), ..theirs(State::Up) });
    bench.now += ms(5000);
    assert_eq!(bench.sent().len(), 1);
    assert!(bench.session.transmit_at() > Some(bench.now + ms(37)));
}
