//! XDP on the uplinks: decide, then one action for each verdict.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::bpf_xdp_adjust_meta,
};
use lb_common::{
    abi::{METADATA_MAGIC, Metadata},
    packet::Frame,
    reason::Reason,
    steer::{Verdict, steer},
};

use crate::{
    frame::XdpFrame,
    maps::{Maps, count_reason, redirect},
};

/// Steers one frame and returns its XDP action.
#[inline(always)]
pub fn steer_frame(context: *mut xdp_md) -> u32 {
    let Some(maps) = Maps::get() else {
        return xdp_action::XDP_PASS;
    };
    let mut frame = XdpFrame { context };
    let bytes = frame.length() as u64;
    let verdict = steer(&mut frame, &maps);
    let (action, reason) = match verdict {
        Verdict::Pass(reason) => (xdp_action::XDP_PASS, reason),
        Verdict::Drop(reason) => (xdp_action::XDP_DROP, reason),
        Verdict::Transmit(reason) => (xdp_action::XDP_TX, reason),
        Verdict::Redirect { next_hop } if redirect(next_hop) => (xdp_action::XDP_REDIRECT, Reason::Redirected),
        Verdict::Redirect { .. } => (xdp_action::XDP_DROP, Reason::NoPort),
        Verdict::Peer { ifindex } if put_metadata(context, ifindex) => (xdp_action::XDP_PASS, Reason::Peered),
        Verdict::Stack if put_metadata(context, 0) => (xdp_action::XDP_PASS, Reason::Stacked),
        Verdict::Peer { .. } | Verdict::Stack => (xdp_action::XDP_DROP, Reason::NoRoom),
    };
    count_reason(reason.index(), bytes);
    action
}

/// Tells the uplink's tc ingress program what to do with the frame.
#[inline(always)]
fn put_metadata(context: *mut xdp_md, ifindex: u32) -> bool {
    // SAFETY: the kernel's context.
    if unsafe { bpf_xdp_adjust_meta(context, -(size_of::<Metadata>() as i32)) } != 0 {
        return false;
    }
    // SAFETY: the kernel's context is valid for the whole program.
    let (meta, data) = unsafe { ((*context).data_meta as usize, (*context).data as usize) };
    if meta + size_of::<Metadata>() > data {
        return false;
    }
    // SAFETY: the comparison proved the room.
    unsafe { (meta as *mut Metadata).write(Metadata { magic: METADATA_MAGIC, ifindex }) };
    true
}
