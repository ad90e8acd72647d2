//! When what is asked, and what follows from the answers. Pure: time is an argument, by the agent's clock.
//!
//! Checks are spread over their interval by the golden ratio: the fractions of its multiples lie apart as evenly as any
//! sequence's can that may end anywhere (Knuth, The Art of Computer Programming 3, 6.4, theorem S). So ten thousand checks make no burst, and
//! neither do those that come later. Each check keeps its place in the interval: late ones do not push the next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{Outcome, Report, Subject, Target, Verdict};
use crate::model::health::Probe;

/// Checks that run at a time: each has a socket, and processes may commonly have 1024. More wait for their turn.
pub const RUNNING_MAX: usize = 512;

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Longest reason that is kept: what a server says of itself may be anything.
const ERROR_CHARACTERS_MAX: usize = 200;

/// A target's number, never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(u64);

/// One check of a target: what comes back under another number is of one that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run(u64);

/// The timers of a target; one of them at a time is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The next check is due.
    Check,
    /// The running one has taken too long.
    Timeout,
}

/// What the driver does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Asks, and says what came of it under these numbers.
    Start(TargetId, Run, Arc<Target>),
    /// Gives the check up.
    Abort(Run),
}

/// Where a target stands between its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// None has passed yet; so many have failed in a row.
    Unknown {
        /// Below `fall`.
        failures: u32,
    },
    /// Answers; so many of the last have failed.
    Healthy {
        /// Below `fall`.
        failures: u32,
    },
    /// Does not; so many of the last have passed.
    Unhealthy {
        /// Below `rise`.
        passes: u32,
    },
}

impl State {
    /// After a check.
    #[must_use]
    pub const fn after(self, passed: bool, rise: u32, fall: u32) -> Self {
        match (self, passed) {
            (Self::Unknown { .. } | Self::Healthy { .. }, true) => Self::Healthy { failures: 0 },
            (Self::Unknown { failures } | Self::Healthy { failures }, false) if failures + 1 >= fall => {
                Self::Unhealthy { passes: 0 }
            }
            (Self::Unknown { failures }, false) => Self::Unknown { failures: failures + 1 },
            (Self::Healthy { failures }, false) => Self::Healthy { failures: failures + 1 },
            (Self::Unhealthy { passes }, true) if passes + 1 >= rise => Self::Healthy { failures: 0 },
            (Self::Unhealthy { passes }, true) => Self::Unhealthy { passes: passes + 1 },
            (Self::Unhealthy { .. }, false) => Self::Unhealthy { passes: 0 },
        }
    }

    /// What others see of it.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Unknown { .. } => Verdict::Unknown,
            Self::Healthy { .. } => Verdict::Healthy,
            Self::Unhealthy { .. } => Verdict::Unhealthy,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until its time.
    Resting,
    /// Due, and others run.
    Waiting,
    Running(Run),
}

#[derive(Clone, Debug)]
struct Health {
    state: State,
    since: Duration,
    last_error: Option<String>,
}

#[derive(Debug)]
struct Entry {
    target: Arc<Target>,
    health: Health,
    phase: Phase,
    /// When its latest check was due, or its first is.
    due: Duration,
    timer: Option<(Duration, Timer)>,
    /// The pod has told somebody that the port is unreachable since the last check ended.
    refused: bool,
}

/// The last error of what had failed before the agent started anew.
const RECALLED: &str = "failed when the agent before this one asked";

/// All checks of an agent.
#[derive(Debug)]
pub struct Machine {
    targets: HashMap<Arc<Target>, TargetId>,
    entries: BTreeMap<TargetId, Entry>,
    timers: BTreeSet<(Duration, TargetId, Timer)>,
    /// Due, in the order in which they became so.
    waiting: VecDeque<TargetId>,
    running: usize,
    aborts: VecDeque<Run>,
    reports: VecDeque<Report>,
    next_id: u64,
    next_run: u64,
    /// The place in the interval of the target that came last, in 1/2^64.
    spread: u64,
    /// What had failed before this began.
    recalled: HashSet<Subject>,
}

