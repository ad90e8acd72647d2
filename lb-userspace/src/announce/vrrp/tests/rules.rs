//! One test for each rule that a virtual router keeps.

use std::time::Duration;

use super::{
    Bench, Family, OWN, SECOND, address, advertisement, advertisement_each, interval, ms, priority, settings, vips,
    vrid,
};
use crate::announce::vrrp::{
    Interval, Version,
    machine::{
        Cause, Event, GRATUITOUS_ROUNDS, GRATUITOUS_SPACING, LISTEN_MIN, Peers, Preemption, Router, Settings,
        StateName, Stop, Vips,
    },
    packet::{Advertised, Advertisement},
};

/// Of priority 100 at one second: 156/256.
const SKEW: Duration = Duration::from_nanos(609_375_000);

/// When the router changes its state next, from now.
fn time_to(bench: &mut Bench, state: StateName) -> Duration {
    let begin = bench.now;
    while bench.state() != state {
        bench.step();
        assert!(bench.now < begin + SECOND * 100, "never {state:?}");
    }
    bench.now - begin
}

//= test rfc9568#6.1:skew
//= test rfc3768#6.1:skew
#[test]
fn the_skew_is_of_the_interval_in_version_3_and_of_a_second_in_version_2() {
    let slow = Interval::new(Version::V2, SECOND * 10).expect("an interval");
    assert_eq!(slow.skew(priority(OWN)), SKEW);
    assert_eq!(slow.active_down(priority(OWN)), SECOND * 30 + SKEW);
    assert_eq!(interval(SECOND * 10).skew(priority(OWN)), SKEW * 10);
    assert_eq!(interval(ms(100)).active_down(priority(254)), Duration::from_nanos(300_781_250));
}

//= test rfc9568#6.4.1:startup
//= test rfc3768#6.4.1:startup
#[test]
fn a_start_waits_for_a_whole_interval_of_silence() {
    let mut bench = Bench::new(settings());
    assert_eq!(bench.state(), StateName::Listening);
    assert_eq!(time_to(&mut bench, StateName::Active), SECOND * 3 + SKEW);
    let quick = Settings { interval: interval(ms(100)), ..settings() };
    let mut bench = Bench::new(quick);
    assert_eq!(time_to(&mut bench, StateName::Active), LISTEN_MIN, "one at the default interval is heard first");
}

#[test]
fn a_router_that_becomes_eligible_again_has_listened_and_waits_for_its_own_time_alone_unless_a_slower_one_speaks() {
    let mut bench = Bench::active(Settings { interval: interval(ms(100)), ..settings() });
    for heard in [false, true] {
        bench.router.set_priority(None, bench.now);
        bench.settle();
        bench.run(SECOND);
        if heard {
            bench.hear(50, 20);
        }
        bench.router.set_priority(Some(priority(OWN)), bench.now);
        bench.settle();
        let whole = if heard { SECOND * 3 + SKEW } else { ms(300) + SKEW / 10 };
        assert_eq!(time_to(&mut bench, StateName::Active), whole);
    }
}

#[test]
fn the_start_delay_holds_it_back_whatever_it_hears() {
    let mut bench = Bench::new(Settings { start_delay: SECOND * 30, ..settings() });
    for _ in 0..29 {
        bench.run(SECOND);
        bench.hear(50, 20);
        assert_eq!(bench.state(), StateName::Listening);
    }
    bench.run(SECOND);
    assert_eq!(bench.state(), StateName::Active, "it preempts when the delay is over");
    assert_eq!(bench.router.status().counters.transitions[&Cause::Preempted], 1);
}

//= test rfc9568#6.4.2:zero
//= test rfc3768#6.4.2:zero
#[test]
fn after_priority_0_a_backup_waits_for_its_skew() {
    let mut bench = Bench::backup(settings());
    bench.hear(0, 20);
    assert_eq!(time_to(&mut bench, StateName::Active), SKEW);
    assert_eq!(bench.router.status().counters.transitions[&Cause::ActiveLeft], 1);
}

//= test rfc9568#6.4.2:accept
//= test rfc3768#6.4.2:accept
#[test]
fn an_equal_or_higher_priority_is_waited_for_anew_and_without_preemption_any_is() {
    for (preemption, heard, waits) in [
        (Preemption::After(Duration::ZERO), 200, true),
        (Preemption::After(Duration::ZERO), 100, true),
        (Preemption::After(Duration::ZERO), 99, false),
        (Preemption::Off, 99, true),
        (Preemption::Off, 1, true),
    ] {
        let mut bench = Bench::backup(Settings { preemption, ..settings() });
        bench.run(SECOND * 2);
        bench.hear(heard, 20);
        let left = if waits { SECOND * 3 + SKEW } else { SECOND + SKEW };
        assert_eq!(time_to(&mut bench, StateName::Active), left, "{preemption:?} and {heard}");
    }
}

