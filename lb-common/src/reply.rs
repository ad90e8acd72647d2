//! The return path: which packets of a pod are replies of a service, and which connections reach a pod beside it.
//!
//! These decide only; the tc programs rewrite, because only the kernel's helpers know whether a checksum is complete.

use crate::{
    abi::{BypassKey, Endpoint, NO_BACKEND, ServiceKey, endpoint_flags, protocol},
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
    /// An ICMP message, for [`to_client`](crate::icmp::to_client) to decide about.
    Message,
    /// The answer to the agent's self-test, which is counted under the backend and goes no further.
    Answer {
        /// The backend's id.
        backend: u32,
    },
}

/// Decides about a packet that leaves a pod.
#[inline(always)]
pub fn reply<F: Frame, T: ReturnTables>(frame: &F, tables: &T, place: Place) -> Reply {
    let (headers, source_port, destination_port, flags) = match transport(frame) {
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
        Through::Service { backend, vip, port } => Reply::Rewrite { headers, vip, port, backend },
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
    },
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

/// Which way a client reached a pod; `opens` where the pod opens the connection itself.
#[inline(always)]
pub fn through<T: ReturnTables>(tables: &T, key: &BypassKey, opens: bool, place: Place) -> Through {
    let Some(endpoint) = tables.endpoint(&ServiceKey::new(key.pod, key.pod_port, key.protocol)) else {
        return Through::Passed(Reason::NotAReply);
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
    let recorded = if endpoint.flags & endpoint_flags::RECORDED != 0 {
        match tables.flow(endpoint.id, key.client, key.client_port) {
            // Only a static service beside it may answer for what no record names.
            None if endpoint.flags & endpoint_flags::STATIC == 0 => return Through::Passed(Reason::Unrecorded),
            recorded => recorded,
        }
    } else if endpoint.flags & endpoint_flags::STATIC == 0 {
        return Through::Passed(Reason::NotAReply);
    } else {
        None
    };
    let recorded = match recorded {
        None if tables.has_bypasses(endpoint.id) => tables.bypass(key).map(|bypass| bypass.backend),
        recorded => recorded,
    };
    let (backend, vip, port) = match recorded {
        None => (endpoint.backend, endpoint.vip, endpoint.vip_port),
        Some(NO_BACKEND) => return Through::Passed(Reason::Bypassed),
        Some(backend) => match tables.backend_vip(backend) {
            Some(address) if address.port != 0 => (backend, address.address, address.port),
            _ => return Through::Dropped(Reason::RecordWithoutService),
        },
    };
    // A service that answers anybody must not be made to talk to itself.
    if tables.may_be_vip(key.client) && tables.is_vip(key.client) {
        return Through::Dropped(Reason::ReplyToVip);
    }
    Through::Service { backend, vip, port }
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
    let Ok((headers, source_port, destination_port, flags)) = transport(frame) else {
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

/// Headers, source port, destination port and TCP flags of a whole TCP or UDP packet; what becomes of any other.
#[inline(always)]
fn transport<F: Frame>(frame: &F) -> Result<(Headers, u16, u16, u8), Reply> {
    const OTHER: Reply = Reply::Pass(Reason::NotAReply);
    let headers = headers::parse(frame).ok_or(OTHER)?;
    if headers.defect.is_some() {
        return Err(OTHER);
    }
    let flags = match headers.protocol {
        protocol::TCP => frame.at::<TCP>(headers.l4).ok_or(OTHER)?.get::<13, u8>(),
        protocol::UDP => 0,
        protocol::ICMP if headers.is_v4 => return Err(Reply::Message),
        protocol::ICMPV6 if !headers.is_v4 => return Err(Reply::Message),
        _ => return Err(OTHER),
    };
    let ports = frame.at::<UDP>(headers.l4).ok_or(OTHER)?;
    Ok((headers, u16::from_be(ports.get::<0, _>()), u16::from_be(ports.get::<2, _>()), flags))
}
