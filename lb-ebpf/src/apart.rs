//! What few packets need, apart from what all do.
//!
//! Each is a global function, so that the verifier walks it once and not once for each way through the headers that
//! leads to it, and so that it takes no registers from the rest. A call costs some 10 ns.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, xdp_md};
use lb_common::{
    abi::NO_OWNER,
    address::Address,
    affinity,
    fragments::{Key, Record},
    icmp::Client,
    offer::{self, Offer},
    opaque::{self, Segment},
    packet::sum_words,
    session::{self, Claim, Claimed},
    steer, virtual_mac,
};

use crate::{
    egress,
    frame::{SkbFrame, XdpFrame},
    maps::{self, Maps},
};

/// See [`lb_common::offer::offer`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_offer(context: *mut xdp_md, offer: *const Offer) -> u32 {
    // SAFETY: null, or an offer that lives across the call.
    match (Maps::get(context.cast()), unsafe { offer.as_ref() }) {
        (Some(maps), Some(offer)) => offer::offer(&maps, offer),
        _ => NO_OWNER as u32,
    }
}

/// See [`lb_common::affinity::keep`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_keep(context: *mut xdp_md, offer: *const Offer, found: u32) -> u32 {
    // SAFETY: null, or an offer that lives across the call.
    match (Maps::get(context.cast()), unsafe { offer.as_ref() }) {
        (Some(maps), Some(offer)) => affinity::keep(&maps, offer, found) as u32,
        _ => found as u16 as u32,
    }
}

/// See [`lb_common::session::claim`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_claim(context: *mut xdp_md, claimed: *const Claimed) -> u32 {
    // SAFETY: null, or a claim that lives across the call.
    match (Maps::get(context.cast()), unsafe { claimed.as_ref() }) {
        (Some(maps), Some(claimed)) => session::claim(&maps, claimed) as u32,
        _ => Claim::Full as u32,
    }
}

/// See [`lb_common::virtual_mac::admit`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_admit(context: *mut xdp_md) -> u32 {
    match Maps::get(context.cast()) {
        Some(maps) => virtual_mac::admit(&XdpFrame::<true> { context }, &maps) as u32,
        None => 1,
    }
}

/// See [`lb_common::packet::sum_words`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_sum(context: *mut xdp_md, start: u32, bytes: u32) -> u64 {
    // A quote begins behind 70 bytes of new headers at most; the verifier wants a bound.
    sum_words(&XdpFrame::<true> { context }, start as usize & 0xff, bytes as usize)
}

/// See [`lb_common::opaque::record`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_record(segment: *const Segment) -> u32 {
    // No socket is asked for, so no context is needed.
    // SAFETY: null, or a segment that lives across the call.
    if let (Some(maps), Some(segment)) = (Maps::get(core::ptr::null_mut()), unsafe { segment.as_ref() }) {
        opaque::record(&maps, segment);
    }
    0
}

/// See [`lb_common::opaque::watch`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_watch(context: *mut __sk_buff, segment: *const Segment) -> u32 {
    // SAFETY: as above.
    if let (Some(maps), Some(segment)) = (Maps::get(context.cast()), unsafe { segment.as_ref() }) {
        opaque::watch(&maps, segment);
    }
    0
}

/// See [`lb_common::steer::is_vip`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_is_vip(address: *const Address) -> u32 {
    // No socket is asked for, so no context is needed.
    // SAFETY: null, or an address that lives across the call.
    match (Maps::get(core::ptr::null_mut()), unsafe { address.as_ref() }) {
        (Some(maps), Some(address)) => steer::is_vip(&maps, *address) as u32,
        _ => 0,
    }
}

/// See [`egress::way_mtu`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_way_mtu(skb: *mut __sk_buff, way: *const Client) -> u32 {
    // SAFETY: null, or a way that lives across the call.
    match unsafe { way.as_ref() } {
        Some(way) => egress::way_mtu(skb, way),
        None => u32::MAX,
    }
}

/// See [`egress::ask`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_ask(skb: *mut __sk_buff, way: *const Client) -> u32 {
    // SAFETY: null, or a way that lives across the call.
    match (Maps::get(skb.cast()), unsafe { way.as_ref() }) {
        (Some(maps), Some(way)) => egress::ask(&SkbFrame { skb }, maps.settings, way) as u32,
        _ => TC_ACT_SHOT as u32,
    }
}

/// See [`lb_common::fragments::find`]: puts the record into `record`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_find_fragment(key: *const Key, record: *mut Record, last: u32) -> u32 {
    // SAFETY: null, or a key and a record that live across the call, and are nobody else's.
    match (Maps::get(core::ptr::null_mut()), unsafe { key.as_ref() }, unsafe { record.as_mut() }) {
        (Some(maps), Some(key), Some(record)) => {
            *record = maps::find_fragment(&maps, key, last != 0);
            1
        }
        _ => 0,
    }
}

/// See [`lb_common::fragments::record`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_record_fragment(key: *const Key, record: *const Record) -> u32 {
    // SAFETY: null, or a key and a record that live across the call.
    match (Maps::get(core::ptr::null_mut()), unsafe { key.as_ref() }, unsafe { record.as_ref() }) {
        (Some(maps), Some(key), Some(record)) => maps::record_fragment(&maps, key, *record) as u32,
        _ => 0,
    }
}
