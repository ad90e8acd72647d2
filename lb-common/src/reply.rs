//! The return path: which packets of a pod are replies of a service, and which connections reach a pod beside it.
//!
//! These decide only; the tc programs rewrite, because only the kernel knows whether a checksum is complete.

use crate::{
    abi::{BypassCount, BypassKey, Endpoint, NO_BACKEND, ServiceKey, endpoint_flags, protocol, return_program},
    address::Address,
    headers::{self, Headers, TCP, UDP},
    opaque::Segment,
    packet::{Frame, View},
    reason::Reason,
    session::{self, Beside, Sessions, flag},
};

/// What the return path asks and tells. BPF maps in the kernel, memory on the host.
pub trait ReturnTables: Sessions {
    /// The endpoint at a pod's address, protocol and port.
    fn endpoint(&self, key: &ServiceKey) -> Option<Endpoint>;
    /// As which service's backend a UDP client reached an endpoint.
    fn flow(&self, endpoint: u32, client: Address, client_port: u16) -> Option<u32>;
    /// The interface that the packet comes in by.
    fn interface(&self) -> u32;
    /// VIP and port of a backend's service.
    fn backend_vip(&self, backend: u32) -> Option<ServiceKey>;
    /// What is counted of an endpoint.
    fn counts(&self, endpoint: u32) -> Option<&BypassCount>;

    /// Whether bypasses may be recorded in an earlier data plane's map, where nothing counts them.
    fn has_earlier(&self) -> bool {
        false
    }
    /// Time of records.
    fn coarse_now(&self) -> u32;
    /// [`opaque::record`](crate::opaque::record) or [`opaque::watch`](crate::opaque::watch), apart from the rest.
    fn hear(&self, segment: &Segment);
}

/// Where a reply is rewritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On the pod's host-side interface, before the node's stack.
    Pod,
    /// On the uplink, after the node's stack, for endpoints that the stack delivers to.
    Uplink,
}

impl Place {
    /// Where `return_programs` has what decides about fragments.
    #[inline(always)]
    pub const fn fragment_program(self) -> u32 {
        match self {
            Self::Pod => return_program::POD_FRAGMENT,
            Self::Uplink => return_program::UPLINK_FRAGMENT,
        }
    }
}

/// What becomes of a packet from a pod.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// Left as it is.
    Pass(Reason),
    /// Not forwarded.
    Drop(Reason),
    /// Source address and port become these.
    Rewrite {
        /// Where the headers are.
        headers: Headers,
        /// The VIP.
        vip: Address,
        /// Its port, host order; 0 where the packet is a fragment that carries none.
        port: u16,
        /// The id of the backend that the reply is counted under.
        backend: u32,
    },
    /// Sent out as it is, TTL included: the pod owns the VIP.
    Leave {
        /// Where the headers are.
        headers: Headers,
        /// The id of the backend that the reply is counted under.
        backend: u32,
    },
    /// An ICMP message, for [`to_client`](crate::icmp::to_client) to decide about.
    Message,
    /// A fragment, for [`slow_reply`](crate::slow_reply::reply) to decide.
    Fragment,
    /// The answer to the agent's self-test, which is counted under the backend and goes no further.
    Answer {
        /// The backend's id.
        backend: u32,
    },
}

/// No backend's id, and not [`NO_BACKEND`] either.
const UNRECORDED: u64 = u64::MAX;

/// Decides about a packet that leaves a pod.
#[inline(always)]
pub fn reply<F: Frame, T: ReturnTables>(frame: &F, tables: &T, place: Place) -> Reply {
    let Some(headers) = headers::parse(frame) else {
        return Reply::Pass(Reason::NotAReply);
    };
    if let Some(defect) = headers.defect {
        return if matches!(defect, Reason::Fragment) { Reply::Fragment } else { Reply::Pass(Reason::NotAReply) };
    }
    decide(frame, tables, place, headers, true)
}

/// The same where the headers are known to be whole; `learns` where the pod is to be learned about, too.
#[inline(always)]
pub(crate) fn decide<F: Frame, T: ReturnTables>(
    frame: &F,
    tables: &T,
    place: Place,
    headers: Headers,
    learns: bool,
) -> Reply {
    let (source_port, destination_port, flags) = match transport(frame, &headers) {
        Ok(transport) => transport,
        Err(reply) => return reply,
    };
    let key = BypassKey {
        client: headers.destination,
        pod: headers.source,
        client_port: destination_port,
        pod_port: source_port,
        protocol: headers.protocol,
        pad: 0,
        pad2: 0,
    };
    let opens = headers.protocol == protocol::TCP && session::opens(flags);
    match through(tables, &key, opens, place) {
        // The stack tells the pod.
        Through::Service { .. } if place == Place::Pod && headers.hops <= 1 => Reply::Pass(Reason::TtlExceeded),
        Through::Service { backend, vip, port, heard } => {
            let Heard { endpoint, netns_id, is_opaque, is_due } = heard;
            if learns
                && is_due
                && headers.protocol == protocol::TCP
                && let Some(payload) = has_payload(frame, &headers)
                && (is_opaque || payload && flags & (flag::SYN | flag::RST) == 0)
            {
                tables.hear(&Segment {
                    key,
                    vip,
                    vip_port: port,
                    flags,
                    payload: payload as u8,
                    endpoint,
                    backend,
                    netns_id,
                    opaque: is_opaque as u32,
                    pad: 0,
                });
            }
            Reply::Rewrite { headers, vip, port, backend }
        }
        Through::Nobody => {
            from_owner(tables, &headers, ServiceKey::new(key.pod, key.pod_port, key.protocol), flags, place)
        }
        Through::Passed(reason) => Reply::Pass(reason),
        Through::Dropped(reason) => Reply::Drop(reason),
        Through::SelfTest { backend } => Reply::Answer { backend },
    }
}

