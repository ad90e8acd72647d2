//! The XDP and tc programs of Sluice: thin, one match from outcome to action.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the program macros generate functions without documentation")]

mod egress;
mod frame;
mod maps;
mod uplink;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_redirect_peer,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    abi::{METADATA_MAGIC, Metadata},
    packet::Frame,
    reason::Reason,
    reply::{Observed, Place, Reply, observe, reply},
};

use crate::{
    frame::SkbFrame,
    maps::{Maps, count_reason},
};

/// Uplink, XDP: decides what happens to each frame that comes in.
#[xdp(frags)]
pub fn sluice_xdp(context: XdpContext) -> u32 {
    uplink::steer_frame(context.ctx)
}

/// Pod's host-side interface, tc ingress: replies get the VIP as their source and leave.
#[classifier]
pub fn sluice_return(context: TcContext) -> i32 {
    rewrite_reply(context.skb.skb, Place::Pod)
}

/// Pod's host-side interface, tc egress: records the connections that the stack delivers.
#[classifier]
pub fn sluice_bypass(context: TcContext) -> i32 {
    record_bypass(context.skb.skb, Place::Pod)
}

/// Uplink, tc ingress: hands frames to the pods of rung `peer`, records connections beside the VIPs of rung `stack`.
#[classifier]
pub fn sluice_uplink_in(context: TcContext) -> i32 {
    match read_metadata(context.skb.skb) {
        Some(0) => TC_ACT_UNSPEC,
        // SAFETY: touches only the redirect record of this CPU.
        Some(ifindex) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        None => record_bypass(context.skb.skb, Place::Uplink),
    }
}

/// Uplink, tc egress: replies of rung `stack` get the VIP as their source.
#[classifier]
pub fn sluice_uplink_out(context: TcContext) -> i32 {
    rewrite_reply(context.skb.skb, Place::Uplink)
}

/// Attached nowhere: tells the agent the time as these programs see it, by `BPF_PROG_TEST_RUN`.
#[classifier]
pub fn sluice_clock(_context: TcContext) -> i32 {
    maps::jiffies() as i32
}

/// What `sluice_xdp` left in front of the frame.
#[inline(always)]
fn read_metadata(skb: *mut __sk_buff) -> Option<u32> {
    // SAFETY: the kernel's context is valid for the whole program.
    let (meta, data) = unsafe { ((*skb).data_meta as usize, (*skb).data as usize) };
    if meta + size_of::<Metadata>() > data {
        return None;
    }
    // SAFETY: the comparison proved the bytes.
    let metadata = unsafe { (meta as *const Metadata).read() };
    (metadata.magic == METADATA_MAGIC).then_some(metadata.ifindex)
}

#[inline(always)]
fn rewrite_reply(skb: *mut __sk_buff, place: Place) -> i32 {
    let Some(maps) = Maps::get() else { return TC_ACT_UNSPEC };
    let frame = SkbFrame::new(skb);
    let bytes = frame.length() as u64;
    let (action, reason) = match reply(&frame, &maps, place) {
        Reply::Pass(reason) => (TC_ACT_UNSPEC, reason),
        Reply::Drop(reason) => (TC_ACT_SHOT, reason),
        Reply::Rewrite { headers, vip, port } => {
            if !egress::rewrite_source(&frame, &headers, vip, port, place == Place::Pod) {
                (TC_ACT_SHOT, Reason::NoRoom)
            } else if place == Place::Uplink {
                (TC_ACT_UNSPEC, Reason::Replied)
            } else {
                (egress::leave(&frame, maps.settings, &headers, vip), Reason::Replied)
            }
        }
    };
    count_reason(reason.index(), bytes);
    action
}

#[inline(always)]
fn record_bypass(skb: *mut __sk_buff, place: Place) -> i32 {
    let Some(maps) = Maps::get() else { return TC_ACT_UNSPEC };
    let frame = SkbFrame::new(skb);
    let (action, reason) = match observe(&frame, &maps, place) {
        // Everything that crosses an interface comes by here; only what concerns a service is counted.
        Observed::Pass(Reason::NotForUs) => return TC_ACT_UNSPEC,
        Observed::Pass(reason) => (TC_ACT_UNSPEC, reason),
        Observed::Drop(reason) => (TC_ACT_SHOT, reason),
    };
    count_reason(reason.index(), frame.length() as u64);
    action
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
