//! The agent: one task that owns the state, recomputes what is wanted, and applies the difference.

mod adopt;
mod announce;
mod announce_status;
mod connections;
pub mod detach;
mod exits;
mod flows;
mod guard;
mod health;
mod leave;
mod opaque;
mod peer_status;
mod peers;
mod pods;
mod preflight;
mod prune;
mod questions;
mod reload;
mod renew;
mod report;
mod start;
mod summary;
mod undo;
mod uplinks;
mod vips;
mod virtual_macs;
mod wanted;
mod watch;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::Ebpf;
use lb_common::abi::Traffic;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{info, warn};

use self::{
    announce::Announcing,
    flows::Sweeper,
    guard::Lock,
    health::Health,
    leave::Leave,
    opaque::OpaqueEndpoints,
    peers::Peers,
    pods::{Finding, Wanted},
    questions::Asked,
    reload::Source,
    undo::{ArpChanges, GroChanges},
    uplinks::AttachedUplink,
    wanted::WantedPods,
};
use crate::{
    dataplane::{bpffs::PinDirectory, capacity::Sizes, object::Clock, programs::Attached, tables::Tables},
    failure,
    health::targets::without_failed,
    memory,
    model::Snapshot,
    net::{
        Netlink,
        links::{self, Mac},
        monitor::{Changes, Monitor},
        routes,
    },
    observe::{self, Observer, Question, meter::Meter},
    plan::{
        ops::MapOp,
        planner::{GRACE, PlanError, Planner, VipKey},
        room::Stage,
    },
    preflight::resolve::Place,
    privileges::{self, Helper},
    status::{self, Cause},
    supervisor::Supervisor,
};

/// How often what no event tells of is looked after: retries, records, the configuration file's version.
const TICK: Duration = Duration::from_secs(1);
/// Longest time from one pulse to the next: of an agent that has nothing to hurry for.
const PULSE_MAX: Duration = Duration::from_secs(3600);
/// Ticks from one sweep of the bypasses to the next.
const SWEEP_TICKS: u64 = 5;

/// The agent's state.
pub struct Engine {
    snapshot: Snapshot,
    wanted: WantedPods,
    planner: Planner,
    sizes: Sizes,
    object: Ebpf,
    tables: Tables,
    attached: Attached,
    uplinks: Vec<AttachedUplink>,
    /// Where the configured uplinks want programs, as of the last look at the links.
    places: Vec<Place>,
    /// Why some of them mean nothing at the moment.
    refused_uplinks: Vec<crate::preflight::Finding>,
    /// What is in the map `uplinks`.
    exits: BTreeMap<u32, Mac>,
    /// What pre-flight and the kernel say of node and uplinks.
    preflight: preflight::Findings,
    netlink: Netlink,
    /// Does what is to be done in pods' namespaces.
    helper: Helper,
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
    health: Health,
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
    /// Why links cannot be pinned again.
    unpinned: Option<String>,
    meter: Meter,
    observer: Observer,
    announcing: Announcing,
    peers: Peers,
    /// This node leaves, or has left.
    leave: Option<Leave>,
    /// The data plane was there before this agent.
    is_adopted: bool,
    /// When [`pulse`](Self::pulse) was last called.
    pulsed: Instant,
    _lock: Lock,
    _pin_directory: PinDirectory,
}

