//! XDP on the uplinks: decide, then one action for each verdict.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    programs::XdpContext,
};
use lb_common::{
    abi::program,
    neighbor::neighbor,
    packet::Frame,
    reason::Reason,
    slow::{fragment, slow},
    steer::{Verdict, steer},
};

use crate::{
    frame::XdpFrame,
    maps::{Maps, call, count_forwarded, count_reason, redirect},
};

/// Steers one frame and returns its XDP action.
#[inline(always)]
pub fn steer_frame(context: XdpContext) -> u32 {
    let Some(maps) = Maps::get(context.ctx.cast()) else {
        return xdp_action::XDP_PASS;
    };
    let mut frame = XdpFrame::<false> { context: context.ctx };
    let bytes = frame.length() as u64;
    let verdict = steer(&mut frame, &maps);
    // Comes back only where the program is not there.
    match verdict {
        Verdict::Slow => call(&context, program::SLOW),
        Verdict::Fragment => call(&context, program::FRAGMENT),
        Verdict::Neighbor => call(&context, program::NEIGHBOR),
        _ => {}
    }
    act(verdict, bytes)
}

/// The same for ICMP messages, which `steer` has put off.
#[inline(always)]
pub fn steer_slowly(context: *mut xdp_md) -> u32 {
    let Some(maps) = Maps::get(context.cast()) else {
        return xdp_action::XDP_PASS;
    };
    let mut frame = XdpFrame::<true> { context };
    let bytes = frame.length() as u64;
    act(slow(&mut frame, &maps), bytes)
}

/// The same for fragments.
#[inline(always)]
pub fn steer_fragment(context: *mut xdp_md) -> u32 {
    let Some(maps) = Maps::get(context.cast()) else {
        return xdp_action::XDP_PASS;
    };
    let mut frame = XdpFrame::<true> { context };
    let bytes = frame.length() as u64;
    act(fragment(&mut frame, &maps), bytes)
}

/// The same for ARP and Neighbor Discovery.
#[inline(always)]
pub fn answer_neighbor(context: *mut xdp_md) -> u32 {
    let Some(maps) = Maps::get(context.cast()) else {
        return xdp_action::XDP_PASS;
    };
    let mut frame = XdpFrame::<true> { context };
    let bytes = frame.length() as u64;
    act(neighbor(&mut frame, &maps), bytes)
}

#[inline(always)]
fn act(verdict: Verdict, bytes: u64) -> u32 {
    let (action, reason) = match verdict {
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
        Verdict::Slow | Verdict::Fragment | Verdict::Neighbor => (xdp_action::XDP_DROP, Reason::NoSlowPath),
    };
    count_reason(reason.index(), bytes);
    action
}

#[inline(always)]
fn forwarded(action: u32, backend: u32, bytes: u64) -> u32 {
    count_forwarded(backend, bytes);
    action
}