//= test rfc9568#6.4.2:lower
//= test rfc3768#6.4.2:lower
#[test]
fn a_lower_active_is_preempted_when_the_timer_ends_however_much_it_speaks() {
    let mut bench = Bench::backup(settings());
    let begin = bench.now;
    while bench.state() == StateName::Backup {
        bench.run(ms(100));
        bench.hear(99, 20);
    }
    assert!(bench.now - begin < SECOND * 3 + SKEW + ms(100));
    assert_eq!(bench.router.status().counters.transitions[&Cause::Preempted], 1);
}

//= test rfc9568#6.4.2:accept
#[test]
fn a_backup_waits_by_the_interval_of_the_active() {
    for each in [ms(10), ms(100), SECOND * 10] {
        let mut bench = Bench::backup(settings());
        bench.hear_this(&advertisement_each(200, each), 20);
        let whole = interval(each).active_down(priority(OWN));
        assert_eq!(time_to(&mut bench, StateName::Active), whole);
    }
}

#[test]
fn the_preempt_delay_counts_from_the_first_advertisement_of_the_lower_active() {
    let delay = SECOND * 20;
    let mut bench = Bench::backup(Settings { preemption: Preemption::After(delay), ..settings() });
    for second in 0..20 {
        assert_eq!(bench.state(), StateName::Backup, "after {second} s");
        bench.hear(99, 20 + second % 3);
        bench.run(SECOND);
    }
    assert_eq!(bench.state(), StateName::Active);
    assert_eq!(bench.router.status().counters.transitions[&Cause::Preempted], 1);
}

#[test]
fn the_preempt_delay_begins_anew_after_a_higher_one_and_does_not_delay_what_silence_asks_for() {
    let delay = SECOND * 20;
    let mut bench = Bench::backup(Settings { preemption: Preemption::After(delay), ..settings() });
    bench.hear(99, 20);
    for _ in 0..19 {
        bench.run(SECOND);
        bench.hear(99, 20);
    }
    bench.hear(200, 30);
    bench.run(SECOND);
    bench.hear(99, 20);
    bench.run(SECOND * 3);
    assert_eq!(bench.state(), StateName::Backup);
    assert_eq!(time_to(&mut bench, StateName::Active), SKEW);
    assert_eq!(bench.router.status().counters.transitions[&Cause::Silence], 1);
}

#[test]
fn a_preempt_delay_that_began_while_listening_goes_on() {
    let preemption = Preemption::After(SECOND * 5);
    let mut bench = Bench::new(Settings { preemption, ..settings() });
    let begin = bench.now;
    bench.hear(99, 20);
    while bench.state() != StateName::Active {
        bench.run(SECOND / 2);
        bench.hear(99, 20);
    }
    assert_eq!(bench.now - begin, SECOND * 5);
}

//= test rfc9568#6.4.2:down
//= test rfc3768#6.4.2:down
//= test rfc9568#6.4.3:answer
//= test rfc3768#6.4.3:answer
//= test rfc9568#8.1.2:boot
//= test rfc9568#8.2.2:boot
//= test rfc9568#8.1.2:gratuitous
//= test rfc9568#8.2.2:unsolicited
#[test]
fn who_becomes_active_advertises_then_answers_then_announces() {
    let mut bench = Bench::backup(settings());
    while bench.state() == StateName::Backup {
        bench.now = bench.router.poll_timeout().expect("a timer");
        bench.router.handle_timeout(bench.now);
    }
    let transition = Event::Transition { from: StateName::Backup, to: StateName::Active, cause: Cause::Silence };
    assert_eq!(bench.router.poll_event(), Some(transition));
    assert_eq!(bench.router.poll_event(), None, "nothing is announced before it is advertised");
    assert_eq!(bench.router.hold(), None);
    let transmit = bench.router.poll_transmit(bench.now).expect("an advertisement");
    assert_eq!((transmit.advertisement, transmit.source), (advertisement(100), address(10)));
    bench.router.sent(transmit.id, bench.now + ms(1));
    let until = bench.now + ms(1) + SECOND * 3;
    assert_eq!(bench.router.poll_event(), Some(Event::Hold { until }));
    assert_eq!(bench.router.poll_event(), Some(Event::Gratuitous));
    assert_eq!(bench.router.hold(), Some(until));
}