impl Machine {
    /// Without targets. `seed` is random, so that agents which start together do not ask in step.
    pub fn new(seed: u64) -> Self {
        Self {
            targets: HashMap::new(),
            entries: BTreeMap::new(),
            timers: BTreeSet::new(),
            waiting: VecDeque::new(),
            running: 0,
            aborts: VecDeque::new(),
            reports: VecDeque::new(),
            next_id: 0,
            next_run: 0,
            spread: seed,
            recalled: HashSet::new(),
        }
    }

    /// These had failed when an earlier agent asked last; of the first targets they count as failed until they have passed.
    pub fn recall(&mut self, failed: HashSet<Subject>) {
        self.recalled = failed;
    }

    /// From here on these are checked and no others. Who stays keeps everything; who only gets another timing is
    /// known by what the old one has come to.
    pub fn set_targets(&mut self, wanted: &BTreeSet<Arc<Target>>, now: Duration) {
        let gone: Vec<TargetId> =
            self.targets.iter().filter(|(target, _)| !wanted.contains(*target)).map(|(_, id)| *id).collect();
        let recalled = std::mem::take(&mut self.recalled);
        let mut known: HashMap<Subject, Health> = HashMap::new();
        for id in gone {
            if let Some(entry) = self.remove(id) {
                known.insert(entry.target.subject.clone(), entry.health);
            }
        }
        for target in wanted.iter().filter(|target| !self.targets.contains_key(*target)).collect::<Vec<_>>() {
            let unknown = if recalled.contains(&target.subject) {
                let why = Some(RECALLED.to_owned());
                Health { state: State::Unhealthy { passes: 0 }, since: now, last_error: why }
            } else {
                Health { state: State::Unknown { failures: 0 }, since: now, last_error: None }
            };
            let health = known.get(&target.subject).cloned().map_or(unknown, |health| Health {
                // Other numbers decide from here on.
                state: match health.state {
                    State::Unknown { .. } => State::Unknown { failures: 0 },
                    State::Healthy { .. } => State::Healthy { failures: 0 },
                    State::Unhealthy { .. } => State::Unhealthy { passes: 0 },
                },
                ..health
            });
            self.add(Arc::clone(target), health, now);
        }
    }

    fn add(&mut self, target: Arc<Target>, health: Health, now: Duration) {
        let id = TargetId(self.next_id);
        self.next_id += 1;
        self.spread = self.spread.wrapping_add(GOLDEN);
        let due = place_in_interval(self.spread, target.timing.interval, now);
        let entry =
            Entry { target: Arc::clone(&target), health, phase: Phase::Resting, due, timer: None, refused: false };
        if entry.health.state.verdict() != Verdict::Unknown {
            self.reports.push_back(entry.report());
        }
        self.entries.insert(id, entry);
        self.targets.insert(target, id);
        self.set_timer(id, Some((due, Timer::Check)));
    }

    fn remove(&mut self, id: TargetId) -> Option<Entry> {
        self.set_timer(id, None);
        let entry = self.entries.remove(&id)?;
        self.targets.remove(&entry.target);
        match entry.phase {
            // Its turn is passed over.
            Phase::Resting | Phase::Waiting => {}
            Phase::Running(run) => {
                self.running -= 1;
                self.aborts.push_back(run);
            }
        }
        Some(entry)
    }

    /// A check has ended.
    pub fn handle_outcome(&mut self, id: TargetId, run: Run, outcome: Outcome, now: Duration) {
        // Of a target that is gone, or given up as this came.
        if self.entries.get(&id).is_some_and(|entry| entry.phase == Phase::Running(run)) {
            self.finish(id, outcome, now);
        }
    }

    /// Pods have told somebody that these ports are unreachable: the next check by datagram to end does not pass.
    pub fn handle_refused(&mut self, subjects: &BTreeSet<Subject>) {
        for entry in self.entries.values_mut().filter(|entry| subjects.contains(&entry.target.subject)) {
            entry.refused = true;
        }
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        while self.poll_timeout().is_some_and(|at| at <= now)
            && let Some((_, id, timer)) = self.timers.pop_first()
        {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.timer = None;
            match timer {
                Timer::Check => {
                    entry.phase = Phase::Waiting;
                    self.waiting.push_back(id);
                }
                Timer::Timeout => {
                    if let Phase::Running(run) = entry.phase {
                        self.aborts.push_back(run);
                    }
                    let outcome = entry.outcome_of_silence();
                    self.finish(id, outcome, now);
                }
            }
        }
    }

