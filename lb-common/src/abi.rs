//! What kernel and user space exchange through maps. Ports and identifiers are host-order integers and addresses
//! are bytes in the order people write them, so that `bpftool map dump` can be read.
//!
//! All structs are `repr(C)` with explicit padding, which is zero: keys are compared as bytes. Padding is made of
//! integers: an array would be cleared by a call of `memset`, which costs a packet more than a lookup.

use core::mem::offset_of;

use crate::{address::Address, index::Filter, word::Word};

/// Version of this layout. A data plane of another version is not adopted as it is. CONTRIBUTING.md says when it is
/// raised.
pub const ABI_VERSION: u32 = RELEASED + cfg!(feature = "next-abi") as u32;
/// Of what is released next: nothing has been so far. The feature `next-abi` stands for the release after it.
const RELEASED: u32 = 2;

/// IANA protocol numbers.
pub mod protocol {
    use network_types::ip::IpProto;
    /// RFC 792.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// RFC 9293.
    pub const TCP: u8 = IpProto::Tcp as u8;
    /// RFC 768.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// RFC 4443.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
}

/// An (address, port, protocol): key of `services` with a VIP, of `endpoints` with a pod's address; of a pod that owns the
/// VIP itself (rung `direct`), with the VIP and the pod's interface, because several pods may own it.
/// Port and protocol 0 stand for the address as a whole in the index of VIPs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct ServiceKey {
    /// VIP, or the pod's address.
    pub address: Address,
    /// Host order.
    pub port: u16,
    /// IANA number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// The host-side interface of a pod that owns the VIP; 0 in every other key.
    pub interface: u32,
}
const _: () = assert!(size_of::<ServiceKey>() == 24);

impl ServiceKey {
    /// Key of this address, port and protocol.
    #[inline(always)]
    pub const fn new(address: Address, port: u16, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0, interface: 0 }
    }

    /// The same at the interface of a pod that owns the VIP.
    #[inline(always)]
    pub const fn at(self, interface: u32) -> Self {
        Self { interface, ..self }
    }

    /// Key of the VIP itself.
    #[inline(always)]
    pub const fn of_vip(address: Address) -> Self {
        Self::new(address, 0, 0)
    }
}

/// Value of `services`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Service {
    /// As without the feature.
    #[cfg(feature = "next-abi")]
    pub affinity: u32,
    /// First slot in `maglev`.
    pub slots: u32,
    /// First entry in `backends`.
    pub backends: u32,
    /// Entries in `backends`; 0 refuses.
    pub backends_count: u16,
    /// Logarithm to base 2 of the number of slots.
    pub slots_log2: u8,
    /// [`service_flags`].
    pub flags: u8,
    /// First entry in `histories`.
    pub histories: u32,
    /// Names the service in `flows`.
    pub id: u32,
    /// How long a client's record counts, in [`coarse_ticks`].
    #[cfg(not(feature = "next-abi"))]
    pub affinity: u32,
}
const _: () = assert!(size_of::<Service>() == 24);

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// UDP: clients are recorded in `flows`.
    pub const RECORD: u8 = 1 << 0;
    /// Without a client behind it: the entry stands for a VIP as a whole.
    pub const VIP: u8 = 1 << 1;
    /// Clients are kept together by their address: their port is not in the hash that chooses slots.
    pub const AFFINITY: u8 = 1 << 3;
    /// TCP: what is said of [`AFFINITY`] has changed, and connections from before are in the slots of the other hash.
    pub const REHASHED: u8 = 1 << 4;
    /// TCP: a backend is opaque.
    pub const OPAQUE: u8 = 1 << 5;
    /// What makes a TCP packet one that is offered, whether its slot has moved or not.
    pub const OFFERED: u8 = REHASHED | OPAQUE;
}

/// Sixteen slots of a Maglev table, because array elements take eight bytes at least and slots are four.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(64))]
pub struct SlotBlock {
    /// Consecutive slots.
    pub slots: [Slot; SLOTS_PER_BLOCK],
}
/// Slots in one element of `maglev`.
pub const SLOTS_PER_BLOCK: usize = 16;
const _: () = assert!(size_of::<SlotBlock>() == 4 * SLOTS_PER_BLOCK);

/// One slot of a Maglev table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(4))]
pub struct Slot {
    /// Current owner: position in the service's range of `backends`, or [`NO_OWNER`].
    pub owner: u16,
    /// The slot's earlier owners: 1 + position in the service's range of `histories`; 0: none, the slot is stable.
    pub history: u16,
}

/// In [`Slot::owner`]: no backend takes new connections.
pub const NO_OWNER: u16 = u16::MAX;

/// Value of `histories`: earlier owners that may hold a connection of a slot, the latest first. Shared between slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C, align(8))]
pub struct History {
    /// How many there are.
    pub count: u16,
    /// Positions in the service's range of `backends`.
    pub owners: [u16; HISTORY],
}
const _: () = assert!(size_of::<History>() == 16);