/// Which way the packets came that a pod answers.
#[derive(Clone, Copy, Debug)]
pub enum Through {
    /// Through this service.
    Service {
        /// The id of the backend there.
        backend: u32,
        /// The VIP.
        vip: Address,
        /// Its port, host order.
        port: u16,
        /// The endpoint.
        heard: Heard,
    },
    /// The packet is of no endpoint.
    Nobody,
    /// Another way, or nobody knows: the pod's packet is left as it is.
    Passed(Reason),
    /// The pod's packet is not forwarded.
    Dropped(Reason),
    /// From the agent, who asks this backend.
    SelfTest {
        /// The backend's id.
        backend: u32,
    },
}

/// What is to be learned from a segment of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// The endpoint's id.
    pub endpoint: u32,
    /// The pod's network namespace.
    pub netns_id: u32,
    /// Whether the endpoint is known to be opaque.
    pub is_opaque: bool,
    /// Whether the segment may be looked at.
    pub is_due: bool,
}

/// Which way a client reached a pod; `opens` where the pod opens the connection itself.
#[inline(always)]
pub fn through<T: ReturnTables>(tables: &T, key: &BypassKey, opens: bool, place: Place) -> Through {
    let Some(endpoint) = tables.endpoint(&ServiceKey::new(key.pod, key.pod_port, key.protocol)) else {
        return Through::Nobody;
    };
    // The agent's question is asked through the rung, and answered wherever that rung's replies come by.
    if (endpoint.flags & endpoint_flags::STACK != 0) != (place == Place::Uplink) {
        return Through::Passed(Reason::NotAReply);
    }
    if endpoint.flags & endpoint_flags::SELF_TEST != 0 {
        return Through::SelfTest { backend: endpoint.backend };
    }
    if endpoint.flags & endpoint_flags::LEARNING != 0 {
        return Through::Passed(Reason::NotAReply);
    }
    // A pod that opens a connection from its service's port does so on its own account.
    if opens {
        return match tables.record_bypass(key, endpoint.id, NO_BACKEND) {
            true => Through::Passed(Reason::Bypassed),
            false => Through::Dropped(Reason::BypassesFull),
        };
    }
    // An integer, because the verifier refuses to see the value of an empty option moved.
    let mut recorded = UNRECORDED;
    if endpoint.flags & endpoint_flags::RECORDED != 0 {
        recorded = tables.flow(endpoint.id, key.client, key.client_port).map_or(UNRECORDED, u64::from);
        // Only a static service beside it may answer for what no record names.
        if recorded == UNRECORDED && endpoint.flags & endpoint_flags::STATIC == 0 {
            return Through::Passed(Reason::Unrecorded);
        }
    } else if endpoint.flags & endpoint_flags::STATIC == 0 {
        return Through::Passed(Reason::NotAReply);
    }
    let counts = tables.counts(endpoint.id);
    let has_bypasses = counts.is_some_and(|counts| counts.count.load() != 0) || tables.has_earlier();
    if recorded == UNRECORDED && has_bypasses {
        recorded = tables.bypass(key).map_or(UNRECORDED, |bypass| bypass.backend as u64);
    }
    let is_opaque = key.protocol == protocol::TCP && endpoint.flags & endpoint_flags::OPAQUE != 0;
    if is_opaque && recorded != UNRECORDED {
        // No socket tells that the connection lives.
        tables.refresh_bypass(key);
    }
    let (backend, vip, port) = if recorded == UNRECORDED {
        (endpoint.backend, endpoint.vip, endpoint.vip_port)
    } else if recorded == NO_BACKEND as u64 {
        return Through::Passed(Reason::Bypassed);
    } else {
        match tables.backend_vip(recorded as u32) {
            Some(address) if address.port != 0 => (recorded as u32, address.address, address.port),
            _ => return Through::Dropped(Reason::RecordWithoutService),
        }
    };
    // A service that answers anybody must not be made to talk to itself.
    if tables.may_be_vip(key.client) && tables.is_vip(key.client) {
        return Through::Dropped(Reason::ReplyToVip);
    }
    let is_due = is_opaque || counts.is_some_and(|counts| counts.watch.is_due(tables.coarse_now()));
    Through::Service {
        backend,
        vip,
        port,
        heard: Heard { endpoint: endpoint.id, netns_id: endpoint.netns_id, is_opaque, is_due },
    }
}

