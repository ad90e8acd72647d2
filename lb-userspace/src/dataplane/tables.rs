//! The maps, typed, and the writes that a plan consists of.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap as BpfHash, Map, MapData, MapError, PerCpuArray, PerCpuValues, xdp::DevMap},
};
use lb_common::{
    abi::{self, Bypass, BypassKey, Counter, ServiceKey, Settings, Traffic, service_flags},
    address::Address,
    agent::{About, Undo, UndoKey},
    flow,
    index::{self, Probe},
    reason::Reason,
};

use super::{DataPlaneError, capacity::Sizes, mapped::Mapped};
use crate::plan::ops::MapOp;

mod adopt;
mod undo;

pub use undo::{Undos, read_undos};

/// The bucket of a hash among two to the power of `log2`.
const fn bucket_of(hash: u64, log2: u32) -> usize {
    ((hash >> 1) >> (63 - log2)) as usize
}

/// Keys of one index bucket with their values.
type BucketContent<const V: usize> = Vec<(ServiceKey, [u64; V])>;

/// An index, which itself is what the agent knows of its buckets.
struct IndexWriter<const V: usize> {
    memory: Mapped<index::Bucket<V>>,
    /// What stands in buckets that have more than fits.
    overfull: HashMap<usize, BucketContent<V>>,
    log2: u32,
    seed: u64,
}

impl<const V: usize> IndexWriter<V> {
    fn change(&mut self, key: &ServiceKey, value: Option<[u64; V]>) {
        let at = bucket_of(index::hash(key, self.seed), self.log2);
        let bucket = &self.memory.elements()[at];
        let mut content = self.overfull.remove(&at).unwrap_or_else(|| bucket.entries().collect());
        match (content.iter().position(|(k, _)| k == key), value) {
            (Some(at), Some(value)) => content[at].1 = value,
            (Some(at), None) => {
                content.remove(at);
            }
            (None, Some(value)) => content.push((*key, value)),
            (None, None) => {}
        }
        bucket.write(content.iter().map(|(key, value)| (key, *value)));
        if content.len() > index::WAYS {
            self.overfull.insert(at, content);
        }
    }

    /// The value of a key; `None` where only the hash knows whether it has one.
    fn get(&self, key: &ServiceKey) -> Option<Option<[u64; V]>> {
        match index::probe(&self.memory.elements()[bucket_of(index::hash(key, self.seed), self.log2)], key) {
            Probe::Found(value) => Some(Some(value)),
            Probe::Absent => Some(None),
            Probe::AskHash => None,
        }
    }
}

/// The filter in front of services and VIPs, and who needs each of its bits to be clear.
struct FilterWriter {
    users: HashMap<(usize, u32), HashSet<ServiceKey>>,
    seed: u64,
}

impl FilterWriter {
    /// The addresses of these keys may be VIPs, and no others.
    fn new<'a>(filter: &index::Filter, seed: u64, keys: impl Iterator<Item = &'a ServiceKey>) -> Self {
        let mut users: HashMap<(usize, u32), HashSet<ServiceKey>> = HashMap::new();
        let mut words = [u64::MAX; index::FILTER_WORDS];
        for key in keys {
            let (word, bit) = index::filter_position(key.address, seed);
            users.entry((word, bit)).or_default().insert(*key);
            words[word] &= !(1 << bit);
        }
        for (word, value) in filter.words.iter().zip(words) {
            word.store(value);
        }
        Self { users, seed }
    }

    /// Called before the key can be found in the tables.
    fn add(&mut self, filter: &index::Filter, key: &ServiceKey) {
        let (word, bit) = index::filter_position(key.address, self.seed);
        self.users.entry((word, bit)).or_default().insert(*key);
        let word = &filter.words[word];
        word.store(word.load() & !(1 << bit));
    }

    /// Called after the key has gone from the tables.
    fn remove(&mut self, filter: &index::Filter, key: &ServiceKey) {
        let position @ (word, bit) = index::filter_position(key.address, self.seed);
        let Some(users) = self.users.get_mut(&position) else { return };
        users.remove(key);
        if users.is_empty() {
            self.users.remove(&position);
            let word = &filter.words[word];
            word.store(word.load() | 1 << bit);
        }
    }
}

