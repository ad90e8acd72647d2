//! XDP on the uplinks: decide, then one action for each verdict.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use lb_common::{
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
        Verdict::Redirect { tx_port } if redirect(tx_port) => (xdp_action::XDP_REDIRECT, Reason::Redirected),
        Verdict::Redirect { .. } => (xdp_action::XDP_DROP, Reason::NoPort),
        Verdict::Peer => (xdp_action::XDP_PASS, Reason::Peered),
        Verdict::Stack => (xdp_action::XDP_PASS, Reason::Stacked),
    };
    count_reason(reason.index(), bytes);
    action
}
