//! The loaded object with the tables of a [`Content`], driven by `BPF_PROG_TEST_RUN`. Needs privileges.

mod complete;
pub mod shared;

use std::path::PathBuf;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, ProgramArray, xdp::DevMap},
    programs::{Program, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp},
    util::nr_cpus,
};
use lb_common::{
    abi::{
        Bucket, Bypass, BypassCount, BypassKey, Counter, Node, Route, SLOTS_PER_BLOCK, ServiceKey, Settings, SlotBlock,
        Traffic, Uplink, program,
    },
    address::Address,
    flow, fragments,
    holder::{Conflict, Holder, HolderKey, VirtualMac, VirtualMacKey},
    index::{self, EndpointBucket, ServiceBucket},
    reason::{REASONS, Reason},
};
use lb_userspace::dataplane::{object::CALLED_PROGRAMS, summed::Summed};
use shared::Shared;

use crate::world::{Outcome, Snapshot, content::Content, forget_fragments, fragment_records, records};

/// Loopback, which is in every network namespace.
const LOOPBACK: u32 = 1;
/// Longest frame that a program may leave: the longest IP packet, tags, and what an answer adds.
const LONGEST: usize = 70_000;
/// What the remembered routes take.
pub const ROUTE_MTU: u32 = 1400;

/// The object that tests load, or why there is none. Where `SLUICE_REQUIRE_PRIVILEGES` is set, that fails the test.
pub fn object() -> Option<PathBuf> {
    object_in("SLUICE_EBPF_OBJECT")
}

/// The same of the build with the next ABI.
pub fn next_object() -> Option<PathBuf> {
    object_in("SLUICE_NEXT_OBJECT")
}