#[test]
fn announcements_come_in_rounds_and_then_again_each_refresh() {
    for refresh in [None, Some(SECOND * 60)] {
        let mut bench = Bench::backup(Settings { refresh, ..settings() });
        time_to(&mut bench, StateName::Active);
        assert_eq!(bench.rounds(), 1);
        for _ in 1..GRATUITOUS_ROUNDS {
            bench.run(GRATUITOUS_SPACING);
            assert_eq!(bench.rounds(), 1);
        }
        bench.run(SECOND * 601);
        assert_eq!(bench.rounds(), if refresh.is_some() { 10 } else { 0 });
    }
}

//= test rfc9568#6.4.3:timer
//= test rfc3768#6.4.3:timer
#[test]
fn an_active_advertises_each_interval_and_small_delays_do_not_add_up() {
    let mut bench = Bench::active(Settings { refresh: None, ..settings() });
    bench.run(SECOND * 10);
    bench.forget();
    let first = bench.router.poll_timeout().expect("a timer");
    for count in 0..100 {
        let due = first + SECOND * count;
        assert_eq!(bench.router.poll_timeout(), Some(due));
        bench.now = due + ms(7);
        bench.router.handle_timeout(bench.now);
        bench.settle();
    }
    assert_eq!(bench.said(), [100; 100]);
}

//= test rfc9568#6.4.3:zero
//= test rfc3768#6.4.3:zero
//= test rfc9568#6.4.3:lower
#[test]
fn an_active_that_hears_a_lower_one_or_one_that_leaves_answers_at_once_and_announces_again() {
    for (heard, from) in [(0, 20), (99, 20), (100, 9)] {
        let mut bench = Bench::active(settings());
        bench.run(SECOND * 10 + ms(300));
        bench.forget();
        bench.hear(heard, from);
        assert_eq!((bench.said(), bench.rounds()), (vec![100], 1), "{heard}");
        bench.run(ms(999));
        assert_eq!((bench.said(), bench.rounds()), (vec![], 3), "the next is an interval away");
        bench.run(ms(1));
        assert_eq!(bench.said(), [100]);
    }
}

#[test]
fn another_active_that_cannot_hear_makes_no_flood_of_announcements() {
    let mut bench = Bench::active(settings());
    bench.run(SECOND * 10);
    bench.forget();
    for _ in 0..1000 {
        bench.run(ms(1));
        bench.hear(99, 20);
    }
    assert!((45..=51).contains(&bench.rounds()));
}

//= test rfc9568#6.4.3:higher
//= test rfc3768#6.4.3:higher
#[test]
fn an_active_that_hears_a_higher_one_says_one_last_word_and_waits_by_its_interval() {
    for (heard, from) in [(101, 9), (100, 11), (255, 1)] {
        let mut bench = Bench::active(settings());
        let each = SECOND * 2;
        bench.hear_this(&advertisement_each(heard, each), from);
        assert_eq!((bench.state(), bench.said(), bench.router.hold()), (StateName::Backup, vec![100], None));
        assert_eq!(bench.router.status().counters.transitions[&Cause::HigherHeard], 1);
        let whole = interval(each).active_down(priority(OWN));
        assert_eq!(time_to(&mut bench, StateName::Active), whole);
    }
}

#[test]
fn the_last_word_of_a_loser_extends_nothing() {
    let mut bench = Bench::active(settings());
    bench.router.handle_packet(address(20), &advertisement(200), bench.now);
    let transmit = bench.router.poll_transmit(bench.now).expect("a last word");
    bench.router.sent(transmit.id, bench.now);
    assert_eq!(bench.router.hold(), None);
    bench.settle();
    assert!(!bench.events.iter().any(|event| matches!(event, Event::Hold { .. })));
}

//= test rfc9568#6.4.3:shutdown
//= test rfc3768#6.4.3:shutdown
//= test rfc9568#6.4.2:shutdown
//= test rfc3768#6.4.2:shutdown
#[test]
fn a_stopped_active_says_priority_0_and_a_stopped_backup_nothing_and_neither_has_a_timer() {
    for (mut bench, said) in [(Bench::active(settings()), vec![0]), (Bench::backup(settings()), vec![])] {
        bench.router.stop(Stop::Immediate, bench.now);
        bench.settle();
        assert_eq!((bench.state(), bench.said()), (StateName::Init, said));
        assert_eq!(bench.router.poll_timeout(), None);
    }
}

#[test]
fn a_second_order_does_not_take_back_the_goodbye() {
    let mut bench = Bench::active(settings());
    bench.router.stop(Stop::Immediate, bench.now);
    bench.router.set_priority(None, bench.now);
    bench.router.stop(Stop::Immediate, bench.now);
    bench.settle();
    assert_eq!(bench.said(), [0]);
}

