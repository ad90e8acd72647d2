//! A hung agent must not look alive.

use std::time::Duration;

use super::{Bench, START, ms, settings, theirs};
use crate::announce::bfd::{
    machine::{Heartbeat, IDLE_INTERVAL, Pulse},
    packet::{ControlPacket, Sequence, State},
};

#[test]
fn packets_stop_when_the_engine_or_the_data_plane_is_gone_for_a_detection_time() {
    let bench = Bench::up(settings(50, 50, 3));
    let well = bench.now;
    for age in [ms(0), ms(149), ms(150)] {
        assert!(bench.session.may_send(well + age, Pulse::at(well)), "{age:?}");
    }
    let late = well + ms(150) + Duration::from_nanos(1);
    assert!(!bench.session.may_send(late, Pulse::at(well)));
    assert!(!bench.session.may_send(late, Pulse { engine: well, data_plane: late }));
    assert!(!bench.session.may_send(late, Pulse { engine: late, data_plane: well }));
    assert!(bench.session.may_send(late, Pulse::at(late)));
    assert!(bench.session.may_send(well, Pulse::at(late)), "an engine that is ahead of the thread is well");
}

#[test]
fn the_time_is_the_one_in_which_the_other_end_gives_us_up() {
    let mut bench = Bench::up(settings(50, 50, 5));
    bench.hear_packet(&ControlPacket { required_min_rx: ms(100), ..theirs(State::Up) });
    let well = bench.now;
    assert!(bench.session.may_send(well + ms(500), Pulse::at(well)));
    assert!(!bench.session.may_send(well + ms(501), Pulse::at(well)));
}

#[test]
fn a_hung_agent_says_nothing_and_does_not_come_up_again() {
    let mut bench = Bench::up(settings(50, 50, 3));
    let pulse = Pulse::at(bench.now);
    let hung = bench.now + ms(151);
    while bench.now < hung + Duration::from_secs(10) {
        bench.now += ms(10);
        // The other end polls while it is up, and begins anew then.
        let state = if bench.now < hung + ms(150) { State::Up } else { State::Down };
        bench.hear_packet(&ControlPacket { sequence: Sequence::Poll, ..theirs(state) });
        bench.session.handle_timeout(bench.now);
        let sent: Vec<_> = std::iter::from_fn(|| bench.session.poll_transmit(bench.now, pulse)).collect();
        assert!(sent.is_empty() || bench.now < hung, "{sent:?} at {:?}", bench.now - hung);
    }
    let status = bench.session.status();
    assert!(status.is_withheld && status.counts.withheld > 0);
    assert_ne!(status.state, State::Up);
    // Back again, it goes on as if nothing had been.
    bench.hear(State::Init);
    assert_eq!(bench.sent().last().map(|packet| packet.state), Some(State::Up));
    assert!(!bench.session.status().is_withheld);
}

#[test]
fn nothing_is_sent_before_the_first_beat() {
    let mut bench = Bench::new(settings(50, 50, 3));
    let heart = Heartbeat::default();
    bench.now += IDLE_INTERVAL;
    assert_eq!(bench.session.poll_transmit(bench.now, heart.pulse()), None);
    heart.beat(bench.now, false);
    bench.now += IDLE_INTERVAL;
    assert_eq!(bench.session.poll_transmit(bench.now, heart.pulse()), None, "the data plane was never there");
    heart.beat(bench.now, true);
    bench.now += IDLE_INTERVAL;
    assert_eq!(bench.session.poll_transmit(bench.now, heart.pulse()), None, "that was too long ago");
    bench.now += IDLE_INTERVAL;
    heart.beat(bench.now, true);
    assert!(bench.session.poll_transmit(bench.now, heart.pulse()).is_some());
}

#[test]
fn a_beat_without_the_data_plane_keeps_the_time_at_which_it_was_last_there() {
    let heart = Heartbeat::default();
    heart.beat(START, true);
    heart.beat(START + ms(100), false);
    assert_eq!(heart.pulse().data_plane, START);
    // Said ahead of work that has taken it away.
    heart.beat(START + ms(5000), true);
    heart.beat(START + ms(300), false);
    assert_eq!(heart.pulse().data_plane, START + ms(300));
    heart.beat(START, true);
    heart.beat(START + ms(100), false);
    assert_eq!(heart.pulse(), Pulse { engine: START + ms(100), data_plane: START });
}

#[test]
fn an_ordered_stop_is_said_also_when_the_data_plane_is_gone() {
    let mut bench = Bench::up(settings(50, 50, 3));
    let gone = Pulse::at(Duration::ZERO);
    assert!(!bench.session.may_send(bench.now, gone));
    bench.session.stop(bench.now);
    assert!(bench.session.may_send(bench.now, gone));
}