/// Decides about a packet whose source is no pod's: of a pod that owns a VIP, which is known by its interface. Another pod
/// that says so is left to the stack like any packet.
#[inline(always)]
fn from_owner<T: ReturnTables>(tables: &T, headers: &Headers, key: ServiceKey, flags: u8, place: Place) -> Reply {
    if place != Place::Pod || !tables.may_be_vip(headers.source) {
        return Reply::Pass(Reason::NotAReply);
    }
    let Some(endpoint) = tables.endpoint(&key.at(tables.interface())) else {
        return Reply::Pass(Reason::NotAReply);
    };
    if endpoint.flags & endpoint_flags::SELF_TEST != 0 {
        return Reply::Answer { backend: endpoint.backend };
    }
    // On its own account, as above; nothing is rewritten, so nothing need be remembered.
    if headers.protocol == protocol::TCP && session::opens(flags) {
        return Reply::Pass(Reason::Bypassed);
    }
    if tables.may_be_vip(headers.destination) && tables.is_vip(headers.destination) {
        return Reply::Drop(Reason::ReplyToVip);
    }
    Reply::Leave { headers: *headers, backend: endpoint.backend }
}

/// Whether a TCP segment has payload.
#[inline(always)]
fn has_payload<F: Frame>(frame: &F, headers: &Headers) -> Option<bool> {
    let header = (frame.at::<TCP>(headers.l4)?.get::<12, u8>() >> 4) as usize * 4;
    Some(headers.l4_length() > header)
}

/// What becomes of a packet towards a pod that Sluice did not deliver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Observed {
    /// Goes on.
    Pass(Reason),
    /// Not forwarded: its replies could not be told from those of a VIP.
    Drop(Reason),
}

/// Records a TCP connection that reaches an endpoint without a VIP. At the pod's interface everything that the stack
/// delivers comes by; at the uplink, what is addressed to endpoints that the stack delivers to.
#[inline(always)]
pub fn observe<F: Frame, T: ReturnTables>(frame: &F, tables: &T, place: Place) -> Observed {
    let Some(headers) = headers::parse(frame).filter(|headers| headers.defect.is_none()) else {
        return Observed::Pass(Reason::NotForUs);
    };
    let Ok((source_port, destination_port, flags)) = transport(frame, &headers) else {
        return Observed::Pass(Reason::NotForUs);
    };
    if headers.protocol != protocol::TCP {
        return Observed::Pass(Reason::NotForUs);
    }
    let key = ServiceKey::new(headers.destination, destination_port, headers.protocol);
    let Some(endpoint) = tables.endpoint(&key) else {
        return Observed::Pass(Reason::NotForUs);
    };
    if (endpoint.flags & endpoint_flags::STACK != 0) != (place == Place::Uplink)
        || endpoint.flags & endpoint_flags::SELF_TEST != 0
    {
        return Observed::Pass(Reason::NotForUs);
    }
    let key = BypassKey {
        client: headers.source,
        pod: headers.destination,
        client_port: source_port,
        pod_port: destination_port,
        protocol: headers.protocol,
        pad: 0,
        pad2: 0,
    };
    let learning = endpoint.flags & endpoint_flags::LEARNING != 0;
    match session::beside(tables, &key, endpoint.id, endpoint.netns_id, session::opens(flags), learning) {
        Beside::Seen => Observed::Pass(Reason::BypassSeen),
        Beside::Full => Observed::Drop(Reason::BypassesFull),
        Beside::TooMany => Observed::Drop(Reason::RateLimited),
    }
}

/// Source port, destination port and TCP flags of a TCP or UDP packet; what becomes of any other.
#[inline(always)]
fn transport<F: Frame>(frame: &F, headers: &Headers) -> Result<(u16, u16, u8), Reply> {
    const OTHER: Reply = Reply::Pass(Reason::NotAReply);
    let flags = match headers.protocol {
        protocol::TCP => frame.at::<TCP>(headers.l4).ok_or(OTHER)?.get::<13, u8>(),
        protocol::UDP => 0,
        protocol::ICMP if headers.is_v4 => return Err(Reply::Message),
        protocol::ICMPV6 if !headers.is_v4 => return Err(Reply::Message),
        _ => return Err(OTHER),
    };
    let ports = frame.at::<UDP>(headers.l4).ok_or(OTHER)?;
    Ok((u16::from_be(ports.get::<0, _>()), u16::from_be(ports.get::<2, _>()), flags))
}
