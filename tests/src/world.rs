//! The same tables twice: [`World`] holds in memory what [`Kernel`](crate::kernel::Kernel) writes into the maps of the
//! loaded program, and [`Snapshot`] is what packets have changed, read from either.

pub mod content;
pub mod frame;
pub mod holders;
pub mod sockets;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
};

use lb_common::{
    abi::{
        Backend, Bucket, Bypass, BypassCount, BypassKey, Counter, Endpoint, History, NO_NETNS, Service, ServiceKey,
        Slot, Traffic, Watch,
    },
    address::Address,
    affinity,
    flow::{self, Key, State},
    fragments::{self, Clock, Record},
    holder::HolderKey,
    limiter::{self, Class},
    mark::{self, Mark},
    offer::{self, Offer},
    opaque::{self, Segment},
    packet::Frame,
    reason::{REASONS, Reason},
    reply::ReturnTables,
    session::{self, Claim, Claimed, Sessions, Socket},
    slow::{self, Fragments},
    steer::{self, Tables, Verdict},
    virtual_mac,
    word::Word,
};

use content::{Content, direct, moved::NETNS_NOWHERE};
use frame::TestFrame;

/// XDP actions (include/uapi/linux/bpf.h).
pub mod action {
    /// `XDP_DROP`.
    pub const DROP: u32 = 1;
    /// `XDP_PASS`.
    pub const PASS: u32 = 2;
    /// `XDP_TX`.
    pub const TX: u32 = 3;
    /// `XDP_REDIRECT`.
    pub const REDIRECT: u32 = 4;
}

/// What becomes of one frame, as the kernel sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// [`action`].
    pub action: u32,
    /// What `sluice_xdp` tells the uplink's tc ingress program.
    pub mark: Option<Mark>,
    /// The frame.
    pub bytes: Vec<u8>,
}

impl Outcome {
    /// An action, and the frame after.
    pub fn new(action: u32, bytes: Vec<u8>) -> Self {
        let source = bytes.get(6..12).and_then(|source| source.try_into().ok());
        let mark = source.and_then(mark::read).filter(|_| action == action::PASS);
        Self { action, mark, bytes }
    }
}

/// What packets change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// By reason.
    pub reasons: Vec<Counter>,
    /// By backend.
    pub backends: Vec<Traffic>,
    /// Connection → backend, without the time.
    pub bypasses: HashMap<BypassKey, u32>,
    /// By endpoint.
    pub bypass_counts: Vec<u64>,
    /// By bucket and way, without the time.
    pub flows: Vec<[Option<(Key, u32)>; flow::WAYS]>,
    /// By bucket and way, without the time.
    pub fragments: Vec<[Option<(fragments::Key, Record)>; fragments::WAYS]>,
    /// By address and segment, how often and who.
    pub conflicts: HashMap<HolderKey, (u64, [u8; 6])>,
    /// Tokens by class, and whether the bucket has ever been used.
    pub tokens: [(u64, bool); 3],
}

impl Snapshot {
    /// The first difference from what the kernel's tables hold, in words.
    pub fn difference(&self, kernel: &Self, clock_moved: bool) -> Option<String> {
        fn first<T: PartialEq + core::fmt::Debug>(what: &str, host: &[T], kernel: &[T]) -> Option<String> {
            let at = host.iter().zip(kernel).position(|(host, kernel)| host != kernel)?;
            Some(format!("{what} {at}: host {:?}, kernel {:?}", host[at], kernel[at]))
        }
        for (at, listed) in Reason::ALL.iter().enumerate() {
            let (host, kernel, name) = (self.reasons[at], kernel.reasons[at], listed.0.name());
            if host != kernel {
                return Some(format!("reason {name}: host {host:?}, kernel {kernel:?}"));
            }
        }
        if self.bypasses != kernel.bypasses {
            let odd = self.bypasses.iter().find(|(key, backend)| kernel.bypasses.get(key) != Some(backend));
            let odd = odd.or_else(|| kernel.bypasses.iter().find(|(key, _)| !self.bypasses.contains_key(key)));
            return Some(format!("bypass {odd:?} is not in both"));
        }
        if self.conflicts != kernel.conflicts {
            return Some(format!("conflicts: host {:?}, kernel {:?}", self.conflicts, kernel.conflicts));
        }
        first("backend", &self.backends, &kernel.backends)
            .or_else(|| first("bypass count of endpoint", &self.bypass_counts, &kernel.bypass_counts))
            .or_else(|| first("tokens of class", &self.tokens, &kernel.tokens))
            .or_else(|| first("fragment bucket", &self.fragments, &kernel.fragments))
            .or_else(|| {
                let pairs = self.flows.iter().zip(&kernel.flows).enumerate();
                // Which record a full bucket gives up depends on when each was written.
                let comparable = |bucket: &[_; 4]| !clock_moved || bucket.iter().any(Option::is_none);
                let (at, (host, kernel)) = pairs.into_iter().find(|(_, (h, k))| h != k && comparable(k))?;
                Some(format!("flow bucket {at}: host {host:?}, kernel {kernel:?}"))
            })
    }
}

