//! What tells a segment, unasked, that a VIP is here: gratuitous ARP (RFC 5227, 3) and unsolicited neighbor advertisements
//! (RFC 4861, 7.2.6), and when. Questions are answered by the data plane.

//= not rfc826#0:merge MUST: who asks for a VIP is not noted: the answer needs no translation, and the kernel's table has its own
//= not rfc5227#2.1:probe MUST: nobody probes for a VIP: others may have it, and who does is settled by the election
//= not rfc5227#2.3:interval MUST: announcements follow in a quarter of a second, not in two: hosts send to nobody meanwhile
//= not rfc5227#2.4:defend MUST: a VIP that somebody else claims is an alarm, and given up to a better virtual router alone
//= not rfc4861#7.2.3:entry SHOULD: who asks for a VIP is not noted, as with ARP
//= not rfc4861#7.2.6:unsolicited MUST: five unsolicited advertisements a quarter of a second apart, not three in seconds, and again later

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::checksum::finish;

use super::vrrp::{
    machine::{GRATUITOUS_ROUNDS, GRATUITOUS_SPACING, REFRESH},
    packet::{HOP_LIMIT, PROTOCOL, TRAFFIC_CLASS},
};
use crate::net::links::Mac;

/// Whether a router tells it (RFC 9568, 8.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// VRRP asks for it.
    Router,
    /// Anything else.
    Host,
}

/// The frames that say that a VIP is at this MAC: of IPv4 both forms of gratuitous ARP, because each is overheard by some
/// hosts; of IPv6 one advertisement to all nodes.
#[must_use]
pub fn announcement(vip: IpAddr, mac: Mac, role: Role) -> Vec<Vec<u8>> {
    match vip {
        IpAddr::V4(vip) => vec![gratuitous_arp(1, vip, mac), gratuitous_arp(2, vip, mac)],
        IpAddr::V6(vip) => vec![advertisement(vip, mac, role)],
    }
}

fn gratuitous_arp(operation: u8, vip: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &mac, &[0x08, 0x06]].concat();
    let head = [0, 1, 0x08, 0, 6, 4, 0, operation];
    let target_mac = if operation == 1 { [0; 6] } else { [0xff; 6] };
    [&ethernet[..], &head, &mac, &vip.octets(), &target_mac, &vip.octets()].concat()
}

fn advertisement(vip: Ipv6Addr, mac: Mac, role: Role) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Router where it is one, and override.
    let flags = match role {
        Role::Router => 0xa0,
        Role::Host => 0x20,
    };
    let mut message = [&[136, 0, 0, 0, flags, 0, 0, 0][..], &vip.octets(), &[2, 1], &mac].concat();
    let length = [0, message.len() as u8];
    let pseudo_header = [&vip.octets()[..], &ALL_NODES.octets(), &[0, 0], &length, &[0, 0, 0, 58]].concat();
    let check = checksum(&[&pseudo_header, &message]);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let ethernet = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd]].concat();
    let header = [&[0x60, 0, 0, 0][..], &length, &[58, 255], &vip.octets(), &ALL_NODES.octets()].concat();
    [ethernet, header, message].concat()
}

/// An advertisement of VRRP as a frame from a virtual MAC. `None` of one that is not to the group of its family: whose MAC a
/// peer has, the kernel knows.
#[must_use]
pub fn to_group(mac: Mac, source: IpAddr, target: IpAddr, advertisement: &[u8]) -> Option<Vec<u8>> {
    let length = advertisement.len() as u16;
    let frame = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) if target.is_multicast() => {
            let [_, a, b, c] = target.octets();
            let [length_high, length_low] = (IPV4 as u16 + length).to_be_bytes();
            // Don't Fragment, so that its identification means nothing (RFC 6864, 4.1).
            let head = [0x45, TRAFFIC_CLASS, length_high, length_low, 0, 0, 0x40, 0, HOP_LIMIT, PROTOCOL, 0, 0];
            let mut header = [&head[..], &source.octets(), &target.octets()].concat();
            let check = checksum(&[&header]);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            let ethernet = [&[0x01, 0x00, 0x5e, a & 0x7f, b, c][..], &mac, &[0x08, 0x00]].concat();
            [&ethernet, &header, advertisement].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(target)) if target.is_multicast() => {
            let [.., a, b, c, d] = target.octets();
            let [class_high, class_low] = [0x60 | TRAFFIC_CLASS >> 4, TRAFFIC_CLASS << 4];
            let [length_high, length_low] = length.to_be_bytes();
            let head = [class_high, class_low, 0, 0, length_high, length_low, PROTOCOL, HOP_LIMIT];
            let ethernet = [&[0x33, 0x33, a, b, c, d][..], &mac, &[0x86, 0xdd]].concat();
            [&ethernet, &head[..], &source.octets(), &target.octets(), advertisement].concat()
        }
        _ => return None,
    };
    Some(frame)
}

/// Bytes of an IPv4 header without options.
const IPV4: usize = 20;

/// The Internet checksum (RFC 1071) over parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    finish(words.map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum())
}

