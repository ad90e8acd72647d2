//! The agent: one task that owns the state, recomputes what is wanted, and applies the difference.

mod adopt;
mod connections;
pub mod detach;
mod flows;
mod guard;
mod opaque;
mod pods;
mod prune;
mod renew;
mod report;
mod start;
mod undo;
mod uplinks;
mod vips;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use lb_common::abi::Traffic;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use self::{
    flows::Sweeper,
    guard::Lock,
    opaque::OpaqueEndpoints,
    pods::{Finding, Wanted},
    start::settings,
    undo::{ArpChanges, GroChanges},
    uplinks::AttachedUplink,
};
use crate::{
    config,
    dataplane::{bpffs::PinDirectory, capacity::Sizes, object::Clock, programs::Attached, tables::Tables},
    failure,
    model::Snapshot,
    net::{
        Netlink, links,
        monitor::{Changes, Monitor},
        netns::Namespaces,
        routes,
    },
    plan::{
        ops::MapOp,
        planner::{GRACE, PlanError, Planner, VipKey},
        room::Stage,
    },
    status::{self, Status},
};

/// How often what no event tells of is looked after: retries, records, the configuration file.
const TICK: Duration = Duration::from_secs(1);
/// Ticks from one sweep of the bypasses to the next.
const SWEEP_TICKS: u64 = 5;

/// The agent's state.
pub struct Engine {
    config: PathBuf,
    snapshot: Snapshot,
    planner: Planner,
    sizes: Sizes,
    object: Ebpf,
    tables: Tables,
    attached: Attached,
    uplinks: Vec<AttachedUplink>,
    netlink: Netlink,
    namespaces: Namespaces,
    findings: BTreeMap<Wanted, Finding>,
    gro_changes: GroChanges,
    arp_changes: ArpChanges,
    /// By pod address, the cookie of the namespace whose connections are recorded from their beginning.
    followed: BTreeMap<IpAddr, u64>,
    /// Earlier owners of slots that have no interface, and since when by the agent's clock.
    away: BTreeMap<IpAddr, Duration>,
    /// The last pod whose sockets were listed for the histories.
    listed_to: Option<IpAddr>,
    opaque: OpaqueEndpoints,
    pending: VecDeque<MapOp>,
    /// By service, what backends forwarded that are its no more.
    gone_traffic: BTreeMap<VipKey, Traffic>,
    gone_total: Traffic,
    /// When the last writes were done: what they took out of the maps rests from here.
    written: Instant,
    clock: Clock,
    sweeper: Sweeper,
    started: Instant,
    /// Why the newest configuration was refused.
    refusal: Option<String>,
    /// What of the wanted state is not in the maps yet, and why; tried again with each tick.
    waiting: Option<String>,
    _lock: Lock,
    _pin_directory: PinDirectory,
}

/// Runs the agent with this configuration file until it is told to stop.
pub fn run(config: &Path) -> Result<()> {
    // Before the file is read: whoever changes it meanwhile is heard.
    let version = file_version(config);
    let snapshot = config::load(config)?;
    guard::check_capabilities()?;
    let lock = Lock::take(&snapshot.run_directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the first look, so that nothing is missed between the two; a start takes seconds.
        let monitor = Monitor::open()?;
        let signals = Signals::take()?;
        let mut engine = Engine::start(config, snapshot, lock)?;
        let result = engine.serve(monitor, signals, version).await;
        engine.stop();
        result
    })
}

/// What the agent is told by signals. From here on none of them ends the process.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn take() -> Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

