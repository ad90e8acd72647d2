//! The ladder of the machine: the transition table, what follows from each event, random operations with invariants, and
//! ten thousand checks on a virtual clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    Outcome, Report, Subject, Target, Verdict,
    machine::{Action, Machine, RUNNING_MAX, Run, State, TargetId},
};
use crate::model::health::{Probe, Timing};

const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(2);
const TIMING: Timing = Timing { interval: INTERVAL, timeout: TIMEOUT, rise: 2, fall: 3 };

fn target(number: u16, probe: Probe) -> Arc<Target> {
    let [high, low] = number.to_be_bytes();
    Arc::new(Target { subject: Subject { address: ([10, 0, high, low], 80).into(), probe }, timing: TIMING })
}

fn tcp(number: u16) -> Arc<Target> {
    target(number, Probe::Tcp)
}

fn udp(number: u16) -> Arc<Target> {
    target(number, Probe::Udp { payload: Vec::new() })
}

fn failed() -> Outcome {
    Outcome::Failed("connection refused".into())
}

/// A machine with its clock.
struct Bench {
    machine: Machine,
    now: Duration,
}

impl Bench {
    fn new(targets: &[&Arc<Target>]) -> Self {
        let mut bench = Self { machine: Machine::new(0), now: Duration::ZERO };
        bench.set(targets);
        bench
    }

    fn set(&mut self, targets: &[&Arc<Target>]) {
        self.machine.set_targets(&targets.iter().map(|target| Arc::clone(target)).collect(), self.now);
    }

    /// What is to be done now.
    fn actions(&mut self) -> Vec<Action> {
        self.machine.handle_timeout(self.now);
        std::iter::from_fn(|| self.machine.poll_transmit(self.now)).collect()
    }

    /// Goes on to the machine's next time.
    fn advance(&mut self) -> Vec<Action> {
        self.now = self.machine.poll_timeout().expect("a timer").max(self.now);
        self.actions()
    }

    /// Goes on to the next check that starts.
    fn next_start(&mut self) -> (TargetId, Run, Arc<Target>) {
        for _ in 0..100 {
            let starts = self.advance().into_iter().filter_map(|action| match action {
                Action::Start(id, run, target) => Some((id, run, target)),
                Action::Abort(_) => None,
            });
            if let Some(start) = starts.last() {
                return start;
            }
        }
        panic!("nothing starts");
    }

    fn check(&mut self, outcome: Outcome) {
        let (id, run, _) = self.next_start();
        self.machine.handle_outcome(id, run, outcome, self.now);
    }

    fn reports(&mut self) -> Vec<(Verdict, Option<String>)> {
        let reports = std::iter::from_fn(|| self.machine.poll_event());
        reports.map(|Report { verdict, last_error, .. }| (verdict, last_error)).collect()
    }

    fn verdicts(&mut self) -> Vec<Verdict> {
        self.reports().into_iter().map(|(verdict, _)| verdict).collect()
    }
}

#[test]
fn every_state_has_its_successor() {
    use State::{Healthy, Unhealthy, Unknown};
    // With rise 2 and fall 3: the state, after a pass, after a failure.
    let table = [
        (Unknown { failures: 0 }, Healthy { failures: 0 }, Unknown { failures: 1 }),
        (Unknown { failures: 1 }, Healthy { failures: 0 }, Unknown { failures: 2 }),
        (Unknown { failures: 2 }, Healthy { failures: 0 }, Unhealthy { passes: 0 }),
        (Healthy { failures: 0 }, Healthy { failures: 0 }, Healthy { failures: 1 }),
        (Healthy { failures: 1 }, Healthy { failures: 0 }, Healthy { failures: 2 }),
        (Healthy { failures: 2 }, Healthy { failures: 0 }, Unhealthy { passes: 0 }),
        (Unhealthy { passes: 0 }, Unhealthy { passes: 1 }, Unhealthy { passes: 0 }),
        (Unhealthy { passes: 1 }, Healthy { failures: 0 }, Unhealthy { passes: 0 }),
    ];
    for (state, passed, failed) in table {
        assert_eq!(state.after(true, 2, 3), passed, "{state:?} and a pass");
        assert_eq!(state.after(false, 2, 3), failed, "{state:?} and a failure");
    }
    // With 1 and 1 each check decides.
    assert_eq!(Healthy { failures: 0 }.after(false, 1, 1), Unhealthy { passes: 0 });
    assert_eq!(Unhealthy { passes: 0 }.after(true, 1, 1), Healthy { failures: 0 });
}

