//! The XDP and tc programs of Sluice: thin, one match from outcome to action.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "the program macros generate functions without documentation")]

mod apart;
mod counters;
mod earlier;
mod egress;
mod frame;
mod holders;
mod maps;
mod sockets;
mod summed;
mod uplink;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::generated::{bpf_redirect_peer, bpf_skb_change_type, bpf_skb_load_bytes_relative},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    headers::{self, ETHERNET, Headers},
    icmp::{self, Client, Told},
    mark::{self, Mark},
    packet::{Frame, View},
    reason::Reason,
    reply::{Observed, Place, Reply, observe, reply},
    slow_reply::{self, FragmentAction, FragmentReply},
};

use crate::{
    egress::Fit,
    frame::{SkbFrame, UplinkFrame},
    maps::{Maps, count_reason, count_replied},
};

// The programs are inlined into the entry points that the macros make: else each begins with a call, which costs every
// packet some 9 ns.

/// Uplink, XDP: decides what happens to each frame that comes in.
#[xdp(frags)]
#[inline(always)]
pub fn sluice_xdp(context: XdpContext) -> u32 {
    uplink::steer_frame(context)
}

/// Called by `sluice_xdp` through `programs`: decides about the few frames that need more.
#[xdp(frags)]
#[inline(always)]
pub fn sluice_xdp_slow(context: XdpContext) -> u32 {
    uplink::steer_slowly(context.ctx)
}

/// Called by `sluice_xdp` through `programs`: decides about fragments.
#[xdp(frags)]
#[inline(always)]
pub fn sluice_xdp_fragment(context: XdpContext) -> u32 {
    uplink::steer_fragment(context.ctx)
}

/// Called by `sluice_xdp` through `programs`: answers for VIPs that this node holds.
#[xdp(frags)]
#[inline(always)]
pub fn sluice_xdp_neighbor(context: XdpContext) -> u32 {
    uplink::answer_neighbor(context.ctx)
}

/// Pod's host-side interface, tc ingress: replies get the VIP as their source and leave.
#[classifier]
#[inline(always)]
pub fn sluice_return(context: TcContext) -> i32 {
    rewrite_reply(&context, Place::Pod)
}

/// Pod's host-side interface, tc egress: records the connections that the stack delivers.
#[classifier]
#[inline(always)]
pub fn sluice_bypass(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    record_bypass(&SkbFrame::new(skb), skb, Place::Pod)
}

/// Uplink, tc ingress: hands frames to the pods of rung `peer`, records connections beside the VIPs of rung `stack`.
#[classifier]
#[inline(always)]
pub fn sluice_uplink_in(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let Some(ethernet) = link_header(skb) else { return TC_ACT_UNSPEC };
    take_in(skb, &ethernet);
    match mark::read(core::array::from_fn(|i| ethernet[6 + i])) {
        Some(Mark::Stack) => TC_ACT_UNSPEC,
        // SAFETY: touches only the redirect record of this CPU.
        Some(Mark::Peer(ifindex)) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        None => {
            let frame = SkbFrame::new(skb);
            let bare = !begins_with(&frame, &ethernet);
            // SAFETY: the kernel's context is valid for the whole program.
            let kind = unsafe { (*skb).protocol as u16 };
            record_bypass(&UplinkFrame { frame, kind: if bare { Some(kind) } else { None } }, skb, Place::Uplink)
        }
    }
}

/// Uplink, tc egress: replies of rung `stack` get the VIP as their source.
#[classifier]
#[inline(always)]
pub fn sluice_uplink_out(context: TcContext) -> i32 {
    rewrite_reply(&context, Place::Uplink)
}

/// Called by `sluice_return` and `sluice_uplink_out` through `return_programs`: decides about ICMP messages.
#[classifier]
#[inline(always)]
pub fn sluice_return_slow(context: TcContext) -> i32 {
    tell(context.skb.skb)
}

/// Called by `sluice_return` through `return_programs`: decides about fragments.
#[classifier]
#[inline(always)]
pub fn sluice_return_fragment(context: TcContext) -> i32 {
    rewrite_fragment(context.skb.skb, Place::Pod)
}

