//! ARP (RFC 826, RFC 5227) and Neighbor Discovery (RFC 4861) for VIPs: no interface has them, so the kernel has no answer,
//! or, where something else has put them there too, one that is not wanted.

use crate::{
    abi::protocol,
    address::Address,
    answer::move_ethernet,
    checksum,
    headers::{self, ETHERNET, Headers, IPV6, ethertype, v6},
    holder::{Holder, HolderKey, VirtualMac, VirtualMacKey, holder_flags},
    packet::{Frame, View},
    reason::Reason,
    steer::Verdict,
};

/// What is asked and told about who holds VIPs.
pub trait Holders {
    /// Whether this node answers for an address; none where that is none of our business.
    fn holder(&self, key: &HolderKey) -> Option<Holder>;
    /// Whether this node takes frames to a virtual router's MAC; none where it has no such router.
    fn virtual_mac(&self, key: &VirtualMacKey) -> Option<VirtualMac>;
    /// Somebody with another MAC says that a held address is his.
    fn note_conflict(&self, key: &HolderKey, mac: [u8; 6]);
    /// The interface that the frame came in by.
    fn ingress(&self) -> u32;
    /// Nanoseconds of the boot clock.
    fn boot_time(&self) -> u64;
}

/// Bytes of an ARP packet for Ethernet and IPv4.
const ARP: usize = 28;

/// Offsets in it (RFC 826).
mod arp {
    pub const OPERATION: usize = 6;
    pub const SENDER_MAC: usize = 8;
    pub const SENDER: usize = 14;
    pub const TARGET_MAC: usize = 18;
    pub const TARGET: usize = 24;
    pub const REQUEST: u16 = 1u16.to_be();
    pub const REPLY: u16 = 2u16.to_be();
}

/// ICMPv6 types (RFC 4861, 4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Bytes of a solicitation and of an advertisement without options.
const MESSAGE: usize = 24;
/// Where both have the address that they are about.
const TARGET: usize = 8;
/// Bytes of an option with a MAC.
const MAC_OPTION: usize = 8;
/// Bytes of options that are looked through: four times those that anybody sends with a solicitation (MAC, nonce).
const OPTIONS_MAX: usize = 64;
/// Options that fit into these.
const OPTIONS: usize = OPTIONS_MAX / 8;

/// The hop limit that shows that no router has sent a message on (RFC 4861, 7.1.1).
const HOPS: u8 = 255;

/// The segment that a frame came from.
#[derive(Clone, Copy)]
struct Link {
    /// Offset of what stands behind the Ethernet header.
    l3: usize,
    /// Without an address.
    key: HolderKey,
}

/// Whether a frame is ARP, behind up to two VLAN tags.
#[inline(always)]
pub fn is_arp<F: Frame>(frame: &F) -> bool {
    headers::kind(frame).is_some_and(|(kind, _)| kind == ethertype::ARP)
}

/// Whether an ICMPv6 message without a defect asks or tells whose an address is.
#[inline(always)]
pub fn is_discovery<F: Frame>(frame: &F, headers: &Headers) -> bool {
    frame.at::<4>(headers.l4).is_some_and(|icmp| matches!(icmp.get::<0, u8>(), SOLICITATION | ADVERTISEMENT))
}

/// Decides about an ARP packet or a message of Neighbor Discovery.
#[inline(always)]
pub fn neighbor<F: Frame, T: Holders>(frame: &mut F, tables: &T) -> Verdict {
    let Some((kind, l3)) = headers::kind(frame) else { return Verdict::Pass(Reason::NotIp) };
    // No interface of ours has a tag within a tag.
    let Some(vlan) = headers::vlan(frame, l3) else { return Verdict::Pass(Reason::NotForUs) };
    let key = HolderKey { interface: tables.ingress(), vlan, ..HolderKey::default() };
    let link = Link { l3, key };
    if kind == ethertype::ARP { resolve(frame, tables, &link) } else { discover(frame, tables, &link) }
}