#[test]
fn a_backend_is_known_by_its_first_pass_and_given_up_after_fall_failures() {
    let mut bench = Bench::new(&[&tcp(1)]);
    bench.check(Outcome::Passed);
    assert_eq!(bench.reports(), [(Verdict::Healthy, None)]);
    bench.check(failed());
    let refused = Some("connection refused".to_owned());
    assert_eq!(bench.reports(), [(Verdict::Healthy, refused.clone())], "the first error is news, not yet a verdict");
    bench.check(failed());
    assert_eq!(bench.reports(), [], "the same again is not");
    bench.check(failed());
    assert_eq!(bench.reports(), [(Verdict::Unhealthy, refused.clone())]);
    bench.check(Outcome::Passed);
    assert_eq!(bench.reports(), []);
    bench.check(Outcome::Passed);
    assert_eq!(bench.reports(), [(Verdict::Healthy, refused)], "why it was away stays known");
}

#[test]
fn what_has_never_passed_is_given_up_after_fall_failures_too() {
    let mut bench = Bench::new(&[&tcp(1)]);
    for _ in 0..3 {
        bench.check(failed());
    }
    assert_eq!(bench.verdicts(), [Verdict::Unknown, Verdict::Unhealthy]);
}

#[test]
fn silence_is_a_failure_but_for_a_datagram() {
    for (target, verdict) in [(tcp(1), Verdict::Unknown), (udp(1), Verdict::Healthy)] {
        let mut bench = Bench::new(&[&target]);
        let (_, run, _) = bench.next_start();
        let begun = bench.now;
        assert_eq!(bench.advance(), [Action::Abort(run)]);
        assert_eq!(bench.now, begun + TIMEOUT);
        let error = (verdict == Verdict::Unknown).then(|| "no answer within 2s".to_owned());
        assert_eq!(bench.reports(), [(verdict, error)]);
    }
}

#[test]
fn a_port_that_the_pod_calls_unreachable_fails_the_next_check_and_no_further_one() {
    let (here, other) = (udp(1), udp(2));
    for silent in [true, false] {
        let mut bench = Bench::new(&[&here]);
        bench.machine.handle_refused(&[here.subject.clone(), other.subject.clone()].into());
        for _ in 0..2 {
            let (id, run, _) = bench.next_start();
            match silent {
                true => drop(bench.advance()),
                false => bench.machine.handle_outcome(id, run, Outcome::Passed, bench.now),
            }
        }
        let why = Some("the pod tells senders that the port is unreachable".to_owned());
        assert_eq!(bench.reports(), [(Verdict::Unknown, why.clone()), (Verdict::Healthy, why)]);
    }
}

#[test]
fn a_check_is_asked_once_an_interval_wherever_the_last_one_ended() {
    let mut bench = Bench::new(&[&tcp(1)]);
    let (id, run, _) = bench.next_start();
    let first = bench.now;
    bench.now += TIMEOUT / 2;
    bench.machine.handle_outcome(id, run, Outcome::Passed, bench.now);
    let (id, run, _) = bench.next_start();
    assert_eq!(bench.now, first + INTERVAL);
    // As if nothing had run for three intervals and a bit: what was missed is not made up for.
    bench.now += INTERVAL * 3 + TIMEOUT;
    bench.machine.handle_outcome(id, run, Outcome::Passed, bench.now);
    assert_eq!(bench.actions(), []);
    bench.next_start();
    assert_eq!(bench.now, first + INTERVAL * 5);
}

#[test]
fn what_comes_after_the_timeout_changes_nothing() {
    let mut bench = Bench::new(&[&tcp(1)]);
    let (id, run, _) = bench.next_start();
    bench.advance();
    assert_eq!(bench.verdicts(), [Verdict::Unknown]);
    bench.machine.handle_outcome(id, run, Outcome::Passed, bench.now);
    assert_eq!(bench.verdicts(), []);
    let (_, second, _) = bench.next_start();
    assert_ne!(run, second);
    bench.machine.handle_outcome(id, run, Outcome::Passed, bench.now);
    assert_eq!((bench.verdicts(), bench.machine.running()), (vec![], 1));
}

#[test]
fn a_target_that_goes_takes_its_check_along() {
    let (one, two) = (tcp(1), tcp(2));
    let mut bench = Bench::new(&[&one]);
    let (id, run, _) = bench.next_start();
    bench.set(&[&two]);
    assert_eq!(bench.actions().first(), Some(&Action::Abort(run)));
    bench.machine.handle_outcome(id, run, Outcome::Passed, bench.now);
    assert_eq!((bench.verdicts(), bench.machine.running()), (vec![], 0));
    let (_, _, started) = bench.next_start();
    assert_eq!(started, two);
    bench.set(&[]);
    bench.actions();
    assert_eq!(bench.machine.poll_timeout(), None);
}

