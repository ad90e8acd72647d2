//! How a reply gets its new source, and how it leaves.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_fib_lookup},
    helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh},
};
use lb_common::{
    abi::{Route, Settings, protocol},
    address::Address,
    checksum,
    headers::{ETHERNET, Headers, IPV4, IPV6, v4, v6},
    packet::{Frame, View},
};

use crate::{
    frame::SkbFrame,
    maps::{ROUTE_ENTRIES, ROUTES, jiffies, uplink},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `enum` of `BPF_FIB_LKUP_RET_*` (include/uapi/linux/bpf.h).
const FIB_SUCCESS: i64 = 0;
const FIB_NOT_FORWARDED: i64 = 4;
const FIB_NO_NEIGHBOUR: i64 = 7;

/// Source address and port become the VIP's, the address alone where the port is 0; `hop` uses up one. False where the packet could not be written.
#[inline(always)]
pub fn rewrite_source(frame: &SkbFrame, headers: &Headers, vip: Address, port: u16, hop: bool) -> bool {
    if port == 0 {
        return rewrite_network(frame, headers, vip, hop);
    }
    let Some(ports) = frame.at::<4>(headers.l4) else { return false };
    let old_port: u16 = ports.get::<0, _>();
    let (offset, zero) = if headers.protocol == protocol::TCP { (16, 0) } else { (6, BPF_F_MARK_MANGLED_0 as u64) };
    let field = (headers.l4 + offset) as u32;
    // Only the kernel knows whether the field holds a whole checksum or the pseudo header's share of it: the
    // addresses are in both, the ports in one (net/core/utils.c, inet_proto_csum_replace_by_diff).
    let change = checksum::change_address(headers.source, vip, headers.is_v4) as u64;
    // SAFETY: the kernel's context; windows from before are not used after.
    if unsafe { bpf_l4_csum_replace(frame.skb, field, 0, change, BPF_F_PSEUDO_HDR as u64 | zero) } != 0 {
        return false;
    }
    let new_port = port.to_be();
    if new_port != old_port {
        // SAFETY: as above.
        if unsafe { bpf_l4_csum_replace(frame.skb, field, old_port as u64, new_port as u64, zero | 2) } != 0 {
            return false;
        }
        let Some(ports) = frame.at::<4>(headers.l4) else { return false };
        ports.put::<0, u16>(new_port);
    }
    rewrite_network(frame, headers, vip, hop)
}

#[inline(always)]
fn rewrite_network(frame: &SkbFrame, headers: &Headers, vip: Address, hop: bool) -> bool {
    let change = checksum::change_address(headers.source, vip, headers.is_v4) as u64;
    let hops = headers.hops.wrapping_sub(hop as u8);
    if headers.is_v4 {
        let Some(ip) = frame.at::<IPV4>(headers.l3) else { return false };
        let hop_change = checksum::change16(u16::from_ne_bytes([headers.hops, 0]), u16::from_ne_bytes([hops, 0]));
        let check = ip.get::<{ v4::CHECKSUM }, u16>();
        ip.put::<{ v4::CHECKSUM }, u16>(checksum::update(check, change + hop_change));
        ip.put::<{ v4::TTL }, u8>(hops);
        ip.put::<{ v4::SOURCE }, u32>(vip.v4_word());
    } else {
        let Some(ip) = frame.at::<IPV6>(headers.l3) else { return false };
        ip.put::<{ v6::HOPS }, u8>(hops);
        let new = vip.words();
        ip.put::<{ v6::SOURCE }, u64>(new[0]);
        ip.put::<{ v6::SOURCE + 8 }, u64>(new[1]);
    }
    true
}

/// Sends a reply to its client by the uplink, past netfilter; or, where the client is on this node, into the uplink
/// as if it had come from outside. Returns the tc action.
#[inline(always)]
pub fn leave(frame: &SkbFrame, settings: &Settings, headers: &Headers, vip: Address) -> i32 {
    let now = jiffies();
    let words = headers.destination.words();
    let mixed = (words[0] ^ words[1].rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let Some(route) = ROUTES.get_ptr_mut((mixed >> 54) as u32 & (ROUTE_ENTRIES as u32 - 1)) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: this CPU's own element, and programs of one CPU don't interrupt each other.
    let route = unsafe { &mut *route };
    let fresh = now.wrapping_sub(route.since) < settings.route_lifetime && route.epoch == settings.route_epoch;
    if fresh && route.client == headers.destination {
        if !put_macs(frame, route) {
            return TC_ACT_SHOT;
        }
        // SAFETY: touches only the redirect record of this CPU.
        return unsafe { bpf_redirect(route.ifindex, route.flags as u64) as i32 };
    }
    ask(frame, settings, headers, vip, route, now)
}

#[inline(always)]
fn put_macs(frame: &SkbFrame, route: &Route) -> bool {
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return false };
    let (d, s) = (route.destination_mac, route.source_mac);
    ethernet.put::<0, u32>(u32::from_ne_bytes([d[0], d[1], d[2], d[3]]));
    ethernet.put::<4, u32>(u32::from_ne_bytes([d[4], d[5], s[0], s[1]]));
    ethernet.put::<8, u32>(u32::from_ne_bytes([s[2], s[3], s[4], s[5]]));
    true
}

/// Asks the kernel's routes for a client, and remembers the answer. The packet that asks leaves through the kernel's
/// neighbour entry, which so stays confirmed however many others go past it.
#[inline(always)]
fn ask(frame: &SkbFrame, settings: &Settings, headers: &Headers, vip: Address, route: &mut Route, now: u64) -> i32 {
    // SAFETY: plain integers, for which zero is a value.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel's context is valid for the whole program.
    query.ifindex = unsafe { (*frame.skb).ifindex };
    if headers.is_v4 {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = vip.v4_word();
        query.__bindgen_anon_4.ipv4_dst = headers.destination.v4_word();
    } else {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = to_u32(vip);
        query.__bindgen_anon_4.ipv6_dst = to_u32(headers.destination);
    }
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the structure lives across the call.
    let answer = unsafe { fib_lookup(frame.skb.cast(), &raw mut query, size, 0) };
    let out = query.ifindex;
    let found = answer == FIB_SUCCESS || answer == FIB_NO_NEIGHBOUR;
    if found && uplink(out).is_some() {
        if answer == FIB_SUCCESS {
            *route = Route {
                client: headers.destination,
                since: now,
                epoch: settings.route_epoch,
                ifindex: out,
                flags: 0,
                destination_mac: query.dmac,
                source_mac: query.smac,
                pad: 0,
            };
        }
        // SAFETY: touches only the redirect record of this CPU.
        return unsafe { bpf_redirect_neigh(out, core::ptr::null_mut(), 0, 0) as i32 };
    }
    if !found && answer != FIB_NOT_FORWARDED {
        // Unroutable, or beyond what the lookup can say: the stack decides, and tells the pod.
        return TC_ACT_UNSPEC;
    }
    let Some(inside) = uplink(settings.uplink) else { return TC_ACT_UNSPEC };
    *route = Route {
        client: headers.destination,
        since: now,
        epoch: settings.route_epoch,
        ifindex: settings.uplink,
        flags: BPF_F_INGRESS,
        destination_mac: inside.mac,
        source_mac: inside.mac,
        pad: 0,
    };
    if !put_macs(frame, route) {
        return TC_ACT_SHOT;
    }
    // SAFETY: as above.
    unsafe { bpf_redirect(settings.uplink, BPF_F_INGRESS as u64) as i32 }
}

#[inline(always)]
fn to_u32(address: Address) -> [u32; 4] {
    let [a, b] = address.words();
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}