/// Earlier owners that a slot remembers at most.
pub const HISTORY: usize = 7;

/// Value of `backends`: a pod's (address, port) as a backend of one service, with the way to it. One cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(64))]
pub struct Backend {
    /// The address that the pod knows itself by: its own; the VIP where the rung is `direct`.
    pub address: Address,
    /// As without the feature.
    #[cfg(feature = "next-abi")]
    pub endpoint: u32,
    /// Index into `backend_vips` and `backend_counters`; stays while the backend is one of the service.
    pub id: u32,
    /// Index into `endpoint_bypasses`: the pod's (address, port, protocol), whichever services have it.
    #[cfg(not(feature = "next-abi"))]
    pub endpoint: u32,
    /// The host-side interface.
    pub ifindex: u32,
    /// Index of that interface in `tx_ports`.
    pub tx_port: u32,
    /// Bytes of the largest IP packet that the interface takes.
    pub mtu: u32,
    /// The pod's network namespace as `IFLA_LINK_NETNSID` of its host-side veth names it, [`HOST_NETNS`], or
    /// [`NO_NETNS`].
    pub netns_id: u32,
    /// Grows each time the way to the pod changes.
    pub generation: u32,
    /// The pod's port, host order.
    pub port: u16,
    /// [`rung`]; 0 where the backend cannot be reached.
    pub rung: u8,
    /// [`backend_flags`].
    pub flags: u8,
    /// The pod's MAC.
    pub destination_mac: [u8; 6],
    /// The host-side interface's MAC.
    pub source_mac: [u8; 6],
    /// What checksums change by where the VIP becomes the pod's address: [`change_address`](crate::checksum).
    pub address_change: u32,
}
const _: () = assert!(size_of::<Backend>() == 64);

/// Value of `members`, by [`Backend::id`]: whose backend that is. Programs do not know this map: the agent writes it, and
/// reads it when it takes over what an earlier agent has left, because all else that is in the maps names pods by
/// position. Written after the backend's entry in `backends`, cleared last of all: a member whose entry has another id
/// is not one of its service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Member {
    /// The service that it is a backend of, as the key of `services`.
    pub service: ServiceKey,
    /// The pod's own address, also where [`Backend::address`] is the VIP.
    pub pod: Address,
    /// Grows with each backend that comes: of the services that have an endpoint, the one with the smallest has had it
    /// longest.
    pub since: u64,
    /// [`Backend::endpoint`].
    pub endpoint: u32,
    /// The pod's port, host order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// Share of new connections, as configured.
    pub weight: u16,
    /// Index in the service's range of `backends`.
    pub position: u16,
    /// [`member_flags`]; 0 where the id is free.
    pub flags: u16,
    /// Zero.
    pub pad2: u16,
}
const _: () = assert!(size_of::<Member>() == 64 && offset_of!(Member, weight) == 56);

/// Bits of [`Member::flags`].
pub mod member_flags {
    /// The id is in use.
    pub const USED: u16 = 1 << 0;
    /// The pod owns the VIP (rung `direct`).
    pub const DIRECT: u16 = 1 << 1;
    /// It takes no new connections, as configured.
    pub const DRAIN: u16 = 1 << 2;
}