fn object_in(variable: &str) -> Option<PathBuf> {
    // SAFETY: takes nothing, touches nothing.
    let root = unsafe { libc::geteuid() } == 0;
    let path = std::env::var_os(variable).map(PathBuf::from);
    let missing = match &path {
        _ if !root => "root's privileges are missing".to_owned(),
        None => format!("{variable} names no object: run by `cargo xtask test`"),
        Some(path) if !path.exists() => format!("{variable} names a file that is not there"),
        Some(_) => return path,
    };
    assert!(std::env::var_os("SLUICE_REQUIRE_PRIVILEGES").is_none(), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// The programs and maps of one loaded object.
pub struct Kernel {
    ebpf: Ebpf,
    out: Vec<u8>,
    flows: Shared<flow::Bucket>,
    fragments: Shared<fragments::Bucket>,
    table_seed: u64,
    bypass_counts: Shared<BypassCount>,
}

/// Keeps this thread on one CPU, so that per-CPU limiters and counters are one CPU's.
pub fn stay_on_cpu(cpu: usize) {
    // SAFETY: a plain bit set, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: within the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives across the call; 0 is this thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    assert_eq!(result, 0, "pinning to CPU {cpu}: {}", std::io::Error::last_os_error());
}

impl Kernel {
    /// Loads the object, fills its maps and loads the XDP and the return program. The calling thread stays on one CPU.
    pub fn load(object: &PathBuf, content: &Content) -> Self {
        let mut bytes = std::fs::read(object).expect("the object can be read");
        if let Some(summed) = Summed::of_kernel() {
            assert_eq!(summed.fill(&mut bytes), 4, "one place in each program that rewrites replies");
        }
        Self::load_bytes(&bytes, content)
    }

    /// As a kernel that has nothing to say of checksums gets it.
    pub fn load_as_compiled(object: &PathBuf, content: &Content) -> Self {
        Self::load_bytes(&std::fs::read(object).expect("the object can be read"), content)
    }

    fn load_bytes(bytes: &[u8], content: &Content) -> Self {
        stay_on_cpu(0);
        let (index_log2, flows_log2) = (content.index_log2, content.flows_log2);
        let mut loader = EbpfLoader::new();
        for (name, entries) in [
            ("services", content.services.len()),
            ("vips", content.vips.len()),
            ("service_index", 1 << index_log2),
            ("backend_vips", content.backend_vips.len()),
            ("maglev", content.slots.len() / SLOTS_PER_BLOCK),
            ("histories", content.histories.len()),
            ("backends", content.backends.len()),
            ("tx_ports", content.ports.len()),
            ("endpoints", content.endpoints.len()),
            ("endpoint_index", 1 << index_log2),
            ("bypasses", content.bypasses_capacity),
            ("endpoint_bypasses", content.endpoint_ids),
            ("flows", 1 << flows_log2),
            ("fragments", 1 << content.fragments_log2),
            ("holders", content.holders.len()),
            ("backend_counters", content.backend_vips.len()),
        ] {
            loader.map_max_entries(name, entries as u32);
        }
        loader.override_global("SERVICE_INDEX_LOG2", &content.index_log2, true);
        loader.override_global("ENDPOINT_INDEX_LOG2", &content.index_log2, true);
        loader.override_global("FLOWS_LOG2", &content.flows_log2, true);
        loader.override_global("FRAGMENTS_LOG2", &content.fragments_log2, true);
        let mut ebpf = loader.load(bytes).expect("the object loads");
        fill_tables(&mut ebpf, content);
        fill_indexes(&ebpf, content);
        for name in ["sluice_xdp", "sluice_xdp_slow", "sluice_xdp_fragment", "sluice_xdp_neighbor"] {
            let xdp: &mut Xdp = ebpf.program_mut(name).expect("in the object").try_into().expect("an XDP program");
            xdp.load().expect("the verifier accepts the XDP programs");
        }
        for name in [
            "sluice_return",
            "sluice_return_slow",
            "sluice_return_fragment",
            "sluice_uplink_out",
            "sluice_out_fragment",
            "sluice_bypass",
        ] {
            let tc: &mut SchedClassifier = ebpf.program_mut(name).expect("in the object").try_into().expect("tc");
            tc.load().expect("the verifier accepts the tc programs");
        }
        set_slow_path(&mut ebpf);
        let flows = Shared::of(&ebpf, "flows", 1 << flows_log2);
        let fragments = Shared::of(&ebpf, "fragments", 1 << content.fragments_log2);
        let bypass_counts = Shared::of(&ebpf, "endpoint_bypasses", content.endpoint_ids);
        let table_seed = content.settings.table_seed;
        Self { ebpf, out: vec![0; LONGEST], flows, fragments, table_seed, bypass_counts }
    }

    /// Runs `sluice_xdp` on a frame of at least 14 bytes.
    pub fn steer(&mut self, packet: &[u8]) -> Outcome {
        let program: &Xdp = self.ebpf.program("sluice_xdp").expect("loaded").try_into().expect("an XDP program");
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut self.out), ..Default::default() };
        let result = program.test_run(options).expect("the kernel runs the program");
        let bytes = &self.out[..result.data_size_out as usize];
        Outcome::new(result.return_value, bytes.to_vec())
    }

    /// Takes the slow path out of its place, or puts it back.
    pub fn set_slow_path(&mut self, there: bool) {
        match there {
            true => set_slow_path(&mut self.ebpf),
            false => {
                let mut programs: ProgramArray<_> = map_of(&mut self.ebpf, "programs");
                programs.clear_index(&program::SLOW).expect("it was there");
            }
        }
    }

    /// Runs a tc program on a frame: its action, and the frame after.
    pub fn run_tc(&mut self, program: &str, packet: &[u8]) -> (i32, Vec<u8>) {
        let program: &SchedClassifier = self.ebpf.program(program).expect("loaded").try_into().expect("tc");
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut self.out), ..Default::default() };
        let TestRunResult { return_value, data_size_out, .. } = program.test_run(options).expect("the kernel runs it");
        (return_value as i32, self.out[..data_size_out as usize].to_vec())
    }

    /// The same on a frame whose sum the kernel knows beside, and verifies after. `None` where this kernel cannot.
    pub fn run_tc_complete(&mut self, program: &str, packet: &[u8]) -> Option<(i32, Vec<u8>)> {
        let program: &SchedClassifier = self.ebpf.program(program).expect("loaded").try_into().expect("tc");
        match complete::run(program, packet, &mut self.out) {
            Ok((action, length)) => Some((action, self.out[..length].to_vec())),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                eprintln!("skipped: no test runs on complete sums before Linux 6.16");
                None
            }
            Err(error) => panic!("the sum beside the packet is not the packet's: {error}"),
        }
    }

    /// What packets have changed, and whether the coarse clock moved while they did.
    pub fn snapshot(&self) -> (Snapshot, bool) {
        let bypasses: HashMap<&MapData, BypassKey, Bypass> = self.map("bypasses");
        let bypasses = bypasses.iter().map(|entry| entry.expect("map iteration")).map(|(k, v)| (k, v.backend));
        let conflicts: HashMap<&MapData, HolderKey, Conflict> = self.map("conflicts");
        let conflicts = conflicts.iter().map(|entry| entry.expect("map iteration"));
        let conflicts = conflicts.map(|(key, conflict)| (key, (conflict.count, conflict.mac)));
        let mut times =
            self.flows.iter().flat_map(|bucket| &bucket.entries).filter_map(flow::snapshot).map(|(.., t)| t);
        let first = times.next();
        let snapshot = Snapshot {
            reasons: self.per_cpu("reasons", |sum: &mut Counter, counter: Counter| {
                sum.packets += counter.packets;
                sum.bytes += counter.bytes;
            }),
            backends: self.per_cpu("backend_counters", |sum: &mut Traffic, traffic| *sum = *sum + traffic),
            bypasses: bypasses.collect(),
            conflicts: conflicts.collect(),
            bypass_counts: self.bypass_counts.iter().map(|count| count.count.load()).collect(),
            flows: self.flows.iter().map(records).collect(),
            fragments: self.fragments.iter().map(fragment_records).collect(),
            tokens: self
                .per_cpu("limiters", |sum: &mut Bucket, bucket: Bucket| {
                    sum.tokens += bucket.tokens;
                    sum.since |= bucket.since;
                })
                .into_iter()
                .map(|bucket| (bucket.tokens, bucket.since != 0))
                .collect::<Vec<_>>()
                .try_into()
                .expect("three classes"),
        };
        (snapshot, times.any(|time| Some(time) != first))
    }

    /// Packets counted under each reason that has any, those of backends under the first two.
    pub fn reasons(&self) -> Vec<(Reason, u64)> {
        let mut traffic = Traffic::default();
        for backend in self.per_cpu("backend_counters", |sum: &mut Traffic, traffic| *sum = *sum + traffic) {
            traffic = traffic + backend;
        }
        let forwarded = [(Reason::Forwarded, traffic.packets), (Reason::Replied, traffic.reply_packets)];
        let counters = self.per_cpu("reasons", |sum: &mut Counter, counter: Counter| sum.packets += counter.packets);
        let pairs = Reason::ALL.iter().zip(counters).map(|(listed, counter)| (listed.0, counter.packets));
        forwarded.into_iter().chain(pairs).filter(|(_, packets)| *packets != 0).collect()
    }

    /// Forgets every packet.
    pub fn reset(&mut self) {
        self.clear::<Counter>("reasons", REASONS as u32);
        self.clear::<Traffic>("backend_counters", u32::MAX);
        self.clear::<Bucket>("limiters", 3);
        let mut bypasses: HashMap<_, BypassKey, Bypass> = map_of(&mut self.ebpf, "bypasses");
        let keys: Vec<_> = bypasses.keys().map(|key| key.expect("map iteration")).collect();
        keys.iter().for_each(|key| bypasses.remove(key).expect("the entry is there"));
        let mut conflicts: HashMap<_, HolderKey, Conflict> = map_of(&mut self.ebpf, "conflicts");
        let keys: Vec<_> = conflicts.keys().map(|key| key.expect("map iteration")).collect();
        keys.iter().for_each(|key| conflicts.remove(key).expect("the entry is there"));
        self.bypass_counts.iter().for_each(|count| count.count.store(0));
        self.fragments.iter().for_each(forget_fragments);
        for entry in self.flows.iter().flat_map(|bucket| &bucket.entries) {
            entry.control.store(0);
            entry.client[0].store(0);
            entry.client[1].store(0);
            entry.value.store(0);
        }
    }

    /// Datagrams that found no socket, by endpoint id.
    pub fn refused(&self) -> Vec<u64> {
        self.bypass_counts.iter().map(|counts| counts.watch.refused()).collect()
    }

    /// Puts a record into `bypasses`, as a program would.
    pub fn add_bypass(&mut self, key: BypassKey, endpoint: u32, backend: u32) {
        map_of::<HashMap<_, BypassKey, Bypass>>(&mut self.ebpf, "bypasses")
            .insert(key, Bypass::new(backend, 0), 0)
            .expect("there is room");
        self.bypass_counts[endpoint as usize].count.add(1);
    }

    /// Puts the record of a datagram there, as its first fragment would have at this time of the kernel's clock.
    pub fn remember_fragment(&self, key: &fragments::Key, record: fragments::Record, clock: fragments::Clock) {
        let bucket = key.hash(self.table_seed) >> 1 >> (63 - self.fragments.len().ilog2());
        fragments::record(&self.fragments[bucket as usize], key, record, clock);
    }

    /// The time of any record of a datagram, in jiffies.
    pub fn fragment_time(&self) -> Option<u32> {
        let entries = self.fragments.iter().flat_map(|bucket| &bucket.entries);
        entries.filter(|entry| entry.control.load() != 0).map(|entry| (entry.used.load() >> 32) as u32).next()
    }

    /// Writes a backend at its place, as the agent would.
    pub fn set_backend(&mut self, place: u32, backend: &lb_common::abi::Backend) {
        map_of::<Array<_, lb_common::abi::Backend>>(&mut self.ebpf, "backends")
            .set(place, backend, 0)
            .expect("within the map");
    }

    /// Makes every record of a datagram older by this many jiffies.
    pub fn age_fragments(&self, jiffies: u32) {
        for entry in self.fragments.iter().flat_map(|bucket| &bucket.entries) {
            let used = entry.used.load();
            entry.used.store_high(((used >> 32) as u32).wrapping_sub(jiffies));
        }
    }

    /// The coarse time of any record in the flow cache.
    pub fn record_time(&self) -> Option<u32> {
        self.flows.iter().flat_map(|bucket| &bucket.entries).find_map(flow::snapshot).map(|(.., time)| time)
    }

    /// Puts a record of this time into the flow cache, as a packet would.
    pub fn remember(&self, key: &flow::Key, backend: u32, now: u32) {
        let bucket = key.hash(self.table_seed) >> 1 >> (63 - self.flows.len().ilog2());
        flow::record(&self.flows[bucket as usize], key, backend, now);
    }

    /// Puts remembered routes to these clients on every CPU, so that no test depends on this machine's routes.
    pub fn add_routes(&mut self, content: &Content, clients: &[Address], macs: ([u8; 6], [u8; 6])) {
        let mut routes: PerCpuArray<_, Route> = map_of(&mut self.ebpf, "routes");
        for client in clients {
            let words = client.words();
            let mixed = (words[0] ^ words[1].rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (destination_mac, source_mac) = macs;
            let epoch = content.settings.route_epoch;
            let (ifindex, mtu) = (LOOPBACK, ROUTE_MTU);
            let route = Route { client: *client, epoch, ifindex, mtu, destination_mac, source_mac, ..Route::default() };
            routes.set((mixed >> 54) as u32, every_cpu(route), 0).expect("within the map");
        }
    }

    fn map<'a, M: TryFrom<&'a aya::maps::Map, Error = aya::maps::MapError>>(&'a self, name: &str) -> M {
        self.ebpf.map(name).expect("in the object").try_into().expect("of this type")
    }

    fn per_cpu<T: aya::Pod + Default>(&self, name: &str, add: impl Fn(&mut T, T)) -> Vec<T> {
        let array: PerCpuArray<&MapData, T> = self.map(name);
        let sum = |values: PerCpuValues<T>| {
            let mut sum = T::default();
            values.iter().for_each(|value| add(&mut sum, *value));
            sum
        };
        array.iter().map(|values| sum(values.expect("array elements are there"))).collect()
    }

    fn clear<T: aya::Pod + Default>(&mut self, name: &str, entries: u32) {
        let mut array: PerCpuArray<_, T> = map_of(&mut self.ebpf, name);
        for index in 0..array.len().min(entries) {
            array.set(index, every_cpu(T::default()), 0).expect("within the map");
        }
    }
}

