//! What the pinned maps of an agent that does not run say of it. Nothing is written: every map is opened read-only.
//!
//! Missing is what only an agent knows: names and weights of services, which backends drain, why one is not reached, what
//! backends forwarded that have gone, and how full the maps in memory are.

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap as BpfHash, Map, MapData, MapError, PerCpuArray};
use lb_common::{
    abi::{
        self, ABI_VERSION, Counter, ServiceKey, Settings, Traffic, endpoint_flags, member_flags, protocol, rung,
        service_flags,
    },
    address::Address,
    flow, fragments,
    reason::Reason,
};
use thiserror::Error;

use super::{bpffs, capacity::Sizes, pinned};
use crate::{
    model::{Capacities, Protocol, ReplyMode, Rung},
    net::links::{Links, XdpMode},
    status::{
        AttachMode, BackendState, BackendStatus, MapStatus, ProgramStatus, ReasonStatus, ServiceStatus, Source, Status,
    },
};

/// Why the pinned maps say nothing.
#[derive(Debug, Error)]
pub enum PinnedError {
    /// There are none.
    #[error("no data plane of an agent is pinned in {}, or one of an agent older than ABI 2", directory.display())]
    Missing {
        /// The pin directory.
        directory: PathBuf,
    },
    /// They are another version's.
    #[error(
        "the maps in {} are of ABI {found}, and this `sluice` reads ABI {ABI_VERSION}: use the `sluice` that made them",
        directory.display()
    )]
    Foreign {
        /// The pin directory.
        directory: PathBuf,
        /// ABI of the maps.
        found: u32,
    },
    /// One of them cannot be read.
    #[error("{}: cannot be read: {cause}", path.display())]
    Unreadable {
        /// The pin.
        path: PathBuf,
        /// What the kernel said, or that the map is another one than its name says.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The pinned maps of one agent.
struct Pins<'a>(&'a Path);

impl Pins<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join("maps").join(name)
    }

    fn unreadable(&self, name: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PinnedError {
        PinnedError::Unreadable { path: self.path(name), cause: cause.into() }
    }

    fn data(&self, name: &str) -> Result<MapData, PinnedError> {
        match bpffs::open_read_only(&self.path(name)) {
            Err(error) => Err(self.unreadable(name, error)),
            Ok(descriptor) => MapData::from_fd(descriptor).map_err(|error| self.unreadable(name, error)),
        }
    }

    /// A typed map; one whose keys or values have another size than the type is refused.
    fn map<M: TryFrom<Map, Error = MapError>>(&self, name: &str) -> Result<M, PinnedError> {
        let map = Map::from_map_data(self.data(name)?).and_then(M::try_from);
        map.map_err(|error| self.unreadable(name, error))
    }

    /// Every entry of a hash.
    fn entries<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> Result<Vec<(K, V)>, PinnedError> {
        let map: BpfHash<MapData, K, V> = self.map(name)?;
        map.iter().collect::<Result<_, _>>().map_err(|error| self.unreadable(name, error))
    }

    /// The settings, if the maps are of the layout that this program knows, which the map `about` says in every ABI.
    fn settings(&self) -> Result<Settings, PinnedError> {
        let about = pinned::about(&self.0.join("maps")).map_err(|error| self.unreadable("about", error))?;
        let about = about.ok_or_else(|| PinnedError::Missing { directory: self.0.into() })?;
        if about.abi_version != ABI_VERSION {
            return Err(PinnedError::Foreign { directory: self.0.into(), found: about.abi_version });
        }
        let node: Array<MapData, [u8; size_of::<abi::Node>()]> = self.map("node")?;
        let bytes = node.get(&0, 0).map_err(|error| self.unreadable("node", error))?;
        const { assert!(std::mem::offset_of!(abi::Node, settings) == 0) };
        // SAFETY: the node begins with its settings, plain integers for which any bytes are a value; bytes need not be aligned.
        Ok(unsafe { bytes.as_ptr().cast::<Settings>().read_unaligned() })
    }
}

/// The data plane whose pins are in this directory. `links` are the interfaces of the namespace that it is in, where they are
/// known.
pub fn read(directory: &Path, links: Option<&Links>) -> Result<Status, PinnedError> {
    let pins = Pins(directory);
    let settings = pins.settings()?;
    let counters: PerCpuArray<MapData, Traffic> = pins.map("backend_counters")?;
    let traffic = |id: u32| {
        let values = counters.get(&id, 0).map_err(|error| pins.unreadable("backend_counters", error))?;
        Ok(values.iter().fold(Traffic::default(), |sum, cpu| sum + *cpu))
    };
    let mut services = Services::open(&pins, links, settings.route_lifetime)?.all(&traffic)?;
    services.sort_by_key(|service| (service.vip, service.protocol, service.port));
    // Of every id, so that what went since the last agent's start is in the sum until its id is given out again.
    let all = (0..counters.len()).try_fold(Traffic::default(), |sum, id| Ok(sum + traffic(id)?))?;
    Ok(Status {
        source: Source::Maps,
        version: env!("CARGO_PKG_VERSION").into(),
        node_addresses: [settings.node_v4, settings.node_v6]
            .into_iter()
            .filter(|address| *address != Address::default())
            .map(IpAddr::from)
            .collect(),
        programs: programs(directory, links),
        services,
        reasons: reasons(&pins, all)?,
        maps: maps(&pins),
        ..Status::default()
    })
}