/// All maps of the data plane.
pub struct Tables {
    services: BpfHash<MapData, ServiceKey, abi::Service>,
    vips: BpfHash<MapData, Address, u32>,
    service_index: IndexWriter<3>,
    vip_filter: FilterWriter,
    backend_vips: Mapped<ServiceKey>,
    slots: Mapped<abi::Slot>,
    histories: Mapped<abi::History>,
    backends: Mapped<abi::Backend>,
    tx_ports: DevMap<MapData>,
    endpoints: BpfHash<MapData, ServiceKey, abi::Endpoint>,
    endpoint_index: IndexWriter<4>,
    bypasses: BpfHash<MapData, BypassKey, Bypass>,
    bypass_counts: Mapped<abi::BypassCount>,
    flows: Mapped<flow::Bucket>,
    uplinks: BpfHash<MapData, u32, abi::Uplink>,
    node: Mapped<abi::Node>,
    reasons: PerCpuArray<MapData, Counter>,
    backend_counters: PerCpuArray<MapData, Traffic>,
    members: Mapped<abi::Member>,
    about: Array<MapData, About>,
    undo: BpfHash<MapData, UndoKey, Undo>,
    written: Settings,
}

macro_rules! take {
    ($object:expr, $name:literal) => {
        $object.take_map($name).ok_or(DataPlaneError::ForeignObject { what: concat!("map ", $name) })?.try_into()?
    };
}

fn mapped<T>(object: &Ebpf, name: &'static str, elements: usize) -> Result<Mapped<T>, DataPlaneError> {
    match object.map(name) {
        Some(Map::Array(data)) => {
            Mapped::new(data, elements).map_err(|source| DataPlaneError::Memory { map: name, source })
        }
        _ => Err(DataPlaneError::ForeignObject { what: name }),
    }
}

impl Tables {
    /// Takes fresh maps out of a loaded object, and writes these settings.
    pub fn new(object: &mut Ebpf, sizes: &Sizes, settings: Settings) -> Result<Self, DataPlaneError> {
        let mut tables = Self::open(object, sizes, settings)?;
        tables.vip_filter = FilterWriter::new(tables.node.vip_filter(), settings.table_seed, [].iter());
        tables.node.write_settings(settings);
        Ok(tables)
    }

    /// As if nothing were in the maps, whose indexes and filter are built with the seed of these settings.
    fn open(object: &mut Ebpf, sizes: &Sizes, settings: Settings) -> Result<Self, DataPlaneError> {
        let seed = settings.table_seed;
        let service_index = IndexWriter {
            memory: mapped(object, "service_index", 1 << sizes.service_index_log2)?,
            overfull: HashMap::new(),
            log2: sizes.service_index_log2,
            seed,
        };
        let endpoint_index = IndexWriter {
            memory: mapped(object, "endpoint_index", 1 << sizes.endpoint_index_log2)?,
            overfull: HashMap::new(),
            log2: sizes.endpoint_index_log2,
            seed,
        };
        let node: Mapped<abi::Node> = mapped(object, "node", 1)?;
        Ok(Self {
            slots: mapped(object, "maglev", sizes.slot_blocks as usize * abi::SLOTS_PER_BLOCK)?,
            histories: mapped(object, "histories", sizes.histories as usize)?,
            backends: mapped(object, "backends", sizes.backend_entries as usize)?,
            bypass_counts: mapped(object, "endpoint_bypasses", sizes.backends as usize)?,
            flows: mapped(object, "flows", 1 << sizes.flows_log2)?,
            service_index,
            vip_filter: FilterWriter { users: HashMap::new(), seed },
            endpoint_index,
            services: take!(object, "services"),
            vips: take!(object, "vips"),
            backend_vips: mapped(object, "backend_vips", sizes.backends as usize)?,
            tx_ports: take!(object, "tx_ports"),
            endpoints: take!(object, "endpoints"),
            bypasses: take!(object, "bypasses"),
            uplinks: take!(object, "uplinks"),
            node,
            reasons: take!(object, "reasons"),
            backend_counters: take!(object, "backend_counters"),
            members: mapped(object, "members", sizes.backends as usize)?,
            about: take!(object, "about"),
            undo: take!(object, "undo"),
            written: settings,
        })
    }

