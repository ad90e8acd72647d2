//! How a reply gets its new source, and how it leaves.

use core::ptr::addr_of;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_fib_lookup,
    },
    helpers::generated::{
        bpf_csum_update, bpf_fib_lookup as fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
    },
};
use lb_common::{
    abi::{Route, Settings, protocol},
    address::Address,
    checksum,
    headers::{ETHERNET, Headers, IPV4, IPV6, TCP, UDP, v4, v6},
    icmp::Client,
    packet::{Frame, View},
    summed as sums,
};

use crate::{
    apart,
    frame::SkbFrame,
    maps::{ROUTE_ENTRIES, ROUTES, jiffies, uplink},
    summed,
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `enum` of `BPF_FIB_LKUP_RET_*` (include/uapi/linux/bpf.h).
const FIB_SUCCESS: i64 = 0;
const FIB_NOT_FORWARDED: i64 = 4;
const FIB_NO_NEIGHBOUR: i64 = 7;

/// Source address and port become the VIP's, the address alone where the port is 0, of a later fragment; `hop` uses up
/// one. False where the packet could not be written.
#[inline(always)]
pub fn rewrite_source(frame: &SkbFrame, headers: &Headers, vip: Address, port: u16, hop: bool) -> bool {
    let hops = headers.hops.wrapping_sub(hop as u8);
    let mut change = Change {
        addresses: checksum::change_address(headers.source, vip, headers.is_v4) as u64,
        ports: 0,
        hops: if hop { checksum::one_hop(headers.is_v4) } else { 0 },
    };
    let summed = summed::of(frame.skb);
    if port != 0 {
        let Some(ports) = frame.at::<4>(headers.l4) else { return false };
        let (old_port, new_port) = (ports.get::<0, u16>(), port.to_be());
        change.ports = checksum::change16(old_port, new_port);
        let written = match summed {
            sums::NONE | sums::UNNECESSARY | sums::COMPLETE | sums::PARTIAL => {
                put_checksum(frame, headers, summed, &change)
            }
            _ => ask_checksum(frame, headers, &change, (old_port, new_port)),
        };
        if !written {
            return false;
        }
        let Some(ports) = frame.at::<4>(headers.l4) else { return false };
        ports.put::<0, u16>(new_port);
    } else if summed == sums::COMPLETE {
        let sum = sums::packet_change(headers.is_v4, change.addresses, 0, change.hops, false);
        // SAFETY: the kernel's context; the packet stays where it is.
        unsafe { bpf_csum_update(frame.skb, sum as u32) };
    }
    if headers.is_v4 {
        let Some(ip) = frame.at::<IPV4>(headers.l3) else { return false };
        let check = ip.get::<{ v4::CHECKSUM }, u16>();
        ip.put::<{ v4::CHECKSUM }, u16>(checksum::update(check, change.addresses + change.hops));
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

/// What changes in a reply's sums.
struct Change {
    addresses: u64,
    ports: u64,
    hops: u64,
}

/// Where the field is, and whether zero in it says "none".
#[inline(always)]
const fn checksum_place(headers: &Headers) -> (usize, bool) {
    let (offset, zero) = if headers.protocol == protocol::TCP { (16, false) } else { (6, true) };
    (headers.l4 + offset, zero)
}

/// Updates the transport's checksum in place.
#[inline(always)]
fn put_checksum(frame: &SkbFrame, headers: &Headers, summed: u64, change: &Change) -> bool {
    let (at, zero_is_none) = checksum_place(headers);
    let Some(field) = frame.at::<2>(at) else { return false };
    let old = field.get::<0, u16>();
    let is_there = !(zero_is_none && old == 0);
    if is_there {
        let new = sums::field(summed, old, change.addresses, change.ports);
        field.put::<0, u16>(if zero_is_none { checksum::udp(new) } else { new });
    }
    if summed == sums::COMPLETE {
        let Change { addresses, ports, hops } = *change;
        let change = sums::packet_change(headers.is_v4, addresses, ports, hops, is_there);
        // SAFETY: the kernel's context; the packet stays where it is.
        unsafe { bpf_csum_update(frame.skb, change as u32) };
    }
    true
}

/// The same by the kernel, where it does not say what the field holds: a whole checksum or the pseudo header's share of it. The
/// addresses are in both, the ports in one (net/core/utils.c, inet_proto_csum_replace_by_diff).
#[inline(always)]
fn ask_checksum(frame: &SkbFrame, headers: &Headers, change: &Change, (old_port, new_port): (u16, u16)) -> bool {
    let (at, zero_is_none) = checksum_place(headers);
    let (field, zero) = (at as u32, if zero_is_none { BPF_F_MARK_MANGLED_0 as u64 } else { 0 });
    // SAFETY: the kernel's context; windows from before are not used after.
    if unsafe { bpf_l4_csum_replace(frame.skb, field, 0, change.addresses, BPF_F_PSEUDO_HDR as u64 | zero) } != 0 {
        return false;
    }
    // SAFETY: as above.
    new_port == old_port
        || unsafe { bpf_l4_csum_replace(frame.skb, field, old_port as u64, new_port as u64, zero | 2) } == 0
}

/// Whether a reply fits into what its way takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Whole,
    /// It does not, and may be sent in fragments, which the node's stack makes.
    InPieces,
    /// It does not, and the pod wants to be told (DF, or IPv6).
    TooBig,
}

/// IP packets of this length are not looked at: no link that IPv6 runs over takes less (RFC 8200, 5).
const FITS_EVERYWHERE: usize = 1280;

/// Compares a reply with its way's MTU, which neither `bpf_redirect` nor `bpf_redirect_neigh` does: what is too long is lost in
/// the device. Of a packet that is to be segmented, the segments count.
#[inline(always)]
pub fn fit(frame: &SkbFrame, settings: &Settings, headers: &Headers, way: &Client) -> Fit {
    if headers.length <= FITS_EVERYWHERE {
        return Fit::Whole;
    }
    let length = segment_length(frame, headers);
    let Some((route, now)) = remembered(headers.destination) else { return Fit::Whole };
    let fresh = is_fresh(route, settings, headers.destination, now);
    // A copy, so that the way is put into memory for this alone.
    let mtu = if fresh { route.mtu } else { apart::sluice_way_mtu(frame.skb, &{ *way }) };
    if length <= mtu as usize {
        return Fit::Whole;
    }
    let may_fragment = headers.is_v4
        && frame.at::<IPV4>(headers.l3).is_some_and(|ip| ip.get::<{ v4::FRAGMENT }, u16>() & 0x4000u16.to_be() == 0);
    if may_fragment { Fit::InPieces } else { Fit::TooBig }
}

/// Bytes of the IP packet, or of each that it will be segmented into.
#[inline(always)]
fn segment_length(frame: &SkbFrame, headers: &Headers) -> usize {
    // SAFETY: the kernel's context is valid for the whole program.
    let payload = unsafe { addr_of!((*frame.skb).gso_size).read_volatile() } as usize;
    if payload == 0 {
        return headers.length;
    }
    let transport = match headers.protocol {
        protocol::TCP => frame.at::<TCP>(headers.l4).map_or(TCP, |tcp| (tcp.get::<12, u8>() >> 4) as usize * 4),
        _ => UDP,
    };
    headers.l4 - headers.l3 + transport + payload
}

/// What the kernel's routes take on a way; anything where they say nothing of it.
#[inline(always)]
pub fn way_mtu(skb: *mut __sk_buff, way: &Client) -> u32 {
    // SAFETY: plain integers, for which zero is a value.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    let answer = ask_routes(skb, &mut query, way);
    // SAFETY: every member of the union is an integer of two bytes.
    let mtu = unsafe { query.__bindgen_anon_1.mtu_result } as u32;
    if answer == FIB_SUCCESS && mtu > 1 { mtu } else { u32::MAX }
}

/// This CPU's memory for a client, and the time.
#[inline(always)]
fn remembered(client: Address) -> Option<(&'static mut Route, u64)> {
    let words = client.words();
    let mixed = (words[0] ^ words[1].rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let route = ROUTES.get_ptr_mut((mixed >> 54) as u32 & (ROUTE_ENTRIES as u32 - 1))?;
    // SAFETY: this CPU's own element, and programs of one CPU don't interrupt each other.
    Some((unsafe { &mut *route }, jiffies()))
}

#[inline(always)]
fn is_fresh(route: &Route, settings: &Settings, client: Address, now: u64) -> bool {
    let fresh = now.wrapping_sub(route.since) < settings.route_lifetime && route.epoch == settings.route_epoch;
    fresh && route.client == client
}

/// Sends a reply to its client by the uplink, past netfilter; or, where the client is on this node, into the uplink
/// as if it had come from outside. Returns the tc action.
#[inline(always)]
pub fn leave(frame: &SkbFrame, settings: &Settings, way: &Client) -> i32 {
    let Some((route, now)) = remembered(way.client) else { return TC_ACT_SHOT };
    if is_fresh(route, settings, way.client, now) {
        if !put_macs(frame, route) {
            return TC_ACT_SHOT;
        }
        // SAFETY: touches only the redirect record of this CPU.
        return unsafe { bpf_redirect(route.ifindex, route.flags as u64) as i32 };
    }
    // Once a second for each client. A copy, so that the way is put into memory for this alone.
    let way = *way;
    apart::sluice_ask(frame.skb, &way) as i32
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
pub fn ask(frame: &SkbFrame, settings: &Settings, way: &Client) -> i32 {
    let client = way.client;
    let Some((route, now)) = remembered(client) else { return TC_ACT_SHOT };
    // SAFETY: plain integers, for which zero is a value.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    let answer = ask_routes(frame.skb, &mut query, way);
    let out = query.ifindex;
    let found = answer == FIB_SUCCESS || answer == FIB_NO_NEIGHBOUR;
    if found && uplink(out).is_some() {
        if answer == FIB_SUCCESS {
            *route = Route {
                client,
                since: now,
                epoch: settings.route_epoch,
                ifindex: out,
                flags: 0,
                destination_mac: query.dmac,
                source_mac: query.smac,
                // SAFETY: every member of the union is an integer of two bytes.
                mtu: unsafe { query.__bindgen_anon_1.mtu_result } as u32,
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
        client,
        since: now,
        epoch: settings.route_epoch,
        ifindex: settings.uplink,
        flags: BPF_F_INGRESS,
        destination_mac: inside.mac,
        source_mac: inside.mac,
        // Nothing leaves the node.
        mtu: u32::MAX,
    };
    if !put_macs(frame, route) {
        return TC_ACT_SHOT;
    }
    // SAFETY: as above.
    unsafe { bpf_redirect(settings.uplink, BPF_F_INGRESS as u64) as i32 }
}

/// Asks the kernel's routes for a reply's way, with the least length, because then they say what the route takes. The
/// structure is the caller's and all zero: a copy would take as much stack again.
#[inline(always)]
fn ask_routes(skb: *mut __sk_buff, query: &mut bpf_fib_lookup, way: &Client) -> i64 {
    // SAFETY: the kernel's context is valid for the whole program.
    query.ifindex = unsafe { (*skb).ifindex };
    query.__bindgen_anon_1.tot_len = 1;
    if way.client.is_v4() {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = way.vip.v4_word();
        query.__bindgen_anon_4.ipv4_dst = way.client.v4_word();
    } else {
        query.family = AF_INET6;
        put_words(&raw mut query.__bindgen_anon_3, way.vip);
        put_words(&raw mut query.__bindgen_anon_4, way.client);
    }
    // SAFETY: the structure lives across the call.
    unsafe { fib_lookup(skb.cast(), query, size_of::<bpf_fib_lookup>() as i32, 0) }
}

/// Writes an IPv6 address where four bytes are the alignment: the compiler would join pairs of them, and the verifier takes
/// no such access to the stack.
#[inline(always)]
fn put_words<T>(place: *mut T, address: Address) {
    const { assert!(size_of::<T>() == size_of::<Address>() && align_of::<T>() == align_of::<u32>()) };
    let [a, b] = address.words();
    for (at, word) in [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32].into_iter().enumerate() {
        // SAFETY: within the place, which the assertion says is as large as an address.
        unsafe { place.cast::<u32>().add(at).write_volatile(word) };
    }
}
