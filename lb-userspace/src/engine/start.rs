//! How an agent begins and ends. It adopts the data plane that an earlier one has left, or makes its own; where it ends,
//! the data plane goes on.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, Hasher},
    net::IpAddr,
    num::NonZero,
    path::Path,
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use aya::Ebpf;
use lb_common::{
    abi::{ABI_VERSION, Limit, Settings, Traffic},
    limiter::TOKEN,
};
use tracing::{info, warn};

use super::{
    Engine, announce::Announcing, detach, flows::Sweeper, guard::Lock, health::Health, opaque::OpaqueEndpoints,
    peers::Peers, preflight::Findings, renew, wanted::WantedPods,
};
use crate::{
    dataplane::{
        DataPlaneError,
        bpffs::{self, LINKS, MAPS, PinDirectory},
        capacity::Sizes,
        earlier::restore_unused,
        object::{self, Clock, Pins},
        pinned::{self, Left},
        programs::Attached,
        tables::{Tables, read_undos},
    },
    model::{Limits, Snapshot},
    net::Netlink,
    observe::{Observer, meter::Meter},
    plan::{ahead::Ahead, maglev, planner::Planner},
    privileges::Helper,
    status::{self, Cause},
};

/// Threads that compute tables: more would keep the kernel from verifying programs.
const THREADS_MAX: usize = 8;
/// Services whose tables are worth a thread.
const SERVICES_PER_THREAD: usize = 100;

/// What the agent calls itself in the maps.
pub(super) const BUILD: &str = env!("CARGO_PKG_VERSION");

impl Engine {
    /// Adopts or makes the data plane, and brings it to what the snapshot says.
    ///
    /// # Errors
    /// What was adopted goes on as it was; what was made is taken down.
    pub(super) fn start(snapshot: Snapshot, lock: Lock, helper: Helper, observer: Observer) -> Result<Self> {
        let pins = snapshot.pin_directory.clone();
        let pin_directory = bpffs::prepare(&pins)?;
        if pin_directory.mounted {
            info!(path = %pins.display(), "bpffs mounted");
        }
        let sizes = Sizes::new(&snapshot.capacities);
        let cpus = aya::util::nr_cpus().unwrap_or(1) as u64;
        for (name, entries, bytes) in sizes.maps(cpus) {
            info!(map = name, entries, kibibytes = bytes.div_ceil(1024), "map");
        }
        let begun = Begun { snapshot, lock, helper, pin_directory, sizes, observer };
        if restore_unused(&pins)? {
            warn!("an earlier agent was about to carry the data plane over to new maps: this begins anew");
        }
        match pinned::look(&pins.join(MAPS), &object::shapes(&sizes)?)? {
            Left::Same => Self::adopt(begun),
            Left::Nothing => Self::make(begun),
            Left::Other { about: Some(_), how } => {
                renew::prepare(&begun, &how)?;
                Self::adopt(begun)
            }
            Left::Other { about: None, how } => {
                warn!(reason = how, "the data plane of an earlier agent cannot be adopted, and is replaced");
                Self::make(begun)
            }
        }
    }

    /// A data plane of its own, in place of whatever is pinned.
    fn make(begun: Begun) -> Result<Self> {
        let pins = begun.snapshot.pin_directory.clone();
        // What must be undone is not forgotten with the rest.
        let undos = read_undos(&pins.join(MAPS))?;
        bpffs::clear(&pins, &pinned::foreign(&pins)?).map_err(|source| DataPlaneError::PinDirectory {
            path: pins.clone(),
            what: "removing what an earlier agent left",
            source,
            advice: "",
        })?;
        let made = Self::load(begun, undos);
        let taken_down = |error| {
            // The error that is returned matters more than one of tidying up.
            if let Err(also) = detach::take_down(&pins, &mut |_| ()) {
                warn!(error = %also, "not everything that was made is taken down again");
            }
            error
        };
        let mut engine = made.map_err(taken_down)?;
        engine.check_health();
        match engine.attach_uplinks().and_then(|()| engine.reconcile()) {
            Ok(()) => Ok(engine),
            Err(error) => {
                drop(engine);
                Err(taken_down(error))
            }
        }
    }