    /// Settings as they are.
    pub const fn settings(&self) -> &Settings {
        &self.written
    }

    /// Changes settings while the programs run.
    pub fn change_settings(&mut self, change: impl FnOnce(&mut Settings)) -> Result<(), DataPlaneError> {
        let mut settings = self.written;
        change(&mut settings);
        if settings != self.written {
            self.node.write_settings(settings);
            self.written = settings;
        }
        Ok(())
    }

    /// Names an uplink, so that replies may leave by it.
    pub fn set_uplink(&mut self, ifindex: u32, mac: [u8; 6]) -> Result<(), DataPlaneError> {
        Ok(self.uplinks.insert(ifindex, abi::Uplink { mac, pad: [0; 2] }, 0)?)
    }

    /// Forgets an uplink.
    pub fn remove_uplink(&mut self, ifindex: u32) -> Result<(), DataPlaneError> {
        ignore_missing(self.uplinks.remove(&ifindex))
    }

    /// Forgets uplinks that are not among these: they went away while no agent ran.
    pub fn keep_uplinks(&mut self, ifindexes: &[u32]) -> Result<(), DataPlaneError> {
        let named: Vec<u32> = self.uplinks.keys().filter_map(Result::ok).collect();
        named.iter().filter(|named| !ifindexes.contains(named)).try_for_each(|gone| self.remove_uplink(*gone))
    }