#[test]
fn a_leaver_answers_until_its_successor_speaks() {
    let mut bench = Bench::active(settings());
    bench.router.stop(Stop::MakeBeforeBreak, bench.now);
    bench.settle();
    assert_eq!(bench.said(), [0]);
    assert!(bench.router.hold() > Some(bench.now + SECOND * 3));
    bench.run(ms(46));
    assert_eq!(bench.state(), StateName::Leaving);
    bench.hear(50, 20);
    assert_eq!((bench.state(), bench.router.hold()), (StateName::Init, None));
    assert_eq!(bench.router.status().counters.transitions[&Cause::SuccessorHeard], 1);
}

#[test]
fn a_leaver_without_a_successor_is_gone_after_three_intervals_and_the_longest_skew() {
    let mut bench = Bench::active(settings());
    bench.router.stop(Stop::MakeBeforeBreak, bench.now);
    bench.settle();
    let limit = bench.router.hold().expect("it answers") - bench.now;
    assert_eq!(limit, SECOND * 3 + SECOND * 255 / 256);
    assert_eq!(time_to(&mut bench, StateName::Init), limit);
    assert_eq!(bench.said(), [0, 0, 0, 0], "each may be lost");
}

#[test]
fn a_leaver_that_cannot_say_so_answers_no_longer_than_it_would_have() {
    let mut bench = Bench::active(settings());
    let until = bench.router.hold();
    bench.router.stop(Stop::MakeBeforeBreak, bench.now);
    let transmit = bench.router.poll_transmit(bench.now).expect("priority 0");
    bench.router.unsent(transmit.id);
    assert_eq!(bench.router.hold(), until);
}

#[test]
fn each_advertisement_really_sent_moves_the_validity_and_nothing_else_does() {
    let mut bench = Bench::active(settings());
    let until = bench.router.hold().expect("it answers");
    bench.now += SECOND;
    bench.router.handle_timeout(bench.now);
    let transmit = bench.router.poll_transmit(bench.now).expect("an advertisement");
    assert_eq!(bench.router.hold(), Some(until), "fetched is not sent");
    assert_eq!(transmit.not_after, until);
    bench.router.unsent(transmit.id);
    bench.router.sent(transmit.id, bench.now);
    assert_eq!((bench.router.hold(), bench.router.status().counters.unsent), (Some(until), 1));
    bench.now += SECOND;
    bench.router.handle_timeout(bench.now);
    let transmit = bench.router.poll_transmit(bench.now).expect("an advertisement");
    bench.router.sent(transmit.id, bench.now);
    bench.router.sent(transmit.id, bench.now + SECOND);
    assert_eq!(bench.router.hold(), Some(bench.now + SECOND * 3), "once");
}

#[test]
fn where_sending_fails_it_stops_answering_when_others_may_begin() {
    let mut bench = Bench::active(settings());
    let until = bench.router.hold().expect("it answers");
    while bench.state() == StateName::Active {
        bench.now = bench.router.poll_timeout().expect("a timer");
        bench.router.handle_timeout(bench.now);
        while let Some(transmit) = bench.router.poll_transmit(bench.now) {
            bench.router.unsent(transmit.id);
        }
    }
    assert_eq!((bench.now, bench.router.hold()), (until, None));
    assert_eq!(bench.router.status().counters.transitions[&Cause::ValidityOver], 1);
}

#[test]
fn an_active_that_slept_beyond_its_validity_says_nothing_and_listens_for_a_whole_wait() {
    // Whichever verb is the first that runs.
    let verbs: [fn(&mut Bench); 5] = [
        |bench| bench.router.handle_timeout(bench.now),
        |bench| drop(bench.router.poll_transmit(bench.now)),
        |bench| bench.hear(99, 20),
        |bench| bench.router.set_priority(Some(priority(200)), bench.now),
        |bench| bench.router.set_vips(vips(&[1]), bench.now).expect("VIPs"),
    ];
    for verb in verbs {
        let mut bench = Bench::active(settings());
        bench.now = bench.router.hold().expect("it answers");
        verb(&mut bench);
        bench.settle();
        assert_eq!((bench.state(), bench.router.hold(), bench.said()), (StateName::Backup, None, vec![]));
        assert!(time_to(&mut bench, StateName::Active) >= SECOND * 3);
    }
}