/// Runs the agent with this configuration file until it is told to stop.
pub fn run(config: &Path) -> Result<()> {
    privileges::begin()?;
    // Before the file is read: whoever changes it meanwhile is heard.
    let began = Instant::now();
    let (source, snapshot) = Source::open(config)?;
    let microseconds = began.elapsed().as_micros() as u64;
    info!(services = snapshot.services.len(), microseconds, "configuration read");
    guard::check_capabilities()?;
    guard::allow_descriptors();
    let found = preflight::approve(&snapshot)?;
    let opened = announce::open(&snapshot.announce)?;
    let secrets = peers::read_secrets(&snapshot.announce)?;
    let lock = Lock::take(&snapshot.run_directory)?;
    // Before anything is touched: the disk may be full.
    let socket = status::Socket::make(&snapshot.run_directory.join(status::SOCKET_NAME))?;
    let helper = Helper::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the first look, so that nothing is missed between the two; a start takes seconds.
        let monitor = Monitor::open()?;
        let signals = Signals::take()?;
        let mut supervisor = Supervisor::from_environment();
        let observation = snapshot.observation.clone();
        let (observer, ends) = observe::prepare(&observation);
        let mut engine = Engine::start(snapshot, lock, helper, observer)?;
        engine.preflight = preflight::Findings::of_start(found);
        engine.note_attached();
        // Adopting many services takes twice as much as having them.
        memory::release();
        // Threads come after the privileges have gone.
        let begun = privileges::relinquish().map_err(anyhow::Error::from).and_then(|()| {
            engine.begin_announcing(opened, secrets)?;
            privileges::settle()?;
            ends.begin(&observation).context("cannot start the thread that serves metrics")?;
            engine.health.begin(engine.started)
        });
        let result = match begun {
            Ok(()) => engine.serve(monitor, signals, source, socket, &mut supervisor).await,
            Err(error) => Err(error),
        };
        supervisor.stopping(&result.as_ref().map_or_else(failure::describe, |()| "stopping".to_owned()));
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
    async fn serve(
        &mut self,
        monitor: Monitor,
        mut signals: Signals,
        mut source: Source,
        socket: status::Socket,
        supervisor: &mut Supervisor,
    ) -> Result<()> {
        let (ask, mut questions) = mpsc::channel::<Asked>(8);
        let listener = socket.publish()?;
        tokio::spawn(status::serve(listener, move |question| questions::answer(ask.clone(), question)));
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // SAFETY: the monitor keeps its descriptor open and unchanged for as long as it lives.
        let mut monitor = unsafe { AsyncFd::register(monitor) }?;
        let mut ticks = 0u64;
        info!(services = self.snapshot.services.len(), "ready");
        supervisor.ready(self.summary());
        loop {
            let pulse_at = self.pulse_at();
            tokio::select! {
                ready = monitor.readable_mut() => {
                    let mut ready = ready?;
                    let changes = ready.get_inner_mut().drain()?;
                    if !changes.more {
                        ready.clear_ready();
                    }
                    self.busy(|engine| engine.follow(&changes));
                }
                Some(question) = questions.recv() => self.busy(|engine| engine.answer(question)),
                snapshot = source.next() => {
                    supervisor.reloading();
                    self.busy(|engine| engine.reload(snapshot));
                    supervisor.ready(self.summary());
                }
                reports = self.health.reports() => self.busy(|engine| engine.follow_health(reports)),
                Some(question) = self.observer.questions.recv() => self.busy(|engine| engine.tell(question)),
                (path, event) = self.peers.watch.event() => {
                    self.peers.watch.note(path, event);
                    self.busy(Self::nudge_peers);
                }
                () = sleep_until(pulse_at.into()) => {
                    if self.busy(Self::pulse) {
                        return Ok(());
                    }
                }
                _ = tick.tick() => {
                    ticks += 1;
                    source.look();
                    // It cannot be had again; another agent can, and the data plane goes on meanwhile.
                    self.helper.check()?;
                    self.busy(|engine| engine.look_after(ticks));
                    supervisor.alive(|| self.summary());
                }
                _ = signals.hangup.recv() => source.ask(),
                _ = signals.terminate.recv() => {
                    if self.is_to_end() {
                        return Ok(());
                    }
                }
                _ = signals.interrupt.recv() => {
                    if self.is_to_end() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whoever asked may have left.
    fn tell(&self, question: Question) {
        match question {
            Question::Health(reply) => drop(reply.send(observe::Health { waiting: self.waiting.clone() })),
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

    /// Does something that may take long, and is not to be taken for hung meanwhile.
    fn busy<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.beat_for_long();
        let done = work(self);
        self.beat();
        done
    }

    /// When [`pulse`](Self::pulse) is due.
    fn pulse_at(&self) -> Instant {
        let beat = self.peers.watch.beat_interval();
        let at = [beat, self.leave_interval()].into_iter().flatten().min().map(|interval| self.pulsed + interval);
        let damped = self.announcing.damped_for().map(|rest| Instant::now() + rest);
        at.into_iter().chain(damped).min().unwrap_or(self.pulsed + PULSE_MAX)
    }

    /// What cannot wait for the next tick. True where the agent is to end.
    fn pulse(&mut self) -> bool {
        self.pulsed = Instant::now();
        self.restore_uplinks();
        if self.announcing.take_waited() {
            self.announce_anew();
        }
        self.go_on_leaving()
    }

    /// What time alone brings.
    fn look_after(&mut self, ticks: u64) {
        self.restore_programs();
        self.look_after_peers(ticks);
        self.retire();
        self.sweep_flows();
        self.note_refused();
        self.keep_failed();
        self.shut_out();
        let unsettled = self.find_opaque()
            || self.waiting.is_some()
            || self.uplinks.len() != self.places.len()
            || self.findings.values().any(|finding| finding.rung.is_none());
        if unsettled {
            let _ = self.reconcile();
        }
        self.note_attached();
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
        // Whatever came of it: what cannot be served is not to be announced.
        self.announce_anew();
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
        let planned = without_failed(&self.snapshot, self.health.failed());
        let stage = self.planner.plan_in_stages(&planned, &places, self.started.elapsed())?;
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
}

fn cannot_write(error: &anyhow::Error) -> String {
    format!("cannot write to the maps: {error:#}")
}
