//! All kinds of traffic at once, for as long as is wanted, through whatever may happen to the agent, to its configuration
//! and to pods, at random. After each step it is checked that nothing is lost, nothing is left wrong, and nothing grows.

mod footprint;
mod maps;
pub mod sequence;
mod sources;

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::status::Status;

use self::{
    footprint::{Baselines, Footprint},
    maps::Maps,
    sequence::{Action, Kind, Sequence, Step},
};
use crate::{
    lab::wait_until,
    life::{Life, Wish},
};

/// How long the agent may take until nothing is left to do, once a change is in force: what rests for a second before it
/// goes, a look at all once a second, and a machine that is shared.
const QUIET: Duration = Duration::from_secs(15);
/// One of so many sessions ends in each step, and another begins.
const CHURN: usize = 20;
/// What the end takes: the last checks, and taking everything down.
const END: Duration = Duration::from_secs(3);
/// Between two configurations of a storm.
const GUST: Duration = Duration::from_millis(10);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of everything that is random.
    pub seed: u64,
    /// For how long, with the beginning and the end.
    pub duration: Duration,
    /// The agent of another ABI.
    pub other_build: String,
}

/// What is told while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A step begins.
    Begins(&'a Step),
    /// All that is checked after it was right.
    Done(&'a Step, &'a Outcome, Duration),
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How often each kind of step was made.
    pub steps: BTreeMap<Kind, u32>,
    /// Stands for all steps in their order.
    pub hash: u32,
    /// Sessions at a time, and those that have opened.
    pub sessions: (usize, usize),
    /// Sessions that ended because their pod restarted or was taken out.
    pub ended: usize,
    /// Lines that sessions have exchanged.
    pub lines: u64,
    /// The longest that any took.
    pub longest: Duration,
    /// Datagrams, and answers to them.
    pub datagrams: (u64, u64),
    /// Messages of the real programs: of SNMP, and of telemetry.
    pub messages: (u64, u64),
    /// The largest of what the agent took.
    pub footprint: Footprint,
    /// The longest that it took until nothing was left to do.
    pub quiet_after: Duration,
}

impl Outcome {
    /// Steps that were made.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.steps.values().sum()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.steps.iter().map(|(kind, times)| format!("{kind:?} {times}")).collect();
        writeln!(f, "{} steps ({}), sequence {:08x}", self.count(), kinds.join(", "), self.hash)?;
        let (open, opened) = self.sessions;
        writeln!(f, "{open} sessions at a time, {opened} opened, {} ended with their pods", self.ended)?;
        writeln!(f, "{} lines, the longest took {:.0?}", self.lines, self.longest)?;
        writeln!(f, "{} datagrams, {} answers", self.datagrams.0, self.datagrams.1)?;
        writeln!(f, "{} messages of SNMP, {} of telemetry", self.messages.0, self.messages.1)?;
        let Footprint { memory_kib, descriptors, pins, namespaces } = self.footprint;
        writeln!(
            f,
            "at most {memory_kib} KiB and {descriptors} open files; {pins} pins, {namespaces} namespaces; \
             nothing left to do after {:.1?} at most",
            self.quiet_after
        )
    }
}

