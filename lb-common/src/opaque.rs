//! Backends whose pods' kernels do not show their connections under the packets' own addresses and ports: a mesh that
//! redirects inside the pod, sockets bound to a device, TCP in user space, pods that cannot be asked at all.
//!
//! They are *opaque*: their connections are recorded in the flow cache from their SYN on, in stable slots too, because a
//! slot may move later. A client makes a record that is taken for a connection only when its pod has said something
//! more than a SYN-ACK, so a flood of SYNs takes no connection's place.
//!
//! They are found by what leaves them: payload, without SYN or RST, of a connection that has no socket. Once may be a
//! socket that has just died; [`Watch`] counts how often in a row, and the agent decides.

use crate::{
    abi::{Backend, BypassKey, NO_BACKEND, NO_OWNER, ServiceKey, backend_flags},
    address::Address,
    flow::State,
    offer::{Beside, Offer, backend_at, owners_before},
    reply::ReturnTables,
    session::flag,
    steer::Tables,
};

/// A TCP segment that a pod sends as a backend of a service.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Segment {
    /// Its connection.
    pub key: BypassKey,
    /// The service's VIP.
    pub vip: Address,
    /// Port of the VIP, host order.
    pub vip_port: u16,
    /// Flags of its header.
    pub flags: u8,
    /// 1 where it has payload.
    pub payload: u8,
    /// The endpoint's id.
    pub endpoint: u32,
    /// The id of the endpoint as a backend of the service.
    pub backend: u32,
    /// The pod's network namespace.
    pub netns_id: u32,
    /// 1 where the endpoint is known to be opaque.
    pub opaque: u32,
    /// Zero.
    pub pad: u32,
}
const _: () = assert!(size_of::<Segment>() == 80);

/// Whether a backend is opaque.
#[inline(always)]
pub const fn is_opaque(backend: &Backend) -> bool {
    backend.flags & backend_flags::OPAQUE != 0
}

/// What a client's segment to the opaque backend makes of the connection's record: its new state, where that changes. The
/// record names that backend and is in state `known`, or there is none that names an owner.
#[inline(always)]
pub const fn after_client(known: Option<State>, opens: bool, resets: bool) -> Option<State> {
    match known {
        None | Some(State::Closing) if opens => Some(State::Opening),
        Some(State::Opening | State::Established) if resets => Some(State::Closing),
        None | Some(_) => None,
    }
}

/// What an opaque pod's segment makes of the connection's record: its new state, now naming that pod, where that changes.
/// `known`: whether the record names that pod, and its state.
#[inline(always)]
pub const fn after_pod(known: Option<(bool, State)>, flags: u8, payload: bool) -> Option<State> {
    let ends = flags & (flag::FIN | flag::RST) != 0;
    let opens = flags & flag::SYN != 0;
    match known {
        Some((true, State::Opening | State::Established)) if ends => Some(State::Closing),
        _ if ends || opens => None,
        // What the pod sends again after it has closed ends with its FIN once more.
        None | Some((true, State::Opening)) => Some(State::Established),
        Some((_, State::Closing)) if payload => Some(State::Established),
        // Of another pod's connection that is open, or of one that was before it: whoever came last has it.
        Some((true, State::Established | State::Closing) | (false, _)) => None,
    }
}

/// The opaque owner of its slot that a client's record names, as a position in the service's backends; [`NO_OWNER`] where
/// there is none. A record never leads to a backend that is no owner.
#[inline(always)]
pub fn recorded<T: Tables>(tables: &T, offer: &Offer) -> u16 {
    let Offer { client, service, client_port, .. } = offer;
    // An integer, because the verifier refuses to see the value of an empty option moved.
    let known = tables.known_owner(service.id, *client, *client_port).unwrap_or((NO_BACKEND, State::Established));
    let (known, state) = known;
    // After its connection, a client may use its port again.
    if known == NO_BACKEND || offer.opens() && matches!(state, State::Closing) {
        return NO_OWNER;
    }
    let owner = find(tables, offer, known);
    if owner != NO_OWNER
        && let Some(state) = after_client(Some(state), false, offer.resets())
    {
        tables.keep_owner(service.id, *client, *client_port, known, state);
    }
    owner
}