#[test]
fn what_had_failed_before_a_restart_must_pass_as_often_as_ever() {
    let (one, other) = (tcp(1), tcp(2));
    let mut bench = Bench { machine: Machine::new(0), now: Duration::ZERO };
    bench.machine.recall([one.subject.clone(), tcp(3).subject.clone()].into());
    bench.set(&[&one, &other]);
    assert_eq!(bench.verdicts(), [Verdict::Unhealthy], "the other is not known");
    bench.set(&[&one]);
    bench.check(Outcome::Passed);
    assert_eq!(bench.verdicts(), []);
    bench.check(Outcome::Passed);
    assert_eq!(bench.verdicts(), [Verdict::Healthy]);
    bench.set(&[&tcp(3)]);
    assert_eq!(bench.verdicts(), [], "only of the first targets");
}

#[test]
fn another_timing_forgets_nothing_and_a_return_does() {
    let slow = tcp(1);
    let quick = Arc::new(Target { timing: Timing { interval: TIMEOUT, ..TIMING }, ..(*slow).clone() });
    let mut bench = Bench::new(&[&slow]);
    for _ in 0..3 {
        bench.check(failed());
    }
    assert_eq!(bench.verdicts(), [Verdict::Unknown, Verdict::Unhealthy]);
    bench.set(&[&quick]);
    assert_eq!(bench.verdicts(), [Verdict::Unhealthy]);
    bench.check(Outcome::Passed);
    bench.check(Outcome::Passed);
    assert_eq!(bench.verdicts(), [Verdict::Healthy], "as many must pass as ever");
    bench.set(&[]);
    bench.set(&[&quick]);
    bench.check(failed());
    assert_eq!(bench.verdicts(), [Verdict::Unknown], "another pod may have the address now");
}

#[test]
fn a_long_reason_is_cut() {
    let mut bench = Bench::new(&[&tcp(1)]);
    bench.check(Outcome::Failed("x".repeat(10_000)));
    assert!(bench.reports().iter().all(|(_, error)| error.as_ref().is_some_and(|error| error.len() == 200)));
}

/// Starts in each tick, of checks that pass at once.
fn starts(bench: &mut Bench, ticks: u32, tick: Duration) -> Vec<usize> {
    let mut counts = Vec::new();
    for _ in 0..ticks {
        bench.now += tick;
        let mut count = 0;
        for action in bench.actions() {
            let Action::Start(id, run, _) = action else { panic!("{action:?}") };
            count += 1;
            bench.machine.handle_outcome(id, run, Outcome::Passed, bench.now);
        }
        counts.push(count);
    }
    counts
}

#[test]
fn ten_thousand_checks_make_no_burst() {
    const TICK: Duration = Duration::from_millis(10);
    let all: Vec<Arc<Target>> = (0..10_000).map(tcp).collect();
    for seed in [0, 1 << 40, u64::MAX / 3] {
        let mut bench = Bench { machine: Machine::new(seed), now: Duration::from_millis(1234) };
        bench.set(&all.iter().collect::<Vec<_>>());
        // Five intervals of 500 ticks: 20 a tick.
        let counts = starts(&mut bench, 2500, TICK);
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(least >= Some(&16) && most <= Some(&24), "seed {seed}: {least:?} to {most:?} in a tick");
        assert_eq!(counts.iter().sum::<usize>(), 50_000, "each once in an interval");
    }
}

#[test]
fn checks_that_come_in_portions_and_leave_holes_make_no_burst_either() {
    let all: Vec<Arc<Target>> = (0..10_000).map(tcp).collect();
    let mut bench = Bench { machine: Machine::new(7), now: Duration::ZERO };
    for part in 1..=20 {
        bench.set(&all[..part * 500].iter().collect::<Vec<_>>());
        bench.now += Duration::from_millis(333);
        bench.actions();
    }
    // They have been asked and not answered: all end first.
    bench.now += TIMEOUT;
    bench.actions();
    bench.set(&all.iter().enumerate().filter(|(at, _)| at % 3 != 0).map(|(_, target)| target).collect::<Vec<_>>());
    bench.now += INTERVAL;
    let counts = {
        bench.machine.handle_timeout(bench.now);
        while let Some(action) = bench.machine.poll_transmit(bench.now) {
            if let Action::Start(id, run, _) = action {
                bench.machine.handle_outcome(id, run, Outcome::Passed, bench.now);
            }
        }
        starts(&mut bench, 500, Duration::from_millis(10))
    };
    // 13 a tick; every third of an even sequence is nearly as even.
    assert!(counts.iter().max() <= Some(&26), "{:?} in a tick", counts.iter().max());
}