fn every_cpu<T: aya::Pod>(value: T) -> PerCpuValues<T> {
    PerCpuValues::try_from(vec![value; nr_cpus().expect("the kernel says how many CPUs")]).expect("one for each CPU")
}

fn map_of<'a, M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>>(ebpf: &'a mut Ebpf, name: &str) -> M {
    ebpf.map_mut(name).expect("in the object").try_into().expect("of this type")
}

fn set_slow_path(ebpf: &mut Ebpf) {
    for (map, position, name) in CALLED_PROGRAMS {
        let fd = match ebpf.program_mut(name).expect("in the object") {
            Program::Xdp(program) => program.fd(),
            Program::SchedClassifier(program) => program.fd(),
            other => panic!("{name} is {:?}", other.prog_type()),
        };
        let fd = fd.and_then(|fd| Ok(fd.try_clone()?)).expect("a descriptor of a loaded program");
        let mut programs: ProgramArray<_> = map_of(ebpf, map);
        programs.set(position, &fd, 0).expect("within the map");
    }
}

fn fill_tables(ebpf: &mut Ebpf, content: &Content) {
    let mut services: HashMap<_, ServiceKey, lb_common::abi::Service> = map_of(ebpf, "services");
    for (key, service) in &content.services {
        services.insert(key, service, 0).expect("there is room");
    }
    let mut vips: HashMap<_, Address, u32> = map_of(ebpf, "vips");
    for vip in &content.vips {
        vips.insert(vip, 1, 0).expect("there is room");
    }
    let mut endpoints: HashMap<_, ServiceKey, lb_common::abi::Endpoint> = map_of(ebpf, "endpoints");
    for (key, endpoint) in &content.endpoints {
        endpoints.insert(key, endpoint, 0).expect("there is room");
    }
    let mut holders: HashMap<_, HolderKey, Holder> = map_of(ebpf, "holders");
    for (key, holder) in &content.holders {
        holders.insert(key, holder, 0).expect("there is room");
    }
    let mut macs: HashMap<_, VirtualMacKey, VirtualMac> = map_of(ebpf, "virtual_macs");
    for (key, mac) in &content.virtual_macs {
        macs.insert(key, mac, 0).expect("there is room");
    }
    fill_array(ebpf, "backend_vips", &content.backend_vips);
    fill_array(ebpf, "histories", &content.histories);
    fill_array(ebpf, "backends", &content.backends);
    // All bits of the filter are clear, as the map begins: every address is asked for.
    let mut node = [0u8; size_of::<Node>()];
    // SAFETY: the settings stand first in a node and are plain integers.
    unsafe { node.as_mut_ptr().cast::<Settings>().write_unaligned(content.settings) };
    fill_array(ebpf, "node", &[node]);
    let (blocks, _) = content.slots.as_chunks::<SLOTS_PER_BLOCK>();
    let blocks: Vec<_> = blocks.iter().map(|slots| SlotBlock { slots: *slots }).collect();
    fill_array(ebpf, "maglev", &blocks);
    let mut ports: DevMap<_> = map_of(ebpf, "tx_ports");
    for (index, _) in content.ports.iter().enumerate().filter(|(_, there)| **there) {
        ports.set(index as u32, LOOPBACK, None, 0).expect("loopback is there");
    }
    let mut uplinks: HashMap<_, u32, Uplink> = map_of(ebpf, "uplinks");
    uplinks.insert(LOOPBACK, Uplink::default(), 0).expect("there is room");
}

