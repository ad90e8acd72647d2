//! Programs of tests and benchmarks, never of the product.
//!
//! `BPF_PROG_TEST_RUN` runs a program again and again over what it left of the packet. So what is measured is called
//! by a `vary` program, which first makes the packet new: headers that the product rewrites, and another flow each
//! time. The floor is the same with an empty program behind it.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the program macros generate functions without documentation")]

#[path = "lab/load.rs"]
mod load;
#[path = "lab/stress.rs"]
mod stress;
#[path = "lab/torture.rs"]
mod torture;

use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    btf_maps::{Array, DevMap, HashMap, LruHashMap, ProgramArray},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

use crate::load::Load;

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const TCP_HEADER: usize = 20;

/// What to write into frames. Written by the benchmark.
#[btf_map(name = "load")]
static LOAD: Array<Load, 1> = Array::new();
/// XDP programs to measure.
#[btf_map(name = "xdp_targets")]
static XDP_TARGETS: ProgramArray<16> = ProgramArray::new();
/// tc programs to measure.
#[btf_map(name = "tc_targets")]
static TC_TARGETS: ProgramArray<16> = ProgramArray::new();
/// The measure of all things: one key of 16 bytes.
#[btf_map(name = "hash")]
static HASH: HashMap<[u64; 2], u64, 65_536> = HashMap::new();
/// What a flow table of the usual make costs: twice the room that 64K flows need.
#[btf_map(name = "lru")]
static LRU: LruHashMap<[u64; 5], u64, 131_072> = LruHashMap::new();

/// Where `redirect` sends everything.
#[btf_map(name = "ports")]
static PORTS: DevMap<1> = DevMap::new();

/// Passes everything: the peer of a veth must have a program, or what XDP_TX sends is lost.
#[xdp]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Drops everything: the limit of what any program on a wire can reach.
#[xdp]
pub fn drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Sends everything to the one port: what a redirect costs where nothing is decided or rewritten.
#[xdp(frags)]
pub fn redirect(_ctx: XdpContext) -> u32 {
    match PORTS.redirect(0, 0) {
        Ok(_) => xdp_action::XDP_REDIRECT,
        Err(_) => xdp_action::XDP_ABORTED,
    }
}

