//! What a socket buffer's transport checksum is, as the kernel's `ip_summed` says (include/linux/skbuff.h), and how it
//! changes with the source.
//!
//! No program's context has the field. The return programs leave a place for it, [`PLACE`], which the loader fills with
//! instructions that read it (`lb-userspace/src/dataplane/summed.rs`); until then it says [`UNKNOWN`].

use crate::checksum;

/// `CHECKSUM_NONE`: a whole checksum, which nobody has verified.
pub const NONE: u64 = 0;
/// `CHECKSUM_UNNECESSARY`: a whole checksum, verified.
pub const UNNECESSARY: u64 = 1;
/// `CHECKSUM_COMPLETE`: a whole checksum, and the buffer has the sum of all its bytes beside it.
pub const COMPLETE: u64 = 2;
/// `CHECKSUM_PARTIAL`: the pseudo header's share alone, not complemented; the device adds the rest.
pub const PARTIAL: u64 = 3;
/// `r0` of a place that nobody has filled: none of the above, and unlike what a compiler writes.
pub const UNKNOWN: u64 = 0x5355_4d3f;

/// Bytes of an instruction.
pub const INSTRUCTION: usize = 8;
/// The place as it is compiled: `r0 = UNKNOWN`, three times `goto +0`.
pub const PLACE: [u8; 4 * INSTRUCTION] = {
    let [a, b, c, d] = (UNKNOWN as u32).to_le_bytes();
    [
        0xb7, 0, 0, 0, a, b, c, d, //
        0x05, 0, 0, 0, 0, 0, 0, 0, //
        0x05, 0, 0, 0, 0, 0, 0, 0, //
        0x05, 0, 0, 0, 0, 0, 0, 0, //
    ]
};

/// The checksum field where addresses change by `addresses` and ports by `ports`: net/core/utils.c,
/// `inet_proto_csum_replace_by_diff`. Ports are no part of the pseudo header.
#[inline(always)]
pub const fn field(summed: u64, check: u16, addresses: u64, ports: u64) -> u16 {
    // Without a branch around either, each of which multiplies what the verifier walks.
    if summed == PARTIAL { !checksum::update(!check, addresses) } else { checksum::update(check, addresses + ports) }
}

/// What the sum over the whole IP packet changes by, for buffers that are [`COMPLETE`]. In IPv4 the header's checksum
/// makes up for what changes in the header; in IPv6 nothing does. The transport's makes up for addresses and
/// ports, but where it is left out.
#[inline(always)]
pub const fn packet_change(is_v4: bool, addresses: u64, ports: u64, hops: u64, has_checksum: bool) -> u16 {
    let header = if is_v4 { 0 } else { addresses + hops };
    let transport = if has_checksum { !checksum::fold(addresses) as u64 } else { ports };
    checksum::fold(header + transport)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::{address::Address, checksum::change16};
    use proptest::prelude::*;

    fn sum(bytes: &[u8]) -> u64 {
        bytes.chunks_exact(2).map(|c| u64::from(u16::from_ne_bytes([c[0], c[1]]))).sum()
    }

    /// Both zeros are one number.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 || a == 0xffff) && (b == 0 || b == 0xffff)
    }

    proptest! {
        #[test]
        fn the_field_is_what_a_fresh_sum_gives(
            old in any::<[u8; 16]>(), new in any::<[u8; 16]>(),
            ports in any::<[u16; 2]>(), rest in any::<[u8; 20]>(), is_v4 in any::<bool>(),
        ) {
            let of = |bytes: [u8; 16]| if is_v4 {
                Address::from_v4_word(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            } else {
                Address { bytes }
            };
            let (old, new) = (of(old), of(new));
            let pseudo = |a: Address| if is_v4 { sum(&a.v4_word().to_ne_bytes()) } else { sum(&a.bytes) };
            let whole = |a: Address, port: u16| pseudo(a) + u64::from(port) + sum(&rest);
            let addresses = u64::from(checksum::change_address(old, new, is_v4));
            let port_change = change16(ports[0], ports[1]);
            for summed in [NONE, UNNECESSARY, COMPLETE] {
                let check = field(summed, checksum::finish(whole(old, ports[0])), addresses, port_change);
                prop_assert!(same(check, checksum::finish(whole(new, ports[1]))));
            }
            let share = field(PARTIAL, checksum::fold(pseudo(old)), addresses, port_change);
            prop_assert!(same(share, checksum::fold(pseudo(new))));
        }

        #[test]
        fn the_sum_over_the_packet_follows(
            mut packet in any::<[u8; 32]>(), source in any::<[u8; 16]>(), port in any::<u16>(), hops in any::<u8>(),
            has_checksum in any::<bool>(),
        ) {
            // IPv6 in short: bytes 0 and 1 next header and hop limit, 2 to 17 the source, 18 and 19 the port, 20 and 21 the checksum.
            let check = checksum::finish(sum(&packet[2..20]) + sum(&packet[22..]));
            packet[20..22].copy_from_slice(&if has_checksum { check } else { 0 }.to_ne_bytes());
            let word = |packet: &[u8; 32], at: usize| u16::from_ne_bytes([packet[at], packet[at + 1]]);
            let old = Address { bytes: core::array::from_fn(|i| packet[2 + i]) };
            let before = packet;
            packet[1] = hops;
            packet[2..18].copy_from_slice(&source);
            packet[18..20].copy_from_slice(&port.to_ne_bytes());
            let addresses = u64::from(checksum::change_address(old, Address { bytes: source }, false));
            let ports = change16(word(&before, 18), port);
            if has_checksum {
                packet[20..22].copy_from_slice(&field(COMPLETE, check, addresses, ports).to_ne_bytes());
            }
            let hops = change16(word(&before, 0), word(&packet, 0));
            let change = packet_change(false, addresses, ports, hops, has_checksum);
            prop_assert!(same(checksum::fold(sum(&before) + u64::from(change)), checksum::fold(sum(&packet))));
        }
    }
}