/// ARP.
#[inline(always)]
fn resolve<F: Frame, T: Holders>(frame: &mut F, tables: &T, link: &Link) -> Verdict {
    let Some(arp) = frame.at::<ARP>(link.l3) else { return Verdict::Pass(Reason::NotIp) };
    // Ethernet and IPv4, and the lengths of their addresses.
    //= rfc826#0:types MUST: what is not of Ethernet and IPv4 is not looked at
    let is_ours =
        arp.get::<0, u32>() == u32::from_ne_bytes([0, 1, 8, 0]) && arp.get::<4, u16>() == u16::from_ne_bytes([6, 4]);
    let operation: u16 = arp.get::<{ arp::OPERATION }, _>();
    if !is_ours || !matches!(operation, arp::REQUEST | arp::REPLY) {
        return Verdict::Pass(Reason::NotIp);
    }
    let (sender, target): (u32, u32) = (arp.get::<{ arp::SENDER }, _>(), arp.get::<{ arp::TARGET }, _>());
    let mac: [u8; 6] = mac_of(arp.get::<{ arp::SENDER_MAC }, _>(), arp.get::<{ arp::SENDER_MAC + 4 }, _>());
    let is_claimed = claimed(tables, &link.key.of(Address::from_v4_word(sender)), mac);
    let key = link.key.of(Address::from_v4_word(target));
    if operation == arp::REPLY {
        return Verdict::Pass(if is_claimed { Reason::NeighborConflict } else { Reason::NotIp });
    }
    let Some(holder) = tables.holder(&key) else {
        return Verdict::Pass(if is_claimed { Reason::NeighborConflict } else { Reason::NotIp });
    };
    if sender == target {
        // The kernel would answer where it has the address.
        //= rfc5227#2.3:announcement MUST: whoever announces an address asks nothing, and is not answered
        return Verdict::Drop(if is_claimed { Reason::NeighborConflict } else { Reason::NeighborElsewhere });
    }
    if !holder.holds(tables.boot_time()) {
        return Verdict::Drop(Reason::NeighborElsewhere);
    }
    if mac[0] & 1 != 0 {
        return Verdict::Drop(Reason::NotAnswered);
    }
    let (Some(arp), true) = (frame.at::<ARP>(link.l3), put_macs(frame, mac, holder.mac)) else {
        return Verdict::Drop(Reason::NoRoom);
    };
    let (high, low) = mac_words(holder.mac);
    let (to_high, to_low) = mac_words(mac);
    //= rfc826#0:reply MUST: whoever asks for an address that is held here is answered, in the request's own frame with its ends swapped
    arp.put::<{ arp::OPERATION }, u16>(arp::REPLY);
    arp.put::<{ arp::SENDER_MAC }, u32>(high);
    arp.put::<{ arp::SENDER_MAC + 4 }, u16>(low);
    arp.put::<{ arp::SENDER }, u32>(target);
    arp.put::<{ arp::TARGET_MAC }, u32>(to_high);
    arp.put::<{ arp::TARGET_MAC + 4 }, u16>(to_low);
    // Its sender has no address yet.
    //= rfc5227#2.1.1:probe MUST: a probe for an address that is held here is answered, so that its sender takes another
    arp.put::<{ arp::TARGET }, u32>(sender);
    Verdict::Transmit(Reason::NeighborAnswered)
}

/// Neighbor Discovery.
#[inline(always)]
fn discover<F: Frame, T: Holders>(frame: &mut F, tables: &T, link: &Link) -> Verdict {
    let Some(headers) = headers::parse(frame) else { return Verdict::Pass(Reason::NotIp) };
    let Some(message) = frame.at::<MESSAGE>(headers.l4) else { return Verdict::Pass(Reason::NotForUs) };
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return Verdict::Pass(Reason::NotIp) };
    if headers.protocol != protocol::ICMPV6 || headers.is_v4 || headers.l4_length() < MESSAGE {
        return Verdict::Pass(Reason::NotForUs);
    }
    let target = Address::from_words([message.get::<TARGET, _>(), message.get::<{ TARGET + 8 }, _>()]);
    let mac = mac_of(ethernet.get::<6, _>(), ethernet.get::<10, _>());
    let key = link.key.of(target);
    //= rfc4861#7.1.2:hops MUST: an advertisement that a router has sent on claims nothing
    if message.get::<0, u8>() == ADVERTISEMENT {
        let is_near = headers.hops == HOPS;
        return Verdict::Pass(if is_near && claimed(tables, &key, mac) {
            Reason::NeighborConflict
        } else {
            Reason::NotForUs
        });
    }
    let is_claimed = headers.hops == HOPS && claimed(tables, &link.key.of(headers.source), mac);
    let Some(holder) = tables.holder(&key) else {
        return Verdict::Pass(if is_claimed { Reason::NeighborConflict } else { Reason::NotForUs });
    };
    let Some(question) = valid(frame, &headers) else { return Verdict::Drop(Reason::Malformed) };
    if !holder.holds(tables.boot_time()) {
        return Verdict::Drop(Reason::NeighborElsewhere);
    }
    if mac[0] & 1 != 0 {
        return Verdict::Drop(Reason::NotAnswered);
    }
    advertise(frame, link, &holder, target, if question.is_probe { None } else { Some((headers.source, mac)) })
}