    /// Loads the programs and makes the maps; nothing is attached yet.
    fn load(begun: Begun, undos: Vec<(lb_common::agent::UndoKey, bool)>) -> Result<Self> {
        let pins = Pins::new(begun.snapshot.pin_directory.join(MAPS));
        let (object, ahead) = begun.with_tables(|| object::load(&begun.sizes, Some(&pins)));
        let mut object = object?;
        let clock = Clock::measure(&mut object)?;
        let mut tables = Tables::new(&mut object, &begun.sizes, settings(&begun.snapshot, clock.hertz))?;
        for (key, was_on) in undos {
            tables.note_undo(key, was_on)?;
        }
        settle(&pins, &begun.snapshot.pin_directory)?;
        tables.sign(BUILD)?;
        let planner = Planner::new(begun.snapshot.capacities).at_hertz(clock.hertz).with_ahead(ahead);
        Self::new(begun, object, tables, planner, clock)
    }

    pub(super) fn new(begun: Begun, object: Ebpf, tables: Tables, planner: Planner, clock: Clock) -> Result<Self> {
        let mut meter = Meter::default();
        meter.change_seen(Cause::Configuration, Duration::ZERO);
        meter.configured(super::report::unix_seconds(), true);
        Ok(Self {
            wanted: WantedPods::new(&begun.snapshot.services),
            planner,
            attached: Attached::new(begun.snapshot.pin_directory.join(LINKS)),
            sizes: begun.sizes,
            object,
            tables,
            uplinks: Vec::new(),
            places: Vec::new(),
            refused_uplinks: Vec::new(),
            exits: BTreeMap::new(),
            preflight: Findings::default(),
            netlink: Netlink::open()?,
            helper: begun.helper,
            findings: BTreeMap::new(),
            gro_changes: BTreeMap::new(),
            arp_changes: BTreeMap::new(),
            followed: BTreeMap::new(),
            away: BTreeMap::new(),
            listed_to: None,
            opaque: OpaqueEndpoints::new(),
            health: Health::recalling(&begun.snapshot.run_directory),
            pending: VecDeque::new(),
            gone_traffic: BTreeMap::new(),
            gone_total: Traffic::default(),
            written: Instant::now(),
            clock,
            sweeper: Sweeper::default(),
            started: Instant::now(),
            refusal: None,
            waiting: None,
            unpinned: None,
            meter,
            observer: begun.observer,
            announcing: Announcing::new(),
            peers: Peers::new(),
            leave: None,
            is_adopted: false,
            pulsed: Instant::now(),
            _lock: begun.lock,
            _pin_directory: begun.pin_directory,
            snapshot: begun.snapshot,
        })
    }

    /// Ends the agent, not the data plane.
    pub(super) fn stop(&mut self) {
        self.keep_failed();
        self.stop_announcing();
        self.peers.stop();
        let _ = std::fs::remove_file(self.snapshot.run_directory.join(status::SOCKET_NAME));
        info!("stopped; the data plane goes on: the next agent adopts it, and `sluice detach` removes it");
    }
}

/// What a start has before it looks at what is pinned.
pub(super) struct Begun {
    pub snapshot: Snapshot,
    lock: Lock,
    helper: Helper,
    pin_directory: PinDirectory,
    pub sizes: Sizes,
    observer: Observer,
}

impl Begun {
    /// Computes the services' Maglev tables while something else goes on that takes as long: the kernel's verifier.
    pub(super) fn with_tables<T>(&self, something: impl FnOnce() -> T) -> (T, Ahead) {
        let services = &self.snapshot.services;
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
        let each = services.len().div_ceil(threads).max(SERVICES_PER_THREAD);
        thread::scope(|scope| {
            let parts: Vec<_> = services.chunks(each).map(|part| scope.spawn(|| Ahead::of(part))).collect();
            let done = something();
            let join = |part: ScopedJoinHandle<'_, Ahead>| part.join().expect("computing tables does not panic");
            (done, parts.into_iter().map(join).fold(Ahead::default(), Ahead::and))
        })
    }
}

/// Once every attached program is of this load.
pub(super) fn settle(pins: &Pins, directory: &Path) -> Result<(), DataPlaneError> {
    pins.settle().map_err(|source| DataPlaneError::PinDirectory {
        path: directory.to_path_buf(),
        what: "renaming pins",
        source,
        advice: "",
    })
}

pub(super) fn settings(snapshot: &Snapshot, hertz: u64) -> Settings {
    let address = |v4: bool| snapshot.node_addresses.iter().find(|a| a.is_ipv4() == v4).copied().map(IpAddr::into);
    Settings {
        abi_version: ABI_VERSION,
        uplink: 0,
        maglev_seed: maglev::CLUSTER_SEED,
        // Random for each data plane, so that nobody outside can aim at a bucket.
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
