//! How a node leaves: step by step, each once the one before has really been told, and none for ever. Pure.
//!
//! Routers hear GRACEFUL_SHUTDOWN first and look for other ways, then the withdrawal; what was under way still arrives; sessions end
//! with a Cease, and BFD is the last to fall silent. Virtual routers hand over at their own pace, and sessions wait for them.

use std::time::Duration;

use super::{
    bgp::{
        machine::{CeaseReason, Stage},
        packet::Communication,
    },
    eligibility::Leaving,
};

/// How long peers may take to be told of a step: what waits for longer than this waits for a peer that reads nothing.
pub const TOLD_MAX: Duration = Duration::from_secs(5);
/// How long virtual routers may take to hand over: the three intervals and a bit that each waits for a successor, of all but the slowest.
pub const HANDED_MAX: Duration = Duration::from_secs(10);
/// How long traffic may take to fall after the withdrawal.
pub const QUIET_MAX: Duration = Duration::from_secs(10);
/// How long BFD may take to say that it stops: a detection time of the slowest sessions that anybody has.
pub const SILENT_MAX: Duration = Duration::from_secs(3);
/// Packets a second that count as none: what neighbours that keep no session send now and then.
const QUIET_PACKETS: u64 = 10;
/// So many parts of a hundred of what came before count as none too.
const QUIET_PARTS: u64 = 1;

/// What the node is doing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Routes are marked, and virtual routers hand over.
    Mark,
    /// Routes are withdrawn.
    Withdraw,
    /// Traffic falls.
    Quiet,
    /// Sessions end.
    Cease,
    /// BFD ends.
    Silence,
    /// Nothing is left to be done.
    Done,
}

impl Step {
    /// What peers are told at it.
    #[must_use]
    pub fn stage(self, words: &str) -> Stage {
        match self {
            Self::Mark => Stage::GracefulShutdown,
            Self::Withdraw | Self::Quiet => Stage::Withdrawn,
            Self::Cease | Self::Silence | Self::Done => {
                Stage::Ceased(CeaseReason::Shutdown, Some(Communication::new(words)))
            }
        }
    }

    /// What it means for what is announced.
    #[must_use]
    pub const fn leaving(self) -> Leaving {
        match self {
            Self::Mark => Leaving::HandsOver,
            Self::Withdraw | Self::Quiet | Self::Cease | Self::Silence | Self::Done => Leaving::Left,
        }
    }
}

/// What is seen of the world at a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// BGP sessions that are up.
    pub sessions: usize,
    /// All of them have been sent what the step asks for.
    pub is_told: bool,
    /// Packets a second to VIPs; None where two counts are not there yet.
    pub rate: Option<u64>,
    /// BFD has said that it stops, wherever it runs.
    pub is_silent: bool,
    /// Virtual routers hold VIPs here: none has taken over yet.
    pub holds: bool,
}

/// A node that leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    step: Step,
    since: Duration,
    /// When all had been told of the step.
    told: Option<Duration>,
    mark_for: Duration,
    /// The highest rate that was seen: what the node carried.
    carried: u64,
    /// A segment found VIPs here when it began.
    has_held: bool,
}

impl Departure {
    /// Begins. Routes stay marked for that long. `has_held`: a segment finds VIPs here.
    #[must_use]
    pub const fn begin(mark_for: Duration, has_held: bool, now: Duration) -> Self {
        Self { step: Step::Mark, since: now, told: None, mark_for, carried: 0, has_held }
    }

    /// Of a node that had left before its agent started.
    #[must_use]
    pub const fn done(now: Duration) -> Self {
        Self { step: Step::Done, since: now, told: None, mark_for: Duration::ZERO, carried: 0, has_held: false }
    }

    /// Where it stands.
    #[must_use]
    pub const fn step(&self) -> Step {
        self.step
    }

    /// Goes on where it may; true where it has.
    pub fn follow(&mut self, seen: &Seen, now: Duration) -> bool {
        self.carried = self.carried.max(seen.rate.unwrap_or_default());
        if seen.is_told && self.told.is_none() {
            self.told = Some(now);
        }
        let lasted = now.saturating_sub(self.since);
        let is_told = self.told.is_some() || lasted >= TOLD_MAX;
        let is_handed = !seen.holds || lasted >= HANDED_MAX;
        let next = match self.step {
            // Nobody sends here because of a route, and perhaps because of a neighbour's table.
            Step::Mark if seen.sessions == 0 && !self.has_held => Step::Cease,
            Step::Mark if seen.sessions == 0 => match is_handed {
                true => Step::Quiet,
                false => Step::Mark,
            },
            Step::Mark if now >= self.told.unwrap_or(self.since + TOLD_MAX) + self.mark_for => Step::Withdraw,
            Step::Withdraw if is_told && is_handed => Step::Quiet,
            Step::Quiet if lasted >= QUIET_MAX || seen.rate.is_some_and(|rate| self.is_quiet(rate)) => Step::Cease,
            Step::Cease if is_told => Step::Silence,
            Step::Silence if seen.is_silent || lasted >= SILENT_MAX => Step::Done,
            same @ (Step::Mark | Step::Withdraw | Step::Quiet | Step::Cease | Step::Silence | Step::Done) => same,
        };
        if next == self.step {
            return false;
        }
        (self.step, self.since, self.told) = (next, now, None);
        true
    }

