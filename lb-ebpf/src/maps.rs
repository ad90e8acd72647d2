//! The maps, and what `steer` and `reply` ask of them.
//!
//! Every map is pinned by the agent under its own name. Sizes here are the smallest; the agent sets the configured
//! capacity when it loads the object. Memory: docs/dataplane.md.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    Global,
    bindings::{__sk_buff, BPF_EXIST, BPF_F_MMAPABLE, BPF_NOEXIST},
    btf_maps::{Array, DevMap, HashMap, PerCpuArray, ProgramArray},
    cty::c_void,
    helpers::generated::bpf_jiffies64,
    macros::btf_map,
    programs::{TcContext, XdpContext},
};
use lb_common::{
    abi::{
        Backend, Bucket, Bypass, BypassCount, BypassKey, Endpoint, HOST_NETNS, History, NO_NETNS, Node, Route,
        SLOTS_PER_BLOCK, Service, ServiceKey, Settings, Slot, SlotBlock, Uplink, coarse_ticks, program, return_program,
        service_flags,
    },
    address::Address,
    flow::{self, Key, State},
    fragments::{self, Clock, Record},
    index::{self, EndpointBucket, Probe, ServiceBucket},
    limiter::{self, Class},
    offer::Offer,
    opaque::Segment,
    packet::Frame,
    reason::Reason,
    reply::{Place, ReturnTables},
    session::{Claim, Claimed, Sessions, Socket},
    slow::Fragments,
    steer::Tables,
};

pub use crate::counters::{count_forwarded, count_reason, count_replied};
use crate::{
    earlier,
    sockets::{LISTEN, NO_SOCKET, ask},
};

pub const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Logarithm to base 2 of the buckets in `service_index`; set by the loader.
#[unsafe(no_mangle)]
static SERVICE_INDEX_LOG2: Global<u32> = Global::new(0);
/// Logarithm to base 2 of the buckets in `endpoint_index`; set by the loader.
#[unsafe(no_mangle)]
static ENDPOINT_INDEX_LOG2: Global<u32> = Global::new(0);
/// Logarithm to base 2 of the buckets in `flows`; set by the loader.
#[unsafe(no_mangle)]
static FLOWS_LOG2: Global<u32> = Global::new(0);
/// Logarithm to base 2 of the buckets in `fragments`; set by the loader.
#[unsafe(no_mangle)]
static FRAGMENTS_LOG2: Global<u32> = Global::new(0);

