//! Takes up what the health checks have come to: backends that fail drain, and nothing of theirs is ended.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tracing::{info, warn};

use super::Engine;
use crate::{
    health::{
        Report, Subject, Target, Verdict,
        driver::Checks,
        targets::{target, targets},
    },
    model::{Backend, Service, health::Probe},
    plan::planner::EndpointKey,
    status::{HealthState, HealthStatus},
};

/// In the run directory: what has failed, a line for each, so that an agent that starts anew sends nobody there.
const FAILED_NAME: &str = "unhealthy";
/// The same while it is written.
const FAILED_UNREADY_NAME: &str = "unhealthy.new";
/// All that may be there.
pub(super) const NAMES: [&str; 2] = [FAILED_NAME, FAILED_UNREADY_NAME];
/// Bytes that are read of it: a million lines.
const FAILED_BYTES_MAX: u64 = 128 << 20;

/// The checks, and what is known from them.
pub(super) struct Health {
    /// Once the agent has dropped its privileges: the thread has none either.
    checks: Option<Checks>,
    wanted: BTreeSet<Arc<Target>>,
    /// The latest of each target that has said anything.
    reports: HashMap<Arc<Target>, Report>,
    failed: HashSet<Arc<Target>>,
    /// Lines of what had failed when an earlier agent asked last, until targets are set.
    recalled: HashSet<String>,
    /// What has failed is to be kept, and is not yet.
    is_unsaved: bool,
    /// What was in the way of that the last time.
    save_error: Option<String>,
    /// When the checks were last set: from here on those are unknown that have said nothing.
    since: Duration,
    /// What is checked by datagram.
    datagrams: Vec<Datagram>,
}

/// An endpoint that is checked by datagram.
struct Datagram {
    endpoint: EndpointKey,
    subject: Subject,
    /// Port unreachables of the endpoint as the return programs had counted them last.
    refused: Option<u64>,
}

impl Health {
    /// Without checks yet. What had failed when an earlier agent with this run directory asked counts as failed until it passes.
    pub(super) fn recalling(run_directory: &Path) -> Self {
        let recalled = recalled(run_directory).unwrap_or_else(|error| {
            warn!(%error, "what had failed its health checks is not known; it is found out again");
            HashSet::new()
        });
        Self {
            checks: None,
            wanted: BTreeSet::new(),
            reports: HashMap::new(),
            failed: HashSet::new(),
            recalled,
            is_unsaved: false,
            save_error: None,
            since: Duration::ZERO,
            datagrams: Vec::new(),
        }
    }

    /// Begins to check.
    pub(super) fn begin(&mut self, started: Instant) -> Result<()> {
        let failed = self.failed.iter().map(|target| target.subject.clone()).collect();
        let checks = Checks::start(started, failed).context("cannot start the health checks")?;
        checks.set_targets(self.wanted.clone());
        self.checks = Some(checks);
        Ok(())
    }

    /// Targets whose checks have failed.
    pub(super) const fn failed(&self) -> &HashSet<Arc<Target>> {
        &self.failed
    }

    /// Whether each target has said something.
    pub(super) fn has_all_verdicts(&self) -> bool {
        self.wanted.iter().all(|target| self.reports.contains_key(target))
    }

    /// Waits for news.
    pub(super) async fn reports(&mut self) -> Vec<Report> {
        match &mut self.checks {
            Some(checks) => checks.reports().await,
            None => std::future::pending().await,
        }
    }
}

/// What is asked of whom, as a line.
fn line(Subject { address, probe }: &Subject) -> String {
    serde_json::to_string(&(address, probe)).expect("addresses and texts can be written")
}

