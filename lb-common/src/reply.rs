//! The return path: which packets of a pod are replies of a service, and which connections reach a pod beside it.
//!
//! These decide only; the tc programs rewrite, because only the kernel's helpers know whether a checksum is complete.

use crate::{
    abi::{BypassKey, Endpoint, NO_BACKEND, ServiceKey, endpoint_flags, protocol, return_program},
    address::Address,
    headers::{self, Headers, TCP, UDP},
    packet::{Frame, View},
    reason::Reason,
    session::{self, Beside, Sessions},
};

/// What the return path asks and tells. BPF maps in the kernel, memory on the host.
pub trait ReturnTables: Sessions {
    /// The endpoint at a pod's address, protocol and port.
    fn endpoint(&self, key: &ServiceKey) -> Option<Endpoint>;
    /// As which service's backend a UDP client reached an endpoint.
    fn flow(&self, endpoint: u32, client: Address, client_port: u16) -> Option<u32>;
    /// VIP and port of a backend's service.
    fn backend_vip(&self, backend: u32) -> Option<ServiceKey>;
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
    pub const fn slow_program(self) -> u32 {
        match self {
            Self::Pod => return_program::POD_SLOW,
            Self::Uplink => return_program::UPLINK_SLOW,
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
    /// A fragment, for [`slow_reply`](crate::slow_reply::reply) to decide.
    Slow,
    /// The answer to the agent's self-test, which is counted under the backend and goes no further.
    Answer {
        /// The backend's id.
        backend: u32,
    },
}

/// Decides about a packet that leaves a pod.
#[inline(always)]
pub fn reply<F: Frame, T: ReturnTables>(frame: &F, tables: &T, place: Place) -> Reply {
    let Some(headers) = headers::parse(frame) else {
        return Reply::Pass(Reason::NotAReply);
    };
    if let Some(defect) = headers.defect {
        return if matches!(defect, Reason::Fragment) { Reply::Slow } else { Reply::Pass(Reason::NotAReply) };
    }
    decide(frame, tables, place, headers)
}

/// The same where the headers are known to be whole.
#[inline(always)]
pub(crate) fn decide<F: Frame, T: ReturnTables>(frame: &F, tables: &T, place: Place, headers: Headers) -> Reply {
    let Some((source_port, destination_port, flags)) = transport(frame, &headers) else {
        return Reply::Pass(Reason::NotAReply);
    };
    let Some(endpoint) = tables.endpoint(&ServiceKey::new(headers.source, source_port, headers.protocol)) else {
        return Reply::Pass(Reason::NotAReply);
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
    let recorded = if endpoint.flags & endpoint_flags::RECORDED != 0 {
        match tables.flow(endpoint.id, headers.destination, destination_port) {
            // Only a static service beside it may answer for what no record names.
            None if endpoint.flags & endpoint_flags::STATIC == 0 => return Reply::Pass(Reason::Unrecorded),
            recorded => recorded,
        }
    } else if endpoint.flags & endpoint_flags::STATIC == 0 {
        return Reply::Pass(Reason::NotAReply);
    } else {
        None
    };
    let recorded = match recorded {
        None if tables.has_bypasses(endpoint.id) => tables.bypass(&key).map(|bypass| bypass.backend),
        recorded => recorded,
    };
    let (backend, vip, port) = match recorded {
        None => (endpoint.backend, endpoint.vip, endpoint.vip_port),
        Some(NO_BACKEND) => return Reply::Pass(Reason::Bypassed),
        Some(backend) => match tables.backend_vip(backend) {
            Some(address) if address.port != 0 => (backend, address.address, address.port),
            _ => return Reply::Drop(Reason::RecordWithoutService),
        },
    };
    // A service that answers anybody must not be made to talk to itself.
    if tables.may_be_vip(headers.destination) && tables.is_vip(headers.destination) {
        return Reply::Drop(Reason::ReplyToVip);
    }
    if place == Place::Pod && headers.hops <= 1 {
        // The stack tells the pod.
        return Reply::Pass(Reason::TtlExceeded);
    }
    Reply::Rewrite { headers, vip, port, backend }
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
    let Some((source_port, destination_port, flags)) = transport(frame, &headers) else {
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

/// Source port, destination port and TCP flags of a TCP or UDP packet.
#[inline(always)]
fn transport<F: Frame>(frame: &F, headers: &Headers) -> Option<(u16, u16, u8)> {
    let flags = match headers.protocol {
        protocol::TCP => frame.at::<TCP>(headers.l4)?.get::<13, u8>(),
        protocol::UDP => 0,
        _ => return None,
    };
    let ports = frame.at::<UDP>(headers.l4)?;
    Some((u16::from_be(ports.get::<0, _>()), u16::from_be(ports.get::<2, _>()), flags))
}
