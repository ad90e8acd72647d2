//! Asking the earlier owners of a moved slot.
//!
//! A function of its own, global so that the verifier walks its loop once and not once for each way through the
//! headers that leads to it. Its call costs some 10 ns, which only packets of moved slots pay.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::NO_OWNER,
    steer::{Offer, offer},
};

use crate::maps::Maps;

/// See [`lb_common::steer::offer`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_offer(context: *mut xdp_md, query: *const Offer) -> u32 {
    // SAFETY: null or a query that lives across the call.
    let (Some(maps), Some(query)) = (Maps::get(context.cast()), unsafe { query.as_ref() }) else {
        return NO_OWNER as u32;
    };
    offer(&maps, query) as u32
}