/// The floor of XDP rows.
#[xdp(frags)]
pub fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The floor of tc rows.
#[classifier]
pub fn empty_tc(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Sends the frame out, in a live test run.
#[xdp(frags)]
pub fn transmit(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// One lookup of the one key in `hash`: an IPv4 packet's destination, destination port and protocol. Without the
/// packet in the key the processor would look it up while it still works on the frame before.
#[xdp(frags)]
pub fn hash_lookup(ctx: XdpContext) -> u32 {
    let Some(key) = service_key(&ctx) else { return xdp_action::XDP_ABORTED };
    // SAFETY: nobody removes entries while this runs.
    match unsafe { HASH.get(key) } {
        Some(_) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

/// One lookup of an IPv4 packet's flow in `lru`.
#[xdp(frags)]
pub fn lru_lookup(ctx: XdpContext) -> u32 {
    let Some(key) = flow_key(&ctx) else { return xdp_action::XDP_ABORTED };
    // SAFETY: nobody removes entries while this runs.
    match unsafe { LRU.get(key) } {
        Some(_) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Puts an IPv4 packet's flow into `lru`.
#[xdp(frags)]
pub fn lru_fill(ctx: XdpContext) -> u32 {
    let Some(key) = flow_key(&ctx) else { return xdp_action::XDP_ABORTED };
    match LRU.insert(key, 1, 0) {
        Ok(()) => xdp_action::XDP_PASS,
        Err(_) => xdp_action::XDP_ABORTED,
    }
}

/// Puts an IPv4 packet's key into `hash`.
#[xdp(frags)]
pub fn hash_fill(ctx: XdpContext) -> u32 {
    let Some(key) = service_key(&ctx) else { return xdp_action::XDP_ABORTED };
    match HASH.insert(key, 1, 0) {
        Ok(()) => xdp_action::XDP_PASS,
        Err(_) => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn service_key(ctx: &XdpContext) -> Option<[u64; 2]> {
    let data = ctx.data();
    if data + ETHERNET + 28 > ctx.data_end() {
        return None;
    }
    // SAFETY: the comparison proved the bytes.
    unsafe {
        let destination = ((data + 30) as *const u32).read_unaligned() as u64;
        let port = ((data + 36) as *const u16).read_unaligned() as u64;
        let protocol = ((data + 23) as *const u8).read() as u64;
        Some([destination, port | protocol << 16])
    }
}

#[inline(always)]
fn flow_key(ctx: &XdpContext) -> Option<[u64; 5]> {
    let data = ctx.data();
    if data + ETHERNET + 28 > ctx.data_end() {
        return None;
    }
    // SAFETY: the comparison proved the bytes.
    unsafe {
        let at = |offset: usize| ((data + offset) as *const u32).read_unaligned() as u64;
        Some([0, at(26), 0, at(30), at(34)])
    }
}

/// Makes an IPv4 packet new and calls the target.
#[xdp(frags)]
pub fn vary_v4(ctx: XdpContext) -> u32 {
    vary_xdp::<true>(&ctx)
}

/// Makes an IPv6 packet new and calls the target.
#[xdp(frags)]
pub fn vary_v6(ctx: XdpContext) -> u32 {
    vary_xdp::<false>(&ctx)
}

#[inline(always)]
fn vary_xdp<const V4: bool>(ctx: &XdpContext) -> u32 {
    if let Some(target) = write_headers::<V4, false>(ctx.data(), ctx.data_end()) {
        // SAFETY: does not come back, unless nothing is there.
        unsafe { XDP_TARGETS.tail_call(ctx, target) };
    }
    xdp_action::XDP_ABORTED
}

/// Makes an IPv4 reply new, and calls the target.
#[classifier]
pub fn vary_reply_v4(ctx: TcContext) -> i32 {
    vary_tc::<true>(&ctx)
}

/// Makes an IPv6 reply new, and calls the target.
#[classifier]
pub fn vary_reply_v6(ctx: TcContext) -> i32 {
    vary_tc::<false>(&ctx)
}

#[inline(always)]
fn vary_tc<const V4: bool>(ctx: &TcContext) -> i32 {
    let skb = ctx.as_ptr().cast::<aya_ebpf::bindings::__sk_buff>();
    // SAFETY: the kernel's context is valid for the whole program.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    if let Some(target) = write_headers::<V4, true>(data, end) {
        // SAFETY: does not come back, unless nothing is there.
        unsafe { TC_TARGETS.tail_call(ctx, target) };
    }
    TC_ACT_SHOT
}

/// Writes fields as wide as the product reads them: a load that spans two stores would wait for both, as no load of
/// a packet from the wire does. The other end's address and port are the flow's.
#[inline(always)]
fn write_headers<const V4: bool, const REPLY: bool>(data: usize, end: usize) -> Option<u32> {
    let load = LOAD.get_ptr_mut(0)?;
    // SAFETY: one test run at a time.
    let load = unsafe { &mut *load };
    let l4 = ETHERNET + if V4 { 20 } else { 40 };
    if data + l4 + TCP_HEADER > end {
        return None;
    }
    let flow = (load.next as u32).wrapping_mul(0x9e37_79b1) & load.flows_mask;
    load.next += 1;
    let (mut source, mut destination, mut ports) = (load.source, load.destination, load.ports);
    let (address_bits, port_bits) = (flow >> 6, flow & 63);
    let changed = if REPLY { &mut destination } else { &mut source };
    changed[1] ^= if V4 { address_bits.swap_bytes() as u64 } else { (address_bits as u64).swap_bytes() };
    ports ^= if REPLY { port_bits << 16 } else { port_bits };
    // SAFETY: the comparison proved the bytes.
    unsafe {
        let put16 = |offset: usize, value: u16| ((data + offset) as *mut u16).write_unaligned(value);
        let put32 = |offset: usize, value: u32| ((data + offset) as *mut u32).write_unaligned(value);
        let put64 = |offset: usize, value: u64| ((data + offset) as *mut u64).write_unaligned(value);
        let put8 = |offset: usize, value: u8| ((data + offset) as *mut u8).write(value);
        put32(0, load.macs[0]);
        put32(4, load.macs[1]);
        put32(8, load.macs[2]);
        if V4 {
            put8(ETHERNET + 8, load.hops);
            put16(ETHERNET + 10, load.ip_check);
            put32(ETHERNET + 12, source[1] as u32);
            put32(ETHERNET + 16, destination[1] as u32);
        } else {
            put8(ETHERNET + 7, load.hops);
            put64(ETHERNET + 8, source[0]);
            put64(ETHERNET + 16, source[1]);
            put64(ETHERNET + 24, destination[0]);
            put64(ETHERNET + 32, destination[1]);
        }
        put32(l4, ports);
        if load.protocol == TCP { put16(l4 + 16, load.check) } else { put16(l4 + 6, load.check) }
    }
    Some(load.target)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