/// VIP, protocol, port → service. Written by the agent, read by `sluice_xdp` where the index doesn't know. 4.18.
#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceKey, Service, 1> = HashMap::new();
/// VIP → number of services. Written by the agent, read by `sluice_xdp` where the index doesn't know. 4.18.
#[btf_map(name = "vips")]
static VIPS: HashMap<Address, u32, 1> = HashMap::new();
/// Index in front of `services` and `vips`. Written by the agent through memory. 5.5 (`BPF_F_MMAPABLE`).
#[btf_map(name = "service_index")]
static SERVICE_INDEX: Array<ServiceBucket, 1, MMAPABLE> = Array::new();
/// Backend id → VIP, port, protocol of its service. Written by the agent through memory, read by the return programs.
/// 5.5.
#[btf_map(name = "backend_vips")]
static BACKEND_VIPS: Array<ServiceKey, 1, MMAPABLE> = Array::new();
/// Maglev tables of all services, sixteen slots an element. Written by the agent through memory. 5.5.
#[btf_map(name = "maglev")]
static MAGLEV: Array<SlotBlock, 1, MMAPABLE> = Array::new();
/// Earlier owners of the slots of all services. Written by the agent through memory, read by `sluice_xdp`. 5.5.
#[btf_map(name = "histories")]
static HISTORIES: Array<History, 1, MMAPABLE> = Array::new();
/// The backends of all services, each service's side by side. Written by the agent through memory, kept fresh from
/// netlink. 5.5.
#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, 1, MMAPABLE> = Array::new();
/// The pods' host-side interfaces. Written by the agent; the kernel empties an entry when its interface goes. 4.18.
#[btf_map(name = "tx_ports")]
static TX_PORTS: DevMap<1> = DevMap::new();
/// Pod address, protocol, port → service. Written by the agent, read where the index doesn't know. 4.18.
#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<ServiceKey, Endpoint, 1> = HashMap::new();
/// Index in front of `endpoints`. Written by the agent through memory. 5.5.
#[btf_map(name = "endpoint_index")]
static ENDPOINT_INDEX: Array<EndpointBucket, 1, MMAPABLE> = Array::new();
/// Connections whose replies don't belong to the endpoint's default service. Written by all programs and the agent;
/// the agent removes an entry once the pod has no such socket. 4.18.
#[btf_map(name = "bypasses")]
static BYPASSES: HashMap<BypassKey, Bypass, 1> = HashMap::new();
/// Endpoint id → entries in `bypasses`, and whether its sockets are seen. Written by all programs and the agent. 5.5.
#[btf_map(name = "endpoint_bypasses")]
static ENDPOINT_BYPASSES: Array<BypassCount, 1, MMAPABLE> = Array::new();
/// The flow cache: recorded UDP, TCP in moved slots and of opaque backends, client affinity. Written and read by `sluice_xdp` and
/// the return programs; the agent removes what is old. 5.12 (atomic compare-exchange).
#[btf_map(name = "flows")]
static FLOWS: Array<flow::Bucket, 1, MMAPABLE> = Array::new();
/// Interface index → uplink. Written by the agent, read by `sluice_return` and, for few frames, `sluice_uplink_in`. 4.18.
#[btf_map(name = "uplinks")]
static UPLINKS: HashMap<u32, Uplink, 16> = HashMap::new();
/// Remembered routes to clients. Written and read by `sluice_return`. 4.18.
#[btf_map(name = "routes")]
pub static ROUTES: PerCpuArray<Route, ROUTE_ENTRIES> = PerCpuArray::new();
/// Entries of `routes` on each CPU.
pub const ROUTE_ENTRIES: usize = 1024;
/// One element: settings, and which addresses are no VIP. Written by the agent through memory, read by all programs. 5.5.
#[btf_map(name = "node")]
static NODE: Array<Node, 1, MMAPABLE> = Array::new();
/// Token buckets by class. Written by `sluice_xdp`. 4.18.
#[btf_map(name = "limiters")]
static LIMITERS: PerCpuArray<Bucket, 3> = PerCpuArray::new();
/// Whose the datagrams are that are under way in fragments. Written and read by `sluice_xdp_slow` and the return
/// programs. 5.12 (atomic compare-exchange).
#[btf_map(name = "fragments")]
static FRAGMENTS: Array<fragments::Bucket, 1, MMAPABLE> = Array::new();
/// What `sluice_xdp` goes on in. Written by the agent before anything is attached. 4.20.
#[btf_map(name = "programs")]
static PROGRAMS: ProgramArray<{ program::COUNT as usize }> = ProgramArray::new();
/// What `sluice_return` and `sluice_uplink_out` go on in. Written by the agent before anything is attached. 4.20.
#[btf_map(name = "return_programs")]
static RETURN_PROGRAMS: ProgramArray<{ return_program::COUNT as usize }> = ProgramArray::new();
/// The kernel's clock at its cheapest: the JIT inlines it.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: takes nothing, touches nothing.
    unsafe { bpf_jiffies64() }
}

/// Sends the frame out by a port. False where that is gone.
#[inline(always)]
pub fn redirect(tx_port: u32) -> bool {
    TX_PORTS.redirect(tx_port, 0).is_ok()
}

/// Goes on in a program of `programs`. Comes back where that is not in its place.
#[inline(always)]
pub fn call(context: &XdpContext, program: u32) {
    // SAFETY: nothing here has a destructor that would be left out.
    unsafe { PROGRAMS.tail_call(context, program) };
}