fn fill_array<T: aya::Pod>(ebpf: &mut Ebpf, name: &str, values: &[T]) {
    let mut array: Array<_, T> = map_of(ebpf, name);
    for (index, value) in values.iter().enumerate() {
        array.set(index as u32, value, 0).expect("within the map");
    }
}

fn fill_indexes(ebpf: &Ebpf, content: &Content) {
    let (seed, log2) = (content.settings.table_seed, content.index_log2);
    let buckets = 1usize << log2;
    let bucket_of = |key: &ServiceKey| (index::hash(key, seed) >> 1 >> (63 - log2)) as usize;
    let mut services = content.services.clone();
    services.extend(content.vips.iter().map(|vip| (ServiceKey::of_vip(*vip), Content::vip_entry())));
    let service_index: Shared<ServiceBucket> = Shared::of(ebpf, "service_index", buckets);
    let endpoint_index: Shared<EndpointBucket> = Shared::of(ebpf, "endpoint_index", buckets);
    for at in 0..buckets {
        service_index[at].write(services.iter().filter(|(key, _)| bucket_of(key) == at).map(|(key, service)| {
            // SAFETY: both are 24 bytes of plain integers.
            (key, unsafe { std::mem::transmute::<lb_common::abi::Service, [u64; 3]>(*service) })
        }));
        endpoint_index[at].write(content.endpoints.iter().filter(|(key, _)| bucket_of(key) == at).map(
            |(key, value)| {
                // SAFETY: both are 32 bytes of plain integers.
                (key, unsafe { std::mem::transmute::<lb_common::abi::Endpoint, [u64; 4]>(*value) })
            },
        ));
    }
}
