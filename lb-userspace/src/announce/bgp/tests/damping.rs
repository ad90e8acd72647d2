//! Flaps, and aggregates.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::prelude::*;

use super::{
    super::{
        aggregate::{Eligibility, prefixes},
        damping::{Damping, WAIT_MAX, WINDOW},
    },
    *,
};

struct Flapper {
    damping: Damping<u8>,
    now: Duration,
}

impl Flapper {
    fn set(&mut self, eligible: bool) -> bool {
        self.damping.set_eligible(&eligible.then_some(1).into_iter().collect(), self.now);
        self.damping.is_in(&1)
    }

    /// Loses it and gets it back at once: how long until it is in again.
    fn flap(&mut self) -> Duration {
        assert!(!self.set(false), "withdrawn at once");
        assert!(!self.set(true));
        let until = self.damping.poll_timeout().expect("held");
        assert_eq!(self.damping.held_until(&1), Some(until));
        let wait = until - self.now;
        self.damping.handle_timeout(until - Duration::from_nanos(1));
        assert!(!self.damping.is_in(&1));
        self.now = until;
        self.damping.handle_timeout(until);
        assert!(self.damping.is_in(&1));
        wait
    }
}

#[test]
fn each_flap_doubles_the_wait_up_to_a_minute_and_five_quiet_minutes_end_it() {
    let mut flapper = Flapper { damping: Damping::new(), now: Duration::from_secs(50) };
    assert!(flapper.set(true), "what never flapped does not wait");
    let waits: Vec<_> = (0..9).map(|_| flapper.flap().as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    flapper.now += WINDOW;
    assert_eq!(flapper.flap(), SECOND);
}

#[test]
fn being_lost_again_while_it_waits_is_no_flap_and_starts_the_wait_anew() {
    let mut flapper = Flapper { damping: Damping::new(), now: Duration::ZERO };
    flapper.set(true);
    flapper.set(false);
    flapper.set(true);
    flapper.now += Duration::from_millis(900);
    flapper.set(false);
    flapper.set(true);
    assert_eq!(flapper.damping.poll_timeout(), Some(flapper.now + SECOND));
}

#[test]
fn what_has_been_gone_for_long_is_forgotten() {
    let mut flapper = Flapper { damping: Damping::new(), now: Duration::ZERO };
    flapper.set(true);
    flapper.set(false);
    flapper.now += WINDOW;
    flapper.set(false);
    assert!(flapper.set(true));
}

proptest! {
    #![proptest_config(config(256))]
    #[test]
    fn nothing_is_in_that_is_not_eligible_and_all_are_in_after_the_longest_wait(
        steps in prop::collection::vec((0_u64..100_000, prop::collection::btree_set(0_u8..4, 0..4)), 1..60)
    ) {
        let (mut damping, mut now) = (Damping::new(), Duration::ZERO);
        for (pause, eligible) in steps {
            now += Duration::from_millis(pause);
            damping.handle_timeout(now);
            damping.set_eligible(&eligible, now);
            for name in 0..4 {
                prop_assert!(eligible.contains(&name) || !damping.is_in(&name));
            }
            prop_assert!(damping.poll_timeout().is_none_or(|until| until > now && until <= now + WAIT_MAX));
        }
        let all = (0..4).collect();
        damping.set_eligible(&all, now);
        damping.handle_timeout(now + WAIT_MAX);
        prop_assert!((0..4).all(|name| damping.is_in(&name)));
    }
}

fn vips(of: &[(&str, bool, bool)]) -> BTreeMap<IpAddr, Eligibility> {
    of.iter()
        .map(|(address, here, everywhere)| {
            (address.parse().expect("an address"), Eligibility { here: *here, everywhere: *everywhere })
        })
        .collect()
}

fn check(of: &[(&str, bool, bool)], aggregates: &[&str], expected: &[&str]) {
    let aggregates = aggregates.iter().map(|text| prefix(text)).collect();
    let found: Vec<_> = prefixes(&vips(of), &aggregates).iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "{of:?} in {aggregates:?}");
}

#[test]
fn an_aggregate_is_announced_while_any_vip_in_it_is_eligible() {
    check(&[("10.1.0.1", true, true), ("10.1.0.2", false, false)], &["10.1.0.0/24"], &["10.1.0.0/24"]);
    check(&[("10.1.0.1", false, false)], &["10.1.0.0/24"], &[]);
    check(&[("10.2.0.1", true, true)], &["10.1.0.0/24"], &["10.2.0.1/32"]);
    check(&[("2001:db8::1", true, true)], &["2001:db8::/64", "10.1.0.0/24"], &["2001:db8::/64"]);
}

#[test]
fn a_vip_that_another_node_of_its_aggregate_cannot_serve_is_announced_by_its_own_prefix_where_it_can() {
    check(&[("10.1.0.1", true, false)], &["10.1.0.0/24"], &["10.1.0.0/24", "10.1.0.1/32"]);
    check(&[("10.1.0.1", true, false), ("10.1.0.2", true, true)], &[], &["10.1.0.1/32", "10.1.0.2/32"]);
    check(&[("2001:db8::1", true, false)], &["2001:db8::/64"], &["2001:db8::/64", "2001:db8::1/128"]);
}
