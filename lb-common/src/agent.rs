//! What an agent leaves to the next one in maps that no program reads: which data plane this is, and what must be put
//! back as it was.

/// Value of `about`, one element: by this the next agent knows whether it may adopt the maps beside it.
///
/// The first three fields are the same in every ABI, so that agents of any two can tell each other apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct About {
    /// [`MAGIC`]. Written last, when the maps are complete.
    pub magic: u64,
    /// [`ABI_VERSION`](crate::abi::ABI_VERSION) of the maps.
    pub abi_version: u32,
    /// [`FLOW_FORMAT`] of `flows`, whose words no type information describes.
    pub flow_format: u32,
    /// The agent's version and commit, ASCII, zeros after it.
    pub build: [u8; 48],
}
const _: () = assert!(size_of::<About>() == 64);

impl Default for About {
    fn default() -> Self {
        Self { magic: 0, abi_version: 0, flow_format: 0, build: [0; 48] }
    }
}

/// In [`About::magic`]: `sluice` and two zeros, read as a little-endian number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"sluice\0\0");

/// Version of how [`flow`](crate::flow) packs keys and values into words. Records are carried over only between data
/// planes of the same format.
pub const FLOW_FORMAT: u32 = 1;

/// Key of `undo`: a setting of somebody else's that an agent has changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
#[repr(C)]
pub struct UndoKey {
    /// Cookie of the interface's network namespace (`SO_NETNS_COOKIE`); 0: the agent's own.
    pub netns_cookie: u64,
    /// Index of the interface there.
    pub ifindex: u32,
    /// [`setting`].
    pub setting: u32,
}
const _: () = assert!(size_of::<UndoKey>() == 16);

/// Values of [`UndoKey::setting`]: offloads, by the names of `ethtool -k`, and settings of all interfaces of a pod, whose
/// [`UndoKey::ifindex`] is that of its `lo`; from [`VIRTUAL_MAC`](setting::VIRTUAL_MAC) on, what an uplink's filter lets in.
pub mod setting {
    /// generic-receive-offload.
    pub const GRO: u32 = 1;
    /// large-receive-offload.
    pub const LRO: u32 = 2;
    /// rx-vlan-offload.
    pub const RX_VLAN: u32 = 3;
    /// `net.ipv4.conf.all.arp_ignore`, raised from 0.
    pub const ARP_IGNORE: u32 = 4;
    /// `net.ipv4.conf.all.arp_announce`, raised from 0.
    pub const ARP_ANNOUNCE: u32 = 5;
    /// A virtual router's MAC in the interface's filter: the last four octets of the MAC, of which these are the first two.
    pub const VIRTUAL_MAC: u32 = 0x5e00_0000;
}

/// Value of `undo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Undo {
    /// 1: it was on before; 0: it was off.
    pub was_on: u32,
    /// Zero.
    pub pad: u32,
}

/// Entries of `undo`: an interface of each pod that a node may have (Kubernetes: 110 by default, some run 500), and of
/// the uplinks.
pub const UNDO_MAX: usize = 4096;

/// Bits of the global `EARLIER` of the programs.
pub mod earlier {
    /// `earlier_bypasses` is read where `bypasses` has nothing.
    pub const BYPASSES: u32 = 1 << 0;
    /// `earlier_flows` is read where `flows` has nothing.
    pub const FLOWS: u32 = 1 << 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_that_tell_abis_apart_never_move() {
        use core::mem::offset_of;
        let offsets = [offset_of!(About, magic), offset_of!(About, abi_version), offset_of!(About, flow_format)];
        assert_eq!(offsets, [0, 8, 12]);
    }
}