impl Engine {
    async fn serve(&mut self, monitor: Monitor, mut signals: Signals, mut version: FileVersion) -> Result<()> {
        let socket = self.snapshot.run_directory.join(status::SOCKET_NAME);
        let listener = status::bind(&socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
        let (ask, mut questions) = mpsc::channel::<oneshot::Sender<Status>>(8);
        tokio::spawn(status::serve(listener, move || answer(ask.clone())));
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // SAFETY: the monitor keeps its descriptor open and unchanged for as long as it lives.
        let mut monitor = unsafe { AsyncFd::register(monitor) }?;
        let mut ticks = 0u64;
        info!(services = self.snapshot.services.len(), "ready");
        loop {
            tokio::select! {
                ready = monitor.readable_mut() => {
                    let mut ready = ready?;
                    let changes = ready.get_inner_mut().drain()?;
                    if !changes.more {
                        ready.clear_ready();
                    }
                    self.follow(&changes);
                }
                Some(question) = questions.recv() => {
                    // Whoever asked may have left.
                    let _ = question.send(self.status());
                }
                _ = tick.tick() => {
                    ticks += 1;
                    let now = file_version(&self.config);
                    if now != version {
                        version = now;
                        self.reload();
                    }
                    self.look_after(ticks);
                }
                _ = signals.hangup.recv() => {
                    version = file_version(&self.config);
                    self.reload();
                }
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
            }
        }
    }

    /// Takes up what netlink tells.
    fn follow(&mut self, changes: &Changes) {
        if changes.overrun {
            warn!("notifications were lost; everything is read anew");
        }
        if changes.any()
            && let Err(error) = self.tables.change_settings(|settings| settings.route_epoch += 1)
        {
            warn!(%error, "remembered routes could not be dropped");
        }
        if changes.links || changes.routes {
            // What goes wrong is in `waiting`, and tried again with the next tick.
            let _ = self.reconcile();
        }
    }

    /// What time alone brings.
    fn look_after(&mut self, ticks: u64) {
        self.retire();
        self.sweep_flows();
        let unsettled = self.find_opaque()
            || self.waiting.is_some()
            || self.uplinks.len() != self.snapshot.uplinks.len()
            || self.findings.values().any(|finding| finding.rung.is_none());
        if unsettled {
            let _ = self.reconcile();
        }
        if ticks.is_multiple_of(SWEEP_TICKS) {
            self.sweep_bypasses();
            self.prune_histories();
        }
    }

    /// Computes what is wanted and applies the difference. Until all of it is in force, `waiting` says why not.
    fn reconcile(&mut self) -> Result<()> {
        let done = self.approach();
        let waiting = match &done {
            Ok(left) if left.is_empty() => None,
            Ok(left) => Some(left.join("\n")),
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(waiting) = waiting.as_ref().filter(|waiting| self.waiting.as_ref() != Some(waiting)) {
            warn!(waiting, "not everything is in force yet; tried again");
        }
        self.waiting = waiting;
        done.map(drop)
    }

    /// Gets as near to what is wanted as is possible now, and returns what is left and why. What is wanted no longer is
    /// let go of after the maps have stopped leading to it.
    fn approach(&mut self) -> Result<Vec<String>> {
        let links = links::snapshot(&mut self.netlink)?;
        let routes = routes::snapshot(&mut self.netlink)?;
        let mut left = self.follow_uplinks(&links);
        // Nothing is planned beyond writes that fail, so that they stay as many as one plan has.
        if let Err(error) = self.apply(Vec::new()) {
            left.push(cannot_write(&error));
            return Ok(left);
        }
        let places = self.find_pods(&links, &routes);
        self.planner.set_opaque(self.opaque_endpoints());
        let ops = match self.planner.plan_in_stages(&self.snapshot, &places, self.started.elapsed())? {
            Stage::Whole(ops) => ops,
            Stage::Part(ops, PlanError::Full { what, key, capacity }) => {
                left.push(format!(
                    "{what} takes the place of one that was just taken out, which rests for {} s; a larger {key} than \
                     {capacity} leaves room for both",
                    GRACE.as_secs()
                ));
                ops
            }
        };
        self.forget_owners(&ops);
        match self.apply(ops) {
            Ok(()) => {
                self.release_uplinks();
                self.release_pods(&links);
            }
            Err(error) => left.push(cannot_write(&error)),
        }
        Ok(left)
    }

    /// Reads the configuration anew: all of it, or nothing and the reason.
    fn reload(&mut self) {
        match self.try_reload() {
            Ok(()) => {
                self.refusal = None;
                info!(services = self.snapshot.services.len(), "configuration applied");
            }
            Err(error) => {
                let text = failure::describe(&error);
                error!(error = text, "configuration refused; the one before stays in force");
                self.refusal = Some(text);
            }
        }
    }

    fn try_reload(&mut self) -> Result<()> {
        let wanted = config::load(&self.config)?;
        let now = &self.snapshot;
        if wanted.capacities != now.capacities {
            bail!("capacities are fixed while the agent runs; restart it to change them");
        }
        if wanted.pin_directory != now.pin_directory || wanted.run_directory != now.run_directory {
            bail!("pinDirectory and runDirectory are fixed while the agent runs; restart it to change them");
        }
        let before = std::mem::replace(&mut self.snapshot, wanted);
        if let Err(error) = self.take_over() {
            self.snapshot = before;
            return Err(match self.take_over() {
                Ok(()) => error,
                Err(return_error) => {
                    error.context(format!("cannot return to the configuration before: {return_error:#}"))
                }
            });
        }
        Ok(())
    }

    fn take_over(&mut self) -> Result<()> {
        let new = settings(&self.snapshot, self.clock.hertz);
        self.tables.change_settings(|settings| {
            (settings.node_v4, settings.node_v6) = (new.node_v4, new.node_v6);
            settings.limits = new.limits;
        })?;
        self.attach_uplinks()?;
        self.reconcile()
    }
}

fn cannot_write(error: &anyhow::Error) -> String {
    format!("cannot write to the maps: {error:#}")
}

async fn answer(ask: mpsc::Sender<oneshot::Sender<Status>>) -> Status {
    let (reply, status) = oneshot::channel();
    let _ = ask.send(reply).await;
    status.await.unwrap_or_default()
}

/// Changes when the file does, also when a symlink in its path is swapped: device, inode, time and length.
type FileVersion = Option<(u64, u64, i64, i64, u64)>;

fn file_version(path: &Path) -> FileVersion {
    let facts = std::fs::metadata(path).ok()?;
    Some((facts.dev(), facts.ino(), facts.mtime(), facts.mtime_nsec(), facts.len()))
}