/// Goes on in `sluice_return_slow`, which is told the place. Comes back where that is not in its place.
#[inline(always)]
pub fn call_return_slow(context: &TcContext, place: Place) {
    // SAFETY: the kernel's context is valid for the whole program, and these bytes of it are the programs' own.
    unsafe { (*context.skb.skb).cb[0] = (place == Place::Uplink) as u32 };
    // SAFETY: nothing here has a destructor that would be left out.
    unsafe { RETURN_PROGRAMS.tail_call(context, return_program::SLOW) };
}

/// The place that the caller of `sluice_return_slow` has named.
#[inline(always)]
pub fn place_named(skb: *mut __sk_buff) -> Place {
    // SAFETY: as above.
    if unsafe { (*skb).cb[0] } != 0 { Place::Uplink } else { Place::Pod }
}

/// Goes on in a program of `return_programs`. Comes back where that is not in its place.
#[inline(always)]
pub fn call_return(context: &TcContext, program: u32) {
    // SAFETY: as above.
    unsafe { RETURN_PROGRAMS.tail_call(context, program) };
}

/// The uplink with this interface index.
#[inline(always)]
pub fn uplink(ifindex: u32) -> Option<Uplink> {
    // SAFETY: entries are replaced whole, and copied at once.
    unsafe { UPLINKS.get(ifindex) }.copied()
}

/// The maps as `steer` and `reply` see them, with the settings at hand, which the agent may change meanwhile.
pub struct Maps {
    pub context: *mut c_void,
    /// See [`Settings`].
    pub settings: &'static Settings,
    vip_filter: &'static index::Filter,
    /// Read once, so that what is computed from it is computed once.
    table_seed: u64,
}

impl Maps {
    /// `None` cannot happen: arrays always have their elements.
    #[inline(always)]
    pub fn get(context: *mut c_void) -> Option<Self> {
        let Node { settings, vip_filter } = NODE.get(0)?;
        Some(Self { context, settings, vip_filter, table_seed: settings.table_seed })
    }

    #[inline(always)]
    fn service_bucket(&self, key: &ServiceKey) -> Option<&'static ServiceBucket> {
        SERVICE_INDEX.get(top_bits(index::hash(key, self.table_seed), SERVICE_INDEX_LOG2.load()))
    }

    #[inline(always)]
    fn endpoint_bucket(&self, key: &ServiceKey) -> Option<&'static EndpointBucket> {
        ENDPOINT_INDEX.get(top_bits(index::hash(key, self.table_seed), ENDPOINT_INDEX_LOG2.load()))
    }

    #[inline(always)]
    fn flow_bucket(&self, key: &Key) -> Option<&'static flow::Bucket> {
        FLOWS.get(top_bits(key.hash(self.table_seed), FLOWS_LOG2.load()))
    }

    #[inline(always)]
    fn fragment_bucket(&self, key: &fragments::Key) -> Option<&'static fragments::Bucket> {
        FRAGMENTS.get(top_bits(key.hash(self.table_seed), FRAGMENTS_LOG2.load()))
    }

    #[inline(always)]
    fn fragment_clock(&self) -> Clock {
        Clock { now: jiffies() as u32, lifetime: self.settings.fragment_lifetime as u32 }
    }

    #[inline(always)]
    fn write_bypass(&self, key: &BypassKey, endpoint: u32, backend: u32) -> bool {
        let since = coarse_ticks(jiffies());
        if let Some(found) = BYPASSES.get_ptr_mut(key) {
            // SAFETY: aligned words of a live element; whoever writes both at once writes the same connection.
            unsafe {
                let backend_field = addr_of_mut!((*found).backend);
                if backend_field.read_volatile() != backend {
                    backend_field.write_volatile(backend);
                }
                let since_field = addr_of_mut!((*found).since);
                if since_field.read_volatile() != since {
                    since_field.write_volatile(since);
                }
            }
            return true;
        }
        // Counted first: the count is never less than the entries, or a reply would skip the lookup.
        let Some(count) = ENDPOINT_BYPASSES.get(endpoint) else { return false };
        count.count.add(1);
        match BYPASSES.insert(key, Bypass::new(backend, since), BPF_NOEXIST as u64) {
            Ok(()) => true,
            Err(error) => {
                count.count.add(u64::MAX);
                // Another CPU was faster, and has counted its entry: only that one may be written here, never a new
                // one that nobody counts.
                error == -EEXIST && BYPASSES.insert(key, Bypass::new(backend, since), BPF_EXIST as u64).is_ok()
            }
        }
    }
}