/// What a solicitation that passes says.
struct Question {
    /// Its sender has no address yet (RFC 4862, 5.4.2).
    is_probe: bool,
}

/// What is asked of a solicitation.
//= rfc4861#7.1.1:valid MUST: hop limit 255, code 0, a right sum, enough octets, no multicast target, no option of length 0
//= rfc4861#7.1.1:probe MUST: from the unspecified address it goes to a solicited-node group, and has no MAC option
#[inline(always)]
fn valid<F: Frame>(frame: &F, headers: &Headers) -> Option<Question> {
    let (source, destination) = (headers.source.words(), headers.destination.words());
    let length = headers.l4_length();
    let message = frame.at::<MESSAGE>(headers.l4)?;
    let is_probe = source[0] | source[1] == 0;
    // Extension headers, which nobody puts before it, would put it out of the sum's reach.
    if headers.hops != HOPS
        || message.get::<1, u8>() != 0
        || message.get::<TARGET, u8>() == 0xff
        || headers.l4 != headers.l3 + IPV6
        || !length.is_multiple_of(8)
        || length > MESSAGE + OPTIONS_MAX
    {
        return None;
    }
    let has_mac = has_mac_option(frame, headers.l4 + MESSAGE, length - MESSAGE)?;
    // ff02::1:ff00:0/104.
    let is_group = destination[0] == u64::from_ne_bytes([0xff, 2, 0, 0, 0, 0, 0, 0])
        && destination[1].to_ne_bytes().starts_with(&[0, 0, 0, 1, 0xff]);
    if is_probe && (has_mac || !is_group) {
        return None;
    }
    let sum = frame.sum(headers.l4, length) + pseudo_sum(headers.source, headers.destination, length);
    (checksum::fold(sum) == 0xffff).then_some(Question { is_probe })
}

/// Whether options name the sender's MAC. `None` where one is broken.
#[inline(always)]
fn has_mac_option<F: Frame>(frame: &F, start: usize, length: usize) -> Option<bool> {
    let (mut at, mut found) = (0, false);
    for _ in 0..OPTIONS {
        if at >= length {
            break;
        }
        let option = frame.at::<2>(start + (at & (OPTIONS_MAX - 1)))?;
        let bytes = option.get::<1, u8>() as usize * 8;
        if bytes == 0 {
            return None;
        }
        found |= option.get::<0, u8>() == 1;
        at += bytes;
    }
    (at == length).then_some(found)
}

