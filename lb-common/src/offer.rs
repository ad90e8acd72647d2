//! Who gets a packet that does not simply go to its slot's owner: whoever has its connection is asked for it.

use core::hint::black_box;

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
    if offer.service.flags & service_flags::OPAQUE != 0 {
        let owner = opaque::recorded(tables, offer);
        if owner != NO_OWNER {
            return owner as u32 | HAS_IT;
        }
    }
    let found = ask(tables, offer);
    let offer = afresh(offer);
    // With client affinity the last word is not said yet.
    if offer.service.flags & (service_flags::OPAQUE | service_flags::AFFINITY) == service_flags::OPAQUE {
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
    // Of none, as no backend's id.
    let cached = if cached == NO_BACKEND { u64::MAX } else { cached as u64 };
    let Found { owner, asked } = earlier(tables, offer, history, forget(cached, offer.hash));
    let known = |value: u32| forget(value as u64, offer.hash) as u32;
    settle(tables, afresh(offer), Found { owner: known(owner), asked: known(asked) })
}

/// Who gets the packet, as [`offer`] says it, where `found` is what the earlier owners say; remembers it.
#[inline(always)]
fn settle<T: Tables>(tables: &T, offer: &Offer, mut found: Found) -> u32 {
    let Offer { client, service, slot, client_port, .. } = offer;
    let opens = offer.opens();
    if found.owner & HAS_IT == 0 {
        // Looked up once more: kept over the walk, it would be one more thing by which the verifier tells ways apart.
        if let Some(backend) = backend_at(tables, service, slot.owner)
            && !offer.is_quoted()
            && (opens || has(tables, *client, *client_port, backend))
        {
            let owner = slot.owner as u32 | if opens { 0 } else { HAS_IT };
            found = Found { owner, asked: backend.id };
        } else if opens || found.owner == NO_OWNER as u32 {
            found.owner = slot.owner as u32;
        }
    }
    if found.asked != NO_BACKEND && !offer.is_quoted() {
        tables.cache_owner(service.id, *client, *client_port, found.asked, opens);
    }
    found.owner
}

/// In what [`offer`] returns: the owner has the packet's connection.
pub const HAS_IT: u32 = 1 << 16;

/// An owner, and what is worth remembering of how it was found.
#[derive(Clone, Copy)]
struct Found {
    /// As [`offer`] returns it, or [`NO_OWNER`] as long as nobody has it.
    owner: u32,
    /// The id of the backend whose kernel was asked and has the connection, or [`NO_BACKEND`].
    asked: u32,
}

/// The same value, of which the verifier knows nothing any more.
#[inline(always)]
fn forget(value: u64, unknown: u64) -> u64 {
    // Inwards the compiler knows nothing of it, outwards the verifier.
    black_box(value ^ unknown) ^ unknown
}

/// The same, of which the compiler knows nothing: what was read of it is read again, instead of being kept for whatever
/// is yet to come.
#[inline(always)]
fn afresh(offer: &Offer) -> &Offer {
    black_box(offer)
}

/// Owners that fit into a word.
const IN_WORD: usize = 4;

/// A slot's earlier owners as a [`History`] has them, in two words; [`NO_OWNER`] in the places behind the last one, so that
/// no place is compared with their number again.
#[derive(Clone, Copy)]
pub(crate) struct Earlier {
    words: [u64; 2],
    count: usize,
}
const _: () = assert!(HISTORY == 2 * IN_WORD - 1);

impl Earlier {
    const NONE: Self = Self { words: [u64::MAX; 2], count: 0 };

    #[inline(always)]
    fn new(history: &History) -> Self {
        let [a, b, c, d, e, f, g] = history.owners;
        let word = |a: u16, b: u16, c: u16, d: u16| a as u64 | (b as u64) << 16 | (c as u64) << 32 | (d as u64) << 48;
        // In two steps, because a shift by 64 is none.
        let behind = |count: usize| u64::MAX << (8 * count) << (8 * count);
        let count = (history.count as usize).min(HISTORY);
        let first = count.min(IN_WORD);
        let words = [word(a, b, c, d) | behind(first), word(e, f, g, NO_OWNER) | behind(count - first)];
        Self { words, count }
    }