/// The tables in memory, as one CPU of a node has them. Its clock stands still.
pub struct World {
    /// What the agent would have written.
    pub content: Content,
    services: HashMap<ServiceKey, Service>,
    endpoints: HashMap<ServiceKey, Endpoint>,
    /// Connection → backend.
    pub bypasses: RefCell<HashMap<BypassKey, u32>>,
    conflicts: RefCell<HashMap<HolderKey, (u64, [u8; 6])>>,
    bypass_counts: Vec<BypassCount>,
    /// The coarse time; what packets record has it.
    pub now: Cell<u32>,
    /// Connections that the pods' kernels have, of pods that can be asked.
    pub sockets: HashSet<BypassKey>,
    flows: Vec<flow::Bucket>,
    fragments: Vec<fragments::Bucket>,
    buckets: RefCell<[Bucket; 3]>,
    reasons: RefCell<Vec<Counter>>,
    backend_counters: RefCell<Vec<Traffic>>,
    /// The interface that packets of pods come from.
    pub interface: u32,
    /// How often flows, bypasses or traffic counters were written to, but for client affinity and connections that open or
    /// close, whose records are made before it is known whether the packet goes anywhere.
    pub writes: Cell<u64>,
}

/// The host's clock, in jiffies: anything but 0, which an unused limiter says.
const NOW: u64 = 1 << 20;

impl World {
    /// Unused tables of this content.
    pub fn new(content: &Content) -> Self {
        let word = || Word::new(0);
        let watch = || Watch { run: word(), unseen: word(), seen: word() };
        let entry = || flow::Entry { control: word(), client: [word(), word()], value: word() };
        let mut services: HashMap<_, _> = content.services.iter().copied().collect();
        for vip in &content.vips {
            services.insert(ServiceKey::of_vip(*vip), Content::vip_entry());
        }
        Self {
            content: content.clone(),
            services,
            endpoints: content.endpoints.iter().copied().collect(),
            bypasses: RefCell::default(),
            conflicts: RefCell::default(),
            bypass_counts: (0..content.endpoint_ids).map(|_| BypassCount { count: word(), watch: watch() }).collect(),
            now: Cell::new(0),
            sockets: HashSet::new(),
            flows: (0..1usize << content.flows_log2)
                .map(|_| flow::Bucket { entries: std::array::from_fn(|_| entry()) })
                .collect(),
            fragments: (0..1usize << content.fragments_log2).map(|_| empty_bucket()).collect(),
            buckets: RefCell::default(),
            reasons: RefCell::new(vec![Counter::default(); REASONS]),
            backend_counters: RefCell::new(vec![Traffic::default(); content.backend_vips.len()]),
            interface: direct::INTERFACE,
            writes: Cell::new(0),
        }
    }

    /// Forgets every packet.
    pub fn reset(&mut self) {
        self.bypasses.get_mut().clear();
        self.conflicts.get_mut().clear();
        self.bypass_counts.iter().for_each(|counts| counts.count.store(0));
        self.bypass_counts.iter().for_each(|counts| counts.watch.clear());
        for entry in self.flows.iter().flat_map(|bucket| &bucket.entries) {
            entry.control.store(0);
            entry.client[0].store(0);
            entry.client[1].store(0);
            entry.value.store(0);
        }
        self.fragments.iter().for_each(forget_fragments);
        *self.buckets.get_mut() = [Bucket::default(); 3];
        self.reasons.get_mut().fill(Counter::default());
        self.backend_counters.get_mut().fill(Traffic::default());
    }