/// The owner of a slot with this backend's id, where it is opaque.
#[inline(always)]
fn find<T: Tables>(tables: &T, offer: &Offer, id: u32) -> u16 {
    let Offer { service, slot, .. } = offer;
    let is_it = |owner: u16| {
        let backend = backend_at(tables, service, owner);
        backend.is_some_and(|backend| backend.id == id && is_opaque(backend))
    };
    if is_it(slot.owner) {
        return slot.owner;
    }
    let Some(earlier) = owners_before(tables, service, *slot) else { return NO_OWNER };
    let beside = Beside::new(tables, offer, earlier);
    for at in 0..Beside::MAX {
        let Some(owner) = beside.at(at) else { break };
        if is_it(owner) {
            return owner;
        }
    }
    NO_OWNER
}

/// Records the connection that a client opens with its slot's owner, where that is opaque and no record says so.
#[inline(always)]
pub fn begin<T: Tables>(tables: &T, offer: &Offer, owner: u16) {
    let Offer { client, service, client_port, .. } = offer;
    if let Some(state) = after_client(None, offer.opens(), false)
        && let Some(backend) = backend_at(tables, service, owner)
        && is_opaque(backend)
    {
        tables.keep_owner(service.id, *client, *client_port, backend.id, state);
    }
}

/// Learns from the segment of a pod that is known to be opaque that its connection lives.
#[inline(always)]
pub fn record<T: Tables + ReturnTables>(tables: &T, segment: &Segment) {
    let Segment { key, backend, .. } = segment;
    let vip = ServiceKey::new(segment.vip, segment.vip_port, key.protocol);
    let Some(service) = tables.service(&vip) else { return };
    let (named, state) = tables
        .known_owner(service.id, key.client, key.client_port)
        // An integer, because the verifier refuses to see the value of an empty option moved.
        .unwrap_or((NO_BACKEND, State::Established));
    let known = if named == NO_BACKEND { None } else { Some((named == *backend, state)) };
    if let Some(state) = after_pod(known, segment.flags, segment.payload != 0) {
        tables.keep_owner(service.id, key.client, key.client_port, *backend, state);
    }
}

/// Learns from the segment of another pod, which has payload and neither SYN nor RST, whether its sockets are seen.
#[inline(always)]
pub fn watch<T: ReturnTables>(tables: &T, segment: &Segment) {
    let Some(counts) = tables.counts(segment.endpoint) else { return };
    let now = tables.coarse_now();
    if counts.watch.is_due(now)
        && let Some(seen) = tables.is_seen(segment.netns_id, &segment.key)
    {
        counts.watch.note(seen, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Closing, Established, Opening};

    const ALL: [State; 3] = [Opening, Established, Closing];

    #[test]
    fn a_client_opens_and_gives_up_and_does_nothing_else() {
        let (data, syn, rst) = ((false, false), (true, false), (false, true));
        for known in ALL.map(Some).into_iter().chain([None]) {
            assert_eq!(after_client(known, data.0, data.1), None);
            let opened = matches!(known, None | Some(Closing)).then_some(Opening);
            assert_eq!(after_client(known, syn.0, syn.1), opened, "a SYN with {known:?}");
            let closed = matches!(known, Some(Opening | Established)).then_some(Closing);
            assert_eq!(after_client(known, rst.0, rst.1), closed, "a RST with {known:?}");
        }
    }

    #[test]
    fn a_pod_says_what_becomes_of_its_connections_record() {
        let (ack, end) = (flag::ACK, flag::ACK | flag::FIN);
        let table: &[(u8, bool, [Option<State>; 7])] = &[
            // No record; its own by state; another's by state.
            (ack, true, [Some(Established), Some(Established), None, Some(Established), None, None, Some(Established)]),
            (ack, false, [Some(Established), Some(Established), None, None, None, None, None]),
            (end, true, [None, Some(Closing), Some(Closing), None, None, None, None]),
            (end, false, [None, Some(Closing), Some(Closing), None, None, None, None]),
            (flag::RST, false, [None, Some(Closing), Some(Closing), None, None, None, None]),
            (flag::SYN | flag::ACK, false, [None; 7]),
            (flag::SYN | flag::ACK, true, [None; 7]),
        ];
        for (flags, payload, wanted) in table {
            let known = ALL.map(|state| Some((true, state))).into_iter().chain(ALL.map(|state| Some((false, state))));
            for (known, wanted) in core::iter::once(None).chain(known).zip(wanted) {
                assert_eq!(after_pod(known, *flags, *payload), *wanted, "flags {flags} with {known:?}");
            }
        }
    }
}