const EEXIST: i32 = 17;
/// The highest `bits` of a hash.
#[inline(always)]
pub fn top_bits(hash: u64, bits: u32) -> u32 {
    ((hash >> 1) >> (63 - (bits & 31))) as u32
}

impl Tables for Maps {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        match index::probe(self.service_bucket(key)?, key) {
            Probe::Found(words) => {
                // SAFETY: both are 24 bytes of plain integers.
                Some(unsafe { core::mem::transmute::<[u64; 3], Service>(words) })
            }
            Probe::Absent => None,
            Probe::AskHash if key.protocol == 0 => {
                // SAFETY: only presence is looked at.
                unsafe { VIPS.get(key.address) }.map(|_| Service { flags: service_flags::VIP, ..Service::default() })
            }
            Probe::AskHash => {
                // A copy, so that the key is put into memory for the hash alone.
                let key = *key;
                // SAFETY: entries are replaced whole, and copied at once.
                unsafe { SERVICES.get(key) }.copied()
            }
        }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        let block = MAGLEV.get(index / SLOTS_PER_BLOCK as u32)?;
        let slot = &block.slots[index as usize % SLOTS_PER_BLOCK];
        // SAFETY: one aligned word, so that owner and history belong together.
        let word = unsafe { core::ptr::from_ref(slot).cast::<u32>().read_volatile() };
        // SAFETY: both are four bytes of plain integers.
        Some(unsafe { core::mem::transmute::<u32, Slot>(word) })
    }

    #[inline(always)]
    fn claim(&self, claimed: &Claimed) -> Claim {
        match crate::apart::sluice_claim(self.context.cast(), claimed) {
            0 => Claim::Granted,
            1 => Claim::Full,
            2 => Claim::Foreign,
            _ => Claim::NoSession,
        }
    }

    #[inline(always)]
    fn offer(&self, offer: &Offer) -> u32 {
        crate::apart::sluice_offer(self.context.cast(), offer)
    }

    #[inline(always)]
    fn keep(&self, offer: &Offer, found: u32) -> u16 {
        crate::apart::sluice_keep(self.context.cast(), offer, found) as u16
    }

    #[inline(always)]
    fn count_broken_history(&self) {
        count_reason(Reason::BrokenHistory.index(), 0);
    }

    #[inline(always)]
    fn history(&self, index: u32) -> Option<&History> {
        HISTORIES.get(index)
    }

    #[inline(always)]
    fn cached_owner(&self, service: u32, client: Address, client_port: u16) -> Option<u32> {
        let key = Key::tcp(service, client, client_port);
        flow::find(self.flow_bucket(&key)?, &key, coarse_ticks(jiffies()))
    }

    #[inline(always)]
    fn known_owner(&self, service: u32, client: Address, client_port: u16) -> Option<(u32, State)> {
        let key = Key::tcp(service, client, client_port);
        flow::find_with_state(self.flow_bucket(&key)?, &key, coarse_ticks(jiffies()))
    }

    #[inline(always)]
    fn cache_owner(&self, service: u32, client: Address, client_port: u16, backend: u32, only_known: bool) {
        let key = Key::tcp(service, client, client_port);
        let Some(bucket) = self.flow_bucket(&key) else { return };
        let now = coarse_ticks(jiffies());
        let known = flow::find(bucket, &key, now);
        if known != Some(backend) && (known.is_some() || !only_known) {
            flow::record(bucket, &key, backend, now);
        }
    }

    #[inline(always)]
    fn affinity(&self, service: u32, client: Address, within: u32, refreshed: u32) -> Option<u32> {
        let key = Key::affinity(service, client);
        flow::find_within(self.flow_bucket(&key)?, &key, coarse_ticks(jiffies()), within, refreshed)
    }

    #[inline(always)]
    fn record_affinity(&self, service: u32, client: Address, backend: u32, only_known: bool) {
        let key = Key::affinity(service, client);
        if let Some(bucket) = self.flow_bucket(&key)
            && (!only_known || flow::holds(bucket, &key))
        {
            flow::record(bucket, &key, backend, coarse_ticks(jiffies()));
        }
    }

    #[inline(always)]
    fn keep_owner(&self, service: u32, client: Address, client_port: u16, backend: u32, state: State) {
        let key = Key::tcp(service, client, client_port).in_state(state);
        if let Some(bucket) = self.flow_bucket(&key) {
            flow::record(bucket, &key, backend, coarse_ticks(jiffies()));
        }
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<&Backend> {
        BACKENDS.get(index)
    }

    #[inline(always)]
    fn maglev_seed(&self) -> u64 {
        self.settings.maglev_seed
    }

    #[inline(always)]
    fn admits<F: Frame>(&self, _frame: &F) -> bool {
        crate::apart::sluice_admit(self.context.cast()) != 0
    }

    #[inline(always)]
    fn node_address(&self, is_v4: bool) -> Address {
        if is_v4 { self.settings.node_v4 } else { self.settings.node_v6 }
    }

    #[inline(always)]
    fn expect_flow(&self, client: Address, client_port: u16) {
        let hash = flow::client_hash(client, client_port, self.table_seed);
        if let Some(bucket) = FLOWS.get(top_bits(hash, FLOWS_LOG2.load())) {
            flow::fetch(bucket);
        }
    }

    #[inline(always)]
    fn record_flow(&self, endpoint: u32, client: Address, client_port: u16, backend: u32) {
        let key = Key::udp(endpoint, client, client_port);
        if let Some(bucket) = self.flow_bucket(&key) {
            let now = coarse_ticks(jiffies());
            if flow::find(bucket, &key, now) != Some(backend) {
                flow::record(bucket, &key, backend, now);
            }
        }
    }
}