    /// Puts a record into the flow cache, as a packet so many coarse ticks ago would have.
    pub fn remember(&self, key: &Key, backend: u32, age: u32) {
        let bucket = self.flow_bucket(key).expect("the hash has as many bits");
        flow::record(bucket, key, backend, 0u32.wrapping_sub(age));
    }

    /// Puts the record of a datagram there, as its first fragment would.
    pub fn remember_fragment(&self, key: &fragments::Key, record: Record) {
        self.record_fragment(key, record);
    }

    /// Datagrams that found no socket, by endpoint id.
    pub fn refused(&self) -> Vec<u64> {
        self.bypass_counts.iter().map(|counts| counts.watch.refused()).collect()
    }

    /// What packets have changed so far.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            reasons: self.reasons.borrow().clone(),
            backends: self.backend_counters.borrow().clone(),
            bypasses: self.bypasses.borrow().clone(),
            conflicts: self.conflicts.borrow().clone(),
            bypass_counts: self.bypass_counts.iter().map(|counts| counts.count.load()).collect(),
            flows: self.flows.iter().map(records).collect(),
            fragments: self.fragments.iter().map(fragment_records).collect(),
            tokens: self.buckets.borrow().map(|bucket| (bucket.tokens, bucket.since != 0)),
        }
    }

    /// Counts a packet under its reason.
    pub fn count_reason(&self, reason: Reason, bytes: u64) {
        let counter = &mut self.reasons.borrow_mut()[reason.index() as usize];
        counter.packets += 1;
        counter.bytes += bytes;
    }

    /// Packets counted so far, under all backends and reasons but the one that is counted beside others.
    pub fn packets_counted(&self) -> u64 {
        let forwarded = self.backend_counters.borrow().iter().map(|traffic| traffic.packets).sum::<u64>();
        let reasons = self.reasons.borrow();
        let counted = reasons.iter().map(|counter| counter.packets).sum::<u64>();
        forwarded + counted - reasons[Reason::BrokenHistory.index() as usize].packets
    }

    /// Steers a frame by `steer` and does what `sluice_xdp` does with its verdict.
    pub fn run(&self, packet: &[u8], steer: impl Fn(&mut TestFrame, &Self) -> Verdict) -> (Outcome, Reason) {
        use lb_common::packet::Frame as _;
        let mut frame = TestFrame::new(packet);
        let bytes = frame.length() as u64;
        let verdict = steer(&mut frame, self);
        let has_port = |tx_port: u32| self.content.ports.get(tx_port as usize).copied().unwrap_or(false);
        let (action, reason) = match verdict {
            Verdict::Pass(reason) => (action::PASS, reason),
            Verdict::Drop(reason) => (action::DROP, reason),
            Verdict::Transmit(reason) => (action::TX, reason),
            Verdict::Redirect { tx_port, .. } if has_port(tx_port) => (action::REDIRECT, Reason::Forwarded),
            Verdict::Redirect { .. } => (action::DROP, Reason::NoPort),
            Verdict::Peer { .. } | Verdict::Stack { .. } => (action::PASS, Reason::Forwarded),
            Verdict::Slow | Verdict::Fragment | Verdict::Neighbor => (action::DROP, Reason::NoSlowPath),
        };
        match verdict {
            Verdict::Redirect { backend, .. } | Verdict::Peer { backend } | Verdict::Stack { backend }
                if reason == Reason::Forwarded =>
            {
                self.count_forwarded(backend, bytes);
            }
            _ => self.count_reason(reason, bytes),
        }
        (Outcome::new(action, frame.to_vec()), reason)
    }

    /// Steers a frame by the functions under test.
    pub fn steer(&self, packet: &[u8]) -> (Outcome, Reason) {
        self.run(packet, slow::whole)
    }

    fn count_forwarded(&self, backend: u32, bytes: u64) {
        self.writes.set(self.writes.get() + 1);
        if let Some(traffic) = self.backend_counters.borrow_mut().get_mut(backend as usize) {
            traffic.packets += 1;
            traffic.bytes += bytes;
        } else {
            self.count_reason(Reason::BrokenTable, bytes);
        }
    }

    fn write_bypass(&self, key: &BypassKey, endpoint: u32, backend: u32) -> bool {
        self.writes.set(self.writes.get() + 1);
        let mut bypasses = self.bypasses.borrow_mut();
        if let Some(found) = bypasses.get_mut(key) {
            *found = backend;
            return true;
        }
        let Some(count) = self.bypass_counts.get(endpoint as usize) else { return false };
        let room = bypasses.len() < self.content.bypasses_capacity;
        if room {
            bypasses.insert(*key, backend);
            count.count.add(1);
        }
        room
    }

    fn fragment_bucket(&self, key: &fragments::Key) -> &fragments::Bucket {
        let hash = key.hash(self.content.settings.table_seed);
        &self.fragments[(hash >> 1 >> (63 - self.content.fragments_log2)) as usize]
    }

    fn flow_bucket(&self, key: &Key) -> Option<&flow::Bucket> {
        let hash = key.hash(self.content.settings.table_seed);
        self.flows.get((hash >> 1 >> (63 - self.content.flows_log2)) as usize)
    }
}