#[test]
fn what_was_fetched_before_a_sleep_and_sent_after_it_is_not_believed() {
    let mut bench = Bench::active(settings());
    bench.now += SECOND;
    bench.router.handle_timeout(bench.now);
    let transmit = bench.router.poll_transmit(bench.now).expect("an advertisement");
    bench.now += SECOND * 10;
    assert!(transmit.not_after < bench.now, "the driver drops it");
    bench.router.sent(transmit.id, bench.now);
    assert_eq!((bench.state(), bench.router.hold()), (StateName::Backup, None));
}

#[test]
fn a_backup_that_slept_has_heard_no_silence() {
    for listening in [false, true] {
        let mut bench = if listening { Bench::new(settings()) } else { Bench::backup(settings()) };
        let before = bench.state();
        bench.now += SECOND * 10;
        bench.router.handle_timeout(bench.now);
        bench.settle();
        assert_eq!((bench.state(), bench.router.status().counters.slept), (before, 1));
        assert_eq!(time_to(&mut bench, StateName::Active), SECOND * 3 + SKEW);
    }
}

#[test]
fn a_backup_that_is_late_by_less_than_an_interval_takes_over() {
    let mut bench = Bench::backup(settings());
    bench.run(SECOND * 3);
    bench.now += SKEW + ms(200);
    bench.router.handle_timeout(bench.now);
    bench.settle();
    assert_eq!((bench.state(), bench.said()), (StateName::Active, vec![100]));
}

//= test rfc9568#7.1:vrid
//= test rfc3768#7.1:vrid
#[test]
fn what_is_not_for_it_changes_nothing() {
    let other = Advertisement::new(vrid(8), Advertised::OWNER, interval(SECOND), vec![address(100)]).expect("valid");
    let mut bench = Bench::active(settings());
    bench.hear_this(&other, 20);
    let link_local = vrid(7).link_local().into();
    let other = Advertisement::new(vrid(7), Advertised::OWNER, interval(SECOND), vec![link_local]).expect("valid");
    bench.hear_this(&other, 20);
    bench.hear(255, 10);
    assert_eq!((bench.state(), bench.said()), (StateName::Active, vec![]));
    let ignored: Vec<u64> = bench.router.status().counters.ignored.values().copied().collect();
    assert_eq!(ignored, [1, 1, 1]);
}

#[test]
fn with_unicast_peers_nobody_else_is_heard() {
    let peers = Peers::Unicast([address(20), address(21)].into());
    let mut bench = Bench::active(Settings { peers, ..settings() });
    bench.hear(200, 22);
    assert_eq!(bench.state(), StateName::Active);
    bench.hear(200, 21);
    assert_eq!(bench.state(), StateName::Backup);
}

//= test rfc9568#7.2:source
//= test rfc3768#7.2:source
#[test]
fn the_source_is_the_primary_address_and_for_ipv6_a_link_local_one() {
    let of = |address: Option<&str>| Settings {
        vips: Vips::new(vrid(7), Family::Ipv6, ["2001:db8::7".parse().expect("an address")]).expect("VIPs"),
        address: address.map(|address| address.parse().expect("an address")),
        ..settings()
    };
    assert!(Router::new(of(Some("2001:db8::1")), SECOND).is_err());
    assert!(Router::new(of(Some("10.0.0.1")), SECOND).is_err());
    let mut bench = Bench::new(of(None));
    assert_eq!(bench.state(), StateName::Init);
    let source = "fe80::1".parse().expect("an address");
    assert!(bench.router.set_address(Some(address(1)), bench.now).is_err());
    bench.router.set_address(Some(source), bench.now).expect("an address");
    while bench.sent.is_empty() {
        bench.step();
    }
    assert_eq!(bench.router.settings().address, Some(source));
}

//= test rfc9568#5.2.9:link-local
#[test]
fn the_first_ipv6_address_listed_is_a_link_local_one() {
    let of = |list: &[&str]| {
        let list = list.iter().map(|address| address.parse().expect("an address"));
        Vips::new(vrid(0x34), Family::Ipv6, list)
            .expect("VIPs")
            .all()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&["2001:db8::7"]), ["fe80::5e:34", "2001:db8::7"]);
    assert_eq!(of(&["2001:db8::7", "fe80::9"]), ["fe80::9", "2001:db8::7"]);
}

//= test rfc9568#7.2:mac
//= test rfc3768#7.2:mac
#[test]
fn the_virtual_mac_is_used_where_it_is_on() {
    let mut bench = Bench::active(Settings { has_virtual_mac: true, ..settings() });
    assert_eq!(bench.router.virtual_mac(), Some([0, 0, 0x5e, 0, 1, 7]));
    bench = Bench::active(settings());
    assert_eq!(bench.router.virtual_mac(), None);
}
