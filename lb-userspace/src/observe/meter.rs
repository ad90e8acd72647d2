//! Counts what the engine does, for the status. Pure: the time is an argument.

use std::time::Duration;

use crate::{
    model::Rung,
    status::{Activity, Cause, PROGRAMMING_BOUNDS_MICROSECONDS, Programming, SelfTests},
};

/// What the engine has done so far, and the change that it is about.
#[derive(Clone, Debug)]
pub struct Meter {
    activity: Activity,
    /// Since when a change waits to be in force, and how many writes there had been by then.
    change: Option<(Cause, Duration, u64)>,
}

impl Default for Meter {
    /// Nothing has been done yet. What may be counted is there from the beginning, as 0.
    fn default() -> Self {
        let rungs = [Rung::Redirect, Rung::Peer, Rung::Stack, Rung::Direct];
        let activity = Activity {
            self_tests: rungs.map(|rung| SelfTests { rung, passed: 0, failed: 0 }).into(),
            programming: Cause::ALL
                .map(|cause| Programming {
                    cause,
                    buckets: [0; PROGRAMMING_BOUNDS_MICROSECONDS.len() + 1],
                    sum_microseconds: 0,
                })
                .into(),
            ..Activity::default()
        };
        Self { activity, change: None }
    }
}

impl Meter {
    /// The counts.
    pub const fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The agent has seen a change. One that comes while another waits is in force with it, and waits as long.
    pub const fn change_seen(&mut self, cause: Cause, now: Duration) {
        if self.change.is_none() {
            self.change = Some((cause, now, self.activity.map_writes));
        }
    }

    /// Nothing is left to be written for what was seen. A change that no map had to be written for is not counted: its
    /// time would only hide the others'.
    pub fn settled(&mut self, now: Duration) {
        let Some((cause, since, writes)) = self.change.take() else { return };
        if self.activity.map_writes == writes {
            return;
        }
        let took = u64::try_from(now.saturating_sub(since).as_micros()).unwrap_or(u64::MAX);
        let bucket = PROGRAMMING_BOUNDS_MICROSECONDS.partition_point(|bound| *bound < took);
        if let Some(programming) = self.activity.programming.iter_mut().find(|of| of.cause == cause) {
            programming.buckets[bucket] += 1;
            programming.sum_microseconds = programming.sum_microseconds.saturating_add(took);
        }
    }

    /// A configuration was taken, at this time in seconds since 1970 UTC; `first`: the agent started with it.
    pub const fn configured(&mut self, unix_seconds: u64, first: bool) {
        self.activity.configured_unix_seconds = unix_seconds;
        self.activity.reloads_applied += !first as u64;
    }

    /// A configuration was refused: what it would have changed is not waited for.
    pub fn refused(&mut self) {
        self.activity.reloads_refused += 1;
        self.change = None;
    }

    /// A rung was tested.
    pub fn self_test(&mut self, rung: Rung, passed: bool) {
        if let Some(tests) = self.activity.self_tests.iter_mut().find(|tests| tests.rung == rung) {
            tests.passed += u64::from(passed);
            tests.failed += u64::from(!passed);
        }
    }

    /// A write to a map was done, or failed.
    pub const fn map_write(&mut self, done: bool) {
        self.activity.map_writes += done as u64;
        self.activity.map_write_failures += !done as u64;
    }

    /// The kernel could not tell everything.
    pub const fn netlink_overrun(&mut self) {
        self.activity.netlink_overruns += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn counted(meter: &Meter, cause: Cause) -> (Vec<usize>, u64) {
        let found = meter.activity().programming.iter().find(|programming| programming.cause == cause).unwrap();
        let filled = (0..).zip(found.buckets).filter(|(_, count)| *count > 0);
        (filled.flat_map(|(at, count)| std::iter::repeat_n(at, count as usize)).collect(), found.sum_microseconds)
    }

    #[test]
    fn a_change_takes_from_its_first_sight_to_its_last_write() {
        let mut meter = Meter::default();
        meter.change_seen(Cause::Network, at(1000));
        meter.change_seen(Cause::Configuration, at(1003));
        meter.map_write(false);
        meter.map_write(true);
        meter.settled(at(1005));
        assert_eq!(counted(&meter, Cause::Network), (vec![3], 5000), "at most 5 ms, and no less than the whole wait");
        assert_eq!(counted(&meter, Cause::Configuration), (vec![], 0));
        assert_eq!((meter.activity().map_writes, meter.activity().map_write_failures), (1, 1));
    }

    #[test]
    fn what_writes_nothing_and_what_is_refused_is_not_counted() {
        let mut meter = Meter::default();
        meter.map_write(true);
        meter.change_seen(Cause::Network, at(0));
        meter.settled(at(1));
        meter.change_seen(Cause::Configuration, at(2));
        meter.refused();
        meter.map_write(true);
        meter.settled(at(3));
        for cause in Cause::ALL {
            assert_eq!(counted(&meter, cause), (vec![], 0), "{cause:?}");
        }
    }

    #[test]
    fn the_longest_change_has_a_bucket_and_no_time_overflows() {
        let mut meter = Meter::default();
        for until in [Duration::from_secs(11), Duration::MAX] {
            meter.change_seen(Cause::Configuration, at(0));
            meter.map_write(true);
            meter.settled(until);
        }
        let last = PROGRAMMING_BOUNDS_MICROSECONDS.len();
        assert_eq!(counted(&meter, Cause::Configuration), (vec![last, last], u64::MAX));
    }

    #[test]
    fn self_tests_and_reloads_are_counted_by_result() {
        let mut meter = Meter::default();
        meter.self_test(Rung::Redirect, true);
        meter.self_test(Rung::Redirect, false);
        meter.self_test(Rung::Peer, true);
        meter.configured(7, true);
        meter.configured(9, false);
        meter.refused();
        let Activity { self_tests, reloads_applied, reloads_refused, configured_unix_seconds, .. } = meter.activity();
        let results: Vec<_> = self_tests.iter().map(|tests| (tests.rung, tests.passed, tests.failed)).collect();
        let (redirect, peer) = ((Rung::Redirect, 1, 1), (Rung::Peer, 1, 0));
        assert_eq!(results, [redirect, peer, (Rung::Stack, 0, 0), (Rung::Direct, 0, 0)]);
        assert_eq!((reloads_applied, reloads_refused, configured_unix_seconds), (&1, &1, &9));
    }
}
