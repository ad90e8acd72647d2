//! Client affinity: a client's connections and datagrams go where its last ones went.
//!
//! The slot is chosen by a hash without the client's port. So where slots stay as they are no state is needed: the slot
//! says the same for all of a client's connections, on every node, whatever is lost. For slots that move there is a
//! record in the flow cache, of the backend and the time of the last packet, kept while the slot is stable too. It names
//! one of the slot's owners or nothing: a record picks among them, it adds none.
//!
//! A record of an earlier owner is only ever refreshed, never made anew. So an earlier owner that no record of a slot
//! names, and then has no connection of it, gets no connection of it any more.
//!
//! For TCP a record is made of a connection that the pod's kernel has, never of a SYN: who forges addresses fills nothing.

use crate::{
    abi::{Backend, HISTORY, NO_BACKEND, NO_OWNER, backend_flags, rung, service_flags},
    offer::{HAS_IT, Offer, backend_at, has, owners_before},
    opaque,
    steer::Tables,
};

/// Who gets a packet of a service that keeps clients together, where `found` is what [`offer`](crate::offer::offer) says,
/// or the current owner of a slot that has not moved.
#[inline(always)]
pub fn keep<T: Tables>(tables: &T, offer: &Offer, found: u32) -> u16 {
    let owner = kept(tables, offer, found);
    if offer.service.flags & service_flags::OPAQUE != 0 && found & HAS_IT == 0 {
        opaque::begin(tables, offer, owner);
    }
    owner
}

#[inline(always)]
fn kept<T: Tables>(tables: &T, offer: &Offer, found: u32) -> u16 {
    let Offer { client, service, slot, client_port, .. } = offer;
    let (owner, has_it) = (found as u16, found & HAS_IT != 0);
    let (opens, is_tcp) = (offer.opens(), !offer.is_datagram());
    let Some(backend) = backend_at(tables, service, owner) else {
        // Nobody owns the slot: no record leads anywhere else, because who takes new connections owns slots.
        return owner;
    };
    // Whoever quotes a client's packet is not that client.
    let refreshed = if offer.is_quoted() { NO_BACKEND } else { backend.id };
    let recorded = tables.affinity(service.id, *client, service.affinity, refreshed).unwrap_or(NO_BACKEND);
    if recorded == backend.id || owner != slot.owner {
        return owner;
    }
    let kept = if recorded == NO_BACKEND { NO_OWNER } else { earlier_named(tables, offer, recorded) };
    let is_free = opens && !has_it || !is_tcp;
    if kept != NO_OWNER {
        // What the current owner has already stays there, whatever the record says.
        if !is_free || is_tcp && has(tables, *client, *client_port, backend) {
            return owner;
        }
        if offer.is_quoted() {
            return kept;
        }
        tables.affinity(service.id, *client, service.affinity, recorded);
        if is_tcp {
            tables.cache_owner(service.id, *client, *client_port, recorded, true);
        }
        return kept;
    }
    if offer.is_quoted() {
        return owner;
    }
    // Of an opaque pod only the client's word is known, which makes no record.
    let is_vouched = !is_tcp || opens || !opaque::is_opaque(backend);
    let stays = is_vouched && (is_free || has_it || slot.history == 0 && has(tables, *client, *client_port, backend));
    if stays {
        tables.record_affinity(service.id, *client, backend.id, opens);
    }
    owner
}

/// The earlier owner that a record names, where it may get new connections.
#[inline(always)]
fn earlier_named<T: Tables>(tables: &T, offer: &Offer, id: u32) -> u16 {
    let Offer { service, slot, .. } = offer;
    let Some(history) = owners_before(tables, service, *slot) else { return NO_OWNER };
    for at in 0..HISTORY {
        let owner = history.at(at);
        let Some(backend) = backend_at(tables, service, owner) else { continue };
        if backend.id == id && takes_new(backend) {
            return owner;
        }
    }
    NO_OWNER
}

/// Whether a record may bring a backend new connections.
#[inline(always)]
const fn takes_new(backend: &Backend) -> bool {
    backend.rung != rung::NONE && backend.flags & backend_flags::DRAINS == 0
}
