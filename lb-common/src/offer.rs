//! Who gets a packet that does not simply go to its slot's owner: whoever has its connection is asked for it.

use crate::{
    abi::{Backend, HISTORY, History, NO_BACKEND, NO_OWNER, Service, Slot, protocol, rung, service_flags},
    address::Address,
    opaque,
    session::{self, Socket, flag},
    steer::{Tables, connection, slot_of, toggle_client_port},
};

/// A packet that does not simply go to its slot's owner: TCP of a moved slot, and whatever its service's flags say.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Offer {
    /// Who sent it.
    pub client: Address,
    /// Its service.
    pub service: Service,
    /// The hash that chose its slot.
    pub hash: u64,
    /// Its slot.
    pub slot: Slot,
    /// Host order.
    pub client_port: u16,
    /// Of a TCP segment; none of a datagram.
    pub flags: u8,
    /// [`offer_kind`].
    pub kind: u8,
}
const _: () = assert!(size_of::<Offer>() == 56);

/// Bits of [`Offer::kind`].
pub mod offer_kind {
    /// Of UDP.
    pub const DATAGRAM: u8 = 1 << 0;
    /// An ICMP error quotes it: nothing is remembered, because anybody can send one.
    pub const QUOTED: u8 = 1 << 1;
}

impl Offer {
    /// Whether it is of UDP.
    #[inline(always)]
    pub const fn is_datagram(&self) -> bool {
        self.kind & offer_kind::DATAGRAM != 0
    }

    /// Whether an ICMP error quotes it.
    #[inline(always)]
    pub const fn is_quoted(&self) -> bool {
        self.kind & offer_kind::QUOTED != 0
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        session::opens(self.flags)
    }

    /// Whether it resets one.
    #[inline(always)]
    pub const fn resets(&self) -> bool {
        self.flags & flag::RST != 0
    }
}

/// Who gets a TCP packet of a moved slot, or of a service whose flags say so, as a position in the service's backends,
/// with [`HAS_IT`] where one is known to have its connection: the opaque owner that its record names, else who is asked
/// for it, else the current owner.
#[inline(always)]
pub fn offer<T: Tables>(tables: &T, offer: &Offer) -> u32 {
    let has_opaque = offer.service.flags & service_flags::OPAQUE != 0;
    if has_opaque {
        let owner = opaque::recorded(tables, offer);
        if owner != NO_OWNER {
            return owner as u32 | HAS_IT;
        }
    }
    let found = ask(tables, offer);
    // With client affinity the last word is not said yet.
    if has_opaque && offer.service.flags & service_flags::AFFINITY == 0 {
        opaque::begin(tables, offer, found as u16);
    }
    found
}

/// The earlier owner whose kernel has the connection, else the current owner. A SYN is offered too: its client may use a
/// port again while an earlier owner has the old connection half open. What nobody has may be of an earlier owner that
/// cannot be reached now: it gets it, that is, nobody does, so that no session is reset because its pod's interface is
/// away for a moment.
#[inline(always)]
fn ask<T: Tables>(tables: &T, offer: &Offer) -> u32 {
    let Offer { client, service, slot, client_port, .. } = offer;
    if slot.history == 0 && service.flags & service_flags::REHASHED == 0 {
        return slot.owner as u32;
    }
    let opens = offer.opens();
    let Some(history) = owners_before(tables, service, *slot) else {
        // Named by a slot and not there, or never written: only the current owner is known.
        tables.count_broken_history();
        return slot.owner as u32;
    };
    // An integer, because the verifier refuses to see the value of an empty option moved.
    let cached = if opens { None } else { tables.cached_owner(service.id, *client, *client_port) };
    let cached = cached.unwrap_or(NO_BACKEND);
    let current = backend_at(tables, service, slot.owner);
    if cached != NO_BACKEND && current.is_some_and(|backend| backend.id == cached) {
        return slot.owner as u32 | HAS_IT;
    }
    let earlier = earlier(tables, offer, history, cached);
    if earlier & HAS_IT != 0 {
        return earlier;
    }
    if let Some(backend) = current
        && !offer.is_quoted()
        && (opens || has(tables, *client, *client_port, backend))
    {
        tables.cache_owner(service.id, *client, *client_port, backend.id, opens);
        return slot.owner as u32 | if opens { 0 } else { HAS_IT };
    }
    if opens || earlier == NO_OWNER as u32 { slot.owner as u32 } else { earlier }
}

/// In what [`offer`] returns: the owner has the packet's connection.
pub const HAS_IT: u32 = 1 << 16;

/// A slot's earlier owners as a [`History`] has them, in two words: no pointer to lose sight of, no memory to index.
#[derive(Clone, Copy)]
pub(crate) struct Earlier {
    low: u64,
    high: u64,
}