/// Runs it. The first thing that is wrong ends it, and is the error.
pub fn run(plan: &Plan, mut tell: impl FnMut(Progress<'_>)) -> Result<Outcome> {
    let begun = Instant::now();
    let mut soak = Soak::begin(plan)?;
    let mut longest = Duration::ZERO;
    for step in Sequence::new(plan.seed) {
        if begun.elapsed() + longest + END > plan.duration {
            break;
        }
        tell(Progress::Begins(&step));
        let since = Instant::now();
        soak.step(&step).with_context(|| {
            let (number, action) = (step.number, step.action);
            format!("seed {}, step {number}, {action:?}\n{}", plan.seed, soak.evidence())
        })?;
        longest = longest.max(since.elapsed());
        tell(Progress::Done(&step, &soak.outcome, since.elapsed()));
    }
    soak.finish()
}

struct Soak {
    life: Life,
    maps: Maps,
    other_build: String,
    is_other_build: bool,
    baselines: Baselines,
    /// Datagrams by pod when the configuration was in force.
    by_pod: Vec<u64>,
    outcome: Outcome,
}

impl Soak {
    fn begin(plan: &Plan) -> Result<Self> {
        let mut life = Life::begin_with(Sequence::first())?;
        sources::watch(&life.lab.element)?;
        let pins = life.agent()?.pins();
        let maps = Maps::of(&life.lab, pins)?;
        let (baselines, outcome, other_build) = (Baselines::default(), Outcome::default(), plan.other_build.clone());
        let by_pod = Vec::new();
        let mut soak = Self { life, maps, other_build, is_other_build: false, baselines, by_pod, outcome };
        soak.check().context("before the first step")?;
        Ok(soak)
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        self.check_idle_pods().context("before the step")?;
        self.act(step)?;
        *self.outcome.steps.entry(step.kind).or_default() += 1;
        self.outcome.hash = step.hash;
        self.life.replenish()?;
        self.life.close_some(step.number as usize, CHURN)?;
        self.life.replenish()?;
        self.check()
    }

    fn act(&mut self, step: &Step) -> Result<()> {
        let wish = &step.wish;
        match step.action {
            Action::Crash => self.renew(true, step),
            Action::Restart => self.renew(false, step),
            Action::Resize { crash } | Action::Exchange { crash } => self.renew(crash, step),
            Action::CrashWhileWriting { changes } => {
                self.rewrite(changes, Duration::ZERO)?;
                self.renew(true, step)
            }
            Action::CutShort { milliseconds } => {
                self.life.end()?;
                self.life.start_and_kill(Duration::from_millis(milliseconds.into()))?;
                self.start(step)
            }
            Action::RestartPod { pod } => {
                self.outcome.ended += self.life.restart_pod(pod)?;
                Ok(())
            }
            Action::RestartPodUnseen { pod } => {
                self.life.kill()?;
                self.outcome.ended += self.life.restart_pod(pod)?;
                self.start(step)
            }
            Action::Member { pod } if wish.shares[pod].is_none() => {
                self.outcome.ended += self.life.take_out(wish)?;
                Ok(())
            }
            Action::Drain { .. } | Action::Weigh { .. } | Action::Member { .. } | Action::OtherService => {
                self.life.reconfigure(wish)
            }
            Action::Storm { changes } => {
                self.rewrite(changes, GUST)?;
                self.life.reconfigure(wish)
            }
            Action::OtherUplink => self.life.renew_other_uplink(),
        }
    }

    /// The agent ends, nothing is lost without one, and another starts.
    fn renew(&mut self, crash: bool, step: &Step) -> Result<()> {
        if crash {
            self.life.kill()?
        } else {
            self.life.end()?
        }
        self.life.check_datagrams("without an agent")?;
        self.take_report("without an agent")?;
        self.start(step)
    }

    fn start(&mut self, step: &Step) -> Result<()> {
        self.is_other_build = step.is_other_build;
        let binary = step.is_other_build.then_some(self.other_build.as_str());
        self.life.start(binary, &step.wish)
    }

    /// Configurations that are other than the one before, of the service without traffic and of all weights.
    fn rewrite(&mut self, changes: u16, pause: Duration) -> Result<()> {
        let wish = self.life.wish().clone();
        for change in 1..=changes {
            let mut other = Wish { other_port: 9100 + change, ..wish.clone() };
            for share in other.shares.iter_mut().flatten() {
                share.weight += change % 2;
            }
            self.life.rewrite(&other)?;
            // The rate is what is asked for here, not the passing of time.
            std::thread::sleep(pause);
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.take_report("sessions")?;
        self.outcome.datagrams = self.life.check_datagrams("after the step")?;
        self.by_pod = self.life.datagrams_by_pod();
        self.check_sources()?;
        self.life.check_programs().context("real programs")?;
        self.outcome.messages = self.life.program_messages();
        self.check_quiet()?;
        self.check_idle_pods()?;
        self.take_report("sessions, once everything is quiet")?;
        self.check_sources()
    }

    fn take_report(&mut self, what: &str) -> Result<()> {
        let report = self.life.check_sessions(what)?;
        self.outcome.sessions = self.life.sessions();
        self.outcome.lines += report.lines;
        self.outcome.longest = self.outcome.longest.max(report.longest);
        Ok(())
    }

    /// No pod gets datagrams that takes no new connections: not since the configuration that says so is in force.
    fn check_idle_pods(&self) -> Result<()> {
        for (pod, (now, before)) in self.life.datagrams_by_pod().iter().zip(&self.by_pod).enumerate() {
            let more = now - before;
            ensure!(more == 0 || self.life.wish().serves(pod), "{more} datagrams came to pod {pod}, which takes none");
        }
        Ok(())
    }

    fn check_sources(&self) -> Result<()> {
        let strangers = sources::strangers(&self.life.lab.element)?;
        ensure!(strangers.is_empty(), "the element heard from others than it spoke to: {strangers:?}");
        Ok(())
    }

    /// Waits until the maps hold what the agent says and nothing else, and it takes no more than ever.
    fn check_quiet(&mut self) -> Result<()> {
        let since = Instant::now();
        let kind = (self.is_other_build, self.life.wish().capacities);
        let mut last = Vec::new();
        let quiet = wait_until("the maps to hold what the agent says", QUIET, || {
            let agent = self.life.agent()?;
            let status: Status = serde_json::from_value(agent.status()?).context("the status has another form")?;
            let (id, pins) = (agent.id(), agent.pins());
            let node = &self.life.lab.node;
            last = self.maps.differences(node, &status)?;
            if last.is_empty() {
                let checked = self.baselines.check(id, kind, Footprint::read(id, &pins, node)?);
                last = checked.err().iter().map(|error| format!("{error:#}")).collect();
            }
            Ok(last.is_empty().then_some(()))
        });
        quiet.with_context(|| last.join("\n"))?;
        self.outcome.footprint = self.baselines.largest;
        self.outcome.quiet_after = self.outcome.quiet_after.max(since.elapsed());
        Ok(())
    }

    /// What a failure needs beside its own words.
    fn evidence(&mut self) -> String {
        match self.life.agent() {
            Ok(agent) => format!("{}\n{}", agent.status_table().unwrap_or_default(), agent.log_tail()),
            Err(error) => format!("{error:#}"),
        }
    }

    fn finish(self) -> Result<Outcome> {
        self.check_idle_pods()?;
        self.life.finish().context("taking everything down")?;
        Ok(self.outcome)
    }
}