impl Sessions for Maps {
    #[inline(always)]
    fn may_be_vip(&self, address: Address) -> bool {
        let (word, bit) = index::filter_position(address, self.table_seed);
        self.vip_filter.words[word].load() >> bit & 1 == 0
    }

    #[inline(always)]
    fn is_vip(&self, address: Address) -> bool {
        crate::apart::sluice_is_vip(&address) != 0
    }

    #[inline(always)]
    fn has_bypasses(&self, endpoint: u32) -> bool {
        ENDPOINT_BYPASSES.get(endpoint).is_some_and(|count| count.count.load() != 0) || earlier::has_bypasses()
    }

    #[inline(always)]
    fn bypass(&self, key: &BypassKey) -> Option<Bypass> {
        // As in `service`.
        let key = *key;
        // SAFETY: two aligned words, copied at once.
        unsafe { BYPASSES.get(key) }.copied().or_else(|| earlier::bypass(&key))
    }

    #[inline(always)]
    fn record_bypass(&self, key: &BypassKey, endpoint: u32, backend: u32) -> bool {
        self.write_bypass(key, endpoint, backend)
    }

    #[inline(always)]
    fn forget_bypass(&self, key: &BypassKey, endpoint: u32) {
        if BYPASSES.remove(key).is_ok()
            && let Some(count) = ENDPOINT_BYPASSES.get(endpoint)
        {
            count.count.add(u64::MAX);
        }
    }

    #[inline(always)]
    fn socket(&self, netns_id: u32, connection: &BypassKey) -> Socket {
        match netns_id {
            NO_NETNS => Socket::Unknown,
            HOST_NETNS => Socket::of_state(ask(self.context, u64::MAX, connection)),
            id => Socket::of_state(ask(self.context, id as u64, connection)),
        }
    }