/// The lines that an earlier agent has left.
fn recalled(run_directory: &Path) -> io::Result<HashSet<String>> {
    let mut text = String::new();
    match File::open(run_directory.join(FAILED_NAME)) {
        Ok(file) => drop(file.take(FAILED_BYTES_MAX).read_to_string(&mut text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(text.lines().map(str::to_owned).collect())
}

impl Engine {
    /// Keeps what has failed for an agent that starts anew, where it has changed. Once in a tick at most: of a large node all may
    /// fail, a few in each batch of reports.
    pub(super) fn keep_failed(&mut self) {
        if !std::mem::take(&mut self.health.is_unsaved) {
            return;
        }
        let [path, fresh] = NAMES.map(|name| self.snapshot.run_directory.join(name));
        let lines: BTreeSet<String> = self.health.failed.iter().map(|target| line(&target.subject) + "\n").collect();
        let written = if lines.is_empty() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        } else {
            fs::write(&fresh, lines.into_iter().collect::<String>()).and_then(|()| fs::rename(&fresh, &path))
        };
        let error = written.err().map(|error| error.to_string());
        self.health.is_unsaved = error.is_some();
        if let Some(error) = error.as_ref().filter(|_| error != self.health.save_error) {
            warn!(error, path = %path.display(), "an agent that starts anew will not know what fails its health checks");
        }
        self.health.save_error = error;
    }

    /// Checks what the configuration says from here on.
    pub(super) fn check_health(&mut self) {
        let wanted = targets(&self.snapshot);
        let health = &mut self.health;
        health.reports.retain(|target, _| wanted.contains(target));
        // Who gets another timing stays failed, as in the machine.
        let failed: HashSet<&Subject> = health.failed.iter().map(|target| &target.subject).collect();
        let recalled = std::mem::take(&mut health.recalled);
        let stays = |target: &&Arc<Target>| {
            let is_new = !health.wanted.contains(*target);
            health.failed.contains(*target)
                || is_new && failed.contains(&target.subject)
                || !recalled.is_empty() && recalled.contains(&line(&target.subject))
        };
        let failed: HashSet<Arc<Target>> = wanted.iter().filter(stays).map(Arc::clone).collect();
        health.is_unsaved |= !recalled.is_empty() || failed != health.failed;
        health.failed = failed;
        if health.wanted != wanted {
            health.wanted.clone_from(&wanted);
            health.since = self.started.elapsed();
        }
        let counted: HashMap<EndpointKey, Option<u64>> =
            health.datagrams.drain(..).map(|datagram| (datagram.endpoint, datagram.refused)).collect();
        for service in &self.snapshot.services {
            for backend in &service.backends {
                let Some(subject) = target(service, backend).map(|target| target.subject) else { continue };
                if matches!(subject.probe, Probe::Udp { .. }) {
                    let endpoint = EndpointKey::of(service, backend);
                    let refused = counted.get(&endpoint).copied().flatten();
                    health.datagrams.push(Datagram { endpoint, subject, refused });
                }
            }
        }
        if let Some(checks) = &health.checks {
            checks.set_targets(wanted);
        }
    }

    /// Takes up news of the checks.
    pub(super) fn follow_health(&mut self, reports: Vec<Report>) {
        let mut changed = false;
        for report in reports {
            // Of a target that has just gone.
            if !self.health.wanted.contains(&report.target) {
                continue;
            }
            let subject = &report.target.subject;
            let (pod, check, error) = (subject.address, subject.probe.name(), report.last_error.as_deref());
            let health = &mut self.health;
            changed |= match report.verdict {
                Verdict::Unhealthy => {
                    let is_news = health.failed.insert(Arc::clone(&report.target));
                    if is_news {
                        warn!(%pod, check, error, "health check failed: no new connections");
                    }
                    is_news
                }
                Verdict::Unknown | Verdict::Healthy => {
                    let is_news = health.failed.remove(&report.target);
                    if is_news {
                        info!(%pod, check, "health check passes again");
                    }
                    is_news
                }
            };
            health.reports.insert(Arc::clone(&report.target), report);
        }
        if changed {
            self.health.is_unsaved = true;
            // What goes wrong is in `waiting`, and tried again with the next tick.
            let _ = self.reconcile();
        }
    }

    /// Tells the checks by datagram which endpoints' kernels had no socket for somebody's datagrams since the last look.
    pub(super) fn note_refused(&mut self) {
        let mut refused = BTreeSet::new();
        for datagram in &mut self.health.datagrams {
            let Some(endpoint) = self.planner.endpoints().get(&datagram.endpoint) else { continue };
            let count = self.tables.watch(endpoint.id).refused();
            // What was counted before the first look is of another time, and what is counted less of another pod.
            if datagram.refused.replace(count).is_some_and(|before| before < count) {
                refused.insert(datagram.subject.clone());
            }
        }
        if let Some(checks) = self.health.checks.as_ref().filter(|_| !refused.is_empty()) {
            checks.note_refused(refused);
        }
    }

    /// What the checks of a backend have come to, where it has any.
    pub(super) fn health_of(&self, service: &Service, backend: &Backend) -> Option<HealthStatus> {
        let target = target(service, backend)?;
        let report = self.health.reports.get(&target);
        let recalled = if self.health.failed.contains(&target) { Verdict::Unhealthy } else { Verdict::Unknown };
        let since = report.map_or(self.health.since, |report| report.since);
        Some(HealthStatus {
            state: match report.map_or(recalled, |report| report.verdict) {
                Verdict::Unknown => HealthState::Unknown,
                Verdict::Healthy => HealthState::Healthy,
                Verdict::Unhealthy => HealthState::Unhealthy,
            },
            seconds: self.started.elapsed().saturating_sub(since).as_secs(),
            last_error: report.and_then(|report| report.last_error.clone()),
        })
    }
}