/// Turns the frame into the advertisement that answers it: to who asked, or to all where that one has no address.
#[inline(always)]
fn advertise<F: Frame>(
    frame: &mut F,
    link: &Link,
    holder: &Holder,
    target: Address,
    to: Option<(Address, [u8; 6])>,
) -> Verdict {
    const LENGTH: usize = MESSAGE + MAC_OPTION;
    const ALL_NODES: Address = Address { bytes: [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] };
    let no_room = Verdict::Drop(Reason::NoRoom);
    let l4 = link.l3 + IPV6;
    let has_room =
        frame.holds(l4 + LENGTH) || frame.grow_head(MAC_OPTION) && move_ethernet(frame, MAC_OPTION, link.l3 - ETHERNET);
    //= rfc4861#7.2.4:unspecified MUST: who has no address yet is answered by telling all nodes, not as solicited
    //= rfc4861#7.2.4:solicited MUST: who has one is answered there, as solicited
    let (destination, mac) = to.unwrap_or((ALL_NODES, [0x33, 0x33, 0, 0, 0, 1]));
    if !has_room || !frame.truncate(l4 + LENGTH) || !put_macs(frame, mac, holder.mac) {
        return no_room;
    }
    let Some(ip) = frame.at::<IPV6>(link.l3) else { return no_room };
    ip.put::<0, u32>(u32::from_ne_bytes([0x60, 0, 0, 0]));
    ip.put::<{ v6::LENGTH }, u16>((LENGTH as u16).to_be());
    ip.put::<{ v6::NEXT }, u8>(protocol::ICMPV6);
    ip.put::<{ v6::HOPS }, u8>(HOPS);
    let ([a, b], [c, d]) = (target.words(), destination.words());
    ip.put::<{ v6::SOURCE }, u64>(a);
    ip.put::<{ v6::SOURCE + 8 }, u64>(b);
    ip.put::<{ v6::DESTINATION }, u64>(c);
    ip.put::<{ v6::DESTINATION + 8 }, u64>(d);
    let Some(message) = frame.at::<LENGTH>(l4) else { return no_room };
    // Router, solicited, override (4.4).
    //= rfc4861#7.2.4:override SHOULD: the answer overrides what is cached, as no VIP is anycast on its segment
    //= rfc4861#7.2.4:router MUST: who is a router says so, which a virtual router's node is
    let router = if holder.flags & holder_flags::ROUTER != 0 { 0x80 } else { 0 };
    let flags = u32::from_ne_bytes([router | if to.is_some() { 0x40 } else { 0 } | 0x20, 0, 0, 0]);
    let (kind, option) = (u16::from_ne_bytes([ADVERTISEMENT, 0]), u16::from_ne_bytes([2, 1]));
    let (high, low) = mac_words(holder.mac);
    let sum = pseudo_sum(target, destination, LENGTH)
        + kind as u64
        + flags as u64
        + checksum::address_sum(target.words())
        + option as u64
        + high as u64
        + low as u64;
    message.put::<0, u16>(kind);
    message.put::<2, u16>(checksum::finish(sum));
    message.put::<4, u32>(flags);
    message.put::<TARGET, u64>(a);
    message.put::<{ TARGET + 8 }, u64>(b);
    //= rfc4861#7.2.4:mac MUST: the answer has the MAC in an option, whether asked of all or of one
    message.put::<MESSAGE, u16>(option);
    message.put::<{ MESSAGE + 2 }, u32>(high);
    message.put::<{ MESSAGE + 6 }, u16>(low);
    Verdict::Transmit(Reason::NeighborAnswered)
}

/// Whether somebody else says that an address is his which this node holds; it is told to the agent.
#[inline(always)]
fn claimed<T: Holders>(tables: &T, key: &HolderKey, mac: [u8; 6]) -> bool {
    match tables.holder(key) {
        Some(holder) if holder.mac != mac && holder.holds(tables.boot_time()) => {
            tables.note_conflict(key, mac);
            true
        }
        _ => false,
    }
}

/// What an ICMPv6 checksum is over beside the message (RFC 8200, 8.1).
#[inline(always)]
const fn pseudo_sum(source: Address, destination: Address, length: usize) -> u64 {
    checksum::address_sum(source.words())
        + checksum::address_sum(destination.words())
        + (length as u16).to_be() as u64
        + (protocol::ICMPV6 as u16).to_be() as u64
}

#[inline(always)]
fn put_macs<F: Frame>(frame: &F, to: [u8; 6], from: [u8; 6]) -> bool {
    let Some(ethernet) = frame.at::<ETHERNET>(0) else { return false };
    let ((a, b), (c, d)) = (mac_words(to), mac_words(from));
    ethernet.put::<0, u32>(a);
    ethernet.put::<4, u16>(b);
    ethernet.put::<6, u32>(c);
    ethernet.put::<10, u16>(d);
    true
}

/// A MAC as two integers to write.
#[inline(always)]
pub(crate) const fn mac_words(mac: [u8; 6]) -> (u32, u16) {
    (u32::from_ne_bytes([mac[0], mac[1], mac[2], mac[3]]), u16::from_ne_bytes([mac[4], mac[5]]))
}

#[inline(always)]
const fn mac_of(high: u32, low: u16) -> [u8; 6] {
    let ([a, b, c, d], [e, f]) = (high.to_ne_bytes(), low.to_ne_bytes());
    [a, b, c, d, e, f]
}
