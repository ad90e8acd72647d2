//! The agent: one task that owns the state, recomputes what is wanted, and applies the difference.

mod connections;
mod flows;
mod guard;
mod opaque;
mod pods;
mod prune;
mod report;
mod uplinks;
mod vips;

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, Hasher},
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use lb_common::{
    abi::{ABI_VERSION, Limit, Settings, Traffic},
    limiter::TOKEN,
};
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
    pods::{Finding, GroChange, Wanted},
    uplinks::AttachedUplink,
};
use crate::{
    config,
    dataplane::{
        bpffs::{self, PinDirectory},
        capacity::Sizes,
        object::{self, Clock},
        programs::Attached,
        tables::Tables,
    },
    failure,
    model::{Limits, Snapshot},
    net::{
        Netlink, links,
        monitor::{Changes, Monitor},
        netns::Namespaces,
        routes,
    },
    observe::{self, Health, Observer, Question, meter::Meter},
    plan::{
        maglev,
        ops::MapOp,
        planner::{GRACE, PlanError, Planner, VipKey},
        room::Stage,
    },
    status::{self, Cause, Status},
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
    gro_changes: Vec<GroChange>,
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
    meter: Meter,
    observer: Observer,
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
    let observer = observe::start(&snapshot.observation).context("cannot start the thread that serves metrics")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the first look, so that nothing is missed between the two; a start takes seconds.
        let monitor = Monitor::open()?;
        let signals = Signals::take()?;
        let mut engine = Engine::start(config, snapshot, lock, observer)?;
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
    fn start(config: &Path, snapshot: Snapshot, lock: Lock, observer: Observer) -> Result<Self> {
        let pins = snapshot.pin_directory.clone();
        let pin_directory = bpffs::prepare(&pins)?;
        if pin_directory.mounted {
            info!(path = %pins.display(), "bpffs mounted");
        }
        let loaded = Self::load(config, snapshot, lock, pin_directory, observer);
        let mut engine = loaded.inspect_err(|_| {
            // The error that is returned matters more than one of tidying up.
            let _ = bpffs::remove(&pins);
        })?;
        engine.meter.change_seen(Cause::Configuration, Duration::ZERO);
        if let Err(error) = engine.attach_uplinks().and_then(|()| engine.reconcile()) {
            engine.stop();
            return Err(error);
        }
        engine.meter.configured(unix_seconds(), true);
        Ok(engine)
    }

    /// Loads the programs and makes the maps; nothing is attached yet.
    fn load(
        config: &Path,
        snapshot: Snapshot,
        lock: Lock,
        pin_directory: PinDirectory,
        observer: Observer,
    ) -> Result<Self> {
        let pins = &snapshot.pin_directory;
        let sizes = Sizes::new(&snapshot.capacities);
        let cpus = aya::util::nr_cpus().unwrap_or(1) as u64;
        for (name, entries, bytes) in sizes.maps(cpus) {
            info!(map = name, entries, kibibytes = bytes.div_ceil(1024), "map");
        }
        let mut object = object::load(&sizes, Some(&pins.join("maps")))?;
        let clock = Clock::measure(&mut object)?;
        let tables = Tables::new(&mut object, &sizes, settings(&snapshot, clock.hertz))?;
        Ok(Self {
            config: config.to_path_buf(),
            planner: Planner::new(snapshot.capacities).at_hertz(clock.hertz),
            attached: Attached::new(pins.join("links")),
            sizes,
            object,
            tables,
            uplinks: Vec::new(),
            netlink: Netlink::open()?,
            namespaces: Namespaces::default(),
            findings: BTreeMap::new(),
            gro_changes: Vec::new(),
            followed: BTreeMap::new(),
            away: BTreeMap::new(),
            listed_to: None,
            opaque: OpaqueEndpoints::new(),
            pending: VecDeque::new(),
            gone_traffic: BTreeMap::new(),
            gone_total: Traffic::default(),
            written: Instant::now(),
            clock,
            sweeper: Sweeper::default(),
            started: Instant::now(),
            refusal: None,
            waiting: None,
            meter: Meter::default(),
            observer,
            _lock: lock,
            _pin_directory: pin_directory,
            snapshot,
        })
    }

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
                Some(question) = self.observer.questions.recv() => self.answer(question),
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

    /// Whoever asked may have left.
    fn answer(&self, question: Question) {
        match question {
            Question::Health(reply) => drop(reply.send(Health { waiting: self.waiting.clone() })),
            Question::Status(reply) => drop(reply.send(self.status())),
        }
    }

    /// Takes up what netlink tells.
    fn follow(&mut self, changes: &Changes) {
        if changes.overrun {
            self.meter.netlink_overrun();
            warn!("notifications were lost; everything is read anew");
        }
        if changes.any()
            && let Err(error) = self.tables.change_settings(|settings| settings.route_epoch += 1)
        {
            warn!(%error, "remembered routes could not be dropped");
        }
        if changes.links || changes.routes {
            self.meter.change_seen(Cause::Network, self.started.elapsed());
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
        let stage = self.planner.plan_in_stages(&self.snapshot, &places, self.started.elapsed())?;
        let is_whole = matches!(stage, Stage::Whole(_));
        let ops = match stage {
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
                if is_whole {
                    self.meter.settled(self.started.elapsed());
                }
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
                self.meter.configured(unix_seconds(), false);
                self.refusal = None;
                info!(services = self.snapshot.services.len(), "configuration applied");
            }
            Err(error) => {
                let text = failure::describe(&error);
                error!(error = text, "configuration refused; the one before stays in force");
                self.meter.refused();
                self.refusal = Some(text);
            }
        }
    }

    fn try_reload(&mut self) -> Result<()> {
        let seen = self.started.elapsed();
        let wanted = config::load(&self.config)?;
        let now = &self.snapshot;
        if wanted.capacities != now.capacities {
            bail!("capacities are fixed while the agent runs; restart it to change them");
        }
        if wanted.pin_directory != now.pin_directory || wanted.run_directory != now.run_directory {
            bail!("pinDirectory and runDirectory are fixed while the agent runs; restart it to change them");
        }
        if wanted.observation != now.observation {
            bail!("observation is fixed while the agent runs; restart it to change it");
        }
        self.meter.change_seen(Cause::Configuration, seen);
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

    /// Takes down everything that the agent has made.
    fn stop(&mut self) {
        self.detach_uplinks();
        for ifindex in self.attached.interfaces() {
            self.attached.detach(ifindex);
        }
        self.withdraw_all_vips();
        self.restore_gro();
        if let Err(error) = bpffs::remove(&self.snapshot.pin_directory) {
            warn!(%error, path = %self.snapshot.pin_directory.display(), "cannot remove the pins");
        }
        let _ = std::fs::remove_file(self.snapshot.run_directory.join(status::SOCKET_NAME));
        info!("stopped; nothing is left attached");
    }
}

fn cannot_write(error: &anyhow::Error) -> String {
    format!("cannot write to the maps: {error:#}")
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
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

fn settings(snapshot: &Snapshot, hertz: u64) -> Settings {
    let address = |v4: bool| snapshot.node_addresses.iter().find(|a| a.is_ipv4() == v4).copied().map(IpAddr::into);
    Settings {
        abi_version: ABI_VERSION,
        uplink: 0,
        maglev_seed: maglev::CLUSTER_SEED,
        // Random in each process, so that nobody outside can aim at a bucket.
        table_seed: std::collections::hash_map::RandomState::new().build_hasher().finish(),
        node_v4: address(true).unwrap_or_default(),
        node_v6: address(false).unwrap_or_default(),
        limits: limits(&snapshot.limits, hertz),
        route_lifetime: hertz,
        // As long as ids and ranges rest before they are given out again.
        fragment_lifetime: hertz,
        route_epoch: 1,
    }
}

fn limits(limits: &Limits, hertz: u64) -> [Limit; 3] {
    [limits.refusals, limits.echo_replies, limits.icmp_errors].map(|per_second| {
        let burst = u64::from(per_second) * TOKEN;
        Limit { burst, per_jiffy: burst / hertz }
    })
}