/// A bucket's records without their time.
pub fn fragment_records(bucket: &fragments::Bucket) -> [Option<(fragments::Key, Record)>; fragments::WAYS] {
    std::array::from_fn(|way| fragments::snapshot(&bucket.entries[way]))
}

/// Empties a bucket.
pub fn forget_fragments(bucket: &fragments::Bucket) {
    for entry in &bucket.entries {
        let words = entry.source.iter().chain(&entry.destination).chain([&entry.identity, &entry.place, &entry.used]);
        words.chain([&entry.control]).for_each(|word| word.store(0));
    }
}

fn empty_bucket() -> fragments::Bucket {
    let word = || Word::new(0);
    let entry = || fragments::Entry {
        control: word(),
        source: [word(), word()],
        destination: [word(), word()],
        identity: word(),
        place: word(),
        used: word(),
    };
    fragments::Bucket { entries: std::array::from_fn(|_| entry()) }
}

/// A bucket's records without their time.
pub fn records(bucket: &flow::Bucket) -> [Option<(Key, u32)>; flow::WAYS] {
    std::array::from_fn(|way| flow::snapshot(&bucket.entries[way]).map(|(key, backend, _)| (key, backend)))
}

impl Tables for World {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.content.slots.get(index as usize).copied()
    }

    fn claim(&self, claimed: &Claimed) -> Claim {
        session::claim(self, claimed)
    }

    fn offer(&self, offer: &Offer) -> u32 {
        offer::offer(self, offer)
    }

    fn keep(&self, offer: &Offer, found: u32) -> u16 {
        affinity::keep(self, offer, found)
    }

    fn admits<F: Frame>(&self, frame: &F) -> bool {
        virtual_mac::admit(frame, self)
    }

    fn count_broken_history(&self) {
        self.reasons.borrow_mut()[Reason::BrokenHistory.index() as usize].packets += 1;
    }

    fn history(&self, index: u32) -> Option<&History> {
        self.content.histories.get(index as usize)
    }

    fn cached_owner(&self, service: u32, client: Address, client_port: u16) -> Option<u32> {
        let key = Key::tcp(service, client, client_port);
        flow::find(self.flow_bucket(&key)?, &key, 0)
    }

    fn cache_owner(&self, service: u32, client: Address, client_port: u16, backend: u32, only_known: bool) {
        let key = Key::tcp(service, client, client_port);
        let Some(bucket) = self.flow_bucket(&key) else { return };
        let known = flow::find(bucket, &key, 0);
        if known != Some(backend) && (known.is_some() || !only_known) {
            self.writes.set(self.writes.get() + 1);
            flow::record(bucket, &key, backend, 0);
        }
    }

    fn affinity(&self, service: u32, client: Address, within: u32, refreshed: u32) -> Option<u32> {
        let key = Key::affinity(service, client);
        flow::find_within(self.flow_bucket(&key)?, &key, 0, within, refreshed)
    }

    fn record_affinity(&self, service: u32, client: Address, backend: u32, only_known: bool) {
        let key = Key::affinity(service, client);
        let Some(bucket) = self.flow_bucket(&key) else { return };
        if !only_known || flow::holds(bucket, &key) {
            flow::record(bucket, &key, backend, 0);
        }
    }

    fn known_owner(&self, service: u32, client: Address, client_port: u16) -> Option<(u32, State)> {
        let key = Key::tcp(service, client, client_port);
        flow::find_with_state(self.flow_bucket(&key)?, &key, 0)
    }

    fn keep_owner(&self, service: u32, client: Address, client_port: u16, backend: u32, state: State) {
        if state == State::Established {
            self.writes.set(self.writes.get() + 1);
        }
        let key = Key::tcp(service, client, client_port).in_state(state);
        if let Some(bucket) = self.flow_bucket(&key) {
            flow::record(bucket, &key, backend, 0);
        }
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.content.backends.get(index as usize)
    }

    fn maglev_seed(&self) -> u64 {
        self.content.settings.maglev_seed
    }

    fn node_address(&self, is_v4: bool) -> Address {
        if is_v4 { self.content.settings.node_v4 } else { self.content.settings.node_v6 }
    }

    fn record_flow(&self, endpoint: u32, client: Address, client_port: u16, backend: u32) {
        self.writes.set(self.writes.get() + 1);
        let key = Key::udp(endpoint, client, client_port);
        if let Some(bucket) = self.flow_bucket(&key)
            && flow::find(bucket, &key, 0) != Some(backend)
        {
            flow::record(bucket, &key, backend, 0);
        }
    }
}