/// Who says again and again that they have VIPs which nobody contests: each several times at first, then now and then.
#[derive(Debug)]
pub struct Claims<K> {
    claims: BTreeMap<K, Claim>,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    rounds_left: u8,
    next: Duration,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { claims: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Claims<K> {
    /// These are held from here on and no others.
    pub fn set(&mut self, held: impl IntoIterator<Item = K>, now: Duration) {
        let before = std::mem::take(&mut self.claims);
        let new = Claim { rounds_left: GRATUITOUS_ROUNDS, next: now };
        self.claims = held.into_iter().map(|key| (key.clone(), before.get(&key).copied().unwrap_or(new))).collect();
    }

    /// This one is told of as if it were new.
    pub fn begin(&mut self, key: K, now: Duration) {
        self.claims.insert(key, Claim { rounds_left: GRATUITOUS_ROUNDS, next: now });
    }

    /// Forgets those that have had their first rounds: others tell of them now and then.
    pub fn end(&mut self) {
        self.claims.retain(|_, claim| claim.rounds_left != 0);
    }

    /// What is to be said now.
    pub fn handle_timeout(&mut self, now: Duration) -> Vec<K> {
        let mut due = Vec::new();
        for (key, claim) in &mut self.claims {
            if claim.next > now {
                continue;
            }
            claim.rounds_left = claim.rounds_left.saturating_sub(1);
            claim.next = now + if claim.rounds_left == 0 { REFRESH } else { GRATUITOUS_SPACING };
            due.push(key.clone());
        }
        due
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.claims.values().map(|claim| claim.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn gratuitous_arp_has_the_vip_as_sender_and_target_in_both_forms() {
        let frames = announcement("192.0.2.1".parse().unwrap(), MAC, Role::Router);
        assert_eq!(
            frames.iter().map(|frame| hex(frame)).collect::<Vec<_>>(),
            [
                "ffffffffffff020000000009080600010800060400010200000000\
                 09c0000201000000000000c0000201",
                "ffffffffffff020000000009080600010800060400020200000000\
                 09c0000201ffffffffffffc0000201",
            ]
        );
    }

    #[test]
    fn an_advertisement_leaves_from_the_virtual_mac_to_its_group_alone() {
        const VIRTUAL: Mac = [0, 0, 0x5e, 0, 1, 7];
        let send = |source: &str, target: &str| {
            to_group(VIRTUAL, source.parse().unwrap(), target.parse().unwrap(), &[0x31, 7]).map(|frame| hex(&frame))
        };
        assert_eq!(
            send("192.0.2.7", "224.0.0.18").unwrap(),
            "01005e00001200005e0001070800\
             45c0001600004000ff70d89dc0000207e00000123107"
        );
        assert_eq!(
            send("fe80::7", "ff02::12").unwrap(),
            "33330000001200005e00010786dd6c000000000270ff\
             fe800000000000000000000000000007ff0200000000000000000000000000123107"
        );
        assert_eq!(send("192.0.2.7", "192.0.2.8"), None);
    }

    /// A zero of ones' complement: all bits set, however often it is folded.
    fn is_zero(words: &[u8]) -> bool {
        let sum: u64 = words.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum();
        sum.is_multiple_of(0xffff)
    }

    /// Of thirteen of these the sum folds to more than sixteen bits at first.
    #[test]
    fn the_checksum_holds_for_every_vip() {
        for last in 0..=u16::MAX {
            let vip = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xfffe, 0xffff, 0xffff, 0xfffd, last);
            let frame = advertisement(vip, MAC, Role::Router);
            let (header, message) = frame[14..].split_at(40);
            let pseudo_header = [&header[8..], &[0, 0], &header[4..6], &[0, 0, 0, 58]].concat();
            assert!(is_zero(&[pseudo_header, message.to_vec()].concat()), "{vip}");
        }
    }

    #[test]
    fn an_advertisement_to_all_nodes_overrides_and_says_whether_a_router_sends_it() {
        for (role, flags) in [(Role::Router, 0xa0), (Role::Host, 0x20)] {
            let [frame] = <[Vec<u8>; 1]>::try_from(announcement("2001:db8::1".parse().unwrap(), MAC, role)).unwrap();
            assert_eq!(hex(&frame[..14]), "33330000000102000000000986dd");
            assert_eq!((frame.len(), frame[14 + 7], frame[54], frame[58]), (86, 255, 136, flags));
            let header = [&frame[22..54], &[0, 32, 0, 58][..]].concat();
            assert!(is_zero(&[&header[..], &frame[54..]].concat()), "the checksum");
        }
    }

    #[test]
    fn a_vip_that_is_told_of_anew_has_its_first_rounds_alone() {
        let (mut claims, start) = (Claims::default(), Duration::from_secs(9));
        claims.begin("vip", start);
        let mut told = Vec::new();
        while let Some(now) = claims.poll_timeout() {
            told.extend(claims.handle_timeout(now).into_iter().map(|_| now - start));
            claims.end();
        }
        let expected: Vec<Duration> =
            (0..u32::from(GRATUITOUS_ROUNDS)).map(|round| GRATUITOUS_SPACING * round).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn a_vip_is_claimed_several_times_at_first_and_then_now_and_then() {
        let mut claims = Claims::default();
        let at = Duration::from_secs(100);
        claims.set(["a", "b"], at);
        let mut now = at;
        for round in 0..u32::from(GRATUITOUS_ROUNDS) {
            assert_eq!(claims.poll_timeout(), Some(at + GRATUITOUS_SPACING * round));
            assert_eq!(claims.handle_timeout(now), ["a", "b"], "round {round}");
            assert!(claims.handle_timeout(now).is_empty());
            now += GRATUITOUS_SPACING;
        }
        let last = now - GRATUITOUS_SPACING;
        assert_eq!(claims.poll_timeout(), Some(last + REFRESH));
        claims.set(["a", "c"], now);
        assert_eq!(claims.handle_timeout(now), ["c"], "who stays begins not anew");
        claims.set([], now);
        assert_eq!(claims.poll_timeout(), None);
    }
}
