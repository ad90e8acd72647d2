//! The return path: which packets of a pod are replies of a service, and which connections reach a pod beside it.
//!
//! These decide only; the tc programs rewrite, because only the kernel knows whether a checksum is complete.

use crate::{
    abi::{BypassCount, BypassKey, Endpoint, NO_BACKEND, ServiceKey, endpoint_flags, protocol},
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
    /// Time of records.
    fn coarse_now(&self) -> u32;
    /// [`opaque::hear`](crate::opaque::hear), apart from the rest.
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
        /// Its port, host order.
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
    let Some((headers, source_port, destination_port, flags)) = transport(frame) else {
        return Reply::Pass(Reason::NotAReply);
    };
    let key = ServiceKey::new(headers.source, source_port, headers.protocol);
    let Some(endpoint) = tables.endpoint(&key) else {
        return from_owner(tables, &headers, key, flags, place);
    };
    // The agent's question is asked through the rung, and answered wherever that rung's replies come by.
    if (endpoint.flags & endpoint_flags::STACK != 0) != (place == Place::Uplink) {
        return Reply::Pass(Reason::NotAReply);
    }
    if endpoint.flags & endpoint_flags::SELF_TEST != 0 {
        return Reply::Answer { backend: endpoint.backend };
    }
    if endpoint.flags & endpoint_flags::LEARNING != 0 {
        return Reply::Pass(Reason::NotAReply);
    }
    let key = BypassKey {
        client: headers.destination,
        pod: headers.source,
        client_port: destination_port,
        pod_port: source_port,
        protocol: headers.protocol,
        pad: 0,
        pad2: 0,
    };
    // A pod that opens a connection from its service's port does so on its own account.
    if headers.protocol == protocol::TCP && session::opens(flags) {
        return match tables.record_bypass(&key, endpoint.id, NO_BACKEND) {
            true => Reply::Pass(Reason::Bypassed),
            false => Reply::Drop(Reason::BypassesFull),
        };
    }
    // An integer, because the verifier refuses to see the value of an empty option moved.
    let mut recorded = UNRECORDED;
    if endpoint.flags & endpoint_flags::RECORDED != 0 {
        recorded = tables.flow(endpoint.id, headers.destination, destination_port).map_or(UNRECORDED, u64::from);
        // Only a static service beside it may answer for what no record names.
        if recorded == UNRECORDED && endpoint.flags & endpoint_flags::STATIC == 0 {
            return Reply::Pass(Reason::Unrecorded);
        }
    } else if endpoint.flags & endpoint_flags::STATIC == 0 {
        return Reply::Pass(Reason::NotAReply);
    }
    let counts = tables.counts(endpoint.id);
    if recorded == UNRECORDED && counts.is_some_and(|counts| counts.count.load() != 0) {
        recorded = tables.bypass(&key).map_or(UNRECORDED, |bypass| bypass.backend as u64);
    }
    let is_opaque = headers.protocol == protocol::TCP && endpoint.flags & endpoint_flags::OPAQUE != 0;
    if is_opaque && recorded != UNRECORDED {
        // No socket tells that the connection lives.
        tables.refresh_bypass(&key);
    }
    let (backend, vip, port) = if recorded == UNRECORDED {
        (endpoint.backend, endpoint.vip, endpoint.vip_port)
    } else if recorded == NO_BACKEND as u64 {
        return Reply::Pass(Reason::Bypassed);
    } else {
        match tables.backend_vip(recorded as u32) {
            Some(address) if address.port != 0 => (recorded as u32, address.address, address.port),
            _ => return Reply::Drop(Reason::RecordWithoutService),
        }
    };
    // A service that answers anybody must not be made to talk to itself.
    if tables.may_be_vip(headers.destination) && tables.is_vip(headers.destination) {
        return Reply::Drop(Reason::ReplyToVip);
    }
    if place == Place::Pod && headers.hops <= 1 {
        // The stack tells the pod.
        return Reply::Pass(Reason::TtlExceeded);
    }
    let is_due = || counts.is_some_and(|counts| counts.watch.is_due(tables.coarse_now()));
    if headers.protocol == protocol::TCP && (is_opaque || is_due()) {
        let segment = Segment {
            key,
            vip,
            vip_port: port,
            flags,
            payload: 0,
            endpoint: endpoint.id,
            backend,
            netns_id: endpoint.netns_id,
            opaque: is_opaque as u32,
            pad: 0,
        };
        hear(frame, tables, &headers, &segment);
    }
    Reply::Rewrite { headers, vip, port, backend }
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

/// Learns what a reply says of its connection, or of its pod.
#[inline(always)]
fn hear<F: Frame, T: ReturnTables>(frame: &F, tables: &T, headers: &Headers, segment: &Segment) {
    let Some(tcp) = frame.at::<TCP>(headers.l4) else { return };
    let header = (tcp.get::<12, u8>() >> 4) as usize * 4;
    let payload = headers.l4_length() > header;
    // Until a segment with payload comes, each is looked at: no more than that.
    if segment.opaque != 0 || payload && segment.flags & (flag::SYN | flag::RST) == 0 {
        tables.hear(&Segment { payload: payload as u8, ..*segment });
    }
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
    let Some((headers, source_port, destination_port, flags)) = transport(frame) else {
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

/// Headers, source port, destination port and TCP flags of a whole TCP or UDP packet.
#[inline(always)]
fn transport<F: Frame>(frame: &F) -> Option<(Headers, u16, u16, u8)> {
    let headers = headers::parse(frame)?;
    if headers.defect.is_some() {
        return None;
    }
    let flags = match headers.protocol {
        protocol::TCP => frame.at::<TCP>(headers.l4)?.get::<13, u8>(),
        protocol::UDP => 0,
        _ => return None,
    };
    let ports = frame.at::<UDP>(headers.l4)?;
    Some((headers, u16::from_be(ports.get::<0, _>()), u16::from_be(ports.get::<2, _>()), flags))
}
