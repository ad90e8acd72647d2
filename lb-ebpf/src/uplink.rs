//! XDP on the uplinks: decide, then one action for each verdict.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use lb_common::{
    packet::Frame,
    reason::Reason,
    steer::{Verdict, steer},
};

use crate::{
    frame::XdpFrame,
    maps::{Maps, count_forwarded, count_reason, redirect},
};

/// Steers one frame and returns its XDP action.
#[inline(always)]
pub fn steer_frame(context: *mut xdp_md) -> u32 {
    let Some(maps) = Maps::get(context.cast()) else {
        return xdp_action::XDP_PASS;
    };
    let mut frame = XdpFrame { context };
    let bytes = frame.length() as u64;
    let (action, reason) = match steer(&mut frame, &maps) {
        Verdict::Redirect { tx_port, backend } if redirect(tx_port) => {
            return forwarded(xdp_action::XDP_REDIRECT, backend, bytes);
        }
        Verdict::Peer { backend } | Verdict::Stack { backend } => {
            return forwarded(xdp_action::XDP_PASS, backend, bytes);
        }
        Verdict::Redirect { .. } => (xdp_action::XDP_DROP, Reason::NoPort),
        Verdict::Pass(reason) => (xdp_action::XDP_PASS, reason),
        Verdict::Drop(reason) => (xdp_action::XDP_DROP, reason),
        Verdict::Transmit(reason) => (xdp_action::XDP_TX, reason),
    };
    count_reason(reason.index(), bytes);
    action
}

#[inline(always)]
fn forwarded(action: u32, backend: u32, bytes: u64) -> u32 {
    count_forwarded(backend, bytes);
    action
}