    #[inline(always)]
    fn is_seen(&self, netns_id: u32, connection: &BypassKey) -> Option<bool> {
        let netns = match netns_id {
            NO_NETNS => return None,
            HOST_NETNS => u64::MAX,
            id => id as u64,
        };
        Some(!matches!(ask(self.context, netns, connection), NO_SOCKET | LISTEN))
    }

    #[inline(always)]
    fn refresh_bypass(&self, key: &BypassKey) {
        // As in `service`.
        let key = *key;
        if let Some(found) = BYPASSES.get_ptr_mut(key) {
            // SAFETY: an aligned word of a live element.
            unsafe { addr_of_mut!((*found).since).write_volatile(coarse_ticks(jiffies())) };
        }
    }

    #[inline(always)]
    fn admit(&self, class: Class) -> bool {
        let Some(bucket) = LIMITERS.get_ptr_mut(class as u32) else { return false };
        // SAFETY: this CPU's own element.
        limiter::admit(unsafe { &mut *bucket }, &self.settings.limits[class as usize], jiffies())
    }
}

impl Fragments for Maps {
    #[inline(always)]
    fn fragment(&self, key: &fragments::Key, last: bool) -> Record {
        let mut record = Record::NONE;
        crate::apart::sluice_find_fragment(key, &mut record, last as u32);
        record
    }

    #[inline(always)]
    fn record_fragment(&self, key: &fragments::Key, record: Record) -> bool {
        crate::apart::sluice_record_fragment(key, &record) != 0
    }
}

/// See [`fragments::find`].
#[inline(always)]
pub fn find_fragment(maps: &Maps, key: &fragments::Key, last: bool) -> Record {
    let Some(bucket) = maps.fragment_bucket(key) else { return Record::NONE };
    fragments::find(bucket, key, maps.fragment_clock(), last)
}

/// See [`fragments::record`].
#[inline(always)]
pub fn record_fragment(maps: &Maps, key: &fragments::Key, record: Record) -> bool {
    let Some(bucket) = maps.fragment_bucket(key) else { return false };
    fragments::record(bucket, key, record, maps.fragment_clock())
}

impl ReturnTables for Maps {
    #[inline(always)]
    fn endpoint(&self, key: &ServiceKey) -> Option<Endpoint> {
        match index::probe(self.endpoint_bucket(key)?, key) {
            Probe::Found(words) => {
                // SAFETY: both are 32 bytes of plain integers.
                Some(unsafe { core::mem::transmute::<[u64; 4], Endpoint>(words) })
            }
            Probe::Absent => None,
            Probe::AskHash => {
                // As in `service`.
                let key = *key;
                // SAFETY: entries are replaced whole, and copied at once.
                unsafe { ENDPOINTS.get(key) }.copied()
            }
        }
    }

    #[inline(always)]
    fn flow(&self, endpoint: u32, client: Address, client_port: u16) -> Option<u32> {
        let key = Key::udp(endpoint, client, client_port);
        flow::find(self.flow_bucket(&key)?, &key, coarse_ticks(jiffies()))
            .or_else(|| earlier::flow(&key, self.table_seed))
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: only the tc programs ask, whose context is a socket buffer's and valid for the whole program.
        unsafe { (*self.context.cast::<__sk_buff>()).ifindex }
    }

    #[inline(always)]
    fn backend_vip(&self, backend: u32) -> Option<ServiceKey> {
        BACKEND_VIPS.get(backend).copied()
    }

    #[inline(always)]
    fn counts(&self, endpoint: u32) -> Option<&BypassCount> {
        ENDPOINT_BYPASSES.get(endpoint)
    }

    #[inline(always)]
    fn has_earlier(&self) -> bool {
        earlier::has_bypasses()
    }

    #[inline(always)]
    fn coarse_now(&self) -> u32 {
        coarse_ticks(jiffies())
    }

    #[inline(always)]
    fn hear(&self, segment: &Segment) {
        // Two functions, because each has fewer bytes of stack than both.
        match segment.opaque {
            0 => crate::apart::sluice_watch(self.context.cast(), segment),
            _ => crate::apart::sluice_record(segment),
        };
    }
}