    /// Applies one write.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), DataPlaneError> {
        match op {
            // Interface 0 empties the port (kernel/bpf/devmap.c, __dev_map_update_elem).
            MapOp::SetTxPort { id, ifindex } => {
                self.tx_ports.set(*id, *ifindex, None, 0).map_err(|source| DataPlaneError::Port { id: *id, source })?;
            }
            MapOp::WriteBackends { offset, backends } => {
                for (at, backend) in (*offset as usize..).zip(backends) {
                    self.backends.write(at, *backend);
                }
            }
            MapOp::WriteSlots { offset, slots } => {
                for (at, slot) in (*offset as usize..).zip(slots.slots()) {
                    self.slots.write(at, slot);
                }
            }
            MapOp::UpdateSlots { offset, slots } => {
                for (at, slot) in slots {
                    self.slots.write((*offset + *at) as usize, *slot);
                }
            }
            MapOp::WriteHistory { at, value } => self.histories.write(*at as usize, *value),
            MapOp::SetBackendVip { id, key } => self.backend_vips.write(*id as usize, *key),
            MapOp::SetMember { id, value } => self.members.write_member(*id as usize, value),
            MapOp::SetEndpoint { key, value } => {
                self.endpoints.insert(key, value, 0)?;
                self.endpoint_index.change(key, Some(endpoint_words(*value)));
            }
            MapOp::RemoveEndpoint { key } => {
                self.endpoint_index.change(key, None);
                ignore_missing(self.endpoints.remove(key))?;
            }
            MapOp::SetService { key, value } => {
                self.vip_filter.add(self.node.vip_filter(), key);
                self.services.insert(key, value, 0)?;
                self.service_index.change(key, Some(service_words(*value)));
            }
            MapOp::RemoveService { key } => {
                self.service_index.change(key, None);
                ignore_missing(self.services.remove(key))?;
                self.vip_filter.remove(self.node.vip_filter(), key);
            }
            MapOp::SetVip { address, services: 0 } => {
                self.service_index.change(&ServiceKey::of_vip(*address), None);
                ignore_missing(self.vips.remove(address))?;
                self.vip_filter.remove(self.node.vip_filter(), &ServiceKey::of_vip(*address));
            }
            MapOp::SetVip { address, services } => {
                self.vip_filter.add(self.node.vip_filter(), &ServiceKey::of_vip(*address));
                self.vips.insert(address, services, 0)?;
                let value = abi::Service { flags: service_flags::VIP, ..abi::Service::default() };
                self.service_index.change(&ServiceKey::of_vip(*address), Some(service_words(value)));
            }
            MapOp::ClearBackendCounters { id } => clear(&mut self.backend_counters, *id)?,
        }
        Ok(())
    }

    /// The endpoint at a key, as the return path sees it.
    pub fn endpoint(&self, key: &ServiceKey) -> Option<abi::Endpoint> {
        match self.endpoint_index.get(key) {
            Some(words) => words.map(endpoint_of),
            None => self.endpoints.get(key, 0).ok(),
        }
    }

    /// Records a connection that reaches an endpoint without a VIP, unless it is recorded.
    pub fn record_bypass(&mut self, key: &BypassKey, endpoint: u32, since: u32) -> Result<(), DataPlaneError> {
        self.insert_bypass(key, Bypass::new(abi::NO_BACKEND, since), endpoint)
    }

    /// Counted before it is there, as the programs do.
    fn insert_bypass(&mut self, key: &BypassKey, value: Bypass, endpoint: u32) -> Result<(), DataPlaneError> {
        if self.bypasses.get(key, 0).is_ok() {
            return Ok(());
        }
        let count = &self.bypass_counts.elements()[endpoint as usize].count;
        count.add(1);
        self.bypasses.insert(key, value, aya_flags::NO_EXIST).or_else(|error| {
            count.add(u64::MAX);
            if self.bypasses.get(key, 0).is_ok() { Ok(()) } else { Err(error.into()) }
        })
    }

    /// Every recorded connection.
    pub fn bypasses(&self) -> Vec<(BypassKey, Bypass)> {
        self.bypasses.iter().filter_map(Result::ok).collect()
    }

    /// Takes a record away; `endpoint` is the id of its endpoint.
    pub fn remove_bypass(&mut self, key: &BypassKey, endpoint: Option<u32>) -> Result<(), DataPlaneError> {
        match self.bypasses.remove(key) {
            Ok(()) => {
                if let Some(count) = endpoint.and_then(|id| self.bypass_counts.elements().get(id as usize)) {
                    count.count.add(u64::MAX);
                }
                Ok(())
            }
            error => ignore_missing(error),
        }
    }

    /// No records of an endpoint are left: its id may name another one, of which nothing is known.
    pub fn clear_bypass_count(&self, endpoint: u32) {
        self.bypass_counts.elements()[endpoint as usize].count.store(0);
        self.watch(endpoint).clear();
    }

    /// Whether an endpoint's sockets are seen, as the return programs have counted.
    pub fn watch(&self, endpoint: u32) -> &abi::Watch {
        &self.bypass_counts.elements()[endpoint as usize].watch
    }

    /// Removes what the flow cache has of these endpoints, services and backends.
    pub fn forget_flows(&self, endpoints: &[u32], services: &[u32], backends: &[u32]) {
        let [endpoints, services, backends] =
            [endpoints, services, backends].map(|ids| ids.iter().copied().collect::<HashSet<u32>>());
        for bucket in self.flows.elements() {
            for entry in &bucket.entries {
                if let Some((key, backend, _)) = flow::snapshot(entry)
                    && (match key.kind() {
                        flow::Kind::Udp => &endpoints,
                        flow::Kind::Tcp | flow::Kind::Affinity => &services,
                    }
                    .contains(&key.parts().0)
                        || backends.contains(&backend))
                {
                    flow::remove(entry, &key);
                }
            }
        }
    }

    /// Removes records that `is_over` says so of, by key, backend and coarse time of last use, in at most `buckets` buckets
    /// from `first` on. Where the next part begins; 0 after the last.
    pub fn sweep_flows(
        &self,
        first: usize,
        buckets: usize,
        mut is_over: impl FnMut(&flow::Key, u32, u32) -> bool,
    ) -> usize {
        let all = self.flows.elements();
        let end = first.saturating_add(buckets).min(all.len());
        for entry in all.get(first..end).unwrap_or_default().iter().flat_map(|bucket| &bucket.entries) {
            if let Some((key, backend, since)) = flow::snapshot(entry)
                && is_over(&key, backend, since)
            {
                // A record that was used or written meanwhile: the next packet makes it anew.
                flow::remove(entry, &key);
            }
        }
        if end == all.len() { 0 } else { end }
    }

    /// Removes what the flow cache has of who owns TCP connections of these services, but for the records of `opaque`
    /// backends, by id: nobody else can tell whose those are.
    pub fn forget_owners(&self, services: &HashSet<u32>, opaque: &HashSet<u32>) {
        for entry in self.flows.elements().iter().flat_map(|bucket| &bucket.entries) {
            if let Some((key, backend, _)) = flow::snapshot(entry)
                && key.kind() == flow::Kind::Tcp
                && services.contains(&key.parts().0)
                && !opaque.contains(&backend)
            {
                flow::remove(entry, &key);
            }
        }
    }

    /// Packets and bytes by reason.
    pub fn reasons(&self) -> Result<Vec<(Reason, Counter)>, DataPlaneError> {
        Reason::ALL
            .iter()
            .map(|(reason, ..)| {
                let values = self.reasons.get(&reason.index(), 0)?;
                let sum = values.iter().fold(Counter::default(), |sum, cpu| Counter {
                    packets: sum.packets + cpu.packets,
                    bytes: sum.bytes + cpu.bytes,
                });
                Ok((*reason, sum))
            })
            .collect()
    }

    /// Forwarded packets of a backend of one service.
    pub fn backend_traffic(&self, id: u32) -> Result<Traffic, DataPlaneError> {
        Ok(sum(&self.backend_counters.get(&id, 0)?))
    }

    /// Recorded UDP clients and bypasses, counted.
    pub fn fill(&self) -> (u32, u32) {
        let flows = self.flows.elements().iter().flat_map(|b| &b.entries).filter_map(flow::snapshot).count();
        (flows as u32, self.bypasses.keys().count() as u32)
    }

    /// Drops what a pod's address is recorded under.
    pub fn forget_pod(&mut self, pod: IpAddr, endpoint_of: impl Fn(&BypassKey) -> Option<u32>) {
        let address = Address::from(pod);
        let gone: BTreeMap<usize, BypassKey> =
            self.bypasses().into_iter().map(|(key, _)| key).filter(|key| key.pod == address).enumerate().collect();
        for key in gone.values() {
            let _ = self.remove_bypass(key, endpoint_of(key));
        }
    }
}

