//! Why a packet went where it went. Each packet is counted once: what is forwarded, and what is sent back under a VIP, in
//! `backend_counters`, from which the agent reckons the first two reasons; the rest under its reason.

/// Outcome of one packet at one program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Reason {
    /// To a VIP, and on its way to a backend.
    Forwarded = 0,
    /// A reply of a pod that now carries the VIP, or did before.
    Replied,
    /// An ICMP echo request to a VIP, answered.
    EchoAnswered,
    /// A closed port of a VIP: TCP RST or ICMP port unreachable.
    PortClosed,
    /// A service without a backend: TCP RST or ICMP port unreachable.
    NoBackend,
    /// TTL or hop limit used up: ICMP Time Exceeded.
    TtlExceeded,
    /// Longer than the pod's MTU: ICMP Fragmentation Needed or Packet Too Big.
    TooBig,
    /// Neither IPv4 nor IPv6: passed.
    NotIp,
    /// To no VIP: passed.
    NotForUs,
    /// To a VIP, neither TCP, UDP, ICMP echo nor an ICMP error about TCP or UDP: passed.
    OtherProtocol,
    /// A fragment to a VIP, neither of TCP nor of UDP: passed.
    Fragment,
    /// To a VIP, with a header that is cut short or contradicts itself: dropped.
    Malformed,
    /// To a VIP, with more IPv6 extension headers, or longer ones, than are looked through: dropped.
    TooManyHeaders,
    /// A RST, or something else that must not be answered, to what would be refused: dropped.
    NotAnswered,
    /// An answer above its rate limit: dropped.
    RateLimited,
    /// The chosen backend cannot be reached now: dropped.
    BackendUnreachable,
    /// A table that contradicts another, which is a defect or a map changed by hand: dropped.
    BrokenTable,
    /// A connection that must be recorded, while the map of bypasses is full: dropped.
    BypassesFull,
    /// The next hop's port is gone from the device map: dropped.
    NoPort,
    /// The frame could not be resized or marked: dropped.
    NoRoom,
    /// From a pod, and no reply of a service: passed.
    NotAReply,
    /// A reply of a connection that reached the pod without a VIP: passed.
    Bypassed,
    /// To a pod, beside Sluice, and recorded (or known) as a bypass: passed.
    BypassSeen,
    /// UDP from an endpoint to somebody whose packets did not come through the VIP: passed.
    Unrecorded,
    /// The pod's answer to the agent's self-test: dropped, its work being done.
    SelfTest,
    /// A reply whose record names a service that is gone: dropped.
    RecordWithoutService,
    /// From outside, with the source address by which `sluice_xdp` marks its own: dropped.
    ForeignMark,
    /// A reply to an address that is a VIP, whose packet was forged: dropped.
    ReplyToVip,
    /// A segment of a connection that came another way, with the addresses of a service that has no such: dropped.
    ForeignSession,
    /// A segment of no connection, to a service that is not the default of its pods' port: refused by a RST.
    NoSession,
    /// Counted beside the packet's own reason: its slot names a history that is not there.
    BrokenHistory,
    /// For the slow path, which is not in its place: dropped; by the return programs passed.
    NoSlowPath,
    /// An ICMP error to a VIP that quotes what the VIP cannot have sent: another's packet, or an ICMP error: dropped.
    IcmpForeign,
    /// An ICMP error to a VIP that quotes a later fragment, which has no ports: dropped.
    IcmpNoPorts,
    /// An ICMP error to a VIP about a packet of no service, or of one without a backend: dropped.
    IcmpUnowned,
    /// A reply longer than the way to its client takes, left to the stack as it came: it tells the pod.
    ReplyTooBig,
    /// A fragment whose datagram's first one has not come by, or long ago, or whose backend has changed: dropped.
    FragmentUnmatched,
    /// A first fragment without its whole transport header, or another one that reaches into it: dropped.
    BadFragment,
    /// A first fragment for whose record there is no room: dropped.
    FragmentsFull,
    /// An ARP request or a neighbor solicitation for a VIP that this node holds, answered.
    NeighborAnswered,
    /// The same for a VIP that this node announces at times, and does not hold: dropped.
    NeighborElsewhere,
    /// Somebody else says that a VIP is his which this node holds: dropped if it asks, else passed.
    NeighborConflict,
    /// To the MAC of a virtual router that is not active on this node: dropped.
    VirtualMacElsewhere,
}

/// How many reasons there are.
pub const REASONS: usize = 43;