/// Called by `sluice_uplink_out` through `return_programs`: the same.
#[classifier]
#[inline(always)]
pub fn sluice_out_fragment(context: TcContext) -> i32 {
    rewrite_fragment(context.skb.skb, Place::Uplink)
}

/// Attached nowhere: brings a frame of the self-test in by `BPF_PROG_TEST_RUN` where XDP is generic, so that it meets
/// `sluice_xdp` as frames from outside do. (Live frames through `sluice_xdp` itself would meet it twice there.)
#[xdp]
pub fn sluice_inject(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Attached nowhere: tells the agent the time as these programs see it, by `BPF_PROG_TEST_RUN`.
#[classifier]
pub fn sluice_clock(_context: TcContext) -> i32 {
    maps::jiffies() as i32
}

/// `enum bpf_hdr_start_off` (include/uapi/linux/bpf.h).
const BPF_HDR_START_MAC: u32 = 0;

/// The Ethernet header, wherever the frame that tc sees begins.
#[inline(always)]
fn link_header(skb: *mut __sk_buff) -> Option<[u8; ETHERNET]> {
    let mut header = [0u8; ETHERNET];
    // SAFETY: the array lives across the call and has the bytes that are asked for.
    let read = unsafe {
        bpf_skb_load_bytes_relative(skb.cast(), 0, header.as_mut_ptr().cast(), ETHERNET as u32, BPF_HDR_START_MAC)
    };
    (read == 0).then_some(header)
}

/// `PACKET_HOST` and `PACKET_OTHERHOST` (include/uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// A driver that has looked at a frame before XDP (veth) holds one to a virtual MAC for another host's, also after XDP has
/// written the interface's own, and the stack would drop it. No other frame is both.
#[inline(always)]
fn take_in(skb: *mut __sk_buff, ethernet: &[u8; ETHERNET]) {
    // SAFETY: the kernel's context is valid for the whole program.
    let (kind, ifindex) = unsafe { ((*skb).pkt_type, (*skb).ifindex) };
    if kind != PACKET_OTHERHOST {
        return;
    }
    if maps::uplink(ifindex).is_some_and(|uplink| ethernet.starts_with(&uplink.mac)) {
        // SAFETY: the kernel's context; what it refuses the stack drops.
        let _ = unsafe { bpf_skb_change_type(skb, PACKET_HOST) };
    }
}

/// In generic mode the kernel may forget the length of the link header: tc then sees frames without it.
#[inline(always)]
fn begins_with(frame: &SkbFrame, header: &[u8; ETHERNET]) -> bool {
    let Some(start) = frame.at::<ETHERNET>(0) else { return false };
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    start.get::<0, u32>() == word(0) && start.get::<4, u32>() == word(4) && start.get::<8, u32>() == word(8)
}

#[inline(always)]
fn rewrite_reply(context: &TcContext, place: Place) -> i32 {
    let skb = context.skb.skb;
    let Some(maps) = Maps::get(skb.cast()) else { return TC_ACT_UNSPEC };
    let frame = SkbFrame::new(skb);
    let bytes = frame.length() as u64;
    let Some(headers) = headers::parse(&frame) else {
        count_reason(Reason::NotAReply.index(), bytes);
        return TC_ACT_UNSPEC;
    };
    let (action, reason) = match reply(&frame, &maps, place, &headers) {
        Reply::Pass(reason) => (TC_ACT_UNSPEC, reason),
        Reply::Drop(reason) => (TC_ACT_SHOT, reason),
        Reply::Answer { backend } => {
            count_replied(backend, bytes);
            (TC_ACT_SHOT, Reason::SelfTest)
        }
        Reply::Leave { backend } => {
            let way = Client { client: headers.destination, vip: headers.source, backend, pad: 0 };
            if egress::fit(&frame, maps.settings, &headers, &way) == Fit::Whole {
                count_replied(backend, bytes);
                return egress::leave(&frame, maps.settings, &way);
            }
            (TC_ACT_UNSPEC, Reason::ReplyTooBig)
        }
        Reply::Message => {
            // Comes back only where the program is not there.
            maps::call_return_slow(context, place);
            (TC_ACT_UNSPEC, Reason::NoSlowPath)
        }
        Reply::Fragment => {
            // As above. What would leave under the pod's address is of no use to anybody.
            maps::call_return(context, place.fragment_program());
            (TC_ACT_SHOT, Reason::NoSlowPath)
        }
        Reply::Rewrite { vip, port, backend } => {
            let way = Client { client: headers.destination, vip, backend, pad: 0 };
            match send(&frame, &maps, place, &headers, &way, port) {
                Ok(action) => return action,
                Err(refused) => refused,
            }
        }
    };
    count_reason(reason.index(), bytes);
    action
}

/// Gives a reply its source and sends it; else the action, and why it was not done.
#[inline(always)]
fn send(
    frame: &SkbFrame,
    maps: &Maps,
    place: Place,
    headers: &Headers,
    way: &Client,
    port: u16,
) -> Result<i32, (i32, Reason)> {
    let bytes = frame.length() as u64;
    let fit = if place == Place::Pod { egress::fit(frame, maps.settings, headers, way) } else { Fit::Whole };
    if fit == Fit::TooBig {
        return Err((TC_ACT_UNSPEC, Reason::ReplyTooBig));
    }
    // What the stack sends on loses its hop there.
    if !egress::rewrite_source(frame, headers, way.vip, port, place == Place::Pod && fit == Fit::Whole) {
        return Err((TC_ACT_SHOT, Reason::NoRoom));
    }
    count_replied(way.backend, bytes);
    Ok(match fit {
        Fit::Whole if place == Place::Pod => egress::leave(frame, maps.settings, way),
        Fit::Whole | Fit::InPieces | Fit::TooBig => TC_ACT_UNSPEC,
    })
}

/// As [`rewrite_reply`], of a fragment.
#[inline(always)]
fn rewrite_fragment(skb: *mut __sk_buff, place: Place) -> i32 {
    let Some(maps) = Maps::get(skb.cast()) else { return TC_ACT_UNSPEC };
    let frame = SkbFrame::new(skb);
    // `reply` has read the same.
    let Some(headers) = headers::parse(&frame) else { return TC_ACT_UNSPEC };
    let Some(piece) = headers::piece(&frame, &headers) else { return TC_ACT_UNSPEC };
    let decided = slow_reply::reply(&frame, &maps, place, &headers, &piece);
    let FragmentReply { action, reason, vip, port, backend } = decided;
    let bytes = frame.length() as u64;
    let way = Client { client: headers.destination, vip, backend, pad: 0 };
    let (action, reason) = match action {
        FragmentAction::Pass => (TC_ACT_UNSPEC, reason),
        FragmentAction::Drop => (TC_ACT_SHOT, reason),
        FragmentAction::Leave => {
            count_replied(backend, bytes);
            return egress::leave(&frame, maps.settings, &way);
        }
        FragmentAction::Rewrite => {
            let headers = Headers { l4: piece.l4, protocol: piece.protocol, ..headers };
            match send(&frame, &maps, place, &headers, &way, port) {
                Ok(action) => return action,
                Err(refused) => refused,
            }
        }
    };
    count_reason(reason.index(), bytes);
    action
}

/// Rewrites an ICMP error for the client whose packet it quotes, and sends it as a reply.
#[inline(always)]
fn tell(skb: *mut __sk_buff) -> i32 {
    let Some(maps) = Maps::get(skb.cast()) else { return TC_ACT_UNSPEC };
    let frame = SkbFrame::new(skb);
    let (place, bytes) = (maps::place_named(skb), frame.length() as u64);
    let (action, reason) = match icmp::to_client(&frame, &maps, place) {
        Told::Pass(reason) => (TC_ACT_UNSPEC, reason),
        Told::Drop(reason) => (TC_ACT_SHOT, reason),
        Told::Client(client) => {
            count_replied(client.backend, bytes);
            return match place {
                Place::Uplink => TC_ACT_UNSPEC,
                Place::Pod => egress::leave(&frame, maps.settings, &client),
            };
        }
    };
    count_reason(reason.index(), bytes);
    action
}

#[inline(always)]
fn record_bypass<F: Frame>(frame: &F, skb: *mut __sk_buff, place: Place) -> i32 {
    let Some(maps) = Maps::get(skb.cast()) else { return TC_ACT_UNSPEC };
    let (action, reason) = match observe(frame, &maps, place) {
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
