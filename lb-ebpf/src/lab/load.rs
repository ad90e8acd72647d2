//! Included by the benchmark as well, so that there is one definition.

/// What the `vary` programs write into each frame before they call the program that is measured: value of `load`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Load {
    /// Frames so far.
    pub next: u64,
    /// Source and destination address, as words in memory order (IPv4: the low half of the second word).
    pub source: [u64; 2],
    /// As `source`.
    pub destination: [u64; 2],
    /// Destination and source MAC.
    pub macs: [u32; 3],
    /// Source and destination port, in memory order.
    pub ports: u32,
    /// Number of flows, a power of two, less one.
    pub flows_mask: u32,
    /// Index into the program array.
    pub target: u32,
    /// Checksum of the IPv4 header in memory order.
    pub ip_check: u16,
    /// Checksum of the transport header in memory order.
    pub check: u16,
    /// Transport protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// Zero.
    pub pad: u16,
}
const _: () = assert!(size_of::<Load>() == 72);