/// What services consist of.
struct Services<'a> {
    services: Vec<(ServiceKey, abi::Service)>,
    endpoints: BpfHash<MapData, ServiceKey, abi::Endpoint>,
    backends: Array<MapData, abi::Backend>,
    members: Array<MapData, abi::Member>,
    slots: Array<MapData, abi::SlotBlock>,
    pins: &'a Pins<'a>,
    links: Option<&'a Links>,
    hertz: u64,
}

impl<'a> Services<'a> {
    fn open(pins: &'a Pins<'a>, links: Option<&'a Links>, hertz: u64) -> Result<Self, PinnedError> {
        Ok(Self {
            services: pins.entries("services")?,
            endpoints: pins.map("endpoints")?,
            backends: pins.map("backends")?,
            members: pins.map("members")?,
            slots: pins.map("maglev")?,
            pins,
            links,
            hertz: hertz.max(1),
        })
    }

    fn all(&self, traffic: &impl Fn(u32) -> Result<Traffic, PinnedError>) -> Result<Vec<ServiceStatus>, PinnedError> {
        self.services.iter().map(|(key, value)| self.one(key, value, traffic)).collect()
    }

    fn one(
        &self,
        key: &ServiceKey,
        value: &abi::Service,
        traffic: &impl Fn(u32) -> Result<Traffic, PinnedError>,
    ) -> Result<ServiceStatus, PinnedError> {
        let count = usize::from(value.backends_count);
        let (shares, moved_slots) = if count == 0 { (Vec::new(), 0) } else { self.shares(value, count)? };
        let mut backends = Vec::with_capacity(count);
        for (position, slots) in (0..).zip(&shares) {
            let at = value.backends + position;
            let backend = self.backends.get(&at, 0).map_err(|error| self.pins.unreadable("backends", error))?;
            let member = self.members.get(&backend.id, 0).map_err(|error| self.pins.unreadable("members", error))?;
            // What was a backend leaves its entry behind.
            let is_one = member.flags & member_flags::USED != 0
                && member.service == *key
                && u32::from(member.position) == position;
            if is_one {
                backends.push(self.backend(&backend, &member, *slots, traffic(backend.id)?));
            }
        }
        let affinity = (value.flags & service_flags::AFFINITY != 0)
            .then(|| (u64::from(value.affinity) << abi::COARSE_SHIFT) / self.hertz);
        let sum = |of: fn(&BackendStatus) -> u64| backends.iter().map(of).sum();
        Ok(ServiceStatus {
            name: None,
            vip: key.address.into(),
            protocol: if key.protocol == protocol::TCP { Protocol::Tcp } else { Protocol::Udp },
            port: key.port,
            replies: self.replies(key, value, backends.first()),
            session_affinity_seconds: affinity,
            health_check: None,
            fails_open: false,
            packets: sum(|backend| backend.packets),
            bytes: sum(|backend| backend.bytes),
            reply_packets: sum(|backend| backend.reply_packets),
            reply_bytes: sum(|backend| backend.reply_bytes),
            slots: if count == 0 { 0 } else { 1 << value.slots_log2 },
            moved_slots,
            dropped_owners: 0,
            backends,
        })
    }

    /// How many slots each backend owns, and how many have earlier owners.
    fn shares(&self, value: &abi::Service, count: usize) -> Result<(Vec<u32>, u32), PinnedError> {
        let (mut shares, mut moved) = (vec![0; count], 0);
        let first = value.slots / abi::SLOTS_PER_BLOCK as u32;
        let blocks = (1u32 << value.slots_log2).div_ceil(abi::SLOTS_PER_BLOCK as u32);
        for block in first..first.saturating_add(blocks) {
            let block = self.slots.get(&block, 0).map_err(|error| self.pins.unreadable("maglev", error))?;
            for slot in block.slots {
                moved += u32::from(slot.history != 0);
                if let Some(share) = shares.get_mut(usize::from(slot.owner)) {
                    *share += 1;
                }
            }
        }
        Ok((shares, moved))
    }

    fn backend(&self, backend: &abi::Backend, member: &abi::Member, slots: u32, traffic: Traffic) -> BackendStatus {
        let rung = match backend.rung {
            rung::REDIRECT => Some(Rung::Redirect),
            rung::PEER => Some(Rung::Peer),
            rung::STACK => Some(Rung::Stack),
            rung::DIRECT => Some(Rung::Direct),
            _ => None,
        };
        let link = self.links.and_then(|links| links.by_index(backend.ifindex));
        let opaque = backend.flags & abi::backend_flags::OPAQUE != 0;
        BackendStatus {
            address: member.pod.into(),
            port: backend.port,
            weight: Some(member.weight),
            drain: member.flags & member_flags::DRAIN != 0,
            slots,
            rung,
            state: if rung.is_some() { BackendState::Ready } else { BackendState::Unknown },
            opaque: opaque.then(|| "found by an agent before".into()),
            reason: None,
            interface: link.map(|link| link.name.clone()),
            vip_on_lo: None,
            health: None,
            packets: traffic.packets,
            bytes: traffic.bytes,
            reply_packets: traffic.reply_packets,
            reply_bytes: traffic.reply_bytes,
        }
    }

