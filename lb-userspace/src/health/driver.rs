//! Asks what the machine wants to be asked, on a thread of its own, and hands its reports to the engine.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::pending,
    hash::{BuildHasher, Hasher},
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime,
    sync::{mpsc, watch},
    task::{AbortHandle, JoinError, JoinSet, yield_now},
    time::sleep_until,
};
use tracing::warn;

use super::{
    Outcome, Report, Subject, Target,
    machine::{Action, Machine, Run, TargetId},
    probe,
};
use crate::privileges;

/// Least time from one handing over of reports to the next: each may lead the engine to a plan of everything.
const REPORTS_INTERVAL: Duration = Duration::from_millis(100);
/// Notes of refused ports that wait for the driver; one that finds no room is made again when more are refused.
const REFUSALS_WAITING_MAX: usize = 16;

/// The checks as the engine sees them. They end when this is dropped.
#[derive(Debug)]
pub struct Checks {
    targets: watch::Sender<BTreeSet<Arc<Target>>>,
    refusals: mpsc::Sender<BTreeSet<Subject>>,
    reports: mpsc::Receiver<Vec<Report>>,
}

impl Checks {
    /// Begins, without targets. Times are counted from `started`; `failed` had failed when an earlier agent asked.
    pub fn start(started: Instant, failed: HashSet<Subject>) -> io::Result<Self> {
        let mut machine = Machine::new(std::collections::hash_map::RandomState::new().build_hasher().finish());
        machine.recall(failed);
        let (targets, wanted) = watch::channel(BTreeSet::new());
        let (refusals, refused) = mpsc::channel(REFUSALS_WAITING_MAX);
        // One: what comes meanwhile is joined.
        let (tell, reports) = mpsc::channel(1);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let driver =
            Driver { started, machine, running: JoinSet::new(), aborts: HashMap::new(), unreported: HashMap::new() };
        let run = move || {
            if let Err(error) = privileges::drop_all() {
                warn!(%error, "the thread that checks backends keeps its capabilities");
            }
            runtime.block_on(driver.run(wanted, refused, tell));
        };
        thread::Builder::new().name("health".into()).spawn(run)?;
        Ok(Self { targets, refusals, reports })
    }

    /// From here on these are checked and no others.
    pub fn set_targets(&self, targets: BTreeSet<Arc<Target>>) {
        self.targets.send_if_modified(|known| {
            let differ = *known != targets;
            *known = targets;
            differ
        });
    }

    /// Pods have told somebody that these ports are unreachable.
    pub fn note_refused(&self, subjects: BTreeSet<Subject>) {
        // Full: see there.
        let _ = self.refusals.try_send(subjects);
    }

    /// What has become of targets, each once. Waits for some; without end where the checks have ended.
    pub async fn reports(&mut self) -> Vec<Report> {
        match self.reports.recv().await {
            Some(reports) => reports,
            None => pending().await,
        }
    }
}

struct Driver {
    started: Instant,
    machine: Machine,
    running: JoinSet<(TargetId, Run, Outcome)>,
    aborts: HashMap<Run, AbortHandle>,
    /// The latest of each target.
    unreported: HashMap<Arc<Target>, Report>,
}

impl Driver {
    async fn run(
        mut self,
        mut wanted: watch::Receiver<BTreeSet<Arc<Target>>>,
        mut refused: mpsc::Receiver<BTreeSet<Subject>>,
        tell: mpsc::Sender<Vec<Report>>,
    ) {
        let mut told = self.started;
        loop {
            // Before the clock is looked at: what has come in time counts, also where this thread came late.
            while let Some(ended) = self.running.try_join_next() {
                self.conclude(ended);
            }
            self.machine.handle_timeout(self.now());
            self.act();
            while let Some(report) = self.machine.poll_event() {
                self.unreported.insert(Arc::clone(&report.target), report);
            }
            let due = self.machine.poll_timeout().map(|due| self.started + due);
            let has_news = !self.unreported.is_empty();
            let next_telling = told + REPORTS_INTERVAL;
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let targets = wanted.borrow_and_update().clone();
                    self.machine.set_targets(&targets, self.now());
                    self.unreported.retain(|target, _| targets.contains(target));
                }
                Some(subjects) = refused.recv() => self.machine.handle_refused(&subjects),
                Some(ended) = self.running.join_next() => self.conclude(ended),
                () = sleep_until(due.unwrap_or(next_telling).into()), if due.is_some() => {
                    // As above: lets checks see what has come for them.
                    yield_now().await;
                }
                permit = async { sleep_until(next_telling.into()).await; tell.reserve().await }, if has_news => {
                    let Ok(permit) = permit else { return };
                    permit.send(self.unreported.drain().map(|(_, report)| report).collect());
                    told = Instant::now();
                }
            }
        }
    }

    /// One that was given up says nothing, and neither does one that panicked: it takes too long, then.
    fn conclude(&mut self, ended: Result<(TargetId, Run, Outcome), JoinError>) {
        if let Ok((id, run, outcome)) = ended {
            self.aborts.remove(&run);
            self.machine.handle_outcome(id, run, outcome, self.now());
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_transmit(self.now()) {
            match action {
                Action::Start(id, run, target) => {
                    let ask = async move { (id, run, probe::ask(&target.subject).await) };
                    self.aborts.insert(run, self.running.spawn(ask));
                }
                Action::Abort(run) => {
                    if let Some(task) = self.aborts.remove(&run) {
                        task.abort();
                    }
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}
