//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken over words in memory order: the ones'-complement sum does not depend on byte order, so a field is
//! read and written as it lies in the packet.

use crate::address::Address;

/// The halves of a 64-bit word: a ones'-complement partial sum with room for many terms.
#[inline(always)]
pub const fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// The 64 bits of an address' words as a partial sum.
#[inline(always)]
pub const fn address_sum(words: [u64; 2]) -> u64 {
    halves(words[0]) + halves(words[1])
}

/// Folds a partial sum to 16 bits.
#[inline(always)]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// As [`fold`], for a sum of less than 2^32 that is a few 16-bit terms: what is left after the first step is below 2^17.
#[inline(always)]
const fn fold_short(mut sum: u64) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field for a partial sum over everything that it covers.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// What changes in a sum when `old` becomes `new`: `~m + m'` of RFC 1624, equation 3.
#[inline(always)]
pub const fn change16(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// As [`change16`], for an address of a family. Below 2^18.
#[inline(always)]
pub const fn change_address(old: Address, new: Address, is_v4: bool) -> u32 {
    let sum = if is_v4 {
        !old.v4_word() as u64 + new.v4_word() as u64
    } else {
        let ([a, b], [c, d]) = (old.words(), new.words());
        let (a, b) = (!a, !b);
        // The low halves are what is left of the words' sum without the high ones: fewer steps than to cut each.
        let high = (a >> 32) + (b >> 32) + (c >> 32) + (d >> 32);
        let low = a.wrapping_add(b).wrapping_add(c).wrapping_add(d).wrapping_sub(high << 32);
        let sum = high + low;
        (sum & 0xffff_ffff) + (sum >> 32)
    };
    ((sum & 0xffff) + (sum >> 16)) as u32
}

/// What one hop less changes in the sum over a header, whatever the count was: the TTL is the high byte of its word, the hop
/// limit the low one, so `~m + m'` is -0x100 or -1.
#[inline(always)]
pub const fn one_hop(is_v4: bool) -> u64 {
    let change = if is_v4 { 0xfeff } else { 0xfffeu16 };
    change.to_be() as u64
}

/// RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`, where `change` is the sum of all `~m + m'`, of which each is a
/// [`change16`] or a [`change_address`].
#[inline(always)]
pub const fn update(check: u16, change: u64) -> u16 {
    !fold_short(!check as u64 + change)
}

/// A UDP checksum that computes to zero is sent as all ones (RFC 768); zero says "none".
#[inline(always)]
pub const fn udp(check: u16) -> u16 {
    if check == 0 { 0xffff } else { check }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(bytes: &[u8]) -> u64 {
        bytes.chunks_exact(2).map(|c| u64::from(u16::from_ne_bytes([c[0], c[1]]))).sum()
    }

    proptest! {
        #[test]
        fn an_update_equals_a_fresh_sum(mut bytes in proptest::array::uniform32(any::<u8>()), new in any::<u16>(), at in 1usize..16) {
            // The checksum itself stands in the first two bytes.
            bytes[..2].fill(0);
            let check = finish(sum(&bytes));
            let old = u16::from_ne_bytes([bytes[2 * at], bytes[2 * at + 1]]);
            bytes[2 * at..2 * at + 2].copy_from_slice(&new.to_ne_bytes());
            let updated = update(check, change16(old, new));
            let fresh = finish(sum(&bytes));
            // RFC 1624, 3: the two may differ only in which of the two zeros they are.
            prop_assert!(updated == fresh || (fold(updated.into()) == 0 || updated == 0xffff) && (fresh == 0 || fresh == 0xffff));
        }
    }

    #[test]
    fn one_hop_less_changes_a_header_by_the_same_whatever_the_count_was() {
        for hops in 1..=255u8 {
            let ttl = |hops: u8| u16::from_ne_bytes([hops, 6]);
            let limit = |hops: u8| u16::from_ne_bytes([6, hops]);
            assert_eq!(fold(one_hop(true)), fold(change16(ttl(hops), ttl(hops - 1))));
            assert_eq!(fold(one_hop(false)), fold(change16(limit(hops), limit(hops - 1))));
        }
    }

    #[test]
    fn a_computed_zero_of_udp_is_sent_as_all_ones() {
        assert_eq!(udp(0), 0xffff);
        assert_eq!(udp(0x1234), 0x1234);
    }
}