    fn is_quiet(&self, rate: u64) -> bool {
        rate <= QUIET_PACKETS.max(self.carried / 100 * QUIET_PARTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK_FOR: Duration = Duration::from_secs(5);

    /// The steps with the second of their beginning, looked at each 100 ms.
    fn steps(has_held: bool, seen: impl Fn(Step, Duration) -> Seen) -> Vec<(Step, f64)> {
        let start = Duration::from_secs(1000);
        let mut departure = Departure::begin(MARK_FOR, has_held, start);
        let mut steps = vec![(departure.step(), 0.0)];
        for tick in 0..600 {
            let after = Duration::from_millis(100 * tick);
            if departure.follow(&seen(departure.step(), after), start + after) {
                steps.push((departure.step(), after.as_secs_f64()));
            }
        }
        steps
    }

    #[test]
    fn each_step_waits_until_the_one_before_was_told() {
        let steps = steps(false, |step, after| Seen {
            sessions: 2,
            is_told: after >= Duration::from_millis(300),
            rate: Some(if step >= Step::Quiet && after > Duration::from_secs(7) { 3 } else { 5000 }),
            is_silent: after >= Duration::from_secs(8),
            holds: false,
        });
        let expected = [
            (Step::Mark, 0.0),
            (Step::Withdraw, 5.3),
            (Step::Quiet, 5.4),
            (Step::Cease, 7.1),
            (Step::Silence, 7.2),
            (Step::Done, 8.0),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn no_step_waits_for_ever() {
        let steps = steps(true, |_, _| Seen { sessions: 1, rate: Some(5000), holds: true, ..Seen::default() });
        let expected = [
            (Step::Mark, 0.0),
            (Step::Withdraw, 10.0),
            (Step::Quiet, 20.0),
            (Step::Cease, 30.0),
            (Step::Silence, 35.0),
            (Step::Done, 38.0),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn without_sessions_nobody_is_waited_for() {
        let steps = steps(false, |_, _| Seen { is_told: true, is_silent: true, ..Seen::default() });
        assert_eq!(steps, [(Step::Mark, 0.0), (Step::Cease, 0.0), (Step::Silence, 0.1), (Step::Done, 0.2)]);
    }

    #[test]
    fn without_sessions_too_others_take_over_and_traffic_falls_first() {
        let steps = steps(true, |_, after| Seen {
            is_told: true,
            is_silent: true,
            holds: after < Duration::from_millis(300),
            rate: Some(if after < Duration::from_millis(700) { 1000 } else { 0 }),
            ..Seen::default()
        });
        let expected =
            [(Step::Mark, 0.0), (Step::Quiet, 0.3), (Step::Cease, 0.7), (Step::Silence, 0.8), (Step::Done, 0.9)];
        assert_eq!(steps, expected);
    }

    #[test]
    fn without_sessions_nobody_who_takes_over_is_waited_for_for_ever() {
        let steps = steps(true, |_, _| Seen { rate: Some(5000), holds: true, ..Seen::default() });
        let expected =
            [(Step::Mark, 0.0), (Step::Quiet, 10.0), (Step::Cease, 20.0), (Step::Silence, 25.0), (Step::Done, 28.0)];
        assert_eq!(steps, expected);
    }

    #[test]
    fn a_hundredth_of_what_was_carried_is_quiet_and_a_little_always_is() {
        let quiet = |carried: u64, rate: u64| Departure { carried, ..Departure::done(Duration::ZERO) }.is_quiet(rate);
        assert!(quiet(0, 10) && !quiet(0, 11) && quiet(5000, 50) && !quiet(5000, 51));
    }

    #[test]
    fn routes_stay_until_they_are_withdrawn() {
        assert_eq!(Step::Mark.leaving(), Leaving::HandsOver);
        assert_eq!(Step::Mark.stage(""), Stage::GracefulShutdown);
        for step in [Step::Withdraw, Step::Quiet] {
            assert_eq!((step.leaving(), step.stage("")), (Leaving::Left, Stage::Withdrawn));
        }
        for step in [Step::Cease, Step::Silence, Step::Done] {
            let ceased = Stage::Ceased(CeaseReason::Shutdown, Some(Communication::new("bye")));
            assert_eq!((step.leaving(), step.stage("bye")), (Leaving::Left, ceased));
        }
    }
}