impl Reason {
    /// Every reason, its name as maps, metrics and the status show it, and what it means, in the order of the map's
    /// keys.
    pub const ALL: [(Self, &'static str, &'static str); REASONS] = [
        (Self::Forwarded, "forwarded", "To a VIP, and on its way to a backend: counted in backend_counters"),
        (Self::Replied, "replied", "A reply of a pod that now carries the VIP: counted in backend_counters"),
        (Self::EchoAnswered, "echo_answered", "An ICMP echo request to a VIP, answered"),
        (Self::PortClosed, "port_closed", "A closed port of a VIP: TCP RST or ICMP port unreachable"),
        (Self::NoBackend, "no_backend", "A service without a backend: TCP RST or ICMP port unreachable"),
        (Self::TtlExceeded, "ttl_exceeded", "TTL or hop limit used up: ICMP Time Exceeded"),
        (Self::TooBig, "too_big", "Longer than the pod's MTU: ICMP Fragmentation Needed or Packet Too Big"),
        (Self::NotIp, "not_ip", "Neither IPv4 nor IPv6: passed"),
        (Self::NotForUs, "not_for_us", "To no VIP: passed"),
        (
            Self::OtherProtocol,
            "other_protocol",
            "To a VIP, neither TCP, UDP, ICMP echo nor an ICMP error about these: passed",
        ),
        (Self::Fragment, "fragment", "A fragment to a VIP, neither of TCP nor of UDP: passed"),
        (Self::Malformed, "malformed", "To a VIP, with a header that is cut short or contradicts itself: dropped"),
        (
            Self::TooManyHeaders,
            "too_many_headers",
            "To a VIP, with more IPv6 extension headers, or longer ones, than are looked through: dropped",
        ),
        (
            Self::NotAnswered,
            "not_answered",
            "A RST, or something else that must not be answered, to what would be refused: dropped",
        ),
        (Self::RateLimited, "rate_limited", "An answer above its rate limit: dropped"),
        (Self::BackendUnreachable, "backend_unreachable", "The chosen backend cannot be reached now: dropped"),
        (
            Self::BrokenTable,
            "broken_table",
            "A table that contradicts another, which is a defect or a map changed by hand: dropped",
        ),
        (
            Self::BypassesFull,
            "bypasses_full",
            "A connection that must be recorded, while the map of bypasses is full: dropped",
        ),
        (Self::NoPort, "no_port", "The next hop's port is gone from the device map: dropped"),
        (Self::NoRoom, "no_room", "The frame could not be resized or marked: dropped"),
        (Self::NotAReply, "not_a_reply", "From a pod, and no reply of a service: passed"),
        (Self::Bypassed, "bypassed", "A reply of a connection that reached the pod without a VIP: passed"),
        (Self::BypassSeen, "bypass_seen", "To a pod, beside Sluice, and recorded (or known) as a bypass: passed"),
        (
            Self::Unrecorded,
            "unrecorded",
            "UDP from an endpoint to somebody whose packets did not come through the VIP: passed",
        ),
        (Self::SelfTest, "self_test", "The pod's answer to the agent's self-test: dropped, its work being done"),
        (
            Self::RecordWithoutService,
            "record_without_service",
            "A reply whose record names a service that is gone: dropped",
        ),
        (
            Self::ForeignMark,
            "foreign_mark",
            "From outside, with the source address by which sluice_xdp marks its own: dropped",
        ),
        (Self::ReplyToVip, "reply_to_vip", "A reply to a VIP, as what was forged asks for: dropped"),
        (Self::ForeignSession, "foreign_session", "Of a connection that reached its pod in another way: dropped"),
        (Self::NoSession, "no_session", "Of no connection, through a service that records its connections: TCP RST"),
        (Self::BrokenHistory, "broken_history", "Beside the packet's own reason: its slot's history is not there"),
        (Self::NoSlowPath, "no_slow_path", "For a program that is not in its place: dropped; ICMP of pods passed"),
        (
            Self::IcmpForeign,
            "icmp_foreign",
            "An ICMP error to a VIP that quotes what the VIP cannot have sent: dropped",
        ),
        (Self::IcmpNoPorts, "icmp_no_ports", "An ICMP error to a VIP that quotes a later fragment: dropped"),
        (Self::IcmpUnowned, "icmp_unowned", "An ICMP error to a VIP about a packet of no service: dropped"),
        (
            Self::ReplyTooBig,
            "reply_too_big",
            "A reply longer than its way takes, left to the stack, which tells the pod",
        ),
        (
            Self::FragmentUnmatched,
            "fragment_unmatched",
            "A fragment whose datagram's first one is not on record, or whose backend has changed: dropped",
        ),
        (
            Self::BadFragment,
            "bad_fragment",
            "A first fragment without its whole transport header, or another one that reaches into it: dropped",
        ),
        (Self::FragmentsFull, "fragments_full", "A first fragment for whose record there is no room: dropped"),
        (
            Self::NeighborAnswered,
            "neighbor_answered",
            "An ARP request or a neighbor solicitation for a VIP that this node holds, answered",
        ),
        (
            Self::NeighborElsewhere,
            "neighbor_elsewhere",
            "ARP or a neighbor solicitation for a VIP that this node may hold, and does not: dropped",
        ),
        (
            Self::NeighborConflict,
            "neighbor_conflict",
            "ARP or Neighbor Discovery by which another MAC claims a VIP that this node holds",
        ),
        (
            Self::VirtualMacElsewhere,
            "virtual_mac_elsewhere",
            "To the MAC of a virtual router that is not active on this node: dropped",
        ),
    ];

    /// Key in the map `reasons`.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The name as maps, metrics and the status show it.
    pub const fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// What it means, in a line.
    pub const fn doc(self) -> &'static str {
        Self::ALL[self as usize].2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_complete_and_in_the_order_of_the_keys() {
        for (i, (reason, ..)) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index() as usize, i);
        }
        assert_eq!(Reason::VirtualMacElsewhere.index() as usize + 1, REASONS);
    }
}