    fn replies(&self, key: &ServiceKey, value: &abi::Service, backend: Option<&BackendStatus>) -> ReplyMode {
        let endpoint = backend.and_then(|backend| {
            self.endpoints.get(&ServiceKey::new(backend.address.into(), backend.port, key.protocol), 0).ok()
        });
        let is_static = endpoint.is_some_and(|endpoint| endpoint.flags & endpoint_flags::STATIC != 0);
        let is_direct = backend.is_some_and(|backend| backend.rung == Some(Rung::Direct));
        match key.protocol {
            protocol::TCP => ReplyMode::Static,
            _ if value.flags & service_flags::RECORD != 0 => ReplyMode::Recorded,
            _ if is_static || is_direct => ReplyMode::Static,
            _ => ReplyMode::None,
        }
    }
}

fn reasons(pins: &Pins, traffic: Traffic) -> Result<Vec<ReasonStatus>, PinnedError> {
    let counters: PerCpuArray<MapData, Counter> = pins.map("reasons")?;
    let status = |(reason, name, doc): &(Reason, &str, &str)| {
        let values = counters.get(&reason.index(), 0).map_err(|error| pins.unreadable("reasons", error))?;
        let counted = values.iter().fold((0, 0), |(packets, bytes), cpu| (packets + cpu.packets, bytes + cpu.bytes));
        let (packets, bytes) = match reason {
            Reason::Forwarded => (traffic.packets, traffic.bytes),
            Reason::Replied => (traffic.reply_packets, traffic.reply_bytes),
            _ => counted,
        };
        Ok(ReasonStatus { name: (*name).into(), packets, bytes, doc: (*doc).into() })
    };
    Reason::ALL.iter().map(status).collect()
}

/// The maps that are there. What cannot be counted has no entries.
fn maps(pins: &Pins) -> Vec<MapStatus> {
    let known = Sizes::new(&Capacities::default()).maps(1);
    let status = |name: &str| {
        let data = pins.data(name).ok()?;
        let bytes = memory(&data).unwrap_or_default();
        let capacity = u64::from(data.info().ok()?.max_entries());
        // A bucket of these holds several.
        let capacity = match name {
            "flows" => capacity * flow::WAYS as u64,
            "fragments" => capacity * fragments::WAYS as u64,
            _ => capacity,
        };
        let entries = match name {
            "services" => pins.entries::<ServiceKey, abi::Service>(name).ok().map(|entries| entries.len()),
            "vips" => pins.entries::<Address, u32>(name).ok().map(|entries| entries.len()),
            "endpoints" => pins.entries::<ServiceKey, abi::Endpoint>(name).ok().map(|entries| entries.len()),
            "bypasses" => pins.entries::<abi::BypassKey, abi::Bypass>(name).ok().map(|entries| entries.len()),
            _ => None,
        };
        Some(MapStatus { name: name.into(), entries: entries.map(|entries| entries as u64), capacity, bytes })
    };
    known.into_iter().filter_map(|(name, ..)| status(name)).collect()
}

/// The kernel's account, as bpftool shows it.
fn memory(map: &MapData) -> Option<u64> {
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).ok()?;
    facts.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

/// What is pinned in `links`, as PROGRAM-INTERFACE INDEX.
fn programs(directory: &Path, links: Option<&Links>) -> Vec<ProgramStatus> {
    let names = fs::read_dir(directory.join("links")).into_iter().flatten().flatten();
    let mut pinned: Vec<(u32, String)> = names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (program, ifindex) = name.rsplit_once('-')?;
            Some((ifindex.parse().ok()?, program.to_owned()))
        })
        .collect();
    pinned.sort();
    let status = |(ifindex, name): (u32, String)| {
        let link = links.and_then(|links| links.by_index(ifindex));
        let xdp = link.and_then(|link| link.xdp.first());
        let (attach_point, mode) = match name.as_str() {
            "sluice_xdp" => (
                "xdp",
                xdp.map(|xdp| match xdp.mode {
                    XdpMode::Native | XdpMode::Hardware => AttachMode::Native,
                    XdpMode::Generic => AttachMode::Generic,
                }),
            ),
            "sluice_return" | "sluice_uplink_in" => ("tcx ingress", link.map(|_| AttachMode::Tcx)),
            _ => ("tcx egress", link.map(|_| AttachMode::Tcx)),
        };
        ProgramStatus {
            interface: link.map_or_else(|| format!("index {ifindex}"), |link| link.name.clone()),
            attach_point: attach_point.into(),
            mode,
            program_id: (attach_point == "xdp").then(|| xdp.map(|xdp| xdp.program_id)).flatten(),
            error: mode.is_none().then(|| "its interface is gone, or in another network namespace".into()),
            name,
        }
    };
    pinned.into_iter().map(status).collect()
}