/// Positions in `programs`.
pub mod program {
    /// `sluice_xdp_slow`.
    pub const SLOW: u32 = 0;
    /// `sluice_xdp_fragment`.
    pub const FRAGMENT: u32 = 1;
    /// `sluice_xdp_neighbor`.
    pub const NEIGHBOR: u32 = 2;
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// Positions in `return_programs`.
pub mod return_program {
    /// `sluice_return_slow`.
    pub const SLOW: u32 = 0;
    /// `sluice_return_fragment`.
    pub const POD_FRAGMENT: u32 = 1;
    /// `sluice_out_fragment`.
    pub const UPLINK_FRAGMENT: u32 = 2;
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// In [`Backend::netns_id`]: the pod cannot be asked for its sockets.
pub const NO_NETNS: u32 = u32::MAX;
/// In [`Backend::netns_id`]: the node's own namespace.
pub const HOST_NETNS: u32 = u32::MAX - 1;

/// Bits of [`Backend::flags`].
pub mod backend_flags {
    /// The service is not the default one of this endpoint: its connections are recorded in `bypasses`.
    pub const RECORD: u8 = 1 << 0;
    /// Of a service with client affinity: it takes no new connection, whatever a client's record says.
    pub const DRAINS: u8 = 1 << 3;
    /// The pod's sockets cannot be seen: its connections are recorded in `flows`, and it is not asked.
    pub const OPAQUE: u8 = 1 << 5;
}

/// Values of [`Backend::rung`].
pub mod rung {
    /// The backend cannot be reached.
    pub const NONE: u8 = 0;
    /// `XDP_REDIRECT` into the host-side veth.
    pub const REDIRECT: u8 = 1;
    /// `bpf_redirect_peer` at the uplink's tc ingress.
    pub const PEER: u8 = 2;
    /// The node's own stack routes.
    pub const STACK: u8 = 3;
    /// As `redirect`, but the pod owns the VIP: not rewritten, TTL included.
    pub const DIRECT: u8 = 4;
}

/// Value of `endpoints`: what the return path knows of a pod's (address, port, protocol).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Endpoint {
    /// As without the feature.
    #[cfg(feature = "next-abi")]
    pub netns_id: u32,
    /// As without the feature.
    #[cfg(feature = "next-abi")]
    pub backend: u32,
    /// VIP of the default service: the oldest that has this endpoint.
    pub vip: Address,
    /// Port of the default service, host order.
    pub vip_port: u16,
    /// [`endpoint_flags`].
    pub flags: u16,
    /// Index into `endpoint_bypasses`.
    pub id: u32,
    /// Id of the endpoint as a backend of the default service.
    #[cfg(not(feature = "next-abi"))]
    pub backend: u32,
    /// As [`Backend::netns_id`].
    #[cfg(not(feature = "next-abi"))]
    pub netns_id: u32,
}
const _: () = assert!(size_of::<Endpoint>() == 32);

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// What leaves the endpoint's port belongs to the default service unless it is recorded otherwise.
    pub const STATIC: u16 = 1 << 0;
    /// What leaves the endpoint's port belongs to the service that `flows` has for the client.
    pub const RECORDED: u16 = 1 << 1;
    /// Delivered by the stack: replies are rewritten at the uplink, not at the pod's interface.
    pub const STACK: u16 = 1 << 2;
    /// Not served yet: bypasses are recorded, replies are left alone.
    pub const LEARNING: u16 = 1 << 3;
    /// The agent's own, for the length of a self-test.
    pub const SELF_TEST: u16 = 1 << 4;
    /// The pod's sockets cannot be seen: what leaves by TCP is recorded in `flows`.
    pub const OPAQUE: u16 = 1 << 7;
}

/// Key of `bypasses`: one connection of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
#[repr(C)]
pub struct BypassKey {
    /// The other end.
    pub client: Address,
    /// The pod.
    pub pod: Address,
    /// Host order.
    pub client_port: u16,
    /// Host order.
    pub pod_port: u16,
    /// IANA number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad2: u16,
}
const _: () = assert!(size_of::<BypassKey>() == 40);

/// Value of `bypasses`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Bypass {
    /// What a later release may record. Zero.
    #[cfg(feature = "next-abi")]
    pub later: u64,
    /// [`NO_BACKEND`]: the connection reached the pod without a VIP. Otherwise the id of the backend it came to, which
    /// says through which service.
    pub backend: u32,
    /// When it was last written, in ticks of [`coarse_ticks`].
    pub since: u32,
}
const _: () = assert!(size_of::<Bypass>() == 8 + 8 * cfg!(feature = "next-abi") as usize);

impl Bypass {
    /// Record of a connection of this backend, or [`NO_BACKEND`], at this coarse time.
    #[inline(always)]
    pub const fn new(backend: u32, since: u32) -> Self {
        Self {
            #[cfg(feature = "next-abi")]
            later: 0,
            backend,
            since,
        }
    }
}

/// In [`Bypass::backend`]: none of any service, the connection is left alone.
pub const NO_BACKEND: u32 = u32::MAX;

/// Packets and bytes that one CPU has seen: value of `reasons`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of whole frames.
    pub bytes: u64,
}

/// Forwarded packets and bytes that one CPU has seen: value of `backend_counters`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Traffic {
    /// Packets from clients.
    pub packets: u64,
    /// Bytes of whole frames from clients.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes of whole frames to clients.
    pub reply_bytes: u64,
}

impl core::ops::Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            reply_packets: self.reply_packets + other.reply_packets,
            reply_bytes: self.reply_bytes + other.reply_bytes,
        }
    }
}

/// Value of `node`, one element: what is asked for every packet, behind one lookup.
#[repr(C)]
pub struct Node {
    /// What the agent may change while the programs run.
    pub settings: Settings,
    /// Addresses that are no VIP, by hash.
    pub vip_filter: Filter,
}