#[test]
fn pods_that_hang_take_no_more_sockets_than_there_are_and_all_have_their_turn() {
    let all: Vec<Arc<Target>> = (0..2000).map(tcp).collect();
    let mut bench = Bench::new(&all.iter().collect::<Vec<_>>());
    let mut asked = BTreeMap::new();
    for _ in 0..2000 {
        bench.now += Duration::from_millis(10);
        for action in bench.actions() {
            if let Action::Start(_, _, target) = action {
                *asked.entry(target).or_insert(0) += 1;
            }
        }
        assert!(bench.machine.running() <= RUNNING_MAX);
    }
    // 20 s at 512 checks in 2 s each.
    let (least, most) = (asked.values().min(), asked.values().max());
    assert!(asked.len() == 2000 && least >= Some(&1) && most <= Some(&4), "{least:?} to {most:?} of {}", asked.len());
}

/// What the machine must make of a row of outcomes, said the other way round: by looking back at the row.
fn expected(row: &[bool], rise: usize, fall: usize) -> Verdict {
    let mut verdict = Verdict::Unknown;
    for end in 1..=row.len() {
        let last = |count: usize, of: bool| end >= count && row[end - count..end].iter().all(|passed| *passed == of);
        verdict = match verdict {
            Verdict::Unknown if last(1, true) => Verdict::Healthy,
            Verdict::Unknown | Verdict::Healthy if last(fall, false) => Verdict::Unhealthy,
            Verdict::Unhealthy if last(rise, true) => Verdict::Healthy,
            same => same,
        };
    }
    verdict
}

#[derive(Clone, Debug)]
enum Operation {
    Set(Vec<u16>),
    Pass(u64),
    Answer(usize, bool),
    Refuse(u16),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        1 => prop::collection::vec(0..20u16, 0..20).prop_map(Operation::Set),
        6 => (0..4000u64).prop_map(Operation::Pass),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(which, passed)| Operation::Answer(which, passed)),
        1 => (0..20u16).prop_map(Operation::Refuse),
    ]
}

proptest! {
    #[test]
    fn a_verdict_changes_after_rise_and_fall_and_never_else(
        row in prop::collection::vec(any::<bool>(), 0..60),
        rise in 1..6u32,
        fall in 1..6u32,
    ) {
        let target = Arc::new(Target { timing: Timing { rise, fall, ..TIMING }, ..(*tcp(1)).clone() });
        let mut bench = Bench::new(&[&target]);
        let mut last = Verdict::Unknown;
        for (at, passed) in row.iter().enumerate() {
            bench.check(if *passed { Outcome::Passed } else { failed() });
            last = bench.verdicts().last().copied().unwrap_or(last);
            prop_assert_eq!(last, expected(&row[..=at], rise as usize, fall as usize), "after {:?}", &row[..=at]);
        }
    }

    #[test]
    fn whatever_happens_each_target_has_one_check_and_a_next_one(operations in prop::collection::vec(operation(), 1..200)) {
        let mut bench = Bench::new(&[]);
        let mut wanted = BTreeSet::new();
        let mut running: BTreeMap<Run, (TargetId, Arc<Target>)> = BTreeMap::new();
        for operation in operations {
            match operation {
                Operation::Set(numbers) => {
                    wanted = numbers.iter().map(|n| if n % 2 == 0 { tcp(*n) } else { udp(*n) }).collect();
                    bench.machine.set_targets(&wanted, bench.now);
                }
                Operation::Pass(milliseconds) => bench.now += Duration::from_millis(milliseconds),
                Operation::Answer(which, passed) => {
                    if let Some((run, (id, _))) = running.iter().nth(which % running.len().max(1)) {
                        let (run, id) = (*run, *id);
                        running.remove(&run);
                        bench.machine.handle_outcome(id, run, if passed { Outcome::Passed } else { failed() }, bench.now);
                    }
                }
                Operation::Refuse(number) => bench.machine.handle_refused(&[udp(number).subject.clone()].into()),
            }
            for action in bench.actions() {
                match action {
                    Action::Start(id, run, target) => {
                        prop_assert!(wanted.contains(&target), "asked, and not wanted");
                        let twice = running.values().any(|(_, other)| *other == target);
                        prop_assert!(!twice, "asked twice at a time");
                        prop_assert!(running.insert(run, (id, target)).is_none());
                    }
                    Action::Abort(run) => {
                        prop_assert!(running.remove(&run).is_some(), "nothing to be given up");
                    }
                }
            }
            prop_assert_eq!(bench.machine.running(), running.len());
            prop_assert_eq!(bench.machine.poll_timeout().is_some(), !wanted.is_empty());
            prop_assert!(bench.machine.poll_timeout().is_none_or(|at| at > bench.now && at <= bench.now + INTERVAL));
            while let Some(report) = bench.machine.poll_event() {
                prop_assert!(report.since <= bench.now);
            }
        }
    }
}
