//! What few packets need, apart from what all do.
//!
//! Each is a global function, so that the verifier walks it once and not once for each way through the headers that
//! leads to it, and so that it takes no registers from the rest. A call costs some 10 ns.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::NO_OWNER,
    address::Address,
    fragments::{Key, Record},
    session::{self, Claim, Claimed},
    steer::{self, Offer},
};

use crate::maps::{self, Maps};

/// See [`lb_common::steer::offer`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_offer(context: *mut xdp_md, offer: *const Offer) -> u32 {
    // SAFETY: null, or an offer that lives across the call.
    match (Maps::get(context.cast()), unsafe { offer.as_ref() }) {
        (Some(maps), Some(offer)) => steer::offer(&maps, offer) as u32,
        _ => NO_OWNER as u32,
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