    /// The next thing to do at `now`, if there is any.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Action> {
        if let Some(run) = self.aborts.pop_front() {
            return Some(Action::Abort(run));
        }
        if self.running >= RUNNING_MAX {
            return None;
        }
        let (id, entry) = loop {
            let id = self.waiting.pop_front()?;
            if self.entries.contains_key(&id) {
                break (id, self.entries.get_mut(&id)?);
            }
        };
        let run = Run(self.next_run);
        self.next_run += 1;
        entry.phase = Phase::Running(run);
        self.running += 1;
        let target = Arc::clone(&entry.target);
        self.set_timer(id, Some((now + target.timing.timeout, Timer::Timeout)));
        Some(Action::Start(id, run, target))
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.first().map(|(at, ..)| *at)
    }

    /// The next news of a target.
    pub fn poll_event(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Checks that run.
    pub const fn running(&self) -> usize {
        self.running
    }

    fn finish(&mut self, id: TargetId, outcome: Outcome, now: Duration) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.running -= 1;
        entry.phase = Phase::Resting;
        if entry.conclude(outcome, now) {
            self.reports.push_back(entry.report());
        }
        let interval = entry.target.timing.interval;
        // Times that have passed meanwhile are left out.
        let missed = now.saturating_sub(entry.due).as_nanos() / interval.as_nanos();
        entry.due += interval * (u32::try_from(missed).unwrap_or(u32::MAX - 1) + 1);
        let due = entry.due;
        self.set_timer(id, Some((due, Timer::Check)));
    }

    fn set_timer(&mut self, id: TargetId, timer: Option<(Duration, Timer)>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some((at, timer)) = std::mem::replace(&mut entry.timer, timer) {
            self.timers.remove(&(at, id, timer));
        }
        if let Some((at, timer)) = timer {
            self.timers.insert((at, id, timer));
        }
    }
}

impl Entry {
    /// What it says that nothing came in time: of a datagram that nobody has refused it.
    fn outcome_of_silence(&self) -> Outcome {
        match self.target.subject.probe {
            Probe::Udp { .. } => Outcome::Passed,
            Probe::Tcp | Probe::Http { .. } | Probe::Grpc { .. } => {
                Outcome::Failed(format!("no answer within {:?}", self.target.timing.timeout))
            }
        }
    }

    /// Takes the end of a check in. True where there is news.
    fn conclude(&mut self, outcome: Outcome, now: Duration) -> bool {
        let refused = std::mem::take(&mut self.refused);
        let outcome = match (outcome, &self.target.subject.probe) {
            (Outcome::Passed, Probe::Udp { .. }) if refused => {
                Outcome::Failed("the pod tells senders that the port is unreachable".into())
            }
            (outcome, _) => outcome,
        };
        let timing = &self.target.timing;
        let state = self.health.state.after(outcome == Outcome::Passed, timing.rise, timing.fall);
        let mut news = state.verdict() != self.health.state.verdict();
        if news {
            self.health.since = now;
        }
        self.health.state = state;
        if let Outcome::Failed(why) = outcome {
            let why = Some(why.chars().take(ERROR_CHARACTERS_MAX).collect());
            news |= self.health.last_error != why;
            self.health.last_error = why;
        }
        news
    }

    fn report(&self) -> Report {
        Report {
            target: Arc::clone(&self.target),
            verdict: self.health.state.verdict(),
            since: self.health.since,
            last_error: self.health.last_error.clone(),
        }
    }
}

/// The first time from `now` on that lies `spread`/2^64 into an interval. Intervals are counted from the agent's start,
/// so that targets which come at different times are spread together.
fn place_in_interval(spread: u64, interval: Duration, now: Duration) -> Duration {
    let nanos = interval.as_nanos();
    let offset = (nanos * u128::from(spread >> 32)) >> 32;
    let into = now.as_nanos() % nanos;
    let wait = (offset + nanos - into) % nanos;
    now + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
}