    /// The one at a place below [`HISTORY`], or [`NO_OWNER`].
    #[inline(always)]
    pub(crate) const fn at(&self, at: usize) -> u16 {
        (self.words[(at / IN_WORD) & 1] >> (at % IN_WORD * 16)) as u16
    }
}

/// The earlier owners of a slot; `None` where it names a list that is not there, or was never written.
#[inline(always)]
pub(crate) fn owners_before<T: Tables>(tables: &T, service: &Service, slot: Slot) -> Option<Earlier> {
    if slot.history == 0 {
        return Some(Earlier::NONE);
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
pub(crate) struct Beside {
    /// As those of [`Earlier`]: the earlier owners, the other hash's current one, its earlier ones.
    words: [u64; 4],
    end: usize,
}

impl Beside {
    /// Places at most.
    pub(crate) const MAX: usize = 2 * HISTORY + 1;

    #[inline(always)]
    pub(crate) fn new<T: Tables>(tables: &T, offer: &Offer, earlier: Earlier) -> Self {
        let Offer { service, slot, client_port, .. } = offer;
        let (mut other, mut others, mut end) = (NO_OWNER, Earlier::NONE, earlier.count);
        if service.flags & service_flags::REHASHED != 0 {
            let hash = toggle_client_port(offer.hash, *client_port);
            let at = service.slots.wrapping_add(slot_of(hash, service.slots_log2));
            if let Some(named) = tables.slot(at) {
                end = Self::MAX;
                other = if named.owner == slot.owner { NO_OWNER } else { named.owner };
                others = owners_before(tables, service, named).unwrap_or(others);
            }
        }
        let middle = earlier.words[1] << 16 >> 16 | (other as u64) << 48;
        let words = [earlier.words[0], middle, others.words[0], others.words[1]];
        Self { words: words.map(|word| forget(word, offer.hash)), end: forget(end as u64, offer.hash) as usize }
    }

    /// The one at a place below [`Beside::MAX`], or [`NO_OWNER`]; none after the last.
    #[inline(always)]
    pub(crate) const fn at(&self, at: usize) -> Option<u16> {
        if at >= self.end {
            return None;
        }
        Some((self.words[(at / IN_WORD) & 3] >> (at % IN_WORD * 16)) as u16)
    }
}

/// The first of those beside the current owner who has a TCP client's connection, with [`HAS_IT`]; else one that cannot be
/// reached, else [`NO_OWNER`].
#[inline(always)]
fn earlier<T: Tables>(tables: &T, offer: &Offer, history: Earlier, cached: u64) -> Found {
    let beside = Beside::new(tables, offer, history);
    let Offer { client, service, client_port, .. } = afresh(offer);
    let mut nobody = forget(NO_OWNER as u64, offer.hash) as u32;
    for at in 0..Beside::MAX {
        let Some(owner) = beside.at(at) else { break };
        let Some(backend) = backend_at(tables, service, owner) else { continue };
        if backend.id as u64 == cached {
            return Found { owner: owner as u32 | HAS_IT, asked: NO_BACKEND };
        }
        if backend.rung == rung::NONE {
            nobody = owner as u32;
        } else if has(tables, *client, *client_port, backend) {
            return Found { owner: owner as u32 | HAS_IT, asked: backend.id };
        }
    }
    Found { owner: nobody, asked: NO_BACKEND }
}

#[inline(always)]
pub(crate) fn has<T: Tables>(tables: &T, client: Address, client_port: u16, backend: &Backend) -> bool {
    let key = connection(client, client_port, protocol::TCP, backend);
    // Of an opaque pod no answer means anything.
    !opaque::is_opaque(backend) && tables.socket(backend.netns_id, &key) == Socket::Living
}
