//! One address type for both families.

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form (RFC 4291, 2.5.5.2), in the order people write it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct Address {
    /// `::ffff:192.0.2.1` is `00 … 00 ff ff c0 00 02 01`.
    pub bytes: [u8; 16],
}

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 8);

/// The high half of an IPv4-mapped address, without the address, as the words of a packet are read.
const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

impl Address {
    /// From the two 64-bit words of an IPv6 address as they lie in memory.
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        // SAFETY: both are 16 bytes of plain data.
        unsafe { core::mem::transmute(words) }
    }

    /// The two 64-bit words as they lie in memory.
    #[inline(always)]
    pub const fn words(self) -> [u64; 2] {
        // SAFETY: both are 16 bytes of plain data, and `Address` is aligned for it.
        unsafe { core::mem::transmute(self) }
    }

    /// From an IPv4 address as it lies in memory.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        let high = if cfg!(target_endian = "little") { (word as u64) << 32 } else { word as u64 };
        Self::from_words([0, MAPPED | high])
    }

    /// The last four bytes as they lie in memory: the IPv4 address if this is one.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        let word = self.words()[1];
        if cfg!(target_endian = "little") { (word >> 32) as u32 } else { word as u32 }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let words = self.words();
        let differs = words[1] ^ MAPPED;
        // Without a branch, each of which multiplies what the verifier walks. The address shifted out, or cut off.
        words[0] | if cfg!(target_endian = "little") { differs << 32 } else { differs >> 32 } == 0
    }
}

#[cfg(not(target_arch = "bpf"))]
mod host {
    use super::Address;
    use core::net::IpAddr;

    impl From<IpAddr> for Address {
        fn from(ip: IpAddr) -> Self {
            let v6 = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            Self { bytes: v6.octets() }
        }
    }

    impl From<Address> for IpAddr {
        fn from(address: Address) -> Self {
            let v6 = core::net::Ipv6Addr::from(address.bytes);
            v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
        }
    }

    impl core::fmt::Display for Address {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn an_ipv4_address_survives_the_way_through_words() {
        let ip: IpAddr = IpAddr::V4([192, 0, 2, 1].into());
        let address = Address::from(ip);
        assert!(address.is_v4());
        assert_eq!(address.v4_word().to_ne_bytes(), [192, 0, 2, 1]);
        assert_eq!(Address::from_v4_word(address.v4_word()), address);
        assert_eq!(IpAddr::from(address), ip);
    }

    #[test]
    fn an_ipv6_address_is_not_ipv4() {
        let address = Address::from(IpAddr::V6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()));
        assert!(!address.is_v4());
        assert_eq!(Address::from_words(address.words()), address);
    }
}