impl Earlier {
    #[inline(always)]
    fn new(history: &History) -> Self {
        let [a, b, c, d, e, f, g] = history.owners;
        let word = |a: u16, b: u16, c: u16, d: u16| a as u64 | (b as u64) << 16 | (c as u64) << 32 | (d as u64) << 48;
        Self { low: word(history.count, a, b, c), high: word(d, e, f, g) }
    }

    #[inline(always)]
    const fn count(self) -> usize {
        (self.low & 0xffff) as usize
    }

    /// The one at a place, or [`NO_OWNER`].
    #[inline(always)]
    pub(crate) const fn at(self, at: usize) -> u16 {
        if at >= self.count() || at >= HISTORY {
            return NO_OWNER;
        }
        let word = if at < 3 { self.low } else { self.high };
        (word >> ((at + 1) % 4 * 16)) as u16
    }
}

/// The earlier owners of a slot; `None` where it names a list that is not there, or was never written.
#[inline(always)]
pub(crate) fn owners_before<T: Tables>(tables: &T, service: &Service, slot: Slot) -> Option<Earlier> {
    if slot.history == 0 {
        return Some(Earlier { low: 0, high: 0 });
    }
    let at = service.histories.wrapping_add(slot.history as u32 - 1);
    tables.history(at).filter(|history| history.count != 0).map(Earlier::new)
}

/// A service's backend by its position.
#[inline(always)]
pub(crate) fn backend_at<'a, T: Tables>(tables: &'a T, service: &Service, owner: u16) -> Option<&'a Backend> {
    let there = owner < service.backends_count;
    if there { tables.backend(service.backends.wrapping_add(owner as u32)) } else { None }
}

/// Who may have a connection beside its slot's current owner: the earlier owners and, where the hash has changed, the
/// owners of the slot that the other one names, the current one and those before.
#[derive(Clone, Copy)]
pub(crate) struct Beside {
    earlier: Earlier,
    other: u16,
    others: Earlier,
    end: usize,
}

impl Beside {
    /// Places at most.
    pub(crate) const MAX: usize = 2 * HISTORY + 1;

    #[inline(always)]
    pub(crate) fn new<T: Tables>(tables: &T, offer: &Offer, earlier: Earlier) -> Self {
        let Offer { service, slot, client_port, .. } = offer;
        let (mut other, mut others, mut end) = (NO_OWNER, Earlier { low: 0, high: 0 }, earlier.count());
        if service.flags & service_flags::REHASHED != 0 {
            let hash = toggle_client_port(offer.hash, *client_port);
            let at = service.slots.wrapping_add(slot_of(hash, service.slots_log2));
            if let Some(named) = tables.slot(at) {
                end = Self::MAX;
                other = if named.owner == slot.owner { NO_OWNER } else { named.owner };
                others = owners_before(tables, service, named).unwrap_or(others);
            }
        }
        Self { earlier, other, others, end }
    }

    /// The one at a place below [`Beside::MAX`], or [`NO_OWNER`]; none after the last.
    #[inline(always)]
    pub(crate) const fn at(&self, at: usize) -> Option<u16> {
        if at >= self.end {
            return None;
        }
        Some(match at {
            HISTORY => self.other,
            at if at < HISTORY => self.earlier.at(at),
            at => self.others.at(at - HISTORY - 1),
        })
    }
}

/// The first of those beside the current owner who has a TCP client's connection, with [`HAS_IT`]; else one that cannot be
/// reached, else [`NO_OWNER`].
#[inline(always)]
fn earlier<T: Tables>(tables: &T, offer: &Offer, history: Earlier, cached: u32) -> u32 {
    let Offer { client, service, client_port, .. } = offer;
    let mut nobody = NO_OWNER as u32;
    let beside = Beside::new(tables, offer, history);
    for at in 0..Beside::MAX {
        let Some(owner) = beside.at(at) else { break };
        let Some(backend) = backend_at(tables, service, owner) else { continue };
        if backend.id == cached && cached != NO_BACKEND {
            return owner as u32 | HAS_IT;
        }
        if backend.rung == rung::NONE {
            nobody = owner as u32;
        } else if has(tables, *client, *client_port, backend) {
            if !offer.is_quoted() {
                tables.cache_owner(service.id, *client, *client_port, backend.id, offer.opens());
            }
            return owner as u32 | HAS_IT;
        }
    }
    nobody
}

#[inline(always)]
pub(crate) fn has<T: Tables>(tables: &T, client: Address, client_port: u16, backend: &Backend) -> bool {
    let key = connection(client, client_port, protocol::TCP, backend);
    // Of an opaque pod no answer means anything.
    !opaque::is_opaque(backend) && tables.socket(backend.netns_id, &key) == Socket::Living
}