mod aya_flags {
    /// `BPF_NOEXIST` (include/uapi/linux/bpf.h).
    pub const NO_EXIST: u64 = 1;
}

fn service_words(value: abi::Service) -> [u64; 3] {
    // SAFETY: both are 24 bytes of plain integers without padding.
    unsafe { std::mem::transmute(value) }
}

fn endpoint_words(value: abi::Endpoint) -> [u64; 4] {
    // SAFETY: both are 32 bytes of plain integers without padding.
    unsafe { std::mem::transmute(value) }
}

fn endpoint_of(words: [u64; 4]) -> abi::Endpoint {
    // SAFETY: both are 32 bytes of plain integers without padding.
    unsafe { std::mem::transmute(words) }
}

fn sum(values: &PerCpuValues<Traffic>) -> Traffic {
    values.iter().fold(Traffic::default(), |sum, cpu| sum + *cpu)
}

fn clear(map: &mut PerCpuArray<MapData, Traffic>, id: u32) -> Result<(), DataPlaneError> {
    let cpus = map.get(&id, 0)?.len();
    Ok(map.set(id, PerCpuValues::try_from(vec![Traffic::default(); cpus]).map_err(MapError::from)?, 0)?)
}

/// Removing what is not there is no error: the wanted state is reached.
fn ignore_missing(result: Result<(), MapError>) -> Result<(), DataPlaneError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => Ok(result?),
    }
}