/// What the agent may change while the programs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Settings {
    /// [`ABI_VERSION`].
    pub abi_version: u32,
    /// Where replies to clients on this node come in: the first uplink's interface.
    pub uplink: u32,
    /// Cluster-wide seed of the hash that chooses slots.
    pub maglev_seed: u64,
    /// This node's seed of the flow cache and the indexes.
    pub table_seed: u64,
    /// Source of ICMP Time Exceeded for IPv4; zero: the packet's own destination.
    pub node_v4: Address,
    /// Source of ICMP Time Exceeded for IPv6; zero: the packet's own destination.
    pub node_v6: Address,
    /// By [`limiter::Class`](crate::limiter::Class).
    pub limits: [Limit; 3],
    /// How long a remembered route of a client is used, in jiffies.
    pub route_lifetime: u64,
    /// Grows when a route or neighbour changes: what was remembered before is not used.
    pub route_epoch: u64,
    /// How long the record of a datagram lives after its last fragment, in jiffies, below 2^31.
    pub fragment_lifetime: u64,
}

/// A token bucket's parameters, in 1/65536 packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Limit {
    /// Tokens that the full bucket holds.
    pub burst: u64,
    /// Tokens that a jiffy brings.
    pub per_jiffy: u64,
}

/// A token bucket's state, one for each CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Bucket {
    /// In 1/65536 packets.
    pub tokens: u64,
    /// Jiffies of the last packet; 0: never used, the bucket is full.
    pub since: u64,
}

/// A remembered route to a client, one table for each CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Route {
    /// The client.
    pub client: Address,
    /// Jiffies at which it was asked for.
    pub since: u64,
    /// [`Settings::route_epoch`] of that moment.
    pub epoch: u64,
    /// Interface that it leaves by.
    pub ifindex: u32,
    /// Flags of `bpf_redirect`: `BPF_F_INGRESS` for a client on this node.
    pub flags: u32,
    /// Next hop's MAC.
    pub destination_mac: [u8; 6],
    /// Interface's MAC.
    pub source_mac: [u8; 6],
    /// Bytes of the longest IP packet that goes this way.
    pub mtu: u32,
}
const _: () = assert!(size_of::<Route>() == 56);

/// Value of `uplinks`, by interface index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Uplink {
    /// The interface's MAC.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

/// The number of bits by which jiffies are shifted to give the coarse time of records: 0.25 s at 1000 Hz, 1 s at 250.
pub const COARSE_SHIFT: u32 = 8;

/// Coarse time of records, wrapping.
#[inline(always)]
pub const fn coarse_ticks(jiffies: u64) -> u32 {
    (jiffies >> COARSE_SHIFT) as u32
}

/// How many bypasses (and records of other services) an endpoint has, and whether its sockets are seen: value of
/// `endpoint_bypasses`.
#[repr(C)]
pub struct BypassCount {
    /// Never less than the records in the map.
    pub count: Word,
    /// Segments with payload that were looked after.
    pub watch: Watch,
}
const _: () = assert!(size_of::<BypassCount>() == 32);

/// TCP: segments with payload that left an endpoint and whose socket was looked for. UDP: datagrams that the pod's kernel had
/// no socket for. Counts of segments are not exact: programs on several CPUs may write at once.
#[repr(C)]
pub struct Watch {
    /// Bits 0–31: how many, the latest, had no socket. Bits 32–63: when the last was looked after, in ticks of
    /// [`coarse_ticks`].
    pub run: Word,
    /// How many had none. Of UDP: port unreachables from the pod about datagrams to the endpoint.
    pub unseen: Word,
    /// How many had one.
    pub seen: Word,
}

impl Watch {
    /// Whether a segment may be looked after: once in a tick, so that a burst counts once.
    #[inline(always)]
    pub fn is_due(&self, now: u32) -> bool {
        (self.run.load() >> 32) as u32 != now
    }

    /// Counts a segment that was looked after.
    #[inline(always)]
    pub fn note(&self, seen: bool, now: u32) {
        let tick = (now as u64) << 32;
        if seen {
            self.seen.add(1);
            self.run.store(tick);
        } else {
            self.unseen.add(1);
            self.run.store(tick | (self.run.load() as u32).saturating_add(1) as u64);
        }
    }

    /// Counts a datagram that found no socket.
    #[inline(always)]
    pub fn note_refused(&self) {
        self.unseen.add(1);
    }

    /// How many datagrams found no socket since the endpoint's id was given out or its pod changed.
    pub fn refused(&self) -> u64 {
        self.unseen.load()
    }

    /// How many segments in a row had no socket.
    pub fn run(&self) -> u32 {
        self.run.load() as u32
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.run.store(0);
        self.unseen.store(0);
        self.seen.store(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_counts_once_in_a_tick_and_from_the_last_socket_on() {
        let word = || Word::new(0);
        let watch = Watch { run: word(), unseen: word(), seen: word() };
        for now in 1..4 {
            assert!(watch.is_due(now));
            watch.note(false, now);
            assert!(!watch.is_due(now));
        }
        assert_eq!(watch.run(), 3);
        watch.note(true, 4);
        assert_eq!((watch.run(), watch.unseen.load(), watch.seen.load()), (0, 3, 1));
    }
}