impl Fragments for World {
    fn fragment(&self, key: &fragments::Key, last: bool) -> Record {
        let lifetime = self.content.settings.fragment_lifetime as u32;
        fragments::find(self.fragment_bucket(key), key, Clock { now: NOW as u32, lifetime }, last)
    }

    fn record_fragment(&self, key: &fragments::Key, record: Record) -> bool {
        self.writes.set(self.writes.get() + 1);
        let lifetime = self.content.settings.fragment_lifetime as u32;
        fragments::record(self.fragment_bucket(key), key, record, Clock { now: NOW as u32, lifetime })
    }
}

impl Sessions for World {
    /// Right of odd addresses, where the kernel's filter in tests lets everything through: both must come to the same.
    fn may_be_vip(&self, address: Address) -> bool {
        address.bytes[15] & 1 == 0 || steer::is_vip(self, address)
    }

    fn is_vip(&self, address: Address) -> bool {
        steer::is_vip(self, address)
    }

    fn has_bypasses(&self, endpoint: u32) -> bool {
        self.bypass_counts.get(endpoint as usize).is_some_and(|counts| counts.count.load() != 0)
    }

    fn bypass(&self, key: &BypassKey) -> Option<Bypass> {
        self.bypasses.borrow().get(key).map(|backend| Bypass::new(*backend, 0))
    }

    fn record_bypass(&self, key: &BypassKey, endpoint: u32, backend: u32) -> bool {
        self.write_bypass(key, endpoint, backend)
    }

    fn forget_bypass(&self, key: &BypassKey, endpoint: u32) {
        self.writes.set(self.writes.get() + 1);
        if self.bypasses.borrow_mut().remove(key).is_some()
            && let Some(count) = self.bypass_counts.get(endpoint as usize)
        {
            count.count.add(u64::MAX);
        }
    }

    fn socket(&self, netns_id: u32, connection: &BypassKey) -> Socket {
        match netns_id {
            NO_NETNS => Socket::Unknown,
            NETNS_NOWHERE => Socket::Gone,
            _ if self.sockets.contains(connection) => Socket::Living,
            _ => Socket::Gone,
        }
    }

    fn is_seen(&self, netns_id: u32, connection: &BypassKey) -> Option<bool> {
        (netns_id != NO_NETNS).then(|| self.sockets.contains(connection))
    }

    fn refresh_bypass(&self, _key: &BypassKey) {}

    fn admit(&self, class: Class) -> bool {
        let limit = self.content.settings.limits[class as usize];
        limiter::admit(&mut self.buckets.borrow_mut()[class as usize], &limit, NOW)
    }
}

impl ReturnTables for World {
    fn endpoint(&self, key: &ServiceKey) -> Option<Endpoint> {
        self.endpoints.get(key).copied()
    }

    fn flow(&self, endpoint: u32, client: Address, client_port: u16) -> Option<u32> {
        let key = Key::udp(endpoint, client, client_port);
        flow::find(self.flow_bucket(&key)?, &key, 0)
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn backend_vip(&self, backend: u32) -> Option<ServiceKey> {
        self.content.backend_vips.get(backend as usize).copied()
    }

    fn counts(&self, endpoint: u32) -> Option<&BypassCount> {
        self.bypass_counts.get(endpoint as usize)
    }

    fn coarse_now(&self) -> u32 {
        self.now.get()
    }

    fn hear(&self, segment: &Segment) {
        match segment.opaque {
            0 => opaque::watch(self, segment),
            _ => opaque::record(self, segment),
        }
    }
}
